"""What has to become of a push. Nothing here calls the receiver's own code.

PyJWT decides what a valid token is (RFC 7515, RFC 7519). Signatures by a secret, times and checksums are also checked
by hand.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import jwt
from gunicorn.http.body import Body, ChunkedReader, LengthReader
from gunicorn.http.unreader import IterUnreader
from jwt.types import Options

from fuzz.pushes import CHUNKED, ISSUER, Key, Push

SECRET_HEADER = "X-Dt-Signature"
KEY_HEADER = "DT-Asymmetric-Signature"
LEEWAY_SECONDS = 60
EVENT_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_LEVELS = 100

REASONS = {
    "missing header X-Dt-Signature",
    "missing header DT-Asymmetric-Signature",
    "token not signed with HS256",
    "token not signed with ES256",
    "wrong secret",
    "malformed token",
    "wrong signature",
    "token without expiry",
    "expired",
    "not yet valid",
    "wrong issuer",
    "wrong organization",
    "token without SHA-256 checksum",
    "checksum mismatch",
}
"""Why a push is rejected, by docs/operations.md."""


class Verdict(StrEnum):
    """What a push is."""

    VERIFIED = "verified"
    REJECTED = "rejected"
    KEY_UNKNOWN = "signed with an unknown key"
    INCOMPLETE = "incomplete"
    TOO_LARGE = "too large"
    BOTH = "incomplete, and announced as too large"
    BADLY_CHUNKED = "badly chunked"


@dataclass(frozen=True)
class Opinion:
    """What a push is, and of a verified one the body and, if it is a valid event, the id."""

    verdict: Verdict
    body: bytes = b""
    event_id: str | None = None

    def allows(self, status: int, line: str) -> bool:
        """Whether this is one of the documented responses to such a push."""
        if self.verdict is Verdict.VERIFIED:
            return status == 200 and line in ({"quarantined"} if self.event_id is None else {"accepted", "duplicate"})
        if self.verdict is Verdict.REJECTED:
            return status == 400 and line in REASONS
        return (status, line) in RESPONSES[self.verdict]


RESPONSES = {
    Verdict.KEY_UNKNOWN: {(503, "signing key unknown")},
    Verdict.INCOMPLETE: {(408, "request incomplete")},
    Verdict.TOO_LARGE: {(413, "body too large")},
    Verdict.BOTH: {(408, "request incomplete"), (413, "body too large")},
    Verdict.BADLY_CHUNKED: {(400, "malformed body"), (408, "request incomplete"), (413, "body too large")},
}


@dataclass(frozen=True)
class Oracle:
    """What the receiver was told: whom it trusts, and what it allows."""

    secrets: Mapping[str, str]
    organizations: tuple[str, ...]
    keys: Mapping[str, Key]
    legacy_sha1: bool
    max_body_bytes: int

    def opinion(self, push: Push, now: int) -> Opinion:
        try:
            body = body_stream(push).read()
        except Exception:
            return Opinion(Verdict.BADLY_CHUNKED)
        if len(body) > self.max_body_bytes:
            return Opinion(Verdict.TOO_LARGE)
        announced = int(push.length or 0)
        if len(body) < announced:
            return Opinion(Verdict.BOTH if announced > self.max_body_bytes else Verdict.INCOMPLETE)
        tokens = dict(joined(push))
        by_secret, by_key = tokens.get(SECRET_HEADER.upper()), tokens.get(KEY_HEADER.upper())
        head = _head(by_key) if by_key is not None and self.organizations else {}
        if by_key is not None and self._key_verifies(by_key, head, body, now):
            return verified(body)
        if by_secret is not None and self._secret_verifies(by_secret, body, now):
            return verified(body)
        return Opinion(Verdict.KEY_UNKNOWN if self._names_unknown_key(head) else Verdict.REJECTED)

    def _secret_verifies(self, token: str, body: bytes, now: int) -> bool:
        unsigned, _, mac = token.rpartition(".")
        secret = next((each for each in self.secrets.values() if _is_mac(mac, each, unsigned)), None)
        if secret is None:
            return False
        options: Options = {"require": ["exp"], "verify_aud": False, "verify_sub": False, "verify_jti": False}
        claims = _claims(token, secret, "HS256", options)
        return claims is not None and _belong(claims, body, now, self.legacy_sha1)

    def _key_verifies(self, token: str, head: Mapping[str, Any], body: bytes, now: int) -> bool:
        key_id = head.get("kid")
        key = self.keys.get(key_id) if isinstance(key_id, str) else None
        if key is None:
            return False
        claims = _claims(token, key.public, "ES256", {"require": ["exp", "iat", "iss", "sub"]})
        return (
            claims is not None
            and claims["iss"] == ISSUER
            and claims["sub"].removeprefix("organizations/") in self.organizations
            and _belong(claims, body, now, legacy_sha1=False)
        )

    def _names_unknown_key(self, head: Mapping[str, Any]) -> bool:
        key_id = head.get("kid")
        is_id = isinstance(key_id, str) and 0 < len(key_id) <= 256
        return head.get("alg") == "ES256" and is_id and key_id not in self.keys


def verified(body: bytes) -> Opinion:
    return Opinion(Verdict.VERIFIED, body, id_of(body))


def id_of(body: bytes) -> str | None:
    """The event id in a body; None if it is not a valid event."""
    try:
        text = body.decode("utf-8")
        if text.count("{") + text.count("[") > MAX_LEVELS and levels(text) > MAX_LEVELS:
            return None
        payload = json.loads(text, parse_int=lambda _: 0)
    except ValueError:
        return None
    event = payload.get("event") if isinstance(payload, dict) else None
    if not isinstance(event, dict):
        return None
    event_id = event.get("eventId")
    is_event = isinstance(event_id, str) and EVENT_ID.fullmatch(event_id) and isinstance(event.get("eventType"), str)
    return event_id if is_event else None


def levels(text: str) -> int:
    """How deep objects and lists are nested in each other in a JSON text."""
    deepest = level = 0
    in_string = escaped = False
    for each in text:
        if escaped or (in_string and each == "\\"):
            escaped = not escaped
        elif each == '"':
            in_string = not in_string
        elif not in_string and each in "{[":
            level += 1
            deepest = max(deepest, level)
        elif not in_string and each in "}]":
            level -= 1
    return deepest


def body_stream(push: Push) -> Any:
    """The body of a push as gunicorn gives it to an app."""
    unreader = IterUnreader(iter([push.data]))
    if CHUNKED in push.headers:
        return Body(ChunkedReader(None, unreader))
    return Body(LengthReader(unreader, int(push.length or 0)))


def joined(push: Push) -> list[tuple[str, str]]:
    """The headers of a push, those of one name in one, as gunicorn gives them to an app."""
    values: dict[str, str] = {}
    for name, value in push.headers:
        name, value = name.upper(), value.strip(" \t")
        values[name] = f"{values[name]},{value}" if name in values else value
    return list(values.items())


def _claims(token: str, key: Any, algorithm: str, options: Options) -> dict[str, Any] | None:
    try:
        return jwt.decode(token, key, algorithms=[algorithm], leeway=LEEWAY_SECONDS, options=options)
    except Exception:
        return None


def _head(token: str) -> dict[str, Any]:
    try:
        return jwt.get_unverified_header(token)
    except Exception:
        return {}


def _is_mac(mac: str, secret: str, unsigned: str) -> bool:
    try:
        given = base64.urlsafe_b64decode(mac + "=" * (-len(mac) % 4))
        return hmac.compare_digest(given, hmac.digest(secret.encode(), unsigned.encode(), "sha256"))
    except ValueError:
        return False


def _belong(claims: Mapping[str, Any], body: bytes, now: int, legacy_sha1: bool) -> bool:
    """Whether valid claims are those of this body, at this time."""
    if not now - LEEWAY_SECONDS < int(claims["exp"]):
        raise AssertionError("PyJWT accepts a token that has expired")
    if any(int(claims[name]) > now + LEEWAY_SECONDS for name in ("iat", "nbf") if name in claims):
        raise AssertionError("PyJWT accepts a token from the future")
    if claims.get("checksum_sha256") is None and legacy_sha1:
        return bool(claims.get("checksum") == hashlib.sha1(body, usedforsecurity=False).hexdigest())
    return bool(claims.get("checksum_sha256") == hashlib.sha256(body).hexdigest())
