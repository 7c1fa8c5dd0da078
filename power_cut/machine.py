"""A receiver on a recorded disk, and its driver: what it pushed, and where in the recording each event got 200."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from chaos.traffic import Item, event, items, large
from power_cut.disk import ELSEWHERE, replay
from power_cut.recording import Files, Recorder, Recording, contents
from receiver.signature import sign
from receiver.simulator import Simulator
from receiver.testing.running import ROOT, RunningReceiver, wait_until
from receiver.testing.samples import TEST_SECRET

CONFIG = f"""
[receiver]
host = "127.0.0.1"
plugins = ["{ROOT / "chaos" / "sink.py"}"]
[journal]
path = "disk/data/journal.sqlite"
retention_days = 1
min_free_mb = 0
max_size_mb = 1
[sensors]
history_days = 8
[sinks.archive]
type = "csv"
path = "disk/data/archive.csv"
rows = "events"
[sinks.sql]
type = "sql"
url = "sqlite:///disk/sql/readings.sqlite"
[sinks.elsewhere]
type = "records"
path = "disk/{ELSEWHERE}/seen.txt"
[sinks.readings]
type = "csv"
path = "disk/{{date}}/readings.csv"
"""
OTHER_COLUMNS = ["event_type", "value", "device_id"]
OTHER_CONFIG = CONFIG.replace("max_size_mb = 1\n", "") + f"columns = {OTHER_COLUMNS}\n"
"""With other columns in a CSV file, and without the limit over which the write-ahead log is emptied."""

SINKS = frozenset(("archive", "readings", "sql", "elsewhere", "sensors"))
CONNECTIONS = 4
DELIVERY_SECONDS = 60.0
DAY_SECONDS = 86400.0
NEVER = 1 << 63


@dataclass(frozen=True)
class Phase:
    """A part of a scenario, which begins at a position of the recording: its settings and its clock.

    `shift` is how many seconds the clock is ahead; `began_at` is a time on that clock.
    """

    name: str
    position: int
    config: str
    shift: float
    began_at: float


@dataclass(frozen=True)
class Entry:
    """A push that got 200 before a position of the recording, whether it is a valid event or not.

    `pushed_at` is a time on the receiver's clock; `sinks` are those that must get the event. At the position NEVER are
    pushes without 200, which may be stored nevertheless.
    """

    item: Item
    position: int
    pushed_at: float
    sinks: frozenset[str] = SINKS


class Machine:
    """A folder with a disk, and a receiver on it: recorded by `run`, and later started on other states of the disk.

    The files below `disk` at the beginning count as flushed. `ledger` has the events that the journal there holds.
    """

    def __init__(self, folder: Path, seed: int, ledger: Iterable[Entry] = (), shift: float = 0.0) -> None:
        self.folder = folder.resolve()  # as the journal resolves its path
        self.disk = self.folder / "disk"
        (self.disk / ELSEWHERE).mkdir(parents=True, exist_ok=True)
        self.ledger = list(ledger)
        self.phases: list[Phase] = []
        self._shift = shift
        self._items = items(seed)
        self._lock = threading.Lock()
        self._receiver: RunningReceiver | None = None

    def run(self, scenario: Callable[[Machine], None]) -> Recording:
        """Record a scenario. Raises AssertionError if the recording is not complete."""
        self._recorder = Recorder(self.folder, self.disk)
        try:
            scenario(self)
        finally:
            if self._receiver is not None:
                self._receiver.kill_all()
        recording = self._recorder.finish()
        replayed = dict(replay(recording))
        for path, content in contents(self.disk).items():
            assert replayed.pop(path, b"") == content, f"the recording does not reproduce {path}"
        assert not replayed, f"removed without a record: {sorted(replayed)}"
        return recording

    def start(self, name: str, config: str = CONFIG) -> None:
        """Start the receiver, and begin a phase."""
        self._begin(name, config)
        self._receiver = self._new_receiver(config, self._recorder.environment)
        self._receiver.start()

    def stop(self) -> None:
        assert self._receiver
        assert self._receiver.stop() == 0, self._receiver.log
        self._receiver = None

    def continue_as(self, name: str, days: int = 0) -> None:
        """Begin a phase; its clock is `days` further ahead."""
        assert self._receiver
        self._shift += days * DAY_SECONDS
        self._receiver.shift_clock(self._shift)
        self._begin(name, self.phases[-1].config)

    def push(self, count: int) -> None:
        """Push `count` items, several at once; each is repeated until it gets 200."""
        self._push_all(next(self._items)(at) for at in self._times(count))

    def push_large(self, count: int) -> None:
        """Like `push`, with large events only."""
        simulator = Simulator(count)
        bodies = (json.loads(simulator.body("temperature", at)) for at in self._times(count))
        self._push_all(event(large(payload)) for payload in bodies)

    def wait_until_delivered(self) -> None:
        assert self._receiver
        wait_until_idle(self._receiver)

    def phase_at(self, position: int) -> Phase:
        return next((phase for phase in reversed(self.phases) if phase.position <= position), self.phases[0])

    def confirmed_at(self, position: int) -> list[Entry]:
        """What got 200 before a position."""
        return [entry for entry in self.ledger if entry.position <= position]

    def recover(self, phase: Phase) -> list[str]:
        """Start the receiver on the disk as it is, wait for all deliveries, and stop it. Returns what went wrong."""
        receiver = self._new_receiver(phase.config, {}, phase.shift)
        try:
            receiver.start()
            wait_until_idle(receiver)
            code = receiver.stop()
        except AssertionError as error:
            return [f"the receiver does not recover: {error}; its log: {receiver.log[-2000:]}"]
        finally:
            receiver.kill_all()
        return [f"the receiver ends with exit code {code}"] if code else []

    def ledger_after(self, position: int) -> list[Entry]:
        """The ledger of a recording that begins on the disk that a cut at this position has left."""
        return [replace(entry, position=0 if entry.position <= position else NEVER) for entry in self.ledger]

    def _begin(self, name: str, config: str) -> None:
        self.phases.append(Phase(name, self._recorder.position, config, self._shift, self._now()))

    def _now(self) -> float:
        return time.time() + self._shift

    def _new_receiver(self, config: str, environment: dict[str, str], shift: float | None = None) -> RunningReceiver:
        (self.folder / "log.txt").write_bytes(b"")
        clock = time.time() + (self._shift if shift is None else shift)
        return RunningReceiver(self.folder, config, clock, environment)

    def _times(self, count: int) -> Iterator[datetime]:
        for number in range(count):
            yield datetime.fromtimestamp(self._now(), UTC) + timedelta(microseconds=number)

    def _push_all(self, items: Iterable[Item]) -> None:
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(self._push, items))

    def _push(self, item: Item) -> None:
        receiver = self._receiver
        assert receiver

        def is_accepted() -> bool:
            return receiver.push(item.body, sign(item.body, TEST_SECRET, self._now()))[0] == 200

        pushed_at = self._now()
        wait_until(is_accepted, what="200")
        with self._lock:
            self.ledger.append(Entry(item, self._recorder.position, pushed_at))


def wait_until_idle(receiver: RunningReceiver) -> None:
    gauges = ["receiver_unrouted_events", *(f'receiver_pending_deliveries{{sink="{name}"}}' for name in sorted(SINKS))]
    wait_until(lambda: all(receiver.metric(gauge) == 0 for gauge in gauges), DELIVERY_SECONDS, "empty queues")


def write_files(disk: Path, files: Files) -> None:
    """Replace everything below a folder by these files."""
    shutil.rmtree(disk, ignore_errors=True)
    disk.mkdir(parents=True)
    for path, content in files.items():
        if content is None:
            (disk / path).mkdir(exist_ok=True)
        else:
            (disk / path).write_bytes(content)
