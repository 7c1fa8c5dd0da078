"""The console as a Flask blueprint: its routes, who gets in, and what all its responses have in common."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from flask import Blueprint, Flask, Response, abort, g, request
from werkzeug.exceptions import HTTPException

from receiver.console import dead_letters, events, overview, rejected, sensor, sensors, silence, sinks
from receiver.console.access import MAX_SLOWED, WRONG_SECONDS, Passwords, Role, is_same_origin
from receiver.console.rendering import Rendered, Renderer
from receiver.console.sharing import Polls
from receiver.console.sources import Sources
from receiver.console.visit import Page, View, Visit
from receiver.errors import JournalError, ReceiverError
from receiver.redaction import Redactor
from receiver.settings import Settings

log = logging.getLogger(__name__)

Value = TypeVar("Value")

PAGE_SECONDS = 5.0
"""How long a page may take; then it says that it does not respond in time."""

MAX_PAUSE_SECONDS = 0.1
"""After each part of a download it pauses for as long as the part took, and for no longer than this."""

MAX_FORM_BYTES = 256 * 1024

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with `no-referrer`, forms would be sent with the origin `null`
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


HEADINGS = {
    401: "Enter your password",
    403: "Not allowed",
    404: "Not found",
    413: "Too large",
    503: "Not available now",
}


class Part(NamedTuple):
    """A part of the console in its navigation; `path` is below /console."""

    title: str
    path: str


PARTS = (
    Part("Overview", "/"),
    Part("Sensors", "/sensors"),
    Part("Silence", "/silence"),
    Part("Sinks", "/sinks"),
    Part("Dead letters", "/dead-letters"),
    Part("Events", "/events"),
    Part("Rejected", "/rejected"),
)


class Route(NamedTuple):
    """A page, or with POST an action, which only the admin can call."""

    method: str
    path: str
    view: View


ROUTES = (
    Route("GET", "/", overview.show),
    Route("GET", "/sensors", sensors.show),
    Route("GET", "/sensors.csv", sensors.download),
    Route("GET", "/sensors/<device>", sensor.show),
    Route("GET", "/sensors/<device>/values", sensor.values),
    Route("GET", "/sensors/<device>/history.json", sensor.history),
    Route("GET", "/sensors/<device>/history.csv", sensor.download),
    Route("POST", "/sensors/<device>/snooze", sensor.snooze),
    Route("POST", "/sensors/<device>/retire", sensor.retire),
    Route("GET", "/silence", silence.show),
    Route("POST", "/silence/backfill", silence.backfill),
    Route("GET", "/sinks", sinks.show),
    Route("POST", "/sinks/<sink>/resume", sinks.probe),
    Route("GET", "/dead-letters", dead_letters.show),
    Route("GET", "/dead-letters/<sink>/<group>", dead_letters.show_group),
    Route("POST", "/dead-letters/<sink>/<group>/retry", dead_letters.retry),
    Route("POST", "/dead-letters/<sink>/<group>/delete", dead_letters.delete),
    Route("GET", "/events", events.show),
    Route("GET", "/events/<event>", events.show_one),
    Route("POST", "/events/<event>/replay", events.replay),
    Route("GET", "/rejected", rejected.show),
    Route("POST", "/rejected/retry", rejected.retry_all),
    Route("GET", "/rejected/<push>", rejected.show_quarantined),
    Route("POST", "/rejected/<push>/retry", rejected.retry_one),
)


class Threads(Protocol):
    """The native threads in which views run."""

    def call(self, function: Callable[[], Value], seconds: float) -> Value:
        """The value of a call. Raises its exception, or TimeoutError after so many seconds."""


def mount(
    app: Flask,
    settings: Settings,
    threads: Threads,
    sleep: Callable[[float], object],
    responses: Callable[[], Mapping[tuple[int, str], int]],
) -> None:
    """Add the console to an app, if there is a password for it.

    `sleep` blocks nothing but the request that sleeps; `responses` counts the responses to pushes.
    """
    if Role.ADMIN not in settings.console_passwords:
        return
    console = Console(settings, threads, sleep, responses)
    blueprint = Blueprint("console", __name__, url_prefix="/console")
    blueprint.before_request(console.admit)
    blueprint.after_request(console.secure)
    blueprint.register_error_handler(HTTPException, console.http_error)
    blueprint.add_url_rule("/static/<path:name>", "static", console.static, provide_automatic_options=False)
    for route in ROUTES:
        blueprint.add_url_rule(
            route.path,
            f"{route.method} {route.path}".replace(".", "-"),
            partial(console.visit, route),
            methods=[route.method],
            provide_automatic_options=False,
        )
    for path in ("", "/<path:rest>"):
        blueprint.add_url_rule(
            path, f"rest{path}", console.elsewhere, methods=["GET", "POST"], provide_automatic_options=False
        )
    app.register_blueprint(blueprint)


def accepts_gzip() -> bool:
    return request.accept_encodings.best_match(["gzip"]) is not None


class Console:
    """Handles the requests of one process."""

    def __init__(
        self,
        settings: Settings,
        threads: Threads,
        sleep: Callable[[float], object],
        responses: Callable[[], Mapping[tuple[int, str], int]],
    ) -> None:
        self._passwords = Passwords(settings.console_passwords)
        self._threads = threads
        self._sleep = sleep
        self._slowed = 0
        self._redact = Redactor(settings.secret_values).redact
        self._sources = Sources(settings, responses)
        self._renderer = Renderer(Redactor(settings.secret_values), PARTS)
        self._polls = Polls()

    def admit(self) -> None:
        """Before each request: who it is, and for a POST, whether a page of the console sent it."""
        request.max_content_length = MAX_FORM_BYTES
        if request.method == "POST":
            request.form  # noqa: B018  # read before any response, or the connection could not be reused
        role = self._passwords.role(request.authorization)
        if role is None:
            self._slow_down()
            abort(401)
        if request.method == "POST" and not is_same_origin(request.headers):
            abort(403, "This form was not sent by a page of the console itself.")
        if request.method == "POST" and role is not Role.ADMIN:
            abort(403, "The user viewer can change nothing.")
        g.role = role

    def _slow_down(self) -> None:
        """Delay the response to a wrong password; a request without one is how every browser begins."""
        if request.authorization is not None and self._slowed < MAX_SLOWED:
            self._slowed += 1
            try:
                self._sleep(WRONG_SECONDS)
            finally:
                self._slowed -= 1

    def visit(self, route: Route, **path: str) -> Response:
        visit = Visit(
            g.role,
            path,
            request.args,
            request.form,
            self._sources,
            time.time(),
            request.method == "POST",
        )
        compress = accepts_gzip()
        poll = (g.role, request.full_path, compress) if "X-Refresh" in request.headers else None
        shared = self._polls.find(poll)
        if shared is not None:
            return self._response(shared)
        respond = partial(self._respond, route.view, visit, compress)
        call = respond if poll is None else partial(self._polls.render, poll, respond)
        try:
            rendered = self._threads.call(call, PAGE_SECONDS)
        except TimeoutError:
            rendered = self._problem(
                503,
                "The journal or the registry of sensors does not respond in time. Pushes are accepted independently "
                "of this page; try again.",
            )
        return self._response(rendered)

    def _respond(self, view: View, visit: Visit, compress: bool) -> Rendered:
        """Runs in a native thread: neither queries nor templates may hold up other requests."""
        try:
            rendered = self._renderer.render(visit, view(visit))
        except JournalError as error:
            rendered = self._problem(503, f"This cannot be read now: {self._redact(str(error))}.")
        except ReceiverError as error:
            rendered = self._problem(409 if visit.is_form else 404, f"{self._redact(str(error))}.")
        return rendered.compressed() if compress else rendered

    def static(self, name: str) -> Response:
        found = self._renderer.static(name, compress=accepts_gzip())
        if found is None:
            abort(404)
        return self._response(found)

    def elsewhere(self, rest: str | None = None) -> Response:
        """Any other path: the console itself without its slash, or a page that does not exist."""
        if rest is not None or request.method == "POST":
            abort(404, "There is no such page.")
        return self._response(Rendered(308, b"", {"Location": "/console/"}))

    def http_error(self, error: HTTPException) -> Response:
        rendered = self._problem(error.code or 500, error.description or error.name)
        response = self._response(rendered)
        if error.code == 401 and "X-Refresh" not in request.headers:  # a script must not make the browser ask
            response.headers["WWW-Authenticate"] = 'Basic realm="receiver", charset="UTF-8"'
        return response

    def _problem(self, status: int, sentence: str) -> Rendered:
        heading = HEADINGS.get(status, "Not possible")
        return self._renderer.render(None, Page("problem.html", {"heading": heading, "sentence": sentence}, status))

    def _response(self, rendered: Rendered) -> Response:
        body = rendered.body if rendered.rest is None else self._parts(rendered.body, rendered.rest)
        response = Response(body, rendered.status)
        response.headers.update(rendered.headers)
        return response

    def _parts(self, first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
        """A long response part by part. A pause after each lets pushes go on; an error ends the connection too soon,
        by which a browser knows that the download is not complete."""
        yield first
        while True:
            began = time.monotonic()
            try:
                part = self._threads.call(lambda: next(rest, None), PAGE_SECONDS)
            except (ReceiverError, TimeoutError) as error:
                log.warning("a download was ended too soon: %s", self._redact(str(error)) or "no response in time")
                raise ConnectionAbortedError from None
            if part is None:
                return
            yield part
            self._sleep(min(time.monotonic() - began, MAX_PAUSE_SECONDS))

    @staticmethod
    def secure(response: Response) -> Response:
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        return response
