"""Drain: how fast a backlog of unrouted events is routed and delivered."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

from sqlalchemy import Engine
from urllib3 import HTTPConnectionPool

from bench.backlog import delivered, fill, open_tables
from bench.servers import CSV, RECEIVER, STDOUT, Kind, Server, broker, folder, mqtt, target, webhook
from bench.tables import rate, ratio, show
from receiver.simulator import Simulator

EVENTS = 100_000
WEBHOOK_EVENTS = 10_000
THREADS = 8
MAX_SECONDS = 1800.0
SLOW = '[sinks.slow]\ntype = "slow"\n'
PLUGIN = f'plugins = ["{Path(__file__).with_name("slow.py")}"]\n'


@dataclass(frozen=True)
class Drained:
    """Events per second, from the first recorded delivery to the last, and processor seconds per event."""

    rate: float
    cpu: float


@dataclass(frozen=True)
class Case:
    """A backlog of `events` for the sinks in `config`, measured until each of the `watched` sinks has received all."""

    name: str
    config: str
    watched: tuple[str, ...]
    events: int
    one_core: bool = True
    postgres: bool = False
    receiver: str = RECEIVER


def measure(size: float, rounds: int) -> None:
    """Print the tables."""
    many, few = max(2000, round(EVENTS * size)), max(1000, round(WEBHOOK_EVENTS * size))
    with target() as (port, _), broker() as mqtt_port:
        console, archive, hook, home = ("console",), ("archive",), ("hook",), ("home",)
        hooks = webhook(port, THREADS)
        cases = [
            Case("stdout", STDOUT, console, many),
            Case("csv", CSV, archive, many),
            Case("csv, journal on PostgreSQL", CSV, archive, many, postgres=True),
            Case("csv, beside a sink that takes 1 s for each event", CSV + SLOW, archive, many),
            Case(f"webhook, concurrency = {THREADS}", hooks, hook, few),
            Case(
                "stdout, csv and webhook together", STDOUT + CSV + hooks, console + archive + hook, few, one_core=False
            ),
        ]
        if mqtt_port is not None:
            cases += [
                Case("mqtt", mqtt(mqtt_port), home, few, one_core=False),
                Case("mqtt, homeassistant = true", mqtt(mqtt_port, homeassistant=True), home, few, one_core=False),
            ]
        results: dict[str, list[Drained]] = {case.name: [] for case in cases}
        bare: list[float] = []
        for _ in range(rounds):
            for case in cases:
                results[case.name].append(drain(case))
            bare.append(post_all(port, few))
    show_results(cases, results, median(bare))


def show_results(cases: Sequence[Case], results: dict[str, list[Drained]], bare: float) -> None:
    def middle(name: str) -> float:
        return median(each.rate for each in results[name])

    rows = [
        (
            case.name,
            rate(case.events),
            rate(middle(case.name)),
            f"{median(each.cpu for each in results[case.name]) * 1e3:.3f}",
        )
        for case in cases
    ]
    show("Drain", ["sinks", "events", "events/s", "CPU s per 1,000 events"], rows)
    show(
        "Drain, side by side",
        ["", "ratio"],
        [
            (f"webhook / bare urllib3 loop of {THREADS} threads ({rate(bare)}/s)", ratio(middle(cases[4].name), bare)),
            ("csv beside a slow sink / csv alone", ratio(middle(cases[3].name), middle(cases[1].name))),
        ],
    )


def drain(case: Case) -> Drained:
    with folder() as where:
        return drain_in(where, case)


def drain_in(where: Path, case: Case, database: str = "") -> Drained:
    """Insert a backlog into the journal of a folder or a `database`, start a dispatcher and watch it."""
    config = (case.receiver + PLUGIN if SLOW in case.config else case.receiver) + case.config
    server = Server(Kind(case.name, ("-m", "receiver", "deliver"), config, case.postgres), where, database)
    journal = open_tables(server)
    fill(journal, case.events)
    before = delivered(journal)
    server.start()
    if case.one_core:
        server.process.cpu_affinity([0])
    try:
        return watch(server, journal, case, before)
    finally:
        server.stop()
        journal.dispose()


def watch(server: Server, journal: Engine, case: Case, before: Mapping[str, int]) -> Drained:
    first: tuple[float, float, int] | None = None
    end = time.monotonic() + MAX_SECONDS
    while time.monotonic() < end and server.process.poll() is None:
        counts = delivered(journal)
        least = min(counts.get(name, 0) - before.get(name, 0) for name in case.watched)
        if first is None and least:
            first = time.monotonic(), server.cpu_seconds(), least
        if first is not None and least >= case.events:
            began_at, cpu_before, count_before = first
            count = least - count_before
            seconds, cpu_seconds = time.monotonic() - began_at, server.cpu_seconds() - cpu_before
            return Drained(count / seconds, cpu_seconds / count)
        time.sleep(0.02)
    raise RuntimeError(f"{case.name}: not drained: {(server.folder / 'log.txt').read_text()[-2000:]}")


def post_all(port: int, count: int) -> float:
    """POST as many bodies with as many threads as the webhook sink, and do nothing else; requests per second."""
    pool = HTTPConnectionPool("127.0.0.1", port, maxsize=THREADS)
    bodies = list(islice(Simulator().bodies(), count))

    def post(body: bytes) -> None:
        response = pool.urlopen("POST", "/", body=body, headers={"content-type": "application/json"}, retries=False)
        assert response.status == 200

    with ThreadPoolExecutor(THREADS) as threads:
        began_at = time.monotonic()
        list(threads.map(post, bodies))
        return count / (time.monotonic() - began_at)
