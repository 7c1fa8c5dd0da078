"""The dispatcher: one sink's loop step by step on a clock of ours, then all of it with its threads."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest
from conftest import TEST_SECRET, wait_until
from test_journal import SqliteStore

from receiver import dispatcher as dispatcher_module
from receiver import sink_loop
from receiver.alerts import Alerts
from receiver.dispatcher import Dispatcher
from receiver.errors import GiveUp, JournalUnavailable, Pause, Retry
from receiver.event import Event
from receiver.health import Health
from receiver.hookspecs import hookimpl
from receiver.journal import Arrival, Result, Settlement, SinkCount, SinkState
from receiver.journal.sql import SqlJournal
from receiver.lifeline import Lifeline
from receiver.logs import LINES_A_MINUTE, TextLines
from receiver.plugins import Plugins, Sink, build_sink
from receiver.settings import CommonOptions, Settings, SinkSettings, load
from receiver.sink_loop import SinkLoop
from receiver.sink_type import SinkType

React = Callable[[Event, int], None]


def body(name: str, event_type: str = "touch") -> bytes:
    return f'{{"event":{{"eventId":"{name}","eventType":"{event_type}","data":{{}}}}}}'.encode()


def comes_back(event: Event, attempt: int) -> None:
    """Delivered."""


def always(error: BaseException) -> React:
    def react(event: Event, attempt: int) -> None:
        raise error

    return react


def first(*errors: BaseException | None) -> React:
    """Raise these one call after another, then deliver."""
    left = list(errors)

    def react(event: Event, attempt: int) -> None:
        if left and (error := left.pop(0)) is not None:
            raise error

    return react


def only(name: str, error: BaseException) -> React:
    """Raise for one event."""

    def react(event: Event, attempt: int) -> None:
        if event.id == name:
            raise error

    return react


class Single:
    """A sink that takes one event at a time and remembers its calls."""

    def __init__(self, react: React = comes_back) -> None:
        self.react = react
        self.calls: list[tuple[str, int]] = []
        self.life: list[str] = []

    @hookimpl
    def open(self, name: str) -> None:
        self.life.append(f"open {name}")

    @hookimpl
    def deliver(self, event: Event, attempt: int) -> None:
        self.calls.append((event.id, attempt))
        self.react(event, attempt)

    @hookimpl
    def close(self) -> None:
        self.life.append("close")

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


class Batches:
    """A sink that takes several events at a time; it fails for a batch as it does for the first bad event in it."""

    def __init__(self, react: React = comes_back) -> None:
        self.react = react
        self.calls: list[list[str]] = []

    @hookimpl
    def deliver_batch(self, events: Sequence[Event], attempts: Sequence[int]) -> None:
        self.calls.append([event.id for event in events])
        for event, attempt in zip(events, attempts, strict=True):
            self.react(event, attempt)


class OnlySingly:
    """A sink whose batches fail, and whose single events are delivered."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.sizes: list[int] = []

    @hookimpl
    def deliver_batch(self, events: Sequence[Event]) -> None:
        self.sizes.append(len(events))
        if len(events) > 1:
            raise self.error


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    path = tmp_path / "config.toml"
    path.write_text("")
    return load({"RECEIVER_CONFIG": str(path), "DT_SIGNATURE_SECRET": TEST_SECRET})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    (tmp_path / "data").mkdir()
    store = SqliteStore(tmp_path / "data")
    yield store
    store.close_all()


def built(settings: Settings, instance: object, name: str = "s", **common: Any) -> Sink:
    """This object as the receiver builds it for `[sinks.NAME]`."""
    options = CommonOptions.model_validate({"type": "tested", **common})
    offered = SinkType("tested", lambda: instance, "here")  # type: ignore[arg-type]  # makes a sink as a class does
    return build_sink(Plugins({"tested": offered}, ()), settings, SinkSettings(name, options))


class Bench:
    """One sink's loop on a journal of its own, worked by hand."""

    def __init__(self, store: SqliteStore, settings: Settings) -> None:
        self.store = store
        self.clock = store.clock
        self.journal = store.open()
        self.settings = settings

    def loop(self, instance: object, state: SinkState | None = None, **common: Any) -> SinkLoop:
        sink = built(self.settings, instance, **common)
        return self.another(sink, Health(state or SinkState("s"), sink.common.retry, self.journal), first=True)

    def another(self, sink: Sink, health: Health, *, first: bool = False) -> SinkLoop:
        redact = self.settings.redact
        alerts = Alerts([], [], redact)
        return SinkLoop(
            sink, health, self.journal, alerts, random=lambda: 0.5, redact=self.settings.redact, first=first
        )

    def owe(self, *names: str, sink: str = "s") -> None:
        owe(self.journal, *names, sinks=[sink])

    def count(self, sink: str = "s") -> tuple[int, int, int]:
        """Delivered, pending and dead."""
        of_sink = self.journal.counts().sinks.get(sink, SinkCount())
        return of_sink.delivered, of_sink.pending, of_sink.dead

    def due_in(self) -> float | None:
        due = self.journal.next_due("s")
        return None if due is None else due - self.clock.now

    def pending(self) -> list[tuple[str, int, int]]:
        """Name, next attempt and failures of what could be claimed now."""
        claimed = self.journal.claim("s", 1000, 60.0)
        return [(delivery.event.id, delivery.attempt, delivery.failures) for delivery in claimed]


def owe(journal: SqlJournal, *names: str, sinks: Sequence[str] = ("s",)) -> None:
    for name in names:
        journal.accept(Arrival(name, body(name), 1000.0))
    journal.owe([(kept, sinks) for kept in journal.unmatched(1000)])


@pytest.fixture
def bench(store: SqliteStore, settings: Settings) -> Bench:
    return Bench(store, settings)


def test_what_is_due_is_delivered_in_order_after_one_open(bench: Bench) -> None:
    loop = bench.loop(sink := Single())
    bench.owe("a", "b", "c")
    assert loop.step() == 0.0
    assert loop.step() > 0.0
    assert (sink.calls, sink.life) == ([("a", 1), ("b", 1), ("c", 1)], ["open s"])
    assert (bench.count(), bench.due_in()) == ((3, 0, 0), None)


def test_a_sink_in_batches_gets_up_to_batch_size_at_once(bench: Bench) -> None:
    loop = bench.loop(sink := Batches(), batch_size=3)
    bench.owe(*"abcdefg")
    while loop.step() == 0.0:
        continue
    assert sink.calls == [["a", "b", "c"], ["d", "e", "f"], ["g"]]
    assert bench.count() == (7, 0, 0)


@pytest.mark.parametrize("value", [None, False, 0, "", RuntimeError("not raised")])
def test_returning_whatever_value_is_delivered(value: object, bench: Bench) -> None:
    loop = bench.loop(Single(lambda event, attempt: value))  # type: ignore[arg-type,return-value]
    bench.owe("a")
    loop.step()
    assert bench.count() == (1, 0, 0)


def test_retry_after_is_due_exactly_then(bench: Bench) -> None:
    loop = bench.loop(sink := Single(first(Retry(after=42.5))))
    bench.owe("a")
    loop.step()
    assert (bench.count(), bench.due_in()) == ((0, 1, 0), 42.5)
    bench.clock.advance(42)
    loop.step()
    assert sink.calls == [("a", 1)]
    bench.clock.advance(0.5)
    loop.step()
    assert sink.calls == [("a", 1), ("a", 2)]
    assert bench.count() == (1, 0, 0)


def test_faults_back_off_and_count_as_failures(bench: Bench) -> None:
    loop = bench.loop(sink := Single(always(OSError("gone"))), retry={"first_pause": 8.0, "longest_pause": 20.0})
    bench.owe("a")
    waits = []
    for _ in range(4):
        loop.step()
        waits.append(bench.due_in())
        bench.clock.advance(waits[-1] or 0.0)
    assert waits == [4.0, 8.0, 10.0, 10.0]
    assert sink.calls == [("a", 1), ("a", 2), ("a", 3), ("a", 4)]
    assert bench.pending() == [("a", 5, 4)]


def test_max_attempts_failures_make_a_dead_letter(bench: Bench) -> None:
    loop = bench.loop(sink := Single(always(Retry("no", after=1.0))), retry={"max_attempts": 3})
    bench.owe("a")
    for _ in range(5):
        loop.step()
        bench.clock.advance(1)
    assert sink.calls == [("a", 1), ("a", 2), ("a", 3)]
    assert (bench.count(), bench.due_in()) == ((0, 0, 1), None)


def test_a_failure_past_max_age_makes_a_dead_letter(bench: Bench) -> None:
    loop = bench.loop(sink := Single(always(Retry("no", after=60.0))), retry={"max_age": "2m"})
    bench.owe("a")
    bench.clock.advance(1_000_000)
    for _ in range(10):
        loop.step()
        bench.clock.advance(60)
    assert sink.calls == [("a", 1), ("a", 2), ("a", 3), ("a", 4)]
    assert bench.count() == (0, 0, 1)


def test_a_success_past_max_age_is_a_success(bench: Bench) -> None:
    loop = bench.loop(Single(first(Retry("no", after=10_000.0))), retry={"max_age": "2m"})
    bench.owe("a")
    loop.step()
    bench.clock.advance(10_000)
    loop.step()
    assert bench.count() == (1, 0, 0)


def test_give_up_is_a_dead_letter_at_once_and_no_reason_to_pause(bench: Bench) -> None:
    loop = bench.loop(sink := Single(always(GiveUp("no such device"))))
    bench.owe(*"abcdefgh")
    loop.step()
    assert (sink.names, bench.count(), loop.health.paused_for()) == (list("abcdefgh"), (0, 0, 8), 0.0)


def test_pause_counts_nothing_and_puts_the_rest_back_untouched(bench: Bench) -> None:
    loop = bench.loop(sink := Single(first(None, Pause("429", after=30.0))), retry={"max_attempts": 1})
    bench.owe(*"abcd")
    loop.step()
    assert (sink.names, bench.count(), loop.step()) == (["a", "b"], (1, 3, 0), 30.0)
    assert bench.journal.states() == {"s": SinkState("s", 1, bench.clock.now + 30, "429")}
    bench.clock.advance(30)
    assert bench.pending() == [("b", 2, 0), ("c", 1, 0), ("d", 1, 0)]


def test_a_paused_sink_is_not_called_and_then_probed_with_one_delivery(bench: Bench) -> None:
    state = SinkState("s", 1, bench.clock.now + 10, "it is tired")
    loop = bench.loop(sink := Single(), state)
    bench.owe("a", "b", "c")
    assert loop.step() == 10.0
    assert sink.calls == []
    bench.clock.advance(10)
    assert loop.step() == 0.0
    assert sink.names == ["a"]
    loop.step()
    assert sink.names == ["a", "b", "c"]
    assert bench.journal.states() == {"s": SinkState("s")}


def test_a_probe_that_fails_counts_nothing_and_pauses_for_longer(bench: Bench) -> None:
    state = SinkState("s", 1, bench.clock.now, "it is tired")
    loop = bench.loop(sink := Single(always(OSError("gone"))), state, retry={"max_attempts": 1})
    bench.owe("a", "b")
    loop.step()
    assert (sink.names, loop.step(), bench.count()) == (["a"], 20.0, (0, 2, 0))
    bench.clock.advance(1000)
    assert sorted(bench.pending()) == [("a", 2, 0), ("b", 1, 0)]


def test_a_batch_that_fails_is_tried_one_by_one(bench: Bench) -> None:
    loop = bench.loop(sink := OnlySingly(RuntimeError("too much")))
    bench.owe(*"abcd")
    loop.step()
    assert (sink.sizes, bench.count(), loop.health.failures) == ([4, 1, 1, 1, 1], (4, 0, 0), 0)


def test_a_batch_that_fails_is_logged_with_the_sinks_name(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    loop = bench.loop(OnlySingly(RuntimeError("too much")))
    bench.owe(*"abcd")
    loop.step()
    assert [line for line in caplog.messages if "sink s" in line and "too much" in line] != []


def test_give_up_counts_only_for_a_batch_of_one(bench: Bench) -> None:
    loop = bench.loop(sink := OnlySingly(GiveUp("none of them")))
    bench.owe(*"abcd")
    loop.step()
    assert (sink.sizes, bench.count()) == ([4, 1, 1, 1, 1], (4, 0, 0))

    loop = bench.loop(batches := Batches(only("f", GiveUp("not this one"))))
    bench.owe(*"efg")
    loop.step()
    assert batches.calls == [["e", "f", "g"], ["e"], ["f"], ["g"]]
    assert bench.count() == (6, 0, 1)


def test_a_pause_of_a_batch_puts_all_of_it_back_and_counts_nothing(bench: Bench) -> None:
    loop = bench.loop(sink := OnlySingly(Pause("429", after=30.0)), retry={"max_attempts": 1})
    bench.owe(*"abc")
    loop.step()
    assert (sink.sizes, bench.count(), loop.step()) == ([3], (0, 3, 0), 30.0)
    bench.clock.advance(30)
    assert bench.pending() == [("a", 2, 0), ("b", 2, 0), ("c", 2, 0)]


def test_one_poison_event_among_a_hundred_keeps_none_of_the_others(bench: Bench) -> None:
    names = [f"n{number:02}" for number in range(100)]
    loop = bench.loop(sink := Batches(only("n50", ValueError("poison"))), batch_size=100)
    bench.owe(*names)
    loop.step()
    assert sink.calls == [names, *([name] for name in names)]
    assert (bench.count(), loop.health.paused_for()) == ((99, 1, 0), 0.0)
    bench.clock.advance(5)
    assert bench.pending() == [("n50", 2, 1)]


@pytest.mark.parametrize(("kind", "attempt"), [(Single, 1), (Batches, 2)])
def test_five_failures_in_a_row_pause_the_sink_and_put_the_rest_back(
    kind: type[Single] | type[Batches], attempt: int, bench: Bench
) -> None:
    loop = bench.loop(sink := kind(always(OSError("gone"))))
    bench.owe(*"abcdefgh")
    loop.step()
    singly = [call for call in sink.calls if len(call) == 1 or kind is Single]
    assert ([call[0] for call in singly], bench.count(), loop.step()) == (list("abcde"), (0, 8, 0), 10.0)
    assert bench.pending() == [(name, attempt, 0) for name in "fgh"]
    bench.clock.advance(10)
    assert bench.pending() == [(name, 2, 1) for name in "abcde"]


def test_one_poison_event_does_not_hold_up_a_quiet_sink_for_ever(bench: Bench) -> None:
    """Alone, it fails often enough to pause the sink; the events that come in the pauses must get through."""
    loop = bench.loop(sink := Single(only("poison", ValueError("poison"))))
    bench.owe("poison")
    arrivals = [f"good{number}" for number in range(20)]
    next_arrival = bench.clock.now + 900
    end = bench.clock.now + 2 * 86400
    while bench.clock.now < end:
        wait = loop.step()
        if arrivals and bench.clock.now >= next_arrival:
            bench.owe(arrivals.pop(0))
            next_arrival += 900
        bench.clock.advance(min(wait or 0.01, 60.0))
    assert arrivals == []
    assert sorted(set(sink.names) - {"poison"}) == sorted(f"good{number}" for number in range(20))


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
        pytest.param(ValueError("lone surrogate \ud800 and NUL \x00"), id="text that no database takes"),
        pytest.param(ValueError("x" * 1_000_000), id="a megabyte of text"),
    ],
)
def test_whatever_a_sink_raises_is_contained_as_a_fault(error: BaseException, bench: Bench) -> None:
    loop = bench.loop(sink := Single(only("a", error)))
    bench.owe("a", "b")
    loop.step()
    assert (sink.names, bench.count()) == (["a", "b"], (1, 1, 0))
    bench.clock.advance(5)
    assert bench.pending() == [("a", 2, 1)]


def test_an_error_that_cannot_be_shown_is_contained_as_a_fault(bench: Bench) -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("not even this")

    loop = bench.loop(Single(only("a", Unspeakable())))
    bench.owe("a", "b")
    loop.step()
    bench.clock.advance(5)
    assert (bench.count(), bench.pending()) == ((1, 1, 0), [("a", 2, 1)])


def test_a_wait_that_belongs_to_a_foreign_error_is_not_taken_for_ours(bench: Bench) -> None:
    class RateLimited(Exception):
        after = "Thu, 01 Jan 2099 00:00:00 GMT"

    loop = bench.loop(Single(only("a", RateLimited("slow down"))))
    bench.owe("a", "b")
    loop.step()
    assert (bench.count(), bench.due_in()) == ((1, 1, 0), 2.5)


@pytest.mark.parametrize("signal", [Retry, Pause])
@pytest.mark.parametrize("after", ["60", "soon", float("nan"), float("inf")], ids=str)
def test_a_wait_that_makes_no_sense_neither_stops_the_sink_nor_loses_the_event(
    signal: type[Retry] | type[Pause], after: Any, bench: Bench
) -> None:
    def react(event: Event, attempt: int) -> None:
        if attempt == 1:
            raise signal("slow down", after=after)

    loop = bench.loop(Single(react))
    bench.owe("a")
    for _ in range(4):
        loop.step()
        bench.clock.advance(100 * 86400)
    assert bench.count() == (1, 0, 0)


def test_a_sink_that_asks_for_no_wait_at_all_is_not_called_in_a_hot_loop(bench: Bench) -> None:
    loop = bench.loop(sink := Single(always(Pause("Retry-After: 0", after=0.0))))
    bench.owe("a")
    for _ in range(100):
        loop.step()
    assert len(sink.calls) < 10


def test_open_that_raises_pauses_the_sink_and_is_tried_again(bench: Bench) -> None:
    class Late(Single):
        @hookimpl
        def open(self) -> None:
            self.life.append("tried")
            if len(self.life) < 3:
                raise OSError("not there yet")

    loop = bench.loop(sink := Late())
    bench.owe("a")
    waits = [loop.step()]
    why = bench.journal.states()["s"].pause_reason
    assert re.sub(r":\d+:", ":LINE:", why) == "it does not open: test_dispatcher.py:LINE: OSError: not there yet"
    bench.clock.advance(waits[-1])
    waits.append(loop.step())
    bench.clock.advance(waits[-1])
    loop.step()
    assert (waits, sink.life, sink.calls) == ([10.0, 20.0], ["tried"] * 3, [("a", 1)])
    assert bench.count() == (1, 0, 0)


def test_no_thread_of_a_sink_calls_it_before_it_is_open(bench: Bench) -> None:
    loop = bench.loop(sink := Single(), concurrency=2)
    second = bench.another(loop.sink, loop.health)
    bench.owe("a", "b")
    second.step()
    assert sink.calls == []
    loop.step()
    second.step()
    assert (sink.life, sink.names) == (["open s"], ["a", "b"])


def test_while_a_sink_is_probed_only_one_thread_calls_it(bench: Bench) -> None:
    loop = bench.loop(sink := Single(), SinkState("s", 1, bench.clock.now, "it is tired"), concurrency=2)
    second = bench.another(loop.sink, loop.health)
    bench.owe("a", "b")
    second.step()
    assert sink.calls == []
    loop.step()
    second.step()
    assert sink.names == ["a", "b"]


def test_a_delivery_in_hand_is_not_called_again_even_after_its_claim_ran_out(bench: Bench) -> None:
    def react(event: Event, attempt: int) -> None:
        if attempt == 1:
            bench.clock.advance(sink_loop.CLAIM_SECONDS + 1)
            second.step()

    loop = bench.loop(sink := Single(react), concurrency=2)
    second = bench.another(loop.sink, loop.health)
    loop.step()
    bench.owe("a")
    loop.step()
    assert (sink.calls, bench.count()) == ([("a", 1)], (1, 0, 0))


def test_an_event_that_can_no_longer_be_decoded_is_a_dead_letter_and_harms_no_other(bench: Bench) -> None:
    loop = bench.loop(sink := Batches())
    bench.journal.accept(Arrival("odd", b"\xff not an event", 1000.0))
    bench.owe("a", "b")
    loop.step()
    assert (sink.calls, bench.count()) == ([["a"], ["b"]], (2, 0, 1))


def test_results_that_the_journal_cannot_take_are_kept_and_the_sink_is_not_called_again(bench: Bench) -> None:
    def react(event: Event, attempt: int) -> None:
        bench.store.full = True
        if event.id != "a":
            raise {"b": Retry(after=5.0), "c": GiveUp("no")}[event.id]

    loop = bench.loop(sink := Single(react))
    bench.owe("a", "b", "c")
    for _ in range(3):
        with pytest.raises(JournalUnavailable):
            loop.step()
        bench.clock.advance(100)
    assert bench.count() == (0, 3, 0)
    bench.store.full = False
    bench.clock.advance(-100)
    loop._settle()
    assert (sink.names, bench.count()) == (["a", "b", "c"], (1, 1, 1))


@pytest.mark.parametrize("state", ["healthy", "probing"])
@pytest.mark.parametrize(
    ("error", "then"), [(None, (1, 0, 0)), (GiveUp("no"), (0, 0, 1)), (Pause("429", after=1.0), (0, 1, 0))]
)
def test_no_result_is_lost_when_the_journal_goes_away_during_the_call(
    state: str, error: BaseException | None, then: tuple[int, int, int], bench: Bench
) -> None:
    def react(event: Event, attempt: int) -> None:
        bench.store.full = True
        if error is not None:
            raise error

    known = SinkState("s", 1, bench.clock.now, "it is tired") if state == "probing" else None
    loop = bench.loop(sink := Single(react), known)
    bench.owe("a")
    with pytest.raises(JournalUnavailable):
        loop.step()
    bench.store.full = False
    loop.step()
    assert (sink.calls, bench.count()) == ([("a", 1)], then)
    assert bench.journal.states().get("s", SinkState("s")).on_trial is False
    assert (bench.journal.states()["s"].pauses > 0) is loop.health.probing


def test_what_was_claimed_but_not_called_when_the_journal_went_away_is_tried_soon(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def react(event: Event, attempt: int) -> None:
        bench.store.full = event.id == "b"

    monkeypatch.setattr(sink_loop, "SETTLE_SECONDS", -1.0)
    loop = bench.loop(sink := Single(react))
    bench.owe(*"abcd")
    with suppress(JournalUnavailable):
        loop.step()
    bench.store.full = False
    for _ in range(3):
        loop.step()
    assert (sink.calls, bench.count()) == ([(name, 1) for name in "abcd"], (4, 0, 0))


def test_an_idle_sink_that_waits_for_its_probe_does_not_write_to_the_disk(bench: Bench) -> None:
    loop = bench.loop(Single(), SinkState("s", 1, bench.clock.now, "it is tired"))
    loop.step()
    log_file = bench.store.path.with_name(bench.store.path.name + "-wal")
    before = log_file.read_bytes()
    for _ in range(10):
        loop.step()
    assert log_file.read_bytes() == before


def test_a_sink_told_to_stop_puts_back_what_it_was_not_called_for(bench: Bench) -> None:
    def react(event: Event, attempt: int) -> None:
        loop.stopping = event.id == "b"

    loop = bench.loop(sink := Single(react))
    bench.owe(*"abcd")
    loop.step()
    assert (sink.names, bench.count(), bench.pending()) == (["a", "b"], (2, 2, 0), [("c", 1, 0), ("d", 1, 0)])


def test_a_secret_in_an_error_reaches_neither_log_nor_journal(
    bench: Bench, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    text = f"GET https://user:{TEST_SECRET}@example.com\nfailed visibly"
    loop = bench.loop(Single(first(ValueError(text), Retry(text), GiveUp(text), Pause(text, after=0.1))))
    bench.owe(*"abcd")
    loop.step()
    logged = [TextLines(settings).format(record) for record in caplog.records]
    assert [line for line in logged if "failed visibly" in line] != []
    assert [line for line in logged if TEST_SECRET in line] == []
    kept = b"".join(file.read_bytes() for file in bench.store.path.parent.iterdir())
    assert kept.count(b"https://user:***@example.com failed visibly") >= 4
    assert TEST_SECRET.encode() not in kept


def test_a_secret_in_the_error_of_open_reaches_neither_log_nor_journal(
    bench: Bench, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    class Closed(Single):
        @hookimpl
        def open(self) -> None:
            raise OSError(f"cannot open with {TEST_SECRET}")

    bench.loop(Closed()).step()
    assert bench.journal.states()["s"].pause_reason.endswith("OSError: cannot open with ***")
    assert [record for record in caplog.records if TEST_SECRET in TextLines(settings).format(record)] == []


class Running:
    """A dispatcher at work in a thread, on a journal that others may use too."""

    def __init__(self, store: SqliteStore, settings: Settings) -> None:
        self.store = store
        self.settings = settings
        self.outside = store.open()
        self.lifeline = Lifeline()
        self.let_go = threading.Event()
        self.thread: threading.Thread | None = None

    def dispatcher(
        self, *sinks: Sink, faulty: dict[str, str] | None = None, disabled: Sequence[Sink] = ()
    ) -> Dispatcher:
        routes = [SinkSettings(sink.name, sink.common) for sink in sinks]
        routes += [SinkSettings(name, CommonOptions(type="broken")) for name in faulty or {}]
        return Dispatcher(
            self.store.open(),
            routes,
            sinks,
            faulty or {},
            disabled=[SinkSettings(sink.name, sink.common) for sink in disabled],
            retention_seconds=7 * 86400,
            redact=self.settings.redact,
            random=lambda: 0.5,
        )

    def start(self, *sinks: Sink, faulty: dict[str, str] | None = None, disabled: Sequence[Sink] = ()) -> None:
        dispatcher = self.dispatcher(*sinks, faulty=faulty, disabled=disabled)
        self.thread = threading.Thread(target=dispatcher.run, args=(self.lifeline,), daemon=True)
        self.thread.start()

    def accept(self, *names: str) -> None:
        for name in names:
            self.outside.accept(Arrival(name, body(name), 1000.0))

    def count(self, sink: str) -> tuple[int, int, int]:
        of_sink = self.outside.counts().sinks.get(sink, SinkCount())
        return of_sink.delivered, of_sink.pending, of_sink.dead

    def hangs(self, event: Event, attempt: int) -> None:
        """A call that does not come back before the end of the test."""
        self.let_go.wait(60)

    def stop(self) -> float:
        """Ask to stop; how long it took."""
        assert self.thread is not None
        began = time.monotonic()
        self.lifeline.asked_to_stop = True
        self.thread.join(60)
        assert not self.thread.is_alive()
        return time.monotonic() - began


@pytest.fixture
def running(store: SqliteStore, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(dispatcher_module, "DRAIN_SECONDS", 3.0)
    running = Running(store, settings)
    yield running
    store.full = False
    running.let_go.set()
    if running.thread is not None:
        running.stop()
    for thread in threading.enumerate():
        if thread.name.startswith("sink "):
            thread.join(10)


def test_new_events_are_owed_to_the_sinks_whose_filter_they_pass(running: Running) -> None:
    sinks = [
        built(running.settings, Single(), "all"),
        built(running.settings, Single(), "touches", filter={"event_types": ["touch"]}),
        built(running.settings, Single(), "oslo", filter={"labels": {"site": "oslo"}}),
    ]
    dispatcher = running.dispatcher(*sinks, faulty={"broken": "no such type"})
    bodies = {
        "touch": body("touch"),
        "motion": body("motion", "motion"),
        "oslo": b'{"event":{"eventId":"oslo","eventType":"co2"},"labels":{"site":"oslo"}}',
        "odd": b"no event any more",
    }
    for name, raw in bodies.items():
        running.outside.accept(Arrival(name, raw, 1000.0))
    assert dispatcher.tick() is True
    assert dispatcher.tick() is False
    owed = {
        sink: [delivery.event.id for delivery in running.outside.claim(sink, 10, 60.0)]
        for sink in ("all", "touches", "oslo", "broken", "unknown")
    }
    assert owed == {
        "all": ["touch", "motion", "oslo", "odd"],
        "touches": ["touch", "odd"],
        "oslo": ["oslo", "odd"],
        "broken": ["touch", "motion", "oslo", "odd"],
        "unknown": [],
    }


def test_a_removed_sink_keeps_what_it_is_owed_and_gets_nothing_new(running: Running) -> None:
    owe(running.outside, "old", sinks=["removed"])
    running.accept("new")
    running.dispatcher(built(running.settings, Single(), "kept")).tick()
    assert (running.count("removed"), running.count("kept")) == ((0, 1, 0), (0, 1, 0))


def test_what_was_taken_while_a_sink_was_enabled_is_owed_to_it_although_it_is_disabled_before_it_is_matched(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "AT_ONCE", 3)
    kept, leaving = built(running.settings, Single(), "kept"), built(running.settings, Single(), "leaving")
    touches = built(running.settings, Single(), "touches", filter={"event_types": ["touch"]})
    never = built(running.settings, Single(), "never")
    running.outside.enable(["kept", "leaving", "touches"])
    for name, event_type in [("a", "touch"), ("b", "touch"), ("c", "motion"), ("d", "touch")]:
        running.outside.accept(Arrival(name, body(name, event_type), 1000.0))

    running.start(kept, disabled=[leaving, touches, never])
    wait_until(lambda: running.outside.enabled() == {"kept"})
    running.accept("new")
    wait_until(lambda: running.count("kept") == (5, 0, 0))

    assert [running.count(name) for name in ("leaving", "touches", "never")] == [(0, 4, 0), (0, 3, 0), (0, 0, 0)]


def test_the_dispatcher_tidies_away_what_is_old_and_delivered(running: Running) -> None:
    owe(running.outside, "old", "owed")
    done, _ = running.outside.claim("s", 10, 60.0)
    running.outside.settle([Settlement(done, Result.DELIVERED)])
    running.dispatcher().tick()
    answers = [running.outside.accept(Arrival(name, b"", 1000.0)) for name in ("old", "owed")]
    assert answers == ["accepted", "duplicate"]


def test_a_tick_survives_a_journal_that_is_away(running: Running) -> None:
    dispatcher = running.dispatcher(built(running.settings, Single(), "s"))
    running.accept("a")
    running.store.full = True
    assert dispatcher.tick() is False
    running.store.full = False
    assert dispatcher.tick() is True
    assert running.count("s") == (0, 1, 0)


def test_events_flow_to_every_sink_and_each_is_opened_and_closed_once(running: Running) -> None:
    x, y = Single(), Single()
    running.start(built(running.settings, x, "x"), built(running.settings, y, "y"))
    names = [f"n{number}" for number in range(50)]
    running.accept(*names)
    wait_until(lambda: running.count("x") == running.count("y") == (50, 0, 0), what="delivery")
    running.stop()
    assert sorted(x.names) == sorted(y.names) == sorted(names)
    assert (x.life, y.life) == (["open x", "close"], ["open y", "close"])


def test_a_sink_that_hangs_fails_or_dies_delays_no_other(running: Running) -> None:
    good = Single()
    bad = {"hanging": running.hangs, "failing": always(OSError("gone")), "leaving": always(SystemExit(1))}
    running.start(
        *(built(running.settings, Single(react), name) for name, react in bad.items()),
        built(running.settings, good, "good"),
    )
    for number in range(10):
        running.accept(f"n{number}")
        wait_until(lambda number=number: len(good.calls) > number, seconds=5, what=f"event {number}")  # type: ignore[misc]
    assert [running.count(name)[0] for name in bad] == [0, 0, 0]


def test_a_sinks_thread_outlives_everything_its_sink_raises(running: Running) -> None:
    errors = [
        asyncio.CancelledError(),
        ValueError("\ud800"),
        SystemExit(1),
        BaseException("base"),
    ]

    def react(event: Event, attempt: int) -> None:
        if attempt == 1 and event.id.startswith("bad"):
            raise errors[int(event.id[3:])]

    running.start(built(running.settings, sink := Single(react), "s"))
    running.accept("bad0", "bad1", "bad2", "bad3", "good")
    wait_until(lambda: "good" in sink.names, what="the good event")
    wait_until(lambda: running.count("s") == (1, 4, 0), what="their results")


def test_as_many_calls_run_at_once_as_concurrency_allows(running: Running) -> None:
    together = threading.Barrier(4)
    running.accept("a", "b", "c", "d")
    sink = built(running.settings, Single(lambda event, attempt: together.wait(5) and None), "s", concurrency=4)
    running.start(sink)
    wait_until(lambda: running.count("s") == (4, 0, 0), seconds=10, what="four calls at once")


def test_calls_come_from_one_thread_at_a_time_when_concurrency_is_not_given(running: Running) -> None:
    at_once: list[int] = []
    inside = threading.Semaphore(0)

    def react(event: Event, attempt: int) -> None:
        inside.release()
        at_once.append(inside._value)
        assert inside.acquire(blocking=False)

    running.start(built(running.settings, Single(react), "s"))
    running.accept(*(f"n{number}" for number in range(50)))
    wait_until(lambda: running.count("s") == (50, 0, 0), what="delivery")
    assert at_once == [1] * 50


def test_a_faulty_sink_is_paused_with_its_reason_and_owed_its_events(running: Running) -> None:
    good = Single()
    running.start(built(running.settings, good, "good"), faulty={"broken": "no sink type 'kafka'"})
    running.accept("a")
    wait_until(lambda: running.count("good") == (1, 0, 0), what="delivery")
    assert running.count("broken") == (0, 1, 0)
    state = running.outside.states()["broken"]
    assert (state.pauses, state.pause_reason) == (1, "no sink type 'kafka'")


def test_a_sink_that_took_the_process_down_when_called_alone_starts_paused(running: Running) -> None:
    running.outside.remember(SinkState("killer", on_trial=True))
    killer, good = Single(), Single()
    running.start(built(running.settings, killer, "killer"), built(running.settings, good, "good"))
    running.accept("a", "b")
    wait_until(lambda: running.count("good") == (2, 0, 0), what="delivery")
    assert (killer.calls, killer.life) == ([], [])
    assert running.outside.states()["killer"] == SinkState(
        "killer", 1, running.store.clock.now + 10, "the dispatcher died when it called this sink alone"
    )


def test_of_two_sinks_on_trial_only_the_one_that_was_in_doubt_before_is_convicted(running: Running) -> None:
    running.outside.remember(SinkState("killer", 2, 0.0, "it died before", on_trial=True))
    running.outside.remember(SinkState("slow", on_trial=True))
    slow = Single()
    running.start(*(built(running.settings, sink, name) for sink, name in ((Single(), "killer"), (slow, "slow"))))
    wait_until(lambda: not running.outside.states()["slow"].on_trial, what="the acquittal of the other")
    running.accept("a")
    wait_until(lambda: running.count("slow") == (1, 0, 0), what="delivery")
    killer = running.outside.states()["killer"]
    assert (killer.pauses, killer.pause_reason) == (3, "the dispatcher died when it called this sink alone")
    assert running.outside.states()["slow"] == SinkState("slow")


def test_a_sink_on_trial_that_was_removed_shields_no_other_from_its_conviction(running: Running) -> None:
    running.outside.remember(SinkState("removed", 7, 0.0, "it died before", on_trial=True))
    running.outside.remember(SinkState("killer", 1, 0.0, "it keeps failing", on_trial=True))
    running.start(built(running.settings, Single(), "killer"))
    wait_until(lambda: running.outside.states()["killer"].pauses == 2, what="the conviction")


def die_in_a_call_of(running: Running, *sinks: str) -> None:
    """Leave behind what a dispatcher does that was killed while these sinks were called."""
    for sink in sinks:
        owe(running.outside, f"for {sink}".replace(" ", "-"), sinks=[sink])
        running.outside.claim(sink, 1, 6000.0)


def test_suspects_run_first_and_alone_and_one_after_another(running: Running) -> None:
    order: list[str] = []
    gates = {name: threading.Event() for name in ("s1", "s2")}

    def called(name: str) -> React:
        def react(event: Event, attempt: int) -> None:
            order.append(f"{name} begins")
            if name in gates:
                assert gates[name].wait(20)
                order.append(f"{name} ends, on trial: {running.outside.states()[name].on_trial}")

        return react

    die_in_a_call_of(running, "s1", "s2")
    owe(running.outside, "more", sinks=["good"])
    running.start(*(built(running.settings, Single(called(name)), name) for name in ("good", "s1", "s2")))
    for name in gates:
        wait_until(lambda name=name: f"{name} begins" in order, what=name)  # type: ignore[misc]
        gates[name].set()
    wait_until(lambda: "good begins" in order, what="the good sink")
    assert order == ["s1 begins", "s1 ends, on trial: True", "s2 begins", "s2 ends, on trial: True", "good begins"]
    wait_until(lambda: not any(state.on_trial for state in running.outside.states().values()), what="acquittal")


def test_a_suspect_that_does_not_come_back_keeps_the_others_for_a_bounded_time(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "TRIAL_SECONDS", 0.3)
    die_in_a_call_of(running, "suspect")
    owe(running.outside, "a", sinks=["good"])
    good = Single()
    running.start(built(running.settings, Single(running.hangs), "suspect"), built(running.settings, good, "good"))
    wait_until(lambda: good.calls, seconds=10, what="the good sink")
    assert running.outside.states()["suspect"].on_trial is True


def test_stopping_delivers_everything_that_is_due(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher_module, "DRAIN_SECONDS", 20.0)
    sink = Single()
    names = [f"n{number}" for number in range(300)]
    running.start(built(running.settings, sink, "s", batch_size=7))
    running.accept(*names)
    running.stop()
    assert (sorted(sink.names), running.count("s")) == (sorted(names), (300, 0, 0))
    assert sink.life == ["open s", "close"]


def test_stopping_delivers_even_while_suspects_are_on_trial(running: Running) -> None:
    die_in_a_call_of(running, "suspect")
    good = Single()
    running.start(built(running.settings, Single(running.hangs), "suspect"), built(running.settings, good, "good"))
    running.accept("a")
    running.stop()
    assert (good.names, running.count("good")) == (["a"], (1, 0, 0))


def test_a_call_that_hangs_does_not_keep_the_dispatcher_beyond_its_bound(running: Running) -> None:
    good = Single()
    running.start(built(running.settings, Single(running.hangs), "hanging"), built(running.settings, good, "good"))
    running.accept("a")
    wait_until(lambda: running.count("good") == (1, 0, 0), what="delivery")
    assert running.stop() < 3.0 + 5.0
    assert running.count("hanging") == (0, 1, 0)


def test_a_call_that_does_not_come_back_is_named(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dispatcher_module, "LONG_CALL_SECONDS", 0.1)
    monkeypatch.setattr(dispatcher_module, "EXTEND_SECONDS", 0.2)
    running.accept("a")
    running.start(built(running.settings, Single(running.hangs), "stuck"), built(running.settings, Single(), "good"))
    wait_until(lambda: re.search(r"sink stuck has been in one call for \d+ s; give it a time-out", caplog.text))
    running.stop()
    assert "sink stuck is left in a call that does not come back" in caplog.text
    assert "sink good" not in caplog.text


def test_an_open_that_does_not_come_back_is_named_too(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Shut(Single):
        @hookimpl
        def open(self) -> None:
            running.let_go.wait(30)

    monkeypatch.setattr(dispatcher_module, "LONG_CALL_SECONDS", 0.1)
    monkeypatch.setattr(dispatcher_module, "EXTEND_SECONDS", 0.2)
    running.start(built(running.settings, Shut(), "shut"))
    wait_until(lambda: re.search(r"sink shut has been in one call for \d+ s; give it a time-out", caplog.text))


def test_a_sink_whose_close_hangs_or_raises_keeps_neither_the_dispatcher_nor_the_other_sinks(running: Running) -> None:
    class Sticky(Single):
        @hookimpl
        def close(self) -> None:
            running.let_go.wait(30)

    class Loud(Single):
        @hookimpl
        def close(self) -> None:
            raise SystemExit(f"never with {TEST_SECRET}")

    good = Single()
    running.start(
        built(running.settings, Sticky(), "sticky"),
        built(running.settings, Loud(), "loud"),
        built(running.settings, good, "good"),
    )
    running.accept("a")
    wait_until(lambda: running.count("good") == (1, 0, 0), what="delivery")
    assert running.stop() < 3.0 + 10.0
    assert good.life == ["open good", "close"]


def test_results_that_are_not_recorded_yet_are_recorded_before_the_dispatcher_goes(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    begun = threading.Event()

    def react(event: Event, attempt: int) -> None:
        begun.set()
        assert running.let_go.wait(20)

    running.start(built(running.settings, sink := Single(react), "s"))
    running.accept("a")
    assert begun.wait(20)
    running.store.full = True
    running.lifeline.asked_to_stop = True
    running.let_go.set()
    wait_until(lambda: "sink s waits for the journal" in caplog.text, what="a result that is not recorded")
    running.store.full = False
    running.stop()
    assert (sink.calls, running.count("s")) == ([("a", 1)], (1, 0, 0))


def test_an_outage_of_the_journal_is_told_but_does_not_flood_the_log(
    running: Running, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_loop, "IDLE_SECONDS", 0.01)
    monkeypatch.setattr(dispatcher_module, "IDLE_SECONDS", 0.01)
    refused = Counter[str]()

    def refuse(*_: object) -> NoReturn:
        refused[threading.current_thread().name.split()[0]] += 1
        raise JournalUnavailable("the server is gone")

    running.start(built(running.settings, Single(), "s"))
    wait_until(lambda: running.outside.last_beat(), what="the dispatcher's start")
    monkeypatch.setattr(SqlJournal, "claim", refuse)
    monkeypatch.setattr(SqlJournal, "unmatched", refuse)
    wait_until(lambda: len(refused) == 2 and min(refused.values()) > 30, what="an outage")
    told = Counter(record.getMessage() for record in caplog.records if "waits for" in record.getMessage())
    assert told == {
        "the dispatcher waits for the journal: the server is gone": LINES_A_MINUTE,
        "sink s waits for the journal: the server is gone": LINES_A_MINUTE,
    }


def test_a_second_dispatcher_does_not_start(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["receiver.journal.sqlite"], "LOCK_SECONDS", 0.2)
    running.start()
    wait_until(lambda: running.outside.last_beat(), what="the first beat")
    with pytest.raises(JournalUnavailable, match="another dispatcher works on"):
        running.dispatcher().start()
