"""How the `csv` sink writes events as rows: which columns there are, and what their cells contain."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Literal

from receiver import Event

Row = dict[str, Any]

COMMON_COLUMNS = ("event_id", "time", "device_id", "device_name", "project_id", "event_type")
COLUMNS = {
    "readings": (*COMMON_COLUMNS, "quantity", "value", "unit", "text", "labels"),
    "events": (*COMMON_COLUMNS, "received_at", "labels", "data"),
}
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What the text of a formula begins with: https://owasp.org/www-community/attacks/CSV_Injection"""


class Layout:
    """The columns of a file, in their order, and the rows of events in them."""

    def __init__(
        self, rows: Literal["readings", "events"], columns: Sequence[str] | None, label_columns: Sequence[str]
    ) -> None:
        """Raises ValueError for a column that does not exist."""
        known = (*COLUMNS[rows], *(f"label_{label}" for label in label_columns))
        unknown = [column for column in columns or () if column not in known]
        if unknown:
            raise ValueError(f"no column {unknown[0]!r}; there are: {', '.join(known)}")
        self._one_row_per_event = rows == "events"
        self._label_columns = tuple(label_columns)
        self._columns = tuple(dict.fromkeys(("event_id", *columns) if columns else known))
        self.header = self.encode([{column: column for column in self._columns}])

    def rows(self, event: Event) -> list[Row]:
        """The rows of an event, at least one; with all columns, also those that the file does not have."""
        row: Row = {
            "event_id": event.id,
            "time": timestamp(event.occurred_at),
            "device_id": event.device_id,
            "device_name": event.labels.get("name"),
            "project_id": event.project_id,
            "event_type": event.type,
            "labels": json.dumps(dict(event.labels), ensure_ascii=False) if event.labels else "",
        }
        row |= {f"label_{label}": event.labels.get(label) for label in self._label_columns}
        if self._one_row_per_event:
            data = json.dumps(event.data, ensure_ascii=False)
            return [row | {"received_at": timestamp(event.received_at), "data": data}]
        return [row | cells for cells in reading_cells(event)] or [row]

    def encode(self, rows: Iterable[Row]) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\r\n")
        writer.writerows([cell(column, row.get(column)) for column in self._columns] for row in rows)
        return text.getvalue().encode()


def reading_cells(event: Event) -> Iterator[Row]:
    for reading in event.readings():
        yield {
            "time": timestamp(reading.time),
            "quantity": reading.quantity,
            "value": reading.value,
            "unit": reading.unit,
            "text": reading.text,
        }


def timestamp(time: datetime) -> str:
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")


def cell(column: str, value: Any) -> Any:
    """A cell; text that a spreadsheet would read as a formula is marked as text. Event ids are not changed.

    No cell has a NUL: in a file, zeros are a sign of data that a power cut has taken.
    """
    if isinstance(value, str):
        value = value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    if column != "event_id" and isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return value
