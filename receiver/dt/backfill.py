"""Fetches missed events from DT's history, and stores them in the journal, from where they are delivered.

An event is stored once by its id, whether it was pushed or fetched, so overlapping windows, repeated runs and pushes in
the meantime cause no duplicates. A window counts as fetched only after everything in it is stored.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from receiver.dt.api import Api, Device
from receiver.dt.plan import Plan, Request, Window, save_windows
from receiver.dt.session import ApiError, Missing, Session, Stopped, Unavailable
from receiver.errors import JournalError, JournalUnavailable, NotAnEvent, ReceiverError
from receiver.event import Origin, identify, parse_time
from receiver.journal import Arrival, Journal, Outcome, Records
from receiver.sensors.gaps import HISTORY_MINUTES
from receiver.sensors.minutes import Minutes, minute_of

BATCH = 1000
"""How many events one commit stores; pushes have to wait for it."""

JOURNAL_SECONDS = 30.0
"""How long an unavailable journal is tried again: a slow disk or a failover should not end the work of hours."""

NOTICE_SECONDS = 0.5
"""How long a signal may stay unnoticed: one that another thread gets does not wake the main one, which handles it."""

SAVE_SECONDS = 0.5
SAVED_AT_ONCE = 1000
"""The remaining windows are saved at this interval, times the thousands of windows: saving all of them takes longer."""

Written = TypeVar("Written")


@dataclass(frozen=True)
class Summary:
    """The result of a backfill: numbers of events and gaps; `failures` has a line for each thing not fetched."""

    fetched: int
    new: int
    known: int
    quarantined: int
    gaps_closed: int
    gaps_left: int
    failures: tuple[str, ...]


@dataclass(frozen=True)
class MissedRow:
    """How many events of a device the journal lacks."""

    device_id: str
    device_name: str | None
    new: int


class Backfill:
    """Fetches the windows of a plan with several threads, and stores their events; with `dry_run`, only counts them.

    `progress` is called by one thread at a time, with the seconds of history that were fetched since its last call.
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
        self._writing = threading.Lock()
        self._outcomes: Counter[Outcome] = Counter()
        self._failures = list(plan.failures)
        self._left = dict(enumerate(plan.windows))
        self._fetched: dict[str, Minutes] = {}
        self._saved_at = float("-inf")
        self._abort: ReceiverError | None = None

    def run(self, concurrency: int = 4) -> Summary:
        """Fetch and store all windows. Raises ReceiverError if DT's API or the journal is unavailable.

        The same request then resumes it. Failures of single devices are in the summary.
        """
        waiting = iter(list(self._left.items()))
        try:
            with ThreadPoolExecutor(concurrency) as pool:
                try:
                    working = {pool.submit(self._work, waiting) for _ in range(concurrency)}
                    while working:
                        ended, working = wait(working, NOTICE_SECONDS, FIRST_EXCEPTION)
                        for work in ended:
                            work.result()
                except BaseException:
                    self._session.stop()
                    raise
            if self._abort is not None:
                raise ReceiverError(f"{self._abort}; the same command resumes it")
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
                    following = next(waiting, None)
                if following is None:
                    return
                try:
                    self._fetch(api, *following)
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
            if times and in_order:  # else the rest of the window is known only at its end
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
        """Store a page. Returns the times of its events, in its order."""
        now = self._session.now()
        arrivals = [_arrival(event, device, now) for event in page]
        times = [time for event in page if (time := _time(event)) is not None]
        for start in range(0, len(arrivals), BATCH):
            some = arrivals[start : start + BATCH]
            outcomes = Counter(
                self._expected(some) if self._dry_run else self._write(partial(self._journal.accept, some))
            )
            with self._lock:
                self._outcomes += outcomes
                self.new_by_device[device.id] += outcomes[Outcome.ACCEPTED]
        with self._lock:
            self._fetched[device.id] = self._fetched.get(device.id, Minutes()) | _minutes(times, now)
        return times

    def missed_rows(self) -> list[MissedRow]:
        """The devices with missed events, those with the most first."""
        devices = self._plan.devices
        return [
            MissedRow(name, str(devices[name].labels.get("name") or "") or None, count)
            for name, count in self.new_by_device.most_common()
            if count
        ]

    def _expected(self, arrivals: Sequence[Arrival]) -> list[Outcome]:
        """The outcomes that accepting these arrivals would have."""
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
        """Save the remaining windows, unless that was done a moment ago."""
        now = self._session.now()
        seconds = SAVE_SECONDS * max(1.0, len(self._left) / SAVED_AT_ONCE)
        if self._dry_run or (now - self._saved_at < seconds and not force):
            return
        self._saved_at = now
        self._write(lambda: save_windows(self._journal, self._request, self._began, self._left.values()))

    def _write(self, write: Callable[[], Written]) -> Written:
        """Write to the journal, again if it is unavailable. One thread at a time: a slow disk would let the others wait
        longer than the journal does.
        """
        with self._writing:
            end = self._session.now() + JOURNAL_SECONDS
            while True:
                try:
                    return write()
                except JournalUnavailable:
                    if self._abort is not None or self._session.now() >= end:
                        raise
                self._session.sleep(1.0)


def _pages(api: Api, device: Device, window: Window) -> Iterator[list[Any]]:
    """The pages of a window; from the new project if the device has moved since the plan was made."""
    try:
        yield from api.events(device.project_id, device.id, window.start, window.end)
    except Missing:
        moved = api.device(device.id)
        if moved.project_id == device.project_id:
            raise
        yield from api.events(moved.project_id, device.id, window.start, window.end)


def _arrival(event: object, device: Device, now: float) -> Arrival:
    """An event of the history in the shape of a push; for the quarantine if it is not a valid event."""
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


def _minutes(times: Sequence[float], now: float) -> Minutes:
    """The minutes of events; without those that DT's history cannot have, since a set takes a bit for each minute."""
    minutes = [minute_of(time) for time in times if abs(now - time) < 2 * HISTORY_MINUTES * 60]
    if not minutes:
        return Minutes()
    first = min(minutes)
    bits = 0
    for minute in set(minutes):
        bits |= 1 << minute - first
    return Minutes(first, bits)
