"""Home Assistant's discovery, as the `mqtt` sink publishes it.

Home Assistant's own schema cannot be installed beside the receiver: it needs Python 3.14 and its exact versions of
SQLAlchemy and others. So these tests hold the table of its documentation, and what its source requires.
https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from support.built_in_sinks import deliver_batch
from support.events import NOW, event, temperature
from support.mosquitto import Broker, Listener, Published, listening, opened, retained, running

from receiver.event import SIMULATED_PROJECT, Event
from receiver.simulator import Simulator

CONFIG = "homeassistant/device/dt_d1/config"
CLASSES: Mapping[str, Mapping[str, tuple[str | None, str | None]]] = {
    "sensor": {
        "temperature": ("temperature", "°C"),
        "relative_humidity": ("humidity", "%"),
        "co2": ("carbon_dioxide", "ppm"),
        "pressure": ("atmospheric_pressure", "hPa"),
        "battery": ("battery", "%"),
        "signal_strength": (None, "%"),
        "rssi": ("signal_strength", "dBm"),
        "count": (None, None),
        "last_seen": ("timestamp", None),
    },
    "binary_sensor": {
        "water_present": ("moisture", None),
        "motion": ("motion", None),
        "occupied": ("occupancy", None),
        "open": ("opening", None),
        "object_present": (None, None),
        "online": ("connectivity", None),
    },
    "event": {"touch": (None, None)},
}
"""Platform → quantity → device class and unit, from Home Assistant's pages on sensors, binary sensors and events."""

OF_EVERY_COMPONENT = {"platform", "unique_id", "default_entity_id", "state_topic", "value_template", "name"}
POSSIBLE = {
    "sensor": {"device_class", "unit_of_measurement", "state_class", "entity_category", "availability"},
    "binary_sensor": {"device_class", "availability"},
    "event": {"event_types"},
}
"""Platform → the keys that a component can have besides."""


@pytest.fixture(scope="module")
def shared() -> Iterator[Broker]:
    with running() as broker:
        yield broker


@pytest.fixture
def broker(shared: Broker) -> Broker:
    shared.restart()
    return shared


@pytest.fixture
def listener(broker: Broker) -> Iterator[Listener]:
    with listening(broker, "homeassistant/#") as listener:
        yield listener


def configs(listener: Listener) -> list[dict[str, Any]]:
    """Every discovery message, in the order of publishing."""
    return [json.loads(each.payload) for each in listener.catch_up() if each.topic.endswith("/config")]


def named(event_id: str, name: str, minute: int, **labels: str) -> Event:
    body = json.loads(temperature(event_id, 1.0, minute=minute, labels={"name": name, **labels}).body)
    body["event"]["timestamp"] = f"2026-03-14T11:{minute:02}:00Z"
    body["metadata"] |= {"deviceType": "temperature", "productNumber": "102058"}
    return Event.from_body(json.dumps(body).encode(), NOW)


def test_a_device_is_announced_with_everything_that_it_has_reported(broker: Broker) -> None:
    with opened(broker, homeassistant=True) as sink:
        deliver_batch(sink, named("e1", "Freezer", 1, room="Kitchen"))
    assert json.loads(retained(broker, CONFIG)[CONFIG]) == {
        "device": {
            "identifiers": ["dt_d1"],
            "name": "Freezer",
            "manufacturer": "Disruptive Technologies",
            "model": "temperature",
            "model_id": "102058",
            "serial_number": "d1",
            "suggested_area": "Kitchen",
        },
        "origin": {"name": "receiver"},
        "availability": [{"topic": "dt/status"}, {"topic": "dt/oslo/d1/availability"}],
        "availability_mode": "all",
        "components": {
            "temperature": {
                "platform": "sensor",
                "name": "Temperature",
                "device_class": "temperature",
                "state_class": "measurement",
                "unit_of_measurement": "°C",
                "unique_id": "dt_d1_temperature",
                "default_entity_id": "sensor.dt_d1_temperature",
                "state_topic": "dt/oslo/d1/temperature",
                "value_template": "{{ value_json.value }}",
            },
            "last_seen": {
                "platform": "sensor",
                "name": "Last seen",
                "device_class": "timestamp",
                "entity_category": "diagnostic",
                "unique_id": "dt_d1_last_seen",
                "default_entity_id": "sensor.dt_d1_last_seen",
                "state_topic": "dt/oslo/d1/last_seen",
                "value_template": "{{ value_json.value }}",
                "availability": [{"topic": "dt/status"}],
            },
        },
    }


def test_every_type_of_event_has_entities_of_the_documented_classes(broker: Broker) -> None:
    simulator = Simulator(1)
    pushed = [
        Event.from_body(simulator.body(kind), datetime.now(UTC))
        for kind in ("touch", "temperature", "humidity", "objectPresent", "waterPresent", "touchCount", "co2")
        + ("pressure", "motion", "deskOccupancy", "contact", "networkStatus", "batteryStatus", "connectionStatus")
    ]
    with opened(broker, homeassistant=True) as sink:
        deliver_batch(sink, *pushed)
    found = [json.loads(payload) for payload in retained(broker, "homeassistant/device/+/config").values()]
    assert len(found) == len(pushed)
    components = {quantity: each for config in found for quantity, each in config["components"].items()}
    assert {
        platform: {
            quantity: (each.get("device_class"), each.get("unit_of_measurement"))
            for quantity, each in components.items()
            if each["platform"] == platform
        }
        for platform in CLASSES
    } == CLASSES
    values = retained(broker, f"dt/{SIMULATED_PROJECT}/+/+")
    for config in found:
        assert config.keys() == {"device", "origin", "availability", "availability_mode", "components"}
        for quantity, each in config["components"].items():
            assert each.keys() >= OF_EVERY_COMPONENT
            assert each.keys() - OF_EVERY_COMPONENT - POSSIBLE[each["platform"]] == set()
            assert re.fullmatch(rf"{each['platform']}\.[a-z0-9_]+", each["default_entity_id"])
            assert each["state_topic"] in values, "what is announced has a value"
            alone = each.get("availability") == [{"topic": "dt/status"}]
            assert alone == (quantity in ("online", "last_seen"))
        topics = [each["topic"] for each in config["availability"]]
        assert [values.get(topic) or retained(broker, topic)[topic] for topic in topics] == [b"online", b"online"]
    assert {quantity for quantity, each in components.items() if each.get("entity_category") == "diagnostic"} == {
        "battery",
        "signal_strength",
        "rssi",
        "last_seen",
    }
    assert {each["state_class"] for each in components.values() if "state_class" in each} == {
        "measurement",
        "total_increasing",
    }
    assert components["count"]["state_class"] == "total_increasing"
    assert components["touch"]["event_types"] == [json.loads(components["touch"]["value_template"])["event_type"]]


@pytest.mark.parametrize(
    ("quantity", "value", "shown"),
    [
        ("temperature", 21.5, "21.5"),
        ("pressure", 101325.0, "1013.25"),
        ("open", 1, "ON"),
        ("open", 0, "OFF"),
        ("count", 7, "7"),
        ("last_seen", "2026-03-14T11:59:00.500000Z", "2026-03-14T11:59:00.500000Z"),
    ],
)
def test_a_template_shows_the_value(quantity: str, value: object, shown: str) -> None:
    from jinja2 import Template  # a dependency of Flask; Home Assistant's templates are Jinja's

    from plugins.mqtt.homeassistant import ENTITIES

    template = Template(ENTITIES[quantity]["value_template"])
    assert template.render(value_json={"value": value, "unit": "", "time": "", "event_id": ""}) == shown


def test_an_announcement_is_sent_again_only_when_something_changes(broker: Broker, listener: Listener) -> None:
    with opened(broker, homeassistant=True) as sink:
        deliver_batch(sink, named("e1", "Freezer", 1), named("e2", "Freezer", 2))
        deliver_batch(sink, named("e3", "Freezer", 3))
        assert [each["device"]["name"] for each in configs(listener)] == ["Freezer"]
        deliver_batch(sink, named("e4", "Fridge", 4))
        deliver_batch(sink, named("e0", "Oldest name", 0))
        assert [each["device"]["name"] for each in configs(listener)] == ["Freezer", "Fridge"]
        deliver_batch(sink, named("e5", "Fridge", 5, room="Cellar"))
        assert configs(listener)[-1]["device"]["suggested_area"] == "Cellar"
        deliver_batch(sink, event("e6", "touch", device="d1", labels={"name": "Fridge", "room": "Cellar"}))
        assert [sorted(each["components"]) for each in configs(listener)[-2:]] == [
            ["last_seen", "temperature"],
            ["last_seen", "temperature", "touch"],
        ]


def test_a_restart_announces_nothing_again_and_no_entity_disappears(broker: Broker, listener: Listener) -> None:
    with opened(broker, homeassistant=True) as sink:
        deliver_batch(sink, named("e1", "Freezer", 1))
    before = configs(listener)
    with opened(broker, homeassistant=True) as sink:
        deliver_batch(sink, named("e2", "Freezer", 2))
        assert configs(listener) == before
        deliver_batch(sink, event("e3", "batteryStatus", {"percentage": 90}, labels={"name": "Freezer"}))
        assert sorted(configs(listener)[-1]["components"]) == ["battery", "last_seen", "temperature"]


def test_all_devices_are_announced_again_when_home_assistant_starts(broker: Broker, listener: Listener) -> None:
    devices = [f"d{number}" for number in range(30)]
    with opened(broker, homeassistant=True) as sink:
        deliver_batch(sink, *(temperature(f"e-{device}", 1.0, device=device) for device in devices))
        first = {each.topic: each for each in listener.catch_up()}
        listener.messages.clear()
        listener.publish("homeassistant/status", b"online")
        listener.wait_for(lambda messages: len(messages) == len(devices) + 1, "the announcements")
        assert {each.topic: each for each in listener.catch_up()} == {
            **first,
            "homeassistant/status": Published("homeassistant/status", b"online"),
        }


def test_a_touch_triggers_once_and_an_old_one_never(broker: Broker) -> None:
    """Home Assistant ignores a retained message on the topic of an event entity, so that a restart triggers nothing."""
    with listening(broker, "dt/oslo/d1/touch") as listener, opened(broker, homeassistant=True) as sink:
        touches = [event(f"e{minute}", "touch", {"updateTime": f"2026-03-14T11:0{minute}:00Z"}) for minute in (1, 2, 3)]
        deliver_batch(sink, *touches[1:])
        deliver_batch(sink, *touches, attempt=2)
        triggered = [json.loads(each.payload)["event_id"] for each in listener.catch_up()]
        assert triggered == ["e2", "e3"]


def test_a_device_in_another_project_keeps_its_identity(broker: Broker) -> None:
    with opened(broker, homeassistant=True) as sink:
        deliver_batch(sink, temperature("e1", 1.0, project="oslo"))
        deliver_batch(sink, temperature("e2", 2.0, project="bergen", minute=5))
    found = json.loads(retained(broker, CONFIG)[CONFIG])
    assert found["device"]["identifiers"] == ["dt_d1"]
    assert found["components"]["temperature"]["unique_id"] == "dt_d1_temperature"
    assert found["components"]["temperature"]["state_topic"] == "dt/bergen/d1/temperature"


def test_long_labels_and_odd_device_ids_are_harmless(broker: Broker) -> None:
    with opened(broker, homeassistant=True, discovery_prefix="ha") as sink:
        deliver_batch(sink, named("e1", "long " * 10_000, 1), temperature("e2", 1.0, device="a b/c"))
    found = retained(broker, "ha/#")
    assert list(found) == ["ha/device/dt_d1/config"]
    assert len(json.loads(found["ha/device/dt_d1/config"])["device"]["name"]) == 255


@pytest.mark.parametrize("junk", [b"{}", b"[]", b"null", b'{"device": {}, "components": [], "origin": 1}', b"\xff"])
def test_a_discovery_message_of_something_else_is_replaced(broker: Broker, junk: bytes) -> None:
    with listening(broker) as other:
        other.publish(CONFIG, junk, retain=True)
    with opened(broker, homeassistant=True) as sink:
        deliver_batch(sink, named("e1", "Freezer", 1))
    assert json.loads(retained(broker, CONFIG)[CONFIG])["device"]["name"] == "Freezer"
