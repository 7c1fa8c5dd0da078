"""A stage for one sink: built from options as config.toml would, and fed by the real dispatcher from a real journal."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from receiver.dispatcher import Dispatcher
from receiver.errors import JournalUnavailable, PluginError
from receiver.event import Event
from receiver.journal import Arrival, Journal, SinkCount, open_journal
from receiver.lifeline import Lifeline
from receiver.plugins import Plugins, Sink, build_sink, load_plugins
from receiver.settings import SECRET, CommonOptions, Settings, SinkSettings, load
from receiver.sink_type import SinkType
from receiver.testing.samples import TEST_SECRET

NAME = "tested"
PUSHES = 5
IN_A_HURRY = {"first_pause": 0.02, "longest_pause": 0.1}
"""A retry policy that tries again at once, where a test has to wait for it."""


class Stage:
    """One sink type of a plugin with options for it, in a folder from which relative paths count."""

    def __init__(self, folder: Path, plugin: str, type: str | None, options: Mapping[str, object]) -> None:
        """`plugin` is a file or an installed module; `type` may be left out where it offers only one.

        Opens a journal in the folder. Raises PluginError when the plugin cannot be loaded or does not offer the type.
        """
        is_file = plugin.endswith(".py")
        source = str(Path(plugin).absolute()) if is_file else plugin
        (folder / "config.toml").write_text(f"[receiver]\nplugins = ['{source}']\n[journal]\nmin_free_mb = 0\n")
        self.settings: Settings = load({"RECEIVER_CONFIG": str(folder / "config.toml"), SECRET: TEST_SECRET})
        self.options = options
        self._plugins: Plugins = load_plugins(self.settings)
        self.type = self._chosen(source, type)
        self.journal: Journal = open_journal(self.settings)

    def build(self, options: Mapping[str, object] | None = None, **common: object) -> Sink:
        """The sink, with these options in place of its own. Raises PluginError with what is wrong with them."""
        table = {"type": self.type.name, "retry": IN_A_HURRY, **common}
        given = self.options if options is None else options
        settings = SinkSettings(NAME, CommonOptions.model_validate(table), given)
        return build_sink(self._plugins, self.settings, settings)

    def push(self, events: Sequence[Event]) -> None:
        """Journal events, as intake does, and push again what a busy disk did not take, as DT does."""
        arrivals = [Arrival(event.id, event.body, event.received_at.timestamp()) for event in events]
        with ThreadPoolExecutor(32) as pool:  # they share commits
            list(pool.map(self._accept, arrivals))

    def deliver(self, sink: Sink, seconds: float, *, may_fail: bool = False) -> SinkCount:
        """Run a dispatcher until nothing is owed, for so long at most, and stop it; how the sink stands then.

        The first failure ends it too, unless the sink `may_fail`: the others would be the same, and hide it.
        """
        failures = self._count().failures
        lifeline = Lifeline()
        route = SinkSettings(NAME, sink.common)
        dispatcher = Dispatcher(
            self.journal, [route], [sink], {}, retention_seconds=86400.0, redact=self.settings.redact
        )
        thread = threading.Thread(target=dispatcher.run, args=(lifeline,), daemon=True)
        thread.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._owes() and (may_fail or self._count().failures == failures):
            time.sleep(0.02)
        lifeline.asked_to_stop = True
        thread.join(30)
        return self._count()

    def close(self) -> None:
        self.journal.close()

    def _accept(self, arrival: Arrival) -> None:
        for _ in range(PUSHES - 1):
            with suppress(JournalUnavailable):
                self.journal.accept(arrival)
                return
        self.journal.accept(arrival)

    def _count(self) -> SinkCount:
        return self.journal.counts().sinks.get(NAME, SinkCount())

    def _owes(self) -> bool:
        counts = self.journal.counts()
        return counts.unmatched > 0 or counts.sinks.get(NAME, SinkCount()).pending > 0

    def _chosen(self, source: str, type: str | None) -> SinkType:
        faults = [fault for fault in self._plugins.faults if fault.startswith(f"{source}: ")]
        if faults:
            raise PluginError(f"the plugin cannot be loaded: {faults[0]}")
        offered = {name: offer for name, offer in self._plugins.types.items() if offer.source == source}
        if type is None and len(offered) == 1:
            return next(iter(offered.values()))
        if type not in offered:
            raise PluginError(f"name one of the plugin's types with type=: {', '.join(offered)}")
        return offered[type]


def unreliable(sink: Sink, seed: int) -> Sink:
    """A sink that now and then fails before it is called, and now and then after it came back.

    The latter is what a crash between a delivery and its record looks like to the sink.
    """
    return replace(sink, hook=Unreliable(sink.hook, random.Random(seed)))


class Unreliable:
    """The hooks of a sink, two in five calls of which fail."""

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
            raise ConnectionError("made up: failed before the call")
        call(**arguments)
        if chance > 0.8:
            raise ConnectionError("made up: failed after the call")
