"""A worker of intake: nothing is monkey-patched, nothing that blocks runs on its hub, and a hung journal stops no one
else."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT, RunningReceiver, StartReceiver, wait_until
from support.pushes import event

from receiver.testing.postgresql import Server

VERBS = ("accept", "check_writable", "counts", "liveness", "sink_states")
OBSERVED = f"""
import json, sys, threading
from receiver.commands.main import main
from receiver.journal.sql.journal import SqlJournal
from receiver.intake.web_server import PushWorker

def observed(name):
    method = getattr(SqlJournal, name)
    def call(self, *arguments):
        thread = "hub" if threading.current_thread() is threading.main_thread() else "native"
        with open(sys.argv[1], "a") as file:
            file.write(name + " " + thread + "\\n")
        return method(self, *arguments)
    setattr(SqlJournal, name, call)

for name in {VERBS}:
    observed(name)

run = PushWorker.run
def run_and_tell(self):
    from gevent import monkey
    with open(sys.argv[1], "a") as file:
        file.write("patched " + json.dumps(sorted(monkey.saved)) + "\\n")
    run(self)
PushWorker.run = run_and_tell
main(["serve"])
"""


INTAKE_ONLY = "[receiver]\ndeliver = false\n"


@contextmanager
def started(folder: Path, script: str) -> Iterator[RunningReceiver]:
    """A receiver with one worker, started by a script that changes it."""
    receiver = RunningReceiver(folder, INTAKE_ONLY, None, {"WEB_CONCURRENCY": "1"})
    receiver.command = [sys.executable, "-c", script, str(folder / "calls")]
    try:
        yield receiver.start(ready=False)
    finally:
        receiver.kill_all()


def test_no_call_of_the_journal_runs_on_the_hub_and_nothing_is_monkey_patched(tmp_path: Path) -> None:
    with started(tmp_path, OBSERVED) as receiver:
        assert receiver.push(event("a")) == (200, "accepted")
        for path in ("metrics", "readyz"):
            receiver.http.request("GET", f"{receiver.url}/{path}")
    lines = set((tmp_path / "calls").read_text().splitlines())
    assert lines == {"patched []", *(f"{name} native" for name in VERBS)}


HANGING = """
import os, sys, time
from receiver.commands.main import main
from receiver.journal.sql.journal import SqlJournal

accept = SqlJournal.accept
def hang(self, arrivals):
    while os.path.exists(sys.argv[1]):
        time.sleep(0.05)
    return accept(self, arrivals)
SqlJournal.accept = hang
main(["serve"])
"""


def assert_live_while_pushes_wait(receiver: RunningReceiver) -> None:
    """/healthz responds within 0.2 s while 20 pushes wait, and each of those gets 503 within 5 s."""

    def push(number: int) -> tuple[int, float]:
        began = time.monotonic()
        status, _ = receiver.push(event(f"waiting {number}"))
        return status, time.monotonic() - began

    with ThreadPoolExecutor(20) as pool:
        waiting = [pool.submit(push, number) for number in range(20)]
        healthz = []
        while not all(future.done() for future in waiting):
            began = time.monotonic()
            assert receiver.is_ok("/healthz")
            healthz.append(time.monotonic() - began)
            time.sleep(0.05)
    results = [future.result() for future in waiting]
    assert {status for status, _ in results} == {503}
    assert max(seconds for _, seconds in results) < 5.5
    assert sorted(healthz)[len(healthz) * 9 // 10] < 0.2, "nine of ten, since other programs may run"
    assert len(healthz) > 10


@pytest.mark.serial
def test_while_the_disk_hangs_in_a_commit_the_receiver_is_live_and_pushes_get_503_in_time(tmp_path: Path) -> None:
    with started(tmp_path, HANGING) as receiver:
        hanging = tmp_path / "calls"
        hanging.touch()
        assert_live_while_pushes_wait(receiver)
        hanging.unlink()
        wait_until(lambda: receiver.push(event("later")) == (200, "accepted"), what="a push that is accepted")


@pytest.mark.serial
def test_while_postgresql_hangs_the_receiver_is_live_and_pushes_get_503_in_time(
    server: Server, start_receiver: StartReceiver
) -> None:
    receiver = start_receiver(INTAKE_ONLY, WEB_CONCURRENCY="1", DATABASE_URL=server.new_database(), ready=False)
    assert receiver.push(event("before")) == (200, "accepted")
    with server.frozen():
        assert_live_while_pushes_wait(receiver)
    wait_until(lambda: receiver.push(event("later")) == (200, "accepted"), what="a push that is accepted")


SIGNALLED_BEFORE_IT_RUNS = """
import os
from gevent.pool import Pool
from receiver.intake.web_server import PushWorker

worker = PushWorker.__new__(PushWorker)
worker.sockets, worker.ppid, worker.notify = [], os.getppid(), lambda: None
worker._new, worker._reusable, worker._pool = {}, {}, Pool(1)
worker.handle_exit(None, None)
worker.run()
"""


def test_a_worker_that_gets_sigterm_while_it_starts_does_not_run() -> None:
    subprocess.run([sys.executable, "-c", SIGNALLED_BEFORE_IT_RUNS], check=True, timeout=30, cwd=ROOT)
