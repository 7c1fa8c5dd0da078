"""A journal and a registry as large as the console is made for, inserted without pushes and mostly by the database."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    String,
    case,
    cast,
    create_engine,
    delete,
    func,
    insert,
    literal,
    make_url,
    or_,
    select,
    text,
    update,
)

from bench.backlog import BATCH, new_id, open_tables
from bench.sensors import bodies, fold, history_bodies
from bench.servers import Kind, Server, folder
from receiver.journal.sql.schema import DEAD, DELIVERED, deliveries, events, quarantine, sinks
from receiver.sensors import open_registry, registry_path
from receiver.sensors.tables import days, incidents, sensors
from receiver.settings import load

EVENTS, DEAD_LETTERS, QUARANTINED, SENSORS, INCIDENTS = 2_000_000, 1_000_000, 10_000, 100_000, 2_000
REASONS = 20
INTERVAL_SECONDS = 900.0
HISTORY_DAYS = 31
WITH_HISTORY = 1000
"""So many sensors, the first ones of the list, have a history of all days; the others have the last hours."""

OPEN_INCIDENTS = 100
TEMPLATE = "template"
PASSWORD = "the password of a benchmark"


class ConsoleServer(Server):
    """A server with a console."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "CONSOLE_PASSWORD": PASSWORD}


@contextmanager
def seeded(kind: Kind, size: float) -> Iterator[ConsoleServer]:
    """A server that is not running yet, with a full journal and registry. PostgreSQL has no statistics of them."""
    with folder() as where:
        server = ConsoleServer(kind, where)
        with closing(open_registry(load(server.environment()))):
            journal = open_tables(server)
        if kind.postgres:
            forbid_statistics(journal)
        fill_registry(server, round(SENSORS * size))
        fill_journal(journal, round(EVENTS * size), round(DEAD_LETTERS * size), round(SENSORS * size))
        fill_quarantine(journal, round(QUARANTINED * size))
        journal.dispose()
        yield server


def forbid_statistics(journal: Engine) -> None:
    with journal.begin() as connection:
        for name in connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all():
            connection.execute(text(f"ALTER TABLE {name} SET (autovacuum_enabled = false)"))


def make_statistics(server: Server) -> None:
    """As PostgreSQL itself does after a while."""
    journal = open_tables(server)
    with journal.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    journal.dispose()


def fill_journal(journal: Engine, count: int, dead: int, devices: int) -> None:
    """Events of two for each sensor and interval up to now; each is delivered to `archive`, and most to `erp`."""
    rounds = max(1, count // (2 * devices))
    start = datetime.now(UTC) - timedelta(seconds=rounds * INTERVAL_SECONDS)
    first = [
        {"id": new_id(at.timestamp()), "received_at": at.timestamp(), "routed": True, "body": body}
        for body, at in bodies(count // rounds, devices, start)
    ]
    with journal.connect() as connection:
        if journal.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA cache_size = -500000")
        for begin in range(0, len(first), BATCH):
            connection.execute(insert(events), first[begin : begin + BATCH])
        end = connection.scalar(select(func.max(events.c.key)))
        for number in range(1, rounds):
            later = number * INTERVAL_SECONDS
            copied = select(
                literal(f"{new_id(start.timestamp() + later)[:7]}w") + func.substr(events.c.id, 9),
                events.c.received_at + later,
                events.c.routed,
                events.c.body,
            ).where(events.c.key <= end)
            columns = ["id", "received_at", "routed", "body"]
            connection.execute(insert(events).from_select(columns, copied.order_by(events.c.key)))
        connection.commit()
        fill_deliveries(connection, dead)
        connection.commit()


def fill_deliveries(connection: Connection, dead: int) -> None:
    """Of each event, a delivery to `archive` that was successful, and one to `erp`, of which the last ones are dead."""
    now = time.time()
    is_dead = (sinks.c.name == "erp") & (
        events.c.key > select(events.c.key).order_by(events.c.key.desc()).offset(dead).limit(1).scalar_subquery()
    )
    reason = literal("HTTP ") + cast(400 + events.c.key % REASONS, String) + ": the endpoint does not accept this event"
    columns = {
        "event": events.c.key,
        "sink": sinks.c.key,
        "state": case((is_dead, DEAD), else_=DELIVERED),
        "attempts": literal(1),
        "failures": literal(0),
        "first_attempt_at": literal(now),
        "settled_at": literal(now),
        "reason": case((is_dead, reason), else_=""),
    }
    connection.execute(insert(sinks), [{"name": "archive"}, {"name": "erp"}])
    rows = select(*columns.values()).select_from(events.join(sinks, literal(True))).order_by(events.c.key, sinks.c.key)
    connection.execute(insert(deliveries).from_select(list(columns), rows))


def fill_quarantine(journal: Engine, count: int) -> None:
    now = time.time()
    rows = [
        {"id": f"{n:064x}", "received_at": now - n, "reason": "the body is not JSON", "body": b"x" * 500}
        for n in range(count)
    ]
    with journal.begin() as connection:
        connection.execute(insert(quarantine), rows)


def fill_registry(server: Server, count: int) -> None:
    """Sensors that were heard in the last interval; the first ones have a history, and some are in incidents."""
    now = datetime.now(UTC)
    with closing(open_registry(load(server.environment()))) as registry:
        fold(registry, history_bodies(TEMPLATE, HISTORY_DAYS, now))
        while registry.tidy(now.timestamp() + 7200):
            pass
        fold(registry, bodies(2 * count, count, now - timedelta(seconds=INTERVAL_SECONDS)))
    engine = create_engine(registry_url(server))
    with engine.begin() as connection:
        copy_history(connection)
        fill_incidents(connection, count, now.timestamp())
    engine.dispose()


def registry_url(server: Server) -> URL:
    path = registry_path(load(server.environment()))
    return make_url(f"sqlite:///{path}") if path else make_url(server.database).set(drivername="postgresql+psycopg")


def copy_history(connection: Connection) -> None:
    names = ["device_id", "day", "heard", "filled", "points", "hours", "folded_at"]
    chosen = (
        select(sensors.c.device_id)
        .where(sensors.c.device_id != TEMPLATE)
        .order_by(sensors.c.device_id)
        .limit(WITH_HISTORY)
    ).subquery()
    of_template = [days.c[name] for name in names[1:]]
    connection.execute(delete(days).where(days.c.device_id.in_(select(chosen.c.device_id))))
    copied = select(chosen.c.device_id, *of_template).join_from(chosen, days, days.c.device_id == TEMPLATE)
    connection.execute(insert(days).from_select(names, copied))
    known_for = HISTORY_DAYS * 86400.0
    with_history = sensors.c.device_id.in_(select(chosen.c.device_id))
    connection.execute(update(sensors).where(with_history).values(first_heard=sensors.c.first_heard - known_for))
    connection.execute(update(sensors).values(interval_minutes=15, learned_at=time.time(), state="ok"))
    silent = or_(*(sensors.c.device_id.like(f"%{end}") for end in ("77", "501")))
    connection.execute(update(sensors).where(silent).values(state="silent"))
    for table in (days, sensors):
        connection.execute(delete(table).where(table.c.device_id == TEMPLATE))


def fill_incidents(connection: Connection, count: int, now: float) -> None:
    """Most are closed and of one sensor; one is of a fifth of all sensors."""
    devices = connection.scalars(select(sensors.c.device_id).order_by(sensors.c.device_id)).all()
    rows = []
    for number in range(INCIDENTS):
        is_project = number == INCIDENTS - 1
        members = devices[: count // 5] if is_project else [devices[number * 37 % count]]
        since = now - (INCIDENTS - number) * 1200
        rows.append(
            {
                "cause": "project" if is_project else "device",
                "subject": "p" if is_project else members[0],
                "project_id": "p",
                "sensors": json.dumps(members),
                "since": since,
                "opened": since + 3600,
                "closed": None if number >= INCIDENTS - OPEN_INCIDENTS else since + 7200,
                "reason": f"nothing was heard of {len(members)} sensors for an hour",
                "unstable": False,
                "announced": 2,
            }
        )
    connection.execute(insert(incidents), rows)


def registry_devices(server: Server) -> list[str]:
    """All device ids in the order of their names."""
    with closing(open_registry(load(server.environment()), create=False)) as registry:
        return [row.device_id for row in sorted(registry.rows(), key=lambda row: (row.name.lower(), row.device_id))]
