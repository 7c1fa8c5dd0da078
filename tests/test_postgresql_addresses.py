"""DATABASE_URL: which forms work, what is wrong with an address that does not, and that no password is shown."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from sqlalchemy import make_url
from support.journals import accept
from support.postgresql import SSL_REQUEST, Deployment, RecordingProxy

from receiver import postgresql_parameters
from receiver.errors import JournalError, JournalUnavailable
from receiver.journal.sql.journal import SqlJournal
from receiver.journal.sql.postgresql import PostgresqlDatabase
from receiver.redaction import Redactor
from receiver.settings import load
from receiver.testing.ports import reserve_port
from receiver.testing.postgresql import Server

AWKWARD_PASSWORD = "p q/@:%+#?é'\\"
ESCAPED_PASSWORD = quote(AWKWARD_PASSWORD, safe="")
UNUSED_PORT = -1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(
            "postgres://u:p@h:5432/d",
            {"user": "u", "password": "p", "host": "h", "port": "5432", "dbname": "d"},
            id="of Heroku",
        ),
        pytest.param("postgresql://u@h/d", {"user": "u", "host": "h", "dbname": "d"}, id="of libpq"),
        pytest.param(
            "postgres://u:p@h/d?sslmode=require",
            {"user": "u", "password": "p", "host": "h", "dbname": "d", "sslmode": "require"},
            id="sslmode",
        ),
        pytest.param(
            "postgresql://u:@/d?host=/run/postgresql",
            {"user": "u", "host": "/run/postgresql", "dbname": "d"},
            id="socket",
        ),
        pytest.param(
            "postgres://u:p@[::1]:99/d",
            {"user": "u", "password": "p", "host": "::1", "port": "99", "dbname": "d"},
            id="IPv6",
        ),
        pytest.param(
            f"postgres://us%20er:{ESCAPED_PASSWORD}@h/d",
            {"user": "us er", "password": AWKWARD_PASSWORD, "host": "h", "dbname": "d"},
            id="escapes",
        ),
        pytest.param(
            "postgresql+asyncpg://u:p@h/d",
            {"user": "u", "password": "p", "host": "h", "dbname": "d"},
            id="other driver",
        ),
    ],
)
def test_every_form_of_the_url_is_understood(given: str, expected: dict[str, str]) -> None:
    assert {name: value for name, value in postgresql_parameters(given, "DATABASE_URL").items() if value} == expected


@pytest.mark.parametrize(
    "invalid",
    [
        "hunter22",
        "host=h password=hunter22",
        "hunter22 postgres://u@h/d",
        "mysql://u:hunter22@h/d",
        "sqlite:///hunter22",
        "postgres+hunter22",
        "postgres://u:hunter22@h:port/d",
        "postgres://u:p@ss:hunter22/x@h/d",
        "postgres://u:hunter22@[::1/d",
        "postgres://u:hunter22\udcff@h/d",
        "postgres://u:hunter22@h/d?sslmod=require",
    ],
)
def test_an_invalid_url_is_an_error_of_one_line_that_does_not_show_it(invalid: str) -> None:
    with pytest.raises(JournalError) as caught:
        SqlJournal(PostgresqlDatabase(invalid, None)).close()
    message = str(caught.value)
    assert message.startswith("DATABASE_URL")
    assert "\n" not in message
    assert "hunter22" not in message
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_the_password_is_redacted_plain_and_escaped(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.touch()
    url = f"postgres://u:{ESCAPED_PASSWORD}@h/d"
    settings = load({"RECEIVER_CONFIG": str(config), "DATABASE_URL": url, "DT_SIGNATURE_SECRET": "s" * 40})
    redact = Redactor(settings.secret_values).redact
    assert redact(f"<{AWKWARD_PASSWORD}> <{ESCAPED_PASSWORD}> <{url}>") == "<***> <***> <***>"
    assert ESCAPED_PASSWORD not in repr(settings)


@pytest.fixture
def role_with_password(server: Server) -> str:
    """A role that the server lets in only with its password."""
    role = "guarded"
    with psycopg.connect(server.url, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchall():
            literal = psycopg.sql.Literal(AWKWARD_PASSWORD)
            connection.execute(psycopg.sql.SQL(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD {{}}").format(literal))
    server.require_password(role)
    return role


@pytest.fixture
def with_password(server: Server, role_with_password: str) -> Iterator[Deployment]:
    url = make_url(server.new_database())
    host = url.query["host"]
    deployment = Deployment(f"postgres://{role_with_password}:{ESCAPED_PASSWORD}@/{url.database}?host={host}")
    yield deployment
    deployment.close()


@pytest.mark.usefixtures("long_time_limits")
def test_a_password_with_every_kind_of_character_opens_both_connections(
    with_password: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    journal = with_password.open()
    accept(journal, "a")
    journal.wait_for_events()
    assert caplog.messages == []
    assert with_password.connections() == 2


def test_a_wrong_password_is_an_error_that_shows_no_password(
    with_password: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = with_password.url.replace(ESCAPED_PASSWORD, "hunter22")
    database = PostgresqlDatabase(wrong, None)
    with pytest.raises(JournalUnavailable) as caught:
        SqlJournal(database)
    database.wait()
    database.close()
    everything = f"{caught.value!r} {caplog.text} {database!r} {vars(database)!r}"
    assert "hunter22" not in everything
    assert caught.value.__suppress_context__


def reasons_of(url: str, caplog: pytest.LogCaptureFixture) -> tuple[str, list[str]]:
    """Why this database cannot be used: the error of a journal, and the warnings of a dispatcher that cannot listen."""
    database = PostgresqlDatabase(url, None)
    with pytest.raises(JournalUnavailable) as caught:
        SqlJournal(database)
    database.wait()
    database.close()
    return str(caught.value), caplog.messages


def messages(reason: str) -> tuple[str, list[str]]:
    return (
        f"the database of DATABASE_URL cannot be used now: {reason}",
        [f"LISTEN does not work ({reason}); the dispatcher polls the journal instead"],
    )


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        pytest.param({"username": "nobody"}, "wrong user or password", id="unknown user"),
        pytest.param({"username": "guarded"}, "wrong user or password", id="no password"),
        pytest.param({"username": "guarded", "password": "hunter22"}, "wrong user or password", id="wrong password"),
        pytest.param({"database": "none"}, "no such database", id="unknown database"),
        pytest.param({"host": "nowhere.invalid", "query": {}}, "unknown host", id="unknown host"),
        pytest.param({"host": "127.0.0.1", "port": UNUSED_PORT, "query": {}}, "connection refused", id="no server"),
        pytest.param({"query": {"host": "/nowhere"}}, "connection refused", id="no socket"),
        pytest.param({"username": "crowd"}, "too many connections", id="too many connections"),
    ],
)
@pytest.mark.usefixtures("role_with_password")
def test_a_database_that_cannot_be_reached_is_an_error_that_says_why(
    changed: dict[str, Any], reason: str, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS crowd")
        connection.execute("CREATE ROLE crowd LOGIN CONNECTION LIMIT 0")
    if changed.get("port") == UNUSED_PORT:
        changed = {**changed, "port": reserve_port()}
    url = make_url(server.url).set(**changed)
    assert reasons_of(url.render_as_string(hide_password=False), caplog) == messages(reason)


@contextmanager
def server_that_sends(response: bytes | None) -> Iterator[int]:
    """The port of a server that is no PostgreSQL: it sends this to each client and hangs up, or sends nothing."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(64)
                    if response is None:
                        closing.wait(10)
                    else:
                        connection.sendall(response)

    closing = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        closing.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("response", "sslmode", "reason"),
    [
        pytest.param(b"N", "require", "no TLS connection can be established", id="no TLS"),
        pytest.param(b"", "disable", "connection lost", id="hangs up"),
        pytest.param(None, "disable", "no response", id="silent"),
    ],
)
def test_a_server_that_is_no_postgresql_is_an_error_that_says_what_it_does(
    response: bytes | None, sslmode: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with server_that_sends(response) as port:
        url = f"postgres://u:p@127.0.0.1:{port}/d?sslmode={sslmode}"
        assert reasons_of(url, caplog) == messages(reason)


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        pytest.param("ALTER ROLE {} SET default_transaction_read_only = on", "it is read-only", id="read-only"),
        pytest.param("REVOKE CREATE ON SCHEMA public FROM {}", "permission denied", id="no permission"),
    ],
)
def test_a_database_in_which_no_tables_can_be_created_is_an_error_that_says_why(
    statement: str, reason: str, deployment: Deployment
) -> None:
    role = f"role_{uuid.uuid4().hex}"
    deployment.sql(f"CREATE ROLE {role} LOGIN")
    deployment.sql(statement.format(role))
    database = PostgresqlDatabase(make_url(deployment.url).set(username=role).render_as_string(), None)
    with pytest.raises(JournalUnavailable, match=f": {reason}$"):
        SqlJournal(database)
    database.close()


@pytest.fixture
def proxy(server: Server) -> Iterator[RecordingProxy]:
    proxy = RecordingProxy(server.socket)
    yield proxy
    proxy.close()


@pytest.mark.usefixtures("long_time_limits")
def test_where_tls_is_required_nothing_is_sent_without_it(own_deployment: Deployment, proxy: RecordingProxy) -> None:
    url = f"postgres://postgres:hunter22@127.0.0.1:{proxy.port}/{make_url(own_deployment.url).database}?sslmode="
    journal = SqlJournal(PostgresqlDatabase(url + "disable", None))
    accept(journal, "a")
    journal.close()
    proxy.first_bytes.clear()

    database = PostgresqlDatabase(url + "require", None)
    with pytest.raises(JournalUnavailable), database.read():
        pass
    database.wait()
    database.close()

    assert set(proxy.first_bytes) == {SSL_REQUEST}
    assert len(proxy.first_bytes) >= 2
