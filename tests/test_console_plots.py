"""Plots and spark lines: what is drawn of stored points."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from support.sensors import START

from receiver.console.charts import Span, chart, spark
from receiver.console.plots import Kind, Plot, in_range, plots, table
from receiver.console.words import QUANTITIES, in_order, main_quantity, quantity, value
from receiver.sensors import history
from receiver.sensors.history import Point
from receiver.sensors.shown import LatestValue

DAY = 86400.0


def points(*values: tuple[float, float]) -> list[Point]:
    return [Point(time, number, number, number) for time, number in values]


def one(name: str, *values: tuple[float, float], interval: float = 900, hourly: bool = False) -> Plot:
    (plot,) = plots({name: points(*values)}, interval, DAY, hourly=hourly)
    return plot


def test_every_stored_quantity_has_a_title_and_a_unit_or_words_for_its_states() -> None:
    assert sorted(QUANTITIES) == sorted(history.QUANTITIES)
    assert quantity("new").title == "new"
    assert value("new", 3.0) == "3"


@pytest.mark.parametrize(
    ("name", "number", "shown"),
    [
        ("temperature", -18.04, "-18.0 °C"),
        ("co2", 1234.0, "1,234 ppm"),
        ("water_present", 0.0, "dry"),
        ("open", 1.0, "open"),
        ("count", 7.0, "7"),
    ],
)
def test_values_are_shown_with_their_unit_or_in_a_word(name: str, number: float, shown: str) -> None:
    assert value(name, number) == shown


def test_what_a_sensor_measures_comes_before_what_concerns_itself() -> None:
    latest = {name: LatestValue(1, "", START) for name in ("battery", "rssi", "relative_humidity", "temperature")}
    assert main_quantity(latest) == "temperature"
    assert in_order([*latest]) == ["temperature", "relative_humidity", "battery", "rssi"]
    assert main_quantity({"battery": LatestValue(1, "", START)}) is None


def test_a_line_is_interrupted_where_a_heartbeat_is_missing_and_that_of_rare_values_is_not() -> None:
    values = ((0, 1), (900, 2), (1800, 3), (9000, 4))
    assert one("temperature", *values).mean == [1, 2, 3, None, 4]
    assert one("temperature", *values).times == [0, 900, 1800, 5400, 9000]
    assert one("battery", *values).mean == [1, 2, 3, 4]
    assert one("temperature", (0, 1), (3600, 2), (7200, 3), hourly=True).mean == [1, 2, 3]


def test_a_quantity_that_comes_with_every_fourth_heartbeat_is_a_line_interrupted_where_it_is_missing() -> None:
    values = ((0, 1), (3600, 2), (7200, 3), (10_800, 4), (21_600, 5))
    assert one("signal_strength", *values).mean == [1, 2, 3, 4, None, 5]
    assert one("signal_strength", (0, 1), (3600, 2)).mean == [1, None, 2]


def test_a_state_lasts_until_the_next_one_and_until_now() -> None:
    plot = one("open", (100, 1), (500, 0), (900, 1))
    assert (plot.kind, plot.states) == (Kind.STEPS, ("closed", "open"))
    assert [*zip(plot.times, plot.mean, strict=True)] == [(100, 1), (500, 0), (900, 1), (DAY, 1)]


def test_an_hour_that_was_both_open_and_closed_is_open_first() -> None:
    (plot,) = plots({"open": [Point(3600, 0, 0.25, 1), Point(7200, 0, 0, 0)]}, 900, 9000, hourly=True)
    assert [*zip(plot.times, plot.mean, strict=True)] == [(3600, 1), (7199, 0), (7200, 0), (9000, 0)]


def test_touches_are_marks() -> None:
    assert one("touch", (5, 1), (7, 1)).kind is Kind.MARKS


def test_only_the_last_day_is_plotted_in_full_and_states_always_are() -> None:
    found = {"temperature": points((0, 1), (60, 3)), "open": points((0, 1), (60, 0))}
    assert in_range(found, "24h") == found
    assert in_range(found, "7d") == {"temperature": [Point(0, 1, 2, 3)], "open": found["open"]}


def test_the_table_has_the_same_values_newest_first() -> None:
    rows = table({"temperature": points((0, 1), (60, 3)), "battery": points((60, 90))})
    assert [(row.time, sorted(row.points)) for row in rows] == [(60, ["battery", "temperature"]), (0, ["temperature"])]


SPANS = [Span(-100, 50, "gap", "gap: lost"), Span(80_000, 90_000, "incident", 'incident: <script>"')]


@pytest.mark.parametrize(
    "plot",
    [
        one("temperature", (0, 1)),
        one("temperature", (0, 1), (900, 1)),
        one("temperature", (0, -5), (900, 1), (80_000, 7)),
        one("temperature", (0, 1), (3600, 2), (7200, 3), hourly=True),
        one("open", (100, 1), (500, 0)),
        one("touch", (100, 1)),
        plots({"co2": [Point(0, 1, 2, 3), Point(3600, 1, 2, 3), Point(50_000, 1, 2, 3)]}, 900, DAY, hourly=True)[0],
    ],
    ids=lambda plot: f"{plot.name}-{len(plot.times)}",
)
def test_a_chart_is_well_formed_and_within_its_frame(plot: Plot) -> None:
    tree = ElementTree.fromstring(chart(plot, 0, DAY, SPANS))
    drawn = " ".join(path.attrib["d"] for path in tree.iter("path"))
    numbers = [float(each) for each in re.findall(r"-?[0-9.]+", drawn)]
    assert numbers
    assert all(0 <= number <= 720 for number in numbers)
    assert [each.attrib["class"] for each in tree.iter("rect")] == ["gap", "incident"]
    assert [each.text for each in tree.iter("title")] == ["gap: lost", 'incident: <script>"']


def test_a_spark_line_shows_the_last_day_and_breaks_where_nothing_was_heard() -> None:
    assert spark([], 0, DAY, steps=False) == ""
    assert spark(points((DAY + 1, 3)), 0, DAY, steps=False) == ""
    whole = spark(points(*((n * 900.0, n % 7) for n in range(96))), 0, DAY, steps=False)
    assert (whole.count("M"), len(whole) < 900) == (1, True)
    broken = spark(points(*((n * 900.0, n % 7) for n in range(96) if not 30 < n < 60)), 0, DAY, steps=False)
    assert broken.count("M") == 2
    assert ElementTree.fromstring(whole).attrib["aria-hidden"] == "true"


def test_a_spark_line_of_a_state_has_steps() -> None:
    drawn = spark(points((0, 0), (40_000, 1), (60_000, 0)), 0, DAY, steps=True)
    assert "H" in drawn
    assert "L" not in drawn
