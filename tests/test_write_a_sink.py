"""The README's chapter on writing a sink: everything it shows is put where it says, and works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT, run

CHAPTER = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Write a sink\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", CHAPTER, re.DOTALL)
URL = {"CHAT_WEBHOOK_URL": "https://chat.example.com/hooks/not-to-be-seen"}

SUITES = """
import contextlib
import sqlite3

import pytest
from werkzeug import Response

from receiver.testing import SinkSuite

class TestHourly(SinkSuite, plugin="plugins/hourly.py", options={"path": "hours.sqlite"}):
    @pytest.fixture
    def arrived(self, tmp_path):
        def ids():
            with contextlib.closing(sqlite3.connect(tmp_path / "hours.sqlite")) as database:
                return [name for name, in database.execute("SELECT id FROM seen")]

        return ids

class TestChat(SinkSuite, plugin="plugins/chat.py", repeatable=False, concurrency=4):
    @pytest.fixture
    def options(self, httpserver):
        httpserver.expect_request("/not-to-be-seen").respond_with_handler(self.answer)
        self.status = 200
        return {"webhook_url": httpserver.url_for("/not-to-be-seen")}

    def answer(self, request):
        return Response(status=self.status, headers={"Retry-After": "1"})

    @pytest.fixture(params=[429, 500, 302])
    def broken(self, request):
        @contextlib.contextmanager
        def answering():
            self.status = request.param
            yield
            self.status = 200

        return answering
"""


def shown(language: str, name: str) -> list[str]:
    """The blocks that belong into a file of this name, which their first line says."""
    return [text for kind, text in BLOCKS if kind == language and text.startswith(f"# {name}\n")]


def test_every_block_of_the_chapter_is_put_to_the_test_here() -> None:
    places = [re.match(r"# (\S+)\n", text) for kind, text in BLOCKS if kind]
    assert [place[1] for place in places if place] == [
        "plugins/alarm.py",
        "config.toml",
        "plugins/chat.py",
        "config.toml",
        "plugins/hourly.py",
        "tests/test_alarm.py",
        "pyproject.toml",
    ]
    assert [text for kind, text in BLOCKS if not kind] == ["make test TESTS=tests/test_alarm.py\n"]


@pytest.fixture
def written(clone: Path) -> Path:
    """A copy of the program with all that the chapter shows in its place."""
    for name in ("plugins/alarm.py", "plugins/chat.py", "plugins/hourly.py", "tests/test_alarm.py"):
        [text] = shown("python", name)
        (clone / name).write_text(text)
    (clone / "config.toml").write_text("\n".join(shown("toml", "config.toml")))
    return clone


def test_the_settings_are_right_and_the_options_are_explained(written: Path) -> None:
    checked = run(written, "receiver", "check", **URL)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout.startswith("config.toml is right. Enabled sinks: alarm, chat.")
    told = run(written, "receiver", "sinks").stdout
    assert '  greeting  (text, default "Water at")\n      what it says before the name of the sensor.\n' in told
    assert '  webhook_url = { env = "CHAT_WEBHOOK_URL" }\n' in told


def test_a_wrong_option_is_named_as_the_chapter_says(written: Path) -> None:
    config = written / "config.toml"
    config.write_text(config.read_text().replace("greeting", "greetign") + 'channel = "sensors"\n')
    checked = run(written, "receiver", "check", **URL)
    assert checked.stderr.splitlines() == [
        "error: config.toml [sinks.alarm]: no option 'greetign' (did you mean 'greeting'?)",
        "error: config.toml [sinks.chat]: chat.py:18: ValueError: channel must begin with #",
    ]


def test_the_sinks_pass_the_suite_and_the_test_of_the_chapter_passes(written: Path) -> None:
    (written / "tests" / "test_suites.py").write_text(SUITES)
    tested = run(written, "pytest", "-q", "tests", PYTHONDONTWRITEBYTECODE="1")
    assert tested.returncode == 0, tested.stdout
    assert "skipped" not in tested.stdout


def test_the_package_is_found_once_it_is_installed(clone: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "pyproject.toml").write_text(shown("toml", "pyproject.toml")[0])
    (package / "receiver_alarm.py").write_text(shown("python", "plugins/alarm.py")[0])
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    installed = run(package, "pip", "install", "--quiet", *offline, "--target", str(tmp_path / "site"), ".")
    assert installed.returncode == 0, installed.stderr
    found = run(clone, "receiver", "sinks", PYTHONPATH=str(tmp_path / "site")).stdout
    assert "alarm  (alarm = receiver_alarm)\nSays where there is water.\n" in found
