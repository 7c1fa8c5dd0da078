"""How fast the receiver is, compared with the best that it could reach.

python -m bench [intake|drain|growth|latency|stalls|idle|verify|sensors|backfill|postgresql|console …] [--size 0.1]
"""

from __future__ import annotations

import argparse
import platform
import shutil
import signal
import sqlite3
from datetime import UTC, datetime
from importlib.metadata import version

from bench import backfill, console, drain, growth, idle, intake, latency, postgresql, sensors, stalls, verify

SECONDS = 10
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", choices=list(PARTS), default=list(PARTS), help="what to measure (all)")
    parser.add_argument(
        "--size", type=float, default=1.0, help="how long and how much: 1 in full, 0.1 for a quick look (1)"
    )
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk, which sends the pushes, is not installed; on Debian: apt-get install wrk")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the servers are stopped
    print(machine())
    for part in options.parts:
        PARTS[part](options.size)


def machine() -> str:
    names = ("Flask", "gunicorn", "SQLAlchemy", "psycopg", "dtintegrations")
    versions = [f"Python {platform.python_version()}", f"SQLite {sqlite3.sqlite_version}"]
    return ", ".join([datetime.now(UTC).date().isoformat(), *versions, *(f"{name} {version(name)}" for name in names)])


PARTS = {
    "intake": lambda size: intake.measure(max(1.0, SECONDS * size), ROUNDS),
    "drain": lambda size: drain.measure(size, ROUNDS),
    "growth": lambda size: growth.measure(size, ROUNDS),
    "latency": lambda size: latency.measure(size, ROUNDS),
    "stalls": lambda size: stalls.measure(size),
    "idle": lambda size: idle.measure(size),
    "verify": lambda size: verify.measure(round(2000 * size), ROUNDS),
    "sensors": lambda size: sensors.measure(size, ROUNDS),
    "backfill": lambda size: backfill.measure(size),
    "postgresql": lambda size: postgresql.measure(size),
    "console": lambda size: console.measure(size),
}

if __name__ == "__main__":
    main()
