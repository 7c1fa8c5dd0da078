"""The tables of the journal in SQL.

`events` holds each event once, `deliveries` a row for each event and sink, `sinks` what is remembered of a sink.
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
)

SCHEMA_VERSION = 2
UPGRADES = {
    1: (
        "ALTER TABLE sinks ADD COLUMN enabled BOOLEAN NOT NULL DEFAULT false",
        "UPDATE sinks SET enabled = true",  # nobody knows, and events that are not matched yet must find their sink
    )
}
"""What makes of each version the next one. A receiver of the version before must be able to work on with it."""

_Key = BigInteger().with_variant(Integer, "sqlite")
PENDING, DELIVERED, DEAD = 0, 1, 2
"""States of a delivery. One that is pending has a due time, and only one that is pending."""

metadata = MetaData()


def _part(condition: ColumnElement[bool], name: str, *columns: Column[Any]) -> None:
    """An index of the rows that meet a condition."""
    Index(name, *columns, sqlite_where=condition, postgresql_where=condition)


versions = Table("receiver_schema", metadata, Column("version", Integer, primary_key=True))
events = Table(
    "events",
    metadata,
    Column("key", _Key, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("received_at", Double, nullable=False),
    Column("matched", Boolean, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
_part(events.c.matched.is_(False), "events_unmatched", events.c.key)
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
    Column("last_failure", Text),
    Column("pauses", Integer, nullable=False, default=0),
    Column("paused_until", Double, nullable=False, default=0.0),
    Column("paused_since", Double),
    Column("paused_seconds", Double, nullable=False, default=0.0),
    Column("pause_reason", Text, nullable=False, default=""),
    Column("on_trial", String(32)),
    Column("enabled", Boolean, nullable=False, server_default=false()),
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
    Column("why", Text),
    sqlite_with_rowid=False,
)
IS_DEAD = deliveries.c.state == literal_column(str(DEAD))
"""Spelt out, since an index on a part of a table is not used for a value that is bound later."""
_part(deliveries.c.due.is_not(None), "deliveries_pending", deliveries.c.sink, deliveries.c.due, deliveries.c.event)
_part(deliveries.c.holder.is_not(None), "deliveries_held", deliveries.c.holder)
_part(IS_DEAD, "deliveries_dead", deliveries.c.sink, deliveries.c.event)
quarantine = Table(
    "quarantine",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("received_at", Double, nullable=False),
    Column("why", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
dispatchers = Table(
    "dispatchers",
    metadata,
    Column("holder", String(32), primary_key=True),
    Column("beat_at", Double, nullable=False),
    Column("clock", Double, nullable=False),
)
secrets = Table(
    "secrets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("last_at", Double, nullable=False),
)
