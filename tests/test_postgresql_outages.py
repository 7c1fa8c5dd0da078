"""The journal on a PostgreSQL that cuts connections, is killed, does not respond, or is full."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import psycopg
import pytest
from conftest import wait_until
from psycopg.pq import ExecStatus
from sqlalchemy import make_url, text
from support.greenlets import submit_at_once
from support.journals import accept, body, claim, event_ids, route_events, settle
from support.postgresql import LISTENING, NOT_LISTENING, Deployment

from receiver.errors import JournalUnavailable
from receiver.journal import Arrival, Journal, Outcome, Result, SinkState
from receiver.journal.sql import postgresql as postgresql_module
from receiver.journal.sql import postgresql_connection
from receiver.journal.sql.journal import SqlJournal
from receiver.journal.sql.postgresql import PostgresqlDatabase
from receiver.journal.sql.schema import events
from receiver.testing.postgresql import Server

END_OF_SESSION = "SELECT 0.0, pg_terminate_backend(pg_backend_pid())"
EVENT_ROW = {"id": "a", "received_at": 1.0, "routed": False, "body": b"x"}


def accepts(journal: Journal, event_id: str) -> bool:
    """Whether the journal accepts this event now; if not, it must say that it is unavailable."""
    try:
        accept(journal, event_id)
    except JournalUnavailable:
        return False
    return True


def timed(call: Callable[[], object]) -> tuple[float, object]:
    """How many seconds a call took, and what it returned or raised."""
    start = time.monotonic()
    try:
        result = call()
    except Exception as error:
        result = error
    return time.monotonic() - start, result


def timed_at_once(calls: list[Callable[[], object]]) -> list[tuple[float, object]]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(timed, calls))


def test_commits_are_durable_though_the_database_has_another_default(deployment: Deployment) -> None:
    name = make_url(deployment.url).database
    deployment.sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
    database = deployment.database()
    with database.write() as connection:
        assert connection.scalar(text("SHOW synchronous_commit")) == "on"
    assert deployment.cut_connections() == 1
    with database.write() as connection:
        assert connection.scalar(text("SHOW synchronous_commit")) == "on"


def test_after_its_connections_were_cut_the_very_next_call_works(deployment: Deployment) -> None:
    journal = deployment.open()
    accept(journal, "a")
    journal.wait_for_events()
    assert deployment.cut_connections() == 2
    assert accept(journal, "b") == [Outcome.ACCEPTED]
    journal.wait_for_events()
    assert deployment.cut_connections() >= 1
    assert event_ids(journal.unrouted(10)) == ["a", "b"]
    assert deployment.cut_connections() >= 1
    assert journal.now() == pytest.approx(time.time(), abs=60)


@pytest.mark.serial
def test_events_that_the_database_does_not_store_in_time_are_not_sent_to_it_again(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_module, "STATEMENT_SECONDS", 1.0)
    monkeypatch.setattr(postgresql_connection, "RESPONSE_SECONDS", 20.0)
    journal = deployment.open()
    accept(journal, "a")
    with psycopg.connect(deployment.url) as blocking:
        blocking.execute("LOCK TABLE events")
        seconds, result = timed(lambda: accept(journal, "b"))
    assert str(result).endswith(": statement timeout")
    assert seconds < 2 * postgresql_module.STATEMENT_SECONDS
    assert accept(journal, "b") == [Outcome.ACCEPTED]


def test_sessions_that_are_lost_one_after_another_leave_no_traceback_in_the_log(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal = deployment.open()
    monkeypatch.setattr(postgresql_module, "_start", lambda: END_OF_SESSION)
    for _ in range(2):
        with pytest.raises(JournalUnavailable):
            journal.counts()
    monkeypatch.undo()
    assert journal.counts().unrouted == 0
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


def test_a_connection_that_is_cut_in_a_transaction_undoes_all_of_it_and_raises(deployment: Deployment) -> None:
    journal, database = deployment.open(), deployment.database()

    def interrupted() -> None:
        with database.write() as connection:
            connection.execute(database.insert(events), EVENT_ROW)
            deployment.cut_connections()

    with pytest.raises(JournalUnavailable):
        interrupted()
    assert journal.unrouted(10) == []
    with database.write() as connection:
        connection.execute(database.insert(events), EVENT_ROW)
    assert event_ids(journal.unrouted(10)) == ["a"]


CUT_AT_THE_COMMIT = """
CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER cut AFTER INSERT ON events DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION cut();
"""


@pytest.mark.parametrize("number", [1, 300])
def test_a_connection_that_is_cut_at_the_commit_stores_no_event_though_the_statement_had_returned(
    number: int, deployment: Deployment
) -> None:
    """Rows that do not fit into one packet are sent before the commit."""
    journal = deployment.open()
    deployment.sql(CUT_AT_THE_COMMIT)
    arrivals = [Arrival(f"{each:060}", b"", 1000.0) for each in range(number)]
    for _ in range(2):
        with pytest.raises(JournalUnavailable, match=r": (it is starting up or shutting down|connection lost)$"):
            journal.accept(arrivals)
    deployment.sql("DROP TRIGGER cut ON events")
    assert set(journal.accept(arrivals)) == {Outcome.ACCEPTED}
    assert len(journal.unrouted(1000)) == number


def rejection_of_all(journal: Journal, ids: str) -> NoReturn:
    """Push events at once, none of which is stored. Raises the JournalUnavailable of the last one."""
    *others, last = submit_at_once(journal.accept, [Arrival(event_id, b"", 1000.0) for event_id in ids])
    assert [type(result) for result in others] == [JournalUnavailable] * len(others)
    assert isinstance(last, JournalUnavailable)
    raise last


@pytest.mark.serial
def test_while_the_database_is_away_every_call_raises_in_time_and_works_when_it_is_back(
    server: Server, own_deployment: Deployment
) -> None:
    journal = own_deployment.open()
    route_events(journal, "s", "a")
    held = claim(journal, "s")
    journal.wait_for_events()
    server.kill()
    calls: list[Callable[[], object]] = [
        lambda: rejection_of_all(journal, "bc"),
        journal.counts,
        journal.check_writable,
        journal.report_alive,
        lambda: claim(journal, "s"),
        lambda: settle(journal, held, Result.DELIVERED),
        lambda: SqlJournal(PostgresqlDatabase(own_deployment.url, None)),
    ]
    results = timed_at_once(calls)
    assert [type(result) for _, result in results] == [JournalUnavailable] * len(calls)
    assert max(seconds for seconds, _ in results) < 8
    assert timed(journal.wait_for_events)[1] is True

    server.start()

    wait_until(lambda: accepts(journal, "d"))
    assert event_ids(held) == ["a"]
    assert event_ids(journal.unrouted(10)) == ["d"]
    assert claim(journal, "s") == []
    settle(journal, held, Result.DELIVERED)
    assert journal.counts().sinks["s"].delivered == 1


@pytest.mark.usefixtures("long_time_limits")
def test_accepted_events_survive_a_database_that_is_killed_at_once(server: Server, own_deployment: Deployment) -> None:
    journal = own_deployment.open()
    accepted = []
    for number in range(2):
        ids = [f"{number}-{each}" for each in range(40)]
        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(lambda event_id: (event_id, accepts(journal, event_id)), ids))
            server.kill()
        accepted += [event_id for event_id, was_accepted in outcomes if was_accepted]
        server.start()
    wait_until(lambda: accepts(journal, "last"))
    assert len(accepted) == 80
    stored = {event.id: event.body for event in journal.unrouted(1000)}
    assert stored == {event_id: body(event_id) for event_id in [*accepted, "last"]}


@pytest.mark.serial
def test_while_the_database_is_frozen_every_call_raises_in_time_and_works_when_it_goes_on(
    server: Server, own_deployment: Deployment, request: pytest.FixtureRequest
) -> None:
    intake, dispatcher, connects_late = own_deployment.open(), own_deployment.open(), own_deployment.open()
    route_events(dispatcher, "s", "a")
    dispatcher.wait_for_events()
    own_deployment.cut_connections(NOT_LISTENING)
    accept(intake, "b")
    claim(dispatcher, "s")
    calls: list[Callable[[], object]] = [
        lambda: rejection_of_all(intake, "cdefg"),
        intake.check_writable,
        dispatcher.counts,
        dispatcher.report_alive,
        connects_late.check_writable,
        lambda: SqlJournal(PostgresqlDatabase(own_deployment.url, None)),
    ]
    thaw = contextlib.ExitStack()
    thaw.enter_context(server.frozen())
    request.addfinalizer(thaw.close)
    rescue = threading.Timer(12, thaw.close)
    rescue.start()
    results = timed_at_once(calls)
    rescue.cancel()
    rescue.join()
    thaw.close()
    assert [type(result) for _, result in results] == [JournalUnavailable] * len(calls)
    assert max(seconds for seconds, _ in results) < 8

    for journal in (intake, dispatcher, connects_late):
        wait_until(lambda journal=journal: accepts(journal, "after"))  # type: ignore[misc]


@pytest.mark.usefixtures("long_time_limits")
def test_a_frozen_database_costs_a_call_one_time_limit_because_it_connects_no_second_time(
    server: Server, own_deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pushes have 5 s in all, and some of them are spent on the wait for a turn to commit."""
    database = own_deployment.database()
    journal = SqlJournal(database)
    connect, connects = database._connect, list[None]()
    monkeypatch.setattr(database, "_connect", lambda: connects.append(None) or connect())
    monkeypatch.setattr(database._engine.pool, "_creator", lambda record: database._connect())
    with monkeypatch.context() as impatient:
        impatient.setattr(postgresql_connection, "RESPONSE_SECONDS", 0.5)
        with server.frozen(), pytest.raises(JournalUnavailable, match="no response"):
            journal.check_writable()
    assert connects == []
    wait_until(lambda: accepts(journal, "after"), what="the database to respond again")
    assert connects == [None]


@pytest.mark.serial
def test_waiting_for_events_returns_in_time_though_the_database_is_frozen(
    server: Server, own_deployment: Deployment
) -> None:
    journal = own_deployment.open()
    journal.wait_for_events()
    with server.frozen():
        listening = timed(journal.wait_for_events)
    own_deployment.cut_connections(LISTENING)
    wait_until(lambda: own_deployment.connections() == 1)
    with server.frozen():
        connecting = timed(journal.wait_for_events)
    assert [listening[1], connecting[1]] == [False, True]
    assert max(listening[0], connecting[0]) < 8


def test_a_client_that_vanished_in_a_transaction_does_not_keep_its_rows_locked(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a machine that loses its network: its end of the connection never closes."""
    journal, vanished = deployment.open(), deployment.database()
    journal.save_sink_state(SinkState("s"))

    def works() -> bool:
        try:
            journal.save_sink_state(SinkState("s", pauses=1))
        except JournalUnavailable:
            return False
        return accepts(journal, "a")

    with contextlib.suppress(JournalUnavailable), contextlib.ExitStack() as lost:
        with monkeypatch.context() as soon:
            soon.setattr(postgresql_module, "IDLE_SECONDS", 3.0)
            connection = lost.enter_context(vanished.write())
        connection.execute(vanished.insert(events), EVENT_ROW)
        connection.execute(text("UPDATE sinks SET pauses = 7 WHERE name = 's'"))
        vanished.lock_schema(connection)
        wait_until(works, what="the end of the transaction")
    assert [event.body for event in journal.unrouted(10)] == [body("a")]
    SqlJournal(PostgresqlDatabase(deployment.url, None)).close()


def test_a_client_that_vanished_between_the_statements_of_a_round_trip_does_not_keep_its_rows_locked(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a machine that loses its network when it has sent the first packet of many events, and not the last one."""
    monkeypatch.setattr(postgresql_module, "STATEMENT_SECONDS", 10.0)
    journal = deployment.open()
    with monkeypatch.context() as soon:
        soon.setattr(postgresql_module, "TRANSACTION_SECONDS", 3.0)
        start = postgresql_module._start()
    with contextlib.closing(psycopg.connect(deployment.url)) as vanished:
        vanished.pgconn.enter_pipeline_mode()
        insert = "INSERT INTO events (id, received_at, routed, body) VALUES ('a', 1, false, '')"
        for statement in ("BEGIN", start, insert):
            vanished.pgconn.send_query_params(statement.encode(), None)
        vanished.pgconn.send_flush_request()
        vanished.pgconn.flush()
        for _ in range(3):
            assert vanished.pgconn.get_result().status in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)
            assert vanished.pgconn.get_result() is None
        assert accept(journal, "a") == [Outcome.ACCEPTED]
    assert [event.body for event in journal.unrouted(10)] == [body("a")]


def test_a_database_over_its_size_rejects_events_and_still_settles(deployment: Deployment) -> None:
    deployment.open()
    journal = SqlJournal(deployment.database(max_size_mb=1))
    other = deployment.open()
    route_events(other, "s", "a")
    held = claim(journal, "s")
    with pytest.raises(JournalUnavailable, match=r"^the database has \d+ MB, and \[journal\] max_size_mb is 1$"):
        accept(journal, "b")
    settle(journal, held, Result.DELIVERED)
    assert journal.counts().sinks["s"].delivered == 1
