"""Whether a sink may be called: back-off, pauses and trials.

Back-off and pauses are data in the journal, never sleep, so that a restart neither hurries nor delays anything.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from receiver.errors import JournalUnavailable
from receiver.journal import Journal, SinkState
from receiver.settings import RetryPolicy

log = logging.getLogger(__name__)

FAILURES_UNTIL_PAUSE = 5
SHORTEST_PAUSE_SECONDS = 1.0

Random = Callable[[], float]
"""A number from 0 to 1."""


def back_off(policy: RetryPolicy, failures: int, random: Random) -> float:
    """Seconds until the next try after that many failures: full jitter below a doubling, bounded ceiling."""
    return random() * min(policy.longest_pause, policy.first_pause * 2.0 ** min(failures - 1, 32))


def pause_length(policy: RetryPolicy, pauses: int) -> float:
    """Seconds of the n-th pause in a row."""
    return min(policy.longest_pause, policy.first_pause * 2.0 ** min(pauses, 32))


class Health:
    """Whether a sink may be called: its pause, its failures in a row, its trial. Shared by the threads of a sink."""

    def __init__(
        self,
        state: SinkState,
        policy: RetryPolicy,
        journal: Journal,
        on_pause: Callable[[str, str], None] = lambda sink, reason: None,
    ) -> None:
        """`on_pause` is told the sink and the reason when the first of several pauses in a row begins."""
        self.state = state
        self.suspect = False
        self.failures = 0
        self.opened = False
        self.in_hand: set[int] = set()
        """The events that a thread of the sink calls it with now."""
        self._unsaved = False
        self._policy = policy
        self._journal = journal
        self._on_pause = on_pause
        self._lock = threading.RLock()

    @property
    def probing(self) -> bool:
        """The sink was paused and has not delivered since: it gets one delivery at a time."""
        return self.state.pauses > 0

    def paused_for(self) -> float:
        """Seconds until the sink may be called again; 0 when it may now."""
        return max(0.0, self.state.paused_until - self._journal.now()) if self.probing else 0.0

    def succeeded(self) -> None:
        with self._lock:
            self.failures = 0
            if self.probing and not self.paused_for():
                log.info("sink %s works again", self.state.name)
                self._change(SinkState(self.state.name))
            self.save()

    def failed(self, why: str) -> None:
        """One more failure; with too many in a row, or with one while probing, the sink is paused."""
        with self._lock:
            self.failures += 1
            if self.probing or self.failures >= FAILURES_UNTIL_PAUSE:
                self.pause(f"it keeps failing: {why}")

    def pause(self, why: str, after: float | None = None) -> None:
        """Call the sink no more for `after` seconds, or for longer each time in a row.

        Calls that were under way when a pause began do not lengthen it, unless they ask for more.
        """
        with self._lock:
            left = self.paused_for()
            if left and (after is None or after <= left):
                return
            pauses = self.state.pauses if left else self.state.pauses + 1
            length = pause_length(self._policy, pauses) if after is None else max(SHORTEST_PAUSE_SECONDS, after)
            log.warning("sink %s is paused for %.0f s: %s", self.state.name, length, why)
            if not self.probing:
                self._on_pause(self.state.name, why)
            self._change(SinkState(self.state.name, pauses, self._journal.now() + length, why))
            self.save()

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Remember that a doubtful sink is being called: if the process dies of it, the next one knows which it was."""
        if self.probing or self.suspect:
            self._journal.remember(replace(self.state, on_trial=True))
            self._change(replace(self.state, on_trial=True))
        try:
            yield
            self.suspect = False
        finally:
            self.acquit()

    @property
    def saved(self) -> SinkState | None:
        """The state as the journal has it; None while something is still to be saved."""
        with self._lock:
            return None if self._unsaved else self.state

    def take_over(self, state: SinkState, instead_of: SinkState | None) -> None:
        """What another dispatcher has written of this sink, unless what was `saved` before it was read has changed."""
        with self._lock:
            if instead_of is self.state and not self._unsaved and not self.state.on_trial:
                self.state = state

    def acquit(self) -> None:
        """A call that has not come back by the end of a stop is no crime."""
        if self.state.on_trial:
            self._change(replace(self.state, on_trial=False))
            self.save()

    def save(self) -> bool:
        """Let the journal know what changed, as soon as it can take it; whether it knows all."""
        with self._lock:
            if self._unsaved:
                try:
                    self._journal.remember(self.state)
                except JournalUnavailable as error:
                    log.error("sink %s: its state cannot be kept yet: %s", self.state.name, error)
                    return False
                self._unsaved = False
            return True

    def _change(self, state: SinkState) -> None:
        with self._lock:
            self.state = state
            self._unsaved = True
