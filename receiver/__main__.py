"""`python -m receiver`, and the command `receiver`."""

from __future__ import annotations

import io
import os
import sys


def run(prog_name: str = "receiver") -> None:
    open_closed_descriptors()
    escape_what_output_lacks()
    try:
        from receiver.commands.main import main
    except KeyboardInterrupt:  # reported as click does later
        sys.exit("\nAborted!")
    main(prog_name=prog_name)


def open_closed_descriptors() -> None:
    """Open /dev/null in place of each of standard input, output and error that is closed.

    Otherwise the next file or socket that is opened gets its number, and what is printed or logged goes there.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free
            os.set_inheritable(descriptor, True)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)


def escape_what_output_lacks() -> None:
    """Let standard output escape the characters that its encoding lacks, as standard error does."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    run("python -m receiver")
