"""Group commit: many pushes wait, one commit stores them all, and each gets its own outcome."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import gevent
import pytest
from support.greenlets import in_greenlets, wait_in_greenlet
from support.journals import Store, accept, body, event_ids, unrouted_and_quarantined

from receiver.errors import JournalUnavailable
from receiver.intake import group_commit as group_commit_module
from receiver.intake.group_commit import GroupCommit
from receiver.journal import Arrival, Journal, Outcome


class Writer:
    """Stores items once its gate is open; an item in `failing` fails the whole commit with its error."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.gate = threading.Event()
        self.failing: dict[str, BaseException] = {}

    def accept(self, items: Sequence[str]) -> list[str]:
        self.groups.append(list(items))
        assert self.gate.wait(20)
        for item in items:
            if item in self.failing:
                raise self.failing[item]
        return [f"{item} stored" for item in items]


class Crowd:
    """Greenlets that submit to one group commit, in a known order."""

    def __init__(self, writer: Writer, **limits: float) -> None:
        self.writer = writer
        self.group = group_commit(writer.accept, **limits)

    def submit(self, item: str) -> Pending:
        """Submit in a greenlet of its own; returns when the item is in the queue and a commit is under way."""
        before = self.seen()
        pending = Pending(self.group, item)
        wait_in_greenlet(lambda: self.seen() > before and self.writer.groups, what=f"{item} in the queue")
        return pending

    def seen(self) -> int:
        return queued(self.group) + sum(len(group) for group in self.writer.groups)


class Pending:
    """A greenlet that submits an item."""

    def __init__(self, group: Any, item: str) -> None:
        self._greenlet = gevent.spawn(self._submit, group, item)

    def _submit(self, group: Any, item: str) -> str | JournalUnavailable:
        try:
            outcome: str = group.submit(item)
        except JournalUnavailable as error:
            return error
        return outcome

    def outcome(self) -> str:
        """The outcome of the item. Raises JournalUnavailable."""
        result = self._greenlet.get(timeout=20)
        if isinstance(result, JournalUnavailable):
            raise result
        assert isinstance(result, str)
        return result


class Clock:
    """What group commit uses of the module `time`."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def group_commit(accept: Callable[[Any], Sequence[Any]], **limits: float) -> Any:
    """A group commit of any items: it never looks into them, and takes any text for an outcome."""
    return GroupCommit(accept, **{"failing_seconds": 20.0, "wait_seconds": 20.0, **limits})  # type: ignore[arg-type]


def queued(group: Any) -> int:
    return len(group._queue)


@pytest.fixture
def writer() -> Iterator[Writer]:
    writer = Writer()
    yield writer
    writer.gate.set()


def test_a_push_that_is_alone_gets_its_own_outcome(writer: Writer) -> None:
    writer.gate.set()
    group = group_commit(writer.accept)
    assert [group.submit("a"), group.submit("b")] == ["a stored", "b stored"]
    assert writer.groups == [["a"], ["b"]]


def test_all_that_wait_are_stored_in_one_commit_in_order_and_each_gets_its_own_outcome(writer: Writer) -> None:
    crowd = Crowd(writer)
    items = ["first", *(f"waiting {number}" for number in range(20))]
    futures = [crowd.submit(item) for item in items]
    writer.gate.set()
    assert [future.outcome() for future in futures] == [f"{item} stored" for item in items]
    assert writer.groups == [["first"], items[1:]]


def test_a_commit_has_at_most_max_group_items(writer: Writer) -> None:
    crowd = Crowd(writer, max_group=3)
    futures = [crowd.submit(item) for item in "abcdefgh"]
    writer.gate.set()
    assert [future.outcome() for future in futures] == [f"{item} stored" for item in "abcdefgh"]
    assert writer.groups == [["a"], ["b", "c", "d"], ["e", "f", "g"], ["h"]]


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(JournalUnavailable("the disk is full"), id="unavailable"),
        pytest.param(ValueError("the disk is full"), id="unexpected"),
        pytest.param(SystemExit("the disk is full"), id="exit"),
    ],
)
def test_an_error_reaches_all_items_of_its_commit_and_no_others(writer: Writer, error: BaseException) -> None:
    crowd = Crowd(writer, max_group=3)
    writer.failing["c"] = error
    futures = {item: crowd.submit(item) for item in "abcdef"}
    writer.gate.set()
    assert [futures[item].outcome() for item in "aef"] == ["a stored", "e stored", "f stored"]
    for item in "bcd":
        with pytest.raises(JournalUnavailable, match="the disk is full"):
            futures[item].outcome()
    assert crowd.group.submit("later") == "later stored"
    assert writer.groups == [["a"], ["b", "c", "d"], ["e", "f"], ["later"]]


def test_too_few_outcomes_are_an_error_for_the_whole_commit_and_block_no_thread() -> None:
    class Forgetful(Writer):
        def accept(self, items: Sequence[str]) -> list[str]:
            return super().accept(items)[:1]

    crowd = Crowd(forgetful := Forgetful())
    futures = [crowd.submit(item) for item in "abc"]
    forgetful.gate.set()
    assert futures[0].outcome() == "a stored"
    for future in futures[1:]:
        with pytest.raises(JournalUnavailable):
            future.outcome()


def test_an_item_whose_time_is_up_before_its_commit_began_is_never_stored(writer: Writer) -> None:
    crowd = Crowd(writer, wait_seconds=0.2)
    for pending in [crowd.submit("first"), crowd.submit("late")]:
        with pytest.raises(JournalUnavailable, match="did not commit in time"):
            pending.outcome()
    writer.gate.set()
    wait_in_greenlet(lambda: not crowd.group._committing, what="the end of the commit")
    crowd.group._wait_seconds = 20.0
    assert crowd.group.submit("next") == "next stored"
    assert writer.groups == [["first"], ["next"]]


def test_while_no_commit_succeeds_one_item_tries_and_the_others_are_rejected_at_once(writer: Writer) -> None:
    crowd = Crowd(writer, failing_seconds=0.2)
    first = crowd.submit("first")
    gevent.sleep(0.25)
    for item in ("next", "another"):
        with pytest.raises(JournalUnavailable, match="has not committed for a while"):
            crowd.group.submit(item)
    writer.gate.set()
    assert first.outcome() == "first stored"
    assert [crowd.group.submit(item) for item in "ab"] == ["a stored", "b stored"]
    assert writer.groups == [["first"], ["a"], ["b"]]


def test_after_failed_commits_items_wait_for_their_turn_again_once_a_commit_succeeded(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit_module, "time", clock := Clock())
    writer.failing["bad"] = JournalUnavailable("the journal is locked")
    crowd = Crowd(writer)
    failed = crowd.submit("bad")
    writer.gate.set()
    with pytest.raises(JournalUnavailable, match="locked"):
        failed.outcome()
    writer.gate.clear()
    clock.now += 20.1
    probe = crowd.submit("probe")
    with pytest.raises(JournalUnavailable, match="has not committed for a while"):
        crowd.group.submit("rejected")
    writer.gate.set()
    assert probe.outcome() == "probe stored"
    writer.gate.clear()
    first, second = crowd.submit("first"), crowd.submit("second")
    writer.gate.set()
    assert (first.outcome(), second.outcome()) == ("first stored", "second stored")
    assert writer.groups == [["bad"], ["probe"], ["first"], ["second"]]


def test_running_out_of_memory_while_a_group_is_formed_stops_no_later_commit(writer: Writer) -> None:
    class Short(deque[object]):
        def popleft(self) -> object:
            super().popleft()
            raise MemoryError

    writer.gate.set()
    group = group_commit(writer.accept, wait_seconds=0.2)
    good, group._queue = group._queue, Short()
    with pytest.raises(JournalUnavailable):
        group.submit("lost")
    group._queue, group._wait_seconds = good, 20.0
    assert group.submit("next") == "next stored"
    assert writer.groups == [["next"]]


@dataclass
class UnreliableWriter:
    """Stores numbers after a while or not at all, and records which, and whether two commits ever ran at once."""

    random: Random
    stored: list[int] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    largest: int = 0

    def accept(self, items: Sequence[int]) -> list[int]:
        self.running += 1
        self.most_running, self.largest = max(self.most_running, self.running), max(self.largest, len(items))
        try:
            seconds, dice = self.random.random() * 0.002, self.random.random()
            time.sleep(seconds if dice < 0.97 else 0.02)
            if dice < 0.1:
                raise JournalUnavailable("not stored") if dice < 0.07 else SystemExit("not stored")
            self.stored += items
            if dice < 0.15:
                raise JournalUnavailable("stored, but nothing says so")
            return [-item for item in items]
        finally:
            self.running -= 1


@pytest.mark.parametrize(("seed", "max_group", "seconds"), [(1, 3, 0.01), (2, 100, 0.005), (3, 1, 0.02), (4, 5, 5.0)])
def test_in_every_interleaving_each_item_gets_its_own_outcome_and_no_greenlet_is_blocked(
    seed: int, max_group: int, seconds: float
) -> None:
    """The native thread and the greenlets switch as often as possible, so that failures and time limits meet."""
    writer = UnreliableWriter(Random(seed))
    group = group_commit(writer.accept, max_group=max_group, failing_seconds=seconds, wait_seconds=seconds)
    submitted = range(1, 2001)
    rejections: Counter[str] = Counter()

    def submit(item: int) -> int | None:
        if item % 7 == 0:
            gevent.sleep(item % 5 / 1000)
        try:
            outcome: int = group.submit(item)
        except JournalUnavailable as error:
            rejections[str(error)] += 1
            gevent.sleep(0.002)
            return None
        return outcome

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        outcomes = in_greenlets(24, submit, submitted)
    finally:
        sys.setswitchinterval(interval)
    accepted = {item: outcome for item, outcome in zip(submitted, outcomes, strict=True) if outcome is not None}
    assert accepted == {item: -item for item in accepted}
    assert set(accepted) <= set(writer.stored)
    assert max(Counter(writer.stored).values()) == 1
    assert (writer.most_running, writer.largest <= max_group) == (1, True)
    assert accepted
    assert rejections
    wait_in_greenlet(lambda: not group._committing, what="the last commit")
    assert queued(group) == 0
    writer.random = Random(0)
    wait_in_greenlet(lambda: submit(0) == 0, what="a commit that succeeds")


# On a journal, as in intake.


def push(group: GroupCommit, event_id: str) -> Outcome:
    return group.submit(Arrival(event_id, body(event_id), 1000.0))


def test_greenlets_that_push_to_one_journal_lose_and_repeat_nothing(journal: Journal) -> None:
    group = GroupCommit(journal.accept, wait_seconds=20.0)
    ids = [f"{number}" for number in range(320)]
    assert in_greenlets(16, partial(push, group), ids) == [Outcome.ACCEPTED] * len(ids)
    assert {event.id: event.body for event in journal.unrouted(1000)} == {event_id: body(event_id) for event_id in ids}


def test_of_greenlets_that_push_one_id_at_once_one_gets_accepted(journal: Journal) -> None:
    group = GroupCommit(journal.accept, wait_seconds=20.0)
    for event_id in "abc":
        outcomes = in_greenlets(16, partial(push, group), [event_id] * 16)
        assert sorted(outcomes) == [Outcome.ACCEPTED, *[Outcome.DUPLICATE] * 15]
    assert event_ids(journal.unrouted(10)) == ["a", "b", "c"]


def test_several_processes_that_push_the_same_ids_accept_each_once(store: Store) -> None:
    groups = [GroupCommit(store.open().accept, wait_seconds=20.0) for _ in range(3)]
    ids = [str(number) for number in range(60)]

    def push_to_all(event_id: str) -> list[Outcome]:
        return sorted(in_greenlets(3, lambda group: push(group, event_id), groups))

    assert in_greenlets(12, push_to_all, ids) == [["accepted", "duplicate", "duplicate"]] * 60
    assert sorted(event_ids(store.open().unrouted(1000))) == sorted(ids)


def test_pushes_that_share_a_commit_of_the_journal_each_get_their_own_outcome(store: Store) -> None:
    journal = store.open()
    group = GroupCommit(journal.accept, wait_seconds=20.0)
    accept(journal, "z known")
    arrivals = [
        Arrival("z known", b"", 1000.0),
        Arrival("same", b"", 1000.0),
        Arrival("5f" * 32, b"", 1000.0, "the body is not JSON"),
        Arrival("a new", b"", 1000.0),
        Arrival("same", b"", 1000.0),
    ]
    all_wait = threading.Event()
    store.before_next_write = lambda: all_wait.wait(20)
    first = gevent.spawn(push, group, "first")
    wait_in_greenlet(lambda: store.before_next_write is None, what="a commit that waits")
    others = [gevent.spawn(group.submit, arrival) for arrival in arrivals]
    wait_in_greenlet(lambda: queued(group) == len(arrivals), what="all in the queue")
    all_wait.set()
    assert first.get(timeout=20) is Outcome.ACCEPTED
    outcomes = [greenlet.get(timeout=20) for greenlet in others]
    assert outcomes == ["duplicate", "accepted", "quarantined", "accepted", "duplicate"]
    assert sorted(event_ids(journal.unrouted(10))) == ["a new", "first", "same", "z known"]
    assert unrouted_and_quarantined(journal) == (4, 1)
