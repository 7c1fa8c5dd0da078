"""What is plotted of a sensor's history: lines with a band, steps and marks. Pure functions of stored points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from statistics import median_low

from receiver.console import words
from receiver.sensors.gaps import GAP_INTERVALS
from receiver.sensors.history import Point, by_hour
from receiver.validation import counted

PERIODIC = frozenset(("temperature", "relative_humidity", "co2", "pressure", "signal_strength", "rssi"))
"""What comes with every heartbeat: a line of it is interrupted where one is missing."""

RANGES: Mapping[str, tuple[str, float]] = {
    "24h": ("24 hours", 86400.0),
    "7d": ("7 days", 7 * 86400.0),
    "30d": ("30 days", 30 * 86400.0),
}
"""What is plotted, by its name in an address: its title, and its seconds. Only the first one in full."""

LONGEST_INTERVAL = 3600.0


class Kind(StrEnum):
    """How a quantity is drawn."""

    LINE = "line"
    STEPS = "steps"
    """A state, which lasts until the next one."""
    MARKS = "marks"
    """Something that happens, and does not last."""


@dataclass(frozen=True)
class Plot:
    """One quantity over time. `mean` is None where the line is interrupted; `low` and `high` are its band."""

    name: str
    title: str
    unit: str
    kind: Kind
    states: tuple[str, str] | None
    times: Sequence[float]
    mean: Sequence[float | None]
    low: Sequence[float | None]
    high: Sequence[float | None]

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        return min(each for each in self.low if each is not None), max(each for each in self.high if each is not None)

    @property
    def summary(self) -> str:
        """What it ranges over, in words."""
        if self.kind is Kind.MARKS:
            return counted(len(self.times), "time")
        return " to ".join(dict.fromkeys(words.value(self.name, each) for each in self.bounds))


@dataclass(frozen=True)
class Row:
    """The values of all quantities at one time, or in the hour that begins then."""

    time: float
    points: Mapping[str, Point]


def in_range(history: Mapping[str, Sequence[Point]], name: str) -> dict[str, Sequence[Point]]:
    """The points that are plotted: all of the last day, else by hour. States stay as they are."""
    full = name == next(iter(RANGES))
    return {
        quantity: points if full or words.quantity(quantity).states else by_hour(points)
        for quantity, points in history.items()
    }


def plots(points: Mapping[str, Sequence[Point]], interval: float, end: float, *, hourly: bool) -> list[Plot]:
    """A plot of each quantity. `interval` is that of the sensor, in seconds.

    A state lasts until the next one, and the last one until `end`, when the sensor was heard last.
    """
    limit = GAP_INTERVALS * max(interval, 3600.0 if hourly else 0.0)
    return [
        _plot(name, points[name], max(limit, GAP_INTERVALS * _usual(points[name])), end)
        for name in words.in_order(list(points))
        if points[name]
    ]


def _usual(points: Sequence[Point]) -> float:
    """The usual time between two points, in seconds: not every heartbeat has every quantity. 0 if it is not known."""
    if len(points) < 3:
        return 0.0
    return median_low(after.time - before.time for before, after in pairwise(points))


def _plot(name: str, points: Sequence[Point], limit: float, end: float) -> Plot:
    quantity = words.quantity(name)
    if name == "touch":
        kind, shown = Kind.MARKS, list(points)
    elif quantity.states is not None:
        kind, shown = Kind.STEPS, _steps(points, end)
    else:
        kind, shown = Kind.LINE, list(points)
    drawn = _interrupted(shown, limit if name in PERIODIC else math.inf)
    return Plot(
        name,
        quantity.title,
        quantity.unit,
        kind,
        quantity.states,
        [time for time, _ in drawn],
        [None if point is None else rounded(point.mean) for _, point in drawn],
        [None if point is None else rounded(point.minimum) for _, point in drawn],
        [None if point is None else rounded(point.maximum) for _, point in drawn],
    )


def _interrupted(points: Sequence[Point], limit: float) -> list[tuple[float, Point | None]]:
    """The points by their times, with a time without a point where two of them are more than `limit` seconds apart."""
    drawn: list[tuple[float, Point | None]] = []
    for point in points:
        if drawn and point.time - drawn[-1][0] > limit:
            drawn.append(((drawn[-1][0] + point.time) / 2, None))
        drawn.append((point.time, point))
    return drawn


def _steps(points: Sequence[Point], end: float) -> list[Point]:
    """A state at the times at which it changed. Of an hour in which it was both, it is the higher one first."""
    steps: list[Point] = []
    for point in points:
        steps.append(Point(point.time, point.maximum, point.maximum, point.maximum))
        if point.minimum < point.maximum:
            steps.append(Point(point.time + 3599, point.minimum, point.minimum, point.minimum))
    last = steps[-1]
    return [*steps, Point(max(end, last.time), last.mean, last.mean, last.mean)]


def rounded(value: float) -> float:
    """A stored value without the digits that it has only because it is stored in 32 bits."""
    return value if value % 1 == 0 else float(f"{value:.7g}")


def table(points: Mapping[str, Sequence[Point]]) -> list[Row]:
    """The same values as rows, newest first."""
    rows: dict[float, dict[str, Point]] = {}
    for name, of_quantity in points.items():
        for point in of_quantity:
            rows.setdefault(point.time, {})[name] = point
    return [Row(time, rows[time]) for time in sorted(rows, reverse=True)]
