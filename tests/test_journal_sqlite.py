"""What only the journal on SQLite does: locks between processes, limits of the disk, damaged files."""

from __future__ import annotations

import fcntl
import multiprocessing
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, wait_until
from sqlalchemy import Connection, event
from support.greenlets import in_greenlets
from support.journals import SqliteStore, accept, body, claim, delivery_counts, event_ids, route_events, settle

from receiver.errors import JournalError, JournalUnavailable
from receiver.intake.group_commit import GroupCommit
from receiver.journal import Arrival, Delivery, Journal, Outcome, Result, SinkState
from receiver.journal.sql import sqlite as sqlite_module
from receiver.journal.sql.journal import SqlJournal
from receiver.journal.sql.sqlite import SqliteDatabase


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path)
    yield store
    store.close_all()


@pytest.fixture
def short_lock_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_module, "LOCK_SECONDS", 0.2)


def run_python(script: str, path: Path) -> subprocess.Popen[str]:
    """Another process that runs a script; its only argument is the path."""
    command = [sys.executable, "-c", script, str(path)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().removesuffix("\n")


ACCEPTING = """
import sys
from pathlib import Path
from typing import Any
import gevent
from receiver.intake.group_commit import GroupCommit
from receiver.journal import Arrival
from receiver.journal.sql.journal import SqlJournal
from receiver.journal.sql.sqlite import SqliteDatabase

group = GroupCommit(SqlJournal(SqliteDatabase(Path(sys.argv[1]), 0, None)).accept)

def work(greenlet):
    for number in range(1_000_000):
        event_id = f"{greenlet}-{number}"
        if group.submit(Arrival(event_id, f"body of {event_id}".encode() * 20, 1000.0)) == "accepted":
            sys.stdout.write(event_id + "\\n")
            sys.stdout.flush()

gevent.joinall([gevent.spawn(work, greenlet) for greenlet in range(8)])
"""


def test_a_process_that_is_killed_while_it_accepts_loses_no_event_that_it_reported(store: SqliteStore) -> None:
    reported: list[str] = []
    for enough in (100, 300):
        with run_python(ACCEPTING, store.path) as process:
            lines = [read_line(process) for _ in range(enough)]
            process.kill()
            assert process.stdout is not None
            reported += [*lines, *process.stdout.read().split()]
    stored = {event.id: event.body for event in store.open().unrouted(1_000_000)}
    assert len(reported) == len(set(reported)) >= 400
    assert [event_id for event_id in reported if stored.get(event_id) != body(event_id) * 20] == []
    assert [event_id for event_id in stored if stored[event_id] != body(event_id) * 20] == []


@pytest.mark.usefixtures("short_lock_timeout")
def test_a_second_dispatcher_is_rejected_until_the_first_is_gone(store: SqliteStore) -> None:
    first, second = store.open(), store.open()
    first.start_dispatching()
    with pytest.raises(JournalUnavailable, match=r"^another dispatcher uses .*journal\.sqlite; stop it first$"):
        second.start_dispatching()
    accept(second, "a")
    store.close(first)
    assert second.start_dispatching() == []


@pytest.mark.usefixtures("short_lock_timeout")
def test_a_dispatcher_that_was_rejected_voids_no_claim(store: SqliteStore) -> None:
    first, second = store.open(), store.open()
    first.start_dispatching()
    route_events(first, "s", "a")
    claim(first, "s")
    with pytest.raises(JournalUnavailable):
        second.start_dispatching()
    assert claim(first, "s") == claim(second, "s") == []


CLAIMING = """
import sys, threading
from pathlib import Path
from typing import Any
from receiver.journal.sql.journal import SqlJournal
from receiver.journal.sql.sqlite import SqliteDatabase

class Database(SqliteDatabase):
    def now(self):
        return NOW

journal = SqlJournal(Database(Path(sys.argv[1]), 0, None))
journal.start_dispatching()
journal.claim("s", 1, 6000.0)
print("claimed", flush=True)
threading.Event().wait(60)
"""


def test_a_dispatcher_that_was_killed_in_another_process_can_be_succeeded_at_once(store: SqliteStore) -> None:
    journal = store.open()
    route_events(journal, "s", "a")
    with run_python(CLAIMING.replace("NOW", str(store.clock.now)), store.path) as process:
        assert read_line(process) == "claimed"
        assert claim(journal, "s") == []
        process.kill()
    assert journal.start_dispatching() == ["s"]
    assert [delivery.attempt for delivery in claim(journal, "s")] == [2]


@pytest.mark.usefixtures("short_lock_timeout")
def test_a_symbolic_link_to_the_journal_leads_to_the_same_dispatcher_lock(store: SqliteStore, tmp_path: Path) -> None:
    store.open().start_dispatching()
    link = tmp_path / "elsewhere" / "link.sqlite"
    link.parent.mkdir()
    link.symlink_to(store.path)
    with (
        closing(SqlJournal(SqliteDatabase(link, 0, None))) as other,
        pytest.raises(JournalUnavailable, match="another dispatcher"),
    ):
        other.start_dispatching()


def file_instead_of_the_folder(store: SqliteStore) -> None:
    store.path.parent.rmdir()
    store.path.parent.write_text("not a folder")


def folder_instead_of_the_file(store: SqliteStore) -> None:
    store.path.mkdir()


def folder_instead_of_the_lock(store: SqliteStore) -> None:
    store.path.with_name(store.path.name + ".lock").mkdir()


def folder_instead_of_the_dispatcher_lock(store: SqliteStore) -> None:
    store.path.with_name(store.path.name + ".dispatcher").mkdir()


def no_database(store: SqliteStore) -> None:
    store.path.write_bytes(b"this was never a database, but it is long enough to look at. " * 100)


def overwritten_pages(store: SqliteStore) -> None:
    journal = store.open()
    accept(journal, *(str(number) for number in range(100)))
    store.close(journal)
    with store.path.open("r+b") as file:
        file.seek(100)
        file.write(bytes([165]) * (store.path.stat().st_size - 100))


def table_of_another_program(store: SqliteStore) -> None:
    with closing(sqlite3.connect(store.path)) as connection:
        connection.execute("CREATE TABLE receiver_schema (something TEXT)")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(damage, id=damage.__name__.replace("_", " "))
        for damage in (
            file_instead_of_the_folder,
            folder_instead_of_the_file,
            folder_instead_of_the_lock,
            folder_instead_of_the_dispatcher_lock,
            no_database,
            overwritten_pages,
            table_of_another_program,
        )
    ],
)
def test_a_file_that_is_not_a_journal_is_an_error_that_names_it(
    damage: Callable[[SqliteStore], None], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    store = SqliteStore(tmp_path / "data")
    damage(store)
    with pytest.raises(JournalError) as caught:
        store.open()
    assert str(store.path) in str(caught.value)


def test_with_too_little_free_space_events_are_rejected_while_settling_and_retention_work(store: SqliteStore) -> None:
    roomy, tight = store.open(), store.open(min_free_mb=10**9)
    route_events(roomy, "s", "a")
    message = rf"^only \d+ MB of disk are free for .*journal\.sqlite, and \[journal\] min_free_mb is {10**9}$"
    for call in (lambda: accept(tight, "b"), tight.check_writable):
        with pytest.raises(JournalUnavailable, match=message):
            call()
    settle(tight, claim(tight, "s"), Result.DELIVERED)
    tight.remove_expired(2000.0, 10)
    assert (delivery_counts(tight, "s"), accept(roomy, "a")) == ((1, 0, 0), [Outcome.ACCEPTED])


def fill(journal: Journal) -> None:
    """Push until the journal is over its size."""

    def push_on() -> None:
        for number in range(1000):
            journal.accept([Arrival(str(number), b"x" * 10_000, 1000.0)])

    with pytest.raises(JournalUnavailable, match=r"^the journal has \d+ MB, and \[journal\] max_size_mb is 1$"):
        push_on()


def empty(journal: Journal) -> None:
    """Deliver everything and let retention remove it."""
    while new := journal.unrouted(1000):
        journal.route([(event, ["s"]) for event in new])
    while claimed := claim(journal, "s"):
        settle(journal, claimed, Result.DELIVERED)
    for _ in range(50):
        journal.remove_expired(2000.0, 10)


def test_a_journal_over_its_size_rejects_events_until_retention_has_made_room(store: SqliteStore) -> None:
    journal = store.open(max_size_mb=1)
    for _ in range(2):
        fill(journal)
        with pytest.raises(JournalUnavailable):
            journal.check_writable()
        empty(journal)
        assert journal.counts().sinks["s"].pending == 0
        journal.check_writable()
    assert accept(journal, "new") == [Outcome.ACCEPTED]


@contextmanager
def long_read(store: SqliteStore) -> Iterator[None]:
    """Another program reads for so long that the write-ahead log cannot be written back to the file."""
    with closing(sqlite3.connect(store.path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM events").fetchone()
        yield


def write_ahead_log(store: SqliteStore) -> int:
    return store.path.with_name(store.path.name + "-wal").stat().st_size


def rewrite(journal: Journal, megabytes: int) -> None:
    """Commit so much to the same pages: the file stays small, and the write-ahead log grows while it is read."""
    for number in range(megabytes):
        journal.accept([Arrival(f"{number}", b"x" * 1_000_000, 1000.0)])
        empty(journal)


def test_the_write_ahead_log_counts_toward_the_size_until_it_has_been_written_back(store: SqliteStore) -> None:
    journal = store.open(max_size_mb=20)
    with long_read(store):
        with pytest.raises(JournalUnavailable, match=r"^the journal has \d+ MB, and \[journal\] max_size_mb is 20$"):
            rewrite(journal, 40)
        assert 15_000_000 < write_ahead_log(store) < 30_000_000
        with pytest.raises(JournalUnavailable):
            journal.check_writable()
    assert accept(journal, "new") == [Outcome.ACCEPTED]
    assert write_ahead_log(store) < 1_000_000


def test_a_write_ahead_log_that_a_long_read_made_large_shrinks_without_a_restart(store: SqliteStore) -> None:
    journal = store.open()
    with long_read(store):
        rewrite(journal, 30)
        assert write_ahead_log(store) > 30_000_000
    for _ in range(2):  # the first writes it back, the second begins it anew
        journal.report_alive()
    assert write_ahead_log(store) <= sqlite_module.LOG_BYTES


def test_without_its_folder_the_journal_is_unavailable(store: SqliteStore) -> None:
    journal = store.open(max_size_mb=100)
    shutil.rmtree(store.path.parent)
    for call in (lambda: accept(journal, "a"), journal.check_writable):
        with pytest.raises(JournalUnavailable):
            call()
    store.path.parent.mkdir()


@contextmanager
def locked_by_a_writer(store: SqliteStore) -> Iterator[None]:
    """Another process of the receiver holds the lock that every writer takes."""
    with store.path.with_name(store.path.name + ".lock").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def locked_by_another_program(store: SqliteStore) -> Iterator[None]:
    """Another program is in the middle of a transaction."""
    with closing(sqlite3.connect(store.path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


@pytest.mark.serial
@pytest.mark.parametrize("locked", [locked_by_a_writer, locked_by_another_program])
def test_while_the_journal_is_locked_every_push_is_rejected_in_time_and_later_pushes_are_accepted(
    locked: Callable[[SqliteStore], AbstractContextManager[None]], store: SqliteStore
) -> None:
    journals = [store.open(), store.open()]
    groups = [GroupCommit(journal.accept) for journal in journals]
    accept(journals[0], "before")

    def push(number: int) -> float:
        start = time.monotonic()
        with pytest.raises(JournalUnavailable):
            groups[number % 2].submit(Arrival(f"during {number}", b"", 1000.0))
        return time.monotonic() - start

    with locked(store):
        seconds = in_greenlets(8, push, range(8))
        assert event_ids(journals[0].unrouted(10)) == ["before"]
    assert accept(journals[0], "after") + accept(journals[1], "later") == [Outcome.ACCEPTED] * 2
    assert max(seconds) < 5.5


def test_a_claim_finds_what_became_due_while_it_waited_for_the_lock(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = store.open()
    route_events(journal, "s", "a")
    settle(journal, claim(journal, "s"), Result.FAILED, store.clock.now + 5)
    write = SqliteDatabase.write

    @contextmanager
    def write_after_a_wait(database: SqliteDatabase, **options: bool) -> Iterator[Connection]:
        with write(database, **options) as connection:
            store.clock.advance(10)
            yield connection

    monkeypatch.setattr(SqliteDatabase, "write", write_after_a_wait)
    assert event_ids(claim(journal, "s")) == ["a"]


def test_a_short_lock_delays_a_push_and_does_not_reject_it(store: SqliteStore) -> None:
    journal = store.open()
    committing = threading.Event()
    store.before_next_write = committing.set
    with ThreadPoolExecutor(1) as pool:
        with locked_by_a_writer(store):
            push = pool.submit(accept, journal, "a")
            assert committing.wait(20)
            assert not push.done()
        assert push.result(20) == [Outcome.ACCEPTED]


def test_a_transaction_that_was_left_open_on_a_connection_loses_no_event(store: SqliteStore) -> None:
    journal, other = store.open(), store.open()
    database = journal._database
    assert isinstance(database, SqliteDatabase)
    for event_id in "abc":
        pooled = database._engine.raw_connection()
        assert pooled.driver_connection is not None
        pooled.driver_connection.execute("BEGIN IMMEDIATE")
        pooled.close()
        assert accept(journal, event_id) == [Outcome.ACCEPTED]
        assert accept(other, event_id) == [Outcome.DUPLICATE]
    assert event_ids(other.unrouted(10)) == ["a", "b", "c"]


@pytest.mark.parametrize("change", ["removed", "replaced"])
@pytest.mark.parametrize(
    "arrival",
    [
        Arrival("after", b"", 1000.0),
        Arrival("after", b"", 1000.0, secret="DT_SIGNATURE_SECRET"),
        Arrival("after", b"", 1000.0, quarantine_reason="not an event"),
    ],
    ids=["event", "with a secret to note", "in quarantine"],
)
def test_nothing_is_accepted_into_a_file_that_is_not_the_journal_any_more(
    arrival: Arrival, change: str, store: SqliteStore
) -> None:
    journal = store.open()
    accept(journal, "before")
    store.path.rename(store.path.with_name("elsewhere"))
    if change == "replaced":
        store.path.touch()
    with pytest.raises(JournalUnavailable, match=f"journal.sqlite: the file was {change}; restart the receiver$"):
        journal.accept([arrival])


def test_nothing_is_accepted_into_a_file_that_was_replaced_after_it_was_only_read(store: SqliteStore) -> None:
    """As in intake before the first push: the dispatcher has created the tables."""
    store.close(store.open())
    with closing(SqlJournal(store.database(), create_tables=False)) as journal:
        assert journal.document("keys") is None
        for name in ("journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"):
            store.path.with_name(name).unlink(missing_ok=True)
        store.close(store.open())
        with pytest.raises(JournalUnavailable, match=r"the file was replaced; restart the receiver$"):
            accept(journal, "a")


BLOCKING = """
import re, sys
from pathlib import Path
from typing import Any
from receiver.journal.sql import sqlite
sqlite.STUCK_SECONDS = 0.3
lock = sqlite.FileLock(Path(sys.argv[1]))
lock.exit_when_stuck()
assert lock.acquire(0.2)
print("locked", flush=True)
re.match("(a+)+b", "a" * 60)
"""


def test_a_dispatcher_whose_interpreter_is_blocked_ends_and_so_releases_the_lock(tmp_path: Path) -> None:
    with run_python(BLOCKING, tmp_path / "lock") as process:
        assert read_line(process) == "locked"
        assert process.wait(20) != 0
    lock = sqlite_module.FileLock(tmp_path / "lock")
    assert lock.acquire(0.0)
    lock.release()
    lock.close()


def test_a_clock_that_was_set_back_before_a_start_delays_no_delivery(store: SqliteStore) -> None:
    journal = store.open()
    journal.start_dispatching()
    route_events(journal, "s", "a")
    settle(journal, claim(journal, "s"), Result.FAILED, store.clock.now + 30)
    journal.report_alive()
    store.close(journal)
    store.clock.advance(-3600)
    journal = store.open()
    journal.start_dispatching()
    store.clock.advance(31)
    assert event_ids(claim(journal, "s")) == ["a"]


def test_what_an_operator_requeues_or_resumes_waits_for_no_clock_that_was_set_forward_meanwhile(
    store: SqliteStore,
) -> None:
    """The dispatcher of a machine that learns the time after its start: its own clock never jumps."""
    journal, of_operator = store.open(), SqliteStore(store.folder)
    journal.start_dispatching()
    journal.report_alive()
    stored = route_events(journal, "s", "retried", "replayed")
    retried, replayed = claim(journal, "s")
    settle(journal, [retried], Result.DEAD)
    settle(journal, [replayed], Result.DELIVERED)
    journal.save_sink_state(SinkState("s", 1, store.clock.now + 60))
    of_operator.clock.advance(8 * 3600)
    records = of_operator.records()
    records.retry_dead_letters("s", None)
    records.requeue("s", stored)
    records.resume("s")
    of_operator.close_all()
    assert event_ids(claim(journal, "s")) == ["retried", "replayed"]
    assert journal.sink_states()["s"].paused_until <= store.clock.now


def test_a_process_that_locks_again_and_again_lets_others_have_the_lock_between(tmp_path: Path) -> None:
    """Or pushes get 503 while an operator retries a million dead letters in batches."""
    lock, other = (sqlite_module.FileLock(tmp_path / "lock") for _ in range(2))
    turns, ended = 0, threading.Event()

    def lock_again_and_again() -> None:
        nonlocal turns
        while not ended.is_set():
            with other.held(5.0):
                turns += 1
                time.sleep(1.2 * sqlite_module.LONG_SECONDS)

    with closing(lock), closing(other), ThreadPoolExecutor(1) as pool:
        locking = pool.submit(lock_again_and_again)
        try:
            for _ in range(20):
                time.sleep(0.01)  # the other one locks meanwhile
                with lock.held(5.0):
                    pass
        finally:
            ended.set()
        locking.result(10)
    assert turns < 60


def test_a_process_that_a_plugin_forks_does_not_hold_the_lock(tmp_path: Path) -> None:
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


def test_only_commits_that_need_not_be_durable_do_not_wait_for_the_disk(store: SqliteStore) -> None:
    with closing(SqliteDatabase(store.path, 0, None)) as database:
        with database.write() as durable, database.read() as reading:
            assert [each.exec_driver_sql("PRAGMA synchronous").scalar_one() for each in (durable, reading)] == [2, 2]
        with database.write(durable=False) as not_durable:
            assert not_durable.exec_driver_sql("PRAGMA synchronous").scalar_one() == 1


def test_only_what_is_done_again_after_a_power_cut_does_not_wait_for_the_disk(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim waits: without it, the attempt of a call that was made would not be counted."""
    journal = store.open()
    durable: list[bool] = []
    write = SqliteDatabase.write

    def note(database: SqliteDatabase, **options: bool) -> AbstractContextManager[Connection]:
        durable.append(options.get("durable", True))
        return write(database, **options)

    monkeypatch.setattr(SqliteDatabase, "write", note)

    def waits(action: Callable[[], object]) -> bool:
        durable.clear()
        action()
        return all(durable)

    accept(journal, "a", "b")
    new = journal.unrouted(10)
    assert not waits(lambda: journal.route([(event, ["s"]) for event in new]))
    claimed: list[Delivery] = []
    assert waits(lambda: claimed.extend(claim(journal, "s")))
    assert waits(lambda: journal.extend(claimed, 60.0))
    assert waits(lambda: journal.save_sink_state(SinkState("s", pauses=1)))
    assert not waits(lambda: settle(journal, claimed, Result.DELIVERED))
    assert waits(lambda: store.records().requeue("s", new))


def test_a_push_that_was_stored_before_waits_for_the_disk_as_well(store: SqliteStore) -> None:
    """The processes that stored it may all have been killed between the write of that commit and its flush."""
    journal = store.open()
    accept(journal, "a")
    written = write_ahead_log(store)
    assert accept(journal, "a") == [Outcome.DUPLICATE]
    assert write_ahead_log(store) > written


def test_a_lock_that_cannot_be_guarded_is_free_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("no file descriptor")

    lock = sqlite_module.FileLock(tmp_path / "lock")
    lock.exit_when_stuck()
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_module.faulthandler, "dump_traceback_later", fail)
        with pytest.raises(RuntimeError, match="no file descriptor"):
            lock.acquire(1.0)
    assert lock.acquire(1.0)
    lock.release()
    lock.close()


GROUPS_OF_ALL_SIZES = """
import sys
from pathlib import Path
from typing import Any
import psutil
from receiver.journal import Arrival
from receiver.journal.sql.journal import SqlJournal
from receiver.journal.sql.sqlite import SqliteDatabase

journal = SqlJournal(SqliteDatabase(Path(sys.argv[1]), 0, None))
body = b"x" * 100_000
journal.accept([Arrival("first", body, 1000.0)])
before = psutil.Process().memory_info().rss
for size in range(1, 61):
    journal.accept([Arrival(f"{size}-{number}", body, 1000.0) for number in range(size)])
print((psutil.Process().memory_info().rss - before) // 1_000_000)
"""


def test_groups_of_all_sizes_with_large_bodies_do_not_fill_the_memory(store: SqliteStore) -> None:
    with run_python(GROUPS_OF_ALL_SIZES, store.path) as process:
        megabytes = int(read_line(process))
    assert megabytes < 60, "183 MB are in these groups, 6 MB in the largest"


def test_what_is_done_with_an_event_does_not_read_what_else_is_pending(store: SqliteStore) -> None:
    journal = store.open()
    queries: list[tuple[str, Any]] = []

    def record(connection: object, cursor: object, statement: str, parameters: object, *rest: object) -> None:
        queries.append((statement, parameters))

    for engine in (journal._database._engine, journal._database._not_durable):  # type: ignore[attr-defined]
        event.listen(engine, "before_cursor_execute", record)
    route_events(journal, "s", "a", "b", "c", "d", "e")
    claimed = claim(journal, "s")
    journal.extend(claimed, 60.0)
    for delivery, result in zip(claimed, Result, strict=True):
        settle(journal, [delivery], result)
    journal.remove_expired(2000.0, 10)
    found = {}
    with closing(sqlite3.connect(store.path)) as connection:
        for statement, parameters in queries:
            if " events" in statement or " deliveries" in statement:
                plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
                found[statement] = [row[3] for row in plan if " events" in row[3] or " deliveries" in row[3]]
    assert len(found) > 10
    for statement, steps in found.items():
        scans = [step for step in steps if step.startswith("SCAN") and not step.endswith("events_unrouted")]
        all_pending = [step for step in steps if step.endswith("(sink=? AND due>?)")]
        assert (statement, scans, all_pending) == (statement, [], [])
