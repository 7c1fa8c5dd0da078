"""A network in front of a PostgreSQL that can stop carrying anything: connections stay open, and nothing arrives."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path


class Network:
    """A TCP port that leads to a server's socket until it vanishes."""

    def __init__(self, target: Path) -> None:
        self._target = str(target)
        self._vanished = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def vanish(self) -> None:
        """Drop everything from now on. The ends of connections are not told, nor are they when an end is closed."""
        self._vanished.set()

    def close(self) -> None:
        self._listener.close()
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                self._sockets += [client, server]
                if not self._vanished.is_set():
                    server.connect(self._target)
                    for source, target in ((client, server), (server, client)):
                        threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self._vanished.is_set():
                    target.sendall(data)
            if not self._vanished.is_set():
                target.shutdown(socket.SHUT_RDWR)
