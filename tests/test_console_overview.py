"""The first page of the console: its sentence, what needs attention, DT's deadlines, the rate of events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from receiver.admin import SinkStatus
from receiver.console.overview import (
    Concern,
    Sensors,
    concerns_of_incidents,
    concerns_of_pushes,
    concerns_of_quarantine,
    concerns_of_sinks,
    deadlines,
    events_per_minute,
    verdict,
)
from receiver.incident import Cause, Incident
from receiver.journal import EventHistory, StoredEvent

NOW = datetime.now(UTC)
STATES = dict.fromkeys(("learning", "ok", "silent", "offline", "unstable", "snoozed", "retired"), 0)
WELL = "All is well: events arrive and are delivered"
SOME = [Concern("warn", "Something.")]


def ago(**given: float) -> datetime:
    return NOW - timedelta(**given)


def sensors(**states: int) -> Sensors:
    return Sensors({**STATES, **states}, [], 0)


@pytest.mark.parametrize(
    ("alive", "last_push", "concerns", "found", "expected"),
    [
        (True, ago(minutes=1), [], sensors(ok=4, learning=1), f"{WELL}, and 5 sensors are heard."),
        (True, ago(minutes=1), [], sensors(ok=1), f"{WELL}, and 1 sensor is heard."),
        (True, ago(minutes=1), [], None, f"{WELL}."),
        (True, ago(minutes=1), SOME, None, "Events arrive; 1 thing needs attention."),
        (True, ago(minutes=89), SOME * 2, None, "Events arrive; 2 things need attention."),
        (True, ago(hours=3, seconds=1), SOME, None, "Nothing arrives: the last push was accepted 3 h ago."),
        (True, None, [], None, "Ready: no push has been accepted yet."),
        (False, ago(hours=3), SOME, None, "Events are stored, but nothing is delivered."),
    ],
)
def test_one_sentence_says_how_it_is(
    alive: bool, last_push: datetime | None, concerns: Sequence[Concern], found: Sensors | None, expected: str
) -> None:
    assert verdict(alive, last_push, NOW, concerns, found) == expected


def test_while_pushes_arrive_there_is_no_deadline() -> None:
    assert deadlines(None, NOW) == deadlines(ago(minutes=90), NOW) == []


@pytest.mark.parametrize(
    ("hours", "expected"),
    [
        (2, [("10 h 0 min", False), ("4 d 22 h", False)]),
        (11.99, [("0 h 0 min", False), ("4 d 12 h", False)]),
        (12, [("0 h 0 min", True), ("4 d 12 h", False)]),
        (100, [("0 h 0 min", True), ("20 h 0 min", False)]),
        (121, [("0 h 0 min", True), ("0 h 0 min", True)]),
    ],
)
def test_when_nothing_arrives_it_counts_down_to_what_dt_does(hours: float, expected: list[tuple[str, bool]]) -> None:
    assert [(each.left, each.over) for each in deadlines(ago(hours=hours), NOW)] == expected


def test_pushes_need_a_person_when_none_arrives_or_nothing_is_delivered() -> None:
    assert [*concerns_of_pushes(True, ago(minutes=89), NOW), *concerns_of_pushes(True, None, NOW)] == []
    assert [each.mood for each in concerns_of_pushes(False, ago(hours=2), NOW)] == ["bad", "bad"]


def test_incidents_are_named_and_counted() -> None:
    incident = Incident(1, Cause.DEVICE, "p", {"d": "d"}, NOW, NOW, None, "the freezer was not heard")
    found = Sensors(STATES, [incident], 3)
    assert [each.sentence for each in concerns_of_incidents(found)] == [
        "The freezer was not heard.",
        "2 more incidents are open.",
    ]
    assert [*concerns_of_incidents(None)] == []


def sink(name: str, **changes: Any) -> SinkStatus:
    values = {"configured": "enabled", "pending": 0, "oldest_pending_age_seconds": None, "delivered": 9, "dead": 0}
    times = ("last_success_at", "last_failure_at", "last_failure_reason", "paused_until", "pause_reason")
    return SinkStatus(name, **{**values, **dict.fromkeys(times), **changes})


def test_sinks_need_a_person_when_paused_behind_or_with_dead_letters() -> None:
    rows = [
        sink("fine", pending=5, oldest_pending_age_seconds=3599.0),
        sink("erp", pause_reason="HTTP 401", oldest_pending_age_seconds=9999.0),
        sink("slow", oldest_pending_age_seconds=7300.0),
        sink("old", configured="removed", pause_reason="gone", dead=1),
        sink("off", configured="disabled", pause_reason="gone"),
    ]
    assert [each.sentence for each in concerns_of_sinks(rows)] == [
        "Sink erp is paused: HTTP 401",
        "The oldest pending delivery of sink slow is 2 h old.",
        "Sink old has 1 dead letter.",
    ]


def test_a_quarantined_push_needs_a_person() -> None:
    assert [*concerns_of_quarantine(0)] == []
    assert [each.sentence for each in concerns_of_quarantine(2)] == [
        "2 verified pushes are in quarantine: not a valid event."
    ]


@dataclass
class Stored:
    """Records of events that were received so many seconds ago, the newest first."""

    ages: Sequence[float]

    def newest(self, until: float, state: str | None, before: int | None, limit: int) -> list[EventHistory]:
        found = [StoredEvent(0, "e", b"", 1000.0 - age) for age in self.ages]
        return [EventHistory(each, True, ()) for each in found if each.received_at < until][:limit]


@pytest.mark.parametrize(
    ("ages", "expected"),
    [([], 0), ([10, 20, 400], 0.4), ([n / 10 for n in range(1000)], 603), ([0.0] * 500, 12_000)],
)
def test_the_rate_is_that_of_the_last_minutes(ages: Sequence[float], expected: float) -> None:
    assert events_per_minute(Stored(ages), 1000.0) == pytest.approx(expected, rel=0.01)
