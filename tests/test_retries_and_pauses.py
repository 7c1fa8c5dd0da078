"""Retries and pauses of one sink, step by step on a clock that the test sets."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.delivery import BatchSink, LoopTester, SingleSink, always, first, only_for

from receiver.errors import GiveUp, Pause, Retry, SinkSignal
from receiver.event import Event
from receiver.hookspecs import hookimpl
from receiver.journal import SinkState


def test_a_retry_after_some_seconds_is_due_exactly_then(loop_tester: LoopTester) -> None:
    loop = loop_tester.loop(sink := SingleSink(first(Retry(after=42.5))))
    loop_tester.add_deliveries("a")
    loop.step()
    assert (loop_tester.counts(), loop_tester.seconds_until_due()) == ((0, 1, 0), 42.5)
    loop_tester.clock.advance(42)
    loop.step()
    assert sink.calls == [("a", 1)]
    loop_tester.clock.advance(0.5)
    loop.step()
    assert sink.calls == [("a", 1), ("a", 2)]
    assert loop_tester.counts() == (1, 0, 0)


def test_failures_back_off_up_to_max_backoff_and_are_counted(loop_tester: LoopTester) -> None:
    policy = {"initial_backoff": 8.0, "max_backoff": 20.0}
    loop = loop_tester.loop(sink := SingleSink(always(OSError("gone"))), retry=policy)
    loop_tester.add_deliveries("a")
    waits = []
    for _ in range(4):
        loop.step()
        waits.append(loop_tester.seconds_until_due())
        loop_tester.clock.advance(waits[-1] or 0.0)
    assert waits == [4.0, 8.0, 10.0, 10.0]
    assert sink.calls == [("a", 1), ("a", 2), ("a", 3), ("a", 4)]
    assert loop_tester.due_now() == [("a", 5, 4)]


def test_max_attempts_failures_make_a_dead_letter(loop_tester: LoopTester) -> None:
    loop = loop_tester.loop(sink := SingleSink(always(Retry("no", after=1.0))), retry={"max_attempts": 3})
    loop_tester.add_deliveries("a")
    for _ in range(5):
        loop.step()
        loop_tester.clock.advance(1)
    assert sink.calls == [("a", 1), ("a", 2), ("a", 3)]
    assert (loop_tester.counts(), loop_tester.seconds_until_due()) == ((0, 0, 1), None)


def test_a_failure_after_max_age_makes_a_dead_letter(loop_tester: LoopTester) -> None:
    loop = loop_tester.loop(sink := SingleSink(always(Retry("no", after=60.0))), retry={"max_age": "2m"})
    loop_tester.add_deliveries("a")
    loop_tester.clock.advance(1_000_000)
    for _ in range(10):
        loop.step()
        loop_tester.clock.advance(60)
    assert sink.calls == [("a", 1), ("a", 2), ("a", 3), ("a", 4)]
    assert loop_tester.counts() == (0, 0, 1)


def test_a_success_after_max_age_is_delivered(loop_tester: LoopTester) -> None:
    loop = loop_tester.loop(SingleSink(first(Retry("no", after=10_000.0))), retry={"max_age": "2m"})
    loop_tester.add_deliveries("a")
    loop.step()
    loop_tester.clock.advance(10_000)
    loop.step()
    assert loop_tester.counts() == (1, 0, 0)


def test_a_probe_that_fails_after_max_age_or_max_attempts_makes_no_dead_letter(loop_tester: LoopTester) -> None:
    policy = {"max_age": "2m", "max_attempts": 2}
    loop = loop_tester.loop(sink := SingleSink(always(Retry("no", after=10.0))), retry=policy)
    loop_tester.add_deliveries("a")
    loop.step()
    loop_tester.clock.advance(200)
    loop.breaker.pause("HTTP 500", after=10.0)
    loop_tester.clock.advance(10)
    loop.step()
    assert (sink.calls, loop_tester.counts()) == ([("a", 1), ("a", 2)], (0, 1, 0))


@pytest.mark.parametrize(
    ("signal", "reason"),
    [
        (Retry(after=1.0), "the sink asked for a retry"),
        (Retry("HTTP 503", 1.0), "HTTP 503"),
        (Pause("HTTP 429", 1.0), "HTTP 429"),
        (GiveUp("HTTP 410"), "HTTP 410"),
    ],
    ids=str,
)
def test_the_reason_that_a_sink_gives_is_recorded(signal: SinkSignal, reason: str, loop_tester: LoopTester) -> None:
    loop = loop_tester.loop(SingleSink(always(signal)))
    loop_tester.add_deliveries("a")
    loop.step()
    loop.step()
    assert loop_tester.journal.counts().sinks["s"].last_failure_reason == reason


def test_the_attribute_after_of_another_exception_is_ignored(loop_tester: LoopTester) -> None:
    class RateLimited(Exception):
        after = "Thu, 01 Jan 2099 00:00:00 GMT"

    loop = loop_tester.loop(SingleSink(only_for("a", RateLimited("slow down"))))
    loop_tester.add_deliveries("a", "b")
    loop.step()
    assert (loop_tester.counts(), loop_tester.seconds_until_due()) == ((1, 1, 0), 2.5)


@pytest.mark.parametrize("signal", [Retry, Pause])
@pytest.mark.parametrize("after", ["60", "soon", float("nan"), float("inf")], ids=str)
def test_an_invalid_wait_neither_stops_the_sink_nor_loses_the_event(
    signal: type[Retry] | type[Pause], after: Any, loop_tester: LoopTester
) -> None:
    def behave(event: Event, attempt: int) -> None:
        if attempt == 1:
            raise signal("slow down", after=after)

    loop = loop_tester.loop(SingleSink(behave))
    loop_tester.add_deliveries("a")
    for _ in range(4):
        loop.step()
        loop_tester.clock.advance(100 * 86400)
    assert loop_tester.counts() == (1, 0, 0)


def test_pause_postpones_its_event_releases_the_others_and_counts_no_failure(loop_tester: LoopTester) -> None:
    loop = loop_tester.loop(sink := SingleSink(first(None, Pause("429", after=30.0))), retry={"max_attempts": 1})
    loop_tester.add_deliveries(*"abcd")
    loop.step()
    assert (sink.event_ids, loop_tester.counts(), loop.step()) == (["a", "b"], (1, 3, 0), 30.0)
    assert loop_tester.journal.sink_states() == {"s": SinkState("s", 1, loop_tester.clock.now + 30, "429")}
    loop_tester.clock.advance(30)
    assert loop_tester.due_now() == [("b", 2, 0), ("c", 1, 0), ("d", 1, 0)]


def test_a_sink_that_asks_for_pauses_without_length_is_not_called_in_a_busy_loop(loop_tester: LoopTester) -> None:
    loop = loop_tester.loop(sink := SingleSink(always(Pause("Retry-After: 0", after=0.0))))
    loop_tester.add_deliveries("a")
    for _ in range(100):
        loop.step()
    assert sink.calls == [("a", 1)]


def test_a_paused_sink_is_not_called_and_then_probed_with_one_delivery(loop_tester: LoopTester) -> None:
    state = SinkState("s", 1, loop_tester.clock.now + 10, "HTTP 500")
    loop = loop_tester.loop(sink := SingleSink(), state)
    loop_tester.add_deliveries("a", "b", "c")
    assert loop.step() == 10.0
    assert sink.calls == []
    loop_tester.clock.advance(10)
    assert loop.step() == 0.0
    assert sink.event_ids == ["a"]
    loop.step()
    assert sink.event_ids == ["a", "b", "c"]
    assert loop_tester.journal.sink_states() == {"s": SinkState("s")}


@pytest.mark.parametrize("batch", [False, True], ids=["deliver", "deliver_batch"])
@pytest.mark.parametrize("error", [Pause("401"), Retry("503"), OSError("gone")], ids=["pause", "retry", "error"])
def test_every_attempt_is_a_success_or_a_failure_of_the_sink(
    error: Exception, batch: bool, loop_tester: LoopTester
) -> None:
    behave = first(None, *[error] * 3)
    loop = loop_tester.loop(BatchSink(behave) if batch else SingleSink(behave))
    loop_tester.add_deliveries("a", "b", "c")
    for _ in range(10):
        loop.step()
        of_sink = loop_tester.journal.counts().sinks["s"]
        assert of_sink.attempts == of_sink.delivered + of_sink.failures
        loop_tester.clock.advance(7200)
    assert (of_sink.delivered, loop_tester.counts()) == (3, (3, 0, 0))
    assert of_sink.failures >= 2


def test_a_probe_that_fails_counts_no_failure_and_pauses_the_sink_for_longer(loop_tester: LoopTester) -> None:
    state = SinkState("s", 1, loop_tester.clock.now, "HTTP 500")
    loop = loop_tester.loop(sink := SingleSink(always(OSError("gone"))), state, retry={"max_attempts": 1})
    loop_tester.add_deliveries("a", "b")
    loop.step()
    assert (sink.event_ids, loop.step(), loop_tester.counts()) == (["a"], 20.0, (0, 2, 0))
    loop_tester.clock.advance(1000)
    assert sorted(loop_tester.due_now()) == [("a", 2, 0), ("b", 1, 0)]


def test_only_the_first_thread_probes_a_sink(loop_tester: LoopTester) -> None:
    loop = loop_tester.loop(sink := SingleSink(), SinkState("s", 1, loop_tester.clock.now, "HTTP 500"), concurrency=2)
    second = loop_tester.second_thread(loop)
    loop_tester.add_deliveries("a", "b")
    second.step()
    assert sink.calls == []
    loop.step()
    second.step()
    assert sink.event_ids == ["a", "b"]


def test_an_idle_sink_that_is_due_for_a_probe_does_not_write_to_the_disk(loop_tester: LoopTester) -> None:
    loop = loop_tester.loop(SingleSink(), SinkState("s", 1, loop_tester.clock.now, "HTTP 500"))
    loop.step()
    log_file = loop_tester.store.path.with_name(loop_tester.store.path.name + "-wal")
    before = log_file.read_bytes()
    for _ in range(10):
        loop.step()
    assert log_file.read_bytes() == before


@pytest.mark.parametrize(("kind", "attempt"), [(SingleSink, 1), (BatchSink, 2)], ids=["single", "batches"])
def test_five_consecutive_failures_pause_the_sink_and_release_the_other_events(
    kind: type[SingleSink] | type[BatchSink], attempt: int, loop_tester: LoopTester
) -> None:
    loop = loop_tester.loop(sink := kind(always(OSError("gone"))))
    loop_tester.add_deliveries(*"abcdefgh")
    loop.step()
    single_calls = [call for call in sink.calls if len(call) == 1 or kind is SingleSink]
    assert ([call[0] for call in single_calls], loop_tester.counts()) == (list("abcde"), (0, 8, 0))
    assert loop.step() == 10.0
    assert loop_tester.due_now() == [(event_id, attempt, 0) for event_id in "fgh"]
    loop_tester.clock.advance(10)
    assert loop_tester.due_now() == [(event_id, 2, 1) for event_id in "abcde"]


def test_one_poison_event_does_not_block_a_sink_with_few_events(loop_tester: LoopTester) -> None:
    """Alone, it fails often enough to pause the sink; events that are received during the pauses are delivered."""
    loop = loop_tester.loop(sink := SingleSink(only_for("poison", ValueError("poison"))))
    loop_tester.add_deliveries("poison")
    to_receive = [f"good{number}" for number in range(10)]
    next_received_at = loop_tester.clock.now + 900
    end = loop_tester.clock.now + 43200
    while loop_tester.clock.now < end:
        wait = loop.step()
        if to_receive and loop_tester.clock.now >= next_received_at:
            loop_tester.add_deliveries(to_receive.pop(0))
            next_received_at += 900
        loop_tester.clock.advance(min(wait or 0.01, 300.0))
    assert to_receive == []
    assert sorted(set(sink.event_ids) - {"poison"}) == sorted(f"good{number}" for number in range(10))


def test_a_sink_whose_open_raises_is_paused_and_opened_again_at_the_end_of_the_pause(loop_tester: LoopTester) -> None:
    class LateSink(SingleSink):
        @hookimpl
        def open(self, name: str) -> None:
            self.opened_and_closed.append("open")
            if len(self.opened_and_closed) < 3:
                raise OSError("not there yet")

    loop = loop_tester.loop(sink := LateSink())
    loop_tester.add_deliveries("a")
    waits = [loop.step()]
    reason = loop_tester.journal.sink_states()["s"].pause_reason
    assert re.sub(r":\d+:", ":LINE:", reason) == (
        "open failed: test_retries_and_pauses.py:LINE: OSError: not there yet"
    )
    loop_tester.clock.advance(waits[-1])
    waits.append(loop.step())
    loop_tester.clock.advance(waits[-1])
    loop.step()
    assert (waits, sink.opened_and_closed, sink.calls) == ([10.0, 20.0], ["open"] * 3, [("a", 1)])
    assert loop_tester.counts() == (1, 0, 0)
