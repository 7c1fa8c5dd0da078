"""Intake: how many pushes per second get 200, compared with the same server when it stores nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import urllib3

from bench import node_red
from bench.load import Load, Pushes, push
from bench.servers import (
    CEILING,
    CEILING_THREADED,
    CSV,
    GUIDE,
    GUIDE_EQUAL,
    NODE_RED,
    POSTGRES,
    RECEIVER,
    SQLITE,
    STDOUT,
    Kind,
    Server,
    folder,
    running,
    target,
    webhook,
)
from bench.tables import ms, rate, ratio, show

CONNECTIONS = (16, 64)
MAX_RATE = 5000
"""More pushes per second than any of these servers can process."""


@dataclass(frozen=True)
class Run:
    """One measurement of one server: its processor seconds per push, and then the memory of all its processes."""

    load: Load
    cpu: float
    megabytes: float


def measure(seconds: float, rounds: int) -> None:
    """Print the table of all servers."""
    with target() as (port, _):
        three = RECEIVER + STDOUT + CSV + webhook(port)
        kinds = [
            CEILING,
            CEILING_THREADED,
            SQLITE,
            POSTGRES,
            SQLITE.but("receiver on SQLite, delivering to csv", RECEIVER + CSV),
            SQLITE.but("receiver on SQLite, delivering to 3 sinks", three),
            POSTGRES.but("receiver on PostgreSQL, delivering to 3 sinks", three),
            GUIDE_EQUAL,
            GUIDE,
            *([NODE_RED] if node_red.is_installed() else []),
        ]
        results = in_turn(kinds, seconds, rounds)
    for connections in CONNECTIONS:
        show_results(connections, kinds, {kind: results[kind, connections] for kind in kinds})


def in_turn(kinds: Sequence[Kind], seconds: float, rounds: int) -> dict[tuple[Kind, int], list[Run]]:
    """Measure the servers one after another, `rounds` times, each time from its start with the same pushes."""
    results: dict[tuple[Kind, int], list[Run]] = {(kind, n): [] for kind in kinds for n in CONNECTIONS}
    with signed(round(MAX_RATE * seconds * (len(CONNECTIONS) + 0.5))) as pushes:
        for _ in range(rounds):
            for kind in kinds:
                with running(kind) as server:
                    warm_up(server, pushes, seconds / 3)
                    for number, connections in enumerate(CONNECTIONS):
                        first = round(MAX_RATE * seconds * (number + 0.5))
                        results[kind, connections].append(once(server, pushes, first, seconds, connections))
                    assert_all_new(server)
    return results


@contextmanager
def signed(count: int) -> Iterator[Pushes]:
    with folder() as where:
        yield Pushes(where / "pushes", count)


def warm_up(server: Server, pushes: Pushes, seconds: float) -> None:
    push(server.url, pushes, 0, seconds, max(CONNECTIONS))


def once(server: Server, pushes: Pushes, first: int, seconds: float, connections: int) -> Run:
    before = server.cpu_seconds()
    load = push(server.url, pushes, first, seconds, connections)
    return Run(load, (server.cpu_seconds() - before) / load.pushes, server.megabytes())


def assert_all_new(server: Server) -> None:
    """Raises RuntimeError if a receiver was measured with events that it had stored before."""
    page = urllib3.request("GET", f"{server.url}metrics", retries=False, timeout=10).data.decode()
    if found := re.search(r'result="(duplicate|quarantined)".*', page):
        raise RuntimeError(f"not all pushes were new: {found[0]}")


def show_results(connections: int, kinds: Sequence[Kind], results: dict[Kind, list[Run]]) -> None:
    def middle(kind: Kind, name: str) -> float:
        return float(median(getattr(run.load, name) for run in results[kind]))

    rows = [
        (
            kind.name,
            rate(middle(kind, "rate")),
            ratio(middle(kind, "rate"), middle(CEILING, "rate")),
            ratio(middle(kind, "rate"), middle(GUIDE_EQUAL, "rate")),
            ratio(middle(kind, "rate"), middle(GUIDE, "rate")),
            ms(middle(kind, "p50")),
            ms(middle(kind, "p99")),
            ratio(middle(kind, "p99"), middle(CEILING_THREADED, "p99")),
            f"{median(run.cpu for run in results[kind]) * 1e6:.0f}",
            f"{median(run.megabytes for run in results[kind]):.0f}",
            f"{middle(kind, 'client'):.2f}",
        )
        for kind in kinds
    ]
    headings = ["server", "pushes/s", "/ ceiling", "/ minimal", "/ guide", "p50 ms", "p99 ms", "/ threads"]
    show(f"Intake, {connections} connections", [*headings, "CPU µs/push", "MB", "client CPU"], rows)
