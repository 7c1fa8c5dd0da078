"""What pages ask of the registry: sensors page by page, histories of several, incidents of one."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import closing

import pytest
from support.journals import SqliteStore, SqlStore
from support.sensors import (
    DOOR,
    FREEZER,
    PROJECT,
    START,
    at,
    event,
    fold_a_silent_freezer,
    network,
    sql,
    temperature,
    watched,
)

from receiver.sensors.history import Point, by_hour
from receiver.sensors.minutes import Minutes, minute_of
from receiver.sensors.registry import Registry
from receiver.sensors.shown import days_of, details, gap_rows, gaps_of, history_of, open_gaps, projects_heard
from receiver.sensors.watch import Rules, newest_by_project

DAY = 1440
NAMES = ["Anteroom", "boiler", "Büro", "boiler", "100 % wet_", "zebra", None, None]


def fold_named(registry: Registry) -> None:
    registry.fold([event(n, name=name, device=f"device{n}") for n, name in enumerate(NAMES)])


def pages(registry: Registry, size: int, **query: str) -> list[str]:
    """The device ids of all pages."""
    found: list[str] = []
    while page := registry.page(found[-1] if found else None, size, **query):
        assert len(page) <= size
        found += [row.device_id for row in page]
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_sensors_are_listed_page_by_page_in_the_order_of_their_names(size: int, registry: Registry) -> None:
    fold_named(registry)
    assert pages(registry, size) == [f"device{n}" for n in (4, 0, 1, 3, 2, 6, 7, 5)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("BOIL", [1, 3]),
        ("%", [4]),
        ("_", [4]),
        ("\\", []),
        ("'", []),
        ("device7", [7]),
        ("nothing", []),
        ("x" * 500, []),
        ("\0", []),
    ],
)
def test_sensors_are_found_by_a_part_of_their_name_or_device_id(
    text: str, found: list[int], registry: Registry
) -> None:
    fold_named(registry)
    assert pages(registry, 1, text=text) == [f"device{n}" for n in found]


def test_sensors_are_listed_by_state(registry: Registry) -> None:
    fold_a_silent_freezer(registry, at(1000))
    states = {row.device_id: row.state for row in registry.rows()}
    for state in states.values():
        assert pages(registry, 1, state=state) == [each for each in sorted(states) if states[each] == state]
    assert pages(registry, 1, state="retired") == []


def test_a_page_after_a_sensor_that_is_gone_is_empty(registry: Registry) -> None:
    fold_named(registry)
    assert registry.page("nobody", 10) == []


def test_the_newest_timestamp_of_each_project_is_that_of_its_sensors_and_never_one_of_the_future(
    registry: Registry,
) -> None:
    registry.fold([event(0, project="a"), event(7, project="a", device=DOOR), event(3, project=None, device="other")])
    now = at(5).timestamp()
    stored = [
        watched(device_id=row.device_id, project_id=row.project_id, last_heard=row.last_heard)
        for row in registry.rows()
    ]
    for ahead in (0, 100, -600):
        assert registry.newest(now + ahead) == newest_by_project(stored, now + ahead)


def test_the_incidents_of_a_sensor_are_those_that_name_it(registry: Registry) -> None:
    fold_a_silent_freezer(registry, at(1000))
    (incident,) = registry.incidents_of(FREEZER, 10)
    assert (incident.id, [*incident.sensors]) == (registry.incidents(10)[0].id, [FREEZER])
    assert registry.incidents_of(DOOR, 10) == registry.incidents_of("c8v2lh600000000000%f", 10) == []
    assert registry.incidents(10, before=incident.id) == []
    assert registry.incidents(10, named=False)[0].sensors == {FREEZER: FREEZER}


def test_gaps_and_completeness_of_some_sensors_are_the_same_as_those_of_each(registry: Registry) -> None:
    now = at(1000)
    fold_a_silent_freezer(registry, now)
    rows, projects = registry.rows(), projects_heard(registry, now.timestamp())
    assert gaps_of(registry, rows, projects, now.timestamp()) == gap_rows(registry, None, now.timestamp())
    both = days_of(registry, rows, projects.newest, now.timestamp())
    assert both == {row.device_id: details(registry, row.device_id, now.timestamp()).days for row in rows}
    assert both[FREEZER]


def gaps_at(registry: Registry, minute: int) -> list[tuple[int, int | None]]:
    """The begin and the end of the gaps of the freezer that are listed then."""
    start = at(0).timestamp()
    return [
        (
            round((gap.from_.timestamp() - start) / 60),
            None if gap.to is None else round((gap.to.timestamp() - start) / 60),
        )
        for gap in gap_rows(registry, FREEZER, at(minute).timestamp())
    ]


def completeness_at(registry: Registry, minute: int) -> list[float]:
    return [each.completeness for each in details(registry, FREEZER, at(minute).timestamp()).days]


def heard_each_quarter(registry: Registry, start: int, end: int, device: str = FREEZER) -> None:
    registry.fold([network(minute, device=device) for minute in range(start, end, 15)])


def test_a_sensor_that_was_silent_for_more_than_a_week_is_complete_on_none_of_these_days(registry: Registry) -> None:
    heard_each_quarter(registry, 0, DAY)
    heard_each_quarter(registry, 0, 12 * DAY, DOOR)
    registry.judge(at(DAY).timestamp(), "judge")
    assert gaps_at(registry, 12 * DAY) == [(DAY - 15, None)]
    assert completeness_at(registry, 12 * DAY) == [0.0] * 7
    heard_each_quarter(registry, 12 * DAY - 60, 12 * DAY)
    assert gaps_at(registry, 12 * DAY) == [(DAY - 15, 12 * DAY - 60)]
    assert completeness_at(registry, 12 * DAY)[:6] == [0.0] * 6


def test_a_sensor_whose_history_is_deleted_is_still_missing(registry: Registry) -> None:
    heard_each_quarter(registry, 0, DAY)
    heard_each_quarter(registry, 39 * DAY, 40 * DAY, DOOR)
    registry.judge(at(DAY).timestamp(), "judge")
    while registry.tidy(at(40 * DAY).timestamp()):
        pass
    assert registry.days(FREEZER, 0) == []
    assert gaps_at(registry, 40 * DAY) == [(DAY - 15, None)]
    assert completeness_at(registry, 40 * DAY) == [0.0] * 7


def test_gaps_that_ended_more_than_a_week_ago_are_not_listed(registry: Registry) -> None:
    heard_each_quarter(registry, 0, 600)
    heard_each_quarter(registry, 810, DAY)
    for days, listed in ((7, [(DAY - 15, None), (585, 810)]), (9, [(DAY - 15, None)])):
        heard_each_quarter(registry, 0, days * DAY, DOOR)
        registry.judge(at(DAY).timestamp(), "judge")
        assert gaps_at(registry, days * DAY) == listed


def test_a_retired_sensor_is_not_expected_and_not_incomplete(registry: Registry) -> None:
    heard_each_quarter(registry, 0, DAY)
    heard_each_quarter(registry, 0, 5 * DAY, DOOR)
    registry.judge(at(DAY).timestamp(), "judge")
    registry.retire(FREEZER, at(DAY).timestamp(), at(DAY).timestamp())
    assert completeness_at(registry, 5 * DAY) == [1.0]


def test_a_gap_of_more_than_a_week_is_filled_by_events_of_all_its_days(registry: Registry) -> None:
    heard_each_quarter(registry, 0, DAY)
    heard_each_quarter(registry, 0, 12 * DAY, DOOR)
    heard_each_quarter(registry, 12 * DAY - 60, 12 * DAY)
    registry.judge(at(12 * DAY).timestamp(), "judge")
    late = [network(n, backfilled=True, received=12 * DAY) for n in range(DAY, 12 * DAY - 60, 15)]
    registry.fold(late[10:])
    assert [gap.filled for gap in gap_rows(registry, FREEZER, at(12 * DAY).timestamp())] == [False]
    registry.fold(late)
    assert [gap.filled for gap in gap_rows(registry, FREEZER, at(12 * DAY).timestamp())] == [True]


def test_a_retired_sensor_has_no_gap_that_lasts(registry: Registry) -> None:
    heard_each_quarter(registry, 0, DAY)
    registry.judge(at(DAY).timestamp(), "judge")
    registry.retire(FREEZER, at(2 * DAY).timestamp(), at(2 * DAY).timestamp())
    for days, listed in ((5, [(DAY - 15, 2 * DAY)]), (12, [])):
        heard_each_quarter(registry, 0, days * DAY, DOOR)
        assert gaps_at(registry, days * DAY) == listed


def test_a_gap_from_before_dts_history_is_not_fetched(registry: Registry) -> None:
    """It ended on the first day that is read, before the time from which on DT has events."""
    for device in (FREEZER, DOOR):
        registry.fold([network(minute, device=device) for minute in (*range(0, 60, 15), *range(300, 5000, 15))])
        heard_each_quarter(registry, 31 * DAY + 780, 31 * DAY + 840, device)
    found = open_gaps(registry, at(31 * DAY + 840).timestamp(), 31 * DAY)
    assert all(gap.start < gap.end for gap in found)


def test_a_page_counts_every_gap_of_its_sensors(registry: Registry) -> None:
    """Of 50 sensors with a few lost heartbeats there are more gaps than a command lists."""
    names = [f"c8v2lh600000000000{n:02d}" for n in range(16)]
    beats = [minute for minute in range(0, 7 * DAY, 15) if minute % 135]
    registry.fold([network(minute, device=name) for name in names for minute in beats])
    registry.judge(at(7 * DAY).timestamp(), "judge")
    now = at(7 * DAY).timestamp()
    found = Counter(gap.device_id for gap in gaps_of(registry, registry.rows(), projects_heard(registry, now), now))
    assert found == dict.fromkeys(names, 74)
    assert len(gap_rows(registry, None, now)) == 1000


def test_a_gap_that_began_before_dts_history_is_not_closed_by_fetching_nothing(registry: Registry) -> None:
    for device in (FREEZER, DOOR):
        heard_each_quarter(registry, 0, 300, device)
        heard_each_quarter(registry, 32 * DAY, 32 * DAY + 60, device)
    now = 32 * DAY + 60
    gaps = open_gaps(registry, at(now).timestamp(), 31 * DAY)
    first = minute_of(at(now - 31 * DAY).timestamp())
    assert [gap.start for gap in gaps] == [first, first]
    assert [gap.is_filled_by(Minutes()) for gap in gaps] == [False, False]
    all_of_it = Minutes(first, (1 << 31 * DAY) - 1)
    assert [gap.is_filled_by(all_of_it) for gap in gaps] == [True, True]


def test_the_history_of_several_sensors_is_that_of_each(registry: Registry) -> None:
    registry.fold([temperature(n, n / 10) for n in range(0, 3000, 15)])
    registry.fold([event(n, "contact", {"state": "OPEN"}, device=DOOR) for n in range(0, 3000, 100)])
    start, end = at(1000).timestamp(), at(2000).timestamp()
    found = history_of(registry, [FREEZER, DOOR, "nobody"], start, end)
    assert {device: [*quantities] for device, quantities in found.items()} == {
        FREEZER: ["temperature"],
        DOOR: ["open"],
    }
    assert [point.time for point in found[FREEZER]["temperature"]] == [
        at(n).timestamp() for n in range(0, 3000, 15) if 1000 < n <= 2000
    ]
    assert history_of(registry, [FREEZER, DOOR], start, end, {FREEZER: "temperature", DOOR: "co2"}) == {
        FREEZER: found[FREEZER]
    }


def test_points_are_summarised_by_hour_and_hours_stay_as_they_are() -> None:
    base = START.timestamp()
    points = [
        Point(base, 1, 1, 1),
        Point(base + 3599, 4, 4, 4),
        Point(base + 3600, 7, 7, 7),
        Point(base + 7200, 1, 2, 9),
    ]
    assert by_hour(points) == [Point(base, 1, 2.5, 4), Point(base + 3600, 7, 7, 7), Point(base + 7200, 1, 2, 9)]


@pytest.mark.serial
def test_a_page_of_many_sensors_is_fast(registry: Registry) -> None:
    for start in range(0, 20_000, 2000):
        registry.fold(
            [event(0, name=f"Sensor {n % 1000} {n}", device=f"device{n:09d}") for n in range(start, start + 2000)]
        )
    began = time.monotonic()
    for text in ("", "sensor 7", "nothing"):
        registry.page("device000010000", 51, text=text)
        registry.newest(at(10).timestamp())
    assert time.monotonic() - began < 3
    assert PROJECT in registry.newest(at(10).timestamp())


def test_a_registry_of_schema_1_gets_the_indexes_of_a_new_one(store: SqlStore, registry: Registry) -> None:
    fold_named(registry)
    expected, listed = indexes(store), pages(registry, 1)
    for name in ("registry_sensors_label", "registry_sensors_state"):
        sql(store, f"DROP INDEX {name}")
    sql(store, "UPDATE registry_schema SET version = 1")
    assert indexes(store) != expected
    with closing(Registry(store.database(), Rules())) as upgraded:
        assert (indexes(store), pages(upgraded, 1)) == (expected, listed)
    assert sql(store, "SELECT version FROM registry_schema") == [(2,)]


def indexes(store: SqlStore) -> dict[str, str]:
    """The definition of each index of sensors by its name, without what databases write differently."""
    query = {
        "sqlite": "SELECT name, sql FROM sqlite_master WHERE tbl_name = 'registry_sensors' AND type = 'index'",
        "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'registry_sensors'"
        " AND schemaname = current_schema()",
    }
    return dict(sql(store, query["sqlite" if isinstance(store, SqliteStore) else "postgresql"]))
