"""Runs `backfill` after an outage that was longer than DT retries: once, and in a process of its own."""

from __future__ import annotations

import logging
from contextlib import closing
from datetime import UTC, datetime

from receiver.delivery.backfill_thread import BackfillThread
from receiver.event import SIMULATED_PROJECT
from receiver.sensors import open_registry
from receiver.sensors.gaps import HISTORY_MINUTES
from receiver.sensors.minutes import minute_of
from receiver.sensors.registry import Registry

log = logging.getLogger(__name__)

DT_RETRIES_MINUTES = 12 * 60
SETTLE_MINUTES = 30
"""So long after an outage DT itself may still push what it retries, and sensors are heard again."""

DOCUMENT = "backfill-automatic"
"""The document with the end of the last outage for which events were fetched, in minutes since 1970."""


class AutomaticBackfill(BackfillThread):
    """Looks for such outages of the receiver and of projects."""

    document = DOCUMENT
    first_look_seconds = 10.0
    look_seconds = 300.0
    lease_seconds = 600.0

    def look(self) -> None:
        with closing(open_registry(self._settings)) as registry:
            self.step(registry)

    def step(self, registry: Registry) -> None:
        """Fetch what was missed, if there was an outage since the last time. Raises JournalError."""
        end = missed_until(registry, self._now())
        if end is None or end <= int(self._journal.document(DOCUMENT) or b"0"):
            return
        if not self.lease():
            return
        until = datetime.fromtimestamp(end * 60, UTC)
        log.info("fetching from DT what was missed until %s", f"{until:%Y-%m-%d %H:%M} UTC")
        ended = self.fetch()
        if ended is None:
            return
        if ended.succeeded:
            log.info("fetched from DT what was missed: %s", ended.text)
        else:
            log.error("not everything that was missed was fetched from DT; run `backfill`: %s", ended.text)
        self._journal.save_document(DOCUMENT, str(end).encode())


def missed_until(registry: Registry, now: float) -> int | None:
    """The end of the last outage, of the receiver or of a project, that was longer than DT retries; in minutes.

    Events of the next half hour may still be such that DT retries.
    """
    outages, down = registry.outages(now, HISTORY_MINUTES)
    spans = [*down, *(span for project in outages.keys() - {SIMULATED_PROJECT} for span in outages[project])]
    settled = minute_of(now) - SETTLE_MINUTES
    return max((end for start, end in spans if end - start > DT_RETRIES_MINUTES and end <= settled), default=None)
