"""Native threads for calls that may block: none may run on gevent's hub, where it would stop all connections."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import gevent
from gevent.lock import Semaphore
from gevent.threadpool import ThreadPool

Value = TypeVar("Value")


@dataclass(frozen=True)
class Done(Generic[Value]):
    """How a call has ended. An exception that left the native thread would be printed by gevent, or end the process."""

    value: Value | None = None
    error: BaseException | None = None

    def get(self) -> Value:
        """The value of the call. Raises its exception."""
        if self.error is not None:
            raise self.error
        return cast(Value, self.value)


class NativeThread:
    """A native thread, which makes one call at a time while other greenlets go on."""

    def __init__(self) -> None:
        self._pool = ThreadPool(1)

    def call(self, function: Callable[..., Value], *arguments: object) -> Done[Value]:
        """Call a function in the thread; returns when it has ended."""
        done: Done[Value] = self._pool.apply(_call, (function, arguments))
        return done


class SharedCall(Generic[Value]):
    """A call in a native thread, shared by all greenlets that wait for it."""

    def __init__(self, function: Callable[[], Value]) -> None:
        self._function = function
        self._thread = NativeThread()
        self._turn = Semaphore()
        self._began_at = float("-inf")
        self._done: Done[Value] = Done()

    def __call__(self) -> Value:
        """The value of a call that began after this one. Raises its exception."""
        asked_at = time.monotonic()
        with self._turn:
            if self._began_at < asked_at:
                self._began_at = time.monotonic()
                self._done = self._thread.call(self._function)
            return self._done.get()


class ShortTurns:
    """Within it, a thread that wants the interpreter gets it from another one after half a millisecond instead of 5.

    A push needs it several times, and would wait 5 ms each time while a page is made.
    """

    SECONDS = 0.0005

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = 0.0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(self.SECONDS)

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                sys.setswitchinterval(self._before)


class Crew:
    """A few native threads for calls that may take long or hang; the wait for one is limited."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPool(threads)
        self._short_turns = ShortTurns()

    def call(self, function: Callable[[], Value], seconds: float) -> Value:
        """The value of a call in one of the threads.

        Raises its exception, or TimeoutError after so many seconds; the call then continues, and occupies its thread.
        """
        with gevent.Timeout(seconds, TimeoutError):
            done = cast(Done[Value], self._pool.spawn(_call, self._in_short_turns, (function,)).get())
        return done.get()

    def _in_short_turns(self, function: Callable[[], Value]) -> Value:
        with self._short_turns:
            return function()


def _call(function: Callable[..., Value], arguments: tuple[object, ...]) -> Done[Value]:
    try:
        return Done(function(*arguments))
    except BaseException as error:
        return Done(error=error)
