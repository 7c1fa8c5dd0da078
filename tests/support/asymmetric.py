"""Tokens for DT-Asymmetric-Signature with everything that can be wrong with them.

They are our own: the one push with this header that is published (in a fork of DT's python-integrations) was signed for
a development issuer whose keys are not published with it, so nobody can verify it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

from receiver.signature import ASYMMETRIC_HEADER, ASYMMETRIC_LIFETIME_SECONDS
from receiver.testing.issuer import TEST_ORGANIZATION, Issuer
from receiver.testing.running import CSV_ONLY, RunningReceiver, wait_until
from support.pushes import base64url

Headers = dict[str, str]
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | bytes

RSA_KEY = rsa.generate_private_key(65537, 2048)
P384_KEY = ec.generate_private_key(ec.SECP384R1())


def claims(issuer: Issuer, body: bytes, **changes: object) -> dict[str, Any]:
    """DT's claims for a body, with changes; None removes a claim, and functions are called now."""
    now = int(time.time())
    genuine = {
        "checksum_sha256": hashlib.sha256(body).hexdigest(),
        "iat": now,
        "exp": now + ASYMMETRIC_LIFETIME_SECONDS,
        "iss": issuer.url,
        "sub": TEST_ORGANIZATION,
    }
    values = {name: value() if callable(value) else value for name, value in {**genuine, **changes}.items()}
    return {name: value for name, value in values.items() if value is not None}


def token(header: object, payload: object, sign: Callable[[bytes], bytes]) -> str:
    """A signed token of any shape, made without the library that verifies it."""
    unsigned = base64url(header) + b"." + base64url(payload)
    return (unsigned + b"." + base64url(sign(unsigned))).decode()


def es256(key: ec.EllipticCurvePrivateKey) -> Callable[[bytes], bytes]:
    """Sign as RFC 7518, section 3.4 says; with a key of P-384 as ES384."""

    def sign(unsigned: bytes) -> bytes:
        size = (key.key_size + 7) // 8
        r, s = decode_dss_signature(key.sign(unsigned, ec.ECDSA(SHA256() if size == 32 else SHA384())))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")

    return sign


def signed(issuer: Issuer, body: bytes, header: object = None, **changes: object) -> Headers:
    """The header with a token for a body, whose JOSE header and claims may be changed."""
    genuine = {"alg": "ES256", "typ": "JWT", "kid": issuer.key_id}
    made = token(
        genuine if header is None else header, claims(issuer, body, **changes), es256(issuer.keys[issuer.key_id])
    )
    return {ASYMMETRIC_HEADER: made}


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer() as running:
        yield running


def environment(issuer: Issuer, secret: str = "") -> dict[str, str]:
    """What makes a receiver verify the pushes of this issuer, in one process: others learn of new keys later."""
    return {
        "DT_SIGNATURE_SECRET": secret,
        "DT_ORGANIZATION_ID": f"organizations/{TEST_ORGANIZATION}, another0organization",
        "DT_ISSUER_URL": issuer.url,
        "WEB_CONCURRENCY": "1",
    }


@pytest.fixture(scope="module")
def keys_receiver(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReceiver]:
    """A receiver without a secret, for tests that neither stop it nor slow it down."""
    receiver = RunningReceiver(tmp_path_factory.mktemp("keys_receiver"), CSV_ONLY, None, environment(issuer))
    try:
        yield receiver.start()
    finally:
        receiver.kill_all()


def wait_for_keys(receiver: RunningReceiver) -> None:
    """With a secret, a receiver is ready before it has fetched keys for the first time."""
    wait_until(lambda: "signing keys have changed" in receiver.log, what="the keys of the issuer")
