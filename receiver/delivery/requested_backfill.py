"""Runs `backfill` when a person asks for it on the console."""

from __future__ import annotations

import logging

from receiver.delivery.backfill_thread import BackfillThread
from receiver.redaction import Redactor
from receiver.sensors.requested_backfill import DOCUMENT, Progress, RequestedBackfill, read_request, save_request

log = logging.getLogger(__name__)

MAX_TEXT = 600


class BackfillOnRequest(BackfillThread):
    """Looks for a request, and says what becomes of it."""

    document = DOCUMENT
    first_look_seconds = look_seconds = 3.0
    lease_seconds = 60.0
    """The next request waits for it, too."""

    def look(self) -> None:
        """Do what was asked for, if anything was. Raises JournalError."""
        request = read_request(self._journal)
        if request is None or not request.is_open or not self.lease():
            return
        request = read_request(self._journal)
        if request is None or not request.is_open:  # another dispatcher has ended it meanwhile
            return
        log.info("a person asked for a backfill: fetching from DT what was missed")
        self._save(Progress.RUNNING)
        ended = self.fetch()
        if ended is not None:
            text = Redactor(self._settings.secret_values).redact(ended.text)[:MAX_TEXT]
            log.log(logging.INFO if ended.succeeded else logging.ERROR, "the backfill ended: %s", text)
            self._save(Progress.DONE if ended.succeeded else Progress.FAILED, text)

    def _save(self, progress: Progress, text: str = "") -> None:
        save_request(self._journal, RequestedBackfill(progress, self._now(), text))
