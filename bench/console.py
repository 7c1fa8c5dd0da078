"""The console on a large journal and a large registry: how long each part takes, and what polling costs the pushes."""

from __future__ import annotations

import multiprocessing
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from statistics import median

import urllib3

from bench.console_data import (
    DEAD_LETTERS,
    EVENTS,
    PASSWORD,
    SENSORS,
    ConsoleServer,
    make_statistics,
    registry_devices,
    seeded,
)
from bench.latency import Traffic, at
from bench.servers import INTAKE_ONLY, POSTGRES, SQLITE, Server, started
from bench.tables import ms, ratio, show

HEADERS = urllib3.make_headers(basic_auth=f"admin:{PASSWORD}", accept_encoding=True)
REPEATS = 5
BROWSERS = 10
PUSH_SECONDS, ROUNDS = 15.0, 5
SINKS = "".join(f'[sinks.{name}]\ntype = "csv"\npath = "{name}.csv"\n' for name in ("archive", "erp"))
CONFIG = INTAKE_ONLY.replace("enabled = false", "enabled = true") + SINKS
KINDS = (SQLITE.but("SQLite", CONFIG), POSTGRES.but("PostgreSQL", CONFIG))
DOWNLOAD = "/console/sensors.csv"
WITHOUT_STATISTICS = "PostgreSQL, never analyzed"

Times = Mapping[str, Sequence[float]]


def measure(size: float) -> None:
    """Print the tables."""
    times: dict[str, Times] = {}
    polled: dict[str, Sequence[float]] = {}
    for kind in KINDS:
        with seeded(kind, size) as server:
            if kind.postgres:
                with started(server):
                    times[WITHOUT_STATISTICS] = time_all(server)
                make_statistics(server)
            with started(server):
                times[kind.name] = time_all(server)
                polled[kind.name] = pushes_beside(server, size)
    show(
        f"Parts of the console: {round(EVENTS * size):,} events, {round(DEAD_LETTERS * size):,} dead letters, "
        f"{round(SENSORS * size):,} sensors",
        ["ms", *(f"{name} {column}" for name in times for column in ("first", "median"))],
        [
            (part, *(ms(value(of_kind[part])) for of_kind in times.values() for value in (first, median)))
            for part in next(iter(times.values()))
        ],
    )
    show(
        f"p99 of pushes at 50/s: alone, with {BROWSERS} browsers that poll, and during a download of all sensors",
        ["ms", "alone", "polled", "/ alone", "download", "/ alone"],
        [
            (name, ms(alone), ms(with_them), ratio(with_them, alone), ms(download), ratio(download, alone))
            for name, (alone, with_them, download) in polled.items()
        ],
    )


def first(times: Sequence[float]) -> float:
    return times[0]


def time_all(server: Server) -> Times:
    return {part: timed(server, path) for part, path in parts(server).items()}


def parts(server: Server) -> dict[str, str]:
    """The parts and their addresses."""

    def found(path: str, pattern: str) -> str:
        match = re.search(f'"({pattern})"', get(server.port, path).decode())
        assert match, path
        return match[1].replace("&amp;", "&")

    devices = registry_devices(server)
    late, sensor = devices[-len(devices) // 50], found("/console/sensors", r"/console/sensors/\w+")
    event = found("/console/events", r"/console/events/[\w-]+")
    return {
        "overview": "/console/",
        "sensors": "/console/sensors",
        "sensors, a late page": f"/console/sensors?after={late}",
        "sensors, searched": "/console/sensors?q=sensor+77",
        "sensors, nothing found": "/console/sensors?q=no+such+name",
        "sensors, of a state": "/console/sensors?state=silent",
        "sensors, of a state, a late page": f"/console/sensors?state=ok&after={late}",
        "one sensor, 24 hours": sensor,
        "one sensor, 7 days": f"{sensor}?range=7d",
        "one sensor, 30 days": f"{sensor}?range=30d",
        "values of one sensor, 30 days": f"{sensor}/values?range=30d",
        "history of one sensor, 30 days": f"{sensor}/history.json?range=30d",
        "history of one sensor as CSV": f"{sensor}/history.csv?range=30d",
        "silence": "/console/silence",
        "silence, searched": "/console/silence?q=sensor+77",
        "silence, of a state": "/console/silence?state=silent",
        "sinks": "/console/sinks",
        "dead letters": "/console/dead-letters",
        "dead letters of a sink": "/console/dead-letters?sink=erp",
        "dead letters of a group": found("/console/dead-letters", r"/console/dead-letters/\w+/[0-9a-f]+"),
        "all dead letters of a sink": "/console/dead-letters/erp/all",
        "events": "/console/events",
        "events, second page": found("/console/events", r"/console/events\?after=\d+"),
        "events of a sensor": f"/console/events?q={sensor.rpartition('/')[2]}",
        "events of sensors by name": "/console/events?q=sensor+77",
        "an event by its id": f"/console/events?q={event.rpartition('/')[2]}",
        "one event": event,
        "rejected and quarantined": "/console/rejected",
        "one quarantined push": found("/console/rejected", r"/console/rejected/\w{64}"),
    }


def get(port: int, path: str, pool: urllib3.PoolManager | None = None, poll: bool = False) -> bytes:
    response = (pool or urllib3.PoolManager()).request(
        "GET",
        f"http://127.0.0.1:{port}{path}",
        headers={**HEADERS, **({"X-Refresh": "1"} if poll else {})},
        timeout=60,
    )
    if response.status != 200:
        raise RuntimeError(f"{path} is {response.status}: {response.data.decode()[-400:]}")
    return response.data


def timed(server: Server, path: str) -> list[float]:
    """Seconds of some requests for a page, which share nothing but what the receiver itself keeps."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        get(server.port, path)
        times.append(time.perf_counter() - began)
    return times


def pushes_beside(server: ConsoleServer, size: float) -> tuple[float, float, float]:
    """The time within which 99 % of pushes got their response: alone, with browsers, and during a download.

    In turn and several times, and the median of each: one moment in which the disk hangs decides a p99.
    """
    sensor = f"/console/sensors/{registry_devices(server)[0]}"
    pages = ["/console/", "/console/sensors", "/console/sinks", "/console/silence", "/console/rejected", sensor]
    readers: list[list[str]] = [[], [pages[number % len(pages)] for number in range(BROWSERS)], [DOWNLOAD]]
    taken: list[list[float]] = [[] for _ in readers]
    for _ in range(ROUNDS):
        for paths, times in zip(readers, taken, strict=True):
            with reading(server.port, paths):
                traffic = Traffic(server, max(3.0, PUSH_SECONDS * size))
                traffic.run()
            responses = [traffic.accepted_at[event] - sent for event, sent in traffic.sent_at.items()]
            times.append(at(responses, 99))
    alone, polled, downloading = map(median, taken)
    return alone, polled, downloading


@contextmanager
def reading(port: int, paths: Sequence[str]) -> Iterator[None]:
    """Readers in a process of their own, or they would delay the load generator instead of the receiver."""
    context = multiprocessing.get_context("spawn")
    began, ended = context.Event(), context.Event()
    process = context.Process(target=read, args=(port, paths, began, ended))
    process.start()
    try:
        began.wait()
        yield
    finally:
        ended.set()
        process.join()
    if process.exitcode:
        raise RuntimeError("the readers of the console failed")


def read(port: int, paths: Sequence[str], began: Event, ended: Event) -> None:
    began.set()
    with ThreadPoolExecutor(max(1, len(paths))) as pool:
        for done in [pool.submit(browse, port, path, number, ended) for number, path in enumerate(paths)]:
            done.result()


def browse(port: int, path: str, seed: int, ended: Event) -> None:
    """Show a page and poll it as its script does, over a connection that stays; or repeat a download."""
    pool = urllib3.PoolManager()
    if path == DOWNLOAD:
        while not ended.is_set():
            get(port, path, pool)
        return
    ended.wait(random.Random(seed).uniform(0.0, 2.0))
    page = get(port, path, pool).decode()
    interval = re.search(r'data-refresh="(\d+)"', page)
    assert interval, path
    while not ended.wait(float(interval[1])):
        get(port, path, pool, poll=True)
