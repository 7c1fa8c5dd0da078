"""Silence and gaps: open and past incidents, when nothing was heard at all, and completeness by day."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from importlib.util import find_spec
from typing import Any

from receiver import admin
from receiver.console.paging import ROWS, Rows, page_of
from receiver.console.rendering import plain
from receiver.console.sensors import chosen_state, search
from receiver.console.visit import Ask, Done, Page, Visit
from receiver.incident import Cause, Incident
from receiver.sensors.gaps import Kind
from receiver.sensors.minutes import Span
from receiver.sensors.requested_backfill import Missed, RequestedBackfill, read_request
from receiver.sensors.shown import GapRow, SensorRow, days_of, gaps_of, row_of
from receiver.validation import counted, in_one_unit

OPEN = 100
"""How many open incidents are shown."""

PAST = 20
DAYS = 7
NAMED = 5
"""How many projects the question before a backfill names."""

TITLES: Mapping[Cause, tuple[str, str]] = {
    Cause.PROJECT: (
        "Projects",
        "Nothing is heard of the whole project: look at its Data Connector, power and network.",
    ),
    Cause.GATEWAY: ("Cloud connectors", "Nothing is heard of the sensors that are heard only through it."),
    Cause.DEVICE: ("Sensors", "Nothing is heard of this sensor, while its project is heard."),
}


@dataclass(frozen=True)
class Outage:
    """A time in which nothing was heard of a project, or, without one, in which the receiver was down."""

    project_id: str | None
    start: datetime
    end: datetime

    @property
    def seconds(self) -> float:
        return (self.end - self.start).total_seconds()


@dataclass(frozen=True)
class Row:
    """A sensor with its completeness on each of the last days, None where it was not expected, and its gaps."""

    sensor: SensorRow
    days: Sequence[float | None]
    gaps: Sequence[GapRow]


def show(visit: Visit) -> Page:
    registry = visit.registry
    opened = registry.incidents(OPEN, open_only=True, named=False)
    sensors = of_page(visit)
    days = last_days(visit.now)
    rows = of_sensors(visit, sensors, days)
    values = {
        "causes": [(*TITLES[cause], [each for each in opened if each.cause is cause]) for cause in Cause],
        "open": sum(registry.causes().values()),
        "past": past(visit),
        "outages": outages(visit),
        "backfill": backfill_command(),
        "not_possible": admin.backfill_possible(visit.records, visit.settings),
        "requested": requested(visit),
        "days": days,
        "page": sensors,
        "rows": rows,
        "receiver_gaps": sum(gap.kind == Kind.RECEIVER and not gap.filled for row in rows for gap in row.gaps),
        "states": [("all", ""), *((name, name) for name, count in visit.sources.states().items() if count)],
        "text": search(visit),
        "state": chosen_state(visit) or "",
    }
    return Page("silence.html", values)


def past(visit: Visit) -> Rows[Incident]:
    """A page of all incidents, newest first."""
    given = visit.query.get("before", "")
    before = int(given) if given.isdecimal() and len(given) < 18 else None
    return page_of(visit.registry.incidents(PAST + 1, before=before, named=False), lambda each: each.id, PAST)


def outages(visit: Visit) -> list[Outage]:
    """When nothing was heard at all in the last days, newest first."""
    projects = visit.sources.projects()
    found = [*_outages(None, projects.down)]
    for project, spans in projects.outages.items():
        found += _outages(project, spans)
    since = datetime.fromtimestamp(visit.now, UTC) - timedelta(days=DAYS)  # more is read, since days are stored whole
    return sorted((each for each in found if each.end > since), key=lambda each: each.start, reverse=True)[:PAST]


def _outages(project: str | None, spans: Sequence[Span]) -> Iterator[Outage]:
    for start, end in spans:
        yield Outage(project, datetime.fromtimestamp(start * 60, UTC), datetime.fromtimestamp(end * 60, UTC))


def backfill_command() -> str | None:
    """The command that fetches from DT what was missed, where this receiver has it."""
    return "backfill" if find_spec("receiver.dt") else None


def backfill(visit: Visit) -> Ask | Done:
    """Ask for a backfill, which the dispatcher's process carries out."""
    if visit.confirmed:
        admin.ask_for_backfill(visit.records, visit.registry, visit.settings, visit.now)
        return Done("/silence", "backfill")
    missed = admin.to_backfill(visit.records, visit.registry, visit.settings, visit.now)
    return Ask(
        f"Ask DT for the events of every sensor that was not heard in these times of the last 31 days: "
        f"{in_words(missed)}. What the journal does not have is delivered to the sinks.",
        "Start a backfill",
        "/silence",
        "backfill",
    )


def in_words(missed: Sequence[Missed]) -> str:
    """How much time of which projects: the longest first."""
    named = [
        f"{in_one_unit(each.seconds)} of " + ("all projects" if each.project_id is None else plain(each.project_id, 64))
        for each in missed[:NAMED]
    ]
    if more := missed[NAMED:]:
        named.append(f"{in_one_unit(sum(each.seconds for each in more))} of {counted(len(more), 'more project')}")
    return ", ".join(named)


def of_page(visit: Visit) -> Rows[Any]:
    stored = visit.registry.page(visit.after, ROWS + 1, text=search(visit), state=chosen_state(visit))
    return page_of(stored, lambda each: each.device_id)


def last_days(now: float) -> list[date]:
    today = datetime.fromtimestamp(now, UTC).date()
    return [today - timedelta(days=n) for n in reversed(range(DAYS))]


def requested(visit: Visit) -> tuple[RequestedBackfill, datetime] | None:
    """The last backfill that a person asked for, and since when it is in its state."""
    found = read_request(visit.records)
    return None if found is None else (found, datetime.fromtimestamp(found.since, UTC))


def of_sensors(visit: Visit, page: Rows[Any], days: Sequence[date]) -> list[Row]:
    by_day = days_of(visit.registry, page.rows, visit.sources.projects().newest, visit.now)
    gaps: dict[str, list[GapRow]] = {}
    for gap in gaps_of(visit.registry, page.rows, visit.sources.projects(), visit.now):
        gaps.setdefault(gap.device_id, []).append(gap)
    rows = []
    for sensor in map(row_of, page.rows):
        known = {each.day: each.completeness for each in by_day[sensor.device_id]}
        rows.append(Row(sensor, [known.get(day) for day in days], gaps.get(sensor.device_id, ())))
    return rows
