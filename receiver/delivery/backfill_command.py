"""Runs the command `backfill` in a process of its own: the dispatcher never asks DT itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from receiver.settings import Settings

COMMAND = (sys.executable, "-m", "receiver", "backfill", "--yes", "--json")
RUN_SECONDS = 1.0


@dataclass(frozen=True)
class Ended:
    """How the command ended: its numbers, or the last line of its errors."""

    succeeded: bool
    text: str


def run(
    command: Sequence[str], settings: Settings, stopped: threading.Event, still_running: Callable[[], object]
) -> Ended | None:
    """Run the command; None if it was stopped, after which the same command goes on where it was.

    `still_running` is called every second.
    """
    environment = {**os.environ, "RECEIVER_CONFIG": str(settings.path)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        while True:
            try:
                out, errors = process.communicate(timeout=RUN_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if stopped.is_set():
                    process.kill()
                    return None
                still_running()
    if process.returncode == 0:
        return Ended(True, _in_one_line(out))
    return Ended(False, errors.decode("utf-8", "replace").strip().rpartition("\n")[2])


def _in_one_line(printed: bytes) -> str:
    with suppress(ValueError):
        numbers = json.loads(printed)
        return ", ".join(f"{name} {value}" for name, value in numbers.items() if type(value) is int)
    return "done"
