"""The `csv` sink: events as rows of a CSV file (RFC 4180, UTF-8) that only ever grows."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import logging
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from receiver import Event, Pause, hookimpl

Row = dict[str, Any]

COMMON = ("event_id", "time", "device_id", "device_name", "project_id", "event_type")
COLUMNS = {
    "readings": (*COMMON, "quantity", "value", "unit", "text", "labels"),
    "events": (*COMMON, "received_at", "labels", "data"),
}
FORMULA = ("=", "+", "-", "@", "\t", "\r")
CLOCK_MARGIN = timedelta(hours=2)
"""How far the clocks of what received an event and of what wrote it may be apart."""


@dataclass
class Csv:
    """Appends events to a CSV file: one row a reading, or one row an event.

    Rows are flushed to the disk before they count as delivered, and an event that is delivered again is not written
    again. A file is never rewritten: one with other columns is left alone and another begun beside it.

    path: the file; with {date} in it, each day (UTC) starts a new one.
    rows: "readings" gives one row a reading, and one with empty values to an event without any; "events" one an event.
    columns: which columns, in which order; event_id always comes first.
    label_columns: labels that get a column of their own, called label_NAME.
    """

    path: Path
    rows: Literal["readings", "events"] = "readings"
    columns: list[str] | None = None
    label_columns: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        known = (*COLUMNS[self.rows], *(f"label_{label}" for label in self.label_columns))
        unknown = [column for column in self.columns or () if column not in known]
        if unknown:
            raise ValueError(f"no column {unknown[0]!r}; there are: {', '.join(known)}")
        chosen = known if self.columns is None else ("event_id", *self.columns)
        self._columns = tuple(dict.fromkeys(chosen))
        self._file: AppendOnly | None = None
        self._lock: int | None = None
        self._one_at_a_time = threading.Lock()
        self._unwritten: set[str] = set()
        self._logger = logging.getLogger(__name__)

    @hookimpl
    def open(self, logger: logging.Logger) -> None:
        self._logger = logger
        if self.path.is_dir():
            raise IsADirectoryError(f"path {self.path} is a folder; name a file in it")
        self._take_lock()

    @hookimpl
    def deliver_batch(self, events: Sequence[Event], attempts: Sequence[int]) -> None:
        """Append the rows of all events, or of none; raises OSError when the disk does not take them."""
        with self._one_at_a_time:
            again = {
                event.id
                for event, attempt in zip(events, attempts, strict=True)
                if attempt > 1 and event.id not in self._unwritten
            }
            self._unwritten |= {event.id for event in events} - again
            self._take_lock()
            file = self._current_file()
            unique = {event.id: event for event in events}
            found, whole = self._written([event for event in unique.values() if event.id in again])
            rows = [
                row
                for event in unique.values()
                if event.id not in whole
                for row in self._missing(event, found[event.id])
            ]
            if rows:
                file.append(self._encode(rows))
            self._unwritten -= unique.keys()

    @hookimpl
    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._lock is not None:
            os.close(self._lock)
        self._file = self._lock = None

    def _missing(self, event: Event, found: int) -> list[Row]:
        """The rows of an event that do not stand in the files: a crash may have left the first few of them there."""
        rows = list(self._rows(event))
        return rows[found % len(rows) or len(rows) :] if found else rows

    def _rows(self, event: Event) -> Iterator[Row]:
        row: Row = {
            "event_id": event.id,
            "time": _stamp(event.occurred_at),
            "device_id": event.device_id,
            "device_name": event.labels.get("name"),
            "project_id": event.project_id,
            "event_type": event.type,
            "labels": json.dumps(dict(event.labels), ensure_ascii=False) if event.labels else "",
        }
        row |= {f"label_{label}": event.labels.get(label) for label in self.label_columns}
        if self.rows == "events":
            yield row | {
                "received_at": _stamp(event.received_at),
                "data": json.dumps(event.data, ensure_ascii=False),
            }
            return
        readings = event.readings()
        for reading in readings:
            yield row | {
                "time": _stamp(reading.time),
                "quantity": reading.quantity,
                "value": reading.value,
                "unit": reading.unit,
                "text": reading.text,
            }
        if not readings:
            yield row

    def _encode(self, rows: Iterable[Row]) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\r\n")
        writer.writerows([_cell(column, row.get(column)) for column in self._columns] for row in rows)
        return text.getvalue().encode()

    def _header(self) -> bytes:
        return self._encode([{column: column for column in self._columns}])

    def _current_file(self) -> AppendOnly:
        """The file of today, opened anew when the day has changed or somebody has moved the file away."""
        base = self._path_of(datetime.now(UTC).date())
        if self._file is None or self._file.base != base or not self._file.in_place():
            if (file := self._file) is not None:
                self._file = None
                file.close()
            self._file = self._open(base)
        return self._file

    def _open(self, base: Path) -> AppendOnly:
        """The first of NAME.csv, NAME-2.csv, … that is new or has our columns."""
        base.parent.mkdir(parents=True, exist_ok=True)
        header = self._header()
        for path in _siblings(base):
            if not path.exists() or _begins_with(path, header):
                file = AppendOnly(base, path, header)
                if file.torn:
                    self._logger.warning("a torn last line of %s was moved to %s", path, file.torn)
                return file
            self._logger.warning("%s has other columns than configured; it is left as it is", path)
        raise AssertionError("there is always one more sibling")

    def _written(self, again: Sequence[Event]) -> tuple[Counter[str], set[str]]:
        """How many rows of these events stand in the files already: delivered, or begun, but not
        recorded as such; and which stand whole in a file of another layout, where the last may be cut short."""
        if not again:
            return Counter(), set()
        assert self._file is not None
        wanted = {event.id.encode() for event in again}
        lengths = {event.id: len(event.readings()) or 1 for event in again}
        since = min(event.received_at for event in again) - CLOCK_MARGIN
        found: Counter[str] = Counter()
        whole: set[str] = set()
        for path in self._files_since(since.date()):
            rows = _ids(path, wanted)
            if _begins_with(path, self._header()):
                found += rows
            else:
                last = _last_id(path)
                whole |= {name for name, count in rows.items() if name != last or count % lengths[name] == 0}
        return found, whole

    def _files_since(self, first: date) -> Iterator[Path]:
        today = datetime.now(UTC).date()
        bases = dict.fromkeys(
            self._path_of(today - timedelta(days=back)) for back in range(max(0, (today - first).days) + 1)
        )
        for base in bases:
            for path in _siblings(base):
                if path.exists():
                    yield path
                elif path != base:
                    break

    def _path_of(self, day: date) -> Path:
        return Path(str(self.path).replace("{date}", day.isoformat()))

    def _take_lock(self) -> None:
        """Be the only writer; raises Pause while somebody else is."""
        if self._lock is not None:
            return
        path = Path(f"{str(self.path).replace('{date}', 'date')}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(lock, 200, 0).decode("utf-8", "replace").strip()
            os.close(lock)
            by = owner or "another process"
            if by.startswith(f"process {os.getpid()} "):
                by = "another sink of this receiver; give each a path of its own"
            raise Pause(f"{self.path} is being written by {by}") from None
        except OSError:
            os.close(lock)
            raise
        self._lock = lock
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


@hookimpl
def register_sinks(register: Callable[[str, type], None]) -> None:
    register("csv", Csv)


class AppendOnly:
    """A file that grows by whole appends: each stands on the disk in full, or not at all."""

    def __init__(self, base: Path, path: Path, header: bytes) -> None:
        """Open or begin `path`. A torn last line, left by a power cut, is moved to `torn`."""
        self.base = base
        self.path = path
        self.torn: Path | None = None
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            self._size = whole = _whole_length(path)
            size = os.fstat(self._fd).st_size
            if whole < size:
                self.torn = path.with_name(path.name + ".torn")
                with self.torn.open("ab") as torn:
                    torn.write(os.pread(self._fd, size - whole, whole) + b"\n")
                os.ftruncate(self._fd, whole)
            if whole == 0:
                self.append(header)
                _flush_folder(path.parent)
        except BaseException:
            self.close()
            raise

    def append(self, data: bytes) -> None:
        """Write all of `data` and flush it to the disk, or leave the file as it was and raise OSError."""
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(self._fd, left) :]
            _flush(self._fd)
        except BaseException:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)

    def in_place(self) -> bool:
        """Whether the path still leads to this file, and nobody else has written or cut it."""
        try:
            found = os.fstat(self._fd)
            return os.path.samestat(found, os.stat(self.path)) and found.st_size == self._size
        except FileNotFoundError:
            return False

    def close(self) -> None:
        os.close(self._fd)


def _flush(fd: int) -> None:
    """Wait until what was written stands on the disk; macOS has no fdatasync."""
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(fd)


def _stamp(time: datetime) -> str:
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _cell(column: str, value: Any) -> Any:
    """A cell; text that a spreadsheet would take for a formula is marked as text. Ids stay as they are."""
    if column != "event_id" and isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return value


def _siblings(base: Path) -> Iterator[Path]:
    yield base
    number = 2
    while True:
        yield base.with_name(f"{base.stem}-{number}{base.suffix}")
        number += 1


def _begins_with(path: Path, header: bytes) -> bool:
    """Whether a file has this header, or nothing but a torn part of it."""
    with path.open("rb") as file:
        start = file.read(len(header))
    return start == header or (header.startswith(start) and path.stat().st_size == len(start))


def _records(path: Path) -> Iterator[tuple[bytes, int]]:
    """The first line of each whole record, and where the record ends. A quoted cell may hold line ends."""
    first, quotes, end = b"", 0, 0
    with path.open("rb") as file:
        for line in file:
            first = first or line
            quotes += line.count(b'"')
            end += len(line)
            if quotes % 2 == 0 and line.endswith(b"\r\n"):
                yield first, end
                first = b""


def _whole_length(path: Path) -> int:
    """The length of a file without a torn last record."""
    return max((end for _, end in _records(path)), default=0)


def _ids(path: Path, wanted: set[bytes]) -> Counter[str]:
    names = (first.partition(b",")[0].rstrip() for first, _ in _records(path))
    return Counter(name.decode() for name in names if name in wanted)


def _last_id(path: Path) -> str:
    last = b""
    for first, _ in _records(path):
        last = first.partition(b",")[0].rstrip()
    return last.decode("utf-8", "replace")


def _flush_folder(folder: Path) -> None:
    """Make a new file's name survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
