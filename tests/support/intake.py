"""A receiver that tests of intake share, and what it has stored and counted."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest

from receiver.demo import metric_value
from receiver.testing.running import CSV_ONLY, RunningReceiver

PUSHES = re.compile(r'^receiver_pushes_total\{code="(\d+)",result="(.*)"\} (\S+)$', re.MULTILINE)


@pytest.fixture(scope="session")
def shared_receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReceiver]:
    """A receiver with the usual settings, for tests that neither stop it nor slow it down."""
    receiver = RunningReceiver(tmp_path_factory.mktemp("shared_receiver"), CSV_ONLY, None, {})
    try:
        yield receiver.start()
    finally:
        receiver.kill_all()


@dataclass(frozen=True)
class Snapshot:
    """What the journal file contains, and how many pushes got which response by `/metrics`."""

    events: frozenset[str]
    quarantined: frozenset[str]
    responses: dict[tuple[int, str], int]

    @classmethod
    def of(cls, receiver: RunningReceiver) -> Snapshot:
        page = receiver.http.request("GET", f"{receiver.url}/metrics").data.decode()
        with closing(open_journal_file(receiver)) as file:
            events = frozenset(row[0] for row in file.execute("SELECT id FROM events"))
            quarantined = frozenset(row[0] for row in file.execute("SELECT id FROM quarantine"))
        assert metric_value(page, "receiver_quarantined_pushes") == len(quarantined)
        return cls(events, quarantined, {(int(code), text): int(float(n)) for code, text, n in PUSHES.findall(page)})

    def after(self, status: int, text: str, event: str | None = None, quarantined: str | None = None) -> Snapshot:
        """This snapshot after one more push with that response, which stored nothing but what is named."""
        return Snapshot(
            self.events | ({event} if event else set()),
            self.quarantined | ({quarantined} if quarantined else set()),
            {**self.responses, (status, text): self.responses.get((status, text), 0) + 1},
        )


def stored_event(receiver: RunningReceiver, event_id: str) -> list[tuple[bytes]]:
    """The body of an event in the journal file."""
    with closing(open_journal_file(receiver)) as file:
        return file.execute("SELECT body FROM events WHERE id = ?", [event_id]).fetchall()


def quarantined_push(receiver: RunningReceiver, push_id: str) -> list[tuple[str, bytes]]:
    """The reason and the body of a push in the journal file's quarantine."""
    with closing(open_journal_file(receiver)) as file:
        return file.execute("SELECT reason, body FROM quarantine WHERE id = ?", [push_id]).fetchall()


def open_journal_file(receiver: RunningReceiver) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{receiver.folder}/data/journal.sqlite?mode=ro", uri=True)
