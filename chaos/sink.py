"""A sink that writes down what it gets, and misbehaves as long as its orders stand. It runs inside the receiver."""

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
LEAKS_AT_MOST = 200


@dataclass
class Notes:
    """Appends the id, the attempt and the SHA-256 of the body of each event to a file.

    path: the file.
    orders: a file that says how to misbehave, as long as it is there.
    """

    path: Path
    orders: Path | None = None

    def __post_init__(self) -> None:
        self._leaked: list[bytearray] = []

    @hookimpl
    def open(self) -> None:
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    @hookimpl
    def deliver(self, event: Event, attempt: int) -> None:
        self._obey()
        line = f"\n{event.id} {attempt} {hashlib.sha256(event.body).hexdigest()}".encode()
        if os.write(self._file, line) < len(line):
            raise OSError("the line was cut short")

    @hookimpl
    def close(self) -> None:
        os.close(self._file)

    def _obey(self) -> None:
        if self.orders is None or not self.orders.exists():
            self._leaked.clear()
            return
        how, _, seconds = self.orders.read_text(encoding="utf-8").partition(" ")
        if how == "exits":
            os._exit(7)
        elif how == "holds":
            ctypes.PyDLL(None).usleep(int(float(seconds) * 1e6))  # keeps the interpreter, as a long regex does
        elif how == "leaks" and len(self._leaked) < LEAKS_AT_MOST:
            self._leaked.append(bytearray(LEAK_BYTES))
        elif how == "raises" and random.random() < 0.5:
            raise random.choice(EXCEPTIONS)()


class Unspeakable(Exception):
    """An exception that raises when it is shown."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


EXCEPTIONS: list[Callable[[], BaseException]] = [
    lambda: RuntimeError("æøå\n\x00\ud800" * 100),
    lambda: MemoryError(),
    lambda: SystemExit(3),
    lambda: KeyboardInterrupt(),
    lambda: Unspeakable(),
    lambda: Retry("not now", after=0.5),
    lambda: Pause("a short rest", after=1),
]


@hookimpl
def register_sinks(register: Callable[[str, type], None]) -> None:
    register("notes", Notes)
