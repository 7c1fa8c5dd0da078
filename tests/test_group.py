"""Group commit: many wait, one writes for all, and everyone gets what is theirs."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random

import pytest
from conftest import wait_until

from receiver.errors import JournalUnavailable
from receiver.journal.group import GroupCommit


class Writer:
    """Writes words down once the gate is open; a word in `failing` fails the whole write with its error."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.gate = threading.Event()
        self.failing: dict[str, BaseException] = {}

    def __call__(self, items: Sequence[str]) -> list[str]:
        self.groups.append(list(items))
        assert self.gate.wait(20)
        for item in items:
            if item in self.failing:
                raise self.failing[item]
        return [f"{item} is written" for item in items]


class Crowd:
    """Threads that submit to one group commit, in a known order."""

    def __init__(self, writer: Writer, *, most: int = 100, timeout: float = 20.0) -> None:
        self.writer = writer
        self.group = GroupCommit(writer, most, timeout)
        self.pool = ThreadPoolExecutor(40)

    def submit(self, item: str) -> Future[str]:
        """Submit from a thread of its own; comes back when the item is in line."""
        before = self.seen()
        future = self.pool.submit(self.group.submit, item)
        wait_until(lambda: self.seen() > before, what=f"{item} in line")
        return future

    def seen(self) -> int:
        return len(self.group._queue) + sum(len(group) for group in self.writer.groups)

    def close(self) -> None:
        self.writer.gate.set()
        self.pool.shutdown(wait=False)


@pytest.fixture
def writer() -> Iterator[Writer]:
    writer = Writer()
    yield writer
    writer.gate.set()


def test_one_who_is_alone_gets_its_own_outcome(writer: Writer) -> None:
    writer.gate.set()
    group = GroupCommit(writer, most=10, timeout=1.0)
    assert [group.submit("a"), group.submit("b")] == ["a is written", "b is written"]
    assert writer.groups == [["a"], ["b"]]


def test_all_who_wait_are_written_at_once_in_order_and_each_gets_its_own_outcome(writer: Writer) -> None:
    crowd = Crowd(writer)
    names = ["first", *(f"waiting {number}" for number in range(20))]
    futures = [crowd.submit(name) for name in names]
    writer.gate.set()
    assert [future.result(20) for future in futures] == [f"{name} is written" for name in names]
    assert writer.groups == [["first"], names[1:]]
    crowd.close()


def test_a_write_takes_no_more_than_most(writer: Writer) -> None:
    crowd = Crowd(writer, most=3)
    futures = [crowd.submit(name) for name in "abcdefgh"]
    writer.gate.set()
    assert [future.result(20)[0] for future in futures] == list("abcdefgh")
    assert writer.groups == [["a"], ["b", "c", "d"], ["e", "f", "g"], ["h"]]
    crowd.close()


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(JournalUnavailable("the disk is full"), id="unavailable"),
        pytest.param(ValueError("the disk is full"), id="unexpected"),
        pytest.param(SystemExit("the disk is full"), id="exit"),
    ],
)
def test_an_error_reaches_every_member_of_its_group_and_nobody_else(writer: Writer, error: BaseException) -> None:
    crowd = Crowd(writer, most=3)
    writer.failing["c"] = error
    futures = {name: crowd.submit(name) for name in "abcdef"}
    writer.gate.set()
    assert [futures[name].result(20) for name in "aef"] == ["a is written", "e is written", "f is written"]
    for name in "bcd":
        with pytest.raises(JournalUnavailable, match="the disk is full"):
            futures[name].result(20)
    assert crowd.group.submit("later") == "later is written"
    assert writer.groups == [["a"], ["b", "c", "d"], ["e", "f"], ["later"]]
    crowd.close()


def test_too_few_outcomes_are_an_error_for_all_and_leave_nobody_hanging(writer: Writer) -> None:
    class Forgetful(Writer):
        def __call__(self, items: Sequence[str]) -> list[str]:
            return super().__call__(items)[:1]

    crowd = Crowd(forgetful := Forgetful())
    futures = [crowd.submit(name) for name in "abc"]
    forgetful.gate.set()
    assert futures[0].result(20) == "a is written"
    for future in futures[1:]:
        with pytest.raises(JournalUnavailable):
            future.result(20)
    crowd.close()


def test_an_item_not_begun_in_time_is_never_written(writer: Writer) -> None:
    crowd = Crowd(writer, timeout=1.0)
    first, late = crowd.submit("first"), crowd.submit("late")
    with pytest.raises(JournalUnavailable, match="did not commit in time"):
        late.result(20)
    writer.gate.set()
    assert first.result(20) == "first is written"
    assert crowd.group.submit("next") == "next is written"
    assert writer.groups == [["first"], ["next"]]
    crowd.close()


def test_while_nothing_was_committed_for_long_one_tries_and_the_others_are_told_at_once(writer: Writer) -> None:
    crowd = Crowd(writer, timeout=1.0)
    first, late = crowd.submit("first"), crowd.submit("late")
    with pytest.raises(JournalUnavailable, match="did not commit in time"):
        late.result(20)
    for name in ("next", "another"):
        with pytest.raises(JournalUnavailable, match="has not committed for a while"):
            crowd.group.submit(name)
    writer.gate.set()
    assert first.result(20) == "first is written"
    assert [crowd.group.submit(name) for name in "ab"] == ["a is written", "b is written"]
    assert writer.groups == [["first"], ["a"], ["b"]]
    crowd.close()


def test_commits_that_fail_one_after_another_are_trouble_until_one_is_well(writer: Writer) -> None:
    writer.failing["bad"] = JournalUnavailable("the journal is locked")
    crowd = Crowd(writer, timeout=1.0)
    failed = crowd.submit("bad")
    writer.gate.set()
    with pytest.raises(JournalUnavailable, match="locked"):
        failed.result(20)
    writer.gate.clear()
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 1.1, what="longer than anybody waits")
    probe = crowd.submit("probe")
    with pytest.raises(JournalUnavailable, match="has not committed for a while"):
        crowd.group.submit("beside it")
    writer.gate.set()
    assert probe.result(20) == "probe is written"
    writer.gate.clear()
    first, second = crowd.submit("first"), crowd.pool.submit(crowd.group.submit, "second")
    wait_until(lambda: len(crowd.group._queue) == 1, what="one in line again")
    writer.gate.set()
    assert (first.result(20), second.result(20)) == ("first is written", "second is written")
    crowd.close()


def test_memory_that_runs_out_while_a_group_is_taken_stops_no_later_commit(writer: Writer) -> None:
    class Short(deque[object]):
        def popleft(self) -> object:
            super().popleft()
            raise MemoryError

    writer.gate.set()
    group: GroupCommit[str, str] = GroupCommit(writer, most=10, timeout=1.0)
    good, group._queue = group._queue, Short()  # type: ignore[assignment]
    with pytest.raises(JournalUnavailable, match="the commit failed"):
        group.submit("lost")
    group._queue = good
    assert group.submit("next") == "next is written"
    assert writer.groups == [["next"]]


@dataclass
class Sheet:
    """Writes numbers after a while or not at all, and notes which; takes note of two writers at once."""

    random: Random
    written: list[int] = field(default_factory=list)
    writers: int = 0
    most_writers: int = 0
    largest: int = 0

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.writers += 1
        self.most_writers, self.largest = max(self.most_writers, self.writers), max(self.largest, len(items))
        try:
            before, how = self.random.random() * 0.002, self.random.random()
            time.sleep(before if how < 0.97 else 0.02)
            if how < 0.1:
                raise JournalUnavailable("not written") if how < 0.07 else SystemExit("not written")
            self.written += items
            if how < 0.15:
                raise JournalUnavailable("written, but nobody knows")
            return [-item for item in items]
        finally:
            self.writers -= 1


@pytest.mark.parametrize(("seed", "most", "timeout"), [(1, 3, 0.01), (2, 100, 0.005), (3, 1, 0.02), (4, 5, 5.0)])
def test_whatever_happens_each_gets_its_own_outcome_and_nobody_gets_stuck(seed: int, most: int, timeout: float) -> None:
    """Switches between threads as often as can be, so that handing over, failing and giving up meet in every order."""
    sheet = Sheet(Random(seed))
    group = GroupCommit(sheet, most, timeout)
    submitted = range(1, 3001)
    refusals: Counter[str] = Counter()

    def submit(item: int) -> int | None:
        if item % 7 == 0:
            time.sleep(item % 5 / 1000)
        try:
            return group.submit(item)
        except JournalUnavailable as error:
            refusals[str(error)] += 1
            time.sleep(0.002)
            return None

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(24) as pool:
            outcomes = list(pool.map(submit, submitted))
    finally:
        sys.setswitchinterval(interval)
    answered = {item: outcome for item, outcome in zip(submitted, outcomes, strict=True) if outcome is not None}
    assert answered == {item: -item for item in answered}
    assert set(answered) <= set(sheet.written)
    assert max(Counter(sheet.written).values()) == 1
    assert (sheet.most_writers, sheet.largest <= most) == (1, True)
    assert answered
    assert refusals
    assert (list(group._queue), group._committing) == ([], False)
    sheet.random = Random(0)
    wait_until(lambda: submit(0) == 0, what="a commit that is well")
