"""Group commit: one commit for all pushes that wait for one.

A commit costs one flush of the disk, whatever is in it. A push that finds no commit under way commits for all that
wait by then, wakes each of them, and hands the next commit to the first that arrived meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from receiver.errors import JournalUnavailable
from receiver.journal import Arrival, Outcome

log = logging.getLogger(__name__)

MAX_GROUP = 256
"""Arrivals in one commit: enough for all connections of a worker that are busy at once, few enough for one INSERT."""

TURN_SECONDS = 2.0
"""How long a push waits for its turn; with the time limits of a commit itself, its response comes within 5 s."""


class GroupCommit:
    """Turns `accept`, which stores many arrivals in one commit, into `submit` of one arrival from any thread."""

    def __init__(
        self,
        accept: Callable[[Sequence[Arrival]], Sequence[Outcome]],
        max_group: int = MAX_GROUP,
        turn_seconds: float = TURN_SECONDS,
    ) -> None:
        self._accept = accept
        self._max_group = max_group
        self._turn_seconds = turn_seconds
        self._queue: deque[_Waiting] = deque()
        self._committing = False
        self._failing_since: float | None = None
        """When the first commit began that was not followed by a successful one yet."""
        self._lock = threading.Lock()
        """Held briefly, around the queue and the state of the commits."""

    def submit(self, arrival: Arrival) -> Outcome:
        """Store one arrival; returns its outcome after the commit. Raises JournalUnavailable.

        When no commit has succeeded for longer than a push waits, one at a time keeps trying and the others are
        rejected immediately: if all of them waited, no threads would be left for later pushes.
        """
        waiting = _Waiting(arrival)
        with self._lock:
            if self._committing and self._is_failing():
                raise JournalUnavailable("the journal has not committed for a while")
            self._queue.append(waiting)
            first, self._committing = not self._committing, True
        if not first and not waiting.turn.acquire(timeout=self._turn_seconds) and self._leave_queue(waiting):
            raise JournalUnavailable("the journal did not commit in time")
        if not waiting.done:
            self._commit()
        if waiting.error is not None or waiting.outcome is None:
            raise JournalUnavailable(str(waiting.error or "") or "the commit failed") from waiting.error
        return waiting.outcome

    def _leave_queue(self, waiting: _Waiting) -> bool:
        """Take an arrival out of the queue; False if its turn came at the last moment.

        An arrival that is being committed meanwhile may be stored all the same.
        """
        with self._lock:
            if waiting.turn.acquire(blocking=False):
                return False
            with contextlib.suppress(ValueError):
                self._queue.remove(waiting)
            return True

    def _is_failing(self) -> bool:
        return self._failing_since is not None and time.monotonic() - self._failing_since > self._turn_seconds

    def _commit(self) -> None:
        group: list[_Waiting] = []
        try:
            self._take_group(group)
            outcomes = self._accept([waiting.arrival for waiting in group])
            for waiting, outcome in zip(group, outcomes, strict=True):
                waiting.outcome = outcome
            with self._lock:
                self._failing_since = None
        except BaseException as error:
            for waiting in group:
                waiting.error = error
            if not isinstance(error, JournalUnavailable):
                log.exception("internal error in a commit")
        finally:
            self._wake_next()
            for waiting in group:
                waiting.done = True
                waiting.turn.release()

    def _take_group(self, group: list[_Waiting]) -> None:
        with self._lock:
            if self._failing_since is None:
                self._failing_since = time.monotonic()
            while self._queue and len(group) < self._max_group:
                group.append(self._queue.popleft())

    def _wake_next(self) -> None:
        """Hand the next commit to the arrival that has waited for the longest time."""
        with self._lock:
            self._committing = bool(self._queue)
            if self._queue:
                self._queue[0].turn.release()


class _Waiting:
    """An arrival in the queue. `turn` is released when it is done, or when its thread must run the next commit."""

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        self.done = False
        self.turn = threading.Lock()
        self.turn.acquire()
