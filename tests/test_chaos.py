"""The chaos itself, in short, on both journals; and its oracle, which must see every promise that is broken."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from chaos.faults import FAULTS, OF_JOURNAL, OF_PROCESSES, OF_SURROUNDINGS, schedule
from chaos.oracle import Got, judge
from chaos.traffic import Entry, Item, traffic
from chaos.trial import Trial, run

SECONDS = 7.0
"""Long enough for some faults of each lane; `make chaos` is for more."""


@pytest.mark.parametrize("journal", OF_JOURNAL)
def test_while_everything_fails_no_event_that_was_answered_200_is_lost_altered_or_written_twice(
    journal: str, tmp_path: Path
) -> None:
    report = run(Trial(seed=11, journal=journal, seconds=SECONDS, rate=60.0, speed=12.0, hurry=True), tmp_path)

    assert report.violations == [], report
    assert report.answers[200, "accepted"] > 300
    assert report.answers[200, "quarantined"] > 0
    assert len({recovery.fault.kind for recovery in report.recoveries}) > 3


@pytest.mark.parametrize("journal", OF_JOURNAL)
def test_pushes_and_the_order_of_faults_are_a_function_of_the_seed(journal: str) -> None:
    def told(seed: int) -> list[object]:
        kinds = OF_PROCESSES + OF_SURROUNDINGS + OF_JOURNAL[journal]
        return [
            *itertools.islice(traffic(seed, rate=50.0), 2000),
            *itertools.islice(schedule(seed, "lane", kinds, speed=1.0), 100),
        ]

    assert told(7) == told(7)
    assert told(7) != told(8)


def test_every_kind_of_fault_has_its_turn() -> None:
    used = [*OF_PROCESSES, *OF_SURROUNDINGS, *(kind for kinds in OF_JOURNAL.values() for kind in kinds)]
    assert sorted(used) == sorted(FAULTS)
    planned = itertools.islice(schedule(1, "lane", used, speed=1.0), len(used))
    assert {fault.kind for fault in planned} == set(used)


def test_traffic_has_duplicates_late_ones_bursts_and_every_oddity_at_about_its_rate() -> None:
    pushed = list(itertools.islice(traffic(3, rate=50.0), 10_000))
    due = [at for at, _ in pushed]
    times = Counter(item.id for _, item in pushed)
    first = list(dict.fromkeys(item.body for _, item in pushed if item.type))
    stamps = [body[body.rfind(b'"timestamp"') :][:45] for body in first if b'"timestamp"' in body]

    assert due == sorted(due)
    assert 150 < due[-1] < 250
    assert 100 < sum(count > 1 for count in times.values()) < 300
    assert max(Counter(due).values()) >= 50
    assert stamps != sorted(stamps)
    assert {item.type for _, item in pushed} >= {"touch", "soilMoisture", None}
    assert any(max(body) > 127 for body in first)


A, B = (Item(name, "touch", f'{{"event": {{"eventId": "{name}", "eventType": "touch"}}}}'.encode()) for name in "ab")
NO_EVENT = Item("0" * 64, None, b"nonsense")
DIGESTS = {item.id: {hashlib.sha256(item.body).hexdigest()} for item in (A, B)}
LEDGER = [Entry(A, 1.0, 2.0), Entry(B, 11.0, 12.0), Entry(NO_EVENT, 3.0, 4.0)]
GOT = Got("erp", Counter(["a", "b", "b"]), DIGESTS, repeated=1)


def broken(
    got: Got = GOT,
    entries: Sequence[Entry] = LEDGER,
    quarantined: Collection[str] = (NO_EVENT.id,),
    disabled: Sequence[tuple[str, float, float]] = (),
) -> list[str]:
    return [str(violation) for violation in judge(entries, set(quarantined), [got], disabled)]


def test_the_oracle_is_content_when_every_promise_is_kept() -> None:
    assert broken() == []


def test_the_oracle_sees_an_event_that_is_missing() -> None:
    assert broken(replace(GOT, ids=Counter("a"))) == ["answered 200, and missing at sink erp: 1 (b)"]


def test_the_oracle_does_not_miss_what_was_never_answered_200_but_says_so() -> None:
    never = [Entry(A, 1.0, 2.0), Entry(B, 11.0), LEDGER[2]]
    assert broken(replace(GOT, ids=Counter("a")), never) == ["pushed again and again, and never answered 200: 1 (b)"]


def test_the_oracle_sees_an_event_that_nobody_sent_or_that_is_not_for_this_sink() -> None:
    expected = ["at sink erp, and never sent or not for it: 1 (c)"]
    assert broken(replace(GOT, ids=Counter("abc"))) == expected
    assert broken(replace(GOT, ids=Counter("ab"), wants=lambda item: item.id == "a")) == [
        "at sink erp, and never sent or not for it: 1 (b)"
    ]


def test_the_oracle_sees_one_changed_byte() -> None:
    changed = {**DIGESTS, "b": DIGESTS["b"] | {hashlib.sha256(B.body + b" ").hexdigest()}}
    assert broken(replace(GOT, digests=changed)) == ["at sink erp with another body: 1 (b)"]


def test_the_oracle_sees_a_row_too_many_and_a_row_too_few() -> None:
    assert broken(replace(GOT, exactly=lambda item: 1)) == ["not just once at sink erp: 1 (b)"]
    assert broken(replace(GOT, exactly=lambda item: 2)) == ["not just once at sink erp: 1 (a)"]


def test_the_oracle_sees_what_is_not_in_quarantine_and_what_should_not_be_there() -> None:
    assert broken(quarantined=()) == [f"answered 200, and not in quarantine: 1 ({NO_EVENT.id})"]
    assert broken(quarantined=(NO_EVENT.id, "x")) == ["in quarantine, and never sent: 1 (x)"]


def test_the_oracle_sees_that_nothing_was_tried_twice() -> None:
    assert broken(replace(GOT, repeated=0)) == ["no sink saw an event twice, so that repeating was not tried"]


@pytest.mark.parametrize(
    ("since", "until", "excused"),
    [
        pytest.param(11.5, 20.0, True, id="disabled between push and answer"),
        pytest.param(10.0, 11.5, True, id="enabled between push and answer"),
        pytest.param(10.0, 20.0, True, id="disabled all the time"),
        pytest.param(12.5, 20.0, False, id="disabled after the answer"),
        pytest.param(3.0, 10.5, False, id="enabled before the first push"),
    ],
)
def test_only_what_came_while_a_sink_was_disabled_may_be_missing_there(
    since: float, until: float, excused: bool
) -> None:
    lacks_b = replace(GOT, ids=Counter("a"))
    missing = ["answered 200, and missing at sink erp: 1 (b)"]
    assert broken(lacks_b, disabled=[("erp", since, until)]) == ([] if excused else missing)
    assert broken(lacks_b, disabled=[("other", since, until)]) == missing
