"""Verification of pushes: every reason to reject one, and that only a valid signature and checksum are accepted."""

from __future__ import annotations

import base64
import copy
import hashlib
import hmac
import json
import logging
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import time_machine
from conftest import ROOT
from flask import Flask, Request, request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import EnvironBuilder

from receiver.errors import Rejected, Rejection
from receiver.event import TYPES, Event
from receiver.signature import HEADER, LEEWAY_SECONDS, sign, verify
from receiver.simulator import Simulator

NOW = 1716978850
SECRET = "the signature secret of the data connector"
OTHER = "the signature secret of another connector"
SECRETS = {"DT_SIGNATURE_SECRET": SECRET}
NAME = "DT_SIGNATURE_SECRET"
BODY = Simulator(1).body("touch", datetime.fromtimestamp(NOW, UTC))
PUSHES = json.loads((Path(__file__).parent / "real_pushes.json").read_text())["pushes"]
ABSENT = object()


def push(headers: Mapping[str, str], body: bytes = BODY) -> Request:
    """A push as the app passes it on: a Flask request whose raw body has been read."""
    request = Request(EnvironBuilder(method="POST", data=body).get_environ())
    for name, value in headers.items():
        request.environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
    request.get_data(cache=True)
    return request


def result_of(token: str, body: bytes = BODY, secrets: Mapping[str, str] = SECRETS) -> str | Rejection:
    """The name of the secret that verified the push, or the reason why it was rejected."""
    try:
        return verify(push({HEADER: token}, body), secrets)
    except Rejected as error:
        return error.rejection


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token_of(claims: object, header: object = None, secret: str = SECRET, digest: str = "sha256") -> str:
    """A token with any header and any claims, correctly signed."""
    parts = [{"alg": "HS256", "typ": "JWT"} if header is None else header, claims]
    signed = ".".join(encoded(part if isinstance(part, bytes) else json.dumps(part).encode()) for part in parts)
    return f"{signed}.{encoded(hmac.digest(secret.encode(), signed.encode(), digest))}"


def claims(now: float = NOW, body: bytes = BODY, **changed: Any) -> dict[str, Any]:
    """The claims of DT's tokens, with some changed or ABSENT."""
    standard = {
        "checksum": hashlib.sha1(body, usedforsecurity=False).hexdigest(),
        "checksum_sha256": hashlib.sha256(body).hexdigest(),
        "exp": int(now) + 3600,
        "iat": int(now),
        "jti": "cpbg96t1isjlr2vdorc0",
    }
    return {name: value for name, value in (standard | changed).items() if value is not ABSENT}


def token_with(claim: str, value: Any) -> str:
    """A token whose claims are DT's, but for one."""
    changed = {claim: value}
    return token_of(claims(**changed))


@pytest.fixture(name="at_now")
def stopped_clock() -> Iterator[None]:
    with time_machine.travel(NOW, tick=False):
        yield


pytestmark = pytest.mark.usefixtures("at_now")

GOOD = token_of(claims())
HEAD, CLAIMS, SIGNATURE = GOOD.split(".")

ACCEPTED: dict[str, str] = {
    "as DT sends it": GOOD,
    "without typ": token_of(claims(), {"alg": "HS256"}),
    "with another typ": token_of(claims(), {"alg": "HS256", "typ": ["x"]}),
    "with a key id": token_of(claims(), {"alg": "HS256", "kid": "1"}),
    "with unknown header fields": token_of(claims(), {"alg": "HS256", "jku": "http://x", "x5c": [], "jwk": {}}),
    "iat 10 s ahead": token_of(claims(iat=NOW + 10)),
    "iat 60 s ahead": token_of(claims(iat=NOW + 60)),
    "iat long ago": token_of(claims(iat=0)),
    "iat as a fraction": token_of(claims(iat=NOW + 0.5)),
    "no iat": token_of(claims(iat=ABSENT)),
    "nbf in the past": token_of(claims(nbf=NOW - 5)),
    "nbf 10 s ahead": token_of(claims(nbf=NOW + 10)),
    "nbf 60 s ahead": token_of(claims(nbf=NOW + 60)),
    "exp in a second": token_of(claims(exp=NOW + 1)),
    "exp now": token_of(claims(exp=NOW)),
    "exp 30 s ago": token_of(claims(exp=NOW - 30)),
    "exp 59 s ago": token_of(claims(exp=NOW - 59)),
    "exp as a fraction": token_of(claims(exp=NOW + 0.5)),
    "exp as a string of digits": token_of(claims(exp=str(NOW + 3600))),
    "exp huge": token_of(claims(exp=10**400)),
    "exp as a huge float": token_of(claims(exp=1e308)),
    "no jti": token_of(claims(jti=ABSENT)),
    "no SHA-1": token_of(claims(checksum=ABSENT)),
    "SHA-1 of another body": token_of(claims(checksum="0" * 40)),
    "SHA-1 as a number": token_of(claims(checksum=5)),
    **{
        f"{claim} {odd!r}": token_with(claim, odd)
        for claim in ("aud", "sub", "jti", "iss", "new")
        for odd in (None, 5, 1.5, True, "x", "", [], ["x"], [5], {}, {"a": 1})
    },
}
ODD_CHECKSUMS: tuple[Any, ...] = (
    *(None, 5, 0, True, [], {}),
    [hashlib.sha256(BODY).hexdigest()],
    int(hashlib.sha256(BODY).hexdigest(), 16),
)
REJECTED: dict[str, tuple[str, Rejection]] = {
    "empty": ("", Rejection.MALFORMED_TOKEN),
    "blank": (" ", Rejection.MALFORMED_TOKEN),
    "a word": ("hello", Rejection.MALFORMED_TOKEN),
    "dots": ("..", Rejection.MALFORMED_TOKEN),
    "many dots": ("." * 8000, Rejection.MALFORMED_TOKEN),
    "one part": (HEAD, Rejection.MALFORMED_TOKEN),
    "two parts": (f"{HEAD}.{CLAIMS}", Rejection.MALFORMED_TOKEN),
    "four parts": (f"{GOOD}.{SIGNATURE}", Rejection.MALFORMED_TOKEN),
    "five parts": (f"{GOOD}.{SIGNATURE}.{SIGNATURE}", Rejection.MALFORMED_TOKEN),
    "two tokens joined by a comma": (f"{GOOD},{GOOD}", Rejection.MALFORMED_TOKEN),
    "two tokens joined by a comma and a blank": (f"{GOOD}, {GOOD}", Rejection.MALFORMED_TOKEN),
    "with the word Bearer": (f"Bearer {GOOD}", Rejection.MALFORMED_TOKEN),
    "in quotes": (f'"{GOOD}"', Rejection.MALFORMED_TOKEN),
    "a blank inside": (f"{HEAD} .{CLAIMS}.{SIGNATURE}", Rejection.MALFORMED_TOKEN),
    "letters of Latin-1": ("é" * 50, Rejection.MALFORMED_TOKEN),
    "standard base64": (f"{HEAD}+/.{CLAIMS}.{SIGNATURE}", Rejection.MALFORMED_TOKEN),
    "zero bytes": (f"{GOOD}\0", Rejection.MALFORMED_TOKEN),
    "an empty header": (f".{CLAIMS}.{SIGNATURE}", Rejection.MALFORMED_TOKEN),
    "a header that is not JSON": (token_of(claims(), b"hello"), Rejection.MALFORMED_TOKEN),
    "a header that is not UTF-8": (token_of(claims(), b"\xff"), Rejection.MALFORMED_TOKEN),
    "a header that is a list": (token_of(claims(), ["HS256"]), Rejection.MALFORMED_TOKEN),
    "a header that is nested deeply": (token_of(claims(), b"[" * 5000), Rejection.MALFORMED_TOKEN),
    "a header with a huge number": (token_of(claims(), b'{"alg":' + b"9" * 5000 + b"}"), Rejection.MALFORMED_TOKEN),
    "a key id that is a number": (token_of(claims(), {"alg": "HS256", "kid": 5}), Rejection.MALFORMED_TOKEN),
    "an unknown critical extension": (
        token_of(claims(), {"alg": "HS256", "crit": ["x"], "x": 1}),
        Rejection.MALFORMED_TOKEN,
    ),
    "an unencoded payload": (
        token_of(claims(), {"alg": "HS256", "b64": False, "crit": ["b64"]}),
        Rejection.MALFORMED_TOKEN,
    ),
    "claims that are not JSON": (token_of(b"hello"), Rejection.MALFORMED_TOKEN),
    "claims that are not UTF-8": (token_of(b'{"exp":"\xff"}'), Rejection.MALFORMED_TOKEN),
    "claims that are a list": (token_of([claims()]), Rejection.MALFORMED_TOKEN),
    "claims that are a number": (token_of(5), Rejection.MALFORMED_TOKEN),
    "claims that are nested deeply": (token_of(b"[" * 5000), Rejection.MALFORMED_TOKEN),
    "no claims": (token_of(b""), Rejection.MALFORMED_TOKEN),
    "no alg": (token_of(claims(), {"typ": "JWT"}), Rejection.WRONG_ALGORITHM),
    "alg none, unsigned": (
        f"{encoded(json.dumps({'alg': 'none'}).encode())}.{CLAIMS}.",
        Rejection.WRONG_ALGORITHM,
    ),
    "alg none, signed": (token_of(claims(), {"alg": "none"}), Rejection.WRONG_ALGORITHM),
    "alg None": (token_of(claims(), {"alg": "None"}), Rejection.WRONG_ALGORITHM),
    "alg null": (token_of(claims(), {"alg": None}), Rejection.WRONG_ALGORITHM),
    "alg empty": (token_of(claims(), {"alg": ""}), Rejection.WRONG_ALGORITHM),
    "alg in small letters": (token_of(claims(), {"alg": "hs256"}), Rejection.WRONG_ALGORITHM),
    "alg in a list": (token_of(claims(), {"alg": ["HS256"]}), Rejection.WRONG_ALGORITHM),
    "alg in an object": (token_of(claims(), {"alg": {"HS256": 1}}), Rejection.WRONG_ALGORITHM),
    "alg a number": (token_of(claims(), {"alg": 256}), Rejection.WRONG_ALGORITHM),
    "HS384": (token_of(claims(), {"alg": "HS384"}, digest="sha384"), Rejection.WRONG_ALGORITHM),
    "HS512": (token_of(claims(), {"alg": "HS512"}, digest="sha512"), Rejection.WRONG_ALGORITHM),
    "RS256": (token_of(claims(), {"alg": "RS256", "typ": "JWT"}), Rejection.WRONG_ALGORITHM),
    "ES256": (token_of(claims(), {"alg": "ES256"}), Rejection.WRONG_ALGORITHM),
    "wrong secret": (token_of(claims(), secret=OTHER), Rejection.WRONG_SECRET),
    "no secret": (token_of(claims(), secret=""), Rejection.WRONG_SECRET),
    "the secret with a line end": (token_of(claims(), secret=f"{SECRET}\n"), Rejection.WRONG_SECRET),
    "the secret in capitals": (token_of(claims(), secret=SECRET.upper()), Rejection.WRONG_SECRET),
    "no signature": (f"{HEAD}.{CLAIMS}.", Rejection.WRONG_SECRET),
    "a short signature": (f"{HEAD}.{CLAIMS}.{SIGNATURE[:40]}", Rejection.WRONG_SECRET),
    "the signature of other claims": (
        f"{HEAD}.{encoded(json.dumps(claims(exp=NOW + 9)).encode())}.{SIGNATURE}",
        Rejection.WRONG_SECRET,
    ),
    "the signature of another header": (
        f"{encoded(json.dumps({'alg': 'HS256'}).encode())}.{CLAIMS}.{SIGNATURE}",
        Rejection.WRONG_SECRET,
    ),
    "HS256 in the header and SHA-384 in the signature": (token_of(claims(), digest="sha384"), Rejection.WRONG_SECRET),
    "wrong secret and expired": (token_of(claims(NOW - 9999), secret=OTHER), Rejection.WRONG_SECRET),
    "no exp": (token_of(claims(exp=ABSENT)), Rejection.NO_EXPIRY),
    "exp null": (token_of(claims(exp=None)), Rejection.NO_EXPIRY),
    "no claims but the checksum": (
        token_of({"checksum_sha256": hashlib.sha256(BODY).hexdigest()}),
        Rejection.NO_EXPIRY,
    ),
    "an empty object of claims": (token_of({}), Rejection.NO_EXPIRY),
    "no exp and another body": (token_of(claims(exp=ABSENT, checksum_sha256="0" * 64)), Rejection.NO_EXPIRY),
    "exp 60 s ago": (token_of(claims(exp=NOW - 60)), Rejection.EXPIRED),
    "exp 90 s ago": (token_of(claims(exp=NOW - 90)), Rejection.EXPIRED),
    "exp zero": (token_of(claims(exp=0)), Rejection.EXPIRED),
    "exp below zero": (token_of(claims(exp=-(10**400))), Rejection.EXPIRED),
    "exp false": (token_of(claims(exp=False)), Rejection.EXPIRED),
    "exp true": (token_of(claims(exp=True)), Rejection.EXPIRED),
    "iat 61 s ahead": (token_of(claims(iat=NOW + 61)), Rejection.NOT_YET_VALID),
    "iat 10 min ahead": (token_of(claims(NOW + 600)), Rejection.NOT_YET_VALID),
    "nbf 61 s ahead": (token_of(claims(nbf=NOW + 61)), Rejection.NOT_YET_VALID),
    "nbf in an hour": (token_of(claims(nbf=NOW + 3600)), Rejection.NOT_YET_VALID),
    "nbf huge": (token_of(claims(nbf=10**400)), Rejection.NOT_YET_VALID),
    "no checksum at all": (token_of(claims(checksum=ABSENT, checksum_sha256=ABSENT)), Rejection.NO_CHECKSUM),
    "only SHA-1, as DT signed before 2022": (token_of(claims(checksum_sha256=ABSENT)), Rejection.NO_CHECKSUM),
    **{f"checksum {odd!r}": (token_with("checksum_sha256", odd), Rejection.NO_CHECKSUM) for odd in ODD_CHECKSUMS},
    "checksum empty": (token_of(claims(checksum_sha256="")), Rejection.CHECKSUM_MISMATCH),
    "checksum of another body": (token_of(claims(body=b"{}")), Rejection.CHECKSUM_MISMATCH),
    "checksum in capitals": (
        token_of(claims(checksum_sha256=hashlib.sha256(BODY).hexdigest().upper())),
        Rejection.CHECKSUM_MISMATCH,
    ),
    "checksum with a blank": (
        token_of(claims(checksum_sha256=hashlib.sha256(BODY).hexdigest() + " ")),
        Rejection.CHECKSUM_MISMATCH,
    ),
    "checksum cut short": (
        token_of(claims(checksum_sha256=hashlib.sha256(BODY).hexdigest()[:63])),
        Rejection.CHECKSUM_MISMATCH,
    ),
    "checksum not ASCII": (token_of(claims(checksum_sha256="é" * 64)), Rejection.CHECKSUM_MISMATCH),
    "checksum a lone surrogate": (token_of(claims(checksum_sha256="\ud800" * 64)), Rejection.CHECKSUM_MISMATCH),
    "SHA-1 instead of SHA-256": (
        token_of(claims(checksum_sha256=hashlib.sha1(BODY, usedforsecurity=False).hexdigest())),
        Rejection.CHECKSUM_MISMATCH,
    ),
    "SHA-512 instead of SHA-256": (
        token_of(claims(checksum_sha256=hashlib.sha512(BODY).hexdigest())),
        Rejection.CHECKSUM_MISMATCH,
    ),
    "SHA-256 under another name": (
        token_of(claims(checksum_sha256=ABSENT, checksumSha256=hashlib.sha256(BODY).hexdigest())),
        Rejection.NO_CHECKSUM,
    ),
}
NOT_TIMES: tuple[Any, ...] = ("tomorrow", "", "1e9", [], {}, [NOW + 3600], float("inf"), float("nan"), "9" * 5000)
ODD_TIMES = {
    f"{claim} {odd!r}"[:40]: token_with(claim, odd) for claim in ("exp", "iat", "nbf") for odd in NOT_TIMES
} | {f"{claim} null": token_with(claim, None) for claim in ("iat", "nbf")}
"""Correctly signed, but with invalid times."""


@pytest.mark.parametrize("token", ACCEPTED.values(), ids=ACCEPTED)
def test_a_genuine_token_is_accepted(token: str) -> None:
    assert result_of(token) == NAME


@pytest.mark.parametrize(("token", "rejection"), REJECTED.values(), ids=REJECTED)
def test_an_invalid_token_is_rejected_with_its_reason(token: str, rejection: Rejection) -> None:
    assert result_of(token) is rejection


@pytest.mark.parametrize("token", ODD_TIMES.values(), ids=ODD_TIMES)
def test_a_token_with_invalid_times_is_rejected_as_malformed(token: str) -> None:
    assert result_of(token) is Rejection.MALFORMED_TOKEN


def test_every_reason_to_reject_a_token_is_in_the_table() -> None:
    of_the_other_header = {
        Rejection.MISSING_ASYMMETRIC_HEADER,
        Rejection.WRONG_ASYMMETRIC_ALGORITHM,
        Rejection.WRONG_SIGNATURE,
        Rejection.WRONG_ISSUER,
        Rejection.WRONG_ORGANIZATION,
    }
    found = {rejection for _, rejection in REJECTED.values()} | {Rejection.MISSING_HEADER}
    assert found | of_the_other_header == set(Rejection)


@pytest.mark.parametrize("name", ["X-Dt-Signatur", "Dt-Signature", "Authorization", "X-Dt-Signature-2"])
def test_a_push_without_the_header_is_rejected(name: str) -> None:
    with pytest.raises(Rejected) as rejected:
        verify(push({name: GOOD}), SECRETS)
    assert rejected.value.rejection is Rejection.MISSING_HEADER


@pytest.mark.parametrize("captured", PUSHES, ids=lambda captured: captured["name"])
def test_a_captured_push_is_accepted_from_its_issue_until_a_minute_after_its_expiry(captured: dict[str, Any]) -> None:
    body, token = captured["body"].encode(), captured["headers"][HEADER]
    times = {
        captured["token_issued_at"] - LEEWAY_SECONDS - 1: Rejection.NOT_YET_VALID,
        captured["token_issued_at"] - LEEWAY_SECONDS: NAME,
        captured["token_issued_at"]: NAME,
        captured["token_expires_at"]: NAME,
        captured["token_expires_at"] + LEEWAY_SECONDS - 1: NAME,
        captured["token_expires_at"] + LEEWAY_SECONDS: Rejection.EXPIRED,
        captured["token_expires_at"] + 10**8: Rejection.EXPIRED,
    }
    for now, expected in times.items():
        with time_machine.travel(now, tick=False):
            assert result_of(token, body, {NAME: captured["secret"]}) == expected


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain",
        "é",
    ],
)
def test_the_content_type_does_not_matter(content_type: str | None) -> None:
    with Flask("receiver").test_request_context(
        "/", method="POST", data=BODY, headers=sign(BODY, SECRET, NOW) | {"Content-Type": content_type or ""}
    ):
        assert request.get_data(cache=True) == BODY
        assert verify(request, SECRETS) == NAME


def test_the_header_name_is_read_in_any_case() -> None:
    for name in (HEADER, HEADER.lower(), HEADER.upper()):
        with Flask("receiver").test_request_context("/", method="POST", data=BODY, headers={name: GOOD}):
            request.get_data(cache=True)
            assert verify(request, SECRETS) == NAME


MANY_SECRETS = {"A": "a" * 32, "B": "b" * 32, "C": "c" * 32}


@pytest.mark.parametrize("name", MANY_SECRETS)
def test_the_result_is_the_name_of_the_secret_that_signed(name: str) -> None:
    assert result_of(token_of(claims(), secret=MANY_SECRETS[name]), secrets=MANY_SECRETS) == name
    assert result_of(token_of(claims(iat=NOW + 10), secret=MANY_SECRETS[name]), secrets=MANY_SECRETS) == name


def test_of_two_names_of_the_same_secret_the_first_is_the_result() -> None:
    assert result_of(GOOD, secrets={"A": OTHER, "B": SECRET, "C": SECRET}) == "B"


@pytest.mark.parametrize(
    ("changed", "rejection"),
    [
        ({"exp": ABSENT}, Rejection.NO_EXPIRY),
        ({"exp": NOW - 90}, Rejection.EXPIRED),
        ({"iat": NOW + 600}, Rejection.NOT_YET_VALID),
        ({"checksum_sha256": ABSENT}, Rejection.NO_CHECKSUM),
        ({"checksum_sha256": "0"}, Rejection.CHECKSUM_MISMATCH),
        ({"iat": "tomorrow"}, Rejection.MALFORMED_TOKEN),
    ],
    ids=lambda value: value.name if isinstance(value, Rejection) else "",
)
@pytest.mark.parametrize("name", MANY_SECRETS)
def test_the_reason_is_that_of_the_secret_that_signed(name: str, changed: dict[str, Any], rejection: Rejection) -> None:
    assert result_of(token_of(claims(**changed), secret=MANY_SECRETS[name]), secrets=MANY_SECRETS) is rejection


@pytest.mark.parametrize(
    "secrets", [{}, {"A": ""}, {"A": "", "B": OTHER}, {"A": "\udc80"}], ids=["none", "empty", "empty too", "surrogate"]
)
def test_unusable_secrets_accept_no_push(secrets: dict[str, str]) -> None:
    for token in (GOOD, token_of(claims(), secret=""), token_of(claims(iat=NOW + 10), secret="")):
        assert isinstance(result_of(token, secrets=secrets), Rejection)


def test_an_empty_secret_does_not_keep_another_from_accepting_a_push() -> None:
    assert result_of(GOOD, secrets={"A": "", "B": SECRET}) == "B"


SIMULATED = {event_type: json.loads(Simulator(1).body(event_type)) for event_type in TYPES}


def without(event_type: str, *names: str) -> bytes:
    """The body of an event in which some fields of its data, of the event, or of the push are missing."""
    payload = copy.deepcopy(SIMULATED[event_type])
    data = payload["event"]["data"]
    for table in (payload, payload["event"], data.get(event_type, data)):
        for name in names:
            table.pop(name, None)
    return json.dumps(payload).encode()


GENUINE_SHAPES = {
    "temperature without samples": without("temperature", "samples"),
    "temperature without isBackfilled": without("temperature", "isBackfilled"),
    "humidity without samples": without("humidity", "samples"),
    "humidity without isBackfilled": without("humidity", "isBackfilled"),
    "networkStatus without cloudConnectors": without("networkStatus", "cloudConnectors"),
    "networkStatus without transmissionMode": without("networkStatus", "transmissionMode"),
    "deskOccupancy without remarks": without("deskOccupancy", "remarks"),
    "without metadata": without("touch", "metadata"),
    "without labels": without("touch", "labels"),
    "without labels and metadata": without("co2", "labels", "metadata"),
    "labels null": json.dumps(SIMULATED["touch"] | {"labels": None}).encode(),
    "metadata null": json.dumps(SIMULATED["touch"] | {"metadata": None}).encode(),
    "without targetName": without("motion", "targetName"),
    "without data": without("motion", "data"),
    "without updateTime": without("motion", "updateTime"),
    "without timestamp": without("labelsChanged", "timestamp"),
    "targetName without a device": json.dumps(
        SIMULATED["co2"] | {"event": SIMULATED["co2"]["event"] | {"targetName": "projects"}}
    ).encode(),
    "an unknown type": json.dumps({"event": {"eventId": "a", "eventType": "radiation"}}).encode(),
}
"""Shapes that DT has sent or may send. The client library raises for most of them, after it has verified the push."""

NOT_EVENTS = {
    "empty": b"",
    "not JSON": b"hello",
    "not UTF-8": b"\xff\xfe",
    "a list": b"[]",
    "an object": b"{}",
    "a number": b"5",
    "null": b"null",
    "nested deeply": b"[" * 100_000,
    "a huge number": b"9" * 5000,
    "a lone surrogate": b'{"event":{"eventId":"\\ud800","eventType":"touch"}}',
    "CR LF": b'{"event":{"eventId":"a\\r\\nb","eventType":"touch"}}',
    "event null": b'{"event":null}',
}


@pytest.mark.parametrize("body", GENUINE_SHAPES.values(), ids=GENUINE_SHAPES)
def test_a_genuine_event_is_accepted_whatever_is_missing_in_it(body: bytes) -> None:
    assert verify(push(sign(body, SECRET, NOW), body), SECRETS) == NAME
    assert result_of(token_of(claims(body=body, iat=NOW + 10)), body) == NAME
    assert Event.from_body(body, datetime.fromtimestamp(NOW, UTC)).id


@pytest.mark.parametrize("body", NOT_EVENTS.values(), ids=NOT_EVENTS)
def test_a_genuine_push_is_accepted_whatever_is_in_its_body(body: bytes) -> None:
    assert verify(push(sign(body, SECRET, NOW), body), SECRETS) == NAME


@pytest.mark.parametrize("body", (GENUINE_SHAPES | NOT_EVENTS).values(), ids=GENUINE_SHAPES | NOT_EVENTS)
def test_no_shape_of_a_body_bypasses_the_checks(body: bytes) -> None:
    assert result_of(token_of(claims(body=body), secret=OTHER), body) is Rejection.WRONG_SECRET
    assert result_of(token_of(claims(body=body, exp=NOW - 90)), body) is Rejection.EXPIRED
    assert result_of(token_of(claims(body=body, exp=ABSENT)), body) is Rejection.NO_EXPIRY
    assert result_of(token_of(claims(body=body + b" ")), body) is Rejection.CHECKSUM_MISMATCH
    assert result_of(token_of(claims(body=body, checksum_sha256=ABSENT)), body) is Rejection.NO_CHECKSUM


def test_a_token_with_any_changed_character_is_rejected() -> None:
    for n, character in enumerate(GOOD):
        others = {"_", ".", chr(ord(character) ^ 1)} - {character}
        assert all(isinstance(result_of(GOOD[:n] + other + GOOD[n + 1 :]), Rejection) for other in others)
        assert isinstance(result_of(GOOD[:n] + GOOD[n + 1 :]), Rejection)


def test_a_body_with_a_changed_bit_is_rejected() -> None:
    for n, byte in enumerate(BODY):
        changed = BODY[:n] + bytes([byte ^ 1 << n % 8]) + BODY[n + 1 :]
        assert result_of(GOOD, changed) is Rejection.CHECKSUM_MISMATCH
    for changed in (b"", BODY[:-1], BODY[1:], BODY + b" ", b" " + BODY, BODY + BODY, BODY + b"\0"):
        assert result_of(GOOD, changed) is Rejection.CHECKSUM_MISMATCH


@pytest.mark.parametrize("secret", ["s", "test-secret", "ключ", "x" * 500, SECRET])
@pytest.mark.parametrize("body", [BODY, b"", b"\x00\xff", b"x" * 300_000], ids=["event", "empty", "bytes", "long"])
def test_a_signed_push_is_accepted_with_its_secret_only(secret: str, body: bytes) -> None:
    headers = sign(body, secret, NOW + 0.9)
    assert verify(push(headers, body), {"A": OTHER, "B": secret}) == "B"
    assert result_of(headers[HEADER], body, {"A": OTHER}) is Rejection.WRONG_SECRET


def decoded(token: str) -> tuple[Any, Any]:
    """Header and claims of a token."""
    header, claims, _ = token.split(".")
    return json.loads(base64.urlsafe_b64decode(header + "==")), json.loads(base64.urlsafe_b64decode(claims + "=="))


def test_signing_gives_the_headers_and_claims_that_dt_sends() -> None:
    headers = sign(BODY, SECRET, NOW + 0.9)
    header, signed = decoded(headers[HEADER])
    real_header, real_claims = decoded(PUSHES[0]["headers"][HEADER])
    assert headers == {"Content-Type": "application/json", HEADER: headers[HEADER]}
    assert header == real_header
    assert signed == claims(jti=signed["jti"])
    assert signed.keys() == real_claims.keys()
    assert len(signed["jti"]) == 20
    assert signed["jti"] != decoded(sign(BODY, SECRET, NOW)[HEADER])[1]["jti"]


def test_no_rejection_log_line_warning_or_output_shows_a_secret_a_token_or_a_body(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = {"LONG": f"MARKED-{SECRET}", "SHORT": "MARKED-short", "ODD": "MARKED-\udc80"}
    body = b'{"event":{"eventId":"MARKED-id","eventType":"MARKED-type"}}'
    odd_claims: list[dict[str, Any]] = [{}, {"exp": ABSENT}, {"exp": 0}, {"exp": "MARKED"}, {"iat": NOW + 600}]
    odd_headers = [{"alg": "MARKED"}, {"alg": "HS256", "kid": 5}, {"alg": "HS256", "crit": ["MARKED"]}]
    tokens = [token for token, _ in REJECTED.values()]
    for secret in (secrets["LONG"], secrets["SHORT"]):
        tokens += [token_of(claims(**changed), secret=secret) for changed in odd_claims]
        tokens += [token_of(claims(body=body), header, secret) for header in odd_headers]
    shown: list[str] = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for token in tokens:
            with pytest.raises(Rejected) as rejected:
                verify(push({HEADER: token}, body), secrets)
            error = rejected.value
            assert (str(error), error.args) == (error.rejection.value, (error.rejection.value,))
            assert (error.__cause__, error.__context__) == (None, None)
            shown += [str(error), repr(error), *traceback.format_exception(error)]
        for body in GENUINE_SHAPES.values():
            verify(push(sign(body, secrets["SHORT"], NOW), body), secrets)
    shown += [str(warning.message) for warning in warned] + [caplog.text, *capfd.readouterr()]
    text = "\n".join(shown)
    parts = {part for token in tokens for part in token.split(".") if len(part) > 6}
    assert "MARKED" not in text
    assert "Simulated" not in text
    assert [part for part in parts if part in text] == []


def run(program: str, **environment: str) -> tuple[int, str, str]:
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr


def test_a_push_with_a_short_secret_causes_no_warning() -> None:
    program = (
        "import time\n"
        "from flask import Request\n"
        "from werkzeug.test import EnvironBuilder\n"
        "from receiver.signature import sign, verify\n"
        "headers = sign(b'{}', 'short', time.time())\n"
        "push = Request(EnvironBuilder(method='POST', data=b'{}', headers=headers).get_environ())\n"
        "print(verify(push, {'A': 'short'}))\n"
    )
    assert run(program) == (0, "A\n", "")


@pytest.mark.parametrize(
    "content", [None, "MARKED", '{"serviceAccount":{"key":"MARKED"}}'], ids=["absent", "text", "incomplete"]
)
def test_a_credentials_file_that_the_client_library_cannot_read_is_one_error_line(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "credentials.json"
    if content is not None:
        path.write_text(content)
    program = (
        "from receiver.errors import ReceiverError\n"
        "try:\n"
        "    import receiver.signature\n"
        "except ReceiverError as error:\n"
        "    print(error)\n"
    )
    code, out, errors = run(program, DT_CREDENTIALS_FILE=str(path))
    assert (code, errors) == (0, "")
    assert "MARKED" not in out
    assert "if DT_CREDENTIALS_FILE is set, unset it" in out
    assert out.count("\n") == 1


MANY = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LATIN_1 = st.characters(max_codepoint=255)
ODD = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([10**400, "\ud800"])
)
ANY_JSON = st.recursive(ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
BODIES = st.binary(max_size=40) | st.sampled_from([BODY, *GENUINE_SHAPES.values()])


def is_valid(token: str, body: bytes, secret: str) -> bool:
    """Whether a token has a valid HMAC with SHA-256, an expiry, and the SHA-256 of the body; computed independently."""
    signed, _, signature = token.rpartition(".")
    hmac_sha256 = hmac.digest(secret.encode(), signed.encode(), "sha256")
    header, claims = decoded(token)
    return (
        base64.urlsafe_b64decode(signature + "==") == hmac_sha256
        and header["alg"] == "HS256"
        and int(claims["exp"]) > NOW - LEEWAY_SECONDS
        and int(claims.get("iat", 0)) <= NOW + LEEWAY_SECONDS
        and int(claims.get("nbf", 0)) <= NOW + LEEWAY_SECONDS
        and claims["checksum_sha256"] == hashlib.sha256(body).hexdigest()
    )


def assert_accepted_only_if_valid(token: str, body: bytes) -> None:
    result = result_of(token, body, {"A": OTHER, "B": SECRET})
    assert result not in ("A", "B") or is_valid(token, body, {"A": OTHER, "B": SECRET}[result])


@MANY
@given(token=st.text(LATIN_1, max_size=200) | st.text("eyJ.-_=,", max_size=60), body=BODIES)
def test_random_text_is_not_a_token(token: str, body: bytes) -> None:
    assert result_of(token, body) in (Rejection.MALFORMED_TOKEN, Rejection.WRONG_ALGORITHM)


@MANY
@given(
    where=st.integers(0, len(GOOD)),
    length=st.integers(0, 6),
    inserted=st.text(LATIN_1, max_size=4) | st.sampled_from([".", "=", ",", "==", GOOD]),
    body=st.just(BODY) | BODIES,
)
def test_a_changed_token_is_accepted_only_if_it_is_still_valid(
    where: int, length: int, inserted: str, body: bytes
) -> None:
    assert_accepted_only_if_valid(GOOD[:where] + inserted + GOOD[where + length :], body)


@MANY
@given(
    changed=st.dictionaries(
        st.sampled_from(["exp", "iat", "nbf", "checksum_sha256", "aud", "iss"]), ANY_JSON, max_size=3
    ),
    header=st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "b64", "zip"]), ANY_JSON, max_size=2),
    secret=st.sampled_from([SECRET, OTHER, "", "neither"]),
    body=BODIES,
)
def test_a_token_with_random_claims_is_accepted_only_if_it_is_valid(
    changed: dict[str, Any], header: dict[str, Any], secret: str, body: bytes
) -> None:
    assert_accepted_only_if_valid(token_of(claims(body=body, **changed), {"alg": "HS256"} | header, secret), body)


@MANY
@given(header=ANY_JSON.map(json.dumps) | st.text(max_size=30), claims=ANY_JSON.map(json.dumps) | st.text(max_size=30))
def test_random_signed_parts_raise_only_rejected(header: str, claims: str) -> None:
    assert isinstance(
        result_of(token_of(claims.encode("utf-8", "replace"), header.encode("utf-8", "replace"))), Rejection
    )


@MANY
@given(
    headers=st.dictionaries(
        st.sampled_from([HEADER, "Content-Type", "Content-Encoding", "Cookie", "X-Dt", "Content-Length", "Host"]),
        st.text(LATIN_1, max_size=20),
    ),
    body=BODIES,
)
def test_random_headers_raise_only_rejected(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(Rejected):
        verify(push(headers, body), SECRETS)


@MANY
@given(
    body=BODIES,
    extra=st.dictionaries(st.sampled_from(["aud", "sub", "jti", "iss", "checksum", "new"]), ANY_JSON),
    ahead=st.integers(-3000, LEEWAY_SECONDS),
)
def test_a_token_signed_with_the_secret_is_accepted_whatever_other_claims_it_has(
    body: bytes, extra: dict[str, Any], ahead: int
) -> None:
    assert result_of(token_of(claims(NOW + ahead, body, **extra)), body) == NAME


@MANY
@given(body=BODIES, secret=st.text(st.characters(categories=["L", "N"]), min_size=1), age=st.floats(-60, 3659))
def test_verify_accepts_what_sign_signs(body: bytes, secret: str, age: float) -> None:
    assert verify(push(sign(body, secret, NOW - age), body), {"A": OTHER, "B": secret}) == "B"
