"""A call that may block, shared by all requests that wait for it, in a native thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from gevent.event import AsyncResult
from gevent.lock import Semaphore
from gevent.threadpool import ThreadPool

Value = TypeVar("Value")


class SharedCall(Generic[Value]):
    """Runs `function` in a thread of its own, one call at a time, once for all greenlets that wait."""

    def __init__(self, function: Callable[[], Value]) -> None:
        self._function = function
        self._thread = ThreadPool(1)
        self._turn = Semaphore()
        self._began_at = float("-inf")
        self._result: AsyncResult[Value] = AsyncResult()

    def __call__(self) -> Value:
        """The value of a call that began after this one, or its exception."""
        asked_at = time.monotonic()
        with self._turn:
            if self._began_at < asked_at:
                self._began_at = time.monotonic()
                self._result = self._thread.spawn(self._function)
            return cast(Value, self._result.get())
