"""What only the journal on PostgreSQL does: several machines share it, wake each other and follow its clock."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Barrier
from typing import Any

import psycopg
import pytest
from conftest import wait_until
from sqlalchemy import literal, make_url, select
from support.journals import accept, claim, event_ids, route_events, settle
from support.postgresql import LISTENING, WAITING_FOR_A_LOCK, Deployment

from bench.postgresql import round_trips
from receiver.errors import JournalUnavailable
from receiver.journal import Arrival, Journal, Outcome, Result, SinkState
from receiver.journal.sql import postgresql as postgresql_module
from receiver.journal.sql import records as records_module
from receiver.journal.sql.journal import SqlJournal
from receiver.journal.sql.postgresql import PostgresqlDatabase
from receiver.journal.sql.records import SqlRecords
from receiver.journal.sql.schema import SCHEMA_VERSION


def wait_for_events_returns(journal: Journal) -> None:
    """Wait for events as a dispatcher does; fails if that takes much longer than it may."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(journal.wait_for_events).result(20)


def shift_clock(deployment: Deployment, hours: int) -> None:
    """Let the clock of the database be wrong by so many hours, for connections that are opened from now on."""
    name = make_url(deployment.url).database
    deployment.sql("CREATE SCHEMA IF NOT EXISTS shifted")
    deployment.sql(
        "CREATE OR REPLACE FUNCTION shifted.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS "
        f"'SELECT pg_catalog.clock_timestamp() + interval ''{hours} hours'''"
    )
    deployment.sql(f"ALTER DATABASE {name} SET search_path = public, shifted, pg_catalog")


def test_dispatchers_and_their_threads_claim_every_delivery_once(deployment: Deployment) -> None:
    dispatchers = [deployment.open() for _ in range(3)]
    ids = [f"{number:03}" for number in range(400)]
    dispatchers[0].accept([Arrival(event_id, b"", 1000.0) for event_id in ids])
    dispatchers[0].route([(event, ["s"]) for event in dispatchers[0].unrouted(1000)])
    claims: list[list[tuple[str, int]]] = []

    def work(dispatcher: Journal) -> None:
        while claimed := dispatcher.claim("s", 7, 600.0):
            claims.append([(delivery.event.id, delivery.attempt) for delivery in claimed])

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, dispatchers * 4))
    assert sorted(each for claimed in claims for each in claimed) == [(event_id, 1) for event_id in ids]


def test_claims_that_ended_are_taken_over_and_others_are_not(deployment: Deployment) -> None:
    first, second = deployment.open(), deployment.open()
    route_events(first, "s", "a", "b")
    held = claim(first, "s", limit=1, seconds=600.0)
    lost = wait_until(lambda: claim(first, "s", limit=1, seconds=0.3))  # its reading of the clock varies a little
    assert (event_ids(held), event_ids(lost)) == (["a"], ["b"])

    again = wait_until(lambda: claim(second, "s"))

    assert [(delivery.event.id, delivery.attempt) for delivery in again] == [("b", 2)]
    first.extend([*lost, *held], 600.0)
    settle(first, lost, Result.FAILED, due=0.0)
    assert claim(second, "s") == claim(first, "s") == []
    settle(second, again, Result.DELIVERED)
    settle(first, held, Result.DELIVERED)
    rows = deployment.sql("SELECT state, holder, attempts FROM deliveries ORDER BY event")
    assert rows == [(1, None, 1), (1, None, 2)]


def test_a_dispatcher_that_is_started_again_voids_its_own_claims_and_no_others(deployment: Deployment) -> None:
    one, other = deployment.open("one"), deployment.open("other")
    route_events(one, "s", "a", "b", "c", "d")
    claim(one, "s", limit=2)
    held = wait_until(lambda: claim(other, "s", limit=1))  # its reading of the clock may be behind
    claim(deployment.open("third"), "s", limit=1, seconds=0.01)

    assert deployment.open("one").start_dispatching() == ["s"]
    assert deployment.open("new").start_dispatching() == []

    wait_until(lambda: len(claim(one, "s", seconds=0.01)) == 3, what="the claim of a, b and d")
    wait_until(lambda: event_ids(claim(one, "s")) == ["a", "b", "d"])
    settle(other, held, Result.FAILED, due=0.0)
    assert event_ids(claim(other, "s")) == ["c"]


def test_the_end_of_a_trial_does_not_end_that_of_another_dispatcher(deployment: Deployment) -> None:
    first, second = deployment.open(holder="first"), deployment.open(holder="second")
    for journal in (first, second):
        journal.save_trial("s", on_trial=True)
    first.save_trial("s", on_trial=False)
    assert second.sink_states() == {"s": SinkState("s", on_trial=True)}
    second.save_trial("s", on_trial=False)
    assert second.sink_states() == {"s": SinkState("s")}


def test_the_clock_is_that_of_the_database_and_follows_it(deployment: Deployment) -> None:
    shift_clock(deployment, hours=-5)
    journal = deployment.open()
    assert journal.now() == pytest.approx(time.time() - 5 * 3600, abs=60)
    route_events(journal, "s", "a")
    claim(journal, "s", seconds=3600.0)
    assert deployment.sql("SELECT due FROM deliveries")[0][0] == pytest.approx(time.time() - 4 * 3600, abs=60)

    shift_clock(deployment, hours=2)
    journal.counts()
    assert journal.now() == pytest.approx(time.time() + 2 * 3600, abs=60)
    assert event_ids(claim(journal, "s")) == ["a"]


@pytest.mark.parametrize("late", ["{} FROM pg_sleep(0.3)", "{}, pg_sleep(0.3)"], ids=["before it is read", "later"])
def test_responses_that_come_late_leave_the_clock_right(
    late: str, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ahead, what one dispatcher has routed would not be due for others; behind, it would not see what they did."""
    start = postgresql_module._start()
    opened_before = deployment.open()
    read_clock(opened_before)
    with monkeypatch.context() as slow:
        slow.setattr(postgresql_module, "_start", lambda: late.format(start))
        opened_meanwhile = deployment.open()
        opened_before.next_due("s")
        assert opened_meanwhile.now() <= database_time(deployment)
    read_clock(opened_meanwhile)
    for journal in (opened_before, opened_meanwhile):
        earliest = database_time(deployment) - 0.15
        assert earliest < journal.now() <= database_time(deployment)


def read_clock(journal: Journal) -> None:
    """In several transactions, of which one at least gets its response at once."""
    for _ in range(10):
        journal.next_due("s")


def database_time(deployment: Deployment) -> float:
    ((seconds,),) = deployment.sql("SELECT extract(epoch FROM clock_timestamp())::float8")
    return float(seconds)


def test_the_clock_of_a_database_that_took_over_is_read_at_once(deployment: Deployment) -> None:
    """A fail-over leads to another machine with another clock; old claims would end too soon or too late."""
    journal = deployment.open()
    shift_clock(deployment, hours=2)
    assert deployment.cut_connections() == 1
    journal.counts()
    assert journal.now() == pytest.approx(time.time() + 2 * 3600, abs=60)


def test_a_clock_that_was_ahead_for_a_moment_delays_no_delivery_and_no_probe(deployment: Deployment) -> None:
    shift_clock(deployment, hours=0)
    journal, other = deployment.open(), deployment.open()
    for each in (journal, other):
        each.start_dispatching()
        each.report_alive()
    shift_clock(deployment, hours=1)
    route_events(journal, "s", "failed", "claimed", "waiting")
    settle(journal, claim(journal, "s", limit=1), Result.FAILED, journal.now() + 30)
    claim(journal, "s", limit=1)
    journal.save_sink_state(SinkState("s", pauses=1, paused_until=journal.now() + 30))
    shift_clock(deployment, hours=0)
    for _ in range(2):
        other.report_alive()
        journal.report_alive()

    now = journal.now()
    due = [due - now for (due,) in deployment.sql("SELECT due FROM deliveries ORDER BY due")]
    assert due == pytest.approx([0, 30, 60], abs=14)
    assert journal.sink_states()["s"].paused_until - now == pytest.approx(30, abs=14)


def test_a_clock_that_is_set_back_ends_no_claim_before_its_time(deployment: Deployment) -> None:
    shift_clock(deployment, hours=0)
    journal, other = deployment.open(), deployment.open()
    route_events(journal, "s", "a")
    claim(journal, "s", seconds=50.0)
    shift_clock(deployment, hours=1)
    journal.report_alive()
    other.report_alive()
    shift_clock(deployment, hours=0)
    for _ in range(2):
        other.report_alive()
        journal.report_alive()
    assert event_ids(claim(other, "s")) == []


def test_a_new_event_wakes_a_waiting_dispatcher(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher, intake = deployment.open(), deployment.open()
    monkeypatch.setattr(postgresql_module, "NOTIFY_SECONDS", 0.01)
    dispatcher.wait_for_events()  # listens from now on
    monkeypatch.setattr(postgresql_module, "NOTIFY_SECONDS", 60.0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(dispatcher.wait_for_events)
        accept(intake, "a")
        waiting.result(20)
    assert event_ids(dispatcher.unrouted(10)) == ["a"]


def test_a_duplicate_wakes_no_dispatcher(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher, intake = deployment.open(), deployment.open()
    accept(intake, "a")
    monkeypatch.setattr(postgresql_module, "NOTIFY_SECONDS", 0.01)
    dispatcher.wait_for_events()
    assert accept(intake, "a") == [Outcome.DUPLICATE]
    monkeypatch.setattr(postgresql_module, "NOTIFY_SECONDS", 0.3)
    start = time.monotonic()
    dispatcher.wait_for_events()
    assert time.monotonic() - start >= 0.25


def test_a_dispatcher_that_cannot_listen_polls_and_listens_again_later(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dispatcher, intake = deployment.open(), deployment.open()
    dispatcher.wait_for_events()
    assert deployment.cut_connections(LISTENING) == 1
    accept(intake, "a")
    wait_for_events_returns(dispatcher)
    assert event_ids(dispatcher.unrouted(10)) == ["a"]
    wait_for_events_returns(dispatcher)
    assert [message.partition(" (")[0] for message in caplog.messages] == ["LISTEN does not work"]

    monkeypatch.setattr(postgresql_module, "RELISTEN_SECONDS", 0.0)
    dispatcher.wait_for_events()
    assert deployment.connections(LISTENING) == 1


def test_an_intake_process_has_one_connection_and_a_dispatcher_two(deployment: Deployment) -> None:
    intake, dispatcher = deployment.open(), deployment.open()
    route_events(dispatcher, "s", "a", "b")
    seen: list[int] = []
    calls: list[Callable[[], object]] = [
        *(lambda number=number: accept(intake, f"event-{number}") for number in range(12)),
        intake.counts,
        intake.check_writable,
        intake.liveness,
        *(lambda: dispatcher.claim("s", 1, 1.0) for _ in range(4)),
        dispatcher.wait_for_events,
        dispatcher.report_alive,
        dispatcher.sink_states,
        *(lambda: seen.append(deployment.connections()) for _ in range(4)),
    ]
    with ThreadPoolExecutor(len(calls)) as pool:
        for future in [pool.submit(call) for _ in range(5) for call in calls]:
            future.result(20)
    assert max(seen) == deployment.connections() == 3
    intake.close()
    dispatcher.close()
    wait_until(lambda: deployment.connections() == 0)


def test_processes_that_create_the_tables_at_once_all_succeed(deployment: Deployment) -> None:
    barrier = Barrier(12)

    def create() -> Outcome:
        barrier.wait(20)
        journal = SqlJournal(PostgresqlDatabase(deployment.url, None))
        try:
            return accept(journal, uuid.uuid4().hex)[0]
        finally:
            journal.close()

    with ThreadPoolExecutor(12) as pool:
        outcomes = [future.result() for future in [pool.submit(create) for _ in range(12)]]
    assert outcomes == [Outcome.ACCEPTED] * 12
    assert deployment.sql("SELECT version FROM receiver_schema") == [(SCHEMA_VERSION,)]


def test_a_claim_that_is_being_settled_is_not_taken_over_nor_waited_for(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_module, "STATEMENT_SECONDS", 5.0)
    silent, another = deployment.open("silent"), deployment.open("another")
    silent.accept([Arrival(name, b"{}", 1000.0) for name in ("a", "b")])
    silent.route([(event, ["s"]) for event in silent.unrouted(10)])
    silent.report_alive()
    assert len(silent.claim("s", 10, 60.0)) == 2
    deployment.sql("UPDATE dispatchers SET clock = 0")
    with psycopg.connect(deployment.url) as settling:
        settling.execute("SELECT 1 FROM deliveries ORDER BY event LIMIT 1 FOR UPDATE")
        assert another.take_over(15.0)
    assert [delivery.event.id for delivery in another.claim("s", 10, 60.0)] == ["b"]


def test_an_event_that_one_dispatcher_routes_is_skipped_by_others_unless_that_one_fails(
    deployment: Deployment,
) -> None:
    one, other = deployment.open(), deployment.open()
    accept(one, "a")
    events = one.unrouted(10)
    accept(one, "b")
    with psycopg.connect(deployment.url) as blocking, ThreadPoolExecutor(1) as pool:
        blocking.execute("LOCK TABLE deliveries")
        routing: Any = pool.submit(one.route, [(events[0], ["s"])])
        wait_until(lambda: deployment.connections(WAITING_FOR_A_LOCK))
        assert event_ids(other.unrouted(10)) == ["b"]
        deployment.cut_connections(WAITING_FOR_A_LOCK)
        with pytest.raises(JournalUnavailable):
            routing.result()
    assert event_ids(other.unrouted(10)) == ["a", "b"]


@pytest.mark.serial
def test_a_group_of_pushes_is_stored_in_one_round_trip() -> None:
    assert dict(round_trips())["accept, of intake"] == "1"


def test_a_transaction_follows_indexes_only_if_it_asks_for_it(deployment: Deployment) -> None:
    with closing(PostgresqlDatabase(deployment.url, None)) as database:

        def settings(*, by_index: bool) -> set[str]:
            with database.read(by_index=by_index) as connection:
                return {
                    connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in postgresql_module.NOT_BY_INDEX
                }

        before = settings(by_index=False)
        assert settings(by_index=True) == {"off", "0"}
        assert settings(by_index=False) == before


@pytest.mark.parametrize(
    ("parameter", "problem"),
    [
        ("", "does not respond in time"),
        (
            "&options=-c%20odd=1",
            "cannot be used now: a parameter of [sensors] url, or a PG* variable such as PGOPTIONS, has no valid value",
        ),
    ],
)
def test_errors_name_the_setting_that_has_the_url(
    parameter: str, problem: str, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_module, "POOL_SECONDS", 0.01)
    opened = closing(PostgresqlDatabase(f"{deployment.url}{parameter}", None, "[sensors] url"))
    with opened as database, pytest.raises(JournalUnavailable) as raised, database.read(), database.read():
        pass
    assert str(raised.value) == f"the database of [sensors] url {problem}"


def test_a_text_that_cannot_be_stored_is_named_as_the_cause(deployment: Deployment) -> None:
    opened = closing(PostgresqlDatabase(deployment.url, None))
    with opened as database, pytest.raises(JournalUnavailable) as raised, database.read() as connection:
        connection.execute(select(literal("a\0")))
    assert str(raised.value) == "the database of DATABASE_URL cannot be used now: it cannot store this text or number"


def test_a_few_of_many_dead_letters_are_read_by_their_index_before_the_first_analyze(deployment: Deployment) -> None:
    journal = deployment.open()
    route_events(journal, "s", "a")
    settle(journal, claim(journal, "s"), Result.DEAD, reason="HTTP 410")
    many = 30_000
    insert_routed_events(deployment, "many", range(1, many + 1))
    deployment.sql(
        "INSERT INTO deliveries (event, sink, state, attempts, failures, reason) "
        "SELECT key, 1, 2, 1, 0, 'HTTP 410' FROM events WHERE id <> 'a'"
    )
    reads: list[Callable[[SqlRecords], object]] = [
        lambda records: records.dead_letters("s", 50),
        lambda records: records.dead_letters("s", 50, "HTTP 410"),
        lambda records: records.some_dead_letter_groups(None, 200, 1001),
        lambda records: records.newest(2e9, None, None, 50),
    ]
    for read in reads:
        before = rows_read(deployment)
        with closing(SqlRecords(PostgresqlDatabase(deployment.url, None), create_tables=False)) as records:
            assert read(records)
        assert rows_read(deployment) - before < many / 4


def test_a_claim_reads_few_of_many_pending_deliveries_before_the_first_analyze(deployment: Deployment) -> None:
    route_events(deployment.open(), "s", "a")
    many = 30_000
    insert_routed_events(deployment, "many", range(1, many + 1))
    deployment.sql(
        "INSERT INTO deliveries (event, sink, state, due, attempts, failures) "
        "SELECT key, 1, 0, received_at, 0, 0 FROM events WHERE id <> 'a'"
    )
    before = rows_read(deployment)
    with closing(SqlJournal(PostgresqlDatabase(deployment.url, None), create_tables=False)) as journal:
        assert event_ids(claim(journal, "s", limit=100)) == [f"many{number}" for number in range(1, 101)]
    assert rows_read(deployment) - before < many / 4


def test_retention_reads_few_of_many_deliveries_that_became_pending_after_the_last_analyze(
    deployment: Deployment,
) -> None:
    route_events(deployment.open(), "s", "a")
    many = 30_000
    insert_routed_events(deployment, "old", range(1, many + 1))
    delivered = "INSERT INTO deliveries (event, sink, state, attempts, failures) SELECT key, 1, 1, 1, 0 FROM events"
    deployment.sql(f"{delivered} WHERE id LIKE 'old%'")
    deployment.sql("ANALYZE")
    insert_routed_events(deployment, "new", range(many + 1, 2 * many + 1))
    pending = "INSERT INTO deliveries (event, sink, state, due, attempts, failures) SELECT key, 1, 0, 0, 0, 0"
    deployment.sql(f"{pending} FROM events WHERE id LIKE 'new%'")
    before = rows_read(deployment)
    with closing(SqlJournal(PostgresqlDatabase(deployment.url, None), create_tables=False)) as journal:
        assert journal.remove_expired(many, 1000)
    assert rows_read(deployment) - before < many / 2
    (left,) = deployment.sql("SELECT count(*) FROM events WHERE id LIKE 'old%'")
    assert left == (many - 999,)  # the event a had expired, too


def test_a_clock_that_was_set_back_moves_only_what_is_pending_however_long_that_takes(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a dispatcher could not report that it is alive, and would deliver nothing, while the clock is behind."""
    journal = deployment.open()
    journal.add_enabled_sinks(["pending at it", "delivered at it"])  # of the keys 1 and 2
    now = journal.now()
    insert_routed_events(deployment, "many", range(1000))
    delivery = "INSERT INTO deliveries (event, sink, state, due, attempts, failures, first_attempt_at) SELECT"
    pending = f"{delivery} key, 1, 0, {now + 3700}, 1, 1, {now + 3600} FROM events"
    delivered = f"{delivery} key, 2, 1, NULL, 1, 0, {now + 3600} FROM events"
    for statement in (pending, delivered):
        deployment.sql(statement)
    deployment.sql(f"INSERT INTO dispatchers VALUES ('before', {now}, {now + 3600})")
    deployment.sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(0.002); RETURN NEW; END $$"
    )
    deployment.sql("CREATE TRIGGER slow BEFORE UPDATE ON deliveries FOR EACH ROW EXECUTE FUNCTION slow()")
    monkeypatch.setattr(postgresql_module, "STATEMENT_SECONDS", 1.0)
    journal.report_alive()
    times = "SELECT DISTINCT sink, round(due - {0}), round(first_attempt_at - {0}) FROM deliveries ORDER BY sink"
    ((_, due, attempted), ended) = deployment.sql(times.format(now))
    assert (due - attempted, ended) == (100, (2, None, 3600))
    assert -60 <= attempted <= 60


def test_no_statement_removes_many_deliveries_when_a_sink_that_has_them_is_removed(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.open().add_enabled_sinks(["s"])
    insert_routed_events(deployment, "many", range(1000))
    deployment.sql("INSERT INTO deliveries (event, sink, state, attempts, failures) SELECT key, 1, 1, 1, 0 FROM events")
    deployment.sql("CREATE TABLE removed (rows bigint)")
    deployment.sql(
        "CREATE FUNCTION count_removed() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO removed SELECT count(*) FROM gone; RETURN NULL; END $$"
    )
    deployment.sql(
        "CREATE TRIGGER count_removed AFTER DELETE ON deliveries REFERENCING OLD TABLE AS gone "
        "FOR EACH STATEMENT EXECUTE FUNCTION count_removed()"
    )
    records = deployment.records()
    monkeypatch.setattr(records_module, "REMOVED", 100)
    assert records.remove_sink("s") == 0
    assert deployment.sql("SELECT max(rows), sum(rows) FROM removed") == [(100, 1000)]


def insert_routed_events(deployment: Deployment, name: str, times: range) -> None:
    """Store many events that were received at these times, in tables of which PostgreSQL takes no statistics."""
    for table in ("events", "deliveries"):
        deployment.sql(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
    deployment.sql(
        "INSERT INTO events (id, received_at, routed, body) "
        f"SELECT '{name}' || n, n, true, '' FROM generate_series({times.start}, {times.stop - 1}) AS n"
    )


def rows_read(deployment: Deployment) -> int:
    """How many rows of tables and indexes were read so far: sessions report it when they end."""
    query = (
        "SELECT (SELECT sum(seq_tup_read) FROM pg_stat_user_tables)"
        " + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes)"
    )
    found: list[int] = []
    while len(found) < 2 or found[-1] != found[-2]:
        time.sleep(0.5)
        with psycopg.connect(deployment.url, autocommit=True) as connection:
            row = connection.execute(query).fetchone()
        assert row is not None
        found.append(int(row[0]))
    return found[-1]
