"""Pushes signed beforehand, and wrk, which sends them: the client has nothing to do but to send and to wait.

Every push is a new event: one that is known already costs a receiver less, which would flatter ours.
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
    """What came of one run of wrk. Times in seconds; `client` is the part of one processor that wrk took."""

    pushes: int
    rate: float
    p50: float
    p99: float
    client: float


class Pushes:
    """A file of signed pushes, new events all; `at` says where in it each begins."""

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        self.at: list[int] = []
        self._signed_at = time.time()
        with path.open("wb") as file:
            for body in islice(Simulator().bodies(), count):
                self.at.append(file.tell())
                request = as_request(body, self._signed_at)
                file.write(b"%d\n%b" % (len(request), request))

    def part(self, number: int) -> int:
        """The place in the file of a push. Raises ValueError when there are not so many, or they have expired."""
        if number >= len(self.at) or time.time() > self._signed_at + LIFETIME_SECONDS - 60:
            raise ValueError("the pushes do not suffice; make a smaller run")
        return self.at[number]


def as_request(body: bytes, now: float) -> bytes:
    """A signed push as it goes over the wire."""
    headers = {"Host": "receiver", **sign(body, SECRET, now), "Content-Length": str(len(body))}
    lines = ["POST / HTTP/1.1", *(f"{name}: {text}" for name, text in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def push(url: str, pushes: Pushes, first: int, seconds: float, connections: int) -> Load:
    """Push from `first` on over so many connections. Raises RuntimeError when anything is answered but 200."""
    before = cpu_of_children()
    line = run([
        "wrk", "--threads=1", f"--connections={connections}", f"--duration={max(1, round(seconds))}s", "--timeout=10s",
        "--latency", f"--script={SCRIPT}", url, "--", str(pushes.path), str(pushes.part(first)),
    ])  # fmt: skip
    numbers, _, failures = line.partition(" status ")
    if failures.strip("0") != ", connect 0, read 0, write 0, timeout ":
        raise RuntimeError(f"pushes to {url} failed: status {failures}")
    count, microseconds, p50, p99 = (int(word) for word in numbers.split()[1:])
    took = microseconds / 1e6
    return Load(count, count / took, p50 / 1e6, p99 / 1e6, (cpu_of_children() - before) / took)


def run(command: Sequence[str]) -> str:
    """The line with the result that wrk prints through its script."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return line
    raise RuntimeError(f"wrk gave no result: {done.stdout}{done.stderr}")


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
