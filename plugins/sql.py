"""The `sql` sink: readings as rows of two tables in PostgreSQL or SQLite, all that came and the latest of each device.

Trouble of the database pauses the sink and never makes a dead letter; only what the database can never take does.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import (
    URL,
    Column,
    Connection,
    DateTime,
    Dialect,
    Double,
    Engine,
    Integer,
    MetaData,
    NullPool,
    PrimaryKeyConstraint,
    Table,
    Text,
    collate,
    create_engine,
    event,
    func,
    inspect,
    make_url,
    select,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import ExceptionContext, ReflectedColumn
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.schema import CreateColumn

from receiver import Event, GiveUp, Pause, Secret, hookimpl

Row = dict[str, Any]

CONNECT_SECONDS = 5
STATEMENT_SECONDS = 10
ANSWER_SECONDS = 12.0
"""How long one exchange with PostgreSQL may take, when it takes what is sent and never answers."""
SQLITE_CONNECT = {"timeout": 10.0, "isolation_level": None}
"""Wait for so long while another program writes to the file; transactions are begun by us."""
SQLITE_TIME = "%(year)04d-%(month)02d-%(day)02dT%(hour)02d:%(minute)02d:%(second)02d.%(microsecond)06dZ"
"""A form that SQLite's functions read, and that sorts as text."""
ROWS_AT_ONCE = 1000
"""Rows in one exchange: a slow database gets them done in time."""
NAME_BYTES = 63
"""PostgreSQL cuts longer names off without a word."""
TABLES_LOCK = 0x73716C2073696E6B
"""Whoever makes or alters tables in PostgreSQL holds it: there, two who make one table at once can both fail."""
CONTENT = ("22", "23", "54")
"""Classes of SQLSTATE that blame the row: data exception, integrity constraint, program limit (a key too long)."""
INSERT: dict[str, Callable[[Table], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
BYTE_ORDER = {"sqlite": "BINARY", "postgresql": "C"}
"""The collation in which ids compare as they do here."""
QUOTED = re.compile("\"[^\"]*\"|'[^']*'")

BEGIN = {
    "sqlite": "BEGIN IMMEDIATE",
    "postgresql": f"SET LOCAL synchronous_commit = on; SET LOCAL statement_timeout = '{STATEMENT_SECONDS}s'; "
    f"SET LOCAL idle_in_transaction_session_timeout = '{STATEMENT_SECONDS}s'",
}
"""What every transaction begins with. It holds for that long only, since a pooler may share the connection."""
CONNECT: dict[str, Any] = {
    "connect_timeout": CONNECT_SECONDS,
    "application_name": "receiver",
    "client_encoding": "utf8",
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": STATEMENT_SECONDS * 1000,
    "prepare_threshold": None,
}
"""A connection that notices within seconds that the other side is gone, and that a pooler may stand in front of."""


@dataclass
class Sql:
    """Writes readings into a database, PostgreSQL or an SQLite file: all of them, and the latest of each device.

    A row is added for each reading, once, however often its event comes. The other table has one row for each device
    and quantity, and no older reading takes the place of a newer one. Tables are made when they are missing, and a
    column for a label that was added; whatever else does not fit is left alone and reported.

    url: where to; postgres://user:password@host:5432/name, or sqlite:/// and a path, which counts from the folder
        that the receiver is started in.
    readings: the table of all readings.
    latest: the table of the latest readings.
    label_columns: labels that get a column of their own in both tables, called label_NAME.
    """

    url: Secret
    readings: str = "readings"
    latest: str = "latest"
    label_columns: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._url = database_url(self.url.get_secret_value())
        self._labels = {f"label_{label}": label for label in self.label_columns}
        check_names([self.readings, self.latest], "tables")
        check_names([f"label_{label}" for label in self.label_columns], "label_columns")
        self._readings = table(self.readings, ("event_id", "reading"), self._labels)
        self._latest = table(self.latest, ("device_id", "quantity"), self._labels)
        self._engine = engine(self._url)
        self._keep = keep(self._readings, self._engine.name)
        self._keep_newest = keep_newest(self._latest, self._engine.name)
        self._fits = False

    @hookimpl
    def open(self) -> None:
        """Make or check the tables; raises Pause when the database is away or a table does not fit."""
        with self._troubles():
            self._prepare()

    @hookimpl
    def deliver_batch(self, events: Sequence[Event]) -> None:
        """Commit the readings of all events, or of none.

        Rows are written in the order of their keys, so that several writers never wait for each other in a circle.
        """
        rows = {(row["event_id"], row["reading"]): row for event in events for row in self._rows(event)}
        if not rows:
            return
        ordered = [rows[key] for key in sorted(rows)]
        with self._troubles():
            self._prepare()
            with self._refusals(), self._engine.begin() as connection:
                write(connection, self._keep, ordered)
                write(connection, self._keep_newest, newest(ordered))

    @hookimpl
    def close(self) -> None:
        self._engine.dispose()

    def _rows(self, event: Event) -> Iterator[Row]:
        common: Row = {
            "event_id": event.id,
            "device_id": event.device_id,
            "device_name": event.labels.get("name"),
            "project_id": event.project_id,
            "event_type": event.type,
            "received_at": event.received_at,
        }
        common |= {column: event.labels.get(label) for column, label in self._labels.items()}
        common = {column: storable(value) for column, value in common.items()}
        for number, reading in enumerate(event.readings(), start=1):
            yield common | {
                "reading": number,
                "time": reading.time,
                "quantity": reading.quantity,
                "value": reading.value,
                "unit": reading.unit,
                "text": reading.text,
            }

    def _prepare(self) -> None:
        """Make what is missing and check what is there, once; others who do the same at the same time wait."""
        if self._fits:
            return
        if self._engine.name == "sqlite":
            Path(str(self._url.database)).parent.mkdir(parents=True, exist_ok=True)
        with self._engine.begin() as connection:
            if self._engine.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(TABLES_LOCK)))
            fit(connection, self._readings, "readings")
            fit(connection, self._latest, "latest")
        self._fits = True

    @contextmanager
    def _troubles(self) -> Iterator[None]:
        """Turn what the database says into a Pause, after which the tables are looked at again."""
        try:
            yield
        except DBAPIError as error:
            self._fits = False
            raise Pause(f"the database cannot be used: {self._told(error.orig)}") from None
        except OSError as error:
            raise Pause(f"the folder of the database cannot be made: {error.strerror}") from None

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Raise GiveUp when the database blames a row."""
        try:
            yield
        except DBAPIError as error:
            if blames_the_row(error.orig):
                raise GiveUp(f"the database does not take it: {self._told(error.orig)}") from None
            raise

    def _told(self, error: BaseException | None) -> str:
        """What the database says, in a line. A failed connection quotes parts of the URL; these are left out."""
        text = str(error)
        if isinstance(error, psycopg.Error):
            text = error.diag.message_primary or QUOTED.sub("…", text)
        if self._url.password:
            text = text.replace(str(self._url.password), "***")
        return f"{type(error).__name__}: {' '.join(text.split())}"


@hookimpl
def register_sinks(register: Callable[[str, type], None]) -> None:
    register("sql", Sql)


def database_url(text: str) -> URL:
    """The URL of a database we can use. Raises ValueError, without the URL in it."""
    try:
        url = make_url(text.strip())
        backend = url.get_backend_name()
        if backend in ("postgres", "postgresql"):
            given = url.translate_connect_args(username="user", database="dbname")
            psycopg.conninfo.make_conninfo(**{**given, **url.query})
    except (ArgumentError, ValueError, psycopg.Error):
        raise ValueError("url is no URL such as postgres://user:password@host:5432/name") from None
    if backend in ("postgres", "postgresql"):
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise ValueError("url must begin with postgres://, postgresql:// or sqlite:///")
    if url.host or url.query or not url.database or url.database.startswith((":", "file:")):
        raise ValueError("an SQLite url must name a file: three slashes and its path")
    return URL.create("sqlite", database=str(Path(url.database).absolute()))


def check_names(names: Sequence[str], option: str) -> None:
    """Refuse names that a database would cut off or mistake for each other."""
    for name in names:
        if not name or "\0" in name or len(name.encode()) > NAME_BYTES:
            raise ValueError(f"{option}: {name!r} is no name of 1 to {NAME_BYTES} bytes, as databases allow")
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            raise ValueError(f"{option}: {name!r} is there twice; upper and lower case do not make names different")
        seen.add(name.lower())


def table(name: str, key: tuple[str, str], labels: Collection[str]) -> Table:
    """A table of readings: `key` is what there is one row for."""
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


def engine(url: URL) -> Engine:
    """Connections, no more than there are calls at once. An SQLite file is opened anew each time: it may be moved."""
    if url.get_backend_name() == "sqlite":
        made = create_engine(url, poolclass=NullPool, connect_args=SQLITE_CONNECT, hide_parameters=True)
        event.listen(made, "connect", flush_folder_too)
    else:
        made = create_engine(
            url,
            pool_size=0,
            pool_pre_ping=True,
            isolation_level="READ COMMITTED",
            connect_args=CONNECT,
            hide_parameters=True,
        )
        event.listen(made, "do_connect", connect)
    event.listen(made, "handle_error", distrust)
    event.listen(made, "begin", lambda connection: connection.exec_driver_sql(BEGIN[made.name]))
    return made


def flush_folder_too(connection: Any, record: object) -> None:
    """Without it a power cut can bring the journal of the last transaction back, and undo what was committed."""
    connection.execute("PRAGMA synchronous = EXTRA")


def distrust(context: ExceptionContext) -> None:
    """After a trouble all connections are made anew: behind the address there may be another server by now."""
    context.is_disconnect = not blames_the_row(context.original_exception)


class Patient(psycopg.Connection[Any]):
    """A connection that is given up when the server takes a statement and never answers: it may stand still."""

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, ANSWER_SECONDS if timeout is None else timeout)
        except psycopg.errors._WaitTimeout:
            if timeout is not None:
                raise
            self.close()
            raise psycopg.OperationalError("the server does not answer") from None


def connect(dialect: object, record: object, arguments: Any, options: Any) -> Any:
    return Patient.connect(*arguments, **options)


def keep(table: Table, dialect: str) -> Any:
    """An INSERT that changes nothing where the row is there."""
    return INSERT[dialect](table).on_conflict_do_nothing(index_elements=list(table.primary_key))


def keep_newest(table: Table, dialect: str) -> Any:
    """An INSERT that takes the place of the row that is there, if it is newer."""
    statement = INSERT[dialect](table)
    new, old = statement.excluded, table.c
    new_age, old_age = (tuple_(row.time, collate(row.event_id, BYTE_ORDER[dialect])) for row in (new, old))
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={column: new[column.key] for column in table.columns if not column.primary_key},
        where=new_age > old_age,
    )


def newest(rows: Sequence[Row]) -> list[Row]:
    """The newest row of each device and quantity. Of one time it is that of the last event id, and its first reading:
    DT's ids grow, and its samples come newest first."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row["device_id"] is not None:
            key = (row["device_id"], row["quantity"])
            if key not in found or age(row) > age(found[key]):
                found[key] = row
    return [found[key] for key in sorted(found)]


def age(row: Row) -> tuple[datetime, str]:
    return row["time"], row["event_id"]


def write(connection: Connection, statement: Any, rows: Sequence[Row]) -> None:
    for start in range(0, len(rows), ROWS_AT_ONCE):
        connection.execute(statement, rows[start : start + ROWS_AT_ONCE])


def storable(value: object) -> object:
    """Text without NUL, which PostgreSQL refuses."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value


def fit(connection: Connection, table: Table, option: str) -> None:
    """Make the table or what columns of labels it lacks. Raises Pause when it is there and of another shape."""
    found = inspect(connection)
    if not found.has_table(table.name):
        table.create(connection)
        return
    columns = {column["name"]: column for column in found.get_columns(table.name)}
    for column in table.columns:
        if column.name not in columns and column.name.startswith("label_"):
            add(connection, column)
        elif misfit := why_unfit(column, columns.get(column.name), connection.dialect):
            raise Pause(unfit(table, option, misfit))
    for name, other in columns.items():
        if name not in table.columns and must_be_filled(other):
            raise Pause(unfit(table, option, f"column '{name}' must be filled, and has no default"))
    key = list(table.primary_key.columns.keys())
    if sorted(found.get_pk_constraint(table.name)["constrained_columns"]) != sorted(key):
        raise Pause(unfit(table, option, f"its primary key must be ({', '.join(key)})"))


def add(connection: Connection, column: Column[Any]) -> None:
    name = connection.dialect.identifier_preparer.format_table(column.table)
    connection.exec_driver_sql(f"ALTER TABLE {name} ADD COLUMN {CreateColumn(column).compile(connection)}")


def why_unfit(column: Column[Any], found: ReflectedColumn | None, dialect: Dialect) -> str | None:
    wanted = column.type.compile(dialect)
    if found is None:
        return f"it has no column '{column.name}' ({wanted})"
    if found["type"].compile(dialect) != wanted:
        return f"column '{column.name}' is {found['type'].compile(dialect)} and must be {wanted}"
    return None


def must_be_filled(column: ReflectedColumn) -> bool:
    filled = column["default"] is not None or column.get("identity") or column.get("computed")
    return not column["nullable"] and not filled


def unfit(table: Table, option: str, why: str) -> str:
    return f"table '{table.name}' does not fit: {why}; alter the table, or name another one in {option}"


def blames_the_row(error: BaseException | None) -> bool:
    """Whether it is the row that the database does not take, and another one may pass."""
    return isinstance(error, sqlite3.IntegrityError) or str(getattr(error, "sqlstate", "")).startswith(CONTENT)
