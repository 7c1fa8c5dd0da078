"""Fixtures for the tests of sinks. This file is a pytest plugin: `pytest -p receiver.testing.fixtures` offers them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import time_machine

from receiver.event import TYPES, Event
from receiver.signature import sign
from receiver.testing.running import CSV_ONLY, Running
from receiver.testing.samples import TEST_SECRET, events

StartReceiver = Callable[..., Running]


@pytest.fixture
def start_receiver(tmp_path: Path) -> Iterator[StartReceiver]:
    """Start receivers with the text of a config.toml, in a folder of their own; all are killed at the end of the test.

    `clock` shifts the clock of all processes of a receiver to that unix time, `python` is the interpreter that runs
    them; further arguments are its environment.
    """
    running: list[Running] = []

    def start(
        config: str = CSV_ONLY,
        *,
        clock: float | None = None,
        ready: bool = True,
        python: str = sys.executable,
        **environment: str,
    ) -> Running:
        folder = tmp_path / f"receiver{len(running) or ''}"
        folder.mkdir()
        receiver = Running(folder, config, clock, environment, python)
        running.append(receiver)
        return receiver.start(ready=ready)

    yield start
    for receiver in running:
        receiver.kill_all()


Push = tuple[dict[str, str], bytes]


@pytest.fixture
def events_of_every_type() -> list[Event]:
    """An event of each type that DT documents."""
    return events(len(TYPES))


@pytest.fixture
def signed_push() -> Callable[[Event], Push]:
    """A function that gives the headers and the body of the push in which DT would send an event now."""

    def push(event: Event) -> Push:
        return sign(event.body, TEST_SECRET, time.time()), event.body

    return push


@pytest.fixture
def clock() -> Iterator[time_machine.Traveller]:
    """The clock of this process, stopped: `clock.shift(3600)` and `clock.move_to(…)` move it.

    `time.monotonic` goes on as it does.
    """
    with time_machine.travel(time.time(), tick=False) as traveller:
        yield traveller
