"""The dispatcher: moves deliveries from the journal to the sinks.

One thread matches new events to sinks, keeps claims alive and tidies up; each sink is called by threads of its own.
What is known of a sink across restarts lives in the journal.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from receiver.alerts import Alerts
from receiver.errors import JournalUnavailable, NotAnEvent, text_of
from receiver.health import Health, Random
from receiver.journal import Journal, Kept, SinkState
from receiver.lifeline import Lifeline
from receiver.logs import Seldom
from receiver.plugins import Sink
from receiver.settings import Filter, SinkSettings
from receiver.sink_loop import CLAIM_SECONDS, IDLE_SECONDS, POLL_SECONDS, Redact, SinkLoop

log = logging.getLogger(__name__)

EXTEND_SECONDS = 15.0
BEAT_SECONDS = 5.0
RETIRE_SECONDS = 1.0
RETIRE_BUDGET_SECONDS = 0.1
TRIAL_SECONDS = 5.0
DRAIN_SECONDS = 17.0
ABANDONED_SECONDS = 4.0
CLOSE_SECONDS = 1.0
LONG_CALL_SECONDS = 60.0
AT_ONCE = 500
"""How many events are matched or retired in one transaction."""


class Dispatcher:
    """All sinks of one process.

    `routes` are the enabled sinks, `disabled` those that are only configured. `faulty` maps the name of each sink that
    could not be built to the reason; `listeners` are the hooks of plugins.
    """

    def __init__(
        self,
        journal: Journal,
        routes: Sequence[SinkSettings],
        sinks: Sequence[Sink],
        faulty: Mapping[str, str],
        *,
        disabled: Sequence[SinkSettings] = (),
        listeners: Sequence[Any] = (),
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
        self._alerts = Alerts(listeners, [sink.hook for sink in sinks], redact)
        self._disabled = disabled
        self._leaving: Sequence[SinkSettings] = ()
        self._catching_up = True
        """There may be events from before the start; `_leaving` are the sinks that were enabled only then."""
        self._loops: list[SinkLoop] = []
        self._to_admit: list[SinkLoop] = []
        self._watched: tuple[SinkLoop, float] | None = None
        self._last_done: dict[Callable[[], None], float] = {}
        self._log = Seldom(log)

    def run(self, lifeline: Lifeline) -> None:
        """Deliver until the lifeline says stop; then drain what is due, for a bounded time."""
        threads = self.start()
        while not lifeline.stopping():
            lifeline.beat()
            if not self.tick():
                self._journal.wait()
        self._drain(lifeline, threads)
        self._alerts.close(CLOSE_SECONDS)
        self._close_all()

    def start(self) -> list[threading.Thread]:
        """Become the dispatcher, and make the threads of all sinks; `tick` lets them begin."""
        suspects = self._journal.begin()
        states = self._journal.states()
        before = self._journal.enabled()
        self._leaving = [sink for sink in self._disabled if sink.name in before]
        tried = [states[sink.name] for sink in self._sinks if sink.name in states and states[sink.name].on_trial]
        most_doubtful = max((state.pauses for state in tried), default=0)
        for name, why in self._faulty.items():
            log.error("sink %s is paused: %s", name, why)
            state = states.get(name, SinkState(name))
            if not state.pauses:
                self._alerts.sink_paused(name, why)
            self._journal.remember(replace(state, pauses=max(state.pauses, 1), pause_reason=why))
        for sink in self._sinks:
            state = states.get(sink.name, SinkState(sink.name))
            health = Health(state, sink.common.retry, self._journal, self._alerts.sink_paused)
            health.suspect = sink.name in suspects
            if health.state.on_trial and health.state.pauses == most_doubtful:
                health.pause("the dispatcher died when it called this sink alone")
            for number in range(sink.common.concurrency):
                self._loops.append(
                    SinkLoop(
                        sink,
                        health,
                        self._journal,
                        self._alerts,
                        random=self._random,
                        redact=self._redact,
                        first=number == 0,
                    )
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
            self._every(EXTEND_SECONDS, self._complain)
            self._every(RETIRE_SECONDS, self._retire)
            self._every(IDLE_SECONDS, self._refresh)
        except JournalUnavailable as error:
            self._log.error("journal", "the dispatcher waits for the journal: %s", error)
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
        """Owe new events to the sinks whose filter they pass.

        What was answered 200 before the start, and not matched then, is owed to the sinks that were enabled then, too.
        """
        new = self._journal.unmatched(AT_ONCE)
        if new:
            self._journal.owe(matches(new, [*self._routes, *self._leaving]))
            for loop in self._loops:
                loop.wake.set()
        if self._catching_up and len(new) < AT_ONCE:
            self._journal.enable([route.name for route in self._routes])
            self._leaving, self._catching_up = (), False
        return bool(new)

    def _every(self, seconds: float, action: Callable[[], None]) -> None:
        now = time.monotonic()
        if now - self._last_done.get(action, float("-inf")) >= seconds:
            action()
            self._last_done[action] = now

    def _refresh(self) -> None:
        """Take over the pauses that other dispatchers, or people, have begun or ended."""
        saved = [(loop, loop.health.saved) for loop in self._loops]
        states = self._journal.states()
        for loop, before in saved:
            if loop.sink.name in states:
                loop.health.take_over(states[loop.sink.name], before)

    def _extend(self) -> None:
        for loop in self._loops:
            if held := loop.in_hand:
                self._journal.extend(held, CLAIM_SECONDS)

    def _complain(self) -> None:
        """Name the sinks whose call does not come back: nobody can end it from outside."""
        for loop in self._loops:
            if (seconds := loop.calling_for()) > LONG_CALL_SECONDS:
                log.warning("sink %s has been in one call for %.0f s; give it a time-out", loop.sink.name, seconds)

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
            if loop.calling_for():
                log.warning("sink %s is left in a call that does not come back", loop.sink.name)
            loop.health.acquit()

    def _close_all(self) -> None:
        """Close the sinks that were opened, all at once; one that does not come back is left."""
        opened = {loop.sink.name: loop.sink for loop in self._loops if loop.health.opened}
        threads = [threading.Thread(target=self._close, args=(sink,), daemon=True) for sink in opened.values()]
        for thread in threads:
            thread.start()
        end = time.monotonic() + CLOSE_SECONDS
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _close(self, sink: Sink) -> None:
        try:
            sink.hook.close()
        except BaseException as error:
            log.warning("sink %s does not close: %s", sink.name, text_of(error, self._redact))


def matches(new: Sequence[Kept], routes: Sequence[SinkSettings]) -> list[tuple[Kept, list[str]]]:
    """Each event with the names of the sinks whose filter it passes."""
    every = [route.name for route in routes]
    if all(route.common.filter == Filter() for route in routes):
        return [(kept, every) for kept in new]
    return [(kept, _passed(kept, routes)) for kept in new]


def _passed(kept: Kept, routes: Sequence[SinkSettings]) -> list[str]:
    try:
        event = kept.decode()
    except NotAnEvent:
        return [route.name for route in routes]
    return [route.name for route in routes if not route.common.filter.misses(event)]
