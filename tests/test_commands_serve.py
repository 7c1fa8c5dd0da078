"""`serve`: each reason why it does not start, in one line; and it starts with broken sinks, which are paused."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import urllib3
from click.testing import CliRunner
from conftest import ROOT, THERE_ARE, RunningReceiver, StartReceiver, wait_until
from support.commands import BROKEN_PLUGIN, CONSOLE, MISSING_SECRET, PLUGIN, STRONG_SECRET, Operator, Shell

from receiver.commands.main import main
from receiver.event import event_id
from receiver.signature import sign
from receiver.simulator import Simulator
from receiver.testing.ports import reserve_port
from receiver.testing.running import CSV_ONLY
from receiver.variables import SECRET


@pytest.mark.parametrize(
    ("config", "environment", "error"),
    [
        pytest.param(CONSOLE, {SECRET: ""}, MISSING_SECRET, id="empty secret"),
        pytest.param(
            CONSOLE,
            {SECRET: os.fsdecode(b"\xff\xfe-not-utf-8")},
            "environment: DT_SIGNATURE_SECRET is not UTF-8; set it to a signature secret as DT shows it",
            id="secret that is not UTF-8",
        ),
        pytest.param(
            CONSOLE,
            {SECRET: None, f"{SECRET}__OLD": STRONG_SECRET},
            MISSING_SECRET,
            id="only an older secret",
        ),
        pytest.param(
            None,
            {},
            "{folder}/config.toml: no such file; start in the folder of your config.toml, "
            "or name the file in RECEIVER_CONFIG",
            id="no config.toml",
        ),
        pytest.param(CONSOLE, {"RECEIVER_CONFIG": "/dev"}, "/dev: cannot be read: Is a directory", id="folder"),
        pytest.param(
            "[receiver\n",
            {},
            "config.toml: not valid TOML: Expected ']' at the end of a table declaration (at line 1, column 10)",
            id="invalid TOML",
        ),
        pytest.param(
            "[receiver]\nmax_body_byte = 4\n",
            {},
            "config.toml [receiver]: no option 'max_body_byte' (did you mean 'max_body_bytes'?)",
            id="misspelt key",
        ),
        pytest.param(CONSOLE, {"PORT": "http"}, "environment: PORT must be a whole number from 1 to 65535", id="port"),
    ],
)
def test_serve_starts_nothing_when_its_settings_are_invalid(
    config: str | None,
    environment: dict[str, str | None],
    error: str,
    operator: Operator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("receiver.server.serve", lambda *given: pytest.fail(f"it started with {given}"))
    (operator.folder / "config.toml").unlink()
    if config is not None:
        operator.configure(config)
    assert operator.run("serve", **environment) == (1, [], [f"error: {error.format(folder=operator.folder)}"])


@pytest.mark.parametrize(
    ("config", "environment", "error"),
    [
        pytest.param(
            f"[journal]\npath = 'file/journal.sqlite'\n{CONSOLE}",
            {},
            "journal {folder}/file/journal.sqlite: {reason}; make it writable or set another [journal] path",
            id="journal under a file",
        ),
        pytest.param(
            f"[receiver]\nhost = '127.0.0..1'\n{CONSOLE}",
            {},
            "cannot listen on 127.0.0..1 port {port}: {reason}",
            id="no such host",
        ),
        pytest.param(
            CONSOLE,
            {"DT_CREDENTIALS_FILE": "/nowhere"},
            "the DT client library cannot be imported (FileNotFoundError); "
            "if DT_CREDENTIALS_FILE is set, unset it: the receiver does not need it",
            id="credentials file",
        ),
    ],
)
def test_serve_reports_in_one_line_why_it_cannot_start(
    config: str, environment: dict[str, str], error: str, shell: Shell
) -> None:
    (shell.folder / "file").touch()
    shell.configure(config)
    port = str(reserve_port())
    code, out, errors = shell.run("serve", **{"PORT": port, **environment})
    line = f"error: {error}".replace("{folder}", str(shell.folder)).replace("{port}", port)
    expected = ".+".join(re.escape(part) for part in line.split("{reason}"))
    assert (code, out, len(errors)) == (1, [], 1)
    assert re.fullmatch(expected, errors[0]), errors[0]
    assert shell.orphans == []


def test_serve_reports_a_port_that_is_in_use(shell: Shell) -> None:
    shell.configure(f"[receiver]\nhost = '127.0.0.1'\n{CONSOLE}")
    with socket.create_server(("127.0.0.1", 0)) as in_use:
        port = in_use.getsockname()[1]
        code, out, errors = shell.run("serve", PORT=str(port))
    assert (code, out, len(errors)) == (1, [], 1)
    assert re.fullmatch(
        rf"error: cannot listen on 127\.0\.0\.1 port {port}: Address already in use.*; "
        "stop the program that uses it, or set PORT to another one",
        errors[0],
    )
    assert shell.orphans == []
    assert [path.name for path in shell.folder.iterdir() if path.name.startswith("receiver-")] == []


def test_serve_reports_an_address_of_another_machine(shell: Shell) -> None:
    shell.configure(f"[receiver]\nhost = '192.0.2.1'\n{CONSOLE}")
    port = reserve_port()
    code, out, errors = shell.run("serve", PORT=str(port))
    assert (code, out, len(errors)) == (1, [], 1)
    assert re.fullmatch(
        rf"error: cannot listen on 192\.0\.2\.1 port {port}: Cannot assign requested address.*; "
        r"set \[receiver\] host to an address of this machine",
        errors[0],
    )


@contextmanager
def serving_on(listener: socket.socket, shell: Shell, **environment: str) -> Iterator[None]:
    """`serve` in a process of its own that was given a bound socket."""
    with (shell.folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "receiver", "serve", "--listener", str(listener.fileno())],
            cwd=shell.folder,
            env={**shell.environment, "WEB_CONCURRENCY": "1", **environment},
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def test_serve_listens_on_a_socket_that_it_was_given_in_place_of_host_and_port(shell: Shell) -> None:
    shell.configure(f"[receiver]\nhost = '127.0.0.1'\ndeliver = false\n{CONSOLE}")
    body = Simulator().body("touch")
    with socket.create_server(("127.0.0.1", 0)) as in_use, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with serving_on(listener, shell, PORT=str(in_use.getsockname()[1])):
            response = urllib3.request(
                "POST",
                f"http://127.0.0.1:{port}/",
                body=body,
                headers=sign(body, STRONG_SECRET, time.time()),
                retries=False,
                timeout=30,  # until the server accepts connections, they wait in the socket's queue
            )
    assert (response.status, response.data) == (200, b"accepted")
    assert f"receiving on 127.0.0.1 port {port}\n" in (shell.folder / "log.txt").read_text()


def test_options_for_programs_that_start_serve_are_not_in_its_help() -> None:
    shown = CliRunner().invoke(main, ["serve", "--help"]).output
    assert re.findall(r"--\w+", shown) == ["--help"]


CONFIG_WITH_BROKEN_SINKS = """
[receiver]
plugins = ["{plugin}"]
[sinks.archive]
type = "csv"
path = "archive.csv"
[sinks.broken]
type = "mine"
path = "broken.txt"
[sinks.misspelt]
type = "csv"
pth = "misspelt.csv"
[sinks.unknown]
type = "cvs"
path = "unknown.csv"
"""


def test_broken_sinks_are_paused_and_get_their_events_once_the_configuration_is_fixed(
    start_receiver: StartReceiver, tmp_path: Path
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(BROKEN_PLUGIN)
    config = CONFIG_WITH_BROKEN_SINKS.format(plugin=plugin)
    receiver = start_receiver(config, WEB_CONCURRENCY="1")

    bodies = [Simulator(seed).body("touch") for seed in range(5)]
    ids = {event_id(body) for body in bodies}
    assert [receiver.push(body) for body in bodies] == [(200, "accepted")] * 5
    wait_until(lambda: len(receiver.rows("archive.csv")) == 5)
    for name in ("broken", "misspelt", "unknown"):
        assert receiver.metric(f'receiver_pending_deliveries{{sink="{name}"}}') == 5
        assert receiver.metric(f'receiver_deliveries_total{{sink="{name}"}}') == 0
    ready = receiver.http.request("GET", f"{receiver.url}/readyz")
    known = f"{THERE_ARE}; 1 plugin could not be loaded"
    assert (ready.status, ready.json()["ready"], ready.json()["errors"]) == (200, True, [])
    assert sorted(ready.json()["warnings"]) == [
        f"sink broken is paused: config.toml [sinks.broken]: no sink type 'mine'; {known}",
        "sink misspelt is paused: config.toml [sinks.misspelt]: option 'path' is missing; "
        "config.toml [sinks.misspelt]: no option 'pth' (did you mean 'path'?)",
        f"sink unknown is paused: config.toml [sinks.unknown]: no sink type 'cvs' (did you mean 'csv'?); {known}",
    ]
    assert receiver.stop() == 0
    assert "Traceback" not in receiver.log

    plugin.write_text(PLUGIN)
    receiver.configure(config.replace("pth", "path").replace("cvs", "csv"))
    receiver.start()
    for name in ("misspelt", "unknown"):
        wait_until(lambda name=name: {row["event_id"] for row in receiver.rows(f"{name}.csv")} == ids)  # type: ignore[misc]
    written = receiver.folder / "broken.txt"
    wait_until(lambda: written.exists() and set(written.read_text().split()) == ids)
    wait_until(lambda: not receiver.http.request("GET", f"{receiver.url}/readyz").json()["warnings"])
    assert len(receiver.rows("archive.csv")) == 5


def test_a_closed_terminal_stops_the_receiver_like_sigterm(start_receiver: StartReceiver) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever started the tests may ignore it
    try:
        receiver = start_receiver()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert receiver.push(Simulator().body("touch")) == (200, "accepted")
    assert receiver.process is not None
    os.killpg(receiver.process.pid, signal.SIGHUP)
    assert receiver.process.wait(30) == 0
    assert "stopping on SIGHUP" in receiver.log
    assert "Traceback" not in receiver.log
    assert len(receiver.rows()) == 1


def test_serve_receives_and_starts_again_after_its_current_folder_was_removed(tmp_path: Path) -> None:
    (current := tmp_path / "current").mkdir()
    receiver = RunningReceiver(tmp_path, CSV_ONLY, None, {"PYTHONPATH": str(ROOT)})
    receiver.command = ["sh", "-c", f'cd {current} && rmdir {current} && exec "$@"', "sh", *receiver.command]
    try:
        receiver.start()
        (intake,) = set(receiver.pids()["children"]) - {receiver.dispatcher}
        workers = [psutil.Process(pid) for pid in receiver.pids()["workers"]]
        os.kill(intake, signal.SIGKILL)
        psutil.wait_procs(workers, 60)  # they respond to some requests before they end
        wait_until(lambda: set(receiver.pids()["children"]) - {intake, receiver.dispatcher}, what="intake again")
        wait_until(lambda: receiver.is_ok("/readyz"))
        assert receiver.push(Simulator().body("touch")) == (200, "accepted")
    finally:
        receiver.kill_all()


@pytest.mark.parametrize(
    "variables",
    [{"SCRIPT_NAME": "/app"}, {"FORWARDED_ALLOW_IPS": "proxy"}, {"GUNICORN_PID": "1", "GUNICORN_FD": "0"}],
    ids=str,
)
def test_variables_for_another_gunicorn_are_ignored(variables: dict[str, str], start_receiver: StartReceiver) -> None:
    receiver = start_receiver(**variables)
    assert receiver.push(Simulator().body("touch")) == (200, "accepted")
