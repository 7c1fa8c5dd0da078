"""Connections to PostgreSQL: from DATABASE_URL to a session that notices a lost server; its errors in plain words."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

import psycopg

from receiver.errors import JournalError

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

IGNORED = ("pgbouncer", "connection_limit", "pool_timeout", "socket_timeout", "statement_cache_size", "uselibpqcompat")
"""Parameters of other clients that have no meaning here."""

CHOICES = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
}


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


def connection_parameters(url: str) -> dict[str, str]:
    """A DATABASE_URL as parameters of libpq; several hosts, and what other clients write into it, are understood.

    Raises JournalError, without the URL in it, that names the parameter and the remedy.
    https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS
    """
    text = url.strip().strip("'\"").strip()
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.partition("+")[0] not in ("postgres", "postgresql"):
        raise JournalError("DATABASE_URL must begin with postgres:// or postgresql://")
    address, _, query = rest.partition("?")
    if ":" in address and "@" in query and "@" not in address:
        raise JournalError("DATABASE_URL: encode special characters in the password, such as ? as %3F")
    try:
        parameters = psycopg.conninfo.conninfo_to_dict(f"postgresql://{address}")
    except (psycopg.Error, UnicodeError):
        raise JournalError(
            "DATABASE_URL is not a URL such as postgres://user:password@host:5432/name; "
            "encode special characters in the password, such as / as %2F"
        ) from None
    parameters |= _query(parse_qsl(query, keep_blank_values=True))
    if "," in str(parameters.get("host", "")):
        parameters.setdefault("target_session_attrs", "read-write")
    _validate(parameters)
    return {name: str(value) for name, value in parameters.items()}


def _query(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The parameters behind the question mark. There may be several of `host`, each with a port."""
    found = {name: value for name, value in pairs if name not in (*IGNORED, "host", "ssl", "schema")}
    hosts = [value for name, value in pairs if name == "host"]
    if len(hosts) > 1:
        split = [host.rpartition(":") if re.search(r":\d+$", host) else (host, "", "") for host in hosts]
        found["host"] = ",".join(host for host, _, _ in split)
        found["port"] = ",".join(port or "5432" for _, _, port in split)
    elif hosts:
        found["host"] = hosts[0]
    for name, value in pairs:
        if name == "ssl":
            found.setdefault("sslmode", "disable" if value.lower() in ("false", "0") else "require")
        if name == "schema" and value != "public":
            raise JournalError(
                "DATABASE_URL: remove the parameter 'schema'; to keep the tables in a schema of their own, give the "
                "receiver a role of its own and run ALTER ROLE … SET search_path = …"
            )
    if found.get("sslmode") == "no-verify":
        found["sslmode"] = "require"
    return found


def _validate(parameters: dict[str, Any]) -> None:
    known = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()}
    for name in parameters:
        if name not in known:
            shown = f" '{name}'" if re.fullmatch("[a-z_]{2,30}", name) else ""
            raise JournalError(f"DATABASE_URL: PostgreSQL has no connection parameter{shown}; remove it")
    for name, valid in CHOICES.items():
        if parameters.get(name, valid[0]) not in valid:
            raise JournalError(f"DATABASE_URL: {name} must be one of {', '.join(valid)}")
    ports = str(parameters.get("port", "")).split(",")
    if not all(re.fullmatch(r"\d{0,5}", port) and 1 <= int(port or 1) <= 65535 for port in ports):
        raise JournalError("DATABASE_URL: port must be a number from 1 to 65535")


REASONS = {
    'password authentication failed|no password supplied|role ".*" does not exist': "wrong user or password",
    "no pg_hba.conf entry": "pg_hba.conf allows no such connection",
    "is not permitted to log in|not currently accepting connections": "this user or database may not be used to log in",
    '^3D000$|database ".*" does not exist': "no such database",
    "^53300$|too many connections|too many clients|remaining connection slots": "too many connections",
    "^53100$": "its disk is full",
    "^57014$": "statement timeout",
    "^57P0|the database system is|terminating connection": "it is starting up or shutting down",
    "^42P07$": "another program has a table or view of the same name",
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
    "requires a value|weak sslmode|definition of service": (
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


USELESS = ("25006", "57P01", "57P02", "57P03")
"""Read-only, shut down by an administrator, crashed, not accepting connections."""
