"""What must be true of a disk after a power cut, and of the same disk once the receiver has recovered from it."""

from __future__ import annotations

import csv
import io
import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from unittest.mock import patch

import time_machine

from chaos.oracle import recorded
from chaos.traffic import Item, count_rows, digest
from power_cut.disk import ELSEWHERE, State
from power_cut.machine import DAY_SECONDS, OTHER_COLUMNS, Entry, Machine, Phase, write_files
from receiver.delivery.plugins import Plugins, load_plugins
from receiver.delivery.sinks import Sink, build_sinks
from receiver.event import Event
from receiver.journal import Delivery, Journal, Result, Settlement, open_journal
from receiver.journal.sql.sqlite import FileLock
from receiver.redaction import Redactor
from receiver.sensors import open_registry
from receiver.sensors.folding import Batch
from receiver.settings import Settings, load
from receiver.testing.samples import TEST_SECRET
from receiver.variables import SECRET

COMMON = ["event_id", "time", "device_id", "device_name", "project_id", "event_type"]
HEADERS = {
    "archive": [[*COMMON, "received_at", "labels", "data"]],
    "readings": [[*COMMON, "quantity", "value", "unit", "text", "labels"], ["event_id", *OTHER_COLUMNS]],
}
FILES = {"archive": "data/archive*.csv", "readings": "????-??-??/readings*.csv"}
DATABASES = ("data/journal.sqlite", "data/sensors.sqlite", "sql/readings.sqlite")
BATCH = 500
CLAIM_SECONDS = 60.0
MAX_NAMED = 3


class Oracle:
    """Judges states of the disk of a machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._disk = machine.disk
        self._items = {entry.item.id: entry for entry in machine.ledger}
        self._plugins: Plugins | None = None

    def problems(self, state: State) -> list[str]:
        """What is wrong with a state, and what the receiver's parts do wrong on it, called in this process."""
        phase = self._machine.phase_at(state.position)
        confirmed = self._machine.confirmed_at(state.position)
        write_files(self._disk, state.files)
        with time_machine.travel(datetime.now(UTC).timestamp() + phase.shift):
            try:
                settings = self._settings(phase)
                problems = list(self._damaged())
                with closing(open_journal(settings, "power_cut")) as journal:
                    problems += self._lacking(confirmed, phase)
                    required = [*confirmed, *self._stored()]
                    problems += self._deliver(settings, journal)
                return problems + self._misdelivered(required, settings)
            except Exception as error:
                return [f"the receiver's own code fails: {type(error).__name__}: {error}"]

    def problems_of_recovery(self, state: State) -> list[str]:
        """What is wrong once the real program has recovered from a state."""
        phase = self._machine.phase_at(state.position)
        confirmed = self._machine.confirmed_at(state.position)
        write_files(self._disk, state.files)
        problems = self._machine.recover(phase)
        return [*problems, *self._damaged(), *self._misdelivered(confirmed, self._settings(phase))]

    def _settings(self, phase: Phase) -> Settings:
        config = self._machine.folder / "config.toml"
        config.write_text(phase.config, encoding="utf-8")
        return load({"RECEIVER_CONFIG": str(config), SECRET: TEST_SECRET})

    def _damaged(self) -> Iterator[str]:
        for name in DATABASES:
            if (self._disk / name).exists():
                with closing(sqlite3.connect(self._disk / name)) as connection:
                    found = connection.execute("PRAGMA integrity_check").fetchall()
                if found != [("ok",)]:
                    yield f"{name} is damaged: {found[:MAX_NAMED]}"

    def _lacking(self, confirmed: list[Entry], phase: Phase) -> Iterator[str]:
        """What got 200 and is not in the journal, unless retention may have removed it."""
        bodies = self._bodies()
        retained = [entry for entry in confirmed if phase.began_at - entry.pushed_at < DAY_SECONDS]
        yield from named("got 200, but not in the journal", {entry.item.id for entry in retained} - bodies.keys())
        known = {name: self._items[name].item.body for name in bodies.keys() & self._items.keys()}
        yield from named("not in the journal as it was pushed", {name for name in known if known[name] != bodies[name]})
        yield from named("in the journal, but never pushed", bodies.keys() - known.keys())

    def _bodies(self) -> dict[str, bytes]:
        with closing(sqlite3.connect(self._disk / DATABASES[0])) as connection:
            query = "SELECT id, body FROM events UNION ALL SELECT id, body FROM quarantine"
            return dict(connection.execute(query).fetchall())

    def _stored(self) -> list[Entry]:
        return [self._items[name] for name in self._bodies() if name in self._items]

    def _deliver(self, settings: Settings, journal: Journal) -> list[str]:
        """Deliver everything that is pending, as the dispatcher does after a power cut."""
        self._plugins = self._plugins or load_plugins(settings, Redactor())
        sinks, broken = build_sinks(self._plugins, settings, Redactor())
        with patch.object(FileLock, "exit_when_stuck"):  # a dispatcher would end this process
            journal.start_dispatching()
        while new := journal.unrouted(BATCH):
            journal.route([(event, [sink.name for sink in sinks]) for event in new])
        for sink in sinks:
            sink.hook.open(name=sink.name, logger=logging.getLogger("power_cut"))
            try:
                while claimed := journal.claim(sink.name, BATCH, CLAIM_SECONDS):
                    call(sink, claimed)
                    journal.settle([Settlement(delivery, Result.DELIVERED) for delivery in claimed])
            finally:
                sink.hook.close()
        problems = [f"sink {name} cannot be built: {reason}" for name, reason in broken.items()]
        return [*problems, *self._undelivered(journal)]

    def _undelivered(self, journal: Journal) -> Iterator[str]:
        found = journal.counts().sinks
        for name in self._sinks():
            counts = found.get(name)
            if counts and (counts.pending or counts.dead):
                yield f"sink {name} has {counts.pending} pending deliveries and {counts.dead} dead letters"

    def _sinks(self) -> list[str]:
        return sorted({sink for entry in self._machine.ledger for sink in entry.sinks})

    def _misdelivered(self, required: list[Entry], settings: Settings) -> list[str]:
        """What is missing at sinks, or wrong in their files."""
        wanted = {
            sink: {entry.item.id: entry for entry in required if sink in entry.sinks and entry.item.type}
            for sink in self._sinks()
        }
        return [
            *self._rows_of("archive", wanted["archive"], lambda item: 1),
            *self._rows_of("readings", wanted["readings"], count_rows),
            *self._rows_in_sql(wanted["sql"]),
            *self._records(wanted["elsewhere"]),
            *self._sensors(wanted["sensors"], settings),
        ]

    def _rows_of(self, sink: str, wanted: Mapping[str, Entry], rows_of: Callable[[Item], int]) -> Iterator[str]:
        counts: Counter[str] = Counter()
        for path in sorted(self._disk.glob(FILES[sink])):
            name, content = path.relative_to(self._disk), path.read_bytes()
            if not content.endswith(b"\r\n") or b"\0" in content:
                yield f"{name} has a torn line"
                continue
            header, *rows = csv.reader(io.StringIO(content.decode(), newline=""))
            if header not in HEADERS[sink]:
                yield f"{name} has a wrong header: {header}"
                continue
            counts.update(row[0] for row in rows)
            wrong = {row[0] for row in rows if not self._fits(header, row)}
            yield from named(f"{name} has rows that are not of its header or event", wrong)
        yield from named(f"missing at sink {sink}", wanted.keys() - counts.keys())
        known = {name: self._items[name].item for name in counts if name in self._items}
        wrong = {name for name, item in known.items() if counts[name] != rows_of(item)}
        yield from named(f"not in the right number at sink {sink}", wrong)

    def _fits(self, header: list[str], row: list[str]) -> bool:
        entry = self._items.get(row[0])
        if entry is None or len(row) != len(header):
            return False
        event = decoded(entry)
        cells = dict(zip(header, row, strict=True))
        return (cells["event_type"], cells["device_id"]) == (event.type, event.device_id or "")

    def _rows_in_sql(self, wanted: Mapping[str, Entry]) -> Iterator[str]:
        with closing(sqlite3.connect(self._disk / DATABASES[2])) as connection:
            found = dict(connection.execute("SELECT event_id, count(*) FROM readings GROUP BY event_id").fetchall())
        readings = {name: len(decoded(entry).readings()) for name, entry in wanted.items()}
        wrong = {name for name, count in readings.items() if found.get(name, 0) != count}
        yield from named("not in the right number at sink sql", wrong)

    def _records(self, wanted: Mapping[str, Entry]) -> Iterator[str]:
        received = recorded("elsewhere", self._disk / ELSEWHERE / "seen.txt", lambda item: True)
        yield from named("missing at sink elsewhere", wanted.keys() - received.ids.keys())
        wrong = {name for name in wanted if received.digests.get(name, set()) - {digest(wanted[name].item.body)}}
        yield from named("at sink elsewhere with a different body", wrong)

    def _sensors(self, wanted: Mapping[str, Entry], settings: Settings) -> Iterator[str]:
        batch = Batch()
        for entry in wanted.values():
            batch.add(decoded(entry), settings.sensors.history_days * DAY_SECONDS)
        with closing(open_registry(settings)) as registry:
            heard = {row.device_id: row.last_heard or 0.0 for row in registry.rows()}
        late = {name for name, news in batch.sensors.items() if heard.get(name, -1.0) < (news.last_heard or 0.0)}
        yield from named("sensors that the registry has not heard as late as their events", late)


def decoded(entry: Entry) -> Event:
    return Event.from_body(entry.item.body, datetime.fromtimestamp(entry.pushed_at, UTC))


def call(sink: Sink, claimed: list[Delivery]) -> None:
    events = [delivery.event.decode() for delivery in claimed]
    attempts = [delivery.attempt for delivery in claimed]
    if sink.in_batches:
        sink.hook.deliver_batch(events=events, attempts=attempts)
        return
    for event, attempt in zip(events, attempts, strict=True):
        sink.hook.deliver(event=event, attempt=attempt)


def named(what: str, ids: set[str]) -> Iterator[str]:
    if ids:
        yield f"{what}: {len(ids)} ({', '.join(sorted(ids)[:MAX_NAMED])})"
