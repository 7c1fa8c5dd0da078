"""What happens to a push: its body is read, verified and stored before the response is sent."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.wrappers import Request

from receiver.errors import JournalUnavailable, NotAnEvent, Rejected, Rejection, SigningKeyUnknown
from receiver.event import event_id
from receiver.health import odd_secrets, unused_variables
from receiver.intake.metrics import Metrics
from receiver.intake.remote_address import remote_address
from receiver.intake.responses import plain_headers, request_id
from receiver.journal import Arrival, Outcome
from receiver.logs import RateLimitedLog
from receiver.settings import Settings
from receiver.signature import Asymmetric, verify

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

MAX_DISCARDED_BYTES = 4 * 1024 * 1024
"""How much of an unwanted body is read, so that the response is not lost in a connection reset."""

Store = Callable[[Arrival], Outcome]
"""Stores an arrival durably before it returns. Raises JournalUnavailable."""


class Result(NamedTuple):
    """The response to a push: its status code, and its line."""

    status: int
    line: str


INCOMPLETE = Result(408, "request incomplete")
MALFORMED = Result(400, "malformed body")
TOO_LARGE = Result(413, "body too large")
UNAVAILABLE = Result(503, "journal unavailable")
KEY_UNKNOWN = Result(503, "signing key unknown")
INTERNAL_ERROR = Result(503, "internal error")


class PushHandler:
    """The WSGI app for pushes: responds 200 only after the commit, 400 only when a push cannot be verified."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        metrics: Metrics,
        asymmetric: Asymmetric | None = None,
        look_for_keys: Callable[[], None] = lambda: None,
    ) -> None:
        """`look_for_keys` is called before a push with an unknown key is rejected; the key may be known afterwards."""
        self._settings = settings
        self._asymmetric = asymmetric
        self._look_for_keys = look_for_keys
        self._store = store
        self._metrics = metrics
        self._log = RateLimitedLog(log)
        self._remote_address = partial(remote_address, trusted=settings.trusted_proxies)
        doubts = [*unused_variables(settings), *odd_secrets(settings.secrets)]
        self._hints = {Rejection.WRONG_SECRET.value: "".join(f"; {doubt}" for doubt in doubts)}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        push = Request(environ)
        name = request_id(push.headers.get("X-Request-Id"))
        try:
            result = self._result(push, name)
        except Exception:
            log.exception("internal error in request %(request_id)s", {"request_id": name, "code": 503})
            result = INTERNAL_ERROR
        self._metrics.count_push(*result)
        status, line = result
        headers = [*plain_headers(status), ("X-Request-Id", name), ("Content-Length", str(len(line)))]
        start_response(f"{status} {HTTPStatus(status).phrase}", headers)
        return [line.encode("ascii")]

    def _result(self, push: Request, name: str) -> Result:
        body, rejected = self._read_body(push)
        if rejected is not None:
            self._log_rejected(push, name, rejected, len(body))
            return rejected
        try:
            secret = self._verify(push)
        except SigningKeyUnknown:
            self._log_rejected(push, name, KEY_UNKNOWN, len(body))
            return KEY_UNKNOWN
        except Rejected as error:
            rejected = Result(400, str(error))
            self._log_rejected(push, name, rejected, len(body))
            return rejected
        self._metrics.count_verified(secret)
        start = time.monotonic()
        try:
            outcome = self._store(arrival(body, secret))
        except JournalUnavailable as error:
            values = {"reason": error, "request_id": name, "code": 503, "remote": self._remote_address(push)}
            self._log.error("unavailable", "push not stored: %(reason)s (request %(request_id)s)", values)
            return UNAVAILABLE
        self._metrics.observe_commit(time.monotonic() - start)
        return Result(200, outcome.value)

    def _verify(self, push: Request) -> str:
        """The name of what verified a push. Raises Rejected or SigningKeyUnknown."""
        secrets, legacy_sha1 = self._settings.secrets, self._settings.receiver.legacy_sha1
        try:
            return verify(push, secrets, self._asymmetric, legacy_sha1=legacy_sha1)
        except SigningKeyUnknown:
            self._look_for_keys()
            return verify(push, secrets, self._asymmetric, legacy_sha1=legacy_sha1)

    def _read_body(self, push: Request) -> tuple[bytes, Result | None]:
        """The raw body, or a response if it did not arrive completely."""
        limit = self._settings.receiver.max_body_bytes
        push.max_content_length = limit + 1
        try:
            body = push.get_data(cache=True)
        except RequestEntityTooLarge:
            discard_body(push)
            return b"", TOO_LARGE
        except (ClientDisconnected, OSError):
            return b"", INCOMPLETE
        except Exception as error:  # gunicorn's reader of chunked bodies has an exception for each malformed chunk
            if len(getattr(error, "term", "  ")) < 2:  # the body ended within the two bytes that end a chunk
                return b"", INCOMPLETE
            return b"", MALFORMED
        if len(body) > limit:
            discard_body(push)
            return body, TOO_LARGE
        if len(body) < (push.content_length or 0):
            return body, INCOMPLETE
        return body, None

    def _log_rejected(self, push: Request, name: str, result: Result, size: int) -> None:
        """Log why a push was rejected, its source and its size; never its content."""
        code, reason = result
        message = "push rejected: %(reason)s (from %(remote)s, %(bytes)d bytes, request %(request_id)s)%(hint)s"
        values = {
            "reason": reason,
            "code": code,
            "remote": self._remote_address(push),
            "bytes": size,
            "request_id": name,
            "hint": self._hints.get(reason, ""),
        }
        self._log.warning(reason, message, values)


def arrival(body: bytes, secret: str) -> Arrival:
    """What is stored of a push that the named secret verified: an event, or a push for the quarantine."""
    now = time.time()
    try:
        return Arrival(event_id(body), body, now, secret=secret)
    except NotAnEvent as error:
        return Arrival(hashlib.sha256(body).hexdigest(), body, now, quarantine_reason=str(error), secret=secret)


def discard_body(push: Request) -> None:
    """Read and discard a body: an unread one would close the connection under the client's next request."""
    stream: Any = push.environ["wsgi.input"]
    left = MAX_DISCARDED_BYTES
    try:
        while left > 0 and (data := stream.read(min(left, 65536))):
            left -= len(data)
    except Exception:  # the body is not wanted
        log.debug("the rest of a body could not be read")
