"""The hook implementations of one plugin or sink, checked against the hook specifications."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from types import ModuleType
from typing import Any

import pluggy

from receiver.delivery.source_lines import line_of_function
from receiver.errors import PluginError
from receiver.hookspecs import PROJECT
from receiver.validation import nearest


def hooks_of(plugin: object, specs: type, name: str) -> Any:
    """The hooks of this object alone, ready to be called. Raises PluginError for an invalid implementation.

    pluggy's own check of names would put the object's `repr`, and any secret in it, into its message.
    """
    known = {hook: _arguments(getattr(specs, hook)) for hook in dir(specs) if not hook.startswith("_")}
    for hook, arguments in known.items():
        _check(plugin, hook, arguments)
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(specs)
    try:
        manager.register(plugin, name)
    except pluggy.PluginValidationError as error:
        raise PluginError(" ".join(str(error).split())) from None
    for hook, caller in vars(manager.hook).items():
        if hook not in known:
            function = caller.get_hookimpls()[0].function
            raise PluginError(f"{line_of_function(function)}there is no hook '{hook}'{nearest(hook, known)}")
    return manager.hook


def _check(plugin: object, hook: str, arguments: tuple[str, ...]) -> None:
    own = vars(plugin) if isinstance(plugin, ModuleType) else vars(type(plugin))
    function: Any = getattr(plugin, hook, None)
    line = line_of_function(function)
    if not hasattr(function, f"{PROJECT}_impl"):
        if hook in own and inspect.isroutine(function) and line:
            raise PluginError(f"{line}mark {hook} with @hookimpl, or give it another name")
        return
    if iscoroutinefunction(function) or isgeneratorfunction(function) or isasyncgenfunction(function):
        raise PluginError(f"{line}{hook} must be a plain function: no async, no yield")
    if _lacks_self(plugin, hook, arguments):
        raise PluginError(f"{line}{hook} lacks self as its first argument")
    for argument in _arguments(function):
        if argument not in arguments:
            valid = f"it can have: {', '.join(arguments)}" if arguments else "it has none"
            raise PluginError(f"{line}{hook} has no argument '{argument}'{nearest(argument, arguments)}; {valid}")


def _arguments(function: Callable[..., object]) -> tuple[str, ...]:
    """The arguments that pluggy passes to a hook or to an implementation: those without a default."""
    parameters = inspect.signature(function).parameters.values()
    positional = [parameter for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    return tuple(each.name for each in positional if each.default is each.empty and each.name != "self")


def _lacks_self(plugin: object, hook: str, arguments: tuple[str, ...]) -> bool:
    """Whether the first argument of a method is one of the hook: it would get the object instead."""
    method = None if isinstance(plugin, ModuleType) else inspect.getattr_static(type(plugin), hook, None)
    if not inspect.isfunction(method):
        return False
    first = next(iter(inspect.signature(method).parameters.values()), None)
    return first is None or (first.name in arguments and first.kind is not first.VAR_POSITIONAL)
