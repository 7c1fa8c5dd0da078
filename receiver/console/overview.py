"""The first page: one sentence of judgement, what needs attention, rates, and DT's deadlines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from receiver.admin import SinkStatus, ago, sink_statuses, time_or_none
from receiver.console.sources import MOST_COUNTED, NoRegistry
from receiver.console.visit import Page, Visit
from receiver.console.words import up_to
from receiver.health import dispatcher_warnings, is_alive
from receiver.incident import Incident
from receiver.journal import Records
from receiver.validation import counted, in_one_unit

QUIET = timedelta(minutes=90)
"""After so long without a push something is wrong: the longest heartbeat of a sensor is an hour."""

DROPPED_AFTER = timedelta(hours=12)
"""For so long DT retries a push; then it drops the event."""

DISABLED_AFTER = timedelta(days=5)
"""After about so long without a success DT disables the Data Connector."""

BACKLOG_SECONDS = 3600.0
RECENT_EVENTS = 200
"""The rate is that of so many events, or of those of the last minutes."""

RATE_SECONDS = 300.0
MOST = 5
"""How many sinks or incidents of one kind are named."""


@dataclass(frozen=True)
class Concern:
    """Something that needs attention: `mood` is `bad` if data may be lost meanwhile, else `warn`."""

    mood: str
    sentence: str
    path: str = ""
    link: str = ""


@dataclass(frozen=True)
class Deadline:
    """What DT does at a time if it does not reach us until then."""

    sentence: str
    at: datetime
    over: bool
    left: str


@dataclass(frozen=True)
class Sensors:
    """How many sensors there are in each state, and the open incidents."""

    states: dict[str, int]
    incidents: Sequence[Incident]
    open: int

    @property
    def expected(self) -> int:
        return sum(count for state, count in self.states.items() if state != "retired")

    @property
    def heard(self) -> int:
        return self.states["ok"] + self.states["learning"]


def show(visit: Visit) -> Page:
    records = visit.records
    counts, liveness = visit.sources.counts(), records.liveness()
    alive = is_alive(liveness)
    sinks = sink_statuses(records, visit.settings, counts.sinks)
    last_push = time_or_none(counts.last_push_at)
    sensors = look_at_sensors(visit)
    found = [
        *concerns_of_pushes(alive, last_push, visit.time),
        *concerns_of_incidents(sensors),
        *concerns_of_sinks(sinks),
        *concerns_of_quarantine(counts.quarantined),
        *(Concern("warn", f"{warning[:1].upper()}{warning[1:]}.") for warning in dispatcher_warnings(liveness)),
    ]
    concerns = sorted(found, key=lambda concern: concern.mood)  # those that are bad come first
    values = {
        "verdict": verdict(alive, last_push, visit.time, concerns, sensors),
        "concerns": concerns,
        "deadlines": deadlines(last_push, visit.time),
        "sensors": sensors,
        "sinks": sinks,
        "last_push": last_push,
        "rate": events_per_minute(records, visit.now),
        "unrouted": counts.unrouted,
        "responses": totals(visit),
    }
    return Page("overview.html", values)


def look_at_sensors(visit: Visit) -> Sensors | None:
    """None if there is no registry."""
    try:
        registry = visit.registry
    except NoRegistry:
        return None
    return Sensors(
        visit.sources.states(), registry.incidents(MOST, open_only=True, named=False), sum(registry.causes().values())
    )


def concerns_of_pushes(alive: bool, last_push: datetime | None, now: datetime) -> Iterator[Concern]:
    if not alive:
        yield Concern("bad", "No dispatcher is alive: events are stored and wait, and nothing is delivered.")
    if last_push is not None and now - last_push > QUIET:
        yield Concern(
            "bad",
            f"No push was accepted for {in_one_unit((now - last_push).total_seconds())}: look at the Data Connector "
            "in DT Studio.",
            "/rejected",
            "Rejected pushes",
        )


def concerns_of_incidents(sensors: Sensors | None) -> Iterator[Concern]:
    if sensors is None:
        return
    for incident in sensors.incidents:
        yield Concern("bad", f"{incident.reason[:1].upper()}{incident.reason[1:]}.", "/silence", "Silence")
    if more := sensors.open - len(sensors.incidents):
        yield Concern("bad", f"{counted(more, 'more incident is', 'more incidents are')} open.", "/silence", "Silence")


def concerns_of_sinks(sinks: Sequence[SinkStatus]) -> Iterator[Concern]:
    for sink in sinks:
        if sink.configured == "enabled" and sink.pause_reason:
            yield Concern("warn", f"Sink {sink.sink} is paused: {sink.pause_reason}", "/sinks", "Sinks")
        elif (sink.oldest_pending_age_seconds or 0.0) > BACKLOG_SECONDS:
            age = in_one_unit(sink.oldest_pending_age_seconds or 0.0)
            yield Concern("warn", f"The oldest pending delivery of sink {sink.sink} is {age} old.", "/sinks", "Sinks")
        if sink.dead:
            letters = f"{up_to(sink.dead, MOST_COUNTED)} {'dead letter' if sink.dead == 1 else 'dead letters'}"
            yield Concern("warn", f"Sink {sink.sink} has {letters}.", f"/dead-letters?sink={sink.sink}", "Dead letters")


def concerns_of_quarantine(count: int) -> Iterator[Concern]:
    if count:
        pushes = "verified push is" if count == 1 else "verified pushes are"
        number = up_to(count, MOST_COUNTED)
        yield Concern(
            "warn",
            f"{number[:1].upper()}{number[1:]} {pushes} in quarantine: not a valid event.",
            "/rejected",
            "Quarantine",
        )


def deadlines(last_push: datetime | None, now: datetime) -> list[Deadline]:
    """What DT does next if it retries pushes since the last one that was accepted; nothing while they arrive."""
    if last_push is None or now - last_push <= QUIET:
        return []
    return [
        Deadline(sentence, last_push + after, last_push + after <= now, left(last_push + after - now))
        for sentence, after in (
            ("DT drops the first events", DROPPED_AFTER),
            ("DT disables the Data Connector, and what it misses then is never sent", DISABLED_AFTER),
        )
    ]


def left(time: timedelta) -> str:
    """Hours and minutes of a countdown: `9 h 20 min`."""
    minutes = max(0, int(time.total_seconds() // 60))
    hours = minutes // 60
    return f"{hours // 24} d {hours % 24} h" if hours >= 24 else f"{hours} h {minutes % 60} min"


def verdict(
    alive: bool, last_push: datetime | None, now: datetime, concerns: Sequence[Concern], sensors: Sensors | None
) -> str:
    """The state of everything in one sentence."""
    if not alive:
        return "Events are stored, but nothing is delivered."
    if last_push is None:
        return "Ready: no push has been accepted yet."
    if now - last_push > QUIET:
        return f"Nothing arrives: the last push was accepted {ago(last_push)}."
    if concerns:
        return f"Events arrive; {counted(len(concerns), 'thing needs', 'things need')} attention."
    heard = f", and {counted(sensors.heard, 'sensor is', 'sensors are')} heard" if sensors and sensors.heard else ""
    return f"All is well: events arrive and are delivered{heard}."


def events_per_minute(records: Records, now: float) -> float:
    """The rate at which events were stored in the last minutes."""
    newest = records.newest(now + 1, None, None, RECENT_EVENTS)
    recent = [found.event.received_at for found in newest if found.event.received_at > now - RATE_SECONDS]
    seconds = now - recent[-1] if len(recent) == RECENT_EVENTS else RATE_SECONDS
    return 60 * len(recent) / max(1.0, seconds)


def totals(visit: Visit) -> list[tuple[str, int]]:
    """Responses to pushes since the start of `serve`: each text of a 200, and all others together."""
    responses = visit.sources.responses()
    accepted = [(text, count) for (code, text), count in sorted(responses.items()) if code == 200]
    rejected = sum(count for (code, _), count in responses.items() if code != 200)
    return [*accepted, *([("rejected", rejected)] if rejected else [])]
