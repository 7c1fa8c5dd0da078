"""The csv sink after crashes, failed writes and repeated deliveries: no row is lost, incomplete or written twice."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import time_machine
from support.built_in_sinks import open_sink
from support.csv_archive import READINGS_HEADER, CsvArchive, build_csv, raise_disk_full
from support.events import NOW, event, temperature
from support.processes import run_python

from receiver.event import Event
from receiver.testing.running import wait_until

TEXT_OF_SEVERAL_LINES = 'first\r\nlast,"quoted"\r\n\r\n'


@pytest.mark.parametrize(
    "last",
    [
        pytest.param(partial(event, "e3", labels={"name": TEXT_OF_SEVERAL_LINES}), id="cell of several lines"),
        pytest.param(partial(temperature, "e3", 1, 2, 3), id="event of several rows"),
    ],
)
def test_an_event_cut_short_at_any_byte_is_completed_and_no_row_is_repeated(
    last: Callable[[], Event], tmp_path: Path, archive: CsvArchive
) -> None:
    columns = ["device_name", "value"]
    events = [temperature("e1", 7, 8), event("e2", labels={"name": "a\nb"})]
    archive.open(columns=columns).deliver(*events)
    before = len(archive.path.read_bytes())
    archive.deliver(last())
    complete, rows = archive.path.read_bytes(), archive.rows()
    for length in range(before, len(complete) + 1):
        (tmp_path / str(length)).mkdir()
        crashed = CsvArchive(tmp_path / str(length))
        crashed.path.write_bytes(complete[:length])
        crashed.open(columns=columns).deliver(*events, last(), attempt=2)
        crashed.close()
        assert crashed.rows() == rows, complete[before:length]
        torn = crashed.folder / "events.csv.torn"
        moved = torn.read_bytes().removesuffix(b"\n") if torn.exists() else b""
        assert moved == complete[length - len(moved) : length]


def test_an_incomplete_last_row_is_moved_to_another_file_and_logged(
    archive: CsvArchive, caplog: pytest.LogCaptureFixture
) -> None:
    archive.open().deliver(event("e1"))
    archive.path.write_bytes(archive.path.read_bytes() + b'e2,2026-03,"half a lab')
    archive.open().deliver(event("e3"))
    assert archive.ids() == ["e1", "e3"]
    assert (archive.folder / "events.csv.torn").read_bytes() == b'e2,2026-03,"half a lab\n'
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("sink.tested", f"the incomplete last row of {archive.path} was moved to {archive.path}.torn")
    ]


def test_a_header_cut_short_at_any_byte_is_written_again(tmp_path: Path) -> None:
    header = f"{READINGS_HEADER}\r\n".encode()
    for length in range(len(header)):
        (tmp_path / str(length)).mkdir()
        archive = CsvArchive(tmp_path / str(length))
        archive.path.write_bytes(header[:length])
        archive.open().deliver(event("e1"))
        archive.close()
        assert archive.path.read_bytes().startswith(header)
        assert archive.ids() == ["e1"]


def test_an_event_cut_short_in_a_file_with_other_columns_is_written_again_to_the_new_file(archive: CsvArchive) -> None:
    complete, cut_short = temperature("complete", 1, 2), temperature("cut-short", *range(5))
    archive.open().deliver(complete, cut_short)
    lines = archive.path.read_bytes().splitlines(keepends=True)
    archive.path.write_bytes(b"".join(lines[:6]) + lines[6][:14])
    assert archive.ids() == ["complete"] * 2 + ["cut-short"] * 4
    archive.open(columns=["time", "value"]).deliver(complete, cut_short, attempt=2)
    assert archive.names() == ["events-2.csv", "events.csv", "events.csv.torn"]
    assert [(row["event_id"], row["value"]) for row in archive.rows("events-2.csv")] == [
        ("cut-short", str(number)) for number in range(5)
    ]
    archive.open(columns=["time", "value"]).deliver(complete, cut_short, attempt=3)
    assert archive.ids("events-2.csv") == ["cut-short"] * 5


FULL_DISK = """
import json, os, resource, signal, sys
from pathlib import Path
from support.csv_archive import CsvArchive
from support.events import event, temperature

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
archive = CsvArchive(Path(sys.argv[1])).open()
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
found = {}

def size():
    return sum(path.stat().st_size for path in archive.folder.glob("*.csv"))

def open_files():
    return len(os.listdir("/proc/self/fd"))

def deliver_with_room_for(bytes, *events):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size() + bytes, unlimited[1]))
    errors = []
    for _ in range(20):
        try:
            archive.deliver(*events)
        except OSError as error:
            errors.append(error.errno)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    return errors
"""
FULL_WHILE_ROWS_ARE_WRITTEN = """
archive.deliver(event("e1"))
before, open_before = archive.path.read_bytes(), open_files()
found["errors"] = deliver_with_room_for(100, temperature("e2", 1, 2, 3))
found["unchanged"] = archive.path.read_bytes() == before
archive.deliver(temperature("e2", 1, 2, 3), attempt=2)
found["leaked"] = open_files() - open_before
"""
FULL_WHILE_THE_HEADER_IS_WRITTEN = """
open_before = open_files()
found["errors"] = deliver_with_room_for(10, event("e1"))
found["unchanged"] = size() == 0
found["leaked"] = open_files() - open_before
archive.deliver(event("e1"), attempt=2)
"""
PRINT_WHAT_WAS_FOUND = "print(json.dumps({**found, 'ids': archive.ids()}))"


@pytest.mark.parametrize(
    ("code", "ids"),
    [(FULL_WHILE_ROWS_ARE_WRITTEN, ["e1", "e2", "e2", "e2"]), (FULL_WHILE_THE_HEADER_IS_WRITTEN, ["e1"])],
    ids=["rows", "header"],
)
def test_a_full_disk_leaves_the_file_unchanged_and_delivery_continues_when_there_is_room(
    code: str, ids: list[str], tmp_path: Path
) -> None:
    """In a process whose files cannot grow, which is what a full disk is like."""
    run = run_python(FULL_DISK + code + PRINT_WHAT_WAS_FOUND, tmp_path)
    assert (run.returncode, run.stderr) == (0, b"")
    assert json.loads(run.stdout) == {"errors": [errno.EFBIG] * 20, "unchanged": True, "leaked": 0, "ids": ids}


@pytest.mark.parametrize("failing", ["write", "fdatasync"])
def test_rows_that_did_not_reach_the_disk_are_removed_again(
    failing: str, archive: CsvArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.open().deliver(event("e1"))
    before = archive.path.read_bytes()
    write = os.write
    calls: list[int] = []

    def write_half_then_fail(descriptor: int, data: Any) -> int:
        calls.append(descriptor)
        if len(calls) > 1:
            raise_disk_full(descriptor)
        return write(descriptor, data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, write_half_then_fail if failing == "write" else raise_disk_full)
        with pytest.raises(OSError, match="No space left"):
            archive.deliver(event("e2"))
    assert archive.path.read_bytes() == before
    archive.deliver(event("e2"), attempt=2)
    assert archive.ids() == ["e1", "e2"]


def test_a_row_is_never_appended_to_an_incomplete_one_that_could_not_be_removed(
    archive: CsvArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.open().deliver(event("e1"))
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: raise_disk_full(write(descriptor, data[:10])))
        patch.setattr(os, "ftruncate", raise_disk_full)
        with pytest.raises(OSError, match="No space left"):
            archive.deliver(event("e2"))
    archive.deliver(event("e2"), attempt=2)
    assert archive.ids() == ["e1", "e2"]


@pytest.mark.parametrize("attempt", [1, 2], ids=["one by one after a batch", "later"])
def test_complete_rows_that_could_not_be_removed_are_not_written_again(
    attempt: int, archive: CsvArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.open().deliver(event("e1"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", raise_disk_full)
        patch.setattr(os, "ftruncate", raise_disk_full)
        with pytest.raises(OSError, match="No space left"):
            archive.deliver(event("e2"), temperature("e3", 1, 2))
    archive.deliver(event("e2"), attempt=attempt)
    archive.deliver(temperature("e3", 1, 2), attempt=attempt)
    assert archive.ids() == ["e1", "e2", "e3", "e3"]
    archive.deliver(event("e2"))  # a replay
    assert archive.ids() == ["e1", "e2", "e3", "e3", "e2"]


@pytest.mark.parametrize("restarts", [False, True], ids=["the same process", "after a restart"])
def test_rows_that_an_attempt_without_a_record_has_left_are_flushed_before_they_count_as_delivered(
    restarts: bool, archive: CsvArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wrote them may have been killed before it flushed them."""
    archive.open().deliver(event("e1"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", raise_disk_full)
        patch.setattr(os, "fdatasync", raise_disk_full)
        with pytest.raises(OSError, match="No space left"):
            archive.deliver(event("e2"))
    if restarts:
        archive.open()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", raise_disk_full)
        with pytest.raises(OSError, match="No space left"):
            archive.deliver(event("e2"), attempt=2)
    archive.deliver(event("e2"), attempt=3)
    assert archive.ids() == ["e1", "e2"]


def test_a_batch_is_one_write_and_flushed_before_it_counts_as_delivered(
    archive: CsvArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.open().deliver(event("e1"))
    calls: list[tuple[str, int]] = []
    write, flush = os.write, os.fdatasync

    def recorded_write(descriptor: int, data: Any) -> int:
        calls.append(("write", len(data)))
        return write(descriptor, data)

    def recorded_flush(descriptor: int) -> None:
        calls.append(("flush", os.fstat(descriptor).st_size))
        flush(descriptor)

    before = archive.path.stat().st_size
    monkeypatch.setattr(os, "write", recorded_write)
    monkeypatch.setattr(os, "fdatasync", recorded_flush)
    archive.deliver(*[temperature(f"e{number}", *range(30)) for number in range(2, 50)])
    after = archive.path.stat().st_size
    assert calls == [("write", after - before), ("flush", after)]


def test_short_writes_still_make_complete_rows(archive: CsvArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    archive.open().deliver(event("e1"), temperature("e2", 1, 2))
    assert archive.ids() == ["e1", "e2", "e2"]


def test_a_repeated_event_is_not_written_again(archive: CsvArchive) -> None:
    archive.open().deliver(event("e1"), temperature("e2", *range(30)))
    archive.deliver(event("e1"), temperature("e2", *range(30)), event("e3"), attempt=2)
    assert archive.ids() == ["e1", *["e2"] * 30, "e3"]


def test_a_batch_can_mix_first_and_later_attempts(tmp_path: Path) -> None:
    sink = open_sink(build_csv(tmp_path))
    sink.hook.deliver_batch(events=[event("e1"), event("e2")], attempts=[1, 1])
    sink.hook.deliver_batch(events=[event("e1"), event("e2"), event("e3")], attempts=[2, 1, 3])
    sink.hook.close()
    assert CsvArchive(tmp_path).ids() == ["e1", "e2", "e2", "e3"]


def test_the_first_attempt_of_a_replay_is_written_again(archive: CsvArchive) -> None:
    archive.open().deliver(event("e1"))
    archive.deliver(event("e1"))
    assert archive.ids() == ["e1", "e1"]


def test_a_replay_whose_first_attempt_fails_is_written_by_the_second(
    archive: CsvArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.open().deliver(event("e1"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", raise_disk_full)
        with pytest.raises(OSError, match="No space left"):
            archive.deliver(event("e1"))
    archive.deliver(event("e1"), attempt=2)
    assert archive.ids() == ["e1", "e1"]


@pytest.mark.parametrize(("written", "repeated"), [("abc", "abcd"), ("abcd", "abc"), ("abc-", "abc"), ("ABC", "abc")])
def test_a_similar_event_id_is_not_mistaken_for_the_repeated_one(
    written: str, repeated: str, archive: CsvArchive
) -> None:
    archive.open().deliver(event(written))
    archive.deliver(event(repeated), attempt=2)
    assert archive.ids() == [written, repeated]


@pytest.mark.parametrize("label", ["x\r\ne2,", "e2,e2\ne2,e2\r\ne2,x", '"\r\ne2,"', 'x"\r\ne2,\r\n"', "e2"], ids=ascii)
def test_an_event_id_inside_a_label_is_not_mistaken_for_a_row(label: str, archive: CsvArchive) -> None:
    archive.open(columns=["device_name", "labels"]).deliver(event("e1", labels={"name": label}))
    archive.deliver(event("e2"), attempt=2)
    assert archive.ids() == ["e1", "e2"]


def test_a_repeated_event_is_looked_up_in_files_of_earlier_days(archive: CsvArchive) -> None:
    archive.open(path="{date}.csv")
    with time_machine.travel(NOW, tick=False):
        repeated = event("e1")
        archive.deliver(repeated)
    with time_machine.travel(NOW + timedelta(days=2), tick=False):
        archive.deliver(repeated, event("e2"), attempt=2)
    assert (archive.ids("2026-03-14.csv"), archive.ids("2026-03-16.csv")) == (["e1"], ["e2"])


def test_repeated_events_are_looked_up_in_files_with_other_columns(archive: CsvArchive) -> None:
    archive.open().deliver(event("e1"))
    archive.open(columns=["time"]).deliver(event("e2"))
    archive.open(columns=["value"]).deliver(event("e1"), event("e2"), event("e3"), attempt=2)
    assert (archive.ids(), archive.ids("events-2.csv"), archive.ids("events-3.csv")) == (["e1"], ["e2"], ["e3"])


def test_a_repeated_event_is_looked_up_in_the_current_file_when_the_first_one_was_moved_away(
    archive: CsvArchive,
) -> None:
    archive.open().deliver(event("e1"))
    archive.open(columns=["time"]).deliver(event("e2"))
    archive.path.rename(archive.folder / "old")
    archive.deliver(event("e2"), attempt=2)
    assert archive.ids("events-2.csv") == ["e2"]


def test_an_event_twice_in_one_batch_is_written_once(archive: CsvArchive) -> None:
    archive.open().deliver(event("e1"), event("e2"), event("e1"))
    assert archive.ids() == ["e1", "e2"]


def test_batches_are_appended_in_their_order(archive: CsvArchive) -> None:
    events = [temperature(f"e{number}", number) for number in range(200)]
    archive.open()
    for start in range(0, 200, 50):
        archive.deliver(*events[start : start + 50])
    assert [(row["event_id"], row["value"]) for row in archive.rows()] == [(f"e{n}", str(n)) for n in range(200)]


def test_concurrent_deliveries_do_not_mix_their_rows(archive: CsvArchive) -> None:
    """On several days, so that each round also starts a file."""
    archive.open(path="{date}.csv")
    start_together = threading.Barrier(8)

    def deliver(each: Event) -> None:
        start_together.wait(20)
        archive.deliver(each)

    for day in range(20):
        with time_machine.travel(NOW + timedelta(days=day), tick=False), ThreadPoolExecutor(8) as threads:
            events = [temperature(f"d{day}n{number}", *range(5)) for number in range(8)]
            for future in [threads.submit(deliver, each) for each in events]:
                future.result(20)
            written = archive.ids(f"{(NOW + timedelta(days=day)).date()}.csv")
            assert written[::5] == written[4::5]
            assert sorted(written[::5]) == [each.id for each in events]


def test_a_failed_write_removes_no_row_of_another_thread(archive: CsvArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.open().deliver(event("e0"))
    other_has_written, flush = threading.Event(), os.fdatasync
    first = threading.Lock()

    def fail_first(descriptor: int) -> None:
        if first.acquire(blocking=False):
            other_has_written.wait(0.3)
            raise_disk_full(descriptor)
        flush(descriptor)

    monkeypatch.setattr(os, "fdatasync", fail_first)
    with ThreadPoolExecutor(2) as threads:
        failing = threads.submit(archive.deliver, event("e1"))
        wait_until(first.locked)
        working = threads.submit(archive.deliver, event("e2"))
        working.add_done_callback(lambda _: other_has_written.set())
        assert isinstance(failing.exception(20), OSError)
        assert working.exception(20) is None
    assert archive.ids() == ["e0", "e2"]
