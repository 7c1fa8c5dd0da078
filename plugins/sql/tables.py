"""The tables of the `sql` sink: their columns, what is written into them, and whether an existing one fits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    DateTime,
    Dialect,
    Double,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    collate,
    func,
    inspect,
    or_,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.schema import CreateColumn

from receiver import Pause

Row = dict[str, Any]

MAX_NAME_BYTES = 63
"""PostgreSQL truncates longer names silently."""
ROWS_PER_STATEMENT = 1000
"""So few that a slow database is done within the time limit of a statement."""
SQLITE_TIME = "%(year)04d-%(month)02d-%(day)02dT%(hour)02d:%(minute)02d:%(second)02d.%(microsecond)06dZ"
"""A format that SQLite's functions read, and that sorts as text."""
MAX_AHEAD = timedelta(days=1)
"""A reading whose time is further ahead of its receipt is never the latest. No clock or time zone is off by so much,
and one that is ahead by less hides others for a day at most."""
BYTE_ORDER = {"sqlite": "BINARY", "postgresql": "C"}
"""The collation in which event ids compare as they do in Python."""
INSERT: dict[str, Callable[[Table], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def check_names(names: Sequence[str], option: str) -> None:
    """Raise ValueError for names that a database would truncate or could not tell apart."""
    for name in names:
        if not name or "\0" in name or len(name.encode()) > MAX_NAME_BYTES:
            raise ValueError(f"{option}: {name!r} is not a name of 1 to {MAX_NAME_BYTES} bytes, as databases allow")
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            raise ValueError(f"{option}: {name!r} is used twice; names that differ only in case are the same")
        seen.add(name.lower())


def define(name: str, key: tuple[str, str], labels: Collection[str]) -> Table:
    """A table of readings, with one row for each value of `key`."""
    text_of_time = sqlite.DATETIME(storage_format=SQLITE_TIME)  # type: ignore[no-untyped-call]  # SQLAlchemy's own
    time = DateTime(timezone=True).with_variant(text_of_time, "sqlite")
    return Table(
        name,
        MetaData(),
        Column("event_id", Text, nullable=False),
        Column("reading", Integer, nullable=False),
        Column("time", time, nullable=False),
        Column("device_id", Text),
        Column("device_name", Text),
        Column("project_id", Text),
        Column("event_type", Text, nullable=False),
        Column("quantity", Text, nullable=False),
        Column("value", Double, nullable=False),
        Column("unit", Text, nullable=False),
        Column("text", Text, nullable=False),
        Column("received_at", time, nullable=False),
        *(Column(label, Text) for label in labels),
        PrimaryKeyConstraint(*key),
    )


def insert_missing(table: Table, dialect: str) -> Any:
    """An INSERT that changes nothing if the row exists."""
    return INSERT[dialect](table).on_conflict_do_nothing(index_elements=list(table.primary_key))


def insert_or_replace_older(table: Table, dialect: str) -> Any:
    """An INSERT that replaces an existing row if that is older, or too far ahead to be the latest."""
    statement = INSERT[dialect](table)
    new, old = statement.excluded, table.c
    new_age, old_age = (tuple_(row.time, collate(row.event_id, BYTE_ORDER[dialect])) for row in (new, old))
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={column: new[column.key] for column in table.columns if not column.primary_key},
        where=or_(new_age > old_age, is_too_far_ahead(old, dialect)),
    )


def is_too_far_ahead(row: Any, dialect: str) -> Any:
    """An expression for a stored row; none is written any more."""
    if dialect == "sqlite":
        return func.julianday(row.time) - func.julianday(row.received_at) > MAX_AHEAD.days
    return row.time > row.received_at + MAX_AHEAD


def newest(rows: Sequence[Row]) -> list[Row]:
    """The newest row of each device and quantity that is not too far ahead, sorted by them.

    Of several with the same time it is that of the last event id, and the first reading of that event: DT's ids
    ascend, and its samples come newest first.
    """
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row["device_id"] is not None and row["time"] - row["received_at"] <= MAX_AHEAD:
            key = (row["device_id"], row["quantity"])
            if key not in found or age(row) > age(found[key]):
                found[key] = row
    return [found[key] for key in sorted(found)]


def age(row: Row) -> tuple[datetime, str]:
    return row["time"], row["event_id"]


def write(connection: Connection, statement: Any, rows: Sequence[Row]) -> None:
    for start in range(0, len(rows), ROWS_PER_STATEMENT):
        connection.execute(statement, rows[start : start + ROWS_PER_STATEMENT])


def create_or_check(connection: Connection, table: Table, option: str) -> None:
    """Create the table, or the label columns it lacks. Raises Pause if a table of that name does not fit."""
    found = inspect(connection)
    if not found.has_table(table.name):
        table.create(connection)
        return
    columns = {column["name"]: column for column in found.get_columns(table.name)}
    for column in table.columns:
        if column.name not in columns and column.name.startswith("label_"):
            add_column(connection, column)
        elif mismatch := mismatch_of(column, columns.get(column.name), connection.dialect):
            raise does_not_fit(table, option, mismatch)
    for name, other in columns.items():
        if name not in table.columns and needs_value(other):
            raise does_not_fit(table, option, f"column '{name}' is NOT NULL and has no default")
    key = list(table.primary_key.columns.keys())
    if sorted(found.get_pk_constraint(table.name)["constrained_columns"]) != sorted(key):
        raise does_not_fit(table, option, f"its primary key must be ({', '.join(key)})")


def add_column(connection: Connection, column: Column[Any]) -> None:
    name = connection.dialect.identifier_preparer.format_table(column.table)
    connection.exec_driver_sql(f"ALTER TABLE {name} ADD COLUMN {CreateColumn(column).compile(connection)}")


def mismatch_of(column: Column[Any], found: ReflectedColumn | None, dialect: Dialect) -> str | None:
    wanted = column.type.compile(dialect)
    if found is None:
        return f"it has no column '{column.name}' ({wanted})"
    if found["type"].compile(dialect) != wanted:
        return f"column '{column.name}' is {found['type'].compile(dialect)} and must be {wanted}"
    return None


def needs_value(column: ReflectedColumn) -> bool:
    has_value = column["default"] is not None or column.get("identity") or column.get("computed")
    return not column["nullable"] and not has_value


def does_not_fit(table: Table, option: str, mismatch: str) -> Pause:
    return Pause(f"table '{table.name}' does not fit: {mismatch}; alter the table, or name another one in {option}")
