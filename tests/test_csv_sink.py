"""What the csv sink writes: the columns and rows of a file, and cells that every CSV reader and spreadsheet reads."""

from __future__ import annotations

import csv
import json
import re
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import time_machine
from hypothesis import given, settings
from hypothesis import strategies as st
from support.csv_archive import EVENTS_HEADER, READINGS_HEADER, CsvArchive, build_csv
from support.events import NOW, event, humidity, temperature

from receiver.errors import PluginError


def test_one_row_per_reading_is_the_default(archive: CsvArchive) -> None:
    archive.open().deliver(temperature("t1", -18.5, labels={"name": "Fridge", "site": "oslo"}))
    assert archive.path.read_bytes().decode() == (
        f"{READINGS_HEADER}\r\n"
        "t1,2026-03-14T11:00:00.000000Z,d1,Fridge,oslo,temperature,temperature,-18.5,°C,,"
        '"{""name"": ""Fridge"", ""site"": ""oslo""}"\r\n'
    )


@time_machine.travel(NOW, tick=False)
def test_one_row_per_event_is_an_option(archive: CsvArchive) -> None:
    archive.open(rows="events").deliver(temperature("t1", 4, 5))
    (row,) = archive.rows()
    assert ",".join(row) == EVENTS_HEADER
    samples = [
        {"value": 4, "sampleTime": "2026-03-14T11:00:00Z"},
        {"value": 5, "sampleTime": "2026-03-14T11:01:00Z"},
    ]
    assert json.loads(row.pop("data")) == {"value": 4, "samples": samples}
    assert row == {
        "event_id": "t1",
        "time": "2026-03-14T11:59:00.500000Z",
        "device_id": "d1",
        "device_name": "",
        "project_id": "oslo",
        "event_type": "temperature",
        "received_at": "2026-03-14T12:00:00.000000Z",
        "labels": "",
    }


def test_thirty_samples_give_thirty_rows(archive: CsvArchive) -> None:
    archive.open().deliver(temperature("t1", *range(30)))
    assert [(row["event_id"], row["value"]) for row in archive.rows()] == [("t1", str(n)) for n in range(30)]
    assert len({row["time"] for row in archive.rows()}) == 30


def test_a_sample_of_humidity_gives_two_rows(archive: CsvArchive) -> None:
    archive.open().deliver(humidity("h1", (20, 40), (21, 41)))
    assert [(row["quantity"], row["value"], row["unit"]) for row in archive.rows()] == [
        ("temperature", "20", "°C"),
        ("relative_humidity", "40", "%"),
        ("temperature", "21", "°C"),
        ("relative_humidity", "41", "%"),
    ]


@pytest.mark.parametrize("type", ["probeWireStatus", "ethernetStatus", "unknownType"])
def test_an_event_without_readings_gives_one_row_with_empty_values(type: str, archive: CsvArchive) -> None:
    archive.open().deliver(event("e1", type, {"state": "TWO_WIRE"}))
    (row,) = archive.rows()
    assert (row["event_id"], row["event_type"], row["time"]) == ("e1", type, "2026-03-14T11:59:00.500000Z")
    assert (row["quantity"], row["value"], row["unit"], row["text"]) == ("", "", "", "")


def test_a_state_is_a_number_with_its_name_as_text(archive: CsvArchive) -> None:
    archive.open().deliver(event("m1", "motion", {"state": "NO_MOTION_DETECTED"}))
    assert [(row["value"], row["text"]) for row in archive.rows()] == [("0", "NO_MOTION_DETECTED")]


@pytest.mark.parametrize(
    ("options", "header"),
    [
        ({"columns": ["value", "time"]}, "event_id,value,time"),
        ({"columns": ["value", "event_id"]}, "event_id,value"),
        ({"columns": []}, READINGS_HEADER),
        ({"label_columns": ["site", "a,b"]}, f'{READINGS_HEADER},label_site,"label_a,b"'),
        ({"columns": ["label_site", "value"], "label_columns": ["site"]}, "event_id,label_site,value"),
        ({"rows": "events", "columns": ["data"]}, "event_id,data"),
    ],
    ids=["ordered", "id moved to the front", "none: all", "labels", "one label chosen", "rows per event"],
)
def test_columns_are_in_the_configured_order_after_the_event_id(
    options: dict[str, Any], header: str, archive: CsvArchive
) -> None:
    archive.open(**options).deliver(event("e1"))
    assert archive.path.read_bytes().decode().splitlines()[0] == header


def test_labels_get_columns_of_their_own(archive: CsvArchive) -> None:
    archive.open(label_columns=["site", "floor"]).deliver(event("e1", labels={"site": "oslo", "other": "x"}))
    (row,) = archive.rows()
    assert (row["label_site"], row["label_floor"], json.loads(row["labels"])) == (
        "oslo",
        "",
        {"site": "oslo", "other": "x"},
    )


def test_a_file_begins_with_a_byte_order_mark_if_configured(archive: CsvArchive) -> None:
    archive.open(bom=True).deliver(event("e1", labels={"name": "Kjøl"}))
    archive.open(bom=True).deliver(event("e1"), event("e2"), attempt=2)
    assert archive.path.read_bytes().startswith(b"\xef\xbb\xbfevent_id,")
    assert archive.path.read_bytes().count(b"\xef\xbb\xbf") == 1
    assert archive.path.read_text("utf-8-sig").count("\n") == 3
    assert archive.names() == ["events.csv"]


@pytest.mark.parametrize("bom", [False, True])
def test_a_file_goes_on_as_it_was_begun(bom: bool, archive: CsvArchive) -> None:
    archive.open(bom=bom).deliver(event("e1"))
    begun = archive.path.read_bytes()
    archive.open(bom=not bom).deliver(event("e1"), event("e2"), attempt=2)
    assert archive.path.read_bytes().startswith(begun)
    assert archive.path.read_bytes().count(b"event_id") == 1
    assert archive.names() == ["events.csv"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"], ids=repr)
def test_cells_are_separated_by_the_configured_delimiter(delimiter: str, archive: CsvArchive) -> None:
    options = {"delimiter": delimiter, "label_columns": ["x"], "columns": ["value", "label_x"]}
    text = 'a,b;c\td"e\r\nf'
    archive.open(**options).deliver(temperature("t1", 4.5, labels={"x": text}), temperature("t2", 5.5))
    with archive.path.open("ab") as file:
        file.write(b"t3")
    archive.open(**options).deliver(temperature("t2", 5.5), temperature("t3", 6.5), attempt=2)
    assert archive.names() == ["events.csv", "events.csv.torn"]
    with archive.path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter=delimiter, strict=True))
    assert rows == [["event_id", "value", "label_x"], ["t1", "4.5", text], ["t2", "5.5", ""], ["t3", "6.5", ""]]


def test_with_another_delimiter_a_new_file_is_begun(archive: CsvArchive) -> None:
    archive.open().deliver(event("e1"))
    archive.open(delimiter=";").deliver(event("e1"), event("e2"), attempt=2)
    assert archive.names() == ["events-2.csv", "events.csv"]
    assert archive.ids() == ["e1"]
    assert (archive.folder / "events-2.csv").read_text().splitlines()[1].startswith("e2;")


@pytest.mark.parametrize(
    ("value", "written"), [(-18.5, "-18,5"), (4, "4"), (-1, "-1"), (1.5e300, "1,5e+300"), (1e-7, "1e-07")]
)
def test_numbers_have_the_configured_decimal_mark(value: float, written: str, archive: CsvArchive) -> None:
    labels = {"name": "1.5", "x": "-1.5"}
    options = {"decimal": ",", "delimiter": ";", "columns": ["value", "device_name", "label_x"]}
    archive.open(**options, label_columns=["x"]).deliver(temperature("t1", value, labels=labels))
    assert archive.path.read_text().splitlines()[1] == f"t1;{written};1.5;'-1.5"


@pytest.mark.parametrize(
    ("rows", "header"),
    [("readings", READINGS_HEADER.replace(",labels", "")), ("events", EVENTS_HEADER.replace(",labels", ""))],
)
def test_the_column_with_all_labels_can_be_left_out(rows: str, header: str, archive: CsvArchive) -> None:
    archive.open(rows=rows, labels=False, label_columns=["site"]).deliver(event("e1", labels={"site": "oslo"}))
    (row,) = archive.rows()
    assert ",".join(row) == f"{header},label_site"
    assert row["label_site"] == "oslo"


@pytest.mark.parametrize(
    ("zone", "occurred", "sampled", "received"),
    [
        ("UTC", "2026-03-14T11:59:00.500000Z", "2026-03-14T11:00:00.000000Z", "2026-03-14T12:00:00.000000Z"),
        (
            "Europe/Oslo",
            "2026-03-14T12:59:00.500000+01:00",
            "2026-03-14T12:00:00.000000+01:00",
            "2026-03-14T13:00:00.000000+01:00",
        ),
        (
            "Europe/London",
            "2026-03-14T11:59:00.500000+00:00",
            "2026-03-14T11:00:00.000000+00:00",
            "2026-03-14T12:00:00.000000+00:00",
        ),
    ],
)
@time_machine.travel(NOW, tick=False)
def test_times_are_in_the_configured_time_zone_with_its_offset(
    zone: str, occurred: str, sampled: str, received: str, archive: CsvArchive
) -> None:
    archive.open(timezone=zone).deliver(temperature("t1", 4), event("e1"))
    assert [row["time"] for row in archive.rows()] == [sampled, occurred]
    archive.open(timezone=zone, path="by event.csv", rows="events").deliver(event("e1"))
    assert [row["received_at"] for row in archive.rows("by event.csv")] == [received]


@pytest.mark.parametrize(
    ("zone", "day"), [("UTC", "2026-03-14"), ("Pacific/Auckland", "2026-03-15"), ("America/New_York", "2026-03-14")]
)
@time_machine.travel(NOW, tick=False)
def test_a_day_of_files_is_one_of_the_configured_time_zone(zone: str, day: str, archive: CsvArchive) -> None:
    options = {"path": "{date}.csv", "timezone": zone}
    archive.open(**options).deliver(event("e1"))
    assert archive.names() == [f"{day}.csv"]
    archive.open(**options).deliver(event("e1"), attempt=2)
    assert archive.ids(f"{day}.csv") == ["e1"]


@time_machine.travel(NOW, tick=False)
def test_an_event_is_found_in_the_file_of_another_time_zone(archive: CsvArchive) -> None:
    archive.open(path="{date}.csv", timezone="America/New_York").deliver(event("e1"))
    archive.open(path="{date}.csv", timezone="Pacific/Auckland").deliver(event("e1"), event("e2"), attempt=2)
    assert (archive.ids("2026-03-14.csv"), archive.ids("2026-03-15.csv")) == (["e1"], ["e2"])


@pytest.mark.parametrize("zone", ["Pacific/Auckland", "America/New_York"])
def test_a_time_that_no_calendar_of_the_time_zone_has_is_written_as_it_is(zone: str, archive: CsvArchive) -> None:
    first, last = "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"
    samples = [{"value": 4, "sampleTime": first}, {"value": 5, "sampleTime": last}]
    archive.open(timezone=zone).deliver(event("t1", "temperature", {"value": 4, "samples": samples}))
    assert [datetime.fromisoformat(row["time"]).tzinfo is not None for row in archive.rows()] == [True, True]


ALL_COLUMNS = re.escape(READINGS_HEADER.replace(",", ", "))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"columns": ["vlaue"]}, rf"no column 'vlaue'; there are: {ALL_COLUMNS}"),
        ({"columns": ["data"]}, rf"no column 'data'; there are: {ALL_COLUMNS}"),
        (
            {"columns": ["label_site"]},
            rf"no column 'label_site'; there are: {ALL_COLUMNS}",
        ),
        (
            {"columns": ["labels"], "labels": False},
            r"no column 'labels'; there are: .*, text",
        ),
        (
            {"decimal": ","},
            r"decimal and delimiter are both ','; set delimiter to ';'",
        ),
        ({"delimiter": "x"}, r"delimiter: give .*"),
        (
            {"timezone": "Europe/Olso"},
            r"timezone 'Europe/Olso' is not known; did you mean 'Europe/Oslo'\?",
        ),
        ({"timezone": "Europe"}, r"timezone 'Europe' is not known; .*"),
        ({"timezone": "/etc/passwd"}, r"timezone '/etc/passwd' is not known; .*"),
        ({"rows": "reading"}, r"rows: give \"readings\" or \"events\""),
        ({"colums": ["time"]}, r"no option 'colums' \(did you mean 'columns'\?\)"),
    ],
    ids=[
        "misspelt column",
        "column of rows per event",
        "label without a column",
        "labels left out",
        "decimal",
        "delimiter",
        "zone",
        "region",
        "path",
        "rows",
        "misspelt option",
    ],
)
def test_a_wrong_option_is_reported_and_no_file_is_created(
    options: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(PluginError, match=rf"^config\.toml \[sinks\.tested\]: {problem}$"):
        build_csv(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_wrong_options_are_all_reported_at_once(tmp_path: Path) -> None:
    wrong = {"timezone": "Oslo", "decimal": ",", "columns": ["device", "time", "vlaue"]}
    with pytest.raises(PluginError) as failed:
        build_csv(tmp_path, **wrong)
    assert str(failed.value).splitlines() == [
        "config.toml [sinks.tested]: timezone 'Oslo' is not known; did you mean 'Europe/Oslo'?",
        "config.toml [sinks.tested]: decimal and delimiter are both ','; set delimiter to ';'",
        f"config.toml [sinks.tested]: no column 'device'; there are: {READINGS_HEADER.replace(',', ', ')}",
        f"config.toml [sinks.tested]: no column 'vlaue'; there are: {READINGS_HEADER.replace(',', ', ')}",
    ]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"], ids=repr)
def test_text_that_looks_like_a_formula_is_marked_as_text(start: str, archive: CsvArchive) -> None:
    formula = f"{start}HYPERLINK(0)"
    labels = {"name": formula, "site": formula}
    archive.open(label_columns=["site"]).deliver(event("e1", formula, labels=labels, device=formula, project=formula))
    (row,) = archive.rows()
    marked = {row[column] for column in ("device_id", "device_name", "project_id", "event_type", "label_site")}
    assert marked == {f"'{formula}"}
    assert json.loads(row["labels"]) == labels


@pytest.mark.parametrize("delimiter", [",", ";", "\t"], ids=repr)
def test_a_spreadsheet_that_splits_rows_at_another_delimiter_finds_no_formula(
    delimiter: str, archive: CsvArchive
) -> None:
    """To which a quote that is not at the beginning of its cell means nothing."""
    starts = ("=", "+", "-", "@", '"=')
    labels = {
        f"{split!r}{start}": f"x{split}{start}1+1{split}y" for split in (",", ";", "\t", "\n") for start in starts
    }
    archive.open(delimiter=delimiter, label_columns=[*labels]).deliver(event("e1", labels=labels))
    written = archive.path.read_bytes().decode()
    for split in (",", ";", "\t"):
        cells = [cell.strip('"') for cell in re.split(rf"{split}|\r?\n", written.partition("\n")[2])]
        assert [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))] == []
    (row,) = csv.DictReader(written.splitlines(keepends=True), delimiter=delimiter)
    assert json.loads(row["labels"]) == labels


@pytest.mark.parametrize("value", [-18.5, -1, 0, 1e-7, 1.5e300, 2**60], ids=repr)
def test_numbers_are_written_as_numbers(value: float, archive: CsvArchive) -> None:
    archive.open().deliver(temperature("t1", value))
    assert [row["value"] for row in archive.rows()] == [repr(value)]


@pytest.mark.parametrize(
    "text",
    ['a "quoted" word', '"', "a\nb", "a\r\nb", "a\rb", "a\n", ",;\t", "", "Ænd 🌡 \u2028\x85", "a\x00b", "\ud800", "\\"],
    ids=ascii,
)
def test_pythons_csv_module_reads_any_text_back(text: str, archive: CsvArchive) -> None:
    archive.open(label_columns=["x"]).deliver(event("e1", labels={"x": text}), event("e2"))
    (row, other) = archive.rows()
    assert row["label_x"] == text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    assert other["event_id"] == "e2"


@given(st.lists(st.dictionaries(st.sampled_from(["name", "x"]), st.text(max_size=20)), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_repeated_events_are_found_whatever_their_labels_contain(labels: list[dict[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = CsvArchive(Path(folder)).open(label_columns=["x"])
        events = [event(f"e{number}", labels=given) for number, given in enumerate(labels)]
        archive.deliver(*events)
        archive.open(label_columns=["x"]).deliver(*events, attempt=2)
        archive.close()
        assert archive.ids() == [each.id for each in events]
        assert archive.names() == ["events.csv"]
