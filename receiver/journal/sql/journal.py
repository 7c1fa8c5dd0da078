"""What intake and dispatchers ask of the journal, in SQL: each verb of the contract as one or two statements.

A claim moves the due time of a delivery to the end of the claim and records its holder, so that the deliveries of a
crashed holder become due again when their claims expire, if no other dispatcher takes them over before.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, case, delete, exists, func, literal, or_, select, tuple_, update

from receiver.journal.contract import (
    Arrival,
    Delivery,
    Outcome,
    Result,
    Settlement,
    SinkState,
    Space,
    StoredEvent,
)
from receiver.journal.sql.database import Database
from receiver.journal.sql.expired_events import ExpiredEvents
from receiver.journal.sql.schema import (
    DEAD,
    DELIVERED,
    IS_PENDING,
    MAX_REASON,
    PENDING,
    deliveries,
    dispatchers,
    documents,
    events,
    quarantine,
    secrets,
    sinks,
    versions,
)
from receiver.journal.sql.state import STORED_EVENT, SqlState

SECRET_USE_SECONDS = 5.0
"""How often the use of a signature secret is recorded: often enough for people, rarely enough to cost nothing."""

GONE_SECONDS = 3600.0
"""The record of a dispatcher that has not reported for so long is deleted."""

LOCKED = 100
"""Of so many unrouted events, the oldest, it is looked whether another dispatcher has locked one."""

CLOCK_SECONDS = 60.0
"""A clock set back by more than this moves with it the stored times that are further ahead than this."""

MOVED = 5000
"""How many deliveries one transaction sets back at most."""


class SqlJournal(SqlState):
    """The contract of Journal on a database."""

    def __init__(self, database: Database, holder: str | None = None, *, create_tables: bool = True) -> None:
        """`holder` names the dispatcher that claims deliveries: the same for it and for its successor."""
        super().__init__(database, holder or uuid.uuid4().hex, create_tables=create_tables)
        self._shared = database.shared
        self.wait_for_events = database.wait
        self.remove_expired = ExpiredEvents(database).remove
        self._secret_use_recorded_at: dict[str, float] = {}

    def accept(self, arrivals: Sequence[Arrival]) -> list[Outcome]:
        """One transaction for all. Events alone take a shorter way.

        Rows are inserted in the order of their ids, so that two processes never deadlock. What was stored before may be
        visible and not be durable yet, if a process or the database died in that commit; a transaction that finds it
        and writes nothing would not wait for the disk, nor for a standby.
        """
        self._database.check_capacity()
        ordered = sorted(arrivals, key=lambda arrival: arrival.id)
        valid = [arrival for arrival in ordered if arrival.quarantine_reason is None]
        invalid = [arrival for arrival in ordered if arrival.quarantine_reason is not None]
        secrets_used = self._secret_use_to_record(arrivals)
        if invalid or secrets_used:
            with self._database.write(wakes=True) as connection:
                new = self._database.insert_events(valid, connection) if valid else set()
                self._quarantine(connection, invalid)
                self._record_secret_use(connection, secrets_used)
        else:
            new = self._database.insert_events(valid)
        if not new:
            self._commit_durably()
        return [_outcome(arrival, new) for arrival in arrivals]

    def unrouted(self, limit: int) -> list[StoredEvent]:
        """Skips the events that another dispatcher is routing at this moment, so that several share the work."""
        query = select(*STORED_EVENT).where(events.c.routed.is_(False)).order_by(events.c.key).limit(limit)
        with self._database.read() as connection:
            return [StoredEvent(*row) for row in connection.execute(query.with_for_update(skip_locked=True))]

    def others_are_routing(self, received_before: float) -> bool:
        """Another one locks events while it reads and while it routes them, and not between."""
        if not self._shared:
            return False
        query = select(events.c.key, events.c.received_at).where(events.c.routed.is_(False))
        query = query.order_by(events.c.key).limit(LOCKED)
        with self._database.read() as connection:
            found = dict(connection.execute(query).all())
            if any(received_at < received_before for received_at in found.values()):
                return True
            return not found.keys() <= set(connection.scalars(query.with_for_update(skip_locked=True)))

    def route(self, routes: Sequence[tuple[StoredEvent, Sequence[str]]], missed_by: Sequence[str] = ()) -> None:
        """Not durable: events whose routing a power cut undid are routed again."""
        if not routes:
            return
        with self._database.write(durable=False) as connection:
            existing = self._existing_keys(connection, [event for event, _ in routes])
            for name in sorted({name for _, names in routes for name in names}):
                keys = [event.key for event, names in routes if name in names and event.key in existing]
                self._create_deliveries(connection, self._sink_key(connection, name, lock=True), keys)
            routed = self._database.among(events.c.key, [event.key for event, _ in routes])
            connection.execute(update(events).where(routed).values(routed=True))
            first = min(event.key for event, _ in routes)
            earlier = sinks.c.missed_from.is_(None) | (sinks.c.missed_from > first)
            missed_from = case((earlier, first), else_=sinks.c.missed_from)  # not in WHERE: must wait for `catch_up`
            for name in sorted(missed_by):
                row = sinks.c.key == self._sink_key(connection, name)
                connection.execute(update(sinks).where(row).values(missed_from=missed_from))

    def sinks_behind(self) -> set[str]:
        with self._database.read() as connection:
            return set(connection.scalars(select(sinks.c.name).where(sinks.c.missed_from.is_not(None))))

    def catch_up(self, sink: str, passes: Callable[[StoredEvent], bool], limit: int) -> bool:
        """The row of the sink is locked, so that no event that another dispatcher routes meanwhile is overlooked."""
        row = select(sinks.c.key, sinks.c.missed_from).where(sinks.c.name == sink).with_for_update(key_share=True)
        with self._database.write() as connection:
            found = connection.execute(row).first()
            if found is None or found.missed_from is None:
                return False
            missed = select(*STORED_EVENT).where(events.c.key >= found.missed_from, events.c.routed)
            batch = [StoredEvent(*each) for each in connection.execute(missed.order_by(events.c.key).limit(limit))]
            existing = self._existing_keys(connection, [event for event in batch if passes(event)])
            self._create_deliveries(connection, found.key, sorted(existing))
            more = len(batch) == limit
            position = update(sinks).where(sinks.c.key == found.key)
            connection.execute(position.values(missed_from=batch[-1].key + 1 if more else None))
        return more

    def enabled_sinks(self) -> set[str]:
        with self._database.read() as connection:
            return set(connection.scalars(select(sinks.c.name).where(sinks.c.enabled)))

    def add_enabled_sinks(self, names: Sequence[str]) -> None:
        if not self.enabled_sinks().issuperset(names):  # a start with a full disk has nothing to write
            with self._database.write() as connection:
                for name in names:
                    self._sink_key(connection, name)
                connection.execute(update(sinks).where(sinks.c.name.in_(names)).values(enabled=True))

    def set_enabled_sinks(self, names: Sequence[str], disabled: Sequence[str] = ()) -> None:
        with self._database.write() as connection:
            for name in names:
                self._sink_key(connection, name)
            connection.execute(update(sinks).values(enabled=sinks.c.name.in_(names)))
            connection.execute(update(sinks).where(sinks.c.name.in_(disabled)).values(missed_from=None))

    def claim(self, sink: str, limit: int, seconds: float) -> list[Delivery]:
        """By index: PostgreSQL, before it has looked at the tables, reads all that is pending to claim a batch."""
        with self._database.write(by_index=True) as connection:
            now = self.now()  # not before: it may have waited for one that created deliveries
            clock = select(sinks.c.key, sinks.c.paused_since, sinks.c.paused_seconds)
            found = connection.execute(clock.where(sinks.c.name == sink)).first()
            if found is None:
                return []
            key, active = found.key, _active_time(found.paused_since, found.paused_seconds, now)
            due = (
                select(deliveries.c.event)
                .where(deliveries.c.sink == key, deliveries.c.due <= now)
                .order_by(deliveries.c.due, deliveries.c.event)
                .limit(limit)
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
            claimed_events = self._database.among(events.c.key, [row.event for row in claimed])
            bodies = select(*STORED_EVENT).where(claimed_events)
            stored = {row.key: StoredEvent(*row) for row in connection.execute(bodies)}
        return [
            Delivery(stored[row.event], sink, row.attempts, row.failures, active - row.first_attempt_at)
            for row in sorted(claimed, key=lambda row: row.event)
        ]

    def extend(self, claimed: Sequence[Delivery], seconds: float) -> None:
        if not claimed:
            return
        by_attempt: dict[int, list[int]] = {}
        for delivery in claimed:
            by_attempt.setdefault(delivery.attempt, []).append(delivery.event.key)
        with self._database.write() as connection:
            sink = self._sink_key(connection, claimed[0].sink)
            held = (deliveries.c.sink == sink) & IS_PENDING & (deliveries.c.holder == self._holder)
            for attempt, keys in by_attempt.items():
                these = self._database.among(deliveries.c.event, keys) & (deliveries.c.attempts == attempt)
                connection.execute(update(deliveries).where(held & these).values(due=self.now() + seconds))

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Not durable, but the claim was: a result that a power cut undid is repeated by one more attempt."""
        if not settlements:
            return
        with self._database.write(durable=False) as connection:
            key = self._sink_key(connection, settlements[0].delivery.sink)
            if self._shared:
                self._lock_in_order(connection, key, settlements)
            for group in _grouped(settlements):
                self._settle(connection, key, group)

    def next_due(self, sink: str) -> float | None:
        """The first one in the index: PostgreSQL reads all pending ones to find their minimum."""
        key = select(sinks.c.key).where(sinks.c.name == sink).scalar_subquery()
        pending = select(deliveries.c.due).where(deliveries.c.sink == key, deliveries.c.due.is_not(None))
        with self._database.read() as connection:
            due: float | None = connection.scalar(pending.order_by(deliveries.c.due).limit(1))
            return due

    def oldest_pending(self, sink: str) -> float | None:
        """Reads nothing that others have pending. Grouped, or PostgreSQL would look for it from the first event on."""
        key = select(sinks.c.key).where(sinks.c.name == sink).scalar_subquery()
        pending = select(func.min(deliveries.c.event).label("event"))
        pending = pending.where(deliveries.c.sink == key, deliveries.c.due.is_not(None)).group_by(deliveries.c.sink)
        first = pending.scalar_subquery()
        with self._database.read() as connection:
            received_at: float | None = connection.scalar(select(events.c.received_at).where(events.c.key == first))
            return received_at

    def may_dispatch(self) -> bool:
        return self._database.may_dispatch()

    def start_dispatching(self) -> list[str]:
        self._database.lock_dispatcher()
        claimed = deliveries.c.holder == self._holder if self._shared else deliveries.c.holder.is_not(None)
        with self._write_on_current_clock() as connection:
            names = select(sinks.c.name).where(exists().where(claimed, deliveries.c.sink == sinks.c.key))
            claimed_for = list(connection.scalars(names))
            connection.execute(update(deliveries).where(claimed).values(holder=None, due=self.now()))
            connection.execute(delete(dispatchers).where(dispatchers.c.alive_at < time.time() - GONE_SECONDS))
            _set_back_reports(connection, self.now())
        return claimed_for

    def report_alive(self, warnings: Sequence[str] = ()) -> None:
        with self._write_on_current_clock() as connection:
            values = {
                "alive_at": time.time(),
                "clock": self.now(),
                "warnings": self._database.storable("\n".join(warnings)),
            }
            report = self._database.insert(dispatchers).values(holder=self._holder, **values)
            connection.execute(report.on_conflict_do_update(index_elements=["holder"], set_=values))
            self._database.set_back_seconds = 0.0

    @contextmanager
    def _write_on_current_clock(self) -> Iterator[Connection]:
        """A write transaction that begins after the stored times have been set back with the clock, if it has been.

        How far is known from the last report of any dispatcher, and from what this process has seen of the clock. A
        step that is forgotten would delay deliveries by as much, so only what has been followed is taken from both.
        """
        while True:
            with self._database.write() as connection:
                now = self.now()
                last = connection.scalar(select(func.max(dispatchers.c.clock)))
                back = max((last or 0.0) - now, self._database.set_back_seconds)
                if back <= CLOCK_SECONDS:
                    yield connection
                    return
            self._set_back(back, now)

    def _set_back(self, back: float, now: float) -> None:
        """Set back by `back` seconds what would delay something; `now` is the time to which the clock was set.

        Claims end within a minute and stay as they are; a retry that was to wait for longer may come too early.
        """
        with self._database.read() as connection:
            keys = connection.scalars(select(sinks.c.key)).all()
        for sink in keys:
            after: tuple[float, int] | None = (float("-inf"), 0)
            while after is not None:
                after = self._set_back_deliveries(sink, after, back, now)
        with self._database.write() as connection:
            for column in (sinks.c.paused_until, sinks.c.paused_since):
                ahead = column > now + CLOCK_SECONDS
                connection.execute(update(sinks).where(ahead).values({column: column - back}))
            _set_back_reports(connection, now)
            self._database.set_back_seconds = max(0.0, self._database.set_back_seconds - back)

    def _set_back_deliveries(
        self, sink: int, after: tuple[float, int], back: float, now: float
    ) -> tuple[float, int] | None:
        """Set back some pending deliveries, the next ones by due time and event; returns the last of them, if any.

        In parts: while SQLite is locked pushes wait, and a dispatcher that locks it for long is ended. What is set back
        comes before `after`, so it is not found again. Not durable: what a power cut undid is done at the next start.
        """
        order = (deliveries.c.due, deliveries.c.event)
        times = (deliveries.c.first_attempt_at, deliveries.c.due)
        is_ahead = {each: each > now + CLOCK_SECONDS for each in times}
        part = (
            select(*order)
            .where(deliveries.c.sink == sink, deliveries.c.due.is_not(None), tuple_(*order) > after)
            .where(or_(*is_ahead.values()))
            .order_by(*order)
            .limit(MOVED)
        )
        with self._database.write(durable=False, by_index=True) as connection:
            self._database.lift_limits(connection)
            found = connection.execute(part).all()
            these = self._database.among(deliveries.c.event, [row.event for row in found])
            change = update(deliveries).where(deliveries.c.sink == sink, these, IS_PENDING)
            connection.execute(change.values({each: case((is_ahead[each], each - back), else_=each) for each in times}))
        return (found[-1].due, found[-1].event) if found else None

    def take_over(self, silent_seconds: float) -> bool:
        """Skips what is being settled at this moment: its dispatcher is not silent."""
        now = self.now()
        is_silent = (dispatchers.c.clock < now - silent_seconds) & (dispatchers.c.holder != self._holder)
        of_silent = deliveries.c.holder.in_(select(dispatchers.c.holder).where(is_silent))
        with self._database.read() as connection:
            if connection.execute(select(deliveries.c.event).where(of_silent).limit(1)).first() is None:
                return False
        with self._database.write() as connection:
            claimed = (
                select(deliveries.c.event, deliveries.c.sink)
                .where(of_silent)
                .order_by(deliveries.c.event)
                .with_for_update(skip_locked=True)
                .cte("claimed")
            )
            these = (deliveries.c.event == claimed.c.event) & (deliveries.c.sink == claimed.c.sink)
            return connection.execute(update(deliveries).where(these).values(holder=None, due=now)).rowcount > 0

    def save_sink_state(self, state: SinkState) -> None:
        now = self.now()
        with self._database.write() as connection:
            key = self._sink_key(connection, state.name)
            paused = select(sinks.c.paused_since).where(sinks.c.key == key)
            since = connection.scalar(paused.with_for_update(key_share=True))  # two may end a pause at once
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
                    pause_reason=self._database.storable(state.pause_reason),
                    on_trial=self._holder if state.on_trial else None,
                    **changes,
                )
            )

    def save_trial(self, sink: str, *, on_trial: bool) -> None:
        """The end of a trial does not end that of another dispatcher."""
        with self._database.write() as connection:
            row = sinks.c.key == self._sink_key(connection, sink)
            if self._shared and not on_trial:
                row &= sinks.c.on_trial == self._holder
            connection.execute(update(sinks).where(row).values(on_trial=self._holder if on_trial else None))

    def lease_document(self, name: str, seconds: float) -> bool:
        """A lease that ends much later than any lease of now can is from before the clock was set back.

        One that ends a little later is of a process that read its clock later, or whose clock is ahead.
        """
        now = self.now()
        until = now + seconds
        row = self._database.insert(documents).values(name=name, leased_until=until)
        has_ended = (documents.c.leased_until <= now) | (documents.c.leased_until > until + CLOCK_SECONDS)
        lease = row.on_conflict_do_update(index_elements=["name"], set_={"leased_until": until}, where=has_ended)
        with self._database.write() as connection:
            return connection.execute(lease.returning(documents.c.name)).first() is not None

    def extend_lease(self, name: str, seconds: float) -> bool:
        now = self.now()
        extended = update(documents).where(documents.c.name == name, documents.c.leased_until > now)
        with self._database.write() as connection:
            return connection.execute(extended.values(leased_until=now + seconds)).rowcount > 0

    def space(self) -> Space:
        return self._database.space()

    def check_writable(self) -> None:
        self._database.check_capacity()
        self._commit_durably()

    def _commit_durably(self) -> None:
        """Make everything durable that was committed before, by a commit that changes nothing."""
        with self._database.write() as connection:
            connection.execute(update(versions).values(version=versions.c.version))

    def _create_deliveries(self, connection: Connection, sink: int, keys: Sequence[int]) -> None:
        values = {"sink": sink, "state": PENDING, "due": self.now(), "attempts": 0, "failures": 0}
        rows = select(events.c.key, *map(literal, values.values())).where(self._database.among(events.c.key, keys))
        row = self._database.insert(deliveries).from_select(["event", *values], rows)
        connection.execute(row.on_conflict_do_nothing())

    def _quarantine(self, connection: Connection, arrivals: Sequence[Arrival]) -> None:
        rows = [
            {
                "id": arrival.id,
                "received_at": arrival.received_at,
                "reason": self._database.storable(arrival.quarantine_reason or ""),
                "body": arrival.body,
                "origin": arrival.origin,
            }
            for arrival in arrivals
        ]
        if rows:
            connection.execute(self._database.insert(quarantine).on_conflict_do_nothing(), rows)

    def _secret_use_to_record(self, arrivals: Sequence[Arrival]) -> list[str]:
        """The secrets that verified these arrivals, without those whose use was recorded a moment ago."""
        now = self.now()
        names = sorted({arrival.secret for arrival in arrivals if arrival.secret})
        never = float("-inf")
        return [name for name in names if now - self._secret_use_recorded_at.get(name, never) > SECRET_USE_SECONDS]

    def _record_secret_use(self, connection: Connection, names: Sequence[str]) -> None:
        now = self.now()
        for name in names:
            row = self._database.insert(secrets).values(name=self._database.storable(name), last_at=now)
            connection.execute(row.on_conflict_do_update(index_elements=["name"], set_={"last_at": now}))
            self._secret_use_recorded_at[name] = now

    def _lock_in_order(self, connection: Connection, key: int, settlements: Sequence[Settlement]) -> None:
        """Lock rows in the order of their keys: results are recorded by kind, and two processes must not deadlock."""
        keys = [settlement.delivery.event.key for settlement in settlements]
        of_events = self._database.among(deliveries.c.event, keys)
        these = select(deliveries.c.event).where(deliveries.c.sink == key, of_events)
        connection.execute(these.order_by(deliveries.c.event).with_for_update())

    def _settle(self, connection: Connection, key: int, group: Sequence[Settlement]) -> None:
        one = group[0]
        ended: dict[str, Any] = {
            "holder": None,
            "settled_at": self.now(),
            "reason": self._database.storable(one.reason)[:MAX_REASON],
        }
        values: dict[Result, dict[str, Any]] = {
            Result.DELIVERED: {"state": DELIVERED, "due": None, **ended},
            Result.DEAD: {"state": DEAD, "due": None, "failures": deliveries.c.failures + 1, **ended},
            Result.FAILED: {"due": one.due, "failures": deliveries.c.failures + 1, **ended},
            Result.POSTPONED: {"due": one.due, **ended},
            Result.RELEASED: {
                "due": self.now(),
                "holder": None,
                "attempts": deliveries.c.attempts - 1,
                "first_attempt_at": case((deliveries.c.attempts > 1, deliveries.c.first_attempt_at)),
            },
        }
        these = self._database.among(deliveries.c.event, [settlement.delivery.event.key for settlement in group])
        change = update(deliveries).where(deliveries.c.sink == key, these, IS_PENDING)
        if one.result is not Result.DELIVERED:
            change = change.where(deliveries.c.holder == self._holder, deliveries.c.attempts == one.delivery.attempt)
        changed = connection.execute(change.values(**values[one.result])).rowcount
        if changed and one.result is not Result.RELEASED:
            totals = self._totals(one.result, changed, one.reason)
            connection.execute(update(sinks).where(sinks.c.key == key).values(**totals))

    def _totals(self, result: Result, ended: int, reason: str) -> dict[str, Any]:
        """What `ended` attempts with this result add to the totals of their sink."""
        attempts = {"attempts": sinks.c.attempts + ended}
        if result is Result.DELIVERED:
            return {**attempts, "delivered": sinks.c.delivered + ended, "last_success_at": self.now()}
        return {
            **attempts,
            "failures": sinks.c.failures + ended,
            "last_failure_at": self.now(),
            "last_failure_reason": self._database.storable(reason),
        }


def _set_back_reports(connection: Connection, now: float) -> None:
    """No report of a dispatcher is later than now: it would pass for the latest one until then."""
    wall = time.time()
    alive_at = case((dispatchers.c.alive_at > wall, wall), else_=dispatchers.c.alive_at)
    connection.execute(update(dispatchers).where(dispatchers.c.clock > now).values(clock=now, alive_at=alive_at))


def _active_time(paused_since: float | None, paused_seconds: float, now: float) -> float:
    """`now` on a clock of the sink that stops while the sink is paused."""
    return (now if paused_since is None else paused_since) - paused_seconds


def _outcome(arrival: Arrival, new: set[str]) -> Outcome:
    """Of several arrivals with one new id, the first is the accepted one."""
    if arrival.quarantine_reason is not None:
        return Outcome.QUARANTINED
    if arrival.id in new:
        new.remove(arrival.id)
        return Outcome.ACCEPTED
    return Outcome.DUPLICATE


def _grouped(settlements: Sequence[Settlement]) -> Collection[Sequence[Settlement]]:
    """Settlements in groups that one statement can record: most often a whole batch was delivered."""
    groups: dict[tuple[object, ...], list[Settlement]] = {}
    for settlement in settlements:
        attempt = None if settlement.result is Result.DELIVERED else settlement.delivery.attempt
        groups.setdefault((settlement.result, attempt, settlement.due, settlement.reason), []).append(settlement)
    return groups.values()
