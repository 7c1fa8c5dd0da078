"""PostgreSQL for tests: what the receiver does on a database, and how a connection to it begins."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from receiver.journal.sql.journal import SqlJournal
from receiver.journal.sql.postgresql import PostgresqlDatabase
from receiver.journal.sql.records import SqlRecords
from receiver.testing.postgresql import Server, new_database, own_server

SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
"""What a client sends first when it asks for TLS."""

OUR_CONNECTIONS = (
    "SELECT pid FROM pg_stat_activity WHERE application_name = 'receiver' AND datname = current_database() "
)
LISTENING = "AND query LIKE 'LISTEN%'"
NOT_LISTENING = "AND query NOT LIKE 'LISTEN%'"
WAITING_FOR_A_LOCK = "AND wait_event_type = 'Lock'"


class Deployment:
    """The processes of a receiver that share one database: each `open` is what one of them sees of the journal."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._open: list[SqlJournal | SqlRecords | PostgresqlDatabase] = []

    def database(self, *, max_size_mb: int | None = None) -> PostgresqlDatabase:
        database = PostgresqlDatabase(self.url, max_size_mb)
        self._open.append(database)
        return database

    def open(self, holder: str | None = None) -> SqlJournal:
        journal = SqlJournal(PostgresqlDatabase(self.url, None), holder)
        self._open.append(journal)
        return journal

    def records(self) -> SqlRecords:
        records = SqlRecords(PostgresqlDatabase(self.url, None))
        self._open.append(records)
        return records

    def close(self) -> None:
        for opened in self._open:
            opened.close()

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Execute a statement as another program would."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def connections(self, which: str = "") -> int:
        return len(self.sql(OUR_CONNECTIONS + which))

    def cut_connections(self, which: str = "") -> int:
        """Let the database end connections of the receiver; how many there were."""
        return len(self.sql(OUR_CONNECTIONS.replace("SELECT pid", "SELECT pg_terminate_backend(pid)") + which))


@pytest.fixture
def deployment(long_time_limits: None) -> Iterator[Deployment]:
    """On the PostgreSQL that all tests share."""
    deployment = Deployment(new_database())
    yield deployment
    deployment.close()


@pytest.fixture
def server() -> Iterator[Server]:
    """A PostgreSQL that a test may kill and freeze."""
    server = own_server()
    yield server
    server.start()


@pytest.fixture
def own_deployment(server: Server) -> Iterator[Deployment]:
    """On a PostgreSQL that the test may kill and freeze."""
    deployment = Deployment(server.new_database())
    yield deployment
    deployment.close()


class RecordingProxy(threading.Thread):
    """A TCP port in front of a server's socket, which records the first bytes of each connection."""

    def __init__(self, target: Path) -> None:
        super().__init__(daemon=True)
        self._target = str(target)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.first_bytes: list[bytes] = []
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._connect, args=(self._listener.accept()[0],), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join()

    def _connect(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as upstream, contextlib.suppress(OSError):
            upstream.connect(self._target)
            first = client.recv(65536)
            self.first_bytes.append(first)
            upstream.sendall(first)
            back = threading.Thread(target=self._forward, args=(upstream, client), daemon=True)
            back.start()
            self._forward(client, upstream)
            back.join()

    @staticmethod
    def _forward(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
