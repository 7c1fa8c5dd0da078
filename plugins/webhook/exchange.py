"""One HTTP exchange of the `webhook` sink, limited in time and size whatever the server does."""

from __future__ import annotations

import http.client
import logging
import os
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
"""A response longer than this closes its connection; its content is not used."""


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
    """A response whose head must be complete. Python's own accepts a head that ends with the connection."""

    def begin(self) -> None:
        stream = self.fp
        lines = HeadLines(stream)
        self.fp = lines  # type: ignore[assignment]  # it replaces the stream while the head is read
        super().begin()
        if self.fp is lines:  # type: ignore[comparison-overlap]  # as above
            self.fp = stream
        if lines.last.strip():
            raise http.client.RemoteDisconnected("the connection ended within the head of the response")


class HeadLines:
    """A stream that remembers the last line that was read; the end of the stream is not an empty line."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.last = b""

    def readline(self, *limit: int) -> bytes:
        line: bytes = self._stream.readline(*limit)
        self.last = line or b"end"
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def discard_body(response: BaseHTTPResponse) -> None:
    """Read a short response, so that its connection can be reused; close the connection of a longer one."""
    if response.status >= 200:
        with suppress(HTTPError, OSError):
            response.read(MAX_RESPONSE_BYTES + 1)
    if not response.closed or response.status < 200:
        response.close()
    response.release_conn()


def shut_down(connection: socket.socket) -> None:
    """End a connection while another thread reads from it."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        logging.getLogger(__name__).debug("the connection was closed already")
