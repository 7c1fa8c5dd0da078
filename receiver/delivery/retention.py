"""Retention: removes expired events from the journal, in steps that keep up with what arrives."""

from __future__ import annotations

import time

from receiver.journal import Journal

PAUSE_SECONDS = 1.0
IDLE_SECONDS = 10.0
"""How long retention waits when nothing more has expired."""

BUDGET_SECONDS = 0.1
"""Retention may take a tenth of the time, since routing waits for it; more only to keep up with what is routed."""

BATCH = 1000
"""How many events one transaction removes: more cost less each, and on SQLite pushes wait for it."""

PER_ROUTED = 3
"""How many events are checked for each one that is routed: retention catches up even when half of them have to stay."""


class Retention:
    """Removes the events of a journal that are older than `seconds` and delivered everywhere."""

    def __init__(self, journal: Journal, seconds: float) -> None:
        self._journal = journal
        self._seconds = seconds
        self._expiring = True
        """There may be more events that have expired."""
        self._unchecked = 0
        """How many events are to be checked to keep up with what was routed."""

    @property
    def pause_seconds(self) -> float:
        """How long to wait until the next `apply`."""
        return PAUSE_SECONDS if self._expiring else IDLE_SECONDS

    def apply(self) -> None:
        """Remove events for a short time. Raises JournalUnavailable."""
        end = time.monotonic() + BUDGET_SECONDS
        self._expiring = True
        while self._expiring and time.monotonic() < end:
            self._remove()

    def keep_up(self, routed: int) -> None:
        """Remove events as fast as others are routed, also when the time of `apply` does not suffice for that."""
        self._unchecked += routed * PER_ROUTED
        if self._expiring and self._unchecked >= BATCH:
            self._remove()

    def _remove(self) -> None:
        self._expiring = self._journal.remove_expired(time.time() - self._seconds, BATCH)
        self._unchecked = max(0, self._unchecked - BATCH) if self._expiring else 0
