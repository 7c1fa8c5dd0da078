"""config.toml and the environment: what is read from them, and the exact line for each thing that is wrong."""

from __future__ import annotations

import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receiver.errors import ConfigError
from receiver.event import Event
from receiver.options import nearest, seconds
from receiver.settings import SECRET, CommonOptions, Filter, RetryPolicy, Settings, SinkSettings, load

FROM_ENVIRONMENT = "value-from-the-environment"
OF_UNKNOWN_KEY = "value-of-an-unknown-key"
NO_INTEGER = "Input should be a valid integer, unable to parse string as an integer"
NO_BOOLEAN = "Input should be a valid boolean, unable to interpret input"
NO_SINK = "must be a table named with 1 to 64 letters, digits, '_' or '-'"


def loaded(folder: Path, config: str, **environ: str) -> Settings:
    """The settings of a config.toml in `folder`; an empty DT_SIGNATURE_SECRET in `environ` unsets it."""
    (folder / "config.toml").write_text(config, encoding="utf-8")
    return load({"RECEIVER_CONFIG": str(folder / "config.toml"), SECRET: "a-secret", **environ})


def problems(folder: Path, config: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, config, **environ)
    return list(caught.value.problems)


def the_sink(folder: Path, config: str, **environ: str) -> SinkSettings:
    (sink,) = loaded(folder, config, **environ).sinks
    return sink


def test_an_empty_file_gives_the_defaults_that_config_toml_names(tmp_path: Path) -> None:
    settings = loaded(tmp_path, "")
    assert settings.receiver.model_dump() == {
        "host": "0.0.0.0",
        "threads": 32,
        "max_body": 262144,
        "log_format": "text",
        "plugins": (),
        "deliver": True,
        "legacy_sha1": False,
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


def test_every_problem_is_reported_at_once_with_its_place_and_the_nearest_right_name(tmp_path: Path) -> None:
    config = """
        [reciever]
        threads = 8
        [receiver]
        thread = 8
        host = 5
        threads = 0
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
    assert problems(tmp_path, config, **environ) == [
        "config.toml: no table [reciever] (did you mean 'receiver'?)",
        "config.toml [receiver]: host = 5: Input should be a valid string",
        "config.toml [receiver]: threads = 0: Input should be greater than or equal to 1",
        "config.toml [receiver]: log_format: Input should be 'text' or 'json'",
        'config.toml [receiver]: plugins: give a list of text, such as ["plugins/mine.py"]',
        "config.toml [receiver]: no option 'thread' (did you mean 'threads'?)",
        "config.toml [journal]: retention_days = 0: Input should be greater than or equal to 1",
        "config.toml [journal]: max_size_mb: Input should be a valid integer, got a number with a fractional part",
        "config.toml [journal]: no option 'pth' (did you mean 'path'?)",
        f"config.toml [sinks.two words]: {NO_SINK}",
        "environment: DT_SIGNATURE_SECRET is not set; set it to the signature secret of your Data Connector",
        "environment: PORT must be a whole number from 1 to 65535",
        "environment: WEB_CONCURRENCY must be a whole number from 1 to 64",
        "config.toml [sinks.archive]: option 'type' is missing",
        "config.toml [sinks.archive]: no option 'filter.event_type' (did you mean 'event_types'?)",
        "config.toml [sinks.archive]: retry.max_age: "
        'give seconds, or a number with a unit such as "30s", "5m", "2h" or "3d"',
        "config.toml [sinks.archive]: no option 'retry.max_atempts' (did you mean 'max_attempts'?)",
        "config.toml [sinks.archive]: concurrency = 65: Input should be less than or equal to 64",
        f"config.toml [sinks.archive]: batch_size = 'many': {NO_INTEGER}",
    ]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("receiver = 1", "config.toml [receiver]: must be a table"),
        ("journal = [1]", "config.toml [journal]: must be a table"),
        ("sinks = true", "config.toml [sinks]: must hold tables such as [sinks.archive]"),
        ("[[sinks.a]]\ntype = 'csv'", f"config.toml [sinks.a]: {NO_SINK}"),
        ("[sinks]\ntype = 'csv'", f"config.toml [sinks.type]: {NO_SINK}"),
        ("[sink.a]\ntype = 'csv'", "config.toml: no table [sink] (did you mean 'sinks'?)"),
        ("wholly_other = 1", "config.toml: no table [wholly_other]"),
        ("[receiver]\nthreads = '${N}'", f"config.toml [receiver]: threads = '${{N}}': {NO_INTEGER}"),
        ("[receiver]\nthreads = nan", "config.toml [receiver]: threads = nan: Input should be a finite number"),
        (
            "[journal]\nretention_days = nan",
            "config.toml [journal]: retention_days = nan: Input should be greater than or equal to 1",
        ),
        ("[receiver]\ndeliver = 'later'", f"config.toml [receiver]: deliver = 'later': {NO_BOOLEAN}"),
        ("[receiver]\nthreads = 2026-01-31", "config.toml [receiver]: threads: Input should be a valid integer"),
        ("[receiver]\nplugins = ['a.py', 3]", "config.toml [receiver]: plugins.1: Input should be a valid string"),
        (
            "[receiver]\nmetrics_token = { evn = 'X' }",
            "config.toml [receiver]: metrics_token: Input should be a valid string (did you mean { env = … }?)",
        ),
        (
            "[receiver]\nhost = { ENVV = 'X' }",
            "config.toml [receiver]: host: Input should be a valid string (did you mean { env = … }?)",
        ),
        ("[receiver]\nhost = { name = 'X' }", "config.toml [receiver]: host: Input should be a valid string"),
        ("[receiver]\nhost = { evn = 'X', b = 1 }", "config.toml [receiver]: host: Input should be a valid string"),
    ],
)
def test_a_table_of_the_wrong_kind_or_a_value_of_the_wrong_type_is_named(
    config: str, expected: str, tmp_path: Path
) -> None:
    assert problems(tmp_path, config) == [expected]


@pytest.mark.parametrize(
    ("table", "key"),
    [("receiver", "threads"), ("receiver", "max_body"), ("journal", "retention_days"), ("journal", "max_size_mb")],
)
def test_true_is_no_number(table: str, key: str, tmp_path: Path) -> None:
    (line,) = problems(tmp_path, f"[{table}]\n{key} = true")
    assert line.startswith(f"config.toml [{table}]: {key}")


@pytest.mark.parametrize(
    ("condition", "example"),
    [
        ("event_types = 'humidity'", "humidity"),
        ("devices = 5", "emucd8v2lh6000000000"),
        ("projects = { a = 1 }", "c8v2lh6000000000000"),
    ],
)
def test_a_condition_of_a_filter_that_is_no_list_is_told_what_one_looks_like(
    condition: str, example: str, tmp_path: Path
) -> None:
    sink = the_sink(tmp_path, f"[sinks.a]\ntype = 'csv'\nfilter.{condition}")
    key = condition.partition(" ")[0]
    assert sink.faults == (f'config.toml [sinks.a]: filter.{key}: give a list of text, such as ["{example}"]',)


def test_true_is_no_length_of_time(tmp_path: Path) -> None:
    sink = the_sink(tmp_path, "[sinks.a]\ntype = 'csv'\nretry = { max_age = true }")
    assert [fault.partition("retry.max_age")[0] for fault in sink.faults] == ["config.toml [sinks.a]: "]


def test_each_problem_is_one_line_whatever_a_key_is_called(tmp_path: Path) -> None:
    config = '"a\\nb" = 1\n[sinks."c\\rd"]\ntype = "csv"\n[receiver]\n"e\\u2028f" = 1'
    assert [len(line.splitlines()) for line in problems(tmp_path, config)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[receiver\n", "(at line 1, column 10)"),
        (b"[receiver]\nthreads = \n", "(at line 2, column 11)"),
        (b"[receiver]\n# caf\xe9\n", "'utf-8' codec can't decode byte 0xe9 in position 16: invalid continuation byte"),
        ("[receiver]\n".encode("utf-16"), "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"\x7fELF\x00", "(at line 1, column 1)"),
        (b"a = " + b"[" * 5000, ""),
        (b"a = " + b"9" * 5000, ""),
    ],
    ids=["open table", "no value", "latin-1", "utf-16", "binary", "nested too deeply", "a number of 5,000 digits"],
)
def test_a_file_that_is_not_toml_is_one_line(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load({"RECEIVER_CONFIG": str(tmp_path / "config.toml"), SECRET: "a-secret"})
    (line,) = caught.value.problems
    assert line.startswith("config.toml: not valid TOML: ")
    assert expected in line


def test_a_number_too_long_to_be_written_is_a_problem_like_any_other(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, f"[receiver]\nthreads = 0x{'f' * 4000}")
    assert line.startswith("config.toml [receiver]: threads")


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xef\xbb\xbf[receiver]\r\nthreads = 4\r\n")
    settings = load({"RECEIVER_CONFIG": str(tmp_path / "config.toml"), SECRET: "a-secret"})
    assert settings.receiver.threads == 4


def test_a_file_that_is_not_there_is_named_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.toml"
    with pytest.raises(ConfigError) as caught:
        load({"RECEIVER_CONFIG": str(path), SECRET: "a-secret"})
    remedy = "start in the folder of your config.toml, or name the file in RECEIVER_CONFIG"
    assert caught.value.problems == (f"{path}: no such file; {remedy}",)


def test_what_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    folder, file, loop = tmp_path / "folder", tmp_path / "file", tmp_path / "loop"
    folder.mkdir()
    file.touch()
    loop.symlink_to(loop)
    said = {}
    for path in (folder, file / "config.toml", loop):
        with pytest.raises(ConfigError) as caught:
            load({"RECEIVER_CONFIG": str(path), SECRET: "a-secret"})
        said[path] = caught.value.problems
    assert said == {
        folder: (f"{folder}: cannot be read: Is a directory",),
        file / "config.toml": (f"{file}/config.toml: cannot be read: Not a directory",),
        loop: (f"{loop}: cannot be read: Too many levels of symbolic links",),
    }


def test_without_receiver_config_the_file_is_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text("[receiver]\nthreads = 5")
    monkeypatch.chdir(tmp_path)
    for environ in ({}, {"RECEIVER_CONFIG": ""}):
        settings = load({SECRET: "a-secret", **environ})
        assert (settings.path, settings.receiver.threads) == (tmp_path / "config.toml", 5)


def test_a_value_may_come_from_the_environment_anywhere_in_a_table(tmp_path: Path) -> None:
    config = """
        [receiver]
        threads = { env = "THREADS" }
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
        "THREADS": "8",
        "PLUGIN": "b.py",
        "JOURNAL": "/var/lib/j.sqlite",
        "URL": "https://example.com",
        "NEW": "new-key",
        "OLD": "old-key",
        "TOKEN": "Bearer t",
        "EMPTY": "",
    }
    settings = loaded(tmp_path, config, **environ)
    assert (settings.receiver.threads, settings.receiver.plugins) == (8, ("a.py", "b.py"))
    assert settings.journal_path == Path("/var/lib/j.sqlite")
    (sink,) = settings.sinks
    assert sink.options == {
        "url": "https://example.com",
        "secret": ["new-key", "old-key"],
        "headers": {"Authorization": "Bearer t", "Accept": "*/*", "Empty": ""},
        "both": {"env": "URL", "default": "x"},
    }
    assert (sink.from_environment, sink.faults) == ({"url", "secret", "headers"}, ())


def test_the_receivers_own_keys_of_a_sink_may_come_from_the_environment_too(tmp_path: Path) -> None:
    config = """
        [sinks.a]
        type = { env = "TYPE" }
        enabled = { env = "ENABLED" }
        concurrency = { env = "N" }
        retry = { max_age = { env = "AGE" } }
        """
    sink = the_sink(tmp_path, config, TYPE="csv", ENABLED="true", N="4", AGE="2h")
    assert sink.faults == ()
    assert sink.common == CommonOptions(type="csv", concurrency=4, retry=RetryPolicy(max_age=7200.0))


def test_every_missing_variable_is_named_with_its_key(tmp_path: Path) -> None:
    config = """
        [sinks.erp]
        type = "webhook"
        url = { env = "URL" }
        secret = [{ env = "NEW" }, "old"]
        headers = { Authorization = { env = "TOKEN" } }
        deep = [[{ a = { env = "DEEP" } }]]
        """
    sink = the_sink(tmp_path, config)
    assert sink.faults == (
        "config.toml [sinks.erp]: url: the environment variable URL is not set",
        "config.toml [sinks.erp]: secret: the environment variable NEW is not set",
        "config.toml [sinks.erp]: headers.Authorization: the environment variable TOKEN is not set",
        "config.toml [sinks.erp]: deep.a: the environment variable DEEP is not set",
    )
    assert sink.common.enabled


def test_a_missing_variable_is_one_problem_and_no_second_one_follows_from_it(tmp_path: Path) -> None:
    config = "[receiver]\nhost = { env = 'HOST' }\nplugins = ['a.py', { env = 'PLUGIN' }]"
    assert problems(tmp_path, config) == [
        "config.toml [receiver]: host: the environment variable HOST is not set",
        "config.toml [receiver]: plugins: the environment variable PLUGIN is not set",
    ]


def test_a_variable_in_a_filter_is_said_to_be_none(tmp_path: Path) -> None:
    sink = the_sink(tmp_path, "[sinks.a]\ntype = 'csv'\nfilter = { event_types = { env = 'TYPES' } }")
    assert sink.faults == (
        "config.toml [sinks.a]: filter.event_types: "
        'give a list of text, such as ["humidity"] ({ env = … } is not read here)',
    )


def test_nothing_is_looked_up_in_a_filter(tmp_path: Path) -> None:
    sink = the_sink(tmp_path, "[sinks.a]\ntype = 'csv'\n[sinks.a.filter]\nlabels = { env = 'NOT_SET' }")
    assert (sink.common.filter.labels, sink.from_environment, sink.faults) == ({"env": "NOT_SET"}, frozenset(), ())


def test_nothing_is_looked_up_in_a_disabled_sink(tmp_path: Path) -> None:
    settings = loaded(tmp_path, "[sinks.a]\ntype = 'webhook'\nenabled = false\nurl = { env = 'NOT_SET' }")
    (sink,) = settings.sinks
    assert (sink.options, sink.from_environment, sink.faults) == ({"url": {"env": "NOT_SET"}}, frozenset(), ())
    assert settings.enabled_sinks == ()


@pytest.mark.parametrize(
    "config",
    [
        "[receiver]\nhost = 5\nthreads = { env = 'MARK' }",
        "[receiver]\nlog_format = { env = 'MARK' }\nmax_body = { env = 'MARK' }\ndeliver = { env = 'MARK' }",
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
    said = "\n".join(problems(tmp_path, config, MARK=FROM_ENVIRONMENT, PORT=FROM_ENVIRONMENT))
    assert FROM_ENVIRONMENT not in said
    assert OF_UNKNOWN_KEY not in said


@pytest.mark.parametrize(
    ("table", "common", "faults"),
    [
        (
            "type = 'csv'\nconcurrency = 'two'\nbatch_size = 5",
            CommonOptions(type="csv", batch_size=5),
            [f"concurrency = 'two': {NO_INTEGER}"],
        ),
        ("batch_size = 5", CommonOptions(type="", batch_size=5), ["option 'type' is missing"]),
        (
            "type = 3\nconcurrency = 2",
            CommonOptions(type="", concurrency=2),
            ["type = 3: Input should be a valid string"],
        ),
        (
            "type = 'csv'\nenabled = 'maybe'",
            CommonOptions(type="csv", enabled=True),
            [f"enabled = 'maybe': {NO_BOOLEAN}"],
        ),
        (
            "type = 'csv'\nfilter = 3\nretry = { max_attempts = 2 }",
            CommonOptions(type="csv", retry=RetryPolicy(max_attempts=2)),
            ["filter: Input should be a valid dictionary or instance of Filter"],
        ),
        (
            "type = 'csv'\nretry = { first_pause = 0 }\nfilter = { labels = { floor = '2' } }",
            CommonOptions(type="csv", filter=Filter(labels={"floor": "2"})),
            ["retry.first_pause: Input should be greater than 0"],
        ),
        (
            "type = 'csv'\nfilter = { labels = { floor = 2 }, backfild = true }",
            CommonOptions(type="csv"),
            [
                "filter.labels.floor: Input should be a valid string",
                "no option 'filter.backfild' (did you mean 'backfilled'?)",
            ],
        ),
    ],
    ids=["concurrency", "no type", "type", "enabled", "filter", "retry", "inside the filter"],
)
def test_a_faulty_sink_stays_enabled_with_its_faults_and_what_was_right(
    table: str, common: CommonOptions, faults: list[str], tmp_path: Path
) -> None:
    settings = loaded(tmp_path, f"[sinks.good]\ntype = 'stdout'\n[sinks.bad]\n{table}")
    good, bad = settings.sinks
    assert (bad.common, list(bad.faults)) == (common, [f"config.toml [sinks.bad]: {fault}" for fault in faults])
    assert settings.enabled_sinks == (good, bad)
    assert good == SinkSettings("good", CommonOptions(type="stdout"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [("30s", 30.0), ("5m", 300.0), ("2h", 7200.0), ("3d", 259200.0), ("1.5h", 5400.0), (" 2 h ", 7200.0), (90, 90)]
    + [("30", 30.0), (" 1.5 ", 1.5)],
)
def test_a_length_of_time_is_a_number_of_seconds_or_has_a_unit(given: object, expected: float) -> None:
    assert seconds(given) == expected


@pytest.mark.parametrize("given", ["", "-5", "h", "5 weeks", "-5s", "1h30m", "5S", "1e3s", "5s\nx", ".5s", "inf s"])
def test_any_other_length_of_time_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="give seconds, or a number with a unit"):
        seconds(given)


@pytest.mark.parametrize("given", ["0", "0.0", "-1", "'0s'", "nan"])
def test_a_length_of_time_is_more_than_nothing(given: str, tmp_path: Path) -> None:
    sink = the_sink(tmp_path, f"[sinks.a]\ntype = 'csv'\nretry = {{ longest_pause = {given} }}")
    assert sink.faults == ("config.toml [sinks.a]: retry.longest_pause: Input should be greater than 0",)


@pytest.mark.parametrize(
    ("environ", "port", "workers"),
    [
        ({"PORT": "1", "WEB_CONCURRENCY": "1"}, 1, 1),
        ({"PORT": "65535", "WEB_CONCURRENCY": "64"}, 65535, 64),
        ({"PORT": "", "WEB_CONCURRENCY": ""}, 8000, 2),
    ],
)
def test_port_and_web_concurrency_are_read(environ: dict[str, str], port: int, workers: int, tmp_path: Path) -> None:
    settings = loaded(tmp_path, "", **environ)
    assert (settings.port, settings.workers) == (port, workers)


@pytest.mark.parametrize(
    "text", ["0", "65536", "-1", "+1", "8000 ", "8_000", "0x50", "8000.0", "٣", "²", "x", "9" * 5000]
)
def test_a_port_that_is_none_is_refused_without_showing_it(text: str, tmp_path: Path) -> None:
    assert problems(tmp_path, "", PORT=text) == ["environment: PORT must be a whole number from 1 to 65535"]


def test_every_signature_secret_is_accepted_and_an_empty_one_is_none(tmp_path: Path) -> None:
    environ = {
        SECRET: "first",
        f"{SECRET}_OTHER_PROJECT": "second",
        f"{SECRET}_OLD": "third",
        f"{SECRET}_EMPTY": "",
        f"{SECRET}S": "no",
        f"X_{SECRET}": "no",
    }
    expected = {SECRET: "first", f"{SECRET}_OLD": "third", f"{SECRET}_OTHER_PROJECT": "second"}
    assert loaded(tmp_path, "", **environ).secrets == expected


@pytest.mark.parametrize("environ", [{}, {SECRET: ""}, {f"{SECRET}_OLD": "old"}])
def test_without_its_secret_receiving_is_refused_and_delivering_is_not(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    environ = {"RECEIVER_CONFIG": str(tmp_path / "config.toml"), **environ}
    with pytest.raises(ConfigError) as caught:
        load(environ)
    assert caught.value.problems == (
        "environment: DT_SIGNATURE_SECRET is not set; set it to the signature secret of your Data Connector",
    )
    assert SECRET not in load(environ, secret_required=False).secrets


def test_a_secret_that_is_no_text_is_refused_without_showing_it(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, "", **{SECRET: os.fsdecode(b"\xff\xfe-not-utf-8")})
    assert line.startswith(f"environment: {SECRET} ")
    assert "not-utf-8" not in line


def test_redact_hides_every_secret_and_what_came_from_the_environment(tmp_path: Path) -> None:
    config = "[sinks.a]\ntype = 'webhook'\nurl = { env = 'URL' }\nheaders = { x = [{ env = 'TOKEN' }] }"
    environ = {f"{SECRET}_OLD": "old-secret", "URL": "https://hook", "TOKEN": "line one\nline two", "OTHER": "kept"}
    settings = loaded(tmp_path, config, **environ)
    text = "a-secret old-secret https://hook/x 'line one\nline two' kept"
    assert settings.redact(text) == "*** *** ***/x '***' kept"


def test_redact_leaves_no_rest_of_a_secret_that_begins_with_another(tmp_path: Path) -> None:
    environ = {f"{SECRET}_{number}": "a-secret" + "-and-more" * number for number in range(1, 8)}
    settings = loaded(tmp_path, "", **environ)
    assert settings.redact(" ".join(environ.values())) == " ".join(["***"] * 7)


def test_redact_leaves_values_too_short_to_be_secret(tmp_path: Path) -> None:
    settings = loaded(tmp_path, "[sinks.a]\ntype = 'csv'\na = { env = 'A' }\nb = { env = 'B' }", A="", B="yes")
    assert settings.redact("yes, a word") == "yes, a word"


def test_the_token_of_the_metrics_is_as_hidden_as_a_secret(tmp_path: Path) -> None:
    settings = loaded(tmp_path, "[receiver]\nmetrics_token = 'token-of-the-metrics'")
    assert settings.redact("Bearer token-of-the-metrics") == "Bearer ***"
    assert "token-of-the-metrics" not in repr(settings)
    assert problems(tmp_path, "[receiver]\nmetrics_token = 12345678") == [
        "config.toml [receiver]: metrics_token: Input should be a valid string"
    ]


def test_no_repr_shows_a_secret(tmp_path: Path) -> None:
    config = "[sinks.a]\ntype = 'webhook'\nurl = { env = 'URL' }\npassword = 'in the file'"
    said = repr(loaded(tmp_path, config, URL=FROM_ENVIRONMENT))
    assert not [secret for secret in ("a-secret", FROM_ENVIRONMENT, "in the file") if secret in said]


def an_event(**changes: object) -> Event:
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
        ({}, an_event(), []),
        ({"event_types": ["touch", "temperature"]}, an_event(), []),
        ({"event_types": ["touch"]}, an_event(), ["event_types"]),
        ({"event_types": []}, an_event(), ["event_types"]),
        ({"devices": ["d1"]}, an_event(), []),
        ({"devices": ["d2"]}, an_event(), ["devices"]),
        ({"devices": ["d1"]}, an_event(metadata=None), ["devices"]),
        ({"projects": ["p2", "p1"]}, an_event(), []),
        ({"projects": ["p2"]}, an_event(), ["projects"]),
        ({"labels": {"site": "oslo"}}, an_event(), []),
        ({"labels": {"site": "oslo", "floor": "2"}}, an_event(), []),
        ({"labels": {"site": "oslo", "floor": "3"}}, an_event(), ["labels"]),
        ({"labels": {"room": "1"}}, an_event(), ["labels"]),
        ({"labels": {"site": "oslo"}}, an_event(labels=None), ["labels"]),
        ({"backfilled": True}, an_event(), ["backfilled"]),
        ({"backfilled": False}, an_event(), []),
        ({"backfilled": True}, an_event(event=BACKFILLED), []),
        ({"backfilled": False}, an_event(event=BACKFILLED), ["backfilled"]),
        (
            {"event_types": ["co2"], "devices": ["d2"], "projects": [], "labels": {"a": "b"}, "backfilled": True},
            an_event(),
            ["event_types", "devices", "projects", "labels", "backfilled"],
        ),
        ({"event_types": ["temperature"], "devices": ["d2"]}, an_event(), ["devices"]),
    ],
)
def test_a_filter_names_each_condition_that_an_event_misses(
    conditions: dict[str, object], event: Event, misses: list[str]
) -> None:
    assert Filter.model_validate(conditions).misses(event) == misses


@pytest.mark.parametrize(
    ("name", "hint"),
    [("pth", " (did you mean 'path'?)"), ("path", " (did you mean 'path'?)"), ("zzz", ""), ("", "")],
)
def test_the_nearest_name_is_hinted_at_only_when_one_is_near(name: str, hint: str) -> None:
    assert nearest(name, ["path", "rows", "columns"]) == hint


KEYS = st.sampled_from(
    [
        *("host", "threads", "max_body", "log_format", "plugins", "deliver", "path", "retention_days", "max_size_mb"),
        *("type", "enabled", "filter", "retry", "concurrency", "batch_size", "event_types", "labels", "backfilled"),
        *("max_age", "max_attempts", "first_pause", "url", "env"),
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
            return loaded(Path(folder), document, SET=FROM_ENVIRONMENT)
        except ConfigError as error:
            return error.problems


@settings(deadline=None)
@given(DOCUMENTS)
def test_any_document_gives_settings_or_problems_and_shows_nothing_it_must_not(document: dict[str, object]) -> None:
    result = outcome("\n".join(f"{key} = {toml(value)}" for key, value in document.items()))
    faults = [fault for sink in result.sinks for fault in sink.faults] if isinstance(result, Settings) else result
    assert all(line.startswith(("config.toml", "environment")) for line in faults)
    assert not [line for line in faults if FROM_ENVIRONMENT in line or OF_UNKNOWN_KEY in line]
    assert isinstance(result, Settings) or result


@settings(deadline=None)
@given(st.text(st.sampled_from("[]{}=.,\"'\n\\#-+_0123456789abenrtux:TZ "), max_size=60) | st.text(max_size=40))
def test_any_text_gives_settings_or_problems(text: str) -> None:
    result = outcome(text)
    assert isinstance(result, Settings) or result
