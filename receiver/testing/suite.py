"""The tests that every sink should pass: `class TestMine(SinkSuite, plugin="plugins/mine.py")` runs them all.

Each test is one rule, and its name says which. Where many events are delivered, they reach the sink through the real
dispatcher and a real journal. The suite makes calls fail, at random but reproducibly, and simulates a network that
refuses or hangs.
"""

from __future__ import annotations

import gc
import itertools
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest

from receiver.delivery.sinks import Sink
from receiver.errors import GiveUp, PluginError
from receiver.event import TYPES, Event
from receiver.journal import SinkCounts
from receiver.simulator import Simulator
from receiver.testing import network
from receiver.testing.harness import POLL_SECONDS, SINK_NAME, Harness, unreliable
from receiver.testing.samples import ODD_TEXT_TYPES, event, events, odd_text_events, unknown_events
from receiver.validation import counted

DeliveredIds = Callable[[], Sequence[str]]
"""Returns the ids of all events at the destination, in any order."""

Outage = Callable[[], AbstractContextManager[object]]
"""Returns a context in which the destination fails."""

MAX_THREADS = 8
"""Enough for threads to interfere; more would only be slower."""

RESTARTS = 3
"""How often sinks are opened and closed. A leak shows from the second time on."""

CLOSE_SECONDS = 1.0
"""How long a server of the test may take to close its connection after the sink has closed its own."""

SHORT_SWITCH_SECONDS = 1e-5
"""Python switches threads this often while they are tested; its default of 5 ms hides most races."""

SECRET_NAMES = re.compile("secret|token|password|api_?key", re.IGNORECASE)
MIN_SECRET_CHARACTERS = 4
"""A shorter secret would be found in ordinary text."""

EVENTS_PER_TYPE = 10
"""So many are tried to find one that the sink does not drop; for instance, half of all states are 0."""

WRONG_VALUES: tuple[object, ...] = ({"no": {"such": ["option"]}}, [[["no such option"]]], -1.5, True, "no such option")
"""At least one of these is wrong for an option of any type."""


class SinkSuite:
    """The tests that every sink should pass. The name of a subclass must begin with `Test`.

    plugin: the plugin's file, relative to the folder in which pytest runs, or the name of an installed module.
    type: the sink type; can be omitted if the plugin registers only one.
    options: the options in `[sinks.NAME]`, without the common keys. The fixture `options` can be overridden instead.
    concurrency: the highest `concurrency` that the sink supports.
    idempotent: whether delivering an event again changes nothing at the destination.
    max_call_seconds: how long a call may take while the destination hangs.

    Override the fixture `delivered_ids` so that the suite can check what is at the destination, and the fixture
    `outage` so that it can make the destination fail; without them it only checks how the sink behaves. Override
    `expected_ids` for a sink that drops some events, or whose destination does not hold event ids, and `gives_up` for
    one that raises GiveUp for some events on purpose.
    """

    plugin: ClassVar[str]
    type: ClassVar[str | None]
    default_options: ClassVar[Mapping[str, object]]
    concurrency: ClassVar[int]
    max_call_seconds: ClassVar[float]

    def __init_subclass__(
        cls,
        plugin: str,
        *,
        type: str | None = None,
        options: Mapping[str, object] | None = None,
        concurrency: int = 1,
        idempotent: bool = True,
        max_call_seconds: float = 30.0,
    ) -> None:
        cls.plugin, cls.type, cls.default_options = plugin, type, options or {}
        cls.concurrency, cls.max_call_seconds = concurrency, max_call_seconds
        inapplicable = [] if idempotent else ["test_is_idempotent"]
        if concurrency == 1:
            inapplicable.append("test_concurrent_calls_do_not_interfere")
        for name in inapplicable:
            setattr(cls, name, None)

    @pytest.fixture
    def options(self) -> Mapping[str, object]:
        """The sink's own options. Override it if they need a server or a folder."""
        return self.default_options

    @pytest.fixture
    def delivered_ids(self) -> DeliveredIds | None:
        """A function that returns the ids of all events at the destination, in any order."""
        return None

    @pytest.fixture
    def outage(self) -> Outage | None:
        """A function that returns a context manager, inside which the destination rejects everything."""
        return None

    def expected_ids(self, event: Event) -> Collection[str]:
        """What `delivered_ids` returns for an event that was delivered: its id. Nothing if the sink drops it."""
        return [event.id]

    def gives_up(self, event: Event) -> bool:
        """Whether the sink raises GiveUp for this event on purpose, for instance because of its type."""
        return False

    @pytest.fixture
    def harness(self, tmp_path: Path, options: Mapping[str, object]) -> Iterator[Harness]:
        """The sink under test, in a folder and with a journal of its own."""
        problem = ""
        try:
            harness = Harness(tmp_path, self.plugin, self.type, options)
        except PluginError as error:
            problem = str(error)
        if problem:  # not where it is handled, or pytest would print it twice
            pytest.fail(problem, pytrace=False)
        yield harness
        harness.close()

    def test_constructor_has_no_side_effects(self, harness: Harness) -> None:
        files, threads = _files_in(harness), set(threading.enumerate())
        with network.refused() as attempts:
            harness.build()
        assert attempts.count == 0, "the constructor opens a connection; do that in open or deliver"
        assert _files_in(harness) == files, "the constructor creates files; do that in open or deliver"
        assert set(threading.enumerate()) <= threads, "the constructor starts threads; do that in open or deliver"

    def test_delivers_a_thousand_events_of_every_type(
        self, harness: Harness, delivered_ids: DeliveredIds | None
    ) -> None:
        self._assert_delivers(harness, events(1000), delivered_ids)

    def test_delivers_events_of_unknown_types_and_shapes(
        self, harness: Harness, delivered_ids: DeliveredIds | None
    ) -> None:
        self._assert_delivers(harness, unknown_events(), delivered_ids)

    def test_delivers_events_with_odd_text(self, harness: Harness, delivered_ids: DeliveredIds | None) -> None:
        self._assert_delivers(harness, odd_text_events([*ODD_TEXT_TYPES, self._accepted_event().type]), delivered_ids)

    def test_delivers_every_event_although_calls_fail_at_random(
        self, harness: Harness, delivered_ids: DeliveredIds | None
    ) -> None:
        """The sink is closed, built and opened again several times before all events are delivered."""
        pushed = events(RESTARTS * 40, seed=3)
        for number in range(RESTARTS):
            harness.push(pushed[number::RESTARTS])
            harness.deliver(unreliable(harness.build(batch_size=10), seed=number), may_fail=True, limit=20)
        counts = harness.deliver(harness.build())
        self._assert_given_up(pushed, counts)
        assert (counts.delivered + counts.dead, counts.pending) == (len(pushed), 0), counts.last_failure_reason
        self._assert_at_destination(pushed, delivered_ids)

    def test_is_idempotent(self, harness: Harness, delivered_ids: DeliveredIds | None) -> None:
        repeated = self._accepted(events(20, seed=4))
        with _opened(harness.build()) as sink:
            _call(sink, repeated)
            before = sorted(delivered_ids()) if delivered_ids else []
            _call(sink, repeated, attempt=2)
            _call(sink, repeated[5:10], attempt=3)
        with _opened(harness.build()) as sink:
            _call(sink, repeated, attempt=4)
        after = sorted(delivered_ids()) if delivered_ids else []
        assert after == before, "delivering events again changes the destination (if it must, pass idempotent=False)"

    def test_raises_when_an_event_cannot_be_delivered(
        self, harness: Harness, delivered_ids: DeliveredIds | None, outage: Outage | None
    ) -> None:
        accepted = self._accepted_event(seed=5)
        if outage is not None:
            with outage():
                assert _error_of_call(harness.build(), accepted), "it returned normally during an outage"
        with network.refused() as attempts:
            error = _error_of_call(harness.build(), accepted)
        assert error or not attempts.count, "it returned normally although it could not connect"
        with _opened(harness.build()) as sink:
            _call(sink, [accepted], attempt=2)
        self._assert_at_destination([accepted], delivered_ids)

    def test_calls_end_in_time_when_the_destination_hangs(self, harness: Harness) -> None:
        """Calls cannot be cancelled, so one that never returns blocks the sink forever."""
        call = threading.Thread(target=_error_of_call, args=(harness.build(), self._accepted_event()), daemon=True)
        with network.hanging():
            call.start()
            call.join(self.max_call_seconds)
            assert not call.is_alive(), f"a call takes more than {self.max_call_seconds:g} s; set a timeout in the sink"

    def test_close_releases_what_open_acquired(self, harness: Harness) -> None:
        pushed, left_open = self._accepted(events(3)), [_count_open()]
        sinks = [harness.build() for _ in range(RESTARTS + 1)]  # so that garbage collection closes nothing of theirs
        for sink in sinks:
            with _opened(sink):
                _call(sink, pushed)
            left_open.append(_count_open(left_open[-1]))
        del left_open[0]
        grows = all(after > before for before, after in itertools.pairwise(left_open))
        assert not grows, f"files or threads are left after each close; their numbers are {left_open}"

    def test_errors_name_the_wrong_option(self, harness: Harness, options: Mapping[str, object]) -> None:
        harness.build()
        with pytest.raises(PluginError, match="no option 'optoin'"):
            harness.build({**options, "optoin": 1})
        for option in harness.type.described():
            if option.required:
                with pytest.raises(PluginError, match=f"option '{option.name}' is missing"):
                    harness.build({name: value for name, value in options.items() if name != option.name})
            problems = [_problem_of(harness, {**options, option.name: value}) for value in WRONG_VALUES]
            found = [problem for problem in problems if problem is not None]
            assert found, f"option {option.name} accepts any value; annotate it with a type"
            assert [line for line in found if option.name not in line] == [], "the error does not name the option"

    def test_every_option_is_documented(self, harness: Harness) -> None:
        """For `python -m receiver sinks`: the class has a docstring, with a line `name: meaning` for each option."""
        cls = harness.type.cls.__name__
        assert harness.type.summary(), f"{cls} has no docstring"
        undocumented = [option.name for option in harness.type.described() if not option.meaning]
        assert undocumented == [], (
            f"the docstring of {cls} has no line 'name: meaning' for these options; "
            "a field that is not an option is field(init=False), or is set in open"
        )

    def test_secrets_are_neither_shown_nor_logged(
        self, harness: Harness, options: Mapping[str, object], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        sink = harness.build()
        instance = (sink.hook.deliver_batch if sink.in_batches else sink.hook.deliver).get_hookimpls()[0].plugin
        with _opened(sink):
            _call(sink, self._accepted(events(2)))
        with network.refused():
            _error_of_call(harness.build(), self._accepted_event())
        loggers = (f"sink.{SINK_NAME}", instance.__module__)
        logged = [record.getMessage() for record in caplog.records if record.name.startswith(loggers)]
        shown = {"repr": repr(instance), "str": str(instance), "its log": "\n".join(logged)}
        secrets = _secret_values(harness, options)
        leaks = [place for place, text in shown.items() if any(secret in text for secret in secrets)]
        assert leaks == [], "these show a secret; give its option the type Secret, and do not log it"

    def test_concurrent_calls_do_not_interfere(self, harness: Harness, delivered_ids: DeliveredIds | None) -> None:
        pushed = self._accepted(events(400, seed=6))
        batches = [pushed[start : start + 5] for start in range(0, len(pushed), 5)]
        with (
            _opened(harness.build()) as sink,
            _threads_switched_often(),
            ThreadPoolExecutor(min(self.concurrency, MAX_THREADS)) as pool,
        ):
            for _ in pool.map(partial(_call, sink), batches):
                pass
        self._assert_at_destination(pushed, delivered_ids)

    def _assert_delivers(self, harness: Harness, pushed: Sequence[Event], delivered_ids: DeliveredIds | None) -> None:
        """All of these are delivered, or given up on purpose, at the first attempt."""
        harness.push(pushed)
        counts = harness.deliver(harness.build())
        self._assert_given_up(pushed, counts)
        assert (counts.delivered, counts.failures) == (len(pushed) - counts.dead, counts.dead), (
            counts.last_failure_reason
        )
        self._assert_at_destination(pushed, delivered_ids)

    def _assert_given_up(self, pushed: Sequence[Event], counts: SinkCounts) -> None:
        expected = sum(self.gives_up(event) for event in pushed)
        assert counts.dead == expected, (
            f"the sink gave up {counted(counts.dead, 'event')} where gives_up returns True for {expected}; if it is "
            f"meant to give up events, override gives_up. The last reason was: {counts.last_failure_reason}"
        )

    def _assert_at_destination(self, pushed: Sequence[Event], delivered_ids: DeliveredIds | None) -> None:
        """The destination holds these events and no others, as far as `delivered_ids` can tell."""
        if delivered_ids is not None:
            delivered = [event for event in pushed if not self.gives_up(event)]
            actual, expected = set(delivered_ids()), {name for event in delivered for name in self.expected_ids(event)}
            assert expected - actual == set(), "these are missing; if the sink drops some events, override expected_ids"
            assert actual - expected == set(), "these were never pushed"

    def _accepted_event(self, seed: int = 1) -> Event:
        """An event that the sink neither drops nor gives up."""
        simulator = Simulator(seed)
        candidates = (event(event_type, simulator=simulator) for event_type in TYPES * EVENTS_PER_TYPE)
        accepted = (each for each in candidates if self.expected_ids(each) and not self.gives_up(each))
        return next(accepted, None) or pytest.fail(
            "the sink accepts no event: see expected_ids, gives_up", pytrace=False
        )

    def _accepted(self, pushed: Sequence[Event]) -> list[Event]:
        """Those of these events that the sink does not give up, and one that it does not drop either."""
        return [*(event for event in pushed if not self.gives_up(event)), self._accepted_event(seed=7)]


@contextmanager
def _opened(sink: Sink) -> Iterator[Sink]:
    sink.hook.open(name=SINK_NAME, logger=logging.getLogger(f"sink.{SINK_NAME}"))
    try:
        yield sink
    finally:
        sink.hook.close()


def _call(sink: Sink, events: Sequence[Event], attempt: int = 1) -> None:
    """Deliver these events, in one call if the sink takes batches. Raises what the sink raises."""
    try:
        if sink.in_batches:
            sink.hook.deliver_batch(events=events, attempts=[attempt] * len(events))
        else:
            for event in events:
                sink.hook.deliver(event=event, attempt=attempt)
    except GiveUp as error:
        raise AssertionError(f"the sink gave up an event; if it is meant to, override gives_up: {error}") from error


@contextmanager
def _threads_switched_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SHORT_SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def _error_of_call(sink: Sink, event: Event) -> BaseException | None:
    """What the sink raises when it is opened and called with an event; None if it returns normally."""
    try:
        with _opened(sink):
            _call(sink, [event])
    except BaseException as error:
        return error
    return None


def _problem_of(harness: Harness, options: Mapping[str, object]) -> str | None:
    """What is wrong with these options; None if the sink is built from them."""
    try:
        harness.build(options)
    except PluginError as error:
        return str(error)
    return None


def _secret_values(harness: Harness, options: Mapping[str, object]) -> list[str]:
    """The values of options whose type is Secret, or whose name suggests a secret."""
    secret = [each.name for each in harness.type.described() if each.secret or SECRET_NAMES.search(each.name)]
    return [text for name in secret for text in _texts_in(options.get(name)) if len(text) >= MIN_SECRET_CHARACTERS]


def _texts_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for item in value.values() for text in _texts_in(item))
    elif isinstance(value, list | tuple):
        yield from (text for item in value for text in _texts_in(item))


def _files_in(harness: Harness) -> set[Path]:
    return set(harness.settings.folder.rglob("*"))


def _count_open(expected: float = math.inf) -> int:
    """Files and threads of this process; if there are more than expected, a server of the test may still close some."""
    end = time.monotonic() + CLOSE_SECONDS
    while (count := _count_open_files() + threading.active_count()) > expected and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    return count


def _count_open_files() -> int:
    """Files and sockets that this process has open, except garbage; 0 on systems that do not list them."""
    gc.collect()
    with suppress(OSError):
        return len(os.listdir("/dev/fd"))
    return 0
