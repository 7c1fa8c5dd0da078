"""Runs `backfill` when a person asks for it on the console."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from receiver.delivery.backfill_command import COMMAND, RUN_SECONDS, run
from receiver.errors import JournalError
from receiver.journal import Journal
from receiver.redaction import Redactor
from receiver.sensors.requested_backfill import DOCUMENT, Progress, RequestedBackfill, read_request, save_request
from receiver.settings import Settings

log = logging.getLogger(__name__)

LOOK_SECONDS = 3.0
LEASE_SECONDS = 60.0
"""How long a dispatcher that died keeps others from running it, and how long the next request waits at most."""

MAX_TEXT = 600


class BackfillOnRequest:
    """A thread of the dispatcher that looks for a request, and says what becomes of it."""

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
        self._redact = Redactor(settings.secret_values).redact
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="backfill-on-request", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End a backfill that is running: after the next start it goes on where it was."""
        self._stopped.set()
        self._thread.join(2 * RUN_SECONDS)

    def step(self) -> None:
        """Do what was asked for, if anything was. Raises JournalError."""
        request = read_request(self._journal)
        if request is None or not request.is_open or not self._journal.lease_document(DOCUMENT, LEASE_SECONDS):
            return
        request = read_request(self._journal)
        if request is None or not request.is_open:  # another dispatcher has ended it meanwhile
            return
        log.info("a person asked for a backfill: fetching from DT what was missed")
        self._save(Progress.RUNNING)
        ended = run(self._command, self._settings, self._stopped, self._hold)
        if ended is not None:
            text = self._redact(ended.text)[:MAX_TEXT]
            log.log(logging.INFO if ended.succeeded else logging.ERROR, "the backfill ended: %s", text)
            self._save(Progress.DONE if ended.succeeded else Progress.FAILED, text)

    def _hold(self) -> None:
        with suppress(JournalError):
            self._journal.lease_document(DOCUMENT, LEASE_SECONDS)

    def _save(self, progress: Progress, text: str = "") -> None:
        save_request(self._journal, RequestedBackfill(progress, self._now(), text))

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            try:
                self.step()
            except JournalError as error:
                log.debug("it is not known now whether a backfill was asked for: %s", error)
            except Exception:
                log.exception("internal error while fetching what was missed")
