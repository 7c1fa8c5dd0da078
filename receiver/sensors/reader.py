"""What is stored of sensors, as commands, metrics and pages read it: sensors, days, outages and incidents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, func, or_, select

from receiver.errors import JournalError
from receiver.incident import Cause, Incident
from receiver.sensors.folding import FUTURE_SECONDS
from receiver.sensors.history import DAY_SECONDS
from receiver.sensors.minutes import DAY_MINUTES, LEARN_MINUTES, Minutes, Span, from_bytes, minute_of
from receiver.sensors.tables import LABEL, create_tables, days, found_version, incidents, sensors, tracks
from receiver.sensors.watch import Project, Rules, State, downtimes, known_project

if TYPE_CHECKING:
    from receiver.journal import Database

RECEIVER = "*"
"""The track with the minutes in which the receiver was up; no project id can have this name."""

IDS = 500
"""How many device ids one query names."""


class RegistryReader:
    """An open registry, to read from it."""

    def __init__(self, database: Database, rules: Rules, history_days: float = 31, *, create: bool = True) -> None:
        self._database = database
        self._rules = rules
        self._history_seconds = history_days * DAY_SECONDS
        try:
            if create:
                create_tables(database)
        except JournalError:
            database.close()
            raise

    def tables_version(self) -> int | None:
        """The version of the tables, which are not changed; None if there are none."""
        with self._database.read() as connection:
            return found_version(connection)

    def close(self) -> None:
        self._database.close()

    def states(self) -> dict[str, int]:
        """How many sensors are in each state."""
        with self._database.read() as connection:
            found = connection.execute(select(sensors.c.state, func.count()).group_by(sensors.c.state))
            return dict.fromkeys(State, 0) | {row[0]: row[1] for row in found}

    def causes(self) -> dict[str, int]:
        """How many incidents of each cause are open."""
        with self._database.read() as connection:
            query = select(incidents.c.cause, func.count()).where(incidents.c.closed.is_(None))
            found = connection.execute(query.group_by(incidents.c.cause))
            return dict.fromkeys(Cause, 0) | {row[0]: row[1] for row in found}

    def rows(self, devices: Sequence[str] | None = None) -> list[Any]:
        """The stored rows of all sensors, or of these, by device id."""
        query = select(sensors).order_by(sensors.c.device_id)
        with self._database.read(by_index=devices is not None) as connection:
            if devices is None:
                return list(connection.execute(query))
            return [
                row for ids in chunks(devices) for row in connection.execute(query.where(sensors.c.device_id.in_(ids)))
            ]

    def page(self, after: str | None, limit: int, *, text: str = "", state: str | None = None) -> list[Any]:
        """Up to `limit` stored rows in the order of their names, beginning after the device id `after`.

        Only those whose name or device id contains `text`, and that are in this state, if any is given.
        """
        query = select(sensors).order_by(LABEL, sensors.c.device_id).limit(limit)
        if state is not None:
            query = query.where(sensors.c.state == state)
        if after is not None:
            before = select(LABEL).where(sensors.c.device_id == after).scalar_subquery()
            query = query.where(before <= LABEL, or_(before < LABEL, sensors.c.device_id > after))
        with self._database.read(by_index=True) as connection:
            if text:
                part = func.lower(self._database.storable(text))
                mentions = self._database.mentions
                query = query.where(or_(mentions(LABEL, part), mentions(func.lower(sensors.c.device_id), part)))
            return list(connection.execute(query))

    def named(self, text: str) -> list[Any]:
        """The rows of the sensor with this device id, or else of all with this name."""
        with self._database.read() as connection:
            text = self._database.storable(text)
            found = connection.execute(select(sensors).where(sensors.c.device_id == text)).all()
            by_name = select(sensors).where(sensors.c.name == text).order_by(sensors.c.device_id)
            return list(found or connection.execute(by_name))

    def days(self, device: str, first: int) -> list[Any]:
        """The stored days of one sensor from the day `first` since 1970 on."""
        return self.days_of([device], first)

    def days_of(self, devices: Sequence[str], first: int) -> list[Any]:
        """The stored days of these sensors from the day `first` since 1970 on, those of each in their order."""
        query = select(days).where(days.c.day >= first).order_by(days.c.device_id, days.c.day)
        with self._database.read(by_index=True) as connection:
            return [
                row for ids in chunks(devices) for row in connection.execute(query.where(days.c.device_id.in_(ids)))
            ]

    def heard(self, rows: Sequence[Any], *, filled: bool = False, minutes: int = LEARN_MINUTES) -> dict[str, Minutes]:
        """The minutes in which these sensors were heard live, or were `filled` later too, in their last 7 days.

        Of one that was not heard when these days began, also the minutes of the day on which it was heard before: a gap
        begins there. Of one whose days are all deleted, the last minute.
        """
        with self._database.read(by_index=True) as connection:
            members = [row for row in rows if row.last_heard is not None]
            found = self._heard(connection, members, filled=filled, minutes=minutes)
            begins = {
                each.device_id: day
                for each in members
                if (day := (minute_of(each.last_heard) - minutes) // DAY_MINUTES) > each.first_heard // DAY_SECONDS
                and (found[each.device_id].earliest or minute_of(each.last_heard)) >= (day + 1) * DAY_MINUTES
            }
            for device, known in self._heard_before(connection, begins).items():
                found[device] |= known
        return {
            each.device_id: known if (known := found[each.device_id]).bits else Minutes(minute_of(each.last_heard), 1)
            for each in members
        }

    @staticmethod
    def _heard_before(connection: Connection, begins: Mapping[str, int]) -> dict[str, Minutes]:
        """The minutes of the last day on which each of these sensors was heard before a day."""
        found: dict[str, Minutes] = {}
        for ids in chunks(list(begins)):
            query = select(days.c.device_id, days.c.day, days.c.heard).where(
                days.c.device_id.in_(ids),
                days.c.day < max(begins[device] for device in ids),
                func.length(days.c.heard) > 0,
            )
            for row in connection.execute(query.order_by(days.c.day)):
                if row.day < begins[row.device_id]:
                    found[row.device_id] = Minutes.of_days({row.day: from_bytes(row.heard)})
        return found

    def outages(
        self, now: float, minutes: int = LEARN_MINUTES, newest: Mapping[str, float] | None = None
    ) -> tuple[dict[str, Sequence[Span]], list[Span]]:
        """The outages of each project, and the receiver's downtimes, in the last 7 days or the last `minutes`.

        `newest` is the newest live timestamp of each project, if it is known.
        """
        with self._database.read() as connection:
            newest = self._newest(connection, now) if newest is None else newest
            projects, down = self._projects(connection, newest, now, minutes)
        return {project.id: project.outages for project in projects.values()}, down

    def newest(self, now: float) -> dict[str, float]:
        """The newest live timestamp of each project."""
        with self._database.read() as connection:
            return self._newest(connection, now)

    @staticmethod
    def _newest(connection: Connection, now: float) -> dict[str, float]:
        """As `newest_by_project`, without reading a row of each sensor."""
        project = func.coalesce(sensors.c.project_id, "")
        query = select(project, func.max(sensors.c.last_heard)).where(sensors.c.last_heard <= now + FUTURE_SECONDS)
        return {row[0]: row[1] for row in connection.execute(query.group_by(project))}

    def incidents(
        self, limit: int, *, open_only: bool = False, before: int | None = None, named: bool = True
    ) -> list[Incident]:
        """The newest incidents, newest first; with `before`, those with a lower id.

        Without `named`, sensors have their device id as their name: a project may have very many.
        """
        query = select(incidents).order_by(incidents.c.id.desc()).limit(limit)
        if open_only:
            query = query.where(incidents.c.closed.is_(None))
        if before is not None:
            query = query.where(incidents.c.id < before)
        with self._database.read(by_index=True) as connection:
            return self._incidents(connection, connection.execute(query).all(), named=named)

    def incidents_of(self, device: str, limit: int) -> list[Incident]:
        """The newest incidents of one sensor, newest first; their sensors have device ids instead of names."""
        query = select(incidents).where(incidents.c.sensors.contains(f'"{device}"', autoescape=True))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(incidents.c.id.desc()).limit(limit)).all()
            return self._incidents(connection, rows, named=False)

    def _incidents(self, connection: Connection, rows: Sequence[Any], *, named: bool = True) -> list[Incident]:
        members = [json.loads(row.sensors) for row in rows]
        devices = sorted({device for each in members for device in each}) if named else []
        names: dict[str, str] = {}
        for ids in chunks(devices):
            query = select(sensors.c.device_id, sensors.c.name).where(sensors.c.device_id.in_(ids))
            names |= {row.device_id: row.name for row in connection.execute(query) if row.name}
        return [
            Incident(
                row.id,
                Cause(row.cause),
                row.project_id,
                {device: names.get(device, device) for device in each},
                _datetime(row.since),
                _datetime(row.opened),
                None if row.closed is None else _datetime(row.closed),
                row.reason,
            )
            for row, each in zip(rows, members, strict=True)
        ]

    def _projects(
        self, connection: Connection, newest: Mapping[str, float], now: float, minutes: int = LEARN_MINUTES
    ) -> tuple[dict[str, Project], list[Span]]:
        """All projects as they are now, and the receiver's downtimes in the last days.

        `newest` is the newest live timestamp of each.
        """
        first = (minute_of(now) - minutes) // DAY_MINUTES - 1
        by_project: dict[str, dict[int, int]] = {}
        for row in connection.execute(select(tracks).where(tracks.c.day >= first)):
            by_project.setdefault(row.project_id, {})[row.day] = from_bytes(row.minutes)
        arrivals = {project: Minutes.of_days(of_days) for project, of_days in by_project.items()}
        own = arrivals.pop(RECEIVER, Minutes()).between(0, minute_of(now))
        up = own
        for each in arrivals.values():
            up |= each
        down = downtimes(up, own.earliest or minute_of(now), now)
        return {
            project: known_project(
                project, at, first * DAY_MINUTES, arrivals.get(project, Minutes()), up, down, self._rules, now
            )
            for project, at in newest.items()
        }, down

    def _heard(
        self, connection: Connection, members: Iterable[Any], *, filled: bool = False, minutes: int = LEARN_MINUTES
    ) -> dict[str, Minutes]:
        """The minutes in which sensors were heard in the 7 days, or in the `minutes`, before they were heard last."""
        since = {each.device_id: minute_of(each.last_heard) - minutes for each in members}
        found: dict[str, dict[int, int]] = {device: {} for device in since}
        for ids in chunks(list(since)):
            first = min(since[device] for device in ids) // DAY_MINUTES
            query = select(days.c.device_id, days.c.day, days.c.heard, days.c.filled)
            for row in connection.execute(query.where(days.c.device_id.in_(ids), days.c.day >= first)):
                bits = from_bytes(row.heard) | (from_bytes(row.filled) if filled else 0)
                if row.day >= since[row.device_id] // DAY_MINUTES:
                    found[row.device_id][row.day] = bits
        return {device: Minutes.of_days(of_days) for device, of_days in found.items()}


def chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), IDS):
        yield items[start : start + IDS]


def _datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
