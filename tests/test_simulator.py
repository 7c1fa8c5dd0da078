"""Simulated sensors: they push what DT would push, and every response is reported."""

from __future__ import annotations

import base64
import itertools
import json
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import time_machine
from conftest import TEST_SECRET
from dtintegrations import data_connector, provider
from flask import Request
from pytest_httpserver import HTTPServer
from werkzeug import Response
from werkzeug.test import EnvironBuilder

from receiver.errors import ReceiverError
from receiver.event import SIMULATED_PROJECT, TYPES, Event
from receiver.signature import HEADER, sign, verify
from receiver.simulator import NUMBER_FIELDS, STATES, Pusher, PushResponse, Simulator, rfc3339
from receiver.testing.ports import reserve_port

NOW = datetime(2024, 5, 29, 10, 34, 3, 970415, tzinfo=UTC)
RECEIVED = NOW + timedelta(seconds=7)

QUANTITIES = {
    "touch": [("touch", "")],
    "temperature": [("temperature", "°C")],
    "humidity": [("temperature", "°C"), ("relative_humidity", "%")],
    "objectPresent": [("object_present", "")],
    "waterPresent": [("water_present", "")],
    "objectPresentCount": [("count", "")],
    "touchCount": [("count", "")],
    "co2": [("co2", "ppm")],
    "pressure": [("pressure", "Pa")],
    "motion": [("motion", "")],
    "deskOccupancy": [("occupied", "")],
    "contact": [("open", "")],
    "probeWireStatus": [],
    "networkStatus": [("signal_strength", "%"), ("rssi", "dBm")],
    "batteryStatus": [("battery", "%")],
    "labelsChanged": [],
    "connectionStatus": [("online", "")],
    "ethernetStatus": [],
    "cellularStatus": [("signal_strength", "%")],
}
FIELDS = ["value", "temperature", "relativeHumidity", "total", "ppm", "pascal", "signalStrength", "rssi", "percentage"]
OFF = {"NOT_PRESENT", "NO_MOTION_DETECTED", "NOT_OCCUPIED", "CLOSED", "OFFLINE"}


def event_of(body: bytes) -> Event:
    return Event.from_body(body, RECEIVED)


def values_in(fields: dict[str, Any]) -> list[tuple[float, str]]:
    """The values in the fields of an event, each with the name of its state, if it is one."""
    state = fields.get("connection") or fields.get("state")
    if state is not None:
        return [(int(state not in OFF), state)]
    return [(fields[name], "") for name in FIELDS if name in fields]


@pytest.mark.parametrize("event_type", TYPES)
def test_each_body_is_an_event_with_the_readings_of_its_type(event_type: str) -> None:
    simulator = Simulator(1)
    for _ in range(20):
        event = event_of(simulator.body(event_type, NOW))
        values = [(1, "")] if event_type == "touch" else values_in(dict(event.data)) if QUANTITIES[event_type] else []
        assert (event.type, event.device_type, event.project_id) == (event_type, event_type, SIMULATED_PROJECT)
        assert (event.occurred_at, event.backfilled) == (NOW, False)
        assert event.labels == {"name": f"Simulated {event_type}"}
        assert [
            (
                reading.event_id,
                reading.device_id,
                reading.time,
                reading.quantity,
                reading.unit,
                reading.value,
                reading.text,
            )
            for reading in event.readings()
        ] == [
            (event.id, event.device_id, NOW, quantity, unit, *value)
            for (quantity, unit), value in zip(QUANTITIES[event_type], values, strict=True)
        ]


@pytest.mark.parametrize("event_type", [*NUMBER_FIELDS, *STATES])
def test_a_value_that_is_given_is_that_of_the_readings(event_type: str) -> None:
    for value in STATES.get(event_type, ("7", "7.5")):
        event = event_of(Simulator(1, value=value).body(event_type, NOW, samples=3))
        others = {"humidity": "temperature", "networkStatus": "rssi"}
        readings = [reading for reading in event.readings() if reading.quantity != others.get(event_type)]
        found = {reading.text or reading.value for reading in readings}
        expected = {value if event_type in STATES else float(value)}
        assert found == (expected if readings else set())


@pytest.mark.parametrize("event_type", TYPES)
def test_each_body_has_the_envelope_of_a_captured_push(event_type: str) -> None:
    payload = json.loads(Simulator(1).body(event_type, NOW))
    event, device = payload["event"], payload["metadata"]["deviceId"]
    keys = {"added", "modified", "removed"} if event_type == "labelsChanged" else {event_type}
    assert list(payload) == ["event", "labels", "metadata"]
    assert list(event) == ["eventId", "targetName", "eventType", "data", "timestamp"]
    assert list(payload["metadata"]) == ["deviceId", "projectId", "deviceType", "productNumber"]
    assert event["targetName"] == f"projects/{SIMULATED_PROJECT}/devices/{device}"
    assert event["timestamp"] == "2024-05-29T10:34:03.970415Z"
    assert set(event["data"]) == keys
    assert event_type == "labelsChanged" or event["data"][event_type]["updateTime"] == event["timestamp"]


@pytest.mark.parametrize("samples", [1, 30])
@pytest.mark.parametrize("event_type", TYPES)
def test_the_client_library_accepts_every_body(event_type: str, samples: int) -> None:
    body = Simulator(1).body(event_type, samples=samples)
    headers = sign(body, TEST_SECRET, datetime.now(UTC).timestamp())
    request = Request(EnvironBuilder(method="POST", data=body, headers=headers).get_environ())

    push = data_connector.HttpPush.from_provider(request=request, provider=provider.FLASK, secret=TEST_SECRET)

    event = event_of(body)
    assert (push.event.event_id, push.event.event_type, push.event.device_id) == (event.id, event_type, event.device_id)
    assert type(push.event.data).__name__ == event_type[0].upper() + event_type[1:]
    assert push.get_device_metadata().device_id == event.device_id
    assert push.labels == event.labels
    assert type(event.typed) is type(push.event)


def test_ids_look_like_those_of_dt_and_of_emulated_devices() -> None:
    events = [event_of(body) for body in itertools.islice(Simulator().bodies(), 1000)]
    assert all(re.fullmatch("[0-9a-v]{20}", event.id) for event in events)
    assert all(re.fullmatch("emu[0-9a-v]{20}", event.device_id or "") for event in events)
    assert len({event.id for event in events}) == 1000
    assert len({event.device_id for event in events}) == len(TYPES)
    assert len({(event.type, event.device_id) for event in events}) == len(TYPES)


def test_bodies_are_of_all_types_in_turn() -> None:
    chosen = ["co2", "touch", "co2"]
    assert [event_of(body).type for body in itertools.islice(Simulator().bodies(), 38)] == [*TYPES, *TYPES]
    assert [event_of(body).type for body in itertools.islice(Simulator().bodies(chosen), 7)] == [
        *chosen,
        *chosen,
        "co2",
    ]


def test_the_same_seed_gives_the_same_bodies_and_another_seed_gives_others() -> None:
    with time_machine.travel(NOW, tick=False):
        first, again, other = (list(itertools.islice(Simulator(seed).bodies(), 57)) for seed in (7, 7, 8))
    assert first == again
    assert set(first).isdisjoint(other)
    assert Simulator(7).body("humidity", NOW, 30) == Simulator(7).body("humidity", NOW, 30)


def test_an_event_id_begins_with_the_second_of_the_event_like_those_of_dt() -> None:
    for at, id_of_dt in (
        (datetime(2022, 2, 10, 12, 42, 13, 313949, tzinfo=UTC), "c82gg9catj3vmh4248og"),
        (datetime(2024, 5, 29, 10, 34, 3, 970415, tzinfo=UTC), "cpbg96qngr7ai7ldarrg"),
    ):
        simulated_id = event_of(Simulator().body("touch", at)).id
        assert len(simulated_id) == 20
        assert second_of(simulated_id) == second_of(id_of_dt) == int(at.timestamp())


def second_of(event_id: str) -> int:
    return int.from_bytes(base64.b32hexdecode(event_id.upper() + "====")[:4], "big")


def test_without_a_seed_no_two_simulators_give_the_same_ids() -> None:
    assert event_of(Simulator().body("touch")).id != event_of(Simulator().body("touch")).id


@pytest.mark.parametrize("event_type", ["temperature", "humidity"])
def test_samples_are_a_minute_apart_and_newest_first(event_type: str) -> None:
    event = event_of(Simulator(1).body(event_type, NOW, samples=30))
    quantities = [quantity for quantity, _ in QUANTITIES[event_type]]
    assert [(reading.quantity, reading.time) for reading in event.readings()] == [
        (quantity, NOW - n * timedelta(minutes=1)) for n in range(30) for quantity in quantities
    ]
    newest = {name: value for name, value in event.data["samples"][0].items() if name != "sampleTime"}
    assert newest.items() <= event.data.items()


def test_times_are_written_in_utc_with_microseconds() -> None:
    oslo = NOW.replace(microsecond=0).astimezone(timezone(timedelta(hours=2)))
    assert rfc3339(oslo) == "2024-05-29T10:34:03.000000Z"
    assert event_of(Simulator(1).body("temperature", oslo)).readings()[0].time == oslo
    with time_machine.travel(NOW, tick=False):
        assert event_of(Simulator(1).body("touch")).occurred_at == NOW


@pytest.mark.parametrize("event_type", ["Touch", "", "radiation"])
def test_an_unknown_type_is_a_clear_error(event_type: str) -> None:
    message = f"no event type '{event_type}'; there are: {', '.join(TYPES)}"
    with pytest.raises(ReceiverError) as alone:
        Simulator().body(event_type)
    with pytest.raises(ReceiverError) as in_turn:
        next(Simulator().bodies([event_type]))
    assert (str(alone.value), str(in_turn.value)) == (message, message)


def test_bodies_are_pushed_unchanged_and_signed_with_the_secret(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/", method="POST").respond_with_data("accepted")
    pusher = Pusher(httpserver.url_for("/"), TEST_SECRET)
    for body in itertools.islice(Simulator(1).bodies(), len(TYPES)):
        event = event_of(body)
        assert pusher.push(body) == PushResponse(event.id, event.type, 200, "accepted")
        received = httpserver.log[-1][0]
        pushed = Request(
            EnvironBuilder(method="POST", data=received.get_data(), headers=dict(received.headers)).get_environ()
        )
        assert pushed.get_data(cache=True) == body
        assert (pushed.content_type, HEADER in pushed.headers) == ("application/json", True)
        assert verify(pushed, {"A": "another", "B": TEST_SECRET}) == "B"


@pytest.mark.parametrize(
    ("status", "data", "text"),
    [
        (200, b"accepted", "accepted"),
        (200, b"duplicate\n", "duplicate"),
        (400, b"wrong secret\nand more", "wrong secret"),
        (503, b"journal unavailable", "journal unavailable"),
        (200, b"", ""),
        (204, b"", ""),
        (502, b"", ""),
        (500, b"\r\n\r\nafter blank lines", ""),
        (500, b"\xff\xfe", "\ufffd\ufffd"),
        (500, b"x" * 1_000_000, "x" * 200),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_the_first_line_of_every_response_is_reported(
    httpserver: HTTPServer, status: int, data: bytes, text: str
) -> None:
    httpserver.expect_request("/").respond_with_data(data, status)
    body = Simulator(1).body("touch", NOW)
    assert Pusher(httpserver.url_for("/"), TEST_SECRET).push(body) == PushResponse(
        event_of(body).id, "touch", status, text
    )


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_reported_and_not_followed(httpserver: HTTPServer, status: int) -> None:
    moved = Response("moved", status, {"Location": httpserver.url_for("/elsewhere")})
    httpserver.expect_request("/").respond_with_response(moved)
    response = Pusher(httpserver.url_for("/"), TEST_SECRET).push(Simulator(1).body("touch"))
    assert (response.status, response.text) == (status, "moved")
    assert [request.path for request, _ in httpserver.log] == ["/"]


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://127.0.0.1:{port}/", "connection refused"),
        ("http://127.0.0.1:99999/", "no response (LocationParseError)"),
        ("http://[::1/", "no response (LocationParseError)"),
        ("http://", "no response (LocationValueError)"),
        ("ftp://127.0.0.1/", "no response (URLSchemeUnknown)"),
    ],
)
def test_the_lack_of_a_response_is_reported_with_its_reason(url: str, text: str) -> None:
    body = Simulator(1).body("touch", NOW)
    pusher = Pusher(url.format(port=reserve_port()), TEST_SECRET)
    assert pusher.push(body) == PushResponse(event_of(body).id, "touch", 0, text)


def test_each_type_has_one_sensor_whenever_it_is_simulated() -> None:
    sensors = [{event_of(Simulator().body(name)).device_id for name in TYPES} for _ in range(2)]
    assert sensors[0] == sensors[1]
    assert len(sensors[0]) == len(TYPES)
    assert all(re.fullmatch("emu[0-9a-z]{20}", str(each)) for each in sensors[0])


def test_no_simulated_sensor_is_offline_unless_that_is_asked_for() -> None:
    said = {
        json.loads(Simulator().body("connectionStatus"))["event"]["data"]["connectionStatus"]["connection"]
        for _ in range(50)
    }
    assert said == {"ETHERNET", "CELLULAR"}
    offline = event_of(Simulator(value="OFFLINE").body("connectionStatus"))
    assert [reading.text for reading in offline.readings()] == ["OFFLINE"]
