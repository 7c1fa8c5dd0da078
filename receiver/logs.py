"""Log lines: to standard error, as text or JSON, and never with a secret in them."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from receiver.settings import Settings


def set_up(settings: Settings) -> None:
    """Send every logger of this process to standard error in the format of `[receiver] log_format`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(settings) if settings.receiver.log_format == "json" else TextLines(settings))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.getLogger("urllib3").setLevel(logging.ERROR)


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


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
