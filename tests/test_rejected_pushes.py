"""Pushes that cannot be verified: each is rejected with its reason, and nothing of it is stored or shown."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import urllib3
from conftest import CSV_ONLY, TEST_SECRET, RunningReceiver, StartReceiver
from support.intake import Snapshot
from support.pushes import (
    FORBIDDEN,
    HS256,
    MakeHeaders,
    base64url,
    changed_event,
    claims,
    event,
    from_now,
    signed,
    token,
    with_claims,
    with_header,
    with_parts,
    with_payload,
    with_token,
)

from receiver.signature import HEADER

MISSING = "missing header X-Dt-Signature"
MALFORMED = "malformed token"
ALGORITHM = "token not signed with HS256"
WRONG_SECRET = "wrong secret"
NO_EXPIRY = "token without expiry"
EXPIRED = "expired"
NOT_YET = "not yet valid"
NO_CHECKSUM = "token without SHA-256 checksum"
MISMATCH = "checksum mismatch"

REJECTED: dict[str, tuple[MakeHeaders, str]] = {
    "no headers": (lambda body: {}, MISSING),
    "token in Authorization": (lambda body: {"Authorization": "Bearer " + signed(body)[HEADER]}, MISSING),
    "token in a header with underscores": (lambda body: {"X_Dt_Signature": signed(body)[HEADER]}, MISSING),
    "token in a cookie": (lambda body: {"Cookie": f"{HEADER}={signed(body)[HEADER]}"}, MISSING),
    "empty token": (lambda body: {HEADER: ""}, MALFORMED),
    "blank token": (lambda body: {HEADER: "   "}, MALFORMED),
    "garbage": (lambda body: {HEADER: FORBIDDEN}, MALFORMED),
    "null": (lambda body: {HEADER: "null"}, MALFORMED),
    "two dots": (lambda body: {HEADER: ".."}, MALFORMED),
    "three words": (lambda body: {HEADER: "a.b.c"}, MALFORMED),
    "8,000 letters": (lambda body: {HEADER: "a" * 8000}, MALFORMED),
    "8,000 dots": (lambda body: {HEADER: "." * 8000}, MALFORMED),
    "letters outside ASCII": (lambda body: {HEADER: "t\u00f6ken.\u00e9.\u00ff"}, MALFORMED),
    "token in quotation marks": (with_token(lambda genuine: f'"{genuine}"'), MALFORMED),
    "token after Bearer": (with_token(lambda genuine: f"Bearer {genuine}"), MALFORMED),
    "token twice": (with_token(lambda genuine: f"{genuine},{genuine}"), MALFORMED),
    "token with a fourth part": (with_token(lambda genuine: f"{genuine}.e30"), MALFORMED),
    "no signature and no dot": (with_parts(lambda header, payload, mac: f"{header}.{payload}"), MALFORMED),
    "JOSE header is not JSON": (lambda body: {HEADER: token(b"HS256", claims(body))}, MALFORMED),
    "JOSE header is a list": (lambda body: {HEADER: token(["HS256"], claims(body))}, MALFORMED),
    "JOSE header is null": (lambda body: {HEADER: token(None, claims(body))}, MALFORMED),
    "JOSE header is not UTF-8": (lambda body: {HEADER: token(b'{"alg":"HS256\xff"}', claims(body))}, MALFORMED),
    "JOSE header is 1,500 nested brackets": (lambda body: {HEADER: token(b"[" * 1500, claims(body))}, MALFORMED),
    "key id is a number": (with_header(alg="HS256", kid=7), MALFORMED),
    "unknown critical extension": (with_header(alg="HS256", crit=["zip"], zip="DEF"), MALFORMED),
    "payload is not JSON": (with_payload(b"exp"), MALFORMED),
    "payload is not UTF-8": (with_payload(b'{"exp":"\xff"}'), MALFORMED),
    "payload is a list": (with_payload([]), MALFORMED),
    "payload is a number": (with_payload(1), MALFORMED),
    "payload is null": (with_payload(None), MALFORMED),
    "payload is empty": (with_payload(b""), MALFORMED),
    "payload is 5,000 nested brackets": (with_payload(b"[" * 5000), MALFORMED),
    "payload has a number of 5,000 digits": (with_payload(b'{"exp":' + b"9" * 5000 + b"}"), MALFORMED),
    "algorithm none, no signature": (
        lambda body: {HEADER: token({"alg": "none"}, claims(body)).rpartition(".")[0] + "."},
        ALGORITHM,
    ),
    "algorithm none": (with_header(alg="none"), ALGORITHM),
    "algorithm None": (with_header(alg="None"), ALGORITHM),
    "algorithm NONE": (with_header(alg="NONE"), ALGORITHM),
    "algorithm hs256": (with_header(alg="hs256"), ALGORITHM),
    "algorithm HS384": (
        lambda body: {HEADER: token({"alg": "HS384"}, claims(body), digest="sha384")},
        ALGORITHM,
    ),
    "algorithm HS512": (
        lambda body: {HEADER: token({"alg": "HS512"}, claims(body), digest="sha512")},
        ALGORITHM,
    ),
    "algorithm RS256": (with_header(alg="RS256"), ALGORITHM),
    "algorithm ES256": (with_header(alg="ES256"), ALGORITHM),
    "algorithm is empty": (with_header(alg=""), ALGORITHM),
    "algorithm is null": (with_header(alg=None), ALGORITHM),
    "algorithm is a number": (with_header(alg=256), ALGORITHM),
    "algorithm is a list": (with_header(alg=["HS256"]), ALGORITHM),
    "no algorithm": (with_header(typ="JWT"), ALGORITHM),
    "another secret": (lambda body: {HEADER: token(HS256, claims(body), "another secret")}, WRONG_SECRET),
    "empty secret": (lambda body: {HEADER: token(HS256, claims(body), "")}, WRONG_SECRET),
    "secret in upper case": (lambda body: {HEADER: token(HS256, claims(body), TEST_SECRET.upper())}, WRONG_SECRET),
    "secret with a newline": (lambda body: {HEADER: token(HS256, claims(body), TEST_SECRET + "\n")}, WRONG_SECRET),
    "half the secret": (lambda body: {HEADER: token(HS256, claims(body), TEST_SECRET[:5])}, WRONG_SECRET),
    "body as secret": (lambda body: {HEADER: token(HS256, claims(body), body.decode())}, WRONG_SECRET),
    "signed with SHA-512 as HS256": (lambda body: {HEADER: token(HS256, claims(body), digest="sha512")}, WRONG_SECRET),
    "empty signature": (with_parts(lambda header, payload, mac: f"{header}.{payload}."), WRONG_SECRET),
    "signature cut short": (with_parts(lambda header, payload, mac: f"{header}.{payload}.{mac[:40]}"), WRONG_SECRET),
    "signature of another token": (
        lambda body: {HEADER: ".".join([*signed(body)[HEADER].split(".")[:2], signed(b"{}")[HEADER].split(".")[2]])},
        WRONG_SECRET,
    ),
    "payload of another token": (
        with_parts(lambda header, payload, mac: f"{header}.{base64url(claims(b'{}')).decode()}.{mac}"),
        WRONG_SECRET,
    ),
    "another secret and expired": (
        lambda body: {HEADER: token(HS256, claims(body, exp=1), "another secret")},
        WRONG_SECRET,
    ),
    "no expiry": (with_claims(exp=None), NO_EXPIRY),
    "no claims": (with_payload({}), NO_EXPIRY),
    "expiry is null": (lambda body: {HEADER: token(HS256, {**claims(body), "exp": None})}, NO_EXPIRY),
    "expired two minutes ago": (with_claims(exp=from_now(-120)), EXPIRED),
    "expired an hour ago": (with_claims(iat=from_now(-7200), exp=from_now(-3600)), EXPIRED),
    "expired in 1970": (with_claims(exp=0), EXPIRED),
    "expired before 1970": (with_claims(exp=-1), EXPIRED),
    "expired, and of a different body": (with_claims(exp=1, checksum_sha256="0" * 64), EXPIRED),
    "expiry is a word": (with_claims(exp="tomorrow"), MALFORMED),
    "expiry is a list": (with_claims(exp=[4102444800]), MALFORMED),
    "expiry is infinite": (lambda body: {HEADER: token(HS256, claims(body, exp=float("inf")))}, MALFORMED),
    "expiry is not a number": (lambda body: {HEADER: token(HS256, claims(body, exp=float("nan")))}, MALFORMED),
    "issued ten minutes from now": (with_claims(iat=from_now(600)), NOT_YET),
    "issued two minutes from now": (with_claims(iat=from_now(120)), NOT_YET),
    "not before ten minutes from now": (with_claims(nbf=from_now(600)), NOT_YET),
    "time of issue is a word": (with_claims(iat="now"), MALFORMED),
    "no checksum": (with_claims(checksum_sha256=None), NO_CHECKSUM),
    "no checksum at all": (with_claims(checksum=None, checksum_sha256=None), NO_CHECKSUM),
    "checksum is null": (lambda body: {HEADER: token(HS256, {**claims(body), "checksum_sha256": None})}, NO_CHECKSUM),
    "checksum is a number": (with_claims(checksum_sha256=0), NO_CHECKSUM),
    "checksum is true": (with_claims(checksum_sha256=True), NO_CHECKSUM),
    "checksum in a list": (lambda body: signed(body, checksum_sha256=[hashlib.sha256(body).hexdigest()]), NO_CHECKSUM),
    "checksum of a different body": (with_claims(checksum_sha256=hashlib.sha256(b"{}").hexdigest()), MISMATCH),
    "checksum is empty": (with_claims(checksum_sha256=""), MISMATCH),
    "checksum cut short": (lambda body: signed(body, checksum_sha256=hashlib.sha256(body).hexdigest()[:-1]), MISMATCH),
    "checksum in upper case": (
        lambda body: signed(body, checksum_sha256=hashlib.sha256(body).hexdigest().upper()),
        MISMATCH,
    ),
    "checksum in base64": (
        lambda body: signed(body, checksum_sha256=base64.b64encode(hashlib.sha256(body).digest()).decode()),
        MISMATCH,
    ),
    "SHA-1 as checksum": (lambda body: signed(body, checksum_sha256=hashlib.sha1(body).hexdigest()), MISMATCH),
    "checksum outside ASCII": (with_claims(checksum_sha256="\u00e9" * 64), MISMATCH),
    "checksum with a lone surrogate": (with_claims(checksum_sha256="\ud800"), MISMATCH),
    "token of the body with a newline": (lambda body: signed(body + b"\n"), MISMATCH),
    "token of the body without its last byte": (lambda body: signed(body[:-1]), MISMATCH),
    "token of the body with one byte changed": (lambda body: signed(body.replace(b"touch", b"tough", 1)), MISMATCH),
    "token of the body in gzip": (
        lambda body: {**signed(gzip.compress(body)), "Content-Encoding": "gzip"},
        MISMATCH,
    ),
}


@pytest.mark.parametrize("name", REJECTED)
def test_a_push_that_cannot_be_verified_is_rejected_with_the_reason_and_nothing_is_stored(
    name: str, shared_receiver: RunningReceiver
) -> None:
    make_headers, reason = REJECTED[name]
    body = event(f"rejected: {name}")
    before = Snapshot.of(shared_receiver)
    assert shared_receiver.push(body, make_headers(body)) == (400, reason)
    assert Snapshot.of(shared_receiver) == before.after(400, reason)


def push_with_signatures(receiver: RunningReceiver, first: str, second: str, body: bytes) -> tuple[int, str]:
    headers = urllib3.HTTPHeaderDict([(HEADER, first), (HEADER, second)])
    response = receiver.http.request("POST", receiver.url, body=body, headers=headers)
    return response.status, response.data.decode()


def test_a_push_with_two_signatures_is_rejected_even_when_one_of_them_is_genuine(
    shared_receiver: RunningReceiver,
) -> None:
    body = event("two signatures")
    genuine = signed(body)[HEADER]
    before = Snapshot.of(shared_receiver)
    assert push_with_signatures(shared_receiver, genuine, FORBIDDEN, body) == (400, MALFORMED)
    assert push_with_signatures(shared_receiver, FORBIDDEN, genuine, body) == (400, MALFORMED)
    assert Snapshot.of(shared_receiver) == before.after(400, MALFORMED).after(400, MALFORMED)


def test_a_genuine_push_among_concurrent_forged_pushes_of_its_body_is_accepted(
    shared_receiver: RunningReceiver,
) -> None:
    body = event("among forged pushes")
    forged = [make_headers for make_headers, _ in REJECTED.values()]
    half = len(forged) // 2
    with ThreadPoolExecutor(16) as threads:
        responses = [threads.submit(shared_receiver.push, body, make(body)) for make in forged[:half]]
        genuine = threads.submit(shared_receiver.push, body)
        responses += [threads.submit(shared_receiver.push, body, make(body)) for make in forged[half:]]
    assert genuine.result() == (200, "accepted")
    assert {response.result()[0] for response in responses} == {400}


def test_no_part_of_a_rejected_push_and_no_secret_is_in_the_response_the_log_or_the_metrics(
    shared_receiver: RunningReceiver,
) -> None:
    body = changed_event("forbidden", lambda payload: payload["labels"].update(name=FORBIDDEN))
    project = json.loads(body)["metadata"]["projectId"]
    tokens = [
        FORBIDDEN,
        f"{FORBIDDEN}.{FORBIDDEN}.{FORBIDDEN}",
        token({"alg": FORBIDDEN}, {}),
        token(HS256, {"exp": FORBIDDEN}),
        signed(b"")[HEADER],
    ]
    others = {"User-Agent": FORBIDDEN, "Content-Type": FORBIDDEN, "Cookie": FORBIDDEN}
    responses = [shared_receiver.push(body, {HEADER: each, **others}) for each in tokens]
    assert [status for status, _ in responses] == [400] * len(tokens)
    metrics = shared_receiver.http.request("GET", f"{shared_receiver.url}/metrics").data.decode()
    shown = shared_receiver.log + repr(responses) + metrics
    assert [each for each in (*tokens, TEST_SECRET, "Traceback", project) if each in shown] == []


def test_a_rejected_push_is_logged_in_one_line_with_reason_address_size_and_request_id(
    start_receiver: StartReceiver,
) -> None:
    receiver = start_receiver(ready=False)
    before = len(receiver.log)
    assert receiver.push(b"12345", {HEADER: FORBIDDEN, "X-Request-Id": "our-own_7"}) == (400, MALFORMED)
    assert [line.partition(" ")[2] for line in receiver.log[before:].splitlines() if " receiver.intake" in line] == [
        "WARNING receiver.intake.pushes push rejected: malformed token (from 127.0.0.1, 5 bytes, request our-own_7)"
    ]


def test_with_legacy_sha1_a_token_may_have_only_a_sha1_and_must_be_valid_otherwise(
    start_receiver: StartReceiver,
) -> None:
    receiver = start_receiver(f"{CSV_ONLY}\n[receiver]\nlegacy_sha1 = true\n", ready=False)
    body = event("legacy")
    right, wrong = hashlib.sha1(body).hexdigest(), "0" * 40

    def push_legacy(secret: str = TEST_SECRET, **changes: object) -> tuple[int, str]:
        return receiver.push(body, {HEADER: token(HS256, claims(body, checksum_sha256=None, **changes), secret)})

    assert push_legacy(checksum=wrong) == (400, MISMATCH)
    assert push_legacy(checksum=right.upper()) == (400, MISMATCH)
    assert push_legacy(checksum=None) == (400, NO_CHECKSUM)
    assert push_legacy(checksum=7) == (400, NO_CHECKSUM)
    assert push_legacy(exp=1) == (400, EXPIRED)
    assert push_legacy(exp=None) == (400, NO_EXPIRY)
    assert push_legacy("another secret") == (400, WRONG_SECRET)
    assert receiver.push(body, signed(body, checksum_sha256="0" * 64)) == (400, MISMATCH)
    assert receiver.push(body, signed(body, checksum_sha256="")) == (400, MISMATCH)
    assert push_legacy() == (200, "accepted")
