"""The tables of the journal in SQL, and how to upgrade those of older receivers.

`events` has a row for each event, `deliveries` one for each event and sink, `sinks` one for each sink ever enabled.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    false,
    literal_column,
    tuple_,
)

from receiver.event import Origin

SCHEMA_VERSION = 7
UPGRADES = {
    1: (
        "ALTER TABLE sinks ADD COLUMN enabled BOOLEAN NOT NULL DEFAULT false",
        "UPDATE sinks SET enabled = true",  # unknown until now, and unrouted events must reach all their sinks
    ),
    2: (
        "DROP INDEX events_unmatched",
        "ALTER TABLE events RENAME COLUMN matched TO routed",
        "ALTER TABLE deliveries RENAME COLUMN why TO reason",
        "ALTER TABLE quarantine RENAME COLUMN why TO reason",
        "ALTER TABLE sinks RENAME COLUMN last_failure TO last_failure_reason",
        "ALTER TABLE dispatchers RENAME COLUMN beat_at TO alive_at",
        "ALTER TABLE dispatchers ADD COLUMN warnings TEXT NOT NULL DEFAULT ''",
    ),
    3: ("ALTER TABLE sinks ADD COLUMN missed_from BIGINT",),
    4: ("UPDATE sinks SET failures = attempts - delivered",),  # which did not count failed probes
    5: (
        "ALTER TABLE events ADD COLUMN origin VARCHAR(16) NOT NULL DEFAULT 'push'",
        "ALTER TABLE quarantine ADD COLUMN origin VARCHAR(16) NOT NULL DEFAULT 'push'",
        "DROP INDEX deliveries_dead",
        "UPDATE deliveries SET reason = substr(reason, 1, 600) WHERE state = 2 AND length(reason) > 600",
    ),
    6: (),  # one more index
}
"""The statements that upgrade each version to the next. Missing tables are created before them, indexes afterwards."""

_Key = BigInteger().with_variant(Integer, "sqlite")
MAX_REASON = 600
"""How many characters of a reason are stored: an index of PostgreSQL holds at most 2,704 bytes of a row."""

PENDING, DELIVERED, DEAD = 0, 1, 2
"""States of a delivery. A pending one has a due time, the others have none."""

metadata = MetaData()


def _partial_index(condition: ColumnElement[bool], name: str, *columns: Column[Any]) -> None:
    """An index of only the rows that meet a condition."""
    Index(name, *columns, sqlite_where=condition, postgresql_where=condition)


def _origin_column() -> Column[str]:
    return Column("origin", String(16), nullable=False, server_default=Origin.PUSH.value)


versions = Table("receiver_schema", metadata, Column("version", Integer, primary_key=True))
events = Table(
    "events",
    metadata,
    Column("key", _Key, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("received_at", Double, nullable=False),
    Column("routed", Boolean, nullable=False),
    Column("body", LargeBinary, nullable=False),
    _origin_column(),
)
_partial_index(events.c.routed.is_(False), "events_unrouted", events.c.key)
Index("events_received", events.c.received_at, events.c.key)
received_place = tuple_(events.c.received_at, events.c.key)
"""Of an event in the order of `events_received`."""
sinks = Table(
    "sinks",
    metadata,
    Column("key", Integer, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("delivered", BigInteger, nullable=False, default=0),
    Column("attempts", BigInteger, nullable=False, default=0),
    Column("failures", BigInteger, nullable=False, default=0),
    Column("last_success_at", Double),
    Column("last_failure_at", Double),
    Column("last_failure_reason", Text),
    Column("pauses", Integer, nullable=False, default=0),
    Column("paused_until", Double, nullable=False, default=0.0),
    Column("paused_since", Double),
    Column("paused_seconds", Double, nullable=False, default=0.0),
    Column("pause_reason", Text, nullable=False, default=""),
    Column("on_trial", String(32)),
    Column("enabled", Boolean, nullable=False, server_default=false()),
    Column("missed_from", BigInteger),
)
deliveries = Table(
    "deliveries",
    metadata,
    Column("event", _Key, primary_key=True),
    Column("sink", Integer, primary_key=True),
    Column("state", SmallInteger, nullable=False),
    Column("due", Double),
    Column("holder", String(32)),
    Column("attempts", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("first_attempt_at", Double),
    Column("settled_at", Double),
    Column("reason", Text),
    sqlite_with_rowid=False,
)
IS_PENDING = deliveries.c.state == PENDING
"""For known deliveries: SQLite would find them by `deliveries_pending` if asked for a due time, and read all of a sink.
"""
IS_DEAD = deliveries.c.state == literal_column(str(DEAD))
"""A literal, since a partial index is not used for a value that is bound later."""
_partial_index(
    deliveries.c.due.is_not(None), "deliveries_pending", deliveries.c.sink, deliveries.c.due, deliveries.c.event
)
_partial_index(deliveries.c.holder.is_not(None), "deliveries_held", deliveries.c.holder)
_partial_index(IS_DEAD, "deliveries_dead", deliveries.c.sink, deliveries.c.event, deliveries.c.state)
_partial_index(
    IS_DEAD, "deliveries_reasons", deliveries.c.sink, deliveries.c.reason, deliveries.c.event, deliveries.c.state
)
# the state is in both for SQLite: else it would look each row up in the table, although all have the same
quarantine = Table(
    "quarantine",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("received_at", Double, nullable=False),
    Column("reason", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    _origin_column(),
)
Index("quarantine_received", quarantine.c.received_at, quarantine.c.id)
dispatchers = Table(
    "dispatchers",
    metadata,
    Column("holder", String(32), primary_key=True),
    Column("alive_at", Double, nullable=False),
    Column("clock", Double, nullable=False),
    Column("warnings", Text, nullable=False, server_default=""),
)
secrets = Table(
    "secrets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("last_at", Double, nullable=False),
)
documents = Table(
    "receiver_documents",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("content", LargeBinary),
    Column("leased_until", Double, nullable=False, default=0.0),
)
