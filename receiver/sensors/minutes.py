"""Minutes in which something was heard, as a set of bits; adding a minute twice or in another order gives the same set.

A day has 1440 bits. The interval of a sensor, its gaps and its completeness are computed from these sets.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

DAY_MINUTES = 1440

Span = tuple[int, int]
"""From a minute to a later one, in minutes since 1970."""


def minute_of(seconds: float) -> int:
    return int(seconds // 60)


def to_bytes(bits: int) -> bytes:
    """The bits of one day as they are stored, without zeros at the end."""
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def from_bytes(stored: bytes) -> int:
    return int.from_bytes(stored, "little")


@dataclass(frozen=True)
class Minutes:
    """A set of minutes since 1970: bit n is the minute `first` + n."""

    first: int = 0
    bits: int = 0

    @classmethod
    def of_days(cls, days: Mapping[int, int]) -> Minutes:
        """From the bits of days since 1970."""
        if not days:
            return cls()
        first = min(days)
        bits = 0
        for day, of_day in days.items():
            bits |= of_day << (day - first) * DAY_MINUTES
        return cls(first * DAY_MINUTES, bits)

    def __or__(self, other: Minutes) -> Minutes:
        if not self.bits or not other.bits:
            return self if self.bits else other
        first = min(self.first, other.first)
        return Minutes(first, self.bits << self.first - first | other.bits << other.first - first)

    def between(self, start: int, end: int) -> Minutes:
        """The minutes from `start` to `end`, both included."""
        if end < start or end < self.first:
            return Minutes()
        bits = self.bits & (1 << end - self.first + 1) - 1
        return Minutes(self.first, bits >> max(0, start - self.first) << max(0, start - self.first))

    def count(self) -> int:
        return self.bits.bit_count()

    @property
    def last(self) -> int | None:
        return self.first + self.bits.bit_length() - 1 if self.bits else None

    @property
    def earliest(self) -> int | None:
        return self.first + (self.bits & -self.bits).bit_length() - 1 if self.bits else None

    def gaps(self, longer_than: float) -> list[Span]:
        """From each minute to the next one, where they are further apart than `longer_than` minutes."""
        text = f"{self.bits:b}"[::-1]
        zeros = re.finditer(f"(?<=1)0{{{int(longer_than)},}}(?=1)", text)
        return [(self.first + each.start() - 1, self.first + each.end()) for each in zeros]

    def gap_lengths(self) -> Counter[int]:
        """How many gaps there are of each length in minutes."""
        return Counter(len(zeros) + 1 for zeros in f"{self.bits:b}".strip("0").split("1")[1:-1])


def overlap(span: Span, others: Iterable[Span]) -> int:
    """How many minutes of a span lie in others, which do not overlap each other."""
    return sum(max(0, min(span[1], end) - max(span[0], start)) for start, end in others)


LEARN_MINUTES = 7 * DAY_MINUTES
LEARN_GAPS = 10
LONGEST_GAP = 240
"""Four times DT's longest interval: a longer gap is an outage, and does not count for the interval."""


def learn_interval(minutes: Minutes, excluded: Sequence[Span]) -> int | None:
    """The usual gap of the last 7 days, or of the last day if that is longer, in minutes; None with less than 10 gaps.

    Gaps that touch `excluded`, which is sorted, do not count. The last day is what adapts quickly to a longer interval;
    its two longest gaps are left out, since a lost heartbeat or an outage weighs more in so short a time.
    """
    last = minutes.last or 0
    week = _gap_lengths(minutes, last - LEARN_MINUTES, last, excluded)
    if week.total() < LEARN_GAPS:
        return None
    day = _gap_lengths(minutes, last - DAY_MINUTES, last, excluded)
    for _ in range(min(2, day.total())):
        day[max(+day)] -= 1
    return max(usual_gap(week), usual_gap(day))


def _gap_lengths(minutes: Minutes, start: int, end: int, excluded: Sequence[Span]) -> Counter[int]:
    lengths: Counter[int] = Counter()
    for begin, until in [*(span for span in excluded if start < span[1] and span[0] < end), (end, end)]:
        lengths += minutes.between(start, begin).gap_lengths()
        start = max(start, until)
    return Counter({length: count for length, count in lengths.items() if length <= LONGEST_GAP})


def usual_gap(lengths: Mapping[int, int]) -> int:
    """The length such that three quarters of all time lie in gaps no longer: the time-weighted 75 % quantile.

    A sensor that is used often sends many messages a minute apart and few heartbeats; a median would take the minute
    for its interval. One that loses some heartbeats spends a few per cent of its time in gaps of twice its interval.
    """
    most = 0.75 * sum(length * count for length, count in lengths.items())
    seen = 0
    for length in sorted(lengths):
        seen += length * lengths[length]
        if seen >= most:
            return length
    return 0
