"""Alerts: calls the hooks of every plugin and sink that wants to know of pauses, dead letters and incidents.

Each listener has a queue and a thread of its own: one that blocks or fails delays no delivery and no other listener.
Alerts exist in memory only; what they are about is in the journal.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from receiver.errors import NotAnEvent
from receiver.hookspecs import AlertHooks
from receiver.incident import Incident
from receiver.journal import StoredEvent
from receiver.redaction import error_text

log = logging.getLogger(__name__)

MAX_QUEUED = 1000
"""How many alerts a listener may be behind; further ones are dropped."""


class Alerts:
    """Notifies of pauses, dead letters and incidents. Its calls neither block nor raise, whatever the listeners do."""

    def __init__(self, plugins: Sequence[Any], sinks: Sequence[Any], redact: Callable[[str], str]) -> None:
        """Each of these hooks that implements an alert is a listener; a sink is not notified before `start`."""
        self._listeners = [Listener(hook, redact) for hook in [*plugins, *sinks] if _implements_alert(hook)]
        for hook in plugins:
            self.start(hook)

    def start(self, hook: Any) -> None:
        """Notify this listener from now on, first of the alerts it has missed."""
        for listener in self._listeners:
            if listener.hook is hook and not listener.is_alive():
                listener.start()

    def sink_paused(self, sink: str, reason: str) -> None:
        for listener in self._listeners:
            listener.notify("sink_paused", sink=sink, reason=reason)

    def delivery_died(self, stored: StoredEvent, sink: str, reason: str) -> None:
        """Without effect for an event that cannot be decoded any more: there is nothing to pass to a hook."""
        try:
            event = stored.decode() if self._listeners else None
        except NotAnEvent:
            return
        for listener in self._listeners:
            listener.notify("delivery_died", event=event, sink=sink, reason=reason)

    def announce(self, hook: str, incident: Incident) -> None:
        """Call `incident_opened` or `incident_closed`."""
        for listener in self._listeners:
            listener.notify(hook, incident=incident)

    def close(self, seconds: float) -> None:
        """Wait until the listeners have got all their alerts, for `seconds` at most."""
        end = time.monotonic() + seconds
        started = [listener for listener in self._listeners if listener.is_alive()]
        for listener in started:
            listener.finish()
        for listener in started:
            listener.join(max(0.0, end - time.monotonic()))


class Listener(threading.Thread):
    """A plugin or sink that implements an alert, and its queue."""

    def __init__(self, hook: Any, redact: Callable[[str], str]) -> None:
        super().__init__(name="alerts", daemon=True)
        self.hook = hook
        self._redact = redact
        self._queue: queue.Queue[tuple[str, dict[str, object]] | None] = queue.Queue(MAX_QUEUED)

    def notify(self, name: str, **arguments: object) -> None:
        try:
            self._queue.put_nowait((name, arguments))
        except queue.Full:
            values = {"alert": name, "subject": f"sink {arguments['sink']}" if "sink" in arguments else "sensors"}
            log.warning("alert %(alert)s of %(subject)s dropped: its listener is too far behind", values)

    def finish(self) -> None:
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return  # it is too far behind to finish in time

    def run(self) -> None:
        while (alert := self._queue.get()) is not None:
            name, arguments = alert
            try:
                getattr(self.hook, name)(**arguments)
            except BaseException as error:
                listener = getattr(self.hook, name).get_hookimpls()[0].plugin_name
                log.warning("%s failed in %s: %s", listener, name, error_text(error, self._redact))


def _implements_alert(hook: Any) -> bool:
    names = [name for name in vars(AlertHooks) if not name.startswith("_")]
    return any(getattr(hook, name).get_hookimpls() for name in names)
