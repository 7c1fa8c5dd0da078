"""A clock that jumps, for a program in C: a library that is preloaded into it."""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")


class Clock:
    """The clock of programs that are started with `environment`. Raises RuntimeError where it cannot be compiled."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="receiver-clock-"))
        self._folder.chmod(0o755)  # PostgreSQL runs as another user
        self._shift = self._folder / "shift"
        self._shift.write_bytes(bytes(8))
        library = self._folder / "clock.so"
        command = ["cc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(library), str(SOURCE)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            self.close()
            raise RuntimeError(f"no C compiler that is called cc: {error}") from None
        self.environment = {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(self._shift)}

    def shift(self, seconds: float) -> None:
        """Set it this far ahead of the real time."""
        with self._shift.open("r+b") as file:
            file.write(struct.pack("q", round(seconds * 1e9)))

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
