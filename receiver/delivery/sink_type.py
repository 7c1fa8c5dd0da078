"""Sink types: the classes that plugins register, and how users see their options.

Everything is derived from the class: the constructor's signature gives the options with their types and defaults, the
docstring their meaning, in a line `name: meaning` for each and in the lines that are indented below it.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
import tomllib
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, create_model

from receiver.settings import Secret
from receiver.validation import exact

WORDS: dict[object, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
    Secret: "secret",
}
"""What types are called in listings and messages."""

PLACEHOLDERS = {
    "whole number": "1",
    "number": "1.0",
    "true or false": "true",
    "list": "[]",
    "table": "{}",
}
"""Values that a user replaces in an example, by the first word for their type."""

NOT_IN_A_NAME = re.compile("[^A-Za-z0-9_-]")
"""Characters that a name of a sink does not have, nor a key of TOML without quotes."""


@dataclass(frozen=True)
class Option:
    """One option of a sink type, as text for users. `default` is in TOML; empty if there is none."""

    name: str
    type: str
    required: bool
    default: str
    meaning: str

    @property
    def secret(self) -> bool:
        """Whether it holds a secret, or several."""
        return WORDS[Secret] in self.type


@dataclass(frozen=True)
class SinkType:
    """A kind of destination that a plugin registers; `source` is the file or package it comes from."""

    name: str
    cls: type
    source: str

    def options(self) -> type[BaseModel]:
        """The constructor's signature as a model: the keys of `[sinks.NAME]` besides the common ones."""
        fields: dict[str, Any] = {}
        extra = False
        for parameter in self._parameters():
            annotation = Any if parameter.annotation is parameter.empty else exact(parameter.annotation)
            if parameter.kind is parameter.VAR_KEYWORD:
                extra = True
            elif parameter.kind is not parameter.VAR_POSITIONAL:
                default = ... if parameter.default is parameter.empty else None
                fields[f"option_{len(fields)}"] = (annotation, Field(default, alias=parameter.name))
        config = ConfigDict(extra="allow" if extra else "forbid", arbitrary_types_allowed=True, protected_namespaces=())
        return create_model("Options", __config__=config, **fields)

    def described(self) -> list[Option]:
        """The options as text; none if the constructor has no readable signature."""
        try:
            named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
            parameters = [parameter for parameter in self._parameters() if parameter.kind in named]
        except Exception:
            return []
        meanings = self._meanings([parameter.name for parameter in parameters])
        return [
            Option(
                parameter.name,
                in_words(parameter.annotation),
                parameter.default is parameter.empty,
                self._default(parameter),
                meanings.get(parameter.name, ""),
            )
            for parameter in parameters
        ]

    def summary(self) -> str:
        """The docstring of the class, without its lines on options."""
        names = [option.name for option in self.described()]
        lines = [text for name, text in self._paragraphs(names) if not name]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()

    def example(self) -> str:
        """A table to paste into config.toml and to fill in; optional keys are commented out, with their defaults."""
        name = NOT_IN_A_NAME.sub("_", self.name)[:64] or "_"
        lines = [f"[sinks.{name}]", f"type = {_toml(self.name)}"]
        for option in self.described():
            key = _toml(option.name) if NOT_IN_A_NAME.search(option.name) else option.name
            if option.required:
                lines.append(f"{key} = {_placeholder(option, name)}")
            else:
                lines.append(f"# {key} = {option.default or _placeholder(option, name)}")
        return "\n".join(lines)

    def _parameters(self) -> Sequence[inspect.Parameter]:
        return list(inspect.signature(self.cls, eval_str=True).parameters.values())

    def _default(self, parameter: inspect.Parameter) -> str:
        default = parameter.default
        if dataclasses.is_dataclass(self.cls):
            factories = {each.name: each.default_factory for each in dataclasses.fields(self.cls)}
            factory = factories.get(parameter.name, dataclasses.MISSING)
            if factory is not dataclasses.MISSING:  # any other factory could have side effects, or return a secret
                default = factory() if factory in (dict, list, set, tuple) else None
        return "" if default is parameter.empty or default is None else _toml(default)

    def _meanings(self, names: Sequence[str]) -> dict[str, str]:
        return {
            name: " ".join(text.split()).partition(":")[2].strip() for name, text in self._paragraphs(names) if name
        }

    def _paragraphs(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """The lines of the docstring, each with the option it explains; lines indented below one are joined to it."""
        found: list[tuple[str, str]] = []
        depth = 0
        own = "" if _written_by_dataclass(self.cls) else inspect.getdoc(self.cls) or ""
        for line in own.splitlines():
            indent = len(line) - len(line.lstrip())
            name = line.strip().partition(":")[0]
            if ":" in line and name in names:
                found.append((name, line))
                depth = indent
            elif found and found[-1][0] and line.strip() and indent > depth:
                found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
            else:
                found.append(("", line))
        return found


def in_words(annotation: object) -> str:
    """A type in words: `path`, `"json" or "text"`, `list of text`; `anything` without an annotation."""
    arguments = [each for each in get_args(annotation) if each is not type(None)]
    origin = get_origin(annotation)
    if origin is Literal:
        return " or ".join(_toml(each) for each in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(each) for each in arguments)
    if origin in (list, tuple, set, frozenset) and arguments:
        return f"list of {in_words(arguments[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping) and arguments:
        return f"table of {in_words(arguments[-1])}"
    if hasattr(annotation, "__metadata__"):
        return in_words(arguments[0])
    if annotation in (Any, inspect.Parameter.empty):
        return "anything"
    return WORDS.get(annotation) or str(getattr(annotation, "__name__", annotation))


def _toml(value: object) -> str:
    """A value in TOML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, Secret):
        return '"***"'
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _placeholder(option: Option, name: str) -> str:
    if option.type.startswith(WORDS[Secret]):
        variable = NOT_IN_A_NAME.sub("_", f"{name}_{option.name}".replace("-", "_")).upper()
        return f'{{ env = "{variable}" }}'
    if option.type == "path":
        return f'"data/{name}"'
    if "url" in option.name:
        return '"https://example.com/"'
    if _is_toml(choice := option.type.partition(" or ")[0]):
        return choice
    return next((value for word, value in PLACEHOLDERS.items() if option.type.startswith(word)), '"…"')


def _is_toml(value: str) -> bool:
    with suppress(tomllib.TOMLDecodeError):
        return bool(tomllib.loads(f"value = {value}"))
    return False


def _written_by_dataclass(cls: type) -> bool:
    """Whether the docstring is the signature that @dataclass generates for a class without one."""
    return dataclasses.is_dataclass(cls) and (cls.__doc__ or "").startswith(f"{cls.__name__}(")
