"""Every change that the receiver's processes made to the files below one folder, in one order."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path

SOURCE = Path(__file__).with_name("recorder.c")
LOG_BYTES = 1 << 30
"""The log is a sparse file, so it uses no more space than its content."""

LOG_START = 4096
RECORD = struct.Struct("=IIQQQ")
END = struct.Struct("=Q")
NOT_RECORDED = "-shm"
"""The suffix of SQLite's shared memory, which the first connection rebuilds."""


class Kind(IntEnum):
    """The kind of a record; the values are those of recorder.c."""

    CREATE = 1
    WRITE = 2
    TRUNCATE = 3
    FLUSH = 4
    FLUSH_FOLDER = 5
    RENAME = 6
    UNLINK = 7
    MAKE_FOLDER = 8


@dataclass(frozen=True, slots=True)
class Operation:
    """One change or flush of a file or folder. Paths are relative to the folder that is recorded.

    `offset` is where the data of a write begin, the new size for TRUNCATE, and for CREATE 1 if the file was emptied.
    `data` is the new path for RENAME. `end` is the position in the recording after it.
    """

    kind: Kind
    path: str
    inode: int
    offset: int
    data: bytes
    end: int


@dataclass(frozen=True)
class StoredFile:
    """A file that was on the disk before the recording began."""

    inode: int
    content: bytes


Files = Mapping[str, bytes | None]
"""The contents of files by path; None for a folder."""


@dataclass(frozen=True)
class Recording:
    """All operations on a disk, in order; `base` are the files on it before (None: a folder)."""

    base: Mapping[str, StoredFile | None]
    operations: Sequence[Operation]

    def without(self, is_left_out: Callable[[Operation], bool]) -> Recording:
        """A copy without some operations, as if the program had omitted them."""
        return replace(self, operations=[each for each in self.operations if not is_left_out(each)])


class Recorder:
    """The preloaded library, compiled, and a log; `environment` makes a program record itself.

    Raises RuntimeError where there is no C compiler.
    """

    def __init__(self, folder: Path, disk: Path) -> None:
        """Record what is below `disk`, which is a resolved path; library and log are in `folder`."""
        library = compile_library(folder)
        self._log = folder / "recording"
        with self._log.open("wb") as file:
            file.truncate(LOG_BYTES)
        with self._log.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), LOG_START)
        self._base = dict(stored_files(disk))
        self.environment = {
            "LD_PRELOAD": str(library),
            "POWER_CUT_FOLDER": str(disk),
            "POWER_CUT_LOG": str(self._log),
        }

    @property
    def position(self) -> int:
        """The end of the recording now; everything that a program has relied on so far is before it."""
        end: int = END.unpack_from(self._map)[0]
        return end

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which the programs change no file: one that is killed in it has recorded all its changes."""
        library, lock = ctypes.CDLL(None), ctypes.byref(ctypes.c_char.from_buffer(self._map, END.size))
        if library.pthread_mutex_lock(lock) == errno.EOWNERDEAD:
            library.pthread_mutex_consistent(lock)
        try:
            yield
        finally:
            library.pthread_mutex_unlock(lock)

    def finish(self) -> Recording:
        """The recording, once all its programs have ended. The log is deleted."""
        end = self.position
        with self._log.open("rb") as file:
            operations = list(parse(file.read(end)))
        self._map.close()
        self._log.unlink()
        return Recording(self._base, operations)


def compiler() -> str | None:
    """The C compiler of this machine."""
    return shutil.which("cc")


def compile_library(folder: Path) -> Path:
    found = compiler()
    if found is None:
        raise RuntimeError("power cuts are recorded by a library in C: install a C compiler that is called cc")
    library = folder / "recorder.so"
    command = [
        found,
        "-shared",
        "-fPIC",
        "-O2",
        "-Wall",
        "-Werror",
        "-pthread",
        "-o",
        str(library),
        str(SOURCE),
        "-ldl",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{found} cannot compile {SOURCE.name}:\n{done.stderr}")
    return library


def parse(log: bytes) -> Iterator[Operation]:
    position = LOG_START
    while position < len(log):
        kind, path_length, inode, offset, data_length = RECORD.unpack_from(log, position)
        start = position + RECORD.size
        position = start + path_length + data_length
        path = os.fsdecode(log[start : start + path_length])
        if not path.removesuffix(" (deleted)").endswith(NOT_RECORDED):
            yield Operation(Kind(kind), path, inode, offset, log[start + path_length : position], position)


def stored_files(disk: Path) -> Iterator[tuple[str, StoredFile | None]]:
    """All folders and regular files below a folder, by their relative path, folders first."""
    for path in sorted(disk.rglob("*")):
        status = path.lstat()
        name = path.relative_to(disk).as_posix()
        if stat.S_ISDIR(status.st_mode):
            yield name, None
        elif stat.S_ISREG(status.st_mode) and not name.endswith(NOT_RECORDED):
            yield name, StoredFile(status.st_ino, path.read_bytes())


def contents(disk: Path) -> Files:
    """The files that are below a folder now."""
    return {name: found.content if found else None for name, found in stored_files(disk)}
