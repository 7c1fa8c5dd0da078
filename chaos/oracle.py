"""The conservation oracle: what the targets of the sinks got, compared with the ledger.

An event that was answered 200 must be at every sink whose filter it passes. Only what was first pushed or answered
while a sink was disabled may be missing there.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from chaos.system import SOME_TYPES, System
from chaos.traffic import Entry, Item
from receiver.event import Event

NOTE = re.compile(r"^([A-Za-z0-9_-]{1,64}) (\d+) ([0-9a-f]{64})$", re.MULTILINE)
NAMED_AT_MOST = 5


@dataclass(frozen=True)
class Got:
    """What one sink's target has: how often each id, with which bodies (SHA-256, where it shows any).

    `wants` says which items the sink is owed. With `exactly` it must hold each that often, else at least once.
    """

    sink: str
    ids: Counter[str]
    digests: Mapping[str, set[str]] = field(default_factory=dict)
    wants: Callable[[Item], bool] = lambda item: item.type is not None
    exactly: Callable[[Item], int] | None = None
    repeated: int = 0
    """How many attempts after the first it has seen."""


@dataclass(frozen=True)
class Violation:
    """A broken promise, with some of the ids it was broken for."""

    what: str
    ids: tuple[str, ...] = ()

    def __str__(self) -> str:
        named = ", ".join([*self.ids[:NAMED_AT_MOST], *["…"] * (len(self.ids) > NAMED_AT_MOST)])
        return f"{self.what}: {len(self.ids)} ({named})" if self.ids else self.what


def judge(
    entries: Sequence[Entry], quarantined: set[str], got: Sequence[Got], disabled: Sequence[tuple[str, float, float]]
) -> list[Violation]:
    """Every way in which targets and ledger differ that they must not."""
    items = {entry.item.id: entry.item for entry in entries}
    no_events = {item.id for item in items.values() if item.type is None}
    found = {
        "pushed again and again, and never answered 200": {e.item.id for e in entries if e.taken_at is None},
        "answered 200, and not in quarantine": {e.item.id for e in entries if e.taken_at} & no_events - quarantined,
        "in quarantine, and never sent": quarantined - no_events,
    }
    for each in got:
        windows = [(since, until) for name, since, until in disabled if name == each.sink]
        found |= compare(each, items, {e.item.id for e in entries if must_have(e, each, windows)})
    violations = [Violation(what, tuple(sorted(ids))) for what, ids in found.items() if ids]
    if not any(each.repeated for each in got):
        violations.append(Violation("no sink saw an event twice, so that repeating was not tried"))
    return violations


def must_have(entry: Entry, got: Got, windows: Iterable[tuple[float, float]]) -> bool:
    """Whether a sink is owed an item: it was answered 200, and not perhaps journaled while the sink was disabled."""
    if entry.taken_at is None or not got.wants(entry.item):
        return False
    return not any(entry.first_pushed_at < until and since < entry.taken_at for since, until in windows)


def compare(got: Got, items: Mapping[str, Item], owed: set[str]) -> dict[str, set[str]]:
    """What one sink lacks, should not have, or has otherwise than it should."""
    known = {name for name in got.ids if name in items and got.wants(items[name])}
    return {
        f"answered 200, and missing at sink {got.sink}": owed - got.ids.keys(),
        f"at sink {got.sink}, and never sent or not for it": got.ids.keys() - known,
        f"at sink {got.sink} with another body": {
            name for name in known if got.digests.get(name, set()) - {digest(items[name].body)}
        },
        f"not just once at sink {got.sink}": {
            name for name in known if got.exactly and got.ids[name] != got.exactly(items[name])
        },
    }


def collect(system: System) -> list[Got]:
    """What all targets have now."""
    target, receiver = system.target, system.receiver
    return [
        Got(
            "hook",
            Counter(target.taken.copy()),
            {
                name: {hashlib.sha256(body).hexdigest() for body in bodies}
                for name, bodies in target.bodies.copy().items()
            },
            repeated=sum(target.times.values()) - len(target.times),
        ),
        Got("events", rows(system.folder / "events.csv"), exactly=lambda item: 1),
        Got("readings", rows(system.folder / "readings.csv"), exactly=rows_of),
        Got("console", Counter(receiver.printed())),
        notes("some", system.folder / "some.txt", lambda item: item.type in SOME_TYPES),
        notes("odd", system.folder / "odd.txt", lambda item: item.type is not None),
    ]


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def no_events_kept(system: System) -> set[str]:
    """The ids of all that is in quarantine, which are the SHA-256 of what was pushed."""
    return {held["id"] for held in json.loads(system.receiver.run("quarantine", "list", "--json"))}


def rows(path: Path) -> Counter[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return Counter(row["event_id"] for row in csv.DictReader(file))


def rows_of(item: Item) -> int:
    """How many rows an event has in a file of readings."""
    return max(1, len(Event.from_body(item.body, datetime.now(UTC)).readings()))


def notes(sink: str, path: Path, wants: Callable[[Item], bool]) -> Got:
    """What the plugin has written down; a line that was cut short is none."""
    ids: Counter[str] = Counter()
    digests: dict[str, set[str]] = {}
    repeated = 0
    for name, attempt, digest in NOTE.findall(path.read_text(encoding="utf-8")):
        ids[name] += 1
        digests.setdefault(name, set()).add(digest)
        repeated += int(attempt) > 1
    return Got(sink, ids, digests, wants, repeated=repeated)
