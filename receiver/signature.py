"""Verifies pushes: the only place that decides, and the only one that imports `dtintegrations` and PyJWT.

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
from werkzeug.wrappers import Request

from receiver.errors import ReceiverError, Rejected, Rejection

try:
    from dtintegrations import data_connector, provider
except Exception as error:  # `disruptive` reads DT_CREDENTIALS_FILE at import and raises whatever that file causes
    raise ReceiverError(
        f"the DT client library cannot be imported ({type(error).__name__}); "
        "if DT_CREDENTIALS_FILE is set, unset it: the receiver does not need it"
    ) from None

HEADER = "X-Dt-Signature"
LEEWAY_SECONDS = 60
LIFETIME_SECONDS = 3600

warnings.filterwarnings("ignore", category=jwt.warnings.InsecureKeyLengthWarning)


def verify(request: Request, secrets: Mapping[str, str], *, legacy_sha1: bool = False) -> str:
    """Verify that a push comes from DT; the name of the secret that signed it.

    `request` is a request whose raw body has been read (`get_data(cache=True)`), `secrets` maps names to signature
    secrets. `HttpPush.from_provider` comes first. It also fails for genuine pushes (a shape it does not know,
    a clock a second behind), so after any failure signature, times (60 s leeway) and checksum are checked here. A token
    with nothing but a SHA-1 (DT before February 2022) is rejected unless `legacy_sha1`. Raises Rejected with the reason
    of the secret that got furthest, and nothing else.
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
    order = list(Rejection)
    raise Rejected(max(rejections, key=order.index, default=Rejection.WRONG_SECRET))


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
    except Exception:  # it raises ten kinds of exception; the caller decides by its own check
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
    except jwt.MissingRequiredClaimError:
        return Rejection.NO_EXPIRY
    except jwt.ExpiredSignatureError:
        return Rejection.EXPIRED
    except jwt.ImmatureSignatureError:
        return Rejection.NOT_YET_VALID
    except Exception:  # whatever else a crafted token causes, it is not verified
        return Rejection.MALFORMED_TOKEN
    given, actual = claims.get("checksum_sha256"), hashlib.sha256(body).hexdigest()
    if given is None and legacy_sha1:
        given, actual = claims.get("checksum"), hashlib.sha1(body, usedforsecurity=False).hexdigest()
    if not isinstance(given, str):
        return Rejection.NO_CHECKSUM
    if not hmac.compare_digest(given.encode("utf-8", "replace"), actual.encode()):
        return Rejection.CHECKSUM_MISMATCH
    return None
