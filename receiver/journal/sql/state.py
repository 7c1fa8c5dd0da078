"""What both halves of the journal in SQL share: creating and upgrading the tables, sinks by name, counts and states."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from sqlalchemy import Connection, func, inspect, literal, select, update

from receiver.errors import JournalError
from receiver.journal.contract import Counts, Liveness, SinkCounts, SinkState, StoredEvent, TablesVersion
from receiver.journal.sql.database import Database
from receiver.journal.sql.schema import (
    IS_DEAD,
    SCHEMA_VERSION,
    UPGRADES,
    deliveries,
    dispatchers,
    documents,
    events,
    metadata,
    quarantine,
    secrets,
    sinks,
    versions,
)

TOGETHER_SECONDS = 15.0
"""Dispatchers whose last reports are further apart do not run at the same time: each reports every 5 s."""

STORED_EVENT = (events.c.key, events.c.id, events.c.body, events.c.received_at, events.c.origin)
"""The columns of a StoredEvent, in its order."""


class SqlState:
    """An open database with the tables of the journal."""

    def __init__(self, database: Database, holder: str = "", *, create_tables: bool = True) -> None:
        """Create or upgrade the tables if `create_tables`. If that fails, closes the database; raises JournalError."""
        self._database = database
        self._holder = holder
        self.now = database.now
        try:
            if create_tables:
                self._create_tables()
        except JournalError:
            with suppress(JournalError):
                database.close()
            raise

    def counts(self, most: int | None = None) -> Counts:
        pending = (
            select(deliveries.c.sink, func.count().label("pending"), func.min(deliveries.c.event).label("first"))
            .where(deliveries.c.due.is_not(None))
            .group_by(deliveries.c.sink)
            .subquery()
        )
        query = (
            select(sinks, pending.c.pending, events.c.received_at.label("oldest"))
            .join(pending, pending.c.sink == sinks.c.key, isouter=True)
            .join(events, events.c.key == pending.c.first, isouter=True)
            .order_by(sinks.c.name)
        )
        with self._database.read(by_index=most is not None) as connection:
            # in the order in which events pass: one that moves on meanwhile is counted twice rather than not at all
            unrouted = connection.scalar(select(func.count()).where(events.c.routed.is_(False))) or 0
            rows = connection.execute(query).all()
            dead = self._dead_by_sink(connection, most)
            by_sink = {
                row.name: SinkCounts(
                    delivered=row.delivered,
                    pending=row.pending or 0,
                    dead=dead.get(row.key, 0),
                    oldest_received_at=row.oldest,
                    attempts=row.attempts,
                    failures=row.failures,
                    last_success_at=row.last_success_at,
                    last_failure_at=row.last_failure_at,
                    last_failure_reason=row.last_failure_reason,
                )
                for row in rows
            }
            pushes = select(quarantine.c.id).limit(most).subquery()
            quarantined = connection.scalar(select(func.count()).select_from(pushes)) or 0
            used = {row.name: row.last_at for row in connection.execute(select(secrets))}
        return Counts(unrouted, quarantined, by_sink, used)

    @staticmethod
    def _dead_by_sink(connection: Connection, most: int | None) -> dict[int, int]:
        if most is None:
            query = select(deliveries.c.sink, func.count()).where(IS_DEAD).group_by(deliveries.c.sink)
        else:
            dead = select(literal(1)).where(IS_DEAD, deliveries.c.sink == sinks.c.key).limit(most)
            counted = select(func.count()).select_from(dead.correlate(sinks).subquery()).correlate(sinks)
            query = select(sinks.c.key, counted.scalar_subquery())
        return dict(connection.execute(query).all())

    def sink_states(self) -> dict[str, SinkState]:
        query = select(sinks.c.name, sinks.c.pauses, sinks.c.paused_until, sinks.c.pause_reason, sinks.c.on_trial)
        with self._database.read() as connection:
            return {row.name: SinkState(*row[:4], self._is_ours(row.on_trial)) for row in connection.execute(query)}

    def liveness(self) -> Liveness | None:
        columns = (dispatchers.c.alive_at, dispatchers.c.clock, dispatchers.c.warnings)
        query = select(*columns).order_by(dispatchers.c.clock.desc())  # the wall clock of a machine may be ahead
        with self._database.read() as connection:
            reports = connection.execute(query).all()
        if not reports:
            return None
        current = [row for row in reports if row.clock >= reports[0].clock - TOGETHER_SECONDS]
        warnings = [line for row in current for line in row.warnings.split("\n") if line]
        return Liveness(reports[0].alive_at, tuple(dict.fromkeys(warnings)))

    def document(self, name: str) -> bytes | None:
        with self._database.read() as connection:
            content: bytes | None = connection.scalar(select(documents.c.content).where(documents.c.name == name))
            return content

    def save_document(self, name: str, content: bytes) -> None:
        row = self._database.insert(documents).values(name=name, content=content)
        with self._database.write() as connection:
            connection.execute(row.on_conflict_do_update(index_elements=["name"], set_={"content": content}))

    def _is_ours(self, on_trial: str | None) -> bool:
        """Whether a trial was begun by this dispatcher or its predecessor."""
        return on_trial is not None and (on_trial == self._holder or not self._database.shared)

    def close(self) -> None:
        self._database.close()

    def _create_tables(self) -> None:
        with self._database.write() as connection:
            self._database.lock_schema(connection)
            version = _found_version(connection)
            metadata.create_all(connection)
            for key in (events.c.key, sinks.c.key):
                self._database.advance_keys(connection, key)
            if version is None:
                connection.execute(self._database.insert(versions).values(version=SCHEMA_VERSION))
            elif version < SCHEMA_VERSION:
                self._database.lift_limits(connection)
                statements = [statement for older in range(version, SCHEMA_VERSION) for statement in UPGRADES[older]]
                if statements:  # an index alone is created while others read, and store events
                    self._database.lock_tables(connection, metadata.sorted_tables)
                for statement in statements:
                    connection.exec_driver_sql(statement)
                for table in metadata.sorted_tables:
                    for index in table.indexes:
                        index.create(connection, checkfirst=True)
                connection.execute(update(versions).values(version=SCHEMA_VERSION))

    def _sink_key(self, connection: Connection, name: str, *, lock: bool = False) -> int:
        """Not cached beyond the transaction, which may be rolled back; and operators can remove the sink."""
        query = select(sinks.c.key).where(sinks.c.name == name)
        if lock:
            query = query.with_for_update(read=True, key_share=True)
        key: int | None = connection.scalar(query)
        if key is None:
            connection.execute(
                self._database.insert(sinks).values(name=name).on_conflict_do_nothing(index_elements=["name"])
            )
            key = connection.scalars(query).one()
        return key

    def _existing_keys(self, connection: Connection, stored: Sequence[StoredEvent]) -> set[int]:
        """The keys of the events that retention has not removed meanwhile, and will not before the commit."""
        these = self._database.among(events.c.key, [event.key for event in stored])
        query = select(events.c.key).where(these).order_by(events.c.key)
        return set(connection.scalars(query.with_for_update(key_share=True)))


def tables_version(database: Database) -> TablesVersion:
    """The version of the tables, which are not changed. Raises JournalError also if they could not be created."""
    with database.write() as connection:
        database.lock_schema(connection)
        found = _found_version(connection)
        if found is None:
            with connection.begin_nested() as attempt:
                metadata.create_all(connection)
                attempt.rollback()
    return TablesVersion(found, SCHEMA_VERSION)


def _found_version(connection: Connection) -> int | None:
    """The version of the tables; None if there are none.

    Raises JournalError if tables or views with our names belong to another program, or to a newer receiver.
    """
    inspector = inspect(connection)
    if not inspector.has_table(versions.name):
        if foreign := sorted(filter(inspector.has_table, metadata.tables)):
            raise JournalError(
                f"the database has a table '{foreign[0]}' of another program; use a database of its own for the journal"
            )
        return None
    version: int | None = connection.scalar(select(versions.c.version))
    if version is not None and version > SCHEMA_VERSION:
        raise JournalError(
            f"the journal has schema {version}, and this receiver supports up to {SCHEMA_VERSION}; "
            "run the newer receiver that wrote it"
        )
    return version
