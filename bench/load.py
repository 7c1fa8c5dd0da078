"""Pushes signed in advance, and wrk, which sends them: the client only has to send and wait.

Every push is a new event: a duplicate costs the receiver less, which would flatter it.
"""

from __future__ import annotations

import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from receiver.signature import LIFETIME_SECONDS, sign
from receiver.simulator import Simulator

SECRET = "a signature secret of more than 32 bytes"
SCRIPT = Path(__file__).with_name("push.lua")


@dataclass(frozen=True)
class Load:
    """The result of one run of wrk. Times in seconds; `client` is the share of one processor that wrk used."""

    pushes: int
    rate: float
    p50: float
    p99: float
    client: float


class Pushes:
    """A file of signed pushes, all of new events; `offsets` says where each begins."""

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        self.offsets: list[int] = []
        self._signed_at = time.time()
        with path.open("wb") as file:
            for body in islice(Simulator().bodies(), count):
                self.offsets.append(file.tell())
                request = as_request(body, self._signed_at)
                file.write(b"%d\n%b" % (len(request), request))

    def offset(self, number: int) -> int:
        """Where a push begins in the file. Raises ValueError when there are too few, or they have expired."""
        if number >= len(self.offsets) or time.time() > self._signed_at + LIFETIME_SECONDS - 60:
            raise ValueError("there are too few pushes, or they have expired; choose a smaller --size")
        return self.offsets[number]


def as_request(body: bytes, now: float) -> bytes:
    """A signed push as it is sent."""
    headers = {"Host": "receiver", **sign(body, SECRET, now), "Content-Length": str(len(body))}
    lines = ["POST / HTTP/1.1", *(f"{name}: {text}" for name, text in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def push(url: str, pushes: Pushes, first: int, seconds: float, connections: int) -> Load:
    """Push from number `first` on over so many connections. Raises RuntimeError when a push does not get 200."""
    before = cpu_of_children()
    line = run([
        "wrk", "--threads=1", f"--connections={connections}", f"--duration={max(1, round(seconds))}s", "--timeout=10s",
        "--latency", f"--script={SCRIPT}", url, "--", str(pushes.path), str(pushes.offset(first)),
    ])  # fmt: skip
    numbers, _, failures = line.partition(" status ")
    if failures.strip("0") != ", connect 0, read 0, write 0, timeout ":
        raise RuntimeError(f"pushes to {url} failed: status {failures}")
    count, microseconds, p50, p99 = (int(word) for word in numbers.split()[1:])
    duration = microseconds / 1e6
    return Load(count, count / duration, p50 / 1e6, p99 / 1e6, (cpu_of_children() - before) / duration)


def run(command: Sequence[str]) -> str:
    """The line with the result, which the script of wrk prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return line
    raise RuntimeError(f"wrk printed no result: {done.stdout}{done.stderr}")


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
