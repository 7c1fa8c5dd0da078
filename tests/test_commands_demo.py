"""`demo` runs a receiver with simulated sensors, and leaves files and no processes."""

from __future__ import annotations

import csv
import re
import tempfile
from pathlib import Path

import pytest
import urllib3
from support.commands import Shell, living_processes

from receiver.demo import HEARTBEATS, RETURN, run_console
from receiver.demo_fleet import fleet
from receiver.sensors.minutes import Minutes, learn_interval
from receiver.variables import SECRET


def test_the_demo_runs_in_any_folder_and_leaves_what_its_sinks_wrote(shell: Shell) -> None:
    code, out, errors = shell.run("demo", "--seconds", "1.5", "--rate", "10", **{SECRET: "not-that-of-the-demo"})
    assert (code, errors) == (0, [])
    *while_pushing, counts = [line for line in out if line.startswith("pushed ")]
    for line in while_pushing:
        pushed, received = map(int, re.findall(r"\d+", line)[:2])
        assert received <= pushed
    found = re.match(r"pushed (\d+), received (\d+)   ", counts)
    assert found
    assert found[1] == found[2]
    number = int(found[1])
    assert len(HEARTBEATS) + 1 <= number <= len(HEARTBEATS) + 16
    assert f"archive: {number} delivered, 0 pending" in counts
    assert f"console: {number} delivered, 0 pending" in counts

    assert out[-2].startswith("An incident was opened: Freezer 1 has not been heard since ")
    assert out[-1] == "It is closed: Freezer 1 is heard again."

    shown = next(line for line in out if line.endswith("events.csv:"))
    path = Path(shown.removeprefix("The last lines of ").removesuffix(":"))
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({row["event_id"] for row in rows}) == number + 2
    assert path.parent.parent == shell.folder
    assert len((path.parent / "stdout.txt").read_text(encoding="utf-8").splitlines()) == number + 2
    assert "Traceback" not in (path.parent / "log.txt").read_text(encoding="utf-8")
    assert [pid for pid, _ in living_processes() if str(path.parent) in environment_of(pid)] == []


def test_the_demo_with_a_console_prints_its_address_and_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pages: list[str] = []
    said: list[str] = []

    def open_it(line: str) -> None:
        said.append(line)
        if found := re.search(r"Open (\S+/console/) .*user +admin +password +(\S+)", " ".join(line.split())):
            headers = urllib3.make_headers(basic_auth=f"admin:{found[2]}")
            response = urllib3.request("GET", f"{found[1]}sensors", headers=headers, retries=False, timeout=60)
            pages.append(response.data.decode())

    run_console(0.5, 30, open_it)
    (page,) = pages
    assert said[-1].startswith("A fleet pushes signed events, 30 per second; the journal is in ")
    assert len(re.findall(r'<tr id="s-emudemo', page)) == len(fleet())
    assert page.count('<svg class="spark"') == len(fleet())


def environment_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


@pytest.mark.parametrize("minutes", range(11))
def test_the_freezer_of_the_demo_is_heard_every_15_minutes_however_long_the_demo_runs(minutes: int) -> None:
    """Its heartbeats are pushed at the start, its return at the end; a longer gap must not become its interval."""
    heard = Minutes()
    for ago in [*HEARTBEATS, *(each - minutes for each in RETURN)]:
        heard |= Minutes(1000 - ago, 1)
    assert learn_interval(heard, []) == 15
