"""Where events are kept: the contract, and the one place that knows which implementation keeps it."""

from __future__ import annotations

from receiver.journal.contract import (
    Acceptance,
    Arrival,
    Counts,
    Delivery,
    Journal,
    Kept,
    Result,
    Settlement,
    SinkCount,
    SinkState,
)
from receiver.settings import Settings

__all__ = [
    "Acceptance",
    "Arrival",
    "Counts",
    "Delivery",
    "Journal",
    "Kept",
    "Result",
    "Settlement",
    "SinkCount",
    "SinkState",
    "open_journal",
]


def open_journal(settings: Settings) -> Journal:
    """The journal that the settings ask for, its tables made if need be. Raises JournalError.

    Open it after a fork, never before: locks and connections do not survive one.
    """
    from receiver.journal.sql import SqlJournal
    from receiver.journal.sqlite import SqliteDatabase

    table = settings.journal
    return SqlJournal(SqliteDatabase(settings.journal_path, table.min_free_mb, table.max_size_mb))
