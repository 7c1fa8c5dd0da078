"""What operators ask of the journal, in SQL: dead letters, quarantine, replay, history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    Delete,
    Select,
    Update,
    bindparam,
    delete,
    func,
    select,
    tuple_,
    update,
)

from receiver.journal.contract import (
    DeadLetter,
    DeadLetterGroup,
    DeliveryState,
    EventHistory,
    QuarantinedPush,
    StoredEvent,
)
from receiver.journal.sql.schema import (
    DEAD,
    DELIVERED,
    IS_DEAD,
    PENDING,
    deliveries,
    events,
    quarantine,
    received_place,
    sinks,
)
from receiver.journal.sql.state import STORED_EVENT, SqlState

BATCH = 1000
"""How many dead letters one transaction changes: pushes wait meanwhile."""
COUNTED = 1_000_000
"""How many events one statement counts."""
STATES = {PENDING: "pending", DELIVERED: "delivered", DEAD: "dead"}
CONDITIONS = {
    "pending": deliveries.c.due.is_not(None),
    "delivered": deliveries.c.state == DELIVERED,
    "dead": IS_DEAD,
}
"""By the name of each state, the condition that its index is for; few deliveries are not delivered."""
QUARANTINED = (quarantine.c.id, quarantine.c.received_at, quarantine.c.reason, quarantine.c.body, quarantine.c.origin)
THIS_DELIVERY = (deliveries.c.event == bindparam("of_event")) & (deliveries.c.sink == bindparam("of_sink"))


class SqlRecords(SqlState):
    """The contract of Records on a database."""

    def known(self, event_ids: Sequence[str]) -> set[str]:
        with self._database.read() as connection:
            return set(connection.scalars(select(events.c.id).where(events.c.id.in_(event_ids))))

    def dead_letter_groups(self, sink: str | None, limit: int, reason: str | None = None) -> list[DeadLetterGroup]:
        count = func.count().label("count")
        grouped = (
            select(
                deliveries.c.sink,
                deliveries.c.reason,
                count,
                func.min(deliveries.c.event).label("oldest"),
                func.max(deliveries.c.event).label("newest"),
            )
            .where(IS_DEAD)
            .group_by(deliveries.c.sink, deliveries.c.reason)
            .order_by(count.desc())
            .limit(limit)
        )
        if sink is not None:
            grouped = grouped.where(
                deliveries.c.sink == select(sinks.c.key).where(sinks.c.name == sink).scalar_subquery()
            )
        if reason is not None:
            grouped = grouped.where(deliveries.c.reason == reason)
        groups, oldest, newest = grouped.subquery(), events.alias(), events.alias()
        query = (
            select(sinks.c.name, groups.c.reason, groups.c.count, oldest.c.received_at, newest.c.received_at)
            .join_from(groups, sinks, sinks.c.key == groups.c.sink)
            .join(oldest, oldest.c.key == groups.c.oldest)
            .join(newest, newest.c.key == groups.c.newest)
            .order_by(groups.c.count.desc(), sinks.c.name, groups.c.reason)
        )
        with self._database.read() as connection:
            return [DeadLetterGroup(*row) for row in connection.execute(query)]

    def dead_letters(
        self, sink: str | None, limit: int, reason: str | None = None, before: int | None = None
    ) -> list[DeadLetter]:
        columns = (sinks.c.name, deliveries.c.attempts, deliveries.c.settled_at, deliveries.c.reason)
        query = (
            select(*STORED_EVENT, *columns)
            .join_from(deliveries, sinks, sinks.c.key == deliveries.c.sink)
            .join(events, events.c.key == deliveries.c.event)
            .where(IS_DEAD, sinks.c.name == bindparam("name"))
            .order_by(deliveries.c.event.desc())
            .limit(limit)
        )
        if reason is not None:
            query = query.where(deliveries.c.reason == reason)
        if before is not None:
            query = query.where(deliveries.c.event < before)
        with self._database.read() as connection:  # a sink at a time, for each has its place in the index
            names = [sink] if sink is not None else connection.scalars(select(sinks.c.name).order_by(sinks.c.name))
            rows = [row for name in [*names] for row in connection.execute(query, {"name": name})]
        rows.sort(key=lambda row: (row.key, row.settled_at), reverse=True)
        return [DeadLetter(row.name, StoredEvent(*row[:5]), *row[6:]) for row in rows[:limit]]

    def retry_dead_letters(
        self, sink: str, event_ids: Sequence[str] | None, reason: str | None = None, limit: int | None = None
    ) -> int:
        change = update(deliveries).where(THIS_DELIVERY).values(**self._new_delivery())
        return self._change_dead(sink, event_ids, reason, limit, change)

    def delete_dead_letters(
        self, sink: str, event_ids: Sequence[str] | None, reason: str | None = None, limit: int | None = None
    ) -> int:
        return self._change_dead(sink, event_ids, reason, limit, delete(deliveries).where(THIS_DELIVERY))

    def quarantined(self, limit: int, before: tuple[float, str] | None = None) -> list[QuarantinedPush]:
        place = tuple_(quarantine.c.received_at, quarantine.c.id)
        query = select(*QUARANTINED).order_by(quarantine.c.received_at.desc(), quarantine.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(place < before)
        with self._database.read() as connection:
            return [QuarantinedPush(*row) for row in connection.execute(query)]

    def find_quarantined(self, id_prefix: str) -> list[QuarantinedPush]:
        query = select(*QUARANTINED).where(quarantine.c.id.startswith(id_prefix, autoescape=True))
        with self._database.read() as connection:
            return [QuarantinedPush(*row) for row in connection.execute(query)]

    def release(self, quarantined: QuarantinedPush, event_id: str) -> None:
        event = {
            "id": event_id,
            "received_at": quarantined.received_at,
            "routed": False,
            "body": quarantined.body,
            "origin": quarantined.origin,
        }
        with self._database.write(wakes=True) as connection:
            row = self._database.insert(events).values(event)
            connection.execute(row.on_conflict_do_nothing(index_elements=["id"]))
            connection.execute(delete(quarantine).where(quarantine.c.id == quarantined.id))

    def count_received(self, since: float, until: float) -> int:
        """In parts, so that no statement takes long; unrouted events, which are few, have an index of their own."""
        in_time = (events.c.received_at >= since, events.c.received_at < until)
        place, count = (since, 0), 0
        with self._database.read() as connection:
            count -= connection.scalar(select(func.count()).where(events.c.routed.is_(False), *in_time)) or 0
            while True:
                following = (received_place > place, events.c.received_at < until)
                places = select(events.c.received_at, events.c.key).where(*following)
                places = places.order_by(events.c.received_at, events.c.key)
                last = connection.execute(places.offset(COUNTED - 1).limit(1)).first()
                if last is None:
                    return count + (connection.scalar(select(func.count()).where(*following)) or 0)
                place, count = (last.received_at, last.key), count + COUNTED

    def received(self, since: float, until: float, after: int, limit: int) -> list[StoredEvent]:
        in_time = (received_place > (since, after), events.c.received_at < until, events.c.routed.is_(True))
        query = select(*STORED_EVENT).where(*in_time).order_by(events.c.received_at, events.c.key)
        with self._database.read() as connection:
            return [StoredEvent(*row) for row in connection.execute(query.limit(limit))]

    def requeue(self, sink: str, stored: Sequence[StoredEvent]) -> int:
        with self._database.write(wakes=True) as connection:
            existing = self._existing_keys(connection, stored)
            if not existing:
                return 0
            key = self._sink_key(connection, sink, lock=True)
            row = self._database.insert(deliveries).values(self._new_delivery())
            changed = connection.execute(
                row.on_conflict_do_update(
                    index_elements=["event", "sink"], set_=self._new_delivery(), where=deliveries.c.due.is_(None)
                ).returning(deliveries.c.event),
                [{"event": event, "sink": key} for event in sorted(existing)],
            )
            return len(changed.all())

    def history(self, event_id: str) -> EventHistory | None:
        with self._database.read() as connection:
            found = self._histories(connection, select(*STORED_EVENT, events.c.routed).where(events.c.id == event_id))
        return found[0] if found else None

    def newest(self, until: float, state: str | None, before: int | None, limit: int) -> list[EventHistory]:
        query = select(*STORED_EVENT, events.c.routed).where(events.c.received_at < until)
        if state is not None:
            in_state = CONDITIONS[state]
            query = query.where(events.c.key.in_(select(deliveries.c.event).where(in_state)))
        if before is not None:
            query = query.where(events.c.key < before)
        with self._database.read() as connection:
            return self._histories(connection, query.order_by(events.c.key.desc()).limit(limit))

    def resume(self, sink: str) -> None:
        with self._database.write(wakes=True) as connection:
            connection.execute(update(sinks).where(sinks.c.name == sink).values(paused_until=self.now()))

    def remove_sink(self, sink: str) -> int:
        with self._database.write() as connection:
            key = connection.scalar(select(sinks.c.key).where(sinks.c.name == sink).with_for_update())
            if key is None:
                return 0
            of_sink = deliveries.c.sink == key
            undelivered = connection.scalar(select(func.count()).where(of_sink, deliveries.c.state != DELIVERED))
            connection.execute(delete(deliveries).where(of_sink))
            connection.execute(delete(sinks).where(sinks.c.key == key))
        return undelivered or 0

    @staticmethod
    def _histories(connection: Connection, query: Select[Any]) -> list[EventHistory]:
        """The events of a query, each with its delivery at each sink that it was routed to."""
        found = connection.execute(query).all()
        columns = (
            deliveries.c.event,
            sinks.c.name,
            deliveries.c.state,
            deliveries.c.attempts,
            deliveries.c.settled_at,
            deliveries.c.reason,
            deliveries.c.due,
        )
        routed = (
            select(*columns)
            .join_from(deliveries, sinks, sinks.c.key == deliveries.c.sink)
            .where(deliveries.c.event.in_([row.key for row in found]))
            .order_by(sinks.c.name)
        )
        states: dict[int, list[DeliveryState]] = {row.key: [] for row in found}
        for event, name, state, *rest in connection.execute(routed):
            states[event].append(DeliveryState(name, STATES[state], *rest))
        return [EventHistory(StoredEvent(*row[:5]), row.routed, tuple(states[row.key])) for row in found]

    def _change_dead(
        self,
        sink: str,
        event_ids: Sequence[str] | None,
        reason: str | None,
        limit: int | None,
        change: Update | Delete,
    ) -> int:
        """Change dead letters a batch at a time; returns how many."""
        changed = after = 0
        while limit is None or changed < limit:
            batch = BATCH if limit is None else min(BATCH, limit - changed)
            with self._database.write(wakes=True) as connection:
                dead = self._dead(connection, sink, event_ids, reason, after, batch)
                if not dead:
                    break
                connection.execute(change, dead)
            changed, after = changed + len(dead), dead[-1]["of_event"]
        return changed

    def _dead(
        self,
        connection: Connection,
        sink: str,
        event_ids: Sequence[str] | None,
        reason: str | None,
        after: int,
        limit: int,
    ) -> list[dict[str, Any]]:
        """The next dead letters of a sink, as parameters of `THIS_DELIVERY`."""
        query = (
            select(deliveries.c.event, deliveries.c.sink)
            .join(sinks, sinks.c.key == deliveries.c.sink)
            .where(IS_DEAD, sinks.c.name == sink, deliveries.c.event > after)
        )
        if reason is not None:
            query = query.where(deliveries.c.reason == reason)
        if event_ids is not None:
            query = query.join(events, events.c.key == deliveries.c.event).where(events.c.id.in_(event_ids))
        query = query.order_by(deliveries.c.event).limit(limit).with_for_update(of=deliveries)
        return [{"of_event": row.event, "of_sink": row.sink} for row in connection.execute(query)]

    def _new_delivery(self) -> dict[str, Any]:
        """The columns of a pending delivery that was never attempted."""
        return {
            "state": PENDING,
            "due": self.now(),
            "attempts": 0,
            "failures": 0,
            "holder": None,
            "first_attempt_at": None,
            "settled_at": None,
            "reason": None,
        }
