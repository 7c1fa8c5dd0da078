"""The receiver under test and its surroundings: its settings, its database, the destinations of its sinks."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import psycopg

from chaos.broker import Broker, find_mosquitto
from chaos.clock import Clock
from chaos.disk import Disk
from chaos.listener import CLIENT_ID, TOPICS
from chaos.pair import Pair
from chaos.recorder import Recorder
from power_cut.recording import compiler
from receiver.testing.issuer import TEST_ORGANIZATION, Issuer
from receiver.testing.postgresql import start_server
from receiver.testing.running import ROOT, RunningReceiver, parent_of, wait_until
from receiver.variables import ISSUER_URL, ORGANIZATION_ID

Thing = TypeVar("Thing")

CONFIG = """
[receiver]
host = "127.0.0.1"
plugins = ["{plugin}"]
[journal]
path = "local/data/journal.sqlite"
{sensors}{sinks}
"""
RETRY = 'retry = {{ initial_backoff = {initial}, max_backoff = {maximum}, max_age = "30d" }}\n'
INITIAL_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 1.0, 5.0
SINKS = {
    "hook": 'type = "webhook"\nurl = "{hook}"\nallow_private = true\nconcurrency = 4\n',
    "events": 'type = "csv"\npath = "local/events.csv"\nrows = "events"\n',
    "readings": 'type = "csv"\npath = "local/readings.csv"\n',
    "console": 'type = "stdout"\n',
    "some": 'type = "records"\npath = "{folder}/some.txt"\nfilter = {{ event_types = {types} }}\n',
    "odd": 'type = "records"\npath = "{folder}/odd.txt"\ninstructions = "{folder}/instructions"\n',
    "broker": 'type = "mqtt"\nurl = "{broker}"\n',
}
SOME_TYPES = ["touch", "temperature", "humidity", "soilMoisture"]
FILES = {
    "events": "local/events.csv",
    "readings": "local/readings.csv",
    "console": "stdout.txt",
    "some": "some.txt",
    "odd": "odd.txt",
    "broker": "broker.txt",
}
BROKER = """
allow_anonymous true
persistence true
persistence_location {folder}/
autosave_interval 0
max_inflight_messages 0
max_queued_messages 0
"""
"""Messages for the listener are never held back, so that one that was accepted is on its way when the broker dies."""

CONSOLE_PASSWORD = "chaos-console-password"
START_SECONDS = 60.0
RESTART_SECONDS = 0.5
WATCH_SECONDS = 0.1
EXPIRE_CLAIMS = (
    "UPDATE deliveries SET due = 0 WHERE due IS NOT NULL "
    "AND holder <> (SELECT holder FROM dispatchers ORDER BY clock DESC LIMIT 1)"
)


class System:
    """A receiver that is restarted whenever it exits, as systemd does it. With `speed` 10 its backoff is a tenth."""

    def __init__(
        self,
        folder: Path,
        journal: str,
        speed: float = 1.0,
        cloud_environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.folder = folder.resolve()  # as the journal resolves its path
        self.local = self.folder / "local"
        """What is on the disk of the receiver's machine, and may be lost in a power cut: journal and CSV files."""
        self.local.mkdir()
        self.untested: dict[str, str] = {}
        """Kinds of faults that cannot be injected on this machine, and why."""
        self._retry = RETRY.format(initial=INITIAL_BACKOFF_SECONDS / speed, maximum=MAX_BACKOFF_SECONDS / speed)
        self.target = Target()
        self.issuer = Issuer().__enter__()
        mosquitto = find_mosquitto()
        self.broker = Broker(mosquitto, BROKER, verbose=False) if mosquitto else None
        if self.broker is None:
            self.untested["broker killed"] = "mosquitto is not installed"
        self.sinks = [name for name in SINKS if self.broker or name != "broker"]
        """Without mosquitto there is no sink `broker`."""
        if compiler() is None:
            self.untested["power cut"] = "no C compiler that is called cc"
        self.disk: Disk | None = None
        self.clock: Clock | None = None
        if journal == "sqlite":
            self.disk = self._if_possible(lambda: Disk(folder / "registry"), "registry's disk full")
        if journal == "postgresql":
            self.clock = self._if_possible(Clock, "database clock ahead", "database clock behind")
        self.server = start_server(self.clock.environment if self.clock else {}) if journal == "postgresql" else None
        self.pair = Pair() if journal == "replicated" else None
        database = self.server or self.pair
        self.database_url = database.new_database() if database else None
        environment = {
            **cloud_environment,
            "CONSOLE_PASSWORD": CONSOLE_PASSWORD,
            ISSUER_URL: self.issuer.url,
            ORGANIZATION_ID: TEST_ORGANIZATION,
        }
        if self.database_url:
            environment["DATABASE_URL"] = self.database_url
        self.receiver = RunningReceiver(folder, self.config(), time.time(), environment)
        self.exits: list[int] = []
        """Codes with which the receiver exited although it had not been stopped."""
        self._orphaned: list[int] = []
        """The process groups of those receivers, in which a dispatcher may finish its calls."""
        self.disabled: list[tuple[str, float, float]] = []
        """Which sink was disabled from when to when (monotonic)."""
        self.last_stopped_at = 0.0
        self._listener: subprocess.Popen[bytes] | None = None
        self._start_listener()
        self._should_run = False
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._restarter = threading.Thread(target=self._restart_on_exit)
        self._restarter.start()

    def _if_possible(self, make: Callable[[], Thing], *kinds: str) -> Thing | None:
        """What these kinds of faults need, or None where it cannot be had; then they are not tested."""
        try:
            return make()
        except RuntimeError as error:
            self.untested |= dict.fromkeys(kinds, str(error))
            return None

    def config(self, *, disabled: str = "", mistyped: str = "") -> str:
        """config.toml, in which one sink may be disabled or have an error."""
        tables = []
        broker = self.broker.url if self.broker else ""
        for name in self.sinks:
            options = SINKS[name].format(hook=self.target.url, folder=self.folder, types=SOME_TYPES, broker=broker)
            table = options + self._retry
            table += "enabled = false\n" * (name == disabled) + 'colour = "red"\n' * (name == mistyped)
            tables.append(f"[sinks.{name}]\n{table}")
        sensors = f'[sensors]\nurl = "sqlite:///{self.registry_path}"\n' if self.disk else ""
        return CONFIG.format(plugin=ROOT / "chaos" / "sink.py", sensors=sensors, sinks="".join(tables))

    @property
    def registry_path(self) -> Path:
        """The SQLite file of the registry, unless it is in the database of the journal."""
        return (self.disk.folder if self.disk else self.local / "data") / "sensors.sqlite"

    def start(self) -> None:
        """Start the receiver unless it is running, and restart it from now on whenever it exits."""
        with self._lock:
            if not self._closing.is_set() and not self._is_running():
                self.receiver.launch()
            self._should_run = True

    def stop(self) -> None:
        """Send SIGTERM. Raises AssertionError unless the receiver exits with code 0, whatever else happens."""
        self.process("worker")
        with self._lock:
            self._should_run = False
            try:
                code = self.receiver.stop()
            except subprocess.TimeoutExpired:
                self.receiver.kill_all()
                raise AssertionError("the receiver was still running 30 s after SIGTERM") from None
            self.last_stopped_at = time.monotonic()
        if code != 0:
            raise AssertionError(f"the receiver exited with code {code} after SIGTERM")

    def kill(self) -> None:
        """SIGKILL to all its processes at once."""
        with self._lock:
            self._should_run = False
            self.receiver.kill_all()

    def kill_orphans(self) -> None:
        """SIGKILL to the processes that a killed supervisor has left."""
        while self._orphaned:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._orphaned.pop(), signal.SIGKILL)

    @contextlib.contextmanager
    def environment(self, more: Mapping[str, str]) -> Iterator[None]:
        """A context in which the receiver is started with more variables."""
        self.receiver.environment |= more
        try:
            yield
        finally:
            for name in more:
                del self.receiver.environment[name]

    def wait_until_working(self) -> None:
        """Wait until a receiver that was started accepts pushes and its dispatcher has had a second to route events."""
        self.process("worker")
        self.process("dispatcher")
        wait_until(lambda: self.receiver.is_ok("/healthz"), START_SECONDS, "a receiver that responds")
        time.sleep(1.0)

    def process(self, kind: str) -> int:
        """The id of the supervisor, master, dispatcher or a worker of the receiver. Waits until there is one."""
        return int(wait_until(lambda: self._process(kind), START_SECONDS, f"a {kind}"))

    def _is_running(self) -> bool:
        process = self.receiver.process
        return process is not None and process.poll() is None

    def _process(self, kind: str) -> int | None:
        pids = self.receiver.pids()
        with contextlib.suppress(OSError, IndexError):  # any of them may end meanwhile
            masters = {parent_of(pid) for pid in pids["workers"]} & set(pids["children"])
            return {
                "supervisor": pids["supervisor"],
                "master": sorted(masters),
                "dispatcher": [pid for pid in pids["children"] if masters and pid not in masters],
                "worker": [pid for pid in pids["workers"] if parent_of(pid) in masters],
            }[kind][-1]
        return None

    def instruct_plugin(self, misbehavior: str | None) -> None:
        """Make the sink `odd` misbehave, or with None behave."""
        instructions, draft = self.folder / "instructions", self.folder / "instructions.draft"
        if misbehavior is None:
            instructions.unlink(missing_ok=True)
            return
        draft.write_text(misbehavior, encoding="utf-8")
        draft.rename(instructions)

    def start_broker(self) -> None:
        """Start the broker, and wait until the listener is connected to it."""
        assert self.broker is not None
        connections = self._connections_of_listener()
        self.broker.start()
        wait_until(lambda: self._connections_of_listener() > connections, START_SECONDS, "the listener")

    def _start_listener(self) -> None:
        """Start the broker and its listener, whose subscription is then in the file of the broker."""
        if self.broker is None:
            return
        self.broker.start()
        path = self.folder / FILES["broker"]
        command = [sys.executable, "-m", "chaos.listener", str(self.broker.port), str(path)]
        self._listener = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        saved = self.broker.folder / "mosquitto.db"

        def is_subscribed() -> bool:
            assert self.broker is not None
            self.broker.save()
            return saved.exists() and TOPICS.encode() in saved.read_bytes()

        wait_until(is_subscribed, START_SECONDS, "the subscription of the listener")

    def _connections_of_listener(self) -> int:
        assert self.broker is not None
        return self.broker.log.count(f" as {CLIENT_ID} ")

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement on a connection of our own to the database. [] if there is no database."""
        if self.database_url is None:
            return []
        with psycopg.connect(self.database_url, autocommit=True, connect_timeout=2) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def journal(self, query: str) -> Iterator[tuple[Any, ...]]:
        """The rows of a query to the database of the journal, one after another: not all may fit into memory."""
        if self.database_url is None:
            with contextlib.closing(sqlite3.connect(self.local / "data" / "journal.sqlite")) as connection:
                yield from connection.execute(query)
        else:
            with psycopg.connect(self.database_url) as server, server.cursor("chaos") as cursor:
                yield from cursor.execute(query)

    def log_fault(self, line: str) -> None:
        """Write a line to faults.txt, with a time as in log.txt."""
        with (self.folder / "faults.txt").open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {line}\n")

    def expire_claims(self) -> None:
        """End the claims of dispatchers that were killed, which would last for 15 s or more on PostgreSQL."""
        with contextlib.suppress(psycopg.Error):
            self.sql(EXPIRE_CLAIMS)

    def close(self) -> None:
        self._closing.set()
        self._restarter.join()
        if self.receiver.process is not None:
            self.receiver.kill_all()
        self.target.recover()
        self.target.close()
        self.issuer.close()
        if self.disk is not None:
            self.disk.close()
        if self.server is not None:
            self.server.close()
        if self.clock is not None:
            self.clock.close()
        if self._listener is not None:
            self._listener.kill()
            self._listener.wait()
        if self.broker is not None:
            self.broker.remove()
        if self.pair is not None:
            self.pair.close()

    def _restart_on_exit(self) -> None:
        while not self._closing.wait(RESTART_SECONDS):
            with self._lock:
                if self._should_run and not self._is_running():
                    assert self.receiver.process is not None
                    self.exits.append(self.receiver.process.returncode)
                    self._orphaned.append(self.receiver.process.pid)
                    self.receiver.launch()


class Target(Recorder):
    """The target of the webhook. `accepted` has the ids it has responded 200 for; `behavior` says how it responds."""

    def __init__(self) -> None:
        super().__init__()
        self.accepted: set[str] = set()
        self.behavior = "accept"
        self.noticed = threading.Event()
        """Set when the receiver has called it since it began to misbehave."""
        self._recovered = threading.Event()

    def misbehave(self, behavior: str) -> None:
        """From now on respond with an `error`, `hang`, `drip` or `reset`."""
        self.noticed.clear()
        self.behavior = behavior

    def recover(self) -> None:
        """Accept again, and end the responses that are under way."""
        self.behavior = "accept"
        self._recovered.set()
        self._recovered = threading.Event()

    def respond(self, key: str, handler: BaseHTTPRequestHandler) -> None:
        if self.behavior == "accept":
            self.accepted.add(key)
            super().respond(key, handler)
            return
        self.noticed.set()
        if self.behavior == "error":
            handler.send_response(500)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        else:
            handler.close_connection = True
            self._break_connection(handler)

    def _break_connection(self, handler: BaseHTTPRequestHandler) -> None:
        """Send nothing, or headers that never end, and then reset the connection."""
        recovered = self._recovered
        if self.behavior == "drip":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
            while not recovered.wait(0.2):
                handler.wfile.write(b".")
        elif self.behavior == "hang":
            recovered.wait()
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Watch(threading.Thread):
    """Records when each sink's destination has received something, to a tenth of a second."""

    def __init__(self, system: System) -> None:
        super().__init__(daemon=True)
        self.grew: dict[str, list[float]] = {name: [] for name in system.sinks}
        self._system = system
        self._done = threading.Event()

    def run(self) -> None:
        sizes = self._sizes()
        while not self._done.wait(WATCH_SECONDS):
            before, sizes = sizes, self._sizes()
            for name in sizes:
                if sizes[name] > before[name]:
                    self.grew[name].append(time.monotonic())

    def finish(self) -> None:
        self._done.set()
        self.join()

    def _sizes(self) -> dict[str, int]:
        paths = {name: self._system.folder / file for name, file in FILES.items() if name in self.grew}
        sizes = {name: size_of(path) for name, path in paths.items()}
        return {**sizes, "hook": len(self._system.target.accepted)}


def size_of(path: Path) -> int:
    """The size of a file in bytes; 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
