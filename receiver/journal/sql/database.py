"""What the journal in SQL asks of a database: transactions, a clock, capacity limits, and who may dispatch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from sqlalchemy import Column, ColumnElement, Connection, Table

from receiver.journal.contract import Arrival, Space


def storable(text: str) -> str:
    """Text that every database can store in UTF-8: without NUL and lone surrogates."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")


class Database(Protocol):
    """An open database. Calls may come from many threads, and raise nothing but JournalError."""

    shared: bool
    """Whether several dispatchers may run at once."""

    set_back_seconds: float
    """By how much the clock is behind the latest time that it has shown since this was last set to 0."""

    def insert(self, table: Table) -> Any:
        """An INSERT of the dialect, which has ON CONFLICT."""

    def insert_events(self, arrivals: Sequence[Arrival], connection: Connection | None = None) -> set[str]:
        """Insert the events whose ids are new, in this order; the new ids.

        In the write transaction of `connection`; without one in its own, which is faster and committed durably.
        The commit ends every `wait`.
        """

    def storable(self, text: str) -> str:
        """Text that this database can store; what it cannot is replaced. Call it inside a transaction."""

    def now(self) -> float:
        """Seconds since 1970 on the clock that all claims are on."""

    def write(
        self, *, durable: bool = True, wakes: bool = False, by_index: bool = False
    ) -> AbstractContextManager[Connection]:
        """A write transaction, committed at its end. Without `durable`, a power cut may undo the commit.

        A non-durable commit becomes durable with the next durable one, and is never undone without all that follow.
        With `wakes`, the commit ends every `wait`. `by_index` is as for `read`.
        """

    def read(self, *, by_index: bool = False) -> AbstractContextManager[Connection]:
        """A read transaction that blocks no writer.

        With `by_index`, tables are read in the order of an index wherever there is one, whatever the database believes
        about their sizes: it may never have looked. For queries with a limit, which then read no more than they return.
        """

    def mentions(self, whole: ColumnElement[Any], part: Any) -> ColumnElement[bool]:
        """Whether bytes or a text contain others; no character has a meaning, as it has in a LIKE, which is slower."""

    def check_capacity(self) -> None:
        """Raise JournalUnavailable when there is no room for more events.

        Settling and retention are not limited: this keeps the room free that they need to work on a full disk.
        """

    def space(self) -> Space:
        """How much it takes, and what is free for it; as `check_capacity` counts."""

    def may_dispatch(self) -> bool:
        """Whether `lock_dispatcher` would succeed."""

    def lock_dispatcher(self) -> None:
        """Become a dispatcher until the process ends. Raises JournalUnavailable while another one has the lock."""

    def lock_schema(self, connection: Connection) -> None:
        """Keep other processes from creating or altering the tables until this transaction ends."""

    def lock_tables(self, connection: Connection, tables: Sequence[Table]) -> None:
        """Let no other process use these tables until this transaction ends.

        Other transactions may use them in any order: this one waits for them, and none is ended by a deadlock.
        """

    def lift_limits(self, connection: Connection) -> None:
        """Let this transaction take as long as it needs: an upgrade of large tables takes minutes."""

    def among(self, column: Column[int], keys: Sequence[int]) -> ColumnElement[bool]:
        """Whether a column has one of these values, which are sent as one.

        A parameter for each takes much longer, and the drivers keep a statement for each number of them, with values:
        megabytes in all.
        """

    def advance_keys(self, connection: Connection, column: Column[Any]) -> None:
        """Let the keys that the database assigns continue after the greatest one that is stored."""

    def wait(self) -> bool:
        """Wait for a commit that ends it, for half a second at most. Returns whether there may be one."""

    def close(self) -> None:
        """Release files and connections."""
