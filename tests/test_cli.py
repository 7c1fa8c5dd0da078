"""The commands as a user types them: what they say, on which stream, and with which exit code."""

from __future__ import annotations

import csv
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from conftest import ROOT, TEST_SECRET, THERE_ARE, StartReceiver, new_database, sink_types, wait_until
from pytest_httpserver import HTTPServer

from receiver import desk
from receiver.cli import main
from receiver.demo import free_port
from receiver.errors import ReceiverError
from receiver.event import TYPES
from receiver.journal import Arrival, open_journal
from receiver.settings import SECRET, load
from receiver.simulator import Simulator

STRONG_SECRET = "a-signature-secret-that-is-long-enough"
CONSOLE = "[sinks.console]\ntype = 'stdout'\n"
BROKEN = "import not_installed_here\n"
MENDED = """
from pathlib import Path
from receiver import hookimpl

class Mine:
    def __init__(self, path: Path) -> None:
        self.path = path

    @hookimpl
    def deliver(self, event):
        with self.path.open("a") as file:
            print(event.id, file=file)

@hookimpl
def register_sinks(register):
    register("mine", Mine)
"""


class User:
    """Someone with a folder, a config.toml in it, and a shell. Every process they start ends with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith((SECRET, "DATABASE_URL", "DT_"))},
            SECRET: STRONG_SECRET,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(folder),
        }
        self.environment.pop("RECEIVER_CONFIG", None)
        self.started: list[int] = []

    def config(self, text: str) -> None:
        (self.folder / "config.toml").write_text(text, encoding="utf-8")

    def runs(self, *arguments: str, **environment: str) -> tuple[int, list[str], list[str]]:
        """Exit code, and the lines of standard output and standard error, of `python -m receiver ARGUMENTS`."""
        with subprocess.Popen(
            [sys.executable, "-m", "receiver", *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        ) as process:
            self.started.append(process.pid)
            try:
                out, errors = process.communicate(timeout=45)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                raise
        return process.returncode, out.splitlines(), errors.splitlines()

    @property
    def leftovers(self) -> list[int]:
        """Processes that outlived their command."""
        return [pid for pid, group in living() if group in self.started]


def living() -> Iterator[tuple[int, int]]:
    """Every living process with its process group."""
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split() if entry.name.isdigit() else []
        except OSError:
            continue
        if fields and fields[0] != "Z":
            yield int(entry.name), int(fields[2])


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


def test_check_says_what_is_right(user: User) -> None:
    user.config(f"{CONSOLE}[sinks.off]\ntype = 'csv'\nenabled = false\n")
    code, out, errors = user.runs("check", **{f"{SECRET}_OLD": STRONG_SECRET[::-1]})
    assert (code, errors) == (0, [])
    assert out == [
        "DT_SIGNATURE_SECRET has not been used yet",
        "DT_SIGNATURE_SECRET_OLD has not been used yet",
        "config.toml is right. Enabled sinks: console. Signature secrets: 2.",
    ]


def test_check_warns_of_a_secret_that_can_be_guessed_and_of_events_that_go_nowhere(user: User) -> None:
    user.config("[sinks.off]\ntype = 'stdout'\nenabled = false\n")
    code, _, errors = user.runs("check", **{SECRET: "short"})
    assert (code, errors) == (
        0,
        [
            "warning: DT_SIGNATURE_SECRET is shorter than 32 bytes; a longer one is harder to guess",
            "warning: no sink is enabled in config.toml: events are journaled and go nowhere",
        ],
    )


def test_check_names_a_place_where_no_journal_can_be_beside_all_other_problems(user: User) -> None:
    user.config("[journal]\npath = 'config.toml/deep/journal.sqlite'\n[sinks.a]\ntype = 'csf'\n")
    code, out, errors = user.runs("check")
    assert (code, out) == (1, [])
    assert errors == [
        f"error: config.toml [sinks.a]: no sink type 'csf' (did you mean 'csv'?); {THERE_ARE}",
        f"error: journal {user.folder}/config.toml/deep/journal.sqlite: {user.folder}/config.toml is no folder; "
        "set another [journal] path",
    ]


def test_check_names_a_folder_that_cannot_be_written(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    user.config(f"[journal]\npath = 'data/new/journal.sqlite'\n{CONSOLE}")
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (user.folder, os.W_OK | os.X_OK))
    with pytest.raises(ReceiverError) as caught:
        desk.may_be_made(user.folder / "data" / "new" / "journal.sqlite")
    assert str(caught.value) == (
        f"journal {user.folder}/data/new/journal.sqlite: {user.folder} cannot be written; "
        "make it so, or set another [journal] path"
    )


def test_check_names_the_problems_of_sinks_also_while_the_database_is_away(user: User) -> None:
    user.config("[sinks.a]\ntype = 'csf'\n")
    code, out, errors = user.runs("check", DATABASE_URL="postgres://u:pass-word@127.0.0.1:9/d")
    assert (code, out) == (1, [])
    assert errors[0] == f"error: config.toml [sinks.a]: no sink type 'csf' (did you mean 'csv'?); {THERE_ARE}"
    assert len(errors) == 2
    assert "refused" in errors[1]
    assert "pass-word" not in errors[1]


def test_check_warns_of_what_a_journal_still_owes_that_a_database_has_replaced(user: User) -> None:
    user.config(CONSOLE)
    config = str(user.folder / "config.toml")
    with closing(open_journal(load({**user.environment, "RECEIVER_CONFIG": config}))) as journal:
        for name in "abc":
            journal.accept(Arrival(name, b"", 1000.0))
        journal.owe([(kept, ["console", "erp"]) for kept in journal.unmatched(1)])
    code, _, errors = user.runs("check", DATABASE_URL=new_database())
    assert (code, errors) == (
        0,
        [
            f"warning: the journal {user.folder}/data/journal.sqlite is not used while DATABASE_URL is set, and still "
            "owes 4 deliveries; to make them, run `python -m receiver deliver` without DATABASE_URL until none is left"
        ],
    )


def test_check_names_every_problem_of_plugins_and_sinks_in_a_line_each(user: User) -> None:
    (user.folder / "mine.py").write_text(BROKEN)
    user.config("""
        [receiver]
        plugins = ["mine.py", "nowhere.py"]
        [sinks.a]
        type = "cvs"
        [sinks.b]
        type = "csv"
        path = "b.csv"
        row = "events"
        [sinks.c]
        type = "mine"
        [sinks.d]
        type = "csv"
        path = "d.csv"
        columns = ["tiem"]
        [sinks.e]
        type = "webhook"
        url = { env = "NOT_SET" }
        [sinks.f]
        type = "webhook"
        url = { env = "URL" }
        concurrency = "x"
        [sinks.g]
        type = "stdout"
        enabled = false
        retry = { max_age = "x" }
        """)
    code, out, errors = user.runs("check", URL="value-from-the-environment")
    known = f"{THERE_ARE}; 2 plugin(s) could not be loaded"
    columns = "event_id, time, device_id, device_name, project_id, event_type, quantity, value, unit, text, labels"
    assert (code, out) == (1, [])
    assert [re.sub(r"csv_file\.py:\d+", "csv_file.py:N", line) for line in errors] == [
        f"error: plugin {user.folder}/mine.py: mine.py:1: ModuleNotFoundError: No module named 'not_installed_here'",
        f"error: plugin {user.folder}/nowhere.py: no such file",
        f"error: config.toml [sinks.a]: no sink type 'cvs' (did you mean 'csv'?); {known}",
        "error: config.toml [sinks.b]: no option 'row' (did you mean 'rows'?)",
        f"error: config.toml [sinks.c]: no sink type 'mine'; {known}",
        f"error: config.toml [sinks.d]: csv_file.py:N: ValueError: no column 'tiem'; there are: {columns}",
        "error: config.toml [sinks.e]: url: the environment variable NOT_SET is not set",
        "error: config.toml [sinks.f]: concurrency = 'x': Input should be a valid integer, "
        "unable to parse string as an integer",
        "error: config.toml [sinks.g]: retry.max_age: "
        'give seconds, or a number with a unit such as "30s", "5m", "2h" or "3d"',
    ]


def test_check_names_the_problems_of_sinks_also_where_the_receivers_own_settings_are_wrong(user: User) -> None:
    user.config("[receiver]\nthread = 1\n[sinks.a]\ntype = 'csv'\npth = 'a.csv'\n[sinks.b]\ntype = 'csf'\n")
    code, out, errors = user.runs("check", **{SECRET: ""})
    assert (code, out) == (1, [])
    assert errors == [
        "error: config.toml [receiver]: no option 'thread' (did you mean 'threads'?)",
        "error: environment: DT_SIGNATURE_SECRET is not set; set it to the signature secret of your Data Connector",
        "error: config.toml [sinks.a]: option 'path' is missing",
        "error: config.toml [sinks.a]: no option 'pth' (did you mean 'path'?)",
        f"error: config.toml [sinks.b]: no sink type 'csf' (did you mean 'csv'?); {THERE_ARE}",
    ]


def test_check_does_not_pass_a_sink_whose_type_is_empty(user: User) -> None:
    user.config("[sinks.a]\ntype = ''\n")
    assert user.runs("check") == (
        1,
        [],
        [f"error: config.toml [sinks.a]: no sink type ''; {THERE_ARE}"],
    )


NO_SECRET = "environment: DT_SIGNATURE_SECRET is not set; set it to the signature secret of your Data Connector"


@pytest.mark.parametrize(
    ("config", "environment", "line"),
    [
        (CONSOLE, {SECRET: ""}, NO_SECRET),
        (CONSOLE, {SECRET: os.fsdecode(b"\xff\xfe-not-utf-8")}, "environment: DT_SIGNATURE_SECRET {why}"),
        (
            None,
            {},
            "{folder}/config.toml: no such file; start in the folder of your config.toml, "
            "or name the file in RECEIVER_CONFIG",
        ),
        (CONSOLE, {"RECEIVER_CONFIG": "/dev"}, "/dev: cannot be read: Is a directory"),
        ("[receiver\n", {}, "config.toml: not valid TOML: {why}"),
        ("[receiver]\nthread = 4\n", {}, "config.toml [receiver]: no option 'thread' (did you mean 'threads'?)"),
        (CONSOLE, {"PORT": "http"}, "environment: PORT must be a whole number from 1 to 65535"),
        (
            f"[journal]\npath = 'file/journal.sqlite'\n{CONSOLE}",
            {},
            "journal {folder}/file/journal.sqlite: {why}; make it writable or set another [journal] path",
        ),
        (
            f"[journal]\npath = '/proc/receiver/journal.sqlite'\n{CONSOLE}",
            {},
            "journal /proc/receiver/journal.sqlite: {why}; make it writable or set another [journal] path",
        ),
        (
            f"[journal]\npath = '/proc/journal.sqlite'\n{CONSOLE}",
            {},
            "journal /proc/journal.sqlite: {why}; make it writable or set another [journal] path",
        ),
        (f"[journal]\npath = 'folder'\n{CONSOLE}", {}, "journal {folder}/folder: {why}"),
        (f"[journal]\npath = 'file'\n{CONSOLE}", {}, "journal {folder}/file: {why}"),
        (f'[journal]\npath = "a\\u0000b"\n{CONSOLE}', {}, "{why}"),
        (f"[receiver]\nhost = '127.0.0..1'\n{CONSOLE}", {}, "cannot listen on 127.0.0..1 port {port}: {why}"),
        (
            CONSOLE,
            {"DT_CREDENTIALS_FILE": "/nowhere"},
            "the DT client library does not import (FileNotFoundError); "
            "if DT_CREDENTIALS_FILE is set, unset it: the receiver does not need it",
        ),
    ],
    ids=[
        *("empty secret", "secret that is no text", "no config", "folder as config", "wrong TOML", "misspelt key"),
        *("wrong port", "journal under a file", "journal in no folder", "journal that cannot be made"),
        *("journal is a folder", "journal is no database", "journal with a null byte", "no such host"),
        "credentials file",
    ],
)
def test_serve_refuses_in_one_clear_line_what_intake_cannot_do_without(
    config: str | None, environment: dict[str, str], line: str, user: User
) -> None:
    (user.folder / "file").write_text("not a database, but a file with some text in it\n" * 40)
    (user.folder / "folder").mkdir()
    if config is not None:
        user.config(config)
    port = str(free_port())
    code, out, errors = user.runs("serve", **{"PORT": port, **environment})
    told = line.replace("{folder}", str(user.folder)).replace("{port}", port)
    expected = ".+".join(re.escape(part) for part in f"error: {told}".split("{why}"))
    assert (code, out, len(errors)) == (1, [], 1)
    assert re.fullmatch(expected, errors[0]), errors[0]
    assert "not-utf-8" not in errors[0]
    assert user.leftovers == []


def test_serve_refuses_without_a_secret_even_where_an_older_one_is_set(user: User) -> None:
    user.config(CONSOLE)
    del user.environment[SECRET]
    assert user.runs("serve", **{f"{SECRET}_OLD": STRONG_SECRET}) == (1, [], [f"error: {NO_SECRET}"])


def test_serve_refuses_a_port_that_is_in_use(user: User) -> None:
    user.config(f"[receiver]\nhost = '127.0.0.1'\n{CONSOLE}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, errors = user.runs("serve", PORT=str(port))
    assert (code, out, len(errors)) == (1, [], 1)
    assert re.fullmatch(
        rf"error: cannot listen on 127\.0\.0\.1 port {port}: Address already in use.*; "
        "stop what uses it, or set PORT to another one",
        errors[0],
    )
    assert user.leftovers == []
    assert [path.name for path in user.folder.iterdir() if path.name.startswith("receiver-")] == []


def test_serve_names_what_to_change_for_an_address_that_is_not_its_own(user: User) -> None:
    user.config(f"[receiver]\nhost = '192.0.2.1'\n{CONSOLE}")
    code, out, errors = user.runs("serve", PORT="8000")
    assert (code, out, len(errors)) == (1, [], 1)
    assert re.fullmatch(
        r"error: cannot listen on 192\.0\.2\.1 port 8000: Cannot assign requested address.*; "
        r"set \[receiver\] host to an address of this machine",
        errors[0],
    )


def test_no_error_shows_a_value_from_the_environment(user: User) -> None:
    hidden = "value-from-the-environment"
    user.config(f"[receiver]\nhost = {{ env = 'HIDDEN' }}\n{CONSOLE}")
    refused = user.runs("serve", HIDDEN=f"{hidden}..invalid")
    user.config(f"[journal]\npath = {{ env = 'HIDDEN' }}\n{CONSOLE}")
    unwritable = user.runs("serve", HIDDEN=f"/dev/null/{hidden}")
    user.config("[receiver]\nplugins = ['mine.py']")
    (user.folder / "mine.py").write_text(f"raise RuntimeError('{STRONG_SECRET}')\n")
    left_out = user.runs("sinks")
    checked = user.runs("check")
    assert [code for code, _, _ in (refused, unwritable, left_out, checked)] == [1, 1, 0, 1]
    for _, out, errors in (refused, unwritable, left_out, checked):
        assert hidden not in "\n".join(out + errors)
        assert STRONG_SECRET not in "\n".join(out + errors)
        assert "***" in "\n".join(errors)


FAULTY = """
[receiver]
plugins = ["mine.py"]
[sinks.archive]
type = "csv"
path = "archive.csv"
[sinks.broken]
type = "mine"
path = "broken.txt"
[sinks.misspelt]
type = "csv"
pth = "misspelt.csv"
[sinks.unknown]
type = "cvs"
path = "unknown.csv"
"""


def test_serve_runs_with_faulty_sinks_paused_and_gives_them_their_events_once_they_are_mended(
    user: User, start_receiver: StartReceiver
) -> None:
    plugin = user.folder / "mine.py"
    plugin.write_text(BROKEN)
    config = FAULTY.replace("mine.py", str(plugin))
    receiver = start_receiver(config)

    bodies = [Simulator(seed).body("touch") for seed in range(5)]
    ids = {body.split(b'"eventId":"')[1][:20].decode() for body in bodies}
    assert [receiver.push(body) for body in bodies] == [(200, "accepted")] * 5
    wait_until(lambda: len(receiver.rows("archive.csv")) == 5)
    for name in ("broken", "misspelt", "unknown"):
        assert receiver.metric(f'receiver_pending{{sink="{name}"}}') == 5
        assert receiver.metric(f'receiver_delivered_total{{sink="{name}"}}') == 0
    ready = receiver.http.request("GET", f"{receiver.url}/readyz")
    known = f"{THERE_ARE}; 1 plugin(s) could not be loaded"
    assert (ready.status, ready.json()["ready"], ready.json()["faults"]) == (200, True, [])
    assert sorted(ready.json()["warnings"]) == [
        f"sink broken is paused: config.toml [sinks.broken]: no sink type 'mine'; {known}",
        "sink misspelt is paused: config.toml [sinks.misspelt]: option 'path' is missing; "
        "config.toml [sinks.misspelt]: no option 'pth' (did you mean 'path'?)",
        f"sink unknown is paused: config.toml [sinks.unknown]: no sink type 'cvs' (did you mean 'csv'?); {known}",
    ]
    assert receiver.stop() == 0
    assert "Traceback" not in receiver.log

    plugin.write_text(MENDED)
    (receiver.folder / "config.toml").write_text(config.replace("pth", "path").replace("cvs", "csv"))
    receiver.start()
    wait_until(lambda: not receiver.http.request("GET", f"{receiver.url}/readyz").json()["warnings"])
    for name in ("misspelt", "unknown"):
        wait_until(lambda name=name: {row["event_id"] for row in receiver.rows(f"{name}.csv")} == ids)
    wait_until(lambda: set((receiver.folder / "broken.txt").read_text().split()) == ids)
    assert len(receiver.rows("archive.csv")) == 5
    assert receiver.stop() == 0


def test_send_pushes_signed_events_and_prints_each_answer(user: User, start_receiver: StartReceiver) -> None:
    receiver = start_receiver()

    code, out, errors = user.runs(
        "send", receiver.url, "--type", "touch", "--type", "co2", "--count", "2", **{SECRET: TEST_SECRET}
    )
    assert (code, errors) == (0, [])
    sent = [re.fullmatch(r"(\w+) +([0-9a-v]{20})  200 accepted", line) for line in out]
    assert [match and match[1] for match in sent] == ["touch", "co2", "touch", "co2"]

    code, out, errors = user.runs("send", f"{receiver.url}/", **{SECRET: TEST_SECRET})
    assert (code, [line.split()[0] for line in out], errors) == (0, list(TYPES), [])
    assert {line.split("  ")[-1] for line in out} == {"200 accepted"}

    code, out, errors = user.runs("send", receiver.url, "--type", "touch", **{SECRET: "another-secret"})
    assert (code, [line.split("  ")[-1] for line in out]) == (1, ["400 wrong secret"])
    assert errors == ["error: 1 of 1 events were not taken"]

    code, out, errors = user.runs("send", f"{receiver.url}/hook", "--type", "touch", **{SECRET: TEST_SECRET})
    assert (code, out[0].split("  ")[-1][:14]) == (1, "404 Not Found.")

    rows = wait_until(lambda: len({row["event_id"] for row in receiver.rows()}) == 4 + len(TYPES) and receiver.rows())
    assert {row["device_id"][:3] for row in rows} == {"emu"}
    assert {len(row["device_id"]) for row in rows} == {23}


@pytest.mark.parametrize(
    ("arguments", "environment", "error"),
    [
        (["example.com"], {}, "the URL must begin with http:// or https://"),
        (["ftp://example.com"], {}, "the URL must begin with http:// or https://"),
        (
            ["http://127.0.0.1:1"],
            {SECRET: ""},
            "DT_SIGNATURE_SECRET is not set; set it to the signature secret that the receiver has",
        ),
    ],
    ids=["no scheme", "another scheme", "no secret"],
)
def test_send_refuses_what_cannot_work_before_it_sends(
    arguments: list[str], environment: dict[str, str], error: str, user: User
) -> None:
    assert user.runs("send", *arguments, **environment) == (1, [], [f"error: {error}"])


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("http://127.0.0.1:{port}", "NewConnectionError"),
        ("http://", "LocationValueError"),
        ("http://[::1", "LocationParseError"),
        ("http://127.0.0.1:99999", "LocationParseError"),
        ("http://a..b", "LocationParseError"),
    ],
)
def test_send_says_when_there_is_no_answer(url: str, kind: str, user: User) -> None:
    code, out, errors = user.runs("send", url.format(port=free_port()), "--type", "touch")
    assert (code, errors) == (1, ["error: 1 of 1 events were not taken"])
    assert [line.split("  ")[-1] for line in out] == [f"--- no answer: {kind}"]


@pytest.mark.parametrize(
    ("status", "body", "answer", "code"),
    [
        (200, b"", "200", 0),
        (204, b"", "204", 1),
        (503, b"<html>\r\nbusy", "503 <html>", 1),
        (301, b"\n", "301", 1),
        (500, b"\xff\xfe\x00", "500", 1),
    ],
)
def test_send_prints_whatever_another_server_answers(
    status: int, body: bytes, answer: str, code: int, user: User, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/", method="POST").respond_with_data(body, status=status)
    done, out, errors = user.runs("send", httpserver.url_for("/"), "--type", "touch")
    assert (done, len(out)) == (code, 1)
    assert out[0].split("  ")[-1].startswith(answer)
    assert errors == ([] if code == 0 else ["error: 1 of 1 events were not taken"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["send", "http://127.0.0.1:1", "--count", "-1"],
        ["send", "http://127.0.0.1:1", "--count", "0"],
        ["send", "http://127.0.0.1:1", "--count", "many"],
        ["send", "http://127.0.0.1:1", "--type", "tmperature"],
        ["send"],
        ["demo", "--rate", "0"],
        ["demo", "--rate", "-1"],
        ["demo", "--seconds", "-1"],
        ["demo", "--seconds", "0"],
        ["serv"],
        ["check", "--all"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_a_usage_error_and_nothing_is_done(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRET, STRONG_SECRET)
    monkeypatch.setattr("receiver.demo.run", lambda *given: pytest.fail(f"the demo ran with {given}"))
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, done.output.splitlines()[0][:7]) == (2, "Usage: "), done.output


def test_sinks_lists_the_built_in_types_with_their_options(user: User) -> None:
    user.config("")
    code, out, errors = user.runs("sinks", **{SECRET: ""})
    assert (code, errors) == (0, [])
    titles = [line for line in out if re.match(r"\w+  \(", line)]
    assert [title.partition("  ")[0] for title in titles] == sink_types()
    assert [title for title in titles if title.partition("  ")[0] in ("csv", "sql", "stdout", "webhook")] == [
        f"csv  ({ROOT}/plugins/csv_file.py)",
        f"sql  ({ROOT}/plugins/sql.py)",
        f"stdout  ({ROOT}/plugins/stdout.py)",
        f"webhook  ({ROOT}/plugins/webhook.py)",
    ]
    after = titles[titles.index(f"csv  ({ROOT}/plugins/csv_file.py)") + 1]
    assert out[out.index(f"csv  ({ROOT}/plugins/csv_file.py)") + 1 : out.index(after)] == [
        "Appends events to a CSV file: one row a reading, or one row an event.",
        "",
        "Rows are flushed to the disk before they count as delivered, and an event that is delivered again is not "
        "written",
        "again. A file is never rewritten: one with other columns is left alone and another begun beside it.",
        "",
        "  path  (path, required)",
        "      the file; with {date} in it, each day (UTC) starts a new one.",
        '  rows  ("readings" or "events", default "readings")',
        '      "readings" gives one row a reading, and one with empty values to an event without any;',
        '      "events" one an event.',
        "  columns  (list of text, optional)",
        "      which columns, in which order; event_id always comes first.",
        "  label_columns  (list of text, default [])",
        "      labels that get a column of their own, called label_NAME.",
        "",
        "  [sinks.csv]",
        '  type = "csv"',
        '  path = "data/csv"',
        '  # rows = "readings"',
        "  # columns = []",
        "  # label_columns = []",
        "",
    ]


def test_sinks_shows_the_types_of_users_too_and_names_what_is_broken(user: User) -> None:
    (user.folder / "mine.py").write_text(MENDED)
    (user.folder / "broken.py").write_text(BROKEN)
    user.config("[receiver]\nplugins = ['mine.py', 'broken.py']\n")
    code, out, errors = user.runs("sinks")
    assert (code, f"mine  ({user.folder}/mine.py)" in out) == (0, True)
    assert errors == [
        f"left out: {user.folder}/broken.py: broken.py:1: ModuleNotFoundError: No module named 'not_installed_here'"
    ]


def test_sinks_as_json_lists_the_options_also_beside_a_constructor_that_does_not_tell_its_own(user: User) -> None:
    (user.folder / "mine.py").write_text(MENDED.replace("path: Path)", "path: 'Unknown')"))
    user.config("[receiver]\nplugins = ['mine.py']\n")
    code, out, errors = user.runs("sinks", "--json")
    assert (code, errors) == (0, [])
    types = json.loads("\n".join(out))
    assert (sorted(types), types["mine"]["options"]) == (sink_types("mine"), [])
    assert types["stdout"] == {
        "source": f"{ROOT}/plugins/stdout.py",
        "description": "Prints each event as one line on standard output.\n\n"
        "An event that is delivered again is printed again.",
        "options": [
            {
                "name": "format",
                "type": '"json" or "text"',
                "required": False,
                "default": '"json"',
                "meaning": '"json" prints an object a line, "text" a line for people.',
            }
        ],
        "example": '[sinks.stdout]\ntype = "stdout"\n# format = "json"',
    }


def test_the_example_of_every_sink_type_is_right_when_pasted(user: User) -> None:
    user.config("")
    code, out, _ = user.runs("sinks", "--json")
    examples = {name: shown["example"] for name, shown in json.loads("\n".join(out)).items()}
    given = {"WEBHOOK_SECRET": "c2VjcmV0", "SQL_URL": "sqlite:///data/readings.sqlite"}
    user.config("\n".join(examples.values()))
    code, out, errors = user.runs("check", **given)
    assert (code, errors) == (0, [])
    everything = "\n".join(examples.values()).replace("# ", "").replace("columns = []", 'columns = ["time"]')
    user.config(everything.replace('ca_file = "data/webhook"\n', ""))
    assert user.runs("check", **given)[0] == 0


def commands(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that name it, groups and the program itself included."""
    yield path, group
    if isinstance(group, click.Group):
        for name, command in sorted(group.commands.items()):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", [path for path, _ in commands(main)], ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    for option in ("--help", "-h"):
        done = CliRunner().invoke(main, [*path, option], prog_name="python -m receiver")
        assert done.exit_code == 0
        assert done.output.startswith(f"Usage: {' '.join(['python -m receiver', *path])} ")
        example = rf"^  Examples?.*:\n    .*python -m receiver {' '.join(path)}"
        assert not path or re.search(example, done.output, re.MULTILINE)


def test_the_help_of_a_group_lists_its_commands_each_with_what_it_does() -> None:
    groups = [(path, group) for path, group in commands(main) if isinstance(group, click.Group)]
    assert () in [path for path, _ in groups]
    for path, group in groups:
        shown = CliRunner().invoke(main, [*path, "--help"]).output
        assert [name for name in group.commands if not re.search(rf"^  {name}  +\w", shown, re.MULTILINE)] == []


def test_every_option_of_every_command_is_explained() -> None:
    silent = [
        f"{' '.join(path)} {parameter.name}"
        for path, command in commands(main)
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.help
    ]
    assert silent == []


def test_the_demo_runs_from_any_folder_and_leaves_its_csv_file(user: User) -> None:
    code, out, errors = user.runs("demo", "--seconds", "2", "--rate", "30", **{SECRET: "not-the-demo's"})
    assert (code, errors) == (0, [])
    counts = [line for line in out if line.startswith("pushed ")][-1]
    pushed = re.match(r"pushed (\d+), received (\d+)   ", counts)
    assert pushed
    assert pushed[1] == pushed[2]
    number = int(pushed[1])
    assert 5 <= number <= 61
    assert f"archive: {number} delivered, 0 pending" in counts
    assert f"console: {number} delivered, 0 pending" in counts

    shown = next(line for line in out if line.endswith("events.csv:"))
    path = Path(shown.removeprefix("The last lines of ").removesuffix(":"))
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({row["event_id"] for row in rows}) == number
    assert path.parent.parent == user.folder
    assert len((path.parent / "stdout.txt").read_text(encoding="utf-8").splitlines()) == number
    assert "Traceback" not in (path.parent / "log.txt").read_text(encoding="utf-8")
    started = [pid for pid, _ in living() if str(path.parent) in environment_of(pid)]
    assert started == []


def environment_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""
