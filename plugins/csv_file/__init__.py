"""The `csv` sink: events as rows of a CSV file (RFC 4180, UTF-8) that is only ever appended to."""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import logging
import os
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from difflib import get_close_matches
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo, available_timezones

from receiver import Event, Pause, collect_errors, flush_folder, hookimpl, make_folder

from .append_only import (
    BOM,
    AppendOnlyFile,
    begin,
    count_rows,
    ends_with_line,
    flush,
    has_header,
    is_begun,
    last_event_id,
    repair,
)
from .rows import Layout, Row

CLOCK_MARGIN = timedelta(days=1)
"""How far the clock can have been behind when an event was written, compared to when it was received."""

BRACES = re.compile(r"\{\w*\}")
DATE = re.compile(r"\d{4}-\d\d-\d\d")

LARGE_APPEND = 1 << 20
"""Bytes of the end of a file that can be from its last append, if nothing is known of it."""


@dataclass
class Csv:
    """Appends events to a CSV file: one row per reading, or one row per event.

    Rows are flushed to the disk before they count as delivered, and an event that is delivered again is not written
    again. A file is never rewritten: if it has other columns, it is not changed, and NAME-2.csv is used.

    path: the file; if it contains {date}, a new file is started each day.
    rows: "readings": one row per reading, and one with empty values for an event without readings; "events": one row
        per event.
    columns: which columns, in which order; event_id always comes first. Without any: all.
    label_columns: labels that get a column of their own, called label_NAME.
    bom: begin new files with a byte order mark, by which Excel recognizes UTF-8.
    labels: false: no column with all labels as JSON.
    delimiter: what separates the cells of a row.
    decimal: the decimal mark of numbers.
    timezone: in which times are written, and in which the days of {date} begin, as "Europe/Oslo".
    """

    path: Path
    rows: Literal["readings", "events"] = "readings"
    columns: list[str] | None = None
    label_columns: list[str] = field(default_factory=list)
    bom: bool = False
    labels: bool = True
    delimiter: Literal[",", ";", "\t"] = ","
    decimal: Literal[".", ","] = "."
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        errors: list[Exception] = []
        self._zone: tzinfo = UTC
        with collect_errors(errors):
            self._zone = zone_named(self.timezone)
        with collect_errors(errors):
            self._layout = Layout(
                self.rows,
                self.columns,
                self.label_columns,
                labels=self.labels,
                delimiter=self.delimiter,
                decimal=self.decimal,
                zone=self._zone,
            )
        if errors:
            raise ExceptionGroup("invalid options", errors)
        self._headers = (self._layout.header, BOM + self._layout.header)
        self._base: Path | None = None
        self._file: AppendOnlyFile | None = None
        self._lock_file: int | None = None
        self._writing = threading.Lock()
        self._unwritten: set[str] = set()
        """Events of which an attempt has written nothing, as is known."""
        self._left: set[str] = set()
        """Events of which a failed append may have left rows that could not be removed."""
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
                if (attempt > 1 and event.id not in self._unwritten) or event.id in self._left
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
                try:
                    file.append(self._layout.encode(rows))
                except BaseException:
                    if not file.ends_with_last_append():
                        self._left |= unique.keys()
                    raise
            self._unwritten -= unique.keys()
            self._left -= unique.keys()

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

    @hookimpl
    def find_problems(self, others: Sequence[Csv]) -> list[str]:
        problems = [
            f"path {self.path} contains {name}; only {{date}} is replaced"
            for name in dict.fromkeys(BRACES.findall(str(self.path)))
            if name != "{date}"
        ]
        today = self._path_of(datetime.now(UTC).date())
        if os.path.exists(today) and not os.path.isfile(today):
            kind = "a folder" if os.path.isdir(today) else "a device or a pipe"
            problems.append(f"path {self.path} is {kind}; it must be a file")
        if any(os.path.realpath(other.path) == os.path.realpath(self.path) for other in others):
            problems.append(f"path {self.path} is also that of another sink; give each sink a path of its own")
        return problems

    def _missing_rows(self, event: Event, found: int) -> list[Row]:
        """The rows of an event of which `found` are in the files; a crash can have left only its first ones there."""
        rows = self._layout.rows(event)
        return rows[found % len(rows) or len(rows) :] if found else rows

    def _current_file(self) -> AppendOnlyFile:
        """The file of today; opened again when the day has changed, or when the file was moved away or modified."""
        base = self._path_of(self._today())
        if self._file is None or self._base != base or not self._file.is_in_place():
            if (file := self._file) is not None:
                self._file = None
                file.close()
            self._file, self._base = self._open_file(base), base
        return self._file

    def _open_file(self, base: Path) -> AppendOnlyFile:
        """The first of NAME.csv, NAME-2.csv, … that is new or has our columns."""
        make_folder(base.parent)
        for path in numbered(base):
            if path.exists() and not path.is_file():
                raise OSError(f"{path} is not a regular file")
            if is_begun(path, self._headers):
                with suppress(OSError):  # whoever began it may have been killed before that
                    flush_folder(path.resolve().parent)
            else:
                begin(path, self._headers[self.bom])
            if has_header(path, self._headers):
                self._repair(path, path.stat().st_size)
                self._write_lock_file(str(path), path.stat().st_size)
                return AppendOnlyFile(path)
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
        for path in self._files(since.astimezone(self._zone).date()):
            if counts := count_rows(path, set(readings)):
                flush(path)  # whoever wrote them may have been killed, or have failed, before that
            if has_header(path, self._headers):
                found += counts
            else:
                last = last_event_id(path)
                complete |= {name for name, count in counts.items() if name != last or count % readings[name] == 0}
        return found, complete

    def _files(self, first: date = date.min) -> Iterator[Path]:
        """All files from this day on, also from days that are yet to come: the clock may have been ahead."""
        for base in self._bases(first):
            for path in numbered(base):
                if path.is_file():
                    yield path
                elif path != base:
                    break

    def _bases(self, first: date = date.min) -> list[Path]:
        """NAME.csv of today and of each other day from this one on of which there are files, without its numbers."""
        today = self._today()
        days = {today}
        if "{date}" in str(self.path):
            form = Path(glob.escape(str(self.path)).replace("{date}", "????-??-??"))
            for path in glob.iglob(str(form.with_name(f"{form.stem}*{form.suffix}"))):
                for found in DATE.findall(path):
                    with suppress(ValueError):
                        days.add(date.fromisoformat(found))
        return list(dict.fromkeys(self._path_of(day) for day in sorted(days) if day >= first or day == today))

    def _today(self) -> date:
        return datetime.now(self._zone).date()

    def _path_of(self, day: date) -> Path:
        return Path(str(self.path).replace("{date}", day.isoformat()))

    def _lock(self) -> None:
        """Become the only writer of the files, and repair them. Raises Pause while another sink or process is it."""
        if self._lock_file is not None:
            return
        path = Path(f"{str(self.path).replace('{date}', 'date')}.lock")
        make_folder(path.parent)
        lock_file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._repair_all(os.pread(lock_file, 1 << 16, 0))
        except BlockingIOError:
            owner, *_ = os.pread(lock_file, 200, 0).decode("utf-8", "replace").splitlines() or [""]
            os.close(lock_file)
            raise Pause(f"{self.path} is in use by {described(owner)}") from None
        except BaseException:
            os.close(lock_file)
            raise
        self._lock_file = lock_file
        self._write_lock_file()
        flush_folder(path.parent)

    def _write_lock_file(self, *in_use: object) -> None:
        """Note who holds the lock, and which file it is about to append to from which offset on, before it does."""
        assert self._lock_file is not None
        lines = [f"process {os.getpid()} on {socket.gethostname()}", json.dumps(in_use), ""]
        content = "\n".join(lines).encode()
        os.pwrite(self._lock_file, content, 0)
        os.ftruncate(self._lock_file, len(content))
        os.fsync(self._lock_file)

    def _repair_all(self, lock: bytes) -> None:
        """Repair the file that was in use when the sink last ran, and any other that ends within a line."""
        own = [path for path in self._bases() if path.is_file()]  # one with a number can be that of another sink
        in_use, flushed = file_in_use(lock)
        if in_use not in set(self._files()):
            in_use = max(own, key=lambda path: path.stat().st_mtime_ns, default=None)
            flushed = in_use.stat().st_size - LARGE_APPEND if in_use else 0
        if in_use:
            with self._unless_forbidden(in_use):
                self._repair(in_use, flushed)
        for path in own:
            with self._unless_forbidden(path):
                if path != in_use and not ends_with_line(path):
                    self._repair(path, path.stat().st_size - LARGE_APPEND)

    @contextmanager
    def _unless_forbidden(self, path: Path) -> Iterator[None]:
        """Leave a file as it is that must not be changed, as one that was archived."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            self._logger.warning("%s cannot be repaired: %s", path, error.strerror)

    def _repair(self, path: Path, flushed: int) -> None:
        if torn := repair(path, flushed):
            self._logger.warning("the incomplete last row of %s was moved to %s", path, torn)


@hookimpl
def register_sinks(register: Callable[[str, type], None]) -> None:
    register("csv", Csv)


def zone_named(name: str) -> tzinfo:
    """Raises ValueError for a time zone that this machine does not know."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        if not (known := available_timezones()):
            raise ValueError(f"timezone {name!r}: this machine knows none; install its package tzdata") from None
        nearest = get_close_matches(name, sorted(known), 1, 0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "names are as in 'Europe/Oslo'"
        raise ValueError(f"timezone {name!r} is not known; {hint}") from None


def numbered(base: Path) -> Iterator[Path]:
    """NAME.csv, NAME-2.csv, NAME-3.csv, …"""
    yield base
    number = 2
    while True:
        yield base.with_name(f"{base.stem}-{number}{base.suffix}")
        number += 1


def file_in_use(lock: bytes) -> tuple[Path | None, int]:
    """The file of the last opening, and its size then, from what its owner wrote into the lock file."""
    try:
        path, flushed = json.loads(lock.split(b"\n")[1])
        return Path(path), int(flushed)
    except (IndexError, TypeError, ValueError):
        return None, 0


def described(owner: str) -> str:
    """Who holds the lock, from what its owner wrote into the file."""
    if owner.startswith(f"process {os.getpid()} "):
        return "another sink of this receiver; give each sink a path of its own"
    return owner or "another process"
