"""The conservation oracle: what the destinations of the sinks received, compared with the ledger.

An event that got 200 must be at every sink whose filter it passes. Only one that may have been accepted while a sink
was disabled may be missing at that sink.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from chaos.system import SOME_TYPES, System
from chaos.traffic import Entry, digest
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

    `expects` says which pass the sink's filter. With `exactly` each must be there so often, otherwise at least once.
    `repeats` counts the attempts after the first.
    """

    sink: str
    ids: Counter[str]
    digests: Mapping[str, set[str]] = field(default_factory=dict)
    expects: Callable[[Entry], bool] = lambda entry: entry.type is not None
    exactly: Callable[[Entry], int] | None = None
    repeats: int = 0


@dataclass(frozen=True)
class Violation:
    """A broken promise, and the ids for which it was broken."""

    what: str
    ids: tuple[str, ...] = ()

    def __str__(self) -> str:
        named = ", ".join([*self.ids[:MAX_NAMED], *["…"] * (len(self.ids) > MAX_NAMED)])
        return f"{self.what}: {len(self.ids)} ({named})" if self.ids else self.what


@dataclass(frozen=True)
class Verdict:
    """What was found: the broken promises, and for each sink how often its destination saw a repeated attempt."""

    violations: list[Violation]
    repeats: Mapping[str, int]


def judge(
    entries: Sequence[Entry],
    quarantined: set[str],
    received: Iterable[Received],
    disabled: Sequence[tuple[str, float, float]],
    *,
    repeats: bool = True,
) -> Verdict:
    """Every forbidden difference between destinations and ledger. With `repeats`, some must have been repeated.

    What was received is looked at one sink after another, since all together may not fit into memory.
    """
    ledger = {entry.id: entry for entry in entries}
    not_events = {entry.id for entry in entries if entry.type is None}
    confirmed = {entry.id for entry in entries if entry.confirmed_at is not None}
    found = {
        "retried to the end, and never got 200": ledger.keys() - confirmed,
        "got 200, but not in quarantine": (confirmed & not_events) - quarantined,
        "in quarantine, but never pushed": quarantined - not_events,
    }
    repeated: dict[str, int] = {}
    for each in received:
        windows = [(since, until) for name, since, until in disabled if name == each.sink]
        found |= compare(each, ledger, {entry.id for entry in entries if must_have(each, entry, windows)})
        repeated[each.sink] = each.repeats
    violations = [Violation(what, tuple(sorted(ids))) for what, ids in found.items() if ids]
    if repeats and not any(repeated.values()):
        violations.append(Violation("no sink received an event twice, so repeats were not tested"))
    return Verdict(violations, repeated)


def must_have(received: Received, entry: Entry, windows: Iterable[tuple[float, float]]) -> bool:
    """Whether an item must be at a sink: it got 200, and cannot have been accepted while the sink was disabled."""
    if entry.confirmed_at is None or not received.expects(entry):
        return False
    return not any(entry.first_pushed_at < until and since < entry.confirmed_at for since, until in windows)


def compare(received: Received, ledger: Mapping[str, Entry], required: set[str]) -> dict[str, set[str]]:
    """The ids that one sink lacks, should not have, or has otherwise than it should."""
    expected = {name for name in received.ids if name in ledger and received.expects(ledger[name])}
    return {
        f"got 200, but missing at sink {received.sink}": required - received.ids.keys(),
        f"at sink {received.sink}, but never pushed or filtered out": received.ids.keys() - expected,
        f"at sink {received.sink} with a different body": {
            name for name in expected if received.digests.get(name, set()) - {ledger[name].digest}
        },
        f"not in the right number at sink {received.sink}": {
            name for name in expected if received.exactly and received.ids[name] != received.exactly(ledger[name])
        },
    }


def collect(system: System) -> Iterator[Received]:
    """What all destinations have received so far, one after another."""
    target, receiver = system.target, system.receiver
    yield Received(
        "hook",
        Counter(target.accepted),
        target.digests,
        repeats=sum(target.calls.values()) - len(target.calls),
    )
    yield Received("events", rows(system.local / "events.csv"), exactly=lambda entry: 1)
    yield Received("readings", rows(system.local / "readings.csv"), exactly=lambda entry: entry.rows)
    yield Received("console", Counter(receiver.printed_ids()))
    yield recorded("some", system.folder / "some.txt", lambda entry: entry.type in SOME_TYPES)
    yield recorded("odd", system.folder / "odd.txt", lambda entry: entry.type is not None)
    if system.broker is not None:
        received = recorded("broker", system.folder / "broker.txt", lambda entry: entry.type is not None)
        yield replace(received, repeats=received.ids.total() - len(received.ids))
    yield stored(system)


def stored(system: System) -> Received:
    """What is in the journal: after failovers, in that of the survivor."""
    digests = {name: {digest(body)} for name, body in system.journal("SELECT id, body FROM events")}
    return Received("journal", Counter(digests.keys()), digests)


def quarantined_ids(system: System) -> set[str]:
    """The ids of all pushes in quarantine: the SHA-256 of each body."""
    return {name for (name,) in system.journal("SELECT id FROM quarantine")}


def rows(path: Path) -> Counter[str]:
    if not path.exists():
        return Counter()
    with path.open(newline="", encoding="utf-8") as file:
        return Counter(row["event_id"] for row in csv.DictReader(file))


def recorded(sink: str, path: Path, expects: Callable[[Entry], bool]) -> Received:
    """What the plugin has recorded; a line that was cut short does not count."""
    ids: Counter[str] = Counter()
    digests: dict[str, set[str]] = {}
    repeats = 0
    for found in RECORD.finditer(path.read_text(encoding="utf-8") if path.exists() else ""):
        name, attempt, sha256 = found.groups()
        ids[name] += 1
        digests.setdefault(name, set()).add(sha256)
        repeats += int(attempt) > 1
    return Received(sink, ids, digests, expects, repeats=repeats)


def compare_registry(system: System) -> list[Violation]:
    """The sensors of which the registry knows something else than one into which each event was folded once.

    The events are those of the journal, which `judge` has compared with the ledger.
    """
    expected, now = Path(system.folder / "expected.sqlite"), datetime.now(UTC)
    events = (Event.from_body(body, now) for (body,) in system.journal("SELECT body FROM events"))
    with closing(open_registry(None, expected)) as registry:
        for batch in iter(lambda: list(itertools.islice(events, FOLDED_AT_ONCE)), []):
            registry.fold(batch)
        folded = known_facts(registry)
    with closing(open_registry(system.database_url, system.registry_path)) as registry:
        found = known_facts(registry)
    different = {device for device in folded.keys() | found.keys() if folded.get(device) != found.get(device)}
    return [Violation("the registry knows something else of a sensor", tuple(sorted(different)))] if different else []


def open_registry(url: str | None, path: Path) -> Registry:
    return Registry(open_database(url, path), Rules())


def known_facts(registry: Registry) -> dict[str, object]:
    """What each sensor said last."""
    return {row.device_id: json.loads(row.facts) for row in registry.rows()}
