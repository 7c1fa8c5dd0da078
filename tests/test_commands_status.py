"""`status` shows whether the receiver runs, and of each sink what is pending, delivered and dead, and its failures."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from conftest import wait_until
from support.commands import JOURNAL, SCRIPTED, TWO_SINKS, Operator, event_body, is_recent, seconds_since_1970

from receiver import admin
from receiver.journal import Arrival, Result, SinkState


def test_without_a_journal_every_configured_sink_has_no_deliveries(operator: Operator) -> None:
    nothing = {
        "configured": "enabled",
        "pending": 0,
        "oldest_pending_age_seconds": None,
        "delivered": 0,
        "dead": 0,
        "last_success_at": None,
        "last_failure_at": None,
        "last_failure_reason": None,
        "paused_until": None,
        "pause_reason": None,
    }
    assert operator.json("status") == {
        "running": False,
        "dispatcher_reported_at": None,
        "last_push_at": None,
        "warnings": [],
        "sinks": [{"sink": "erp", **nothing}, {"sink": "archive", **nothing}],
    }
    assert operator.lines("status") == [
        "The receiver is not running: no dispatcher has ever reported.",
        "No push has been accepted yet.",
        "sink     configured  pending  delivered  dead",
        "erp      enabled     0        0          0",
        "archive  enabled     0        0          0",
    ]


def test_without_any_sink_the_status_says_so(operator: Operator) -> None:
    operator.configure(JOURNAL)
    assert operator.lines("status")[2:] == ["No sink is configured, and none was before."]
    assert operator.json("status")["sinks"] == []


def test_the_status_of_a_sink_is_complete_also_when_it_is_disabled_or_removed(operator: Operator) -> None:
    operator.configure(TWO_SINKS + "[sinks.off]\ntype = 'stdout'\nenabled = false\n")
    now = time.time()
    operator.add_events({"a": ["erp", "removed"]}, received_at=now - 7200)
    operator.settle_due("erp", Result.DELIVERED)
    operator.add_pending("erp", "b", "c", received_at=now - 3600)
    operator.settle_due("erp", Result.FAILED, "HTTP 500", due=now + 3600)
    operator.add_pending("erp", "d", received_at=now - 1)
    operator.settle_due("erp", Result.DEAD, "HTTP 422")
    until = operator.journal.now() + 600
    operator.journal.save_sink_state(SinkState("erp", 2, until, "it keeps failing: HTTP 500"))

    rows = {row["sink"]: row for row in operator.json("status")["sinks"]}

    assert [(row["sink"], row["configured"]) for row in rows.values()] == [
        ("erp", "enabled"),
        ("archive", "enabled"),
        ("off", "disabled"),
        ("removed", "removed"),
    ]
    erp = rows["erp"]
    assert is_recent(erp.pop("last_success_at"))
    assert is_recent(erp.pop("last_failure_at"))
    assert 3600 <= erp.pop("oldest_pending_age_seconds") < 3660
    assert abs(seconds_since_1970(erp.pop("paused_until")) - until) < 1
    assert erp == {
        "sink": "erp",
        "configured": "enabled",
        "pending": 2,
        "delivered": 1,
        "dead": 1,
        "last_failure_reason": "HTTP 422",
        "pause_reason": "it keeps failing: HTTP 500",
    }
    assert (rows["removed"]["pending"], rows["off"]["pending"]) == (1, 0)
    assert 7200 <= rows["removed"]["oldest_pending_age_seconds"] < 7260


def test_the_status_for_people_is_a_table_and_a_line_for_each_sink_that_is_paused_or_has_failed(
    operator: Operator,
) -> None:
    operator.add_events({"a": ["erp", "archive"]}, received_at=time.time())
    operator.settle_due("archive", Result.FAILED, "OSError: disk full")
    operator.settle_due("erp", Result.POSTPONED, "HTTP 503")
    operator.journal.save_sink_state(SinkState("erp", 1, operator.journal.now() + 60, "HTTP 503"))
    operator.journal.report_alive(["sink archive has been in one call for 61 s; set a timeout in it"])
    _, _, heading, erp, archive, *reasons = operator.lines("status")
    assert heading.split("  ")[0] == "sink"
    assert erp[heading.index("pending") :].split()[0] == "1"
    assert archive[heading.index("paused until") :].split() == ["-"]
    assert erp[heading.index("paused until") :].startswith("20")
    assert [re.sub(r"\d+ s", "N s", reason) for reason in reasons[:3]] == [
        "erp is paused: HTTP 503",
        "erp is probed again in N s; `python -m receiver sinks resume erp` probes it now",
        "last failure of archive, N s ago: OSError: disk full",
    ]
    assert reasons[3:] == ["sink archive has been in one call for 61 s; set a timeout in it"]


def test_a_pause_that_resume_cannot_end_has_no_line_about_the_next_probe(operator: Operator) -> None:
    operator.journal.save_sink_state(SinkState("archive", 1, 0.0, "option 'path' is missing"))
    operator.journal.save_sink_state(SinkState("off", 1, operator.journal.now() + 60, "HTTP 503"))
    lines = [line for line in operator.lines("status") if "paused:" in line or "probed" in line]
    assert lines == ["archive is paused: option 'path' is missing", "off is paused: HTTP 503"]


def test_a_failure_of_the_last_day_that_is_over_is_shown_as_such(operator: Operator) -> None:
    operator.add_pending("archive", "a", "b")
    operator.settle_due("archive", Result.FAILED, "OSError: disk full")
    operator.settle_due("archive", Result.DELIVERED)
    assert operator.sink_status("archive")["last_failure_reason"] == "OSError: disk full"
    (line,) = [line for line in operator.lines("status") if "disk full" in line]
    assert re.sub(r"\d+ s ago", "N s ago", line) == (
        "archive works again; its last failure was N s ago: OSError: disk full"
    )
    with time_machine.travel(datetime.now(UTC) + timedelta(hours=25)):
        assert [line for line in operator.lines("status") if "disk full" in line] == []


def test_the_status_says_whether_the_receiver_runs_and_when_a_push_was_last_accepted(operator: Operator) -> None:
    now = datetime.now(UTC)
    for name, received in (("a", now - timedelta(hours=3)), ("b", now - timedelta(minutes=2))):
        with time_machine.travel(received):  # a journal reads the clock when it is opened
            operator.open_journal().accept([Arrival(name, event_body(name), time.time(), secret=name)])
    operator.open_journal().report_alive(["sink erp has been in one call for 61 s; set a timeout in it"])
    running, pushed, *_, warning = operator.lines("status")
    assert re.fullmatch(r"The receiver is running: a dispatcher last reported \d+ s ago\.", running)
    assert pushed == "The last push was accepted 2 min ago."
    assert warning == "sink erp has been in one call for 61 s; set a timeout in it"
    status = operator.json("status")
    assert (status["running"], status["warnings"]) == (True, [warning])
    assert is_recent(status["dispatcher_reported_at"])
    assert 100 < now.timestamp() - seconds_since_1970(status["last_push_at"]) < 121
    with time_machine.travel(now + timedelta(minutes=5, seconds=30)):
        assert operator.lines("status")[0] == "The receiver is not running: a dispatcher last reported 5 min ago."
        assert (operator.json("status")["running"], operator.json("status")["warnings"]) == (False, [])


def test_the_age_of_what_is_pending_is_shown_in_one_unit(operator: Operator) -> None:
    operator.add_pending("erp", "a", received_at=time.time() - 7300)
    _, _, heading, erp, _ = operator.lines("status")
    assert erp[heading.index("oldest pending age") :].startswith("2 h")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s ago"),
        (59, "59 s ago"),
        (60, "1 min ago"),
        (3599, "59 min ago"),
        (7200, "2 h ago"),
        (200_000, "2 d ago"),
    ],
)
def test_a_time_in_the_past_is_shown_in_one_unit(seconds: int, shown: str) -> None:
    with time_machine.travel(datetime.now(UTC), tick=False):
        assert admin.ago(datetime.now(UTC) - timedelta(seconds=seconds)) == shown


def test_a_sink_whose_pause_ended_is_not_shown_as_paused(operator: Operator) -> None:
    operator.journal.save_sink_state(SinkState("erp", 1, operator.journal.now() + 60, "HTTP 503"))
    operator.journal.save_sink_state(SinkState("erp"))
    row = operator.sink_status("erp")
    assert (row["paused_until"], row["pause_reason"]) == (None, None)


def test_a_pause_that_a_batch_asked_for_is_the_reason_of_its_sink_and_of_each_of_its_events(operator: Operator) -> None:
    operator.configure(SCRIPTED.replace('"scripted"', '"scripted-batch"'))
    with operator.dispatcher():
        operator.accept("a", "b", "c")
        wait_until(lambda: operator.sink_status("scripted")["delivered"] == 3)
        operator.script("pause closed for the night")
        assert operator.json("replay", "scripted", "--since", "1h", "--yes")["requeued"] == 3
        wait_until(lambda: operator.sink_status("scripted")["last_failure_at"])
    status = operator.sink_status("scripted")
    assert (status["pause_reason"], status["last_failure_reason"]) == ("closed for the night", "closed for the night")
    assert operator.explain("a")["scripted"]["reason"] == "closed for the night"


def test_a_failure_whose_text_is_not_valid_unicode_is_recorded(operator: Operator) -> None:
    operator.configure(SCRIPTED)
    operator.script("surrogate")
    with operator.dispatcher():
        operator.accept("a")
        wait_until(lambda: operator.sink_status("scripted")["last_failure_at"])
    assert operator.explain("a")["scripted"]["reason"] == "ValueError: ? is odd"
    (line,) = [line for line in operator.lines("status") if line.startswith("last failure of scripted, ")]
    assert line.endswith(" ago: ValueError: ? is odd")
