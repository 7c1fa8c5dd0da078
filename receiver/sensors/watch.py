"""Sensors, projects and incidents as they are judged, and for how long a sensor was silent. Pure functions.

A sensor is silent when it was not heard for several of its intervals *in which its project was heard*, measured by DT's
timestamps. So a restart, downtime of the receiver, hours of catching up or a wrong clock here make no sensor silent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from receiver.incident import Cause
from receiver.sensors.folding import FUTURE_SECONDS
from receiver.sensors.minutes import Minutes, Span, learn_interval, minute_of, overlap

LEAST_SILENT_MINUTES = 20
LEARNING_MINUTES = 60
"""The interval that is assumed until a sensor's own is learned: DT's longest."""

FLOORS = {"temperature": 5, "deskOccupancy": 5, "co2": 2.5}
FLOOR = 15
"""The shortest interval by type, in minutes."""

OUTAGE_MINUTES = 10
"""When a project is not heard for this time and for two of its intervals, its sensors are not expected to be heard."""

DOWN_MINUTES = 3
"""The receiver counts as down where it did not record for this time that it was up."""


class State(StrEnum):
    """The state of a sensor."""

    LEARNING = "learning"
    """Its interval is not known yet."""
    OK = "ok"
    SILENT = "silent"
    OFFLINE = "offline"
    """Reported by DT."""
    UNSTABLE = "unstable"
    """It was silent several times within a day."""
    SNOOZED = "snoozed"
    RETIRED = "retired"


class Watched(NamedTuple):
    """A sensor as it is judged. Times are seconds since 1970; `last_heard` is on DT's clock."""

    device_id: str
    name: str | None
    project_id: str | None
    type: str | None
    last_heard: float | None
    periodic: bool
    connector: str | None
    offline_since: float | None
    interval_minutes: int | None
    expected_from: float
    snoozed_until: float
    retired_at: float | None
    state: str

    @property
    def interval(self) -> float:
        """In minutes: the learned interval, but at least the shortest one of its type."""
        if self.interval_minutes is None:
            return LEARNING_MINUTES
        return max(self.interval_minutes, FLOORS.get(self.type or "", FLOOR))

    @property
    def label(self) -> str:
        return self.name or self.device_id

    @property
    def emulated(self) -> bool:
        """Whether DT Studio emulates it: then it sends only when a person clicks, or at an interval that is learned."""
        return len(self.device_id) == 23 and self.device_id.startswith("emu")

    def is_judged(self, now: float) -> bool:
        """Whether incidents can be opened for it: not while it is retired or snoozed."""
        return self.retired_at is None and self.snoozed_until <= now

    @property
    def is_expected(self) -> bool:
        is_regular = self.interval_minutes is not None or not self.emulated
        return is_regular and self.periodic and self.last_heard is not None


@dataclass(frozen=True)
class Project:
    """A project: its usual interval in minutes, and the outages in which its sensors are not expected to be heard.

    `newest` is its newest live timestamp, `unheard` for how many minutes the receiver was up since it was last heard.
    `arrivals` are those of the last days, from the minute `known_from` on. What was before the first of them, in the
    minute `begin`, may have been the end of an outage that began earlier; it is None if there is none.
    """

    id: str
    newest: float
    interval: float
    arrivals: Minutes
    outages: Sequence[Span]
    unheard: int
    known_from: int
    begin: int | None


@dataclass(frozen=True)
class Case:
    """An incident as it is stored; `id` is 0 for a new one. `subject` is a project, a cloud connector or a device."""

    cause: Cause
    subject: str
    project_id: str | None
    sensors: tuple[str, ...]
    since: float
    opened: float
    reason: str
    unstable: bool = False
    closed: float | None = None
    id: int = 0
    absorbed: bool = False
    """It became part of another incident, so its end is not announced."""


@dataclass(frozen=True)
class Rules:
    """`[sensors]` of config.toml."""

    silent_after: float = 4
    settle_minutes: int = 2

    def limit(self, interval: float) -> float:
        """Minutes after which something with this interval is silent; one more, as minutes are rounded down."""
        return max(LEAST_SILENT_MINUTES, self.silent_after * interval) + 1


def downtimes(up: Minutes, watched_since: int, now: float) -> list[Span]:
    """When the receiver was down since the minute `watched_since`, from which on it recorded that it was up."""
    seen = up.between(watched_since, minute_of(now)) | Minutes(minute_of(now), 1)
    return seen.gaps(longer_than=DOWN_MINUTES)


def known_project(
    project_id: str,
    newest: float,
    known_from: int,
    arrivals: Minutes,
    up: Minutes,
    down: Sequence[Span],
    rules: Rules,
    now: float,
) -> Project:
    until = minute_of(now)
    arrivals = arrivals.between(arrivals.first, until)
    interval = learn_interval(arrivals, down) or LEARNING_MINUTES
    outages = arrivals.gaps(longer_than=max(OUTAGE_MINUTES, 2 * interval))
    last = max(arrivals.last or 0, min(minute_of(newest), until))
    return Project(
        project_id,
        newest,
        interval,
        arrivals,
        [(start, end + rules.settle_minutes) for start, end in outages],
        up.between(last + 1, until).count(),
        known_from,
        arrivals.earliest,
    )


def newest_by_project(sensors: Iterable[Watched], now: float) -> dict[str, float]:
    """The newest live timestamp of each project; times in the future are ignored."""
    newest: dict[str, float] = {}
    for sensor in sensors:
        last, project = sensor.last_heard, sensor.project_id or ""
        if last is not None and newest.get(project, 0.0) < last <= now + FUTURE_SECONDS:
            newest[project] = last
    return newest


def silence(sensor: Watched, project: Project | None) -> float:
    """For how many minutes the sensor was not heard while its project was."""
    if project is None or project.begin is None or not sensor.is_expected:
        return 0.0
    start = max(sensor.last_heard or 0.0, sensor.expected_from)
    if minute_of(start) < project.known_from:
        start = project.begin * 60.0
    minutes = (project.newest - start) / 60
    if minutes <= LEAST_SILENT_MINUTES:
        return minutes
    return minutes - overlap((minute_of(start), minute_of(project.newest)), project.outages)
