"""The examples as their users and authors run them: their tests, and a package installed with pip and uninstalled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer

from receiver.testing import event, wait_until
from receiver.testing.fixtures import StartReceiver
from receiver.testing.running import ROOT
from receiver.variables import SECRET

EXAMPLES = ROOT / "examples"
SINK = """
[sinks.history]
type = "influx"
url = "{url}"
bucket = "sensors"
token = "not-to-be-seen"
"""


class Environment:
    """A virtual environment with the receiver-influx package; it finds everything else where these tests find it."""

    def __init__(self, folder: Path) -> None:
        self.python = str(folder / "venv" / "bin" / "python")
        run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")])
        site_packages = run([self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
        shared = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
        (Path(site_packages) / "shared.pth").write_text("\n".join(shared), encoding="utf-8")
        copy = folder / "copy"  # since pip writes next to the sources
        shutil.copytree(
            EXAMPLES / "receiver-influx",
            copy,
            ignore=shutil.ignore_patterns("__pycache__", ".*_cache", "build", "*.egg-info"),
        )
        self.pip("install", "--no-index", "--no-build-isolation", "--no-deps", "--no-compile", str(copy))

    def pip(self, *arguments: str) -> str:
        return run([self.python, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir", *arguments])

    def receiver(self, *arguments: str, config: Path, code: int = 0) -> str:
        return run([self.python, "-m", "receiver", *arguments], code, RECEIVER_CONFIG=str(config))


def run(command: list[str], code: int = 0, **environment: str) -> str:
    """What a command prints on both outputs; it must end with this code."""
    environment = {**os.environ, SECRET: "s" * 32, **environment}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("example", ["test_chat_alert.py", "receiver-influx"])
def test_the_tests_of_an_example_pass(example: str) -> None:
    """By themselves, as authors run them: `make test TESTS=examples/…`."""
    output = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLES / example)])
    assert " passed" in output.splitlines()[-1]


def test_the_package_works_once_it_is_installed_until_it_is_uninstalled(
    tmp_path: Path, start_receiver: StartReceiver, httpserver: HTTPServer
) -> None:
    """In one test, because the environment takes seconds to create."""
    environment = Environment(tmp_path)
    config = tmp_path / "config.toml"
    valid = "config.toml is valid. Enabled sinks: history."
    httpserver.expect_request("/api/v2/write", method="POST").respond_with_data(status=204)
    sink = SINK.format(url=httpserver.url_for(""))

    config.write_text(sink, encoding="utf-8")
    entry_point = "influx  (influx = receiver_influx)\nWrites each reading as a point"
    assert entry_point in environment.receiver("sinks", config=config)
    assert valid in environment.receiver("check", config=config)

    config.write_text(f"[receiver]\nplugins = ['receiver_influx']\n{sink}", encoding="utf-8")
    assert valid in environment.receiver("check", config=config), "listed, too, it is still one plugin"

    assert_delivers(start_receiver, sink, environment.python, httpserver)

    environment.pip("uninstall", "--yes", "receiver-influx")
    config.write_text(sink, encoding="utf-8")
    problem = "config.toml [sinks.history]: no sink type 'influx'; there are: csv, mqtt, sql, stdout, webhook"
    assert problem in environment.receiver("check", config=config, code=1)
    assert "influx" not in environment.receiver("sinks", config=config)


def assert_delivers(start_receiver: StartReceiver, sink: str, python: str, server: HTTPServer) -> None:
    """A receiver that runs with this sink and interpreter delivers readings, and does not log the token."""
    receiver = start_receiver(sink, python=python)
    events = [event("temperature", value=21.5), event("waterPresent", state="PRESENT"), event("labelsChanged")]
    for each in events:
        assert receiver.push(each.body) == (200, "accepted")
    wait_until(lambda: receiver.metric('receiver_deliveries_total{sink="history"}') == len(events))
    lines = [line for request, _ in server.log for line in request.get_data(as_text=True).splitlines()]
    assert sorted(line.split()[1] for line in lines) == ["temperature=21.5", "water_present=1.0"]
    assert "not-to-be-seen" not in receiver.log
