"""Wakes the dispatcher of an SQLite journal: a datagram socket in the folder of the file, to which intake sends."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import time
from pathlib import Path

log = logging.getLogger(__name__)

WAIT_SECONDS = 0.5

POLL_SECONDS = 0.05
"""Without a socket."""


class Wakeup:
    """Both ends of the socket. A file system without sockets, or too long a path, leaves polling."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._receiver: socket.socket | None = None

    def listen(self) -> None:
        """Become the one that is woken; the caller holds a lock that allows one."""
        receiver = _socket()
        try:
            with contextlib.suppress(FileNotFoundError):
                Path(self._path).unlink()
            receiver.bind(self._path)
        except OSError as error:
            log.info("new events are found by polling: %s: %s", self._path, error.strerror or error)
            receiver.close()
            return
        self._receiver = receiver

    def send(self) -> None:
        """Wake the dispatcher, if there is one; without waiting."""
        with contextlib.suppress(OSError), _socket() as sender:
            sender.sendto(b".", socket.MSG_DONTWAIT, self._path)

    def wait(self) -> bool:
        """Wait until the other end sends, for half a second at most. Returns whether it has sent since the last
        call, or may have."""
        if self._receiver is None:
            time.sleep(POLL_SECONDS)
            return True
        poll = select.poll()
        poll.register(self._receiver, select.POLLIN)
        if not poll.poll(WAIT_SECONDS * 1000):
            return False
        with contextlib.suppress(BlockingIOError):
            while True:
                self._receiver.recv(1, socket.MSG_DONTWAIT)
        return True

    def close(self) -> None:
        if self._receiver is not None:
            self._receiver.close()


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
