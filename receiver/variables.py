"""The variables of the environment, each with its meaning: secrets, organizations, DT's API, passwords, port, workers.

What is wrong with one is collected in `Variables.problems`, and the rest is still read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from receiver.environment import read_variable
from receiver.errors import ConfigError
from receiver.urls import is_secure_url

SECRET = "DT_SIGNATURE_SECRET"
SECRET_NAME = re.compile(rf"{SECRET}(__[A-Z0-9_]+(?<!_FILE))?")
"""Further secrets have two underscores: other programs set variables such as DT_SIGNATURE_SECRET_ARN."""

ORGANIZATION_ID = "DT_ORGANIZATION_ID"
ISSUER_URL = "DT_ISSUER_URL"
ISSUER = "https://identity.disruptive-technologies.com/data-connector"
"""Who signs pushes with DT's own keys."""

API_URL = "https://api.disruptive-technologies.com/v2"
TOKEN_URL = "https://identity.disruptive-technologies.com/oauth2/token"
CONSOLE_PASSWORDS = {"admin": "CONSOLE_PASSWORD", "viewer": "CONSOLE_VIEWER_PASSWORD"}
"""User of the console → the variable of its password."""


@dataclass(frozen=True)
class ApiAccess:
    """DT's REST API, and the service account that may use it; `missing` are the variables that are not set.

    https://developer.disruptive-technologies.com/docs/authentication/oauth2
    """

    key_id: str = field(default="", repr=False)
    secret: str = field(default="", repr=False)
    email: str = field(default="", repr=False)
    url: str = API_URL
    token_url: str = TOKEN_URL

    @property
    def missing(self) -> list[str]:
        given = {
            "DT_SERVICE_ACCOUNT_KEY_ID": self.key_id,
            "DT_SERVICE_ACCOUNT_SECRET": self.secret,
            "DT_SERVICE_ACCOUNT_EMAIL": self.email,
        }
        return [name for name, value in given.items() if not value]


def read_secret(environ: Mapping[str, str], name: str) -> str | None:
    """A signature secret by the name of its variable; a blank one is not set. Raises ConfigError."""
    value = read_variable(environ, name)
    if value is None or not value.strip():
        return None
    if not _is_text(value):
        raise ConfigError([f"{name} is not UTF-8; set it to a signature secret as DT shows it"])
    return value


def organization_id(name: str) -> str:
    """The id of an organization, also of its resource name `organizations/ID`."""
    return name.removeprefix("organizations/")


class Variables:
    """Reads one environment; what is wrong with a variable becomes a line in `problems`."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def value(self, name: str) -> str | None:
        """The value of a variable or of its file; None if it is not set, or cannot be read."""
        try:
            return read_variable(self._environ, name)
        except ConfigError as error:
            self._add_problem(error)
            return None

    def secrets(self, *, required: bool) -> dict[str, str]:
        """Signature secrets by the name of their variable."""
        names = {name for each in self._environ if SECRET_NAME.fullmatch(name := each.removesuffix("_FILE"))}
        found = {}
        for name in sorted(names | {SECRET}):
            try:
                if secret := read_secret(self._environ, name):
                    found[name] = secret
                elif name == SECRET and required:
                    remedy = f"set it to the signature secret of your Data Connector, or set {ORGANIZATION_ID}"
                    self._add_problem(f"{name} is not set; {remedy}")
            except ConfigError as error:
                self._add_problem(error)
        return found

    def unused(self) -> tuple[str, ...]:
        """Variables that begin like a signature secret, and are none."""
        return tuple(
            name
            for name, value in sorted(self._environ.items())
            if value and name.upper().startswith(SECRET) and not SECRET_NAME.fullmatch(name.removesuffix("_FILE"))
        )

    def organizations(self) -> frozenset[str] | None:
        """The organizations whose pushes are verified by DT's own keys; None if the variable cannot be used."""
        before = len(self.problems)
        value = (self.value(ORGANIZATION_ID) or "").strip()
        ids = [organization_id(part.strip()) for part in value.split(",")] if value else []
        if not all(re.fullmatch("[A-Za-z0-9_-]{1,64}", each) for each in ids):
            self._add_problem(f"{ORGANIZATION_ID} must be the id of your organization, or several with commas")
        return None if len(self.problems) > before else frozenset(ids)

    def api_access(self) -> ApiAccess:
        return ApiAccess(
            (self.value("DT_SERVICE_ACCOUNT_KEY_ID") or "").strip(),
            (self.value("DT_SERVICE_ACCOUNT_SECRET") or "").strip(),
            (self.value("DT_SERVICE_ACCOUNT_EMAIL") or "").strip(),
            self.secure_url("DT_API_URL", API_URL),
            self.secure_url("DT_TOKEN_URL", TOKEN_URL),
        )

    def console_passwords(self) -> dict[str, str]:
        """The passwords that are set, by user."""
        passwords = {user: self._password(name) for user, name in CONSOLE_PASSWORDS.items()}
        return {user: password for user, password in passwords.items() if password is not None}

    def secure_url(self, name: str, default: str) -> str:
        """Plain HTTP would let anyone on the way replace what DT says, so it is allowed on this machine alone."""
        url = self._environ.get(name) or default
        if is_secure_url(url):
            return url
        self._add_problem(f"{name} must begin with https://, or with http:// and be on this machine")
        return default

    def whole_number(self, name: str, default: int, maximum: int) -> int:
        """A number from 1 to `maximum`."""
        text = self._environ.get(name) or str(default)
        if re.fullmatch("[0-9]{1,9}", text) and 1 <= int(text) <= maximum:
            return int(text)
        self._add_problem(f"{name} must be a whole number from 1 to {maximum}")
        return default

    def _password(self, name: str) -> str | None:
        """A password of the console by the name of its variable; a blank one is not set."""
        password = self.value(name)
        if password is None or not password.strip():
            return None
        if not _is_text(password):
            self._add_problem(f"{name} is not UTF-8; set it to text in UTF-8")
            return None
        return password

    def _add_problem(self, text: object) -> None:
        self.problems.append(f"environment: {text}")


def _is_text(value: str) -> bool:
    """Whether the bytes of an environment variable were UTF-8; Python decodes others to surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in value)
