"""A few sensors in a fake DT cloud, which pushes their events with DT's own retries and has them in its history."""

from __future__ import annotations

import itertools
import re
import threading
import time

from chaos.oracle import Violation
from chaos.traffic import Driver, event
from receiver.testing.cloud import INDEX_SECONDS, RETRY_SECONDS, Cloud
from receiver.testing.running import RunningReceiver

PROJECT = "historyproject000000"
SENSORS = [f"history{number:016d}" for number in range(5)]
EMIT_SECONDS = 0.5
SUMMARY = re.compile(r"Fetched (\d+) events?: (\d+) would be new")


class History(threading.Thread):
    """Sensors that report in turn; each push is an item in the driver's ledger. Until the end, time is the real one."""

    def __init__(self, cloud: Cloud, driver: Driver, receiver: RunningReceiver) -> None:
        super().__init__(daemon=True)
        self._cloud = cloud
        self._driver = driver
        self._receiver = receiver
        self._done = threading.Event()
        self._began_at = 0.0
        for sensor in SENSORS:
            cloud.add_device(sensor, PROJECT, labels={"name": sensor})
        cloud.add_connector(PROJECT, receiver.url, send=lambda body: driver.attempt(event(body)))

    def run(self) -> None:
        self._began_at = time.time()
        for number, sensor in enumerate(itertools.cycle(SENSORS)):
            if self._done.wait(EMIT_SECONDS):
                return
            self._cloud.emit(sensor, "temperature", {"value": number / 100}, at=time.time())
            self._cloud.run(until=time.time())

    def finish(self) -> None:
        """End: what is still to be retried is pushed at once, as if twelve hours had passed."""
        self._done.set()
        self.join()
        self._cloud.run(until=time.time() + RETRY_SECONDS)
        self._cloud.now = None

    def compare(self) -> list[Violation]:
        """`backfill` must find all in the history, and nothing that is missing."""
        time.sleep(max(0.0, self._began_at + INDEX_SECONDS + EMIT_SECONDS * len(SENSORS) - time.time()))
        since = time.strftime("%Y-%m-%dT%H:%M", time.gmtime(self._began_at - 60))
        said = self._receiver.run("backfill", "--since", since, "--project", PROJECT, "--dry-run")
        found = SUMMARY.search(said)
        if found and int(found[1]) > 0 and found[2] == "0" and "error:" not in said:
            return []
        return [Violation(f"backfill found something missing, or nothing at all: {said}")]
