"""A primary and its streaming standby, and one address that leads to either of them."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

from chaos.pair import Node, own
from receiver.testing.running import wait_until

SOCKET = ".s.PGSQL.5432"


class Address:
    """A socket whose connections lead to one node at a time; those that exist stay where they lead."""

    def __init__(self, folder: Path, node: Node) -> None:
        self.node = node
        self.url = f"postgresql://postgres@/postgres?host={folder}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / SOCKET))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(str(self.node.folder / SOCKET))
            except OSError:
                client.close()
                server.close()
                continue
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=forward, args=(source, target), daemon=True).start()


def forward(source: socket.socket, target: socket.socket) -> None:
    with source, contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def primary_and_standby() -> Iterator[tuple[Node, Node, Address]]:
    """A primary, a standby that follows it, and an address that leads to the primary."""
    folders = [Path(mkdtemp(prefix="receiver-failover-")) for _ in range(3)]
    for folder in folders:
        own(folder)
    primary, standby = Node(folders[0]), Node(folders[1])
    address = Address(folders[2], primary)
    try:
        primary.create()
        primary.start()
        standby.follow(primary)
        standby.start()
        wait_until(lambda: primary.has("SELECT count(*) FROM pg_stat_replication"), what="a standby that follows")
        yield primary, standby, address
    finally:
        address.close()
        for node in (primary, standby):
            with contextlib.suppress(subprocess.SubprocessError):
                node.stop()
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
