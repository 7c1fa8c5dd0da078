"""The receiver, but responding before its commit, as no receiver may: the speed without waiting for a commit."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from receiver.commands.main import main
from receiver.intake import app, group_commit
from receiver.journal import Arrival, Outcome


class NoWait:
    """In place of GroupCommit: a push that finds no commit under way commits all there is; the others do not wait."""

    def __init__(self, accept: Callable[[Sequence[Arrival]], object]) -> None:
        self._accept = accept
        self._queue: deque[Arrival] = deque()
        self._committing = threading.Lock()

    def submit(self, arrival: Arrival) -> Outcome:
        self._queue.append(arrival)
        while self._queue and self._committing.acquire(blocking=False):
            try:
                size = min(group_commit.MAX_GROUP, len(self._queue))
                if group := [self._queue.popleft() for _ in range(size)]:
                    self._accept(group)
            finally:
                self._committing.release()
        return Outcome.ACCEPTED


if __name__ == "__main__":
    app.GroupCommit = NoWait  # type: ignore[assignment, attr-defined]
    main()
