"""Sample events for tests of sinks: of every type, of unknown types, and with text that breaks naive code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from receiver.errors import ReceiverError
from receiver.event import TYPES, Event
from receiver.simulator import Simulator
from receiver.validation import nearest

TEST_SECRET = "test-secret"
"""The signature secret of the receivers that tests start."""

ODD_TEXTS = (
    "",
    "two\nlines\r\nand\u2028more",
    "\"double\" 'single' `back` \\ %s {} ;--",
    "Kjøleskap 冷蔵庫 🧊 e\u0301 \u202eright to left",
    "a\0b\x1b[31mred\x7f",
    "\ud83e",
    '=HYPERLINK("https://example.com")',
    "<script>alert(1)</script> &amp;",
    "long " * 10_000,
)
"""Text that users can put into labels, and that other systems often handle wrongly."""

ODD_TEXT_TYPES = ("temperature", "labelsChanged")
"""An event with readings, and one whose data are labels."""


def event(
    type: str = "temperature",
    *,
    labels: Mapping[str, str] | None = None,
    at: datetime | None = None,
    samples: int = 1,
    simulator: Simulator | None = None,
    **fields: Any,
) -> Event:
    """An event of this type as DT pushes it, from an emulated device, received at `at` (aware UTC; default now).

    `fields` replace fields of its data and of its newest sample: `event("temperature", value=21.5)`. `simulator`
    generates its id and its other values. Raises ReceiverError for a type or a field that DT does not document; for
    those see `unknown_events`.
    """
    if samples < 1:
        raise ReceiverError("an event has at least one sample")
    time = at or datetime.now(UTC)
    payload = json.loads((simulator or Simulator()).body(type, time, samples))
    data = payload["event"]["data"] if type == "labelsChanged" else payload["event"]["data"][type]
    for name in fields:
        if name not in data:
            raise ReceiverError(f"events of type {type} have no field '{name}'{nearest(name, data)}")
    newest = data.get("samples", [{}])[0]  # repeats the data's own values
    newest.update({name: value for name, value in fields.items() if name in newest})
    data.update(fields)
    if labels is not None:
        payload["labels"] = dict(labels)
    return Event.from_body(_encoded(payload), time)


def events(count: int, *, types: Iterable[str] = TYPES, seed: int = 1) -> list[Event]:
    """`count` events, of these types in turn, with 1 to 30 samples each. The same seed gives the same values."""
    simulator, cycle = Simulator(seed), tuple(types)
    return [event(cycle[number % len(cycle)], samples=1 + number % 30, simulator=simulator) for number in range(count)]


def unknown_events() -> list[Event]:
    """Events of types and shapes that DT does not document, but may send in the future."""
    shapes: list[tuple[str, Mapping[str, Any]]] = [
        ("sunshine", {"data": {"sunshine": {"lux": 120000, "updateTime": "2026-03-14T12:00:00Z"}}}),
        ("temperature", {}),
        ("temperature", {"data": None}),
        ("temperature", {"data": {"temperature": {"value": "21.5"}}}),
        ("temperature", {"data": {"temperature": {"value": 10**400}}}),
        ("humidity", {"data": {"humidity": {"samples": "none"}}}),
        ("contact", {"data": {"contact": {"state": "AJAR"}}}),
        ("touch", {"data": {"touch": {}}, "timestamp": "the day before yesterday"}),
        ("co2", {"data": {"co2": {"ppm": [400]}}, "targetName": 5}),
        ("x" * 200, {"data": {}}),
        ("two\nlines; 'quoted' \0 æ", {"data": {"two": None}}),
    ]
    now = datetime.now(UTC)
    return [
        Event.from_body(_encoded({"event": {"eventId": f"unknown-{number}", "eventType": name, **rest}}), now)
        for number, (name, rest) in enumerate(shapes)
    ]


def odd_text_events(types: Iterable[str] = ODD_TEXT_TYPES) -> list[Event]:
    """Events of these types whose labels hold text that breaks naive code."""
    simulator, distinct = Simulator(2), tuple(dict.fromkeys(types))
    return [
        event(event_type, labels={"name": text, f"label {text[:50]}": text}, simulator=simulator)
        for text in ODD_TEXTS
        for event_type in distinct
    ]


def _encoded(payload: Mapping[str, Any]) -> bytes:
    return json.dumps(payload, separators=(",", ":")).encode()
