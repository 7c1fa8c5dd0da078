"""The journal behind a pooler in transaction mode: sessions are shared, and nothing of ours stays in them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice

import psycopg
import pytest
from conftest import StartReceiver, wait_until
from support.pgbouncer import pooled

from chaos.cloud import Cloud
from receiver.journal import Arrival, Outcome, Result, Settlement
from receiver.journal.sql.journal import SqlJournal
from receiver.journal.sql.postgresql import PostgresqlDatabase
from receiver.simulator import Simulator
from receiver.testing.postgresql import new_database

WITH_REGISTRY = '[sinks.archive]\ntype = "csv"\npath = "events.csv"\nrows = "events"\n'


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with pooled(new_database()) as through:
        yield through


@pytest.mark.usefixtures("long_time_limits")
def test_pushes_are_stored_and_delivered_and_other_programs_keep_their_settings(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with psycopg.connect(url) as other:
        before = other.execute("SELECT current_setting('statement_timeout'), current_setting('synchronous_commit')")
        defaults = before.fetchone()
    with (
        closing(SqlJournal(PostgresqlDatabase(url, None))) as intake,
        closing(SqlJournal(PostgresqlDatabase(url, None))) as dispatcher,
    ):
        for number in range(50):
            arrival = Arrival(f"e{number}", b"{}", 1000.0, secret="S" if number % 10 == 0 else "")
            assert intake.accept([arrival]) == [Outcome.ACCEPTED]
        dispatcher.start_dispatching()
        dispatcher.wait_for_events()
        dispatcher.route([(event, ["s"]) for event in dispatcher.unrouted(100)])
        claimed = dispatcher.claim("s", 100, 60.0)
        dispatcher.settle([Settlement(delivery, Result.DELIVERED) for delivery in claimed])
        assert dispatcher.counts().sinks["s"].delivered == 50
        for _ in range(4):
            dispatcher.wait_for_events()
    with ThreadPoolExecutor(2) as pool:
        connections = list(pool.map(lambda _: psycopg.connect(url), range(2)))
    for connection in connections:  # each in a transaction, so that both shared sessions are looked at
        seen = connection.execute("SELECT current_setting('statement_timeout'), current_setting('synchronous_commit')")
        assert seen.fetchone() == defaults
        assert connection.execute("SELECT count(*) FROM pg_listening_channels()").fetchone() == (0,)
    for connection in connections:
        connection.close()
    assert [record.getMessage() for record in caplog.records] == [
        "LISTEN does not work (a connection pooler is in between); the dispatcher polls the journal instead"
    ]


def test_the_whole_receiver_works_behind_a_pooler_and_says_once_that_it_polls(
    url: str, start_receiver: StartReceiver
) -> None:
    receiver = start_receiver(WITH_REGISTRY, DATABASE_URL=url)
    with Cloud([receiver]).pushing(list(islice(Simulator(seed=4).bodies(), 200))):
        pass
    wait_until(lambda: len(receiver.rows()) == 200, seconds=60, what="all deliveries")
    wait_until(lambda: receiver.metric('receiver_pending_deliveries{sink="sensors"}') == 0, what="the registry")
    assert json.loads(receiver.run("sensors", "--json"))
    assert "archive" in receiver.run("status")
    assert receiver.stop() == 0
    assert receiver.log.count("LISTEN does not work (a connection pooler is in between)") == 1
    late = ("no response", "statement timeout", "respond in time", "commit in time")  # as on a busy machine
    errors = [line for line in receiver.log.splitlines() if " ERROR " in line or "Traceback" in line]
    assert [line for line in errors if not any(words in line for words in late)] == []
