"""The supervisor: runs intake and the dispatcher as two processes, and keeps both running.

Neither takes the other down. Each is restarted when it dies, after a delay that grows while it keeps dying; a process
that reports nothing for too long is assumed to be blocked, and killed. On SIGTERM intake stops first, and the
dispatcher delivers what it accepted.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from receiver.errors import ReceiverError
from receiver.lifeline import Lifeline, stop_signals

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5
INITIAL_RESTART_SECONDS = 1.0
MAX_RESTART_SECONDS = 30.0
STABLE_SECONDS = 60.0
"""A process that ran for so long is restarted with the initial delay again."""

STOP_SECONDS = 20.0
"""How long a stop may take in all: Heroku sends SIGKILL after 30 s."""

SUSPENDED_SECONDS = 15.0
"""If the supervisor has not run for so long, the machine or the process was suspended."""

_fork = multiprocessing.get_context("fork")
Work = Callable[[Lifeline], None]


class Supervisor:
    """Runs children until SIGTERM, SIGINT or SIGHUP. With a listener, the first child is intake."""

    def __init__(self, children: list[Child], lifeline: Lifeline, listener: socket.socket | None = None) -> None:
        self._children = children
        self._lifeline = lifeline
        self._listener = listener
        self._signals: SimpleQueue[int] = SimpleQueue()  # the only queue that a signal handler may use
        self._signal: int | None = None

    def run(self) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it is ignored, no process learns how its children ended
        for number in stop_signals():
            signal.signal(number, self._request_stop)
        checked_at = time.monotonic()
        while not self._lifeline.stopping():
            now = time.monotonic()
            for child in self._children:
                if now - checked_at > SUSPENDED_SECONDS:
                    child.forgive_silence(now)
                child.check(now, self._children)
            checked_at = now
            if self._signalled(TICK_SECONDS):
                break
        self._stop()

    def _request_stop(self, number: int, frame: object) -> None:
        self._signals.put(number)

    def _signalled(self, seconds: float) -> bool:
        """Whether a stop was requested by a signal; waits for one, but no longer than `seconds`."""
        try:
            self._signal = self._signals.get(timeout=seconds)
        except Empty:
            return False
        return True

    def _stop(self) -> None:
        """Signal all children; when intake has ended, no more events come and the dispatcher can finish."""
        log.info("stopping%s", "" if self._signal is None else f" on {signal.Signals(self._signal).name}")
        end = time.monotonic() + STOP_SECONDS
        if self._listener is not None:
            self._listener.close()
        for child in self._children:
            child.signal(signal.SIGTERM)
        for child in self._children:
            child.close_lifeline()
            child.join(max(0.0, end - time.monotonic()))
            child.signal(signal.SIGKILL)


class Child:
    """A process that is restarted when it dies, and killed when it reports nothing for `silent_seconds`."""

    def __init__(self, name: str, work: Work, silent_seconds: float | None) -> None:
        self.name = name
        self._work = work
        self._silent_seconds = silent_seconds
        self._process: multiprocessing.process.BaseProcess | None = None
        self._socket: socket.socket | None = None
        self._started_at = self._reported_at = self._start_at = 0.0
        self._restart_seconds = INITIAL_RESTART_SECONDS

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def check(self, now: float, siblings: list[Child]) -> None:
        """Start it, notice that it has died, or kill it if it is silent for too long."""
        if self._process is None:
            if now >= self._start_at:
                self._start(now, siblings)
        elif not self._process.is_alive():
            self._schedule_restart(now)
        elif self._silent_seconds is not None:
            if self._reported_alive():
                self._reported_at = now
            if now - self._reported_at > self._silent_seconds:
                log.error("%s has been blocked for %.0f s and is killed", self.name, now - self._reported_at)
                self._process.kill()

    def forgive_silence(self, now: float) -> None:
        """Ignore its silence so far: the supervisor itself was suspended."""
        self._reported_at = now

    def signal(self, number: int) -> None:
        if self._process is not None and self._process.is_alive() and self._process.pid is not None:
            os.kill(self._process.pid, number)

    def join(self, seconds: float) -> None:
        """Wait until it has ended, but no longer than `seconds`."""
        if self._process is not None:
            self._process.join(seconds)

    def close_lifeline(self) -> None:
        """Let it know that it should finish."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _start(self, now: float, siblings: list[Child]) -> None:
        """Start it, or try again later: a machine without memory, processes or files left must not end its siblings."""
        try:
            self._start_process(siblings)
        except OSError as error:
            self._start_later(now, f"{self.name} cannot be started ({error.strerror}) and is started again")
        else:
            self._started_at = self._reported_at = now

    def _start_process(self, siblings: list[Child]) -> None:
        self._socket, child_end = socket.socketpair()
        self._socket.setblocking(False)
        supervisor_ends = [child._socket for child in siblings if child._socket is not None]
        sys.stdout.flush()
        process = _fork.Process(target=_run, args=(self._work, child_end, supervisor_ends), name=self.name)
        signals = stop_signals()
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # or one could reach the child while it has our handlers
        try:
            _check_fork()
            process.start()
            self._process = process
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            child_end.close()

    def _schedule_restart(self, now: float) -> None:
        assert self._process is not None
        self._process.join()
        if now - self._started_at > STABLE_SECONDS:
            self._restart_seconds = INITIAL_RESTART_SECONDS
        self._start_later(now, f"{self.name} died ({_exit_reason(self._process.exitcode)}) and is restarted")
        self._process = None

    def _start_later(self, now: float, what: str) -> None:
        log.error("%s in %.0f s", what, self._restart_seconds)
        self._start_at = now + self._restart_seconds
        self._restart_seconds = min(self._restart_seconds * 2, MAX_RESTART_SECONDS)
        self.close_lifeline()

    def _reported_alive(self) -> bool:
        try:
            return self._socket is not None and self._socket.recv(4096) != b""
        except OSError:
            return False


def _check_fork() -> None:
    """Raise OSError if no process can be started now: multiprocessing would leave open files behind, at each try."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _run(work: Work, child_end: socket.socket, supervisor_ends: list[socket.socket]) -> None:
    """Run a child, without the supervisor's signal handlers and its ends of the lifelines."""
    for number in stop_signals():
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stop_signals())
    for end in supervisor_ends:
        end.close()
    try:
        work(Lifeline(child_end))
    except ReceiverError as error:
        log.error("%s", error)
        sys.exit(1)
    except Exception:  # multiprocessing would print it without redaction
        log.exception("internal error")
        sys.exit(1)


def _exit_reason(code: int | None) -> str:
    if code is not None and code < 0:
        return next((each.name for each in signal.Signals if each == -code), f"signal {-code}")
    return f"exit code {code}"
