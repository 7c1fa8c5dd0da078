"""What only the journal on SQLite does: locks between processes, limits of the disk, spoilt files."""

from __future__ import annotations

import fcntl
import multiprocessing
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, wait_until
from test_journal import SqliteStore, accept, body, claim, count, names_of, owe, settle

from receiver.errors import JournalError, JournalUnavailable
from receiver.journal import Acceptance, Arrival, Result
from receiver.journal import sqlite as sqlite_module
from receiver.journal.sql import SqlJournal
from receiver.journal.sqlite import SqliteDatabase
from receiver.journal.tables import SCHEMA_VERSION


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path)
    yield store
    store.close_all()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_module, "LOCK_SECONDS", 0.2)


ACCEPTING = """
import sys, threading
from pathlib import Path
from receiver.journal import Arrival
from receiver.journal.sql import SqlJournal
from receiver.journal.sqlite import SqliteDatabase

journal = SqlJournal(SqliteDatabase(Path(sys.argv[1]), 0, None))

def work(thread):
    for number in range(1_000_000):
        name = f"{thread}-{number}"
        if journal.accept(Arrival(name, f"body of {name}".encode() * 20, 1000.0)) == "accepted":
            sys.stdout.write(name + "\\n")
            sys.stdout.flush()

for thread in range(8):
    threading.Thread(target=work, args=(thread,)).start()
"""


def test_a_process_killed_while_it_accepts_loses_nothing_it_said_it_had(store: SqliteStore) -> None:
    said: list[str] = []
    for enough in (100, 300):
        with subprocess.Popen(
            [sys.executable, "-c", ACCEPTING, str(store.path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            here: list[str] = []
            while len(here) < enough:
                here.append(process.stdout.readline().strip())
            process.send_signal(signal.SIGKILL)
            said += [*here, *process.stdout.read().split()]
    kept = {one.id: one.body for one in store.open().unmatched(1_000_000)}
    assert len(said) == len(set(said)) >= 400
    assert [name for name in said if kept.get(name) != body(name) * 20] == []
    assert [name for name in kept if kept[name] != body(name) * 20] == []


# What follows only SQLite does.


@pytest.mark.usefixtures("impatient")
def test_a_second_dispatcher_is_refused_until_the_first_is_gone(store: SqliteStore) -> None:
    first, second = store.open(), store.open()
    first.begin()
    with pytest.raises(JournalUnavailable, match=r"another dispatcher works on .*journal\.sqlite; stop it first"):
        second.begin()
    accept(second, "a")
    store.close(first)
    assert second.begin() == []


@pytest.mark.usefixtures("impatient")
def test_a_dispatcher_that_was_refused_voids_no_claim(store: SqliteStore) -> None:
    first, second = store.open(), store.open()
    first.begin()
    owe(first, "s", "a")
    claim(first, "s")
    with pytest.raises(JournalUnavailable):
        second.begin()
    assert claim(first, "s") == claim(second, "s") == []


def test_a_dispatcher_killed_in_another_process_can_be_succeeded_at_once(store: SqliteStore) -> None:
    journal = store.open()
    owe(journal, "s", "a")
    script = ACCEPTING[: ACCEPTING.index("def work")] + (
        'journal.begin(); journal.claim("s", 1, 6000.0); print("claimed", flush=True); threading.Event().wait(60)'
    )
    script = script.replace("SqliteDatabase(Path(sys.argv[1]), 0, None)", "Database(Path(sys.argv[1]), 0, None)")
    script = script.replace(
        "journal = ",
        f"class Database(SqliteDatabase):\n    def now(self): return {store.clock.now}\n\njournal = ",
        1,
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(store.path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        assert claim(journal, "s") == []
        process.kill()
    assert journal.begin() == ["s"]
    assert [again.attempt for again in claim(journal, "s")] == [2]


def test_a_link_to_the_journal_leads_to_the_same_dispatcher(store: SqliteStore, tmp_path: Path) -> None:
    store.open().begin()
    link = tmp_path / "elsewhere" / "link.sqlite"
    link.parent.mkdir()
    link.symlink_to(store.path)
    with (
        closing(SqlJournal(SqliteDatabase(link, 0, None))) as other,
        pytest.raises(JournalUnavailable, match="another"),
    ):
        other.begin()


def test_a_journal_of_a_newer_receiver_is_refused_in_plain_words(store: SqliteStore) -> None:
    store.close(store.open())
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE receiver_schema SET version = 99")
    connection.close()
    with pytest.raises(JournalError, match=f"has schema 99, this receiver knows {SCHEMA_VERSION}: run the newer"):
        store.open()


def spoil_with_a_file_for_a_folder(store: SqliteStore) -> None:
    store.path.parent.rmdir()
    store.path.parent.write_text("not a folder")


def spoil_with_a_folder_for_a_file(store: SqliteStore) -> None:
    store.path.mkdir()


def spoil_with_a_folder_for_the_lock(store: SqliteStore) -> None:
    store.path.with_name(store.path.name + ".lock").mkdir()


def spoil_with_a_folder_for_the_dispatchers_lock(store: SqliteStore) -> None:
    store.path.with_name(store.path.name + ".dispatcher").mkdir()


def spoil_with_garbage(store: SqliteStore) -> None:
    store.path.write_bytes(b"this was never a database, but it is long enough to look at. " * 100)


def spoil_with_garbage_inside(store: SqliteStore) -> None:
    journal = store.open()
    accept(journal, *(str(number) for number in range(100)))
    store.close(journal)
    with store.path.open("r+b") as file:
        file.seek(100)
        file.write(bytes([165]) * (store.path.stat().st_size - 100))


def spoil_with_a_table_of_another_program(store: SqliteStore) -> None:
    with sqlite3.connect(store.path) as connection:
        connection.execute("CREATE TABLE receiver_schema (something TEXT)")
    connection.close()


SPOILERS = [
    spoil_with_a_file_for_a_folder,
    spoil_with_a_folder_for_a_file,
    spoil_with_a_folder_for_the_lock,
    spoil_with_a_folder_for_the_dispatchers_lock,
    spoil_with_garbage,
    spoil_with_garbage_inside,
    spoil_with_a_table_of_another_program,
]


@pytest.mark.parametrize(
    "spoil", [pytest.param(spoil, id=spoil.__name__.removeprefix("spoil_with_")) for spoil in SPOILERS]
)
def test_a_file_that_is_no_journal_is_an_error_that_names_it(
    spoil: Callable[[SqliteStore], None], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    store = SqliteStore(folder)
    spoil(store)
    with pytest.raises(JournalError) as caught:
        store.open()
    assert str(store.path) in str(caught.value)


def test_a_disk_with_too_little_room_refuses_events_and_still_settles(store: SqliteStore) -> None:
    roomy, tight = store.open(), store.open(min_free_mb=10**9)
    owe(roomy, "s", "a")
    for attempt in (lambda: accept(tight, "b"), tight.check_writable):
        with pytest.raises(JournalUnavailable, match=r"only \d+ MB free under .*, \[journal\] min_free_mb is 10"):
            attempt()
    settle(tight, claim(tight, "s"), Result.DELIVERED)
    tight.retire(2000.0, 10)
    assert (count(tight, "s"), accept(roomy, "a")) == ((1, 0, 0), [Acceptance.ACCEPTED])


def fill(journal: SqlJournal) -> None:
    """Push until there is no more room."""

    def push_on() -> None:
        for number in range(1000):
            journal.accept(Arrival(str(number), b"x" * 10_000, 1000.0))

    with pytest.raises(JournalUnavailable, match=r"the journal has \d+ MB, \[journal\] max_size_mb is 1"):
        push_on()


def empty(journal: SqlJournal) -> None:
    """Deliver everything and let retention remove it."""
    while new := journal.unmatched(1000):
        journal.owe([(kept, ["s"]) for kept in new])
    while claimed := claim(journal, "s"):
        settle(journal, claimed, Result.DELIVERED)
    for _ in range(50):
        journal.retire(2000.0, 10)


def test_a_journal_over_its_size_refuses_events_and_still_settles_and_retires(store: SqliteStore) -> None:
    journal = store.open(max_size_mb=1)
    fill(journal)
    with pytest.raises(JournalUnavailable):
        journal.check_writable()
    empty(journal)
    assert journal.counts().sinks["s"].pending == 0


def test_a_journal_that_was_over_its_size_takes_events_again_when_retention_has_made_room(store: SqliteStore) -> None:
    journal = store.open(max_size_mb=1)
    for _ in range(2):
        fill(journal)
        empty(journal)
        journal.check_writable()
    assert accept(journal, "new") == [Acceptance.ACCEPTED]


def test_a_folder_that_is_gone_makes_the_journal_unavailable(store: SqliteStore) -> None:
    journal = store.open(max_size_mb=100)
    shutil.rmtree(store.path.parent)
    for attempt in (lambda: accept(journal, "a"), journal.check_writable):
        with pytest.raises(JournalError):
            attempt()
    store.path.parent.mkdir()


@contextmanager
def locked_file(store: SqliteStore) -> Iterator[None]:
    """The lock that every writer of ours takes, held by somebody else."""
    with store.path.with_name(store.path.name + ".lock").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def locked_database(store: SqliteStore) -> Iterator[None]:
    """A foreign program in the middle of a transaction."""
    connection = sqlite3.connect(store.path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.close()


@pytest.mark.parametrize("locked", [locked_file, locked_database])
def test_while_another_program_holds_the_journal_every_push_is_answered_in_time_and_later_all_is_well(
    locked: Callable[[SqliteStore], Any], store: SqliteStore
) -> None:
    journals = [store.open(), store.open()]
    accept(journals[0], "before")

    def push(number: int) -> float:
        started = time.monotonic()
        with pytest.raises(JournalUnavailable):
            accept(journals[number % 2], f"during {number}")
        return time.monotonic() - started

    with locked(store):
        with ThreadPoolExecutor(8) as pool:
            waits = list(pool.map(push, range(8)))
        assert [kept.id for kept in journals[0].unmatched(10)] == ["before"]
    assert accept(journals[0], "after") + accept(journals[1], "later") == [Acceptance.ACCEPTED] * 2
    assert max(waits) < 6.0


def test_a_short_lock_delays_a_push_but_does_not_refuse_it(store: SqliteStore) -> None:
    journal = store.open()
    with ThreadPoolExecutor(1) as pool:
        with locked_file(store):
            answer = pool.submit(accept, journal, "a")
            wait_until(lambda: journal._group._committing, what="a push in its commit")
        assert answer.result(20) == [Acceptance.ACCEPTED]


def test_a_transaction_that_was_left_open_on_a_connection_swallows_no_event(store: SqliteStore) -> None:
    journal, other = store.open(), store.open()
    database = journal._database
    assert isinstance(database, SqliteDatabase)
    for name in "abc":
        left = database._engine.raw_connection()
        assert left.driver_connection is not None
        left.driver_connection.execute("BEGIN IMMEDIATE")
        left.close()
        assert accept(journal, name) == [Acceptance.ACCEPTED]
        assert accept(other, name) == [Acceptance.DUPLICATE]
    assert [kept.id for kept in other.unmatched(10)] == ["a", "b", "c"]


def test_new_ids_are_told_from_known_ones_when_the_last_events_were_removed(store: SqliteStore) -> None:
    """What was new is read from the last keys, and those are given again after the last rows are gone."""
    journal = store.open()
    owe(journal, "s", "a", "b", "c", received_at=1000.0)
    settle(journal, claim(journal, "s"), Result.DELIVERED)
    journal.retire(2000.0, 10)
    assert accept(journal, "known") == [Acceptance.ACCEPTED]
    group = [Arrival(name, b"", 1000.0) for name in ("z", "known", "a", "z", "b")]
    assert journal._accept_all(group) == ["accepted", "duplicate", "accepted", "duplicate", "accepted"]
    assert sorted(kept.id for kept in journal.unmatched(10)) == ["a", "b", "known", "z"]


@pytest.mark.parametrize("fate", ["removed", "replaced"])
def test_nothing_is_accepted_into_a_file_that_is_not_the_journal_any_more(fate: str, store: SqliteStore) -> None:
    journal = store.open()
    accept(journal, "before")
    store.path.rename(store.path.with_name("elsewhere"))
    if fate == "replaced":
        store.path.touch()
    with pytest.raises(JournalUnavailable, match=f"the file was {fate}; restart the receiver"):
        accept(journal, "after")


HOLDING = """
import re, sys
from pathlib import Path
from receiver.journal import sqlite
sqlite.STUCK_SECONDS = 0.3
lock = sqlite.FileLock(Path(sys.argv[1]))
lock.exit_when_stuck()
assert lock.acquire(0.2)
print("held", flush=True)
re.match("(a+)+b", "a" * 60)
"""


def test_a_dispatcher_whose_interpreter_is_held_gives_up_the_lock_by_ending(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path / "lock")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert process.wait(20) != 0
    lock = sqlite_module.FileLock(tmp_path / "lock")
    assert lock.acquire(0.0)
    lock.release()
    lock.close()


def test_a_clock_that_was_set_back_makes_no_delivery_wait_longer(store: SqliteStore) -> None:
    journal = store.open()
    journal.begin()
    owe(journal, "s", "a")
    settle(journal, claim(journal, "s"), Result.FAILED, store.clock.now + 30)
    journal.beat()
    store.close(journal)
    store.clock.advance(-3600)
    journal = store.open()
    journal.begin()
    store.clock.advance(31)
    assert names_of(claim(journal, "s")) == ["a"]


def test_a_process_that_a_plugin_forks_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = sqlite_module.FileLock(tmp_path / "lock")
    assert lock.acquire(0.0)
    child = multiprocessing.get_context("fork").Process(target=threading.Event().wait, args=(20,))
    child.start()
    try:
        lock.close()
        other = sqlite_module.FileLock(tmp_path / "lock")
        wait_until(lambda: other.acquire(0.0), what="the lock")
        other.close()
    finally:
        child.kill()
        child.join()


def test_what_is_accepted_or_claimed_lasts_and_what_can_be_done_again_leaves_the_disk_alone(store: SqliteStore) -> None:
    database = SqliteDatabase(store.path, 0, None)
    with database.write() as lasting, database.read() as also:
        assert [each.exec_driver_sql("PRAGMA synchronous").scalar_one() for each in (lasting, also)] == [2, 2]
    with database.write(lasting=False) as repeatable:
        assert repeatable.exec_driver_sql("PRAGMA synchronous").scalar_one() == 1
    database.close()
