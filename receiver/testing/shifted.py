"""Run the receiver with another clock in all its processes: `python shifted.py FILE COMMAND …`.

FILE holds by how many nanoseconds the clock is wrong, as eight bytes; what is written there holds at once.
It is a script, so that the processes of a receiver under test import nothing else of what tests need.
"""

import mmap
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

    def shifted() -> int:
        now: int = original_time_ns() + struct.unpack("q", shift)[0]
        return now

    traveller.time_ns = shifted  # type: ignore[method-assign]  # what it travels with cannot follow a file
    from receiver.cli import main

    main(prog_name="python -m receiver")
