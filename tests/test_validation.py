"""Validation of tables against pydantic models: durations, hints at the right name, and one line for each problem."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, SecretStr

from receiver.validation import (
    FromEnvironment,
    Problem,
    Seconds,
    Table,
    Whole,
    list_of_text,
    nearest,
    parse,
    parse_leniently,
    seconds,
)

WHERE = "config.toml [test]"


class Inner(Table):
    pause: Seconds = 5.0
    max_body_bytes: Whole = 1


class Model(Table):
    host: str = "localhost"
    count: Whole = Field(default=3, ge=1)
    path: Path = Path("data")
    token: SecretStr | None = None
    mode: int | bool = 1
    inner: Inner = Field(default_factory=Inner)


def lines(values: dict[str, object], *, from_environment: str = "", other_keys: tuple[str, ...] = ()) -> list[str]:
    """The problems of these values, with `from_environment` as the key that has a value from there."""
    parsed, problems = parse(Model, WHERE, values, frozenset([from_environment]), other_keys)
    assert parsed is None
    return [problem.line for problem in problems]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        *[("30s", 30.0), ("5m", 300.0), ("2h", 7200.0), ("3d", 259200.0), ("1.5h", 5400.0), (" 2 h ", 7200.0)],
        *[(90, 90), (0.5, 0.5), (FromEnvironment("30"), 30.0), (FromEnvironment(" 1.5 "), 1.5)],
    ],
)
def test_a_duration_is_a_number_of_seconds_or_has_a_unit(given: object, expected: float) -> None:
    assert seconds(given) == expected


@pytest.mark.parametrize(
    "given", ["", "30", "-5", "h", "5 weeks", "-5s", "1h30m", "5S", "1e3s", "5s\nx", ".5s", "inf s"]
)
def test_any_other_text_is_not_a_duration(given: str) -> None:
    with pytest.raises(ValueError, match=r'^give seconds, or a number with a unit such as "30s", "5m", "2h" or "3d"$'):
        seconds(given)


def test_true_is_not_a_duration() -> None:
    with pytest.raises(ValueError, match=r"^give a number$"):
        seconds(True)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("pth", " (did you mean 'path'?)"), ("path", " (did you mean 'path'?)"), ("zzz", ""), ("", "")],
)
def test_the_nearest_name_is_a_hint_only_if_it_is_similar(name: str, hint: str) -> None:
    assert nearest(name, ["path", "rows", "columns"]) == hint


def test_valid_values_have_no_problems() -> None:
    assert parse(Model, WHERE, {"host": "a", "inner": {"pause": "1m"}}, frozenset()) == (
        Model(host="a", inner=Inner(pause=60.0)),
        [],
    )


def test_each_problem_names_its_place_the_value_and_what_is_wrong() -> None:
    assert lines({"host": 5, "count": 0, "hots": 1, "inner": {"pause": -1, "paus": 1}}) == [
        f'{WHERE}: host = 5: give text in quotes, such as "text"',
        f"{WHERE}: count = 0: give at least 1",
        f"{WHERE}: inner.pause: give more than 0",
        f"{WHERE}: no option 'inner.paus' (did you mean 'pause'?)",
        f"{WHERE}: no option 'hots' (did you mean 'host'?)",
    ]


def test_keys_that_are_validated_elsewhere_are_hints_only_in_their_own_table() -> None:
    assert lines({"retyr": 1, "inner": {"retyr": 1}}, other_keys=("retry",)) == [
        f"{WHERE}: no option 'inner.retyr'",
        f"{WHERE}: no option 'retyr' (did you mean 'retry'?)",
    ]


def test_no_value_is_shown_from_the_environment_of_a_secret_or_of_an_unknown_key() -> None:
    assert lines({"count": "hidden"}, from_environment="count") == [f"{WHERE}: count: give a whole number, such as 5"]
    assert lines({"token": 5}) == [f'{WHERE}: token: give text in quotes, such as "text"']
    assert lines({"toekn": "hidden"}) == [f"{WHERE}: no option 'toekn' (did you mean 'token'?)"]


def test_a_path_with_a_nul_is_a_problem_along_with_others() -> None:
    problems = ["path: a path cannot contain the character NUL", 'host = 5: give text in quotes, such as "text"']
    assert lines({"path": "a\0b", "host": 5}) == [f"{WHERE}: {problem}" for problem in problems]


def test_a_value_with_several_valid_types_has_one_problem_with_the_messages_of_all() -> None:
    assert lines({"mode": "x"}) == [f"{WHERE}: mode: give a whole number, such as 5, or: give true or false"]


def test_a_key_that_was_renamed_names_the_new_one_where_that_is_valid() -> None:
    assert lines({"inner": {"max_body": 1}}) == [f"{WHERE}: option 'inner.max_body' is now called 'max_body_bytes'"]
    assert lines({"first_pause": 1}) == [f"{WHERE}: no option 'first_pause'"]


def test_a_list_of_text_shows_an_example() -> None:
    with pytest.raises(ValueError, match=r'^give a list of text, such as \["a\.py"\]$'):
        list_of_text("a.py").func("a.py")  # type: ignore[call-arg]


def test_lenient_parsing_replaces_what_is_invalid_by_defaults() -> None:
    unset = Problem("token", f"{WHERE}: token: the environment variable TOKEN is not set")
    parsed, problems = parse_leniently(
        Model, WHERE, {"host": 5, "count": 0, "path": Path("a")}, frozenset(), [unset], {"host": "default"}
    )
    assert parsed == Model(host="default", path=Path("a"))
    assert [problem.line for problem in problems] == [
        f'{WHERE}: host = 5: give text in quotes, such as "text"',
        f"{WHERE}: count = 0: give at least 1",
        unset.line,
    ]


def test_an_unset_variable_is_not_reported_as_a_missing_key_as_well() -> None:
    class Required(Table):
        url: str

    unset = Problem("url", f"{WHERE}: url: the environment variable URL is not set")
    parsed, problems = parse_leniently(Required, WHERE, {}, frozenset(), [unset], {"url": ""})
    assert (parsed, problems) == (Required(url=""), [unset])


class Everything(Table):
    """Every kind of value, with limits."""

    text: str = ""
    path: Path = Path()
    whole: int = Field(default=1, gt=0, lt=10)
    number: float = Field(default=1.0, ge=0, le=10, allow_inf_nan=False)
    flag: bool = False
    items: list[str] = Field(default_factory=list)
    pair: tuple[int, ...] = ()
    names: set[str] = Field(default_factory=set)
    frozen: frozenset[str] = frozenset()
    table: dict[str, str] = Field(default_factory=dict)
    mapping: Mapping[str, str] = Field(default_factory=dict)
    inner: Inner = Inner()
    mode: Literal["a", "b"] = "a"
    long: str = Field(default="abc", min_length=2, max_length=3)


GARBAGE: list[object] = [
    *(None, True, 0, -1, 11, 10**400, 1.5, float("nan"), float("inf"), "", "x", "xxxxx", b"x", [1], [], {"a": 1}, {}),
    datetime(2026, 1, 31, tzinfo=UTC),
    [[1]],
]


@pytest.mark.parametrize("key", Everything.model_fields)
def test_no_message_is_in_the_words_of_the_library(key: str) -> None:
    found = [problem.line for given in GARBAGE for problem in parse(Everything, WHERE, {key: given}, frozenset())[1]]
    assert found
    assert [line for line in found if "nput" in line or "hould" in line] == []
