"""`explain` shows what happened to an event, sink by sink."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from support.commands import CONSOLE, JOURNAL, NOON, TWO_SINKS, Operator, event_body, is_recent

from receiver.journal import Arrival, Result, SinkState


def without_attempts(state: str) -> dict[str, Any]:
    return {"state": state, "attempts": 0, "last_attempt_at": None, "reason": None, "next_attempt_at": None}


def test_an_event_is_explained_with_its_facts_and_its_delivery_at_each_sink(operator: Operator) -> None:
    operator.configure(TWO_SINKS + CONSOLE)
    operator.add_events({"a": ["erp", "archive", "removed"]})
    operator.settle_due("archive", Result.DELIVERED)
    operator.settle_due("erp", Result.FAILED, "HTTP 500", due=NOON)
    operator.settle_due("erp", Result.FAILED, "HTTP 502", due=NOON + 60)
    operator.settle_due("removed", Result.DEAD, "HTTP 422")

    facts = operator.json("explain", "a")
    facts.pop("sinks")
    assert facts == {
        "event_id": "a",
        "event_type": "touch",
        "device_id": "emu1",
        "device_name": None,
        "occurred_at": "2026-01-31T12:00:00.000Z",
        "received_at": "2026-01-31T12:00:00.000Z",
        "origin": "push",
    }
    sinks = operator.explain("a")
    assert all(is_recent(sinks[name].pop("last_attempt_at")) for name in ("archive", "erp", "removed"))
    assert sinks == {
        "archive": {"state": "delivered", "attempts": 1, "reason": None, "next_attempt_at": None},
        "erp": {
            "state": "pending",
            "attempts": 2,
            "reason": "HTTP 502",
            "next_attempt_at": "2026-01-31T12:01:00.000Z",
        },
        "removed": {"state": "dead", "attempts": 1, "reason": "HTTP 422", "next_attempt_at": None},
        "console": without_attempts(
            "not routed: the sink was added later, or its dead letter was deleted; `replay` delivers it"
        ),
    }


def test_an_explanation_for_people_has_the_same_facts(operator: Operator) -> None:
    operator.add_events({"a": ["archive", "erp"]})
    operator.settle_due("erp", Result.FAILED, "HTTP 500", due=NOON + 60)
    *facts, heading, archive, erp = operator.lines("explain", "a")
    assert facts == [
        "event id     a",
        "event type   touch",
        "device id    emu1",
        "device name  -",
        "occurred at  2026-01-31T12:00:00.000Z",
        "received at  2026-01-31T12:00:00.000Z",
        "origin       push",
    ]
    assert heading.split("  ")[0] == "sink"
    assert archive.split()[:3] == ["archive", "pending", "0"]
    assert erp[heading.index("reason") :].split("  ")[0] == "HTTP 500"
    assert erp[heading.index("next attempt at") :] == "2026-01-31T12:01:00Z"


def test_an_event_that_is_not_routed_yet_is_explained_as_such(operator: Operator) -> None:
    operator.journal.accept([Arrival("a", event_body("a"), NOON)])
    assert operator.explain("a") == {
        "archive": without_attempts("not routed yet"),
        "erp": without_attempts("not routed yet"),
    }


FILTER = """
[sinks.picky]
type = "stdout"
[sinks.picky.filter]
event_types = ["temperature"]
devices = ["emu2"]
projects = ["p"]
labels = { site = "oslo" }
backfilled = true
"""


def test_every_condition_of_a_filter_that_an_event_misses_is_named(operator: Operator) -> None:
    operator.configure(JOURNAL + FILTER)
    operator.add_events({"a": []})
    assert operator.explain("a") == {
        "picky": without_attempts("not routed: filter event_types, devices, projects, labels, backfilled")
    }


def test_the_next_attempt_at_a_paused_sink_is_not_before_the_end_of_the_pause(operator: Operator) -> None:
    operator.add_pending("erp", "a")
    until = datetime(2100, 1, 31, tzinfo=UTC)
    operator.journal.save_sink_state(SinkState("erp", pauses=1, paused_until=until.timestamp()))
    erp = operator.explain("a")["erp"]
    assert (erp["state"], erp["next_attempt_at"]) == ("pending", "2100-01-31T00:00:00.000Z")


def test_a_sink_that_is_paused_until_the_next_start_has_no_next_attempt(operator: Operator) -> None:
    operator.add_pending("erp", "a")
    operator.journal.save_sink_state(SinkState("erp", pauses=1, pause_reason="no option 'ulr'"))
    erp = operator.explain("a")["erp"]
    assert (erp["state"], erp["next_attempt_at"]) == ("pending", None)


def test_a_push_that_is_in_quarantine_is_not_an_event(operator: Operator) -> None:
    push_id = operator.quarantine(b"[]", "the body is not a JSON object")
    assert operator.run("explain", push_id) == (
        1,
        [],
        [
            f"error: event {push_id} is not in the journal: it was never received, or was delivered and then removed "
            "after [journal] retention_days"
        ],
    )


def test_the_body_of_an_event_is_shown_as_it_was_received(operator: Operator) -> None:
    operator.add_events({"a": ["archive"]})
    assert operator.json("explain", "a", "--body")["body"] == event_body("a").decode()
    assert operator.lines("explain", "a", "--body") == [*operator.lines("explain", "a"), event_body("a").decode()]
