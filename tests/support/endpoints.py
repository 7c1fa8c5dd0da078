"""HTTP endpoints that respond as a test says, down to the byte, and webhook sinks that deliver to them."""

from __future__ import annotations

import functools
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from plugins.webhook.exchange import TimeLimits
from receiver.delivery.sinks import Sink
from receiver.event import Event
from receiver.testing.running import ROOT
from support.built_in_sinks import Signal, build, class_of, open_sink, signal_of
from support.events import NOW
from support.time_limit import call_with_time_limit

CERTIFICATE = ROOT / "tests" / "tls.pem"
"""A certificate for 127.0.0.1, signed by itself, with its key."""

SHORT_LIMITS = TimeLimits(connect_seconds=2.0, read_seconds=2.0, total_seconds=2.5)


class Request:
    """A request as it was received, and the number of its connection."""

    def __init__(self, head: bytes, body: bytes, connection: int) -> None:
        self.line, *lines = head.decode("latin-1").split("\r\n")
        self.headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        self.body = body
        self.connection = connection

    def __getitem__(self, name: str) -> str:
        """The value of a header that occurs once."""
        (value,) = self.values(name)
        return value

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name.lower()]


class Connection:
    """A connection as the endpoint sees it; `test_is_over` is set when it should end."""

    def __init__(self, connection: socket.socket, test_is_over: threading.Event) -> None:
        self.socket = connection
        self.test_is_over = test_is_over

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def drip(self, data: bytes, pause: float = 0.02) -> None:
        """Send one byte at a time until the client goes away or the test is over."""
        for byte in data:
            self.send(bytes([byte]))
            if self.test_is_over.wait(pause):
                break


Response = Callable[[Connection], bool | None]
"""What an endpoint does in response to a request; True keeps the connection open."""


def respond(status: str, *headers: str, body: bytes = b"") -> Response:
    """A complete response, which keeps the connection open."""
    head = "\r\n".join([f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""])

    def response(connection: Connection) -> bool:
        connection.send(head.encode() + body)
        return True

    return response


def send_and_close(data: bytes) -> Response:
    return lambda connection: connection.send(data)


class Endpoint:
    """A server on loopback that gives these responses, one to each request, and then 200 to all others."""

    def __init__(self, *responses: Response, tls: bool = False) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.closed = 0
        """How many connections have ended."""
        self._responses = list(responses)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if tls else None
        if self._tls is not None:
            self._tls.load_cert_chain(CERTIFICATE)
        self._test_is_over = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}/hook"
        self._start(self._accept)

    def stop(self) -> None:
        self._test_is_over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(0.1)

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._start(functools.partial(self._serve, connection, self.connections))

    def _serve(self, connection: socket.socket, number: int) -> None:
        connection.settimeout(20)
        try:
            with connection:
                self._respond_to_all(connection, number)
        except OSError:
            logging.getLogger(__name__).debug("the client went away")
        self.closed += 1

    def _respond_to_all(self, connection: socket.socket, number: int) -> None:
        with self._tls.wrap_socket(connection, server_side=True) if self._tls else connection as wrapped:
            while request := self._read(wrapped, number):
                with self._lock:
                    self.requests.append(request)
                    response = self._responses.pop(0) if self._responses else respond("200 OK")
                if not response(Connection(wrapped, self._test_is_over)):
                    return

    def _read(self, connection: socket.socket, number: int) -> Request | None:
        received = b""
        while b"\r\n\r\n" not in received:
            data = connection.recv(65536)
            if not data:
                return None
            received += data
        head, _, body = received.partition(b"\r\n\r\n")
        request = Request(head, body, number)
        while len(request.body) < int(request["content-length"]):
            data = connection.recv(65536)
            if not data:
                return None
            request.body += data
        return request


StartEndpoint = Callable[..., Endpoint]
OpenWebhook = Callable[..., Sink]


@pytest.fixture
def start_endpoint() -> Iterator[StartEndpoint]:
    """Start endpoints; all are stopped at the end of the test."""
    started: list[Endpoint] = []

    def start(*responses: Response, tls: bool = False) -> Endpoint:
        started.append(Endpoint(*responses, tls=tls))
        return started[-1]

    yield start
    for endpoint in started:
        endpoint.stop()


@pytest.fixture
def open_webhook() -> Iterator[OpenWebhook]:
    """Build and open webhook sinks, which may connect to loopback; all are closed at the end of the test."""
    opened: list[Sink] = []

    def open_one(url: str, **options: Any) -> Sink:
        opened.append(open_sink(build_webhook(url=url, **{"allow_private": True, **options})))
        return opened[-1]

    yield open_one
    for sink in opened:
        sink.hook.close()


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Webhook sinks that the test builds have SHORT_LIMITS."""
    monkeypatch.setattr(class_of("webhook"), "limits", SHORT_LIMITS)


def build_webhook(**options: Any) -> Sink:
    return build("webhook", ROOT, options)


def webhook_event(event_id: str = "e1", label: str = "x") -> Event:
    """An event whose body changes if it is decoded and encoded again: its spaces, escapes and order are unusual."""
    body = (
        f'{{ "labels": {{"name":"{label}", "u": "\\u00e6"}},\t"event":{{"eventId":"{event_id}","eventType":"touch",'
        f'"data":{{"touch":{{"updateTime":"2026-03-14T11:59:00Z"}}}},"value":1.50}} }}\n'
    )
    return Event.from_body(body.encode(), NOW)


def full_outcome(sink: Sink, event: Event | None = None, *, attempt: int = 1) -> Signal | None:
    """What the sink raises when it delivers an event; None if the event is delivered.

    Fails if the call does not return, as it must even if the endpoint never ends its response.
    """
    given = webhook_event() if event is None else event
    return call_with_time_limit(lambda: signal_of(lambda: sink.hook.deliver(event=given, attempt=attempt)))


def outcome(sink: Sink, event: Event | None = None, *, attempt: int = 1) -> Signal | None:
    """Like `full_outcome`, without the endpoint and the beginning of its response after the reason."""
    found = full_outcome(sink, event, attempt=attempt)
    if found is None or not found.reason.startswith("HTTP"):
        return found
    return found._replace(reason=found.reason.partition(" (")[0])


def resolve_to(*addresses: str) -> Callable[..., list[tuple[Any, ...]]]:
    """In place of socket.getaddrinfo: every name has these addresses."""

    def getaddrinfo(host: str, port: int, *_: object, **__: object) -> list[tuple[Any, ...]]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    return getaddrinfo
