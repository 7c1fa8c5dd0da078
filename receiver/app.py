"""The WSGI app: routes, limits and status codes. It imports no plugin, and keeps nothing but through the journal."""

from __future__ import annotations

import hashlib
import logging
import time
from typing import Any

from flask import Flask, Request, Response, jsonify, request
from werkzeug.exceptions import ClientDisconnected, HTTPException, RequestEntityTooLarge

from receiver.errors import JournalUnavailable, NotAnEvent, Refused
from receiver.event import event_id
from receiver.journal import Arrival, Journal
from receiver.metrics import CONTENT_TYPE, Metrics
from receiver.settings import Settings
from receiver.signature import HEADER, verify

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 10
DISPATCHER_SILENT_SECONDS = 30
DISCARD_AT_MOST = 4 * 1024 * 1024
"""How much of a body that is too large is read off, so that the answer is not lost in a reset connection."""

HINT = f"POST / takes the pushes of a DT Data Connector, signed in {HEADER}; there are also /healthz, /readyz, /metrics"


def create_app(settings: Settings, journal: Journal) -> Flask:
    """The app over an open journal."""
    app = Flask("receiver", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.receiver.max_body + 1
    metrics = Metrics(journal)

    @app.post("/", provide_automatic_options=False)
    def push() -> Response:
        answer = receive(request, settings, journal)
        metrics.answered(answer.status_code, answer.get_data(as_text=True))
        return answer

    @app.get("/healthz")
    def healthz() -> Response:
        return text(200, "ok")

    @app.get("/readyz")
    def readyz() -> tuple[Response, int]:
        faults, warnings = readiness(settings, journal)
        return jsonify(ready=not faults, faults=faults, warnings=warnings), 503 if faults else 200

    @app.get("/metrics")
    def show_metrics() -> Response:
        return Response(metrics.page(), content_type=CONTENT_TYPE)

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        answer = text(error.code or 500, f"{error.name}. {HINT}")
        answer.headers.extend([(name, value) for name, value in error.get_headers() if name == "Allow"])
        return answer

    @app.errorhandler(JournalUnavailable)
    def unavailable(error: JournalUnavailable) -> Response:
        return text(503, "journal unavailable")

    return app


def receive(push: Request, settings: Settings, journal: Journal) -> Response:
    """Answer one push: 200 only when it is safe in the journal, 400 only when it is not proven genuine."""
    try:
        body = push.get_data(cache=True)
    except RequestEntityTooLarge:
        return too_large(push)
    except (ClientDisconnected, OSError):
        return text(408, "request incomplete")
    except Exception:  # the server's reader of chunked bodies has its own exceptions for each kind of malformed chunk
        return text(400, "malformed body")
    if len(body) > settings.receiver.max_body:
        return too_large(push)
    try:
        verify(push, settings.secrets)
    except Refused as refused:
        log.warning("push refused: %s (from %s, %d bytes)", refused, push.remote_addr, len(body))
        return text(400, str(refused))
    try:
        return text(200, journal.accept(arrival(body)).value)
    except JournalUnavailable as error:
        log.error("push not taken: %s", error)
        return text(503, "journal unavailable")


def arrival(body: bytes) -> Arrival:
    """What the journal is given for a genuine push."""
    now = time.time()
    try:
        return Arrival(event_id(body), body, now)
    except NotAnEvent as error:
        return Arrival(hashlib.sha256(body).hexdigest(), body, now, quarantine=str(error))


def readiness(settings: Settings, journal: Journal) -> tuple[list[str], list[str]]:
    """Why pushes cannot be taken or delivered now, and what else a person should know."""
    faults, warnings = [], []
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
    return faults, warnings


def too_large(push: Request) -> Response:
    """413, after reading off what is on its way."""
    stream: Any = push.environ["wsgi.input"]
    left = DISCARD_AT_MOST
    try:
        while left > 0 and (data := stream.read(min(left, 65536))):
            left -= len(data)
    except Exception:  # it is thrown away either way
        log.debug("the rest of a body that is too large could not be read")
    return text(413, "body too large")


def text(status: int, line: str) -> Response:
    """A plain answer of one line."""
    response = Response(line, status, content_type="text/plain; charset=utf-8")
    if status == 503:
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response
