"""Line protocol: a reading as a line of text.

https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from receiver import Event, Reading

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TAG_LENGTH = 500
"""All tags of a point together may have 64 KiB at most."""

SPECIAL = str.maketrans({",": r"\,", "=": r"\=", " ": r"\ "})


def line(measurement: str, event: Event, reading: Reading, label_tags: Sequence[str]) -> str:
    """One point: the quantity as its field, device and labels as its tags, in nanoseconds since 1970."""
    tags = {
        "device_id": reading.device_id or "",
        **{f"label_{name}": event.labels.get(name, "") for name in label_tags},
    }
    given = ((escaped(name), escaped(text)) for name, text in sorted(tags.items()))
    point = ",".join([measurement, *(f"{name}={text}" for name, text in given if text)])
    return f"{point} {escaped(reading.quantity)}={float(reading.value)!r} {nanoseconds(reading.time)}"


def escaped(text: str) -> str:
    """A tag's name or value, or a field's name.

    There is no way to write the end of a line, so it becomes a space. Servers disagree about a backslash before what
    is special (https://github.com/influxdata/telegraf/issues/3004), so it becomes a slash.
    """
    shown = "".join(character if character.isprintable() else " " for character in text[:TAG_LENGTH])
    return shown.strip().replace("\\", "/").translate(SPECIAL)


def nanoseconds(time: datetime) -> int:
    return (time - EPOCH) // timedelta(microseconds=1) * 1000
