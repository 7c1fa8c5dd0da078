"""Log lines: one record a line whatever is in it, no secret in any, and a bound on floods."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from conftest import ROOT, StartReceiver

from receiver import logs
from receiver.logs import JsonLines, Seldom, TextLines
from receiver.settings import SECRET, Settings, load

AT = 1769860800.1239
STAMP = "2026-01-31T12:00:00.123Z"
FORGED = f"{STAMP} ERROR receiver.app forged"
RECORD = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) [\w.]+ .*")
HIDDEN = "forbidden'quote \"double\\back\tétage\nline"
"""A secret with everything in it that people and programs write down in another way."""
HIDDEN_PARTS = ("forbidden", "quote", "double", "back", "tage", "line")
FORMATTERS: dict[str, Callable[[Settings], logging.Formatter]] = {"text": TextLines, "json": JsonLines}


def settings(folder: Path, log_format: str = "text", secret: str = HIDDEN) -> Settings:
    (folder / "config.toml").write_text(f'[receiver]\nlog_format = "{log_format}"\n', encoding="utf-8")
    return load({"RECEIVER_CONFIG": str(folder / "config.toml"), SECRET: secret})


def record(message: str, *values: object, error: BaseException | None = None) -> logging.LogRecord:
    told = (type(error), error, error.__traceback__) if error else None
    made = logging.LogRecord("receiver.app", logging.WARNING, "app.py", 1, message, values, told)
    made.created = AT
    return made


def raised(error: BaseException) -> BaseException:
    """An exception as it is when it was caught, with its traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.fixture(params=FORMATTERS)
def formatter(request: pytest.FixtureRequest, tmp_path: Path) -> logging.Formatter:
    return FORMATTERS[request.param](settings(tmp_path))


@pytest.fixture
def text_lines(tmp_path: Path) -> TextLines:
    return TextLines(settings(tmp_path))


@pytest.fixture
def json_lines(tmp_path: Path) -> JsonLines:
    return JsonLines(settings(tmp_path))


def test_a_text_line_has_time_level_logger_and_message(text_lines: TextLines) -> None:
    assert text_lines.format(record("took %d of %s", 3, "ten")) == f"{STAMP} WARNING receiver.app took 3 of ten"


def test_a_json_line_has_time_level_logger_and_message(json_lines: JsonLines) -> None:
    assert json.loads(json_lines.format(record("took %d of %s", 3, "ten"))) == {
        "time": STAMP,
        "level": "warning",
        "logger": "receiver.app",
        "message": "took 3 of ten",
    }


LINE_ENDS = {
    "LF": "\n",
    "CR": "\r",
    "CR LF": "\r\n",
    "two LF": "\n\n",
    "vertical tab": "\v",
    "form feed": "\f",
    "file separator": "\x1c",
    "next line": "\x85",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
}
CONTROLS = {
    "escape": "\x1b[2J\x1b[31m",
    "backspace": "\b" * 40,
    "bell": "\a",
    "NUL": "\0",
    "delete": "\x7f",
    "C1 control": "\x9b31m",
    "right to left": "\u202e",
    "lone surrogate": "\ud800",
}


@pytest.mark.parametrize("odd", (LINE_ENDS | CONTROLS).values(), ids=LINE_ENDS | CONTROLS)
def test_a_text_record_is_one_printable_line_whatever_its_message_holds(odd: str, text_lines: TextLines) -> None:
    line = text_lines.format(record("a label: %s", f"before{odd}{FORGED}"))
    assert RECORD.fullmatch(line)
    assert line.isprintable()
    assert "before" in line
    assert "forged" in line


@pytest.mark.parametrize("odd", (LINE_ENDS | CONTROLS).values(), ids=LINE_ENDS | CONTROLS)
def test_a_json_record_is_one_line_that_holds_its_message_as_it_was(odd: str, json_lines: JsonLines) -> None:
    line = json_lines.format(record("a label: %s", f"before{odd}{FORGED}"))
    assert line.isprintable()
    assert json.loads(line)["message"] == f"a label: before{odd}{FORGED}"


def test_letters_of_all_the_world_are_readable_in_a_text_line(text_lines: TextLines) -> None:
    message = "Kjøkken, été, Küche, кухня, 厨房, 🌡 21.5 °C"
    assert text_lines.format(record(message)) == f"{STAMP} WARNING receiver.app {message}"


def test_a_traceback_in_a_text_log_stands_in_lines_that_are_no_records(text_lines: TextLines) -> None:
    first, *more = text_lines.format(record("it failed", error=raised(ValueError("too warm")))).split("\n")
    assert first == f"{STAMP} WARNING receiver.app it failed"
    assert [line.strip() for line in (more[0], more[-1])] == [
        "Traceback (most recent call last):",
        "ValueError: too warm",
    ]
    assert all(line.startswith(" ") for line in more)


@pytest.mark.parametrize("odd", (LINE_ENDS | CONTROLS).values(), ids=LINE_ENDS | CONTROLS)
def test_the_text_of_an_exception_forges_no_record(odd: str, text_lines: TextLines) -> None:
    shown = text_lines.format(record("it failed", error=raised(ValueError(f"too warm{odd}{FORGED}"))))
    assert [line for line in shown.splitlines() if RECORD.fullmatch(line)] == [
        f"{STAMP} WARNING receiver.app it failed"
    ]
    assert all(line.isprintable() for line in shown.split("\n"))


def test_a_traceback_is_part_of_the_message_of_a_json_line(json_lines: JsonLines) -> None:
    line = json_lines.format(record("it failed", error=raised(ValueError(f"too warm\n{FORGED}"))))
    assert "\n" not in line
    message: str = json.loads(line)["message"]
    assert message.startswith("it failed\nTraceback (most recent call last):\n")
    assert message.endswith(f"ValueError: too warm\n{FORGED}")


def chained(text: str) -> BaseException:
    try:
        raise ValueError(text)
    except ValueError as cause:
        return raised_from(cause)


def raised_from(cause: BaseException) -> BaseException:
    try:
        raise RuntimeError("see above") from cause
    except RuntimeError as caught:
        return caught


def noted(text: str) -> BaseException:
    error = ValueError("see below")
    error.add_note(text)
    return raised(error)


SHOWN: dict[str, Callable[[str], object]] = {
    "as it is": str,
    "with more around it": lambda secret: f"secret={secret};",
    "by repr": repr,
    "by repr in another text": lambda secret: repr(f"it's {secret}"),
    "by repr of a list": lambda secret: [secret],
    "by repr of repr": lambda secret: repr(repr(secret)),
    "by repr of bytes": lambda secret: secret.encode(),
    "by ascii": ascii,
    "as JSON": json.dumps,
    "as JSON in UTF-8": lambda secret: json.dumps(secret, ensure_ascii=False),
    "as JSON in JSON": lambda secret: json.dumps(json.dumps(secret)),
    "in a URL": lambda secret: quote(secret, safe=""),
    "with its blanks run together": lambda secret: " ".join(secret.split()),
    "with its line ends doubled": lambda secret: secret.replace("\n", "\r\n"),
    "by KeyError": KeyError,
    "by UnicodeError": lambda secret: UnicodeError(secret.encode()),
}


@pytest.mark.parametrize("show", SHOWN.values(), ids=SHOWN)
def test_a_secret_is_hidden_however_it_is_written(show: Callable[[str], object], formatter: logging.Formatter) -> None:
    line = formatter.format(record("the answer was: %s", show(HIDDEN)))
    assert [part for part in HIDDEN_PARTS if part in line] == []
    assert "***" in line


@pytest.mark.parametrize(
    "make",
    [lambda text: raised(ValueError(text)), lambda text: raised(KeyError(text)), chained, noted],
    ids=["text", "repr", "cause", "note"],
)
def test_a_secret_is_hidden_in_a_traceback(make: Callable[[str], BaseException], formatter: logging.Formatter) -> None:
    line = formatter.format(record("it failed", error=make(f"refused: {HIDDEN}")))
    shown = re.sub(r"File .*, line \d+", "", line)
    assert [part for part in HIDDEN_PARTS if re.search(rf"\b{part}", shown)] == []
    assert "***" in line


ENDS = ["\n", "\r\n", " ", "\t"]


@pytest.mark.parametrize("end", ENDS, ids=ascii)
def test_a_secret_is_hidden_without_the_blanks_at_its_end_too(end: str, tmp_path: Path) -> None:
    formatter = TextLines(settings(tmp_path, secret=f"forbidden{end}"))
    for text in ("forbidden", f"forbidden{end}", "Bearer forbidden, again", "['forbidden']"):
        assert "forbidden" not in formatter.format(record("the answer was: %s", text))


def test_a_secret_url_is_hidden_in_the_part_that_http_libraries_show(tmp_path: Path) -> None:
    formatter = TextLines(settings(tmp_path, secret="https://hooks.example.com/services/T0/forbidden?key=quote"))
    line = formatter.format(record("Max retries exceeded with url: /services/T0/forbidden?key=quote (Caused by x)"))
    assert line.endswith("Max retries exceeded with url: *** (Caused by x)")


def test_what_is_no_secret_stays_as_it_is(formatter: logging.Formatter) -> None:
    line = formatter.format(record("%s", "forbid the quotes, double back, a line"))
    assert "forbid the quotes, double back, a line" in line


@pytest.fixture
def root_logger() -> Iterator[None]:
    """Logging as it was, once the test has set it up."""
    root, urllib3 = logging.getLogger(), logging.getLogger("urllib3")
    before = root.handlers[:], root.level, urllib3.level
    yield
    logging.captureWarnings(False)
    root.handlers, root.level = before[0], before[1]
    urllib3.setLevel(before[2])


@pytest.mark.usefixtures("root_logger")
@pytest.mark.parametrize("log_format", FORMATTERS)
def test_every_logger_writes_to_standard_error_from_info_on(
    log_format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.set_up(settings(tmp_path, log_format))
    logging.getLogger("receiver.app").info("first")
    logging.getLogger("sink.erp").warning("second %s", HIDDEN)
    logging.getLogger("receiver.app").debug("not shown")
    logging.getLogger("urllib3.connectionpool").warning("not shown")
    out, errors = capsys.readouterr()
    lines = [told(line, log_format) for line in errors.splitlines()]
    assert out == ""
    assert lines == [("info", "receiver.app", "first"), ("warning", "sink.erp", "second ***")]


def told(line: str, log_format: str) -> tuple[str, ...]:
    """Level, logger and message of a line."""
    if log_format == "json":
        given: dict[str, str] = json.loads(line)
        assert given.keys() == {"time", "level", "logger", "message"}
        return given["level"], given["logger"], given["message"]
    assert RECORD.fullmatch(line)
    _, level, logger, message = line.split(" ", 3)
    return level.lower(), logger, message


@pytest.mark.usefixtures("root_logger")
@pytest.mark.parametrize("log_format", FORMATTERS)
@pytest.mark.parametrize(
    ("message", "values"),
    [("%d events", (HIDDEN,)), ("%s and %s", (HIDDEN,)), ("no place", (HIDDEN,)), ("%(name)s", (HIDDEN,))],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_record_that_does_not_fit_its_values_is_a_line_all_the_same(
    message: str, values: tuple[object, ...], log_format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.set_up(settings(tmp_path, log_format))
    logging.getLogger("sink.erp").error(message, *values)
    errors = capsys.readouterr().err
    [(level, logger, text)] = [told(line, log_format) for line in errors.splitlines()]
    assert (level, logger) == ("error", "sink.erp")
    assert message in text
    assert [part for part in HIDDEN_PARTS if part in errors] == []


OUTSIDE = {
    "a warning": "import warnings; warnings.warn(secret)",
    "an exception of a thread": (
        "import threading\n"
        "def work(): raise ValueError(secret)\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()"
    ),
    "an exception nobody caught": "raise ValueError(secret)",
    "an exception while an object is let go": (
        "class Held:\n    def __del__(self): raise ValueError(secret)\nHeld()\nimport gc; gc.collect()"
    ),
}


@pytest.mark.parametrize("log_format", FORMATTERS)
@pytest.mark.parametrize("program", OUTSIDE.values(), ids=OUTSIDE)
def test_what_python_itself_reports_is_a_record_without_secrets(program: str, log_format: str, tmp_path: Path) -> None:
    settings(tmp_path, log_format)
    ended = subprocess.run(
        [sys.executable, "-c", f"from receiver import logs, settings\n{START}\n{program}"],
        cwd=ROOT,
        env={**os.environ, SECRET: HIDDEN, "RECEIVER_CONFIG": str(tmp_path / "config.toml")},
        capture_output=True,
        text=True,
        check=False,
    )
    first, *more = ended.stderr.splitlines()
    assert told(first, log_format)
    assert [line for line in more if log_format == "json" or not line.startswith(" ")] == []
    assert "***" in ended.stderr
    assert "forbidden" not in ended.stderr


START = "import os\nlogs.set_up(settings.load())\nsecret = os.environ['DT_SIGNATURE_SECRET']"


FLOODS: dict[str, tuple[bytes, str]] = {
    "pushes with a wrong token": (
        b"POST / HTTP/1.1\r\nHost: a\r\nX-Dt-Signature: a.b.c\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
        "push refused: malformed token",
    ),
    "requests that are none": (b"hello\r\n\r\n", "request refused: "),
    "headers that are none": (b"POST / HTTP/1.1\r\nhello\r\n\r\n", "request refused: "),
}


@pytest.mark.parametrize(("request_", "line"), FLOODS.values(), ids=FLOODS)
def test_a_flood_of_bad_requests_leaves_ten_lines_a_minute_for_each_reason(
    request_: bytes, line: str, start_receiver: StartReceiver
) -> None:
    receiver = start_receiver(WEB_CONCURRENCY="1")
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", receiver.port), timeout=10) as connection:
            connection.sendall(request_)
            assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")
    assert sum(line in shown for shown in receiver.log.splitlines()) == 10


class Lines(logging.Handler):
    """Keeps levels and messages."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append((record.levelname, record.getMessage()))


class Flooded:
    """A Seldom whose clock stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lines = Lines()
        logger = logging.Logger("flooded")
        logger.addHandler(self.lines)
        self.log = Seldom(logger, clock=lambda: self.now)

    def warn(self, times: int, kind: str = "expired") -> list[str]:
        """The lines that come of so many warnings."""
        before = len(self.lines.told)
        for number in range(times):
            self.log.warning(kind, "%s %d", kind, number)
        return [message for _, message in self.lines.told[before:]]


@pytest.fixture
def flooded() -> Flooded:
    return Flooded()


def numbered(count: int, kind: str = "expired") -> list[str]:
    return [f"{kind} {number}" for number in range(count)]


def left_out(count: int) -> list[str]:
    return [f"{count} more lines like the following were left out"]


def test_ten_lines_a_minute_pass_and_no_more(flooded: Flooded) -> None:
    assert flooded.warn(10) == numbered(10)
    assert flooded.warn(1000) == []
    flooded.now += 59.9
    assert flooded.warn(1) == []


def test_after_a_minute_the_next_line_comes_with_the_number_left_out(flooded: Flooded) -> None:
    flooded.warn(1010)
    flooded.now += 60
    assert flooded.warn(1) == left_out(1000) + numbered(1)
    assert flooded.warn(10) == numbered(9)
    flooded.now += 60
    assert flooded.warn(2) == left_out(1) + numbered(2)


def test_nothing_is_said_of_lines_left_out_when_there_were_none(flooded: Flooded) -> None:
    assert flooded.warn(10) == numbered(10)
    flooded.now += 60
    assert flooded.warn(10) == numbered(10)
    flooded.now += 3600
    assert flooded.warn(1) == numbered(1)


def test_the_number_left_out_is_told_however_late_the_next_line_comes(flooded: Flooded) -> None:
    flooded.warn(12)
    flooded.now += 86400
    assert flooded.warn(1) == left_out(2) + numbered(1)


def test_a_minute_begins_with_its_first_line(flooded: Flooded) -> None:
    flooded.warn(1)
    flooded.now += 30
    assert len(flooded.warn(20)) == 9
    flooded.now += 29
    assert flooded.warn(1) == []
    flooded.now += 1
    assert flooded.warn(1) == left_out(12) + numbered(1)


def test_a_flood_of_one_kind_leaves_the_others_alone(flooded: Flooded) -> None:
    flooded.warn(100, "expired")
    assert flooded.warn(11, "wrong secret") == numbered(10, "wrong secret")
    flooded.now += 60
    assert flooded.warn(1, "wrong secret") == left_out(1) + numbered(1, "wrong secret")
    assert flooded.warn(1, "expired") == left_out(90) + numbered(1, "expired")


def test_a_flood_all_day_leaves_eleven_lines_a_minute(flooded: Flooded) -> None:
    for _ in range(24 * 60):
        assert len(flooded.warn(20)) <= 11
        flooded.now += 60
    assert len(flooded.lines.told) == 24 * 60 * 11 - 1


def test_errors_are_counted_like_warnings_and_keep_their_level(flooded: Flooded) -> None:
    for _ in range(11):
        flooded.log.error("unavailable", "push not taken")
    flooded.now += 60
    flooded.log.error("unavailable", "push not taken")
    assert flooded.lines.told == [
        *[("ERROR", "push not taken")] * 10,
        ("ERROR", "1 more lines like the following were left out"),
        ("ERROR", "push not taken"),
    ]


def test_ten_lines_pass_when_many_threads_flood_at_once(flooded: Flooded) -> None:
    together = threading.Barrier(8)

    def flood() -> None:
        together.wait()
        flooded.warn(250)

    threads = [threading.Thread(target=flood) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(flooded.lines.told) == 10
    flooded.now += 60
    assert flooded.warn(1) == left_out(8 * 250 - 10) + numbered(1)


def test_values_are_put_into_a_line_only_when_it_is_written(flooded: Flooded) -> None:
    class Counted:
        written = 0

        def __str__(self) -> str:
            Counted.written += 1
            return "counted"

    value: Any = Counted()
    for _ in range(100):
        flooded.log.warning("expired", "%s", value)
    assert Counted.written == 10
