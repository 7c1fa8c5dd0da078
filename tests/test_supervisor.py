"""The supervisor and its children: restarts, blocked children, and the order in which they stop."""

from __future__ import annotations

import errno
import gc
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NoReturn

import pytest
from conftest import wait_until

from receiver import supervisor as supervisor_module
from receiver.errors import ReceiverError
from receiver.lifeline import Lifeline
from receiver.supervisor import STABLE_SECONDS, SUSPENDED_SECONDS, Child, Supervisor

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

fork = multiprocessing.get_context("fork")
CreateChild = Callable[..., Child]


def run_for_a_minute(lifeline: Lifeline) -> None:
    time.sleep(60)


def run_until_stopping(lifeline: Lifeline) -> None:
    wait_until(lifeline.stopping, seconds=60)


class Notes:
    """Lines that several processes write to one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()

    def add(self, line: str) -> None:
        with self._path.open("a") as file:
            file.write(f"{line}\n")

    @property
    def lines(self) -> list[str]:
        return self._path.read_text().splitlines()


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes.txt")


@pytest.fixture
def create_child() -> Iterator[CreateChild]:
    """Create children that are killed at the end of the test."""
    children: list[Child] = []

    def create(work: Callable[[Lifeline], None], silent_seconds: float | None = None) -> Child:
        children.append(Child("worker", work, silent_seconds))
        return children[-1]

    yield create
    for child in children:
        kill(child)
        child.close_lifeline()


def kill(child: Child) -> None:
    child.signal(signal.SIGKILL)
    wait_for_death(child)


def wait_for_death(child: Child) -> None:
    wait_until(lambda: not child.alive, what=f"the end of {child.name}")


def is_alive_after_check(child: Child, now: float) -> bool:
    child.check(now, [child])
    return child.alive


def test_a_dead_child_is_restarted_after_a_delay_that_doubles_up_to_a_limit(
    create_child: CreateChild, caplog: pytest.LogCaptureFixture
) -> None:
    child, now = create_child(run_for_a_minute), 1000.0
    delays = (1, 2, 4, 8, 16, 30, 30)
    for delay in delays:
        assert is_alive_after_check(child, now)
        kill(child)
        assert not is_alive_after_check(child, now)
        assert not is_alive_after_check(child, now + delay - 0.01)
        now += delay
    assert is_alive_after_check(child, now)
    assert caplog.messages == [f"worker died (SIGKILL) and is restarted in {delay} s" for delay in delays]


def test_after_a_stable_run_the_delay_is_short_again(
    create_child: CreateChild, caplog: pytest.LogCaptureFixture
) -> None:
    child, now = create_child(run_for_a_minute), 1000.0
    for seconds in (0.0, STABLE_SECONDS, STABLE_SECONDS + 1, 0.0):
        assert is_alive_after_check(child, now)
        kill(child)
        assert not is_alive_after_check(child, now + seconds)
        now += seconds + 30
    assert [message.rpartition(" in ")[2] for message in caplog.messages] == ["1 s", "2 s", "1 s", "2 s"]


@pytest.mark.parametrize(
    ("module", "call", "number"),
    [(os, "fork", errno.EAGAIN), (os, "fork", errno.ENOMEM), (socket, "socketpair", errno.ENFILE)],
    ids=["no processes left", "no memory left", "no files left"],
)
def test_a_child_that_cannot_be_started_is_started_later_and_the_supervisor_lives(
    module: ModuleType,
    call: str,
    number: int,
    create_child: CreateChild,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child = create_child(run_for_a_minute)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with monkeypatch.context() as patch:
        patch.setattr(module, call, lambda: raise_error(number))
        for now in (1000.0, 1000.5, 1001.0):
            assert not is_alive_after_check(child, now)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == blocked
    assert is_alive_after_check(child, 1003.0)
    cause = os.strerror(number)
    assert caplog.messages == [f"worker cannot be started ({cause}) and is started again in {n} s" for n in (1, 2)]


def test_a_child_that_cannot_be_started_leaves_no_open_files(
    create_child: CreateChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a supervisor that tries for hours has none left, and ends."""
    child = create_child(run_for_a_minute)
    monkeypatch.setattr(os, "fork", lambda: raise_error(errno.EAGAIN))
    gc.collect()  # or files of earlier tests may be closed below
    before = os.listdir("/dev/fd")
    for now in (1000.0, 1010.0, 1020.0):
        assert not is_alive_after_check(child, now)
    assert os.listdir("/dev/fd") == before


def raise_error(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))


def exit_with_code_3(lifeline: Lifeline) -> None:
    os._exit(3)


def end_by_signal(lifeline: Lifeline) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def end_by_real_time_signal(lifeline: Lifeline) -> None:
    os.kill(os.getpid(), signal.SIGRTMIN + 1)
    time.sleep(60)


def return_normally(lifeline: Lifeline) -> None:
    pass


def raise_receiver_error(lifeline: Lifeline) -> None:
    raise ReceiverError("no room\nfor events")


def raise_another_error(lifeline: Lifeline) -> None:
    raise ValueError("unexpected")


@pytest.mark.parametrize(
    ("work", "reason", "logged"),
    [
        (exit_with_code_3, "exit code 3", ""),
        (end_by_signal, "SIGTERM", ""),
        (end_by_real_time_signal, f"signal {signal.SIGRTMIN + 1}", ""),
        (return_normally, "exit code 0", ""),
        (raise_receiver_error, "exit code 1", "no room\nfor events\n"),
        (raise_another_error, "exit code 1", "internal error\nTraceback (most recent call last):\n"),
    ],
    ids=["exit code", "signal", "real-time signal", "normal return", "ReceiverError", "another exception"],
)
def test_the_log_says_how_a_child_ended(
    work: Callable[[Lifeline], None],
    reason: str,
    logged: str,
    create_child: CreateChild,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    log_file = tmp_path / "child.log"

    def work_with_log(lifeline: Lifeline) -> None:
        supervisor_module.log.addHandler(logging.FileHandler(log_file))
        work(lifeline)

    child = create_child(work_with_log)
    child.check(1000.0, [child])
    wait_for_death(child)
    child.check(1000.0, [child])
    assert caplog.messages == [f"worker died ({reason}) and is restarted in 1 s"]
    assert log_file.read_text().startswith(logged)


def test_a_child_that_reports_nothing_for_too_long_is_killed_and_restarted(
    create_child: CreateChild, caplog: pytest.LogCaptureFixture
) -> None:
    child = create_child(run_for_a_minute, silent_seconds=30.0)
    assert is_alive_after_check(child, 1000.0)
    assert is_alive_after_check(child, 1030.0)
    child.check(1031.0, [child])
    wait_for_death(child)
    assert not is_alive_after_check(child, 1032.0)
    assert is_alive_after_check(child, 1033.0)
    assert caplog.messages == [
        "worker has been blocked for 31 s and is killed",
        "worker died (SIGKILL) and is restarted in 1 s",
    ]


def test_a_report_extends_the_time_until_a_silent_child_is_killed(
    create_child: CreateChild, caplog: pytest.LogCaptureFixture
) -> None:
    has_reported = fork.Event()

    def report_once(lifeline: Lifeline) -> None:
        lifeline.report_alive()
        has_reported.set()
        time.sleep(60)

    child = create_child(report_once, silent_seconds=30.0)
    child.check(1000.0, [child])
    assert has_reported.wait(20)
    for now in (1029.0, 1059.0, 1060.0):
        child.check(now, [child])
    wait_for_death(child)
    assert caplog.messages == ["worker has been blocked for 31 s and is killed"]


def test_a_child_without_a_limit_can_be_silent_for_ever(
    create_child: CreateChild, caplog: pytest.LogCaptureFixture
) -> None:
    child = create_child(run_for_a_minute, silent_seconds=None)
    assert is_alive_after_check(child, 1000.0)
    assert is_alive_after_check(child, 1e9)
    assert caplog.messages == []


def test_the_silence_before_it_is_forgiven_does_not_count(
    create_child: CreateChild, caplog: pytest.LogCaptureFixture
) -> None:
    child = create_child(run_for_a_minute, silent_seconds=30.0)
    child.check(1000.0, [child])
    child.forgive_silence(5000.0)
    for now in (5030.0, 5031.0):
        child.check(now, [child])
    wait_for_death(child)
    assert caplog.messages == ["worker has been blocked for 31 s and is killed"]


def test_a_child_whose_lifeline_is_closed_stops_although_its_siblings_run(create_child: CreateChild) -> None:
    first, second = create_child(run_until_stopping), create_child(run_until_stopping)
    for child in (first, second):
        child.check(1000.0, [first, second])
    assert (first.alive, second.alive) == (True, True)
    first.close_lifeline()
    wait_for_death(first)
    assert second.alive


class FakeChild(Child):
    """A child without a process, that records what the supervisor does."""

    def __init__(self, name: str, calls: list[tuple[object, ...]]) -> None:
        super().__init__(name, return_normally, None)
        self._calls = calls

    def check(self, now: float, siblings: list[Child]) -> None:
        self._calls.append((self.name, "check", now))

    def forgive_silence(self, now: float) -> None:
        self._calls.append((self.name, "forgive", now))

    def signal(self, number: int) -> None:
        self._calls.append((self.name, signal.Signals(number).name))

    def close_lifeline(self) -> None:
        self._calls.append((self.name, "close"))


def test_after_a_suspension_of_the_machine_the_silence_of_all_children_is_forgiven(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lifeline, calls = Lifeline(), list[tuple[object, ...]]()
    now = 1000.0
    sleeps = [SUSPENDED_SECONDS, SUSPENDED_SECONDS + 1]

    def wait(self: Supervisor, seconds: float) -> bool:
        nonlocal now
        if not sleeps:
            return True
        now += sleeps.pop(0)
        return False

    monkeypatch.setattr(supervisor_module, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(Supervisor, "_signalled", wait)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    Supervisor([FakeChild("a", calls), FakeChild("b", calls)], lifeline).run()
    assert [call for call in calls if call[1] in ("check", "forgive")] == [
        ("a", "check", 1000.0),
        ("b", "check", 1000.0),
        ("a", "check", 1015.0),
        ("b", "check", 1015.0),
        ("a", "forgive", 1031.0),
        ("a", "check", 1031.0),
        ("b", "forgive", 1031.0),
        ("b", "check", 1031.0),
    ]


def test_a_stop_closes_the_listener_and_signals_all_children_before_it_waits_for_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lifeline, calls = Lifeline(), list[tuple[object, ...]]()
    lifeline.stop_requested = True
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        Supervisor([FakeChild("intake", calls), FakeChild("dispatcher", calls)], lifeline, listener).run()
        assert listener.fileno() == -1
    assert calls == [
        ("intake", "SIGTERM"),
        ("dispatcher", "SIGTERM"),
        ("intake", "close"),
        ("intake", "SIGKILL"),
        ("dispatcher", "close"),
        ("dispatcher", "SIGKILL"),
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_the_log_says_which_signal_asked_for_the_stop(number: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
    before = {each: signal.signal(each, signal.SIG_DFL) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}

    class Signalled(FakeChild):
        def check(self, now: float, siblings: list[Child]) -> None:
            signal.raise_signal(number)

    caplog.set_level(logging.INFO)
    try:
        Supervisor([Signalled("a", [])], Lifeline()).run()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert caplog.messages == [f"stopping on {number.name}"]


@contextmanager
def supervised(*works: Callable[[Lifeline], None]) -> Iterator[BaseProcess]:
    """A supervisor in a process of its own, with a child for each of these."""
    children = [Child(work.__name__, work, None) for work in works]
    process = fork.Process(target=Supervisor(children, Lifeline()).run)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def test_a_child_is_restarted_although_the_supervisor_was_started_with_sigchld_ignored(notes: Notes) -> None:
    def short(lifeline: Lifeline) -> None:
        notes.add("started")

    def run() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        Supervisor([Child("short", short, None)], Lifeline()).run()

    process = fork.Process(target=run)
    process.start()
    try:
        wait_until(lambda: len(notes.lines) >= 2)
    finally:
        process.kill()
        process.join()


def send(number: signal.Signals, process: BaseProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_on_a_signal_the_second_child_may_finish_after_the_first_has_ended(
    number: signal.Signals, notes: Notes
) -> None:
    def intake(lifeline: Lifeline) -> None:
        lifeline.catch_signals()
        notes.add("intake started")
        wait_until(lambda: lifeline.stop_requested)
        wait_until(lambda: "dispatcher got SIGTERM" in notes.lines)
        time.sleep(0.3)
        notes.add("intake ended")

    def dispatcher(lifeline: Lifeline) -> None:
        lifeline.catch_signals()
        notes.add("dispatcher started")
        wait_until(lambda: lifeline.stop_requested)
        notes.add("dispatcher got SIGTERM")
        wait_until(lambda: not lifeline.supervisor_connected())
        notes.add("lifeline of the dispatcher closed")

    with supervised(intake, dispatcher) as process:
        wait_until(lambda: len(notes.lines) == 2, what="the start of both")
        send(number, process)
        process.join(20)
        assert process.exitcode == 0
    assert notes.lines[2:] == ["dispatcher got SIGTERM", "intake ended", "lifeline of the dispatcher closed"]


def test_a_child_that_does_not_stop_is_killed_at_the_time_limit(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "STOP_SECONDS", 0.2)

    def ignores_sigterm(lifeline: Lifeline) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        notes.add("started")
        run_for_a_minute(lifeline)

    with supervised(ignores_sigterm) as process:
        wait_until(lambda: notes.lines == ["started"])
        send(signal.SIGTERM, process)
        process.join(20)  # it ends after its children
        assert process.exitcode == 0


def test_a_child_without_handlers_of_its_own_ends_on_sigterm(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "STOP_SECONDS", 60)

    def plain(lifeline: Lifeline) -> None:
        notes.add("started")
        run_for_a_minute(lifeline)

    with supervised(plain) as process:
        wait_until(lambda: notes.lines == ["started"])
        send(signal.SIGTERM, process)
        process.join(30)  # before SIGKILL would end the child
        assert process.exitcode == 0


def test_no_child_outlives_a_supervisor_that_is_killed(notes: Notes) -> None:
    def first(lifeline: Lifeline) -> None:
        notes.add("started")
        run_until_stopping(lifeline)
        notes.add("ended")

    with supervised(first, first) as process:
        wait_until(lambda: notes.lines == ["started"] * 2)
        send(signal.SIGKILL, process)
        wait_until(lambda: notes.lines == ["started"] * 2 + ["ended"] * 2)
