"""Fetches from DT's history what the receiver has missed, and stores it in the journal, from where it is delivered.

An event is stored once, by its id, whether it was pushed or fetched. So fetching too much, fetching twice, and pushes
that come meanwhile double nothing; a window counts as fetched only after everything in it is stored.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from receiver.dt.api import Api, ApiError, Device, Missing, Session, Stopped, Unavailable
from receiver.errors import JournalError, NotAnEvent, ReceiverError
from receiver.event import Event, Origin, identify, parse_time
from receiver.journal import Arrival, Journal, Outcome, Records
from receiver.sensors.minutes import Minutes, minute_of
from receiver.sensors.shown import OpenGap
from receiver.validation import counted

HISTORY_MINUTES = 31 * 24 * 60
"""How far back DT's history goes."""

BATCH = 1000
"""How many events one commit stores: pushes wait meanwhile."""

PROGRESS = "backfill"
"""The document with what is left of a backfill that was interrupted."""

SAVE_SECONDS = 0.5
SAVED_AT_ONCE = 1000
"""What is left is saved so often, and less often the more parts there are."""

RESUME_SECONDS = 86400.0
"""What was interrupted longer ago is begun anew."""

SAMPLED_EVENTS = 500
SAMPLED_REQUESTS = 3
SETTLED_SECONDS = 60.0
"""An event that is older is in DT's history, which is up to 10 s late."""


@dataclass(frozen=True)
class Window:
    """What is to be fetched: the events of a device between two times in seconds since 1970."""

    device_id: str
    project_id: str
    start: float
    end: float


@dataclass(frozen=True)
class Request:
    """What a person asked for: what gaps have missed, or with a `start` and an `end` all events between these times.

    `texts` are the options as they were given: the same ones go on with a backfill that was interrupted.
    """

    texts: tuple[str, ...]
    start: float | None = None
    end: float | None = None
    project: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class Plan:
    """What is to be fetched, of devices as they are now; `failures` has a line for what cannot be read.

    What was received before `kept` may be no longer in the journal. `continued` is the rest of an interrupted backfill.
    """

    windows: Sequence[Window]
    devices: Mapping[str, Device]
    gaps: Sequence[OpenGap]
    failures: Sequence[str]
    kept: float
    continued: bool

    @property
    def seconds(self) -> int:
        return round(sum(window.end - window.start for window in self.windows))

    @property
    def question(self) -> str:
        """What to ask before events are fetched and delivered."""
        sensors = counted(len({window.device_id for window in self.windows}), "sensor")
        hours = f"{self.seconds / 3600:.0f} sensor hours"
        question = f"Fetch {hours} of {sensors} from DT, and deliver what the journal does not have?"
        if any(window.start < self.kept for window in self.windows):
            question += " What is older than [journal] retention_days may be delivered again."
        return question


@dataclass(frozen=True)
class Summary:
    """What a backfill did; `failures` has a line for what could not be fetched."""

    fetched: int
    new: int
    known: int
    quarantined: int
    gaps_closed: int
    gaps_left: int
    failures: tuple[str, ...]


@dataclass(frozen=True)
class MissedRow:
    """How many events of a device are not in the journal."""

    device_id: str
    device_name: str | None
    new: int


def plan(
    api: Api, journal: Journal, request: Request, gaps: Iterable[OpenGap], kept: float, now: float, *, dry_run: bool
) -> Plan:
    """What to fetch for a request. Raises ApiError if nothing can be read at all."""
    chosen = [
        gap for gap in gaps if request.project in (None, gap.project_id) and request.device in (None, gap.device_id)
    ]
    saved = [] if dry_run else _saved_windows(journal, request, now)
    if request.start is None or request.end is None or saved:
        windows = saved or windows_of_gaps(chosen, kept)
        wanted = {window.device_id: window.project_id for window in windows}
        devices, failures = find_devices(api, sorted({*wanted.values()}), wanted)
        windows = [window for window in windows if window.device_id in devices]
    else:
        if request.device is not None:
            devices, failures = {request.device: api.device(request.device)}, []
        else:
            projects = [request.project] if request.project else [each.id for each in api.projects()]
            devices, failures = find_devices(api, projects, None)
        windows = [Window(each.id, each.project_id, request.start, request.end) for each in devices.values()]
    return Plan(windows, devices, chosen, failures, kept, bool(saved))


def windows_of_gaps(gaps: Iterable[OpenGap], kept: float) -> list[Window]:
    """A window for each gap, with the minutes in which the sensor was heard before and after it.

    Before `kept` without them: what was heard then is no longer in the journal, and would be delivered again.
    """
    windows = []
    for gap in gaps:
        start = gap.start * 60.0 if gap.start * 60 >= kept else (gap.start + 1) * 60.0
        end = (gap.end + 1) * 60.0 if gap.end * 60 >= kept else gap.end * 60.0
        windows.append(Window(gap.device_id, gap.project_id or "", start, end))
    return windows


def find_devices(
    api: Api, projects: Iterable[str], wanted: Mapping[str, str] | None
) -> tuple[dict[str, Device], list[str]]:
    """The `wanted` devices as they are now, or all of these projects; and a line for what cannot be read.

    `wanted` maps device ids to projects. A device that has moved to another project meanwhile is found there.
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
                failures[name] = str(error)
    return found, list(failures.values())


def require_same_ids(api: Api, records: Records, devices: Mapping[str, Device], now: float) -> None:
    """Raise ReceiverError if an event that was pushed has another id in DT's history: all would be stored twice.

    DT does not say that the ids are the same, so it is asked for some events that the journal has.
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
    """The ids that an event may have in DT's history: of all events of its time and type."""
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


def _saved_windows(journal: Journal, request: Request, now: float) -> list[Window]:
    """What is left of the same `request`, if it was interrupted within a day."""
    try:
        saved = json.loads(journal.document(PROGRESS) or b"{}")
        if saved["request"] == list(request.texts) and 0 <= now - saved["began"] < RESUME_SECONDS:
            return [Window(*each) for each in saved["windows"]]
    except (ValueError, KeyError, TypeError):  # a newer receiver may have stored another shape
        pass
    return []


class Backfill:
    """Fetches windows with several threads, and stores what is in them. `dry_run` stores nothing.

    `progress` is called with the seconds of history that were fetched since its last call, by one thread at a time.
    """

    def __init__(
        self,
        session: Session,
        journal: Journal,
        records: Records,
        plan: Plan,
        request: Request,
        progress: Callable[[int], object] = lambda seconds: None,
        *,
        dry_run: bool = False,
    ) -> None:
        self.new_by_device: Counter[str] = Counter()
        self._session = session
        self._journal = journal
        self._records = records
        self._plan = plan
        self._request = request
        self._dry_run = dry_run
        self._progress = progress
        self._began = session.now()
        self._lock = threading.Lock()
        self._outcomes: Counter[Outcome] = Counter()
        self._failures = list(plan.failures)
        self._left = dict(enumerate(plan.windows))
        self._fetched: dict[str, Minutes] = {}
        self._saved_at = float("-inf")
        self._abort: ReceiverError | None = None

    def run(self, concurrency: int = 4) -> Summary:
        """Fetch and store what is planned. Raises ReceiverError if DT or the journal is away; the rest is left then.

        What fails of one device is in the summary.
        """
        waiting = iter(list(self._left.items()))
        try:
            with ThreadPoolExecutor(concurrency) as pool:
                try:
                    for work in [pool.submit(self._work, waiting) for _ in range(concurrency)]:
                        work.result()
                except BaseException:
                    self._session.stop()
                    raise
            if self._abort is not None:
                raise ReceiverError(f"{self._abort}; the same command goes on where this one was interrupted")
            self._left.clear()
        finally:
            self._save(force=True)
        closed = [gap for gap in self._plan.gaps if gap.is_filled_by(self._fetched.get(gap.device_id, Minutes()))]
        return Summary(
            fetched=self._outcomes.total(),
            new=self._outcomes[Outcome.ACCEPTED],
            known=self._outcomes[Outcome.DUPLICATE],
            quarantined=self._outcomes[Outcome.QUARANTINED],
            gaps_closed=len(closed),
            gaps_left=len(self._plan.gaps) - len(closed),
            failures=tuple(self._failures),
        )

    def _work(self, waiting: Iterator[tuple[int, Window]]) -> None:
        with closing(Api(self._session)) as api:
            while self._abort is None:
                with self._lock:
                    taken = next(waiting, None)
                if taken is None:
                    return
                try:
                    self._fetch(api, *taken)
                except (JournalError, Unavailable) as error:
                    self._abort = self._abort or error
                    self._session.stop()
                except Stopped:
                    return
                except ApiError as error:
                    with self._lock:
                        self._failures.append(str(error))

    def _fetch(self, api: Api, number: int, window: Window) -> None:
        device = self._plan.devices[window.device_id]
        above = float("inf")
        in_order = True
        left = window.end
        for page in _pages(api, device, window):
            times = self._store(device, page)
            in_order = in_order and all(
                later >= earlier for later, earlier in zip([above, *times], times, strict=False)
            )
            if times and in_order:  # or what is left of the window is unknown, until all of it is fetched
                above = times[-1]
                reached = min(left, max(window.start, above + 1))
                self._advance(left - reached, number, replace(window, end=reached))
                left = reached
        self._advance(left - window.start, number, None)

    def _advance(self, seconds: float, number: int, left: Window | None) -> None:
        with self._lock:
            if left is None:
                del self._left[number]
            else:
                self._left[number] = left
            self._progress(round(seconds))
            self._save()

    def _store(self, device: Device, page: Sequence[Any]) -> list[float]:
        """Store a page; the times of its events, in its order."""
        now = self._session.now()
        arrivals = [_arrival(event, device, now) for event in page]
        times = [time for event in page if (time := _time(event)) is not None]
        for start in range(0, len(arrivals), BATCH):
            some = arrivals[start : start + BATCH]
            outcomes = Counter(self._expected(some) if self._dry_run else self._journal.accept(some))
            with self._lock:
                self._outcomes += outcomes
                self.new_by_device[device.id] += outcomes[Outcome.ACCEPTED]
        with self._lock:
            self._fetched[device.id] = self._fetched.get(device.id, Minutes()) | _minutes(times)
        return times

    def missed_rows(self) -> list[MissedRow]:
        """The devices of which events were missed, those with the most first."""
        devices = self._plan.devices
        return [
            MissedRow(name, str(devices[name].labels.get("name") or "") or None, count)
            for name, count in self.new_by_device.most_common()
            if count
        ]

    def _expected(self, arrivals: Sequence[Arrival]) -> list[Outcome]:
        """What would become of these arrivals."""
        known = self._records.known([each.id for each in arrivals])
        outcomes = []
        for each in arrivals:
            if each.quarantine_reason is not None:
                outcomes.append(Outcome.QUARANTINED)
            else:
                outcomes.append(Outcome.DUPLICATE if each.id in known else Outcome.ACCEPTED)
                known.add(each.id)
        return outcomes

    def _save(self, *, force: bool = False) -> None:
        """Save what is left, so that the same request goes on there."""
        now = self._session.now()
        seconds = SAVE_SECONDS * max(1.0, len(self._left) / SAVED_AT_ONCE)
        if self._dry_run or (now - self._saved_at < seconds and not force):
            return
        self._saved_at = now
        windows = [[each.device_id, each.project_id, each.start, each.end] for each in self._left.values()]
        saved = {"request": list(self._request.texts), "began": self._began, "windows": windows}
        self._journal.save_document(PROGRESS, json.dumps(saved).encode() if windows else b"")


def _pages(api: Api, device: Device, window: Window) -> Iterator[list[Any]]:
    """The pages of a window; for a device that has moved meanwhile, from its new project."""
    try:
        yield from api.events(device.project_id, device.id, window.start, window.end)
    except Missing:
        moved = api.device(device.id)
        if moved.project_id == device.project_id:
            raise
        yield from api.events(moved.project_id, device.id, window.start, window.end)


def _arrival(event: object, device: Device, now: float) -> Arrival:
    """An event of the history as a push would have brought it; one that is no valid event, for the quarantine."""
    payload = {
        "event": event,
        "labels": device.labels,
        "metadata": {
            "deviceId": device.id,
            "projectId": _project(event) or device.project_id,
            "deviceType": device.type,
            "productNumber": device.product_number,
        },
    }
    body = json.dumps(payload, separators=(",", ":")).encode()
    try:
        return Arrival(identify(payload)[0], body, now, origin=Origin.HISTORY)
    except NotAnEvent as error:
        name = hashlib.sha256(body).hexdigest()
        return Arrival(name, body, now, quarantine_reason=str(error), origin=Origin.HISTORY)


def _project(event: object) -> str:
    """The project that a device was in when it sent an event, whose target is projects/P/devices/D."""
    target = event.get("targetName") if isinstance(event, dict) else None
    parts = target.split("/") if isinstance(target, str) else []
    return parts[1] if len(parts) == 4 else ""


def _time(event: object) -> float | None:
    time = parse_time(event.get("timestamp")) if isinstance(event, dict) else None
    return None if time is None else time.timestamp()


def _minutes(times: Sequence[float]) -> Minutes:
    minutes = [minute_of(time) for time in times if time > 0]
    if not minutes:
        return Minutes()
    first = min(minutes)
    bits = 0
    for minute in set(minutes):
        bits |= 1 << minute - first
    return Minutes(first, bits)
