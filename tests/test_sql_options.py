"""The options of the sql sink: names and URLs that databases can use, and errors that show no secret."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support.built_in_sinks import build, class_of, deliver_batch, open_sink
from support.events import event
from support.sql_databases import SqlDatabase, build_sql

from receiver import Secret
from receiver.errors import PluginError

AWKWARD_NAMES = [
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


def test_no_text_of_an_error_shows_the_password() -> None:
    sink = class_of("sql")(url=Secret("postgres://u:hunter22@h/d"))
    assert sink._error_text(ValueError("invalid\nhunter22")) == "ValueError: invalid ***"


def test_any_name_can_be_that_of_tables_and_labels(sql_database: SqlDatabase) -> None:
    for name in AWKWARD_NAMES:
        options = {"readings": name, "latest": f"{name} 2", "label_columns": [name]}
        deliver_batch(sql_database.open(**options), event("e1", labels={name: "here"}))
        with_new_label = sql_database.open(**{**options, "label_columns": [name, f"{name}+"]})
        deliver_batch(with_new_label, event("e2", labels={f"{name}+": "too"}))

        quoted = name.replace('"', '""')
        rows = sql_database.rows(f'"{quoted}"')
        assert [(row["event_id"], row[f"label_{name}"], row[f"label_{name}+"]) for row in rows] == [
            ("e1", "here", None),
            ("e2", None, "too"),
        ]
        assert sql_database.event_ids(f'"{quoted} 2"') == ["e2"]


def problem(url: str, **options: Any) -> str:
    """Why no sink is built from these options: one line, without the place in front of it."""
    with pytest.raises(PluginError) as error:
        build_sql(url, **options)
    place = r"config\.toml \[sinks\.tested\]: "
    found = re.fullmatch(rf"{place}(.*)", str(error.value))
    assert found is not None, error.value
    return found[1]


SECRET_URL = "postgres://bob:hunter2-very-secret@db.example.com:5432/data"
LENGTH = "is not a name of 1 to 63 bytes, as databases allow"
DUPLICATE = "is used twice; names that differ only in case are the same"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"readings": ""}, f"tables: '' {LENGTH}"),
        ({"readings": "a" * 64}, f"tables: '{'a' * 64}' {LENGTH}"),
        ({"latest": "é" * 32}, f"tables: '{'é' * 32}' {LENGTH}"),
        ({"latest": "a\0"}, f"tables: 'a\\x00' {LENGTH}"),
        ({"latest": "Readings"}, f"tables: 'Readings' {DUPLICATE}"),
        ({"label_columns": ["a" * 58]}, f"label_columns: 'label_{'a' * 58}' {LENGTH}"),
        ({"label_columns": ["site", "Site"]}, f"label_columns: 'label_Site' {DUPLICATE}"),
        ({"label_columns": "site"}, 'label_columns: give a list, such as ["a", "b"]'),
        ({"readings": 3}, 'readings = 3: give text in quotes, such as "text"'),
        ({"xyz": "x"}, "no option 'xyz'"),
    ],
)
def test_a_wrong_option_is_reported_without_the_url(options: dict[str, Any], expected: str) -> None:
    assert problem(SECRET_URL, **options) == expected


NO_URL = "url must be a URL such as postgres://user:password@host:5432/name"
ENCODE = NO_URL.replace("must be", "is not") + "; encode special characters in the password"
SCHEME = "url must begin with postgres://, postgresql:// or sqlite:///"
NO_FILE = "url of SQLite must name a file: three slashes and its path"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", NO_URL),
        ("hunter2", NO_URL),
        ("postgres://bob:hunter2@host:port/name", "url: port must be a number from 1 to 65535"),
        ("postgres://bob:hunter2@host/name?hunter2=1", "url: PostgreSQL has no connection parameter; remove it"),
        ("postgres://bob:hunter2@[::1/name", f"{ENCODE}, such as / as %2F"),
        ("mysql://bob:1@host:hunter2/name", NO_URL),
        ("mysql://bob:hunter2@host/name", SCHEME),
        ("sqlite://", NO_FILE),
        ("sqlite:///", NO_FILE),
        ("sqlite://hunter2.sqlite", NO_FILE),
        ("sqlite:///:memory:", NO_FILE),
        ("sqlite:///file:hunter2?uri=true", NO_FILE),
        ("sqlite:///hunter2\0", "url of SQLite: a path cannot contain the character NUL"),
    ],
)
def test_an_invalid_url_is_reported_and_not_shown(url: str, expected: str) -> None:
    assert problem(url) == expected


def test_the_representation_of_a_sink_does_not_show_the_url() -> None:
    sink = class_of("sql")(Secret(SECRET_URL))
    assert repr(sink) == "Sql(url=SecretStr('**********'), readings='readings', latest='latest', label_columns=[])"


def test_building_a_sink_touches_neither_disk_nor_network(tmp_path: Path) -> None:
    build_sql(f"sqlite:///{tmp_path / 'folder' / 'data.sqlite'}")
    build_sql("postgres://nobody@192.0.2.1/none?sslmode=require")
    assert list(tmp_path.iterdir()) == []


def test_a_relative_path_counts_from_the_folder_of_config_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    sink = build("sql", tmp_path, {"url": "sqlite:///folder/data.sqlite"})
    deliver_batch(open_sink(sink), event("e1"))
    assert SqlDatabase(f"sqlite:///{tmp_path / 'folder' / 'data.sqlite'}").event_ids() == ["e1"]
