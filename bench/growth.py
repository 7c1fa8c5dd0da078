"""Growth: whether a long journal, a long run or old events make the receiver slower or larger. All on SQLite."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import urllib3
from sqlalchemy import Engine, func, select, update

from bench.backlog import delivered, fill_settled, open_tables
from bench.drain import Case, drain_in
from bench.intake import MAX_RATE, signed
from bench.load import Pushes, push
from bench.servers import CSV, RECEIVER, SQLITE, WORKERS, Server, folder, started
from bench.tables import ms, rate, ratio, show
from receiver.journal.sql.schema import events
from receiver.testing.running import wait_until

EVENTS, PENDING = 2_000_000, 1_000_000
BACKLOG = 100_000
LONG_RUN, WARM_UP = 500_000, 10_000
OLD = 200_000
SECONDS = 10.0
CONNECTIONS = 64
DEAD = '[sinks.dead]\ntype = "csv"\npath = "dead.csv"\n'
DELIVERING = SQLITE.but("receiver on SQLite, delivering to csv", RECEIVER + CSV + DEAD)
RETENTION_SECONDS = 7 * 86_400.0


@dataclass(frozen=True)
class Speed:
    """Pushes per second, drained events per second, and how many seconds `/metrics` takes."""

    intake: float
    drain: float
    page: float


def measure(size: float, rounds: int) -> None:
    """Print the tables."""
    speed(size, rounds)
    long_run(round(LONG_RUN * size))
    retention(size)


def speed(size: float, rounds: int) -> None:
    """An empty journal and a long one in turn. The sink `dead` is paused in both."""
    count, pending = round(EVENTS * size), round(PENDING * size)
    seconds = max(3.0, SECONDS * size)
    span = round(MAX_RATE * seconds * 1.5)
    empty: list[Speed] = []
    full: list[Speed] = []
    with folder() as long, signed(span * rounds) as pushes:
        bytes_before = prepare(long, count, pending)
        for number in range(rounds):
            with folder() as short:
                prepare(short, 0, 0)
                empty.append(speed_in(short, pushes, span * number, seconds, round(BACKLOG * size)))
            full.append(speed_in(long, pushes, span * number, seconds, round(BACKLOG * size)))
    title = (
        f"Growth: {count:,} events in the journal ({bytes_before / 1e6:,.0f} MB), {pending:,} pending for a dead sink"
    )
    rows = {"pushes/s, 64 connections": "intake", "csv drained, events/s": "drain", "GET /metrics, ms": "page"}
    show(title, ["", "empty", "long", "long / empty"], [row(text, name, empty, full) for text, name in rows.items()])


def prepare(where: Path, count: int, pending: int) -> int:
    journal = open_tables(Server(DELIVERING, where))
    fill_settled(journal, count, pending=pending)
    size = size_bytes(journal)
    journal.dispose()
    return size


def speed_in(where: Path, pushes: Pushes, first: int, seconds: float, backlog: int) -> Speed:
    with started(Server(SQLITE, where)) as server:
        push(server.url, pushes, first, seconds / 3, CONNECTIONS)
        load = push(server.url, pushes, first + round(MAX_RATE * seconds / 2), seconds, CONNECTIONS)
        began_at = time.monotonic()
        urllib3.request("GET", f"{server.url}metrics", retries=False, timeout=60)
        page = time.monotonic() - began_at
    mark_routed(where)
    return Speed(load.rate, drain_in(where, Case("csv", CSV + DEAD, ("archive",), backlog)).rate, page)


def mark_routed(where: Path) -> None:
    """Keep the events that were pushed out of the backlog that is drained."""
    journal = open_tables(Server(DELIVERING, where))
    with journal.begin() as connection:
        connection.execute(update(events).where(events.c.routed.is_(False)).values(routed=True))
    journal.dispose()


def row(text: str, name: str, empty: list[Speed], full: list[Speed]) -> tuple[str, str, str, str]:
    before, after = (median(getattr(each, name) for each in of) for of in (empty, full))
    write = ms if name == "page" else rate
    return text, write(before), write(after), ratio(after, before)


def long_run(count: int) -> None:
    """Memory of each process and size of the journal, over so many events that are pushed and delivered."""
    with folder() as where, signed(round(count * 1.1) + WARM_UP + round(MAX_RATE * SECONDS)) as pushes:
        server = Server(SQLITE.but(DELIVERING.name, RECEIVER + CSV), where)
        with started(server):
            journal = open_tables(server)
            wait_until(lambda: len(server.memory()) == WORKERS + 3, what="all processes")
            at_rest = server.memory()
            used = push_all(server, journal, pushes, 0, WARM_UP)
            before, bytes_before, events_before = server.memory(), size_bytes(journal), count_events(journal)
            push_all(server, journal, pushes, used, count)
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


def push_all(server: Server, journal: Engine, pushes: Pushes, first: int, count: int) -> int:
    """Push at least so many events, and wait until all are delivered; the number of the first unused push."""
    end = first + count
    while first < end:
        load = push(server.url, pushes, first, min(SECONDS, (end - first) / MAX_RATE * 5), CONNECTIONS)
        first += load.pushes + 2 * CONNECTIONS  # some were in progress
    wait_until(lambda: delivered(journal).get("archive") == count_events(journal), 600, "all deliveries")
    return first


def retention(size: float) -> None:
    """How fast old events are removed, while new ones are pushed at the highest rate and delivered."""
    rows = []
    for name, share in (("all delivered", 0.0), ("half of them pending for a dead sink", 0.5)):
        count = round(OLD * max(0.1, size))
        seconds = max(3.0, SECONDS * size)
        with folder() as where, signed(round(MAX_RATE * seconds)) as pushes:
            server = Server(DELIVERING, where)
            journal = open_tables(server)
            fill_settled(journal, count, pending=round(count * share), age_seconds=RETENTION_SECONDS + 3600)
            with started(server):
                before, began_at = count_old(journal), time.monotonic()
                load = push(server.url, pushes, 0, seconds, CONNECTIONS)
                removed = (before - count_old(journal)) / (time.monotonic() - began_at)
                rows.append((name, rate(count), rate(load.rate), rate(removed), ratio(removed, load.rate)))
            journal.dispose()
    show(
        "Retention, with pushes at the highest rate, all delivered",
        ["old events", "number", "accepted/s", "removed/s", "removed / accepted"],
        rows,
    )


def size_bytes(journal: Engine) -> int:
    with journal.connect() as connection:
        pages, size = (
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("page_count", "page_size")
        )
    return int(pages * size)


def count_events(journal: Engine) -> int:
    with journal.connect() as connection:
        return connection.scalar(select(func.count()).select_from(events)) or 0


def count_old(journal: Engine) -> int:
    with journal.connect() as connection:
        old = events.c.received_at < time.time() - RETENTION_SECONDS
        return connection.scalar(select(func.count()).where(old)) or 0
