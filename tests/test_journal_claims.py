"""The journal's contract, on every database: how deliveries are claimed and settled."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from support.journals import (
    DAY,
    Clock,
    Store,
    accept,
    body,
    claim,
    delivery_counts,
    event_ids,
    route_events,
    settle,
)

from receiver.journal import Arrival, Delivery, Journal, Result, Settlement, SinkCounts, SinkState, StoredEvent


def attempts(deliveries: list[Delivery]) -> list[tuple[int, int]]:
    """The attempt of each, and how many failed before."""
    return [(delivery.attempt, delivery.failures) for delivery in deliveries]


def test_calls_without_work_do_nothing(journal: Journal) -> None:
    journal.route([])
    journal.extend([], 60.0)
    journal.settle([])
    assert (journal.unrouted(0), journal.claim("s", 0, 60.0)) == ([], [])


def test_an_unknown_sink_has_no_deliveries(journal: Journal) -> None:
    assert journal.next_due("unknown") is None
    assert claim(journal, "unknown") == []
    assert journal.counts().sinks.get("unknown", SinkCounts()) == SinkCounts()


def test_a_claim_returns_all_of_a_delivery(journal: Journal) -> None:
    (event,) = route_events(journal, "s", "a", received_at=1234.5)
    assert event == StoredEvent(event.key, "a", body("a"), 1234.5)
    assert claim(journal, "s") == [Delivery(event, "s", attempt=1, failures=0, age=0.0)]


def test_only_due_deliveries_are_claimed(journal: Journal, clock: Clock) -> None:
    route_events(journal, "s", "a", "b")
    first, second = claim(journal, "s")
    settle(journal, [first], Result.FAILED, clock.now + 10)
    settle(journal, [second], Result.FAILED, clock.now + 20)
    clock.advance(9.5)
    assert claim(journal, "s") == []
    clock.advance(0.5)
    assert event_ids(claim(journal, "s")) == ["a"]
    clock.advance(10)
    assert event_ids(claim(journal, "s")) == ["b"]


def test_deliveries_due_for_the_longest_time_are_claimed_first(journal: Journal, clock: Clock) -> None:
    route_events(journal, "s", "a", "b", "c")
    due = {"a": clock.now + 30, "b": clock.now + 10, "c": clock.now + 20}
    for delivery in claim(journal, "s"):
        settle(journal, [delivery], Result.FAILED, due[delivery.event.id])
    clock.advance(15)
    route_events(journal, "s", "d")
    clock.advance(60)
    assert [event_ids(claim(journal, "s", limit=1)) for _ in range(5)] == [["b"], ["d"], ["c"], ["a"], []]


def test_deliveries_due_at_the_same_time_are_claimed_in_order_of_receipt(journal: Journal) -> None:
    accept(journal, *"dacb")
    journal.route([(event, ["s"]) for event in reversed(journal.unrouted(10))])
    assert [event_ids(claim(journal, "s", limit=2)) for _ in range(3)] == [["d", "a"], ["c", "b"], []]


def test_as_many_deliveries_as_a_batch_may_have_can_be_claimed_extended_and_settled_at_once(journal: Journal) -> None:
    journal.accept([Arrival(str(number), b"", 1000.0) for number in range(10_000)])
    journal.route([(event, ["s"]) for event in journal.unrouted(10_000)])
    claimed = claim(journal, "s", limit=10_000)
    assert len(claimed) == 10_000
    journal.extend(claimed, 60.0)
    settle(journal, claimed, Result.DELIVERED)
    assert delivery_counts(journal, "s") == (10_000, 0, 0)


def test_a_claim_excludes_everyone_until_it_ends_and_the_next_one_counts_one_more_attempt(store: Store) -> None:
    journal, other = store.open(), store.open()
    route_events(journal, "s", "a")
    assert attempts(claim(journal, "s", seconds=60)) == [(1, 0)]
    store.clock.advance(59.5)
    assert claim(journal, "s") == claim(other, "s") == []
    store.clock.advance(0.5)
    assert attempts(claim(other, "s")) == [(2, 0)]


def test_claims_of_several_threads_share_no_delivery(journal: Journal) -> None:
    ids = [str(number) for number in range(100)]
    route_events(journal, "s", *ids)
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda _: event_ids(claim(journal, "s", limit=5)), range(30)))
    assert sorted(event_id for claimed in claims for event_id in claimed) == sorted(ids)


def test_extending_a_claim_moves_its_end(journal: Journal, clock: Clock) -> None:
    route_events(journal, "s", "a")
    claimed = claim(journal, "s", seconds=60)
    clock.advance(50)
    journal.extend(claimed, 60)
    assert journal.next_due("s") == clock.now + 60
    clock.advance(59.5)
    assert claim(journal, "s") == []
    clock.advance(0.5)
    assert event_ids(claim(journal, "s")) == ["a"]


def test_all_of_several_claims_are_extended(journal: Journal, clock: Clock) -> None:
    route_events(journal, "s", "a")
    claim(journal, "s", seconds=10)
    clock.advance(10)
    route_events(journal, "s", "b", "c")
    claimed = claim(journal, "s", seconds=60)
    assert sorted(attempts(claimed)) == [(1, 0), (1, 0), (2, 0)]
    journal.extend(claimed, 100)
    clock.advance(99.5)
    assert claim(journal, "s") == []
    clock.advance(0.5)
    assert event_ids(claim(journal, "s")) == ["a", "b", "c"]


@pytest.mark.parametrize("result", list(Result))
def test_extending_a_claim_that_was_settled_changes_nothing(result: Result, journal: Journal, clock: Clock) -> None:
    route_events(journal, "s", "a")
    claimed = claim(journal, "s")
    settle(journal, claimed, result, clock.now)
    before = journal.counts(), journal.next_due("s")
    journal.extend(claimed, 600)
    assert (journal.counts(), journal.next_due("s")) == before


def test_extending_a_claim_that_another_dispatcher_holds_changes_nothing(store: Store) -> None:
    journal, other = store.open(), store.open()
    route_events(journal, "s", "a")
    lost = claim(journal, "s", seconds=60)
    store.clock.advance(60)
    claim(other, "s", seconds=60)
    journal.extend(lost, 6000)
    assert journal.next_due("s") == store.clock.now + 60


@dataclass(frozen=True)
class After:
    """What settling a first attempt leads to when a retry in 30 seconds is asked for.

    `counts` are delivered, pending and dead; `totals` the attempts and failures of the sink; the rest is of the next
    attempt.
    """

    counts: tuple[int, int, int]
    totals: tuple[int, int]
    next_in: float | None = None
    attempt: int = 0
    failures: int = 0


AFTER = {
    Result.DELIVERED: After((1, 0, 0), (1, 0)),
    Result.DEAD: After((0, 0, 1), (1, 1)),
    Result.FAILED: After((0, 1, 0), (1, 1), 30.0, attempt=2, failures=1),
    Result.POSTPONED: After((0, 1, 0), (1, 1), 30.0, attempt=2, failures=0),
    Result.RELEASED: After((0, 1, 0), (0, 0), 0.0, attempt=1, failures=0),
}
each_result = pytest.mark.parametrize(
    ("result", "after"), [pytest.param(result, after, id=result) for result, after in AFTER.items()]
)


@each_result
def test_a_result_is_recorded_and_ends_the_claim(result: Result, after: After, journal: Journal, clock: Clock) -> None:
    route_events(journal, "s", "a")
    settle(journal, claim(journal, "s"), result, clock.now + 30)
    of_sink = journal.counts().sinks["s"]
    assert (delivery_counts(journal, "s"), (of_sink.attempts, of_sink.failures)) == (after.counts, after.totals)
    if after.next_in is None:
        assert journal.next_due("s") is None
        clock.advance(1000 * DAY)
        assert claim(journal, "s") == []
    else:
        assert journal.next_due("s") == clock.now + after.next_in
        clock.advance(after.next_in)
        assert attempts(claim(journal, "s")) == [(after.attempt, after.failures)]


@each_result
def test_a_result_that_is_recorded_again_changes_nothing(
    result: Result, after: After, journal: Journal, clock: Clock
) -> None:
    route_events(journal, "s", "a")
    claimed = claim(journal, "s")
    settle(journal, claimed, result, clock.now + 30)
    before = journal.counts(), journal.next_due("s")
    clock.advance(1)
    for repeated in (result, *Result):
        if after.next_in is None or repeated is not Result.DELIVERED:
            settle(journal, claimed, repeated, clock.now + 5)
    assert (journal.counts(), journal.next_due("s")) == before


@each_result
def test_only_delivered_is_accepted_from_a_dispatcher_that_lost_its_claim(
    result: Result, after: After, store: Store
) -> None:
    loser, holder = store.open(), store.open()
    route_events(loser, "s", "a")
    lost = claim(loser, "s")
    store.clock.advance(60)
    held = claim(holder, "s")
    settle(loser, lost, result, store.clock.now)
    if result is Result.DELIVERED:
        assert (delivery_counts(holder, "s"), holder.next_due("s")) == ((1, 0, 0), None)
        settle(holder, held, Result.FAILED, store.clock.now)
        assert (delivery_counts(holder, "s"), holder.next_due("s")) == ((1, 0, 0), None)
    else:
        assert (delivery_counts(holder, "s"), holder.next_due("s")) == ((0, 1, 0), store.clock.now + 60)
        settle(holder, held, Result.FAILED, store.clock.now)
        assert attempts(claim(holder, "s")) == [(3, 1)]


@pytest.mark.parametrize("result", [Result.DEAD, Result.FAILED, Result.POSTPONED, Result.RELEASED])
def test_a_result_of_a_claim_that_ended_does_not_end_the_next_claim(
    result: Result, journal: Journal, clock: Clock
) -> None:
    route_events(journal, "s", "a")
    ended = claim(journal, "s", seconds=60)
    clock.advance(60)
    claim(journal, "s", seconds=60)
    settle(journal, ended, result, clock.now)
    assert (delivery_counts(journal, "s"), journal.next_due("s")) == ((0, 1, 0), clock.now + 60)


def test_a_result_is_accepted_after_the_end_of_its_claim_if_there_was_no_other_claim(
    journal: Journal, clock: Clock
) -> None:
    route_events(journal, "s", "a")
    claimed = claim(journal, "s", seconds=60)
    clock.advance(600)
    settle(journal, claimed, Result.FAILED, clock.now)
    assert attempts(claim(journal, "s")) == [(2, 1)]


def test_a_dead_delivery_stays_dead_when_a_late_success_comes_in(store: Store) -> None:
    journal, other = store.open(), store.open()
    route_events(journal, "s", "a")
    claimed = claim(journal, "s")
    settle(journal, claimed, Result.DEAD)
    settle(other, claimed, Result.DELIVERED)
    assert delivery_counts(journal, "s") == (0, 0, 1)


def test_attempts_and_failures_add_up_over_many_claims(journal: Journal, clock: Clock) -> None:
    route_events(journal, "s", "a")
    seen = []
    for result in (Result.FAILED, Result.RELEASED, Result.POSTPONED, Result.FAILED, Result.RELEASED, Result.FAILED):
        claimed = claim(journal, "s")
        seen += attempts(claimed)
        settle(journal, claimed, result, clock.now)
    assert seen == [(1, 0), (2, 1), (2, 1), (3, 1), (4, 2), (4, 2)]
    assert attempts(claim(journal, "s")) == [(5, 3)]


def test_one_call_settles_deliveries_with_different_results(journal: Journal, clock: Clock) -> None:
    route_events(journal, "s", *"abcdefgh")
    claimed = claim(journal, "s")
    results = [Result.DEAD, *[Result.DELIVERED] * 3, Result.FAILED, Result.POSTPONED, Result.RELEASED, Result.FAILED]
    journal.settle(
        [
            Settlement(delivery, result, clock.now + number, f"reason {number}")
            for number, (delivery, result) in enumerate(zip(claimed, results, strict=True))
        ]
    )
    assert delivery_counts(journal, "s") == (3, 4, 1)
    totals = journal.counts().sinks["s"]
    assert (totals.attempts, totals.delivered, totals.failures) == (7, 3, 4)
    clock.advance(100)
    again = {delivery.event.id: (delivery.attempt, delivery.failures) for delivery in claim(journal, "s")}
    assert again == {"e": (2, 1), "f": (2, 0), "g": (1, 0), "h": (2, 1)}


def test_age_counts_from_the_first_attempt(journal: Journal, clock: Clock) -> None:
    route_events(journal, "s", "a")
    clock.advance(500)
    ages = []
    for seconds in (10, 20, 30):
        (claimed,) = claim(journal, "s")
        ages.append(claimed.age)
        settle(journal, [claimed], Result.FAILED, clock.now + seconds)
        clock.advance(seconds)
    assert ages == [0.0, 10.0, 30.0]


def test_a_delivery_does_not_age_while_its_sink_is_paused(journal: Journal, clock: Clock) -> None:
    route_events(journal, "s", "a")

    def age() -> float:
        (claimed,) = claim(journal, "s")
        settle(journal, [claimed], Result.POSTPONED, clock.now)
        return claimed.age

    assert age() == 0.0
    clock.advance(10)
    journal.save_sink_state(SinkState("s", pauses=1, paused_until=clock.now + 50))
    clock.advance(100)
    assert age() == 10.0
    journal.save_sink_state(SinkState("s", pauses=2, paused_until=clock.now + 50, on_trial=True))
    clock.advance(1000)
    assert age() == 10.0
    journal.save_sink_state(SinkState("s"))
    clock.advance(7)
    assert age() == 17.0
    journal.save_sink_state(SinkState("s"))
    assert age() == 17.0
    journal.save_sink_state(SinkState("s", pauses=1))
    clock.advance(100)
    journal.save_sink_state(SinkState("s"))
    assert age() == 17.0


def test_a_delivery_first_attempted_during_a_pause_ages_from_its_end(journal: Journal, clock: Clock) -> None:
    route_events(journal, "s", "a")
    journal.save_sink_state(SinkState("s", pauses=1))
    clock.advance(100)
    settle(journal, claim(journal, "s"), Result.POSTPONED, clock.now)
    clock.advance(100)
    journal.save_sink_state(SinkState("s"))
    clock.advance(5)
    assert [claimed.age for claimed in claim(journal, "s")] == [5.0]


def test_the_pause_of_one_sink_does_not_change_the_age_at_others(journal: Journal, clock: Clock) -> None:
    accept(journal, "a")
    journal.route([(event, ["x", "y"]) for event in journal.unrouted(1)])
    for sink in "xy":
        settle(journal, claim(journal, sink), Result.FAILED, clock.now)
    journal.save_sink_state(SinkState("x", pauses=1))
    clock.advance(100)
    assert [claimed.age for sink in "xy" for claimed in claim(journal, sink)] == [0.0, 100.0]


def test_a_delivery_that_was_never_attempted_does_not_age(journal: Journal, clock: Clock) -> None:
    route_events(journal, "s", "a")
    settle(journal, claim(journal, "s"), Result.RELEASED)
    clock.advance(4 * DAY)
    assert [(claimed.attempt, claimed.age) for claimed in claim(journal, "s")] == [(1, 0.0)]


def test_releasing_a_delivery_does_not_reset_its_age(journal: Journal, clock: Clock) -> None:
    route_events(journal, "s", "a")
    settle(journal, claim(journal, "s"), Result.FAILED, clock.now)
    clock.advance(100)
    settle(journal, claim(journal, "s"), Result.RELEASED)
    clock.advance(100)
    assert [(claimed.attempt, claimed.age) for claimed in claim(journal, "s")] == [(2, 200.0)]


def test_next_due_is_the_earliest_of_due_times_and_ends_of_claims(journal: Journal, clock: Clock) -> None:
    route_events(journal, "s", "a")
    assert journal.next_due("s") == clock.now
    first = claim(journal, "s", seconds=60)
    assert journal.next_due("s") == clock.now + 60
    route_events(journal, "s", "b")
    settle(journal, claim(journal, "s"), Result.FAILED, clock.now + 30)
    assert journal.next_due("s") == clock.now + 30
    settle(journal, first, Result.FAILED, clock.now + 20)
    assert journal.next_due("s") == clock.now + 20


def test_a_new_dispatcher_voids_the_claims_of_its_predecessor_and_returns_their_sinks(store: Store) -> None:
    journal = store.open(holder="here")
    assert journal.start_dispatching() == []
    for sink in ("called", "done", "failed"):
        route_events(journal, sink, f"for {sink}")
    claim(journal, "called", seconds=6000)
    settle(journal, claim(journal, "done"), Result.DELIVERED)
    settle(journal, claim(journal, "failed"), Result.FAILED, store.clock.now + 10)
    store.close(journal)

    successor = store.open(holder="here")
    assert successor.start_dispatching() == ["called"]
    assert attempts(claim(successor, "called")) == [(2, 0)]
    assert claim(successor, "failed") == claim(successor, "done") == []


def test_of_the_results_of_a_dispatcher_that_was_succeeded_only_delivered_counts(store: Store) -> None:
    dead, intake = store.open(holder="here"), store.open()
    dead.start_dispatching()
    route_events(dead, "s", "a", "b")
    first, second = claim(dead, "s")
    store.close(dead)
    successor = store.open(holder="here")
    successor.start_dispatching()
    settle(successor, [first], Result.DEAD)
    settle(intake, [second], Result.DELIVERED)
    assert delivery_counts(successor, "s") == (1, 1, 0)
    assert event_ids(claim(successor, "s")) == ["a"]


def test_claims_of_a_dispatcher_that_is_silent_are_taken_over_and_those_of_others_are_not(store: Store) -> None:
    silent, alive, another = (store.open(holder) for holder in ("silent", "alive", "another"))
    route_events(silent, "s", "a", "b")
    route_events(alive, "s", "c")
    assert event_ids(claim(silent, "s", limit=2)) == ["a", "b"]
    assert event_ids(claim(alive, "s")) == ["c"]
    silent.report_alive()
    store.clock.advance(15.0)
    alive.report_alive()
    another.take_over(15.0)
    assert claim(another, "s") == []
    store.clock.advance(0.5)
    another.take_over(15.0)
    taken_over = claim(another, "s")
    assert event_ids(taken_over) == ["a", "b"]
    assert attempts(taken_over) == [(2, 0), (2, 0)]


def test_a_dispatcher_does_not_take_over_its_own_claims(journal: Journal, clock: Clock) -> None:
    route_events(journal, "s", "a")
    journal.report_alive()
    claim(journal, "s")
    clock.advance(20.0)
    journal.take_over(15.0)
    assert claim(journal, "s") == []


def test_threads_that_claim_without_a_break_keep_no_other_thread_from_the_journal(journal: Journal) -> None:
    done = threading.Event()

    def claim_until_done(sink: str) -> None:
        while not done.is_set():
            claim(journal, sink)

    with ThreadPoolExecutor(4) as pool:
        claiming = [pool.submit(claim_until_done, f"s{number}") for number in range(4)]
        try:
            for _ in range(20):
                journal.report_alive()
        finally:
            done.set()
        for each in claiming:
            each.result()


def test_the_oldest_pending_event_of_a_sink_is_the_one_with_the_first_key(journal: Journal, clock: Clock) -> None:
    route_events(journal, "other", "first", received_at=900.0)
    route_events(journal, "s", "a", received_at=1000.0)
    route_events(journal, "s", "b", received_at=1001.0)
    assert [journal.oldest_pending(sink) for sink in ("s", "other", "unknown")] == [1000.0, 900.0, None]
    first, second = claim(journal, "s")
    settle(journal, [first], Result.FAILED, clock.now + 3600)
    assert journal.oldest_pending("s") == 1000.0
    settle(journal, claim(journal, "s"), Result.DELIVERED)
    settle(journal, [second], Result.DELIVERED)
    assert journal.oldest_pending("s") == 1000.0
    clock.advance(3600)
    settle(journal, claim(journal, "s"), Result.DEAD)
    assert journal.oldest_pending("s") is None
