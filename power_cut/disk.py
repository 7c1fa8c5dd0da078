"""A disk, and what may be on it after a power cut.

Programs see every change at once. On the disk, what was flushed is certain; of other changes, any part may be there.
Which parts are possible depends on the file system: `Rules`.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from power_cut.recording import Files, Kind, Operation, Recording

ELSEWHERE = "elsewhere"
"""This folder represents another machine, which has power: everything written there survives."""


END = (1 << 63) - 1
"""A position after the end of every recording."""


@dataclass(frozen=True)
class Rules:
    """What a file system may lose in a power cut, of changes that were not flushed.

    Data reach the disk in blocks of `block` bytes, each in any of its states since the last flush, independently.

    ordered: names, and the sizes of files that became shorter, reach the disk in the order of their changes; a flush of
        a file whose name or size has changed, or of a folder, makes all earlier ones durable. Otherwise each is lost or
        not, independently, until its own folder or file is flushed.
    zeros: a file can have its new size without its data, and has zeros in their place. Otherwise a file grows as its
        data are written, from front to back.
    """

    name: str
    block: int
    ordered: bool
    zeros: bool


RULES = (
    Rules("ext4", 4096, ordered=True, zeros=False),  # data=ordered, which is its default
    Rules("XFS", 4096, ordered=True, zeros=True),
    Rules("POSIX", 512, ordered=False, zeros=True),
)


@dataclass(frozen=True)
class Loss:
    """Which of the changes that were not flushed are on the disk: "none", "some" or "all" of the names and of the data.

    Truncations count as names.
    """

    names: str
    data: str

    def __str__(self) -> str:
        return f"{self.names} names, {self.data} data"


NOTHING_LOST = Loss("all", "all")
LOSSES = (
    Loss("none", "none"),
    Loss("all", "none"),
    Loss("none", "all"),
    NOTHING_LOST,
    Loss("some", "some"),
    Loss("some", "some"),
)
"""What is tried at each cut; the last two differ at random."""


@dataclass(frozen=True)
class State:
    """What may be on the disk when the power fails at a position of the recording."""

    position: int
    rules: Rules
    loss: Loss
    files: Files = field(repr=False)

    def __str__(self) -> str:
        return f"cut at {self.position}, {self.rules.name}, {self.loss}"


class File:
    """A file: what is certainly on the disk, and the changes that may be there as well."""

    def __init__(self, content: bytes = b"") -> None:
        self.flushed = bytearray(content)
        self.size = len(content)
        self.pending: list[tuple[int, Operation]] = []

    def change(self, number: int, operation: Operation) -> None:
        end = operation.offset + len(operation.data)
        self.size = end if operation.kind is Kind.TRUNCATE else max(self.size, end)
        self.pending.append((number, operation))

    def has_new_size(self) -> bool:
        return self.size != len(self.flushed) or any(each.kind is Kind.TRUNCATE for _, each in self.pending)

    def flush(self) -> None:
        for _, operation in self.pending:
            perform(self.flushed, operation)
        self.pending.clear()

    def content(self, chance: Chance) -> bytes:
        """What may be on the disk."""
        content = bytearray(self.flushed)
        changes_seen = chance.changes_seen(len(self.flushed), self.size, len(self.pending))
        for count, (number, operation) in enumerate(self.pending):
            if operation.kind is Kind.TRUNCATE:
                if chance.has_name(number):
                    perform(content, operation)
                continue
            for block, offset, data in blocks(operation, chance.rules.block):
                if count < changes_seen(block):
                    put(content, offset, data)
        if chance.has_size() and len(content) < self.size:
            resize(content, self.size)
        return bytes(content)


FOLDER = "a folder"
Entry = File | str | None
"""What has a name: a file, FOLDER, or nothing any more."""


@dataclass(frozen=True)
class Renaming:
    """Names in one folder that change together."""

    number: int
    folder: str
    entries: Mapping[str, Entry]


class Disk:
    """The disk on which operations are performed, one after another."""

    def __init__(self, rules: Rules, recording: Recording) -> None:
        self._rules = rules
        self._files: dict[int, File] = {}
        self._names: dict[str, Entry] = {}
        """As programs see them."""
        for path, found in recording.base.items():
            self._names[path] = FOLDER
            if found is not None:
                self._names[path] = self._files[found.inode] = File(found.content)
        self._flushed = dict(self._names)
        self._renamings: list[Renaming] = []
        self._committed = -1
        """The last operation whose names are certain, if they are ordered."""

    def perform(self, number: int, operation: Operation) -> None:
        match operation.kind:
            case Kind.CREATE:
                self._create(number, operation)
            case Kind.WRITE | Kind.TRUNCATE:
                self._files[operation.inode].change(number, operation)
            case Kind.FLUSH:
                self._flush(number, self._files[operation.inode])
            case Kind.FLUSH_FOLDER:
                self._flush_folder(number, operation.path)
            case Kind.RENAME:
                self._rename(number, {operation.path: None, operation.data.decode(): self._names[operation.path]})
            case Kind.UNLINK:
                if operation.path in self._names:  # else a socket
                    self._rename(number, {operation.path: None})
            case Kind.MAKE_FOLDER:
                self._rename(number, {operation.path: FOLDER})
        if operation.path.startswith(ELSEWHERE):
            self._flushed |= {path: entry for path, entry in self._names.items() if path.startswith(ELSEWHERE)}
            if operation.inode in self._files:
                self._files[operation.inode].flush()

    def after_cut(self, chance: Chance) -> Files:
        """What may be on the disk now."""
        names = dict(self._flushed)
        for renaming in self._renamings:
            if chance.has_name(renaming.number):
                names |= renaming.entries
        return {
            path: entry.content(chance) if isinstance(entry, File) else None
            for path, entry in sorted(names.items())
            if entry is not None and all(names.get(above) == FOLDER for above in folders_above(path))
        }

    def inodes(self) -> dict[str, int]:
        """The inodes of all files that programs see, by path."""
        inodes = {file: inode for inode, file in self._files.items()}
        return {path: inodes[entry] for path, entry in self._names.items() if isinstance(entry, File)}

    def chance(self, number: int, loss: Loss, rng: random.Random) -> Chance:
        """What decides which changes a cut after the operation of this number loses."""
        return Chance(self._rules, loss, self._committed, number, rng)

    def _create(self, number: int, operation: Operation) -> None:
        file = self._files.get(operation.inode)
        if file is None or self._names.get(operation.path) is not file:
            file = self._files[operation.inode] = File()
            self._rename(number, {operation.path: file})
        elif operation.offset and file.size:
            file.change(number, Operation(Kind.TRUNCATE, operation.path, operation.inode, 0, b"", operation.end))

    def _rename(self, number: int, entries: Mapping[str, Entry]) -> None:
        self._names |= entries
        self._renamings.append(Renaming(number, folder_of(next(iter(entries))), entries))

    def _flush(self, number: int, file: File) -> None:
        is_new = any(file in renaming.entries.values() for renaming in self._renamings)
        if self._rules.ordered and (is_new or file.has_new_size()):
            self._commit(number)
        file.flush()

    def _flush_folder(self, number: int, folder: str) -> None:
        certain = [each for each in self._renamings if each.folder == folder]
        if self._rules.ordered:
            if certain:
                self._commit(number)
            return
        self._renamings = [each for each in self._renamings if each.folder != folder]
        for renaming in certain:
            self._flushed |= renaming.entries

    def _commit(self, number: int) -> None:
        for renaming in self._renamings:
            self._flushed |= renaming.entries
        self._renamings.clear()
        self._committed = number


class Chance:
    """Decides at random, by the rules of a file system, which changes that were not flushed are on the disk."""

    def __init__(self, rules: Rules, loss: Loss, committed: int, number: int, rng: random.Random) -> None:
        self.rules = rules
        self._loss = loss
        self._rng = rng
        self._share = rng.random()
        self._up_to = {"none": committed, "some": rng.randint(committed, number), "all": number}[loss.names]

    def has_name(self, number: int) -> bool:
        """Whether the disk has a change of names, or a truncation."""
        return number <= self._up_to if self.rules.ordered else self._is_there(self._loss.names)

    def has_size(self) -> bool:
        """Whether a file has its size without its data."""
        return self.rules.zeros and self._is_there(self._loss.names)

    def changes_seen(self, before: int, after: int, changes: int) -> Callable[[int], int]:
        """A function of a block of a file: how many of its `changes` it had seen when it was written, 0 if it was not.

        The file had `before` bytes when it was flushed and has `after` now.
        """
        if self._loss.data != "some":
            return lambda block: changes if self._loss.data == "all" else 0
        last = before // self.rules.block
        grown_to = self._rng.randint(last, max(last, -(-after // self.rules.block)))

        def seen(block: int) -> int:
            if block >= last and not self.rules.zeros:
                return changes if block < grown_to else 0
            return self._rng.choice((0, changes, self._rng.randint(0, changes)))

        return functools.cache(seen)

    def _is_there(self, share: str) -> bool:
        return share == "all" or (share == "some" and self._rng.random() < self._share)


def states(
    recording: Recording, rules: Rules, cuts: Collection[int], losses: Collection[Loss], seed: object
) -> Iterator[State]:
    """The states of the disk when the power fails after each number of operations in `cuts`."""
    disk = Disk(rules, recording)
    for number, position in enumerate(positions(recording)):
        if number in cuts:
            for attempt, loss in enumerate(losses):
                rng = random.Random(f"{seed} {number} {rules.name} {attempt}")
                yield State(position, rules, loss, disk.after_cut(disk.chance(number, loss, rng)))
        if number < len(recording.operations):
            disk.perform(number, recording.operations[number])


def positions(recording: Recording) -> list[int]:
    """The last position before each operation, and that at the end."""
    return [*(operation.end - 1 for operation in recording.operations), END]


def replay(recording: Recording) -> Files:
    """What was on the disk at the end, when nothing was lost."""
    (state,) = states(recording, RULES[0], [len(recording.operations)], [NOTHING_LOST], None)
    return state.files


def after_kill(earlier: Recording, number: int, later: Recording) -> Recording:
    """One recording of both: `later` began on the files that programs saw after `number` operations of `earlier`.

    The programs were killed then, which loses nothing, but leaves changes that are not flushed. All positions of
    `earlier` become 0.
    """
    disk = Disk(RULES[0], earlier)
    for each in range(number):
        disk.perform(each, earlier.operations[each])
    inodes = {inode: found.inode for path, inode in disk.inodes().items() if (found := later.base[path])}

    def inode(before: int) -> int:
        return inodes.get(before, -before)

    base = {path: found and replace(found, inode=inode(found.inode)) for path, found in earlier.base.items()}
    before = [replace(each, inode=inode(each.inode), end=0) for each in earlier.operations[:number]]
    return Recording(base, [*before, *later.operations])


def perform(content: bytearray, operation: Operation) -> None:
    if operation.kind is Kind.TRUNCATE:
        resize(content, operation.offset)
    else:
        put(content, operation.offset, operation.data)


def put(content: bytearray, offset: int, data: bytes) -> None:
    if offset > len(content):
        resize(content, offset)
    content[offset : offset + len(data)] = data


def resize(content: bytearray, size: int) -> None:
    del content[size:]
    content.extend(bytes(size - len(content)))


def blocks(operation: Operation, size: int) -> Iterator[tuple[int, int, bytes]]:
    """A write in parts of one block each: the number of the block, the offset, the data."""
    start, end = operation.offset, operation.offset + len(operation.data)
    while start < end:
        block = start // size
        stop = min(end, (block + 1) * size)
        yield block, start, operation.data[start - operation.offset : stop - operation.offset]
        start = stop


def folder_of(path: str) -> str:
    """The path of the folder that has a name; empty for the top folder."""
    return "" if "/" not in path else path.rpartition("/")[0]


def folders_above(path: str) -> list[str]:
    return [str(above) for above in PurePosixPath(path).parents][:-1]
