"""SQLite as the journal's database: one file on a disk that lasts, for one machine.

Several processes write. SQLite's own waiting for a lock is unfair and slow, and some of its releases can corrupt a
write-ahead log that two processes write at once (before 3.51.3), so whoever writes takes one file lock first.
"""

from __future__ import annotations

import faulthandler
import fcntl
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, QueuePool, Table, create_engine, event
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError

from receiver.errors import JournalError, JournalUnavailable
from receiver.journal.contract import Arrival

LOCK_SECONDS = 2.0
"""How long to wait for another process of ours."""

BUSY_SECONDS = 0.5
"""How long to wait for a foreign program that holds the database."""

STUCK_SECONDS = 5.0
"""How long a dispatcher may hold the lock."""

POLL_SECONDS = 0.05
_MB = 1_000_000
LAST_EVENTS = "SELECT id FROM events ORDER BY key DESC LIMIT ?"


class SqliteDatabase:
    """Connections, transactions and limits of one SQLite file."""

    shared = False

    def __init__(self, path: Path, min_free_mb: int, max_size_mb: int | None) -> None:
        """Open or create the file. Raises JournalError with what to do when that cannot be."""
        self._min_free_mb = min_free_mb
        self._max_size_mb = max_size_mb
        self._wall_at_start = time.time() - time.monotonic()
        try:
            self._path = path = path.resolve()  # a link to the file must not lead to locks of its own
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path.with_name(path.name + ".lock"))
            self._dispatcher = FileLock(path.with_name(path.name + ".dispatcher"))
        except (OSError, ValueError, RuntimeError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise JournalError(f"journal {path}: {why}; make it writable or set another [journal] path") from None
        self._dispatches = False
        self._file: tuple[int, int] | None = None
        self._engine = self._connect("FULL")
        self._repeatable = self._connect("NORMAL")

    def insert(self, table: Table) -> Any:
        return sqlite.insert(table)

    def add_events(self, arrivals: Sequence[Arrival], connection: Connection | None = None) -> set[str]:
        """One statement, which is its own transaction: no other thread's work comes between while it is locked."""
        if connection is not None:
            return _insert(connection.connection.driver_connection, arrivals)
        with (
            _translated(self._path),
            closing(self._engine.raw_connection()) as pooled,
            self._lock.held(LOCK_SECONDS),
        ):
            self._check_place()
            return _insert(pooled.driver_connection, arrivals)

    def now(self) -> float:
        """Seconds since 1970 that never jump while this process runs."""
        return self._wall_at_start + time.monotonic()

    @contextmanager
    def write(self, *, lasting: bool = True) -> Iterator[Connection]:
        engine = self._engine if lasting else self._repeatable
        with _translated(self._path), self._lock.held(LOCK_SECONDS), engine.begin() as connection:
            self._check_place()
            yield connection

    def _check_place(self) -> None:
        """What is written to a file that was removed or replaced is lost when the last process closes it."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            raise JournalUnavailable(f"journal {self._path}: the file was removed; restart the receiver") from None
        self._file = self._file or (found.st_dev, found.st_ino)
        if self._file != (found.st_dev, found.st_ino):
            raise JournalUnavailable(f"journal {self._path}: the file was replaced; restart the receiver")

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with _translated(self._path), self._engine.connect() as connection:
            yield connection

    def check_room(self) -> None:
        """The file never shrinks, so the pages that retention has freed in it count as room."""
        with _translated(self._path):
            free = shutil.disk_usage(self._path.parent).free
        if free < self._min_free_mb * _MB and free + self._pages().free < self._min_free_mb * _MB:
            raise JournalUnavailable(
                f"only {free // _MB} MB free under {self._path}, [journal] min_free_mb is {self._min_free_mb}"
            )
        if self._max_size_mb is not None and (used := self._pages().used) > self._max_size_mb * _MB:
            raise JournalUnavailable(f"the journal has {used // _MB} MB, [journal] max_size_mb is {self._max_size_mb}")

    def become_dispatcher(self) -> None:
        """There can be only one."""
        if not self._dispatches and not self._dispatcher.acquire(LOCK_SECONDS):
            raise JournalUnavailable(f"another dispatcher works on {self._path}; stop it first")
        self._dispatches = True
        self._lock.exit_when_stuck()

    def lock_tables(self, connection: Connection) -> None:
        """Whoever writes is alone anyway."""

    def wait(self) -> None:
        time.sleep(POLL_SECONDS)

    def close(self) -> None:
        with self._lock.held(LOCK_SECONDS):
            self._engine.dispose()
            self._repeatable.dispose()
        self._dispatcher.close()
        self._lock.close()

    def _pages(self) -> Pages:
        with self.read() as connection:
            count, free, size = (
                connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("page_count", "freelist_count", "page_size")
            )
        return Pages(used=(count - free) * size, free=free * size)

    def _connect(self, synchronous: str) -> Engine:
        def connection() -> sqlite3.Connection:
            raw = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                raw.execute("PRAGMA journal_mode = WAL")
                raw.execute(f"PRAGMA synchronous = {synchronous}")
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
    """Bytes of the database file that are in use, and that are free to be filled again."""

    used: int
    free: int


class FileLock:
    """A lock between processes, and between the threads of each; freed by the system when its process ends."""

    def __init__(self, path: Path) -> None:
        self._threads = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._exits_when_stuck = False
        os.register_at_fork(after_in_child=self.close)  # what a plugin forks would hold the lock beyond our death

    def exit_when_stuck(self) -> None:
        """End this process when it holds the lock for too long: a plugin may keep the interpreter from its holder."""
        self._exits_when_stuck = True

    @contextmanager
    def held(self, seconds: float) -> Iterator[None]:
        """Hold the lock, waiting for it up to `seconds`. Raises JournalUnavailable."""
        if not self.acquire(seconds):
            raise JournalUnavailable("the journal is locked by another process")
        try:
            yield
        finally:
            self.release()

    def acquire(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        if not self._threads.acquire(timeout=seconds):
            return False
        if self._exits_when_stuck:  # armed before the lock is taken: the interpreter may be gone right after
            faulthandler.dump_traceback_later(seconds + STUCK_SECONDS, exit=True)
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > end:
                    self._disarm()
                    self._threads.release()
                    return False
                time.sleep(0.0005)
            except BaseException:
                self._disarm()
                self._threads.release()
                raise

    def release(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._disarm()
        self._threads.release()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _disarm(self) -> None:
        if self._exits_when_stuck:
            faulthandler.cancel_dump_traceback_later()


def _insert(connection: Any, arrivals: Sequence[Arrival]) -> set[str]:
    """Insert events through the driver; which ids were new. Those have the last keys, for nobody else writes now."""
    rows = ", ".join(["(?, ?, 0, ?)"] * len(arrivals))
    insert = f"INSERT INTO events (id, received_at, matched, body) VALUES {rows} ON CONFLICT DO NOTHING"
    values = [value for arrival in arrivals for value in (arrival.id, arrival.received_at, arrival.body)]
    added = connection.execute(insert, values).rowcount
    if added == len(arrivals):
        return {arrival.id for arrival in arrivals}
    return {row[0] for row in connection.execute(LAST_EVENTS, (added,))}


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Let no exception of the database out but JournalUnavailable; its text never holds a value from a row."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        raise JournalUnavailable(f"journal {path}: the database says: {getattr(error, 'orig', error)}") from None
    except OSError as error:
        raise JournalUnavailable(f"journal {path}: the disk says: {error.strerror}") from None
