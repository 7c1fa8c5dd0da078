"""The console on a large journal and a large registry: how long each part takes, and what polling costs the pushes."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from statistics import median

import urllib3
from sqlalchemy import Engine, case, cast, insert, literal, select, text
from sqlalchemy.types import String

from bench.backlog import fill, open_tables
from bench.latency import Traffic, at
from bench.sensors import bodies, fold
from bench.servers import INTAKE_ONLY, POSTGRES, SQLITE, Kind, Server, folder, started
from bench.tables import ms, ratio, show
from receiver.journal.sql.schema import DEAD, DELIVERED, deliveries, events, quarantine, sinks
from receiver.sensors import open_registry
from receiver.settings import load

EVENTS, DEAD_LETTERS, QUARANTINED, SENSORS = 2_000_000, 1_000_000, 10_000, 100_000
REASONS = 20
PASSWORD = "the password of a benchmark"
HEADERS = urllib3.make_headers(basic_auth=f"admin:{PASSWORD}", accept_encoding=True)
REPEATS = 5
BROWSERS, POLL_SECONDS = 10, 5.0
PUSH_SECONDS = 60.0
SINKS = "".join(f'[sinks.{name}]\ntype = "csv"\npath = "{name}.csv"\n' for name in ("archive", "erp"))
CONFIG = INTAKE_ONLY.replace("enabled = false", "enabled = true") + SINKS
KINDS = (SQLITE.but("SQLite", CONFIG), POSTGRES.but("PostgreSQL", CONFIG))


class ConsoleServer(Server):
    """A server with a console."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "CONSOLE_PASSWORD": PASSWORD}


def measure(size: float) -> None:
    """Print the tables."""
    times: dict[str, Mapping[str, Sequence[float]]] = {}
    polled: dict[str, tuple[float, float]] = {}
    for kind in KINDS:
        with seeded(kind, size) as server, started(server):
            times[kind.name] = {name: timed(server, path) for name, path in paths(server).items()}
            polled[kind.name] = (p99(server, size, browsers=0), p99(server, size, browsers=BROWSERS))
    show(
        f"Parts of the console: {round(EVENTS * size):,} events, {round(DEAD_LETTERS * size):,} dead letters, "
        f"{round(SENSORS * size):,} sensors",
        ["ms", *(f"{kind.name} {column}" for kind in KINDS for column in ("median", "worst"))],
        [
            (name, *(ms(value(times[kind.name][name])) for kind in KINDS for value in (median, max)))
            for name in times[KINDS[0].name]
        ],
    )
    show(
        f"p99 of pushes at 50/s, without and with {BROWSERS} browsers that poll",
        ["", "without, ms", "with, ms", "ratio"],
        [
            (name, ms(without), ms(with_them), ratio(with_them, without))
            for name, (without, with_them) in polled.items()
        ],
    )


@contextmanager
def seeded(kind: Kind, size: float) -> Iterator[Server]:
    """A server that is not running yet, with a full journal and registry."""
    with folder() as where:
        server = ConsoleServer(kind, where)
        journal = open_tables(server)
        fill(journal, round(EVENTS * size), routed=True, age_seconds=3600.0)
        fill_deliveries(journal, round(DEAD_LETTERS * size))
        fill_quarantine(journal, round(QUARANTINED * size))
        with closing(open_registry(load(server.environment()))) as registry:
            fold(registry, bodies(2 * round(SENSORS * size), round(SENSORS * size)))
        if kind.postgres:  # as the server itself does after a while
            with journal.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text("VACUUM ANALYZE"))
        journal.dispose()
        yield server


def fill_deliveries(journal: Engine, dead: int) -> None:
    """Of each event, a delivery to `archive` that was successful, and one to `erp`, of which the last ones are dead."""
    now = time.time()
    is_dead = (sinks.c.name == "erp") & (
        events.c.key > select(events.c.key).order_by(events.c.key.desc()).offset(dead).limit(1).scalar_subquery()
    )
    reason = literal("HTTP ") + cast(400 + events.c.key % REASONS, String) + ": the endpoint does not accept this event"
    columns = {
        "event": events.c.key,
        "sink": sinks.c.key,
        "state": case((is_dead, DEAD), else_=DELIVERED),
        "attempts": literal(1),
        "failures": literal(0),
        "first_attempt_at": literal(now),
        "settled_at": literal(now),
        "reason": case((is_dead, reason), else_=""),
    }
    with journal.begin() as connection:
        connection.execute(insert(sinks), [{"name": "archive"}, {"name": "erp"}])
        rows = (
            select(*columns.values()).select_from(events.join(sinks, literal(True))).order_by(events.c.key, sinks.c.key)
        )
        connection.execute(insert(deliveries).from_select(list(columns), rows))


def fill_quarantine(journal: Engine, count: int) -> None:
    now = time.time()
    rows = [
        {"id": f"{n:064x}", "received_at": now - n, "reason": "the body is not JSON", "body": b"x" * 500}
        for n in range(count)
    ]
    with journal.begin() as connection:
        connection.execute(insert(quarantine), rows)


def paths(server: Server) -> dict[str, str]:
    """The parts and their addresses."""

    def found(path: str, pattern: str) -> str:
        match = re.search(f'"({pattern})"', get(server, path).decode())
        assert match, path
        return match[1]

    sensor = found("/console/sensors", r"/console/sensors/\w+")
    group = found("/console/dead-letters", r"/console/dead-letters/\w+/[0-9a-f]+")
    second = found("/console/events", r"/console/events\?after=\d+")
    return {
        "overview": "/console/",
        "sensors": "/console/sensors",
        "sensors, searched": "/console/sensors?q=00007",
        "one sensor": sensor,
        "silence": "/console/silence",
        "sinks": "/console/sinks",
        "dead letters": "/console/dead-letters",
        "dead letters of a group": group,
        "all dead letters of a sink": "/console/dead-letters/erp/all",
        "events": "/console/events",
        "events, second page": second,
        "events of a sensor": f"/console/events?q={sensor.rpartition('/')[2]}",
        "one event": found("/console/events", r"/console/events/[\w-]+"),
        "rejected and quarantined": "/console/rejected",
        "one quarantined push": found("/console/rejected", r"/console/rejected/\w{64}"),
    }


def get(server: Server, path: str) -> bytes:
    response = urllib3.request("GET", f"http://127.0.0.1:{server.port}{path}", headers=HEADERS, timeout=30)
    if response.status != 200:
        raise RuntimeError(f"{server.kind.name}: {path} is {response.status}: {response.data.decode()[-400:]}")
    return response.data


def timed(server: Server, path: str) -> list[float]:
    """Seconds of some requests for a page."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        get(server, path)
        times.append(time.perf_counter() - began)
    return times


def p99(server: Server, size: float, browsers: int) -> float:
    """The time within which 99 % of pushes got their response, while browsers show and poll the parts."""
    ended = threading.Event()
    failed: list[Exception] = []
    pages = ["/console/", "/console/sensors", "/console/sinks", "/console/silence", "/console/rejected"]
    threads = [
        threading.Thread(target=poll, args=(server, pages[n % len(pages)], ended, failed)) for n in range(browsers)
    ]
    for thread in threads:
        thread.start()
    traffic = Traffic(server, max(5.0, PUSH_SECONDS * size))
    traffic.run()
    ended.set()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return at([traffic.accepted_at[event] - sent for event, sent in traffic.sent_at.items()], 99)


def poll(server: Server, path: str, ended: threading.Event, failed: list[Exception]) -> None:
    """Show a page again and again, as a browser does."""
    while not ended.is_set():
        try:
            get(server, path)
        except Exception as error:
            failed.append(error)
        ended.wait(POLL_SECONDS)
