"""Sinks with a given behaviour, the loop of one sink to step through, and a dispatcher that runs in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from receiver.delivery.alerts import Alerts
from receiver.delivery.circuit_breaker import CircuitBreaker
from receiver.delivery.dispatcher import Dispatcher
from receiver.delivery.plugins import Plugins
from receiver.delivery.sink_loop import SinkLoop
from receiver.delivery.sink_type import SinkType
from receiver.delivery.sinks import Sink, build_sink
from receiver.event import Event
from receiver.hookspecs import hookimpl
from receiver.journal import Arrival, Journal, SinkCounts, SinkState
from receiver.lifeline import Lifeline
from receiver.redaction import Redactor
from receiver.settings import CommonOptions, Settings, SinkSettings, load
from receiver.testing.samples import TEST_SECRET
from receiver.variables import SECRET
from support.journals import SqliteStore

BLOCKED_SECONDS = 60.0
"""How long a blocked call lasts that the end of its test does not end."""

Behaviour = Callable[[Event, int], object]
"""What a sink does with an event and its attempt number."""


def succeed(event: Event, attempt: int) -> None:
    """Return normally."""


def always(error: BaseException) -> Behaviour:
    """Raise this for every event."""

    def behave(event: Event, attempt: int) -> None:
        raise error

    return behave


def first(*errors: BaseException | None) -> Behaviour:
    """Raise these, one in each call, and nothing from then on."""
    left = list(errors)

    def behave(event: Event, attempt: int) -> None:
        if left and (error := left.pop(0)) is not None:
            raise error

    return behave


def only_for(event_id: str, error: BaseException) -> Behaviour:
    """Raise this for one event."""

    def behave(event: Event, attempt: int) -> None:
        if event.id == event_id:
            raise error

    return behave


class SingleSink:
    """A sink that gets one event in each call, and records its calls."""

    def __init__(self, behave: Behaviour = succeed) -> None:
        self.behave = behave
        self.calls: list[tuple[str, int]] = []
        """The event id and the attempt number of each call."""
        self.opened_and_closed: list[str] = []

    @hookimpl
    def open(self, name: str) -> None:
        self.opened_and_closed.append(f"open {name}")

    @hookimpl
    def deliver(self, event: Event, attempt: int) -> None:
        self.calls.append((event.id, attempt))
        self.behave(event, attempt)

    @hookimpl
    def close(self) -> None:
        self.opened_and_closed.append("close")

    @property
    def event_ids(self) -> list[str]:
        return [event_id for event_id, _ in self.calls]


class BatchSink:
    """A sink that gets several events in each call; a batch fails like the first bad event in it."""

    def __init__(self, behave: Behaviour = succeed) -> None:
        self.behave = behave
        self.calls: list[list[str]] = []

    @hookimpl
    def deliver_batch(self, events: Sequence[Event], attempts: Sequence[int]) -> None:
        self.calls.append([event.id for event in events])
        for event, attempt in zip(events, attempts, strict=True):
            self.behave(event, attempt)


def event_body(event_id: str, event_type: str = "touch") -> bytes:
    return f'{{"event":{{"eventId":"{event_id}","eventType":"{event_type}","data":{{}}}}}}'.encode()


def accept_events(journal: Journal, *event_ids: str) -> None:
    for event_id in event_ids:
        journal.accept([Arrival(event_id, event_body(event_id), 1000.0)])


def add_deliveries(journal: Journal, sink: str, *event_ids: str) -> None:
    """Accept events, and route them and all other unrouted ones to one sink."""
    accept_events(journal, *event_ids)
    journal.route([(event, [sink]) for event in journal.unrouted(1000)])


def counts_of(journal: Journal, sink: str) -> tuple[int, int, int]:
    """How many deliveries of a sink are delivered, pending and dead."""
    counts = journal.counts().sinks.get(sink, SinkCounts())
    return counts.delivered, counts.pending, counts.dead


def load_settings(folder: Path) -> Settings:
    path = folder / "config.toml"
    path.write_text("")
    return load({"RECEIVER_CONFIG": str(path), SECRET: TEST_SECRET})


def sink_of(instance: object, settings: Settings, name: str = "s", **common: Any) -> Sink:
    """This object as the receiver builds it for `[sinks.NAME]` with these common keys."""
    options = CommonOptions.model_validate({"type": "tested", **common})
    sink_type = SinkType("tested", lambda: instance, "here")  # type: ignore[arg-type]  # returns a sink as a class does
    plugins = Plugins({"tested": sink_type})
    return build_sink(plugins, settings, SinkSettings(name, options), Redactor(settings.secret_values))


class LoopTester:
    """The loop of the sink `s` on a journal of its own, for tests that call `step` themselves."""

    def __init__(self, store: SqliteStore, settings: Settings) -> None:
        self.store = store
        self.clock = store.clock
        self.journal = store.open()
        self.settings = settings
        self.redact = Redactor(settings.secret_values).redact
        self.may_call = True

    def loop(self, instance: object, state: SinkState | None = None, **common: Any) -> SinkLoop:
        sink = sink_of(instance, self.settings, **common)
        breaker = CircuitBreaker(state or SinkState("s"), sink.common.retry, self.journal)
        return self._loop(sink, breaker, first=True)

    def second_thread(self, loop: SinkLoop) -> SinkLoop:
        """The loop of another thread of the same sink."""
        return self._loop(loop.sink, loop.breaker, first=False)

    def add_deliveries(self, *event_ids: str) -> None:
        add_deliveries(self.journal, "s", *event_ids)

    def counts(self) -> tuple[int, int, int]:
        """How many deliveries are delivered, pending and dead."""
        return counts_of(self.journal, "s")

    def seconds_until_due(self) -> float | None:
        due = self.journal.next_due("s")
        return None if due is None else due - self.clock.now

    def due_now(self) -> list[tuple[str, int, int]]:
        """Event id, next attempt number and failures of each delivery that can be claimed now; claims them."""
        claimed = self.journal.claim("s", 1000, 60.0)
        return [(delivery.event.id, delivery.attempt, delivery.failures) for delivery in claimed]

    def _loop(self, sink: Sink, breaker: CircuitBreaker, *, first: bool) -> SinkLoop:
        alerts = Alerts([], [], self.redact)
        return SinkLoop(
            sink,
            breaker,
            self.journal,
            alerts,
            random=lambda: 0.5,
            redact=self.redact,
            may_call=lambda: self.may_call,
            first=first,
        )


class RunningDispatcher:
    """A dispatcher in a thread, on a journal that the test uses as well."""

    def __init__(self, store: SqliteStore, settings: Settings) -> None:
        self.store = store
        self.journal = store.open()
        """The test's own access to the journal."""
        self.lifeline = Lifeline()
        self.unblocked = threading.Event()
        self._settings = settings
        self._thread: threading.Thread | None = None

    def sink(self, instance: object, name: str = "s", **common: Any) -> Sink:
        return sink_of(instance, self._settings, name, **common)

    def create(
        self,
        *sinks: Sink,
        broken: Mapping[str, str] | None = None,
        disabled: Sequence[Sink] = (),
        plugins: Sequence[Any] = (),
        warnings: Sequence[str] = (),
        settings: Sequence[SinkSettings] = (),
    ) -> Dispatcher:
        """A dispatcher that is not started. `settings` are those of some of the sinks, as they were read."""
        enabled = [
            *(SinkSettings(sink.name, sink.common) for sink in sinks),
            *(SinkSettings(name, CommonOptions.model_validate({"type": "broken"})) for name in broken or {}),
        ]
        given = {each.name: each for each in settings}
        return Dispatcher(
            self.store.open(),
            [given.get(each.name, each) for each in enabled],
            sinks,
            broken or {},
            disabled=[SinkSettings(sink.name, sink.common) for sink in disabled],
            plugins=plugins,
            warnings=warnings,
            retention_seconds=7 * 86400,
            redact=Redactor(self._settings.secret_values).redact,
            random=lambda: 0.5,
        )

    def start(self, *sinks: Sink, **options: Any) -> None:
        """Run a dispatcher that is created with these arguments of `create`."""
        dispatcher = self.create(*sinks, **options)
        self._thread = threading.Thread(target=dispatcher.run, args=(self.lifeline,), daemon=True)
        self._thread.start()

    def accept(self, *event_ids: str) -> None:
        accept_events(self.journal, *event_ids)

    def counts(self, sink: str) -> tuple[int, int, int]:
        """How many deliveries of a sink are delivered, pending and dead."""
        return counts_of(self.journal, sink)

    def block(self, *_: object) -> None:
        """A call that does not return before the end of the test."""
        self.unblocked.wait(BLOCKED_SECONDS)

    def stop(self) -> None:
        """Request a stop, as SIGTERM does, and wait for the end."""
        self.lifeline.stop_requested = True
        self.join()

    def join(self) -> None:
        """Wait for the end, not as long as a call can be blocked."""
        assert self._thread is not None
        self._thread.join(BLOCKED_SECONDS / 2)
        assert not self._thread.is_alive(), "the dispatcher does not stop"

    def close(self) -> None:
        """End everything that is still running."""
        self.store.disk_full = False
        self.unblocked.set()
        if self._thread is not None:
            self.stop()
        for thread in threading.enumerate():
            if thread.name.startswith("sink "):
                thread.join(10)


@pytest.fixture
def sqlite_store(tmp_path: Path, long_time_limits: None) -> Iterator[SqliteStore]:
    (tmp_path / "data").mkdir()
    store = SqliteStore(tmp_path / "data")
    yield store
    store.close_all()


@pytest.fixture
def loop_tester(sqlite_store: SqliteStore, tmp_path: Path) -> LoopTester:
    return LoopTester(sqlite_store, load_settings(tmp_path))


@pytest.fixture
def dispatcher(sqlite_store: SqliteStore, tmp_path: Path) -> Iterator[RunningDispatcher]:
    dispatcher = RunningDispatcher(sqlite_store, load_settings(tmp_path))
    yield dispatcher
    dispatcher.close()
