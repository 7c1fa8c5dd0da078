"""`dead-letters` lists, retries and deletes deliveries that were given up."""

from __future__ import annotations

import pytest
from conftest import wait_until
from support.commands import SCRIPTED, Operator, is_recent

from receiver.journal import Result


def test_dead_letters_are_listed_newest_first_with_attempts_and_reason(operator: Operator) -> None:
    operator.add_events({"a": ["erp", "archive"]})
    operator.settle_due("archive", Result.DEAD, "disk of archive")
    operator.settle_due("erp", Result.FAILED, "HTTP 500")
    operator.settle_due("erp", Result.DEAD, "HTTP 422")
    listed = operator.json("dead-letters", "list")
    assert all(is_recent(letter.pop("died_at")) for letter in listed)
    erp, archive = (
        {
            "sink": sink,
            "event_id": "a",
            "device_id": "emu1",
            "device_name": None,
            "event_type": "touch",
            "received_at": "2026-01-31T12:00:00.000Z",
            "attempts": attempts,
            "reason": reason,
        }
        for sink, attempts, reason in (("erp", 2, "HTTP 422"), ("archive", 1, "disk of archive"))
    )
    assert listed == [erp, archive]
    assert [letter["sink"] for letter in operator.json("dead-letters", "list", "archive")] == ["archive"]
    heading, first, second = operator.lines("dead-letters", "list")
    assert heading.split() == [
        *("sink", "event", "id", "device", "id", "event", "type", "received", "at", "died", "at", "attempts", "reason"),
    ]
    assert (first.split()[:5], second.split()[:5]) == (
        ["erp", "a", "emu1", "touch", "2026-01-31T12:00:00Z"],
        ["archive", "a", "emu1", "touch", "2026-01-31T12:00:00Z"],
    )
    assert [line[heading.index("reason") :] for line in (first, second)] == ["HTTP 422", "disk of archive"]


def test_of_many_dead_letters_the_newest_1000_are_listed(operator: Operator) -> None:
    operator.add_pending("erp", "first")
    operator.settle_due("erp", Result.DEAD, "no")
    operator.add_pending("erp", *(f"e{number}" for number in range(1000)))
    operator.settle_due("erp", Result.DEAD, "no")
    listed = [letter["event_id"] for letter in operator.json("dead-letters", "list")]
    assert (len(listed), "first" in listed) == (1000, False)


def test_dead_letters_are_counted_by_sink_and_reason(operator: Operator) -> None:
    operator.add_events({"a": ["erp", "archive"], "b": ["erp"]})
    operator.settle_due("archive", Result.DEAD, "disk of archive")
    operator.settle_due("erp", Result.DEAD, "HTTP 422")
    noon = "2026-01-31T12:00:00.000Z"
    erp, archive = (
        {"sink": sink, "reason": reason, "count": count, "oldest_received_at": noon, "newest_received_at": noon}
        for sink, reason, count in (("erp", "HTTP 422", 2), ("archive", "disk of archive", 1))
    )
    assert operator.json("dead-letters", "reasons") == [erp, archive]
    assert operator.json("dead-letters", "reasons", "archive") == [archive]
    assert operator.lines("dead-letters", "reasons")[1].split()[:3] == ["erp", "HTTP", "422"]
    assert operator.run("dead-letters", "reasons", "epr").errors == [
        "error: there is no sink epr (did you mean 'erp'?)"
    ]


def test_the_dead_letters_of_one_reason_are_listed_retried_and_deleted(operator: Operator) -> None:
    for reason, names in (("HTTP 404", "abc"), ("HTTP 422", "de")):
        operator.add_pending("erp", *names)
        operator.settle_due("erp", Result.DEAD, reason)
    of_reason = ("--reason", "HTTP 404")
    listed = operator.json("dead-letters", "list", *of_reason)
    assert [letter["event_id"] for letter in listed] == ["c", "b", "a"]
    retry = ("dead-letters", "retry", "erp", *of_reason, "--yes")
    assert operator.json(*retry, "a", "d") == {"sink": "erp", "retried": 1}
    assert operator.run("dead-letters", "delete", "erp", *of_reason, stdin="y\n").errors == [
        "Delete 2 dead letters of sink erp? [y/N]: y"
    ]
    assert operator.counts("erp") == (1, 0, 2)
    assert operator.run(*retry).errors == [
        "error: sink erp has no dead letter of this reason; `dead-letters reasons` shows them"
    ]


def test_dead_letters_that_are_retried_are_pending_with_no_attempts_counted(operator: Operator) -> None:
    operator.add_pending("erp", "a", "b", "c")
    operator.settle_due("erp", Result.DEAD, "no")
    assert operator.json("dead-letters", "retry", "erp", "b", "unknown", "--yes") == {"sink": "erp", "retried": 1}
    assert operator.counts("erp") == (1, 0, 2)
    assert operator.lines("dead-letters", "retry", "erp", "--yes") == ["Retrying 2 dead letters of sink erp."]
    again = operator.settle_due("erp", Result.DELIVERED)
    assert sorted((delivery.event.id, delivery.attempt, delivery.failures) for delivery in again) == [
        ("a", 1, 0),
        ("b", 1, 0),
        ("c", 1, 0),
    ]
    assert operator.counts("erp") == (0, 3, 0)


def test_retrying_and_deleting_dead_letters_of_one_sink_changes_no_other(operator: Operator) -> None:
    operator.add_events({"a": ["erp", "archive"]})
    for sink in ("erp", "archive"):
        operator.settle_due(sink, Result.DEAD, "no")
    operator.lines("dead-letters", "retry", "erp", "--yes")
    assert (operator.counts("erp"), operator.counts("archive")) == ((1, 0, 0), (0, 0, 1))
    assert operator.lines("dead-letters", "delete", "archive", "a", "--yes") == [
        "Deleted 1 dead letter of sink archive."
    ]
    assert (operator.counts("erp"), operator.counts("archive")) == ((1, 0, 0), (0, 0, 0))


@pytest.mark.parametrize("arguments", [("list", "epr"), ("delete", "epr", "--yes")], ids=" ".join)
def test_an_unknown_sink_is_an_error_and_not_a_sink_without_dead_letters(
    arguments: tuple[str, ...], operator: Operator
) -> None:
    operator.add_pending("erp", "a")
    operator.settle_due("erp", Result.DEAD, "no")
    assert operator.run("dead-letters", *arguments) == (1, [], ["error: there is no sink epr (did you mean 'erp'?)"])
    assert operator.counts("erp") == (0, 0, 1)


def test_a_deleted_dead_letter_is_explained(operator: Operator) -> None:
    operator.add_pending("archive", "a")
    operator.settle_due("archive", Result.DEAD, "no")
    operator.lines("dead-letters", "delete", "archive", "a", "--yes")
    assert operator.explain("a")["archive"]["state"] == (
        "not routed: the sink was added later, or its dead letter was deleted; `replay` delivers it"
    )


def test_a_running_dispatcher_delivers_dead_letters_that_are_retried(operator: Operator) -> None:
    operator.configure(SCRIPTED)
    operator.script("give-up no such customer")
    with operator.dispatcher():
        operator.accept("a", "b", "c")
        letters = wait_until(lambda: len(found := operator.json("dead-letters", "list")) == 3 and found)
        assert {(letter["sink"], letter["attempts"], letter["reason"]) for letter in letters} == {
            ("scripted", 1, "no such customer")
        }
        operator.script(None)
        assert operator.json("dead-letters", "delete", "scripted", "c", "--yes") == {"sink": "scripted", "deleted": 1}
        assert operator.json("dead-letters", "retry", "scripted", "--yes") == {"sink": "scripted", "retried": 2}
        wait_until(lambda: [operator.explain(name)["scripted"]["state"] for name in "ab"] == ["delivered"] * 2)
    assert sorted(operator.written) == ["a", "b"]
    assert operator.lines("dead-letters", "list") == ["No dead letters."]
