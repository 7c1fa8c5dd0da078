"""The chaos tests, in a short form on both journals; and their oracle, which must detect every broken promise."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import psutil
import pytest

from chaos.faults import FAULTS, OF_JOURNAL, OF_PROCESSES, OF_SURROUNDINGS, schedule
from chaos.oracle import Received, Violation, compare_registry, judge, open_registry
from chaos.pair import is_running
from chaos.report import Report
from chaos.system import System
from chaos.traffic import FIRST_EVENT_AT, Entry, Item, digest, traffic
from chaos.trial import Trial, run
from chaos.visitor import Visitor
from receiver.event import Event
from receiver.simulator import Simulator
from receiver.testing.running import RunningReceiver, wait_until

SHORT = Trial(seed=14, journal="", seconds=4.0, rate=100.0, speed=20.0, min_faults=3, expire_claims=True)
"""Some faults in each lane, none of which takes long with this seed; `make chaos` injects more."""


@pytest.mark.parametrize("journal", ["sqlite", "postgresql"])
def test_while_everything_fails_no_event_that_got_200_is_lost_altered_or_written_twice(
    journal: str, tmp_path: Path
) -> None:
    report = run(replace(SHORT, journal=journal), tmp_path)

    assert [str(violation) for violation in report.violations] == [], report
    assert report.responses[200, "accepted"] > 300
    assert report.responses[200, "quarantined"] > 0
    assert len({recovery.fault.kind for recovery in report.recoveries}) > 3


@pytest.mark.parametrize(
    ("journal", "kinds"),
    [
        ("sqlite", ("power cut", "broker killed", "registry's disk full", "console under load")),
        ("postgresql", ("database clock ahead", "database clock behind", "issuer away")),
    ],
)
def test_faults_of_machines_and_surroundings_lose_nothing_and_are_each_injected(
    journal: str, kinds: tuple[str, ...], tmp_path: Path
) -> None:
    report = run(replace(SHORT, seconds=0.0, min_faults=len(kinds), only=kinds, journal=journal), tmp_path)

    assert [str(violation) for violation in report.violations] == [], report
    assert {recovery.fault.kind for recovery in report.recoveries} | set(untested(report)) == set(kinds)


def untested(report: Report) -> list[str]:
    return [each.partition(":")[0] for each in report.untested]


def test_after_two_failovers_of_the_database_every_event_that_got_200_is_in_the_survivor_and_at_every_sink(
    tmp_path: Path,
) -> None:
    failovers = replace(SHORT, seconds=0.0, min_faults=2, only=tuple(OF_JOURNAL["replicated"]), journal="replicated")
    report = run(failovers, tmp_path)

    assert [str(violation) for violation in report.violations] == [], report
    assert {recovery.fault.kind for recovery in report.recoveries} == set(failovers.only)
    assert None not in [recovery.to_next_200 for recovery in report.recoveries]
    assert report.repeats.keys() >= {"journal", "hook", "events", "console"}


@pytest.mark.parametrize("journal", OF_JOURNAL)
def test_pushes_and_the_order_of_faults_are_a_function_of_the_seed(journal: str) -> None:
    def plan(seed: int) -> list[object]:
        kinds = OF_PROCESSES + OF_SURROUNDINGS + OF_JOURNAL[journal]
        return [
            *itertools.islice(traffic(seed, rate=50.0), 500),
            *itertools.islice(schedule(seed, "lane", kinds, speed=1.0), 100),
        ]

    assert plan(7) == plan(7)
    assert plan(7) != plan(8)


def test_every_kind_of_fault_is_injected() -> None:
    used = [*OF_PROCESSES, *OF_SURROUNDINGS, *(kind for kinds in OF_JOURNAL.values() for kind in kinds)]
    assert sorted(used) == sorted(FAULTS)
    planned = itertools.islice(schedule(1, "lane", used, speed=1.0), len(used))
    assert {fault.kind for fault in planned} == set(used)


def test_traffic_has_duplicates_delays_bursts_and_every_unusual_body_at_about_its_rate() -> None:
    pushed = list(itertools.islice(traffic(3, rate=50.0), 5_000))
    due = [at for at, _ in pushed]
    times = Counter(item.id for _, item in pushed)
    first = list(dict.fromkeys(item.body for _, item in pushed if item.type))
    stamps = [body[body.rfind(b'"timestamp"') :][:45] for body in first if b'"timestamp"' in body]

    assert due == sorted(due)
    assert 75 < due[-1] < 125
    assert 50 < sum(count > 1 for count in times.values()) < 150
    assert max(Counter(due).values()) >= 45
    assert stamps != sorted(stamps)
    assert {item.type for _, item in pushed} >= {"touch", "soilMoisture", None}
    assert any(max(body) > 127 for body in first)


A, B = (Item(name, "touch", f'{{"event": {{"eventId": "{name}", "eventType": "touch"}}}}'.encode()) for name in "ab")
NOT_AN_EVENT = Item("0" * 64, None, b"not an event")
DIGESTS = {item.id: {digest(item.body)} for item in (A, B)}
LEDGER = [Entry.of(A, 1.0, 2.0), Entry.of(B, 11.0, 12.0), Entry.of(NOT_AN_EVENT, 3.0, 4.0)]
RECEIVED = Received("erp", Counter(["a", "b", "b"]), DIGESTS, repeats=1)


def violations(
    received: Received = RECEIVED,
    entries: Sequence[Entry] = LEDGER,
    quarantined: Collection[str] = (NOT_AN_EVENT.id,),
    disabled: Sequence[tuple[str, float, float]] = (),
) -> list[str]:
    return [str(each) for each in judge(entries, set(quarantined), [received], disabled).violations]


def test_the_oracle_reports_nothing_when_no_promise_is_broken() -> None:
    assert violations() == []


def test_the_oracle_detects_a_missing_event() -> None:
    assert violations(replace(RECEIVED, ids=Counter("a"))) == ["got 200, but missing at sink erp: 1 (b)"]


def test_the_oracle_does_not_require_an_event_that_never_got_200_but_reports_it() -> None:
    never_200 = [Entry.of(A, 1.0, 2.0), Entry.of(B, 11.0), LEDGER[2]]
    assert violations(replace(RECEIVED, ids=Counter("a")), never_200) == [
        "retried to the end, and never got 200: 1 (b)"
    ]


def test_the_oracle_detects_an_event_that_was_never_pushed_or_does_not_pass_the_filter() -> None:
    assert violations(replace(RECEIVED, ids=Counter("abc"))) == ["at sink erp, but never pushed or filtered out: 1 (c)"]
    assert violations(replace(RECEIVED, ids=Counter("ab"), expects=lambda entry: entry.id == "a")) == [
        "at sink erp, but never pushed or filtered out: 1 (b)"
    ]


def test_the_oracle_detects_one_changed_byte() -> None:
    changed = {**DIGESTS, "b": DIGESTS["b"] | {digest(B.body + b" ")}}
    assert violations(replace(RECEIVED, digests=changed)) == ["at sink erp with a different body: 1 (b)"]


def test_the_oracle_detects_too_many_and_too_few_rows() -> None:
    assert violations(replace(RECEIVED, exactly=lambda entry: 1)) == ["not in the right number at sink erp: 1 (b)"]
    assert violations(replace(RECEIVED, exactly=lambda entry: 2)) == ["not in the right number at sink erp: 1 (a)"]


def test_the_oracle_detects_what_is_missing_in_quarantine_and_what_should_not_be_there() -> None:
    assert violations(quarantined=()) == [f"got 200, but not in quarantine: 1 ({NOT_AN_EVENT.id})"]
    assert violations(quarantined=(NOT_AN_EVENT.id, "x")) == ["in quarantine, but never pushed: 1 (x)"]


def test_the_oracle_reports_that_repeats_were_not_tested() -> None:
    assert violations(replace(RECEIVED, repeats=0)) == ["no sink received an event twice, so repeats were not tested"]


@pytest.mark.parametrize(
    ("since", "until", "excused"),
    [
        pytest.param(11.5, 20.0, True, id="disabled between push and response"),
        pytest.param(10.0, 11.5, True, id="enabled between push and response"),
        pytest.param(10.0, 20.0, True, id="disabled all the time"),
        pytest.param(12.5, 20.0, False, id="disabled after the response"),
        pytest.param(3.0, 10.5, False, id="enabled before the first push"),
    ],
)
def test_only_events_pushed_while_a_sink_was_disabled_may_be_missing_there(
    since: float, until: float, excused: bool
) -> None:
    lacks_b = replace(RECEIVED, ids=Counter("a"))
    missing = ["got 200, but missing at sink erp: 1 (b)"]
    assert violations(lacks_b, disabled=[("erp", since, until)]) == ([] if excused else missing)
    assert violations(lacks_b, disabled=[("other", since, until)]) == missing


def test_a_receiver_whose_supervisor_was_killed_changes_nothing_while_the_disk_is_recorded(tmp_path: Path) -> None:
    """Its processes end by themselves, soon; the one in this test does not, so that it has to be killed."""
    with closing(System(tmp_path, "sqlite")) as system:
        system.receiver.command = ["sh", "-c", "sleep 600 & wait"]
        system.start()
        assert system.receiver.process is not None
        supervisor = psutil.Process(system.receiver.process.pid)
        (orphan,) = wait_until(supervisor.children, what="a child of the supervisor")
        supervisor.kill()
        wait_until(lambda: system.exits, what="the exit of the receiver")
        assert is_running(orphan)
        system.kill_orphans()
        wait_until(lambda: not is_running(orphan), what="the end of the orphan")


def test_control_c_in_a_terminal_ends_none_of_the_processes_that_the_judgement_needs(tmp_path: Path) -> None:
    """A terminal sends it to the whole process group, of which only the driver may know what it means."""
    with closing(System(tmp_path, "sqlite")) as system:
        system.start()
        assert system.broker is not None
        started = psutil.Process().children(recursive=True)
        assert len(started) >= 3  # broker, its listener, and the receiver
        assert os.getpgrp() not in {os.getpgid(process.pid) for process in started}


def test_a_registry_that_lacks_an_event_is_detected(tmp_path: Path) -> None:
    bodies = [Simulator(1).body("temperature", FIRST_EVENT_AT + timedelta(minutes=minute)) for minute in (0, 15)]
    events = [Event.from_body(body, datetime.now(UTC)) for body in bodies]
    path = tmp_path / "sensors.sqlite"
    with closing(open_registry(None, path)) as registry:
        registry.fold(events[:1])

    def different(journal: Sequence[bytes]) -> list[Violation]:
        stored = SimpleNamespace(
            folder=tmp_path, database_url=None, registry_path=path, journal=lambda query: [(body,) for body in journal]
        )
        return compare_registry(cast(System, stored))

    assert different(bodies[:1]) == []
    assert [violation.ids for violation in different(bodies)] == [(events[0].device_id,)]


def test_a_part_of_the_console_that_fails_or_is_not_shown_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    visitor = Visitor(cast(RunningReceiver, None))
    visitor.responses.update({("sinks", 500): 1, ("events", 503): 2, ("sensors", 404): 1, ("events", 0): 3})
    monkeypatch.setattr(visitor, "run", lambda: None)
    monkeypatch.setattr(visitor, "look", lambda part: 503 if part == "events" else 200)
    visitor.start()
    assert [str(violation) for violation in visitor.finish()] == [
        "/console/events is not shown",
        "/console/sinks responded 500",
    ]
