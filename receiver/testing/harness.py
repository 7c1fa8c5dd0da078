"""A test harness for one sink: it is built from options as from config.toml, and called by the real dispatcher."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from receiver.delivery.dispatcher import Dispatcher
from receiver.delivery.plugins import Plugins, load_plugins
from receiver.delivery.sink_type import SinkType
from receiver.delivery.sinks import Sink, build_sink
from receiver.errors import JournalUnavailable, PluginError
from receiver.event import Event
from receiver.journal import Arrival, Journal, SinkCounts, open_journal
from receiver.lifeline import Lifeline
from receiver.redaction import Redactor
from receiver.settings import CommonOptions, Settings, SinkSettings, load
from receiver.testing.samples import TEST_SECRET
from receiver.variables import SECRET

SINK_NAME = "tested"
STORE_ATTEMPTS = 5
"""A busy disk can make the journal unavailable for a moment."""

EVENTS_PER_COMMIT = 256
POLL_SECONDS = 0.02
STOP_SECONDS = 30.0
"""Longer than the dispatcher takes to stop, even if a call of the sink does not return."""

SHORT_BACKOFF = {"initial_backoff": 0.02, "max_backoff": 0.1}
"""A retry policy for tests that wait for retries."""


class Harness:
    """One sink type of a plugin with options for it, in a folder from which relative paths count."""

    def __init__(self, folder: Path, plugin: str, type: str | None, options: Mapping[str, object]) -> None:
        """`plugin` is a file or an installed module; `type` can be None if it registers only one.

        Raises PluginError if the plugin cannot be loaded or does not register the type.
        """
        is_file = plugin.endswith(".py")
        source = str(Path(plugin).absolute()) if is_file else plugin
        config = f"[receiver]\nplugins = [{json.dumps(source, ensure_ascii=False)}]\n[journal]\nmin_free_mb = 0\n"
        (folder / "config.toml").write_text(config, encoding="utf-8")
        self.settings: Settings = load({"RECEIVER_CONFIG": str(folder / "config.toml"), SECRET: TEST_SECRET})
        self.options = options
        self._redactor = Redactor(self.settings.secret_values)
        self._plugins: Plugins = load_plugins(self.settings, self._redactor)
        self.type = self._find_type(source, type)

    def build(self, options: Mapping[str, object] | None = None, **common: object) -> Sink:
        """Build the sink; `options` replace its own. Raises PluginError with what is wrong with them."""
        table = {"type": self.type.name, "retry": SHORT_BACKOFF, **common}
        settings = SinkSettings(
            SINK_NAME, CommonOptions.model_validate(table), self.options if options is None else options
        )
        return build_sink(self._plugins, self.settings, settings, self._redactor)

    def push(self, events: Sequence[Event]) -> None:
        """Store events, as intake does."""
        arrivals = [Arrival(event.id, event.body, event.received_at.timestamp()) for event in events]
        for start in range(0, len(arrivals), EVENTS_PER_COMMIT):
            self._store(arrivals[start : start + EVENTS_PER_COMMIT])

    def deliver(
        self, sink: Sink, *, max_seconds: float = 60.0, limit: int | None = None, may_fail: bool = False
    ) -> SinkCounts:
        """Run a dispatcher until nothing is pending, or `limit` events are delivered; the counts of the sink then.

        It also ends after `max_seconds`, and at the first failure unless the sink `may_fail`: more failures would only
        hide the first one. A dead letter is no failure here. While it stops, it still delivers what is due.
        """
        lifeline = Lifeline()
        dispatcher = Dispatcher(
            self.journal,
            [SinkSettings(SINK_NAME, sink.common)],
            [sink],
            {},
            retention_seconds=86400.0,
            redact=self._redactor.redact,
        )
        before = self._counts()
        thread = threading.Thread(target=dispatcher.run, args=(lifeline,), daemon=True)
        thread.start()
        end = time.monotonic() + max_seconds
        while time.monotonic() < end and not self._is_done(before, limit, may_fail):
            time.sleep(POLL_SECONDS)
        lifeline.stop_requested = True
        thread.join(STOP_SECONDS)
        return self._counts()

    @cached_property
    def journal(self) -> Journal:
        """The journal in the folder; opened when it is first used."""
        return open_journal(self.settings)

    def close(self) -> None:
        if "journal" in vars(self):
            self.journal.close()

    def _store(self, arrivals: Sequence[Arrival]) -> None:
        for _ in range(STORE_ATTEMPTS - 1):
            with suppress(JournalUnavailable):
                self.journal.accept(arrivals)
                return
        self.journal.accept(arrivals)

    def _counts(self) -> SinkCounts:
        return self.journal.counts().sinks.get(SINK_NAME, SinkCounts())

    def _is_done(self, before: SinkCounts, limit: int | None, may_fail: bool) -> bool:
        counts = self.journal.counts()
        sink = counts.sinks.get(SINK_NAME, SinkCounts())
        has_failed = sink.failures - sink.dead > before.failures - before.dead and not may_fail
        is_enough = limit is not None and sink.delivered >= before.delivered + limit
        return has_failed or is_enough or (counts.unrouted == 0 and sink.pending == 0)

    def _find_type(self, source: str, type: str | None) -> SinkType:
        problems = [problem for problem in self._plugins.problems if problem.startswith(f"{source}: ")]
        if problems:
            raise PluginError(f"the plugin cannot be loaded: {problems[0]}")
        registered = {name: found for name, found in self._plugins.types.items() if found.source == source}
        if type is None and len(registered) == 1:
            return next(iter(registered.values()))
        if type not in registered:
            raise PluginError(f"select one of the plugin's sink types with type=: {', '.join(registered)}")
        return registered[type]


def unreliable(sink: Sink, seed: int) -> Sink:
    """The sink, but one in five calls fails before it is made, and one in five after it has returned.

    To the sink, the latter looks like a crash after it delivered, but before the receiver recorded it.
    """
    return replace(sink, hook=UnreliableHooks(sink.hook, random.Random(seed)))


class UnreliableHooks:
    """The hooks of a sink, with simulated failures."""

    def __init__(self, hook: Any, random: random.Random) -> None:
        self._hook = hook
        self._random = random

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hook, name)

    def deliver(self, **arguments: object) -> None:
        self._call(self._hook.deliver, arguments)

    def deliver_batch(self, **arguments: object) -> None:
        self._call(self._hook.deliver_batch, arguments)

    def _call(self, call: Any, arguments: Mapping[str, object]) -> None:
        chance = self._random.random()
        if chance < 0.2:
            raise ConnectionError("simulated failure before the call")
        call(**arguments)
        if chance > 0.8:
            raise ConnectionError("simulated failure after the call")
