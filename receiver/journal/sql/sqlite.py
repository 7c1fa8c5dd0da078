"""SQLite as the journal's database: one file on a persistent local disk, for one machine.

Several processes write. SQLite's own waiting for a lock is unfair and slow, and releases before 3.51.3 can corrupt the
write-ahead log when two processes write at once, so every writer takes a file lock first.
"""

from __future__ import annotations

import errno
import faulthandler
import fcntl
import json
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Engine,
    QueuePool,
    Table,
    create_engine,
    event,
    func,
    select,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError

from receiver.errors import JournalError, JournalUnavailable, ReceiverError
from receiver.folders import make_folder
from receiver.journal.contract import Arrival, Space
from receiver.journal.sql.database import storable
from receiver.journal.sql.fair_lock import FairLock
from receiver.journal.sql.sqlite_wakeup import Wakeup

log = logging.getLogger(__name__)

LOCK_SECONDS = 2.0
"""How long to wait for another process of the receiver."""

BUSY_SECONDS = 0.5
"""How long to wait for another program that has locked the database."""

STUCK_SECONDS = 5.0
"""How long a dispatcher may hold the lock before it is ended."""

POLL_SECONDS = 0.0005
"""How often a process looks whether the lock is free."""

LONG_SECONDS = 0.02
"""A process that has held the lock for longer gives way to others, which could hardly get it between two batches."""

GIVE_WAY_SECONDS = 0.002
"""Some times POLL_SECONDS, so that they look meanwhile."""

LOG_BYTES = 16_000_000
"""What stays of the write-ahead log when it begins anew: more than it usually has, so that it rarely grows again."""

STDERR = 2
"""The file descriptor: `sys.stderr` may have none."""

_MB = 1_000_000
INSERT_EVENT = (
    "INSERT INTO events (id, received_at, routed, body, origin) VALUES (?, ?, 0, ?, ?) ON CONFLICT (id) DO NOTHING"
)
LAST_EVENTS = "SELECT id FROM events ORDER BY key DESC LIMIT ?"


class SqliteDatabase:
    """Connections, transactions and limits of one SQLite file."""

    shared = False
    set_back_seconds = 0.0  # it never jumps

    def __init__(self, path: Path, min_free_mb: int, max_size_mb: int | None) -> None:
        """Open or create the file. Raises JournalError with what to do when it cannot be opened."""
        self._min_free_mb = min_free_mb
        self._max_size_mb = max_size_mb
        self._wall_at_start = time.time() - time.monotonic()
        try:
            self._path = path = path.resolve()  # a symbolic link to the file must lead to the same locks
            make_folder(path.parent)
            if not os.access(path, os.W_OK) and path.exists():  # SQLite opens it nevertheless, or does not say why not
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            self._lock = FileLock(path.with_name(path.name + ".lock"))
            self._dispatcher = FileLock(path.with_name(path.name + ".dispatcher"))
            self._wakeup = Wakeup(path.with_name(path.name + ".wakeup"))
        except (OSError, ValueError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise JournalError(f"journal {path}: {reason}; make it writable or set another [journal] path") from None
        self._dispatches = False
        self._file: tuple[int, int] | None = None
        self._engine = self._connect("FULL")
        self._not_durable = self._connect("NORMAL")

    def insert(self, table: Table) -> Any:
        return sqlite.insert(table)

    def insert_events(self, arrivals: Sequence[Arrival], connection: Connection | None = None) -> set[str]:
        """Without a connection, in a transaction of its own through the driver."""
        if connection is not None:
            return _insert(connection.connection.driver_connection, arrivals)
        with (
            _translated_errors(self._path),
            closing(self._engine.raw_connection()) as pooled,
            self._lock.held(LOCK_SECONDS),
        ):
            self._check_file()
            driver: Any = pooled.driver_connection
            with driver:
                driver.execute("BEGIN IMMEDIATE")
                new = _insert(driver, arrivals)
        self._wakeup.send()
        return new

    def storable(self, text: str) -> str:
        return storable(text)

    def now(self) -> float:
        """Seconds since 1970 that never jump while this process runs."""
        return self._wall_at_start + time.monotonic()

    @contextmanager
    def write(self, *, durable: bool = True, wakes: bool = False, by_index: bool = False) -> Iterator[Connection]:
        engine = self._engine if durable else self._not_durable
        with _translated_errors(self._path), self._lock.held(LOCK_SECONDS), engine.begin() as connection:
            self._check_file()
            yield connection
        if wakes:
            self._wakeup.send()

    def _check_file(self) -> None:
        """Fail if the file was removed or replaced: what is written to the old one is lost when it is closed."""
        try:
            found = self._identity()
        except FileNotFoundError:
            raise JournalUnavailable(f"journal {self._path}: the file was removed; restart the receiver") from None
        if self._file != found:
            raise JournalUnavailable(f"journal {self._path}: the file was replaced; restart the receiver")

    def _identity(self) -> tuple[int, int]:
        """Of the file that is at the path now."""
        found = os.stat(self._path)
        return found.st_dev, found.st_ino

    @contextmanager
    def read(self, *, by_index: bool = False) -> Iterator[Connection]:
        """Without statistics SQLite prefers an index that has the wanted order anyway."""
        with _translated_errors(self._path), self._engine.connect() as connection:
            yield connection

    def mentions(self, whole: ColumnElement[Any], part: Any) -> ColumnElement[bool]:
        return func.instr(whole, part) > 0

    def check_capacity(self) -> None:
        """The file never shrinks, so pages that retention has freed in it count as free space.

        The write-ahead log counts as well: it grows for as long as another program reads the journal.
        """
        free = self._free_disk()
        if free < self._min_free_mb * _MB and free + self._pages().free < self._min_free_mb * _MB:
            raise JournalUnavailable(
                f"only {free // _MB} MB of disk are free for {self._path}, "
                f"and [journal] min_free_mb is {self._min_free_mb}"
            )
        if self._max_size_mb is not None and self._size() > self._max_size_mb * _MB:
            self._write_log_back()
            if (size := self._size()) > self._max_size_mb * _MB:
                raise JournalUnavailable(
                    f"the journal has {size // _MB} MB, and [journal] max_size_mb is {self._max_size_mb}"
                )

    def space(self) -> Space:
        pages = self._pages()
        return Space(pages.used, self._free_disk() + pages.free)

    def may_dispatch(self) -> bool:
        if self._dispatches:
            return True
        if not self._dispatcher.acquire(0.0):
            return False
        self._dispatcher.release()
        return True

    def lock_dispatcher(self) -> None:
        """SQLite allows one dispatcher."""
        if self._dispatches:
            return
        if not self._dispatcher.acquire(LOCK_SECONDS):
            raise JournalUnavailable(f"another dispatcher uses {self._path}; stop it first")
        self._wakeup.listen()
        self._dispatches = True
        self._lock.exit_when_stuck()

    def lock_schema(self, connection: Connection) -> None:
        """Nothing to do: a writer is alone already."""

    def lock_tables(self, connection: Connection, tables: Sequence[Table]) -> None:
        """Nothing to do: a writer is alone already."""

    def lift_limits(self, connection: Connection) -> None:
        """Nothing to do: a transaction has none."""

    def among(self, column: Column[int], keys: Sequence[int]) -> ColumnElement[bool]:
        return column.in_(select(func.json_each(json.dumps(list(keys))).table_valued("value").c.value))

    def advance_keys(self, connection: Connection, column: Column[Any]) -> None:
        """Nothing to do: they always do."""

    def wait(self) -> bool:
        return self._wakeup.wait()

    def close(self) -> None:
        with self._lock.held(LOCK_SECONDS):
            self._engine.dispose()
            self._not_durable.dispose()
        self._wakeup.close()
        self._dispatcher.close()
        self._lock.close()

    def _free_disk(self) -> int:
        with _translated_errors(self._path):
            return shutil.disk_usage(self._path.parent).free

    def _pages(self) -> Pages:
        with self.read() as connection:
            count, free, size = (
                connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("page_count", "freelist_count", "page_size")
            )
        return Pages(used=(count - free) * size, free=free * size)

    def _size(self) -> int:
        """Bytes that the journal takes of the disk, without those that are free for reuse."""
        return self._pages().used + self._log_size()

    def _log_size(self) -> int:
        try:
            return self._path.with_name(f"{self._path.name}-wal").stat().st_size
        except FileNotFoundError:
            return 0

    def _write_log_back(self) -> None:
        """Empty the write-ahead log, unless another program is reading in it."""
        if self._log_size():
            with (
                _translated_errors(self._path),
                self._lock.held(LOCK_SECONDS),
                closing(sqlite3.connect(self._path, timeout=0)) as connection,
            ):
                self._check_file()
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _connect(self, synchronous: str) -> Engine:
        def connection() -> sqlite3.Connection:
            raw = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                raw.execute("PRAGMA journal_mode = WAL")
                raw.execute(f"PRAGMA synchronous = {synchronous}")
                raw.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
                self._file = self._file or self._identity()  # the first connection, which may read for a long time
            except BaseException:
                raw.close()
                raise
            return raw

        engine = create_engine("sqlite://", creator=connection, poolclass=QueuePool, pool_size=8, max_overflow=64)

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN")

        return engine


@dataclass(frozen=True)
class Pages:
    """Bytes of the database file that are in use, and that are free for reuse."""

    used: int
    free: int


class FileLock:
    """A lock between processes, and between the threads of each; the kernel frees it when the process ends."""

    def __init__(self, path: Path) -> None:
        self._threads = FairLock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._exits_when_stuck = False
        self._locked_at = 0.0
        os.register_at_fork(
            after_in_child=self.close
        )  # a child that a plugin forks would keep the lock after our death

    def exit_when_stuck(self) -> None:
        """End this process when it holds the lock for too long: a plugin may block the interpreter meanwhile."""
        self._exits_when_stuck = True

    @contextmanager
    def held(self, seconds: float) -> Iterator[None]:
        """Hold the lock after waiting up to `seconds` for it. Raises JournalUnavailable."""
        if not self.acquire(seconds):
            raise JournalUnavailable("the journal is locked by another process")
        try:
            yield
        finally:
            self.release()

    def acquire(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        if not self._threads.acquire(seconds):
            return False
        try:
            self._arm(seconds + STUCK_SECONDS)  # before it is acquired: the interpreter may be blocked right after
            while not self._try_lock():
                if time.monotonic() > end:
                    self._disarm()
                    self._threads.release()
                    return False
                time.sleep(POLL_SECONDS)
            self._locked_at = time.monotonic()
            return True
        except BaseException:
            self._disarm()
            self._threads.release()
            raise

    def release(self) -> None:
        was_long = time.monotonic() - self._locked_at > LONG_SECONDS
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._disarm()
        if was_long:
            time.sleep(GIVE_WAY_SECONDS)
        self._threads.release()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _arm(self, seconds: float) -> None:
        if self._exits_when_stuck:
            faulthandler.dump_traceback_later(seconds, exit=True, file=STDERR)

    def _disarm(self) -> None:
        if self._exits_when_stuck:
            faulthandler.cancel_dump_traceback_later()


def _insert(connection: Any, arrivals: Sequence[Arrival]) -> set[str]:
    """Insert events through the driver; the new ids. They have the last keys, since there is no other writer now.

    Row by row: the driver caches statements with their last values, so one for each number of rows would hold on to
    megabytes.
    """
    rows = [(arrival.id, arrival.received_at, arrival.body, arrival.origin.value) for arrival in arrivals]
    added = connection.executemany(INSERT_EVENT, rows).rowcount
    if added == len(arrivals):
        return {arrival.id for arrival in arrivals}
    return {row[0] for row in connection.execute(LAST_EVENTS, (added,))}


@contextmanager
def _translated_errors(path: Path) -> Iterator[None]:
    """Turn every exception into JournalUnavailable; its text never holds a value from a row."""
    try:
        yield
    except ReceiverError:
        raise
    except (DBAPIError, sqlite3.Error) as error:
        raise JournalUnavailable(f"journal {path}: SQLite reports: {getattr(error, 'orig', error)}") from None
    except OSError as error:
        raise JournalUnavailable(f"journal {path}: {error.strerror}") from None
    except Exception as error:
        log.exception("internal error in the journal")
        raise JournalUnavailable(f"internal error in the journal: {type(error).__name__}") from None
