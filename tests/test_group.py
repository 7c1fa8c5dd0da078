"""Group commit: many wait, one writes for all, and everyone gets what is theirs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

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
    crowd = Crowd(writer, timeout=0.2)
    first, late = crowd.submit("first"), crowd.submit("late")
    with pytest.raises(JournalUnavailable, match="did not commit in time"):
        late.result(20)
    writer.gate.set()
    assert first.result(20) == "first is written"
    assert crowd.group.submit("next") == "next is written"
    assert writer.groups == [["first"], ["next"]]
    crowd.close()
