"""The hook `local_path`: where a sink stores events on this machine, and the warning on a machine without a disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.plugins import DELIVER, IMPORTS, REGISTER, PluginFolder

from receiver.delivery import dispatcher as dispatcher_module
from receiver.delivery.crash_guard import CrashGuard
from receiver.delivery.plugins import load_plugins
from receiver.delivery.sinks import find_problems
from receiver.health import local_files
from receiver.journal import Journal
from receiver.lifeline import Lifeline
from receiver.redaction import Redactor
from receiver.server import dispatch

FILE = "    out: Path\n    @hookimpl\n    def local_path(self):\n        return self.out\n"


def plugin(local_path: str, fields: str = "") -> str:
    """A plugin whose sink implements local_path with this body."""
    hook = f"    @hookimpl\n    def local_path(self):\n        {local_path}\n"
    return f"{IMPORTS}@dataclass\nclass Mine:\n{fields}{hook}{DELIVER}{REGISTER}"


def warning(sink: str) -> str:
    return (
        f"sink {sink} writes to the dyno's disk, and its file is lost at each restart; "
        f'replace [sinks.{sink}] with one of type = "sql" and url = {{ env = "DATABASE_URL" }}'
    )


def test_a_sink_without_the_hook_has_no_local_path(plugin_folder: PluginFolder) -> None:
    plugin_folder.add(f"{IMPORTS}class Mine:\n{DELIVER}{REGISTER}")
    assert plugin_folder.build_sink().local_path is None


def test_a_hook_that_returns_none_means_no_local_path(plugin_folder: PluginFolder) -> None:
    plugin_folder.add(plugin("return None"))
    assert plugin_folder.build_sink().local_path is None


def test_the_hook_returns_the_path_that_the_sink_was_built_with(plugin_folder: PluginFolder) -> None:
    plugin_folder.add(plugin("return self.out", fields="    out: Path\n"))
    assert plugin_folder.build_sink("out = 'events.csv'").local_path == plugin_folder.folder / "events.csv"


@pytest.mark.parametrize(("value", "type"), [("'/tmp/x'", "str"), ("False", "bool"), ("[]", "list")])
def test_a_wrong_type_is_a_problem_of_the_sink(value: str, type: str, plugin_folder: PluginFolder) -> None:
    plugin_folder.add(plugin(f"return {value}"))
    assert plugin_folder.problem() == (
        f"config.toml [sinks.a]: mine.py:6: local_path must return a Path or None, not {type}"
    )


def test_an_exception_is_a_problem_of_the_sink(plugin_folder: PluginFolder) -> None:
    plugin_folder.add(plugin("raise OSError(5, 'gone')"))
    assert plugin_folder.problem() == "config.toml [sinks.a]: mine.py:8: OSError: [Errno 5] gone"


def test_an_argument_is_a_problem_of_the_sink(plugin_folder: PluginFolder) -> None:
    plugin_folder.add(plugin("return None").replace("local_path(self)", "local_path(self, folder)"))
    assert plugin_folder.problem() == (
        "config.toml [sinks.a]: mine.py:6: local_path has no argument 'folder'; it has none"
    )


SINKS = """
[sinks.file]
type = "csv"
path = "events.csv"
[sinks.local]
type = "sql"
url = "sqlite:////srv/events.sqlite"
[sinks.remote]
type = "sql"
url = "postgresql://user@example.com/events"
[sinks.console]
type = "stdout"
[sinks.off]
type = "csv"
path = "off.csv"
enabled = false
"""


def test_find_problems_returns_the_local_path_of_each_enabled_sink(plugin_folder: PluginFolder) -> None:
    settings = plugin_folder.settings(SINKS)
    redactor = Redactor(settings.secret_values)
    assert find_problems(load_plugins(settings, redactor), settings, redactor) == (
        [],
        {
            "file": plugin_folder.folder / "events.csv",
            "local": Path("/srv/events.sqlite"),
            "remote": None,
            "console": None,
        },
    )


def test_operators_are_warned_of_each_local_file_on_a_dyno_only(plugin_folder: PluginFolder) -> None:
    paths = {"file": Path("events.csv"), "console": None, "local": Path("events.sqlite")}
    assert local_files(plugin_folder.settings(), paths) == []
    assert local_files(plugin_folder.settings(DYNO="web.1"), paths) == [warning("file"), warning("local")]


def test_the_dispatcher_reports_the_warnings_with_its_liveness_and_logs_them(
    plugin_folder: PluginFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Started(Exception):
        """A dispatcher was created."""

    def dispatcher(journal: Journal, *arguments: object, warnings: list[str], **options: Any) -> None:
        journal.close()
        raise Started(*warnings)

    monkeypatch.setattr(dispatcher_module, "Dispatcher", dispatcher)
    monkeypatch.setattr(Lifeline, "catch_signals", lambda self: None)
    settings = plugin_folder.settings(SINKS, DYNO="web.1")
    with pytest.raises(Started) as started:
        dispatch(settings, Redactor(settings.secret_values), Lifeline(), "holder", CrashGuard())
    assert started.value.args == (warning("file"), warning("local"))
    assert caplog.messages == [warning("file"), warning("local")]
