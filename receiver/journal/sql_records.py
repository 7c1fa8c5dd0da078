"""What people ask of the journal, in SQL: dead letters, quarantine, replay, history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Delete, Update, bindparam, delete, func, select, update

from receiver.journal.contract import DeadLetter, History, Kept, LastAttempt, Quarantined
from receiver.journal.sql_state import KEPT, SqlState
from receiver.journal.tables import DEAD, DELIVERED, IS_DEAD, PENDING, deliveries, events, quarantine, sinks

AT_ONCE = 1000
"""How many deliveries a person's wish changes in one transaction."""
STATES = {PENDING: "pending", DELIVERED: "delivered", DEAD: "dead"}
QUARANTINED = (quarantine.c.id, quarantine.c.received_at, quarantine.c.why, quarantine.c.body)
THIS = (deliveries.c.event == bindparam("of_event")) & (deliveries.c.sink == bindparam("of_sink"))


class SqlRecords(SqlState):
    """The contract of Records, kept in a database."""

    def dead_letters(self, sink: str | None, most: int) -> list[DeadLetter]:
        columns = (
            sinks.c.name,
            events.c.id,
            events.c.received_at,
            deliveries.c.attempts,
            deliveries.c.settled_at,
            deliveries.c.why,
        )
        query = (
            select(*columns)
            .join_from(deliveries, sinks, sinks.c.key == deliveries.c.sink)
            .join(events, events.c.key == deliveries.c.event)
            .where(IS_DEAD)
            .order_by(deliveries.c.settled_at.desc())
        )
        if sink is not None:
            query = query.where(sinks.c.name == sink)
        with self._database.read() as connection:
            return [DeadLetter(*row) for row in connection.execute(query.limit(most))]

    def retry_dead(self, sink: str, event_ids: Sequence[str] | None) -> int:
        return self._for_dead(sink, event_ids, update(deliveries).where(THIS).values(**self._as_new()))

    def drop_dead(self, sink: str, event_ids: Sequence[str] | None) -> int:
        return self._for_dead(sink, event_ids, delete(deliveries).where(THIS))

    def quarantined(self, most: int) -> list[Quarantined]:
        query = select(*QUARANTINED).order_by(quarantine.c.received_at.desc()).limit(most)
        with self._database.read() as connection:
            return [Quarantined(*row) for row in connection.execute(query)]

    def in_quarantine(self, id_prefix: str) -> list[Quarantined]:
        query = select(*QUARANTINED).where(quarantine.c.id.startswith(id_prefix, autoescape=True))
        with self._database.read() as connection:
            return [Quarantined(*row) for row in connection.execute(query)]

    def release(self, quarantined: Quarantined, event_id: str) -> None:
        event = {"id": event_id, "received_at": quarantined.received_at, "matched": False, "body": quarantined.body}
        with self._database.write() as connection:
            connection.execute(self._database.insert(events).values(event).on_conflict_do_nothing())
            connection.execute(delete(quarantine).where(quarantine.c.id == quarantined.id))

    def received_count(self, since: float, until: float) -> int:
        with self._database.read() as connection:
            return connection.scalar(select(func.count()).where(*self._received(since, until))) or 0

    def received(self, since: float, until: float, after: int, most: int) -> list[Kept]:
        query = select(*KEPT).where(events.c.key > after, *self._received(since, until))
        with self._database.read() as connection:
            return [Kept(*row) for row in connection.execute(query.order_by(events.c.key).limit(most))]

    def owe_again(self, sink: str, again: Sequence[Kept]) -> int:
        with self._database.write() as connection:
            here = self._still_here(connection, again)
            if not here:
                return 0
            key = self._sink_key(connection, sink, keep=True)
            row = self._database.insert(deliveries).values(self._as_new())
            owed = connection.execute(
                row.on_conflict_do_update(
                    index_elements=["event", "sink"], set_=self._as_new(), where=deliveries.c.due.is_(None)
                ).returning(deliveries.c.event),
                [{"event": event, "sink": key} for event in sorted(here)],
            )
            return len(owed.all())

    def history(self, event_id: str) -> History | None:
        columns = (
            sinks.c.name,
            deliveries.c.state,
            deliveries.c.attempts,
            deliveries.c.settled_at,
            deliveries.c.why,
            deliveries.c.due,
        )
        with self._database.read() as connection:
            row = connection.execute(select(*KEPT, events.c.matched).where(events.c.id == event_id)).first()
            if row is None:
                return None
            owed = (
                select(*columns)
                .join_from(deliveries, sinks, sinks.c.key == deliveries.c.sink)
                .where(deliveries.c.event == row.key)
                .order_by(sinks.c.name)
            )
            attempts = [
                LastAttempt(name, STATES[state], count, at, why, due)
                for name, state, count, at, why, due in connection.execute(owed)
            ]
        return History(Kept(*row[:4]), row.matched, tuple(attempts))

    def resume(self, sink: str) -> None:
        with self._database.write() as connection:
            connection.execute(update(sinks).where(sinks.c.name == sink).values(paused_until=0.0))

    def forget(self, sink: str) -> int:
        with self._database.write() as connection:
            key = connection.scalar(select(sinks.c.key).where(sinks.c.name == sink).with_for_update())
            if key is None:
                return 0
            of_sink = deliveries.c.sink == key
            owed = connection.scalar(select(func.count()).where(of_sink, deliveries.c.state != DELIVERED))
            connection.execute(delete(deliveries).where(of_sink))
            connection.execute(delete(sinks).where(sinks.c.key == key))
        return owed or 0

    @staticmethod
    def _received(since: float, until: float) -> tuple[ColumnElement[bool], ...]:
        return (events.c.received_at >= since, events.c.received_at < until, events.c.matched.is_(True))

    def _for_dead(self, sink: str, event_ids: Sequence[str] | None, change: Update | Delete) -> int:
        """Change dead letters a part at a time, since pushes wait meanwhile; how many."""
        changed = after = 0
        while True:
            with self._database.write() as connection:
                dead = self._dead(connection, sink, event_ids, after)
                if not dead:
                    return changed
                connection.execute(change, dead)
            changed, after = changed + len(dead), dead[-1]["of_event"]

    def _dead(
        self, connection: Connection, sink: str, event_ids: Sequence[str] | None, after: int
    ) -> list[dict[str, Any]]:
        """The next dead letters of a sink, as what `THIS` is bound to."""
        query = (
            select(deliveries.c.event, deliveries.c.sink)
            .join(sinks, sinks.c.key == deliveries.c.sink)
            .where(IS_DEAD, sinks.c.name == sink, deliveries.c.event > after)
        )
        if event_ids is not None:
            query = query.join(events, events.c.key == deliveries.c.event).where(events.c.id.in_(event_ids))
        query = query.order_by(deliveries.c.event).limit(AT_ONCE).with_for_update(of=deliveries)
        return [{"of_event": row.event, "of_sink": row.sink} for row in connection.execute(query)]

    def _as_new(self) -> dict[str, Any]:
        """The columns of a delivery that is owed and has never been tried."""
        return {
            "state": PENDING,
            "due": self.now(),
            "attempts": 0,
            "failures": 0,
            "holder": None,
            "first_attempt_at": None,
            "settled_at": None,
            "why": None,
        }
