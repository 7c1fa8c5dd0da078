"""Databases of the sql sink, queried as any other program would."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import make_url

from receiver.delivery.sinks import Sink
from receiver.errors import Pause
from receiver.event import Event
from receiver.testing.postgresql import new_database
from receiver.testing.running import ROOT
from support.built_in_sinks import build, deliver_batch, open_sink
from support.events import temperature

COLUMN_TYPES = {
    "sqlite": {"time": "DATETIME", "double": "DOUBLE"},
    "postgresql": {"time": "TIMESTAMP WITH TIME ZONE", "double": "DOUBLE PRECISION"},
}
READINGS_COLUMNS = (
    "event_id TEXT NOT NULL, reading INTEGER NOT NULL, time {time} NOT NULL, device_id TEXT, device_name TEXT, "
    "project_id TEXT, event_type TEXT NOT NULL, quantity TEXT NOT NULL, value {double} NOT NULL, unit TEXT NOT NULL, "
    "text TEXT NOT NULL, received_at {time} NOT NULL, PRIMARY KEY (event_id, reading)"
)
"""The columns of the table of all readings, to be formatted with COLUMN_TYPES."""


class SqlDatabase:
    """A database of its own, and the sql sinks that a test opens on it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.kind = make_url(url).get_backend_name()
        self._sinks: list[Sink] = []

    def open(self, **options: Any) -> Sink:
        sink = build_sql(self.url, **options)
        self._sinks.append(sink)
        return open_sink(sink)

    def close(self) -> None:
        for sink in self._sinks:
            sink.hook.close()

    @property
    def path(self) -> Path:
        """The file of an SQLite database."""
        return Path(str(make_url(self.url).database))

    def query(self, statement: str) -> list[dict[str, Any]]:
        """Execute a statement as another program would, in the time zone UTC."""
        if self.kind == "sqlite":
            with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
                connection.row_factory = sqlite3.Row
                return [dict(row) for row in connection.execute(statement)]
        with psycopg.connect(self.url, autocommit=True, row_factory=dict_row) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            cursor = connection.execute(statement.encode())
            return list(cursor) if cursor.description else []

    def rows(self, table: str = "readings", *, order: str = "event_id, reading") -> list[dict[str, Any]]:
        """All rows of a table, with times as text."""
        return [
            {column: _text_of_time(value) for column, value in row.items()}
            for row in self.query(f"SELECT * FROM {table} ORDER BY {order}")
        ]

    def event_ids(self, table: str = "readings") -> list[str]:
        """The event id of each row, in ascending order."""
        return [row["event_id"] for row in self.rows(table)]

    def latest_event_ids(self) -> dict[str, str]:
        """The event id of the latest reading of each device."""
        return {row["device_id"]: row["event_id"] for row in self.rows("latest")}

    def create_readings(self, *, columns: str = READINGS_COLUMNS, name: str = "readings", constraint: str = "") -> None:
        """Create the table of all readings, or one like it, before the sink does."""
        columns = columns.format(**COLUMN_TYPES[self.kind])
        self.query(f"CREATE TABLE {name} ({columns}{constraint and f', {constraint}'})")


def build_sql(url: str, **options: Any) -> Sink:
    return build("sql", ROOT, {"url": url, **options})


def accepts(sink: Sink, *events: Event) -> bool:
    """Whether the sink delivers these events now; otherwise it must be paused."""
    try:
        deliver_batch(sink, *events)
    except Pause:
        return False
    return True


def overlapping_events(seed: int, count: int) -> list[Event]:
    """Events of four devices at twenty times, so that some are of the same time."""
    chance = random.Random(seed)
    return [
        temperature(f"e{number:03}", number, minute=chance.randrange(20), device=f"d{chance.randrange(4)}")
        for number in range(count)
    ]


def random_batches(events: list[Event], seed: int) -> Iterator[list[Event]]:
    """All events, in random order and in batches of random size."""
    chance = random.Random(seed)
    remaining = chance.sample(events, len(events))
    while remaining:
        size = chance.randrange(1, 25)
        yield remaining[:size]
        remaining = remaining[size:]


def assert_complete(database: SqlDatabase, events: list[Event]) -> None:
    """The readings of all events are stored once, and the newest of each device is its latest."""
    in_order = sorted(events, key=lambda each: (each.readings()[0].time, each.id))
    assert database.event_ids() == sorted(each.id for each in events)
    assert database.latest_event_ids() == {str(each.device_id): each.id for each in in_order}


def _text_of_time(value: Any) -> Any:
    return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if isinstance(value, datetime) else value


@pytest.fixture(params=["sqlite", "postgresql"])
def sql_database(request: pytest.FixtureRequest) -> SqlDatabase:
    """A database of each kind in turn."""
    database: SqlDatabase = request.getfixturevalue(f"{request.param}_database")
    return database


@pytest.fixture
def sqlite_database(tmp_path: Path) -> Iterator[SqlDatabase]:
    database = SqlDatabase(f"sqlite:///{tmp_path / 'data.sqlite'}")
    yield database
    database.close()


@pytest.fixture
def postgresql_database() -> Iterator[SqlDatabase]:
    """On the PostgreSQL that all tests share."""
    database = SqlDatabase(new_database())
    yield database
    database.close()
