"""The line between the supervisor and a process it runs.

The child sends beats; that the supervisor's end is closed tells it that nothing more is to come. A supervisor that is
killed closes it too, so no child outlives it.
"""

from __future__ import annotations

import mmap
import signal
import socket
import types
from collections.abc import Iterator
from contextlib import contextmanager

from receiver.errors import PluginError

LIVES = 3
"""How many processes may end in the middle of the same thing before it is left alone."""


class Lifeline:
    """The child's end; without a socket, that of a process which runs by itself."""

    def __init__(self, line: socket.socket | None = None) -> None:
        self._line = line
        self.asked_to_stop = False
        """SIGTERM or SIGINT came."""

    def catch_signals(self) -> None:
        """Turn SIGTERM and SIGINT into `asked_to_stop`."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask_to_stop)

    def beat(self) -> None:
        """Tell the supervisor that this process is alive."""
        if self._line is not None:
            try:
                self._line.send(b".", socket.MSG_DONTWAIT)
            except OSError:
                return  # a full line has beats enough, and a closed one shows itself in `stopping`

    def more_may_come(self) -> bool:
        """Whether there is a supervisor that has not closed its end."""
        if self._line is None:
            return False
        try:
            return self._line.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def stopping(self) -> bool:
        """Whether it is time to stop: a signal came, or the supervisor is gone."""
        return self.asked_to_stop or (self._line is not None and not self.more_may_come())

    def _ask_to_stop(self, number: int, frame: types.FrameType | None) -> None:
        self.asked_to_stop = True


class Risks:
    """What a process does that may take it down, noted in memory that it shares with those started in its place."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 65536)

    @contextmanager
    def taking(self, name: str) -> Iterator[None]:
        """Do something with a plugin. Raises PluginError when too many processes in a row have not come to its end."""
        unfinished = self._read()
        if unfinished.count(name) >= LIVES:
            raise PluginError(f"{LIVES} processes in a row died or hung while it was loaded; mend it and restart")
        self._write([*unfinished, name])
        try:
            yield
        finally:
            self._write([other for other in unfinished if other != name])

    def _read(self) -> list[str]:
        return self._memory[:].rstrip(b"\0").decode("utf-8", "replace").splitlines()

    def _write(self, names: list[str]) -> None:
        text = "\n".join(names).encode("utf-8", "replace")[: len(self._memory)]
        self._memory[:] = text.ljust(len(self._memory), b"\0")
