"""The webhook sink when there is no usable response: the event is retried, and every call ends within its limits."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import pytest
from support.built_in_sinks import Signal
from support.endpoints import (
    CERTIFICATE,
    SHORT_LIMITS,
    Connection,
    OpenWebhook,
    Response,
    StartEndpoint,
    outcome,
    resolve_to,
    respond,
    send_and_close,
    webhook_event,
)

from plugins.webhook.exchange import TimeLimits
from receiver import Retry
from receiver.testing.ports import reserve_port
from receiver.testing.running import wait_until

SECRET_IN_URL = "s3cr3t-mark"
ENDLESS = 60_000
"""So many bytes take twenty minutes when they drip."""


def hang(connection: Connection) -> None:
    connection.test_is_over.wait()


def drip_the_head(connection: Connection) -> None:
    connection.drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * ENDLESS)


def send_100_forever(connection: Connection) -> None:
    while not connection.test_is_over.wait(0.01):
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")


def reset(connection: Connection) -> None:
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def close(connection: Connection) -> None:
    """Without a response."""


@pytest.mark.parametrize(
    "response",
    [
        pytest.param(hang, id="none"),
        pytest.param(drip_the_head, id="dripping headers"),
        pytest.param(send_100_forever, id="endless 100"),
        pytest.param(reset, id="reset"),
        pytest.param(close, id="close"),
        pytest.param(send_and_close(b"HTTP/1.1 20"), id="incomplete status line"),
        pytest.param(send_and_close(b"HTTP/1.1 200"), id="status line without its end"),
        pytest.param(send_and_close(b"HTTP/1.1 200 OK\r\n"), id="status line only"),
        pytest.param(send_and_close(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"), id="incomplete headers"),
        pytest.param(send_and_close(b"SSH-2.0-OpenSSH\r\n\r\n"), id="not HTTP"),
        pytest.param(send_and_close(b"HTTP/1.1 abc OK\r\n\r\n"), id="status is not a number"),
        pytest.param(send_and_close(b"HTTP/1.1 99999 OK\r\n\r\n"), id="status too large"),
        pytest.param(send_and_close(b"\x00" * 2000 + b"\r\n"), id="zeros"),
        pytest.param(send_and_close(b"HTTP/1.1 200 OK\r\nX-Incomplete: "), id="incomplete value"),
        pytest.param(send_and_close(b"HTTP/1.1 200 OK\r\nX-Incomplete"), id="incomplete name"),
        pytest.param(send_and_close(b"HTTP/1.1 abc " + b"x" * 70_000), id="long status line without a number"),
    ],
)
@pytest.mark.usefixtures("short_limits")
def test_without_a_usable_response_the_event_is_retried(
    response: Response, start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint(response)
    sink = open_webhook(f"{endpoint.url}?token={SECRET_IN_URL}")
    first = outcome(sink)
    assert first is not None
    assert first.type is Retry
    assert first.reason.startswith("no response from 127.0.0.1: ")
    assert SECRET_IN_URL not in first.reason
    assert (len(endpoint.requests), outcome(sink, attempt=2)) == (1, None)
    assert [request.body for request in endpoint.requests] == [webhook_event().body] * 2


@pytest.mark.parametrize(
    ("header", "body"),
    [
        pytest.param(f"Content-Length: {ENDLESS}", b"x" * ENDLESS, id="known length"),
        pytest.param("Transfer-Encoding: chunked", b"1\r\nx\r\n" * (ENDLESS // 6), id="chunked"),
        pytest.param("X-Length: unknown", b"x" * ENDLESS, id="until the connection ends"),
        pytest.param(f"Content-Length: {ENDLESS}\r\nConnection: close", b"x" * ENDLESS, id="connection not kept"),
    ],
)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.usefixtures("short_limits")
def test_a_dripping_body_is_cut_off_and_its_status_is_not_lost(
    tls: bool, header: str, body: bytes, start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    def drip_the_body(connection: Connection) -> None:
        connection.send(f"HTTP/1.1 500 Oops\r\n{header}\r\n\r\n".encode())
        connection.drip(body)

    endpoint = start_endpoint(drip_the_body, tls=tls)
    sink = open_webhook(endpoint.url, ca_file=str(CERTIFICATE))
    assert outcome(sink) == Signal(Retry, "HTTP 500")
    assert outcome(sink, attempt=2) is None
    assert [request.connection for request in endpoint.requests] == [1, 2]


@pytest.mark.parametrize(
    "rest",
    [b"Content-Length: 10\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"Connection: close\r\n\r\nabc"],
    ids=["incomplete", "invalid chunk", "no length"],
)
@pytest.mark.parametrize(("status", "expected"), [("200 OK", None), ("500 Oops", Signal(Retry, "HTTP 500"))])
def test_a_broken_body_changes_neither_its_status_nor_the_next_response(
    status: str, expected: Signal | None, rest: bytes, start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint(send_and_close(f"HTTP/1.1 {status}\r\n".encode() + rest), respond("503 Busy"))
    sink = open_webhook(endpoint.url)
    assert outcome(sink, webhook_event("e1")) == expected
    assert outcome(sink, webhook_event("e2")) == Signal(Retry, "HTTP 503")
    assert outcome(sink, webhook_event("e2"), attempt=2) is None
    assert [request["webhook-id"] for request in endpoint.requests] == ["e1", "e2", "e2"]


@pytest.mark.usefixtures("short_limits")
def test_a_dripping_tls_handshake_is_cut_off(open_webhook: OpenWebhook) -> None:
    test_is_over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:

        def drip_the_handshake() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                begin = b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc"  # a record of 16 KiB with a ServerHello
                Connection(connection, test_is_over).drip(begin + b"x" * 16_000)

        threads.submit(drip_the_handshake)
        try:
            signal = outcome(open_webhook(f"https://127.0.0.1:{listener.getsockname()[1]}/"))
        finally:
            test_is_over.set()
    assert signal is not None
    assert signal.type is Retry


def test_the_limits_are_those_of_the_documentation() -> None:
    assert TimeLimits() == TimeLimits(connect_seconds=5.0, read_seconds=10.0, total_seconds=20.0)


@pytest.mark.serial
@pytest.mark.usefixtures("short_limits")
def test_an_exchange_ends_at_its_total_limit(start_endpoint: StartEndpoint, open_webhook: OpenWebhook) -> None:
    sink = open_webhook(start_endpoint(drip_the_head).url)
    started = time.monotonic()
    assert outcome(sink) is not None
    assert SHORT_LIMITS.total_seconds <= time.monotonic() - started < 5


class SilentSocket:
    """A socket to an address where nothing responds: each connect lasts as long as its timeout."""

    timeouts: list[float]

    def __init__(self, *_: object) -> None:
        self._seconds = 0.0

    def settimeout(self, seconds: float) -> None:
        self._seconds = seconds
        self.timeouts.append(seconds)

    def connect(self, address: object) -> None:
        threading.Event().wait(self._seconds)
        raise TimeoutError("timed out")

    def close(self) -> None:
        """There is nothing to close."""


@pytest.mark.usefixtures("short_limits")
def test_all_addresses_of_a_host_share_the_time_to_connect(
    open_webhook: OpenWebhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = open_webhook("http://hook.example/", allow_private=False)
    SilentSocket.timeouts = []
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", resolve_to(*[f"93.184.216.{number}" for number in range(20)]))
        patch.setattr(socket, "socket", SilentSocket)
        signal = outcome(sink)
    assert signal is not None
    assert signal.type is Retry
    assert len(SilentSocket.timeouts) == 20
    assert sum(SilentSocket.timeouts) <= SHORT_LIMITS.connect_seconds + 20 * 0.01


@pytest.mark.usefixtures("short_limits")
def test_cutting_off_one_exchange_leaves_all_others_alone(
    start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint(drip_the_head)
    sink = open_webhook(endpoint.url)
    with ThreadPoolExecutor(1) as threads:
        dripping = threads.submit(outcome, sink)
        wait_until(lambda: endpoint.requests)
        others = [outcome(sink, webhook_event(f"o{number}")) for number in range(50)]
        signal = dripping.result(20)
    assert signal is not None
    assert signal.type is Retry
    assert others == [None] * 50


def test_the_reason_names_what_has_failed(open_webhook: OpenWebhook, monkeypatch: pytest.MonkeyPatch) -> None:
    no_server = open_webhook(f"http://127.0.0.1:{reserve_port()}/")
    assert outcome(no_server) == Signal(Retry, "no response from 127.0.0.1: Connection refused")
    no_such_host = open_webhook("http://hook.example/")

    def fail(*_: object, **__: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert outcome(no_such_host) == Signal(Retry, "no response from hook.example: Name or service not known")
