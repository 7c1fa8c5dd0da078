"""The sql sink on real databases: each reading once, the latest of each device, no dead letter for a trouble."""

from __future__ import annotations

import json
import logging
import random
import re
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
from conftest import ROOT, StartReceiver, new_database, wait_until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.rows import dict_row
from sqlalchemy import make_url
from test_postgres import SSL_REQUEST, Server, Wire, own_server

from receiver import Event, GiveUp, Pause, Secret
from receiver.errors import PluginError
from receiver.event import TYPES
from receiver.plugins import Plugins, Sink, build_sink, load_plugins
from receiver.settings import CommonOptions, JournalTable, ReceiverTable, Settings, SinkSettings
from receiver.simulator import Simulator

NOW = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)


@cache
def plugins() -> tuple[Settings, Plugins]:
    config = Settings(ROOT / "config.toml", ReceiverTable(), JournalTable(), (), 8000, 2, {}, set())
    return config, load_plugins(config)


def build(url: str, **options: Any) -> Sink:
    """The sink that `[sinks.data]` with these options describes."""
    config, found = plugins()
    config = replace(config, hidden=set())
    return build_sink(found, config, SinkSettings("data", CommonOptions(type="sql"), {"url": url, **options}))


class Database:
    """A database of its own, looked into as any other program would."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind = kind
        self.url = url
        self._sinks: list[Sink] = []

    def open(self, **options: Any) -> Sink:
        sink = build(self.url, **options)
        self._sinks.append(sink)
        sink.hook.open(name="data", logger=logging.getLogger("sink.data"))
        return sink

    @property
    def path(self) -> Path:
        return Path(str(make_url(self.url).database))

    def ask(self, statement: str) -> list[dict[str, Any]]:
        if self.kind == "sqlite":
            with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
                connection.row_factory = sqlite3.Row
                return [dict(row) for row in connection.execute(statement)]
        with psycopg.connect(self.url, autocommit=True, row_factory=dict_row) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            cursor = connection.execute(statement.encode())
            return list(cursor) if cursor.description else []

    def rows(self, table: str = "readings", *, order: str = "event_id, reading") -> list[dict[str, Any]]:
        """All rows of a table, with times as text."""
        rows = self.ask(f"SELECT * FROM {table} ORDER BY {order}")
        return [
            {name: stamp(value) if "_at" in name or name == "time" else value for name, value in row.items()}
            for row in rows
        ]

    def latest(self) -> dict[tuple[str, str], tuple[str, float]]:
        return {(row["device_id"], row["quantity"]): (row["time"], row["value"]) for row in self.rows("latest")}

    def close(self) -> None:
        for sink in self._sinks:
            sink.hook.close()


def stamp(value: Any) -> Any:
    return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if isinstance(value, datetime) else value


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    kind = str(request.param)
    database = Database(kind, f"sqlite:///{tmp_path / 'data.sqlite'}" if kind == "sqlite" else new_database())
    yield database
    database.close()


@pytest.fixture
def postgres() -> Iterator[Database]:
    database = Database("postgresql", new_database())
    yield database
    database.close()


@pytest.fixture
def sqlite_file(tmp_path: Path) -> Iterator[Database]:
    database = Database("sqlite", f"sqlite:///{tmp_path / 'data.sqlite'}")
    yield database
    database.close()


@pytest.fixture
def plugin() -> ModuleType:
    return sys.modules[plugins()[1].types["sql"].cls.__module__]


def deliver(sink: Sink, *events: Event) -> None:
    sink.hook.deliver_batch(events=events, attempts=[1] * len(events))


def event(name: str, type: str = "touch", data: Any = None, labels: Any = None, device: str | None = "d1") -> Event:
    body = {
        "event": {
            "eventId": name,
            "eventType": type,
            "targetName": "projects/oslo",
            "timestamp": "2026-03-14T11:59:00.5Z",
            "data": {type: {} if data is None else data},
        },
        "labels": labels,
        "metadata": {"deviceId": device},
    }
    return Event.from_body(json.dumps(body).encode(), NOW)


def temperature(name: str, value: float, minute: int = 0, **more: Any) -> Event:
    return event(name, "temperature", {"value": value, "updateTime": f"2026-03-14T11:{minute:02}:00Z"}, **more)


def humidity(name: str, *samples: tuple[float, float]) -> Event:
    return event(name, "humidity", {"samples": [{"temperature": t, "relativeHumidity": h} for t, h in samples]})


def test_a_reading_is_a_row_in_both_tables(database: Database) -> None:
    sink = database.open(label_columns=["site", "floor"])

    deliver(sink, temperature("t1", -18.5, 7, labels={"name": "Fridge", "site": "oslo", "other": "x"}))

    row = {
        "event_id": "t1",
        "reading": 1,
        "time": "2026-03-14T11:07:00.000000Z",
        "device_id": "d1",
        "device_name": "Fridge",
        "project_id": "oslo",
        "event_type": "temperature",
        "quantity": "temperature",
        "value": -18.5,
        "unit": "°C",
        "text": "",
        "received_at": "2026-03-14T12:00:00.000000Z",
        "label_site": "oslo",
        "label_floor": None,
    }
    assert database.rows() == [row]
    assert database.rows("latest") == [row]
    assert list(database.rows()[0]) == list(row)


def test_times_are_times_to_the_database(database: Database) -> None:
    deliver(database.open(), temperature("t1", 4, 7))
    hour = {"sqlite": "strftime('%H', time)", "postgresql": "to_char(time AT TIME ZONE 'UTC', 'HH24')"}[database.kind]
    assert database.ask(f"SELECT {hour} AS hour, value + 1 AS more FROM readings") == [{"hour": "11", "more": 5.0}]


def test_the_readings_of_an_event_are_numbered_as_they_come(database: Database) -> None:
    deliver(database.open(), humidity("h1", (20, 50), (21, 60)))
    assert [(row["reading"], row["quantity"], row["value"], row["unit"]) for row in database.rows()] == [
        (1, "temperature", 20.0, "°C"),
        (2, "relative_humidity", 50.0, "%"),
        (3, "temperature", 21.0, "°C"),
        (4, "relative_humidity", 60.0, "%"),
    ]


def test_a_state_is_a_number_with_its_name_as_text(database: Database) -> None:
    deliver(database.open(), event("c1", "contact", {"state": "OPEN"}))
    assert [(row["quantity"], row["value"], row["text"]) for row in database.rows("latest")] == [("open", 1.0, "OPEN")]


def test_a_repeated_event_changes_nothing(database: Database) -> None:
    sink = database.open()
    events = [temperature("t1", 1, 1), temperature("t2", 2, 2), humidity("h1", (20, 50))]
    deliver(sink, *events)
    before = database.rows(), database.rows("latest")

    deliver(sink, events[0])
    deliver(database.open(), *reversed(events))

    assert (database.rows(), database.rows("latest")) == before
    assert len(before[0]) == 4


def test_an_event_twice_in_one_batch_is_one(database: Database) -> None:
    deliver(database.open(), temperature("t1", 1), temperature("t2", 2), temperature("t1", 1))
    assert [row["event_id"] for row in database.rows()] == ["t1", "t2"]


@pytest.mark.parametrize("one_by_one", [True, False])
@pytest.mark.parametrize("order", ["old first", "new first"])
def test_no_older_reading_takes_the_place_of_a_newer_one(order: str, one_by_one: bool, database: Database) -> None:
    sink = database.open()
    events = [temperature("t1", 1.0, 1), temperature("t3", 3.0, 3), temperature("t2", 2.0, 2)]
    events = events if order == "old first" else events[::-1]

    for batch in [[each] for each in events] if one_by_one else [events]:
        deliver(sink, *batch)

    assert database.latest() == {("d1", "temperature"): ("2026-03-14T11:03:00.000000Z", 3.0)}
    assert [row["event_id"] for row in database.rows()] == ["t1", "t2", "t3"]


def test_there_is_a_latest_value_for_each_device_and_quantity(database: Database) -> None:
    deliver(
        database.open(),
        humidity("h1", (20, 50)),
        temperature("t1", 1.0, device="d2"),
        event("x1", device="d2"),
    )
    assert {key: value for key, (_, value) in database.latest().items()} == {
        ("d1", "temperature"): 20.0,
        ("d1", "relative_humidity"): 50.0,
        ("d2", "temperature"): 1.0,
        ("d2", "touch"): 1.0,
    }


@pytest.mark.parametrize("names", [("a", "B"), ("B", "a"), ("_", "Z"), ("Z", "_"), ("-", "0"), ("0", "-")])
@pytest.mark.parametrize("one_by_one", [True, False])
def test_of_the_same_time_the_last_id_wins_byte_by_byte_whatever_the_order(
    names: tuple[str, str], one_by_one: bool, database: Database
) -> None:
    sink = database.open()
    events = [temperature(name, ord(name)) for name in names]

    for batch in [[each] for each in events] if one_by_one else [events]:
        deliver(sink, *batch)

    assert [(row["event_id"], row["value"]) for row in database.rows("latest")] == [(max(names), ord(max(names)))]


def test_ids_compare_byte_by_byte_though_the_table_says_otherwise(sqlite_file: Database) -> None:
    sink = sqlite_file.open()
    sqlite_file.ask("ALTER TABLE latest RENAME TO strict")
    [made] = sqlite_file.ask("SELECT sql FROM sqlite_master WHERE name = 'strict'")
    lax = made["sql"].replace('"strict"', "latest").replace("event_id TEXT", "event_id TEXT COLLATE NOCASE")
    sqlite_file.ask(lax)
    deliver(sink, temperature("B", 1))
    deliver(sink, temperature("a", 2))
    deliver(sink, temperature("C", 3))
    assert [row["event_id"] for row in sqlite_file.rows("latest")] == ["a"]


def test_of_samples_without_a_time_the_first_is_the_latest(database: Database) -> None:
    deliver(database.open(), humidity("h1", (20, 50), (30, 70)))
    assert sorted(row["value"] for row in database.rows("latest")) == [20.0, 50.0]


def shuffled(seed: int, count: int) -> list[Event]:
    """Events of few devices at few times, so that some are of the same time."""
    chance = random.Random(seed)
    return [
        temperature(f"e{number:03}", number, chance.randrange(20), device=f"d{chance.randrange(4)}")
        for number in range(count)
    ]


def test_two_writers_at_once_leave_all_readings_and_the_latest_of_each_device(database: Database) -> None:
    sinks = [database.open(), database.open()]
    events = shuffled(1, 300)
    together = threading.Barrier(4)

    def write(seed: int) -> None:
        chance = random.Random(seed)
        mine = chance.sample(events, 260)
        together.wait(30)
        while mine:
            size = chance.randrange(1, 25)
            deliver(sinks[seed % 2], *mine[:size])
            mine = mine[size:]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    for sink in sinks:
        deliver(sink, *random.Random(9).sample(events, 300))

    best: dict[str, Event] = {}
    for each in events:
        device = str(each.device_id)
        age = (each.readings()[0].time, each.id)
        if device not in best or age > (best[device].readings()[0].time, best[device].id):
            best[device] = each
    assert [row["event_id"] for row in database.rows()] == sorted(each.id for each in events)
    assert {row["device_id"]: row["event_id"] for row in database.rows("latest")} == {
        device: each.id for device, each in best.items()
    }


WRITER = """
import random, sys
sys.path.insert(0, sys.argv[2])
from test_sql_sink import build, deliver, shuffled
sink = build(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
chance = random.Random(int(sys.argv[3]))
events = chance.sample(shuffled(2, 120), 120)
sink.hook.open(name="data", logger=None)
while events:
    size = chance.randrange(1, 25)
    deliver(sink, *events[:size])
    events = events[size:]
sink.hook.close()
"""


def test_processes_that_make_the_tables_and_write_at_once_agree(database: Database) -> None:
    command = [sys.executable, "-c", WRITER, database.url, str(ROOT / "tests")]
    writers = [
        subprocess.Popen([*command, str(n)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for n in range(3)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.flush()

    assert [writer.communicate(timeout=60) and writer.returncode for writer in writers] == [0, 0, 0]

    events = shuffled(2, 120)
    assert [row["event_id"] for row in database.rows()] == sorted(each.id for each in events)
    newest = {each.device_id: each.id for each in sorted(events, key=lambda each: (each.readings()[0].time, each.id))}
    assert {row["device_id"]: row["event_id"] for row in database.rows("latest")} == newest


@pytest.mark.parametrize("round", range(3))
def test_many_who_make_the_tables_at_once_all_succeed(round: int, database: Database) -> None:
    together = threading.Barrier(8)

    def open_one(number: int, labels: list[str]) -> None:
        together.wait(30)
        deliver(database.open(label_columns=labels), event(f"e{number}"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(partial(open_one, labels=["site"]), range(8)))
        list(pool.map(partial(open_one, labels=["site", "floor"]), range(8, 16)))
    assert [(row["label_site"], row["label_floor"]) for row in database.rows()] == [(None, None)] * 16


def test_events_without_readings_leave_no_row(database: Database) -> None:
    sink = database.open()
    deliver(sink, event("p1", "probeWireStatus", {"state": "TWO_WIRE"}), event("n1", "notInventedYet", {"value": 1}))
    deliver(sink, event("n2", "labelsChanged"), event("t1"))
    assert [row["event_id"] for row in database.rows()] == ["t1"]


def test_events_of_every_type_are_taken(database: Database) -> None:
    simulator = Simulator(seed=4)
    events = [Event.from_body(simulator.body(name), NOW) for name in TYPES]
    deliver(database.open(), *events)
    assert {row["event_id"] for row in database.rows()} == {each.id for each in events if each.readings()}
    assert len(database.rows()) == sum(len(each.readings()) for each in events) > 10


def test_a_reading_of_no_device_is_kept_but_is_nobodys_latest(database: Database) -> None:
    deliver(database.open(), event("e1", device=None), event("e2"))
    assert [(row["event_id"], row["device_id"]) for row in database.rows()] == [("e1", None), ("e2", "d1")]
    assert [row["event_id"] for row in database.rows("latest")] == ["e2"]


@pytest.mark.parametrize(("text", "kept"), [("a\0b", "a�b"), ("a\ud800b", "a?b")], ids=["NUL", "half a pair"])
def test_what_no_database_takes_in_a_text_is_replaced(text: str, kept: str, database: Database) -> None:
    deliver(database.open(label_columns=["site"]), event("e1", labels={"site": text, "name": text}, device=text))
    (row,) = database.rows()
    assert (row["label_site"], row["device_name"], row["device_id"]) == (kept, kept, kept)
    assert [row["device_id"] for row in database.rows("latest")] == [kept]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(), min_size=1, max_size=40))
def test_any_text_comes_back(text: str, database: Database) -> None:
    sink = database.open(label_columns=["site"])
    name = uuid.uuid4().hex
    deliver(sink, event(name, labels={"site": text, "name": text}, device=text))
    sink.hook.close()
    kept = text.replace("\0", "�").encode("utf-8", "replace").decode()
    [row] = [row for row in database.rows() if row["event_id"] == name]
    assert [row[column] for column in ("label_site", "device_name", "device_id")] == [kept] * 3


def test_a_label_as_large_as_a_push_is_kept(database: Database) -> None:
    huge = "é" * 120_000
    deliver(database.open(label_columns=["note"]), event("e1", labels={"note": huge, "name": huge}))
    (row,) = database.rows()
    assert (row["label_note"], row["device_name"]) == (huge, huge)


@pytest.mark.parametrize("value", [0, -0.5, 5e-324, 1.7976931348623157e308, 2**63, 10**300, -(2**70)])
def test_any_number_comes_back(value: float, database: Database) -> None:
    deliver(database.open(), temperature("t1", value))
    assert [row["value"] for row in database.rows()] == [float(value)]


def test_a_number_beyond_any_float_is_no_reading_and_harms_nothing(database: Database) -> None:
    deliver(database.open(), temperature("t1", 10**400), temperature("t2", 1))
    assert [row["event_id"] for row in database.rows()] == ["t2"]


def test_the_first_and_the_last_time_there_is_are_times_in_order(database: Database) -> None:
    sink = database.open()
    times = ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z", "1969-12-31T23:59:59.999999Z", "not a time"]
    deliver(sink, *(event(f"e{n}", data={"updateTime": time}) for n, time in enumerate(times)))
    assert [row["event_id"] for row in database.ask("SELECT event_id FROM readings ORDER BY time")] == [
        "e0",
        "e2",
        "e3",
        "e1",
    ]
    assert [row["event_id"] for row in database.rows("latest")] == ["e1"]


AWKWARD = [
    'se"lect',
    "it's",
    "a%b",
    "%(a)s",
    "a:b",
    "a b",
    "ORDER",
    "Ünïcode 🌡",
    "a.b",
    "a\\b",
    "?",
    "[x]",
    "{x}",
    "a;--",
]


@pytest.mark.parametrize("name", AWKWARD)
def test_names_are_quoted_where_need_be(name: str, database: Database) -> None:
    options = {"readings": name, "latest": f"{name} 2", "label_columns": [name]}
    sink = database.open(**options)
    deliver(sink, event("e1", labels={name: "here"}))
    deliver(database.open(**{**options, "label_columns": [name, f"{name}+"]}), event("e2", labels={f"{name}+": "too"}))

    quoted = name.replace('"', '""')
    found = [(row["event_id"], row[f"label_{name}"], row[f"label_{name}+"]) for row in database.rows(f'"{quoted}"')]
    assert found == [("e1", "here", None), ("e2", None, "too")]
    assert [row["event_id"] for row in database.rows(f'"{quoted} 2"')] == ["e2"]


SECRET_URL = "postgres://bob:hunter2-very-secret@db.example.com:5432/data"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"readings": ""}, "tables: '' is no name of 1 to 63 bytes"),
        ({"readings": "a" * 64}, f"tables: '{'a' * 64}' is no name of 1 to 63 bytes"),
        ({"latest": "é" * 32}, f"tables: '{'é' * 32}' is no name of 1 to 63 bytes"),
        ({"latest": "a\0"}, "tables: 'a\\x00' is no name of 1 to 63 bytes"),
        ({"latest": "Readings"}, "tables: 'Readings' is there twice"),
        ({"label_columns": ["a" * 58]}, f"label_columns: 'label_{'a' * 58}' is no name of 1 to 63 bytes"),
        ({"label_columns": ["site", "Site"]}, "label_columns: 'label_Site' is there twice"),
        ({"label_columns": "site"}, "label_columns"),
        ({"readings": 3}, "readings"),
        ({"table": "x"}, "no option 'table'"),
    ],
)
def test_a_wrong_option_is_named_and_the_url_is_not_shown(options: dict[str, Any], says: str) -> None:
    with pytest.raises(PluginError) as error:
        build(SECRET_URL, **options)
    assert says in str(error.value)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "url is no URL such as"),
        ("hunter2", "url is no URL such as"),
        ("postgres://bob:hunter2@host:port/name", "url is no URL such as"),
        ("postgres://bob:hunter2@host/name?hunter2=1", "url is no URL such as"),
        ("mysql://bob:hunter2@host/name", "url must begin with postgres://, postgresql:// or sqlite:///"),
        ("sqlite://", "an SQLite url must name a file: three slashes and its path"),
        ("sqlite:///", "an SQLite url must name a file: three slashes and its path"),
        ("sqlite://hunter2.sqlite", "an SQLite url must name a file: three slashes and its path"),
        ("sqlite:///:memory:", "an SQLite url must name a file: three slashes and its path"),
        ("sqlite:///file:hunter2?uri=true", "an SQLite url must name a file: three slashes and its path"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_showing_it(url: str, says: str) -> None:
    with pytest.raises(PluginError) as error:
        build(url)
    assert says in str(error.value)
    assert "hunter2" not in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_secret_stands_in_what_a_sink_looks_like(plugin: ModuleType) -> None:
    sink = plugin.Sql(Secret(SECRET_URL))
    assert repr(sink) == "Sql(url=SecretStr('**********'), readings='readings', latest='latest', label_columns=[])"


def test_building_a_sink_touches_nothing(tmp_path: Path) -> None:
    build(f"sqlite:///{tmp_path / 'folder' / 'data.sqlite'}")
    build("postgres://nobody@192.0.2.1/none?sslmode=require")
    assert list(tmp_path.iterdir()) == []


def test_a_relative_path_counts_from_the_folder_it_was_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    database = Database("sqlite", "sqlite:///folder/data.sqlite")
    sink = build(database.url)
    monkeypatch.chdir("/")

    sink.hook.open(name="data", logger=logging.getLogger("sink.data"))
    deliver(sink, event("e1"))

    assert len(Database("sqlite", f"sqlite:///{tmp_path / 'folder' / 'data.sqlite'}").rows()) == 1


def test_a_label_that_was_added_to_the_settings_gets_its_column(database: Database) -> None:
    deliver(database.open(), event("e1", labels={"site": "oslo"}))
    deliver(database.open(label_columns=["site"]), event("e2", labels={"site": "oslo"}))
    deliver(database.open(label_columns=["floor"]), event("e3", labels={"site": "oslo", "floor": "2"}))
    assert [(row["label_site"], row["label_floor"]) for row in database.rows()] == [
        (None, None),
        ("oslo", None),
        (None, "2"),
    ]
    assert [(row["event_id"], row["label_floor"]) for row in database.rows("latest")] == [("e3", "2")]


def test_columns_of_ones_own_are_left_alone(database: Database) -> None:
    sink = database.open()
    database.ask("ALTER TABLE readings ADD COLUMN note TEXT")
    database.ask("ALTER TABLE readings ADD COLUMN seen TEXT NOT NULL DEFAULT 'no'")
    deliver(sink, event("e1"))
    deliver(database.open(), event("e2"))
    assert [(row["event_id"], row["note"], row["seen"]) for row in database.rows()] == [
        ("e1", None, "no"),
        ("e2", None, "no"),
    ]


WHOLE = (
    "event_id TEXT NOT NULL, reading INTEGER NOT NULL, time {time} NOT NULL, device_id TEXT, device_name TEXT, "
    "project_id TEXT, event_type TEXT NOT NULL, quantity TEXT NOT NULL, value {double} NOT NULL, unit TEXT NOT NULL, "
    "text TEXT NOT NULL, received_at {time} NOT NULL, PRIMARY KEY (event_id, reading)"
)
TYPES_OF = {
    "sqlite": {"time": "DATETIME", "double": "DOUBLE"},
    "postgresql": {"time": "TIMESTAMP WITH TIME ZONE", "double": "DOUBLE PRECISION"},
}


def test_a_table_that_somebody_else_made_alike_is_used(database: Database) -> None:
    database.ask(f"CREATE TABLE readings ({WHOLE.format(**TYPES_OF[database.kind])})")
    deliver(database.open(), event("e1"))
    assert len(database.rows()) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("unit TEXT NOT NULL, ", ""), "it has no column 'unit' (TEXT)"),
        (("value {double}", "value INTEGER"), "column 'value' is INTEGER and must be {double}"),
        (("device_id TEXT", "device_id VARCHAR(20)"), "column 'device_id' is VARCHAR(20) and must be TEXT"),
        (("time {time}", "time DATE"), "column 'time' is DATE and must be {time}"),
        (("PRIMARY KEY", "note TEXT NOT NULL, PRIMARY KEY"), "column 'note' must be filled, and has no default"),
        ((", reading)", ", quantity)"), "its primary key must be (event_id, reading)"),
        ((", PRIMARY KEY (event_id, reading)", ""), "its primary key must be (event_id, reading)"),
    ],
)
@pytest.mark.parametrize("name", ["readings", "data"])
def test_a_table_of_another_shape_is_left_alone_and_named(
    change: tuple[str, str], says: str, name: str, database: Database
) -> None:
    kinds = TYPES_OF[database.kind]
    database.ask(f"CREATE TABLE {name} ({WHOLE.replace(*change).format(**kinds)})")
    with pytest.raises(Pause) as pause:
        database.open(readings=name)
    assert str(pause.value) == (
        f"table '{name}' does not fit: {says.format(**kinds)}; alter the table, or name another one in readings"
    )
    assert database.rows(name, order="event_id") == []


def test_a_table_that_fits_after_all_is_used_at_the_next_try(database: Database) -> None:
    database.ask("CREATE TABLE readings (event_id TEXT)")
    sink = build(database.url)
    with pytest.raises(Pause, match="it has no column 'reading'"):
        sink.hook.open(name="data", logger=logging.getLogger("sink.data"))
    database.ask("DROP TABLE readings")
    sink.hook.open(name="data", logger=logging.getLogger("sink.data"))
    deliver(sink, event("e1"))
    assert len(database.rows()) == 1
    sink.hook.close()


def test_tables_that_vanish_pause_the_sink_and_are_made_again(database: Database) -> None:
    sink = database.open()
    database.ask("DROP TABLE readings")
    database.ask("DROP TABLE latest")
    with pytest.raises(Pause, match="readings"):
        deliver(sink, event("e1"))
    deliver(sink, event("e1"))
    assert len(database.rows()) == len(database.rows("latest")) == 1


def test_what_a_rule_of_the_table_forbids_is_given_up_and_blocks_nothing_else(database: Database) -> None:
    database.ask(f"CREATE TABLE readings ({WHOLE.format(**TYPES_OF[database.kind])}, CHECK (value < 100))")
    sink = database.open()
    with pytest.raises(GiveUp, match="the database does not take it: "):
        deliver(sink, temperature("t1", 1), temperature("t2", 100))
    assert database.rows() == []
    deliver(sink, temperature("t1", 1))
    with pytest.raises(GiveUp):
        deliver(sink, temperature("t2", 100))
    assert [row["event_id"] for row in database.rows()] == ["t1"]


def test_a_rule_that_is_broken_while_tables_are_made_blames_no_event(
    database: Database, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.open()
    sink = build(database.url)
    with monkeypatch.context() as patch:
        patch.setattr(plugin, "fit", lambda connection, *_: connection.exec_driver_sql(BREAKS_A_RULE))
        with pytest.raises(Pause, match=r"NotNullViolation|IntegrityError"):
            deliver(sink, event("e1"))
    deliver(sink, event("e1"))
    assert len(database.rows()) == 1
    sink.hook.close()


BREAKS_A_RULE = "INSERT INTO readings (event_id, reading) VALUES ('e0', 1)"
"""As PostgreSQL says when two make a table at once without a lock."""


def test_a_device_id_too_long_for_a_key_is_given_up(postgres: Database) -> None:
    sink = postgres.open()
    with pytest.raises(GiveUp, match="ProgramLimitExceeded: index row "):
        deliver(sink, event("e1", device=random.Random(1).randbytes(20_000).hex()))
    deliver(sink, event("e2"))
    assert [row["event_id"] for row in postgres.rows()] == ["e2"]


def test_a_reading_is_in_both_tables_or_in_none(database: Database) -> None:
    sink = database.open()
    database.ask("DROP TABLE latest")
    with pytest.raises(Pause):
        deliver(sink, event("e1"))
    assert database.rows() == []


def test_a_sink_can_be_opened_again_after_close(database: Database) -> None:
    sink = database.open()
    deliver(sink, event("e1"))
    sink.hook.close()
    sink.hook.open(name="data", logger=logging.getLogger("sink.data"))
    deliver(sink, event("e2"))
    assert len(database.rows()) == 2


def test_several_threads_may_deliver_at_once(database: Database) -> None:
    sink = database.open()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: deliver(sink, *(event(f"e{n}-{m}") for m in range(20))), range(30)))
    assert len(database.rows()) == 600


def connections(database: Database) -> int:
    asked = "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    return int(database.ask(asked)[0]["n"])


def test_there_is_one_connection_for_each_call_at_once_and_none_after_close(postgres: Database) -> None:
    sink = postgres.open()
    for number in range(5):
        deliver(sink, event(f"e{number}"))
    assert connections(postgres) == 1
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda n: deliver(sink, event(f"f{n}")), range(30)))
    assert 1 <= connections(postgres) <= 3
    sink.hook.close()
    wait_until(lambda: connections(postgres) == 0)


def test_an_sqlite_file_that_was_moved_away_is_begun_anew(sqlite_file: Database, tmp_path: Path) -> None:
    sink = sqlite_file.open()
    deliver(sink, event("e1"))
    sqlite_file.path.rename(tmp_path / "old.sqlite")
    with pytest.raises(Pause, match="no such table"):
        deliver(sink, event("e2"))
    deliver(sink, event("e2"))
    assert [row["event_id"] for row in sqlite_file.rows()] == ["e2"]


def test_an_sqlite_file_that_another_program_writes_is_waited_for(sqlite_file: Database) -> None:
    sink = sqlite_file.open()
    with sqlite3.connect(sqlite_file.path, isolation_level=None, check_same_thread=False) as other:
        other.execute("BEGIN EXCLUSIVE")
        letting_go = threading.Timer(0.5, other.execute, ["COMMIT"])
        letting_go.start()
        deliver(sink, event("e1"))
        letting_go.join()
    other.close()
    assert len(sqlite_file.rows()) == 1


def test_an_sqlite_file_that_stays_locked_pauses_the_sink(
    sqlite_file: Database, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plugin.SQLITE_CONNECT, "timeout", 0.1)
    sink = sqlite_file.open()
    with closing(sqlite3.connect(sqlite_file.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Pause) as pause:
            deliver(sink, event("e1"))
    assert str(pause.value) == "the database cannot be used: OperationalError: database is locked"
    deliver(sink, event("e1"))
    assert len(sqlite_file.rows()) == 1


def test_a_file_that_is_no_database_pauses_the_sink_and_is_left_alone(sqlite_file: Database) -> None:
    sqlite_file.path.write_bytes(b"precious text " * 1000)
    with pytest.raises(Pause, match="DatabaseError: file is not a database"):
        sqlite_file.open()
    assert sqlite_file.path.read_bytes() == b"precious text " * 1000


def test_a_path_that_cannot_be_made_pauses_the_sink(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Pause, match="the folder of the database cannot be made: Not a directory"):
        Database("sqlite", f"sqlite:///{tmp_path / 'file' / 'folder' / 'data.sqlite'}").open()
    with pytest.raises(Pause, match="unable to open database file"):
        Database("sqlite", f"sqlite:///{tmp_path}").open()


FULL_DISK = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from test_sql_sink import Database, deliver, event, Pause

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
database = Database("sqlite", sys.argv[1])
sink = database.open()
deliver(sink, event("e1"))
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (database.path.stat().st_size, unlimited[1]))
try:
    deliver(sink, *(event(f"f{n}") for n in range(1000)))
except Pause as pause:
    print(pause)
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
print([row["event_id"] for row in database.rows()])
deliver(sink, *(event(f"f{n}") for n in range(1000)))
print(len(database.rows()))
"""


def test_a_full_disk_under_sqlite_pauses_the_sink_and_it_works_again_after(sqlite_file: Database) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, sqlite_file.url, str(ROOT / "tests")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    why, left, after = run.stdout.splitlines()
    assert why.startswith("the database cannot be used: OperationalError: ")
    assert (left, after) == ("['e1']", "1001")


WRITE_VERSION = 18
"""Where an SQLite file says who may write to it; above 2 nobody may."""
CUT = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


@contextmanager
def read_only(database: Database) -> Iterator[None]:
    """As a standby is that a failover has left behind."""
    name = make_url(database.url).database
    database.ask(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    database.ask(CUT)
    yield
    with psycopg.connect(make_url(database.url).set(database="postgres").render_as_string(False)) as connection:
        connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())


def test_a_read_only_database_pauses_the_sink_and_is_connected_to_anew(postgres: Database) -> None:
    sink = postgres.open()
    with read_only(postgres):
        for _ in range(3):
            with pytest.raises(Pause, match="ReadOnlySqlTransaction: cannot execute INSERT in a read-only transaction"):
                deliver(sink, event("e1"))
    deliver(sink, event("e1"))
    assert len(postgres.rows()) == 1


def test_a_read_only_sqlite_file_pauses_the_sink(sqlite_file: Database) -> None:
    sink = sqlite_file.open()
    with sqlite_file.path.open("r+b") as file:
        file.seek(WRITE_VERSION)
        file.write(b"\x03")
    with pytest.raises(Pause) as pause:
        deliver(sink, event("e1"))
    assert str(pause.value) == ("the database cannot be used: OperationalError: attempt to write a readonly database")


def test_rights_that_are_missing_pause_the_sink(postgres: Database) -> None:
    role = f"reader_{uuid.uuid4().hex}"
    postgres.open()
    postgres.ask(f"CREATE ROLE {role} LOGIN; GRANT SELECT ON readings, latest TO {role}")
    sink = build(make_url(postgres.url).set(username=role).render_as_string(False))
    with pytest.raises(Pause, match="InsufficientPrivilege: permission denied for table readings"):
        deliver(sink, event("e1"))
    postgres.ask(f"GRANT INSERT, UPDATE ON readings, latest TO {role}")
    deliver(sink, event("e1"))
    sink.hook.close()
    assert len(postgres.rows()) == 1


def test_a_lock_on_a_table_is_waited_for_and_then_pauses_the_sink(
    postgres: Database, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = postgres.open()
    with psycopg.connect(postgres.url) as other, monkeypatch.context() as hurried:
        hurried.setitem(plugin.BEGIN, "postgresql", "SET LOCAL statement_timeout = '200ms'")
        other.execute("LOCK TABLE readings")
        with pytest.raises(Pause, match="QueryCanceled: canceling statement due to statement timeout"):
            deliver(sink, event("e1"))
    deliver(sink, event("e1"))
    assert len(postgres.rows()) == 1


def test_whatever_the_database_says_by_default_a_commit_is_durable_and_no_statement_endless(
    postgres: Database, plugin: ModuleType
) -> None:
    name = make_url(postgres.url).database
    for setting in ("synchronous_commit = off", "default_transaction_isolation = serializable"):
        postgres.ask(f"ALTER DATABASE {name} SET {setting}")
    engine = plugin.engine(plugin.database_url(postgres.url))
    shown = ("synchronous_commit", "transaction_isolation", "statement_timeout", "idle_in_transaction_session_timeout")
    with engine.begin() as connection:
        assert [connection.exec_driver_sql(f"SHOW {setting}").scalar() for setting in shown] == [
            "on",
            "read committed",
            "10s",
            "10s",
        ]
    engine.dispose()


@pytest.fixture
def server() -> Iterator[Server]:
    """A PostgreSQL that may be killed and frozen."""
    server = own_server()
    yield server
    server.start()


def taken(sink: Sink, *events: Event) -> bool:
    """Whether the sink takes these now; the only other answer it may give is a pause."""
    try:
        deliver(sink, *events)
    except Pause:
        return False
    return True


def test_a_database_that_is_killed_pauses_the_sink_and_loses_nothing_it_took(server: Server) -> None:
    database = Database("postgresql", server.new_database())
    sink = database.open()
    took = [f"e{number}" for number in range(20) if taken(sink, event(f"e{number}"))]
    server.kill()
    started = time.monotonic()
    with pytest.raises(Pause, match="the database cannot be used: OperationalError: "):
        deliver(sink, event("late"))
    with pytest.raises(Pause):
        build(database.url).hook.open(name="data", logger=logging.getLogger("sink.data"))
    assert time.monotonic() - started < 20
    server.start()
    wait_until(lambda: taken(sink, event("late")))
    assert [row["event_id"] for row in database.rows()] == sorted([*took, "late"])
    database.close()


def test_after_its_connections_were_cut_the_very_next_call_works(postgres: Database) -> None:
    sink = postgres.open()
    deliver(sink, event("e1"))
    postgres.ask(CUT)
    deliver(sink, event("e2"))
    assert len(postgres.rows()) == 2


def test_a_database_restarted_under_writers_has_all_that_was_taken(server: Server) -> None:
    database = Database("postgresql", server.new_database())
    sink = database.open()
    events = shuffled(3, 200)

    def write(mine: list[Event]) -> None:
        for each in mine:
            wait_until(partial(taken, sink, each), seconds=60)

    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, events[number::4]) for number in range(4)]
        wait_until(lambda: len(database.rows()) > 20)
        server.restart()
        for one in writing:
            one.result(60)
    assert [row["event_id"] for row in database.rows()] == sorted(each.id for each in events)
    newest = {each.device_id: each.id for each in sorted(events, key=lambda each: (each.readings()[0].time, each.id))}
    assert {row["device_id"]: row["event_id"] for row in database.rows("latest")} == newest
    database.close()


def test_a_database_that_stands_still_keeps_no_call_for_long(
    server: Server, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database("postgresql", server.new_database())
    sink = database.open()
    monkeypatch.setattr(plugin, "ANSWER_SECONDS", 0.5)
    monkeypatch.setitem(plugin.CONNECT, "connect_timeout", 2)
    fresh = build(database.url)
    with server.frozen():
        started = time.monotonic()
        with pytest.raises(Pause, match="the database cannot be used: "):
            deliver(sink, event("e1"))
        with pytest.raises(Pause, match="the database cannot be used: "):
            deliver(fresh, event("e1"))
        assert time.monotonic() - started < 20
    wait_until(lambda: taken(sink, event("e1")))
    assert len(database.rows()) == 1
    fresh.hook.close()
    database.close()


def test_a_database_that_stands_still_in_the_middle_of_a_call_undoes_it(
    server: Server, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database("postgresql", server.new_database())
    sink = database.open()
    write = plugin.write

    def write_while_frozen(*arguments: Any) -> None:
        with server.frozen():
            write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(plugin, "ANSWER_SECONDS", 0.5)
        patch.setattr(plugin, "write", write_while_frozen)
        with pytest.raises(Pause) as pause:
            deliver(sink, event("e1"))
    assert str(pause.value) == "the database cannot be used: OperationalError: the server does not answer"
    deliver(sink, event("e2"))
    assert [row["event_id"] for row in database.rows()] == ["e2"]
    database.close()


def test_a_wrong_password_pauses_the_sink_and_nothing_of_the_url_is_shown(server: Server) -> None:
    url = make_url(server.new_database())
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS stranger")
        connection.execute("CREATE ROLE stranger LOGIN PASSWORD 'right'")
    server.ask_for_passwords("stranger")
    with pytest.raises(Pause) as pause:
        build(f"postgres://stranger:hunter2@/{url.database}?host={url.query['host']}").hook.open(
            name="data", logger=logging.getLogger("sink.data")
        )
    assert str(pause.value).endswith("FATAL: password authentication failed for user …")
    assert not re.search(f"hunter2|stranger|{url.database}|{url.query['host']}", str(pause.value))
    assert pause.value.__cause__ is None


@pytest.mark.parametrize("place", ["127.0.0.1:1", "no-such-host.invalid"])
def test_a_database_that_is_not_there_pauses_the_sink(place: str) -> None:
    with pytest.raises(Pause, match="the database cannot be used: OperationalError: ") as pause:
        build(f"postgres://bob:hunter2@{place}/data").hook.open(name="data", logger=logging.getLogger("sink.data"))
    assert "hunter2" not in str(pause.value)
    assert "no-such-host" not in str(pause.value)


def test_where_tls_is_required_nothing_is_said_without_it(server: Server) -> None:
    wire = Wire(server.socket)
    url = f"postgres://postgres:hunter2@127.0.0.1:{wire.port}/{make_url(server.new_database()).database}"
    plain = build(f"{url}?sslmode=disable")
    deliver(plain, event("e1"))
    plain.hook.close()
    wire.beginnings.clear()

    with pytest.raises(Pause, match="server does not support SSL, but SSL was required"):
        deliver(build(f"{url}?sslmode=require"), event("e2"))
    assert set(wire.beginnings) == {SSL_REQUEST}
    wire.close()


def block(language: str, holds: str) -> str:
    """A block of code of the README."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return next(found for found in re.findall(rf"```{language}\n(.*?)```", readme, re.DOTALL) if holds in found)


def test_journal_and_data_share_one_database_with_the_settings_in_the_readme(start_receiver: StartReceiver) -> None:
    database = Database("postgresql", new_database())
    receiver = start_receiver(block("toml", 'type = "sql"'), DATABASE_URL=database.url)
    simulator = Simulator(seed=5)
    bodies = [simulator.body("temperature") for _ in range(30)]

    for each in [*bodies, *bodies]:
        assert receiver.push(each)[0] == 200

    readings = [reading for each in bodies for reading in Event.from_body(each, NOW).readings()]
    wait_until(lambda: len(database.rows()) == len(readings), what=f"all rows ({receiver.log})")
    assert sorted((row["event_id"], row["value"]) for row in database.rows()) == sorted(
        (reading.event_id, reading.value) for reading in readings
    )
    shown = database.ask(block("sql", "FROM latest"))
    assert list(shown[0]) == ["device_name", "quantity", "value", "unit", "time"]
    assert len(shown) == len({reading.device_id for reading in readings})
    wait_until(lambda: receiver.metric('receiver_delivered_total{sink="data"}') == 30)


def test_a_refused_row_is_a_dead_letter_and_a_database_in_trouble_makes_none(
    start_receiver: StartReceiver, sqlite_file: Database
) -> None:
    rule = "CHECK (event_type <> 'co2')"
    sqlite_file.ask(f"CREATE TABLE readings ({WHOLE.format(**TYPES_OF['sqlite'])}, {rule})")
    retry = 'retry = { first_pause = "0.2s", longest_pause = "1s", max_attempts = 1 }'
    receiver = start_receiver(f'[sinks.data]\ntype = "sql"\nurl = "{sqlite_file.url}"\n{retry}\n')
    simulator = Simulator(seed=6)
    broken = sqlite_file.path.rename(sqlite_file.path.with_suffix(".away"))
    sqlite_file.path.write_bytes(b"no database at all " * 100)
    for kind in ["touch", "co2", "touch", "temperature", "co2", "touch"] * 5:
        assert receiver.push(simulator.body(kind))[0] == 200
    wait_until(lambda: receiver.metric('receiver_paused{sink="data"}'))
    broken.rename(sqlite_file.path)

    wait_until(lambda: receiver.metric('receiver_delivered_total{sink="data"}') == 20, what=receiver.log)
    wait_until(lambda: receiver.metric('receiver_dead{sink="data"}') == 10)
    assert {row["event_type"] for row in sqlite_file.rows()} == {"touch", "temperature"}
    assert len({row["event_id"] for row in sqlite_file.rows()}) == 20
    assert "IntegrityError: CHECK constraint failed: event_type <> 'co2'" in receiver.log
