"""A backfill that a person asks for: what it would fetch, and the request to the dispatcher's process."""

from __future__ import annotations

from collections.abc import Sequence

from receiver.errors import ReceiverError
from receiver.journal import Records
from receiver.sensors.registry import Registry
from receiver.sensors.requested_backfill import (
    Missed,
    Progress,
    RequestedBackfill,
    missed,
    read_request,
    save_request,
)
from receiver.settings import Settings


def backfill_possible(records: Records, settings: Settings) -> str | None:
    """Why no backfill can be asked for now; None if one can be."""
    if absent := settings.api.missing:
        return f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not set"
    request = read_request(records)
    return "a backfill was asked for already, and has not ended yet" if request and request.is_open else None


def to_backfill(records: Records, registry: Registry, settings: Settings, now: float) -> Sequence[Missed]:
    """What a backfill would ask DT for. Raises ReceiverError if it is nothing, or if none can be asked for now."""
    if reason := backfill_possible(records, settings):
        raise ReceiverError(reason)
    found = missed(registry, now)
    if not found:
        raise ReceiverError("nothing was missed in the last 31 days, which is how far back DT's history goes")
    return found


def ask_for_backfill(records: Records, registry: Registry, settings: Settings, now: float) -> None:
    """Let the dispatcher's process run `backfill`. Raises as `to_backfill`."""
    to_backfill(records, registry, settings, now)
    save_request(records, RequestedBackfill(Progress.ASKED, now))
