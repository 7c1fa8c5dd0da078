"""The webhook sink behind an HTTP proxy: what the proxy gets, what it resolves, and how its failures are reported."""

from __future__ import annotations

import base64
import contextlib
import re
import selectors
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from support.built_in_sinks import Signal
from support.endpoints import (
    CERTIFICATE,
    OpenWebhook,
    StartEndpoint,
    build_webhook,
    outcome,
    respond,
    webhook_event,
)

from receiver import Pause, Retry
from receiver.errors import PluginError
from receiver.testing.ports import reserve_port
from receiver.testing.running import wait_until

AUTHORIZATION = f"Basic {base64.b64encode('us@er:pä:ss word'.encode()).decode()}"
CREDENTIALS = "us%40er:p%C3%A4:ss%20word"


class Proxy:
    """A proxy on loopback to one endpoint, whatever the name of the host that it is asked for."""

    def __init__(self, endpoint: int, refusal: bytes = b"", head: bytes = b"") -> None:
        self.heads: list[str] = []
        """The head of each CONNECT or of the first request on each connection."""
        self._endpoint, self._refusal, self._head = endpoint, refusal, head
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._accept()

    def _accept(self) -> None:
        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = self._listener.accept()
                    threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with (
            client,
            socket.create_connection(("127.0.0.1", self._endpoint), 10) as server,
            contextlib.suppress(OSError),
        ):
            client.settimeout(10)
            received = b""
            while b"\r\n\r\n" not in received:
                received += client.recv(65536)
            self.heads.append(received.partition(b"\r\n\r\n")[0].decode())
            if self._refusal:
                client.sendall(self._refusal)
            elif received.startswith(b"CONNECT "):
                client.sendall(b"HTTP/1.1 200 Connection established\r\n" + self._head + b"\r\n")
                forward(client, server)
            else:
                server.sendall(received)
                forward(client, server)

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def forward(client: socket.socket, server: socket.socket) -> None:
    """Pass bytes on in both directions until one side ends."""
    with selectors.DefaultSelector() as selector:
        selector.register(client, selectors.EVENT_READ, server)
        selector.register(server, selectors.EVENT_READ, client)
        while ready := selector.select(10):
            for key, _ in ready:
                data = key.fileobj.recv(65536)  # type: ignore[union-attr]  # it is a socket
                if not data:
                    return
                key.data.sendall(data)


StartProxy = Callable[..., Proxy]


@pytest.fixture
def start_proxy() -> Iterator[StartProxy]:
    started: list[Proxy] = []

    def start(endpoint: int, **options: bytes) -> Proxy:
        started.append(Proxy(endpoint, **options))
        return started[-1]

    yield start
    for proxy in started:
        proxy.stop()


def test_a_request_over_http_has_the_whole_url_and_the_credentials_of_the_proxy(
    start_endpoint: StartEndpoint, start_proxy: StartProxy, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint(respond("200 OK"), respond("500 Oops"))
    proxy = start_proxy(endpoint.port)
    sink = open_webhook(
        "http://hook.example:8080/a?b=c#d", proxy=f"http://{CREDENTIALS}@127.0.0.1:{proxy.port}", allow_private=False
    )
    assert [outcome(sink), outcome(sink)] == [None, Signal(Retry, "HTTP 500")]
    first, second = endpoint.requests
    assert first.line == second.line == "POST http://hook.example:8080/a?b=c HTTP/1.1"
    assert (first["host"], first["proxy-authorization"]) == ("hook.example:8080", AUTHORIZATION)
    assert first.body == webhook_event().body
    assert len(proxy.heads) == 1


def test_a_url_without_a_path_gets_one(
    start_endpoint: StartEndpoint, start_proxy: StartProxy, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint()
    assert (
        outcome(open_webhook("http://hook.example", proxy=f"http://127.0.0.1:{start_proxy(endpoint.port).port}/"))
        is None
    )
    assert endpoint.requests[0].line == "POST http://hook.example/ HTTP/1.1"
    assert endpoint.requests[0].values("proxy-authorization") == []


@pytest.mark.parametrize("head", [b"", b"X: y\r\n" * 120, b"Content-Length: 0\r\nX: " + b"x" * 20_000 + b"\r\n"])
def test_a_request_over_https_is_tunnelled_and_the_proxy_sees_nothing_of_it(
    head: bytes, start_endpoint: StartEndpoint, start_proxy: StartProxy, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint(tls=True)
    proxy = start_proxy(endpoint.port, head=head)
    sink = open_webhook(endpoint.url, proxy=f"http://{CREDENTIALS}@127.0.0.1:{proxy.port}", ca_file=str(CERTIFICATE))
    assert [outcome(sink), outcome(sink)] == [None, None]
    (connect,) = proxy.heads
    assert connect.splitlines()[0].startswith(f"CONNECT 127.0.0.1:{endpoint.port} HTTP/1.")
    assert f"proxy-authorization: {AUTHORIZATION}" in connect.splitlines()
    assert [request.line for request in endpoint.requests] == ["POST /hook HTTP/1.1"] * 2
    assert endpoint.requests[0].values("proxy-authorization") == []


def test_a_certificate_is_checked_through_a_tunnel(
    start_endpoint: StartEndpoint, start_proxy: StartProxy, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint(tls=True)
    proxy = start_proxy(endpoint.port)
    signal = outcome(
        open_webhook("https://hook.example/", proxy=f"http://127.0.0.1:{proxy.port}", ca_file=str(CERTIFICATE))
    )
    assert signal is not None
    assert signal.type is Retry
    assert "certificate verify failed: Hostname mismatch" in signal.reason
    assert endpoint.requests == []


def test_variables_of_the_environment_are_not_consulted(
    start_endpoint: StartEndpoint, open_webhook: OpenWebhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{reserve_port()}")
        monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{reserve_port()}")
    assert outcome(open_webhook(start_endpoint().url)) is None


PRIVATE = "private; set allow_private = true if this is intended"
METADATA = "link-local or a cloud's metadata service, which is never allowed"


@pytest.mark.parametrize(
    ("host", "allow_private", "reason"),
    [
        ("127.0.0.1", False, PRIVATE),
        ("2130706433", False, PRIVATE),
        ("0x7f.1", False, PRIVATE),
        ("[::1]", False, PRIVATE),
        ("[::ffff:10.0.0.1]", False, PRIVATE),
        ("169.254.169.254", True, METADATA),
        ("[fe80::1%25eth0]", True, METADATA),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_address_in_the_url_is_judged_although_the_proxy_connects(
    scheme: str,
    host: str,
    allow_private: bool,
    reason: str,
    start_endpoint: StartEndpoint,
    start_proxy: StartProxy,
    open_webhook: OpenWebhook,
) -> None:
    proxy = start_proxy(start_endpoint().port)
    sink = open_webhook(f"{scheme}://{host}/", proxy=f"http://127.0.0.1:{proxy.port}", allow_private=allow_private)
    signal = outcome(sink)
    assert signal is not None
    assert (signal.type, signal.reason.partition(" has an address that is ")[2]) == (Pause, reason)
    assert proxy.heads == []


@pytest.mark.parametrize(
    ("status", "expected"),
    [("407 Who", Pause), ("403 No", Pause), ("502 Oops", Retry), ("504 Oops", Retry)],
)
def test_a_proxy_that_refuses_a_tunnel_is_named(
    status: str, expected: type, start_endpoint: StartEndpoint, start_proxy: StartProxy, open_webhook: OpenWebhook
) -> None:
    proxy = start_proxy(start_endpoint().port, refusal=f"HTTP/1.1 {status}\r\n\r\n".encode())
    sink = open_webhook("https://hook.example/", proxy=f"http://127.0.0.1:{proxy.port}")
    reason = f"no connection to hook.example: the proxy responds HTTP {status[:3]}"
    assert outcome(sink) == Signal(expected, reason)


def test_a_proxy_that_rejects_our_credentials_pauses_the_sink(
    start_endpoint: StartEndpoint, start_proxy: StartProxy, open_webhook: OpenWebhook
) -> None:
    proxy = start_proxy(start_endpoint().port, refusal=b"HTTP/1.1 407 Who\r\nContent-Length: 0\r\n\r\n")
    sink = open_webhook("http://hook.example/", proxy=f"http://127.0.0.1:{proxy.port}")
    assert outcome(sink) == Signal(Pause, "HTTP 407: the proxy rejects our credentials")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_not_there_is_named(scheme: str, open_webhook: OpenWebhook) -> None:
    sink = open_webhook(f"{scheme}://hook.example/", proxy=f"http://u:s3cr3t-mark@127.0.0.1:{reserve_port()}")
    assert outcome(sink) == Signal(Retry, "no response from hook.example through the proxy: Connection refused")


@pytest.mark.usefixtures("short_limits")
def test_a_proxy_that_drips_is_cut_off(
    start_endpoint: StartEndpoint, start_proxy: StartProxy, open_webhook: OpenWebhook
) -> None:
    test_is_over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        with listener, contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                while not test_is_over.wait(0.02):
                    connection.sendall(b"H")

    dripping = threading.Thread(target=drip, daemon=True)
    dripping.start()
    signal = outcome(open_webhook("https://hook.example/", proxy=f"http://127.0.0.1:{listener.getsockname()[1]}"))
    test_is_over.set()
    wait_until(lambda: not dripping.is_alive())
    assert signal is not None
    assert signal.type is Retry


@pytest.mark.parametrize(
    "proxy",
    [
        "",
        "squid.example:3128",
        "s3cr3t-mark.example",
        "https://u:s3cr3t-mark@proxy.example:3128",
        "socks5://u:s3cr3t-mark@proxy.example:1080",
        "http://u:s3cr3t/mark@proxy.example:3128",
        "http://u:s3cr3t-mark@proxy.example:port",
        "http://u:s3cr3t-mark@proxy.example:3128/path",
        "http://u:s3cr3t-mark@proxy.example:3128/?query",
        "http://u:s3cr3t-mark@:3128",
        "http://[::1",
    ],
)
def test_a_proxy_that_cannot_be_used_is_an_error_that_does_not_show_it(proxy: str) -> None:
    with pytest.raises(PluginError) as error:
        build_webhook(url="https://hook.example/", proxy=proxy)
    problem = "proxy must be a URL such as http://user:password@proxy.example:3128"
    assert re.fullmatch(rf"config\.toml \[sinks\.tested\]: {re.escape(problem)}", str(error.value))
