"""The demo: the real server on a temporary journal, simulated sensors pushing to it, and a live count."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import urllib3

from receiver.errors import ReceiverError
from receiver.settings import SECRET
from receiver.simulator import Pusher, Simulator

CONFIG = """
[receiver]
host = "127.0.0.1"
[sinks.console]
type = "stdout"
format = "text"
[sinks.archive]
type = "csv"
path = "events.csv"
"""
START_SECONDS = 20.0
LAST_LINES = 5

Say = Callable[[str], object]


def run(seconds: float, rate: float, say: Say) -> None:
    """Push `rate` events a second for `seconds` and show what becomes of them. Ctrl-C ends it early."""
    folder = Path(tempfile.mkdtemp(prefix="receiver-demo-"))
    (folder / "config.toml").write_text(CONFIG, encoding="utf-8")
    secret = secrets.token_hex(32)
    with server(folder, secret) as url:
        say(f"A receiver runs at {url}, with its journal in {folder}.")
        say(f"Simulated sensors push {rate:g} signed events a second, for {seconds:g} s. Ctrl-C ends it.\n")
        pushed = push(url, secret, seconds, rate, say)
        wait_until_delivered(url)
        say(counts(url, pushed))
    show(folder, say)


def push(url: str, secret: str, seconds: float, rate: float, say: Say) -> int:
    """Push events at a steady rate until Ctrl-C, and say once a second where they are; how many were taken."""
    pusher, bodies = Pusher(url, secret), Simulator().bodies()
    start = said_at = time.monotonic()
    taken = 0
    with contextlib.suppress(KeyboardInterrupt):
        while (now := time.monotonic()) < start + seconds:
            answer = pusher.push(next(bodies))
            if answer.status != 200:
                raise ReceiverError(f"the receiver answered {answer.status} {answer.text}")
            taken += 1
            if now - said_at >= 1:
                say(counts(url, taken))
                said_at = now
            time.sleep(max(0.0, start + min(taken / rate, seconds) - time.monotonic()))
    return taken


@contextlib.contextmanager
def server(folder: Path, secret: str) -> Iterator[str]:
    """The receiver in a process of its own; its URL."""
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(SECRET)},
        SECRET: secret,
        "PORT": str(port),
        "WEB_CONCURRENCY": "2",
        "RECEIVER_CONFIG": str(folder / "config.toml"),
    }
    environment.pop("DATABASE_URL", None)
    ours, theirs = socket.socketpair()  # the server stops when our end is gone, however the demo ends
    with theirs, (folder / "stdout.txt").open("w") as out, (folder / "log.txt").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "receiver", "serve", "--lifeline", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=Path(__file__).parent.parent,
            env=environment,
            stdout=out,
            stderr=errors,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_up(url, process, folder / "log.txt")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        ours.close()


def wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            if urllib3.request("GET", f"{url}/readyz", retries=False, timeout=2).status == 200:
                return
        time.sleep(0.05)
    raise ReceiverError(f"the receiver did not start; it said: {log.read_text(encoding='utf-8').strip()}")


def wait_until_delivered(url: str) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and any(pending for _, _, pending in of_sinks(metrics(url))):
        time.sleep(0.1)


def counts(url: str, pushed: int) -> str:
    """One line: what was received, and what each sink has and is owed."""
    page = metrics(url)
    received = value(page, 'receiver_pushes_total{answer="accepted",status="200"}')
    sinks = [f"{name}: {delivered} delivered, {pending} pending" for name, delivered, pending in of_sinks(page)]
    return "   ".join([f"pushed {pushed}, received {received}", *sinks])


def metrics(url: str) -> str:
    return urllib3.request("GET", f"{url}/metrics", retries=False, timeout=5).data.decode()


def value(page: str, name: str) -> int:
    match = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    return int(float(match[1])) if match else 0


def of_sinks(page: str) -> list[tuple[str, int, int]]:
    """Name, delivered and pending (not yet matched events included) of each sink."""
    unmatched = value(page, "receiver_unmatched")
    names = re.findall(r'^receiver_pending\{sink="([^"]+)"\}', page, re.MULTILINE)
    return [
        (
            name,
            value(page, f'receiver_delivered_total{{sink="{name}"}}'),
            value(page, f'receiver_pending{{sink="{name}"}}') + unmatched,
        )
        for name in names
    ]


def show(folder: Path, say: Say) -> None:
    """What the sinks left behind."""
    for name in ("stdout.txt", "events.csv"):
        say(f"\nThe last lines of {folder / name}:")
        for line in (folder / name).read_text(encoding="utf-8").splitlines()[-LAST_LINES:]:
            say(f"  {line}")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
