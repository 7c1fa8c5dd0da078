"""The folder of the counters that the processes of intake share: memory-mapped files, in memory where possible."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from receiver.errors import ReceiverError

log = logging.getLogger(__name__)

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the folder of the counters to prometheus_client."""

MEMORY = Path("/dev/shm")
"""A full disk under a memory-mapped file would cause a fatal signal."""

COUNTERS_BYTES = 16 * 1024 * 1024
"""Enough for the counters of all intake processes."""

FILE_BYTES = 32 * 1024
"""Room for all counters of a process in a file; what is written beyond it would not be reserved."""

PREFIX = "receiver-counters-"


@contextmanager
def counters_folder(data: Path) -> Iterator[Path]:
    """A new folder in memory, else in `data` if that exists and is writable, else where temporary files are.

    It is removed at the end. A lock on it says that it is in use, until the last process that inherits the lock has
    ended. What receivers that were killed have left is removed first. Raises ReceiverError.
    """
    try:
        parent = memory_folder() or (data if os.access(data, os.W_OK) else Path(tempfile.gettempdir()))
        for folder in parent.glob(f"{PREFIX}*"):
            _remove_unused(folder)
        folder, lock = _create(parent)
    except OSError as error:
        remedy = f"let this user write to {MEMORY}, {data} or a folder for temporary files"
        raise ReceiverError(f"there is no place for counters ({error.strerror}); {remedy}") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def restore_folder() -> None:
    """Create the folder again if it was removed: a logout may remove what its user has in memory (`RemoveIPC`).

    It is locked like the first one, until the last process that inherits the lock has ended.
    """
    folder = Path(os.environ[FOLDER])
    folder.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # it was not removed, or was created again before
        os.close(lock)


def reserve_files() -> None:
    """Reserve the room for the counters of this process, before prometheus_client maps their files into memory.

    It would only set their size, and where there is no room left, writing to them is a fatal signal; and before that
    they would be empty, which other processes cannot read. Without room the process counts for itself alone.
    """
    folder = Path(os.environ[FOLDER])
    try:
        for kind in ("counter", "histogram"):
            _reserve(folder / f"{kind}_{os.getpid()}.db")
    except OSError as error:
        log.warning("%s: %s; /metrics shows the pushes of one process at a time", folder, error.strerror)
        del os.environ[FOLDER]


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


def _reserve(file: Path) -> None:
    if file.exists():  # of a process that had the same id
        return
    reserved = file.with_suffix(".new")
    try:
        reserved.write_bytes(bytes(FILE_BYTES))
        reserved.rename(file)
    except OSError:
        reserved.unlink(missing_ok=True)
        raise


def _remove_unused(folder: Path) -> None:
    with suppress(OSError):  # in use, or of another user
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
