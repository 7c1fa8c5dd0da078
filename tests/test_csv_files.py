"""Which file the csv sink writes to: one with its columns, of today, that no other sink or process is writing."""

from __future__ import annotations

import gc
import os
import socket
from datetime import timedelta

import pytest
import time_machine
from support.csv_archive import READINGS_HEADER, CsvArchive
from support.events import NOW, event
from support.processes import start_python

from receiver import Pause


def test_a_file_is_continued_after_a_restart(archive: CsvArchive) -> None:
    archive.open().deliver(event("e1"))
    archive.open().deliver(event("e2"))
    assert archive.ids() == ["e1", "e2"]
    assert archive.names() == ["events.csv"]


def test_other_columns_start_a_numbered_file_which_is_used_again(archive: CsvArchive) -> None:
    archive.open().deliver(event("e1"))
    first = archive.path.read_bytes()
    archive.open(columns=["time"]).deliver(event("e2"))
    archive.open(columns=["value"]).deliver(event("e3"))
    archive.open(columns=["time"]).deliver(event("e4"))
    assert archive.path.read_bytes() == first
    assert archive.names() == ["events-2.csv", "events-3.csv", "events.csv"]
    assert (archive.ids("events-2.csv"), archive.ids("events-3.csv")) == (["e2", "e4"], ["e3"])
    archive.open().deliver(event("e5"))
    assert archive.ids() == ["e1", "e5"]


@pytest.mark.parametrize("content", [b"a,b\r\n1,2\r\n", b"\x89PNG", b"\n", READINGS_HEADER.encode() + b"\n"], ids=ascii)
def test_a_file_of_another_program_is_not_changed(content: bytes, archive: CsvArchive) -> None:
    archive.path.write_bytes(content)
    archive.open().deliver(event("e1"))
    assert archive.path.read_bytes() == content
    assert archive.ids("events-2.csv") == ["e1"]


def test_a_new_file_is_started_when_the_file_was_renamed(archive: CsvArchive) -> None:
    archive.open().deliver(event("e1"))
    archive.path.rename(archive.folder / "rotated")
    archive.deliver(event("e2"))
    assert (archive.ids("rotated"), archive.ids()) == (["e1"], ["e2"])


def test_a_new_file_is_started_when_its_folder_was_removed(archive: CsvArchive) -> None:
    archive.open(path="deep/events.csv").deliver(event("e1"))
    for path in (archive.folder / "deep").iterdir():
        path.unlink()
    (archive.folder / "deep").rmdir()
    archive.deliver(event("e2"))
    assert archive.ids("deep/events.csv") == ["e2"]


def test_a_numbered_file_is_started_when_another_one_has_replaced_the_file(archive: CsvArchive) -> None:
    archive.open().deliver(event("e1"))
    archive.path.rename(archive.folder / "rotated")
    archive.path.write_bytes(b"not,ours\r\n")
    archive.deliver(event("e2"))
    assert archive.path.read_bytes() == b"not,ours\r\n"
    assert archive.ids("events-2.csv") == ["e2"]


def test_a_file_that_was_truncated_in_place_gets_its_header_again(archive: CsvArchive) -> None:
    archive.open().deliver(event("e1"))
    os.truncate(archive.path, 0)
    archive.deliver(event("e2"))
    assert archive.path.read_bytes().startswith(READINGS_HEADER.encode())
    assert archive.ids() == ["e2"]


def test_a_date_in_the_path_starts_a_new_file_each_day(archive: CsvArchive) -> None:
    archive.open(path="{date}/events-{date}.csv")
    for hours in (0, 11.99, 12, 36):
        with time_machine.travel(NOW + timedelta(hours=hours), tick=False):
            archive.deliver(event(f"e{hours:g}".replace(".", "-")))
    assert archive.ids("2026-03-14/events-2026-03-14.csv") == ["e0", "e11-99"]
    assert archive.ids("2026-03-15/events-2026-03-15.csv") == ["e12"]
    assert archive.ids("2026-03-16/events-2026-03-16.csv") == ["e36"]


def test_a_daily_file_that_cannot_be_created_is_created_once_it_can_be(archive: CsvArchive) -> None:
    archive.open(path="{date}/events.csv")
    with time_machine.travel(NOW, tick=False):
        archive.deliver(event("e1"))
    obstacle = archive.folder / "2026-03-15"
    obstacle.touch()
    with time_machine.travel(NOW + timedelta(days=1), tick=False):
        with pytest.raises(OSError, match="2026-03-15"):
            archive.deliver(event("e2"))
        with (archive.folder / "unrelated").open("wb", buffering=0) as other:
            with pytest.raises(OSError, match="2026-03-15"):
                archive.deliver(event("e2"), attempt=2)
            assert other.write(b"still open") == 10
        obstacle.unlink()
        archive.deliver(event("e2"), attempt=3)
    assert (archive.ids("2026-03-14/events.csv"), archive.ids("2026-03-15/events.csv")) == (["e1"], ["e2"])


def test_a_path_that_is_a_folder_is_an_error_and_nothing_is_created(archive: CsvArchive) -> None:
    archive.path.mkdir()
    with pytest.raises(IsADirectoryError, match=r"^path .*/events\.csv is a folder; it must be a file$"):
        archive.open()
    assert list(archive.folder.iterdir()) == [archive.path]


HOLD_THE_FILE = """
import sys
from pathlib import Path
from support.csv_archive import CsvArchive

CsvArchive(Path(sys.argv[1])).open()
print("open", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_paused_and_names_the_first_until_that_ends(archive: CsvArchive) -> None:
    with start_python(HOLD_THE_FILE, archive.folder) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "open\n"
        with pytest.raises(Pause) as pause:
            archive.open()
        assert str(pause.value) == f"{archive.path} is in use by process {first.pid} on {socket.gethostname()}"
        assert not archive.path.exists()
        first.kill()
    archive.open().deliver(event("e1"))
    assert archive.ids() == ["e1"]


def test_a_second_sink_of_the_same_process_is_paused(archive: CsvArchive) -> None:
    archive.open()
    gc.collect()  # or files of earlier tests may be closed below
    second, open_files = CsvArchive(archive.folder), len(os.listdir("/dev/fd"))
    for _ in range(3):
        with pytest.raises(Pause) as pause:
            second.open()
    assert len(os.listdir("/dev/fd")) == open_files
    assert str(pause.value) == (
        f"{archive.path} is in use by another sink of this receiver; give each sink a path of its own"
    )


def test_a_file_that_cannot_be_repaired_leaves_nothing_open(archive: CsvArchive) -> None:
    archive.open().deliver(event("e1"))
    archive.close()
    with archive.path.open("ab") as file:
        file.write(b"e2,torn")
    gc.collect()
    torn, open_files = archive.folder / "events.csv.torn", len(os.listdir("/dev/fd"))
    torn.mkdir()
    for _ in range(3):
        with pytest.raises(IsADirectoryError):
            archive.open()
    assert len(os.listdir("/dev/fd")) == open_files
    torn.rmdir()
    archive.open().deliver(event("e3"))
    assert archive.ids() == ["e1", "e3"]
