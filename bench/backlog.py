"""Events put into a journal without a push, and what becomes of them."""

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
from receiver.journal.tables import DELIVERED, PENDING, deliveries, events, sinks
from receiver.settings import load
from receiver.simulator import Simulator

AT_ONCE = 10_000
BODIES = 20_000
LONG_SECONDS = 1e9


def open_tables(server: Server) -> Engine:
    """Make the tables of a server that does not run yet; a connection of our own to its journal."""
    open_journal(load(server.environment())).close()
    url = make_url(server.database)
    return create_engine(url.set(drivername="postgresql+psycopg") if server.kind.postgres else url)


def fill(journal: Engine, count: int, *, matched: bool = False, age_seconds: float = 0.0) -> None:
    """Put new events into a journal, as intake leaves them: not matched to sinks yet."""
    began = time.time() - age_seconds
    bodies = Simulator().bodies()
    if matched:  # none of these is decoded any more, so they may be alike
        bodies = cycle(list(islice(bodies, BODIES)))
    rows = (
        {"id": new_id(began), "received_at": began, "matched": matched, "body": body} for body in islice(bodies, count)
    )
    with journal.connect() as connection:
        if journal.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA cache_size = -500000")
        while part := list(islice(rows, AT_ONCE)):
            connection.execute(insert(events), part)
            connection.commit()


def new_id(at: float) -> str:
    """Like an event's: it begins with the time, which decides where in an index it goes."""
    return base64.b32hexencode(round(at).to_bytes(4, "big") + random.randbytes(8))[:20].decode().lower()


def fill_settled(journal: Engine, count: int, *, owed: int = 0, age_seconds: float = 3600.0) -> None:
    """Put in events that are delivered to the sinks `archive` and `dead`, except `owed` that are pending for `dead`.

    Those are spread evenly. `dead` is paused for years.
    """
    fill(journal, count, matched=True, age_seconds=age_seconds)
    now = time.time()
    every = count // owed if owed else count + 1
    pending = (sinks.c.name == "dead") & (events.c.key % every == 0)
    columns: dict[str, ColumnElement[Any]] = {
        "event": events.c.key,
        "sink": sinks.c.key,
        "state": case((pending, PENDING), else_=DELIVERED),
        "due": case((pending, now)),
        "attempts": literal(1),
        "failures": literal(0),
        "first_attempt_at": literal(now),
        "settled_at": literal(now),
        "why": literal(""),
    }
    with journal.begin() as connection:
        paused = {"pauses": 1, "paused_until": now + LONG_SECONDS, "paused_since": now}
        connection.execute(insert(sinks), [{"name": "archive"}])
        connection.execute(insert(sinks), [{"name": "dead", **paused}])
        rows = select(*columns.values()).select_from(events).join(sinks, true()).order_by(events.c.key, sinks.c.key)
        connection.execute(insert(deliveries).from_select(list(columns), rows))


def delivered(journal: Engine) -> Mapping[str, int]:
    """How much each sink has been delivered."""
    with journal.connect() as connection:
        return dict(connection.execute(select(sinks.c.name, sinks.c.delivered)).tuples().all())
