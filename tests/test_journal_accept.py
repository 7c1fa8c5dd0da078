"""The journal's contract, on every database: what becomes of pushes, and how events are routed to sinks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.journals import (
    Clock,
    Store,
    accept,
    body,
    claim,
    delivery_counts,
    event_ids,
    route_events,
    settle,
    unrouted_and_quarantined,
)

from receiver.errors import JournalUnavailable
from receiver.journal import Arrival, Journal, Outcome, Result, StoredEvent

EVENT = Arrival("event", b"", 1000.0)
WITH_SECRET = Arrival("with secret", b"", 1000.0, None, "DT_SIGNATURE_SECRET")
INVALID = Arrival("5f" * 32, b"not an event", 1000.0, "the body is not JSON")


def test_a_new_id_is_accepted_and_a_repeated_one_changes_nothing(journal: Journal) -> None:
    assert journal.accept([Arrival("a", b"first", 1000.5)]) == [Outcome.ACCEPTED]
    assert journal.accept([Arrival("a", b"second", 2000.5)]) == [Outcome.DUPLICATE]
    (event,) = journal.unrouted(10)
    assert event == StoredEvent(event.key, "a", b"first", 1000.5)


def test_a_body_is_stored_byte_for_byte(journal: Journal) -> None:
    every_byte = bytes(range(256)) * 1000
    journal.accept([Arrival("a", every_byte, 1000.0)])
    journal.accept([Arrival("b", b"", 1000.0)])
    assert [event.body for event in journal.unrouted(10)] == [every_byte, b""]


def test_an_event_that_was_delivered_is_still_a_duplicate(journal: Journal) -> None:
    route_events(journal, "s", "a")
    settle(journal, claim(journal, "s"), Result.DELIVERED)
    assert accept(journal, "a") == [Outcome.DUPLICATE]
    assert (journal.counts().unrouted, delivery_counts(journal, "s")) == (0, (1, 0, 0))


def test_ids_that_differ_only_in_case_are_different_events(journal: Journal) -> None:
    assert accept(journal, "abc", "ABC") == [Outcome.ACCEPTED, Outcome.ACCEPTED]


def test_an_invalid_push_is_quarantined_once_and_is_no_event(journal: Journal) -> None:
    assert [journal.accept([INVALID]), journal.accept([INVALID])] == [[Outcome.QUARANTINED]] * 2
    assert unrouted_and_quarantined(journal) == (0, 1)
    assert journal.unrouted(10) == []


def test_an_event_and_a_quarantined_push_may_have_the_same_id(journal: Journal) -> None:
    journal.accept([Arrival("a", b"invalid", 1000.0, "invalid")])
    assert accept(journal, "a") == [Outcome.ACCEPTED]
    assert unrouted_and_quarantined(journal) == (1, 1)


def test_each_arrival_of_a_commit_has_its_own_outcome_and_a_repeated_id_is_accepted_once(journal: Journal) -> None:
    accept(journal, "z known")
    arrivals = [
        Arrival("z known", b"", 1000.0),
        Arrival("same", b"first", 1000.0),
        INVALID,
        WITH_SECRET,
        Arrival("a new", b"", 1000.0),
        Arrival("same", b"second", 1000.0),
    ]
    assert journal.accept(arrivals) == ["duplicate", "accepted", "quarantined", "accepted", "accepted", "duplicate"]
    stored = {event.id: event.body for event in journal.unrouted(10)}
    assert stored == {"z known": body("z known"), "same": b"first", "with secret": b"", "a new": b""}
    assert unrouted_and_quarantined(journal) == (4, 1)


def test_new_ids_are_distinguished_from_known_ones_in_a_commit_of_events_alone(journal: Journal) -> None:
    accept(journal, "known")
    arrivals = [Arrival(event_id, b"", 1000.0) for event_id in ("z", "known", "a", "z")]
    assert journal.accept(arrivals) == ["accepted", "duplicate", "accepted", "duplicate"]
    assert sorted(event_ids(journal.unrouted(10))) == ["a", "known", "z"]


def test_threads_that_accept_at_once_lose_and_repeat_nothing(journal: Journal) -> None:
    ids = [f"{thread}-{number}" for thread in range(8) for number in range(10)]
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda event_id: accept(journal, event_id), ids))
    assert outcomes == [[Outcome.ACCEPTED]] * len(ids)
    assert sorted(event_ids(journal.unrouted(1000))) == sorted(ids)


def test_of_threads_that_accept_one_id_at_once_one_gets_accepted(journal: Journal) -> None:
    barrier = threading.Barrier(8)

    def push(event_id: str) -> Outcome:
        barrier.wait(20)
        return accept(journal, event_id)[0]

    with ThreadPoolExecutor(8) as pool:
        for event_id in "abc":
            outcomes = list(pool.map(push, [event_id] * 8))
            assert sorted(outcomes) == [Outcome.ACCEPTED, *[Outcome.DUPLICATE] * 7]
    assert event_ids(journal.unrouted(10)) == ["a", "b", "c"]


def test_several_processes_accept_into_one_journal(store: Store) -> None:
    processes = [store.open() for _ in range(3)]
    ids = [str(number) for number in range(30)]
    with ThreadPoolExecutor(3) as pool:
        outcomes = list(pool.map(lambda journal: accept(journal, *ids), processes))
    assert [sorted(of_id) for of_id in zip(*outcomes, strict=True)] == [["accepted", "duplicate", "duplicate"]] * 30
    assert sorted(event_ids(processes[0].unrouted(1000))) == sorted(ids)


@pytest.mark.parametrize(
    "arrivals",
    [
        pytest.param([EVENT], id="an event"),
        pytest.param([Arrival(str(n), b"x" * 1000, 1000.0) for n in range(256)], id="many events"),
        pytest.param([EVENT, WITH_SECRET], id="events, and the use of a secret"),
        pytest.param([INVALID, EVENT], id="an event and an invalid push"),
    ],
)
def test_a_failed_commit_stores_nothing_and_what_is_pushed_again_is_new(arrivals: list[Arrival], store: Store) -> None:
    journal, other = store.open(), store.open()
    accept(journal, "before")
    with store.failing_commits():
        for _ in range(2):
            with pytest.raises(JournalUnavailable):
                journal.accept(arrivals)
        assert unrouted_and_quarantined(other) == (1, 0)
    expected = [Outcome.ACCEPTED if each.quarantine_reason is None else Outcome.QUARANTINED for each in arrivals]
    assert journal.accept(arrivals) == expected
    assert unrouted_and_quarantined(other) == (
        1 + expected.count(Outcome.ACCEPTED),
        expected.count(Outcome.QUARANTINED),
    )


def test_the_last_use_of_each_secret_is_counted(journal: Journal, clock: Clock) -> None:
    assert journal.counts().secrets == {}
    journal.accept([WITH_SECRET, EVENT])
    used_at = clock.now
    clock.advance(100)
    journal.accept([Arrival("other", b"", 1000.0, None, "DT_SIGNATURE_SECRET__OLD"), Arrival("third", b"", 1000.0)])
    assert journal.counts().secrets == {"DT_SIGNATURE_SECRET": used_at, "DT_SIGNATURE_SECRET__OLD": clock.now}
    journal.accept([Arrival("fourth", b"", 1000.0, None, "DT_SIGNATURE_SECRET")])
    assert journal.counts().secrets == {"DT_SIGNATURE_SECRET": clock.now, "DT_SIGNATURE_SECRET__OLD": clock.now}


def test_unrouted_events_come_oldest_first_up_to_the_limit_until_they_are_routed(journal: Journal) -> None:
    accept(journal, "c", "a", "b")
    assert event_ids(journal.unrouted(2)) == ["c", "a"]
    assert event_ids(journal.unrouted(2)) == ["c", "a"]
    journal.route([(event, []) for event in journal.unrouted(2)])
    assert event_ids(journal.unrouted(2)) == ["b"]


def test_an_event_is_routed_to_exactly_the_sinks_named_with_it(journal: Journal) -> None:
    accept(journal, "a", "b", "c")
    first, second, third = journal.unrouted(10)
    journal.route([(first, ["x", "y"]), (second, ["y"]), (third, [])])
    assert {sink: event_ids(claim(journal, sink)) for sink in "xyz"} == {"x": ["a"], "y": ["a", "b"], "z": []}
    assert journal.counts().unrouted == 0


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        pytest.param([], (0, 1, 0), id="pending"),
        pytest.param([Result.FAILED], (0, 1, 0), id="failed"),
        pytest.param([Result.POSTPONED], (0, 1, 0), id="postponed"),
        pytest.param([Result.DELIVERED], (1, 0, 0), id="delivered"),
        pytest.param([Result.DEAD], (0, 0, 1), id="dead"),
    ],
)
def test_routing_an_event_again_changes_nothing(
    results: list[Result], expected: tuple[int, int, int], journal: Journal, clock: Clock
) -> None:
    (event,) = route_events(journal, "s", "a")
    for result in results:
        settle(journal, claim(journal, "s"), result, clock.now + 100)
    due = journal.next_due("s")
    clock.advance(50)
    journal.route([(event, ["s"])])
    journal.route([(event, ["s", "s"])])
    assert (delivery_counts(journal, "s"), journal.next_due("s")) == (expected, due)


def test_routing_an_event_again_does_not_end_a_claim(journal: Journal) -> None:
    (event,) = route_events(journal, "s", "a")
    claimed = claim(journal, "s")
    journal.route([(event, ["s"])])
    assert claim(journal, "s") == []
    settle(journal, claimed, Result.DEAD)
    assert delivery_counts(journal, "s") == (0, 0, 1)


def test_an_event_can_be_routed_while_retention_looks_at_it(store: Store) -> None:
    journal, other = store.open(), store.open()
    (event,) = route_events(journal, "x", "a")
    settle(journal, claim(journal, "x"), Result.DELIVERED)
    store.before_next_write = lambda: other.route([(event, ["y"])])
    journal.remove_expired(2000.0, 10)
    assert event_ids(claim(journal, "y")) == ["a"]


def test_routing_an_event_that_retention_removed_does_not_stop_its_sink(journal: Journal) -> None:
    (removed,) = route_events(journal, "x", "removed")
    settle(journal, claim(journal, "x"), Result.DELIVERED)
    accept(journal, "later")
    journal.remove_expired(2000.0, 10)
    journal.route([(removed, ["y"])])
    route_events(journal, "y", "a")
    assert event_ids(claim(journal, "y")) == ["a"]
    assert delivery_counts(journal, "y") == (0, 1, 0)
