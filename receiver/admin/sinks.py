"""Sinks: whether the receiver runs and how each sink does, the end of a pause, and the removal of a sink."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from receiver.admin.shown import ago, time_or_none
from receiver.errors import ReceiverError
from receiver.health import dispatcher_warnings, is_alive
from receiver.journal import Records, SinkCounts, SinkState
from receiver.settings import Settings, SinkSettings
from receiver.validation import in_one_unit, nearest

RECENT = timedelta(days=1)
"""How long a failure is shown that is over."""


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
    """Lines for each sink that is paused, or whose last attempt failed, or that failed in the last day."""
    lines = []
    for row in rows:
        if row.pause_reason:
            lines.append(f"{row.sink} is paused: {row.pause_reason}")
            if row.paused_until and row.configured == "enabled":
                wait = in_one_unit((row.paused_until - datetime.now(UTC)).total_seconds())
                lines.append(
                    f"{row.sink} is probed again in {wait}; `python -m receiver sinks resume {row.sink}` probes it now"
                )
        elif row.last_failure_at:
            is_over = row.last_success_at is not None and row.last_success_at >= row.last_failure_at
            if not is_over:
                lines.append(f"last failure of {row.sink}, {ago(row.last_failure_at)}: {row.last_failure_reason}")
            elif datetime.now(UTC) - row.last_failure_at < RECENT:
                when = ago(row.last_failure_at)
                lines.append(f"{row.sink} works again; its last failure was {when}: {row.last_failure_reason}")
    return lines


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
