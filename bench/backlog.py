"""Events inserted into a journal without a push, and how many of them are delivered."""

from __future__ import annotations

import base64
import random
import time
from collections.abc import Mapping
from itertools import cycle, islice
from typing import Any

from sqlalchemy import ColumnElement, Engine, case, create_engine, insert, literal, make_url, select, true

from bench.servers import Server
from receiver.journal import open_journal
from receiver.journal.sql.schema import DELIVERED, PENDING, deliveries, events, sinks
from receiver.settings import load
from receiver.simulator import Simulator

BATCH = 10_000
BODIES = 20_000
"""Different bodies of a backlog that is not decoded any more."""

PAUSE_SECONDS = 1e9


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


def fill_settled(journal: Engine, count: int, *, pending: int = 0, age_seconds: float = 3600.0) -> None:
    """Insert events that are delivered to the sinks `archive` and `dead`, but for some that are pending for `dead`.

    These are spread evenly. `dead` is paused for years.
    """
    fill(journal, count, routed=True, age_seconds=age_seconds)
    now = time.time()
    every = count // pending if pending else count + 1
    is_pending = (sinks.c.name == "dead") & (events.c.key % every == 0)
    columns: dict[str, ColumnElement[Any]] = {
        "event": events.c.key,
        "sink": sinks.c.key,
        "state": case((is_pending, PENDING), else_=DELIVERED),
        "due": case((is_pending, now)),
        "attempts": literal(1),
        "failures": literal(0),
        "first_attempt_at": literal(now),
        "settled_at": literal(now),
        "reason": literal(""),
    }
    with journal.begin() as connection:
        paused = {"pauses": 1, "paused_until": now + PAUSE_SECONDS, "paused_since": now}
        connection.execute(insert(sinks), [{"name": "archive"}])
        connection.execute(insert(sinks), [{"name": "dead", **paused}])
        rows = select(*columns.values()).select_from(events).join(sinks, true()).order_by(events.c.key, sinks.c.key)
        connection.execute(insert(deliveries).from_select(list(columns), rows))


def delivered(journal: Engine) -> Mapping[str, int]:
    """How many deliveries of each sink are completed."""
    with journal.connect() as connection:
        return dict(connection.execute(select(sinks.c.name, sinks.c.delivered)).tuples().all())
