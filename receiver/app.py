"""The WSGI app: routes, limits and status codes. It imports no plugin, and keeps nothing but through the journal."""

from __future__ import annotations

import hashlib
import hmac
import logging
import random
import re
import threading
import time
from typing import Any

from flask import Flask, Request, Response, g, jsonify, request
from werkzeug.exceptions import ClientDisconnected, HTTPException, NotFound, RequestEntityTooLarge
from werkzeug.routing import RequestRedirect

from receiver.errors import JournalUnavailable, NotAnEvent, Refused
from receiver.event import event_id
from receiver.journal import Arrival, Journal
from receiver.logs import Seldom
from receiver.metrics import CONTENT_TYPE, Metrics
from receiver.settings import Settings
from receiver.signature import HEADER, verify

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 10
DISPATCHER_SILENT_SECONDS = 30
READINESS_SECONDS = 1.0
DISCARD_AT_MOST = 4 * 1024 * 1024
"""How much of a body that is too large is read off, so that the answer is not lost in a reset connection."""

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
HINT = f"POST / takes the pushes of a DT Data Connector, signed in {HEADER}; there are also /healthz, /readyz, /metrics"


def create_app(settings: Settings, journal: Journal) -> Flask:
    """The app over an open journal."""
    app = Flask("receiver", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.receiver.max_body + 1
    metrics = Metrics(journal)
    door = Door(settings, journal, metrics)
    ready = Readiness(settings, journal)

    app.before_request(name_request)
    app.after_request(tell_name)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(Exception, unexpected)

    @app.post("/", provide_automatic_options=False)
    def push() -> Response:
        answer = door.receive(request)
        metrics.answered(answer.status_code, answer.get_data(as_text=True))
        return answer

    @app.get("/healthz")
    def healthz() -> Response:
        return text(200, "ok")

    @app.get("/readyz")
    def readyz() -> tuple[Response, int]:
        faults, warnings = ready.look()
        details = {"faults": faults, "warnings": warnings} if may_look(settings, request) else {}
        return jsonify(ready=not faults, **details), 503 if faults else 200

    @app.get("/metrics")
    def show_metrics() -> Response:
        if not may_look(settings, request):
            answer = text(401, "Authorization: Bearer and [receiver] metrics_token are needed")
            answer.headers["WWW-Authenticate"] = "Bearer"
            return answer
        return Response(metrics.page(), content_type=CONTENT_TYPE)

    return app


def name_request() -> None:
    given = request.headers.get("X-Request-Id", "")
    g.request_id = given if REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
    if isinstance(request.routing_exception, RequestRedirect):
        raise NotFound  # a redirect would repeat the host that the client claims


def tell_name(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.request_id
    return response


def http_error(error: HTTPException) -> Response:
    read_off(request)
    answer = text(error.code or 500, f"{error.name}. {HINT}")
    answer.headers.extend([(name, value) for name, value in error.get_headers() if name == "Allow"])
    return answer


def unexpected(error: Exception) -> Response:
    if isinstance(error, JournalUnavailable):
        return text(503, "journal unavailable")
    log.exception("request %s met a fault of the receiver's own", g.request_id)
    return text(503, "internal fault")


class Door:
    """Answers pushes: 200 only when they are safe in the journal, 400 only when they are not proven genuine."""

    def __init__(self, settings: Settings, journal: Journal, metrics: Metrics) -> None:
        self._settings = settings
        self._journal = journal
        self._metrics = metrics
        self._log = Seldom(log)

    def receive(self, push: Request) -> Response:
        body, refused = self._read(push)
        if refused is not None:
            self._tell(push, refused.get_data(as_text=True), len(body))
            return refused
        try:
            secret = verify(push, self._settings.secrets, legacy_sha1=self._settings.receiver.legacy_sha1)
        except Refused as error:
            self._tell(push, str(error), len(body))
            return text(400, str(error))
        self._metrics.proved(secret)
        return self._keep(arrival(body, secret))

    def _read(self, push: Request) -> tuple[bytes, Response | None]:
        """The raw body, or the answer when it cannot be had whole."""
        try:
            body = push.get_data(cache=True)
        except RequestEntityTooLarge:
            return b"", too_large(push)
        except (ClientDisconnected, OSError):
            return b"", text(408, "request incomplete")
        except Exception as error:  # the server's reader of chunked bodies has its own for each malformed chunk
            if len(getattr(error, "term", "  ")) < 2:  # the body ended within the two bytes that end a chunk
                return b"", text(408, "request incomplete")
            return b"", text(400, "malformed body")
        if len(body) > self._settings.receiver.max_body:
            return body, too_large(push)
        if len(body) < (push.content_length or 0):
            return body, text(408, "request incomplete")
        return body, None

    def _tell(self, push: Request, reason: str, size: int) -> None:
        """A line for a push that is refused: why, from whom, how large; never what is in it."""
        message = "push refused: %s (from %s, %d bytes, request %s)"
        self._log.warning(reason, message, reason, push.remote_addr, size, g.request_id)

    def _keep(self, arrival: Arrival) -> Response:
        start = time.monotonic()
        try:
            acceptance = self._journal.accept(arrival)
        except JournalUnavailable as error:
            self._log.error("unavailable", "push not taken: %s (request %s)", error, g.request_id)
            return text(503, "journal unavailable")
        self._metrics.committed(time.monotonic() - start)
        return text(200, acceptance.value)


def arrival(body: bytes, secret: str) -> Arrival:
    """What the journal is given for a push that the named secret proves genuine."""
    now = time.time()
    try:
        return Arrival(event_id(body), body, now, secret=secret)
    except NotAnEvent as error:
        return Arrival(hashlib.sha256(body).hexdigest(), body, now, quarantine=str(error), secret=secret)


class Readiness:
    """What `/readyz` tells, found out once a second at most: to find out takes a commit, and anyone may ask."""

    def __init__(self, settings: Settings, journal: Journal) -> None:
        self._settings = settings
        self._journal = journal
        self._lock = threading.Lock()
        self._known: tuple[list[str], list[str]] = ([], [])
        self._known_at = float("-inf")

    def look(self) -> tuple[list[str], list[str]]:
        """Faults and warnings, as `readiness` found them."""
        with self._lock:
            if time.monotonic() - self._known_at > READINESS_SECONDS:
                self._known = readiness(self._settings, self._journal)
                self._known_at = time.monotonic()
            return self._known


def readiness(settings: Settings, journal: Journal) -> tuple[list[str], list[str]]:
    """Why pushes cannot be taken or delivered now, and what else a person should know."""
    faults, warnings = [], settings.at_risk()
    try:
        journal.check_writable()
        last_beat = journal.last_beat()
        if last_beat is None or time.time() - last_beat > DISPATCHER_SILENT_SECONDS:
            faults.append("no dispatcher is alive")
        names = {sink.name for sink in settings.enabled_sinks}
        warnings += [
            f"sink {state.name} is paused: {state.pause_reason}"
            for state in journal.states().values()
            if state.pauses and state.name in names
        ]
        warnings += [
            f"sink {name} is not enabled any more, and still owed {count.pending} events"
            for name, count in journal.counts().sinks.items()
            if count.pending and name not in names
        ]
    except JournalUnavailable as error:
        faults.append(f"the journal is unavailable: {error}")
    return [settings.redact(fault) for fault in faults], [settings.redact(warning) for warning in warnings]


def may_look(settings: Settings, request: Request) -> bool:
    """Whether a request may see metrics and details: it has the token, or there is none to have."""
    token = settings.receiver.metrics_token
    if token is None:
        return True
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    right = hmac.compare_digest(given.encode("latin-1"), token.get_secret_value().encode())
    return right and scheme.lower() == "bearer"


def too_large(push: Request) -> Response:
    """413, after reading off what is on its way."""
    read_off(push)
    return text(413, "body too large")


def read_off(push: Request) -> None:
    """Read and forget a body: one left unread closes the connection under the client's next request."""
    stream: Any = push.environ["wsgi.input"]
    left = DISCARD_AT_MOST
    try:
        while left > 0 and (data := stream.read(min(left, 65536))):
            left -= len(data)
    except Exception:  # it is thrown away either way
        log.debug("the rest of a body could not be read")


def text(status: int, line: str) -> Response:
    """A plain answer of one line."""
    response = Response(line, status, content_type="text/plain; charset=utf-8")
    if status == 503:
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response
