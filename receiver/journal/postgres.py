"""PostgreSQL as the journal's database: for machines whose disks do not last, and for several machines at once.

Claims are on the database's clock. A process that receives holds one connection, one that delivers two, since small
plans allow twenty in all.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import psycopg
from sqlalchemy import URL, Connection, Table, create_engine, event, func, make_url, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from receiver.errors import JournalError, JournalUnavailable
from receiver.journal.contract import Arrival

log = logging.getLogger(__name__)

CHANNEL = "receiver"
TABLES_LOCK = 0x7265636569766572 & 0x7FFFFFFFFFFFFFFF
CONNECT_SECONDS = 2
STATEMENT_SECONDS = 2.0
ANSWER_SECONDS = 2.5
IDLE_SECONDS = 5.0
POOL_SECONDS = 2.0
WAIT_SECONDS = 0.5
CLOCK_SECONDS = 10.0
SIZE_SECONDS = 10.0
LISTEN_AGAIN_SECONDS = 5.0
_MB = 1_000_000
ADD_EVENTS = f"""
WITH given AS (
    SELECT * FROM unnest(%b::text[], %b::float8[], %b::bytea[]) AS columns (id, received_at, body)
), added AS (
    INSERT INTO events (id, received_at, matched, body) SELECT id, received_at, false, body FROM given
    ON CONFLICT DO NOTHING RETURNING id
)
SELECT id, pg_notify('{CHANNEL}', '') FROM added
"""


class PostgresDatabase:
    """Connections, transactions and limits of one PostgreSQL database."""

    shared = True

    def __init__(self, url: str, max_size_mb: int | None) -> None:
        """`url` as in DATABASE_URL. Raises JournalError when it cannot be one of PostgreSQL."""
        self._url = database_url(url)
        self._max_size_mb = max_size_mb
        self._engine = create_engine(
            self._url,
            pool_size=1,
            max_overflow=0,
            pool_timeout=POOL_SECONDS,
            connect_args=CONNECT,
            hide_parameters=True,
        )
        event.listen(self._engine, "do_connect", _connect)
        event.listen(self._engine, "connect", self._prepare)
        self._offset = 0.0
        self._offset_at: float | None = None
        self._clock_is_another = True
        self._size = 0
        self._size_at = float("-inf")
        self._listener: psycopg.Connection[Any] | None = None
        self._listen_at = float("-inf")

    def insert(self, table: Table) -> Any:
        return postgresql.insert(table)

    def add_events(self, arrivals: Sequence[Arrival], connection: Connection | None = None) -> set[str]:
        """One statement, which is its own transaction: one way to the server and back.

        To ask first whether a connection lives would be one way more. One that turns out to be lost is replaced here,
        for this statement can be repeated: what the first try had added after all is then told to be there already.
        """
        columns = zip(*((arrival.id, arrival.received_at, arrival.body) for arrival in arrivals), strict=True)
        given = tuple(map(list, columns))
        if connection is not None:
            return set(connection.exec_driver_sql(ADD_EVENTS, given).scalars())
        with _translated():
            return self._add(given)

    def now(self) -> float:
        """The database's clock, compared with our own now and then."""
        if self._offset_at is None:
            with self.read():  # compares the clocks
                return self._offset + time.monotonic()
        return self._offset + time.monotonic()

    @contextmanager
    def write(self, *, lasting: bool = True) -> Iterator[Connection]:
        """Always lasting: to ask for less takes one more way to the server and back."""
        with _translated(), self._connection() as connection, connection.begin():
            self._compare_clocks(connection)
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with _translated(), self._connection() as connection:
            self._compare_clocks(connection)
            yield connection

    def check_room(self) -> None:
        if self._max_size_mb is None:
            return
        if time.monotonic() - self._size_at > SIZE_SECONDS:
            with self.read() as connection:
                self._size = connection.scalar(select(func.pg_database_size(func.current_database()))) or 0
            self._size_at = time.monotonic()
        if self._size > self._max_size_mb * _MB:
            raise JournalUnavailable(
                f"the database has {self._size // _MB} MB, [journal] max_size_mb is {self._max_size_mb}"
            )

    def become_dispatcher(self) -> None:
        """Any number of dispatchers share the work."""

    def lock_tables(self, connection: Connection) -> None:
        connection.execute(select(func.pg_advisory_xact_lock(TABLES_LOCK)))

    def wait(self) -> None:
        """Listen; where that does not work, sleep, for polling does."""
        try:
            if self._listener is None and time.monotonic() - self._listen_at > LISTEN_AGAIN_SECONDS:
                self._listen_at = time.monotonic()
                self._listener = Patient.connect(_conninfo(self._url), autocommit=True, **CONNECT)
                self._listener.execute(f"LISTEN {CHANNEL}")
            if self._listener is not None:
                for _ in self._listener.notifies(timeout=WAIT_SECONDS, stop_after=1):
                    pass
                return
        except psycopg.Error as error:
            log.warning("the journal does not wake the dispatcher (%s); it looks by itself", _reason(error))
            self._hang_up()
        time.sleep(WAIT_SECONDS / 4)

    def close(self) -> None:
        self._engine.dispose()
        self._hang_up()

    def _add(self, given: tuple[list[Any], ...], *, again: bool = True) -> set[str]:
        """The statement of `add_events`, once more on another connection when this one was lost."""
        with closing(self._engine.raw_connection()) as pooled:
            driver: Any = pooled.driver_connection
            try:
                driver.autocommit = True
                added = {row[0] for row in driver.execute(ADD_EVENTS, given)}
                driver.autocommit = False
                return added
            except BaseException as error:
                lost = driver.closed and isinstance(error, psycopg.Error) and not isinstance(error, Silent)
                pooled.invalidate()  # it may be in any state
                if not lost or not again:
                    raise
        return self._add(given, again=False)

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """A connection that has just said that it lives, or a new one."""
        with self._engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            try:
                self._engine.dialect.do_ping(driver)
            except psycopg.Error:
                connection.invalidate()
                self._clock_is_another = True  # it connects again with its next statement
            yield connection

    def _compare_clocks(self, connection: Connection) -> None:
        asked_at = time.monotonic()
        if self._offset_at is None or self._clock_is_another or asked_at - self._offset_at > CLOCK_SECONDS:
            its = connection.scalar(select(func.extract("epoch", func.clock_timestamp())))
            self._offset, self._offset_at = float(its or 0.0) - asked_at, asked_at
            self._clock_is_another = False

    def _prepare(self, connection: Any, record: object) -> None:
        """A commit is durable when it returns, no statement keeps a push waiting for long, and whoever vanishes in a
        transaction lets go of its rows. A new connection may lead to another machine with another clock."""
        with connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit = on")
            cursor.execute(f"SET statement_timeout = {int(STATEMENT_SECONDS * 1000)}")
            cursor.execute(f"SET idle_in_transaction_session_timeout = {int(IDLE_SECONDS * 1000)}")
        connection.commit()
        self._clock_is_another = True

    def _hang_up(self) -> None:
        if self._listener is not None:
            self._listener.close()
        self._listener = None


CONNECT: dict[str, Any] = {
    "connect_timeout": CONNECT_SECONDS,
    "application_name": "receiver",
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 2000,
    "prepare_threshold": None,
}
"""A connection that notices within seconds that the other side is gone, and that a pooler may stand in front of."""


def database_url(text: str) -> URL:
    """A DATABASE_URL, also one that begins with postgres://. Raises JournalError, without the URL in it."""
    try:
        url = make_url(text)
        _conninfo(url)
    except (ArgumentError, ValueError, psycopg.Error):
        raise JournalError("DATABASE_URL is not a URL such as postgres://user:password@host:5432/name") from None
    if url.get_backend_name() not in ("postgres", "postgresql"):
        raise JournalError("DATABASE_URL must begin with postgres:// or postgresql://")
    return url.set(drivername="postgresql+psycopg")


def _conninfo(url: URL) -> str:
    given = url.translate_connect_args(username="user", database="dbname")
    return psycopg.conninfo.make_conninfo(**{**given, **url.query})


class Silent(psycopg.OperationalError):
    """The server took a statement and does not answer."""


class Patient(psycopg.Connection[Any]):
    """A connection that is given up when the server takes a statement and never answers: it may stand still."""

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, ANSWER_SECONDS if timeout is None else timeout)
        except psycopg.errors._WaitTimeout:
            if timeout is not None:
                raise
            self.close()
            raise Silent("the server does not answer") from None


def _connect(dialect: object, record: object, arguments: Any, options: Any) -> Any:
    return Patient.connect(*arguments, **options)


@contextmanager
def _translated() -> Iterator[None]:
    """Let no exception of the database out but JournalUnavailable, with a reason in words of our own."""
    try:
        yield
    except (DBAPIError, psycopg.Error) as error:
        why = _reason(getattr(error, "orig", error))
        raise JournalUnavailable(f"the journal's database, named in DATABASE_URL, cannot be used now: {why}") from None
    except PoolTimeout:
        raise JournalUnavailable("the journal's database, named in DATABASE_URL, does not answer in time") from None


REASONS = {
    'password authentication failed|no password supplied|role ".*" does not exist': "user or password refused",
    "no pg_hba.conf entry": "this user, database or kind of connection is not let in",
    '^3D000$|database ".*" does not exist': "no such database",
    "^53300$|too many connections|too many clients|remaining connection slots": "too many connections",
    "^53100$": "its disk is full",
    "^57014$": "it took too long",
    "^57P0|the database system is": "it is starting or stopping",
    "^42501$|permission denied": "its user may not do this",
    "^25006$": "it can only be read",
    "failed to resolve host|could not translate host name": "host unknown",
    "Connection refused|No such file or directory": "connection refused",
    "timeout expired|timed out|does not answer|No route to host|Network is unreachable": "no answer",
    "SSL|certificate": "no encrypted connection can be made",
    "closed the connection|reset by peer|connection is (lost|closed)": "connection lost",
}
"""Our words by SQLSTATE, and by the text where there is no SQLSTATE: while connecting, the driver never has one."""


def _reason(error: BaseException | None) -> str:
    """Why the database cannot be used: never in its own text, which holds host, user and values."""
    told = getattr(error, "sqlstate", None) or str(error)
    return next((words for pattern, words in REASONS.items() if re.search(pattern, told)), type(error).__name__)
