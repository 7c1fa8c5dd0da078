"""Find plugins, and build from them the sinks that config.toml names.

Plugins come from `plugins/`, from what `[receiver] plugins` lists, and from installed packages with an entry point in
the group `receiver.plugins`. Only the process that delivers loads them. One that is broken is reported in a line and
left out; it takes no other plugin, no other sink and no push down with it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy
from pydantic import BaseModel, ConfigDict, Field, create_model

from receiver.errors import PluginError
from receiver.hookspecs import PROJECT, PluginHooks, SinkHooks
from receiver.settings import CommonOptions, Settings, SinkSettings, nearest, parse

log = logging.getLogger(__name__)

BUILT_IN = Path(__file__).parent.parent / "plugins"
ENTRY_POINTS = "receiver.plugins"


@dataclass(frozen=True)
class SinkType:
    """A kind of destination that a plugin offers; `source` is the file or package it comes from."""

    name: str
    cls: type
    source: str

    def options(self) -> type[BaseModel]:
        """The constructor's signature as a model: what may stand in `[sinks.NAME]` besides the common keys."""
        fields: dict[str, Any] = {}
        extra = False
        for parameter in inspect.signature(self.cls, eval_str=True).parameters.values():
            annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
            if parameter.kind is parameter.VAR_KEYWORD:
                extra = True
            elif parameter.kind is not parameter.VAR_POSITIONAL:
                fields[parameter.name] = (annotation, ... if parameter.default is parameter.empty else Field(None))
        config = ConfigDict(extra="allow" if extra else "forbid", arbitrary_types_allowed=True, protected_namespaces=())
        return create_model("Options", __config__=config, **fields)


@dataclass(frozen=True)
class Sink:
    """One configured destination, ready to be called through `hook`. It has a plugin manager of its own."""

    name: str
    common: CommonOptions
    hook: Any = field(repr=False)
    in_batches: bool


@dataclass(frozen=True)
class Plugins:
    """The sink types on offer, and a line for each plugin that is broken."""

    types: Mapping[str, SinkType]
    faults: tuple[str, ...]


def load_plugins(settings: Settings) -> Plugins:
    """Load every plugin there is. Never raises for what is inside of one."""
    types: dict[str, SinkType] = {}
    faults: list[str] = []
    for source, load in _sources(settings).items():
        try:
            offered = _offered(source, load())
            taken = [name for name in offered if name in types]
            if taken:
                raise PluginError(f"sink type '{taken[0]}' is already offered by {types[taken[0]].source}")
            types.update(offered)
        except (Exception, SystemExit) as error:
            faults.append(f"{source}: {where_and_what(error, source)}")
    return Plugins(types, tuple(faults))


def build_sink(plugins: Plugins, settings: Settings, sink: SinkSettings) -> Sink:
    """Make the sink that `[sinks.NAME]` describes. Raises PluginError, a line for each thing that is wrong."""
    where = f"{settings.path.name} [sinks.{sink.name}]"
    sink_type = plugins.types.get(sink.common.type)
    if sink.faults or sink_type is None:
        unknown = [] if sink_type or not sink.common.type else [_unknown_type(where, sink.common.type, plugins)]
        raise PluginError("\n".join([*sink.faults, *unknown]))
    options, faults = parse(sink_type.options(), where, sink.options, sink.from_environment)
    if options is None:
        raise PluginError("\n".join(fault.line for fault in faults))
    given = {name: getattr(options, name) for name in options.model_fields_set}
    try:
        return _hooked(sink, sink_type.cls(**{name: _placed(value, settings) for name, value in given.items()}))
    except PluginError as error:
        raise PluginError(f"{where}: {error}") from None
    except (Exception, SystemExit) as error:
        raise PluginError(f"{where}: {where_and_what(error, sink_type.source)}") from None


def build_all(settings: Settings) -> tuple[list[Sink], dict[str, str]]:
    """Every enabled sink: those that could be built, and by name what is wrong with each that could not."""
    plugins = load_plugins(settings)
    sinks: list[Sink] = []
    faulty: dict[str, str] = {}
    for sink in settings.enabled_sinks:
        try:
            sinks.append(build_sink(plugins, settings, sink))
        except PluginError as error:
            faulty[sink.name] = settings.redact(str(error))
    for fault in plugins.faults:
        log.error("plugin left out: %s", settings.redact(fault))
    return sinks, faulty


def problems(settings: Settings) -> list[str]:
    """A line for everything that is wrong with the plugins and sinks, those of disabled sinks included."""
    plugins = load_plugins(settings)
    found = [f"plugin {fault}" for fault in plugins.faults]
    for sink in settings.sinks:
        try:
            if sink.common.enabled:
                build_sink(plugins, settings, sink)
            else:
                found += sink.faults
        except PluginError as error:
            found += str(error).splitlines()
    return [settings.redact(problem) for problem in found]


def where_and_what(error: BaseException, source: str) -> str:
    """An exception from a plugin in one line, with the line of the plugin's own file it came from."""
    if isinstance(error, PluginError):
        return str(error)
    name = Path(source).name
    if isinstance(error, SyntaxError):
        return f"{Path(error.filename or name).name}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == name]
    place = f"{name}:{frames[-1].lineno}: " if frames else ""
    return f"{place}{type(error).__name__}: {' '.join(str(error).split())}"


def _sources(settings: Settings) -> dict[str, Callable[[], ModuleType]]:
    """Where plugins come from: a name for people, and how to load it."""
    sources: dict[str, Callable[[], ModuleType]] = {}
    for path in sorted([*BUILT_IN.glob("[!_.]*.py"), *BUILT_IN.glob("[!_.]*/__init__.py")]):
        sources[str(path)] = partial(_load_file, path)
    for name in settings.receiver.plugins:
        if name.endswith(".py"):
            path = settings.folder / name
            sources[str(path)] = partial(_load_file, path)
        else:
            sources[name] = partial(importlib.import_module, name)
    for entry in entry_points(group=ENTRY_POINTS):
        sources[f"{entry.name} = {entry.value}"] = entry.load
    return sources


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


def _offered(source: str, plugin: ModuleType) -> dict[str, SinkType]:
    """The sink types that one plugin registers."""
    offered: dict[str, SinkType] = {}

    def register(type: str, cls: type) -> None:
        if not isinstance(type, str) or not inspect.isclass(cls):
            raise PluginError("register(type, cls) takes the name of a sink type and its class")
        if type in offered:
            raise PluginError(f"sink type '{type}' is registered twice")
        offered[type] = SinkType(type, cls, source)

    manager = _manager(PluginHooks, plugin, source)
    if not manager.hook.register_sinks.get_hookimpls():
        raise PluginError("offers no sink type: it has no function register_sinks(register) marked with @hookimpl")
    manager.hook.register_sinks(register=register)
    return offered


def _placed(value: object, settings: Settings) -> object:
    """Paths count from the folder of config.toml."""
    return settings.folder / value if isinstance(value, Path) else value


def _hooked(sink: SinkSettings, instance: object) -> Sink:
    manager = _manager(SinkHooks, instance, sink.name)
    single = bool(manager.hook.deliver.get_hookimpls())
    in_batches = bool(manager.hook.deliver_batch.get_hookimpls())
    if single == in_batches:
        raise PluginError(
            f"{type(instance).__name__} must implement exactly one of deliver and deliver_batch, marked with @hookimpl"
        )
    return Sink(sink.name, sink.common, manager.hook, in_batches)


def _manager(specs: type, plugin: object, name: str) -> pluggy.PluginManager:
    """A plugin manager that holds just this object. Raises PluginError for a hook that does not exist.

    pluggy's own check of names would put the object's `repr`, and any secret in it, into its message.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(specs)
    try:
        manager.register(plugin, name)
    except pluggy.PluginValidationError as error:
        raise PluginError(" ".join(str(error).split())) from None
    known = [hook for hook in vars(specs) if not hook.startswith("_")]
    for hook in vars(manager.hook):
        if hook not in known:
            raise PluginError(f"there is no hook '{hook}'{nearest(hook, known)}")
    return manager


def _unknown_type(where: str, name: str, plugins: Plugins) -> str:
    known = ", ".join(sorted(plugins.types)) or "none"
    broken = f"; {len(plugins.faults)} plugin(s) could not be loaded" if plugins.faults else ""
    return f"{where}: no sink type '{name}'{nearest(name, plugins.types)}; there are: {known}{broken}"
