"""What only the journal on PostgreSQL does: addresses, connections that break, several machines at once."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
import sqlalchemy.event
from conftest import ROOT, new_database, wait_until
from sqlalchemy import make_url, text
from test_journal import accept, body, claim, names_of, owe, settle

from receiver.errors import JournalError, JournalUnavailable
from receiver.journal import Acceptance, Arrival, Result, Settlement, SinkState
from receiver.journal import postgres as postgres_module
from receiver.journal.postgres import PostgresDatabase, database_url
from receiver.journal.sql import SqlJournal
from receiver.journal.sql_records import SqlRecords
from receiver.journal.tables import SCHEMA_VERSION, events
from receiver.settings import load
from receiver.testing.postgresql import Server, own_server

AWKWARD_PASSWORD = "p q/@:%+#?é'\\"
SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"


@pytest.fixture
def server() -> Iterator[Server]:
    server = own_server()
    yield server
    server.start()


class Places:
    """Journals and records on one database, each as another process would have it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._open: list[SqlJournal | SqlRecords | PostgresDatabase] = []

    def database(self, **options: Any) -> PostgresDatabase:
        database = PostgresDatabase(self.url, options.get("max_size_mb"))
        self._open.append(database)
        return database

    def open(self, holder: str | None = None) -> SqlJournal:
        journal = SqlJournal(PostgresDatabase(self.url, None), holder)
        self._open.append(journal)
        return journal

    def records(self) -> SqlRecords:
        records = SqlRecords(PostgresDatabase(self.url, None))
        self._open.append(records)
        return records

    def close(self) -> None:
        for one in self._open:
            one.close()

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """As another program, beside the receiver."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def connections(self) -> int:
        return len(self.sql(OURS))

    def cut(self, which: str = "") -> int:
        """Let the database end the connections of the receiver; how many there were."""
        return len(self.sql(OURS.replace("SELECT pid", "SELECT pg_terminate_backend(pid)") + which))


OURS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'receiver' AND datname = current_database() "
LISTENING = "AND query LIKE 'LISTEN%'"


@pytest.fixture
def places() -> Iterator[Places]:
    """On the PostgreSQL that all tests share."""
    places = Places(new_database())
    yield places
    places.close()


@pytest.fixture
def own(server: Server) -> Iterator[Places]:
    """On a PostgreSQL that may be killed and frozen."""
    places = Places(server.new_database())
    yield places
    places.close()


def taken(journal: SqlJournal, name: str) -> bool:
    """Whether the journal keeps this event now; the only other answer it may give is that it is unavailable."""
    try:
        accept(journal, name)
    except JournalUnavailable:
        return False
    return True


def seconds_of(call: Callable[[], object]) -> tuple[float, BaseException | object]:
    """How long a call took, and what it returned or raised."""
    start = time.monotonic()
    try:
        result: object = call()
    except Exception as error:
        result = error
    return time.monotonic() - start, result


def at_once(calls: list[Callable[[], object]]) -> list[tuple[float, BaseException | object]]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(seconds_of, calls))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(
            "postgres://u:p@h:5432/d",
            {"user": "u", "password": "p", "host": "h", "port": "5432", "dbname": "d"},
            id="heroku's",
        ),
        pytest.param("postgresql://u@h/d", {"user": "u", "host": "h", "dbname": "d"}, id="the standard's"),
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
            f"postgres://us%20er:{quote(AWKWARD_PASSWORD, safe='')}@h/d",
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
def test_both_kinds_of_connection_understand_every_form_of_the_url(given: str, expected: dict[str, str]) -> None:
    url = database_url(given)
    assert url.drivername == "postgresql+psycopg"
    assert psycopg.conninfo.conninfo_to_dict(postgres_module._conninfo(url)) == expected
    queried = {name: str(value) for name, value in url.query.items()}
    parts = {"user": url.username, "password": url.password, "host": url.host, "port": url.port, "dbname": url.database}
    assert {name: str(part) for name, part in parts.items() if part} | queried == expected


@pytest.mark.parametrize(
    "rubbish",
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
        "postgres://u:hunter22@h:1,h:2/d",
        "postgres://u:hunter22\udcff@h/d",
        "postgres://u:hunter22@h/d?sslmod=require",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_in_one_clear_line_without_showing_it(rubbish: str) -> None:
    with pytest.raises(JournalError) as caught:
        SqlJournal(PostgresDatabase(rubbish, None)).close()
    said = str(caught.value)
    assert said.startswith("DATABASE_URL ")
    assert "\n" not in said
    assert "hunter22" not in said
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_neither_form_of_the_password_passes_redaction(tmp_path: Path) -> None:
    escaped = quote(AWKWARD_PASSWORD, safe="")
    config = tmp_path / "config.toml"
    config.write_text("", encoding="utf-8")
    url = f"postgres://u:{escaped}@h/d"
    settings = load({"RECEIVER_CONFIG": str(config), "DATABASE_URL": url, "DT_SIGNATURE_SECRET": "s" * 40})
    assert settings.redact(f"<{AWKWARD_PASSWORD}> <{escaped}> <{url}>") == "<***> <***> <***>"
    assert escaped not in repr(settings)


@pytest.fixture
def guarded(server: Server) -> Iterator[Places]:
    """A database that a role with an awkward password owns, whom the server lets in with that only."""
    role = "guarded"
    with psycopg.connect(server.url, autocommit=True) as connection:
        if not connection.execute(f"SELECT 1 FROM pg_roles WHERE rolname = '{role}'").fetchall():
            literal = psycopg.sql.Literal(AWKWARD_PASSWORD)
            connection.execute(psycopg.sql.SQL(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD {{}}").format(literal))
    server.ask_for_passwords(role)
    url = make_url(server.new_database())
    password = quote(AWKWARD_PASSWORD, safe="")
    places = Places(f"postgres://{role}:{password}@/{url.database}?host={url.query['host']}")
    yield places
    places.close()


def test_a_password_with_every_kind_of_character_opens_both_connections(
    guarded: Places, caplog: pytest.LogCaptureFixture
) -> None:
    journal = guarded.open()
    accept(journal, "a")
    journal.wait()
    assert caplog.messages == []
    assert guarded.connections() == 2


def test_a_wrong_password_is_told_without_any_password(guarded: Places, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = guarded.url.replace(quote(AWKWARD_PASSWORD, safe=""), "hunter22")
    database = PostgresDatabase(wrong, None)
    with pytest.raises(JournalUnavailable) as caught:
        SqlJournal(database)
    database.wait()
    database.close()
    everything = f"{caught.value!r} {caplog.text} {database!r} {vars(database)!r}"
    assert "hunter22" not in everything
    assert caught.value.__suppress_context__


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def answering(answer: bytes | None) -> Iterator[int]:
    """The port of something that is no PostgreSQL: to each beginning it says this, or nothing at all, and hangs up."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(64)
                    if answer is None:
                        hung_up.wait(10)
                    else:
                        connection.sendall(answer)

    hung_up = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        hung_up.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def why_unusable(url: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    """The reason of an error, and that of the warning of a dispatcher that cannot listen; nothing else is said."""
    database = PostgresDatabase(url, None)
    with pytest.raises(JournalUnavailable) as caught:
        SqlJournal(database)
    database.wait()
    database.close()
    error, warning = str(caught.value), *caplog.messages
    begins = "the journal's database, named in DATABASE_URL, cannot be used now: "
    assert error.startswith(begins)
    return [error.removeprefix(begins), warning]


def unheard(why: str) -> list[str]:
    return [why, f"the journal does not wake the dispatcher ({why}); it looks by itself"]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        pytest.param({"username": "nobody"}, "user or password refused", id="unknown user"),
        pytest.param({"username": "guarded"}, "user or password refused", id="no password"),
        pytest.param({"username": "guarded", "password": "hunter22"}, "user or password refused", id="wrong password"),
        pytest.param({"database": "none"}, "no such database", id="unknown database"),
        pytest.param({"host": "nowhere.invalid", "query": {}}, "host unknown", id="unknown host"),
        pytest.param({"host": "127.0.0.1", "port": closed_port(), "query": {}}, "connection refused", id="no server"),
        pytest.param({"query": {"host": "/nowhere"}}, "connection refused", id="no socket"),
        pytest.param({"username": "crowd"}, "too many connections", id="too many connections"),
    ],
)
def test_a_database_that_cannot_be_reached_says_which_part_of_its_address_is_wrong(
    changed: dict[str, Any], why: str, server: Server, guarded: Places, caplog: pytest.LogCaptureFixture
) -> None:
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS crowd")
        connection.execute("CREATE ROLE crowd LOGIN CONNECTION LIMIT 0")
    url = make_url(server.url).set(**changed)
    assert why_unusable(url.render_as_string(hide_password=False), caplog) == unheard(why)


@pytest.mark.parametrize(
    ("answer", "sslmode", "why"),
    [
        pytest.param(b"N", "require", "no encrypted connection can be made", id="no TLS"),
        pytest.param(b"", "disable", "connection lost", id="hangs up"),
        pytest.param(None, "disable", "no answer", id="silent"),
    ],
)
def test_what_is_no_postgresql_is_told_by_what_it_does(
    answer: bytes | None, sslmode: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with answering(answer) as port:
        assert why_unusable(f"postgres://u:p@127.0.0.1:{port}/d?sslmode={sslmode}", caplog) == unheard(why)


@pytest.mark.parametrize(
    ("order", "why"),
    [
        pytest.param("ALTER ROLE {} SET default_transaction_read_only = on", "it can only be read", id="read-only"),
        pytest.param("REVOKE CREATE ON SCHEMA public FROM {}", "its user may not do this", id="no rights"),
    ],
)
def test_a_database_that_takes_no_tables_says_why(order: str, why: str, places: Places) -> None:
    role = f"role_{uuid.uuid4().hex}"
    places.sql(f"CREATE ROLE {role} LOGIN")
    places.sql(order.format(role))
    database = PostgresDatabase(make_url(places.url).set(username=role).render_as_string(), None)
    with pytest.raises(JournalUnavailable, match=f": {why}$"):
        SqlJournal(database)
    database.close()


def test_a_commit_is_durable_though_the_database_says_otherwise(places: Places) -> None:
    name = make_url(places.url).database
    places.sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
    database = places.database()
    with database.write() as connection:
        assert connection.scalar(text("SHOW synchronous_commit")) == "on"
    assert places.cut() == 1
    with database.write() as connection:
        assert connection.scalar(text("SHOW synchronous_commit")) == "on"


def test_after_its_connections_were_cut_the_very_next_call_works(places: Places) -> None:
    journal = places.open()
    accept(journal, "a")
    journal.wait()
    assert places.cut() == 2
    assert accept(journal, "b") == [Acceptance.ACCEPTED]
    journal.wait()
    assert places.cut() >= 1
    assert [kept.id for kept in journal.unmatched(10)] == ["a", "b"]
    assert places.cut() >= 1
    assert journal.now() == pytest.approx(time.time(), abs=60)


def test_events_that_cannot_be_added_in_time_are_not_tried_again_by_themselves(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_module, "ANSWER_SECONDS", 20.0)
    journal = places.open()
    accept(journal, "a")
    with psycopg.connect(places.url) as blocking:
        blocking.execute("LOCK TABLE events")
        seconds, outcome = seconds_of(lambda: accept(journal, "b"))
    assert str(outcome).endswith("it took too long")
    assert seconds < 2 * postgres_module.STATEMENT_SECONDS
    assert accept(journal, "b") == [Acceptance.ACCEPTED]


def test_a_connection_cut_inside_a_transaction_undoes_all_of_it_and_says_so(places: Places) -> None:
    journal, database = places.open(), places.database()
    row = {"id": "a", "received_at": 1.0, "matched": False, "body": b"x"}

    def interrupted() -> None:
        with database.write() as connection:
            connection.execute(database.insert(events), row)
            places.cut()

    with pytest.raises(JournalUnavailable):
        interrupted()
    assert journal.unmatched(10) == []
    with database.write() as connection:
        connection.execute(database.insert(events), row)
    assert [kept.id for kept in journal.unmatched(10)] == ["a"]


ENDED_AT_THE_COMMIT = """
CREATE FUNCTION ends() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER ends AFTER INSERT ON events DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION ends();
"""


@pytest.mark.parametrize("many", [1, 300])
def test_a_connection_cut_at_the_commit_keeps_no_event_though_the_statement_had_come_back(
    many: int, places: Places
) -> None:
    """Rows that do not fit into one packet are on their way before the commit."""
    journal = places.open()
    places.sql(ENDED_AT_THE_COMMIT)
    group = [Arrival(f"{number:060}", b"", 1000.0) for number in range(many)]
    for _ in range(2):
        with pytest.raises(JournalUnavailable, match=r"starting or stopping|connection lost"):
            journal._accept_all(group)
    places.sql("DROP TRIGGER ends ON events")
    assert set(journal._accept_all(group)) == {Acceptance.ACCEPTED}
    assert len(journal.unmatched(1000)) == many


def test_while_the_database_is_gone_every_call_says_so_soon_and_works_when_it_is_back(
    server: Server, own: Places, caplog: pytest.LogCaptureFixture
) -> None:
    journal = own.open()
    owe(journal, "s", "a")
    held = claim(journal, "s")
    journal.wait()
    server.kill()
    calls: list[Callable[[], object]] = [
        lambda: accept(journal, "b"),
        lambda: accept(journal, "c"),
        journal.counts,
        journal.check_writable,
        journal.beat,
        lambda: claim(journal, "s"),
        lambda: settle(journal, held, Result.DELIVERED),
        lambda: SqlJournal(PostgresDatabase(own.url, None)),
    ]
    outcomes = at_once(calls)
    assert [type(outcome) for _, outcome in outcomes] == [JournalUnavailable] * len(calls)
    assert max(seconds for seconds, _ in outcomes) < 8
    assert seconds_of(journal.wait)[1] is None

    server.start()

    wait_until(lambda: taken(journal, "d"))
    assert names_of(held) == ["a"]
    assert [kept.id for kept in journal.unmatched(10)] == ["d"]
    assert claim(journal, "s") == []
    settle(journal, held, Result.DELIVERED)
    assert journal.counts().sinks["s"].delivered == 1


def test_what_was_accepted_survives_a_database_that_is_killed_at_once(server: Server, own: Places) -> None:
    journal = own.open()
    accepted = []
    for round_number in range(3):
        names = [f"{round_number}-{number}" for number in range(40)]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda name: (name, taken(journal, name)), names))
            server.kill()
        accepted += [name for name, kept in answers if kept]
        server.start()
    wait_until(lambda: taken(journal, "last"))
    assert len(accepted) == 120
    assert {kept.id: kept.body for kept in journal.unmatched(1000)} == {
        name: body(name) for name in [*accepted, "last"]
    }


def test_while_the_database_stands_still_every_call_says_so_soon_and_works_when_it_goes_on(
    server: Server, own: Places, request: pytest.FixtureRequest
) -> None:
    receiving, delivering, late = own.open(), own.open(), own.open()
    owe(delivering, "s", "a")
    delivering.wait()
    own.cut(LISTENING.replace("LIKE", "NOT LIKE"))
    accept(receiving, "b")
    claim(delivering, "s")
    calls: list[Callable[[], object]] = [
        *(lambda name=name: accept(receiving, name) for name in "cdefg"),
        receiving.check_writable,
        delivering.counts,
        delivering.beat,
        late.check_writable,
        lambda: SqlJournal(PostgresDatabase(own.url, None)),
    ]
    thaw = contextlib.ExitStack()
    thaw.enter_context(server.frozen())
    request.addfinalizer(thaw.close)
    rescue = threading.Timer(12, thaw.close)
    rescue.start()
    outcomes = at_once(calls)
    rescue.cancel()
    rescue.join()
    thaw.close()
    assert [type(outcome) for _, outcome in outcomes] == [JournalUnavailable] * len(calls)
    assert max(seconds for seconds, _ in outcomes) < 8

    wait_until(lambda: taken(receiving, "after"))
    wait_until(lambda: taken(delivering, "after"))
    wait_until(lambda: taken(late, "after"))


def test_waiting_for_news_comes_back_though_the_database_stands_still(server: Server, own: Places) -> None:
    journal = own.open()
    journal.wait()
    with server.frozen():
        listening = seconds_of(journal.wait)
    own.cut(LISTENING)
    wait_until(lambda: own.connections() == 1)
    with server.frozen():
        connecting = seconds_of(journal.wait)
    assert [listening[1], connecting[1]] == [None, None]
    assert max(listening[0], connecting[0]) < 8


def test_one_that_vanished_inside_a_transaction_does_not_keep_the_others_from_its_rows(places: Places) -> None:
    """As a machine that loses its network: its end of the connection never closes."""
    journal, vanished = places.open(), places.database()
    journal.remember(SinkState("s"))
    row = {"id": "a", "received_at": 1.0, "matched": False, "body": b"x"}

    def works() -> bool:
        try:
            journal.remember(SinkState("s", pauses=1))
        except JournalUnavailable:
            return False
        return taken(journal, "a")

    with contextlib.suppress(JournalUnavailable), vanished.write() as connection:
        connection.execute(vanished.insert(events), row)
        connection.execute(text("UPDATE sinks SET pauses = 7 WHERE name = 's'"))
        vanished.lock_tables(connection)
        wait_until(works, seconds=20, what="an end of the transaction that nobody ends")
    assert [kept.body for kept in journal.unmatched(10)] == [body("a")]
    assert SqlJournal(PostgresDatabase(places.url, None)).close() is None


class Wire(threading.Thread):
    """A TCP address in front of a server's socket, which notes how each connection begins."""

    def __init__(self, target: Path) -> None:
        super().__init__(daemon=True)
        self._target = str(target)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.beginnings: list[bytes] = []
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._connect, args=(self._listener.accept()[0],), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join()

    def _connect(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as upstream, contextlib.suppress(OSError):
            upstream.connect(self._target)
            beginning = client.recv(65536)
            self.beginnings.append(beginning)
            upstream.sendall(beginning)
            back = threading.Thread(target=self._pass_on, args=(upstream, client), daemon=True)
            back.start()
            self._pass_on(client, upstream)
            back.join()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    wire = Wire(server.socket)
    yield wire
    wire.close()


def test_where_tls_is_required_nothing_is_said_without_it(own: Places, wire: Wire) -> None:
    url = f"postgres://postgres:hunter22@127.0.0.1:{wire.port}/{make_url(own.url).database}?sslmode="
    journal = SqlJournal(PostgresDatabase(url + "disable", None))
    accept(journal, "a")
    journal.close()
    wire.beginnings.clear()

    database = PostgresDatabase(url + "require", None)
    with pytest.raises(JournalUnavailable), database.read():
        pass
    database.wait()
    database.close()

    assert set(wire.beginnings) == {SSL_REQUEST}
    assert len(wire.beginnings) >= 2


def test_claims_are_shared_without_overlap_among_dispatchers_and_their_threads(places: Places) -> None:
    dispatchers = [places.open() for _ in range(3)]
    names = [f"{number:03}" for number in range(400)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: accept(dispatchers[0], name), names))
    dispatchers[0].owe([(kept, ["s"]) for kept in dispatchers[0].unmatched(1000)])
    claimed: list[list[tuple[str, int]]] = []

    def work(dispatcher: SqlJournal) -> None:
        while deliveries := dispatcher.claim("s", 7, 600.0):
            claimed.append([(delivery.event.id, delivery.attempt) for delivery in deliveries])

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, dispatchers * 4))
    everything = [pair for batch in claimed for pair in batch]
    assert sorted(everything) == [(name, 1) for name in names]


def test_claims_that_ended_are_taken_over_and_those_that_live_are_not(places: Places) -> None:
    first, second = places.open(), places.open()
    owe(first, "s", "a", "b")
    kept = claim(first, "s", most=1, seconds=600.0)
    lost = claim(first, "s", most=1, seconds=0.3)
    assert (names_of(kept), names_of(lost)) == (["a"], ["b"])

    again = wait_until(lambda: claim(second, "s"))

    assert [(delivery.event.id, delivery.attempt) for delivery in again] == [("b", 2)]
    first.extend([*lost, *kept], 600.0)
    settle(first, lost, Result.FAILED, due=0.0)
    assert claim(second, "s") == claim(first, "s") == []
    settle(second, again, Result.DELIVERED)
    settle(first, kept, Result.DELIVERED)
    assert places.sql("SELECT state, holder, attempts FROM deliveries ORDER BY event") == [(1, None, 1), (1, None, 2)]


def test_a_dispatcher_started_again_voids_its_own_claims_and_no_others(places: Places) -> None:
    one, other = places.open("one"), places.open("other")
    owe(one, "s", "a", "b", "c", "d")
    claim(one, "s", most=2)
    held = claim(other, "s", most=1)
    claim(places.open("third"), "s", most=1, seconds=0.01)

    assert places.open("one").begin() == ["s"]
    assert places.open("new").begin() == []

    wait_until(lambda: len(claim(one, "s", seconds=0.01)) == 3, what="the claim of a, b and d")
    wait_until(lambda: names_of(claim(one, "s")) == ["a", "b", "d"])
    settle(other, held, Result.FAILED, due=0.0)
    assert names_of(claim(other, "s")) == ["c"]


def test_the_clock_is_the_databases_and_followed_when_that_is_set(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = make_url(places.url).database
    places.sql("CREATE SCHEMA shifted")
    places.sql(f"ALTER DATABASE {name} SET search_path = shifted, public, pg_catalog")

    def shift(hours: int) -> None:
        places.sql(
            "CREATE OR REPLACE FUNCTION shifted.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS "
            f"'SELECT pg_catalog.clock_timestamp() + interval ''{hours} hours'''"
        )

    shift(-5)
    journal = places.open()
    assert journal.now() == pytest.approx(time.time() - 5 * 3600, abs=60)
    owe(journal, "s", "a")
    claim(journal, "s", seconds=3600.0)
    assert places.sql("SELECT due FROM deliveries")[0][0] == pytest.approx(time.time() - 4 * 3600, abs=60)

    shift(+2)
    monkeypatch.setattr(postgres_module, "CLOCK_SECONDS", 0.0)
    journal.counts()
    assert journal.now() == pytest.approx(time.time() + 2 * 3600, abs=60)
    assert names_of(claim(journal, "s")) == ["a"]


def test_a_database_that_took_the_place_of_another_is_asked_for_its_clock_at_once(places: Places) -> None:
    """A fail-over brings another machine and its clock; claims taken by the old one would end too soon or too late."""
    name = make_url(places.url).database
    journal = places.open()
    places.sql("CREATE SCHEMA shifted")
    places.sql(
        "CREATE FUNCTION shifted.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS "
        "'SELECT pg_catalog.clock_timestamp() + interval ''2 hours'''"
    )
    places.sql(f"ALTER DATABASE {name} SET search_path = public, shifted, pg_catalog")
    assert places.cut() == 1
    journal.counts()
    assert journal.now() == pytest.approx(time.time() + 2 * 3600, abs=60)


def test_news_wakes_who_waits_long_before_the_time_is_out(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher, intake = places.open(), places.open()
    monkeypatch.setattr(postgres_module, "WAIT_SECONDS", 0.01)
    dispatcher.wait()
    monkeypatch.setattr(postgres_module, "WAIT_SECONDS", 60.0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(seconds_of, dispatcher.wait)
        accept(intake, "a")
        seconds, _ = waiting.result()
    assert seconds < 10
    assert [kept.id for kept in dispatcher.unmatched(10)] == ["a"]


def test_what_is_known_already_wakes_nobody(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher, intake = places.open(), places.open()
    accept(intake, "a")
    monkeypatch.setattr(postgres_module, "WAIT_SECONDS", 0.01)
    dispatcher.wait()
    assert accept(intake, "a") == [Acceptance.DUPLICATE]
    monkeypatch.setattr(postgres_module, "WAIT_SECONDS", 0.3)
    assert seconds_of(dispatcher.wait)[0] >= 0.25


def test_without_being_woken_the_dispatcher_still_finds_everything_and_is_woken_again_later(
    places: Places, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dispatcher, intake = places.open(), places.open()
    dispatcher.wait()
    assert places.cut(LISTENING) == 1
    accept(intake, "a")
    assert seconds_of(dispatcher.wait)[0] < 5
    assert [kept.id for kept in dispatcher.unmatched(10)] == ["a"]
    assert seconds_of(dispatcher.wait)[0] < 5
    assert [message.partition(" (")[0] for message in caplog.messages] == ["the journal does not wake the dispatcher"]

    monkeypatch.setattr(postgres_module, "LISTEN_AGAIN_SECONDS", 0.0)
    dispatcher.wait()
    assert len(places.sql(OURS + LISTENING)) == 1


def test_a_receiver_that_takes_pushes_has_one_connection_and_one_that_delivers_two(places: Places) -> None:
    worker, dispatcher = places.open(), places.open()
    owe(dispatcher, "s", "a", "b")
    seen: list[int] = []
    busy: list[Callable[[], object]] = [
        *(lambda number=number: accept(worker, f"event-{number}") for number in range(12)),
        worker.counts,
        worker.check_writable,
        worker.last_beat,
        *(lambda: dispatcher.claim("s", 1, 1.0) for _ in range(4)),
        dispatcher.wait,
        dispatcher.beat,
        dispatcher.states,
        *(lambda: seen.append(places.connections()) for _ in range(4)),
    ]
    outcomes = [outcome for _ in range(5) for _, outcome in at_once(busy)]
    assert [outcome for outcome in outcomes if isinstance(outcome, BaseException)] == []
    assert max(seen) == places.connections() == 3
    worker.close()
    dispatcher.close()
    wait_until(lambda: places.connections() == 0)


def test_a_journal_of_a_newer_receiver_is_refused_in_plain_words_and_left_alone(places: Places) -> None:
    places.open().close()
    places.sql("UPDATE receiver_schema SET version = 99")
    places.sql("DROP TABLE dispatchers")
    for make in (SqlJournal, SqlRecords):
        database = places.database()
        with pytest.raises(JournalError) as caught:
            make(database)
        assert type(caught.value) is JournalError
        assert str(caught.value) == (
            f"the journal has schema 99, this receiver knows {SCHEMA_VERSION}: run the newer receiver that wrote it"
        )
    assert places.sql("SELECT to_regclass('dispatchers')") == [(None,)]


def test_many_who_make_the_tables_at_once_all_succeed(places: Places) -> None:
    barrier = threading.Barrier(12)

    def make() -> Acceptance:
        barrier.wait()
        journal = SqlJournal(PostgresDatabase(places.url, None))
        try:
            return accept(journal, uuid.uuid4().hex)[0]
        finally:
            journal.close()

    with ThreadPoolExecutor(12) as pool:
        answers = [future.result() for future in [pool.submit(make) for _ in range(12)]]
    assert answers == [Acceptance.ACCEPTED] * 12
    assert places.sql("SELECT version FROM receiver_schema") == [(2,)]


ACCEPTING = """
import json, random, sys
from concurrent.futures import ThreadPoolExecutor
from receiver.journal import Arrival, postgres, sql
from receiver.journal.postgres import PostgresDatabase
from receiver.journal.sql import SqlJournal

url, seed = sys.argv[1:]
sql.COMMIT_SECONDS = postgres.STATEMENT_SECONDS = postgres.POOL_SECONDS = postgres.ANSWER_SECONDS = 60.0
journal = SqlJournal(PostgresDatabase(url, None))
journal._secrets_noted = type("Forgetful", (dict,), {"__setitem__": lambda self, name, at: None})()
dice = random.Random(seed)
work = [Arrival(f"{n:03}", b"x" * 300, 1000.0, secret=f"S{n % 3}") for n in range(150)]
work += [Arrival(f"{n:03}", b"x" * 300, 1000.0, quarantine="no event", secret=f"S{n % 3}") for n in range(30)]
dice.shuffle(work)

def take(arrival):
    try:
        return arrival.id, journal.accept(arrival).value
    except Exception as error:
        return arrival.id, repr(error)

print("ready", flush=True)
sys.stdin.readline()
with ThreadPoolExecutor(16) as pool:
    print(json.dumps(list(pool.map(take, work))))
"""
DISPATCHING = """
import json, random, sys, threading, time
from receiver.journal import Result, Settlement, postgres
from receiver.journal.postgres import PostgresDatabase
from receiver.journal.sql import SqlJournal

url, seed = sys.argv[1:]
postgres.STATEMENT_SECONDS = postgres.POOL_SECONDS = postgres.ANSWER_SECONDS = 60.0
journal = SqlJournal(PostgresDatabase(url, None))
dice = random.Random(seed)
names = ["a", "b", "c"]
dice.shuffle(names)
troubles = []
results = [Result.DELIVERED] * 4 + [Result.FAILED, Result.WAITING, Result.UNTOUCHED]
end = time.monotonic() + 60

def pending():
    counts = journal.counts()
    return counts.unmatched or len(counts.sinks) < 3 or any(sink.pending for sink in counts.sinks.values())

def work(name):
    while time.monotonic() < end and pending():
        try:
            matched = journal.unmatched(100)
            journal.owe([(kept, names) for kept in matched])
            held = journal.claim(name, dice.choice((1, 7, 40)), dice.choice((0.0, 30.0)))
            journal.extend(held, 30.0)
            now = journal.now()
            if held:
                journal.settle([Settlement(delivery, dice.choice(results), now) for delivery in held])
        except Exception as error:
            troubles.append(repr(error))

print("ready", flush=True)
sys.stdin.readline()
threads = [threading.Thread(target=work, args=(name,)) for name in names]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(troubles))
"""


def processes_at_once(script: str, url: str, count: int) -> list[Any]:
    """Run a script in several processes that begin together; what each of them prints at its end."""
    with contextlib.ExitStack() as stack:
        running = []
        for number in range(count):
            command = [sys.executable, "-c", script, url, str(number)]
            process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            running.append(process)
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in running:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        return [json.loads(process.communicate(timeout=90)[0]) for process in running]


def test_processes_that_accept_the_same_ids_never_wait_for_each_other_in_a_circle(places: Places) -> None:
    places.open()
    answers = [answer for process in processes_at_once(ACCEPTING, places.url, 3) for answer in process]
    assert Counter(answer for _, answer in answers) == {"accepted": 150, "duplicate": 300, "quarantined": 90}
    assert places.sql("SELECT count(*), count(DISTINCT id) FROM events") == [(150, 150)]
    assert places.sql("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]


def test_dispatchers_that_match_and_settle_the_same_events_never_wait_for_each_other_in_a_circle(
    places: Places,
) -> None:
    journal = places.open()
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda number: accept(journal, f"{number:03}"), range(90)))
    assert processes_at_once(DISPATCHING, places.url, 3) == [[], [], []]
    assert {name: (sink.delivered, sink.pending) for name, sink in journal.counts().sinks.items()} == {
        "a": (90, 0),
        "b": (90, 0),
        "c": (90, 0),
    }
    assert places.sql("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]


def test_what_one_dispatcher_is_owing_is_not_matched_by_another_too_unless_it_fails(places: Places) -> None:
    one, other = places.open(), places.open()
    accept(one, "a")
    kept = one.unmatched(10)
    accept(one, "b")
    with psycopg.connect(places.url) as blocking, ThreadPoolExecutor(1) as pool:
        blocking.execute("LOCK TABLE deliveries")
        owing = pool.submit(one.owe, [(kept[0], ["s"])])
        wait_until(lambda: places.sql(OURS + "AND wait_event_type = 'Lock'"))
        assert [event.id for event in other.unmatched(10)] == ["b"]
        places.cut("AND wait_event_type = 'Lock'")
        with pytest.raises(JournalUnavailable):
            owing.result()
    assert [event.id for event in other.unmatched(10)] == ["a", "b"]


def test_a_result_that_comes_late_and_one_that_comes_in_time_do_not_block_each_other(places: Places) -> None:
    """The late one says delivered of what another holds, who settles it too: other results of it first."""
    late, holder = places.open(), places.open()
    owe(late, "s", "a", "b")
    early = claim(late, "s", seconds=0.01)
    a, b = wait_until(lambda: claim(holder, "s"))
    in_time = [Settlement(b, Result.DELIVERED), Settlement(a, Result.FAILED, 0.0, "said so")]
    waiting = OURS + "AND wait_event_type = 'Lock'"
    with psycopg.connect(places.url) as other, ThreadPoolExecutor(2) as pool:
        other.execute("SELECT 1 FROM sinks FOR UPDATE")
        first = pool.submit(holder.settle, in_time)
        wait_until(lambda: len(places.sql(waiting)) == 1)
        second = pool.submit(settle, late, early, Result.DELIVERED)
        wait_until(lambda: len(places.sql(waiting)) == 2)
        other.rollback()
        first.result()
        second.result()
    assert places.sql("SELECT state FROM deliveries") == [(1,), (1,)]


def test_retention_beside_matching_and_replay_loses_no_delivery(places: Places) -> None:
    intake, dispatcher, tidying, records = places.open(), places.open(), places.open(), places.records()
    done = threading.Event()
    replayed: list[int] = []
    troubles: list[BaseException] = []

    def until_done(work: Callable[[], object]) -> None:
        while not done.is_set():
            try:
                work()
            except BaseException as error:
                troubles.append(error)
                return

    def match() -> None:
        dispatcher.owe([(kept, ["s"]) for kept in dispatcher.unmatched(20)])
        if held := dispatcher.claim("s", 20, 600.0):
            settle(dispatcher, held, Result.DELIVERED)

    def replay() -> None:
        if chosen := records.received(0.0, 2000.0, 0, 10):
            replayed.append(records.owe_again("s", chosen))

    works: list[Callable[[], object]] = [match, replay, lambda: tidying.retire(2000.0, 7)]
    threads = [threading.Thread(target=until_done, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: accept(intake, f"{number:03}"), range(300)))
    wait_until(lambda: troubles or places.sql("SELECT count(*) FROM events")[0][0] < 30 or len(replayed) > 200)
    done.set()
    for thread in threads:
        thread.join()
    assert troubles == []
    while dispatcher.unmatched(1) or (sink := intake.counts().sinks["s"]).pending:
        match()
    assert sink.delivered == 300 + sum(replayed)
    left = "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM deliveries)"
    wait_until(lambda: not tidying.retire(2000.0, 500) and places.sql(left) == [(0, 0)])


@contextmanager
def meanwhile(places: Places, statement: str) -> Iterator[Callable[[], None]]:
    """Another's transaction that has changed rows; call what is given to commit it once somebody waits for it."""
    with psycopg.connect(places.url) as other:
        other.execute(statement)

        def commit() -> None:
            waiting = OURS + "AND wait_event_type = 'Lock'"
            wait_until(lambda: places.sql(waiting), what="somebody who waits for the rows")
            other.commit()

        yield commit


def test_a_dead_letter_that_another_person_retries_meanwhile_is_not_dropped(places: Places) -> None:
    journal, records = places.open(), places.records()
    owe(journal, "s", "a")
    settle(journal, claim(journal, "s"), Result.DEAD)
    retried = "UPDATE deliveries SET state = 0, due = 0, attempts = 0"
    with meanwhile(places, retried) as commit, ThreadPoolExecutor(1) as pool:
        dropping = pool.submit(records.drop_dead, "s", None)
        commit()
        assert dropping.result() == 0
    assert names_of(claim(journal, "s")) == ["a"]


def test_a_dead_letter_that_is_in_a_call_again_meanwhile_is_not_retried_once_more(places: Places) -> None:
    journal, other, records = places.open(), places.open(), places.records()
    owe(journal, "s", "a")
    settle(journal, claim(journal, "s"), Result.DEAD)
    claimed = f"UPDATE deliveries SET state = 0, due = {time.time() + 600}, holder = 'someone', attempts = 1"
    with meanwhile(places, claimed) as commit, ThreadPoolExecutor(1) as pool:
        retrying = pool.submit(records.retry_dead, "s", None)
        commit()
        assert retrying.result() == 0
    assert claim(other, "s") == []


def test_what_is_owed_while_its_sink_is_forgotten_is_not_left_where_nobody_looks(places: Places) -> None:
    journal, records = places.open(), places.records()
    owe(journal, "s", "a")
    accept(journal, "b")
    kept = journal.unmatched(10)
    waiting = OURS + "AND wait_event_type = 'Lock'"
    with psycopg.connect(places.url) as other, ThreadPoolExecutor(2) as pool:
        other.execute("INSERT INTO deliveries SELECT %s, key, 0, 0, NULL, 0, 0 FROM sinks", [kept[0].key])
        owing = pool.submit(journal.owe, [(kept[0], ["s"])])
        wait_until(lambda: places.sql(waiting))
        forgetting = pool.submit(records.forget, "s")
        wait_until(lambda: forgetting.done() or len(places.sql(waiting)) == 2)
        other.rollback()
        owing.result()
        forgetting.result()
    assert places.sql("SELECT count(*) FROM deliveries WHERE sink NOT IN (SELECT key FROM sinks)") == [(0,)]


def test_a_long_name_of_a_secret_does_not_keep_its_pushes_out(places: Places) -> None:
    journal, name = places.open(), "DT_SIGNATURE_SECRET_" + "X" * 300
    assert journal.accept(Arrival("x" * 64, b"\0\xff", 1000.0, secret=name)) is Acceptance.ACCEPTED
    assert journal.counts().secrets.keys() == {name}


@pytest.mark.parametrize(
    "reason", ["it says \0", "it says \udcff", "it says " + "much " * 9000], ids=["NUL", "surrogate", "long"]
)
def test_no_reason_for_a_pause_keeps_it_from_being_remembered(reason: str, places: Places) -> None:
    journal = places.open()
    journal.remember(SinkState("s", pauses=1, pause_reason=reason))
    assert journal.states()["s"].pauses == 1


def test_a_database_beyond_its_size_takes_no_pushes_but_settles(places: Places) -> None:
    places.open()
    journal = SqlJournal(places.database(max_size_mb=1))
    other = places.open()
    owe(other, "s", "a")
    held = claim(journal, "s")
    with pytest.raises(JournalUnavailable, match=r"^the database has \d+ MB, \[journal\] max_size_mb is 1$"):
        accept(journal, "b")
    settle(journal, held, Result.DELIVERED)
    assert journal.counts().sinks["s"].delivered == 1


def test_an_event_that_is_matched_while_it_is_counted_does_not_vanish_from_the_counts(places: Places) -> None:
    journal, dispatcher = places.open(), places.open()
    accept(journal, "a")
    (kept,) = dispatcher.unmatched(1)

    def match(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if "events" in statement:
            dispatcher.owe([(kept, ["s"])])

    sqlalchemy.event.listen(journal._database._engine, "after_cursor_execute", match)
    counts = journal.counts()

    assert counts.unmatched + sum(sink.pending for sink in counts.sinks.values()) >= 1
    assert journal.counts().sinks["s"].pending == 1
