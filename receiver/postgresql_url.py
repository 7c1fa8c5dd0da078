"""What the URL of a PostgreSQL database says: one rule for DATABASE_URL and for the options of sinks."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any
from urllib.parse import parse_qsl

IGNORED = ("pgbouncer", "connection_limit", "pool_timeout", "socket_timeout", "statement_cache_size", "uselibpqcompat")
"""Parameters of other clients that have no meaning here."""

CHOICES = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
}

HARMLESS_NAME = re.compile("(?=.{2,30}$)[A-Za-z_][a-z_]+([A-Z][a-z]+)*")
"""What is shown as the name of an unknown parameter: anything else may be part of a password."""


def postgresql_parameters(url: str, setting: str) -> dict[str, str]:
    """The URL of a `setting` as parameters of libpq; several hosts and parameters of other clients are understood.

    Raises ValueError, without the URL in it, that names the setting, the parameter and the remedy.
    https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS
    """
    import psycopg  # which takes 8 MB, and most plugins do not need

    text = url.strip().strip("'\"").strip()
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.partition("+")[0] not in ("postgres", "postgresql"):
        raise ValueError(f"{setting} must begin with postgres:// or postgresql://")
    address, _, query = rest.partition("?")
    if ":" in address and "@" in query and "@" not in address:
        raise ValueError(f"{setting}: encode special characters in the password, such as ? as %3F")
    try:
        parameters = psycopg.conninfo.conninfo_to_dict(f"postgresql://{address}")
    except (psycopg.Error, UnicodeError):
        raise ValueError(
            f"{setting} is not a URL such as postgres://user:password@host:5432/name; "
            "encode special characters in the password, such as / as %2F"
        ) from None
    parameters |= _query(parse_qsl(query, keep_blank_values=True), setting)
    if "," in str(parameters.get("host", "")):
        parameters.setdefault("target_session_attrs", "read-write")
    known = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()}
    _validate(parameters, known, setting)
    return {name: str(value) for name, value in parameters.items()}


def _query(pairs: Sequence[tuple[str, str]], setting: str) -> dict[str, str]:
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
            raise ValueError(
                f"{setting}: remove the parameter 'schema'; to keep the tables in a schema of their own, give the "
                "receiver a role of its own and run ALTER ROLE … SET search_path = …"
            )
    if found.get("sslmode") == "no-verify":
        found["sslmode"] = "require"
    return found


def _validate(parameters: dict[str, Any], known: Collection[str], setting: str) -> None:
    for name in parameters:
        if name not in known:
            shown = f" '{name}'" if HARMLESS_NAME.fullmatch(name) else ""
            raise ValueError(f"{setting}: PostgreSQL has no connection parameter{shown}; remove it")
    for name, valid in CHOICES.items():
        if parameters.get(name, valid[0]) not in valid:
            raise ValueError(f"{setting}: {name} must be one of {', '.join(valid)}")
    ports = str(parameters.get("port", "")).split(",")
    if not all(re.fullmatch(r"\d{0,5}", port) and 1 <= int(port or 1) <= 65535 for port in ports):
        raise ValueError(f"{setting}: port must be a number from 1 to 65535")
