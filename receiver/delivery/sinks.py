"""Builds the sinks that config.toml names, from the sink types of the plugins."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from receiver.delivery.hooks import hooks_of
from receiver.delivery.plugins import Guard, Plugins
from receiver.delivery.registry import RegistrySink
from receiver.delivery.sink_type import SinkType
from receiver.delivery.source_lines import line_and_text, line_of_class, line_of_function
from receiver.errors import PluginError
from receiver.folders import why_not_writable
from receiver.hookspecs import SinkHooks
from receiver.redaction import Redactor, error_text
from receiver.settings import SENSORS, CommonOptions, Settings, SinkSettings
from receiver.validation import counted, fields, nearest, parse

RELATIVE_SQLITE = re.compile(r"\A\s*sqlite(\+\w+)?:///(?=[^/:\s?])(?!file:)")
"""The beginning of the URL of an SQLite file, before a relative path."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sink:
    """One configured destination, ready to be called through `hook`. It has a plugin manager of its own.

    `local_path` is the file or folder in which it stores events on this machine; None if it stores them elsewhere.
    """

    name: str
    common: CommonOptions
    hook: Any = field(repr=False)
    in_batches: bool
    local_path: Path | None = None


def build_sinks(
    plugins: Plugins, settings: Settings, redactor: Redactor, guard: Guard = nullcontext
) -> tuple[list[Sink], dict[str, str]]:
    """All enabled sinks: those that could be built, and the problems of the others by name."""
    sinks: list[Sink] = []
    broken: dict[str, str] = {}
    for sink in settings.enabled_sinks:
        try:
            with guard(f"sink {sink.name}"):
                sinks.append(build_sink(plugins, settings, sink, redactor))
        except PluginError as error:
            broken[sink.name] = redactor.redact("; ".join(str(error).splitlines()))
    for problem in plugins.problems:
        log.error("plugin skipped: %s", redactor.redact(problem))
    return sinks, broken


def find_problems(plugins: Plugins, settings: Settings, redactor: Redactor) -> tuple[list[str], dict[str, Path | None]]:
    """A line for each problem of plugins and sinks, also of disabled ones; and the local paths of sinks by name."""
    problems = {sink.name: list(sink.problems) for sink in settings.sinks}
    all_built: list[Sink] = []
    for sink in settings.sinks:
        if not sink.common.enabled:
            continue
        built, problems[sink.name] = _build(plugins, settings, sink, redactor)
        all_built += [built] if built else []
    for built in all_built:
        where = f"{settings.path.name} [sinks.{built.name}]"
        problems[built.name] += [f"{where}: {line}" for line in _found_by_sink(built, all_built, redactor)]
    lines = [*(f"plugin {problem}" for problem in plugins.problems), *chain.from_iterable(problems.values())]
    return [redactor.redact(line) for line in lines], {built.name: built.local_path for built in all_built}


def _found_by_sink(sink: Sink, built: Sequence[Sink], redactor: Redactor) -> list[str]:
    """What keeps a sink from working that could be built, by its own hook and by the place of its files."""
    lines = []
    if sink.local_path is not None and (problem := why_not_writable(sink.local_path)):
        lines.append(problem)
    own = _instance(sink)
    others = [other for other in map(_instance, built) if other is not own and type(other) is type(own)]
    try:
        found = sink.hook.find_problems(others=others) or ()
        found = found if isinstance(found, str) else list(found)  # it may be an iterator
        if isinstance(found, str) or not all(isinstance(line, str) for line in found):
            raise PluginError(f"{type(own).__name__}.find_problems must return a list of text")
        lines += [" ".join(line.split()) for line in found]
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may raise anything
        lines.append(line_and_text(error, redactor.redact, type(own)))
    return lines


def _instance(sink: Sink) -> object:
    """The object that a plugin's class has made for a sink."""
    hook = sink.hook.deliver_batch if sink.in_batches else sink.hook.deliver
    found: object = hook.get_hookimpls()[0].plugin
    return found


def build_sink(plugins: Plugins, settings: Settings, sink: SinkSettings, redactor: Redactor) -> Sink:
    """The sink of one `[sinks.NAME]`. Raises PluginError with a line for each problem.

    `redactor` hides the secrets among its options from then on.
    """
    if sink.name == SENSORS:
        return _sink(sink, RegistrySink(settings))
    built, problems = _build(plugins, settings, sink, redactor)
    if built is None or problems:
        raise PluginError("\n".join(problems))
    return built


def _build(
    plugins: Plugins, settings: Settings, sink: SinkSettings, redactor: Redactor
) -> tuple[Sink | None, list[str]]:
    """The sink if it can be built, even if its table has problems, and a line for each problem."""
    where = f"{settings.path.name} [sinks.{sink.name}]"
    sink_type = plugins.types.get(sink.common.type)
    if sink_type is None:
        unknown = [_unknown_type(where, sink.common.type, plugins)] if sink.common.type or not sink.problems else []
        return None, [*sink.problems, *unknown]
    lines: list[str] = []
    try:
        model = _options_model(sink_type)
        lines += sink.problems
        options, problems = parse(model, where, sink.options, sink.from_environment, CommonOptions.model_fields)
        secrets = list(secrets_in(options))
        redactor.hide(secret for _, secret in secrets)
        lines += [problem.line for problem in problems if problem.key not in sink.missing]
        if problems and not model.model_fields and _has_annotations_only(sink_type.cls):
            lines.append(f"{where}: {sink_type.cls.__name__} has no options; is @dataclass missing?")
        if options is not None and not sink.missing:  # the constructor may find more problems than are known already
            built = _sink(sink, _constructed(sink_type.cls, _arguments(options, settings), redactor))
            blank = [key for key, secret in secrets if not secret.strip()]
            return built, [*lines, *(f"{where}: {key} is blank; set it, or remove the option" for key in blank)]
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may raise anything, and takes only its own sink down
        for each in _in_group(error):
            lines.append(f"{where}: {line_and_text(each, redactor.redact, sink_type.cls)}")
    return None, lines


def _constructed(cls: type, arguments: Mapping[str, object], redactor: Redactor) -> object:
    """An object of a sink type. The text of a ValueError is for the user, who has no use for a line of the plugin.

    Raises an ExceptionGroup if the constructor does, by which it reports several problems at once.
    """
    try:
        return cls(**arguments)
    except (ValueError, ExceptionGroup) as error:
        raise BaseExceptionGroup("", [_for_user(each, redactor) for each in _in_group(error)]) from None


def _for_user(error: BaseException, redactor: Redactor) -> BaseException:
    if type(error) is not ValueError or not str(error):
        return error
    return PluginError(error_text(error, redactor.redact).removeprefix("ValueError: "))


def _in_group(error: BaseException) -> Iterator[BaseException]:
    """An exception, or each of those in a group."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _in_group(each)
    else:
        yield error


def _options_model(sink_type: SinkType) -> type[BaseModel]:
    """The options of a sink type. Raises PluginError for one that config.toml could never set."""
    model = sink_type.options()
    for name in fields(model):
        if name in CommonOptions.model_fields:
            option = f"{line_of_class(sink_type.cls)}option '{name}' of {sink_type.cls.__name__}"
            raise PluginError(f"{option} is a key of every sink; choose another name")
    return model


def secrets_by_option(plugins: Plugins, settings: Settings) -> dict[str, str]:
    """The secrets among the valid options of enabled sinks. Texts of several lines, such as a PEM key, are left out."""
    found: dict[str, str] = {}
    for sink in settings.enabled_sinks:
        with suppress(Exception):  # whatever the class of a plugin raises here, build_sink reports
            model = plugins.types[sink.common.type].options()
            options, _ = parse(model, sink.name, sink.options, sink.from_environment, CommonOptions.model_fields)
            found |= {f"[sinks.{sink.name}] {key}": secret for key, secret in secrets_in(options) if secret.strip()}
    return {option: secret for option, secret in found.items() if "\n" not in secret.strip()}


def secrets_in(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Every `Secret` in a sink's options, also in lists and tables, with the key that leads to it."""
    if isinstance(value, SecretStr):
        yield key, value.get_secret_value()
    elif isinstance(value, BaseModel):
        known = type(value).model_fields
        yield from secrets_in({known[name].alias or name if name in known else name: item for name, item in value}, key)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from secrets_in(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple | set | frozenset):
        yield from secrets_in(dict(enumerate(value)), key)
    elif dataclasses.is_dataclass(value):
        yield from secrets_in({each.name: getattr(value, each.name, None) for each in dataclasses.fields(value)}, key)


def _has_annotations_only(cls: type) -> bool:
    """Whether a class declares fields as a dataclass does, without being one."""
    return "__init__" not in vars(cls) and bool(inspect.get_annotations(cls))


def _arguments(options: BaseModel, settings: Settings) -> dict[str, object]:
    """The options that were set, by name."""
    known = type(options).model_fields
    given = {str(known[name].alias): getattr(options, name) for name in known if name in options.model_fields_set}
    return {name: _resolved(value, settings) for name, value in {**given, **(options.model_extra or {})}.items()}


def _resolved(value: object, settings: Settings) -> object:
    """Relative paths count from the folder of config.toml, those in URLs of SQLite files included."""
    if isinstance(value, Path):
        return settings.folder / value
    if isinstance(value, str) and not isinstance(value, Enum):
        return RELATIVE_SQLITE.sub(lambda url: f"{url[0]}{settings.folder}/", value)
    if isinstance(value, SecretStr):
        return SecretStr(str(_resolved(value.get_secret_value(), settings)))
    if isinstance(value, list | tuple | set | frozenset):
        cls: Any = type(value)
        items = [_resolved(item, settings) for item in value]
        return cls(*items) if hasattr(cls, "_fields") else cls(items)  # a named tuple has them
    if isinstance(value, dict):
        return {key: _resolved(item, settings) for key, item in value.items()}
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: _resolved(item, settings) for name, item in value})
    if dataclasses.is_dataclass(value):
        value = copy.copy(value)
        for name in [each.name for each in dataclasses.fields(value) if hasattr(value, each.name)]:
            object.__setattr__(value, name, _resolved(getattr(value, name), settings))  # it may be frozen
    return value


def _sink(sink: SinkSettings, instance: object) -> Sink:
    hook = hooks_of(instance, SinkHooks, sink.name)
    singly = hook.deliver.get_hookimpls()
    in_batches = hook.deliver_batch.get_hookimpls()
    if bool(singly) == bool(in_batches):
        raise PluginError(
            f"{type(instance).__name__} must implement exactly one of deliver and deliver_batch, marked with @hookimpl"
        )
    return Sink(sink.name, sink.common, hook, bool(in_batches), _local_path(hook))


def _local_path(hook: Any) -> Path | None:
    path = hook.local_path()
    if path is None or isinstance(path, Path):
        return path
    function = hook.local_path.get_hookimpls()[0].function
    raise PluginError(f"{line_of_function(function)}local_path must return a Path or None, not {type(path).__name__}")


def _unknown_type(where: str, name: str, plugins: Plugins) -> str:
    known = ", ".join(sorted(plugins.types)) or "none"
    broken = f"; {counted(len(plugins.problems), 'plugin')} could not be loaded" if plugins.problems else ""
    return f"{where}: no sink type '{name}'{nearest(name, plugins.types)}; there are: {known}{broken}"
