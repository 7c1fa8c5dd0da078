"""Growth: whether a long journal, many sensors, a long run or old events make the receiver slower or larger."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median

from sqlalchemy import Engine, func, select, update

from bench.backlog import delivered, fill_settled, open_tables
from bench.console import timed
from bench.console_data import ConsoleServer
from bench.drain import Case, drain_in
from bench.intake import MAX_RATE, signed
from bench.load import Pushes, push
from bench.postgresql import cpu_seconds_of, running_node
from bench.sensors import bodies, fold, took
from bench.servers import CSV, INTAKE_ONLY, RECEIVER, WORKERS, Kind, Server, folder, started
from bench.tables import ms, rate, ratio, show
from chaos.pair import Node
from receiver.journal.sql.schema import events
from receiver.sensors import open_registry
from receiver.settings import load
from receiver.testing.running import wait_until

EVENTS, SENSORS = 10_000_000, 100_000
FEW_SENSORS = 10_000
"""In the small registry. In both, a temperature and a network status of so many sensors are folded."""

BACKLOG = 100_000
LONG_RUN, WARM_UP = 500_000, 10_000
OLD = 200_000
SECONDS = 10.0
CONNECTIONS = 64
DAY = 86_400.0
LONG_DAYS, LONG_RETENTION_DAYS = 6, 3
RETENTION_DAYS = 7
DEAD = '[sinks.dead]\ntype = "csv"\npath = "dead.csv"\n'
SERVING = INTAKE_ONLY.replace("enabled = false", "enabled = true") + CSV + DEAD
DELIVERING = RECEIVER + CSV + DEAD
KEEPING = f"[journal]\nretention_days = {LONG_RETENTION_DAYS}\n"
PAGES = {
    "/metrics": "metrics",
    "overview": "console/",
    "sensors": "console/sensors",
    "silence": "console/silence",
    "sinks": "console/sinks",
    "dead letters": "console/dead-letters",
    "events": "console/events",
}


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f}"


SPEEDS = (
    ("pushes/s, 64 connections", "intake", rate),
    ("CPU µs/push, with its database", "intake_cpu", microseconds),
    ("csv drained, events/s", "drain", rate),
    ("CPU µs/event drained, without its database", "drain_cpu", microseconds),
)


@dataclass(frozen=True)
class Place:
    """A folder for a receiver, and the URL of its database, which is empty for SQLite."""

    folder: Path
    database: str

    def server(self, config: str) -> Server:
        kind = Kind("receiver", config=config, postgres=bool(self.database))
        return ConsoleServer(kind, self.folder, self.database)


class Databases:
    """Places on SQLite, or on one PostgreSQL server with PostgreSQL's defaults."""

    def __init__(self, node: Node | None) -> None:
        self.name = "PostgreSQL" if node else "SQLite"
        self._node = node
        self._numbers = count()

    @contextmanager
    def place(self) -> Iterator[Place]:
        """A new one, which is deleted at the end."""
        with folder() as where:
            if self._node is None:
                yield Place(where, "")
                return
            name = f"bench_{next(self._numbers)}"
            self._node.sql(f"CREATE DATABASE {name}")
            yield Place(where, self._node.url_of(name))
            self._node.sql(f"DROP DATABASE {name} WITH (FORCE)")

    def cpu_seconds(self) -> float:
        """Processor time of the database's own processes."""
        return cpu_seconds_of(self._node) if self._node else 0.0


@dataclass(frozen=True)
class Speed:
    """Pushes per second and their processor seconds, the same of drained events, and the seconds of each page."""

    intake: float
    intake_cpu: float
    drain: float
    drain_cpu: float
    pages: Mapping[str, float]


@dataclass(frozen=True)
class Registered:
    """Events per second that are folded, and seconds to judge a thousand sensors."""

    fold: float
    judge: float


def measure(size: float, rounds: int) -> None:
    """Print the tables."""
    long_run(round(LONG_RUN * size))
    retained = []
    for node in (nullcontext(), running_node()):
        with node as running:
            databases = Databases(running)
            retained += [*speed(databases, size, rounds), *retention(databases, size)]
    show(
        "Retention, with pushes at the highest rate, all delivered",
        ["old events", "number", "accepted/s", "removed/s", "removed / accepted"],
        retained,
    )


def speed(databases: Databases, size: float, rounds: int) -> list[Sequence[str]]:
    """An empty journal and a long one in turn; the row for the retention of the long one.

    Of the long one, half of the events have to stay for the sink `dead`, which is paused in both.
    """
    events_count, sensors = round(EVENTS * size), round(SENSORS * size)
    seconds = max(3.0, SECONDS * size)
    span = round(MAX_RATE * seconds * 1.5)
    empty: list[Speed] = []
    full: list[Speed] = []
    with databases.place() as long, signed(span * rounds + round(MAX_RATE * seconds)) as pushes:
        megabytes = prepare(long, events_count) / 1e6
        long_registry = registry_in(long, sensors)
        for number in range(rounds):
            with databases.place() as short:
                prepare(short, 0)
                empty_registry = registry_in(short, FEW_SENSORS)
                empty.append(speed_in(databases, short, pushes, span * number, seconds, round(BACKLOG * size)))
            full.append(speed_in(databases, long, pushes, span * number, seconds, round(BACKLOG * size)))
        rows = [
            *(
                row(text, [getattr(each, name) for each in empty], [getattr(each, name) for each in full], write)
                for text, name, write in SPEEDS
            ),
            row("folded into the registry, events/s", [empty_registry.fold], [long_registry.fold], rate),
            row("judging 1,000 sensors, ms", [empty_registry.judge], [long_registry.judge], ms),
            *(
                row(f"{name}, ms", [each.pages[name] for each in empty], [each.pages[name] for each in full], ms)
                for name in PAGES
            ),
        ]
        title = (
            f"Growth on {databases.name}: {events_count:,} events in the journal ({megabytes:,.0f} MB), half of them "
            f"not delivered to a dead sink, and {sensors:,} sensors; and an empty one with {FEW_SENSORS:,} sensors"
        )
        show(title, ["", "empty", "long", "long / empty"], rows)
        config, old_share = KEEPING + DELIVERING, LONG_RETENTION_DAYS / LONG_DAYS
        name = f"{databases.name}, the long journal, half of them stay"
        old = round(events_count * old_share)
        return [retained(name, long.server(config), old, pushes, span * rounds, seconds, LONG_RETENTION_DAYS)]


def prepare(place: Place, events_count: int) -> int:
    """Fill a journal; its size in bytes."""
    with opened(place.server(SERVING)) as journal:
        fill_settled(journal, events_count, half_stays=True, ages=(LONG_DAYS * DAY, 0.0))
        return size_bytes(journal)


def registry_in(place: Place, sensors: int) -> Registered:
    """A registry with so many sensors, which were heard once before."""
    sensors = max(sensors, FEW_SENSORS)
    heard = bodies(2 * (sensors + FEW_SENSORS), sensors)
    again, now = heard[2 * sensors :], heard[-1][1].timestamp()
    with closing(open_registry(load(place.server(SERVING).environment()))) as registry:
        fold(registry, heard[: 2 * sensors])
        folded = took(lambda: fold(registry, again))
        registry.judge(now, "bench")
        judged = median(took(lambda: registry.judge(now + 5, "bench")).wall for _ in range(3))
    return Registered(len(again) / folded.wall, judged / sensors * 1000)


def speed_in(databases: Databases, place: Place, pushes: Pushes, first: int, seconds: float, backlog: int) -> Speed:
    with started(place.server(SERVING)) as server:
        push(server.url, pushes, first, seconds / 3, CONNECTIONS)
        before = server.cpu_seconds() + databases.cpu_seconds()
        load = push(server.url, pushes, first + round(MAX_RATE * seconds / 2), seconds, CONNECTIONS)
        cpu = (server.cpu_seconds() + databases.cpu_seconds() - before) / load.pushes
        pages = {name: slowest(server, f"/{path}") for name, path in PAGES.items()}
    mark_routed(place)
    case = Case("csv", CSV + DEAD, ("archive",), backlog, postgres=bool(place.database))
    drained = drain_in(place.folder, case, place.database)
    return Speed(load.rate, cpu, drained.rate, drained.cpu, pages)


def slowest(server: Server, path: str) -> float:
    """Seconds of the slowest of some requests for a page; infinite if one of them fails."""
    try:
        return max(timed(server, path))
    except RuntimeError as error:
        print(error)
        return float("inf")


def mark_routed(place: Place) -> None:
    """Keep the events that were pushed out of the backlog that is drained."""
    with opened(place.server(SERVING)) as journal, journal.begin() as connection:
        connection.execute(update(events).where(events.c.routed.is_(False)).values(routed=True))


def row(
    text: str, empty: Sequence[float], full: Sequence[float], write: Callable[[float], str]
) -> tuple[str, str, str, str]:
    before, after = median(empty), median(full)
    return text, write(before), write(after), ratio(after, before)


def retention(databases: Databases, size: float) -> list[Sequence[str]]:
    """How fast old events are removed, while new ones are pushed at the highest rate and delivered."""
    rows = []
    for name, half_stays in (("all delivered", False), ("half of them stay", True)):
        old = round(OLD * max(0.1, size))
        seconds = max(3.0, SECONDS * size)
        age = RETENTION_DAYS * DAY + 3600
        with databases.place() as place, signed(round(MAX_RATE * seconds)) as pushes:
            server = place.server(DELIVERING)
            with opened(server) as journal:
                fill_settled(journal, old, half_stays=half_stays, ages=(age, age))
            rows.append(retained(f"{databases.name}, {name}", server, old, pushes, 0, seconds, RETENTION_DAYS))
    return rows


def retained(
    name: str, server: Server, old: int, pushes: Pushes, first: int, seconds: float, days: int
) -> Sequence[str]:
    received_before = time.time() - days * DAY
    with opened(server) as journal, started(server):
        before, began_at = count_old(journal, received_before), time.monotonic()
        load = push(server.url, pushes, first, seconds, CONNECTIONS)
        ended_at, after = time.monotonic(), count_old(journal, received_before)
    removed = (before - after) / (ended_at - began_at)
    return name, rate(old), rate(load.rate), rate(removed), ratio(removed, load.rate)


def long_run(events_count: int) -> None:
    """Memory of each process and size of the journal on SQLite, over so many events that are pushed and delivered."""
    with folder() as where, signed(round(events_count * 1.1) + WARM_UP + round(MAX_RATE * SECONDS)) as pushes:
        server = Place(where, "").server(RECEIVER + CSV)
        with started(server), opened(server) as journal:
            wait_until(lambda: len(server.memory()) == WORKERS + 3, what="all processes")
            at_rest = server.memory()
            used = push_all(server, journal, pushes, 0, WARM_UP)
            before, bytes_before, events_before = server.memory(), size_bytes(journal), count_events(journal)
            push_all(server, journal, pushes, used, events_count)
            after, more = server.memory(), count_events(journal) - events_before
            per_event = (size_bytes(journal) - bytes_before) / more
    rows = [
        (
            name,
            f"{at_rest[name]:.1f}",
            f"{before[name]:.1f}",
            f"{after[name]:.1f}",
            f"{after[name] - before[name]:+.1f}",
        )
        for name in at_rest
    ]
    sums = [sum(each.values()) for each in (at_rest, before, after)]
    total = ("together", *(f"{megabytes:.1f}" for megabytes in sums), f"{sums[2] - sums[1]:+.1f}")
    headings = ["MB (PSS)", "at rest", f"after {WARM_UP:,}", f"after {more:,} more", "growth"]
    show(f"Memory over {more:,} events, pushed and delivered to csv", headings, [*rows, total])
    print(f"The journal takes {per_event:,.0f} bytes per event, delivered to one sink.", flush=True)


def push_all(server: Server, journal: Engine, pushes: Pushes, first: int, number: int) -> int:
    """Push at least so many events, and wait until all are delivered; the number of the first unused push."""
    end = first + number
    while first < end:
        load = push(server.url, pushes, first, min(SECONDS, (end - first) / MAX_RATE * 5), CONNECTIONS)
        first += load.pushes + 2 * CONNECTIONS  # some were in progress
    wait_until(lambda: delivered(journal).get("archive") == count_events(journal), 600, "all deliveries")
    return first


@contextmanager
def opened(server: Server) -> Iterator[Engine]:
    """A connection of our own to the journal of a server, whose tables are created."""
    journal = open_tables(server)
    try:
        yield journal
    finally:
        journal.dispose()


def size_bytes(journal: Engine) -> int:
    with journal.connect() as connection:
        if journal.name == "postgresql":
            return int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one())
        pages, size = (
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("page_count", "page_size")
        )
    return int(pages * size)


def count_events(journal: Engine) -> int:
    with journal.connect() as connection:
        return connection.scalar(select(func.count()).select_from(events)) or 0


def count_old(journal: Engine, received_before: float) -> int:
    with journal.connect() as connection:
        return connection.scalar(select(func.count()).where(events.c.received_at < received_before)) or 0
