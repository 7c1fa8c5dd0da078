"""The readings of one sensor and day as they are stored: points in full, later the minimum, mean and maximum of hours.

Points are a set of fixed-size records, so that folding a reading twice or late gives the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

QUANTITIES = (
    *("temperature", "relative_humidity", "co2", "pressure", "count", "touch", "object_present", "water_present"),
    *("motion", "occupied", "open", "signal_strength", "rssi", "battery", "online"),
)
"""Stored by their position, so append new ones at the end."""

CODES = {quantity: code for code, quantity in enumerate(QUANTITIES)}
_POINT = struct.Struct(">IBf")
_HOUR = struct.Struct(">BBfff")
DAY_SECONDS = 86400


@dataclass(frozen=True, slots=True)
class Point:
    """A reading, or the readings of an hour, whose `time` is then its begin; `time` is in seconds since 1970."""

    time: float
    minimum: float
    mean: float
    maximum: float


def pack_point(quantity: str, time: float, value: float) -> bytes | None:
    """A reading as a record of its day; None for what is not stored. Values have the precision of 32 bits."""
    code = CODES.get(quantity)
    try:
        return None if code is None else _POINT.pack(int(time % DAY_SECONDS * 1000), code, value)
    except OverflowError:
        return None


def merge_points(stored: bytes, new: set[bytes]) -> bytes:
    """The records of both, sorted by time."""
    records = {stored[n : n + _POINT.size] for n in range(0, len(stored), _POINT.size)}
    return stored if new <= records else b"".join(sorted(records | new))


def compact(hours: bytes, points: bytes) -> bytes:
    """The hours with those of `points` merged in.

    An hour that exists gets a new minimum and maximum but not a new mean, so that a replay changes nothing.
    """
    known = {(hour, code): values for hour, code, *values in _HOUR.iter_unpack(hours)}
    by_hour: dict[tuple[int, int], list[float]] = {}
    for milliseconds, code, value in _POINT.iter_unpack(points):
        by_hour.setdefault((milliseconds // 3_600_000, code), []).append(value)
    for key, values in by_hour.items():
        low, mean, high = known.get(key, (values[0], sum(values) / len(values), values[0]))
        known[key] = [min(low, *values), mean, max(high, *values)]
    return b"".join(_HOUR.pack(*key, *known[key]) for key in sorted(known))


def unpack(day: int, quantity: str, hours: bytes, points: bytes) -> Iterator[Point]:
    """The stored readings of a quantity on a day since 1970, oldest first: in full, or by hour once it was compacted.

    A reading that came later is part of its hour, as it will be when it is compacted itself.
    """
    wanted, start = CODES[quantity], day * DAY_SECONDS
    if hours:
        for hour, code, low, mean, high in _HOUR.iter_unpack(compact(hours, points)):
            if code == wanted:
                yield Point(start + hour * 3600, low, mean, high)
        return
    for milliseconds, code, value in _POINT.iter_unpack(points):
        if code == wanted:
            yield Point(start + milliseconds / 1000, value, value, value)


def by_hour(points: Iterable[Point]) -> list[Point]:
    """Points in the order of their times, those of each hour as one."""
    hours: dict[int, list[Point]] = {}
    for point in points:
        hours.setdefault(int(point.time // 3600), []).append(point)
    return [
        Point(
            hour * 3600.0,
            min(each.minimum for each in of_hour),
            sum(each.mean for each in of_hour) / len(of_hour),
            max(each.maximum for each in of_hour),
        )
        for hour, of_hour in sorted(hours.items())
    ]


def quantities_in(stored: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """The quantities that occur in the hours and points of days."""
    codes = set()
    for hours, points in stored:
        codes |= {code for _, code, *_ in _HOUR.iter_unpack(hours)} | {
            code for _, code, _ in _POINT.iter_unpack(points)
        }
    return [QUANTITIES[code] for code in sorted(codes)]
