"""What any sink should be able to stand, as tests: `class TestMine(SinkSuite, plugin="plugins/mine.py")` runs them all.

Each test is one rule, and its name says which. Events reach the sink through the real dispatcher and a real journal;
failures are made by the suite, at random but the same each time, and by a network that refuses or hangs.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import ClassVar

import pytest

from receiver.errors import PluginError
from receiver.event import TYPES, Event
from receiver.plugins import Sink
from receiver.testing import network
from receiver.testing.samples import ODD_TYPES, events, odd_texts, unknown_events
from receiver.testing.stage import NAME, Stage, unreliable

Arrived = Callable[[], Sequence[str]]
Broken = Callable[[], AbstractContextManager[object]]

AT_ONCE = 8
ROUNDS = 5
SHORT_SWITCH_SECONDS = 1e-5
SECRET_NAMES = re.compile("secret|token|password|api_?key", re.IGNORECASE)
WRONG_VALUES: tuple[object, ...] = ({"no": {"such": ["option"]}}, [[["no such option"]]], -1.5, True, "no such option")


class SinkSuite:
    """The tests that any sink should pass. Subclass it in a test module under a name that begins with `Test`.

    plugin: the plugin's file, seen from where pytest runs, or the name of an installed module.
    type: the sink type; may be left out where the plugin offers one only.
    options: what stands in `[sinks.NAME]` besides the common keys. A fixture `options` can make them instead.
    concurrency: how many calls at once the sink is made for.
    repeatable: whether a repeat of a delivered event changes nothing at the destination.
    call_seconds: how long a call may take when the destination hangs.

    Override the fixture `arrived` to let the suite look at the destination, and `broken` to let it break the
    destination; without them it can only look at how the sink behaves. Override `traces` for a sink that lets some
    events go, or of which no event ids stand at the destination.
    """

    plugin: ClassVar[str]
    type: ClassVar[str | None]
    given: ClassVar[Mapping[str, object]]
    concurrency: ClassVar[int]
    call_seconds: ClassVar[float]

    def __init_subclass__(
        cls,
        plugin: str,
        *,
        type: str | None = None,
        options: Mapping[str, object] | None = None,
        concurrency: int = 1,
        repeatable: bool = True,
        call_seconds: float = 30.0,
    ) -> None:
        cls.plugin, cls.type, cls.given = plugin, type, options or {}
        cls.concurrency, cls.call_seconds = concurrency, call_seconds
        not_promised = [] if repeatable else ["test_a_repeated_event_changes_nothing"]
        if concurrency == 1:
            not_promised.append("test_calls_at_once_do_not_get_in_each_others_way")
        for name in not_promised:
            setattr(cls, name, None)

    @pytest.fixture
    def options(self) -> Mapping[str, object]:
        """The sink's own options. Override it where they need a server or a folder."""
        return self.given

    def traces(self, event: Event) -> Collection[str]:
        """What `arrived` gives of an event that was delivered: its id, once. Nothing where the sink lets it go."""
        return [event.id]

    @pytest.fixture
    def arrived(self) -> Arrived | None:
        """A function that gives the trace of everything that stands at the destination, in any order: event ids."""
        return None

    @pytest.fixture
    def broken(self) -> Broken | None:
        """A function that gives a context manager, inside of which the destination takes nothing."""
        return None

    @pytest.fixture
    def stage(self, tmp_path: Path, options: Mapping[str, object]) -> Iterator[Stage]:
        try:
            stage = Stage(tmp_path, self.plugin, self.type, options)
        except PluginError as error:
            pytest.fail(str(error), pytrace=False)
        yield stage
        stage.close()

    def test_its_constructor_touches_neither_disk_nor_network_and_starts_nothing(self, stage: Stage) -> None:
        files, threads = files_in(stage), threading.active_count()
        with network.refused() as attempts:
            stage.build()
        assert attempts.count == 0, "the constructor connects to something; do that in open or deliver"
        assert files_in(stage) == files, "the constructor makes files; do that in open or deliver"
        assert threading.active_count() == threads, "the constructor starts threads; do that in open or deliver"

    def test_it_takes_a_thousand_events_of_every_type(self, stage: Stage, arrived: Arrived | None) -> None:
        self.all_arrive(stage, events(1000), arrived)

    def test_it_takes_events_of_types_and_shapes_that_nobody_knows_yet(
        self, stage: Stage, arrived: Arrived | None
    ) -> None:
        self.all_arrive(stage, unknown_events(), arrived)

    def test_it_takes_whatever_text_an_event_holds(self, stage: Stage, arrived: Arrived | None) -> None:
        self.all_arrive(stage, odd_texts([*ODD_TYPES, self.wanted().type]), arrived)

    def test_it_gets_every_event_to_its_destination_although_calls_fail_at_random(
        self, stage: Stage, arrived: Arrived | None
    ) -> None:
        """In several lives: it is closed, built and opened anew in the middle."""
        pushed = events(ROUNDS * 40, seed=3)
        for number in range(ROUNDS):
            stage.push(pushed[number::ROUNDS])
            stage.deliver(unreliable(stage.build(batch_size=10), seed=number), seconds=0.5, may_fail=True)
        count = stage.deliver(stage.build(), seconds=60)
        assert (count.delivered, count.pending, count.dead) == (len(pushed), 0, 0), count.last_failure
        self.assert_all_stand_there(pushed, arrived)

    def test_a_repeated_event_changes_nothing(self, stage: Stage, arrived: Arrived | None) -> None:
        repeated = events(20, seed=4)
        with opened(stage.build()) as sink:
            call(sink, repeated)
            before = sorted(arrived()) if arrived else []
            call(sink, repeated, attempt=2)
            call(sink, repeated[5:10], attempt=3)
        with opened(stage.build()) as sink:
            call(sink, repeated, attempt=4)
        after = sorted(arrived()) if arrived else []
        assert after == before, "the destination holds events more than once (or say repeatable=False)"

    def test_it_says_so_when_an_event_does_not_get_through(
        self, stage: Stage, arrived: Arrived | None, broken: Broken | None
    ) -> None:
        lost = self.wanted(seed=5)
        if broken is not None:
            with broken():
                assert failure(stage.build(), lost), "it came back from a broken destination as if it had delivered"
        with network.refused() as attempts:
            failed = failure(stage.build(), lost)
        assert failed or not attempts.count, "it came back as if it had delivered, but could not connect"
        with opened(stage.build()) as sink:
            call(sink, [lost], attempt=2)
        self.assert_all_stand_there([lost], arrived)

    def test_it_comes_back_in_time_when_its_destination_hangs(self, stage: Stage) -> None:
        """By itself: a call that never ends holds up the sink for ever, since nobody can end it from outside."""
        sink = stage.build()
        calling = threading.Thread(target=failure, args=(sink, self.wanted()), daemon=True)
        with network.hanging():
            calling.start()
            calling.join(self.call_seconds)
            assert not calling.is_alive(), f"a call takes over {self.call_seconds:g} s; give it a time-out"

    def test_it_can_be_closed_and_opened_again_and_leaves_nothing_behind(self, stage: Stage) -> None:
        some, left = [*events(3), self.wanted()], list[int]()
        kept = [stage.build() for _ in range(ROUNDS)]  # or garbage collection hides what close does not close
        for sink in kept:
            with opened(sink):
                call(sink, some)
            left.append(open_files() + threading.active_count())
        each_time = all(more > before for before, more in itertools.pairwise(left))
        assert not each_time, f"every close leaves open files or threads behind; there are {left}"

    def test_a_wrong_option_is_named(self, stage: Stage, options: Mapping[str, object]) -> None:
        stage.build()
        with pytest.raises(PluginError, match="no option 'optoin'"):
            stage.build({**options, "optoin": 1})
        for option in stage.type.described():
            if option.required:
                with pytest.raises(PluginError, match=f"option '{option.name}' is missing"):
                    stage.build({name: value for name, value in options.items() if name != option.name})
            wrong = [refusal(stage, {**options, option.name: value}) for value in WRONG_VALUES]
            refused = [line for line in wrong if line is not None]
            assert refused, f"option {option.name} takes anything; give it a type"
            assert [line for line in refused if option.name not in line] == [], "the error does not name the option"

    def test_every_option_is_explained(self, stage: Stage) -> None:
        """For `python -m receiver sinks`: the class has a docstring, with a line `name: meaning` for each option."""
        assert stage.type.summary(), f"{stage.type.cls.__name__} has no docstring"
        silent = [option.name for option in stage.type.described() if not option.meaning]
        assert silent == [], (
            f"the docstring of {stage.type.cls.__name__} has no line 'name: meaning' for these options; "
            "what is no option is field(init=False), or set in open"
        )

    def test_no_secret_option_is_shown_or_logged(
        self, stage: Stage, options: Mapping[str, object], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        sink = stage.build()
        instance = (sink.hook.deliver_batch if sink.in_batches else sink.hook.deliver).get_hookimpls()[0].plugin
        shown = {"repr": repr(instance), "str": str(instance)}
        with opened(sink):
            call(sink, [*events(2), self.wanted()])
        with network.refused():
            failure(stage.build(), self.wanted())
        own = [record for record in caplog.records if record.name.startswith((f"sink.{NAME}", instance.__module__))]
        shown["its log"] = "\n".join(record.getMessage() for record in own)
        hidden = secrets_in(stage, options)
        leaks = [place for place, text in shown.items() if any(value in text for value in hidden)]
        assert leaks == [], "these show a secret option; give it the type Secret, and log without it"

    def test_calls_at_once_do_not_get_in_each_others_way(self, stage: Stage, arrived: Arrived | None) -> None:
        pushed = events(400, seed=6)
        stage.push(pushed)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(SHORT_SWITCH_SECONDS)
        try:
            sink = stage.build(concurrency=min(self.concurrency, AT_ONCE), batch_size=10)
            count = stage.deliver(sink, seconds=60)
        finally:
            sys.setswitchinterval(interval)
        assert (count.delivered, count.failures) == (len(pushed), 0), count.last_failure
        self.assert_all_stand_there(pushed, arrived)

    def all_arrive(self, stage: Stage, pushed: Sequence[Event], arrived: Arrived | None) -> None:
        """All of these are delivered at the first attempt, and stand at the destination."""
        stage.push(pushed)
        count = stage.deliver(stage.build(), seconds=60)
        assert (count.delivered, count.failures, count.dead) == (len(pushed), 0, 0), count.last_failure
        self.assert_all_stand_there(pushed, arrived)

    def assert_all_stand_there(self, pushed: Sequence[Event], arrived: Arrived | None) -> None:
        """All that was pushed stands at the destination, and nothing else; where one can look."""
        if arrived is not None:
            there, traces = set(arrived()), {trace for each in pushed for trace in self.traces(each)}
            assert traces - there == set(), "these never arrived; if the sink lets them go, override traces"
            assert there - traces == set(), "these were never pushed"

    def wanted(self, seed: int = 1) -> Event:
        """An event that the sink does not let go."""
        found = next((each for each in events(10 * len(TYPES), seed=seed) if self.traces(each)), None)
        return found or pytest.fail("traces gives nothing for events of any type", pytrace=False)


@contextmanager
def opened(sink: Sink) -> Iterator[Sink]:
    """The sink between open and close."""
    sink.hook.open(name=NAME, logger=logging.getLogger(f"sink.{NAME}"))
    try:
        yield sink
    finally:
        sink.hook.close()


def call(sink: Sink, given: Sequence[Event], attempt: int = 1) -> None:
    """Deliver these events, in one call if the sink takes batches. Raises what it raises."""
    if sink.in_batches:
        sink.hook.deliver_batch(events=given, attempts=[attempt] * len(given))
    else:
        for each in given:
            sink.hook.deliver(event=each, attempt=attempt)


def failure(sink: Sink, given: Event) -> BaseException | None:
    """What the sink raises when it is opened and called with an event; None when it comes back."""
    try:
        with opened(sink):
            call(sink, [given])
    except BaseException as error:
        return error
    return None


def refusal(stage: Stage, options: Mapping[str, object]) -> str | None:
    """What is wrong with these options, or None when the sink is built from them."""
    try:
        stage.build(options)
    except PluginError as error:
        return str(error)
    return None


def secrets_in(stage: Stage, options: Mapping[str, object]) -> list[str]:
    """The values that nobody may see: of options whose type is Secret, or whose name says that they are one."""
    hidden = {each.name for each in stage.type.described() if each.secret or SECRET_NAMES.search(each.name)}
    return [text for name in hidden for text in texts_in(options.get(name)) if len(text) >= 4]


def texts_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for item in value.values() for text in texts_in(item))
    elif isinstance(value, list | tuple):
        yield from (text for item in value for text in texts_in(item))


def files_in(stage: Stage) -> set[Path]:
    return set(stage.settings.folder.rglob("*"))


def open_files() -> int:
    """How many files and sockets this process has open; 0 where that cannot be told."""
    with suppress(OSError):
        return len(os.listdir("/dev/fd"))
    return 0
