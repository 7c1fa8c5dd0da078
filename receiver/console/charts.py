"""Plots as SVG, made on the server: spark lines in lists, and what a browser without JavaScript shows of a sensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from receiver.console.plots import Kind, Plot
from receiver.sensors.history import Point

SPARK_WIDTH, SPARK_HEIGHT = 96, 20
CHART_WIDTH, CHART_HEIGHT, MARGIN = 720, 120, 6
BUCKETS = 48
"""Of a spark line: half an hour each."""

BREAK_BUCKETS = 4
"""A line is interrupted where so many buckets have no value: more than the longest interval of DT."""


def spark(points: Sequence[Point], start: float, end: float, *, steps: bool) -> Markup:
    """A small line of the values from `start` to `end`; a state as steps. Empty without values."""
    buckets: list[list[Point]] = [[] for _ in range(BUCKETS)]
    for point in points:
        if start <= point.time < end:
            buckets[int((point.time - start) / (end - start) * BUCKETS)].append(point)
    if not any(buckets):
        return Markup("")
    if steps:
        return _svg(_held([max(point.maximum for point in each) if each else None for each in buckets]), steps=True)
    means = [sum(point.mean for point in each) / len(each) if each else None for each in buckets]
    low = min(mean for mean in means if mean is not None)
    high = max(mean for mean in means if mean is not None)
    scale = 1 / (high - low) if high > low else 0.0
    return _svg([None if mean is None else (mean - low) * scale if scale else 0.5 for mean in means], steps=False)


def _held(values: Iterable[float | None]) -> list[float | None]:
    """A state lasts until the next one."""
    held: list[float | None] = []
    last: float | None = None
    for value in values:
        last = last if value is None else float(value > 0)
        held.append(last)
    return held


def _svg(levels: Sequence[float | None], *, steps: bool) -> Markup:
    """A line through levels from 0 to 1."""
    width = SPARK_WIDTH / BUCKETS
    d, before = "", None
    for n, level in enumerate(levels):
        if level is None:
            continue
        x, y = round((n + 0.5) * width, 1), round(SPARK_HEIGHT - 2 - level * (SPARK_HEIGHT - 4), 1)
        goes_on = before is not None and n - before < BREAK_BUCKETS
        d += (f"H{x:g}V{y:g}" if steps else f"L{x:g} {y:g}") if goes_on else f"M{x:g} {y:g}h.1"
        before = n
    return Markup(
        '<svg class="spark" viewBox="0 0 {} {}" width="{}" height="{}" aria-hidden="true"><path d="{}"/></svg>'
    ).format(SPARK_WIDTH, SPARK_HEIGHT, SPARK_WIDTH, SPARK_HEIGHT, d)


@dataclass(frozen=True)
class Span:
    """A time that is shaded in a plot, and why."""

    start: float
    end: float
    kind: str
    title: str


def chart(plot: Plot, start: float, end: float, spans: Sequence[Span]) -> Markup:
    """A quantity from `start` to `end`, over shaded spans."""
    low, high = (0.0, 1.0) if plot.states else plot.bounds
    scale = (CHART_HEIGHT - 2 * MARGIN) / (high - low) if high > low else 0.0

    def x(time: float) -> float:
        return round(min(max(0.0, (time - start) / (end - start)), 1.0) * CHART_WIDTH, 1)

    def y(value: float) -> float:
        return round(CHART_HEIGHT - MARGIN - (value - low) * scale if scale else CHART_HEIGHT / 2, 1)

    shaded = Markup("").join(
        Markup('<rect class="{}" x="{}" y="0" width="{}" height="{}"><title>{}</title></rect>').format(
            each.kind, x(each.start), max(1.0, x(each.end) - x(each.start)), CHART_HEIGHT, each.title
        )
        for each in spans
    )
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">'
        '{}<path class="band" d="{}"/><path class="line" d="{}"/></svg>'
    ).format(CHART_WIDTH, CHART_HEIGHT, plot.title, shaded, _band(plot, x, y), _line(plot, x, y))


def _line(plot: Plot, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    d, goes_on = "", False
    for time, value in zip(plot.times, plot.mean, strict=True):
        if value is None:
            goes_on = False
        elif plot.kind is Kind.MARKS:
            d += f"M{x(time):g} {CHART_HEIGHT}V{MARGIN}"
        elif goes_on:
            d += f"H{x(time):g}V{y(value):g}" if plot.kind is Kind.STEPS else f"L{x(time):g} {y(value):g}"
        else:
            d, goes_on = f"{d}M{x(time):g} {y(value):g}h.1", True
    return d


def _band(plot: Plot, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    """A closed path around minimum and maximum for each uninterrupted piece of a line."""
    if plot.kind is not Kind.LINE or plot.low == plot.high:
        return ""
    pieces: list[list[tuple[float, float, float]]] = [[]]
    for time, low, high in zip(plot.times, plot.low, plot.high, strict=True):
        if low is None or high is None:
            pieces.append([])
        else:
            pieces[-1].append((time, low, high))
    return "".join(
        "M"
        + "L".join(
            [f"{x(time):g} {y(high):g}" for time, _, high in piece]
            + [f"{x(time):g} {y(low):g}" for time, low, _ in reversed(piece)]
        )
        + "Z"
        for piece in pieces
        if len(piece) > 1
    )
