"""`python -m chaos --minutes 10 --seed 7 --journal postgresql`: run it, print the report, say how to do it again."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from chaos.faults import OF_JOURNAL
from chaos.trial import Trial, run


def main() -> int:
    """The exit code: 0 when every promise was kept. The folder of a run that broke one is left behind."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description="The promise, while everything fails.")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long faults happen (10)")
    parser.add_argument("--seed", type=int, help="what is pushed, and the order of the faults (chosen at random)")
    parser.add_argument("--journal", choices=OF_JOURNAL, default="sqlite", help="where the journal is kept (sqlite)")
    parser.add_argument("--rate", type=float, default=50.0, help="pushes a second (50)")
    given = parser.parse_args()
    seed = random.randrange(10_000) if given.seed is None else given.seed
    folder = Path(tempfile.mkdtemp(prefix="receiver-chaos-"))
    print(f"Chaos for {given.minutes:g} minutes with seed {seed}, in {folder}.", flush=True)
    report = run(Trial(seed, given.journal, given.minutes * 60, given.rate), folder)
    print(report)
    if report.violations:
        print(f"\nAll files are in {folder}: faults.txt says what happened when, log.txt what the receiver said.")
        print("The same pushes and faults in the same order again, though not to the same millisecond:")
        print(f"make chaos MINUTES={given.minutes:g} SEED={seed} JOURNAL={given.journal} RATE={given.rate:g}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
