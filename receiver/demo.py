"""`demo`: the real server on a temporary journal, simulated sensors that push to it, and live counts."""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType

import urllib3

from receiver.demo_fleet import fold_history, live
from receiver.errors import ReceiverError
from receiver.incident import Incident
from receiver.sensors import open_registry
from receiver.sensors.registry import Registry
from receiver.settings import load
from receiver.simulator import Pusher, Simulator
from receiver.variables import ISSUER_URL, ORGANIZATION_ID, SECRET

CONFIG = """
[receiver]
host = "127.0.0.1"
plugins = []
[sinks.console]
type = "stdout"
format = "text"
[sinks.archive]
type = "csv"
path = "events.csv"
"""
CONSOLE_CONFIG = f"""{CONFIG.replace("plugins = []", 'plugins = ["demo_sinks.py"]')}
[sinks.erp]
type = "demo_erp"
[sinks.billing]
type = "demo_billing"
"""
CONSOLE_PLUGIN = """
from receiver import GiveUp, Pause, hookimpl


class Erp:
    @hookimpl
    def deliver(self, event):
        raise Pause("HTTP 401: it rejects our credentials", after=900)


class Billing:
    @hookimpl
    def deliver(self, event):
        if event.labels.get("name") == "Loading dock":
            raise GiveUp("HTTP 422: no contract for this meter")


@hookimpl
def register_sinks(register):
    register("demo_erp", Erp)
    register("demo_billing", Billing)
"""
"""A sink that is paused, and one with dead letters."""

START_SECONDS = 20.0
JUDGED_SECONDS = 60.0
LAST_LINES = 5
"""How many lines of the output of each sink are shown."""

FREEZER = "Freezer 1"
FREEZER_ID = "emu0freezer000000000001"
HEARTBEATS = range(12 * 60, 2 * 60, -15)
"""When the freezer was heard, in minutes before the start: its silence is two hours old, and a small part of the time,
or its length would become the interval."""

RETURN = (15, 0)
"""When it is heard again, at the end."""

Say = Callable[[str], object]


def run(seconds: float, rate: float, say: Say) -> None:
    """Push `rate` events per second for `seconds`, and show what becomes of them. Ctrl-C stops it early."""
    folder = Path(tempfile.mkdtemp(prefix="receiver-demo-"))
    (folder / "config.toml").write_text(CONFIG, encoding="utf-8")
    secret = secrets.token_hex(32)
    with server(folder, secret) as url:
        say(f"A receiver is running at {url}, with its journal in {folder}.")
        say(f"Simulated sensors push signed events, {rate:g} per second for {seconds:g} s. Ctrl-C stops it.\n")
        freezer = Simulator(sensor=FREEZER_ID, labels={"name": FREEZER})
        history = push_heartbeats(url, secret, freezer, HEARTBEATS)
        pushed = push(url, secret, seconds, rate, lambda pushed: say(counts(url, history + pushed)))
        wait_until_delivered(url)
        say(counts(url, history + pushed))
        show_output(folder, say)
        show_incident(url, secret, freezer, folder, say)


def run_console(seconds: float | None, rate: float, say: Say) -> None:
    """Run a receiver with a console and a fleet that has a history, for `seconds` or until Ctrl-C."""
    folder, password = Path(tempfile.mkdtemp(prefix="receiver-demo-")), secrets.token_urlsafe(12)
    secret = secrets.token_hex(32)
    say("Preparing a month of history …")
    prepare_console(folder)
    with server(folder, secret, {"CONSOLE_PASSWORD": password}) as url:
        say(f"\nOpen {url}/console/ and log in:\n\n  user      admin\n  password  {password}\n")
        say(f"A fleet pushes signed events, {rate:g} per second; the journal is in {folder}. Ctrl-C stops it.")
        push(url, secret, math.inf if seconds is None else seconds, rate, lambda _: None, live())


def prepare_console(folder: Path) -> None:
    """Write the settings, the plugin and the history of a demo with a console into a folder."""
    (folder / "config.toml").write_text(CONSOLE_CONFIG, encoding="utf-8")
    (folder / "demo_sinks.py").write_text(CONSOLE_PLUGIN, encoding="utf-8")
    settings = load({"RECEIVER_CONFIG": str(folder / "config.toml")}, secret_required=False)
    with contextlib.closing(open_registry(settings)) as registry:
        fold_history(registry, datetime.now(UTC))


def push_heartbeats(url: str, secret: str, sensor: Simulator, minutes_ago: Sequence[int]) -> int:
    """Push heartbeats of a sensor that happened before: time runs faster in a demo. Returns how many."""
    pusher, now = Pusher(url, secret), datetime.now(UTC)
    for minutes in minutes_ago:
        pusher.push(sensor.body("temperature", now - timedelta(minutes=minutes)))
    return len(minutes_ago)


def show_incident(url: str, secret: str, freezer: Simulator, folder: Path, say: Say) -> None:
    """Show that one of the sensors has fallen silent, let it return, and show that it is heard again."""
    settings = load({"RECEIVER_CONFIG": str(folder / "config.toml")}, secret_required=False)
    with contextlib.closing(open_registry(settings)) as registry:
        opened = wait_for_incident(registry, is_open=True)
        say(f"\nAn incident was opened: {opened.reason}.")
        push_heartbeats(url, secret, freezer, RETURN)
        wait_for_incident(registry, is_open=False)
        say(f"It is closed: {FREEZER} is heard again.")


def wait_for_incident(registry: Registry, *, is_open: bool) -> Incident:
    """Wait until the incident of the freezer is open, or closed."""
    end = time.monotonic() + JUDGED_SECONDS
    while time.monotonic() < end:
        for incident in registry.incidents(10):
            if FREEZER in incident.sensors.values() and (incident.closed is None) == is_open:
                return incident
        time.sleep(0.1)
    raise ReceiverError("the receiver did not judge its sensors in time")


def push(
    url: str,
    secret: str,
    seconds: float,
    rate: float,
    show: Callable[[int], object],
    bodies: Iterator[bytes] | None = None,
) -> int:
    """Push events at a steady rate, and show once per second how many were accepted so far. Returns how many were."""
    pusher, bodies = Pusher(url, secret), bodies or Simulator().bodies()
    start = shown_at = time.monotonic()
    accepted = 0
    with contextlib.suppress(KeyboardInterrupt):
        while (now := time.monotonic()) < start + seconds:
            response = pusher.push(next(bodies))
            if response.status != 200:
                raise ReceiverError(f"the receiver responded {response.status} {response.text}")
            accepted += 1
            if now - shown_at >= 1:
                show(accepted)
                shown_at = now
            time.sleep(max(0.0, start + min(accepted / rate, seconds) - time.monotonic()))
    return accepted


@contextlib.contextmanager
def server(folder: Path, secret: str, more: Mapping[str, str] = MappingProxyType({})) -> Iterator[str]:
    """Run a receiver in a process of its own, with `more` variables in its environment; gives its URL."""
    environment = {
        **clean_environment(),
        SECRET: secret,
        "WEB_CONCURRENCY": "2",
        "RECEIVER_CONFIG": str(folder / "config.toml"),
        **more,
    }
    lifeline, server_end = socket.socketpair()  # the server stops when our end is closed, however the demo ends
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    descriptors = [str(each.fileno()) for each in (server_end, listener)]
    with server_end, listener, (folder / "stdout.txt").open("w") as out, (folder / "log.txt").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "receiver", "serve", "--lifeline", descriptors[0], "--listener", descriptors[1]],
            pass_fds=[server_end.fileno(), listener.fileno()],
            cwd=Path(__file__).parent.parent,
            env=environment,
            stdout=out,
            stderr=errors,
            start_new_session=True,
        )
    try:
        wait_until_up(url, process, folder / "log.txt")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        lifeline.close()


def clean_environment() -> dict[str, str]:
    """The environment without secrets, organizations, service account and database of another receiver."""
    foreign = (
        SECRET,
        ORGANIZATION_ID,
        ISSUER_URL,
        "DATABASE_URL",
        "DT_SERVICE_ACCOUNT",
        "DT_API_URL",
        "DT_TOKEN_URL",
        "CONSOLE_",
    )
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(foreign)}


def wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            if urllib3.request("GET", f"{url}/readyz", retries=False, timeout=2).status == 200:
                return
        time.sleep(0.05)
    raise ReceiverError(f"the receiver did not start; its log: {log.read_text(encoding='utf-8').strip()}")


def wait_until_delivered(url: str) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and any(pending for _, _, pending in sink_counts(metrics(url))):
        time.sleep(0.1)


def counts(url: str, pushed: int) -> str:
    """One line: events pushed and received, and deliveries of each sink."""
    page = metrics(url)
    received = metric_value(page, 'receiver_pushes_total{code="200",result="accepted"}')
    sinks = [f"{name}: {delivered} delivered, {pending} pending" for name, delivered, pending in sink_counts(page)]
    return "   ".join([f"pushed {pushed}, received {received}", *sinks])


def metrics(url: str) -> str:
    return urllib3.request("GET", f"{url}/metrics", retries=False, timeout=5).data.decode()


def metric_value(page: str, name: str) -> int:
    match = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    return int(float(match[1])) if match else 0


def sink_counts(page: str) -> list[tuple[str, int, int]]:
    """Name, delivered and pending of each sink. Events that are not routed yet count as pending."""
    unrouted = metric_value(page, "receiver_unrouted_events")
    names = re.findall(r'^receiver_pending_deliveries\{sink="([^"]+)"\}', page, re.MULTILINE)
    return [
        (
            name,
            metric_value(page, f'receiver_deliveries_total{{sink="{name}"}}'),
            metric_value(page, f'receiver_pending_deliveries{{sink="{name}"}}') + unrouted,
        )
        for name in names
    ]


def show_output(folder: Path, say: Say) -> None:
    """Show the end of what the sinks have written."""
    for name in ("stdout.txt", "events.csv"):
        say(f"\nThe last lines of {folder / name}:")
        for line in (folder / name).read_text(encoding="utf-8").splitlines()[-LAST_LINES:]:
            say(f"  {line}")
