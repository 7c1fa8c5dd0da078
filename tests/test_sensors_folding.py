"""The registry folds events: twice, late or in another order, they change nothing that they should not."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.journals import SqliteStore, SqlStore
from support.postgresql import Deployment
from support.sensors import (
    DOOR,
    FREEZER,
    PROJECT,
    at,
    connection,
    contents,
    event,
    latest_of,
    network,
    row_of,
    sql,
    temperature,
)

from receiver.errors import JournalError
from receiver.event import Event
from receiver.journal.sql import postgresql as postgresql_module
from receiver.journal.sql import postgresql_connection
from receiver.sensors import history, tables
from receiver.sensors.folding import News
from receiver.sensors.minutes import Minutes, from_bytes
from receiver.sensors.registry import Registry
from receiver.sensors.watch import Rules
from receiver.sensors.writer import _lock

DAY = 1440


def heard_of(registry: Registry, device: str = FREEZER) -> list[float]:
    """The minutes after START in which a sensor was heard live."""
    days = {day.day: from_bytes(day.heard) for day in registry.days(device, 0)}
    start = int(at(0).timestamp() // 60)
    minutes = Minutes.of_days(days)
    return [n - start for n in range(minutes.first, (minutes.last or 0) + 1) if minutes.between(n, n).count()]


def points_of(registry: Registry, quantity: str) -> list[tuple[float, float]]:
    start = at(0).timestamp()
    return [
        ((point.time - start) / 60, round(point.mean, 3))
        for day in registry.days(FREEZER, 0)
        for point in history.unpack(day.day, quantity, day.hours, day.points)
    ]


def test_a_sensor_is_known_by_its_newest_facts(registry: Registry) -> None:
    registry.fold([temperature(0, 4.5, name="freezer", project="old"), network(1, "ccon1", name="freezer 2")])
    row = row_of(registry)
    assert (row.name, row.project_id, row.type, row.connector, row.periodic, row.offline_since) == (
        "freezer 2",
        PROJECT,
        "temperature",
        "ccon1",
        True,
        None,
    )
    assert (row.first_heard, row.last_heard) == (at(0).timestamp(), at(1).timestamp())
    assert latest_of(registry) == {"temperature": 4.5, "signal_strength": 50, "rssi": -80}
    assert heard_of(registry) == [0, 1]
    assert [each.device_id for each in registry.named("freezer 2")] == [FREEZER]
    assert registry.named("freezer") == []


@pytest.mark.parametrize(
    "later",
    [
        pytest.param(temperature(5, 99.0, received=60, name="old name", project="old"), id="late"),
        pytest.param(temperature(30, 99.0, received=60, backfilled=True), id="backfilled"),
        pytest.param(temperature(5, 99.0, received=3 * DAY), id="from history"),
    ],
)
def test_an_event_that_comes_late_replaces_nothing_newer(registry: Registry, later: Event) -> None:
    registry.fold([temperature(20, 4.0, name="freezer")])
    before = row_of(registry)
    registry.fold([later])
    after = row_of(registry)
    assert (after.name, after.project_id, after.last_heard) == (before.name, before.project_id, before.last_heard)
    assert latest_of(registry) == {"temperature": 4.0}


def test_a_backfilled_reading_never_becomes_the_latest_value_nor_a_sign_of_life(registry: Registry) -> None:
    registry.fold([temperature(0, 4.0), temperature(45, 99.0, received=50, backfilled=True)])
    assert row_of(registry).last_heard == at(0).timestamp()
    assert latest_of(registry) == {"temperature": 4.0}
    assert heard_of(registry) == [0]
    assert points_of(registry, "temperature") == [(0, 4.0), (45, 99.0)]


@pytest.mark.parametrize(
    ("minutes", "counts_as"), [(9, 9), (11, 0), (1_000_000, 0)], ids=["in 9 min", "in 11 min", "in 2 years"]
)
def test_a_timestamp_from_the_future_counts_as_the_time_of_its_arrival(
    registry: Registry, minutes: float, counts_as: float
) -> None:
    registry.fold([temperature(minutes, 4.0, received=0)])
    assert row_of(registry).last_heard == at(counts_as).timestamp()
    registry.fold([temperature(20, 5.0)])
    assert latest_of(registry) == {"temperature": 5.0}
    assert row_of(registry).last_heard == at(20).timestamp()


def test_a_timestamp_of_long_ago_leaves_no_day_behind(registry: Registry) -> None:
    registry.fold([temperature(-1_000_000, 4.0, received=0), temperature(0, 5.0)])
    assert [day.day for day in registry.days(FREEZER, 0)] == [int(at(0).timestamp() // 86400)]


@pytest.mark.parametrize("device", [None, "", "a/b", "x" * 65, "nul\0", "ä"])
def test_an_event_without_a_valid_device_id_changes_nothing(registry: Registry, device: str | None) -> None:
    registry.fold([event(0, device=device)])
    assert registry.rows() == []


def test_names_and_types_of_any_text_are_stored(registry: Registry) -> None:
    odd = "frees\0er \U0001f9ca\n\tin  hall"
    registry.fold([event(0, "unheardOf", {"x": [1]}, name=odd, device_type="a\0b", project="p\0")])
    row = row_of(registry)
    assert (row.name, row.project_id, row.last_heard) == ("frees?er \U0001f9ca in hall", None, at(0).timestamp())


def test_events_of_unknown_types_are_signs_of_life_but_no_heartbeat(registry: Registry) -> None:
    registry.fold([event(0, "unheardOf")])
    assert (row_of(registry).last_heard, row_of(registry).periodic) == (at(0).timestamp(), False)


def test_a_label_edit_and_a_report_of_being_offline_are_no_signs_of_life(registry: Registry) -> None:
    registry.fold([event(0), event(30, "labelsChanged", {"added": {}}, name="new"), connection(40, "OFFLINE")])
    row = row_of(registry)
    assert (row.name, row.last_heard, row.offline_since) == ("new", at(0).timestamp(), at(40).timestamp())
    registry.fold([connection(50, "ETHERNET")])
    assert (row_of(registry).last_heard, row_of(registry).offline_since) == (at(50).timestamp(), None)


def test_a_sensor_heard_through_several_connectors_depends_on_none(registry: Registry) -> None:
    registry.fold([network(0, "ccon1", "ccon2")])
    assert row_of(registry).connector is None
    registry.fold([network(minutes, "ccon2") for minutes in range(15, DAY + 30, 15)])
    assert row_of(registry).connector == "ccon2"


def test_of_many_connectors_those_that_heard_it_last_are_remembered(registry: Registry) -> None:
    registry.fold([network(minutes, f"ccon{minutes}") for minutes in range(100)])
    facts = json.loads(row_of(registry).facts)
    assert sorted(name for name in facts if name.startswith("via:")) == [f"via:ccon{n}" for n in range(92, 100)]


def test_the_published_and_captured_events_give_the_right_latest_values(registry: Registry) -> None:
    pushes = json.loads((ROOT / "tests" / "real_pushes.json").read_text(encoding="utf-8"))["pushes"]
    events = [Event.from_body(push["body"].encode(), datetime.now(UTC)) for push in pushes]
    registry.fold(events)
    for each in events:
        assert each.device_id
        newest = {reading.quantity: reading.value for reading in reversed(each.readings())}
        assert latest_of(registry, each.device_id).items() >= newest.items()


# Any order

EVENTS = st.builds(
    lambda kind, minutes, device, value, name, delay: (
        network(minutes, f"ccon{value % 3}", device=device, name=name, received=minutes + delay)
        if kind == "network"
        else connection(minutes, ("OFFLINE", "CELLULAR")[value % 2], device=device, received=minutes + delay)
        if kind == "connection"
        else temperature(
            minutes, value, device=device, name=name, received=minutes + delay, backfilled=kind == "backfilled"
        )
    ),
    st.sampled_from(["network", "temperature", "backfilled", "connection"]),
    st.integers(0, 3 * DAY),
    st.sampled_from([FREEZER, DOOR]),
    st.integers(-5, 5),
    st.sampled_from(["a", "b"]),
    st.sampled_from([0.1, 30, 20 * 60, -30]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EVENTS, min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_events_in_any_order_doubled_and_in_other_batches_give_the_same_registry(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event], chance: random.Random
) -> None:
    in_order = folded(tmp_path_factory.mktemp("a"), [events])
    shuffled = [*events, *chance.choices(events, k=len(events))]
    chance.shuffle(shuffled)
    size = chance.randint(1, 10)
    assert folded(tmp_path_factory.mktemp("b"), [shuffled[n : n + size] for n in range(0, len(shuffled), size)]) == (
        in_order
    )


def folded(folder: Path, batches: Sequence[Sequence[Event]]) -> object:
    with closing(Registry(SqliteStore(folder).database(), Rules())) as registry:
        for batch in batches:
            registry.fold(batch)
        return contents(registry)


def test_the_same_on_either_database(registry: Registry) -> None:
    events = [temperature(minutes, minutes / 10, name="freezer") for minutes in range(0, 600, 7)]
    registry.fold(events)
    before = contents(registry)
    registry.fold(events[::-1])
    registry.fold(events[3:5])
    assert contents(registry) == before
    assert heard_of(registry) == list(range(0, 600, 7))


# History


def test_points_of_a_finished_day_become_hours_and_a_replay_changes_nothing(registry: Registry) -> None:
    events = [temperature(minutes, value) for minutes, value in ((0, 1.0), (20, 2.0), (40, 6.0), (70, 8.0))]
    now = [temperature(5 * DAY, 7.0)]
    registry.fold(events + now)
    assert not registry.tidy(at(5 * DAY).timestamp())  # within the hour after the last point came
    assert len(points_of(registry, "temperature")) == 5
    far_future = 4e9
    registry.tidy(far_future)
    assert points_of(registry, "temperature") == [(0, 3.0), (60, 8.0), (5 * DAY, 7.0)]
    days = contents(registry)
    registry.fold(events)
    registry.tidy(far_future)
    assert contents(registry) == days


def test_a_late_point_of_a_compacted_hour_extends_its_range(registry: Registry) -> None:
    registry.fold([temperature(0, 1.0), temperature(10, 3.0), temperature(5 * DAY, 7.0)])
    registry.tidy(4e9)
    registry.fold([temperature(20, 9.0, received=6 * DAY, backfilled=True)])
    for _ in range(2):
        (day, *_) = registry.days(FREEZER, 0)
        (hour,) = history.unpack(day.day, "temperature", day.hours, day.points)
        assert (hour.minimum, hour.mean, hour.maximum) == (1.0, 2.0, 9.0)
        registry.tidy(4e9)


def test_days_beyond_the_history_are_deleted_by_the_time_of_the_events_not_by_our_clock(registry: Registry) -> None:
    registry.fold([temperature(0, 1.0), temperature(2 * DAY, 2.0)])
    registry.tidy(4e9)
    assert len(registry.days(FREEZER, 0)) == 2
    registry.fold([temperature(33 * DAY, 3.0)])
    registry.tidy(4e9)
    assert [day.day for day in registry.days(FREEZER, 0)] == [int(at(n * DAY).timestamp() // 86400) for n in (2, 33)]


def test_a_sensor_that_was_heard_in_the_future_lets_no_days_expire(registry: Registry) -> None:
    """As when our clock has been far ahead for a while."""
    registry.fold([temperature(0, 1.0), temperature(40 * DAY, 2.0, device=DOOR)])
    registry.tidy(at(DAY).timestamp())
    assert len(registry.days(FREEZER, 0)) == 1


# The tables


def test_a_registry_of_a_newer_receiver_is_left_alone(store: SqlStore, registry: Registry) -> None:
    sql(store, "UPDATE registry_schema SET version = 99")
    with pytest.raises(JournalError, match="has schema 99, and this receiver supports up to 2"):
        Registry(store.database(), Rules())


def test_an_older_registry_is_upgraded(store: SqlStore, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.fold([temperature(0, 1.0)])
    monkeypatch.setattr(tables, "SCHEMA_VERSION", 3)
    monkeypatch.setattr(tables, "UPGRADES", {2: ("UPDATE registry_sensors SET name = 'upgraded'",)})
    with closing(Registry(store.database(), Rules())) as upgraded:
        assert row_of(upgraded).name == "upgraded"
    assert sql(store, "SELECT version FROM registry_schema") == [(3,)]


def test_an_upgrade_waits_for_a_fold_and_never_for_what_waits_for_it(
    store: SqlStore, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL would end one of the two transactions."""
    monkeypatch.setattr(tables, "SCHEMA_VERSION", 3)
    monkeypatch.setattr(tables, "UPGRADES", {2: ("CREATE INDEX registry_sensors_type ON registry_sensors (type)",)})
    upgrade = threading.Thread(target=lambda: Registry(store.database(), Rules()).close())
    with registry._database.write() as connection:
        _lock(connection)
        upgrade.start()
        upgrade.join(0.5)
        registry._fold_sensors(connection, {FREEZER: News()})
    upgrade.join()
    assert sql(store, "SELECT version FROM registry_schema") == [(3,)]


def test_an_upgrade_of_the_registry_takes_longer_than_any_other_transaction_may(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    Registry(deployment.database(), Rules())
    monkeypatch.setattr(postgresql_module, "STATEMENT_SECONDS", 2.5)
    monkeypatch.setattr(postgresql_module, "TRANSACTION_SECONDS", 3.0)
    monkeypatch.setattr(postgresql_connection, "RESPONSE_SECONDS", 2.8)
    monkeypatch.setattr(tables, "SCHEMA_VERSION", 3)
    monkeypatch.setattr(tables, "UPGRADES", {2: ("SELECT pg_sleep(3.5)",)})
    Registry(deployment.database(), Rules())
    assert deployment.sql("SELECT version FROM registry_schema") == [(3,)]


def test_tables_of_another_program_are_left_alone(store: SqlStore) -> None:
    sql(store, "CREATE TABLE registry_days (id INTEGER)")
    with pytest.raises(JournalError, match=r"table 'registry_days' of another program; set another \[sensors\] url"):
        Registry(store.database(), Rules())


def test_what_a_killed_process_has_folded_is_on_the_disk_before_it_is_delivered_again(
    sqlite_store: SqliteStore,
) -> None:
    """It may have been killed between the write of its commit and the flush; the same events change nothing."""
    log = sqlite_store.path.with_name(sqlite_store.path.name + "-wal")
    with closing(Registry(sqlite_store.database(), Rules())) as registry:
        registry.fold([temperature(0, 4.0)])
        written = log.stat().st_size
        registry.fold([temperature(0, 4.0)])
        assert log.stat().st_size > written
