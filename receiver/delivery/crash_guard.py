"""Notices what crashes or blocks the dispatcher again and again, and skips it."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager

from receiver.delivery.source_lines import line_that_raised
from receiver.errors import PluginError

MAX_CRASHES = 3
"""How many consecutive processes may end in the middle of the same thing: one or two may have had other causes."""

MEMORY_BYTES = 65536


class CrashGuard:
    """Names of what is in progress, in memory that a process shares with its successors after a crash.

    Create it in the supervisor, before the first fork.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, MEMORY_BYTES)

    @contextmanager
    def guard(self, name: str) -> Iterator[None]:
        """A context for code that may crash or block the process. Raises PluginError if it did too often.

        It also raises that in place of a KeyboardInterrupt, which would end the dispatcher at each start: there no
        signal raises it, only a plugin can.
        """
        unfinished = self._read()
        if unfinished.count(name) >= MAX_CRASHES:
            raise PluginError(
                f"crashed or blocked the dispatcher {MAX_CRASHES} times in a row; fix the plugin and restart"
            )
        self._write([*unfinished, name])
        try:
            yield
        except KeyboardInterrupt as error:
            raise PluginError(f"{line_that_raised(error)}KeyboardInterrupt") from None
        finally:
            self._write([other for other in unfinished if other != name])

    def _read(self) -> list[str]:
        return self._memory[:].rstrip(b"\0").decode("utf-8", "replace").splitlines()

    def _write(self, names: list[str]) -> None:
        text = "\n".join(names).encode("utf-8", "replace")[: len(self._memory)]
        self._memory[:] = text.ljust(len(self._memory), b"\0")
