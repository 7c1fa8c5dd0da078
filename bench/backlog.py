"""Events inserted into a journal without a push, and how many of them are delivered."""

from __future__ import annotations

import base64
import os
import random
import time
from collections.abc import Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Engine,
    Insert,
    String,
    case,
    cast,
    column,
    create_engine,
    insert,
    literal,
    make_url,
    select,
    table,
    text,
    true,
)

from bench.servers import Server
from receiver.journal import open_journal
from receiver.journal.sql.schema import DEAD, DELIVERED, PENDING, deliveries, events, sinks
from receiver.settings import load
from receiver.simulator import Simulator

BATCH = 10_000
BODIES = 20_000
"""Different bodies of a backlog that is not decoded any more."""

PAUSE_SECONDS = 1e9
SETTLED_BATCH = 500_000
REASONS = 20
BLOB = {"sqlite": "BLOB", "postgresql": "BYTEA"}
EVENTS = {
    "sqlite": text(
        """
        INSERT INTO events (id, received_at, routed, body, origin)
        WITH RECURSIVE numbers(n) AS (VALUES (:start) UNION ALL SELECT n + 1 FROM numbers WHERE n < :end)
        SELECT printf('%08x', :first + numbers.n * :step) || lower(hex(randomblob(6))),
            :first + numbers.n * :step, true, body, 'push'
        FROM numbers CROSS JOIN bodies ON bodies.n = numbers.n % :bodies
        """
    ),
    "postgresql": text(
        """
        INSERT INTO events (id, received_at, routed, body, origin)
        SELECT lpad(to_hex(floor(:first + n * :step)::bigint), 8, '0') || left(md5(n::text), 12),
            :first + n * :step, true, (SELECT body FROM bodies WHERE bodies.n = numbers.n % :bodies), 'push'
        FROM generate_series(CAST(:start AS bigint), CAST(:end AS bigint)) AS numbers(n)
        """
    ),
}
"""Ids like those of `new_id`."""


def open_tables(server: Server) -> Engine:
    """Create the tables of a server that is not running yet; a connection of our own to its journal."""
    open_journal(load(server.environment())).close()
    url = make_url(server.database)
    return create_engine(url.set(drivername="postgresql+psycopg") if server.kind.postgres else url)


def fill(journal: Engine, count: int, *, routed: bool = False, age_seconds: float = 0.0) -> None:
    """Insert new events into a journal, as intake stores them: not routed yet, unless `routed`."""
    received_at = time.time() - age_seconds
    bodies = Simulator().bodies()
    if routed:  # these are not decoded any more, so they may repeat
        bodies = cycle(list(islice(bodies, BODIES)))
    rows = (
        {"id": new_id(received_at), "received_at": received_at, "routed": routed, "body": body}
        for body in islice(bodies, count)
    )
    with journal.connect() as connection:
        if journal.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA cache_size = -500000")
        while batch := list(islice(rows, BATCH)):
            connection.execute(insert(events), batch)
            connection.commit()


def new_id(at: float) -> str:
    """An id like those of DT: it begins with the time, which determines its place in an index."""
    return base64.b32hexencode(round(at).to_bytes(4, "big") + random.randbytes(8))[:20].decode().lower()


def fill_settled(
    journal: Engine, count: int, *, half_stays: bool = False, ages: tuple[float, float] = (3600.0, 0.0)
) -> None:
    """Insert events into an empty journal that are delivered to the sinks `archive` and `dead`.

    They were received at regular intervals between two ages in seconds. With `half_stays`, at `dead` every tenth one is
    a dead letter and four more are pending. `dead` is paused for years. The database itself makes the rows, for
    millions of them; what a crash would leave is of no use.
    """
    now = time.time()
    paused = {"pauses": 1, "paused_until": now + PAUSE_SECONDS, "paused_since": now}
    with journal.connect() as connection:
        if journal.dialect.name == "sqlite":
            for setting in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -500000"):
                connection.exec_driver_sql(f"PRAGMA {setting}")
        connection.execute(insert(sinks), [{"name": "archive"}])
        connection.execute(insert(sinks), [{"name": "dead", **paused}])
        connection.exec_driver_sql(f"CREATE TEMPORARY TABLE bodies (n INTEGER PRIMARY KEY, body {BLOB[journal.name]})")
        given = [{"n": n, "body": body} for n, body in enumerate(islice(Simulator().bodies(), min(BODIES, count)))]
        if given:
            connection.execute(insert(table("bodies", column("n"), column("body"))), given)
        connection.commit()
        first, last = (now - age for age in ages)
        for start in range(1, count + 1, SETTLED_BATCH):
            part = {"start": start, "end": min(start + SETTLED_BATCH - 1, count), "bodies": len(given)}
            connection.execute(EVENTS[journal.name], {**part, "first": first, "step": (last - first) / count})
            connection.execute(insert_settled(part["start"], part["end"], now, half_stays))
            connection.commit()
    settle_down(journal)


def settle_down(journal: Engine) -> None:
    """Write everything to the disk, and on PostgreSQL do what the server itself does after a while."""
    if journal.name == "postgresql":
        with journal.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for command in ("VACUUM ANALYZE", "CHECKPOINT"):
                connection.execute(text(command))
    else:
        with Path(journal.url.database or "").open("rb") as file:
            os.fsync(file.fileno())


def insert_settled(start: int, end: int, now: float, half_stays: bool) -> Insert:
    """The deliveries of the events with keys from `start` to `end`."""
    of_dead = (sinks.c.name == "dead") & literal(half_stays)
    is_dead = of_dead & (events.c.key % 10 == 0)
    is_pending = of_dead & (events.c.key % 2 == 0)
    columns: dict[str, ColumnElement[Any]] = {
        "event": events.c.key,
        "sink": sinks.c.key,
        "state": case((is_dead, DEAD), (is_pending, PENDING), else_=DELIVERED),
        "due": case((is_dead, None), (is_pending, now)),
        "attempts": literal(1),
        "failures": literal(0),
        "first_attempt_at": literal(now),
        "settled_at": literal(now),
        "reason": case((is_dead, literal("HTTP ") + cast(400 + events.c.key // 10 % REASONS, String)), else_=""),
    }
    rows = select(*columns.values()).select_from(events).join(sinks, true()).where(events.c.key.between(start, end))
    return insert(deliveries).from_select(list(columns), rows.order_by(events.c.key, sinks.c.key))


def delivered(journal: Engine) -> Mapping[str, int]:
    """How many deliveries of each sink are completed."""
    with journal.connect() as connection:
        return dict(connection.execute(select(sinks.c.name, sinks.c.delivered)).tuples().all())
