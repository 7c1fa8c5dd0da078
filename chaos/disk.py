"""A small disk of its own for a folder, which can be full. Only root may mount one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = 4 << 30
"""No more than a limit: it takes memory for what is on it."""


class Disk:
    """A file system in memory at `folder`. Raises RuntimeError where this user may not mount one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=755", "receiver-chaos", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            raise RuntimeError("only root may mount a small disk")

    @contextmanager
    def full(self) -> Iterator[int]:
        """A context in which no page is free; how many bytes are in use."""
        while not self._resize(used := self._used()):
            pass
        try:
            yield used
        finally:
            self._resize(SIZE)

    def _used(self) -> int:
        status = os.statvfs(self.folder)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def _resize(self, size: int) -> bool:
        """False if more is in use by now."""
        command = ["mount", "-o", f"remount,size={size}", str(self.folder)]
        return not subprocess.run(command, capture_output=True, check=False).returncode

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)
