"""What `/metrics` shows, in the Prometheus text format: counters over all processes, gauges from the journal."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from receiver.errors import JournalUnavailable
from receiver.journal import Counts, Journal, SinkState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one process of intake."""

    def __init__(self, journal: Journal) -> None:
        self._own = CollectorRegistry()
        self._pushes = Counter(
            "receiver_pushes",
            "Pushes answered, by status code and text",
            ["status", "answer"],
            registry=self._own,
        )
        self._secrets = Counter(
            "receiver_secret_used",
            "Pushes that a signature secret proved genuine",
            ["secret"],
            registry=self._own,
        )
        self._commits = Histogram(
            "receiver_commit_seconds",
            "How long a push waited for its commit",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
            registry=self._own,
        )
        self._shown = CollectorRegistry()
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            MultiProcessCollector(self._shown)  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped
        else:
            self._shown.register(self._pushes)
            self._shown.register(self._secrets)
            self._shown.register(self._commits)
        self._shown.register(JournalGauges(journal))

    def answered(self, status: int, answer: str) -> None:
        """Count one answer to a push."""
        self._pushes.labels(str(status), answer).inc()

    def proved(self, secret: str) -> None:
        """Count one push that the named secret proved genuine."""
        self._secrets.labels(secret).inc()

    def committed(self, seconds: float) -> None:
        """Count one commit that a push waited for."""
        self._commits.observe(seconds)

    def page(self) -> bytes:
        """All metrics as text. Raises JournalUnavailable."""
        return generate_latest(self._shown)


class JournalGauges(Collector):
    """What the journal holds, read after it was asked for, once for all who ask meanwhile.

    Pushes wait where it is read, and anyone may ask; so between two readings there is as much time as they take.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._known: tuple[Counts, Mapping[str, SinkState]] | JournalUnavailable | None = None
        self._began = self._rest_until = float("-inf")

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        counts, states = self._look()
        yield GaugeMetricFamily("receiver_unmatched", "Events not yet matched to sinks", counts.unmatched)
        yield GaugeMetricFamily("receiver_quarantined", "Pushes in quarantine", counts.quarantined)
        delivered = CounterMetricFamily("receiver_delivered", "Deliveries made", labels=["sink"])
        attempts = CounterMetricFamily("receiver_attempts", "Deliveries tried", labels=["sink"])
        failures = CounterMetricFamily("receiver_failures", "Deliveries tried in vain", labels=["sink"])
        dead = GaugeMetricFamily("receiver_dead", "Deliveries given up on", labels=["sink"])
        pending = GaugeMetricFamily("receiver_pending", "Deliveries owed", labels=["sink"])
        oldest = GaugeMetricFamily("receiver_oldest_pending_seconds", "Age of the oldest event owed", labels=["sink"])
        paused = GaugeMetricFamily("receiver_paused", "1 while the sink is paused", labels=["sink"])
        for name, count in counts.sinks.items():
            delivered.add_metric([name], count.delivered)
            attempts.add_metric([name], count.attempts)
            failures.add_metric([name], count.failures)
            dead.add_metric([name], count.dead)
            pending.add_metric([name], count.pending)
            oldest.add_metric([name], 0 if count.oldest is None else max(0.0, time.time() - count.oldest))
            paused.add_metric([name], 1 if name in states and states[name].pauses else 0)
        yield from (delivered, attempts, failures, dead, pending, oldest, paused)

    def _look(self) -> tuple[Counts, Mapping[str, SinkState]]:
        asked = time.monotonic()
        with self._lock:
            if self._known is None or self._began < asked:
                time.sleep(max(0.0, self._rest_until - time.monotonic()))
                began = time.monotonic()
                self._known = self._read()
                self._began = began
                self._rest_until = 2 * time.monotonic() - began
            known = self._known
        if isinstance(known, JournalUnavailable):
            raise JournalUnavailable(str(known)) from known
        return known

    def _read(self) -> tuple[Counts, Mapping[str, SinkState]] | JournalUnavailable:
        """What there is, or why not: those who wait must not all find it out one after another."""
        try:
            return self._journal.counts(), self._journal.states()
        except JournalUnavailable as error:
            return error
