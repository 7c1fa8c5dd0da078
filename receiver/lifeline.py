"""The socket between the supervisor and each of its processes.

The child reports through it that it is alive, and the supervisor closes its end when the child should stop. The kernel
closes it for a supervisor that is killed, so no child outlives it.
"""

from __future__ import annotations

import signal
import socket
import types


def stop_signals() -> list[signal.Signals]:
    """The signals that ask a process to stop. A closed terminal sends SIGHUP; with nohup it is ignored."""
    ignores_hangup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGINT, *([] if ignores_hangup else [signal.SIGHUP])]


class Lifeline:
    """The child's end; without a socket, that of a process that has no supervisor."""

    def __init__(self, line: socket.socket | None = None) -> None:
        self._line = line
        self.stop_requested = False
        """One of the stop signals was received."""

    def catch_signals(self) -> None:
        """Turn stop signals into `stop_requested`."""
        for number in stop_signals():
            signal.signal(number, self._request_stop)

    def report_alive(self) -> None:
        """Report to the supervisor that this process is alive."""
        if self._line is not None:
            try:
                self._line.send(b".", socket.MSG_DONTWAIT)
            except OSError:
                return  # a full socket already holds enough reports, and `stopping` notices a closed one

    def supervisor_connected(self) -> bool:
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
        """Whether it is time to stop: on a signal, or when the supervisor is gone."""
        return self.stop_requested or (self._line is not None and not self.supervisor_connected())

    def _request_stop(self, number: int, frame: types.FrameType | None) -> None:
        self.stop_requested = True
