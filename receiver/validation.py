"""Validates tables of config.toml against pydantic models, and lists all problems, each in a line of its own.

The receiver's own tables are read with it, and the options of every sink type; it knows neither.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

MAX_SECONDS = 36500 * 86400.0
"""Of a duration: its end must be a date."""

RENAMED = {"max_body": "max_body_bytes", "first_pause": "initial_backoff", "longest_pause": "max_backoff"}
"""Old keys of the receiver's own tables, and the new ones."""

NO_KEYS = {
    "threads": "it was removed, since pushes no longer wait in threads; delete it",
    "port": "the port is set by the environment variable PORT",
    "workers": "the number of intake processes is set by the environment variable WEB_CONCURRENCY",
    "secret": "the signature secret is set by the environment variable DT_SIGNATURE_SECRET",
    "url": "the URL of a database is set by the environment variable DATABASE_URL",
}
"""What is not in [receiver] and [journal], although it once was or one would look for it there, and what to do."""

TEXT = 'give text in quotes, such as "text"'
LIST = 'give a list, such as ["a", "b"]'
TABLE = 'give a table, such as {{ name = "value" }}'
NO_NUL = "a path cannot contain the character NUL"
WHOLE_NUMBER = "give a whole number, such as 5"
NUMBER = "give a number, such as 1.5"
TRUE_OR_FALSE = "give true or false"
BOOLEANS = {"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false", "off": "false"}
"""What people write in quotes, and what they mean."""
WORDS = {
    "string_type": TEXT,
    "path_type": 'give a path in quotes, such as "data/events.csv"',
    "int_type": WHOLE_NUMBER,
    "int_parsing": WHOLE_NUMBER,
    "int_parsing_size": WHOLE_NUMBER,
    "int_from_float": WHOLE_NUMBER,
    "float_type": NUMBER,
    "float_parsing": NUMBER,
    "finite_number": NUMBER,
    "bool_type": TRUE_OR_FALSE,
    "bool_parsing": TRUE_OR_FALSE,
    "list_type": LIST,
    "tuple_type": LIST,
    "set_type": LIST,
    "frozen_set_type": LIST,
    "dict_type": TABLE,
    "mapping_type": TABLE,
    "model_type": TABLE,
    "greater_than": "give more than {gt:g}",
    "greater_than_equal": "give at least {ge:g}",
    "less_than": "give less than {lt:g}",
    "less_than_equal": "give at most {le:g}",
    "string_too_short": "give at least {min_length} characters",
    "string_too_long": "give at most {max_length} characters",
    "missing": "too few values",
}
"""What to do, by pydantic's name of an error; with the limits of that error."""

AnyModel = TypeVar("AnyModel", bound=BaseModel)


class FromEnvironment(str):
    """A value from the environment, where numbers, true and false are text, too."""


def boolean(value: object) -> object:
    """true and false. Text counts in the environment alone: in TOML it is a mistake that looks right."""
    if isinstance(value, bool | FromEnvironment):
        return value
    meant = BOOLEANS.get(value.strip().lower()) if isinstance(value, str) else None
    raise ValueError(f"give {meant} without quotes" if meant else TRUE_OR_FALSE)


def number(value: object) -> object:
    """Anything but true and false, which are numbers in Python, and text that is not from the environment."""
    if isinstance(value, bool):
        raise ValueError("give a number")
    if isinstance(value, str) and not isinstance(value, FromEnvironment) and is_number(value):
        raise ValueError("give a number without quotes")
    return value


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def seconds(value: object) -> object:
    """A duration: a number of seconds, also as text from the environment, or text that `duration` reads."""
    if not isinstance(value, str):
        return number(value)
    if isinstance(value, FromEnvironment) and re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
        return float(value)
    return duration(value)


def duration(text: str) -> float:
    """The seconds in a number with a unit: "30s", "5m", "2h", "3d". Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*", text)
    if not match:
        raise ValueError('give seconds, or a number with a unit such as "30s", "5m", "2h" or "3d"')
    return float(match[1]) * _UNITS[match[2]]


def at_most_max_seconds(seconds: float) -> float:
    if seconds > MAX_SECONDS:
        raise ValueError('give at most "36500d"')
    return seconds


def list_of_text(example: str) -> BeforeValidator:
    """A check that a value is a list; its message shows one in TOML."""

    def is_list(value: object) -> object:
        if not isinstance(value, list | tuple):
            raise ValueError(f'give a list of text, such as ["{example}"]')
        return value

    return BeforeValidator(is_list)


Flag = Annotated[bool, BeforeValidator(boolean)]
Whole = Annotated[int, BeforeValidator(number)]
Number = Annotated[float, BeforeValidator(number)]
Seconds = Annotated[float, BeforeValidator(seconds), Field(gt=0), AfterValidator(at_most_max_seconds)]


def exact(annotation: Any) -> Any:
    """This type with `Flag`, `Whole` and `Number` in place of bool, int and float, also inside of it."""
    for plain, checked in ((bool, Flag), (int, Whole), (float, Number)):
        if annotation is plain:
            return checked
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return Annotated[exact(arguments[0]), *arguments[1:]]
    if origin in (Union, UnionType):
        return Union[tuple(map(exact, arguments))]  # noqa: UP007  # the number of types is known at run time only
    if isinstance(origin, type) and issubclass(origin, Collection):
        return origin[tuple(map(exact, arguments))]  # type: ignore[index]  # a generic type
    return annotation


class Table(BaseModel):
    """A table of config.toml: exactly these keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Problem:
    """What is wrong with a key of a table, as a line for the user."""

    key: str
    line: str


def parse_leniently(
    model: type[AnyModel],
    where: str,
    values: Mapping[str, Any],
    from_environment: frozenset[str],
    missing: Sequence[Problem],
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[AnyModel, list[Problem]]:
    """The valid part of `values` as `model`, with `defaults` for what is invalid or missing; and all problems."""
    parsed, problems = parse(model, where, values, from_environment)
    unset = {problem.key for problem in missing}
    invalid = {problem.key for problem in problems}
    if parsed is None:
        valid = {key: value for key, value in values.items() if key not in invalid}
        parsed = model.model_validate({**defaults, **valid})
    return parsed, [*(problem for problem in problems if problem.key not in unset), *missing]


def parse(
    model: type[AnyModel],
    where: str,
    values: Mapping[str, Any],
    from_environment: frozenset[str],
    other_keys: Iterable[str] = (),
) -> tuple[AnyModel | None, list[Problem]]:
    """`values` as `model`, or None and their problems.

    `other_keys` are valid in the same table, and validated elsewhere. A line shows the invalid value only if it was
    written in the file, under a known key.
    """
    unusable = _unusable_paths(model, where, values)
    try:
        parsed = model.model_validate(dict(values))
        return (None, unusable) if unusable else (parsed, [])
    except ValidationError as error:
        found: dict[tuple[str, str, str], list[str]] = {}
        for each in error.errors(include_url=False):
            subject, message, hint = _message(model, where, each, from_environment, other_keys)
            found.setdefault((str(each["loc"][0]), subject, hint), []).append(message)
        return None, unusable + [
            Problem(key, subject + ", or: ".join(dict.fromkeys(messages)) + hint)
            for (key, subject, hint), messages in found.items()
        ]


def _unusable_paths(model: type[BaseModel], where: str, values: Mapping[str, Any]) -> list[Problem]:
    """Problems with paths that no file can have; for the library, any text is a path."""
    return [
        Problem(key, f"{where}: {key}: {NO_NUL}")
        for key, info in fields(model).items()
        if Path in (info.annotation, *get_args(info.annotation)) and "\0" in str(values.get(key))
    ]


def _message(
    model: type[BaseModel], where: str, error: Any, from_environment: frozenset[str], other_keys: Iterable[str]
) -> tuple[str, str, str]:
    """What an error is about, its text, and a hint; where several types are valid, each has an error of its own."""
    path = [str(part) for part in error["loc"]]
    field = fields(model).get(path[0])
    choice = field is not None and _is_choice(field.annotation)
    path = path[:1] if choice else path
    key = ".".join(path)
    kind = error["type"]
    if kind == "extra_forbidden" and not choice:
        if (new := RENAMED.get(path[-1])) and new in _names(model, path[:-1]):
            return f"{where}: option '{key}' is now called '{new}'", "", ""
        if where.endswith(("[receiver]", "[journal]")) and key in NO_KEYS:
            return f"{where}: no option '{key}': {NO_KEYS[key]}", "", ""
        valid = [*_names(model, path[:-1]), *(other_keys if len(path) == 1 else ())]
        return f"{where}: no option '{key}'{nearest(path[-1], valid)}", "", ""
    if kind == "missing" and not choice:
        return f"{where}: option '{key}' is missing", "", ""
    value = error["input"]
    message = _in_our_words(error)
    message = _without_values(message, value) if path[0] in from_environment else message
    hint = _env_hint(value)
    secret = field is None or field.annotation not in (str, int, float, bool, Path)
    too_long = isinstance(value, int) and value.bit_length() > 64
    if not secret and not too_long and path[0] not in from_environment and isinstance(value, str | int | float):
        return f"{where}: {key} = {value!r}: ", message, hint
    return f"{where}: {key}: ", message, hint


def _in_our_words(error: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in WORDS:
        return WORDS[kind].format(**context)
    if kind in ("too_short", "too_long"):
        unit = "character" if context["field_type"] == "Value" else "value"  # pydantic calls a secret "Value"
        if kind == "too_short":
            return f"give at least {counted(context['min_length'], unit)}"
        return f"give at most {counted(context['max_length'], unit)}"
    if kind == "literal_error":
        return "give " + str(context["expected"]).replace("'", '"')
    return str(error["msg"]).removeprefix("Value error, ")


def _without_values(message: str, given: object) -> str:
    """A message with *** in place of the text, or each text in a list, that it quotes."""
    for each in given if isinstance(given, list) else [given]:
        message = message.replace(repr(each), "***") if isinstance(each, str) else message
    return message


def _is_choice(annotation: object) -> bool:
    """Whether several types are valid; pydantic then adds its own names for them to the path."""
    types = [each for each in get_args(annotation) if each is not type(None)]
    return get_origin(annotation) in (Union, UnionType) and len(types) > 1


def _env_hint(value: object) -> str:
    """A hint for a table in place of a value that looks like `{ env = "NAME" }`."""
    if not isinstance(value, dict) or len(value) != 1 or not nearest(str(*value).lower(), ["env"]):
        return ""
    return " ({ env = … } is not supported here)" if "env" in value else " (did you mean { env = … }?)"


def _names(model: type[BaseModel], path: list[str]) -> list[str]:
    """The valid keys at `path` inside `model`."""
    for part in path:
        inner = fields(model)[part].annotation if part in fields(model) else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(fields(model))


def fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a model by the name they have in config.toml."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint at the right name for a wrong one, to append to a message; empty if none is similar."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def counted(number: int, one: str, several: str = "") -> str:
    """A number with its noun: `1 dead letter`, `2 dead letters`. `several` is a plural that is not `one` with an s."""
    return f"{number} {one if number == 1 else several or one + 's'}"


def in_one_unit(seconds: float) -> str:
    """A duration for people, in its largest unit: `5 min`. A negative one is `0 s`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
