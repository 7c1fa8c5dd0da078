"""The receiver as an installed package, with a plugin that is one: as those who do not clone the repository have it."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from support.installed import Installed


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An empty environment with the receiver and the example, built from copies, and what they depend on."""
    folder = tmp_path_factory.mktemp("installed")
    for name in ("receiver", "plugins", "examples"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    for name in ("pyproject.toml", "requirements.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    source = folder / "source"
    return Installed(folder, [f"{source}[testing]", f"{source / 'examples' / 'receiver-influx'}[testing]"])


def test_it_has_a_command_and_runs_as_a_module(installed: Installed) -> None:
    assert installed.run("receiver", "--version") == "receiver, version 0.1.0\n"
    assert installed.run("python", "-m", "receiver", "--version") == "receiver, version 0.1.0\n"


def test_it_has_the_built_in_sinks_and_those_of_installed_plugins(installed: Installed) -> None:
    shown = installed.run("receiver", "sinks")
    types = [line.split()[0] for line in shown.splitlines() if line.endswith(")") and "  (" in line and line[0] != " "]
    assert sorted(types) == ["csv", "influx", "mqtt", "sql", "stdout", "webhook"]


def test_its_demo_delivers(installed: Installed) -> None:
    shown = installed.run("receiver", "demo", "--seconds", "1")
    assert re.search(
        r"^pushed (\d+), received \1 .* \1 delivered, 0 pending .* \1 delivered, 0 pending$", shown, re.MULTILINE
    )


def test_the_example_passes_its_tests_with_the_installed_receiver(installed: Installed, tmp_path: Path) -> None:
    tests = ROOT / "examples" / "receiver-influx" / "tests"
    plugins = ["-p", "no:cacheprovider", "-p", "receiver.testing.fixtures"]
    output = installed.run("python", "-m", "pytest", "-q", *plugins, "-c", os.devnull, "--rootdir", tmp_path, tests)
    assert " passed" in output
