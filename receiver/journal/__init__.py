"""Where events are kept: the contract, and the one place that knows which implementation keeps it."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from receiver.errors import JournalError
from receiver.journal.contract import (
    Acceptance,
    Arrival,
    Counts,
    DeadLetter,
    Delivery,
    History,
    Journal,
    Kept,
    LastAttempt,
    Quarantined,
    Records,
    Result,
    Settlement,
    SinkCount,
    SinkState,
)
from receiver.settings import Settings

if TYPE_CHECKING:
    from receiver.journal.database import Database

__all__ = [
    "Acceptance",
    "Arrival",
    "Counts",
    "DeadLetter",
    "Delivery",
    "History",
    "Journal",
    "Kept",
    "LastAttempt",
    "Quarantined",
    "Records",
    "Result",
    "Settlement",
    "SinkCount",
    "SinkState",
    "left_behind",
    "open_journal",
    "open_records",
]


def open_journal(settings: Settings, holder: str | None = None, *, made: bool = False) -> Journal:
    """The journal that the settings ask for, its tables made if need be. Raises JournalError.

    Open it after a fork, never before: locks and connections do not survive one. `holder` names who claims deliveries;
    a dispatcher that takes the place of another one gives the same name. With `made` the tables are known to be there,
    and a journal can be opened that is unavailable now.
    """
    from receiver.journal.sql import SqlJournal

    return SqlJournal(_database(settings), holder, made=made)


def open_records(settings: Settings) -> Records:
    """The journal as people look at it and mend it. Raises JournalError."""
    from receiver.journal.sql_records import SqlRecords

    return SqlRecords(_database(settings))


def left_behind(settings: Settings) -> list[str]:
    """A line for an SQLite journal that is not used since there is a DATABASE_URL, and still owes something."""
    if settings.database_url is None or not settings.journal_path.exists():
        return []
    with suppress(JournalError), closing(open_records(replace(settings, database_url=None))) as records:
        counts = records.counts()
        if owed := counts.unmatched + sum(count.pending for count in counts.sinks.values()):
            return [
                f"the journal {settings.journal_path} is not used while DATABASE_URL is set, and still owes {owed} "
                "deliveries; to make them, run `python -m receiver deliver` without DATABASE_URL until none is left"
            ]
    return []


def _database(settings: Settings) -> Database:
    table = settings.journal
    if settings.database_url is not None:
        from receiver.journal.postgres import PostgresDatabase

        return PostgresDatabase(settings.database_url, table.max_size_mb)
    from receiver.journal.sqlite import SqliteDatabase

    return SqliteDatabase(settings.journal_path, table.min_free_mb, table.max_size_mb)
