"""What all tests share: the receiver's own kit for testing, and real databases."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
from support.asymmetric import issuer, keys_receiver
from support.cloud import cloud
from support.commands import operator, shell
from support.console import console
from support.csv_archive import archive
from support.delivery import dispatcher, loop_tester, sqlite_store
from support.endpoints import open_webhook, short_limits, start_endpoint
from support.intake import shared_receiver
from support.journals import clock, journal, long_time_limits, records, store
from support.plugins import plugin_folder
from support.postgresql import deployment, own_deployment, server
from support.sensors import registry
from support.sql_databases import postgresql_database, sql_database, sqlite_database

from receiver.delivery.plugins import load_plugins
from receiver.journal.sql import sqlite
from receiver.redaction import Redactor
from receiver.settings import load
from receiver.testing.fixtures import StartReceiver
from receiver.testing.postgresql import new_database, postgresql
from receiver.testing.running import CSV_ONLY, ROOT, RunningReceiver, wait_until
from receiver.testing.samples import TEST_SECRET
from receiver.variables import SECRET

__all__ = [
    "CSV_ONLY",
    "ROOT",
    "TEST_SECRET",
    "THERE_ARE",
    "RunningReceiver",
    "StartReceiver",
    "archive",
    "clock",
    "cloud",
    "console",
    "deployment",
    "dispatcher",
    "issuer",
    "journal",
    "keys_receiver",
    "long_time_limits",
    "loop_tester",
    "new_database",
    "open_webhook",
    "operator",
    "own_deployment",
    "plugin_folder",
    "postgresql",
    "postgresql_database",
    "records",
    "registry",
    "run",
    "server",
    "shared_receiver",
    "shell",
    "short_limits",
    "sink_types",
    "sql_database",
    "sqlite_database",
    "sqlite_store",
    "start_endpoint",
    "store",
    "wait_until",
]

MEMORY = Path("/dev/shm")
MEMORY_BYTES = 2_000_000_000


def pytest_configure() -> None:
    """Keep temporary files in memory where there is enough: no test turns the machine off, and flushing takes long."""
    if "TMPDIR" not in os.environ and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES:
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)
    sqlite.STUCK_SECONDS = 300.0  # or a dispatcher in this process would end it when the machine is busy


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports travel between processes as UTF-8, which cannot express what some tests print."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "replace").decode()) for name, text in report.sections]
    return report


@functools.cache
def sink_types(*besides: str) -> list[str]:
    """The sink types of plugins/, those that a user dropped there included, and these besides."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "config.toml").touch()
    settings = load({"RECEIVER_CONFIG": str(folder / "config.toml")}, secret_required=False)
    return sorted([*load_plugins(settings, Redactor()).types, *besides])


THERE_ARE = f"there are: {', '.join(sink_types())}"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the checkout without tests, to add plugins to."""
    folder = tmp_path / "clone"
    for name in ("receiver", "plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.pyc.*"))  # being written
    for name in ("pyproject.toml", "config.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / "tests").mkdir()
    return folder


def run(clone: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m COMMAND` in a copy of the checkout, with an almost empty environment."""
    given = {"PATH": os.environ["PATH"], SECRET: "s" * 32, **environment}
    arguments = [sys.executable, "-m", *command]
    return subprocess.run(arguments, cwd=clone, env=given, capture_output=True, text=True, timeout=300)
