"""Power cuts of the receiver's machine: what its disk may have lost of what was not flushed."""

from __future__ import annotations

import random
from pathlib import Path

from power_cut.disk import LOSSES, NOTHING_LOST, RULES, State, states
from power_cut.recording import NOT_RECORDED, Files, Recording, contents


def lose_power(disk: Path, recording: Recording, choice: float) -> State:
    """Change a disk, which is recorded up to the end of its programs, to one that a power cut may have left there.

    `choice`, from 0 to 1, determines the file system and what is lost. Raises AssertionError, and changes nothing, if
    the recording does not reproduce the disk.
    """
    rng = random.Random(choice)
    rules, losses = rng.choice(RULES), [NOTHING_LOST, rng.choice(LOSSES)]
    before = contents(disk)
    whole, after = states(recording, rules, [len(recording.operations)], losses, choice)
    assert whole.files == before, "the recording does not reproduce the disk"
    replace(disk, before, after.files)
    return after


def replace(disk: Path, before: Files, after: Files) -> None:
    """Change what is below a folder from `before` to `after`; large files that are the same are not written again."""
    for path in disk.rglob(f"*{NOT_RECORDED}"):
        path.unlink()
    for name in sorted(before.keys() - after.keys(), reverse=True):
        path = disk / name
        path.rmdir() if before[name] is None else path.unlink()
    for name, content in after.items():
        if content is None:
            (disk / name).mkdir(exist_ok=True)
        elif content != before.get(name):
            (disk / name).write_bytes(content)
