"""The stdout sink: one event, one line, whatever the event contains and whoever else writes to standard output."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NoReturn

import pytest
from support.built_in_sinks import build, deliver_batch, module_of
from support.events import NOW, event
from support.processes import run_python

from plugins.stdout import json_line, text_line
from receiver import Pause
from receiver.delivery.sinks import Sink
from receiver.errors import PluginError
from receiver.event import Event


def stdout_sink(**options: Any) -> Sink:
    return build("stdout", Path.cwd(), options)


class Pipe:
    """A pipe; a thread reads everything that is written to it."""

    def __init__(self) -> None:
        self._read_end, self.write_end = os.pipe()
        self._received = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def lines(self) -> list[bytes]:
        """Close it; what was written."""
        self.close()
        return bytes(self._received).splitlines()

    def close(self) -> None:
        if self._reader.is_alive():
            os.close(self.write_end)
            self._reader.join(20)
            os.close(self._read_end)

    def _read(self) -> None:
        while data := os.read(self._read_end, 65536):
            self._received += data


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    """A pipe in place of standard output."""
    pipe = Pipe()
    monkeypatch.setattr(module_of("stdout"), "STDOUT", pipe.write_end)
    yield pipe
    pipe.close()


def event_with_data(data: str) -> Event:
    """An event of type temperature with this text as its data."""
    fields = f'"eventId":"e1","eventType":"temperature","data":{{"temperature":{data}}}'
    return Event.from_body(f'{{"event":{{{fields}}}}}'.encode(), NOW)


PRINT_TWO_EVENTS = """
from pathlib import Path
from support.built_in_sinks import build, deliver_batch
from support.events import event

events = [event("e1", labels={"name": "Fridge"}), event("e2", "temperature", {"value": 21.5})]
deliver_batch(build("stdout", Path.cwd(), {}), *events)
"""


def test_by_default_each_event_is_a_json_object_on_a_line_of_standard_output() -> None:
    run = run_python(PRINT_TWO_EVENTS)
    assert (run.returncode, run.stderr) == (0, b"")
    assert run.stdout.decode() == (
        '{"event_id":"e1","event_type":"touch","time":"2026-03-14T11:59:00.500000Z","device_id":"d1",'
        '"project_id":"oslo","labels":{"name":"Fridge"},"data":{}}\n'
        '{"event_id":"e2","event_type":"temperature","time":"2026-03-14T11:59:00.500000Z","device_id":"d1",'
        '"project_id":"oslo","labels":{},"data":{"value":21.5}}\n'
    )


def test_text_is_a_line_for_people(pipe: Pipe) -> None:
    deliver_batch(
        stdout_sink(format="text"),
        event("e1", "temperature", {"value": 21.5}, labels={"name": "Fridge"}),
        event("e2", "motion", {"state": "NO_MOTION_DETECTED"}),
        event("e3", "humidity", {"temperature": -18.5, "relativeHumidity": 0}),
        event("e4", "unknownType"),
        event("e5", "unknownType", device=None),
    )
    assert [line.decode() for line in pipe.lines()] == [
        "2026-03-14T11:59:00Z  Fridge                    d1                       temperature        21.5 °C",
        "2026-03-14T11:59:00Z  -                         d1                       motion             "
        "NO_MOTION_DETECTED",
        "2026-03-14T11:59:00Z  -                         d1                       temperature        -18.5 °C      "
        "relative_humidity  0 %",
        "2026-03-14T11:59:00Z  -                         d1                       unknownType",
        "2026-03-14T11:59:00Z  -                         -                        unknownType",
    ]


def test_text_shows_the_newest_of_several_samples() -> None:
    samples = [{"value": 3}, {"value": 2}, {"value": 1}]
    assert text_line(event("e1", "temperature", {"samples": samples})).endswith("  temperature        3 °C")


def test_long_lines_are_written_completely(pipe: Pipe) -> None:
    labels = {"name": "x" * 200_000}
    deliver_batch(stdout_sink(), *[event(f"e{number}", labels=labels) for number in range(5)])
    lines = [json.loads(line) for line in pipe.lines()]
    assert [(line["event_id"], line["labels"]) for line in lines] == [(f"e{number}", labels) for number in range(5)]


GONE = "standard output is closed: the program that read it has ended"
PRINT_UNTIL_IT_IS_GONE = """
import sys
from pathlib import Path
from receiver import Pause
from support.built_in_sinks import build, deliver_batch
from support.events import event

sink = build("stdout", Path.cwd(), {})
try:
    while True:
        deliver_batch(sink, event("e1"))
except Pause as pause:
    sys.stderr.write(str(pause))
"""


def test_a_reader_that_has_ended_pauses_the_sink() -> None:
    with subprocess.Popen(["head", "-n", "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        run = run_python(PRINT_UNTIL_IT_IS_GONE, stdout=reader.stdin)
        assert (run.returncode, run.stderr.decode()) == (0, GONE)


def test_a_closed_socket_pauses_the_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(module_of("stdout"), "STDOUT", ours.fileno())
    theirs.close()
    with ours, pytest.raises(Pause, match=f"^{GONE}$"):
        deliver_batch(stdout_sink(), event("e1"))


PRINT_LONG_LINES = """
from pathlib import Path
from support.built_in_sinks import build, deliver_batch
from support.events import event

sink = build("stdout", Path.cwd(), {})
deliver_batch(sink, *[event(f"e{number}", labels={"name": str(number % 10) * 30_000}) for number in range(40)])
"""


def test_a_slow_reader_of_a_pipe_that_is_non_blocking_gets_each_line_once() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    with ThreadPoolExecutor(1) as threads, open(read_end, "rb", buffering=0) as pipe:
        run = threads.submit(run_python, PRINT_LONG_LINES, stdout=write_end)
        assert select.select([pipe], [], [], 30)[0]
        os.close(write_end)
        received = b""
        while data := pipe.read(700):
            received += data
        assert (run.result(30).returncode, run.result().stderr) == (0, b"")
    lines = [json.loads(line) for line in received.splitlines()]
    assert [line["event_id"] for line in lines] == [f"e{number}" for number in range(40)]
    assert [line["labels"]["name"] for line in lines] == [str(number % 10) * 30_000 for number in range(40)]


def test_a_pipe_without_room_for_a_short_line_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    monkeypatch.setattr(module_of("stdout"), "STDOUT", write_end)
    filled = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += os.write(write_end, b"x" * 4096)
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(deliver_batch, stdout_sink(), event("e1"))
        assert not wait([call], 0.2).done
        while filled:
            filled -= len(os.read(read_end, min(filled, 65536)))
        call.result(20)
    assert os.read(read_end, 65536) == f"{json_line(event('e1'))}\n".encode()
    os.close(read_end)
    os.close(write_end)


@pytest.mark.parametrize("attempt", [1, 2], ids=["one by one", "later"])
def test_a_line_that_was_printed_whole_by_a_call_that_failed_is_not_printed_again(
    attempt: int, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = stdout_sink()
    events = [event(f"e{number}") for number in range(3)]
    write = os.write

    def fail_at_the_second_line(descriptor: int, data: bytes) -> int:
        if b'"e1"' in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail_at_the_second_line)
        with pytest.raises(OSError, match="No space left"):
            deliver_batch(sink, *events)
    for each in events:
        deliver_batch(sink, each, attempt=attempt)
    deliver_batch(sink, events[0])
    assert [json.loads(line)["event_id"] for line in pipe.lines()] == ["e0", "e1", "e2", "e0"]


def test_an_event_that_was_printed_already_is_not_delivered_while_there_is_no_reader(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The probe that ends a pause can be such an event."""
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(tmp_path / "fifo", os.O_WRONLY)
    monkeypatch.setattr(module_of("stdout"), "STDOUT", writer)
    sink = stdout_sink()
    write = os.write

    def end_the_reader(descriptor: int, data: bytes) -> int:
        if b'"e2"' in data:
            os.close(reader)
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", end_the_reader)
        with pytest.raises(Pause, match=f"^{GONE}$"):
            deliver_batch(sink, event("e1"), event("e2"))
    with pytest.raises(Pause, match=f"^{GONE}$"):
        deliver_batch(sink, event("e1"), attempt=2)
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    for name in ("e1", "e2"):
        deliver_batch(sink, event(name), attempt=3)
    printed = [json.loads(line)["event_id"] for line in os.read(reader, 65536).splitlines()]
    assert printed in (["e2"], ["e1", "e2"]), "what the first reader has left can be read by the second"
    os.close(reader)
    os.close(writer)


def test_a_replay_of_an_event_that_a_failed_call_has_printed_is_printed(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = stdout_sink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_some_then_fail(os.write, room=1000))
        with pytest.raises(OSError, match="No space left"):
            deliver_batch(sink, event("e1"), event("e2"), attempt=2)
    deliver_batch(sink, event("e1"))
    assert [json.loads(line)["event_id"] for line in pipe.lines()] == ["e1", "e1"]


FORGED_LINE = "x\n2026-03-14T11:59:00Z  forged  d1  temperature  99 °C"


@pytest.mark.parametrize(
    "text",
    [
        FORGED_LINE,
        FORGED_LINE.replace("\n", "\r\n"),
        "\x1b[2J\x1b]0;title\x07",
        "\x00\x85\u2028\u2029\x0b\x0c\x1c",
        "\u202eabc",
    ],
    ids=["line feed", "carriage return", "terminal escapes", "other line ends", "right to left"],
)
@pytest.mark.parametrize("field", ["name", "type"])
def test_text_in_an_event_can_neither_forge_a_line_nor_control_the_terminal(field: str, text: str) -> None:
    malicious = event("e1", labels={"name": text}) if field == "name" else event("e1", text)
    for line in (text_line(malicious), json_line(malicious)):
        assert all(character.isprintable() for character in line)
        assert len(line.splitlines()) == 1
    assert text_line(malicious).startswith("2026-03-14T11:59:00Z ")


@pytest.mark.parametrize("format", ["json", "text"])
def test_a_lone_surrogate_is_printed_as_valid_utf8(format: str, pipe: Pipe) -> None:
    deliver_batch(stdout_sink(format=format), event("e1", labels={"name": "a\ud800b"}), event("e2"))
    assert len([line.decode("utf-8") for line in pipe.lines()]) == 2


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_a_number_that_json_does_not_have_makes_no_invalid_line(number: str) -> None:
    def fail(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON")

    line = json_line(event_with_data(f'{{"value":{number},"deep":[{{"x":{number}}}]}}'))
    assert json.loads(line, parse_constant=fail)["event_id"] == "e1"


def test_missing_data_is_an_empty_object() -> None:
    assert json.loads(json_line(event_with_data("null")))["data"] == {}


def test_each_line_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, bytes]] = []

    def write(descriptor: int, data: bytes) -> int:
        written.append((descriptor, bytes(data)))
        return len(data)

    sink = stdout_sink()
    events = [event("e1"), event("e2", labels={"name": "y" * 10_000})]
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        deliver_batch(sink, *events)
    assert written == [(1, f"{json_line(each)}\n".encode()) for each in events]


def test_short_writes_still_make_complete_lines(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    sink = stdout_sink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:9]))
        deliver_batch(sink, event("e1"), event("e2"))
    assert [json.loads(line)["event_id"] for line in pipe.lines()] == ["e1", "e2"]


@pytest.mark.parametrize("sinks", [1, 8], ids=["one sink", "several sinks"])
def test_lines_of_concurrent_writers_do_not_mix(sinks: int, pipe: Pipe) -> None:
    built = [stdout_sink() for _ in range(sinks)]
    start_together = threading.Barrier(8)
    events = [
        [event(f"w{writer}n{number}", labels={"name": str(writer) * 100_000}) for number in range(10)]
        for writer in range(8)
    ]

    def deliver(writer: int) -> None:
        start_together.wait(20)
        for each in events[writer]:
            deliver_batch(built[writer % sinks], each)

    with ThreadPoolExecutor(8) as threads:
        for future in [threads.submit(deliver, writer) for writer in range(8)]:
            future.result(30)
    assert sorted(pipe.lines()) == sorted(json_line(each).encode() for own in events for each in own)


def write_some_then_fail(write: Callable[[int, bytes], int], room: int = 20) -> Callable[[int, bytes], int]:
    """A write of up to 20 bytes, after which the disk is full."""
    calls: list[int] = []

    def failing_write(descriptor: int, data: bytes) -> int:
        calls.append(descriptor)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:room])

    return failing_write


def test_the_event_after_a_line_that_was_cut_short_begins_on_a_new_line(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = stdout_sink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_some_then_fail(os.write))
        with pytest.raises(OSError, match="No space left"):
            deliver_batch(sink, event("e1"))
    deliver_batch(sink, event("e1"), attempt=2)
    deliver_batch(sink, event("e2"))
    cut_short, *lines = pipe.lines()
    assert cut_short == json_line(event("e1")).encode()[:20]
    assert [json.loads(line)["event_id"] for line in lines] == ["e1", "e2"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"format": "xml"}, 'format: give "json" or "text"'),
        ({"formt": "text"}, "no option 'formt' (did you mean 'format'?)"),
    ],
    ids=["value", "option"],
)
def test_a_wrong_option_is_reported(options: dict[str, str], problem: str) -> None:
    with pytest.raises(PluginError) as error:
        stdout_sink(**options)
    assert str(error.value) == f"config.toml [sinks.tested]: {problem}"
