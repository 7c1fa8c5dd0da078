"""Alerts: pauses and dead letters, told to every plugin and sink that asks for them.

Each listener has a queue and a thread of its own: one that hangs or fails holds up no delivery and no other listener.
Alerts live in memory only; what they tell of lives in the journal.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from receiver.errors import NotAnEvent, text_of
from receiver.journal import Kept

log = logging.getLogger(__name__)

WAITING_AT_MOST = 1000
"""How many alerts a listener may be behind; further ones are left out."""


class Alerts:
    """Tells of pauses and dead letters. Its calls neither wait nor raise, whatever the listeners do."""

    def __init__(self, plugins: Sequence[Any], sinks: Sequence[Any], redact: Callable[[str], str]) -> None:
        """Each of these hooks that implements an alert becomes a listener; a sink hears nothing until it is `ready`."""
        self._listeners = [Listener(hook, redact) for hook in [*plugins, *sinks] if _listens(hook)]
        for hook in plugins:
            self.ready(hook)

    def ready(self, hook: Any) -> None:
        """Tell this one from now on, and what it has missed."""
        for listener in self._listeners:
            if listener.hook is hook and not listener.is_alive():
                listener.start()

    def sink_paused(self, sink: str, reason: str) -> None:
        for listener in self._listeners:
            listener.tell("sink_paused", sink=sink, reason=reason)

    def delivery_died(self, kept: Kept, sink: str, reason: str) -> None:
        """Not told of what cannot be decoded any more: there is no event to tell with."""
        try:
            event = kept.decode() if self._listeners else None
        except NotAnEvent:
            return
        for listener in self._listeners:
            listener.tell("delivery_died", event=event, sink=sink, reason=reason)

    def close(self, seconds: float) -> None:
        """Let the listeners hear what is left, for so long at most."""
        end = time.monotonic() + seconds
        ready = [listener for listener in self._listeners if listener.is_alive()]
        for listener in ready:
            listener.no_more()
        for listener in ready:
            listener.join(max(0.0, end - time.monotonic()))


class Listener(threading.Thread):
    """A plugin or sink that wants to be told, and what it has not heard yet."""

    def __init__(self, hook: Any, redact: Callable[[str], str]) -> None:
        super().__init__(name="alerts", daemon=True)
        self.hook = hook
        self._redact = redact
        self._left: queue.Queue[tuple[str, dict[str, object]] | None] = queue.Queue(WAITING_AT_MOST)

    def tell(self, name: str, **facts: object) -> None:
        try:
            self._left.put_nowait((name, facts))
        except queue.Full:
            log.warning("alert %s of sink %s is left out: its listener is too far behind", name, facts["sink"])

    def no_more(self) -> None:
        try:
            self._left.put_nowait(None)
        except queue.Full:
            return  # it will be left behind anyway

    def run(self) -> None:
        while (alert := self._left.get()) is not None:
            name, facts = alert
            try:
                getattr(self.hook, name)(**facts)
            except BaseException as error:
                who = getattr(self.hook, name).get_hookimpls()[0].plugin_name
                log.warning("%s failed in %s: %s", who, name, text_of(error, self._redact))


def _listens(hook: Any) -> bool:
    return bool(hook.sink_paused.get_hookimpls() or hook.delivery_died.get_hookimpls())
