"""Routing: which sinks get an event, also while sinks are added, disabled and removed."""

from __future__ import annotations

import pytest
from conftest import wait_until
from support.delivery import RunningDispatcher, SingleSink, add_deliveries, event_body

from receiver.delivery import dispatcher as dispatcher_module
from receiver.journal import Arrival


def test_an_event_is_routed_to_the_sinks_whose_filter_it_passes(dispatcher: RunningDispatcher) -> None:
    sinks = [
        dispatcher.sink(SingleSink(), "all"),
        dispatcher.sink(SingleSink(), "touches", filter={"event_types": ["touch"]}),
        dispatcher.sink(SingleSink(), "oslo", filter={"labels": {"site": "oslo"}}),
    ]
    created = dispatcher.create(*sinks, broken={"broken": "no such type"})
    bodies = {
        "touch": event_body("touch"),
        "motion": event_body("motion", "motion"),
        "oslo": b'{"event":{"eventId":"oslo","eventType":"co2"},"labels":{"site":"oslo"}}',
        "undecodable": b"no event any more",
    }
    for event_id, body in bodies.items():
        dispatcher.journal.accept([Arrival(event_id, body, 1000.0)])
    assert created.tick() is True
    assert created.tick() is False
    routed = {
        sink: [delivery.event.id for delivery in dispatcher.journal.claim(sink, 10, 60.0)]
        for sink in ("all", "touches", "oslo", "broken", "unknown")
    }
    assert routed == {
        "all": ["touch", "motion", "oslo", "undecodable"],
        "touches": ["touch", "undecodable"],
        "oslo": ["oslo", "undecodable"],
        "broken": ["touch", "motion", "oslo", "undecodable"],
        "unknown": [],
    }


def test_a_removed_sink_keeps_its_pending_deliveries_and_gets_no_new_ones(dispatcher: RunningDispatcher) -> None:
    add_deliveries(dispatcher.journal, "removed", "old")
    dispatcher.accept("new")
    dispatcher.create(dispatcher.sink(SingleSink(), "present")).tick()
    assert (dispatcher.counts("removed"), dispatcher.counts("present")) == ((0, 1, 0), (0, 1, 0))


def test_events_received_before_the_start_are_also_routed_to_sinks_that_were_enabled_then(
    dispatcher: RunningDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "BATCH", 3)
    enabled, disabled = dispatcher.sink(SingleSink(), "enabled"), dispatcher.sink(SingleSink(), "disabled")
    touches = dispatcher.sink(SingleSink(), "touches", filter={"event_types": ["touch"]})
    never_enabled = dispatcher.sink(SingleSink(), "never enabled")
    dispatcher.journal.set_enabled_sinks(["enabled", "disabled", "touches"])
    for event_id, event_type in [("a", "touch"), ("b", "touch"), ("c", "motion"), ("d", "touch")]:
        dispatcher.journal.accept([Arrival(event_id, event_body(event_id, event_type), 1000.0)])

    dispatcher.start(enabled, disabled=[disabled, touches, never_enabled])
    wait_until(lambda: dispatcher.journal.enabled_sinks() == {"enabled"})
    dispatcher.accept("new")
    wait_until(lambda: dispatcher.counts("enabled") == (5, 0, 0))

    assert {name: dispatcher.counts(name) for name in ("disabled", "touches", "never enabled")} == {
        "disabled": (0, 4, 0),
        "touches": (0, 3, 0),
        "never enabled": (0, 0, 0),
    }


def test_a_broken_sink_is_paused_with_its_reason_and_its_events_wait(dispatcher: RunningDispatcher) -> None:
    dispatcher.start(dispatcher.sink(SingleSink(), "valid"), broken={"broken": "no sink type 'kafka'"})
    dispatcher.accept("a")
    wait_until(lambda: dispatcher.counts("valid") == (1, 0, 0), what="delivery")
    assert dispatcher.counts("broken") == (0, 1, 0)
    state = dispatcher.journal.sink_states()["broken"]
    assert (state.pauses, state.pause_reason) == (1, "no sink type 'kafka'")
