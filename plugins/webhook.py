"""The `webhook` sink: forwards each event, as DT sent it, to an HTTP endpoint."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import ipaddress
import logging
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPSConnectionPool, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from receiver import Event, GiveUp, Pause, Retry, Secret, hookimpl

CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
TOTAL_SECONDS = 20.0
WATCH_SECONDS = 0.25
RETRY_AFTER_AT_MOST = 24 * 3600.0
RESPONSE_BYTES = 64 * 1024
REFUSED_TRIES = 3
"""From which attempt on an event that the endpoint refuses (4xx) is given up."""
CONNECTIONS = 64

TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
VISIBLE = re.compile(r"[\t\x20-\x7e]*")

PAUSING = {401: "it refuses our credentials", 403: "it forbids us", 410: "it is gone"}
RETRIED = (408, 425)
OVERLOADED = (429, 503)

AnyConnection = TypeVar("AnyConnection", bound=HTTPConnection)
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
METADATA = tuple(
    ipaddress.ip_address(address)
    for address in (
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
    )
)


@dataclass
class Webhook:
    """POSTs the raw body of each event to a URL; any 2xx is delivered.

    The headers Idempotency-Key and webhook-id carry the event id, the same on every attempt. Redirects are not
    followed, and pause the sink. Several events are sent at once with `concurrency`.

    url: where to; http or https.
    secret: signs each request by the Standard Webhooks specification; base64, with or without whsec_. May be a list
        while a secret is rotated.
    headers: further headers to send.
    allow_private: allow targets on loopback and private addresses.
    ca_file: certificates to trust instead of the usual ones.
    """

    url: str = field(repr=False)
    secret: Secret | list[Secret] | None = None
    headers: Mapping[str, Secret] = field(default_factory=dict)
    allow_private: bool = False
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url must begin with http:// or https:// and name a host")
        if "@" in parts.netloc:
            raise ValueError("url must not hold a user name or password; use headers")
        try:
            self._host, self._port = parts.hostname, parts.port
        except ValueError:
            raise ValueError("url must have a port from 0 to 65535, or none") from None
        self._scheme = parts.scheme
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        secrets = self.secret if isinstance(self.secret, list) else [] if self.secret is None else [self.secret]
        for name, value in self.headers.items():
            check_header(name, value)
        self._keys = [signing_key(secret) for secret in secrets]
        self._watch = Watch()
        self._pool: HTTPConnectionPool | None = None

    @hookimpl
    def open(self) -> None:
        self._pool = self._make_pool()
        self._watch.start()

    @hookimpl
    def deliver(self, event: Event, attempt: int) -> None:
        """Come back when the endpoint has answered 2xx; else raise what its answer asks for."""
        assert self._pool is not None
        try:
            with self._watch.exchange() as deadline:
                response = self._pool.urlopen(
                    "POST",
                    self._target,
                    body=event.body,
                    headers=self._headers(event, time.time()),
                    retries=False,
                    redirect=False,
                    preload_content=False,
                    decode_content=False,
                )
                if time.monotonic() > deadline:
                    response.close()
                    raise TimeoutError("cut off, perhaps in the middle of its headers")
                read_off(response)
        except (HTTPError, OSError) as error:
            raise Retry(f"no answer from {self._host}: {cause(error)}") from None
        judge(response, attempt)

    @hookimpl
    def close(self) -> None:
        self._watch.stop()
        if self._pool is not None:
            self._pool.close()

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

    def _make_pool(self) -> HTTPConnectionPool:
        host, port = self._host, self._port
        timeout = Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
        if self._scheme == "http":
            plain = HTTPConnectionPool(host, port, maxsize=CONNECTIONS, timeout=timeout)
            plain.ConnectionCls = self._checked(HTTPConnection)
            return plain
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            why = error.strerror or "it holds no certificates"
            raise Pause(f"ca_file {self.ca_file} cannot be read: {why}") from None
        secure = HTTPSConnectionPool(host, port, maxsize=CONNECTIONS, timeout=timeout, ssl_context=context)
        secure.ConnectionCls = self._checked(HTTPSConnection)
        return secure

    def _checked(self, connection: type[AnyConnection]) -> type[AnyConnection]:
        """The connection class with the address checked when it connects, and its exchanges watched."""
        watch, allow_private = self._watch, self.allow_private

        class Checked(connection):  # type: ignore[valid-type, misc]  # the base is a parameter
            response_class = WholeHead

            def _new_conn(self) -> socket.socket:
                connected = connect(self.host, self.port, allow_private)
                watch.uses(connected)
                return connected

            def putrequest(self, *args: object, **kwargs: object) -> None:
                watch.uses(self.sock)
                super().putrequest(*args, **kwargs)

        return Checked


@hookimpl
def register_sinks(register: Callable[[str, type], None]) -> None:
    register("webhook", Webhook)


class WholeHead(http.client.HTTPResponse):
    """A response whose head came in full. Python takes one that breaks off for one that ends there."""

    def begin(self) -> None:
        stream = self.fp
        lines = HeadLines(stream)
        self.fp = lines  # type: ignore[assignment]  # it stands in for the stream while the head is read
        super().begin()
        if self.fp is lines:  # type: ignore[comparison-overlap]  # as above
            self.fp = stream
        if lines.last.strip():
            raise http.client.RemoteDisconnected("the answer broke off in its head")


class HeadLines:
    """A stream that remembers the line it gave last; the end of the stream is no empty line."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.last = b""

    def readline(self, *most: int) -> bytes:
        line: bytes = self._stream.readline(*most)
        self.last = line or b"end"
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def cause(error: BaseException) -> str:
    """What the system says of an exchange that failed. What the libraries say of it may repeat the URL."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return type(error).__name__


def judge(response: BaseHTTPResponse, attempt: int) -> None:
    """Return for 2xx; else raise Retry, Pause or GiveUp, as the status asks for (RFC 9110)."""
    status = response.status
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        raise Pause(f"HTTP {status}: it redirects, which is not followed; set url to where it leads")
    if status in PAUSING:
        raise Pause(f"HTTP {status}: {PAUSING[status]}")
    if status in OVERLOADED and (after := retry_after(response)):
        raise Pause(f"HTTP {status}: it asks to wait", after)
    if 400 <= status < 500 and status not in (*RETRIED, *OVERLOADED) and attempt >= REFUSED_TRIES:
        raise GiveUp(f"HTTP {status}: it refuses this event")
    raise Retry(f"HTTP {status}")


def retry_after(response: BaseHTTPResponse) -> float | None:
    """Retry-After in seconds (RFC 9110, section 10.2.3), at most a day; None when it is missing or unreadable."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value), RETRY_AFTER_AT_MOST)
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return min(max(0.0, (when - datetime.now(UTC)).total_seconds()), RETRY_AFTER_AT_MOST)


def read_off(response: BaseHTTPResponse) -> None:
    """Read a response of bounded length, so that the connection can be used again; close on a longer one."""
    if response.status >= 200:
        with suppress(HTTPError, OSError):
            response.read(RESPONSE_BYTES + 1)
    if not response.closed or response.status < 200:
        response.close()
    response.release_conn()


def signing_key(secret: Secret) -> bytes:
    """The key in a Standard Webhooks secret."""
    try:
        key = base64.b64decode(secret.get_secret_value().removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not key:
        raise ValueError("secret must be base64, with or without whsec_ before it")
    return key


def check_header(name: str, value: Secret) -> None:
    """Refuse what cannot be sent here, where the message is ours: http.client's would show the value."""
    if not TOKEN.fullmatch(name):
        raise ValueError("headers: a name is not a token of letters, digits and -")
    if not VISIBLE.fullmatch(value.get_secret_value()):
        raise ValueError(f"headers: the value of header {name} must be ASCII without line ends")


def signature(key: bytes, signed: bytes) -> str:
    """One signature as Standard Webhooks writes it: https://www.standardwebhooks.com"""
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def connect(host: str, port: int, allow_private: bool) -> socket.socket:
    """Connect to the first address of a host that answers. Raises Pause for an address that is not allowed."""
    error: OSError | None = None
    end = time.monotonic() + CONNECT_SECONDS
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for number, (family, kind, protocol, _, place) in enumerate(found):
        forbidden = why_forbidden(ipaddress.ip_address(str(place[0]).partition("%")[0]), allow_private)
        if forbidden:
            raise Pause(f"{host} is at an address that is {forbidden}")
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(max(0.01, (end - time.monotonic()) / (len(found) - number)))
            connection.connect(place)
            connection.settimeout(CONNECT_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        except OSError as failure:
            connection.close()
            error = failure
    raise error or OSError(f"{host} has no address")


def why_forbidden(address: Address, allow_private: bool) -> str | None:
    """Why nothing may be sent to an address, or None. An IPv4 address inside an IPv6 one counts as itself."""
    address = unwrapped(address)
    if address.is_link_local or address in METADATA:
        return "link-local or a cloud's metadata service, which is never allowed"
    if address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255":
        return "no host's, which is never allowed"
    if is_private(address) and not allow_private:
        return "private; set allow_private = true if that is meant"
    return None


def is_private(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and (address.is_site_local or address in LOCAL_NAT64):
        return True
    return not address.is_global


def unwrapped(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped or address.sixtofour:
            return address.ipv4_mapped or address.sixtofour or address
        if address in NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


class Watch:
    """Bounds whole exchanges: a server that sends a byte now and then would never run into a read time-out."""

    def __init__(self) -> None:
        self._exchanges: dict[int, tuple[float, socket.socket | None]] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def start(self) -> None:
        self._stopped.clear()
        threading.Thread(target=self._run, name="webhook watch", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    @contextmanager
    def exchange(self) -> Iterator[float]:
        """A context in which this thread's request must be over in time: the time when it is cut off."""
        deadline = time.monotonic() + TOTAL_SECONDS
        self._exchanges[threading.get_ident()] = (deadline, None)
        try:
            yield deadline
        finally:
            self._replace(None)
            del self._exchanges[threading.get_ident()]

    def uses(self, connection: socket.socket | None) -> None:
        """This thread's request goes out on `connection`. TLS takes a socket over, so a duplicate is watched."""
        if connection is not None and threading.get_ident() in self._exchanges:
            self._replace(socket.socket(fileno=os.dup(connection.fileno())))

    def _replace(self, connection: socket.socket | None) -> None:
        with self._lock:
            thread = threading.get_ident()
            deadline, before = self._exchanges[thread]
            self._exchanges[thread] = (deadline, connection)
            if before is not None:
                before.close()

    def _run(self) -> None:
        while not self._stopped.wait(WATCH_SECONDS):
            with self._lock:
                now = time.monotonic()
                for deadline, connection in self._exchanges.copy().values():
                    if deadline < now and connection is not None:
                        cut(connection)


def cut(connection: socket.socket) -> None:
    """Shut a connection down under the thread that reads from it."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        logging.getLogger(__name__).debug("the connection was closed already")
