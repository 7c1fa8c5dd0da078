"""The webhook sink against endpoints that misbehave: raw sockets, bounded time, and nothing secret in any message."""

from __future__ import annotations

import base64
import ipaddress
import json
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest
import time_machine
from conftest import ROOT, wait_until
from standardwebhooks import Webhook as StandardWebhook
from standardwebhooks import WebhookVerificationError

from receiver import Event, GiveUp, Pause, Retry, Secret
from receiver.demo import free_port
from receiver.errors import PluginError
from receiver.plugins import BUILT_IN, Plugins, Sink, _load_file, _offered, build_sink
from receiver.settings import CommonOptions, JournalTable, ReceiverTable, Settings, SinkSettings

SOURCE = BUILT_IN / "webhook.py"
CERTIFICATE = ROOT / "tests" / "tls.pem"
MARK = "s3cr3t-mark"
KEY = base64.b64encode(b"0123456789abcdef01234567").decode()
OTHER_KEY = base64.b64encode(b"another key of 24 bytes!").decode()
NOW = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)


class Request:
    """A request as it came over the wire, and on which connection."""

    def __init__(self, head: bytes, body: bytes, connection: int) -> None:
        self.line, *lines = head.decode("latin-1").split("\r\n")
        self.headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        self.body = body
        self.connection = connection

    def __getitem__(self, name: str) -> str:
        (value,) = [value for key, value in self.headers if key == name.lower()]
        return value


class Line:
    """The server's end of a connection; `gone` is set when the test is over."""

    def __init__(self, connection: socket.socket, gone: threading.Event) -> None:
        self.socket = connection
        self.gone = gone

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def drip(self, data: bytes, pause: float = 0.02) -> None:
        """Send byte by byte until all is sent, or nobody listens any more."""
        for byte in data:
            self.say(bytes([byte]))
            if self.gone.wait(pause):
                break


Answer = Callable[[Line], bool | None]
"""What the endpoint does with a request; True keeps the connection."""


def answer(status: str, *headers: str, body: bytes = b"") -> Answer:
    head = "\r\n".join([f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""])

    def send(line: Line) -> bool:
        line.say(head.encode() + body)
        return True

    return send


class Endpoint:
    """A server on loopback that does with its n-th request what the n-th answer says, then says 200."""

    def __init__(self, *answers: Answer, tls: bool = False) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.closed = 0
        self._answers = list(answers)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if tls else None
        if self._tls is not None:
            self._tls.load_cert_chain(CERTIFICATE)
        self._gone = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}/hook"
        self._begin(self._accept)

    def _begin(self, target: Callable[[], None]) -> None:
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
            self._begin(partial(self._serve, connection, self.connections))

    def _serve(self, connection: socket.socket, number: int) -> None:
        connection.settimeout(20)
        try:
            with connection:
                self._exchange(connection, number)
        except OSError:
            logging.getLogger(__name__).debug("the client went away")
        self.closed += 1

    def _exchange(self, connection: socket.socket, number: int) -> None:
        with self._tls.wrap_socket(connection, server_side=True) if self._tls else connection as wrapped:
            line = Line(wrapped, self._gone)
            while request := self._read(wrapped, number):
                with self._lock:
                    self.requests.append(request)
                    action = self._answers.pop(0) if self._answers else answer("200 OK")
                if not action(line):
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

    def stop(self) -> None:
        self._gone.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(0.1)


StartEndpoint = Callable[..., Endpoint]


@pytest.fixture
def start_endpoint() -> Iterator[StartEndpoint]:
    """Start endpoints; all are stopped at the end of the test."""
    started: list[Endpoint] = []

    def start(*answers: Answer, tls: bool = False) -> Endpoint:
        started.append(Endpoint(*answers, tls=tls))
        return started[-1]

    yield start
    for endpoint in started:
        endpoint.stop()


@pytest.fixture(scope="module")
def plugin() -> ModuleType:
    return _load_file(SOURCE)


@pytest.fixture
def hurried(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """All time limits of the sink are fractions of a second."""
    monkeypatch.setattr(plugin, "CONNECT_SECONDS", 0.8)
    monkeypatch.setattr(plugin, "READ_SECONDS", 0.8)
    monkeypatch.setattr(plugin, "TOTAL_SECONDS", 1.6)
    monkeypatch.setattr(plugin, "WATCH_SECONDS", 0.05)


def build(plugin: ModuleType, **options: Any) -> Sink:
    """The sink that `[sinks.erp]` with these options describes."""
    config = Settings(ROOT / "config.toml", ReceiverTable(), JournalTable(), (), 8000, 2, {}, set())
    table = SinkSettings("erp", CommonOptions(type="webhook"), options)
    return build_sink(Plugins(_offered(str(SOURCE), plugin)[0]), config, table)


OpenSink = Callable[..., Sink]


@pytest.fixture
def open_sink(plugin: ModuleType) -> Iterator[OpenSink]:
    """Build and open sinks; all are closed at the end of the test."""
    opened: list[Sink] = []

    def open_one(url: str, **options: Any) -> Sink:
        sink = build(plugin, **{"url": url, "allow_private": True, **options})
        sink.hook.open(name="erp", logger=logging.getLogger("sink.erp"))
        opened.append(sink)
        return sink

    yield open_one
    for sink in opened:
        sink.hook.close()


def event(name: str = "e1", label: str = "x") -> Event:
    """An event whose body a re-encoder would change: spaces, escapes, order."""
    body = (
        f'{{ "labels": {{"name":"{label}", "u": "\\u00e6"}},\t"event":{{"eventId":"{name}","eventType":"touch",'
        f'"data":{{"touch":{{"updateTime":"2026-03-14T11:59:00Z"}}}},"value":1.50}} }}\n'
    )
    return Event.from_body(body.encode(), NOW)


def outcome(sink: Sink, one: Event | None = None, *, attempt: int = 1) -> Exception | None:
    """What the sink raises for an event, or None when it is delivered."""
    try:
        sink.hook.deliver(event=one or event(), attempt=attempt)
    except Exception as error:
        return error
    return None


def told(error: Exception | None) -> tuple[type | None, str, float | None]:
    return (type(error) if error else None, str(error or ""), getattr(error, "after", None))


REDIRECTS = "it redirects, which is not followed; set url to where it leads"
DELIVERED = (None, "", None)


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        ("200 OK", [], DELIVERED),
        ("201 Created", [], DELIVERED),
        ("202 Accepted", [], DELIVERED),
        ("204 No Content", [], DELIVERED),
        ("299 Odd", [], DELIVERED),
        ("301 Moved", ["Location: /elsewhere"], (Pause, f"HTTP 301: {REDIRECTS}", None)),
        ("302 Found", ["Location: /elsewhere"], (Pause, f"HTTP 302: {REDIRECTS}", None)),
        ("303 See Other", ["Location: /elsewhere"], (Pause, f"HTTP 303: {REDIRECTS}", None)),
        ("307 Temporary", ["Location: /elsewhere"], (Pause, f"HTTP 307: {REDIRECTS}", None)),
        ("308 Permanent", ["Location: /elsewhere"], (Pause, f"HTTP 308: {REDIRECTS}", None)),
        ("304 Not Modified", [], (Pause, f"HTTP 304: {REDIRECTS}", None)),
        ("400 Bad", [], (Retry, "HTTP 400", None)),
        ("401 No", [], (Pause, "HTTP 401: it refuses our credentials", None)),
        ("403 No", [], (Pause, "HTTP 403: it forbids us", None)),
        ("404 Not Found", [], (Retry, "HTTP 404", None)),
        ("408 Timeout", [], (Retry, "HTTP 408", None)),
        ("410 Gone", [], (Pause, "HTTP 410: it is gone", None)),
        ("422 What", [], (Retry, "HTTP 422", None)),
        ("425 Early", [], (Retry, "HTTP 425", None)),
        ("429 Slow", [], (Retry, "HTTP 429", None)),
        ("429 Slow", ["Retry-After: 7"], (Pause, "HTTP 429: it asks to wait", 7.0)),
        ("500 Oops", [], (Retry, "HTTP 500", None)),
        ("500 Oops", ["Retry-After: 7"], (Retry, "HTTP 500", None)),
        ("502 Oops", [], (Retry, "HTTP 502", None)),
        ("503 Busy", [], (Retry, "HTTP 503", None)),
        ("503 Busy", ["Retry-After: 120"], (Pause, "HTTP 503: it asks to wait", 120.0)),
        ("504 Oops", [], (Retry, "HTTP 504", None)),
        ("999 Odd", [], (Retry, "HTTP 999", None)),
    ],
)
def test_every_status_has_its_outcome(
    status: str,
    headers: list[str],
    expected: tuple[type | None, str, float | None],
    start_endpoint: StartEndpoint,
    open_sink: OpenSink,
) -> None:
    endpoint = start_endpoint(answer(status, *headers))
    assert told(outcome(open_sink(endpoint.url))) == expected
    assert [request.line for request in endpoint.requests] == ["POST /hook HTTP/1.1"]


DAY = 24 * 3600.0


@pytest.mark.parametrize(
    ("value", "after"),
    [
        ("1", 1.0),
        (" 30 ", 30.0),
        ("86400", DAY),
        ("86401", DAY),
        ("9" * 400, DAY),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW + timedelta(seconds=90)), 90.0),
        ("Saturday, 14-Mar-26 12:01:30 GMT", 90.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", DAY),
        ("Fri, 31 Dec 9999 23:59:59 -1200", DAY),
    ],
)
@time_machine.travel(NOW, tick=False)
def test_retry_after_pauses_for_so_long_and_a_day_at_most(
    value: str, after: float, start_endpoint: StartEndpoint, open_sink: OpenSink
) -> None:
    endpoint = start_endpoint(answer("503 Busy", f"Retry-After: {value}"))
    assert told(outcome(open_sink(endpoint.url))) == (Pause, "HTTP 503: it asks to wait", after)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "soon",
        "-5",
        "1.5",
        "1e9",
        "5, 7",
        "²",
        "0",
        "Sat, 14 Mar 2026 11:00:00 GMT",
        "Mon, 32 Jan 2026 00:00:00 GMT",
        "Mon, 99999999999999999999 Jan 2026 00:00:00 GMT",
        "Mon, 01 Jan 2026 00:00:00 +99999999999999999999",
    ],
)
@time_machine.travel(NOW, tick=False)
def test_a_retry_after_that_names_no_time_to_come_leaves_it_to_our_own_back_off(
    value: str, start_endpoint: StartEndpoint, open_sink: OpenSink
) -> None:
    endpoint = start_endpoint(answer("429 Slow", f"Retry-After: {value}"))
    assert told(outcome(open_sink(endpoint.url))) == (Retry, "HTTP 429", None)


@pytest.mark.parametrize("status", ["400 Bad", "404 Not Found", "413 Large", "422 What"])
def test_an_event_that_is_refused_three_times_is_given_up(
    status: str, start_endpoint: StartEndpoint, open_sink: OpenSink
) -> None:
    endpoint = start_endpoint(*[answer(status)] * 3)
    sink = open_sink(endpoint.url)
    assert [type(outcome(sink, attempt=attempt)) for attempt in (1, 2, 3)] == [Retry, Retry, GiveUp]
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize(
    "status", ["401 No", "403 No", "410 Gone", "408 T", "425 T", "429 T", "500 T", "503 T", "302 T"]
)
def test_what_is_the_endpoints_fault_gives_no_event_up(
    status: str, start_endpoint: StartEndpoint, open_sink: OpenSink
) -> None:
    endpoint = start_endpoint(answer(status))
    assert type(outcome(open_sink(endpoint.url), attempt=100)) in (Retry, Pause)


def test_a_redirect_is_not_followed(start_endpoint: StartEndpoint, open_sink: OpenSink) -> None:
    elsewhere = start_endpoint()
    endpoint = start_endpoint(answer("307 Temporary", f"Location: {elsewhere.url}"))
    assert isinstance(outcome(open_sink(endpoint.url)), Pause)
    assert (len(endpoint.requests), elsewhere.connections) == (1, 0)


def hang(line: Line) -> None:
    line.gone.wait(15)


def drip_head(line: Line) -> None:
    line.drip(b"HTTP/1.1 200 OK\r\n" + b"X-Slow: yes\r\n" * 40)


def continue_for_ever(line: Line) -> None:
    while not line.gone.wait(0.01):
        line.say(b"HTTP/1.1 100 Continue\r\n\r\n")


def reset(line: Line) -> None:
    line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def just_close(line: Line) -> None:
    return None


def says(data: bytes) -> Answer:
    return lambda line: line.say(data)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(hang, id="hang before headers"),
        pytest.param(drip_head, id="dripping headers"),
        pytest.param(continue_for_ever, id="endless 100"),
        pytest.param(reset, id="reset"),
        pytest.param(just_close, id="close"),
        pytest.param(says(b"HTTP/1.1 20"), id="torn status line"),
        pytest.param(says(b"SSH-2.0-OpenSSH\r\n\r\n"), id="not HTTP"),
        pytest.param(says(b"HTTP/1.1 abc OK\r\n\r\n"), id="status no number"),
        pytest.param(says(b"HTTP/1.1 99999 OK\r\n\r\n"), id="status too large"),
        pytest.param(says(b"\x00" * 2000 + b"\r\n"), id="zeros"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n"), id="long header"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"), id="many headers"),
    ],
)
@pytest.mark.usefixtures("hurried")
def test_no_usable_answer_is_a_retry_within_bounded_time(
    fault: Answer, start_endpoint: StartEndpoint, open_sink: OpenSink
) -> None:
    endpoint = start_endpoint(fault)
    sink = open_sink(f"{endpoint.url}?token={MARK}")
    began = time.monotonic()
    error = outcome(sink)
    assert time.monotonic() - began < 5
    assert isinstance(error, Retry), error
    assert str(error).startswith("no answer from 127.0.0.1: ")
    assert MARK not in str(error)
    assert (len(endpoint.requests), outcome(sink, attempt=2)) == (1, None)
    assert endpoint.requests[0].body == endpoint.requests[1].body == event().body


BODY_FAULTS = [
    pytest.param(b"Content-Length: 300", b"x" * 300, id="known length"),
    pytest.param(b"Transfer-Encoding: chunked", b"1\r\nx\r\n" * 100, id="chunked"),
    pytest.param(b"X-Length: unknown", b"x" * 300, id="until the connection ends"),
    pytest.param(b"Content-Length: 300\r\nConnection: close", b"x" * 300, id="connection not kept"),
]


@pytest.mark.parametrize(("header", "body"), BODY_FAULTS)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.usefixtures("hurried")
def test_a_body_that_drips_is_bounded_and_does_not_hide_the_status(
    tls: bool, header: bytes, body: bytes, start_endpoint: StartEndpoint, open_sink: OpenSink
) -> None:
    def drip(line: Line) -> None:
        line.say(b"HTTP/1.1 500 Oops\r\n" + header + b"\r\n\r\n")
        line.drip(body)

    endpoint = start_endpoint(drip, tls=tls)
    sink = open_sink(endpoint.url, ca_file=str(CERTIFICATE))
    began = time.monotonic()
    assert isinstance(outcome(sink), Retry)
    assert time.monotonic() - began < 5
    assert outcome(sink, attempt=2) is None
    assert [request.connection for request in endpoint.requests] == [1, 2]


@pytest.mark.parametrize(
    "rest",
    [b"Content-Length: 10\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"Connection: close\r\n\r\nabc"],
    ids=["cut short", "bad chunk", "no length"],
)
@pytest.mark.parametrize("status", ["200 OK", "500 Oops"])
def test_a_broken_body_harms_no_event_after_it(
    status: str, rest: bytes, start_endpoint: StartEndpoint, open_sink: OpenSink
) -> None:
    endpoint = start_endpoint(says(f"HTTP/1.1 {status}\r\n".encode() + rest), answer("503 Busy"))
    sink = open_sink(endpoint.url)
    first = outcome(sink, event("e1"))
    assert isinstance(first, Retry) or (first is None and status == "200 OK")
    assert told(outcome(sink, event("e2"))) == (Retry, "HTTP 503", None)
    assert outcome(sink, event("e2"), attempt=2) is None
    assert [request["webhook-id"] for request in endpoint.requests] == ["e1", "e2", "e2"]


@pytest.mark.usefixtures("hurried")
def test_a_tls_handshake_that_drips_is_bounded_too(plugin: ModuleType, open_sink: OpenSink) -> None:
    gone = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    Line(connection, gone).drip(b"\x16\x03\x03\x40\x00" + b"\x02\x00\x3f\xfc" + b"x" * 300)
                except OSError:
                    gone.set()

        threads.submit(drip)
        sink = open_sink(f"https://127.0.0.1:{listener.getsockname()[1]}/")
        began = time.monotonic()
        error = outcome(sink)
        taken = time.monotonic() - began
        gone.set()
    assert isinstance(error, Retry)
    assert taken < 5


class Silent:
    """A socket to an address where nobody answers: each connect lasts as long as its time limit."""

    def __init__(self, *_: object) -> None:
        self._seconds = 0.0

    def settimeout(self, seconds: float) -> None:
        self._seconds = seconds

    def connect(self, place: object) -> None:
        threading.Event().wait(self._seconds)
        raise TimeoutError("timed out")

    def close(self) -> None:
        self._seconds = 0.0


@pytest.mark.usefixtures("hurried")
def test_a_host_with_many_silent_addresses_is_bounded_too(
    plugin: ModuleType, open_sink: OpenSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = open_sink("http://hook.example/", allow_private=False)
    began = time.monotonic()
    with monkeypatch.context() as resolver:
        resolver.setattr(socket, "getaddrinfo", resolves_to(*[f"93.184.216.{n}" for n in range(20)]))
        resolver.setattr(socket, "socket", Silent)
        error = outcome(sink)
    assert isinstance(error, Retry)
    assert time.monotonic() - began < 4


@pytest.mark.parametrize(("status", "expected"), [("200 OK", None), ("500 Oops", Retry)])
def test_a_body_of_20_megabytes_is_not_read_to_its_end(
    status: str, expected: type | None, start_endpoint: StartEndpoint, open_sink: OpenSink
) -> None:
    sent: list[int] = []

    def pour(line: Line) -> None:
        line.say(f"HTTP/1.1 {status}\r\nContent-Length: 20971520\r\n\r\n".encode())
        for _ in range(320):
            line.say(b"x" * 65536)
            sent.append(65536)

    endpoint = start_endpoint(pour)
    sink = open_sink(endpoint.url)
    assert told(outcome(sink))[0] is expected
    wait_until(lambda: endpoint.closed == 1, what="the end of the connection")
    assert sum(sent) < 20971520
    assert outcome(sink) is None
    assert [request.connection for request in endpoint.requests] == [1, 2]


def test_100_continue_before_the_answer_is_passed_over(start_endpoint: StartEndpoint, open_sink: OpenSink) -> None:
    endpoint = start_endpoint(says(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"))
    assert told(outcome(open_sink(endpoint.url))) == (Retry, "HTTP 503", None)


@pytest.mark.parametrize("early", ["102 Processing", "103 Early Hints", "199 Odd"])
def test_an_answer_is_never_taken_for_that_to_another_event(
    early: str, start_endpoint: StartEndpoint, open_sink: OpenSink
) -> None:
    def late(line: Line) -> bool:
        line.say(f"HTTP/1.1 {early}\r\n\r\n".encode())
        line.gone.wait(0.5)
        line.say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        return True

    endpoint = start_endpoint(late, answer("500 Oops"))
    sink = open_sink(endpoint.url)
    outcome(sink, event("e1"))
    assert told(outcome(sink, event("e2"))) == (Retry, "HTTP 500", None)


def test_a_connection_is_kept_for_the_next_event(start_endpoint: StartEndpoint, open_sink: OpenSink) -> None:
    endpoint = start_endpoint(answer("200 OK", body=b"thanks"), answer("500 Oops", body=b"x" * 1000))
    sink = open_sink(endpoint.url)
    assert [told(outcome(sink))[0] for _ in range(3)] == [None, Retry, None]
    assert [request.connection for request in endpoint.requests] == [1, 1, 1]


def test_a_kept_connection_that_was_closed_meanwhile_costs_no_attempt(
    start_endpoint: StartEndpoint, open_sink: OpenSink
) -> None:
    def close_after(line: Line) -> None:
        answer("200 OK")(line)

    endpoint = start_endpoint(close_after, close_after)
    sink = open_sink(endpoint.url)
    assert outcome(sink, event("e1")) is None
    wait_until(lambda: endpoint.closed == 1, what="the first close")
    assert outcome(sink, event("e2")) is None
    wait_until(lambda: endpoint.closed == 2, what="the second close")
    assert outcome(sink, event("e3")) is None
    assert [json.loads(request.body)["event"]["eventId"] for request in endpoint.requests] == ["e1", "e2", "e3"]


def test_nobody_there_is_a_retry(open_sink: OpenSink) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = outcome(open_sink(f"http://127.0.0.1:{port}/"))
    assert isinstance(error, Retry)
    assert str(error).startswith("no answer from 127.0.0.1: ")


def test_a_name_that_is_not_found_is_a_retry(open_sink: OpenSink, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    sink = open_sink("http://hook.example/")
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert isinstance(outcome(sink), Retry)


def test_the_body_goes_out_byte_for_byte_on_every_attempt(start_endpoint: StartEndpoint, open_sink: OpenSink) -> None:
    endpoint = start_endpoint(answer("500 Oops"), reset, answer("429 Slow", "Retry-After: 1"))
    sink = open_sink(endpoint.url)
    for attempt in (1, 2, 3, 4):
        outcome(sink, attempt=attempt)
    assert [request.body for request in endpoint.requests] == [event().body] * 4
    assert {request["idempotency-key"] for request in endpoint.requests} == {"e1"}


def test_a_request_has_exactly_these_headers(start_endpoint: StartEndpoint, open_sink: OpenSink) -> None:
    endpoint = start_endpoint()
    assert outcome(open_sink(endpoint.url, headers={"Authorization": f"Bearer {MARK}", "X-Site": "oslo"})) is None
    (request,) = endpoint.requests
    assert sorted(request.headers) == [
        ("accept-encoding", "identity"),
        ("authorization", f"Bearer {MARK}"),
        ("content-length", str(len(event().body))),
        ("content-type", "application/json"),
        ("host", f"127.0.0.1:{endpoint.port}"),
        ("idempotency-key", "e1"),
        ("user-agent", "dt-receiver"),
        ("webhook-id", "e1"),
        ("x-site", "oslo"),
    ]


@pytest.mark.parametrize("name", ["Content-Type", "content-type", "USER-AGENT"])
def test_a_header_of_ones_own_takes_the_place_of_ours(
    name: str, start_endpoint: StartEndpoint, open_sink: OpenSink
) -> None:
    endpoint = start_endpoint()
    assert outcome(open_sink(endpoint.url, headers={name: "mine/1"})) is None
    assert [value for key, value in endpoint.requests[0].headers if key == name.lower()] == ["mine/1"]


@pytest.mark.parametrize("name", ["Idempotency-Key", "idempotency-key", "WEBHOOK-ID"])
def test_a_header_of_ones_own_does_not_change_the_key(
    name: str, start_endpoint: StartEndpoint, open_sink: OpenSink
) -> None:
    endpoint = start_endpoint()
    assert outcome(open_sink(endpoint.url, headers={name: "mine"})) is None
    assert [value for key, value in endpoint.requests[0].headers if key == name.lower()] == ["e1"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {MARK}\n"},
        {"Authorization": f"Bearer {MARK}\r\nX-Evil: 1"},
        {"Authorization": f"Bearer {MARK} \u2013 \U0001f321"},
        {f"X-{MARK}\r\nX-Evil": "1"},
        {"": MARK},
    ],
    ids=["line end", "second header", "not latin-1", "in the name", "no name"],
)
def test_a_header_that_cannot_be_sent_is_a_config_error_that_does_not_show_it(
    headers: Mapping[str, str], plugin: ModuleType
) -> None:
    with pytest.raises(PluginError) as error:
        build(plugin, url="https://example.com/", headers=headers)
    assert "header" in str(error.value)
    assert f"Bearer {MARK}" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://127.0.0.1:{port}", "POST / HTTP/1.1"),
        ("http://127.0.0.1:{port}/", "POST / HTTP/1.1"),
        ("http://127.0.0.1:{port}/a/b?c=d&e=%20", "POST /a/b?c=d&e=%20 HTTP/1.1"),
        ("http://127.0.0.1:{port}?token=1", "POST /?token=1 HTTP/1.1"),
        ("http://127.0.0.1:{port}//a", "POST //a HTTP/1.1"),
        ("http://127.0.0.1:{port}/a#fragment", "POST /a HTTP/1.1"),
        ("http://127.0.0.1:{port}/æ b", "POST /%C3%A6%20b HTTP/1.1"),
        ("HTTP://127.0.0.1:{port}/Case", "POST /Case HTTP/1.1"),
    ],
)
def test_the_request_line_is_what_the_url_says(
    url: str, line: str, start_endpoint: StartEndpoint, open_sink: OpenSink
) -> None:
    endpoint = start_endpoint()
    assert outcome(open_sink(url.format(port=endpoint.port))) is None
    assert [request.line for request in endpoint.requests] == [line]


@pytest.mark.parametrize(
    ("secret", "verifiers"),
    [
        (KEY, [KEY]),
        (f"whsec_{KEY}", [f"whsec_{KEY}"]),
        ([f"whsec_{OTHER_KEY}", KEY], [KEY, OTHER_KEY]),
    ],
    ids=["plain", "with prefix", "two in rotation"],
)
def test_the_signature_satisfies_the_standard_webhooks_library(
    secret: str | list[str], verifiers: list[str], start_endpoint: StartEndpoint, open_sink: OpenSink
) -> None:
    endpoint = start_endpoint()
    assert outcome(open_sink(endpoint.url, secret=secret)) is None
    (request,) = endpoint.requests
    headers = dict(request.headers)
    for verifier in verifiers:
        assert StandardWebhook(verifier).verify(request.body, headers) == json.loads(event().body)
    stranger = StandardWebhook(base64.b64encode(b"neither of the two").decode())
    with pytest.raises(WebhookVerificationError):
        stranger.verify(request.body, headers)
    with pytest.raises(WebhookVerificationError):
        StandardWebhook(verifiers[0]).verify(request.body + b" ", headers)


def test_every_attempt_is_signed_at_its_own_time(start_endpoint: StartEndpoint, open_sink: OpenSink) -> None:
    endpoint = start_endpoint(answer("500 Oops"))
    sink = open_sink(endpoint.url, secret=KEY)
    for attempt, moment in enumerate((NOW, NOW + timedelta(hours=3)), start=1):
        with time_machine.travel(moment, tick=False):
            outcome(sink, attempt=attempt)
            StandardWebhook(KEY).verify(endpoint.requests[-1].body, dict(endpoint.requests[-1].headers))
    assert [int(request["webhook-timestamp"]) for request in endpoint.requests] == [
        int(NOW.timestamp()),
        int(NOW.timestamp()) + 3 * 3600,
    ]


@pytest.mark.parametrize(
    "secret",
    [f"not base64 {MARK}", f"{MARK}", f"{KEY}\n{MARK}", f"æ{MARK}", [KEY, f"{MARK}!"], "", "whsec_", [""], [KEY, ""]],
    ids=[
        "words",
        "length",
        "line end",
        "not ascii",
        "in a list",
        "empty",
        "empty after prefix",
        "empty list",
        "one empty",
    ],
)
def test_a_bad_secret_is_a_clear_config_error_that_does_not_show_it(
    secret: str | list[str], plugin: ModuleType
) -> None:
    with pytest.raises(PluginError) as error:
        build(plugin, url="https://example.com/", secret=secret)
    assert "secret must be base64" in str(error.value)
    assert MARK not in str(error.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://example.com/", "url must begin with http:// or https:// and name a host"),
        ("file:///etc/passwd", "url must begin with http:// or https:// and name a host"),
        ("example.com/hook", "url must begin with http:// or https:// and name a host"),
        ("http:///hook", "url must begin with http:// or https:// and name a host"),
        ("https://", "url must begin with http:// or https:// and name a host"),
        ("", "url must begin with http:// or https:// and name a host"),
        (f"https://user:{MARK}@example.com/", "url must not hold a user name or password; use headers"),
        (f"https://{MARK}@example.com/", "url must not hold a user name or password; use headers"),
        (f"https://:{MARK}@example.com/", "url must not hold a user name or password; use headers"),
        ("https://[::1/", "url"),
        ("https://example.com:99999/", "url"),
        (f"https://user:{MARK}/x@example.com/", "url"),
    ],
)
def test_a_url_that_cannot_be_used_is_a_config_error(url: str, says: str, plugin: ModuleType) -> None:
    with pytest.raises(PluginError) as error:
        build(plugin, url=url)
    assert says in str(error.value).lower()
    assert MARK not in str(error.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "option 'url' is missing"),
        ({"url": "https://example.com/", "urls": "x"}, "no option 'urls' (did you mean 'url'?)"),
        ({"url": "https://example.com/", "secret": 5}, "secret"),
        ({"url": "https://example.com/", "headers": {"X": 5}}, "headers.X"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], says: str, plugin: ModuleType) -> None:
    with pytest.raises(PluginError) as error:
        build(plugin, **options)
    assert says in str(error.value)


PRIVATE = "private; set allow_private = true if that is meant"
NEVER = "link-local or a cloud's metadata service, which is never allowed"
NOBODY = "no host's, which is never allowed"
ADDRESSES = [
    ("93.184.216.34", None),
    ("8.8.8.8", None),
    ("2606:4700::1111", None),
    ("::ffff:8.8.8.8", None),
    ("64:ff9b::808:808", None),
    ("2002:808:808::1", None),
    ("127.0.0.1", PRIVATE),
    ("127.255.255.254", PRIVATE),
    ("10.0.0.1", PRIVATE),
    ("172.16.0.1", PRIVATE),
    ("172.31.255.255", PRIVATE),
    ("192.168.1.1", PRIVATE),
    ("100.64.0.1", PRIVATE),
    ("100.127.255.255", PRIVATE),
    ("192.0.2.1", PRIVATE),
    ("198.18.0.1", PRIVATE),
    ("240.0.0.1", PRIVATE),
    ("::1", PRIVATE),
    ("fc00::1", PRIVATE),
    ("fd12:3456::1", PRIVATE),
    ("fec0::1", PRIVATE),
    ("2001:db8::1", PRIVATE),
    ("::ffff:127.0.0.1", PRIVATE),
    ("::ffff:10.0.0.1", PRIVATE),
    ("64:ff9b::7f00:1", PRIVATE),
    ("64:ff9b::a00:1", PRIVATE),
    ("64:ff9b:1::7f00:1", PRIVATE),
    ("2002:7f00:1::", PRIVATE),
    ("2002:c0a8:101::1", PRIVATE),
    ("169.254.0.1", NEVER),
    ("169.254.169.254", NEVER),
    ("169.254.170.2", NEVER),
    ("100.100.100.200", NEVER),
    ("fe80::1", NEVER),
    ("fd00:ec2::254", NEVER),
    ("::ffff:169.254.169.254", NEVER),
    ("64:ff9b::a9fe:a9fe", NEVER),
    ("2002:a9fe:a9fe::", NEVER),
    ("0.0.0.0", NOBODY),
    ("::", NOBODY),
    ("255.255.255.255", NOBODY),
    ("224.0.0.1", NOBODY),
    ("239.255.255.250", NOBODY),
    ("ff02::1", NOBODY),
    ("::ffff:0.0.0.0", NOBODY),
    ("::ffff:224.0.0.1", NOBODY),
]


@pytest.mark.parametrize(("address", "why"), ADDRESSES)
def test_every_kind_of_address_is_judged(address: str, why: str | None, plugin: ModuleType) -> None:
    parsed = ipaddress.ip_address(address)
    assert plugin.why_forbidden(parsed, False) == why
    assert plugin.why_forbidden(parsed, True) == (None if why == PRIVATE else why)


@pytest.mark.parametrize(
    "address",
    ["192.0.0.192", "168.63.129.16", "fd00:ec2::23", "fd20:ce::254"],
    ids=["Oracle", "Azure", "Amazon EKS", "Google"],
)
def test_the_metadata_services_of_other_clouds_are_never_allowed(address: str, plugin: ModuleType) -> None:
    assert plugin.why_forbidden(ipaddress.ip_address(address), True) == NEVER


def test_a_private_nat64_prefix_hides_no_private_address(plugin: ModuleType) -> None:
    hidden_at_48_bits = ipaddress.ip_address("64:ff9b:1:a9fe:a9:fe00:808:808")
    assert plugin.why_forbidden(hidden_at_48_bits, False) is not None


def resolves_to(*addresses: str) -> Callable[..., list[tuple[Any, ...]]]:
    """A resolver that answers every name with these addresses."""

    def getaddrinfo(host: str, port: int, *_: object, **__: object) -> list[tuple[Any, ...]]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    return getaddrinfo


@pytest.mark.parametrize(("address", "why"), [("127.0.0.1", PRIVATE), ("169.254.169.254", NEVER), ("::1", PRIVATE)])
def test_a_name_is_judged_by_the_address_it_resolves_to(
    address: str,
    why: str,
    start_endpoint: StartEndpoint,
    open_sink: OpenSink,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endpoint = start_endpoint()
    sink = open_sink(f"http://hook.example:{endpoint.port}/", allow_private=False)
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to(address))
    assert told(outcome(sink)) == (Pause, f"hook.example is at an address that is {why}", None)
    assert endpoint.connections == 0


def test_a_name_is_judged_anew_at_every_connect(
    start_endpoint: StartEndpoint, open_sink: OpenSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = start_endpoint(lambda line: answer("200 OK", "Connection: close")(line) and None)
    sink = open_sink(f"http://hook.example:{endpoint.port}/")
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to("127.0.0.1"))
    assert outcome(sink) is None
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to("169.254.169.254"))
    assert isinstance(outcome(sink), Pause)
    assert endpoint.connections == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "127.1", "0x7f000001", "[::ffff:127.0.0.1]"])
def test_no_spelling_of_an_address_gets_round_the_check(
    host: str, start_endpoint: StartEndpoint, open_sink: OpenSink
) -> None:
    endpoint = start_endpoint()
    error = outcome(open_sink(f"http://{host}:{endpoint.port}/", allow_private=False))
    assert isinstance(error, Pause)
    assert str(error).endswith(PRIVATE)
    assert endpoint.connections == 0


def test_the_next_address_is_tried_when_the_first_does_not_answer(
    start_endpoint: StartEndpoint, open_sink: OpenSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = start_endpoint()
    sink = open_sink(f"http://hook.example:{endpoint.port}/")
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to("127.0.0.2", "127.0.0.1"))
    assert outcome(sink) is None
    assert endpoint.requests[0]["host"] == f"hook.example:{endpoint.port}"


def test_a_certificate_nobody_vouches_for_is_refused(start_endpoint: StartEndpoint, open_sink: OpenSink) -> None:
    endpoint = start_endpoint(tls=True)
    kind, text, after = told(outcome(open_sink(endpoint.url)))
    assert (kind, after) == (Retry, None)
    assert re.fullmatch(r"no answer from 127\.0\.0\.1: .*certificate verify failed: self.signed certificate.*", text)
    assert endpoint.requests == []


def test_what_keeps_from_an_answer_is_named(open_sink: OpenSink, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    refused = outcome(open_sink(f"http://127.0.0.1:{port}/"))
    assert told(refused) == (Retry, "no answer from 127.0.0.1: Connection refused", None)
    sink = open_sink("http://hook.example/")

    def unknown(*_: object, **__: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert told(outcome(sink)) == (Retry, "no answer from hook.example: Name or service not known", None)


@pytest.mark.parametrize(("text", "why"), [(None, "No such file or directory"), ("no certificate", "no certificate")])
def test_a_ca_file_that_cannot_be_used_is_named(
    text: str | None, why: str, open_sink: OpenSink, tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    if text is not None:
        file.write_text(text)
    with pytest.raises(Pause) as caught:
        open_sink("https://hook.example/", ca_file=str(file))
    assert str(caught.value).startswith(f"ca_file {file} cannot be read: ")
    assert why in str(caught.value)


def test_a_certificate_in_ca_file_is_trusted(start_endpoint: StartEndpoint, open_sink: OpenSink) -> None:
    endpoint = start_endpoint(tls=True)
    assert outcome(open_sink(endpoint.url, ca_file=str(CERTIFICATE))) is None
    assert endpoint.requests[0].body == event().body


def test_a_certificate_for_another_name_is_refused(
    start_endpoint: StartEndpoint, open_sink: OpenSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = start_endpoint(tls=True)
    sink = open_sink(f"https://hook.example:{endpoint.port}/", ca_file=str(CERTIFICATE))
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to("127.0.0.1"))
    assert isinstance(outcome(sink), Retry)
    assert endpoint.requests == []


def test_nothing_secret_stands_in_what_a_sink_looks_like(plugin: ModuleType) -> None:
    token = f"https://example.com/{MARK}?key={MARK}"
    sink = build(plugin, url=token, secret=[KEY, OTHER_KEY], headers={"Authorization": f"Bearer {MARK}"})
    (hook,) = sink.hook.deliver.get_hookimpls()
    for text in (repr(sink), str(sink), repr(hook), repr(hook.plugin), repr(vars(hook.plugin)["headers"])):
        assert MARK not in text
        assert KEY not in text
    assert isinstance(hook.plugin.headers["Authorization"], Secret)


def test_a_thread_each_may_send_at_once(start_endpoint: StartEndpoint, open_sink: OpenSink) -> None:
    all_here = threading.Barrier(8)

    def together(line: Line) -> bool:
        all_here.wait(10)
        line.say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        return True

    endpoint = start_endpoint(*[together] * 40)
    sink = open_sink(endpoint.url)

    def send(worker: int) -> list[Exception | None]:
        return [outcome(sink, event(f"w{worker}n{n}", label=str(worker) * 500)) for n in range(5)]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(send, range(8))) == [[None] * 5] * 8
    assert sorted(request["idempotency-key"] for request in endpoint.requests) == sorted(
        f"w{worker}n{n}" for worker in range(8) for n in range(5)
    )
    assert all(json.loads(request.body)["event"]["eventId"] == request["webhook-id"] for request in endpoint.requests)
    assert endpoint.connections == 8


@pytest.mark.usefixtures("hurried")
def test_a_hanging_request_cuts_off_no_other(start_endpoint: StartEndpoint, open_sink: OpenSink) -> None:
    endpoint = start_endpoint(drip_head)
    sink = open_sink(endpoint.url)
    with ThreadPoolExecutor(2) as threads:
        hanging = threads.submit(outcome, sink)
        wait_until(lambda: endpoint.requests)
        others = [outcome(sink, event(f"o{n}")) for n in range(50)]
        assert isinstance(hanging.result(20), Retry)
    assert others == [None] * 50


def test_a_sink_can_be_opened_again_after_close(start_endpoint: StartEndpoint, open_sink: OpenSink) -> None:
    endpoint = start_endpoint()
    sink = open_sink(endpoint.url)
    assert outcome(sink) is None
    sink.hook.close()
    sink.hook.open(name="erp", logger=logging.getLogger("sink.erp"))
    assert outcome(sink) is None
    assert [request.connection for request in endpoint.requests] == [1, 2]


@pytest.mark.parametrize("head", ["HTTP/1.1 200", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"])
def test_an_answer_that_breaks_off_in_its_head_is_no_delivery(
    head: str, start_endpoint: StartEndpoint, open_sink: OpenSink
) -> None:
    def broken_off(line: Line) -> bool:
        line.say(head.encode())
        return False

    error = outcome(open_sink(start_endpoint(broken_off).url))
    assert isinstance(error, Retry)
