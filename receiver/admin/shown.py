"""How all that operators are shown looks: times, the sensor of an event, and how many rows there are at most."""

from __future__ import annotations

from datetime import UTC, datetime

from receiver.errors import NotAnEvent
from receiver.event import Event
from receiver.journal import StoredEvent
from receiver.validation import in_one_unit

MAX_LISTED = 1000
"""How many events, dead letters or quarantined pushes are listed: more than anyone reads. Retries reach all of them."""


def ago(time: datetime) -> str:
    """How long ago that was, for people: `5 min ago`."""
    return f"{in_one_unit((datetime.now(UTC) - time).total_seconds())} ago"


def to_time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def time_or_none(seconds: float | None) -> datetime | None:
    return None if seconds is None else to_time(seconds)


def sensor_and_type(event: Event | None) -> tuple[str | None, str | None, str | None]:
    """The id and the name of an event's device, and its type."""
    return (None, None, None) if event is None else (event.device_id, event.labels.get("name"), event.type)


def decoded(stored: StoredEvent) -> Event | None:
    """An event of the journal; None if it cannot be decoded any more."""
    try:
        return stored.decode()
    except NotAnEvent:
        return None
