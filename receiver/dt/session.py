"""Requests to DT's REST API: the access token, rate limits and repetition; no exception of a library leaves this file.

A request is repeated when the connection is lost, when DT is overloaded, and when it limits the rate; how long is
bounded. https://developer.disruptive-technologies.com/docs/authentication/oauth2
"""

from __future__ import annotations

import random
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlencode

import jwt

from receiver.errors import ReceiverError
from receiver.event import DECODER
from receiver.http_client import HttpClient, NoResponse, Response
from receiver.variables import ApiAccess

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:jwt-bearer"

ASSERTION_SECONDS = 1800
"""DT accepts an hour at most, counted on its own clock."""

RENEW_SECONDS = 60.0
"""How long before its end a token is renewed."""

SKEW_SECONDS = 60.0
"""A smaller difference between the clocks is not the reason for a rejection."""

RESPONSE_SECONDS = 30.0

MAX_RESPONSE_BYTES = 16 * 1024 * 1024
"""A page of 1000 events with 30 samples each has 3 MB; four threads read up to 64 MB."""

INITIAL_BACKOFF_SECONDS = 1.0

MAX_BACKOFF_SECONDS = 60.0

PATIENCE_SECONDS = 300.0
"""How long a request without a response, or with 5xx, is repeated, unless the caller has less patience."""

RATE_LIMIT_SECONDS = 7200.0
"""How long a request with 429 is repeated: DT works, and its Retry-After says when to try again."""

warnings.filterwarnings("ignore", category=jwt.warnings.InsecureKeyLengthWarning)  # DT chose the length of the key


class ApiError(ReceiverError):
    """DT's REST API did not return what was asked for; the message says what to do."""


class Refused(ApiError):
    """The service account is unknown, or has no permission to read this."""


class Missing(ApiError):
    """DT knows no such project, device or connector."""


class Unavailable(ApiError):
    """DT's REST API is unavailable, so further requests would fail as well."""


class Stopped(ApiError):
    """The request was abandoned, because the program stops."""


class Session:
    """State that the requests of several threads share: the access token, DT's rate limit, and whether to stop.

    `now` is the wall clock; `wait` sleeps for a number of seconds, or until `stop` is called. `on_wait` is called with
    the seconds and the reason before each wait of more than a second. `patience_seconds` is for how long a request
    without a response is repeated. `skew_seconds` is how far DT's clock is ahead of ours; None while that is unknown.
    """

    def __init__(
        self,
        access: ApiAccess,
        *,
        now: Callable[[], float] = time.time,
        wait: Callable[[float], object] | None = None,
        on_wait: Callable[[float, str], object] = lambda seconds, reason: None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.access = access
        self._patience_seconds = patience_seconds
        self.now = now
        self.skew_seconds: float | None = None
        self._stopped = threading.Event()
        self._wait = wait or self._stopped.wait
        self._on_wait = on_wait
        self._lock = threading.Lock()
        self._token = ""
        self._renew_at = 0.0
        self._assertion_skew = 0.0
        self._limited_until = 0.0
        self._succeeded_at = float("-inf")

    def stop(self) -> None:
        """Make every request raise Stopped."""
        self._stopped.set()

    def token(self, rejected: str = "") -> str:
        """An access token that is not the `rejected` one. Raises ApiError."""
        with self._lock:
            if not self._token or self._token == rejected or self.now() >= self._renew_at:
                self._token, lifetime = self._fetch_token()
                self._renew_at = self.now() + lifetime - RENEW_SECONDS
            return self._token

    def exchange(
        self, client: HttpClient, method: str, address: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Response:
        """Repeat a request until its response is neither 429 nor 5xx, and return that.

        Raises Stopped; Unavailable if no request succeeded meanwhile, else ApiError.
        """
        began = working_at = self.now()
        failures = 0
        while True:
            if self._wait_for_turn():
                working_at = self.now()
            failures += 1
            backoff = random.uniform(0.5, 1) * min(INITIAL_BACKOFF_SECONDS * 2**failures, MAX_BACKOFF_SECONDS)
            end = working_at + self._patience_seconds
            try:
                response = client.request(method, address, headers, body=body, max_bytes=MAX_RESPONSE_BYTES)
            except NoResponse as error:
                status, reason = 0, str(error)
            else:
                self._read_clock(response)
                status, reason = response.status, f"HTTP {response.status}"
                if status != 429 and status < 500:
                    self._succeeded_at = self.now()
                    return response
                backoff = max(backoff, self._retry_after(response))
            if status == 429:
                end, reason = began + RATE_LIMIT_SECONDS, "DT limits the rate of requests"
            if self.now() + backoff > end:
                failed_alone = self._succeeded_at > began
                raise (ApiError if failed_alone else Unavailable)(f"DT's REST API does not work now: {reason}")
            if backoff > INITIAL_BACKOFF_SECONDS:
                self._on_wait(backoff, reason)
            if status == 429:
                self._limited_until = max(self._limited_until, self.now() + backoff)
            else:
                self.sleep(backoff)

    def sleep(self, seconds: float) -> None:
        """Wait for so long. Raises Stopped."""
        self._wait(seconds)
        if self._stopped.is_set():
            raise Stopped("stopped")

    def _wait_for_turn(self) -> bool:
        """Wait while DT limits the rate. Returns whether it did."""
        waited = False
        while (left := self._limited_until - self.now()) > 0:
            waited = True
            self.sleep(left)
        if self._stopped.is_set():
            raise Stopped("stopped")
        return waited

    def _retry_after(self, response: Response) -> float:
        """Seconds that DT asks to wait: a number, or a date on DT's clock (RFC 9110, section 10.2.3)."""
        text = response.headers.get("Retry-After", "").strip()
        if text.isascii() and text.isdigit():
            return float(text[:9])
        at = _date(text)
        return 0.0 if at is None else max(0.0, at - self.now() - (self.skew_seconds or 0.0))

    def _read_clock(self, response: Response) -> None:
        at = _date(response.headers.get("Date", ""))
        if at is not None:
            self.skew_seconds = at - self.now()

    def _fetch_token(self) -> tuple[str, float]:
        """A new token and its lifetime in seconds. If our clock is wrong, the assertion is dated by DT's."""
        response = self._post_assertion()
        skew = self.skew_seconds or 0.0
        if response.status != 200 and abs(skew - self._assertion_skew) > SKEW_SECONDS:
            self._assertion_skew = skew
            response = self._post_assertion()
        if response.status != 200:
            raise Refused(
                f"DT does not accept the service account (HTTP {response.status}); check DT_SERVICE_ACCOUNT_KEY_ID, "
                "DT_SERVICE_ACCOUNT_SECRET and DT_SERVICE_ACCOUNT_EMAIL, and in DT Studio whether the key was deleted"
            )
        content = decode_object(response.body)
        token, lifetime = (content or {}).get("access_token"), (content or {}).get("expires_in", 3600)
        if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
            raise ApiError("DT's token server returned no access token; check DT_TOKEN_URL")
        return token, float(lifetime) if isinstance(lifetime, int | float) else 3600.0

    def _post_assertion(self) -> Response:
        access = self.access
        now = int(self.now() + self._assertion_skew)
        claims = {"iss": access.email, "aud": access.token_url, "iat": now, "exp": now + ASSERTION_SECONDS}
        try:
            assertion = jwt.encode(claims, access.secret, algorithm="HS256", headers={"kid": access.key_id})
        except Exception:  # a secret that is a key of another kind, or no text
            raise Refused("DT_SERVICE_ACCOUNT_SECRET is not the secret of a key of a service account") from None
        form = urlencode({"grant_type": GRANT_TYPE, "assertion": assertion}).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        client = HttpClient(access.token_url, RESPONSE_SECONDS)
        try:
            return self.exchange(client, "POST", access.token_url, headers, form)
        finally:
            client.close()


def decode_object(body: bytes) -> dict[str, Any] | None:
    """A JSON object; None if it is anything else. Numbers that JSON does not have become null."""
    with suppress(ValueError, RecursionError):
        content = DECODER.decode(body.decode("utf-8"))
        if isinstance(content, dict):
            return content
    return None


def _date(text: str) -> float | None:
    """An HTTP date in seconds since 1970; None for any other text."""
    with suppress(ValueError, TypeError, OverflowError):
        return parsedate_to_datetime(text).timestamp()
    return None
