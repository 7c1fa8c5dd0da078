"""The judgement of all sensors: which incidents open and close, and the state of each sensor.

A pure function of stored times and *now*. Each cause is one incident: a project, a cloud connector, or one device.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from receiver.incident import Cause
from receiver.sensors.history import DAY_SECONDS
from receiver.sensors.minutes import DAY_MINUTES, Minutes, minute_of
from receiver.sensors.watch import LEAST_SILENT_MINUTES, Case, Project, Rules, State, Watched, silence

MISSING_MESSAGES = 3.0
"""A cloud connector is silent when this many messages of its other sensors are missing."""

CHANGES_A_DAY = 3
"""An incident is unstable if it is the third change within a day; it stays open until a quiet day has passed."""


@dataclass
class Verdict:
    """What a judgement changes: new cases, changed ones by id, states of sensors, and from when they are expected."""

    opened: list[Case] = field(default_factory=list)
    changed: dict[int, Case] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    expected_from: dict[str, float] = field(default_factory=dict)


def judge(
    now: float,
    rules: Rules,
    sensors: Sequence[Watched],
    projects: Mapping[str, Project],
    cases: Sequence[Case],
    heard: Mapping[str, Minutes],
) -> Verdict:
    """Open and close incidents, and state how each sensor is.

    `cases` are the open incidents and those closed within a day; `heard` has the minutes in which the sensors of open
    incidents were heard.
    """
    return _Judge(now, rules, sensors, projects, cases, heard).verdict


class _Judge:
    def __init__(
        self,
        now: float,
        rules: Rules,
        sensors: Sequence[Watched],
        projects: Mapping[str, Project],
        cases: Sequence[Case],
        heard: Mapping[str, Minutes],
    ) -> None:
        self.now, self.rules, self.projects, self.cases, self.heard = now, rules, projects, cases, heard
        self.verdict = Verdict()
        self.sensors = {sensor.device_id: sensor for sensor in sensors}
        self.dependents: dict[str, list[Watched]] = defaultdict(list)
        """By cloud connector, the sensors that no other one hears."""
        self.of_project: dict[str, list[str]] = defaultdict(list)
        self.silent: list[Watched] = []
        for sensor in sensors:
            if not sensor.is_judged(now):
                continue
            is_expected = sensor.is_expected
            if is_expected and sensor.connector is not None:
                self.dependents[sensor.connector].append(sensor)
            if is_expected:
                self.of_project[sensor.project_id or ""].append(sensor.device_id)
            if sensor.offline_since is not None or (is_expected and self.is_silent(sensor)):
                self.silent.append(sensor)
        self.open = {(case.cause, case.subject): self.reviewed(case) for case in cases if case.closed is None}
        self.open = {key: case for key, case in self.open.items() if case.closed is None}
        self.in_case = {
            device: case
            for case in self.open.values()
            for device in case.sensors
            if device in self.sensors and self.is_part_of(self.sensors[device], case)
        }
        self.judge_projects()
        self.judge_sensors()
        self.verdict.states = {sensor.device_id: self.state(sensor) for sensor in sensors}

    def is_silent(self, sensor: Watched) -> bool:
        minutes = silence(sensor, self.projects.get(sensor.project_id or ""))
        return minutes > LEAST_SILENT_MINUTES and minutes > self.rules.limit(sensor.interval)

    def is_unheard(self, project: Project) -> bool:
        return project.unheard > self.rules.limit(project.interval)

    def judge_projects(self) -> None:
        for project in self.projects.values():
            members = self.of_project.get(project.id, [])
            if members and (Cause.PROJECT, project.id) not in self.open and self.is_unheard(project):
                reason = (
                    f"nothing was heard from project {project.id or '(unknown)'} with {_count(members)} since "
                    f"{_time(project.newest)}; check its Data Connector, and the power and network of its site"
                )
                self.add(Cause.PROJECT, project.id, project.id, members, project.newest, reason)

    def judge_sensors(self) -> None:
        """Open incidents for silent sensors that have none: one for their cloud connector, or one for each sensor."""
        for sensor in self.silent:
            if sensor.device_id in self.in_case or (Cause.PROJECT, sensor.project_id or "") in self.open:
                continue
            gateway = self.open.get((Cause.GATEWAY, sensor.connector or ""))
            if gateway is not None:
                self.join(gateway, sensor)
            elif sensor.offline_since is not None:
                dependents = self.dependents.get(sensor.device_id, [])
                cause = Cause.GATEWAY if dependents or sensor.type == "ccon" else Cause.DEVICE
                reason = f"DT reports {sensor.label} as offline since {_time(sensor.offline_since)}"
                self.add_sensor(cause, sensor, sensor.offline_since, reason)
            elif sensor.connector is not None and self.is_silent_connector(sensor.connector, sensor):
                self.add_gateway(sensor.connector, sensor.project_id)
            else:
                reason = (
                    f"{sensor.label} has not been heard since {_time(sensor.last_heard or 0.0)}; "
                    f"it is usually heard every {sensor.interval:.0f} minutes"
                )
                self.add_sensor(Cause.DEVICE, sensor, sensor.last_heard or 0.0, reason)

    def is_silent_connector(self, connector: str, silent: Watched) -> bool:
        """Whether more messages of its other sensors are missing than are lost by chance."""
        project = self.projects.get(silent.project_id or "")
        dependents = self.dependents[connector]
        last = max(dependents, key=lambda sensor: max(sensor.last_heard or 0.0, sensor.expected_from))
        minutes = silence(last, project) if last.project_id == silent.project_id else 0.0
        missing = [minutes / sensor.interval for sensor in dependents]
        return len(missing) > 1 and sum(missing) - max(missing) >= MISSING_MESSAGES

    def add_gateway(self, connector: str, project_id: str | None) -> None:
        members = [sensor.device_id for sensor in self.dependents[connector]]
        since = max(self.sensors[device].last_heard or 0.0 for device in members)
        reason = (
            f"{_count(members)} that are heard only through cloud connector {connector} have not been heard since "
            f"{_time(since)}"
        )
        for case in [self.in_case[device] for device in members if device in self.in_case]:
            if case.cause is Cause.DEVICE:
                self.absorb(case)
        self.add(Cause.GATEWAY, connector, project_id, members, since, reason)

    def absorb(self, case: Case) -> None:
        """End the incident of one device, which becomes part of another; a new one is not even opened."""
        del self.open[case.cause, case.subject]
        if case.id:
            self.verdict.changed[case.id] = replace(case, closed=self.now, absorbed=True)
        else:
            self.verdict.opened.remove(case)

    def add_sensor(self, cause: Cause, sensor: Watched, since: float, reason: str) -> None:
        members = [sensor.device_id]
        if cause is Cause.GATEWAY:
            members += [each.device_id for each in self.silent if each.connector == sensor.device_id]
        self.add(cause, sensor.device_id, sensor.project_id, members, since, reason)

    def add(
        self, cause: Cause, subject: str, project_id: str | None, members: Sequence[str], since: float, reason: str
    ) -> None:
        before = [
            case for case in self.cases if (case.cause, case.subject) == (cause, subject) and case.since < since
        ]  # else it was not heard in between: a snooze has ended
        times = [time for case in before for time in (case.opened, case.closed) if time is not None]
        changes = 1 + sum(time > self.now - DAY_SECONDS for time in times)
        unstable = changes >= CHANGES_A_DAY
        if unstable:
            reason = f"unstable, {changes} changes within a day: {reason}"
        case = Case(cause, subject, project_id, tuple(members), since, self.now, reason, unstable)
        self.verdict.opened.append(case)
        self.open[cause, subject] = case
        self.in_case |= dict.fromkeys(members, case)

    def join(self, case: Case, sensor: Watched) -> None:
        """Add a sensor to an open incident, which is not announced again."""
        grown = replace(case, sensors=(*case.sensors, sensor.device_id))
        self.open[case.cause, case.subject] = grown
        self.in_case[sensor.device_id] = grown
        if case.id:
            self.verdict.changed[case.id] = grown
        else:
            self.verdict.opened[self.verdict.opened.index(case)] = grown

    def reviewed(self, case: Case) -> Case:
        """The case now: closed if its sensors are heard again, or if all of them are snoozed or retired."""
        judged = [
            self.sensors[device]
            for device in case.sensors
            if device in self.sensors and self.sensors[device].is_judged(self.now)
        ]
        if case.cause is Cause.PROJECT and not any(self.is_part_of(sensor, case) for sensor in judged):
            return self.closed(case, f"{case.reason} (closed: snoozed, retired or moved to another project)")
        if not judged:
            return self.closed(case, f"{case.reason} (closed: snoozed or retired)")
        if case.cause is Cause.PROJECT:
            return self.closed(case) if self.project_recovered(case) else case
        back = [sensor for sensor in judged if self.has_recovered(sensor, case)]
        offline = any(sensor.device_id == case.subject and sensor.offline_since is not None for sensor in judged)
        if offline or 2 * len(back) < len(judged):
            return case
        waiting = {sensor.device_id for sensor in judged} - {sensor.device_id for sensor in back}
        self.verdict.expected_from |= dict.fromkeys(waiting, self.now)
        self.silent = [sensor for sensor in self.silent if sensor.device_id not in waiting]
        return self.closed(case)

    @staticmethod
    def is_part_of(sensor: Watched, case: Case) -> bool:
        """Whether an incident is still that of this sensor: not if it has moved to another project, or was heard since
        through another cloud connector. Then it is judged like any other."""
        if case.cause is Cause.PROJECT:
            return (sensor.project_id or "") == case.subject
        if case.cause is Cause.GATEWAY:
            return case.subject in (sensor.connector, sensor.device_id) or (sensor.last_heard or 0.0) <= case.since
        return True

    def closed(self, case: Case, reason: str | None = None) -> Case:
        case = replace(case, closed=self.now, reason=reason or case.reason)
        self.verdict.changed[case.id] = case
        return case

    def project_recovered(self, case: Case) -> bool:
        project = self.projects.get(case.subject)
        if project is None or self.is_unheard(project):
            return False
        again = project.arrivals.between(minute_of(case.since) + 1, minute_of(self.now))
        return _spans(again, max(self.rules.settle_minutes, project.interval / 2)) and (
            not case.unstable or _is_quiet(again, self.rules.limit(project.interval))
        )

    def has_recovered(self, sensor: Watched, case: Case) -> bool:
        """Whether it is heard, and was at two heartbeats since the case began; for a day if the case is unstable."""
        if sensor.offline_since is not None or self.is_silent(sensor):
            return False
        if not sensor.periodic:
            return True
        heard = self.heard.get(sensor.device_id, Minutes())
        again = heard.between(minute_of(case.since) + 1, minute_of(sensor.last_heard or 0.0))
        return _spans(again, sensor.interval / 2) and (
            not case.unstable or _is_quiet(again, self.rules.limit(sensor.interval))
        )

    def state(self, sensor: Watched) -> State:
        case = self.in_case.get(sensor.device_id)
        if sensor.retired_at is not None:
            return State.RETIRED
        if sensor.snoozed_until > self.now:
            return State.SNOOZED
        if sensor.offline_since is not None:
            return State.OFFLINE
        if case is not None and case.unstable and case.cause is Cause.DEVICE:
            return State.UNSTABLE
        if case is not None and (
            case.cause is Cause.DEVICE or (sensor.last_heard or 0.0) <= case.since or self.is_silent(sensor)
        ):
            return State.SILENT
        return State.OK if sensor.is_expected and sensor.interval_minutes is not None else State.LEARNING


def _spans(minutes: Minutes, at_least: float) -> bool:
    """Whether the first and last of these minutes are `at_least` minutes apart, so that they are two heartbeats."""
    return minutes.count() > 1 and (minutes.last or 0) - (minutes.earliest or 0) >= at_least


def _is_quiet(minutes: Minutes, limit: float) -> bool:
    """Whether the last day has no gap longer than `limit`."""
    last = minutes.last or 0
    day = minutes.between(last - DAY_MINUTES, last)
    return not day.gaps(longer_than=limit) and (day.earliest or last) <= last - DAY_MINUTES + limit


def _count(sensors: Sequence[str]) -> str:
    return "1 sensor" if len(sensors) == 1 else f"{len(sensors)} sensors"


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
