"""What /metrics shows, right after known sequences at the real server."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest
import urllib3
from conftest import TEST_SECRET, Running, StartReceiver, wait_until
from prometheus_client.parser import text_string_to_metric_families
from pytest_httpserver import HTTPServer

from receiver import metrics as metrics_module
from receiver import server
from receiver.errors import ConfigError, JournalUnavailable
from receiver.journal import Acceptance, Arrival, Counts, Journal, Result, Settlement, SinkState, open_journal
from receiver.journal.sql import SqlJournal
from receiver.metrics import Metrics
from receiver.settings import SECRET, load
from receiver.signature import sign

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
TOKEN = "token-of-the-pages"
CLOSED = f'[receiver]\nmetrics_token = "{TOKEN}"\n[sinks.console]\ntype = "stdout"\n'
NEVER = 1e6

Labels = tuple[tuple[str, str], ...]
Page = dict[tuple[str, Labels], float]


def body(name: str, event_type: str = "touch") -> bytes:
    return json.dumps({"event": {"eventId": name, "eventType": event_type, "data": {}}}).encode()


def parsed(text: str) -> Page:
    """Every sample of a page, buckets of histograms left out."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def page(receiver: Running) -> Page:
    response = receiver.http.request("GET", f"{receiver.url}/metrics")
    assert (response.status, response.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return parsed(response.data.decode())


def of_sink(seen: Page, sink: str) -> dict[str, float]:
    """All that a page says of one sink, by the names without `receiver_`."""
    return {name.removeprefix("receiver_"): value for (name, labels), value in seen.items() if ("sink", sink) in labels}


def answers(seen: Page) -> dict[tuple[str, str], float]:
    """How many pushes were answered with which status and text."""
    return {
        (dict(labels)["status"], dict(labels)["answer"]): value
        for (name, labels), value in seen.items()
        if name == "receiver_pushes_total"
    }


def counters(seen: Page) -> Page:
    return {key: value for key, value in seen.items() if key[0].endswith(("_total", "_count", "_sum"))}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    (tmp_path / "config.toml").write_text("[journal]\nmin_free_mb = 0\n", encoding="utf-8")
    journal = open_journal(load({"RECEIVER_CONFIG": str(tmp_path / "config.toml")}, secret_required=False))
    yield journal
    journal.close()


def shown(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> Page:
    """The page of a process that runs alone."""
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    return parsed(Metrics(journal).page().decode())


def test_after_known_pushes_and_deliveries_every_metric_is_right(
    start_receiver: StartReceiver, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/hook", method="POST").respond_with_data("", 200)
    receiver = start_receiver(TWO_SINKS.format(url=httpserver.url_for("/hook")), DT_SIGNATURE_SECRET_OLD="old-secret")

    for name in ("a", "b"):
        assert receiver.push(body(name)) == (200, "accepted")
    assert receiver.push(body("c", "co2")) == (200, "accepted")
    for _ in range(3):
        assert receiver.push(body("a")) == (200, "duplicate")
    assert receiver.push(b"[1]") == (200, "quarantined")
    assert receiver.push(b"[2]") == (200, "quarantined")
    assert receiver.push(b"[2]") == (200, "quarantined")
    assert receiver.push(body("d"), {}) == (400, "missing header X-Dt-Signature")
    for _ in range(2):
        assert receiver.push(body("d"), sign(body("d"), "another-secret", 2e9)) == (400, "wrong secret")
    assert receiver.push(body("d"), sign(body("d"), TEST_SECRET, 1e9)) == (400, "expired")
    assert receiver.push(b"x" * 300_000) == (413, "body too large")

    def all_delivered() -> Page | None:
        seen = page(receiver)
        return (
            seen
            if (of_sink(seen, "archive")["delivered_total"], of_sink(seen, "erp")["delivered_total"])
            == (
                3,
                2,
            )
            else None
        )

    seen = wait_until(all_delivered)
    assert answers(seen) == {
        ("200", "accepted"): 3,
        ("200", "duplicate"): 3,
        ("200", "quarantined"): 3,
        ("400", "missing header X-Dt-Signature"): 1,
        ("400", "wrong secret"): 2,
        ("400", "expired"): 1,
        ("413", "body too large"): 1,
    }
    nothing = {"failures_total": 0, "dead": 0, "pending": 0, "oldest_pending_seconds": 0, "paused": 0}
    assert of_sink(seen, "archive") == {"delivered_total": 3, "attempts_total": 3, **nothing}
    assert of_sink(seen, "erp") == {"delivered_total": 2, "attempts_total": 2, **nothing}
    assert (seen["receiver_unmatched", ()], seen["receiver_quarantined", ()]) == (0, 2)
    assert seen["receiver_commit_seconds_count", ()] == 9
    assert 0 < seen["receiver_commit_seconds_sum", ()] < 60
    assert {name for name, _ in seen} == {
        *("receiver_pushes_total", "receiver_commit_seconds_count", "receiver_commit_seconds_sum"),
        *("receiver_unmatched", "receiver_quarantined", "receiver_secret_used_total"),
        *("receiver_delivered_total", "receiver_attempts_total", "receiver_failures_total"),
        *("receiver_dead", "receiver_pending", "receiver_oldest_pending_seconds", "receiver_paused"),
    }


def test_failures_dead_letters_and_pauses_are_counted_at_the_sink_that_has_them(
    start_receiver: StartReceiver, httpserver: HTTPServer
) -> None:
    httpserver.expect_ordered_request("/hook").respond_with_data("", 500)
    httpserver.expect_ordered_request("/hook").respond_with_data("", 429, {"Retry-After": "3600"})
    receiver = start_receiver(TWO_SINKS.format(url=httpserver.url_for("/hook")))
    receiver.push(body("dead"))
    wait_until(lambda: of_sink(page(receiver), "erp").get("dead") == 1)
    receiver.push(body("waits"))

    def paused() -> dict[str, float] | None:
        erp = of_sink(page(receiver), "erp")
        return erp if (erp["paused"], erp["attempts_total"]) == (1, 2) else None

    erp = wait_until(paused)
    assert 0 < erp.pop("oldest_pending_seconds") < 60
    assert erp == {
        "delivered_total": 0,
        "attempts_total": 2,
        "failures_total": 1,
        "dead": 1,
        "pending": 1,
        "paused": 1,
    }
    wait_until(lambda: of_sink(page(receiver), "archive")["delivered_total"] == 2)
    assert of_sink(page(receiver), "archive")["paused"] == 0


def test_counters_over_two_workers_are_right_and_survive_the_death_of_one(start_receiver: StartReceiver) -> None:
    receiver = start_receiver()

    def push_anew(name: str) -> tuple[int, str]:
        """On a connection of its own, so that any worker may take it."""
        with urllib3.HTTPConnectionPool("127.0.0.1", receiver.port, retries=False, timeout=15) as connections:
            headers = {**sign(body(name), TEST_SECRET, time.time()), "Connection": "close"}
            response = connections.urlopen("POST", "/", body=body(name), headers=headers)
            return response.status, response.data.decode()

    names = [f"e{number}" for number in range(120)]
    with ThreadPoolExecutor(12) as clients:
        assert set(clients.map(push_anew, names)) == {(200, "accepted")}
        assert set(clients.map(push_anew, names)) == {(200, "duplicate")}
    before = page(receiver)
    assert answers(before) == {("200", "accepted"): 120, ("200", "duplicate"): 120}
    assert before["receiver_commit_seconds_count", ()] == 240

    workers = receiver.pids()["workers"]
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    wait_until(lambda: len(new := receiver.pids()["workers"]) == 2 and not set(new) & set(workers))
    wait_until(lambda: receiver.answers("/healthz"))
    receiver.http.clear()

    after = page(receiver)
    assert {key: value for key, value in counters(before).items() if after[key] < value} == {}
    assert answers(after) == answers(before)
    with ThreadPoolExecutor(12) as clients:
        assert set(clients.map(push_anew, names)) == {(200, "duplicate")}
    assert answers(page(receiver)) == {("200", "accepted"): 120, ("200", "duplicate"): 240}


def test_pushes_that_are_committed_together_each_get_their_own_answer(journal: Journal) -> None:
    assert isinstance(journal, SqlJournal)
    journal.accept(Arrival("b", b"", 1000.0))
    together = [
        Arrival("c", b"", 1000.0),
        Arrival("b", b"", 1000.0),
        Arrival("a", b"", 1000.0, quarantine="why not"),
        Arrival("c", b"", 1000.0),
    ]
    assert journal._accept_all(together) == [
        Acceptance.ACCEPTED,
        Acceptance.DUPLICATE,
        Acceptance.QUARANTINED,
        Acceptance.DUPLICATE,
    ]


def owed(journal: Journal, *names: str, received_at: float = 1000.0) -> None:
    for name in names:
        journal.accept(Arrival(name, body(name), received_at))
    journal.owe([(kept, ["erp"]) for kept in journal.unmatched(100)])


def test_attempts_count_the_calls_of_a_sink_and_never_go_backwards(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    owed(journal, "a", "b", "c")
    seen = [of_sink(shown(journal, monkeypatch), "erp")["attempts_total"]]
    claimed = journal.claim("erp", 10, 60)
    seen.append(of_sink(shown(journal, monkeypatch), "erp")["attempts_total"])
    results = (Result.WAITING, Result.UNTOUCHED, Result.UNTOUCHED)
    journal.settle(
        [Settlement(delivery, result, NEVER, "no") for delivery, result in zip(claimed, results, strict=True)]
    )
    seen.append(of_sink(shown(journal, monkeypatch), "erp")["attempts_total"])
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_the_gauges_of_a_sink_follow_the_journal(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.accept(Arrival("not yet matched", b"", 1000.0))
    before = shown(journal, monkeypatch)
    assert (before["receiver_unmatched", ()], before["receiver_quarantined", ()]) == (1, 0)
    owed(journal, "a", "b")
    journal.remember(SinkState("erp", 1, journal.now() + 60, "tired"))
    journal.settle([Settlement(delivery, Result.DEAD, why="no") for delivery in journal.claim("erp", 1, 60)])
    erp = of_sink(shown(journal, monkeypatch), "erp")
    assert (erp["pending"], erp["dead"], erp["paused"]) == (2, 1, 1)
    assert erp["oldest_pending_seconds"] > 1_000_000
    journal.remember(SinkState("erp"))
    journal.settle([Settlement(delivery, Result.DELIVERED) for delivery in journal.claim("erp", 10, 60)])
    erp = of_sink(shown(journal, monkeypatch), "erp")
    assert (erp["pending"], erp["dead"], erp["paused"], erp["oldest_pending_seconds"]) == (0, 1, 0, 0)


def test_many_who_ask_at_once_share_a_reading_that_began_after_they_asked(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    asked = AskedTogether(Metrics(journal), journal.counts, monkeypatch)
    monkeypatch.setattr(journal, "counts", asked.slowly)
    pages = [parsed(page.result().decode()) for page in asked.by_many(meanwhile=lambda: owed(journal, "a"))]
    assert [of_sink(page, "erp").get("pending") for page in pages] == [None] + [1] * 15
    assert asked.readings == 2


def test_many_who_ask_at_once_while_the_journal_is_away_wait_for_two_readings_at_most(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> NoReturn:
        raise JournalUnavailable("the server is gone")

    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    asked = AskedTogether(Metrics(journal), away, monkeypatch)
    monkeypatch.setattr(journal, "counts", asked.slowly)
    pages = asked.by_many(meanwhile=lambda: None)
    assert {str(page.exception()) for page in pages} == {"the server is gone"}
    assert asked.readings == 2


class AskedTogether:
    """A page asked for by many, all but the first during the first reading of the journal."""

    def __init__(self, metrics: Metrics, read: Callable[[], Counts], monkeypatch: pytest.MonkeyPatch) -> None:
        self.readings = 0
        self._metrics = metrics
        self._read = read
        self._begun, self._let_go = threading.Event(), threading.Event()
        self._looks = 0
        clock = types.SimpleNamespace(monotonic=self._monotonic, sleep=time.sleep, time=time.time)
        monkeypatch.setattr(metrics_module, "time", clock)

    def slowly(self) -> Counts:
        self.readings += 1
        try:
            return self._read()
        finally:
            self._begun.set()
            assert self._let_go.wait(20)

    def by_many(self, meanwhile: Callable[[], None]) -> list[Future[bytes]]:
        with ThreadPoolExecutor(16) as pool:
            first = pool.submit(self._metrics.page)
            assert self._begun.wait(20)
            meanwhile()
            looks = self._looks
            later = [pool.submit(self._metrics.page) for _ in range(15)]
            wait_until(lambda: self._looks == looks + 15, what="all who ask")
            self._let_go.set()
        return [first, *later]

    def _monotonic(self) -> float:
        self._looks += 1
        return time.monotonic()


def test_the_age_of_an_event_from_a_clock_that_was_ahead_is_not_negative(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    owed(journal, "a", received_at=4e9)
    assert of_sink(shown(journal, monkeypatch), "erp")["oldest_pending_seconds"] == 0


def test_a_sink_that_is_forgotten_while_the_page_is_read_does_not_spoil_it(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    owed(journal, "a")
    monkeypatch.setattr(journal, "states", dict)
    assert of_sink(shown(journal, monkeypatch), "erp")["paused"] == 0


def test_the_use_of_each_secret_is_counted_under_its_name_alone(start_receiver: StartReceiver) -> None:
    receiver = start_receiver(WEB_CONCURRENCY="1", DT_SIGNATURE_SECRET_OLD="the-older-secret")
    assert receiver.push(body("a"), sign(body("a"), "the-older-secret", time.time())) == (200, "accepted")
    text = receiver.http.request("GET", f"{receiver.url}/metrics").data.decode()
    assert {key[1]: value for key, value in parsed(text).items() if key[0] == "receiver_secret_used_total"} == {
        (("secret", f"{SECRET}_OLD"),): 1
    }
    assert "the-older-secret" not in text


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    receiver = Running(tmp_path_factory.mktemp("closed"), CLOSED, None, {}).start()
    yield receiver
    receiver.kill_all()


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer Bearer {TOKEN}",
        "Bearer t\u00f6ken",
    ],
    ids=ascii,
)
def test_without_the_token_the_pages_keep_what_they_know(authorization: str | None, closed: Running) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    metrics = closed.http.request("GET", f"{closed.url}/metrics", headers=headers)
    assert (metrics.status, metrics.headers["WWW-Authenticate"], metrics.data.decode()) == (
        401,
        "Bearer",
        "Authorization: Bearer and [receiver] metrics_token are needed",
    )
    ready = closed.http.request("GET", f"{closed.url}/readyz", headers=headers)
    assert (ready.status, ready.json()) == (200, {"ready": True})


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_with_the_token_the_pages_tell_all(scheme: str, closed: Running) -> None:
    headers = {"Authorization": f"{scheme} {TOKEN}"}
    metrics = closed.http.request("GET", f"{closed.url}/metrics", headers=headers)
    assert (metrics.status, "WWW-Authenticate" in metrics.headers) == (200, False)
    assert parsed(metrics.data.decode())["receiver_quarantined", ()] == 0
    assert TOKEN not in metrics.data.decode()
    ready = closed.http.request("GET", f"{closed.url}/readyz", headers=headers)
    assert (ready.status, ready.json()) == (200, {"ready": True, "faults": [], "warnings": []})


@pytest.mark.parametrize(
    ("given", "environment"),
    [('""', {}), ('{ env = "METRICS_TOKEN" }', {"METRICS_TOKEN": ""})],
    ids=["in the file", "from the environment"],
)
def test_an_empty_token_is_refused_rather_than_opening_the_pages_to_all(
    given: str, environment: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"[receiver]\nmetrics_token = {given}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.toml \[receiver\]: metrics_token"):
        load({"RECEIVER_CONFIG": str(path), **environment}, secret_required=False)


def test_every_family_says_its_type_and_what_it_means(start_receiver: StartReceiver) -> None:
    receiver = start_receiver()
    receiver.push(body("a"))
    text = receiver.http.request("GET", f"{receiver.url}/metrics").data.decode()
    families: list[Any] = list(text_string_to_metric_families(text))
    assert {family.name: family.type for family in families} == {
        "receiver_pushes": "counter",
        "receiver_commit_seconds": "histogram",
        "receiver_unmatched": "gauge",
        "receiver_quarantined": "gauge",
        "receiver_secret_used": "counter",
        "receiver_delivered": "counter",
        "receiver_attempts": "counter",
        "receiver_failures": "counter",
        "receiver_dead": "gauge",
        "receiver_pending": "gauge",
        "receiver_oldest_pending_seconds": "gauge",
        "receiver_paused": "gauge",
    }
    assert [family.name for family in families if len(family.documentation) < 10] == []


@pytest.mark.parametrize(("free_mb", "room"), [(1, False), (1000, True)])
def test_counters_are_kept_in_memory_only_where_there_is_room(
    free_mb: int, room: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MEMORY", str(tmp_path))
    found = types.SimpleNamespace(f_bavail=free_mb * 1024, f_frsize=1024)
    monkeypatch.setattr(server.os, "statvfs", lambda path: found)
    assert server.in_memory() == (str(tmp_path) if room else None)
