"""What a DATABASE_URL may say: what works, and what is an error that names the parameter and the remedy."""

from __future__ import annotations

import re

import pytest

from receiver import postgresql_parameters

BASE = {"user": "u", "password": "p", "host": "h", "port": "5432", "dbname": "d"}
PRIMARY = {"target_session_attrs": "read-write"}
UNDERSTOOD: dict[str, tuple[str, dict[str, str]]] = {
    "heroku": ("postgres://u:p@h:5432/d", BASE),
    "with a driver": ("postgresql+psycopg://u:p@h:5432/d", BASE),
    "blanks and line ends": (" postgres://u:p@h:5432/d \r\n", BASE),
    "quotes": ('"postgres://u:p@h:5432/d"', BASE),
    "two hosts": ("postgres://u:p@h1:1,h2:2/d", {**BASE, "host": "h1,h2", "port": "1,2", **PRIMARY}),
    "two hosts for any session": (
        "postgres://u:p@h1:1,h2:2/d?target_session_attrs=any",
        {**BASE, "host": "h1,h2", "port": "1,2", "target_session_attrs": "any"},
    ),
    "host twice": ("postgres://u:p@/d?host=h1:1&host=h2", {**BASE, "host": "h1,h2", "port": "1,5432", **PRIMARY}),
    "socket": ("postgres://u:p@/d?host=/run/pg", {"user": "u", "password": "p", "host": "/run/pg", "dbname": "d"}),
    "ipv6": ("postgres://u:p@[::1]:5432/d", {**BASE, "host": "::1"}),
    "encoded password": ("postgres://u:p%40%2F%3F@h:5432/d", {**BASE, "password": "p@/?"}),
    "prisma": ("postgres://u:p@h:5432/d?schema=public&pgbouncer=true&connection_limit=1", BASE),
    "ssl=true": ("postgres://u:p@h:5432/d?ssl=true", {**BASE, "sslmode": "require"}),
    "ssl=false": ("postgres://u:p@h:5432/d?ssl=false", {**BASE, "sslmode": "disable"}),
    "ssl beside sslmode": ("postgres://u:p@h:5432/d?ssl=true&sslmode=verify-full", {**BASE, "sslmode": "verify-full"}),
    "no-verify": ("postgres://u:p@h:5432/d?sslmode=no-verify", {**BASE, "sslmode": "require"}),
    "options": ("postgres://u:p@h:5432/d?options=-c%20a%3Db", {**BASE, "options": "-c a=b"}),
}


@pytest.mark.parametrize("case", UNDERSTOOD)
def test_these_urls_are_understood(case: str) -> None:
    url, expected = UNDERSTOOD[case]
    assert postgresql_parameters(url, "DATABASE_URL") == expected


NO_URL = "DATABASE_URL is not a URL such as postgres://user:password@host:5432/name; encode special characters in the "
REJECTED: dict[str, tuple[str, str]] = {
    "mysql": ("mysql://u:p@h/d", "DATABASE_URL must begin with postgres:// or postgresql://"),
    "words": ("hello", "DATABASE_URL must begin with postgres:// or postgresql://"),
    "unknown parameter": (
        "postgres://u:p@h/d?sslmod=require",
        "DATABASE_URL: PostgreSQL has no connection parameter 'sslmod'; remove it",
    ),
    "parameter of another client": (
        "postgres://u:p@h/d?reWriteBatchedInserts=true",
        "DATABASE_URL: PostgreSQL has no connection parameter 'reWriteBatchedInserts'; remove it",
    ),
    "sslmode": (
        "postgres://u:p@h/d?sslmode=strict",
        "DATABASE_URL: sslmode must be one of disable, allow, prefer, require, verify-ca, verify-full",
    ),
    "target_session_attrs": (
        "postgres://u:p@h/d?target_session_attrs=master",
        "DATABASE_URL: target_session_attrs must be one of any, read-write, read-only, primary, standby, "
        "prefer-standby",
    ),
    "schema": (
        "postgres://u:p@h/d?schema=mine",
        "DATABASE_URL: remove the parameter 'schema'; to keep the tables in a schema of their own, give the receiver a "
        "role of its own and run ALTER ROLE … SET search_path = …",
    ),
    "port": ("postgres://u:p@h:port/d", "DATABASE_URL: port must be a number from 1 to 65535"),
    "port too large": ("postgres://u:p@h:70000/d", "DATABASE_URL: port must be a number from 1 to 65535"),
    "port 0": ("postgres://u:p@h:0/d", "DATABASE_URL: port must be a number from 1 to 65535"),
    "bracket": ("postgres://u:p@[::1/d", NO_URL + "password, such as / as %2F"),
    "password with ?": (
        "postgres://u:se?cret@h/d",
        "DATABASE_URL: encode special characters in the password, such as ? as %3F",
    ),
    "password with ? and &": (
        "postgres://u:se?c&r=et@h/d",
        "DATABASE_URL: encode special characters in the password, such as ? as %3F",
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_these_are_errors_that_name_the_remedy_and_no_part_of_a_password(case: str) -> None:
    url, message = REJECTED[case]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        postgresql_parameters(url, "DATABASE_URL")
