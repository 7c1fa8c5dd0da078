"""Coverage-guided fuzzing of everything that processes a push: token, headers, body and decoder.

    python fuzz/fuzz_push.py MINUTES

An input is a push in parts, separated by zero bytes: two letters, further headers, the token in one part or two, the
body. The first letter says how the token is made: "r" uses its part as it is, anything else signs a JOSE header and
claims, in which "@now", @sha256 and the like are replaced with the right values. The exit code is 1 when one of the
assertions below fails.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import math
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))
with atheris.instrument_imports(include=["receiver", "jwt", "dtintegrations", "disruptive"]):
    from receiver.errors import NotAnEvent, Rejected, Rejection
    from receiver.event import TYPES, Event, event_id
    from receiver.signature import HEADER, LEEWAY_SECONDS, verify
    from receiver.simulator import Simulator

from flask import Request
from werkzeug.test import EnvironBuilder

SECRETS = {"OLD": "the secret of a connector that is gone", "NEW": "sh0rt"}
EVENT_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
HEAD = b'{"alg":"HS256","typ":"JWT"}'
CLAIMS = b'{"checksum":"@sha1","checksum_sha256":"@sha256","exp":"@soon","iat":"@now","jti":"cpbg96t1isjlr2vdorc0"}'
MAX_INPUT_BYTES = 8192
MAX_INPUT_SECONDS = 10
DAY_SECONDS = 86400
MAX_FINDINGS = 20
ENVIRONMENT = EnvironBuilder(method="POST").get_environ()
NAMES = {"content-type": "CONTENT_TYPE", "content-length": None}


class Push:
    """A push as an input describes it, with claims for the time `signed_at`.

    If it is `genuine`, its token is as DT makes it, and the push must be verified whatever its headers and body are.
    """

    def __init__(self, data: bytes, signed_at: float) -> None:
        letters, headers, rest = (*data.split(b"\0", 2), b"", b"")[:3]
        self.legacy_sha1 = letters[1:2] == b"l"
        self.headers = headers
        if letters[:1] == b"r":
            token, self.body = (*rest.split(b"\0", 1), b"")[:2]
            self.token, self.genuine = token.decode("latin-1"), False
        else:
            head, claims, self.body = (*rest.split(b"\0", 2), b"", b"")[:3]
            secret = SECRETS["NEW" if letters[:1] == b"n" else "OLD"]
            self.token = signed(head, filled(claims, self.body, signed_at), secret)
            self.genuine = (head, claims) == (HEAD, CLAIMS)

    def request(self) -> Request:
        """The push as intake verifies it."""
        environ = ENVIRONMENT | {"CONTENT_LENGTH": str(len(self.body)), "wsgi.input": io.BytesIO(self.body)}
        for line in self.headers.split(b"\n"):
            name, _, value = line.decode("latin-1").partition(":")
            key = NAMES.get(name.lower(), f"HTTP_{name.upper().replace('-', '_')}")
            if key:
                environ[key] = value.strip()
        environ[f"HTTP_{HEADER.upper().replace('-', '_')}"] = self.token
        request = Request(environ)
        assert request.get_data(cache=True) == self.body, "the raw body is not what was sent"
        return request


def signed(head: bytes, claims: bytes, secret: str) -> str:
    unsigned = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (head, claims))
    mac = base64.urlsafe_b64encode(hmac.digest(secret.encode(), unsigned, "sha256")).rstrip(b"=")
    return (unsigned + b"." + mac).decode()


def filled(claims: bytes, body: bytes, now: float) -> bytes:
    values = {
        b"@sha256": hashlib.sha256(body).hexdigest(),
        b"@sha1": hashlib.sha1(body, usedforsecurity=False).hexdigest(),
        b'"@now"': int(now),
        b'"@soon"': int(now) + 3600,
        b'"@past"': int(now) - 3600,
        b'"@edge"': int(now) - LEEWAY_SECONDS + 5,
        b'"@ahead"': int(now) + LEEWAY_SECONDS - 5,
    }
    for name, value in values.items():
        claims = claims.replace(name, str(value).encode())
    return claims


def judge(push: Push) -> str:
    """Check every assertion for a push; its outcome. Raises the error of the first assertion that fails."""
    request = push.request()
    try:
        name = verify(request, SECRETS, legacy_sha1=push.legacy_sha1)
    except Rejected as error:
        name, outcome = None, Rejection(error.rejection).value
    else:
        assert_verified(push, SECRETS[name])
        outcome = "verified"
    assert name or not push.genuine, "a genuine push was rejected"
    assert request.get_data() == push.body, "the raw body was lost"
    return f"{outcome}, {decode(push.body)}"


def assert_verified(push: Push, secret: str) -> None:
    """The token has a valid HMAC with SHA-256, is not expired, and belongs to this body; checked without a library."""
    unsigned, _, signature = push.token.rpartition(".")
    head, claims = (json.loads(unpadded(part)) for part in unsigned.split("."))
    assert hmac.compare_digest(unpadded(signature), hmac.digest(secret.encode(), unsigned.encode(), "sha256"))
    assert head["alg"] == "HS256"
    assert int(claims["exp"]) > time.time() - LEEWAY_SECONDS - MAX_INPUT_SECONDS
    assert int(claims.get("iat", 0)) <= time.time() + LEEWAY_SECONDS
    assert int(claims.get("nbf", 0)) <= time.time() + LEEWAY_SECONDS
    if push.legacy_sha1 and claims.get("checksum_sha256") is None:
        assert claims["checksum"] == hashlib.sha1(push.body, usedforsecurity=False).hexdigest()
    else:
        assert claims["checksum_sha256"] == hashlib.sha256(push.body).hexdigest()


def unpadded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def decode(body: bytes) -> str:
    """Decode a body as the dispatcher and its sinks do."""
    received_at = datetime.now(UTC)
    try:
        name = event_id(body)
    except NotAnEvent:
        name = None
    try:
        event = Event.from_body(body, received_at)
    except NotAnEvent:
        assert name is None, "intake finds an id, and the dispatcher none"
        return "not an event"
    assert event.id == name
    assert EVENT_ID.fullmatch(event.id)
    assert (event.body, event.received_at) == (body, received_at)
    assert event.occurred_at.utcoffset() == timedelta(0)
    assert all(isinstance(text, str) for pair in event.labels.items() for text in pair)
    json.dumps([event.data, event.labels], allow_nan=False)
    for reading in event.readings():
        assert isinstance(reading.value, int | float)
        assert math.isfinite(reading.value)
        assert (reading.event_id, reading.device_id, reading.time.utcoffset()) == (name, event.device_id, timedelta(0))
    assert len(repr(event)) < MAX_INPUT_BYTES
    assert event == Event.from_body(body, received_at)
    assert hash(event) == hash(Event.from_body(body, received_at))
    return f"event, {'typed' if event.typed is not None else 'untyped'}"


def seeds() -> list[bytes]:
    """Genuine pushes of every type, and pushes that are rejected or not an event for every known reason."""
    simulator = Simulator(1)
    bodies = [simulator.body(event_type, samples=samples) for event_type in TYPES for samples in (1, 3)]
    body = bodies[0]
    odd = [
        b"",
        b"[]",
        b"null",
        b"[" * 5000,
        b"\xff",
        b"9" * 5000,
        b'{"event":{"eventId":"\\ud800","eventType":"touch"}}',
        b'{"event":{"eventId":"a","eventType":"co2","data":{"co2":{"ppm":1e999}}},"labels":{"a":null,"b":[3]}}',
        b'{"event":{"eventId":"a","eventType":"x","timestamp":"0001-01-01T00:00:00+23:59"},"labels":null}',
        *(b'{"event":{"eventId":"a","eventType":"x"},"labels":{"a":' + b"[" * n + b"]" * n + b"}}" for n in (400, 980)),
    ]
    heads = [
        b'{"alg":"HS256"}',
        b'{"alg":"none"}',
        b'{"alg":"HS512"}',
        b'{"alg":"HS256","kid":5}',
        b'{"alg":"HS256","crit":["b64"],"b64":false}',
        b"[]",
    ]
    claims = [
        CLAIMS.replace(b"@soon", b"@past"),
        CLAIMS.replace(b"@soon", b"@edge"),
        CLAIMS.replace(b"@now", b"@ahead"),
        CLAIMS.replace(b"@now", b"@soon"),
        CLAIMS.replace(b'"exp":"@soon",', b""),
        *(CLAIMS.replace(b'"@soon"', odd_time) for odd_time in (b"null", b"1e308", b"NaN", b'"4102444800"', b"true")),
        CLAIMS.replace(b'"@sha256"', b"null"),
        CLAIMS.replace(b"@sha256", b"@sha1"),
        CLAIMS.replace(b'"jti"', b'"nbf":"@ahead","aud":[1],"sub":5,"iss":null,"jti"'),
        CLAIMS.replace(b"checksum_", b""),
        b"{}",
        b"[]",
    ]
    durable = filled(CLAIMS, body, time.time() + DAY_SECONDS).replace(b'"iat"', b'"issued"')
    tokens = [signed(HEAD, durable, secret).encode() for secret in (*SECRETS.values(), "neither")]
    headers = b"Content-Type: application/x-www-form-urlencoded\nContent-Encoding: gzip\nCookie: a=b"
    return [
        *(b"\0".join([letters, b"", HEAD, CLAIMS, one]) for one in bodies + odd for letters in (b"o", b"n")),
        *(b"\0".join([b"o", b"", head, CLAIMS, body]) for head in heads),
        *(b"\0".join([letters, b"", HEAD, one, body]) for one in claims for letters in (b"n", b"nl")),
        *(b"\0".join([b"r", headers, token, body]) for token in (*tokens, tokens[0][:-1], tokens[0] + b",x", b"a.b.c")),
        b"\0".join([b"n", headers, HEAD, CLAIMS, body]),
    ]


WORDS = [
    *("@now", "@soon", "@past", "@edge", "@ahead", "@sha1", "@sha256", "HS256", "none", "alg", "kid", "crit", "b64"),
    *("exp", "iat", "nbf", "aud", "jti", "checksum", "checksum_sha256", "event", "eventId", "eventType", "data"),
    *("targetName", "timestamp", "updateTime", "labels", "metadata", "deviceId", "projectId", "samples", "sampleTime"),
    *("isBackfilled", "value", "true", "false", "null", "NaN", "Infinity", "1e999", "-0", "\\\\ud800", "\\\\u0000"),
    *("2026-01-31T12:00:00.123456789Z", "9999-12-31T23:59:59-01:00", "\\x00", "\\xff", "X-Dt-Signature: ", *TYPES),
]


ODD = [
    *(None, True, False, 0, -1, 0.5, 1e308, float("inf"), 10**400, "", "x", "1", "\ud800", "a\r\nb", [], {}, [[]]),
    *({"a": 1}, "@now", "@soon", "@past", "@edge", "@ahead", "@sha1", "@sha256", "HS256", "none", "PRESENT"),
    *("projects/a/devices/b", "2026-01-31T12:00:00Z", "0001-01-01T00:00:00+23:59", "24:00", *TYPES),
    "9999-12-31T23:59:59.999999999-23:59",
    [{"value": 1, "sampleTime": "2026-01-31"}, {"value": 2}, {"value": None}, 3],
]
"""Values with which others are replaced."""


def mutate(data: bytes, longest: int, seed: int) -> bytes:
    """The fuzzer's own mutation, or half the time a changed value in a part that is JSON."""
    rng = random.Random(seed)
    parts = data.split(b"\0")
    if len(parts) > 4 and rng.random() < 0.2:
        parts[2:4] = HEAD, CLAIMS
    number = rng.randrange(len(parts))
    if rng.random() < 0.5:
        try:
            parts[number] = json.dumps(changed(json.loads(parts[number]), rng), separators=(",", ":")).encode()
            if len(mutated := b"\0".join(parts)) <= longest:
                return mutated
        except (ValueError, RecursionError):
            pass
    return bytes(atheris.Mutate(b"\0".join(parts)[:longest], longest))


def changed(document: Any, rng: random.Random) -> Any:
    """A document with one value replaced, removed or added."""
    if not isinstance(document, dict | list) or not document or rng.random() < 0.1:
        return rng.choice(ODD)
    copy = document.copy()
    key = rng.choice(list(document)) if isinstance(document, dict) else rng.randrange(len(document))
    if rng.random() < 0.1:
        del copy[key]
    elif rng.random() < 0.1 and isinstance(copy, dict):
        copy[rng.choice(WORDS)] = rng.choice(ODD)
    else:
        copy[key] = changed(copy[key], rng)
    return copy


class Run:
    """Inputs until a time, their outcomes, and the assertions that failed."""

    def __init__(self, seconds: float, folder: str) -> None:
        self.folder = folder
        self.started = time.monotonic()
        self.end = self.started + seconds
        self.inputs = 0
        self.outcomes: dict[str, int] = {}
        self.findings: dict[str, str] = {}

    def try_one(self, data: bytes) -> None:
        """Judge one input. The fuzzer calls this repeatedly; it ends the process when the time is over."""
        self.inputs += 1
        try:
            outcome = judge(Push(data, time.time()))
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        except BaseException as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
            self.findings.setdefault(place, f"{traceback.format_exc()}with the input {data!r}")
        if time.monotonic() > self.end or len(self.findings) >= MAX_FINDINGS:
            self.finish()

    def finish(self) -> None:
        for finding in self.findings.values():
            print(f"\n{finding}")
        print("\nOutcomes:")
        for outcome, count in sorted(self.outcomes.items(), key=lambda item: -item[1]):
            print(f"{count:>12}  {outcome}")
        minutes = (time.monotonic() - self.started) / 60
        print(f"{self.inputs} inputs in {minutes:.1f} minutes, {len(self.findings)} findings")
        sys.stdout.flush()
        shutil.rmtree(self.folder, ignore_errors=True)
        os._exit(1 if self.findings else 0)


def main() -> None:
    if len(sys.argv) != 2 or not re.fullmatch(r"\d+(\.\d+)?", sys.argv[1]):
        sys.exit(__doc__)
    folder = tempfile.mkdtemp(prefix="fuzz-push-")
    corpus, words = Path(folder, "corpus"), Path(folder, "words")
    corpus.mkdir()
    for number, seed in enumerate(seeds()):
        (corpus / f"{number:03}").write_bytes(seed)
    words.write_text("".join(f'"{word}"\n' for word in WORDS), encoding="ascii")
    run = Run(float(sys.argv[1]) * 60, folder)
    options = [f"-max_len={MAX_INPUT_BYTES}", f"-timeout={MAX_INPUT_SECONDS}", "-rss_limit_mb=2048"]
    options += [f"-dict={words}", f"-artifact_prefix={folder}/", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], run.try_one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
