"""A network that fails: for a while, every new connection of this process is refused, or hangs for ever.

Only connections that Python's socket module opens are caught; a library that brings its own, such as libpq, is not.
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
    """How often somebody tried to connect."""

    count: int = 0


@contextlib.contextmanager
def refused() -> Iterator[Attempts]:
    """Every connection is refused, as if the destination were down."""

    def refuse(connection: socket.socket, address: Any) -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    with _connect_by(refuse) as attempts:
        yield attempts


@contextlib.contextmanager
def hanging() -> Iterator[Attempts]:
    """Every connection is made and then silent, as if the destination had frozen."""

    def be_silent(connection: socket.socket, address: Any) -> None:
        if connection.family != socket.AF_INET:
            raise OSError(errno.EHOSTUNREACH, "No route to host")
        CONNECT(connection, silent.getsockname())

    with socket.create_server(("127.0.0.1", 0), backlog=128) as silent, _connect_by(be_silent) as attempts:
        yield attempts


@contextlib.contextmanager
def _connect_by(instead: Callable[[socket.socket, Any], None]) -> Iterator[Attempts]:
    attempts = Attempts()

    def connect(connection: socket.socket, address: Any) -> None:
        if connection.family == socket.AF_UNIX:
            return CONNECT(connection, address)
        attempts.count += 1
        return instead(connection, address)

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
