"""The journal's contract, on every database: sinks, liveness, retention, counts, and commits that fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import time_machine
from support.journals import (
    Clock,
    SqliteStore,
    Store,
    accept,
    claim,
    delivery_counts,
    event_ids,
    route_events,
    settle,
    unrouted_and_quarantined,
)

from receiver.errors import JournalUnavailable
from receiver.journal import Arrival, Delivery, Journal, Liveness, Outcome, Result, SinkCounts, SinkState

INVALID = Arrival("q", b"not an event", 1.0, "not an event")


def test_the_enabled_sinks_are_those_that_were_set_last(store: Store) -> None:
    journal = store.open()
    assert journal.enabled_sinks() == set()
    journal.set_enabled_sinks(["a", "b"])
    journal.save_sink_state(SinkState("b", pauses=2, pause_reason="HTTP 401"))
    journal.save_sink_state(SinkState("c", pauses=1))
    assert store.open().enabled_sinks() == {"a", "b"}
    journal.set_enabled_sinks(["b", "d"])
    assert (journal.enabled_sinks(), journal.sink_states()["b"].pause_reason) == ({"b", "d"}, "HTTP 401")
    journal.set_enabled_sinks([])
    assert store.open().enabled_sinks() == set()


def test_enabled_sinks_are_added_to_those_before(store: Store) -> None:
    journal = store.open()
    journal.set_enabled_sinks(["a", "b"])
    for _ in range(2):
        journal.add_enabled_sinks(["b", "new"])
        assert store.open().enabled_sinks() == {"a", "b", "new"}


def test_the_state_of_a_sink_is_read_back_and_replaced_as_a_whole(store: Store) -> None:
    journal = store.open(holder="here")
    assert journal.sink_states() == {}
    paused = SinkState("x", 3, store.clock.now + 0.5, "it says: “no”", on_trial=True)
    journal.save_sink_state(paused)
    journal.save_sink_state(SinkState("y"))
    assert store.open(holder="here").sink_states() == {"x": paused, "y": SinkState("y")}
    journal.save_sink_state(SinkState("x"))
    assert journal.sink_states() == {"x": SinkState("x"), "y": SinkState("y")}


def test_a_trial_changes_nothing_else_of_the_state_of_a_sink(store: Store) -> None:
    journal = store.open(holder="here")
    paused = SinkState("x", 3, store.clock.now + 0.5, "HTTP 500")
    journal.save_sink_state(paused)
    for sink in ("x", "new"):
        journal.save_trial(sink, on_trial=True)
    on_trial = {"x": replace(paused, on_trial=True), "new": SinkState("new", on_trial=True)}
    assert store.open(holder="here").sink_states() == on_trial
    for sink in ("x", "new"):
        journal.save_trial(sink, on_trial=False)
    assert journal.sink_states() == {"x": paused, "new": SinkState("new")}


@pytest.mark.parametrize(
    ("reason", "stored"),
    [
        pytest.param("it says \0", "it says ?", id="NUL"),
        pytest.param("it says \udcff", "it says ?", id="surrogate"),
        pytest.param("it says " + "much " * 9000, "it says " + "much " * 9000, id="long"),
    ],
)
def test_every_reason_for_a_pause_can_be_stored(reason: str, stored: str, journal: Journal) -> None:
    journal.save_sink_state(SinkState("s", pauses=1, pause_reason=reason))
    assert journal.sink_states() == {"s": SinkState("s", pauses=1, pause_reason=stored)}


def test_a_document_is_read_by_all_processes_as_it_was_saved_last(store: Store) -> None:
    journal, other, records = store.open(), store.open(), store.records()
    assert [each.document("keys") for each in (journal, records)] == [None, None]
    journal.save_document("keys", b"\0\xff" * 40_000)
    assert [each.document("keys") for each in (journal, other, records)] == [b"\0\xff" * 40_000] * 3
    other.save_document("keys", b"")
    journal.save_document("else", b"2")
    assert [each.document("keys") for each in (journal, other, records)] == [b""] * 3


def test_one_process_at_a_time_has_the_lease_of_a_document(store: Store, clock: Clock) -> None:
    journal, other = store.open(), store.open()
    assert (journal.lease_document("keys", 30.0), journal.document("keys")) == (True, None)
    assert [each.lease_document("keys", 30.0) for each in (journal, other)] == [False, False]
    assert other.lease_document("else", 30.0)
    other.save_document("keys", b"anyone can save it")
    clock.advance(29.0)
    assert not other.lease_document("keys", 30.0)
    clock.advance(1.0)
    assert [each.lease_document("keys", 30.0) for each in (other, journal)] == [True, False]
    assert journal.document("keys") == b"anyone can save it"


def test_a_lease_that_is_extended_before_it_ends_stays_with_its_process(store: Store, clock: Clock) -> None:
    journal, other = store.open(), store.open()
    assert not journal.extend_lease("keys", 30.0)
    assert journal.lease_document("keys", 30.0)
    for _ in range(3):
        clock.advance(29.0)
        assert (journal.extend_lease("keys", 30.0), other.lease_document("keys", 30.0)) == (True, False)
    clock.advance(30.0)
    assert (journal.extend_lease("keys", 30.0), other.lease_document("keys", 30.0)) == (False, True)


def test_of_many_processes_that_ask_at_once_one_gets_the_lease(store: Store) -> None:
    journals = [store.open() for _ in range(6)]
    barrier = threading.Barrier(len(journals))

    def lease(journal: Journal) -> bool:
        barrier.wait(60)
        return journal.lease_document("keys", 30.0)

    with ThreadPoolExecutor(len(journals)) as threads:
        assert sorted(threads.map(lease, journals)) == [False] * 5 + [True]


def test_a_process_that_read_its_clock_a_little_earlier_does_not_get_a_lease_that_another_has(
    store: Store, clock: Clock
) -> None:
    journal, other = store.open(), store.open()
    assert journal.lease_document("keys", 30.0)
    for _ in range(3):
        clock.advance(-0.01)
        assert not other.lease_document("keys", 30.0)


def test_a_lease_ends_also_if_the_clock_is_set_back(store: Store, clock: Clock) -> None:
    journal = store.open()
    assert journal.lease_document("keys", 30.0)
    clock.advance(-86400.0)
    assert [journal.lease_document("keys", 30.0) for _ in range(2)] == [True, False]


def test_liveness_is_none_until_a_dispatcher_reports(store: Store) -> None:
    journal = store.open()
    journal.start_dispatching()
    route_events(journal, "s", "a")
    assert store.open().liveness() is None


def test_liveness_is_the_time_of_the_last_report_on_the_wall_clock(journal: Journal, clock: Clock) -> None:
    reported: list[float] = []
    for _ in range(2):
        before = time.time()
        journal.report_alive()
        liveness = journal.liveness()
        assert liveness is not None
        assert before <= liveness.at <= time.time()
        assert liveness == Liveness(liveness.at, ())
        reported.append(liveness.at)
        clock.advance(-3600)
    assert reported == sorted(reported)


def test_a_dispatcher_that_is_gone_does_not_seem_alive_because_the_clock_of_its_machine_was_ahead(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    for seconds_ahead in (3600.0, 0.0):
        monkeypatch.setattr(time, "time", lambda seconds_ahead=seconds_ahead: now + seconds_ahead)
        journal = store.open()
        journal.report_alive([f"{seconds_ahead:.0f} s ahead"])
        clock.advance(20)
    assert journal.liveness() == Liveness(now, ("0 s ahead",))


def test_a_dispatcher_is_alive_although_the_clock_was_set_back_a_little_before_its_start(
    store: Store, clock: Clock
) -> None:
    store.open(holder="before").report_alive(["from before"])
    clock.advance(-50)
    journal = store.open(holder="here")
    journal.start_dispatching()
    clock.advance(20)
    journal.report_alive(["from here"])
    liveness = journal.liveness()
    assert liveness is not None
    assert liveness.warnings == ("from here",)


def test_a_report_replaces_the_warnings_of_the_one_before(store: Store) -> None:
    journal, intake = store.open(), store.open()
    for warnings in (["sink erp is broken: no such type", "events.csv is on a dyno"], ["plugin x: no hook"], []):
        journal.report_alive(warnings)
        liveness = intake.liveness()
        assert liveness is not None
        assert liveness.warnings == tuple(warnings)


@pytest.mark.parametrize(
    ("warning", "stored"),
    [
        pytest.param("plugin “é”: 你好", "plugin “é”: 你好", id="Unicode"),
        pytest.param("plugin \0\udcff", "plugin ??", id="not storable"),
        pytest.param("plugin a\x0bb\x85c\u2028d\re", "plugin a\x0bb\x85c\u2028d\re", id="rare line ends"),
        pytest.param("x" * 50_000, "x" * 50_000, id="long"),
    ],
)
def test_every_warning_of_a_dispatcher_can_be_stored(warning: str, stored: str, journal: Journal) -> None:
    journal.report_alive([warning, "another"])
    liveness = journal.liveness()
    assert liveness is not None
    assert liveness.warnings == (stored, "another")


def test_of_several_dispatchers_liveness_is_the_latest_report_with_the_warnings_of_all_that_run(
    store: Store,
) -> None:
    one, other, gone = (store.open(holder=holder) for holder in ("one", "other", "gone"))
    with time_machine.travel(1_700_000_000, tick=False) as wall:
        gone.report_alive(["from the one that has gone"])
        wall.shift(16)
        store.clock.advance(16)
        one.report_alive(["from both", "from one"])
        wall.shift(5)
        store.clock.advance(5)
        other.report_alive(["from other", "from both"])
        now = time.time()
        for reader in (one, other, store.records()):
            assert reader.liveness() == Liveness(now, ("from other", "from both", "from one"))
        one.report_alive([])
        assert one.liveness() == Liveness(now, ("from other", "from both"))


def test_liveness_survives_the_dispatcher_and_its_successor_replaces_it(store: Store) -> None:
    journal = store.open(holder="here")
    journal.report_alive(["a warning"])
    before = journal.liveness()
    store.close(journal)
    successor = store.open(holder="here")
    successor.start_dispatching()
    assert successor.liveness() == before
    successor.report_alive()
    after = successor.liveness()
    assert before is not None
    assert after is not None
    assert after.at >= before.at
    assert after.warnings == ()


@pytest.mark.parametrize(
    ("state", "removed"),
    [
        ("delivered everywhere", True),
        ("routed to no sink", True),
        ("unrouted", False),
        ("pending", False),
        ("claimed", False),
        ("dead", False),
        ("delivered once, pending once", False),
        ("delivered once, dead once", False),
        ("delivered, but young", False),
    ],
)
def test_retention_removes_only_old_events_that_are_delivered_everywhere(
    state: str, removed: bool, journal: Journal
) -> None:
    accept(journal, "a", received_at=2000.0 if "young" in state else 1999.5)
    if state != "unrouted":
        two_sinks = "once" in state or "everywhere" in state
        sinks = [] if state == "routed to no sink" else ["x", "y"] if two_sinks else ["x"]
        journal.route([(event, sinks) for event in journal.unrouted(1)])
    if "delivered" in state:
        settle(journal, claim(journal, "x"), Result.DELIVERED)
    if state in ("dead", "claimed"):
        settle(journal, claim(journal, "x"), Result.DEAD if state == "dead" else Result.RELEASED)
    if state == "claimed":
        claim(journal, "x")
    if state == "delivered everywhere":
        settle(journal, claim(journal, "y"), Result.DELIVERED)
    if state == "delivered once, dead once":
        settle(journal, claim(journal, "y"), Result.DEAD)
    before = journal.counts()

    journal.remove_expired(2000.0, 10)

    assert accept(journal, "a") == [Outcome.ACCEPTED if removed else Outcome.DUPLICATE]
    assert journal.counts().sinks == before.sinks


def test_retention_removes_no_event_that_a_sink_has_missed_until_it_has_caught_up(journal: Journal) -> None:
    route_events(journal, "s", "before")
    accept(journal, "missed")
    journal.route([(event, ["s"]) for event in journal.unrouted(1)], ["behind"])
    route_events(journal, "s", "after")
    settle(journal, claim(journal, "s"), Result.DELIVERED)
    assert journal.remove_expired(2000.0, 10) is False
    assert not journal.catch_up("behind", lambda event: False, 10)
    journal.remove_expired(2000.0, 10)
    assert [accept(journal, name)[0] for name in ("before", "missed", "after")] == [Outcome.ACCEPTED] * 3


def test_retention_removes_no_quarantined_push(journal: Journal) -> None:
    journal.accept([INVALID])
    journal.remove_expired(2000.0, 10)
    assert unrouted_and_quarantined(journal) == (0, 1)


def test_retention_goes_in_steps_and_past_events_that_are_pending(store: Store) -> None:
    journal, records = store.open(), store.records()

    def removed(limit: int) -> int:
        before = records.count_received(0.0, 5000.0)
        journal.remove_expired(2000.0, limit)
        return before - records.count_received(0.0, 5000.0)

    route_events(journal, "slow", *(f"slow {number}" for number in range(7)))
    route_events(journal, "fast", *(f"fast {number}" for number in range(5)))
    settle(journal, claim(journal, "fast"), Result.DELIVERED)
    steps = [removed(3) for _ in range(10)]
    assert (max(steps), sum(steps)) == (3, 5)
    settle(journal, claim(journal, "slow"), Result.DELIVERED)
    steps = [removed(3) for _ in range(10)]
    assert (max(steps), sum(steps)) == (3, 7)
    assert (delivery_counts(journal, "slow"), delivery_counts(journal, "fast")) == ((7, 0, 0), (5, 0, 0))


def test_events_that_have_to_stay_do_not_delay_the_removal_of_those_that_expire_later(store: Store) -> None:
    journal = store.open()
    route_events(journal, "slow", *(f"slow {number}" for number in range(30)))
    while journal.remove_expired(2000.0, 3):
        pass
    route_events(journal, "fast", "a", "b", "c")
    settle(journal, claim(journal, "fast"), Result.DELIVERED)
    assert journal.remove_expired(2000.0, 3) is True
    assert accept(journal, "a", "b", "c") == [Outcome.ACCEPTED] * 3


def test_events_that_had_to_stay_are_checked_again_a_part_in_each_step(store: Store) -> None:
    journal, records = store.open(), store.records()
    route_events(journal, "slow", *(f"slow {number:02}" for number in range(60)))
    while journal.remove_expired(2000.0, 1):
        pass
    claim(journal, "slow", 30)
    settle(journal, claim(journal, "slow", 30), Result.DELIVERED)
    idle = 0
    while not journal.remove_expired(2000.0, 1):
        idle += 1
    assert 0 < idle < 30
    assert records.count_received(0.0, 2000.0) == 59
    assert [journal.remove_expired(2000.0, 1) for _ in range(29)] == [True] * 29
    assert records.count_received(0.0, 2000.0) == 30
    assert not journal.remove_expired(2000.0, 1)


def test_events_of_a_clock_that_was_ahead_do_not_delay_the_removal_of_others(journal: Journal) -> None:
    accept(journal, *(f"ahead {number}" for number in range(20)), received_at=9000.0)
    accept(journal, "a", "b")
    journal.route([(event, []) for event in journal.unrouted(100)])
    journal.remove_expired(2000.0, 10)
    assert accept(journal, "a", "b", "ahead 0") == [Outcome.ACCEPTED, Outcome.ACCEPTED, Outcome.DUPLICATE]


def test_retention_returns_whether_to_go_on_at_once(journal: Journal) -> None:
    accept(journal, *(str(number) for number in range(4)))
    accept(journal, "young", received_at=3000.0)
    journal.route([(event, []) for event in journal.unrouted(10)])
    assert [journal.remove_expired(2000.0, 2) for _ in range(4)] == [True, True, False, False]


def test_counts_are_of_everything_in_the_journal(store: Store) -> None:
    journal, records, clock = store.open(), store.records(), store.clock
    assert (unrouted_and_quarantined(journal), journal.counts().sinks) == ((0, 0), {})
    route_events(journal, "x", "a", "b", received_at=500.0)
    route_events(journal, "x", "c", "d", received_at=1000.0)
    accept(journal, "e")
    journal.accept([INVALID])
    first, second, third, _ = claim(journal, "x")
    settle(journal, [first], Result.DELIVERED)
    clock.advance(1)
    settle(journal, [second], Result.DEAD, reason="HTTP 404")
    settle(journal, [third], Result.FAILED, clock.now + 10, reason="HTTP 500")
    of_x = SinkCounts(
        delivered=1,
        pending=2,
        dead=1,
        oldest_received_at=1000.0,
        attempts=3,
        failures=2,
        last_success_at=clock.now - 1,
        last_failure_at=clock.now,
        last_failure_reason="HTTP 500",
    )
    assert (unrouted_and_quarantined(journal), journal.counts().sinks) == ((1, 1), {"x": of_x})
    assert records.counts() == journal.counts()


def test_everything_survives_closing_and_opening_again(store: Store) -> None:
    journal = store.open()
    route_events(journal, "s", "a", "b", "c")
    first, second, third = claim(journal, "s")
    settle(journal, [first], Result.DELIVERED)
    settle(journal, [second], Result.FAILED, store.clock.now + 10)
    settle(journal, [third], Result.DEAD)
    journal.save_sink_state(SinkState("s", 1, 5.0, "tired"))
    journal.report_alive(["a warning"])
    journal.save_document("keys", b"a document")
    accept(journal, "d")
    journal.accept([INVALID])
    before = everything(journal)
    store.close(journal)

    reopened = store.open()
    assert everything(reopened) == before
    store.clock.advance(10)
    (again,) = claim(reopened, "s")
    assert (again.event, again.attempt, again.failures) == (second.event, 2, 1)


def everything(journal: Journal) -> object:
    return (
        journal.counts(),
        journal.sink_states(),
        journal.enabled_sinks(),
        journal.liveness(),
        [(event.id, event.body) for event in journal.unrouted(10)],
        journal.next_due("s"),
        journal.next_due("new sink"),
        journal.document("keys"),
        journal.document("new"),
    )


WRITES: dict[str, Callable[[Journal, Delivery], Any]] = {
    "accept": lambda journal, _: accept(journal, "new"),
    "accept an invalid push": lambda journal, _: journal.accept([INVALID]),
    "route": lambda journal, _: journal.route([(event, ["new sink"]) for event in journal.unrouted(1)]),
    "route what a sink misses": lambda journal, _: journal.route([(event, []) for event in journal.unrouted(1)], ["s"]),
    "catch_up": lambda journal, _: journal.catch_up("behind", lambda event: True, 1),
    "add_enabled_sinks": lambda journal, _: journal.add_enabled_sinks(["new sink"]),
    "set_enabled_sinks": lambda journal, _: journal.set_enabled_sinks(["new sink"]),
    "claim": lambda journal, _: event_ids(claim(journal, "s")),
    "claim for a new sink": lambda journal, _: claim(journal, "new sink"),
    "extend": lambda journal, held: journal.extend([held], 600),
    "settle delivered": lambda journal, held: settle(journal, [held], Result.DELIVERED),
    "settle failed": lambda journal, held: settle(journal, [held], Result.FAILED),
    "settle dead": lambda journal, held: settle(journal, [held], Result.DEAD),
    "start_dispatching": lambda journal, _: journal.start_dispatching(),
    "save_sink_state": lambda journal, _: journal.save_sink_state(SinkState("new sink", 1)),
    "save_trial": lambda journal, _: journal.save_trial("new sink", on_trial=True),
    "remove_expired": lambda journal, _: journal.remove_expired(2000.0, 10),
    "check_writable": lambda journal, _: journal.check_writable(),
    "save_document": lambda journal, _: journal.save_document("keys", b"new"),
    "save a new document": lambda journal, _: journal.save_document("new", b"new"),
    "lease_document": lambda journal, _: journal.lease_document("new", 30.0),
    "extend_lease": lambda journal, _: journal.extend_lease("leased", 60.0),
}


@pytest.mark.parametrize("call", WRITES)
def test_a_call_whose_commit_fails_does_nothing_and_works_when_it_is_repeated(
    call: str, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "undisturbed").mkdir()
    undisturbed = SqliteStore(tmp_path / "undisturbed")
    held: dict[Store, Delivery] = {}
    journals = {each: each.open() for each in (store, undisturbed)}
    for each, journal in journals.items():
        route_events(journal, "s", "old")
        settle(journal, claim(journal, "s"), Result.DELIVERED)
        route_events(journal, "s", "held")
        (held[each],) = claim(journal, "s")
        journal.save_document("keys", b"old")
        assert journal.lease_document("leased", 30.0)
        accept(journal, "missed")
        journal.route([(event, []) for event in journal.unrouted(1)], ["behind"])
        accept(journal, "unrouted")

    before = everything(journals[store])
    store.disk_full = True
    with pytest.raises(JournalUnavailable):
        WRITES[call](journals[store], held[store])
    assert everything(journals[store]) == before
    store.disk_full = False
    results = [WRITES[call](journal, held[each]) for each, journal in journals.items()]
    assert results[0] == results[1]
    assert everything(journals[store]) == everything(journals[undisturbed])
    undisturbed.close_all()


def test_a_report_whose_commit_fails_changes_nothing_and_works_when_it_is_repeated(store: Store) -> None:
    journal = store.open()
    journal.report_alive(["before"])
    before = journal.liveness()
    store.disk_full = True
    with pytest.raises(JournalUnavailable):
        journal.report_alive(["during"])
    assert journal.liveness() == before
    store.disk_full = False
    journal.report_alive(["after"])
    after = journal.liveness()
    assert after is not None
    assert after.warnings == ("after",)


def test_a_sink_first_named_in_a_failed_commit_is_not_mistaken_for_another_later(store: Store) -> None:
    journal = store.open()
    accept(journal, "for x", "for y")
    for_x, for_y = journal.unrouted(10)
    store.disk_full = True
    with pytest.raises(JournalUnavailable):
        journal.route([(for_x, ["x"])])
    store.disk_full = False
    journal.route([(for_y, ["y"])])
    journal.route([(for_x, ["x"])])
    assert {sink: event_ids(claim(journal, sink)) for sink in "xy"} == {"x": ["for x"], "y": ["for y"]}


def test_a_sink_first_claimed_for_in_a_failed_commit_can_be_claimed_for_later(store: Store) -> None:
    journal = store.open()
    store.disk_full = True
    with pytest.raises(JournalUnavailable):
        claim(journal, "s")
    store.disk_full = False
    assert claim(journal, "s") == []
