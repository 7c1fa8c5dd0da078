"""Group commit: one commit for everyone who waits for one.

A commit costs a flush of the disk, whatever is in it. Whoever finds nobody committing commits for all who wait by
then; the others find their result when their turn comes.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from receiver.errors import JournalUnavailable

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class _Waiting(Generic[Item, Outcome]):
    def __init__(self, item: Item) -> None:
        self.item = item
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        self.done = False


class GroupCommit(Generic[Item, Outcome]):
    """Turns `write`, which commits many items at once, into `submit` of one item, callable from many threads."""

    def __init__(self, write: Callable[[Sequence[Item]], Sequence[Outcome]], most: int, timeout: float) -> None:
        self._write = write
        self._most = most
        self._timeout = timeout
        self._queue: deque[_Waiting[Item, Outcome]] = deque()
        self._turn = threading.Lock()

    def submit(self, item: Item) -> Outcome:
        """Write one item; returns its outcome after the commit. Raises JournalUnavailable."""
        waiting: _Waiting[Item, Outcome] = _Waiting(item)
        self._queue.append(waiting)
        if not self._turn.acquire(timeout=self._timeout):
            raise self._abandon(waiting)
        try:
            while not waiting.done:
                self._commit()
        finally:
            self._turn.release()
        if waiting.error is not None:
            raise JournalUnavailable(str(waiting.error) or "the commit failed") from waiting.error
        return waiting.outcome  # type: ignore[return-value]  # set, since it is done without an error

    def _commit(self) -> None:
        group: list[_Waiting[Item, Outcome]] = []
        with contextlib.suppress(IndexError):  # whoever gives up takes its item out meanwhile
            while len(group) < self._most:
                group.append(self._queue.popleft())
        try:
            outcomes = self._write([waiting.item for waiting in group])
            for waiting, outcome in zip(group, outcomes, strict=True):
                waiting.outcome = outcome
        except BaseException as error:
            for waiting in group:
                waiting.error = error
            if not isinstance(error, JournalUnavailable):
                log.exception("a commit failed in a way that it should not")
        finally:
            for waiting in group:
                waiting.done = True

    def _abandon(self, waiting: _Waiting[Item, Outcome]) -> JournalUnavailable:
        """Nobody waits for this item any more; one that is being written meanwhile may be kept all the same."""
        with contextlib.suppress(ValueError):
            self._queue.remove(waiting)
        return JournalUnavailable("the journal did not commit in time")
