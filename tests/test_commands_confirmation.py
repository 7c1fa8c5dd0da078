"""Commands that delete or send again say how much first, and ask; not if there is nothing, nor with --yes."""

from __future__ import annotations

import json
from typing import Any

import click
import pytest
from support.commands import LONG_AGO, TWO_SINKS, Operator

from receiver.journal import Result, Settlement

Counts = tuple[tuple[int, int, int], ...]
BEFORE: Counts = ((1, 1, 2), (2, 0, 1))
"""Pending, delivered and dead deliveries of the sinks erp and old."""

COMMANDS: dict[tuple[str, ...], tuple[str, dict[str, Any] | str, Counts]] = {
    ("dead-letters", "retry", "erp", "--json"): (
        "Deliver 2 dead letters to sink erp again?",
        {"sink": "erp", "retried": 2},
        ((3, 1, 0), (2, 0, 1)),
    ),
    ("dead-letters", "retry", "erp", "a", "a", "other", "--json"): (
        "Deliver 1 dead letter to sink erp again?",
        {"sink": "erp", "retried": 1},
        ((2, 1, 1), (2, 0, 1)),
    ),
    ("dead-letters", "delete", "erp", "--json"): (
        "Delete 2 dead letters of sink erp?",
        {"sink": "erp", "deleted": 2},
        ((1, 1, 0), (2, 0, 1)),
    ),
    ("dead-letters", "delete", "erp", "b", "--json"): (
        "Delete 1 dead letter of sink erp?",
        {"sink": "erp", "deleted": 1},
        ((1, 1, 1), (2, 0, 1)),
    ),
    ("replay", "erp", "--since", LONG_AGO, "--json"): (
        "Deliver 7 events to sink erp again?",
        {"sink": "erp", "matched": 7, "requeued": 6, "dry_run": False},
        ((7, 1, 0), (2, 0, 1)),
    ),
    ("sinks", "remove", "old"): (
        "Remove sink old and delete its 3 pending or dead deliveries?",
        "Removed sink old and its 3 pending or dead deliveries.",
        ((1, 1, 2), (0, 0, 0)),
    ),
}
each_command = pytest.mark.parametrize("command", COMMANDS, ids=" ".join)


@pytest.fixture
def stocked(operator: Operator) -> Operator:
    operator.configure(TWO_SINKS)
    operator.add_pending("erp", "a", "b")
    operator.settle_due("erp", Result.DEAD, "no")
    operator.add_pending("erp", "c")
    operator.settle_due("erp", Result.DELIVERED)
    operator.add_pending("erp", "d")
    operator.add_pending("old", "e")
    operator.settle_due("old", Result.DEAD, "no")
    operator.add_pending("old", "f", "g")
    return operator


def counts(operator: Operator) -> Counts:
    return operator.counts("erp"), operator.counts("old")


@each_command
@pytest.mark.parametrize("stdin", ["n\n", "\n", ""], ids=["no", "default", "end of input"])
def test_without_a_yes_nothing_is_changed(command: tuple[str, ...], stdin: str, stocked: Operator) -> None:
    question, _, _ = COMMANDS[command]
    code, out, errors = stocked.run(*command, stdin=stdin)
    assert (code, out, counts(stocked)) == (1, [], BEFORE)
    assert any(f"{question} [y/N]" in line for line in errors)


@each_command
@pytest.mark.parametrize("confirmed", ["y\n", "--yes"])
def test_with_a_yes_it_is_done(command: tuple[str, ...], confirmed: str, stocked: Operator) -> None:
    question, result, after = COMMANDS[command]
    arguments, stdin = ([*command, "--yes"], None) if confirmed == "--yes" else ([*command], confirmed)
    code, out, errors = stocked.run(*arguments, stdin=stdin)
    assert (code, counts(stocked)) == (0, after)
    assert (out[0] if isinstance(result, str) else json.loads("".join(out))) == result
    assert any(question in line for line in errors) == (confirmed == "y\n")


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (("dead-letters", "retry", "archive"), "Retrying 0 dead letters of sink archive."),
        (("dead-letters", "delete", "archive"), "Deleted 0 dead letters of sink archive."),
        (("replay", "archive", "--since", "2999-01-01"), "Found 0 matching events; requeued 0 for sink archive."),
        (("sinks", "remove", "gone"), "Removed sink gone and its 0 pending or dead deliveries."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_nothing_is_asked_where_there_is_nothing(command: tuple[str, ...], line: str, stocked: Operator) -> None:
    stocked.journal.set_enabled_sinks(["gone"])
    assert stocked.lines(*command) == [line]


@pytest.mark.parametrize(("verb", "after"), [("retry", (3, 1, 1)), ("delete", (1, 1, 1))])
def test_no_more_is_changed_than_was_asked_about(
    verb: str, after: tuple[int, int, int], stocked: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another_dies(*_: object, **__: object) -> None:
        stocked.add_pending("erp", "h")
        event = next(each for each in stocked.journal.claim("erp", 10, 60.0) if each.event.id == "h")
        stocked.journal.settle([Settlement(event, Result.DEAD, reason="no")])

    monkeypatch.setattr(click, "confirm", another_dies)
    stocked.lines("dead-letters", verb, "erp")
    assert stocked.counts("erp") == after


def test_a_replay_of_times_in_the_wrong_order_is_an_error(stocked: Operator) -> None:
    times = ("--since", "2026-02-01", "--until", "2026-01-01")
    assert stocked.run("replay", "erp", *times) == (1, [], ["error: --until must be later than --since"])


def test_nothing_is_asked_about_the_dead_letters_of_a_sink_that_is_not_enabled(stocked: Operator) -> None:
    error = "error: no sink 'old' is enabled in config.toml"
    assert stocked.run("dead-letters", "retry", "old", stdin="y\n") == (1, [], [error])
