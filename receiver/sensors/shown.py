"""What operators see of the registry: rows for commands and pages, and sensors found by id or name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from receiver.errors import ReceiverError
from receiver.sensors.gaps import GAP_INTERVALS, HISTORY_MINUTES, Gap, Kind, completeness, find_gaps, is_filled
from receiver.sensors.history import DAY_SECONDS, Point, quantities_in, unpack
from receiver.sensors.minutes import DAY_MINUTES, LEARN_MINUTES, Minutes, Span, minute_of
from receiver.sensors.reader import chunks
from receiver.sensors.registry import Registry
from receiver.sensors.watch import Watched
from receiver.validation import counted

MAX_LISTED = 1000
"""How many gaps and incidents are listed: more than anyone reads."""

WATCHED_HOURS = 2.0
"""A sensor that was heard for this time without a heartbeat sends none."""


@dataclass(frozen=True)
class LatestValue:
    """The latest reading of a quantity."""

    value: float
    unit: str
    time: datetime


@dataclass(frozen=True)
class SensorRow:
    """A sensor, as it is shown; times are aware UTC."""

    device_id: str
    name: str | None
    type: str | None
    project_id: str | None
    state: str
    last_heard: datetime | None
    heartbeat_seconds: int | None
    battery: float | None
    signal_strength: float | None
    latest: Mapping[str, LatestValue]


@dataclass(frozen=True)
class DayRow:
    """The completeness of a day of a sensor, from 0 to 1."""

    day: date
    completeness: float


@dataclass(frozen=True)
class SensorDetails(SensorRow):
    """A sensor with the details that only its own page and `sensors show` have."""

    days: tuple[DayRow, ...]


@dataclass(frozen=True)
class GapRow:
    """A gap of a sensor, to the minute; `to` is None while it lasts."""

    device_id: str
    from_: datetime
    to: datetime | None
    seconds: int
    kind: str
    filled: bool


@dataclass(frozen=True)
class OpenGap:
    """A gap that can be fetched from DT's history, in minutes since 1970; shorter times than `limit` are no gap."""

    device_id: str
    project_id: str | None
    start: int
    end: int
    limit: float
    known: Minutes
    retired: bool = False

    def is_filled_by(self, fetched: Minutes) -> bool:
        return is_filled(self.known | fetched, self.start, self.end, self.limit)


@dataclass(frozen=True)
class IncidentRow:
    """An incident, as it is shown, with the device ids of its sensors."""

    id: int
    cause: str
    project_id: str | None
    sensors: tuple[str, ...]
    opened: datetime
    closed: datetime | None
    reason: str


def sensor_rows(registry: Registry) -> list[SensorRow]:
    return [row_of(stored) for stored in registry.rows()]


def find(registry: Registry, text: str) -> Any:
    """The stored row of the sensor with this device id or name. Raises ReceiverError unless there is exactly one."""
    found = registry.named(text)
    if len(found) > 1:
        candidates = ", ".join(row.device_id for row in found)
        raise ReceiverError(f"{len(found)} sensors are named {text!r}; give a device id: {candidates}")
    if not found:
        raise ReceiverError(f"no sensor has the device id or the name {text!r}; `sensors` shows all")
    return found[0]


def details(registry: Registry, text: str, now: float) -> SensorDetails:
    """A sensor with the completeness of the last 7 days."""
    stored = find(registry, text)
    days = days_of(registry, [stored], registry.newest(now), now)
    return SensorDetails(**{**vars(row_of(stored)), "days": days[stored.device_id]})


def days_of(
    registry: Registry, stored: Sequence[Any], newest: Mapping[str, float], now: float
) -> dict[str, tuple[DayRow, ...]]:
    """The completeness of the last 7 days of each of these sensors, by device id; of none without a learned interval.

    `newest` is the newest live timestamp of each project.
    """
    known = registry.heard(stored, filled=True)
    return {
        each.device_id: tuple(_days(each, known.get(each.device_id), newest.get(each.project_id or "", now), now))
        for each in stored
    }


def _days(stored: Any, known: Minutes | None, newest: float, now: float) -> Iterator[DayRow]:
    if known is None or stored.interval_minutes is None:
        return
    until, interval = minute_of(min(newest, stored.retired_at or newest)), _interval(stored)
    for day in range((until - LEARN_MINUTES) // DAY_MINUTES + 1, until // DAY_MINUTES + 1):
        share = completeness(known, interval, day, minute_of(stored.first_heard or now), until)
        if share is not None:
            yield DayRow(date(1970, 1, 1) + timedelta(days=day), round(share, 4))


def last_day(registry: Registry, device: str, newest: float) -> dict[str, list[Point]]:
    """The stored points of the 24 hours before `newest`, by quantity."""
    return history_of(registry, [device], newest - DAY_SECONDS, newest).get(device, {})


def history_of(
    registry: Registry, devices: Sequence[str], start: float, end: float, wanted: Mapping[str, str] | None = None
) -> dict[str, dict[str, list[Point]]]:
    """The stored points after `start` and up to `end`, by device id and quantity; with `wanted`, of one of each."""
    found: dict[str, dict[str, list[Point]]] = {}
    for stored in registry.days_of(devices, int(start // DAY_SECONDS)):
        known = quantities_in([(stored.hours, stored.points)]) if wanted is None else [wanted[stored.device_id]]
        for quantity in known:
            for point in unpack(stored.day, quantity, stored.hours, stored.points):
                if start < point.time <= end:
                    found.setdefault(stored.device_id, {}).setdefault(quantity, []).append(point)
    return found


def gap_rows(registry: Registry, text: str | None, now: float) -> list[GapRow]:
    """The gaps of the last 7 days, of one sensor or of all, newest first."""
    stored = [find(registry, text)] if text is not None else registry.rows()
    return gaps_of(registry, stored, projects_heard(registry, now), now)[:MAX_LISTED]


@dataclass(frozen=True)
class ProjectsHeard:
    """The newest live timestamp of each project, its outages, and when the receiver was down, in the last minutes."""

    newest: Mapping[str, float]
    outages: Mapping[str, Sequence[Span]]
    down: Sequence[Span]
    minutes: int


def projects_heard(registry: Registry, now: float, minutes: int = LEARN_MINUTES) -> ProjectsHeard:
    """What was heard of projects in the last 7 days, or in that many minutes; outages also of the time before."""
    newest = registry.newest(now)
    return ProjectsHeard(newest, *registry.outages(now, HISTORY_MINUTES, newest), minutes)


def gaps_of(registry: Registry, stored: Sequence[Any], projects: ProjectsHeard, now: float) -> list[GapRow]:
    """The gaps of these sensors, newest first."""
    rows = [
        GapRow(
            sensor.device_id,
            _time(gap.start * 60),
            None if gap.end is None else _time(gap.end * 60),
            gap.minutes * 60,
            gap.kind.value,
            gap.filled,
        )
        for sensor, gap, _ in _gaps(registry, stored, projects, now)
    ]
    return sorted(rows, key=lambda row: row.from_, reverse=True)


def open_gaps(registry: Registry, now: float, minutes: int) -> list[OpenGap]:
    """The gaps of kind `receiver` that are not filled yet, of all sensors, in the last `minutes`."""
    return [
        OpenGap(
            sensor.device_id,
            sensor.project_id,
            max(gap.start, minute_of(now) - minutes),
            minute_of(now) if gap.end is None else gap.end,
            GAP_INTERVALS * _interval(sensor),
            known,
            sensor.retired_at is not None,
        )
        for sensor, gap, known in _gaps(registry, registry.rows(), projects_heard(registry, now, minutes), now)
        if gap.kind is Kind.RECEIVER and not gap.filled
    ]


def _gaps(
    registry: Registry, stored: Sequence[Any], projects: ProjectsHeard, now: float
) -> Iterator[tuple[Any, Gap, Minutes]]:
    """Each gap with its sensor, and the minutes in which that sensor was heard or filled."""
    for some in chunks([each for each in stored if each.last_heard is not None and each.periodic]):
        heard = registry.heard(some, minutes=projects.minutes)
        longest = max(minute_of(each.last_heard) - (heard[each.device_id].earliest or 0) for each in some)
        known = registry.heard(some, filled=True, minutes=max(projects.minutes, longest))
        for each in some:
            unheard = sorted([*projects.down, *projects.outages.get(each.project_id or "", ())])
            until = now if each.retired_at is None else each.retired_at
            end = minute_of(min(projects.newest.get(each.project_id or "", now), until))
            for gap in find_gaps(
                heard[each.device_id], known[each.device_id], _interval(each), each.type, _merged(unheard), end
            ):
                if gap.end is None and each.retired_at is not None:
                    gap = replace(gap, end=end)
                if gap.end is None or gap.end > minute_of(now) - projects.minutes:
                    yield each, gap, known[each.device_id]


def incident_rows(registry: Registry) -> list[IncidentRow]:
    """The newest incidents, newest first."""
    return [
        IncidentRow(
            each.id,
            each.cause.value,
            each.project_id,
            tuple(each.sensors),
            each.opened,
            each.closed,
            each.reason,
        )
        for each in registry.incidents(MAX_LISTED)
    ]


def unwatchable(registry: Registry) -> list[str]:
    """A warning for each project with sensors that send no heartbeat, so that their silence cannot be detected."""
    without = Counter(
        row.project_id or "(unknown)"
        for row in registry.rows()
        if not row.periodic
        and row.last_heard is not None
        and row.first_heard is not None
        and row.last_heard - row.first_heard > WATCHED_HOURS * 3600
        and row.type != "ccon"
    )
    return [
        f"project {project} has {counted(count, 'sensor')} without any heartbeat, whose silence cannot be detected; "
        "enable networkStatus in its Data Connector"
        for project, count in sorted(without.items())
    ]


def row_of(stored: Any) -> SensorRow:
    facts = json.loads(stored.facts)
    latest = {
        name.removeprefix("latest:"): LatestValue(fact[1], fact[2], _time(fact[0]))
        for name, fact in facts.items()
        if name.startswith("latest:")
    }
    return SensorRow(
        stored.device_id,
        stored.name,
        stored.type,
        stored.project_id,
        stored.state,
        None if stored.last_heard is None else _time(stored.last_heard),
        None if stored.interval_minutes is None else round(_interval(stored) * 60),
        latest["battery"].value if "battery" in latest else None,
        latest["signal_strength"].value if "signal_strength" in latest else None,
        latest,
    )


def _interval(stored: Any) -> float:
    return Watched(*(getattr(stored, name) for name in Watched._fields)).interval


def _merged(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted spans without overlaps."""
    merged: list[tuple[int, int]] = []
    for start, end in spans:
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
