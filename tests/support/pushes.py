"""Pushes as DT makes them, and tokens with everything that can be wrong with them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

from receiver.signature import HEADER, LIFETIME_SECONDS
from receiver.simulator import Simulator
from receiver.testing.samples import TEST_SECRET

FORBIDDEN = "Zm9yYmlkZGVu"
"""Text in bodies, tokens and headers of pushes that must appear nowhere else."""

HS256 = {"alg": "HS256", "typ": "JWT"}

Headers = dict[str, str]
MakeHeaders = Callable[[bytes], Headers]
"""Headers for a body, made when the push is made, since they depend on the time."""


def event_id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:20]


def event(name: str) -> bytes:
    """The body of a touch event whose id belongs to this name."""
    payload = json.loads(Simulator(0).body("touch"))
    payload["event"]["eventId"] = event_id(name)
    return json.dumps(payload).encode()


def changed_event(name: str, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The event of a name after a change of its decoded body."""
    payload = json.loads(event(name))
    change(payload)
    return json.dumps(payload).encode()


def event_of_size(name: str, size: int) -> bytes:
    """The event of a name, with a label that makes its body exactly this long."""
    body = changed_event(name, lambda payload: payload["labels"].update(filling=""))
    return body.replace(b'"filling": ""', b'"filling": "' + b"a" * (size - len(body)) + b'"')


def base64url(part: object) -> bytes:
    """A part of a token: JSON, or bytes as they are, encoded."""
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def token(header: object, claims: object, key: str = TEST_SECRET, digest: str = "sha256") -> str:
    """A signed token of any shape, made without the library that verifies it."""
    unsigned = base64url(header) + b"." + base64url(claims)
    return (unsigned + b"." + base64url(hmac.new(key.encode(), unsigned, digest).digest())).decode()


def claims(body: bytes, **changes: object) -> dict[str, Any]:
    """DT's claims for a body, with changes; None removes a claim."""
    now = int(time.time())
    genuine = {
        "checksum": hashlib.sha1(body).hexdigest(),
        "checksum_sha256": hashlib.sha256(body).hexdigest(),
        "iat": now,
        "exp": now + LIFETIME_SECONDS,
        "jti": "c82gg99hga35jc2afkeg",
    }
    return {name: value for name, value in {**genuine, **changes}.items() if value is not None}


def signed(body: bytes, **changes: object) -> Headers:
    """The header with a token for a body, whose claims may be changed."""
    return {HEADER: token(HS256, claims(body, **changes))}


def with_header(**header: object) -> MakeHeaders:
    """A token with another JOSE header."""
    return lambda body: {HEADER: token(header, claims(body))}


def with_claims(**changes: Any) -> MakeHeaders:
    """A token with other claims. Changes that are functions are called when the push is made."""
    return lambda body: signed(body, **{name: value() if callable(value) else value for name, value in changes.items()})


def with_payload(payload: object) -> MakeHeaders:
    """A token with something in place of its claims."""
    return lambda body: {HEADER: token(HS256, payload)}


def with_token(edit: Callable[[str], str]) -> MakeHeaders:
    """A genuine token after an edit."""
    return lambda body: {HEADER: edit(signed(body)[HEADER])}


def with_parts(edit: Callable[[str, str, str], str]) -> MakeHeaders:
    """A genuine token after an edit of its three parts."""
    return with_token(lambda genuine: edit(*genuine.split(".")))


def from_now(seconds: float) -> Callable[[], int]:
    """A time so many seconds after the push is made."""
    return lambda: int(time.time() + seconds)
