"""What happens to a receiver while its disk is recorded."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from chaos.traffic import Item
from power_cut.machine import OTHER_CONFIG, SINKS, Entry, Machine
from receiver.testing.running import ROOT, wait_until

OLD_JOURNAL = ROOT / "tests" / "data" / "journal_schema_2.sqlite"
UNROUTED = "unmatched"
"""The event in it that is not routed yet, so all sinks get it; the others are pending at the sink `archive`."""


class Scenarios:
    """The scenarios that are recorded; each of their phases pushes `pushes` items."""

    def __init__(self, pushes: int) -> None:
        self._pushes = pushes

    def from_the_first_start(self, machine: Machine) -> None:
        """An empty disk, a new day, retention, and a restart with other settings.

        Until that restart the receiver empties the write-ahead log whenever the journal reaches its largest size;
        afterwards SQLite does.
        """
        machine.start("first start")
        machine.push(self._pushes)
        machine.wait_until_delivered()
        machine.continue_as("next day", days=1)
        machine.push(self._pushes)
        machine.wait_until_delivered()
        machine.continue_as("retention", days=10)
        machine.push(self._pushes)
        machine.wait_until_delivered()
        wait_until(lambda: len(stored_ids(machine.disk)) <= self._pushes, what="retention")
        machine.continue_as("stop")
        machine.stop()
        machine.start("start with other settings", OTHER_CONFIG)
        machine.push(self._pushes)
        machine.wait_until_delivered()
        machine.continue_as("checkpoints of SQLite")
        machine.push_large(2 * self._pushes)
        machine.wait_until_delivered()
        machine.stop()

    def upgrade(self, machine: Machine) -> None:
        """A start on the journal of an older receiver, which has events."""
        machine.start("upgrade")
        machine.push(self._pushes)
        machine.wait_until_delivered()
        machine.stop()

    def recovery(self, machine: Machine, name: str, config: str) -> None:
        """A start on the disk that an interruption of another scenario has left."""
        machine.start(name, config)
        machine.wait_until_delivered()
        machine.push(self._pushes)
        machine.wait_until_delivered()
        machine.stop()


def put_old_journal(disk: Path) -> list[Entry]:
    """Copy the journal of an older receiver to a disk. Returns the events in it."""
    path = disk / "data" / "journal.sqlite"
    path.parent.mkdir(parents=True)
    shutil.copy(OLD_JOURNAL, path)
    return list(old_entries(OLD_JOURNAL))


def old_entries(path: Path) -> Iterator[Entry]:
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
        for name, body in connection.execute("SELECT id, body FROM events"):
            sinks = SINKS if name == UNROUTED else frozenset(["archive"])
            yield Entry(Item(name, "touch", body), 0, 0.0, sinks)
        for name, body in connection.execute("SELECT id, body FROM quarantine"):
            yield Entry(Item(name, None, body), 0, 0.0, frozenset())


def stored_ids(disk: Path) -> set[str]:
    with closing(sqlite3.connect(disk / "data" / "journal.sqlite")) as connection:
        return {name for (name,) in connection.execute("SELECT id FROM events")}
