"""Every error the receiver raises on purpose, and any error as text; the docstring of each is what it means.

ReceiverError
├── ConfigError         config.toml or the environment is not usable
├── Refused             a push is not proven genuine
├── NotAnEvent          a genuine push has no event we can name
├── JournalError        the journal cannot be used
│   └── JournalUnavailable  it cannot take or give anything right now
├── PluginError         a plugin or a sink cannot be built
└── SinkSignal          a sink asks for something other than "delivered"
    ├── Retry           this event again, later
    ├── Pause           no events for this sink for a while
    └── GiveUp          this event never again
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import StrEnum


class ReceiverError(Exception):
    """Base of all errors that the receiver raises on purpose."""


class ConfigError(ReceiverError):
    """config.toml or the environment is not usable; `problems` holds one line for each reason."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(" ".join(problem.splitlines()) for problem in problems)
        super().__init__("\n".join(self.problems))


class Refusal(StrEnum):
    """Why a push is not proven genuine. The order is how far a token got before it failed."""

    MISSING_HEADER = "missing header X-Dt-Signature"
    WRONG_ALGORITHM = "token not signed with HS256"
    WRONG_SECRET = "wrong secret"
    MALFORMED_TOKEN = "malformed token"
    NO_EXPIRY = "token without expiry"
    EXPIRED = "expired"
    NOT_YET_VALID = "not yet valid"
    NO_CHECKSUM = "token without SHA-256 checksum"
    CHECKSUM_MISMATCH = "checksum mismatch"


class Refused(ReceiverError):
    """The push is not proven genuine; `refusal` says why, and is safe to show to anyone."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.value)
        self.refusal = refusal


class NotAnEvent(ReceiverError):
    """The body is not a JSON object with an `event.eventId` and `event.eventType` that can be used."""


class JournalError(ReceiverError):
    """The journal cannot be used; the message says what to do about it."""


class JournalUnavailable(JournalError):
    """The journal cannot take or give anything right now: disk full, over its size, locked or away."""


class PluginError(ReceiverError):
    """A plugin cannot be loaded, or a sink cannot be built from its options."""


LONGEST_WAIT_SECONDS = 365 * 86400.0


class SinkSignal(ReceiverError):
    """What a sink raises to ask for something other than "delivered"."""

    after: float | None = None


def _wait(after: float | None) -> float | None:
    """A wait that can be kept, a year at most. Raises TypeError inside the sink that asks for any other."""
    if after is None:
        return None
    if not isinstance(after, int | float) or not math.isfinite(after):
        raise TypeError(f"after must be a finite number of seconds, not {type(after).__name__}")
    return min(max(0.0, after), LONGEST_WAIT_SECONDS)


class Retry(SinkSignal):
    """Deliver this event again: `after` that many seconds, or after the sink's own back-off.

    Counts as an attempt toward `retry.max_attempts`.
    """

    def __init__(self, why: str = "the sink asked for a retry", after: float | None = None) -> None:
        super().__init__(why)
        self.after = _wait(after)


class Pause(SinkSignal):
    """Call this sink no more for `after` seconds (or its own back-off), then probe it with one event.

    Nothing is lost and no attempt is counted.
    """

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = _wait(after)


class GiveUp(SinkSignal):
    """This event can never be delivered: it becomes a dead letter, kept until a person decides."""

    def __init__(self, why: str) -> None:
        super().__init__(why)


MOST_SHOWN = 500
"""Characters of what an exception says."""


def text_of(error: BaseException, redact: Callable[[str], str]) -> str:
    """Any exception in one bounded line without secrets: its type and what it says. A signal of ours has no type here.

    Never raises, whatever the exception of a plugin does when it is asked.
    """
    try:
        said = str.__str__(str(error))
    except BaseException:
        said = "it cannot be shown"
    said = redact(said.encode("utf-8", "replace").decode().replace("\0", "?"))
    said = " ".join(said.split())[:MOST_SHOWN]
    return said if isinstance(error, SinkSignal) else f"{type(error).__name__}: {said}"
