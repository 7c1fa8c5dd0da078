"""What all tests share: the receiver's own kit for testing, and real databases."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from receiver.plugins import load_plugins
from receiver.settings import SECRET, load
from receiver.testing.fixtures import StartReceiver
from receiver.testing.postgresql import new_database, postgresql
from receiver.testing.running import CSV_ONLY, ROOT, Running, wait_until
from receiver.testing.samples import TEST_SECRET

__all__ = [
    "CSV_ONLY",
    "ROOT",
    "TEST_SECRET",
    "THERE_ARE",
    "Running",
    "StartReceiver",
    "new_database",
    "postgresql",
    "run",
    "sink_types",
    "wait_until",
]


@functools.cache
def sink_types(*besides: str) -> list[str]:
    """The sink types of plugins/, those that a user dropped there included, and these besides."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "config.toml").touch()
    settings = load({"RECEIVER_CONFIG": str(folder / "config.toml")}, secret_required=False)
    return sorted([*load_plugins(settings).types, *besides])


THERE_ARE = f"there are: {', '.join(sink_types())}"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the program, without tests, in which sinks can be begun."""
    folder = tmp_path / "clone"
    for name in ("receiver", "plugins"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("pyproject.toml", "config.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / "tests").mkdir()
    return folder


def run(clone: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m COMMAND` in a copy of the program, with next to nothing in the environment."""
    given = {"PATH": os.environ["PATH"], SECRET: "s" * 32, **environment}
    arguments = [sys.executable, "-m", *command]
    return subprocess.run(arguments, cwd=clone, env=given, capture_output=True, text=True, timeout=300)
