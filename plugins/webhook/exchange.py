"""One HTTP exchange of the `webhook` sink, limited in time and size whatever the server does."""

from __future__ import annotations

import http.client
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

CHECK_SECONDS = 0.25
"""How often deadlines are checked."""

MAX_RESPONSE_BYTES = 64 * 1024
"""A response whose head or body is longer than this closes its connection; the rest is not read."""

MAX_STATUS_BYTES = 1000
"""How much of a status line is used: the reason at its end can be of any length."""

HEADER = re.compile(rb"[ \t]|[!#$%&'*+.^_`|~0-9A-Za-z-]+:|[!#$%&'*+.^_`|~0-9A-Za-z-]*\Z")
"""How a header begins, or a further line of one, or all that there is of an incomplete one."""

ANY = re.compile(rb".*", re.DOTALL)
USED_HEADERS = {
    b"connection": ANY,
    b"content-length": re.compile(rb"[0-9]+"),
    b"retry-after": ANY,
    b"transfer-encoding": re.compile(rb"chunked", re.IGNORECASE),
}
"""The headers that are used, and the values that they can have."""

NO_BODY = [b"Content-Length: 0\r\n", b"Connection: close\r\n"]


@dataclass(frozen=True)
class TimeLimits:
    """How long an exchange can take: to connect, to wait for the next bytes, and from start to end."""

    connect_seconds: float = 5.0
    read_seconds: float = 10.0
    total_seconds: float = 20.0


class Deadlines:
    """Cuts off exchanges that take too long: a server that sends a byte now and then never causes a read timeout."""

    def __init__(self, total_seconds: float) -> None:
        self._total_seconds = total_seconds
        self._exchanges: dict[int, tuple[float, socket.socket | None]] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def start(self) -> None:
        self._stopped = threading.Event()  # a new one: the thread of the last open may not have seen the old one yet
        threading.Thread(target=self._run, args=(self._stopped,), name="webhook deadlines", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    @contextmanager
    def exchange(self) -> Iterator[float]:
        """A context for one request of this thread; gives the time at which it is cut off."""
        deadline = time.monotonic() + self._total_seconds
        self._exchanges[threading.get_ident()] = (deadline, None)
        try:
            yield deadline
        finally:
            self._replace(None)
            del self._exchanges[threading.get_ident()]

    def watch(self, connection: socket.socket | None) -> None:
        """The request of this thread uses `connection`. A duplicate is watched, since TLS detaches the socket."""
        if connection is not None and threading.get_ident() in self._exchanges:
            self._replace(socket.socket(fileno=os.dup(connection.fileno())))

    def _replace(self, connection: socket.socket | None) -> None:
        with self._lock:
            thread = threading.get_ident()
            deadline, before = self._exchanges[thread]
            self._exchanges[thread] = (deadline, connection)
            if before is not None:
                before.close()

    def _run(self, stopped: threading.Event) -> None:
        while not stopped.wait(CHECK_SECONDS):
            with self._lock:
                now = time.monotonic()
                for deadline, connection in self._exchanges.copy().values():
                    if deadline < now and connection is not None:
                        shut_down(connection)


class CompleteHead(http.client.HTTPResponse):
    """A response that counts by its status line, whatever headers follow; but its head must have an end.

    Python's own accepts a head that ends with the connection, and fails for one that is long or unusual. Of the interim
    responses before the final one (RFC 9110, section 15.2) it skips 100 only.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stream = self.fp
        self.fp = Head(self.fp)  # type: ignore[assignment]  # it replaces the stream while the head is read

    def begin(self) -> None:
        super().begin()
        if self.fp is not None:
            self.fp = self._stream

    def _read_status(self) -> tuple[str, int, str]:
        version, status, reason = super()._read_status()  # type: ignore[misc]  # not in the types of the library
        is_interim = 100 <= status < 200 and status != http.client.SWITCHING_PROTOCOLS
        return version, http.client.CONTINUE if is_interim else status, reason

    def _read_next_chunk_size(self) -> int:
        """The size of the next chunk. Python's own can be negative, and then the body is read without a limit."""
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]  # not in the types of the library
        if size < 0:
            raise ValueError("negative size of a chunk")
        return size


class Head:
    """The head of a response, without the headers that are not used.

    If it is too long, holds something else than headers, or does not tell where the body ends, it says that there is no
    body and that the connection is closed.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._bytes_left = MAX_RESPONSE_BYTES
        self._lines: list[bytes] = []

    def readline(self, limit: int) -> bytes:
        """The next line: a status line, or one of the headers after it."""
        if self._lines:
            return self._lines.pop(0)
        line = self._read()
        if line.startswith(b"HTTP/"):
            if not line.endswith(b"\n") and self._bytes_left:
                raise http.client.RemoteDisconnected("the connection ended within the status line")
            self._lines = [*self._read_headers(), b"\r\n"]
        return line[:MAX_STATUS_BYTES]

    def _read_headers(self) -> list[bytes]:
        used: dict[bytes, bytes] = {}
        length_is_known = True
        while (line := self._read()) not in (b"\r\n", b"\n"):
            is_header = HEADER.match(line)
            if is_header and not line.endswith(b"\n") and self._bytes_left:
                raise http.client.RemoteDisconnected("the connection ended within the head of the response")
            if not is_header or not line.endswith(b"\n"):
                length_is_known = False
                break
            name, _, value = line.partition(b":")
            name = name.lower()
            if name in USED_HEADERS:
                length_is_known &= name not in used and USED_HEADERS[name].fullmatch(value.strip()) is not None
                used.setdefault(name, line)
        if length_is_known:
            return list(used.values())
        return [*(line for name, line in used.items() if name == b"retry-after"), *NO_BODY]

    def _read(self) -> bytes:
        line: bytes = self._stream.readline(self._bytes_left)
        self._bytes_left -= len(line)
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def read_body(response: BaseHTTPResponse) -> bytes:
    """Read a short response, so that its connection can be reused; close the connection of a longer one.

    Returns its body, or nothing if reading failed.
    """
    body = b""
    if response.status >= 200:
        with suppress(HTTPError, OSError):
            body = response.read(MAX_RESPONSE_BYTES + 1)
    if not response.closed or response.status < 200:
        response.close()
    response.release_conn()
    return body


def shut_down(connection: socket.socket) -> None:
    """End a connection while another thread reads from it."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        logging.getLogger(__name__).debug("the connection was closed already")
