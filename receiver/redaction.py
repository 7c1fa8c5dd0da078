"""Hides secrets in text: messages of libraries and plugins may repeat what they were given."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from urllib.parse import unquote, urlsplit

from receiver.errors import SinkSignal

MIN_SECRET_CHARACTERS = 4
"""Shorter values are ordinary words; hiding them would make text unreadable and protect nothing."""

MIN_URL_PART_CHARACTERS = 8
"""A shorter path of a URL is rarely the secret in it."""

MAX_ERROR_CHARACTERS = 500
"""How much of the text of an exception is shown."""


MAX_CHARACTERS = 100_000
"""Of a longer text only the beginning is shown: eight million characters would hold the interpreter for a second."""

MARGIN_CHARACTERS = 20_000
"""What is dropped at the cut, since there may be a part of a secret: as much as a long one takes in any spelling."""


class Redactor:
    """Knows the secrets of this process and hides them, however they are written. Callable from any thread."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._forms: frozenset[str] = frozenset()
        self._pattern: re.Pattern[str] | None = None
        self.hide(secrets)

    def hide(self, secrets: Iterable[str]) -> None:
        """Hide these from now on, too: which options of a sink are secret is known only once its class is loaded."""
        forms = self._forms | _forms(secrets)
        if forms != self._forms:
            self._forms, self._pattern = forms, _pattern(forms)

    def redact(self, text: str) -> str:
        """`text` with *** in place of every secret; of a very long text the beginning."""
        if len(text) > MAX_CHARACTERS:
            return f"{self._hidden(text[:MAX_CHARACTERS])[:-MARGIN_CHARACTERS]}…"
        return self._hidden(text)

    def _hidden(self, text: str) -> str:
        return self._pattern.sub("***", text) if self._pattern else text


def error_text(error: BaseException, redact: Callable[[str], str]) -> str:
    """Any exception in one bounded line without secrets: its type and text; of Retry, Pause and GiveUp just the text.

    Never raises, whatever the exception of a plugin does when it is converted to text.
    """
    try:
        text = str.__str__(str(error))
    except BaseException:
        text = "its text cannot be shown"
    text = redact(text.encode("utf-8", "replace").decode().replace("\0", "?"))
    text = " ".join(text.split())[:MAX_ERROR_CHARACTERS]
    return text if isinstance(error, SinkSignal) else f"{type(error).__name__}: {text}"


def _forms(secrets: Iterable[str]) -> set[str]:
    """Secrets, and the passwords and paths of those that are URLs; without what is too short to be a secret."""
    passwords = {secret: _password(secret) for secret in secrets}
    whole = {form for secret, password in passwords.items() for form in (secret, password, unquote(password))}
    whole = {form for form in whole if len(form) >= MIN_SECRET_CHARACTERS}
    forms = {form for secret in whole for form in (secret.strip(), *_parts_of_url(secret))}
    return {form for form in forms if len(form) >= MIN_SECRET_CHARACTERS}


def _pattern(forms: Iterable[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(_any_spelling, sorted(forms, key=len, reverse=True)))) if forms else None


def _password(url: str) -> str:
    try:
        return urlsplit(url).password or ""
    except ValueError:
        return ""


def _parts_of_url(secret: str) -> list[str]:
    """What HTTP libraries show of a URL that is a secret: path with query, and the password."""
    if not re.match("https?://", secret):
        return []
    try:
        parts = urlsplit(secret)
    except ValueError:
        return []
    shown = (parts._replace(scheme="", netloc="").geturl(), parts.password or "")
    return [part for part in shown if len(part) >= MIN_URL_PART_CHARACTERS]


def _any_spelling(secret: str) -> str:
    """A pattern for a secret as it is, and as repr, JSON, URLs and messages of one line spell it."""
    return "".join(_any_spelling_of(part) for part in re.findall(r"\s+|\\+|.", secret))


def _any_spelling_of(part: str) -> str:
    if part.isspace():
        return r"(?:[\s|]|\\{1,8}(?:[nrtvf]|x[0-9a-f]{2})|%[0-9a-fA-F]{2}|\+){1,64}"
    if part.startswith("\\"):
        return r"(?:\\|%5[Cc]){1,64}"
    if part.isascii() and part.isalnum():
        return part
    utf_16, utf_8 = part.encode("utf-16-be", "surrogatepass").hex(), part.encode("utf-8", "surrogatepass").hex()
    spellings = [rf"\\{{0,8}}{re.escape(part)}", rf"\\{{1,8}}x{ord(part):02x}", rf"\\{{1,8}}U{ord(part):08x}"]
    spellings.append("".join(rf"\\{{1,8}}u{unit}" for unit in re.findall("....", utf_16)))
    spellings += ["".join(rf"{escape}{byte}" for byte in re.findall("..", utf_8)) for escape in (r"\\{1,8}x", "%")]
    return f"(?i:{'|'.join(spellings)})"
