"""The removal of events that have expired and are delivered everywhere, in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, delete, func, literal, select, true

from receiver.journal.sql.database import Database
from receiver.journal.sql.schema import DELIVERED, deliveries, events, received_place, sinks

CHECKED_AGAIN = 10
"""How many times as many events are checked again at once as are removed at once: checking costs far less."""

START = (float("-inf"), 0)
"""Before all events."""


class ExpiredEvents:
    """Removes expired events in the order of their arrival, and knows how far it has come since the start."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._expired_up_to = self._checked_again_up_to = START

    def remove(self, received_before: float, limit: int) -> bool:
        """Each event is checked once it has expired. Those that had to stay are checked again, a part in each step, so
        that however many they are, they do not delay the others."""
        expired = self._expired(self._expired_up_to, (received_before, 0), limit)
        if expired:
            self._remove([row.key for row in expired if row.removable])
            self._expired_up_to = (expired[-1].received_at, expired[-1].key)
        if len(expired) == limit:
            return True
        return self._remove_again(limit) > 0

    def _remove_again(self, limit: int) -> int:
        """Check again some of the events that had to stay; after the last one, begin with the first one."""
        if self._expired_up_to == START:
            return 0
        rows = self._expired(self._checked_again_up_to, self._expired_up_to, limit * CHECKED_AGAIN)
        removable = [row for row in rows if row.removable][:limit]
        self._remove([row.key for row in removable])
        last = removable[-1] if len(removable) == limit else rows[-1] if len(rows) == limit * CHECKED_AGAIN else None
        self._checked_again_up_to = START if last is None else (last.received_at, last.key)
        return len(removable)

    def _expired(self, after: tuple[float, int], up_to: tuple[float, int], limit: int) -> Sequence[Any]:
        """The places of the next events, and whether each can be removed."""
        some = select(events.c.received_at, events.c.key, events.c.routed)
        some = some.where(received_place > after, received_place <= up_to)
        part = some.order_by(events.c.received_at, events.c.key).limit(limit).subquery()
        missed_from = select(func.min(sinks.c.missed_from)).scalar_subquery()
        removable = part.c.routed & _is_delivered(part.c.key) & func.coalesce(part.c.key < missed_from, true())
        query = select(part.c.received_at, part.c.key, removable.label("removable"))
        with self._database.read(by_index=True) as connection:
            return connection.execute(query.order_by(part.c.received_at, part.c.key)).all()

    def _remove(self, keys: Sequence[int]) -> None:
        """Remove those of these events that are still delivered everywhere, except for those being requeued now.

        Not durable: what a power cut brings back is removed again.
        """
        if not keys:
            return
        with self._database.write(durable=False, by_index=True) as connection:
            if self._database.shared:
                locked = select(events.c.key).where(self._database.among(events.c.key, keys)).order_by(events.c.key)
                keys = connection.scalars(locked.with_for_update(skip_locked=True)).all()
            these = delete(events).where(self._database.among(events.c.key, keys), _is_delivered(events.c.key))
            removed = connection.scalars(these.returning(events.c.key)).all()
            connection.execute(delete(deliveries).where(self._database.among(deliveries.c.event, removed)))


def _is_delivered(event: ColumnElement[int]) -> ColumnElement[bool]:
    """Whether an event is delivered at all its sinks.

    The first row instead of EXISTS: PostgreSQL may read all undelivered rows of the table for that, if it believes that
    they are few, and compare each event with each of them.
    """
    undelivered = select(literal(1)).where(deliveries.c.event == event, deliveries.c.state != DELIVERED).limit(1)
    return undelivered.scalar_subquery().is_(None)
