"""A simulated fleet of sensors with known truth: what its registry reports is compared with what was really silent.

Sensors have intervals from 2.5 to 60 minutes, jitter and lost heartbeats, and are heard through one or two cloud
connectors. Sensors, connectors, projects, DT and the receiver have outages. After one of the receiver DT retries the
pushes of the last 12 hours in no order; sensors with memory send what they stored, newest first.

`python -m support.fleet` in tests/ runs it in full: 200 sensors for 60 days.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

from receiver.event import Event, rfc3339
from receiver.incident import Cause, Incident
from receiver.journal import open_database
from receiver.sensors.minutes import DAY_MINUTES
from receiver.sensors.reader import RECEIVER
from receiver.sensors.registry import Registry
from receiver.sensors.watch import Rules

START = datetime(2026, 1, 5, tzinfo=UTC)
STEP_MINUTES = 5.0
LEARN_DAYS = 1.0
"""In which nothing fails, so that every interval is learned."""

TYPES = (("co2", 2.5, 5), ("temperature", 5, 10), ("temperature", 15, 30), ("contact", 15, 20), ("motion", 15, 15))
SLOW = (("humidity", 30, 10), ("temperature", 60, 5), ("waterDetector", 60, 5))
"""Type, interval in minutes, and how many of a hundred sensors are such."""

Span = tuple[float, float]
"""From and to, in minutes after START."""


@dataclass
class Sensor:
    """A simulated sensor; `heard` are the times at which it was heard live, oldest first."""

    id: str
    type: str
    interval: float
    project: str
    connectors: tuple[str, ...]
    loss: float
    next_at: float
    outages: list[Span] = field(default_factory=list)
    silences: list[Span] = field(default_factory=list)
    """From when it was heard last to when it was heard again, where an outage was in between."""
    last_sent: float = 0.0
    missed: bool = False
    """Whether an outage has swallowed a heartbeat since it was heard last."""
    stored: list[float] = field(default_factory=list)


@dataclass
class Report:
    """What came out. Times to detection are in intervals of the sensor, or in minutes where 20 minutes are more."""

    sensors: int
    days: float
    incidents: int = 0
    false: int = 0
    silences: int = 0
    found: int = 0
    late: list[str] = field(default_factory=list)
    wrongly_closed: list[str] = field(default_factory=list)
    detection: list[float] = field(default_factory=list)
    announcements: int = 0

    @property
    def false_per_sensor_year(self) -> float:
        return self.false / (self.sensors * self.days / 365)

    def __str__(self) -> str:
        return "\n".join(
            (
                f"| sensors, days | {self.sensors}, {self.days:g} |",
                f"| incidents | {self.incidents} |",
                f"| precision | {1 - self.false / max(1, self.incidents):.1%} |",
                f"| false incidents a sensor and year | {self.false_per_sensor_year:.2f} |",
                f"| silences of more than 6 intervals | {self.silences} |",
                f"| found | {self.found / max(1, self.silences):.1%} |",
                f"| found later than after 5 intervals | {len(self.late)} |",
                f"| median time to detection, in intervals | {median(self.detection or [0]):.1f} |",
                f"| closed while still silent | {len(self.wrongly_closed)} |",
            )
        )


class Fleet:
    """`sensors` sensors in two projects, simulated for `days` days, in which things fail `often`."""

    def __init__(self, sensors: int, days: float, seed: int, loss: float = 0.02, often: float = 1.0) -> None:
        often *= days / 30
        self.random = random.Random(seed)
        self.days = days
        self.sensors = [self._sensor(number, loss) for number in range(sensors)]
        self.end = days * DAY_MINUTES
        self.down = self._outages(1.5 * often, 20, 14 * 60)
        """When pushes reached no receiver: its own downtime, or that of DT."""
        self.receiver_down = self.down[::2]
        gateways = sorted({connector for sensor in self.sensors for connector in sensor.connectors})
        self.gateways = {gateway: self._outages(often, 90, 12 * 60) for gateway in gateways}
        self.projects = {project: self._outages(often, 60, 24 * 60) for project in ("p0", "p1")}
        for sensor in self.sensors:
            sensor.outages = self._outages(often, 0.5 * sensor.interval, 40 * sensor.interval)
        self._numbers = iter(range(10**9))
        self._later: dict[int, list[Event]] = defaultdict(list)

    def _sensor(self, number: int, loss: float) -> Sensor:
        kinds = (*TYPES, *SLOW)
        kind, interval, _ = self.random.choices(kinds, weights=[share for *_, share in kinds])[0]
        project = f"p{number % 2}"
        ways = self.random.sample([f"{project}ccon{n}" for n in range(5)], k=self.random.choice((1, 2, 2)))
        first = self.random.uniform(0, interval)
        return Sensor(f"sim{number:017d}", kind, interval, project, tuple(ways), loss, first)

    def _outages(self, number: float, shortest: float, longest: float) -> list[Span]:
        found: list[Span] = []
        for _ in range(int(number) + (self.random.random() < number % 1)):
            length = self.random.uniform(shortest, longest)
            start = self.random.uniform(LEARN_DAYS, max(LEARN_DAYS, self.days - 1)) * DAY_MINUTES
            if all(start > end + 600 or start + length < begin - 600 for begin, end in found):
                found.append((start, start + length))
        return sorted(found)

    def is_up(self, now: float) -> bool:
        return not _inside(now, self.receiver_down)

    def steps(self) -> Iterator[tuple[float, list[Event]]]:
        """For each step its end and the events that arrived in it."""
        for number in range(int(self.end / STEP_MINUTES)):
            start = number * STEP_MINUTES
            end = start + STEP_MINUTES
            for sensor in self.sensors:
                while sensor.next_at < end:
                    self._beat(sensor, sensor.next_at)
                    jitter = self.random.uniform(-0.03, 0.03) * sensor.interval
                    sensor.next_at += sensor.interval + jitter
                if sensor.type in ("contact", "motion") and 480 < start % DAY_MINUTES < 1020:
                    for _ in range(self.random.choice((0, 0, 5))):
                        self._send(sensor, self.random.uniform(start, end), sensor.type, {"state": "OPEN"})
            yield end, self._later.pop(number, [])
        for sensor in self.sensors:
            if sensor.missed:
                sensor.silences.append((sensor.last_sent, self.end))

    def _beat(self, sensor: Sensor, now: float) -> None:
        if self._silent(sensor, now):
            sensor.stored.append(now)
            sensor.missed = True
            return
        if self.random.random() < sensor.loss:
            return
        ways = [way for way in sensor.connectors if not _inside(now, self.gateways[way])]
        clouds = [{"id": way, "signalStrength": 50, "rssi": -80} for way in ways]
        self._send(sensor, now, "networkStatus", {"signalStrength": 50, "rssi": -80, "cloudConnectors": clouds})
        if sensor.type in ("temperature", "humidity"):
            self._send(sensor, now, "temperature", {"value": 4.5})
            for then in reversed(sensor.stored):
                self._send(sensor, then, "temperature", {"value": 4.4, "isBackfilled": True}, sent=now)
        sensor.stored = []

    def _silent(self, sensor: Sensor, now: float) -> bool:
        return (
            _inside(now, sensor.outages)
            or _inside(now, self.projects[sensor.project])
            or all(_inside(now, self.gateways[way]) for way in sensor.connectors)
        )

    def _send(self, sensor: Sensor, now: float, type: str, data: dict[str, object], sent: float | None = None) -> None:
        backfilled = "isBackfilled" in data
        if not backfilled:
            if self._silent(sensor, now):
                return
            if sensor.missed:
                sensor.silences.append((sensor.last_sent, now))
                sensor.missed = False
            sensor.last_sent = max(sensor.last_sent, now)
        arrives = sent if sent is not None else now
        down = next((span for span in self.down if span[0] <= arrives < span[1]), None)
        if down is not None:
            if down[1] - arrives > 12 * 60:
                return
            arrives = down[1] + self.random.uniform(0, 60)
        arrives += self.random.uniform(0, 0.1)
        occurred, received = START + timedelta(minutes=now), START + timedelta(minutes=arrives)
        event = Event(
            id=f"s{next(self._numbers):018d}",
            body=b"",
            type=type,
            device_id=sensor.id,
            project_id=sensor.project,
            device_type=sensor.type,
            product_number=None,
            labels={},
            occurred_at=occurred,
            received_at=received,
            data={**data, "updateTime": rfc3339(occurred)},
            backfilled=backfilled,
        )
        self._later[int(arrives / STEP_MINUTES)].append(event)


def _inside(minute: float, spans: Sequence[Span]) -> bool:
    return any(start <= minute < end for start, end in spans)


def run(fleet: Fleet, folder: Path) -> Report:
    """Feed and judge a registry as a dispatcher does, and compare its incidents with the truth."""
    with closing(Registry(open_database(None, folder / "sensors.sqlite"), Rules())) as registry:
        announced = 0
        for minute, events in fleet.steps():
            registry.fold(events)
            if not fleet.is_up(minute):
                continue
            now = (START + timedelta(minutes=minute)).timestamp()
            up: dict[tuple[str, int], int] = defaultdict(int)
            for before in range(int(STEP_MINUTES)):
                each = int(now // 60) - before
                up[RECEIVER, each // DAY_MINUTES] |= 1 << each % DAY_MINUTES
            with registry._database.write() as connection:
                registry._add_minutes(connection, up)
            for announcement in registry.judge(now, "judge"):
                registry.announced(announcement)
                announced += 1
        report = compare(fleet, registry.incidents(10**6))
        report.announcements = announced
        return report


def compare(fleet: Fleet, incidents: Sequence[Incident]) -> Report:
    report = Report(len(fleet.sensors), fleet.days, len(incidents))
    by_sensor: dict[str, list[Incident]] = defaultdict(list)
    sensors = {sensor.id: sensor for sensor in fleet.sensors}
    for incident in incidents:
        opened, closed = _minute(incident.opened), fleet.end if incident.closed is None else _minute(incident.closed)
        for device in incident.sensors:
            by_sensor[device].append(incident)
        really = [sensors[device] for device in incident.sensors if _was_silent(fleet, sensors[device], opened)]
        report.false += not really
        if incident.cause is Cause.DEVICE and incident.closed is not None:
            (device,) = incident.sensors
            goes_on = any(start <= opened and closed < end for start, end in sensors[device].silences)
            if goes_on and not _absorbed(incident, incidents):
                report.wrongly_closed.append(f"{incident.reason}; closed {incident.closed}")
    for sensor in fleet.sensors:
        for start, end in sensor.silences:
            least, most = max(6 * sensor.interval, 30), max(5 * sensor.interval, 25)
            if end - start <= least + 2 * STEP_MINUTES or _disturbed(fleet, start, end):
                continue
            report.silences += 1
            times = [_minute(each.opened) for each in by_sensor[sensor.id]]
            ends = [fleet.end if each.closed is None else _minute(each.closed) for each in by_sensor[sensor.id]]
            found = [opened for opened, closed in zip(times, ends, strict=True) if opened < end + 1 and closed > start]
            report.found += bool(found)
            if not found or min(found) - start > most + STEP_MINUTES:
                after = f"{min(found) - start:.0f} min" if found else "never"
                report.late.append(f"{sensor.id} every {sensor.interval:g} min, {start:.0f} to {end:.0f}: {after}")
            if found:
                report.detection.append(max(0.0, min(found) - start) / sensor.interval)
    return report


def _was_silent(fleet: Fleet, sensor: Sensor, at: float) -> bool:
    """Whether it was really silent then, or has just returned and could not be known to."""
    return fleet._silent(sensor, at) or any(
        start <= at <= end + 1.2 * sensor.interval + STEP_MINUTES for start, end in sensor.silences
    )


def _absorbed(incident: Incident, incidents: Sequence[Incident]) -> bool:
    return any(
        other.cause is not Cause.DEVICE
        and other.opened == incident.closed
        and set(incident.sensors) <= set(other.sensors)
        for other in incidents
    )


def _disturbed(fleet: Fleet, start: float, end: float) -> bool:
    """Whether the receiver or DT was away meanwhile, so that nothing could be noticed in time."""
    return any(begin < end and start < stop + 60 for begin, stop in fleet.down)


def _minute(at: datetime) -> float:
    return (at - START).total_seconds() / 60


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate a fleet, and compare what the registry reports with truth.")
    parser.add_argument("--sensors", type=int, default=200)
    parser.add_argument("--days", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--loss", type=float, default=0.02)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = run(Fleet(options.sensors, options.days, options.seed, options.loss), Path(folder))
    print(report)
    for line in (*report.late, *report.wrongly_closed):
        print(line)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
