"""One thread's work for one sink: claim what is due, call the sink, settle, back off.

Each sink has threads of its own, so that one that is slow, failing or blocked delays no other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from receiver.delivery.alerts import Alerts
from receiver.delivery.circuit_breaker import CircuitBreaker, Random, backoff_seconds
from receiver.delivery.sinks import Sink
from receiver.delivery.source_lines import line_that_raised
from receiver.errors import GiveUp, JournalUnavailable, NotAnEvent, Pause, Retry, SinkSignal
from receiver.journal import Delivery, Journal, Result, Settlement
from receiver.logs import RateLimitedLog
from receiver.redaction import error_text

log = logging.getLogger(__name__)

CLAIM_SECONDS = 60.0
"""Longer than the dispatcher needs to extend it several times, short enough for another to take over after a crash."""

POLL_SECONDS = 0.05
IDLE_SECONDS = 1.0
LOOK_SECONDS = 5.0
"""How often to look for changes without being woken by the commit that made them."""

SETTLE_SECONDS = 0.5
"""How long results of single calls wait to be recorded together: so much is repeated after a crash."""

BACKGROUND_SECONDS = 0.5
"""How long a sink in the background collects new events, since a batch of many costs little more than one of few."""

BACKGROUND_SHARE = 0.1
"""How much of the time a sink in the background works while other sinks have something to deliver."""

Redact = Callable[[str], str]


class SinkLoop:
    """One thread of a sink. The `first` thread also opens and probes the sink.

    `claimed` are the deliveries whose claims the dispatcher extends. `allowed` lets the thread begin, `stepped` says
    that it has survived a round, `wake` ends its wait for new deliveries. `idle` says that the last claim found
    nothing, or that the sink is paused. `gives_way_to` are loops of other sinks, for a sink in the background.
    `may_call` says that no other dispatcher can have taken over its claims.
    """

    def __init__(
        self,
        sink: Sink,
        breaker: CircuitBreaker,
        journal: Journal,
        alerts: Alerts,
        *,
        random: Random,
        redact: Redact,
        may_call: Callable[[], bool],
        first: bool,
    ) -> None:
        self.sink = sink
        self.breaker = breaker
        self.claimed: Sequence[Delivery] = ()
        self.allowed, self.stepped, self.wake = threading.Event(), threading.Event(), threading.Event()
        self.finishing = self.stopping = False
        self._journal = journal
        self._alerts = alerts
        self._random = random
        self._redact = redact
        self._may_call = may_call
        self._first = first
        self._claim_size = 1
        self.idle = False
        self.gives_way_to: Sequence[SinkLoop] = ()
        self._others_busy_at = float("-inf")
        self._unsettled: list[Settlement] = []
        self._called_at: float | None = None
        self._log = RateLimitedLog(log)

    def run(self) -> None:
        """Work until `stopping` is set, or until `finishing` is set and nothing is left to do now."""
        self.allowed.wait()
        while not self.stopping:
            finishing = self.finishing  # before the round: until it is set, there may be new deliveries
            try:
                wait = self.step()
                if wait and finishing:
                    break
            except JournalUnavailable as error:
                values = {"sink": self.sink.name, "reason": error}
                self._log.error("journal", "sink %(sink)s waits for the journal: %(reason)s", values)
                wait = IDLE_SECONDS
            except BaseException:  # if the thread ended, its sink would stop in silence
                values = {"sink": self.sink.name}
                log.exception("internal error while delivering to sink %(sink)s; it is retried", values)
                wait = IDLE_SECONDS
            self.stepped.set()
            if wait:
                self._wait(min(wait, LOOK_SECONDS))

    def call_seconds(self) -> float:
        """How long the current call of the sink has taken so far; 0 without one."""
        called_at = self._called_at
        return 0.0 if called_at is None else time.monotonic() - called_at

    def step(self) -> float:
        """One round. Returns the seconds until another may find something to do; 0 if there was or may be something.

        Raises JournalUnavailable.
        """
        self._settle()
        if paused_for := self.breaker.paused_for():
            self.idle = True
            return paused_for
        if not self._first and (self.breaker.probing or not self.breaker.sink_is_open):
            return IDLE_SECONDS if self.breaker.probing else POLL_SECONDS
        if not self.breaker.sink_is_open and not self._open():
            return self.breaker.paused_for()
        if not self._may_call():
            return self._wait(POLL_SECONDS)
        if self.idle and (wait := self._seconds_until_due()):  # this costs a tenth of a claim
            return wait
        began = time.thread_time()
        claimed = self._claim()
        self.idle = not claimed
        if not claimed:
            self.breaker.suspect = False
            return self._seconds_until_due() or self._wait(POLL_SECONDS)
        try:
            with self.breaker.trial():
                self._deliver(claimed)
            self._settle()
        finally:
            self.breaker.in_flight.difference_update(delivery.event.key for delivery in claimed)
        self.claimed = ()
        if self.gives_way_to:
            is_full = len(claimed) >= self.sink.common.batch_size
            self._give_way(time.thread_time() - began, is_full=is_full)
        return 0.0

    def _wait(self, seconds: float) -> float:
        """Wait until there may be something to do; 0, since there may be."""
        self.wake.wait(seconds)
        self.wake.clear()
        return 0.0

    def _give_way(self, seconds: float, *, is_full: bool) -> None:
        """After `seconds` of processor time, leave the time to the other sinks while they have something to deliver.

        A batch that is not full waits for more events in any case.
        """
        end = time.monotonic() + max(BACKGROUND_SECONDS, seconds * (1 / BACKGROUND_SHARE - 1))
        while (now := time.monotonic()) < end and not (self.finishing or self.stopping):
            if not all(loop.idle for loop in self.gives_way_to):
                self._others_busy_at = now
            elif is_full and now - self._others_busy_at > BACKGROUND_SECONDS:
                break
            time.sleep(BACKGROUND_SECONDS / 50)

    def _claim(self) -> Sequence[Delivery]:
        """Claim what is due, except for what another thread is still delivering although its claim has expired."""
        claimed = self._journal.claim(self.sink.name, self._claim_limit(), CLAIM_SECONDS)
        self.claimed = [delivery for delivery in claimed if delivery.event.key not in self.breaker.in_flight]
        self.breaker.in_flight.update(delivery.event.key for delivery in self.claimed)
        return self.claimed

    def _claim_limit(self) -> int:
        """One for a probe, a batch for a sink with batches; else few enough to leave some to the other threads."""
        if self.breaker.probing:
            return 1
        if self.sink.in_batches or self.sink.common.concurrency == 1:
            return self.sink.common.batch_size
        return min(self._claim_size, self.sink.common.batch_size)

    def _open(self) -> bool:
        suspect = self.breaker.suspect
        with self.breaker.trial(), self._calling():
            try:
                self.sink.hook.open(name=self.sink.name, logger=logging.getLogger(f"sink.{self.sink.name}"))
            except BaseException as error:
                reason = line_that_raised(error) + error_text(error, self._redact)
                self.breaker.pause(f"open failed: {reason}", wait_asked_for(error))
                return False
        self.breaker.suspect = suspect
        self.breaker.sink_is_open = True
        self._alerts.start(self.sink.hook)
        return True

    def _deliver(self, claimed: Sequence[Delivery]) -> None:
        """Deliver what was claimed: in one batch if the sink has batches, and one by one if not or if that failed."""
        not_called, reason = Result.RELEASED, ""
        if self.sink.in_batches and len(claimed) > 1 and self._may_call():
            error = self._call(claimed)
            if error is None:
                self._unsettled += [Settlement(delivery, Result.DELIVERED) for delivery in claimed]
                self.breaker.record_success()
                return
            not_called, reason = Result.POSTPONED, error_text(error, self._redact)
            if isinstance(error, Pause):
                self.breaker.pause(reason, error.after)
            else:
                log.warning(
                    "sink %(sink)s failed with a batch of %(events)d: %(reason)s",
                    {"sink": self.sink.name, "events": len(claimed), "reason": reason},
                )
        began = settled_at = time.monotonic()
        for number, delivery in enumerate(claimed):
            if self.stopping or self.breaker.paused_for() or not self._may_call():
                now = self._journal.now()
                self._unsettled += [Settlement(left, not_called, now, reason) for left in claimed[number:]]
                break
            self._unsettled.append(self._settlement(delivery, self._call([delivery])))
            if time.monotonic() - settled_at > SETTLE_SECONDS:
                with suppress(JournalUnavailable):
                    self._settle()
                settled_at = time.monotonic()
        fast = time.monotonic() - began < SETTLE_SECONDS / 2
        self._claim_size = self._claim_size * 2 if fast else max(1, self._claim_size // 2)

    def _call(self, deliveries: Sequence[Delivery]) -> BaseException | None:
        """Call the sink: None if it returned, else what it raised."""
        try:
            events = [delivery.event.decode() for delivery in deliveries]
            with self._calling():
                if self.sink.in_batches:
                    attempts = [delivery.attempt for delivery in deliveries]
                    self.sink.hook.deliver_batch(events=events, attempts=attempts)
                else:
                    self.sink.hook.deliver(event=events[0], attempt=deliveries[0].attempt)
        except NotAnEvent as error:
            return GiveUp(f"it cannot be decoded any more: {error}")
        except BaseException as error:
            return error
        return None

    @contextmanager
    def _calling(self) -> Iterator[None]:
        self._called_at = time.monotonic()
        try:
            yield
        finally:
            self._called_at = None

    def _settlement(self, delivery: Delivery, error: BaseException | None) -> Settlement:
        """What a single call means for its delivery and for the sink."""
        if error is None:
            self.breaker.record_success()
            return Settlement(delivery, Result.DELIVERED)
        reason = error_text(error, self._redact)
        if isinstance(error, Pause):
            self.breaker.pause(reason, error.after)
            return Settlement(delivery, Result.POSTPONED, self._journal.now(), reason)
        if isinstance(error, GiveUp):
            return self._dead(delivery, reason)
        if not isinstance(error, Retry):
            details = None if self.breaker.failures else error
            log.warning(
                "sink %(sink)s failed with event %(event_id)s: %(reason)s",
                self._facts(delivery, reason),
                exc_info=details,
            )
        probing = self.breaker.probing
        self.breaker.record_failure(reason)
        return self._retry(delivery, wait_asked_for(error), reason, is_failure=not probing)

    def _retry(self, delivery: Delivery, after: float | None, reason: str, *, is_failure: bool) -> Settlement:
        policy = self.sink.common.retry
        failures = delivery.failures + 1
        if is_failure and policy.max_attempts is not None and failures >= policy.max_attempts:
            return self._dead(delivery, f"failed {failures} times, last reason: {reason}")
        if is_failure and delivery.age > policy.max_age:
            return self._dead(delivery, f"failed for {delivery.age:.0f} s, last reason: {reason}")
        wait = backoff_seconds(policy, failures, self._random) if after is None else after
        result = Result.FAILED if is_failure else Result.POSTPONED
        return Settlement(delivery, result, self._journal.now() + wait, reason)

    def _dead(self, delivery: Delivery, reason: str) -> Settlement:
        log.error("sink %(sink)s gave up event %(event_id)s: %(reason)s", self._facts(delivery, reason))
        self._alerts.delivery_died(delivery.event, self.sink.name, reason)
        return Settlement(delivery, Result.DEAD, reason=reason)

    def _facts(self, delivery: Delivery, reason: str) -> dict[str, str]:
        return {"sink": self.sink.name, "event_id": delivery.event.id, "reason": reason}

    def _settle(self) -> None:
        """Record results. Until the journal has stored them they stay here, together with their claims."""
        self.breaker.save()
        if self._unsettled:
            self._journal.settle(self._unsettled)
            self._unsettled = []

    def _seconds_until_due(self) -> float:
        due = self._journal.next_due(self.sink.name)
        return LOOK_SECONDS if due is None else max(due - self._journal.now(), 0.0)


def wait_asked_for(error: BaseException) -> float | None:
    """The `after` of Retry or Pause; an attribute of that name of another exception may be anything."""
    return error.after if isinstance(error, SinkSignal) else None
