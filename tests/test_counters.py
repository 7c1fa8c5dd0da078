"""The folder of the counters: removed at the end, and after a kill at the next start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import StartReceiver, wait_until

from receiver.intake import counters
from receiver.intake.counters import COUNTERS_BYTES, PREFIX, counters_folder


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of /dev/shm."""
    folder = tmp_path / "memory"
    folder.mkdir()
    monkeypatch.setattr(counters, "memory_folder", lambda: folder)
    return folder


def test_the_folder_is_removed_at_the_end(memory: Path) -> None:
    with counters_folder(memory) as folder:
        (folder / "counter_1.db").write_bytes(b"1")
        assert list(memory.iterdir()) == [folder]
    assert list(memory.iterdir()) == []


def test_what_is_not_in_use_is_removed_and_what_is_in_use_or_of_others_is_not(memory: Path) -> None:
    left, of_others = memory / f"{PREFIX}left", memory / "receiver-demo-x"
    for folder in (left, of_others):
        folder.mkdir()
        (folder / "counter_1.db").write_bytes(b"1")
    with counters_folder(memory) as first, counters_folder(memory) as second:
        assert sorted(memory.iterdir()) == sorted([first, second, of_others])


def test_the_folder_is_in_use_until_the_last_process_that_was_forked_has_ended(memory: Path) -> None:
    read, write = os.pipe()
    with counters_folder(memory) as folder:
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        os.close(read)
        folder.rename(used := memory / f"{PREFIX}used")  # so that it is not removed here
    with counters_folder(memory):
        assert used.exists()
    os.close(write)
    os.waitpid(child, 0)
    with counters_folder(memory) as folder:
        assert list(memory.iterdir()) == [folder]


@pytest.mark.skipif(counters.memory_folder() is None, reason=f"no {COUNTERS_BYTES} bytes of memory for files")
def test_a_killed_receiver_leaves_no_counters_after_the_next_start(start_receiver: StartReceiver) -> None:
    receiver = start_receiver()
    folder = counters_of(receiver.dispatcher)
    assert folder.is_dir()
    receiver.kill_all()
    assert folder.is_dir()
    receiver.start()
    assert not folder.exists()
    last = counters_of(receiver.dispatcher)
    assert receiver.stop() == 0
    wait_until(lambda: not last.exists())


def counters_of(pid: int) -> Path:
    """The folder of the counters that a process has open."""
    files = (Path(f"/proc/{pid}/fd") / name for name in os.listdir(f"/proc/{pid}/fd"))
    (found,) = {Path(os.readlink(file)) for file in files if PREFIX in os.readlink(file)}
    return found
