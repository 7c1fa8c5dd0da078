"""Which sensors are silent, and for which cause: a function of stored times and now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from support.sensors import DOOR, FREEZER, PROJECT, START, watched

from receiver.incident import Cause
from receiver.sensors.judgement import Verdict, judge
from receiver.sensors.minutes import DAY_MINUTES, Minutes, learn_interval, minute_of
from receiver.sensors.watch import Case, Rules, State, Watched, downtimes, known_project, newest_by_project

ZERO = minute_of(START.timestamp())
RULES = Rules()
HOUR = 60


def seconds(minutes: float) -> float:
    return START.timestamp() + minutes * 60


def minutes_at(*minutes: int) -> Minutes:
    """This set of minutes after START."""
    found = Minutes()
    for minute in minutes:
        found |= Minutes(ZERO + minute, 1)
    return found


def every(interval: int, start: int, end: int) -> list[int]:
    return list(range(start, end, interval))


@dataclass
class Site:
    """A project that is heard each minute until `now`, in which the receiver is up; other times are minutes."""

    now: float
    sensors: Sequence[Watched]
    cases: Sequence[Case] = ()
    heard: dict[str, Minutes] = field(default_factory=dict)
    arrivals: dict[str, Minutes] = field(default_factory=dict)
    up: Minutes | None = None
    start: int = -8 * DAY_MINUTES

    def judge(self) -> Verdict:
        now = seconds(self.now)
        others = [
            watched(device_id=f"other{project}", project_id=project, last_heard=now)
            for project in {sensor.project_id or "" for sensor in self.sensors} - self.arrivals.keys()
        ]
        up = self.up if self.up is not None else Minutes(ZERO + self.start, (1 << int(self.now) - self.start + 1) - 1)
        sensors = [*self.sensors, *others]
        projects = {
            project: known_project(
                project,
                newest,
                ZERO + self.start,
                self.arrivals.get(project, up),
                up,
                downtimes(up, ZERO + self.start, now),
                RULES,
                now,
            )
            for project, newest in newest_by_project(sensors, now).items()
        }
        return judge(now, RULES, sensors, projects, self.cases, self.heard)


def opened(verdict: Verdict) -> list[tuple[str, str, int]]:
    """Cause, subject and number of sensors of each new incident."""
    return [(case.cause.value, case.subject, len(case.sensors)) for case in verdict.opened]


DEVICE = [("device", FREEZER, 1)]


@pytest.mark.parametrize(
    ("changes", "silent_at"),
    [
        pytest.param({}, 61, id="15 minutes"),
        pytest.param({"interval_minutes": 60}, 241, id="60 minutes"),
        pytest.param({"interval_minutes": 5}, 21, id="5 minutes"),
        pytest.param({"interval_minutes": 1}, 21, id="a busy sensor has a floor"),
        pytest.param({"interval_minutes": 1, "type": "contact"}, 61, id="a busy door"),
        pytest.param({"interval_minutes": 3, "type": "co2"}, 21, id="never before 20 minutes"),
        pytest.param({"interval_minutes": None}, 241, id="not learned yet"),
    ],
)
def test_a_sensor_is_silent_after_four_of_its_intervals(changes: dict[str, Any], silent_at: int) -> None:
    sensor = watched(**changes)
    assert opened(Site(silent_at, [sensor]).judge()) == []
    verdict = Site(silent_at + 1, [sensor]).judge()
    assert opened(verdict) == DEVICE
    assert verdict.states[FREEZER] == State.SILENT


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        pytest.param({"retired_at": 1.0}, State.RETIRED, id="retired"),
        pytest.param({"snoozed_until": 9e9}, State.SNOOZED, id="snoozed"),
        pytest.param({"periodic": False}, State.LEARNING, id="sends no heartbeat"),
        pytest.param({"last_heard": None}, State.LEARNING, id="never heard live"),
        pytest.param({"device_id": "emu" + "a" * 20, "interval_minutes": None}, State.LEARNING, id="emulated, by hand"),
    ],
)
def test_some_sensors_are_not_expected(changes: dict[str, Any], state: State) -> None:
    sensor = watched(**changes)
    verdict = Site(30 * DAY_MINUTES, [sensor], start=25 * DAY_MINUTES).judge()
    assert (opened(verdict), verdict.states[sensor.device_id]) == ([], state)


def test_a_sensor_that_never_comes_back_stays_silent_for_ever() -> None:
    case = Case(Cause.DEVICE, FREEZER, PROJECT, (FREEZER,), seconds(0), seconds(62), "r", id=1)
    site = Site(300 * DAY_MINUTES, [watched()], [case], {FREEZER: minutes_at(0)}, start=292 * DAY_MINUTES)
    verdict = site.judge()
    assert (verdict.opened, verdict.changed, verdict.states[FREEZER]) == ([], {}, State.SILENT)


def test_a_constant_value_is_not_silence() -> None:
    assert opened(Site(500, [watched(last_heard=seconds(490))]).judge()) == []


# The project, the receiver and the clock


def test_silence_does_not_accrue_while_the_receiver_was_down_nor_while_it_catches_up() -> None:
    up = minutes_at(*range(-8 * DAY_MINUTES, 20), *range(620, 700))
    sensor = watched(last_heard=seconds(10))
    for now, expected in ((621, []), (640, []), (673, []), (675, DEVICE)):
        site = Site(now, [sensor], up=up.between(0, ZERO + now))
        assert opened(site.judge()) == expected, now


def test_the_backlog_of_an_outage_raises_nothing_while_it_is_older_than_the_return() -> None:
    """The newest timestamp of the project is one of the outage; others of that time are still on their way."""
    arrivals = minutes_at(*range(-8 * DAY_MINUTES, 20), 620)
    up = minutes_at(*range(-8 * DAY_MINUTES, 20), *range(615, 621))
    newest = watched(device_id="other", last_heard=seconds(500))
    site = Site(620, [watched(), newest], arrivals={PROJECT: arrivals}, up=up)
    assert opened(site.judge()) == []


def test_a_silent_project_is_one_incident_and_its_sensors_are_not_judged_one_by_one() -> None:
    arrivals = minutes_at(*range(-8 * DAY_MINUTES, 2))
    sensors = [watched(device_id=f"d{n}", last_heard=seconds(-n % 15)) for n in range(500)]
    assert opened(Site(100, sensors, arrivals={PROJECT: arrivals}).judge()) == [("project", PROJECT, 500)]
    verdict = Site(5000, sensors, arrivals={PROJECT: arrivals}).judge()
    assert opened(verdict) == [("project", PROJECT, 500)]
    assert set(verdict.states.values()) == {State.SILENT}
    assert "nothing was heard from project" in verdict.opened[0].reason


def test_a_project_is_not_silent_while_the_receiver_was_not_up_for_that_long() -> None:
    arrivals = minutes_at(*range(-8 * DAY_MINUTES, 2))
    up = minutes_at(*range(-8 * DAY_MINUTES, 2), *range(1000, 1040))
    sensors = [watched(last_heard=seconds(1))]
    for now, expected in ((1020, []), (1039, [("project", PROJECT, 1)])):
        site = Site(now, sensors, arrivals={PROJECT: arrivals}, up=up.between(0, ZERO + now))
        assert opened(site.judge()) == expected


def test_two_projects_that_fall_silent_are_two_incidents_and_a_third_is_none() -> None:
    arrivals = minutes_at(*range(-8 * DAY_MINUTES, 2))
    sensors = [watched(device_id=f"d{p}", project_id=p, last_heard=seconds(1)) for p in ("a", "b")]
    sensors += [watched(device_id="dc", project_id="c", last_heard=seconds(98))]
    site = Site(100, sensors, arrivals={"a": arrivals, "b": arrivals})
    assert opened(site.judge()) == [("project", "a", 1), ("project", "b", 1)]


def test_a_sensor_that_moved_is_judged_by_its_new_project() -> None:
    arrivals = minutes_at(*range(-8 * DAY_MINUTES, 2))
    moved = watched(project_id="new", last_heard=seconds(490))
    site = Site(500, [moved, watched(device_id="stays", project_id="old")], arrivals={"old": arrivals})
    assert opened(site.judge()) == [("project", "old", 1)]


@pytest.mark.parametrize("years", [-3, 3])
def test_a_clock_that_is_years_off_raises_nothing(years: int) -> None:
    """The sensors are judged by DT's timestamps; our clock has just begun to be wrong."""
    now = years * 365 * DAY_MINUTES
    up = minutes_at(*range(-8 * DAY_MINUTES, 0)) | minutes_at(*range(now - 10, now + 1))
    sensors = [watched(last_heard=seconds(-5)), watched(device_id="d2", last_heard=seconds(-16))]
    assert opened(Site(now, sensors, arrivals={PROJECT: up}, up=up).judge()) == []


def test_a_sensor_with_a_timestamp_from_the_future_does_not_make_the_others_silent() -> None:
    future = watched(device_id="future", last_heard=seconds(1_000_000))
    assert opened(Site(30, [future, watched()]).judge()) == []


@pytest.mark.parametrize("outage", [6, 10, 30])
def test_an_outage_of_many_days_makes_no_sensor_silent(outage: int) -> None:
    """What is read of the arrivals begins within the outage, when it is longer than a week."""
    back = outage * DAY_MINUTES
    first = back - 8 * DAY_MINUTES
    heard = minutes_at(*range(first, 0), back)
    sensors = [watched(last_heard=seconds(back)), watched(device_id=DOOR, last_heard=seconds(-1))]
    for up in (heard, minutes_at(*range(first, back + 1))):
        site = Site(back, sensors, arrivals={PROJECT: heard}, up=up, start=first)
        assert opened(site.judge()) == []
    later = [watched(last_heard=seconds(back + 66)), sensors[1]]
    heard |= minutes_at(*range(back, back + 67))
    assert opened(Site(back + 66, later, arrivals={PROJECT: heard}, start=first).judge()) == [("device", DOOR, 1)]


# Cloud connectors


def behind(connector: str, *last_heard: float, **changes: Any) -> list[Watched]:
    return [
        watched(device_id=f"{connector}-{n}", connector=connector, last_heard=seconds(last), **changes)
        for n, last in enumerate(last_heard)
    ]


def test_sensors_heard_only_through_one_connector_are_one_incident() -> None:
    sensors = [*behind("ccon1", 0, 3, 7, 12), *behind("ccon2", 60, 61)]
    verdict = Site(62, sensors).judge()
    assert opened(verdict) == [("gateway", "ccon1", 4)]
    assert "4 sensors that are heard only through cloud connector ccon1" in verdict.opened[0].reason


def test_one_silent_sensor_is_not_blamed_on_a_connector_that_others_are_heard_through() -> None:
    assert opened(Site(62, behind("ccon1", 0, 50, 55)).judge()) == [("device", "ccon1-0", 1)]


def test_a_connector_is_not_blamed_for_one_sensor_nor_while_the_other_is_not_due() -> None:
    assert opened(Site(62, behind("ccon1", 0)).judge()) == [("device", "ccon1-0", 1)]
    slow = [*behind("ccon1", 0), watched(device_id="slow", connector="ccon1", interval_minutes=60)]
    assert opened(Site(62, slow).judge()) == [("device", "ccon1-0", 1)]


def test_an_incident_of_a_sensor_becomes_part_of_that_of_its_connector() -> None:
    sensors = behind("ccon1", 0, 2)
    case = Case(Cause.DEVICE, "ccon1-0", PROJECT, ("ccon1-0",), seconds(0), seconds(62), "r", id=7)
    verdict = Site(70, sensors, [case]).judge()
    assert opened(verdict) == [("gateway", "ccon1", 2)]
    assert (verdict.changed[7].closed, verdict.changed[7].absorbed) == (seconds(70), True)


def test_a_new_incident_of_a_sensor_becomes_part_of_that_of_its_connector_and_others_stay() -> None:
    offline = watched(device_id="c-0", connector="c", offline_since=seconds(3))
    verdict = Site(70, [watched(device_id="alone"), offline, *behind("c", 0, 2, 3)[1:]]).judge()
    assert opened(verdict) == [("device", "alone", 1), ("gateway", "c", 3)]
    assert verdict.states["alone"] == State.SILENT


def test_a_sensor_that_falls_silent_later_joins_the_open_incident() -> None:
    case = Case(Cause.GATEWAY, "ccon1", PROJECT, ("ccon1-0", "ccon1-1"), seconds(0), seconds(62), "r", id=7)
    verdict = Site(300, behind("ccon1", 0, 2, 40), [case]).judge()
    assert (opened(verdict), verdict.changed[7].sensors) == ([], ("ccon1-0", "ccon1-1", "ccon1-2"))


def test_a_connector_is_not_back_while_dt_reports_most_of_its_sensors_as_offline() -> None:
    heard, online = behind("c", 180, 180, 180), 1
    sensors = [*heard[:online], *(sensor._replace(offline_since=seconds(181)) for sensor in heard[online:])]
    ids = tuple(sensor.device_id for sensor in sensors)
    case = Case(Cause.GATEWAY, "c", PROJECT, ids, seconds(5), seconds(62), "r", id=7)
    verdict = Site(182, sensors, [case], dict.fromkeys(ids, minutes_at(165, 180))).judge()
    assert (opened(verdict), verdict.changed) == ([], {})


def test_retiring_a_connector_that_was_replaced_ends_its_incident() -> None:
    old = watched(device_id="old", type="ccon", periodic=False, offline_since=seconds(3))
    sensors = behind("new", 300, 300)
    ids = ("old", *(sensor.device_id for sensor in sensors))
    case = Case(Cause.GATEWAY, "old", PROJECT, ids, seconds(3), seconds(4), "r", id=7)
    heard = dict.fromkeys(ids[1:], minutes_at(0, 270, 285, 300))
    assert Site(301, [old, *sensors], [case], heard).judge().changed == {}
    verdict = Site(301, [old._replace(retired_at=seconds(301)), *sensors], [case], heard).judge()
    assert (verdict.changed[7].closed, opened(verdict)) == (seconds(301), [])


def test_when_a_connector_returns_its_slow_sensors_have_time_to_be_heard() -> None:
    sensors = [*behind("c", 180, 180), *behind("s", 0)]
    sensors[2] = sensors[2]._replace(connector="c", interval_minutes=30)
    ids = tuple(sensor.device_id for sensor in sensors)
    case = Case(Cause.GATEWAY, "c", PROJECT, ids, seconds(5), seconds(62), "r", id=7)
    heard = {ids[0]: minutes_at(165, 180), ids[1]: minutes_at(165, 180), ids[2]: minutes_at(0)}
    verdict = Site(181, sensors, [case], heard).judge()
    assert (opened(verdict), verdict.changed[7].closed) == ([], seconds(181))
    assert verdict.expected_from == {"s-0": seconds(181)}
    waiting = [*sensors[:2], sensors[2]._replace(expected_from=seconds(181))]
    assert opened(
        Site(181 + 122, [s._replace(last_heard=seconds(300)) for s in waiting[:2]] + waiting[2:]).judge()
    ) == [("device", "s-0", 1)]


def test_a_sensor_that_is_heard_through_another_connector_is_judged_by_itself() -> None:
    ids = tuple(f"c-{n}" for n in range(7))
    case = Case(Cause.GATEWAY, "c", PROJECT, ids, seconds(5), seconds(67), "r", id=7)
    sensors = [*behind("c", *[0] * 7)]
    sensors[:2] = [each._replace(connector="d", last_heard=seconds(200)) for each in sensors[:2]]
    sensors[2] = sensors[2]._replace(last_heard=seconds(200))
    heard = dict.fromkeys(ids[:3], minutes_at(0, 170, 185, 200))
    site = Site(210, sensors, [case], heard)
    assert (opened(site.judge()), site.judge().changed) == ([], {})
    assert [site.judge().states[each] for each in ids] == [State.OK] * 3 + [State.SILENT] * 4
    sensors[1] = sensors[1]._replace(last_heard=seconds(290))
    verdict = Site(300, sensors, [case], heard).judge()
    assert (opened(verdict), verdict.changed) == ([("device", "c-0", 1)], {})
    assert [verdict.states[each] for each in ids[:3]] == [State.SILENT, State.OK, State.SILENT]


def test_a_sensor_that_joins_an_incident_leaves_alone_those_that_have_left_it() -> None:
    left = watched(device_id="left", connector="d", last_heard=seconds(200))
    sensors = [*behind("c", 0, 0, 0, 40), left]
    case = Case(Cause.GATEWAY, "c", PROJECT, ("c-0", "c-1", "c-2", "left"), seconds(5), seconds(67), "r", id=7)
    verdict = Site(300, sensors, [case], {"left": minutes_at(170, 185, 200)}).judge()
    assert verdict.changed[7].sensors == (*case.sensors, "c-3")
    assert opened(verdict) == [("device", "left", 1)]


@pytest.mark.parametrize(
    ("sensor", "cause"),
    [
        pytest.param(watched(offline_since=seconds(3), type="ccon", periodic=False), "gateway", id="cloud connector"),
        pytest.param(watched(offline_since=seconds(3)), "device", id="sensor"),
    ],
)
def test_dts_offline_opens_an_incident_at_once(sensor: Watched, cause: str) -> None:
    verdict = Site(4, [sensor]).judge()
    assert opened(verdict) == [(cause, FREEZER, 1)]
    assert verdict.states[FREEZER] == State.OFFLINE
    assert verdict.opened[0].reason == "DT reports freezer as offline since 2026-03-14 00:03 UTC"


def test_sensors_behind_an_offline_connector_join_its_incident() -> None:
    connector = watched(device_id="ccon1", offline_since=seconds(3), type="ccon", periodic=False)
    first = Site(4, [connector, *behind("ccon1", 0, 2)]).judge()
    assert opened(first) == [("gateway", "ccon1", 1)]
    case = replace(first.opened[0], id=7)
    verdict = Site(70, [connector, *behind("ccon1", 0, 2)], [case]).judge()
    assert (opened(verdict), verdict.changed[7].sensors) == ([], ("ccon1", "ccon1-0", "ccon1-1"))


# Closing


OPEN = Case(Cause.DEVICE, FREEZER, PROJECT, (FREEZER,), seconds(0), seconds(62), "r", id=7)


@pytest.mark.parametrize(
    ("heard", "closes"),
    [
        pytest.param([100], False, id="one message"),
        pytest.param([100, 101], False, id="two messages of one heartbeat"),
        pytest.param([100, 115], True, id="two heartbeats"),
        pytest.param([70, 85], False, id="late messages of a sensor that is silent again"),
    ],
)
def test_an_incident_closes_when_its_sensor_is_heard_at_two_heartbeats(heard: list[int], closes: bool) -> None:
    sensor = watched(last_heard=seconds(heard[-1]))
    now = heard[-1] + (80 if heard[0] == 70 else 1)
    verdict = Site(now, [sensor], [OPEN], {FREEZER: minutes_at(0, *heard)}).judge()
    assert [case.closed for case in verdict.changed.values()] == ([seconds(now)] if closes else [])
    assert verdict.states[FREEZER] == (State.OK if closes else State.SILENT)
    assert verdict.opened == []


def test_no_news_clears_nothing() -> None:
    """The receiver was down: the newest timestamp of the project is as old as that of the sensor."""
    case = replace(OPEN, since=seconds(-100))
    up = minutes_at(*range(-8 * DAY_MINUTES, 1), *range(600, 602))
    site = Site(601, [watched(last_heard=seconds(-100))], [case], {FREEZER: minutes_at(-100)}, {PROJECT: up}, up)
    assert (site.judge().changed, site.judge().states[FREEZER]) == ({}, State.SILENT)


def test_a_project_incident_closes_when_the_project_is_heard_again_and_its_sensors_get_their_time() -> None:
    sensors = [watched(device_id="a", last_heard=seconds(500)), watched(device_id="b", last_heard=seconds(0))]
    case = Case(Cause.PROJECT, PROJECT, PROJECT, ("a", "b"), seconds(1), seconds(25), "r", id=7)
    for arrivals, closes in (([490], False), (range(490, 501), True)):
        heard = minutes_at(*range(-8 * DAY_MINUTES, 2), *arrivals)
        verdict = Site(500, sensors, [case], arrivals={PROJECT: heard}).judge()
        assert ([each.closed for each in verdict.changed.values()] == [seconds(500)]) is closes
        assert verdict.opened == []


def test_sensors_that_leave_a_silent_project_are_judged_in_their_new_one() -> None:
    case = Case(Cause.PROJECT, PROJECT, PROJECT, ("a", "b"), seconds(1), seconds(25), "r", id=7)
    moved = [watched(device_id=each, project_id="q", last_heard=seconds(400)) for each in ("a", "b")]
    verdict = Site(500, moved, [case]).judge()
    assert verdict.changed[7].reason == "r (closed: snoozed, retired or moved to another project)"
    assert opened(verdict) == [("device", "a", 1), ("device", "b", 1)]
    stays = watched(device_id="b", last_heard=seconds(0))
    heard = minutes_at(*range(-8 * DAY_MINUTES, 2))
    verdict = Site(500, [moved[0], stays], [case], arrivals={PROJECT: heard}).judge()
    assert (opened(verdict), verdict.changed) == ([("device", "a", 1)], {})


@pytest.mark.parametrize("changes", [{"retired_at": 1.0}, {"snoozed_until": 9e9}])
def test_snoozing_or_retiring_its_last_sensor_closes_an_incident(changes: dict[str, Any]) -> None:
    verdict = Site(500, [watched(**changes)], [OPEN]).judge()
    assert verdict.changed[7].reason == "r (closed: snoozed or retired)"
    assert verdict.opened == []


def test_after_its_snooze_a_sensor_that_is_still_silent_is_reported_again() -> None:
    closed = replace(OPEN, closed=seconds(70))
    sensor = watched(snoozed_until=seconds(550))
    assert opened(Site(500, [sensor], [closed]).judge()) == []
    (case,) = Site(551, [sensor], [closed]).judge().opened
    assert (case.cause, case.subject, case.unstable) == (Cause.DEVICE, FREEZER, False)


# Flapping


def test_the_third_change_within_a_day_is_unstable_and_stays_open_until_a_day_was_quiet() -> None:
    before = replace(OPEN, closed=seconds(200))
    verdict = Site(500, [watched(last_heard=seconds(400))], [before]).judge()
    (case,) = verdict.opened
    assert (case.unstable, verdict.states[FREEZER]) == (True, State.UNSTABLE)
    assert case.reason.startswith("unstable, 3 changes within a day: freezer has not been heard since ")
    case = replace(case, id=8)
    for quiet, closes in ((20 * HOUR, False), (25 * HOUR, True)):
        heard = minutes_at(400, *every(15, 600, 600 + quiet))
        now = 600 + quiet
        sensor = watched(last_heard=seconds(now - 15))
        again = Site(now, [sensor], [before, case], {FREEZER: heard}).judge()
        assert (list(again.changed), again.opened) == ([8] if closes else [], [])


def test_incidents_of_other_days_do_not_make_one_unstable() -> None:
    before = replace(OPEN, opened=seconds(-2000), closed=seconds(-1500))
    (case,) = Site(62, [watched()], [before]).judge().opened
    assert not case.unstable


# The interval


def test_too_few_gaps_teach_nothing() -> None:
    assert learn_interval(Minutes(), []) is None
    assert learn_interval(minutes_at(*every(15, 0, 10 * 15)), []) is None
    assert learn_interval(minutes_at(*every(15, 0, 11 * 15)), []) == 15


@pytest.mark.parametrize("interval", [3, 5, 15, 30, 60])
def test_lost_heartbeats_do_not_change_the_interval(interval: int) -> None:
    heard = [minute for n, minute in enumerate(every(interval, 0, 7 * DAY_MINUTES)) if n % 20]
    assert learn_interval(minutes_at(*heard), []) == interval


def test_a_door_that_is_used_60_times_an_hour_has_the_interval_of_its_heartbeats() -> None:
    heard = set(every(15, 0, 7 * DAY_MINUTES))
    for day in range(7):
        heard |= set(range(day * DAY_MINUTES + 8 * HOUR, day * DAY_MINUTES + 17 * HOUR))
    assert learn_interval(minutes_at(*heard), []) == 15


def test_a_longer_interval_is_learned_within_a_day() -> None:
    change = 6 * DAY_MINUTES
    for hours, expected in ((2, 5), (9, 60)):
        heard = minutes_at(*every(5, 0, change), *every(60, change, change + hours * HOUR + 1))
        assert learn_interval(heard, []) == expected


@pytest.mark.parametrize(("outage", "excluded"), [(3 * HOUR, False), (48 * HOUR, False), (200, True)])
def test_an_outage_does_not_become_the_interval(outage: int, excluded: bool) -> None:
    end = 4 * DAY_MINUTES
    heard = minutes_at(*every(15, 0, 3 * DAY_MINUTES), *every(15, 3 * DAY_MINUTES + outage, end + outage))
    spans = [(ZERO + 3 * DAY_MINUTES, ZERO + 3 * DAY_MINUTES + outage)] if excluded else []
    assert learn_interval(heard, spans) == 15
