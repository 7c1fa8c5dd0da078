"""As on Heroku: dynos from the Procfile's own lines on one PostgreSQL, started, stopped, killed and replaced."""

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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import ROOT, TEST_SECRET, Running, wait_until

from receiver.event import TYPES
from receiver.settings import load
from receiver.simulator import Pusher, Simulator
from receiver.testing.cloud import Cloud
from receiver.testing.postgresql import Server, own_server
from receiver.testing.recorder import Recorder

log = logging.getLogger(__name__)

EVENTS = int(os.environ.get("HEROKU_EVENTS", "2000"))
PUSHERS = 12
MOST_CONNECTIONS = 20
SILENT_SECONDS = 20
"""A dispatcher beats every 5 s; one that has not for this long is gone."""

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


def procfile() -> dict[str, list[str]]:
    """The command of each kind of dyno, with our own Python."""
    lines = (line.partition(":") for line in (ROOT / "Procfile").read_text(encoding="utf-8").splitlines() if line)
    commands = {name: shlex.split(command) for name, _, command in lines}
    return {name: [sys.executable if word == "python" else word for word in words] for name, words in commands.items()}


class Dyno(Running):
    """One process of the Procfile, in a process group of its own."""

    def __init__(self, folder: Path, kind: str, config: str, number: int, **environment: str) -> None:
        folder.mkdir()
        super().__init__(folder, config, None, {"DYNO": f"{kind}.{number}", **environment})
        self.command = procfile()[kind]


EXITS = """
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


class Watch(threading.Thread):
    """Counts the receiver's connections to a database again and again, as long as it answers."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.most = 0
        self._url = url
        self._done = threading.Event()

    def run(self) -> None:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        while not self._done.wait(0.1):
            with contextlib.suppress(psycopg.Error), psycopg.connect(self._url, autocommit=True) as connection:
                while not self._done.wait(0.05):
                    row = connection.execute(query).fetchone()
                    assert row is not None
                    self.most = max(self.most, row[0])

    def stop(self) -> None:
        self._done.set()
        self.join()


AUDIT = """
CREATE TABLE audit (
    at double precision, event bigint, sink int, holder text, due double precision, next text, attempt int
);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO audit VALUES (
        extract(epoch FROM clock_timestamp()), old.event, old.sink, old.holder, old.due, new.holder, new.attempts
    );
    RETURN NULL;
END $$;
CREATE TRIGGER note AFTER UPDATE ON deliveries FOR EACH ROW
    WHEN (new.attempts > old.attempts OR old.holder IS DISTINCT FROM new.holder) EXECUTE FUNCTION note();
"""
"""Notes each change of holder. The trigger is the test's; the receiver does not know of it."""

STOLEN = """
SELECT count(*) FROM audit WHERE holder IS NOT NULL AND next IS NOT NULL AND due > at + 0.5
"""
"""Claims taken from a holder before they ended, give or take what two clocks may differ."""

TAKEN_OVER = "SELECT count(*) FROM audit WHERE holder <> next"
LOST_BY_THE_LIVING = """
SELECT count(*) FROM audit JOIN dispatchers ON dispatchers.holder = audit.holder
WHERE audit.holder <> audit.next AND beat_at > at
"""
"""Claims taken from one that still beat afterwards."""

GONE = f"(SELECT holder FROM dispatchers WHERE beat_at < extract(epoch FROM clock_timestamp()) - {SILENT_SECONDS})"
END_CLAIMS_OF_THE_GONE = f"UPDATE deliveries SET due = 0 WHERE due IS NOT NULL AND holder IN {GONE}"
"""Claims last a minute, which a test does not wait for."""

OWED = """
SELECT (SELECT count(*) FROM events WHERE NOT matched), (SELECT count(*) FROM deliveries WHERE state <> 1)
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
        """The release phase: it must end by itself, before any other dyno starts."""
        done = self.dyno("release").launch()
        assert done.process is not None
        assert done.process.wait(30) == 0, done.log
        return (done.folder / "stdout.txt").read_text(encoding="utf-8")

    def web(self, workers: int, *, ready: bool = True) -> Dyno:
        dyno = self.dyno("web", WEB_CONCURRENCY=str(workers))
        dyno.start(ready=ready)
        return dyno

    def living(self) -> list[Dyno]:
        return [dyno for dyno in self.dynos if dyno.process is not None and dyno.process.poll() is None]

    def empty(self) -> bool:
        """Whether nothing is owed any more; what the gone have held is free at once."""
        self.sql(END_CLAIMS_OF_THE_GONE)
        return self.sql(OWED) == [(0, 0)]

    def close(self) -> None:
        for dyno in self.dynos:
            if dyno.process is not None:
                dyno.kill_all()


Start = Callable[[str], App]


@pytest.fixture
def start_app(tmp_path: Path) -> Iterator[Start]:
    """Make an app with this config.toml; its dynos are killed at the end of the test."""
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


def bodies_of(count: int) -> dict[str, bytes]:
    """That many events of all types, by their ids."""
    simulator = Simulator(seed=5)
    made = [simulator.body(TYPES[number % len(TYPES)]) for number in range(count)]
    return {json.loads(body)["event"]["eventId"]: body for body in made}


def chunks(bodies: Mapping[str, bytes], count: int) -> Iterator[list[bytes]]:
    everything = list(bodies.values())
    for number in range(count):
        yield everything[number::count]


def test_dynos_come_and_go_and_the_database_is_killed_and_no_event_is_lost_or_shared_out_twice(
    start_app: Start, recorder: Recorder
) -> None:
    app = start_app(CONFIG.format(url=recorder.url))
    assert app.release().startswith("The journal")
    app.sql(AUDIT)
    watch = Watch(app.database_url)
    watch.start()
    cloud = Cloud([app.web(workers=2), app.web(workers=1)])
    codes: list[int] = []
    recoveries: list[float] = []

    def scale_up() -> None:
        cloud.web.append(app.web(workers=2))

    def replace() -> None:
        """A deploy: the new dyno is there before the old one is told to stop."""
        cloud.web.append(app.web(workers=1))
        codes.append(cloud.web.pop(0).terminate())

    def kill() -> None:
        cloud.web[0].kill_all()
        cloud.web[0].start()

    def restart() -> None:
        codes.append(cloud.web[1].terminate())
        cloud.web[1].start()

    def database_dies() -> None:
        app.server.restart()
        back, before = time.monotonic(), len(cloud.times)
        wait_until(lambda: len(cloud.times) > before, what="an event taken after the restart of the database")
        recoveries.append(time.monotonic() - back)

    bodies = bodies_of(EVENTS)
    faults = [scale_up, kill, restart, database_dies, kill, replace, database_dies]
    try:
        for fault, chunk in zip(faults, chunks(bodies, len(faults)), strict=True):
            with cloud.pushing(chunk) as taken:
                wait_until(lambda taken=taken, chunk=chunk: taken() > len(chunk) // 4)
                fault()
        wait_until(app.empty, seconds=60, what="the end of all that is owed")
    finally:
        watch.stop()
    codes += [dyno.terminate() for dyno in app.living()]

    numbers = {
        "pushes": cloud.pushes,
        "answers": dict(cloud.answers),
        "called again": sum(recorder.times.values()) - len(bodies),
        "taken over": app.sql(TAKEN_OVER)[0][0],
        "twice at once": len(recorder.twice_at_once),
        "connections": watch.most,
        "longest gap": round(cloud.longest_gap(), 2),
        "recoveries": [round(seconds, 2) for seconds in recoveries],
    }
    log.info("%s", numbers)
    assert app.sql("SELECT count(*), count(DISTINCT id) FROM events") == [(EVENTS, EVENTS)]
    assert recorder.bodies == {name: {body} for name, body in bodies.items()}
    assert {name for dyno in app.dynos for name in dyno.printed()} == bodies.keys()
    assert app.sql("SELECT name, delivered, failures FROM sinks ORDER BY name") == [
        ("console", EVENTS, 0),
        ("target", EVENTS, 0),
    ]
    assert app.sql(STOLEN) == app.sql(LOST_BY_THE_LIVING) == [(0,)]
    assert recorder.twice_at_once == []
    assert set(codes) == {0}
    assert watch.most <= MOST_CONNECTIONS
    assert {status for status, _ in cloud.answers} <= {0, 200, 503}
    assert TEST_SECRET not in "".join(dyno.log for dyno in app.dynos)
    assert "Traceback" not in "".join(dyno.log for dyno in app.dynos)


def test_a_sink_that_ends_a_worker_is_found_and_paused_and_the_others_work_on(start_app: Start) -> None:
    archive = '[sinks.console]\ntype = "stdout"\n[sinks.odd]\ntype = "odd"\n'
    app = start_app(NO_DELIVERY + 'plugins = ["odd.py"]\n' + archive)
    app.release()
    web = app.web(workers=1, ready=False)
    bodies = bodies_of(20)
    worker = app.dyno("worker")
    (worker.folder / "odd.py").write_text(EXITS)
    with Cloud([web]).pushing(list(bodies.values())):
        worker.launch()
    wait_until(lambda: set(worker.printed()) == bodies.keys(), what="the deliveries of the other sink")
    wait_until(lambda: app.sql("SELECT pause_reason FROM sinks WHERE name = 'odd' AND pauses > 0"), what="the pause")
    assert app.sql("SELECT pause_reason FROM sinks WHERE pauses > 0") == [
        ("the dispatcher died when it called this sink alone",)
    ]
    assert (worker.terminate(), web.terminate()) == (0, 0)


def test_events_flow_through_a_worker_when_the_web_does_not_deliver(start_app: Start, recorder: Recorder) -> None:
    app = start_app(NO_DELIVERY + CONFIG.format(url=recorder.url))
    app.release()
    web = app.web(workers=1, ready=False)
    bodies = bodies_of(60)
    with Cloud([web]).pushing(list(bodies.values())):
        assert not web.answers("/readyz")
    assert app.sql(OWED) == [(60, 0)]

    workers = [app.dyno("worker").launch(), app.dyno("worker").launch()]

    wait_until(app.empty, what="the end of all that is owed")
    wait_until(lambda: web.answers("/readyz"), what="a web dyno that knows of the workers")
    assert recorder.bodies == {name: {body} for name, body in bodies.items()}
    assert sorted(name for worker in workers for name in worker.printed()) == sorted(bodies)
    assert web.printed() == []
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'receiver' AND datname = current_database()"
    assert app.sql(query)[0][0] <= 1 + 2 * 2
    assert [worker.terminate() for worker in workers] == [0, 0]
    assert web.terminate() == 0


def test_web_and_worker_started_while_the_database_is_away_work_when_it_is_back(
    start_app: Start, recorder: Recorder
) -> None:
    """Maintenance of the database restarts the dynos too; one that gives up waits long for its next start."""
    app = start_app(CONFIG.format(url=recorder.url))
    app.release()
    app.server.kill()
    web, worker = app.dyno("web").launch(), app.dyno("worker").launch()
    wait_until(lambda: "journal" in web.log and "journal" in worker.log)
    app.server.start()

    wait_until(lambda: web.answers("/readyz"), seconds=30, what="a web dyno that takes pushes")

    bodies = bodies_of(20)
    with Cloud([web]).pushing(list(bodies.values())):
        pass
    wait_until(app.empty)
    assert app.living() == [web, worker]
    assert recorder.bodies.keys() == bodies.keys()


def test_workers_that_start_while_the_database_is_away_answer_503_until_it_is_back(start_app: Start) -> None:
    app = start_app(STDOUT)
    app.release()
    web = app.web(workers=2)
    app.server.kill()
    killed = web.pids()["workers"]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)

    workers = wait_until(lambda: len(new := set(web.pids()["workers"]) - set(killed)) == 2 and new)

    for body in list(bodies_of(10).values()):
        assert web.push(body) == (503, "journal unavailable")
    assert web.pids()["workers"] == sorted(workers)
    app.server.start()
    wait_until(lambda: web.push(Simulator().body("touch")) == (200, "accepted"), what="a push that is taken")
    assert web.pids()["workers"] == sorted(workers)


JOURNAL_AT_RISK = (
    "the journal is on the dyno's disk, and events that are still owed are lost with it at each restart; "
    "run `heroku addons:create heroku-postgresql:essential-0`"
)
FILE_AT_RISK = (
    "sink archive writes to the dyno's disk, and its file is lost at each restart; "
    'have one of type = "sql" with url = { env = "DATABASE_URL" } in place of [sinks.archive]'
)
STDOUT = '[sinks.console]\ntype = "stdout"\n'
CSV = '[sinks.archive]\ntype = "csv"\npath = "events.csv"\n'
SQL = '[sinks.archive]\ntype = "sql"\nurl = "sqlite:///data/readings.sqlite"\n'
IN_DATABASE = '[sinks.data]\ntype = "sql"\nurl = { env = "DATABASE_URL" }\n'


@pytest.mark.parametrize(
    ("config", "environment", "expected"),
    [
        pytest.param(STDOUT, {"DYNO": "web.1"}, [JOURNAL_AT_RISK], id="no database"),
        pytest.param(CSV, {"DYNO": "web.1"}, [JOURNAL_AT_RISK, FILE_AT_RISK], id="no database and a file"),
        pytest.param(CSV + "enabled = false\n", {"DYNO": "web.1"}, [JOURNAL_AT_RISK], id="a file that is not written"),
        pytest.param(CSV, {"DYNO": "web.1", "DATABASE_URL": "postgres://h/d"}, [FILE_AT_RISK], id="a file"),
        pytest.param(
            SQL, {"DYNO": "web.1", "DATABASE_URL": "postgres://h/d"}, [FILE_AT_RISK], id="a file for readings"
        ),
        pytest.param(IN_DATABASE, {"DYNO": "web.1", "DATABASE_URL": "postgres://h/d"}, [], id="readings in a server"),
        pytest.param(STDOUT, {"DYNO": "run.7", "DATABASE_URL": "postgres://h/d"}, [], id="all is safe"),
        pytest.param(STDOUT, {"DYNO": "web.1", "DATABASE_URL": ""}, [JOURNAL_AT_RISK], id="an empty variable"),
        pytest.param(STDOUT + CSV, {}, [], id="no dyno"),
    ],
)
def test_what_is_at_risk_is_named_with_what_mends_it(
    config: str, environment: dict[str, str], expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(config, encoding="utf-8")
    where = {"RECEIVER_CONFIG": str(tmp_path / "config.toml"), "DT_SIGNATURE_SECRET": TEST_SECRET}
    assert load({**where, **environment}).at_risk() == expected


def test_a_dyno_whose_disk_holds_what_must_last_says_so_everywhere_and_is_drained_after_the_last_push_was_taken(
    tmp_path: Path, recorder: Recorder
) -> None:
    config = CONFIG.format(url=recorder.url) + CSV
    dyno = Dyno(tmp_path / "web", "web", config, 1, WEB_CONCURRENCY="2")
    try:
        dyno.start()
        check = [*dyno.command[:-1], "check"]
        checked = subprocess.run(check, cwd=ROOT, env=dyno.environment, capture_output=True, text=True, check=True)
        page = json.loads(dyno.http.request("GET", f"{dyno.url}/readyz").data)
        for warning in (JOURNAL_AT_RISK, FILE_AT_RISK):
            assert f"warning: {warning}" in checked.stderr.splitlines()
            assert warning in dyno.log
        assert page == {"ready": True, "faults": [], "warnings": [JOURNAL_AT_RISK, FILE_AT_RISK]}

        pusher = Pusher(dyno.url, TEST_SECRET, PUSHERS)
        with ThreadPoolExecutor(PUSHERS) as pool:
            futures = [pool.submit(pusher.push, body) for body in bodies_of(500).values()]
            wait_until(lambda: sum(future.done() for future in futures) > 200)
            code = dyno.terminate()
        accepted = {future.result().event_id for future in futures if future.result().status == 200}
        assert code == 0
        assert 200 < len(accepted) < 500
        assert set(dyno.printed()) == set(recorder.bodies) == {row["event_id"] for row in dyno.rows()} == accepted
    finally:
        dyno.kill_all()
