"""Replay: requeues past events for a sink."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from receiver.admin.events import BATCH, require_stored
from receiver.admin.shown import decoded
from receiver.admin.sinks import enabled_sink
from receiver.errors import ReceiverError
from receiver.event import Event
from receiver.journal import Records, StoredEvent
from receiver.settings import Filter, Settings, SinkSettings


def replay(
    records: Records,
    settings: Settings,
    sink: str,
    since: datetime,
    until: datetime,
    types: Sequence[str],
    dry_run: bool,
    progress: Callable[[int], object],
) -> tuple[int, int]:
    """Requeue for a sink what was received in [since, until), passes its filter and is of one of `types`, if any.

    How many events matched, and how many of them were not pending already. `progress` is called with the number of
    events that were read since the last call.
    """
    condition = valid_filter(enabled_sink(settings, sink))
    matched = requeued = after = 0
    start = since.timestamp()
    while batch := records.received(start, until.timestamp(), after, BATCH):
        chosen = [stored for stored in batch if passes(decoded(stored), condition, types)]
        matched += len(chosen)
        if chosen and not dry_run:
            requeued += records.requeue(sink, chosen)
        start, after = batch[-1].received_at, batch[-1].key
        progress(len(batch))
    return matched, requeued


def replayable(records: Records, settings: Settings, sink: str, event_id: str) -> StoredEvent:
    """An event that can be delivered to an enabled sink once more. Raises ReceiverError if it cannot."""
    condition = valid_filter(enabled_sink(settings, sink))
    history = require_stored(records, event_id)
    if not history.routed:
        raise ReceiverError(f"event {event_id} is not routed yet: it will be delivered anyway")
    if misses := condition.misses(history.event.decode()):
        raise ReceiverError(f"event {event_id} does not pass the filter of sink {sink}: {', '.join(misses)}")
    if any(each.sink == sink and each.state == "pending" for each in history.deliveries):
        raise ReceiverError(f"event {event_id} is pending at sink {sink} already")
    return history.event


def replay_event(records: Records, settings: Settings, sink: str, event_id: str) -> int:
    """Requeue one event for a sink; returns how many were not pending already. Raises ReceiverError."""
    return records.requeue(sink, [replayable(records, settings, sink, event_id)])


def valid_filter(sink: SinkSettings) -> Filter:
    """The filter of a sink. Raises ReceiverError if it is invalid."""
    if not sink.filter_is_valid:
        raise ReceiverError(f"the filter of sink {sink.name} is invalid; `check` says why")
    return sink.common.filter


def passes(event: Event | None, condition: Filter, types: Sequence[str]) -> bool:
    """Whether it is replayed; what a receiver before this one accepted and this one cannot decode is not."""
    return event is not None and (not types or event.type in types) and not condition.misses(event)
