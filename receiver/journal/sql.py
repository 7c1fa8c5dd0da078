"""The journal in SQL: each verb of the contract as one or two statements.

A claim moves the due time of a delivery to the claim's own end and writes its holder, so that a claim whose holder is
gone becomes due by itself.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, case, delete, exists, func, literal, select, update

from receiver.journal.contract import (
    Acceptance,
    Arrival,
    Delivery,
    Kept,
    Result,
    Settlement,
    SinkState,
)
from receiver.journal.database import Database
from receiver.journal.group import GroupCommit
from receiver.journal.sql_state import KEPT, SqlState
from receiver.journal.tables import (
    DEAD,
    DELIVERED,
    PENDING,
    deliveries,
    dispatchers,
    events,
    quarantine,
    secrets,
    sinks,
    versions,
)

SECRETS_SECONDS = 5.0
GONE_SECONDS = 3600.0
CLOCK_SECONDS = 60.0
COMMIT_SECONDS = 2.0
"""How long a push may wait for its turn to commit; with the waits for locks in it, it is answered within 5 s."""


class SqlJournal(SqlState):
    """The contract of Journal, kept in a database."""

    def __init__(self, database: Database, holder: str | None = None, *, made: bool = False) -> None:
        """`holder` names whoever claims: the same for a dispatcher and for the one that takes its place."""
        super().__init__(database, holder or uuid.uuid4().hex, made=made)
        self._shared = database.shared
        self.wait = database.wait
        self._retired_up_to = 0
        self._secrets_noted: dict[str, float] = {}
        self._group: GroupCommit[Arrival, Acceptance] = GroupCommit(self._accept_all, 256, COMMIT_SECONDS)

    def accept(self, arrival: Arrival) -> Acceptance:
        return self._group.submit(arrival)

    def unmatched(self, most: int) -> list[Kept]:
        """Those that another dispatcher reads or owes at this moment are left to it, so that several share the work."""
        query = select(*KEPT).where(events.c.matched.is_(False)).order_by(events.c.key).limit(most)
        with self._database.read() as connection:
            return [Kept(*row) for row in connection.execute(query.with_for_update(skip_locked=True))]

    def owe(self, matches: Sequence[tuple[Kept, Sequence[str]]]) -> None:
        """Need not last by itself: what is undone is matched again."""
        if not matches:
            return
        with self._database.write(lasting=False) as connection:
            here = self._still_here(connection, [kept for kept, _ in matches])
            for name in sorted({name for _, names in matches for name in names}):
                owed = [kept.key for kept, names in matches if name in names and kept.key in here]
                self._owe(connection, self._sink_key(connection, name, keep=True), owed)
            seen = events.c.key.in_([kept.key for kept, _ in matches])
            connection.execute(update(events).where(seen).values(matched=True))

    def _owe(self, connection: Connection, key: int, owed: Sequence[int]) -> None:
        values = {"sink": key, "state": PENDING, "due": self.now(), "attempts": 0, "failures": 0}
        rows = select(events.c.key, *map(literal, values.values())).where(events.c.key.in_(owed))
        row = self._database.insert(deliveries).from_select(["event", *values], rows)
        connection.execute(row.on_conflict_do_nothing())

    def enabled(self) -> set[str]:
        with self._database.read() as connection:
            return set(connection.scalars(select(sinks.c.name).where(sinks.c.enabled)))

    def enable(self, names: Sequence[str]) -> None:
        with self._database.write() as connection:
            for name in names:
                self._sink_key(connection, name)
            connection.execute(update(sinks).values(enabled=sinks.c.name.in_(names)))

    def claim(self, sink: str, most: int, seconds: float) -> list[Delivery]:
        now = self.now()
        with self._database.write() as connection:
            key = self._sink_key(connection, sink)
            active = self._active_time(connection, key, now)
            due = (
                select(deliveries.c.event)
                .where(deliveries.c.sink == key, deliveries.c.due <= now)
                .order_by(deliveries.c.due, deliveries.c.event)
                .limit(most)
                .with_for_update(skip_locked=True)
                .cte("due")
            )
            claimed = connection.execute(
                update(deliveries)
                .where(deliveries.c.sink == key, deliveries.c.event.in_(select(due.c.event)))
                .values(
                    due=now + seconds,
                    holder=self._holder,
                    attempts=deliveries.c.attempts + 1,
                    first_attempt_at=func.coalesce(deliveries.c.first_attempt_at, active),
                )
                .returning(
                    deliveries.c.event, deliveries.c.attempts, deliveries.c.failures, deliveries.c.first_attempt_at
                )
            ).all()
            bodies = select(*KEPT).where(events.c.key.in_([row.event for row in claimed]))
            kept = {row.key: Kept(*row) for row in connection.execute(bodies)}
        return [
            Delivery(kept[row.event], sink, row.attempts, row.failures, active - row.first_attempt_at)
            for row in sorted(claimed, key=lambda row: row.event)
        ]

    def extend(self, held: Sequence[Delivery], seconds: float) -> None:
        if not held:
            return
        with self._database.write() as connection:
            connection.execute(
                update(deliveries).where(self._held()).values(due=self.now() + seconds),
                self._names(connection, held),
            )

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Need not last by itself: the claim does, so what is undone is a further attempt, as after any crash."""
        if not settlements:
            return
        with self._database.write(lasting=False) as connection:
            key = self._sink_key(connection, settlements[0].delivery.sink)
            if self._shared:
                self._lock_in_order(connection, key, settlements)
            for alike in _alike(settlements):
                self._settle(connection, key, alike)

    def next_due(self, sink: str) -> float | None:
        query = select(func.min(deliveries.c.due)).join(sinks, sinks.c.key == deliveries.c.sink)
        with self._database.read() as connection:
            when: float | None = connection.scalar(query.where(sinks.c.name == sink, deliveries.c.due.is_not(None)))
            return when

    def begin(self) -> list[str]:
        self._database.become_dispatcher()
        held = deliveries.c.holder == self._holder if self._shared else deliveries.c.holder.is_not(None)
        with self._database.write() as connection:
            names = select(sinks.c.name).where(exists().where(held, deliveries.c.sink == sinks.c.key))
            suspects = list(connection.scalars(names))
            connection.execute(update(deliveries).where(held).values(holder=None, due=self.now()))
            if not self._shared:
                self._set_back(connection)
            connection.execute(delete(dispatchers).where(dispatchers.c.beat_at < time.time() - GONE_SECONDS))
        return suspects

    def _set_back(self, connection: Connection) -> None:
        """When the clock has been set back since the last dispatcher, move along all times that are on it."""
        last = connection.scalar(select(func.max(dispatchers.c.clock)))
        back = (last or 0.0) - self.now()
        if back > CLOCK_SECONDS:
            for column in (deliveries.c.due, deliveries.c.first_attempt_at, sinks.c.paused_until, sinks.c.paused_since):
                connection.execute(update(column.table).where(column.is_not(None)).values({column: column - back}))
            connection.execute(delete(dispatchers))

    def beat(self) -> None:
        now = time.time()
        times = {"beat_at": now, "clock": self.now()}
        beat = self._database.insert(dispatchers).values(holder=self._holder, **times)
        with self._database.write() as connection:
            connection.execute(beat.on_conflict_do_update(index_elements=["holder"], set_=times))

    def last_beat(self) -> float | None:
        with self._database.read() as connection:
            when: float | None = connection.scalar(select(func.max(dispatchers.c.beat_at)))
            return when

    def remember(self, state: SinkState) -> None:
        now = self.now()
        with self._database.write() as connection:
            key = self._sink_key(connection, state.name)
            since = connection.scalar(select(sinks.c.paused_since).where(sinks.c.key == key))
            changes: dict[str, Any] = {}
            if state.pauses and since is None:
                changes = {"paused_since": now}
            if not state.pauses and since is not None:
                changes = {"paused_since": None, "paused_seconds": sinks.c.paused_seconds + (now - since)}
            connection.execute(
                update(sinks)
                .where(sinks.c.key == key)
                .values(
                    pauses=state.pauses,
                    paused_until=state.paused_until,
                    pause_reason=state.pause_reason.encode("utf-8", "replace").decode().replace("\0", "?"),
                    on_trial=self._holder if state.on_trial else None,
                    **changes,
                )
            )

    def retire(self, received_before: float, most: int) -> bool:
        query = select(events.c.key, events.c.received_at, events.c.matched)
        query = query.where(events.c.key > self._retired_up_to).order_by(events.c.key).limit(most)
        with self._database.read() as connection:
            if not any(row.received_at < received_before for row in connection.execute(query)):
                self._retired_up_to = 0
                return False
        with self._database.write() as connection:
            rows = connection.execute(query.with_for_update()).all()
            old = [row for row in rows if row.received_at < received_before]
            matched = [row.key for row in old if row.matched]
            still_owed = select(deliveries.c.event).where(
                deliveries.c.event.in_(matched), deliveries.c.state != DELIVERED
            )
            removable = [{"old": key} for key in sorted(set(matched) - set(connection.scalars(still_owed)))]
            if removable:
                connection.execute(delete(deliveries).where(deliveries.c.event == bindparam("old")), removable)
                connection.execute(delete(events).where(events.c.key == bindparam("old")), removable)
        self._retired_up_to = old[-1].key if len(old) == most else 0
        return len(old) == most

    def check_writable(self) -> None:
        self._database.check_room()
        with self._database.write() as connection:
            connection.execute(update(versions).values(version=versions.c.version))

    def _accept_all(self, arrivals: Sequence[Arrival]) -> list[Acceptance]:
        """One commit for all, and so one wait for a lock. Events alone have a quicker one.

        Rows go in by the order of their ids, so that two processes never wait for each other's.
        """
        self._database.check_room()
        in_order = sorted(arrivals, key=lambda arrival: arrival.id)
        named = [arrival for arrival in in_order if arrival.quarantine is None]
        unnamed = [arrival for arrival in in_order if arrival.quarantine is not None]
        in_use = self._secrets_to_note(arrivals)
        if unnamed or in_use:
            with self._database.write() as connection:
                new = self._database.add_events(named, connection) if named else set()
                self._quarantine(connection, unnamed)
                self._note_secrets(connection, in_use)
        else:
            new = self._database.add_events(named)
        return [self._acceptance(arrival, new) for arrival in arrivals]

    def _quarantine(self, connection: Connection, arrivals: Sequence[Arrival]) -> None:
        rows = [
            {"id": arrival.id, "received_at": arrival.received_at, "why": arrival.quarantine, "body": arrival.body}
            for arrival in arrivals
        ]
        if rows:
            connection.execute(self._database.insert(quarantine).on_conflict_do_nothing(), rows)

    def _secrets_to_note(self, arrivals: Sequence[Arrival]) -> list[str]:
        """Which secrets are in use, of those that were not written down just before."""
        now = self.now()
        names = sorted({arrival.secret for arrival in arrivals if arrival.secret})
        return [name for name in names if now - self._secrets_noted.get(name, float("-inf")) > SECRETS_SECONDS]

    def _note_secrets(self, connection: Connection, names: Sequence[str]) -> None:
        now = self.now()
        for name in names:
            row = self._database.insert(secrets).values(name=name, last_at=now)
            connection.execute(row.on_conflict_do_update(index_elements=["name"], set_={"last_at": now}))
            self._secrets_noted[name] = now

    @staticmethod
    def _acceptance(arrival: Arrival, new: set[str]) -> Acceptance:
        if arrival.quarantine is not None:
            return Acceptance.QUARANTINED
        if arrival.id in new:
            new.remove(arrival.id)
            return Acceptance.ACCEPTED
        return Acceptance.DUPLICATE

    def _lock_in_order(self, connection: Connection, key: int, settlements: Sequence[Settlement]) -> None:
        """Results come by kind; two who settle the same deliveries must not wait for each other in a circle."""
        keys = [settlement.delivery.event.key for settlement in settlements]
        these = select(deliveries.c.event).where(deliveries.c.sink == key, deliveries.c.event.in_(keys))
        connection.execute(these.order_by(deliveries.c.event).with_for_update())

    def _settle(self, connection: Connection, key: int, alike: Sequence[Settlement]) -> None:
        one = alike[0]
        end: dict[str, Any] = {"holder": None, "settled_at": self.now(), "why": one.why}
        values: dict[Result, dict[str, Any]] = {
            Result.DELIVERED: {"state": DELIVERED, "due": None, **end},
            Result.DEAD: {"state": DEAD, "due": None, "failures": deliveries.c.failures + 1, **end},
            Result.FAILED: {"due": one.due, "failures": deliveries.c.failures + 1, **end},
            Result.WAITING: {"due": one.due, **end},
            Result.UNTOUCHED: {
                "due": self.now(),
                "holder": None,
                "attempts": deliveries.c.attempts - 1,
                "first_attempt_at": case((deliveries.c.attempts > 1, deliveries.c.first_attempt_at)),
            },
        }
        these = deliveries.c.event.in_([settlement.delivery.event.key for settlement in alike])
        change = update(deliveries).where(deliveries.c.sink == key, these, deliveries.c.due.is_not(None))
        if one.result is not Result.DELIVERED:
            change = change.where(deliveries.c.holder == self._holder, deliveries.c.attempts == one.delivery.attempt)
        changed = connection.execute(change.values(**values[one.result])).rowcount
        if changed and one.result is not Result.UNTOUCHED:
            tally = self._tally(one.result, changed, one.why)
            connection.execute(update(sinks).where(sinks.c.key == key).values(**tally))

    def _tally(self, result: Result, changed: int, why: str) -> dict[str, Any]:
        """What `changed` attempts that ended add to the totals of their sink."""
        tried = {"attempts": sinks.c.attempts + changed}
        if result is Result.DELIVERED:
            return {**tried, "delivered": sinks.c.delivered + changed, "last_success_at": self.now()}
        failed = 0 if result is Result.WAITING else changed
        return {
            **tried,
            "failures": sinks.c.failures + failed,
            "last_failure_at": self.now(),
            "last_failure": why,
        }

    def _held(self) -> Any:
        """The pending delivery that `_names` names, held by this dispatcher."""
        return (
            (deliveries.c.event == bindparam("of_event"))
            & (deliveries.c.sink == bindparam("of_sink"))
            & deliveries.c.due.is_not(None)
            & (deliveries.c.holder == self._holder)
            & (deliveries.c.attempts == bindparam("of_attempt"))
        )

    def _names(self, connection: Connection, named: Sequence[Delivery]) -> list[dict[str, Any]]:
        """Deliveries to one sink, as what `_held` is bound to."""
        key = self._sink_key(connection, named[0].sink)
        return [{"of_event": delivery.event.key, "of_sink": key, "of_attempt": delivery.attempt} for delivery in named]

    def _active_time(self, connection: Connection, key: int, now: float) -> float:
        """The sink's own clock: it stands still while the sink is paused."""
        row = connection.execute(select(sinks.c.paused_since, sinks.c.paused_seconds).where(sinks.c.key == key)).one()
        stands_at: float = now if row.paused_since is None else row.paused_since
        return stands_at - float(row.paused_seconds)


def _alike(settlements: Sequence[Settlement]) -> Collection[Sequence[Settlement]]:
    """Settlements in groups that one statement can record: most often a whole batch was delivered."""
    groups: dict[tuple[object, ...], list[Settlement]] = {}
    for settlement in settlements:
        attempt = None if settlement.result is Result.DELIVERED else settlement.delivery.attempt
        groups.setdefault((settlement.result, attempt, settlement.due, settlement.why), []).append(settlement)
    return groups.values()
