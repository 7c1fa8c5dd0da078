"""The csv sink on real files: whole rows, each event once each time it is owed, nothing lost when the disk is full."""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import time_machine
from conftest import ROOT, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from receiver import Event, Pause
from receiver.errors import PluginError
from receiver.plugins import Sink, build_sink, load_plugins
from receiver.settings import CommonOptions, JournalTable, ReceiverTable, Settings, SinkSettings

NOW = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)
READINGS = "event_id,time,device_id,device_name,project_id,event_type,quantity,value,unit,text,labels"
EVENTS = "event_id,time,device_id,device_name,project_id,event_type,received_at,labels,data"


def build(folder: Path, **options: Any) -> Sink:
    """The sink that `[sinks.archive]` with these options describes."""
    config = Settings(folder / "config.toml", ReceiverTable(), JournalTable(), (), 8000, 2, {}, set())
    table = SinkSettings("archive", CommonOptions(type="csv"), {"path": "events.csv", **options})
    return build_sink(load_plugins(config), config, table)


def opened(folder: Path, **options: Any) -> Sink:
    sink = build(folder, **options)
    sink.hook.open(name="archive", logger=logging.getLogger("sink.archive"))
    return sink


class Archive:
    """A folder with one csv sink at a time in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "events.csv"
        self._sink: Sink | None = None

    def open(self, **options: Any) -> Archive:
        self.close()
        self._sink = opened(self.folder, **options)
        return self

    def close(self) -> None:
        if self._sink is not None:
            self._sink.hook.close()
        self._sink = None

    def deliver(self, *events: Event, attempt: int = 1) -> None:
        assert self._sink is not None
        self._sink.hook.deliver_batch(events=events, attempts=[attempt] * len(events))

    def rows(self, name: str = "events.csv") -> list[dict[str, str]]:
        with (self.folder / name).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, strict=True))

    def ids(self, name: str = "events.csv") -> list[str]:
        return [row["event_id"] for row in self.rows(name)]

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.suffix != ".lock")


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    archive = Archive(tmp_path)
    yield archive
    archive.close()


def event(name: str, type: str = "touch", data: Any = None, labels: Any = None, **metadata: str) -> Event:
    body = {
        "event": {
            "eventId": name,
            "eventType": type,
            "targetName": "projects/oslo/devices/d1",
            "timestamp": "2026-03-14T11:59:00.5Z",
            "data": {type: {} if data is None else data},
        },
        "labels": labels,
        "metadata": metadata,
    }
    return Event.from_body(json.dumps(body).encode(), datetime.now(UTC))


def temperature(name: str, *values: float, labels: Any = None) -> Event:
    samples = [{"value": value, "sampleTime": f"2026-03-14T11:{n:02}:00Z"} for n, value in enumerate(values)]
    return event(name, "temperature", {"value": values[0], "samples": samples}, labels)


def test_one_row_a_reading_is_the_default(archive: Archive) -> None:
    archive.open().deliver(temperature("t1", -18.5, labels={"name": "Fridge", "site": "oslo"}))
    assert archive.path.read_bytes().decode() == (
        f"{READINGS}\r\n"
        "t1,2026-03-14T11:00:00.000000Z,d1,Fridge,oslo,temperature,temperature,-18.5,°C,,"
        '"{""name"": ""Fridge"", ""site"": ""oslo""}"\r\n'
    )


@time_machine.travel(NOW, tick=False)
def test_one_row_an_event_on_request(archive: Archive) -> None:
    archive.open(rows="events").deliver(temperature("t1", 4, 5))
    (row,) = archive.rows()
    assert ",".join(row) == EVENTS
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


def test_thirty_samples_give_thirty_rows(archive: Archive) -> None:
    archive.open().deliver(temperature("t1", *range(30)))
    assert [(row["event_id"], row["value"]) for row in archive.rows()] == [("t1", str(n)) for n in range(30)]
    assert len({row["time"] for row in archive.rows()}) == 30


def test_humidity_gives_two_rows_a_sample(archive: Archive) -> None:
    samples = [
        {"temperature": 20 + n, "relativeHumidity": 40 + n, "sampleTime": f"2026-03-14T11:0{n}:00Z"} for n in (0, 1)
    ]
    archive.open().deliver(event("h1", "humidity", {**samples[0], "samples": samples}))
    assert [(row["quantity"], row["value"], row["unit"]) for row in archive.rows()] == [
        ("temperature", "20", "°C"),
        ("relative_humidity", "40", "%"),
        ("temperature", "21", "°C"),
        ("relative_humidity", "41", "%"),
    ]


@pytest.mark.parametrize("type", ["probeWireStatus", "ethernetStatus", "neverHeardOf"])
def test_an_event_without_readings_gives_one_row_with_empty_values(type: str, archive: Archive) -> None:
    archive.open().deliver(event("e1", type, {"state": "TWO_WIRE"}))
    (row,) = archive.rows()
    assert (row["event_id"], row["event_type"], row["time"]) == ("e1", type, "2026-03-14T11:59:00.500000Z")
    assert (row["quantity"], row["value"], row["unit"], row["text"]) == ("", "", "", "")


def test_a_state_is_a_number_with_its_name_as_text(archive: Archive) -> None:
    archive.open().deliver(event("m1", "motion", {"state": "NO_MOTION_DETECTED"}))
    assert [(row["value"], row["text"]) for row in archive.rows()] == [("0", "NO_MOTION_DETECTED")]


@pytest.mark.parametrize(
    ("options", "header"),
    [
        ({"columns": ["value", "time"]}, "event_id,value,time"),
        ({"columns": ["value", "event_id"]}, "event_id,value"),
        ({"columns": []}, "event_id"),
        ({"label_columns": ["site", "a,b"]}, f'{READINGS},label_site,"label_a,b"'),
        ({"columns": ["label_site", "value"], "label_columns": ["site"]}, "event_id,label_site,value"),
        ({"rows": "events", "columns": ["data"]}, "event_id,data"),
    ],
    ids=["ordered", "id first", "none", "labels", "label chosen", "events"],
)
def test_columns_are_chosen_and_ordered_and_the_id_comes_first(
    options: dict[str, Any], header: str, archive: Archive
) -> None:
    archive.open(**options).deliver(event("e1"))
    assert archive.path.read_bytes().decode().splitlines()[0] == header


def test_labels_get_columns_of_their_own(archive: Archive) -> None:
    archive.open(label_columns=["site", "floor"]).deliver(event("e1", labels={"site": "oslo", "other": "x"}))
    (row,) = archive.rows()
    assert (row["label_site"], row["label_floor"], json.loads(row["labels"])) == (
        "oslo",
        "",
        {"site": "oslo", "other": "x"},
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"columns": ["vlaue"]}, "no column 'vlaue'; there are: event_id, time, "),
        ({"columns": ["data"]}, "no column 'data'; there are: event_id, time, "),
        ({"columns": ["label_site"]}, "no column 'label_site'; there are: event_id, time, "),
        ({"rows": "reading"}, "rows: Input should be 'readings' or 'events'"),
        ({"colums": ["time"]}, "no option 'colums' (did you mean 'columns'?)"),
    ],
    ids=["misspelt", "of the other layout", "label without a column", "layout", "option"],
)
def test_a_wrong_option_is_a_clear_error(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError) as error:
        build(tmp_path, **options)
    assert str(error.value).startswith("config.toml [sinks.archive]")
    assert says in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"], ids=repr)
def test_text_that_a_spreadsheet_takes_for_a_formula_is_marked_as_text(start: str, archive: Archive) -> None:
    evil = f"{start}HYPERLINK(0)"
    archive.open(label_columns=["site"]).deliver(
        event("e1", evil, labels={"name": evil, "site": evil}, deviceId=evil, projectId=evil)
    )
    (row,) = archive.rows()
    for column in ("device_id", "device_name", "project_id", "event_type", "label_site"):
        assert row[column] == f"'{evil}", column
    assert json.loads(row["labels"]) == {"name": evil, "site": evil}


@pytest.mark.parametrize("value", [-18.5, -1, 0, 1e-7, 1.5e300, 2**60], ids=repr)
def test_numbers_stay_numbers(value: float, archive: Archive) -> None:
    archive.open().deliver(temperature("t1", value))
    assert [row["value"] for row in archive.rows()] == [repr(value)]


@pytest.mark.parametrize(
    "text",
    ['a "quoted" word', '"', "a\nb", "a\r\nb", "a\rb", "a\n", ",;\t", "", "Ænd 🌡 \u2028\x85", "a\x00b", "\ud800", "\\"],
    ids=ascii,
)
def test_any_text_comes_back_through_pythons_csv(text: str, archive: Archive) -> None:
    archive.open(label_columns=["x"]).deliver(event("e1", labels={"x": text}), event("e2"))
    (row, other) = archive.rows()
    assert row["label_x"] == text.encode("utf-8", "replace").decode()
    assert other["event_id"] == "e2"


@given(st.lists(st.dictionaries(st.sampled_from(["name", "x"]), st.text(max_size=20)), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_any_labels_keep_every_event_findable(labels: list[dict[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(Path(folder)).open(label_columns=["x"])
        events = [event(f"e{n}", labels=given) for n, given in enumerate(labels)]
        archive.deliver(*events)
        archive.open(label_columns=["x"]).deliver(*events, attempt=2)
        archive.close()
        assert archive.ids() == [known.id for known in events]
        assert archive.names() == ["events.csv"]


def test_a_file_goes_on_under_its_header_after_a_restart(archive: Archive) -> None:
    archive.open().deliver(event("e1"))
    archive.open().deliver(event("e2"))
    assert archive.ids() == ["e1", "e2"]
    assert archive.names() == ["events.csv"]


def test_other_columns_begin_a_file_beside_it_which_is_used_again(archive: Archive) -> None:
    archive.open().deliver(event("e1"))
    first = archive.path.read_bytes()
    archive.open(columns=["time"]).deliver(event("e2"))
    archive.open(columns=["value"]).deliver(event("e3"))
    archive.open(columns=["time"]).deliver(event("e4"))
    assert archive.path.read_bytes() == first
    assert archive.names() == ["events-2.csv", "events-3.csv", "events.csv"]
    assert (archive.ids("events-2.csv"), archive.ids("events-3.csv")) == (["e2", "e4"], ["e3"])
    archive.open().deliver(event("e5"))
    assert archive.ids() == ["e1", "e5"]


@pytest.mark.parametrize("content", [b"a,b\r\n1,2\r\n", b"\x89PNG", b"\n", READINGS.encode() + b"\n"], ids=ascii)
def test_a_file_of_somebody_else_is_left_as_it_is(content: bytes, archive: Archive) -> None:
    archive.path.write_bytes(content)
    archive.open().deliver(event("e1"))
    assert archive.path.read_bytes() == content
    assert archive.ids("events-2.csv") == ["e1"]


MULTI_LINE = 'first\r\nlast,"quoted"\r\n\r\n'


@pytest.mark.parametrize(
    "last",
    [
        pytest.param(lambda: event("e3", labels={"name": MULTI_LINE}), id="cell of several lines"),
        pytest.param(lambda: temperature("e3", 1, 2, 3), id="event of several rows"),
    ],
)
def test_a_last_record_torn_at_any_byte_loses_and_doubles_nothing(
    last: Callable[[], Event], tmp_path: Path, archive: Archive
) -> None:
    events = [temperature("e1", 7, 8), event("e2", labels={"name": "a\nb"})]
    archive.open().deliver(*events)
    before = len(archive.path.read_bytes())
    archive.deliver(last())
    whole, wanted = archive.path.read_bytes(), archive.rows()
    for length in range(before, len(whole) + 1):
        (tmp_path / str(length)).mkdir()
        crashed = Archive(tmp_path / str(length))
        crashed.path.write_bytes(whole[:length])
        crashed.open().deliver(*events, last(), attempt=2)
        crashed.close()
        assert crashed.rows() == wanted, whole[before:length]
        torn = crashed.folder / "events.csv.torn"
        moved = torn.read_bytes().removesuffix(b"\n") if torn.exists() else b""
        assert moved == whole[length - len(moved) : length]


def test_a_torn_last_line_is_moved_aside_and_reported(archive: Archive, caplog: pytest.LogCaptureFixture) -> None:
    archive.open().deliver(event("e1"))
    whole = archive.path.read_bytes()
    archive.path.write_bytes(whole + b'e2,2026-03,"half a lab')
    archive.open().deliver(event("e3"))
    assert archive.ids() == ["e1", "e3"]
    assert (archive.folder / "events.csv.torn").read_bytes() == b'e2,2026-03,"half a lab\n'
    assert [record.name for record in caplog.records] == ["sink.archive"]
    assert "events.csv.torn" in caplog.text


def test_a_header_torn_at_any_byte_is_begun_anew(tmp_path: Path) -> None:
    header = f"{READINGS}\r\n".encode()
    for length in range(len(header)):
        (tmp_path / str(length)).mkdir()
        archive = Archive(tmp_path / str(length))
        archive.path.write_bytes(header[:length])
        archive.open().deliver(event("e1"))
        archive.close()
        assert archive.path.read_bytes().startswith(header)
        assert archive.ids() == ["e1"]


def test_a_renamed_file_is_noticed_and_a_new_one_begun(archive: Archive) -> None:
    archive.open().deliver(event("e1"))
    archive.path.rename(archive.folder / "rotated")
    archive.deliver(event("e2"))
    assert (archive.ids("rotated"), archive.ids()) == (["e1"], ["e2"])


def test_a_removed_folder_is_noticed_and_made_again(archive: Archive) -> None:
    archive.open(path="deep/events.csv").deliver(event("e1"))
    (archive.folder / "deep" / "events.csv").unlink()
    archive.deliver(event("e2"))
    assert archive.ids("deep/events.csv") == ["e2"]


def test_a_file_replaced_by_another_is_noticed(archive: Archive) -> None:
    archive.open().deliver(event("e1"))
    archive.path.rename(archive.folder / "rotated")
    archive.path.write_bytes(b"not,ours\r\n")
    archive.deliver(event("e2"))
    assert archive.path.read_bytes() == b"not,ours\r\n"
    assert archive.ids("events-2.csv") == ["e2"]


def test_a_file_emptied_in_place_gets_its_header_again(archive: Archive) -> None:
    archive.open().deliver(event("e1"))
    os.truncate(archive.path, 0)
    archive.deliver(event("e2"))
    assert archive.path.read_bytes().startswith(READINGS.encode())
    assert archive.ids() == ["e2"]


def test_a_date_in_the_path_starts_a_new_file_each_day(archive: Archive) -> None:
    archive.open(path="{date}/events-{date}.csv")
    for hours in (0, 11.99, 12, 36):
        with time_machine.travel(NOW + timedelta(hours=hours), tick=False):
            archive.deliver(event(f"e{hours:g}".replace(".", "-")))
    assert archive.ids("2026-03-14/events-2026-03-14.csv") == ["e0", "e11-99"]
    assert archive.ids("2026-03-15/events-2026-03-15.csv") == ["e12"]
    assert archive.ids("2026-03-16/events-2026-03-16.csv") == ["e36"]


HOLD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_csv_sink import event, opened
sink = opened(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def test_a_second_writer_is_refused_and_told_who_the_first_is(archive: Archive) -> None:
    command = [sys.executable, "-c", HOLD, str(archive.folder), str(ROOT / "tests")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"open\n"
        with pytest.raises(Pause) as refusal:
            archive.open()
        assert f"process {first.pid} on {socket.gethostname()}" in str(refusal.value)
        assert not archive.path.exists()
        first.kill()
    archive.open().deliver(event("e1"))
    assert archive.ids() == ["e1"]


def test_an_event_that_a_crash_cut_short_in_a_file_with_other_columns_is_written_whole_in_the_new_one(
    archive: Archive,
) -> None:
    whole, cut = temperature("whole", 1, 2), temperature("cut", *range(5))
    archive.open().deliver(whole, cut)
    lines = archive.path.read_bytes().splitlines(keepends=True)
    archive.path.write_bytes(b"".join(lines[:6]) + lines[6][:10])
    assert archive.ids() == ["whole"] * 2 + ["cut"] * 3 + ["cut"]
    archive.open(columns=["time", "value"]).deliver(whole, cut, attempt=2)
    assert archive.names() == ["events-2.csv", "events.csv"]
    assert [row["value"] for row in archive.rows("events-2.csv")] == ["0", "1", "2", "3", "4"]
    archive.open(columns=["time", "value"]).deliver(whole, cut, attempt=3)
    assert archive.ids("events-2.csv") == ["cut"] * 5


def test_a_path_that_is_a_folder_is_named_and_nothing_is_left_beside_it(archive: Archive) -> None:
    archive.path.mkdir()
    with pytest.raises(IsADirectoryError, match=r"events\.csv is a folder; name a file in it"):
        archive.open()
    assert list(archive.folder.iterdir()) == [archive.path]


def test_two_sinks_of_one_process_do_not_write_the_same_file(archive: Archive) -> None:
    archive.open()
    with pytest.raises(Pause, match="is being written by another sink of this receiver; give each a path of its own"):
        opened(archive.folder)


FULL_DISK = """
import json, os, resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_csv_sink import Archive, event, temperature

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
archive = Archive(Path(sys.argv[1])).open()
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
tell = lambda **found: print(json.dumps(found), flush=True)

def size():
    return sum(path.stat().st_size for path in archive.folder.glob("*.csv"))

def room_for(extra, *events, attempt=1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size() + extra, unlimited[1]))
    failures = []
    for _ in range(20):
        try:
            archive.deliver(*events, attempt=attempt)
        except OSError as error:
            failures.append(error.errno)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    return failures
"""
FULL_UNDER_ROWS = """
archive.deliver(event("e1"))
whole = archive.path.read_bytes()
descriptors = len(os.listdir("/proc/self/fd"))
tell(errors=room_for(100, temperature("e2", 1, 2, 3)), untouched=archive.path.read_bytes() == whole)
archive.deliver(temperature("e2", 1, 2, 3), attempt=2)
tell(leaked=len(os.listdir("/proc/self/fd")) - descriptors, ids=archive.ids())
"""
FULL_UNDER_HEADER = """
descriptors = len(os.listdir("/proc/self/fd"))
tell(errors=room_for(10, event("e1")), left=size())
tell(leaked=len(os.listdir("/proc/self/fd")) - descriptors)
archive.deliver(event("e1"), attempt=2)
tell(ids=archive.ids())
"""


def on_a_full_disk(folder: Path, scene: str) -> dict[str, Any]:
    """What a process of its own, in which files cannot grow, has to tell."""
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK + scene, str(folder), str(ROOT / "tests")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = {}
    for line in run.stdout.splitlines():
        found |= json.loads(line)
    return found


def test_a_full_disk_leaves_the_file_as_it_was_and_it_works_again_after(tmp_path: Path) -> None:
    assert on_a_full_disk(tmp_path, FULL_UNDER_ROWS) == {
        "errors": [errno.EFBIG] * 20,
        "untouched": True,
        "leaked": 0,
        "ids": ["e1", "e2", "e2", "e2"],
    }


def test_a_new_file_that_finds_the_disk_full_begins_when_there_is_room(tmp_path: Path) -> None:
    assert on_a_full_disk(tmp_path, FULL_UNDER_HEADER) == {
        "errors": [errno.EFBIG] * 20,
        "left": 0,
        "leaked": 0,
        "ids": ["e1"],
    }


def test_a_day_whose_file_cannot_be_begun_harms_nothing_and_is_begun_later(archive: Archive) -> None:
    archive.open(path="{date}/events.csv")
    with time_machine.travel(NOW, tick=False):
        archive.deliver(event("e1"))
    in_the_way = archive.folder / "2026-03-15"
    in_the_way.touch()
    with time_machine.travel(NOW + timedelta(days=1), tick=False):
        with pytest.raises(OSError, match="2026-03-15"):
            archive.deliver(event("e2"))
        with (archive.folder / "of somebody else").open("wb", buffering=0) as other:
            with pytest.raises(OSError, match="2026-03-15"):
                archive.deliver(event("e2"), attempt=2)
            assert other.write(b"still open") == 10
        in_the_way.unlink()
        archive.deliver(event("e2"), attempt=3)
    assert (archive.ids("2026-03-14/events.csv"), archive.ids("2026-03-15/events.csv")) == (["e1"], ["e2"])


def test_an_event_delivered_again_is_not_written_again(archive: Archive) -> None:
    archive.open().deliver(event("e1"), temperature("e2", *range(30)))
    archive.deliver(event("e1"), temperature("e2", *range(30)), event("e3"), attempt=2)
    assert archive.ids() == ["e1", *["e2"] * 30, "e3"]


def test_a_batch_mixes_first_and_later_attempts(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    sink.hook.deliver_batch(events=[event("e1"), event("e2")], attempts=[1, 1])
    sink.hook.deliver_batch(events=[event("e1"), event("e2"), event("e3")], attempts=[2, 1, 3])
    sink.hook.close()
    assert Archive(tmp_path).ids() == ["e1", "e2", "e2", "e3"]


def test_the_first_attempt_of_a_replay_writes_again(archive: Archive) -> None:
    archive.open().deliver(event("e1"))
    archive.deliver(event("e1"))
    assert archive.ids() == ["e1", "e1"]


def test_a_replay_whose_first_attempt_fails_is_written_by_the_second(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.open().deliver(event("e1"))
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", refuse)
        with pytest.raises(OSError, match="No space left"):
            archive.deliver(event("e1"))
    archive.deliver(event("e1"), attempt=2)
    assert archive.ids() == ["e1", "e1"]


def refuse(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("written", "asked"), [("abc", "abcd"), ("abcd", "abc"), ("abc-", "abc"), ("ABC", "abc")])
def test_an_id_is_not_mistaken_for_one_that_looks_like_it(written: str, asked: str, archive: Archive) -> None:
    archive.open().deliver(event(written))
    archive.deliver(event(asked), attempt=2)
    assert archive.ids() == [written, asked]


@pytest.mark.parametrize("label", ["x\r\ne2,", "e2,e2\ne2,e2\r\ne2,x", '"\r\ne2,"', 'x"\r\ne2,\r\n"', "e2"], ids=ascii)
def test_an_id_inside_a_label_is_not_taken_for_a_row(label: str, archive: Archive) -> None:
    archive.open(columns=["device_name", "labels"]).deliver(event("e1", labels={"name": label}))
    archive.deliver(event("e2"), attempt=2)
    assert archive.ids() == ["e1", "e2"]


def test_yesterdays_file_is_looked_into_as_well(archive: Archive) -> None:
    archive.open(path="{date}.csv")
    with time_machine.travel(NOW, tick=False):
        late = event("e1")
        archive.deliver(late)
    with time_machine.travel(NOW + timedelta(days=2), tick=False):
        archive.deliver(late, event("e2"), attempt=2)
    assert (archive.ids("2026-03-14.csv"), archive.ids("2026-03-16.csv")) == (["e1"], ["e2"])


def test_files_beside_it_are_looked_into_as_well(archive: Archive) -> None:
    archive.open().deliver(event("e1"))
    archive.open(columns=["time"]).deliver(event("e2"))
    archive.open(columns=["value"]).deliver(event("e1"), event("e2"), event("e3"), attempt=2)
    assert (archive.ids(), archive.ids("events-2.csv"), archive.ids("events-3.csv")) == (["e1"], ["e2"], ["e3"])


def test_the_file_in_use_is_looked_into_when_the_one_before_it_was_moved_away(archive: Archive) -> None:
    archive.open().deliver(event("e1"))
    archive.open(columns=["time"]).deliver(event("e2"))
    archive.path.rename(archive.folder / "old")
    archive.deliver(event("e2"), attempt=2)
    assert archive.ids("events-2.csv") == ["e2"]


def test_an_event_twice_in_one_batch_is_written_once(archive: Archive) -> None:
    archive.open().deliver(event("e1"), event("e2"), event("e1"))
    assert archive.ids() == ["e1", "e2"]


def test_two_thousand_events_in_four_batches_are_all_there(archive: Archive) -> None:
    events = [temperature(f"e{n}", n) for n in range(2000)]
    archive.open()
    for start in range(0, 2000, 500):
        archive.deliver(*events[start : start + 500])
    assert [(row["event_id"], row["value"]) for row in archive.rows()] == [(f"e{n}", str(n)) for n in range(2000)]


def test_a_batch_is_one_write_and_on_the_disk_before_it_counts(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.open().deliver(event("e1"))
    happened: list[tuple[str, int]] = []
    write, flush = os.write, os.fdatasync

    def recorded_write(descriptor: int, data: Any) -> int:
        happened.append(("write", len(data)))
        return write(descriptor, data)

    def recorded_flush(descriptor: int) -> None:
        happened.append(("flush", os.fstat(descriptor).st_size))
        flush(descriptor)

    before = archive.path.stat().st_size
    monkeypatch.setattr(os, "write", recorded_write)
    monkeypatch.setattr(os, "fdatasync", recorded_flush)
    archive.deliver(*[temperature(f"e{n}", *range(30)) for n in range(2, 50)])
    after = archive.path.stat().st_size
    assert happened == [("write", after - before), ("flush", after)]


def test_short_writes_still_make_whole_rows(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    archive.open().deliver(event("e1"), temperature("e2", 1, 2))
    assert archive.ids() == ["e1", "e2", "e2"]


@pytest.mark.parametrize("fails", ["write", "fdatasync"])
def test_what_did_not_reach_the_disk_is_cut_off_again(
    fails: str, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.open().deliver(event("e1"))
    whole = archive.path.read_bytes()
    write = os.write
    calls: list[int] = []

    def half_then_full(descriptor: int, data: Any) -> int:
        calls.append(descriptor)
        if len(calls) > 1:
            refuse(descriptor)
        return write(descriptor, data[: len(data) // 2])

    with monkeypatch.context() as broken:
        broken.setattr(os, fails, half_then_full if fails == "write" else refuse)
        with pytest.raises(OSError, match="No space left"):
            archive.deliver(event("e2"))
    assert archive.path.read_bytes() == whole
    archive.deliver(event("e2"), attempt=2)
    assert archive.ids() == ["e1", "e2"]


def test_a_file_that_cannot_be_cut_back_gets_no_row_glued_to_the_torn_one(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.open().deliver(event("e1"))
    write = os.write
    with monkeypatch.context() as broken:
        broken.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:10]) and refuse(descriptor))
        broken.setattr(os, "ftruncate", lambda descriptor, size: refuse(descriptor))
        with pytest.raises(OSError, match="No space left"):
            archive.deliver(event("e2"))
    archive.deliver(event("e2"), attempt=2)
    assert archive.ids() == ["e1", "e2"]


def at_once(calls: Sequence[Callable[[], None]]) -> None:
    """Make all calls, each in a thread, beginning together; raises what one of them raises."""
    together = threading.Barrier(len(calls))

    def call(action: Callable[[], None]) -> None:
        together.wait(10)
        action()

    with ThreadPoolExecutor(len(calls)) as threads:
        for future in [threads.submit(call, action) for action in calls]:
            future.result(20)


def test_several_threads_may_write_at_once(archive: Archive) -> None:
    archive.open(path="{date}.csv")
    for day in range(20):
        with time_machine.travel(NOW + timedelta(days=day), tick=False):
            events = [temperature(f"d{day}n{n}", *range(5)) for n in range(8)]
            at_once([partial(archive.deliver, one) for one in events])
            written = archive.ids(f"{(NOW + timedelta(days=day)).date()}.csv")
            assert sorted(written) == sorted(one.id for one in events for _ in range(5))


def test_a_failed_write_cuts_off_no_row_of_another_thread(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.open().deliver(event("e0"))
    other_wrote, flush = threading.Event(), os.fdatasync
    first = threading.Lock()

    def fail_first(descriptor: int) -> None:
        if first.acquire(blocking=False):
            other_wrote.wait(1)
            refuse(descriptor)
        flush(descriptor)

    monkeypatch.setattr(os, "fdatasync", fail_first)
    with ThreadPoolExecutor(2) as threads:
        failing = threads.submit(archive.deliver, event("e1"))
        wait_until(first.locked)
        working = threads.submit(archive.deliver, event("e2"))
        working.add_done_callback(lambda _: other_wrote.set())
        assert isinstance(failing.exception(20), OSError)
        assert working.exception(20) is None
    assert archive.ids() == ["e0", "e2"]
