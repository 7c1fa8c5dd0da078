"""`quarantine` lists, shows and retries verified pushes that are not valid events."""

from __future__ import annotations

import hashlib

import pytest
from conftest import wait_until
from support.commands import ARCHIVE, NOON, SCRIPTED, Operator, event_body

from receiver.journal import Result


def test_the_quarantine_is_listed_newest_first(operator: Operator) -> None:
    old = operator.quarantine(b"not json", "the body is not JSON")
    new = operator.quarantine(b"[]", "the body is not a JSON object", NOON + 1)
    assert operator.json("quarantine", "list") == [
        {
            "id": new,
            "received_at": "2026-01-31T12:00:01.000Z",
            "bytes": 2,
            "reason": "the body is not a JSON object",
        },
        {"id": old, "received_at": "2026-01-31T12:00:00.000Z", "bytes": 8, "reason": "the body is not JSON"},
    ]
    assert operator.lines("quarantine", "list") == [
        f"{'id':<64}  received at           bytes  reason",
        f"{new}  2026-01-31T12:00:01Z  2      the body is not a JSON object",
        f"{old}  2026-01-31T12:00:00Z  8      the body is not JSON",
    ]


def test_a_quarantined_push_is_shown_by_the_beginning_of_its_id(operator: Operator) -> None:
    name = operator.quarantine(b'{"caf\xc3\xa9": 1}', "a reason")
    assert name == hashlib.sha256(b'{"caf\xc3\xa9": 1}').hexdigest()
    assert operator.lines("quarantine", "show", name[:8]) == ['{"café": 1}']
    assert operator.json("quarantine", "show", name) == {
        "id": name,
        "received_at": "2026-01-31T12:00:00.000Z",
        "reason": "a reason",
        "body": '{"café": 1}',
    }


def test_an_id_prefix_that_several_pushes_share_shows_none_of_them(operator: Operator) -> None:
    for body in (b"one", b"two"):
        operator.quarantine(body)
    assert operator.run("quarantine", "show", "") == (
        1,
        [],
        ["error: 2 quarantined pushes have an id that begins with ''; `quarantine list` shows all"],
    )


def test_a_body_that_is_not_text_is_printed_as_it_is_and_escaped_in_json(operator: Operator) -> None:
    name = operator.quarantine(b"\xff\x00\x1b", "the body is not UTF-8")
    done = operator.invoke("quarantine", "show", name)
    assert (done.exit_code, done.stdout_bytes) == (0, b"\xff\x00\x1b\n")
    assert operator.json("quarantine", "show", name)["body"] == "\\xff\x00\x1b"


def test_a_push_that_is_a_valid_event_after_an_upgrade_leaves_the_quarantine_and_is_routed(operator: Operator) -> None:
    valid = operator.quarantine(event_body("late"), "of an unknown kind")
    invalid = operator.quarantine(b"[]", "the body is not a JSON object")
    assert operator.lines("quarantine", "retry") == ["Released 1 push for delivery; 1 left in quarantine."]
    (event,) = operator.journal.unrouted(10)
    assert (event.id, event.body, event.received_at) == ("late", event_body("late"), NOON)
    assert [row["id"] for row in operator.json("quarantine", "list")] == [invalid]
    assert operator.json("quarantine", "retry") == {"released": 0, "left": 1}
    assert operator.run("quarantine", "show", valid[:9]).exit_code == 1


def test_a_quarantined_push_whose_event_was_received_meanwhile_is_not_delivered_again(operator: Operator) -> None:
    operator.add_pending("erp", "twice")
    operator.settle_due("erp", Result.DELIVERED)
    name = operator.quarantine(event_body("twice"), "of an unknown kind")
    assert operator.json("quarantine", "retry", name[:10]) == {"released": 1, "left": 0}
    assert operator.journal.unrouted(10) == []
    assert operator.counts("erp") == (0, 1, 0)
    assert operator.json("quarantine", "list") == []


def test_a_retry_of_the_quarantine_includes_pushes_that_are_too_old_to_be_listed(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiver.admin.quarantine.MAX_LISTED", 10)
    operator.quarantine(event_body("oldest"), "of an unknown kind", NOON - 1)
    for number in range(10):
        operator.quarantine(b"[%d]" % number, "the body is not a JSON object")
    assert len(operator.json("quarantine", "list")) == 10
    assert operator.json("quarantine", "retry") == {"released": 1, "left": 10}


def test_a_running_dispatcher_delivers_pushes_that_leave_the_quarantine(operator: Operator) -> None:
    operator.configure(SCRIPTED + ARCHIVE)
    with operator.dispatcher():
        operator.quarantine(b"[]", "the body is not a JSON object")
        operator.quarantine(event_body("upgraded"), "of an unknown kind")
        assert operator.json("quarantine", "retry") == {"released": 1, "left": 1}
        wait_until(lambda: operator.archived == operator.written == ["upgraded"])
    assert [row["reason"] for row in operator.json("quarantine", "list")] == ["the body is not a JSON object"]
