"""The journal and its records as one state machine: intake, a dispatcher that crashes, and operators, in any order."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.journals import DAY, PostgresqlStore, SqliteStore, SqlStore

from receiver.journal import (
    Arrival,
    Delivery,
    EventHistory,
    Journal,
    Outcome,
    Records,
    Result,
    Settlement,
    SinkCounts,
    SinkState,
    StoredEvent,
)

SINKS = {"all": range(12), "even": range(0, 12, 2), "few": (1, 2, 3)}
"""The events that pass the filter of each sink."""

NUMBERS = st.integers(0, 11)
NAMES = st.sampled_from(sorted(SINKS))
RESULTS = st.lists(st.sampled_from(Result), min_size=1)
WAITS = st.sampled_from([0.0, 5.0, 500.0])


@dataclass
class Expected:
    """What the test expects of one delivery; `key` is that of its event."""

    due: float
    key: int
    state: str = "pending"
    claimed: bool = False
    attempts: int = 0
    failures: int = 0


class AnyOrder(RuleBasedStateMachine):
    """Each event is exactly one of pending, delivered and dead at each sink whose filter it passes, unless an operator
    deleted that delivery."""

    store_type: type[SqlStore] = SqliteStore

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = self.store_type(Path(self.folder.name))
        self.journal: Journal = self.store.open(holder="here")
        self.records: Records = self.store.records()
        assert self.journal.start_dispatching() == []
        self.accepted: list[int] = []
        self.routed: dict[int, StoredEvent] = {}
        self.expected: dict[tuple[int, str], Expected] = {}
        self.deleted: set[tuple[int, str]] = set()
        self.claims: list[Delivery] = []
        """All that there ever were."""
        self.delivered = dict.fromkeys(SINKS, 0)

    @property
    def now(self) -> float:
        return self.store.clock.now

    def of(self, sink: str, state: str) -> dict[int, Expected]:
        found = self.expected.items()
        return {number: delivery for (number, name), delivery in found if (name, delivery.state) == (sink, state)}

    def has_dead_letters(self) -> bool:
        return any(delivery.state == "dead" for delivery in self.expected.values())

    def expect_new(self, number: int, sink: str) -> None:
        """Expect a delivery that is pending and was never attempted."""
        self.expected[number, sink] = Expected(self.now, self.routed[number].key)
        self.deleted.discard((number, sink))

    def expect_deleted(self, deleted: Iterable[tuple[int, str]]) -> None:
        for each in list(deleted):
            del self.expected[each]
            self.deleted.add(each)

    @initialize(
        numbers=st.lists(NUMBERS, min_size=4, unique=True), results=st.lists(st.sampled_from(Result), min_size=4)
    )
    def begin_with_deliveries(self, numbers: list[int], results: list[Result]) -> None:
        for number in numbers:
            self.accept(number)
        self.route(len(numbers))
        for sink in SINKS:
            self.claim_and_settle(sink, results, 0.0)

    @rule(number=NUMBERS)
    def accept(self, number: int) -> None:
        outcomes = self.journal.accept([Arrival(f"e{number}", b"%d" % number, 1000.0 + number)])
        assert outcomes == [Outcome.DUPLICATE if number in self.accepted else Outcome.ACCEPTED]
        if number not in self.accepted:
            self.accepted.append(number)

    @rule(limit=st.integers(1, 4))
    def route(self, limit: int) -> None:
        new = self.journal.unrouted(limit)
        numbers = [int(event.body) for event in new]
        assert numbers == [number for number in self.accepted if number not in self.routed][:limit]
        if new:
            self.journal.route([(event, sinks_of(int(event.body))) for event in new])
        for event, number in zip(new, numbers, strict=True):
            self.routed[number] = event
            for sink in sinks_of(number):
                self.expect_new(number, sink)

    @precondition(lambda self: self.routed)
    @rule(data=st.data())
    def route_again(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.routed)))
        self.journal.route([(self.routed[number], sinks_of(number))])
        for sink in sinks_of(number):
            if (number, sink) not in self.expected:
                self.expect_new(number, sink)

    @rule(sink=NAMES, limit=st.integers(1, 5), seconds=st.sampled_from([1.0, 60.0]))
    def claim(self, sink: str, limit: int, seconds: float) -> None:
        self.claim_and_check(sink, limit, seconds)

    def claim_and_check(self, sink: str, limit: int, seconds: float) -> list[Delivery]:
        due = [
            (delivery.due, delivery.key, number)
            for number, delivery in self.of(sink, "pending").items()
            if delivery.due <= self.now
        ]
        claimed = self.journal.claim(sink, limit, seconds)
        assert sorted(number_of(each) for each in claimed) == sorted(due[2] for due in sorted(due)[:limit])
        for each in claimed:
            delivery = self.expected[number_of(each), sink]
            delivery.due, delivery.claimed, delivery.attempts = self.now + seconds, True, delivery.attempts + 1
            self.claims.append(each)
            assert (each.attempt, each.failures) == (delivery.attempts, delivery.failures)
        return claimed

    @rule(sink=NAMES, results=RESULTS, wait=WAITS)
    def claim_and_settle(self, sink: str, results: list[Result], wait: float) -> None:
        """Settle claims with different results in one call; those without a result stay claimed."""
        due = self.now + wait
        claimed = self.claim_and_check(sink, len(SINKS["all"]), 60.0)
        settlements = [
            Settlement(each, result, due, "HTTP 500") for each, result in zip(claimed, results, strict=False)
        ]
        self.journal.settle(settlements)
        for each in settlements:
            self.expect_settled(each)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), result=st.sampled_from(Result), wait=WAITS)
    def settle_a_claim(self, data: st.DataObject, result: Result, wait: float) -> None:
        """Settle a claim: it is still held, has ended, was settled before, or an operator acted meanwhile."""
        claimed = data.draw(st.sampled_from(self.claims[::-1]))
        settlement = Settlement(claimed, result, self.now + wait, "HTTP 500")
        self.journal.settle([settlement])
        self.expect_settled(settlement)

    def expect_settled(self, settlement: Settlement) -> None:
        """Expect the result, if it is from the holder of the claim or *delivered*."""
        result, sink = settlement.result, settlement.delivery.sink
        delivery = self.expected.get((number_of(settlement.delivery), sink))
        if delivery is None or delivery.state != "pending":
            return
        held = delivery.claimed and delivery.attempts == settlement.delivery.attempt
        if not held and result is not Result.DELIVERED:
            return
        delivery.claimed = False
        if result in (Result.DELIVERED, Result.DEAD):
            delivery.state = result.value
            self.delivered[sink] += result is Result.DELIVERED
        else:
            delivery.due = self.now if result is Result.RELEASED else settlement.due
            delivery.attempts -= result is Result.RELEASED
            delivery.failures += result is Result.FAILED

    @rule(seconds=st.sampled_from([0.5, 5.0, 61.0]))
    def advance_the_clock(self, seconds: float) -> None:
        self.store.clock.advance(seconds)

    @rule(sink=NAMES, pauses=st.integers(0, 2))
    def pause_or_resume(self, sink: str, pauses: int) -> None:
        state = SinkState(sink, pauses, self.now + 10.0 * pauses, "HTTP 503" if pauses else "")
        self.journal.save_sink_state(state)
        assert self.journal.sink_states()[sink] == self.records.sink_states()[sink] == state

    @rule()
    def crash_and_restart(self) -> None:
        self.store.close(self.journal)
        self.journal = self.store.open(holder="here")
        claimed = {key: each for key, each in self.expected.items() if each.state == "pending" and each.claimed}
        assert sorted(self.journal.start_dispatching()) == sorted({sink for _, sink in claimed})
        for delivery in claimed.values():
            delivery.claimed, delivery.due = False, self.now

    @precondition(lambda self: self.has_dead_letters())
    @rule(sink=NAMES, number=st.none() | NUMBERS)
    def retry_dead_letters(self, sink: str, number: int | None) -> None:
        dead = [each for each in self.of(sink, "dead") if number in (None, each)]
        assert self.records.retry_dead_letters(sink, None if number is None else [f"e{number}"]) == len(dead)
        for each in dead:
            self.expect_new(each, sink)

    @precondition(lambda self: self.has_dead_letters())
    @rule(sink=NAMES, number=st.none() | NUMBERS)
    def delete_dead_letters(self, sink: str, number: int | None) -> None:
        dead = [each for each in self.of(sink, "dead") if number in (None, each)]
        assert self.records.delete_dead_letters(sink, None if number is None else [f"e{number}"]) == len(dead)
        self.expect_deleted((each, sink) for each in dead)

    @rule(sink=NAMES, since=NUMBERS, until=st.integers(0, 12))
    def replay(self, sink: str, since: int, until: int) -> None:
        found = self.records.received(1000.0 + since, 1000.0 + until, 0, 100)
        assert {int(event.body) for event in found} == {number for number in self.routed if since <= number < until}
        matching = [event for event in found if int(event.body) in SINKS[sink]]
        settled = [int(event.body) for event in matching if int(event.body) not in self.of(sink, "pending")]
        assert self.records.requeue(sink, matching) == len(settled)
        for number in settled:
            self.expect_new(number, sink)

    @rule(sink=NAMES)
    def remove_sink(self, sink: str) -> None:
        undelivered = len(self.of(sink, "pending")) + len(self.of(sink, "dead"))
        assert self.records.remove_sink(sink) == undelivered
        self.expect_deleted(each for each in self.expected if each[1] == sink)
        self.delivered[sink] = 0

    @invariant()
    def every_delivery_is_in_exactly_one_state(self) -> None:
        counts = self.journal.counts()
        letters = self.records.dead_letters(None, 100)
        assert counts.unrouted == len(self.accepted) - len(self.routed)
        for sink in SINKS:
            seen = counts.sinks.get(sink, SinkCounts())
            assert (seen.delivered, seen.pending, seen.dead) == (
                self.delivered[sink],
                len(self.of(sink, "pending")),
                len(self.of(sink, "dead")),
            )
            assert seen.attempts == seen.delivered + seen.failures
            of_sink = [letter.event.id for letter in letters if letter.sink == sink]
            assert sorted(of_sink) == sorted(f"e{number}" for number in self.of(sink, "dead"))

    def teardown(self) -> None:
        """In the end nothing is lost: everything is routed, has the expected state, and all that is pending is due."""
        try:
            while len(self.routed) < len(self.accepted):
                self.route(4)
            assert self.records.counts() == self.journal.counts()
            assert set(self.expected) | self.deleted == {(n, s) for n in self.accepted for s in sinks_of(n)}
            for number in self.accepted:
                history = self.records.history(f"e{number}")
                assert isinstance(history, EventHistory)
                assert {each.sink: each.state for each in history.deliveries} == {
                    sink: delivery.state for (of, sink), delivery in self.expected.items() if of == number
                }
            self.crash_and_restart()
            self.store.clock.advance(10 * DAY)
            for sink in SINKS:
                claimed = self.journal.claim(sink, 100, 60.0)
                assert sorted(number_of(each) for each in claimed) == sorted(self.of(sink, "pending"))
        finally:
            self.store.close_all()
            self.folder.cleanup()


class AnyOrderOnPostgresql(AnyOrder):
    store_type = PostgresqlStore


def number_of(delivery: Delivery) -> int:
    return int(delivery.event.body)


def sinks_of(number: int) -> list[str]:
    """The sinks whose filter an event passes."""
    return [sink for sink, numbers in SINKS.items() if number in numbers]


TestAnyOrder = AnyOrder.TestCase
TestAnyOrderOnPostgresql = pytest.mark.usefixtures("long_time_limits")(AnyOrderOnPostgresql.TestCase)
TestAnyOrder.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestAnyOrderOnPostgresql.settings = settings(
    max_examples=6, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
