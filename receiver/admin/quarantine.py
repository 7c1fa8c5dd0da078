"""Quarantined pushes: lists of them, and another attempt to decode them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from receiver.admin.shown import MAX_LISTED, to_time
from receiver.errors import NotAnEvent, ReceiverError
from receiver.event import event_id
from receiver.journal import QuarantinedPush, Records

QUARANTINED_AT_ONCE = 100
"""How many quarantined pushes are read at once, each of up to 256 KiB."""


@dataclass(frozen=True)
class QuarantineRow:
    """A quarantined push, as it is shown."""

    id: str
    received_at: datetime
    bytes: int
    reason: str


def quarantined(records: Records) -> list[QuarantineRow]:
    """The newest quarantined pushes."""
    return [quarantine_row(push) for push in records.quarantined(MAX_LISTED)]


def quarantine_row(push: QuarantinedPush) -> QuarantineRow:
    return QuarantineRow(push.id, to_time(push.received_at), len(push.body), push.reason)


def one_quarantined(records: Records, id_prefix: str) -> QuarantinedPush:
    """The quarantined push whose id begins with `id_prefix`. Raises ReceiverError unless there is exactly one."""
    found = records.find_quarantined(id_prefix)
    if len(found) != 1:
        raise ReceiverError(
            f"{len(found)} quarantined pushes have an id that begins with {id_prefix!r}; `quarantine list` shows all"
        )
    return found[0]


def retry_quarantined(records: Records, id_prefix: str | None) -> tuple[int, int]:
    """Decode quarantined pushes again: how many are events now and will be delivered, and how many are not."""
    chosen = each_quarantined(records) if id_prefix is None else [one_quarantined(records, id_prefix)]
    released = left = 0
    for push in chosen:
        try:
            name = event_id(push.body)
        except NotAnEvent:
            left += 1
        else:
            records.release(push, name)
            released += 1
    return released, left


def each_quarantined(records: Records) -> Iterator[QuarantinedPush]:
    """All quarantined pushes, newest first, of which only a few are in memory."""
    before = None
    while found := records.quarantined(QUARANTINED_AT_ONCE, before):
        yield from found
        before = (found[-1].received_at, found[-1].id)
