"""The journal: the durable store of events and of the delivery state of each event at each sink.

It is the only state that intake and dispatchers share, and the only queue. This file is its contract; `sql/` implements
it. An append-only log with consumers could implement it as well, so it has no queries by content: filtering is the
dispatcher's work.

The guarantees:

* When `accept` returns, its arrivals survive a power cut. An event id is stored once.
* A delivery is *pending* until it is settled as *delivered* or *dead*; it never leaves the journal in any other way.
* A claimed delivery is given to no other dispatcher until its claim expires or is voided. *Delivered* is accepted from
  anyone; every other result only from the holder of the claim.
* Any call may raise JournalUnavailable. It has then done all of its work or none of it, never a part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Protocol

from receiver.event import Event, Origin


class Outcome(StrEnum):
    """What became of an arrival; the value is the text of the response to DT."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A verified push, or an event from DT's history, that is to be stored.

    `id` is the event id or, with a `quarantine_reason`, the SHA-256 of the body, which is then no valid event.
    `secret` names the variable by which it was verified. Times here and below are seconds since 1970.
    """

    id: str
    body: bytes = field(repr=False)
    received_at: float
    quarantine_reason: str | None = None
    secret: str = ""
    origin: Origin = Origin.PUSH


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event in the journal; `key` is the journal's own name for it, and grows with each event."""

    key: int
    id: str
    body: bytes = field(repr=False)
    received_at: float
    origin: str = Origin.PUSH

    def decode(self) -> Event:
        """The decoded body. Raises NotAnEvent."""
        return Event.from_body(self.body, datetime.fromtimestamp(self.received_at, UTC), Origin(self.origin))


@dataclass(frozen=True, slots=True)
class Delivery:
    """A claimed delivery. `attempt` counts the calls of the sink from 1, `failures` those that failed.

    `age` is the time in seconds since the first attempt, without the time in which the sink was paused.
    """

    event: StoredEvent
    sink: str
    attempt: int
    failures: int
    age: float


class Result(StrEnum):
    """How an attempt ended."""

    DELIVERED = "delivered"
    FAILED = "failed"
    """Retry at `due`; counts as a failure of the delivery."""
    POSTPONED = "postponed"
    """Retry at `due`; a failure of the sink, but not of the delivery, because the cause is not the event."""
    RELEASED = "released"
    """The sink was not called: the delivery is as it was before the claim."""
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Settlement:
    """The result of a claimed delivery; `due` is the time of the next attempt, `reason` is for operators."""

    delivery: Delivery
    result: Result
    due: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SinkState:
    """The state of a sink that outlives a restart.

    `pauses` counts consecutive pauses; 0 means not paused. `paused_until` is on the journal's clock; 0 means until the
    next start, because the sink could not be built. `on_trial` says that the sink is being called alone, because it may
    have crashed the dispatcher.
    """

    name: str
    pauses: int = 0
    paused_until: float = 0.0
    pause_reason: str = ""
    on_trial: bool = False


@dataclass(frozen=True, slots=True)
class SinkCounts:
    """Deliveries of a sink: `pending` and `dead` now; `delivered`, `attempts` and `failures` since the beginning.

    Each attempt whose result was recorded is a success or a failure: `attempts` is `delivered` plus `failures`.
    `oldest_received_at` is when the oldest event with a pending delivery was received.
    """

    delivered: int = 0
    pending: int = 0
    dead: int = 0
    oldest_received_at: float | None = None
    attempts: int = 0
    failures: int = 0
    last_success_at: float | None = None
    last_failure_at: float | None = None
    last_failure_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Liveness:
    """When a dispatcher last reported (wall clock), and the warnings for operators of all that reported with it."""

    at: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Counts:
    """What is in the journal now. `secrets` maps each variable that verified pushes to its last use, within seconds."""

    unrouted: int
    quarantined: int
    sinks: Mapping[str, SinkCounts]
    secrets: Mapping[str, float]

    @property
    def last_push_at(self) -> float | None:
        """When a push was last accepted (or was a duplicate, or quarantined), within seconds."""
        return max(self.secrets.values(), default=None)


@dataclass(frozen=True, slots=True)
class Space:
    """The bytes that the journal takes, and those that are free for it; None where that is not known."""

    used: int
    free: int | None


@dataclass(frozen=True, slots=True)
class TablesVersion:
    """The version of the journal's tables: `found` is None before they are created, `latest` that of this receiver."""

    found: int | None
    latest: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A delivery that was given up."""

    sink: str
    event: StoredEvent
    attempts: int
    died_at: float
    reason: str


@dataclass(frozen=True, slots=True)
class DeadLetterGroup:
    """How many dead letters a sink has for a reason, and when the oldest and newest of their events was received."""

    sink: str
    reason: str
    count: int
    oldest_received_at: float
    newest_received_at: float


@dataclass(frozen=True, slots=True)
class QuarantinedPush:
    """A verified push that is not a valid event, under the SHA-256 of its body."""

    id: str
    received_at: float
    reason: str
    body: bytes = field(repr=False)
    origin: str = Origin.PUSH


@dataclass(frozen=True, slots=True)
class DeliveryState:
    """The delivery of an event to a sink: `state` is pending, delivered or dead, `reason` that of the last failure.

    `settled_at` is when the last attempt ended, `due` when the next one may begin.
    """

    sink: str
    state: str
    attempts: int
    settled_at: float | None
    reason: str | None
    due: float | None


@dataclass(frozen=True, slots=True)
class EventHistory:
    """An event, and its delivery at each sink that it was routed to."""

    event: StoredEvent
    routed: bool
    deliveries: tuple[DeliveryState, ...]


class Journal(Protocol):
    """What intake and dispatchers ask of the journal. Calls may come from many threads at once."""

    def now(self) -> float:
        """The journal's clock; all due times and claims are on it."""

    def wait_for_events(self) -> bool:
        """Wait for new events, for half a second at most. Returns whether there may be some."""

    def accept(self, arrivals: Sequence[Arrival]) -> list[Outcome]:
        """Store all arrivals whose id is new in one durable commit; returns the outcome of each, in the same order."""

    def unrouted(self, limit: int) -> list[StoredEvent]:
        """Up to `limit` events that were not routed yet, oldest first."""

    def others_are_routing(self, received_before: float) -> bool:
        """Whether another dispatcher is routing events at this moment, or may begin to with some received before then.

        Ask after routing all that `unrouted` returned. If the other one fails, its events are unrouted again.
        """

    def route(self, routes: Sequence[tuple[StoredEvent, Sequence[str]]], missed_by: Sequence[str] = ()) -> None:
        """Create a pending delivery of each event at the sinks named with it. Repeating this changes nothing.

        The sinks `missed_by` cannot be routed to now, because it is unknown which events they should get. These events
        and all later ones stay in the journal until `catch_up` has routed them.
        """

    def sinks_behind(self) -> set[str]:
        """The sinks that have missed events."""

    def catch_up(self, sink: str, passes: Callable[[StoredEvent], bool], limit: int) -> bool:
        """Route to a sink the next `limit` events from the first that it has missed, if they pass.

        Returns whether there may be more.
        """

    def enabled_sinks(self) -> set[str]:
        """The sinks that were enabled at the start at which all events were last routed, and at each one since."""

    def add_enabled_sinks(self, sinks: Sequence[str]) -> None:
        """Record that these sinks are enabled, too. Repeating this changes nothing."""

    def set_enabled_sinks(self, sinks: Sequence[str], disabled: Sequence[str] = ()) -> None:
        """Record that these sinks are enabled from now on, and no others.

        Those in `disabled` have missed nothing any more. What sinks in neither have missed is kept: a dispatcher with
        another configuration may know them.
        """

    def claim(self, sink: str, limit: int, seconds: float) -> list[Delivery]:
        """Claim up to `limit` due deliveries for `seconds`; those due for the longest time come first."""

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        """Let the claims on `deliveries` that are still held expire `seconds` from now."""

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Record the results of deliveries to one sink, and end their claims."""

    def next_due(self, sink: str) -> float | None:
        """When the next pending delivery of a sink is due or its claim expires; None when none is pending."""

    def oldest_pending(self, sink: str) -> float | None:
        """When the first of the events that are pending for a sink was received; None when none is pending."""

    def may_dispatch(self) -> bool:
        """Whether this process may become a dispatcher: not while another one is, where only one is allowed."""

    def start_dispatching(self) -> list[str]:
        """Become a dispatcher and void the claims of its predecessor; the sinks for which that one held claims."""

    def report_alive(self, warnings: Sequence[str] = ()) -> None:
        """Record that this dispatcher is alive, and its warnings for operators, in one line each."""

    def take_over(self, silent_seconds: float) -> bool:
        """Void the claims of other dispatchers that have reported nothing for so long, so that they are due now.

        Returns whether there were any.
        """

    def liveness(self) -> Liveness | None:
        """The latest report of any dispatcher; None if there never was one.

        The warnings are those of all dispatchers that reported at most 15 s before it.
        """

    def sink_states(self) -> dict[str, SinkState]:
        """The state of every sink by name."""

    def save_sink_state(self, state: SinkState) -> None:
        """Replace the state of a sink. While pauses > 0, its deliveries do not age."""

    def save_trial(self, sink: str, *, on_trial: bool) -> None:
        """Replace `on_trial` of a sink, and leave its pause as it is: another dispatcher may have begun or ended it."""

    def remove_expired(self, received_before: float, limit: int) -> bool:
        """Remove some events received before that time, routed, and delivered at all their sinks: up to `limit`.

        Events that a sink has missed stay. Returns whether there may be more, so that the caller should continue
        immediately. Events that had to stay are checked again a part at a time, in calls that find no others.
        """

    def document(self, name: str) -> bytes | None:
        """The document last saved under this name; None if there is none."""

    def save_document(self, name: str, content: bytes) -> None:
        """Replace the document of this name, for all processes. It is small: it is written and read as a whole."""

    def lease_document(self, name: str, seconds: float) -> bool:
        """Become the only process that renews this document for `seconds`; False if another one is.

        A lease ends by itself. Nothing else depends on it: anyone can save the document.
        """

    def extend_lease(self, name: str, seconds: float) -> bool:
        """Let the lease of a document, which this process has, end `seconds` from now; False if it has ended."""

    def counts(self) -> Counts:
        """What is in the journal now."""

    def space(self) -> Space:
        """How large the journal is, and how much it can grow."""

    def check_writable(self) -> None:
        """Raise JournalUnavailable when `accept` would."""

    def close(self) -> None:
        """Release files and connections."""


class Records(Protocol):
    """What operators ask of the journal, while intake and dispatchers run or not."""

    def counts(self, most: int | None = None) -> Counts:
        """What is in the journal now. With `most`, dead letters of a sink and the quarantine are counted up to that."""

    def sink_states(self) -> dict[str, SinkState]:
        """The state of every sink by name."""

    def liveness(self) -> Liveness | None:
        """As in Journal."""

    def document(self, name: str) -> bytes | None:
        """As in Journal."""

    def save_document(self, name: str, content: bytes) -> None:
        """As in Journal."""

    def known(self, event_ids: Sequence[str]) -> set[str]:
        """Those of these events that are in the journal."""

    def dead_letter_groups(self, sink: str | None, limit: int, reason: str | None = None) -> list[DeadLetterGroup]:
        """Up to `limit` groups of dead letters, of one sink or of all, and of one `reason` or of all: largest first."""

    def some_dead_letter_groups(self, sink: str | None, limit: int, most: int) -> list[DeadLetterGroup]:
        """Of one sink or of each, the first `limit` groups in the order of their reasons: the largest first.

        Each is counted up to `most`, so that this is quick with millions of dead letters.
        """

    def count_dead_letters(self, sink: str, reason: str | None, most: int) -> int:
        """How many dead letters a sink has, of one reason or of all, counted up to `most`."""

    def dead_letters(
        self, sink: str | None, limit: int, reason: str | None = None, before: int | None = None
    ) -> list[DeadLetter]:
        """Up to `limit` dead letters, of one sink or of all: those of the events with the highest keys first.

        With a `reason`, only those given up for it; with `before`, only those of events with a key below it.
        """

    def retry_dead_letters(
        self, sink: str, event_ids: Sequence[str] | None, reason: str | None = None, limit: int | None = None
    ) -> int:
        """Make dead letters pending again with no attempts counted: those named, or all; returns how many.

        With a `reason`, only those given up for it; with a `limit`, no more than so many, the oldest events first.
        """

    def delete_dead_letters(
        self, sink: str, event_ids: Sequence[str] | None, reason: str | None = None, limit: int | None = None
    ) -> int:
        """Delete dead letters: those named, or all; returns how many. `reason` and `limit` are as above."""

    def quarantined(self, limit: int, before: tuple[float, str] | None = None) -> list[QuarantinedPush]:
        """Up to `limit` quarantined pushes, newest first; those after the one with this `received_at` and `id`."""

    def find_quarantined(self, id_prefix: str) -> list[QuarantinedPush]:
        """The quarantined pushes whose id begins with `id_prefix`."""

    def release(self, quarantined: QuarantinedPush, event_id: str) -> None:
        """Move a quarantined push to the events, or delete it when its event id is known already."""

    def count_received(self, since: float, until: float) -> int:
        """How many events `received` would return in all."""

    def received(self, since: float, until: float, after: int, limit: int) -> list[StoredEvent]:
        """Up to `limit` routed events received in [since, until), in the order of their times and keys.

        Those received at `since` need a key above `after`: with the time and key of an event, the next ones follow.
        """

    def requeue(self, sink: str, events: Sequence[StoredEvent]) -> int:
        """Make events pending for a sink, also delivered and dead ones; returns how many were not pending before."""

    def history(self, event_id: str) -> EventHistory | None:
        """What happened to an event; None when it is not in the journal."""

    def newest(self, until: float, state: str | None, before: int | None, limit: int) -> list[EventHistory]:
        """Up to `limit` events received before `until`, those with the highest keys first.

        With a `state`, only those with a delivery in that state; with `before`, only those with a key below it.
        """

    def mentioning(
        self, texts: Sequence[bytes], until: float, before: int | None, limit: int, most_read: int
    ) -> tuple[list[EventHistory], int | None]:
        """Up to `limit` events whose bodies contain one of `texts`, those with the highest keys first.

        No more than `most_read` events received before `until` are looked through; with `before`, only those with a key
        below it. The second value is the key below which there may be more.
        """

    def resume(self, sink: str) -> None:
        """End the pause of a sink now, so that its probe is due."""

    def remove_sink(self, sink: str) -> int:
        """Delete a sink and its deliveries, a part at a time; returns how many of those were pending or dead."""

    def close(self) -> None:
        """Release files and connections."""
