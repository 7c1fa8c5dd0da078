"""Folders that the receiver creates: their names are flushed to the disk, or a power cut could take what is in them."""

from __future__ import annotations

import errno
import logging
import os
import runpy
from datetime import UTC, datetime
from pathlib import Path

import pytest
import time_machine
from support.built_in_sinks import build, deliver_batch, open_sink
from support.csv_archive import CsvArchive
from support.events import event

from receiver.folders import make_folder, why_not_writable
from receiver.journal.sql.sqlite import SqliteDatabase
from receiver.scaffold import new_sink

NOW = datetime(2026, 3, 14, 12, tzinfo=UTC)
TODAY = "2026-03-14"


@pytest.fixture
def flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, list[str]]]:
    """Each folder below `tmp_path` that was flushed, and the names that were in it then."""
    found: list[tuple[Path, list[str]]] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir() and path.is_relative_to(tmp_path):
            found.append((path, sorted(os.listdir(path))))

    monkeypatch.setattr(os, "fsync", recorded)
    return found


def test_each_folder_is_flushed_in_its_parent_before_the_next_is_created(
    tmp_path: Path, flushed: list[tuple[Path, list[str]]]
) -> None:
    make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    assert flushed == [(tmp_path, ["a"]), (tmp_path / "a", ["b"]), (tmp_path / "a" / "b", ["c"])]
    make_folder(tmp_path / "a" / "d")
    assert flushed[3:] == [(tmp_path, ["a"]), (tmp_path / "a", ["b", "d"])]


def test_a_folder_whose_creator_was_killed_before_it_flushed_is_flushed(
    tmp_path: Path, flushed: list[tuple[Path, list[str]]]
) -> None:
    (tmp_path / "a").mkdir()
    make_folder(tmp_path / "a")
    make_folder(tmp_path / "a" / "b")
    assert flushed == [(tmp_path, ["a"]), (tmp_path, ["a"]), (tmp_path / "a", ["b"])]


def test_a_folder_that_exists_is_usable_where_its_parent_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path, flags: int) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", forbidden)
    make_folder(tmp_path)
    with pytest.raises(PermissionError):
        make_folder(tmp_path / "a")


def test_a_csv_file_whose_creator_was_killed_before_it_flushed_its_folder_is_flushed(
    tmp_path: Path, flushed: list[tuple[Path, list[str]]]
) -> None:
    archive = CsvArchive(tmp_path)
    with time_machine.travel(NOW, tick=False):
        archive.open(path="{date}/events.csv").deliver(event("e1"))
        archive.close()
        flushed.clear()
        archive.open(path="{date}/events.csv").deliver(event("e2"))
        archive.close()
    assert (tmp_path / TODAY, ["events.csv"]) in flushed


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "a")
    with pytest.raises(NotADirectoryError):
        make_folder(tmp_path / "a" / "b" / "c")


def test_a_folder_that_is_given_relative_to_the_current_one_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(Path("a/b"))
    assert (tmp_path / "a" / "b").is_dir()


def test_the_folders_of_a_journal_are_durable(tmp_path: Path, flushed: list[tuple[Path, list[str]]]) -> None:
    SqliteDatabase(tmp_path / "a" / "b" / "journal.sqlite", 0, None).close()
    assert [folder for folder, _ in flushed] == [tmp_path, tmp_path / "a"]


def test_the_folders_of_the_sql_sink_are_durable(tmp_path: Path, flushed: list[tuple[Path, list[str]]]) -> None:
    sink = open_sink(build("sql", tmp_path, {"url": f"sqlite:///{tmp_path / 'a' / 'b' / 'readings.sqlite'}"}))
    sink.hook.close()
    assert [folder for folder, _ in flushed] == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]


def test_the_folders_of_the_csv_sink_are_durable(tmp_path: Path, flushed: list[tuple[Path, list[str]]]) -> None:
    sink = open_sink(build("csv", tmp_path, {"path": "a/{date}/events.csv"}))
    with time_machine.travel(NOW, tick=False):
        deliver_batch(sink, event("e1"))
        sink.hook.close()
    names = {path.relative_to(tmp_path).as_posix(): names for path, names in flushed}
    assert names == {
        ".": ["a"],
        "a": sorted(["date", TODAY]),
        "a/date": ["events.csv.lock"],
        f"a/{TODAY}": ["events.csv"],
    }


def test_a_moved_folder_is_created_again(tmp_path: Path) -> None:
    archive = CsvArchive(tmp_path)
    archive.open(path="a/events.csv").deliver(event("e1"))
    (tmp_path / "a").rename(tmp_path / "moved")
    archive.deliver(event("e2"))
    archive.close()
    assert archive.ids("a/events.csv") == ["e2"]


def test_a_path_that_cannot_be_written_is_named_with_what_prevents_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, new = tmp_path / "file", tmp_path / "new" / "folder" / "file"
    file.touch()
    assert [why_not_writable(path) for path in (tmp_path, file, new)] == [None, None, None]
    assert why_not_writable(file / "x") == f"{file}/x cannot be created: {file} is not a folder"
    assert why_not_writable(tmp_path / ("x" * 256)) == f"{tmp_path}/{'x' * 256} cannot be used: File name too long"
    (tmp_path / "loop").symlink_to("loop")
    assert why_not_writable(tmp_path / "loop") == f"{tmp_path}/loop cannot be used: Too many levels of symbolic links"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert why_not_writable(file) == f"{file} cannot be written: {file} is not writable"
    assert why_not_writable(new) == f"{new} cannot be created: {tmp_path} is not writable"


def test_what_the_sink_of_new_sink_writes_is_durable(tmp_path: Path, flushed: list[tuple[Path, list[str]]]) -> None:
    for folder in ("plugins", "tests"):
        (tmp_path / folder).mkdir()
    path, _ = new_sink("drop_box", (), root=tmp_path)
    sink = runpy.run_path(str(path))["DropBox"](tmp_path / "a" / "b")
    sink.open("drop_box", logging.getLogger("test"))
    assert flushed == [(tmp_path, ["a", "plugins", "tests"]), (tmp_path / "a", ["b"])]
    sink.deliver(event("e1"), attempt=1)
    assert flushed[2:] == [(tmp_path / "a" / "b", ["e1.json"])]
