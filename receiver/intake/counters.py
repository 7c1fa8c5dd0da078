"""The folder of the counters that the processes of intake share: memory-mapped files, in memory where possible."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MEMORY = Path("/dev/shm")
"""A full disk under a memory-mapped file would cause a fatal signal."""

COUNTERS_BYTES = 16 * 1024 * 1024
"""Enough for the counters of all intake processes."""

PREFIX = "receiver-counters-"


@contextmanager
def counters_folder(data: Path) -> Iterator[Path]:
    """A new folder in memory, else in `data` if that exists and is writable, else where temporary files are.

    It is removed at the end. A lock on it says that it is in use, until the last process that inherits the lock has
    ended. What receivers that were killed have left is removed first.
    """
    parent = memory_folder() or (data if os.access(data, os.W_OK) else Path(tempfile.gettempdir()))
    for folder in parent.glob(f"{PREFIX}*"):
        _remove_unused(folder)
    folder, lock = _create(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def memory_folder() -> Path | None:
    """A folder in memory; None if there is none, or it is full."""
    try:
        found = os.statvfs(MEMORY)
    except OSError:
        return None
    has_room = found.f_bavail * found.f_frsize >= COUNTERS_BYTES
    return MEMORY if has_room and os.access(MEMORY, os.W_OK) else None


def _create(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        with suppress(FileNotFoundError):  # another receiver may take it for an unused one before it is locked
            lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _remove_unused(folder: Path) -> None:
    with suppress(OSError):  # in use, or of another user
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
