"""The faults: each a context that begins one and ends it. Their order and length are a function of the seed."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import psutil

from chaos.system import SINKS, System

CLOCK_SECONDS = 3670.0
"""An hour, and what a signature's leeway of a minute needs to notice it."""

SMALLEST_LIMIT = 100_000
"""The limit holds for counters in shared memory too, which no full disk would touch; they are smaller."""

NOTICED_SECONDS = 30.0
MEMORY_BYTES = 1_000_000_000
HOLDS = (0.05, 0.5, 2.5)
"""How long a call holds the interpreter, in lengths of the fault; the last for longer than a beat is waited for."""


@dataclass(frozen=True)
class Planned:
    """A fault that will come `gap` seconds after the one before it. `pick` chooses among its victims, from 0 to 1."""

    gap: float
    kind: str
    seconds: float
    pick: float


@dataclass(frozen=True)
class Happened:
    """A fault that came, with its times (monotonic) and what it hit."""

    kind: str
    detail: str
    began: float
    ended: float


Act = Callable[[System, Planned], AbstractContextManager[str]]


def schedule(seed: int, lane: str, kinds: Sequence[str], speed: float) -> Iterator[Planned]:
    """Faults of these kinds for ever, each as often as the others. With `speed` 10 all takes a tenth of the time."""
    dice = random.Random(f"{lane} {seed}")
    while True:
        for kind in dice.sample(kinds, len(kinds)):
            longest = FAULTS[kind].longest
            yield Planned(
                gap=dice.uniform(1.0, 12.0) / speed,
                kind=kind,
                seconds=dice.uniform(0.2, 1.0) * longest / speed,
                pick=dice.random(),
            )


class Lane(threading.Thread):
    """Lets faults happen one after another. Two lanes overlap."""

    def __init__(self, system: System, plan: Iterator[Planned]) -> None:
        super().__init__(daemon=True)
        self.happened: list[Happened] = []
        self.failures: list[str] = []
        self._system = system
        self._plan = plan
        self._enough = threading.Event()

    def run(self) -> None:
        for planned in self._plan:
            if self._enough.wait(planned.gap):
                return
            self._let_happen(planned)

    def finish(self) -> None:
        """Begin no further fault, and end the one that is."""
        self._enough.set()
        self.join()

    def _let_happen(self, planned: Planned) -> None:
        began, detail = time.monotonic(), ""
        try:
            with FAULTS[planned.kind].act(self._system, planned) as detail:
                self._system.note(f"begun: {planned.kind} {detail}")
                self._enough.wait(planned.seconds)
        except Exception as error:
            self.failures.append(f"{planned.kind}: {type(error).__name__}: {error}")
        self.happened.append(Happened(planned.kind, detail, began, time.monotonic()))
        self._system.note(f"ended: {planned.kind}")


@dataclass(frozen=True)
class Fault:
    """What a kind of fault does, and for how many seconds at most."""

    act: Act
    longest: float


def killed(kind: str) -> Act:
    """SIGKILL to one process of the receiver."""

    @contextmanager
    def act(system: System, planned: Planned) -> Iterator[str]:
        pid = system.process(kind)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        yield f"process {pid}"

    return act


@contextmanager
def all_killed(system: System, planned: Planned) -> Iterator[str]:
    """A power cut, as far as a program can make one: all processes are gone at once, and start again later."""
    system.kill()
    yield ""
    system.up()


@contextmanager
def terminated(system: System, planned: Planned) -> Iterator[str]:
    """A restart: SIGTERM to the supervisor, and a new start."""
    try:
        system.down()
        yield ""
    finally:
        system.up()


@contextmanager
def stopped(system: System, planned: Planned) -> Iterator[str]:
    """One process stands still."""
    kind = pick(["supervisor", "master", "dispatcher", "worker"], planned)
    pid = system.process(kind)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    yield f"{kind} {pid}"
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def clock_wrong(seconds: float) -> Act:
    """The clock of the receiver's machine jumps, and later back. DT's clock is right."""

    @contextmanager
    def act(system: System, planned: Planned) -> Iterator[str]:
        system.receiver.shift(seconds)
        yield f"by {seconds:+.0f} s"
        system.receiver.shift(0)

    return act


@contextmanager
def sink_mistyped(system: System, planned: Planned) -> Iterator[str]:
    """A mistake in one sink's table, and a restart; then it is mended. The sink is owed all that came meanwhile."""
    name = pick(list(SINKS), planned)
    with configured(system, system.config(mistyped=name)):
        yield name


@contextmanager
def sink_disabled(system: System, planned: Planned) -> Iterator[str]:
    """A sink is disabled, and later enabled again. It keeps what it was owed, and is owed nothing new meanwhile."""
    name = pick(list(SINKS), planned)
    began = time.monotonic()
    try:
        with configured(system, system.config(disabled=name)):
            yield name
    finally:
        system.disabled.append((name, began, system.last_down_at))


@contextmanager
def configured(system: System, config: str) -> Iterator[None]:
    """Run with another config.toml, and then with the usual one again."""
    try:
        system.down()
        system.receiver.configure(config)
        system.up()
        system.await_work()
        yield
        system.down()
    finally:
        system.receiver.configure(system.config())
        system.up()


def target(mood: str) -> Act:
    """The target of the webhook misbehaves, for so long that it is noticed."""

    @contextmanager
    def act(system: System, planned: Planned) -> Iterator[str]:
        system.target.put_on(mood)
        yield ""
        system.target.met.wait(NOTICED_SECONDS)
        system.target.release()

    return act


def plugin(how: str) -> Act:
    """The odd sink misbehaves inside the dispatcher."""

    @contextmanager
    def act(system: System, planned: Planned) -> Iterator[str]:
        system.order(how)
        yield ""
        system.order(None)

    return act


@contextmanager
def plugin_holds(system: System, planned: Planned) -> Iterator[str]:
    """The odd sink lets no other thread of the dispatcher run, again and again, for longer than the fault lasts."""
    seconds = pick(HOLDS, planned) * planned.seconds
    system.order(f"holds {seconds}")
    yield f"{seconds:.1f} s a call"
    system.order(None)


@contextmanager
def plugin_leaks(system: System, planned: Planned) -> Iterator[str]:
    """The odd sink fills the memory that the dispatcher may have."""
    pid = system.process("dispatcher")
    with contextlib.suppress(psutil.Error, ProcessLookupError):
        limit = psutil.Process(pid).memory_info().vms + MEMORY_BYTES
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    system.order("leaks")
    yield f"process {pid}"
    system.order(None)
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def disk_full(file: str, room: int) -> Act:
    """No file of the receiver may grow beyond the size of this one and a little `room`."""

    @contextmanager
    def act(system: System, planned: Planned) -> Iterator[str]:
        path = system.folder / file
        limit = max(SMALLEST_LIMIT, (path.stat().st_size if path.exists() else 0) + room)
        system.receiver.limit_files(limit)
        yield f"{file} may have {limit} bytes"
        system.receiver.limit_files(resource.RLIM_INFINITY)

    return act


@contextmanager
def database_killed(system: System, planned: Planned) -> Iterator[str]:
    """PostgreSQL ends in immediate mode, and is started again."""
    assert system.server is not None
    system.server.kill()
    yield ""
    system.server.start()


@contextmanager
def database_frozen(system: System, planned: Planned) -> Iterator[str]:
    """All processes of PostgreSQL stand still."""
    assert system.server is not None
    with system.server.frozen():
        yield ""


@contextmanager
def connections_cut(system: System, planned: Planned) -> Iterator[str]:
    """PostgreSQL ends some or all connections of the receiver."""
    which = "pid" if planned.pick < 0.5 else "CASE pid % 2 WHEN 0 THEN pid END"
    cut = system.sql(
        f"SELECT pg_terminate_backend({which}) FROM pg_stat_activity "
        "WHERE application_name = 'receiver' AND datname = current_database()"
    )
    yield f"{sum(done or False for (done,) in cut)} of {len(cut)}"


Choice = TypeVar("Choice")


def pick(choices: Sequence[Choice], planned: Planned) -> Choice:
    return choices[int(planned.pick * len(choices))]


FAULTS = {
    "worker killed": Fault(killed("worker"), 0),
    "master killed": Fault(killed("master"), 0),
    "dispatcher killed": Fault(killed("dispatcher"), 0),
    "supervisor killed": Fault(killed("supervisor"), 0),
    "all killed": Fault(all_killed, 3),
    "terminated": Fault(terminated, 3),
    "process stopped": Fault(stopped, 10),
    "clock an hour ahead": Fault(clock_wrong(CLOCK_SECONDS), 15),
    "clock an hour behind": Fault(clock_wrong(-CLOCK_SECONDS), 15),
    "sink mistyped": Fault(sink_mistyped, 10),
    "sink disabled": Fault(sink_disabled, 10),
    "target answers 500": Fault(target("refuses"), 15),
    "target hangs": Fault(target("hangs"), 20),
    "target drips": Fault(target("drips"), 30),
    "target resets": Fault(target("resets"), 15),
    "plugin exits": Fault(plugin("exits"), 10),
    "plugin holds the interpreter": Fault(plugin_holds, 20),
    "plugin leaks memory": Fault(plugin_leaks, 15),
    "plugin raises": Fault(plugin("raises"), 20),
    "disk full under CSV": Fault(disk_full("events.csv", 3_000), 15),
    "disk full under journal": Fault(disk_full("data/journal.sqlite-wal", 3_000), 15),
    "database killed": Fault(database_killed, 2),
    "database frozen": Fault(database_frozen, 8),
    "connections cut": Fault(connections_cut, 0),
}
OF_PROCESSES = list(FAULTS)[:11]
OF_SURROUNDINGS = list(FAULTS)[11:20]
OF_JOURNAL = {
    "sqlite": ["disk full under journal"],
    "postgresql": ["database killed", "database frozen", "connections cut"],
}
