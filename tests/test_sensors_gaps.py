"""Gaps by kind, filled by events that come later; completeness in covered time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from receiver.sensors.gaps import Gap, Kind, completeness, find_gaps
from receiver.sensors.minutes import DAY_MINUTES, Minutes, Span

DAY = 20_000
START = DAY * DAY_MINUTES


def at(*minutes: int) -> Minutes:
    found = Minutes()
    for minute in minutes:
        found |= Minutes(START + minute, 1)
    return found


def gaps(
    heard: Sequence[int],
    filled: Sequence[int] = (),
    *,
    type: str = "contact",
    unheard: Sequence[Span] = (),
    now: int | None = None,
) -> list[tuple[int, int | None, str, bool]]:
    """The gaps of a sensor with an interval of 15 minutes."""
    spans = [(START + start, START + end) for start, end in unheard]
    newest = START + (heard[-1] if now is None else now)
    found: list[Gap] = find_gaps(at(*heard), at(*filled), 15, type, spans, newest)
    return [
        (gap.start - START, None if gap.end is None else gap.end - START, gap.kind.value, gap.filled) for gap in found
    ]


def test_one_lost_heartbeat_is_a_gap_and_jitter_is_none() -> None:
    assert gaps([0, 15, 30, 57, 72]) == []
    assert gaps([0, 15, 30, 60, 75]) == [(30, 60, "lost", False)]


def test_a_gap_lasts_until_the_sensor_is_heard() -> None:
    assert gaps([0, 15], now=42) == []
    assert gaps([0, 15], now=43) == [(15, None, "lost", False)]


@pytest.mark.parametrize(
    ("unheard", "kind"),
    [
        pytest.param([(15, 120)], Kind.RECEIVER, id="all of it"),
        pytest.param([(25, 115)], Kind.RECEIVER, id="all but an interval"),
        pytest.param([(50, 55)], Kind.LOST, id="a restart inside of it"),
        pytest.param([(0, 10)], Kind.LOST, id="before it"),
    ],
)
def test_a_gap_in_which_nothing_could_be_received_is_the_receivers(unheard: list[Span], kind: Kind) -> None:
    assert gaps([0, 15, 120, 135], unheard=unheard) == [(15, 120, kind.value, False)]


def test_a_sensor_with_memory_may_still_send_what_it_stored_for_a_day() -> None:
    assert gaps([0, 60], type="temperature") == [(0, 60, "sensor_memory", False)]
    assert gaps([0, 60, *range(75, 1600, 15)], type="temperature") == [(0, 60, "lost", False)]
    assert gaps([0, 60, *range(75, 1600, 15)], [15, 30, 45], type="temperature") == [(0, 60, "sensor_memory", True)]


def test_a_gap_is_filled_when_no_gap_is_left_in_it() -> None:
    assert gaps([0, 120], [15, 30, 45, 60]) == [(0, 120, "lost", False)]
    assert gaps([0, 120], [20, 45, 70, 95]) == [(0, 120, "lost", True)]


def test_completeness_is_covered_time_by_expected_time() -> None:
    whole = at(*range(-15, 2 * DAY_MINUTES, 15))
    now = START + 2 * DAY_MINUTES
    assert completeness(whole, 15, DAY, 0, now) == 1
    half = at(*range(-15, DAY_MINUTES // 2 + 1, 15), DAY_MINUTES)
    share = completeness(half, 15, DAY, 0, now)
    assert share == pytest.approx((DAY_MINUTES / 2 + 15) / DAY_MINUTES)
    assert completeness(half | whole, 15, DAY, 0, now) == 1


def test_completeness_counts_from_the_first_heartbeat_until_now() -> None:
    heard = at(*range(600, 720, 15))
    assert completeness(heard, 15, DAY, START + 600, START + 705) == 1
    assert completeness(heard, 15, DAY, START + 600, START + 810) == pytest.approx(120 / 210)
    assert completeness(heard, 15, DAY - 1, START + 600, START + 720) is None
    assert completeness(heard, 15, DAY + 1, START + 600, START + 720) is None


def test_days_before_it_was_heard_again_are_not_complete() -> None:
    """Only some days are read: those before may be deleted, or nothing was heard on them."""
    again = at(*range(2 * DAY_MINUTES - 60, 2 * DAY_MINUTES, 15))
    now = START + 2 * DAY_MINUTES
    shares = [completeness(again, 15, DAY + n, START - 9 * DAY_MINUTES, now) for n in range(2)]
    assert shares == pytest.approx([0, 60 / DAY_MINUTES])
    assert completeness(Minutes(), 15, DAY + 1, START - 9 * DAY_MINUTES, now) == 0


def test_busy_days_are_not_more_complete_than_quiet_ones() -> None:
    busy = at(*range(60), *range(60, DAY_MINUTES + 15, 15))
    assert completeness(busy, 15, DAY, START, START + DAY_MINUTES) == 1
