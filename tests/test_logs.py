"""Log lines: one record a line whatever is in it, no secret in any, and a bound on floods."""

from __future__ import annotations

import contextlib
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

import pytest
from conftest import ROOT, StartReceiver

from receiver import logs
from receiver.logs import JsonLines, RateLimitedLog, TextLines
from receiver.redaction import Redactor

AT = 1769860800.1239
STAMP = "2026-01-31T12:00:00.123Z"
FORGED = f"{STAMP} ERROR receiver.intake.app forged"
RECORD = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) [\w.]+ .*")
HIDDEN = "forbidden'quote \"double\\back\tétage\nline"
"""A secret with characters that formatters escape."""
HIDDEN_PARTS = ("forbidden", "quote", "double", "back", "tage", "line")
FORMATTERS: dict[str, Callable[[Redactor], logging.Formatter]] = {"text": TextLines, "json": JsonLines}


def record(message: str, *values: object, error: BaseException | None = None) -> logging.LogRecord:
    exc_info = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord("receiver.intake.app", logging.WARNING, "app.py", 1, message, values, exc_info)
    record.created = AT
    return record


def raised(error: BaseException) -> BaseException:
    """The exception with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.fixture(params=FORMATTERS)
def formatter(request: pytest.FixtureRequest) -> logging.Formatter:
    return FORMATTERS[request.param](Redactor([HIDDEN]))


@pytest.fixture
def text_lines() -> TextLines:
    return TextLines(Redactor([HIDDEN]))


@pytest.fixture
def json_lines() -> JsonLines:
    return JsonLines(Redactor([HIDDEN]))


def test_a_text_line_has_time_level_logger_and_message(text_lines: TextLines) -> None:
    assert text_lines.format(record("%d of %s", 3, "ten")) == f"{STAMP} WARNING receiver.intake.app 3 of ten"


def test_a_json_line_has_time_level_logger_and_message(json_lines: JsonLines) -> None:
    assert json.loads(json_lines.format(record("%d of %s", 3, "ten"))) == {
        "time": STAMP,
        "level": "warning",
        "logger": "receiver.intake.app",
        "message": "3 of ten",
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


def test_a_json_line_has_the_fields_that_its_message_is_about(json_lines: JsonLines) -> None:
    values = {"sink": "erp", "reason": OSError(f"no {HIDDEN}"), "code": 503, "request_id": None, "other": "x"}
    found = json.loads(json_lines.format(record("sink %(sink)s: %(reason)s (%(other)s)", values)))
    assert found["message"] == "sink erp: no *** (x)"
    assert list(found) == ["time", "level", "logger", "message", "sink", "reason", "code"]
    assert (found["sink"], found["reason"], found["code"]) == ("erp", "no ***", 503)


def test_a_field_that_cannot_be_converted_to_text_does_not_show_the_others_unredacted(json_lines: JsonLines) -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    values = {"reason": Broken(), "remote": HIDDEN}
    found = json.loads(json_lines.format(record("%(reason)s of %(remote)s", values)))
    assert found["message"] == "%(reason)s of %(remote)s (its arguments cannot be shown: RuntimeError)"
    assert (found["reason"], found["remote"]) == ("cannot be shown: RuntimeError", "***")


def test_a_line_of_a_sinks_own_logger_has_the_field_sink(json_lines: JsonLines) -> None:
    for name in ("sink.erp", "sink.erp.connections"):
        line = json_lines.format(logging.LogRecord(name, logging.INFO, "", 0, "hello %s", ("you",), None))
        assert json.loads(line)["sink"] == "erp"
    line = json_lines.format(logging.LogRecord("sinks", logging.INFO, "", 0, "hello", None, None))
    assert "sink" not in json.loads(line)


@pytest.mark.parametrize("odd", (LINE_ENDS | CONTROLS).values(), ids=LINE_ENDS | CONTROLS)
def test_a_text_record_is_one_printable_line_whatever_is_in_its_message(odd: str, text_lines: TextLines) -> None:
    line = text_lines.format(record("a label: %s", f"before{odd}{FORGED}"))
    assert RECORD.fullmatch(line)
    assert line.isprintable()
    assert "before" in line
    assert "forged" in line


@pytest.mark.parametrize("odd", (LINE_ENDS | CONTROLS).values(), ids=LINE_ENDS | CONTROLS)
def test_a_json_record_is_one_line_with_the_unchanged_message(odd: str, json_lines: JsonLines) -> None:
    line = json_lines.format(record("a label: %s", f"before{odd}{FORGED}"))
    assert line.isprintable()
    assert json.loads(line)["message"] == f"a label: before{odd}{FORGED}"


def test_letters_of_all_languages_are_readable_in_a_text_line(text_lines: TextLines) -> None:
    message = "Kjøkken, été, Küche, кухня, 厨房, 🌡 21.5 °C"
    assert text_lines.format(record(message)) == f"{STAMP} WARNING receiver.intake.app {message}"


def test_the_lines_of_a_traceback_in_a_text_log_are_indented_and_look_like_no_record(text_lines: TextLines) -> None:
    first, *more = text_lines.format(record("it failed", error=raised(ValueError("too warm")))).split("\n")
    assert first == f"{STAMP} WARNING receiver.intake.app it failed"
    assert [line.strip() for line in (more[0], more[-1])] == [
        "Traceback (most recent call last):",
        "ValueError: too warm",
    ]
    assert all(line.startswith(" ") for line in more)


@pytest.mark.parametrize("odd", (LINE_ENDS | CONTROLS).values(), ids=LINE_ENDS | CONTROLS)
def test_the_text_of_an_exception_cannot_look_like_a_record(odd: str, text_lines: TextLines) -> None:
    shown = text_lines.format(record("it failed", error=raised(ValueError(f"too warm{odd}{FORGED}"))))
    assert [line for line in shown.splitlines() if RECORD.fullmatch(line)] == [
        f"{STAMP} WARNING receiver.intake.app it failed"
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


@pytest.mark.parametrize(
    "value",
    [HIDDEN, repr(HIDDEN), [HIDDEN], json.dumps(HIDDEN), KeyError(HIDDEN)],
    ids=["as it is", "repr", "repr of a list", "JSON", "exception"],
)
def test_a_secret_is_hidden_in_a_message(value: object, formatter: logging.Formatter) -> None:
    line = formatter.format(record("the response was: %s", value))
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


@pytest.fixture
def root_logger() -> Iterator[None]:
    """Restores logging at the end of the test."""
    root, urllib3 = logging.getLogger(), logging.getLogger("urllib3")
    before = root.handlers[:], root.level, urllib3.level
    raises = logging.raiseExceptions
    yield
    logging.raiseExceptions = raises
    logging.captureWarnings(False)
    root.handlers, root.level = before[0], before[1]
    urllib3.setLevel(before[2])


@pytest.mark.usefixtures("root_logger")
@pytest.mark.parametrize("log_format", FORMATTERS)
def test_every_logger_writes_to_standard_error_at_level_info_and_above(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.set_up(log_format, Redactor([HIDDEN]))
    logging.getLogger("receiver.intake.app").info("first")
    logging.getLogger("sink.erp").warning("second %s", HIDDEN)
    logging.getLogger("receiver.intake.app").debug("not shown")
    logging.getLogger("urllib3.connectionpool").warning("not shown")
    out, errors = capsys.readouterr()
    lines = [parsed(line, log_format) for line in errors.splitlines()]
    assert out == ""
    assert lines == [("info", "receiver.intake.app", "first"), ("warning", "sink.erp", "second ***")]


def parsed(line: str, log_format: str) -> tuple[str, ...]:
    """Level, logger and message of a line."""
    if log_format == "json":
        fields: dict[str, str] = json.loads(line)
        assert fields.keys() - {"sink"} == {"time", "level", "logger", "message"}
        return fields["level"], fields["logger"], fields["message"]
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
def test_a_record_whose_values_do_not_fit_its_message_is_still_one_line(
    message: str, values: tuple[object, ...], log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.set_up(log_format, Redactor([HIDDEN]))
    logging.getLogger("sink.erp").error(message, *values)
    errors = capsys.readouterr().err
    [(level, logger, text)] = [parsed(line, log_format) for line in errors.splitlines()]
    assert (level, logger) == ("error", "sink.erp")
    assert message in text
    assert [part for part in HIDDEN_PARTS if part in errors] == []


@pytest.mark.usefixtures("root_logger")
def test_a_record_that_cannot_be_written_is_not_printed_with_its_secrets(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.set_up("text", Redactor([HIDDEN]))
    [handler] = logging.getLogger().handlers
    assert isinstance(handler, logging.StreamHandler)
    with contextlib.suppress(OSError), Path("/dev/full").open("w", buffering=1) as handler.stream:
        logging.getLogger("sink.erp").error("refused: %s", HIDDEN)
    assert capsys.readouterr().err == ""


REPORTED_BY_PYTHON = {
    "a warning": "import warnings; warnings.warn(secret)",
    "an exception of a thread": (
        "import threading\n"
        "def work(): raise ValueError(secret)\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()"
    ),
    "an uncaught exception": "raise ValueError(secret)",
    "an exception in a finalizer": (
        "class Finalized:\n    def __del__(self): raise ValueError(secret)\nFinalized()\nimport gc; gc.collect()"
    ),
}


SET_UP = """
import os, sys
from receiver import logs
from receiver.redaction import Redactor

secret = os.environ["HIDDEN"]
logs.set_up(sys.argv[1], Redactor([secret]))
"""


@pytest.mark.parametrize("log_format", FORMATTERS)
@pytest.mark.parametrize("program", REPORTED_BY_PYTHON.values(), ids=REPORTED_BY_PYTHON)
def test_what_python_itself_reports_is_a_record_without_secrets(program: str, log_format: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SET_UP + program, log_format],
        cwd=ROOT,
        env={**os.environ, "HIDDEN": HIDDEN},
        capture_output=True,
        text=True,
        check=False,
    )
    first, *others = ended.stderr.splitlines()
    assert parsed(first, log_format)
    assert [line for line in others if log_format == "json" or not line.startswith(" ")] == []
    assert "***" in ended.stderr
    assert "forbidden" not in ended.stderr


FLOODS = {
    "push rejected: malformed token": (
        b"POST / HTTP/1.1\r\nHost: a\r\nX-Dt-Signature: a.b.c\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    ),
    "request rejected: InvalidRequestLine": b"hello\r\n\r\n",
    "request rejected: InvalidHeader": b"POST / HTTP/1.1\r\nhello\r\n\r\n",
}


def test_floods_of_invalid_requests_cause_ten_lines_a_minute_for_each_reason(start_receiver: StartReceiver) -> None:
    receiver = start_receiver("[receiver]\ndeliver = false", ready=False, WEB_CONCURRENCY="1")
    for request in FLOODS.values():
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", receiver.port), timeout=10) as connection:
                connection.sendall(request)
                assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")
    lines = receiver.log.splitlines()
    assert {reason: sum(reason in line for line in lines) for reason in FLOODS} == dict.fromkeys(FLOODS, 10)


class Lines(logging.Handler):
    """Collects levels and messages."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.logged.append((record.levelname, record.getMessage()))


class Flooded:
    """A RateLimitedLog whose clock a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lines = Lines()
        logger = logging.Logger("flooded")
        logger.addHandler(self.lines)
        self.log = RateLimitedLog(logger, clock=lambda: self.now)

    def warn(self, times: int, kind: str = "expired") -> list[str]:
        """The lines that this many warnings cause."""
        before = len(self.lines.logged)
        for number in range(times):
            self.log.warning(kind, "%s %d", kind, number)
        return [message for _, message in self.lines.logged[before:]]


@pytest.fixture
def flooded() -> Flooded:
    return Flooded()


def numbered(count: int, kind: str = "expired") -> list[str]:
    return [f"{kind} {number}" for number in range(count)]


def dropped(count: int) -> list[str]:
    return [f"{count} more lines like the next one were dropped"]


def test_ten_lines_a_minute_are_logged_and_no_more(flooded: Flooded) -> None:
    assert flooded.warn(10) == numbered(10)
    assert flooded.warn(1000) == []
    flooded.now += 59.9
    assert flooded.warn(1) == []


def test_after_a_minute_the_next_line_follows_the_number_of_dropped_ones(flooded: Flooded) -> None:
    flooded.warn(1010)
    flooded.now += 60
    assert flooded.warn(1) == dropped(1000) + numbered(1)
    assert flooded.warn(10) == numbered(9)
    flooded.now += 60
    assert flooded.warn(2) == dropped(1) + numbered(2)


def test_without_dropped_lines_no_number_is_logged(flooded: Flooded) -> None:
    assert flooded.warn(10) == numbered(10)
    flooded.now += 60
    assert flooded.warn(10) == numbered(10)
    flooded.now += 3600
    assert flooded.warn(1) == numbered(1)


def test_the_number_of_dropped_lines_is_logged_however_late_the_next_line_is(flooded: Flooded) -> None:
    flooded.warn(12)
    flooded.now += 86400
    assert flooded.warn(1) == dropped(2) + numbered(1)


def test_a_minute_begins_with_its_first_line(flooded: Flooded) -> None:
    flooded.warn(1)
    flooded.now += 30
    assert len(flooded.warn(20)) == 9
    flooded.now += 29
    assert flooded.warn(1) == []
    flooded.now += 1
    assert flooded.warn(1) == dropped(12) + numbered(1)


def test_a_flood_of_one_kind_drops_no_lines_of_another(flooded: Flooded) -> None:
    flooded.warn(100, "expired")
    assert flooded.warn(11, "wrong secret") == numbered(10, "wrong secret")
    flooded.now += 60
    assert flooded.warn(1, "wrong secret") == dropped(1) + numbered(1, "wrong secret")
    assert flooded.warn(1, "expired") == dropped(90) + numbered(1, "expired")


def test_a_flood_all_day_causes_eleven_lines_a_minute(flooded: Flooded) -> None:
    for _ in range(24 * 60):
        assert len(flooded.warn(20)) <= 11
        flooded.now += 60
    assert len(flooded.lines.logged) == 24 * 60 * 11 - 1


def test_errors_are_limited_like_warnings_and_logged_as_errors(flooded: Flooded) -> None:
    for _ in range(11):
        flooded.log.error("unavailable", "push not accepted")
    flooded.now += 60
    flooded.log.error("unavailable", "push not accepted")
    assert flooded.lines.logged == [
        *[("ERROR", "push not accepted")] * 10,
        ("ERROR", "1 more lines like the next one were dropped"),
        ("ERROR", "push not accepted"),
    ]


def test_ten_lines_are_logged_when_many_threads_flood_at_once(flooded: Flooded) -> None:
    together = threading.Barrier(8)

    def flood() -> None:
        together.wait()
        flooded.warn(250)

    threads = [threading.Thread(target=flood) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(flooded.lines.logged) == 10
    flooded.now += 60
    assert flooded.warn(1) == dropped(8 * 250 - 10) + numbered(1)


def test_values_are_converted_to_text_only_for_lines_that_are_logged(flooded: Flooded) -> None:
    class Counted:
        written = 0

        def __str__(self) -> str:
            Counted.written += 1
            return "counted"

    value: Any = Counted()
    for _ in range(100):
        flooded.log.warning("expired", "%s", value)
    assert Counted.written == 10
