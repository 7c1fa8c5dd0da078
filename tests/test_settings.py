"""config.toml and the environment: what is read from them, and the exact line for each problem."""

from __future__ import annotations

import json
import os
import re
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, SecretStr, create_model

from receiver.errors import ConfigError
from receiver.event import Event
from receiver.settings import (
    SENSORS,
    CommonOptions,
    Filter,
    JournalTable,
    ReceiverTable,
    RetryPolicy,
    SensorsTable,
    Settings,
    SinkSettings,
    load,
)
from receiver.validation import Table, parse
from receiver.variables import SECRET

FROM_ENVIRONMENT = "value-from-the-environment"
OF_UNKNOWN_KEY = "value-of-an-unknown-key"
NOT_AN_INTEGER = "give a whole number, such as 5"
NOT_A_BOOLEAN = "give true or false"
NOT_A_SINK = "must be a table named with 1 to 64 letters, digits, '_' or '-'"


def load_config(folder: Path, config: str, **environ: str) -> Settings:
    """The settings of a config.toml in `folder`; an empty DT_SIGNATURE_SECRET in `environ` unsets it."""
    (folder / "config.toml").write_text(config, encoding="utf-8")
    return load({"RECEIVER_CONFIG": str(folder / "config.toml"), SECRET: "a-secret", **environ})


def load_problems(folder: Path, config: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(folder, config, **environ)
    return list(caught.value.problems)


def load_sink(folder: Path, config: str, **environ: str) -> SinkSettings:
    (sink,) = load_config(folder, config, **environ).sinks
    return sink


@pytest.mark.parametrize(
    ("value", "organizations"),
    [
        ("", set()),
        (" \n", set()),
        ("b5rj9ed7rihk942p48og", {"b5rj9ed7rihk942p48og"}),
        ("organizations/b5rj9ed7rihk942p48og", {"b5rj9ed7rihk942p48og"}),
        (" one, organizations/two,one\n", {"one", "two"}),
    ],
)
def test_organizations_are_ids_with_or_without_their_collection(
    value: str, organizations: set[str], tmp_path: Path
) -> None:
    settings = load_config(tmp_path, "", DT_ORGANIZATION_ID=value)
    assert settings.organizations == organizations
    assert organizations <= settings.secret_values
    assert settings.issuer == "https://identity.disruptive-technologies.com/data-connector"


def test_with_an_organization_no_secret_is_required(tmp_path: Path) -> None:
    settings = load_config(tmp_path, "", **{SECRET: ""}, DT_ORGANIZATION_ID="one")
    assert (settings.secrets, settings.organizations) == ({}, {"one"})
    (tmp_path / "id").write_text("two\n")
    settings = load_config(tmp_path, "", **{SECRET: ""}, DT_ORGANIZATION_ID_FILE=str(tmp_path / "id"))
    assert (settings.secrets, settings.organizations) == ({}, {"two"})


@pytest.mark.parametrize(
    "value",
    [
        ",",
        "one,",
        "one,,two",
        "one two",
        "organizations/",
        "organizations/one/x",
        "projects/one",
        "\u00e9",
        "a" * 65,
        "'one'",
    ],
)
def test_an_invalid_organization_is_one_problem_that_does_not_show_it(value: str, tmp_path: Path) -> None:
    assert load_problems(tmp_path, "", **{SECRET: ""}, DT_ORGANIZATION_ID=value) == [
        "environment: DT_ORGANIZATION_ID must be the id of your organization, or several with commas"
    ]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080/x",
        "http://[::1]:80",
        "http://localhost/x",
        "http://127.9.9.9",
        "https://identity.example/x",
    ],
)
def test_the_issuer_is_over_https_or_on_this_machine(url: str, tmp_path: Path) -> None:
    assert load_config(tmp_path, "", DT_ISSUER_URL=url).issuer == url


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://identity.example",
            "http://127.0.0.1.example",
            "http://10.0.0.1",
            "http://0.0.0.0",
            "http://localhost.",
        ),
        *("identity.example", "ftp://localhost", "https://", "https:///x", "https://u@identity.example", "file:///etc"),
        *(
            "https://identity.example/?a",
            "https://identity.example/#a",
            "https://identity.example:99999",
            "http://[::1",
        ),
        *("https://\u00e9.example", " https://identity.example", "https://identity.example /x", "HTTPS\n://x"),
    ],
)
def test_any_other_issuer_is_a_problem(url: str, tmp_path: Path) -> None:
    assert load_problems(tmp_path, "", DT_ISSUER_URL=url) == [
        "environment: DT_ISSUER_URL must begin with https://, or with http:// and be on this machine"
    ]


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    settings = load_config(tmp_path, "")
    assert settings.receiver.model_dump() == {
        "host": "0.0.0.0",
        "max_body_bytes": 262144,
        "log_format": "text",
        "plugins": (),
        "deliver": True,
        "legacy_sha1": False,
        "trusted_proxies": None,
        "metrics_token": None,
    }
    assert settings.journal.model_dump() == {
        "path": Path("data/journal.sqlite"),
        "retention_days": 7,
        "min_free_mb": 100,
        "max_size_mb": None,
    }
    assert (settings.port, settings.workers, settings.sinks) == (8000, 2, ())
    assert settings.journal_path == tmp_path / "data" / "journal.sqlite"


@pytest.mark.parametrize(
    ("table", "key", "line"),
    [
        ("receiver", "port", "the port is set by the environment variable PORT"),
        ("receiver", "workers", "the number of intake processes is set by the environment variable WEB_CONCURRENCY"),
        ("receiver", "secret", "the signature secret is set by the environment variable DT_SIGNATURE_SECRET"),
        ("journal", "url", "the URL of a database is set by the environment variable DATABASE_URL"),
    ],
)
def test_what_comes_from_the_environment_is_said_so(table: str, key: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(tmp_path, f"[{table}]\n{key} = 'x'\n")
    assert str(raised.value) == f"config.toml [{table}]: no option '{key}': {line}"


@pytest.mark.parametrize(
    ("annotation", "value", "line"),
    [
        (Annotated[SecretStr, Field(min_length=8)], "short", "give at least 8 characters"),
        (Annotated[SecretStr, Field(max_length=3)], "long", "give at most 3 characters"),
        (Annotated[str, Field(min_length=8)], "short", "give at least 8 characters"),
        (Annotated[list[str], Field(min_length=2)], ["a"], "give at least 2 values"),
        (Annotated[list[str], Field(max_length=1)], ["a", "b"], "give at most 1 value"),
    ],
)
def test_a_value_that_is_too_short_or_too_long_is_named_in_our_words(annotation: Any, value: Any, line: str) -> None:
    model = create_model("model", __base__=Table, key=annotation)
    _, problems = parse(model, "config.toml [receiver]", {"key": value}, frozenset())
    (problem,) = problems
    assert problem.line.endswith(f": {line}")


def test_every_problem_is_reported_at_once_with_its_place_and_the_nearest_right_name(tmp_path: Path) -> None:
    config = """
        [reciever]
        max_body_bytes = 8
        [receiver]
        max_body_byte = 8
        host = 5
        max_body_bytes = 0
        log_format = "xml"
        plugins = 3
        [journal]
        pth = "journal.sqlite"
        retention_days = 0
        max_size_mb = 1.5
        [sinks."two words"]
        type = "csv"
        [sinks.archive]
        concurrency = 65
        batch_size = "many"
        [sinks.archive.filter]
        event_type = ["touch"]
        [sinks.archive.retry]
        max_age = "3 weeks"
        max_atempts = 5
        """
    environ = {SECRET: "", "DATABASE_URL": "postgres://u:p@h/d", "PORT": "http", "WEB_CONCURRENCY": "0"}
    assert load_problems(tmp_path, config, **environ) == [
        "config.toml: no table [reciever] (did you mean 'receiver'?)",
        'config.toml [receiver]: host = 5: give text in quotes, such as "text"',
        "config.toml [receiver]: max_body_bytes = 0: give at least 1024",
        'config.toml [receiver]: log_format: give "text" or "json"',
        'config.toml [receiver]: plugins: give a list of text, such as ["plugins/mine.py"]',
        "config.toml [receiver]: no option 'max_body_byte' (did you mean 'max_body_bytes'?)",
        "config.toml [journal]: retention_days = 0: give at least 1",
        "config.toml [journal]: max_size_mb: give a whole number, such as 5",
        "config.toml [journal]: no option 'pth' (did you mean 'path'?)",
        f"config.toml [sinks.two words]: {NOT_A_SINK}",
        "environment: DT_SIGNATURE_SECRET is not set; "
        "set it to the signature secret of your Data Connector, or set DT_ORGANIZATION_ID",
        "environment: PORT must be a whole number from 1 to 65535",
        "environment: WEB_CONCURRENCY must be a whole number from 1 to 64",
        "config.toml [sinks.archive]: option 'type' is missing",
        "config.toml [sinks.archive]: no option 'filter.event_type' (did you mean 'event_types'?)",
        "config.toml [sinks.archive]: retry.max_age: "
        'give seconds, or a number with a unit such as "30s", "5m", "2h" or "3d"',
        "config.toml [sinks.archive]: no option 'retry.max_atempts' (did you mean 'max_attempts'?)",
        "config.toml [sinks.archive]: concurrency = 65: give at most 64",
        f"config.toml [sinks.archive]: batch_size = 'many': {NOT_AN_INTEGER}",
    ]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("receiver = 1", "config.toml [receiver]: must be a table"),
        ("journal = [1]", "config.toml [journal]: must be a table"),
        ("sinks = true", "config.toml [sinks]: must contain tables such as [sinks.archive]"),
        ("[[sinks.a]]\ntype = 'csv'", f"config.toml [sinks.a]: {NOT_A_SINK}"),
        ("[sinks]\ntype = 'csv'", f"config.toml [sinks.type]: {NOT_A_SINK}"),
        ("[sink.a]\ntype = 'csv'", "config.toml: no table [sink] (did you mean 'sinks'?)"),
        ("wholly_other = 1", "config.toml: no table [wholly_other]"),
        ("[receiver]\nmax_body_bytes = '${N}'", f"config.toml [receiver]: max_body_bytes = '${{N}}': {NOT_AN_INTEGER}"),
        (
            "[receiver]\nmax_body_bytes = nan",
            "config.toml [receiver]: max_body_bytes = nan: give a number, such as 1.5",
        ),
        (
            "[journal]\nretention_days = nan",
            "config.toml [journal]: retention_days = nan: give at least 1",
        ),
        ("[receiver]\ndeliver = 'later'", f"config.toml [receiver]: deliver = 'later': {NOT_A_BOOLEAN}"),
        (
            "[receiver]\nmax_body_bytes = 2026-01-31",
            "config.toml [receiver]: max_body_bytes: give a whole number, such as 5",
        ),
        ("[receiver]\nplugins = ['a.py', 3]", 'config.toml [receiver]: plugins.1: give text in quotes, such as "text"'),
        (
            "[receiver]\nmetrics_token = { evn = 'X' }",
            'config.toml [receiver]: metrics_token: give text in quotes, such as "text" (did you mean { env = … }?)',
        ),
        (
            "[receiver]\nhost = { ENVV = 'X' }",
            'config.toml [receiver]: host: give text in quotes, such as "text" (did you mean { env = … }?)',
        ),
        ("[receiver]\nhost = { name = 'X' }", 'config.toml [receiver]: host: give text in quotes, such as "text"'),
        (
            "[receiver]\nhost = { evn = 'X', b = 1 }",
            'config.toml [receiver]: host: give text in quotes, such as "text"',
        ),
    ],
)
def test_a_table_of_the_wrong_kind_or_a_value_of_the_wrong_type_is_named(
    config: str, expected: str, tmp_path: Path
) -> None:
    assert load_problems(tmp_path, config) == [expected]


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("receiver", "max_body_bytes"),
        ("journal", "retention_days"),
        ("journal", "max_size_mb"),
    ],
)
def test_true_is_not_a_number(table: str, key: str, tmp_path: Path) -> None:
    (line,) = load_problems(tmp_path, f"[{table}]\n{key} = true")
    assert line.startswith(f"config.toml [{table}]: {key}")


FLAGS = [
    ("receiver", "deliver"),
    ("receiver", "legacy_sha1"),
    ("sensors", "enabled"),
    ("sensors", "backfill"),
    ("sinks.a", "enabled"),
    ("sinks.a", "filter.backfilled"),
]
NUMBERS = [
    ("receiver", "max_body_bytes"),
    ("journal", "retention_days"),
    ("journal", "min_free_mb"),
    ("journal", "max_size_mb"),
    ("sensors", "history_days"),
    ("sensors", "silent_after"),
    ("sinks.a", "concurrency"),
    ("sinks.a", "batch_size"),
    ("sinks.a", "retry.max_attempts"),
]
DURATIONS = [
    ("sensors", "settle"),
    ("sinks.a", "retry.max_age"),
    ("sinks.a", "retry.initial_backoff"),
    ("sinks.a", "retry.max_backoff"),
]


def problems_with(folder: Path, table: str, key: str, value: str) -> list[str]:
    """The problems of this value, as lines without the place and the value."""
    type_of_sink = "type = 'csv'\n" if table == "sinks.a" else ""
    config = f"[{table}]\n{type_of_sink}{key} = {value}"
    lines = load_sink(folder, config).problems if type_of_sink else load_problems(folder, config)
    return [line.partition(f"[{table}]: {key}")[2].rpartition(": ")[2] for line in lines]


@pytest.mark.parametrize(("table", "key"), FLAGS)
def test_a_flag_in_quotes_or_a_number_in_its_place_is_a_problem(table: str, key: str, tmp_path: Path) -> None:
    remedies = {
        "'no'": "give false without quotes",
        "'False'": "give false without quotes",
        "'on'": "give true without quotes",
        "'perhaps'": "give true or false",
        "0": "give true or false",
        "1.0": "give true or false",
    }
    found = {value: problems_with(tmp_path, table, key, value) for value in remedies}
    assert found == {value: [remedy] for value, remedy in remedies.items()}


@pytest.mark.parametrize(("table", "key"), NUMBERS)
def test_a_number_in_quotes_is_a_problem(table: str, key: str, tmp_path: Path) -> None:
    assert problems_with(tmp_path, table, key, "'2000'") == ["give a number without quotes"]


@pytest.mark.parametrize(("table", "key"), DURATIONS)
def test_a_duration_in_quotes_needs_a_unit(table: str, key: str, tmp_path: Path) -> None:
    assert problems_with(tmp_path, table, key, "'300'") == [
        'give seconds, or a number with a unit such as "30s", "5m", "2h" or "3d"'
    ]


def test_every_flag_number_and_duration_of_the_receiver_is_tested() -> None:
    tables = {"receiver": ReceiverTable, "journal": JournalTable, "sensors": SensorsTable, "sinks.a": CommonOptions}
    inner = {"filter": Filter, "retry": RetryPolicy}
    found = {
        (table, name)
        for table, model in tables.items()
        for name, field in model.model_fields.items()
        if re.search(r"\b(bool|int|float)\b", str(field.annotation))
    } | {
        ("sinks.a", f"{name}.{key}")
        for name, model in inner.items()
        for key, field in model.model_fields.items()
        if re.search(r"\b(bool|int|float)\b", str(field.annotation))
    }
    assert found == {*FLAGS, *NUMBERS, *DURATIONS}


def test_text_from_the_environment_may_be_a_flag_a_number_or_a_duration(tmp_path: Path) -> None:
    config = """
        [receiver]
        deliver = { env = "NO" }
        max_body_bytes = { env = "NUMBER" }
        [sinks.a]
        type = "csv"
        enabled = { env = "NO" }
        concurrency = { env = "FEW" }
        retry = { max_age = { env = "NUMBER" }, max_backoff = { env = "MINUTES" } }
        """
    settings = load_config(tmp_path, config, NO="no", NUMBER="2000", FEW="2", MINUTES="5m")
    (sink,) = settings.sinks
    assert (settings.receiver.deliver, settings.receiver.max_body_bytes) == (False, 2000)
    assert (sink.problems, sink.common.enabled, sink.common.concurrency) == ((), False, 2)
    assert (sink.common.retry.max_age, sink.common.retry.max_backoff) == (2000.0, 300.0)


@pytest.mark.parametrize(
    ("condition", "example"),
    [
        ("event_types = 'humidity'", "humidity"),
        ("devices = 5", "emucd8v2lh6000000000"),
        ("projects = { a = 1 }", "c8v2lh6000000000000"),
    ],
)
def test_a_problem_with_a_filter_condition_that_is_not_a_list_shows_one(
    condition: str, example: str, tmp_path: Path
) -> None:
    sink = load_sink(tmp_path, f"[sinks.a]\ntype = 'csv'\nfilter.{condition}")
    key = condition.partition(" ")[0]
    assert sink.problems == (f'config.toml [sinks.a]: filter.{key}: give a list of text, such as ["{example}"]',)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ('[journal]\npath = "a\\u0000b"', "config.toml [journal]: path: a path cannot contain the character NUL"),
        (
            '[sensors]\nurl = "sqlite:///a\\u0000b"',
            "config.toml [sensors]: url: a path cannot contain the character NUL",
        ),
    ],
)
def test_a_path_with_a_nul_is_a_problem(config: str, problem: str, tmp_path: Path) -> None:
    assert load_problems(tmp_path, config) == [problem]


def test_a_value_from_the_environment_inside_a_list_is_not_in_a_problem(tmp_path: Path) -> None:
    config = "[receiver]\ntrusted_proxies = ['10.0.0.0/8', { env = 'MARK' }]"
    assert load_problems(tmp_path, config, MARK=FROM_ENVIRONMENT) == [
        "config.toml [receiver]: trusted_proxies: *** is not an address or a network such as 10.0.0.0/8"
    ]


@pytest.mark.parametrize("value", ["1024", "{ env = 'MARK' }"], ids=["in the file", "from the environment"])
def test_the_old_key_max_body_is_a_problem_that_names_the_new_one(value: str, tmp_path: Path) -> None:
    assert load_problems(tmp_path, f"[receiver]\nmax_body = {value}", MARK=FROM_ENVIRONMENT) == [
        "config.toml [receiver]: option 'max_body' is now called 'max_body_bytes'"
    ]


def test_old_keys_of_a_retry_policy_are_problems_of_the_sink_that_name_the_new_ones(tmp_path: Path) -> None:
    sink = load_sink(tmp_path, "[sinks.a]\ntype = 'csv'\nretry = { first_pause = 1, longest_pause = '1h' }")
    assert sink.problems == (
        "config.toml [sinks.a]: option 'retry.first_pause' is now called 'initial_backoff'",
        "config.toml [sinks.a]: option 'retry.longest_pause' is now called 'max_backoff'",
    )


def test_an_old_key_in_another_table_is_unknown(tmp_path: Path) -> None:
    assert load_problems(tmp_path, "[journal]\nfirst_pause = 1024") == [
        "config.toml [journal]: no option 'first_pause'"
    ]


def test_each_problem_is_one_line_whatever_a_key_is_called(tmp_path: Path) -> None:
    config = '"a\\nb" = 1\n[sinks."c\\rd"]\ntype = "csv"\n[receiver]\n"e\\u2028f" = 1'
    assert [len(line.splitlines()) for line in load_problems(tmp_path, config)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[receiver\n", "(at line 1, column 10)"),
        (b"[receiver]\ndeliver = \n", "(at line 2, column 11)"),
        (b"[receiver]\n# caf\xe9\n", "'utf-8' codec can't decode byte 0xe9 in position 16: invalid continuation byte"),
        ("[receiver]\n".encode("utf-16"), "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"\x7fELF\x00", "(at line 1, column 1)"),
        (b"a = " + b"[" * 5000, ""),
        (b"a = " + b"9" * 5000, ""),
    ],
    ids=["open table", "no value", "latin-1", "utf-16", "binary", "nested too deeply", "a number of 5,000 digits"],
)
def test_a_file_that_is_not_toml_is_one_problem(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load({"RECEIVER_CONFIG": str(tmp_path / "config.toml"), SECRET: "a-secret"})
    (line,) = caught.value.problems
    assert line.startswith("config.toml: not valid TOML: ")
    assert expected in line


def test_a_number_with_too_many_digits_to_be_shown_is_a_problem(tmp_path: Path) -> None:
    (line,) = load_problems(tmp_path, f"[receiver]\nmax_body_bytes = 0x{'f' * 4000}")
    assert line.startswith("config.toml [receiver]: max_body_bytes")


def test_an_option_that_is_gone_is_a_problem_that_says_so(tmp_path: Path) -> None:
    assert load_problems(tmp_path, "[receiver]\nthreads = 32\n") == [
        "config.toml [receiver]: no option 'threads': it was removed, since pushes no longer wait in threads; delete it"
    ]


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xef\xbb\xbf[receiver]\r\nmax_body_bytes = 4096\r\n")
    settings = load({"RECEIVER_CONFIG": str(tmp_path / "config.toml"), SECRET: "a-secret"})
    assert settings.receiver.max_body_bytes == 4096


def test_a_missing_file_is_named_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.toml"
    with pytest.raises(ConfigError) as caught:
        load({"RECEIVER_CONFIG": str(path), SECRET: "a-secret"})
    remedy = "start in the folder of your config.toml, or name the file in RECEIVER_CONFIG"
    assert caught.value.problems == (f"{path}: no such file; {remedy}",)


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    folder, file, loop = tmp_path / "folder", tmp_path / "file", tmp_path / "loop"
    folder.mkdir()
    file.touch()
    loop.symlink_to(loop)
    found = {}
    for path in (folder, file / "config.toml", loop):
        with pytest.raises(ConfigError) as caught:
            load({"RECEIVER_CONFIG": str(path), SECRET: "a-secret"})
        found[path] = caught.value.problems
    assert found == {
        folder: (f"{folder}: cannot be read: Is a directory",),
        file / "config.toml": (f"{file}/config.toml: cannot be read: Not a directory",),
        loop: (f"{loop}: cannot be read: Too many levels of symbolic links",),
    }


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("type = csv", 'text needs quotes: type = "…"'),
        ("path = /data/x.csv", 'text needs quotes: path = "…"'),
        ("path = ~/x.csv  # a comment", 'text needs quotes: path = "…"'),
        ("path = info.csv", 'text needs quotes: path = "…"'),
        ("url=https://example.com", 'text needs quotes: url = "…"'),
        ("host = 0.0.0.0", 'text needs quotes: host = "…"'),
        ("max_age = 3d", 'text needs quotes: max_age = "…"'),
        ("type = “csv”", 'text needs quotes: type = "…"'),
        ("columns = [time, value]", 'text needs quotes: columns = ["…"]'),
        ('columns = ["time", value]', 'text needs quotes: columns = ["…"]'),
        ("devices = [3d]", 'text needs quotes: devices = ["…"]'),
        ('devices = [\n  "a",\n  b,\n]', 'text needs quotes: "…"'),
        ("secret = { env = ERP_SECRET }", 'text needs quotes: env = "…"'),
        ("labels = { floor = 3rd }", 'text needs quotes: floor = "…"'),
        ("enabled = False", "give true or false, in small letters and without quotes"),
        ("enabled = yes", "give true or false, in small letters and without quotes"),
        ('path = "data/x.csv', "the quote at the end is missing"),
        ("path =", "the value is missing"),
        ("path = # later", "the value is missing"),
    ],
)
def test_an_error_of_toml_says_where_it_is_and_what_to_write(line: str, remedy: str, tmp_path: Path) -> None:
    (problem,) = load_problems(tmp_path, f"[receiver]\n{line}\n[journal]\n")
    assert re.fullmatch(
        rf"config\.toml: not valid TOML: [A-Z].* \(at line [234], column \d+\): {re.escape(remedy)}", problem
    ), problem


@pytest.mark.parametrize("line", ["a = 1 2", "a = 07", 'a = "b" "c"', 'a = ["b" "c"]', "a: 1", "[a", "a = {b = 1"])
def test_other_errors_of_toml_have_no_remedy(line: str, tmp_path: Path) -> None:
    (problem,) = load_problems(tmp_path, f"[receiver]\n{line}\n")
    assert re.fullmatch(r"config\.toml: not valid TOML: .*\(at line 2, column \d+\)", problem), problem


def test_an_error_of_toml_shows_no_value(tmp_path: Path) -> None:
    (problem,) = load_problems(tmp_path, "[sinks.erp]\nsecret = hunter2\n")
    assert "hunter2" not in problem


def test_without_receiver_config_the_file_is_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text("[receiver]\nmax_body_bytes = 5000")
    monkeypatch.chdir(tmp_path)
    for environ in ({}, {"RECEIVER_CONFIG": ""}):
        settings = load({SECRET: "a-secret", **environ})
        assert (settings.path, settings.receiver.max_body_bytes) == (tmp_path / "config.toml", 5000)


def test_a_value_may_come_from_the_environment_anywhere_in_a_table(tmp_path: Path) -> None:
    config = """
        [receiver]
        max_body_bytes = { env = "LIMIT" }
        plugins = ["a.py", { env = "PLUGIN" }]
        [journal]
        path = { env = "JOURNAL" }
        [sinks.erp]
        type = "webhook"
        url = { env = "URL" }
        secret = [{ env = "NEW" }, { env = "OLD" }]
        headers = { Authorization = { env = "TOKEN" }, Accept = "*/*", Empty = { env = "EMPTY" } }
        both = { env = "URL", default = "x" }
        """
    environ = {
        "LIMIT": "8000",
        "PLUGIN": "b.py",
        "JOURNAL": "/var/lib/j.sqlite",
        "URL": "https://example.com",
        "NEW": "new-key",
        "OLD": "old-key",
        "TOKEN": "Bearer t",
        "EMPTY": "",
    }
    settings = load_config(tmp_path, config, **environ)
    assert (settings.receiver.max_body_bytes, settings.receiver.plugins) == (8000, ("a.py", "b.py"))
    assert settings.journal_path == Path("/var/lib/j.sqlite")
    (sink,) = settings.sinks
    assert sink.options == {
        "url": "https://example.com",
        "secret": ["new-key", "old-key"],
        "headers": {"Authorization": "Bearer t", "Accept": "*/*", "Empty": ""},
        "both": {"env": "URL", "default": "x"},
    }
    assert (sink.from_environment, sink.problems) == (frozenset(["url", "secret", "headers"]), ())


def test_the_receivers_own_keys_of_a_sink_may_come_from_the_environment_too(tmp_path: Path) -> None:
    config = """
        [sinks.a]
        type = { env = "TYPE" }
        enabled = { env = "ENABLED" }
        concurrency = { env = "N" }
        retry = { max_age = { env = "AGE" } }
        """
    sink = load_sink(tmp_path, config, TYPE="csv", ENABLED="true", N="4", AGE="2h")
    assert sink.problems == ()
    assert sink.common == CommonOptions(type="csv", concurrency=4, retry=RetryPolicy(max_age=7200.0))


def test_every_unset_variable_is_named_with_its_key(tmp_path: Path) -> None:
    config = """
        [sinks.erp]
        type = "webhook"
        url = { env = "URL" }
        secret = [{ env = "NEW" }, "old"]
        headers = { Authorization = { env = "TOKEN" } }
        deep = [[{ a = { env = "DEEP" } }]]
        """
    sink = load_sink(tmp_path, config)
    assert sink.problems == (
        "config.toml [sinks.erp]: url: the environment variable URL is not set",
        "config.toml [sinks.erp]: secret: the environment variable NEW is not set",
        "config.toml [sinks.erp]: headers.Authorization: the environment variable TOKEN is not set",
        "config.toml [sinks.erp]: deep.a: the environment variable DEEP is not set",
    )
    assert sink.common.enabled


def test_an_unset_variable_causes_one_problem_and_no_further_one(tmp_path: Path) -> None:
    config = "[receiver]\nhost = { env = 'HOST' }\nplugins = ['a.py', { env = 'PLUGIN' }]"
    assert load_problems(tmp_path, config) == [
        "config.toml [receiver]: host: the environment variable HOST is not set",
        "config.toml [receiver]: plugins: the environment variable PLUGIN is not set",
    ]


def test_a_variable_in_a_filter_is_a_problem_that_says_it_is_not_supported(tmp_path: Path) -> None:
    sink = load_sink(tmp_path, "[sinks.a]\ntype = 'csv'\nfilter = { event_types = { env = 'TYPES' } }")
    assert sink.problems == (
        "config.toml [sinks.a]: filter.event_types: "
        'give a list of text, such as ["humidity"] ({ env = … } is not supported here)',
    )


def test_nothing_is_looked_up_in_a_filter(tmp_path: Path) -> None:
    sink = load_sink(tmp_path, "[sinks.a]\ntype = 'csv'\n[sinks.a.filter]\nlabels = { env = 'NOT_SET' }")
    assert (sink.common.filter.labels, sink.from_environment, sink.problems) == ({"env": "NOT_SET"}, frozenset(), ())


def test_nothing_is_looked_up_in_a_disabled_sink(tmp_path: Path) -> None:
    settings = load_config(tmp_path, "[sinks.a]\ntype = 'webhook'\nenabled = false\nurl = { env = 'NOT_SET' }")
    (sink,) = settings.sinks
    assert (sink.options, sink.from_environment, sink.problems) == ({"url": {"env": "NOT_SET"}}, frozenset(), ())
    assert [sink.name for sink in settings.enabled_sinks] == [SENSORS]


@pytest.mark.parametrize(
    "config",
    [
        "[receiver]\nhost = 5\nmax_body_bytes = { env = 'MARK' }",
        "[receiver]\nlog_format = { env = 'MARK' }\nmax_body_bytes = { env = 'MARK' }\ndeliver = { env = 'MARK' }",
        "[receiver]\nplugins = { a = { env = 'MARK' } }",
        "[receiver]\nplugins = [5, { env = 'MARK' }]",
        "[receiver]\nhost = [{ env = 'MARK' }]",
        "[receiver]\nhots = { env = 'MARK' }",
        "[journal]\nretention_days = { env = 'MARK' }\nmin_free_mb = [{ env = 'MARK' }]",
        f"[receiver]\nsecret = '{OF_UNKNOWN_KEY}'",
        f"[receiver]\n'thread.s' = {{ a = ['{OF_UNKNOWN_KEY}'] }}",
        f"[jurnal]\nurl = '{OF_UNKNOWN_KEY}'",
        f"password = '{OF_UNKNOWN_KEY}'",
        f"[sinks]\npassword = '{OF_UNKNOWN_KEY}'",
        f"[receiver]\nhost = 5\n[sinks.a]\ntype = 'csv'\nconcurrency = 0\npasword = '{OF_UNKNOWN_KEY}'",
        f"[receiver]\nhost = 5\n[sinks.a]\ntype = 'csv'\nretry = {{ maxage = '{OF_UNKNOWN_KEY}' }}",
        f"[receiver]\nhost = 5\n[sinks.a]\ntype = 'csv'\nfilter = {{ x = {{ y = '{OF_UNKNOWN_KEY}' }} }}",
    ],
)
def test_no_problem_shows_a_value_from_the_environment_or_of_an_unknown_key(config: str, tmp_path: Path) -> None:
    shown = "\n".join(load_problems(tmp_path, config, MARK=FROM_ENVIRONMENT, PORT=FROM_ENVIRONMENT))
    assert FROM_ENVIRONMENT not in shown
    assert OF_UNKNOWN_KEY not in shown


@pytest.mark.parametrize(
    ("table", "common", "problems"),
    [
        (
            "type = 'csv'\nconcurrency = 'two'\nbatch_size = 5",
            CommonOptions(type="csv", batch_size=5),
            [f"concurrency = 'two': {NOT_AN_INTEGER}"],
        ),
        ("batch_size = 5", CommonOptions(type="", batch_size=5), ["option 'type' is missing"]),
        (
            "type = 3\nconcurrency = 2",
            CommonOptions(type="", concurrency=2),
            ['type = 3: give text in quotes, such as "text"'],
        ),
        (
            "type = 'csv'\nenabled = 'maybe'",
            CommonOptions(type="csv", enabled=True),
            [f"enabled = 'maybe': {NOT_A_BOOLEAN}"],
        ),
        (
            "type = 'csv'\nfilter = 3\nretry = { max_attempts = 2 }",
            CommonOptions(type="csv", retry=RetryPolicy(max_attempts=2)),
            ['filter: give a table, such as { name = "value" }'],
        ),
        (
            "type = 'csv'\nretry = { initial_backoff = 0 }\nfilter = { labels = { floor = '2' } }",
            CommonOptions(type="csv", filter=Filter(labels={"floor": "2"})),
            ["retry.initial_backoff: give more than 0"],
        ),
        (
            "type = 'csv'\nfilter = { labels = { floor = 2 }, backfild = true }",
            CommonOptions(type="csv"),
            [
                'filter.labels.floor: give text in quotes, such as "text"',
                "no option 'filter.backfild' (did you mean 'backfilled'?)",
            ],
        ),
    ],
    ids=["concurrency", "no type", "type", "enabled", "filter", "retry", "inside the filter"],
)
def test_an_invalid_sink_stays_enabled_with_its_problems_and_its_valid_keys(
    table: str, common: CommonOptions, problems: list[str], tmp_path: Path
) -> None:
    settings = load_config(tmp_path, f"[sinks.good]\ntype = 'stdout'\n[sinks.bad]\n{table}")
    good, bad = settings.sinks
    assert (bad.common, list(bad.problems)) == (common, [f"config.toml [sinks.bad]: {problem}" for problem in problems])
    assert settings.enabled_sinks[:-1] == (good, bad)
    assert good == SinkSettings("good", CommonOptions(type="stdout"))


@pytest.mark.parametrize("given", ["0", "0.0", "-1", "'0s'", "nan"])
def test_a_duration_is_more_than_zero(given: str, tmp_path: Path) -> None:
    sink = load_sink(tmp_path, f"[sinks.a]\ntype = 'csv'\nretry = {{ max_backoff = {given} }}")
    assert sink.problems == ("config.toml [sinks.a]: retry.max_backoff: give more than 0",)


@pytest.mark.parametrize(
    "given", ["inf", "1e300", "3153600001", "'36501d'", f"'{'9' * 400}d'"], ids=lambda text: text[:9]
)
def test_a_duration_is_at_most_a_hundred_years_as_its_end_must_be_a_date(given: str, tmp_path: Path) -> None:
    sink = load_sink(tmp_path, f"[sinks.a]\ntype = 'csv'\nretry = {{ max_backoff = {given} }}")
    assert [problem.rpartition(": ")[2] for problem in sink.problems] == ['give at most "36500d"']
    assert not load_sink(tmp_path, "[sinks.a]\ntype = 'csv'\nretry = { max_backoff = '36500d' }").problems


@pytest.mark.parametrize(
    ("environ", "port", "workers"),
    [
        ({"PORT": "1", "WEB_CONCURRENCY": "1"}, 1, 1),
        ({"PORT": "65535", "WEB_CONCURRENCY": "64"}, 65535, 64),
        ({"PORT": "", "WEB_CONCURRENCY": ""}, 8000, 2),
    ],
)
def test_port_and_web_concurrency_are_read(environ: dict[str, str], port: int, workers: int, tmp_path: Path) -> None:
    settings = load_config(tmp_path, "", **environ)
    assert (settings.port, settings.workers) == (port, workers)


@pytest.mark.parametrize(
    "text", ["0", "65536", "-1", "+1", "8000 ", "8_000", "0x50", "8000.0", "٣", "²", "x", "9" * 5000]
)
def test_an_invalid_port_is_a_problem_that_does_not_show_it(text: str, tmp_path: Path) -> None:
    assert load_problems(tmp_path, "", PORT=text) == ["environment: PORT must be a whole number from 1 to 65535"]


@pytest.mark.parametrize("environ", [{}, {SECRET: ""}, {f"{SECRET}__OLD": "old"}])
def test_receiving_requires_a_secret_and_delivering_does_not(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    environ = {"RECEIVER_CONFIG": str(tmp_path / "config.toml"), **environ}
    with pytest.raises(ConfigError) as caught:
        load(environ)
    assert caught.value.problems == (
        "environment: DT_SIGNATURE_SECRET is not set; "
        "set it to the signature secret of your Data Connector, or set DT_ORGANIZATION_ID",
    )
    assert SECRET not in load(environ, secret_required=False).secrets


def test_a_secret_that_is_not_utf_8_is_a_problem_that_does_not_show_it(tmp_path: Path) -> None:
    assert load_problems(tmp_path, "", **{SECRET: os.fsdecode(b"\xff\xfe-not-utf-8")}) == [
        f"environment: {SECRET} is not UTF-8; set it to a signature secret as DT shows it"
    ]


def test_secret_values_are_all_secrets_and_all_values_from_the_environment(tmp_path: Path) -> None:
    config = """
        [receiver]
        metrics_token = "token-of-the-metrics"
        [sinks.a]
        type = "webhook"
        url = { env = "URL" }
        headers = { x = [{ env = "TOKEN" }], y = "in the file" }
        """
    environ = {f"{SECRET}__OLD": "old-secret", "URL": "https://hook", "TOKEN": "a-token", "OTHER": "not read"}
    environ |= {"DT_SERVICE_ACCOUNT_KEY_ID": "key-id", "DT_SERVICE_ACCOUNT_SECRET": "secret of a key"}
    settings = load_config(tmp_path, config, DATABASE_URL="postgres://u:p@h/d", **environ)
    assert settings.secret_values == {
        "a-secret",
        "old-secret",
        "https://hook",
        "a-token",
        "token-of-the-metrics",
        "postgres://u:p@h/d",
        "key-id",
        "secret of a key",
    }


def test_the_service_account_is_read_from_variables_or_files_and_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret of a key\n")
    environ = {
        "DT_SERVICE_ACCOUNT_KEY_ID": "key-id",
        "DT_SERVICE_ACCOUNT_SECRET_FILE": str(tmp_path / "secret"),
        "DT_SERVICE_ACCOUNT_EMAIL": "account@example.com",
    }
    api = load_config(tmp_path, "", **environ).api
    assert (api.key_id, api.secret, api.email, api.missing) == ("key-id", "secret of a key", "account@example.com", [])
    assert api.url == "https://api.disruptive-technologies.com/v2"
    assert not [value for value in ("key-id", "secret of a key") if value in repr(api)]
    assert load_config(tmp_path, "").api.missing == [
        "DT_SERVICE_ACCOUNT_KEY_ID",
        "DT_SERVICE_ACCOUNT_SECRET",
        "DT_SERVICE_ACCOUNT_EMAIL",
    ]
    both = {**environ, "DT_SERVICE_ACCOUNT_SECRET": "another"}
    assert load_problems(tmp_path, "", **both) == [
        "environment: DT_SERVICE_ACCOUNT_SECRET and DT_SERVICE_ACCOUNT_SECRET_FILE are both set; unset one of them"
    ]


@pytest.mark.parametrize("name", ["DT_API_URL", "DT_TOKEN_URL", "DT_ISSUER_URL"])
def test_an_address_of_dt_must_be_https_or_on_this_machine(tmp_path: Path, name: str) -> None:
    for url in ("http://api.example/", "ftp://api.example/", "https://user@api.example/", "https://api.example/?a=b"):
        assert load_problems(tmp_path, "", **{name: url}) == [
            f"environment: {name} must begin with https://, or with http:// and be on this machine"
        ]
    assert load_config(tmp_path, "", **{name: "http://127.0.0.1:1/v2"})
    assert load_config(tmp_path, "", **{name: "https://api.example/v2"})


def test_the_metrics_token_is_not_shown(tmp_path: Path) -> None:
    settings = load_config(tmp_path, "[receiver]\nmetrics_token = 'token-of-the-metrics'")
    assert "token-of-the-metrics" not in repr(settings)
    assert load_problems(tmp_path, "[receiver]\nmetrics_token = 12345678") == [
        'config.toml [receiver]: metrics_token: give text in quotes, such as "text"'
    ]


def test_no_repr_shows_a_secret(tmp_path: Path) -> None:
    config = "[sinks.a]\ntype = 'webhook'\nurl = { env = 'URL' }\npassword = 'in the file'"
    shown = repr(load_config(tmp_path, config, URL=FROM_ENVIRONMENT))
    assert [secret for secret in ("a-secret", FROM_ENVIRONMENT, "in the file") if secret in shown] == []


def event_with(**changes: object) -> Event:
    payload: dict[str, Any] = {
        "event": {"eventId": "e1", "eventType": "temperature", "data": {"temperature": {"value": 1}}},
        "labels": {"site": "oslo", "floor": "2"},
        "metadata": {"deviceId": "d1", "projectId": "p1"},
        **changes,
    }
    return Event.from_body(json.dumps(payload).encode(), datetime(2026, 1, 31, tzinfo=UTC))


BACKFILLED = {"eventId": "e1", "eventType": "temperature", "data": {"temperature": {"value": 1, "isBackfilled": True}}}


@pytest.mark.parametrize(
    ("conditions", "event", "misses"),
    [
        ({}, event_with(), []),
        ({"event_types": ["touch", "temperature"]}, event_with(), []),
        ({"event_types": ["touch"]}, event_with(), ["event_types"]),
        ({"event_types": []}, event_with(), ["event_types"]),
        ({"devices": ["d1"]}, event_with(), []),
        ({"devices": ["d2"]}, event_with(), ["devices"]),
        ({"devices": ["d1"]}, event_with(metadata=None), ["devices"]),
        ({"projects": ["p2", "p1"]}, event_with(), []),
        ({"projects": ["p2"]}, event_with(), ["projects"]),
        ({"labels": {"site": "oslo"}}, event_with(), []),
        ({"labels": {"site": "oslo", "floor": "2"}}, event_with(), []),
        ({"labels": {"site": "oslo", "floor": "3"}}, event_with(), ["labels"]),
        ({"labels": {"room": "1"}}, event_with(), ["labels"]),
        ({"labels": {"site": "oslo"}}, event_with(labels=None), ["labels"]),
        ({"backfilled": True}, event_with(), ["backfilled"]),
        ({"backfilled": False}, event_with(), []),
        ({"backfilled": True}, event_with(event=BACKFILLED), []),
        ({"backfilled": False}, event_with(event=BACKFILLED), ["backfilled"]),
        (
            {"event_types": ["co2"], "devices": ["d2"], "projects": [], "labels": {"a": "b"}, "backfilled": True},
            event_with(),
            ["event_types", "devices", "projects", "labels", "backfilled"],
        ),
        ({"event_types": ["temperature"], "devices": ["d2"]}, event_with(), ["devices"]),
    ],
)
def test_a_filter_names_each_condition_that_an_event_misses(
    conditions: dict[str, object], event: Event, misses: list[str]
) -> None:
    assert Filter.model_validate(conditions).misses(event) == misses


KEYS = st.sampled_from(
    [
        *(
            "host",
            "max_body_bytes",
            "max_body_bytes",
            "log_format",
            "plugins",
            "deliver",
            "path",
            "retention_days",
            "max_size_mb",
        ),
        *("type", "enabled", "filter", "retry", "concurrency", "batch_size", "event_types", "labels", "backfilled"),
        *("max_age", "max_attempts", "initial_backoff", "first_pause", "url", "env"),
    ]
)
SCALARS: st.SearchStrategy[Any] = (
    st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["csv", "3d", "5m", "text", "true"])
    | st.sampled_from(["SET", "NOT_SET"]).map(lambda name: {"env": name})
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))
UNKNOWN = st.dictionaries(st.sampled_from(["thread", "x.y", "pasword", ""]), st.just(OF_UNKNOWN_KEY), max_size=2)
TABLES = st.builds(lambda known, unknown: known | unknown, st.dictionaries(KEYS, VALUES, max_size=6), UNKNOWN)
SINKS = st.dictionaries(st.sampled_from(["a", "b-1", "", "two words"]), TABLES | VALUES, max_size=3)
DOCUMENTS = st.fixed_dictionaries(
    {}, optional={"receiver": TABLES | VALUES, "journal": TABLES, "sinks": SINKS | VALUES, "sink": UNKNOWN}
)


def toml(value: object) -> str:
    """A value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(character):08x}" for character in value) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + "}"
    return repr(value)


def outcome(document: str) -> Settings | tuple[str, ...]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return load_config(Path(folder), document, SET=FROM_ENVIRONMENT)
        except ConfigError as error:
            return error.problems


@settings(deadline=None)
@given(DOCUMENTS)
def test_any_document_gives_settings_or_problems_that_show_no_hidden_value(document: dict[str, object]) -> None:
    result = outcome("\n".join(f"{key} = {toml(value)}" for key, value in document.items()))
    lines = [line for sink in result.sinks for line in sink.problems] if isinstance(result, Settings) else result
    assert all(line.startswith(("config.toml", "environment")) for line in lines)
    assert [line for line in lines if FROM_ENVIRONMENT in line or OF_UNKNOWN_KEY in line] == []
    assert isinstance(result, Settings) or result


@settings(deadline=None)
@given(st.text(st.sampled_from("[]{}=.,\"'\n\\#-+_0123456789abenrtux:TZ "), max_size=60) | st.text(max_size=40))
def test_any_text_gives_settings_or_problems(text: str) -> None:
    result = outcome(text)
    assert isinstance(result, Settings) or result


# The registry of sensors


def test_the_registry_has_a_sink_of_its_own_unless_it_is_disabled(tmp_path: Path) -> None:
    archive = "[sinks.archive]\ntype = 'csv'\n"
    enabled = load_config(tmp_path, archive).enabled_sinks
    assert enabled[1:] == (SinkSettings("sensors", CommonOptions(type="sensors")),)
    disabled = load_config(tmp_path, f"[sensors]\nenabled = false\n{archive}")
    assert [sink.name for sink in disabled.enabled_sinks] == ["archive"]


def test_no_sink_can_have_the_name_of_the_registry(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(tmp_path, "[sinks.sensors]\ntype = 'csv'\n")
    assert raised.value.problems == (
        "config.toml [sinks.sensors]: this name is that of the receiver's own sink; rename the table, or set up the "
        "registry of sensors in [sensors]",
    )


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("url = 'mysql://h/n'", "url: it must begin with sqlite:/// or postgresql://"),
        ("silent_after = 1", "silent_after = 1: give at least 2"),
        ("history_days = 1", "history_days = 1: give at least 8"),
        ("settle = 0", "settle = 0: give more than 0"),
        ("histori_days = 9", "no option 'histori_days' (did you mean 'history_days'?)"),
    ],
)
def test_a_problem_in_the_table_of_the_registry_is_named(tmp_path: Path, line: str, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(tmp_path, f"[sensors]\n{line}\n")
    assert raised.value.problems == (f"config.toml [sensors]: {problem}",)


def test_the_address_of_the_registry_is_a_secret(tmp_path: Path) -> None:
    url = "postgresql://u:very-secret@h/n"
    settings = load_config(tmp_path, f"[sensors]\nurl = '{url}'\n")
    assert url in settings.secret_values
    assert "very-secret" not in repr(settings)
