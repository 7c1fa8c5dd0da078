"""One sink's work: claim what is due, call the sink, settle, back off.

Each sink has threads of its own for it, so that one that is slow, failing or waiting delays no other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from receiver.alerts import Alerts
from receiver.errors import GiveUp, JournalUnavailable, NotAnEvent, Pause, Retry, SinkSignal, text_of
from receiver.health import Health, Random, back_off
from receiver.journal import Delivery, Journal, Result, Settlement
from receiver.logs import Seldom
from receiver.plugins import Sink, line_that_raised

log = logging.getLogger(__name__)

CLAIM_SECONDS = 60.0
POLL_SECONDS = 0.05
IDLE_SECONDS = 1.0
SETTLE_SECONDS = 0.5

Redact = Callable[[str], str]


class SinkLoop:
    """One thread's work for one sink: claim, call, settle, back off. The `first` of a sink also opens and probes it."""

    def __init__(
        self,
        sink: Sink,
        health: Health,
        journal: Journal,
        alerts: Alerts,
        *,
        random: Random,
        redact: Redact,
        first: bool,
    ) -> None:
        self.sink = sink
        self.health = health
        self.in_hand: Sequence[Delivery] = ()
        self.allowed, self.came_back, self.wake = threading.Event(), threading.Event(), threading.Event()
        self.finishing = self.stopping = False
        self._journal = journal
        self._alerts = alerts
        self._random = random
        self._redact = redact
        self._first = first
        self._pace = 1
        self._unsettled: list[Settlement] = []
        self._called_at: float | None = None
        self._log = Seldom(log)

    def run(self) -> None:
        """Work until told to stop, or told to finish and nothing is left to do now."""
        self.allowed.wait()
        while not self.stopping:
            try:
                wait = self.step()
            except JournalUnavailable as error:
                self._log.error("journal", "sink %s waits for the journal: %s", self.sink.name, error)
                wait = IDLE_SECONDS
            except BaseException:  # a thread that ends would leave its sink behind in silence
                log.exception("sink %s met a fault of the receiver's own and tries again", self.sink.name)
                wait = IDLE_SECONDS
            self.came_back.set()
            if wait and self.finishing and not self._unsettled:
                break
            if wait:
                self.wake.wait(min(wait, IDLE_SECONDS))
                self.wake.clear()

    def calling_for(self) -> float:
        """Seconds since the call of the sink that is under way began; 0 when there is none."""
        called_at = self._called_at
        return 0.0 if called_at is None else time.monotonic() - called_at

    def step(self) -> float:
        """One round. Returns the seconds until another may find something to do; 0 when there was something."""
        self._settle()
        if paused_for := self.health.paused_for():
            return paused_for
        if not self._first and (self.health.probing or not self.health.opened):
            return IDLE_SECONDS if self.health.probing else POLL_SECONDS
        if not self.health.opened and not self._open():
            return self.health.paused_for()
        claimed = self._claim()
        if not claimed:
            self.health.suspect = False
            return self._until_due()
        try:
            with self.health.trial():
                self._deliver(claimed)
            self._settle()
        finally:
            self.health.in_hand.difference_update(delivery.event.key for delivery in claimed)
        self.in_hand = ()
        return 0.0

    def _claim(self) -> Sequence[Delivery]:
        """Claim what is due, without what another thread still calls the sink with although its claim ran out."""
        claimed = self._journal.claim(self.sink.name, self._most(), CLAIM_SECONDS)
        self.in_hand = [delivery for delivery in claimed if delivery.event.key not in self.health.in_hand]
        self.health.in_hand.update(delivery.event.key for delivery in self.in_hand)
        return self.in_hand

    def _most(self) -> int:
        """One for a probe, a batch for a sink in batches; else little enough to leave some to the other threads."""
        if self.health.probing:
            return 1
        if self.sink.in_batches or self.sink.common.concurrency == 1:
            return self.sink.common.batch_size
        return min(self._pace, self.sink.common.batch_size)

    def _open(self) -> bool:
        suspect = self.health.suspect
        with self.health.trial(), self._calling():
            try:
                self.sink.hook.open(name=self.sink.name, logger=logging.getLogger(f"sink.{self.sink.name}"))
            except BaseException as error:
                why = line_that_raised(error) + text_of(error, self._redact)
                self.health.pause(f"it does not open: {why}", asked_wait(error))
                return False
        self.health.suspect = suspect
        self.health.opened = True
        self._alerts.ready(self.sink.hook)
        return True

    def _deliver(self, claimed: Sequence[Delivery]) -> None:
        """Call the sink with all that was claimed: in one batch if it takes batches, and if not or in vain, singly."""
        left, why = Result.UNTOUCHED, ""
        if self.sink.in_batches and len(claimed) > 1:
            error = self._call(claimed)
            if error is None:
                self._unsettled += [Settlement(delivery, Result.DELIVERED) for delivery in claimed]
                self.health.succeeded()
                return
            left, why = Result.WAITING, text_of(error, self._redact)
            if isinstance(error, Pause):
                self.health.pause(why, error.after)
            else:
                log.warning("sink %s failed with a batch of %d: %s", self.sink.name, len(claimed), why)
        began = settled_at = time.monotonic()
        for number, delivery in enumerate(claimed):
            if self.stopping or self.health.paused_for():
                now = self._journal.now()
                self._unsettled += [Settlement(untried, left, now, why) for untried in claimed[number:]]
                break
            self._unsettled.append(self._settlement(delivery, self._call([delivery])))
            if time.monotonic() - settled_at > SETTLE_SECONDS:
                with suppress(JournalUnavailable):
                    self._settle()
                settled_at = time.monotonic()
        self._pace = self._pace * 2 if time.monotonic() - began < SETTLE_SECONDS / 2 else max(1, self._pace // 2)

    def _call(self, deliveries: Sequence[Delivery]) -> BaseException | None:
        """Call the sink: None when it came back, else what it raised."""
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
            self.health.succeeded()
            return Settlement(delivery, Result.DELIVERED)
        why = text_of(error, self._redact)
        if isinstance(error, Pause):
            self.health.pause(why, error.after)
            return Settlement(delivery, Result.WAITING, self._journal.now(), why)
        if isinstance(error, GiveUp):
            return self._dead(delivery, why)
        if not isinstance(error, Retry):
            details = None if self.health.failures else error
            log.warning("sink %s failed with event %s: %s", self.sink.name, delivery.event.id, why, exc_info=details)
        probing = self.health.probing
        self.health.failed(why)
        return self._again(delivery, asked_wait(error), why, counts=not probing)

    def _again(self, delivery: Delivery, after: float | None, why: str, *, counts: bool) -> Settlement:
        policy = self.sink.common.retry
        failures = delivery.failures + 1
        if counts and policy.max_attempts is not None and failures >= policy.max_attempts:
            return self._dead(delivery, f"failed {failures} times, last with: {why}")
        if counts and delivery.age > policy.max_age:
            return self._dead(delivery, f"failed for {delivery.age:.0f} s, last with: {why}")
        wait = back_off(policy, failures, self._random) if after is None else after
        return Settlement(delivery, Result.FAILED if counts else Result.WAITING, self._journal.now() + wait, why)

    def _dead(self, delivery: Delivery, why: str) -> Settlement:
        log.error("sink %s gave up event %s: %s", self.sink.name, delivery.event.id, why)
        self._alerts.delivery_died(delivery.event, self.sink.name, why)
        return Settlement(delivery, Result.DEAD, why=why)

    def _settle(self) -> None:
        """Record results. They stay here until the journal has taken them, and with them the claims."""
        self.health.save()
        if self._unsettled:
            self._journal.settle(self._unsettled)
            self._unsettled = []

    def _until_due(self) -> float:
        due = self._journal.next_due(self.sink.name)
        return IDLE_SECONDS if due is None else max(due - self._journal.now(), POLL_SECONDS)


def asked_wait(error: BaseException) -> float | None:
    """What one of our signals asks for; an attribute of a foreign error may be anything."""
    return error.after if isinstance(error, SinkSignal) else None
