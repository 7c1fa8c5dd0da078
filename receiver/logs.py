"""Log lines: to standard error, as text or JSON, without secrets."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from receiver.event import rfc3339
from receiver.redaction import Redactor

log = logging.getLogger(__name__)

LINES_PER_MINUTE = 10

FIELDS = ("sink", "event_id", "reason", "code", "request_id", "remote")
"""The fields of a JSON line besides the common ones."""

SINK_LOGGER = "sink"
"""The parent of the loggers that sinks get."""


def set_up(log_format: str, redactor: Redactor) -> None:
    """Send every logger of this process to standard error in the format "text" or "json"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(redactor) if log_format == "json" else TextLines(redactor))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    for library in ("urllib3", "psycopg"):  # they log what they raise
        logging.getLogger(library).setLevel(logging.ERROR)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # it prints what cannot be written, with its secrets
    sys.excepthook = lambda kind, error, trace: log.critical("uncaught exception", exc_info=error)
    sys.unraisablehook = lambda hook: log.error("unraisable exception", exc_info=hook.exc_value)
    threading.excepthook = lambda hook: log.error("uncaught exception in a thread", exc_info=hook.exc_value)


class TextLines(logging.Formatter):
    """`2026-01-31T12:00:00.000Z WARNING receiver.server message`; the lines of a traceback follow, indented.

    Characters that are not printable are escaped, so that no message can look like another record.
    """

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redact = redactor.redact

    def format(self, record: logging.LogRecord) -> str:
        message, traceback = self._message(record), self._traceback(record)
        lines = [printable(line) for line in (message, *traceback.split("\n")) if line]
        return f"{_time(record)} {record.levelname} {record.name} " + "\n  ".join(lines)

    def _message(self, record: logging.LogRecord) -> str:
        try:
            return self._redact(record.getMessage())
        except Exception as error:
            template = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
            return self._redact(f"{template} (its arguments cannot be shown: {type(error).__name__})")

    def _traceback(self, record: logging.LogRecord) -> str:
        return self._redact(self.formatException(record.exc_info)) if record.exc_info else ""


class JsonLines(TextLines):
    """One JSON object a line with `time`, `level`, `logger` and `message`, and those of FIELDS that the message is
    about: its arguments, if they are named (`log.info("sink %(sink)s works", {"sink": name})`)."""

    def format(self, record: logging.LogRecord) -> str:
        message, traceback = self._message(record), self._traceback(record)
        return json.dumps(
            {
                "time": _time(record),
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": f"{message}\n{traceback}" if traceback else message,
                **self._fields(record),
            }
        )

    def _fields(self, record: logging.LogRecord) -> dict[str, object]:
        root, _, sink = record.name.partition(".")
        of_sink = {"sink": sink.partition(".")[0]} if root == SINK_LOGGER else {}
        named = {**of_sink, **record.args} if isinstance(record.args, Mapping) else of_sink
        given = {name: named[name] for name in FIELDS if named.get(name) is not None}
        return {name: value if isinstance(value, int) else self._shown(value) for name, value in given.items()}

    def _shown(self, value: object) -> str:
        try:
            return self._redact(str(value))
        except Exception as error:
            return f"cannot be shown: {type(error).__name__}"


class RateLimitedLog:
    """A logger with a limit on lines a minute for each kind of message, which also logs how many were dropped."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._lock = threading.Lock()
        self._minutes: dict[str, tuple[float, int]] = {}

    def warning(self, kind: str, message: str, *values: object) -> None:
        self._log(logging.WARNING, kind, message, values)

    def error(self, kind: str, message: str, *values: object) -> None:
        self._log(logging.ERROR, kind, message, values)

    def _log(self, level: int, kind: str, message: str, values: tuple[object, ...]) -> None:
        with self._lock:
            now = self._clock()
            began, count = self._minutes.get(kind, (now, 0))
            over = now - began >= 60
            dropped = max(0, count - LINES_PER_MINUTE) if over else 0
            count = 1 if over else count + 1
            self._minutes[kind] = (now if over else began, count)
        if dropped:
            self._logger.log(level, "%d more lines like the next one were dropped", dropped)
        if count <= LINES_PER_MINUTE:
            self._logger.log(level, message, *values)


def _time(record: logging.LogRecord) -> str:
    return rfc3339(datetime.fromtimestamp(record.created, UTC), "milliseconds")


def printable(text: str) -> str:
    """`text` as one line of printable characters; others are escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
