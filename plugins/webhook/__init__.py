"""The `webhook` sink: forwards each event, as DT sent it, to an HTTP endpoint."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from urllib3 import BaseHTTPResponse, HTTPConnectionPool, PoolManager, ProxyManager, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url

from receiver import Event, GiveUp, Pause, Retry, Secret, collect_errors, hookimpl

from .addresses import check_literal, check_localhost, connect
from .exchange import CompleteHead, Deadlines, TimeLimits, read_body

MAX_RETRY_AFTER_SECONDS = 24 * 3600.0
MAX_REJECTIONS = 3
"""The attempt from which an event that the endpoint rejects (4xx) is given up, if it accepts others."""
MAX_REMEMBERED = 10_000
"""How many rejected events are remembered, so that they cannot fill the memory."""
MIN_KEY_BYTES = 24
"""From the specification of Standard Webhooks: a secret has 24 to 64 bytes."""
QUOTED_CHARACTERS = 100
REPEATED_CHARACTERS = 12
"""As long as the shortest ids; words of an error message that are also in an event are shorter."""
MIN_SECRET_CHARACTERS = 4
"""As many characters of a secret at the end of a quotation are its beginning, and not a part of a word."""
CONNECTIONS = 64
"""As many as the largest `concurrency`."""

TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
FRAMING = ("content-length", "transfer-encoding")
"""Headers that say where the body ends: with another value, the endpoint would get a part of it, and respond 200."""
VISIBLE = re.compile(r"[\t\x20-\x7e]*")

PAUSING = {
    401: "it rejects our credentials",
    403: "it denies access",
    407: "the proxy rejects our credentials",
    410: "it is gone",
}
REFUSED_TUNNEL = re.compile(r"Tunnel connection failed: ([0-9]{3})")
"""In the text of an error of http.client, the status with which a proxy refuses CONNECT."""
REFUSALS_OF_PROXY = ("403", "407")
RETRIED = (408, 425)
OVERLOADED = (429, 503)

AnyConnection = TypeVar("AnyConnection", bound=HTTPConnection)


@dataclass
class Webhook:
    """POSTs the raw body of each event to a URL; any 2xx is delivered.

    The headers Idempotency-Key and webhook-id carry the event id, the same in every attempt. Redirects are not
    followed, and pause the sink. With `concurrency`, several events are sent at once.

    url: the endpoint; http or https.
    secret: signs each request as in the Standard Webhooks specification; base64, with or without whsec_. Can be a list
        while a secret is rotated.
    headers: additional headers to send.
    allow_private: allow endpoints on loopback and private addresses.
    ca_file: certificates to trust instead of those of the system.
    proxy: an HTTP proxy to connect through, http://user:password@host:port. It resolves the name of the endpoint, so
        only an address in the url itself is checked.
    """

    url: str = field(repr=False)
    secret: Secret | list[Secret] | None = None
    headers: Mapping[str, Secret] = field(default_factory=dict)
    allow_private: bool = False
    ca_file: Path | None = None
    proxy: Secret | None = None

    limits: ClassVar[TimeLimits] = TimeLimits()  # not an option

    def __post_init__(self) -> None:
        secrets = self.secret if isinstance(self.secret, list) else [] if self.secret is None else [self.secret]
        errors: list[Exception] = []
        with collect_errors(errors):
            self._scheme, self._host, self._port, self._target = split_url(self.url)
        for name, value in self.headers.items():
            with collect_errors(errors):
                check_header(name, value)
        with collect_errors(errors):
            self._keys = [signing_key(secret) for secret in secrets]
        with collect_errors(errors):
            self._proxy = None if self.proxy is None else proxy_options(self.proxy)
        if errors:
            raise ExceptionGroup("invalid options", errors)
        own = [secret.get_secret_value() for secret in (*secrets, *self.headers.values())]
        proxied = [] if self._proxy is None else self._proxy["proxy_headers"].values()
        self._secrets = [" ".join(secret.split()) for secret in (*own, *proxied)]
        self._deadlines = Deadlines(self.limits.total_seconds)
        self._rejections = Rejections()
        self._pool: HTTPConnectionPool | None = None

    @hookimpl
    def open(self) -> None:
        self._pool = self._make_pool()
        self._deadlines.start()

    @hookimpl
    def deliver(self, event: Event, attempt: int) -> None:
        """POST the raw body; 2xx is delivered, any other response raises what its status asks for."""
        assert self._pool is not None
        try:
            with self._deadlines.exchange() as deadline:
                response = self._pool.urlopen(
                    "POST",
                    self._request_target(),
                    body=event.body,
                    headers=self._headers(event, time.time()),
                    retries=False,
                    redirect=False,
                    assert_same_host=False,
                    preload_content=False,
                    decode_content=False,
                )
                if time.monotonic() > deadline:
                    response.close()
                    raise TimeoutError("cut off, perhaps in the middle of its headers")
                answer = read_body(response)
        except (HTTPError, OSError) as error:
            if refusal := REFUSED_TUNNEL.search(str(error)):
                signal = Pause if refusal[1] in REFUSALS_OF_PROXY else Retry
                raise signal(f"no connection to {self._host}: the proxy responds HTTP {refusal[1]}") from None
            way = " through the proxy" if self._proxy else ""
            raise Retry(f"no response from {self._host}{way}: {cause(error)}") from None
        is_bad = self._rejections.is_of_event(event.id, response.status) and attempt >= MAX_REJECTIONS
        judge(response, f"{self._host}{quoted(answer, event.body, self._secrets)}", is_bad_event=is_bad)

    @hookimpl
    def close(self) -> None:
        self._deadlines.stop()
        if self._pool is not None:
            self._pool.close()

    @hookimpl
    def find_problems(self) -> list[str]:
        problems: list[Exception] = []
        with collect_errors(problems):
            check_literal(self._host, self.allow_private)
            if self._proxy is None:
                check_localhost(self._host, self.allow_private)
        with collect_errors(problems):
            self._tls()
        return [
            *map(str, problems),
            *(
                f"secret has {len(key)} bytes; Standard Webhooks requires at least {MIN_KEY_BYTES}"
                for key in self._keys
                if len(key) < MIN_KEY_BYTES
            ),
        ]

    def _headers(self, event: Event, now: float) -> dict[str, str]:
        headers = {"content-type": "application/json", "user-agent": "dt-receiver"}
        headers |= {name.lower(): value.get_secret_value() for name, value in self.headers.items()}
        headers |= {"idempotency-key": event.id, "webhook-id": event.id}
        if self._keys:
            stamp = str(int(now))
            signed = b".".join([event.id.encode(), stamp.encode(), event.body])
            headers["webhook-timestamp"] = stamp
            headers["webhook-signature"] = " ".join(signature(key, signed) for key in self._keys)
        return headers

    def _request_target(self) -> str:
        """The path and query, or what a proxy needs to forward the request (RFC 9112, section 3.2.2)."""
        if self._proxy is None or self._scheme == "https":
            return self._target
        return f"http://{urlsplit(self.url).netloc}{self._target}"

    def _make_pool(self) -> HTTPConnectionPool:
        """Connections to the endpoint, or to the proxy; the environment's variables for proxies are not consulted."""
        timeout = Timeout(connect=self.limits.connect_seconds, read=self.limits.read_seconds)
        options: dict[str, Any] = {"maxsize": CONNECTIONS, "timeout": timeout}
        if self._scheme == "https":
            options["ssl_context"] = self._tls()
        manager = PoolManager(**options) if self._proxy is None else ProxyManager(**self._proxy, **options)
        pool = manager.connection_from_host(self._host, self._port, self._scheme)
        pool.ConnectionCls = self._checked(HTTPSConnection if self._scheme == "https" else HTTPConnection)
        return pool

    def _tls(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            reason = error.strerror or "it has no certificates"
            raise Pause(f"ca_file {self.ca_file} cannot be read: {reason}") from None

    def _checked(self, connection: type[AnyConnection]) -> type[AnyConnection]:
        """The connection class that checks the address when it connects, and whose exchanges have deadlines."""
        deadlines, allow_private, connect_seconds = self._deadlines, self.allow_private, self.limits.connect_seconds
        proxied_host = self._host if self._proxy else None

        class Checked(connection):  # type: ignore[valid-type, misc]  # the base is a parameter
            response_class = CompleteHead

            def _new_conn(self) -> socket.socket:
                if proxied_host is not None:
                    check_literal(proxied_host, allow_private)
                connected = connect(self.host, self.port, allow_private or proxied_host is not None, connect_seconds)
                deadlines.watch(connected)
                return connected

            def putrequest(self, *args: object, **kwargs: object) -> None:
                deadlines.watch(self.sock)
                super().putrequest(*args, **kwargs)

        return Checked


class Rejections:
    """Distinguishes a rejected event from an endpoint that rejects all events. Shared by the threads of the sink."""

    def __init__(self) -> None:
        self._accepted = 0
        self._accepted_before: dict[str, int] = {}
        """How many events were accepted before the first rejection of each rejected one, by its id."""
        self._lock = threading.Lock()

    def is_of_event(self, event_id: str, status: int) -> bool:
        """Whether this response rejects the event, and another event was accepted since it was first rejected."""
        with self._lock:
            if 200 <= status < 300:
                self._accepted += 1
                self._accepted_before.pop(event_id, None)
            elif is_rejection(status):
                if len(self._accepted_before) >= MAX_REMEMBERED and event_id not in self._accepted_before:
                    self._accepted_before.pop(next(iter(self._accepted_before)))
                return self._accepted_before.setdefault(event_id, self._accepted) < self._accepted
        return False


@hookimpl
def register_sinks(register: Callable[[str, type], None]) -> None:
    register("webhook", Webhook)


def split_url(url: str) -> tuple[str, str, int | None, str]:
    """Scheme, host, port, and path with query. Raises ValueError for a URL that cannot be used, without showing it."""
    parts = split(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("url must begin with http:// or https:// and name a host")
    if "@" in parts.netloc:
        raise ValueError("url must not contain a user name or password; use headers")
    try:
        port = parts.port
    except ValueError:
        raise ValueError("url must have a port from 0 to 65535, or none") from None
    return parts.scheme, parts.hostname, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def split(url: str) -> SplitResult:
    """The parts of a URL; all are empty if it names what cannot be a host."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        host.encode("idna")  # as connecting does
        parse_url(f"//[{host}]" if ":" in host else f"//{host}")
    except ValueError:
        return urlsplit("")
    return parts


def proxy_options(proxy: Secret) -> dict[str, Any]:
    """The URL of a proxy and the headers for it. Raises ValueError for one that cannot be used, without showing it."""
    try:
        parts = split(proxy.get_secret_value())
        port = parts.port or 80
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("proxy must be a URL such as http://user:password@proxy.example:3128")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    headers = {}
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["proxy-authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"
    return {"proxy_url": f"http://{host}:{port}", "proxy_headers": headers}


def cause(error: BaseException) -> str:
    """What the operating system says of a failed exchange; the text of the libraries may repeat the URL."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return type(error).__name__


def is_rejection(status: int) -> bool:
    """Whether the endpoint says that something is wrong with the request, which another attempt will not change."""
    return 400 <= status < 500 and status not in (*PAUSING, *RETRIED, *OVERLOADED)


def judge(response: BaseHTTPResponse, sender: str, *, is_bad_event: bool) -> None:
    """Return for 2xx; else raise Retry, Pause or GiveUp, as the status asks for (RFC 9110)."""
    status = response.status
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        raise Pause(f"HTTP {status}: redirects are not followed; set url to its target ({sender})")
    if status in PAUSING:
        raise Pause(f"HTTP {status}: {PAUSING[status]} ({sender})")
    if status in OVERLOADED and (after := retry_after(response)):
        raise Pause(f"HTTP {status}: it asks us to wait ({sender})", after)
    if is_bad_event:
        raise GiveUp(f"HTTP {status}: it rejects this event ({sender})")
    raise Retry(f"HTTP {status} ({sender})")


def quoted(answer: bytes, event: bytes, secrets: Sequence[str]) -> str:
    """The beginning of a response's body for operators; nothing if it is no text, or if it repeats a part of the event,
    which belongs in no log, or of a secret, of which only the whole would be hidden there."""
    try:
        text = " ".join(answer.decode().split())[:QUOTED_CHARACTERS]
    except UnicodeDecodeError:
        return ""
    parts = (text[start : start + REPEATED_CHARACTERS] for start in range(len(text) - REPEATED_CHARACTERS + 1))
    repeats = any(part.encode() in event or any(part in secret for secret in secrets) for part in parts)
    return f" responds: {text}" if text and not repeats and not ends_with_secret(text, secrets) else ""


def ends_with_secret(text: str, secrets: Sequence[str]) -> bool:
    """Whether the end of a text is the beginning of a secret."""
    lengths = range(MIN_SECRET_CHARACTERS, REPEATED_CHARACTERS)
    return any(text.endswith(secret[:length]) for secret in secrets for length in lengths if len(secret) > length)


def retry_after(response: BaseHTTPResponse) -> float | None:
    """Retry-After in seconds (RFC 9110, section 10.2.3), at most a day; None when it is missing or unreadable."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value), MAX_RETRY_AFTER_SECONDS)
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return min(max(0.0, (when - datetime.now(UTC)).total_seconds()), MAX_RETRY_AFTER_SECONDS)


def signing_key(secret: Secret) -> bytes:
    """The key in a Standard Webhooks secret."""
    try:
        key = base64.b64decode(secret.get_secret_value().removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not key:
        raise ValueError("secret must be base64, with or without the prefix whsec_")
    return key


def check_header(name: str, value: Secret) -> None:
    """Raise ValueError for what cannot be sent: the message of http.client would show the value."""
    if not TOKEN.fullmatch(name):
        raise ValueError("headers: a name is not a token of letters, digits and -")
    if name.lower() in FRAMING:
        raise ValueError(f"headers: the sink sets {name} itself; remove it")
    if not VISIBLE.fullmatch(value.get_secret_value()):
        raise ValueError(f"headers: the value of header {name} must be ASCII without line ends")


def signature(key: bytes, signed: bytes) -> str:
    """One signature as Standard Webhooks writes it: https://www.standardwebhooks.com"""
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
