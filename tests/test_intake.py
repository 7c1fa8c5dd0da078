"""The front door over HTTP: what every kind of push is answered, and what it leaves in the journal."""

from __future__ import annotations

import base64
import gzip
import hashlib
import hmac
import json
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
import urllib3
from conftest import CSV_ONLY, TEST_SECRET, Running, StartReceiver

from receiver.demo import value
from receiver.event import TYPES
from receiver.signature import HEADER, sign
from receiver.simulator import Simulator

LIMIT = 256 * 1024
HINT = f"POST / takes the pushes of a DT Data Connector, signed in {HEADER}; there are also /healthz, /readyz, /metrics"
MARK = "Zm9yYmlkZGVu"
"""Stands in bodies, tokens and headers of refused pushes, and nowhere else."""

Headers = dict[str, str]
Claims = dict[str, Any]


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("receiver"), CSV_ONLY, None, {})
    try:
        yield running.start()
    finally:
        running.kill_all()


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A receiver whose pages need a token."""
    running = Running(tmp_path_factory.mktemp("closed"), CSV_ONLY + CLOSED, None, {})
    try:
        yield running.start()
    finally:
        running.kill_all()


@dataclass(frozen=True)
class Journal:
    """What the journal file and /metrics tell: the ids kept, and how many pushes got which answer."""

    events: frozenset[str]
    quarantined: frozenset[str]
    answers: dict[tuple[int, str], int]

    @classmethod
    def of(cls, receiver: Running) -> Journal:
        page = receiver.http.request("GET", f"{receiver.url}/metrics").data.decode()
        counters = re.findall(r'^receiver_pushes_total\{answer="(.*)",status="(\d+)"\} (\S+)$', page, re.MULTILINE)
        with closing(sqlite3.connect(f"file:{receiver.folder}/data/journal.sqlite?mode=ro", uri=True)) as file:
            events = frozenset(row[0] for row in file.execute("SELECT id FROM events"))
            quarantined = frozenset(row[0] for row in file.execute("SELECT id FROM quarantine"))
        assert value(page, "receiver_quarantined") == len(quarantined)
        return cls(events, quarantined, {(int(status), answer): int(float(n)) for answer, status, n in counters})

    def after(self, status: int, text: str, event: str | None = None, quarantined: str | None = None) -> Journal:
        """This journal after one push with that answer, which left nothing but what is named."""
        return Journal(
            self.events | ({event} if event else set()),
            self.quarantined | ({quarantined} if quarantined else set()),
            {**self.answers, (status, text): self.answers.get((status, text), 0) + 1},
        )


def encoded(part: object) -> bytes:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def token(head: object, claims: object, key: str = TEST_SECRET, digest: str = "sha256") -> str:
    """A signed token of any shape, made without the library that verifies it. Bytes are taken as they are."""
    signed = encoded(head) + b"." + encoded(claims)
    return (signed + b"." + encoded(hmac.new(key.encode(), signed, digest).digest())).decode()


HS256 = {"alg": "HS256", "typ": "JWT"}


def claims(body: bytes, **changes: object) -> Claims:
    """DT's claims for a body; None as a change leaves a claim out."""
    now = int(time.time())
    genuine = {
        "checksum": hashlib.sha1(body).hexdigest(),
        "checksum_sha256": hashlib.sha256(body).hexdigest(),
        "iat": now,
        "exp": now + 3600,
        "jti": "c82gg99hga35jc2afkeg",
    }
    return {name: value for name, value in {**genuine, **changes}.items() if value is not None}


def in_seconds(seconds: float) -> int:
    return int(time.time() + seconds)


def touch(name: str) -> bytes:
    """The body of an event of its own for each case."""
    event = json.loads(Simulator(0).body("touch"))
    event["event"]["eventId"] = event_id(name)
    return json.dumps(event).encode()


def event_id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:20]


def signed(body: bytes, **changes: object) -> Headers:
    return {HEADER: token(HS256, claims(body, **changes))}


def with_head(**head: object) -> Callable[[bytes], Headers]:
    return lambda body: {HEADER: token(head, claims(body))}


def with_claims(**changes: Any) -> Callable[[bytes], Headers]:
    """Changes that are functions are called when the push is made."""
    return lambda body: signed(body, **{name: part() if callable(part) else part for name, part in changes.items()})


def with_payload(payload: object) -> Callable[[bytes], Headers]:
    return lambda body: {HEADER: token(HS256, payload)}


def edited(edit: Callable[[str], str]) -> Callable[[bytes], Headers]:
    """A genuine token after an edit."""
    return lambda body: {HEADER: edit(signed(body)[HEADER])}


def parts(edit: Callable[[str, str, str], str]) -> Callable[[bytes], Headers]:
    return edited(lambda genuine: edit(*genuine.split(".")))


def later(seconds: float) -> Callable[[], int]:
    return lambda: in_seconds(seconds)


MISSING = "missing header X-Dt-Signature"
MALFORMED = "malformed token"
ALGORITHM = "token not signed with HS256"
WRONG_SECRET = "wrong secret"
NO_EXPIRY = "token without expiry"
EXPIRED = "expired"
NOT_YET = "not yet valid"
NO_CHECKSUM = "token without SHA-256 checksum"
MISMATCH = "checksum mismatch"

REFUSED: dict[str, tuple[Callable[[bytes], Headers], str]] = {
    "no headers": (lambda body: {}, MISSING),
    "token in Authorization": (lambda body: {"Authorization": "Bearer " + signed(body)[HEADER]}, MISSING),
    "token in a header with underscores": (lambda body: {"X_Dt_Signature": signed(body)[HEADER]}, MISSING),
    "token in a cookie": (lambda body: {"Cookie": f"{HEADER}={signed(body)[HEADER]}"}, MISSING),
    "empty token": (lambda body: {HEADER: ""}, MALFORMED),
    "blank token": (lambda body: {HEADER: "   "}, MALFORMED),
    "garbage": (lambda body: {HEADER: MARK}, MALFORMED),
    "null": (lambda body: {HEADER: "null"}, MALFORMED),
    "two dots": (lambda body: {HEADER: ".."}, MALFORMED),
    "three words": (lambda body: {HEADER: "a.b.c"}, MALFORMED),
    "8,000 letters": (lambda body: {HEADER: "a" * 8000}, MALFORMED),
    "8,000 dots": (lambda body: {HEADER: "." * 8000}, MALFORMED),
    "letters outside ASCII": (lambda body: {HEADER: "t\u00f6ken.\u00e9.\u00ff"}, MALFORMED),
    "token in quotes": (edited(lambda genuine: f'"{genuine}"'), MALFORMED),
    "token after Bearer": (edited(lambda genuine: f"Bearer {genuine}"), MALFORMED),
    "token twice": (edited(lambda genuine: f"{genuine},{genuine}"), MALFORMED),
    "token with a fourth part": (edited(lambda genuine: f"{genuine}.e30"), MALFORMED),
    "no signature and no dot": (parts(lambda head, payload, mac: f"{head}.{payload}"), MALFORMED),
    "head is not JSON": (lambda body: {HEADER: token(b"HS256", claims(body))}, MALFORMED),
    "head is a list": (lambda body: {HEADER: token(["HS256"], claims(body))}, MALFORMED),
    "head is null": (lambda body: {HEADER: token(None, claims(body))}, MALFORMED),
    "head is not UTF-8": (lambda body: {HEADER: token(b'{"alg":"HS256\xff"}', claims(body))}, MALFORMED),
    "head is 1,500 nested brackets": (lambda body: {HEADER: token(b"[" * 1500, claims(body))}, MALFORMED),
    "key id is a number": (with_head(alg="HS256", kid=7), MALFORMED),
    "unknown critical extension": (with_head(alg="HS256", crit=["zip"], zip="DEF"), MALFORMED),
    "payload is not JSON": (with_payload(b"exp"), MALFORMED),
    "payload is not UTF-8": (with_payload(b'{"exp":"\xff"}'), MALFORMED),
    "payload is a list": (with_payload([]), MALFORMED),
    "payload is a number": (with_payload(1), MALFORMED),
    "payload is null": (with_payload(None), MALFORMED),
    "payload is empty": (with_payload(b""), MALFORMED),
    "payload is 5,000 nested brackets": (with_payload(b"[" * 5000), MALFORMED),
    "payload holds a number of 5,000 digits": (with_payload(b'{"exp":' + b"9" * 5000 + b"}"), MALFORMED),
    "algorithm none, no signature": (
        lambda body: {HEADER: token({"alg": "none"}, claims(body)).rpartition(".")[0] + "."},
        ALGORITHM,
    ),
    "algorithm none": (with_head(alg="none"), ALGORITHM),
    "algorithm None": (with_head(alg="None"), ALGORITHM),
    "algorithm NONE": (with_head(alg="NONE"), ALGORITHM),
    "algorithm hs256": (with_head(alg="hs256"), ALGORITHM),
    "algorithm HS384": (
        lambda body: {HEADER: token({"alg": "HS384"}, claims(body), digest="sha384")},
        ALGORITHM,
    ),
    "algorithm HS512": (
        lambda body: {HEADER: token({"alg": "HS512"}, claims(body), digest="sha512")},
        ALGORITHM,
    ),
    "algorithm RS256": (with_head(alg="RS256"), ALGORITHM),
    "algorithm ES256": (with_head(alg="ES256"), ALGORITHM),
    "algorithm is empty": (with_head(alg=""), ALGORITHM),
    "algorithm is null": (with_head(alg=None), ALGORITHM),
    "algorithm is a number": (with_head(alg=256), ALGORITHM),
    "algorithm is a list": (with_head(alg=["HS256"]), ALGORITHM),
    "no algorithm": (with_head(typ="JWT"), ALGORITHM),
    "another secret": (lambda body: {HEADER: token(HS256, claims(body), "another secret")}, WRONG_SECRET),
    "empty secret": (lambda body: {HEADER: token(HS256, claims(body), "")}, WRONG_SECRET),
    "secret in capitals": (lambda body: {HEADER: token(HS256, claims(body), TEST_SECRET.upper())}, WRONG_SECRET),
    "secret with a line end": (lambda body: {HEADER: token(HS256, claims(body), TEST_SECRET + "\n")}, WRONG_SECRET),
    "half the secret": (lambda body: {HEADER: token(HS256, claims(body), TEST_SECRET[:5])}, WRONG_SECRET),
    "body as secret": (lambda body: {HEADER: token(HS256, claims(body), body.decode())}, WRONG_SECRET),
    "signed with SHA-512 as HS256": (lambda body: {HEADER: token(HS256, claims(body), digest="sha512")}, WRONG_SECRET),
    "empty signature": (parts(lambda head, payload, mac: f"{head}.{payload}."), WRONG_SECRET),
    "signature cut short": (parts(lambda head, payload, mac: f"{head}.{payload}.{mac[:40]}"), WRONG_SECRET),
    "signature of another token": (
        lambda body: {HEADER: ".".join([*signed(body)[HEADER].split(".")[:2], signed(b"{}")[HEADER].split(".")[2]])},
        WRONG_SECRET,
    ),
    "payload of another token": (
        parts(lambda head, payload, mac: f"{head}.{encoded(claims(b'{}')).decode()}.{mac}"),
        WRONG_SECRET,
    ),
    "another secret and expired": (
        lambda body: {HEADER: token(HS256, claims(body, exp=1), "another secret")},
        WRONG_SECRET,
    ),
    "no expiry": (with_claims(exp=None), NO_EXPIRY),
    "no claims": (with_payload({}), NO_EXPIRY),
    "expiry is null": (lambda body: {HEADER: token(HS256, {**claims(body), "exp": None})}, NO_EXPIRY),
    "expired two minutes ago": (with_claims(exp=later(-120)), EXPIRED),
    "expired an hour ago": (with_claims(iat=later(-7200), exp=later(-3600)), EXPIRED),
    "expired in 1970": (with_claims(exp=0), EXPIRED),
    "expired before 1970": (with_claims(exp=-1), EXPIRED),
    "expired, and of another body": (with_claims(exp=1, checksum_sha256="0" * 64), EXPIRED),
    "expiry is a word": (with_claims(exp="tomorrow"), MALFORMED),
    "expiry is a list": (with_claims(exp=[4102444800]), MALFORMED),
    "expiry is infinite": (lambda body: {HEADER: token(HS256, claims(body, exp=float("inf")))}, MALFORMED),
    "expiry is not a number": (lambda body: {HEADER: token(HS256, claims(body, exp=float("nan")))}, MALFORMED),
    "issued in ten minutes": (with_claims(iat=later(600)), NOT_YET),
    "issued in two minutes": (with_claims(iat=later(120)), NOT_YET),
    "not before ten minutes from now": (with_claims(nbf=later(600)), NOT_YET),
    "issued at a word": (with_claims(iat="now"), MALFORMED),
    "no checksum": (with_claims(checksum_sha256=None), NO_CHECKSUM),
    "no checksum of either kind": (with_claims(checksum=None, checksum_sha256=None), NO_CHECKSUM),
    "checksum is null": (lambda body: {HEADER: token(HS256, {**claims(body), "checksum_sha256": None})}, NO_CHECKSUM),
    "checksum is a number": (with_claims(checksum_sha256=0), NO_CHECKSUM),
    "checksum is true": (with_claims(checksum_sha256=True), NO_CHECKSUM),
    "checksum in a list": (lambda body: signed(body, checksum_sha256=[hashlib.sha256(body).hexdigest()]), NO_CHECKSUM),
    "checksum of another body": (with_claims(checksum_sha256=hashlib.sha256(b"{}").hexdigest()), MISMATCH),
    "checksum is empty": (with_claims(checksum_sha256=""), MISMATCH),
    "checksum cut short": (lambda body: signed(body, checksum_sha256=hashlib.sha256(body).hexdigest()[:-1]), MISMATCH),
    "checksum in capitals": (
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
    "token of the body with a line end": (lambda body: signed(body + b"\n"), MISMATCH),
    "token of the body without its last byte": (lambda body: signed(body[:-1]), MISMATCH),
    "token of the body with one byte changed": (lambda body: signed(body.replace(b"touch", b"tough", 1)), MISMATCH),
    "token of the body in gzip": (
        lambda body: {**signed(gzip.compress(body)), "Content-Encoding": "gzip"},
        MISMATCH,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_push_not_proven_genuine_is_refused_with_the_reason_and_leaves_nothing(name: str, receiver: Running) -> None:
    make, text = REFUSED[name]
    body = touch(name)
    before = Journal.of(receiver)
    assert receiver.push(body, make(body)) == (400, text)
    assert Journal.of(receiver) == before.after(400, text)


def two_signatures(receiver: Running, first: str, second: str, body: bytes) -> tuple[int, str]:
    headers = urllib3.HTTPHeaderDict([(HEADER, first), (HEADER, second)])
    answer = receiver.http.request("POST", receiver.url, body=body, headers=headers)
    return answer.status, answer.data.decode()


def test_two_signatures_are_refused_even_when_one_of_them_is_genuine(receiver: Running) -> None:
    body = touch("two signatures")
    genuine = signed(body)[HEADER]
    before = Journal.of(receiver)
    assert two_signatures(receiver, genuine, MARK, body) == (400, MALFORMED)
    assert two_signatures(receiver, MARK, genuine, body) == (400, MALFORMED)
    assert Journal.of(receiver) == before.after(400, MALFORMED).after(400, MALFORMED)


def changed(name: str, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The event of a case after a change of its decoded body."""
    payload = json.loads(touch(name))
    change(payload)
    return json.dumps(payload).encode()


def typed(event_type: str, data: object, **envelope: object) -> Callable[[str], bytes]:
    """An event of a type with those fields; None in the envelope leaves a key out."""

    def body(name: str) -> bytes:
        event = {
            "eventId": event_id(name),
            "targetName": "projects/c14u9p094l47cdv1o3pg/devices/emuc17m6d7lq0bgk44smcqg",
            "eventType": event_type,
            "data": {event_type: data},
            "timestamp": "2026-01-31T12:00:00.000000Z",
        }
        full = {"event": event, "labels": {}, "metadata": {"deviceId": "emuc17m6d7lq0bgk44smcqg"}, **envelope}
        return json.dumps({key: value for key, value in full.items() if value != "absent"}).encode()

    return body


AT = "2026-01-31T12:00:00Z"
SAMPLES = [{"value": number / 10, "sampleTime": f"2026-01-31T11:{number:02}:00Z"} for number in range(30)]
EVENTS: dict[str, Callable[[str], bytes]] = {
    "temperature without samples": typed("temperature", {"value": 21.5, "updateTime": AT, "isBackfilled": False}),
    "temperature without isBackfilled": typed("temperature", {"value": 21.5, "updateTime": AT, "samples": SAMPLES[:1]}),
    "temperature with neither": typed("temperature", {"value": 21.5, "updateTime": AT}),
    "temperature of 30 samples": typed("temperature", {"value": 0, "updateTime": AT, "samples": SAMPLES}),
    "temperature without updateTime": typed("temperature", {"value": 21.5}),
    "humidity without samples": typed("humidity", {"temperature": 20, "relativeHumidity": 40, "updateTime": AT}),
    "humidity without isBackfilled": typed(
        "humidity", {"temperature": 20, "relativeHumidity": 40, "updateTime": AT, "samples": []}
    ),
    "networkStatus without cloudConnectors": typed(
        "networkStatus",
        {"signalStrength": 60, "rssi": -70, "updateTime": AT, "transmissionMode": "LOW_POWER_STANDARD_MODE"},
    ),
    "networkStatus without transmissionMode": typed(
        "networkStatus", {"signalStrength": 60, "rssi": -70, "updateTime": AT, "cloudConnectors": []}
    ),
    "deskOccupancy without remarks": typed("deskOccupancy", {"state": "OCCUPIED", "updateTime": AT}),
    "no metadata": typed("touch", {"updateTime": AT}, metadata="absent"),
    "metadata is null": typed("touch", {"updateTime": AT}, metadata=None),
    "metadata is empty": typed("touch", {"updateTime": AT}, metadata={}),
    "no labels": typed("touch", {"updateTime": AT}, labels="absent"),
    "labels are null": typed("touch", {"updateTime": AT}, labels=None),
    "labels are a list": typed("touch", {"updateTime": AT}, labels=["name"]),
    "a label that is no string": typed("touch", {"updateTime": AT}, labels={"floor": 3, "room": None, "x": {"y": []}}),
    "a label with a lone surrogate": typed("touch", {"updateTime": AT}, labels={"name": "\ud800"}),
    "a label with CR LF": typed("touch", {"updateTime": AT}, labels={"name": "a\r\nb"}),
    "neither metadata nor labels": typed("touch", {"updateTime": AT}, metadata="absent", labels="absent"),
    "an unknown type": typed("soundLevel", {"decibel": 40, "updateTime": AT}),
    "a type of no letters": typed("", {}),
    "a type with CR LF": typed("touch\r\nX-A: b", {}),
    "a type with a lone surrogate": typed("\ud800", {}),
    "a type of 5,000 letters": typed("a" * 5000, {}),
    "data is null": typed("touch", None),
    "data is a word": typed("temperature", "warm"),
    "an unknown field": typed("touch", {"updateTime": AT, "force": 3}, sender="new"),
    "a value beyond every float": lambda name: typed("co2", {"ppm": 0})(name).replace(b'"ppm": 0', b'"ppm": 1e999'),
    "a value of 4,000 digits": lambda name: typed("co2", {"ppm": 0})(name).replace(b": 0}", b": " + b"9" * 4000 + b"}"),
    "a number of 5,000 digits": lambda name: touch(name)[:-1] + b', "n": ' + b"9" * 5000 + b"}",
    "NaN as a value": lambda name: typed("co2", {"ppm": float("nan")})(name),
    "an id of 64 characters": lambda name: changed(name, lambda body: body["event"].update(eventId="-_" * 32)),
    "an id of one character": lambda name: changed(name, lambda body: body["event"].update(eventId="0")),
    "an id of ids used in SQL": lambda name: changed(name, lambda body: body["event"].update(eventId="--drop_table")),
    "spaces around the object": lambda name: b" \r\n\t" + touch(name) + b"\n",
    "the id given twice": lambda name: touch(name).replace(b'{"eventId"', b'{"eventId": "overwritten", "eventId"'),
    "letters beyond the first plane": typed("touch", {"updateTime": AT}, labels={"name": "\U0001f321"}),
    **{
        f"an ordinary {event_type}": lambda name, event_type=event_type: Simulator(TYPES.index(event_type) + 1000).body(
            event_type, samples=30
        )
        for event_type in TYPES
    },
}


def with_id(new_id: object) -> Callable[[str], bytes]:
    return lambda name: changed(name, lambda body: body["event"].update(eventId=new_id))


NO_JSON = "the body is not JSON"
NO_OBJECT = "the body is not a JSON object"
NO_EVENT = "the body has no object 'event'"
NO_ID = "event.eventId is not 1 to 64 letters, digits, '_' or '-'"
NO_TYPE = "event.eventType is not a string"
NO_UTF8 = "the body is not UTF-8"
TOO_DEEP = "the body is nested too deeply"

QUARANTINED: dict[str, tuple[Callable[[str], bytes], str]] = {
    "nothing": (lambda name: b"", NO_JSON),
    "a word": (lambda name: b"touch", NO_JSON),
    "half an event": (lambda name: touch(name)[:-1], NO_JSON),
    "two events": (lambda name: touch(name) * 2, NO_JSON),
    "an event in gzip": (lambda name: gzip.compress(touch(name)), NO_UTF8),
    "an event behind a byte order mark": (lambda name: b"\xef\xbb\xbf" + touch(name), NO_JSON),
    "an event in UTF-16": (lambda name: touch(name).decode().encode("utf-16"), NO_UTF8),
    "a byte that is not UTF-8": (lambda name: touch(name).replace(b"Simulated", b"\xff"), NO_UTF8),
    "an overlong slash": (lambda name: touch(name).replace(b"Simulated", b"\xc0\xaf"), NO_UTF8),
    "a NUL after the event": (lambda name: touch(name) + b"\0", NO_JSON),
    "an event as a form": (lambda name: b"event=" + touch(name), NO_JSON),
    "100,000 nested brackets": (lambda name: b"[" * 100_000, TOO_DEEP),
    "50,000 closed nested brackets": (lambda name: b"[" * 50_000 + b"]" * 50_000, TOO_DEEP),
    "100,000 nested brackets in an event": (
        lambda name: touch(name)[:-1] + b', "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        TOO_DEEP,
    ),
    "an empty list": (lambda name: b"[]", NO_OBJECT),
    "an event in a list": (lambda name: b"[" + touch(name) + b"]", NO_OBJECT),
    "a number": (lambda name: b"42", NO_OBJECT),
    "null": (lambda name: b"null", NO_OBJECT),
    "NaN": (lambda name: b"NaN", NO_OBJECT),
    "true": (lambda name: b"true", NO_OBJECT),
    "a string": (lambda name: b'"event"', NO_OBJECT),
    "an empty object": (lambda name: b"{}", NO_EVENT),
    "event is null": (lambda name: b'{"event": null}', NO_EVENT),
    "event is a list": (lambda name: b'{"event": []}', NO_EVENT),
    "event is a string": (lambda name: b'{"event": "touch"}', NO_EVENT),
    "event in capitals": (lambda name: touch(name).replace(b'"event"', b'"EVENT"', 1), NO_EVENT),
    "event is empty": (lambda name: b'{"event": {}}', NO_ID),
    "no id": (lambda name: changed(name, lambda body: body["event"].pop("eventId")), NO_ID),
    "id is null": (with_id(None), NO_ID),
    "id is a number": (with_id(7), NO_ID),
    "id is a list": (with_id(["c82gg9catj3vmh4248og"]), NO_ID),
    "id is true": (with_id(True), NO_ID),
    "id is empty": (with_id(""), NO_ID),
    "id of 65 characters": (with_id("a" * 65), NO_ID),
    "id with a lone surrogate": (with_id("a\ud800"), NO_ID),
    "id with CR LF": (with_id("a\r\nX-A: b"), NO_ID),
    "id with a line end": (with_id("c82gg9catj3vmh4248og\n"), NO_ID),
    "id with a NUL": (with_id("a\0b"), NO_ID),
    "id with a space": (with_id("a b"), NO_ID),
    "id with a slash": (with_id("../a"), NO_ID),
    "id with letters outside ASCII": (with_id("\u00e9v\u00e9nement"), NO_ID),
    "id with digits outside ASCII": (with_id("\u0661\u0662"), NO_ID),
    "id like a formula": (with_id("=1+1"), NO_ID),
    "no type": (lambda name: changed(name, lambda body: body["event"].pop("eventType")), NO_TYPE),
    "type is null": (lambda name: changed(name, lambda body: body["event"].update(eventType=None)), NO_TYPE),
    "type is a number": (lambda name: changed(name, lambda body: body["event"].update(eventType=1)), NO_TYPE),
    "type is a list": (lambda name: changed(name, lambda body: body["event"].update(eventType=["touch"])), NO_TYPE),
}


ACCEPTED: dict[str, Callable[[bytes], Headers]] = {
    "as DT sends it": lambda body: sign(body, TEST_SECRET, time.time()),
    "issued in ten seconds": with_claims(iat=later(10)),
    "issued in 50 seconds": with_claims(iat=later(50)),
    "not before 50 seconds from now": with_claims(nbf=later(50)),
    "expired 30 seconds ago": with_claims(exp=later(-30)),
    "no time of issue": with_claims(iat=None),
    "no token id": with_claims(jti=None),
    "no SHA-1": with_claims(checksum=None),
    "a wrong SHA-1 beside the SHA-256": with_claims(checksum="0" * 40),
    "an audience": with_claims(aud="receiver"),
    "a subject that is a number": with_claims(sub=7),
    "a token id that is a number": with_claims(jti=7),
    "claims unknown today": with_claims(checksum_sha512="0", iss="disruptive-technologies.com"),
    "no token type": with_head(alg="HS256"),
    "a key id": with_head(alg="HS256", kid="1"),
    "blanks around the token": edited(lambda genuine: f"  {genuine}\t"),
    "header in small letters": lambda body: {HEADER.lower(): signed(body)[HEADER]},
    "header in capitals": lambda body: {HEADER.upper(): signed(body)[HEADER]},
    "a form": lambda body: {**signed(body), "Content-Type": "application/x-www-form-urlencoded"},
    "a multipart form": lambda body: {**signed(body), "Content-Type": "multipart/form-data; boundary=x"},
    "a multipart form without a boundary": lambda body: {**signed(body), "Content-Type": "multipart/form-data"},
    "plain text": lambda body: {**signed(body), "Content-Type": "text/plain; charset=utf-16"},
    "an unknown charset": lambda body: {**signed(body), "Content-Type": "application/json; charset=klingon"},
    "no valid content type": lambda body: {**signed(body), "Content-Type": ";;;"},
    "a content encoding that does not hold": lambda body: {**signed(body), "Content-Encoding": "gzip"},
    "a header of the user's own": lambda body: {**signed(body), "X-Tenant": "Oslo", "Authorization": "Basic eDp5"},
    "an override of the method": lambda body: {**signed(body), "X-HTTP-Method-Override": "DELETE"},
    "headers of a proxy": lambda body: {
        **signed(body),
        "X-Forwarded-For": "203.0.113.7",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "example.com",
        "Via": "1.1 vegur",
    },
    "an upgrade offered": lambda body: {**signed(body), "Connection": "Upgrade", "Upgrade": "h2c"},
    "a range": lambda body: {**signed(body), "Range": "bytes=0-1", "If-None-Match": "*", "Accept": "image/png"},
}


@dataclass(frozen=True)
class Batch:
    """Every genuine push of the tables, made side by side so that they share commits; the quarantined ones twice."""

    bodies: dict[str, bytes]
    answers: dict[str, list[tuple[int, str]]]
    before: Journal
    after: Journal


@pytest.fixture(scope="module")
def batch(receiver: Running) -> Batch:
    bodies = {f"event: {name}": make(name) for name, make in EVENTS.items()}
    bodies |= {f"no event: {name}": make(name) for name, (make, _) in QUARANTINED.items()}
    bodies |= {f"with: {name}": touch(f"with: {name}") for name in ACCEPTED}
    assert len(set(bodies.values())) == len(bodies)

    def push(name: str) -> list[tuple[int, str]]:
        kind, _, case = name.partition(": ")
        headers = ACCEPTED[case](bodies[name]) if kind == "with" else signed(bodies[name])
        return [receiver.push(bodies[name], headers) for _ in range(2 if kind == "no event" else 1)]

    before = Journal.of(receiver)
    with ThreadPoolExecutor(24) as threads:
        answers = dict(zip(bodies, threads.map(push, bodies), strict=True))
    return Batch(bodies, answers, before, Journal.of(receiver))


def kept(receiver: Running, table: str, key: str) -> list[tuple[object, ...]]:
    columns = {"events": "body", "quarantine": "why, body"}[table]
    with closing(sqlite3.connect(f"file:{receiver.folder}/data/journal.sqlite?mode=ro", uri=True)) as file:
        return file.execute(f"SELECT {columns} FROM {table} WHERE id = ?", [key]).fetchall()


def id_in(body: bytes) -> str:
    event_id: str = json.loads(body, parse_int=float)["event"]["eventId"]
    return event_id


@pytest.mark.parametrize("name", EVENTS)
def test_a_genuine_push_with_an_id_and_a_type_is_an_event_whatever_else_it_holds(
    name: str, receiver: Running, batch: Batch
) -> None:
    body = batch.bodies[f"event: {name}"]
    assert batch.answers[f"event: {name}"] == [(200, "accepted")]
    assert kept(receiver, "events", id_in(body)) == [(body,)]


@pytest.mark.parametrize("name", QUARANTINED)
def test_a_genuine_push_that_is_no_event_is_quarantined_once_with_its_body_and_the_reason(
    name: str, receiver: Running, batch: Batch
) -> None:
    body = batch.bodies[f"no event: {name}"]
    assert batch.answers[f"no event: {name}"] == [(200, "quarantined")] * 2
    assert kept(receiver, "quarantine", hashlib.sha256(body).hexdigest()) == [(QUARANTINED[name][1], body)]


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_genuine_push_is_accepted_whatever_comes_with_it(name: str, receiver: Running, batch: Batch) -> None:
    assert batch.answers[f"with: {name}"] == [(200, "accepted")]
    assert kept(receiver, "events", event_id(f"with: {name}")) == [(batch.bodies[f"with: {name}"],)]


def test_genuine_pushes_leave_themselves_in_the_journal_and_nothing_else(batch: Batch) -> None:
    events = {id_in(body) for name, body in batch.bodies.items() if "no event" not in name}
    others = {hashlib.sha256(body).hexdigest() for name, body in batch.bodies.items() if "no event" in name}
    assert batch.after.events == batch.before.events | events
    assert batch.after.quarantined == batch.before.quarantined | others
    counted = Counter(batch.before.answers)
    counted.update({(200, "accepted"): len(events), (200, "quarantined"): 2 * len(others)})
    assert batch.after.answers == counted


def filled(name: str, size: int) -> bytes:
    """An event of exactly that many bytes."""
    body = changed(name, lambda payload: payload["labels"].update(filling=""))
    return body.replace(b'"filling": ""', b'"filling": "' + b"a" * (size - len(body)) + b'"')


def push_in_chunks(receiver: Running, body: bytes, headers: Headers) -> tuple[int, str]:
    pieces = (body[start : start + 10_000] for start in range(0, len(body), 10_000))
    answer = receiver.http.request("POST", receiver.url, body=pieces, headers=headers, chunked=True)
    return answer.status, answer.data.decode()


def push_whole(receiver: Running, body: bytes, headers: Headers) -> tuple[int, str]:
    return receiver.push(body, headers)


PUSH = {"with Content-Length": push_whole, "in chunks": push_in_chunks}


@pytest.mark.parametrize("manner", PUSH)
def test_a_body_of_exactly_the_limit_is_accepted(manner: str, receiver: Running) -> None:
    body = filled(f"at the limit {manner}", LIMIT)
    assert len(body) == LIMIT
    before = Journal.of(receiver)
    assert PUSH[manner](receiver, body, signed(body)) == (200, "accepted")
    assert Journal.of(receiver) == before.after(200, "accepted", event=event_id(f"at the limit {manner}"))


@pytest.mark.parametrize("genuine", [True, False], ids=["genuine", "unsigned"])
@pytest.mark.parametrize("size", [LIMIT + 1, LIMIT + 2, 1024 * 1024], ids=["one over", "two over", "1 MiB"])
@pytest.mark.parametrize("manner", PUSH)
def test_a_body_over_the_limit_is_answered_413_and_leaves_nothing(
    manner: str, size: int, genuine: bool, receiver: Running
) -> None:
    body = filled(f"over the limit {manner} {size}", size)
    before = Journal.of(receiver)
    assert PUSH[manner](receiver, body, signed(body) if genuine else {}) == (413, "body too large")
    assert Journal.of(receiver) == before.after(413, "body too large")


def test_a_body_in_chunks_is_accepted(receiver: Running) -> None:
    body = touch("in chunks")
    assert push_in_chunks(receiver, body, signed(body)) == (200, "accepted")


def request(receiver: Running, method: str, path: str) -> tuple[int, str, str | None]:
    """A genuine push sent with another method or to another path; status, text and Allow of its answer."""
    body = touch(f"{method} {path}")
    answer = receiver.http.request(method, receiver.url + path, body=body, headers=signed(body), redirect=False)
    return answer.status, answer.data.decode(), answer.headers.get("Allow")


NOT_ALLOWED = f"Method Not Allowed. {HINT}"
NOT_FOUND = f"Not Found. {HINT}"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD", "TRACE", "PROPFIND", "FOO"])
def test_another_method_on_the_root_says_what_belongs_there_and_leaves_nothing(method: str, receiver: Running) -> None:
    before = Journal.of(receiver)
    text = "" if method == "HEAD" else NOT_ALLOWED
    assert request(receiver, method, "/") == (405, text, "POST")
    assert Journal.of(receiver) == before


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_the_pages_are_for_reading_only(method: str, path: str, receiver: Running) -> None:
    before = Journal.of(receiver)
    status, text, allow = request(receiver, method, path)
    assert (status, text, set((allow or "").split(", "))) == (405, NOT_ALLOWED, {"GET", "HEAD", "OPTIONS"})
    assert Journal.of(receiver) == before


UNKNOWN = ["/push", "/index.html", "/healthz/", "/healthz/x", "/HEALTHZ", "/%00", "/%ff", "/;a", "/%20", "/a//b"]
UNKNOWN += ["/%0d%0aX-A:%20b", "/" + "a" * 3000, "/static/app.py", "/%2e%2e/%2e%2e/etc/passwd", f"/{MARK}"]


@pytest.mark.parametrize("path", UNKNOWN, ids=lambda path: path[:30])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_path_is_not_found_and_leaves_nothing(method: str, path: str, receiver: Running) -> None:
    before = Journal.of(receiver)
    assert request(receiver, method, path) == (404, NOT_FOUND, None)
    assert Journal.of(receiver) == before


@pytest.mark.parametrize("path", ["/?x=1", "/?", "/?X-Dt-Signature=a", "/?%ff"])
def test_a_query_behind_the_root_does_not_matter(path: str, receiver: Running) -> None:
    assert request(receiver, "POST", path) == (200, "accepted", None)


def test_a_repeated_push_is_a_duplicate_and_changes_nothing(receiver: Running) -> None:
    body = touch("repeated")
    before = Journal.of(receiver)
    assert [receiver.push(body) for _ in range(3)] == [(200, "accepted"), (200, "duplicate"), (200, "duplicate")]
    accepted = before.after(200, "accepted", event=event_id("repeated"))
    assert Journal.of(receiver) == accepted.after(200, "duplicate").after(200, "duplicate")


def test_another_body_with_an_id_seen_before_is_a_duplicate_and_the_first_body_stays(receiver: Running) -> None:
    first, second = touch("same id"), filled("same id", 5000)
    assert receiver.push(first) == (200, "accepted")
    assert receiver.push(second) == (200, "duplicate")
    assert kept(receiver, "events", event_id("same id")) == [(first,)]


def at_once(receiver: Running, body: bytes, times: int) -> list[tuple[int, str]]:
    with ThreadPoolExecutor(times) as threads:
        return sorted(threads.map(lambda _: receiver.push(body), range(times)))


def test_of_20_equal_pushes_at_once_exactly_one_is_accepted(receiver: Running) -> None:
    before = Journal.of(receiver)
    assert at_once(receiver, touch("at once"), 20) == [(200, "accepted")] + [(200, "duplicate")] * 19
    expected = before.after(200, "accepted", event=event_id("at once"))
    for _ in range(19):
        expected = expected.after(200, "duplicate")
    assert Journal.of(receiver) == expected


def test_of_20_equal_pushes_at_once_that_are_no_event_one_is_kept(receiver: Running) -> None:
    before = Journal.of(receiver)
    assert at_once(receiver, b'["at once"]', 20) == [(200, "quarantined")] * 20
    after = Journal.of(receiver)
    assert after.events == before.events
    assert after.quarantined == before.quarantined | {hashlib.sha256(b'["at once"]').hexdigest()}


def test_a_good_push_beside_bad_ones_at_once_is_accepted(receiver: Running) -> None:
    body = touch("beside bad ones")
    bad = [make for make, _ in REFUSED.values()]
    with ThreadPoolExecutor(16) as threads:
        answers = [threads.submit(receiver.push, body, make(body)) for make in bad[: len(bad) // 2]]
        good = threads.submit(receiver.push, body)
        answers += [threads.submit(receiver.push, body, make(body)) for make in bad[len(bad) // 2 :]]
    assert good.result() == (200, "accepted")
    assert {answer.result()[0] for answer in answers} == {400}


def test_no_part_of_a_refused_push_and_no_secret_reaches_answer_log_or_metrics(receiver: Running) -> None:
    body = typed("touch", {"updateTime": AT}, labels={"name": MARK})("marked")
    tokens = [MARK, f"{MARK}.{MARK}.{MARK}", token({"alg": MARK}, {}), token(HS256, {"exp": MARK}), signed(b"")[HEADER]]
    headers = [{HEADER: each, "User-Agent": MARK, "Content-Type": MARK, "Cookie": MARK} for each in tokens]
    answers = [receiver.push(body, each) for each in headers]
    assert [status for status, _ in answers] == [400] * len(tokens)
    seen = receiver.log + repr(answers) + receiver.http.request("GET", f"{receiver.url}/metrics").data.decode()
    assert [each for each in (*tokens, TEST_SECRET, "Traceback", "emuproject") if each in seen] == []


def test_each_refused_push_is_one_line_in_the_log_with_reason_address_size_and_request(
    start_receiver: StartReceiver,
) -> None:
    receiver = start_receiver()
    before = len(receiver.log)
    assert receiver.push(b"12345", {HEADER: MARK, "X-Request-Id": "our-own_7"}) == (400, MALFORMED)
    assert [line.partition(" ")[2] for line in receiver.log[before:].splitlines()] == [
        "WARNING receiver.app push refused: malformed token (from 127.0.0.1, 5 bytes, request our-own_7)"
    ]


def request_id(receiver: Running, given: str | None) -> str:
    headers = {} if given is None else {"X-Request-Id": given}
    return receiver.http.request("POST", receiver.url, headers=headers).headers["X-Request-Id"]


def test_a_request_keeps_its_own_id_if_that_can_stand_in_a_log_and_gets_one_if_not(receiver: Running) -> None:
    assert [request_id(receiver, given) for given in ("a", "A-7_z", "0" * 64)] == ["a", "A-7_z", "0" * 64]
    replaced = [
        request_id(receiver, given) for given in (None, "", "a b", "0" * 65, "a,b", "\u00e9", 'a"', MARK + "%0a")
    ]
    assert [each for each in replaced if not re.fullmatch("[0-9a-f]{32}", each)] == []
    assert len(set(replaced)) == len(replaced)


CLOSED = """
[receiver]
legacy_sha1 = true
metrics_token = "token-of-the-pages"
"""


def test_with_legacy_sha1_a_token_may_carry_a_sha1_alone_and_must_be_right_in_all_else(
    start_receiver: StartReceiver,
) -> None:
    receiver = start_receiver(CSV_ONLY + CLOSED)
    body = touch("legacy")
    right, wrong = hashlib.sha1(body).hexdigest(), "0" * 40

    def legacy(secret: str = TEST_SECRET, **changes: object) -> tuple[int, str]:
        return receiver.push(body, {HEADER: token(HS256, claims(body, checksum_sha256=None, **changes), secret)})

    assert legacy(checksum=wrong) == (400, MISMATCH)
    assert legacy(checksum=right.upper()) == (400, MISMATCH)
    assert legacy(checksum=None) == (400, NO_CHECKSUM)
    assert legacy(checksum=7) == (400, NO_CHECKSUM)
    assert legacy(exp=1) == (400, EXPIRED)
    assert legacy(exp=None) == (400, NO_EXPIRY)
    assert legacy("another secret") == (400, WRONG_SECRET)
    assert receiver.push(body, signed(body, checksum_sha256="0" * 64)) == (400, MISMATCH)
    assert receiver.push(body, signed(body, checksum_sha256="")) == (400, MISMATCH)
    assert legacy() == (200, "accepted")


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic dG9rZW4=", "Bearer t\u00f6"])
def test_the_closed_pages_show_nothing_without_their_token(given: str | None, closed: Running) -> None:
    headers = {} if given is None else {"Authorization": given}
    metrics = closed.http.request("GET", f"{closed.url}/metrics", headers=headers)
    assert (metrics.status, metrics.data.decode(), metrics.headers["WWW-Authenticate"]) == (
        401,
        "Authorization: Bearer and [receiver] metrics_token are needed",
        "Bearer",
    )
    ready = closed.http.request("GET", f"{closed.url}/readyz", headers=headers)
    assert (ready.status, json.loads(ready.data)) == (200, {"ready": True})


def test_the_closed_pages_open_to_their_token(closed: Running) -> None:
    headers = {"Authorization": "Bearer token-of-the-pages"}
    assert b"receiver_quarantined 0.0" in closed.http.request("GET", f"{closed.url}/metrics", headers=headers).data
    ready = closed.http.request("GET", f"{closed.url}/readyz", headers=headers)
    assert (ready.status, json.loads(ready.data)) == (200, {"ready": True, "faults": [], "warnings": []})


def test_every_answer_to_a_push_is_one_plain_line(receiver: Running) -> None:
    body = touch("plain line")
    answers = [
        receiver.http.request("POST", receiver.url, body=body, headers=headers) for headers in (signed(body), {})
    ]
    assert [(answer.headers["Content-Type"], answer.headers["Content-Length"]) for answer in answers] == [
        ("text/plain; charset=utf-8", str(len("accepted"))),
        ("text/plain; charset=utf-8", str(len(MISSING))),
    ]


def test_the_table_of_bad_input_holds_at_least_150_named_cases() -> None:
    assert len(REFUSED) + len(QUARANTINED) + 2 * len(UNKNOWN) >= 150
