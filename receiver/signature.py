"""Genuine or not: the one place that decides it, and the one place that touches `dtintegrations` and PyJWT.

DT signs each push with HS256 in the header X-Dt-Signature; the token carries the SHA-256 of the body and expires
after an hour. https://developer.disruptive-technologies.com/docs/data-connectors/advanced-configurations#signing-events
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import uuid
import warnings
from collections.abc import Mapping

import jwt
from flask import Request

from receiver.errors import ReceiverError, Refusal, Refused

try:
    from dtintegrations import data_connector, provider
except Exception as error:  # `disruptive` reads DT_CREDENTIALS_FILE at import and raises whatever that file causes
    raise ReceiverError(
        f"the DT client library does not import ({type(error).__name__}); "
        "if DT_CREDENTIALS_FILE is set, unset it: the receiver does not need it"
    ) from None

HEADER = "X-Dt-Signature"
LEEWAY_SECONDS = 60
LIFETIME_SECONDS = 3600

warnings.filterwarnings("ignore", category=jwt.warnings.InsecureKeyLengthWarning)


def verify(request: Request, secrets: Mapping[str, str], *, legacy_sha1: bool = False) -> str:
    """Prove that a push comes from DT; answer the name of the secret that signed it.

    `request` is a Flask request whose raw body has been read (`get_data(cache=True)`), `secrets` maps names to
    signature secrets. `HttpPush.from_provider` is asked first. It also fails for genuine pushes (a shape it does
    not know, a clock a second behind), so on any failure signature, times (60 s leeway) and checksum are checked
    here. A token that carries only a SHA-1 (DT before February 2022) proves nothing unless `legacy_sha1`. Raises
    Refused with the reason of the secret that came furthest, and nothing else.
    """
    token = request.headers.get(HEADER)
    if token is None:
        raise Refused(Refusal.MISSING_HEADER)
    refusals = []
    for name, secret in secrets.items():
        refusal = (
            None if _from_provider_accepts(request, secret) else _refusal(token, request.data, secret, legacy_sha1)
        )
        if refusal is None and _has_expiry(token):
            return name
        refusals.append(refusal or Refusal.NO_EXPIRY)
    order = list(Refusal)
    raise Refused(max(refusals, key=order.index, default=Refusal.WRONG_SECRET))


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


def _from_provider_accepts(request: Request, secret: str) -> bool:
    try:
        data_connector.HttpPush.from_provider(request=request, provider=provider.FLASK, secret=secret)
    except Exception:  # ten kinds of exception are known to leave it; the caller settles each by its own check
        return False
    return True


def _has_expiry(token: str) -> bool:
    """Whether a verified token expires; PyJWT would take it apart and check it once more."""
    claims = token.split(".")[1]
    return "exp" in json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))


def _refusal(token: str, body: bytes, secret: str, legacy_sha1: bool) -> Refusal | None:
    """Why this secret does not prove the push genuine, or None when it does."""
    try:
        if jwt.get_unverified_header(token).get("alg") != "HS256":
            return Refusal.WRONG_ALGORITHM
        claims = jwt.decode(
            token,
            secret,
            algorithms=["HS256"],
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp"], "verify_aud": False, "verify_sub": False, "verify_jti": False},
        )
    except jwt.InvalidSignatureError:
        return Refusal.WRONG_SECRET
    except jwt.MissingRequiredClaimError:
        return Refusal.NO_EXPIRY
    except jwt.ExpiredSignatureError:
        return Refusal.EXPIRED
    except jwt.ImmatureSignatureError:
        return Refusal.NOT_YET_VALID
    except Exception:  # whatever else a crafted token causes, it proves nothing
        return Refusal.MALFORMED_TOKEN
    checksum, right = claims.get("checksum_sha256"), hashlib.sha256(body).hexdigest()
    if checksum is None and legacy_sha1:
        checksum, right = claims.get("checksum"), hashlib.sha1(body, usedforsecurity=False).hexdigest()
    if not isinstance(checksum, str):
        return Refusal.NO_CHECKSUM
    if not hmac.compare_digest(checksum.encode("utf-8", "replace"), right.encode()):
        return Refusal.CHECKSUM_MISMATCH
    return None
