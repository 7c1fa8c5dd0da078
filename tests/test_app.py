"""The app by itself, over a journal that fails in ways the real one does not."""

from __future__ import annotations

import time
from typing import cast

import pytest
from conftest import ROOT, TEST_SECRET

from receiver.app import create_app
from receiver.journal import Acceptance, Arrival, Journal
from receiver.settings import JournalTable, ReceiverTable, Settings
from receiver.signature import sign
from receiver.simulator import Simulator


class Faulty:
    """A journal with a fault of its own."""

    def accept(self, arrival: Arrival) -> Acceptance:
        raise RuntimeError("not foreseen")


def test_a_fault_of_our_own_is_answered_503_so_that_dt_pushes_again(caplog: pytest.LogCaptureFixture) -> None:
    secrets = {"DT_SIGNATURE_SECRET": TEST_SECRET}
    settings = Settings(ROOT / "config.toml", ReceiverTable(), JournalTable(), (), 8000, 1, secrets, set())
    body = Simulator().body("touch")

    answer = (
        create_app(settings, cast(Journal, Faulty()))
        .test_client()
        .post("/", data=body, headers=sign(body, TEST_SECRET, time.time()))
    )

    assert (answer.status_code, answer.text, answer.headers["Retry-After"]) == (503, "internal fault", "10")
    assert answer.headers["X-Request-Id"] in caplog.text
    assert body.decode() not in caplog.text
