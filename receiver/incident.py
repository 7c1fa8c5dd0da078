"""Incident: one cause for which one or more sensors are silent, from its begin to its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class Cause(StrEnum):
    """What is silent."""

    PROJECT = "project"
    """Nothing is heard of a whole project: its connector is disabled, its address is wrong, its site has no power."""
    GATEWAY = "gateway"
    """Nothing is heard of the sensors that were heard only through one cloud connector, or DT says it is offline."""
    DEVICE = "device"
    """Nothing is heard of one sensor."""


@dataclass(frozen=True)
class Incident:
    """One cause for which one or more sensors are silent. Times are aware UTC.

    `sensors` are the names of the sensors by device id; a sensor without a name has its device id as its name.
    `since` is when the last of them was heard. `closed` is None until they are heard again. `reason` is one sentence.
    """

    id: int
    cause: Cause
    project_id: str | None
    sensors: Mapping[str, str] = field(repr=False)
    since: datetime
    opened: datetime
    closed: datetime | None
    reason: str
