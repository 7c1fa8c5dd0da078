"""The hooks: what a plugin can implement, and what it may rely on.

A plugin is a module with `register_sinks`. A sink is an object, built by the receiver from the options in
`[sinks.NAME]`, that implements exactly one of `deliver` and `deliver_batch`, and `open` and `close` if it needs
them. An implementation names the arguments it wants and may leave out the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import pluggy

from receiver.event import Event

PROJECT = "receiver"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function or method of a plugin as the implementation of the hook of that name."""


class AlertHooks:
    """Hooks of plugin modules and of sinks alike, for alerts. All that implement one are called.

    Each implementation is called in a thread of its own, one alert after another, beside deliveries under way; a sink's
    not before it is open, and then with what it has missed. Alerts are told at most once and are lost in a crash: what
    they tell of is in `sinks --status` and `dead list` as well.
    """

    @hookspec
    def sink_paused(self, sink: str, reason: str) -> None:
        """A sink that worked is called no more for a while: it failed too often, asked for it, or cannot be built.

        Called once when the first of several pauses in a row begins, with the sink's name and the reason in one line,
        without secrets. The sink may be the one that is told. What it returns is ignored. If it raises, that is logged.
        """

    @hookspec
    def delivery_died(self, event: Event, sink: str, reason: str) -> None:
        """A delivery was given up on: it is a dead letter now, until a person retries or drops it.

        Called once for each, with the event, the sink's name and the reason in one line, without secrets; a sink that
        refuses everything causes one for each event. What it returns is ignored. If it raises, that is logged.
        """


class PluginHooks(AlertHooks):
    """Hooks of a plugin module."""

    @hookspec
    def register_sinks(self, register: Callable[[str, type], None]) -> None:
        """Offer sink types.

        Called once at start, in the process that delivers and never in those that receive, with `register(type, cls)`:
        `type` is what users write in config.toml, and the constructor of `cls` is the schema of the options.
        What it returns is ignored. If it raises, the plugin is reported and left out; the others work on.
        """


class SinkHooks(AlertHooks):
    """Hooks of one sink."""

    @hookspec
    def open(self, name: str, logger: logging.Logger) -> None:
        """Get ready: files, connections, threads.

        Called once before the first delivery, with the sink's name from config.toml and a logger of its own.
        What it returns is ignored. If it raises, the sink is paused, and opened again at the pause's end without having
        been closed.
        """

    @hookspec
    def deliver(self, event: Event, attempt: int) -> None:
        """Hand one event to the destination; come back only when it is safe there.

        Called for each event the sink is owed, from one thread at a time unless `concurrency` says otherwise.
        Delivery is at least once: the same event can come again, with a higher `attempt` (they count from 1), or with
        the same after a failed batch or a replay; only its id tells. Events come in no promised order. Returning, with
        whatever value, is "delivered". Raise Retry, Pause or GiveUp to ask for something else; any other exception is a
        fault: logged, and retried with growing pauses.
        """

    @hookspec
    def deliver_batch(self, events: Sequence[Event], attempts: Sequence[int]) -> None:
        """Hand several events to the destination at once; come back only when all of them are safe there.

        Like `deliver`, with 1 to `batch_size` events and the number of the attempt of each, in the same order. If
        it raises anything but Pause, the events are tried again one by one; GiveUp counts only then.
        """

    @hookspec
    def close(self) -> None:
        """Let go of what `open` took.

        Called once after the last delivery, if the sink has been opened. If it raises, that is logged.
        """
