"""The registry in SQL: folds events, judges, and answers what is known of each sensor.

The dispatcher's process folds and judges; everything else reads, and sets what a person decides: snooze and retire.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Table, bindparam, delete, func, or_, select, tuple_, update

from receiver.errors import JournalError
from receiver.event import Event
from receiver.incident import Cause, Incident
from receiver.sensors import history
from receiver.sensors.folding import (
    FUTURE_SECONDS,
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
from receiver.sensors.minutes import (
    DAY_MINUTES,
    LEARN_MINUTES,
    Minutes,
    Span,
    from_bytes,
    learn_interval,
    minute_of,
    to_bytes,
)
from receiver.sensors.tables import (
    ANNOUNCED_CLOSED,
    ANNOUNCED_OPENED,
    HAS_POINTS,
    create_tables,
    days,
    incidents,
    sensors,
    tracks,
    versions,
)
from receiver.sensors.watch import (
    DAY_SECONDS,
    Case,
    Project,
    Rules,
    State,
    Verdict,
    Watched,
    downtimes,
    judge,
    known_project,
    newest_by_project,
)

if TYPE_CHECKING:
    from receiver.journal import Database

RECEIVER = "*"
"""The track of the receiver itself, which no project id can be: the minutes in which it was up."""

JUDGE_SECONDS = 60.0
"""How long a judge that died keeps others from judging."""

LEARN_SECONDS = 3600.0
"""How often the interval of a sensor is learned anew, in its own time."""

LEARN_AT_ONCE = 500
RAW_SECONDS = 48 * 3600.0
"""How long points are stored in full after the end of their day, and at least since the last one came."""

SETTLED_SECONDS = 3600.0
TIDY_ROWS = 200
IDS = 500
"""How many device ids one query names."""


@dataclass(frozen=True)
class Announcement:
    """An incident that was opened or closed and is to be announced."""

    incident: Incident
    level: int

    @property
    def hook(self) -> str:
        return "incident_closed" if self.level == ANNOUNCED_CLOSED else "incident_opened"


class Registry:
    """An open registry. Calls may come from many threads, and raise nothing but JournalError."""

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

    def close(self) -> None:
        self._database.close()

    # Folding

    def fold(self, events: Sequence[Event]) -> None:
        """Merge what events say into the registry, in one durable commit. Repeating it changes nothing."""
        batch = Batch()
        for event in events:
            batch.add(event, self._history_seconds)
        with self._database.write() as connection:
            _lock(connection)
            for ids in _chunks(sorted(batch.sensors)):
                news = {device: batch.sensors[device] for device in ids}
                self._fold_sensors(connection, news)
                self._fold_days(connection, {device: each.days for device, each in news.items()})
            self._add_minutes(connection, batch.arrivals)

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

    # Judging

    def judge(self, now: float, holder: str) -> list[Announcement]:
        """Judge all sensors, unless another holder does; what is to be announced then, oldest first.

        What a predecessor stored and did not announce comes first. Call `announced` for each.
        """
        if not self._become_judge(now, holder):
            return []
        with self._database.read() as connection:
            watched = [Watched._make(row) for row in connection.execute(select(*WATCHED))]
            cases = self._cases(connection, now)
            projects, down = self._projects(connection, newest_by_project(watched, now), now)
            reviewed = [case for case in cases if case.closed is None and case.cause is not Cause.PROJECT]
            in_cases = {device for case in reviewed for device in case.sensors}
            members = [each for each in watched if each.device_id in in_cases and each.last_heard is not None]
            heard = self._heard(connection, members)
            learned = self._learn(connection, projects, down)
        intervals = {row["device"]: row["interval"] for row in learned}
        watched = [
            each._replace(interval_minutes=intervals[each.device_id]) if each.device_id in intervals else each
            for each in watched
        ]
        verdict = judge(now, self._rules, watched, projects, cases, heard)
        self._store(verdict, watched, learned)
        return self._to_announce()

    def announced(self, announcement: Announcement) -> None:
        with self._database.write() as connection:
            connection.execute(
                update(incidents).where(incidents.c.id == announcement.incident.id).values(announced=announcement.level)
            )

    def _become_judge(self, now: float, holder: str) -> bool:
        """Take or extend the lease of the judge, on the database's clock, and record that the receiver is up."""
        clock = self._database.now()
        with self._database.write(durable=False) as connection:
            free = or_(versions.c.judge == holder, versions.c.judge_until < clock, versions.c.judge.is_(None))
            lease = update(versions).where(free).values(judge=holder, judge_until=clock + JUDGE_SECONDS)
            if not connection.execute(lease).rowcount:
                return False
            minute = minute_of(now)
            self._add_minutes(connection, {(RECEIVER, minute // DAY_MINUTES): 1 << minute % DAY_MINUTES})
        return True

    def stop_judging(self, holder: str) -> None:
        """End the lease of a judge that stops, so that its successor need not wait for it."""
        with self._database.write(durable=False) as connection:
            connection.execute(update(versions).where(versions.c.judge == holder).values(judge=None))

    def _cases(self, connection: Connection, now: float) -> list[Case]:
        """The open incidents, and those closed within a day."""
        recent = or_(incidents.c.closed.is_(None), incidents.c.closed > now - DAY_SECONDS)
        return [
            Case(
                Cause(row.cause),
                row.subject,
                row.project_id,
                tuple(json.loads(row.sensors)),
                row.since,
                row.opened,
                row.reason,
                row.unstable,
                row.closed,
                row.id,
            )
            for row in connection.execute(select(incidents).where(recent))
        ]

    def _projects(
        self, connection: Connection, newest: Mapping[str, float], now: float, minutes: int = LEARN_MINUTES
    ) -> tuple[dict[str, Project], list[Span]]:
        """All projects as they are now, and when the receiver was down in the last days.

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
            project: known_project(project, at, arrivals.get(project, Minutes()), up, down, self._rules, now)
            for project, at in newest.items()
        }, down

    def _heard(
        self, connection: Connection, members: Iterable[Any], *, filled: bool = False, minutes: int = LEARN_MINUTES
    ) -> dict[str, Minutes]:
        """The minutes in which sensors were heard in the 7 days, or so many minutes, before they were heard last."""
        since = {each.device_id: minute_of(each.last_heard) - minutes for each in members}
        found: dict[str, dict[int, int]] = {device: {} for device in since}
        for ids in _chunks(list(since)):
            first = min(since[device] for device in ids) // DAY_MINUTES
            query = select(days.c.device_id, days.c.day, days.c.heard, days.c.filled)
            for row in connection.execute(query.where(days.c.device_id.in_(ids), days.c.day >= first)):
                bits = from_bytes(row.heard) | (from_bytes(row.filled) if filled else 0)
                if row.day >= since[row.device_id] // DAY_MINUTES:
                    found[row.device_id][row.day] = bits
        return {device: Minutes.of_days(of_days) for device, of_days in found.items()}

    def _learn(
        self, connection: Connection, projects: Mapping[str, Project], down: Sequence[Span]
    ) -> list[dict[str, Any]]:
        """New intervals of some of the sensors that were heard for an hour since theirs was learned."""
        query = (
            select(sensors.c.device_id, sensors.c.project_id, sensors.c.last_heard, sensors.c.interval_minutes)
            .where(sensors.c.periodic.is_(True), sensors.c.last_heard > sensors.c.learned_at + LEARN_SECONDS)
            .order_by(sensors.c.learned_at)
            .limit(LEARN_AT_ONCE)
        )
        due = connection.execute(query).all()
        heard = self._heard(connection, due)
        learned = []
        for row in due:
            project = projects.get(row.project_id or "")
            excluded = sorted([*down, *(project.outages if project else ())])
            interval = learn_interval(heard[row.device_id], excluded) or row.interval_minutes
            learned.append({"device": row.device_id, "learned": row.last_heard, "interval": interval})
        return learned

    def _store(self, verdict: Verdict, watched: Sequence[Watched], learned: Sequence[Mapping[str, Any]]) -> None:
        states = [
            {"device": each.device_id, "new": verdict.states[each.device_id].value}
            for each in watched
            if verdict.states[each.device_id] != each.state
        ]
        expected = [{"device": device, "since": since} for device, since in verdict.expected_from.items()]
        if not (states or expected or learned or verdict.opened or verdict.changed):
            return
        with self._database.write() as connection:
            this = sensors.c.device_id == bindparam("device")
            for columns, rows in (
                ({"state": bindparam("new")}, states),
                ({"expected_from": bindparam("since")}, expected),
                ({"interval_minutes": bindparam("interval"), "learned_at": bindparam("learned")}, learned),
            ):
                for chunk in _chunks(rows):
                    connection.execute(update(sensors).where(this).values(columns), list(chunk))
            for case in verdict.changed.values():
                values: dict[str, object] = {"sensors": json.dumps(case.sensors), "closed": case.closed}
                values["reason"] = self._database.storable(case.reason)
                if case.absorbed:
                    values["announced"] = ANNOUNCED_CLOSED
                connection.execute(update(incidents).where(incidents.c.id == case.id).values(values))
            for case in verdict.opened:
                connection.execute(
                    self._database.insert(incidents).values(
                        cause=case.cause.value,
                        subject=case.subject,
                        project_id=case.project_id,
                        sensors=json.dumps(case.sensors),
                        since=case.since,
                        opened=case.opened,
                        reason=self._database.storable(case.reason),
                        unstable=case.unstable,
                        announced=0,
                    )
                )

    def _to_announce(self) -> list[Announcement]:
        query = select(incidents).where(
            or_(incidents.c.announced == 0, incidents.c.closed.is_not(None) & (incidents.c.announced == 1))
        )
        found = []
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(incidents.c.id)).all()
            for incident, row in zip(self._incidents(connection, rows), rows, strict=True):
                if row.announced < ANNOUNCED_OPENED:
                    found.append(Announcement(incident, ANNOUNCED_OPENED))
                if incident.closed is not None:
                    found.append(Announcement(incident, ANNOUNCED_CLOSED))
        return found

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
            if full:  # inserted anew, since SQLite does not use the space that is left where a row became smaller
                compacted = [
                    {**row._mapping, "points": b"", "hours": history.compact(row.hours, row.points)} for row in full
                ]
                connection.execute(self._database.insert(days), compacted)
            connection.execute(delete(tracks).where(tracks.c.day < oldest_day))
            connection.execute(delete(incidents).where(incidents.c.closed < newest - self._history_seconds))
        return len(expired) == TIDY_ROWS or len(full) == TIDY_ROWS

    # Reading

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
        with self._database.read() as connection:
            if devices is None:
                return list(connection.execute(query))
            return [
                row for ids in _chunks(devices) for row in connection.execute(query.where(sensors.c.device_id.in_(ids)))
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
            query = query.where(tuple_(LABEL, sensors.c.device_id) > tuple_(before, after))
        with self._database.read() as connection:
            if text:
                part = self._database.storable(text)
                query = query.where(
                    or_(*(each.icontains(part, autoescape=True) for each in (LABEL, sensors.c.device_id)))
                )
            return list(connection.execute(query))

    def named(self, text: str) -> list[Any]:
        """The rows of the sensor with this device id, or else of all with this name."""
        with self._database.read() as connection:
            found = connection.execute(select(sensors).where(sensors.c.device_id == text)).all()
            by_name = select(sensors).where(sensors.c.name == text).order_by(sensors.c.device_id)
            return list(found or connection.execute(by_name))

    def days(self, device: str, first: int) -> list[Any]:
        """The stored days of one sensor from the day `first` since 1970 on."""
        return self.days_of([device], first)

    def days_of(self, devices: Sequence[str], first: int) -> list[Any]:
        """The stored days of these sensors from the day `first` since 1970 on, those of each in their order."""
        query = select(days).where(days.c.day >= first).order_by(days.c.device_id, days.c.day)
        with self._database.read() as connection:
            return [
                row for ids in _chunks(devices) for row in connection.execute(query.where(days.c.device_id.in_(ids)))
            ]

    def heard(self, rows: Sequence[Any], *, filled: bool = False, minutes: int = LEARN_MINUTES) -> dict[str, Minutes]:
        """The minutes in which these sensors were heard live, or were `filled` later too, in their last 7 days."""
        with self._database.read() as connection:
            members = [row for row in rows if row.last_heard is not None]
            return self._heard(connection, members, filled=filled, minutes=minutes)

    def outages(self, now: float, minutes: int = LEARN_MINUTES) -> tuple[dict[str, Sequence[Span]], list[Span]]:
        """The outages of each project, and the receiver's downtimes, of the last 7 days, or of so many minutes."""
        with self._database.read() as connection:
            projects, down = self._projects(connection, self._newest(connection, now), now, minutes)
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
        with self._database.read() as connection:
            return self._incidents(connection, connection.execute(query).all(), named=named)

    def incidents_of(self, device: str, limit: int) -> list[Incident]:
        """The newest incidents of one sensor, newest first; of their sensors they have no names."""
        query = select(incidents).where(incidents.c.sensors.contains(f'"{device}"', autoescape=True))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(incidents.c.id.desc()).limit(limit)).all()
            return self._incidents(connection, rows, named=False)

    def _incidents(self, connection: Connection, rows: Sequence[Any], *, named: bool = True) -> list[Incident]:
        members = [json.loads(row.sensors) for row in rows]
        devices = sorted({device for each in members for device in each}) if named else []
        names: dict[str, str] = {}
        for ids in _chunks(devices):
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

    # What a person decides

    def snooze(self, device: str, until: float, now: float) -> None:
        """Raise no incident for a sensor until then; a time in the past ends the snooze."""
        state = State.SNOOZED if until > now else State.LEARNING
        self._set(device, snoozed_until=until, state=state.value)

    def retire(self, device: str, at: float | None, now: float) -> None:
        """Expect a sensor no more; with None as time, expect it again from now on."""
        state = State.LEARNING if at is None else State.RETIRED
        self._set(device, retired_at=at, expected_from=now, state=state.value)

    def _set(self, device: str, **values: Any) -> None:
        with self._database.write() as connection:
            connection.execute(update(sensors).where(sensors.c.device_id == device).values(**values))


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
LABEL = func.lower(func.coalesce(sensors.c.name, sensors.c.device_id))
"""By what people look for a sensor."""
WATCHED = tuple(sensors.c[name] for name in Watched._fields)


def _lock(connection: Connection) -> None:
    """One dispatcher at a time reads what is stored and merges it with what is new.

    This writes, so that the commit also flushes what a process has written that was killed before its flush.
    """
    connection.execute(update(versions).values(version=versions.c.version))


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), IDS):
        yield items[start : start + IDS]


def _datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
