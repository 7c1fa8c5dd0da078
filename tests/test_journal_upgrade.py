"""Journals that older and newer receivers wrote: upgraded when they are opened, or rejected."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from conftest import new_database, wait_until
from support.delivery import RunningDispatcher, SingleSink, load_settings
from support.journals import PostgresqlStore, SqliteStore, SqlStore, accept, claim, event_ids

from receiver.errors import JournalError, JournalUnavailable
from receiver.journal import (
    DeadLetter,
    DeliveryState,
    Liveness,
    Outcome,
    QuarantinedPush,
    SinkCounts,
    SinkState,
)
from receiver.journal.sql import postgresql as postgresql_module
from receiver.journal.sql import postgresql_connection
from receiver.journal.sql.journal import SqlJournal
from receiver.journal.sql.records import SqlRecords
from receiver.journal.sql.schema import UPGRADES

DATA = Path(__file__).parent / "data"
RECEIVED_AT = 1795514400.0
TABLES = ("events", "deliveries", "sinks", "quarantine", "dispatchers", "secrets")
NEW_NAMES = {
    "events": {"matched": "routed"},
    "deliveries": {"why": "reason"},
    "sinks": {"last_failure": "last_failure_reason"},
    "quarantine": {"why": "reason"},
    "dispatchers": {"beat_at": "alive_at"},
}
"""The columns that have another name since schema 3."""

Rows = list[dict[str, Any]]


def sqlite_schema_2(folder: Path) -> SqlStore:
    store = SqliteStore(folder)
    shutil.copy(DATA / "journal_schema_2.sqlite", store.path)
    return store


def postgresql_schema_2(folder: Path) -> SqlStore:
    store = PostgresqlStore(folder, new_database())
    with psycopg.connect(store.url, autocommit=True) as connection:
        connection.execute((DATA / "journal_schema_2_postgresql.sql").read_bytes())
    return store


@pytest.fixture(params=[pytest.param(sqlite_schema_2, id="sqlite"), pytest.param(postgresql_schema_2, id="postgresql")])
def old_store(request: pytest.FixtureRequest, tmp_path: Path, long_time_limits: None) -> Iterator[SqlStore]:
    """The journal of a receiver with schema 2, as that one left it: on its own clock, a minute after its last write."""
    store: SqlStore = request.param(tmp_path)
    (dispatcher,) = rows(store, "dispatchers")
    store.clock.now = dispatcher["clock"] + 60
    yield store
    store.close_all()


def rows(store: SqlStore, table: str) -> Rows:
    """All rows of a table, in any order of their columns."""
    with closing(store.database()) as database, database.read() as connection:
        found = connection.exec_driver_sql(f"SELECT * FROM {table}").mappings().all()
    return sorted(({**row} for row in found), key=lambda row: [str(row.get(key)) for key in ("key", "event", "sink")])


def everything(store: SqlStore) -> dict[str, Rows]:
    return {table: rows(store, table) for table in TABLES}


def execute(store: SqlStore, *statements: str) -> None:
    with closing(store.database()) as database, database.write() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def schema_version(store: SqlStore) -> Rows:
    return rows(store, "receiver_schema")


def test_an_upgrade_renames_columns_and_changes_no_value(old_store: SqlStore) -> None:
    before = everything(old_store)
    assert schema_version(old_store) == [{"version": 2}]

    old_store.open()

    def renamed(table: str, row: dict[str, Any]) -> dict[str, Any]:
        names = NEW_NAMES.get(table, {})
        return {names.get(column, column): value for column, value in row.items()}

    expected = {table: [renamed(table, row) for row in before[table]] for table in TABLES}
    expected["dispatchers"] = [{**row, "warnings": ""} for row in expected["dispatchers"]]
    expected["sinks"] = [{**row, "missed_from": None} for row in expected["sinks"]]
    for table in ("events", "quarantine"):
        expected[table] = [{**row, "origin": "push"} for row in expected[table]]
    assert everything(old_store) == expected
    assert schema_version(old_store) == [{"version": 7}]


def test_after_an_upgrade_counts_states_and_enabled_sinks_are_as_before(old_store: SqlStore) -> None:
    archive, erp = rows(old_store, "sinks")
    (dispatcher,) = rows(old_store, "dispatchers")
    (secret,) = rows(old_store, "secrets")

    journal = old_store.open()

    counts = journal.counts()
    assert (counts.unrouted, counts.quarantined, counts.secrets) == (1, 1, {"DT_SIGNATURE_SECRET": secret["last_at"]})
    assert counts.sinks == {
        "archive": SinkCounts(pending=5, oldest_received_at=RECEIVED_AT),
        "erp": SinkCounts(
            delivered=1,
            pending=3,
            dead=1,
            oldest_received_at=RECEIVED_AT,
            attempts=3,
            failures=2,
            last_success_at=erp["last_success_at"],
            last_failure_at=erp["last_failure_at"],
            last_failure_reason="HTTP 500",
        ),
    }
    assert journal.sink_states() == {
        "archive": SinkState("archive"),
        "erp": SinkState("erp", 2, erp["paused_until"], "HTTP 401: it refuses our credentials"),
    }
    assert journal.enabled_sinks() == {"archive", "erp"} == {archive["name"], erp["name"]}
    assert journal.liveness() == Liveness(dispatcher["beat_at"], ())


def test_after_an_upgrade_the_history_of_each_event_is_as_before(old_store: SqlStore) -> None:
    erp = {row["event"]: row for row in rows(old_store, "deliveries") if row["sink"] == 2}
    archive_due = {row["due"] for row in rows(old_store, "deliveries") if row["sink"] == 1}

    records = old_store.records()

    assert len(archive_due) == 1
    archive = DeliveryState("archive", "pending", 0, None, None, *archive_due)
    expected = {
        "delivered": DeliveryState("erp", "delivered", 1, erp[1]["settled_at"], "", None),
        "pending": DeliveryState("erp", "pending", 0, None, None, erp[2]["due"]),
        "dead": DeliveryState("erp", "dead", 1, erp[3]["settled_at"], "HTTP 404: it refuses this event", None),
        "failed": DeliveryState("erp", "pending", 1, erp[4]["settled_at"], "HTTP 500", erp[4]["due"]),
        "claimed": DeliveryState("erp", "pending", 1, None, None, erp[5]["due"]),
    }
    for event_id, at_erp in expected.items():
        history = records.history(event_id)
        assert history is not None
        assert (history.routed, history.deliveries) == (True, (archive, at_erp))
        assert (history.event.id, history.event.received_at) == (event_id, RECEIVED_AT)
        assert history.event.decode().id == event_id
    unrouted = records.history("unmatched")
    assert unrouted is not None
    assert (unrouted.routed, unrouted.deliveries) == (False, ())


def test_after_an_upgrade_dead_letters_and_quarantine_are_as_before_and_can_be_retried(old_store: SqlStore) -> None:
    (died_at,) = [row["settled_at"] for row in rows(old_store, "deliveries") if row["state"] == 2]

    journal, records = old_store.open(), old_store.records()

    reason = "HTTP 404: it refuses this event"
    history = records.history("dead")
    assert history is not None
    assert records.dead_letters(None, 10) == [DeadLetter("erp", history.event, 1, died_at, reason)]
    (push,) = records.quarantined(10)
    push_id = "9f0ff7f062a64c672c7f1f7cf231757e9e873315613663f32f4a877fbeeea384"
    assert push == QuarantinedPush(push_id, RECEIVED_AT, "the body has no object 'event'", b'{"not": "an event"}')
    assert records.retry_dead_letters("erp", None) == 1
    records.release(push, "released")
    assert (records.dead_letters(None, 10), records.quarantined(10)) == ([], [])
    assert "dead" in event_ids(claim(journal, "erp"))
    assert event_ids(journal.unrouted(10)) == ["unmatched", "released"]
    assert accept(journal, "delivered") == [Outcome.DUPLICATE]


def test_after_an_upgrade_a_dispatcher_delivers_everything_that_is_pending(old_store: SqlStore, tmp_path: Path) -> None:
    old_store.clock.advance(3600)  # the end of the pause of erp
    dispatcher = RunningDispatcher(old_store, load_settings(tmp_path))  # type: ignore[arg-type]  # needs no path
    erp, archive = SingleSink(), SingleSink()
    dispatcher.start(dispatcher.sink(erp, "erp"), dispatcher.sink(archive, "archive"))
    wait_until(lambda: dispatcher.counts("erp") == (5, 0, 1) and dispatcher.counts("archive") == (6, 0, 0))
    dispatcher.close()
    assert sorted(erp.calls) == [("claimed", 2), ("failed", 2), ("pending", 1), ("unmatched", 1)]
    every_id = ["claimed", "dead", "delivered", "failed", "pending", "unmatched"]
    assert sorted(archive.calls) == [(event_id, 1) for event_id in every_id]
    assert dispatcher.journal.counts().unrouted == 0
    assert dispatcher.journal.sink_states()["erp"] == SinkState("erp")


def test_a_journal_that_is_opened_again_is_not_changed(old_store: SqlStore) -> None:
    old_store.open()
    before = everything(old_store)
    old_store.open()
    old_store.records()
    assert (everything(old_store), schema_version(old_store)) == (before, [{"version": 7}])


def test_processes_that_open_an_old_journal_at_once_upgrade_it_once(old_store: SqlStore) -> None:
    with ThreadPoolExecutor(4) as pool:
        journals = list(pool.map(lambda _: old_store.open(), range(4)))
    assert [journal.counts().unrouted for journal in journals] == [1] * 4
    assert schema_version(old_store) == [{"version": 7}]


def test_an_upgrade_that_fails_changes_nothing_and_succeeds_later(old_store: SqlStore) -> None:
    before = everything(old_store)
    old_store.disk_full = True
    with pytest.raises(JournalUnavailable):
        old_store.open()
    assert (everything(old_store), schema_version(old_store)) == (before, [{"version": 2}])
    old_store.disk_full = False
    assert old_store.open().counts().unrouted == 1


@pytest.mark.parametrize("old_store", [pytest.param(postgresql_schema_2, id="postgresql")], indirect=True)
def test_an_upgrade_takes_longer_than_any_other_transaction_may(
    old_store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_module, "STATEMENT_SECONDS", 2.5)
    monkeypatch.setattr(postgresql_module, "TRANSACTION_SECONDS", 3.0)
    monkeypatch.setattr(postgresql_connection, "RESPONSE_SECONDS", 2.8)
    monkeypatch.setitem(UPGRADES, 6, ("SELECT pg_sleep(3.5)",))
    journal = old_store.open()
    with pytest.raises(JournalUnavailable), journal._database.read() as connection:
        connection.exec_driver_sql("SELECT pg_sleep(3.5)")
    assert schema_version(old_store) == [{"version": 7}]


@pytest.mark.parametrize("old_store", [pytest.param(postgresql_schema_2, id="postgresql")], indirect=True)
@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param("UPDATE deliveries SET due = due", "SELECT * FROM events", id="a claim"),
        pytest.param("SELECT * FROM sinks", "UPDATE deliveries SET due = due", id="a settlement"),
    ],
)
def test_an_upgrade_and_a_transaction_of_an_older_receiver_wait_for_each_other_without_a_deadlock(
    old_store: PostgresqlStore, first: str, then: str
) -> None:
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with (
        psycopg.connect(old_store.url, options="-c deadlock_timeout=60s") as old,
        psycopg.connect(old_store.url, autocommit=True) as watching,
    ):
        old.execute(first)
        with ThreadPoolExecutor(1) as pool:
            opened = pool.submit(old_store.open)
            wait_until(lambda: watching.execute(waiting).fetchone(), what="an upgrade that waits")
            old.execute(then)
            old.commit()
            assert opened.result(60).counts().unrouted == 1


def test_an_upgraded_journal_has_the_columns_and_indexes_of_a_new_one(old_store: SqlStore, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    new_store = type(old_store)(tmp_path / "new")

    def schema(store: SqlStore) -> dict[str, tuple[set[tuple[str, str, bool]], set[str | None]]]:
        """Name, type and nullability of each column, and the name of each index, by table."""
        store.open()
        with closing(store.database()) as database, database.read() as connection:
            inspector = sqlalchemy.inspect(connection)
            return {
                table: (
                    {(each["name"], str(each["type"]), each["nullable"]) for each in inspector.get_columns(table)},
                    {each["name"] for each in inspector.get_indexes(table)},
                )
                for table in (*TABLES, "receiver_documents")
            }

    assert schema(old_store) == schema(new_store)
    assert "events_unrouted" in schema(old_store)["events"][1]
    new_store.close_all()


def test_sqlite_finds_unrouted_events_by_their_index(tmp_path: Path) -> None:
    store = sqlite_schema_2(tmp_path)
    journal = store.open()
    assert isinstance(store, SqliteStore)
    queries: list[tuple[str, Any]] = []

    def record(connection: object, cursor: object, statement: str, parameters: object, *rest: object) -> None:
        queries.append((statement, parameters))

    sqlalchemy.event.listen(journal._database._engine, "before_cursor_execute", record)  # type: ignore[attr-defined]
    assert event_ids(journal.unrouted(10)) == ["unmatched"]
    journal.counts()
    store.close_all()
    of_unrouted = [query for query in queries if "routed" in query[0]]
    assert len(of_unrouted) == 2
    with closing(sqlite3.connect(store.path)) as connection:
        for statement, parameters in of_unrouted:
            plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
            assert [step[3].partition(" USING ")[2] for step in plan if "events" in step[3]] in (
                ["INDEX events_unrouted"],
                ["COVERING INDEX events_unrouted"],
            )


def test_a_journal_of_schema_1_is_upgraded_with_all_its_sinks_enabled(old_store: SqlStore) -> None:
    execute(old_store, "ALTER TABLE sinks DROP COLUMN enabled", "UPDATE receiver_schema SET version = 1")

    journal = old_store.open()

    assert schema_version(old_store) == [{"version": 7}]
    assert journal.enabled_sinks() == {"archive", "erp"}
    assert event_ids(journal.unrouted(10)) == ["unmatched"]
    assert event_ids(claim(journal, "archive")) == ["delivered", "pending", "dead", "failed", "claimed"]
    journal.set_enabled_sinks(["new"])
    assert old_store.open().enabled_sinks() == {"new"}


def test_attempts_that_were_no_success_are_failures_after_an_upgrade(old_store: SqlStore) -> None:
    execute(old_store, "UPDATE sinks SET attempts = 9, delivered = 4, failures = 1 WHERE name = 'erp'")
    erp = old_store.open().counts().sinks["erp"]
    assert (erp.attempts, erp.delivered, erp.failures) == (9, 4, 5)


@pytest.mark.parametrize("kind", [SqlJournal, SqlRecords])
def test_the_journal_of_a_newer_receiver_is_rejected_and_not_changed(
    kind: Callable[[Any], object], store: SqlStore
) -> None:
    store.close(store.open())
    execute(store, "UPDATE receiver_schema SET version = 99", "DROP TABLE dispatchers")
    with pytest.raises(JournalError) as caught:
        kind(store.database())
    assert type(caught.value) is JournalError
    assert str(caught.value) == (
        "the journal has schema 99, and this receiver supports up to 7; run the newer receiver that wrote it"
    )
    with closing(store.database()) as database, database.read() as connection:
        assert not sqlalchemy.inspect(connection).has_table("dispatchers")
    assert schema_version(store) == [{"version": 99}]
