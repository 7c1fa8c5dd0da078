"""What happens to a push: its body is read, verified and stored before the response is sent."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from typing import Any

from flask import Request, Response, g
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from receiver.errors import JournalUnavailable, NotAnEvent, Rejected, Rejection
from receiver.event import event_id
from receiver.health import odd_secrets, unused_variables
from receiver.intake.metrics import Metrics
from receiver.journal import Arrival, Outcome
from receiver.logs import RateLimitedLog
from receiver.settings import Settings
from receiver.signature import verify

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 10

MAX_DISCARDED_BYTES = 4 * 1024 * 1024
"""How much of an unwanted body is read, so that the response is not lost in a connection reset."""

Store = Callable[[Arrival], Outcome]
"""Stores an arrival durably before it returns. Raises JournalUnavailable."""


class PushHandler:
    """Responds to pushes: 200 only after the commit, 400 only when a push cannot be verified."""

    def __init__(self, settings: Settings, store: Store, metrics: Metrics) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._log = RateLimitedLog(log)
        doubts = [*unused_variables(settings), *odd_secrets(settings.secrets)]
        self._hints = {Rejection.WRONG_SECRET.value: "".join(f"; {doubt}" for doubt in doubts)}

    def handle(self, push: Request) -> Response:
        response = self._response(push)
        self._metrics.count_push(response.status_code, response.get_data(as_text=True))
        return response

    def _response(self, push: Request) -> Response:
        body, rejected = self._read_body(push)
        if rejected is not None:
            self._log_rejected(push, rejected.get_data(as_text=True), len(body))
            return rejected
        try:
            secret = verify(push, self._settings.secrets, legacy_sha1=self._settings.receiver.legacy_sha1)
        except Rejected as error:
            self._log_rejected(push, str(error), len(body))
            return plain_response(400, str(error))
        self._metrics.count_verified(secret)
        return self._store_and_respond(arrival(body, secret))

    def _read_body(self, push: Request) -> tuple[bytes, Response | None]:
        """The raw body, or a response if it did not arrive completely."""
        try:
            body = push.get_data(cache=True)
        except RequestEntityTooLarge:
            return b"", too_large(push)
        except (ClientDisconnected, OSError):
            return b"", plain_response(408, "request incomplete")
        except Exception as error:  # gunicorn's reader of chunked bodies has an exception for each malformed chunk
            if len(getattr(error, "term", "  ")) < 2:  # the body ended within the two bytes that end a chunk
                return b"", plain_response(408, "request incomplete")
            return b"", plain_response(400, "malformed body")
        if len(body) > self._settings.receiver.max_body_bytes:
            return body, too_large(push)
        if len(body) < (push.content_length or 0):
            return body, plain_response(408, "request incomplete")
        return body, None

    def _log_rejected(self, push: Request, reason: str, size: int) -> None:
        """Log why a push was rejected, its source and its size; never its content."""
        message = "push rejected: %s (from %s, %d bytes, request %s)%s"
        hint = self._hints.get(reason, "")
        self._log.warning(reason, message, reason, push.remote_addr, size, g.request_id, hint)

    def _store_and_respond(self, arrival: Arrival) -> Response:
        start = time.monotonic()
        try:
            outcome = self._store(arrival)
        except JournalUnavailable as error:
            self._log.error("unavailable", "push not stored: %s (request %s)", error, g.request_id)
            return plain_response(503, "journal unavailable")
        self._metrics.observe_commit(time.monotonic() - start)
        return plain_response(200, outcome.value)


def arrival(body: bytes, secret: str) -> Arrival:
    """What is stored of a push that the named secret verified: an event, or a push for the quarantine."""
    now = time.time()
    try:
        return Arrival(event_id(body), body, now, secret=secret)
    except NotAnEvent as error:
        return Arrival(hashlib.sha256(body).hexdigest(), body, now, quarantine_reason=str(error), secret=secret)


def too_large(push: Request) -> Response:
    """413, after the rest of the body has been discarded."""
    discard_body(push)
    return plain_response(413, "body too large")


def discard_body(push: Request) -> None:
    """Read and discard a body: an unread one would close the connection under the client's next request."""
    stream: Any = push.environ["wsgi.input"]
    left = MAX_DISCARDED_BYTES
    try:
        while left > 0 and (data := stream.read(min(left, 65536))):
            left -= len(data)
    except Exception:  # the body is not wanted
        log.debug("the rest of a body could not be read")


def plain_response(status: int, line: str) -> Response:
    """A response of one line; a 503 says when to retry."""
    response = Response(line, status, content_type="text/plain; charset=utf-8")
    if status == 503:
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response
