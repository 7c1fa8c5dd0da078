"""Genuine or not: every reason to refuse a push, and that nothing but a right signature and checksum is believed."""

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

from receiver.errors import Refusal, Refused
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
    """A push as the app has it when it asks: a Flask request whose raw body has been read."""
    arrived = Request(EnvironBuilder(method="POST", data=body).get_environ())
    for name, value in headers.items():
        arrived.environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
    arrived.get_data(cache=True)
    return arrived


def answer(token: str, body: bytes = BODY, secrets: Mapping[str, str] = SECRETS) -> str | Refusal:
    """The name of the secret, or the reason of the refusal; anything else that is raised fails the test."""
    try:
        return verify(push({HEADER: token}, body), secrets)
    except Refused as refused:
        return refused.refusal


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token_of(claims: object, header: object = None, secret: str = SECRET, digest: str = "sha256") -> str:
    """A token made by hand, so that any header and any claims can stand in it, rightly signed."""
    parts = [{"alg": "HS256", "typ": "JWT"} if header is None else header, claims]
    signed = ".".join(encoded(part if isinstance(part, bytes) else json.dumps(part).encode()) for part in parts)
    return f"{signed}.{encoded(hmac.digest(secret.encode(), signed.encode(), digest))}"


def claims(now: float = NOW, body: bytes = BODY, **changed: object) -> dict[str, Any]:
    """The claims of DT's tokens, with some changed or ABSENT."""
    told = {
        "checksum": hashlib.sha1(body, usedforsecurity=False).hexdigest(),
        "checksum_sha256": hashlib.sha256(body).hexdigest(),
        "exp": int(now) + 3600,
        "iat": int(now),
        "jti": "cpbg96t1isjlr2vdorc0",
    }
    return {name: value for name, value in (told | changed).items() if value is not ABSENT}


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
        f"{claim} {odd!r}": token_of(claims(**{claim: odd}))
        for claim in ("aud", "sub", "jti", "iss", "new")
        for odd in (None, 5, 1.5, True, "x", "", [], ["x"], [5], {}, {"a": 1})
    },
}
REFUSED: dict[str, tuple[str, Refusal]] = {
    "empty": ("", Refusal.MALFORMED_TOKEN),
    "blank": (" ", Refusal.MALFORMED_TOKEN),
    "a word": ("hello", Refusal.MALFORMED_TOKEN),
    "dots": ("..", Refusal.MALFORMED_TOKEN),
    "many dots": ("." * 8000, Refusal.MALFORMED_TOKEN),
    "one part": (HEAD, Refusal.MALFORMED_TOKEN),
    "two parts": (f"{HEAD}.{CLAIMS}", Refusal.MALFORMED_TOKEN),
    "four parts": (f"{GOOD}.{SIGNATURE}", Refusal.MALFORMED_TOKEN),
    "five parts": (f"{GOOD}.{SIGNATURE}.{SIGNATURE}", Refusal.MALFORMED_TOKEN),
    "two tokens joined by a comma": (f"{GOOD},{GOOD}", Refusal.MALFORMED_TOKEN),
    "two tokens joined by a comma and a blank": (f"{GOOD}, {GOOD}", Refusal.MALFORMED_TOKEN),
    "with the word Bearer": (f"Bearer {GOOD}", Refusal.MALFORMED_TOKEN),
    "in quotes": (f'"{GOOD}"', Refusal.MALFORMED_TOKEN),
    "a blank inside": (f"{HEAD} .{CLAIMS}.{SIGNATURE}", Refusal.MALFORMED_TOKEN),
    "letters of Latin-1": ("é" * 50, Refusal.MALFORMED_TOKEN),
    "standard base64": (f"{HEAD}+/.{CLAIMS}.{SIGNATURE}", Refusal.MALFORMED_TOKEN),
    "zero bytes": (f"{GOOD}\0", Refusal.MALFORMED_TOKEN),
    "an empty header": (f".{CLAIMS}.{SIGNATURE}", Refusal.MALFORMED_TOKEN),
    "a header that is not JSON": (token_of(claims(), b"hello"), Refusal.MALFORMED_TOKEN),
    "a header that is not UTF-8": (token_of(claims(), b"\xff"), Refusal.MALFORMED_TOKEN),
    "a header that is a list": (token_of(claims(), ["HS256"]), Refusal.MALFORMED_TOKEN),
    "a header that is nested deeply": (token_of(claims(), b"[" * 5000), Refusal.MALFORMED_TOKEN),
    "a header with a huge number": (token_of(claims(), b'{"alg":' + b"9" * 5000 + b"}"), Refusal.MALFORMED_TOKEN),
    "a key id that is a number": (token_of(claims(), {"alg": "HS256", "kid": 5}), Refusal.MALFORMED_TOKEN),
    "an unknown critical extension": (
        token_of(claims(), {"alg": "HS256", "crit": ["x"], "x": 1}),
        Refusal.MALFORMED_TOKEN,
    ),
    "an unencoded payload": (
        token_of(claims(), {"alg": "HS256", "b64": False, "crit": ["b64"]}),
        Refusal.MALFORMED_TOKEN,
    ),
    "claims that are not JSON": (token_of(b"hello"), Refusal.MALFORMED_TOKEN),
    "claims that are not UTF-8": (token_of(b'{"exp":"\xff"}'), Refusal.MALFORMED_TOKEN),
    "claims that are a list": (token_of([claims()]), Refusal.MALFORMED_TOKEN),
    "claims that are a number": (token_of(5), Refusal.MALFORMED_TOKEN),
    "claims that are nested deeply": (token_of(b"[" * 5000), Refusal.MALFORMED_TOKEN),
    "no claims": (token_of(b""), Refusal.MALFORMED_TOKEN),
    "no alg": (token_of(claims(), {"typ": "JWT"}), Refusal.WRONG_ALGORITHM),
    "alg none, unsigned": (
        f"{encoded(json.dumps({'alg': 'none'}).encode())}.{CLAIMS}.",
        Refusal.WRONG_ALGORITHM,
    ),
    "alg none, signed": (token_of(claims(), {"alg": "none"}), Refusal.WRONG_ALGORITHM),
    "alg None": (token_of(claims(), {"alg": "None"}), Refusal.WRONG_ALGORITHM),
    "alg null": (token_of(claims(), {"alg": None}), Refusal.WRONG_ALGORITHM),
    "alg empty": (token_of(claims(), {"alg": ""}), Refusal.WRONG_ALGORITHM),
    "alg in small letters": (token_of(claims(), {"alg": "hs256"}), Refusal.WRONG_ALGORITHM),
    "alg in a list": (token_of(claims(), {"alg": ["HS256"]}), Refusal.WRONG_ALGORITHM),
    "alg in an object": (token_of(claims(), {"alg": {"HS256": 1}}), Refusal.WRONG_ALGORITHM),
    "alg a number": (token_of(claims(), {"alg": 256}), Refusal.WRONG_ALGORITHM),
    "HS384": (token_of(claims(), {"alg": "HS384"}, digest="sha384"), Refusal.WRONG_ALGORITHM),
    "HS512": (token_of(claims(), {"alg": "HS512"}, digest="sha512"), Refusal.WRONG_ALGORITHM),
    "RS256": (token_of(claims(), {"alg": "RS256", "typ": "JWT"}), Refusal.WRONG_ALGORITHM),
    "ES256": (token_of(claims(), {"alg": "ES256"}), Refusal.WRONG_ALGORITHM),
    "wrong secret": (token_of(claims(), secret=OTHER), Refusal.WRONG_SECRET),
    "no secret": (token_of(claims(), secret=""), Refusal.WRONG_SECRET),
    "the secret with a line end": (token_of(claims(), secret=f"{SECRET}\n"), Refusal.WRONG_SECRET),
    "the secret in capitals": (token_of(claims(), secret=SECRET.upper()), Refusal.WRONG_SECRET),
    "no signature": (f"{HEAD}.{CLAIMS}.", Refusal.WRONG_SECRET),
    "a short signature": (f"{HEAD}.{CLAIMS}.{SIGNATURE[:40]}", Refusal.WRONG_SECRET),
    "the signature of other claims": (
        f"{HEAD}.{encoded(json.dumps(claims(exp=NOW + 9)).encode())}.{SIGNATURE}",
        Refusal.WRONG_SECRET,
    ),
    "the signature of another header": (
        f"{encoded(json.dumps({'alg': 'HS256'}).encode())}.{CLAIMS}.{SIGNATURE}",
        Refusal.WRONG_SECRET,
    ),
    "HS256 in name and SHA-384 in deed": (token_of(claims(), digest="sha384"), Refusal.WRONG_SECRET),
    "wrong secret and expired": (token_of(claims(NOW - 9999), secret=OTHER), Refusal.WRONG_SECRET),
    "no exp": (token_of(claims(exp=ABSENT)), Refusal.NO_EXPIRY),
    "exp null": (token_of(claims(exp=None)), Refusal.NO_EXPIRY),
    "no claims but the checksum": (
        token_of({"checksum_sha256": hashlib.sha256(BODY).hexdigest()}),
        Refusal.NO_EXPIRY,
    ),
    "an empty object of claims": (token_of({}), Refusal.NO_EXPIRY),
    "no exp and another body": (token_of(claims(exp=ABSENT, checksum_sha256="0" * 64)), Refusal.NO_EXPIRY),
    "exp 60 s ago": (token_of(claims(exp=NOW - 60)), Refusal.EXPIRED),
    "exp 90 s ago": (token_of(claims(exp=NOW - 90)), Refusal.EXPIRED),
    "exp zero": (token_of(claims(exp=0)), Refusal.EXPIRED),
    "exp below zero": (token_of(claims(exp=-(10**400))), Refusal.EXPIRED),
    "exp false": (token_of(claims(exp=False)), Refusal.EXPIRED),
    "exp true": (token_of(claims(exp=True)), Refusal.EXPIRED),
    "iat 61 s ahead": (token_of(claims(iat=NOW + 61)), Refusal.NOT_YET_VALID),
    "iat 10 min ahead": (token_of(claims(NOW + 600)), Refusal.NOT_YET_VALID),
    "nbf 61 s ahead": (token_of(claims(nbf=NOW + 61)), Refusal.NOT_YET_VALID),
    "nbf in an hour": (token_of(claims(nbf=NOW + 3600)), Refusal.NOT_YET_VALID),
    "nbf huge": (token_of(claims(nbf=10**400)), Refusal.NOT_YET_VALID),
    "no checksum at all": (token_of(claims(checksum=ABSENT, checksum_sha256=ABSENT)), Refusal.NO_CHECKSUM),
    "only SHA-1, as DT signed before 2022": (token_of(claims(checksum_sha256=ABSENT)), Refusal.NO_CHECKSUM),
    **{
        f"checksum {odd!r}": (token_of(claims(checksum_sha256=odd)), Refusal.NO_CHECKSUM)
        for odd in (
            None,
            5,
            0,
            True,
            [],
            {},
            [hashlib.sha256(BODY).hexdigest()],
            int(hashlib.sha256(BODY).hexdigest(), 16),
        )
    },
    "checksum empty": (token_of(claims(checksum_sha256="")), Refusal.CHECKSUM_MISMATCH),
    "checksum of another body": (token_of(claims(body=b"{}")), Refusal.CHECKSUM_MISMATCH),
    "checksum in capitals": (
        token_of(claims(checksum_sha256=hashlib.sha256(BODY).hexdigest().upper())),
        Refusal.CHECKSUM_MISMATCH,
    ),
    "checksum with a blank": (
        token_of(claims(checksum_sha256=hashlib.sha256(BODY).hexdigest() + " ")),
        Refusal.CHECKSUM_MISMATCH,
    ),
    "checksum cut short": (
        token_of(claims(checksum_sha256=hashlib.sha256(BODY).hexdigest()[:63])),
        Refusal.CHECKSUM_MISMATCH,
    ),
    "checksum not ASCII": (token_of(claims(checksum_sha256="é" * 64)), Refusal.CHECKSUM_MISMATCH),
    "checksum a lone surrogate": (token_of(claims(checksum_sha256="\ud800" * 64)), Refusal.CHECKSUM_MISMATCH),
    "SHA-1 in the place of SHA-256": (
        token_of(claims(checksum_sha256=hashlib.sha1(BODY, usedforsecurity=False).hexdigest())),
        Refusal.CHECKSUM_MISMATCH,
    ),
    "SHA-512 in the place of SHA-256": (
        token_of(claims(checksum_sha256=hashlib.sha512(BODY).hexdigest())),
        Refusal.CHECKSUM_MISMATCH,
    ),
    "SHA-256 under another name": (
        token_of(claims(checksum_sha256=ABSENT, checksumSha256=hashlib.sha256(BODY).hexdigest())),
        Refusal.NO_CHECKSUM,
    ),
}
ODD_TIMES = {
    f"{claim} {odd!r}"[:40]: token_of(claims(**{claim: odd}))
    for claim in ("exp", "iat", "nbf")
    for odd in ("tomorrow", "", "1e9", [], {}, [NOW + 3600], float("inf"), float("nan"), "9" * 5000)
} | {f"{claim} null": token_of(claims(**{claim: None})) for claim in ("iat", "nbf")}
"""Rightly signed, but with times that are none."""


@pytest.mark.parametrize("token", ACCEPTED.values(), ids=ACCEPTED)
def test_a_genuine_token_is_accepted(token: str) -> None:
    assert answer(token) == NAME


@pytest.mark.parametrize(("token", "refusal"), REFUSED.values(), ids=REFUSED)
def test_a_token_that_proves_nothing_is_refused_with_its_reason(token: str, refusal: Refusal) -> None:
    assert answer(token) is refusal


@pytest.mark.parametrize("token", ODD_TIMES.values(), ids=ODD_TIMES)
def test_a_token_whose_times_are_none_is_refused(token: str) -> None:
    assert answer(token) is Refusal.MALFORMED_TOKEN


def test_every_reason_to_refuse_stands_in_the_table() -> None:
    assert {refusal for _, refusal in REFUSED.values()} | {Refusal.MISSING_HEADER} == set(Refusal)


@pytest.mark.parametrize("name", ["X-Dt-Signatur", "Dt-Signature", "Authorization", "X-Dt-Signature-2"])
def test_a_push_without_the_header_is_refused(name: str) -> None:
    with pytest.raises(Refused) as refused:
        verify(push({name: GOOD}), SECRETS)
    assert refused.value.refusal is Refusal.MISSING_HEADER


@pytest.mark.parametrize("captured", PUSHES, ids=lambda captured: captured["name"])
def test_a_captured_push_is_genuine_from_its_issue_until_a_minute_after_its_expiry(captured: dict[str, Any]) -> None:
    body, token = captured["body"].encode(), captured["headers"][HEADER]
    times = {
        captured["token_issued_at"] - LEEWAY_SECONDS - 1: Refusal.NOT_YET_VALID,
        captured["token_issued_at"] - LEEWAY_SECONDS: NAME,
        captured["token_issued_at"]: NAME,
        captured["token_expires_at"]: NAME,
        captured["token_expires_at"] + LEEWAY_SECONDS - 1: NAME,
        captured["token_expires_at"] + LEEWAY_SECONDS: Refusal.EXPIRED,
        captured["token_expires_at"] + 10**8: Refusal.EXPIRED,
    }
    for now, expected in times.items():
        with time_machine.travel(now, tick=False):
            assert answer(token, body, {NAME: captured["secret"]}) == expected


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
def test_the_name_of_the_secret_that_signed_is_answered(name: str) -> None:
    assert answer(token_of(claims(), secret=MANY_SECRETS[name]), secrets=MANY_SECRETS) == name
    assert answer(token_of(claims(iat=NOW + 10), secret=MANY_SECRETS[name]), secrets=MANY_SECRETS) == name


def test_the_first_of_two_names_of_the_same_secret_is_answered() -> None:
    assert answer(GOOD, secrets={"A": OTHER, "B": SECRET, "C": SECRET}) == "B"


@pytest.mark.parametrize(
    ("changed", "refusal"),
    [
        ({"exp": ABSENT}, Refusal.NO_EXPIRY),
        ({"exp": NOW - 90}, Refusal.EXPIRED),
        ({"iat": NOW + 600}, Refusal.NOT_YET_VALID),
        ({"checksum_sha256": ABSENT}, Refusal.NO_CHECKSUM),
        ({"checksum_sha256": "0"}, Refusal.CHECKSUM_MISMATCH),
        ({"iat": "tomorrow"}, Refusal.MALFORMED_TOKEN),
    ],
    ids=lambda value: value.name if isinstance(value, Refusal) else "",
)
@pytest.mark.parametrize("name", MANY_SECRETS)
def test_of_several_secrets_the_one_that_signed_gives_the_reason(
    name: str, changed: dict[str, object], refusal: Refusal
) -> None:
    assert answer(token_of(claims(**changed), secret=MANY_SECRETS[name]), secrets=MANY_SECRETS) is refusal


@pytest.mark.parametrize(
    "secrets", [{}, {"A": ""}, {"A": "", "B": OTHER}, {"A": "\udc80"}], ids=["none", "empty", "empty too", "surrogate"]
)
def test_secrets_that_are_none_accept_nothing(secrets: dict[str, str]) -> None:
    for token in (GOOD, token_of(claims(), secret=""), token_of(claims(iat=NOW + 10), secret="")):
        assert isinstance(answer(token, secrets=secrets), Refusal)


def test_an_empty_secret_beside_the_right_one_does_no_harm() -> None:
    assert answer(GOOD, secrets={"A": "", "B": SECRET}) == "B"


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
    "a type nobody knows": json.dumps({"event": {"eventId": "a", "eventType": "radiation"}}).encode(),
}
"""Shapes that DT has sent, or may send, on most of which the client library fails after it has verified them."""

NO_EVENTS = {
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
def test_a_genuine_event_is_accepted_whatever_it_lacks(body: bytes) -> None:
    assert verify(push(sign(body, SECRET, NOW), body), SECRETS) == NAME
    assert answer(token_of(claims(body=body, iat=NOW + 10)), body) == NAME
    assert Event.from_body(body, datetime.fromtimestamp(NOW, UTC)).id


@pytest.mark.parametrize("body", NO_EVENTS.values(), ids=NO_EVENTS)
def test_a_genuine_push_is_accepted_whatever_it_holds(body: bytes) -> None:
    assert verify(push(sign(body, SECRET, NOW), body), SECRETS) == NAME


@pytest.mark.parametrize("body", (GENUINE_SHAPES | NO_EVENTS).values(), ids=GENUINE_SHAPES | NO_EVENTS)
def test_no_shape_opens_a_way_round_the_checks(body: bytes) -> None:
    assert answer(token_of(claims(body=body), secret=OTHER), body) is Refusal.WRONG_SECRET
    assert answer(token_of(claims(body=body, exp=NOW - 90)), body) is Refusal.EXPIRED
    assert answer(token_of(claims(body=body, exp=ABSENT)), body) is Refusal.NO_EXPIRY
    assert answer(token_of(claims(body=body + b" ")), body) is Refusal.CHECKSUM_MISMATCH
    assert answer(token_of(claims(body=body, checksum_sha256=ABSENT)), body) is Refusal.NO_CHECKSUM


def test_no_single_character_of_a_token_can_be_another() -> None:
    for n, character in enumerate(GOOD):
        others = {"A", "B", "_", ".", chr(ord(character) ^ 1)} - {character}
        assert all(isinstance(answer(GOOD[:n] + other + GOOD[n + 1 :]), Refusal) for other in others)
        assert isinstance(answer(GOOD[:n] + GOOD[n + 1 :]), Refusal)


def test_no_single_bit_of_a_body_can_be_another() -> None:
    for n, byte in enumerate(BODY):
        for bit in range(8):
            changed = BODY[:n] + bytes([byte ^ 1 << bit]) + BODY[n + 1 :]
            assert answer(GOOD, changed) is Refusal.CHECKSUM_MISMATCH
    for changed in (b"", BODY[:-1], BODY[1:], BODY + b" ", b" " + BODY, BODY + BODY, BODY + b"\0"):
        assert answer(GOOD, changed) is Refusal.CHECKSUM_MISMATCH


@pytest.mark.parametrize("secret", ["s", "test-secret", "ключ", "x" * 500, SECRET])
@pytest.mark.parametrize("body", [BODY, b"", b"\x00\xff", b"x" * 300_000], ids=["event", "empty", "bytes", "long"])
def test_what_is_signed_is_accepted(secret: str, body: bytes) -> None:
    headers = sign(body, secret, NOW + 0.9)
    assert verify(push(headers, body), {"A": OTHER, "B": secret}) == "B"
    assert answer(headers[HEADER], body, {"A": OTHER}) is Refusal.WRONG_SECRET


def test_signing_gives_the_headers_and_claims_that_dt_sends() -> None:
    headers = sign(BODY, SECRET, NOW + 0.9)
    head, told, _ = (
        json.loads(base64.urlsafe_b64decode(part + "==")) for part in [*headers[HEADER].split(".")[:2], "e30"]
    )
    again = json.loads(base64.urlsafe_b64decode(sign(BODY, SECRET, NOW)[HEADER].split(".")[1] + "=="))
    real = PUSHES[0]["headers"][HEADER].split(".")
    assert set(headers) == {"Content-Type", HEADER}
    assert headers["Content-Type"] == "application/json"
    assert head == json.loads(base64.urlsafe_b64decode(real[0] + "=="))
    assert told == claims(jti=told["jti"])
    assert told.keys() == json.loads(base64.urlsafe_b64decode(real[1] + "==")).keys()
    assert len(told["jti"]) == 20
    assert told["jti"] != again["jti"]


def test_no_refusal_log_warning_or_print_shows_secret_token_or_body(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = {"LONG": f"MARKED-{SECRET}", "SHORT": "MARKED-short", "ODD": "MARKED-\udc80"}
    body = b'{"event":{"eventId":"MARKED-id","eventType":"MARKED-type"}}'
    odd_claims: list[dict[str, object]] = [{}, {"exp": ABSENT}, {"exp": 0}, {"exp": "MARKED"}, {"iat": NOW + 600}]
    odd_headers = [{"alg": "MARKED"}, {"alg": "HS256", "kid": 5}, {"alg": "HS256", "crit": ["MARKED"]}]
    tokens = [token for token, _ in REFUSED.values()]
    for secret in (secrets["LONG"], secrets["SHORT"]):
        tokens += [token_of(claims(**changed), secret=secret) for changed in odd_claims]
        tokens += [token_of(claims(body=body), header, secret) for header in odd_headers]
    told: list[str] = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for token in tokens:
            with pytest.raises(Refused) as refused:
                verify(push({HEADER: token}, body), secrets)
            error = refused.value
            assert (str(error), error.args) == (error.refusal.value, (error.refusal.value,))
            assert (error.__cause__, error.__context__) == (None, None)
            told += [str(error), repr(error), *traceback.format_exception(error)]
        for body in GENUINE_SHAPES.values():
            verify(push(sign(body, secrets["SHORT"], NOW), body), secrets)
    told += [str(warning.message) for warning in warned] + [caplog.text, *capfd.readouterr()]
    shown = "\n".join(told)
    parts = {part for token in tokens for part in token.split(".") if len(part) > 6}
    assert "MARKED" not in shown
    assert "Simulated" not in shown
    assert [part for part in parts if part in shown] == []


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


def test_a_short_secret_is_not_complained_about_at_every_push() -> None:
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
def test_a_credentials_file_that_the_client_library_fails_on_is_one_error_of_ours(
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


MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LATIN_1 = st.characters(max_codepoint=255)
ODD = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([10**400, "\ud800"])
)
ANY_JSON = st.recursive(ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
BODIES = st.binary(max_size=40) | st.sampled_from([BODY, *GENUINE_SHAPES.values()])


def is_proof(token: str, body: bytes, secret: str) -> bool:
    """Whether a token has a right HMAC with SHA-256, an expiry, and the SHA-256 of the body; all told from scratch."""
    signed, _, signature = token.rpartition(".")
    right = hmac.digest(secret.encode(), signed.encode(), "sha256")
    head, told = (json.loads(base64.urlsafe_b64decode(part + "==")) for part in signed.split("."))
    return (
        base64.urlsafe_b64decode(signature + "==") == right
        and head["alg"] == "HS256"
        and int(told["exp"]) > NOW - LEEWAY_SECONDS
        and int(told.get("iat", 0)) <= NOW + LEEWAY_SECONDS
        and int(told.get("nbf", 0)) <= NOW + LEEWAY_SECONDS
        and told["checksum_sha256"] == hashlib.sha256(body).hexdigest()
    )


def assert_believed_only_with_proof(token: str, body: bytes) -> None:
    result = answer(token, body, {"A": OTHER, "B": SECRET})
    assert result not in ("A", "B") or is_proof(token, body, {"A": OTHER, "B": SECRET}[result])


@MANY
@given(token=st.text(LATIN_1, max_size=200) | st.text("eyJ.-_=,", max_size=60), body=BODIES)
def test_no_text_is_a_token(token: str, body: bytes) -> None:
    assert answer(token, body) in (Refusal.MALFORMED_TOKEN, Refusal.WRONG_ALGORITHM)


@MANY
@given(
    where=st.integers(0, len(GOOD)),
    length=st.integers(0, 6),
    put=st.text(LATIN_1, max_size=4) | st.sampled_from([".", "=", ",", "==", GOOD]),
    body=st.just(BODY) | BODIES,
)
def test_a_changed_token_is_believed_only_with_proof(where: int, length: int, put: str, body: bytes) -> None:
    assert_believed_only_with_proof(GOOD[:where] + put + GOOD[where + length :], body)


@MANY
@given(
    changed=st.dictionaries(
        st.sampled_from(["exp", "iat", "nbf", "checksum_sha256", "aud", "iss"]), ANY_JSON, max_size=3
    ),
    header=st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "b64", "zip"]), ANY_JSON, max_size=2),
    secret=st.sampled_from([SECRET, OTHER, "", "neither"]),
    body=BODIES,
)
def test_a_token_with_anything_in_it_is_believed_only_with_proof(
    changed: dict[str, Any], header: dict[str, Any], secret: str, body: bytes
) -> None:
    assert_believed_only_with_proof(token_of(claims(body=body, **changed), {"alg": "HS256"} | header, secret), body)


@MANY
@given(header=ANY_JSON.map(json.dumps) | st.text(max_size=30), told=ANY_JSON.map(json.dumps) | st.text(max_size=30))
def test_any_signed_parts_raise_nothing_but_refused(header: str, told: str) -> None:
    assert isinstance(answer(token_of(told.encode("utf-8", "replace"), header.encode("utf-8", "replace"))), Refusal)


@MANY
@given(
    headers=st.dictionaries(
        st.sampled_from([HEADER, "Content-Type", "Content-Encoding", "Cookie", "X-Dt", "Content-Length", "Host"]),
        st.text(LATIN_1, max_size=20),
    ),
    body=BODIES,
)
def test_any_headers_raise_nothing_but_refused(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(Refused):
        verify(push(headers, body), SECRETS)


@MANY
@given(
    body=BODIES,
    extra=st.dictionaries(st.sampled_from(["aud", "sub", "jti", "iss", "checksum", "new"]), ANY_JSON),
    ahead=st.integers(-3000, LEEWAY_SECONDS),
)
def test_whoever_has_the_secret_is_believed_whatever_else_stands_in_the_token(
    body: bytes, extra: dict[str, Any], ahead: int
) -> None:
    assert answer(token_of(claims(NOW + ahead, body, **extra)), body) == NAME


@MANY
@given(body=BODIES, secret=st.text(st.characters(categories=["L", "N"]), min_size=1), age=st.floats(-60, 3659))
def test_sign_and_verify_agree(body: bytes, secret: str, age: float) -> None:
    assert verify(push(sign(body, secret, NOW - age), body), {"A": OTHER, "B": secret}) == "B"
