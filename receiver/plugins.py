"""Find plugins, and build from them the sinks that config.toml names.

Plugins come from `plugins/`, from what `[receiver] plugins` lists, and from installed packages with an entry point in
the group `receiver.plugins`. The processes that receive never load them. One that is broken is reported in a line and
left out; it takes no other plugin, no other sink and no push down with it.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import logging
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import entry_points
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy
import pydantic
from pydantic import BaseModel, SecretStr

from receiver.errors import PluginError, text_of
from receiver.hookspecs import PROJECT, PluginHooks, SinkHooks
from receiver.options import fields, nearest, parse
from receiver.settings import CommonOptions, Settings, SinkSettings
from receiver.sink_type import SinkType

log = logging.getLogger(__name__)

BUILT_IN = Path(__file__).parent.parent / "plugins"
SHIPPED = ("csv_file.py", "sql.py", "stdout.py", "webhook.py")
ENTRY_POINTS = "receiver.plugins"

Taking = Callable[[str], AbstractContextManager[object]]
"""Told what is loaded or made, while it is."""


@dataclass(frozen=True)
class Sink:
    """One configured destination, ready to be called through `hook`. It has a plugin manager of its own."""

    name: str
    common: CommonOptions
    hook: Any = field(repr=False)
    in_batches: bool


@dataclass(frozen=True)
class Plugins:
    """The sink types on offer, a line for each plugin that is broken, and the hooks of each that is not."""

    types: Mapping[str, SinkType]
    faults: tuple[str, ...] = ()
    hooks: tuple[Any, ...] = field(default=(), repr=False)


def load_plugins(settings: Settings, taking: Taking = nullcontext) -> Plugins:
    """Load every plugin there is, each inside of `taking`, which may refuse it. Never raises for what is in one."""
    types: dict[str, SinkType] = {}
    faults: list[str] = []
    hooks: list[Any] = []
    for source, load in _sources(settings).items():
        try:
            with taking(source):
                offered, hook = _offered(source, load())
            taken = [name for name in offered if name in types]
            if taken:
                raise PluginError(f"sink type '{taken[0]}' is already offered by {types[taken[0]].source}")
            types.update(offered)
            hooks.append(hook)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may raise anything, and takes only itself down
            faults.append(f"{source}: {line_and_text(error, settings.redact)}")
    return Plugins(types, tuple(faults), tuple(hooks))


def build_sink(plugins: Plugins, settings: Settings, sink: SinkSettings) -> Sink:
    """Make the sink that `[sinks.NAME]` describes. Raises PluginError, a line for each thing that is wrong."""
    where = f"{settings.path.name} [sinks.{sink.name}]"
    sink_type = plugins.types.get(sink.common.type)
    if sink_type is None:
        unknown = [_unknown_type(where, sink.common.type, plugins)] if sink.common.type or not sink.faults else []
        raise PluginError("\n".join([*sink.faults, *unknown]))
    try:
        common = CommonOptions.model_fields
        model = _model(sink_type)
        options, faults = parse(model, where, sink.options, sink.from_environment, common)
        settings.hide(secrets_in(options))
        lines = [*sink.faults, *(fault.line for fault in faults if fault.key not in sink.missing)]
        if faults and not model.model_fields and _annotated_in_vain(sink_type.cls):
            lines.append(f"{where}: {sink_type.cls.__name__} takes no options; is @dataclass missing?")
        if options is not None and not lines:
            return _sink(sink, sink_type.cls(**_given(options, settings)))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may raise anything, and takes only its own sink down
        raise PluginError(f"{where}: {line_and_text(error, settings.redact, sink_type.cls)}") from None
    raise PluginError("\n".join(lines))


def build_all(plugins: Plugins, settings: Settings, taking: Taking = nullcontext) -> tuple[list[Sink], dict[str, str]]:
    """Every enabled sink: those that could be built, and by name what is wrong with each that could not."""
    sinks: list[Sink] = []
    faulty: dict[str, str] = {}
    for sink in settings.enabled_sinks:
        try:
            with taking(f"sink {sink.name}"):
                sinks.append(build_sink(plugins, settings, sink))
        except PluginError as error:
            faulty[sink.name] = settings.redact("; ".join(str(error).splitlines()))
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


BETWEEN = (sys.modules[__name__], importlib, pluggy, pydantic)
OURS = (
    "<",
    *(str(Path(str(module.__file__)).parent) for module in BETWEEN),
    *(str(module.__file__) for module in (inspect, typing, dataclasses)),
)
"""Where the frames between us and a plugin come from."""


def line_and_text(error: BaseException, redact: Callable[[str], str], cls: type | None = None) -> str:
    """An exception from a plugin in one line, without secrets, with the line of the plugin's own file it came from.

    Where that cannot be told, it is the line where `cls`, which the exception is about, begins.
    """
    if isinstance(error, PluginError):
        return str(error)
    if isinstance(error, SyntaxError) and error.filename and not error.filename.startswith("<"):
        return f"{Path(error.filename).name}:{error.lineno}: {type(error).__name__}: {error.msg}"
    line = line_that_raised(error) or (_line_of_class(cls) if cls else "")
    return line + text_of(error, redact)


def line_that_raised(error: BaseException) -> str:
    """`alarm.py:12: `, the line of a plugin's own file that an exception came from; empty where that cannot be told."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(OURS)]
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}: " if own else ""


def _sources(settings: Settings) -> dict[str, Callable[[], ModuleType]]:
    """Where plugins come from: a name for people, and how to load it."""
    sources: dict[str, Callable[[], ModuleType]] = {}
    found = sorted([*BUILT_IN.glob("[!_.]*.py"), *BUILT_IN.glob("[!_.]*/__init__.py")])
    for path in sorted(found, key=lambda path: path.name not in SHIPPED):  # nobody else can take the name of ours
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


def _offered(source: str, plugin: ModuleType) -> tuple[dict[str, SinkType], Any]:
    """The sink types that one plugin registers, and its hooks."""
    offered: dict[str, SinkType] = {}

    def register(type: str, cls: type) -> None:
        if not isinstance(type, str) or not inspect.isclass(cls):
            raise PluginError("register(type, cls) takes the name of a sink type and its class")
        if type in offered:
            raise PluginError(f"sink type '{type}' is registered twice")
        offered[type] = SinkType(type, cls, source)

    hook = _hooks(PluginHooks, plugin, source)
    if not any(caller.get_hookimpls() for caller in vars(hook).values()):
        raise PluginError("implements no hook: mark its function register_sinks(register) with @hookimpl")
    hook.register_sinks(register=register)
    return offered, hook


def _model(sink_type: SinkType) -> type[BaseModel]:
    """The options of a sink type. Raises PluginError for one that could never be given."""
    model = sink_type.options()
    for name in fields(model):
        if name in CommonOptions.model_fields:
            option = f"{_line_of_class(sink_type.cls)}option '{name}' of {sink_type.cls.__name__}"
            raise PluginError(f"{option} is a key of every sink; choose another name")
    return model


def secrets_in(value: object) -> Iterator[str]:
    """Every `Secret` in a sink's options, also in lists and tables."""
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, BaseModel):
        yield from secrets_in(dict(value))
    elif isinstance(value, Mapping):
        yield from secrets_in(list(value.values()))
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from secrets_in(item)


def _annotated_in_vain(cls: type) -> bool:
    """Whether a class names fields, as a dataclass does, and has nothing that would set them."""
    return "__init__" not in vars(cls) and "__annotations__" in vars(cls)


def _given(options: BaseModel, settings: Settings) -> dict[str, object]:
    """The options that were given, by name."""
    known = type(options).model_fields
    given = {str(known[name].alias): getattr(options, name) for name in known if name in options.model_fields_set}
    return {name: _placed(value, settings) for name, value in {**given, **(options.model_extra or {})}.items()}


def _placed(value: object, settings: Settings) -> object:
    """Paths count from the folder of config.toml."""
    if isinstance(value, Path):
        return settings.folder / value
    if isinstance(value, list):
        return [_placed(item, settings) for item in value]
    if isinstance(value, dict):
        return {key: _placed(item, settings) for key, item in value.items()}
    return value


def _sink(sink: SinkSettings, instance: object) -> Sink:
    hook = _hooks(SinkHooks, instance, sink.name)
    singly = hook.deliver.get_hookimpls()
    in_batches = hook.deliver_batch.get_hookimpls()
    if bool(singly) == bool(in_batches):
        raise PluginError(
            f"{type(instance).__name__} must implement exactly one of deliver and deliver_batch, marked with @hookimpl"
        )
    function = (singly or in_batches)[0].function
    if iscoroutinefunction(function) or isgeneratorfunction(function) or isasyncgenfunction(function):
        raise PluginError(f"{_line_of(function)}{function.__name__} must be a plain function: no async, no yield")
    return Sink(sink.name, sink.common, hook, bool(in_batches))


def _hooks(specs: type, plugin: object, name: str) -> Any:
    """The hooks of just this object, ready to be called. Raises PluginError for what cannot be one.

    pluggy's own check of names would put the object's `repr`, and any secret in it, into its message.
    """
    known = {hook: _arguments(getattr(specs, hook)) for hook in dir(specs) if not hook.startswith("_")}
    own = vars(plugin) if isinstance(plugin, ModuleType) else vars(type(plugin))
    for hook, arguments in known.items():
        function: Any = getattr(plugin, hook, None)
        if not hasattr(function, f"{PROJECT}_impl"):
            if hook in own and inspect.isroutine(function) and _line_of(function):
                raise PluginError(f"{_line_of(function)}mark {hook} with @hookimpl, or call it something else")
            continue
        if _lacks_self(plugin, hook, arguments):
            raise PluginError(f"{_line_of(function)}{hook} lacks self as its first argument")
        for argument in _arguments(function):
            if argument not in arguments:
                takes = f"it may name: {', '.join(arguments)}" if arguments else "it has none"
                hint = nearest(argument, arguments)
                raise PluginError(f"{_line_of(function)}{hook} has no argument '{argument}'{hint}; {takes}")
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(specs)
    try:
        manager.register(plugin, name)
    except pluggy.PluginValidationError as error:
        raise PluginError(" ".join(str(error).split())) from None
    for hook, caller in vars(manager.hook).items():
        if hook not in known:
            function = caller.get_hookimpls()[0].function
            raise PluginError(f"{_line_of(function)}there is no hook '{hook}'{nearest(hook, known)}")
    return manager.hook


def _arguments(function: Callable[..., object]) -> tuple[str, ...]:
    """The arguments that pluggy passes to a hook, or to the implementation of one: those without a default."""
    parameters = inspect.signature(function).parameters.values()
    positional = [parameter for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    return tuple(each.name for each in positional if each.default is each.empty and each.name != "self")


def _lacks_self(plugin: object, hook: str, arguments: tuple[str, ...]) -> bool:
    """Whether a method begins with what pluggy would pass it: that would be the object, and the argument missing."""
    method = None if isinstance(plugin, ModuleType) else inspect.getattr_static(type(plugin), hook, None)
    if not inspect.isfunction(method):
        return False
    first = next(iter(inspect.signature(method).parameters.values()), None)
    return first is None or (first.name in arguments and first.kind is not first.VAR_POSITIONAL)


def _line_of(function: object) -> str:
    """`alarm.py:12: `, where a function of a plugin begins; empty where that cannot be told."""
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}: " if code else ""


def _line_of_class(cls: type) -> str:
    """`alarm.py:8: `, where a class begins, with its decorators; empty where that cannot be told."""
    try:
        return f"{Path(inspect.getfile(cls)).name}:{inspect.getsourcelines(cls)[1]}: "
    except Exception:
        return ""


def _unknown_type(where: str, name: str, plugins: Plugins) -> str:
    known = ", ".join(sorted(plugins.types)) or "none"
    broken = f"; {len(plugins.faults)} plugin(s) could not be loaded" if plugins.faults else ""
    return f"{where}: no sink type '{name}'{nearest(name, plugins.types)}; there are: {known}{broken}"
