"""The circuit breaker of a sink: whether it may be called, its pauses, and its trials after a crash.

Backoff and pauses are data in the journal, never sleep, so that a restart neither shortens nor extends any of them.
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
"""Consecutive failures after which the cause is assumed to be the sink and not the events."""

MIN_PAUSE_SECONDS = 1.0
"""The shortest pause that a sink can ask for."""

Random = Callable[[], float]
"""A random number from 0 to 1."""


def backoff_seconds(policy: RetryPolicy, failures: int, random: Random) -> float:
    """The wait before the next attempt after that many failures: exponential with full jitter, up to a limit."""
    return random() * min(policy.max_backoff, policy.initial_backoff * 2.0 ** min(failures - 1, 32))


def pause_seconds(policy: RetryPolicy, pauses: int) -> float:
    """The length of the n-th consecutive pause."""
    return min(policy.max_backoff, policy.initial_backoff * 2.0 ** min(pauses, 32))


class CircuitBreaker:
    """Whether a sink may be called. Shared by the threads of the sink.

    `suspect` says that the sink was in a call when the last dispatcher died. `in_flight` are the keys of the events
    with which a thread calls the sink now.
    """

    def __init__(
        self,
        state: SinkState,
        policy: RetryPolicy,
        journal: Journal,
        on_pause: Callable[[str, str], None] = lambda sink, reason: None,
    ) -> None:
        """`on_pause` is called with the sink and the reason when the first of several consecutive pauses begins."""
        self.state = state
        self.suspect = False
        self.failures = 0
        self.sink_is_open = False
        self.in_flight: set[int] = set()
        self._unsaved = self._trial_is_unsaved = False
        self._policy = policy
        self._journal = journal
        self._on_pause = on_pause
        self._lock = threading.RLock()

    @property
    def probing(self) -> bool:
        """The sink was paused and has not delivered since (half open): it gets one delivery at a time."""
        return self.state.pauses > 0

    def paused_for(self) -> float:
        """Seconds until the sink may be called again; 0 if it may be called now."""
        return max(0.0, self.state.paused_until - self._journal.now()) if self.probing else 0.0

    def record_success(self) -> None:
        with self._lock:
            self.failures = 0
            if self.probing and not self.paused_for():
                log.info("sink %(sink)s works again", {"sink": self.state.name})
                self._change(SinkState(self.state.name))
            self.save()

    def record_failure(self, reason: str) -> None:
        """Pause the sink after too many consecutive failures, or after one while probing."""
        with self._lock:
            self.failures += 1
            if self.probing or self.failures >= FAILURES_UNTIL_PAUSE:
                self.pause(f"it keeps failing: {reason}")

    def pause(self, reason: str, after: float | None = None) -> None:
        """Do not call the sink for `after` seconds, or for longer with each consecutive pause.

        Calls that were in flight when a pause began do not extend it, unless they ask for a longer one.
        """
        with self._lock:
            left = self.paused_for()
            if left and (after is None or after <= left):
                return
            pauses = self.state.pauses if left else self.state.pauses + 1
            seconds = pause_seconds(self._policy, pauses) if after is None else max(MIN_PAUSE_SECONDS, after)
            log.warning(
                "sink %(sink)s is paused for %(seconds).0f s: %(reason)s "
                "(`python -m receiver sinks resume %(sink)s` probes it earlier)",
                {"sink": self.state.name, "seconds": seconds, "reason": reason},
            )
            if not self.probing:
                self._on_pause(self.state.name, reason)
            self._change(SinkState(self.state.name, pauses, self._journal.now() + seconds, reason))
            self.save()

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Record that a suspect sink is being called: if the process crashes, its successor knows the cause."""
        if self.probing or self.suspect:
            self._journal.save_trial(self.state.name, on_trial=True)
            with self._lock:
                self.state = replace(self.state, on_trial=True)
        try:
            yield
            self.suspect = False
        finally:
            self.end_trial()

    def end_trial(self) -> None:
        """The process has survived the call, or stops while the sink is still in it, which is no crash."""
        with self._lock:
            if self.state.on_trial:
                self.state = replace(self.state, on_trial=False)
                self._trial_is_unsaved = True
                self.save()

    @property
    def saved_state(self) -> SinkState | None:
        """The state as it is in the journal; None while a change is unsaved."""
        with self._lock:
            return None if self._unsaved or self._trial_is_unsaved else self.state

    def adopt(self, state: SinkState, instead_of: SinkState | None) -> None:
        """Use a state that another dispatcher or an operator has saved.

        `instead_of` is the `saved_state` from before it was read; if the state has changed since, it is ignored.
        """
        with self._lock:
            if instead_of is not None and instead_of is self.saved_state and not self.state.on_trial:
                self.state = state

    def save(self) -> bool:
        """Save what changed, as soon as the journal is available; whether everything is saved."""
        with self._lock:
            if self._unsaved or self._trial_is_unsaved:
                try:
                    self._save()
                except JournalUnavailable as error:
                    values = {"sink": self.state.name, "reason": error}
                    log.error("sink %(sink)s: its state cannot be saved yet: %(reason)s", values)
                    return False
                self._unsaved = self._trial_is_unsaved = False
            return True

    def _save(self) -> None:
        if self._unsaved:
            self._journal.save_sink_state(self.state)
        else:
            self._journal.save_trial(self.state.name, on_trial=self.state.on_trial)

    def _change(self, state: SinkState) -> None:
        with self._lock:
            self.state = state
            self._unsaved = True
