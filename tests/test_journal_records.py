"""The contract of the journal's records, on every database: what operators read, retry, delete and replay."""

from __future__ import annotations

from collections.abc import Callable

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
from receiver.journal import (
    Arrival,
    DeadLetter,
    DeadLetterGroup,
    DeliveryState,
    EventHistory,
    Journal,
    Outcome,
    QuarantinedPush,
    Records,
    Result,
    SinkCounts,
    SinkState,
    StoredEvent,
)
from receiver.journal.sql import records as records_module


def let_die(journal: Journal, clock: Clock, sink: str, *ids: str, reason: str = "HTTP 404") -> None:
    """Route these events to a sink, one second apart, and give each up at its first attempt."""
    for event_id in ids:
        route_events(journal, sink, event_id)
        settle(journal, claim(journal, sink), Result.DEAD, reason=reason)
        clock.advance(1)


def quarantine(journal: Journal, *ids: str) -> None:
    for number, push_id in enumerate(ids):
        journal.accept([Arrival(push_id, body(push_id), 1000.0 + number, f"reason {number}")])


def test_dead_letters_are_listed_newest_first_of_one_sink_or_of_all(
    journal: Journal, records: Records, clock: Clock
) -> None:
    died_at = clock.now
    route_events(journal, "x", "a", received_at=500.0)
    settle(journal, claim(journal, "x"), Result.FAILED, clock.now)
    settle(journal, claim(journal, "x"), Result.DEAD, reason="HTTP 410")
    clock.advance(1)
    let_die(journal, clock, "x", "b")
    let_die(journal, clock, "y", "c")
    a = DeadLetter("x", StoredEvent(1, "a", body("a"), 500.0), 2, died_at, "HTTP 410")
    b = DeadLetter("x", StoredEvent(2, "b", body("b"), 1000.0), 1, died_at + 1, "HTTP 404")
    c = DeadLetter("y", StoredEvent(3, "c", body("c"), 1000.0), 1, died_at + 2, "HTTP 404")
    assert records.dead_letters(None, 10) == [c, b, a]
    assert records.dead_letters(None, 2) == [c, b]
    assert records.dead_letters("x", 10) == [b, a]
    assert records.dead_letters("unknown", 10) == []


@pytest.mark.parametrize(
    ("chosen", "number", "remaining"),
    [
        pytest.param(None, 3, [], id="all"),
        pytest.param(["a", "c", "d", "unknown"], 2, ["b"], id="some, and others that are not dead there"),
        pytest.param([], 0, ["a", "b", "c"], id="none"),
    ],
)
def test_dead_letters_that_are_retried_are_pending_as_if_they_were_never_attempted(
    chosen: list[str] | None, number: int, remaining: list[str], journal: Journal, records: Records, clock: Clock
) -> None:
    let_die(journal, clock, "x", "a", "b", "c")
    let_die(journal, clock, "y", "d")
    assert records.retry_dead_letters("x", chosen) == number
    assert sorted(letter.event.id for letter in records.dead_letters("x", 10)) == remaining
    assert [letter.event.id for letter in records.dead_letters("y", 10)] == ["d"]
    again = claim(journal, "x")
    assert sorted(event_ids(again)) == sorted({"a", "b", "c"} - set(remaining))
    assert {(delivery.attempt, delivery.failures, delivery.age) for delivery in again} <= {(1, 0, 0.0)}


@pytest.mark.parametrize(
    ("chosen", "number", "remaining"),
    [
        pytest.param(None, 3, [], id="all"),
        pytest.param(["a", "c", "d", "unknown"], 2, ["b"], id="some, and others that are not dead there"),
        pytest.param([], 0, ["a", "b", "c"], id="none"),
    ],
)
def test_dead_letters_that_are_deleted_are_gone_and_nothing_else_is(
    chosen: list[str] | None, number: int, remaining: list[str], journal: Journal, records: Records, clock: Clock
) -> None:
    let_die(journal, clock, "x", "a", "b", "c")
    let_die(journal, clock, "y", "d")
    route_events(journal, "x", "pending")
    assert records.delete_dead_letters("x", chosen) == number
    assert sorted(letter.event.id for letter in records.dead_letters("x", 10)) == remaining
    assert [letter.event.id for letter in records.dead_letters("y", 10)] == ["d"]
    assert event_ids(claim(journal, "x")) == ["pending"]
    assert accept(journal, "a") == [Outcome.DUPLICATE]


def let_two_groups_die(journal: Journal, clock: Clock) -> None:
    """At the sink `x`, three events with the reason HTTP 410, and then one with HTTP 404."""
    for number, event_id in enumerate("abc"):
        route_events(journal, "x", event_id, received_at=500.0 + number)
    settle(journal, claim(journal, "x"), Result.DEAD, reason="HTTP 410")
    let_die(journal, clock, "x", "d")


def test_dead_letters_are_grouped_by_sink_and_reason_the_largest_group_first(
    journal: Journal, records: Records, clock: Clock
) -> None:
    let_two_groups_die(journal, clock)
    let_die(journal, clock, "y", "e", "f")
    route_events(journal, "x", "pending")
    groups = [
        DeadLetterGroup("x", "HTTP 410", 3, 500.0, 502.0),
        DeadLetterGroup("y", "HTTP 404", 2, 1000.0, 1000.0),
        DeadLetterGroup("x", "HTTP 404", 1, 1000.0, 1000.0),
    ]
    assert records.dead_letter_groups(None, 10) == groups
    assert records.dead_letter_groups(None, 2) == groups[:2]
    assert records.dead_letter_groups("x", 10) == [groups[0], groups[2]]
    assert records.dead_letter_groups(None, 10, "HTTP 404") == groups[1:]
    assert records.dead_letter_groups("x", 10, "HTTP 410") == groups[:1]
    assert records.dead_letter_groups("unknown", 10) == records.dead_letter_groups("x", 10, "unknown") == []


def test_groups_are_found_in_the_order_of_their_reasons_and_counted_in_part(
    journal: Journal, records: Records, clock: Clock
) -> None:
    let_two_groups_die(journal, clock)
    let_die(journal, clock, "x", "e", reason="")
    let_die(journal, clock, "y", "f", "g")
    route_events(journal, "x", "pending")
    groups = [
        DeadLetterGroup("x", "HTTP 410", 3, 500.0, 502.0),
        DeadLetterGroup("y", "HTTP 404", 2, 1000.0, 1000.0),
        DeadLetterGroup("x", "", 1, 1000.0, 1000.0),
        DeadLetterGroup("x", "HTTP 404", 1, 1000.0, 1000.0),
    ]
    assert records.some_dead_letter_groups(None, 10, 10) == groups
    assert records.some_dead_letter_groups("x", 10, 10) == [groups[0], *groups[2:]]
    assert [(each.reason, each.count) for each in records.some_dead_letter_groups("x", 10, 2)] == [
        ("HTTP 410", 2),
        ("", 1),
        ("HTTP 404", 1),
    ]
    assert records.some_dead_letter_groups("x", 1, 10) == [groups[2]]
    assert records.some_dead_letter_groups("unknown", 10, 10) == []


def test_dead_letters_and_quarantined_pushes_are_counted_up_to_a_number(
    journal: Journal, records: Records, clock: Clock
) -> None:
    let_die(journal, clock, "x", *"abc")
    let_die(journal, clock, "x", "d", reason="HTTP 410")
    let_die(journal, clock, "y", "e")
    quarantine(journal, "1" * 64, "2" * 64, "3" * 64)
    assert [records.count_dead_letters("x", None, most) for most in (2, 4, 9)] == [2, 4, 4]
    assert [records.count_dead_letters("x", "HTTP 404", most) for most in (2, 3, 9)] == [2, 3, 3]
    assert records.count_dead_letters("unknown", None, 9) == records.count_dead_letters("x", "unknown", 9) == 0
    counted, exact = records.counts(2), records.counts()
    assert (counted.quarantined, counted.sinks["x"].dead, counted.sinks["y"].dead) == (2, 2, 1)
    assert (exact.quarantined, exact.sinks["x"].dead, exact.sinks["y"].dead) == (3, 4, 1)
    assert records.counts(5) == exact


def test_the_dead_letters_of_a_group_are_read_page_by_page(journal: Journal, records: Records, clock: Clock) -> None:
    let_die(journal, clock, "x", *"abcde")
    let_die(journal, clock, "x", "f", reason="HTTP 410")
    let_die(journal, clock, "y", "g")
    first = records.dead_letters("x", 2, "HTTP 404")
    second = records.dead_letters("x", 9, "HTTP 404", before=first[-1].event.key)
    assert [[each.event.id for each in page] for page in (first, second)] == [["e", "d"], ["c", "b", "a"]]
    assert [each.event.id for each in records.dead_letters("x", 9, "HTTP 410")] == ["f"]
    assert [each.event.id for each in records.dead_letters("x", 3, before=6)] == ["e", "d", "c"]
    assert [each.event.id for each in records.dead_letters(None, 3, "HTTP 404")] == ["g", "e", "d"]
    assert records.dead_letters("x", 9, "unknown") == []


@pytest.mark.parametrize(
    ("reason", "chosen", "limit", "changed"),
    [
        ("HTTP 404", None, None, ["a", "c", "e"]),
        ("HTTP 404", None, 2, ["a", "c"]),
        ("HTTP 404", ["b", "c"], None, ["c"]),
        ("unknown", None, None, []),
        (None, None, 4, ["a", "b", "c", "d"]),
        (None, None, 0, []),
    ],
)
@pytest.mark.parametrize("action", ["retry", "delete"])
def test_dead_letters_are_retried_and_deleted_by_reason_and_up_to_a_number(
    action: str,
    reason: str | None,
    chosen: list[str] | None,
    limit: int | None,
    changed: list[str],
    journal: Journal,
    records: Records,
    clock: Clock,
) -> None:
    for number, event_id in enumerate("abcde"):
        let_die(journal, clock, "x", event_id, reason="HTTP 410" if number % 2 else "HTTP 404")
    let_die(journal, clock, "y", "f")
    call = records.retry_dead_letters if action == "retry" else records.delete_dead_letters
    assert call("x", chosen, reason, limit) == len(changed)
    left = {letter.event.id for letter in records.dead_letters("x", 10)}
    assert left == set("abcde") - set(changed)
    assert event_ids(claim(journal, "x")) == (changed if action == "retry" else [])
    assert [letter.event.id for letter in records.dead_letters("y", 10)] == ["f"]


def test_a_long_reason_is_stored_in_part_and_names_its_group(journal: Journal, records: Records, clock: Clock) -> None:
    reason = "".join(chr(0x10000 + 977 * n) for n in range(1000))  # of the longest characters, and hard to compress
    let_die(journal, clock, "x", "a", "b", reason=reason)
    (group,) = records.dead_letter_groups(None, 10)
    assert (group.reason, group.count) == (reason[:600], 2)
    assert len(records.dead_letters("x", 10, group.reason)) == 2
    assert records.delete_dead_letters("x", None, group.reason) == 2


@pytest.mark.parametrize("sink", ["s", "unknown"])
def test_only_dead_deliveries_are_retried_or_deleted(sink: str, journal: Journal, records: Records) -> None:
    route_events(journal, "s", "delivered")
    settle(journal, claim(journal, "s"), Result.DELIVERED)
    route_events(journal, "s", "claimed")
    claimed = claim(journal, "s")
    route_events(journal, "s", "pending")
    before = journal.counts()
    assert (records.retry_dead_letters(sink, None), records.delete_dead_letters(sink, None)) == (0, 0)
    assert (journal.counts(), event_ids(claim(journal, "s"))) == (before, ["pending"])
    settle(journal, claimed, Result.DEAD)
    assert delivery_counts(journal, "s") == (1, 1, 1)


def test_quarantined_pushes_are_listed_newest_first_with_body_and_reason(journal: Journal, records: Records) -> None:
    quarantine(journal, "aa", "ab", "b%")
    pushes = [
        QuarantinedPush("b%", 1002.0, "reason 2", body("b%")),
        QuarantinedPush("ab", 1001.0, "reason 1", body("ab")),
        QuarantinedPush("aa", 1000.0, "reason 0", body("aa")),
    ]
    assert records.quarantined(10) == pushes
    assert records.quarantined(2) == pushes[:2]
    assert records.quarantined(2, before=(1002.0, "b%")) == pushes[1:]
    assert records.quarantined(2, before=(1001.0, "ac")) == pushes[1:]
    assert records.quarantined(2, before=(1000.0, "aa")) == []


@pytest.mark.parametrize(
    ("prefix", "found"), [("a", ["aa", "ab"]), ("aa", ["aa"]), ("", ["aa", "ab", "b%"]), ("%", []), ("b%", ["b%"])]
)
def test_quarantined_pushes_are_found_by_the_begin_of_their_id(
    prefix: str, found: list[str], journal: Journal, records: Records
) -> None:
    quarantine(journal, "aa", "ab", "b%")
    assert sorted(push.id for push in records.find_quarantined(prefix)) == found


def test_a_released_push_becomes_an_event_that_is_not_routed_yet(journal: Journal, records: Records) -> None:
    quarantine(journal, "5f" * 32)
    (push,) = records.quarantined(10)
    records.release(push, "a")
    assert unrouted_and_quarantined(journal) == (1, 0)
    (event,) = journal.unrouted(10)
    assert event == StoredEvent(event.key, "a", push.body, push.received_at)


def test_a_push_whose_event_is_known_leaves_quarantine_and_changes_nothing(journal: Journal, records: Records) -> None:
    route_events(journal, "s", "a")
    quarantine(journal, "5f" * 32)
    (push,) = records.quarantined(10)
    records.release(push, "a")
    assert unrouted_and_quarantined(journal) == (0, 0)
    assert [delivery.event.body for delivery in claim(journal, "s")] == [body("a")]


def test_received_returns_routed_events_of_a_period_in_the_order_of_keys(journal: Journal, records: Records) -> None:
    for number, event_id in enumerate("abcd"):
        route_events(journal, "s", event_id, received_at=1000.0 + number)
    accept(journal, "unrouted", received_at=1001.0)
    found = records.received(1001.0, 1003.0, 0, 10)
    assert event_ids(found) == ["b", "c"]
    assert [(event.body, event.received_at) for event in found] == [(body("b"), 1001.0), (body("c"), 1002.0)]
    assert event_ids(records.received(0.0, 5000.0, 0, 3)) == ["a", "b", "c"]
    assert event_ids(records.received(found[-1].received_at, 5000.0, found[-1].key, 10)) == ["d"]
    assert (records.count_received(1001.0, 1003.0), records.count_received(0.0, 5000.0)) == (2, 4)
    assert records.count_received(5000.0, 6000.0) == 0


@pytest.mark.parametrize(
    ("results", "requeued"),
    [
        pytest.param([Result.DELIVERED], 1, id="delivered"),
        pytest.param([Result.DEAD], 1, id="dead"),
        pytest.param([], 0, id="pending"),
    ],
)
def test_a_requeued_event_is_pending_unless_it_was_already(
    results: list[Result], requeued: int, journal: Journal, records: Records
) -> None:
    (event,) = route_events(journal, "s", "a")
    for result in results:
        settle(journal, claim(journal, "s"), result)
    assert records.requeue("s", [event]) == requeued
    (delivery,) = claim(journal, "s")
    assert (delivery.event, delivery.attempt, delivery.failures, delivery.age) == (event, 1, 0, 0.0)


def test_an_event_can_be_requeued_for_a_sink_that_never_had_it(journal: Journal, records: Records) -> None:
    (event,) = route_events(journal, "s", "a")
    assert records.requeue("new", [event]) == 1
    assert event_ids(claim(journal, "new")) == event_ids(claim(journal, "s")) == ["a"]


def test_requeueing_does_not_end_a_claim(journal: Journal, records: Records) -> None:
    (event,) = route_events(journal, "s", "a")
    claimed = claim(journal, "s")
    assert records.requeue("s", [event]) == 0
    assert claim(journal, "s") == []
    settle(journal, claimed, Result.DELIVERED)
    assert delivery_counts(journal, "s") == (1, 0, 0)


def test_an_event_that_retention_removed_is_not_requeued(journal: Journal, records: Records) -> None:
    removed, *_ = route_events(journal, "s", "removed", "later")
    settle(journal, claim(journal, "s", limit=1), Result.DELIVERED)
    journal.remove_expired(2000.0, 10)
    assert (records.requeue("s", [removed]), records.requeue("s", [])) == (0, 0)
    assert event_ids(claim(journal, "s")) == ["later"]


def test_the_history_of_an_event_has_its_delivery_at_each_sink(
    journal: Journal, records: Records, clock: Clock
) -> None:
    accept(journal, "a")
    assert records.history("unknown") is None
    (event,) = journal.unrouted(10)
    assert records.history("a") == EventHistory(event, routed=False, deliveries=())
    journal.route([(event, ["pending", "failed", "dead", "delivered"])])
    routed_at = clock.now
    clock.advance(5)
    settle(journal, claim(journal, "failed"), Result.FAILED, clock.now + 30, reason="HTTP 500")
    settle(journal, claim(journal, "dead"), Result.DEAD, reason="HTTP 410")
    settle(journal, claim(journal, "delivered"), Result.DELIVERED, reason="")
    assert records.history("a") == EventHistory(
        event,
        routed=True,
        deliveries=(
            DeliveryState("dead", "dead", 1, clock.now, "HTTP 410", None),
            DeliveryState("delivered", "delivered", 1, clock.now, "", None),
            DeliveryState("failed", "pending", 1, clock.now, "HTTP 500", clock.now + 30),
            DeliveryState("pending", "pending", 0, None, None, routed_at),
        ),
    )


def test_events_that_mention_a_text_are_found_among_the_newest(journal: Journal, records: Records) -> None:
    accept(journal, *"abcdefgh")
    texts = [body(each) for each in "bdg"]

    def found(before: int | None, limit: int, most_read: int) -> tuple[list[str], int | None]:
        histories, following = records.mentioning(texts, 1001.0, before, limit, most_read)
        return [history.event.id for history in histories], following

    assert found(None, 9, 99) == (["g", "d", "b"], None)
    assert found(None, 2, 99) == (["g", "d"], 4)
    assert found(4, 2, 99) == (["b"], None)
    assert found(None, 9, 3) == (["g"], 6)
    assert found(6, 9, 3) == (["d"], 3)
    assert found(3, 9, 3) == (["b"], None)
    assert records.mentioning(texts, 999.0, None, 9, 99) == ([], None)


def test_the_newest_events_come_first_with_their_deliveries(journal: Journal, records: Records) -> None:
    for number, event_id in enumerate("abcd"):
        route_events(journal, "x", event_id, received_at=1000.0 + number)
    settle(journal, claim(journal, "x", 2), Result.DELIVERED)
    settle(journal, claim(journal, "x", 1), Result.DEAD)
    accept(journal, "not routed", received_at=1004.0)

    def newest(until: float = 2000.0, state: str | None = None, before: int | None = None, limit: int = 10) -> object:
        found = records.newest(until, state, before, limit)
        assert all(records.history(history.event.id) == history for history in found)
        return [(history.event.id, [each.state for each in history.deliveries]) for history in found]

    a, b, c, d = ("a", ["delivered"]), ("b", ["delivered"]), ("c", ["dead"]), ("d", ["pending"])
    assert newest() == [("not routed", []), d, c, b, a]
    assert newest(until=1003.0) == [c, b, a]
    assert newest(state="pending") == [d]
    assert newest(state="dead") == [c]
    assert newest(state="delivered", limit=1) == [b]
    (first,) = records.newest(1001.0, None, None, 10)
    assert newest(before=first.event.key + 2) == [b, a]


def test_resuming_a_sink_ends_its_pause_now_and_changes_nothing_else(
    journal: Journal, records: Records, clock: Clock
) -> None:
    for sink in ("s", "other"):
        journal.save_sink_state(SinkState(sink, 3, clock.now + 600, "HTTP 401"))
    records.resume("s")
    records.resume("unknown")
    expected = {
        "s": SinkState("s", 3, clock.now, "HTTP 401"),
        "other": SinkState("other", 3, clock.now + 600, "HTTP 401"),
    }
    assert records.sink_states() == journal.sink_states() == expected


def test_a_removed_sink_is_gone_with_its_deliveries_and_leaves_other_sinks_alone(
    journal: Journal, records: Records, clock: Clock
) -> None:
    let_die(journal, clock, "s", "dead")
    route_events(journal, "s", "delivered")
    settle(journal, claim(journal, "s"), Result.DELIVERED)
    route_events(journal, "s", "pending")
    route_events(journal, "other", "a")
    journal.save_sink_state(SinkState("s", 1, 5.0, "HTTP 401"))
    journal.set_enabled_sinks(["s", "other"])
    assert records.remove_sink("s") == 2
    assert (set(records.sink_states()), set(journal.counts().sinks)) == ({"other"}, {"other"})
    assert journal.enabled_sinks() == {"other"}
    assert (records.remove_sink("s"), records.remove_sink("unknown")) == (0, 0)
    assert claim(journal, "s") == []
    journal.set_enabled_sinks(["s", "other"])
    assert journal.counts().sinks["s"] == SinkCounts()
    assert event_ids(claim(journal, "other")) == ["a"]


def test_a_sink_with_many_deliveries_is_removed_in_parts(
    store: Store, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_module, "REMOVED", 3)
    journal.add_enabled_sinks(["s", "other"])
    accept(journal, *(f"{number:02}" for number in range(20)))
    stored = journal.unrouted(100)
    journal.route([(event, ["s", "other"]) for event in stored])
    settle(journal, claim(journal, "s", limit=7), Result.DELIVERED)
    settle(journal, claim(journal, "s", limit=5), Result.DEAD)
    records = store.records()
    store.before_next_write = lambda: setattr(store, "before_next_write", lambda: records.requeue("s", stored[:1]))
    assert records.remove_sink("s") == 14
    assert set(journal.counts().sinks) == {"other"}
    assert len(claim(journal, "other")) == 20
    journal.set_enabled_sinks(["s", "other"])
    assert journal.counts().sinks["s"] == SinkCounts()


def test_results_for_a_sink_that_was_removed_meanwhile_change_nothing(journal: Journal, records: Records) -> None:
    route_events(journal, "s", "a", "b")
    first, second = claim(journal, "s")
    assert records.remove_sink("s") == 2
    journal.extend([first, second], 60.0)
    settle(journal, [first], Result.DELIVERED)
    settle(journal, [second], Result.FAILED)
    assert journal.counts().sinks["s"] == SinkCounts()
    assert claim(journal, "s") == []


def everything(records: Records) -> object:
    return (
        records.counts(),
        records.sink_states(),
        records.dead_letters(None, 10),
        records.quarantined(10),
        records.received(0.0, 5000.0, 0, 10),
        [records.history(event_id) for event_id in ("dead", "delivered", "released")],
    )


WRITES: dict[str, Callable[[Records], object]] = {
    "retry_dead_letters": lambda records: records.retry_dead_letters("s", None),
    "delete_dead_letters": lambda records: records.delete_dead_letters("s", None),
    "release": lambda records: records.release(records.quarantined(1)[0], "released"),
    "requeue": lambda records: records.requeue("s", records.received(0.0, 5000.0, 0, 10)),
    "requeue for a new sink": lambda records: records.requeue("new", records.received(0.0, 5000.0, 0, 10)),
    "resume": lambda records: records.resume("s"),
    "remove_sink": lambda records: records.remove_sink("s"),
}


@pytest.mark.parametrize("call", WRITES)
def test_a_call_whose_commit_fails_does_nothing_and_works_when_it_is_repeated(call: str, store: Store) -> None:
    journal, records = store.open(), store.records()
    let_die(journal, store.clock, "s", "dead")
    route_events(journal, "s", "delivered")
    settle(journal, claim(journal, "s"), Result.DELIVERED)
    quarantine(journal, "5f" * 32)
    journal.save_sink_state(SinkState("s", 1, 5.0, "HTTP 401"))

    before = everything(records)
    store.disk_full = True
    with pytest.raises(JournalUnavailable):
        WRITES[call](records)
    assert everything(records) == before
    store.disk_full = False
    WRITES[call](records)
    assert everything(records) != before
