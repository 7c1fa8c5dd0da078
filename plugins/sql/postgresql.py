"""Connections of the `sql` sink to PostgreSQL."""

from __future__ import annotations

from typing import Any

import psycopg
from sqlalchemy import URL, Engine, create_engine, event

from .connections import TimeLimits


def postgresql_engine(url: URL, limits: TimeLimits) -> Engine:
    """Each transaction begins with its own settings, because a pooler can share connections with other clients.

    Of `synchronous_commit`, the server's own value is stricter if it is `remote_apply`.
    """
    milliseconds = round(limits.statement_seconds * 1000)
    begin = f"""
        SELECT
            set_config('statement_timeout', '{milliseconds}', true),
            set_config('lock_timeout', '0', true),
            set_config('idle_in_transaction_session_timeout', '{milliseconds}', true),
            CASE WHEN current_setting('server_version_num')::int >= 170000
            THEN set_config('transaction_timeout', '0', true) END,
            CASE WHEN current_setting('synchronous_commit') <> 'remote_apply'
            THEN set_config('synchronous_commit', 'on', true) END
    """
    arguments = {
        **url.query,
        **({"password": url.password} if url.password else {}),
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
        "postgresql+psycopg://",
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
