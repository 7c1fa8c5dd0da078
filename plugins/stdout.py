"""The `stdout` sink: events as lines on standard output."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from receiver import Event, hookimpl

STDOUT = 1


@dataclass
class Stdout:
    """Prints each event as one line on standard output.

    An event that is delivered again is printed again.

    format: "json": an object per line; "text": a line for people.
    """

    format: Literal["json", "text"] = "json"

    @hookimpl
    def deliver_batch(self, events: Sequence[Event]) -> None:
        """Print each line in one write, so that lines of several writers do not mix; raises OSError if it fails."""
        line = LINES[self.format]
        for event in events:
            OUTPUT.write(f"{line(event)}\n".encode())


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
    """Time, type, name or id of the device, and its newest readings; without control characters."""
    newest = {reading.quantity: reading for reading in reversed(event.readings())}
    values = [f"{reading.quantity}={reading.text or reading.value}{reading.unit}" for reading in newest.values()]
    name = event.labels.get("name") or event.device_id or "-"
    line = " ".join([event.occurred_at.isoformat(timespec="seconds"), event.type, name, *values])
    return "".join(character if character.isprintable() else " " for character in line)


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
                rest = rest[os.write(STDOUT, rest) :]
                self._cut_short = bool(rest)


OUTPUT = Output()
