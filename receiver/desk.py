"""What a person asks about deliveries and orders done to them; each function is a command.

All of it goes through the journal's records, beside a receiver that runs or does not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from receiver.errors import NotAnEvent, ReceiverError
from receiver.event import TYPES, Event, event_id
from receiver.journal import LastAttempt, Quarantined, Records, SinkCount, SinkState, left_behind
from receiver.options import nearest
from receiver.settings import Filter, Settings, SinkSettings

AT_ONCE = 1000
LIST_AT_MOST = 1000
SAFE_TO_REMOVE_SECONDS = 24 * 3600
"""DT repeats a push for 12 hours; a secret that was of no use for twice as long is not needed any more."""


@dataclass(frozen=True)
class SinkStatus:
    """How one sink stands. `configured` is "enabled", "disabled" or "removed"; times are aware UTC."""

    sink: str
    configured: str
    pending: int
    oldest_pending_seconds: float | None
    delivered: int
    dead: int
    last_success: datetime | None
    last_failure: datetime | None
    last_error: str | None
    paused_until: datetime | None
    paused_because: str | None


@dataclass(frozen=True)
class Letter:
    """A dead letter, for the eye; times are aware UTC."""

    sink: str
    event_id: str
    received: datetime
    died: datetime
    attempts: int
    why: str


@dataclass(frozen=True)
class Held:
    """A push in quarantine, for the eye."""

    id: str
    received: datetime
    bytes: int
    why: str


@dataclass(frozen=True)
class Route:
    """Where an event goes or does not go: `state` is that of the delivery, or why there is none."""

    sink: str
    state: str
    attempts: int
    last_at: datetime | None
    last_result: str | None
    next_try: datetime | None


@dataclass(frozen=True)
class Explanation:
    """What happened to an event, sink by sink."""

    event: Event
    routes: tuple[Route, ...]


def status(records: Records, settings: Settings) -> list[SinkStatus]:
    """Every sink that is configured or remembered."""
    counts, states = records.counts().sinks, records.states()
    enabled = {sink.name: sink.common.enabled for sink in settings.sinks}
    rows = []
    for name in [*enabled, *sorted(counts.keys() - enabled.keys())]:
        count, state = counts.get(name, SinkCount()), states.get(name, SinkState(name))
        paused = state.pauses > 0
        rows.append(
            SinkStatus(
                sink=name,
                configured={True: "enabled", False: "disabled", None: "removed"}[enabled.get(name)],
                pending=count.pending,
                oldest_pending_seconds=None if count.oldest is None else max(0.0, time.time() - count.oldest),
                delivered=count.delivered,
                dead=count.dead,
                last_success=moment(count.last_success_at),
                last_failure=moment(count.last_failure_at),
                last_error=count.last_failure,
                paused_until=moment(state.paused_until or None) if paused else None,
                paused_because=state.pause_reason if paused else None,
            )
        )
    return rows


def troubles(rows: Sequence[SinkStatus]) -> list[str]:
    """A line for each sink that is paused or has failed."""
    lines = []
    for row in rows:
        if row.paused_because:
            lines.append(f"{row.sink} is paused: {row.paused_because}")
        elif row.last_error:
            lines.append(f"{row.sink} failed last with: {row.last_error}")
    return lines


def dead_letters(records: Records, settings: Settings, sink: str | None) -> list[Letter]:
    """The latest dead letters, of one sink or of all."""
    if sink is not None:
        known(records, settings, sink)
    return [
        Letter(dead.sink, dead.event_id, at(dead.received_at), at(dead.died_at), dead.attempts, dead.why)
        for dead in records.dead_letters(sink, LIST_AT_MOST)
    ]


def retry_dead(records: Records, settings: Settings, sink: str, event_ids: Sequence[str]) -> int:
    """Owe dead letters of an enabled sink again: those named, or all when none is. How many there were."""
    enabled(settings, sink)
    return complete(records.retry_dead(sink, event_ids or None), sink, event_ids)


def drop_dead(records: Records, settings: Settings, sink: str, event_ids: Sequence[str]) -> int:
    """Forget dead letters: those named, or all when none is. How many there were."""
    known(records, settings, sink)
    return complete(records.drop_dead(sink, event_ids or None), sink, event_ids)


def complete(done: int, sink: str, event_ids: Sequence[str]) -> int:
    """`done`, or an error when nothing that was named is a dead letter."""
    if event_ids and not done:
        raise ReceiverError(f"none of these is a dead letter of sink {sink}; `dead list` shows them")
    return done


def quarantined(records: Records) -> list[Held]:
    """The latest pushes in quarantine."""
    return [Held(push.id, at(push.received_at), len(push.body), push.why) for push in records.quarantined(LIST_AT_MOST)]


def one_quarantined(records: Records, id_prefix: str) -> Quarantined:
    """The push in quarantine whose id begins so."""
    found = records.in_quarantine(id_prefix)
    if len(found) != 1:
        raise ReceiverError(f"{len(found)} pushes in quarantine have an id that begins with {id_prefix!r}; name one")
    return found[0]


def retry_quarantine(records: Records, id_prefix: str | None) -> tuple[int, int]:
    """Decode pushes in quarantine again: how many are events now and go the normal way, and how many stay."""
    chosen = (
        records.quarantined(records.counts().quarantined)
        if id_prefix is None
        else [one_quarantined(records, id_prefix)]
    )
    released = 0
    for push in chosen:
        try:
            name = event_id(push.body)
        except NotAnEvent:
            continue
        records.release(push, name)
        released += 1
    return released, len(chosen) - released


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
    """Owe a sink again what was received in [since, until) and passes its filter (and is of one of `types`, if any).

    How many events matched, and how many of them were not pending already. `progress` is told how many were looked at.
    """
    condition = enabled(settings, sink).common.filter
    matched = owed = after = 0
    while batch := records.received(since.timestamp(), until.timestamp(), after, AT_ONCE):
        chosen = [kept for kept in batch if passes(kept.decode(), condition, types)]
        matched += len(chosen)
        if chosen and not dry_run:
            owed += records.owe_again(sink, chosen)
        after = batch[-1].key
        progress(len(batch))
    return matched, owed


def passes(event: Event, condition: Filter, types: Sequence[str]) -> bool:
    return (not types or event.type in types) and not condition.misses(event)


def explain(records: Records, settings: Settings, name: str) -> Explanation:
    """What happened to an event, sink by sink. Raises ReceiverError when it is not in the journal."""
    history = records.history(name)
    if history is None:
        raise ReceiverError(f"event {name} is not in the journal: it never came, or was delivered and retired long ago")
    event = history.event.decode()
    states = records.states()
    routes = [route(attempt, states.get(attempt.sink)) for attempt in history.deliveries]
    owed = {attempt.sink for attempt in history.deliveries}
    for sink in settings.enabled_sinks:
        if sink.name not in owed:
            misses = sink.common.filter.misses(event)
            why = (
                f"not owed: filter {', '.join(misses)}"
                if misses
                else "not owed: the sink came later, or its dead letter was dropped; replay it"
            )
            routes.append(Route(sink.name, why if history.matched else "not yet matched", 0, None, None, None))
    return Explanation(event, tuple(sorted(routes, key=lambda route: route.sink)))


def route(attempt: LastAttempt, state: SinkState | None) -> Route:
    """Nothing is tried before the end of the sink's pause."""
    due = attempt.due
    if due is not None and state is not None and state.pauses:
        due = max(due, state.paused_until)
    return Route(attempt.sink, attempt.state, attempt.attempts, moment(attempt.at), attempt.why or None, moment(due))


def resume(records: Records, settings: Settings, sink: str) -> str:
    """Let a paused sink be tried again now; why it was paused."""
    enabled(settings, sink)
    state = records.states().get(sink)
    if state is None or not state.pauses:
        raise ReceiverError(f"sink {sink} is not paused")
    records.resume(sink)
    return state.pause_reason


def forget(records: Records, settings: Settings, sink: str) -> int:
    """Let go of a sink that is not enabled any more; how many deliveries went with it."""
    if sink in {each.name for each in settings.enabled_sinks}:
        raise ReceiverError(f"sink {sink} is enabled in {settings.path.name}; remove it there and restart first")
    if sink not in records.states():
        raise ReceiverError(f"the journal knows no sink {sink}{nearest(sink, records.states())}")
    return records.forget(sink)


def warnings(records: Records | None, settings: Settings) -> list[str]:
    """What is no mistake, but worth knowing."""
    found = [*settings.weak(), *settings.at_risk(), *left_behind(settings)] + [
        f"{settings.path.name} [sinks.{sink.name}]: filter.event_types: {line}"
        for sink in settings.sinks
        for line in undocumented(sink.common.filter.event_types or ())
    ]
    names = {sink.name for sink in settings.enabled_sinks}
    for name, count in (records.counts().sinks if records else {}).items():
        if name not in names and count.pending:
            found.append(
                f"sink {name} is not enabled any more, and still owed {count.pending} events; enable it, or let go "
                f"of them with `python -m receiver sinks forget {name}`"
            )
    return found


def may_be_made(journal: Path) -> None:
    """Raise ReceiverError when there is no journal yet, and its folder cannot be made or written."""
    folder = next(parent for parent in journal.parents if parent.exists())
    if not folder.is_dir():
        raise ReceiverError(f"journal {journal}: {folder} is no folder; set another [journal] path")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ReceiverError(f"journal {journal}: {folder} cannot be written; make it so, or set another [journal] path")


def undocumented(types: Sequence[str]) -> list[str]:
    """A line for each event type that DT does not document, with the nearest one that it does."""
    return [f"DT documents no event type {name!r}{nearest(name, TYPES)}" for name in types if name not in TYPES]


def secrets_used(records: Records | None, settings: Settings) -> list[str]:
    """A line for each signature secret, where there are several: when it last proved a push genuine."""
    used = records.counts().secrets if records else {}
    lines = []
    for name in settings.secrets if len(settings.secrets) > 1 else ():
        if name not in used:
            lines.append(f"{name} has not been used yet")
        elif time.time() - used[name] > SAFE_TO_REMOVE_SECONDS:
            lines.append(f"{name} was last used {at(used[name]):%Y-%m-%d %H:%M} UTC; it is safe to remove")
        else:
            lines.append(f"{name} was last used {at(used[name]):%Y-%m-%d %H:%M} UTC")
    return lines


def known(records: Records, settings: Settings, name: str) -> None:
    """Raise ReceiverError when no sink of that name is configured or remembered."""
    names = {sink.name for sink in settings.sinks} | records.states().keys()
    if name not in names:
        raise ReceiverError(f"the journal knows no sink {name}{nearest(name, names)}")


def enabled(settings: Settings, name: str) -> SinkSettings:
    """An enabled sink by its name. Raises ReceiverError."""
    sinks = {sink.name: sink for sink in settings.enabled_sinks}
    if name not in sinks:
        raise ReceiverError(f"no sink {name!r} is enabled in {settings.path.name}{nearest(name, sinks)}")
    return sinks[name]


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else at(seconds)
