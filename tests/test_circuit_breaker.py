"""The circuit breaker of a sink: backoff, pauses, and trials after a crash."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from support.journals import SqliteStore

from receiver.delivery.circuit_breaker import FAILURES_UNTIL_PAUSE, CircuitBreaker, backoff_seconds, pause_seconds
from receiver.errors import JournalUnavailable
from receiver.journal import SinkState
from receiver.settings import RetryPolicy

POLICY = RetryPolicy(initial_backoff=5.0, max_backoff=3600.0)


def breaker_on(store: SqliteStore, state: SinkState | None = None) -> CircuitBreaker:
    """The circuit breaker of sink `s` in a process of its own."""
    return CircuitBreaker(state or SinkState("s"), POLICY, store.open())


@pytest.mark.parametrize(
    ("failures", "ceiling"),
    [(1, 5), (2, 10), (3, 20), (4, 40), (10, 2560), (11, 3600), (12, 3600), (1_000_000, 3600)],
)
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_backoff_is_a_random_share_of_a_ceiling_that_doubles_up_to_max_backoff(
    failures: int, ceiling: float, share: float
) -> None:
    assert backoff_seconds(POLICY, failures, lambda: share) == share * ceiling


@pytest.mark.parametrize(
    ("pauses", "seconds"), [(1, 10), (2, 20), (3, 40), (9, 2560), (10, 3600), (11, 3600), (1_000_000, 3600)]
)
def test_each_consecutive_pause_is_twice_as_long_up_to_max_backoff(pauses: int, seconds: float) -> None:
    assert pause_seconds(POLICY, pauses) == seconds


def test_an_initial_backoff_above_max_backoff_is_limited_to_it() -> None:
    policy = RetryPolicy(initial_backoff=100.0, max_backoff=7.0)
    assert (backoff_seconds(policy, 1, lambda: 1.0), pause_seconds(policy, 1)) == (7.0, 7.0)


def test_a_new_sink_may_be_called(sqlite_store: SqliteStore) -> None:
    breaker = breaker_on(sqlite_store)
    assert (breaker.paused_for(), breaker.probing) == (0.0, False)


def test_five_consecutive_failures_pause_a_sink(sqlite_store: SqliteStore) -> None:
    breaker = breaker_on(sqlite_store)
    assert FAILURES_UNTIL_PAUSE == 5
    for _ in range(4):
        breaker.record_failure("HTTP 500")
        assert (breaker.paused_for(), breaker.probing) == (0.0, False)
    breaker.record_failure("HTTP 500")
    assert (breaker.paused_for(), breaker.probing) == (10.0, True)
    state = SinkState("s", 1, sqlite_store.clock.now + 10, "it keeps failing: HTTP 500")
    assert sqlite_store.open().sink_states() == {"s": state}


def test_a_success_resets_the_count_of_failures(sqlite_store: SqliteStore) -> None:
    breaker = breaker_on(sqlite_store)
    for _ in range(3):
        for _ in range(4):
            breaker.record_failure("HTTP 500")
        breaker.record_success()
    assert (breaker.paused_for(), breaker.probing) == (0.0, False)


def test_at_the_end_of_its_pause_a_sink_is_probed_and_a_success_resumes_it(sqlite_store: SqliteStore) -> None:
    breaker = breaker_on(sqlite_store)
    breaker.pause("HTTP 500")
    sqlite_store.clock.advance(9.5)
    assert breaker.paused_for() == 0.5
    sqlite_store.clock.advance(0.5)
    assert (breaker.paused_for(), breaker.probing) == (0.0, True)
    breaker.record_success()
    assert (breaker.paused_for(), breaker.probing) == (0.0, False)
    assert sqlite_store.open().sink_states() == {"s": SinkState("s")}


def test_a_probe_that_fails_pauses_the_sink_for_twice_as_long(sqlite_store: SqliteStore) -> None:
    breaker = breaker_on(sqlite_store)
    breaker.pause("HTTP 500")
    pauses = []
    for _ in range(4):
        pauses.append(breaker.paused_for())
        sqlite_store.clock.advance(pauses[-1])
        breaker.record_failure("HTTP 500")
    assert pauses == [10.0, 20.0, 40.0, 80.0]


def test_after_a_success_the_next_pause_is_short_again(sqlite_store: SqliteStore) -> None:
    breaker = breaker_on(sqlite_store)
    for _ in range(6):
        breaker.pause("HTTP 500")
        sqlite_store.clock.advance(breaker.paused_for())
    breaker.record_success()
    breaker.pause("HTTP 500")
    assert breaker.paused_for() == 10.0


def test_the_log_line_of_a_pause_says_how_long_it_is_and_what_ends_it(
    sqlite_store: SqliteStore, caplog: pytest.LogCaptureFixture
) -> None:
    breaker_on(sqlite_store).pause("HTTP 500")
    assert caplog.messages == [
        "sink s is paused for 10 s: HTTP 500 (`python -m receiver sinks resume s` probes it earlier)"
    ]


def test_only_the_first_of_several_consecutive_pauses_is_reported(sqlite_store: SqliteStore) -> None:
    reported: list[tuple[str, str]] = []
    breaker = CircuitBreaker(
        SinkState("s"), POLICY, sqlite_store.open(), lambda sink, reason: reported.append((sink, reason))
    )
    for reason in ("HTTP 500", "HTTP 502"):
        breaker.pause(reason)
        sqlite_store.clock.advance(breaker.paused_for())
    assert reported == [("s", "HTTP 500")]
    breaker.record_success()
    breaker.pause("HTTP 503")
    assert reported == [("s", "HTTP 500"), ("s", "HTTP 503")]


@pytest.mark.parametrize(("after", "seconds"), [(1.5, 1.5), (60, 60.0), (86400.0, 86400.0)])
def test_a_sink_is_paused_for_as_long_as_it_asks(after: float, seconds: float, sqlite_store: SqliteStore) -> None:
    breaker = breaker_on(sqlite_store)
    breaker.pause("429", after)
    assert breaker.paused_for() == seconds
    assert sqlite_store.open().sink_states()["s"].paused_until == sqlite_store.clock.now + seconds


@pytest.mark.parametrize("after", [0.0, -5.0])
def test_a_pause_lasts_a_second_at_least(after: float, sqlite_store: SqliteStore) -> None:
    breaker = breaker_on(sqlite_store)
    breaker.pause("Retry-After: 0", after)
    assert breaker.paused_for() == 1.0


def test_a_pause_continues_after_a_restart(sqlite_store: SqliteStore) -> None:
    breaker_on(sqlite_store).pause("HTTP 500", 100.0)
    sqlite_store.clock.advance(60)
    breaker = breaker_on(sqlite_store, sqlite_store.open().sink_states()["s"])
    assert (breaker.paused_for(), breaker.probing, breaker.state.pause_reason) == (40.0, True, "HTTP 500")


def test_failures_of_calls_in_flight_when_a_pause_began_do_not_extend_it(sqlite_store: SqliteStore) -> None:
    breaker = breaker_on(sqlite_store)
    for _ in range(5 + 7):
        breaker.record_failure("HTTP 500")
    assert (breaker.paused_for(), breaker.state.pauses) == (10.0, 1)


def test_several_threads_that_ask_for_a_pause_cause_one(sqlite_store: SqliteStore) -> None:
    breaker = breaker_on(sqlite_store)
    for _ in range(8):
        breaker.pause("HTTP 401")
    assert (breaker.paused_for(), breaker.state.pauses) == (10.0, 1)


def test_the_longest_of_several_requested_pauses_applies(sqlite_store: SqliteStore) -> None:
    breaker = breaker_on(sqlite_store)
    for after in (30.0, 300.0, 3.0):
        breaker.pause("429", after)
    assert breaker.paused_for() == 300.0


def test_a_success_of_a_call_in_flight_when_a_pause_began_does_not_end_it(sqlite_store: SqliteStore) -> None:
    breaker = breaker_on(sqlite_store)
    breaker.pause("429: wait an hour", 3600.0)
    breaker.record_success()
    assert breaker.paused_for() == 3600.0


def test_a_pause_that_begins_while_an_older_state_is_read_is_not_replaced_by_it(sqlite_store: SqliteStore) -> None:
    journal, breaker = sqlite_store.open(), breaker_on(sqlite_store)
    journal.save_sink_state(breaker.state)
    saved, older = breaker.saved_state, journal.sink_states()["s"]
    breaker.pause("429: wait an hour", 3600.0)
    breaker.adopt(older, saved)
    assert breaker.paused_for() == 3600.0


def test_a_pause_that_is_saved_while_an_older_state_is_read_is_not_replaced_by_it(sqlite_store: SqliteStore) -> None:
    journal, breaker = sqlite_store.open(), breaker_on(sqlite_store)
    journal.save_sink_state(breaker.state)
    sqlite_store.disk_full = True
    breaker.pause("429: wait an hour", 3600.0)
    sqlite_store.disk_full = False
    saved, older = breaker.saved_state, journal.sink_states()["s"]
    assert breaker.save()
    breaker.adopt(older, saved)
    assert breaker.paused_for() == 3600.0


def test_a_pause_that_another_dispatcher_began_or_an_operator_ended_is_adopted(sqlite_store: SqliteStore) -> None:
    journal, ours, other = sqlite_store.open(), breaker_on(sqlite_store), breaker_on(sqlite_store)
    other.pause("429: wait an hour", 3600.0)
    ours.adopt(journal.sink_states()["s"], ours.saved_state)
    assert ours.paused_for() == 3600.0
    journal.save_sink_state(SinkState("s", 1, 0.0, "429: wait an hour"))
    ours.adopt(journal.sink_states()["s"], ours.saved_state)
    assert (ours.paused_for(), ours.probing) == (0.0, True)


def test_only_suspects_and_sinks_that_are_probed_are_on_trial_while_they_are_called(sqlite_store: SqliteStore) -> None:
    journal = sqlite_store.open()
    suspect, probed, working = breaker_on(sqlite_store), breaker_on(sqlite_store), breaker_on(sqlite_store)
    suspect.suspect = True
    probed.pause("HTTP 500", 1.0)
    sqlite_store.clock.advance(1)
    for breaker, on_trial in ((suspect, True), (probed, True), (working, False)):
        with breaker.trial():
            assert journal.sink_states()["s"].on_trial is on_trial
        assert journal.sink_states()["s"].on_trial is False
        assert breaker.suspect is False
    assert probed.probing


def test_a_trial_ends_when_the_journal_becomes_unavailable(sqlite_store: SqliteStore) -> None:
    journal, breaker = sqlite_store.open(), breaker_on(sqlite_store)
    breaker.suspect = True

    def interrupted() -> None:
        with breaker.trial():
            raise JournalUnavailable("the disk is full")

    with pytest.raises(JournalUnavailable):
        interrupted()
    assert journal.sink_states()["s"].on_trial is False


def test_a_trial_does_not_end_a_pause_that_another_dispatcher_begins_meanwhile(sqlite_store: SqliteStore) -> None:
    journal, ours, other = sqlite_store.open(), breaker_on(sqlite_store), breaker_on(sqlite_store)
    ours.suspect = True
    with ours.trial():
        other.pause("429: wait an hour", 3600.0)
        ours.record_success()
    assert journal.sink_states()["s"] == other.state
    ours.adopt(journal.sink_states()["s"], ours.saved_state)
    assert ours.paused_for() == 3600.0


def test_the_begin_of_a_trial_does_not_end_a_pause_that_another_dispatcher_has_begun(sqlite_store: SqliteStore) -> None:
    journal, ours, other = sqlite_store.open(), breaker_on(sqlite_store), breaker_on(sqlite_store)
    ours.suspect = True
    other.pause("429: wait an hour", 3600.0)
    with ours.trial():
        assert journal.sink_states()["s"] == replace(other.state, on_trial=True)
    assert journal.sink_states()["s"] == other.state


def test_the_end_of_a_trial_that_could_not_be_saved_is_saved_later(sqlite_store: SqliteStore) -> None:
    journal, breaker = sqlite_store.open(), breaker_on(sqlite_store)
    breaker.suspect = True
    with breaker.trial():
        sqlite_store.disk_full = True
    sqlite_store.disk_full = False
    assert (journal.sink_states()["s"].on_trial, breaker.saved_state) == (True, None)
    assert breaker.save()
    assert (journal.sink_states()["s"].on_trial, breaker.saved_state) == (False, SinkState("s"))


def test_the_end_of_a_pause_that_could_not_be_saved_is_saved_later(sqlite_store: SqliteStore) -> None:
    journal, breaker = sqlite_store.open(), breaker_on(sqlite_store)
    breaker.pause("HTTP 500", 1.0)
    sqlite_store.clock.advance(1)
    sqlite_store.disk_full = True
    with suppress(JournalUnavailable):
        breaker.record_success()
    sqlite_store.disk_full = False
    breaker.record_success()
    assert journal.sink_states()["s"] == SinkState("s")
