"""Group commit: one commit for all pushes that wait for one.

A commit costs one flush of the disk, whatever is in it. Pushes wait in greenlets while a native thread commits; all
that arrive meanwhile share the next commit.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

import gevent
from gevent.event import AsyncResult

from receiver.errors import JournalUnavailable
from receiver.intake.native_thread import NativeThread
from receiver.journal import Arrival, Outcome

log = logging.getLogger(__name__)

MAX_GROUP = 256
"""Arrivals in one commit: enough for all connections of a worker that are busy at once, few enough for one INSERT."""

GATHER_SECONDS = 0.005
"""How long a commit waits at most until all pushes that have arrived are in its group."""

FAILING_SECONDS = 2.0
"""After so long without a successful commit, pushes that find one under way do not wait for it."""

WAIT_SECONDS = 4.5
"""How long a push waits in all, so that its response comes within 5 s."""


class GroupCommit:
    """Turns `accept`, which stores many arrivals in one commit, into `submit` of one arrival from any greenlet."""

    def __init__(
        self,
        accept: Callable[[Sequence[Arrival]], Sequence[Outcome]],
        *,
        max_group: int = MAX_GROUP,
        failing_seconds: float = FAILING_SECONDS,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._accept = accept
        self._max_group = max_group
        self._failing_seconds = failing_seconds
        self._wait_seconds = wait_seconds
        self._thread = NativeThread()
        self._queue: deque[_Waiting] = deque()
        self._committing = False
        self._failing_since: float | None = None
        """When the first commit began that was not followed by a successful one yet."""

    def submit(self, arrival: Arrival) -> Outcome:
        """Store one arrival; returns its outcome after the commit. Raises JournalUnavailable.

        An arrival whose commit is under way when the time is up may be stored all the same. While no commit succeeds,
        one at a time keeps trying, and pushes that find it under way are rejected immediately.
        """
        if self._committing and self._is_failing():
            raise JournalUnavailable("the journal has not committed for a while")
        waiting = _Waiting(arrival)
        self._queue.append(waiting)
        if not self._committing:
            self._committing = True
            gevent.spawn(self._commit_all)
        result = waiting.result.wait(self._wait_seconds)
        if result is None:
            with contextlib.suppress(ValueError):
                self._queue.remove(waiting)
            raise JournalUnavailable("the journal did not commit in time")
        if isinstance(result, BaseException):
            raise JournalUnavailable(str(result) or "the commit failed") from result
        return result

    def _is_failing(self) -> bool:
        return self._failing_since is not None and time.monotonic() - self._failing_since > self._failing_seconds

    def _commit_all(self) -> None:
        """Commit group after group until nothing waits."""
        try:
            while self._queue:
                with contextlib.suppress(gevent.Timeout), gevent.Timeout(GATHER_SECONDS):
                    gevent.idle()
                group = [self._queue.popleft() for _ in range(min(self._max_group, len(self._queue)))]
                for waiting, result in zip(group, self._commit(group), strict=True):
                    waiting.result.set(result)
        finally:
            self._committing = False

    def _commit(self, group: Sequence[_Waiting]) -> Sequence[Outcome | BaseException]:
        """The outcome of each arrival of a group, or the error for which its commit failed."""
        if self._failing_since is None:
            self._failing_since = time.monotonic()
        try:
            outcomes = self._thread.call(self._accept, [waiting.arrival for waiting in group]).get()
            if len(outcomes) != len(group):
                raise ValueError("the journal returned another number of outcomes than it was given arrivals")
        except BaseException as error:
            if not isinstance(error, JournalUnavailable):
                log.exception("internal error in a commit")
            return [error] * len(group)
        self._failing_since = None
        return outcomes


class _Waiting:
    """An arrival in the queue, and the result for which its push waits."""

    __slots__ = ("arrival", "result")

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self.result: AsyncResult[Outcome | BaseException] = AsyncResult()
