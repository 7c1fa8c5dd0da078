"""Processes and operators that change the same rows of a PostgreSQL journal at once: no deadlock, no lost delivery."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
from conftest import ROOT, wait_until
from support.journals import accept, claim, event_ids, route_events, settle
from support.postgresql import WAITING_FOR_A_LOCK, Deployment

from receiver.journal import Arrival, Result, Settlement, SinkState

DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"

ACCEPTING = """
import json, random, sys
from gevent.pool import Pool
from receiver.intake.group_commit import GroupCommit
from receiver.journal import Arrival
from receiver.journal.sql.journal import SqlJournal
from receiver.journal.sql.postgresql import PostgresqlDatabase
from support.journals import lengthen_time_limits

class NothingRecorded(dict):
    def __setitem__(self, name, at):
        pass  # so that each commit records the use of secrets

url, seed = sys.argv[1:]
lengthen_time_limits()
journal = SqlJournal(PostgresqlDatabase(url, None))
journal._secret_use_recorded_at = NothingRecorded()
group = GroupCommit(journal.accept, failing_seconds=60.0, wait_seconds=60.0)
dice = random.Random(seed)
work = [Arrival(f"{n:03}", b"x" * 300, 1000.0, secret=f"S{n % 3}") for n in range(150)]
work += [Arrival(f"{n:03}", b"x" * 300, 1000.0, quarantine_reason="no event", secret=f"S{n % 3}") for n in range(30)]
dice.shuffle(work)

def push(arrival):
    try:
        return group.submit(arrival).value
    except Exception as error:
        return repr(error)

print("ready", flush=True)
sys.stdin.readline()
print(json.dumps(list(Pool(16).imap(push, work))))
"""
DISPATCHING = """
import json, random, sys, threading, time
from receiver.journal import Result, Settlement
from receiver.journal.sql.journal import SqlJournal
from receiver.journal.sql.postgresql import PostgresqlDatabase
from support.journals import lengthen_time_limits

url, seed = sys.argv[1:]
lengthen_time_limits()
journal = SqlJournal(PostgresqlDatabase(url, None))
dice = random.Random(seed)
sinks = ["a", "b", "c"]
dice.shuffle(sinks)
errors = []
results = [Result.DELIVERED] * 4 + [Result.FAILED, Result.POSTPONED, Result.RELEASED]
end = time.monotonic() + 60

def pending():
    counts = journal.counts()
    return counts.unrouted or len(counts.sinks) < 3 or any(sink.pending for sink in counts.sinks.values())

def work(sink):
    while time.monotonic() < end and pending():
        try:
            journal.route([(event, sinks) for event in journal.unrouted(100)])
            claimed = journal.claim(sink, dice.choice((1, 7, 40)), dice.choice((0.0, 30.0)))
            journal.extend(claimed, 30.0)
            now = journal.now()
            if claimed:
                journal.settle([Settlement(delivery, dice.choice(results), now) for delivery in claimed])
        except Exception as error:
            errors.append(repr(error))

print("ready", flush=True)
sys.stdin.readline()
threads = [threading.Thread(target=work, args=(sink,)) for sink in sinks]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(errors))
"""


def run_at_once(script: str, url: str, number: int) -> list[Any]:
    """Run a script in several processes that begin together; what each of them prints at its end."""
    with contextlib.ExitStack() as stack:
        running = []
        for seed in range(number):
            command = [sys.executable, "-c", script, url, str(seed)]
            env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
            process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            running.append(process)
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in running:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        return [json.loads(process.communicate(timeout=90)[0]) for process in running]


@contextmanager
def blocked_until_commit(deployment: Deployment, statement: str) -> Iterator[Callable[[], None]]:
    """Another transaction has changed rows; it commits when the returned function is called and a call waits for it."""
    with psycopg.connect(deployment.url) as other:
        other.execute(statement)

        def commit() -> None:
            wait_until(lambda: deployment.connections(WAITING_FOR_A_LOCK), what="a call that waits for the rows")
            other.commit()

        yield commit


def test_processes_that_accept_the_same_ids_never_deadlock(deployment: Deployment) -> None:
    deployment.open()
    outcomes = [outcome for process in run_at_once(ACCEPTING, deployment.url, 3) for outcome in process]
    assert Counter(outcomes) == {"accepted": 150, "duplicate": 300, "quarantined": 90}
    assert deployment.sql("SELECT count(*), count(DISTINCT id) FROM events") == [(150, 150)]
    assert deployment.sql(DEADLOCKS) == [(0,)]


def test_dispatchers_that_route_and_settle_the_same_events_never_deadlock(deployment: Deployment) -> None:
    journal = deployment.open()
    journal.accept([Arrival(f"{number:03}", b"", 1000.0) for number in range(60)])
    assert run_at_once(DISPATCHING, deployment.url, 3) == [[], [], []]
    assert {name: (sink.delivered, sink.pending) for name, sink in journal.counts().sinks.items()} == {
        "a": (60, 0),
        "b": (60, 0),
        "c": (60, 0),
    }
    assert deployment.sql(DEADLOCKS) == [(0,)]


def test_a_late_result_and_one_in_time_do_not_block_each_other(deployment: Deployment) -> None:
    """The late one is *delivered* for a claim that another holds, who settles it at once, other deliveries first."""
    late, holder = deployment.open(), deployment.open()
    route_events(late, "s", "a", "b")
    lost = claim(late, "s", seconds=0.01)
    a, b = wait_until(lambda: claim(holder, "s"))
    in_time = [Settlement(b, Result.DELIVERED), Settlement(a, Result.FAILED, 0.0, "HTTP 500")]
    with psycopg.connect(deployment.url) as other, ThreadPoolExecutor(2) as pool:
        other.execute("SELECT 1 FROM sinks FOR UPDATE")
        first = pool.submit(holder.settle, in_time)
        wait_until(lambda: deployment.connections(WAITING_FOR_A_LOCK) == 1)
        second = pool.submit(settle, late, lost, Result.DELIVERED)
        wait_until(lambda: deployment.connections(WAITING_FOR_A_LOCK) == 2)
        other.rollback()
        first.result()
        second.result()
    assert deployment.sql("SELECT state FROM deliveries") == [(1,), (1,)]


def test_retention_loses_no_delivery_that_is_routed_or_replayed_meanwhile(deployment: Deployment) -> None:
    intake, dispatcher, retention = deployment.open(), deployment.open(), deployment.open()
    records = deployment.records()
    done = threading.Event()
    requeued: list[int] = []
    errors: list[BaseException] = []

    def until_done(work: Callable[[], object]) -> None:
        while not done.is_set():
            try:
                work()
            except BaseException as error:
                errors.append(error)
                return

    def deliver() -> None:
        dispatcher.route([(event, ["s"]) for event in dispatcher.unrouted(20)])
        if claimed := dispatcher.claim("s", 20, 600.0):
            settle(dispatcher, claimed, Result.DELIVERED)

    def replay() -> None:
        if events := records.received(0.0, 2000.0, 0, 10):
            requeued.append(records.requeue("s", events))

    works: list[Callable[[], object]] = [deliver, replay, lambda: retention.remove_expired(2000.0, 7)]
    threads = [threading.Thread(target=until_done, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: accept(intake, f"{number:03}"), range(300)))
        wait_until(lambda: errors or deployment.sql("SELECT count(*) FROM events")[0][0] < 30 or len(requeued) > 200)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert errors == []
    while dispatcher.unrouted(1) or (sink := intake.counts().sinks["s"]).pending:
        deliver()
    assert sink.delivered == 300 + sum(requeued)
    remaining = "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM deliveries)"
    wait_until(lambda: not retention.remove_expired(2000.0, 500) and deployment.sql(remaining) == [(0, 0)])


def test_a_dead_letter_that_another_operator_retries_meanwhile_is_not_deleted(deployment: Deployment) -> None:
    journal, records = deployment.open(), deployment.records()
    route_events(journal, "s", "a")
    settle(journal, claim(journal, "s"), Result.DEAD)
    retried = "UPDATE deliveries SET state = 0, due = 0, attempts = 0"
    with blocked_until_commit(deployment, retried) as commit, ThreadPoolExecutor(1) as pool:
        deleting = pool.submit(records.delete_dead_letters, "s", None)
        commit()
        assert deleting.result() == 0
    assert event_ids(claim(journal, "s")) == ["a"]


def test_a_dead_letter_that_is_retried_and_claimed_meanwhile_is_not_retried_again(deployment: Deployment) -> None:
    journal, other, records = deployment.open(), deployment.open(), deployment.records()
    route_events(journal, "s", "a")
    settle(journal, claim(journal, "s"), Result.DEAD)
    claimed = f"UPDATE deliveries SET state = 0, due = {time.time() + 600}, holder = 'someone', attempts = 1"
    with blocked_until_commit(deployment, claimed) as commit, ThreadPoolExecutor(1) as pool:
        retrying = pool.submit(records.retry_dead_letters, "s", None)
        commit()
        assert retrying.result() == 0
    assert claim(other, "s") == []


def test_a_pause_that_two_dispatchers_end_at_once_is_subtracted_once_from_the_age_of_deliveries(
    deployment: Deployment,
) -> None:
    journals = deployment.open(), deployment.open()
    journals[0].save_sink_state(SinkState("s", 1, time.time() + 1))
    deployment.sql("UPDATE sinks SET paused_since = paused_since - 1000")
    with psycopg.connect(deployment.url) as other, ThreadPoolExecutor(2) as pool:
        other.execute("SELECT 1 FROM sinks FOR UPDATE")
        ending = [pool.submit(journal.save_sink_state, SinkState("s")) for journal in journals]
        wait_until(lambda: deployment.connections(WAITING_FOR_A_LOCK) == 2)
        other.rollback()
        for each in ending:
            each.result()
    ((seconds,),) = deployment.sql("SELECT paused_seconds FROM sinks")
    assert 1000 <= seconds < 1500


def test_an_event_that_is_routed_while_its_sink_is_removed_leaves_no_delivery_without_a_sink(
    deployment: Deployment,
) -> None:
    journal, records = deployment.open(), deployment.records()
    route_events(journal, "s", "a")
    accept(journal, "b")
    (event,) = journal.unrouted(10)
    with psycopg.connect(deployment.url) as other, ThreadPoolExecutor(2) as pool:
        other.execute("INSERT INTO deliveries SELECT %s, key, 0, 0, NULL, 0, 0 FROM sinks", [event.key])
        routing = pool.submit(journal.route, [(event, ["s"])])
        wait_until(lambda: deployment.connections(WAITING_FOR_A_LOCK))
        removing = pool.submit(records.remove_sink, "s")
        wait_until(lambda: removing.done() or deployment.connections(WAITING_FOR_A_LOCK) == 2)
        other.rollback()
        routing.result()
        removing.result()
    assert deployment.sql("SELECT count(*) FROM deliveries WHERE sink NOT IN (SELECT key FROM sinks)") == [(0,)]
