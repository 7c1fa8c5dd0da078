"""Events: the newest ones, found by id or by sensor; what happened to one at each sink, its body, and its replay."""

from __future__ import annotations

import io
import json
from collections.abc import Collection
from typing import Any

from receiver import admin
from receiver.console import words
from receiver.console.paging import ROWS, Rows
from receiver.console.sources import NoRegistry
from receiver.console.visit import ID, Ask, Done, Page, Visit
from receiver.errors import ReceiverError
from receiver.event import EVENT_ID

MAX_SEARCH = 200
EVENTS_READ = 10_000
"""How many events are looked through at once for those of one sensor."""

SENSORS = 20
"""Of so many sensors with a name that matches, the events are shown."""

LABELS = 20
"""How many labels of an event are shown."""

MAX_BODY = 40_000
"""How many characters of a body are shown."""


def show(visit: Visit) -> Page:
    text = visit.query.get("q", "").strip()[:MAX_SEARCH]
    found = visit.records.history(text) if EVENT_ID.fullmatch(text) else None
    if found is not None:
        rows, following = [admin.event_row(found, admin.decoded(found.event))], None
    else:
        rows, following = listed(visit, text)
    values = {
        "rows": Rows(rows, None if following is None else str(following)),
        "text": text,
        "is_one": found is not None,
        "read": EVENTS_READ,
    }
    return Page("events.html", values)


def listed(visit: Visit, text: str) -> tuple[list[admin.EventRow], int | None]:
    """A page of events, of the sensors that the text names or of all, and where the next one begins."""
    given = visit.query.get("after", "")
    before = int(given) if given.isdecimal() and len(given) < 19 else None
    devices = sensors(visit, text) if text else ()
    if text and not devices:
        return [], None
    return admin.newest_events(visit.records, visit.now + 60, devices, ROWS, events_read(len(devices)), before)


def events_read(sensors: int) -> int:
    """How many events are looked through at once for those of so many sensors: the journal is not indexed by them."""
    return EVENTS_READ // max(1, sensors)


def sensors(visit: Visit, text: str) -> Collection[str]:
    """The device ids that a text names: it may be one, or part of the name of sensors."""
    ids = {text} if ID.fullmatch(text) else set()
    try:
        if ids and visit.registry.rows([text]):
            return ids
        return ids | {row.device_id for row in visit.registry.page(None, SENSORS, text=text)}
    except NoRegistry:
        return ids


def show_one(visit: Visit) -> Page:
    found = admin.explain(visit.records, visit.settings, of_path(visit))
    event = found.event
    values = {
        "event": event,
        "is_sensor": ID.fullmatch(event.device_id or "") is not None,
        "labels": list(event.labels.items())[:LABELS],
        "deliveries": found.deliveries,
        "readings": [
            (words.quantity(each.quantity), words.value(each.quantity, each.value), each.time)
            for each in event.readings()
        ],
        "sinks": [sink.name for sink in visit.settings.enabled_sinks],
        **shown_body(event.body),
    }
    return Page("event.html", values)


def of_path(visit: Visit) -> str:
    """The event id of the path. Raises ReceiverError if it cannot be one."""
    name = visit.path["event"]
    if not EVENT_ID.fullmatch(name):
        raise ReceiverError("no event has this id")
    return name


def shown_body(given: bytes) -> dict[str, Any]:
    """The values of `body.html`: lines as received and as indented JSON, and whether that is only the beginning."""
    raw, indented = given.decode("utf-8", "replace"), formatted(given)
    is_cut = max(len(raw), len(indented)) > MAX_BODY
    return {"raw": lines(raw), "formatted": lines(indented), "is_cut": is_cut}


def lines(text: str) -> list[str]:
    return text[:MAX_BODY].expandtabs(4).splitlines()


def formatted(given: bytes) -> str:
    """A body as indented JSON, or the beginning of it: of a deeply nested one, the indentation alone has megabytes.

    Empty if it is not JSON.
    """
    text = io.StringIO()
    try:
        for part in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(json.loads(given)):
            if text.write(part) and text.tell() > MAX_BODY:
                break
    except (ValueError, RecursionError):
        return ""
    return text.getvalue()


def replay(visit: Visit) -> Ask | Done:
    event_id, sink = of_path(visit), visit.form.get("sink", "")
    if visit.confirmed:
        number = admin.replay_event(visit.records, visit.settings, sink, event_id)
        return Done(f"/events/{event_id}", "replayed", number)
    admin.replayable(visit.records, visit.settings, sink, event_id)
    return Ask(
        f"Deliver 1 event to sink {sink} again, also if it was delivered there.",
        "Replay 1 event",
        f"/events/{event_id}",
        f"replay {sink} --event {event_id}",
    )
