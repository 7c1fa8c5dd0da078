"""Verifies pushes: the only place that decides, and the only one that imports `dtintegrations` and PyJWT.

DT signs each push twice. X-Dt-Signature is a token with HS256 and the secret of the Data Connector, which expires after
an hour; DT calls it deprecated. DT-Asymmetric-Signature is a token with ES256 and one of DT's own keys, which expires
after five minutes. These keys sign for all customers of DT, so the token names the organization. Both carry the SHA-256
of the body. https://developer.disruptive-technologies.com/docs/data-connectors/advanced-configurations#signing-events
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jwt
from werkzeug.wrappers import Request

from receiver.errors import ReceiverError, Rejected, Rejection, SigningKeyUnknown
from receiver.variables import ORGANIZATION_ID, organization_id

try:
    from dtintegrations import data_connector, provider
except Exception as error:  # `disruptive` reads DT_CREDENTIALS_FILE at import and raises whatever that file causes
    raise ReceiverError(
        f"the DT client library cannot be imported ({type(error).__name__}); "
        "if DT_CREDENTIALS_FILE is set, unset it: the receiver does not need it"
    ) from None

HEADER = "X-Dt-Signature"
ASYMMETRIC_HEADER = "DT-Asymmetric-Signature"
LEEWAY_SECONDS = 60
LIFETIME_SECONDS = 3600
ASYMMETRIC_LIFETIME_SECONDS = 300

MAX_KEY_ID_CHARACTERS = 256
"""Far longer than any key id; a longer one is rejected."""

warnings.filterwarnings("ignore", category=jwt.warnings.InsecureKeyLengthWarning)


@dataclass(frozen=True)
class PublicKey:
    """One of DT's keys, on the curve P-256; `x` and `y` are its point as in a JWK (RFC 7518, section 6.2.1)."""

    id: str
    x: str
    y: str
    key: Any = field(compare=False, repr=False)
    """The key as PyJWT uses it."""


@dataclass(frozen=True)
class Asymmetric:
    """What verifies DT-Asymmetric-Signature; `find_key` returns the key with an id, or None if it is unknown."""

    issuer: str
    organizations: frozenset[str]
    find_key: Callable[[str], PublicKey | None]


def verify(
    request: Request,
    secrets: Mapping[str, str],
    asymmetric: Asymmetric | None = None,
    *,
    legacy_sha1: bool = False,
) -> str:
    """Verify that a push comes from DT. Returns the name of the variable whose value verified it.

    `request` is a request whose raw body has been read (`get_data(cache=True)`), `secrets` maps names to signature
    secrets. Either of the two headers verifies a push. DT's own keys are tried first, so that a secret counts as used
    only where it is needed. A token in X-Dt-Signature with a SHA-1 alone (DT before February 2022) is rejected unless
    `legacy_sha1`. Raises SigningKeyUnknown if the key may become known later, else Rejected with the reason of the
    token that passed the most checks, and no other exception.
    """
    rejections = []
    unknown = None
    if asymmetric is not None:
        try:
            return _verify_by_key(request, asymmetric)
        except SigningKeyUnknown as error:
            unknown = error
        except Rejected as error:
            rejections.append(error.rejection)
    if secrets or asymmetric is None:
        try:
            return _verify_by_secret(request, secrets, legacy_sha1)
        except Rejected as error:
            rejections.append(error.rejection)
    if unknown is not None:
        raise unknown
    raise Rejected(_furthest(rejections))


def _furthest(rejections: Sequence[Rejection]) -> Rejection:
    order = list(Rejection)
    return max(rejections, key=order.index, default=Rejection.WRONG_SECRET)


def _verify_by_secret(request: Request, secrets: Mapping[str, str], legacy_sha1: bool) -> str:
    """The name of the secret that signed a push. Raises Rejected.

    `HttpPush.from_provider` is tried first. It also fails for genuine pushes (an unknown shape, a clock one second
    slow), so after any failure signature, times (60 s leeway) and checksum are checked here.
    """
    token = request.headers.get(HEADER)
    if token is None:
        raise Rejected(Rejection.MISSING_HEADER)
    rejections = []
    for name, secret in secrets.items():
        rejection = (
            None if _from_provider_accepts(request, secret) else _rejection(token, request.data, secret, legacy_sha1)
        )
        if rejection is None and _has_expiry(token):
            return name
        rejections.append(rejection or Rejection.NO_EXPIRY)
    raise Rejected(_furthest(rejections))


def sign(body: bytes, secret: str, now: float) -> dict[str, str]:
    """The headers with which DT would push `body` at `now` (seconds since 1970)."""
    claims = {
        "checksum": hashlib.sha1(body, usedforsecurity=False).hexdigest(),
        "checksum_sha256": hashlib.sha256(body).hexdigest(),
        "iat": int(now),
        "exp": int(now) + LIFETIME_SECONDS,
        "jti": uuid.uuid4().hex[:20],
    }
    return {"Content-Type": "application/json", HEADER: jwt.encode(claims, secret, algorithm="HS256")}


def sign_asymmetric(
    body: bytes, private_key: Any, key_id: str, issuer: str, organization: str, now: float
) -> dict[str, str]:
    """The header with which DT would sign `body` at `now` (seconds since 1970) with a P-256 key of `cryptography`."""
    claims = {
        "checksum_sha256": hashlib.sha256(body).hexdigest(),
        "iat": int(now),
        "exp": int(now) + ASYMMETRIC_LIFETIME_SECONDS,
        "iss": issuer,
        "sub": organization,
    }
    return {ASYMMETRIC_HEADER: jwt.encode(claims, private_key, algorithm="ES256", headers={"kid": key_id})}


def read_keys(key_set: object) -> dict[str, PublicKey]:
    """The keys of a decoded JSON Web Key Set (RFC 7517) that can sign pushes, by id; everything else is ignored.

    Those are public keys on the curve P-256 with an id, and not marked for another algorithm or use.
    """
    found = key_set.get("keys") if isinstance(key_set, dict) else None
    keys = [key for each in found or () if (key := _public_key(each))] if isinstance(found, list) else []
    return {key.id: key for key in reversed(keys)}  # of two with one id, the first


def _public_key(jwk: object) -> PublicKey | None:
    if not isinstance(jwk, dict) or not is_key_id(jwk.get("kid")):
        return None
    if any(jwk.get(name, meant) != meant for name, meant in MEANT.items()):
        return None
    try:
        point = {name: jwk[name] for name in ("kty", "crv", "x", "y")}  # without a private part
        return PublicKey(jwk["kid"], jwk["x"], jwk["y"], jwt.PyJWK(point, "ES256").key)
    except Exception:  # not a point of the curve
        return None


MEANT = {"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig"}
"""The parameters of a key that can sign pushes; `alg` and `use` are optional."""


def is_key_id(key_id: object) -> bool:
    return isinstance(key_id, str) and 0 < len(key_id) <= MAX_KEY_ID_CHARACTERS


def _verify_by_key(request: Request, asymmetric: Asymmetric) -> str:
    """The name of the variable with the organizations. Raises SigningKeyUnknown or Rejected."""
    token = request.headers.get(ASYMMETRIC_HEADER)
    if token is None:
        raise Rejected(Rejection.MISSING_ASYMMETRIC_HEADER)
    try:
        header = jwt.get_unverified_header(token)
    except Exception:
        raise Rejected(Rejection.MALFORMED_TOKEN) from None
    if header.get("alg") != "ES256":
        raise Rejected(Rejection.WRONG_ASYMMETRIC_ALGORITHM)
    if not is_key_id(header.get("kid")):
        raise Rejected(Rejection.MALFORMED_TOKEN)
    key = asymmetric.find_key(header["kid"])
    if key is None:
        raise SigningKeyUnknown
    if rejection := _rejection_by_key(token, request.data, key, asymmetric):
        raise Rejected(rejection)
    return ORGANIZATION_ID


def _rejection_by_key(token: str, body: bytes, key: PublicKey, asymmetric: Asymmetric) -> Rejection | None:
    """Why this key does not verify the push, or None if it does."""
    try:
        claims = jwt.decode(
            token,
            key.key,
            algorithms=["ES256"],
            issuer=asymmetric.issuer,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "iat", "iss", "sub"]},
        )
    except Exception as error:
        return _rejection_of(error)
    if organization_id(claims["sub"]) not in asymmetric.organizations:
        return Rejection.WRONG_ORGANIZATION
    return _rejection_of_checksum(claims.get("checksum_sha256"), hashlib.sha256(body).hexdigest())


def _rejection_of(error: Exception) -> Rejection:
    """The reason for an exception of PyJWT; a crafted token can cause any other one as well."""
    if isinstance(error, jwt.MissingRequiredClaimError):
        return MISSING_CLAIMS.get(error.claim, Rejection.MALFORMED_TOKEN)
    return next((each for kind, each in REJECTIONS.items() if isinstance(error, kind)), Rejection.MALFORMED_TOKEN)


MISSING_CLAIMS = {
    "exp": Rejection.NO_EXPIRY,
    "iss": Rejection.WRONG_ISSUER,
    "sub": Rejection.WRONG_ORGANIZATION,
}
REJECTIONS: dict[type[Exception], Rejection] = {
    jwt.InvalidSignatureError: Rejection.WRONG_SIGNATURE,
    jwt.ExpiredSignatureError: Rejection.EXPIRED,
    jwt.ImmatureSignatureError: Rejection.NOT_YET_VALID,
    jwt.InvalidIssuerError: Rejection.WRONG_ISSUER,
    jwt.exceptions.InvalidSubjectError: Rejection.WRONG_ORGANIZATION,
}


def _rejection_of_checksum(given: object, actual: str) -> Rejection | None:
    if not isinstance(given, str):
        return Rejection.NO_CHECKSUM
    if not hmac.compare_digest(given.encode("utf-8", "replace"), actual.encode()):
        return Rejection.CHECKSUM_MISMATCH
    return None


def _from_provider_accepts(request: Request, secret: str) -> bool:
    try:
        data_connector.HttpPush.from_provider(request=request, provider=provider.FLASK, secret=secret)
    except Exception:  # it raises ten kinds of exception; the caller then makes its own checks
        return False
    return True


def _has_expiry(token: str) -> bool:
    """Whether a verified token expires; PyJWT would decode and verify it once more."""
    claims = token.split(".")[1]
    return "exp" in json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))


def _rejection(token: str, body: bytes, secret: str, legacy_sha1: bool) -> Rejection | None:
    """Why this secret does not verify the push, or None if it does."""
    try:
        if jwt.get_unverified_header(token).get("alg") != "HS256":
            return Rejection.WRONG_ALGORITHM
        claims = jwt.decode(
            token,
            secret,
            algorithms=["HS256"],
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp"], "verify_aud": False, "verify_sub": False, "verify_jti": False},
        )
    except jwt.InvalidSignatureError:
        return Rejection.WRONG_SECRET
    except Exception as error:
        return _rejection_of(error)
    given, actual = claims.get("checksum_sha256"), hashlib.sha256(body).hexdigest()
    if given is None and legacy_sha1:
        given, actual = claims.get("checksum"), hashlib.sha1(body, usedforsecurity=False).hexdigest()
    return _rejection_of_checksum(given, actual)
