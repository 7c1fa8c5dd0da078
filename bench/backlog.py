"""Events put into a journal without a push, and what becomes of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from itertools import islice

from sqlalchemy import Engine, create_engine, insert, make_url, select

from bench.servers import Server
from receiver.journal import open_journal
from receiver.journal.tables import events, sinks
from receiver.settings import load
from receiver.simulator import Simulator

AT_ONCE = 10_000


def make_journal(server: Server) -> Engine:
    """Make the tables of a server that does not run yet; a connection of our own to its journal."""
    open_journal(load(server.environment())).close()
    url = make_url(server.database)
    return create_engine(url.set(drivername="postgresql+psycopg") if server.kind.postgres else url)


def fill(journal: Engine, count: int, *, matched: bool = False, age_seconds: float = 0.0) -> None:
    """Put new events into a journal, as intake leaves them: not matched to sinks yet."""
    received_at = time.time() - age_seconds
    rows = (
        {"id": f"{number}-{received_at:.0f}", "received_at": received_at, "matched": matched, "body": body}
        for number, body in enumerate(islice(bodies(), count))
    )
    while part := list(islice(rows, AT_ONCE)):
        with journal.begin() as connection:
            connection.execute(insert(events), part)


def bodies() -> Iterable[bytes]:
    return Simulator().bodies()


def delivered(journal: Engine) -> Mapping[str, int]:
    """How much each sink has been delivered."""
    with journal.connect() as connection:
        return dict(connection.execute(select(sinks.c.name, sinks.c.delivered)).tuples().all())
