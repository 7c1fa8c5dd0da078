"""How quantities, states and causes are shown: names, units, and which of them ask for attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from receiver.sensors.shown import LatestValue


@dataclass(frozen=True)
class Quantity:
    """How a quantity is shown. One that is a state has the words for off and on instead of a unit."""

    title: str
    unit: str = ""
    states: tuple[str, str] | None = None
    decimals: int = 0


QUANTITIES: Mapping[str, Quantity] = {
    "temperature": Quantity("Temperature", "°C", decimals=1),
    "relative_humidity": Quantity("Relative humidity", "%", decimals=1),
    "co2": Quantity("CO₂", "ppm"),
    "pressure": Quantity("Pressure", "Pa"),
    "water_present": Quantity("Water", states=("dry", "water")),
    "open": Quantity("Contact", states=("closed", "open")),
    "motion": Quantity("Motion", states=("no motion", "motion")),
    "occupied": Quantity("Desk", states=("free", "occupied")),
    "object_present": Quantity("Object", states=("absent", "present")),
    "count": Quantity("Count"),
    "touch": Quantity("Touch", states=("not touched", "touched")),
    "online": Quantity("Connection", states=("offline", "online")),
    "battery": Quantity("Battery", "%"),
    "signal_strength": Quantity("Signal strength", "%"),
    "rssi": Quantity("RSSI", "dBm"),
}
"""In the order in which they are shown: what a sensor measures before what concerns itself."""

OWN = frozenset(("battery", "signal_strength", "rssi", "online"))
"""What concerns the sensor itself, and not what it measures."""

MOODS: Mapping[str, str] = {
    "ok": "good",
    "learning": "idle",
    "silent": "bad",
    "offline": "bad",
    "unstable": "warn",
    "snoozed": "idle",
    "retired": "idle",
    "delivered": "good",
    "pending": "idle",
    "dead": "bad",
    "paused": "warn",
    "enabled": "good",
    "disabled": "idle",
    "removed": "idle",
    "open": "bad",
    "closed": "idle",
    "receiver": "warn",
    "sensor_memory": "idle",
    "lost": "bad",
}
"""The colour of each state: `good`, `warn`, `bad` or `idle`. It is shown together with the word."""


def quantity(name: str) -> Quantity:
    return QUANTITIES.get(name) or Quantity(name)


def mood(state: str) -> str:
    return MOODS.get(state, "idle")


def up_to(count: int, most: int) -> str:
    """A number that was counted up to `most` and one more."""
    return f"more than {most:,}" if count > most else f"{count:,}"


def value(name: str, number: float) -> str:
    """A value with its unit, or the word for a state."""
    known = quantity(name)
    if known.states is not None:
        return known.states[number > 0]
    return f"{number:z,.{known.decimals}f} {known.unit}".rstrip()


def in_order(names: Sequence[str]) -> list[str]:
    """Names of quantities in the order in which they are shown."""
    order = list(QUANTITIES)
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def main_quantity(latest: Mapping[str, LatestValue]) -> str | None:
    """What a sensor measures: of several quantities the first one, and none that concerns itself."""
    return next((name for name in in_order(list(latest)) if name not in OWN), None)
