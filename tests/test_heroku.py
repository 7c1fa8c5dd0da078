"""As on Heroku: dynos with the commands of the Procfile on one PostgreSQL, started, stopped, killed and replaced."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import ROOT, TEST_SECRET, RunningReceiver, wait_until

from chaos.cloud import Cloud
from chaos.recorder import Recorder
from chaos.traffic import digest
from receiver import health
from receiver.delivery.plugins import load_plugins
from receiver.delivery.sinks import find_problems
from receiver.event import TYPES
from receiver.redaction import Redactor
from receiver.settings import load
from receiver.simulator import Pusher, Simulator
from receiver.testing.postgresql import Server, own_server

log = logging.getLogger(__name__)

EVENTS = int(os.environ.get("HEROKU_EVENTS", "420"))
PUSHERS = 12
MAX_CONNECTIONS = 20
CONFIG = """
[sinks.target]
type = "webhook"
url = "{url}"
allow_private = true
concurrency = 4
[sinks.console]
type = "stdout"
"""
NO_DELIVERY = "[receiver]\ndeliver = false\n"
CONSOLE = '[sinks.console]\ntype = "stdout"\n'
ODD_SINK = '[sinks.odd]\ntype = "odd"\n'
EXITING_PLUGIN = """
import os
from receiver import hookimpl

class Odd:
    @hookimpl
    def deliver(self, event):
        os._exit(3)

@hookimpl
def register_sinks(register):
    register("odd", Odd)
"""


def procfile() -> dict[str, list[str]]:
    """The command of each kind of dyno, run by this Python."""
    lines = (line.partition(":") for line in (ROOT / "Procfile").read_text(encoding="utf-8").splitlines() if line)
    commands = {name: shlex.split(command) for name, _, command in lines}
    return {name: [sys.executable if word == "python" else word for word in words] for name, words in commands.items()}


class Dyno(RunningReceiver):
    """A dyno: one process of the Procfile and its children."""

    def __init__(self, folder: Path, kind: str, config: str, number: int, **environment: str) -> None:
        folder.mkdir()
        super().__init__(folder, config, None, {"DYNO": f"{kind}.{number}", **environment})
        self.command = procfile()[kind]


class ConnectionCounter(threading.Thread):
    """Counts the receiver's connections to a database repeatedly, also over restarts of the database."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.max_count = 0
        self._url = url
        self._done = threading.Event()

    def run(self) -> None:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        while not self._done.wait(0.1):
            with contextlib.suppress(psycopg.Error), psycopg.connect(self._url, autocommit=True) as connection:
                while not self._done.wait(0.05):
                    row = connection.execute(query).fetchone()
                    assert row is not None
                    self.max_count = max(self.max_count, row[0])

    def stop(self) -> None:
        self._done.set()
        self.join()


AUDIT = """
CREATE TABLE audit (at double precision, event bigint, sink int, holder text, due double precision, next_holder text);
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO audit VALUES (
        extract(epoch FROM clock_timestamp()), old.event, old.sink, old.holder, old.due, new.holder
    );
    RETURN NULL;
END $$;
CREATE TRIGGER audit AFTER UPDATE ON deliveries FOR EACH ROW
    WHEN (old.holder <> new.holder OR old.holder IS NOT NULL AND new.holder IS NULL AND new.due IS NOT NULL
        AND new.attempts = old.attempts AND new.settled_at IS NOT DISTINCT FROM old.settled_at)
    EXECUTE FUNCTION audit();
"""
"""Records each claim that is taken over, expired or void, by a trigger that only this test has."""

TAKEN_OVER_EARLY = """
SELECT count(*) FROM audit WHERE next_holder IS NOT NULL AND due > at + 0.5
"""
"""Claims that another dispatcher got before they expired or were void; two clocks may differ by half a second."""

TAKEN_OVER = "SELECT count(*) FROM audit"
TAKEN_OVER_FROM_LIVE = """
SELECT count(*) FROM audit JOIN dispatchers ON dispatchers.holder = audit.holder WHERE alive_at > at
"""
"""Claims taken over from a dispatcher that was alive afterwards."""

UNROUTED_AND_UNDELIVERED = """
SELECT (SELECT count(*) FROM events WHERE NOT routed), (SELECT count(*) FROM deliveries WHERE state <> 1)
"""


class App:
    """An app on Heroku: a database, its release phase, and its dynos."""

    def __init__(self, folder: Path, server: Server, config: str) -> None:
        self.folder = folder
        self.server = server
        self.config = config
        self.database_url = server.new_database()
        self.dynos: list[Dyno] = []

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def dyno(self, kind: str, **environment: str) -> Dyno:
        number = len(self.dynos) + 1
        heroku = self.database_url.replace("postgresql://", "postgres://")
        dyno = Dyno(self.folder / f"{kind}.{number}", kind, self.config, number, DATABASE_URL=heroku, **environment)
        self.dynos.append(dyno)
        return dyno

    def release(self) -> str:
        """The release phase, which ends before any other dyno starts; its output."""
        done = self.dyno("release").launch()
        assert done.process is not None
        assert done.process.wait(30) == 0, done.log
        return (done.folder / "stdout.txt").read_text(encoding="utf-8")

    def web(self, workers: int, *, ready: bool = True) -> Dyno:
        dyno = self.dyno("web", WEB_CONCURRENCY=str(workers))
        dyno.start(ready=ready)
        return dyno

    def webs(self, *workers: int) -> list[Dyno]:
        """Several web dynos that are started together."""
        dynos = [self.dyno("web", WEB_CONCURRENCY=str(number)).launch() for number in workers]
        for dyno in dynos:
            wait_until(lambda dyno=dyno: dyno.is_ok("/readyz"), what="a web dyno that is ready")
        return dynos

    def running(self) -> list[Dyno]:
        return [dyno for dyno in self.dynos if dyno.process is not None and dyno.process.poll() is None]

    def is_idle(self) -> bool:
        """Whether everything is delivered."""
        return self.sql(UNROUTED_AND_UNDELIVERED) == [(0, 0)]

    def close(self) -> None:
        for dyno in self.dynos:
            if dyno.process is not None:
                dyno.kill_all()


Start = Callable[[str], App]


@pytest.fixture
def start_app(tmp_path: Path) -> Iterator[Start]:
    """A function that creates an app with this config.toml; its dynos are killed at the end of the test."""
    server = own_server()
    apps: list[App] = []

    def start(config: str) -> App:
        apps.append(App(tmp_path, server, config))
        return apps[-1]

    yield start
    for app in apps:
        app.close()
    server.start()


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.close()


def bodies_by_id(count: int) -> dict[str, bytes]:
    """So many events of all types."""
    simulator = Simulator(seed=5)
    bodies = [simulator.body(TYPES[number % len(TYPES)]) for number in range(count)]
    return {json.loads(body)["event"]["eventId"]: body for body in bodies}


def in_parts(bodies: Mapping[str, bytes], count: int) -> list[list[bytes]]:
    return [list(bodies.values())[number::count] for number in range(count)]


def terminate_all(dynos: Sequence[Dyno]) -> list[int]:
    """SIGTERM to all of them at once; their exit codes."""
    with ThreadPoolExecutor(len(dynos)) as threads:
        return list(threads.map(Dyno.terminate, dynos))


def test_while_dynos_come_and_go_and_the_database_is_killed_no_event_is_lost_or_claimed_twice(
    start_app: Start, recorder: Recorder
) -> None:
    app = start_app(CONFIG.format(url=recorder.url))
    assert app.release().startswith("Created the journal's tables")
    app.sql(AUDIT)
    connections = ConnectionCounter(app.database_url)
    connections.start()
    cloud = Cloud(app.webs(2, 1))
    exit_codes: list[int] = []
    recoveries: list[float] = []

    def scale_up() -> None:
        cloud.receivers.append(app.web(workers=2, ready=False))

    def replace() -> None:
        """A deploy: the new dyno is started before the old one is told to stop."""
        cloud.receivers.append(app.web(workers=1, ready=False))
        exit_codes.append(cloud.receivers.pop(0).terminate())

    def kill() -> None:
        cloud.receivers[0].kill_all()
        cloud.receivers[0].start(ready=False)

    def restart() -> None:
        exit_codes.append(cloud.receivers[1].terminate())
        cloud.receivers[1].start(ready=False)

    def restart_database() -> None:
        app.server.kill()
        app.server.start()
        started_at = time.monotonic()
        cloud.push(next(iter(bodies.values())))
        recoveries.append(max(0.0, cloud.accepted_at[-1] - started_at))

    bodies = bodies_by_id(EVENTS)
    faults = [scale_up, kill, restart_database, kill, restart, replace, restart_database]
    try:
        for fault, part in zip(faults, in_parts(bodies, len(faults)), strict=True):
            with cloud.pushing(part) as count_accepted:
                wait_until(lambda count=count_accepted, part=part: count() > len(part) // 4)
                fault()
        wait_until(app.is_idle, seconds=60, what="all deliveries")
    finally:
        connections.stop()
    exit_codes += terminate_all(app.running())

    figures = {
        "pushes": cloud.pushes,
        "responses": dict(cloud.responses),
        "repeated calls": sum(recorder.calls.values()) - len(bodies),
        "claims taken over": app.sql(TAKEN_OVER)[0][0],
        "connections": connections.max_count,
        "longest gap": round(cloud.longest_gap_seconds(), 2),
        "recoveries": [round(seconds, 2) for seconds in recoveries],
    }
    log.info("%s", figures)
    assert app.sql("SELECT count(*), count(DISTINCT id) FROM events") == [(EVENTS, EVENTS)]
    assert recorder.digests == {event_id: {digest(body)} for event_id, body in bodies.items()}
    assert {event_id for dyno in app.dynos for event_id in dyno.printed_ids()} == bodies.keys()
    of_sinks = app.sql("SELECT name, delivered, failures FROM sinks ORDER BY name")
    assert [row[:2] for row in of_sinks] == [("console", EVENTS), ("sensors", EVENTS), ("target", EVENTS)]
    assert {name for name, _, failures in of_sinks if failures} <= {"sensors"}  # which writes into the database itself
    assert app.sql(TAKEN_OVER_EARLY) == app.sql(TAKEN_OVER_FROM_LIVE) == [(0,)]
    assert recorder.concurrent_calls == []
    assert set(exit_codes) == {0}
    assert connections.max_count <= MAX_CONNECTIONS
    assert {status for status, _ in cloud.responses} <= {0, 200, 408, 503}
    logs = "".join(dyno.log for dyno in app.dynos)
    assert [text for text in (TEST_SECRET, "Traceback") if text in logs] == []


def test_a_sink_that_exits_a_worker_is_found_and_paused_and_the_others_continue(start_app: Start) -> None:
    app = start_app(NO_DELIVERY + 'plugins = ["odd.py"]\n' + CONSOLE + ODD_SINK)
    app.release()
    web = app.web(workers=1, ready=False)
    bodies = bodies_by_id(20)
    worker = app.dyno("worker")
    (worker.folder / "odd.py").write_text(EXITING_PLUGIN)
    with Cloud([web]).pushing(list(bodies.values())):
        worker.launch()
    wait_until(lambda: set(worker.printed_ids()) == bodies.keys(), what="the deliveries of the other sink")
    wait_until(lambda: app.sql("SELECT pause_reason FROM sinks WHERE name = 'odd' AND pauses > 0"), what="the pause")
    assert app.sql("SELECT pause_reason FROM sinks WHERE pauses > 0") == [
        ("the dispatcher died while it called this sink alone",)
    ]
    assert terminate_all([worker, web]) == [0, 0]


def test_when_web_dynos_do_not_deliver_workers_deliver_and_web_dynos_know_that_they_are_alive(
    start_app: Start, recorder: Recorder
) -> None:
    app = start_app(NO_DELIVERY + CONFIG.format(url=recorder.url))
    app.release()
    web = app.web(workers=1, ready=False)
    bodies = bodies_by_id(60)
    with Cloud([web]).pushing(list(bodies.values())):
        assert not web.is_ok("/readyz")
    assert app.sql(UNROUTED_AND_UNDELIVERED) == [(60, 0)]

    workers = [app.dyno("worker").launch(), app.dyno("worker").launch()]

    wait_until(app.is_idle, what="all deliveries")
    wait_until(lambda: web.is_ok("/readyz"), what="a web dyno that is ready")
    assert recorder.digests == {event_id: {digest(body)} for event_id, body in bodies.items()}
    assert sorted(event_id for worker in workers for event_id in worker.printed_ids()) == sorted(bodies)
    assert web.printed_ids() == []
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'receiver' AND datname = current_database()"
    assert app.sql(query)[0][0] <= 1 + 2 * 4
    assert terminate_all([*workers, web]) == [0, 0, 0]


def test_web_and_worker_dynos_started_while_the_database_is_away_work_when_it_is_back(
    start_app: Start, recorder: Recorder
) -> None:
    """Maintenance of the database restarts dynos, too; one that exits waits long for its next start."""
    app = start_app(CONFIG.format(url=recorder.url))
    app.release()
    app.server.kill()
    web, worker = app.dyno("web").launch(), app.dyno("worker").launch()
    wait_until(lambda: "journal" in web.log and "journal" in worker.log, what="two dynos that wait for the journal")
    app.server.start()

    wait_until(lambda: web.is_ok("/readyz"), seconds=30, what="a web dyno that is ready")

    bodies = bodies_by_id(20)
    with Cloud([web]).pushing(list(bodies.values())):
        pass
    wait_until(app.is_idle, what="all deliveries")
    assert app.running() == [web, worker]
    assert recorder.digests.keys() == bodies.keys()


def test_web_workers_started_while_the_database_is_away_respond_503_until_it_is_back(start_app: Start) -> None:
    app = start_app(CONSOLE)
    app.release()
    web = app.web(workers=2)
    app.server.kill()
    killed = web.pids()["workers"]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)

    workers = wait_until(
        lambda: len(new := set(web.pids()["workers"]) - set(killed)) == 2 and new, what="two new workers"
    )

    for body in bodies_by_id(10).values():
        assert web.push(body) == (503, "journal unavailable")
    assert web.pids()["workers"] == sorted(workers)
    app.server.start()
    wait_until(lambda: web.push(Simulator().body("touch")) == (200, "accepted"), what="a push that is accepted")
    assert web.pids()["workers"] == sorted(workers)


JOURNAL_ON_DYNO = (
    "the journal is on the dyno's disk, which is lost at each restart together with all pending events; "
    "run `heroku addons:create heroku-postgresql:essential-0`"
)
FILE_ON_DYNO = (
    "sink archive writes to the dyno's disk, and its file is lost at each restart; "
    'replace [sinks.archive] with one of type = "sql" and url = { env = "DATABASE_URL" }'
)
CSV = '[sinks.archive]\ntype = "csv"\npath = "events.csv"\n'
SQL_FILE = '[sinks.archive]\ntype = "sql"\nurl = "sqlite:///data/readings.sqlite"\n'
SQL_SERVER = '[sinks.data]\ntype = "sql"\nurl = { env = "DATABASE_URL" }\n'
WITH_DATABASE = {"DYNO": "web.1", "DATABASE_URL": "postgres://h/d"}


@pytest.mark.parametrize(
    ("config", "environment", "expected"),
    [
        pytest.param(CONSOLE, {"DYNO": "web.1"}, [JOURNAL_ON_DYNO], id="no database"),
        pytest.param(CSV, {"DYNO": "web.1"}, [JOURNAL_ON_DYNO, FILE_ON_DYNO], id="no database and a file"),
        pytest.param(CSV + "enabled = false\n", {"DYNO": "web.1"}, [JOURNAL_ON_DYNO], id="a disabled sink with a file"),
        pytest.param(CSV, WITH_DATABASE, [FILE_ON_DYNO], id="a file"),
        pytest.param(SQL_FILE, WITH_DATABASE, [FILE_ON_DYNO], id="readings in a file"),
        pytest.param(SQL_SERVER, WITH_DATABASE, [], id="readings in a server"),
        pytest.param(CONSOLE, {**WITH_DATABASE, "DYNO": "run.7"}, [], id="nothing on the disk"),
        pytest.param(CONSOLE, {"DYNO": "web.1", "DATABASE_URL": ""}, [JOURNAL_ON_DYNO], id="an empty DATABASE_URL"),
        pytest.param(CONSOLE + CSV, {}, [], id="no dyno"),
    ],
)
def test_whatever_is_stored_on_a_dynos_disk_is_a_warning_with_a_remedy(
    config: str, environment: dict[str, str], expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(config, encoding="utf-8")
    variables = {"RECEIVER_CONFIG": str(tmp_path / "config.toml"), "DT_SIGNATURE_SECRET": TEST_SECRET, **environment}
    settings = load(variables)
    problems, paths = find_problems(load_plugins(settings, Redactor()), settings, Redactor())
    assert problems == []
    assert health.journal_on_dyno(settings) + health.local_files(settings, paths) == expected


def test_a_dyno_that_stores_events_on_its_disk_warns_in_check_log_and_readiness(
    tmp_path: Path, recorder: Recorder
) -> None:
    dyno = Dyno(tmp_path / "web", "web", CONFIG.format(url=recorder.url) + CSV, 1)
    check = [*dyno.command[:-1], "check"]
    with dyno_running(dyno):
        checked = subprocess.run(check, cwd=ROOT, env=dyno.environment, capture_output=True, text=True, check=True)
        for warning in (JOURNAL_ON_DYNO, FILE_ON_DYNO):
            assert f"warning: {warning}" in checked.stderr.splitlines()
            assert warning in dyno.log
        assert dyno.http.request("GET", f"{dyno.url}/readyz").json() == {
            "ready": True,
            "errors": [],
            "warnings": [JOURNAL_ON_DYNO, FILE_ON_DYNO],
        }


def test_a_dyno_that_is_terminated_delivers_every_event_that_it_has_accepted(
    tmp_path: Path, recorder: Recorder
) -> None:
    dyno = Dyno(tmp_path / "web", "web", CONFIG.format(url=recorder.url) + CSV, 1, WEB_CONCURRENCY="2")
    pusher = Pusher(dyno.url, TEST_SECRET, PUSHERS)
    with dyno_running(dyno), ThreadPoolExecutor(PUSHERS) as pool:
        futures = [pool.submit(pusher.push, body) for body in bodies_by_id(400).values()]
        wait_until(lambda: sum(future.done() for future in futures) > 150, what="150 responses")
        assert dyno.terminate() == 0
    accepted = {future.result().event_id for future in futures if future.result().status == 200}
    assert 150 < len(accepted) < 400
    assert set(dyno.printed_ids()) == set(recorder.digests) == {row["event_id"] for row in dyno.rows()} == accepted


@contextlib.contextmanager
def dyno_running(dyno: Dyno) -> Iterator[None]:
    try:
        dyno.start()
        yield
    finally:
        dyno.kill_all()
