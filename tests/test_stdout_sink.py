"""The stdout sink: one event, one line, whatever is in it and whoever writes beside it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT

from receiver import Event
from receiver.errors import PluginError
from receiver.plugins import BUILT_IN, Plugins, Sink, _load_file, _offered, build_sink
from receiver.settings import CommonOptions, JournalTable, ReceiverTable, Settings, SinkSettings

RECEIVED = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)
SOURCE = BUILT_IN / "stdout.py"


@pytest.fixture(scope="module")
def plugin() -> ModuleType:
    return _load_file(SOURCE)


def build(plugin: ModuleType, **options: Any) -> Sink:
    """The sink that `[sinks.console]` with these options describes."""
    config = Settings(Path("config.toml"), ReceiverTable(), JournalTable(), (), 8000, 2, {}, set())
    table = SinkSettings("console", CommonOptions(type="stdout"), options)
    return build_sink(Plugins(_offered(str(SOURCE), plugin)[0]), config, table)


def body(name: str, data: str = '{"value":21.5}', labels: Any = None, type: str = "temperature") -> bytes:
    event = (
        f'{{"eventId":"{name}","eventType":{json.dumps(type)},"targetName":"projects/p1/devices/d1",'
        f'"timestamp":"2026-03-14T11:59:00.5Z","data":{{{json.dumps(type)}:{data}}}}}'
    )
    return f'{{"event":{event},"labels":{json.dumps(labels)}}}'.encode()


def event(name: str, data: str = '{"value":21.5}', labels: Any = None, type: str = "temperature") -> Event:
    return Event.from_body(body(name, data, labels, type), RECEIVED)


DELIVER = """
import sys
sys.path.insert(0, sys.argv[1])
from test_stdout_sink import RECEIVED, SOURCE, Event, _load_file, build
sink = build(_load_file(SOURCE), **({"format": sys.argv[2]} if len(sys.argv) > 2 else {}))
bodies = [bytes.fromhex(line) for line in sys.stdin]
events = [Event.from_body(body, RECEIVED) for body in bodies]
try:
    sink.hook.deliver_batch(events=events, attempts=[1] * len(events))
except OSError as error:
    sys.exit(f"fault: {type(error).__name__}")
"""


def printed(*bodies: bytes, format: str | None = None) -> bytes:
    """What a process whose standard output is a pipe prints for these events."""
    run = subprocess.run(
        [sys.executable, "-c", DELIVER, str(ROOT / "tests"), *([format] if format else [])],
        input="\n".join(one.hex() for one in bodies).encode(),
        capture_output=True,
        cwd=ROOT,
        timeout=60,
    )
    assert (run.returncode, run.stderr) == (0, b"")
    return run.stdout


def test_json_is_the_default_and_an_object_a_line() -> None:
    lines = printed(body("e1", labels={"name": "Fridge"}), body("e2", data="null")).decode().splitlines(keepends=True)
    assert lines == [
        '{"event_id":"e1","event_type":"temperature","time":"2026-03-14T11:59:00.500000Z","device_id":"d1",'
        '"project_id":"p1","labels":{"name":"Fridge"},"data":{"value":21.5}}\n',
        '{"event_id":"e2","event_type":"temperature","time":"2026-03-14T11:59:00.500000Z","device_id":"d1",'
        '"project_id":"p1","labels":{},"data":{}}\n',
    ]


def test_text_is_a_line_for_people() -> None:
    humidity = '{"temperature":-18.5,"relativeHumidity":0}'
    lines = printed(
        body("e1", labels={"name": "Fridge"}),
        body("e2", type="motion", data='{"state":"NO_MOTION_DETECTED"}'),
        body("e3", type="humidity", data=humidity),
        body("e4", type="unheardOf"),
        format="text",
    )
    assert lines.decode().splitlines() == [
        "2026-03-14T11:59:00+00:00 temperature Fridge temperature=21.5°C",
        "2026-03-14T11:59:00+00:00 motion d1 motion=NO_MOTION_DETECTED",
        "2026-03-14T11:59:00+00:00 humidity d1 relative_humidity=0% temperature=-18.5°C",
        "2026-03-14T11:59:00+00:00 unheardOf d1",
    ]


def test_text_shows_the_newest_of_several_samples(plugin: ModuleType) -> None:
    samples = '{"samples":[{"value":3},{"value":2},{"value":1}]}'
    assert plugin.text_line(event("e1", samples)).endswith("temperature=3°C")


def test_long_lines_come_whole_through_a_pipe() -> None:
    long = {"name": "x" * 200_000}
    lines = printed(*[body(f"e{n}", labels=long) for n in range(5)]).splitlines()
    assert [(json.loads(line)["event_id"], json.loads(line)["labels"]) for line in lines] == [
        (f"e{n}", long) for n in range(5)
    ]


def test_a_closed_pipe_is_a_fault_and_no_crash() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    run = subprocess.run(
        [sys.executable, "-c", DELIVER, str(ROOT / "tests")],
        input=body("e1").hex().encode(),
        stdout=writing,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        timeout=60,
    )
    os.close(writing)
    assert (run.returncode, run.stderr) == (1, b"fault: BrokenPipeError\n")


FORGERY = "x\n2026-03-14T11:59:00+00:00 temperature forged temperature=99°C"


@pytest.mark.parametrize(
    "text",
    [
        FORGERY,
        FORGERY.replace("\n", "\r\n"),
        "\x1b[2J\x1b]0;title\x07",
        "\x00\x85\u2028\u2029\x0b\x0c\x1c",
        "\u202eabc",
    ],
    ids=["line feed", "carriage return", "terminal escapes", "other line ends", "right to left"],
)
@pytest.mark.parametrize("place", ["name", "type"])
def test_text_from_outside_forges_no_line_and_moves_no_cursor(place: str, text: str, plugin: ModuleType) -> None:
    evil = event("e1", labels={"name": text}) if place == "name" else event("e1", type=text)
    for line in (plugin.text_line(evil), plugin.json_line(evil)):
        assert all(character.isprintable() for character in line)
        assert len(line.splitlines()) == 1
    assert plugin.text_line(evil).startswith("2026-03-14T11:59:00+00:00 ")


@pytest.mark.parametrize("format", ["json", "text"])
def test_a_lone_surrogate_is_printed_as_something_that_is_utf8(format: str) -> None:
    lines = printed(body("e1", labels={"name": "a\ud800b"}), body("e2"), format=format)
    assert len(lines.decode("utf-8").splitlines()) == 2


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_a_number_that_json_does_not_know_makes_no_invalid_line(number: str, plugin: ModuleType) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    line = plugin.json_line(event("e1", f'{{"value":{number},"deep":[{{"x":{number}}}]}}'))
    assert json.loads(line, parse_constant=refuse)["event_id"] == "e1"


class Descriptor:
    """Standard output as a pipe; everything that is written to it is read by a thread of its own."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()
        self._read = bytearray()
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    def _drain(self) -> None:
        while data := os.read(self._reading, 65536):
            self._read += data

    def lines(self) -> list[bytes]:
        """Close it, and give everything that was written."""
        os.close(self.writing)
        self._reader.join(20)
        os.close(self._reading)
        return bytes(self._read).splitlines()


def test_each_line_is_one_write(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, bytes]] = []

    def write(descriptor: int, data: bytes) -> int:
        written.append((descriptor, bytes(data)))
        return len(data)

    sink = build(plugin)
    events = [event("e1"), event("e2", labels={"name": "y" * 10_000})]
    with monkeypatch.context() as watched:
        watched.setattr(os, "write", write)
        sink.hook.deliver_batch(events=events, attempts=[1, 1])
    assert written == [(1, f"{plugin.json_line(one)}\n".encode()) for one in events]


def test_short_writes_still_make_whole_lines(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Descriptor()
    write = os.write
    sink = build(plugin)
    with monkeypatch.context() as slow:
        slow.setattr(plugin, "STDOUT", out.writing)
        slow.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:9]))
        sink.hook.deliver_batch(events=[event("e1"), event("e2")], attempts=[1, 1])
    assert [json.loads(line)["event_id"] for line in out.lines()] == ["e1", "e2"]


@pytest.mark.parametrize("sinks", [1, 8], ids=["threads of one sink", "several sinks"])
def test_lines_of_writers_at_the_same_time_do_not_mix(
    sinks: int, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Descriptor()
    monkeypatch.setattr(plugin, "STDOUT", out.writing)
    built = [build(plugin) for _ in range(sinks)]
    together = threading.Barrier(8)
    events = [
        [event(f"w{writer}n{n}", labels={"name": str(writer) * 100_000}) for n in range(10)] for writer in range(8)
    ]
    expected = {plugin.json_line(one).encode() for own in events for one in own}

    def deliver(writer: int) -> None:
        together.wait(10)
        for one in events[writer]:
            built[writer % sinks].hook.deliver_batch(events=[one], attempts=[1])

    with ThreadPoolExecutor(8) as threads:
        for future in [threads.submit(deliver, writer) for writer in range(8)]:
            future.result(30)
    lines = out.lines()
    assert (len(lines), len(expected.intersection(lines))) == (80, 80)


def breaks_off(write: Callable[[int, bytes], int]) -> Callable[[int, bytes], int]:
    """A write that takes some bytes, then finds the disk full."""
    calls: list[int] = []

    def half(descriptor: int, data: bytes) -> int:
        calls.append(descriptor)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:20])

    return half


def test_an_event_after_a_write_that_broke_off_has_a_line_of_its_own(
    plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Descriptor()
    monkeypatch.setattr(plugin, "STDOUT", out.writing)
    sink = build(plugin)
    with monkeypatch.context() as full:
        full.setattr(os, "write", breaks_off(os.write))
        with pytest.raises(OSError, match="No space left"):
            sink.hook.deliver_batch(events=[event("e1")], attempts=[1])
    sink.hook.deliver_batch(events=[event("e1")], attempts=[2])
    sink.hook.deliver_batch(events=[event("e2")], attempts=[1])
    _, *lines = out.lines()
    assert [json.loads(line)["event_id"] for line in lines] == ["e1", "e2"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"format": "xml"}, "format: Input should be 'json' or 'text'"),
        ({"formt": "text"}, "no option 'formt' (did you mean 'format'?)"),
    ],
    ids=["value", "option"],
)
def test_a_wrong_option_is_a_clear_error(options: dict[str, str], says: str, plugin: ModuleType) -> None:
    with pytest.raises(PluginError) as error:
        build(plugin, **options)
    assert str(error.value) == f"config.toml [sinks.console]: {says}"
