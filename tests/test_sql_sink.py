"""What the sql sink stores: each reading once, and the latest reading of each device and quantity."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.built_in_sinks import deliver_batch
from support.events import NOW, event, humidity, temperature
from support.sql_databases import SqlDatabase

from receiver.event import TYPES, Event
from receiver.simulator import Simulator


def test_a_reading_is_a_row_in_both_tables(sql_database: SqlDatabase) -> None:
    sink = sql_database.open(label_columns=["site", "floor"])
    labels = {"name": "Fridge", "site": "oslo", "other": "x"}
    deliver_batch(sink, temperature("t1", -18.5, minute=7, labels=labels, received_at=NOW))
    row = {
        "event_id": "t1",
        "reading": 1,
        "time": "2026-03-14T11:07:00.000000Z",
        "device_id": "d1",
        "device_name": "Fridge",
        "project_id": "oslo",
        "event_type": "temperature",
        "quantity": "temperature",
        "value": -18.5,
        "unit": "°C",
        "text": "",
        "received_at": "2026-03-14T12:00:00.000000Z",
        "label_site": "oslo",
        "label_floor": None,
    }
    assert sql_database.rows() == [row]
    assert sql_database.rows("latest") == [row]
    assert list(sql_database.rows()[0]) == list(row)


def test_the_database_can_calculate_with_times_and_values(sql_database: SqlDatabase) -> None:
    deliver_batch(sql_database.open(), temperature("t1", 4, minute=7))
    hours = {"sqlite": "strftime('%H', time)", "postgresql": "to_char(time AT TIME ZONE 'UTC', 'HH24')"}
    rows = sql_database.query(f"SELECT {hours[sql_database.kind]} AS hour, value + 1 AS more FROM readings")
    assert rows == [{"hour": "11", "more": 5.0}]


def test_the_readings_of_an_event_are_numbered_in_their_order(sql_database: SqlDatabase) -> None:
    deliver_batch(sql_database.open(), humidity("h1", (20, 50), (21, 60)))
    assert [(row["reading"], row["quantity"], row["value"], row["unit"]) for row in sql_database.rows()] == [
        (1, "temperature", 20.0, "°C"),
        (2, "relative_humidity", 50.0, "%"),
        (3, "temperature", 21.0, "°C"),
        (4, "relative_humidity", 60.0, "%"),
    ]


def test_a_state_is_a_number_with_its_name_as_text(sql_database: SqlDatabase) -> None:
    deliver_batch(sql_database.open(), event("c1", "contact", {"state": "OPEN"}))
    assert [(row["quantity"], row["value"], row["text"]) for row in sql_database.rows("latest")] == [
        ("open", 1.0, "OPEN")
    ]


def test_a_repeated_event_changes_nothing(sql_database: SqlDatabase) -> None:
    sink = sql_database.open()
    events = [temperature("t1", 1, minute=1), temperature("t2", 2, minute=2), humidity("h1", (20, 50))]
    deliver_batch(sink, *events)
    before = sql_database.rows(), sql_database.rows("latest")
    deliver_batch(sink, events[0], attempt=2)
    deliver_batch(sql_database.open(), *reversed(events))
    assert (sql_database.rows(), sql_database.rows("latest")) == before
    assert len(before[0]) == 4


def test_an_event_twice_in_one_batch_is_stored_once(sql_database: SqlDatabase) -> None:
    deliver_batch(sql_database.open(), temperature("t1", 1), temperature("t2", 2), temperature("t1", 1))
    assert sql_database.event_ids() == ["t1", "t2"]


def in_batches(events: list[Event], one_by_one: bool) -> list[list[Event]]:
    return [[each] for each in events] if one_by_one else [events]


@pytest.mark.parametrize("one_by_one", [True, False], ids=["one by one", "one batch"])
@pytest.mark.parametrize("newest_first", [False, True], ids=["oldest first", "newest first"])
def test_an_older_reading_never_replaces_a_newer_one(
    newest_first: bool, one_by_one: bool, sql_database: SqlDatabase
) -> None:
    sink = sql_database.open()
    events = [temperature(f"t{minute}", float(minute), minute=minute) for minute in (1, 3, 2)]
    for batch in in_batches(events[::-1] if newest_first else events, one_by_one):
        deliver_batch(sink, *batch)
    assert [(row["device_id"], row["quantity"], row["time"], row["value"]) for row in sql_database.rows("latest")] == [
        ("d1", "temperature", "2026-03-14T11:03:00.000000Z", 3.0)
    ]
    assert sql_database.event_ids() == ["t1", "t2", "t3"]


def test_there_is_a_latest_value_for_each_device_and_quantity(sql_database: SqlDatabase) -> None:
    deliver_batch(
        sql_database.open(), humidity("h1", (20, 50)), temperature("t1", 1.0, device="d2"), event("x1", device="d2")
    )
    assert {(row["device_id"], row["quantity"]): row["value"] for row in sql_database.rows("latest")} == {
        ("d1", "temperature"): 20.0,
        ("d1", "relative_humidity"): 50.0,
        ("d2", "temperature"): 1.0,
        ("d2", "touch"): 1.0,
    }


@pytest.mark.parametrize("one_by_one", [True, False], ids=["one by one", "one batch"])
def test_of_two_readings_at_the_same_time_the_one_with_the_last_event_id_is_the_latest(
    one_by_one: bool, sql_database: SqlDatabase
) -> None:
    """Ids compare byte by byte, in whatever order they come."""
    sink = sql_database.open()
    pairs = {
        "d1": ("1a", "1B"),
        "d2": ("2B", "2a"),
        "d3": ("3_", "3Z"),
        "d4": ("4Z", "4_"),
        "d5": ("5-", "50"),
        "d6": ("60", "6-"),
    }
    for device, ids in pairs.items():
        for batch in in_batches([temperature(name, ord(name[1]), device=device) for name in ids], one_by_one):
            deliver_batch(sink, *batch)
    assert [(row["device_id"], row["event_id"], row["value"]) for row in sql_database.rows("latest")] == [
        (device, max(ids), ord(max(ids)[1])) for device, ids in pairs.items()
    ]


def test_event_ids_compare_byte_by_byte_whatever_the_collation_of_the_table(sqlite_database: SqlDatabase) -> None:
    sink = sqlite_database.open()
    sqlite_database.query("ALTER TABLE latest RENAME TO case_sensitive")
    [table] = sqlite_database.query("SELECT sql FROM sqlite_master WHERE name = 'case_sensitive'")
    create = table["sql"].replace('"case_sensitive"', "latest")
    sqlite_database.query(create.replace("event_id TEXT", "event_id TEXT COLLATE NOCASE"))
    for number, name in enumerate(["B", "a", "C"]):
        deliver_batch(sink, temperature(name, number))
    assert sqlite_database.event_ids("latest") == ["a"]


def test_of_samples_without_a_time_the_first_is_the_latest(sql_database: SqlDatabase) -> None:
    deliver_batch(sql_database.open(), humidity("h1", (20, 50), (30, 70)))
    assert sorted(row["value"] for row in sql_database.rows("latest")) == [20.0, 50.0]


def test_events_without_readings_leave_no_row(sql_database: SqlDatabase) -> None:
    sink = sql_database.open()
    deliver_batch(sink, event("p1", "probeWireStatus", {"state": "TWO_WIRE"}), event("n1", "unknownType", {"value": 1}))
    deliver_batch(sink, event("n2", "labelsChanged"), event("t1"))
    assert sql_database.event_ids() == ["t1"]


def test_events_of_every_type_are_stored(sql_database: SqlDatabase) -> None:
    simulator = Simulator(seed=4)
    events = [Event.from_body(simulator.body(name), NOW) for name in TYPES]
    deliver_batch(sql_database.open(), *events)
    assert set(sql_database.event_ids()) == {each.id for each in events if each.readings()}
    assert len(sql_database.rows()) == sum(len(each.readings()) for each in events) > 10


def test_a_reading_without_a_device_is_stored_but_is_never_the_latest(sql_database: SqlDatabase) -> None:
    deliver_batch(sql_database.open(), event("e1", device=None), event("e2"))
    assert [(row["event_id"], row["device_id"]) for row in sql_database.rows()] == [("e1", None), ("e2", "d1")]
    assert sql_database.latest_event_ids() == {"d1": "e2"}


@pytest.mark.parametrize(("text", "stored"), [("a\0b", "a�b"), ("a\ud800b", "a?b")], ids=["NUL", "lone surrogate"])
def test_characters_that_databases_cannot_store_are_replaced(text: str, stored: str, sql_database: SqlDatabase) -> None:
    sink = sql_database.open(label_columns=["site"])
    deliver_batch(sink, event("e1", labels={"site": text, "name": text}, device=text))
    (row,) = sql_database.rows()
    assert (row["label_site"], row["device_name"], row["device_id"]) == (stored, stored, stored)
    assert [row["device_id"] for row in sql_database.rows("latest")] == [stored]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(), min_size=1, max_size=40))
def test_any_text_is_read_back(text: str, sql_database: SqlDatabase) -> None:
    sink = sql_database.open(label_columns=["site"])
    name = uuid.uuid4().hex
    deliver_batch(sink, event(name, labels={"site": text, "name": text}, device=text))
    sink.hook.close()
    stored = text.replace("\0", "�").encode("utf-8", "replace").decode()
    [row] = [row for row in sql_database.rows() if row["event_id"] == name]
    assert [row[column] for column in ("label_site", "device_name", "device_id")] == [stored] * 3


def test_a_label_as_large_as_a_push_is_stored(sql_database: SqlDatabase) -> None:
    large = "é" * 120_000
    deliver_batch(sql_database.open(label_columns=["note"]), event("e1", labels={"note": large, "name": large}))
    (row,) = sql_database.rows()
    assert (row["label_note"], row["device_name"]) == (large, large)


def test_any_number_is_read_back(sql_database: SqlDatabase) -> None:
    numbers = [0, -0.5, 5e-324, 1.7976931348623157e308, 2**63, 10**300, -(2**70)]
    deliver_batch(sql_database.open(), *(temperature(f"t{index}", number) for index, number in enumerate(numbers)))
    assert [row["value"] for row in sql_database.rows()] == [float(number) for number in numbers]


def test_a_number_too_large_for_a_float_is_not_a_reading(sql_database: SqlDatabase) -> None:
    deliver_batch(sql_database.open(), temperature("t1", 10**400), temperature("t2", 1))
    assert sql_database.event_ids() == ["t2"]


def test_the_first_and_the_last_possible_time_are_in_order(sql_database: SqlDatabase) -> None:
    sink = sql_database.open()
    times = ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z", "1969-12-31T23:59:59.999999Z", "not a time"]
    deliver_batch(sink, *(event(f"e{number}", data={"updateTime": time}) for number, time in enumerate(times)))
    in_order = sql_database.query("SELECT event_id FROM readings ORDER BY time")
    assert [row["event_id"] for row in in_order] == ["e0", "e2", "e3", "e1"]


ONE_DAY_AHEAD = NOW - timedelta(hours=25)
"""When an event was received that has a reading of 11:00 on the day of NOW."""


def test_a_reading_of_up_to_a_day_ahead_of_its_receipt_can_be_the_latest(sql_database: SqlDatabase) -> None:
    sink = sql_database.open()
    deliver_batch(sink, temperature("t1", 1, received_at=ONE_DAY_AHEAD))
    deliver_batch(sink, temperature("t2", 1, device="d2", received_at=ONE_DAY_AHEAD - timedelta(seconds=1)))
    assert sql_database.latest_event_ids() == {"d1": "t1"}
    assert sql_database.event_ids() == ["t1", "t2"]


@pytest.mark.parametrize("one_by_one", [True, False], ids=["one by one", "one batch"])
@pytest.mark.parametrize("time", ["2026-03-16T12:00:00Z", "2126-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"])
@pytest.mark.parametrize("future_first", [True, False], ids=["future first", "future last"])
def test_a_reading_of_the_far_future_is_stored_and_never_the_latest(
    future_first: bool, time: str, one_by_one: bool, sql_database: SqlDatabase
) -> None:
    sink = sql_database.open()
    events = [event("far", data={"updateTime": time}, received_at=NOW), event("now", received_at=NOW)]
    for batch in in_batches(events if future_first else events[::-1], one_by_one):
        deliver_batch(sink, *batch)
    assert sql_database.event_ids() == ["far", "now"]
    assert sql_database.latest_event_ids() == {"d1": "now"}


@pytest.mark.parametrize("time", ["2026-03-16 12:00:00", "9999-12-31 23:59:59"])
def test_a_latest_reading_of_the_far_future_that_an_older_version_has_stored_is_replaced(
    time: str, sql_database: SqlDatabase
) -> None:
    sink = sql_database.open()
    deliver_batch(sink, event("far", received_at=NOW))
    stored = f"{time.replace(' ', 'T')}.000000Z" if sql_database.kind == "sqlite" else f"{time}+00"
    sql_database.query(f"UPDATE latest SET time = '{stored}'")
    deliver_batch(sink, event("now", received_at=NOW))
    assert sql_database.latest_event_ids() == {"d1": "now"}
    deliver_batch(sink, event("earlier", data={"updateTime": "2026-03-14T10:00:00Z"}, received_at=NOW))
    assert sql_database.latest_event_ids() == {"d1": "now"}


def test_a_sink_can_be_opened_again_after_close(sql_database: SqlDatabase) -> None:
    sink = sql_database.open()
    deliver_batch(sink, event("e1"))
    sink.hook.close()
    sink.hook.open(name="tested", logger=None)
    deliver_batch(sink, event("e2"))
    assert sql_database.event_ids() == ["e1", "e2"]
