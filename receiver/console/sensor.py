"""One sensor: its values now and over time, what was missed, its last events; snooze and retire."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from receiver.admin import newest_events
from receiver.console import words
from receiver.console.charts import Span
from receiver.console.plots import LONGEST_INTERVAL, RANGES, Kind, Plot, in_range, plots, rounded, table
from receiver.console.visit import ID, Ask, Data, Done, Download, Page, Visit
from receiver.errors import ReceiverError
from receiver.incident import Incident
from receiver.sensors.history import Point
from receiver.sensors.shown import GapRow, SensorRow, days_of, gaps_of, history_of, row_of

EVENTS = 10
EVENTS_READ = 10_000
"""How many events are looked through for those of a sensor: the journal is not indexed by it."""

INCIDENTS = 10
HOURS: Mapping[int, str] = {1: "1 hour", 8: "8 hours", 24: "1 day", 168: "7 days"}
"""How long a sensor can be snoozed here."""


@dataclass(frozen=True)
class Plotted:
    """What is plotted: a time, the quantities in it, and what is shaded."""

    range: str
    hourly: bool
    start: float
    end: float
    points: Mapping[str, Sequence[Point]]
    plots: Sequence[Plot]
    spans: Sequence[Span]

    @property
    def begin(self) -> datetime:
        return datetime.fromtimestamp(self.start, UTC)


def show(visit: Visit) -> Page:
    stored = of_path(visit)
    row = row_of(stored)
    gaps = gaps_of(visit.registry, [stored], visit.sources.projects(), visit.now)
    incidents = visit.registry.incidents_of(row.device_id, INCIDENTS)
    values = {
        "sensor": row,
        "snoozed_until": datetime.fromtimestamp(stored.snoozed_until, UTC) if row.state == "snoozed" else None,
        "latest": [(name, row.latest[name]) for name in words.in_order(list(row.latest))],
        "plotted": plotted(visit, row, gaps_in_range(visit, stored), incidents),
        "ranges": [(title, name) for name, (title, _) in RANGES.items()],
        "days": days_of(visit.registry, [stored], visit.sources.projects().newest, visit.now)[row.device_id],
        "gaps": gaps,
        "incidents": incidents,
        "events": newest_events(visit.records, visit.now + 60, [row.device_id], EVENTS, EVENTS_READ)[0],
        "read": EVENTS_READ,
        "hours": HOURS,
    }
    return Page("sensor.html", values)


def of_path(visit: Visit) -> Any:
    """The stored row of the sensor that the path names. Raises ReceiverError if there is none."""
    device = visit.path["device"]
    found = visit.registry.rows([device]) if ID.fullmatch(device) else []
    if not found:
        raise ReceiverError("no sensor has this device id")
    return found[0]


def plotted(visit: Visit, row: SensorRow, gaps: Sequence[GapRow], incidents: Sequence[Incident]) -> Plotted:
    name = chosen_range(visit)
    hourly, start = name != next(iter(RANGES)), visit.now - RANGES[name][1]
    history = history_of(visit.registry, [row.device_id], start, visit.now).get(row.device_id, {})
    points = in_range(history, name)
    heard_until = visit.now if row.last_heard is None else row.last_heard.timestamp()
    spans = [
        *(span(gap.from_, gap.to, "gap", f"gap: {gap.kind}{', filled' if gap.filled else ''}", visit) for gap in gaps),
        *(span(each.since, each.closed, "incident", f"incident: {each.reason}", visit) for each in incidents),
    ]
    return Plotted(
        name,
        hourly,
        start,
        visit.now,
        points,
        plots(points, row.heartbeat_seconds or LONGEST_INTERVAL, heard_until, hourly=hourly),
        [each for each in spans if each.end > start],
    )


def gaps_in_range(visit: Visit, stored: Any) -> list[GapRow]:
    """The gaps of the time that is plotted, or of a longer one."""
    projects = visit.sources.projects()
    minutes = max(projects.minutes, round(RANGES[chosen_range(visit)][1] / 60))
    return gaps_of(visit.registry, [stored], replace(projects, minutes=minutes), visit.now)


def chosen_range(visit: Visit) -> str:
    name = visit.query.get("range", "")
    return name if name in RANGES else next(iter(RANGES))


def span(start: datetime, end: datetime | None, kind: str, title: str, visit: Visit) -> Span:
    return Span(start.timestamp(), visit.now if end is None else end.timestamp(), kind, title)


def history(visit: Visit) -> Data:
    """What is plotted, for the script that draws it."""
    stored = of_path(visit)
    incidents = visit.registry.incidents_of(stored.device_id, INCIDENTS)
    shown = plotted(visit, row_of(stored), gaps_in_range(visit, stored), incidents)
    content = {
        "start": shown.start,
        "end": shown.end,
        "hourly": shown.hourly,
        "plots": [
            {
                "name": plot.name,
                "title": plot.title,
                "unit": plot.unit,
                "kind": plot.kind.value,
                "states": plot.states,
                "decimals": words.quantity(plot.name).decimals,
                "times": plot.times,
                "mean": plot.mean,
                "low": plot.low if shown.hourly and plot.kind is Kind.LINE else None,
                "high": plot.high if shown.hourly and plot.kind is Kind.LINE else None,
                "summary": plot.summary,
            }
            for plot in shown.plots
        ],
        "spans": [{"start": each.start, "end": each.end, "kind": each.kind} for each in shown.spans],
    }
    return Data(content)


def values(visit: Visit) -> Page:
    """The plotted values as a table, for people who cannot see plots."""
    row = row_of(of_path(visit))
    shown = plotted(visit, row, (), ())
    found = {
        "sensor": row,
        "plotted": shown,
        "ranges": [(title, name) for name, (title, _) in RANGES.items()],
        "names": words.in_order([name for name, points in shown.points.items() if points]),
        "rows": [(datetime.fromtimestamp(each.time, UTC), each.points) for each in table(shown.points)],
    }
    return Page("values.html", found)


def download(visit: Visit) -> Download:
    device = of_path(visit).device_id
    start = visit.now - RANGES[chosen_range(visit)][1]
    found = history_of(visit.registry, [device], start, visit.now).get(device, {})
    return Download(f"{device}.csv", csv_rows(device, found))


def csv_rows(device: str, found: Mapping[str, Sequence[Point]]) -> Iterator[Sequence[object]]:
    """Points as they are stored; one that is a whole hour has a minimum and a maximum."""
    yield "device_id", "time", "quantity", "unit", "mean", "minimum", "maximum"
    for name in words.in_order(list(found)):
        for point in found[name]:
            time = datetime.fromtimestamp(point.time, UTC)
            values = (rounded(each) for each in (point.mean, point.minimum, point.maximum))
            yield device, time, name, words.quantity(name).unit, *values


def snooze(visit: Visit) -> Done:
    device, hours = of_path(visit).device_id, chosen_hours(visit)
    visit.registry.snooze(device, visit.now + hours * 3600 if hours else 0.0, visit.now)
    return Done(f"/sensors/{device}", "snoozed" if hours else "woken", hours)


def chosen_hours(visit: Visit) -> int:
    given = visit.form.get("hours", "")
    return next((hours for hours in HOURS if str(hours) == given), 0)


def retire(visit: Visit) -> Ask | Done:
    stored = of_path(visit)
    device, undo = stored.device_id, visit.form.get("undo") == "yes"
    if undo or visit.confirmed:
        visit.registry.retire(device, None if undo else visit.now, visit.now)
        return Done(f"/sensors/{device}", "unretired" if undo else "retired")
    return Ask(
        f"Expect 1 sensor no more, {stored.name or device}: no incident will be raised for it, and its history stays. "
        "You can undo this.",
        "Retire the sensor",
        f"/sensors/{device}",
        f"sensors retire {device}",
    )
