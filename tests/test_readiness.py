"""Whether the receiver can store and deliver: `/healthz`, `/readyz`, and 503 for pushes that cannot be stored."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import cast

import pytest
from conftest import CSV_ONLY, ROOT, TEST_SECRET, RunningReceiver, StartReceiver, wait_until
from support.pushes import event

from receiver.intake import pushes
from receiver.intake.app import create_app
from receiver.journal import Arrival, Journal, Outcome
from receiver.settings import JournalTable, ReceiverTable, Settings
from receiver.signature import sign
from receiver.simulator import Simulator

MISSING = "missing header X-Dt-Signature"


def get_page(receiver: RunningReceiver, path: str) -> tuple[int, str, str | None]:
    """Status, text and Retry-After of a page."""
    response = receiver.http.request("GET", receiver.url + path)
    return response.status, response.data.decode(), response.headers.get("Retry-After")


def get_readiness(receiver: RunningReceiver, query: str = "") -> tuple[int, object]:
    response = receiver.http.request("GET", f"{receiver.url}/readyz{query}")
    return response.status, json.loads(response.data)


def test_a_receiver_that_works_is_live_and_ready(shared_receiver: RunningReceiver) -> None:
    assert get_page(shared_receiver, "/healthz") == (200, "ok", None)
    ready = (200, {"ready": True, "errors": [], "warnings": []})
    assert get_readiness(shared_receiver) == get_readiness(shared_receiver, "?strict") == ready


def test_without_a_dispatcher_pushes_are_accepted_and_the_receiver_is_live_but_not_ready(
    start_receiver: StartReceiver,
) -> None:
    receiver = start_receiver(f"{CSV_ONLY}\n[receiver]\ndeliver = false\n", ready=False)
    assert get_readiness(receiver) == (503, {"ready": False, "errors": ["no dispatcher is alive"], "warnings": []})
    assert get_page(receiver, "/healthz") == (200, "ok", None)
    assert receiver.push(event("no dispatcher")) == (200, "accepted")
    assert receiver.metric("receiver_unrouted_events") == 1


def test_a_paused_sink_is_a_warning_and_with_strict_an_error(start_receiver: StartReceiver) -> None:
    receiver = start_receiver(f"{CSV_ONLY}\n[sinks.broken]\ntype = 'csv'\n")
    reason = "sink broken is paused: config.toml [sinks.broken]: option 'path' is missing"
    wait_until(lambda: get_readiness(receiver) == (200, {"ready": True, "errors": [], "warnings": [reason]}))
    strict = (503, {"ready": False, "errors": [reason], "warnings": []})
    assert get_readiness(receiver, "?strict") == get_readiness(receiver, "?strict=1") == strict
    assert receiver.push(event("accepted all the same")) == (200, "accepted")


@pytest.mark.serial
def test_when_the_journal_cannot_store_events_pushes_get_503_in_time_and_nothing_is_stored(
    start_receiver: StartReceiver,
) -> None:
    receiver = start_receiver(f"{CSV_ONLY}\n[journal]\nmin_free_mb = 1000000000\n", ready=False)
    body = event("no room")
    started = time.monotonic()
    response = receiver.http.request("POST", receiver.url, body=body, headers=sign(body, TEST_SECRET, time.time()))
    assert (response.status, response.data, response.headers.get("Retry-After")) == (503, b"journal unavailable", "10")
    assert receiver.push(body) == (503, "journal unavailable")
    assert time.monotonic() - started < 5
    assert receiver.push(body, {}) == (400, MISSING)
    status, readiness = get_readiness(receiver)
    assert isinstance(readiness, dict)
    assert (status, readiness["ready"], len(readiness["errors"])) == (503, False, 1)
    assert "[journal] min_free_mb is 1000000000" in readiness["errors"][0]
    assert get_page(receiver, "/healthz") == (200, "ok", None)
    assert receiver.metric('receiver_pushes_total{code="503",result="journal unavailable"}') == 2
    assert receiver.metric("receiver_unrouted_events") == receiver.metric("receiver_quarantined_pushes") == 0
    assert receiver.rows() == []


class BrokenJournal:
    """A journal with a bug."""

    def accept(self, arrivals: Sequence[Arrival]) -> Sequence[Outcome]:
        raise RuntimeError("a bug")


def verify_with_bug(*args: object, **options: object) -> str:
    raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("place", "text"),
    [
        pytest.param("verification", "internal error", id="in the verification"),
        pytest.param("journal", "journal unavailable", id="in the journal"),
    ],
)
def test_an_internal_error_gets_503_so_that_dt_retries_and_its_log_does_not_contain_the_body(
    place: str, text: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if place == "verification":
        monkeypatch.setattr(pushes, "verify", verify_with_bug)
    secrets = {"DT_SIGNATURE_SECRET": TEST_SECRET}
    settings = Settings(ROOT / "config.toml", ReceiverTable(), JournalTable(), (), 8000, 1, secrets, frozenset())
    body = Simulator().body("touch")

    response = (
        create_app(settings, cast(Journal, BrokenJournal()))
        .test_client()
        .post("/", data=body, headers=sign(body, TEST_SECRET, time.time()))
    )

    assert (response.status_code, response.text, response.headers["Retry-After"]) == (503, text, "10")
    assert response.headers["X-Request-Id"] in caplog.text
    assert "RuntimeError: a bug" in caplog.text
    assert body.decode() not in caplog.text
