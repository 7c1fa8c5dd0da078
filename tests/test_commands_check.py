"""`check` names everything that is wrong with the settings, the plugins and the sinks, and warns of likely mistakes."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import time_machine
from conftest import ROOT, THERE_ARE, new_database
from sqlalchemy import make_url
from support.commands import (
    BROKEN_PLUGIN,
    CONSOLE,
    JOURNAL,
    NOON,
    STRONG_SECRET,
    Operator,
    Shell,
    event_body,
    is_recent,
)

from receiver.journal import Arrival, open_journal
from receiver.journal.sql.schema import SCHEMA_VERSION
from receiver.sensors import open_registry, registry_path
from receiver.variables import SECRET

COLUMNS = "event_id, time, device_id, device_name, project_id, event_type, quantity, value, unit, text, labels"


def test_a_valid_configuration_is_confirmed_with_its_sinks_and_secrets(shell: Shell) -> None:
    shell.configure(f"{CONSOLE}[sinks.off]\ntype = 'csv'\nenabled = false\n")
    assert shell.run("check", **{f"{SECRET}__OLD": STRONG_SECRET[::-1]}) == (
        0,
        [
            "DT_SIGNATURE_SECRET has not been used yet",
            "DT_SIGNATURE_SECRET__OLD has not been used yet",
            "config.toml is valid. Enabled sinks: console. Signature secrets: 2.",
        ],
        [],
    )


def test_check_creates_no_journal(operator: Operator) -> None:
    operator.configure(CONSOLE)
    operator.lines("check")
    assert [path.name for path in operator.folder.iterdir()] == ["config.toml"]


def test_a_registry_of_sensors_that_cannot_be_used_is_a_problem(operator: Operator) -> None:
    operator.configure("[journal]\nmin_free_mb = 0\n" + CONSOLE)
    with closing(open_registry(operator.settings)) as registry, registry._database.write() as connection:
        connection.exec_driver_sql("UPDATE registry_schema SET version = 99")
    code, _, errors = operator.run("check")
    assert (code, errors) == (
        1,
        [
            "error: the registry of sensors has schema 99, and this receiver supports up to 2; "
            "run the newer receiver that wrote it"
        ],
    )

    path = registry_path(operator.settings)
    assert path is not None
    path.write_bytes(b"not a registry at all")
    code, _, errors = operator.run("check")
    assert (code, errors) == (1, [f"error: journal {path}: SQLite reports: file is not a database"])

    path.write_bytes(b"")  # its tables were not created yet
    assert operator.run("check").exit_code == 0


def test_check_says_that_an_older_journal_will_be_upgraded_and_does_not_change_it(operator: Operator) -> None:
    operator.configure(CONSOLE)
    path = operator.settings.journal_path
    path.parent.mkdir()
    shutil.copy(ROOT / "tests" / "data" / "journal_schema_2.sqlite", path)
    before = path.read_bytes()
    valid = "config.toml is valid. Enabled sinks: console. Signature secrets: 1."
    assert operator.run("check") == (
        0,
        [valid],
        ["warning: the journal's tables are of version 2; `migrate` or the next start upgrades them"],
    )
    assert operator.run("check", DATABASE_URL=new_database()) == (
        0,
        [valid],
        [
            f"warning: the journal {path} is not used while DATABASE_URL is set, and may have pending deliveries of an "
            "older receiver; run `python -m receiver deliver --until-empty` without DATABASE_URL"
        ],
    )
    assert path.read_bytes() == before
    assert operator.lines("migrate") == [f"Upgraded the journal's tables from version 2 to {SCHEMA_VERSION}."]
    assert operator.lines("migrate") == [f"The journal's tables are up to date (version {SCHEMA_VERSION})."]
    assert [line for line in operator.run("check").errors if "version" in line] == []


def test_check_creates_no_tables_and_says_if_they_could_not_be_created(operator: Operator) -> None:
    operator.configure(CONSOLE)
    url = new_database()
    assert operator.run("check", DATABASE_URL=url)[::2] == (0, [])
    with psycopg.connect(url, autocommit=True) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
        connection.execute("CREATE ROLE reader LOGIN")
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    reader = make_url(url).set(username="reader", password=None).render_as_string(hide_password=False)
    code, _, errors = operator.run("check", DATABASE_URL=reader)
    assert (code, len(errors)) == (1, 1)
    assert "permission denied" in errors[0]
    assert operator.run("migrate", DATABASE_URL=url).out == [
        f"Created the journal's tables (version {SCHEMA_VERSION})."
    ]


def test_a_weak_secret_and_a_configuration_without_enabled_sinks_are_warnings(operator: Operator) -> None:
    operator.configure("[sinks.off]\ntype = 'stdout'\nenabled = false\n")
    assert operator.run("check", **{SECRET: "weak-secret"}) == (
        0,
        ["config.toml is valid. Enabled sinks: none. Signature secrets: 1."],
        [
            "warning: DT_SIGNATURE_SECRET is shorter than 32 bytes; a longer one is harder to guess",
            "warning: no sink is enabled in config.toml: events are stored but delivered nowhere",
        ],
    )


def test_a_journal_under_a_file_is_reported_together_with_all_other_problems(operator: Operator) -> None:
    operator.configure("[journal]\npath = 'config.toml/deep/journal.sqlite'\n[sinks.a]\ntype = 'csf'\n")
    folder = operator.folder
    assert operator.run("check") == (
        1,
        [],
        [
            f"error: config.toml [sinks.a]: no sink type 'csf' (did you mean 'csv'?); {THERE_ARE}",
            f"error: journal {folder}/config.toml/deep/journal.sqlite cannot be created: {folder}/config.toml is not a "
            "folder; correct that, or set another [journal] path",
        ],
    )


def test_a_journal_that_is_not_writable_is_an_error_of_every_command(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator.configure(CONSOLE)
    operator.lines("migrate")
    path = operator.settings.journal_path
    monkeypatch.setattr(os, "access", lambda given, mode: given != path)
    error = f"error: journal {path}: Permission denied; make it writable or set another [journal] path"
    for command in ("check", "migrate", "status"):
        assert operator.run(command) == (1, [], [error])


def test_a_folder_that_is_not_writable_is_reported_before_a_journal_is_created_in_it(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator.configure(f"[journal]\npath = 'data/new/journal.sqlite'\n{CONSOLE}")
    folder = operator.folder
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (folder, os.W_OK | os.X_OK))
    assert operator.run("check") == (
        1,
        [],
        [
            f"error: journal {folder}/data/new/journal.sqlite cannot be created: {folder} is not writable; "
            "correct that, or set another [journal] path"
        ],
    )


@pytest.mark.parametrize(
    ("table", "error"),
    [
        ("[journal]\npath = '{}'", "journal {} cannot be used: {}; correct that, or set another [journal] path"),
        (
            "[sensors]\nurl = 'sqlite:///{}'",
            "registry of sensors {} cannot be used: {}; correct that, or set another [sensors] url",
        ),
        ("[sinks.a]\ntype = 'csv'\npath = '{}'", "config.toml [sinks.a]: {} cannot be used: {}"),
        ("[sinks.a]\ntype = 'sql'\nurl = 'sqlite:///{}'", "config.toml [sinks.a]: {} cannot be used: {}"),
    ],
    ids=["journal", "registry", "csv", "sql"],
)
@pytest.mark.parametrize("place", ["closed/file", "loop", "long" * 64], ids=lambda place: place[:6])
def test_a_path_that_the_system_refuses_is_one_error_line(
    place: str, table: str, error: str, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    (operator.folder / "loop").symlink_to("loop")
    refuse(operator.folder / "closed" / "file", monkeypatch)
    operator.configure(f"{table.format(place)}\n" + ("" if "[sinks" in table else CONSOLE))
    reasons = {"closed/file": errno.EACCES, "loop": errno.ELOOP}
    path, reason = operator.folder / place, os.strerror(reasons.get(place, errno.ENAMETOOLONG))
    assert operator.run("check") == (1, [], [f"error: {error.format(path, reason)}"])


def refuse(refused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a path be in a folder that this user, who may be root, cannot search."""
    stat = os.stat

    def refusing(path: Any, **options: Any) -> os.stat_result:
        if str(path) == str(refused):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", refusing)


def test_a_journal_that_database_url_replaces_need_not_be_readable(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator.configure(CONSOLE)
    refuse(operator.folder / "data" / "journal.sqlite", monkeypatch)
    done = operator.run("check", DATABASE_URL="postgresql://127.0.0.1:1/x")
    assert done == (1, [], ["error: the database of DATABASE_URL cannot be used now: connection refused"])


def test_problems_of_sinks_are_reported_while_the_database_is_away(operator: Operator) -> None:
    operator.configure("[sinks.a]\ntype = 'csf'\n")
    code, out, errors = operator.run("check", DATABASE_URL="postgres://u:pass-word@127.0.0.1:9/d")
    assert (code, out, len(errors)) == (1, [], 2)
    assert errors[0] == f"error: config.toml [sinks.a]: no sink type 'csf' (did you mean 'csv'?); {THERE_ARE}"
    assert "refused" in errors[1]
    assert "pass-word" not in errors[1]


def test_pending_deliveries_in_a_journal_that_a_database_has_replaced_are_a_warning(operator: Operator) -> None:
    operator.configure(CONSOLE)
    with closing(open_journal(operator.settings)) as journal:
        journal.accept([Arrival(name, b"", NOON) for name in "abc"])
        journal.route([(event, ["console", "erp"]) for event in journal.unrouted(1)])
    assert operator.run("check", DATABASE_URL=new_database()) == (
        0,
        ["config.toml is valid. Enabled sinks: console. Signature secrets: 1."],
        [
            f"warning: the journal {operator.folder}/data/journal.sqlite is not used while DATABASE_URL is set, and "
            "has 3 pending deliveries; run `python -m receiver deliver --until-empty` without DATABASE_URL"
        ],
    )


def test_every_problem_of_plugins_and_sinks_has_a_line(operator: Operator) -> None:
    (operator.folder / "mine.py").write_text(BROKEN_PLUGIN)
    operator.configure("""
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
    code, out, errors = operator.run("check", URL="value-from-the-environment")
    known = f"{THERE_ARE}; 2 plugins could not be loaded"
    assert (code, out) == (1, [])
    assert errors == [
        f"error: plugin {operator.folder}/mine.py: mine.py:1: "
        "ModuleNotFoundError: No module named 'not_installed_here'",
        f"error: plugin {operator.folder}/nowhere.py: no such file",
        f"error: config.toml [sinks.a]: no sink type 'cvs' (did you mean 'csv'?); {known}",
        "error: config.toml [sinks.b]: no option 'row' (did you mean 'rows'?)",
        f"error: config.toml [sinks.c]: no sink type 'mine'; {known}",
        f"error: config.toml [sinks.d]: no column 'tiem'; there are: {COLUMNS}",
        "error: config.toml [sinks.e]: url: the environment variable NOT_SET is not set",
        "error: config.toml [sinks.f]: concurrency = 'x': give a whole number, such as 5",
        "error: config.toml [sinks.f]: url must begin with http:// or https:// and name a host",
        "error: config.toml [sinks.g]: retry.max_age: "
        'give seconds, or a number with a unit such as "30s", "5m", "2h" or "3d"',
    ]


def test_problems_of_sinks_are_reported_together_with_those_of_the_receivers_own_settings(operator: Operator) -> None:
    operator.configure(
        "[receiver]\nmax_body_byte = 1\n[sinks.a]\ntype = 'csv'\npth = 'a.csv'\n[sinks.b]\ntype = 'csf'\n"
    )
    assert operator.run("check", **{SECRET: ""}) == (
        1,
        [],
        [
            "error: config.toml [receiver]: no option 'max_body_byte' (did you mean 'max_body_bytes'?)",
            "error: environment: DT_SIGNATURE_SECRET is not set; "
            "set it to the signature secret of your Data Connector, or set DT_ORGANIZATION_ID",
            "error: config.toml [sinks.a]: option 'path' is missing",
            "error: config.toml [sinks.a]: no option 'pth' (did you mean 'path'?)",
            f"error: config.toml [sinks.b]: no sink type 'csf' (did you mean 'csv'?); {THERE_ARE}",
        ],
    )


def test_an_empty_sink_type_is_a_problem(operator: Operator) -> None:
    operator.configure("[sinks.a]\ntype = ''\n")
    assert operator.run("check") == (1, [], [f"error: config.toml [sinks.a]: no sink type ''; {THERE_ARE}"])


def test_an_event_type_in_a_filter_that_dt_does_not_document_is_a_warning(operator: Operator) -> None:
    operator.configure(f"{CONSOLE}[sinks.console.filter]\nevent_types = ['touch', 'temperatur']\n")
    assert operator.run("check") == (
        0,
        ["config.toml is valid. Enabled sinks: console. Signature secrets: 1."],
        [
            "warning: config.toml [sinks.console]: filter.event_types: "
            "DT documents no event type 'temperatur' (did you mean 'temperature'?)"
        ],
    )


def test_a_removed_sink_with_pending_deliveries_is_a_warning(operator: Operator) -> None:
    operator.add_events({"a": ["old", "archive"], "b": ["old"]})
    operator.configure(f"{JOURNAL}[sinks.archive]\ntype = 'csv'\npath = 'events.csv'\n")
    assert operator.run("check") == (
        0,
        ["config.toml is valid. Enabled sinks: archive. Signature secrets: 1."],
        [
            "warning: sink old is no longer enabled and has 2 pending deliveries; "
            "enable it, or run `python -m receiver sinks remove old` to delete what is pending"
        ],
    )
    operator.lines("sinks", "remove", "old", "--yes")
    assert operator.run("check").errors == []


def test_the_last_use_of_each_of_several_secrets_is_shown(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    operator.configure(JOURNAL + CONSOLE)
    for name in ("OLD", "NEXT"):
        monkeypatch.setenv(f"{SECRET}__{name}", f"{STRONG_SECRET} {name}")
    a_day_ago = (datetime.now(UTC) - timedelta(hours=24, minutes=1)).replace(second=0)
    with time_machine.travel(a_day_ago):  # a journal reads the clock when it is opened
        operator.open_journal().accept([Arrival("a", event_body("a"), time.time(), secret=f"{SECRET}__OLD")])
    operator.open_journal().accept([Arrival("b", event_body("b"), time.time(), secret=SECRET)])
    current, *others = operator.lines("check")
    assert is_recent(current.removeprefix(f"{SECRET} was last used ").replace(" UTC", "+00:00"))
    assert others == [
        f"{SECRET}__NEXT has not been used yet",
        f"{SECRET}__OLD was last used {a_day_ago:%Y-%m-%d %H:%M} UTC; it is safe to remove",
        "config.toml is valid. Enabled sinks: console. Signature secrets: 3.",
    ]


def test_a_secret_is_safe_to_remove_only_if_pushes_were_verified_without_it(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator.configure(JOURNAL + CONSOLE)
    monkeypatch.setenv("DT_ORGANIZATION_ID", "one, organizations/two")

    def verified(name: str, hours_ago: float) -> None:
        with time_machine.travel(datetime.now(UTC) - timedelta(hours=hours_ago)):
            journal = operator.open_journal()
            journal.accept([Arrival(f"{hours_ago:g}", event_body("a"), time.time(), secret=name)])

    def of_secret() -> str:
        return re.sub("20.* UTC", "TIME", operator.run("check")[1][0])

    verified("DT_ORGANIZATION_ID", 100)
    assert of_secret() == f"{SECRET} has not been used yet"
    verified(SECRET, 90)
    assert of_secret() == f"{SECRET} was last used TIME"
    verified("DT_ORGANIZATION_ID", 70)
    assert of_secret() == f"{SECRET} was last used TIME"
    verified("DT_ORGANIZATION_ID", 60)
    assert of_secret() == f"{SECRET} was last used TIME; it is safe to remove"
    verified("DT_ORGANIZATION_ID", 1)
    verified(SECRET, 0)
    assert of_secret() == f"{SECRET} was last used TIME"
    assert operator.run("check")[1][2:] == [
        "DT's signing keys: 0, not fetched yet; for 2 organizations: one, two",
        "config.toml is valid. Enabled sinks: console. Signature secrets: 1.",
    ]


LOCAL_PLUGIN = """
from pathlib import Path
from receiver import hookimpl

class Mine:
    def __init__(self, path: Path) -> None:
        self.path = path

    @hookimpl
    def local_path(self):
        return self.path

    @hookimpl
    def deliver(self, event):
        pass

@hookimpl
def register_sinks(register):
    register("mine", Mine)
"""
STORING_SINKS = """
[receiver]
plugins = ["mine.py"]
[sinks.archive]
type = "csv"
path = "events.csv"
[sinks.local_readings]
type = "sql"
url = "sqlite:///readings.sqlite"
[sinks.remote_readings]
type = "sql"
url = "postgresql://user@db.example/readings"
[sinks.own]
type = "mine"
path = "own.txt"
[sinks.console]
type = "stdout"
[sinks.disabled]
type = "csv"
path = "disabled.csv"
enabled = false
"""


def test_sinks_that_store_events_on_a_dynos_disk_are_warnings(operator: Operator) -> None:
    (operator.folder / "mine.py").write_text(LOCAL_PLUGIN)
    operator.configure(STORING_SINKS)
    assert operator.run("check", DYNO="web.1") == (
        0,
        [
            "config.toml is valid. Enabled sinks: archive, local_readings, remote_readings, own, console. "
            "Signature secrets: 1."
        ],
        [
            "warning: the journal is on the dyno's disk, which is lost at each restart together with all pending "
            "events; run `heroku addons:create heroku-postgresql:essential-0`",
            *(
                f"warning: sink {sink} writes to the dyno's disk, and its file is lost at each restart; "
                f'replace [sinks.{sink}] with one of type = "sql" and url = {{ env = "DATABASE_URL" }}'
                for sink in ("archive", "local_readings", "own")
            ),
        ],
    )


def test_sinks_that_store_events_on_any_other_machine_are_no_warnings(operator: Operator) -> None:
    (operator.folder / "mine.py").write_text(LOCAL_PLUGIN)
    operator.configure(STORING_SINKS)
    assert operator.run("check").errors == []


def test_keys_that_were_renamed_are_reported_with_their_new_names(operator: Operator) -> None:
    operator.configure(f"{CONSOLE}retry = {{ first_pause = 1, longest_pause = 60 }}\n[receiver]\nmax_body = 2048\n")
    assert operator.run("check") == (
        1,
        [],
        [
            "error: config.toml [receiver]: option 'max_body' is now called 'max_body_bytes'",
            "error: config.toml [sinks.console]: option 'retry.first_pause' is now called 'initial_backoff'",
            "error: config.toml [sinks.console]: option 'retry.longest_pause' is now called 'max_backoff'",
        ],
    )


def test_no_problem_of_a_table_hides_another(operator: Operator) -> None:
    operator.configure("""
        [sinks.a]
        type = "csv"
        path = "a.csv"
        columns = ["tiem"]
        retry = { max_attempts = 0 }
        filter = { event_types = ["touch", "temperatur"], devces = ["x"] }
        """)
    code, out, errors = operator.run("check")
    assert (code, out) == (1, [])
    assert errors == [
        "warning: config.toml [sinks.a]: filter.event_types: "
        "DT documents no event type 'temperatur' (did you mean 'temperature'?)",
        "error: config.toml [sinks.a]: no option 'filter.devces' (did you mean 'devices'?)",
        "error: config.toml [sinks.a]: retry.max_attempts: give at least 1",
        f"error: config.toml [sinks.a]: no column 'tiem'; there are: {COLUMNS}",
    ]


def test_an_error_in_a_table_hides_no_warning_about_it(operator: Operator) -> None:
    operator.configure(
        "[sinks.archive]\ntype = 'csv'\npath = 'events.csv'\nretry = { max_attempts = 0 }\n",
    )
    code, out, errors = operator.run("check", DYNO="web.1", DATABASE_URL=new_database())
    assert (code, out) == (1, [])
    assert errors == [
        "warning: sink archive writes to the dyno's disk, and its file is lost at each restart; "
        'replace [sinks.archive] with one of type = "sql" and url = { env = "DATABASE_URL" }',
        "error: config.toml [sinks.archive]: retry.max_attempts: give at least 1",
    ]


FINDING_PLUGIN = """
from pathlib import Path
from receiver import hookimpl

class Mine:
    def __init__(self, says: list[str] | None = None, text: str = "") -> None:
        self.says, self.text = says, text

    @hookimpl
    def find_problems(self, others):
        if self.text == "raise":
            raise LookupError("broken")
        if self.text:
            return self.text
        return self.says and [f"{line} besides {len(others)}" for line in self.says]

    @hookimpl
    def deliver(self, event):
        raise AssertionError("not called by check")

@hookimpl
def register_sinks(register):
    register("mine", Mine)
"""


def test_what_keeps_a_sink_from_working_is_found_by_the_sink_itself(operator: Operator) -> None:
    (operator.folder / "mine.py").write_text(FINDING_PLUGIN)
    operator.configure("""
        [receiver]
        plugins = ["mine.py"]
        [sinks.a]
        type = "mine"
        says = ["one\\nline", "two"]
        [sinks.b]
        type = "mine"
        [sinks.c]
        type = "mine"
        text = "raise"
        [sinks.d]
        type = "mine"
        text = "no list"
        [sinks.e]
        type = "mine"
        enabled = false
        says = ["it is disabled"]
        """)
    assert operator.run("check") == (
        1,
        [],
        [
            "error: config.toml [sinks.a]: one line besides 3",
            "error: config.toml [sinks.a]: two besides 3",
            "error: config.toml [sinks.c]: mine.py:12: LookupError: broken",
            "error: config.toml [sinks.d]: Mine.find_problems must return a list of text",
        ],
    )


def test_built_in_sinks_that_can_never_work_are_problems(operator: Operator) -> None:
    folder = operator.folder
    (folder / "a folder").mkdir()
    (folder / "a file").touch()
    (folder / "link.csv").symlink_to("events.csv")
    (folder / "lost").symlink_to("nowhere/at all")
    operator.configure("""
        [sinks.one]
        type = "csv"
        path = "events.csv"
        [sinks.two]
        type = "csv"
        path = "link.csv"
        [sinks.three]
        type = "csv"
        path = "a file/events.csv"
        [sinks.four]
        type = "csv"
        path = "a folder"
        [sinks.pipe]
        type = "csv"
        path = "/dev/null"
        [sinks.five]
        type = "csv"
        path = "{day}/{date}-{hour}.csv"
        [sinks.six]
        type = "csv"
        path = "lost/events.csv"
        [sinks.seven]
        type = "sql"
        url = "sqlite:///a folder"
        [sinks.eight]
        type = "sql"
        url = "sqlite:///a file/readings.sqlite"
        [sinks.nine]
        type = "webhook"
        url = "http://127.0.0.1:9000/hook"
        ca_file = "not here.pem"
        secret = ["whsec_c2hvcnQh", "c2VjcmV0IG9mIHR3ZW50eS1mb3VyIGJ5dGVz"]
        [sinks.ten]
        type = "webhook"
        url = "http://localhost:9000/hook"
        [sinks.eleven]
        type = "webhook"
        url = "http://169.254.169.254/"
        allow_private = true
        [sinks.allowed]
        type = "webhook"
        url = "http://localhost:9000/hook"
        allow_private = true
        [sinks.proxied]
        type = "webhook"
        url = "http://localhost:9000/hook"
        proxy = "http://proxy.example:3128"
        """)
    private = "has an address that is private; set allow_private = true if this is intended"
    shared = "is also that of another sink; give each sink a path of its own"
    link_local = "has an address that is link-local or a cloud's metadata service, which is never allowed"
    assert operator.run("check") == (
        1,
        [],
        [
            f"error: config.toml [sinks.{sink}]: {problem}"
            for sink, problem in (
                ("one", f"path {folder}/events.csv {shared}"),
                ("two", f"path {folder}/link.csv {shared}"),
                ("three", f"{folder}/a file/events.csv cannot be created: {folder}/a file is not a folder"),
                ("four", f"path {folder}/a folder is a folder; it must be a file"),
                ("pipe", "path /dev/null is a device or a pipe; it must be a file"),
                ("five", f"path {folder}/{{day}}/{{date}}-{{hour}}.csv contains {{day}}; only {{date}} is replaced"),
                ("five", f"path {folder}/{{day}}/{{date}}-{{hour}}.csv contains {{hour}}; only {{date}} is replaced"),
                (
                    "six",
                    f"{folder}/lost/events.csv cannot be created: {folder}/lost is a symbolic link that leads nowhere",
                ),
                ("seven", f"url: {folder}/a folder is a folder; it must be a file"),
                ("eight", f"{folder}/a file/readings.sqlite cannot be created: {folder}/a file is not a folder"),
                ("nine", f"127.0.0.1 {private}"),
                ("nine", f"ca_file {folder}/not here.pem cannot be read: No such file or directory"),
                ("nine", "secret has 6 bytes; Standard Webhooks requires at least 24"),
                ("ten", f"localhost {private}"),
                ("eleven", f"169.254.169.254 {link_local}"),
            )
        ],
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        *("a file", "a folder", "config.toml", "link.csv", "lost"),
    ]


def test_every_wrong_option_that_a_constructor_finds_is_reported(operator: Operator) -> None:
    operator.configure("""
        [sinks.a]
        type = "webhook"
        url = "ftp://example.com"
        secret = "?"
        proxy = "?"
        headers = { "a b" = "x", c = "\\u00e9" }
        [sinks.b]
        type = "sql"
        url = "mysql://"
        readings = ""
        label_columns = ["a", "A"]
        """)
    code, out, errors = operator.run("check")
    assert (code, out) == (1, [])
    assert errors == [
        "error: config.toml [sinks.a]: url must begin with http:// or https:// and name a host",
        "error: config.toml [sinks.a]: headers: a name is not a token of letters, digits and -",
        "error: config.toml [sinks.a]: headers: the value of header c must be ASCII without line ends",
        "error: config.toml [sinks.a]: secret must be base64, with or without the prefix whsec_",
        "error: config.toml [sinks.a]: proxy must be a URL such as http://user:password@proxy.example:3128",
        "error: config.toml [sinks.b]: url must begin with postgres://, postgresql:// or sqlite:///",
        "error: config.toml [sinks.b]: tables: '' is not a name of 1 to 63 bytes, as databases allow",
        "error: config.toml [sinks.b]: label_columns: 'label_A' is used twice; "
        "names that differ only in case are the same",
    ]


def test_a_filter_that_no_event_can_pass_is_a_problem(operator: Operator) -> None:
    operator.configure(
        f"{CONSOLE}filter = {{ event_types = [], devices = ['projects/p/devices/d'], projects = ['projects/p'] }}\n"
        "[sinks.off]\ntype = 'stdout'\nenabled = false\nfilter = { devices = [] }\n"
    )
    assert operator.run("check") == (
        1,
        [],
        [
            "error: config.toml [sinks.console]: filter.event_types = [] matches no event; name some, or remove it",
            "error: config.toml [sinks.console]: filter.devices: 'projects/p/devices/d' matches no event; "
            "give the id alone, 'd'",
            "error: config.toml [sinks.console]: filter.projects: 'projects/p' matches no event; "
            "give the id alone, 'p'",
        ],
    )
