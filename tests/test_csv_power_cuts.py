"""The csv sink after a power cut: what the disk has lost is seen as lost in whatever file it was, and written again.

A power cut leaves any part of the last append, and zeros in place of the others. What was flushed before stays.
"""

from __future__ import annotations

import errno
import os
from datetime import timedelta
from pathlib import Path

import pytest
import time_machine
from support.csv_archive import READINGS_HEADER, CsvArchive, raise_disk_full
from support.events import NOW, event, temperature

HEADER = f"{READINGS_HEADER}\r\n".encode()
BOM = b"\xef\xbb\xbf"
DAY = timedelta(days=1)
TORN = b'e2,2026-03,"half a lab'


def zeroed(content: bytes, start: int, end: int) -> bytes:
    return content[:start] + bytes(end - start) + content[end:]


def test_a_torn_row_in_the_file_of_an_earlier_day_is_moved_away(archive: CsvArchive) -> None:
    archive.open(path="{date}.csv")
    with time_machine.travel(NOW, tick=False):
        archive.deliver(event("e1"))
    file = archive.folder / "2026-03-14.csv"
    complete = file.read_bytes()
    file.write_bytes(complete + TORN)
    with time_machine.travel(NOW + DAY, tick=False):
        archive.open(path="{date}.csv").deliver(event("e2"), attempt=2)
    assert file.read_bytes() == complete
    assert (archive.folder / "2026-03-14.csv.torn").read_bytes() == TORN + b"\n"
    assert archive.ids("2026-03-15.csv") == ["e2"]


@pytest.mark.parametrize(
    "path", ["{date}/events.csv", "events.{date}", "{date}/{date}-events.csv", "[a]*-{date}.csv"], ids=str
)
def test_torn_rows_are_found_in_all_files_of_the_sink_wherever_the_date_is_in_the_path(
    path: str, archive: CsvArchive
) -> None:
    for days in (-400, -2, 1):
        file = archive.folder / path.replace("{date}", (NOW + days * DAY).date().isoformat())
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(HEADER + b"e1\r\n" + TORN)
    with time_machine.travel(NOW, tick=False):
        archive.open(path=path)
    assert file.read_bytes() == HEADER + b"e1\r\n"
    assert len(list(archive.folder.rglob("*.torn"))) == 3


def test_the_file_that_was_in_use_is_repaired_even_if_it_ends_with_a_line(archive: CsvArchive) -> None:
    """A cell of several lines, cut short after one of them."""
    archive.open(path="{date}.csv")
    with time_machine.travel(NOW, tick=False):
        archive.deliver(event("e1"), event("e2", labels={"name": "first\r\nlast"}))
    file = archive.folder / "2026-03-14.csv"
    content = file.read_bytes()
    file.write_bytes(content[: content.index(b"first\r\n") + 7])
    with time_machine.travel(NOW + DAY, tick=False):
        archive.open(path="{date}.csv").deliver(event("e2"), attempt=2)
    assert (archive.ids("2026-03-14.csv"), archive.ids("2026-03-15.csv")) == (["e1"], ["e2"])


def test_a_numbered_file_that_was_in_use_is_repaired_when_other_columns_are_configured(archive: CsvArchive) -> None:
    archive.path.write_bytes(b"other,columns\r\n")
    archive.open().deliver(event("e1"))
    file = archive.folder / "events-2.csv"
    complete = file.read_bytes()
    file.write_bytes(complete + TORN)
    archive.open(columns=["time"]).deliver(event("e2"), attempt=2)
    assert file.read_bytes() == complete
    assert archive.ids("events-3.csv") == ["e2"]


def test_a_file_of_another_program_or_sink_and_one_that_cannot_be_written_are_not_changed(
    archive: CsvArchive, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    contents = {
        "2026-03-10.csv": b"\x89PNG",
        "2026-03-11.csv": b"event_id,time\ne1,2",
        "2026-03-12.csv": HEADER + b"e1\r\n" + TORN,
        "2026-03-13-2.csv": HEADER + b"e1\r\n" + TORN,
        "2026-03-13-notes.csv": HEADER + TORN,
    }
    for name, content in contents.items():
        (archive.folder / name).write_bytes(content)
    archived, open_file = archive.folder / "2026-03-12.csv", Path.open

    def open_unless_archived(path: Path, mode: str = "r", *more: object, **options: object) -> object:
        if path == archived and "+" in mode:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return open_file(path, mode, *more, **options)  # type: ignore[call-overload]

    with time_machine.travel(NOW, tick=False), monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_unless_archived)
        archive.open(path="{date}.csv").deliver(event("e2"))
    assert caplog.messages == [f"{archived} cannot be repaired: Permission denied"]
    assert {name: (archive.folder / name).read_bytes() for name in contents} == contents


def test_thousands_of_earlier_files_are_looked_at_and_not_read(
    archive: CsvArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3000):
        (archive.folder / f"{(NOW - number * DAY).date()}.csv").write_bytes(HEADER + b"e1\r\n")
    read: list[str] = []
    open_file = Path.open

    def recorded(path: Path, mode: str = "r", *more: object, **options: object) -> object:
        read.append(f"{path.name} {mode}")
        return open_file(path, mode, *more, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", recorded)
    with time_machine.travel(NOW, tick=False):
        archive.open(path="{date}.csv").deliver(event("e2"))
    assert len(read) < 3020


@pytest.mark.parametrize("bom", [False, True])
def test_a_header_of_which_parts_are_zeros_is_written_again(bom: bool, tmp_path: Path) -> None:
    header = (BOM if bom else b"") + HEADER
    contents = [
        *(zeroed(header, start, end) for start in range(0, len(header), 7) for end in (start + 1, len(header))),
        *(zeroed(header[:length], 0, length) for length in range(0, len(header), 5)),
        bytes(4096),
        header[:20] + bytes(3_000_000),
    ]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).mkdir()
        archive = CsvArchive(tmp_path / str(number))
        archive.path.write_bytes(content)
        archive.open().deliver(event("e1"))
        archive.close()
        assert archive.names() == ["events.csv"]
        assert archive.path.read_bytes().startswith(HEADER + b"e1,")


def test_a_file_with_rows_behind_a_damaged_header_is_not_changed(archive: CsvArchive) -> None:
    archive.path.write_bytes(zeroed(HEADER, 3, 9) + b"e1\r\n")
    archive.open().deliver(event("e2"))
    assert archive.path.read_bytes() == zeroed(HEADER, 3, 9) + b"e1\r\n"
    assert archive.ids("events-2.csv") == ["e2"]


def test_the_lock_file_gets_its_name_before_anything_is_written(
    archive: CsvArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says which part of the last file was flushed."""
    flushed: list[list[str]] = []
    fsync = os.fsync

    def recorded(fd: int) -> None:
        fsync(fd)
        if Path(os.readlink(f"/proc/self/fd/{fd}")) == archive.folder:
            flushed.append(os.listdir(archive.folder))

    monkeypatch.setattr(os, "fsync", recorded)
    archive.open()
    assert flushed[-1] == ["events.csv.lock"]


def test_a_file_gets_its_name_when_its_header_is_on_the_disk(
    archive: CsvArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.open()
    calls: list[object] = []
    replace, flush, fsync = os.replace, os.fdatasync, os.fsync

    def recorded_replace(old: Path, new: Path) -> None:
        calls.append((old.name, new.name, old.read_bytes() == HEADER, new.exists()))
        replace(old, new)

    monkeypatch.setattr(os, "replace", recorded_replace)
    monkeypatch.setattr(os, "fdatasync", lambda fd: (calls.append("file"), flush(fd)))
    monkeypatch.setattr(
        os, "fsync", lambda fd: (calls.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name), fsync(fd))
    )
    archive.deliver(event("e1"))
    renamed = ("events.csv.new", "events.csv", True, False)
    assert calls[calls.index("file") :] == ["file", renamed, archive.folder.name, "events.csv.lock", "file"]


def test_an_incomplete_row_is_cut_off_when_its_copy_is_on_the_disk(
    archive: CsvArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.open().deliver(event("e1"))
    archive.close()
    with archive.path.open("ab") as file:
        file.write(b"e2,torn")
    size, calls, fsync = archive.path.stat().st_size, list[object](), os.fsync

    def recorded(fd: int) -> None:
        fsync(fd)
        calls.append((Path(os.readlink(f"/proc/self/fd/{fd}")).name, archive.path.stat().st_size == size))

    monkeypatch.setattr(os, "fsync", recorded)
    archive.open()
    copied = calls.index(("events.csv.torn", True))
    assert calls[copied : copied + 3] == [("events.csv.torn", True), (archive.folder.name, True), ("events.csv", False)]


def test_a_header_that_cannot_be_written_leaves_no_file(archive: CsvArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.open()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", raise_disk_full)
        with pytest.raises(OSError, match="No space left"):
            archive.deliver(event("e1"))
    assert archive.names() == []
    archive.deliver(event("e1"), attempt=2)
    assert archive.ids() == ["e1"]


def test_an_empty_file_keeps_its_mode_and_a_link_to_it_stays(archive: CsvArchive) -> None:
    target = archive.folder / "target.csv"
    target.touch()
    target.chmod(0o664)
    archive.path.symlink_to(target)
    archive.open().deliver(event("e1"))
    assert archive.path.is_symlink()
    assert (archive.ids("target.csv"), target.stat().st_mode & 0o777) == (["e1"], 0o664)


def test_a_path_that_is_not_a_regular_file_is_an_error_and_stays(archive: CsvArchive) -> None:
    os.mkfifo(archive.path)
    with pytest.raises(OSError, match=r"events\.csv is not a regular file$"):
        archive.open().deliver(event("e1"))
    assert archive.path.is_fifo()


def test_zeros_anywhere_in_the_last_append_cost_no_row_that_was_flushed_before_and_all_others_are_written_again(
    tmp_path: Path, archive: CsvArchive
) -> None:
    labels = {"name": 'a "quoted"\r\nname'}
    flushed = [event("e1", labels=labels), temperature("e2", 1, 2)]
    last = [event("e3", labels=labels), temperature("e4", 1, 2, 3), event("e5", labels=labels)]
    archive.open(columns=["device_name", "value"]).deliver(*flushed)
    before = len(archive.path.read_bytes())
    archive.deliver(*last)
    complete, rows = archive.path.read_bytes(), archive.rows()
    for start in range(before, len(complete), 3):
        for end in {start + 1, start + 20, len(complete)}:
            folder = tmp_path / f"{start}-{end}"
            folder.mkdir()
            crashed = CsvArchive(folder)
            crashed.path.write_bytes(zeroed(complete, start, min(end, len(complete))))
            crashed.open(columns=["device_name", "value"])
            assert complete[:before] == crashed.path.read_bytes()[:before]
            crashed.deliver(*flushed, *last, attempt=2)
            crashed.close()
            assert crashed.rows() == rows


def test_zeros_that_were_in_the_file_before_it_was_opened_cut_no_row_that_was_flushed(archive: CsvArchive) -> None:
    """Rows of an older version, in which labels could contain NUL."""
    row = b"old,,,a\0b,,,,,,,\r\n"
    archive.path.write_bytes(HEADER + row + 100_000 * b"e0,,,,,,,,,,\r\n")
    archive.open().deliver(event("e1"))
    archive.open().deliver(event("e2"))
    assert archive.path.read_bytes().startswith(HEADER + row)
    assert archive.ids()[-3:] == ["e0", "e1", "e2"]
    with archive.path.open("ab") as file:
        file.write(b"e3\0\0\0,\r\ne4,,,,,,,,,,\r\n")
    archive.open().deliver(event("e3"), event("e4"), attempt=2)
    assert archive.ids()[-4:] == ["e1", "e2", "e3", "e4"]
    assert b"\0" not in archive.path.read_bytes()[len(HEADER + row) :]


def test_rows_before_a_reopening_count_as_flushed(archive: CsvArchive) -> None:
    """The zeros here are of another program that wrote while the sink was running."""
    archive.open().deliver(event("e1"))
    with archive.path.open("ab") as file:
        file.write(b"other\0,\r\n")
    archive.deliver(event("e2"))
    archive.open().deliver(event("e3"))
    assert archive.ids() == ["e1", "other\0", "e2", "e3"]


def test_a_row_with_zeros_is_not_taken_for_the_event(archive: CsvArchive) -> None:
    archive.path.write_bytes(HEADER + b"e1,\0\0\0\r\n" + 100_000 * b"e0,,,,,,,,,,\r\n")
    archive.open().deliver(event("e1"), attempt=2)
    assert archive.ids().count("e1") == 2


def test_an_event_with_the_id_of_the_header_is_not_taken_for_it(archive: CsvArchive) -> None:
    archive.open().deliver(event("e1"))
    archive.deliver(event("event_id"), attempt=2)
    assert archive.ids() == ["e1", "event_id"]


@pytest.mark.parametrize("back", [timedelta(minutes=30), timedelta(days=3)], ids=str)
def test_an_event_written_after_midnight_is_found_when_the_clock_has_come_back_behind(
    back: timedelta, archive: CsvArchive
) -> None:
    midnight = NOW + timedelta(hours=12)
    repeated = event("e1", received_at=midnight - timedelta(seconds=1))
    with time_machine.travel(midnight + timedelta(seconds=1), tick=False):
        archive.open(path="{date}.csv").deliver(repeated)
    with time_machine.travel(midnight - back, tick=False):
        archive.open(path="{date}.csv").deliver(repeated, event("e2"), attempt=2)
    assert archive.ids("2026-03-15.csv") == ["e1"]
    assert archive.ids(f"{(midnight - back).date()}.csv") == ["e2"]


def test_an_event_written_while_the_clock_was_behind_is_found_when_it_is_right_again(archive: CsvArchive) -> None:
    with time_machine.travel(NOW - timedelta(hours=13), tick=False):
        archive.open(path="{date}.csv").deliver(event("e1"))
    with time_machine.travel(NOW, tick=False):
        archive.open(path="{date}.csv").deliver(event("e1", received_at=NOW), event("e2"), attempt=2)
    assert (archive.ids("2026-03-13.csv"), archive.ids("2026-03-14.csv")) == (["e1"], ["e2"])


def test_a_repeated_event_is_found_in_the_only_file_when_the_clock_has_come_back_behind(archive: CsvArchive) -> None:
    archive.open().deliver(event("e1", received_at=NOW))
    with time_machine.travel(NOW - 5 * DAY, tick=False):
        archive.open().deliver(event("e1", received_at=NOW), event("e2"), attempt=2)
    assert archive.ids() == ["e1", "e2"]
