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
"""The event in it that goes to all sinks; the others have pending deliveries at the sink `archive`."""


class Lives:
    """The lives that are recorded; `pushes` is how many items are pushed in each of their phases."""

    def __init__(self, pushes: int) -> None:
        self._pushes = pushes

    def from_the_first_start(self, machine: Machine) -> None:
        """From an empty disk over a new day and retention to a restart with other settings.

        Until then the write-ahead log is emptied whenever the journal reaches its largest size, afterwards by SQLite.
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
        """On the journal of an older receiver, which has events."""
        machine.start("upgrade")
        machine.push(self._pushes)
        machine.wait_until_delivered()
        machine.stop()

    def recovery(self, machine: Machine, name: str, config: str) -> None:
        """On what an interruption of another life has left."""
        machine.start(name, config)
        machine.wait_until_delivered()
        machine.push(self._pushes)
        machine.wait_until_delivered()
        machine.stop()


def put_old_journal(disk: Path) -> list[Entry]:
    """Put the journal of an older receiver onto a disk; the events in it."""
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
