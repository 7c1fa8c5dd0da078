"""PostgreSQL as the journal's database: for machines without a persistent disk, and for several machines at once.

Claims are on the database's clock. An intake process holds one connection and a dispatcher two, since small database
plans allow twenty in all. A pooler may share a connection with other programs, so what a transaction needs is set in it
and ends with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import psycopg
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Table,
    any_,
    create_engine,
    event,
    func,
    literal,
    select,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import DBAPIError

from receiver.errors import JournalError, JournalUnavailable, ReceiverError
from receiver.journal.contract import Arrival, Space
from receiver.journal.sql.database import storable
from receiver.journal.sql.fair_lock import FairLock
from receiver.journal.sql.postgresql_connection import (
    SESSION,
    TimeoutConnection,
    reason,
    session_is_useless,
)
from receiver.postgresql_url import postgresql_parameters

log = logging.getLogger(__name__)

CHANNEL = "receiver"
TABLES_LOCK = 0x7265636569766572 & 0x7FFFFFFFFFFFFFFF
POOL_SECONDS = 2.0
"""How long a thread waits for the connection that it shares with the others."""

STATEMENT_SECONDS = 2.0
IDLE_SECONDS = 5.0
"""A client that vanishes in a transaction keeps its rows locked for so long."""

TRANSACTION_SECONDS = 15.0
"""And one that vanishes between two statements of one round trip, which are not followed by an idle time. Many times
what any of our transactions takes."""

LOCK_SECONDS = 0.5
"""How long to wait for tables while holding others: half the time after which PostgreSQL looks for a deadlock, and
would end one of the transactions."""

UNLOCKED_SECONDS = 0.2
"""How long other transactions can go on before the next try to lock tables."""

NOTIFY_SECONDS = 0.5
POLL_SECONDS = 0.125

SIZE_SECONDS = 10.0
RELISTEN_SECONDS = 5.0
STABLE_SECONDS = 60.0
"""LISTEN works again when its session has lasted for so long: some servers end idle sessions within seconds."""

_MB = 1_000_000
NOT_BY_INDEX = (
    *("enable_seqscan", "enable_bitmapscan", "enable_sort", "enable_hashjoin", "enable_mergejoin"),
    *("jit", "max_parallel_workers_per_gather"),  # which take longer to begin than the query
)
"""The settings without which the planner follows an index. Before the first ANALYZE it takes large tables for small,
and a million rows for few."""

BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
INSERT_EVENTS = f"""
WITH given AS (
    SELECT * FROM unnest(%b::text[], %b::float8[], %b::bytea[], %b::text[]) AS columns (id, received_at, body, origin)
), added AS (
    INSERT INTO events (id, received_at, routed, body, origin) SELECT id, received_at, false, body, origin FROM given
    ON CONFLICT (id) DO NOTHING RETURNING id
)
SELECT id, pg_notify('{CHANNEL}', '') FROM added
"""
LIFT_LIMITS = """
SELECT set_config('statement_timeout', '0', true),
    CASE WHEN current_setting('server_version_num')::int >= 170000 THEN set_config('transaction_timeout', '0', true) END
"""

BY_INDEX = f"SELECT set_config(name, '0', true) FROM unnest('{{{','.join(NOT_BY_INDEX)}}}'::text[]) AS plans (name)"


class PostgresqlDatabase:
    """Connections, transactions and limits of one PostgreSQL database."""

    shared = True

    def __init__(self, url: str, max_size_mb: int | None, setting: str = "DATABASE_URL") -> None:
        """`url` is that of a `setting`. Raises JournalError when it is not a URL of PostgreSQL."""
        self._setting = setting
        try:
            parameters = postgresql_parameters(url, setting)
        except ValueError as error:
            raise JournalError(str(error)) from None
        self._parameters: Callable[[], dict[str, str]] = lambda: (
            parameters
        )  # a function, so that no repr shows the password
        self._max_size_mb = max_size_mb
        self._engine = create_engine(
            "postgresql+psycopg://",
            creator=self._connect,
            pool_size=1,
            max_overflow=0,
            hide_parameters=True,
        )
        event.listen(self._engine, "handle_error", _drop_session)
        event.listen(self._engine, "begin", self._start)
        event.listen(self._engine, "checkout", _limit_waiting)
        self._turns = FairLock()
        self._encoding = "UTF8"
        self._offset: float | None = None
        self.set_back_seconds = 0.0
        self._size = 0
        self._size_at = float("-inf")
        self._listener = Listener(self._connect)

    def insert(self, table: Table) -> Any:
        return postgresql.insert(table)

    def insert_events(self, arrivals: Sequence[Arrival], connection: Connection | None = None) -> set[str]:
        """Without `connection`, the whole transaction is one round trip.

        A session that turns out to be useless is then replaced, because this statement can be repeated: rows that the
        first try did insert are reported as duplicates.
        """
        rows = ((each.id, each.received_at, each.body, each.origin.value) for each in arrivals)
        columns = zip(*rows, strict=True)
        values = tuple(map(list, columns))
        if connection is not None:
            return set(connection.exec_driver_sql(INSERT_EVENTS, values).scalars())
        with _translated_errors(self._setting):
            try:
                return self._insert(values)
            except psycopg.Error as error:
                if not session_is_useless(error):
                    raise
            return self._insert(values)

    def now(self) -> float:
        """The database's clock, read in each transaction and extrapolated with our own."""
        if self._offset is None:
            with self.read():
                pass
        return (self._offset or 0.0) + time.monotonic()

    @contextmanager
    def write(self, *, durable: bool = True, wakes: bool = False, by_index: bool = False) -> Iterator[Connection]:
        """Always durable: less would gain little here."""
        with _translated_errors(self._setting), self._transaction(by_index=by_index) as connection:
            yield connection
            if wakes:
                connection.execute(select(func.pg_notify(CHANNEL, "")))
            connection.commit()

    @contextmanager
    def read(self, *, by_index: bool = False) -> Iterator[Connection]:
        with _translated_errors(self._setting), self._transaction(by_index=by_index) as connection:
            yield connection

    def mentions(self, whole: ColumnElement[Any], part: Any) -> ColumnElement[bool]:
        return func.pg_catalog.position(whole, part) > 0

    def check_capacity(self) -> None:
        if self._max_size_mb is not None and (used := self.space().used) > self._max_size_mb * _MB:
            raise JournalUnavailable(
                f"the database has {used // _MB} MB, and [journal] max_size_mb is {self._max_size_mb}"
            )

    def space(self) -> Space:
        """The size of the whole database; how much is free on the disk of its server is not known."""
        if time.monotonic() - self._size_at > SIZE_SECONDS:
            with self.read() as connection:
                self._size = connection.scalar(select(func.pg_database_size(func.current_database()))) or 0
            self._size_at = time.monotonic()
        return Space(self._size, None)

    def storable(self, text: str) -> str:
        """Databases with another encoding than UTF-8 lack most characters; those are escaped."""
        if self._encoding in ("UTF8", "SQL_ASCII"):
            return storable(text)
        return storable(text).encode("ascii", "backslashreplace").decode()

    def may_dispatch(self) -> bool:
        return True

    def lock_dispatcher(self) -> None:
        """Nothing to do: any number of dispatchers share the work."""

    def lock_schema(self, connection: Connection) -> None:
        connection.execute(select(func.pg_advisory_xact_lock(TABLES_LOCK)))

    def lock_tables(self, connection: Connection, tables: Sequence[Table]) -> None:
        """All of them or, for a moment, none: claims use the tables in another order than routing."""
        driver: Any = connection.connection.driver_connection
        names = ", ".join(table.name for table in tables)
        while True:
            try:
                with driver.transaction():
                    driver.execute(f"SET LOCAL lock_timeout = {int(LOCK_SECONDS * 1000)}")
                    driver.execute(f"LOCK TABLE {names}")
                    return
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                time.sleep(UNLOCKED_SECONDS)

    def lift_limits(self, connection: Connection) -> None:
        connection.exec_driver_sql(LIFT_LIMITS)
        driver: Any = connection.connection.driver_connection
        driver.waits_for_long = True

    def among(self, column: Column[int], keys: Sequence[int]) -> ColumnElement[bool]:
        return column == any_(literal(list(keys), postgresql.ARRAY(BigInteger)))

    def advance_keys(self, connection: Connection, column: Column[Any]) -> None:
        """Some copies of a database have its rows, and sequences that begin anew."""
        sequence = func.pg_get_serial_sequence(column.table.name, column.name)
        greatest = select(func.max(column).label("key")).subquery()
        is_behind = greatest.c.key > func.coalesce(func.pg_sequence_last_value(sequence), 0)
        connection.execute(select(func.setval(sequence, greatest.c.key)).where(is_behind))

    def wait(self) -> bool:
        return self._listener.wait()

    def close(self) -> None:
        self._engine.dispose()
        self._listener.close()

    def _connect(self) -> TimeoutConnection:
        connection = TimeoutConnection.connect(**{**self._parameters(), **SESSION})
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        self._encoding = connection.info.parameter_status("server_encoding") or "UTF8"
        return connection

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The right to use the connection of the pool."""
        if not self._turns.acquire(POOL_SECONDS):
            raise JournalUnavailable(f"the database of {self._setting} does not respond in time")
        try:
            yield
        finally:
            self._turns.release()

    @contextmanager
    def _transaction(self, *, by_index: bool = False) -> Iterator[Connection]:
        """A transaction on a session that works: one that turns out to be lost when it begins is replaced."""
        with self._turn(), self._engine.connect() as connection:
            connection.execution_options(by_index=by_index)
            try:
                _begin(connection)
            except psycopg.Error as error:
                if not session_is_useless(error):
                    raise
                _begin(connection)
            yield connection

    def _start(self, connection: Connection) -> None:
        """BEGIN and the settings of the transaction in one round trip."""
        driver: Any = connection.connection.driver_connection
        asked_at = time.monotonic()
        with driver.pipeline():
            started = driver.execute(_start())
            if connection.get_execution_options().get("by_index"):
                driver.execute(BY_INDEX)
        self._read_clock(started, asked_at)

    def _insert(self, values: tuple[list[Any], ...]) -> set[str]:
        """BEGIN, the settings of the transaction, the statement and COMMIT in one round trip."""
        with self._turn(), closing(self._engine.raw_connection()) as pooled:
            driver: Any = pooled.driver_connection
            try:
                driver.autocommit = True  # the driver waits for the response to a BEGIN and a COMMIT of its own
                asked_at = time.monotonic()
                with driver.pipeline():
                    driver.execute(BEGIN)
                    started = driver.execute(_start())
                    inserted = driver.execute(INSERT_EVENTS, values)
                    driver.execute("COMMIT")
                driver.autocommit = False
                self._read_clock(started, asked_at)
                return {row[0] for row in inserted}
            except BaseException:
                pooled.invalidate()  # its state is unknown
                raise

    def _read_clock(self, started: Any, asked_at: float) -> None:
        """Limit the difference of the clocks to what is possible: the database read its own between the question and
        the response. Every transaction does so, since another session may lead to another machine."""
        read_at = started.fetchone()[0]
        least, most = read_at - time.monotonic(), read_at - asked_at
        if self._offset is None:
            self._offset = least  # more exact ones move it ahead, so that the time does not run backwards
        offset = min(max(self._offset, least), most)
        self.set_back_seconds = max(0.0, self.set_back_seconds + self._offset - offset)
        self._offset = offset


class Listener:
    """Waits for events with LISTEN; where that does not work it sleeps, and the dispatcher polls the journal."""

    def __init__(self, connect: Callable[[], TimeoutConnection]) -> None:
        self._connect = connect
        self._connection: TimeoutConnection | None = None
        self._tried_at = float("-inf")
        self._failed = False

    def wait(self) -> bool:
        """Wait for a notification. Returns whether one may have been sent; without LISTEN, always."""
        try:
            if self._connection is None and time.monotonic() - self._tried_at > RELISTEN_SECONDS:
                self._tried_at = time.monotonic()
                self._listen()
                return True
            if self._connection is not None:
                notified = any(True for _ in self._connection.notifies(timeout=NOTIFY_SECONDS, stop_after=1))
                self._report_success()
                return notified
        except psycopg.Error as error:
            self._report_failure(reason(error))
        time.sleep(POLL_SECONDS)
        return True

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _listen(self) -> None:
        self._connection = self._connect()
        self._connection.autocommit = True
        if self._connection.is_direct():
            self._connection.execute(f"LISTEN {CHANNEL}")
        else:
            self._report_failure("a connection pooler is in between")

    def _report_failure(self, why: str) -> None:
        self.close()
        if not self._failed:
            self._failed = True
            log.warning("LISTEN does not work (%s); the dispatcher polls the journal instead", why)

    def _report_success(self) -> None:
        if self._failed and time.monotonic() - self._tried_at > STABLE_SECONDS:
            self._failed = False
            log.info("LISTEN works again")


def _begin(connection: Connection) -> None:
    """Begin a transaction; a session in which that fails does not go back to the pool, which would log why."""
    try:
        connection.begin()
    except psycopg.Error:
        connection.invalidate()
        raise


def _start() -> str:
    """The first statement of each transaction: reads the clock, limits statements so that no push waits for long,
    has times exact, and makes the commit durable; a stricter setting of the server is not changed. PostgreSQL 17 is the
    first that can limit whole transactions; a limit that is running already has to end before another can begin."""
    return f"""
        SELECT
            extract(epoch FROM clock_timestamp())::float8,
            set_config('statement_timeout', '{int(STATEMENT_SECONDS * 1000)}', true),
            set_config('lock_timeout', '0', true),
            set_config('extra_float_digits', '1', true),
            set_config('idle_in_transaction_session_timeout', '{int(IDLE_SECONDS * 1000)}', true),
            CASE WHEN current_setting('server_version_num')::int >= 170000
            THEN set_config('transaction_timeout', '0', true)
                || set_config('transaction_timeout', '{int(TRANSACTION_SECONDS * 1000)}', true) END,
            CASE WHEN current_setting('synchronous_commit') IN ('on', 'remote_apply') THEN NULL
            ELSE set_config('synchronous_commit', 'on', true) END
    """


def _limit_waiting(connection: TimeoutConnection, *_: object) -> None:
    """After a transaction without limits, the next one has them again."""
    connection.waits_for_long = False


def _drop_session(context: ExceptionContext) -> None:
    """After any error the next transaction gets another session: this one may lead to the wrong server by now."""
    context.is_disconnect = True


@contextmanager
def _translated_errors(setting: str) -> Iterator[None]:
    """Turn every exception into JournalUnavailable, with a reason in our own words."""
    try:
        yield
    except ReceiverError:
        raise
    except (DBAPIError, psycopg.Error) as error:
        cause = reason(getattr(error, "orig", error)).replace("DATABASE_URL", setting)
        raise JournalUnavailable(f"the database of {setting} cannot be used now: {cause}") from None
    except Exception as error:
        log.exception("internal error in the journal")
        raise JournalUnavailable(f"internal error in the journal: {type(error).__name__}") from None
