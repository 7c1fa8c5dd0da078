"""The `sql` sink: readings as rows of two tables in PostgreSQL or SQLite, all of them and the latest of each device.

A database that cannot be used pauses the sink; an event becomes a dead letter only if the database rejects its values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from receiver import Event, GiveUp, Pause, Secret, collect_errors, flush_folder, hookimpl, make_folder

from .connections import TimeLimits, create, database_url, is_about_a_row
from .tables import Row, check_names, create_or_check, define, insert_missing, insert_or_replace_older, newest, write

TABLES_LOCK = 0x73716C2073696E6B
"""Held while tables are created or altered in PostgreSQL: of two clients that create one at once, both can fail."""

QUOTED = re.compile("\"[^\"]*\"|'[^']*'")


@dataclass
class Sql:
    """Writes readings into a database, PostgreSQL or an SQLite file: all of them, and the latest of each device.

    Each reading is stored once, however often its event is delivered. The other table has one row for each device and
    quantity, and an older reading never replaces a newer one, nor does one of more than a day in the future. Missing
    tables are created, and a column is added for each new label. A table that does not fit is not changed, and pauses
    the sink.

    url: the database; postgres://user:password@host:5432/name, or sqlite:/// and a path, which counts from the folder
        of config.toml.
    readings: the table of all readings.
    latest: the table of the latest reading of each device and quantity.
    label_columns: labels that get a column of their own in both tables, called label_NAME.
    """

    url: Secret
    readings: str = "readings"
    latest: str = "latest"
    label_columns: list[str] = field(default_factory=list)

    limits: ClassVar[TimeLimits] = TimeLimits()  # not an option

    def __post_init__(self) -> None:
        self._labels = {f"label_{label}": label for label in self.label_columns}
        errors: list[Exception] = []
        with collect_errors(errors):
            self._url = database_url(self.url.get_secret_value())
        with collect_errors(errors):
            check_names([self.readings, self.latest], "tables")
        with collect_errors(errors):
            check_names([f"label_{label}" for label in self.label_columns], "label_columns")
        if errors:
            raise ExceptionGroup("invalid options", errors)
        self._readings = define(self.readings, ("event_id", "reading"), self._labels)
        self._latest = define(self.latest, ("device_id", "quantity"), self._labels)
        self._engine = create(self._url, self.limits)
        self._insert_reading = insert_missing(self._readings, self._engine.name)
        self._insert_latest = insert_or_replace_older(self._latest, self._engine.name)
        self._tables_fit = False

    @hookimpl
    def open(self) -> None:
        """Create or check the tables; raises Pause if the database cannot be used or a table does not fit."""
        with self._pausing():
            self._prepare()

    @hookimpl
    def deliver_batch(self, events: Sequence[Event]) -> None:
        """Commit the readings of all events, or of none.

        Rows are written in the order of their keys, so that concurrent writers cannot deadlock.
        """
        rows = {(row["event_id"], row["reading"]): row for event in events for row in self._rows(event)}
        if not rows:
            return
        ordered = [rows[key] for key in sorted(rows)]
        with self._pausing():
            self._prepare()
            with self._giving_up(), self._engine.begin() as connection:
                write(connection, self._insert_reading, ordered)
                write(connection, self._insert_latest, newest(ordered))

    @hookimpl
    def close(self) -> None:
        self._engine.dispose()

    @hookimpl
    def local_path(self) -> Path | None:
        return Path(str(self._url.database)) if self._engine.name == "sqlite" else None

    @hookimpl
    def find_problems(self) -> list[str]:
        path = self.local_path()
        return [f"url: {path} is a folder; it must be a file"] if path and os.path.isdir(path) else []

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
        """Create what is missing and check what exists, once; concurrent callers wait for each other."""
        if self._tables_fit:
            return
        if self._engine.name == "sqlite":
            folder = Path(str(self._url.database)).resolve().parent
            make_folder(folder)
            with suppress(OSError):  # where that is not possible, SQLite goes on as well
                flush_folder(folder)  # or a commit of a process that was killed is undone by a power cut
        with self._engine.begin() as connection:
            if self._engine.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(TABLES_LOCK)))
            create_or_check(connection, self._readings, "readings")
            create_or_check(connection, self._latest, "latest")
        self._tables_fit = True

    @contextmanager
    def _pausing(self) -> Iterator[None]:
        """Raise Pause for an error of the database, after which the tables are checked again."""
        try:
            yield
        except DBAPIError as error:
            self._tables_fit = False
            raise Pause(f"the database cannot be used: {self._error_text(error.orig)}") from None
        except OSError as error:
            raise Pause(f"the folder of the database cannot be created: {error.strerror}") from None

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Raise GiveUp if the database rejects a row."""
        try:
            yield
        except DBAPIError as error:
            if is_about_a_row(error.orig):
                raise GiveUp(f"the database rejects this event: {self._error_text(error.orig)}") from None
            raise

    def _error_text(self, error: BaseException | None) -> str:
        """An error of the database in one line, without the parts of the URL that a failed connection quotes."""
        text = str(error)
        if diagnosis := getattr(error, "diag", None):  # that of PostgreSQL's driver
            text = diagnosis.message_primary or QUOTED.sub("…", text)
        if self._url.password:
            text = text.replace(str(self._url.password), "***")
        return f"{type(error).__name__}: {' '.join(text.split())}"


@hookimpl
def register_sinks(register: Callable[[str, type], None]) -> None:
    register("sql", Sql)


def storable(value: object) -> object:
    """Text without NUL, which PostgreSQL cannot store."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value
