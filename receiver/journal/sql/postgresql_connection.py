"""Connections to PostgreSQL: sessions that notice a lost server, and their errors in plain words."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import psycopg

CONNECT_SECONDS = 2
RESPONSE_SECONDS = 2.5
"""A little longer than the server's own limit for a statement, which comes with a reason."""

CANCEL_SECONDS = 0.5

SESSION: dict[str, Any] = {
    "connect_timeout": CONNECT_SECONDS,
    "application_name": "receiver",
    "client_encoding": "utf8",
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 2000,
    "prepare_threshold": None,
}
"""Notices a lost server within seconds, and works behind a pooler (no prepared statements)."""


class ServerTimeout(psycopg.OperationalError):
    """The server accepted a statement and does not respond."""


class TimeoutConnection(psycopg.Connection[Any]):
    """A connection that is closed when the server accepts a statement and does not respond.

    The server is asked to cancel it: a commit that waits for a standby does not notice that its client is gone, and
    each would hold a connection of the server until that standby is back.
    """

    waits_for_long = False
    """Whether a statement may take as long as it needs."""

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        limit = None if self.waits_for_long else RESPONSE_SECONDS
        try:
            return super().wait(gen, interval, limit if timeout is None else timeout)
        except psycopg.errors._WaitTimeout:
            if timeout is not None:
                raise
            with contextlib.suppress(psycopg.Error):
                self.cancel_safe(timeout=CANCEL_SECONDS)
            self.close()
            raise ServerTimeout("the server does not respond") from None

    def is_direct(self) -> bool:
        """Whether this session is the server's own; a pooler invents the process id that it announces."""
        row = self.execute("SELECT pg_backend_pid()").fetchone()
        return row is not None and row[0] == self.info.backend_pid


REASONS = {
    'password authentication failed|no password supplied|role ".*" does not exist': "wrong user or password",
    "no pg_hba.conf entry": "pg_hba.conf allows no such connection",
    "is not permitted to log in|not currently accepting connections": "this user or database may not be used to log in",
    '^3D000$|database ".*" does not exist': "no such database",
    "^53300$|too many connections|too many clients|remaining connection slots": "too many connections",
    "^53100$": "its disk is full",
    "^57014$": "statement timeout",
    "^25P0[34]$": "transaction timeout",
    "^55P03$": "lock timeout",
    "^57P0|the database system is|terminating connection": "it is starting up or shutting down",
    "^42P07$|^42710$": "another program has a type, sequence or index of the same name; use another database",
    "^42P01$|^42703$": "its tables were removed or altered, as by an upgrade; restart the receiver",
    "failed: Permission denied": "this user may not open the socket",
    "^42501$|permission denied": "permission denied",
    "^25006$|session is read-only|in recovery": "it is read-only",
    "session is not read-only|is not in hot standby": "it is not what target_session_attrs asks for",
    "^3F000$": "its search_path names no schema that exists",
    "^23505$": "its sequences are behind its rows; restart the receiver, which corrects them",
    "^22|cannot contain NUL": "it cannot store this text or number",
    "^40": "conflict with another transaction",
    "failed to resolve host|could not translate host name|Name or service not known": "unknown host",
    "Connection refused|No such file or directory": "connection refused",
    "timeout expired|timed out|does not respond|No route to host|Network is unreachable": "no response",
    r'invalid "?\w+"? value|invalid value for parameter|invalid port number|unrecognized configuration parameter|'
    "requires a value|weak sslmode|definition of service|could not match": (
        "a parameter of DATABASE_URL, or a PG* variable such as PGOPTIONS, has no valid value"
    ),
    "channel binding|authentication method requirement|GSSAPI": (
        "it does not offer what channel_binding, require_auth or gssencmode demands"
    ),
    "root certificate file": "sslrootcert is no file; set sslrootcert=system, or the path of the certificate",
    "SSL|certificate": "no TLS connection can be established",
    "closed the connection|reset by peer|connection is (lost|closed)|consuming input failed": "connection lost",
    "server login|no more connections allowed|pgbouncer": "the pooler in front of it cannot connect to it",
}
"""Plain words by SQLSTATE, or by the text where there is none: while connecting, the driver never has one."""


def reason(error: BaseException | None) -> str:
    """Why the database cannot be used; never in its own text, which holds host, user and values."""
    code = getattr(error, "sqlstate", None)
    found = (words for pattern, words in REASONS.items() if re.search(pattern, code or str(error)))
    return next(found, f"it reports error {code}" if code else "the connection failed")


def session_is_useless(error: BaseException) -> bool:
    """Whether another session may succeed: this one is lost, or leads to a server that cannot serve us."""
    code = str(getattr(error, "sqlstate", None) or "")
    lost = not code and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return (lost and not isinstance(error, ServerTimeout)) or code[:2] == "08" or code in USELESS


USELESS = ("25006", "57P01", "57P02", "57P03", "57P05")
"""Read-only, shut down by an administrator, crashed, not accepting connections, idle for too long."""
