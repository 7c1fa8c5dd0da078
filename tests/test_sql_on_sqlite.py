"""The sql sink on SQLite when the file cannot be used: the sink is paused, and no event becomes a dead letter."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from support.built_in_sinks import class_of, deliver_batch
from support.events import event
from support.processes import run_python
from support.sql_databases import SqlDatabase

from receiver import Pause
from receiver.simulator import Simulator
from receiver.testing.fixtures import StartReceiver
from receiver.testing.running import wait_until


def test_a_new_file_is_started_when_the_file_was_moved_away(sqlite_database: SqlDatabase, tmp_path: Path) -> None:
    sink = sqlite_database.open()
    deliver_batch(sink, event("e1"))
    sqlite_database.path.rename(tmp_path / "old.sqlite")
    with pytest.raises(Pause, match="no such table"):
        deliver_batch(sink, event("e2"))
    deliver_batch(sink, event("e2"))
    assert sqlite_database.event_ids() == ["e2"]


def test_what_a_killed_process_has_committed_is_on_the_disk_before_it_is_delivered_again(
    sqlite_database: SqlDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been killed between the deletion of its rollback journal, which is the commit, and the flush of the
    folder; the repeated delivery changes no row, so that its transaction flushes nothing."""
    deliver_batch(sqlite_database.open(), event("e1"))
    flushed, fsync = [], os.fsync

    def recorded(fd: int) -> None:
        fsync(fd)
        flushed.append(Path(os.readlink(f"/proc/self/fd/{fd}")))

    monkeypatch.setattr(os, "fsync", recorded)
    deliver_batch(sqlite_database.open(), event("e1"))
    assert sqlite_database.path.parent in flushed


def test_a_sink_waits_while_another_program_writes_to_the_file(sqlite_database: SqlDatabase) -> None:
    sink = sqlite_database.open()
    with closing(sqlite3.connect(sqlite_database.path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        commit = threading.Timer(0.5, other.execute, ["COMMIT"])
        commit.start()
        deliver_batch(sink, event("e1"))
        commit.join()
    assert sqlite_database.event_ids() == ["e1"]


def test_a_file_that_remains_locked_pauses_the_sink(
    sqlite_database: SqlDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = class_of("sql")
    monkeypatch.setattr(cls, "limits", dataclasses.replace(cls.limits, lock_seconds=0.1))
    sink = sqlite_database.open()
    with closing(sqlite3.connect(sqlite_database.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Pause, match=r"^the database cannot be used: OperationalError: database is locked$"):
            deliver_batch(sink, event("e1"))
    deliver_batch(sink, event("e1"))
    assert sqlite_database.event_ids() == ["e1"]


def test_a_file_that_is_not_a_database_pauses_the_sink_and_is_not_changed(sqlite_database: SqlDatabase) -> None:
    sqlite_database.path.write_bytes(b"precious text " * 1000)
    with pytest.raises(Pause, match="DatabaseError: file is not a database"):
        sqlite_database.open()
    assert sqlite_database.path.read_bytes() == b"precious text " * 1000


def test_a_file_that_cannot_be_created_pauses_the_sink(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Pause, match=r"^the folder of the database cannot be created: Not a directory$"):
        SqlDatabase(f"sqlite:///{tmp_path / 'file' / 'folder' / 'data.sqlite'}").open()
    with pytest.raises(Pause, match="unable to open database file"):
        SqlDatabase(f"sqlite:///{tmp_path}").open()


FULL_DISK = """
import resource, signal, sys
from receiver import Pause
from support.built_in_sinks import deliver_batch
from support.events import event
from support.sql_databases import SqlDatabase

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
database = SqlDatabase(sys.argv[1])
sink = database.open()
deliver_batch(sink, event("e1"))
events = [event(f"f{number}") for number in range(1000)]
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (database.path.stat().st_size, unlimited[1]))
try:
    deliver_batch(sink, *events)
except Pause as pause:
    print(pause)
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
print(database.event_ids())
deliver_batch(sink, *events)
print(len(database.rows()))
"""


def test_a_full_disk_pauses_the_sink_until_there_is_room(sqlite_database: SqlDatabase) -> None:
    """In a process whose files cannot grow, which is what a full disk is like."""
    run = run_python(FULL_DISK, sqlite_database.url)
    assert (run.returncode, run.stderr) == (0, b"")
    reason, while_full, afterwards = run.stdout.decode().splitlines()
    assert reason.startswith("the database cannot be used: OperationalError: ")
    assert (while_full, afterwards) == ("['e1']", "1001")


WRITE_VERSION_OFFSET = 18
"""Where the header of an SQLite file says who can write to it; above 2 no program can."""


def test_a_read_only_file_pauses_the_sink(sqlite_database: SqlDatabase) -> None:
    sink = sqlite_database.open()
    with sqlite_database.path.open("r+b") as file:
        file.seek(WRITE_VERSION_OFFSET)
        file.write(b"\x03")
    with pytest.raises(Pause) as pause:
        deliver_batch(sink, event("e1"))
    assert str(pause.value) == "the database cannot be used: OperationalError: attempt to write a readonly database"


def test_only_rejected_rows_become_dead_letters_in_a_running_receiver(
    start_receiver: StartReceiver, sqlite_database: SqlDatabase
) -> None:
    """With a single attempt each, while the file is not a database, and after it is one again."""
    sqlite_database.create_readings(constraint="CHECK (event_type <> 'co2')")
    retry = 'retry = { initial_backoff = "0.2s", max_backoff = "1s", max_attempts = 1 }'
    receiver = start_receiver(f'[sinks.data]\ntype = "sql"\nurl = "{sqlite_database.url}"\n{retry}\n')
    simulator = Simulator(seed=6)
    moved = sqlite_database.path.rename(sqlite_database.path.with_suffix(".moved"))
    sqlite_database.path.write_bytes(b"not a database " * 100)
    for kind in ["touch", "co2", "touch", "temperature", "co2", "touch"] * 5:
        assert receiver.push(simulator.body(kind))[0] == 200
    wait_until(lambda: receiver.metric('receiver_sink_paused{sink="data"}'))
    moved.rename(sqlite_database.path)

    wait_until(lambda: receiver.metric('receiver_deliveries_total{sink="data"}') == 20, what=receiver.log)
    wait_until(lambda: receiver.metric('receiver_dead_letters{sink="data"}') == 10)
    assert {row["event_type"] for row in sqlite_database.rows()} == {"touch", "temperature"}
    assert len(set(sqlite_database.event_ids())) == 20
    assert "IntegrityError: CHECK constraint failed: event_type <> 'co2'" in receiver.log
