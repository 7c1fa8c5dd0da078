"""The sensors of `demo --console`: a small fleet with a month of history, of which one has fallen silent.

Values follow the hours of the day, so that plots look like those of real sensors.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from receiver.event import SIMULATED_PROJECT, Event, rfc3339
from receiver.sensors.registry import Registry

CONNECTORS = ("emuccon00000000000000001", "emuccon00000000000000002")
FULL_DAYS = 8
"""For so long there is a heartbeat every 15 minutes; before that, one every hour."""

DAYS = 30
HEARTBEAT_MINUTES = 15
SILENT = "Freezer 1"
SILENT_HOURS = 2.0
GAP = ("Cold room 2", 52.0, 46.5)
"""A sensor that was not heard from so many hours ago to so many."""

OUTAGE = (75.0, 74.2)
"""When nothing was heard at all, in hours ago."""

FOLDED_AT_ONCE = 2000

Data = Mapping[str, Any]
Make = Callable[[datetime, random.Random], Iterator[tuple[str, Data]]]


@dataclass(frozen=True)
class Sensor:
    """A simulated sensor; `make` gives the type and the data of its events at the time of a heartbeat."""

    id: str
    name: str
    type: str
    make: Make

    def bodies(self, at: datetime, chance: random.Random) -> Iterator[bytes]:
        """What it sends with a heartbeat, as DT would push it; once a day, the state of its battery."""
        battery = ("batteryStatus", {"percentage": 99 - int(self.id[-2:])})
        is_daily = at.hour == 6 and at.minute < HEARTBEAT_MINUTES
        for event_type, data in itertools.chain(self.make(at, chance), [battery] if is_daily else ()):
            stamp = rfc3339(at)
            payload = {
                "event": {
                    "eventId": f"{chance.getrandbits(100):020x}"[:20],
                    "targetName": f"projects/{SIMULATED_PROJECT}/devices/{self.id}",
                    "eventType": event_type,
                    "data": {event_type: {**data, "updateTime": stamp}},
                    "timestamp": stamp,
                },
                "labels": {"name": self.name},
                "metadata": {
                    "deviceId": self.id,
                    "projectId": SIMULATED_PROJECT,
                    "deviceType": self.type,
                    "productNumber": "",
                },
            }
            yield json.dumps(payload, separators=(",", ":")).encode()


def fleet() -> list[Sensor]:
    made: list[tuple[str, str, Make]] = [
        *((f"Freezer {n}", "temperature", temperature(-21 + n, 0.8)) for n in range(1, 4)),
        *((f"Cold room {n}", "temperature", temperature(2.5 + n / 2, 0.6)) for n in range(1, 4)),
        ("Server room", "humidity", climate(23, 38)),
        ("Archive", "humidity", climate(19, 45)),
        ("Meeting room Oslo", "co2", air),
        ("Meeting room Bergen", "co2", air),
        ("Main entrance", "contact", state("contact", "OPEN", "CLOSED", 0.5)),
        ("Loading dock", "contact", state("contact", "OPEN", "CLOSED", 0.3)),
        ("Corridor", "motion", state("motion", "MOTION_DETECTED", "NO_MOTION_DETECTED", 0.7)),
        ("Boiler room floor", "waterDetector", state("waterPresent", "PRESENT", "NOT_PRESENT", 0.0)),
        *((f"Desk {n}", "deskOccupancy", state("deskOccupancy", "OCCUPIED", "NOT_OCCUPIED", 0.6)) for n in range(1, 4)),
    ]
    return [Sensor(f"emudemo{n:016d}", *each) for n, each in enumerate(made)]


def day_curve(at: datetime) -> float:
    """From -1 at four in the morning to 1 at four in the afternoon."""
    return -math.cos((at.hour + at.minute / 60 - 4) / 24 * 2 * math.pi)


def is_working_time(at: datetime) -> bool:
    return 7 <= at.hour < 18


def network(at: datetime, chance: random.Random) -> Iterator[tuple[str, Data]]:
    """Once an hour and with every fourth heartbeat."""
    strength = round(min(100.0, max(5.0, chance.gauss(62, 5))))
    cloud = [{"id": each, "signalStrength": strength, "rssi": strength - 130} for each in CONNECTORS]
    yield "networkStatus", {"signalStrength": strength, "rssi": strength - 130, "cloudConnectors": cloud}


def temperature(mean: float, swing: float) -> Make:
    def make(at: datetime, chance: random.Random) -> Iterator[tuple[str, Data]]:
        door = 2.5 if is_working_time(at) and chance.random() < 0.04 else 0.0
        value = mean + swing * day_curve(at) + door + chance.gauss(0, 0.12)
        yield "temperature", {"value": round(value, 2), "isBackfilled": False}
        if at.minute < HEARTBEAT_MINUTES:
            yield from network(at, chance)

    return make


def climate(warmth: float, humidity: float) -> Make:
    def make(at: datetime, chance: random.Random) -> Iterator[tuple[str, Data]]:
        yield (
            "humidity",
            {
                "temperature": round(warmth + 1.4 * day_curve(at) + chance.gauss(0, 0.1), 2),
                "relativeHumidity": round(humidity - 4 * day_curve(at) + chance.gauss(0, 0.5), 1),
            },
        )
        if at.minute < HEARTBEAT_MINUTES:
            yield from network(at, chance)

    return make


def air(at: datetime, chance: random.Random) -> Iterator[tuple[str, Data]]:
    people = max(0.0, day_curve(at)) * (600 if is_working_time(at) else 40)
    yield "co2", {"ppm": round(430 + people + chance.gauss(0, 25))}
    if at.minute < HEARTBEAT_MINUTES:
        yield from network(at, chance)


def state(event_type: str, on: str, off: str, often: float) -> Make:
    """A state that is on with this probability in working time, and sends a heartbeat all the time."""

    def make(at: datetime, chance: random.Random) -> Iterator[tuple[str, Data]]:
        yield from network(at, chance)
        if is_working_time(at) or at.minute < HEARTBEAT_MINUTES:
            yield event_type, {"state": on if is_working_time(at) and chance.random() < often else off}

    return make


def fold_history(registry: Registry, now: datetime) -> None:
    """Let the registry know the last month of the fleet, as if the receiver had run all the time."""
    events: list[Event] = []
    for sensor in fleet():
        for at, body in history(sensor, now):
            events.append(Event.from_body(body, at + timedelta(seconds=1)))
            if len(events) == FOLDED_AT_ONCE:
                registry.fold(events)
                events.clear()
    registry.fold(events)


def history(sensor: Sensor, now: datetime) -> Iterator[tuple[datetime, bytes]]:
    """Its heartbeats up to now, each with what it sends; the first of each hour is in the first quarter of it."""
    chance = random.Random(sensor.id)
    hour = now.replace(minute=0, second=0) + timedelta(minutes=chance.uniform(0.5, HEARTBEAT_MINUTES - 0.5))
    dense = FULL_DAYS * 1440
    for minutes in [*range(DAYS * 1440, dense, -60), *range(dense, -60, -HEARTBEAT_MINUTES)]:
        at = hour - timedelta(minutes=minutes - chance.gauss(0, 0.05))
        if at <= now and is_heard(sensor, (now - at).total_seconds() / 3600):
            yield from ((at, body) for body in sensor.bodies(at, chance))


def is_heard(sensor: Sensor, hours_ago: float) -> bool:
    name, gap_start, gap_end = GAP
    return not (
        (sensor.name == SILENT and hours_ago < SILENT_HOURS)
        or (sensor.name == name and gap_end < hours_ago < gap_start)
        or OUTAGE[1] < hours_ago < OUTAGE[0]
    )


def live() -> Iterator[bytes]:
    """Bodies of what the fleet sends now, without end; nothing of the sensor that is silent."""
    chance = random.Random()
    heard = [sensor for sensor in fleet() if sensor.name != SILENT]
    for sensor in itertools.chain(heard, iter(lambda: chance.choice(heard), None)):
        yield from sensor.bodies(datetime.now(UTC), chance)
