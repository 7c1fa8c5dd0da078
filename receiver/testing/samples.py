"""Events to try a sink with: of every type, of types nobody knows yet, and with text that breaks naive code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from receiver.errors import ReceiverError
from receiver.event import TYPES, Event
from receiver.options import nearest
from receiver.simulator import Simulator

TEST_SECRET = "test-secret"
"""The signature secret of receivers that tests start."""

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
"""Text that DT's users may give to labels, or that other systems stumble over."""


ODD_TYPES = ("temperature", "labelsChanged")


def event(
    type: str = "temperature",
    *,
    labels: Mapping[str, str] | None = None,
    at: datetime | None = None,
    samples: int = 1,
    simulator: Simulator | None = None,
    **fields: Any,
) -> Event:
    """An event of a type as DT pushes it, from an emulated device, received at `at` (aware UTC; default now).

    `fields` replace those of its data and of its newest sample: `event("temperature", value=21.5)`. Ids come from
    `simulator`. Raises ReceiverError for a type or a field that DT does not have; `unknown_events` has such.
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
    """So many events, of these types in turn, with 1 to 30 samples each. The same seed gives the same values."""
    simulator, kinds = Simulator(seed), tuple(types)
    return [event(kinds[number % len(kinds)], samples=1 + number % 30, simulator=simulator) for number in range(count)]


def unknown_events() -> list[Event]:
    """Events of types and shapes that DT does not document, and may send tomorrow."""
    bare: list[tuple[str, Mapping[str, Any]]] = [
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
        for number, (name, rest) in enumerate(bare)
    ]


def odd_texts(types: Iterable[str] = ODD_TYPES) -> list[Event]:
    """Events of these types whose labels hold text that breaks naive code."""
    simulator, kinds = Simulator(2), tuple(dict.fromkeys(types))
    return [
        event(kind, labels={"name": text, f"label {text[:50]}": text}, simulator=simulator)
        for text in ODD_TEXTS
        for kind in kinds
    ]


def _encoded(payload: Mapping[str, Any]) -> bytes:
    return json.dumps(payload, separators=(",", ":")).encode()
