"""Fixtures for tests of sinks. This file is a pytest plugin: `pytest -p receiver.testing.fixtures` loads it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import time_machine

from receiver.event import TYPES, Event
from receiver.signature import sign
from receiver.testing.running import CSV_ONLY, RunningReceiver
from receiver.testing.samples import TEST_SECRET, events

StartReceiver = Callable[..., RunningReceiver]
Push = tuple[dict[str, str], bytes]


@pytest.fixture
def start_receiver(tmp_path: Path) -> Iterator[StartReceiver]:
    """A function that starts a receiver with the text of a config.toml, in a folder of its own.

    `clock` sets the clock of its processes to that unix time, `python` is the interpreter that runs them, with
    `ready=False` it is not waited for until it can deliver; further arguments are added to its environment. All
    receivers are killed at the end of the test.
    """
    receivers: list[RunningReceiver] = []

    def start(
        config: str = CSV_ONLY,
        *,
        clock: float | None = None,
        ready: bool = True,
        python: str = sys.executable,
        **environment: str,
    ) -> RunningReceiver:
        folder = tmp_path / f"receiver{len(receivers) or ''}"
        folder.mkdir()
        receiver = RunningReceiver(folder, config, clock, environment, python)
        receivers.append(receiver)
        return receiver.start(ready=ready)

    yield start
    for receiver in receivers:
        receiver.kill_all()


@pytest.fixture
def events_of_every_type() -> list[Event]:
    """An event of each type that DT documents."""
    return events(len(TYPES))


@pytest.fixture
def signed_push() -> Callable[[Event], Push]:
    """A function that returns the headers and the body of the push in which DT would send an event now."""

    def push(event: Event) -> Push:
        return sign(event.body, TEST_SECRET, time.time()), event.body

    return push


@pytest.fixture
def frozen_clock() -> Iterator[time_machine.Traveller]:
    """The clock of this process, stopped: `frozen_clock.shift(3600)` and `frozen_clock.move_to(…)` set it.

    `time.monotonic` is not affected.
    """
    with time_machine.travel(time.time(), tick=False) as traveller:
        yield traveller
