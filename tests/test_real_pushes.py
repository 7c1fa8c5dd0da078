"""Pushes captured from DT's cloud, through a real server whose clock is set to their time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import RunningReceiver, StartReceiver, wait_until
from pytest_httpserver import HTTPServer
from support.intake import Snapshot

PUSHES = {push["name"]: push for push in json.loads((Path(__file__).parent / "real_pushes.json").read_text())["pushes"]}
ALL_SINKS = """
[sinks.console]
type = "stdout"
[sinks.archive]
type = "csv"
path = "events.csv"
[sinks.target]
type = "webhook"
url = "{url}"
allow_private = true
"""


@pytest.mark.parametrize(("name", "reading", "label"), [("temperature", "27", "test temp"), ("touch", "1", "touch")])
def test_a_captured_push_is_delivered_to_every_sink_at_its_own_time(
    name: str, reading: str, label: str, start_receiver: StartReceiver, httpserver: HTTPServer
) -> None:
    push: dict[str, Any] = PUSHES[name]
    httpserver.expect_request("/hook", method="POST").respond_with_data("")
    receiver = start_receiver(
        ALL_SINKS.format(url=httpserver.url_for("/hook")), clock=push["token_issued_at"] + 7, ready=False
    )

    assert receiver.push(push["body"].encode(), push["headers"]) == (200, "accepted")

    event_id = json.loads(push["body"])["event"]["eventId"]
    row = wait_until(receiver.rows, what="a row in the CSV file")[0]
    assert (row["event_id"], row["value"], row["device_name"]) == (event_id, reading, label)
    line = wait_until(lambda: receiver.stdout, what="a line on the standard output")[0]
    assert (line["event_id"], line["labels"]) == (event_id, {"name": label})
    forwarded = wait_until(lambda: httpserver.log, what="a request to the webhook")[0][0]
    assert forwarded.get_data() == push["body"].encode()
    assert forwarded.headers["Idempotency-Key"] == event_id
    assert "X-Dt-Signature" not in forwarded.headers


def test_captured_pushes_are_expired_today(shared_receiver: RunningReceiver) -> None:
    expected = Snapshot.of(shared_receiver)
    for push in PUSHES.values():
        assert shared_receiver.push(push["body"].encode(), push["headers"]) == (400, "expired")
        expected = expected.after(400, "expired")
    assert Snapshot.of(shared_receiver) == expected
