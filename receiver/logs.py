"""Log lines: to standard error, as text or JSON, and never with a secret in them."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from receiver.settings import Settings

LINES_A_MINUTE = 10


def set_up(settings: Settings) -> None:
    """Send every logger of this process to standard error in the format of `[receiver] log_format`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(settings) if settings.receiver.log_format == "json" else TextLines(settings))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    threading.excepthook = _log_death


def _log_death(death: threading.ExceptHookArgs) -> None:
    """A plugin's own thread that dies: Python would print what it raised as it is, secrets included."""
    if death.exc_value is not None and not isinstance(death.exc_value, SystemExit):
        name = death.thread.name if death.thread is not None else "unknown"
        details = (death.exc_type, death.exc_value, death.exc_traceback)
        logging.getLogger(__name__).error("thread %s died", name, exc_info=details)


class TextLines(logging.Formatter):
    """`2026-01-31T12:00:00.000Z WARNING receiver.dispatcher message`"""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._redact = settings.redact

    def format(self, record: logging.LogRecord) -> str:
        return f"{_time(record)} {record.levelname} {record.name} {self._message(record)}"

    def _message(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        return self._redact(text)


class JsonLines(TextLines):
    """One JSON object a line with `time`, `level`, `logger` and `message`."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {
                "time": _time(record),
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": self._message(record),
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
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
