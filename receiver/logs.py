"""Log lines: to standard error, as text or JSON, and never with a secret in them."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from receiver.event import rfc3339
from receiver.settings import Settings

log = logging.getLogger(__name__)

LINES_A_MINUTE = 10


def set_up(settings: Settings) -> None:
    """Send every logger of this process to standard error in the format of `[receiver] log_format`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(settings) if settings.receiver.log_format == "json" else TextLines(settings))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, trace: log.critical("nobody caught an exception", exc_info=error)
    sys.unraisablehook = lambda told: log.error("nobody could catch an exception", exc_info=told.exc_value)
    threading.excepthook = lambda told: log.error("nobody caught an exception of a thread", exc_info=told.exc_value)


class TextLines(logging.Formatter):
    """`2026-01-31T12:00:00.000Z WARNING receiver.dispatcher message`; the lines of a traceback follow, indented.

    What is not printable is escaped, so that no message can look like a further record.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._redact = settings.redact

    def format(self, record: logging.LogRecord) -> str:
        message, traceback = self._message(record), self._traceback(record)
        lines = [printable(line) for line in (message, *traceback.split("\n")) if line]
        return f"{_time(record)} {record.levelname} {record.name} " + "\n  ".join(lines)

    def _message(self, record: logging.LogRecord) -> str:
        try:
            return self._redact(record.getMessage())
        except Exception as error:
            template = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
            return self._redact(f"{template} (its values cannot be shown: {type(error).__name__})")

    def _traceback(self, record: logging.LogRecord) -> str:
        return self._redact(self.formatException(record.exc_info)) if record.exc_info else ""


class JsonLines(TextLines):
    """One JSON object a line with `time`, `level`, `logger` and `message`."""

    def format(self, record: logging.LogRecord) -> str:
        message, traceback = self._message(record), self._traceback(record)
        return json.dumps(
            {
                "time": _time(record),
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": f"{message}\n{traceback}" if traceback else message,
            }
        )


class Seldom:
    """A logger that a flood does not get past: so many lines a minute for each kind, then how many were left out."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._lock = threading.Lock()
        self._minutes: dict[str, tuple[float, int]] = {}

    def warning(self, kind: str, message: str, *values: object) -> None:
        self._say(logging.WARNING, kind, message, values)

    def error(self, kind: str, message: str, *values: object) -> None:
        self._say(logging.ERROR, kind, message, values)

    def _say(self, level: int, kind: str, message: str, values: tuple[object, ...]) -> None:
        with self._lock:
            now = self._clock()
            began, said = self._minutes.get(kind, (now, 0))
            over = now - began >= 60
            left_out = max(0, said - LINES_A_MINUTE) if over else 0
            said = 1 if over else said + 1
            self._minutes[kind] = (now if over else began, said)
        if left_out:
            self._logger.log(level, "%d more lines like the following were left out", left_out)
        if said <= LINES_A_MINUTE:
            self._logger.log(level, message, *values)


def _time(record: logging.LogRecord) -> str:
    return rfc3339(datetime.fromtimestamp(record.created, UTC), "milliseconds")


def printable(text: str) -> str:
    """`text` as one line that a terminal shows as it is."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
