"""200 means safe, and every sink gets it: the real server, killed, suspended and obstructed while it works."""

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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
import urllib3
from conftest import CSV_ONLY, ROOT, TEST_SECRET, RunningReceiver, StartReceiver, wait_until

from receiver.signature import sign
from receiver.simulator import Pusher, PushResponse, Simulator

THREE_SINKS = """
[receiver]
plugins = ["{plugin}"]
[sinks.archive]
type = "csv"
path = "events.csv"
[sinks.console]
type = "stdout"
[sinks.odd]
type = "odd"
"""
HANGING_PLUGIN = """
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
EXITING_PLUGIN = HANGING_PLUGIN.replace("time.sleep(60)", "import os; os._exit(7)")
STARTED = datetime.now(UTC)


def bodies(count: int) -> list[bytes]:
    """The first events of a fixed sequence."""
    simulator = Simulator(seed=1)
    return [simulator.body("touch", STARTED) for _ in range(count)]


def event_id(body: bytes) -> str:
    return str(json.loads(body)["event"]["eventId"])


def event_ids(bodies: Sequence[bytes]) -> list[str]:
    return [event_id(body) for body in bodies]


def accepted(responses: Sequence[PushResponse]) -> set[str]:
    """The ids of the events that got 200."""
    return {response.event_id for response in responses if response.status == 200}


def rows_by_id(receiver: RunningReceiver) -> Counter[str]:
    """How many rows each event has in the CSV file."""
    return Counter(row["event_id"] for row in receiver.rows())


def wait_until_delivered(receiver: RunningReceiver, ids: set[str]) -> None:
    wait_until(lambda: ids <= rows_by_id(receiver).keys(), seconds=60, what="every event in the file")
    pending = 'receiver_pending_deliveries{sink="archive"}'
    wait_until(lambda: f"{pending} 0.0\n" in metrics(receiver), what="no pending deliveries")


def metrics(receiver: RunningReceiver) -> str:
    return receiver.http.request("GET", f"{receiver.url}/metrics").data.decode()


def start_with_plugin(start: StartReceiver, tmp_path: Path, source: str) -> RunningReceiver:
    path = tmp_path / "odd.py"
    path.write_text(source, encoding="utf-8")
    return start(THREE_SINKS.format(plugin=path))


@contextmanager
def pushing(receiver: RunningReceiver, bodies: Sequence[bytes], threads: int = 16) -> Iterator[list[PushResponse]]:
    """Push from many threads in the background; the responses, all of them at the end of the context."""
    responses: list[PushResponse] = []
    pusher = Pusher(receiver.url, TEST_SECRET, connections=threads)
    with ThreadPoolExecutor(threads) as pool:
        for body in bodies:
            pool.submit(lambda body=body: responses.append(pusher.push(body)))
        yield responses


def push_all(receiver: RunningReceiver, bodies: Sequence[bytes]) -> list[PushResponse]:
    with pushing(receiver, bodies) as responses:
        pass
    return responses


def push_until_accepted(receiver: RunningReceiver, bodies: Sequence[bytes]) -> None:
    """Push as DT does: what does not get 200 is retried."""

    def are_all_accepted() -> bool:
        nonlocal bodies
        ids = accepted(push_all(receiver, bodies))
        bodies = [body for body in bodies if event_id(body) not in ids]
        return not bodies

    wait_until(are_all_accepted, seconds=60, what="200 for every push")


def test_every_push_that_got_200_is_in_the_file_once_after_all_processes_were_killed(
    start_receiver: StartReceiver,
) -> None:
    receiver = start_receiver()
    with pushing(receiver, bodies(800)) as responses:
        wait_until(lambda: len(responses) > 250)
        receiver.kill_all()
    ids = accepted(responses)
    assert 250 < len(ids) < 800

    receiver.start(ready=False)

    wait_until_delivered(receiver, ids)
    assert set(rows_by_id(receiver).values()) == {1}


def test_killed_again_and_again_while_it_works_it_loses_and_repeats_nothing(start_receiver: StartReceiver) -> None:
    receiver = start_receiver()
    pushed = bodies(600)
    missing = pushed
    for _ in range(3):
        with pushing(receiver, missing) as responses:
            wait_until(lambda responses=responses: len(responses) > 100)
            receiver.kill_all()
        ids = accepted(responses)
        missing = [body for body in missing if event_id(body) not in ids]
        receiver.start(ready=False)
    push_until_accepted(receiver, missing)

    wait_until_delivered(receiver, set(event_ids(pushed)))
    assert rows_by_id(receiver) == Counter(event_ids(pushed))


def test_no_process_outlives_a_killed_supervisor(start_receiver: StartReceiver) -> None:
    receiver = start_receiver()
    assert receiver.process is not None
    wait_until(lambda: [len(pids) for pids in receiver.pids().values()] == [1, 2, 2], what="all processes")

    receiver.process.kill()
    receiver.process.wait()

    wait_until(lambda: not any(receiver.pids().values()), what="the end of all processes")


@pytest.mark.parametrize("victim", ["dispatcher", "master", "worker"])
def test_a_killed_process_is_restarted_and_loses_nothing(victim: str, start_receiver: StartReceiver) -> None:
    receiver = start_receiver()
    pids = receiver.pids()
    master = next(pid for pid in pids["children"] if pid != receiver.dispatcher)
    pid = {"dispatcher": receiver.dispatcher, "master": master, "worker": pids["workers"][0]}[victim]
    workers = [psutil.Process(worker) for worker in pids["workers"] if victim == "master"]
    with pushing(receiver, bodies(200), threads=4) as responses:
        wait_until(lambda: len(responses) > 50)
        os.kill(pid, signal.SIGKILL)
    ids = accepted(responses)
    assert len(ids) > 100

    psutil.wait_procs(workers, 60)  # those of a killed master respond to some requests before they end
    wait_until(lambda: receiver.is_ok("/readyz"))
    wait_until_delivered(receiver, ids)

    assert all(pid not in running for running in receiver.pids().values())
    assert receiver.push(Simulator().body("touch")) == (200, "accepted")
    assert set(rows_by_id(receiver).values()) == {1}


def test_a_hanging_sink_delays_neither_pushes_nor_other_sinks(start_receiver: StartReceiver, tmp_path: Path) -> None:
    receiver = start_with_plugin(start_receiver, tmp_path, HANGING_PLUGIN)
    pushed = bodies(100)

    responses = push_all(receiver, pushed)

    assert {(response.status, response.text) for response in responses} == {(200, "accepted")}
    wait_until_delivered(receiver, set(event_ids(pushed)))
    wait_until(lambda: len(receiver.stdout) == 100)
    assert receiver.metric('receiver_pending_deliveries{sink="odd"}') == 100


def test_a_sink_that_exits_its_process_is_found_and_paused_and_the_others_continue(
    start_receiver: StartReceiver, tmp_path: Path
) -> None:
    receiver = start_with_plugin(start_receiver, tmp_path, EXITING_PLUGIN)
    pushed = bodies(100)

    responses = push_all(receiver, pushed)

    assert {(response.status, response.text) for response in responses} == {(200, "accepted")}
    wait_until_delivered(receiver, set(event_ids(pushed)))
    wait_until(lambda: set(receiver.printed_ids()) == set(event_ids(pushed)), what="the deliveries of the console")
    assert wait_until(lambda: pauses(receiver), what="the pause of the sink that exits its process") == [
        "sink odd is paused: the dispatcher died while it called this sink alone"
    ]
    assert rows_by_id(receiver) == Counter(event_ids(pushed))


def pauses(receiver: RunningReceiver) -> list[str]:
    warnings = receiver.http.request("GET", f"{receiver.url}/readyz").json()["warnings"]
    return [warning for warning in warnings if "is paused" in warning]


def test_on_sigterm_what_was_accepted_is_delivered_and_the_exit_code_is_0(start_receiver: StartReceiver) -> None:
    receiver = start_receiver()
    with pushing(receiver, bodies(400)) as responses:
        wait_until(lambda: len(responses) > 150)
        code = receiver.stop()

    assert code == 0
    assert rows_by_id(receiver) == Counter(accepted(responses))
    assert not any(receiver.pids().values())


def test_sigterm_to_all_processes_twice_loses_nothing(start_receiver: StartReceiver) -> None:
    receiver = start_receiver()
    with pushing(receiver, bodies(400)) as responses:
        wait_until(lambda: len(responses) > 150)
        code = receiver.terminate()
    assert code == 0

    receiver.start(ready=False)

    wait_until_delivered(receiver, accepted(responses))
    assert set(rows_by_id(receiver).values()) == {1}


def suspend_between_transactions(receiver: RunningReceiver, pid: int) -> None:
    """Suspend a process while it does not hold the journal's lock, so that the others can continue."""
    with (receiver.folder / "data" / "journal.sqlite.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")


def test_a_dispatcher_that_was_suspended_for_a_while_continues(start_receiver: StartReceiver) -> None:
    receiver = start_receiver()
    dispatcher = receiver.dispatcher
    pushed = bodies(100)
    suspend_between_transactions(receiver, dispatcher)
    resumed = threading.Timer(2.0, os.kill, (dispatcher, signal.SIGCONT))
    resumed.start()
    ids = accepted(push_all(receiver, pushed))
    resumed.join()

    push_until_accepted(receiver, [body for body in pushed if event_id(body) not in ids])

    wait_until_delivered(receiver, set(event_ids(pushed)))
    assert len(receiver.rows()) == 100
    assert receiver.dispatcher == dispatcher


def test_the_port_is_free_immediately_after_a_stop(start_receiver: StartReceiver) -> None:
    receiver = start_receiver(ready=False)
    assert receiver.stop() == 0
    with pytest.raises(urllib3.exceptions.HTTPError):
        receiver.http.request("GET", f"{receiver.url}/healthz")
    receiver.start(ready=False)
    assert receiver.push(Simulator().body("touch")) == (200, "accepted")


def test_the_connection_of_a_push_that_waited_long_for_its_commit_is_kept(start_receiver: StartReceiver) -> None:
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
        unlocked = threading.Timer(3.0, fcntl.flock, (lock, fcntl.LOCK_UN))
        unlocked.start()
        other = pool.submit(receiver.push, Simulator().body("touch"))
        assert push(slow)[0] in (200, 503)
        other.result()
        unlocked.join()
        assert push(slow) == (200, b"accepted")


@pytest.mark.parametrize("full", ["journal.sqlite-wal", "events.csv"])
def test_on_a_full_disk_pushes_get_503_or_are_safe_and_all_are_delivered_when_there_is_room(
    full: str, start_receiver: StartReceiver
) -> None:
    receiver = start_receiver()
    first, rest = bodies(200)[:50], bodies(200)[50:]
    push_until_accepted(receiver, first)
    wait_until_delivered(receiver, set(event_ids(first)))
    file = receiver.folder / full if full == "events.csv" else receiver.folder / "data" / full
    receiver.limit_file_size(file.stat().st_size + 3000)

    during = push_all(receiver, rest)
    assert {response.status for response in during} <= {200, 503}
    if full == "journal.sqlite-wal":
        assert 503 in {response.status for response in during}
    assert (receiver.folder / "events.csv").read_bytes().endswith(b"\r\n")

    receiver.limit_file_size(resource.RLIM_INFINITY)
    ids = accepted(during)
    push_until_accepted(receiver, [body for body in rest if event_id(body) not in ids])
    wait_until_delivered(receiver, set(event_ids([*first, *rest])))
    assert rows_by_id(receiver) == Counter(event_ids([*first, *rest]))


def test_the_receiver_of_a_killed_demo_stops() -> None:
    command = [sys.executable, "-m", "receiver", "demo", "--seconds", "60"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        port = int(re.findall(r"http://127\.0\.0\.1:(\d+)", demo.stdout.readline())[0])
        demo.kill()

    def is_refused() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) != 0

    wait_until(is_refused, what="the end of the demo's receiver")


def test_a_disabled_sink_gets_later_what_was_accepted_before_even_if_it_was_not_routed_yet(
    start_receiver: StartReceiver,
) -> None:
    receiver = start_receiver()
    suspend_between_transactions(receiver, receiver.dispatcher)
    first, second = bodies(2)
    assert receiver.push(first) == (200, "accepted")
    receiver.kill_all()

    receiver.configure(CSV_ONLY + "enabled = false\n")
    receiver.start()
    wait_until(lambda: "\nreceiver_unrouted_events 0.0\n" in metrics(receiver), what="the routing of the first event")
    assert receiver.push(second) == (200, "accepted")
    wait_until(lambda: "\nreceiver_unrouted_events 0.0\n" in metrics(receiver), what="the routing of the second event")
    receiver.stop()
    receiver.configure(CSV_ONLY)
    receiver.start()

    wait_until_delivered(receiver, {event_id(first)})
    assert rows_by_id(receiver) == Counter([event_id(first)])


def test_a_sink_that_is_disabled_before_anything_was_routed_gets_later_what_was_accepted_while_it_was_enabled(
    start_receiver: StartReceiver,
) -> None:
    receiver = start_receiver("[receiver]\ndeliver = false\n" + CSV_ONLY, ready=False)
    (body,) = bodies(1)
    assert receiver.push(body) == (200, "accepted")
    receiver.kill_all()

    receiver.configure(CSV_ONLY + "enabled = false\n")
    receiver.start()
    wait_until(lambda: "\nreceiver_unrouted_events 0.0\n" in metrics(receiver), what="the routing of the event")
    receiver.stop()
    receiver.configure(CSV_ONLY)
    receiver.start()

    wait_until_delivered(receiver, {event_id(body)})
