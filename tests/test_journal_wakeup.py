"""An SQLite dispatcher is woken by each commit of intake, and by operators; without a socket it polls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from support.journals import SqliteStore, accept, event_ids

from receiver.journal import QuarantinedPush, Records, StoredEvent
from receiver.journal.sql import sqlite_wakeup
from receiver.journal.sql.sqlite_wakeup import Wakeup


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a wake-up, a wait lasts longer than any test."""
    monkeypatch.setattr(sqlite_wakeup, "WAIT_SECONDS", 300.0)


def waiting(wait: threading.Thread) -> threading.Thread:
    wait.daemon = True
    wait.start()
    return wait


@pytest.mark.usefixtures("patient")
def test_an_event_that_is_accepted_wakes_the_dispatcher(sqlite_store: SqliteStore) -> None:
    intake, dispatcher = sqlite_store.open(), sqlite_store.open()
    dispatcher.start_dispatching()
    wait = waiting(threading.Thread(target=dispatcher.wait_for_events))
    accept(intake, "a")
    wait.join(20)
    assert not wait.is_alive()
    assert event_ids(dispatcher.unrouted(10)) == ["a"]


@pytest.mark.usefixtures("patient")
def test_an_event_that_was_accepted_before_the_wait_ends_it_at_once(sqlite_store: SqliteStore) -> None:
    intake, dispatcher = sqlite_store.open(), sqlite_store.open()
    dispatcher.start_dispatching()
    accept(intake, *(str(number) for number in range(300)))
    dispatcher.wait_for_events()
    wait = waiting(threading.Thread(target=dispatcher.wait_for_events))
    wait.join(0.2)
    assert wait.is_alive(), "one wait takes all wake-ups"
    accept(intake, "later")
    wait.join(20)
    assert not wait.is_alive()


@pytest.mark.usefixtures("patient")
def test_after_a_crash_the_successor_is_woken(sqlite_store: SqliteStore) -> None:
    intake, dead, successor = sqlite_store.open(), sqlite_store.open(), sqlite_store.open()
    dead.start_dispatching()
    sqlite_store.close(dead)
    accept(intake, "nobody waits")
    successor.start_dispatching()
    accept(intake, "a")
    successor.wait_for_events()


@pytest.mark.parametrize("name", ["s" * 120, "missing/s"], ids=["too long a path", "no folder"])
def test_without_a_socket_the_dispatcher_polls(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", lambda seconds: slept.append(cast(float, seconds)))
    wakeup = Wakeup(tmp_path / name)
    wakeup.listen()
    wakeup.send()
    wakeup.wait()
    wakeup.close()
    assert slept == [sqlite_wakeup.POLL_SECONDS]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    "verb",
    [
        lambda records, stored: records.requeue("s", [stored]),
        lambda records, stored: records.retry_dead_letters("s", None),
        lambda records, stored: records.resume("s"),
        lambda records, stored: records.release(QuarantinedPush("q", 0.0, "", b"{}"), "released"),
    ],
    ids=["replay", "retry", "resume", "release"],
)
def test_what_an_operator_does_wakes_the_dispatcher(
    verb: Callable[[Records, StoredEvent], object], sqlite_store: SqliteStore
) -> None:
    dispatcher, records = sqlite_store.open(), sqlite_store.records()
    dispatcher.start_dispatching()
    accept(dispatcher, "a")
    [stored] = dispatcher.unrouted(10)
    dispatcher.route([(stored, ["s"])])
    dispatcher.wait_for_events()
    wait = waiting(threading.Thread(target=dispatcher.wait_for_events))
    verb(records, stored)
    wait.join(20)
    assert not wait.is_alive()
