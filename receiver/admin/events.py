"""Stored events: a search for them, and what happened to one of them, sink by sink."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from receiver.admin.shown import MAX_LISTED, decoded, sensor_and_type, time_or_none, to_time
from receiver.errors import ReceiverError
from receiver.event import Event
from receiver.journal import DeliveryState, EventHistory, Records, SinkState
from receiver.settings import Settings, SinkSettings

BATCH = 1000
"""How many events are read at once, and by a replay also requeued."""

MAX_READ = 100_000
"""How many events are read for a list of them: a few seconds' work."""


@dataclass(frozen=True)
class StateAtSink:
    """The state of a delivery of an event."""

    sink: str
    state: str

    def __str__(self) -> str:
        return f"{self.sink} {self.state}"


@dataclass(frozen=True)
class EventRow:
    """A stored event, as it is shown."""

    event_id: str
    received_at: datetime
    occurred_at: datetime | None
    device_id: str | None
    device_name: str | None
    event_type: str | None
    deliveries: tuple[StateAtSink, ...]


@dataclass(frozen=True)
class DeliveryRow:
    """The delivery of an event to a sink, as it is shown: `state` says why where there is none."""

    sink: str
    state: str
    attempts: int
    last_attempt_at: datetime | None
    reason: str | None
    next_attempt_at: datetime | None


@dataclass(frozen=True)
class Explanation:
    """What happened to an event, sink by sink."""

    event: Event
    deliveries: tuple[DeliveryRow, ...]


def find_events(
    records: Records,
    since: datetime,
    until: datetime,
    *,
    sensor: str | None = None,
    types: Sequence[str] = (),
    state: str | None = None,
    limit: int = MAX_LISTED,
) -> tuple[list[EventRow], datetime | None]:
    """The newest events received in [since, until): of one sensor, by its device id or name, of these types, and with
    a delivery in this state, if any is given.

    The journal is not indexed by what is in events, so at most MAX_READ events are read. If that ends the search, the
    second value is the time up to which it went.
    """
    rows: list[EventRow] = []
    read, before = 0, None
    while found := records.newest(until.timestamp(), state, before, min(BATCH, MAX_READ - read)):
        recent = [history for history in found if history.event.received_at >= since.timestamp()]
        for history in recent:
            event = decoded(history.event)
            if is_wanted(event, sensor, types):
                rows.append(event_row(history, event))
                if len(rows) == limit:
                    return rows, None
        if not recent:  # times hardly ever decrease while keys grow
            return rows, None
        read, before = read + len(found), found[-1].event.key
        if read >= MAX_READ:
            return rows, to_time(found[-1].event.received_at)
    return rows, None


def newest_events(
    records: Records, until: float, devices: Collection[str], limit: int, most_read: int, before: int | None = None
) -> tuple[list[EventRow], int | None]:
    """The newest events received before `until`, of these sensors by their device ids, or of all if none is named.

    At most `most_read` events are read, below the key `before` if it is given. The second value is the key below which
    there may be more.
    """
    if devices:
        found, following = records.mentioning([each.encode() for each in devices], until, before, limit, most_read)
    else:
        found = records.newest(until, None, before, limit + 1)
        found, following = found[:limit], found[limit - 1].event.key if len(found) > limit else None
    rows = [(history, decoded(history.event)) for history in found]
    return [
        event_row(history, event)
        for history, event in rows
        if not devices or (event is not None and event.device_id in devices)
    ], following


def is_wanted(event: Event | None, sensor: str | None, types: Sequence[str]) -> bool:
    if event is None:
        return sensor is None and not types
    names = (event.device_id or "", event.labels.get("name", "").casefold())
    return (sensor is None or sensor in names or sensor.casefold() in names) and (not types or event.type in types)


def event_row(history: EventHistory, event: Event | None) -> EventRow:
    return EventRow(
        history.event.id,
        to_time(history.event.received_at),
        None if event is None else event.occurred_at,
        *sensor_and_type(event),
        tuple(StateAtSink(delivery.sink, delivery.state) for delivery in history.deliveries),
    )


def explain(records: Records, settings: Settings, event_id: str) -> Explanation:
    """What happened to an event, sink by sink. Raises ReceiverError if it is not in the journal."""
    history = require_stored(records, event_id)
    event = history.event.decode()
    states = records.sink_states()
    rows = [delivery_row(delivery, states.get(delivery.sink)) for delivery in history.deliveries]
    routed_to = {delivery.sink for delivery in history.deliveries}
    for sink in settings.enabled_sinks:
        if sink.name not in routed_to:
            state = not_routed(sink, event) if history.routed else "not routed yet"
            rows.append(DeliveryRow(sink.name, state, 0, None, None, None))
    return Explanation(event, tuple(sorted(rows, key=lambda row: row.sink)))


def require_stored(records: Records, event_id: str) -> EventHistory:
    """What happened to an event. Raises ReceiverError if it is not in the journal."""
    history = records.history(event_id)
    if history is None:
        raise ReceiverError(
            f"event {event_id} is not in the journal: it was never received, or was delivered and then removed after "
            "[journal] retention_days"
        )
    return history


def not_routed(sink: SinkSettings, event: Event) -> str:
    """Why an event was not routed to a sink."""
    if not sink.filter_is_valid:
        return "not routed yet: the filter of the sink is invalid"
    if misses := sink.common.filter.misses(event):
        return f"not routed: filter {', '.join(misses)}"
    return "not routed: the sink was added later, or its dead letter was deleted; `replay` delivers it"


def delivery_row(delivery: DeliveryState, state: SinkState | None) -> DeliveryRow:
    """A delivery with its next attempt, which is not before the end of the sink's pause: that of a sink that could not
    be built ends at a start whose time is unknown."""
    due = delivery.due
    if due is not None and state is not None and state.pauses:
        due = max(due, state.paused_until) if state.paused_until else None
    return DeliveryRow(
        delivery.sink,
        delivery.state,
        delivery.attempts,
        time_or_none(delivery.settled_at),
        delivery.reason or None,
        time_or_none(due),
    )
