"""The dispatcher: moves deliveries from the journal to the sinks.

One thread matches new events to sinks, keeps claims alive and tidies up; each sink has threads of its own, so that
one that is slow, failing or waiting delays no other. What is known of a sink across restarts lives in the journal.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from receiver.errors import GiveUp, JournalUnavailable, NotAnEvent, Pause, Retry, SinkSignal
from receiver.health import Health, Random, back_off
from receiver.journal import Delivery, Journal, Kept, Result, Settlement, SinkState
from receiver.lifeline import Lifeline
from receiver.plugins import Sink
from receiver.settings import SinkSettings

log = logging.getLogger(__name__)

CLAIM_SECONDS = 60.0
EXTEND_SECONDS = 15.0
BEAT_SECONDS = 5.0
RETIRE_SECONDS = 1.0
RETIRE_BUDGET_SECONDS = 0.1
POLL_SECONDS = 0.05
IDLE_SECONDS = 1.0
SETTLE_SECONDS = 0.5
TRIAL_SECONDS = 5.0
DRAIN_SECONDS = 17.0
ABANDONED_SECONDS = 4.0
CLOSE_SECONDS = 1.0
AT_ONCE = 500
"""How many events are matched or retired in one transaction."""

Redact = Callable[[str], str]


class SinkLoop:
    """One thread's work for one sink: claim, call, settle, back off. The `first` of a sink also opens and probes it."""

    def __init__(
        self, sink: Sink, health: Health, journal: Journal, *, random: Random, redact: Redact, first: bool
    ) -> None:
        self.sink = sink
        self.health = health
        self.in_hand: Sequence[Delivery] = ()
        self.allowed, self.came_back, self.wake = threading.Event(), threading.Event(), threading.Event()
        self.finishing = self.stopping = False
        self._journal = journal
        self._random = random
        self._redact = redact
        self._first = first
        self._pace = 1
        self._unsettled: list[Settlement] = []

    def run(self) -> None:
        """Work until told to stop, or told to finish and nothing is left to do now."""
        self.allowed.wait()
        while not self.stopping:
            try:
                wait = self.step()
            except JournalUnavailable as error:
                log.error("sink %s waits for the journal: %s", self.sink.name, error)
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
        with self.health.trial():
            try:
                self.sink.hook.open(name=self.sink.name, logger=logging.getLogger(f"sink.{self.sink.name}"))
            except BaseException as error:
                self.health.pause(f"it does not open: {self._text(error)}", asked_wait(error))
                return False
        self.health.suspect = suspect
        self.health.opened = True
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
            left, why = Result.WAITING, self._text(error)
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

    def _settlement(self, delivery: Delivery, error: BaseException | None) -> Settlement:
        """What a single call means for its delivery and for the sink."""
        if error is None:
            self.health.succeeded()
            return Settlement(delivery, Result.DELIVERED)
        why = self._text(error)
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

    def _text(self, error: BaseException) -> str:
        """An exception in one bounded line, without secrets. A signal of ours speaks for itself."""
        try:
            text = str(error)
        except BaseException:
            text = "it cannot be shown"
        text = self._redact(text.encode("utf-8", "replace").decode().replace("\0", "?"))
        text = " ".join(text.split())[:500]
        return text if isinstance(error, SinkSignal) else f"{type(error).__name__}: {text}"


def asked_wait(error: BaseException) -> float | None:
    """What one of our signals asks for; an attribute of a foreign error may be anything."""
    return error.after if isinstance(error, SinkSignal) else None


class Dispatcher:
    """All sinks of one process. `faulty` maps the name of each sink that could not be built to the reason."""

    def __init__(
        self,
        journal: Journal,
        routes: Sequence[SinkSettings],
        sinks: Sequence[Sink],
        faulty: Mapping[str, str],
        *,
        retention_seconds: float,
        redact: Redact = str,
        random: Random = random.random,
    ) -> None:
        self._journal = journal
        self._routes = routes
        self._sinks = sinks
        self._faulty = faulty
        self._retention_seconds = retention_seconds
        self._redact = redact
        self._random = random
        self._loops: list[SinkLoop] = []
        self._to_admit: list[SinkLoop] = []
        self._watched: tuple[SinkLoop, float] | None = None
        self._last_done: dict[Callable[[], None], float] = {}

    def run(self, lifeline: Lifeline) -> None:
        """Deliver until the lifeline says stop; then drain what is due, for a bounded time."""
        threads = self.start()
        while not lifeline.stopping():
            lifeline.beat()
            if not self.tick():
                self._journal.wait()
        self._drain(lifeline, threads)
        self._close_all()

    def start(self) -> list[threading.Thread]:
        """Become the dispatcher, and make the threads of all sinks; `tick` lets them begin."""
        suspects = self._journal.begin()
        states = self._journal.states()
        for name, why in self._faulty.items():
            log.error("sink %s is paused: %s", name, why)
            state = states.get(name, SinkState(name))
            self._journal.remember(replace(state, pauses=max(state.pauses, 1), pause_reason=why))
        for sink in self._sinks:
            health = Health(states.get(sink.name, SinkState(sink.name)), sink.common.retry, self._journal)
            health.suspect = sink.name in suspects
            if health.state.on_trial:
                health.pause("the dispatcher died when it called this sink alone")
            for number in range(sink.common.concurrency):
                self._loops.append(
                    SinkLoop(sink, health, self._journal, random=self._random, redact=self._redact, first=number == 0)
                )
        self._to_admit = sorted(self._loops, key=lambda loop: not loop.health.suspect)
        threads = [
            threading.Thread(target=loop.run, name=f"sink {loop.sink.name}", daemon=True) for loop in self._loops
        ]
        for thread in threads:
            thread.start()
        return threads

    def tick(self) -> bool:
        """One round of what is no sink's own work. Returns whether there was anything to match."""
        self._admit()
        try:
            matched = self._match()
            self._every(BEAT_SECONDS, self._journal.beat)
            self._every(EXTEND_SECONDS, self._extend)
            self._every(RETIRE_SECONDS, self._retire)
            if self._journal.shared:
                self._every(IDLE_SECONDS, self._refresh)
        except JournalUnavailable as error:
            log.error("the dispatcher waits for the journal: %s", error)
            time.sleep(IDLE_SECONDS)
            return False
        return matched

    def _admit(self) -> None:
        """Let the sinks begin: those that were being called when the last dispatcher died one after another, alone."""
        while self._to_admit and not self._watching():
            loop = self._to_admit.pop(0)
            loop.allowed.set()
            self._watched = (loop, time.monotonic() + TRIAL_SECONDS) if loop.health.suspect else None

    def _watching(self) -> bool:
        if self._watched is None:
            return False
        loop, until = self._watched
        return not loop.came_back.is_set() and time.monotonic() < until

    def _match(self) -> bool:
        """Owe new events to the sinks whose filter they pass."""
        new = self._journal.unmatched(AT_ONCE)
        if new:
            self._journal.owe([(kept, self._sinks_for(kept)) for kept in new])
            for loop in self._loops:
                loop.wake.set()
        return bool(new)

    def _sinks_for(self, kept: Kept) -> list[str]:
        try:
            event = kept.decode()
        except NotAnEvent:
            return [route.name for route in self._routes]
        return [route.name for route in self._routes if not route.common.filter.misses(event)]

    def _every(self, seconds: float, action: Callable[[], None]) -> None:
        now = time.monotonic()
        if now - self._last_done.get(action, float("-inf")) >= seconds:
            action()
            self._last_done[action] = now

    def _refresh(self) -> None:
        """Take over the pauses that other dispatchers have begun or ended."""
        states = self._journal.states()
        for loop in self._loops:
            if loop.sink.name in states:
                loop.health.take_over(states[loop.sink.name])

    def _extend(self) -> None:
        for loop in self._loops:
            if held := loop.in_hand:
                self._journal.extend(held, CLAIM_SECONDS)

    def _retire(self) -> None:
        end = time.monotonic() + RETIRE_BUDGET_SECONDS
        while self._journal.retire(time.time() - self._retention_seconds, AT_ONCE) and time.monotonic() < end:
            pass

    def _drain(self, lifeline: Lifeline, threads: Sequence[threading.Thread]) -> None:
        """Deliver what is due and what intake still brings, then stop; calls that do not come back are left."""
        end = time.monotonic() + (DRAIN_SECONDS if lifeline.asked_to_stop else ABANDONED_SECONDS)
        while lifeline.more_may_come() and time.monotonic() < end:
            if not self.tick():
                time.sleep(POLL_SECONDS)
        while lifeline.asked_to_stop and time.monotonic() < end and self.tick():
            pass
        for loop in self._loops:
            loop.finishing = True
            loop.stopping = not lifeline.asked_to_stop
            loop.allowed.set()
            loop.wake.set()
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        for loop in self._loops:
            loop.stopping = True
        for thread in threads:
            thread.join(max(0.0, end + IDLE_SECONDS - time.monotonic()))
        for loop in self._loops:
            loop.health.acquit()

    def _close_all(self) -> None:
        """Close the sinks, all at once; one that does not come back is left."""
        threads = [threading.Thread(target=self._close, args=(sink,), daemon=True) for sink in self._sinks]
        for thread in threads:
            thread.start()
        end = time.monotonic() + CLOSE_SECONDS
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _close(self, sink: Sink) -> None:
        try:
            sink.hook.close()
        except BaseException as error:
            log.warning("sink %s does not close: %s", sink.name, self._redact(str(error)))
