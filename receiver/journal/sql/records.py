"""What operators ask of the journal, in SQL: dead letters, quarantine, replay, history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    ScalarSelect,
    Select,
    Update,
    bindparam,
    delete,
    func,
    literal,
    or_,
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
    dispatchers,
    events,
    quarantine,
    received_place,
    sinks,
)
from receiver.journal.sql.state import STORED_EVENT, SqlState

BATCH = 1000
"""How many dead letters one transaction changes: pushes wait meanwhile."""
REMOVED = 10_000
"""How many deliveries, of all sinks, one transaction looks through for those of a sink that is removed."""
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
        with self._database.read(by_index=True) as connection:
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

    def some_dead_letter_groups(self, sink: str | None, limit: int, most: int) -> list[DeadLetterGroup]:
        with self._database.read(by_index=True) as connection:
            names = connection.execute(select(sinks.c.key, sinks.c.name).order_by(sinks.c.name)).all()
            groups = [
                DeadLetterGroup(name, *row)
                for key, name in names
                if sink in (None, name)
                for row in connection.execute(_some_groups(key, limit, most))
            ]
        return sorted(groups, key=lambda group: -group.count)

    def count_dead_letters(self, sink: str, reason: str | None, most: int) -> int:
        with self._database.read(by_index=True) as connection:
            key = connection.scalar(select(sinks.c.key).where(sinks.c.name == sink))
            if key is None:
                return 0
            dead = _dead_of(key, reason, select(literal(1))).limit(most).subquery()
            return connection.scalar(select(func.count()).select_from(dead)) or 0

    def dead_letters(
        self, sink: str | None, limit: int, reason: str | None = None, before: int | None = None
    ) -> list[DeadLetter]:
        columns = (deliveries.c.event, deliveries.c.attempts, deliveries.c.settled_at, deliveries.c.reason)
        with self._database.read(by_index=True) as connection:  # a sink at a time, for each has its place in the index
            names = {row.key: row.name for row in connection.execute(select(sinks.c.key, sinks.c.name))}
            found = [
                (name, row)
                for key, name in names.items()
                if sink in (None, name)
                for row in connection.execute(
                    _dead_of(key, reason, select(*columns), before=before, descending=True).limit(limit)
                )
            ]
            found.sort(key=lambda each: (each[1].event, each[1].settled_at, each[0]), reverse=True)
            found = found[:limit]
            query = select(*STORED_EVENT).where(events.c.key.in_([row.event for _, row in found]))
            stored = {row.key: StoredEvent(*row) for row in connection.execute(query)} if found else {}
        return [DeadLetter(name, stored[event], *rest) for name, (event, *rest) in found if event in stored]

    def retry_dead_letters(
        self, sink: str, event_ids: Sequence[str] | None, reason: str | None = None, limit: int | None = None
    ) -> int:
        with self._database.read() as connection:
            change = update(deliveries).where(THIS_DELIVERY).values(**self._new_delivery(connection))
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
        with self._database.read(by_index=True) as connection:
            return [QuarantinedPush(*row) for row in connection.execute(query)]

    def find_quarantined(self, id_prefix: str) -> list[QuarantinedPush]:
        query = select(*QUARANTINED).where(quarantine.c.id.startswith(id_prefix, autoescape=True))
        with self._database.read(by_index=True) as connection:
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
        with self._database.read(by_index=True) as connection:
            return [StoredEvent(*row) for row in connection.execute(query.limit(limit))]

    def requeue(self, sink: str, stored: Sequence[StoredEvent]) -> int:
        with self._database.write(wakes=True) as connection:
            existing = self._existing_keys(connection, stored)
            if not existing:
                return 0
            key = self._sink_key(connection, sink, lock=True)
            new = self._new_delivery(connection)
            row = self._database.insert(deliveries).values(new)
            changed = connection.execute(
                row.on_conflict_do_update(
                    index_elements=["event", "sink"], set_=new, where=deliveries.c.due.is_(None)
                ).returning(deliveries.c.event),
                [{"event": event, "sink": key} for event in sorted(existing)],
            )
            return len(changed.all())

    def history(self, event_id: str) -> EventHistory | None:
        with self._database.read(by_index=True) as connection:
            found = self._histories(connection, select(*STORED_EVENT, events.c.routed).where(events.c.id == event_id))
        return found[0] if found else None

    def newest(self, until: float, state: str | None, before: int | None, limit: int) -> list[EventHistory]:
        query = select(*STORED_EVENT, events.c.routed).where(events.c.received_at < until)
        if state is not None:
            in_state = CONDITIONS[state]
            query = query.where(events.c.key.in_(select(deliveries.c.event).where(in_state)))
        if before is not None:
            query = query.where(events.c.key < before)
        with self._database.read(by_index=True) as connection:
            return self._histories(connection, query.order_by(events.c.key.desc()).limit(limit))

    def mentioning(
        self, texts: Sequence[bytes], until: float, before: int | None, limit: int, most_read: int
    ) -> tuple[list[EventHistory], int | None]:
        newest = select(events.c.key).where(events.c.received_at < until).order_by(events.c.key.desc())
        found = select(*STORED_EVENT, events.c.routed).where(events.c.received_at < until)
        found = found.where(or_(*(self._database.mentions(events.c.body, text) for text in texts)))
        if before is not None:
            newest, found = newest.where(events.c.key < before), found.where(events.c.key < before)
        with self._database.read(by_index=True) as connection:
            last = connection.scalar(newest.offset(most_read - 1).limit(1))
            if last is not None:
                found = found.where(events.c.key >= last)
            histories = self._histories(connection, found.order_by(events.c.key.desc()).limit(limit + 1))
        if len(histories) > limit > 0:
            return histories[:limit], histories[limit - 1].event.key
        return histories, last

    def resume(self, sink: str) -> None:
        with self._database.write(wakes=True) as connection:
            due = self._due_now(connection)
            connection.execute(update(sinks).where(sinks.c.name == sink).values(paused_until=due))

    def remove_sink(self, sink: str) -> int:
        """In parts, so that no transaction takes long; the last one deletes the sink, and what others have requeued for
        it meanwhile."""
        after = undelivered = 0
        while True:
            with self._database.write(by_index=True) as connection:
                key = connection.scalar(select(sinks.c.key).where(sinks.c.name == sink).with_for_update())
                if key is None:
                    return undelivered
                following = select(deliveries.c.event).where(deliveries.c.event > after).order_by(deliveries.c.event)
                last = connection.scalar(following.offset(REMOVED - 1).limit(1))
                part = deliveries.c.event > after if last is None else deliveries.c.event.between(after + 1, last)
                undelivered += self._remove_deliveries(connection, key, part)
                if last is None:
                    for of_others in (deliveries.c.due.is_not(None), IS_DEAD):
                        undelivered += self._remove_deliveries(connection, key, of_others)
                    connection.execute(delete(sinks).where(sinks.c.key == key))
                    return undelivered
            after = last

    @staticmethod
    def _remove_deliveries(connection: Connection, sink: int, which: ColumnElement[bool]) -> int:
        """Delete deliveries of a sink; returns how many of them were pending or dead."""
        states = connection.scalars(
            delete(deliveries).where(deliveries.c.sink == sink, which).returning(deliveries.c.state)
        )
        return sum(state != DELIVERED for state in states)

    @staticmethod
    def _histories(connection: Connection, query: Select[Any]) -> list[EventHistory]:
        """The events of a query, each with its delivery at each sink that it was routed to."""
        found = connection.execute(query).all()
        columns = (
            deliveries.c.event,
            deliveries.c.sink,
            deliveries.c.state,
            deliveries.c.attempts,
            deliveries.c.settled_at,
            deliveries.c.reason,
            deliveries.c.due,
        )
        names = dict(connection.execute(select(sinks.c.key, sinks.c.name)).all())
        states: dict[int, list[DeliveryState]] = {row.key: [] for row in found}
        routed = select(*columns).where(deliveries.c.event.in_(list(states)))
        for event, sink, state, *rest in connection.execute(routed) if found else ():
            if sink in names:
                states[event].append(DeliveryState(names[sink], STATES[state], *rest))
        for of_event in states.values():
            of_event.sort(key=lambda delivery: delivery.sink)
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
            with self._database.write(wakes=True, by_index=True) as connection:
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
        key = connection.scalar(select(sinks.c.key).where(sinks.c.name == sink))
        if key is None:
            return []
        columns: Select[Any] = select(deliveries.c.event, deliveries.c.sink)
        if event_ids is None:
            query = _dead_of(key, reason, columns, after=after)
        else:
            keys = connection.scalars(select(events.c.key).where(events.c.id.in_(event_ids))).all()
            chosen = deliveries.c.event.in_(keys)
            query = columns.where(IS_DEAD, deliveries.c.sink == key, chosen, deliveries.c.event > after)
            query = query.order_by(deliveries.c.event)
            if reason is not None:
                query = query.where(deliveries.c.reason == reason)
        query = query.limit(limit).with_for_update()
        return [{"of_event": row.event, "of_sink": row.sink} for row in connection.execute(query)]

    def _due_now(self, connection: Connection) -> float:
        """Now on the clock of the dispatcher. On SQLite each process has its own, and that of one that has run for long
        is behind if the machine's was set forward meanwhile."""
        reported = None if self._database.shared else connection.scalar(select(func.max(dispatchers.c.clock)))
        return self.now() if reported is None else min(self.now(), reported)

    def _new_delivery(self, connection: Connection) -> dict[str, Any]:
        """The columns of a pending delivery that was never attempted."""
        return {
            "state": PENDING,
            "due": self._due_now(connection),
            "attempts": 0,
            "failures": 0,
            "holder": None,
            "first_attempt_at": None,
            "settled_at": None,
            "reason": None,
        }


def _dead_of(
    sink: int,
    reason: Any,
    query: Select[Any],
    *,
    after: int | None = None,
    before: int | None = None,
    descending: bool = False,
) -> Select[Any]:
    """The dead letters of a sink, of one reason or of all, in the order of their events.

    What is fixed is a range of one value, and part of the order: PostgreSQL leaves out of an order what it knows to be
    fixed, and would take another index that has the order too, and read it to its end for the few rows that match.
    """
    fixed, value = (deliveries.c.sink, sink) if reason is None else (deliveries.c.reason, reason)
    place = tuple_(fixed, deliveries.c.event)
    query = query.where(IS_DEAD, fixed >= value, fixed <= value)
    if reason is not None:
        query = query.where(deliveries.c.sink == sink)
    if after is not None:
        query = query.where(place > (value, after))
    if before is not None:
        query = query.where(place < (value, before))
    return query.order_by(*(each.desc() if descending else each for each in (fixed, deliveries.c.event)))


def _some_groups(sink: int, limit: int, most: int) -> Select[Any]:
    """The first groups of a sink: each reason by a step in the index from the one before, counted up to `most`.

    The first row in an order instead of `min`: a database that expects few rows would read all of them for that.
    """
    of_sink = (IS_DEAD, deliveries.c.sink == sink)
    reason = select(deliveries.c.reason).where(*of_sink).order_by(deliveries.c.reason).limit(1)
    reasons = select(reason.scalar_subquery().label("reason")).cte("reasons", recursive=True)
    following = reason.where(deliveries.c.reason > reasons.c.reason).correlate(reasons).scalar_subquery()
    reasons = reasons.union_all(select(following).where(reasons.c.reason.is_not(None)))
    first = select(reasons.c.reason).where(reasons.c.reason.is_not(None)).limit(limit).subquery("first")
    counted = _dead_of(sink, first.c.reason, select(literal(1))).limit(most).correlate(first).subquery("counted")

    def received_at(*, descending: bool) -> ScalarSelect[Any]:
        ordered = _dead_of(sink, first.c.reason, select(deliveries.c.event), descending=descending)
        key = ordered.limit(1).correlate(first).scalar_subquery()
        return select(events.c.received_at).where(events.c.key == key).correlate(first).scalar_subquery()

    return select(
        first.c.reason,
        select(func.count()).select_from(counted).correlate(first).scalar_subquery(),
        received_at(descending=False),
        received_at(descending=True),
    )
