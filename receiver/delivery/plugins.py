"""Finds and loads plugins.

They come from `plugins/`, from `[receiver] plugins`, and from installed packages with an entry point in the group
`receiver.plugins`. Intake never loads them. A broken plugin is reported in one line and skipped; it takes no other
plugin, no sink of another type and no push down with it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from receiver.delivery.hooks import hooks_of
from receiver.delivery.sink_type import SinkType
from receiver.delivery.source_lines import line_and_text
from receiver.errors import PluginError
from receiver.hookspecs import PluginHooks
from receiver.redaction import Redactor
from receiver.settings import Settings

PACKAGE = Path(__file__).parent.parent
INSTALLED = (PACKAGE / "plugins").is_dir()
"""Whether this is an installed package, which contains the built-in plugins, and not a checkout."""

FOLDER = PACKAGE / "plugins" if INSTALLED else PACKAGE.parent / "plugins"
BUILT_IN = ("csv_file/__init__.py", "mqtt/__init__.py", "sql/__init__.py", "stdout.py", "webhook/__init__.py")
"""The plugins of the receiver itself in FOLDER; in a checkout, users add theirs to the same folder."""

ENTRY_POINTS = "receiver.plugins"

Guard = Callable[[str], AbstractContextManager[object]]
"""Returns a context in which code of a plugin runs, for the name of that code. The context may raise PluginError."""


@dataclass(frozen=True)
class Plugins:
    """The sink types of all plugins, a line for each plugin that is broken, and the hooks of each that is not."""

    types: Mapping[str, SinkType]
    problems: tuple[str, ...] = ()
    hooks: tuple[Any, ...] = field(default=(), repr=False)


def load_plugins(settings: Settings, redactor: Redactor, guard: Guard = nullcontext) -> Plugins:
    """Load all plugins, each inside `guard`. Never raises for what a plugin does."""
    types: dict[str, SinkType] = {}
    problems: list[str] = []
    hooks: list[Any] = []
    for source, load in _sources(settings).items():
        try:
            with guard(source):
                registered, hook = _registered(source, load())
            for name in registered:
                if name in types:
                    raise PluginError(f"sink type '{name}' is already registered by {types[name].source}")
            types.update(registered)
            hooks.append(hook)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may raise anything, and takes only itself down
            problems.append(f"{source}: {line_and_text(error, redactor.redact)}")
    return Plugins(types, tuple(problems), tuple(hooks))


def _sources(settings: Settings) -> dict[str, Callable[[], ModuleType]]:
    """Where plugins come from: a name for messages, and a function that loads the plugin."""
    sources: dict[str, Callable[[], ModuleType]] = {}
    files = sorted([*FOLDER.glob("[!_.]*.py"), *FOLDER.glob("[!_.]*/__init__.py")])
    for path in sorted(files, key=lambda path: not is_built_in(path)):  # so that no other can register their types
        sources[str(path)] = partial(_load_file, path)
    for name in settings.receiver.plugins:
        if name.endswith(".py"):
            path = settings.folder / name
            sources[str(path)] = partial(_load_file, path)
        else:
            sources[name] = partial(importlib.import_module, name)
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.value not in settings.receiver.plugins:
            sources[f"{entry.name} = {entry.value}"] = entry.load
    return sources


def is_built_in(path: Path) -> bool:
    """Whether a file is part of a plugin of the receiver itself."""
    return path.is_relative_to(FOLDER) and path.relative_to(FOLDER).parts[0] in {
        Path(name).parts[0] for name in BUILT_IN
    }


def _load_file(path: Path) -> ModuleType:
    """Load a file under a name of its own: it can shadow no other module, and dataclasses find it."""
    stem = path.parent.name if path.name == "__init__.py" else path.stem
    name = f"receiver_plugins_{abs(hash(path.parent)):x}_{stem}"
    locations = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=locations)
    if spec is None or spec.loader is None or not path.is_file():
        raise PluginError("no such file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _registered(source: str, plugin: ModuleType) -> tuple[dict[str, SinkType], Any]:
    """The sink types that one plugin registers, and its hooks."""
    registered: dict[str, SinkType] = {}

    def register(type: str, cls: type) -> None:
        if not isinstance(type, str) or not inspect.isclass(cls):
            raise PluginError("register(type, cls) needs the name of a sink type and its class")
        if type in registered:
            raise PluginError(f"sink type '{type}' is registered twice")
        registered[type] = SinkType(type, cls, source)

    hook = hooks_of(plugin, PluginHooks, source)
    if not any(caller.get_hookimpls() for caller in vars(hook).values()):
        raise PluginError("implements no hook: mark its function register_sinks(register) with @hookimpl")
    hook.register_sinks(register=register)
    return registered, hook
