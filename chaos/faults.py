"""The faults: each is a context that begins one and ends it. Their order and length are a function of the seed."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TypeVar

import psutil

from chaos.power import lose_power
from chaos.system import System, size_of
from chaos.visitor import Visitor
from power_cut.recording import Recorder
from receiver.testing.issuer import send
from receiver.testing.running import wait_until

CLOCK_SECONDS = 3670.0
"""An hour, and more than the minute of leeway that a signature has."""

MIN_LIMIT_BYTES = 100_000
"""The limit also applies to counters in shared memory, which no full disk would affect; they are smaller than this."""

NOTICED_SECONDS = 30.0
"""How long to wait until the receiver has called a target that misbehaves."""

FAULT_SECONDS = 60.0
"""How long to wait for each fault until enough were injected, on a busy machine."""

MEMORY_BYTES = 1_000_000_000

BROWSER_CONNECTIONS = 12
"""Those of two browsers: each opens six to a host."""

HOLD_FRACTIONS = (0.05, 0.5, 2.5)
"""How long one call holds the interpreter, in lengths of the fault: up to so long that the dispatcher is killed."""


@dataclass(frozen=True)
class PlannedFault:
    """A fault that begins `gap` seconds after the end of the one before. `choice`, from 0 to 1, selects its victim."""

    gap: float
    kind: str
    seconds: float
    choice: float


@dataclass(frozen=True)
class InjectedFault:
    """A fault that was injected, with its times (monotonic) and its victim."""

    kind: str
    detail: str
    began_at: float
    ended_at: float


Inject = Callable[[System, PlannedFault], AbstractContextManager[str]]


def schedule(seed: int, lane: str, kinds: Sequence[str], speed: float) -> Iterator[PlannedFault]:
    """Faults of these kinds without end, each as often as the others. With `speed` 10 all takes a tenth of the time."""
    rng = random.Random(f"{lane} {seed}")
    while True:
        for kind in rng.sample(kinds, len(kinds)):
            max_seconds = FAULTS[kind].max_seconds
            yield PlannedFault(
                gap=rng.uniform(1.0, 12.0) / speed,
                kind=kind,
                seconds=rng.uniform(0.2, 1.0) * max_seconds / speed,
                choice=rng.random(),
            )


class Lane(threading.Thread):
    """Injects faults one after another. Two lanes overlap."""

    def __init__(self, system: System, plan: Iterator[PlannedFault]) -> None:
        super().__init__(daemon=True)
        self.injected: list[InjectedFault] = []
        self.failures: list[str] = []
        self._system = system
        self._plan = plan
        self._finishing = threading.Event()

    def run(self) -> None:
        for planned in self._plan:
            if self._finishing.wait(planned.gap):
                return
            self._inject(planned)

    def finish(self, min_faults: int, stop: threading.Event) -> None:
        """Begin no further fault when so many were injected, or `stop` is set, and end the current one."""
        wait_until(
            lambda: stop.is_set() or len(self.injected) >= min_faults,
            FAULT_SECONDS * max(1, min_faults),
            f"{min_faults} faults",
        )
        self._finishing.set()
        self.join()

    def _inject(self, planned: PlannedFault) -> None:
        began_at, detail = time.monotonic(), ""
        try:
            with FAULTS[planned.kind].inject(self._system, planned) as detail:
                self._system.log_fault(f"began: {planned.kind} {detail}")
                self._finishing.wait(planned.seconds)
        except Exception as error:
            self.failures.append(f"{planned.kind}: {type(error).__name__}: {error}")
        self.injected.append(InjectedFault(planned.kind, detail, began_at, time.monotonic()))
        self._system.log_fault(f"ended: {planned.kind}")


@dataclass(frozen=True)
class Fault:
    """How to inject a kind of fault, and for how many seconds at most."""

    inject: Inject
    max_seconds: float


def kill_process(kind: str) -> Inject:
    """SIGKILL to one process of the receiver."""

    @contextmanager
    def inject(system: System, planned: PlannedFault) -> Iterator[str]:
        pid = system.process(kind)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        yield f"process {pid}"

    return inject


@contextmanager
def kill_all(system: System, planned: PlannedFault) -> Iterator[str]:
    """All processes end at once, and start again later."""
    system.kill()
    yield ""
    system.start()


@contextmanager
def cut_power(system: System, planned: PlannedFault) -> Iterator[str]:
    """The power of the receiver's machine fails, after a while on a disk that is recorded."""
    with tempfile.TemporaryDirectory(prefix="receiver-recording-") as folder:
        system.stop()
        system.kill_orphans()
        recorder = Recorder(Path(folder), system.local)
        try:
            with system.environment(recorder.environment):
                system.start()
                system.wait_until_working()
                yield ""
                with recorder.paused():
                    system.kill()
            lost = lose_power(system.local, recorder.finish(), planned.choice)
            system.log_fault(f"the disk after the power cut: {lost.rules.name}, {lost.loss}")
        finally:
            system.start()


@contextmanager
def restart(system: System, planned: PlannedFault) -> Iterator[str]:
    """SIGTERM to the supervisor, and a new start."""
    try:
        system.stop()
        yield ""
    finally:
        system.start()


@contextmanager
def suspend_process(system: System, planned: PlannedFault) -> Iterator[str]:
    """SIGSTOP to one process, and later SIGCONT."""
    kind = choose(["supervisor", "master", "dispatcher", "worker"], planned)
    pid = system.process(kind)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    yield f"{kind} {pid}"
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def shift_clock(seconds: float) -> Inject:
    """The clock of the receiver's machine jumps, and later back. DT's clock is right."""

    @contextmanager
    def inject(system: System, planned: PlannedFault) -> Iterator[str]:
        system.receiver.shift_clock(seconds)
        yield f"by {seconds:+.0f} s"
        system.receiver.shift_clock(0)

    return inject


@contextmanager
def mistype_sink(system: System, planned: PlannedFault) -> Iterator[str]:
    """A restart with an error in one sink's table, and another with the table corrected. Its events must wait."""
    name = choose(system.sinks, planned)
    with configured(system, system.config(mistyped=name)):
        yield name


@contextmanager
def disable_sink(system: System, planned: PlannedFault) -> Iterator[str]:
    """A sink is disabled, and later enabled. Its pending deliveries must wait; no new events are queued for it."""
    name = choose(system.sinks, planned)
    began_at = time.monotonic()
    try:
        with configured(system, system.config(disabled=name)):
            yield name
    finally:
        system.disabled.append((name, began_at, system.last_stopped_at))


@contextmanager
def configured(system: System, config: str) -> Iterator[None]:
    """Restart with another config.toml, and then with the usual one again."""
    try:
        system.stop()
        system.receiver.configure(config)
        system.start()
        system.wait_until_working()
        yield
        system.stop()
    finally:
        system.receiver.configure(system.config())
        system.start()


def webhook_target(behavior: str) -> Inject:
    """The target of the webhook misbehaves, at least until the receiver has called it."""

    @contextmanager
    def inject(system: System, planned: PlannedFault) -> Iterator[str]:
        system.target.misbehave(behavior)
        yield ""
        system.target.noticed.wait(NOTICED_SECONDS)
        system.target.recover()

    return inject


def plugin(misbehavior: str) -> Inject:
    """The sink `odd` misbehaves inside the dispatcher."""

    @contextmanager
    def inject(system: System, planned: PlannedFault) -> Iterator[str]:
        system.instruct_plugin(misbehavior)
        yield ""
        system.instruct_plugin(None)

    return inject


@contextmanager
def hold_interpreter(system: System, planned: PlannedFault) -> Iterator[str]:
    """Each call of the sink `odd` blocks all threads of the dispatcher, the longest even after the fault has ended."""
    seconds = choose(HOLD_FRACTIONS, planned) * planned.seconds
    system.instruct_plugin(f"hold {seconds}")
    yield f"{seconds:.1f} s per call"
    system.instruct_plugin(None)


@contextmanager
def leak_memory(system: System, planned: PlannedFault) -> Iterator[str]:
    """The sink `odd` fills the memory that the dispatcher may use."""
    pid = system.process("dispatcher")
    with contextlib.suppress(psutil.Error, ProcessLookupError):
        limit = psutil.Process(pid).memory_info().vms + MEMORY_BYTES
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    system.instruct_plugin("leak")
    yield f"process {pid}"
    system.instruct_plugin(None)
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def fill_disk(file: str, free_bytes: int) -> Inject:
    """No file of the receiver may grow beyond the size of `file` and a few free bytes."""

    @contextmanager
    def inject(system: System, planned: PlannedFault) -> Iterator[str]:
        path = system.folder / file
        limit = max(MIN_LIMIT_BYTES, size_of(path) + free_bytes)
        system.receiver.limit_file_size(limit)
        yield f"{file} is limited to {limit} bytes"
        system.receiver.limit_file_size(resource.RLIM_INFINITY)

    return inject


@contextmanager
def kill_broker(system: System, planned: PlannedFault) -> Iterator[str]:
    """The MQTT broker is killed, and started again."""
    assert system.broker is not None
    with system.broker.frozen():
        time.sleep(1.0)  # the listener reads all that was sent to it: what is unread when its connection breaks is lost
        system.broker.kill()
    yield ""
    system.start_broker()


@contextmanager
def hide_issuer(system: System, planned: PlannedFault) -> Iterator[str]:
    """DT's identity service is away, or hangs, while DT begins to sign with a new key."""
    ended = threading.Event()

    def hang(request: BaseHTTPRequestHandler) -> None:
        ended.wait()

    system.issuer.answer = choose([respond_503, hang], planned)
    key = system.issuer.rotate(keep=1)
    yield f"new key {key}"
    system.issuer.answer = None
    ended.set()


def respond_503(request: BaseHTTPRequestHandler) -> None:
    send(request, {}, 503)


@contextmanager
def load_console(system: System, planned: PlannedFault) -> Iterator[str]:
    """Somebody opens many pages of the console at once, again and again."""
    visitors = [Visitor(system.receiver, pause_seconds=0.0) for _ in range(BROWSER_CONNECTIONS)]
    for visitor in visitors:
        visitor.start()
    yield f"{len(visitors)} connections"
    wrong = sorted({what for visitor in visitors for what in visitor.stop()})
    assert not wrong, ", ".join(wrong)


@contextmanager
def fill_registry_disk(system: System, planned: PlannedFault) -> Iterator[str]:
    """No space for the file of the registry; the disk of the journal has some."""
    assert system.disk is not None
    with system.disk.full() as used:
        yield f"with {used} bytes"


def shift_database_clock(seconds: float) -> Inject:
    """The clock of the database's machine jumps, and later back."""

    @contextmanager
    def inject(system: System, planned: PlannedFault) -> Iterator[str]:
        assert system.clock is not None
        system.clock.shift(seconds)
        yield f"by {seconds:+.0f} s"
        system.clock.shift(0)

    return inject


@contextmanager
def kill_database(system: System, planned: PlannedFault) -> Iterator[str]:
    """PostgreSQL is shut down in immediate mode, and started again."""
    assert system.server is not None
    system.server.kill()
    yield ""
    system.server.start()


@contextmanager
def freeze_database(system: System, planned: PlannedFault) -> Iterator[str]:
    """All processes of PostgreSQL are suspended."""
    assert system.server is not None
    with system.server.frozen():
        yield ""


@contextmanager
def cut_connections(system: System, planned: PlannedFault) -> Iterator[str]:
    """PostgreSQL terminates some or all connections of the receiver."""
    which = "pid" if planned.choice < 0.5 else "CASE pid % 2 WHEN 0 THEN pid END"
    connections = system.sql(
        f"SELECT pg_terminate_backend({which}) FROM pg_stat_activity "
        "WHERE application_name = 'receiver' AND datname = current_database()"
    )
    yield f"{sum(terminated or False for (terminated,) in connections)} of {len(connections)}"


def fail_over(*, frozen: bool) -> Inject:
    """The primary of two servers is killed or frozen, and a while later its standby is promoted."""

    @contextmanager
    def inject(system: System, planned: PlannedFault) -> Iterator[str]:
        assert system.pair is not None
        with system.pair.fail_over(frozen=frozen):
            yield f"for {planned.seconds:.1f} s"

    return inject


Option = TypeVar("Option")


def choose(options: Sequence[Option], planned: PlannedFault) -> Option:
    return options[int(planned.choice * len(options))]


FAULTS = {
    "worker killed": Fault(kill_process("worker"), 0),
    "master killed": Fault(kill_process("master"), 0),
    "dispatcher killed": Fault(kill_process("dispatcher"), 0),
    "supervisor killed": Fault(kill_process("supervisor"), 0),
    "all killed": Fault(kill_all, 3),
    "power cut": Fault(cut_power, 10),
    "terminated": Fault(restart, 3),
    "process stopped": Fault(suspend_process, 10),
    "clock an hour ahead": Fault(shift_clock(CLOCK_SECONDS), 15),
    "clock an hour behind": Fault(shift_clock(-CLOCK_SECONDS), 15),
    "sink mistyped": Fault(mistype_sink, 10),
    "sink disabled": Fault(disable_sink, 10),
    "target answers 500": Fault(webhook_target("error"), 15),
    "target hangs": Fault(webhook_target("hang"), 20),
    "target drips": Fault(webhook_target("drip"), 30),
    "target resets": Fault(webhook_target("reset"), 15),
    "plugin exits": Fault(plugin("exit"), 10),
    "plugin holds the interpreter": Fault(hold_interpreter, 20),
    "plugin leaks memory": Fault(leak_memory, 15),
    "plugin raises": Fault(plugin("raise"), 20),
    "issuer away": Fault(hide_issuer, 15),
    "console under load": Fault(load_console, 10),
    "disk full under CSV": Fault(fill_disk("local/events.csv", 3_000), 15),
    "broker killed": Fault(kill_broker, 3),
    "registry's disk full": Fault(fill_registry_disk, 15),
    "disk full under journal": Fault(fill_disk("local/data/journal.sqlite-wal", 3_000), 15),
    "database killed": Fault(kill_database, 2),
    "database frozen": Fault(freeze_database, 8),
    "connections cut": Fault(cut_connections, 0),
    "database clock ahead": Fault(shift_database_clock(CLOCK_SECONDS), 15),
    "database clock behind": Fault(shift_database_clock(-CLOCK_SECONDS), 15),
    "primary killed": Fault(fail_over(frozen=False), 3),
    "primary frozen": Fault(fail_over(frozen=True), 3),
}
OF_PROCESSES = list(FAULTS)[:12]
OF_SURROUNDINGS = list(FAULTS)[12:24]
OF_JOURNAL = {
    "sqlite": ["disk full under journal", "registry's disk full"],
    "postgresql": [
        "database killed",
        "database frozen",
        "connections cut",
        "database clock ahead",
        "database clock behind",
    ],
    "replicated": ["primary killed", "primary frozen"],
}
