"""Validation of tables against pydantic models: durations, hints at the right name, and one line for each problem."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field, SecretStr

from receiver.validation import Problem, Seconds, Table, Whole, list_of_text, nearest, parse, parse_leniently, seconds

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
        *[(90, 90), (0.5, 0.5), ("30", 30.0), (" 1.5 ", 1.5)],
    ],
)
def test_a_duration_is_a_number_of_seconds_or_has_a_unit(given: object, expected: float) -> None:
    assert seconds(given) == expected


@pytest.mark.parametrize("given", ["", "-5", "h", "5 weeks", "-5s", "1h30m", "5S", "1e3s", "5s\nx", ".5s", "inf s"])
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
        f"{WHERE}: host = 5: Input should be a valid string",
        f"{WHERE}: count = 0: Input should be greater than or equal to 1",
        f"{WHERE}: inner.pause: Input should be greater than 0",
        f"{WHERE}: no option 'inner.paus' (did you mean 'pause'?)",
        f"{WHERE}: no option 'hots' (did you mean 'host'?)",
    ]


def test_keys_that_are_validated_elsewhere_are_hints_only_in_their_own_table() -> None:
    assert lines({"retyr": 1, "inner": {"retyr": 1}}, other_keys=("retry",)) == [
        f"{WHERE}: no option 'inner.retyr'",
        f"{WHERE}: no option 'retyr' (did you mean 'retry'?)",
    ]


def test_no_value_is_shown_from_the_environment_of_a_secret_or_of_an_unknown_key() -> None:
    assert lines({"count": "hidden"}, from_environment="count") == [
        f"{WHERE}: count: Input should be a valid integer, unable to parse string as an integer"
    ]
    assert lines({"token": 5}) == [f"{WHERE}: token: Input should be a valid string"]
    assert lines({"toekn": "hidden"}) == [f"{WHERE}: no option 'toekn' (did you mean 'token'?)"]


def test_a_value_with_several_valid_types_has_one_problem_with_the_messages_of_all() -> None:
    assert lines({"mode": "x"}) == [
        f"{WHERE}: mode: Input should be a valid integer, unable to parse string as an integer, "
        "or: Input should be a valid boolean, unable to interpret input"
    ]


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
        f"{WHERE}: host = 5: Input should be a valid string",
        f"{WHERE}: count = 0: Input should be greater than or equal to 1",
        unset.line,
    ]


def test_an_unset_variable_is_not_reported_as_a_missing_key_as_well() -> None:
    class Required(Table):
        url: str

    unset = Problem("url", f"{WHERE}: url: the environment variable URL is not set")
    parsed, problems = parse_leniently(Required, WHERE, {}, frozenset(), [unset], {"url": ""})
    assert (parsed, problems) == (Required(url=""), [unset])
