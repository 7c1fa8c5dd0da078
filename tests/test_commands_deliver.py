"""`deliver --until-empty`: delivers all that is in a journal, and ends; for instance before a move to another one."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from conftest import RunningReceiver, wait_until

from receiver.journal import Arrival
from receiver.journal.sql.journal import SqlJournal
from receiver.journal.sql.sqlite import SqliteDatabase
from receiver.testing.postgresql import new_database
from receiver.testing.running import CSV_ONLY

FAILING = """
[sinks.erp]
type = "webhook"
url = "http://127.0.0.1:9/"
allow_private = true
"""


def event(event_id: str) -> bytes:
    return f'{{"event": {{"eventId": "{event_id}", "eventType": "touch", "data": {{}}}}}}'.encode()


def store(folder: Path, *event_ids: str) -> None:
    """Events in the journal of a receiver that does not run."""
    with closing(SqlJournal(SqliteDatabase(folder / "data" / "journal.sqlite", 0, None))) as journal:
        journal.accept([Arrival(event_id, event(event_id), 1_700_000_000.0) for event_id in event_ids])


@pytest.fixture
def stopped(tmp_path: Path) -> RunningReceiver:
    """A receiver that does not run, with three events in its journal that are not routed yet."""
    store(tmp_path, "a", "b", "c")
    return RunningReceiver(tmp_path, CSV_ONLY, None, {})


@contextmanager
def delivering(receiver: RunningReceiver) -> Iterator[subprocess.Popen[bytes]]:
    receiver.command = [sys.executable, "-m", "receiver", "deliver", "--until-empty"]
    process = receiver.launch().process
    assert process is not None
    try:
        yield process
    finally:
        receiver.kill_all()


def test_it_delivers_everything_and_ends(stopped: RunningReceiver) -> None:
    with delivering(stopped) as process:
        assert process.wait(60) == 0
    assert [row["event_id"] for row in stopped.rows()] == ["a", "b", "c"]
    assert stopped.log.endswith("nothing is pending at the enabled sinks\n")


def test_with_nothing_to_deliver_it_ends_at_once(stopped: RunningReceiver) -> None:
    for _ in range(2):
        with delivering(stopped) as process:
            assert process.wait(60) == 0
    assert len(stopped.rows()) == 3


def test_a_disabled_sink_keeps_it_from_nothing(stopped: RunningReceiver) -> None:
    stopped.configure(f"{CSV_ONLY}{FAILING}enabled = false\n")
    with delivering(stopped) as process:
        assert process.wait(60) == 0
    assert len(stopped.rows()) == 3


@pytest.mark.parametrize(
    ("sink", "condition", "left"),
    [
        (FAILING, "sink erp is paused", "3 pending deliveries at sink erp"),
        (
            FAILING + 'filter = { event_typs = ["touch"] }\n',
            "sink erp is paused",
            "events that sink erp does not get while its filter is invalid",
        ),
        (FAILING.replace("webhook", "webhok"), "sink erp is paused", "3 pending deliveries at sink erp"),
    ],
    ids=["failing", "invalid filter", "cannot be built"],
)
def test_stopped_before_that_it_says_what_is_left(
    sink: str, condition: str, left: str, stopped: RunningReceiver
) -> None:
    stopped.configure(CSV_ONLY + sink)
    with delivering(stopped) as process:
        wait_until(lambda: condition in stopped.log and len(stopped.rows()) == 3, 60, what=f"{condition!r} in the log")
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 1
    assert f"stopped with {left}\n" in stopped.log


def test_beside_a_process_that_delivers_from_the_same_sqlite_file_it_ends_with_an_error(
    stopped: RunningReceiver,
) -> None:
    stopped.command = [sys.executable, "-m", "receiver", "serve"]
    try:
        stopped.start()
        wait_until(lambda: len(stopped.rows()) == 3, what="rows of all events")
        for arguments in (("deliver",), ("deliver", "--until-empty")):
            command = [sys.executable, "-m", "receiver", *arguments]
            done = subprocess.run(command, env=stopped.environment, capture_output=True, timeout=60, check=False)
            assert (done.returncode, done.stderr.decode().splitlines()[-1]) == (1, ALREADY_DELIVERED)
        assert stopped.push(event("d")) == (200, "accepted")
        wait_until(lambda: len(stopped.rows()) == 4, what="the row of the new event")
    finally:
        stopped.kill_all()
    with delivering(stopped) as process:
        assert process.wait(60) == 0


ALREADY_DELIVERED = (
    "error: another process delivers from this journal, and SQLite allows one: stop it first, or set [receiver] "
    "deliver = false for `serve` and restart that"
)


def test_a_journal_on_sqlite_is_emptied_before_postgresql_replaces_it(
    stopped: RunningReceiver,
) -> None:
    with delivering(stopped) as process:
        assert process.wait(60) == 0
    stopped.environment["DATABASE_URL"] = new_database()
    assert "journal.sqlite is not used" not in stopped.run("check")
    stopped.command = [sys.executable, "-m", "receiver", "serve"]
    try:
        stopped.start()
        assert stopped.push(event("d")) == (200, "accepted")
        wait_until(lambda: len(stopped.rows()) == 4, what="the row of the new event")
    finally:
        stopped.kill_all()
    assert [row["event_id"] for row in stopped.rows()] == ["a", "b", "c", "d"]
