"""The `csv` sink: events as rows of a CSV file (RFC 4180, UTF-8) that is only ever appended to."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Literal

from receiver import Event, Pause, hookimpl

from .append_only import AppendOnlyFile, count_rows, has_header, last_event_id
from .rows import Layout, Row

CLOCK_MARGIN = timedelta(hours=2)
"""How far the clock of the machine that received an event can be from that of the machine that wrote it."""


@dataclass
class Csv:
    """Appends events to a CSV file: one row per reading, or one row per event.

    Rows are flushed to the disk before they count as delivered, and an event that is delivered again is not written
    again. A file is never rewritten: if it has other columns, it is not changed, and NAME-2.csv is used.

    path: the file; if it contains {date}, a new file is started each day (UTC).
    rows: "readings": one row per reading, and one with empty values for an event without readings; "events": one row
        per event.
    columns: which columns, in which order; event_id always comes first. Default: all.
    label_columns: labels that get a column of their own, called label_NAME.
    """

    path: Path
    rows: Literal["readings", "events"] = "readings"
    columns: list[str] | None = None
    label_columns: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._layout = Layout(self.rows, self.columns, self.label_columns)
        self._base: Path | None = None
        self._file: AppendOnlyFile | None = None
        self._lock_file: int | None = None
        self._writing = threading.Lock()
        self._unwritten: set[str] = set()
        self._logger = logging.getLogger(__name__)

    @hookimpl
    def open(self, logger: logging.Logger) -> None:
        self._logger = logger
        if self.path.is_dir():
            raise IsADirectoryError(f"path {self.path} is a folder; it must be a file")
        self._lock()

    @hookimpl
    def deliver_batch(self, events: Sequence[Event], attempts: Sequence[int]) -> None:
        """Append the rows of all events, or of none; raises OSError if they cannot be written to the disk."""
        with self._writing:
            perhaps_written = {
                event.id
                for event, attempt in zip(events, attempts, strict=True)
                if attempt > 1 and event.id not in self._unwritten
            }
            self._unwritten |= {event.id for event in events} - perhaps_written
            self._lock()
            file = self._current_file()
            unique = {event.id: event for event in events}
            found, complete = self._written([event for event in unique.values() if event.id in perhaps_written])
            rows = [
                row
                for event in unique.values()
                if event.id not in complete
                for row in self._missing_rows(event, found[event.id])
            ]
            if rows:
                file.append(self._layout.encode(rows))
            self._unwritten -= unique.keys()

    @hookimpl
    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._lock_file is not None:
            os.close(self._lock_file)
        self._file = self._lock_file = None

    @hookimpl
    def local_path(self) -> Path:
        return self.path

    def _missing_rows(self, event: Event, found: int) -> list[Row]:
        """The rows of an event of which `found` are in the files; a crash can have left only its first ones there."""
        rows = self._layout.rows(event)
        return rows[found % len(rows) or len(rows) :] if found else rows

    def _current_file(self) -> AppendOnlyFile:
        """The file of today; opened again when the day has changed, or when the file was moved away or modified."""
        base = self._path_of(datetime.now(UTC).date())
        if self._file is None or self._base != base or not self._file.is_in_place():
            if (file := self._file) is not None:
                self._file = None
                file.close()
            self._file, self._base = self._open_file(base), base
        return self._file

    def _open_file(self, base: Path) -> AppendOnlyFile:
        """The first of NAME.csv, NAME-2.csv, … that is new or has our columns."""
        base.parent.mkdir(parents=True, exist_ok=True)
        for path in numbered(base):
            if not path.exists() or has_header(path, self._layout.header):
                file = AppendOnlyFile(path, self._layout.header)
                if file.torn:
                    self._logger.warning("the incomplete last row of %s was moved to %s", path, file.torn)
                return file
            self._logger.warning("%s has other columns than configured; it is not changed", path)
        raise AssertionError("the numbers never end")

    def _written(self, events: Sequence[Event]) -> tuple[Counter[str], set[str]]:
        """What an attempt without a record has written of these events: the number of rows by event id, and the ids
        of events that are complete in a file with other columns. The last event in such a file can be incomplete."""
        if not events:
            return Counter(), set()
        readings = {event.id: len(event.readings()) or 1 for event in events}
        since = min(event.received_at for event in events) - CLOCK_MARGIN
        found: Counter[str] = Counter()
        complete: set[str] = set()
        for path in self._files_since(since.date()):
            counts = count_rows(path, set(readings))
            if has_header(path, self._layout.header):
                found += counts
            else:
                last = last_event_id(path)
                complete |= {name for name, count in counts.items() if name != last or count % readings[name] == 0}
        return found, complete

    def _files_since(self, first: date) -> Iterator[Path]:
        today = datetime.now(UTC).date()
        days = (today - timedelta(days=back) for back in range(max(0, (today - first).days) + 1))
        for base in dict.fromkeys(self._path_of(day) for day in days):
            for path in numbered(base):
                if path.exists():
                    yield path
                elif path != base:
                    break

    def _path_of(self, day: date) -> Path:
        return Path(str(self.path).replace("{date}", day.isoformat()))

    def _lock(self) -> None:
        """Become the only writer of the file. Raises Pause while another sink or process is it."""
        if self._lock_file is not None:
            return
        path = Path(f"{str(self.path).replace('{date}', 'date')}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        lock_file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(lock_file, 200, 0).decode("utf-8", "replace").strip()
            os.close(lock_file)
            raise Pause(f"{self.path} is in use by {described(owner)}") from None
        except OSError:
            os.close(lock_file)
            raise
        self._lock_file = lock_file
        os.ftruncate(lock_file, 0)
        os.pwrite(lock_file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


@hookimpl
def register_sinks(register: Callable[[str, type], None]) -> None:
    register("csv", Csv)


def numbered(base: Path) -> Iterator[Path]:
    """NAME.csv, NAME-2.csv, NAME-3.csv, …"""
    yield base
    number = 2
    while True:
        yield base.with_name(f"{base.stem}-{number}{base.suffix}")
        number += 1


def described(owner: str) -> str:
    """Who holds the lock, from what its owner wrote into the file."""
    if owner.startswith(f"process {os.getpid()} "):
        return "another sink of this receiver; give each sink a path of its own"
    return owner or "another process"
