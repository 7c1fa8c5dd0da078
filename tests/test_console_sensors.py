"""The parts of the console about sensors, over sockets: list, one sensor, silence; snooze and retire."""

from __future__ import annotations

import csv
import io
import re
import struct
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import RunningReceiver, wait_until
from support.console import CONFIG, PASSWORDS, get, post
from support.journals import SqliteStore
from support.sensors import DOOR, FREEZER, START, at, event, fold_a_silent_freezer

from receiver.console import sensor, silence, words
from receiver.sensors import open_registry
from receiver.sensors.history import Point
from receiver.sensors.registry import Registry
from receiver.sensors.shown import projects_heard
from receiver.sensors.watch import Rules
from receiver.settings import load

MANY = 120


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReceiver]:
    """A receiver that knows a silent freezer, a door, and many others."""
    receiver = RunningReceiver(tmp_path_factory.mktemp("fleet"), CONFIG, None, PASSWORDS)
    now = datetime.now(UTC)
    minutes = (now - START).total_seconds() / 60
    with closing(registry_of(receiver)) as registry:
        registry.fold([event(minutes, name=f"Many {n:03d}", device=f"many{n:016d}") for n in range(MANY)])
        registry.fold([event(minutes, name='=HYPERLINK("x")', device="formula", device_type="+type")])
        fold_a_silent_freezer(registry, now)
    try:
        yield receiver.start()
    finally:
        receiver.kill_all()


def registry_of(receiver: RunningReceiver) -> Registry:
    return open_registry(load({"RECEIVER_CONFIG": str(receiver.folder / "config.toml")}, secret_required=False))


def text(receiver: RunningReceiver, path: str) -> str:
    """The text of a page without its markup."""
    response = get(receiver, path)
    assert response.status == 200, path
    return " ".join(re.sub(r"<[^>]+>", " ", response.data.decode()).split())


def listed(receiver: RunningReceiver, query: str) -> list[str]:
    return re.findall(r'id="s-([\w-]+)"', get(receiver, f"/console/sensors{query}").data.decode())


def test_the_overview_says_what_needs_a_person(fleet: RunningReceiver) -> None:
    wait_until(lambda: "freezer has not been heard since" in text(fleet, "/console/").lower())
    assert "124 " not in text(fleet, "/console/").partition("Sensors")[0]


def test_the_list_has_pages_and_each_sensor_is_on_one_of_them(fleet: RunningReceiver) -> None:
    found: list[str] = []
    query = ""
    for _ in range(3):
        found += listed(fleet, query)
        page = get(fleet, f"/console/sensors{query}").data.decode()
        following = re.search(r'href="/console/sensors(\?after=[^"]+)" rel="next"', page)
        query = following[1] if following else ""
    assert query == ""
    assert len(found) == len({*found}) == MANY + 3


def test_the_list_is_searched_and_filtered(fleet: RunningReceiver) -> None:
    assert listed(fleet, "?q=freez") == [FREEZER]
    assert listed(fleet, "?q=MANY+007") == ["many0000000000000007"]
    assert listed(fleet, "?q=nothing") == []
    wait_until(lambda: listed(fleet, "?state=silent") == [FREEZER])
    assert listed(fleet, "?state=nonsense&q=freez") == [FREEZER]
    assert "No sensor matches." in text(fleet, "/console/sensors?q=nothing")


def test_the_list_can_be_downloaded_and_no_cell_is_a_formula(fleet: RunningReceiver) -> None:
    response = get(fleet, "/console/sensors.csv")
    rows = list(csv.DictReader(io.StringIO(response.data.decode(), newline="")))
    assert response.headers["Content-Disposition"] == 'attachment; filename="sensors.csv"'
    assert len(rows) == MANY + 3
    by_id = {row["device_id"]: row for row in rows}
    assert (by_id["formula"]["name"], by_id["formula"]["type"]) == ('\'=HYPERLINK("x")', "'+type")
    assert (by_id[FREEZER]["quantity"], by_id[FREEZER]["battery"]) == ("temperature", "92")
    found = get(fleet, "/console/sensors.csv?q=freez").data.decode()
    assert len(found.splitlines()) == 2


def test_a_sensor_is_shown_with_plots_gaps_and_incidents(fleet: RunningReceiver) -> None:
    page = get(fleet, f"/console/sensors/{FREEZER}").data.decode()
    assert page.count('<svg class="chart"') == 4  # temperature, battery, signal strength, rssi
    assert 'class="gap"' in page
    shown = text(fleet, f"/console/sensors/{FREEZER}")
    assert "Gaps of the last 7 days" in shown
    assert "Completeness by day" in shown


@pytest.mark.parametrize("range", ["", "?range=24h", "?range=7d", "?range=30d", "?range=nonsense"])
def test_the_history_is_the_same_as_plot_table_and_download(range: str, fleet: RunningReceiver) -> None:
    history = get(fleet, f"/console/sensors/{FREEZER}/history.json{range}").json()
    assert [plot["name"] for plot in history["plots"]] == ["temperature", "battery", "signal_strength", "rssi"]
    assert history["end"] > history["start"]
    values = [value for value in history["plots"][0]["mean"] if value is not None]
    table = text(fleet, f"/console/sensors/{FREEZER}/values{range}")
    assert table.count("°C") >= len(values)
    rows = csv.DictReader(io.StringIO(get(fleet, f"/console/sensors/{FREEZER}/history.csv{range}").data.decode()))
    assert sum(row["quantity"] == "temperature" for row in rows) >= len(values)


def test_a_download_has_the_values_that_were_reported() -> None:
    """They are stored in 32 bits, in which there is no 21.1."""
    found = {"temperature": [Point(0, *[as_stored(value) for value in (21.1, -0.04, 16777215)])]}
    assert [row[4:] for row in sensor.csv_rows("d", found)][1:] == [(-0.04, 21.1, 16777215)]


def as_stored(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def test_no_value_is_a_negative_zero() -> None:
    assert [words.value("temperature", value) for value in (-0.04, -0.06, 0.0)] == ["0.0 °C", "-0.1 °C", "0.0 °C"]


def test_gaps_are_shaded_in_all_of_the_time_that_is_plotted(tmp_path: Path) -> None:
    now = at(20 * 1440).timestamp()
    with closing(Registry(SqliteStore(tmp_path).database(), Rules())) as registry:
        registry.fold([event(minute) for minute in (*range(0, 600, 15), *range(900, 20 * 1440, 15))])
        registry.judge(now, "judge")
        for chosen, shaded in (("24h", []), ("7d", []), ("30d", [at(585)])):
            visit: Any = SimpleNamespace(registry=registry, now=now, query={"range": chosen})
            visit.sources = SimpleNamespace(projects=lambda: projects_heard(registry, now))
            assert [gap.from_ for gap in sensor.gaps_in_range(visit, registry.rows()[0])] == shaded


def test_a_sensor_that_does_not_exist_is_not_found(fleet: RunningReceiver) -> None:
    for path in ("", "/values", "/history.json", "/history.csv"):
        assert get(fleet, f"/console/sensors/nobody{path}").status == 404
    assert post(fleet, "/console/sensors/nobody/snooze", {"hours": "8"}).status == 409


def test_a_sensor_is_snoozed_and_woken(fleet: RunningReceiver) -> None:
    done = post(fleet, f"/console/sensors/{DOOR}/snooze", {"hours": "8"})
    assert (done.status, done.headers["Location"]) == (303, f"/console/sensors/{DOOR}?done=snoozed&n=8")
    shown = text(fleet, f"/console/sensors/{DOOR}?done=snoozed&n=8")
    assert "The sensor raises no incident for 8 hours." in shown
    assert "snoozed until" in shown
    assert post(fleet, f"/console/sensors/{DOOR}/snooze", {"hours": "0"}).headers["Location"].endswith("done=woken&n=0")
    assert "snoozed until" not in text(fleet, f"/console/sensors/{DOOR}")


@pytest.mark.parametrize("hours", ["-1", "1e9", "9999999", "x", ""])
def test_a_snooze_of_another_length_is_none(hours: str, fleet: RunningReceiver) -> None:
    post(fleet, f"/console/sensors/{DOOR}/snooze", {"hours": hours})
    assert "snoozed until" not in text(fleet, f"/console/sensors/{DOOR}")


def test_a_sensor_is_retired_after_a_question_and_expected_again(fleet: RunningReceiver) -> None:
    path = "/console/sensors/many0000000000000001"
    asked = post(fleet, f"{path}/retire")
    assert (asked.status, b"Expect 1 sensor no more, Many 001" in asked.data) == (200, True)
    assert "sensors retire many0000000000000001" in asked.data.decode()
    assert listed(fleet, "?state=retired") == []
    assert post(fleet, f"{path}/retire", {"confirmed": "yes"}).status == 303
    assert listed(fleet, "?state=retired") == ["many0000000000000001"]
    assert post(fleet, f"{path}/retire", {"undo": "yes"}).status == 303
    assert listed(fleet, "?state=retired") == []


def test_silence_is_shown_by_cause_and_completeness_by_day(fleet: RunningReceiver) -> None:
    wait_until(lambda: "Nothing is heard of this sensor" in text(fleet, "/console/silence"))
    shown = text(fleet, "/console/silence?q=freez")
    assert "freezer has not been heard since" in shown
    assert re.search(r"freezer .*%", shown)


def test_outages_are_those_of_the_last_7_days() -> None:
    ago = [days * 1440 for days in (9, 7.5, 7.1, 6.9, 1)]
    now = 10_000 * 1440
    spans = [(round(now - each), round(now - each + 60)) for each in ago]
    projects = SimpleNamespace(down=spans[:1], outages={"p": spans[1:]})
    visit: Any = SimpleNamespace(now=60.0 * now, sources=SimpleNamespace(projects=lambda: projects))
    assert [(each.project_id, each.start.timestamp() / 60) for each in silence.outages(visit)] == [
        ("p", now - 1440),
        ("p", now - 6.9 * 1440),
    ]


def test_a_notice_shows_nothing_that_an_address_makes_up(fleet: RunningReceiver) -> None:
    for query in ("done=%3Cb%3Eyou+are+hacked", "done=snoozed&n=call+0800", "done=retried&n=99999999999999999999"):
        shown = text(fleet, f"/console/?{query}")
        assert "hacked" not in shown
        assert "0800" not in shown
        assert "99999999999999" not in shown


def test_the_first_page_is_small_even_without_a_cache(fleet: RunningReceiver) -> None:
    gzipped = {"Accept-Encoding": "gzip"}
    page = get(fleet, "/console/", headers=gzipped)
    assert page.headers["Content-Encoding"] == "gzip"
    files = set(re.findall(r'(?:href|src)="(/console/static/[^"]+)"', page.data.decode()))
    sizes = [int(get(fleet, path, headers=gzipped).headers["Content-Length"]) for path in files]
    assert len(sizes) == 3
    assert int(page.headers["Content-Length"]) + sum(sizes) <= 60_000


def test_each_page_names_the_command(fleet: RunningReceiver) -> None:
    for path, command in (
        ("/console/", "status"),
        ("/console/sensors", "sensors"),
        (f"/console/sensors/{FREEZER}", f"sensors show {FREEZER}"),
        ("/console/silence", "sensors incidents"),
    ):
        assert f"<code>python -m receiver {command}</code>" in get(fleet, path).data.decode()
