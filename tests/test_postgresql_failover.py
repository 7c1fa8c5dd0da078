"""The database fails over: the next calls succeed without a restart, and 200 means that the standby has the event."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from conftest import wait_until
from support.failover import Address, primary_and_standby
from support.journals import accept

from chaos.pair import WAITS_FOR_STANDBY, Node, Pair
from receiver.errors import JournalUnavailable
from receiver.journal import Arrival, Journal, Outcome, SinkState
from receiver.journal.sql import postgresql_connection
from receiver.journal.sql.journal import SqlJournal
from receiver.journal.sql.postgresql import PostgresqlDatabase


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node, Address]]:
    with primary_and_standby() as made:
        yield made


def succeeds(call: Callable[[Journal], object], journal: Journal) -> bool:
    try:
        call(journal)
    except JournalUnavailable:
        return False
    return True


CALLS: dict[str, Callable[[Journal], object]] = {
    "accept": lambda journal: journal.accept([Arrival(f"new-{time.time_ns()}", b"{}", time.time())]),
    "accept with a secret": lambda journal: journal.accept(
        [Arrival(f"new-{time.time_ns()}", b"{}", time.time(), secret=f"S{time.time_ns()}")]
    ),
    "unrouted": lambda journal: journal.unrouted(10),
    "claim": lambda journal: journal.claim("s", 1, 60.0),
    "report_alive": lambda journal: journal.report_alive(),
    "save_sink_state": lambda journal: journal.save_sink_state(SinkState("s")),
    "check_writable": lambda journal: journal.check_writable(),
    "counts": lambda journal: journal.counts(),
}


def test_after_a_failover_every_call_works_on_the_new_primary_without_a_restart(
    nodes: tuple[Node, Node, Address],
) -> None:
    """The old primary comes back as a read-only standby, and sessions that lead to it stay open."""
    primary, standby, address = nodes
    journals = {name: SqlJournal(PostgresqlDatabase(address.url, None), name.replace(" ", "")) for name in CALLS}
    for name, call in CALLS.items():
        call(journals[name])
    primary.stop()
    assert [name for name, call in CALLS.items() if succeeds(call, journals[name])] == []
    standby.promote()
    primary.follow(standby)
    primary.start()  # the address still leads to it
    for name, call in CALLS.items():
        if name != "counts":
            assert not succeeds(call, journals[name]), f"{name} wrote to a standby"

    address.node = standby
    moved = time.monotonic()
    for name, call in CALLS.items():
        wait_until(partial(succeeds, call, journals[name]), seconds=10, what=f"{name} on the new primary")
    assert time.monotonic() - moved < 10
    for journal in journals.values():
        journal.close()


def test_with_both_hosts_in_the_url_the_receiver_finds_the_primary(nodes: tuple[Node, Node, Address]) -> None:
    primary, standby, _ = nodes
    for hosts in ((primary, standby), (standby, primary)):
        query = "&".join(f"host={node.folder}" for node in hosts)
        journal = SqlJournal(PostgresqlDatabase(f"postgresql://postgres@/postgres?{query}", None))
        assert journal.accept([Arrival(f"x-{time.time_ns()}", b"{}", 1.0)]) == [Outcome.ACCEPTED]
        journal.close()


@pytest.fixture(scope="module")
def shared_pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


@pytest.fixture
def pair(shared_pair: Pair) -> Pair:
    """A primary and a synchronous standby that a test may kill."""
    shared_pair.rebuild()
    return shared_pair


@pytest.fixture
def open_journal(pair: Pair) -> Iterator[Callable[[], SqlJournal]]:
    """Opens what one process sees of the same journal, whose URL has both hosts."""
    url = pair.new_database()
    opened: list[SqlJournal] = []

    def open_one() -> SqlJournal:
        opened.append(SqlJournal(PostgresqlDatabase(url, None)))
        return opened[-1]

    yield open_one
    for journal in opened:
        journal.close()


def push_until_stored(journal: Journal, event_id: str) -> Outcome:
    """Push an event as DT does: again and again, until it gets 200."""
    outcomes: list[Outcome] = []

    def is_stored() -> bool:
        with contextlib.suppress(JournalUnavailable):
            outcomes.extend(accept(journal, event_id))
        return bool(outcomes)

    wait_until(is_stored, seconds=60, what="200")
    return outcomes[0]


def test_a_repeated_push_gets_no_200_before_the_standby_has_the_event(
    pair: Pair, open_journal: Callable[[], SqlJournal]
) -> None:
    """After a crash the primary shows what was committed on it alone: its standby may be promoted without it."""
    journal = open_journal()
    assert accept(journal, "a") == [Outcome.ACCEPTED]
    pair.standby.stop()
    with pytest.raises(JournalUnavailable, match="no response"):
        accept(journal, "b")
    pair.primary.kill()
    pair.primary.start()
    assert [event.id for event in open_journal().unrouted(10)] == ["a", "b"]
    for _ in range(2):  # the first one also writes to a sequence
        with pytest.raises(JournalUnavailable, match="no response"):
            accept(journal, "b")
    pair.standby.start()
    assert push_until_stored(journal, "b") is Outcome.DUPLICATE


def test_commits_that_wait_for_a_standby_hold_no_connection_after_their_time_is_up(
    pair: Pair, open_journal: Callable[[], SqlJournal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could connect any more, not even to let the primary work alone."""
    journal = open_journal()
    pair.standby.stop()
    with monkeypatch.context() as impatient:
        impatient.setattr(postgresql_connection, "RESPONSE_SECONDS", 1.0)
        for number in range(5):
            with pytest.raises(JournalUnavailable):
                accept(journal, f"e{number}")
    wait_until(lambda: pair.primary.sql(WAITS_FOR_STANDBY) == [(0,)], what="the end of all commits")
    pair.standby.start()
    assert [push_until_stored(journal, f"e{number}") for number in range(5)] == [Outcome.DUPLICATE] * 5


@pytest.mark.parametrize("writable", [False, True], ids=["read-only", "writable"])
def test_an_old_primary_that_comes_back_by_mistake_gets_no_event(
    writable: bool, pair: Pair, open_journal: Callable[[], SqlJournal]
) -> None:
    """Its commits wait for a standby, and the only other server follows it no more."""
    before = open_journal()
    with pair.fail_over(frozen=False):
        assert not succeeds(CALLS["accept"], before)
    push_until_stored(before, "a")
    old = pair.standby
    if not writable:
        (old.data / "standby.signal").touch()
    old.start()
    after = SqlJournal(PostgresqlDatabase(old_first(before, old), None))
    if writable:
        with pytest.raises(JournalUnavailable, match="no response"):
            accept(after, "b")
    assert push_until_stored(before, "b") is Outcome.ACCEPTED
    if not writable:
        assert accept(after, "c") == [Outcome.ACCEPTED]
    old.kill()
    assert push_until_stored(after, "c") is (Outcome.ACCEPTED if writable else Outcome.DUPLICATE)
    assert [event.id for event in before.unrouted(10) if len(event.id) == 1] == ["a", "b", "c"]
    after.close()


def old_first(journal: SqlJournal, old: Node) -> str:
    """The URL of this journal with the old primary as its first host."""
    database = journal._database
    assert isinstance(database, PostgresqlDatabase)
    parameters = database._parameters()
    hosts = sorted(parameters["host"].split(","), key=lambda host: host != str(old.folder))
    return f"postgresql://postgres@/{parameters['dbname']}?host={hosts[0]}&host={hosts[1]}"
