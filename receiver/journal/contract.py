"""The journal: the durable store of events and of what each sink is still owed.

It is the only state that intake and dispatchers share, and the only queue. This file is its contract; each file
beside it is one way to keep it. What the contract asks, an append-only log with consumers could do as well, so it has
no queries by content: filters are the dispatcher's work.

The guarantees:

* When `accept` returns, the arrival survives a power cut. An event id is kept once.
* An owed delivery is *pending* until it is settled as *delivered* or *dead*; no other way leads out of the journal.
* A claimed delivery is given to nobody else until its claim ends. *Delivered* is believed from anyone; every other
  result only from the holder of the claim.
* Every call may raise JournalUnavailable, and then has done nothing or what it was asked to do, never a part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Protocol

from receiver.event import Event


class Acceptance(StrEnum):
    """What became of an arrival; the value is the answer that DT gets."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A genuine push at the door.

    `id` is the event's, or the SHA-256 of the body when `quarantine` says why it is no event. `secret` is the name of
    the secret that proved it genuine. Times here and below are seconds since 1970.
    """

    id: str
    body: bytes = field(repr=False)
    received_at: float
    quarantine: str | None = None
    secret: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """An event in the journal; `key` is the journal's own name for it."""

    key: int
    id: str
    body: bytes = field(repr=False)
    received_at: float

    def decode(self) -> Event:
        """What the body says. Raises NotAnEvent."""
        return Event.from_body(self.body, datetime.fromtimestamp(self.received_at, UTC))


@dataclass(frozen=True, slots=True)
class Delivery:
    """A claimed delivery: `attempt` counts the calls of the sink from 1, `failures` those that came back failed.

    `age` is the time in seconds since the first attempt, without the time in which the sink was paused.
    """

    event: Kept
    sink: str
    attempt: int
    failures: int
    age: float


class Result(StrEnum):
    """How an attempt ended."""

    DELIVERED = "delivered"
    FAILED = "failed"
    """Try again at `due`; counts as a failure."""
    WAITING = "waiting"
    """Try again at `due`; counts for nothing, because the sink is at fault and not the event."""
    UNTOUCHED = "untouched"
    """The sink was never called: as if it had not been claimed."""
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a claimed delivery came to; `due` is when it may be tried again, `why` is for people."""

    delivery: Delivery
    result: Result
    due: float = 0.0
    why: str = ""


@dataclass(frozen=True, slots=True)
class SinkState:
    """What the journal knows of a sink across restarts.

    `pauses` counts the pauses in a row; 0 means not paused. `paused_until` is on the journal's clock. `on_trial`
    says that the sink was called alone and has not come back yet.
    """

    name: str
    pauses: int = 0
    paused_until: float = 0.0
    pause_reason: str = ""
    on_trial: bool = False


@dataclass(frozen=True, slots=True)
class SinkCount:
    """How a sink stands: what it has been delivered in all, is owed now, and has been given up on and not dropped.

    `oldest` is when the oldest pending event was received. `attempts` and `failures` count all there ever were.
    """

    delivered: int = 0
    pending: int = 0
    dead: int = 0
    oldest: float | None = None
    attempts: int = 0
    failures: int = 0
    last_success_at: float | None = None
    last_failure_at: float | None = None
    last_failure: str | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """What is in the journal now. `secrets` tells when each last proved a push genuine, give or take some seconds."""

    unmatched: int
    quarantined: int
    sinks: Mapping[str, SinkCount]
    secrets: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A delivery given up on."""

    sink: str
    event_id: str
    received_at: float
    attempts: int
    died_at: float
    why: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A genuine push that is no event, under the SHA-256 of its body."""

    id: str
    received_at: float
    why: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class LastAttempt:
    """Where the delivery of an event to a sink stands: `state` is pending, delivered or dead."""

    sink: str
    state: str
    attempts: int
    at: float | None
    why: str | None
    due: float | None


@dataclass(frozen=True, slots=True)
class History:
    """An event, and its last recorded attempt at each sink that it is or was owed to."""

    event: Kept
    matched: bool
    deliveries: tuple[LastAttempt, ...]


class Journal(Protocol):
    """What intake and dispatchers ask of the journal. Calls may come from many threads at once."""

    def now(self) -> float:
        """The journal's clock; all due times and claims are on it."""

    def wait(self) -> None:
        """Come back when new events may be there, and after half a second at most."""

    def accept(self, arrival: Arrival) -> Acceptance:
        """Keep an arrival, unless its id is there already. Returns after the commit."""

    def unmatched(self, most: int) -> list[Kept]:
        """Up to `most` events that `owe` has not seen yet, oldest first."""

    def owe(self, matches: Sequence[tuple[Kept, Sequence[str]]]) -> None:
        """Owe each event to the sinks named beside it. Owing again what is owed or settled changes nothing."""

    def enabled(self) -> set[str]:
        """The sinks that were enabled by the settings which all events were last matched by."""

    def enable(self, sinks: Sequence[str]) -> None:
        """Say that these are enabled from now on, and no others."""

    def claim(self, sink: str, most: int, seconds: float) -> list[Delivery]:
        """Take up to `most` deliveries that are due, for `seconds`; the longest due come first."""

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        """Make the claims on `deliveries`, where still held, end `seconds` from now."""

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Record the results of deliveries to one sink, and end their claims."""

    def next_due(self, sink: str) -> float | None:
        """When the next pending delivery of a sink is due or its claim ends; None when nothing is pending."""

    def begin(self) -> list[str]:
        """Be a dispatcher. Void the claims of the one whose place it takes; the sinks that it held claims for."""

    def beat(self) -> None:
        """Say that this dispatcher is alive."""

    def last_beat(self) -> float | None:
        """When a dispatcher last said so (wall clock), or None if none ever did."""

    def states(self) -> dict[str, SinkState]:
        """What is remembered of every sink."""

    def remember(self, state: SinkState) -> None:
        """Replace what is remembered of a sink. Between pauses > 0 and pauses = 0 its deliveries do not age."""

    def retire(self, received_before: float, most: int) -> bool:
        """Look at the next `most` events and remove those that are old and delivered everywhere they were owed.

        Whether all of them were old, so that it may be worth to go on at once.
        """

    def counts(self) -> Counts:
        """What is in the journal now."""

    def check_writable(self) -> None:
        """Raise JournalUnavailable when `accept` would."""

    def close(self) -> None:
        """Let go of files and connections."""


class Records(Protocol):
    """What people ask of the journal, beside intake and dispatchers at work."""

    def counts(self) -> Counts:
        """What is in the journal now."""

    def states(self) -> dict[str, SinkState]:
        """What is remembered of every sink."""

    def dead_letters(self, sink: str | None, most: int) -> list[DeadLetter]:
        """Up to `most` dead letters, of one sink or of all, the latest first."""

    def retry_dead(self, sink: str, event_ids: Sequence[str] | None) -> int:
        """Make dead letters pending again, as if never tried: those named, or all; how many they were."""

    def drop_dead(self, sink: str, event_ids: Sequence[str] | None) -> int:
        """Forget dead letters: those named, or all; how many they were."""

    def quarantined(self, most: int) -> list[Quarantined]:
        """Up to `most` pushes in quarantine, the latest first."""

    def in_quarantine(self, id_prefix: str) -> list[Quarantined]:
        """The pushes in quarantine whose id begins so."""

    def release(self, quarantined: Quarantined, event_id: str) -> None:
        """Make a push in quarantine an event, unless its id is known already; either way it leaves quarantine."""

    def received_count(self, since: float, until: float) -> int:
        """How many events `received` would give in all."""

    def received(self, since: float, until: float, after: int, most: int) -> list[Kept]:
        """Up to `most` matched events received in [since, until), with a key above `after`, in the order of keys."""

    def owe_again(self, sink: str, again: Sequence[Kept]) -> int:
        """Owe events to a sink, also those that are delivered or dead; how many were not pending before."""

    def history(self, event_id: str) -> History | None:
        """What happened to an event, or None when it is not here."""

    def resume(self, sink: str) -> None:
        """End the pause of a sink now, so that its probe is due."""

    def forget(self, sink: str) -> int:
        """Let go of a sink and of all it is owed; how many deliveries were pending or dead."""

    def close(self) -> None:
        """Let go of files and connections."""
