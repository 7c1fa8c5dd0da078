"""A month of a fleet in DT's cloud on its own clock, with two outages of the receiver: what comes back, and only once.

The fake DT pushes, retries for 12 hours, and disables its Data Connectors in the outage of 6 days; they are enabled at
its end. The journal, the registry and the backfill are the real ones. `python -m support.outages` in tests/ runs it in
full: 300 devices for 31 days.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from receiver.dt.backfill import Backfill, Summary
from receiver.dt.plan import HISTORY_MINUTES, Request, plan
from receiver.incident import Incident
from receiver.journal import Arrival, Journal, open_journal, open_records
from receiver.sensors import open_registry
from receiver.sensors.gaps import completeness
from receiver.sensors.minutes import DAY_MINUTES, Minutes, minute_of
from receiver.sensors.registry import Registry
from receiver.sensors.shown import open_gaps
from receiver.settings import load
from receiver.testing.cloud import Cloud, Happening
from support.cloud import Client
from support.missed import Fleet, deliver_all

HOUR = 3600.0
STEP_HOURS = 2
START = 1_773_446_400.0
"""2026-03-14 00:00 UTC."""

OUTAGES = ((10.0, 20.0), (20.0, 144.0))
"""Day on which it begins, and its hours."""

SILENT = 20
"""One sensor in so many has an outage of its own of a day, which nobody can fill."""


@dataclass
class Report:
    """What came out of a month. `incomplete` are the days of sensors whose completeness is not the truth."""

    events: int
    missed: int
    delivered: Counter[str]
    expected: Sequence[str]
    summary: Summary
    incidents_before: Sequence[Incident]
    incidents_after: Sequence[Incident]
    incomplete: Sequence[str]
    disabled: int
    seconds: float


def run(folder: Path, devices: int, days: float = 31) -> Report:
    """Simulate a month, and fetch at its end what was missed."""
    (folder / "config.toml").write_text(
        "[journal]\nmin_free_mb = 0\nretention_days = 40\n[sensors]\nhistory_days = 40\n"
    )
    settings = load({"RECEIVER_CONFIG": str(folder / "config.toml")}, secret_required=False)
    with ExitStack() as stack:
        cloud = stack.enter_context(Cloud())
        journal = stack.enter_context(closing(open_journal(settings)))
        registry = stack.enter_context(closing(open_registry(settings)))
        month = Month(cloud, journal, registry, devices, days)
        for _ in range(int(days * 24 / STEP_HOURS)):
            month.step()
        deliver_all(journal, registry, month.delivered)
        before = registry.incidents(10**6)
        missed = len(month.ids()) - len(month.delivered)
        client = Client(cloud)
        request = Request(())
        gaps = open_gaps(registry, cloud.clock(), HISTORY_MINUTES)
        began = time.monotonic()
        planned = plan(client.api, journal, request, gaps, 0.0, cloud.clock(), dry_run=False)
        records = stack.enter_context(closing(open_records(settings, create_tables=True)))
        summary = Backfill(client.session, journal, records, planned, request).run()
        seconds = time.monotonic() - began
        deliver_all(journal, registry, month.delivered)
        registry.judge(cloud.clock(), "judge")
        return Report(
            len(month.ids()),
            missed,
            month.delivered,
            month.ids(),
            summary,
            before,
            registry.incidents(10**6),
            month.incomplete(),
            month.disabled,
            seconds,
        )


class Month:
    """The fleet, some hours at a time."""

    def __init__(self, cloud: Cloud, journal: Journal, registry: Registry, devices: int, days: float) -> None:
        self.cloud, self.journal, self.registry = cloud, journal, registry
        self.delivered: Counter[str] = Counter()
        self.disabled = 0
        self.end = START + days * 24 * HOUR
        self.down = [(START + day * 24 * HOUR, START + day * 24 * HOUR + hours * HOUR) for day, hours in OUTAGES]
        self._waiting: list[Arrival] = []
        self._numbers = itertools.count()
        cloud.now = START
        for number in range(devices):
            cloud.add_device(f"c8v2lh600000000{number:05d}", f"project{number % 3}", labels={"name": f"Room {number}"})
        for project in cloud.projects:
            cloud.add_connector(project, "http://127.0.0.1:1/", send=self.receive)
        self.silent = {name for number, name in enumerate(cloud.devices) if number % SILENT == SILENT - 1}

    def receive(self, body: bytes) -> int:
        """Respond to a push as the receiver does; what it accepts is stored at the end of the step."""
        now = self.cloud.clock()
        if any(start <= now < end for start, end in self.down):
            return 0
        event_id = body.partition(b'"eventId":"')[2].partition(b'"')[0].decode()
        self._waiting.append(Arrival(event_id, body, now))
        return 200

    def step(self) -> None:
        """Some hours of heartbeats and pushes, then deliveries and a judgement."""
        start = self.cloud.clock()
        end = start + STEP_HOURS * HOUR
        for number, name in enumerate(self.cloud.devices):
            for beat in range(4 * STEP_HOURS):
                at = start + 900 * beat + number * 3 % 900
                day = (at - START) / 86400
                if name in self.silent and 15 <= day < 16:
                    continue
                self.cloud.emit(name, "networkStatus", {"signalStrength": 50, "rssi": -80}, at)
        self.cloud.run(end)
        for first in range(0, len(self._waiting), 1000):
            self.journal.accept(self._waiting[first : first + 1000])
        self._waiting.clear()
        if any(down <= start < up for down, up in self.down):
            return
        for connector in self.cloud.connectors:
            self.disabled += connector.status != "ACTIVE"
            connector.status, connector.failing_since = "ACTIVE", None
        Fleet.be_up(self.registry, start, end)
        deliver_all(self.journal, self.registry, self.delivered)
        for announcement in self.registry.judge(end, "judge"):
            self.registry.announced(announcement)

    def ids(self) -> list[str]:
        return [each.id for device in self.cloud.devices.values() for each in device.history]

    def incomplete(self) -> list[str]:
        """The days of sensors whose completeness is not what all that was sent covers."""
        wrong = []
        now = minute_of(self.cloud.clock())
        for row in self.registry.rows():
            history = self.cloud.devices[row.device_id].history
            truth, first = minutes_of(history), minute_of(history[0].time)
            known = self.registry.heard([row], filled=True, minutes=40 * DAY_MINUTES)[row.device_id]
            for day in range(first // DAY_MINUTES, now // DAY_MINUTES + 1):
                shares = [completeness(each, 15, day, first, now) for each in (truth, known)]
                if shares[0] != shares[1]:
                    wrong.append(f"{row.device_id} day {day}: {shares[1]}, in truth {shares[0]}")
        return wrong


def minutes_of(history: Sequence[Happening]) -> Minutes:
    first = minute_of(history[0].time)
    bits = 0
    for each in history:
        bits |= 1 << minute_of(each.time) - first
    return Minutes(first, bits)


def main() -> None:
    parser = argparse.ArgumentParser(description="A month with two outages, and what a backfill brings back.")
    parser.add_argument("--devices", type=int, default=300)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), options.devices)
    print(f"events {report.events}, missed {report.missed}, {report.summary}")
    print(f"fetched in {report.seconds:.1f} s; Data Connectors that DT had disabled: {report.disabled}")
    print(f"delivered {len(report.delivered)}, more than once: {sum(n > 1 for n in report.delivered.values())}")
    print(f"not delivered: {len({*report.expected} - report.delivered.keys())}")
    print(f"incidents before {len(report.incidents_before)}, after {len(report.incidents_after)}")
    print(f"same: {report.incidents_before == report.incidents_after}; incomplete days: {len(report.incomplete)}")
    for line in report.incomplete[:10]:
        print(line)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
