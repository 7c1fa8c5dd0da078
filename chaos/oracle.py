"""The conservation oracle: what the destinations of the sinks received, compared with the ledger.

An event that got 200 must be at every sink whose filter it passes. Only one that may have been accepted while a sink
was disabled may be missing at that sink.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from chaos.system import SOME_TYPES, System
from chaos.traffic import Entry, Item
from receiver.event import Event
from receiver.journal import open_database
from receiver.sensors.registry import Registry
from receiver.sensors.watch import Rules

RECORD = re.compile(r"^([A-Za-z0-9_-]{1,64}) (\d+) ([0-9a-f]{64})$", re.MULTILINE)
MAX_NAMED = 5
FOLDED_AT_ONCE = 500


@dataclass(frozen=True)
class Received:
    """What the destination of one sink received: how often each id, and with which bodies (SHA-256, where visible).

    `expects` says which items pass the sink's filter. With `exactly` each must be there so often, otherwise at least
    once. `repeats` counts the attempts after the first.
    """

    sink: str
    ids: Counter[str]
    digests: Mapping[str, set[str]] = field(default_factory=dict)
    expects: Callable[[Item], bool] = lambda item: item.type is not None
    exactly: Callable[[Item], int] | None = None
    repeats: int = 0


@dataclass(frozen=True)
class Violation:
    """A broken promise, and the ids for which it was broken."""

    what: str
    ids: tuple[str, ...] = ()

    def __str__(self) -> str:
        named = ", ".join([*self.ids[:MAX_NAMED], *["…"] * (len(self.ids) > MAX_NAMED)])
        return f"{self.what}: {len(self.ids)} ({named})" if self.ids else self.what


def judge(
    entries: Sequence[Entry],
    quarantined: set[str],
    received: Sequence[Received],
    disabled: Sequence[tuple[str, float, float]],
    *,
    repeats: bool = True,
) -> list[Violation]:
    """Every forbidden difference between destinations and ledger. With `repeats`, some must have been repeated."""
    items = {entry.item.id: entry.item for entry in entries}
    not_events = {item.id for item in items.values() if item.type is None}
    confirmed = {entry.item.id for entry in entries if entry.confirmed_at is not None}
    found = {
        "retried to the end, and never got 200": items.keys() - confirmed,
        "got 200, but not in quarantine": (confirmed & not_events) - quarantined,
        "in quarantine, but never pushed": quarantined - not_events,
    }
    for each in received:
        windows = [(since, until) for name, since, until in disabled if name == each.sink]
        found |= compare(each, items, {entry.item.id for entry in entries if must_have(each, entry, windows)})
    violations = [Violation(what, tuple(sorted(ids))) for what, ids in found.items() if ids]
    if repeats and not any(each.repeats for each in received):
        violations.append(Violation("no sink received an event twice, so repeats were not tested"))
    return violations


def must_have(received: Received, entry: Entry, windows: Iterable[tuple[float, float]]) -> bool:
    """Whether an item must be at a sink: it got 200, and cannot have been accepted while the sink was disabled."""
    if entry.confirmed_at is None or not received.expects(entry.item):
        return False
    return not any(entry.first_pushed_at < until and since < entry.confirmed_at for since, until in windows)


def compare(received: Received, items: Mapping[str, Item], required: set[str]) -> dict[str, set[str]]:
    """The ids that one sink lacks, should not have, or has otherwise than it should."""
    expected = {name for name in received.ids if name in items and received.expects(items[name])}
    return {
        f"got 200, but missing at sink {received.sink}": required - received.ids.keys(),
        f"at sink {received.sink}, but never pushed or filtered out": received.ids.keys() - expected,
        f"at sink {received.sink} with a different body": {
            name for name in expected if received.digests.get(name, set()) - {digest(items[name].body)}
        },
        f"not in the right number at sink {received.sink}": {
            name for name in expected if received.exactly and received.ids[name] != received.exactly(items[name])
        },
    }


def collect(system: System) -> list[Received]:
    """What all destinations have received so far."""
    target, receiver = system.target, system.receiver
    return [
        Received(
            "hook",
            Counter(target.accepted.copy()),
            {name: {digest(body) for body in bodies} for name, bodies in target.bodies.copy().items()},
            repeats=sum(target.calls.values()) - len(target.calls),
        ),
        Received("events", rows(system.folder / "events.csv"), exactly=lambda item: 1),
        Received("readings", rows(system.folder / "readings.csv"), exactly=count_rows),
        Received("console", Counter(receiver.printed_ids())),
        recorded("some", system.folder / "some.txt", lambda item: item.type in SOME_TYPES),
        recorded("odd", system.folder / "odd.txt", lambda item: item.type is not None),
        *([stored(system)] if system.database_url else []),
    ]


def stored(system: System) -> Received:
    """What is in the database of the journal: after failovers, that of the survivor."""
    digests = dict(system.sql("SELECT id, encode(sha256(body), 'hex') FROM events"))
    return Received("journal", Counter(digests.keys()), {name: {found} for name, found in digests.items()})


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def quarantined_ids(system: System) -> set[str]:
    """The ids of all pushes in quarantine: the SHA-256 of each body."""
    return {push["id"] for push in json.loads(system.receiver.run("quarantine", "list", "--json"))}


def rows(path: Path) -> Counter[str]:
    if not path.exists():
        return Counter()
    with path.open(newline="", encoding="utf-8") as file:
        return Counter(row["event_id"] for row in csv.DictReader(file))


def count_rows(item: Item) -> int:
    """How many rows an event has in a file of readings."""
    return max(1, len(Event.from_body(item.body, datetime.now(UTC)).readings()))


def recorded(sink: str, path: Path, expects: Callable[[Item], bool]) -> Received:
    """What the plugin has recorded; a line that was cut short does not count."""
    ids: Counter[str] = Counter()
    digests: dict[str, set[str]] = {}
    repeats = 0
    for name, attempt, sha256 in RECORD.findall(path.read_text(encoding="utf-8") if path.exists() else ""):
        ids[name] += 1
        digests.setdefault(name, set()).add(sha256)
        repeats += int(attempt) > 1
    return Received(sink, ids, digests, expects, repeats=repeats)


def compare_registry(system: System, entries: Sequence[Entry]) -> list[Violation]:
    """The sensors of which the registry knows something else than one into which each event was folded once."""
    expected, now = Path(system.folder / "expected.sqlite"), datetime.now(UTC)
    events = (Event.from_body(entry.item.body, now) for entry in entries if entry.item.type is not None)
    with closing(open_registry(None, expected)) as registry:
        for batch in iter(lambda: list(itertools.islice(events, FOLDED_AT_ONCE)), []):
            registry.fold(batch)
        folded = known_facts(registry)
    with closing(open_registry(system.database_url, system.folder / "data" / "sensors.sqlite")) as registry:
        found = known_facts(registry)
    different = {device for device in folded.keys() | found.keys() if folded.get(device) != found.get(device)}
    return [Violation("the registry knows something else of a sensor", tuple(sorted(different)))] if different else []


def open_registry(url: str | None, path: Path) -> Registry:
    return Registry(open_database(url, path), Rules())


def known_facts(registry: Registry) -> dict[str, object]:
    """What each sensor said last."""
    return {row.device_id: json.loads(row.facts) for row in registry.rows()}
