"""The registry: what is stored of sensors, the judgement of all of them, and what a person decides.

The dispatcher's process folds and judges; everything else reads, and sets what a person decides: snooze and retire.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, bindparam, or_, select, update

from receiver.incident import Cause, Incident
from receiver.sensors.history import DAY_SECONDS
from receiver.sensors.judgement import Verdict, judge
from receiver.sensors.minutes import DAY_MINUTES, Span, learn_interval, minute_of
from receiver.sensors.reader import RECEIVER, chunks
from receiver.sensors.tables import ANNOUNCED_CLOSED, ANNOUNCED_OPENED, incidents, sensors, versions
from receiver.sensors.watch import Case, Project, State, Watched, newest_by_project
from receiver.sensors.writer import RegistryWriter

JUDGE_SECONDS = 60.0
"""How long a judge that crashed prevents others from judging."""

CLOCK_WAS_AHEAD_SECONDS = 2 * JUDGE_SECONDS
"""A lease that ends later is from a clock that was set back since."""

LEARN_SECONDS = 3600.0
"""How often the interval of a sensor is learned again, by its own timestamps."""

LEARN_AT_ONCE = 500
"""How many intervals one judgement learns at most, since that takes most of its time."""

WATCHED = tuple(sensors.c[name] for name in Watched._fields)


@dataclass(frozen=True)
class Announcement:
    """An incident that was opened or closed and is to be announced."""

    incident: Incident
    level: int

    @property
    def hook(self) -> str:
        return "incident_closed" if self.level == ANNOUNCED_CLOSED else "incident_opened"


class Registry(RegistryWriter):
    """An open registry. Calls may come from many threads, and raise nothing but JournalError."""

    def judge(self, now: float, holder: str) -> list[Announcement]:
        """Judge all sensors, unless another holder does. Returns what to announce, oldest first.

        That includes what a predecessor stored and did not announce. Call `announced` for each.
        """
        if not self._become_judge(now, holder):
            return []
        with self._database.read() as connection:
            watched = [Watched._make(row) for row in connection.execute(select(*WATCHED)).all()]
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
        return self._to_announce() if self._store(holder, verdict, watched, learned) else []

    def announced(self, announcement: Announcement) -> None:
        """Record that an announcement was made, so that no later judgement repeats it."""
        with self._database.write() as connection:
            connection.execute(
                update(incidents).where(incidents.c.id == announcement.incident.id).values(announced=announcement.level)
            )

    def stop_judging(self, holder: str) -> None:
        """End the lease of a judge that stops, so that its successor need not wait for it."""
        with self._database.write(durable=False) as connection:
            connection.execute(update(versions).where(versions.c.judge == holder).values(judge=None))

    def snooze(self, device: str, until: float, now: float) -> None:
        """Open no incident for a sensor until that time; a time in the past ends the snooze."""
        state = State.SNOOZED if until > now else State.LEARNING
        self._set(device, snoozed_until=until, state=state.value)

    def retire(self, device: str, at: float | None, now: float) -> None:
        """Stop expecting a sensor to be heard; with None as time, expect it again from now on."""
        state = State.LEARNING if at is None else State.RETIRED
        self._set(device, retired_at=at, expected_from=now, state=state.value)

    def _set(self, device: str, **values: Any) -> None:
        with self._database.write() as connection:
            connection.execute(update(sensors).where(sensors.c.device_id == device).values(**values))

    def _become_judge(self, now: float, holder: str) -> bool:
        """Take or extend the lease of the judge, on the database's clock, and record that the receiver is up."""
        clock = self._database.now()
        with self._database.write(durable=False) as connection:
            ended = or_(versions.c.judge_until < clock, versions.c.judge_until > clock + CLOCK_WAS_AHEAD_SECONDS)
            free = or_(versions.c.judge == holder, ended, versions.c.judge.is_(None))
            lease = update(versions).where(free).values(judge=holder, judge_until=clock + JUDGE_SECONDS)
            if not connection.execute(lease).rowcount:
                return False
            minute = minute_of(now)
            self._add_minutes(connection, {(RECEIVER, minute // DAY_MINUTES): 1 << minute % DAY_MINUTES})
        return True

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

    def _store(
        self, holder: str, verdict: Verdict, watched: Sequence[Watched], learned: Sequence[Mapping[str, Any]]
    ) -> bool:
        """Store a judgement; returns False, and stores nothing, if another holder judges by now.

        It takes the lock of folding by that: each changes many rows, in an order of its own.
        """
        states = [
            {"device": each.device_id, "judged": each.state, "new": verdict.states[each.device_id].value}
            for each in watched
            if verdict.states[each.device_id] != each.state
        ]
        expected = [{"device": device, "since": since} for device, since in verdict.expected_from.items()]
        if not (states or expected or learned or verdict.opened or verdict.changed):
            with self._database.read() as connection:
                return connection.scalar(select(versions.c.judge)) == holder
        with self._database.write() as connection:
            if not connection.execute(update(versions).where(versions.c.judge == holder).values(judge=holder)).rowcount:
                return False
            this = sensors.c.device_id == bindparam("device")
            unchanged = and_(this, sensors.c.state == bindparam("judged"))  # not snoozed or retired meanwhile
            for which, columns, rows in (
                (unchanged, {"state": bindparam("new")}, states),
                (this, {"expected_from": bindparam("since")}, expected),
                (this, {"interval_minutes": bindparam("interval"), "learned_at": bindparam("learned")}, learned),
            ):
                for chunk in chunks(rows):
                    connection.execute(update(sensors).where(which).values(columns), list(chunk))
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
        return True

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
