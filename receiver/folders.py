"""Folders whose names survive a power cut (a file is lost with the name of any folder above it), and whether a path can
be written."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path


def why_not_writable(path: Path) -> str | None:
    """Why a file or folder of this name cannot be written or created, with the folder that prevents it; None if it can.

    Changes nothing. A folder that may be read-only for another user is judged for this one.
    """
    try:
        path.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            return f"{path} cannot be used: {error.strerror}"
    if path.is_symlink():
        path = path.resolve()
    found = next(each for each in (path, *path.parents) if os.path.lexists(each) or each == each.parent)
    if not found.exists():
        return f"{path} cannot be created: {found} is a symbolic link that leads nowhere"
    if found != path and not found.is_dir():
        return f"{path} cannot be created: {found} is not a folder"
    if not os.access(found, os.W_OK | (os.X_OK if found.is_dir() else 0)):
        return f"{path} cannot be {'written' if found == path else 'created'}: {found} is not writable"
    return None


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, and flush the name of each to the disk. Raises OSError.

    The name of a folder that exists is flushed, too, where that is possible: whoever created it may have been killed
    before that.
    """
    if folder.is_dir():
        with suppress(OSError):  # a parent that cannot be read, or whose file system cannot do that
            flush_folder(folder.parent)
        return
    if not folder.parent.is_file():
        make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    flush_folder(folder.parent)


def flush_folder(folder: Path) -> None:
    """Wait until the names of the files in a folder are on the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
