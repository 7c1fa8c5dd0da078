"""The dispatcher with its threads: delivery to several sinks, crash trials, liveness, and stopping."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NoReturn

import pytest
from conftest import TEST_SECRET, wait_until
from support.delivery import Behaviour, RunningDispatcher, SingleSink, add_deliveries, always
from support.journals import SqliteStore

from receiver.delivery import dispatcher as dispatcher_module
from receiver.delivery import retention as retention_module
from receiver.delivery import sink_loop
from receiver.errors import JournalUnavailable
from receiver.event import Event
from receiver.hookspecs import hookimpl
from receiver.journal import Arrival, Liveness, Result, Settlement, SinkState
from receiver.journal.sql.journal import SqlJournal
from receiver.journal.sql.sqlite import SqliteDatabase
from receiver.lifeline import Lifeline
from receiver.logs import LINES_PER_MINUTE


@pytest.fixture
def short_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the dispatcher abandon blocked calls soon after SIGTERM."""
    monkeypatch.setattr(dispatcher_module, "DRAIN_SECONDS", 0.2)
    monkeypatch.setattr(dispatcher_module, "IDLE_SECONDS", 0.2)
    monkeypatch.setattr(dispatcher_module, "CLOSE_SECONDS", 0.2)


def test_events_are_delivered_to_every_sink_and_each_is_opened_and_closed_once(dispatcher: RunningDispatcher) -> None:
    x, y = SingleSink(), SingleSink()
    dispatcher.start(dispatcher.sink(x, "x"), dispatcher.sink(y, "y"))
    event_ids = [f"n{number}" for number in range(50)]
    dispatcher.accept(*event_ids)
    wait_until(lambda: dispatcher.counts("x") == dispatcher.counts("y") == (50, 0, 0), what="delivery")
    dispatcher.stop()
    assert sorted(x.event_ids) == sorted(y.event_ids) == sorted(event_ids)
    assert (x.opened_and_closed, y.opened_and_closed) == (["open x", "close"], ["open y", "close"])


def test_a_sink_that_blocks_or_fails_delays_no_other(dispatcher: RunningDispatcher) -> None:
    valid = SingleSink()
    bad: dict[str, Behaviour] = {
        "blocking": dispatcher.block,
        "failing": always(OSError("gone")),
        "exiting": always(SystemExit(1)),
    }
    dispatcher.start(
        *(dispatcher.sink(SingleSink(behave), name) for name, behave in bad.items()),
        dispatcher.sink(valid, "valid"),
    )
    for number in range(10):
        dispatcher.accept(f"n{number}")
        wait_until(lambda number=number: len(valid.calls) > number, what=f"event {number}")  # type: ignore[misc]
    assert [dispatcher.counts(name)[0] for name in bad] == [0, 0, 0]


def test_the_thread_of_a_sink_survives_everything_that_the_sink_raises(dispatcher: RunningDispatcher) -> None:
    errors = [
        asyncio.CancelledError(),
        ValueError("\ud800"),
        SystemExit(1),
        BaseException("base"),
    ]

    def behave(event: Event, attempt: int) -> None:
        if attempt == 1 and event.id.startswith("bad"):
            raise errors[int(event.id[3:])]

    dispatcher.start(dispatcher.sink(sink := SingleSink(behave)))
    dispatcher.accept("bad0", "bad1", "bad2", "bad3", "good")
    wait_until(lambda: "good" in sink.event_ids, what="the good event")
    wait_until(lambda: dispatcher.counts("s") == (1, 4, 0), what="their results")


def test_concurrency_is_how_many_calls_run_at_once(dispatcher: RunningDispatcher) -> None:
    all_four = threading.Barrier(4)
    dispatcher.accept("a", "b", "c", "d")
    dispatcher.start(dispatcher.sink(SingleSink(lambda event, attempt: all_four.wait(20)), concurrency=4))
    wait_until(lambda: dispatcher.counts("s") == (4, 0, 0), what="four calls at once")


def test_without_concurrency_calls_come_from_one_thread_at_a_time(dispatcher: RunningDispatcher) -> None:
    in_calls: list[int] = []
    entered = threading.Semaphore(0)

    def behave(event: Event, attempt: int) -> None:
        entered.release()
        in_calls.append(entered._value)
        assert entered.acquire(blocking=False)

    dispatcher.start(dispatcher.sink(SingleSink(behave)))
    dispatcher.accept(*(f"n{number}" for number in range(50)))
    wait_until(lambda: dispatcher.counts("s") == (50, 0, 0), what="delivery")
    assert in_calls == [1] * 50


def test_events_that_are_old_and_delivered_are_removed(dispatcher: RunningDispatcher) -> None:
    add_deliveries(dispatcher.journal, "s", "delivered", "pending")
    delivered, _ = dispatcher.journal.claim("s", 10, 60.0)
    dispatcher.journal.settle([Settlement(delivered, Result.DELIVERED)])
    dispatcher.create().tick()
    records = dispatcher.store.records()
    assert [records.history(event_id) is None for event_id in ("delivered", "pending")] == [True, False]


def test_the_dispatcher_reports_its_warnings_with_its_liveness(dispatcher: RunningDispatcher) -> None:
    assert dispatcher.journal.liveness() is None
    dispatcher.create(warnings=["sink a writes to the dyno's disk"]).tick()
    liveness = dispatcher.journal.liveness()
    assert liveness is not None
    assert liveness.warnings == ("sink a writes to the dyno's disk",)


def test_the_dispatcher_reports_its_liveness_again_and_again(
    dispatcher: RunningDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "LIVENESS_SECONDS", 0.01)
    dispatcher.start()
    reports: set[Liveness] = set()

    def several_reports() -> bool:
        if report := dispatcher.journal.liveness():
            reports.add(report)
        return len(reports) > 2

    wait_until(several_reports)


def test_the_claim_of_a_long_call_is_extended(dispatcher: RunningDispatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher_module, "EXTEND_SECONDS", 0.01)
    clock = dispatcher.store.clock
    dispatcher.accept("a")
    dispatcher.start(dispatcher.sink(sink := SingleSink(dispatcher.block)))
    wait_until(lambda: sink.calls)
    assert dispatcher.journal.next_due("s") == clock.now + sink_loop.CLAIM_SECONDS
    clock.advance(50)
    wait_until(lambda: dispatcher.journal.next_due("s") == clock.now + sink_loop.CLAIM_SECONDS)


def test_a_tick_survives_an_unavailable_journal(dispatcher: RunningDispatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher_module, "IDLE_SECONDS", 0.01)
    created = dispatcher.create(dispatcher.sink(SingleSink()))
    dispatcher.accept("a")
    dispatcher.store.disk_full = True
    assert created.tick() is None
    dispatcher.store.disk_full = False
    assert created.tick() == 1
    assert dispatcher.counts("s") == (0, 1, 0)


def test_an_outage_of_the_journal_is_logged_a_limited_number_of_times(
    dispatcher: RunningDispatcher, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_loop, "IDLE_SECONDS", 0.01)
    monkeypatch.setattr(dispatcher_module, "IDLE_SECONDS", 0.01)
    monkeypatch.setattr(dispatcher_module, "LOOK_SECONDS", 0.01)
    failed = Counter[str]()

    def fail(*_: object) -> NoReturn:
        failed[threading.current_thread().name.split()[0]] += 1
        raise JournalUnavailable("the server is gone")

    dispatcher.start(dispatcher.sink(SingleSink()))
    wait_until(dispatcher.journal.liveness, what="the dispatcher's start")
    for name in ("next_due", "claim", "unrouted"):
        monkeypatch.setattr(SqlJournal, name, fail)
    wait_until(lambda: len(failed) == 2 and min(failed.values()) > LINES_PER_MINUTE + 5, what="an outage")
    logged = Counter(record.getMessage() for record in caplog.records if "waits for" in record.getMessage())
    assert logged == {
        "the dispatcher waits for the journal: the server is gone": LINES_PER_MINUTE,
        "sink s waits for the journal: the server is gone": LINES_PER_MINUTE,
    }


def test_a_second_dispatcher_does_not_start(dispatcher: RunningDispatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher.start()
    wait_until(dispatcher.journal.liveness, what="the first report")
    second = dispatcher.create()
    monkeypatch.setattr(sys.modules["receiver.journal.sql.sqlite"], "LOCK_SECONDS", 0.2)
    with pytest.raises(JournalUnavailable, match="another dispatcher uses"):
        second.start()


def test_a_call_that_takes_long_is_named_also_when_it_is_abandoned(
    dispatcher: RunningDispatcher,
    short_drain: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(dispatcher_module, "EXTEND_SECONDS", 0.1)
    monkeypatch.setattr(dispatcher_module, "LIVENESS_SECONDS", 0.1)
    dispatcher.accept("a")
    dispatcher.start(dispatcher.sink(SingleSink(dispatcher.block), "stuck"), dispatcher.sink(SingleSink(), "good"))
    wait_until(lambda: dispatcher.counts("good") == (1, 0, 0), what="delivery")
    monkeypatch.setattr(dispatcher_module, "LONG_CALL_SECONDS", 0.1)
    warning = re.compile(r"sink stuck has been in one call for \d+ s; set a timeout in it")
    wait_until(lambda: warning.search(caplog.text))
    wait_until(lambda: (found := dispatcher.journal.liveness()) and any(map(warning.fullmatch, found.warnings)))
    dispatcher.stop()
    assert "shutting down while sink stuck is still blocked in a call" in caplog.text
    assert "sink good" not in caplog.text


def test_an_open_that_takes_long_is_named_too(
    dispatcher: RunningDispatcher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class BlockedOpen(SingleSink):
        @hookimpl
        def open(self, name: str) -> None:
            dispatcher.block()

    monkeypatch.setattr(dispatcher_module, "LONG_CALL_SECONDS", 0.1)
    monkeypatch.setattr(dispatcher_module, "EXTEND_SECONDS", 0.1)
    dispatcher.start(dispatcher.sink(BlockedOpen(), "stuck"))
    wait_until(lambda: re.search(r"sink stuck has been in one call for \d+ s; set a timeout in it", caplog.text))


def test_a_sink_that_crashed_the_dispatcher_when_it_was_called_alone_starts_paused(
    dispatcher: RunningDispatcher,
) -> None:
    dispatcher.journal.save_sink_state(SinkState("culprit", on_trial=True))
    culprit, good = SingleSink(), SingleSink()
    dispatcher.start(dispatcher.sink(culprit, "culprit"), dispatcher.sink(good, "good"))
    dispatcher.accept("a", "b")
    wait_until(lambda: dispatcher.counts("good") == (2, 0, 0), what="delivery")
    assert (culprit.calls, culprit.opened_and_closed) == ([], [])
    assert dispatcher.journal.sink_states()["culprit"] == SinkState(
        "culprit", 1, dispatcher.store.clock.now + 10, "the dispatcher died while it called this sink alone"
    )


class FakeTime:
    """Stands in for the module `time` of the dispatcher; moves the clock of a journal as well."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    def advance(self, seconds: float) -> None:
        self._store.clock.advance(seconds)

    def time(self) -> float:
        return self._store.clock.now

    def monotonic(self) -> float:
        return self._store.clock.now

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)


def test_claims_of_a_silent_dispatcher_are_taken_over_after_15_s_in_which_this_one_could_report(
    dispatcher: RunningDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = FakeTime(dispatcher.store)
    monkeypatch.setattr(dispatcher_module, "time", time)
    other, ours = dispatcher.store.open("other"), dispatcher.create()
    other.report_alive()
    add_deliveries(other, "s", "a")
    other.claim("s", 1, 60.0)

    def is_taken_over() -> bool:
        return other.next_due("s") == time.time()

    time.advance(20)  # the journal was unavailable to both
    taken_over = []
    for _ in range(5):
        ours.tick()
        taken_over.append(is_taken_over())
        time.advance(5)
    assert taken_over == [False, False, False, False, True]


def test_a_dispatcher_that_reports_again_after_an_outage_of_the_journal_keeps_its_claims(
    dispatcher: RunningDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = FakeTime(dispatcher.store)
    monkeypatch.setattr(dispatcher_module, "time", time)
    other, ours = dispatcher.store.open("other"), dispatcher.create()
    other.report_alive()
    add_deliveries(other, "s", "a")
    for _ in range(5):
        ours.tick()
        other.report_alive()
        time.advance(5)
    other.claim("s", 1, 60.0)
    expires_at = other.next_due("s")
    time.advance(20)
    for _ in range(5):
        ours.tick()
        other.report_alive()
        time.advance(5)
    assert other.next_due("s") == expires_at


def test_a_dispatcher_reports_that_it_is_alive_although_it_cannot_route(
    dispatcher: RunningDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NoReturn:
        raise JournalUnavailable("locked")

    monkeypatch.setattr(SqlJournal, "unrouted", fail)
    monkeypatch.setattr(dispatcher_module, "IDLE_SECONDS", 0.0)
    assert not dispatcher.create().tick()
    assert dispatcher.journal.liveness() is not None


def test_retention_is_faster_than_routing_when_half_of_the_old_events_have_to_stay(
    dispatcher: RunningDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "BATCH", 2)
    monkeypatch.setattr(retention_module, "BATCH", 6)
    monkeypatch.setattr(retention_module, "BUDGET_SECONDS", -1.0)
    journal, records = dispatcher.journal, dispatcher.store.records()
    journal.accept([Arrival(f"old {number}", b"{}", 1000.0) for number in range(12)])
    old = journal.unrouted(12)
    journal.route([(event, ["slow"] if number % 2 else []) for number, event in enumerate(old)])
    journal.accept([Arrival(f"new {number}", b"{}", time.time()) for number in range(6)])
    created = dispatcher.create(dispatcher.sink(SingleSink(), "slow"))
    left = []
    while created.tick():
        left.append(records.count_received(0.0, 2000.0))
    assert left == [9, 6, 6]


def test_of_two_sinks_on_trial_only_the_one_with_more_pauses_starts_paused(dispatcher: RunningDispatcher) -> None:
    dispatcher.journal.save_sink_state(SinkState("culprit", 2, 0.0, "it died before", on_trial=True))
    dispatcher.journal.save_sink_state(SinkState("slow", on_trial=True))
    dispatcher.start(dispatcher.sink(SingleSink(), "culprit"), dispatcher.sink(SingleSink(), "slow"))
    wait_until(lambda: not dispatcher.journal.sink_states()["slow"].on_trial, what="the end of the other's trial")
    dispatcher.accept("a")
    wait_until(lambda: dispatcher.counts("slow") == (1, 0, 0), what="delivery")
    culprit = dispatcher.journal.sink_states()["culprit"]
    assert (culprit.pauses, culprit.pause_reason) == (3, "the dispatcher died while it called this sink alone")
    assert dispatcher.journal.sink_states()["slow"] == SinkState("slow")


def test_a_removed_sink_on_trial_does_not_keep_another_from_being_paused(dispatcher: RunningDispatcher) -> None:
    dispatcher.journal.save_sink_state(SinkState("removed", 7, 0.0, "it died before", on_trial=True))
    dispatcher.journal.save_sink_state(SinkState("culprit", 1, 0.0, "it keeps failing", on_trial=True))
    dispatcher.start(dispatcher.sink(SingleSink(), "culprit"))
    wait_until(lambda: dispatcher.journal.sink_states()["culprit"].pauses == 2, what="its pause")


def crash_in_calls_of(dispatcher: RunningDispatcher, *sinks: str) -> None:
    """Leave the journal as a dispatcher does that was killed while it called these sinks."""
    for sink in sinks:
        add_deliveries(dispatcher.journal, sink, f"for-{sink}")
        dispatcher.journal.claim(sink, 1, 6000.0)


def test_suspects_are_called_first_alone_and_one_after_another(
    dispatcher: RunningDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "TRIAL_SECONDS", 60.0)
    order: list[str] = []
    may_return = {name: threading.Event() for name in ("s1", "s2")}

    def behaviour(name: str) -> Behaviour:
        def behave(event: Event, attempt: int) -> None:
            order.append(f"{name} begins")
            if name in may_return:
                assert may_return[name].wait(20)
                order.append(f"{name} ends, on trial: {dispatcher.journal.sink_states()[name].on_trial}")

        return behave

    crash_in_calls_of(dispatcher, "s1", "s2")
    add_deliveries(dispatcher.journal, "good", "for-good")
    dispatcher.start(*(dispatcher.sink(SingleSink(behaviour(name)), name) for name in ("good", "s1", "s2")))
    for name in may_return:
        wait_until(lambda name=name: f"{name} begins" in order, what=name)  # type: ignore[misc]
        may_return[name].set()
    wait_until(lambda: "good begins" in order, what="the good sink")
    assert order == ["s1 begins", "s1 ends, on trial: True", "s2 begins", "s2 ends, on trial: True", "good begins"]
    wait_until(
        lambda: not any(state.on_trial for state in dispatcher.journal.sink_states().values()),
        what="the end of the trials",
    )


def test_a_suspect_that_blocks_delays_the_others_for_a_limited_time(
    dispatcher: RunningDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "TRIAL_SECONDS", 0.3)
    crash_in_calls_of(dispatcher, "suspect")
    add_deliveries(dispatcher.journal, "good", "a")
    suspect, good = SingleSink(dispatcher.block), SingleSink()
    dispatcher.start(dispatcher.sink(suspect, "suspect"), dispatcher.sink(good, "good"))
    wait_until(lambda: suspect.calls and good.calls, what="calls of both sinks")
    assert dispatcher.journal.sink_states()["suspect"].on_trial is True


def test_stopping_delivers_everything_that_is_due(dispatcher: RunningDispatcher) -> None:
    sink = SingleSink()
    event_ids = [f"n{number}" for number in range(100)]
    dispatcher.start(dispatcher.sink(sink, batch_size=7))
    dispatcher.accept(*event_ids)
    dispatcher.stop()
    assert (sorted(sink.event_ids), dispatcher.counts("s")) == (sorted(event_ids), (100, 0, 0))
    assert sink.opened_and_closed == ["open s", "close"]


def test_after_sigterm_events_are_delivered_until_the_supervisor_closes_its_end_of_the_lifeline(
    dispatcher: RunningDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "LOOK_SECONDS", 600.0)
    monkeypatch.setattr(SqliteDatabase, "wait", lambda self: bool(time.sleep(0.01)))  # in vain
    supervisor_end, child_end = socket.socketpair()
    with supervisor_end, child_end:
        dispatcher.lifeline = Lifeline(child_end)
        supervisor_end.settimeout(20)
        dispatcher.start(dispatcher.sink(SingleSink()))
        for _ in range(3):
            assert supervisor_end.recv(1) == b"."
        dispatcher.lifeline.stop_requested = True
        for number in range(3):
            dispatcher.accept(f"n{number}")
            wait_until(lambda number=number: dispatcher.counts("s") == (number + 1, 0, 0), what="delivery")  # type: ignore[misc]
        supervisor_end.close()
        dispatcher.stop()


def test_the_dispatcher_stops_when_its_supervisor_is_gone(dispatcher: RunningDispatcher) -> None:
    supervisor_end, child_end = socket.socketpair()
    with supervisor_end, child_end:
        dispatcher.lifeline = Lifeline(child_end)
        dispatcher.start(dispatcher.sink(sink := SingleSink()))
        dispatcher.accept("a")
        wait_until(lambda: dispatcher.counts("s") == (1, 0, 0), what="delivery")
        supervisor_end.close()
        dispatcher.join()
    assert sink.opened_and_closed == ["open s", "close"]


def test_stopping_delivers_also_while_a_suspect_is_on_trial(dispatcher: RunningDispatcher) -> None:
    crash_in_calls_of(dispatcher, "suspect")
    suspect, good = SingleSink(dispatcher.block), SingleSink()
    dispatcher.start(dispatcher.sink(suspect, "suspect"), dispatcher.sink(good, "good"))
    wait_until(lambda: suspect.calls, what="the trial")
    dispatcher.accept("a")
    dispatcher.lifeline.stop_requested = True
    wait_until(lambda: dispatcher.counts("good") == (1, 0, 0), what="delivery")
    assert good.event_ids == ["a"]


def test_a_blocked_call_is_abandoned_and_the_dispatcher_stops(dispatcher: RunningDispatcher, short_drain: None) -> None:
    dispatcher.start(dispatcher.sink(SingleSink(dispatcher.block), "blocking"), dispatcher.sink(SingleSink(), "good"))
    dispatcher.accept("a")
    wait_until(lambda: dispatcher.counts("good") == (1, 0, 0), what="delivery")
    dispatcher.stop()
    assert dispatcher.counts("blocking") == (0, 1, 0)


def test_a_stop_during_a_trial_does_not_make_the_sink_the_cause_of_a_crash(
    dispatcher: RunningDispatcher, short_drain: None
) -> None:
    dispatcher.journal.save_sink_state(SinkState("s", 1, 0.1, "HTTP 500"))
    sink = SingleSink(dispatcher.block)
    dispatcher.start(dispatcher.sink(sink))
    dispatcher.accept("a")
    wait_until(lambda: sink.calls, what="the probe")
    assert dispatcher.journal.sink_states()["s"].on_trial is True
    dispatcher.stop()
    assert dispatcher.journal.sink_states()["s"].on_trial is False


def test_a_dispatcher_that_waits_for_a_call_before_it_stops_still_reports_that_it_is_alive(
    dispatcher: RunningDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "LIVENESS_SECONDS", 0.01)
    monkeypatch.setattr(dispatcher_module, "IDLE_SECONDS", 0.01)
    sink = SingleSink(dispatcher.block)
    dispatcher.start(dispatcher.sink(sink))
    dispatcher.accept("a")
    wait_until(lambda: sink.calls)
    reports = []
    report_alive = SqlJournal.report_alive

    def count(journal: SqlJournal, warnings: Sequence[str] = ()) -> None:
        if dispatcher.lifeline.stop_requested:
            reports.append(warnings)
        report_alive(journal, warnings)

    monkeypatch.setattr(SqlJournal, "report_alive", count)
    dispatcher.lifeline.stop_requested = True
    wait_until(lambda: len(reports) > 10, seconds=dispatcher_module.DRAIN_SECONDS)
    dispatcher.unblocked.set()
    dispatcher.join()
    assert dispatcher.counts("s") == (1, 0, 0)


def test_a_close_that_blocks_or_raises_keeps_neither_the_dispatcher_from_stopping_nor_others_from_closing(
    dispatcher: RunningDispatcher, short_drain: None, caplog: pytest.LogCaptureFixture
) -> None:
    class BlockedClose(SingleSink):
        @hookimpl
        def close(self) -> None:
            dispatcher.block()

    class FailingClose(SingleSink):
        @hookimpl
        def close(self) -> None:
            raise SystemExit(f"never with {TEST_SECRET}")

    good, before = SingleSink(), set(threading.enumerate())
    dispatcher.start(
        dispatcher.sink(BlockedClose(), "blocked"),
        dispatcher.sink(FailingClose(), "failing"),
        dispatcher.sink(good, "good"),
    )
    dispatcher.accept("a")
    names = ("blocked", "failing", "good")
    wait_until(lambda: [dispatcher.counts(name) for name in names] == [(1, 0, 0)] * 3, what="delivery")
    dispatcher.stop()
    assert all(thread.daemon for thread in set(threading.enumerate()) - before), "the process cannot exit"
    wait_until(lambda: good.opened_and_closed == ["open good", "close"])
    wait_until(lambda: "sink failing failed to close: SystemExit: never with ***" in caplog.messages)


def test_results_that_could_not_be_recorded_are_recorded_before_the_dispatcher_stops(
    dispatcher: RunningDispatcher, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_loop, "IDLE_SECONDS", 0.1)
    called = threading.Event()

    def behave(event: Event, attempt: int) -> None:
        called.set()
        dispatcher.block()

    dispatcher.start(dispatcher.sink(sink := SingleSink(behave)))
    dispatcher.accept("a")
    assert called.wait(20)
    dispatcher.store.disk_full = True
    dispatcher.lifeline.stop_requested = True
    dispatcher.unblocked.set()
    wait_until(lambda: "sink s waits for the journal" in caplog.text, what="a result that is not recorded")
    dispatcher.store.disk_full = False
    dispatcher.stop()
    assert (sink.calls, dispatcher.counts("s")) == ([("a", 1)], (1, 0, 0))


@pytest.mark.parametrize("verb", ["unrouted", "route", "report_alive", "claim"])
def test_an_outage_of_the_journal_during_a_stop_keeps_no_event_from_its_sink(
    verb: str, dispatcher: RunningDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_loop, "IDLE_SECONDS", 0.01)
    for name in ("IDLE_SECONDS", "LIVENESS_SECONDS", "LOOK_SECONDS"):
        monkeypatch.setattr(dispatcher_module, name, 0.01)
    dispatcher.start(dispatcher.sink(SingleSink()))
    wait_until(dispatcher.journal.liveness, what="the dispatcher's start")
    failures_while_stopping = iter(range(20))  # some of them after the last round of the dispatcher
    method = getattr(SqlJournal, verb)

    def fail_for_a_while(journal: SqlJournal, *arguments: Any) -> Any:
        if dispatcher.lifeline.stop_requested and next(failures_while_stopping, None) is None:
            return method(journal, *arguments)
        raise JournalUnavailable("the journal is locked by another process")

    monkeypatch.setattr(SqlJournal, verb, fail_for_a_while)
    dispatcher.accept("a")
    dispatcher.stop()
    assert dispatcher.counts("s") == (1, 0, 0)
