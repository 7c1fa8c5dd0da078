"""Files of the `csv` sink: they grow by whole appends, and what a power cut has left of one that was cut short is
moved away when the sink is opened."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from receiver import flush_folder

BOM = b"\xef\xbb\xbf"
FIRST_CELL = re.compile(rb"(?:" + BOM + rb")?([A-Za-z0-9_-]+)[,;\t\r]")
"""The event id in a line, whatever the delimiter; none in a line that no sink has written."""

BLOCK = 1 << 20


class AppendOnlyFile:
    """A file that grows by whole appends: each is on the disk in full, or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size

    def append(self, data: bytes) -> None:
        """Write all of `data` and flush it to the disk, or leave the file as it was and raise OSError."""
        try:
            write_and_flush(self._fd, data)
        except BaseException:
            os.ftruncate(self._fd, self.size)
            raise
        self.size += len(data)

    def ends_with_last_append(self) -> bool:
        """Whether nothing is left of an append that failed."""
        return os.fstat(self._fd).st_size == self.size

    def is_in_place(self) -> bool:
        """Whether the path still leads to this file, and no other program has written to it or truncated it."""
        try:
            found = os.fstat(self._fd)
            return os.path.samestat(found, os.stat(self.path)) and found.st_size == self.size
        except FileNotFoundError:
            return False

    def close(self) -> None:
        os.close(self._fd)


def begin(path: Path, header: bytes) -> None:
    """Create a file with this header, or with nothing of it: its name is given to it when the header is on the disk."""
    path = path.resolve()  # a symbolic link to the file stays one
    new = path.with_name(f"{path.name}.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        write_and_flush(fd, header)
        if path.exists():
            shutil.copymode(path, new)
        os.replace(new, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(new)
        raise
    finally:
        os.close(fd)
    flush_folder(path.parent)


def is_begun(path: Path, headers: Sequence[bytes]) -> bool:
    """Whether there is a file with more than a part of one of these headers. Zeros are what a power cut can leave in
    place of data."""
    try:
        with path.open("rb") as file:
            start = file.read(max(map(len, headers)))
            rest_is_zeros = not any(block.strip(b"\0") for block in iter(lambda: file.read(BLOCK), b""))
    except FileNotFoundError:
        return False
    return not (rest_is_zeros and any(is_part(start, header) for header in headers))


def is_part(start: bytes, header: bytes) -> bool:
    """Whether these bytes are a header of which some are missing or zero."""
    if start.startswith(header):
        return False
    return all(byte in (0, right) for byte, right in zip(start, header.ljust(len(start), b"\0"), strict=False))


def has_header(path: Path, headers: Sequence[bytes]) -> bool:
    """Whether a file begins with one of these headers."""
    with path.open("rb") as file:
        return file.read(max(map(len, headers))).startswith(tuple(headers))


def ends_with_line(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read(1) in (b"", b"\n")


def repair(path: Path, flushed: int) -> Path | None:
    """Move what is incomplete at the end of a file to NAME.torn, and return that path; None if there is nothing.

    Up to the offset `flushed` all was on the disk before the last crash. Behind it a record with zeros shows that parts
    of the last append are missing, so it and all that follow are not complete. A file that is not a sink's is not
    changed.
    """
    if not is_of_a_sink(path):
        return None
    end = complete_length(path, flushed)
    if end == path.stat().st_size:
        return None
    with path.open("r+b") as file:
        file.seek(end)
        torn = path.with_name(f"{path.name}.torn")
        with torn.open("ab") as copy:
            copy.write(file.read() + b"\n")
            copy.flush()
            os.fsync(copy.fileno())
        flush_folder(path.parent)
        file.truncate(end)
        os.fsync(file.fileno())
    return torn


def is_of_a_sink(path: Path) -> bool:
    """Whether the first record is complete and a header as the sink writes it."""
    first = next(records(path), None)
    return first is not None and not first.has_zeros and first.event_id == b"event_id"


def complete_length(path: Path, flushed: int) -> int:
    """The length of a file up to its first record that is not complete."""
    end = 0
    for record in records(path):
        if record.has_zeros and record.end > flushed:
            break
        end = record.end
    return end


def count_rows(path: Path, event_ids: set[str]) -> Counter[str]:
    """How many complete rows of each of these events a file has."""
    wanted = {event_id.encode() for event_id in event_ids}
    return Counter(row.event_id.decode() for row in rows(path) if row.event_id in wanted and not row.has_zeros)


def last_event_id(path: Path) -> str:
    """The event id in the last row of a file."""
    last = b""
    for row in rows(path):
        last = row.event_id
    return last.decode("utf-8", "replace")


class Record(NamedTuple):
    """The event id of a record, the offset of its end, and whether there are zeros in it, which no row has."""

    event_id: bytes
    end: int
    has_zeros: bool


def rows(path: Path) -> Iterator[Record]:
    """All records but the header."""
    found = records(path)
    next(found, None)
    return found


def records(path: Path) -> Iterator[Record]:
    """All records that have an end. A quoted cell can contain line ends."""
    first, quotes, end, has_zeros = b"", 0, 0, False
    with path.open("rb") as file:
        for line in file:
            first = first or line
            quotes += line.count(b'"')
            end += len(line)
            has_zeros = has_zeros or b"\0" in line
            if quotes % 2 == 0 and line.endswith(b"\r\n"):
                cell = FIRST_CELL.match(first)
                yield Record(cell[1] if cell else b"", end, has_zeros)
                first, has_zeros = b"", False


def flush(path: Path) -> None:
    """Wait until what any process has written to a file is on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        flush_data(fd)
    finally:
        os.close(fd)


def write_and_flush(fd: int, data: bytes) -> None:
    """Write all of `data`, and wait until it is on the disk."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
    flush_data(fd)


def flush_data(fd: int) -> None:
    """Wait until the data of an open file is on the disk; macOS has no fdatasync."""
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(fd)
