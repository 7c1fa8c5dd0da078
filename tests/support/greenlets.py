"""Pushes that wait in greenlets, as in a worker of intake."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import gevent
from gevent.pool import Pool

from receiver.errors import JournalUnavailable
from receiver.intake.group_commit import GroupCommit
from receiver.journal import Arrival, Outcome

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_greenlets(number: int, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """The results of a function for all items, in their order; `number` greenlets call it at a time."""
    return list(Pool(number).imap(function, items))


def submit_at_once(
    accept: Callable[[Sequence[Arrival]], Sequence[Outcome]], arrivals: Sequence[Arrival]
) -> list[Outcome | JournalUnavailable]:
    """Submit arrivals at the same time to a group commit of its own; the outcome or the error of each."""
    group = GroupCommit(accept)

    def submit(arrival: Arrival) -> Outcome | JournalUnavailable:
        try:
            return group.submit(arrival)
        except JournalUnavailable as error:
            return error

    return in_greenlets(len(arrivals), submit, arrivals)


def wait_in_greenlet(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Let the other greenlets work until a condition is true."""
    with gevent.Timeout(seconds, AssertionError(f"timed out waiting for {what}")):
        while not condition():
            gevent.sleep(0.001)
