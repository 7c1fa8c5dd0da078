"""Runs `backfill` after an outage that was longer than DT retries: once, and in a process of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime

from receiver.delivery.backfill_command import COMMAND, RUN_SECONDS, run
from receiver.errors import JournalError
from receiver.journal import Journal
from receiver.sensors import open_registry
from receiver.sensors.gaps import HISTORY_MINUTES
from receiver.sensors.minutes import minute_of
from receiver.sensors.registry import Registry
from receiver.settings import Settings

log = logging.getLogger(__name__)

DT_RETRIES_MINUTES = 12 * 60
SETTLE_MINUTES = 30
"""So long after an outage DT itself may still push what it retries, and sensors are heard again."""

FIRST_LOOK_SECONDS = 10.0
LOOK_SECONDS = 300.0
LEASE_SECONDS = 600.0
"""How long a dispatcher that died keeps others from fetching."""

DOCUMENT = "backfill-automatic"
"""The document with the end of the last outage for which events were fetched, in minutes since 1970."""


class AutomaticBackfill:
    """A thread of the dispatcher that looks for such outages of the receiver and of projects."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        now: Callable[[], float] = time.time,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._now = now
        self._command = command
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="backfill", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End a backfill that is running: after the next start it goes on where it was."""
        self._stopped.set()
        self._thread.join(2 * RUN_SECONDS)

    def step(self, registry: Registry) -> None:
        """Fetch what was missed, if there was an outage since the last time. Raises JournalError."""
        end = missed_until(registry, self._now())
        if end is None or end <= int(self._journal.document(DOCUMENT) or b"0"):
            return
        if not self._journal.lease_document(DOCUMENT, LEASE_SECONDS):
            return
        until = datetime.fromtimestamp(end * 60, UTC)
        log.info("fetching from DT what was missed until %s", f"{until:%Y-%m-%d %H:%M} UTC")
        if self._fetch():
            self._journal.save_document(DOCUMENT, str(end).encode())

    def _fetch(self) -> bool:
        """Run the command; False if it was stopped."""
        ended = run(self._command, self._settings, self._stopped, self._hold)
        if ended is None:
            return False
        if ended.succeeded:
            log.info("fetched from DT what was missed: %s", ended.text)
        else:
            log.error("not everything that was missed was fetched from DT; run `backfill`: %s", ended.text)
        return True

    def _hold(self) -> None:
        with suppress(JournalError):
            self._journal.lease_document(DOCUMENT, LEASE_SECONDS)

    def _run(self) -> None:
        seconds = FIRST_LOOK_SECONDS
        while not self._stopped.wait(seconds):
            seconds = LOOK_SECONDS
            try:
                with closing(open_registry(self._settings)) as registry:
                    self.step(registry)
            except JournalError as error:
                log.debug("it is not known now what was missed: %s", error)
            except Exception:
                log.exception("internal error while fetching what was missed")


def missed_until(registry: Registry, now: float) -> int | None:
    """The end of the last outage, of the receiver or of a project, that was longer than DT retries; in minutes.

    Events of the next half hour may still be such that DT retries.
    """
    outages, down = registry.outages(now, HISTORY_MINUTES)
    spans = [*down, *(span for of_project in outages.values() for span in of_project)]
    settled = minute_of(now) - SETTLE_MINUTES
    return max((end for start, end in spans if end - start > DT_RETRIES_MINUTES and end <= settled), default=None)
