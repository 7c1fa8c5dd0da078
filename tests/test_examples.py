"""The examples, as their authors and users meet them: tested, installed with pip, run, and uninstalled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT, StartReceiver, wait_until
from pytest_httpserver import HTTPServer

from receiver.settings import SECRET
from receiver.testing import event

EXAMPLES = ROOT / "examples"
PACKAGE = EXAMPLES / "receiver-influx"
SOURCE = "influx = receiver_influx"
CONFIG = """
[sinks.history]
type = "influx"
url = "{url}"
bucket = "sensors"
token = "not-to-be-seen"
"""


class Home:
    """An environment with an interpreter of its own, which finds the receiver's dependencies in ours."""

    def __init__(self, folder: Path) -> None:
        self.python = str(folder / "bin" / "python")
        run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
        told = run([self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
        beside = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
        (Path(told.strip()) / "beside.pth").write_text("\n".join(beside), encoding="utf-8")

    def pip(self, *arguments: str) -> str:
        return run([self.python, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir", *arguments])

    def receiver(self, *arguments: str, config: Path, code: int = 0) -> str:
        return run([self.python, "-m", "receiver", *arguments], code, RECEIVER_CONFIG=str(config))


def run(command: list[str], code: int = 0, **environment: str) -> str:
    """What a command prints, when it ends with this code."""
    whole = {**os.environ, SECRET: "s" * 32, **environment}
    done = subprocess.run(command, cwd=ROOT, env=whole, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """An environment in which the package is installed, from a copy since pip leaves its work behind."""
    folder = tmp_path_factory.mktemp("home")
    copy = shutil.copytree(PACKAGE, folder / "copy", ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
    home = Home(folder / "venv")
    home.pip("install", "--no-index", "--no-build-isolation", "--no-deps", str(copy))
    return home


def outcome(path: Path, *arguments: str, python: str = sys.executable) -> str:
    """The last line of a run of an example's tests, which passes."""
    return run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path), *arguments]).splitlines()[-1]


def test_the_chat_alert_passes_its_tests() -> None:
    assert " passed" in outcome(EXAMPLES / "test_chat_alert.py")


def test_the_package_passes_its_tests() -> None:
    assert " passed" in outcome(PACKAGE)


def test_the_installed_package_passes_its_tests_without_its_source(home: Home) -> None:
    some = "nobody_knows or is_a_point or wrong_option"
    told = outcome(PACKAGE, "-o", "pythonpath=", "-k", some, python=home.python)
    assert told.startswith("3 passed, ")


def test_an_installed_package_is_found_by_its_entry_point(home: Home, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(url="http://localhost:8086"), encoding="utf-8")
    assert f"influx  ({SOURCE})\nWrites each reading as a point" in home.receiver("sinks", config=config)
    assert "config.toml is right. Enabled sinks: history." in home.receiver("check", config=config)


def test_a_package_that_is_also_listed_is_one_plugin(home: Home, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    listed = "[receiver]\nplugins = ['receiver_influx']\n"
    config.write_text(listed + CONFIG.format(url="http://localhost:8086"), encoding="utf-8")
    assert "config.toml is right. Enabled sinks: history." in home.receiver("check", config=config)


def test_an_installed_package_delivers_in_a_running_receiver(
    home: Home, start_receiver: StartReceiver, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/api/v2/write", method="POST").respond_with_data(status=204)
    receiver = start_receiver(CONFIG.format(url=httpserver.url_for("")), python=home.python)
    pushed = [event("temperature", value=21.5), event("waterPresent", state="PRESENT"), event("labelsChanged")]
    for each in pushed:
        assert receiver.push(each.body) == (200, "accepted")
    wait_until(lambda: receiver.metric('receiver_delivered_total{sink="history"}') == len(pushed))
    lines = [line for request, _ in httpserver.log for line in request.get_data(as_text=True).splitlines()]
    assert sorted(line.split()[1] for line in lines) == ["temperature=21.5", "water_present=1.0"]
    assert "not-to-be-seen" not in receiver.log


def test_an_uninstalled_package_is_missed_in_a_clear_line(home: Home, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(url="http://localhost:8086"), encoding="utf-8")
    home.pip("uninstall", "--yes", "receiver-influx")
    missed = home.receiver("check", config=config, code=1)
    assert "config.toml [sinks.history]: no sink type 'influx'; there are: csv, sql, stdout, webhook" in missed
    assert "influx" not in home.receiver("sinks", config=config)
