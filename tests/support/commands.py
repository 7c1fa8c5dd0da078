"""Running the receiver's commands: in this process on a real journal, or in processes of their own."""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import click.testing
import pytest

from receiver.commands.main import main
from receiver.delivery.dispatcher import Dispatcher
from receiver.delivery.plugins import load_plugins
from receiver.delivery.sinks import build_sinks
from receiver.journal import Arrival, Delivery, Journal, Result, Settlement, SinkCounts, StoredEvent, open_journal
from receiver.journal.sql.sqlite import FileLock
from receiver.lifeline import Lifeline
from receiver.redaction import Redactor
from receiver.settings import Settings, load
from receiver.testing.ports import reserve_port
from receiver.testing.running import ROOT, RunningReceiver
from receiver.variables import SECRET

STRONG_SECRET = "a-signature-secret-that-is-long-enough"
MISSING_SECRET = (
    "environment: DT_SIGNATURE_SECRET is not set; "
    "set it to the signature secret of your Data Connector, or set DT_ORGANIZATION_ID"
)
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()
LONG_AGO = "2000-01-01"
JOURNAL = "[journal]\nmin_free_mb = 0\n[sensors]\nenabled = false\n"
CONSOLE = "[sinks.console]\ntype = 'stdout'\n"
TWO_SINKS = f"""{JOURNAL}
[sinks.erp]
type = "webhook"
url = "https://erp.example/hook"
[sinks.erp.filter]
event_types = ["temperature", "touch"]
[sinks.archive]
type = "csv"
path = "events.csv"
"""
BROKEN_PLUGIN = "import not_installed_here\n"
PLUGIN = """
from pathlib import Path
from receiver import hookimpl

class Mine:
    def __init__(self, path: Path) -> None:
        self.path = path

    @hookimpl
    def deliver(self, event):
        with self.path.open("a") as file:
            print(event.id, file=file)

@hookimpl
def register_sinks(register):
    register("mine", Mine)
"""
"""Registers the sink type `mine`, which writes event ids to a file."""

SCRIPTED_PLUGIN = '''
from pathlib import Path
from receiver import GiveUp, Pause, hookimpl

class Scripted:
    """Writes event ids to a file, unless the file `behaviour` next to it asks for something else."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event):
        script = self.path.with_name("behaviour")
        behaviour, _, reason = script.read_text().partition(" ") if script.exists() else ("", "", "")
        if behaviour == "give-up":
            raise GiveUp(reason)
        if behaviour == "pause":
            raise Pause(reason, after=3600)
        if behaviour == "surrogate":
            raise ValueError(chr(0xD800) + " is odd")
        with self.path.open("a") as file:
            print(event.id, file=file)

class Single(Scripted):
    @hookimpl
    def deliver(self, event):
        self.write(event)

class Batch(Scripted):
    @hookimpl
    def deliver_batch(self, events):
        for event in events:
            self.write(event)

@hookimpl
def register_sinks(register):
    register("scripted", Single)
    register("scripted-batch", Batch)
'''
ARCHIVE = '[sinks.archive]\ntype = "csv"\npath = "events.csv"\n'
SCRIPTED = '[receiver]\nplugins = ["scripted.py"]\n[sinks.scripted]\ntype = "scripted"\npath = "scripted.txt"\n'


class Finished(NamedTuple):
    """How a command ended, and the lines that it printed."""

    exit_code: int
    out: list[str]
    errors: list[str]


def event_body(event_id: str, event_type: str = "touch") -> bytes:
    """The body of a push with this event, from device emu1 at NOON."""
    event = {"eventId": event_id, "eventType": event_type, "data": {}, "timestamp": "2026-01-31T12:00:00Z"}
    return json.dumps({"event": event, "labels": {}, "metadata": {"deviceId": "emu1"}}).encode()


class Operator:
    """Runs commands in this process, in a folder with a config.toml and a journal.

    The other methods do to that journal what intake and a dispatcher would do.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._journals: list[Journal] = []
        self.configure(TWO_SINKS)

    def configure(self, text: str) -> None:
        (self.folder / "config.toml").write_text(text, encoding="utf-8")

    def operate(self, receiver: RunningReceiver) -> None:
        """From now on, run commands on the configuration and the journal of this receiver."""
        self.folder = receiver.folder

    def invoke(self, *arguments: str, stdin: str | None = None, **environment: str | None) -> click.testing.Result:
        """Run a command; its result as Click has it."""
        environment = {"RECEIVER_CONFIG": str(self.folder / "config.toml"), **environment}
        done = click.testing.CliRunner().invoke(main, arguments, input=stdin, env=environment)
        assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
        return done

    def run(self, *arguments: str, stdin: str | None = None, **environment: str | None) -> Finished:
        """Run a command; its result without blank lines."""
        done = self.invoke(*arguments, stdin=stdin, **environment)
        return Finished(done.exit_code, _lines(done.stdout), _lines(done.stderr))

    def lines(self, *arguments: str) -> list[str]:
        """Standard output of a command that succeeds without errors and warnings."""
        code, out, errors = self.run(*arguments)
        assert (code, errors) == (0, []), (code, errors)
        return out

    def json(self, *arguments: str) -> Any:
        """The JSON that a command prints with --json."""
        return json.loads("\n".join(self.lines(*arguments, "--json")))

    def sink_status(self, sink: str) -> dict[str, Any]:
        """The row of a sink in `status`."""
        (row,) = [row for row in self.json("status")["sinks"] if row["sink"] == sink]
        return dict(row)

    def explain(self, event_id: str) -> dict[str, dict[str, Any]]:
        """The part of each sink in `explain`, by its name."""
        return {delivery.pop("sink"): delivery for delivery in self.json("explain", event_id)["sinks"]}

    @contextmanager
    def dispatcher(self) -> Iterator[None]:
        """A dispatcher in a thread, which delivers to the configured sinks until the end of the block."""
        (self.folder / "scripted.py").write_text(SCRIPTED_PLUGIN, encoding="utf-8")
        settings = self.settings
        redactor = Redactor(settings.secret_values)
        plugins = load_plugins(settings, redactor)
        sinks, broken = build_sinks(plugins, settings, redactor)
        assert (plugins.problems, broken) == ((), {})
        lifeline = Lifeline()
        with (
            closing(open_journal(settings)) as journal,
            mock.patch.object(FileLock, "exit_when_stuck"),  # it needs the stderr that CliRunner replaces
        ):
            dispatcher = Dispatcher(
                journal, settings.enabled_sinks, sinks, broken, retention_seconds=86400.0, redact=redactor.redact
            )
            thread = threading.Thread(target=dispatcher.run, args=(lifeline,), daemon=True)
            thread.start()
            try:
                yield
            finally:
                lifeline.stop_requested = True
                thread.join(30)
            assert not thread.is_alive()

    def script(self, behaviour: str | None) -> None:
        """Let the scripted sink behave like this from now on: "give-up REASON", "pause REASON" or "surrogate"."""
        path = self.folder / "behaviour"
        path.unlink(missing_ok=True) if behaviour is None else path.write_text(behaviour, encoding="utf-8")

    @property
    def written(self) -> list[str]:
        """The event ids that the scripted sink has written."""
        path = self.folder / "scripted.txt"
        return path.read_text(encoding="utf-8").split() if path.exists() else []

    @property
    def archived(self) -> list[str]:
        """The event ids in events.csv."""
        path = self.folder / "events.csv"
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return [row["event_id"] for row in csv.DictReader(file)]

    @property
    def settings(self) -> Settings:
        return load({"RECEIVER_CONFIG": str(self.folder / "config.toml")}, secret_required=False)

    @property
    def journal(self) -> Journal:
        return self._journals[0] if self._journals else self.open_journal()

    def open_journal(self) -> Journal:
        """Another opening of the journal, closed at the end of the test."""
        self._journals.append(open_journal(self.settings))
        return self._journals[-1]

    def close(self) -> None:
        for journal in self._journals:
            journal.close()

    def accept(self, *event_ids: str) -> None:
        """Store events that are received now, for a dispatcher to route."""
        self.journal.accept([Arrival(name, event_body(name), time.time()) for name in event_ids])

    def add_events(
        self, routes: dict[str, Sequence[str]], received_at: float = NOON, event_type: str = "touch"
    ) -> list[StoredEvent]:
        """Store events in one commit, and route each to the sinks named with its id."""
        self.journal.accept([Arrival(name, event_body(name, event_type), received_at) for name in routes])
        events = self.journal.unrouted(10_000)
        self.journal.route([(event, routes[event.id]) for event in events])
        return events

    def add_pending(
        self, sink: str, *event_ids: str, received_at: float = NOON, event_type: str = "touch"
    ) -> list[StoredEvent]:
        """Store events, and route them to this sink alone."""
        return self.add_events({name: [sink] for name in event_ids}, received_at, event_type)

    def quarantine(self, body: bytes, reason: str = "a reason", received_at: float = NOON) -> str:
        """Store a push that is not a valid event; its id."""
        push_id = hashlib.sha256(body).hexdigest()
        self.journal.accept([Arrival(push_id, body, received_at, quarantine_reason=reason)])
        return push_id

    def settle_due(self, sink: str, result: Result, reason: str = "", due: float = 0.0) -> list[Delivery]:
        """Claim all due deliveries of a sink, and settle them with this result."""
        claimed = self.journal.claim(sink, 10_000, 60.0)
        self.journal.settle([Settlement(delivery, result, due, reason) for delivery in claimed])
        return claimed

    def counts(self, sink: str) -> tuple[int, int, int]:
        """Pending, delivered and dead deliveries of a sink."""
        count = self.journal.counts().sinks.get(sink, SinkCounts())
        return count.pending, count.delivered, count.dead


@functools.cache
def free_port() -> str:
    """A port on which nothing listens: `check` warns of one that is in use."""
    return str(reserve_port())


def is_setting(name: str) -> bool:
    """Whether a variable of the environment is one that the receiver reads."""
    variables = ("DATABASE_URL", "DATABASE_URL_FILE", "DYNO", "PORT", "RECEIVER_CONFIG", "WEB_CONCURRENCY")
    return name.upper().startswith("DT_") or name in variables


@pytest.fixture
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long_time_limits: None) -> Iterator[Operator]:
    """An Operator whose commands see no setting of the environment that runs the tests."""
    for name in [name for name in os.environ if is_setting(name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(SECRET, STRONG_SECRET)
    monkeypatch.setenv("PORT", free_port())
    operator = Operator(tmp_path)
    yield operator
    operator.close()


class Shell:
    """Starts `python -m receiver` in a folder, as a user does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: text for name, text in os.environ.items() if not is_setting(name)},
            SECRET: STRONG_SECRET,
            "PORT": free_port(),
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(folder),
        }
        self._started: list[int] = []

    def configure(self, text: str) -> None:
        (self.folder / "config.toml").write_text(text, encoding="utf-8")

    def run(self, *arguments: str, **environment: str) -> Finished:
        """Run a command in a process of its own."""
        with subprocess.Popen(
            [sys.executable, "-m", "receiver", *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        ) as process:
            self._started.append(process.pid)
            try:
                out, errors = process.communicate(timeout=180)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                raise
        return Finished(process.returncode, out.splitlines(), errors.splitlines())

    @property
    def orphans(self) -> list[int]:
        """Processes that outlived the command that started them."""
        return [pid for pid, group in living_processes() if group in self._started]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def living_processes() -> Iterator[tuple[int, int]]:
    """Every process and its process group."""
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split() if entry.name.isdigit() else []
        except OSError:
            continue
        if fields and fields[0] != "Z":
            yield int(entry.name), int(fields[2])


def seconds_since_1970(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def is_recent(text: str) -> bool:
    """Whether a time that a command printed is within two minutes from now."""
    return abs(seconds_since_1970(text) - time.time()) < 120


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]
