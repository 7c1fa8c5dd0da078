"""The lifeline: reports of the child, and how it learns that it should stop."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator

import pytest
from support.time_limit import call_with_time_limit

from receiver.lifeline import Lifeline

MORE_REPORTS_THAN_A_SOCKET_HOLDS = 5000


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The end of the supervisor, and that of the child."""
    supervisor_end, child_end = socket.socketpair()
    with supervisor_end, child_end:
        yield supervisor_end, child_end


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    """Restore the handlers of the stop signals after the test, during which none is ignored."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_process_without_a_supervisor_goes_on_until_a_signal() -> None:
    lifeline = Lifeline()
    lifeline.report_alive()
    assert (lifeline.supervisor_connected(), lifeline.stopping()) == (False, False)
    lifeline.stop_requested = True
    assert (lifeline.supervisor_connected(), lifeline.stopping()) == (False, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_requests_a_stop_and_leaves_the_supervisor_connected(
    number: signal.Signals, sockets: tuple[socket.socket, socket.socket], signal_handlers: None
) -> None:
    lifeline = Lifeline(sockets[1])
    lifeline.catch_signals()
    assert (lifeline.stop_requested, lifeline.stopping()) == (False, False)
    signal.raise_signal(number)
    assert (lifeline.stop_requested, lifeline.stopping(), lifeline.supervisor_connected()) == (True, True, True)


def test_sighup_stays_ignored_as_with_nohup(signal_handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    Lifeline().catch_signals()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_each_report_reaches_the_supervisor(sockets: tuple[socket.socket, socket.socket]) -> None:
    supervisor_end, child_end = sockets
    lifeline = Lifeline(child_end)
    lifeline.report_alive()
    lifeline.report_alive()
    assert supervisor_end.recv(4096) == b".."


def test_a_supervisor_that_does_not_read_blocks_no_report(sockets: tuple[socket.socket, socket.socket]) -> None:
    supervisor_end, child_end = sockets
    lifeline = Lifeline(child_end)

    def report() -> None:
        for _ in range(MORE_REPORTS_THAN_A_SOCKET_HOLDS):
            lifeline.report_alive()

    call_with_time_limit(report)
    assert (lifeline.supervisor_connected(), lifeline.stopping()) == (True, False)
    reports = supervisor_end.recv(MORE_REPORTS_THAN_A_SOCKET_HOLDS)
    assert 0 < len(reports) < MORE_REPORTS_THAN_A_SOCKET_HOLDS


@pytest.mark.parametrize("reported_before", [False, True])
def test_a_process_stops_when_its_supervisor_closes_its_end(
    reported_before: bool, sockets: tuple[socket.socket, socket.socket]
) -> None:
    supervisor_end, child_end = sockets
    lifeline = Lifeline(child_end)
    if reported_before:
        lifeline.report_alive()
    assert (lifeline.supervisor_connected(), lifeline.stopping()) == (True, False)
    supervisor_end.close()
    lifeline.report_alive()
    assert (lifeline.supervisor_connected(), lifeline.stopping(), lifeline.stop_requested) == (False, True, False)
