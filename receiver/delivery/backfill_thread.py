"""A thread of the dispatcher that runs the command `backfill` in a process of its own: it never asks DT itself."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from receiver.errors import JournalError
from receiver.journal import Journal
from receiver.settings import Settings

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "receiver", "backfill", "--yes", "--json")
RUN_SECONDS = 1.0

EXTENSIONS = 4
"""How often a lease is extended in its time, so that some may fail before another dispatcher fetches, too."""


@dataclass(frozen=True)
class Ended:
    """How the command ended: its numbers, or the last line of its errors."""

    succeeded: bool
    text: str


class BackfillThread:
    """Looks now and then whether there is something to fetch, and fetches it. `document` of the journal is leased for
    `lease_seconds`: so long a dispatcher that died keeps others from fetching."""

    document: str
    first_look_seconds: float
    look_seconds: float
    lease_seconds: float

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
        self._extended_at = float("-inf")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self.document, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End a backfill that is running: after the next start it goes on where it was."""
        self._stopped.set()
        self._thread.join(2 * RUN_SECONDS)

    def look(self) -> None:
        """Fetch if there is something to fetch. Raises JournalError."""
        raise NotImplementedError

    def lease(self) -> bool:
        """Whether this dispatcher is the one to fetch."""
        self._extended_at = time.monotonic()
        return self._journal.lease_document(self.document, self.lease_seconds)

    def fetch(self) -> Ended | None:
        """Run the command; None if it was stopped."""
        return run(self._command, self._settings, self._stopped, self._hold)

    def _hold(self) -> None:
        """Extend the lease before it ends; take it again if it has ended, and no other dispatcher has it."""
        if time.monotonic() - self._extended_at > self.lease_seconds / EXTENSIONS:
            with suppress(JournalError):
                if self._journal.extend_lease(self.document, self.lease_seconds) or self.lease():
                    self._extended_at = time.monotonic()

    def _run(self) -> None:
        seconds = self.first_look_seconds
        while not self._stopped.wait(seconds):
            seconds = self.look_seconds
            try:
                self.look()
            except JournalError as error:
                log.debug("it is not known now whether something has to be fetched from DT: %s", error)
            except Exception:
                log.exception("internal error while fetching what was missed")


def run(
    command: Sequence[str], settings: Settings, stopped: threading.Event, still_running: Callable[[], object]
) -> Ended | None:
    """Run the command; None if it was stopped, after which the same command goes on where it was.

    `still_running` is called every second.
    """
    environment = {**os.environ, "RECEIVER_CONFIG": str(settings.path)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        while True:
            try:
                out, errors = process.communicate(timeout=RUN_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if stopped.is_set():
                    process.kill()
                    return None
                still_running()
    if process.returncode == 0:
        return Ended(True, _in_one_line(out))
    return Ended(False, errors.decode("utf-8", "replace").strip().rpartition("\n")[2])


def _in_one_line(printed: bytes) -> str:
    with suppress(ValueError):
        numbers = json.loads(printed)
        return ", ".join(f"{name} {value}" for name, value in numbers.items() if type(value) is int)
    return "done"
