"""`replay` requeues past events for a sink: those that pass its filter and are still in the journal."""

from __future__ import annotations

import time

import pytest
from conftest import wait_until
from support.commands import ARCHIVE, JOURNAL, LONG_AGO, NOON, Operator, event_body

from receiver.journal import Arrival, Result, Settlement, open_records


def claimed_ids(operator: Operator, sink: str) -> list[str]:
    return sorted(delivery.event.id for delivery in operator.journal.claim(sink, 10_000, 60))


def test_events_are_replayed_that_were_received_from_since_up_to_but_not_at_until(operator: Operator) -> None:
    for number in range(5):
        operator.add_pending("archive", f"e{number}", received_at=NOON + number)
    operator.settle_due("archive", Result.DELIVERED)
    replay = ("replay", "archive", "--since", "2026-01-31T12:00:01", "--until", "2026-01-31T13:00:03+01:00")
    assert operator.lines(*replay, "--dry-run") == ["Found 2 matching events; requeued none (dry run)."]
    assert operator.counts("archive") == (0, 5, 0)
    assert operator.lines(*replay, "--yes") == ["Found 2 matching events; requeued 2 for sink archive."]
    assert claimed_ids(operator, "archive") == ["e1", "e2"]


def test_an_event_that_cannot_be_decoded_any_more_ends_no_replay(operator: Operator) -> None:
    """An older receiver has accepted it."""
    operator.add_pending("archive", "before")
    operator.journal.accept([Arrival("old", b"no event", NOON)])
    operator.journal.route([(event, ["archive"]) for event in operator.journal.unrouted(10)])
    operator.add_pending("archive", "after")
    operator.settle_due("archive", Result.DELIVERED)
    replay = ("replay", "archive", "--since", LONG_AGO, "--yes")
    assert operator.lines(*replay) == ["Found 2 matching events; requeued 2 for sink archive."]
    assert claimed_ids(operator, "archive") == ["after", "before"]


@pytest.mark.parametrize(
    ("since", "matched"),
    [("90m", 1), ("1h", 0), ("3h", 2), ("7300s", 2), ("1.5h", 1), ("1d", 2), (LONG_AGO, 2), ("2999-01-01", 0)],
)
def test_a_replay_begins_some_time_ago_and_ends_now(since: str, matched: int, operator: Operator) -> None:
    now = time.time()
    operator.add_pending("archive", "a", received_at=now - 7200)
    operator.add_pending("archive", "b", received_at=now - 4000)
    operator.add_pending("archive", "later", received_at=now + 3600)
    assert operator.json("replay", "archive", "--since", since, "--dry-run") == {
        "sink": "archive",
        "matched": matched,
        "requeued": 0,
        "dry_run": True,
    }


def test_delivered_dead_and_never_routed_events_are_requeued_and_pending_ones_do_not_change(operator: Operator) -> None:
    operator.add_pending("archive", "delivered")
    operator.settle_due("archive", Result.DELIVERED)
    operator.add_pending("archive", "dead")
    operator.settle_due("archive", Result.DEAD, "no")
    operator.add_pending("archive", "pending")
    operator.settle_due("archive", Result.FAILED, "HTTP 500", due=NOON)
    operator.add_events({"never-routed": []})
    assert operator.json("replay", "archive", "--since", LONG_AGO, "--yes") == {
        "sink": "archive",
        "matched": 4,
        "requeued": 3,
        "dry_run": False,
    }
    again = operator.settle_due("archive", Result.DELIVERED)
    assert sorted((delivery.event.id, delivery.attempt, delivery.failures) for delivery in again) == [
        ("dead", 1, 0),
        ("delivered", 1, 0),
        ("never-routed", 1, 0),
        ("pending", 2, 1),
    ]


def test_a_claimed_delivery_is_not_requeued(operator: Operator) -> None:
    operator.add_pending("archive", "a")
    (claimed,) = operator.journal.claim("archive", 10, 60)
    assert operator.json("replay", "archive", "--since", LONG_AGO, "--yes")["requeued"] == 0
    assert operator.journal.claim("archive", 10, 60) == []
    operator.journal.settle([Settlement(claimed, Result.DELIVERED)])
    assert operator.counts("archive") == (0, 1, 0)


@pytest.mark.parametrize(
    ("sink", "types", "replayed"),
    [
        ("archive", None, ["co2", "temperature", "touch"]),
        ("archive", "co2", ["co2"]),
        ("archive", " touch , co2,", ["co2", "touch"]),
        ("archive", ",", ["co2", "temperature", "touch"]),
        ("erp", None, ["temperature", "touch"]),
        ("erp", "touch,co2", ["touch"]),
    ],
)
def test_events_are_replayed_that_pass_the_filter_of_the_sink_and_are_of_the_given_types(
    sink: str, types: str | None, replayed: list[str], operator: Operator
) -> None:
    for event_type in ("touch", "temperature", "co2"):
        operator.add_pending("other", event_type, event_type=event_type)
    option = ["--types", types] if types is not None else []
    assert operator.json("replay", sink, "--since", LONG_AGO, *option, "--yes") == {
        "sink": sink,
        "matched": len(replayed),
        "requeued": len(replayed),
        "dry_run": False,
    }
    assert claimed_ids(operator, sink) == replayed


def test_types_that_dt_does_not_document_are_warnings(operator: Operator) -> None:
    operator.add_pending("other", "wet", event_type="humidity")
    operator.add_pending("other", "new", event_type="brandNew")
    types = "humidty,Touch,humidity,brandNew,\x1b[31m"
    assert operator.run("replay", "archive", "--since", LONG_AGO, "--types", types, "--yes") == (
        0,
        ["Found 2 matching events; requeued 2 for sink archive."],
        [
            "warning: --types: DT documents no event type 'humidty' (did you mean 'humidity'?)",
            "warning: --types: DT documents no event type 'Touch' (did you mean 'touch'?)",
            "warning: --types: DT documents no event type 'brandNew'",
            "warning: --types: DT documents no event type '\\x1b[31m'",
        ],
    )
    assert claimed_ids(operator, "archive") == ["new", "wet"]


def test_a_replay_in_several_batches_requeues_every_event_once(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiver.admin.replays.BATCH", 10)
    names = [f"e{number}" for number in range(25)]
    operator.add_events({name: [] for name in names})
    assert operator.json("replay", "archive", "--since", LONG_AGO, "--yes") == {
        "sink": "archive",
        "matched": 25,
        "requeued": 25,
        "dry_run": False,
    }
    assert claimed_ids(operator, "archive") == sorted(names)


def test_events_that_are_not_routed_yet_are_left_to_the_dispatcher(operator: Operator) -> None:
    operator.journal.accept([Arrival("a", event_body("a"), NOON)])
    assert operator.json("replay", "archive", "--since", LONG_AGO, "--yes")["matched"] == 0


def test_an_event_that_expires_during_a_replay_does_not_block_its_sink(operator: Operator) -> None:
    operator.add_pending("archive", "old")
    operator.settle_due("archive", Result.DELIVERED)
    records = open_records(operator.settings, create_tables=False)
    old = records.received(0, NOON + 1, 0, 10)
    operator.journal.remove_expired(NOON + 1, 10)
    assert records.received(0, NOON + 1, 0, 10) == []
    assert records.requeue("archive", old) == 0
    assert records.requeue("archive", []) == 0
    records.close()
    operator.add_pending("archive", "new")
    assert claimed_ids(operator, "archive") == ["new"]


def test_a_running_dispatcher_delivers_replayed_events_once_more(operator: Operator) -> None:
    operator.configure(JOURNAL + ARCHIVE)
    with operator.dispatcher():
        operator.accept("a", "b")
        wait_until(lambda: operator.counts("archive") == (0, 2, 0))
        assert sorted(operator.archived) == ["a", "b"]
        assert operator.json("replay", "archive", "--since", "1h", "--yes") == {
            "sink": "archive",
            "matched": 2,
            "requeued": 2,
            "dry_run": False,
        }
        wait_until(lambda: operator.sink_status("archive")["delivered"] == 4)
    assert sorted(operator.archived) == ["a", "a", "b", "b"]


def test_a_sink_with_an_invalid_filter_gets_no_replay(operator: Operator) -> None:
    operator.configure(f"{JOURNAL}[sinks.archive]\ntype = 'csv'\npath = 'events.csv'\nfilter = {{ devces = ['x'] }}\n")
    operator.add_pending("other", "a")
    assert operator.run("replay", "archive", "--since", LONG_AGO, "--yes") == (
        1,
        [],
        ["error: the filter of sink archive is invalid; `check` says why"],
    )
    assert operator.explain("a")["archive"]["state"] == "not routed yet: the filter of the sink is invalid"
    assert operator.counts("archive") == (0, 0, 0)


def test_one_event_is_replayed_whenever_it_was_received(operator: Operator) -> None:
    operator.add_pending("archive", "a", "b")
    operator.settle_due("archive", Result.DELIVERED)
    replay = ("replay", "archive", "--event", "b")
    assert operator.lines(*replay, "--dry-run") == ["Found 1 matching event; requeued none (dry run)."]
    assert operator.run(*replay, stdin="n\n").exit_code == 1
    assert operator.counts("archive") == (0, 2, 0)
    assert operator.json(*replay, "--yes") == {"sink": "archive", "matched": 1, "requeued": 1, "dry_run": False}
    assert operator.run(*replay, "--yes").errors == ["error: event b is pending at sink archive already"]
    assert claimed_ids(operator, "archive") == ["b"]


@pytest.mark.parametrize("arguments", [(), ("--event", "a", "--since", "2d"), ("--event", "a", "--types", "touch")])
def test_replay_wants_a_time_or_one_event(arguments: tuple[str, ...], operator: Operator) -> None:
    result = operator.run("replay", "archive", *arguments, "--yes")
    assert (result.exit_code, result.errors[-1]) == (2, "Error: give either --since, or --event alone")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--event", "unrouted"), "event unrouted is not routed yet: it will be delivered anyway"),
        (("--event", "a"), "event a does not pass the filter of sink archive: devices"),
    ],
)
def test_an_event_that_cannot_be_replayed_is_an_error(
    arguments: tuple[str, ...], error: str, operator: Operator
) -> None:
    operator.configure(f'{ARCHIVE}[sinks.archive.filter]\ndevices = ["emu9"]\n')
    operator.add_pending("archive", "a")
    operator.journal.accept([Arrival("unrouted", event_body("unrouted"), NOON)])
    assert operator.run("replay", "archive", *arguments, "--yes") == (1, [], [f"error: {error}"])
