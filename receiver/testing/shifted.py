"""Run the receiver with the clock of all its processes shifted: `python shifted.py UNIX_TIME COMMAND …`.

It is a script, so that the processes of a receiver under test import nothing else of what tests need.
"""

import sys
from pathlib import Path

import time_machine

sys.path[0] = str(Path(__file__).parent.parent.parent)

if __name__ == "__main__":
    time_machine.travel(float(sys.argv.pop(1)), tick=True).start()
    from receiver.cli import main

    main(prog_name="python -m receiver")
