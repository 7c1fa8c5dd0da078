"""The examples of the documentation for authors of sinks: each is put where its first line says, and works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT, run
from support.commands import Operator

PAGES = ("writing-a-sink.md", "testing-and-packaging.md")
BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(r"```(\w*)\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
]
"""Language and text of each block."""

PLUGINS = ("plugins/alarm.py", "plugins/pager.py", "plugins/chat.py", "plugins/hourly.py")
ENVIRONMENT = {"CHAT_WEBHOOK_URL": "https://chat.example.com/hooks/not-to-be-seen"}

SUITES = """
import contextlib
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from receiver.testing import SinkSuite

class TestHourly(SinkSuite, plugin="plugins/hourly.py", options={"path": "hours.sqlite"}):
    @pytest.fixture
    def delivered_ids(self, tmp_path):
        def ids():
            with contextlib.closing(sqlite3.connect(tmp_path / "hours.sqlite")) as database:
                return [event_id for event_id, in database.execute("SELECT id FROM seen")]

        return ids

class ChatService(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.server.status)
        self.send_header("Retry-After", "1")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass

class TestChat(SinkSuite, plugin="plugins/chat.py", idempotent=False, concurrency=4):
    @pytest.fixture
    def service(self):
        service = ThreadingHTTPServer(("127.0.0.1", 0), ChatService)
        service.status = 200
        threading.Thread(target=service.serve_forever, args=[0.02], daemon=True).start()
        yield service
        service.shutdown()
        service.server_close()

    @pytest.fixture
    def options(self, service):
        return {"webhook_url": f"http://127.0.0.1:{service.server_port}/not-to-be-seen"}

    @pytest.fixture(params=[429, 500, 302])
    def outage(self, request, service):
        @contextlib.contextmanager
        def failing():
            service.status = request.param
            yield
            service.status = 200

        return failing
"""


def blocks_for(file: str) -> list[str]:
    """The blocks that belong into this file, as their first line says."""
    return [text for _, text in BLOCKS if text.startswith(f"# {file}\n")]


def write(folder: Path, *files: str) -> None:
    for file in files:
        [text] = blocks_for(file)
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(text)


@pytest.fixture
def user(operator: Operator) -> Operator:
    """Runs commands in a folder with the plugins and the settings of the examples."""
    write(operator.folder, *PLUGINS)
    operator.configure("\n".join([f"[receiver]\nplugins = {list(PLUGINS)}", *blocks_for("config.toml")]))
    return operator


def test_these_tests_use_every_example() -> None:
    files = [re.match(r"# (\S+)\n", text) for language, text in BLOCKS if language]
    assert [file[1] for file in files if file] == [
        "plugins/alarm.py",
        "config.toml",
        "plugins/pager.py",
        "plugins/chat.py",
        "config.toml",
        "plugins/hourly.py",
        "tests/test_alarm.py",
        "pyproject.toml",
    ]
    assert None not in files
    assert [text for language, text in BLOCKS if not language] == [
        "python -m receiver new-sink NAME\n",
        "make test TESTS=tests/test_alarm.py\n",
    ]


def test_the_settings_are_valid_and_the_options_are_explained(user: Operator) -> None:
    code, [line], errors = user.run("check", **ENVIRONMENT)
    assert (code, errors) == (0, [])
    assert line.startswith("config.toml is valid. Enabled sinks: alarm, chat.")
    shown = user.lines("sinks")
    greeting = shown.index('  greeting  (text, default "Water at")')
    assert shown[greeting + 1] == "      what it says before the name of the sensor."
    assert 'webhook_url = { env = "CHAT_WEBHOOK_URL" }' in shown


def test_check_names_a_wrong_option_and_the_message_of_the_constructor(user: Operator) -> None:
    config = user.folder / "config.toml"
    config.write_text(config.read_text().replace("greeting", "greetign") + 'channel = "sensors"\n')
    assert user.run("check", **ENVIRONMENT).errors == [
        "error: config.toml [sinks.alarm]: no option 'greetign' (did you mean 'greeting'?)",
        "error: config.toml [sinks.chat]: channel must begin with #",
    ]


def test_the_sinks_pass_the_suite_and_the_example_of_a_test_passes(clone: Path) -> None:
    write(clone, *PLUGINS, "tests/test_alarm.py")
    (clone / "tests" / "test_suites.py").write_text(SUITES)
    few_requests = "not (TestChat and thousand)"  # all other rules deliver by HTTP as well, and this one takes long
    tested = run(clone, "pytest", "-q", "tests", "-k", few_requests, PYTHONDONTWRITEBYTECODE="1")
    assert tested.returncode == 0, tested.stdout
    assert "skipped" not in tested.stdout


def test_the_demo_calls_the_hooks_of_a_plugin_for_incidents(clone: Path, tmp_path: Path) -> None:
    write(clone, "plugins/pager.py")
    done = run(clone, "receiver", "demo", "--seconds", "0.5", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    [printed] = tmp_path.glob("receiver-demo-*/stdout.txt")
    lines = [line for line in printed.read_text(encoding="utf-8").splitlines() if line.startswith(("Silent", "Heard"))]
    assert [line.partition(" has not")[0] for line in lines] == ["Silent: Freezer 1", "Heard again: Freezer 1"]


def test_the_examples_pass_make_lint(clone: Path) -> None:
    write(clone, *PLUGINS, "tests/test_alarm.py")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [shortest] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (clone / "plugins" / "shortest.py").write_text(shortest)
    plugins = [*PLUGINS, "plugins/shortest.py"]
    for tool in (
        ["ruff", "check", *plugins, "tests"],
        ["ruff", "format", "--check", *plugins, "tests"],
        ["mypy", "--follow-imports=silent", *plugins],
    ):
        checked = run(clone, *tool)
        assert checked.returncode == 0, checked.stdout


def test_the_package_is_found_once_it_is_installed(
    operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, site = tmp_path / "package", tmp_path / "site"
    package.mkdir()
    [settings], [plugin] = blocks_for("pyproject.toml"), blocks_for("plugins/alarm.py")
    (package / "pyproject.toml").write_text(settings)
    (package / "receiver_alarm.py").write_text(plugin)
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    installed = run(package, "pip", "install", "--quiet", *offline, "--target", str(site), ".")
    assert installed.returncode == 0, installed.stderr
    monkeypatch.syspath_prepend(site)
    shown = operator.lines("sinks")
    assert shown[shown.index("alarm  (alarm = receiver_alarm)") + 1] == "Says where there is water."
