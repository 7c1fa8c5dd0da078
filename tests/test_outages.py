"""A month with an outage of 20 hours and one of 6 days: after `backfill`, everything that DT has is everywhere once."""

from __future__ import annotations

from pathlib import Path

from support.outages import run


def test_after_a_backfill_everything_that_dt_has_is_delivered_once(tmp_path: Path) -> None:
    report = run(tmp_path, devices=5)
    assert report.missed > 5 * 4 * 24 * 5
    assert report.disabled > 0
    assert sorted(report.delivered.elements()) == sorted(report.expected)
    assert (report.summary.new, report.summary.gaps_left, report.summary.failures) == (report.missed, 0, ())
    assert report.incidents_after == report.incidents_before
    assert report.incomplete == []
