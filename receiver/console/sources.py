"""Where views look things up: the journal's records and the registry of sensors, opened when the first view asks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from receiver.errors import ReceiverError
from receiver.journal import Counts, Records, open_records
from receiver.sensors import open_registry, registry_path
from receiver.sensors.registry import Registry
from receiver.sensors.shown import ProjectsHeard, projects_heard
from receiver.settings import Settings

Opened = TypeVar("Opened")

PROJECTS_SECONDS = 15.0
"""How long it is shared when projects were heard: a row of each sensor is read for it, and gaps are of minutes."""

MOST_COUNTED = 10_000
"""Dead letters of a sink, and quarantined pushes, are counted up to this number; beyond, it is `more than 10,000`."""


class NoRegistry(ReceiverError):
    """There is no registry of sensors; the message says why."""


class Sources:
    """The journal's records and the registry of one process. Calls may come from many threads.

    `responses` counts the responses to pushes since the start, by status code and text.
    """

    def __init__(self, settings: Settings, responses: Callable[[], Mapping[tuple[int, str], int]]) -> None:
        self.settings = settings
        self.responses = responses
        self.records: Callable[[], Records] = Once(self._open_records)
        """Raises JournalError."""
        self.registry: Callable[[], Registry] = Once(self._open_registry)
        """Raises JournalError, and NoRegistry if it is disabled or not there yet."""
        self.counts: Callable[[], Counts] = Recent(lambda: self.records().counts(MOST_COUNTED + 1))
        """What is in the journal now, counted up to MOST_COUNTED and one more. Raises JournalError."""
        self.states: Callable[[], dict[str, int]] = Recent(lambda: self.registry().states())
        """How many sensors are in each state. Raises as `registry`."""
        self.projects: Callable[[], ProjectsHeard] = Recent(
            lambda: projects_heard(self.registry(), time.time()), PROJECTS_SECONDS
        )
        """When each project was heard. Raises as `registry`."""

    def _open_records(self) -> Records:
        return open_records(self.settings, create_tables=False)

    def _open_registry(self) -> Registry:
        if not self.settings.sensors.enabled:
            raise NoRegistry(f"the registry of sensors is disabled in {self.settings.path.name} [sensors]")
        path = registry_path(self.settings)
        if path is not None and not os.path.exists(path):
            raise NoRegistry("there is no registry of sensors yet; the dispatcher creates it")
        return open_registry(self.settings, create=False)


class Recent(Generic[Opened]):
    """A reading that all pages share for ten times as long as it took: many people may look at a large journal.

    And for `seconds` at least.
    """

    def __init__(self, read: Callable[[], Opened], seconds: float = 0.0) -> None:
        self._read = read
        self._seconds = seconds
        self._lock = threading.Lock()
        self._found: Opened | None = None
        self._good_until = float("-inf")

    def __call__(self) -> Opened:
        with self._lock:
            began = time.monotonic()
            if self._found is None or began > self._good_until:
                self._found = self._read()
                now = time.monotonic()
                self._good_until = now + max(self._seconds, 10 * (now - began))
            return self._found


class Once(Generic[Opened]):
    """Opens something at the first call that succeeds, and gives that from then on."""

    def __init__(self, open: Callable[[], Opened]) -> None:
        self._open = open
        self._lock = threading.Lock()
        self._opened: Opened | None = None

    def __call__(self) -> Opened:
        with self._lock:
            if self._opened is None:
                self._opened = self._open()
            return self._opened
