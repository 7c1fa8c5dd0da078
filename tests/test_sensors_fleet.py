"""What the registry reports of a simulated fleet is what was really silent. `make fleet` runs it in full."""

from __future__ import annotations

from pathlib import Path

from support.fleet import Fleet, run


def test_a_fleet_is_judged_as_it_really_was(tmp_path: Path) -> None:
    report = run(Fleet(sensors=20, days=3, seed=4, often=12), tmp_path)
    assert report.silences >= 10
    assert (report.false, report.late, report.wrongly_closed) == (0, [], [])
    assert report.found == report.silences
    assert report.announcements <= 2 * report.incidents
