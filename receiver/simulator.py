"""Simulated sensors: events of every type, signed and pushed as DT does it.

Used by `send`, `demo`, tests and benchmarks. The devices are emulated: their ids have 23 characters and begin with emu.
"""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import urllib3

from receiver.errors import ReceiverError
from receiver.event import SIMULATED_PROJECT, TYPES, rfc3339
from receiver.signature import sign

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

    They come from this project and this sensor, by default from one sensor for each type, with these labels and the
    label `name`, and have this value, by default a random one.
    """

    def __init__(
        self,
        seed: int | None = None,
        *,
        project: str = SIMULATED_PROJECT,
        sensor: str | None = None,
        labels: Mapping[str, str] = MappingProxyType({}),
        value: str | None = None,
    ) -> None:
        self._seed = seed
        self._random = random.Random(seed)
        self._project = project
        self._sensor = sensor
        self._labels = labels
        self._value = value

    def body(self, event_type: str, at: datetime | None = None, samples: int = 1) -> bytes:
        """The raw body of a new event of this type, as DT would send it at `at` (aware UTC; default now).

        Raises ReceiverError for an unknown type, and for a value that events of this type cannot have.
        """
        if event_type not in TYPES:
            raise ReceiverError(f"no event type {event_type!r}; there are: {', '.join(TYPES)}")
        time = at or datetime.now(UTC)
        stamp = rfc3339(time)
        data = MAKERS[event_type](self._random, time, samples)
        if self._value is not None:
            set_value(event_type, data, self._value)
        fields = data if event_type == "labelsChanged" else {event_type: {**data, "updateTime": stamp}}
        device = self._sensor or device_id(self._seed, event_type)
        payload = {
            "event": {
                "eventId": self._event_id(time),
                "targetName": f"projects/{self._project}/devices/{device}",
                "eventType": event_type,
                "data": fields,
                "timestamp": stamp,
            },
            "labels": {"name": f"Simulated {event_type}", **self._labels},
            "metadata": {
                "deviceId": device,
                "projectId": self._project,
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


def device_id(seed: int | None, event_type: str) -> str:
    """The simulated sensor of a type: the same one each time, since the registry expects every sensor it has heard."""
    return "emu" + "".join(random.Random(f"{seed} {event_type}").choices(ALPHABET, k=20))


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

    def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Push any body, signed unless headers are given. Returns status and text as in PushResponse."""
        headers = sign(body, self._secret, time.time()) if headers is None else headers
        try:
            response = self._pool.request("POST", self._url, body=body, headers=headers, redirect=False)
        except urllib3.exceptions.HTTPError as error:
            return 0, _reason(error)
        return response.status, response.data[:200].decode("utf-8", "replace").partition("\n")[0].strip()


def _reason(error: urllib3.exceptions.HTTPError) -> str:
    """What the system says, such as "connection refused", or else the name of the exception."""
    said: str | None = getattr(error.__cause__, "strerror", None)
    return f"{said[0].lower()}{said[1:]}" if said else f"no response ({type(error).__name__})"


def set_value(event_type: str, data: Data, value: str) -> None:
    """Replace the value of an event by a number or by the name of a state. Raises ReceiverError if it has no such."""
    if states := STATES.get(event_type):
        if value not in states:
            raise ReceiverError(f"the value of {event_type} is one of {', '.join(states)}")
        data[STATE_FIELDS.get(event_type, "state")] = value
    elif field := NUMBER_FIELDS.get(event_type):
        try:
            number = float(value) if "." in value else int(value)
        except ValueError:
            raise ReceiverError(f"the value of {event_type} is a number") from None
        for sample in (data, *data.get("samples", ())):
            sample[field] = number
    else:
        raise ReceiverError(f"events of type {event_type} have no value")


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


def _state(event_type: str) -> Callable[[random.Random, datetime, int], Data]:
    return lambda random, time, samples: {"state": random.choice(STATES[event_type])}


def _number(event_type: str, low: int, high: int) -> Callable[[random.Random, datetime, int], Data]:
    return lambda random, time, samples: {NUMBER_FIELDS[event_type]: random.randint(low, high)}


STATES = {
    "objectPresent": ("PRESENT", "NOT_PRESENT"),
    "waterPresent": ("PRESENT", "NOT_PRESENT"),
    "motion": ("MOTION_DETECTED", "NO_MOTION_DETECTED"),
    "deskOccupancy": ("OCCUPIED", "NOT_OCCUPIED"),
    "contact": ("OPEN", "CLOSED"),
    "probeWireStatus": ("INVALID_WIRE_CONFIGURATION", "TWO_WIRE", "THREE_WIRE", "FOUR_WIRE"),
    "connectionStatus": ("ETHERNET", "CELLULAR", "OFFLINE"),
}
STATE_FIELDS = {"connectionStatus": "connection"}
"""The field of a state, where it is not `state`."""

NUMBER_FIELDS = {
    "temperature": "value",
    "humidity": "relativeHumidity",
    "objectPresentCount": "total",
    "touchCount": "total",
    "co2": "ppm",
    "pressure": "pascal",
    "networkStatus": "signalStrength",
    "batteryStatus": "percentage",
    "cellularStatus": "signalStrength",
}
MAKERS: dict[str, Callable[[random.Random, datetime, int], Data]] = {
    "touch": lambda random, time, samples: {},
    "temperature": _temperature,
    "humidity": _humidity,
    "objectPresent": _state("objectPresent"),
    "waterPresent": _state("waterPresent"),
    "objectPresentCount": _number("objectPresentCount", 0, 5000),
    "touchCount": _number("touchCount", 0, 5000),
    "co2": _number("co2", 400, 2000),
    "pressure": _number("pressure", 98_000, 104_000),
    "motion": _state("motion"),
    "deskOccupancy": lambda random, time, samples: {
        "state": random.choice(STATES["deskOccupancy"]),
        "remarks": [],
    },
    "contact": _state("contact"),
    "probeWireStatus": _state("probeWireStatus"),
    "networkStatus": _network,
    "batteryStatus": _number("batteryStatus", 1, 100),
    "labelsChanged": lambda random, time, samples: {"added": {"room": "12"}, "modified": {}, "removed": ["old"]},
    "connectionStatus": lambda random, time, samples: {
        "connection": random.choice(["ETHERNET", "CELLULAR"]),  # OFFLINE opens an incident: only with `value`
        "available": ["ETHERNET", "CELLULAR"],
    },
    "ethernetStatus": lambda random, time, samples: {
        "macAddress": "f0:b5:b7:00:0a:08",
        "ipAddress": "10.0.0.1",
        "errors": [],
    },
    "cellularStatus": lambda random, time, samples: {"signalStrength": random.randint(10, 100), "errors": []},
}
