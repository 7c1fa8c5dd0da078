"""Home Assistant's discovery of devices: one message for each device, with all its entities.

https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, TypeGuard

from receiver import Event

BIRTH_TOPIC = "homeassistant/status"
"""Where Home Assistant publishes that it is online; it does not depend on the discovery prefix."""

PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_NAME_CHARACTERS = 255
ORIGIN = {"name": "receiver"}
AVAILABILITY, LAST_SEEN = "availability", "last_seen"
AREA_LABEL = "room"

NUMBER = "{{ value_json.value }}"
HECTOPASCAL = "{{ value_json.value / 100 }}"
STATE = "{{ 'ON' if value_json.value else 'OFF' }}"
TOUCH = '{"event_type": "touch"}'

Table = dict[str, Any]


def sensor(name: str, device_class: str | None = None, unit: str | None = None, **more: object) -> Table:
    given = {"name": name, "device_class": device_class, "unit_of_measurement": unit, "value_template": NUMBER}
    return {"platform": "sensor", "state_class": "measurement", **{k: v for k, v in given.items() if v}, **more}


def state(name: str, device_class: str | None = None) -> Table:
    given = {"device_class": device_class} if device_class else {}
    return {"platform": "binary_sensor", "name": name, "value_template": STATE, **given}


ENTITIES: Mapping[str, Table] = {
    "temperature": sensor("Temperature", "temperature", "°C"),
    "relative_humidity": sensor("Humidity", "humidity", "%"),
    "co2": sensor("CO2", "carbon_dioxide", "ppm"),
    "pressure": sensor("Pressure", "atmospheric_pressure", "hPa", value_template=HECTOPASCAL),
    "battery": sensor("Battery", "battery", "%", entity_category="diagnostic"),
    "signal_strength": sensor("Signal strength", None, "%", entity_category="diagnostic"),
    "rssi": sensor("RSSI", "signal_strength", "dBm", entity_category="diagnostic"),
    "count": sensor("Count", state_class="total_increasing"),
    "water_present": state("Water", "moisture"),
    "motion": state("Motion", "motion"),
    "occupied": state("Occupancy", "occupancy"),
    "open": state("Opening", "opening"),
    "object_present": state("Object"),
    "online": state("Connection", "connectivity"),
    "touch": {"platform": "event", "name": "Touch", "event_types": ["touch"], "value_template": TOUCH},
    LAST_SEEN: {
        "platform": "sensor",
        "name": "Last seen",
        "device_class": "timestamp",
        "value_template": NUMBER,
        "entity_category": "diagnostic",
    },
}
"""Quantity → its entity, without what depends on the device."""

ABOUT_THE_CONNECTION = ("online", LAST_SEEN)
"""Quantities that explain why a device is unavailable, so they are shown even then."""


def is_plain(device_id: str | None) -> TypeGuard[str]:
    """Whether Home Assistant accepts a device id in a discovery topic."""
    return device_id is not None and PLAIN_ID.fullmatch(device_id) is not None


def config_topic(discovery_prefix: str, device_id: str) -> str:
    return f"{discovery_prefix}/device/dt_{device_id}/config"


def config(
    known: bytes | None, event: Event, reported: Collection[str], topic: str, status: str, *, is_newest: bool
) -> bytes:
    """The discovery message of an event's device: the entities of the `known` message and of the `reported` quantities.

    `topic` is the beginning of the device's topics, `status` the topic of the receiver's status. Name, area and type
    are those of the event if it `is_newest`, else those of the known message.
    """
    before = parsed(known)
    device = before["device"] if before and not is_newest else device_of(event)
    quantities = {*reported, *(before["components"] if before else ())}
    found = {
        "device": device,
        "origin": ORIGIN,
        "availability": [{"topic": status}, {"topic": f"{topic}/{AVAILABILITY}"}],
        "availability_mode": "all",
        "components": {
            quantity: entity(quantity, str(event.device_id), topic, status)
            for quantity in sorted(quantities)
            if quantity in ENTITIES
        },
    }
    return json.dumps(found, ensure_ascii=False, sort_keys=True).encode()


def device_of(event: Event) -> Table:
    given = {
        "identifiers": [f"dt_{event.device_id}"],
        "name": event.labels.get("name", "")[:MAX_NAME_CHARACTERS] or event.device_id,
        "manufacturer": "Disruptive Technologies",
        "model": event.device_type,
        "model_id": event.product_number,
        "serial_number": event.device_id,
        "suggested_area": event.labels.get(AREA_LABEL, "")[:MAX_NAME_CHARACTERS],
    }
    return {key: found for key, found in given.items() if found}


def entity(quantity: str, device_id: str, topic: str, status: str) -> Table:
    platform = ENTITIES[quantity]["platform"]
    own_id = f"dt_{device_id}_{quantity}"
    availability = {"availability": [{"topic": status}]} if quantity in ABOUT_THE_CONNECTION else {}
    return {
        **ENTITIES[quantity],
        **availability,
        "unique_id": own_id,
        "default_entity_id": f"{platform}.{re.sub('[^a-z0-9_]', '_', own_id.lower())}",
        "state_topic": f"{topic}/{quantity}",
    }


def parsed(payload: bytes | None) -> Table | None:
    """A discovery message as `config` makes it; None for anything else."""
    try:
        found = json.loads(payload or b"")
        is_ours = isinstance(found["device"], dict) and isinstance(found["components"], dict)
        return found if is_ours and found["origin"] == ORIGIN else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def announces(payload: bytes, status: str) -> bool:
    """Whether this is a discovery message of the sink with this topic for its status."""
    found = parsed(payload)
    availability = found.get("availability") if found else None
    return isinstance(availability, list) and {"topic": status} in availability
