"""One thread's work for one sink, step by step: claims, calls of the sink, batches, and settling."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from conftest import TEST_SECRET
from support.delivery import BatchSink, LoopTester, SingleSink, always, first, only_for

from receiver.delivery import sink_loop
from receiver.delivery.sink_loop import SinkLoop
from receiver.errors import GiveUp, JournalUnavailable, Pause, Retry
from receiver.event import Event
from receiver.hookspecs import hookimpl
from receiver.journal import Arrival, Delivery, SinkState
from receiver.logs import TextLines
from receiver.redaction import Redactor


def test_due_deliveries_are_made_in_order_after_one_open(loop_tester: LoopTester) -> None:
    loop = loop_tester.loop(sink := SingleSink())
    loop_tester.add_deliveries("a", "b", "c")
    assert loop.step() == 0.0
    assert loop.step() > 0.0
    assert (sink.calls, sink.opened_and_closed) == ([("a", 1), ("b", 1), ("c", 1)], ["open s"])
    assert (loop_tester.counts(), loop_tester.seconds_until_due()) == ((3, 0, 0), None)


def test_a_sink_with_batches_gets_up_to_batch_size_events_in_a_call(loop_tester: LoopTester) -> None:
    loop = loop_tester.loop(sink := BatchSink(), batch_size=3)
    loop_tester.add_deliveries(*"abcdefg")
    while loop.step() == 0.0:
        continue
    assert sink.calls == [["a", "b", "c"], ["d", "e", "f"], ["g"]]
    assert loop_tester.counts() == (7, 0, 0)


@pytest.mark.parametrize("value", [None, False, 0, "", RuntimeError("not raised")], ids=repr)
def test_returning_any_value_means_delivered(value: object, loop_tester: LoopTester) -> None:
    loop = loop_tester.loop(SingleSink(lambda event, attempt: value))
    loop_tester.add_deliveries("a")
    loop.step()
    assert loop_tester.counts() == (1, 0, 0)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(SystemExit("bye"), id="sys.exit"),
        pytest.param(asyncio.CancelledError("cancelled"), id="asyncio.CancelledError"),
        pytest.param(GeneratorExit(), id="GeneratorExit"),
        pytest.param(StopIteration("stop"), id="StopIteration"),
        pytest.param(RecursionError("deep"), id="RecursionError"),
        pytest.param(MemoryError(), id="MemoryError"),
        pytest.param(ExceptionGroup("many", [OSError("one"), OSError("two")]), id="ExceptionGroup"),
        pytest.param(BaseException("base"), id="BaseException"),
        pytest.param(ValueError("lone surrogate \ud800 and NUL \x00"), id="text that no database stores"),
        pytest.param(ValueError("x" * 1_000_000), id="a megabyte of text"),
    ],
)
def test_any_exception_is_a_failure_of_its_event_alone(error: BaseException, loop_tester: LoopTester) -> None:
    loop = loop_tester.loop(sink := SingleSink(only_for("a", error)))
    loop_tester.add_deliveries("a", "b")
    loop.step()
    assert (sink.event_ids, loop_tester.counts()) == (["a", "b"], (1, 1, 0))
    loop_tester.clock.advance(5)
    assert loop_tester.due_now() == [("a", 2, 1)]


def test_an_exception_that_cannot_be_converted_to_text_is_a_failure_of_its_event_alone(loop_tester: LoopTester) -> None:
    class WithoutText(Exception):
        def __str__(self) -> str:
            raise RuntimeError("not even this")

    loop = loop_tester.loop(SingleSink(only_for("a", WithoutText())))
    loop_tester.add_deliveries("a", "b")
    loop.step()
    loop_tester.clock.advance(5)
    assert (loop_tester.counts(), loop_tester.due_now()) == ((1, 1, 0), [("a", 2, 1)])


def test_give_up_makes_a_dead_letter_at_once_and_does_not_pause_the_sink(loop_tester: LoopTester) -> None:
    loop = loop_tester.loop(sink := SingleSink(always(GiveUp("no such device"))))
    loop_tester.add_deliveries(*"abcdefgh")
    loop.step()
    assert (sink.event_ids, loop_tester.counts(), loop.breaker.paused_for()) == (list("abcdefgh"), (0, 0, 8), 0.0)


def test_an_event_that_cannot_be_decoded_any_more_is_a_dead_letter_and_the_others_are_delivered(
    loop_tester: LoopTester,
) -> None:
    loop = loop_tester.loop(sink := BatchSink())
    loop_tester.journal.accept([Arrival("undecodable", b"\xff not an event", 1000.0)])
    loop_tester.add_deliveries("a", "b")
    loop.step()
    assert (sink.calls, loop_tester.counts()) == ([["a"], ["b"]], (2, 0, 1))


class FailingBatches:
    """A sink whose batches fail, and which delivers single events."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.sizes: list[int] = []

    @hookimpl
    def deliver_batch(self, events: list[Event]) -> None:
        self.sizes.append(len(events))
        if len(events) > 1:
            raise self.error


def test_the_events_of_a_failed_batch_are_delivered_one_by_one_and_the_failure_is_logged(
    loop_tester: LoopTester, caplog: pytest.LogCaptureFixture
) -> None:
    loop = loop_tester.loop(sink := FailingBatches(RuntimeError("too much")))
    loop_tester.add_deliveries(*"abcd")
    loop.step()
    assert (sink.sizes, loop_tester.counts(), loop.breaker.failures) == ([4, 1, 1, 1, 1], (4, 0, 0), 0)
    assert caplog.messages == ["sink s failed with a batch of 4: RuntimeError: too much"]


def test_give_up_is_honoured_for_a_batch_of_one_only(loop_tester: LoopTester) -> None:
    loop = loop_tester.loop(sink := FailingBatches(GiveUp("none of them")))
    loop_tester.add_deliveries(*"abcd")
    loop.step()
    assert (sink.sizes, loop_tester.counts()) == ([4, 1, 1, 1, 1], (4, 0, 0))

    loop = loop_tester.loop(batches := BatchSink(only_for("f", GiveUp("not this one"))))
    loop_tester.add_deliveries(*"efg")
    loop.step()
    assert batches.calls == [["e", "f", "g"], ["e"], ["f"], ["g"]]
    assert loop_tester.counts() == (6, 0, 1)


def test_a_pause_of_a_batch_postpones_all_of_it_and_counts_no_failure(loop_tester: LoopTester) -> None:
    loop = loop_tester.loop(sink := FailingBatches(Pause("429", after=30.0)), retry={"max_attempts": 1})
    loop_tester.add_deliveries(*"abc")
    loop.step()
    assert (sink.sizes, loop_tester.counts(), loop.step()) == ([3], (0, 3, 0), 30.0)
    loop_tester.clock.advance(30)
    assert loop_tester.due_now() == [("a", 2, 0), ("b", 2, 0), ("c", 2, 0)]


def test_one_poison_event_in_a_batch_of_a_hundred_delays_no_other(loop_tester: LoopTester) -> None:
    event_ids = [f"n{number:02}" for number in range(100)]
    loop = loop_tester.loop(sink := BatchSink(only_for("n50", ValueError("poison"))), batch_size=100)
    loop_tester.add_deliveries(*event_ids)
    loop.step()
    assert sink.calls == [event_ids, *([event_id] for event_id in event_ids)]
    assert (loop_tester.counts(), loop.breaker.paused_for()) == ((99, 1, 0), 0.0)
    loop_tester.clock.advance(5)
    assert loop_tester.due_now() == [("n50", 2, 1)]


def test_no_thread_of_a_sink_calls_it_before_it_is_open(loop_tester: LoopTester) -> None:
    loop = loop_tester.loop(sink := SingleSink(), concurrency=2)
    second = loop_tester.second_thread(loop)
    loop_tester.add_deliveries("a", "b")
    second.step()
    assert sink.calls == []
    loop.step()
    second.step()
    assert (sink.opened_and_closed, sink.event_ids) == (["open s"], ["a", "b"])


def test_a_delivery_in_flight_is_not_called_again_even_after_its_claim_has_ended(loop_tester: LoopTester) -> None:
    def behave(event: Event, attempt: int) -> None:
        if attempt == 1:
            loop_tester.clock.advance(sink_loop.CLAIM_SECONDS + 1)
            second.step()

    loop = loop_tester.loop(sink := SingleSink(behave), concurrency=2)
    second = loop_tester.second_thread(loop)
    loop.step()
    loop_tester.add_deliveries("a")
    loop.step()
    assert (sink.calls, loop_tester.counts()) == ([("a", 1)], (1, 0, 0))


def test_a_sink_that_is_stopped_releases_the_deliveries_it_was_not_called_for(loop_tester: LoopTester) -> None:
    def behave(event: Event, attempt: int) -> None:
        loop.stopping = event.id == "b"

    loop = loop_tester.loop(sink := SingleSink(behave))
    loop_tester.add_deliveries(*"abcd")
    loop.step()
    assert (sink.event_ids, loop_tester.counts()) == (["a", "b"], (2, 2, 0))
    assert loop_tester.due_now() == [("c", 1, 0), ("d", 1, 0)]


def test_a_dispatcher_whose_claims_others_may_have_taken_over_calls_no_sink(loop_tester: LoopTester) -> None:
    def behave(event: Event, attempt: int) -> None:
        loop_tester.may_call = event.id != "b"

    loop = loop_tester.loop(sink := SingleSink(behave))
    loop_tester.add_deliveries(*"abcd")
    loop.step()
    assert loop.step() == 0
    assert (sink.event_ids, loop_tester.counts()) == (["a", "b"], (2, 2, 0))
    loop_tester.may_call = True
    loop.step()
    assert sink.calls == [("a", 1), ("b", 1), ("c", 1), ("d", 1)]


def finish(loop: SinkLoop) -> threading.Thread:
    """Run a loop in a thread, until nothing is left to do now."""
    loop.finishing = True
    return run(loop)


def run(loop: SinkLoop) -> threading.Thread:
    loop.allowed.set()
    thread = threading.Thread(target=loop.run, daemon=True)
    thread.start()
    return thread


def test_a_loop_that_may_not_call_its_sink_for_a_moment_finishes_afterwards(loop_tester: LoopTester) -> None:
    loop_tester.may_call = False
    loop = loop_tester.loop(sink := SingleSink())
    loop_tester.add_deliveries("a")
    thread = finish(loop)
    assert loop.stepped.wait(20)
    loop_tester.may_call = True
    thread.join(20)
    assert (thread.is_alive(), sink.event_ids, loop_tester.counts()) == (False, ["a"], (1, 0, 0))


def test_a_loop_finishes_only_when_nothing_became_due_during_its_last_claim(
    loop_tester: LoopTester, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = loop_tester.journal.claim

    def claim_slowly(*arguments: Any) -> list[Delivery]:
        claimed = claim(*arguments)
        if not claimed and not sink.event_ids:
            loop_tester.add_deliveries("a")
        return claimed

    monkeypatch.setattr(loop_tester.journal, "claim", claim_slowly)
    thread = finish(loop_tester.loop(sink := SingleSink()))
    thread.join(20)
    assert (thread.is_alive(), sink.event_ids, loop_tester.counts()) == (False, ["a"], (1, 0, 0))


def test_a_loop_that_is_told_to_finish_looks_once_more(
    loop_tester: LoopTester, monkeypatch: pytest.MonkeyPatch
) -> None:
    next_due = loop_tester.journal.next_due

    def next_due_before_the_end(sink_name: str) -> float | None:
        due = next_due(sink_name)
        if not loop.finishing:
            loop_tester.add_deliveries("a")
            loop.finishing = True
        return due

    monkeypatch.setattr(loop_tester.journal, "next_due", next_due_before_the_end)
    loop = loop_tester.loop(sink := SingleSink())
    loop.wake.set()
    thread = run(loop)
    thread.join(20)
    assert (thread.is_alive(), sink.event_ids, loop_tester.counts()) == (False, ["a"], (1, 0, 0))


def test_a_batch_that_others_may_have_taken_over_is_not_delivered(
    loop_tester: LoopTester, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = loop_tester.loop(sink := BatchSink())
    loop_tester.add_deliveries(*"ab")
    claim = loop_tester.journal.claim

    def claim_slowly(*arguments: Any) -> list[Delivery]:
        loop_tester.may_call = False
        return claim(*arguments)

    monkeypatch.setattr(loop_tester.journal, "claim", claim_slowly)
    loop.step()
    assert (sink.calls, loop_tester.counts()) == ([], (0, 2, 0))
    assert loop_tester.due_now() == [("a", 1, 0), ("b", 1, 0)]


def test_results_wait_for_an_unavailable_journal_and_the_sink_is_not_called_again(loop_tester: LoopTester) -> None:
    def behave(event: Event, attempt: int) -> None:
        loop_tester.store.disk_full = True
        if event.id != "a":
            raise {"b": Retry(after=1000.0), "c": GiveUp("no")}[event.id]

    loop = loop_tester.loop(sink := SingleSink(behave))
    loop_tester.add_deliveries("a", "b", "c")
    for _ in range(3):
        with pytest.raises(JournalUnavailable):
            loop.step()
        loop_tester.clock.advance(100)
    assert loop_tester.counts() == (0, 3, 0)
    loop_tester.store.disk_full = False
    loop.step()
    assert (sink.event_ids, loop_tester.counts()) == (["a", "b", "c"], (1, 1, 1))


def test_a_delivery_whose_result_could_not_be_recorded_at_once_is_made_again(loop_tester: LoopTester) -> None:
    def behave(event: Event, attempt: int) -> None:
        if attempt == 1:
            loop_tester.store.disk_full = True
            raise Retry(after=1.0)

    loop = loop_tester.loop(sink := SingleSink(behave))
    loop_tester.add_deliveries("a")
    with pytest.raises(JournalUnavailable):
        loop.step()
    loop_tester.store.disk_full = False
    for _ in range(3):
        loop.step()
        loop_tester.clock.advance(1)
    assert (sink.calls, loop_tester.counts()) == ([("a", 1), ("a", 2)], (1, 0, 0))


def test_one_of_several_threads_claims_more_while_its_calls_are_fast(
    loop_tester: LoopTester, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []
    claim = loop_tester.journal.claim

    def note(sink: str, limit: int, seconds: float) -> list[Delivery]:
        limits.append(limit)
        return claim(sink, limit, seconds)

    monkeypatch.setattr(loop_tester.journal, "claim", note)
    monkeypatch.setattr(sink_loop, "SETTLE_SECONDS", 600.0)
    loop = loop_tester.loop(SingleSink(), concurrency=2)
    loop_tester.add_deliveries(*(f"n{number}" for number in range(40)))
    for _ in range(3):
        loop.step()
    monkeypatch.setattr(sink_loop, "SETTLE_SECONDS", -1.0)
    for _ in range(2):
        loop.step()
    assert limits == [1, 2, 4, 8, 4]


def test_results_are_recorded_during_a_long_run_of_single_calls(
    loop_tester: LoopTester, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[int] = []
    monkeypatch.setattr(sink_loop, "SETTLE_SECONDS", -1.0)
    loop = loop_tester.loop(SingleSink(lambda event, attempt: recorded.append(loop_tester.counts()[0])))
    loop_tester.add_deliveries(*"abcd")
    loop.step()
    assert recorded == [0, 1, 2, 3]


@pytest.mark.parametrize("state", ["working", "probing"])
@pytest.mark.parametrize(
    ("error", "counts"),
    [
        pytest.param(None, (1, 0, 0), id="delivered"),
        pytest.param(GiveUp("no"), (0, 0, 1), id="dead"),
        pytest.param(Pause("429", after=1.0), (0, 1, 0), id="paused"),
    ],
)
def test_no_result_is_lost_when_the_journal_becomes_unavailable_during_the_call(
    state: str, error: BaseException | None, counts: tuple[int, int, int], loop_tester: LoopTester
) -> None:
    def behave(event: Event, attempt: int) -> None:
        loop_tester.store.disk_full = True
        if error is not None:
            raise error

    before = SinkState("s", 1, loop_tester.clock.now, "HTTP 500") if state == "probing" else SinkState("s")
    loop_tester.journal.save_sink_state(before)
    loop = loop_tester.loop(sink := SingleSink(behave), before)
    loop_tester.add_deliveries("a")
    with pytest.raises(JournalUnavailable):
        loop.step()
    loop_tester.store.disk_full = False
    loop.step()
    assert (sink.calls, loop_tester.counts()) == ([("a", 1)], counts)
    assert loop_tester.journal.sink_states().get("s", SinkState("s")).on_trial is False
    assert (loop_tester.journal.sink_states()["s"].pauses > 0) is loop.breaker.probing


def test_claimed_deliveries_are_made_when_the_journal_becomes_unavailable_between_two_calls(
    loop_tester: LoopTester, monkeypatch: pytest.MonkeyPatch
) -> None:
    def behave(event: Event, attempt: int) -> None:
        loop_tester.store.disk_full = event.id == "b"

    monkeypatch.setattr(sink_loop, "SETTLE_SECONDS", -1.0)
    loop = loop_tester.loop(sink := SingleSink(behave))
    loop_tester.add_deliveries(*"abcd")
    with suppress(JournalUnavailable):
        loop.step()
    loop_tester.store.disk_full = False
    for _ in range(3):
        loop.step()
    assert (sink.calls, loop_tester.counts()) == ([(event_id, 1) for event_id in "abcd"], (4, 0, 0))


def test_a_secret_in_an_exception_reaches_neither_log_nor_journal(
    loop_tester: LoopTester, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    text = f"GET https://user:{TEST_SECRET}@example.com\nfailed visibly"
    loop = loop_tester.loop(SingleSink(first(ValueError(text), Retry(text), GiveUp(text), Pause(text, after=0.1))))
    loop_tester.add_deliveries(*"abcd")
    loop.step()
    logged = formatted(caplog, loop_tester)
    assert [line for line in logged if "failed visibly" in line] != []
    assert [line for line in logged if TEST_SECRET in line] == []
    stored = b"".join(file.read_bytes() for file in loop_tester.store.path.parent.iterdir())
    assert stored.count(b"https://user:***@example.com failed visibly") >= 4
    assert TEST_SECRET.encode() not in stored


def test_a_secret_in_an_exception_of_open_reaches_neither_log_nor_journal(
    loop_tester: LoopTester, caplog: pytest.LogCaptureFixture
) -> None:
    class NotOpening(SingleSink):
        @hookimpl
        def open(self, name: str) -> None:
            raise OSError(f"cannot open with {TEST_SECRET}")

    loop_tester.loop(NotOpening()).step()
    assert loop_tester.journal.sink_states()["s"].pause_reason.endswith("OSError: cannot open with ***")
    logged = formatted(caplog, loop_tester)
    assert [line for line in logged if "cannot open with ***" in line] != []
    assert [line for line in logged if TEST_SECRET in line] == []


def formatted(caplog: pytest.LogCaptureFixture, loop_tester: LoopTester) -> list[str]:
    """The lines that the receiver would write to its log."""
    lines = TextLines(Redactor(loop_tester.settings.secret_values))
    return [lines.format(record) for record in caplog.records]


@dataclass
class FakeTime:
    """Time that passes in `sleep`, and by `work` in each call of `thread_time`."""

    now: float = 1000.0
    work: float = 0.05
    slept: float = 0.0

    def monotonic(self) -> float:
        return self.now

    def thread_time(self) -> float:
        self.now += self.work
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


@pytest.mark.parametrize(
    ("others_are_idle", "is_full", "expected"),
    [(False, True, 0.9), (True, True, 0.0), (True, False, 0.9), (False, False, 0.9)],
    ids=["others deliver", "others are idle", "few events", "few events while others deliver"],
)
def test_a_sink_in_the_background_works_for_a_tenth_of_the_time_while_others_deliver(
    *, others_are_idle: bool, is_full: bool, expected: float, loop_tester: LoopTester, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = FakeTime(work=0.1)
    monkeypatch.setattr(sink_loop, "time", time)
    loop = loop_tester.loop(BatchSink(), batch_size=2)
    other = loop_tester.loop(BatchSink())
    other.idle = others_are_idle
    loop.gives_way_to = [other]
    loop_tester.add_deliveries(*("ab" if is_full else "a"))
    assert loop.step() == 0.0
    assert time.slept == pytest.approx(expected, abs=0.02)
