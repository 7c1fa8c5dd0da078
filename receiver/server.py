"""The supervisor: runs intake and the dispatcher as two processes, and keeps both running.

Neither takes the other down. Each is restarted when it dies, after a pause that grows while it keeps dying; a
dispatcher that sends no beat is taken for stuck and killed. On SIGTERM intake stops first, and what it took is drained.
"""

from __future__ import annotations

import errno
import gc
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable

from receiver.errors import JournalUnavailable, ReceiverError
from receiver.lifeline import Lifeline, Risks
from receiver.settings import Settings

log = logging.getLogger(__name__)

TICK_SECONDS = 0.1
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
RAN_WELL_SECONDS = 60.0
SILENT_SECONDS = 30.0
STOP_SECONDS = 20.0
AWAY_SECONDS = 45.0

MEMORY = "/dev/shm"
"""Where counters are kept: in files mapped into memory, which a full disk would turn into a fatal signal."""

ROOM_BYTES = 16 * 1024 * 1024

BEHIND_INTAKE = 5
"""How much nicer the dispatcher is: while there are more pushes than processors can take, answers come first."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_fork = multiprocessing.get_context("fork")
Work = Callable[[Lifeline], None]


def serve(settings: Settings, lifeline: Lifeline | None = None) -> int:
    """Receive and deliver until SIGTERM or SIGINT, or until the other end of `lifeline` is gone; the exit code.

    Raises ReceiverError when it cannot start.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = counters = tempfile.mkdtemp(prefix="receiver-", dir=in_memory())
    try:
        prepare(settings)
        listener = listen(settings.receiver.host, settings.port)
        log.info("receiving on %s port %d", settings.receiver.host, settings.port)
        children = [Child("intake", lambda lifeline: receive(settings, listener, lifeline), silent_seconds=None)]
        if settings.receiver.deliver:
            children.append(dispatcher(settings, listener))
        Supervisor(children, lifeline or Lifeline(), listener).run()
        return 0
    finally:
        shutil.rmtree(counters, ignore_errors=True)


def deliver(settings: Settings) -> int:
    """Deliver until SIGTERM or SIGINT, without receiving; the exit code. Raises ReceiverError when it cannot start."""
    lifeline = Lifeline()
    lifeline.catch_signals()
    await_journal(settings, lifeline)
    log.info("delivering")
    Supervisor([dispatcher(settings)], lifeline).run()
    return 0


def dispatcher(settings: Settings, listener: socket.socket | None = None) -> Child:
    """The dispatcher as a child, the same holder of claims in each of its lives."""
    holder = uuid.uuid4().hex
    risks = Risks()

    def work(lifeline: Lifeline) -> None:
        if listener is not None:
            listener.close()  # or it would keep the port beyond the end of intake
            os.nice(BEHIND_INTAKE)
        dispatch(settings, lifeline, holder, risks)

    return Child("dispatcher", work, SILENT_SECONDS)


def dispatch(settings: Settings, lifeline: Lifeline, holder: str, risks: Risks) -> None:
    """Deliver until told to stop: the dispatcher as a process of its own. A later one has the same holder and risks."""
    from receiver.dispatcher import Dispatcher
    from receiver.journal import open_journal
    from receiver.plugins import build_all, load_plugins

    lifeline.catch_signals()
    await_journal(settings, lifeline)
    plugins = load_plugins(settings, risks.taking)
    sinks, faulty = build_all(plugins, settings, risks.taking)
    dispatcher = Dispatcher(
        open_journal(settings, holder),
        settings.enabled_sinks,
        sinks,
        faulty,
        disabled=[sink for sink in settings.sinks if not sink.common.enabled],
        listeners=plugins.hooks,
        retention_seconds=settings.journal.retention_days * 86400,
        redact=settings.redact,
    )
    dispatcher.run(lifeline)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)  # threads whose call does not come back would keep the process


def receive(settings: Settings, listener: socket.socket, lifeline: Lifeline) -> None:
    """Take pushes until told to stop: gunicorn as a process of its own."""
    from receiver import intake

    intake.run(settings, listener, lifeline)


def prepare(settings: Settings) -> None:
    """Find out now what would keep intake from working; what is imported here is shared by all processes."""
    from receiver.journal import left_behind

    os.environ["WEB_CONCURRENCY"] = str(settings.workers)  # gunicorn reads it when it is imported, and fails when empty
    import receiver.intake  # noqa: F401  # forked processes share its memory and start at once

    for warning in [*settings.weak(), *settings.at_risk(), *left_behind(settings)]:
        log.warning("%s", warning)
    await_journal(settings)
    gc.freeze()  # or each process would get a copy of its own when its garbage collector looks at what is shared


def await_journal(settings: Settings, lifeline: Lifeline | None = None) -> None:
    """Make the journal's tables. A database that is away may come back; whoever exits waits long for its next start."""
    from receiver.journal import open_journal

    end = time.monotonic() + AWAY_SECONDS
    while True:
        try:
            return open_journal(settings).close()
        except JournalUnavailable as error:
            if settings.database_url is None or time.monotonic() > end or (lifeline and lifeline.stopping()):
                raise
            if lifeline:
                lifeline.beat()
            log.error("the start waits for the journal: %s", error)
            time.sleep(FIRST_PAUSE_SECONDS)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket that outlives restarts of intake. Raises ReceiverError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # head and body of an answer are sent apart
        return listener
    except OSError as error:
        remedy = {
            errno.EADDRINUSE: "stop what uses it, or set PORT to another one",
            errno.EACCES: "set PORT to one above 1023",
        }.get(error.errno or 0, "set [receiver] host to an address of this machine")
        raise ReceiverError(f"cannot listen on {host} port {port}: {error.strerror}; {remedy}") from None


def in_memory() -> str | None:
    """Where files are kept in memory; None where that is not, or is full."""
    try:
        found = os.statvfs(MEMORY)
    except OSError:
        return None
    room = found.f_bavail * found.f_frsize >= ROOM_BYTES
    return MEMORY if room and os.access(MEMORY, os.W_OK) else None


class Child:
    """A process of the supervisor's, started again when it dies."""

    def __init__(self, name: str, work: Work, silent_seconds: float | None) -> None:
        self.name = name
        self._work = work
        self._silent_seconds = silent_seconds
        self._process: multiprocessing.process.BaseProcess | None = None
        self._line: socket.socket | None = None
        self._started_at = self._heard_at = self._start_at = 0.0
        self._pause = FIRST_PAUSE_SECONDS

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def tend(self, now: float, others: list[Child]) -> None:
        """Start it, listen for its beats, or notice that it is gone."""
        if self._process is None:
            if now >= self._start_at:
                self._start(now, others)
        elif not self._process.is_alive():
            self._bury(now)
        elif self._silent_seconds is not None:
            if self._hears_beats():
                self._heard_at = now
            if now - self._heard_at > self._silent_seconds:
                log.error("%s has been stuck for %.0f s; it is killed", self.name, now - self._heard_at)
                self._process.kill()

    def excuse(self, now: float) -> None:
        """Do not hold the silence so far against it: the supervisor itself was not running."""
        self._heard_at = now

    def signal(self, number: int) -> None:
        if self._process is not None and self._process.is_alive() and self._process.pid is not None:
            os.kill(self._process.pid, number)

    def hang_up(self) -> None:
        """Tell it that nothing more is to come."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def _start(self, now: float, others: list[Child]) -> None:
        self._line, theirs = socket.socketpair()
        self._line.setblocking(False)
        lines = [child._line for child in others if child._line is not None]
        sys.stdout.flush()
        self._process = _fork.Process(target=_run, args=(self._work, theirs, lines), name=self.name)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # or one could reach the child while it has our handlers
        self._process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        theirs.close()
        self._started_at = self._heard_at = now

    def _bury(self, now: float) -> None:
        assert self._process is not None
        self._process.join()
        if now - self._started_at > RAN_WELL_SECONDS:
            self._pause = FIRST_PAUSE_SECONDS
        log.error("%s died (%s); it starts again in %.0f s", self.name, _ending(self._process.exitcode), self._pause)
        self._start_at = now + self._pause
        self._pause = min(self._pause * 2, LONGEST_PAUSE_SECONDS)
        self._process = None
        self.hang_up()

    def _hears_beats(self) -> bool:
        try:
            return self._line is not None and self._line.recv(4096) != b""
        except OSError:
            return False


class Supervisor:
    """Runs children until SIGTERM or SIGINT. Where there is a listener, the first is intake."""

    def __init__(self, children: list[Child], lifeline: Lifeline, listener: socket.socket | None = None) -> None:
        self._children = children
        self._lifeline = lifeline
        self._listener = listener
        self._stopping = False

    def run(self) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)
        tended_at = time.monotonic()
        while not (self._stopping or self._lifeline.stopping()):
            now = time.monotonic()
            for child in self._children:
                if now - tended_at > SILENT_SECONDS / 2:
                    child.excuse(now)
                child.tend(now, self._children)
            tended_at = now
            time.sleep(TICK_SECONDS)
        self._stop()

    def _note(self, number: int, frame: object) -> None:
        self._stopping = True

    def _stop(self) -> None:
        """Signal all; when intake is gone, nothing more comes and the dispatcher can finish."""
        log.info("stopping")
        end = time.monotonic() + STOP_SECONDS
        if self._listener is not None:
            self._listener.close()
        for child in self._children:
            child.signal(signal.SIGTERM)
        for child in self._children:
            child.hang_up()
            while child.alive and time.monotonic() < end:
                time.sleep(TICK_SECONDS)
            child.signal(signal.SIGKILL)


def _run(work: Work, line: socket.socket, lines: list[socket.socket]) -> None:
    """The life of a child: none of the supervisor's signal handlers, and none of its ends of any line."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    for other in lines:
        other.close()
    try:
        work(Lifeline(line))
    except ReceiverError as error:
        log.error("%s", error)
        sys.exit(1)
    except Exception:  # multiprocessing would print it as it is
        log.exception("met a fault of the receiver's own")
        sys.exit(1)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
