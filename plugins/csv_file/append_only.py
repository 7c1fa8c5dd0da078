"""Files of the `csv` sink: they grow by whole appends, and what a crash cut short is repaired when they are opened."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


class AppendOnlyFile:
    """A file that grows by whole appends: each is on the disk in full, or not at all."""

    def __init__(self, path: Path, header: bytes) -> None:
        """Open or create `path`. An incomplete last record, left by a crash, is moved to the file `torn`."""
        self.path = path
        self.torn: Path | None = None
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            self._size = complete_length(path)
            self._move_torn_record()
            if self._size == 0:
                self.append(header)
                flush_folder(path.parent)
        except BaseException:
            self.close()
            raise

    def append(self, data: bytes) -> None:
        """Write all of `data` and flush it to the disk, or leave the file as it was and raise OSError."""
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            flush(self._fd)
        except BaseException:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)

    def is_in_place(self) -> bool:
        """Whether the path still leads to this file, and no other program has written to it or truncated it."""
        try:
            found = os.fstat(self._fd)
            return os.path.samestat(found, os.stat(self.path)) and found.st_size == self._size
        except FileNotFoundError:
            return False

    def close(self) -> None:
        os.close(self._fd)

    def _move_torn_record(self) -> None:
        size = os.fstat(self._fd).st_size
        if size == self._size:
            return
        self.torn = self.path.with_name(self.path.name + ".torn")
        with self.torn.open("ab") as torn:
            torn.write(os.pread(self._fd, size - self._size, self._size) + b"\n")
        os.ftruncate(self._fd, self._size)


def has_header(path: Path, header: bytes) -> bool:
    """Whether a file begins with this header, or holds nothing but an incomplete one."""
    with path.open("rb") as file:
        start = file.read(len(header))
    return start == header or (header.startswith(start) and path.stat().st_size == len(start))


def count_rows(path: Path, event_ids: set[str]) -> Counter[str]:
    """How many complete rows of each of these events a file has."""
    wanted = {event_id.encode() for event_id in event_ids}
    return Counter(found.decode() for first, _ in records(path) if (found := first_cell(first)) in wanted)


def last_event_id(path: Path) -> str:
    """The event id in the last complete row of a file."""
    last = b""
    for first, _ in records(path):
        last = first
    return first_cell(last).decode("utf-8", "replace")


def complete_length(path: Path) -> int:
    """The length of a file without an incomplete last record."""
    return max((end for _, end in records(path)), default=0)


def records(path: Path) -> Iterator[tuple[bytes, int]]:
    """The first line of each complete record, and the offset of its end. A quoted cell can contain line ends."""
    first, quotes, end = b"", 0, 0
    with path.open("rb") as file:
        for line in file:
            first = first or line
            quotes += line.count(b'"')
            end += len(line)
            if quotes % 2 == 0 and line.endswith(b"\r\n"):
                yield first, end
                first = b""


def first_cell(line: bytes) -> bytes:
    return line.partition(b",")[0].rstrip()


def flush(fd: int) -> None:
    """Wait until the data of a file is on the disk; macOS has no fdatasync."""
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(fd)


def flush_folder(folder: Path) -> None:
    """Make the name of a new file durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
