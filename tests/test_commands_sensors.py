"""The commands on sensors: what they show, and what they change."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from support.commands import Operator, seconds_since_1970
from support.sensors import DOOR, FREEZER, PROJECT, at, event, fold_a_silent_freezer, temperature

from receiver.sensors import open_registry
from receiver.sensors.registry import Registry

MINUTES = 30 * 1440 + 540
"""From START to NOW."""
NOW = at(MINUTES)


@pytest.fixture(autouse=True)
def clock() -> Iterator[None]:
    with time_machine.travel(NOW, tick=True):
        yield


@pytest.fixture
def registry(operator: Operator) -> Iterator[Registry]:
    operator.configure("[journal]\nmin_free_mb = 0\n")
    with closing(open_registry(operator.settings)) as registry:
        yield registry


@pytest.fixture
def known(registry: Registry) -> Registry:
    fold_a_silent_freezer(registry, NOW)
    return registry


def test_without_events_there_are_no_sensors(operator: Operator, registry: Registry) -> None:
    assert operator.lines("sensors") == ["No sensor was heard yet."]
    assert operator.lines("sensors", "gaps") == ["No gaps."]
    assert operator.lines("sensors", "incidents") == ["No incidents."]
    assert operator.json("sensors") == operator.json("sensors", "gaps") == operator.json("sensors", "incidents") == []


def test_every_sensor_is_listed_with_its_state_and_latest_values(operator: Operator, known: Registry) -> None:
    freezer, door = sorted(operator.json("sensors"), key=lambda row: row["name"] is None)
    latest = freezer.pop("latest")
    assert seconds_since_1970(freezer.pop("last_heard")) == NOW.timestamp() - 90 * 60
    assert freezer == {
        "device_id": FREEZER,
        "name": "freezer",
        "type": "temperature",
        "project_id": PROJECT,
        "state": "silent",
        "heartbeat_seconds": 900,
        "battery": 92,
        "signal_strength": 50,
    }
    assert {name: (each["value"], each["unit"]) for name, each in latest.items()} == {
        "temperature": (4.9, "°C"),
        "signal_strength": (50, "%"),
        "rssi": (-80, "dBm"),
        "battery": (92, "%"),
    }
    assert (door["device_id"], door["state"], door["name"], door["battery"]) == (DOOR, "ok", None, None)
    heading, *lines = operator.lines("sensors")
    assert heading.split()[:3] == ["device", "id", "name"]
    assert {line.split()[0] for line in lines} == {FREEZER, DOOR}


def test_a_sensor_is_shown_with_its_last_seven_days(operator: Operator, registry: Registry) -> None:
    registry.fold([temperature(MINUTES - ago, 4.0) for ago in range(0, 9 * 1440, 15)])
    registry.judge(NOW.timestamp(), "judge")
    days = [day["day"] for day in operator.json("sensors", "show", FREEZER)["days"]]
    assert days == [str(NOW.date() - timedelta(days=ago)) for ago in range(6, -1, -1)]


def test_a_sensor_without_a_learned_interval_has_no_completeness_yet(operator: Operator, registry: Registry) -> None:
    registry.fold([event(MINUTES - 60), event(MINUTES, device=DOOR)])
    registry.judge(NOW.timestamp(), "judge")
    assert operator.json("sensors", "show", FREEZER)["days"] == []
    assert (
        operator.lines("sensors", "show", FREEZER)[-1] == "completeness       not known until its interval is learned"
    )


@pytest.mark.parametrize("by", [FREEZER, "freezer"])
def test_one_sensor_is_shown_by_its_id_or_its_name(operator: Operator, known: Registry, by: str) -> None:
    shown = operator.json("sensors", "show", by)
    assert (shown["device_id"], shown["state"]) == (FREEZER, "silent")
    assert all(0 <= day["completeness"] <= 1 for day in shown["days"])
    assert any(0 < day["completeness"] < 1 for day in shown["days"])
    lines = operator.lines("sensors", "show", by)
    assert "temperature: 4.9 °C at" in "\n".join(lines)
    (line,) = [line for line in lines if line.endswith("24 h, 4.9 to 10")]
    assert "█" in line
    assert "▁" in line
    assert "·" in line
    assert "complete to " in lines[-1]


def test_a_name_of_several_sensors_is_an_error_that_lists_them(operator: Operator, known: Registry) -> None:
    known.fold([event(MINUTES, device=DOOR, name="freezer")])
    for command in (("show", "freezer"), ("snooze", "freezer", "--for", "8h"), ("retire", "freezer")):
        assert operator.run("sensors", *command) == (
            1,
            [],
            [f"error: 2 sensors are named 'freezer'; give a device id: {DOOR}, {FREEZER}"],
        )


def test_an_unknown_sensor_is_an_error(operator: Operator, registry: Registry) -> None:
    line = "error: no sensor has the device id or the name 'fridge'; `sensors` shows all"
    assert operator.run("sensors", "gaps", "fridge") == (1, [], [line])


def test_gaps_are_listed_with_the_newest_first(operator: Operator, known: Registry) -> None:
    now, hole = operator.json("sensors", "gaps")
    assert {name: now[name] for name in ("device_id", "to", "seconds", "kind", "filled")} == {
        "device_id": FREEZER,
        "to": None,
        "seconds": 90 * 60,
        "kind": "sensor_memory",
        "filled": False,
    }
    assert hole["seconds"] == 75 * 60
    assert seconds_since_1970(hole["to"]) - seconds_since_1970(hole["from"]) == hole["seconds"]
    known.fold([temperature(MINUTES - n, 5.0, received=MINUTES - 91, backfilled=True) for n in range(300, 239, -15)])
    assert [gap["filled"] for gap in operator.json("sensors", "gaps", "freezer")] == [False, True]
    assert operator.lines("sensors", "gaps")[0].split() == ["device", "id", "from", "to", "seconds", "kind", "filled"]


def test_incidents_are_listed(operator: Operator, known: Registry) -> None:
    (incident,) = operator.json("sensors", "incidents")
    assert incident.pop("reason").startswith("freezer has not been heard since ")
    assert seconds_since_1970(incident.pop("opened")) == NOW.timestamp()
    assert incident == {"id": 1, "cause": "device", "project_id": PROJECT, "sensors": [FREEZER], "closed": None}
    assert operator.lines("sensors", "incidents")[0].split() == ["id", "cause", "project", "id", "opened", "reason"]


def state_of(operator: Operator, device: str = FREEZER) -> Any:
    return operator.json("sensors", "show", device)["state"]


def test_a_sensor_is_snoozed_and_the_snooze_is_ended(operator: Operator, known: Registry) -> None:
    done = operator.json("sensors", "snooze", "freezer", "--for", "8h")
    assert abs(seconds_since_1970(done["snoozed_until"]) - time.time() - 8 * 3600) < 60
    assert state_of(operator) == "snoozed"
    assert operator.json("sensors", "snooze", "freezer", "--for", "0s") == {
        "device_id": FREEZER,
        "snoozed_until": None,
    }
    assert state_of(operator) == "learning"
    known.judge(NOW.timestamp(), "judge")
    assert state_of(operator) == "silent"
    assert operator.lines("sensors", "snooze", "freezer", "--for", "0s") == ["Sensor freezer is not snoozed."]
    assert operator.run("sensors", "snooze", "freezer", "--for", "9999999d").exit_code == 2
    code, _, errors = operator.run("sensors", "snooze", "freezer", "--for", "soon")
    assert (code, errors[-1]) == (2, "Error: Invalid value for '--for': give a duration such as 30m, 8h or 2d")


def test_a_sensor_is_retired_and_expected_again(operator: Operator, known: Registry) -> None:
    assert operator.lines("sensors", "retire", DOOR) == [f"Sensor {DOOR} is retired; its history stays."]
    assert state_of(operator, DOOR) == "retired"
    assert operator.json("sensors", "retire", DOOR, "--undo") == {"device_id": DOOR, "retired_at": None}
    known.judge(NOW.timestamp(), "judge")
    assert state_of(operator, DOOR) == "ok"


def test_commands_say_when_the_registry_is_disabled(operator: Operator) -> None:
    line = "error: the registry of sensors is disabled in config.toml [sensors]"
    for command in ((), ("show", "x"), ("gaps",), ("incidents",), ("retire", "x")):
        assert operator.run("sensors", *command) == (1, [], [line])


def test_check_warns_of_a_project_whose_sensors_cannot_be_watched(operator: Operator, known: Registry) -> None:
    operator.configure("[journal]\nmin_free_mb = 0\n[sinks.console]\ntype = 'stdout'\n")
    operator.journal.counts()
    assert operator.run("check").errors == []
    known.fold([event(MINUTES - n, "contact", {"state": "OPEN"}, device=f"c{n % 2}", project="p2") for n in (300, 1)])
    known.fold([event(MINUTES - n, "contact", {"state": "OPEN"}, device="c0", project="p2") for n in (300, 1)])
    assert operator.run("check").errors == [
        "warning: project p2 has 1 sensor without any heartbeat, whose silence cannot be detected; "
        "enable networkStatus in its Data Connector"
    ]


def test_migrate_creates_the_registry(operator: Operator) -> None:
    operator.configure("[journal]\nmin_free_mb = 0\n")
    operator.lines("migrate")
    assert (operator.folder / "data" / "sensors.sqlite").exists()
