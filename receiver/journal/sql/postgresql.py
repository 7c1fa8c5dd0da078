"""PostgreSQL as the journal's database: for machines without a persistent disk, and for several machines at once.

Claims are on the database's clock. An intake process holds one connection and a dispatcher two, since small database
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
NOTIFY_SECONDS = 0.5
CLOCK_SECONDS = 10.0
SIZE_SECONDS = 10.0
RELISTEN_SECONDS = 5.0
_MB = 1_000_000
ADD_EVENTS = f"""
WITH given AS (
    SELECT * FROM unnest(%b::text[], %b::float8[], %b::bytea[]) AS columns (id, received_at, body)
), added AS (
    INSERT INTO events (id, received_at, routed, body) SELECT id, received_at, false, body FROM given
    ON CONFLICT DO NOTHING RETURNING id
)
SELECT id, pg_notify('{CHANNEL}', '') FROM added
"""


class PostgresqlDatabase:
    """Connections, transactions and limits of one PostgreSQL database."""

    shared = True

    def __init__(self, url: str, max_size_mb: int | None) -> None:
        """`url` as in DATABASE_URL. Raises JournalError when it is not a URL of PostgreSQL."""
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
        self._clock_changed = True
        self._size = 0
        self._size_at = float("-inf")
        self._listener: psycopg.Connection[Any] | None = None
        self._listen_at = float("-inf")

    def insert(self, table: Table) -> Any:
        return postgresql.insert(table)

    def insert_events(self, arrivals: Sequence[Arrival], connection: Connection | None = None) -> set[str]:
        """One statement, which is its own transaction and one round trip.

        A ping before it would be one more. A connection that turns out to be lost is replaced here, because this
        statement can be repeated: rows that the first try did insert are then reported as duplicates.
        """
        columns = zip(*((arrival.id, arrival.received_at, arrival.body) for arrival in arrivals), strict=True)
        given = tuple(map(list, columns))
        if connection is not None:
            return set(connection.exec_driver_sql(ADD_EVENTS, given).scalars())
        with _translated_errors():
            return self._add(given)

    def now(self) -> float:
        """The database's clock, read every CLOCK_SECONDS and extrapolated with our own."""
        if self._offset_at is None:
            with self.read():  # reads the clock
                return self._offset + time.monotonic()
        return self._offset + time.monotonic()

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        """Always durable: asking for less would cost one more round trip."""
        with _translated_errors(), self._connection() as connection, connection.begin():
            self._read_clock(connection)
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with _translated_errors(), self._connection() as connection:
            self._read_clock(connection)
            yield connection

    def check_capacity(self) -> None:
        if self._max_size_mb is None:
            return
        if time.monotonic() - self._size_at > SIZE_SECONDS:
            with self.read() as connection:
                self._size = connection.scalar(select(func.pg_database_size(func.current_database()))) or 0
            self._size_at = time.monotonic()
        if self._size > self._max_size_mb * _MB:
            raise JournalUnavailable(
                f"the database has {self._size // _MB} MB, and [journal] max_size_mb is {self._max_size_mb}"
            )

    def lock_dispatcher(self) -> None:
        """Nothing to do: any number of dispatchers share the work."""

    def lock_schema(self, connection: Connection) -> None:
        connection.execute(select(func.pg_advisory_xact_lock(TABLES_LOCK)))

    def wait(self) -> None:
        """LISTEN; where that does not work, sleep and let the caller poll."""
        try:
            if self._listener is None and time.monotonic() - self._listen_at > RELISTEN_SECONDS:
                self._listen_at = time.monotonic()
                self._listener = TimeoutConnection.connect(_conninfo(self._url), autocommit=True, **CONNECT)
                self._listener.execute(f"LISTEN {CHANNEL}")
            if self._listener is not None:
                for _ in self._listener.notifies(timeout=NOTIFY_SECONDS, stop_after=1):
                    pass
                return
        except psycopg.Error as error:
            log.warning("LISTEN does not work (%s); the dispatcher polls the journal instead", _reason(error))
            self._stop_listening()
        time.sleep(NOTIFY_SECONDS / 4)

    def close(self) -> None:
        self._engine.dispose()
        self._stop_listening()

    def _add(self, given: tuple[list[Any], ...], *, retry: bool = True) -> set[str]:
        """The statement of `insert_events`, repeated once on another connection if this one was lost."""
        with closing(self._engine.raw_connection()) as pooled:
            driver: Any = pooled.driver_connection
            try:
                driver.autocommit = True
                added = {row[0] for row in driver.execute(ADD_EVENTS, given)}
                driver.autocommit = False
                return added
            except BaseException as error:
                lost = driver.closed and isinstance(error, psycopg.Error) and not isinstance(error, ServerTimeout)
                pooled.invalidate()  # its state is unknown
                if not lost or not retry:
                    raise
        return self._add(given, retry=False)

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """A connection that has just answered a ping, or a new one."""
        with self._engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            try:
                self._engine.dialect.do_ping(driver)
            except psycopg.Error:
                connection.invalidate()
                self._clock_changed = True  # its next statement connects again
            yield connection

    def _read_clock(self, connection: Connection) -> None:
        asked_at = time.monotonic()
        if self._offset_at is None or self._clock_changed or asked_at - self._offset_at > CLOCK_SECONDS:
            its = connection.scalar(select(func.extract("epoch", func.clock_timestamp())))
            self._offset, self._offset_at = float(its or 0.0) - asked_at, asked_at
            self._clock_changed = False

    def _prepare(self, connection: Any, record: object) -> None:
        """Make commits durable, limit statements so that no push waits for long, and free the rows of a client that
        vanished in a transaction. A new connection may lead to another machine with another clock."""
        with connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit = on")
            cursor.execute(f"SET statement_timeout = {int(STATEMENT_SECONDS * 1000)}")
            cursor.execute(f"SET idle_in_transaction_session_timeout = {int(IDLE_SECONDS * 1000)}")
        connection.commit()
        self._clock_changed = True

    def _stop_listening(self) -> None:
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
"""A connection that notices a lost server within seconds, and works behind a pooler (no prepared statements)."""


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


class ServerTimeout(psycopg.OperationalError):
    """The server accepted a statement and does not respond."""


class TimeoutConnection(psycopg.Connection[Any]):
    """A connection that is closed when the server accepts a statement and does not respond."""

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, ANSWER_SECONDS if timeout is None else timeout)
        except psycopg.errors._WaitTimeout:
            if timeout is not None:
                raise
            self.close()
            raise ServerTimeout("the server does not respond") from None


def _connect(dialect: object, record: object, arguments: Any, options: Any) -> Any:
    return TimeoutConnection.connect(*arguments, **options)


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Turn every exception of the database into JournalUnavailable, with a reason in our own words."""
    try:
        yield
    except (DBAPIError, psycopg.Error) as error:
        reason = _reason(getattr(error, "orig", error))
        raise JournalUnavailable(f"the database of DATABASE_URL cannot be used now: {reason}") from None
    except PoolTimeout:
        raise JournalUnavailable("the database of DATABASE_URL does not respond in time") from None


REASONS = {
    'password authentication failed|no password supplied|role ".*" does not exist': "wrong user or password",
    "no pg_hba.conf entry": "pg_hba.conf allows no such connection",
    '^3D000$|database ".*" does not exist': "no such database",
    "^53300$|too many connections|too many clients|remaining connection slots": "too many connections",
    "^53100$": "its disk is full",
    "^57014$": "statement timeout",
    "^57P0|the database system is": "it is starting up or shutting down",
    "^42501$|permission denied": "permission denied",
    "^25006$": "it is read-only",
    "failed to resolve host|could not translate host name": "unknown host",
    "Connection refused|No such file or directory": "connection refused",
    "timeout expired|timed out|does not respond|No route to host|Network is unreachable": "no response",
    "SSL|certificate": "no TLS connection can be established",
    "closed the connection|reset by peer|connection is (lost|closed)": "connection lost",
}
"""Our words by SQLSTATE, or by the text where there is none: while connecting, the driver never has one."""


def _reason(error: BaseException | None) -> str:
    """Why the database cannot be used; never in its own text, which holds host, user and values."""
    code_or_text = getattr(error, "sqlstate", None) or str(error)
    return next((words for pattern, words in REASONS.items() if re.search(pattern, code_or_text)), type(error).__name__)
