"""Backfill: how fast events come from DT's history into the journal, and how much memory that takes."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import overload

import psutil

from bench.servers import ROOT
from bench.tables import rate, show
from receiver.demo import clean_environment
from receiver.testing.cloud import Cloud, Happening
from receiver.testing.postgresql import new_database

EVENTS, DEVICES = 1_000_000, 300
SPAN_SECONDS = 30 * 86400.0
SAMPLE_SECONDS = 0.2
CONFIG = "[sensors]\nenabled = false\n"
_fork = multiprocessing.get_context("fork")


class History(Sequence[Happening]):
    """Readings at equal distances until now, which exist only while they are asked for."""

    def __init__(self, device: str, count: int, end: float) -> None:
        self._device, self._count, self._end = device, count, end

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> Happening: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Happening]: ...
    def __getitem__(self, number: int | slice) -> Happening | Sequence[Happening]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(self._count))]
        at = self._end - (self._count - number) * SPAN_SECONDS / self._count
        return Happening(at, f"{self._device}e{number:09d}", "temperature", {"value": 21.5, "isBackfilled": False})


def measure(size: float) -> None:
    """Print the table."""
    events = max(10_000, round(EVENTS * size))
    rows = []
    for name in ("SQLite", "PostgreSQL"):
        _, idle = run(DEVICES, database(name))
        seconds, memory = run(events, database(name))
        megabytes = [f"{each / 1e6:.0f}" for each in (max(idle), memory[len(memory) // 10], max(memory))]
        rows.append((name, rate(events / seconds), *megabytes))
    headings = ["", "events/s", "MB for one event of each device", "MB after a tenth of the time", "MB at most"]
    show(f"Backfill of {events:,} events of {DEVICES} devices, concurrency 4", headings, rows)


def database(name: str) -> dict[str, str]:
    """The variables for an empty journal."""
    return {"DATABASE_URL": new_database()} if name == "PostgreSQL" else {}


def run(events: int, environment: dict[str, str]) -> tuple[float, list[int]]:
    """Seconds that the command took, and the bytes of its memory while it ran."""
    with tempfile.TemporaryDirectory() as folder, cloud(events // DEVICES) as variables:
        config = Path(folder) / "config.toml"
        config.write_text(CONFIG)
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "receiver", "backfill", "--since", "31d", "--yes", "--json"],
            cwd=ROOT,
            env={**clean_environment(), **variables, **environment, "RECEIVER_CONFIG": str(config)},
            stdout=subprocess.PIPE,
        )
        memory = list(samples(process))
        out, _ = process.communicate()
        seconds = time.monotonic() - began
        assert json.loads(out)["new"] == events // DEVICES * DEVICES, out
    return seconds, memory


def samples(process: subprocess.Popen[bytes]) -> Iterator[int]:
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            yield watched.memory_info().rss
        except psutil.Error:
            return
        time.sleep(SAMPLE_SECONDS)


@contextmanager
def cloud(each: int) -> Iterator[dict[str, str]]:
    """DT's cloud in a process of its own, with so many events of each device; the variables to use it."""
    ours, theirs = _fork.Pipe()
    process = _fork.Process(target=_serve, args=(theirs, each), daemon=True)
    process.start()
    yield ours.recv()
    ours.send("stop")
    process.join(10)


def _serve(connection: Connection, each: int) -> None:
    now = time.time()
    with Cloud() as served:
        for number in range(DEVICES):
            name = f"c8v2lh600000000{number:05d}"
            served.add_device(name, f"project{number % 3}", history=History(name[-5:], each, now - 60))
        connection.send(served.environment)
        connection.recv()
    os._exit(0)
