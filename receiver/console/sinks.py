"""The sinks: what waits for each of them, why one is paused or failed, and a probe of one that is paused."""

from __future__ import annotations

from dataclasses import dataclass

from receiver.admin import SinkStatus, resume, sink_statuses
from receiver.console.visit import Done, Page, Visit
from receiver.settings import SinkSettings


@dataclass(frozen=True)
class Row:
    """A sink; one that was removed from the settings has no type. `filtered` are the conditions of its filter."""

    status: SinkStatus
    type: str | None
    filtered: tuple[str, ...]
    fails: bool

    @property
    def state(self) -> str:
        return "paused" if self.status.pause_reason else self.status.configured

    @property
    def can_resume(self) -> bool:
        """A pause without an end lasts until the receiver is restarted."""
        return self.status.configured == "enabled" and self.status.paused_until is not None


def show(visit: Visit) -> Page:
    of_settings = {sink.name: sink for sink in visit.settings.all_sinks}
    statuses = sink_statuses(visit.records, visit.settings, visit.sources.counts().sinks)
    rows = [row(status, of_settings.get(status.sink)) for status in sorted(statuses, key=urgency)]
    return Page("sinks.html", {"rows": rows, "now": visit.time})


def urgency(status: SinkStatus) -> int:
    """Which sinks are shown first: those that are paused, then those with dead letters."""
    return 0 if status.pause_reason else 1 if status.dead else 2


def row(status: SinkStatus, sink: SinkSettings | None) -> Row:
    success, failure = status.last_success_at, status.last_failure_at
    fails = failure is not None and (success is None or success < failure)
    if sink is None:
        return Row(status, None, (), fails)
    return Row(
        status, sink.common.type, tuple(key for key, value in sink.common.filter if value not in (None, {})), fails
    )


def probe(visit: Visit) -> Done:
    resume(visit.records, visit.settings, visit.path["sink"])
    return Done("/sinks", "resumed")
