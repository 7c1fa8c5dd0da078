"""What a session of the journal leaves to others, and databases that are set up in another way than ours."""

from __future__ import annotations

import logging
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest
from conftest import wait_until
from sqlalchemy import make_url
from support.sensors import FREEZER, temperature

from receiver.errors import JournalError, JournalUnavailable
from receiver.journal import Arrival, Outcome, Result, Settlement, SinkCounts, SinkState
from receiver.journal.sql import postgresql as postgresql_module
from receiver.journal.sql.journal import SqlJournal
from receiver.journal.sql.postgresql import PostgresqlDatabase
from receiver.journal.sql.postgresql_connection import ServerTimeout, session_is_useless
from receiver.journal.sql.records import SqlRecords
from receiver.journal.sql.state import tables_version
from receiver.sensors.registry import Registry
from receiver.sensors.watch import Rules
from receiver.testing.postgresql import new_database, postgresql

SETTINGS = ("statement_timeout", "idle_in_transaction_session_timeout", "synchronous_commit")
NONE = SinkCounts()
ARRIVAL = Arrival("a", b"{}", 1000.0)
DELIVERED_WITH = """
CREATE TABLE seen (setting text, value text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO seen SELECT name, current_setting(name) FROM unnest(ARRAY[
        'statement_timeout', 'idle_in_transaction_session_timeout', 'synchronous_commit']) AS name;
    RETURN NEW;
END $$;
CREATE TRIGGER note BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION note();
"""

pytestmark = pytest.mark.usefixtures("long_time_limits")


@pytest.fixture
def url() -> str:
    return new_database()


@pytest.fixture
def open_journal(url: str) -> Iterator[Callable[[], SqlJournal]]:
    opened: list[SqlJournal] = []

    def open_one() -> SqlJournal:
        opened.append(SqlJournal(PostgresqlDatabase(url, None)))
        return opened[-1]

    yield open_one
    for journal in opened:
        journal.close()


def execute(url: str, statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statements)


def database_in(encoding: str) -> str:
    """The URL of a new database in another encoding."""
    name = f"in_{encoding.lower()}_{uuid.uuid4().hex}"
    execute(
        postgresql(), f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    return make_url(postgresql()).set(database=name).render_as_string(hide_password=False)


@pytest.mark.parametrize("secret", ["", "DT_SIGNATURE_SECRET"], ids=["events alone", "with a secret"])
@pytest.mark.parametrize(("default", "used"), [("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")])
def test_commits_are_durable_whatever_the_default_of_the_database_is_and_a_stricter_one_is_kept(
    url: str,
    open_journal: Callable[[], SqlJournal],
    monkeypatch: pytest.MonkeyPatch,
    default: str,
    used: str,
    secret: str,
) -> None:
    monkeypatch.setattr(postgresql_module, "STATEMENT_SECONDS", 50.0)
    monkeypatch.setattr(postgresql_module, "IDLE_SECONDS", 55.0)
    journal = open_journal()
    execute(url, DELIVERED_WITH + f"ALTER DATABASE {make_url(url).database} SET synchronous_commit = {default}")
    other = open_journal()
    other.accept([Arrival("a", b"{}", 1000.0, secret=secret)])
    with psycopg.connect(url) as connection:
        seen = dict(connection.execute("SELECT setting, value FROM seen").fetchall())
    assert seen == {
        "statement_timeout": "50s",
        "idle_in_transaction_session_timeout": "55s",
        "synchronous_commit": used,
    }
    assert journal.unrouted(10)[0].id == "a"


def test_nothing_is_set_beyond_the_end_of_a_transaction_because_a_pooler_may_share_the_session(url: str) -> None:
    database = PostgresqlDatabase(url, None)
    journal = SqlJournal(database)
    calls: list[Callable[[], object]] = [
        lambda: journal.accept([ARRIVAL]),
        lambda: journal.accept([Arrival("q", b"", 1.0, quarantine_reason="not JSON", secret="S")]),
        lambda: journal.unrouted(1),
        lambda: journal.report_alive(),
        journal.counts,
    ]
    with psycopg.connect(url) as connection:
        defaults = [connection.execute(f"SHOW {name}").fetchone() for name in SETTINGS]
    for call in calls:
        call()
        with closing(database._engine.raw_connection()) as session:
            driver = session.driver_connection
            assert driver is not None
            assert [driver.execute(f"SHOW {name}").fetchone() for name in SETTINGS] == defaults
    journal.close()


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "WIN1252", "EUC_JP"])
def test_databases_in_other_encodings_store_every_text_or_escape_it(encoding: str) -> None:
    journal = SqlJournal(PostgresqlDatabase(url := database_in(encoding), None))
    text = "HTTP 500: … 冷 \0 \ud83e é"
    journal.accept([ARRIVAL, Arrival("q", b"\xff", 1.0, quarantine_reason=text, secret=f"S_{text}")])
    journal.route([(event, ["s"]) for event in journal.unrouted(10)])
    (delivery,) = journal.claim("s", 10, 60.0)
    journal.settle([Settlement(delivery, Result.DEAD, reason=text)])
    journal.save_sink_state(SinkState("s", 1, 5.0, text))
    journal.report_alive([text])
    with closing(SqlRecords(PostgresqlDatabase(url, None))) as records:
        stored = "HTTP 500: … 冷 ? ? é" if encoding == "SQL_ASCII" else r"HTTP 500: \u2026 \u51b7 ? ? \xe9"
        assert [dead.reason for dead in records.dead_letters(None, 10)] == [stored]
        assert [push.reason for push in records.quarantined(10)] == [stored]
        assert records.sink_states()["s"].pause_reason == stored
        assert records.counts().sinks["s"].last_failure_reason == stored
    liveness = journal.liveness()
    assert liveness is not None
    assert liveness.warnings == (stored,)
    journal.close()


def test_a_sensor_is_found_by_its_name_in_a_database_of_another_encoding() -> None:
    with closing(Registry(PostgresqlDatabase(database_in("LATIN1"), None), Rules())) as registry:
        registry.fold([temperature(0, 1.0, name="冷 1")])
        assert [row.device_id for row in registry.named("冷 1")] == [FREEZER]


def test_a_table_of_another_program_is_named_and_left_alone(url: str) -> None:
    execute(url, "CREATE TABLE events (id integer, title text)")
    with pytest.raises(JournalError, match="the database has a table 'events' of another program; use a database of"):
        SqlJournal(PostgresqlDatabase(url, None))
    with psycopg.connect(url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert tables == [("events",)]


@pytest.mark.parametrize("kind", ["VIEW", "MATERIALIZED VIEW"])
def test_a_view_of_another_program_is_named(url: str, kind: str) -> None:
    execute(url, f"CREATE {kind} events AS SELECT 1 AS id; CREATE {kind} registry_days AS SELECT 1 AS id")
    calls: list[Callable[[PostgresqlDatabase], object]] = [
        SqlJournal,
        tables_version,
        lambda database: Registry(database, Rules()),
    ]
    for call in calls:
        with closing(PostgresqlDatabase(url, None)) as database, pytest.raises(JournalError, match="another program"):
            call(database)


@pytest.mark.parametrize("kind", ["SEQUENCE events", "TYPE events AS ENUM ('a')", "DOMAIN events AS integer"])
def test_what_else_has_the_name_of_a_table_has_words_that_say_so(url: str, kind: str) -> None:
    execute(url, f"CREATE {kind}")
    with pytest.raises(JournalUnavailable, match=": another program has a type, sequence or index of the same name"):
        SqlJournal(PostgresqlDatabase(url, None))


@pytest.mark.parametrize("change", ["DROP TABLE events", "ALTER TABLE events RENAME COLUMN body TO bodies"])
def test_tables_that_were_dropped_or_altered_have_words_that_say_what_to_do(
    url: str, open_journal: Callable[[], SqlJournal], change: str
) -> None:
    journal = open_journal()
    execute(url, change)
    with pytest.raises(JournalUnavailable, match=": its tables were removed or altered, as by an upgrade; restart the"):
        journal.accept([ARRIVAL])


def test_where_listen_does_not_work_one_line_says_so(
    url: str, open_journal: Callable[[], SqlJournal], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiver.journal.sql.postgresql.RELISTEN_SECONDS", 0.0)
    monkeypatch.setattr("receiver.journal.sql.postgresql.NOTIFY_SECONDS", 0.01)
    monkeypatch.setattr("receiver.journal.sql.postgresql.STABLE_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    journal = open_journal()
    with monkeypatch.context() as pooler:
        pooler.setattr("receiver.journal.sql.postgresql_connection.TimeoutConnection.is_direct", lambda self: False)
        for _ in range(5):
            journal.wait_for_events()
    for _ in range(5):
        journal.wait_for_events()
    assert [record.getMessage() for record in caplog.records] == [
        "LISTEN does not work (a connection pooler is in between); the dispatcher polls the journal instead",
        "LISTEN works again",
    ]


def test_a_listening_session_that_the_server_ends_again_and_again_causes_one_line(
    url: str, open_journal: Callable[[], SqlJournal], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiver.journal.sql.postgresql.RELISTEN_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    execute(url, f"ALTER DATABASE {make_url(url).database} SET idle_session_timeout = '150ms'")
    journal = open_journal()
    for _ in range(4):
        journal.wait_for_events()
        assert journal.accept([ARRIVAL])[0] in (Outcome.ACCEPTED, Outcome.DUPLICATE)
    assert len([record for record in caplog.records if "LISTEN" in record.getMessage()]) == 1


DEFAULTS = {
    "isolation": "default_transaction_isolation = 'serializable'",
    "deferred": "default_transaction_deferrable = on",
    "lock timeout": "lock_timeout = '1ms'",
    "statement timeout": "statement_timeout = '1s'",
    "transaction timeout": "transaction_timeout = '1s'",
    "idle sessions": "idle_session_timeout = '300ms'",
    "another schema": "search_path = elsewhere",
    "asynchronous": "synchronous_commit = off",
    "rounded numbers": "extra_float_digits = -15",
}


@pytest.fixture
def role(url: str) -> Iterator[str]:
    """The name of a role that has a schema of its own, and that no database has anything of afterwards."""
    name = f"role_{uuid.uuid4().hex}"
    execute(url, f"CREATE ROLE {name} LOGIN; GRANT CREATE ON SCHEMA public TO {name}")
    execute(url, f"CREATE SCHEMA elsewhere AUTHORIZATION {name}")
    yield name
    execute(url, f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


@pytest.mark.usefixtures("long_time_limits")
@pytest.mark.parametrize("case", DEFAULTS)
def test_whatever_the_defaults_of_its_role_are_no_call_fails(case: str, url: str, role: str) -> None:
    """Two dispatchers and two processes of intake at once, and a lock that is held for longer than a default allows."""
    execute(url, f"ALTER ROLE {role} SET {DEFAULTS[case]}")
    as_role = make_url(url).set(username=role).render_as_string(False)
    ids = [f"{number:03}" for number in range(200)]
    journals = [SqlJournal(PostgresqlDatabase(as_role, None)) for _ in range(4)]
    journals[0].accept([Arrival("locked", b"{}", 1000.0)])

    def push(number: int) -> None:
        for event_id in ids[number::2]:
            assert journals[number].accept([Arrival(event_id, b"{}", 1000.0)]) == [Outcome.ACCEPTED]

    def deliver(number: int) -> None:
        while journals[number].counts().sinks.get("s", NONE).delivered <= len(ids):
            journals[number].route([(event, ["s"]) for event in journals[number].unrouted(10)])
            claimed = journals[number].claim("s", 10, 60.0)
            journals[number].settle([Settlement(delivery, Result.DELIVERED) for delivery in claimed])
            journals[number].report_alive()
            journals[number].remove_expired(0.0, 100)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(push, 0), pool.submit(push, 1), pool.submit(deliver, 2), pool.submit(deliver, 3)]:
            done.result()
    schema = "elsewhere" if case == "another schema" else "public"
    with psycopg.connect(url) as blocking, ThreadPoolExecutor(1) as pool:
        blocking.execute(f"LOCK TABLE {schema}.events")
        waiting = pool.submit(journals[0].accept, [Arrival("after", b"{}", 1000.25)])
        wait_until(lambda: waits_for_a_lock(url), what="a call that waits for the lock")
        time.sleep(1.2)  # longer than the defaults above
        blocking.rollback()
        assert waiting.result() == [Outcome.ACCEPTED]
    assert abs(journals[0].now() - time.time()) < 10
    assert {event.received_at for event in journals[0].unrouted(1)} == {1000.25}
    for journal in journals:
        journal.close()


def waits_for_a_lock(url: str) -> bool:
    with psycopg.connect(url) as connection:
        query = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        return bool(connection.execute(query).fetchall())


PARAMETER = r"a parameter of DATABASE_URL, or a PG\* variable such as PGOPTIONS, has no valid value"
DEMANDED = "it does not offer what channel_binding, require_auth or gssencmode demands"
WORDS: dict[str, tuple[Callable[[str], str], str]] = {
    "no such database": (lambda url: make_url(url).set(database="nowhere").render_as_string(False), "no such database"),
    "unknown role": (
        lambda url: make_url(url).set(username="nobody").render_as_string(False),
        "wrong user or password",
    ),
    "refused": (lambda url: "postgres://u:p@127.0.0.1:1/d", "connection refused"),
    "unknown host": (lambda url: "postgres://u:p@no-such-host.invalid/d", "unknown host"),
    "read-only": (lambda url: f"{url}&options=-c%20default_transaction_read_only%3Don", "it is read-only"),
    "a role without login": (
        lambda url: make_url(url).set(username="pg_monitor").render_as_string(False),
        "this user or database may not be used to log in",
    ),
    "no schema": (lambda url: f"{url}&options=-c%20search_path%3D", "its search_path names no schema that exists"),
    "no service": (lambda url: f"{url}&service=nowhere", PARAMETER),
    "no such option": (lambda url: f"{url}&options=-c%20nonsense%3D1", PARAMETER),
    "a wrong option": (lambda url: f"{url}&options=-c%20timezone%3Dnowhere", PARAMETER),
    "no option": (lambda url: f"{url}&options=--nonsense", PARAMETER),
    "too many ports": (lambda url: "postgres://u:p@127.0.0.1/d?port=1,2,3", PARAMETER),
    "too many addresses": (lambda url: "postgres://u:p@h/d?hostaddr=127.0.0.1,127.0.0.2", PARAMETER),
    "weak sslmode": (lambda url: "postgres://u:p@127.0.0.1:1/d?sslnegotiation=direct", PARAMETER),
    "require_auth": (lambda url: f"{url}&require_auth=nonsense", PARAMETER),
    "channel binding": (lambda url: f"{url}&channel_binding=require", DEMANDED),
    "authentication": (lambda url: f"{url}&require_auth=scram-sha-256", DEMANDED),
    "gss": (lambda url: f"{url}&gssencmode=require", DEMANDED),
}


@pytest.mark.parametrize("case", WORDS)
def test_each_reason_why_a_database_cannot_be_used_has_its_words(url: str, case: str) -> None:
    change, words = WORDS[case]
    with pytest.raises(JournalUnavailable, match=f"the database of DATABASE_URL cannot be used now: {words}$"):
        SqlJournal(PostgresqlDatabase(change(url), None))


@pytest.mark.parametrize(
    ("name", "value"),
    [("PGSSLMODE", "strict"), ("PGTZ", "nowhere"), ("PGSERVICE", "nowhere"), ("PGOPTIONS", "-c x=1"), ("PGPORT", "-1")],
)
def test_parameters_in_the_environment_of_the_process_have_the_same_words(
    name: str, value: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(JournalUnavailable, match=PARAMETER):
        SqlJournal(PostgresqlDatabase(url, None))


@pytest.mark.parametrize("parameters", ["sslmode=verify-full", "sslmode=verify-ca&sslrootcert=/nowhere"])
def test_a_missing_root_certificate_has_words_that_say_what_to_set(parameters: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def offer_tls() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(8)
                connection.sendall(b"S")
                connection.recv(1)

        offered = pool.submit(offer_tls)
        url = f"postgres://u:p@127.0.0.1:{server.getsockname()[1]}/d?{parameters}"
        with pytest.raises(JournalUnavailable, match=": sslrootcert is no file; set sslrootcert=system, or"):
            SqlJournal(PostgresqlDatabase(url, None))
        offered.result()


def test_a_copy_in_which_sequences_begin_anew_loses_no_event(url: str, open_journal: Callable[[], SqlJournal]) -> None:
    """Logical replication and some tools copy rows, and no sequences: the next keys are those of other rows."""
    journal = open_journal()
    journal.accept([Arrival(name, b"{}", 1000.0) for name in ("a", "b", "c")])
    journal.save_sink_state(SinkState("first"))
    execute(url, "ALTER SEQUENCE events_key_seq RESTART; ALTER SEQUENCE sinks_key_seq RESTART")
    for arrival in (Arrival("d", b"{}", 1000.0), Arrival("d", b"{}", 1000.0, secret="DT_SIGNATURE_SECRET")):
        with pytest.raises(JournalUnavailable, match="its sequences are behind its rows; restart the receiver"):
            journal.accept([arrival])
    restarted = open_journal()
    assert restarted.accept([Arrival("d", b"{}", 1000.0)]) == [Outcome.ACCEPTED]
    restarted.save_sink_state(SinkState("second"))
    assert [event.id for event in restarted.unrouted(10)] == ["a", "b", "c", "d"]
    assert sorted(restarted.sink_states()) == ["first", "second"]
    open_journal()
    assert restarted.accept([Arrival("e", b"{}", 1000.0)]) == [Outcome.ACCEPTED]


@pytest.mark.parametrize("kind", ["statement", "transaction", "lock"])
def test_a_time_limit_that_was_exceeded_is_named(kind: str, url: str) -> None:
    limit = f"SET LOCAL {kind}_timeout = 0; SET LOCAL {kind}_timeout = '100ms'"
    with psycopg.connect(url) as blocking, closing(PostgresqlDatabase(url, None)) as database:
        blocking.execute("SELECT pg_advisory_xact_lock(1)")
        with pytest.raises(JournalUnavailable, match=f": {kind} timeout$"), database.write() as connection:
            connection.exec_driver_sql(f"{limit}; SELECT pg_advisory_xact_lock(1)")


def test_a_session_is_replaced_at_once_if_another_one_may_succeed() -> None:
    useless = ("25006", "57P01", "57P02", "57P03", "57P05", "08000", "08006")
    assert all(session_is_useless(psycopg.errors.lookup(code)()) for code in useless)
    assert session_is_useless(psycopg.OperationalError("the connection is lost"))
    assert not any(session_is_useless(psycopg.errors.lookup(code)()) for code in ("57014", "40001", "53100"))
    assert not session_is_useless(ServerTimeout("which has taken its time already"))


@pytest.mark.parametrize("failing", ["SELECT 1 / 0", "SELECT pg_sleep(10)"], ids=["error", "time limit"])
def test_after_an_error_the_next_transaction_is_in_another_session(
    failing: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the error may lead to the wrong server by now."""
    monkeypatch.setattr(postgresql_module, "STATEMENT_SECONDS", 1.0)
    with closing(PostgresqlDatabase(url, None)) as database:
        before = session_of(database)
        assert session_of(database) == before
        with pytest.raises(JournalUnavailable), database.write() as connection:
            connection.exec_driver_sql(failing)
        assert session_of(database) != before


def test_after_events_that_could_not_be_inserted_the_next_transaction_is_in_another_session(url: str) -> None:
    with closing(PostgresqlDatabase(url, None)) as database, closing(SqlJournal(PostgresqlDatabase(url, None))):
        before = session_of(database)
        with pytest.raises(JournalUnavailable):
            database.insert_events([Arrival("not \0 storable", b"", 1000.0)])
        assert session_of(database) != before


def session_of(database: PostgresqlDatabase) -> object:
    with database.read() as connection:
        return connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
