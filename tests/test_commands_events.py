"""`events` lists stored events, newest first."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from support.commands import NOON, Operator, event_body

from receiver.admin import events
from receiver.journal import Arrival, Result


def named(event_id: str, device: str, name: str, event_type: str = "touch") -> bytes:
    body = json.loads(event_body(event_id, event_type))
    body["labels"]["name"] = name
    body["metadata"]["deviceId"] = device
    return json.dumps(body).encode()


def ids(operator: Operator, *arguments: str) -> list[str]:
    return [row["event_id"] for row in operator.json("events", *arguments)]


@pytest.fixture
def stocked(operator: Operator) -> Operator:
    """An event an hour: a is delivered at both sinks, b is dead at one, c is pending, d is not routed yet."""
    bodies = {
        "a": named("a", "dev1", "Cold store"),
        "b": named("b", "dev2", "Door", "contact"),
        "c": named("c", "dev1", "Cold store", "temperature"),
    }
    now = time.time()
    for number, (name, body) in enumerate(bodies.items()):
        operator.journal.accept([Arrival(name, body, now - 3600 * (4 - number))])
        operator.journal.route([(event, ["erp", "archive"]) for event in operator.journal.unrouted(1)])
        if name != "c":
            operator.settle_due("erp", Result.DELIVERED)
            operator.settle_due("archive", Result.DELIVERED if name == "a" else Result.DEAD, "no")
    operator.journal.accept([Arrival("d", b"not JSON any more", now - 3600)])
    return operator


def test_an_event_is_listed_with_its_sensor_its_type_and_where_it_is(operator: Operator) -> None:
    operator.journal.accept([Arrival("a", named("a", "dev1", "Cold store"), NOON)])
    operator.journal.route([(event, ["erp", "archive"]) for event in operator.journal.unrouted(1)])
    operator.settle_due("erp", Result.DELIVERED)
    assert operator.json("events") == [
        {
            "event_id": "a",
            "received_at": "2026-01-31T12:00:00.000Z",
            "occurred_at": "2026-01-31T12:00:00.000Z",
            "device_id": "dev1",
            "device_name": "Cold store",
            "event_type": "touch",
            "deliveries": [{"sink": "archive", "state": "pending"}, {"sink": "erp", "state": "delivered"}],
        }
    ]
    heading, line = operator.lines("events")
    assert line[heading.index("deliveries") :] == "archive pending, erp delivered"
    assert line[heading.index("device name") :].startswith("Cold store")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ((), "dcba"),
        (("--limit", "2"), "dc"),
        (("--sensor", "dev1"), "ca"),
        (("--sensor", "cold STORE"), "ca"),
        (("--sensor", "cold"), ""),
        (("--type", "contact"), "b"),
        (("--type", "contact", "--type", "touch"), "ba"),
        (("--state", "dead"), "b"),
        (("--state", "pending"), "c"),
        (("--state", "delivered", "--sensor", "dev1"), "a"),
        (("--since", "150m"), "dc"),
        (("--since", "210m", "--until", "90m"), "cb"),
    ],
    ids=str,
)
def test_events_are_found_newest_first(arguments: tuple[str, ...], found: str, stocked: Operator) -> None:
    assert "".join(ids(stocked, *arguments)) == found


def test_an_event_that_cannot_be_decoded_is_listed_without_its_facts(stocked: Operator) -> None:
    (row,) = stocked.json("events", "--limit", "1")
    row.pop("received_at")
    facts: dict[str, Any] = dict.fromkeys(("occurred_at", "device_id", "device_name", "event_type"))
    assert row == {"event_id": "d", **facts, "deliveries": []}


def test_without_such_events_there_is_a_line(stocked: Operator) -> None:
    assert stocked.lines("events", "--sensor", "nobody") == ["No such events."]


def test_where_too_much_would_have_to_be_read_the_command_says_so(
    stocked: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "BATCH", 1)
    monkeypatch.setattr(events, "MAX_READ", 2)
    code, out, errors = stocked.run("events", "--sensor", "dev2")
    assert (code, out) == (0, ["No such events."])
    (line,) = errors
    said, _, rest = line.partition(" --until ")
    assert said == "warning: stopped after reading 2 events; add"
    until = rest.removesuffix(" to go on")
    _, found = stocked.run("events", "--sensor", "dev2", "--until", until).out
    assert found.split()[0] == "b"


def test_a_type_that_dt_does_not_document_is_a_warning(stocked: Operator) -> None:
    assert stocked.run("events", "--type", "temprature") == (
        0,
        ["No such events."],
        ["warning: --type: DT documents no event type 'temprature' (did you mean 'temperature'?)"],
    )


def test_times_in_the_wrong_order_are_an_error(stocked: Operator) -> None:
    assert stocked.run("events", "--since", "1h", "--until", "2h") == (
        1,
        [],
        ["error: --until must be later than --since"],
    )
