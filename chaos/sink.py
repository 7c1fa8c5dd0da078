"""A sink that records what it receives, and misbehaves while instructed to. It runs inside the receiver."""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from receiver import Event, Pause, Retry, hookimpl

LEAK_BYTES = 10_000_000
MAX_LEAKS = 200


@dataclass
class Records:
    """Appends the id, the attempt and the SHA-256 of the body of each event to a file.

    path: the file.
    instructions: a file that says how to misbehave, while it exists.
    """

    path: Path
    instructions: Path | None = None

    def __post_init__(self) -> None:
        self._leaked: list[bytearray] = []

    @hookimpl
    def open(self) -> None:
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    @hookimpl
    def deliver(self, event: Event, attempt: int) -> None:
        self._follow_instructions()
        line = f"\n{event.id} {attempt} {hashlib.sha256(event.body).hexdigest()}".encode()
        if os.write(self._file, line) < len(line):
            raise OSError("the line was cut short")

    @hookimpl
    def close(self) -> None:
        os.close(self._file)

    def _follow_instructions(self) -> None:
        if self.instructions is None or not self.instructions.exists():
            self._leaked.clear()
            return
        misbehavior, _, seconds = self.instructions.read_text(encoding="utf-8").partition(" ")
        if misbehavior == "exit":
            os._exit(7)
        elif misbehavior == "hold":
            ctypes.PyDLL(None).usleep(int(float(seconds) * 1e6))  # holds the interpreter, as a long regex does
        elif misbehavior == "leak" and len(self._leaked) < MAX_LEAKS:
            self._leaked.append(bytearray(LEAK_BYTES))
        elif misbehavior == "raise" and random.random() < 0.5:
            raise random.choice(EXCEPTIONS)()


class BrokenStr(Exception):
    """An exception that raises when it is shown."""

    def __str__(self) -> str:
        raise RuntimeError("this exception cannot be shown")


EXCEPTIONS: list[Callable[[], BaseException]] = [
    lambda: RuntimeError("æøå\n\x00\ud800" * 100),
    lambda: MemoryError(),
    lambda: SystemExit(3),
    lambda: KeyboardInterrupt(),
    lambda: BrokenStr(),
    lambda: Retry("try again soon", after=0.5),
    lambda: Pause("pause briefly", after=1),
]


@hookimpl
def register_sinks(register: Callable[[str, type], None]) -> None:
    register("records", Records)
