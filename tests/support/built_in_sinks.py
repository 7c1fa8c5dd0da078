"""Sinks of the built-in types, built as the dispatcher builds them from config.toml."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from receiver.delivery.plugins import Plugins, load_plugins
from receiver.delivery.sinks import Sink, build_sink
from receiver.errors import SinkSignal
from receiver.event import Event
from receiver.redaction import Redactor
from receiver.settings import CommonOptions, JournalTable, ReceiverTable, Settings, SinkSettings


@functools.cache
def _loaded() -> tuple[Plugins, Mapping[str, ModuleType]]:
    """Plugins, and the module of each sink type: other tests load them again, and then they have other modules."""
    plugins = load_plugins(_settings(Path.cwd()), Redactor())
    return plugins, {name: sys.modules[found.cls.__module__] for name, found in plugins.types.items()}


def built_in_plugins() -> Plugins:
    """The plugins of `plugins/`, loaded once in this process."""
    return _loaded()[0]


def class_of(type: str) -> Any:
    """The class of a built-in sink type, as `built_in_plugins` has loaded it."""
    return built_in_plugins().types[type].cls


def module_of(type: str) -> ModuleType:
    """The module that registers a built-in sink type, as `built_in_plugins` has loaded it."""
    return _loaded()[1][type]


def build(type: str, folder: Path, options: Mapping[str, Any], name: str = "tested") -> Sink:
    """The sink that `[sinks.NAME]` with these options describes, in a config.toml in `folder`. Raises PluginError."""
    settings = SinkSettings(name, CommonOptions(type=type), options)
    return build_sink(built_in_plugins(), _settings(folder), settings, Redactor())


def open_sink(sink: Sink) -> Sink:
    sink.hook.open(name=sink.name, logger=logging.getLogger(f"sink.{sink.name}"))
    return sink


def deliver_batch(sink: Sink, *events: Event, attempt: int = 1) -> None:
    sink.hook.deliver_batch(events=events, attempts=[attempt] * len(events))


class Signal(NamedTuple):
    """What a sink raised: Retry, Pause or GiveUp, its reason, and how long to wait."""

    type: type[SinkSignal]
    reason: str
    after: float | None = None


def signal_of(call: Callable[[], object]) -> Signal | None:
    """The signal that a call of a sink raises; None if it returns normally."""
    try:
        call()
    except SinkSignal as signal:
        return Signal(type(signal), str(signal), signal.after)
    return None


def _settings(folder: Path) -> Settings:
    return Settings(folder / "config.toml", ReceiverTable(), JournalTable(), (), 8000, 2, {}, frozenset())
