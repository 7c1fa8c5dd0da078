"""The commands that show sensors, their gaps and incidents, and snooze or retire a sensor."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from receiver.commands.context import JSON, load_settings, report, show_group
from receiver.commands.output import cell, plain, print_json, show
from receiver.errors import ReceiverError
from receiver.sensors import open_registry
from receiver.sensors.history import Point
from receiver.sensors.registry import Registry
from receiver.validation import MAX_SECONDS, duration

BARS = "▁▂▃▄▅▆▇█"
COLUMNS = 96
"""Of a plot: a quarter of an hour each."""


class Duration(click.ParamType[float]):
    """A time span: 30m, 8h, 2d; 0s is none."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = duration(value)
        except ValueError:
            self.fail("give a duration such as 30m, 8h or 2d", param, ctx)
        if seconds > MAX_SECONDS:
            self.fail("give at most 36500d", param, ctx)
        return seconds


@click.group(invoke_without_command=True)
@JSON
@click.pass_context
def sensors(context: click.Context, as_json: bool) -> None:
    """Show every sensor: its state, when it was last heard, and its latest values.

    \b
    Examples:
      python -m receiver sensors
      python -m receiver sensors show "Cold room 3"
    """
    if not show_group(context, as_json):
        return
    from receiver.sensors.shown import sensor_rows

    rows = sensor_rows(registry())
    if as_json:
        print_json(rows)
    else:
        show(rows, as_json=False, none="No sensor was heard yet.", hide=("latest", "project_id"))


@sensors.command("show")
@click.argument("device")
@JSON
def sensors_show(device: str, as_json: bool) -> None:
    """Show one sensor, given by device id or name: its values with a plot of its last day, and its completeness by day.

    \b
    Example:
      python -m receiver sensors show "Cold room 3"
    """
    from receiver.sensors.shown import details, last_day

    opened = registry()
    found = details(opened, device, time.time())
    if as_json:
        print_json(found)
        return
    for name in ("device_id", "name", "type", "project_id", "state", "last_heard", "heartbeat_seconds"):
        click.echo(f"{name.replace('_', ' '):<17}  {cell(getattr(found, name))}")
    points = last_day(opened, found.device_id, (found.last_heard or datetime.now(UTC)).timestamp())
    for quantity, latest in found.latest.items():
        click.echo(f"\n{quantity}: {latest.value:g} {latest.unit}".rstrip() + f" at {plain(latest.time)}")
        if quantity in points:
            low, high = min(each.minimum for each in points[quantity]), max(each.maximum for each in points[quantity])
            click.echo(f"{plot(points[quantity])}  24 h, {low:g} to {high:g}")
    click.echo()
    if not found.days:
        click.echo(f"{'completeness':<17}  not known until its interval is learned")
    for row in found.days:
        click.echo(f"{row.day}  complete to {row.completeness:.1%}")


@sensors.command("gaps")
@click.argument("device", required=False)
@JSON
def sensors_gaps(device: str | None, as_json: bool) -> None:
    """List the newest 1000 gaps of the last 7 days: when sensors should have been heard and were not.

    \b
    Examples:
      python -m receiver sensors gaps
      python -m receiver sensors gaps "Cold room 3"
    """
    from receiver.sensors.shown import gap_rows

    show(gap_rows(registry(), device, time.time()), as_json=as_json, none="No gaps.")


@sensors.command("incidents")
@JSON
def sensors_incidents(as_json: bool) -> None:
    """List the newest 1000 incidents: for which cause sensors were silent, and since when.

    \b
    Example:
      python -m receiver sensors incidents
    """
    from receiver.sensors.shown import incident_rows

    show(incident_rows(registry()), as_json=as_json, none="No incidents.", hide=() if as_json else ("sensors",))


@sensors.command("snooze")
@click.argument("device")
@click.option("--for", "seconds", type=Duration(), required=True, help="How long: 30m, 8h, 2d; 0s ends a snooze.")
@JSON
def sensors_snooze(device: str, seconds: float, as_json: bool) -> None:
    """Suppress incidents of a sensor, given by device id or name, for a while.

    \b
    Example:
      python -m receiver sensors snooze "Cold room 3" --for 8h
    """
    from receiver.sensors.shown import find

    opened, now = registry(), time.time()
    found = find(opened, device)
    until = datetime.fromtimestamp(now + seconds, UTC)
    opened.snooze(found.device_id, now + seconds if seconds else 0.0, now)
    result = {"device_id": found.device_id, "snoozed_until": until if seconds else None}
    text = f"is snoozed until {cell(until)}" if seconds else "is not snoozed"
    report(plain(result), f"Sensor {cell(found.name or found.device_id)} {text}.", as_json)


@sensors.command("retire")
@click.argument("device")
@click.option("--undo", is_flag=True, help="Expect the sensor again.")
@JSON
def sensors_retire(device: str, undo: bool, as_json: bool) -> None:
    """Stop expecting a sensor, given by device id or name, that was removed for good.

    \b
    Example:
      python -m receiver sensors retire "Cold room 3"
    """
    from receiver.sensors.shown import find

    opened, now = registry(), time.time()
    found = find(opened, device)
    opened.retire(found.device_id, None if undo else now, now)
    result = {"device_id": found.device_id, "retired_at": None if undo else datetime.fromtimestamp(now, UTC)}
    text = "is expected again" if undo else "is retired; its history stays"
    report(plain(result), f"Sensor {cell(found.name or found.device_id)} {text}.", as_json)


def registry() -> Registry:
    """The registry, closed at the end of the command. Raises ReceiverError if it is disabled."""
    settings = load_settings()
    if not settings.sensors.enabled:
        raise ReceiverError(f"the registry of sensors is disabled in {settings.path.name} [sensors]")
    opened = open_registry(settings)
    click.get_current_context().call_on_close(opened.close)
    return opened


def plot(points: Sequence[Point]) -> str:
    """A line with the mean of each quarter of an hour of a day; a dot where there is none."""
    end = points[-1].time
    columns: list[list[float]] = [[] for _ in range(COLUMNS)]
    for point in points:
        columns[max(0, COLUMNS - 1 - int((end - point.time) * COLUMNS // 86400))].append(point.mean)
    means = [sum(each) / len(each) if each else None for each in columns]
    low = min(mean for mean in means if mean is not None)
    high = max(mean for mean in means if mean is not None)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join("·" if mean is None else BARS[round((mean - low) * scale)] for mean in means)
