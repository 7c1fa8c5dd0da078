"""Whatever the journal is given, no exception but JournalUnavailable leaves it, and it keeps working."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.journals import PostgresqlStore, SqliteStore, Store

from receiver.errors import JournalUnavailable
from receiver.journal import (
    Arrival,
    Delivery,
    Journal,
    Outcome,
    QuarantinedPush,
    Records,
    Result,
    Settlement,
    SinkState,
    StoredEvent,
)

TEXTS = ["", "\0", "a\0b", "\ud800", "…冷🧊", "'; DROP TABLE events; --", "%s %(x)s {}", "x" * 100_000, "\r\n"]
NUMBERS = [0, -1, 2**31, 2**63, 2**200, -(2**63) - 1]
TIMES = [0.0, -1.0, 1e300, math.inf, -math.inf, math.nan]

JOURNAL: dict[str, Callable[[Journal, str, int, float], object]] = {
    "accept": lambda journal, text, number, time: journal.accept(
        [Arrival(text, text.encode("utf-8", "replace"), time)]
    ),
    "accept quarantined": lambda journal, text, number, time: journal.accept(
        [Arrival(text, b"", time, quarantine_reason=text, secret=text)]
    ),
    "accept nothing": lambda journal, text, number, time: journal.accept([]),
    "unrouted": lambda journal, text, number, time: journal.unrouted(number),
    "others_are_routing": lambda journal, text, number, time: journal.others_are_routing(time),
    "route": lambda journal, text, number, time: journal.route(
        [(StoredEvent(number, text, b"", time), [text])], [text]
    ),
    "sinks_behind": lambda journal, text, number, time: journal.sinks_behind(),
    "catch_up": lambda journal, text, number, time: journal.catch_up(text, lambda event: True, number),
    "add_enabled_sinks": lambda journal, text, number, time: journal.add_enabled_sinks([text, text]),
    "set_enabled_sinks": lambda journal, text, number, time: journal.set_enabled_sinks([text, text]),
    "claim": lambda journal, text, number, time: journal.claim(text, number, time),
    "extend": lambda journal, text, number, time: journal.extend([delivery(text, number, time)], time),
    "settle": lambda journal, text, number, time: journal.settle(
        [Settlement(delivery(text, number, time), result, time, text) for result in Result]
    ),
    "next_due": lambda journal, text, number, time: journal.next_due(text),
    "oldest_pending": lambda journal, text, number, time: journal.oldest_pending(text),
    "report_alive": lambda journal, text, number, time: journal.report_alive([text]),
    "take_over": lambda journal, text, number, time: journal.take_over(time),
    "liveness": lambda journal, text, number, time: journal.liveness(),
    "save_sink_state": lambda journal, text, number, time: journal.save_sink_state(SinkState(text, number, time, text)),
    "save_trial": lambda journal, text, number, time: journal.save_trial(text, on_trial=True),
    "sink_states": lambda journal, text, number, time: journal.sink_states(),
    "remove_expired": lambda journal, text, number, time: journal.remove_expired(time, number),
    "counts": lambda journal, text, number, time: journal.counts(),
    "document": lambda journal, text, number, time: journal.document(text),
    "save_document": lambda journal, text, number, time: journal.save_document(text, b"x"),
    "lease_document": lambda journal, text, number, time: journal.lease_document(text, time),
    "extend_lease": lambda journal, text, number, time: journal.extend_lease(text, time),
}
RECORDS: dict[str, Callable[[Records, str, int, float], object]] = {
    "liveness": lambda records, text, number, time: records.liveness(),
    "dead_letter_groups": lambda records, text, number, time: records.dead_letter_groups(text, number, text),
    "some_dead_letter_groups": lambda records, text, number, time: records.some_dead_letter_groups(
        text, number, number
    ),
    "count_dead_letters": lambda records, text, number, time: records.count_dead_letters(text, text, number),
    "dead_letters": lambda records, text, number, time: records.dead_letters(text, number, text, number),
    "retry_dead_letters": lambda records, text, number, time: records.retry_dead_letters(text, [text], text, number),
    "delete_dead_letters": lambda records, text, number, time: records.delete_dead_letters(text, [text], text, number),
    "quarantined": lambda records, text, number, time: records.quarantined(number, (time, text)),
    "find_quarantined": lambda records, text, number, time: records.find_quarantined(text),
    "release": lambda records, text, number, time: records.release(QuarantinedPush(text, time, text, b""), text),
    "count_received": lambda records, text, number, time: records.count_received(time, time),
    "received": lambda records, text, number, time: records.received(time, time, number, number),
    "requeue": lambda records, text, number, time: records.requeue(text, [StoredEvent(number, text, b"", time)]),
    "history": lambda records, text, number, time: records.history(text),
    "resume": lambda records, text, number, time: records.resume(text),
    "remove_sink": lambda records, text, number, time: records.remove_sink(text),
    "newest": lambda records, text, number, time: records.newest(time, "pending", number, number),
    "mentioning": lambda records, text, number, time: records.mentioning(
        [text.encode("utf-8", "replace")], time, number, number, number
    ),
    "known": lambda records, text, number, time: records.known([text]),
    "save_document": lambda records, text, number, time: records.save_document(text, b"x"),
    "document": lambda records, text, number, time: records.document(text),
}


def delivery(text: str, number: int, time: float) -> Delivery:
    return Delivery(StoredEvent(number, text, b"", time), text, number, number, time)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    kinds: dict[str, type[SqliteStore] | type[PostgresqlStore]] = {"sqlite": SqliteStore, "postgresql": PostgresqlStore}
    store = kinds[request.param](tmp_path)
    yield store
    store.close_all()


def test_garbage_for_every_verb_of_intake_and_dispatchers(store: Store) -> None:
    journal = store.open()
    for verb in JOURNAL.values():
        for text, number, time in garbage():
            with suppress(JournalUnavailable):
                verb(journal, text, number, time)
    assert_works(store.open())


def test_garbage_for_every_verb_of_operators(store: Store) -> None:
    journal, records = store.open(), store.records()
    for verb in RECORDS.values():
        for text, number, time in garbage():
            with suppress(JournalUnavailable):
                verb(records, text, number, time)
    assert_works(journal)


def test_every_verb_of_the_contract_is_in_these_tests() -> None:
    no_arguments = {
        "now",
        "wait_for_events",
        "enabled_sinks",
        "may_dispatch",
        "start_dispatching",
        "check_writable",
        "close",
        "space",
    }
    verbs = {name for name in vars(Journal) if name[0] != "_"} - no_arguments
    assert {name.split()[0] for name in JOURNAL} == verbs
    verbs = {name for name in vars(Records) if name[0] != "_"} - {"close", "counts", "sink_states"}
    assert set(RECORDS) == verbs


def garbage() -> Iterator[tuple[str, int, float]]:
    """Each kind of garbage once, beside ordinary values."""
    yield from ((text, 1, 1000.0) for text in TEXTS)
    yield from (("a", number, 1000.0) for number in NUMBERS)
    yield from (("a", 1, time) for time in TIMES)


def assert_works(journal: Journal) -> None:
    assert journal.accept([Arrival("good", b"{}", 1000.0)]) == [Outcome.ACCEPTED]
    assert "good" in {event.id for event in journal.unrouted(1000)}
