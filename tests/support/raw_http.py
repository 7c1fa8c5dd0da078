"""HTTP over raw sockets: requests in which any byte may be wrong, and clients that stall."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from receiver.signature import HEADER, sign
from receiver.testing.running import RunningReceiver
from receiver.testing.samples import TEST_SECRET
from support.pushes import FORBIDDEN

CLIENT_SECONDS = 15.0
"""How long a client waits for anything."""

HEAD = b"POST / HTTP/1.1\r\nHost: receiver\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = b'{"marked": "%b"}' % FORBIDDEN.encode()
"""A body that is not an event; it must not be stored."""


@dataclass(frozen=True)
class Response:
    status: int
    text: str
    closing: bool


class Client:
    """A connection on which anything can be sent."""

    def __init__(
        self, receiver: RunningReceiver, receive_buffer: int | None = None, segment: int | None = None
    ) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if segment is not None:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
        self.socket.settimeout(CLIENT_SECONDS)
        self.socket.connect(("127.0.0.1", receiver.port))
        self._received = self.socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self._received.close()
        self.socket.close()

    def send(self, data: bytes) -> Client:
        self.socket.sendall(data)
        return self

    def half_close(self) -> Client:
        """Send nothing more."""
        self.socket.shutdown(socket.SHUT_WR)
        return self

    def drip(self, data: bytes, pause: float) -> Client:
        """Send a byte each `pause` seconds, until the receiver responds."""
        readable = select.poll()
        readable.register(self.socket, select.POLLIN)
        for byte in data:
            if readable.poll(pause * 1000):
                break
            self.socket.sendall(bytes([byte]))
        return self

    def response(self) -> Response | None:
        """The next response, or None when the receiver has closed the connection."""
        line = self._received.readline()
        if not line:
            return None
        headers: dict[str, str] = {}
        while field := self._received.readline().strip().decode():
            name, _, value = field.partition(":")
            headers[name.lower()] = value.strip()
        status = int(line.split()[1])
        text = self._received.read(int(headers.get("content-length", "0"))).decode()
        return Response(status, text, headers.get("connection") == "close")

    def is_closed(self) -> bool:
        """Wait until the receiver closes the connection; whether it did so without sending anything more."""
        try:
            return self._received.read() == b""
        except ConnectionResetError:  # caused by what was sent at the moment of closing
            return True


def signature(body: bytes) -> bytes:
    """The header that signs a body."""
    return f"{HEADER}: {sign(body, TEST_SECRET, time.time())[HEADER]}".encode()


def push(body: bytes, *headers: bytes, path: bytes = b"/") -> bytes:
    """A genuine push as it is sent."""
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: receiver", signature(body), *headers]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body])


def chunked_push(body: bytes, chunks: bytes) -> bytes:
    """A genuine push of `body`, which is sent as these chunks."""
    return HEAD + signature(body) + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks


MakeRequest = Callable[[], bytes]
"""A request, made when it is sent, since its signature depends on the time."""
