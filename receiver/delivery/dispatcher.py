"""The dispatcher: routes events, and delivers them to the sinks.

One thread routes new events, extends claims and applies retention; each sink is called by threads of its own. What must
be known of a sink after a restart is in the journal.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from receiver.delivery.alerts import Alerts
from receiver.delivery.circuit_breaker import CircuitBreaker, Random
from receiver.delivery.registry import Judge
from receiver.delivery.retention import Retention
from receiver.delivery.sink_loop import CLAIM_SECONDS, IDLE_SECONDS, LOOK_SECONDS, POLL_SECONDS, Redact, SinkLoop
from receiver.delivery.sinks import Sink
from receiver.errors import JournalUnavailable, NotAnEvent
from receiver.journal import Journal, SinkState, StoredEvent
from receiver.lifeline import Lifeline
from receiver.logs import RateLimitedLog
from receiver.redaction import error_text
from receiver.settings import SENSORS, Filter, SinkSettings

log = logging.getLogger(__name__)

EXTEND_SECONDS = 15.0
"""A quarter of a claim: three extensions in a row may fail."""

GATHER_SECONDS = 0.015
"""How long events are gathered after some were routed: with many pushes, a few larger transactions cost less."""

LIVENESS_SECONDS = 5.0
SILENT_SECONDS = 15.0
"""Three reports of liveness in a row may be late: then other dispatchers take over the claims."""

HOLD_SECONDS = 10.0
"""So long after its last report a dispatcher begins no more calls: they have the rest of SILENT_SECONDS to end."""

TRIAL_SECONDS = 5.0
"""How long a suspect sink is called alone before the next one may begin."""

DRAIN_SECONDS = 17.0
"""SIGTERM leaves 20 s in all; the rest is for calls in progress and for closing the sinks."""

ORPHANED_SECONDS = 4.0
"""How long to finish when the supervisor is gone: its successor may be starting already."""

CLOSE_SECONDS = 1.0
LONG_CALL_SECONDS = 60.0
BATCH = 500
"""How many events one transaction routes."""


class Dispatcher:
    """All sinks of one process.

    `enabled` and `disabled` are the sinks of config.toml. `broken` maps the name of each enabled sink that could not be
    built to the reason, `sinks` are the others. `plugins` are the hooks of plugins. `warnings` are for operators.
    `judge` judges the sensors.
    """

    def __init__(
        self,
        journal: Journal,
        enabled: Sequence[SinkSettings],
        sinks: Sequence[Sink],
        broken: Mapping[str, str],
        *,
        disabled: Sequence[SinkSettings] = (),
        plugins: Sequence[Any] = (),
        warnings: Sequence[str] = (),
        judge: Judge | None = None,
        retention_seconds: float,
        redact: Redact = str,
        random: Random = random.random,
    ) -> None:
        self._journal = journal
        self._enabled = enabled
        self._sinks = sinks
        self._broken = broken
        self._warnings = warnings
        self._judge = judge
        self._retention = Retention(journal, retention_seconds)
        self._redact = redact
        self._random = random
        self._alerts = Alerts(plugins, [sink.hook for sink in sinks], redact)
        self._disabled = disabled
        self._enabled_before: Sequence[SinkSettings] = ()
        """Sinks that were enabled until this start: they get the events that were received before it."""
        self._new_events = True
        """There may be unrouted events."""
        self._new_states = True
        """An operator may have changed the state of a sink."""
        self._routed_at = float("-inf")
        self._started_at = 0.0
        self._catching_up = True
        """There may be unrouted events that were received before the start."""
        self._loops: list[SinkLoop] = []
        self._not_started: list[SinkLoop] = []
        self._behind: set[str] = set()
        """Sinks that have missed events while their filter was invalid."""
        self._on_trial: tuple[SinkLoop, float] | None = None
        self._last_run: dict[Callable[[], None], float] = {}
        self._reported_at = self._reporting_since = float("-inf")
        self._log = RateLimitedLog(log)

    def run(self, lifeline: Lifeline) -> None:
        """Deliver until the lifeline says stop; then deliver what is due, for a limited time."""
        threads = self.start()
        if self._judge:
            self._judge.start(self._alerts)
        while not lifeline.stopping():
            lifeline.report_alive()
            routed = self.tick()
            if not routed:
                self._new_events = self._journal.wait_for_events()
                self._new_states |= self._new_events
            elif routed < BATCH:
                time.sleep(GATHER_SECONDS)
        if self._judge:
            self._judge.stop()
        self._drain(lifeline, threads)
        self._alerts.close(CLOSE_SECONDS)
        self._close_sinks()

    def start(self) -> list[threading.Thread]:
        """Become the dispatcher and create the threads of all sinks; `tick` lets them begin."""
        self._started_at = time.time()
        suspects = self._journal.start_dispatching()
        states = self._journal.sink_states()
        enabled_before = self._journal.enabled_sinks()
        self._enabled_before = [sink for sink in self._disabled if sink.name in enabled_before]
        self._pause_broken(states)
        for sink, breaker in zip(self._sinks, self._breakers(states, suspects), strict=True):
            self._loops += [self._loop(sink, breaker, number) for number in range(sink.common.concurrency)]
        for loop in self._loops:
            if loop.sink.name == SENSORS:
                loop.gives_way_to = [other for other in self._loops if other is not loop]
        self._not_started = sorted(self._loops, key=lambda loop: not loop.breaker.suspect)
        threads = [
            threading.Thread(target=loop.run, name=f"sink {loop.sink.name}", daemon=True) for loop in self._loops
        ]
        for thread in threads:
            thread.start()
        return threads

    def tick(self) -> int | None:
        """One round of the work that is not a sink's own. Returns how many events it routed.

        None if the journal was unavailable: there may be unrouted events.
        """
        try:
            self._every(LIVENESS_SECONDS, self._report_alive)
            self._start_loops()
            self._every(IDLE_SECONDS, self._take_over)
            routed = self._route_new()
            self._every(LIVENESS_SECONDS, self._find_sinks_behind)
            self._retention.keep_up(routed)
            routed = max(routed, self._catch_up())
            self._every(EXTEND_SECONDS, self._extend_claims)
            self._every(EXTEND_SECONDS, self._warn_about_long_calls)
            self._every(self._retention.pause_seconds, self._retention.apply)
            self._every(IDLE_SECONDS if self._new_states else LOOK_SECONDS, self._adopt_states)
        except JournalUnavailable as error:
            self._log.error("journal", "the dispatcher waits for the journal: %s", error)
            time.sleep(IDLE_SECONDS)
            return None
        return routed

    def _pause_broken(self, states: Mapping[str, SinkState]) -> None:
        for name, reason in self._broken.items():
            log.error("sink %(sink)s is paused: %(reason)s", {"sink": name, "reason": reason})
            state = states.get(name, SinkState(name))
            if not state.pauses:
                self._alerts.sink_paused(name, reason)
            until_next_start = replace(state, pauses=max(state.pauses, 1), paused_until=0.0, pause_reason=reason)
            self._journal.save_sink_state(until_next_start)

    def _breakers(self, states: Mapping[str, SinkState], suspects: Sequence[str]) -> list[CircuitBreaker]:
        """The circuit breaker of each sink. Of the sinks on trial when the last dispatcher died, the one that had been
        paused most often is assumed to be the cause."""
        on_trial = [states[sink.name] for sink in self._sinks if sink.name in states and states[sink.name].on_trial]
        most_pauses = max((state.pauses for state in on_trial), default=0)
        breakers = []
        for sink in self._sinks:
            state = states.get(sink.name, SinkState(sink.name))
            breaker = CircuitBreaker(state, sink.common.retry, self._journal, self._alerts.sink_paused)
            breaker.suspect = sink.name in suspects
            if state.on_trial and state.pauses == most_pauses:
                breaker.pause("the dispatcher died while it called this sink alone")
            breakers.append(breaker)
        return breakers

    def _loop(self, sink: Sink, breaker: CircuitBreaker, number: int) -> SinkLoop:
        first = number == 0
        return SinkLoop(
            sink,
            breaker,
            self._journal,
            self._alerts,
            random=self._random,
            redact=self._redact,
            may_call=self._holds_claims,
            first=first,
        )

    def _start_loops(self) -> None:
        """Let the sinks begin: first, one after another, those that were in a call when the last dispatcher died."""
        while self._not_started and not self._waits_for_trial():
            loop = self._not_started.pop(0)
            loop.allowed.set()
            self._on_trial = (loop, time.monotonic() + TRIAL_SECONDS) if loop.breaker.suspect else None

    def _waits_for_trial(self) -> bool:
        if self._on_trial is None:
            return False
        loop, until = self._on_trial
        return not loop.stepped.is_set() and time.monotonic() < until

    def _route_new(self) -> int:
        """Route when there may be new events, and now and then anyway."""
        now = time.monotonic()
        if not self._new_events and now - self._routed_at < LOOK_SECONDS:
            return 0
        self._routed_at = now
        routed = self._route()
        self._new_events = self._new_events or routed > 0
        return routed

    def _route(self) -> int:
        """Route new events.

        Events that were received before the start also go to the sinks that were enabled then. A sink whose filter is
        invalid misses them until it is valid again.
        """
        new = self._journal.unrouted(BATCH)
        if new:
            valid = [sink for sink in [*self._enabled, *self._enabled_before] if sink.filter_is_valid]
            missed_by = [sink.name for sink in self._enabled if not sink.filter_is_valid]
            routed = routes(new, valid)
            self._journal.route(routed, missed_by)
            self._wake_sinks(Counter(chain.from_iterable(names for _, names in routed)))
        if self._catching_up and len(new) < BATCH and not self._journal.others_are_routing(self._started_at):
            enabled, disabled = ([sink.name for sink in sinks] for sinks in (self._enabled, self._disabled))
            for name in sorted(self._journal.sinks_behind().intersection(disabled)):
                log.warning(
                    "sink %(sink)s does not get what it missed: its filter was invalid until it was disabled",
                    {"sink": name},
                )
            self._journal.set_enabled_sinks(enabled, disabled)
            self._enabled_before, self._catching_up = (), False
        return len(new)

    def _find_sinks_behind(self) -> None:
        self._behind = self._journal.sinks_behind()

    def _catch_up(self) -> int:
        """Route what sinks have missed, a part in each round. Returns BATCH if there is more."""
        for sink in self._enabled:
            if sink.name in self._behind and sink.filter_is_valid:
                if not self._journal.catch_up(sink.name, partial(_passes, sink), BATCH):
                    self._behind.remove(sink.name)
                self._wake_all()
        return BATCH if any(sink.name in self._behind for sink in self._enabled if sink.filter_is_valid) else 0

    def _wake_sinks(self, new: Mapping[str, int]) -> None:
        """Wake the threads of sinks with new deliveries; as many as there are deliveries claim them at once."""
        left = Counter(new)
        for loop in self._loops:
            name = loop.sink.name
            if loop.idle and left[name] > 0:
                loop.idle = False
                left[name] -= 1
            if name in new:
                loop.wake.set()

    def _wake_all(self) -> None:
        for loop in self._loops:
            loop.wake.set()

    def _every(self, seconds: float, action: Callable[[], None]) -> None:
        now = time.monotonic()
        if now - self._last_run.get(action, float("-inf")) >= seconds:
            action()
            self._last_run[action] = now

    def _report_alive(self) -> None:
        now = time.monotonic()
        self._journal.report_alive([*self._warnings, *self._long_calls(), *self._unknown_sinks_behind()])
        if now - self._reported_at > 2 * LIVENESS_SECONDS:
            self._reporting_since = now
        self._reported_at = now

    def _holds_claims(self) -> bool:
        """Whether its claims are its own: other dispatchers take over those of one that cannot report, although it may
        still be able to call its sinks."""
        return time.monotonic() - self._reported_at < HOLD_SECONDS

    def _take_over(self) -> None:
        """Take over the claims of dispatchers that do not report.

        When the journal was unavailable, all of them were silent. So a dispatcher judges only by a time in which it has
        always been able to report.
        """
        if time.monotonic() - self._reporting_since > SILENT_SECONDS and self._journal.take_over(SILENT_SECONDS):
            self._wake_all()

    def _adopt_states(self) -> None:
        """Adopt the pauses that other dispatchers or operators have begun or ended, and look for what they requeued."""
        self._new_states = False
        before = [(loop.breaker, loop.breaker.saved_state) for loop in self._loops]
        states = self._journal.sink_states()
        for breaker, saved_state in before:
            if breaker.state.name in states:
                breaker.adopt(states[breaker.state.name], saved_state)
        self._wake_all()

    def _extend_claims(self) -> None:
        for loop in self._loops:
            if claimed := loop.claimed:
                self._journal.extend(claimed, CLAIM_SECONDS)

    def _warn_about_long_calls(self) -> None:
        for warning in self._long_calls():
            log.warning("%s", warning)

    def _long_calls(self) -> list[str]:
        """Calls cannot be cancelled, so a warning names each sink that needs a timeout."""
        seconds = {loop.sink.name: 0.0 for loop in self._loops}
        for loop in self._loops:
            seconds[loop.sink.name] = max(seconds[loop.sink.name], loop.call_seconds())
        return [
            f"sink {name} has been in one call for {longest:.0f} s; set a timeout in it"
            for name, longest in seconds.items()
            if longest > LONG_CALL_SECONDS
        ]

    def _unknown_sinks_behind(self) -> list[str]:
        """Warnings about sinks that a dispatcher with another configuration may know, or that were deleted from it."""
        known = [sink.name for sink in (*self._enabled, *self._disabled)]
        return [
            f"sink {name} has no table in config.toml, and has missed events while its filter was invalid: these and "
            f"all later ones stay in the journal; add its table, or run `python -m receiver sinks remove {name}`"
            for name in sorted(self._behind.difference(known))
        ]

    def _drain(self, lifeline: Lifeline, threads: Sequence[threading.Thread]) -> None:
        """Deliver what is due and what intake still accepts, then stop; calls that do not return are abandoned."""
        self._new_events = True  # `run` waits for them no more, so each `tick` looks
        end = time.monotonic() + (DRAIN_SECONDS if lifeline.stop_requested else ORPHANED_SECONDS)
        while lifeline.supervisor_connected() and time.monotonic() < end:
            if not self.tick():
                time.sleep(POLL_SECONDS)
        while lifeline.stop_requested and time.monotonic() < end and self.tick() != 0:
            pass
        for loop in self._loops:
            loop.finishing = True
            loop.stopping = not lifeline.stop_requested
            loop.allowed.set()
            loop.wake.set()
        self._wait_for(threads, end)
        for loop in self._loops:
            loop.stopping = True
        self._wait_for(threads, end + IDLE_SECONDS)
        for loop in self._loops:
            if loop.call_seconds():
                log.warning("shutting down while sink %(sink)s is still blocked in a call", {"sink": loop.sink.name})
            loop.breaker.end_trial()

    def _wait_for(self, threads: Sequence[threading.Thread], end: float) -> None:
        """Wait for the end of these threads, and report meanwhile, or others would take over what they deliver."""
        for thread in threads:
            while thread.is_alive() and (left := end - time.monotonic()) > 0:
                if left > LIVENESS_SECONDS:  # a report may take that long when the journal does not respond
                    with suppress(JournalUnavailable):
                        self._every(LIVENESS_SECONDS, self._report_alive)
                thread.join(min(left, IDLE_SECONDS))

    def _close_sinks(self) -> None:
        """Close the sinks that are open, all at once; one that does not return in time is abandoned."""
        open_sinks = {loop.sink.name: loop.sink for loop in self._loops if loop.breaker.sink_is_open}
        threads = [threading.Thread(target=self._close, args=(sink,), daemon=True) for sink in open_sinks.values()]
        for thread in threads:
            thread.start()
        end = time.monotonic() + CLOSE_SECONDS
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _close(self, sink: Sink) -> None:
        try:
            sink.hook.close()
        except BaseException as error:
            reason = error_text(error, self._redact)
            log.warning("sink %(sink)s failed to close: %(reason)s", {"sink": sink.name, "reason": reason})


def routes(events: Sequence[StoredEvent], sinks: Sequence[SinkSettings]) -> list[tuple[StoredEvent, list[str]]]:
    """Each event with the names of the sinks whose filter it passes."""
    names = [sink.name for sink in sinks]
    if all(sink.common.filter == Filter() for sink in sinks):
        return [(event, names) for event in events]
    return [(event, _destinations(event, sinks)) for event in events]


def _passes(sink: SinkSettings, event: StoredEvent) -> bool:
    return bool(_destinations(event, [sink]))


def _destinations(stored: StoredEvent, sinks: Sequence[SinkSettings]) -> list[str]:
    try:
        event = stored.decode()
    except NotAnEvent:
        return [sink.name for sink in sinks]
    return [sink.name for sink in sinks if not sink.common.filter.misses(event)]
