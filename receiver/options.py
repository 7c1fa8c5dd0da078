"""What stands in a table of config.toml, as a model: values in the units they are given in, and all that is wrong.

The receiver's own tables are read with it, and the options of every sink type. It knows neither.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

AnyModel = TypeVar("AnyModel", bound=BaseModel)


def number(value: object) -> object:
    """Anything but true and false, which Python takes for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("give a number")
    return value


def seconds(value: object) -> object:
    """A length of time: a number of seconds, also as the text that the environment holds, or what `duration` reads."""
    if not isinstance(value, str):
        return number(value)
    return float(value) if re.fullmatch(r"\s*\d+(\.\d+)?\s*", value) else duration(value)


def duration(text: str) -> float:
    """The seconds in a number with a unit: "30s", "5m", "2h", "3d". Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*", text)
    if not match:
        raise ValueError('give seconds, or a number with a unit such as "30s", "5m", "2h" or "3d"')
    return float(match[1]) * _UNITS[match[2]]


def texts(example: str) -> BeforeValidator:
    """A check that a value is a list, which names one in TOML where it is not."""

    def listed(value: object) -> object:
        if not isinstance(value, list | tuple):
            raise ValueError(f'give a list of text, such as ["{example}"]')
        return value

    return BeforeValidator(listed)


Whole = Annotated[int, BeforeValidator(number)]
Number = Annotated[float, BeforeValidator(number)]
Seconds = Annotated[float, BeforeValidator(seconds), Field(gt=0)]


class Table(BaseModel):
    """A table of config.toml: exactly these keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Fault:
    """Something wrong with a key of a table, as a line for the user."""

    key: str
    line: str


def salvage(
    model: type[AnyModel],
    where: str,
    values: Mapping[str, Any],
    from_environment: frozenset[str],
    missing: Sequence[Fault],
    in_place_of: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[AnyModel, list[Fault]]:
    """What is right in `values` as `model`, with `in_place_of` what is wrong or missing; and all that is wrong."""
    parsed, faults = parse(model, where, values, from_environment)
    unset = {fault.key for fault in missing}
    wrong = {fault.key for fault in faults}
    if parsed is None:
        right = {key: value for key, value in values.items() if key not in wrong}
        parsed = model.model_validate({**in_place_of, **right})
    return parsed, [*(fault for fault in faults if fault.key not in unset), *missing]


def parse(
    model: type[AnyModel],
    where: str,
    values: Mapping[str, Any],
    from_environment: frozenset[str],
    beside: Iterable[str] = (),
) -> tuple[AnyModel | None, list[Fault]]:
    """`values` as `model`, or None and what is wrong with them.

    `beside` are keys that may stand in the same table and belong to somebody else. A line shows the value it complains
    about only when a person wrote it into the file under a known key.
    """
    try:
        return model.model_validate(dict(values)), []
    except ValidationError as error:
        said: dict[tuple[str, str, str], list[str]] = {}
        for problem in error.errors(include_url=False):
            about, what, hint = _complaint(model, where, problem, from_environment, beside)
            said.setdefault((str(problem["loc"][0]), about, hint), []).append(what)
        return None, [
            Fault(key, about + ", or: ".join(dict.fromkeys(whats)) + hint) for (key, about, hint), whats in said.items()
        ]


def _complaint(
    model: type[BaseModel], where: str, problem: Any, from_environment: frozenset[str], beside: Iterable[str]
) -> tuple[str, str, str]:
    """What the line is about, what is said of it, and a hint; where several types are right, each says its own."""
    path = [str(part) for part in problem["loc"]]
    field = fields(model).get(path[0])
    choice = field is not None and _is_choice(field.annotation)
    path = path[:1] if choice else path
    key = ".".join(path)
    kind = problem["type"]
    if kind == "extra_forbidden" and not choice:
        right = [*_names(model, path[:-1]), *(beside if len(path) == 1 else ())]
        return f"{where}: no option '{key}'{nearest(path[-1], right)}", "", ""
    if kind == "missing" and not choice:
        return f"{where}: option '{key}' is missing", "", ""
    value = problem["input"]
    what = str(problem["msg"]).removeprefix("Value error, ")
    hint = _meant_env(value)
    secret = field is None or field.annotation not in (str, int, float, bool, Path)
    too_long = isinstance(value, int) and value.bit_length() > 64
    if not secret and not too_long and path[0] not in from_environment and isinstance(value, str | int | float):
        return f"{where}: {key} = {value!r}: ", what, hint
    return f"{where}: {key}: ", what, hint


def _is_choice(annotation: object) -> bool:
    """Whether there are several types to choose from; pydantic would put its own names for them into the path."""
    types = [each for each in get_args(annotation) if each is not type(None)]
    return get_origin(annotation) in (Union, UnionType) and len(types) > 1


def _meant_env(value: object) -> str:
    """A hint for a table that stands where none may, and is nearly one that names a variable of the environment."""
    if not isinstance(value, dict) or len(value) != 1 or not nearest(str(*value).lower(), ["env"]):
        return ""
    return " ({ env = … } is not read here)" if "env" in value else " (did you mean { env = … }?)"


def _names(model: type[BaseModel], path: list[str]) -> list[str]:
    """The keys that are right at `path` inside `model`."""
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
    """A hint at the right name for a wrong one, to append to a message; empty when none is near."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
