"""What is derived of sensors from their events, and how that is merged with what is stored.

Every part is a set, a minimum, a maximum, or the value with the newest time, so merging is commutative, associative and
idempotent: the registry does not depend on the order of events, nor on repetitions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from receiver.event import Event, Origin
from receiver.sensors.history import DAY_SECONDS, pack_point
from receiver.sensors.minutes import DAY_MINUTES, minute_of

FUTURE_SECONDS = 600.0
"""A time more than this after the receipt of the event is wrong, and the time of receipt is used instead."""

LATE_SECONDS = 13 * 3600.0
"""DT retries a push for 12 hours: an older event was sent again by other means, and fills a gap."""

PERIODIC = frozenset(
    ("networkStatus", "temperature", "humidity", "co2", "pressure", "objectPresentCount", "touchCount")
)
"""Event types that are sent with every heartbeat. A sensor without any of them cannot be monitored."""

CONNECTORS = 8
"""How many cloud connectors are stored for a sensor: those that heard it last."""

ONLY_SECONDS = 86400.0
"""A cloud connector that did not hear a sensor for this time, while others did, is not one of its connectors."""

DEVICE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_NAME = 200

Facts = dict[str, list[Any]]
"""The newest facts of a sensor by name, each with its time, its value, and its unit if it has one.

`name`, `type`, `project`, `connection`; `via:ID` for each cloud connector; `latest:QUANTITY` for each quantity.
"""


@dataclass(slots=True)
class Day:
    """What was heard of a sensor on one day: live and filled minutes as bits, and readings as records."""

    heard: int = 0
    filled: int = 0
    points: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class News:
    """What a batch of events adds to one sensor. Times are seconds since 1970."""

    facts: Facts = field(default_factory=dict)
    first_heard: float | None = None
    last_heard: float | None = None
    periodic: bool = False
    days: dict[int, Day] = field(default_factory=dict)


@dataclass
class Batch:
    """What events add: news by device id, and the minutes in which pushes arrived by project and day."""

    sensors: dict[str, News] = field(default_factory=dict)
    arrivals: dict[tuple[str, int], int] = field(default_factory=dict)

    def add(self, event: Event, history_seconds: float) -> None:
        """Add one event; without a valid device id it is ignored."""
        if event.device_id is None or not DEVICE_ID.fullmatch(event.device_id):
            return
        received = event.received_at.timestamp()
        oldest = received - history_seconds
        at = _plausible(event.occurred_at.timestamp(), received)
        news = self.sensors.setdefault(event.device_id, News())
        offline = event.type == "connectionStatus" and event.data.get("connection") == "OFFLINE"
        fetched = event.origin is Origin.HISTORY
        own = not (offline or event.type == "labelsChanged")  # DT sends these for the sensor
        live = own and not event.backfilled and not fetched
        late = received - at > LATE_SECONDS
        if not fetched:
            news.periodic |= event.type in PERIODIC
        _add_facts(news.facts, event, at)
        if live and at >= oldest:
            news.first_heard = least(news.first_heard, at)
            news.last_heard = greatest(news.last_heard, at)
        if event.backfilled or (fetched and own) or (live and late):
            _mark(news, at, oldest, heard=False)
        elif live:
            _mark(news, at, oldest, heard=True)
            key = _project(event) or "", int(received // DAY_SECONDS)
            self.arrivals[key] = self.arrivals.get(key, 0) | 1 << minute_of(received) % DAY_MINUTES
        for reading in event.readings():
            time = _plausible(reading.time.timestamp(), received)
            if event.backfilled:
                _mark(news, time, oldest, heard=False)
            else:
                value = [time, reading.value, reading.unit]
                _newest(news.facts, f"latest:{reading.quantity}", value)
            if time >= oldest and (record := pack_point(reading.quantity, time, reading.value)):
                _day(news, time).points.add(record)


def _project(event: Event) -> str | None:
    return event.project_id if event.project_id and DEVICE_ID.fullmatch(event.project_id) else None


def _plausible(time: float, received: float) -> float:
    return received if time > received + FUTURE_SECONDS else time


def _day(news: News, time: float) -> Day:
    return news.days.setdefault(int(time // DAY_SECONDS), Day())


def _mark(news: News, time: float, oldest: float, *, heard: bool) -> None:
    if time < oldest:
        return
    day, bit = _day(news, time), 1 << minute_of(time) % DAY_MINUTES
    if heard:
        day.heard |= bit
    else:
        day.filled |= bit


def _add_facts(facts: Facts, event: Event, at: float) -> None:
    fetched = event.origin is Origin.HISTORY
    known_at = 0.0 if fetched else at  # a push takes precedence
    if name := event.labels.get("name"):
        _newest(facts, "name", [known_at, name[:MAX_NAME]])
    if event.device_type:
        _newest(facts, "type", [known_at, event.device_type[:64]])
    if project := _project(event):
        _newest(facts, "project", [known_at, project])
    if fetched:
        return  # else a missed event would raise or clear an incident
    if event.type == "connectionStatus" and isinstance(state := event.data.get("connection"), str):
        _newest(facts, "connection", [at, state[:64]])
    if event.type == "networkStatus":
        for connector in _connectors(event.data):
            _newest(facts, f"via:{connector}", [at])


def _connectors(data: Mapping[str, Any]) -> Iterable[str]:
    found = data.get("cloudConnectors")
    for connector in found if isinstance(found, list) else ():
        name = connector.get("id") if isinstance(connector, dict) else None
        if isinstance(name, str) and DEVICE_ID.fullmatch(name):
            yield name


def _newest(facts: Facts, name: str, value: list[Any]) -> None:
    """Set a fact, unless it has a newer value; of two values with the same time, the larger one wins."""
    if name not in facts or facts[name] < value:
        facts[name] = value


def merge_facts(known: Facts, new: Facts) -> Facts:
    """The newest value of each fact, with only those cloud connectors that heard the sensor last."""
    merged = dict(known)
    for name, value in new.items():
        _newest(merged, name, value)
    connectors = [name for name in merged if name.startswith("via:")]
    for name in sorted(connectors, key=lambda name: (merged[name], name))[:-CONNECTORS]:
        del merged[name]
    return merged


def only_connector(facts: Facts) -> str | None:
    """The only cloud connector that hears the sensor; None if there are several, or none is known."""
    heard = {name: value[0] for name, value in facts.items() if name.startswith("via:")}
    newest = max(heard.values(), default=0.0)
    recent = [name for name, time in heard.items() if time >= newest - ONLY_SECONDS]
    return recent[0].removeprefix("via:") if len(recent) == 1 else None


def offline_since(facts: Facts, last_heard: float | None) -> float | None:
    """Since when DT reports the device as offline; None if it does not, or if the device was heard later."""
    time, state = facts.get("connection", [0.0, ""])
    return time if state == "OFFLINE" and (last_heard is None or last_heard <= time) else None


def least(a: float | None, b: float | None) -> float | None:
    return _chosen(min, a, b)


def greatest(a: float | None, b: float | None) -> float | None:
    return _chosen(max, a, b)


def _chosen(choose: Callable[..., float], *values: float | None) -> float | None:
    return choose((value for value in values if value is not None), default=None)
