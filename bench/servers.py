"""The servers that are compared, each in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from bench.load import SECRET
from receiver.simulator import Pusher, Simulator
from receiver.testing.ports import reserve_port
from receiver.testing.postgresql import new_database

ROOT = Path(__file__).parent.parent
WORKERS, THREADS = 2, 32
START_SECONDS = 30.0
RECEIVER = '[sensors]\nenabled = false\n[receiver]\nhost = "127.0.0.1"\ndeliver = true\n'
WITH_REGISTRY = RECEIVER.replace("enabled = false", "enabled = true")
STDOUT = '[sinks.console]\ntype = "stdout"\n'
CSV = '[sinks.archive]\ntype = "csv"\npath = "events.csv"\n'


def webhook(port: int, concurrency: int = 1) -> str:
    return (
        f'[sinks.hook]\ntype = "webhook"\nurl = "http://127.0.0.1:{port}/"\n'
        f"allow_private = true\nconcurrency = {concurrency}\n"
    )


def mqtt(port: int, homeassistant: bool = False) -> str:
    shown = str(homeassistant).lower()
    return f'[sinks.home]\ntype = "mqtt"\nurl = "mqtt://127.0.0.1:{port}"\nhomeassistant = {shown}\n'


@dataclass(frozen=True)
class Kind:
    """How to start a server; `{port}` in the command is replaced with its port."""

    name: str
    command: tuple[str, ...] = ("-m", "receiver", "serve")
    config: str = RECEIVER
    postgres: bool = False

    def but(self, name: str, config: str) -> Kind:
        return replace(self, name=name, config=config)


INTAKE_ONLY = RECEIVER.replace("deliver = true", "deliver = false")
CEILING = Kind("ceiling: the same server (gevent), nothing stored", ("-m", "bench.ceiling"))
SQLITE = Kind("receiver on SQLite", config=INTAKE_ONLY)
POSTGRES = Kind("receiver on PostgreSQL", config=INTAKE_ONLY, postgres=True)
SERVED = ("--bind=127.0.0.1:{port}", "--no-control-socket")
THREADED = (f"--workers={WORKERS}", f"--threads={THREADS}", "--worker-class=gthread")
CEILING_THREADED = Kind(
    "the same view on threads, nothing stored", ("-m", "gunicorn", "bench.ceiling:create_app()", *SERVED, *THREADED)
)
NODE_RED = Kind("Node-RED 4, appending to a CSV file", ("-m", "bench.node_red"))
GUNICORN = ("-m", "gunicorn", "bench.guide:app", *SERVED)
GUIDE = Kind("minimal receiver, as the guide starts it", (*GUNICORN, "--workers=1"))
GUIDE_EQUAL = Kind("minimal receiver, as many workers", (*GUNICORN, *THREADED))


class Server:
    """A server in a folder, which may have the journal of an earlier server."""

    def __init__(self, kind: Kind, folder: Path, database: str = "") -> None:
        """Without the URL of a `database`, it has one of its own."""
        self.kind = kind
        self.folder = folder
        sqlite = f"sqlite:///{folder}/data/journal.sqlite"
        self.database = database or (new_database() if kind.postgres else sqlite)
        self.port = reserve_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        (folder / "config.toml").write_text(kind.config, encoding="utf-8")

    def start(self) -> None:
        command = [sys.executable, *(part.format(port=self.port) for part in self.kind.command)]
        with (self.folder / "stdout.txt").open("ab") as out, (self.folder / "log.txt").open("ab") as log:
            self._started_at = time.monotonic()
            self.process = psutil.Popen(command, cwd=ROOT, env=self.environment(), stdout=out, stderr=log)

    def wait_until_up(self) -> None:
        """Push until one push gets 200; `start_seconds` is how long that took from the start."""
        pusher, body = Pusher(self.url, SECRET), Simulator().body("touch")
        while time.monotonic() < self._started_at + START_SECONDS and self.process.poll() is None:
            if pusher.push(body).status == 200:
                self.start_seconds = time.monotonic() - self._started_at
                return
            time.sleep(0.005)
        raise RuntimeError(f"{self.kind.name} did not start: {(self.folder / 'log.txt').read_text()}")

    def processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """Processor time that all its running processes have used."""
        used = [process.cpu_times() for process in self.processes()]
        return float(sum(times.user + times.system for times in used))

    def megabytes(self) -> float:
        """Memory of all its processes; what they share is divided among them (PSS)."""
        return float(sum(process.memory_full_info().pss for process in self.processes())) / 1e6

    def memory(self) -> dict[str, float]:
        """Megabytes of each process of a receiver, by name; shared memory is divided among them (PSS)."""
        intake, dispatcher = self.process.children()
        workers = {f"worker {number}": worker for number, worker in enumerate(intake.children(), 1)}
        named = {"supervisor": self.process, "gunicorn": intake, **workers, "dispatcher": dispatcher}
        return {name: process.memory_full_info().pss / 1e6 for name, process in named.items()}

    def stop(self) -> None:
        if self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except psutil.TimeoutExpired:
            for process in self.processes():
                process.kill()

    def environment(self) -> dict[str, str]:
        replaced = ("DT_SIGNATURE_SECRET", "DATABASE_URL")
        return {
            **{name: text for name, text in os.environ.items() if not name.startswith(replaced)},
            "DT_SIGNATURE_SECRET": SECRET,
            "PORT": str(self.port),
            "WEB_CONCURRENCY": str(WORKERS),
            "RECEIVER_CONFIG": str(self.folder / "config.toml"),
            **({"DATABASE_URL": self.database} if self.kind.postgres else {}),
        }


@contextmanager
def running(kind: Kind) -> Iterator[Server]:
    """A server that is started in an empty folder, and stopped at the end."""
    with folder() as where, started(Server(kind, where)) as server:
        yield server


@contextmanager
def started(server: Server) -> Iterator[Server]:
    """Start a server and wait for its first 200; it is stopped at the end."""
    server.start()
    try:
        server.wait_until_up()
        yield server
    finally:
        server.stop()


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that is deleted at the end; TMPDIR chooses its disk, which makes a difference."""
    with tempfile.TemporaryDirectory(prefix="receiver-bench-", ignore_cleanup_errors=True) as path:
        yield Path(path)


@contextmanager
def target() -> Iterator[tuple[int, Path]]:
    """A webhook target in a process of its own: its port, and the file with the times of arrival."""
    with folder() as where:
        port, notes = reserve_port(), where / "notes.txt"
        process = subprocess.Popen([sys.executable, "-m", "bench.target", str(port), str(notes)], cwd=ROOT)
        try:
            while not notes.exists():
                time.sleep(0.01)
            yield port, notes
        finally:
            process.terminate()
            process.wait()


@contextmanager
def broker() -> Iterator[int | None]:
    """The port of an MQTT broker; None where Debian's mosquitto is not installed."""
    program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        yield None
        return
    with folder() as where:
        port = reserve_port()
        (where / "mosquitto.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
        process = subprocess.Popen([program, "-c", where / "mosquitto.conf"], stderr=subprocess.DEVNULL)
        try:
            yield port
        finally:
            process.terminate()
            process.wait()
