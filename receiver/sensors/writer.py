"""What the dispatcher writes of sensors: it merges events into what is stored, and deletes what is too old."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, bindparam, delete, func, select, update

from receiver.event import Event
from receiver.sensors import history
from receiver.sensors.folding import (
    Batch,
    Day,
    Facts,
    News,
    greatest,
    least,
    merge_facts,
    offline_since,
    only_connector,
)
from receiver.sensors.history import DAY_SECONDS
from receiver.sensors.minutes import from_bytes, to_bytes
from receiver.sensors.reader import RegistryReader, chunks
from receiver.sensors.tables import HAS_POINTS, days, incidents, sensors, tracks, versions

RAW_SECONDS = 48 * 3600.0
"""How long points are stored in full after the end of their day."""

SETTLED_SECONDS = 3600.0
"""How long nothing must have been folded into a day before its points are compacted."""

TIDY_ROWS = 200
"""How many days of sensors one step deletes, and compacts, at most: folding waits for it."""

FOLDED = (
    sensors.c.device_id,
    sensors.c.name,
    sensors.c.project_id,
    sensors.c.type,
    sensors.c.facts,
    sensors.c.first_heard,
    sensors.c.last_heard,
    sensors.c.periodic,
    sensors.c.connector,
    sensors.c.offline_since,
)


class RegistryWriter(RegistryReader):
    """An open registry, to merge events into it."""

    def fold(self, events: Sequence[Event]) -> None:
        """Merge events into the registry, in one durable commit. Repeating it changes nothing."""
        batch = Batch()
        for event in events:
            batch.add(event, self._history_seconds)
        with self._database.write() as connection:
            _lock(connection)
            for ids in chunks(sorted(batch.sensors)):
                news = {device: batch.sensors[device] for device in ids}
                self._fold_sensors(connection, news)
                self._fold_days(connection, {device: each.days for device, each in news.items()})
            self._add_minutes(connection, batch.arrivals)

    def tidy(self, now: float) -> bool:
        """One small step of retention: compact old points, and delete what is older than `history_days`.

        Returns whether there may be more to do. Ages are measured from the newest live timestamp, so that a clock that
        is ahead deletes nothing.
        """
        with self._database.write() as connection:
            _lock(connection)
            newest = connection.scalar(select(func.max(sensors.c.last_heard)).where(sensors.c.last_heard <= now)) or 0.0
            oldest_day = int((newest - self._history_seconds) // DAY_SECONDS)
            expired = connection.execute(
                select(days.c.device_id, days.c.day).where(days.c.day < oldest_day).limit(TIDY_ROWS)
            ).all()
            full = connection.execute(
                select(days)
                .where(
                    days.c.day < int((newest - RAW_SECONDS) // DAY_SECONDS),
                    days.c.day >= oldest_day,
                    HAS_POINTS,
                    days.c.folded_at < now - SETTLED_SECONDS,
                )
                .limit(TIDY_ROWS)
            ).all()
            this = (days.c.device_id == bindparam("device")) & (days.c.day == bindparam("of"))
            if gone := [{"device": row.device_id, "of": row.day} for row in [*expired, *full]]:
                connection.execute(delete(days).where(this), gone)
            if full:  # inserted again: SQLite does not reuse the space of a row that became smaller
                compacted = [
                    {**row._mapping, "points": b"", "hours": history.compact(row.hours, row.points)} for row in full
                ]
                connection.execute(self._database.insert(days), compacted)
            connection.execute(delete(tracks).where(tracks.c.day < oldest_day))
            connection.execute(delete(incidents).where(incidents.c.closed < newest - self._history_seconds))
        return len(expired) == TIDY_ROWS or len(full) == TIDY_ROWS

    def _fold_sensors(self, connection: Connection, news: Mapping[str, News]) -> None:
        found = connection.execute(select(*FOLDED).where(sensors.c.device_id.in_(list(news))))
        known = {row.device_id: row for row in found}
        rows = []
        for device, each in news.items():
            before = known.get(device)
            facts = merge_facts(json.loads(before.facts), each.facts) if before else merge_facts({}, each.facts)
            last = greatest(each.last_heard, before.last_heard if before else None)
            row = {
                "device_id": device,
                "name": self._storable(facts, "name"),
                "project_id": self._storable(facts, "project"),
                "type": self._storable(facts, "type"),
                "facts": json.dumps(facts, separators=(",", ":"), sort_keys=True),
                "first_heard": least(each.first_heard, before.first_heard if before else None),
                "last_heard": last,
                "periodic": each.periodic or bool(before and before.periodic),
                "connector": only_connector(facts),
                "offline_since": offline_since(facts, last),
            }
            if before is None or row != before._mapping:
                rows.append(row)
        self._upsert(connection, sensors, rows)

    def _storable(self, facts: Facts, name: str) -> str | None:
        return self._database.storable(" ".join(str(facts[name][1]).split())) if name in facts else None

    def _fold_days(self, connection: Connection, news: Mapping[str, Mapping[int, Day]]) -> None:
        touched = {day for of_device in news.values() for day in of_device}
        if not touched:
            return
        query = select(days.c.device_id, days.c.day, days.c.heard, days.c.filled, days.c.points).where(
            days.c.device_id.in_([device for device, of_device in news.items() if of_device]), days.c.day.in_(touched)
        )
        known = {(row.device_id, row.day): row[2:] for row in connection.execute(query)}
        rows, now = [], time.time()
        for device, of_device in news.items():
            for day, new in of_device.items():
                before = known.get((device, day), (b"", b"", b""))
                merged = (
                    to_bytes(from_bytes(before[0]) | new.heard),
                    to_bytes(from_bytes(before[1]) | new.filled),
                    history.merge_points(before[2], new.points),
                )
                if merged != before or (device, day) not in known:
                    values = zip(("heard", "filled", "points"), merged, strict=True)
                    rows.append({"device_id": device, "day": day, "folded_at": now, **dict(values)})
        self._upsert(connection, days, rows)

    def _add_minutes(self, connection: Connection, minutes: Mapping[tuple[str, int], int]) -> None:
        rows = []
        for (project, day), bits in sorted(minutes.items()):
            where = (tracks.c.project_id == project) & (tracks.c.day == day)
            before = from_bytes(connection.scalar(select(tracks.c.minutes).where(where)) or b"")
            if before | bits != before:
                rows.append({"project_id": project, "day": day, "minutes": to_bytes(before | bits)})
        self._upsert(connection, tracks, rows)

    def _upsert(self, connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            keys = [column.name for column in table.primary_key]
            statement = self._database.insert(table)
            changed = {name: statement.excluded[name] for name in rows[0] if name not in keys}
            connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed), rows)


def _lock(connection: Connection) -> None:
    """Let one dispatcher at a time merge events.

    It writes, so that the commit also flushes what a process wrote that was killed before its flush.
    """
    connection.execute(update(versions).values(version=versions.c.version))
