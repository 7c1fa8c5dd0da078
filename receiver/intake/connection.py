"""One client's connection: how long it may be idle, take for a request, and take to read a response."""

from __future__ import annotations

import logging
import socket
import time
from typing import Any

import gevent.socket
from gunicorn.http.body import ChunkedReader, LengthReader

log = logging.getLogger(__name__)

REQUEST_SECONDS = 2.0
"""How long a client may take to send a complete request, from its first byte on, and to read the response."""

SLOWEST_BYTES_PER_SECOND = 50_000
"""How fast a client must read a long response, such as a page or a download of the console."""

LONG_BYTES = 32_768
"""A longer response is sent piece by piece, as it is made."""

IDLE_SECONDS = 95.0
"""How long a connection may be idle: longer than Heroku's router keeps one, or it would reuse one that is closed."""


class Connection:
    """A client's socket as gunicorn reads and writes it: with a deadline for each request and each response."""

    def __init__(self, client: gevent.socket.socket) -> None:
        self._socket = client
        self._deadline = 0.0
        self._response: list[bytes] = []

    def wait(self) -> bytes:
        """The first bytes of a request; b"" if the client closes. Raises TimeoutError."""
        self._socket.settimeout(IDLE_SECONDS)
        data: bytes = self._socket.recv(8192)
        return data

    def begin_request(self) -> None:
        self._deadline = time.monotonic() + REQUEST_SECONDS

    def recv(self, size: int) -> bytes:
        """More bytes of a request. After its deadline only those that are there already: on a busy machine, they may
        have waited for us. Raises TimeoutError, or then BlockingIOError."""
        self._socket.settimeout(max(0.0, self._deadline - time.monotonic()))
        data: bytes = self._socket.recv(size)
        return data

    def send(self, data: bytes) -> None:
        """Send an interim response at once: the client waits for it before it sends the body."""
        self._socket.settimeout(REQUEST_SECONDS + len(data) / SLOWEST_BYTES_PER_SECOND)
        self._socket.sendall(data)

    def sendall(self, data: bytes) -> None:
        """Add to the response."""
        self._response.append(data)

    def send_if_long(self) -> None:
        """Send what there is of a long response, which is not kept in memory as a whole. Raises TimeoutError."""
        if sum(map(len, self._response)) > LONG_BYTES:
            self.send_response()

    def send_response(self) -> None:
        """Send the response, or what is left of it. Raises TimeoutError for a client that does not read it."""
        data, self._response = b"".join(self._response), []
        self.send(data)

    def respond(self, status: int, reason: str, line: str) -> None:
        """Send a response where there is no parsed request."""
        head = f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8"
        try:
            self.send(f"{head}\r\nContent-Length: {len(line)}\r\n\r\n{line}".encode("ascii"))
        except OSError:
            log.debug("the client was gone before the response")

    def shut_down(self) -> None:
        """Let the greenlet that waits for this connection end it, after a request that is there already."""
        try:
            self._socket.shutdown(socket.SHUT_RD)
        except OSError:
            log.debug("the connection was closed already")

    def close(self) -> None:
        """Close without waiting, after reading what is there: unread bytes would cause a reset that loses the
        response."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
            self._socket.settimeout(0)
            self._socket.recv(65536)
        except OSError:
            log.debug("nothing more to read")
        self._socket.close()


def is_complete(body: Any) -> bool:
    """Whether the body of a request has been read to its end, so that another request can follow it."""
    reader = body.reader
    if body.failed:
        return False
    if isinstance(reader, LengthReader):
        return bool(reader.length == 0)
    return isinstance(reader, ChunkedReader) and reader.parser is None
