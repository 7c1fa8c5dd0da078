"""Event and Reading: the content of a push, decoded from its raw body. The raw body is never derived from them.

Decoding is tolerant: only an id and a type are required. Anything else can be missing, null or of an unknown shape,
and is then None or empty. https://developer.disruptive-technologies.com/docs/concepts/events
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from typing import Any

from receiver.errors import NotAnEvent

EVENT_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
STRINGS = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
"""Also one that does not end, up to the end of the text: to fail at each of its quotes could take minutes."""
BRACKETS = re.compile(r"[{}\[\]]")

MAX_LEVELS = 100
"""How deeply objects and lists in a body can be nested: far more than DT does, and few enough for every call that
decodes or encodes them. The interpreter's own limit depends on how deep the stack of the caller is, so without this one
a sink could fail to decode what intake has accepted."""

TYPES = (
    "touch",
    "temperature",
    "humidity",
    "objectPresent",
    "waterPresent",
    "objectPresentCount",
    "touchCount",
    "co2",
    "pressure",
    "motion",
    "deskOccupancy",
    "contact",
    "probeWireStatus",
    "networkStatus",
    "batteryStatus",
    "labelsChanged",
    "connectionStatus",
    "ethernetStatus",
    "cellularStatus",
)
"""Every event type that DT documents. An event can have any other type, too."""

SIMULATED_PROJECT = "emuproject0000000000"
"""Where the events of `send` and `demo` come from. DT does not know it, and has no history of it."""


class Origin(StrEnum):
    """How an event came here."""

    PUSH = "push"
    """A Data Connector pushed it."""
    HISTORY = "history"
    """`backfill` fetched it from DT's history, since its push was missed."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One value at one time inside an event.

    `value` is in `unit`; counts and states have none. On/off states are 1 and 0, with the name of the state as `text`.
    """

    event_id: str
    device_id: str | None
    time: datetime
    quantity: str
    value: float
    unit: str = ""
    text: str = ""


@dataclass(frozen=True)
class Event:
    """One signed push from a Data Connector, or the same from DT's history.

    `body` is the raw body as DT sent it, byte for byte; everything else is decoded from it. Of an event from the
    history, `body` is what a push would have had, with the labels that the device had when it was fetched. Times are
    aware UTC, and all text can be encoded as UTF-8. Two events are equal if their id and body are.
    """

    id: str
    body: bytes = field(repr=False)
    type: str = field(compare=False)
    device_id: str | None = field(compare=False)
    project_id: str | None = field(compare=False)
    device_type: str | None = field(compare=False)
    product_number: str | None = field(compare=False)
    labels: Mapping[str, str] = field(compare=False, repr=False)
    occurred_at: datetime = field(compare=False)
    received_at: datetime = field(compare=False)
    data: Mapping[str, Any] = field(compare=False, repr=False)
    backfilled: bool = field(compare=False)
    origin: Origin = field(default=Origin.PUSH, compare=False)

    @classmethod
    def from_body(cls, body: bytes, received_at: datetime, origin: Origin = Origin.PUSH) -> Event:
        """Decode a raw body that was received at `received_at` (aware UTC).

        Raises NotAnEvent if it has no valid event id or no event type.
        """
        payload = _parse(body)
        event_id, event_type = identify(payload)
        event = payload["event"]
        metadata = _mapping(payload.get("metadata"))
        target = _target(event.get("targetName"))
        data = _mapping(event.get("data"))
        if event_type != "labelsChanged":
            data = _mapping(data.get(event_type))
        time = parse_time(event.get("timestamp")) or parse_time(data.get("updateTime"))
        return cls(
            id=event_id,
            body=body,
            type=event_type,
            device_id=_text(metadata.get("deviceId")) or target.get("devices"),
            project_id=_text(metadata.get("projectId")) or target.get("projects"),
            device_type=_text(metadata.get("deviceType")),
            product_number=_text(metadata.get("productNumber")),
            labels=_labels(payload.get("labels")),
            occurred_at=time or received_at,
            received_at=received_at,
            data=data,
            backfilled=data.get("isBackfilled") is True,
            origin=origin,
        )

    @cached_property
    def typed(self) -> Any:
        """The event as `disruptive.events.Event`; None if DT's client library cannot decode it."""
        try:
            import disruptive  # slow to import, and only some sinks use it

            return disruptive.events.Event(_parse(self.body)["event"])
        except Exception:
            return None

    def readings(self) -> list[Reading]:
        """One reading for each sample and quantity, newest first as DT sends them; none for types without a value."""
        return [
            Reading(self.id, self.device_id, time, quantity, value, unit, text)
            for time, quantity, value, unit, text in _values(self)
        ]


def identify(payload: object) -> tuple[str, str]:
    """The id and the type of a decoded body. Raises NotAnEvent with the reason."""
    if not isinstance(payload, dict):
        raise NotAnEvent("the body is not a JSON object")
    event = payload.get("event")
    if not isinstance(event, dict):
        raise NotAnEvent("the body has no object 'event'")
    event_id, event_type = event.get("eventId"), event.get("eventType")
    if not isinstance(event_id, str) or not EVENT_ID.fullmatch(event_id):
        raise NotAnEvent("event.eventId is not 1 to 64 letters, digits, '_' or '-'")
    if not isinstance(event_type, str):
        raise NotAnEvent("event.eventType is not a string")
    return event_id, event_type


def event_id(body: bytes) -> str:
    """The event id in a raw body. Raises NotAnEvent."""
    return identify(_parse(body))[0]


def _parse(body: bytes) -> Any:
    try:
        text = body.decode("utf-8")
        if text.count("{") + text.count("[") > MAX_LEVELS and _levels_exceed(text, MAX_LEVELS):
            raise NotAnEvent("the body is nested too deeply")
        payload = DECODER.decode(text)
        return _without_lone_surrogates(payload) if ESCAPED_SURROGATE.search(text) else payload
    except UnicodeDecodeError:
        raise NotAnEvent("the body is not UTF-8") from None
    except ValueError:
        raise NotAnEvent("the body is not JSON") from None


def _levels_exceed(text: str, limit: int) -> bool:
    """Whether a JSON text is nested deeper, also in a value that decoding would drop for a later one of its name."""
    level = 0
    for bracket in BRACKETS.findall(STRINGS.sub("", text)):
        level += 1 if bracket in "{[" else -1
        if level > limit:
            return True
    return False


def _without_lone_surrogates(payload: object) -> object:
    """The payload with "?" for each lone surrogate, which UTF-8 and most destinations cannot represent."""
    return json.loads(json.dumps(payload, ensure_ascii=False).encode("utf-8", "replace"))


def _int(digits: str) -> int | None:
    """A whole number; None if it has more digits than Python converts."""
    try:
        return int(digits)
    except ValueError:
        return None


def _float(digits: str) -> float | None:
    """A number; None if it is too large for a float, since JSON has no infinity."""
    number = float(digits)
    return number if math.isfinite(number) else None


DECODER = json.JSONDecoder(parse_int=_int, parse_float=_float, parse_constant=lambda _: None)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _labels(value: object) -> dict[str, str]:
    labels = {key: label for key, label in _mapping(value).items() if label is not None}
    return {key: label if isinstance(label, str) else json.dumps(label) for key, label in labels.items()}


def _target(name: object) -> dict[str, str]:
    """`projects/P/devices/D` as {"projects": P, "devices": D}; either part can be missing."""
    parts = name.split("/") if isinstance(name, str) else []
    return {kind: value for kind, value in zip(parts[::2], parts[1::2], strict=False) if value}


def parse_time(value: object) -> datetime | None:
    """An RFC 3339 time with 0 to 9 fractional digits, truncated to microseconds; None for anything else."""
    if not isinstance(value, str):
        return None
    try:
        time = datetime.fromisoformat(value)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def rfc3339(time: datetime, timespec: str = "microseconds") -> str:
    """A time as DT writes it: in UTC, with a Z at the end."""
    return time.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def _number(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


Value = tuple[datetime, str, float, str, str]

_NUMBERS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "temperature": (("value", "temperature", "°C"),),
    "humidity": (("temperature", "temperature", "°C"), ("relativeHumidity", "relative_humidity", "%")),
    "objectPresentCount": (("total", "count", ""),),
    "touchCount": (("total", "count", ""),),
    "co2": (("ppm", "co2", "ppm"),),
    "pressure": (("pascal", "pressure", "Pa"),),
    "networkStatus": (("signalStrength", "signal_strength", "%"), ("rssi", "rssi", "dBm")),
    "batteryStatus": (("percentage", "battery", "%"),),
    "cellularStatus": (("signalStrength", "signal_strength", "%"),),
}
"""Event type → (field, quantity, unit) of each of its numbers."""

_STATES: dict[str, tuple[str, str, dict[str, int]]] = {
    "objectPresent": ("state", "object_present", {"PRESENT": 1, "NOT_PRESENT": 0}),
    "waterPresent": ("state", "water_present", {"PRESENT": 1, "NOT_PRESENT": 0}),
    "motion": ("state", "motion", {"MOTION_DETECTED": 1, "NO_MOTION_DETECTED": 0}),
    "deskOccupancy": ("state", "occupied", {"OCCUPIED": 1, "NOT_OCCUPIED": 0}),
    "contact": ("state", "open", {"OPEN": 1, "CLOSED": 0}),
    "connectionStatus": ("connection", "online", {"SDS": 1, "ETHERNET": 1, "CELLULAR": 1, "OFFLINE": 0}),
}
"""Event type → (field, quantity, value of each state)."""


def _values(event: Event) -> Iterator[Value]:
    updated = parse_time(event.data.get("updateTime")) or event.occurred_at
    if event.type == "touch":
        yield updated, "touch", 1, "", ""
    elif event.type in _NUMBERS:
        for sample in _samples(event.data, [name for name, _, _ in _NUMBERS[event.type]]):
            time = parse_time(sample.get("sampleTime")) or updated
            for name, quantity, unit in _NUMBERS[event.type]:
                if (value := _number(sample.get(name))) is not None:
                    yield time, quantity, value, unit, ""
    elif event.type in _STATES:
        name, quantity, states = _STATES[event.type]
        state = event.data.get(name)
        if isinstance(state, str) and state in states:
            yield updated, quantity, states[state], "", state


def _samples(data: Mapping[str, Any], names: Sequence[str]) -> list[Mapping[str, Any]]:
    """The samples that have a number, of which the first repeats the value of the data; without any, the data."""
    samples = data.get("samples")
    tables = [sample for sample in samples if isinstance(sample, dict)] if isinstance(samples, list) else []
    usable: list[Mapping[str, Any]] = [
        sample for sample in tables if any(_number(sample.get(name)) is not None for name in names)
    ]
    return usable or [data]
