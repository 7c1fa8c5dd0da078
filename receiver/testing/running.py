"""A receiver as its users have it: processes, sockets, files and signals."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import urllib3

from receiver.demo import free_port, value
from receiver.settings import SECRET
from receiver.signature import sign
from receiver.testing.samples import TEST_SECRET

ROOT = Path(__file__).parent.parent.parent
"""Where the receiver is started, so that `python -m receiver` finds it."""

SHIFTED = Path(__file__).with_name("shifted.py")
CSV_ONLY = """
[sinks.archive]
type = "csv"
path = "events.csv"
"""
PRINTED = re.compile(r'\{"event_id":')


def wait_until(condition: Callable[[], Any], seconds: float = 20.0, what: str = "the condition") -> Any:
    """Poll until `condition` gives something true, and return that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come about within {seconds:g} s")


class Running:
    """A receiver in a folder of its own, run by the interpreter `python`.

    With `clock` its processes have a clock of their own, which stands at that unix time now and can be `shift`ed.
    """

    def __init__(
        self, folder: Path, config: str, clock: float | None, environment: dict[str, str], python: str = sys.executable
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith((SECRET, "DATABASE_URL"))},
            SECRET: TEST_SECRET,
            "PORT": str(self.port),
            "WEB_CONCURRENCY": "2",
            "RECEIVER_CONFIG": str(folder / "config.toml"),
            **environment,
        }
        launcher = ["-m", "receiver"]
        if clock is not None:
            self.shift(clock - time.time())
            launcher = [str(SHIFTED), str(self._shift_file)]
        self.command = [python, *launcher, "serve"]
        self.http = urllib3.PoolManager(retries=False, timeout=15, maxsize=64)
        self.process: subprocess.Popen[bytes] | None = None
        self.configure(config)

    def configure(self, config: str) -> None:
        """Write config.toml, for the next start."""
        (self.folder / "config.toml").write_text(config, encoding="utf-8")

    def start(self, *, ready: bool = True) -> Running:
        self.launch()
        wait_until(lambda: self.answers("/readyz" if ready else "/healthz"), what=f"start ({self.log!r})")
        return self

    def launch(self) -> Running:
        """Start without waiting for anything."""
        with (self.folder / "stdout.txt").open("ab") as out, (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=out, stderr=log, start_new_session=True
            )
        return self

    def answers(self, path: str) -> bool:
        try:
            return self.http.request("GET", self.url + path).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def push(self, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, str]:
        """Push a body, signed if no headers are given; status and text of the answer."""
        headers = sign(body, TEST_SECRET, time.time()) if headers is None else headers
        response = self.http.request("POST", self.url, body=body, headers=headers, redirect=False)
        return response.status, response.data.decode()

    def metric(self, name: str) -> int:
        return value(self.http.request("GET", f"{self.url}/metrics").data.decode(), name)

    def run(self, *command: str) -> str:
        """Run another command of the receiver's beside it; all that it says."""
        done = subprocess.run(
            [sys.executable, "-m", "receiver", *command],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout

    def rows(self, name: str = "events.csv") -> list[dict[str, str]]:
        path = self.folder / name
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def printed(self) -> list[str]:
        """The ids of the events on its standard output. A line that a kill cut short is none, nor hides the next."""
        ids = []
        for line in (self.folder / "stdout.txt").read_text(encoding="utf-8").splitlines():
            for found in PRINTED.finditer(line):
                with contextlib.suppress(ValueError):
                    ids.append(json.loads(line[found.start() :])["event_id"])
        return ids

    def pids(self) -> dict[str, list[int]]:
        """Living processes of this receiver: the supervisor, gunicorn's master and workers, the dispatcher."""
        assert self.process is not None
        session = self.process.pid
        found: dict[str, list[int]] = {"supervisor": [], "children": [], "workers": []}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            state, parent, of_session = fields[0], int(fields[1]), int(fields[3])
            if of_session != session or state == "Z":
                continue
            pid = int(entry.name)
            kind = "supervisor" if pid == session else "children" if parent == session else "workers"
            found[kind].append(pid)
        return found

    @property
    def dispatcher(self) -> int:
        """The child that runs no workers."""
        parents = {parent_of(pid) for pid in self.pids()["workers"]}
        return next(pid for pid in self.pids()["children"] if pid not in parents)

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text(encoding="utf-8")

    @property
    def stdout(self) -> list[Any]:
        return [json.loads(line) for line in (self.folder / "stdout.txt").read_text(encoding="utf-8").splitlines()]

    def shift(self, seconds: float) -> None:
        """Put the clock of a receiver that has its own wrong by so much, also while it runs."""
        with self._shift_file.open("r+b" if self._shift_file.exists() else "wb") as file:
            file.write(struct.pack("q", round(seconds * 1e9)))

    @property
    def _shift_file(self) -> Path:
        return self.folder / "clock"

    def limit_files(self, size: int) -> None:
        """Let no file of its processes grow beyond `size`: what a full disk is like."""
        for pids in self.pids().values():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def terminate(self) -> int:
        """SIGTERM to all its processes, twice, as Heroku may; the exit code."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        return self.process.wait(30)

    def kill_all(self) -> None:
        """SIGKILL to every process of the receiver at once."""
        assert self.process is not None
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait(10)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
