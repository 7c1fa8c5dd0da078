"""The journal's contract, written once for every back end."""

from __future__ import annotations

import resource
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import new_database, wait_until
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import Connection, insert
from sqlalchemy.exc import OperationalError

from receiver.errors import JournalUnavailable
from receiver.journal import Acceptance, Arrival, Delivery, Kept, Result, Settlement, SinkCount, SinkState
from receiver.journal import sql_records as sql_records_module
from receiver.journal.database import Database
from receiver.journal.postgres import PostgresDatabase
from receiver.journal.sql import SqlJournal
from receiver.journal.sql_records import SqlRecords
from receiver.journal.sqlite import SqliteDatabase
from receiver.journal.tables import sinks

DAY = 86400.0


class Clock:
    """A journal's clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Store:
    """One journal in one place; each `open` is what one process sees of it.

    While `full` is set, no write transaction comes to its commit; `interruption` is called once, before the next write.
    """

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.full = False
        self.interruption: Callable[[], None] | None = None
        self._open: list[SqlJournal | SqlRecords] = []

    def database(self, min_free_mb: int, max_size_mb: int | None) -> Database:
        raise NotImplementedError

    def open(self, min_free_mb: int = 0, max_size_mb: int | None = None, holder: str | None = None) -> SqlJournal:
        journal = SqlJournal(self.database(min_free_mb, max_size_mb), holder)
        self._open.append(journal)
        return journal

    def records(self) -> SqlRecords:
        records = SqlRecords(self.database(0, None))
        self._open.append(records)
        return records

    def close(self, journal: SqlJournal | SqlRecords) -> None:
        self._open.remove(journal)
        journal.close()

    def close_all(self) -> None:
        self.full = False
        for journal in list(self._open):
            self.close(journal)

    def failing_commits(self) -> AbstractContextManager[None]:
        """While this lasts, the database itself fails at the commit of an event, after it took the statement."""
        raise NotImplementedError

    def refuse(self, table: str) -> None:
        """Let the database take no rows into this table from now on."""
        raise NotImplementedError

    def hinder(self) -> None:
        """Before a transaction of one statement, which fails as a whole."""
        interruption, self.interruption = self.interruption, None
        if interruption is not None:
            interruption()
        if self.full:
            raise JournalUnavailable("database or disk is full")

    @contextmanager
    def hindered(self, transaction: AbstractContextManager[Connection]) -> Iterator[Connection]:
        interruption, self.interruption = self.interruption, None
        if interruption is not None:
            interruption()
        with transaction as connection:
            yield connection
            if self.full:
                raise OperationalError("COMMIT", {}, sqlite3.OperationalError("database or disk is full"))


def hindered(store: Store, kind: type[Any]) -> type[Any]:
    """A kind of database that is on the store's clock, and that the store can hinder."""

    class Hindered(kind):
        def now(self) -> float:
            return store.clock.now

        def write(self, *, lasting: bool = True) -> AbstractContextManager[Connection]:
            return store.hindered(super().write(lasting=lasting))

        def add_events(self, arrivals: Sequence[Arrival], connection: Connection | None = None) -> set[str]:
            if connection is None:
                store.hinder()
            return super().add_events(arrivals, connection)

    return Hindered


class SqliteStore(Store):
    """SQLite on a clock of ours, on a disk that is full when we say so."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "journal.sqlite"

    def database(self, min_free_mb: int, max_size_mb: int | None) -> Database:
        return hindered(self, SqliteDatabase)(self.path, min_free_mb, max_size_mb)

    @contextmanager
    def failing_commits(self) -> Iterator[None]:
        """Rows reach the file at the commit, and this process may not make the file larger."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        log = self.path.with_name(self.path.name + "-wal")
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 10, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def refuse(self, table: str) -> None:
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute(f"CREATE TRIGGER no BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'no'); END")


class PostgresStore(Store):
    """A database of its own in the PostgreSQL of the tests, on a clock of ours."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.url = new_database()

    def database(self, min_free_mb: int, max_size_mb: int | None) -> Database:
        return hindered(self, PostgresDatabase)(self.url, max_size_mb)

    @contextmanager
    def failing_commits(self) -> Iterator[None]:
        self.refuse("events")
        yield
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("DROP TRIGGER no ON events")

    def refuse(self, table: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(
                "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$"
            )
            connection.execute(
                f"CREATE CONSTRAINT TRIGGER no AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION no()"
            )


@pytest.fixture(params=[pytest.param(SqliteStore, id="sqlite"), pytest.param(PostgresStore, id="postgresql")])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    store: Store = request.param(tmp_path)
    yield store
    store.close_all()


@pytest.fixture
def journal(store: Store) -> SqlJournal:
    return store.open()


@pytest.fixture
def clock(store: Store) -> Clock:
    return store.clock


def accept(journal: SqlJournal, *names: str, received_at: float = 1000.0) -> list[Acceptance]:
    return [journal.accept(Arrival(name, body(name), received_at)) for name in names]


def body(name: str) -> bytes:
    return f"body of {name}".encode()


def owe(journal: SqlJournal, sink: str, *names: str, received_at: float = 1000.0) -> list[Kept]:
    """Accept these events and owe them to one sink."""
    accept(journal, *names, received_at=received_at)
    kept = [kept for kept in journal.unmatched(1000) if kept.id in names]
    journal.owe([(one, [sink]) for one in kept])
    return kept


def claim(journal: SqlJournal, sink: str, most: int = 1000, seconds: float = 60.0) -> list[Delivery]:
    return journal.claim(sink, most, seconds)


def names_of(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.event.id for delivery in deliveries]


def settle(journal: SqlJournal, deliveries: Sequence[Delivery], result: Result, due: float = 0.0) -> None:
    journal.settle([Settlement(delivery, result, due, "said so") for delivery in deliveries])


def count(journal: SqlJournal, sink: str) -> tuple[int, int, int]:
    """Delivered, pending and dead."""
    of_sink = journal.counts().sinks[sink]
    return of_sink.delivered, of_sink.pending, of_sink.dead


def inside(journal: SqlJournal) -> tuple[int, int]:
    """Unmatched and quarantined."""
    counts = journal.counts()
    return counts.unmatched, counts.quarantined


def test_a_new_id_is_accepted_and_a_repeated_one_changes_nothing(journal: SqlJournal) -> None:
    assert journal.accept(Arrival("a", b"first", 1000.5)) is Acceptance.ACCEPTED
    assert journal.accept(Arrival("a", b"second", 2000.5)) is Acceptance.DUPLICATE
    assert [(kept.id, kept.body, kept.received_at) for kept in journal.unmatched(10)] == [("a", b"first", 1000.5)]


def test_a_body_is_kept_byte_for_byte(journal: SqlJournal) -> None:
    whole = bytes(range(256)) * 1000
    journal.accept(Arrival("a", whole, 1000.0))
    journal.accept(Arrival("b", b"", 1000.0))
    assert [kept.body for kept in journal.unmatched(10)] == [whole, b""]


def test_an_id_stays_a_duplicate_when_it_is_settled(journal: SqlJournal) -> None:
    owe(journal, "s", "a")
    settle(journal, claim(journal, "s"), Result.DELIVERED)
    assert accept(journal, "a") == [Acceptance.DUPLICATE]
    assert (journal.counts().unmatched, count(journal, "s")) == (0, (1, 0, 0))


def test_ids_that_differ_only_in_case_are_different_events(journal: SqlJournal) -> None:
    assert accept(journal, "abc", "ABC") == [Acceptance.ACCEPTED, Acceptance.ACCEPTED]


def test_a_push_in_quarantine_is_kept_once_and_is_no_event(journal: SqlJournal) -> None:
    odd = Arrival("5f" * 32, b"not an event", 1000.0, "the body is not JSON")
    assert [journal.accept(odd), journal.accept(odd)] == [Acceptance.QUARANTINED] * 2
    assert inside(journal) == (0, 1)
    assert journal.unmatched(10) == []


def test_an_event_and_a_quarantined_push_may_share_an_id(journal: SqlJournal) -> None:
    journal.accept(Arrival("a", b"odd", 1000.0, "odd"))
    assert accept(journal, "a") == [Acceptance.ACCEPTED]
    assert inside(journal) == (1, 1)


def test_many_threads_at_once_lose_and_double_nothing(journal: SqlJournal) -> None:
    names = [f"{thread}-{number}" for thread in range(16) for number in range(20)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda name: accept(journal, name)[0], names))
    assert answers == [Acceptance.ACCEPTED] * len(names)
    assert sorted(kept.id for kept in journal.unmatched(1000)) == sorted(names)


def test_one_id_pushed_by_many_threads_at_once_is_accepted_by_one(journal: SqlJournal) -> None:
    together = threading.Barrier(16)

    def push(name: str) -> Acceptance:
        together.wait(20)
        return journal.accept(Arrival(name, b"", 1000.0, None))

    with ThreadPoolExecutor(16) as pool:
        for name in ("a", "b", "c"):
            answers = list(pool.map(push, [name] * 16))
            assert sorted(answers) == [Acceptance.ACCEPTED, *[Acceptance.DUPLICATE] * 15]
    assert [kept.id for kept in journal.unmatched(10)] == ["a", "b", "c"]


def test_in_one_commit_each_push_gets_its_own_answer_and_an_id_is_accepted_once(store: Store) -> None:
    journal = store.open()
    accept(journal, "z known")
    together = [
        Arrival("z known", b"", 1000.0),
        Arrival("same", b"", 1000.0),
        Arrival("odd", b"", 1000.0, "the body is not JSON"),
        Arrival("a new", b"", 1000.0),
        Arrival("same", b"", 1000.0),
    ]
    store.interruption = lambda: wait_until(lambda: waiting() == len(together), what="all in line")

    def waiting() -> int:
        return len(journal._group._queue)

    with ThreadPoolExecutor(6) as pool:
        leading = pool.submit(accept, journal, "first")
        wait_until(lambda: store.interruption is None, what="a commit that waits")
        following = []
        for number, arrival in enumerate(together):
            following.append(pool.submit(journal.accept, arrival))
            wait_until(lambda number=number: waiting() > number, what="a push in line")  # type: ignore[misc]
        assert leading.result(20) == [Acceptance.ACCEPTED]
        answers = [one.result(20) for one in following]
    assert sorted(answers[1::3]) == ["accepted", "duplicate"]
    assert (answers[0], answers[2], answers[3]) == ("duplicate", "quarantined", "accepted")
    assert sorted(kept.id for kept in journal.unmatched(10)) == ["a new", "first", "same", "z known"]


EVENT = Arrival("event", b"", 1000.0)
PROVEN = Arrival("proven", b"", 1000.0, None, "DT_SIGNATURE_SECRET")
ODD = Arrival("5f" * 32, b"odd", 1000.0, "the body is not JSON")


@pytest.mark.parametrize(
    "group",
    [
        pytest.param([EVENT], id="an event"),
        pytest.param([Arrival(str(n), b"x" * 1000, 1000.0) for n in range(256)], id="many events"),
        pytest.param([EVENT, PROVEN], id="events, and a secret to note"),
        pytest.param([ODD, EVENT], id="an event and what is none"),
    ],
)
def test_a_commit_that_fails_keeps_nothing_and_what_is_pushed_again_is_new(group: list[Arrival], store: Store) -> None:
    journal, other = store.open(), store.open()
    accept(journal, "before")
    with store.failing_commits():
        for _ in range(2):
            with pytest.raises(JournalUnavailable):
                journal._accept_all(group)
        assert inside(other) == (1, 0)
    expected = [Acceptance.ACCEPTED if one.quarantine is None else Acceptance.QUARANTINED for one in group]
    assert journal._accept_all(group) == expected
    assert inside(other) == (1 + expected.count(Acceptance.ACCEPTED), expected.count(Acceptance.QUARANTINED))


@pytest.mark.parametrize(("table", "group"), [("secrets", [EVENT, PROVEN]), ("quarantine", [ODD, EVENT])])
def test_events_and_what_comes_with_them_are_kept_in_one_commit(table: str, group: list[Arrival], store: Store) -> None:
    """Each commit may wait for a lock, and a push has time for one such wait."""
    journal = store.open()
    store.refuse(table)
    with pytest.raises(JournalUnavailable):
        journal._accept_all(group)
    assert inside(journal) == (0, 0)


def test_a_commit_with_more_than_events_tells_what_is_new_from_what_is_known(store: Store) -> None:
    journal = store.open()
    accept(journal, "known")
    group = [EVENT, PROVEN, ODD, EVENT, Arrival("known", b"", 1000.0)]
    assert journal._accept_all(group) == ["accepted", "accepted", "quarantined", "duplicate", "duplicate"]
    assert sorted(kept.id for kept in journal.unmatched(10)) == ["event", "known", "proven"]


def test_several_processes_accept_into_one_journal(store: Store) -> None:
    doors = [store.open() for _ in range(3)]
    names = [str(number) for number in range(60)]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda door: accept(door, *names), doors))
    assert [sorted(answer) for answer in zip(*answers, strict=True)] == [["accepted", "duplicate", "duplicate"]] * 60
    assert sorted(kept.id for kept in doors[0].unmatched(1000)) == sorted(names)


def test_unmatched_gives_the_oldest_first_and_no_more_than_asked_until_they_are_owed(journal: SqlJournal) -> None:
    accept(journal, "c", "a", "b")
    assert [kept.id for kept in journal.unmatched(2)] == ["c", "a"]
    assert [kept.id for kept in journal.unmatched(2)] == ["c", "a"]
    journal.owe([(kept, []) for kept in journal.unmatched(2)])
    assert [kept.id for kept in journal.unmatched(2)] == ["b"]


def test_an_event_is_owed_to_exactly_the_sinks_beside_it(journal: SqlJournal) -> None:
    accept(journal, "a", "b", "c")
    first, second, third = journal.unmatched(10)
    journal.owe([(first, ["x", "y"]), (second, ["y"]), (third, [])])
    assert {sink: names_of(claim(journal, sink)) for sink in "xyz"} == {"x": ["a"], "y": ["a", "b"], "z": []}
    assert journal.counts().unmatched == 0


@pytest.mark.parametrize(
    ("results", "then"),
    [
        pytest.param([], (0, 1, 0), id="pending"),
        pytest.param([Result.FAILED], (0, 1, 0), id="failed"),
        pytest.param([Result.WAITING], (0, 1, 0), id="waiting"),
        pytest.param([Result.DELIVERED], (1, 0, 0), id="delivered"),
        pytest.param([Result.DEAD], (0, 0, 1), id="dead"),
    ],
)
def test_owing_again_changes_nothing(
    results: list[Result], then: tuple[int, int, int], journal: SqlJournal, clock: Clock
) -> None:
    (kept,) = owe(journal, "s", "a")
    for result in results:
        settle(journal, claim(journal, "s"), result, clock.now + 100)
    due = journal.next_due("s")
    clock.advance(50)
    journal.owe([(kept, ["s"])])
    journal.owe([(kept, ["s", "s"])])
    assert (count(journal, "s"), journal.next_due("s")) == (then, due)


def test_owing_again_leaves_a_claim_alone(journal: SqlJournal) -> None:
    (kept,) = owe(journal, "s", "a")
    claimed = claim(journal, "s")
    journal.owe([(kept, ["s"])])
    assert claim(journal, "s") == []
    settle(journal, claimed, Result.DEAD)
    assert count(journal, "s") == (0, 0, 1)


def test_nothing_to_do_is_done(journal: SqlJournal) -> None:
    journal.owe([])
    journal.extend([], 60.0)
    journal.settle([])
    assert (journal.unmatched(0), journal.claim("s", 0, 60.0)) == ([], [])


def test_a_sink_nobody_knows_is_owed_nothing(journal: SqlJournal) -> None:
    assert journal.next_due("nobody") is None
    assert claim(journal, "nobody") == []
    assert journal.counts().sinks.get("nobody", SinkCount()) == SinkCount()


def test_a_claim_tells_all_of_a_delivery(journal: SqlJournal) -> None:
    (kept,) = owe(journal, "s", "a", received_at=1234.5)
    assert kept == Kept(kept.key, "a", body("a"), 1234.5)
    assert claim(journal, "s") == [Delivery(kept, "s", attempt=1, failures=0, age=0.0)]


def test_a_claim_takes_only_what_is_due(journal: SqlJournal, clock: Clock) -> None:
    owe(journal, "s", "a", "b")
    first, second = claim(journal, "s")
    settle(journal, [first], Result.FAILED, clock.now + 10)
    settle(journal, [second], Result.FAILED, clock.now + 20)
    clock.advance(9.5)
    assert claim(journal, "s") == []
    clock.advance(0.5)
    assert names_of(claim(journal, "s")) == ["a"]
    clock.advance(10)
    assert names_of(claim(journal, "s")) == ["b"]


def test_what_has_been_due_the_longest_is_claimed_first(journal: SqlJournal, clock: Clock) -> None:
    owe(journal, "s", "a", "b", "c")
    due = {"a": clock.now + 30, "b": clock.now + 10, "c": clock.now + 20}
    for delivery in claim(journal, "s"):
        settle(journal, [delivery], Result.FAILED, due[delivery.event.id])
    clock.advance(15)
    owe(journal, "s", "d")
    clock.advance(60)
    assert [names_of(claim(journal, "s", most=1)) for _ in range(5)] == [["b"], ["d"], ["c"], ["a"], []]


def test_events_due_at_the_same_time_are_claimed_in_order_of_receipt(journal: SqlJournal) -> None:
    accept(journal, *"dacb")
    journal.owe([(kept, ["s"]) for kept in reversed(journal.unmatched(10))])
    assert [names_of(claim(journal, "s", most=2)) for _ in range(3)] == [["d", "a"], ["c", "b"], []]


def test_a_large_claim_is_possible(journal: SqlJournal) -> None:
    journal._accept_all([Arrival(str(number), b"", 1000.0) for number in range(10_000)])
    journal.owe([(kept, ["s"]) for kept in journal.unmatched(10_000)])
    claimed = claim(journal, "s", most=10_000)
    assert len(claimed) == 10_000
    journal.extend(claimed, 60.0)
    settle(journal, claimed, Result.DELIVERED)
    assert count(journal, "s") == (10_000, 0, 0)


def test_a_claim_excludes_everyone_until_it_ends_and_then_counts_one_attempt_more(store: Store) -> None:
    journal, other = store.open(), store.open()
    owe(journal, "s", "a")
    assert [delivery.attempt for delivery in claim(journal, "s", seconds=60)] == [1]
    store.clock.advance(59.5)
    assert claim(journal, "s") == claim(other, "s") == []
    store.clock.advance(0.5)
    assert [(delivery.attempt, delivery.failures) for delivery in claim(other, "s")] == [(2, 0)]


def test_claims_by_many_threads_share_no_delivery(journal: SqlJournal) -> None:
    owe(journal, "s", *(str(number) for number in range(100)))
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda _: names_of(claim(journal, "s", most=5)), range(30)))
    assert sorted(name for names in claims for name in names) == sorted(str(number) for number in range(100))


def test_extending_moves_the_end_of_a_claim(journal: SqlJournal, clock: Clock) -> None:
    owe(journal, "s", "a")
    claimed = claim(journal, "s", seconds=60)
    clock.advance(50)
    journal.extend(claimed, 60)
    assert journal.next_due("s") == clock.now + 60
    clock.advance(59.5)
    assert claim(journal, "s") == []
    clock.advance(0.5)
    assert names_of(claim(journal, "s")) == ["a"]


@pytest.mark.parametrize("result", list(Result))
def test_extending_what_is_settled_changes_nothing(result: Result, journal: SqlJournal, clock: Clock) -> None:
    owe(journal, "s", "a")
    claimed = claim(journal, "s")
    settle(journal, claimed, result, clock.now)
    before = journal.counts(), journal.next_due("s")
    journal.extend(claimed, 600)
    assert (journal.counts(), journal.next_due("s")) == before


def test_extending_what_another_holds_changes_nothing(store: Store) -> None:
    journal, other = store.open(), store.open()
    owe(journal, "s", "a")
    lost = claim(journal, "s", seconds=60)
    store.clock.advance(60)
    claim(other, "s", seconds=60)
    journal.extend(lost, 6000)
    assert journal.next_due("s") == store.clock.now + 60


@dataclass(frozen=True)
class After:
    """What settling a first attempt leads to, 30 seconds being asked for: counts, and the next attempt if any.

    `totals` are the sink's attempts and failures.
    """

    counts: tuple[int, int, int]
    totals: tuple[int, int]
    next_in: float | None = None
    attempt: int = 0
    failures: int = 0


AFTER = {
    Result.DELIVERED: After((1, 0, 0), (1, 0)),
    Result.DEAD: After((0, 0, 1), (1, 1)),
    Result.FAILED: After((0, 1, 0), (1, 1), 30.0, attempt=2, failures=1),
    Result.WAITING: After((0, 1, 0), (1, 0), 30.0, attempt=2, failures=0),
    Result.UNTOUCHED: After((0, 1, 0), (0, 0), 0.0, attempt=1, failures=0),
}


@pytest.mark.parametrize(("result", "after"), AFTER.items())
def test_a_result_is_recorded_and_ends_the_claim(
    result: Result, after: After, journal: SqlJournal, clock: Clock
) -> None:
    owe(journal, "s", "a")
    settle(journal, claim(journal, "s"), result, clock.now + 30)
    of_sink = journal.counts().sinks["s"]
    assert (count(journal, "s"), (of_sink.attempts, of_sink.failures)) == (after.counts, after.totals)
    if after.next_in is None:
        assert journal.next_due("s") is None
        clock.advance(1000 * DAY)
        assert claim(journal, "s") == []
    else:
        assert journal.next_due("s") == clock.now + after.next_in
        clock.advance(after.next_in)
        (again,) = claim(journal, "s")
        assert (again.attempt, again.failures) == (after.attempt, after.failures)


@pytest.mark.parametrize(("result", "after"), AFTER.items())
def test_a_result_that_is_recorded_again_changes_nothing(
    result: Result, after: After, journal: SqlJournal, clock: Clock
) -> None:
    owe(journal, "s", "a")
    claimed = claim(journal, "s")
    settle(journal, claimed, result, clock.now + 30)
    before = journal.counts(), journal.next_due("s")
    clock.advance(1)
    for repeated in (result, *Result):
        if after.next_in is None or repeated is not Result.DELIVERED:
            settle(journal, claimed, repeated, clock.now + 5)
    assert (journal.counts(), journal.next_due("s")) == before


@pytest.mark.parametrize(("result", "after"), AFTER.items())
def test_from_one_who_does_not_hold_the_claim_only_delivered_is_believed(
    result: Result, after: After, store: Store
) -> None:
    loser, holder = store.open(), store.open()
    owe(loser, "s", "a")
    lost = claim(loser, "s")
    store.clock.advance(60)
    (held,) = claim(holder, "s")
    settle(loser, lost, result, store.clock.now)
    if result is Result.DELIVERED:
        assert (count(holder, "s"), holder.next_due("s")) == ((1, 0, 0), None)
        settle(holder, [held], Result.FAILED, store.clock.now)
        assert (count(holder, "s"), holder.next_due("s")) == ((1, 0, 0), None)
    else:
        assert (count(holder, "s"), holder.next_due("s")) == ((0, 1, 0), store.clock.now + 60)
        settle(holder, [held], Result.FAILED, store.clock.now)
        assert [(again.attempt, again.failures) for again in claim(holder, "s")] == [(3, 1)]


@pytest.mark.parametrize("result", [Result.DEAD, Result.FAILED, Result.WAITING, Result.UNTOUCHED])
def test_a_result_of_a_claim_that_ended_does_not_end_the_next_claim(
    result: Result, journal: SqlJournal, clock: Clock
) -> None:
    owe(journal, "s", "a")
    ended = claim(journal, "s", seconds=60)
    clock.advance(60)
    claim(journal, "s", seconds=60)
    settle(journal, ended, result, clock.now)
    assert (count(journal, "s"), journal.next_due("s")) == ((0, 1, 0), clock.now + 60)


def test_a_result_comes_from_the_holder_even_after_the_claims_end_as_long_as_nobody_claimed_it_anew(
    journal: SqlJournal, clock: Clock
) -> None:
    owe(journal, "s", "a")
    claimed = claim(journal, "s", seconds=60)
    clock.advance(600)
    settle(journal, claimed, Result.FAILED, clock.now)
    assert [(again.attempt, again.failures) for again in claim(journal, "s")] == [(2, 1)]


def test_dead_is_final_even_when_a_late_success_comes_in(store: Store) -> None:
    journal, other = store.open(), store.open()
    owe(journal, "s", "a")
    claimed = claim(journal, "s")
    settle(journal, claimed, Result.DEAD)
    settle(other, claimed, Result.DELIVERED)
    assert count(journal, "s") == (0, 0, 1)


def test_attempts_and_failures_add_up_over_many_claims(journal: SqlJournal, clock: Clock) -> None:
    owe(journal, "s", "a")
    seen = []
    for result in (Result.FAILED, Result.UNTOUCHED, Result.WAITING, Result.FAILED, Result.UNTOUCHED, Result.FAILED):
        claimed = claim(journal, "s")
        seen += [(delivery.attempt, delivery.failures) for delivery in claimed]
        settle(journal, claimed, result, clock.now)
    assert seen == [(1, 0), (2, 1), (2, 1), (3, 1), (4, 2), (4, 2)]
    assert [(last.attempt, last.failures) for last in claim(journal, "s")] == [(5, 3)]


def test_one_settling_takes_many_results_of_a_sink(journal: SqlJournal, clock: Clock) -> None:
    owe(journal, "s", *"abcdefgh")
    claimed = claim(journal, "s")
    results = [Result.DEAD, *[Result.DELIVERED] * 3, Result.FAILED, Result.WAITING, Result.UNTOUCHED, Result.FAILED]
    journal.settle(
        [
            Settlement(delivery, result, clock.now + number, f"why {number}")
            for number, (delivery, result) in enumerate(zip(claimed, results, strict=True))
        ]
    )
    assert count(journal, "s") == (3, 4, 1)
    clock.advance(100)
    again = {one.event.id: (one.attempt, one.failures) for one in claim(journal, "s")}
    assert again == {"e": (2, 1), "f": (2, 0), "g": (1, 0), "h": (2, 1)}


def test_age_counts_from_the_first_attempt(journal: SqlJournal, clock: Clock) -> None:
    owe(journal, "s", "a")
    clock.advance(500)
    ages = []
    for seconds in (10, 20, 30):
        (claimed,) = claim(journal, "s")
        ages.append(claimed.age)
        settle(journal, [claimed], Result.FAILED, clock.now + seconds)
        clock.advance(seconds)
    assert ages == [0.0, 10.0, 30.0]


def test_age_stands_still_while_the_sink_is_paused(journal: SqlJournal, clock: Clock) -> None:
    owe(journal, "s", "a")

    def age() -> float:
        (claimed,) = claim(journal, "s")
        settle(journal, [claimed], Result.WAITING, clock.now)
        return claimed.age

    assert age() == 0.0
    clock.advance(10)
    journal.remember(SinkState("s", pauses=1, paused_until=clock.now + 50))
    clock.advance(100)
    assert age() == 10.0
    journal.remember(SinkState("s", pauses=2, paused_until=clock.now + 50, on_trial=True))
    clock.advance(1000)
    assert age() == 10.0
    journal.remember(SinkState("s"))
    clock.advance(7)
    assert age() == 17.0
    journal.remember(SinkState("s"))
    assert age() == 17.0
    journal.remember(SinkState("s", pauses=1))
    clock.advance(100)
    journal.remember(SinkState("s"))
    assert age() == 17.0


def test_age_is_right_for_a_first_attempt_during_a_pause(journal: SqlJournal, clock: Clock) -> None:
    owe(journal, "s", "a")
    journal.remember(SinkState("s", pauses=1))
    clock.advance(100)
    settle(journal, claim(journal, "s"), Result.WAITING, clock.now)
    clock.advance(100)
    journal.remember(SinkState("s"))
    clock.advance(5)
    assert [claimed.age for claimed in claim(journal, "s")] == [5.0]


def test_the_pause_of_one_sink_leaves_the_age_of_others_alone(journal: SqlJournal, clock: Clock) -> None:
    accept(journal, "a")
    journal.owe([(kept, ["x", "y"]) for kept in journal.unmatched(1)])
    for sink in "xy":
        settle(journal, claim(journal, sink), Result.FAILED, clock.now)
    journal.remember(SinkState("x", pauses=1))
    clock.advance(100)
    assert [claimed.age for sink in "xy" for claimed in claim(journal, sink)] == [0.0, 100.0]


def test_what_was_never_tried_does_not_age(journal: SqlJournal, clock: Clock) -> None:
    owe(journal, "s", "a")
    settle(journal, claim(journal, "s"), Result.UNTOUCHED)
    clock.advance(4 * DAY)
    assert [(claimed.attempt, claimed.age) for claimed in claim(journal, "s")] == [(1, 0.0)]


def test_untouched_does_not_make_a_delivery_younger_that_was_tried_before(journal: SqlJournal, clock: Clock) -> None:
    owe(journal, "s", "a")
    settle(journal, claim(journal, "s"), Result.FAILED, clock.now)
    clock.advance(100)
    settle(journal, claim(journal, "s"), Result.UNTOUCHED)
    clock.advance(100)
    assert [(claimed.attempt, claimed.age) for claimed in claim(journal, "s")] == [(2, 200.0)]


def test_next_due_is_the_earliest_of_due_times_and_ends_of_claims(journal: SqlJournal, clock: Clock) -> None:
    owe(journal, "s", "a")
    assert journal.next_due("s") == clock.now
    first = claim(journal, "s", seconds=60)
    assert journal.next_due("s") == clock.now + 60
    owe(journal, "s", "b")
    settle(journal, claim(journal, "s"), Result.FAILED, clock.now + 30)
    assert journal.next_due("s") == clock.now + 30
    settle(journal, first, Result.FAILED, clock.now + 20)
    assert journal.next_due("s") == clock.now + 20


def test_a_new_dispatcher_voids_claims_and_learns_who_was_in_a_call(store: Store) -> None:
    journal = store.open(holder="here")
    assert journal.begin() == []
    for sink in ("called", "done", "waiting"):
        owe(journal, sink, f"for {sink}")
    claim(journal, "called", seconds=6000)
    settle(journal, claim(journal, "done"), Result.DELIVERED)
    settle(journal, claim(journal, "waiting"), Result.FAILED, store.clock.now + 10)
    store.close(journal)

    successor = store.open(holder="here")
    assert successor.begin() == ["called"]
    assert [(again.attempt, again.failures) for again in claim(successor, "called")] == [(2, 0)]
    assert claim(successor, "waiting") == claim(successor, "done") == []


def test_the_dead_dispatchers_results_count_no_more_except_delivered(store: Store) -> None:
    dead, intake = store.open(holder="here"), store.open()
    dead.begin()
    owe(dead, "s", "a", "b")
    first, second = claim(dead, "s")
    store.close(dead)
    successor = store.open(holder="here")
    successor.begin()
    settle(successor, [first], Result.DEAD)
    settle(intake, [second], Result.DELIVERED)
    assert count(successor, "s") == (1, 1, 0)
    assert names_of(claim(successor, "s")) == ["a"]


def test_beats_are_on_the_wall_clock(journal: SqlJournal) -> None:
    assert journal.last_beat() is None
    before = time.time()
    journal.beat()
    first = journal.last_beat()
    journal.beat()
    last = journal.last_beat()
    assert first is not None
    assert last is not None
    assert before <= first <= last <= time.time()


def test_the_sinks_that_are_enabled_are_those_that_were_named_last(store: Store) -> None:
    journal = store.open()
    assert journal.enabled() == set()
    journal.enable(["a", "b"])
    journal.remember(SinkState("b", pauses=2, pause_reason="why"))
    journal.remember(SinkState("c", pauses=1))
    assert store.open().enabled() == {"a", "b"}
    journal.enable(["b", "d"])
    assert (journal.enabled(), journal.states()["b"].pause_reason) == ({"b", "d"}, "why")
    journal.enable([])
    assert store.open().enabled() == set()


def test_the_journal_of_an_older_receiver_is_brought_up_to_date_and_the_older_one_works_on(store: Store) -> None:
    journal = store.open()
    owe(journal, "s", "a")
    accept(journal, "b")
    with closing(store.database(0, None)) as database, database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE sinks DROP COLUMN enabled")
        connection.exec_driver_sql("UPDATE receiver_schema SET version = 1")

    newer = store.open()

    with closing(store.database(0, None)) as database, database.write() as connection:
        connection.execute(insert(sinks).values(name="made by the older one"))
        assert connection.exec_driver_sql("SELECT version FROM receiver_schema").scalars().all() == [2]
    assert [kept.id for kept in newer.unmatched(10)] == ["b"]
    assert names_of(claim(newer, "s")) == ["a"]
    assert newer.enabled() == {"s"}
    newer.enable(["t"])
    assert store.open().enabled() == {"t"}


@pytest.mark.parametrize("order", ["retry", "drop"])
def test_dead_letters_are_retried_and_dropped_in_parts_that_others_can_come_between(
    order: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_records_module, "AT_ONCE", 2)
    journal, records = store.open(), store.records()
    owe(journal, "s", *"abcde")
    settle(journal, claim(journal, "s"), Result.DEAD)
    parts: list[int] = []

    def noted(*given: Any) -> list[dict[str, Any]]:
        found = SqlRecords._dead(records, *given)
        parts.append(len(found))
        return found

    monkeypatch.setattr(records, "_dead", noted)
    changed = (records.retry_dead if order == "retry" else records.drop_dead)("s", None)
    assert (changed, parts) == (5, [2, 2, 1, 0])
    assert count(journal, "s") == ((0, 5, 0) if order == "retry" else (0, 0, 0))


def test_what_is_remembered_of_a_sink_is_read_back_and_replaced_as_a_whole(store: Store) -> None:
    journal = store.open(holder="here")
    assert journal.states() == {}
    paused = SinkState("x", 3, store.clock.now + 0.5, "it says: “no”", on_trial=True)
    journal.remember(paused)
    journal.remember(SinkState("y"))
    assert store.open(holder="here").states() == {"x": paused, "y": SinkState("y")}
    journal.remember(SinkState("x"))
    assert journal.states() == {"x": SinkState("x"), "y": SinkState("y")}


@pytest.mark.parametrize(
    ("fate", "removed"),
    [
        pytest.param("delivered everywhere", True, id="delivered everywhere"),
        pytest.param("owed to nobody", True, id="owed to nobody"),
        pytest.param("unmatched", False, id="unmatched"),
        pytest.param("pending", False, id="pending"),
        pytest.param("claimed", False, id="claimed"),
        pytest.param("dead", False, id="dead"),
        pytest.param("delivered once, pending once", False, id="delivered once, pending once"),
        pytest.param("delivered once, dead once", False, id="delivered once, dead once"),
        pytest.param("delivered, but young", False, id="delivered, but young"),
    ],
)
def test_only_old_events_that_are_delivered_everywhere_are_retired(
    fate: str, removed: bool, journal: SqlJournal
) -> None:
    accept(journal, "a", received_at=2000.0 if "young" in fate else 1999.5)
    if fate != "unmatched":
        sinks = {"owed to nobody": []}.get(fate, ["x", "y"] if "once" in fate or "everywhere" in fate else ["x"])
        journal.owe([(kept, sinks) for kept in journal.unmatched(1)])
    if "delivered" in fate:
        settle(journal, claim(journal, "x"), Result.DELIVERED)
    if fate in ("dead", "claimed"):
        settle(journal, claim(journal, "x"), Result.DEAD if fate == "dead" else Result.UNTOUCHED)
    if fate == "claimed":
        claim(journal, "x")
    if fate == "delivered everywhere":
        settle(journal, claim(journal, "y"), Result.DELIVERED)
    if fate == "delivered once, dead once":
        settle(journal, claim(journal, "y"), Result.DEAD)
    before = journal.counts()

    journal.retire(2000.0, 10)

    assert accept(journal, "a") == [Acceptance.ACCEPTED if removed else Acceptance.DUPLICATE]
    assert journal.counts().sinks == before.sinks


def test_quarantine_is_not_retired(journal: SqlJournal) -> None:
    journal.accept(Arrival("q", b"odd", 1.0, "odd"))
    journal.retire(2000.0, 10)
    assert inside(journal) == (0, 1)


def test_retiring_goes_in_steps_and_past_events_that_are_still_owed(store: Store) -> None:
    journal, records = store.open(), store.records()

    def removed(most: int) -> int:
        before = records.received_count(0.0, 5000.0)
        journal.retire(2000.0, most)
        return before - records.received_count(0.0, 5000.0)

    owe(journal, "slow", *(f"owed {number}" for number in range(7)))
    owe(journal, "fast", *(f"done {number}" for number in range(5)))
    settle(journal, claim(journal, "fast"), Result.DELIVERED)
    steps = [removed(3) for _ in range(10)]
    assert (max(steps), sum(steps)) == (3, 5)
    settle(journal, claim(journal, "slow"), Result.DELIVERED)
    steps = [removed(3) for _ in range(10)]
    assert (max(steps), sum(steps)) == (3, 7)
    assert (count(journal, "slow"), count(journal, "fast")) == ((7, 0, 0), (5, 0, 0))


def test_retiring_tells_whether_it_is_worth_to_go_on_at_once(journal: SqlJournal) -> None:
    accept(journal, *(str(number) for number in range(4)))
    accept(journal, "young", received_at=3000.0)
    journal.owe([(kept, []) for kept in journal.unmatched(10)])
    assert [bool(journal.retire(2000.0, 2)) for _ in range(4)] == [True, True, False, False]


def test_an_event_owed_anew_while_it_is_being_retired_is_not_lost(store: Store) -> None:
    journal, other = store.open(), store.open()
    (kept,) = owe(journal, "x", "a")
    settle(journal, claim(journal, "x"), Result.DELIVERED)
    store.interruption = lambda: other.owe([(kept, ["y"])])
    journal.retire(2000.0, 10)
    assert names_of(claim(journal, "y")) == ["a"]


def test_an_event_owed_after_it_was_retired_does_not_stop_its_sink(journal: SqlJournal) -> None:
    (gone,) = owe(journal, "x", "gone")
    settle(journal, claim(journal, "x"), Result.DELIVERED)
    accept(journal, "later")
    journal.retire(2000.0, 10)
    journal.owe([(gone, ["y"])])
    owe(journal, "y", "a")
    assert names_of(claim(journal, "y")) == ["a"]
    assert count(journal, "y") == (0, 1, 0)


def test_counts_tell_what_is_in_the_journal(journal: SqlJournal, clock: Clock) -> None:
    assert (inside(journal), journal.counts().sinks) == ((0, 0), {})
    owe(journal, "x", "a", "b", received_at=500.0)
    owe(journal, "x", "c", "d", received_at=1000.0)
    accept(journal, "e")
    journal.accept(Arrival("q", b"odd", 1.0, "odd"))
    first, second, third, _ = claim(journal, "x")
    settle(journal, [first], Result.DELIVERED)
    clock.advance(1)
    settle(journal, [second], Result.DEAD)
    settle(journal, [third], Result.FAILED, clock.now + 10)
    of_x = SinkCount(
        delivered=1,
        pending=2,
        dead=1,
        oldest=1000.0,
        attempts=3,
        failures=2,
        last_success_at=clock.now - 1,
        last_failure_at=clock.now,
        last_failure="said so",
    )
    assert (inside(journal), journal.counts().sinks) == ((1, 1), {"x": of_x})


def test_everything_survives_close_and_reopen(store: Store) -> None:
    journal = store.open()
    owe(journal, "s", "a", "b", "c")
    first, second, third = claim(journal, "s")
    settle(journal, [first], Result.DELIVERED)
    settle(journal, [second], Result.FAILED, store.clock.now + 10)
    settle(journal, [third], Result.DEAD)
    journal.remember(SinkState("s", 1, 5.0, "tired"))
    accept(journal, "d")
    journal.accept(Arrival("q", b"odd", 1.0, "odd"))
    before = journal.counts(), journal.states(), journal.unmatched(10), journal.next_due("s")
    store.close(journal)

    reopened = store.open()
    assert (reopened.counts(), reopened.states(), reopened.unmatched(10), reopened.next_due("s")) == before
    store.clock.advance(10)
    (again,) = claim(reopened, "s")
    assert (again.event, again.attempt, again.failures) == (second.event, 2, 1)


VERBS: dict[str, Callable[[SqlJournal, Delivery], Any]] = {
    "accept": lambda journal, _: accept(journal, "new"),
    "quarantine": lambda journal, _: journal.accept(Arrival("q", b"odd", 1.0, "odd")),
    "owe": lambda journal, _: journal.owe([(kept, ["new sink"]) for kept in journal.unmatched(1)]),
    "claim": lambda journal, _: claim(journal, "s"),
    "claim for a new sink": lambda journal, _: claim(journal, "new sink"),
    "extend": lambda journal, held: journal.extend([held], 600),
    "delivered": lambda journal, held: settle(journal, [held], Result.DELIVERED),
    "failed": lambda journal, held: settle(journal, [held], Result.FAILED),
    "dead": lambda journal, held: settle(journal, [held], Result.DEAD),
    "begin": lambda journal, _: journal.begin(),
    "beat": lambda journal, _: journal.beat(),
    "remember": lambda journal, _: journal.remember(SinkState("new sink", 1)),
    "retire": lambda journal, _: journal.retire(2000.0, 10),
    "check_writable": lambda journal, _: journal.check_writable(),
}


def everything(journal: SqlJournal) -> object:
    return (
        journal.counts(),
        journal.states(),
        [(kept.id, kept.body) for kept in journal.unmatched(10)],
        journal.next_due("s"),
        journal.next_due("new sink"),
    )


@pytest.mark.parametrize("verb", VERBS)
def test_a_commit_that_fails_does_nothing_and_the_same_call_works_later(
    verb: str, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "lucky").mkdir()
    lucky = type(store)(tmp_path / "lucky")
    held: dict[Store, Delivery] = {}
    journals = {one: one.open() for one in (store, lucky)}
    for one, journal in journals.items():
        owe(journal, "s", "old")
        settle(journal, claim(journal, "s"), Result.DELIVERED)
        owe(journal, "s", "held")
        (held[one],) = claim(journal, "s")
        accept(journal, "unmatched")

    before = everything(journals[store])
    store.full = True
    with pytest.raises(JournalUnavailable):
        VERBS[verb](journals[store], held[store])
    assert everything(journals[store]) == before
    store.full = False
    outcomes = [VERBS[verb](journal, held[one]) for one, journal in journals.items()]
    assert outcomes[0] == outcomes[1]
    assert everything(journals[store]) == everything(journals[lucky])
    lucky.close_all()


def test_a_sink_first_named_in_a_failed_commit_is_not_mistaken_for_another_later(store: Store) -> None:
    journal = store.open()
    accept(journal, "for x", "for y")
    for_x, for_y = journal.unmatched(10)
    store.full = True
    with pytest.raises(JournalUnavailable):
        journal.owe([(for_x, ["x"])])
    store.full = False
    journal.owe([(for_y, ["y"])])
    journal.owe([(for_x, ["x"])])
    assert {sink: names_of(claim(journal, sink)) for sink in "xy"} == {"x": ["for x"], "y": ["for y"]}


def test_a_sink_first_claimed_for_in_a_failed_commit_can_be_claimed_for_later(store: Store) -> None:
    journal = store.open()
    store.full = True
    with pytest.raises(JournalUnavailable):
        claim(journal, "s")
    store.full = False
    assert claim(journal, "s") == []


SINKS = {"all": range(12), "even": range(0, 12, 2), "few": (1, 2, 3)}
"""Which events each sink of the property test wants."""


@dataclass
class Owed:
    """What the property test knows of one delivery."""

    due: float
    key: int
    state: str = "pending"
    held: bool = False
    attempts: int = 0
    failures: int = 0
    latest: Delivery | None = None


class AnySequence(RuleBasedStateMachine):
    """Whatever happens in whatever order: each event and matching sink is exactly one of pending, delivered, dead."""

    store_type: type[Store] = SqliteStore

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = self.store_type(Path(self.folder.name))
        self.journal = self.store.open(holder="here")
        assert self.journal.begin() == []
        self.accepted: list[int] = []
        self.matched: dict[int, Kept] = {}
        self.owed: dict[tuple[int, str], Owed] = {}

    @property
    def now(self) -> float:
        return self.store.clock.now

    @rule(number=st.integers(0, 11))
    def accept(self, number: int) -> None:
        answer = self.journal.accept(Arrival(f"e{number}", b"%d" % number, 1000.0 + number))
        assert answer is (Acceptance.DUPLICATE if number in self.accepted else Acceptance.ACCEPTED)
        if number not in self.accepted:
            self.accepted.append(number)

    @rule(most=st.integers(1, 4))
    def match(self, most: int) -> None:
        new = self.journal.unmatched(most)
        numbers = [int(kept.body) for kept in new]
        assert numbers == [number for number in self.accepted if number not in self.matched][:most]
        if new:
            self.journal.owe([(kept, self.wanted_by(int(kept.body))) for kept in new])
        for kept, number in zip(new, numbers, strict=True):
            self.matched[number] = kept
            for sink in self.wanted_by(number):
                self.owed[number, sink] = Owed(self.now, kept.key)

    @staticmethod
    def wanted_by(number: int) -> list[str]:
        return [sink for sink, wanted in SINKS.items() if number in wanted]

    @precondition(lambda self: self.matched)
    @rule(data=st.data())
    def owe_again(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.matched)))
        self.journal.owe([(self.matched[number], self.wanted_by(number))])

    @rule(sink=st.sampled_from(sorted(SINKS)), most=st.integers(1, 5), seconds=st.sampled_from([1.0, 60.0]))
    def claim(self, sink: str, most: int, seconds: float) -> None:
        due = [
            (owed.due, owed.key, number)
            for (number, owner), owed in self.owed.items()
            if owner == sink and owed.state == "pending" and owed.due <= self.now
        ]
        claimed = self.journal.claim(sink, most, seconds)
        assert sorted(int(delivery.event.body) for delivery in claimed) == sorted(due[2] for due in sorted(due)[:most])
        for delivery in claimed:
            owed = self.owed[int(delivery.event.body), sink]
            owed.due, owed.held, owed.latest = self.now + seconds, True, delivery
            owed.attempts += 1
            assert (delivery.attempt, delivery.failures) == (owed.attempts, owed.failures)

    @precondition(lambda self: any(owed.latest for owed in self.owed.values()))
    @rule(data=st.data(), result=st.sampled_from(Result), wait=st.sampled_from([0.0, 5.0, 500.0]))
    def settle(self, data: st.DataObject, result: Result, wait: float) -> None:
        """Record a result of the latest claim, whether it is still held, has ended, or was settled before."""
        name = data.draw(st.sampled_from(sorted(key for key, owed in self.owed.items() if owed.latest)))
        owed = self.owed[name]
        assert owed.latest is not None
        self.journal.settle([Settlement(owed.latest, result, self.now + wait, "said so")])
        if owed.state != "pending" or not (owed.held or result is Result.DELIVERED):
            return
        owed.held = False
        if result in (Result.DELIVERED, Result.DEAD):
            owed.state = result.value
        else:
            owed.due = self.now if result is Result.UNTOUCHED else self.now + wait
            owed.attempts -= result is Result.UNTOUCHED
            owed.failures += result is Result.FAILED

    @rule(seconds=st.sampled_from([0.5, 5.0, 61.0]))
    def advance(self, seconds: float) -> None:
        self.store.clock.advance(seconds)

    @rule(sink=st.sampled_from(sorted(SINKS)), pauses=st.integers(0, 2))
    def pause_or_resume(self, sink: str, pauses: int) -> None:
        state = SinkState(sink, pauses, self.now + 10.0 * pauses, "tired" if pauses else "")
        self.journal.remember(state)
        assert self.journal.states()[sink] == state

    @rule()
    def crash(self) -> None:
        self.store.close(self.journal)
        self.journal = self.store.open(holder="here")
        held = [(sink, owed) for (_, sink), owed in self.owed.items() if owed.state == "pending" and owed.held]
        assert sorted(self.journal.begin()) == sorted({sink for sink, _ in held})
        for _, owed in held:
            owed.held, owed.due = False, self.now

    @invariant()
    def every_delivery_is_in_exactly_one_state(self) -> None:
        counts = self.journal.counts()
        assert counts.unmatched == len(self.accepted) - len(self.matched)
        for sink in SINKS:
            states = [owed.state for (_, owner), owed in self.owed.items() if owner == sink]
            seen = counts.sinks.get(sink, SinkCount())
            assert (seen.delivered, seen.pending, seen.dead) == tuple(
                states.count(state) for state in ("delivered", "pending", "dead")
            )

    def teardown(self) -> None:
        """In the end all that is pending comes out, and nothing that is delivered or dead."""
        try:
            self.match(100)
            self.crash()
            self.store.clock.advance(10 * DAY)
            for sink in SINKS:
                pending = [
                    number for (number, owner), owed in self.owed.items() if owner == sink and owed.state == "pending"
                ]
                claimed = self.journal.claim(sink, 100, 60.0)
                assert sorted(int(delivery.event.body) for delivery in claimed) == sorted(pending)
            assert set(self.owed) == {(e, s) for e in self.accepted for s in self.wanted_by(e)}
        finally:
            self.store.close_all()
            self.folder.cleanup()


class AnySequenceOnPostgresql(AnySequence):
    store_type = PostgresStore


TestAnySequence = AnySequence.TestCase
TestAnySequenceOnPostgresql = AnySequenceOnPostgresql.TestCase
TestAnySequenceOnPostgresql.settings = settings(
    max_examples=10, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestAnySequence.settings = settings(
    max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
