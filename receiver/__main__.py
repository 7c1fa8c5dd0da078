"""`python -m receiver`, and the command `receiver`."""

from __future__ import annotations

import gc
import io
import os
import select
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def run(prog_name: str = "receiver") -> None:
    open_closed_descriptors()
    write_output_completely()
    gc.disable()  # what is imported stays: looking for garbage in it makes a start slower
    try:
        from receiver.commands.main import main
    except KeyboardInterrupt:  # reported as click does later
        sys.exit("\nAborted!")
    gc.freeze()
    gc.enable()
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


def write_output_completely() -> None:
    """Let standard output write each line completely or fail, and escape the characters that its encoding lacks.

    Python drops the rest of what a full disk takes a part of, if PYTHONUNBUFFERED is set; and it fails for a full pipe
    that another program has made non-blocking. Standard error is left as it is: intake must not wait for the reader of
    its log.
    """
    sys.stdout = io.TextIOWrapper(
        WholeWrites(1, "w", closefd=False),
        encoding=sys.stdout.encoding,
        errors="backslashreplace" if sys.stdout.errors == "strict" else sys.stdout.errors,
        line_buffering=True,
    )


class WholeWrites(io.FileIO):
    """A file whose writes are complete, or raise OSError."""

    def write(self, data: ReadableBuffer) -> int:
        rest = memoryview(data)
        while rest:
            if (written := super().write(rest)) is None:
                select.select([], [self], [])
            else:
                rest = rest[written:]
        return len(memoryview(data))


if __name__ == "__main__":
    run("python -m receiver")
