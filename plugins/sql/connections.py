"""Connections of the `sql` sink: their URL, their time limits, and the meaning of errors.

What needs the driver of PostgreSQL, which takes 8 MB, is in `postgresql` and imported only for such a URL.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, NullPool, create_engine, event, make_url
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import ArgumentError

from receiver import postgresql_parameters

ROW_ERRORS = ("22", "23", "54")
"""Classes of SQLSTATE that are about the row: data exception, integrity constraint, program limit (a key too long)."""

POSTGRESQL = re.compile(r"[\s'\"]*postgres")


@dataclass(frozen=True)
class TimeLimits:
    """How long to wait for a connection, for a statement, for any response at all, and for a lock of an SQLite file."""

    connect_seconds: int = 5
    statement_seconds: float = 10.0
    response_seconds: float = 12.0
    lock_seconds: float = 10.0


def database_url(text: str) -> URL:
    """The URL of a database that can be used; that of PostgreSQL as parameters of libpq. Raises ValueError, without the
    URL in it."""
    if POSTGRESQL.match(text):
        parameters = postgresql_parameters(text, "url")
        return URL.create("postgresql+psycopg", password=parameters.pop("password", None), query=parameters)
    try:
        url = make_url(text.strip())
    except (ArgumentError, ValueError):
        raise ValueError("url must be a URL such as postgres://user:password@host:5432/name") from None
    if url.get_backend_name() != "sqlite":
        raise ValueError("url must begin with postgres://, postgresql:// or sqlite:///")
    if url.host or url.query or not url.database or url.database.startswith((":", "file:")):
        raise ValueError("url of SQLite must name a file: three slashes and its path")
    if "\0" in url.database:
        raise ValueError("url of SQLite: a path cannot contain the character NUL")
    return URL.create("sqlite", database=str(Path(url.database).absolute()))


def create(url: URL, limits: TimeLimits) -> Engine:
    """An engine whose transactions are durable and limited in time, with as many connections as there are calls."""
    if url.get_backend_name() == "sqlite":
        engine = sqlite_engine(url, limits)
    else:
        from .postgresql import postgresql_engine

        engine = postgresql_engine(url, limits)
    event.listen(engine, "handle_error", treat_as_disconnect)
    return engine


def sqlite_engine(url: URL, limits: TimeLimits) -> Engine:
    """The file is opened for each transaction, since it can be moved. Each begins with the write lock."""
    arguments = {"timeout": limits.lock_seconds, "isolation_level": None}
    engine = create_engine(url, poolclass=NullPool, connect_args=arguments, hide_parameters=True)
    event.listen(engine, "connect", flush_folder_too)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def flush_folder_too(connection: Any, record: object) -> None:
    """Otherwise the rollback journal can reappear after a power cut, and undo a transaction that was committed."""
    connection.execute("PRAGMA synchronous = EXTRA")


def treat_as_disconnect(context: ExceptionContext) -> None:
    """Open all connections anew after an error, unless it is about a row: the URL can lead to another server by now."""
    context.is_disconnect = not is_about_a_row(context.original_exception)


def is_about_a_row(error: BaseException | None) -> bool:
    """Whether the database rejects a row, and would accept another one."""
    return isinstance(error, sqlite3.IntegrityError) or str(getattr(error, "sqlstate", "")).startswith(ROW_ERRORS)
