"""Run the receiver with the clock of all its processes shifted: `python tests/shifted.py UNIX_TIME COMMAND …`."""

import sys
from pathlib import Path

import time_machine

sys.path.insert(0, str(Path(__file__).parent.parent))

if __name__ == "__main__":
    time_machine.travel(float(sys.argv.pop(1)), tick=True).start()
    from receiver.cli import main

    main(prog_name="python -m receiver")
