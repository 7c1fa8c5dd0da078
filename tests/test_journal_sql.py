"""What the journals in SQL promise beyond the contract: one transaction for a commit, short ones for operators."""

from __future__ import annotations

import pytest
import sqlalchemy.event
from support.journals import (
    SqlStore,
    accept,
    claim,
    delivery_counts,
    event_ids,
    route_events,
    settle,
    unrouted_and_quarantined,
)

from receiver.errors import JournalUnavailable
from receiver.journal import Arrival, Outcome, Result, SinkState
from receiver.journal.sql import journal as journal_module
from receiver.journal.sql import records as records_module

EVENT = Arrival("event", b"", 1000.0)
WITH_SECRET = Arrival("with secret", b"", 1000.0, None, "DT_SIGNATURE_SECRET")
INVALID = Arrival("5f" * 32, b"not an event", 1000.0, "the body is not JSON")


@pytest.mark.parametrize(("table", "arrivals"), [("secrets", [EVENT, WITH_SECRET]), ("quarantine", [INVALID, EVENT])])
def test_events_invalid_pushes_and_the_use_of_secrets_are_stored_in_one_transaction(
    table: str, arrivals: list[Arrival], store: SqlStore
) -> None:
    """Each transaction may wait for a lock, and a push has time for one such wait."""
    journal = store.open()
    store.reject_inserts(table)
    with pytest.raises(JournalUnavailable):
        journal.accept(arrivals)
    assert unrouted_and_quarantined(journal) == (0, 0)


@pytest.mark.parametrize(("call", "expected"), [("retry", (0, 5, 0)), ("delete", (0, 0, 0))])
def test_dead_letters_are_retried_and_deleted_in_batches_that_others_can_write_between(
    call: str, expected: tuple[int, int, int], store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_module, "BATCH", 2)
    journal, records = store.open(), store.records()
    route_events(journal, "s", *"abcde")
    settle(journal, claim(journal, "s"), Result.DEAD)
    dead_before_each_transaction: list[int] = []

    def write_between() -> None:
        dead_before_each_transaction.append(delivery_counts(journal, "s")[2])
        accept(journal, f"between {len(dead_before_each_transaction)}")
        store.before_next_write = write_between

    store.before_next_write = write_between
    changed = (records.retry_dead_letters if call == "retry" else records.delete_dead_letters)("s", None)
    store.before_next_write = None
    assert (changed, dead_before_each_transaction) == (5, [5, 3, 1, 0])
    assert (delivery_counts(journal, "s"), journal.counts().unrouted) == (expected, 4)


def test_an_event_that_is_routed_while_counts_are_read_is_counted(store: SqlStore) -> None:
    journal, dispatcher = store.open(), store.open()
    accept(journal, "a")
    (event,) = dispatcher.unrouted(1)

    def route(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if "events" in statement:
            dispatcher.route([(event, ["s"])])

    engine = journal._database._engine  # type: ignore[attr-defined]
    sqlalchemy.event.listen(engine, "after_cursor_execute", route)
    counts = journal.counts()

    assert counts.unrouted + sum(sink.pending for sink in counts.sinks.values()) >= 1
    assert dispatcher.counts().sinks["s"].pending == 1


@pytest.mark.parametrize("result", [Result.DELIVERED, Result.DEAD])
def test_an_event_that_is_settled_while_counts_are_read_is_counted(result: Result, store: SqlStore) -> None:
    journal, dispatcher = store.open(), store.open()
    route_events(dispatcher, "s", "a")
    claimed = claim(dispatcher, "s")

    def settle_once(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if "deliveries" in statement and claimed:
            settle(dispatcher, [claimed.pop()], result)

    engine = journal._database._engine  # type: ignore[attr-defined]
    sqlalchemy.event.listen(engine, "after_cursor_execute", settle_once)
    counted = delivery_counts(journal, "s")

    assert not claimed
    assert sum(counted) >= 1


def test_a_dispatcher_that_starts_removes_the_last_reports_of_those_that_are_gone_for_long(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = store.open(holder="gone")
    gone.report_alive(["a warning"])
    store.close(gone)
    dispatcher = store.open(holder="here")
    dispatcher.start_dispatching()
    assert dispatcher.liveness() is not None
    monkeypatch.setattr(journal_module, "GONE_SECONDS", -60.0)
    dispatcher.start_dispatching()
    assert dispatcher.liveness() is None


def test_a_push_is_accepted_though_its_secret_has_a_long_name(store: SqlStore) -> None:
    journal, name = store.open(), "DT_SIGNATURE_SECRET__" + "X" * 300
    assert journal.accept([Arrival("x" * 64, b"\0\xff", 1000.0, secret=name)]) == [Outcome.ACCEPTED]
    assert journal.counts().secrets.keys() == {name}


def test_ids_are_distinguished_when_the_keys_of_removed_events_are_given_again(store: SqlStore) -> None:
    journal = store.open()
    route_events(journal, "s", "a", "b", "c", received_at=1000.0)
    settle(journal, claim(journal, "s"), Result.DELIVERED)
    journal.remove_expired(2000.0, 10)
    assert accept(journal, "known") == [Outcome.ACCEPTED]
    arrivals = [Arrival(event_id, b"", 1000.0) for event_id in ("z", "known", "a", "z", "b")]
    assert journal.accept(arrivals) == ["accepted", "duplicate", "accepted", "duplicate", "accepted"]
    assert sorted(event_ids(journal.unrouted(10))) == ["a", "b", "known", "z"]


def test_a_clock_that_was_set_back_moves_deliveries_in_parts_that_others_can_write_between(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or SQLite would be locked for so long that the dispatcher is ended, again at each start."""
    monkeypatch.setattr(journal_module, "MOVED", 2, raising=False)
    journal, other = store.open(), store.open()
    waits = {"a": 300.0, "b": 5.0, "c": 40.0, "d": 7200.0, "e": 90.0}
    for sink in ("s", "t"):
        for event_id, wait in waits.items():
            route_events(journal, sink, f"{event_id} {sink}")
            settle(journal, claim(journal, sink), Result.FAILED, store.clock.now + wait)
    journal.report_alive()
    store.clock.advance(-3600)
    transactions: list[str] = []

    def write_between() -> None:
        transactions.append(f"between {len(transactions)}")
        accept(other, transactions[-1])
        store.before_next_write = write_between

    store.before_next_write = write_between
    journal.start_dispatching()
    store.before_next_write = None

    assert len(transactions) > len(waits)
    started = store.clock.now
    for event_id, wait in sorted(waits.items(), key=lambda each: each[1]):
        for seconds, due in ((wait - 1, []), (wait, [event_id])):
            store.clock.now = started + seconds
            for sink in ("s", "t"):
                assert event_ids(claim(journal, sink, seconds=86400.0)) == [f"{each} {sink}" for each in due]


def test_a_clock_that_is_set_back_again_while_deliveries_are_set_back_delays_none(store: SqlStore) -> None:
    """How far it was set back is known from the last report: only what was followed may be taken from it."""
    journal = store.open()
    route_events(journal, "s", "a")
    settle(journal, claim(journal, "s"), Result.FAILED, store.clock.now + 30)
    journal.save_sink_state(SinkState("s", 1, store.clock.now + 30))
    journal.report_alive()
    store.clock.advance(-3600)
    transactions: list[float] = []

    def set_back_again() -> None:
        transactions.append(store.clock.now)
        if len(transactions) < 8:
            store.clock.advance(-600)
            store.before_next_write = set_back_again

    store.before_next_write = set_back_again
    journal.report_alive()
    assert len(transactions) > 1
    assert journal.sink_states()["s"].paused_until <= store.clock.now + 91
    store.clock.advance(91)
    assert event_ids(claim(journal, "s")) == ["a"]
