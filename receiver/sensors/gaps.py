"""Gaps and completeness: when a sensor should have been heard and was not. Pure functions of stored minutes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from receiver.sensors.minutes import DAY_MINUTES, Minutes, Span, overlap

HISTORY_MINUTES = 31 * DAY_MINUTES
"""How far back DT's history goes: older gaps stay."""

GAP_INTERVALS = 1.8
"""One lost heartbeat makes a gap; the jitter of two in a row does not."""

WITH_MEMORY = frozenset(("temperature", "humidity"))
"""Types whose sensors may store readings while they are not heard, and send them later."""

MEMORY_MINUTES = DAY_MINUTES
"""How long after the end of a gap the sensor may still send what it stored."""


class Kind(StrEnum):
    """Where the events of a gap may still be."""

    RECEIVER = "receiver"
    """The receiver was down, or nothing arrived from the project: DT may have the events, see `backfill`."""
    SENSOR_MEMORY = "sensor_memory"
    """The sensor may have stored readings, and send them later."""
    LOST = "lost"


@dataclass(frozen=True)
class Gap:
    """A time between two live timestamps, in minutes since 1970; `end` is None while it lasts."""

    start: int
    end: int | None
    minutes: int
    kind: Kind
    filled: bool


def find_gaps(
    heard: Minutes, filled: Minutes, interval: float, type: str | None, unheard: Sequence[Span], now: int
) -> list[Gap]:
    """The gaps of a sensor, oldest first.

    `filled` are the minutes of events that arrived later, `unheard` the times in which the receiver was down or the
    project was not heard, `now` the newest minute of the project.
    """
    limit = GAP_INTERVALS * interval
    spans: list[tuple[int, int | None]] = [*heard.gaps(longer_than=limit)]
    if heard.last is not None and now - heard.last > limit:
        spans.append((heard.last, None))
    return [_gap(start, end, heard | filled, limit, type, unheard, now) for start, end in spans]


def _gap(
    start: int, end: int | None, known: Minutes, limit: float, type: str | None, unheard: Sequence[Span], now: int
) -> Gap:
    until = now if end is None else end
    filled = is_filled(known, start, until, limit)
    in_time = end is None or now - end <= MEMORY_MINUTES
    if until - start - overlap((start, until), unheard) <= limit:
        kind = Kind.RECEIVER
    elif type in WITH_MEMORY and (filled or in_time):
        kind = Kind.SENSOR_MEMORY
    else:
        kind = Kind.LOST
    return Gap(start, end, until - start, kind, filled)


def is_filled(known: Minutes, start: int, end: int, limit: float) -> bool:
    """Whether no gap longer than `limit` is left between two minutes."""
    return not (Minutes(start, 1) | known.between(start, end) | Minutes(end, 1)).gaps(longer_than=limit)


def completeness(known: Minutes, interval: float, day: int, first: int, now: int) -> float | None:
    """Covered time / expected time on a day since 1970; None if the sensor was not expected on it.

    A minute in which it was heard, or that was filled later, covers the interval after it. It is expected from `first`,
    the minute in which it was first heard, to `now`.
    """
    span = max(day * DAY_MINUTES, first), min((day + 1) * DAY_MINUTES, now)
    if span[1] <= span[0]:
        return None
    if known.earliest is None or known.earliest > span[0]:  # it was heard at `first`, and not since
        known |= Minutes(span[0] - round(interval), 1)
    ends = Minutes(now, 1) if known.last is None or known.last < now else Minutes()
    missing = [
        (start + round(interval), end) for start, end in (known | ends).gaps(longer_than=GAP_INTERVALS * interval)
    ]
    return 1 - overlap(span, missing) / (span[1] - span[0])
