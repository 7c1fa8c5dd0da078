"""Who may see the console, and which requests may change something. Pure functions of headers."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from enum import StrEnum

from werkzeug.datastructures import Authorization, Headers

WRONG_SECONDS = 1.0
"""How long the response to a wrong password takes. There is no lock-out: anyone could lock everyone out."""

MAX_SLOWED = 64
"""How many wrong passwords wait for their response at once; each takes a connection meanwhile."""


class Role(StrEnum):
    """A user of the console."""

    ADMIN = "admin"
    VIEWER = "viewer"
    """Sees everything, and can change nothing."""


class Passwords:
    """The passwords by user, which are compared in constant time."""

    def __init__(self, passwords: Mapping[str, str]) -> None:
        self._digests = {Role(user): _digest(password) for user, password in passwords.items()}

    def role(self, given: Authorization | None) -> Role | None:
        """The user whose name and password were given; None if they are wrong."""
        if given is None or given.type != "basic":
            return None
        digest = _digest(given.password or "")
        matches = {role: hmac.compare_digest(digest, expected) for role, expected in self._digests.items()}
        return next((role for role, matched in matches.items() if matched and role == given.username), None)


def _digest(password: str) -> bytes:
    return hashlib.sha256(password.encode("utf-8", "surrogatepass")).digest()


def is_same_origin(headers: Headers) -> bool:
    """Whether a page of the console itself has sent this request, rather than a page of another site.

    Browsers send Sec-Fetch-Site over HTTPS and on localhost only; without it Origin must name the host asked for.
    https://www.w3.org/TR/fetch-metadata/
    """
    site = headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    scheme, _, host = headers.get("Origin", "").partition("://")
    return scheme in ("http", "https") and bool(host) and host.lower() == headers.get("Host", "").lower()
