"""`python -m fuzz --inputs 10000000 --seed 7`, or `--minutes 10`: run it, and print the figures and the findings."""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import time

from fuzz.trial import run


def main() -> int:
    """The exit code: 0 when there are no findings."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Send made-up pushes to intake.")
    parser.add_argument("--inputs", type=int, help="how many inputs")
    parser.add_argument("--minutes", type=float, help="for how long, unless a number of inputs is given (10)")
    parser.add_argument("--seed", type=int, help="determines the inputs (random)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="how many at once (one a processor)")
    options = parser.parse_args()
    seed = random.randrange(10_000) if options.seed is None else options.seed
    minutes = math.inf if options.inputs is not None else options.minutes or 10.0
    print(f"Fuzzing with seed {seed} in {options.processes} processes.", flush=True)
    began = time.monotonic()
    figures = run(seed, options.processes, options.inputs, minutes * 60)
    seconds = time.monotonic() - began
    for finding in figures.findings.values():
        print(f"\n{finding}")
    print("\n      inputs  response")
    for result, count in figures.results.most_common():
        print(f"{count:>12,}  {result}")
    rate = figures.inputs / seconds
    print(f"{figures.inputs:>12,}  in {seconds / 60:.1f} minutes, {rate:,.0f}/s; {len(figures.findings)} findings")
    if figures.findings:
        print(f"To run the same: make fuzz INPUTS={figures.inputs} SEED={seed}")
    return 1 if figures.findings else 0


if __name__ == "__main__":
    sys.exit(main())
