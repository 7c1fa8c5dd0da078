"""Simulated sensors: events of every type, signed and pushed as DT does it.

Used by `send`, `demo`, tests and benchmarks. The devices are emulated: their ids have 23 characters and begin with emu.
"""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import urllib3

from receiver.errors import ReceiverError
from receiver.event import TYPES, rfc3339
from receiver.signature import sign

PROJECT = "emuproject0000000000"
ALPHABET = "0123456789abcdefghijklmnopqrstuv"
RESPONSE_SECONDS = 10.0
SAMPLE_INTERVAL = timedelta(minutes=1)

Data = dict[str, Any]


@dataclass(frozen=True)
class PushResponse:
    """The response to a push. `status` is 0 if there was none; `text` is then the reason."""

    event_id: str
    event_type: str
    status: int
    text: str


class Simulator:
    """Generates events. The same `seed` gives the same events, including their ids, for the same times.

    The devices are named after their event types, or all of them `name`.
    """

    def __init__(self, seed: int | None = None, name: str | None = None) -> None:
        self._random = random.Random(seed)
        self._label = name
        self._devices: dict[str, str] = {}

    def body(self, event_type: str, at: datetime | None = None, samples: int = 1) -> bytes:
        """The raw body of a new event of this type, as DT would send it at `at` (aware UTC; default now)."""
        if event_type not in TYPES:
            raise ReceiverError(f"no event type {event_type!r}; there are: {', '.join(TYPES)}")
        time = at or datetime.now(UTC)
        stamp = rfc3339(time)
        data = MAKERS[event_type](self._random, time, samples)
        fields = data if event_type == "labelsChanged" else {event_type: {**data, "updateTime": stamp}}
        device = self._devices.setdefault(event_type, f"emu{self._name(20)}")
        payload = {
            "event": {
                "eventId": self._event_id(time),
                "targetName": f"projects/{PROJECT}/devices/{device}",
                "eventType": event_type,
                "data": fields,
                "timestamp": stamp,
            },
            "labels": {"name": self._label or f"Simulated {event_type}"},
            "metadata": {
                "deviceId": device,
                "projectId": PROJECT,
                "deviceType": event_type,
                "productNumber": "",
            },
        }
        return json.dumps(payload, separators=(",", ":")).encode()

    def bodies(self, types: Sequence[str] = TYPES) -> Iterator[bytes]:
        """Bodies of events of these types in turn, without end."""
        while True:
            for event_type in types:
                yield self.body(event_type)

    def _event_id(self, at: datetime) -> str:
        """Like DT's: it begins with the second of the event, so that new ids are at the end of an index."""
        second = int(at.timestamp()) % 2**32
        return base64.b32hexencode(second.to_bytes(4, "big") + self._random.randbytes(8))[:20].decode().lower()

    def _name(self, length: int) -> str:
        return "".join(self._random.choices(ALPHABET, k=length))


class Pusher:
    """Pushes bodies to a receiver over persistent connections."""

    def __init__(self, url: str, secret: str, connections: int = 1) -> None:
        self._url = url
        self._secret = secret
        self._pool = urllib3.PoolManager(maxsize=connections, retries=False, timeout=RESPONSE_SECONDS)

    def push(self, body: bytes) -> PushResponse:
        """Sign and push one event. Never raises, whatever the receiver responds, nor if there is no response."""
        event = json.loads(body)["event"]
        return PushResponse(event["eventId"], event["eventType"], *self.post(body))

    def post(self, body: bytes) -> tuple[int, str]:
        """Sign and push any body. Returns status and text as in PushResponse."""
        try:
            response = self._pool.request(
                "POST", self._url, body=body, headers=sign(body, self._secret, time.time()), redirect=False
            )
        except urllib3.exceptions.HTTPError as error:
            return 0, f"no response: {_reason(error)}"
        return response.status, response.data[:200].decode("utf-8", "replace").partition("\n")[0].strip()


def _reason(error: urllib3.exceptions.HTTPError) -> str:
    """What the system says, such as "Connection refused", or else the name of the exception."""
    return getattr(error.__cause__, "strerror", None) or type(error).__name__


def _temperature(random: random.Random, time: datetime, samples: int) -> Data:
    sampled = [
        {
            "value": round(random.uniform(-25, 30), 2),
            "sampleTime": rfc3339(time - n * SAMPLE_INTERVAL),
        }
        for n in range(samples)
    ]
    return {"value": sampled[0]["value"], "samples": sampled, "isBackfilled": False}


def _humidity(random: random.Random, time: datetime, samples: int) -> Data:
    sampled = [
        {
            "temperature": round(random.uniform(15, 25), 2),
            "relativeHumidity": round(random.uniform(20, 80), 1),
            "sampleTime": rfc3339(time - n * SAMPLE_INTERVAL),
        }
        for n in range(samples)
    ]
    newest = {name: value for name, value in sampled[0].items() if name != "sampleTime"}
    return {**newest, "samples": sampled, "isBackfilled": False}


def _network(random: random.Random, time: datetime, samples: int) -> Data:
    strength, rssi = random.randint(10, 100), random.randint(-110, -40)
    cloud = {"id": f"emu{random.randrange(10**12)}", "signalStrength": strength, "rssi": rssi}
    return {
        "signalStrength": strength,
        "rssi": rssi,
        "transmissionMode": "LOW_POWER_STANDARD_MODE",
        "cloudConnectors": [cloud],
    }


def _state(name: str, *states: str) -> Callable[[random.Random, datetime, int], Data]:
    return lambda random, time, samples: {name: random.choice(states)}


def _number(name: str, low: int, high: int) -> Callable[[random.Random, datetime, int], Data]:
    return lambda random, time, samples: {name: random.randint(low, high)}


MAKERS: dict[str, Callable[[random.Random, datetime, int], Data]] = {
    "touch": lambda random, time, samples: {},
    "temperature": _temperature,
    "humidity": _humidity,
    "objectPresent": _state("state", "PRESENT", "NOT_PRESENT"),
    "waterPresent": _state("state", "PRESENT", "NOT_PRESENT"),
    "objectPresentCount": _number("total", 0, 5000),
    "touchCount": _number("total", 0, 5000),
    "co2": _number("ppm", 400, 2000),
    "pressure": _number("pascal", 98_000, 104_000),
    "motion": _state("state", "MOTION_DETECTED", "NO_MOTION_DETECTED"),
    "deskOccupancy": lambda random, time, samples: {
        "state": random.choice(["OCCUPIED", "NOT_OCCUPIED"]),
        "remarks": [],
    },
    "contact": _state("state", "OPEN", "CLOSED"),
    "probeWireStatus": _state("state", "INVALID_WIRE_CONFIGURATION", "TWO_WIRE", "THREE_WIRE", "FOUR_WIRE"),
    "networkStatus": _network,
    "batteryStatus": _number("percentage", 1, 100),
    "labelsChanged": lambda random, time, samples: {"added": {"room": "12"}, "modified": {}, "removed": ["old"]},
    "connectionStatus": lambda random, time, samples: {
        "connection": random.choice(["ETHERNET", "CELLULAR", "OFFLINE"]),
        "available": ["ETHERNET", "CELLULAR"],
    },
    "ethernetStatus": lambda random, time, samples: {
        "macAddress": "f0:b5:b7:00:0a:08",
        "ipAddress": "10.0.0.1",
        "errors": [],
    },
    "cellularStatus": lambda random, time, samples: {"signalStrength": random.randint(10, 100), "errors": []},
}
