"""Events with ids, data and labels of a test's choice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from receiver.event import Event

NOW = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)


def event(
    event_id: str,
    type: str = "touch",
    data: Mapping[str, Any] | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    device: str | None = "d1",
    project: str | None = "oslo",
    received_at: datetime | None = None,
) -> Event:
    """An event that occurred at 2026-03-14T11:59:00.5Z; received now, if nothing else is given."""
    payload = {
        "event": {
            "eventId": event_id,
            "eventType": type,
            "targetName": "projects/unknown",
            "timestamp": "2026-03-14T11:59:00.5Z",
            "data": {type: data or {}},
        },
        "labels": labels,
        "metadata": {"deviceId": device, "projectId": project},
    }
    return Event.from_body(json.dumps(payload).encode(), received_at or datetime.now(UTC))


def temperature(event_id: str, *values: float, minute: int = 0, **more: Any) -> Event:
    """An event with a sample for each value, taken a minute apart, the first of them `minute` after 11:00."""
    samples = [
        {"value": value, "sampleTime": f"2026-03-14T11:{number:02}:00Z"} for number, value in enumerate(values, minute)
    ]
    return event(event_id, "temperature", {"value": values[0], "samples": samples}, **more)


def humidity(event_id: str, *samples: tuple[float, float]) -> Event:
    """An event with a sample for each pair of temperature and relative humidity, without a time."""
    return event(
        event_id,
        "humidity",
        {"samples": [{"temperature": celsius, "relativeHumidity": percent} for celsius, percent in samples]},
    )
