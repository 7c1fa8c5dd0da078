"""`python -m chaos --minutes 10 --seed 7 --journal postgresql`: run it, print the report, and say how to repeat it."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

from chaos.faults import OF_JOURNAL
from chaos.trial import Trial, run


def main() -> int:
    """The exit code: 0 when no promise was broken. Otherwise the folder of the run is not deleted."""
    parser = argparse.ArgumentParser(
        prog="python -m chaos",
        description="Check the promise while everything fails. Ctrl-C ends the faults, and judges what was pushed.",
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="how long faults are injected at least (10)")
    parser.add_argument("--pushes", type=int, default=0, help="run until so many different bodies were pushed")
    parser.add_argument("--faults", type=int, default=0, help="run until so many faults were injected")
    parser.add_argument("--speed", type=float, default=1.0, help="how much faster than usual faults come and end (1)")
    parser.add_argument("--seed", type=int, help="determines the pushes and the order of the faults (random)")
    parser.add_argument("--journal", choices=OF_JOURNAL, default="sqlite", help="the database of the journal (sqlite)")
    parser.add_argument("--rate", type=float, default=50.0, help="pushes per second (50)")
    parser.add_argument("--failovers", type=int, help="only fail over, so many times, between two servers")
    options = parser.parse_args()
    seed = random.randrange(10_000) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="receiver-chaos-"))
    print(f"{command(options, seed)}, in {folder}", flush=True)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    report = run(trial(options, seed), folder, stop)
    print(report)
    if report.violations:
        print(f"\nAll files are in {folder}: faults.txt is the log of the faults, log.txt that of the receiver.")
        print("To repeat the same pushes and faults in the same order, though not at the same milliseconds:")
        print(command(options, seed))
        return 1
    shutil.rmtree(folder)
    return 0


def trial(options: argparse.Namespace, seed: int) -> Trial:
    if options.failovers is None:
        return Trial(
            seed,
            options.journal,
            options.minutes * 60,
            options.rate,
            options.speed,
            min_pushes=options.pushes,
            min_faults=-(-options.faults // 2),
        )
    only = tuple(OF_JOURNAL["replicated"])
    return Trial(seed, "replicated", 0.0, options.rate, min_faults=options.failovers, only=only)


def command(options: argparse.Namespace, seed: int) -> str:
    if options.failovers is None:
        until = f"PUSHES={options.pushes} " * (options.pushes > 0) + f"FAULTS={options.faults} " * (options.faults > 0)
        pace = f"RATE={options.rate:g} SPEED={options.speed:g}"
        return f"make chaos MINUTES={options.minutes:g} {until}SEED={seed} JOURNAL={options.journal} {pace}"
    return f"make failover TIMES={options.failovers} SEED={seed} RATE={options.rate:g}"


if __name__ == "__main__":
    sys.exit(main())
