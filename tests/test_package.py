"""The receiver as an installed package, with a plugin that is one: as those who do not clone the repository have it."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from support.installed import Installed

from receiver.console.rendering import FOLDER


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


def test_it_has_the_templates_and_the_static_files_of_the_console(installed: Installed) -> None:
    folder = Path(installed.run("python", "-c", "from receiver.console.rendering import FOLDER; print(FOLDER)").strip())
    assert folder != FOLDER
    assert files_of(folder) == files_of(FOLDER)


def files_of(folder: Path) -> dict[str, bytes]:
    """The templates and static files by their paths."""
    paths = [path for name in ("static", "templates") for path in (folder / name).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_the_example_passes_its_tests_with_the_installed_receiver(installed: Installed, tmp_path: Path) -> None:
    tests = ROOT / "examples" / "receiver-influx" / "tests"
    plugins = ["-p", "no:cacheprovider", "-p", "receiver.testing.fixtures"]
    output = installed.run("python", "-m", "pytest", "-q", *plugins, "-c", os.devnull, "--rootdir", tmp_path, tests)
    assert " passed" in output
