"""Commands whose standard input, output or error is closed: nothing else gets their descriptors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import StartReceiver, wait_until
from support.processes import ENVIRONMENT

from receiver.testing.running import CSV_ONLY, ROOT

SHOW_DESCRIPTORS = """
import json, os, sys
from receiver.__main__ import open_closed_descriptors

open_closed_descriptors()
print("for nobody, or for the reader")
print("for nobody, or for the log", file=sys.stderr)
sys.stdin.read()
found = [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in range(3)]
next_file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
inherited = [os.get_inheritable(descriptor) for descriptor in range(3)]
os.write(next_file, json.dumps([found, next_file > 2, inherited]).encode())
"""


@pytest.mark.parametrize(
    "closed", ["0<&-", "1>&-", "2>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-", "0<&- 2>&-", ""], ids=lambda text: text or "none"
)
def test_what_is_closed_is_opened_on_dev_null_and_the_rest_stays(closed: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["sh", "-c", f'exec "$0" -c "$1" "$2" {closed}', sys.executable, SHOW_DESCRIPTORS, str(out)]
    run = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, input=b"", timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    links, is_other, inherited = json.loads(out.read_bytes())
    assert [link == os.devnull for link in links] == [f"{number}{sign}" in closed for number, sign in enumerate("<>>")]
    assert (is_other, inherited) == (True, [True] * 3)


@pytest.mark.parametrize("closed", ["2>&-", "1>&-", "0<&- 1>&- 2>&-"])
def test_a_receiver_without_standard_descriptors_delivers(closed: str, start_receiver: StartReceiver) -> None:
    receiver = start_receiver(CSV_ONLY)
    assert receiver.stop() == 0
    receiver.command = ["sh", "-c", f'exec "$0" "$@" {closed}', *receiver.command]
    receiver.start()
    status, text = receiver.push(b'{"event":{"eventId":"e1","eventType":"touch","data":{}}}')
    assert (status, text.strip()) == (200, "accepted")
    wait_until(lambda: receiver.rows(), what="the row of the event")
    assert [row["event_id"] for row in receiver.rows()] == ["e1"]
    assert receiver.stop() == 0


@pytest.mark.parametrize("command", ["check", "migrate", "sinks", "status"])
def test_a_command_without_standard_descriptors_ends_as_with_them(command: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CSV_ONLY)
    environment = {
        **ENVIRONMENT,
        "DT_SIGNATURE_SECRET": "0123456789abcdefghij",
        "RECEIVER_CONFIG": str(tmp_path / "config.toml"),
    }
    shell = ["sh", "-c", f'exec "$0" -m receiver {command} 0<&- 1>&- 2>&-', sys.executable]
    assert subprocess.run(shell, cwd=ROOT, env=environment, timeout=60, check=False).returncode == 0
