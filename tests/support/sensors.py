"""Events of sensors at times of a test's choice, and a registry on each database."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from receiver.event import Event, rfc3339
from receiver.sensors.registry import Registry
from receiver.sensors.watch import Rules, Watched
from support.journals import SqlStore

START = datetime(2026, 3, 14, tzinfo=UTC)
PROJECT = "c8v2lh6000000000000p"
FREEZER = "c8v2lh6000000000000f"
DOOR = "c8v2lh6000000000000d"
_numbers = itertools.count()


def at(minutes: float) -> datetime:
    """So many minutes after START."""
    return START + timedelta(minutes=minutes)


def event(
    minutes: float,
    type: str = "networkStatus",
    data: Mapping[str, Any] | None = None,
    *,
    device: str | None = FREEZER,
    project: str | None = PROJECT,
    name: str | None = None,
    device_type: str = "temperature",
    received: float | None = None,
    backfilled: bool = False,
) -> Event:
    """An event that occurred so many minutes after START, and was received a second later or at `received`."""
    time = at(minutes)
    fields = {**(data or {}), "updateTime": rfc3339(time), **({"isBackfilled": True} if backfilled else {})}
    payload = {
        "event": {
            "eventId": f"e{next(_numbers):019d}",
            "eventType": type,
            "targetName": "",
            "timestamp": rfc3339(time),
            "data": {type: fields} if type != "labelsChanged" else (data or {}),
        },
        "labels": {} if name is None else {"name": name},
        "metadata": {"deviceId": device, "projectId": project, "deviceType": device_type},
    }
    return Event.from_body(
        json.dumps(payload).encode(), time + timedelta(seconds=1) if received is None else at(received)
    )


def temperature(minutes: float, value: float, **more: Any) -> Event:
    return event(minutes, "temperature", {"value": value}, **more)


def network(minutes: float, *connectors: str, **more: Any) -> Event:
    heard = [{"id": connector, "signalStrength": 50, "rssi": -80} for connector in connectors]
    return event(minutes, "networkStatus", {"signalStrength": 50, "rssi": -80, "cloudConnectors": heard}, **more)


def connection(minutes: float, state: str, **more: Any) -> Event:
    return event(minutes, "connectionStatus", {"connection": state, "available": []}, **more)


def latest_of(registry: Registry, device: str = FREEZER) -> dict[str, float]:
    """The latest value of each quantity."""
    (row,) = registry.named(device)
    facts = json.loads(row.facts)
    return {name.removeprefix("latest:"): fact[1] for name, fact in facts.items() if name.startswith("latest:")}


def sql(store: SqlStore, statement: str) -> list[Any]:
    """Execute a statement in the database of the registry."""
    with closing(store.database()) as database, database.write() as connection:
        done = connection.exec_driver_sql(statement)
        return [tuple(row) for row in done] if done.returns_rows else []


def row_of(registry: Registry, device: str = FREEZER) -> Any:
    (row,) = registry.named(device)
    return row


def contents(registry: Registry) -> tuple[Any, ...]:
    """All that folding stores, without what judging adds and when it was folded."""
    rows = [tuple(row)[:10] for row in registry.rows()]
    days = [
        (day.device_id, day.day, bytes(day.heard), bytes(day.filled), bytes(day.points), bytes(day.hours))
        for row in registry.rows()
        for day in registry.days(row.device_id, 0)
    ]
    return rows, days


def watched(**changes: Any) -> Watched:
    """A sensor as the judge sees it: heard at START, with an interval of 15 minutes."""
    values: dict[str, Any] = {
        "device_id": FREEZER,
        "name": "freezer",
        "project_id": PROJECT,
        "type": "temperature",
        "last_heard": START.timestamp(),
        "periodic": True,
        "connector": None,
        "offline_since": None,
        "interval_minutes": 15,
        "expected_from": 0.0,
        "snoozed_until": 0.0,
        "retired_at": None,
        "state": "ok",
    }
    return Watched(**{**values, **changes})


def fold_a_silent_freezer(registry: Registry, now: datetime) -> None:
    """A freezer that was heard until an hour and a half ago, with a hole before, and a door that is heard; judged."""
    minutes = (now - START).total_seconds() / 60
    ago = [*range(600, 300, -15), *range(240, 75, -15)]
    registry.fold([temperature(minutes - n, 4 + n / 100, name="freezer") for n in ago])
    registry.fold([network(minutes - n, "ccon1", name="freezer") for n in ago])
    registry.fold([event(minutes - n, device=DOOR, device_type="contact") for n in range(600, -1, -15)])
    registry.fold([event(minutes - 90, "batteryStatus", {"percentage": 92}, name="freezer")])
    registry.judge(now.timestamp(), "judge")


@pytest.fixture
def registry(store: SqlStore) -> Iterator[Registry]:
    """A registry on SQLite and on PostgreSQL."""
    registry = Registry(store.database(), Rules())
    yield registry
    registry.close()
