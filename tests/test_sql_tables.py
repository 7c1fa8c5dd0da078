"""The tables of the sql sink: created or extended when they are missing, and not changed if they do not fit."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection
from support.built_in_sinks import deliver_batch, module_of, open_sink
from support.events import event, temperature
from support.sql_databases import COLUMN_TYPES, READINGS_COLUMNS, SqlDatabase, build_sql

from receiver import GiveUp, Pause


def test_a_new_label_gets_its_column(sql_database: SqlDatabase) -> None:
    deliver_batch(sql_database.open(), event("e1", labels={"site": "oslo"}))
    deliver_batch(sql_database.open(label_columns=["site"]), event("e2", labels={"site": "oslo"}))
    deliver_batch(sql_database.open(label_columns=["floor"]), event("e3", labels={"site": "oslo", "floor": "2"}))
    assert [(row["event_id"], row["label_site"], row["label_floor"]) for row in sql_database.rows()] == [
        ("e1", None, None),
        ("e2", "oslo", None),
        ("e3", None, "2"),
    ]
    assert [(row["event_id"], row["label_floor"]) for row in sql_database.rows("latest")] == [("e3", "2")]


def test_additional_columns_are_not_touched(sql_database: SqlDatabase) -> None:
    sink = sql_database.open()
    sql_database.query("ALTER TABLE readings ADD COLUMN note TEXT")
    sql_database.query("ALTER TABLE readings ADD COLUMN seen TEXT NOT NULL DEFAULT 'no'")
    deliver_batch(sink, event("e1"))
    deliver_batch(sql_database.open(), event("e2"))
    assert [(row["event_id"], row["note"], row["seen"]) for row in sql_database.rows()] == [
        ("e1", None, "no"),
        ("e2", None, "no"),
    ]


def test_a_table_that_fits_is_used_whoever_created_it(sql_database: SqlDatabase) -> None:
    sql_database.create_readings()
    deliver_batch(sql_database.open(), event("e1"))
    assert sql_database.event_ids() == ["e1"]


@pytest.mark.parametrize(
    ("change", "mismatch"),
    [
        (("unit TEXT NOT NULL, ", ""), "it has no column 'unit' (TEXT)"),
        (("value {double}", "value INTEGER"), "column 'value' is INTEGER and must be {double}"),
        (("device_id TEXT", "device_id VARCHAR(20)"), "column 'device_id' is VARCHAR(20) and must be TEXT"),
        (("time {time}", "time DATE"), "column 'time' is DATE and must be {time}"),
        (("PRIMARY KEY", "note TEXT NOT NULL, PRIMARY KEY"), "column 'note' is NOT NULL and has no default"),
        ((", reading)", ", quantity)"), "its primary key must be (event_id, reading)"),
        ((", PRIMARY KEY (event_id, reading)", ""), "its primary key must be (event_id, reading)"),
    ],
)
def test_a_table_that_does_not_fit_pauses_the_sink_and_is_not_changed(
    change: tuple[str, str], mismatch: str, sql_database: SqlDatabase
) -> None:
    mismatch = mismatch.format(**COLUMN_TYPES[sql_database.kind])
    for name in ("readings", "data"):
        sql_database.create_readings(name=name, columns=READINGS_COLUMNS.replace(*change))
        with pytest.raises(Pause) as pause:
            sql_database.open(readings=name)
        assert str(pause.value) == (
            f"table '{name}' does not fit: {mismatch}; alter the table, or name another one in readings"
        )
        assert sql_database.rows(name, order="event_id") == []


def test_a_table_that_was_repaired_is_used_when_the_sink_is_opened_again(sql_database: SqlDatabase) -> None:
    sql_database.query("CREATE TABLE readings (event_id TEXT)")
    sink = build_sql(sql_database.url)
    with pytest.raises(Pause, match="it has no column 'reading'"):
        open_sink(sink)
    sql_database.query("DROP TABLE readings")
    deliver_batch(open_sink(sink), event("e1"))
    assert sql_database.event_ids() == ["e1"]
    sink.hook.close()


def test_tables_that_were_dropped_pause_the_sink_and_are_created_again(sql_database: SqlDatabase) -> None:
    sink = sql_database.open()
    sql_database.query("DROP TABLE readings")
    sql_database.query("DROP TABLE latest")
    with pytest.raises(Pause, match="readings"):
        deliver_batch(sink, event("e1"))
    deliver_batch(sink, event("e1"))
    assert (sql_database.event_ids(), sql_database.event_ids("latest")) == (["e1"], ["e1"])


def test_a_reading_is_stored_in_both_tables_or_in_none(sql_database: SqlDatabase) -> None:
    sink = sql_database.open()
    sql_database.query("DROP TABLE latest")
    with pytest.raises(Pause):
        deliver_batch(sink, event("e1"))
    assert sql_database.rows() == []


def test_an_event_that_violates_a_constraint_is_given_up_and_blocks_no_other(sql_database: SqlDatabase) -> None:
    sql_database.create_readings(constraint="CHECK (value < 100)")
    sink = sql_database.open()
    with pytest.raises(GiveUp, match=r"^the database rejects this event: (CheckViolation|IntegrityError): "):
        deliver_batch(sink, temperature("t1", 1), temperature("t2", 100))
    assert sql_database.rows() == []
    deliver_batch(sink, temperature("t1", 1))
    with pytest.raises(GiveUp):
        deliver_batch(sink, temperature("t2", 100))
    assert sql_database.event_ids() == ["t1"]


VIOLATE_A_CONSTRAINT = "INSERT INTO readings (event_id, reading) VALUES ('e0', 1)"


def test_a_constraint_that_is_violated_while_tables_are_created_is_no_fault_of_an_event(
    sql_database: SqlDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL reports a violation when two clients create a table at once without a lock."""

    def fail(connection: Connection, *_: object) -> None:
        connection.exec_driver_sql(VIOLATE_A_CONSTRAINT)

    sql_database.open()
    sink = build_sql(sql_database.url)
    with monkeypatch.context() as patch:
        patch.setattr(module_of("sql"), "create_or_check", fail)
        with pytest.raises(Pause, match=r"NotNullViolation|IntegrityError"):
            deliver_batch(sink, event("e1"))
    deliver_batch(sink, event("e1"))
    assert sql_database.event_ids() == ["e1"]
    sink.hook.close()
