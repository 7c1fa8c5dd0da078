"""The `stdout` sink: events as lines on standard output."""

from __future__ import annotations

import json
import os
import select
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from receiver import Event, Pause, Reading, hookimpl

STDOUT = 1
NAME_WIDTH, ID_WIDTH, QUANTITY_WIDTH, VALUE_WIDTH = 24, 23, 17, 12
"""Of the columns: most names, the ids of emulated devices, `relative_humidity`, most values. Longer texts are shown
whole."""
NO_READER = "standard output is closed: the program that read it has ended"


@dataclass
class Stdout:
    """Prints each event as one line on standard output.

    If its reader is slow, the sink waits. An event that is delivered again is printed again, unless it was printed by a
    call that failed only after that.

    format: "json": an object per line; "text": columns for people, with time, name and id of the sensor, quantity and
        value.
    """

    format: Literal["json", "text"] = "json"

    def __post_init__(self) -> None:
        self._printed: dict[str, int] = {}
        """The attempt by which an event was printed, while the call has not returned and after it has failed."""

    @hookimpl
    def deliver_batch(self, events: Sequence[Event], attempts: Sequence[int]) -> None:
        """Print each line in one write, so that lines of several writers do not mix.

        Raises Pause if nothing reads standard output any more, and OSError if it cannot be written.
        """
        line = LINES[self.format]
        check_reader(STDOUT)
        for event, attempt in zip(events, attempts, strict=True):
            printed_by = self._printed.get(event.id)
            if printed_by is None or attempt < printed_by:  # a replay counts from 1 again
                OUTPUT.write(f"{line(event)}\n".encode())
            self._printed[event.id] = attempt
        for event in events:
            self._printed.pop(event.id, None)


@hookimpl
def register_sinks(register: Callable[[str, type], None]) -> None:
    register("stdout", Stdout)


def json_line(event: Event) -> str:
    return json.dumps(
        {
            "event_id": event.id,
            "event_type": event.type,
            "time": event.occurred_at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "device_id": event.device_id,
            "project_id": event.project_id,
            "labels": event.labels,
            "data": event.data,
        },
        separators=(",", ":"),
    )


def text_line(event: Event) -> str:
    """Time, name and id of the device, and its newest value of each quantity, in columns; without control characters.

    An event without a value has its type in place of them.
    """
    newest: dict[str, Reading] = {}
    for reading in event.readings():
        newest.setdefault(reading.quantity, reading)
    values = [f"{name:<{QUANTITY_WIDTH}}  {value_of(reading):<{VALUE_WIDTH}}" for name, reading in newest.items()]
    cells = [
        event.occurred_at.isoformat(timespec="seconds").replace("+00:00", "Z"),
        f"{event.labels.get('name') or '-':<{NAME_WIDTH}}",
        f"{event.device_id or '-':<{ID_WIDTH}}",
        *(values or [event.type]),
    ]
    line = "  ".join(cells).rstrip()
    return "".join(character if character.isprintable() else " " for character in line)


def value_of(reading: Reading) -> str:
    return f"{reading.text or reading.value} {reading.unit}".rstrip()


LINES: dict[str, Callable[[Event], str]] = {"json": json_line, "text": text_line}


class Output:
    """Standard output, which all sinks of this type share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cut_short = False

    def write(self, line: bytes) -> None:
        """Write a line, on a new line even if a failed write has left the one before incomplete."""
        with self._lock:
            rest = b"\n" + line if self._cut_short else line
            while rest:
                try:
                    written = os.write(STDOUT, rest)
                except BlockingIOError:
                    wait_until_writable(STDOUT)
                    continue
                except ConnectionError:
                    raise Pause(NO_READER) from None
                if written:
                    self._cut_short = rest[written - 1 : written] != b"\n"
                rest = rest[written:]


def check_reader(descriptor: int) -> None:
    """Raise Pause if nothing reads a pipe any more: without it, an event that needs no write would end the pause."""
    poll = select.poll()
    poll.register(descriptor, 0)
    if poll.poll(0):
        raise Pause(NO_READER)


def wait_until_writable(descriptor: int) -> None:
    """Wait while a pipe is full whose other users have made it non-blocking."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll()


OUTPUT = Output()
