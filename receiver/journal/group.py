"""Group commit: one commit for everyone who waits for one.

A commit costs a flush of the disk, whatever is in it. Whoever finds nobody committing commits for all who wait by
then, wakes each of them, and leaves the next commit to the first of those who came meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from receiver.errors import JournalUnavailable

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class _Waiting(Generic[Item, Outcome]):
    """An item in line. Its `turn` is free when it is done, or when the next commit is up to it."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        self.done = False
        self.turn = threading.Lock()
        self.turn.acquire()


class GroupCommit(Generic[Item, Outcome]):
    """Turns `write`, which commits many items at once, into `submit` of one item, callable from many threads."""

    def __init__(self, write: Callable[[Sequence[Item]], Sequence[Outcome]], most: int, timeout: float) -> None:
        self._write = write
        self._most = most
        self._timeout = timeout
        self._queue: deque[_Waiting[Item, Outcome]] = deque()
        self._committing = False
        self._trying_since: float | None = None
        """When the first commit began that no good one has followed yet."""
        self._lock = threading.Lock()
        """Held for moments, around the queue and what is known of the commits."""

    def submit(self, item: Item) -> Outcome:
        """Write one item; returns its outcome after the commit. Raises JournalUnavailable.

        When no commit has come back well for longer than anybody waits, one at a time tries and the others are told at
        once: if they all waited in vain, whoever comes after them would not find a thread in time.
        """
        waiting: _Waiting[Item, Outcome] = _Waiting(item)
        with self._lock:
            if self._committing and self._in_trouble():
                raise JournalUnavailable("the journal has not committed for a while")
            self._queue.append(waiting)
            first, self._committing = not self._committing, True
        if not first and not waiting.turn.acquire(timeout=self._timeout) and self._gives_up(waiting):
            raise JournalUnavailable("the journal did not commit in time")
        if not waiting.done:
            self._commit()
        if waiting.error is not None or not waiting.done:
            raise JournalUnavailable(str(waiting.error or "") or "the commit failed") from waiting.error
        return waiting.outcome  # type: ignore[return-value]  # set, since it is done without an error

    def _gives_up(self, waiting: _Waiting[Item, Outcome]) -> bool:
        """Take an item out of the line, unless its turn came at the last moment.

        One that is being written meanwhile may be kept all the same.
        """
        with self._lock:
            if waiting.turn.acquire(blocking=False):
                return False
            with contextlib.suppress(ValueError):
                self._queue.remove(waiting)
            return True

    def _in_trouble(self) -> bool:
        return self._trying_since is not None and time.monotonic() - self._trying_since > self._timeout

    def _commit(self) -> None:
        group: list[_Waiting[Item, Outcome]] = []
        try:
            self._take(group)
            outcomes = self._write([waiting.item for waiting in group])
            for waiting, outcome in zip(group, outcomes, strict=True):
                waiting.outcome = outcome
            with self._lock:
                self._trying_since = None
        except BaseException as error:
            for waiting in group:
                waiting.error = error
            if not isinstance(error, JournalUnavailable):
                log.exception("a commit failed in a way that it should not")
        finally:
            self._pass_on()
            for waiting in group:
                waiting.done = True
                waiting.turn.release()

    def _take(self, group: list[_Waiting[Item, Outcome]]) -> None:
        with self._lock:
            if self._trying_since is None:
                self._trying_since = time.monotonic()
            while self._queue and len(group) < self._most:
                group.append(self._queue.popleft())

    def _pass_on(self) -> None:
        """The next commit is up to whoever has waited for longest."""
        with self._lock:
            self._committing = bool(self._queue)
            if self._queue:
                self._queue[0].turn.release()
