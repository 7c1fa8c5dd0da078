"""Dead letters: lists of them by sink and reason, and their retry and removal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from receiver.admin.shown import MAX_LISTED, decoded, sensor_and_type, to_time
from receiver.admin.sinks import enabled_sink, require_known
from receiver.errors import ReceiverError
from receiver.journal import DeadLetter, DeadLetterGroup, Records, SinkCounts
from receiver.settings import Settings


@dataclass(frozen=True)
class DeadLetterRow:
    """A dead letter, as it is shown; times are aware UTC."""

    sink: str
    event_id: str
    device_id: str | None
    device_name: str | None
    event_type: str | None
    received_at: datetime
    died_at: datetime
    attempts: int
    reason: str


@dataclass(frozen=True)
class ReasonRow:
    """The dead letters of a sink that were given up for one reason, as they are shown; times are aware UTC."""

    sink: str
    reason: str
    count: int
    oldest_received_at: datetime
    newest_received_at: datetime


def list_dead_letters(
    records: Records, settings: Settings, sink: str | None, reason: str | None = None
) -> list[DeadLetterRow]:
    """The dead letters of the newest events, of one sink or of all, and of one reason or of all."""
    if sink is not None:
        require_known(records, settings, sink)
    return [dead_letter_row(dead) for dead in records.dead_letters(sink, MAX_LISTED, reason)]


def dead_letter_row(dead: DeadLetter) -> DeadLetterRow:
    return DeadLetterRow(
        dead.sink,
        dead.event.id,
        *sensor_and_type(decoded(dead.event)),
        to_time(dead.event.received_at),
        to_time(dead.died_at),
        dead.attempts,
        dead.reason,
    )


def dead_letter_reasons(
    records: Records, settings: Settings, sink: str | None, limit: int = MAX_LISTED
) -> list[ReasonRow]:
    """How many dead letters there are of each sink and reason, of one sink or of all, the largest number first."""
    if sink is not None:
        require_known(records, settings, sink)
    return [reason_row(group) for group in records.dead_letter_groups(sink, limit)]


def some_dead_letter_reasons(
    records: Records, settings: Settings, sink: str | None, limit: int, most: int
) -> list[ReasonRow]:
    """The same of the first `limit` reasons of each sink, each counted up to `most`: quick, however many there are."""
    if sink is not None:
        require_known(records, settings, sink)
    return [reason_row(group) for group in records.some_dead_letter_groups(sink, limit, most)]


def reason_row(group: DeadLetterGroup) -> ReasonRow:
    oldest, newest = to_time(group.oldest_received_at), to_time(group.newest_received_at)
    return ReasonRow(group.sink, group.reason, group.count, oldest, newest)


def count_dead_letters(
    records: Records, settings: Settings, sink: str, event_ids: Sequence[str], reason: str | None = None
) -> int:
    """How many dead letters a sink has: of those named, or of all if none is; with a `reason`, only of that one."""
    require_known(records, settings, sink)
    if not event_ids and reason is None:
        return records.counts().sinks.get(sink, SinkCounts()).dead
    if not event_ids:
        number = sum(group.count for group in records.dead_letter_groups(sink, 1, reason))
        return require_some(number, sink, event_ids, reason)
    histories = [history for name in dict.fromkeys(event_ids) if (history := records.history(name))]
    of_sink = [each for history in histories for each in history.deliveries if each.sink == sink]
    states = [each.state for each in of_sink if reason in (None, each.reason)]
    return require_some(states.count("dead"), sink, event_ids, reason)


def retry_dead_letters(
    records: Records,
    settings: Settings,
    sink: str,
    event_ids: Sequence[str],
    reason: str | None = None,
    limit: int | None = None,
) -> int:
    """Make dead letters of an enabled sink pending again: those named, or all if none is. Returns how many.

    With a `reason`, only those given up for it; with a `limit`, no more than so many, the oldest events first.
    """
    enabled_sink(settings, sink)
    changed = records.retry_dead_letters(sink, event_ids or None, reason, limit)
    return require_some(changed, sink, event_ids, reason)


def delete_dead_letters(
    records: Records,
    settings: Settings,
    sink: str,
    event_ids: Sequence[str],
    reason: str | None = None,
    limit: int | None = None,
) -> int:
    """Delete dead letters: those named, or all if none is. Returns how many. `reason` and `limit` are as above."""
    require_known(records, settings, sink)
    changed = records.delete_dead_letters(sink, event_ids or None, reason, limit)
    return require_some(changed, sink, event_ids, reason)


def require_some(changed: int, sink: str, event_ids: Sequence[str], reason: str | None = None) -> int:
    """`changed`; raises ReceiverError if some were chosen and none of them is a dead letter."""
    if not changed and event_ids:
        raise ReceiverError(f"none of these is a dead letter of sink {sink}; `dead-letters list` shows them")
    if not changed and reason is not None:
        raise ReceiverError(f"sink {sink} has no dead letter of this reason; `dead-letters reasons` shows them")
    return changed
