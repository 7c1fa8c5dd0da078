"""`python -m power_cut --states 5000 --seed 7`: print the report, and where the failed states are."""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import sys
import tempfile
from pathlib import Path

from power_cut.machine import write_files
from power_cut.trial import Trial, run

MEMORY = Path("/dev/shm")


def main() -> int:
    """The exit code: 0 when no promise was broken. Otherwise the folder of the run is not deleted."""
    parser = argparse.ArgumentParser(prog="python -m power_cut", description="Check the promise after power cuts.")
    parser.add_argument("--states", type=int, default=5000, help="how many states of the disk are tried (5000)")
    parser.add_argument("--seed", type=int, help="determines pushes, cuts and losses (random)")
    options = parser.parse_args()
    seed = random.randrange(10_000) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="receiver-power-cut-", dir=MEMORY if MEMORY.is_dir() else None))
    logging.disable(logging.CRITICAL)
    print(f"Power cuts with seed {seed}, in {folder}.", flush=True)
    report = run(Trial(seed, options.states), folder, lambda line: print(line, flush=True))
    print(f"\n{report}")
    if report.failures:
        for number, failure in enumerate(report.failures[:10]):
            write_files(folder / f"failure-{number}", failure.state.files)
        print(f"\nThe files of the first states that failed are in {folder}/failure-*.")
        print(f"To run the same: make power-cut STATES={options.states} SEED={seed}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
