"""How the `csv` sink writes events as rows: which columns there are, and what their cells contain."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, tzinfo
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

FORMULA_AFTER_SEPARATOR = re.compile(r'([,;\t\r\n]"*)([=+\-@])')
"""What begins a formula in a spreadsheet that splits rows at another delimiter: quotes hold a cell together only at its
beginning."""

JSON_COLUMNS = ("labels", "data")


class Layout:
    """The columns of a file, in their order, and the rows of events in them.

    `labels` is whether there is a column with all labels; times are written in `zone`.
    """

    def __init__(
        self,
        rows: Literal["readings", "events"],
        columns: Sequence[str] | None = None,
        label_columns: Sequence[str] = (),
        *,
        labels: bool = True,
        delimiter: str = ",",
        decimal: str = ".",
        zone: tzinfo = UTC,
    ) -> None:
        """Raises an ExceptionGroup for columns that do not exist, and for a decimal mark that is the delimiter."""
        known = (*COLUMNS[rows], *(f"label_{label}" for label in label_columns))
        if not labels:
            known = tuple(column for column in known if column != "labels")
        unknown = [column for column in columns or () if column not in known]
        errors = [ValueError(f"no column {column!r}; there are: {', '.join(known)}") for column in unknown]
        if decimal == delimiter:
            errors.insert(0, ValueError(f"decimal and delimiter are both {decimal!r}; set delimiter to ';'"))
        if errors:
            raise ExceptionGroup("invalid options", errors)
        self._one_row_per_event = rows == "events"
        self._label_columns = tuple(label_columns)
        self._columns = tuple(dict.fromkeys(("event_id", *columns) if columns else known))
        self._delimiter = delimiter
        self._decimal = decimal
        self._zone = zone
        self.header = self.encode([{column: column for column in self._columns}])

    def rows(self, event: Event) -> list[Row]:
        """The rows of an event, at least one; with all columns, also those that the file does not have."""
        row: Row = {
            "event_id": event.id,
            "time": self._timestamp(event.occurred_at),
            "device_id": event.device_id,
            "device_name": event.labels.get("name"),
            "project_id": event.project_id,
            "event_type": event.type,
            "labels": json.dumps(dict(event.labels), ensure_ascii=False) if event.labels else "",
        }
        row |= {f"label_{label}": event.labels.get(label) for label in self._label_columns}
        if self._one_row_per_event:
            data = json.dumps(event.data, ensure_ascii=False)
            return [row | {"received_at": self._timestamp(event.received_at), "data": data}]
        return [row | cells for cells in self._reading_cells(event)] or [row]

    def encode(self, rows: Iterable[Row]) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text, delimiter=self._delimiter, lineterminator="\r\n")
        writer.writerows([self._cell(column, row.get(column)) for column in self._columns] for row in rows)
        return text.getvalue().encode()

    def _reading_cells(self, event: Event) -> Iterator[Row]:
        for reading in event.readings():
            yield {
                "time": self._timestamp(reading.time),
                "quantity": reading.quantity,
                "value": reading.value,
                "unit": reading.unit,
                "text": reading.text,
            }

    def _timestamp(self, time: datetime) -> str:
        if self._zone is UTC:
            return time.isoformat(timespec="microseconds").replace("+00:00", "Z")
        with suppress(OverflowError):  # the first or the last day that there is
            time = time.astimezone(self._zone)
        return time.isoformat(timespec="microseconds")

    def _cell(self, column: str, value: Any) -> Any:
        return repr(value).replace(".", self._decimal) if isinstance(value, float) else cell(column, value)


def cell(column: str, value: Any) -> Any:
    """A cell; text that a spreadsheet would read as a formula is marked as text. Event ids are not changed, and JSON
    keeps its meaning.

    No cell has a NUL: in a file, zeros are a sign of data that a power cut has taken.
    """
    if isinstance(value, str):
        value = value.replace("\0", "\N{REPLACEMENT CHARACTER}")
        value = FORMULA_AFTER_SEPARATOR.sub(_escaped if column in JSON_COLUMNS else r"\1'\2", value)
    if column != "event_id" and isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return value


def _escaped(found: re.Match[str]) -> str:
    """For a formula in JSON, where it can only be within a string: `json.dumps` puts a space after each separator."""
    return f"{found[1]}\\u{ord(found[2]):04x}"
