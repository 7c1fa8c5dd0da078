"""What the journal in SQL asks of a database: transactions, a clock, limits, and who may dispatch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from sqlalchemy import Connection, Table

from receiver.journal.contract import Arrival


class Database(Protocol):
    """An open database. All its calls may come from many threads, and raise nothing but JournalError."""

    shared: bool
    """Whether several dispatchers may work at once."""

    def insert(self, table: Table) -> Any:
        """An INSERT of the dialect, which can say what to do on a conflict."""

    def add_events(self, arrivals: Sequence[Arrival], connection: Connection | None = None) -> set[str]:
        """Insert events, in this order, whose ids are not there yet; which ids were new.

        Within the write transaction of `connection`, or else in one of their own, which is quicker, committed durably.
        The commit wakes whoever is in `wait`.
        """

    def now(self) -> float:
        """Seconds since 1970 on the clock that all claims are on."""

    def write(self, *, lasting: bool = True) -> AbstractContextManager[Connection]:
        """A write transaction. At its end it is committed durably; without `lasting`, a power cut may undo it.

        What is not lasting comes to the disk with the next that is, and none is undone without all after it.
        """

    def read(self) -> AbstractContextManager[Connection]:
        """A view that keeps nobody from writing."""

    def check_room(self) -> None:
        """Raise JournalUnavailable when there is no room for more events.

        Settling and retention do not ask: on a full disk even they could not free anything, so room is kept for them.
        """

    def become_dispatcher(self) -> None:
        """Be a dispatcher until the process ends. Raises JournalUnavailable when another one excludes that."""

    def lock_tables(self, connection: Connection) -> None:
        """Let no other process make or change the tables before this transaction ends."""

    def wait(self) -> None:
        """Come back when new events may be there, and after half a second at most."""

    def close(self) -> None:
        """Let go of files and connections."""
