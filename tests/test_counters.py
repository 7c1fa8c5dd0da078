"""The folder of the counters: removed at the end, and after a kill at the next start."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import RunningReceiver, StartReceiver, wait_until
from support.pushes import event

from receiver.errors import ReceiverError
from receiver.intake import counters
from receiver.intake.counters import COUNTERS_BYTES, PREFIX, counters_folder
from receiver.testing.running import CSV_ONLY

CAN_MOUNT = subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode == 0


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


def test_where_nothing_can_be_written_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "memory_folder", lambda: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    remedy = f"let this user write to /dev/shm, {tmp_path / 'data'} or a folder for temporary files"
    with pytest.raises(ReceiverError) as raised, counters_folder(tmp_path / "data"):
        pass
    assert str(raised.value) == f"there is no place for counters (No such file or directory); {remedy}"


@pytest.mark.skipif(counters.memory_folder() is None, reason=f"no {COUNTERS_BYTES} bytes of memory for files")
def test_a_killed_receiver_leaves_no_counters_after_the_next_start(start_receiver: StartReceiver) -> None:
    receiver = start_receiver()
    folder = counters_of(receiver.dispatcher)
    assert folder.is_dir()
    receiver.kill_all()
    receiver.start()
    assert not folder.exists()
    last = counters_of(receiver.dispatcher)
    assert receiver.stop() == 0
    wait_until(lambda: not last.exists())


@pytest.mark.parametrize("pushes_before", [0, 1])
def test_without_its_counters_it_receives_and_starts_processes_again(
    pushes_before: int, start_receiver: StartReceiver
) -> None:
    receiver = start_receiver(WEB_CONCURRENCY="1")
    for number in range(pushes_before):
        assert receiver.push(event(f"before {number}")) == (200, "accepted")
    shutil.rmtree(counters_of(receiver.dispatcher))
    assert receiver.push(event("without counters")) == (200, "accepted")
    (worker,) = receiver.pids()["workers"]
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: receiver.pids()["workers"] not in ([], [worker]))
    start_receiver()  # which removes the counters that no receiver uses
    assert receiver.push(event("after the restart")) == (200, "accepted")
    assert receiver.metric('receiver_pushes_total{code="200",result="accepted"}') == 1


def fill(file: Path) -> None:
    """Write until there is no room left, as another program may do."""
    with suppress(OSError), file.open("wb", buffering=0) as opened:
        while opened.write(bytes(4096)):
            pass


@pytest.fixture
def folder_on_disk() -> Iterator[Path]:
    """A folder that is seen where something else is mounted at /dev/shm, where other temporary folders may be."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


SMALL_MEMORY = 'mount -t tmpfs -o size=20m none /dev/shm && exec "$@"'


@pytest.mark.skipif(not CAN_MOUNT, reason="only root may mount")
def test_in_memory_that_is_full_it_receives_and_starts_processes_again(folder_on_disk: Path) -> None:
    receiver = RunningReceiver(folder_on_disk, CSV_ONLY, None, {"WEB_CONCURRENCY": "1"})
    receiver.command = ["unshare", "--mount", "sh", "-c", SMALL_MEMORY, "sh", *receiver.command]
    try:
        receiver.start()
        memory = Path(f"/proc/{receiver.dispatcher}/root/dev/shm")
        fill(memory / "of another program")
        assert receiver.push(event("in full memory")) == (200, "accepted")
        (worker,) = receiver.pids()["workers"]
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: receiver.pids()["workers"] not in ([], [worker]))
        assert receiver.push(event("after the restart")) == (200, "accepted")
        assert receiver.metric('receiver_pushes_total{code="200",result="accepted"}') == 1
        assert "No space left on device; /metrics shows the pushes of one process at a time" in receiver.log
    finally:
        receiver.kill_all()


def counters_of(pid: int) -> Path:
    """The folder of the counters that a process has open."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(link.readlink())
    (folder,) = (path for path in found if PREFIX in str(path))
    return folder
