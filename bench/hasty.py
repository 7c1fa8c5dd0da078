"""The receiver, but it answers before its commit, as no receiver may: how fast it is when nobody waits for a commit."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from receiver.cli import main
from receiver.journal import Acceptance, Arrival, sql


class Hasty:
    """In place of GroupCommit: whoever finds nobody committing commits all there is, everybody else goes on at once."""

    def __init__(self, write: Callable[[Sequence[Arrival]], object], most: int, timeout: float) -> None:
        self._write = write
        self._most = most
        self._queue: deque[Arrival] = deque()
        self._committing = threading.Lock()

    def submit(self, arrival: Arrival) -> Acceptance:
        self._queue.append(arrival)
        while self._queue and self._committing.acquire(blocking=False):
            try:
                group = [self._queue.popleft() for _ in range(min(self._most, len(self._queue)))]
                if group:
                    self._write(group)
            finally:
                self._committing.release()
        return Acceptance.ACCEPTED


if __name__ == "__main__":
    sql.GroupCommit = Hasty  # type: ignore[assignment, attr-defined]
    main()
