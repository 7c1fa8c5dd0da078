"""Pushes as DT's cloud makes them."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from receiver.simulator import Pusher
from receiver.testing.running import Running
from receiver.testing.samples import TEST_SECRET

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 1.0
"""DT's own pauses are longer; a test does not wait for them."""


class Cloud:
    """Pushes as DT does: each body again and again, signed anew, until it is answered 200; to the receivers in turn.

    `answers` counts every try by its status (0: none came) and text, `times` holds when each body was taken.
    """

    def __init__(self, web: Sequence[Running], connections: int = 12) -> None:
        self.web = list(web)
        self.pushes = 0
        self.answers: Counter[tuple[int, str]] = Counter()
        self.times: list[float] = []
        self._connections = connections
        self._pushers: dict[str, Pusher] = {}
        self._stop = threading.Event()
        self._lock = threading.Lock()

    @contextmanager
    def pushing(self, bodies: Sequence[bytes]) -> Iterator[Callable[[], int]]:
        """Push in the background, all of them taken at the end; gives how many are taken."""
        taken: list[bytes] = []

        def push(body: bytes) -> None:
            self.push(body)
            taken.append(body)

        with ThreadPoolExecutor(self._connections) as pool:
            futures = [pool.submit(push, body) for body in bodies]
            try:
                yield lambda: len(taken)
            except BaseException:
                self.stop()
                raise
        for future in futures:
            future.result()

    def push(self, body: bytes) -> bool:
        """Push one body until it is taken; False when it was not, because of `stop`."""
        pause = FIRST_PAUSE_SECONDS
        while not self._stop.is_set():
            answer = self._pusher().post(body)
            with self._lock:
                self.answers[answer] += 1
                if answer[0] == 200:
                    self.times.append(time.monotonic())
                    return True
            self._stop.wait(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        return False

    def stop(self) -> None:
        """Try no more."""
        self._stop.set()

    def longest_gap(self) -> float:
        """The longest time in which no event was taken while some were pushed."""
        times = sorted(self.times)
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def _pusher(self) -> Pusher:
        with self._lock:
            self.pushes += 1
            url = self.web[self.pushes % len(self.web)].url
            return self._pushers.setdefault(url, Pusher(url, TEST_SECRET, self._connections))
