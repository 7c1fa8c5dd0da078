"""A backfill that a person asks for on the console: a document of the journal says what became of it.

The console writes it, the dispatcher's process does the work, and whoever looks reads it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Protocol

from receiver.event import SIMULATED_PROJECT
from receiver.sensors.gaps import HISTORY_MINUTES
from receiver.sensors.minutes import Span
from receiver.sensors.registry import Registry

DOCUMENT = "backfill-requested"
AROUND_MINUTES = 60
"""So long before and after a downtime of the receiver a project may be unheard because of it."""


class Progress(StrEnum):
    """What became of a request."""

    ASKED = "asked"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class RequestedBackfill:
    """The last request: since when it is in this state (seconds since 1970), and its result or reason in one line."""

    progress: Progress
    since: float
    text: str = ""

    @property
    def is_open(self) -> bool:
        return self.progress in (Progress.ASKED, Progress.RUNNING)


class Documents(Protocol):
    """A journal, or its records."""

    def document(self, name: str) -> bytes | None: ...

    def save_document(self, name: str, content: bytes) -> None: ...


def read_request(documents: Documents) -> RequestedBackfill | None:
    """The last request; None if there was none. Raises JournalError."""
    try:
        saved = json.loads(documents.document(DOCUMENT) or b"{}")
        return RequestedBackfill(Progress(saved["progress"]), float(saved["since"]), str(saved["text"]))
    except (ValueError, KeyError, TypeError):  # none, or of another version
        return None


def save_request(documents: Documents, request: RequestedBackfill) -> None:
    documents.save_document(DOCUMENT, json.dumps(asdict(request)).encode())


@dataclass(frozen=True)
class Missed:
    """For how long nothing was heard of a project while the receiver was up, or, without one, how long it was down."""

    project_id: str | None
    seconds: int


def missed(registry: Registry, now: float) -> Sequence[Missed]:
    """What DT's history may have, the longest time first. Raises JournalError."""
    projects, down = registry.outages(now, HISTORY_MINUTES)
    found = [Missed(None, 60 * sum(end - start for start, end in down))]
    for project, spans in projects.items():
        if project == SIMULATED_PROJECT:
            continue
        minutes = [(end - start) - _overlap(start, end, down) for start, end in spans]
        found.append(Missed(project, 60 * sum(each for each in minutes if each > AROUND_MINUTES)))
    return sorted((each for each in found if each.seconds), key=lambda each: each.seconds, reverse=True)


def _overlap(start: int, end: int, spans: Sequence[Span]) -> int:
    return sum(max(0, min(end, until) - max(start, since)) for since, until in spans)
