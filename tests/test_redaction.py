"""No secret is left in redacted text, however people, programs and libraries write it down."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest

from receiver.errors import GiveUp, Pause, Retry
from receiver.redaction import MAX_CHARACTERS, MAX_ERROR_CHARACTERS, Redactor, error_text

SECRET = "forbidden'quote \"double\\back\tétage\nline"
"""A secret with everything in it that people and programs write in another way."""
PARTS_OF_SECRET = ("forbidden", "quote", "double", "back", "tage", "line")
SPELLINGS: dict[str, Callable[[str], object]] = {
    "as it is": str,
    "inside other text": lambda secret: f"secret={secret};",
    "by repr": repr,
    "by repr in another text": lambda secret: repr(f"it's {secret}"),
    "by repr of a list": lambda secret: [secret],
    "by repr of repr": lambda secret: repr(repr(secret)),
    "by repr of bytes": lambda secret: secret.encode(),
    "by ascii": ascii,
    "as JSON": json.dumps,
    "as JSON in UTF-8": lambda secret: json.dumps(secret, ensure_ascii=False),
    "as JSON in JSON": lambda secret: json.dumps(json.dumps(secret)),
    "in a URL": lambda secret: quote(secret, safe=""),
    "in a form": quote_plus,
    "with single blanks": lambda secret: " ".join(secret.split()),
    "with CR LF": lambda secret: secret.replace("\n", "\r\n"),
    "by KeyError": KeyError,
    "by UnicodeError": lambda secret: UnicodeError(secret.encode()),
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
def test_a_secret_is_hidden_in_every_spelling(spell: Callable[[str], object]) -> None:
    text = Redactor([SECRET]).redact(f"the response was: {spell(SECRET)}")
    assert [part for part in PARTS_OF_SECRET if part in text] == []
    assert "***" in text


def test_every_secret_is_hidden_and_other_text_is_not() -> None:
    redact = Redactor(["a-secret", "https://hook", "line one\nline two"]).redact
    assert redact("a-secret https://hook/x 'line one\nline two' other") == "*** ***/x '***' other"


@pytest.mark.parametrize("before", [MAX_CHARACTERS - 5, 10 * MAX_CHARACTERS])
def test_of_a_very_long_text_only_the_beginning_is_redacted_and_shown(before: int) -> None:
    shown = Redactor([SECRET]).redact(f"{SECRET} {'x' * before}{SECRET}{'x' * MAX_CHARACTERS}")
    assert shown.startswith("*** xxx")
    assert shown.endswith("xxx…")
    assert len(shown) < MAX_CHARACTERS
    assert [part for part in PARTS_OF_SECRET if part in shown] == []


def test_text_that_only_resembles_a_secret_is_not_hidden() -> None:
    text = "forbid the quotes, double back, a line"
    assert Redactor([SECRET]).redact(text) == text


@pytest.mark.parametrize("end", ["\n", "\r\n", " ", "\t"], ids=ascii)
def test_a_secret_is_hidden_without_the_blanks_at_its_end_too(end: str) -> None:
    redact = Redactor([f"forbidden{end}"]).redact
    for text in ("forbidden", f"forbidden{end}", "Bearer forbidden, again", "['forbidden']"):
        assert "forbidden" not in redact(text)


def test_nothing_is_left_of_secrets_that_begin_with_another() -> None:
    secrets = ["a-secret" + "-and-more" * number for number in range(1, 8)]
    assert Redactor(["a-secret", *secrets]).redact(" ".join(secrets)) == " ".join(["***"] * 7)


def test_values_too_short_to_be_secret_are_not_hidden() -> None:
    assert Redactor(["", "yes"]).redact("yes, a word") == "yes, a word"


@pytest.mark.parametrize(
    ("secret", "text", "expected"),
    [
        ("postgres://user:pass-word@db/x", "password pass-word for user", "password *** for user"),
        ("postgres://user:p%40ss-word@db/x", "p%40ss-word or p@ss-word", "*** or ***"),
        ("https://hooks.example/services/T0?key=quote", "url: /services/T0?key=quote (Caused", "url: *** (Caused"),
        ("https://hooks.example/a", "GET /a", "GET /a"),
        ("http://[broken", "http://[broken", "***"),
    ],
    ids=["password", "quoted password", "path and query", "short path", "invalid URL"],
)
def test_the_secret_parts_of_a_url_are_hidden_too(secret: str, text: str, expected: str) -> None:
    assert Redactor([secret]).redact(text) == expected


def test_a_redactor_hides_secrets_that_it_learns_of_later() -> None:
    redactor = Redactor()
    assert redactor.redact("first second") == "first second"
    redactor.hide(["first"])
    redactor.hide(["second"])
    assert redactor.redact("first second") == "*** ***"


def test_an_error_is_one_line_with_its_type_and_without_secrets() -> None:
    redact = Redactor(["a-secret"]).redact
    assert error_text(ValueError("bad\n  token\ta-secret"), redact) == "ValueError: bad token ***"
    assert error_text(KeyError("a-secret"), redact) == "KeyError: '***'"
    assert error_text(RuntimeError(), redact) == "RuntimeError: "


@pytest.mark.parametrize("error", [Retry("HTTP 503"), Pause("HTTP 503"), GiveUp("HTTP 503")], ids=repr)
def test_what_a_sink_asks_for_is_just_its_text(error: Exception) -> None:
    assert error_text(error, str) == "HTTP 503"


def test_the_text_of_an_error_has_a_limited_length_and_no_unprintable_unicode() -> None:
    assert error_text(ValueError("x" * 100_000), str) == "ValueError: " + "x" * MAX_ERROR_CHARACTERS
    assert error_text(ValueError("a\ud800b\0c"), str) == "ValueError: a?b?c"


def test_an_error_whose_text_cannot_be_built_is_still_reported() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise SystemExit("no text")

    class Text(str):
        __slots__ = ()

        def __str__(self) -> str:
            raise ValueError("no text either")

    class Subtle(Exception):
        def __str__(self) -> str:
            return Text("readable")

    assert error_text(Odd(), str) == "Odd: its text cannot be shown"
    assert error_text(Subtle(), str) == "Subtle: readable"
