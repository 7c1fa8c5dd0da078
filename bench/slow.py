"""A slow sink, as a plugin."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from receiver import Event, hookimpl


@dataclass
class Slow:
    """Takes `seconds` for each event."""

    seconds: float = 1.0

    @hookimpl
    def deliver(self, event: Event) -> None:
        time.sleep(self.seconds)


@hookimpl
def register_sinks(register: Callable[[str, type], None]) -> None:
    register("slow", Slow)
