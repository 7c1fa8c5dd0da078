"""200 means safe, and every sink gets it: the real server, killed and hindered while it works."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import urllib3
from conftest import CSV_ONLY, ROOT, TEST_SECRET, Running, StartReceiver, wait_until

from receiver.signature import sign
from receiver.simulator import Answer, Pusher, Simulator

TWO_SINKS = """
[receiver]
plugins = ["sink.py"]
[sinks.archive]
type = "csv"
path = "events.csv"
[sinks.console]
type = "stdout"
[sinks.odd]
type = "odd"
"""
HANGS = """
import time
from receiver import hookimpl

class Odd:
    @hookimpl
    def deliver(self, event):
        time.sleep(60)

@hookimpl
def register_sinks(register):
    register("odd", Odd)
"""
EXITS = HANGS.replace("time.sleep(60)", "import os; os._exit(7)")
STARTED = datetime.now(UTC)


def bodies(count: int) -> list[bytes]:
    """The first so many of always the same ones."""
    simulator = Simulator(seed=1)
    return [simulator.body("touch", STARTED) for _ in range(count)]


def event_ids(pushed: list[bytes]) -> list[str]:
    return [json.loads(body)["event"]["eventId"] for body in pushed]


def start_with_plugin(start: StartReceiver, tmp_path: Path, source: str) -> Running:
    (tmp_path / "sink.py").write_text(source, encoding="utf-8")
    return start(TWO_SINKS.replace("sink.py", str(tmp_path / "sink.py")))


@contextmanager
def pushing(receiver: Running, pushed: list[bytes], threads: int = 16) -> Iterator[list[Answer]]:
    """Push from many threads in the background; the answers, complete at the end of the context."""
    answers: list[Answer] = []
    pusher = Pusher(receiver.url, TEST_SECRET, connections=threads)
    with ThreadPoolExecutor(threads) as pool:
        for body in pushed:
            pool.submit(lambda body=body: answers.append(pusher.push(body)))
        yield answers


def test_every_push_answered_200_is_in_the_file_once_though_all_processes_are_killed(
    start_receiver: StartReceiver,
) -> None:
    receiver = start_receiver()
    with pushing(receiver, bodies(2000)) as answers:
        wait_until(lambda: len(answers) > 700)
        receiver.kill_all()
    accepted = {answer.event_id for answer in answers if answer.status == 200}
    assert 700 < len(accepted) < 2000

    receiver.start()

    wait_until(
        lambda: accepted <= {row["event_id"] for row in receiver.rows()}, what="every accepted event in the file"
    )
    wait_until(lambda: receiver.metric('receiver_pending{sink="archive"}') == 0)
    rows = Counter(row["event_id"] for row in receiver.rows())
    assert set(rows.values()) == {1}


def test_killed_again_and_again_while_it_works_nothing_is_lost_or_doubled(start_receiver: StartReceiver) -> None:
    receiver = start_receiver()
    pushed = bodies(1500)
    missing = set(event_ids(pushed))
    for _ in range(4):
        with pushing(receiver, [body for body in pushed if event_ids([body])[0] in missing]) as answers:
            wait_until(lambda answers=answers: len(answers) > 150)
            receiver.kill_all()
        missing -= {answer.event_id for answer in answers if answer.status == 200}
        receiver.start()
    with pushing(receiver, [body for body in pushed if event_ids([body])[0] in missing]) as answers:
        pass
    assert {answer.status for answer in answers} == {200}

    wait_until(lambda: len(receiver.rows()) >= len(pushed), what="every event in the file")
    wait_until(lambda: receiver.metric('receiver_pending{sink="archive"}') == 0)
    assert Counter(row["event_id"] for row in receiver.rows()) == Counter(event_ids(pushed))


def test_a_killed_supervisor_leaves_no_process_behind(start_receiver: StartReceiver) -> None:
    receiver = start_receiver()
    assert receiver.process is not None
    wait_until(lambda: [len(pids) for pids in receiver.pids().values()] == [1, 2, 2], what="all processes")

    receiver.process.kill()
    receiver.process.wait()

    wait_until(lambda: not any(receiver.pids().values()), what="the end of all processes")


@pytest.mark.parametrize("victim", ["dispatcher", "master", "worker"])
def test_a_killed_child_is_started_again_and_takes_nothing_with_it(victim: str, start_receiver: StartReceiver) -> None:
    receiver = start_receiver()
    pids = receiver.pids()
    master = next(pid for pid in pids["children"] if pid != receiver.dispatcher)
    pid = {"dispatcher": receiver.dispatcher, "master": master, "worker": pids["workers"][0]}[victim]
    pushed = bodies(400)
    with pushing(receiver, pushed, threads=4) as answers:
        wait_until(lambda: len(answers) > 100)
        os.kill(pid, signal.SIGKILL)
    lost = [body for body, answer in zip(pushed, answers, strict=True) if answer.status != 200]
    assert len(lost) < 100
    accepted = [answer.event_id for answer in answers if answer.status == 200]

    wait_until(lambda: receiver.answers("/readyz"))
    wait_until(lambda: set(accepted) <= {row["event_id"] for row in receiver.rows()})

    assert all(pid not in living for living in receiver.pids().values())
    assert receiver.push(Simulator().body("touch")) == (200, "accepted")
    assert set(Counter(row["event_id"] for row in receiver.rows()).values()) == {1}


def test_a_hanging_sink_delays_neither_pushes_nor_other_sinks(start_receiver: StartReceiver, tmp_path: Path) -> None:
    receiver = start_with_plugin(start_receiver, tmp_path, HANGS)
    pushed = bodies(200)

    with pushing(receiver, pushed) as answers:
        pass

    assert {(answer.status, answer.text) for answer in answers} == {(200, "accepted")}
    wait_until(lambda: len(receiver.rows()) == 200, seconds=10)
    wait_until(lambda: len(receiver.stdout) == 200, seconds=10)
    assert receiver.metric('receiver_pending{sink="odd"}') == 200


def test_a_sink_that_ends_its_process_is_found_and_paused_and_the_others_work_on(
    start_receiver: StartReceiver, tmp_path: Path
) -> None:
    receiver = start_with_plugin(start_receiver, tmp_path, EXITS)
    pushed = bodies(200)

    with pushing(receiver, pushed) as answers:
        pass

    assert {(answer.status, answer.text) for answer in answers} == {(200, "accepted")}
    wait_until(lambda: {row["event_id"] for row in receiver.rows()} == set(event_ids(pushed)))
    wait_until(lambda: {line["event_id"] for line in receiver.stdout} == set(event_ids(pushed)))
    warnings = json.loads(wait_until(lambda: paused(receiver), what="the pause of the sink that ends its process"))[
        "warnings"
    ]
    assert warnings == ["sink odd is paused: the dispatcher died when it called this sink alone"]
    assert Counter(row["event_id"] for row in receiver.rows()) == Counter(event_ids(pushed))


def paused(receiver: Running) -> bytes | None:
    page: bytes = receiver.http.request("GET", f"{receiver.url}/readyz").data
    return page if b"is paused" in page else None


def test_sigterm_drains_what_was_taken_and_exits_0(start_receiver: StartReceiver) -> None:
    receiver = start_receiver()
    pushed = bodies(600)
    with pushing(receiver, pushed) as answers:
        wait_until(lambda: len(answers) > 300)
        code = receiver.stop()

    accepted = {answer.event_id for answer in answers if answer.status == 200}
    assert code == 0
    assert {row["event_id"] for row in receiver.rows()} == accepted
    assert not any(receiver.pids().values())


def test_sigterm_to_all_processes_at_once_and_twice_loses_nothing(start_receiver: StartReceiver) -> None:
    receiver = start_receiver()
    assert receiver.process is not None
    with pushing(receiver, bodies(600)) as answers:
        wait_until(lambda: len(answers) > 300)
        code = receiver.terminate()
    accepted = {answer.event_id for answer in answers if answer.status == 200}
    assert code == 0

    receiver.start()

    wait_until(lambda: accepted <= {row["event_id"] for row in receiver.rows()})
    assert set(Counter(row["event_id"] for row in receiver.rows()).values()) == {1}


def stop_between_transactions(receiver: Running, pid: int) -> None:
    """Stop a process while it does not hold the journal's lock, so that the others can go on without it."""
    with (receiver.folder / "data" / "journal.sqlite.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")


def test_a_dispatcher_that_was_stopped_for_a_while_goes_on(start_receiver: StartReceiver) -> None:
    receiver = start_receiver()
    dispatcher = receiver.dispatcher
    stop_between_transactions(receiver, dispatcher)
    thawed = threading.Timer(3.0, os.kill, (dispatcher, signal.SIGCONT))
    thawed.start()
    with pushing(receiver, bodies(100)) as answers:
        pass
    thawed.join()

    again = [
        body for body in bodies(100) if event_ids([body])[0] not in {a.event_id for a in answers if a.status == 200}
    ]
    with pushing(receiver, again):
        pass

    wait_until(lambda: len(receiver.rows()) == 100)
    assert receiver.dispatcher == dispatcher


def test_the_port_is_free_at_once_after_a_stop(start_receiver: StartReceiver) -> None:
    receiver = start_receiver(CSV_ONLY)
    assert receiver.stop() == 0
    with pytest.raises(urllib3.exceptions.HTTPError):
        receiver.http.request("GET", f"{receiver.url}/healthz")
    receiver.start()
    assert receiver.push(Simulator().body("touch")) == (200, "accepted")


def test_a_push_that_waits_long_for_its_commit_keeps_its_connection(start_receiver: StartReceiver) -> None:
    receiver = start_receiver(WEB_CONCURRENCY="1")

    def push(connection: http.client.HTTPConnection) -> tuple[int, bytes]:
        body = Simulator().body("touch")
        connection.request("POST", "/", body=body, headers=sign(body, TEST_SECRET, time.time()))
        response = connection.getresponse()
        return response.status, response.read()

    with (
        closing(http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=15)) as slow,
        (receiver.folder / "data" / "journal.sqlite.lock").open() as lock,
        ThreadPoolExecutor(1) as pool,
    ):
        assert push(slow) == (200, b"accepted")
        slow.auto_open = 0
        fcntl.flock(lock, fcntl.LOCK_EX)
        released = threading.Timer(3.0, fcntl.flock, (lock, fcntl.LOCK_UN))
        released.start()
        leader = pool.submit(receiver.push, Simulator().body("touch"))
        assert push(slow)[0] in (200, 503)
        leader.result()
        released.join()
        assert push(slow) == (200, b"accepted")


@pytest.mark.parametrize("full", ["journal.sqlite-wal", "events.csv"])
def test_on_a_full_disk_pushes_are_answered_503_or_are_safe_and_all_flows_again_when_there_is_room(
    full: str, start_receiver: StartReceiver
) -> None:
    receiver = start_receiver()
    with pushing(receiver, bodies(50)) as before:
        pass
    wait_until(lambda: len(receiver.rows()) == 50)
    file = receiver.folder / full if full == "events.csv" else receiver.folder / "data" / full
    receiver.limit_files(file.stat().st_size + 3000)

    pushed = bodies(400)[50:]
    with pushing(receiver, pushed) as during:
        pass
    assert {answer.status for answer in during} <= {200, 503}
    if full == "journal.sqlite-wal":
        assert 503 in {answer.status for answer in during}
    assert (receiver.folder / "events.csv").read_bytes().endswith(b"\r\n")

    receiver.limit_files(resource.RLIM_INFINITY)
    refused = {answer.event_id for answer in during if answer.status == 503}
    with pushing(receiver, [body for body in pushed if event_ids([body])[0] in refused]) as again:
        pass
    assert {answer.status for answer in [*before, *again]} == {200}
    wait_until(lambda: len(receiver.rows()) == 400, seconds=60, what="every event in the file")
    assert Counter(row["event_id"] for row in receiver.rows()) == Counter(event_ids(bodies(400)))


def test_a_demo_that_is_killed_leaves_no_receiver_behind() -> None:
    command = [sys.executable, "-m", "receiver", "demo", "--seconds", "60"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        port = int(re.findall(r"http://127\.0\.0\.1:(\d+)", demo.stdout.readline())[0])
        demo.kill()

    def gone() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) != 0

    wait_until(gone, what="the end of the demo's receiver")


def test_a_sink_that_is_disabled_gets_what_was_taken_before_also_when_nobody_could_match_it(
    start_receiver: StartReceiver,
) -> None:
    receiver = start_receiver(CSV_ONLY)
    stop_between_transactions(receiver, receiver.dispatcher)
    assert receiver.push(Simulator().body("touch"))[0] == 200
    receiver.kill_all()

    receiver.configure(CSV_ONLY + "enabled = false\n")
    receiver.start()
    wait_until(lambda: receiver.metric("receiver_unmatched") == 0)
    assert receiver.push(Simulator().body("touch"))[0] == 200
    wait_until(lambda: receiver.metric("receiver_unmatched") == 0)
    receiver.stop()
    receiver.configure(CSV_ONLY)
    receiver.start()

    wait_until(lambda: receiver.rows() and receiver.metric('receiver_pending{sink="archive"}') == 0)
    assert len(receiver.rows()) == 1
