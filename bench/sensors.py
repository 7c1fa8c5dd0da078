"""Sensors: how fast events are folded into the registry and how fast it is judged, and what it costs the others."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median

from bench.drain import Case, drain
from bench.intake import CONNECTIONS, in_turn
from bench.servers import CSV, RECEIVER, SQLITE, WITH_REGISTRY, folder
from bench.tables import rate, ratio, show
from receiver.event import Event
from receiver.journal import open_database
from receiver.sensors.registry import Registry
from receiver.sensors.watch import Rules
from receiver.simulator import Simulator
from receiver.testing.postgresql import new_database

SENSORS = 100_000
EVENTS = 40_000
FOLDED_SENSORS = 10_000
BATCH = 500
DAYS, SIZED_SENSORS = 10, 100
START = datetime(2026, 3, 1, tzinfo=UTC)
DATABASES = ("SQLite", "PostgreSQL")


@dataclass(frozen=True)
class Took:
    """Seconds by the clock, and of the processor of this process."""

    wall: float
    cpu: float


def measure(size: float, rounds: int) -> None:
    """Print the tables."""
    events, sensors = max(2000, round(EVENTS * size)), max(1000, round(SENSORS * size))
    folded = {name: [folding(name, events) for _ in range(rounds)] for name in DATABASES}
    show(
        "Folding in batches of 500, decoding included",
        ["", "events/s", "events / CPU s"],
        [
            (
                name,
                rate(events / median(each.wall for each in folded[name])),
                rate(events / median(each.cpu for each in folded[name])),
            )
            for name in DATABASES
        ],
    )
    judged = {name: judging(name, sensors) for name in DATABASES}
    show(
        f"Judging {sensors:,} sensors",
        ["", "s", "CPU s"],
        [(name, f"{each.wall:.2f}", f"{each.cpu:.2f}") for name, each in judged.items()],
    )
    rows = [(f"{DAYS} days of a heartbeat each 15 minutes, SQLite", f"{bytes_a_sensor() / 1e3:.1f}")]
    show("Size", ["", "kB a sensor"], rows)
    compare(size, rounds)


def compare(size: float, rounds: int) -> None:
    """Drain and intake with the registry and without."""
    events = max(2000, round(100_000 * size))
    drains = [
        Case("csv", CSV, ("archive",), events),
        Case("csv and the registry", CSV, ("archive",), events, receiver=WITH_REGISTRY),
    ]
    drained = [median(drain(case).rate for _ in range(rounds)) for case in drains]
    kinds = [SQLITE.but("csv", RECEIVER + CSV), SQLITE.but("csv and the registry", WITH_REGISTRY + CSV)]
    results = in_turn(kinds, max(2.0, 10 * size), rounds)
    taken = [median(run.load.rate for run in results[kind, max(CONNECTIONS)]) for kind in kinds]
    rows = [
        (name, rate(without), rate(with_it), ratio(with_it, without))
        for name, (without, with_it) in (("drain to csv, events/s", drained), ("intake, pushes/s", taken))
    ]
    show("With the registry / without", ["", "without", "with", "ratio"], rows)


@contextmanager
def registry(database: str) -> Iterator[Registry]:
    with folder() as where:
        opened = Registry(
            open_database(new_database() if database == "PostgreSQL" else None, where / "sensors.sqlite"), Rules()
        )
        try:
            yield opened
        finally:
            opened.close()


def bodies(events: int, sensors: int, start: datetime = START) -> list[tuple[bytes, datetime]]:
    """Alternately a temperature and a network status of each sensor, every 15 minutes."""
    simulator, found = Simulator(1), []
    for number in range(events):
        at = start + timedelta(seconds=number * 450 / sensors)
        payload = json.loads(simulator.body(("temperature", "networkStatus")[number % 2], at))
        sensor = number // 2 % sensors
        payload["metadata"]["deviceId"] = f"bench{sensor:015d}"
        payload["labels"]["name"] = f"Room {sensor % 1000} sensor {sensor}"
        found.append((json.dumps(payload).encode(), at))
    return found


def history_bodies(device: str, days: int, end: datetime) -> list[tuple[bytes, datetime]]:
    """A temperature and a network status of one sensor every 15 minutes, for so many days."""
    start = end - timedelta(days=days)
    found = bodies(days * 2 * 96, 1, start)
    return [(body.replace(b"bench000000000000000", device.encode()), at) for body, at in found]


def folding(database: str, events: int) -> Took:
    given = bodies(events, min(FOLDED_SENSORS, events // 4))
    with registry(database) as opened:
        return took(lambda: fold(opened, given))


def fold(opened: Registry, given: list[tuple[bytes, datetime]]) -> None:
    for start in range(0, len(given), BATCH):
        opened.fold([Event.from_body(body, at) for body, at in given[start : start + BATCH]])


def judging(database: str, sensors: int) -> Took:
    """The median of judgements of sensors that were all heard within the last interval."""
    given = bodies(2 * sensors, sensors)
    with registry(database) as opened:
        fold(opened, given)
        now = given[-1][1].timestamp()
        opened.judge(now, "bench")
        times = [took(lambda: opened.judge(now + 5, "bench")) for _ in range(3)]
        return sorted(times, key=lambda each: each.wall)[1]


def bytes_a_sensor() -> float:
    given = bodies(SIZED_SENSORS * 2 * 96 * DAYS, SIZED_SENSORS)
    with registry("SQLite") as opened:
        fold(opened, given)
        while opened.tidy(4e9):
            pass
        with opened._database.read() as connection:
            pages, free, size = (
                connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("page_count", "freelist_count", "page_size")
            )
        return float((pages - free) * size / SIZED_SENSORS)


def took(action: Callable[[], object]) -> Took:
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return Took(time.perf_counter() - wall, time.process_time() - cpu)
