"""Folds the events of a file into a registry, in processes that are killed again and again before they are done.

`python -m support.fold_and_die DATABASE EVENTS KILLS`. A batch that was folded and not recorded as delivered is folded
again, as a dispatcher does.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from receiver.event import Event
from receiver.journal import open_database
from receiver.sensors.registry import Registry
from receiver.sensors.watch import Rules
from support.journals import lengthen_time_limits

BATCH = 20


def events_of(path: Path) -> list[Event]:
    """One body a line, behind the time at which it was received."""
    lines = [line.split(b" ", 1) for line in path.read_bytes().splitlines()]
    return [Event.from_body(body, datetime.fromtimestamp(float(received), UTC)) for received, body in lines]


def open_one(database: str) -> Registry:
    is_url = database.startswith("postgres")
    return Registry(open_database(database if is_url else None, Path(database)), Rules())


def fold(database: str, events: list[Event], delivered: Path) -> None:
    with closing(open_one(database)) as registry:
        for start in range(int(delivered.read_text() or 0), len(events), BATCH):
            registry.fold(events[start : start + BATCH])
            delivered.write_text(str(start + BATCH))


def main() -> None:
    lengthen_time_limits()
    database, path, kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    events, delivered, chance = events_of(path), path.with_suffix(".delivered"), random.Random(kills)
    delivered.write_text("0")
    for number in range(kills + 1):
        child = os.fork()
        if child == 0:
            fold(database, events, delivered)
            os._exit(0)
        if number < kills:
            time.sleep(chance.uniform(0.005, 0.06))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
