"""The sql sink on PostgreSQL when the database cannot be used: the sink is paused, in time, and loses nothing."""

from __future__ import annotations

import dataclasses
import random
import re
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url
from support.built_in_sinks import class_of, deliver_batch, module_of, open_sink
from support.events import NOW, event
from support.postgresql import SSL_REQUEST, RecordingProxy
from support.sql_databases import SqlDatabase, accepts, assert_complete, build_sql, overlapping_events
from support.time_limit import MAX_CALL_SECONDS, call_with_time_limit

from plugins.sql.connections import TimeLimits, create, database_url
from receiver import GiveUp, Pause
from receiver.event import Event
from receiver.simulator import Simulator
from receiver.testing.fixtures import StartReceiver
from receiver.testing.postgresql import Server
from receiver.testing.running import ROOT, wait_until

CUT_CONNECTIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


def limit(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """Shorten some limits of the sinks that are built from now on."""
    cls: Any = class_of("sql")
    monkeypatch.setattr(cls, "limits", dataclasses.replace(cls.limits, **seconds))


def test_a_device_id_too_long_for_an_index_is_given_up(postgresql_database: SqlDatabase) -> None:
    sink = postgresql_database.open()
    with pytest.raises(GiveUp, match="ProgramLimitExceeded: index row "):
        deliver_batch(sink, event("e1", device=random.Random(1).randbytes(20_000).hex()))
    deliver_batch(sink, event("e2"))
    assert postgresql_database.event_ids() == ["e2"]


@contextmanager
def read_only(database: SqlDatabase) -> Iterator[None]:
    """As a former primary is after a failover."""
    name = make_url(database.url).database
    database.query(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    database.query(CUT_CONNECTIONS)
    yield
    with psycopg.connect(make_url(database.url).set(database="postgres").render_as_string(False)) as connection:
        connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())


def test_a_read_only_database_pauses_the_sink_which_then_connects_again(postgresql_database: SqlDatabase) -> None:
    sink = postgresql_database.open()
    reason = "ReadOnlySqlTransaction: cannot execute INSERT in a read-only transaction"
    with read_only(postgresql_database):
        for _ in range(3):
            with pytest.raises(Pause, match=reason):
                deliver_batch(sink, event("e1"))
    deliver_batch(sink, event("e1"))
    assert postgresql_database.event_ids() == ["e1"]


def test_missing_privileges_pause_the_sink(postgresql_database: SqlDatabase) -> None:
    role = f"reader_{uuid.uuid4().hex}"
    postgresql_database.open()
    postgresql_database.query(f"CREATE ROLE {role} LOGIN; GRANT SELECT ON readings, latest TO {role}")
    sink = build_sql(make_url(postgresql_database.url).set(username=role).render_as_string(False))
    with pytest.raises(Pause, match="InsufficientPrivilege: permission denied for table readings"):
        deliver_batch(sink, event("e1"))
    postgresql_database.query(f"GRANT INSERT, UPDATE ON readings, latest TO {role}")
    deliver_batch(sink, event("e1"))
    sink.hook.close()
    assert postgresql_database.event_ids() == ["e1"]


def test_a_table_that_remains_locked_pauses_the_sink(
    postgresql_database: SqlDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, statement_seconds=2.0)
    sink = postgresql_database.open()
    with psycopg.connect(postgresql_database.url) as other:
        other.execute("LOCK TABLE readings")
        with pytest.raises(Pause, match="QueryCanceled: canceling statement due to statement timeout"):
            deliver_batch(sink, event("e1"))
    deliver_batch(sink, event("e1"))
    assert postgresql_database.event_ids() == ["e1"]


@pytest.mark.parametrize(("default", "used"), [("off", "on"), ("remote_apply", "remote_apply")])
def test_transactions_are_durable_and_limited_in_time_whatever_the_defaults_of_the_database(
    postgresql_database: SqlDatabase, default: str, used: str
) -> None:
    name = make_url(postgresql_database.url).database
    for setting in (f"synchronous_commit = {default}", "default_transaction_isolation = serializable"):
        postgresql_database.query(f"ALTER DATABASE {name} SET {setting}")
    engine = create(database_url(postgresql_database.url), TimeLimits())
    names = ("synchronous_commit", "transaction_isolation", "statement_timeout", "idle_in_transaction_session_timeout")
    with engine.begin() as connection:
        values = [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names]
    engine.dispose()
    assert values == [used, "read committed", "10s", "10s"]


@pytest.mark.parametrize("setting", ["lock_timeout = '1ms'", "transaction_timeout = '300ms'"])
def test_a_short_lock_pauses_no_sink_whatever_the_defaults_of_the_database(
    postgresql_database: SqlDatabase, setting: str
) -> None:
    sink = postgresql_database.open()
    postgresql_database.query(f"ALTER DATABASE {make_url(postgresql_database.url).database} SET {setting}")
    postgresql_database.query(CUT_CONNECTIONS)
    with psycopg.connect(postgresql_database.url) as other, ThreadPoolExecutor(1) as pool:
        other.execute("SET lock_timeout = 0; SET transaction_timeout = 0; LOCK TABLE readings")
        delivered = pool.submit(deliver_batch, sink, event("e1"))
        time.sleep(1)  # longer than these limits
        other.rollback()
        delivered.result()
    assert postgresql_database.event_ids() == ["e1"]


def test_a_killed_server_pauses_the_sink_and_has_every_delivered_event_after_its_recovery(server: Server) -> None:
    database = SqlDatabase(server.new_database())
    sink = database.open()
    delivered = [f"e{number:02}" for number in range(20) if accepts(sink, event(f"e{number:02}"))]
    server.kill()
    with pytest.raises(Pause, match=r"^the database cannot be used: OperationalError: "):
        call_with_time_limit(lambda: deliver_batch(sink, event("late")))
    with pytest.raises(Pause, match=r"^the database cannot be used: OperationalError: "):
        call_with_time_limit(lambda: open_sink(build_sql(database.url)))
    server.start()
    wait_until(lambda: accepts(sink, event("late")))
    assert database.event_ids() == [*delivered, "late"]
    database.close()


def test_the_first_call_after_connections_were_cut_succeeds(postgresql_database: SqlDatabase) -> None:
    sink = postgresql_database.open()
    deliver_batch(sink, event("e1"))
    postgresql_database.query(CUT_CONNECTIONS)
    deliver_batch(sink, event("e2"))
    assert postgresql_database.event_ids() == ["e1", "e2"]


def test_a_server_that_restarts_while_threads_write_has_every_delivered_event(server: Server) -> None:
    database = SqlDatabase(server.new_database())
    sink = database.open()
    events = overlapping_events(3, 200)

    def write(own: list[Event]) -> None:
        for each in own:
            wait_until(partial(accepts, sink, each), seconds=60)

    with ThreadPoolExecutor(4) as threads:
        writing = [threads.submit(write, events[number::4]) for number in range(4)]
        wait_until(lambda: len(database.rows()) > 20)
        server.restart()
        for future in writing:
            future.result(60)
    assert_complete(database, events)
    database.close()


def test_a_frozen_server_pauses_open_and_new_connections_in_time(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, response_seconds=3, connect_seconds=3)
    database = SqlDatabase(server.new_database())
    connected, new = database.open(), build_sql(database.url)
    with ThreadPoolExecutor(2) as threads, server.frozen():
        calls = [threads.submit(deliver_batch, sink, event("e1")) for sink in (connected, new)]
        errors = [call.exception(MAX_CALL_SECONDS) for call in calls]
    assert [type(error) for error in errors] == [Pause, Pause]
    assert all(str(error).startswith("the database cannot be used: ") for error in errors)
    wait_until(lambda: accepts(connected, event("e1")))
    assert database.event_ids() == ["e1"]
    new.hook.close()
    database.close()


def test_a_server_that_freezes_during_a_transaction_rolls_it_back(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, response_seconds=3)
    database = SqlDatabase(server.new_database())
    sink = database.open()
    write = module_of("sql").write

    def write_while_frozen(*arguments: Any) -> None:
        with server.frozen():
            write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module_of("sql"), "write", write_while_frozen)
        with pytest.raises(Pause) as pause:
            call_with_time_limit(lambda: deliver_batch(sink, event("e1")))
    assert str(pause.value) == "the database cannot be used: OperationalError: the server does not respond"
    deliver_batch(sink, event("e2"))
    assert database.event_ids() == ["e2"]
    database.close()


def test_a_wrong_password_pauses_the_sink_without_showing_any_part_of_the_url(server: Server) -> None:
    url = make_url(server.new_database())
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS stranger")
        connection.execute("CREATE ROLE stranger LOGIN PASSWORD 'right'")
    server.require_password("stranger")
    with pytest.raises(Pause) as pause:
        open_sink(build_sql(f"postgres://stranger:hunter2@/{url.database}?host={url.query['host']}"))
    assert str(pause.value).endswith("FATAL: password authentication failed for user …")
    assert not re.search(f"hunter2|stranger|{url.database}|{url.query['host']}", str(pause.value))
    assert pause.value.__cause__ is None


@pytest.mark.parametrize("host", ["127.0.0.1:1", "no-such-host.invalid"])
def test_an_unreachable_server_pauses_the_sink_without_showing_any_part_of_the_url(host: str) -> None:
    with pytest.raises(Pause, match="the database cannot be used: OperationalError: ") as pause:
        open_sink(build_sql(f"postgres://bob:hunter2@{host}/data"))
    assert not re.search("hunter2|bob|no-such-host", str(pause.value))


def test_nothing_is_sent_without_tls_if_tls_is_required(server: Server) -> None:
    proxy = RecordingProxy(server.socket)
    url = f"postgres://postgres:hunter2@127.0.0.1:{proxy.port}/{make_url(server.new_database()).database}"
    plain = build_sql(f"{url}?sslmode=disable")
    deliver_batch(plain, event("e1"))
    plain.hook.close()
    proxy.first_bytes.clear()
    with pytest.raises(Pause, match="server does not support SSL, but SSL was required"):
        deliver_batch(build_sql(f"{url}?sslmode=require"), event("e2"))
    assert set(proxy.first_bytes) == {SSL_REQUEST}
    proxy.close()


@pytest.mark.parametrize("added", ["pgbouncer=true&connection_limit=1", "schema=public", "ssl=false"])
def test_a_url_that_the_journal_understands_is_understood(postgresql_database: SqlDatabase, added: str) -> None:
    """The documentation gives DATABASE_URL to the sink as well."""
    sink = build_sql(f' "{postgresql_database.url}&{added}"')
    deliver_batch(sink, event("e1"))
    sink.hook.close()
    assert postgresql_database.event_ids() == ["e1"]


def test_of_several_hosts_the_sink_uses_the_one_that_can_be_written(
    postgresql_database: SqlDatabase, server: Server
) -> None:
    url = make_url(postgresql_database.url)
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {url.database}".encode())
        connection.execute(f"ALTER DATABASE {url.database} SET default_transaction_read_only = on".encode())
    hosts = f"host={make_url(server.url).query['host']}&host={url.query['host']}"
    sink = build_sql(f"postgres://postgres@/{url.database}?{hosts}")
    deliver_batch(sink, event("e1"))
    sink.hook.close()
    assert postgresql_database.event_ids() == ["e1"]


def documented(language: str, containing: str) -> str:
    """The first block of code in the documentation that contains this."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    blocks = [
        block
        for page in pages
        for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    ]
    return next(block for block in blocks if containing in block)


def test_journal_and_readings_share_a_database_with_the_settings_of_the_documentation(
    start_receiver: StartReceiver, postgresql_database: SqlDatabase
) -> None:
    config = documented("toml", 'type = "sql"')
    receiver = start_receiver(config, DATABASE_URL=postgresql_database.url)
    simulator = Simulator(seed=5)
    events = [Event.from_body(simulator.body("temperature"), NOW) for _ in range(30)]
    for each in [*events, *events]:
        assert receiver.push(each.body)[0] == 200

    readings = [reading for each in events for reading in each.readings()]
    wait_until(lambda: len(postgresql_database.rows()) == len(readings), what=f"all rows ({receiver.log})")
    assert sorted((row["event_id"], row["value"]) for row in postgresql_database.rows()) == sorted(
        (reading.event_id, reading.value) for reading in readings
    )
    latest = postgresql_database.query(documented("sql", "FROM latest"))
    assert list(latest[0]) == ["device_name", "quantity", "value", "unit", "time"]
    assert len(latest) == len({reading.device_id for reading in readings})
    wait_until(lambda: receiver.metric('receiver_deliveries_total{sink="data"}') == 30)
