"""`/metrics`: the values after known pushes and deliveries, and how often the journal is read for them."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import types
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import pytest
import urllib3
from conftest import TEST_SECRET, RunningReceiver, StartReceiver, wait_until
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.parser import text_string_to_metric_families
from pytest_httpserver import HTTPServer
from support.journals import Store, accept, claim, route_events, settle
from support.pushes import event

from receiver import __version__
from receiver.errors import JournalUnavailable
from receiver.intake import counters as counters_module
from receiver.intake import metrics as metrics_module
from receiver.intake.metrics import Metrics
from receiver.journal import Arrival, Counts, Journal, Result, Settlement, SinkState
from receiver.settings import load
from receiver.signature import sign
from receiver.variables import SECRET

TWO_SINKS = """
[sinks.archive]
type = "csv"
path = "events.csv"
[sinks.erp]
type = "webhook"
url = "{url}"
allow_private = true
[sinks.erp.filter]
event_types = ["touch"]
[sinks.erp.retry]
max_attempts = 1
"""
FAMILIES = {
    "receiver_pushes_total": ("counter", {"code", "result"}),
    "receiver_verified_pushes_total": ("counter", {"secret"}),
    "receiver_commit_duration_seconds": ("histogram", set()),
    "receiver_unrouted_events": ("gauge", set()),
    "receiver_quarantined_pushes": ("gauge", set()),
    "receiver_last_accepted_push_timestamp_seconds": ("gauge", set()),
    "receiver_journal_size_bytes": ("gauge", set()),
    "receiver_journal_free_bytes": ("gauge", set()),
    "receiver_delivery_attempts_total": ("counter", {"sink"}),
    "receiver_delivery_failures_total": ("counter", {"sink"}),
    "receiver_deliveries_total": ("counter", {"sink"}),
    "receiver_dead_letters": ("gauge", {"sink"}),
    "receiver_pending_deliveries": ("gauge", {"sink"}),
    "receiver_oldest_pending_age_seconds": ("gauge", {"sink"}),
    "receiver_sink_paused": ("gauge", {"sink"}),
    "receiver_build_info": ("gauge", {"version"}),
}
"""The documented metrics: name, type and labels."""

SINK_NAMES = {name.removeprefix("receiver_") for name, (_, labels) in FAMILIES.items() if labels == {"sink"}}

Labels = tuple[tuple[str, str], ...]
Page = dict[tuple[str, Labels], float]


def co2_event(name: str) -> bytes:
    return json.dumps({"event": {"eventId": name, "eventType": "co2", "data": {}}}).encode()


def parse(text: str) -> Page:
    """Every sample of a page, without the buckets of histograms."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def get_text(receiver: RunningReceiver) -> str:
    response = receiver.http.request("GET", f"{receiver.url}/metrics")
    assert (response.status, response.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return response.data.decode()


def get_page(receiver: RunningReceiver) -> Page:
    return parse(get_text(receiver))


def of_sink(page: Page, sink: str) -> dict[str, float]:
    """All values of one sink, by names without `receiver_`."""
    return {name.removeprefix("receiver_"): value for (name, labels), value in page.items() if ("sink", sink) in labels}


def sink_values(**values: float) -> dict[str, float]:
    """What `of_sink` returns for a sink with these values; the others are 0."""
    return dict.fromkeys(SINK_NAMES, 0) | values


def responses(page: Page) -> dict[tuple[str, str], float]:
    """How many pushes got which status and text."""
    return {
        (dict(labels)["code"], dict(labels)["result"]): value
        for (name, labels), value in page.items()
        if name == "receiver_pushes_total"
    }


def verified(page: Page) -> dict[Labels, float]:
    return {labels: value for (name, labels), value in page.items() if name == "receiver_verified_pushes_total"}


def counters(page: Page) -> Page:
    return {key: value for key, value in page.items() if key[0].endswith(("_total", "_count", "_sum"))}


@pytest.fixture
def metrics(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> Metrics:
    """The metrics of a process that has no siblings."""
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    return Metrics(journal)


def test_after_known_pushes_and_deliveries_every_value_is_right(
    start_receiver: StartReceiver, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/hook", method="POST").respond_with_data("", 200)
    config = TWO_SINKS.format(url=httpserver.url_for("/hook"))
    receiver = start_receiver(config, DT_SIGNATURE_SECRET__OLD="old-secret")
    a, b, d = event("a"), event("b"), event("d")

    for body in (a, b, co2_event("c")):
        assert receiver.push(body) == (200, "accepted")
    for _ in range(3):
        assert receiver.push(a) == (200, "duplicate")
    for body in (b"[1]", b"[2]", b"[2]"):
        assert receiver.push(body) == (200, "quarantined")
    assert receiver.push(d, {}) == (400, "missing header X-Dt-Signature")
    for _ in range(2):
        assert receiver.push(d, sign(d, "another-secret", 2e9)) == (400, "wrong secret")
    assert receiver.push(d, sign(d, TEST_SECRET, 1e9)) == (400, "expired")
    assert receiver.push(b"x" * 300_000) == (413, "body too large")

    def page_when_delivered() -> Page | None:
        page = get_page(receiver)
        delivered = [of_sink(page, sink).get("deliveries_total") for sink in ("archive", "erp")]
        return page if delivered == [3, 2] else None

    page = wait_until(page_when_delivered, what="all deliveries")
    assert responses(page) == {
        ("200", "accepted"): 3,
        ("200", "duplicate"): 3,
        ("200", "quarantined"): 3,
        ("400", "missing header X-Dt-Signature"): 1,
        ("400", "wrong secret"): 2,
        ("400", "expired"): 1,
        ("413", "body too large"): 1,
    }
    assert verified(page) == {(("secret", SECRET),): 9}
    assert of_sink(page, "archive") == sink_values(deliveries_total=3, delivery_attempts_total=3)
    assert of_sink(page, "erp") == sink_values(deliveries_total=2, delivery_attempts_total=2)
    assert (page["receiver_unrouted_events", ()], page["receiver_quarantined_pushes", ()]) == (0, 2)
    assert page["receiver_commit_duration_seconds_count", ()] == 9
    assert 0 < page["receiver_commit_duration_seconds_sum", ()] < 60
    assert page["receiver_build_info", (("version", __version__),)] == 1


def test_metrics_are_shown_while_another_intake_process_starts(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(counters_module.FOLDER, str(tmp_path))
    counters_module.reserve_files()  # before prometheus_client has opened them
    labels = {"code": "200", "result": "accepted"}
    key = mmap_key("receiver_pushes", "receiver_pushes_total", labels.keys(), labels.values(), "")
    with closing(MmapedDict(tmp_path / "counter_1.db")) as running:
        running.write_value(key, 7, 0)
    metrics = Metrics(journal)
    assert 'receiver_pushes_total{code="200",result="accepted"} 7.0' in metrics.page().decode()
    assert metrics.responses() == {(200, "accepted"): 7}


def test_the_metrics_are_exactly_those_documented_with_their_types_labels_and_a_description(
    shared_receiver: RunningReceiver,
) -> None:
    assert shared_receiver.push(event("documented metrics"))[0] == 200

    def families() -> list[Any] | None:
        found = list(text_string_to_metric_families(get_text(shared_receiver)))
        return found if any(family.name == "receiver_sink_paused" and family.samples for family in found) else None

    found = wait_until(families, what="the values of a sink")
    assert {
        family.name + "_total" * (family.type == "counter"): (
            family.type,
            {label for sample in family.samples for label in sample.labels} - {"le"},
        )
        for family in found
    } == FAMILIES
    assert [family.name for family in found if len(family.documentation) < 10] == []


def test_only_an_enabled_sink_is_shown_as_paused(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    config = tmp_path / "config.toml"
    config.write_text("[sinks.enabled]\ntype = 'stdout'\n[sinks.disabled]\ntype = 'stdout'\nenabled = false\n")
    for sink in ("enabled", "disabled", "removed"):
        journal.save_sink_state(SinkState(sink, pauses=1))
    page = parse(Metrics(journal, load({"RECEIVER_CONFIG": str(config), SECRET: TEST_SECRET})).page().decode())
    shown = {sink: of_sink(page, sink)["sink_paused"] for sink in ("enabled", "disabled", "removed")}
    assert shown == {"enabled": 1, "disabled": 0, "removed": 0}


def test_failures_dead_letters_and_pauses_are_counted_at_their_sink(
    start_receiver: StartReceiver, httpserver: HTTPServer
) -> None:
    httpserver.expect_ordered_request("/hook").respond_with_data("", 500)
    httpserver.expect_ordered_request("/hook").respond_with_data("", 429, {"Retry-After": "3600"})
    receiver = start_receiver(TWO_SINKS.format(url=httpserver.url_for("/hook")))
    receiver.push(event("becomes a dead letter"))
    wait_until(lambda: of_sink(get_page(receiver), "erp").get("dead_letters") == 1, what="a dead letter")
    receiver.push(event("waits"))

    def values_when_paused() -> dict[str, float] | None:
        erp = of_sink(get_page(receiver), "erp")
        return erp if (erp["sink_paused"], erp["delivery_attempts_total"]) == (1, 2) else None

    erp = wait_until(values_when_paused, what="the pause")
    assert 0 < erp.pop("oldest_pending_age_seconds") < 60
    expected = sink_values(
        delivery_attempts_total=2, delivery_failures_total=2, dead_letters=1, pending_deliveries=1, sink_paused=1
    )
    assert erp | {"oldest_pending_age_seconds": 0} == expected
    wait_until(lambda: of_sink(get_page(receiver), "archive")["deliveries_total"] == 2, what="the other sink")
    assert of_sink(get_page(receiver), "archive")["sink_paused"] == 0


def test_counters_are_summed_over_workers_and_survive_their_death(start_receiver: StartReceiver) -> None:
    receiver = start_receiver()

    def push_on_new_connection(body: bytes) -> tuple[int, str]:
        """So that any worker may get it."""
        with urllib3.HTTPConnectionPool("127.0.0.1", receiver.port, retries=False, timeout=15) as connections:
            headers = {**sign(body, TEST_SECRET, time.time()), "Connection": "close"}
            response = connections.urlopen("POST", "/", body=body, headers=headers)
            return response.status, response.data.decode()

    bodies = [event(f"event {number}") for number in range(60)]
    with ThreadPoolExecutor(12) as clients:
        assert set(clients.map(push_on_new_connection, bodies)) == {(200, "accepted")}
        assert set(clients.map(push_on_new_connection, bodies)) == {(200, "duplicate")}
    before = get_page(receiver)
    assert responses(before) == {("200", "accepted"): 60, ("200", "duplicate"): 60}
    assert before["receiver_commit_duration_seconds_count", ()] == 120

    workers = receiver.pids()["workers"]
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    wait_until(lambda: len(new := receiver.pids()["workers"]) == 2 and not set(new) & set(workers), what="new workers")
    wait_until(lambda: receiver.is_ok("/healthz"))
    receiver.http.clear()

    after = get_page(receiver)
    assert {key: value for key, value in counters(before).items() if after[key] < value} == {}
    assert responses(after) == responses(before)
    with ThreadPoolExecutor(12) as clients:
        assert set(clients.map(push_on_new_connection, bodies)) == {(200, "duplicate")}
    assert responses(get_page(receiver)) == {("200", "accepted"): 60, ("200", "duplicate"): 120}


def test_verified_pushes_are_counted_by_the_name_of_their_secret(start_receiver: StartReceiver) -> None:
    receiver = start_receiver(WEB_CONCURRENCY="1", DT_SIGNATURE_SECRET__OLD="the-older-secret", ready=False)
    body = event("signed with the older secret")
    assert receiver.push(body, sign(body, "the-older-secret", time.time())) == (200, "accepted")
    text = get_text(receiver)
    assert verified(parse(text)) == {(("secret", f"{SECRET}__OLD"),): 1}
    assert "the-older-secret" not in text


def values_of_erp(metrics: Metrics) -> dict[str, float]:
    return of_sink(parse(metrics.page().decode()), "erp")


def test_attempts_count_calls_of_the_sink_and_never_decrease(journal: Journal, metrics: Metrics) -> None:
    route_events(journal, "erp", "a", "b", "c")
    attempts = [values_of_erp(metrics)["delivery_attempts_total"]]
    claimed = claim(journal, "erp")
    attempts.append(values_of_erp(metrics)["delivery_attempts_total"])
    results = (Result.POSTPONED, Result.RELEASED, Result.RELEASED)
    journal.settle(
        [
            Settlement(delivery, result, journal.now() + 60, "HTTP 500")
            for delivery, result in zip(claimed, results, strict=True)
        ]
    )
    attempts.append(values_of_erp(metrics)["delivery_attempts_total"])
    assert attempts == sorted(attempts)
    assert attempts[-1] == 1


def test_the_gauges_of_a_sink_show_what_is_in_the_journal(journal: Journal, metrics: Metrics) -> None:
    accept(journal, "not routed")
    page = parse(metrics.page().decode())
    assert (page["receiver_unrouted_events", ()], page["receiver_quarantined_pushes", ()]) == (1, 0)

    route_events(journal, "erp", "a", "b", "c")
    journal.save_sink_state(SinkState("erp", 1, journal.now() + 60, "HTTP 429"))
    settle(journal, claim(journal, "erp", 1), Result.DEAD)
    erp = values_of_erp(metrics)
    assert erp.pop("oldest_pending_age_seconds") > 1_000_000
    assert erp | {"oldest_pending_age_seconds": 0} == sink_values(
        pending_deliveries=2, dead_letters=1, sink_paused=1, delivery_attempts_total=1, delivery_failures_total=1
    )

    journal.save_sink_state(SinkState("erp"))
    settle(journal, claim(journal, "erp"), Result.DELIVERED)
    assert values_of_erp(metrics) == sink_values(
        dead_letters=1, deliveries_total=2, delivery_attempts_total=3, delivery_failures_total=1
    )


def test_the_last_accepted_push_and_the_space_of_the_journal_are_shown(store: Store, metrics: Metrics) -> None:
    before = parse(metrics.page().decode())
    assert ("receiver_last_accepted_push_timestamp_seconds", ()) not in before
    journal = store.open()
    for secret, at in (("new", 2000.0), ("old", 1000.0)):
        store.clock.now = at
        store.open().accept([Arrival(secret, co2_event(secret), at, secret=secret)])
    page = parse(metrics.page().decode())
    free = journal.space().free
    assert page["receiver_last_accepted_push_timestamp_seconds", ()] == 2000.0
    assert page["receiver_journal_size_bytes", ()] > 10_000
    assert page.get(("receiver_journal_free_bytes", ()), 0) > 0 or free is None


def test_an_event_from_a_clock_that_was_ahead_has_an_age_of_0(journal: Journal, metrics: Metrics) -> None:
    route_events(journal, "erp", "a", received_at=4e9)
    assert values_of_erp(metrics)["oldest_pending_age_seconds"] == 0


def test_a_sink_that_is_removed_during_a_reading_is_shown_as_not_paused(
    journal: Journal, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    route_events(journal, "erp", "a")
    monkeypatch.setattr(journal, "sink_states", dict)
    assert values_of_erp(metrics)["sink_paused"] == 0


class ConcurrentRequests:
    """Many concurrent requests for a page: all but the first come during the first reading of the journal."""

    def __init__(self, metrics: Metrics, read: Callable[[], Counts], monkeypatch: pytest.MonkeyPatch) -> None:
        self.readings = 0
        self._metrics = metrics
        self._read = read
        self._begun, self._may_end = threading.Event(), threading.Event()
        self._clock_reads = 0
        clock = types.SimpleNamespace(monotonic=self._monotonic, sleep=time.sleep, time=time.time)
        monkeypatch.setattr(metrics_module, "time", clock)

    def read_slowly(self) -> Counts:
        """In place of the journal's `counts`: ends when all have asked."""
        self.readings += 1
        try:
            return self._read()
        finally:
            self._begun.set()
            assert self._may_end.wait(20)

    def run(self, meanwhile: Callable[[], object] = lambda: None) -> list[Future[bytes]]:
        with ThreadPoolExecutor(16) as pool:
            first = pool.submit(self._metrics.page)
            assert self._begun.wait(20)
            meanwhile()
            clock_reads = self._clock_reads
            later = [pool.submit(self._metrics.page) for _ in range(15)]
            wait_until(lambda: self._clock_reads == clock_reads + 15, what="all requests")
            self._may_end.set()
        return [first, *later]

    def _monotonic(self) -> float:
        self._clock_reads += 1
        return time.monotonic()


def test_concurrent_requests_share_a_reading_that_began_after_they_came(
    journal: Journal, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = ConcurrentRequests(metrics, journal.counts, monkeypatch)
    monkeypatch.setattr(journal, "counts", requests.read_slowly)
    pages = requests.run(meanwhile=lambda: route_events(journal, "erp", "a"))
    pending = [of_sink(parse(page.result().decode()), "erp").get("pending_deliveries") for page in pages]
    assert pending == [None] + [1] * 15
    assert requests.readings == 2


def test_concurrent_requests_while_the_journal_is_away_wait_for_at_most_two_readings(
    journal: Journal, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> NoReturn:
        raise JournalUnavailable("the server is gone")

    requests = ConcurrentRequests(metrics, fail, monkeypatch)
    monkeypatch.setattr(journal, "counts", requests.read_slowly)
    pages = requests.run()
    assert {str(page.exception()) for page in pages} == {"the server is gone"}
    assert requests.readings == 2


@pytest.mark.parametrize(("free_kb", "has_room"), [(1, False), (1000 * 1024, True)], ids=["full", "room"])
def test_counters_are_stored_in_memory_only_if_there_is_room(
    free_kb: int, has_room: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters_module, "MEMORY", str(tmp_path))
    found = types.SimpleNamespace(f_bavail=free_kb, f_frsize=1024)
    monkeypatch.setattr(counters_module.os, "statvfs", lambda path: found)
    assert counters_module.memory_folder() == (str(tmp_path) if has_room else None)
