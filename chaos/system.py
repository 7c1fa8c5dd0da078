"""The receiver under test and what surrounds it: its settings, its database, the targets of its sinks."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import psycopg

from receiver.testing.postgresql import own_server
from receiver.testing.recorder import Recorder
from receiver.testing.running import ROOT, Running, parent_of, wait_until

CONFIG = """
[receiver]
host = "127.0.0.1"
plugins = ["{plugin}"]
{sinks}
"""
RETRY = 'retry = {{ first_pause = "1s", longest_pause = "5s", max_age = "30d" }}\n'
SINKS = {
    "hook": 'type = "webhook"\nurl = "{hook}"\nallow_private = true\nconcurrency = 4\n',
    "events": 'type = "csv"\npath = "events.csv"\nrows = "events"\n',
    "readings": 'type = "csv"\npath = "readings.csv"\n',
    "console": 'type = "stdout"\n',
    "some": 'type = "notes"\npath = "{folder}/some.txt"\nfilter = {{ event_types = {types} }}\n',
    "odd": 'type = "notes"\npath = "{folder}/odd.txt"\norders = "{folder}/orders"\n',
}
SOME_TYPES = ["touch", "temperature", "humidity", "soilMoisture"]
FILES = {
    "events": "events.csv",
    "readings": "readings.csv",
    "console": "stdout.txt",
    "some": "some.txt",
    "odd": "odd.txt",
}
START_SECONDS = 60.0
KEEP_SECONDS = 0.5
LOOK_SECONDS = 0.1
CLAIMS_RUN_OUT = "UPDATE deliveries SET due = 0 WHERE due IS NOT NULL AND holder IS NOT NULL"


class System:
    """A receiver that is started again when it ends by itself, as systemd would do it."""

    def __init__(self, folder: Path, journal: str) -> None:
        self.folder = folder
        self.target = Target()
        self.server = own_server() if journal == "postgresql" else None
        self.database_url = self.server.new_database() if self.server else None
        environment = {"DATABASE_URL": self.database_url} if self.database_url else {}
        self.receiver = Running(folder, self.config(), time.time(), environment)
        self.exits: list[int] = []
        """Codes with which the receiver ended although nobody had asked it to."""
        self.disabled: list[tuple[str, float, float]] = []
        """Which sink was disabled from when until when (monotonic)."""
        self.last_down_at = 0.0
        self._wanted = False
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep)
        self._keeper.start()

    def config(self, *, disabled: str = "", mistyped: str = "") -> str:
        """config.toml, in which one sink may be disabled or have a mistake."""
        tables = []
        for name, options in SINKS.items():
            told = options.format(hook=self.target.url, folder=self.folder, types=SOME_TYPES) + RETRY.format()
            told += "enabled = false\n" * (name == disabled) + 'colour = "red"\n' * (name == mistyped)
            tables.append(f"[sinks.{name}]\n{told}")
        return CONFIG.format(plugin=ROOT / "chaos" / "sink.py", sinks="".join(tables))

    def up(self) -> None:
        """Start the receiver unless it runs, and from now on start it again when it ends."""
        with self._lock:
            if not self._closing.is_set() and not self._runs():
                self.receiver.launch()
            self._wanted = True

    def down(self) -> None:
        """Stop it with SIGTERM, which it must obey whatever goes on, and end with code 0."""
        self.process("worker")
        with self._lock:
            self._wanted = False
            try:
                code = self.receiver.stop()
            except subprocess.TimeoutExpired:
                self.receiver.kill_all()
                raise AssertionError("the receiver did not obey SIGTERM within 30 s") from None
            self.last_down_at = time.monotonic()
        if code != 0:
            raise AssertionError(f"after SIGTERM the receiver ended with code {code}")

    def kill(self) -> None:
        """SIGKILL to all its processes at once."""
        with self._lock:
            self._wanted = False
            self.receiver.kill_all()

    def await_work(self) -> None:
        """Wait until a receiver that was started takes pushes, and its dispatcher had a second for the first."""
        self.process("worker")
        self.process("dispatcher")
        wait_until(lambda: self.receiver.answers("/healthz"), START_SECONDS, "a receiver that answers")
        time.sleep(1.0)

    def process(self, kind: str) -> int:
        """A process of the receiver: supervisor, master, dispatcher or worker. Waits for it to be there."""
        return int(wait_until(lambda: self._process(kind), START_SECONDS, f"a {kind}"))

    def _runs(self) -> bool:
        process = self.receiver.process
        return process is not None and process.poll() is None

    def _process(self, kind: str) -> int | None:
        pids = self.receiver.pids()
        with contextlib.suppress(OSError, IndexError):  # any may end while it is looked at
            masters = {parent_of(pid) for pid in pids["workers"]} & set(pids["children"])
            return {
                "supervisor": pids["supervisor"],
                "master": sorted(masters),
                "dispatcher": [pid for pid in pids["children"] if masters and pid not in masters],
                "worker": [pid for pid in pids["workers"] if parent_of(pid) in masters],
            }[kind][-1]
        return None

    def order(self, how: str | None) -> None:
        """Tell the odd sink how to misbehave, or with None to behave."""
        orders, draft = self.folder / "orders", self.folder / "orders.draft"
        if how is None:
            orders.unlink(missing_ok=True)
            return
        draft.write_text(how, encoding="utf-8")
        draft.rename(orders)

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Ask the database beside the receiver. [] where there is none."""
        if self.database_url is None:
            return []
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def note(self, line: str) -> None:
        """A line in faults.txt, with the time as in log.txt."""
        with (self.folder / "faults.txt").open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {line}\n")

    def let_claims_run_out(self) -> None:
        """A minute passes for the claims of dispatchers that are gone, which a test does not wait for."""
        self.down()
        self.sql(CLAIMS_RUN_OUT)
        self.up()

    def close(self) -> None:
        self._closing.set()
        self._keeper.join()
        if self.receiver.process is not None:
            self.receiver.kill_all()
        self.target.release()
        self.target.close()

    def _keep(self) -> None:
        while not self._closing.wait(KEEP_SECONDS):
            with self._lock:
                if self._wanted and not self._runs():
                    assert self.receiver.process is not None
                    self.exits.append(self.receiver.process.returncode)
                    self.receiver.launch()


class Target(Recorder):
    """The target of the webhook. `taken` are the ids it has answered 200 for; `mood` says how it answers now."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: set[str] = set()
        self.mood = "takes"
        self.met = threading.Event()
        """Somebody met another mood than the usual since it was put on."""
        self._release = threading.Event()

    def put_on(self, mood: str) -> None:
        """Answer like this from now on."""
        self.met.clear()
        self.mood = mood

    def answer(self, key: str, handler: BaseHTTPRequestHandler) -> None:
        if self.mood == "takes":
            self.taken.add(key)
            super().answer(key, handler)
            return
        self.met.set()
        if self.mood == "refuses":
            handler.send_response(500)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        else:
            handler.close_connection = True
            self._torment(handler)

    def release(self) -> None:
        """Be good again, and end the answers that are under way."""
        self.mood = "takes"
        self._release.set()
        self._release = threading.Event()

    def _torment(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer nothing, or a head that never ends, or with a reset."""
        released = self._release
        if self.mood == "drips":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
            while not released.wait(0.2):
                handler.wfile.write(b".")
        elif self.mood == "hangs":
            released.wait()
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Watch(threading.Thread):
    """Notes when each sink's target has got something, to a tenth of a second."""

    def __init__(self, system: System) -> None:
        super().__init__(daemon=True)
        self.grew: dict[str, list[float]] = {name: [] for name in SINKS}
        self._system = system
        self._done = threading.Event()

    def run(self) -> None:
        sizes = self._sizes()
        while not self._done.wait(LOOK_SECONDS):
            before, sizes = sizes, self._sizes()
            for name in sizes:
                if sizes[name] > before[name]:
                    self.grew[name].append(time.monotonic())

    def finish(self) -> None:
        self._done.set()
        self.join()

    def _sizes(self) -> dict[str, int]:
        paths = {name: self._system.folder / file for name, file in FILES.items()}
        sizes = {name: path.stat().st_size if path.exists() else 0 for name, path in paths.items()}
        return {**sizes, "hook": len(self._system.target.taken)}
