"""Line protocol: a reading as a line of text.

https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from receiver import Event, Reading

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_TAG_CHARACTERS = 500
"""All tags of a point together can have 64 KiB."""

SPECIAL = str.maketrans({",": r"\,", "=": r"\=", " ": r"\ "})


def line(measurement: str, event: Event, reading: Reading, label_tags: Sequence[str]) -> str:
    """A point: the quantity is its field, device id and labels are its tags, the time is in nanoseconds since 1970."""
    tags = {
        "device_id": reading.device_id or "",
        **{f"label_{name}": event.labels.get(name, "") for name in label_tags},
    }
    escaped_tags = ((escaped(name), escaped(text)) for name, text in sorted(tags.items()))
    series = ",".join([measurement, *(f"{name}={text}" for name, text in escaped_tags if text)])
    return f"{series} {escaped(reading.quantity)}={float(reading.value)!r} {nanoseconds(reading.time)}"


def escaped(text: str) -> str:
    """The name or value of a tag, or the name of a field.

    Line ends cannot be escaped and become spaces. Servers disagree about backslashes before special characters
    (https://github.com/influxdata/telegraf/issues/3004), so backslashes become slashes.
    """
    printable = "".join(character if character.isprintable() else " " for character in text[:MAX_TAG_CHARACTERS])
    return printable.strip().replace("\\", "/").translate(SPECIAL)


def nanoseconds(time: datetime) -> int:
    return (time - EPOCH) // timedelta(microseconds=1) * 1000
