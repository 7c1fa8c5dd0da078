"""Pushes as DT's cloud sends them: each is retried until it gets 200."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from receiver.simulator import Pusher
from receiver.testing.issuer import Issuer
from receiver.testing.running import RunningReceiver
from receiver.testing.samples import TEST_SECRET

INITIAL_BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 1.0
"""DT's own backoff is longer; a test does not wait for it."""

BY_KEY = 4
"""With an issuer, one in so many attempts is signed with its key, the others with the secret."""


class Cloud:
    """Pushes to several receivers in turn, as DT does: each attempt is signed anew, until one gets 200.

    `responses` counts all attempts by status (0: no response) and text; `accepted_at` are the monotonic times of each
    200.
    """

    def __init__(
        self, receivers: Sequence[RunningReceiver], connections: int = 12, issuer: Issuer | None = None
    ) -> None:
        self.receivers = list(receivers)
        self.pushes = 0
        self.responses: Counter[tuple[int, str]] = Counter()
        self.accepted_at: list[float] = []
        self._connections = connections
        self._issuer = issuer
        self._pushers: dict[str, Pusher] = {}
        self._stop = threading.Event()
        self._lock = threading.Lock()

    @contextmanager
    def pushing(self, bodies: Sequence[bytes]) -> Iterator[Callable[[], int]]:
        """Push in the background; at the end, all are accepted. Gives a function that counts those accepted so far."""
        accepted: list[bytes] = []

        def push(body: bytes) -> None:
            self.push(body)
            accepted.append(body)

        with ThreadPoolExecutor(self._connections) as pool:
            futures = [pool.submit(push, body) for body in bodies]
            try:
                yield lambda: len(accepted)
            except BaseException:
                self.stop()
                raise
        for future in futures:
            future.result()

    def push(self, body: bytes) -> bool:
        """Push one body until it is accepted. Returns False if `stop` was called before that."""
        backoff = INITIAL_BACKOFF_SECONDS
        while not self._stop.is_set():
            if self.attempt(body) == 200:
                return True
            self._stop.wait(backoff)
            backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)
        return False

    def attempt(self, body: bytes) -> int:
        """Push one body once; the status of the response, 0 for none."""
        by_key = self._issuer is not None and self.pushes % BY_KEY == 0
        response = self._next_pusher().post(body, self._issuer.sign(body) if self._issuer and by_key else None)
        with self._lock:
            self.responses[response] += 1
            if response[0] == 200:
                self.accepted_at.append(time.monotonic())
        return response[0]

    def stop(self) -> None:
        """Retry no more."""
        self._stop.set()

    def longest_gap_seconds(self) -> float:
        """The longest time between two events that were accepted one after the other."""
        times = sorted(self.accepted_at)
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def _next_pusher(self) -> Pusher:
        with self._lock:
            self.pushes += 1
            url = self.receivers[self.pushes % len(self.receivers)].url
            return self._pushers.setdefault(url, Pusher(url, TEST_SECRET, self._connections))
