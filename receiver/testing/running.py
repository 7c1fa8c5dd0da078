"""A running receiver, as operators have it: processes, sockets, files and signals."""

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

from receiver.demo import clean_environment, metric_value
from receiver.signature import sign
from receiver.testing.ports import reserve_port
from receiver.testing.samples import TEST_SECRET
from receiver.validation import nearest
from receiver.variables import SECRET

ROOT = Path(__file__).parent.parent.parent
"""The working directory of the receiver, so that `python -m receiver` finds it."""

CSV_ONLY = """
[sensors]
enabled = false
[sinks.archive]
type = "csv"
path = "events.csv"
"""
BEFORE_THE_FIRST_PUSH = {"receiver_pushes_total", "receiver_verified_pushes_total"}
"""Metrics with labels that have no value, and are not shown, before something was counted."""

STOP_SECONDS = 30.0
"""SIGTERM leaves the receiver 20 s; a busy machine needs more."""

_SHIFTED_CLOCK = Path(__file__).with_name("shifted_clock.py")
_PRINTED_EVENT = re.compile(r'\{"event_id":')


def wait_until(condition: Callable[[], Any], seconds: float = 20.0, what: str = "the condition") -> Any:
    """Poll until `condition` returns something true, and return that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.02)
    raise AssertionError(f"timed out after {seconds:g} s waiting for {what}")


class RunningReceiver:
    """A receiver in a folder of its own, run by the interpreter `python`, at `url`.

    With `clock`, its processes have a clock of their own that shows this unix time now; `shift_clock` moves it. Other
    tests on this machine get other ports.
    """

    def __init__(
        self, folder: Path, config: str, clock: float | None, environment: dict[str, str], python: str = sys.executable
    ) -> None:
        self.folder = folder
        self.port = reserve_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **clean_environment(),
            SECRET: TEST_SECRET,
            "PORT": str(self.port),
            "WEB_CONCURRENCY": "2",
            "RECEIVER_CONFIG": str(folder / "config.toml"),
            **environment,
        }
        launcher = ["-m", "receiver"]
        if clock is not None:
            self.shift_clock(clock - time.time())
            launcher = [str(_SHIFTED_CLOCK), str(self._shift_file)]
        self.command = [python, *launcher, "serve"]
        self.http = urllib3.PoolManager(retries=False, timeout=15, maxsize=64)
        self.process: subprocess.Popen[bytes] | None = None
        self.configure(config)

    def configure(self, config: str) -> None:
        """Write config.toml; it takes effect at the next start."""
        (self.folder / "config.toml").write_text(config, encoding="utf-8")

    def start(self, *, ready: bool = True) -> RunningReceiver:
        """Start it and wait until it is ready, or with `ready=False` until it responds."""
        self.launch()
        path = "/readyz" if ready else "/healthz"
        wait_until(lambda: self.is_ok(path), what=f"200 from {path}; the log is {self.log!r}")
        return self

    def launch(self) -> RunningReceiver:
        """Start it without waiting."""
        with (self.folder / "stdout.txt").open("ab") as out, (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=out, stderr=log, start_new_session=True
            )
        return self

    def is_ok(self, path: str) -> bool:
        """Whether the response to a GET of this path is 200."""
        try:
            return self.http.request("GET", self.url + path).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def push(self, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, str]:
        """Push a body, signed unless headers are given; status and text of the response."""
        headers = sign(body, TEST_SECRET, time.time()) if headers is None else headers
        response = self.http.request("POST", self.url, body=body, headers=headers, redirect=False)
        return response.status, response.data.decode()

    def metric(self, name: str) -> int:
        """The value of a metric; `name` includes the labels, as `/metrics` shows them.

        0 if the metric has no value with these labels yet. Raises LookupError if there is no such metric.
        """
        response = self.http.request("GET", f"{self.url}/metrics")
        page = response.data.decode()
        assert response.status == 200, f"/metrics responds {response.status}: {page}"
        metric, has_labels, _ = name.partition("{")
        shown = BEFORE_THE_FIRST_PUSH | set(re.findall(r"^(?:# TYPE )?(\w+)[{ ]", page, re.MULTILINE))
        if metric not in shown:
            raise LookupError(f"there is no metric {metric!r}{nearest(metric, sorted(shown))}")
        if not has_labels and re.search(rf"^{re.escape(metric)}{{", page, re.MULTILINE):
            raise LookupError(f"the metric {metric!r} has labels; add them")
        return metric_value(page, name)

    def run(self, *command: str) -> str:
        """Run another command of the receiver with the same settings; its output and errors."""
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
        """The rows of a CSV file in its folder; none if it does not exist."""
        path = self.folder / name
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def printed_ids(self) -> list[str]:
        """The ids of the events on its standard output. An event that a kill has cut off is ignored."""
        ids = []
        with (self.folder / "stdout.txt").open(encoding="utf-8") as file:
            for line in file:
                for found in _PRINTED_EVENT.finditer(line):
                    with contextlib.suppress(ValueError):
                        ids.append(json.loads(line[found.start() :])["event_id"])
        return ids

    def pids(self) -> dict[str, list[int]]:
        """Its running processes: the supervisor, its children (gunicorn's master and the dispatcher), the workers."""
        assert self.process is not None
        session = self.process.pid
        pids: dict[str, list[int]] = {"supervisor": [], "children": [], "workers": []}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            state, parent, its_session = fields[0], int(fields[1]), int(fields[3])
            if its_session != session or state == "Z":
                continue
            pid = int(entry.name)
            kind = "supervisor" if pid == session else "children" if parent == session else "workers"
            pids[kind].append(pid)
        return pids

    @property
    def dispatcher(self) -> int:
        """The pid of the dispatcher: the child that has no workers."""
        parents = {parent_of(pid) for pid in self.pids()["workers"]}
        return next(pid for pid in self.pids()["children"] if pid not in parents)

    @property
    def log(self) -> str:
        """All that it has logged."""
        return (self.folder / "log.txt").read_text(encoding="utf-8")

    @property
    def stdout(self) -> list[Any]:
        """The whole lines of its standard output, decoded as JSON."""
        printed = (self.folder / "stdout.txt").read_text(encoding="utf-8")
        return [json.loads(line) for line in printed.split("\n")[:-1]]

    def shift_clock(self, seconds: float) -> None:
        """Set a receiver's own clock this far ahead of the real one, also while it runs."""
        with self._shift_file.open("r+b" if self._shift_file.exists() else "wb") as file:
            file.write(struct.pack("q", round(seconds * 1e9)))

    @property
    def _shift_file(self) -> Path:
        return self.folder / "clock"

    def limit_file_size(self, size: int) -> None:
        """Let no file of its processes grow beyond `size` bytes, as on a full disk."""
        for pids in self.pids().values():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def stop(self) -> int:
        """Send SIGTERM to the supervisor and wait for its end. Returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def terminate(self) -> int:
        """Send SIGTERM to all its processes, twice, as Heroku may do. Returns the exit code."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def kill_all(self) -> None:
        """Send SIGKILL to all its processes at once."""
        assert self.process is not None
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait(10)


def parent_of(pid: int) -> int:
    """The pid of a process's parent; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
