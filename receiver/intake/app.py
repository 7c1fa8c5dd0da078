"""The WSGI app: its routes, request ids, and what is shown to whom."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import gevent
from flask import Flask, Request, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import RequestRedirect

from receiver import console
from receiver.errors import JournalUnavailable
from receiver.health import Readiness
from receiver.intake.group_commit import GroupCommit
from receiver.intake.metrics import CONTENT_TYPE, Metrics
from receiver.intake.native_thread import Crew, SharedCall
from receiver.intake.pushes import PushHandler, discard_body
from receiver.intake.responses import plain_headers, request_id
from receiver.journal import Journal
from receiver.keys import SigningKeys
from receiver.redaction import Redactor
from receiver.settings import Settings
from receiver.signature import HEADER, Asymmetric

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

CONSOLE_THREADS = 2

HINT = f"POST / accepts the pushes of a DT Data Connector, signed in {HEADER}; see also /healthz, /readyz, /metrics"


def create_app(settings: Settings, journal: Journal) -> Flask:
    """The app on an open journal."""
    app = Flask("receiver", static_folder=None)
    pages = app.wsgi_app
    metrics = Metrics(journal, settings)
    pushes = PushHandler(settings, GroupCommit(journal.accept).submit, metrics, *verify_with(settings, journal))
    readiness = SharedCall(Readiness(settings, journal, Redactor(settings.secret_values)).get)
    metrics_page = SharedCall(metrics.page)

    console.mount(app, settings, Crew(CONSOLE_THREADS), gevent.sleep, metrics.responses)

    app.before_request(assign_request_id)
    app.after_request(end_request)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(Exception, internal_error)

    def wsgi_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Pushes go past Flask, whose work for a request would cost half as much as verifying it."""
        is_push = environ["PATH_INFO"] == "/" and environ["REQUEST_METHOD"] == "POST"
        return pushes(environ, start_response) if is_push else pages(environ, start_response)

    app.wsgi_app = wsgi_app  # type: ignore[method-assign]  # the way that Flask documents

    @app.post("/", provide_automatic_options=False)
    def push() -> Response:
        """For Flask to know which method the root has. It takes other paths, such as //, for the root as well."""
        raise NotFound

    @app.get("/healthz")
    def healthz() -> Response:
        return plain_response(200, "ok")

    @app.get("/readyz")
    def readyz() -> tuple[Response, int]:
        found = readiness()
        errors, warnings = [*found.errors], [*found.warnings]
        (errors if "strict" in request.args else warnings).extend(found.of_sinks)
        details = {"errors": errors, "warnings": warnings} if is_authorized(settings, request) else {}
        return jsonify(ready=not errors, **details), 503 if errors else 200

    @app.get("/metrics")
    def show_metrics() -> Response:
        if not is_authorized(settings, request):
            response = plain_response(401, "send Authorization: Bearer with the [receiver] metrics_token")
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        return Response(metrics_page(), content_type=CONTENT_TYPE)

    return app


def verify_with(settings: Settings, journal: Journal) -> tuple[Asymmetric, SharedCall[None]] | tuple[()]:
    """DT's own keys, which are kept current from now on, and how to look for an unknown one; nothing if not used."""
    if not settings.organizations:
        return ()
    keys = SigningKeys(settings, journal)
    keys.start()
    return keys.asymmetric, SharedCall(keys.look_again)


def assign_request_id() -> None:
    g.request_id = request_id(request.headers.get("X-Request-Id"))
    if isinstance(request.routing_exception, RequestRedirect):
        raise NotFound  # a redirect would repeat the host that the client claims


def end_request(response: Response) -> Response:
    discard_body(request)
    response.headers["X-Request-Id"] = g.request_id
    return response


def http_error(error: HTTPException) -> Response:
    response = plain_response(error.code or 500, f"{error.name}. {HINT}")
    response.headers.extend([(name, value) for name, value in error.get_headers() if name == "Allow"])
    return response


def internal_error(error: Exception) -> Response:
    if isinstance(error, JournalUnavailable):
        return plain_response(503, "journal unavailable")
    log.exception("internal error in request %(request_id)s", {"request_id": g.request_id, "code": 503})
    return plain_response(503, "internal error")


def is_authorized(settings: Settings, request: Request) -> bool:
    """Whether a request may see metrics and details: it has the metrics token, or none is set."""
    token = settings.receiver.metrics_token
    if token is None:
        return True
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    is_equal = hmac.compare_digest(given.encode("latin-1"), token.get_secret_value().encode())
    return is_equal and scheme.lower() == "bearer"


def plain_response(status: int, line: str) -> Response:
    return Response(line, status, plain_headers(status))
