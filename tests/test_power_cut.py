"""Power cuts, with few states; and that the trial finds what a program does not flush."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from power_cut.disk import LOSSES, NOTHING_LOST, RULES, Loss, Rules, positions, replay, states
from power_cut.machine import Machine
from power_cut.recording import Files, Kind, Operation, Recorder, Recording, StoredFile, compiler, contents
from power_cut.scenarios import Scenarios, put_old_journal
from power_cut.trial import Interruption, Report, cuts, judge, run_after

SCENARIOS = Scenarios(pushes=6)
EXT4, XFS, POSIX = RULES
JOURNAL = "data/journal.sqlite"
WAL = f"{JOURNAL}-wal"


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """What the parts of the receiver log when they are called on thousands of disks."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def needs_compiler() -> None:
    if compiler() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no C compiler that is called cc")
        pytest.skip("power cuts need a C compiler that is called cc")


@pytest.fixture(scope="module")
def first(needs_compiler: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Machine, Recording]:
    """From the first start on, recorded."""
    machine = Machine(tmp_path_factory.mktemp("first"), seed=1)
    return machine, machine.run(SCENARIOS.from_the_first_start)


def report_on(machine: Machine, recording: Recording, count: int, restarts: int = 0) -> Report:
    report = Report()
    for _ in judge(machine, recording, "short", count, restarts, report):
        pass
    return report


def test_no_power_cut_loses_alters_or_repeats_anything(first: tuple[Machine, Recording]) -> None:
    report = report_on(*first, count=40, restarts=1)
    assert report.failures == [], report
    assert report.tried.total() > 20
    assert len({phase for phase, _ in report.tried}) == 6, report


def test_the_power_fails_in_each_phase(first: tuple[Machine, Recording]) -> None:
    machine, recording = first
    at = positions(recording)
    for seed in range(200):
        chosen = cuts(machine, recording, 11, random.Random(seed))
        assert len({machine.phase_at(at[number]).name for number in chosen}) == 6


def test_no_power_cut_during_an_upgrade_loses_anything(needs_compiler: None, tmp_path: Path) -> None:
    machine = Machine(tmp_path, seed=2)
    machine.ledger += put_old_journal(machine.disk)
    report = report_on(machine, machine.run(SCENARIOS.upgrade), count=12)
    assert report.failures == [], report


@pytest.mark.parametrize("interruption", [Interruption.TORN_ROW, Interruption.KILL])
def test_no_power_cut_during_a_recovery_loses_anything(
    interruption: Interruption, first: tuple[Machine, Recording]
) -> None:
    report = report_on(*run_after(*first, SCENARIOS, 3, interruption), count=12)
    assert report.failures == [], report


def is_flush_of(*names: str) -> Callable[[Operation], bool]:
    return lambda operation: operation.kind is Kind.FLUSH and operation.path.endswith(names)


def is_flush_of_a_folder(operation: Operation) -> bool:
    return operation.kind is Kind.FLUSH_FOLDER


def with_synchronous_normal(recording: Recording) -> Recording:
    """As if SQLite flushed the write-ahead log only before it writes it back to the database."""
    of_journal = [each for each in recording.operations if each.path in (JOURNAL, WAL)]
    left_out = {
        flush.end
        for flush, following in pairwise(of_journal)
        if is_flush_of(WAL)(flush) and (following.path, following.kind) != (JOURNAL, Kind.WRITE)
    }
    return recording.without(lambda operation: operation.end in left_out)


@pytest.mark.parametrize(
    ("forget", "problem"),
    [
        pytest.param(with_synchronous_normal, "got 200, but not in the journal", id="synchronous = NORMAL"),
        pytest.param(
            lambda recording: recording.without(is_flush_of_a_folder), "got 200, but not in the journal", id="folders"
        ),
        pytest.param(
            lambda recording: recording.without(is_flush_of("readings.csv")), "at sink readings", id="a CSV file"
        ),
        pytest.param(
            lambda recording: recording.without(is_flush_of("sensors.sqlite-wal")), "registry", id="the registry"
        ),
    ],
)
def test_the_loss_caused_by_an_omitted_flush_is_found(
    forget: Callable[[Recording], Recording], problem: str, first: tuple[Machine, Recording]
) -> None:
    machine, recording = first
    failures = judge(machine, forget(recording), "short", 40, 0, Report(), [POSIX])
    assert any(problem in line for failure in failures for line in failure.problems)


def test_a_change_that_was_not_recorded_is_found(needs_compiler: None, tmp_path: Path) -> None:
    machine = Machine(tmp_path, seed=4)

    def scenario(machine: Machine) -> None:
        machine.disk.joinpath("surprise").write_bytes(b"not by a recorded program")

    with pytest.raises(AssertionError, match="the recording does not reproduce surprise"):
        machine.run(scenario)


def test_without_a_compiler_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="install a C compiler that is called cc"):
        Recorder(tmp_path, tmp_path)


PROGRAM = """
import os, sys
os.chdir(sys.argv[1])
os.mkdir("folder")
fd = os.open("folder/new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.write(fd, b"12345678")
os.pwrite(fd, b"XY", 3)
os.ftruncate(fd, 6)
os.fdatasync(fd)
os.rename("folder/new", "folder/file")
if os.fork() == 0:
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(log, b"child")
    os._exit(0)
os.wait()
open("log", "a").write(" parent")
open("/dev/null", "w").write("elsewhere")
os.unlink("old")
folder = os.open("folder", os.O_RDONLY)
os.fsync(folder)
os.fsync(fd)
"""


def test_every_change_of_a_program_and_its_children_is_recorded_in_order(needs_compiler: None, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "old").write_bytes(b"old")
    recorder = Recorder(tmp_path, disk)
    command = [sys.executable, "-c", PROGRAM, str(disk)]
    subprocess.run(command, env={**os.environ, **recorder.environment}, check=True, timeout=60)
    recording = recorder.finish()
    assert [(each.kind.name, each.path, each.offset, each.data) for each in recording.operations] == [
        ("MAKE_FOLDER", "folder", 0, b""),
        ("CREATE", "folder/new", 1, b""),
        ("WRITE", "folder/new", 0, b"12345678"),
        ("WRITE", "folder/new", 3, b"XY"),
        ("TRUNCATE", "folder/new", 6, b""),
        ("FLUSH", "folder/new", 0, b""),
        ("RENAME", "folder/new", 0, b"folder/file"),
        ("CREATE", "log", 0, b""),
        ("WRITE", "log", 0, b"child"),
        ("CREATE", "log", 0, b""),
        ("WRITE", "log", 5, b" parent"),
        ("UNLINK", "old", 0, b""),
        ("FLUSH_FOLDER", "folder", 0, b""),
        ("FLUSH", "folder/file", 0, b""),
    ]
    assert replay(recording) == contents(disk) == {"folder": None, "folder/file": b"123XY6", "log": b"child parent"}


def operations(*given: Operation) -> Recording:
    """A recording on a disk that has a file `a`, whose inode is 1."""
    numbered = [replace(operation, end=end) for end, operation in enumerate(given, start=1)]
    return Recording({"a": StoredFile(1, b"old")}, numbered)


def create(path: str, inode: int) -> Operation:
    return Operation(Kind.CREATE, path, inode, 0, b"", 0)


def write(path: str, inode: int, offset: int, data: bytes) -> Operation:
    return Operation(Kind.WRITE, path, inode, offset, data, 0)


def flush(path: str, inode: int) -> Operation:
    return Operation(Kind.FLUSH, path, inode, 0, b"", 0)


def flush_folder(path: str) -> Operation:
    return Operation(Kind.FLUSH_FOLDER, path, 0, 0, b"", 0)


def possible(recording: Recording, rules: Rules) -> list[Files]:
    """All different disks that are found after the last operation in many attempts."""
    end = [len(recording.operations)]
    found: list[Files] = []
    for seed in range(60):
        for state in states(recording, rules, end, LOSSES, seed):
            if state.files not in found:
                found.append(state.files)
    return found


def of(name: str, disks: Sequence[Files]) -> set[bytes | None]:
    """What a file is on these disks; None where there is none."""
    return {disk.get(name) for disk in disks}


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: rules.name)
def test_what_was_flushed_is_there_and_what_was_not_may_be_lost(rules: Rules) -> None:
    flushed = operations(write("a", 1, 0, b"new"), flush("a", 1))
    assert of("a", possible(flushed, rules)) == {b"new"}
    again = operations(write("a", 1, 0, b"new"), flush("a", 1), write("a", 1, 0, b"NEWER"))
    assert of("a", possible(again, rules)) >= {b"new", b"NEWER"}


def test_a_file_has_zeros_in_place_of_data_only_where_the_file_system_may_do_that() -> None:
    longer = operations(write("a", 1, 3, b"x" * 5000))
    assert of("a", possible(longer, EXT4)) == {b"old", b"old" + b"x" * 4093, b"old" + b"x" * 5000}
    for rules in (XFS, POSIX):
        assert b"old" + bytes(5000) in of("a", possible(longer, rules))


def test_a_file_that_was_created_and_flushed_is_lost_only_by_strict_posix_until_its_folder_is_flushed() -> None:
    created = (create("b", 2), write("b", 2, 0, b"data"), flush("b", 2))
    for rules in (EXT4, XFS):
        assert of("b", possible(operations(*created), rules)) == {b"data"}
    assert of("b", possible(operations(*created), POSIX)) == {None, b"data"}
    assert of("b", possible(operations(*created, flush_folder("")), POSIX)) == {b"data"}


def test_names_are_lost_in_order_or_by_strict_posix_in_any_order() -> None:
    two = operations(create("b", 2), create("c", 3))
    in_order = {("b", "c"), ("b",), ()}

    def names(rules: Rules) -> set[tuple[str, ...]]:
        return {tuple(name for name in ("b", "c") if name in disk) for disk in possible(two, rules)}

    assert (names(EXT4), names(XFS), names(POSIX)) == (in_order, in_order, {*in_order, ("c",)})


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: rules.name)
def test_a_file_that_replaces_another_has_its_name_or_the_other_has_it(rules: Rules) -> None:
    replaced = operations(
        create("b", 2), write("b", 2, 0, b"new"), flush("b", 2), Operation(Kind.RENAME, "b", 0, 0, b"a", 0)
    )
    assert of("a", possible(replaced, rules)) == {b"old", b"new"}


def test_what_is_in_a_folder_is_lost_with_its_name() -> None:
    folder = Operation(Kind.MAKE_FOLDER, "new", 0, 0, b"", 0)
    made = (folder, create("new/b", 2), write("new/b", 2, 0, b"data"), flush("new/b", 2), flush_folder("new"))
    assert of("new/b", possible(operations(*made), POSIX)) == {None, b"data"}
    assert of("new/b", possible(operations(*made, flush_folder("")), POSIX)) == {b"data"}


def test_a_block_has_one_of_the_contents_that_it_has_had() -> None:
    twice = operations(write("a", 1, 0, b"1"), write("a", 1, 1, b"2"))
    assert of("a", possible(twice, POSIX)) == {b"old", b"1ld", b"12d"}


def test_what_is_on_another_machine_is_not_lost() -> None:
    sent = operations(create("elsewhere", 2), write("elsewhere", 2, 0, b"sent"))
    assert of("elsewhere", possible(sent, POSIX)) == {b"sent"}


def test_a_state_is_a_function_of_the_seed() -> None:
    recording = operations(write("a", 1, 0, b"x" * 50_000), create("b", 2), write("b", 2, 0, b"y" * 50_000))

    def files(seed: int) -> list[Files]:
        return [state.files for state in states(recording, POSIX, [3], [Loss("some", "some")], seed)]

    assert files(7) == files(7) != files(8)
    assert replay(recording)["b"] == b"y" * 50_000
    assert NOTHING_LOST in LOSSES
