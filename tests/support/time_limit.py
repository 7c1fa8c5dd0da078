"""Calls that may block: they fail a test instead of blocking it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")
MAX_CALL_SECONDS = 20.0


def call_with_time_limit(call: Callable[[], Result]) -> Result:
    """What a call returns or raises, made in a thread; AssertionError if it takes longer than MAX_CALL_SECONDS."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(MAX_CALL_SECONDS)
    assert not thread.is_alive(), f"the call did not return within {MAX_CALL_SECONDS:g} s"
    if errors:
        raise errors[0]
    return results[0]
