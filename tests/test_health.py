"""Back-off, pauses and trials of a sink."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from test_journal import SqliteStore

from receiver.errors import JournalUnavailable
from receiver.health import FAILURES_UNTIL_PAUSE, Health, back_off, pause_length
from receiver.journal import SinkState
from receiver.settings import RetryPolicy

POLICY = RetryPolicy(first_pause=5.0, longest_pause=3600.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path)
    yield store
    store.close_all()


def health_of(store: SqliteStore, state: SinkState | None = None) -> Health:
    return Health(state or SinkState("s"), POLICY, store.open())


@pytest.mark.parametrize(
    ("failures", "ceiling"),
    [(1, 5), (2, 10), (3, 20), (4, 40), (10, 2560), (11, 3600), (12, 3600), (1_000_000, 3600)],
)
def test_back_off_is_anything_below_a_ceiling_that_doubles_up_to_the_longest_pause(
    failures: int, ceiling: float
) -> None:
    assert [back_off(POLICY, failures, lambda share=share: share) for share in (0.0, 0.25, 1.0)] == [  # type: ignore[misc]
        0.0,
        ceiling / 4,
        ceiling,
    ]


@pytest.mark.parametrize(
    ("pauses", "seconds"), [(1, 10), (2, 20), (3, 40), (9, 2560), (10, 3600), (11, 3600), (1_000_000, 3600)]
)
def test_each_pause_in_a_row_is_twice_as_long_up_to_the_longest(pauses: int, seconds: float) -> None:
    assert pause_length(POLICY, pauses) == seconds


def test_a_first_pause_above_the_longest_is_cut() -> None:
    policy = RetryPolicy(first_pause=100.0, longest_pause=7.0)
    assert (back_off(policy, 1, lambda: 1.0), pause_length(policy, 1)) == (7.0, 7.0)


def test_a_healthy_sink_may_be_called(store: SqliteStore) -> None:
    health = health_of(store)
    assert (health.paused_for(), health.probing) == (0.0, False)


def test_five_failures_in_a_row_pause_a_sink(store: SqliteStore) -> None:
    health = health_of(store)
    assert FAILURES_UNTIL_PAUSE == 5
    for _ in range(4):
        health.failed("HTTP 500")
        assert (health.paused_for(), health.probing) == (0.0, False)
    health.failed("HTTP 500")
    assert (health.paused_for(), health.probing) == (10.0, True)
    state = SinkState("s", 1, store.clock.now + 10, "it keeps failing: HTTP 500")
    assert store.open().states() == {"s": state}


def test_a_success_in_between_starts_the_count_anew(store: SqliteStore) -> None:
    health = health_of(store)
    for _ in range(3):
        for _ in range(4):
            health.failed("HTTP 500")
        health.succeeded()
    assert (health.paused_for(), health.probing) == (0.0, False)


def test_at_the_end_of_its_pause_a_sink_is_probed_and_a_success_resumes_it(store: SqliteStore) -> None:
    health = health_of(store)
    health.pause("it is tired")
    store.clock.advance(9.5)
    assert health.paused_for() == 0.5
    store.clock.advance(0.5)
    assert (health.paused_for(), health.probing) == (0.0, True)
    health.succeeded()
    assert (health.paused_for(), health.probing) == (0.0, False)
    assert store.open().states() == {"s": SinkState("s")}


def test_a_probe_that_fails_pauses_the_sink_for_twice_as_long(store: SqliteStore) -> None:
    health = health_of(store)
    health.pause("it is tired")
    lengths = []
    for _ in range(4):
        lengths.append(health.paused_for())
        store.clock.advance(lengths[-1])
        health.failed("still tired")
    assert lengths == [10.0, 20.0, 40.0, 80.0]


def test_after_a_success_pauses_begin_small_again(store: SqliteStore) -> None:
    health = health_of(store)
    for _ in range(6):
        health.pause("it is tired")
        store.clock.advance(health.paused_for())
    health.succeeded()
    health.pause("it is tired")
    assert health.paused_for() == 10.0


@pytest.mark.parametrize(("after", "seconds"), [(1.5, 1.5), (60, 60.0), (86400.0, 86400.0)])
def test_a_sink_is_paused_for_as_long_as_it_asks(after: float, seconds: float, store: SqliteStore) -> None:
    health = health_of(store)
    health.pause("429", after)
    assert health.paused_for() == seconds
    assert store.open().states()["s"].paused_until == store.clock.now + seconds


@pytest.mark.parametrize("after", [0.0, -5.0])
def test_a_pause_of_no_length_still_leaves_a_moment_between_two_calls(after: float, store: SqliteStore) -> None:
    health = health_of(store)
    health.pause("Retry-After: 0", after)
    assert 0.0 < health.paused_for() <= 10.0


def test_what_the_journal_knows_of_a_pause_holds_after_a_restart(store: SqliteStore) -> None:
    health_of(store).pause("it is tired", 100.0)
    store.clock.advance(60)
    journal = store.open()
    health = Health(journal.states()["s"], POLICY, journal)
    assert (health.paused_for(), health.probing, health.state.pause_reason) == (40.0, True, "it is tired")


def test_calls_that_were_under_way_when_the_pause_began_do_not_make_it_longer(store: SqliteStore) -> None:
    health = health_of(store)
    for _ in range(5 + 7):
        health.failed("HTTP 500")
    assert (health.paused_for(), health.state.pauses) == (10.0, 1)


def test_many_threads_asking_for_the_same_pause_count_as_one(store: SqliteStore) -> None:
    health = health_of(store)
    for _ in range(8):
        health.pause("HTTP 401")
    assert (health.paused_for(), health.state.pauses) == (10.0, 1)


def test_a_longer_pause_that_is_asked_for_prevails(store: SqliteStore) -> None:
    health = health_of(store)
    for after in (30.0, 300.0, 3.0):
        health.pause("429", after)
    assert health.paused_for() == 300.0


def test_a_success_that_was_under_way_when_the_pause_began_does_not_end_it(store: SqliteStore) -> None:
    health = health_of(store)
    health.pause("429: wait an hour", 3600.0)
    health.succeeded()
    assert health.paused_for() == 3600.0


def test_a_pause_that_begins_while_older_states_are_read_is_not_ended_by_them(store: SqliteStore) -> None:
    journal, health = store.open(), health_of(store)
    journal.remember(health.state)
    saved, older = health.saved, journal.states()["s"]
    health.pause("429: wait an hour", 3600.0)
    health.take_over(older, saved)
    assert health.paused_for() == 3600.0


def test_a_pause_that_is_saved_while_older_states_are_read_is_not_ended_by_them(store: SqliteStore) -> None:
    journal, health = store.open(), health_of(store)
    journal.remember(health.state)
    store.full = True
    health.pause("429: wait an hour", 3600.0)
    store.full = False
    saved, older = health.saved, journal.states()["s"]
    assert health.save()
    health.take_over(older, saved)
    assert health.paused_for() == 3600.0


def test_a_pause_that_another_dispatcher_has_begun_or_a_person_has_ended_is_taken_over(store: SqliteStore) -> None:
    journal, ours, other = store.open(), health_of(store), health_of(store)
    other.pause("429: wait an hour", 3600.0)
    ours.take_over(journal.states()["s"], ours.saved)
    assert ours.paused_for() == 3600.0
    journal.remember(SinkState("s", 1, 0.0, "429: wait an hour"))
    ours.take_over(journal.states()["s"], ours.saved)
    assert (ours.paused_for(), ours.probing) == (0.0, True)


def test_only_a_doubtful_sink_is_on_trial_while_it_is_called(store: SqliteStore) -> None:
    journal = store.open()
    suspect, probed, healthy = health_of(store), health_of(store), health_of(store)
    suspect.suspect = True
    probed.pause("it is tired", 1.0)
    store.clock.advance(1)
    for health, doubtful in ((suspect, True), (probed, True), (healthy, False)):
        with health.trial():
            assert journal.states()["s"].on_trial is doubtful
        assert journal.states()["s"].on_trial is False
        assert health.suspect is False
    assert probed.probing


def test_a_trial_that_the_journal_interrupts_convicts_nobody(store: SqliteStore) -> None:
    journal, health = store.open(), health_of(store)
    health.suspect = True

    def interrupted() -> None:
        with health.trial():
            raise JournalUnavailable("the disk is full")

    with pytest.raises(JournalUnavailable):
        interrupted()
    assert journal.states()["s"].on_trial is False


def test_what_the_journal_could_not_take_of_a_recovery_it_learns_later(store: SqliteStore) -> None:
    journal, health = store.open(), health_of(store)
    health.pause("it is tired", 1.0)
    store.clock.advance(1)
    store.full = True
    with suppress(JournalUnavailable):
        health.succeeded()
    store.full = False
    health.succeeded()
    assert journal.states()["s"] == SinkState("s")
