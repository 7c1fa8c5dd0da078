"""Latency at a steady rate: how long a push takes, and how long until its event is at a webhook target."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median

from bench.load import SECRET
from bench.servers import CEILING, POSTGRES, RECEIVER, SQLITE, Kind, Server, running, target, webhook
from bench.tables import ms, ratio, show
from receiver.signature import sign
from receiver.simulator import Simulator
from receiver.testing.running import wait_until

RATE = 50.0
CONNECTIONS = 10
SECONDS = 30.0
WARM_UP_SECONDS = 2.0


@dataclass
class Timed:
    """Seconds from a push to its response and to its arrival at the target, and from the start to the first 200."""

    responses: list[float] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)


def measure(size: float, rounds: int) -> None:
    """Print the tables."""
    with target() as (port, notes):
        config = RECEIVER + webhook(port)
        kinds = [CEILING, SQLITE.but("receiver on SQLite", config), POSTGRES.but("receiver on PostgreSQL", config)]
        results = {kind: Timed() for kind in kinds}
        for _ in range(rounds):
            for kind in kinds:
                once(kind, max(2.0, SECONDS * size), notes, results[kind])
    show_results(results)


def once(kind: Kind, seconds: float, notes: Path, timed: Timed) -> None:
    with running(kind) as server:
        timed.starts.append(server.start_seconds)
        Traffic(server, WARM_UP_SECONDS).run()
        traffic = Traffic(server, seconds)
        traffic.run()
        timed.responses += [traffic.accepted_at[event] - sent for event, sent in traffic.sent_at.items()]
        if kind is not CEILING:
            wait_until(lambda: traffic.sent_at.keys() <= arrivals(notes).keys(), what="all deliveries")
            at = arrivals(notes)
            timed.arrivals += [at[event] - sent for event, sent in traffic.sent_at.items()]


def arrivals(notes: Path) -> Mapping[str, float]:
    """When each event first arrived at the target."""
    lines = [line.split() for line in notes.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return {event: float(at) for event, at in reversed(lines)}


class Traffic:
    """Signed pushes at a steady rate over some connections, independent of the responses; monotonic times by event id.

    A push that has to wait because its connection is still waiting for a response counts from when it was due.
    """

    def __init__(self, server: Server, seconds: float, rate: float = RATE) -> None:
        self.sent_at: dict[str, float] = {}
        self.accepted_at: dict[str, float] = {}
        self._server = server
        self._rate = rate
        bodies = list(islice(Simulator().bodies(), round(rate * seconds)))
        self._pushes = [
            (json.loads(body)["event"]["eventId"], body, sign(body, SECRET, time.time())) for body in bodies
        ]

    def run(self) -> None:
        """Send all pushes. Raises RuntimeError when one does not get 200."""
        begin_at = time.monotonic() + 0.1
        threads = [threading.Thread(target=self._send, args=(first, begin_at)) for first in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(self.accepted_at) < len(self._pushes):
            raise RuntimeError(
                f"{self._server.kind.name}: only {len(self.accepted_at)} of {len(self._pushes)} accepted"
            )

    def _send(self, first: int, begin_at: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=10)
        for number in range(first, len(self._pushes), CONNECTIONS):
            event, body, headers = self._pushes[number]
            due = begin_at + number / self._rate
            early = due - time.monotonic()
            time.sleep(max(0.0, early))
            self.sent_at[event] = time.monotonic() if early > 0 else due
            connection.request("POST", "/", body, headers)
            response = connection.getresponse()
            response.read()
            if response.status == 200:
                self.accepted_at[event] = time.monotonic()
        connection.close()


def show_results(results: Mapping[Kind, Timed]) -> None:
    ceiling = results[CEILING].responses
    rows = [
        (
            kind.name,
            ms(at(timed.responses, 50)),
            ratio(at(timed.responses, 50), at(ceiling, 50)),
            ms(at(timed.responses, 99)),
            ratio(at(timed.responses, 99), at(ceiling, 99)),
            *((ms(at(timed.arrivals, 50)), ms(at(timed.arrivals, 95))) if timed.arrivals else ("-", "-")),
            f"{median(timed.starts):.2f}",
        )
        for kind, timed in results.items()
    ]
    headings = ["server", "p50 ms", "/ ceiling", "p99 ms", "/ ceiling", "to webhook p50 ms", "p95 ms", "start s"]
    show(f"Latency at {RATE:.0f} pushes/s, {CONNECTIONS} connections", headings, rows)


def at(seconds: list[float], percent: int) -> float:
    """The percentile of some times."""
    return sorted(seconds)[len(seconds) * percent // 100]
