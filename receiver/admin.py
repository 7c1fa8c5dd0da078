"""What operators inspect and change; each function is behind a command.

All of them use the journal's records, whether the receiver runs or not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from receiver.errors import NotAnEvent, ReceiverError
from receiver.event import TYPES, Event, event_id
from receiver.health import dispatcher_warnings, is_alive
from receiver.journal import (
    DeadLetter,
    DeadLetterGroup,
    DeliveryState,
    EventHistory,
    QuarantinedPush,
    Records,
    SinkCounts,
    SinkState,
    StoredEvent,
)
from receiver.settings import ORGANIZATION_ID, Filter, Settings, SinkSettings
from receiver.validation import counted, in_one_unit, nearest

BATCH = 1000
"""How many events of a replay are read and requeued at once."""

QUARANTINED_AT_ONCE = 100
"""How many quarantined pushes are read at once, each of up to 256 KiB."""

MAX_LISTED = 1000
"""How many dead letters and quarantined pushes are listed: more than anyone reads. Retries reach all of them."""

MAX_READ = 100_000
"""How many events are read for a list of them: a few seconds' work."""

RECENT = timedelta(days=1)
"""How long a failure is shown that is over."""

SAFE_TO_REMOVE_SECONDS = 24 * 3600
"""DT retries a push for 12 hours; a secret without which pushes were verified for twice as long is not needed."""


@dataclass(frozen=True)
class SinkStatus:
    """The state of one sink. `configured` is "enabled", "disabled" or "removed"; times are aware UTC."""

    sink: str
    configured: str
    pending: int
    oldest_pending_age_seconds: float | None
    delivered: int
    dead: int
    last_success_at: datetime | None
    last_failure_at: datetime | None
    last_failure_reason: str | None
    paused_until: datetime | None
    pause_reason: str | None


@dataclass(frozen=True)
class Status:
    """Whether the receiver runs, and the state of its sinks; times are aware UTC.

    `running` says that a dispatcher has reported recently. `last_push_at` is when a push last got 200, within seconds.
    """

    running: bool
    dispatcher_reported_at: datetime | None
    last_push_at: datetime | None
    warnings: Sequence[str]
    sinks: Sequence[SinkStatus]


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
class QuarantineRow:
    """A quarantined push, as it is shown."""

    id: str
    received_at: datetime
    bytes: int
    reason: str


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


def status(records: Records, settings: Settings) -> Status:
    """Whether the receiver runs, and the state of every sink that is configured or in the journal."""
    counts, liveness = records.counts(), records.liveness()
    return Status(
        running=is_alive(liveness),
        dispatcher_reported_at=time_or_none(liveness.at if liveness else None),
        last_push_at=time_or_none(counts.last_push_at),
        warnings=dispatcher_warnings(liveness),
        sinks=sink_statuses(records, settings, counts.sinks),
    )


def sink_statuses(records: Records, settings: Settings, counts: Mapping[str, SinkCounts]) -> list[SinkStatus]:
    states = records.sink_states()
    enabled = {sink.name: sink.common.enabled for sink in settings.all_sinks}
    rows = []
    for name in [*enabled, *sorted(counts.keys() - enabled.keys())]:
        count, state = counts.get(name, SinkCounts()), states.get(name, SinkState(name))
        oldest, paused = count.oldest_received_at, state.pauses > 0
        rows.append(
            SinkStatus(
                sink=name,
                configured={True: "enabled", False: "disabled", None: "removed"}[enabled.get(name)],
                pending=count.pending,
                oldest_pending_age_seconds=None if oldest is None else max(0.0, time.time() - oldest),
                delivered=count.delivered,
                dead=count.dead,
                last_success_at=time_or_none(count.last_success_at),
                last_failure_at=time_or_none(count.last_failure_at),
                last_failure_reason=count.last_failure_reason,
                paused_until=time_or_none(state.paused_until or None) if paused else None,
                pause_reason=state.pause_reason if paused else None,
            )
        )
    return rows


def life_signs(status: Status) -> list[str]:
    """Whether the receiver runs, and when the last push was accepted, in a line each."""
    reported, pushed = status.dispatcher_reported_at, status.last_push_at
    verb = "is" if status.running else "is not"
    since = f"a dispatcher last reported {ago(reported)}" if reported else "no dispatcher has ever reported"
    return [
        f"The receiver {verb} running: {since}.",
        f"The last push was accepted {ago(pushed)}." if pushed else "No push has been accepted yet.",
    ]


def reasons(rows: Sequence[SinkStatus]) -> list[str]:
    """A line for each sink that is paused, or whose last attempt failed, or that failed in the last day."""
    lines = []
    for row in rows:
        if row.pause_reason:
            lines.append(f"{row.sink} is paused: {row.pause_reason}")
        elif row.last_failure_at:
            is_over = row.last_success_at is not None and row.last_success_at >= row.last_failure_at
            if not is_over:
                lines.append(f"last failure of {row.sink}, {ago(row.last_failure_at)}: {row.last_failure_reason}")
            elif datetime.now(UTC) - row.last_failure_at < RECENT:
                when = ago(row.last_failure_at)
                lines.append(f"{row.sink} works again; its last failure was {when}: {row.last_failure_reason}")
    return lines


def ago(time: datetime) -> str:
    """How long ago that was, for people: `5 min ago`."""
    return f"{in_one_unit((datetime.now(UTC) - time).total_seconds())} ago"


def dead_letters(
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


def reason_row(group: DeadLetterGroup) -> ReasonRow:
    oldest, newest = to_time(group.oldest_received_at), to_time(group.newest_received_at)
    return ReasonRow(group.sink, group.reason, group.count, oldest, newest)


def events(
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
    rows: list[EventRow] = []
    names, read = [device.encode() for device in devices], 0
    while found := records.newest(until, None, before, min(BATCH, limit + 1 if not names else most_read - read)):
        for history in found:
            if len(rows) == limit:
                return rows, before
            before = history.event.key
            if not names or any(name in history.event.body for name in names):
                event = decoded(history.event)
                if not names or (event is not None and event.device_id in devices):
                    rows.append(event_row(history, event))
        read += len(found)
        if read >= most_read:
            return rows, before
    return rows, None


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


def sensor_and_type(event: Event | None) -> tuple[str | None, str | None, str | None]:
    """The id and the name of an event's device, and its type."""
    return (None, None, None) if event is None else (event.device_id, event.labels.get("name"), event.type)


def decoded(stored: StoredEvent) -> Event | None:
    """An event of the journal; None if it cannot be decoded any more."""
    try:
        return stored.decode()
    except NotAnEvent:
        return None


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


def quarantined(records: Records) -> list[QuarantineRow]:
    """The newest quarantined pushes."""
    return [quarantine_row(push) for push in records.quarantined(MAX_LISTED)]


def quarantine_row(push: QuarantinedPush) -> QuarantineRow:
    return QuarantineRow(push.id, to_time(push.received_at), len(push.body), push.reason)


def one_quarantined(records: Records, id_prefix: str) -> QuarantinedPush:
    """The quarantined push whose id begins with `id_prefix`. Raises ReceiverError unless there is exactly one."""
    found = records.find_quarantined(id_prefix)
    if len(found) != 1:
        raise ReceiverError(
            f"{len(found)} quarantined pushes have an id that begins with {id_prefix!r}; `quarantine list` shows all"
        )
    return found[0]


def retry_quarantined(records: Records, id_prefix: str | None) -> tuple[int, int]:
    """Decode quarantined pushes again: how many are events now and will be delivered, and how many are not."""
    chosen = each_quarantined(records) if id_prefix is None else [one_quarantined(records, id_prefix)]
    released = left = 0
    for push in chosen:
        try:
            name = event_id(push.body)
        except NotAnEvent:
            left += 1
        else:
            records.release(push, name)
            released += 1
    return released, left


def each_quarantined(records: Records) -> Iterator[QuarantinedPush]:
    """All quarantined pushes, newest first, of which only a few are in memory."""
    before = None
    while found := records.quarantined(QUARANTINED_AT_ONCE, before):
        yield from found
        before = (found[-1].received_at, found[-1].id)


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
    while batch := records.received(since.timestamp(), until.timestamp(), after, BATCH):
        chosen = [stored for stored in batch if passes(stored.decode(), condition, types)]
        matched += len(chosen)
        if chosen and not dry_run:
            requeued += records.requeue(sink, chosen)
        after = batch[-1].key
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


def passes(event: Event, condition: Filter, types: Sequence[str]) -> bool:
    return (not types or event.type in types) and not condition.misses(event)


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
    """A delivery with its next attempt, which is not before the end of the sink's pause."""
    due = delivery.due
    if due is not None and state is not None and state.pauses:
        due = max(due, state.paused_until)
    return DeliveryRow(
        delivery.sink,
        delivery.state,
        delivery.attempts,
        time_or_none(delivery.settled_at),
        delivery.reason or None,
        time_or_none(due),
    )


def resume(records: Records, settings: Settings, sink: str) -> str:
    """End the pause of a sink now; returns the reason why it was paused. Raises ReceiverError if that cannot help."""
    enabled_sink(settings, sink)
    state = records.sink_states().get(sink)
    if state is None or not state.pauses:
        raise ReceiverError(f"sink {sink} is not paused")
    if not state.paused_until:
        raise ReceiverError(
            f"sink {sink} could not be built when the receiver started: {state.pause_reason}; correct it and restart"
        )
    records.resume(sink)
    return state.pause_reason


def count_undelivered(records: Records, settings: Settings, sink: str) -> int:
    """How many pending and dead deliveries `remove_sink` would delete. Raises ReceiverError as that does."""
    if sink in {each.name for each in settings.enabled_sinks}:
        raise ReceiverError(f"sink {sink} is enabled in {settings.path.name}; remove it there and restart first")
    if sink not in records.sink_states():
        raise ReceiverError(f"there is no sink {sink} in the journal{nearest(sink, records.sink_states())}")
    of_sink = records.counts().sinks.get(sink, SinkCounts())
    return of_sink.pending + of_sink.dead


def remove_sink(records: Records, settings: Settings, sink: str) -> int:
    """Delete a sink that is no longer enabled, and its deliveries; returns how many of those were pending or dead."""
    count_undelivered(records, settings, sink)
    return records.remove_sink(sink)


def unknown_event_types(settings: Settings) -> list[str]:
    """A warning for each event type in a filter that DT does not document."""
    return [
        f"{settings.path.name} [sinks.{sink.name}]: filter.event_types: {line}"
        for sink in settings.sinks
        for line in undocumented(sink.common.filter.event_types or ())
    ]


def unmatchable_filters(settings: Settings) -> list[str]:
    """A problem for each condition of an enabled sink that no event can meet."""
    return [
        f"{settings.path.name} [sinks.{sink.name}]: filter.{line}"
        for sink in settings.enabled_sinks
        for line in _unmatchable(sink.common.filter)
    ]


def _unmatchable(condition: Filter) -> list[str]:
    ids = {"devices": condition.devices or (), "projects": condition.projects or ()}
    empty = [key for key, names in dict(condition).items() if names == ()]
    return [
        *(f"{key} = [] matches no event; name some, or remove it" for key in empty),
        *(
            f"{key}: {name!r} matches no event; give the id alone, {name.rpartition('/')[2]!r}"
            for key, names in ids.items()
            for name in names
            if "/" in name
        ),
    ]


def undocumented(types: Sequence[str]) -> list[str]:
    """A line for each event type that DT does not document, with the nearest one that it does."""
    return [f"DT documents no event type {name!r}{nearest(name, TYPES)}" for name in types if name not in TYPES]


def require_creatable(journal: Path) -> None:
    """Raise ReceiverError if there is no journal yet, and its folder cannot be created or written."""
    folder = next(parent for parent in journal.parents if parent.exists())
    if not folder.is_dir():
        raise ReceiverError(f"journal {journal}: {folder} is not a folder; set another [journal] path")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ReceiverError(f"journal {journal}: {folder} is not writable; make it so, or set another [journal] path")


def secrets_used(records: Records | None, settings: Settings) -> list[str]:
    """If pushes can be verified in several ways, a line for each: when it last verified one."""
    used = records.counts().secrets if records else {}
    names = [*settings.secrets, *([ORGANIZATION_ID] if settings.organizations else [])]
    former = {name: name.replace("__", "_", 1) for name in names}  # further secrets had one underscore
    last_use = {name: max(used.get(name, 0.0), used.get(former[name], 0.0)) for name in names}
    newest = max(last_use.values(), default=0.0)
    lines = []
    for name, last_at in last_use.items() if settings.organizations or len(names) > 1 else ():
        if not last_at:
            lines.append(f"{name} has not been used yet")
        elif name in settings.secrets and newest - last_at > SAFE_TO_REMOVE_SECONDS:
            lines.append(f"{name} was last used {to_time(last_at):%Y-%m-%d %H:%M} UTC; it is safe to remove")
        else:
            lines.append(f"{name} was last used {to_time(last_at):%Y-%m-%d %H:%M} UTC")
    return lines


def signing_keys(records: Records | None, settings: Settings) -> list[str]:
    """If pushes are verified by DT's own keys: for which organizations, and how old the keys are."""
    if not settings.organizations:
        return []
    from receiver.keys import StoredKeys  # DT's client library, which other commands need not load

    stored = StoredKeys.read(records, settings.issuer) if records else StoredKeys()
    fetched = "not fetched yet" if stored.fetched_at is None else f"fetched {ago(to_time(stored.fetched_at))}"
    organizations = counted(len(settings.organizations), "organization", "organizations")
    return [
        f"DT's signing keys: {len(stored.keys)}, {fetched}; for {organizations}: "
        f"{', '.join(sorted(settings.organizations))}"
    ]


def require_known(records: Records, settings: Settings, name: str) -> None:
    """Raise ReceiverError if no sink of that name is configured or in the journal."""
    names = {sink.name for sink in settings.all_sinks} | records.sink_states().keys()
    if name not in names:
        raise ReceiverError(f"there is no sink {name}{nearest(name, names)}")


def enabled_sink(settings: Settings, name: str) -> SinkSettings:
    """An enabled sink by its name. Raises ReceiverError."""
    sinks = {sink.name: sink for sink in settings.enabled_sinks}
    if name not in sinks:
        raise ReceiverError(f"no sink {name!r} is enabled in {settings.path.name}{nearest(name, sinks)}")
    return sinks[name]


def to_time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def time_or_none(seconds: float | None) -> datetime | None:
    return None if seconds is None else to_time(seconds)
