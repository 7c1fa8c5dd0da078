"""Simulated network failures: new connections of this process are refused, or hang.

Only connections that Python's socket module opens are affected, not those of libraries such as libpq.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

CONNECT = socket.socket.connect


@dataclass
class Attempts:
    """How many connections were attempted."""

    count: int = 0


@contextlib.contextmanager
def refused() -> Iterator[Attempts]:
    """Refuse every new connection, as if the destination were down."""

    def refuse(connection: socket.socket, address: Any) -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    with _connections_replaced(refuse) as attempts:
        yield attempts


@contextlib.contextmanager
def hanging() -> Iterator[Attempts]:
    """Accept every new connection and never send anything, as if the destination hung."""

    def connect_to_silent(connection: socket.socket, address: Any) -> None:
        if connection.family != socket.AF_INET:
            raise OSError(errno.EHOSTUNREACH, "No route to host")
        CONNECT(connection, silent.getsockname())

    with (
        socket.create_server(("127.0.0.1", 0), backlog=128) as silent,
        _connections_replaced(connect_to_silent) as attempts,
    ):
        yield attempts


@contextlib.contextmanager
def _connections_replaced(replacement: Callable[[socket.socket, Any], None]) -> Iterator[Attempts]:
    """Call `replacement` for each new connection, except to sockets in the file system."""
    attempts = Attempts()

    def connect(connection: socket.socket, address: Any) -> None:
        if connection.family == socket.AF_UNIX:
            return CONNECT(connection, address)
        attempts.count += 1
        return replacement(connection, address)

    def connect_ex(connection: socket.socket, address: Any) -> int:
        try:
            connect(connection, address)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect)
        patch.setattr(socket.socket, "connect_ex", connect_ex)
        yield attempts
