"""Where events are kept: the contract, and the one place that knows which implementation keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    SecretUse,
    Settlement,
    SinkCount,
    SinkState,
)
from receiver.settings import Settings

if TYPE_CHECKING:
    from receiver.journal.sqlite import SqliteDatabase

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
    "SecretUse",
    "Settlement",
    "SinkCount",
    "SinkState",
    "open_journal",
    "open_records",
]


def open_journal(settings: Settings) -> Journal:
    """The journal that the settings ask for, its tables made if need be. Raises JournalError.

    Open it after a fork, never before: locks and connections do not survive one.
    """
    from receiver.journal.sql import SqlJournal

    return SqlJournal(_database(settings))


def open_records(settings: Settings) -> Records:
    """The journal as people look at it and mend it. Raises JournalError."""
    from receiver.journal.sql_records import SqlRecords

    return SqlRecords(_database(settings))


def _database(settings: Settings) -> SqliteDatabase:
    from receiver.journal.sqlite import SqliteDatabase

    table = settings.journal
    return SqliteDatabase(settings.journal_path, table.min_free_mb, table.max_size_mb)
