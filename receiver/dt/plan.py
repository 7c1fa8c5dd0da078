"""What a backfill fetches: the windows of gaps or of a requested time, and the devices as they are now.

An interrupted backfill saves its remaining windows in the journal; repeating the same request resumes it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from receiver.dt.api import Api, Device
from receiver.dt.session import ApiError, Missing, Unavailable
from receiver.errors import NotAnEvent, ReceiverError
from receiver.event import Event, Origin, parse_time
from receiver.journal import Journal, Records
from receiver.sensors.gaps import HISTORY_MINUTES
from receiver.sensors.shown import OpenGap
from receiver.validation import counted

PROGRESS = "backfill"
"""The document with the remaining windows of an interrupted backfill."""

RESUME_SECONDS = 86400.0
"""A backfill that was interrupted longer ago is not resumed, but starts again."""

SAMPLED_EVENTS = 500
SAMPLED_REQUESTS = 3
"""How many of the newest events in the journal are looked at, and how many of them DT is asked for."""

SETTLED_SECONDS = 60.0
"""An older event is in DT's history, which is up to 10 s late."""


@dataclass(frozen=True)
class Window:
    """The events of one device between two times in seconds since 1970."""

    device_id: str
    project_id: str
    start: float
    end: float


@dataclass(frozen=True)
class Request:
    """What a person asked for: the events that gaps miss, or all events between `start` and `end`.

    `texts` are the command's options as given; the same options resume an interrupted backfill.
    """

    texts: tuple[str, ...]
    start: float | None = None
    end: float | None = None
    project: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class Plan:
    """The windows to fetch, and their devices as they are now; `failures` has a line for each that cannot be read.

    Events received before `retained_from` (seconds since 1970) may have been removed from the journal. `resumed` says
    that the windows are those that an interrupted backfill left.
    """

    windows: Sequence[Window]
    devices: Mapping[str, Device]
    gaps: Sequence[OpenGap]
    failures: Sequence[str]
    retained_from: float
    resumed: bool

    @property
    def seconds(self) -> int:
        return round(sum(window.end - window.start for window in self.windows))

    @property
    def question(self) -> str:
        """What to ask before events are fetched and delivered."""
        sensors = counted(len({window.device_id for window in self.windows}), "sensor")
        hours = f"{self.seconds / 3600:.0f} sensor hours"
        question = f"Fetch {hours} of {sensors} from DT, and deliver what the journal does not have?"
        if any(window.start < self.retained_from for window in self.windows):
            question += " What is older than [journal] retention_days may be delivered again."
        return question


def plan(
    api: Api,
    journal: Journal,
    request: Request,
    gaps: Iterable[OpenGap],
    retained_from: float,
    now: float,
    *,
    dry_run: bool,
) -> Plan:
    """What to fetch for a request. Raises ApiError if DT's REST API cannot be used."""
    chosen = [
        gap for gap in gaps if request.project in (None, gap.project_id) and request.device in (None, gap.device_id)
    ]
    saved = [] if dry_run else saved_windows(journal, request, now)
    if request.start is None or request.end is None or saved:
        windows = saved or windows_of_gaps(chosen, retained_from)
        wanted = {window.device_id: window.project_id for window in windows}
        retired = {gap.device_id for gap in chosen if gap.retired}
        devices, failures = find_devices(api, sorted({*wanted.values()} - {""}), wanted, retired)
        windows = [window for window in windows if window.device_id in devices]
    else:
        if request.device is not None:
            devices, failures = {request.device: api.device(request.device)}, []
        else:
            projects = [request.project] if request.project else [each.id for each in api.projects()]
            devices, failures = find_devices(api, projects, None)
        windows = [Window(each.id, each.project_id, request.start, request.end) for each in devices.values()]
    return Plan(windows, devices, chosen, failures, retained_from, bool(saved))


def windows_of_gaps(gaps: Iterable[OpenGap], retained_from: float) -> list[Window]:
    """A window for each gap, including the minutes in which the sensor was heard before and after it.

    Such a minute before `retained_from` is excluded: its events may have been removed from the journal, and would be
    delivered again.
    """
    windows = []
    for gap in gaps:
        start = gap.start * 60.0 if gap.start * 60 >= retained_from else (gap.start + 1) * 60.0
        end = (gap.end + 1) * 60.0 if gap.end * 60 >= retained_from else gap.end * 60.0
        windows.append(Window(gap.device_id, gap.project_id or "", start, end))
    return windows


def find_devices(
    api: Api, projects: Iterable[str], wanted: Mapping[str, str] | None, retired: Collection[str] = ()
) -> tuple[dict[str, Device], list[str]]:
    """The `wanted` devices as they are now, or all of these projects; and a line for each that cannot be read.

    `wanted` maps device ids to projects; devices that have since moved to another project are found there. A
    `retired` device that DT does not know any more was deleted, which is no failure. Raises Unavailable.
    """
    found: dict[str, Device] = {}
    failures: dict[str, str] = {}
    for project in projects:
        try:
            for device in api.devices(project):
                if device.id and (wanted is None or device.id in wanted):
                    found[device.id] = device
        except Unavailable:
            raise
        except ApiError as error:
            failures[project] = str(error)
    for name, project in (wanted or {}).items():
        if name not in found and project not in failures:
            try:
                found[name] = api.device(name)
            except Unavailable:
                raise
            except ApiError as error:
                if not (isinstance(error, Missing) and name in retired):
                    failures[name] = str(error)
    return found, list(failures.values())


def require_same_ids(api: Api, records: Records, devices: Mapping[str, Device], now: float) -> None:
    """Raise ReceiverError if a pushed event has another id in DT's history: everything would be stored twice.

    DT does not document that the ids are the same, so they are compared for some events of the journal.
    """
    requests = 0
    for history in records.newest(now - SETTLED_SECONDS, None, None, SAMPLED_EVENTS):
        try:
            event = history.event.decode()
        except NotAnEvent:
            continue
        device = devices.get(event.device_id or "")
        age = now - event.occurred_at.timestamp()
        if device is None or event.origin is not Origin.PUSH or not 0 < age < HISTORY_MINUTES * 60:
            continue
        same = _ids_in_history(api, device, event)
        if event.id in same:
            return
        if same:
            raise ReceiverError(
                f"DT's history has event {event.id} of device {event.device_id} under another id, so everything would "
                "be delivered twice; nothing was fetched: report this to the authors of the receiver"
            )
        requests += 1
        if requests == SAMPLED_REQUESTS:
            return


def _ids_in_history(api: Api, device: Device, event: Event) -> list[object]:
    """The ids in DT's history of all events of the same device, time and type."""
    at = event.occurred_at.timestamp()
    try:
        found = [each for page in api.events(device.project_id, device.id, at - 1, at + 1) for each in page]
    except Unavailable:
        raise
    except ApiError:  # which is reported when its window is fetched
        return []
    return [
        each.get("eventId")
        for each in found
        if isinstance(each, dict)
        and each.get("eventType") == event.type
        and parse_time(each.get("timestamp")) == event.occurred_at
    ]


def saved_windows(journal: Journal, request: Request, now: float) -> list[Window]:
    """The remaining windows of the same request, if it was interrupted within a day; else none."""
    try:
        saved = json.loads(journal.document(PROGRESS) or b"{}")
        if saved["request"] == list(request.texts) and 0 <= now - saved["began"] < RESUME_SECONDS:
            return [Window(*each) for each in saved["windows"]]
    except (ValueError, KeyError, TypeError):  # a newer receiver may have stored another shape
        pass
    return []


def save_windows(journal: Journal, request: Request, began: float, windows: Iterable[Window]) -> None:
    """Save the remaining windows of a request that began at `began` (seconds since 1970), so that it can be resumed."""
    left = [[each.device_id, each.project_id, each.start, each.end] for each in windows]
    saved = {"request": list(request.texts), "began": began, "windows": left}
    journal.save_document(PROGRESS, json.dumps(saved).encode() if left else b"")
