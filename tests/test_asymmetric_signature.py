"""Pushes that DT signs with its own keys: each bad token has its exact response, and either header verifies a push."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections import ChainMap, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import urllib3
from conftest import TEST_SECRET, RunningReceiver, StartReceiver
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flask import Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import pushes
from support.asymmetric import (
    P384_KEY,
    RSA_KEY,
    Headers,
    claims,
    environment,
    es256,
    signed,
    token,
    wait_for_keys,
)
from support.intake import Snapshot
from support.pushes import event, from_now
from werkzeug.test import EnvironBuilder

from receiver.errors import Rejected, Rejection, SigningKeyUnknown
from receiver.signature import ASYMMETRIC_HEADER, HEADER, Asymmetric, read_keys, verify
from receiver.testing.issuer import TEST_ORGANIZATION, Issuer, jwk

MakeHeaders = Callable[[Issuer, bytes], Headers]
MALFORMED = (400, "malformed token")
ALGORITHM = (400, "token not signed with ES256")
UNKNOWN = (503, "signing key unknown")
SIGNATURE = (400, "wrong signature")
EXPIRED = (400, "expired")
NOT_YET = (400, "not yet valid")
NO_EXPIRY = (400, "token without expiry")
ISSUER = (400, "wrong issuer")
ORGANIZATION = (400, "wrong organization")
NO_CHECKSUM = (400, "token without SHA-256 checksum")
MISMATCH = (400, "checksum mismatch")
MISSING = (400, "missing header DT-Asymmetric-Signature")


def with_header(**changes: Any) -> MakeHeaders:
    """A token with another JOSE header; None removes a field."""

    def make(issuer: Issuer, body: bytes) -> Headers:
        header = {"alg": "ES256", "kid": issuer.key_id, **changes}
        return signed(issuer, body, {name: value for name, value in header.items() if value is not None})

    return make


def with_claims(**changes: Any) -> MakeHeaders:
    return lambda issuer, body: signed(issuer, body, **changes)


def with_payload(payload: object) -> MakeHeaders:
    def make(issuer: Issuer, body: bytes) -> Headers:
        header = {"alg": "ES256", "kid": issuer.key_id}
        return {ASYMMETRIC_HEADER: token(header, payload, es256(issuer.keys[issuer.key_id]))}

    return make


def with_text(text: str) -> MakeHeaders:
    return lambda issuer, body: {ASYMMETRIC_HEADER: text}


def edited(edit: Callable[[str], str]) -> MakeHeaders:
    return lambda issuer, body: {ASYMMETRIC_HEADER: edit(signed(issuer, body)[ASYMMETRIC_HEADER])}


def signed_by(alg: str, sign: Callable[[Issuer], Callable[[bytes], bytes]]) -> MakeHeaders:
    """A token with the id of a known key, signed with something else."""
    return lambda issuer, body: {
        ASYMMETRIC_HEADER: token({"alg": alg, "kid": issuer.key_id}, claims(issuer, body), sign(issuer))
    }


def hmac_with_public_key(encoding: Encoding, form: PublicFormat) -> Callable[[Issuer], Callable[[bytes], bytes]]:
    def make(issuer: Issuer) -> Callable[[bytes], bytes]:
        public = issuer.keys[issuer.key_id].public_key().public_bytes(encoding, form)
        return lambda unsigned: hmac.digest(public, unsigned, "sha256")

    return make


BAD: dict[str, tuple[MakeHeaders, tuple[int, str]]] = {
    "no header": (lambda issuer, body: {}, MISSING),
    "only the other header": (lambda issuer, body: pushes.signed(body), MISSING),
    "empty": (with_text(""), MALFORMED),
    "a word": (with_text("hello"), MALFORMED),
    "three words": (with_text("a.b.c"), MALFORMED),
    "8,000 letters": (with_text("a" * 8000), MALFORMED),
    "64 kB": (edited(lambda genuine: genuine + "A" * 65536), (431, "malformed request")),
    "twice": (edited(lambda genuine: f"{genuine},{genuine}"), MALFORMED),
    "after Bearer": (edited(lambda genuine: f"Bearer {genuine}"), MALFORMED),
    "JOSE header is a list": (lambda issuer, body: signed(issuer, body, ["ES256"]), MALFORMED),
    "JOSE header is 1,500 nested brackets": (lambda issuer, body: signed(issuer, body, b"[" * 1500), MALFORMED),
    "no kid": (with_header(kid=None), MALFORMED),
    "kid is empty": (with_header(kid=""), MALFORMED),
    "kid is a number": (with_header(kid=7), MALFORMED),
    "kid is a list": (with_header(kid=["key-1"]), MALFORMED),
    "kid is an object": (with_header(kid={"key-1": 1}), MALFORMED),
    "kid of 257 characters": (with_header(kid="k" * 257), MALFORMED),
    "kid of 10 kB": (with_header(kid="k" * 10_000), (431, "malformed request")),
    "kid is unknown": (with_header(kid="key-9"), UNKNOWN),
    "kid is a path": (with_header(kid="../../../dev/null"), UNKNOWN),
    "kid with a lone surrogate": (with_header(kid="\ud800"), UNKNOWN),
    "kid is unknown, and the token of another organization": (
        lambda issuer, body: signed(issuer, body, {"alg": "ES256", "kid": "key-9"}, sub="another"),
        UNKNOWN,
    ),
    "alg none, no signature": (signed_by("none", lambda issuer: lambda unsigned: b""), ALGORITHM),
    "alg None": (with_header(alg="None"), ALGORITHM),
    "alg es256": (with_header(alg="es256"), ALGORITHM),
    "no alg": (with_header(alg=None), ALGORITHM),
    "alg is a list": (with_header(alg=["ES256"]), ALGORITHM),
    "alg HS256 with the public key as secret, PEM": (
        signed_by("HS256", hmac_with_public_key(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)),
        ALGORITHM,
    ),
    "alg HS256 with the public key as secret, DER": (
        signed_by("HS256", hmac_with_public_key(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)),
        ALGORITHM,
    ),
    "alg ES256, HMAC with the public key": (
        signed_by("ES256", hmac_with_public_key(Encoding.X962, PublicFormat.UncompressedPoint)),
        SIGNATURE,
    ),
    "alg RS256": (
        signed_by("RS256", lambda issuer: lambda unsigned: RSA_KEY.sign(unsigned, padding.PKCS1v15(), SHA256())),
        ALGORITHM,
    ),
    "alg ES384": (signed_by("ES384", lambda issuer: es256(P384_KEY)), ALGORITHM),
    "alg ES256, signed with a key of P-384": (signed_by("ES256", lambda issuer: es256(P384_KEY)), SIGNATURE),
    "alg ES256, signed with RSA": (
        signed_by("ES256", lambda issuer: lambda unsigned: RSA_KEY.sign(unsigned, padding.PKCS1v15(), SHA256())),
        SIGNATURE,
    ),
    "signed with another key": (signed_by("ES256", lambda issuer: es256(Issuer().keys["key-1"])), SIGNATURE),
    "key in the token": (
        lambda issuer, body: {
            ASYMMETRIC_HEADER: token(
                {"alg": "ES256", "kid": issuer.key_id, "jwk": jwk(issuer.key_id, (own := Issuer()).keys["key-1"])},
                claims(issuer, body),
                es256(own.keys["key-1"]),
            )
        },
        SIGNATURE,
    ),
    "signature of zeros": (signed_by("ES256", lambda issuer: lambda unsigned: bytes(64)), SIGNATURE),
    "no signature": (signed_by("ES256", lambda issuer: lambda unsigned: b""), SIGNATURE),
    "unknown critical extension": (with_header(crit=["b64"], b64=False), MALFORMED),
    "payload is a list": (with_payload([]), MALFORMED),
    "payload is not JSON": (with_payload(b"exp"), MALFORMED),
    "no claims": (with_payload({}), NO_EXPIRY),
    "expired two minutes ago": (with_claims(exp=from_now(-120)), EXPIRED),
    "expired in 1970": (with_claims(exp=0), EXPIRED),
    "no expiry": (with_claims(exp=None), NO_EXPIRY),
    "expiry is a word": (with_claims(exp="tomorrow"), MALFORMED),
    "iat two minutes from now": (with_claims(iat=from_now(120)), NOT_YET),
    "nbf two minutes from now": (with_claims(nbf=from_now(120)), NOT_YET),
    "no iat": (with_claims(iat=None), MALFORMED),
    "another issuer": (with_claims(iss="https://identity.example/data-connector"), ISSUER),
    "issuer with a slash": (lambda issuer, body: signed(issuer, body, iss=issuer.url + "/"), ISSUER),
    "issuer is a list": (lambda issuer, body: signed(issuer, body, iss=[issuer.url]), ISSUER),
    "no issuer": (with_claims(iss=None), ISSUER),
    "another organization": (with_claims(sub="foreign0organization"), ORGANIZATION),
    "organization in upper case": (with_claims(sub=TEST_ORGANIZATION.upper()), ORGANIZATION),
    "two organizations": (with_claims(sub=f"{TEST_ORGANIZATION},another0organization"), ORGANIZATION),
    "organization is a list": (with_claims(sub=[TEST_ORGANIZATION]), ORGANIZATION),
    "organization is a number": (with_claims(sub=7), ORGANIZATION),
    "organization is empty": (with_claims(sub=""), ORGANIZATION),
    "no organization": (with_claims(sub=None), ORGANIZATION),
    "for an audience": (with_claims(aud="somebody"), MALFORMED),
    "no checksum": (with_claims(checksum_sha256=None), NO_CHECKSUM),
    "checksum is a list": (lambda issuer, body: signed(issuer, body, checksum_sha256=["0" * 64]), NO_CHECKSUM),
    "checksum of another body": (with_claims(checksum_sha256=hashlib.sha256(b"{}").hexdigest()), MISMATCH),
    "SHA-1 as checksum": (
        lambda issuer, body: signed(issuer, body, checksum_sha256=hashlib.sha1(body).hexdigest()),
        MISMATCH,
    ),
    "only a SHA-1": (
        lambda issuer, body: signed(issuer, body, checksum_sha256=None, checksum=hashlib.sha1(body).hexdigest()),
        NO_CHECKSUM,
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_push_that_cannot_be_verified_has_its_exact_response_and_nothing_is_stored(
    name: str, keys_receiver: RunningReceiver, issuer: Issuer
) -> None:
    make_headers, response = BAD[name]
    body = event(f"asymmetric: {name}")
    before = Snapshot.of(keys_receiver)
    assert keys_receiver.push(body, make_headers(issuer, body)) == response
    after = Snapshot.of(keys_receiver)
    assert after == (before if response[0] == 431 else before.after(*response))


GOOD: dict[str, MakeHeaders] = {
    "as DT sends it": signed,
    "as the issuer of receiver.testing signs it": lambda issuer, body: issuer.sign(body),
    "organization as a resource name": with_claims(sub=f"organizations/{TEST_ORGANIZATION}"),
    "the other organization": with_claims(sub="another0organization"),
    "expired 30 s ago": with_claims(exp=from_now(-30)),
    "iat 50 s from now": with_claims(iat=from_now(50)),
    "with a jti": with_claims(jti="x"),
    "with the other header, which is bad": lambda issuer, body: {**signed(issuer, body), HEADER: "bad"},
}


@pytest.mark.parametrize("name", GOOD)
def test_a_push_that_dt_signed_for_us_is_accepted(name: str, keys_receiver: RunningReceiver, issuer: Issuer) -> None:
    body = event(f"asymmetric, good: {name}")
    verified = 'receiver_verified_pushes_total{secret="DT_ORGANIZATION_ID"}'
    before = keys_receiver.metric(verified)
    assert keys_receiver.push(body, GOOD[name](issuer, body)) == (200, "accepted")
    assert keys_receiver.metric(verified) == before + 1


def test_two_headers_of_one_name_are_malformed_even_if_one_is_genuine(
    keys_receiver: RunningReceiver, issuer: Issuer
) -> None:
    body = event("two asymmetric headers")
    genuine = signed(issuer, body)[ASYMMETRIC_HEADER]
    for first, second in ((genuine, "bad"), ("bad", genuine), (genuine, genuine)):
        headers = urllib3.HTTPHeaderDict([(ASYMMETRIC_HEADER, first), (ASYMMETRIC_HEADER, second)])
        response = keys_receiver.http.request("POST", keys_receiver.url, body=body, headers=headers)
        assert (response.status, response.data.decode()) == MALFORMED


def test_either_of_two_headers_verifies_a_push_and_the_secret_counts_only_where_it_is_needed(
    issuer: Issuer, start_receiver: StartReceiver
) -> None:
    receiver = start_receiver(**environment(issuer, TEST_SECRET))
    wait_for_keys(receiver)

    bodies: defaultdict[str, bytes] = defaultdict(lambda: event(f"headers {len(bodies)}"))

    def push(name: str, *headers: Headers) -> tuple[int, str]:
        return receiver.push(bodies[name], dict(ChainMap(*headers)))

    def used(name: str) -> int:
        return receiver.metric(f'receiver_verified_pushes_total{{secret="{name}"}}')

    asymmetric = {name: signed(issuer, bodies[name]) for name in ("both", "asymmetric", "bad secret")}
    secret = {name: pushes.signed(bodies[name]) for name in ("both", "secret", "bad asymmetric", "unknown key")}
    assert push("both", asymmetric["both"], secret["both"]) == (200, "accepted")
    assert push("asymmetric", asymmetric["asymmetric"]) == (200, "accepted")
    assert push("bad secret", asymmetric["bad secret"], {HEADER: "bad"}) == (200, "accepted")
    assert (used("DT_ORGANIZATION_ID"), used("DT_SIGNATURE_SECRET")) == (3, 0)

    unknown_key = signed(issuer, bodies["unknown key"], {"alg": "ES256", "kid": "key-9"})
    assert push("secret", secret["secret"]) == (200, "accepted")
    assert push("bad asymmetric", secret["bad asymmetric"], {ASYMMETRIC_HEADER: "bad"}) == (200, "accepted")
    assert push("unknown key", secret["unknown key"], unknown_key) == (200, "accepted")
    assert (used("DT_ORGANIZATION_ID"), used("DT_SIGNATURE_SECRET")) == (3, 3)

    foreign = signed(issuer, bodies["bad"], sub="foreign")
    wrong_secret = {HEADER: pushes.token(pushes.HS256, pushes.claims(bodies["bad"]), "another")}
    assert push("bad", foreign, wrong_secret) == ORGANIZATION
    assert push("bad", {ASYMMETRIC_HEADER: "bad"}, wrong_secret) == MALFORMED
    assert push("bad", wrong_secret) == (400, "wrong secret")
    assert push("unknown key", unknown_key, wrong_secret) == UNKNOWN
    assert push("bad") == MISSING


def test_without_an_organization_the_header_is_ignored(shared_receiver: RunningReceiver, issuer: Issuer) -> None:
    body = event("no organization is set")
    assert shared_receiver.push(body, signed(issuer, body)) == (400, "missing header X-Dt-Signature")
    assert shared_receiver.push(body, {**signed(issuer, body), **pushes.signed(body)}) == (200, "accepted")


def test_no_key_token_or_organization_is_in_the_log_or_the_metrics(
    issuer: Issuer, start_receiver: StartReceiver
) -> None:
    receiver = start_receiver(**environment(issuer))
    body = event("shown nowhere")
    headers = [make(issuer, body) for make, _ in BAD.values()] + [signed(issuer, body)]
    shown = repr([receiver.push(body, each) for each in headers]) + repr(
        receiver.http.request("GET", f"{receiver.url}/metrics").data
    )
    public = jwk(issuer.key_id, issuer.keys[issuer.key_id])
    tokens = [value for each in headers for value in each.values() if len(value) > 20]
    hidden = [*tokens, public["x"], public["y"], TEST_ORGANIZATION, "another0organization", "foreign0organization"]
    shown += receiver.log
    assert [each for each in hidden if each in shown] == []
    assert "DT's signing keys have changed: now key-1, before none" in receiver.log


def request(headers: Headers, body: bytes) -> Request:
    made = Request(EnvironBuilder(method="POST", data=body, headers=headers).get_environ())
    made.get_data(cache=True)
    return made


def test_a_token_of_64_kb_is_malformed_whatever_server_passes_it_on(issuer: Issuer) -> None:
    asymmetric = Asymmetric(issuer.url, frozenset({TEST_ORGANIZATION}), read_keys(issuer.key_set()).get)
    for make in (edited(lambda genuine: genuine + "A" * 65536), with_header(kid="k" * 10_000), with_text("." * 65536)):
        with pytest.raises(Rejected) as rejected:
            verify(request(make(issuer, b"{}"), b"{}"), {}, asymmetric)
        assert rejected.value.rejection in (Rejection.MALFORMED_TOKEN, Rejection.WRONG_SIGNATURE)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
MANY = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
FOREIGN_KEY = Issuer().keys["key-1"]


def outcome(made: str, body: bytes, issuer: Issuer) -> str | Rejection:
    """The name by which a token verifies a body, or why it does not."""
    asymmetric = Asymmetric(issuer.url, frozenset({TEST_ORGANIZATION}), read_keys(issuer.key_set()).get)
    try:
        return verify(request({ASYMMETRIC_HEADER: made}, body), {}, asymmetric)
    except Rejected as error:
        return error.rejection
    except SigningKeyUnknown:
        return "unknown"


@MANY
@given(data=st.data())
def test_whatever_a_token_contains_it_is_accepted_only_with_our_claims_and_signature(
    data: st.DataObject, issuer: Issuer
) -> None:
    genuine = {"alg": "ES256", "kid": issuer.key_id}
    header = genuine | data.draw(st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "jwk"]), ANY_JSON))
    names = st.sampled_from(["exp", "iat", "nbf", "iss", "sub", "aud", "checksum_sha256"])
    changed = claims(issuer, b"{}") | data.draw(st.dictionaries(names, ANY_JSON, max_size=2))
    key = data.draw(st.sampled_from([issuer.keys[issuer.key_id], FOREIGN_KEY]))
    result = outcome(token(header, changed, es256(key)), b"{}", issuer)
    assert isinstance(result, Rejection) or result in ("unknown", "DT_ORGANIZATION_ID")
    if result == "DT_ORGANIZATION_ID":
        ours = claims(issuer, b"{}")
        assert key is not FOREIGN_KEY
        assert all(header[name] == genuine[name] for name in genuine)
        assert all(changed[name] == ours[name] for name in ("iss", "sub", "checksum_sha256"))
        assert int(changed["exp"]) > time.time() - 61


@MANY
@given(data=st.data())
def test_a_changed_token_is_accepted_only_with_the_same_header_and_claims(data: st.DataObject, issuer: Issuer) -> None:
    good = signed(issuer, b"{}")[ASYMMETRIC_HEADER]
    where, length = data.draw(st.integers(0, len(good))), data.draw(st.integers(0, 6))
    inserted = data.draw(st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=4))
    made = good[:where] + inserted + good[where + length :]
    if outcome(made, b"{}", issuer) == "DT_ORGANIZATION_ID":
        assert made.split(".")[:2] == good.split(".")[:2]


P384_JWK = {"kty": "EC", "crv": "P-384", "kid": "p384", "x": "A" * 64, "y": "A" * 64}


def test_of_a_key_set_only_keys_that_can_sign_pushes_are_used() -> None:
    issuer = Issuer()
    good = jwk("good", issuer.keys["key-1"])
    other = jwk("good", Issuer().keys["key-1"])
    private = base64.urlsafe_b64encode(b"\1" * 32).decode()
    odd: list[object] = [
        *(None, 5, "key", [], {}, P384_JWK),
        {**good, "kid": None},
        {**good, "kid": 7},
        {**good, "kid": "k" * 257},
        {**good, "kid": ""},
        {name: value for name, value in good.items() if name != "kid"},
        {**good, "kid": "p384", "crv": "P-384"},
        {**good, "kid": "secp256k1", "crv": "secp256k1"},
        {**good, "kid": "oct", "kty": "oct", "k": "AAAA"},
        {**good, "kid": "rsa", "kty": "RSA"},
        {**good, "kid": "es384", "alg": "ES384"},
        {**good, "kid": "alg is a list", "alg": ["ES256"]},
        {**good, "kid": "enc", "use": "enc"},
        {**good, "kid": "not on the curve", "x": other["x"]},
        {**good, "kid": "short", "x": "AA"},
        {**good, "kid": "not base64", "x": "\u00e9"},
        {**good, "kid": "number", "x": 5},
        {name: value for name, value in {**good, "kid": "no y"}.items() if name != "y"},
    ]
    found = read_keys({"keys": [*odd, good, other, {**good, "kid": "private", "d": private}]})
    assert {key_id: (key.x, key.y) for key_id, key in found.items()} == {
        "good": (good["x"], good["y"]),
        "private": (good["x"], good["y"]),
    }
    for nothing in (None, [], {}, {"keys": None}, {"keys": {}}, {"keys": "x"}, {"keys": []}, "keys"):
        assert read_keys(nothing) == {}
