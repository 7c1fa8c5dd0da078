"""A folder with a csv sink in it, whose files can be read back."""

from __future__ import annotations

import csv
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from receiver.delivery.sinks import Sink
from receiver.event import Event
from support.built_in_sinks import build, deliver_batch, open_sink

READINGS_HEADER = "event_id,time,device_id,device_name,project_id,event_type,quantity,value,unit,text,labels"
EVENTS_HEADER = "event_id,time,device_id,device_name,project_id,event_type,received_at,labels,data"


class CsvArchive:
    """A folder with one csv sink at a time, which writes events.csv unless its options say otherwise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "events.csv"
        self._sink: Sink | None = None

    def open(self, **options: Any) -> CsvArchive:
        """Close the sink, and open one with these options."""
        self.close()
        self._sink = open_sink(build_csv(self.folder, **options))
        return self

    def close(self) -> None:
        if self._sink is not None:
            self._sink.hook.close()
        self._sink = None

    def deliver(self, *events: Event, attempt: int = 1) -> None:
        assert self._sink is not None
        deliver_batch(self._sink, *events, attempt=attempt)

    def rows(self, name: str = "events.csv") -> list[dict[str, str]]:
        with (self.folder / name).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, strict=True))

    def ids(self, name: str = "events.csv") -> list[str]:
        """The event id of each row."""
        return [row["event_id"] for row in self.rows(name)]

    def names(self) -> list[str]:
        """The names of all files in the folder but the lock."""
        return sorted(path.name for path in self.folder.iterdir() if path.suffix != ".lock")


def build_csv(folder: Path, **options: Any) -> Sink:
    return build("csv", folder, {"path": "events.csv", **options})


def raise_disk_full(descriptor: int, *_: object) -> NoReturn:
    """In place of a function of `os` that gets a file descriptor."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[CsvArchive]:
    archive = CsvArchive(tmp_path)
    yield archive
    archive.close()
