"""The hooks: what a plugin can implement, and what it can rely on.

A plugin is a module with `register_sinks`. A sink is an object, built by the receiver from the options in
`[sinks.NAME]`, that implements exactly one of `deliver` and `deliver_batch`, and the other hooks if it needs them. An
implementation declares the arguments it wants and can omit the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pluggy

from receiver.event import Event
from receiver.incident import Incident

PROJECT = "receiver"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function or method of a plugin as the implementation of the hook of that name."""

Register = Callable[[str, type], None]
"""The type of the function that `register_sinks` gets."""


class AlertHooks:
    """Hooks of plugin modules and of sinks alike, for alerts. All implementations are called.

    Each implementation is called in a thread of its own, one alert after another, while deliveries go on; that of a
    sink only once the sink is open, and then first with the alerts it has missed. An alert is sent at most once and is
    lost in a crash; `status` and `dead-letters list` show the same facts.
    """

    @hookspec
    def sink_paused(self, sink: str, reason: str) -> None:
        """A working sink was paused: it failed too often, asked for a pause, or cannot be built.

        Called once, when the first of several consecutive pauses begins, with the sink's name and the reason in one
        line without secrets. The sink can be the one that is called. The return value is ignored; an exception is
        logged.
        """

    @hookspec
    def delivery_died(self, event: Event, sink: str, reason: str) -> None:
        """A delivery was given up: it is now a dead letter, until a person retries or deletes it.

        Called once for each dead letter, with the event, the sink's name and the reason in one line without secrets; a
        sink that rejects everything causes one call for each event. The return value is ignored; an exception is
        logged.
        """

    @hookspec
    def incident_opened(self, incident: Incident) -> None:
        """Sensors fell silent, or DT reports a device as offline: one call for each cause.

        Called once, when the incident opens, with the incident; a crash at that moment can repeat the call, with the
        same `incident.id`. `sensors incidents` shows the same facts. The return value is ignored; an exception is
        logged.
        """

    @hookspec
    def incident_closed(self, incident: Incident) -> None:
        """The sensors of an incident are heard again, or were snoozed or retired.

        Called like `incident_opened`, with the same incident, which has a time in `closed` now.
        """


class PluginHooks(AlertHooks):
    """Hooks of a plugin module."""

    @hookspec
    def register_sinks(self, register: Register) -> None:
        """Register sink types.

        Called once when the plugin is loaded, by the dispatcher at its start and by the commands `check`, `sinks` and
        `new-sink`, never in intake, with `register(type, cls)`: `type` is what users write in config.toml, and the
        constructor of `cls` is the schema of the options. The return value is ignored. If it raises, the plugin is
        reported and skipped; other plugins keep working.
        """


class SinkHooks(AlertHooks):
    """Hooks of one sink."""

    @hookspec
    def open(self, name: str, logger: logging.Logger) -> None:
        """Acquire files, connections and threads.

        Called once before the first delivery, with the sink's name from config.toml and a logger for this sink. The
        return value is ignored. If it raises, the sink is paused, and `open` is called again at the end of the pause,
        without a call of `close` in between.
        """

    @hookspec
    def deliver(self, event: Event, attempt: int) -> None:
        """Deliver one event. Return only when it is safe at the destination: returning normally means *delivered*.

        Called for each pending event of the sink, by one thread at a time unless `concurrency` says otherwise. Events
        come in no promised order. Delivery is at least once: the same event can come again, with a higher `attempt`
        (counted from 1), or with the same one after a failed batch or a replay, so make `deliver` idempotent by
        `event.id`. The return value is ignored. Raise Retry, Pause or GiveUp to ask for something else; any other
        exception is a failure, which is logged and retried with backoff.
        """

    @hookspec
    def deliver_batch(self, events: Sequence[Event], attempts: Sequence[int]) -> None:
        """Deliver several events at once. Return only when all of them are safe at the destination.

        Like `deliver`, with 1 to `batch_size` events, and the attempt number of each in the same order. If it raises
        anything but Pause, the events are delivered again one by one; GiveUp is honoured only then.
        """

    @hookspec
    def close(self) -> None:
        """Release what `open` acquired.

        Called once after the last delivery, if the sink is open. The return value is ignored; an exception is logged.
        """

    @hookspec(firstresult=True)
    def find_problems(self, others: Sequence[object]) -> Sequence[str] | None:
        """Problems that will prevent the sink from working, as far as they can be found without connecting.

        Called by `check` alone, after the sink was built and without a call of `open`, with the other enabled sinks of
        the same class. Without side effects: it may look at options and files, but must not change anything or connect.
        Returns lines without secrets, one for each problem; an empty list or None if there is none. If it raises, the
        exception is a problem.
        """

    @hookspec(firstresult=True)
    def local_path(self) -> Path | None:
        """The file or folder on this machine in which the sink stores events; None if it stores them elsewhere.

        Called once after the sink was built, before `open`, also by `check`; without side effects. `check` reports a
        path that cannot be written. On a Heroku dyno, whose disk is lost at each restart, operators are warned about
        such a sink. If it raises or returns anything else, the sink is not built, and that is its problem.
        """
