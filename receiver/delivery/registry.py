"""Feeds the registry of sensors as the sink `sensors`, and judges it: the only place that announces incidents."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing

from receiver.delivery.alerts import Alerts
from receiver.errors import JournalError, JournalUnavailable, Pause
from receiver.event import Event
from receiver.hookspecs import hookimpl
from receiver.journal import Journal
from receiver.logs import RateLimitedLog
from receiver.sensors import open_registry
from receiver.sensors.registry import Registry
from receiver.settings import SENSORS, Settings
from receiver.validation import counted

log = logging.getLogger(__name__)

JUDGE_EVERY_SECONDS = 5.0
JUDGE_SHARE = 0.1
"""Judging computes for a tenth of the time at most, since folding and sinks wait for it."""

TIDY_SECONDS = 0.2
"""How long retention of the registry may take after each judgement."""

STOP_SECONDS = 1.0
"""How long a stop waits for a judgement under way; another dispatcher judges when its lease has ended."""

AWAY_SECONDS = 5.0
"""How long to wait for a registry that cannot be written."""


class RegistrySink:
    """Folds events into the registry of sensors."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @hookimpl
    def open(self) -> None:
        self._registry = open_registry(self._settings)

    @hookimpl
    def deliver_batch(self, events: Sequence[Event]) -> None:
        try:
            self._registry.fold(events)
        except JournalUnavailable as error:
            raise Pause(str(error), AWAY_SECONDS) from None

    @hookimpl
    def close(self) -> None:
        self._registry.close()


class Judge:
    """A thread that judges all sensors every 5 s, while it is the judge of all dispatchers.

    An incident is stored before it is announced, and marked when its hooks are called. A crash in between repeats the
    announcement with the same incident id; it is never lost before that.
    """

    def __init__(self, settings: Settings, journal: Journal, holder: str, now: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._journal = journal
        self._holder = holder
        self._now = now
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._log = RateLimitedLog(log)

    def start(self, alerts: Alerts) -> None:
        self._thread = threading.Thread(target=self._run, args=(alerts,), name="judge", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Begin no further judgement, and let another dispatcher judge at once."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def step(self, registry: Registry, alerts: Alerts) -> None:
        """One judgement; none while events wait that could change it, or while intake cannot store any."""
        self._journal.check_writable()
        if self._is_behind():
            return
        for announcement in registry.judge(self._now(), self._holder):
            incident = announcement.incident
            what = announcement.hook.removeprefix("incident_")
            log.warning(
                "incident %d %s: %s, %s", incident.id, what, incident.cause, counted(len(incident.sensors), "sensor")
            )
            alerts.announce(announcement.hook, incident)
            registry.announced(announcement)
        end = time.monotonic() + TIDY_SECONDS
        while registry.tidy(self._now()) and time.monotonic() < end:
            pass

    def _run(self, alerts: Alerts) -> None:
        while not self._stopped.is_set():
            try:
                with closing(open_registry(self._settings)) as registry:
                    while not self._stopped.is_set():
                        began = time.thread_time()
                        self.step(registry, alerts)
                        computed = time.thread_time() - began
                        self._stopped.wait(max(JUDGE_EVERY_SECONDS, computed / JUDGE_SHARE))
                    registry.stop_judging(self._holder)
            except JournalError as error:
                self._log.error("registry", "sensors cannot be judged now: %s", error)
            except Exception:
                log.exception("internal error while judging sensors")
            self._stopped.wait(AWAY_SECONDS)

    def _is_behind(self) -> bool:
        """Whether an event waits for longer than `settle` to be folded."""
        waiting = self._journal.oldest_pending(SENSORS)
        return waiting is not None and self._now() - waiting > self._settings.sensors.settle
