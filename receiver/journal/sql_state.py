"""What every part of the journal in SQL shares: the tables made and checked, sinks by name, what is in them now."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from sqlalchemy import Connection, func, select, update

from receiver.errors import JournalError
from receiver.journal.contract import Counts, Kept, SinkCount, SinkState
from receiver.journal.database import Database
from receiver.journal.tables import (
    IS_DEAD,
    SCHEMA_VERSION,
    UPGRADES,
    deliveries,
    events,
    metadata,
    quarantine,
    secrets,
    sinks,
    versions,
)

KEPT = (events.c.key, events.c.id, events.c.body, events.c.received_at)
"""The columns of a Kept event, in its order."""


class SqlState:
    """An open database of the journal's."""

    def __init__(self, database: Database, holder: str = "", *, made: bool = False) -> None:
        """Make the tables, unless they are `made`. When that fails, closes the database and raises JournalError."""
        self._database = database
        self._holder = holder
        self.now = database.now
        try:
            if not made:
                self._make_tables()
        except JournalError:
            with suppress(JournalError):
                database.close()
            raise

    def counts(self) -> Counts:
        pending = (
            select(deliveries.c.sink, func.count().label("pending"), func.min(deliveries.c.event).label("first"))
            .where(deliveries.c.due.is_not(None))
            .group_by(deliveries.c.sink)
            .subquery()
        )
        dead = (
            select(deliveries.c.sink, func.count().label("dead")).where(IS_DEAD).group_by(deliveries.c.sink).subquery()
        )
        query = (
            select(sinks, pending.c.pending, events.c.received_at.label("oldest"), dead.c.dead)
            .join(pending, pending.c.sink == sinks.c.key, isouter=True)
            .join(events, events.c.key == pending.c.first, isouter=True)
            .join(dead, dead.c.sink == sinks.c.key, isouter=True)
            .order_by(sinks.c.name)
        )
        with self._database.read() as connection:
            # first, for an event that is matched meanwhile is then counted twice rather than nowhere
            unmatched = connection.scalar(select(func.count()).where(events.c.matched.is_(False))) or 0
            by_sink = {
                row.name: SinkCount(
                    delivered=row.delivered,
                    pending=row.pending or 0,
                    dead=row.dead or 0,
                    oldest=row.oldest,
                    attempts=row.attempts,
                    failures=row.failures,
                    last_success_at=row.last_success_at,
                    last_failure_at=row.last_failure_at,
                    last_failure=row.last_failure,
                )
                for row in connection.execute(query)
            }
            in_quarantine = connection.scalar(select(func.count()).select_from(quarantine)) or 0
            used = {row.name: row.last_at for row in connection.execute(select(secrets))}
        return Counts(unmatched, in_quarantine, by_sink, used)

    def states(self) -> dict[str, SinkState]:
        query = select(sinks.c.name, sinks.c.pauses, sinks.c.paused_until, sinks.c.pause_reason, sinks.c.on_trial)
        with self._database.read() as connection:
            return {row.name: SinkState(*row[:4], self._mine(row.on_trial)) for row in connection.execute(query)}

    def _mine(self, on_trial: str | None) -> bool:
        """Whether a trial was begun by this dispatcher or the one in whose place it is."""
        return on_trial is not None and (on_trial == self._holder or not self._database.shared)

    def close(self) -> None:
        self._database.close()

    def _make_tables(self) -> None:
        with self._database.write() as connection:
            self._database.lock_tables(connection)
            metadata.create_all(connection)
            version = connection.scalar(select(versions.c.version))
            if version is None:
                connection.execute(self._database.insert(versions).values(version=SCHEMA_VERSION))
            elif version > SCHEMA_VERSION:
                raise JournalError(
                    f"the journal has schema {version}, this receiver knows {SCHEMA_VERSION}: "
                    "run the newer receiver that wrote it"
                )
            elif version < SCHEMA_VERSION:
                for older in range(version, SCHEMA_VERSION):
                    for statement in UPGRADES[older]:
                        connection.exec_driver_sql(statement)
                connection.execute(update(versions).values(version=SCHEMA_VERSION))

    def _sink_key(self, connection: Connection, name: str, *, keep: bool = False) -> int:
        """Not remembered beyond the transaction: it may be rolled back, and people can make the journal forget it."""
        query = select(sinks.c.key).where(sinks.c.name == name)
        if keep:
            query = query.with_for_update(read=True, key_share=True)
        key: int | None = connection.scalar(query)
        if key is None:
            connection.execute(self._database.insert(sinks).values(name=name).on_conflict_do_nothing())
            key = connection.scalars(query).one()
        return key

    def _still_here(self, connection: Connection, kept: Sequence[Kept]) -> set[int]:
        """The keys of those events that have not been retired meanwhile, and will not be before the commit."""
        query = select(events.c.key).where(events.c.key.in_([event.key for event in kept])).order_by(events.c.key)
        return set(connection.scalars(query.with_for_update(key_share=True)))
