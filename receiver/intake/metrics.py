"""What `/metrics` shows, in the Prometheus text format: counters over all processes, gauges from the journal."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, values
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import CounterMetricFamily, InfoMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from receiver import __version__
from receiver.errors import JournalError, JournalUnavailable
from receiver.intake.counters import FOLDER
from receiver.journal import Counts, Journal, SinkState, Space
from receiver.sensors import open_registry, registry_path
from receiver.sensors.registry import Registry
from receiver.settings import Settings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one intake process."""

    def __init__(self, journal: Journal, settings: Settings | None = None) -> None:
        """With `settings`, the sensors of their registry are shown too, and no sink as paused that is not enabled."""
        if not os.environ.get(FOLDER):
            values.ValueClass = values.MutexValue  # when it was imported, there may have been a folder
        self._own = CollectorRegistry()
        self._pushes = Counter(
            "receiver_pushes",
            "Responses to pushes, by status code and result",
            ["code", "result"],
            registry=self._own,
        )
        self._verified = Counter(
            "receiver_verified_pushes",
            "Pushes verified with each signature secret",
            ["secret"],
            registry=self._own,
        )
        self._commits = Histogram(
            "receiver_commit_duration_seconds",
            "How long pushes waited for their commit",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
            registry=self._own,
        )
        self._shown = CollectorRegistry()
        if os.environ.get(FOLDER):
            MultiProcessCollector(self._shown)  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped
        else:
            self._shown.register(self._pushes)
            self._shown.register(self._verified)
            self._shown.register(self._commits)
        self._shown.register(JournalGauges(journal, settings))
        if settings is not None and settings.sensors.enabled:
            self._shown.register(SensorGauges(settings))

    def count_push(self, code: int, result: str) -> None:
        """Count one response to a push: its status code, and its text."""
        with suppress(OSError):  # without its file, which was removed, the push is not counted, but gets its response
            self._pushes.labels(str(code), result).inc()

    def count_verified(self, secret: str) -> None:
        """Count one push that the named secret verified."""
        with suppress(OSError):
            self._verified.labels(secret).inc()

    def observe_commit(self, seconds: float) -> None:
        """Record how long a push waited for its commit."""
        self._commits.observe(seconds)

    def responses(self) -> dict[tuple[int, str], int]:
        """How many responses to pushes there were since the start, by status code and text."""
        counted = self._own
        if os.environ.get(FOLDER):
            counted = CollectorRegistry()
            MultiProcessCollector(counted)  # type: ignore[no-untyped-call]  # as above
        return {
            (int(sample.labels["code"]), sample.labels["result"]): int(sample.value)
            for metric in counted.collect()
            for sample in metric.samples
            if sample.name == "receiver_pushes_total"
        }

    def page(self) -> bytes:
        """All metrics as text. Raises JournalUnavailable."""
        return generate_latest(self._shown)


class JournalGauges(Collector):
    """What is in the journal, read once for all requests that wait for it.

    Reading delays pushes, and anyone may ask, so after each reading the next one waits for as long as it took.
    """

    def __init__(self, journal: Journal, settings: Settings | None) -> None:
        self._journal = journal
        self._enabled = None if settings is None else {sink.name for sink in settings.enabled_sinks}
        self._lock = threading.Lock()
        self._read: tuple[Counts, Mapping[str, SinkState], Space] | JournalUnavailable | None = None
        self._read_at = self._next_read_at = float("-inf")

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        counts, states, space = self._current()
        yield InfoMetricFamily("receiver_build", "The version of the receiver", {"version": __version__})
        yield GaugeMetricFamily("receiver_unrouted_events", "Events not yet routed to sinks", counts.unrouted)
        yield GaugeMetricFamily("receiver_quarantined_pushes", "Pushes in quarantine", counts.quarantined)
        yield GaugeMetricFamily(
            "receiver_last_accepted_push_timestamp_seconds", "When a push last got 200", counts.last_push_at
        )
        yield GaugeMetricFamily("receiver_journal_size_bytes", "Size of the journal", space.used)
        yield GaugeMetricFamily("receiver_journal_free_bytes", "Bytes that are free for the journal", space.free)
        sink = ["sink"]
        attempts = CounterMetricFamily("receiver_delivery_attempts", "Delivery attempts", labels=sink)
        failures = CounterMetricFamily("receiver_delivery_failures", "Failed delivery attempts", labels=sink)
        delivered = CounterMetricFamily("receiver_deliveries", "Successful deliveries", labels=sink)
        dead = GaugeMetricFamily("receiver_dead_letters", "Dead letters: deliveries that were given up", labels=sink)
        pending = GaugeMetricFamily("receiver_pending_deliveries", "Pending deliveries", labels=sink)
        oldest = GaugeMetricFamily(
            "receiver_oldest_pending_age_seconds", "Age of the oldest event with a pending delivery", labels=sink
        )
        paused = GaugeMetricFamily("receiver_sink_paused", "1 while the sink is paused", labels=sink)
        for name, count in counts.sinks.items():
            received_at = count.oldest_received_at
            attempts.add_metric([name], count.attempts)
            failures.add_metric([name], count.failures)
            delivered.add_metric([name], count.delivered)
            dead.add_metric([name], count.dead)
            pending.add_metric([name], count.pending)
            oldest.add_metric([name], 0 if received_at is None else max(0.0, time.time() - received_at))
            paused.add_metric([name], 1 if self._is_paused(name, states) else 0)
        yield from (attempts, failures, delivered, dead, pending, oldest, paused)

    def _is_paused(self, sink: str, states: Mapping[str, SinkState]) -> bool:
        """The pause of a sink that was disabled meanwhile is kept, and is nothing that a person should look at."""
        return sink in states and states[sink].pauses > 0 and (self._enabled is None or sink in self._enabled)

    def _current(self) -> tuple[Counts, Mapping[str, SinkState], Space]:
        """A reading that began after the call. Raises JournalUnavailable."""
        asked_at = time.monotonic()
        with self._lock:
            if self._read is None or self._read_at < asked_at:
                time.sleep(max(0.0, self._next_read_at - time.monotonic()))
                began = time.monotonic()
                self._read = self._read_journal()
                self._read_at = began
                self._next_read_at = 2 * time.monotonic() - began
            read = self._read
        if isinstance(read, JournalUnavailable):
            raise JournalUnavailable(str(read)) from read
        return read

    def _read_journal(self) -> tuple[Counts, Mapping[str, SinkState], Space] | JournalUnavailable:
        """What is in the journal, or the error, which all waiting requests share as they share a reading."""
        try:
            return self._journal.counts(), self._journal.sink_states(), self._journal.space()
        except JournalUnavailable as error:
            return error


class SensorGauges(Collector):
    """What the registry of sensors says; nothing while it cannot be read, so that all other metrics are shown."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._registry: Registry | None = None

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        try:
            states, causes = self._read()
        except JournalError:
            return
        sensors = GaugeMetricFamily("receiver_sensors", "Sensors, by their state", labels=["state"])
        incidents = GaugeMetricFamily("receiver_incidents", "Open incidents, by their cause", labels=["cause"])
        for state, count in states.items():
            sensors.add_metric([state], count)
        for cause, count in causes.items():
            incidents.add_metric([cause], count)
        yield from (sensors, incidents)

    def _read(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Opens the registry at the first call: the dispatcher creates its tables."""
        if self._registry is None:
            path = registry_path(self._settings)
            if path is not None and not os.path.exists(path):
                raise JournalError("there is no registry yet")
            self._registry = open_registry(self._settings, create=False)
        return self._registry.states(), self._registry.causes()
