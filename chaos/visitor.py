"""Somebody who has the console open all the time, and looks at one part after another."""

from __future__ import annotations

import itertools
import threading
from collections import Counter

import urllib3

from chaos.oracle import Violation
from chaos.system import CONSOLE_PASSWORD
from receiver.testing.running import RunningReceiver

PARTS = ("", "sensors", "silence", "sinks", "dead-letters", "events", "rejected")
LOOK_SECONDS = 0.2
ALLOWED = {200, 404, 503, 0}
"""A page; one that says that there is no registry yet, or why it cannot be shown now; and no response."""


class Visitor(threading.Thread):
    """Asks for a page, pauses, and asks for the next; `responses` counts the statuses of each, 0 for none."""

    def __init__(self, receiver: RunningReceiver, pause_seconds: float = LOOK_SECONDS) -> None:
        super().__init__(daemon=True)
        self.responses: Counter[tuple[str, int]] = Counter()
        self._receiver = receiver
        self._pause_seconds = pause_seconds
        self._done = threading.Event()

    def run(self) -> None:
        for part in itertools.cycle(PARTS):
            if self._done.wait(self._pause_seconds):
                return
            self.responses[part, self.look(part)] += 1

    def look(self, part: str) -> int:
        headers = urllib3.make_headers(basic_auth=f"admin:{CONSOLE_PASSWORD}")
        try:
            return self._receiver.http.request("GET", f"{self._receiver.url}/console/{part}", headers=headers).status
        except urllib3.exceptions.HTTPError:
            return 0

    def stop(self) -> set[str]:
        """End. Returns what responded with an internal error."""
        self._done.set()
        self.join()
        return {f"/console/{part} responded {status}" for part, status in self.responses if status not in ALLOWED}

    def finish(self) -> list[Violation]:
        """End. None may have responded with an internal error, and now every part must be shown."""
        wrong = self.stop()
        unseen = {f"/console/{part} is not shown" for part in PARTS if self.look(part) != 200}
        return [Violation(what) for what in sorted(wrong | unseen)]
