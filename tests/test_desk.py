"""The commands that look into deliveries, on a real journal and beside a running receiver."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import ROOT, Running, StartReceiver, wait_until
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from receiver.cli import main
from receiver.journal import (
    Acceptance,
    Arrival,
    Delivery,
    Journal,
    Kept,
    Result,
    Settlement,
    SinkCount,
    SinkState,
    open_journal,
    open_records,
)
from receiver.journal.sql import SqlJournal
from receiver.journal.sql_records import SqlRecords
from receiver.journal.sqlite import SqliteDatabase
from receiver.settings import SECRET, Settings, load
from receiver.simulator import Simulator

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()
LONG_AGO = "2000-01-01"
JOURNAL = "[journal]\nmin_free_mb = 0\n"
TWO_SINKS = f"""{JOURNAL}
[sinks.erp]
type = "webhook"
url = "https://erp.example/hook"
[sinks.erp.filter]
event_types = ["temperature", "touch"]
[sinks.archive]
type = "csv"
path = "events.csv"
"""
HOSTILE = "\x1b]0;owned\x07\x1b[31mred\r\nforged line\x9b2J"
CONTROLS = {chr(code) for code in [*range(0x20), *range(0x7F, 0xA0)]} - {"\n"}


def body(name: str, event_type: str = "touch", **labels: str) -> bytes:
    event = {"eventId": name, "eventType": event_type, "data": {}, "timestamp": "2026-01-31T12:00:00Z"}
    return json.dumps({"event": event, "labels": labels, "metadata": {"deviceId": "emu1"}}).encode()


class Desk:
    """A person with a config.toml and a journal; `journal` is what intake and a dispatcher would see of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: list[Journal] = []
        self.config(TWO_SINKS)

    def config(self, text: str) -> None:
        (self.folder / "config.toml").write_text(text, encoding="utf-8")

    @property
    def settings(self) -> Settings:
        return load({"RECEIVER_CONFIG": str(self.folder / "config.toml")}, secret_required=False)

    def open(self) -> Journal:
        journal = open_journal(self.settings)
        self._open.append(journal)
        return journal

    @property
    def journal(self) -> Journal:
        return self._open[0] if self._open else self.open()

    def close(self) -> None:
        for journal in self._open:
            journal.close()

    def owes(self, sink: str, *names: str, received_at: float = NOON, event_type: str = "touch") -> list[Kept]:
        """Events that are accepted, matched, and owed to this sink alone."""
        return self.matches({name: [sink] for name in names}, received_at, event_type)

    def matches(self, routes: dict[str, list[str]], received_at: float = NOON, event_type: str = "touch") -> list[Kept]:
        for name in routes:
            self.journal.accept(Arrival(name, body(name, event_type), received_at))
        new = self.journal.unmatched(10_000)
        self.journal.owe([(kept, routes[kept.id]) for kept in new])
        return new

    def attempts(self, sink: str, result: Result, why: str = "", due: float = 0.0) -> list[Delivery]:
        """Whatever is due at a sink is claimed and comes to this result."""
        claimed = self.journal.claim(sink, 10_000, 60.0)
        self.journal.settle([Settlement(delivery, result, due, why) for delivery in claimed])
        return claimed

    def runs(self, *arguments: str, answer: str | None = None) -> tuple[int, list[str], list[str]]:
        """Exit code, and the lines that are not blank of standard output and standard error."""
        done = CliRunner().invoke(main, arguments, input=answer)
        assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
        return done.exit_code, lines_of(done.stdout), lines_of(done.stderr)

    def says(self, *arguments: str) -> list[str]:
        """The lines of a command that succeeds and has nothing to complain of."""
        code, out, errors = self.runs(*arguments)
        assert (code, errors) == (0, [])
        return out

    def tells(self, *arguments: str) -> Any:
        """What a command that succeeds says as JSON."""
        return json.loads("\n".join(self.says(*arguments, "--json")))

    def state(self, sink: str, event: str) -> str:
        (route,) = [route for route in self.tells("explain", event)["sinks"] if route["sink"] == sink]
        return str(route["state"])

    def counts(self, sink: str) -> tuple[int, int, int]:
        """Pending, delivered and dead."""
        count = self.journal.counts().sinks.get(sink, SinkCount())
        return count.pending, count.delivered, count.dead


def lines_of(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def just_now(text: str) -> bool:
    return abs(moment(text) - time.time()) < 60


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("RECEIVER_CONFIG", str(tmp_path / "config.toml"))
    for name in [name for name in os.environ if name.startswith((SECRET, "DATABASE_URL"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(SECRET, "a-secret-of-more-than-thirty-two-bytes")
    desk = Desk(tmp_path)
    yield desk
    desk.close()


@pytest.mark.parametrize(
    ("arguments", "text", "facts"),
    [
        pytest.param(("dead", "list"), "No dead letters.", [], id="dead list"),
        pytest.param(
            ("dead", "retry", "erp"),
            "0 dead letters of sink erp are pending again.",
            {"sink": "erp", "retried": 0},
            id="dead retry",
        ),
        pytest.param(
            ("dead", "drop", "erp", "--yes"),
            "0 dead letters of sink erp are forgotten.",
            {"sink": "erp", "dropped": 0},
            id="dead drop",
        ),
        pytest.param(("quarantine", "list"), "Nothing is in quarantine.", [], id="quarantine list"),
        pytest.param(
            ("quarantine", "retry"),
            "0 pushes are events now and on their way; 0 stay in quarantine.",
            {"released": 0, "left": 0},
            id="quarantine retry",
        ),
        pytest.param(
            ("replay", "erp", "--since", LONG_AGO),
            "0 events match; sink erp is owed 0 of them again.",
            {"sink": "erp", "matched": 0, "owed": 0, "dry_run": False},
            id="replay",
        ),
    ],
)
def test_with_no_journal_yet_a_command_says_that_there_is_nothing(
    arguments: tuple[str, ...], text: str, facts: object, desk: Desk
) -> None:
    assert desk.says(*arguments) == [text]
    assert desk.tells(*arguments) == facts


def test_with_no_journal_yet_every_configured_sink_stands_at_nothing(desk: Desk) -> None:
    nothing = {
        "configured": "enabled",
        "pending": 0,
        "oldest_pending_seconds": None,
        "delivered": 0,
        "dead": 0,
        "last_success": None,
        "last_failure": None,
        "last_error": None,
        "paused_until": None,
        "paused_because": None,
    }
    assert desk.tells("sinks", "--status") == [{"sink": "erp", **nothing}, {"sink": "archive", **nothing}]
    assert desk.says("sinks", "--status") == [
        "sink     configured  pending  delivered  dead",
        "erp      enabled     0        0          0",
        "archive  enabled     0        0          0",
    ]


def test_without_any_sink_the_status_says_so(desk: Desk) -> None:
    desk.config(JOURNAL)
    assert desk.says("sinks", "--status") == ["No sink is configured, and none was before."]
    assert desk.tells("sinks", "--status") == []


def test_check_leaves_no_journal_behind_where_there_is_none(desk: Desk) -> None:
    desk.config("[sinks.console]\ntype = 'stdout'\n")
    desk.says("check")
    assert [path.name for path in desk.folder.iterdir()] == ["config.toml"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        pytest.param(
            ("explain", "nobody"),
            "event nobody is not in the journal: it never came, or was delivered and retired long ago",
            id="an event that never came",
        ),
        pytest.param(
            ("dead", "retry", "epr"),
            "no sink 'epr' is enabled in config.toml (did you mean 'erp'?)",
            id="retry at an unknown sink",
        ),
        pytest.param(
            ("dead", "retry", "erp", "delivered"),
            "none of these is a dead letter of sink erp; `dead list` shows them",
            id="retry of what is not dead",
        ),
        pytest.param(
            ("dead", "drop", "erp", "delivered", "nobody"),
            "none of these is a dead letter of sink erp; `dead list` shows them",
            id="drop of what is not dead",
        ),
        pytest.param(
            ("quarantine", "show", "ffff"),
            "0 pushes in quarantine have an id that begins with 'ffff'; name one",
            id="show what is not in quarantine",
        ),
        pytest.param(
            ("quarantine", "retry", "%"),
            "0 pushes in quarantine have an id that begins with '%'; name one",
            id="a wildcard is no prefix",
        ),
        pytest.param(
            ("replay", "archiv", "--since", "3h"),
            "no sink 'archiv' is enabled in config.toml (did you mean 'archive'?)",
            id="replay to an unknown sink",
        ),
        pytest.param(
            ("replay", "ARCHIVE", "--since", "3h", "--dry-run"),
            "no sink 'ARCHIVE' is enabled in config.toml",
            id="names differ in case",
        ),
        pytest.param(
            ("sinks", "forget", "erp"),
            "sink erp is enabled in config.toml; remove it there and restart first",
            id="forget an enabled sink",
        ),
        pytest.param(
            ("sinks", "forget", "epr"),
            "the journal knows no sink epr (did you mean 'erp'?)",
            id="forget an unknown sink",
        ),
        pytest.param(("sinks", "resume", "erp"), "sink erp is not paused", id="resume a sink that works"),
        pytest.param(
            ("sinks", "resume", "epr"),
            "no sink 'epr' is enabled in config.toml (did you mean 'erp'?)",
            id="resume an unknown sink",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line_on_standard_error_and_exit_code_1(
    arguments: tuple[str, ...], error: str, desk: Desk
) -> None:
    desk.owes("erp", "delivered")
    desk.attempts("erp", Result.DELIVERED)
    assert desk.runs(*arguments) == (1, [], [f"error: {error}"])
    if arguments[0] != "sinks":
        assert desk.runs(*arguments, "--json") == (1, [], [f"error: {error}"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("explain", "\udcff"),
        ("dead", "list", "\udcff"),
        ("dead", "retry", "erp", "\udcff"),
        ("dead", "drop", "erp", "\udcff"),
        ("quarantine", "show", "\udcff"),
        ("quarantine", "retry", "\udcff"),
        ("sinks", "forget", "\udcff"),
        ("sinks", "resume", "\udcff"),
    ],
    ids=" ".join,
)
def test_bytes_on_the_command_line_that_are_no_text_are_no_traceback(arguments: tuple[str, ...], desk: Desk) -> None:
    code, _, errors = desk.runs(*arguments)
    assert (code in (0, 1), len(errors) <= 1) == (True, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("replay", "erp"),
        ("replay", "erp", "--since", ""),
        ("replay", "erp", "--since", "yesterday"),
        ("replay", "erp", "--since", "d"),
        ("replay", "erp", "--since", "-3h"),
        ("replay", "erp", "--since", "3w"),
        ("replay", "erp", "--since", "2026-02-30"),
        ("replay", "erp", "--since", "99999999999d"),
        ("replay", "erp", "--since", "9" * 400 + "d"),
        ("replay", "erp", "--since", "3h", "--until", "\udcff"),
        ("replay",),
        ("explain",),
        ("dead", "retry"),
        ("dead", "drop"),
        ("quarantine", "show"),
        ("sinks", "forget"),
        ("sinks", "resume"),
    ],
    ids=lambda arguments: ascii(" ".join(arguments))[:40],
)
def test_wrong_arguments_are_a_usage_error_that_does_nothing(arguments: tuple[str, ...], desk: Desk) -> None:
    desk.owes("erp", "a")
    desk.attempts("erp", Result.DEAD, "no")
    code, out, errors = desk.runs(*arguments)
    assert (code, out, errors[0].split()[0], errors[-1].split()[0]) == (2, [], "Usage:", "Error:")
    assert desk.counts("erp") == (0, 0, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("dead", "list"),
        ("dead", "retry", "erp"),
        ("dead", "drop", "erp", "--yes"),
        ("quarantine", "list"),
        ("quarantine", "show", "a"),
        ("quarantine", "retry"),
        ("replay", "erp", "--since", "3h"),
        ("explain", "a"),
        ("sinks", "--status"),
        ("sinks", "forget", "old"),
        ("sinks", "resume", "erp"),
        ("check",),
    ],
    ids=" ".join,
)
def test_a_journal_that_cannot_be_used_is_one_line_that_says_so(arguments: tuple[str, ...], desk: Desk) -> None:
    path = desk.settings.journal_path
    path.parent.mkdir()
    path.write_bytes(b"This is a text file and no journal. " * 100)
    code, out, errors = desk.runs(*arguments)
    assert (code, out, len(errors)) == (1, [], 1)
    assert errors[0].startswith("error: ")


def test_dead_letters_are_listed_the_latest_first_with_what_was_tried_and_why(desk: Desk) -> None:
    desk.matches({"a": ["erp", "archive"]}, received_at=NOON)
    desk.attempts("archive", Result.DEAD, "disk of archive")
    desk.attempts("erp", Result.FAILED, "HTTP 500")
    desk.attempts("erp", Result.DEAD, "HTTP 422")
    listed = desk.tells("dead", "list")
    assert all(just_now(letter.pop("died")) for letter in listed)
    assert listed == [
        {"sink": sink, "event_id": "a", "received": "2026-01-31T12:00:00.000Z", "attempts": attempts, "why": why}
        for sink, attempts, why in (("erp", 2, "HTTP 422"), ("archive", 1, "disk of archive"))
    ]
    assert [letter["sink"] for letter in desk.tells("dead", "list", "archive")] == ["archive"]
    heading, first, second = desk.says("dead", "list")
    assert heading.split() == ["sink", "event", "id", "received", "died", "attempts", "why"]
    assert (first.split()[:3], second.split()[:3]) == (
        ["erp", "a", "2026-01-31T12:00:00Z"],
        ["archive", "a", "2026-01-31T12:00:00Z"],
    )
    assert [line[heading.index("why") :] for line in (first, second)] == ["HTTP 422", "disk of archive"]


def test_of_many_dead_letters_the_latest_1000_are_listed(desk: Desk) -> None:
    desk.owes("erp", "first")
    desk.attempts("erp", Result.DEAD, "no")
    desk.owes("erp", *(f"e{number}" for number in range(1000)))
    desk.attempts("erp", Result.DEAD, "no")
    listed = [letter["event_id"] for letter in desk.tells("dead", "list")]
    assert (len(listed), "first" in listed) == (1000, False)


def test_dead_letters_that_are_retried_are_pending_as_if_never_tried(desk: Desk) -> None:
    desk.owes("erp", "a", "b", "c")
    desk.attempts("erp", Result.DEAD, "no")
    assert desk.tells("dead", "retry", "erp", "b", "unknown") == {"sink": "erp", "retried": 1}
    assert desk.counts("erp") == (1, 0, 2)
    assert desk.says("dead", "retry", "erp") == ["2 dead letters of sink erp are pending again."]
    again = desk.attempts("erp", Result.DELIVERED)
    assert sorted((delivery.event.id, delivery.attempt, delivery.failures) for delivery in again) == [
        ("a", 1, 0),
        ("b", 1, 0),
        ("c", 1, 0),
    ]
    assert desk.counts("erp") == (0, 3, 0)


def test_dead_letters_of_one_sink_are_retried_and_dropped_without_touching_another(desk: Desk) -> None:
    desk.matches({"a": ["erp", "archive"]})
    for sink in ("erp", "archive"):
        desk.attempts(sink, Result.DEAD, "no")
    desk.says("dead", "retry", "erp")
    assert (desk.counts("erp"), desk.counts("archive")) == ((1, 0, 0), (0, 0, 1))
    desk.says("dead", "drop", "archive", "a")
    assert (desk.counts("erp"), desk.counts("archive")) == ((1, 0, 0), (0, 0, 0))


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("n\n", 2), ("\n", 2), ("", 2)])
def test_dropping_all_dead_letters_asks_first_and_no_answer_means_no(answer: str, left: int, desk: Desk) -> None:
    desk.owes("erp", "a", "b")
    desk.attempts("erp", Result.DEAD, "no")
    code, out, errors = desk.runs("dead", "drop", "erp", "--json", answer=answer)
    assert (code, desk.counts("erp")) == (1 if left else 0, (0, 0, left))
    assert errors[0].startswith("Forget all dead letters of sink erp? [y/N]")
    assert out == [] if left else json.loads("".join(out)) == {"sink": "erp", "dropped": 2}


@pytest.mark.parametrize("order", [("dead", "list", "epr"), ("dead", "drop", "epr", "--yes")], ids=" ".join)
def test_a_sink_that_nobody_knows_is_not_mistaken_for_one_without_dead_letters(
    order: tuple[str, ...], desk: Desk
) -> None:
    desk.owes("erp", "a")
    desk.attempts("erp", Result.DEAD, "no")
    code, out, errors = desk.runs(*order)
    assert (code, out) == (1, [])
    assert errors == ["error: the journal knows no sink epr (did you mean 'erp'?)"]


def test_a_dropped_dead_letter_is_not_explained_as_one_that_was_never_owed(desk: Desk) -> None:
    desk.owes("archive", "a")
    desk.attempts("archive", Result.DEAD, "no")
    desk.says("dead", "drop", "archive", "a")
    assert "dropped" in desk.state("archive", "a")


def quarantine(desk: Desk, push: bytes, why: str, received_at: float = NOON) -> str:
    name = hashlib.sha256(push).hexdigest()
    desk.journal.accept(Arrival(name, push, received_at, quarantine=why))
    return name


def test_the_quarantine_is_listed_the_latest_first(desk: Desk) -> None:
    old = quarantine(desk, b"not json", "the body is not JSON")
    new = quarantine(desk, b"[]", "the body is not a JSON object", NOON + 1)
    assert desk.tells("quarantine", "list") == [
        {"id": new, "received": "2026-01-31T12:00:01.000Z", "bytes": 2, "why": "the body is not a JSON object"},
        {"id": old, "received": "2026-01-31T12:00:00.000Z", "bytes": 8, "why": "the body is not JSON"},
    ]
    assert desk.says("quarantine", "list") == [
        f"{'id':<64}  received              bytes  why",
        f"{new}  2026-01-31T12:00:01Z  2      the body is not a JSON object",
        f"{old}  2026-01-31T12:00:00Z  8      the body is not JSON",
    ]


def test_a_push_in_quarantine_is_shown_by_the_beginning_of_its_id(desk: Desk) -> None:
    name = quarantine(desk, b'{"caf\xc3\xa9": 1}', "why not")
    assert desk.says("quarantine", "show", name[:8]) == ['{"café": 1}']
    assert desk.tells("quarantine", "show", name) == {
        "id": name,
        "received_at": NOON,
        "why": "why not",
        "body": '{"café": 1}',
    }


def test_a_beginning_that_several_ids_share_shows_none_of_them(desk: Desk) -> None:
    for push in (b"one", b"two"):
        quarantine(desk, push, "why not")
    assert desk.runs("quarantine", "show", "") == (
        1,
        [],
        ["error: 2 pushes in quarantine have an id that begins with ''; name one"],
    )


def test_a_body_that_is_no_text_is_shown_and_told_all_the_same(desk: Desk) -> None:
    name = quarantine(desk, b"\xff\x00\x1b", "the body is not UTF-8")
    done = CliRunner().invoke(main, ["quarantine", "show", name])
    assert (done.exit_code, done.stdout_bytes) == (0, b"\xff\x00\x1b\n")
    assert desk.tells("quarantine", "show", name)["body"] == "\\xff\x00\x1b"


def test_what_is_an_event_after_an_upgrade_leaves_quarantine_and_goes_the_normal_way(desk: Desk) -> None:
    event = quarantine(desk, body("late"), "of a kind that was unknown")
    still = quarantine(desk, b"[]", "the body is not a JSON object")
    assert desk.says("quarantine", "retry") == ["1 pushes are events now and on their way; 1 stay in quarantine."]
    (kept,) = desk.journal.unmatched(10)
    assert (kept.id, kept.body, kept.received_at) == ("late", body("late"), NOON)
    assert [held["id"] for held in desk.tells("quarantine", "list")] == [still]
    assert desk.tells("quarantine", "retry") == {"released": 0, "left": 1}
    assert desk.runs("quarantine", "show", event[:9])[0] == 1


def test_a_quarantined_push_whose_event_came_meanwhile_is_owed_only_once(desk: Desk) -> None:
    desk.owes("erp", "twice")
    desk.attempts("erp", Result.DELIVERED)
    name = quarantine(desk, body("twice"), "of a kind that was unknown")
    assert desk.tells("quarantine", "retry", name[:10]) == {"released": 1, "left": 0}
    assert (desk.journal.unmatched(10), desk.counts("erp"), desk.tells("quarantine", "list")) == ([], (0, 1, 0), [])


def test_a_retry_of_the_quarantine_reaches_all_of_it(desk: Desk) -> None:
    quarantine(desk, body("oldest"), "of a kind that was unknown", NOON - 1)
    for number in range(1000):
        quarantine(desk, b"[%d]" % number, "the body is not a JSON object")
    assert desk.tells("quarantine", "retry") == {"released": 1, "left": 1000}


def test_the_status_shows_each_sink_with_all_there_is_to_know(desk: Desk) -> None:
    desk.config(TWO_SINKS + "[sinks.off]\ntype = 'stdout'\nenabled = false\n")
    now = time.time()
    desk.matches({"a": ["erp", "gone"]}, received_at=now - 7200)
    desk.attempts("erp", Result.DELIVERED)
    desk.matches({"b": ["erp"], "c": ["erp"]}, received_at=now - 3600)
    desk.attempts("erp", Result.FAILED, "HTTP 500", due=now + 3600)
    desk.matches({"d": ["erp"]}, received_at=now - 1)
    desk.attempts("erp", Result.DEAD, "HTTP 422")
    until = desk.journal.now() + 600
    desk.journal.remember(SinkState("erp", 2, until, "it keeps failing: HTTP 500"))

    rows = {row["sink"]: row for row in desk.tells("sinks", "--status")}

    assert [(row["sink"], row["configured"]) for row in rows.values()] == [
        ("erp", "enabled"),
        ("archive", "enabled"),
        ("off", "disabled"),
        ("gone", "removed"),
    ]
    erp = rows["erp"]
    assert just_now(erp.pop("last_success"))
    assert just_now(erp.pop("last_failure"))
    assert 3600 <= erp.pop("oldest_pending_seconds") < 3660
    assert abs(moment(erp.pop("paused_until")) - until) < 1
    assert erp == {
        "sink": "erp",
        "configured": "enabled",
        "pending": 2,
        "delivered": 1,
        "dead": 1,
        "last_error": "HTTP 422",
        "paused_because": "it keeps failing: HTTP 500",
    }
    assert (rows["gone"]["pending"], rows["off"]["pending"]) == (1, 0)
    assert 7200 <= rows["gone"]["oldest_pending_seconds"] < 7260


def test_the_status_for_people_is_a_table_and_a_line_for_each_trouble(desk: Desk) -> None:
    desk.matches({"a": ["erp", "archive"]}, received_at=time.time())
    desk.attempts("archive", Result.FAILED, "OSError: disk full")
    desk.attempts("erp", Result.WAITING, "HTTP 503")
    desk.journal.remember(SinkState("erp", 1, desk.journal.now() + 60, "HTTP 503"))
    heading, erp, archive, *troubles = desk.says("sinks", "--status")
    assert heading.split("  ")[0] == "sink"
    assert erp[heading.index("pending") :].split()[0] == "1"
    assert archive[heading.index("paused until") :].split() == ["-"]
    assert erp[heading.index("paused until") :].startswith("20")
    assert troubles == ["erp is paused: HTTP 503", "archive failed last with: OSError: disk full"]


def test_a_sink_that_works_again_is_not_shown_as_paused(desk: Desk) -> None:
    desk.journal.remember(SinkState("erp", 1, desk.journal.now() + 60, "HTTP 503"))
    desk.journal.remember(SinkState("erp"))
    row = desk.tells("sinks", "--status")[0]
    assert (row["paused_until"], row["paused_because"]) == (None, None)


def test_a_forgotten_sink_is_gone_with_all_it_was_owed_and_no_other_is_touched(desk: Desk) -> None:
    desk.matches({"a": ["old", "erp"], "b": ["old"], "c": ["old"]})
    desk.journal.settle(
        [
            Settlement(delivery, result, why="no")
            for delivery, result in zip(desk.journal.claim("old", 2, 60), (Result.DEAD, Result.DELIVERED), strict=True)
        ]
    )
    assert desk.says("sinks", "forget", "old") == ["Forgot sink old, and 2 deliveries that were pending or dead."]
    assert [row["sink"] for row in desk.tells("sinks", "--status")] == ["erp", "archive"]
    assert (desk.counts("old"), desk.counts("erp"), desk.tells("dead", "list")) == ((0, 0, 0), (1, 0, 0), [])
    assert desk.runs("sinks", "forget", "old") == (1, [], ["error: the journal knows no sink old"])


def test_a_disabled_sink_can_be_forgotten(desk: Desk) -> None:
    desk.owes("erp", "a")
    desk.config(TWO_SINKS.replace('type = "webhook"', 'type = "webhook"\nenabled = false'))
    assert desk.says("sinks", "forget", "erp") == ["Forgot sink erp, and 1 deliveries that were pending or dead."]


def test_an_event_of_a_paused_sink_is_not_tried_before_the_end_of_the_pause(desk: Desk) -> None:
    desk.owes("erp", "a")
    until = datetime(2100, 1, 31, tzinfo=UTC)
    desk.journal.remember(SinkState("erp", pauses=1, paused_until=until.timestamp()))
    [erp] = [route for route in desk.tells("explain", "a")["sinks"] if route["sink"] == "erp"]
    assert (erp["state"], erp["next_try"]) == ("pending", "2100-01-31T00:00:00.000Z")


def test_a_resumed_sink_is_due_for_its_probe_and_still_the_same_pause(desk: Desk) -> None:
    paused = SinkState("erp", pauses=3, paused_until=time.time() + 3600, pause_reason="401: it refuses our credentials")
    desk.journal.remember(paused)
    desk.journal.remember(replace(paused, name="archive"))
    assert desk.says("sinks", "resume", "erp") == [
        "Sink erp is tried again now. It was paused: 401: it refuses our credentials"
    ]
    assert desk.journal.states() == {
        "erp": replace(paused, paused_until=0.0),
        "archive": replace(paused, name="archive"),
    }


def test_a_running_receiver_tries_a_sink_as_soon_as_it_is_resumed(
    start_receiver: StartReceiver, tmp_path: Path
) -> None:
    folder = tmp_path / "no folder yet"
    folder.touch()
    config = f"""
        [sinks.blocked]
        type = "csv"
        path = "{folder}/events.csv"
        retry = {{ first_pause = "1h" }}
        """
    receiver = start_receiver(config, ready=False)
    receiver.push(Simulator().body("touch"))
    wait_until(lambda: "is paused" in receiver.log)
    folder.unlink()
    assert receiver.run("sinks", "resume", "blocked").startswith("Sink blocked is tried again now. It was paused: it ")
    wait_until(lambda: len(receiver.rows(f"{folder}/events.csv")) == 1)


def test_what_an_old_dispatcher_still_owes_to_a_forgotten_sink_never_reaches_a_new_one(desk: Desk) -> None:
    desk.owes("old", "a")
    desk.says("sinks", "forget", "old")
    desk.owes("old", "b")
    newer = desk.open()
    newer.remember(SinkState("new"))
    assert [delivery.event.id for delivery in newer.claim("new", 10, 60)] == []
    assert [row["sink"] for row in desk.tells("sinks", "--status") if row["pending"]] in ([], ["old"])


def test_a_result_for_a_forgotten_sink_is_not_taken_for_that_of_a_new_one(desk: Desk) -> None:
    desk.owes("old", "a")
    claimed = desk.journal.claim("old", 10, 60)
    desk.says("sinks", "forget", "old")
    desk.config(JOURNAL + "[sinks.new]\ntype = 'stdout'\n")
    desk.says("replay", "new", "--since", LONG_AGO)
    desk.journal.settle([Settlement(claimed[0], Result.DELIVERED)])
    assert desk.state("new", "a") == "pending"


def explained(desk: Desk, name: str) -> dict[str, Any]:
    """Each sink's part of the explanation of an event, without its name."""
    return {route.pop("sink"): route for route in desk.tells("explain", name)["sinks"]}


def untried(state: str) -> dict[str, Any]:
    return {"state": state, "attempts": 0, "last_at": None, "last_result": None, "next_try": None}


def test_an_event_is_explained_with_what_it_is_and_how_it_stands_at_each_sink(desk: Desk) -> None:
    desk.config(TWO_SINKS + "[sinks.late]\ntype = 'stdout'\n")
    desk.matches({"a": ["erp", "archive", "gone"]})
    desk.attempts("archive", Result.DELIVERED)
    desk.attempts("erp", Result.FAILED, "HTTP 500", due=NOON)
    desk.attempts("erp", Result.FAILED, "HTTP 502", due=NOON + 60)
    desk.attempts("gone", Result.DEAD, "HTTP 422")

    facts = desk.tells("explain", "a")
    facts.pop("sinks")
    assert facts == {
        "event_id": "a",
        "event_type": "touch",
        "device_id": "emu1",
        "occurred": "2026-01-31T12:00:00.000Z",
        "received": "2026-01-31T12:00:00.000Z",
    }
    routes = explained(desk, "a")
    assert "came later" in routes["late"].pop("state")
    assert all(just_now(routes[sink].pop("last_at")) for sink in ("archive", "erp", "gone"))
    assert routes == {
        "archive": {"state": "delivered", "attempts": 1, "last_result": None, "next_try": None},
        "erp": {
            "state": "pending",
            "attempts": 2,
            "last_result": "HTTP 502",
            "next_try": "2026-01-31T12:01:00.000Z",
        },
        "gone": {"state": "dead", "attempts": 1, "last_result": "HTTP 422", "next_try": None},
        "late": {"attempts": 0, "last_at": None, "last_result": None, "next_try": None},
    }


def test_an_explanation_for_people_has_the_same_facts(desk: Desk) -> None:
    desk.matches({"a": ["archive", "erp"]})
    desk.attempts("erp", Result.FAILED, "HTTP 500", due=NOON + 60)
    *facts, heading, archive, erp = desk.says("explain", "a")
    assert facts == [
        "event id    a",
        "event type  touch",
        "device id   emu1",
        "occurred    2026-01-31T12:00:00Z".replace("12:00:00Z", "12:00:00.000Z"),
        "received    2026-01-31T12:00:00.000Z",
    ]
    assert heading.split("  ")[0] == "sink"
    assert archive.split()[:3] == ["archive", "pending", "0"]
    assert erp[heading.index("last result") :].split("  ")[0] == "HTTP 500"
    assert erp[heading.index("next try") :] == "2026-01-31T12:01:00Z"


def test_an_event_not_yet_matched_is_explained_as_such(desk: Desk) -> None:
    desk.journal.accept(Arrival("a", body("a"), NOON))
    assert explained(desk, "a") == {"archive": untried("not yet matched"), "erp": untried("not yet matched")}


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


def test_every_condition_of_a_filter_that_does_not_hold_is_named(desk: Desk) -> None:
    desk.config(JOURNAL + FILTER)
    desk.matches({"a": []})
    assert explained(desk, "a") == {
        "picky": untried("not owed: filter event_types, devices, projects, labels, backfilled")
    }


def test_an_event_that_was_only_quarantined_is_unknown(desk: Desk) -> None:
    name = quarantine(desk, b"[]", "the body is not a JSON object")
    assert desk.runs("explain", name)[0] == 1


def test_a_replay_takes_what_was_received_from_since_up_to_but_not_at_until(desk: Desk) -> None:
    for number in range(5):
        desk.owes("archive", f"e{number}", received_at=NOON + number)
    desk.attempts("archive", Result.DELIVERED)
    order = ("replay", "archive", "--since", "2026-01-31T12:00:01", "--until", "2026-01-31T13:00:03+01:00")
    assert desk.says(*order, "--dry-run") == ["2 events match; nothing was done."]
    assert desk.counts("archive") == (0, 5, 0)
    assert desk.says(*order) == ["2 events match; sink archive is owed 2 of them again."]
    assert [delivery.event.id for delivery in desk.journal.claim("archive", 10, 60)] == ["e1", "e2"]


@pytest.mark.parametrize(
    ("since", "matched"),
    [("90m", 1), ("1h", 0), ("3h", 2), ("7300s", 2), ("1.5h", 1), ("1d", 2), (LONG_AGO, 2), ("2999-01-01", 0)],
)
def test_a_replay_may_begin_some_time_ago_and_ends_now(since: str, matched: int, desk: Desk) -> None:
    now = time.time()
    desk.owes("archive", "a", received_at=now - 7200)
    desk.owes("archive", "b", received_at=now - 4000)
    desk.owes("archive", "to come", received_at=now + 3600)
    assert desk.tells("replay", "archive", "--since", since, "--dry-run")["matched"] == matched


def test_a_replay_owes_what_is_delivered_and_dead_and_doubles_nothing_that_is_pending(desk: Desk) -> None:
    desk.owes("archive", "delivered")
    desk.attempts("archive", Result.DELIVERED)
    desk.owes("archive", "dead")
    desk.attempts("archive", Result.DEAD, "no")
    desk.owes("archive", "pending")
    desk.attempts("archive", Result.FAILED, "HTTP 500", due=NOON)
    desk.matches({"never": []})
    assert desk.tells("replay", "archive", "--since", LONG_AGO) == {
        "sink": "archive",
        "matched": 4,
        "owed": 3,
        "dry_run": False,
    }
    again = desk.attempts("archive", Result.DELIVERED)
    assert sorted((delivery.event.id, delivery.attempt, delivery.failures) for delivery in again) == [
        ("dead", 1, 0),
        ("delivered", 1, 0),
        ("never", 1, 0),
        ("pending", 2, 1),
    ]


def test_a_replay_during_a_call_leaves_the_claim_alone(desk: Desk) -> None:
    desk.owes("archive", "a")
    (held,) = desk.journal.claim("archive", 10, 60)
    assert desk.tells("replay", "archive", "--since", LONG_AGO)["owed"] == 0
    assert desk.journal.claim("archive", 10, 60) == []
    desk.journal.settle([Settlement(held, Result.DELIVERED)])
    assert desk.counts("archive") == (0, 1, 0)


@pytest.mark.parametrize(
    ("sink", "types", "chosen"),
    [
        ("archive", None, ["co2", "temperature", "touch"]),
        ("archive", "co2", ["co2"]),
        ("archive", " touch , co2,", ["co2", "touch"]),
        ("archive", ",", ["co2", "temperature", "touch"]),
        ("erp", None, ["temperature", "touch"]),
        ("erp", "touch,co2", ["touch"]),
    ],
)
def test_a_replay_takes_what_passes_the_sinks_filter_and_is_of_the_types_named(
    sink: str, types: str | None, chosen: list[str], desk: Desk
) -> None:
    for event_type in ("touch", "temperature", "co2"):
        desk.owes("elsewhere", event_type, event_type=event_type)
    told = desk.tells("replay", sink, "--since", LONG_AGO, *(["--types", types] if types is not None else []))
    assert told == {"sink": sink, "matched": len(chosen), "owed": len(chosen), "dry_run": False}
    assert sorted(delivery.event.id for delivery in desk.journal.claim(sink, 10, 60)) == chosen


def test_a_replay_names_types_that_dt_does_not_document_and_goes_on(desk: Desk) -> None:
    desk.owes("elsewhere", "wet", event_type="humidity")
    desk.owes("elsewhere", "new", event_type="brandNew")
    order = ("replay", "archive", "--since", LONG_AGO, "--types", "humidty,Touch,humidity,brandNew,\x1b[31m")
    assert desk.runs(*order) == (
        0,
        ["2 events match; sink archive is owed 2 of them again."],
        [
            "warning: --types: DT documents no event type 'humidty' (did you mean 'humidity'?)",
            "warning: --types: DT documents no event type 'Touch' (did you mean 'touch'?)",
            "warning: --types: DT documents no event type 'brandNew'",
            "warning: --types: DT documents no event type '\\x1b[31m'",
        ],
    )
    assert sorted(delivery.event.id for delivery in desk.journal.claim("archive", 10, 60)) == ["new", "wet"]


def test_a_replay_of_2500_events_goes_through_all_of_them_once(desk: Desk) -> None:
    names = [f"e{number}" for number in range(2500)]
    accept_many(desk, names)
    desk.journal.owe([(kept, []) for kept in desk.journal.unmatched(5000)])
    assert desk.tells("replay", "archive", "--since", LONG_AGO) == {
        "sink": "archive",
        "matched": 2500,
        "owed": 2500,
        "dry_run": False,
    }
    assert sorted(delivery.event.id for delivery in desk.journal.claim("archive", 5000, 60)) == sorted(names)


def test_events_not_yet_matched_are_left_to_the_dispatcher_by_a_replay(desk: Desk) -> None:
    desk.journal.accept(Arrival("a", body("a"), NOON))
    assert desk.tells("replay", "archive", "--since", LONG_AGO)["matched"] == 0


def test_an_event_retired_while_it_is_replayed_does_not_stop_its_sink(desk: Desk) -> None:
    desk.owes("archive", "old")
    desk.attempts("archive", Result.DELIVERED)
    records = open_records(desk.settings)
    old = records.received(0, NOON + 1, 0, 10)
    desk.journal.retire(NOON + 1, 10)
    assert records.received(0, NOON + 1, 0, 10) == []
    assert records.owe_again("archive", old) == 0
    records.close()
    desk.owes("archive", "new")
    assert [delivery.event.id for delivery in desk.journal.claim("archive", 10, 60)] == ["new"]


def test_owing_nothing_again_does_nothing(desk: Desk) -> None:
    records = open_records(desk.settings)
    assert records.owe_again("archive", []) == 0
    records.close()


def accept_many(desk: Desk, names: Sequence[str]) -> None:
    """Events in one commit, as many waiting pushes share one."""
    journal = desk.journal
    assert isinstance(journal, SqlJournal)
    journal._accept_all([Arrival(name, body(name), NOON) for name in names])


def test_check_names_a_filter_that_no_event_type_passes_and_the_nearest_right_one(desk: Desk) -> None:
    desk.config("[sinks.console]\ntype = 'stdout'\n[sinks.console.filter]\nevent_types = ['touch', 'temperatur']\n")
    code, out, errors = desk.runs("check")
    assert (code, out) == (
        0,
        ["config.toml is right. Enabled sinks: console. Signature secrets: 1."],
    )
    assert errors == [
        "warning: config.toml [sinks.console]: filter.event_types: "
        "DT documents no event type 'temperatur' (did you mean 'temperature'?)"
    ]


def test_check_names_a_removed_sink_that_is_still_owed_events(desk: Desk) -> None:
    desk.matches({"a": ["old", "archive"], "b": ["old"]})
    desk.config(JOURNAL + "[sinks.archive]\ntype = 'csv'\npath = 'events.csv'\n")
    code, _, errors = desk.runs("check")
    assert (code, errors) == (
        0,
        [
            "warning: sink old is not enabled any more, and still owed 2 events; enable it, or let go of them with "
            "`python -m receiver sinks forget old`"
        ],
    )
    desk.says("sinks", "forget", "old")
    assert desk.runs("check")[2] == []


def test_check_says_when_each_of_several_secrets_was_last_used(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.config(JOURNAL + "[sinks.console]\ntype = 'stdout'\n")
    monkeypatch.setenv(f"{SECRET}_OLD", "an-older-secret-of-more-than-32-bytes")
    desk.journal.accept(Arrival("a", body("a"), NOON, secret=SECRET))
    out = desk.says("check")
    assert just_now(out[0].removeprefix(f"{SECRET} was last used ").replace(" UTC", "+00:00"))
    assert out[1:] == [
        f"{SECRET}_OLD has not been used yet",
        "config.toml is right. Enabled sinks: console. Signature secrets: 2.",
    ]


@pytest.mark.parametrize(
    "arguments", [("sinks", "--status"), ("dead", "list"), ("quarantine", "list"), ("explain", "a")], ids=" ".join
)
def test_no_control_character_of_an_error_or_a_label_reaches_the_terminal(
    arguments: tuple[str, ...], desk: Desk
) -> None:
    push = json.loads(body("a", HOSTILE))
    push["metadata"]["deviceId"] = HOSTILE
    desk.journal.accept(Arrival("a", json.dumps(push).encode(), NOON))
    desk.matches({"a": ["erp", "archive"]})
    desk.attempts("archive", Result.FAILED, HOSTILE, due=NOON)
    desk.attempts("erp", Result.DEAD, HOSTILE)
    desk.journal.remember(SinkState("erp", 1, desk.journal.now() + 60, HOSTILE))
    quarantine(desk, b"[]", HOSTILE)
    shown = "\n".join(desk.says(*arguments))
    assert "owned" in shown
    assert CONTROLS.isdisjoint(shown)
    assert not [line for line in shown.splitlines() if line.startswith("forged")]
    told = "\n".join(desk.says(*arguments, "--json"))
    assert CONTROLS.isdisjoint(told)
    assert HOSTILE in strings(json.loads(told))


def strings(told: Any) -> list[str]:
    """Every text in what a command tells as JSON."""
    if isinstance(told, dict | list):
        return [text for part in (told.values() if isinstance(told, dict) else told) for text in strings(part)]
    return [told] if isinstance(told, str) else []


def on_a_terminal(desk: Desk, *arguments: str) -> bytes:
    """What a terminal gets from a command."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "receiver", *arguments], cwd=ROOT, env=dict(os.environ), stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        got = b""
        while data := read_or_nothing(ours):
            got += data
        os.close(ours)
        assert process.wait(30) == 0
    return got


def read_or_nothing(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def test_a_body_with_control_characters_is_made_harmless_on_a_terminal(desk: Desk) -> None:
    name = quarantine(desk, b'{"event": "\x1b]0;owned\x07"}', "the body is not JSON")
    shown = on_a_terminal(desk, "quarantine", "show", name)
    assert b"owned" in shown
    assert b"\x1b" not in shown
    assert b"\x07" not in shown


def test_only_a_terminal_gets_colour(desk: Desk) -> None:
    desk.owes("erp", "a")
    assert b"\x1b[1m" in on_a_terminal(desk, "sinks", "--status")
    assert not [line for line in desk.says("sinks", "--status") if "\x1b" in line]


PLUGIN = '''
from pathlib import Path
from receiver import GiveUp, Pause, Retry, hookimpl

class Moody:
    """Writes ids to a file, unless the file `mood` beside it says otherwise."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def take(self, event):
        mood = self.path.with_name("mood")
        wish, _, why = mood.read_text().partition(" ") if mood.exists() else ("", "", "")
        if wish == "give-up":
            raise GiveUp(why)
        if wish == "pause":
            raise Pause(why, after=3600)
        if wish == "surrogate":
            raise ValueError(chr(0xD800) + " is odd")
        with self.path.open("a") as file:
            print(event.id, file=file)

class Single(Moody):
    @hookimpl
    def deliver(self, event):
        self.take(event)

class Batch(Moody):
    @hookimpl
    def deliver_batch(self, events):
        for event in events:
            self.take(event)

@hookimpl
def register_sinks(register):
    register("moody", Single)
    register("moody-batch", Batch)
'''
RECEIVER = '[receiver]\nplugins = ["{plugin}"]\n'
ARCHIVE = '[sinks.archive]\ntype = "csv"\npath = "events.csv"\n'
MOODY = RECEIVER + ARCHIVE + '[sinks.moody]\ntype = "moody"\npath = "moody.txt"\n'


def plugin(folder: Path) -> Path:
    path = folder / "moody.py"
    path.write_text(PLUGIN, encoding="utf-8")
    return path


def push(receiver: Running, name: str) -> tuple[int, str]:
    return receiver.push(body(name))


def status_of(desk: Desk, sink: str) -> dict[str, Any]:
    (row,) = [row for row in desk.tells("sinks", "--status") if row["sink"] == sink]
    return dict(row)


@pytest.fixture
def beside(start_receiver: StartReceiver, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Running:
    """A running receiver that the desk's commands are given beside."""
    receiver = start_receiver(MOODY.format(plugin=plugin(desk.folder)))
    monkeypatch.setenv("RECEIVER_CONFIG", str(receiver.folder / "config.toml"))
    return receiver


def written(receiver: Running) -> list[str]:
    path = receiver.folder / "moody.txt"
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def test_dead_letters_that_are_retried_beside_a_running_receiver_are_delivered(beside: Running, desk: Desk) -> None:
    (beside.folder / "mood").write_text("give-up no such customer", encoding="utf-8")
    for name in ("a", "b", "c"):
        assert push(beside, name) == (200, "accepted")
    letters = wait_until(lambda: len(found := desk.tells("dead", "list")) == 3 and found)
    assert {(letter["sink"], letter["attempts"], letter["why"]) for letter in letters} == {
        ("moody", 1, "no such customer")
    }
    (beside.folder / "mood").unlink()
    assert desk.tells("dead", "drop", "moody", "c") == {"sink": "moody", "dropped": 1}
    assert desk.tells("dead", "retry", "moody") == {"sink": "moody", "retried": 2}
    wait_until(lambda: desk.state("moody", "a") == desk.state("moody", "b") == "delivered")
    assert sorted(written(beside)) == ["a", "b"]
    assert desk.says("dead", "list") == ["No dead letters."]


def test_a_replay_beside_a_running_receiver_writes_the_events_to_the_file_once_more(
    beside: Running, desk: Desk
) -> None:
    for name in ("a", "b"):
        assert push(beside, name) == (200, "accepted")
    wait_until(lambda: sorted(row["event_id"] for row in beside.rows()) == ["a", "b"])
    wait_until(lambda: status_of(desk, "archive")["delivered"] == 2)
    assert desk.tells("replay", "archive", "--since", "1h") == {
        "sink": "archive",
        "matched": 2,
        "owed": 2,
        "dry_run": False,
    }
    wait_until(lambda: status_of(desk, "archive")["delivered"] == 4)
    assert sorted(row["event_id"] for row in beside.rows()) == ["a", "a", "b", "b"]
    wait_until(lambda: sorted(written(beside)) == ["a", "b"])


def test_what_is_retried_from_quarantine_beside_a_running_receiver_reaches_every_sink(
    beside: Running, desk: Desk
) -> None:
    assert beside.push(b"[]") == (200, "quarantined")
    running = open_journal(load({"RECEIVER_CONFIG": os.environ["RECEIVER_CONFIG"]}, secret_required=False))
    upgraded = body("upgraded")
    running.accept(Arrival(hashlib.sha256(upgraded).hexdigest(), upgraded, time.time(), quarantine="of a kind unknown"))
    running.close()
    assert desk.tells("quarantine", "retry") == {"released": 1, "left": 1}
    wait_until(lambda: [row["event_id"] for row in beside.rows()] == written(beside) == ["upgraded"])
    assert [held["why"] for held in desk.tells("quarantine", "list")] == ["the body is not a JSON object"]


def test_a_pause_that_a_batch_asked_for_is_the_last_result_of_its_events_and_the_last_error_of_its_sink(
    start_receiver: StartReceiver, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MOODY.format(plugin=plugin(desk.folder)).replace('"moody"', '"moody-batch"')
    receiver = start_receiver(config.replace(ARCHIVE, ""))
    monkeypatch.setenv("RECEIVER_CONFIG", str(receiver.folder / "config.toml"))
    for name in ("a", "b", "c"):
        assert push(receiver, name) == (200, "accepted")
    wait_until(lambda: status_of(desk, "moody")["delivered"] == 3)
    (receiver.folder / "mood").write_text("pause closed for the night", encoding="utf-8")
    assert desk.tells("replay", "moody", "--since", "1h")["owed"] == 3
    wait_until(lambda: status_of(desk, "moody")["last_failure"])
    assert status_of(desk, "moody")["paused_because"] == "closed for the night"
    assert status_of(desk, "moody")["last_error"] == "closed for the night"
    assert explained(desk, "a")["moody"]["last_result"] == "closed for the night"


def test_an_error_that_is_no_valid_text_is_recorded_all_the_same(beside: Running, desk: Desk) -> None:
    (beside.folder / "mood").write_text("surrogate", encoding="utf-8")
    push(beside, "a")
    wait_until(lambda: "odd" in (explained(desk, "a")["moody"]["last_result"] or ""))
    assert "odd" in "\n".join(desk.says("sinks", "--status"))


def test_a_sink_forgotten_while_the_old_dispatcher_runs_leaves_nothing_to_a_new_sink(
    start_receiver: StartReceiver, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = start_receiver(MOODY.format(plugin=plugin(desk.folder)).replace(ARCHIVE, ""))
    monkeypatch.setenv("RECEIVER_CONFIG", str(receiver.folder / "config.toml"))
    (receiver.folder / "mood").write_text("pause closed", encoding="utf-8")
    push(receiver, "a")
    wait_until(lambda: status_of(desk, "moody")["paused_because"] == "closed")
    (receiver.folder / "config.toml").write_text(ARCHIVE, encoding="utf-8")
    assert desk.says("sinks", "forget", "moody") == ["Forgot sink moody, and 1 deliveries that were pending or dead."]
    push(receiver, "b")
    wait_until(lambda: receiver.metric("receiver_unmatched") == 0)
    assert receiver.stop() == 0

    receiver.start()
    push(receiver, "c")
    wait_until(lambda: "c" in [row["event_id"] for row in receiver.rows()])
    assert [row["event_id"] for row in receiver.rows()] == ["c"]


DAY = 86400.0
SINKS = {"all": range(8), "even": range(0, 8, 2), "low": range(3)}
"""Which events each sink of the property test wants."""


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0


class ClockedSqlite(SqliteDatabase):
    """SQLite on a clock that moves only when told to."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        super().__init__(folder / "journal.sqlite", 0, None)
        self._clock = clock

    def now(self) -> float:
        return self._clock.now


@dataclass
class Owed:
    """What the property test knows of one delivery."""

    due: float
    state: str = "pending"
    held: bool = False
    attempts: int = 0
    failures: int = 0
    latest: Delivery | None = None


class AnyOrders(RuleBasedStateMachine):
    """Intake, a dispatcher that crashes, and people's orders in any order: each event and matching sink is exactly
    one of pending, delivered and dead, unless an order let go of it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.journal = SqlJournal(self.database())
        self.records = SqlRecords(self.database())
        assert self.journal.begin() == []
        self.accepted: list[int] = []
        self.matched: dict[int, Kept] = {}
        self.owed: dict[tuple[int, str], Owed] = {}
        self.let_go: set[tuple[int, str]] = set()
        self.delivered = dict.fromkeys(SINKS, 0)

    def database(self) -> ClockedSqlite:
        return ClockedSqlite(Path(self.folder.name), self.clock)

    def of(self, sink: str, state: str) -> dict[int, Owed]:
        return {number: owed for (number, owner), owed in self.owed.items() if (owner, owed.state) == (sink, state)}

    @rule(number=st.integers(0, 7))
    def accept(self, number: int) -> None:
        answer = self.journal.accept(Arrival(f"e{number}", b"%d" % number, 1000.0 + number))
        assert answer is (Acceptance.DUPLICATE if number in self.accepted else Acceptance.ACCEPTED)
        if number not in self.accepted:
            self.accepted.append(number)

    @rule()
    def match(self) -> None:
        new = self.journal.unmatched(3)
        numbers = [int(kept.body) for kept in new]
        assert numbers == [number for number in self.accepted if number not in self.matched][:3]
        if new:
            self.journal.owe([(kept, wanting(int(kept.body))) for kept in new])
        for kept, number in zip(new, numbers, strict=True):
            self.matched[number] = kept
            self.owed.update({(number, sink): Owed(self.clock.now) for sink in wanting(number)})

    @rule(sink=st.sampled_from(sorted(SINKS)), most=st.integers(1, 3))
    def claim(self, sink: str, most: int) -> None:
        due = [number for number, owed in self.of(sink, "pending").items() if owed.due <= self.clock.now]
        claimed = self.journal.claim(sink, most, 60.0)
        assert len(claimed) == min(most, len(due))
        assert {int(delivery.event.body) for delivery in claimed} <= set(due)
        for delivery in claimed:
            owed = self.owed[int(delivery.event.body), sink]
            owed.due, owed.held, owed.latest = self.clock.now + 60.0, True, delivery
            owed.attempts += 1
            assert (delivery.attempt, delivery.failures) == (owed.attempts, owed.failures)

    @precondition(lambda self: any(owed.latest for owed in self.owed.values()))
    @rule(data=st.data(), result=st.sampled_from(Result), wait=st.sampled_from([0.0, 500.0]))
    def settle(self, data: st.DataObject, result: Result, wait: float) -> None:
        """Record a result of the latest claim, whether it is still held, has ended, or an order came between."""
        name = data.draw(st.sampled_from(sorted(key for key, owed in self.owed.items() if owed.latest)))
        owed = self.owed[name]
        assert owed.latest is not None
        self.journal.settle([Settlement(owed.latest, result, self.clock.now + wait, "said so")])
        if owed.state != "pending" or not (owed.held or result is Result.DELIVERED):
            return
        owed.held = False
        if result in (Result.DELIVERED, Result.DEAD):
            owed.state = result.value
            self.delivered[name[1]] += result is Result.DELIVERED
        else:
            owed.due = self.clock.now if result is Result.UNTOUCHED else self.clock.now + wait
            owed.attempts -= result is Result.UNTOUCHED
            owed.failures += result is Result.FAILED

    @rule(seconds=st.sampled_from([5.0, 61.0]))
    def advance(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(sink=st.sampled_from(sorted(SINKS)), pauses=st.integers(0, 2))
    def pause_or_resume(self, sink: str, pauses: int) -> None:
        self.journal.remember(SinkState(sink, pauses, self.clock.now + 10.0 * pauses, "tired" if pauses else ""))

    @rule()
    def crash(self) -> None:
        self.journal.close()
        self.journal = SqlJournal(self.database())
        held = [(sink, owed) for (_, sink), owed in self.owed.items() if owed.state == "pending" and owed.held]
        assert sorted(self.journal.begin()) == sorted({sink for sink, _ in held})
        for _, owed in held:
            owed.held, owed.due = False, self.clock.now

    @rule(sink=st.sampled_from(sorted(SINKS)), number=st.none() | st.integers(0, 7))
    def retry_dead(self, sink: str, number: int | None) -> None:
        dead = chosen(self.of(sink, "dead"), number)
        assert self.records.retry_dead(sink, None if number is None else [f"e{number}"]) == len(dead)
        for name in dead:
            self.owed[name, sink] = self.as_new(name, sink)

    @rule(sink=st.sampled_from(sorted(SINKS)), number=st.none() | st.integers(0, 7))
    def drop_dead(self, sink: str, number: int | None) -> None:
        dead = chosen(self.of(sink, "dead"), number)
        assert self.records.drop_dead(sink, None if number is None else [f"e{number}"]) == len(dead)
        self.release({(name, sink) for name in dead})

    @rule(sink=st.sampled_from(sorted(SINKS)), since=st.integers(0, 7), until=st.integers(0, 8))
    def replay(self, sink: str, since: int, until: int) -> None:
        found = self.records.received(1000.0 + since, 1000.0 + until, 0, 100)
        assert {int(kept.body) for kept in found} == {number for number in self.matched if since <= number < until}
        wanted = [kept for kept in found if int(kept.body) in SINKS[sink]]
        settled = [int(kept.body) for kept in wanted if int(kept.body) not in self.of(sink, "pending")]
        if wanted:
            assert self.records.owe_again(sink, wanted) == len(settled)
        for number in settled:
            self.owed[number, sink] = self.as_new(number, sink)
            self.let_go.discard((number, sink))

    @rule(sink=st.sampled_from(sorted(SINKS)))
    def forget(self, sink: str) -> None:
        owed = len(self.of(sink, "pending")) + len(self.of(sink, "dead"))
        assert self.records.forget(sink) == owed
        self.release({(number, owner) for number, owner in self.owed if owner == sink})
        self.delivered[sink] = 0

    def as_new(self, number: int, sink: str) -> Owed:
        """A delivery owed anew; a late "delivered" of an earlier attempt is still believed."""
        before = self.owed.get((number, sink))
        return Owed(self.clock.now, latest=before.latest if before else None)

    def release(self, names: set[tuple[int, str]]) -> None:
        self.let_go |= names
        for name in names:
            del self.owed[name]

    @invariant()
    def every_delivery_is_in_exactly_one_state(self) -> None:
        counts = self.records.counts()
        assert counts.unmatched == len(self.accepted) - len(self.matched)
        for sink in SINKS:
            seen = counts.sinks.get(sink, SinkCount())
            assert (seen.delivered, seen.pending, seen.dead) == (
                self.delivered[sink],
                len(self.of(sink, "pending")),
                len(self.of(sink, "dead")),
            )
            letters = self.records.dead_letters(sink, 100)
            assert sorted(letter.event_id for letter in letters) == sorted(f"e{n}" for n in self.of(sink, "dead"))

    def teardown(self) -> None:
        """In the end nothing is lost: all that is matched is as the orders say, and all that is pending comes out."""
        try:
            while len(self.matched) < len(self.accepted):
                self.match()
            assert set(self.owed) | self.let_go == {(e, s) for e in self.accepted for s in wanting(e)}
            for number in self.accepted:
                history = self.records.history(f"e{number}")
                assert history is not None
                assert {attempt.sink: attempt.state for attempt in history.deliveries} == {
                    sink: owed.state for (of, sink), owed in self.owed.items() if of == number
                }
            self.crash()
            self.clock.now += 10 * DAY
            for sink in SINKS:
                claimed = self.journal.claim(sink, 100, 60.0)
                assert {int(delivery.event.body) for delivery in claimed} == set(self.of(sink, "pending"))
        finally:
            self.journal.close()
            self.records.close()
            self.folder.cleanup()


def wanting(number: int) -> list[str]:
    return [sink for sink, wanted in SINKS.items() if number in wanted]


def chosen(dead: dict[int, Owed], number: int | None) -> list[int]:
    return [one for one in dead if number in (None, one)]


TestAnyOrders = AnyOrders.TestCase
TestAnyOrders.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
