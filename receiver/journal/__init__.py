"""The durable store of events and their delivery state: its contract, and how to open the configured implementation."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from receiver.journal.contract import (
    Arrival,
    Counts,
    DeadLetter,
    DeadLetterGroup,
    Delivery,
    DeliveryState,
    EventHistory,
    Journal,
    Liveness,
    Outcome,
    QuarantinedPush,
    Records,
    Result,
    Settlement,
    SinkCounts,
    SinkState,
    Space,
    StoredEvent,
    TablesVersion,
)
from receiver.settings import Settings

if TYPE_CHECKING:
    from receiver.journal.sql.database import Database as Database

__all__ = [
    "Arrival",
    "Counts",
    "DeadLetter",
    "DeadLetterGroup",
    "Delivery",
    "DeliveryState",
    "EventHistory",
    "Journal",
    "Liveness",
    "Outcome",
    "QuarantinedPush",
    "Records",
    "Result",
    "Settlement",
    "SinkCounts",
    "SinkState",
    "Space",
    "StoredEvent",
    "TablesVersion",
    "open_database",
    "open_journal",
    "open_records",
    "tables_version",
]


def open_journal(settings: Settings, holder: str | None = None, *, create_tables: bool = True) -> Journal:
    """The journal that the settings name; its tables are created or upgraded. Raises JournalError.

    Open it after a fork, never before: locks and connections do not survive one. `holder` names the dispatcher that
    claims deliveries; the successor of a dispatcher gives the same name. Without `create_tables` the tables must exist,
    and a journal can be opened that is unavailable now.
    """
    from receiver.journal.sql.journal import SqlJournal

    return SqlJournal(_database(settings), holder, create_tables=create_tables)


def open_records(settings: Settings, *, create_tables: bool) -> Records:
    """The journal as operators inspect and change it. Raises JournalError.

    With `create_tables` its tables are created or upgraded; without, they must exist and be of the latest version.
    """
    from receiver.journal.sql.records import SqlRecords

    return SqlRecords(_database(settings), create_tables=create_tables)


def tables_version(settings: Settings) -> TablesVersion:
    """The version of the journal's tables, which are not changed. Raises JournalError if they cannot be used."""
    from receiver.journal.sql.state import tables_version

    with closing(_database(settings)) as database:
        return tables_version(database)


def open_database(
    url: str | None,
    path: Path,
    min_free_mb: int = 0,
    max_size_mb: int | None = None,
    setting: str = "DATABASE_URL",
) -> Database:
    """The PostgreSQL database at `url`, as named in a `setting`; without one, the SQLite file at `path`.

    Raises JournalError.
    """
    if url is not None:
        from receiver.journal.sql.postgresql import PostgresqlDatabase

        return PostgresqlDatabase(url, max_size_mb, setting)
    from receiver.journal.sql.sqlite import SqliteDatabase

    return SqliteDatabase(path, min_free_mb, max_size_mb)


def _database(settings: Settings) -> Database:
    table = settings.journal
    return open_database(settings.database_url, settings.journal_path, table.min_free_mb, table.max_size_mb)
