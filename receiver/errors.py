"""Every error that the receiver raises on purpose; the docstring of each says what it means.

ReceiverError
├── ConfigError         config.toml or the environment is invalid
├── Rejected            a push cannot be verified
├── SigningKeyUnknown   a push cannot be verified yet
├── NotAnEvent          a verified push is not a valid event
├── JournalError        the journal cannot be used
│   └── JournalUnavailable  the journal cannot be read or written right now
├── PluginError         a plugin cannot be loaded, or a sink cannot be built
└── SinkSignal          a sink asks for something other than "delivered"
    ├── Retry           deliver this event again later
    ├── Pause           do not call this sink for a while
    └── GiveUp          never deliver this event again
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum


class ReceiverError(Exception):
    """Base of all errors that the receiver raises on purpose."""


class ConfigError(ReceiverError):
    """config.toml or the environment is invalid; `problems` has one line for each reason."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(" ".join(problem.splitlines()) for problem in problems)
        super().__init__("\n".join(self.problems))


class Rejection(StrEnum):
    """Why a push cannot be verified. The order is how far a token got before it failed."""

    MISSING_HEADER = "missing header X-Dt-Signature"
    MISSING_ASYMMETRIC_HEADER = "missing header DT-Asymmetric-Signature"
    WRONG_ALGORITHM = "token not signed with HS256"
    WRONG_ASYMMETRIC_ALGORITHM = "token not signed with ES256"
    WRONG_SECRET = "wrong secret"
    MALFORMED_TOKEN = "malformed token"
    WRONG_SIGNATURE = "wrong signature"
    NO_EXPIRY = "token without expiry"
    EXPIRED = "expired"
    NOT_YET_VALID = "not yet valid"
    WRONG_ISSUER = "wrong issuer"
    WRONG_ORGANIZATION = "wrong organization"
    NO_CHECKSUM = "token without SHA-256 checksum"
    CHECKSUM_MISMATCH = "checksum mismatch"


class Rejected(ReceiverError):
    """The push cannot be verified; `rejection` says why, and is safe to show to anyone."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.value)
        self.rejection = rejection


class SigningKeyUnknown(ReceiverError):
    """The push is signed with a DT key that is not known yet: it may be verified when DT retries it."""


class NotAnEvent(ReceiverError):
    """The body is not a JSON object with a valid `event.eventId` and `event.eventType`."""


class JournalError(ReceiverError):
    """The journal cannot be used; the message says what to do about it."""


class JournalUnavailable(JournalError):
    """The journal cannot be read or written right now: disk full, over its size limit, locked, or database down."""


class PluginError(ReceiverError):
    """A plugin cannot be loaded, or a sink cannot be built from its options."""


MAX_WAIT_SECONDS = 365 * 86400.0
"""The longest wait that a sink can ask for."""


class SinkSignal(ReceiverError):
    """What a sink raises to ask for something other than "delivered"."""

    after: float | None = None


def _wait(after: float | None) -> float | None:
    """A valid wait, limited to a year. Raises TypeError, inside the sink that asks for an invalid one."""
    if after is None:
        return None
    if not isinstance(after, int | float) or not math.isfinite(after):
        raise TypeError(f"after must be a finite number of seconds, not {type(after).__name__}")
    return min(max(0.0, after), MAX_WAIT_SECONDS)


class Retry(SinkSignal):
    """Deliver this event again: after `after` seconds, or with the backoff of `[sinks.NAME.retry]`.

    Counts toward `retry.max_attempts`, unless the sink is being probed.
    """

    def __init__(self, why: str = "the sink asked for a retry", after: float | None = None) -> None:
        super().__init__(why)
        self.after = _wait(after)


class Pause(SinkSignal):
    """Do not call this sink for `after` seconds (or with its own backoff), then probe it with one event.

    No event is lost, and the call does not count toward `retry.max_attempts`.
    """

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = _wait(after)


class GiveUp(SinkSignal):
    """This event can never be delivered: it becomes a dead letter, until a person retries or deletes it."""

    def __init__(self, why: str) -> None:
        super().__init__(why)


@contextmanager
def collect_errors(errors: list[Exception]) -> Iterator[None]:
    """Go on after a ValueError, a Pause or a group of them, which is appended to `errors`.

    So the constructor of a sink finds every invalid option before it raises an ExceptionGroup of them.
    """
    try:
        yield
    except (ValueError, Pause, ExceptionGroup) as error:
        errors.append(error)
