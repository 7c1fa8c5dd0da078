"""Runs the receiver with a shifted clock in all its processes: `python shifted_clock.py FILE COMMAND …`.

FILE holds the shift in nanoseconds, as eight bytes; a change of it takes effect at once. This is a script, so that the
processes of a receiver under test import nothing else that tests need.
"""

import mmap
import runpy
import struct
import sys
from pathlib import Path

import time_machine
from _time_machine import original_time_ns

sys.path[0] = str(Path(__file__).parent.parent.parent)

if __name__ == "__main__":
    with open(sys.argv.pop(1), "rb") as file:
        shift = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    traveller = time_machine.travel(0.0).start()

    def shifted_time_ns() -> int:
        now: int = original_time_ns() + struct.unpack("q", shift)[0]
        return now

    traveller.time_ns = shifted_time_ns  # type: ignore[method-assign]  # a traveller cannot follow a file
    runpy.run_module("receiver", run_name="__main__")
