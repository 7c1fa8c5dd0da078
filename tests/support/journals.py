"""Journals for tests: on a clock that tests set, on databases that fail on demand, and helpers in short form."""

from __future__ import annotations

import functools
import resource
import sqlite3
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, make_url
from sqlalchemy.exc import OperationalError

from receiver.errors import JournalUnavailable
from receiver.journal import Arrival, Delivery, Journal, Outcome, Records, Result, Settlement, StoredEvent
from receiver.journal.sql import postgresql as postgresql_module
from receiver.journal.sql import postgresql_connection
from receiver.journal.sql import sqlite as sqlite_module
from receiver.journal.sql.database import Database
from receiver.journal.sql.journal import SqlJournal
from receiver.journal.sql.postgresql import PostgresqlDatabase
from receiver.journal.sql.records import SqlRecords
from receiver.journal.sql.sqlite import SqliteDatabase
from receiver.testing.postgresql import new_database

DAY = 86400.0


class Clock:
    """A journal's clock that only tests move."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Store(ABC):
    """One stored journal; each `open` is what one process sees of it.

    While `disk_full` is set, every commit fails. `before_next_write` is called once, before the next write transaction.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.disk_full = False
        self.before_next_write: Callable[[], object] | None = None
        self._open: list[Journal | Records] = []

    @abstractmethod
    def open(self, holder: str | None = None) -> Journal:
        """The journal; `holder` names the dispatcher that claims deliveries."""

    @abstractmethod
    def records(self) -> Records:
        """The same journal for operators."""

    @abstractmethod
    def failing_commits(self) -> AbstractContextManager[None]:
        """While this lasts, the database itself fails at each commit of events, after it executed the statement."""

    def close(self, opened: Journal | Records) -> None:
        self._open.remove(opened)
        opened.close()

    def close_all(self) -> None:
        self.disk_full = False
        for opened in list(self._open):
            self.close(opened)


class SqlStore(Store):
    """A journal in a database that has the clock of the store, and fails when the store says so."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    @abstractmethod
    def database(self, *, min_free_mb: int = 0, max_size_mb: int | None = None) -> Database:
        """A new connection to the database; the caller closes it."""

    @abstractmethod
    def reject_inserts(self, table: str) -> None:
        """Let the database accept no more rows in this table."""

    def open(self, holder: str | None = None, *, min_free_mb: int = 0, max_size_mb: int | None = None) -> SqlJournal:
        journal = SqlJournal(self.database(min_free_mb=min_free_mb, max_size_mb=max_size_mb), holder)
        self._open.append(journal)
        return journal

    def records(self) -> SqlRecords:
        records = SqlRecords(self.database())
        self._open.append(records)
        return records

    def fail_statement(self) -> None:
        """Fail a transaction of one statement before it begins: it has done nothing."""
        self._call_before_write()
        if self.disk_full:
            raise JournalUnavailable("database or disk is full")

    @contextmanager
    def fail_commit(self, transaction: AbstractContextManager[Connection]) -> Iterator[Connection]:
        self._call_before_write()
        with transaction as connection:
            yield connection
            if self.disk_full:
                raise OperationalError("COMMIT", {}, sqlite3.OperationalError("database or disk is full"))

    def _call_before_write(self) -> None:
        call, self.before_next_write = self.before_next_write, None
        if call is not None:
            call()


class SqliteStore(SqlStore):
    """A journal in an SQLite file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "journal.sqlite"

    def database(self, *, min_free_mb: int = 0, max_size_mb: int | None = None) -> Database:
        database: Database = _controlled(self, SqliteDatabase)(self.path, min_free_mb, max_size_mb)
        return database

    @contextmanager
    def failing_commits(self) -> Iterator[None]:
        """Rows are written to the file at the commit, and this process may not make the file larger."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        log = self.path.with_name(self.path.name + "-wal")
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 10, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def reject_inserts(self, table: str) -> None:
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute(f"CREATE TRIGGER no BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'no'); END")


class PostgresqlStore(SqlStore):
    """A journal in the database `url`, or in a schema of its own, which is created ten times as fast as a database."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        super().__init__(folder)
        self.url = url or _new_schema()

    def database(self, *, min_free_mb: int = 0, max_size_mb: int | None = None) -> Database:
        database: Database = _controlled(self, PostgresqlDatabase)(self.url, max_size_mb)
        return database

    @contextmanager
    def failing_commits(self) -> Iterator[None]:
        self.reject_inserts("events")
        try:
            yield
        finally:
            with psycopg.connect(self.url, autocommit=True) as connection:
                connection.execute("DROP TRIGGER no ON events")

    def reject_inserts(self, table: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(
                "CREATE OR REPLACE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'no'; END $$"
            )
            connection.execute(
                f"CREATE CONSTRAINT TRIGGER no AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION no()"
            )


def _new_schema() -> str:
    """The URL of a schema of its own, in a database that the stores of this process share."""
    name = f"journal_{uuid.uuid4().hex}"
    with psycopg.connect(_shared_database(), autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    url = make_url(_shared_database()).update_query_dict({"options": f"-csearch_path={name}"})
    return url.render_as_string(hide_password=False)


@functools.cache
def _shared_database() -> str:
    return new_database()


def _controlled(store: SqlStore, kind: type[Any]) -> type[Any]:
    """A kind of database whose clock and write transactions the store controls."""

    class Controlled(kind):  # type: ignore[misc]  # a class that is given at run time
        def now(self) -> float:
            return store.clock.now

        def write(self, **how: bool) -> AbstractContextManager[Connection]:
            return store.fail_commit(super().write(**how))

        def insert_events(self, arrivals: Sequence[Arrival], connection: Connection | None = None) -> set[str]:
            if connection is None:
                store.fail_statement()
            new: set[str] = super().insert_events(arrivals, connection)
            return new

    return Controlled


STORES: list[Any] = [pytest.param(SqliteStore, id="sqlite"), pytest.param(PostgresqlStore, id="postgresql")]


def lengthen_time_limits(set_limit: Callable[[object, str, float], None] = setattr) -> None:
    """Let a call of the journal take so long that it does not fail on a busy machine."""
    for name in ("POOL_SECONDS", "STATEMENT_SECONDS", "IDLE_SECONDS", "TRANSACTION_SECONDS"):
        set_limit(postgresql_module, name, 60.0)
    set_limit(postgresql_connection, "RESPONSE_SECONDS", 60.0)
    for name in ("LOCK_SECONDS", "BUSY_SECONDS"):
        set_limit(sqlite_module, name, 60.0)


@pytest.fixture
def long_time_limits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        lengthen_time_limits(patch.setattr)
        yield


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path, long_time_limits: None) -> Iterator[SqlStore]:
    store: SqlStore = request.param(tmp_path)
    yield store
    store.close_all()


@pytest.fixture
def journal(store: Store) -> Journal:
    return store.open()


@pytest.fixture
def records(store: Store) -> Records:
    return store.records()


@pytest.fixture
def clock(store: Store) -> Clock:
    return store.clock


def body(event_id: str) -> bytes:
    """The body that `accept` stores for an event; it is no valid event, which the journal does not need."""
    return f"body of {event_id}".encode()


def accept(journal: Journal, *event_ids: str, received_at: float = 1000.0) -> list[Outcome]:
    """Accept these events one after another, each in a commit of its own."""
    return [journal.accept([Arrival(event_id, body(event_id), received_at)])[0] for event_id in event_ids]


def route_events(journal: Journal, sink: str, *event_ids: str, received_at: float = 1000.0) -> list[StoredEvent]:
    """Accept these events and route them to one sink."""
    accept(journal, *event_ids, received_at=received_at)
    stored = [event for event in journal.unrouted(1000) if event.id in event_ids]
    journal.route([(event, [sink]) for event in stored])
    return stored


def claim(journal: Journal, sink: str, limit: int = 1000, seconds: float = 60.0) -> list[Delivery]:
    return journal.claim(sink, limit, seconds)


def event_ids(found: Sequence[Delivery | StoredEvent]) -> list[str]:
    return [each.event.id if isinstance(each, Delivery) else each.id for each in found]


def settle(
    journal: Journal, deliveries: Sequence[Delivery], result: Result, due: float = 0.0, reason: str = "HTTP 500"
) -> None:
    journal.settle([Settlement(delivery, result, due, reason) for delivery in deliveries])


def delivery_counts(journal: Journal | Records, sink: str) -> tuple[int, int, int]:
    """How many deliveries of a sink are delivered, pending and dead."""
    of_sink = journal.counts().sinks[sink]
    return of_sink.delivered, of_sink.pending, of_sink.dead


def unrouted_and_quarantined(journal: Journal | Records) -> tuple[int, int]:
    """How many events are not routed yet, and how many pushes are in quarantine."""
    counts = journal.counts()
    return counts.unrouted, counts.quarantined
