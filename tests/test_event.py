"""Event and Reading: what is decoded from a raw body, of every type and of any other content."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import disruptive
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from receiver.errors import NotAnEvent
from receiver.event import TYPES, Event, Reading, event_id

RECEIVED = datetime(2024, 5, 29, 10, 34, 10, tzinfo=UTC)
UPDATED = datetime(2024, 5, 29, 10, 34, 3, 970415, tzinfo=UTC)
HAPPENED = datetime(2024, 5, 29, 10, 34, 4, tzinfo=UTC)
EARLIER = datetime(2024, 5, 29, 10, 19, 3, tzinfo=UTC)
STAMP = "2024-05-29T10:34:03.970415Z"
DEVICE = "emucdd6ef2eu277bo8f52vg"
PROJECT = "ccol8iuk9smqiha4e8l0"
PUSHES = json.loads((Path(__file__).parent / "real_pushes.json").read_text())["pushes"]

FIELDS: dict[str, dict[str, Any]] = {
    "touch": {},
    "temperature": {
        "value": 21.5,
        "samples": [
            {"value": 21.5, "sampleTime": STAMP},
            {"value": -18.25, "sampleTime": "2024-05-29T10:19:03Z"},
        ],
        "isBackfilled": False,
    },
    "humidity": {
        "temperature": 22.5,
        "relativeHumidity": 17.5,
        "samples": [
            {"temperature": 22.5, "relativeHumidity": 17.5, "sampleTime": STAMP},
            {"temperature": 22, "relativeHumidity": 18, "sampleTime": "2024-05-29T10:19:03Z"},
        ],
        "isBackfilled": False,
    },
    "objectPresent": {"state": "NOT_PRESENT"},
    "waterPresent": {"state": "PRESENT"},
    "objectPresentCount": {"total": 4176},
    "touchCount": {"total": 469},
    "co2": {"ppm": 568},
    "pressure": {"pascal": 101325.5},
    "motion": {"state": "MOTION_DETECTED"},
    "deskOccupancy": {"state": "OCCUPIED", "remarks": ["LOW_SIGNAL"]},
    "contact": {"state": "CLOSED"},
    "probeWireStatus": {"state": "THREE_WIRE"},
    "networkStatus": {
        "signalStrength": 45,
        "rssi": -83,
        "transmissionMode": "LOW_POWER_STANDARD_MODE",
        "cloudConnectors": [
            {"id": "bdkjbo2v0000uk377c4g", "signalStrength": 45, "rssi": -83},
            {"id": "bdkjbo2v0000uk377c5g", "signalStrength": 40, "rssi": -87},
        ],
    },
    "batteryStatus": {"percentage": 100},
    "connectionStatus": {"connection": "ETHERNET", "available": ["CELLULAR", "ETHERNET"]},
    "ethernetStatus": {"macAddress": "f0:b5:b7:00:0a:08", "ipAddress": "10.0.0.1", "errors": []},
    "cellularStatus": {"signalStrength": 80, "errors": []},
}
LABELS_CHANGED = {"added": {"room": "12"}, "modified": {"name": "new"}, "removed": ["old"]}


def data_of(event_type: str, fields: dict[str, Any] | None = None) -> dict[str, Any]:
    if event_type == "labelsChanged":
        return copy.deepcopy(LABELS_CHANGED)
    return {
        event_type: {**copy.deepcopy(FIELDS.get(event_type, {}) if fields is None else fields), "updateTime": STAMP}
    }


def payload_of(event_type: str, fields: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "event": {
            "eventId": "cpbg96qngr7ai7ldarrg",
            "targetName": f"projects/{PROJECT}/devices/{DEVICE}",
            "eventType": event_type,
            "data": data_of(event_type, fields),
            "timestamp": "2024-05-29T10:34:04Z",
        },
        "labels": {"name": "test temp"},
        "metadata": {"deviceId": DEVICE, "projectId": PROJECT, "deviceType": event_type, "productNumber": "102081"},
    }


def event_of(payload: object) -> Event:
    return Event.from_body(json.dumps(payload).encode(), RECEIVED)


def readings(event_type: str, fields: dict[str, Any] | None = None) -> list[tuple[object, ...]]:
    """Quantity, value, unit, text and time of each reading of an event with these fields."""
    return [
        (reading.quantity, reading.value, reading.unit, reading.text, reading.time)
        for reading in event_of(payload_of(event_type, fields)).readings()
    ]


EXPECTED: dict[str, list[tuple[object, ...]]] = {
    "touch": [("touch", 1, "", "", UPDATED)],
    "temperature": [("temperature", 21.5, "°C", "", UPDATED), ("temperature", -18.25, "°C", "", EARLIER)],
    "humidity": [
        ("temperature", 22.5, "°C", "", UPDATED),
        ("relative_humidity", 17.5, "%", "", UPDATED),
        ("temperature", 22, "°C", "", EARLIER),
        ("relative_humidity", 18, "%", "", EARLIER),
    ],
    "objectPresent": [("object_present", 0, "", "NOT_PRESENT", UPDATED)],
    "waterPresent": [("water_present", 1, "", "PRESENT", UPDATED)],
    "objectPresentCount": [("count", 4176, "", "", UPDATED)],
    "touchCount": [("count", 469, "", "", UPDATED)],
    "co2": [("co2", 568, "ppm", "", UPDATED)],
    "pressure": [("pressure", 101325.5, "Pa", "", UPDATED)],
    "motion": [("motion", 1, "", "MOTION_DETECTED", UPDATED)],
    "deskOccupancy": [("occupied", 1, "", "OCCUPIED", UPDATED)],
    "contact": [("open", 0, "", "CLOSED", UPDATED)],
    "probeWireStatus": [],
    "networkStatus": [("signal_strength", 45, "%", "", UPDATED), ("rssi", -83, "dBm", "", UPDATED)],
    "batteryStatus": [("battery", 100, "%", "", UPDATED)],
    "labelsChanged": [],
    "connectionStatus": [("online", 1, "", "ETHERNET", UPDATED)],
    "ethernetStatus": [],
    "cellularStatus": [("signal_strength", 80, "%", "", UPDATED)],
}


def test_there_are_the_nineteen_documented_types() -> None:
    assert len(TYPES) == 19
    assert set(TYPES) == set(EXPECTED) == {*FIELDS, "labelsChanged"}


@pytest.mark.parametrize("event_type", TYPES)
def test_each_type_has_exactly_its_readings(event_type: str) -> None:
    assert readings(event_type) == EXPECTED[event_type]


@pytest.mark.parametrize("event_type", TYPES)
def test_every_field_of_an_event_is_decoded(event_type: str) -> None:
    payload = payload_of(event_type)
    body = json.dumps(payload).encode()
    data = payload["event"]["data"]
    assert vars(Event.from_body(body, RECEIVED)) == {
        "id": "cpbg96qngr7ai7ldarrg",
        "body": body,
        "type": event_type,
        "device_id": DEVICE,
        "project_id": PROJECT,
        "device_type": event_type,
        "product_number": "102081",
        "labels": {"name": "test temp"},
        "occurred_at": HAPPENED,
        "received_at": RECEIVED,
        "data": data if event_type == "labelsChanged" else data[event_type],
        "backfilled": False,
        "origin": "push",
    }


@pytest.mark.parametrize("event_type", TYPES)
def test_each_type_is_decoded_by_the_client_library(event_type: str) -> None:
    event = event_of(payload_of(event_type))
    fields = copy.deepcopy(event.data)

    typed = event.typed

    assert isinstance(typed, disruptive.events.Event)
    assert (typed.event_id, typed.event_type, typed.device_id, typed.project_id) == (
        event.id,
        event_type,
        DEVICE,
        PROJECT,
    )
    assert type(typed.data).__name__ == event_type[0].upper() + event_type[1:]
    assert event.typed is typed
    assert event.data == fields


@pytest.mark.parametrize("push", PUSHES, ids=lambda push: push["name"])
def test_a_captured_push_is_decoded(push: dict[str, Any]) -> None:
    body = push["body"].encode()
    event = Event.from_body(body, RECEIVED)
    payload = json.loads(body)
    time = datetime.fromisoformat(payload["event"]["timestamp"])
    value = {"touch": ("touch", 1, ""), "temperature": ("temperature", 27, "°C")}[push["name"]]
    assert event.body is body
    assert (event.id, event.type, event.labels, event.occurred_at, event.product_number) == (
        payload["event"]["eventId"],
        push["name"],
        payload["labels"],
        time,
        "",
    )
    assert event.readings() == [Reading(event.id, payload["metadata"]["deviceId"], time, *value)]
    assert event.typed.event_id == event.id


STATES = {
    ("objectPresent", "state"): {"PRESENT": 1, "NOT_PRESENT": 0},
    ("waterPresent", "state"): {"PRESENT": 1, "NOT_PRESENT": 0},
    ("motion", "state"): {"MOTION_DETECTED": 1, "NO_MOTION_DETECTED": 0},
    ("deskOccupancy", "state"): {"OCCUPIED": 1, "NOT_OCCUPIED": 0},
    ("contact", "state"): {"OPEN": 1, "CLOSED": 0},
    ("connectionStatus", "connection"): {"SDS": 1, "ETHERNET": 1, "CELLULAR": 1, "OFFLINE": 0},
}


@pytest.mark.parametrize(
    ("event_type", "name", "state", "value"),
    [(*which, state, value) for which, states in STATES.items() for state, value in states.items()],
)
def test_each_state_is_one_or_zero_with_its_name_as_text(event_type: str, name: str, state: str, value: int) -> None:
    quantity = EXPECTED[event_type][0][0]
    assert readings(event_type, {name: state}) == [(quantity, value, "", state, UPDATED)]


@pytest.mark.parametrize("state", ["UNHEARD_OF", "present", "", None, 1, True, [], {}, ["PRESENT"]], ids=repr)
@pytest.mark.parametrize(("event_type", "name"), STATES)
def test_an_unknown_state_has_no_reading(event_type: str, name: str, state: object) -> None:
    assert readings(event_type, {name: state}) == []


def thirty_samples(*quantities: str) -> list[dict[str, Any]]:
    """Thirty samples, newest first, a minute apart; all values differ."""
    return [
        {
            **{quantity: number + n / 100 for number, quantity in enumerate(quantities)},
            "sampleTime": (UPDATED - n * timedelta(minutes=1)).isoformat().replace("+00:00", "Z"),
        }
        for n in range(30)
    ]


def test_thirty_temperature_samples_are_counted_once_each() -> None:
    samples = thirty_samples("value")
    fields = {"value": samples[0]["value"], "samples": samples, "isBackfilled": True}
    assert readings("temperature", fields) == [
        ("temperature", n / 100, "°C", "", UPDATED - n * timedelta(minutes=1)) for n in range(30)
    ]


def test_thirty_humidity_samples_are_counted_once_each_and_quantity() -> None:
    samples = thirty_samples("temperature", "relativeHumidity")
    fields = {**samples[0], "samples": samples, "isBackfilled": False}
    expected = []
    for n in range(30):
        time = UPDATED - n * timedelta(minutes=1)
        expected += [("temperature", n / 100, "°C", "", time), ("relative_humidity", 1 + n / 100, "%", "", time)]
    assert readings("humidity", fields) == expected


ONE_TEMPERATURE = [("temperature", 21.5, "°C", "", UPDATED)]


@pytest.mark.parametrize(
    "samples",
    [
        None,
        [],
        {},
        "x",
        7,
        [None, 7, "x", []],
        [{}],
        [{"sampleTime": STAMP}],
        [{"value": None, "sampleTime": "2024-05-29T10:19:03Z"}],
        [{"celsius": 21.5}],
    ],
    ids=repr,
)
def test_the_value_itself_is_the_reading_if_no_sample_has_one(samples: object) -> None:
    assert readings("temperature", {"value": 21.5, "samples": samples}) == ONE_TEMPERATURE


def test_a_new_field_named_samples_removes_no_reading() -> None:
    assert readings("co2", {"ppm": 568, "samples": [{"concentration": 568, "sampleTime": STAMP}]}) == EXPECTED["co2"]


def test_a_sample_without_time_has_the_time_of_the_event_and_one_without_value_is_ignored() -> None:
    samples = [{"value": 1}, {"value": None}, "x", {"value": 2, "sampleTime": "x"}, {"value": 3, "sampleTime": 3}]
    assert readings("temperature", {"value": 1, "samples": samples}) == [
        ("temperature", value, "°C", "", UPDATED) for value in (1, 2, 3)
    ]


def test_a_humidity_sample_can_lack_one_of_its_quantities() -> None:
    samples = [{"temperature": 22.5}, {"relativeHumidity": 18}]
    assert readings("humidity", {"samples": samples}) == [
        ("temperature", 22.5, "°C", "", UPDATED),
        ("relative_humidity", 18, "%", "", UPDATED),
    ]


@pytest.mark.parametrize(
    ("event_type", "missing"),
    [
        ("temperature", ["samples"]),
        ("temperature", ["isBackfilled"]),
        ("temperature", ["samples", "isBackfilled"]),
        ("humidity", ["samples"]),
        ("humidity", ["isBackfilled"]),
        ("humidity", ["samples", "isBackfilled"]),
        ("networkStatus", ["cloudConnectors"]),
        ("networkStatus", ["transmissionMode"]),
        ("networkStatus", ["cloudConnectors", "transmissionMode"]),
        ("deskOccupancy", ["remarks"]),
        ("connectionStatus", ["available"]),
        ("cellularStatus", ["errors"]),
        ("ethernetStatus", ["errors", "ipAddress"]),
    ],
    ids=repr,
)
def test_a_missing_field_removes_only_its_own_readings(event_type: str, missing: list[str]) -> None:
    fields = {name: value for name, value in FIELDS[event_type].items() if name not in missing}
    event = event_of(payload_of(event_type, fields))
    expected = [reading for reading in EXPECTED[event_type] if "samples" not in missing or reading[-1] == UPDATED]
    assert readings(event_type, fields) == expected
    assert event.data == {**fields, "updateTime": STAMP}
    assert event.backfilled is False
    assert event.typed is None or event.typed.event_id == event.id


@pytest.mark.parametrize(
    ("text", "backfilled"), [("true", True), ("false", False), ("null", False), ('"true"', False), ("1", False)]
)
def test_an_event_is_backfilled_only_if_the_field_is_true(text: str, backfilled: bool) -> None:
    assert event_of(payload_of("temperature", {"isBackfilled": json.loads(text)})).backfilled is backfilled


ABSENT = object()


@pytest.mark.parametrize(
    ("labels", "decoded"),
    [
        (ABSENT, {}),
        (None, {}),
        ({}, {}),
        ([], {}),
        ("name", {}),
        (5, {}),
        ([["name", "x"]], {}),
        ({"name": "", "site": "Oslo ☃"}, {"name": "", "site": "Oslo ☃"}),
        ({"name": "a\r\nb\0", "": "x"}, {"name": "a\r\nb\0", "": "x"}),
        ({"a": None, "b": 5, "c": 2.5, "d": True}, {"b": "5", "c": "2.5", "d": "true"}),
        ({"a": ["x"], "b": {"c": None}}, {"a": '["x"]', "b": '{"c": null}'}),
        ({"\ud800": "a\udfff\ud83e\uddca", "b": ["\ud800"]}, {"?": "a?\U0001f9ca", "b": '["?"]'}),
    ],
    ids=lambda value: "absent" if value is ABSENT else ascii(value),
)
def test_labels_are_text_by_name_or_empty(labels: object, decoded: dict[str, str]) -> None:
    payload = payload_of("co2")
    if labels is ABSENT:
        del payload["labels"]
    else:
        payload["labels"] = labels
    event = event_of(payload)
    assert event.labels == decoded
    assert event.readings()[0].value == 568


@pytest.mark.parametrize(
    ("metadata", "decoded"),
    [
        (ABSENT, (DEVICE, PROJECT, None, None)),
        (None, (DEVICE, PROJECT, None, None)),
        ({}, (DEVICE, PROJECT, None, None)),
        ([], (DEVICE, PROJECT, None, None)),
        ("x", (DEVICE, PROJECT, None, None)),
        ({"deviceId": None, "projectId": 5, "deviceType": [], "productNumber": {}}, (DEVICE, PROJECT, None, None)),
        ({"deviceId": "", "projectId": "", "deviceType": "", "productNumber": ""}, (DEVICE, PROJECT, "", "")),
        ({"deviceType": "co2", "productNumber": "102081"}, (DEVICE, PROJECT, "co2", "102081")),
    ],
    ids=lambda value: "absent" if value is ABSENT else ascii(value),
)
def test_without_metadata_the_target_names_device_and_project(
    metadata: object, decoded: tuple[str | None, ...]
) -> None:
    payload = payload_of("co2")
    if metadata is ABSENT:
        del payload["metadata"]
    else:
        payload["metadata"] = metadata
    event = event_of(payload)
    assert (event.device_id, event.project_id, event.device_type, event.product_number) == decoded
    assert [reading.device_id for reading in event.readings()] == [DEVICE]


@pytest.mark.parametrize(
    ("target", "device", "project"),
    [
        (f"projects/{PROJECT}/devices/{DEVICE}", DEVICE, PROJECT),
        (f"projects/{PROJECT}/devices/{DEVICE}/more", DEVICE, PROJECT),
        (f"projects/{PROJECT}", None, PROJECT),
        (f"projects/{PROJECT}/", None, PROJECT),
        (f"projects/{PROJECT}/devices", None, PROJECT),
        (f"projects/{PROJECT}/devices/", None, PROJECT),
        (f"projects//devices/{DEVICE}", DEVICE, None),
        (f"devices/{DEVICE}", DEVICE, None),
        ("organizations/o/things/t", None, None),
        ("projects", None, None),
        ("/", None, None),
        ("", None, None),
        (None, None, None),
        (5, None, None),
        (["projects", PROJECT], None, None),
        ({"projects": PROJECT}, None, None),
    ],
    ids=repr,
)
def test_a_target_can_lack_the_device_or_the_project(target: object, device: str | None, project: str | None) -> None:
    payload = payload_of("co2")
    del payload["metadata"]
    payload["event"]["targetName"] = target
    event = event_of(payload)
    assert (event.device_id, event.project_id) == (device, project)
    assert event.readings() == [Reading(event.id, device, UPDATED, "co2", 568, "ppm")]


def test_an_event_of_an_unknown_type_is_an_event() -> None:
    event = event_of(payload_of("radiation", {"sievert": 0.1, "nested": [{"a": None}]}))
    assert event.type == "radiation"
    assert event.data == {"sievert": 0.1, "nested": [{"a": None}], "updateTime": STAMP}
    assert event.readings() == []
    assert event.typed is None or event.typed.event_type == "radiation"


@pytest.mark.parametrize(
    "event_type", ["", "\U0001f9ca", "Touch", "touch ", "event", "__class__", "a\r\nb", "x" * 10_000]
)
def test_any_text_is_a_type(event_type: str) -> None:
    event = event_of(payload_of(event_type, {"value": 1, "state": "PRESENT", "ppm": 1}))
    assert event.type == event_type
    assert event.readings() == []


@pytest.mark.parametrize("event_type", TYPES)
def test_unknown_fields_change_no_reading(event_type: str) -> None:
    payload = payload_of(event_type)
    payload["version"] = [1]
    payload["event"]["cause"] = {"a": None}
    payload["labels"]["new"] = "label"
    payload["metadata"]["site"] = {}
    payload["event"]["data"].get(event_type, {})["accuracy"] = {"value": 3}
    expected = event_of(payload_of(event_type)).readings()
    assert event_of(payload).readings() == expected


@pytest.mark.parametrize("data", [ABSENT, None, [], "x", 7, {}, {"co2": None}, {"co2": []}, {"co2": 5}, {"other": {}}])
@pytest.mark.parametrize("event_type", ["co2", "temperature", "motion"])
def test_an_event_without_its_data_is_an_event_without_readings(event_type: str, data: object) -> None:
    payload = payload_of(event_type)
    if data is ABSENT:
        del payload["event"]["data"]
    else:
        payload["event"]["data"] = data
    event = event_of(payload)
    assert (event.data, event.readings(), event.occurred_at, event.typed) == ({}, [], HAPPENED, None)


def test_a_touch_without_data_has_its_reading() -> None:
    payload = payload_of("touch")
    del payload["event"]["data"]
    assert event_of(payload).readings() == [Reading("cpbg96qngr7ai7ldarrg", DEVICE, HAPPENED, "touch", 1)]


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2022-02-10T12:42:13Z", datetime(2022, 2, 10, 12, 42, 13, tzinfo=UTC)),
        *[
            (f"2022-02-10T12:42:13.{'198765432'[:n]}Z", datetime(2022, 2, 10, 12, 42, 13, micros, tzinfo=UTC))
            for n, micros in enumerate([100000, 190000, 198000, 198700, 198760, 198765, 198765, 198765, 198765], 1)
        ],
        ("2022-02-10T12:42:13.999999999Z", datetime(2022, 2, 10, 12, 42, 13, 999999, tzinfo=UTC)),
        ("2022-02-10T12:42:13.5+02:00", datetime(2022, 2, 10, 10, 42, 13, 500000, tzinfo=UTC)),
        ("2022-02-10T00:30:00-11:30", datetime(2022, 2, 10, 12, tzinfo=UTC)),
        ("2022-02-10T12:42:13", datetime(2022, 2, 10, 12, 42, 13, tzinfo=UTC)),
    ],
)
def test_times_with_up_to_nine_fractional_digits_are_truncated_to_microseconds(text: str, time: datetime) -> None:
    payload = payload_of("temperature", {"samples": [{"value": 1, "sampleTime": text}], "value": 1})
    payload["event"]["timestamp"] = text
    payload["event"]["data"]["temperature"]["updateTime"] = text
    event = event_of(payload)
    without_samples = event_of(payload_of("co2") | {"event": payload_of("co2")["event"] | {"timestamp": text}})
    assert (event.occurred_at, event.occurred_at.tzinfo) == (time, UTC)
    assert [(reading.time, reading.time.tzinfo) for reading in event.readings()] == [(time, UTC)]
    assert without_samples.occurred_at == time


@pytest.mark.parametrize(
    "odd",
    [
        None,
        7,
        1.5,
        True,
        [],
        {},
        "",
        "yesterday",
        "2022-02-30T12:00:00Z",
        "2016-12-31T23:59:60Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "\ud800",
        "2022-02-10T12:42:13.\ud800Z",
        "x" * 5000,
    ],
    ids=lambda odd: ascii(odd)[:40],
)
def test_an_event_whose_time_is_invalid_has_the_next_best_time(odd: object) -> None:
    payload = payload_of("co2")
    payload["event"]["timestamp"] = odd
    assert event_of(payload).occurred_at == UPDATED

    payload["event"]["data"]["co2"]["updateTime"] = odd
    assert event_of(payload).occurred_at == RECEIVED
    assert event_of(payload).readings()[0].time == RECEIVED

    payload["event"]["timestamp"] = "2024-05-29T10:34:04Z"
    assert event_of(payload).occurred_at == HAPPENED
    assert event_of(payload).readings()[0].time == HAPPENED


NUMBERS = {
    ("temperature", "value"): "temperature",
    ("humidity", "temperature"): "temperature",
    ("humidity", "relativeHumidity"): "relative_humidity",
    ("objectPresentCount", "total"): "count",
    ("touchCount", "total"): "count",
    ("co2", "ppm"): "co2",
    ("pressure", "pascal"): "pressure",
    ("networkStatus", "signalStrength"): "signal_strength",
    ("networkStatus", "rssi"): "rssi",
    ("batteryStatus", "percentage"): "battery",
    ("cellularStatus", "signalStrength"): "signal_strength",
}


def event_with_literal(payload: dict[str, Any], number: str) -> Event:
    """An event in whose body this text replaces "NUMBER"."""
    return Event.from_body(json.dumps(payload).replace('"NUMBER"', number).encode(), RECEIVED)


def with_number(event_type: str, name: str, number: str) -> Event:
    return event_with_literal(payload_of(event_type, {name: "NUMBER"}), number)


@pytest.mark.parametrize(
    ("number", "value"),
    [("27", 27), ("27.0", 27.0), ("-18.5", -18.5), ("0", 0), ("-0.0", -0.0), ("2.5e1", 25.0), ("1e-999", 0.0)],
)
@pytest.mark.parametrize(("event_type", "name"), NUMBERS)
def test_integers_and_fractions_are_values(event_type: str, name: str, number: str, value: float) -> None:
    (reading,) = with_number(event_type, name, number).readings()
    assert (reading.quantity, repr(reading.value)) == (NUMBERS[event_type, name], repr(value))


HUGE = "9" * 5000


@pytest.mark.parametrize(
    "number",
    ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 400, HUGE, f"-{HUGE}", '"21.5"', "true", "null", "[]"],
    ids=lambda number: number[:9] + ("…" if len(number) > 9 else ""),
)
@pytest.mark.parametrize(("event_type", "name"), NUMBERS)
def test_anything_but_a_finite_number_is_no_value(event_type: str, name: str, number: str) -> None:
    event = with_number(event_type, name, number)
    assert (event.id, event.type, event.readings()) == ("cpbg96qngr7ai7ldarrg", event_type, [])


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "-1e999", "9" * 400, HUGE], ids=lambda text: text[:9])
def test_decoded_data_can_be_encoded_as_json_again(number: str) -> None:
    event = event_with_literal(
        payload_of("co2", {"ppm": "NUMBER", "new": ["NUMBER"]}) | {"labels": {"floor": ["NUMBER"]}}, number
    )
    json.dumps(event.data, allow_nan=False)
    assert "Infinity" not in event.labels["floor"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "the body is not JSON"),
        (b" ", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b"hello", "the body is not JSON"),
        (b"{}{}", "the body is not JSON"),
        (b"{'event':{}}", "the body is not JSON"),
        (b'{"event":{"eventId":"a","eventType":"touch"}}x', "the body is not JSON"),
        (b'{"event":{"eventId":"a\r\nb","eventType":"touch"}}', "the body is not JSON"),
        (b'\xef\xbb\xbf{"event":{"eventId":"a","eventType":"touch"}}', "the body is not JSON"),
        (b"event=x&y=z", "the body is not JSON"),
        (b"\xff", "the body is not UTF-8"),
        (b'{"event":{"eventId":"a","eventType":"\xed\xa0\x80"}}', "the body is not UTF-8"),
        ('{"event":{"eventId":"a","eventType":"touch"}}'.encode("utf-16"), "the body is not UTF-8"),
        (b"[" * 100_000, "the body is nested too deeply"),
        (b"[" * 100_000 + b"]" * 100_000, "the body is nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "the body is nested too deeply"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "the body is nested too deeply"),
        (b'{"a":' * 99 + b"1" + b"}" * 99 + b"x", "the body is not JSON"),
        (
            b'{"event":{"eventId":"a","eventType":"x"},"a":' + b"[" * 100 + b"]" * 100 + b"}",
            "the body is nested too deeply",
        ),
        (
            b'{"event":{"eventId":"a","eventType":"x","a":' + b'{"a":' * 99 + b"1" + b"}" * 101,
            "the body is nested too deeply",
        ),
        *[
            (
                b'{"event":{"eventId":"a","eventType":"x"},"a":' + b"[" * count + b"]" * count + b',"a":1}',
                "the body is nested too deeply",
            )
            for count in (100, 900, 10_000)
        ],
        (b"[]", "the body is not a JSON object"),
        (b"null", "the body is not a JSON object"),
        (b"NaN", "the body is not a JSON object"),
        (b"5", "the body is not a JSON object"),
        (b'"event"', "the body is not a JSON object"),
        (b"true", "the body is not a JSON object"),
        (b'[{"event":{"eventId":"a","eventType":"touch"}}]', "the body is not a JSON object"),
        (b"{}", "the body has no object 'event'"),
        (b'{"Event":{}}', "the body has no object 'event'"),
        (b'{"event":null}', "the body has no object 'event'"),
        (b'{"event":[]}', "the body has no object 'event'"),
        (b'{"event":"touch"}', "the body has no object 'event'"),
        *[
            (f'{{"event":{{"eventId":{odd},"eventType":"touch"}}}}'.encode(), None)
            for odd in (
                "null",
                "5",
                "true",
                "[]",
                "{}",
                '["a"]',
                '""',
                '" "',
                '"a b"',
                '"a/b"',
                '"a.b"',
                '"é"',
                '"\\u0661"',
                '"\\ud800"',
                '"a\\r\\nb"',
                '"a\\n"',
                '"\\u0000"',
                f'"{"a" * 65}"',
            )
        ],
        (b'{"event":{"eventType":"touch"}}', None),
        (b'{"event":{"eventId":"a"}}', "event.eventType is not a string"),
        (b'{"event":{"eventId":"a","eventType":null}}', "event.eventType is not a string"),
        (b'{"event":{"eventId":"a","eventType":5}}', "event.eventType is not a string"),
        (b'{"event":{"eventId":"a","eventType":["touch"]}}', "event.eventType is not a string"),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_a_body_that_is_no_event_is_rejected_with_the_reason(body: bytes, reason: str | None) -> None:
    reason = reason or "event.eventId is not 1 to 64 letters, digits, '_' or '-'"
    with pytest.raises(NotAnEvent) as of_event:
        Event.from_body(body, RECEIVED)
    with pytest.raises(NotAnEvent) as of_id:
        event_id(body)
    assert (str(of_event.value), str(of_id.value)) == (reason, reason)


@pytest.mark.parametrize(
    "more",
    [b"[" * 99 + b"]" * 99, b"[" + b"{}," * 5000 + b"[]]", b'["' + rb"[{\"" * 200 + rb'\\"]'],
    ids=["deepest", "many", "in a string"],
)
def test_what_is_nested_less_deeply_is_an_event(more: bytes) -> None:
    body = b'{"event":{"eventId":"a","eventType":"touch"},"x":' + more + b"}"
    assert (event_id(body), Event.from_body(body, RECEIVED).id) == ("a", "a")
    with pytest.raises(NotAnEvent, match="nested too deeply"):
        event_id(body.replace(b"[", b"[" * 100, 1).replace(b"]}", b"]" * 100 + b"}"))


@pytest.mark.parametrize("body", [b'"' + rb"\"" * 130_000, rb"\"" * 130_000, b'"' * 260_001, b'"' + b"\\" * 260_001])
def test_a_body_of_any_quotes_is_judged_within_a_second(body: bytes) -> None:
    began = time.process_time()
    with pytest.raises(NotAnEvent):
        event_id(b"[" * 101 + body)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("name", ["a", "-", "_", "A-z_09", "a" * 64, "None"])
def test_an_id_and_a_type_are_sufficient(name: str) -> None:
    body = f' {{"event":{{"eventId":"{name}","eventType":"temperature"}}}}\n'.encode()
    event = Event.from_body(body, RECEIVED)
    assert event_id(body) == name
    assert vars(event) == {
        "id": name,
        "body": body,
        "type": "temperature",
        "device_id": None,
        "project_id": None,
        "device_type": None,
        "product_number": None,
        "labels": {},
        "occurred_at": RECEIVED,
        "received_at": RECEIVED,
        "data": {},
        "backfilled": False,
        "origin": "push",
    }
    assert (event.readings(), event.typed) == ([], None)


@pytest.mark.parametrize("name", ["labels", "data"])
def test_what_is_an_event_is_one_for_every_caller_however_deep_its_stack_is(name: str) -> None:
    fields = {"labels": b'"eventType":"x"},"labels":{"a":%s}}', "data": b'"eventType":"x","data":{"x":%s}}}'}
    bodies = [b'{"event":{"eventId":"a",' + fields[name] % (b"[" * n + b"]" * n) for n in range(1, 1100)]

    def accepted(stack: int) -> list[int]:
        if stack:
            return accepted(stack - 1)
        return [n for n, body in enumerate(bodies, start=1) if is_event(body)]

    def is_event(body: bytes) -> bool:
        try:
            json.dumps(Event.from_body(body, RECEIVED).data)
        except NotAnEvent:
            return False
        return True

    assert accepted(0) == accepted(500) == list(range(1, {"labels": 99, "data": 98}[name]))


def test_the_raw_body_is_unchanged() -> None:
    body = b'\n{ "event" : {"eventType":"co2",\t"eventId":"\\u0061", "data":{"co2":{"ppm":4e2}}}, "x":"\xc3\xa6"}\r\n'
    event = Event.from_body(body, RECEIVED)
    assert (event.id, event.readings()[0].value, event.typed) == ("a", 400, None)
    assert event.body is body


def test_events_with_the_same_id_and_body_are_equal_whenever_they_were_received() -> None:
    body = json.dumps(payload_of("co2")).encode()
    event, again = Event.from_body(body, RECEIVED), Event.from_body(body, RECEIVED + timedelta(days=1))
    assert event == again
    assert hash(event) == hash(again)
    assert event != replace(event, body=body + b" ")
    assert event != replace(event, id="other")
    assert event != body
    assert {event, again, replace(event, id="other")} == {event, replace(event, id="other")}


def test_events_and_readings_are_immutable() -> None:
    event = event_of(payload_of("co2"))
    reading = event.readings()[0]
    for value, name in ((event, "id"), (event, "body"), (reading, "value")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, None)
    assert event.readings() == [reading]


def test_the_repr_of_an_event_shows_neither_body_nor_labels_nor_data() -> None:
    shown = repr(event_of(payload_of("temperature")))
    assert "cpbg96qngr7ai7ldarrg" in shown
    assert not re.search(r"test temp|21\.5|body|labels|data", shown)


def test_typed_is_none_if_the_client_library_cannot_be_imported() -> None:
    program = (
        "from datetime import UTC, datetime\n"
        "from receiver import Event\n"
        'body = b\'{"event":{"eventId":"a","eventType":"touch"}}\'\n'
        "print(Event.from_body(body, datetime.now(UTC)).typed)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "DT_CREDENTIALS_FILE": str(ROOT / "no such file")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "None\n", "")


def is_event(payload: object) -> bool:
    event = payload.get("event") if isinstance(payload, dict) else None
    if not isinstance(event, dict) or not isinstance(event.get("eventType"), str):
        return False
    name = event.get("eventId")
    return isinstance(name, str) and re.fullmatch("[A-Za-z0-9_-]{1,64}", name) is not None


def assert_well_typed(event: Event) -> None:
    """Everything decoded from an event has the type that it is documented to have."""
    assert event_id(event.body) == event.id
    assert all(value is None or isinstance(value, str) for value in (event.device_id, event.project_id))
    assert all(value is None or isinstance(value, str) for value in (event.device_type, event.product_number))
    assert all(isinstance(key, str) and isinstance(label, str) for key, label in event.labels.items())
    assert event.occurred_at.tzinfo is UTC
    assert isinstance(event.data, dict)
    assert event.typed is None or isinstance(event.typed, disruptive.events.Event)
    for reading in event.readings():
        assert (reading.event_id, reading.device_id, reading.time.tzinfo) == (event.id, event.device_id, UTC)
        assert isinstance(reading.value, int | float)
        assert not isinstance(reading.value, bool)
        assert math.isfinite(reading.value)
        assert (type(reading.quantity), type(reading.unit), type(reading.text)) == (str, str, str)


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([10**400, STAMP, "PRESENT", "projects/p", "a" * 65, "\r\n", "9999-12-31T23:59:59-23:59"])
    | st.text(st.characters(categories=None), max_size=8)
)
NAMES = st.sampled_from(["event", "data", "samples", "value", "updateTime", "labels", "eventId", "state"]) | st.text(
    max_size=4
)
ANY_JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))


def paths(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every value inside a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, inner in pairs for found in paths(inner, (*path, key)))]


@st.composite
def mutated_payloads(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Any:
    """A real payload in which a few values are replaced, removed, or wrapped in a list."""
    root = [payload_of(draw(st.sampled_from(TYPES)))]
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from([path for path in paths(root) if path]))
        parent: Any = root
        for key in path[:-1]:
            parent = parent[key]
        action = draw(st.sampled_from(["replace", "remove", "wrap"]))
        if action == "remove" and len(path) > 1:
            del parent[path[-1]]
        elif action == "wrap":
            parent[path[-1]] = [parent[path[-1]]]
        else:
            parent[path[-1]] = draw(ANY_JSON)
    return root[0]


MANY = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@MANY
@given(payload=mutated_payloads())
def test_a_mutated_event_is_an_event_if_it_has_an_id_and_a_type(payload: Any) -> None:
    body = json.dumps(payload).encode()
    if is_event(payload):
        event = Event.from_body(body, RECEIVED)
        assert (event.id, event.type) == (payload["event"]["eventId"], payload["event"]["eventType"])
        assert_well_typed(event)
    else:
        with pytest.raises(NotAnEvent):
            Event.from_body(body, RECEIVED)
        with pytest.raises(NotAnEvent):
            event_id(body)


@MANY
@given(
    event_type=st.sampled_from(TYPES),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(max_size=4)), min_size=1, max_size=4),
)
def test_changed_bytes_raise_nothing_but_not_an_event(event_type: str, changes: list[tuple[float, int, bytes]]) -> None:
    body = json.dumps(payload_of(event_type), ensure_ascii=False).encode()
    for position, length, inserted in changes:
        start = int(position * len(body))
        body = body[:start] + inserted + body[start + length :]
    try:
        event = Event.from_body(body, RECEIVED)
    except NotAnEvent as error:
        with pytest.raises(NotAnEvent, match=re.escape(str(error))):
            event_id(body)
    else:
        assert event.body is body
        assert_well_typed(event)


@MANY
@given(body=st.binary(max_size=200) | ANY_JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_raise_nothing_but_not_an_event(body: bytes) -> None:
    try:
        assert_well_typed(Event.from_body(body, RECEIVED))
    except NotAnEvent as error:
        with pytest.raises(NotAnEvent, match=re.escape(str(error))):
            event_id(body)


@MANY
@given(number=st.from_regex(r"-?(0|[1-9][0-9]{0,400})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?", fullmatch=True))
def test_any_json_number_is_a_value_if_it_is_finite(number: str) -> None:
    event = with_number("pressure", "pascal", number)
    assert_well_typed(event)
    try:
        expected = [float(number)] if math.isfinite(float(number)) else []
    except OverflowError:
        expected = []
    assert [float(reading.value) for reading in event.readings()] == expected
