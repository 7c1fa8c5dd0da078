"""What the `mqtt` sink publishes of events: topics made of ids, values as JSON, and which of two values is newer."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from urllib.parse import quote

from receiver import Event

MAX_LEVEL_CHARACTERS = 255
"""Ids of DT have at most 23; the type of an event can have any length, and a topic 65,535 bytes."""

MAX_AHEAD = timedelta(days=1)
"""A value dated further after the receipt of its event is not retained, since no later value would replace it."""

UNKNOWN = "unknown"
"""The level of a topic for an id that the event does not have."""


def level(text: str | None) -> str:
    """An id as one level of a topic; characters that are special or invalid in topics are percent-encoded."""
    return quote(text or UNKNOWN, safe="")[:MAX_LEVEL_CHARACTERS]


def values(event: Event) -> Iterator[tuple[str, bytes]]:
    """The newest value of each quantity of an event, as the JSON that is published; without values from the future."""
    usable = [reading for reading in event.readings() if is_plausible(event, reading.time)]
    newest = {reading.quantity: reading for reading in sorted(usable, key=lambda reading: reading.time)}
    for quantity, reading in newest.items():
        yield quantity, value(reading.value, reading.unit, reading.time, event.id)


def is_plausible(event: Event, time: datetime) -> bool:
    return time - event.received_at <= MAX_AHEAD


def value(content: float | str, unit: str, time: datetime, event_id: str) -> bytes:
    found = {"value": content, "unit": unit, "time": text_of(time), "event_id": event_id}
    return json.dumps(found, ensure_ascii=False).encode()


def text_of(time: datetime) -> str:
    """A time as DT writes it, always of the same length, so that it sorts as text."""
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")


def order(payload: bytes) -> tuple[str, str]:
    """Time and event id, by which values are compared; payloads that are not values sort first."""
    try:
        found = json.loads(payload)
        time, event_id = found["time"], found["event_id"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return "", ""
    return (time, event_id) if isinstance(time, str) and isinstance(event_id, str) else ("", "")


class LastMessages:
    """The last message of each topic that this connection knows. Thread-safe.

    The broker stores them durably: it sends its retained messages when a device is looked up, and later those that
    other dispatchers publish. `on_again` is called when messages have to be published again.
    """

    def __init__(self, on_again: Callable[[], None]) -> None:
        self._on_again = on_again
        self._payloads: dict[str, bytes] = {}
        self._again: set[str] = set()
        self._lock = threading.Lock()

    def get(self, topic: str) -> bytes | None:
        return self._payloads.get(topic)

    def topics(self) -> list[str]:
        with self._lock:
            return list(self._payloads)

    def replace(self, topic: str, payload: bytes) -> bool:
        """Replace the last payload of a topic. Returns whether it was a different one."""
        with self._lock:
            differs = self._payloads.get(topic) != payload
            self._payloads[topic] = payload
            return differs

    def replace_older(self, topic: str, payload: bytes) -> bool:
        """Replace the last value of a topic by a newer one. Returns whether it is newer."""
        with self._lock:
            is_newer = order(payload) > order(self._payloads.get(topic, b""))
            if is_newer:
                self._payloads[topic] = payload
            return is_newer

    def receive(self, topic: str, payload: bytes) -> None:
        """Record a message from the broker; an empty one means that the retained message was removed.

        If it is older than the last one, another dispatcher has replaced a newer value, which is published again.
        """
        with self._lock:
            if not payload:
                self._payloads.pop(topic, None)
                return
            is_older = order(payload) < order(self._payloads.get(topic, b""))
            if not is_older:
                self._payloads[topic] = payload
        if is_older:
            self.publish_again([topic])

    def publish_again(self, topics: Iterable[str]) -> None:
        with self._lock:
            self._again.update(topics)
        self._on_again()

    def pop_again(self) -> list[tuple[str, bytes]]:
        """The topics and payloads to publish again, each once."""
        with self._lock:
            topics, self._again = self._again, set()
            return [(topic, self._payloads[topic]) for topic in sorted(topics) if topic in self._payloads]

    def forget(self) -> None:
        with self._lock:
            self._payloads.clear()
