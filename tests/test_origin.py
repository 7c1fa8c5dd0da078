"""Where an event came from: stored with it, known to sinks and filters, and what the registry makes of the history."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import pytest
from support.commands import Operator, event_body
from support.journals import Store
from support.sensors import FREEZER, at, connection, event, latest_of, network, row_of, temperature

from receiver.event import Event, Origin
from receiver.journal import Arrival, Journal, Outcome
from receiver.sensors.history import unpack
from receiver.sensors.registry import Registry
from receiver.settings import Filter


def history(found: Event, received: float | None = None) -> Event:
    """The same event, fetched from DT's history."""
    received_at = found.received_at if received is None else at(received)
    return dataclasses.replace(found, origin=Origin.HISTORY, received_at=received_at)


# In the journal


def test_the_origin_of_an_event_is_stored_and_given_to_sinks(journal: Journal) -> None:
    arrivals = [
        Arrival("a", event_body("a"), 1000.0),
        Arrival("b", event_body("b"), 1000.0, origin=Origin.HISTORY),
    ]
    assert journal.accept(arrivals) == [Outcome.ACCEPTED] * 2
    assert [each.decode().origin for each in journal.unrouted(10)] == [Origin.PUSH, Origin.HISTORY]
    journal.route([(each, ["x"]) for each in journal.unrouted(10)])
    claimed = journal.claim("x", 10, 60.0)
    assert [each.event.decode().origin for each in claimed] == [Origin.PUSH, Origin.HISTORY]


def test_the_first_of_a_push_and_the_same_event_of_the_history_is_stored(journal: Journal) -> None:
    pushed, fetched = Arrival("a", b"pushed", 1.0), Arrival("a", b"fetched", 2.0, origin=Origin.HISTORY)
    assert journal.accept([fetched]) == [Outcome.ACCEPTED]
    assert journal.accept([pushed, fetched]) == [Outcome.DUPLICATE] * 2
    (stored,) = journal.unrouted(10)
    assert (stored.body, stored.origin) == (b"fetched", "history")


def test_a_quarantined_event_of_the_history_stays_one_when_it_is_released(store: Store) -> None:
    journal, records = store.open(), store.records()
    body = event_body("a")
    arrival = Arrival("f" * 64, body, 1.0, quarantine_reason="an older receiver", origin=Origin.HISTORY)
    assert journal.accept([arrival]) == [Outcome.QUARANTINED]
    (push,) = records.quarantined(10)
    assert push.origin == "history"
    records.release(push, "a")
    (stored,) = journal.unrouted(10)
    assert stored.decode().origin is Origin.HISTORY


def test_the_journal_says_which_events_it_has(store: Store) -> None:
    journal, records = store.open(), store.records()
    journal.accept([Arrival(name, b"", 1.0) for name in ("a", "b")])
    assert records.known(["a", "c", "b", "a"]) == {"a", "b"}
    assert records.known([]) == set()
    assert records.known([f"e{n}" for n in range(1000)]) == set()


@pytest.mark.parametrize(
    ("origin", "names"), [(None, ["pushed", "fetched"]), ("push", ["pushed"]), ("history", ["fetched"])]
)
def test_a_filter_chooses_by_origin(origin: Any, names: Sequence[str]) -> None:
    pushed = event(0)
    events = {"pushed": pushed, "fetched": history(pushed)}
    condition = Filter(origin=origin)
    assert [name for name, each in events.items() if not condition.misses(each)] == names


def test_explain_names_the_filter_that_an_event_of_the_history_does_not_pass(operator: Operator) -> None:
    operator.configure('[sinks.alarm]\ntype = "stdout"\nfilter = { origin = "push" }\n[sensors]\nenabled = false\n')
    operator.journal.accept([Arrival("a", event_body("a"), 1.0, origin=Origin.HISTORY)])
    operator.journal.route([(each, []) for each in operator.journal.unrouted(10)])
    assert operator.explain("a")["alarm"]["state"] == "not routed: filter origin"
    assert operator.json("explain", "a")["origin"] == "history"


def test_an_unknown_origin_is_an_error_with_what_to_write(operator: Operator) -> None:
    operator.configure('[sinks.alarm]\ntype = "stdout"\nfilter = { origin = "pull" }\n')
    code, _, errors = operator.run("check")
    assert code == 1
    assert any("origin" in line and "push" in line for line in errors)


# In the registry


def beats(*minutes: float) -> list[Event]:
    return [network(minute, "ccon1") for minute in minutes]


def heard(registry: Registry) -> tuple[int, int]:
    """How many minutes the freezer was heard in live, and in how many it was heard or filled."""
    row = row_of(registry)
    return tuple(registry.heard([row], filled=filled)[FREEZER].count() for filled in (False, True))  # type: ignore[return-value]


def test_history_fills_gaps_and_is_no_sign_of_life(registry: Registry) -> None:
    registry.fold(beats(0, 15, 30))
    before = row_of(registry)
    registry.fold([history(each, 200) for each in beats(45, 60, 75)])
    after = row_of(registry)
    assert (after.last_heard, after.first_heard) == (before.last_heard, before.first_heard)
    assert heard(registry) == (3, 6)


def test_history_is_no_arrival_of_its_project(registry: Registry) -> None:
    registry.fold(beats(*range(0, 300, 15)))
    tracks = registry.outages(at(600).timestamp())
    registry.fold([history(each, 590) for each in beats(*range(300, 580, 15))])
    assert registry.outages(at(600).timestamp()) == tracks


def test_history_replaces_no_newer_value_and_adds_points(registry: Registry) -> None:
    registry.fold([temperature(60, 4.0)])
    registry.fold([history(temperature(30, 9.0), 100)])
    assert latest_of(registry)["temperature"] == 4.0
    (day,) = registry.days(FREEZER, 0)
    assert [point.mean for point in unpack(day.day, "temperature", day.hours, day.points)] == [9.0, 4.0]
    assert row_of(registry).last_heard == at(60).timestamp()


@pytest.mark.parametrize("state", ["OFFLINE", "ETHERNET"])
def test_a_connection_in_the_history_neither_raises_nor_clears_an_incident(registry: Registry, state: str) -> None:
    registry.fold([*beats(0), connection(10, "ETHERNET" if state == "OFFLINE" else "OFFLINE")])
    before = registry.judge(at(11).timestamp(), "judge")
    was = row_of(registry).offline_since
    registry.fold([history(connection(12, state), 20)])
    assert row_of(registry).offline_since == was
    assert len(registry.judge(at(21).timestamp(), "judge")) == len(before)


def test_a_sensor_whose_heartbeats_are_in_the_history_alone_is_not_expected(registry: Registry) -> None:
    registry.fold([event(0, "touch", device_type="touch")])
    registry.fold([history(each, 200) for each in beats(*range(0, 180, 15))])
    assert not row_of(registry).periodic


def test_a_name_in_the_history_counts_where_no_push_has_one(registry: Registry) -> None:
    registry.fold([history(event(60, name="from the history", project="moved"), 100)])
    row = row_of(registry)
    assert (row.name, row.project_id, row.last_heard) == ("from the history", "moved", None)
    registry.fold([event(0, name="pushed")])
    row = row_of(registry)
    assert (row.name, row.project_id) == ("pushed", event(0).project_id)


def test_history_is_folded_in_any_order_to_the_same(registry: Registry) -> None:
    live = beats(0, 15, 30, 90, 105)
    missed = [history(each, 200) for each in beats(30, 45, 60, 75, 90)]
    registry.fold([*missed, *live, *missed])
    assert heard(registry) == (5, 8)
    assert json.loads(row_of(registry).facts)["via:ccon1"] == [at(105).timestamp()]
