"""Routing: which sinks get an event, also while sinks are added, disabled and removed."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from conftest import TEST_SECRET, wait_until
from support.delivery import RunningDispatcher, SingleSink, accept_events, add_deliveries, counts_of, event_body
from support.postgresql import Deployment

from receiver.delivery import dispatcher as dispatcher_module
from receiver.delivery.dispatcher import Dispatcher
from receiver.journal import Arrival, StoredEvent
from receiver.journal.sql.journal import SqlJournal
from receiver.settings import CommonOptions, SinkSettings, load
from receiver.variables import SECRET


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
    assert created.tick() == 4
    assert created.tick() == 0
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


def test_events_that_another_dispatcher_failed_to_route_also_go_to_sinks_that_were_enabled_before_the_start(
    deployment: Deployment,
) -> None:
    journal, disabled = deployment.open(), SinkSettings("disabled", CommonOptions(type="stdout"))
    journal.set_enabled_sinks(["disabled"])
    accept_events(journal, "a", "b")
    created = Dispatcher(deployment.open(), [], [], {}, disabled=[disabled], retention_seconds=86400.0)
    created.start()
    assert (journal.others_are_routing(0.0), journal.others_are_routing(1001.0)) == (False, True)
    with psycopg.connect(deployment.url) as other:
        other.execute("UPDATE events SET routed = true WHERE id = 'a'")
        assert created.tick() == 1
        assert journal.others_are_routing(0.0)
        other.rollback()
    assert (created.tick(), journal.others_are_routing(1001.0)) == (1, False)
    assert counts_of(journal, "disabled") == (0, 2, 0)
    assert journal.enabled_sinks() == set()


def test_events_that_another_dispatcher_only_read_also_go_to_sinks_that_were_enabled_before_the_start(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads them at the same moment, and is killed before it routes them."""
    journal, disabled = deployment.open(), SinkSettings("disabled", CommonOptions(type="stdout"))
    journal.set_enabled_sinks(["disabled"])
    accept_events(journal, "a")
    of_created = deployment.open()
    created = Dispatcher(of_created, [], [], {}, disabled=[disabled], retention_seconds=86400.0)
    created.start()
    with psycopg.connect(deployment.url) as other, monkeypatch.context() as patched:
        other.execute("SELECT * FROM events FOR UPDATE")

        def read_by_both(limit: int) -> list[StoredEvent]:
            events = SqlJournal.unrouted(of_created, limit)
            other.rollback()
            return events

        patched.setattr(of_created, "unrouted", read_by_both)
        assert created.tick() == 0
    wait_until(created.tick)
    assert counts_of(journal, "disabled") == (0, 1, 0)


def test_a_broken_sink_is_paused_with_its_reason_and_its_events_wait(dispatcher: RunningDispatcher) -> None:
    dispatcher.start(dispatcher.sink(SingleSink(), "valid"), broken={"broken": "no sink type 'kafka'"})
    dispatcher.accept("a")
    wait_until(lambda: dispatcher.counts("valid") == (1, 0, 0), what="delivery")
    assert dispatcher.counts("broken") == (0, 1, 0)
    state = dispatcher.journal.sink_states()["broken"]
    assert (state.pauses, state.pause_reason) == (1, "no sink type 'kafka'")


BAD_FILTER = "[sinks.s]\ntype = 'tested'\nfilter = { event_types = ['touch'], devces = ['a'] }\n"
GOOD_FILTER = "[sinks.s]\ntype = 'tested'\nfilter = { event_types = ['touch'] }\n"


def settings_of_sink(folder: Path, config: str) -> SinkSettings:
    (folder / "config.toml").write_text(config)
    (sink,) = load({"RECEIVER_CONFIG": str(folder / "config.toml"), SECRET: TEST_SECRET}).sinks
    return sink


def test_nothing_is_queued_for_a_sink_with_an_invalid_filter_until_it_is_valid(
    dispatcher: RunningDispatcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "BATCH", 2)
    add_deliveries(dispatcher.journal, "valid", "before")
    valid = dispatcher.sink(SingleSink(), "valid")
    bad = settings_of_sink(tmp_path, BAD_FILTER)
    assert not bad.filter_is_valid
    broken = dispatcher.create(valid, settings=[bad], broken={"s": "no option 'filter.devces'"})
    for number in range(5):
        event_type = ("touch", "motion")[number % 2]
        dispatcher.journal.accept([Arrival(f"n{number}", event_body(f"n{number}", event_type), 1000.0)])
    while broken.tick():
        pass
    assert (dispatcher.counts("s"), dispatcher.counts("valid")) == ((0, 0, 0), (0, 6, 0))

    corrected = settings_of_sink(tmp_path, GOOD_FILTER)
    sink = SingleSink()
    dispatcher.start(dispatcher.sink(sink, "s"), valid, settings=[corrected])
    wait_until(lambda: dispatcher.counts("s") == (3, 0, 0))
    dispatcher.journal.accept([Arrival("later", event_body("later"), 1000.0)])
    wait_until(lambda: dispatcher.counts("s") == (4, 0, 0))
    assert sorted(sink.event_ids) == ["later", "n0", "n2", "n4"]
    assert dispatcher.journal.sinks_behind() == set()


def test_a_sink_that_is_disabled_while_its_filter_is_invalid_does_not_get_what_it_missed_and_the_log_says_so(
    dispatcher: RunningDispatcher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = settings_of_sink(tmp_path, BAD_FILTER)
    dispatcher.journal.accept([Arrival("a", event_body("a"), 1000.0)])
    dispatcher.create(settings=[bad], broken={"s": "no option 'filter.devces'"}).tick()
    assert dispatcher.journal.sinks_behind() == {"s"}
    dispatcher.create(disabled=[dispatcher.sink(SingleSink(), "s")]).tick()
    assert dispatcher.journal.sinks_behind() == set()
    assert "sink s does not get what it missed: its filter was invalid until it was disabled" in caplog.messages
    assert dispatcher.counts("s") == (0, 0, 0)


def test_a_sink_that_a_dispatcher_with_an_older_configuration_lacks_gets_what_it_missed_and_operators_are_warned(
    dispatcher: RunningDispatcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "LIVENESS_SECONDS", 0.0)
    bad = settings_of_sink(tmp_path, BAD_FILTER)
    dispatcher.journal.accept([Arrival("a", event_body("a"), 1000.0)])
    dispatcher.create(settings=[bad], broken={"s": "no option 'filter.devces'"}).tick()
    older = dispatcher.create(dispatcher.sink(SingleSink(), "other"))
    for _ in range(2):
        older.tick()
    assert dispatcher.journal.sinks_behind() == {"s"}
    liveness = dispatcher.journal.liveness()
    assert liveness is not None
    assert liveness.warnings == (
        "sink s has no table in config.toml, and has missed events while its filter was invalid: these and all later "
        "ones stay in the journal; add its table, or run `python -m receiver sinks remove s`",
    )
    sink = SingleSink()
    dispatcher.start(dispatcher.sink(sink, "s"))
    wait_until(lambda: sink.event_ids == ["a"], what="what it missed")
