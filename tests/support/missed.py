"""A fleet in a fake DT cloud, of which a receiver has missed a part: what DT has, and what arrived where."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

from receiver.event import Event
from receiver.journal import Arrival, Journal, Result, Settlement, open_journal, open_records
from receiver.sensors import open_registry
from receiver.sensors.minutes import DAY_MINUTES
from receiver.sensors.reader import RECEIVER
from receiver.sensors.registry import Registry
from receiver.testing.cloud import Cloud, CloudDevice, Happening
from support.cloud import OTHER_PROJECT, PROJECT
from support.commands import Operator

CONFIG = '[journal]\nmin_free_mb = 0\n[sinks.archive]\ntype = "csv"\npath = "events.csv"\n'
HEARTBEAT = 900.0
SINKS = ("archive", "sensors")


class Fleet:
    """Devices with a heartbeat every 15 minutes for `days`; a receiver in the operator's folder missed `hours` of it.

    The outage ended two hours ago, and the receiver was up before and after. `delivered` counts by event id what the
    sink `archive` got; the registry got the same.
    """

    def __init__(
        self, operator: Operator, cloud: Cloud, *, devices: int = 3, days: float = 3, hours: float = 20
    ) -> None:
        operator.configure(CONFIG)
        self.operator, self.cloud = operator, cloud
        self.now = time.time() // 60 * 60
        self.back = self.now - 2 * 3600
        self.gone = self.back - hours * 3600
        self.begin = self.now - days * 86400
        self.delivered: Counter[str] = Counter()
        self.devices = [self._device(number) for number in range(devices)]
        pushed = [
            Arrival(each.id, device.push(each, ("name",)), each.time + 1)
            for device in self.devices
            for each in device.history
            if not self.gone < each.time < self.back
        ]
        with closing(open_journal(operator.settings)) as journal, closing(open_registry(operator.settings)) as registry:
            self.be_up(registry, self.begin, self.gone)
            self.be_up(registry, self.back, self.now)
            for start in range(0, len(pushed), 1000):
                journal.accept(pushed[start : start + 1000])
            deliver_all(journal, registry, self.delivered)
            registry.judge(self.now, "judge")

    def _device(self, number: int) -> CloudDevice:
        device = self.cloud.add_device(
            f"c8v2lh600000000{number:05d}",
            OTHER_PROJECT if number % 2 else PROJECT,
            labels={"name": f"Room {number}"},
        )
        device.history = [
            Happening(at, f"{device.id[-5:]}e{beat:014d}", "networkStatus", {"signalStrength": 50, "rssi": -80})
            for beat, at in enumerate(self.beats(number))
        ]
        return device

    def beats(self, number: int) -> Sequence[float]:
        first = self.begin + 60 + 7 * number % 840
        return [first + HEARTBEAT * n for n in range(int((self.now - 60 - first) // HEARTBEAT) + 1)]

    @property
    def ids(self) -> list[str]:
        """The ids of all events that DT has, with each once."""
        return sorted(each.id for device in self.devices for each in device.history)

    @property
    def missed(self) -> int:
        """How many events the receiver missed."""
        return sum(self.gone < each.time < self.back for device in self.devices for each in device.history)

    def backfill(self, *options: str) -> Any:
        """Run the command; its exit code, and its two outputs."""
        return self.operator.run("backfill", "--yes", *options, **self.cloud.environment)

    def deliver(self) -> None:
        """Route and deliver everything, as a dispatcher does, and judge."""
        settings = self.operator.settings
        with closing(open_journal(settings)) as journal, closing(open_registry(settings)) as registry:
            deliver_all(journal, registry, self.delivered)
            registry.judge(self.now, "judge")

    @staticmethod
    def be_up(registry: Registry, start: float, end: float) -> None:
        """Record that the receiver was up."""
        minutes: dict[tuple[str, int], int] = {}
        for minute in range(int(start // 60), int(end // 60) + 1):
            key = RECEIVER, minute // DAY_MINUTES
            minutes[key] = minutes.get(key, 0) | 1 << minute % DAY_MINUTES
        with registry._database.write() as connection:
            registry._add_minutes(connection, minutes)

    def gaps(self) -> list[dict[str, Any]]:
        """The gaps that nothing has filled."""
        found: Iterable[dict[str, Any]] = self.operator.json("sensors", "gaps")
        return [gap for gap in found if not gap["filled"]]

    def origins(self) -> Counter[str]:
        """How many events in the journal have which origin."""
        with closing(open_records(self.operator.settings, create_tables=True)) as records:
            return Counter(each.origin for each in records.received(0, time.time() + 1, 0, 10**6))

    def event(self, event_id: str) -> Event:
        with closing(open_records(self.operator.settings, create_tables=True)) as records:
            history = records.history(event_id)
        assert history is not None
        return history.event.decode()


def deliver_all(journal: Journal, registry: Registry, delivered: Counter[str]) -> None:
    """Route and deliver everything, as a dispatcher does: to the registry, and to a sink that counts event ids."""
    while new := journal.unrouted(1000):
        journal.route([(each, SINKS) for each in new])
    for sink in SINKS:
        while claimed := journal.claim(sink, 1000, 60.0):
            if sink == "sensors":
                registry.fold([each.event.decode() for each in claimed])
            else:
                delivered.update(each.event.id for each in claimed)
            journal.settle([Settlement(each, Result.DELIVERED) for each in claimed])
