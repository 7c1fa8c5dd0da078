"""After a failover of the database the next calls succeed, without a restart."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from conftest import wait_until
from support.failover import Address, Node, primary_and_standby

from receiver.errors import JournalUnavailable
from receiver.journal import Arrival, Journal, Outcome, SinkState
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
