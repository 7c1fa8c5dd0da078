"""Connections of the `sql` sink to PostgreSQL and SQLite: their URL, their time limits, and the meaning of errors."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import URL, Engine, NullPool, create_engine, event, make_url
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import ArgumentError

ROW_ERRORS = ("22", "23", "54")
"""Classes of SQLSTATE that are about the row: data exception, integrity constraint, program limit (a key too long)."""


@dataclass(frozen=True)
class TimeLimits:
    """How long to wait for a connection, for a statement, for any response at all, and for a lock of an SQLite file."""

    connect_seconds: int = 5
    statement_seconds: float = 10.0
    response_seconds: float = 12.0
    lock_seconds: float = 10.0


def database_url(text: str) -> URL:
    """The URL of a database that can be used. Raises ValueError, without the URL in it."""
    try:
        url = make_url(text.strip())
        backend = url.get_backend_name()
        if backend in ("postgres", "postgresql"):
            given = url.translate_connect_args(username="user", database="dbname")
            psycopg.conninfo.make_conninfo(**{**given, **url.query})
    except (ArgumentError, ValueError, psycopg.Error):
        raise ValueError("url must be a URL such as postgres://user:password@host:5432/name") from None
    if backend in ("postgres", "postgresql"):
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise ValueError("url must begin with postgres://, postgresql:// or sqlite:///")
    if url.host or url.query or not url.database or url.database.startswith((":", "file:")):
        raise ValueError("url of SQLite must name a file: three slashes and its path")
    return URL.create("sqlite", database=str(Path(url.database).absolute()))


def create(url: URL, limits: TimeLimits) -> Engine:
    """An engine whose transactions are durable and limited in time, with as many connections as there are calls."""
    engine = sqlite_engine(url, limits) if url.get_backend_name() == "sqlite" else postgresql_engine(url, limits)
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


def postgresql_engine(url: URL, limits: TimeLimits) -> Engine:
    """Each transaction begins with its own settings, because a pooler can share connections with other clients."""
    milliseconds = round(limits.statement_seconds * 1000)
    begin = (
        f"SET LOCAL synchronous_commit = on; SET LOCAL statement_timeout = {milliseconds}; "
        f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds}"
    )
    arguments = {
        "connect_timeout": limits.connect_seconds,
        "application_name": "receiver",
        "client_encoding": "utf8",
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 2,
        "tcp_user_timeout": milliseconds,
        "prepare_threshold": None,  # prepared statements do not work behind every pooler
    }
    engine = create_engine(
        url,
        pool_size=0,
        pool_pre_ping=True,
        isolation_level="READ COMMITTED",
        connect_args=arguments,
        hide_parameters=True,
    )

    def connect(dialect: object, record: object, arguments: Any, options: Any) -> psycopg.Connection[Any]:
        connection = TimeoutConnection.connect(*arguments, **options)
        connection.response_seconds = limits.response_seconds
        return connection

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


class TimeoutConnection(psycopg.Connection[Any]):
    """A connection that is closed when the server accepts a statement and never responds, as a frozen one does."""

    response_seconds = TimeLimits.response_seconds

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, self.response_seconds if timeout is None else timeout)
        except psycopg.errors._WaitTimeout:
            if timeout is not None:
                raise
            self.close()
            raise psycopg.OperationalError("the server does not respond") from None


def treat_as_disconnect(context: ExceptionContext) -> None:
    """Open all connections anew after an error, unless it is about a row: the URL can lead to another server by now."""
    context.is_disconnect = not is_about_a_row(context.original_exception)


def is_about_a_row(error: BaseException | None) -> bool:
    """Whether the database rejects a row, and would accept another one."""
    return isinstance(error, sqlite3.IntegrityError) or str(getattr(error, "sqlstate", "")).startswith(ROW_ERRORS)
