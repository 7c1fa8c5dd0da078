"""Pushes of every kind: genuine ones, and ones with something wrong in signature, claims, headers, framing or body."""

from __future__ import annotations

import base64
import gzip
import hashlib
import hmac
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from receiver.event import TYPES
from receiver.signature import ASYMMETRIC_HEADER, HEADER, LEEWAY_SECONDS
from receiver.simulator import Simulator

SECRETS = {"DT_SIGNATURE_SECRET": "sh0rt-Secret", "DT_SIGNATURE_SECRET__OLD": "the secret of a connector that is gone"}
ORGANIZATIONS = ("fuzzorganization0000", "another0organization")
ISSUER = "http://127.0.0.1:1/data-connector"
"""Nothing listens there: the keys come from the journal."""

MARK = "Zm9yYmlkZGVu"
"""Text in bodies and headers that must appear nowhere else."""

MAX_BODY_BYTES = 8192
REAL_PUSHES = Path(__file__).parent.parent / "tests" / "real_pushes.json"

Claims = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Push:
    """What a client sends: `data` follows the headers, and is as long as `length` says unless it is in chunks.

    `genuine` are the headers with a token as DT makes it: whoever trusts one of them has to verify the push.
    """

    headers: tuple[tuple[str, str], ...]
    data: bytes
    length: str | None
    genuine: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Key:
    """One of the keys of the made-up issuer."""

    id: str
    private: ec.EllipticCurvePrivateKey
    public: ec.EllipticCurvePublicKey

    def sign(self, unsigned: bytes) -> bytes:
        """As RFC 7518, section 3.4 says."""
        r, s = decode_dss_signature(self.private.sign(unsigned, ec.ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def token(self, claims: bytes, head: bytes | None = None) -> str:
        unsigned = _unsigned(_json({"alg": "ES256", "typ": "JWT", "kid": self.id}) if head is None else head, claims)
        return f"{unsigned.decode()}.{base64url(self.sign(unsigned)).decode()}"

    def jwk(self) -> dict[str, str]:
        point = self.public.public_numbers()
        x, y = (base64url(number.to_bytes(32, "big")).decode() for number in (point.x, point.y))
        return {"kid": self.id, "kty": "EC", "crv": "P-256", "x": x, "y": y}

    def pem(self) -> bytes:
        return self.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def new_key(name: str) -> Key:
    private = ec.generate_private_key(ec.SECP256R1())
    return Key(name, private, private.public_key())


class Pushes:
    """Makes one push after the other. The receiver knows `secrets` and `keys`, but not `others`."""

    def __init__(self, rng: random.Random, secrets: Sequence[str], keys: Sequence[Key], others: Sequence[Key]) -> None:
        self.keys, self.others = keys, others
        self._secrets = [secret.encode() for secret in secrets] or [b"none is known"]
        self._rng = rng
        simulator = Simulator(1, labels={"mark": MARK})
        self._bodies = [simulator.body(kind, samples=samples) for kind in TYPES for samples in (1, 3)]
        self._bodies += [push["body"].encode() for push in json.loads(REAL_PUSHES.read_bytes())["pushes"]]
        self._ids = [json.loads(body)["event"]["eventId"].encode() for body in self._bodies]
        self._sent: list[bytes] = []

    def make(self, now: int) -> Push:
        """The next push, at `now` in seconds since 1970."""
        rng = self._rng
        body = self._body()
        secret, key, framing = _pick(rng, SIGNING), _pick(rng, SIGNING), _pick(rng, FRAMINGS)
        length, data, headers = framing(body, rng)
        if rng.random() < 0.3:
            headers += rng.sample(FURTHER_HEADERS, rng.randrange(1, 4))
        further = {name for name, _ in headers}
        if secret is not None:
            headers.append((HEADER, secret(self, body, now, HEADER)))
        if key is not None:
            headers.append((ASYMMETRIC_HEADER, key(self, body, now, ASYMMETRIC_HEADER)))
        genuine = (
            {HEADER: secret, ASYMMETRIC_HEADER: key} if framing in COMPLETE and len(body) <= MAX_BODY_BYTES else {}
        )
        names = frozenset(name for name, sign in genuine.items() if sign is _genuine and name not in further)
        return Push(tuple(headers), data, length, names)

    def probe(self, now: int) -> Push:
        """A push signed with the first of the keys, and rejected once that key is known."""
        token = self.keys[0].token(_json(claims_of(ASYMMETRIC_HEADER, b"another body", now)))
        return Push(((ASYMMETRIC_HEADER, token),), b"", "0")

    def _body(self) -> bytes:
        rng = self._rng
        if self._sent and rng.random() < 0.1:
            return rng.choice(self._sent)
        number = rng.randrange(len(self._bodies))
        body = self._bodies[number].replace(self._ids[number], f"{rng.getrandbits(80):020x}".encode())
        for _ in range(_pick(rng, TIMES)):
            body = _pick(rng, BODY_CHANGES)(body, rng)
        if rng.random() < 0.05:
            self._sent = [*self._sent[-50:], body]
        return body

    def token(self, header: str, claims: bytes, head: bytes | None = None, *, known: bool = True) -> str:
        """A token for a header, signed with a secret or key that the receiver knows, or with another."""
        rng = self._rng
        if header == ASYMMETRIC_HEADER:
            if not known and rng.random() < 0.3:
                head = _json({"alg": "ES256", "kid": self.keys[0].id})
            return rng.choice(self.keys if known else self.others).token(claims, head)
        secret = rng.choice(self._secrets if known else [b"neither", b"x", self.keys[0].pem()])
        unsigned = _unsigned(b'{"alg":"HS256","typ":"JWT"}' if head is None else head, claims)
        return f"{unsigned.decode()}.{base64url(hmac.digest(secret, unsigned, 'sha256')).decode()}"

    def some_claims(self, header: str, body: bytes, now: int) -> bytes:
        """Claims with one or two of them changed, or something else."""
        rng = self._rng
        if rng.random() < 0.1:
            return rng.choice(ODD_TEXTS)
        claims = claims_of(header, body, now)
        for _ in range(rng.randrange(1, 3)):
            name = rng.choice(CLAIMS)
            if rng.random() < 0.2:
                claims.pop(name, None)
            elif name in TIMES_OF_CLAIMS and rng.random() < 0.7:
                claims[name] = now + rng.choice(EDGES)
            elif name == "sub" and rng.random() < 0.5:
                claims[name] = f"organizations/{rng.choice(ORGANIZATIONS)}"
            else:
                claims[name] = rng.choice(ODD_VALUES)
        text = _json(claims)
        return text[:-1] + b',"exp":' + str(now + 100).encode() + b"}" if rng.random() < 0.05 else text

    def some_seconds(self) -> int:
        """From now to when a token was made, so that it is valid, hardly so, or hardly not."""
        return self._rng.choice(EDGES) - self._rng.choice([0, 300, 3600])

    def some_head(self) -> bytes:
        rng = self._rng
        if rng.random() < 0.1:
            return rng.choice(ODD_TEXTS)
        head: Claims = {"alg": rng.choice(ALGORITHMS), "typ": "JWT", "kid": rng.choice([*self.keys, *self.others]).id}
        if rng.random() < 0.6:
            head[rng.choice(["alg", "kid", "typ", "crit", "b64", "jwk", "x5u", "zip"])] = rng.choice(ODD_VALUES)
        return _json(head)

    def garble(self, text: str) -> str:
        rng = self._rng
        place = rng.randrange(len(text))
        change: Callable[[], str] = rng.choice(
            [
                lambda: text[:place] + rng.choice("aZ09-_.=+/, \x80\xff") + text[place + 1 :],
                lambda: text[:place],
                lambda: text[place:],
                lambda: text + rng.choice([".", "=", "A", " ", ".e30", "," + text]),
                lambda: text.rpartition(".")[0] + ".",
                lambda: rng.choice(["", " ", "null", "..", "a.b.c", MARK, "." * 100, "Bearer " + text]),
            ]
        )
        return change()


def claims_of(header: str, body: bytes, now: int) -> Claims:
    """The claims of DT's tokens in a header."""
    common = {"checksum_sha256": hashlib.sha256(body).hexdigest(), "iat": now}
    if header == ASYMMETRIC_HEADER:
        return {**common, "exp": now + 300, "iss": ISSUER, "sub": ORGANIZATIONS[0]}
    return {
        **common,
        "checksum": hashlib.sha1(body, usedforsecurity=False).hexdigest(),
        "exp": now + 3600,
        "jti": "c82",
    }


def base64url(part: bytes) -> bytes:
    return base64.urlsafe_b64encode(part).rstrip(b"=")


def _unsigned(head: bytes, claims: bytes) -> bytes:
    return base64url(head) + b"." + base64url(claims)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _pick(rng: random.Random, weighted: dict[Any, int]) -> Any:
    return rng.choices(list(weighted), list(weighted.values()))[0]


def _genuine(pushes: Pushes, body: bytes, now: int, header: str) -> str:
    return pushes.token(header, _json(claims_of(header, body, now)))


def _by_another(pushes: Pushes, body: bytes, now: int, header: str) -> str:
    return pushes.token(header, _json(claims_of(header, body, now)), known=False)


def _for_another_body(pushes: Pushes, body: bytes, now: int, header: str) -> str:
    return _genuine(pushes, body + b" ", now, header)


def _at_another_time(pushes: Pushes, body: bytes, now: int, header: str) -> str:
    return _genuine(pushes, body, now + pushes.some_seconds(), header)


def _with_claims(pushes: Pushes, body: bytes, now: int, header: str) -> str:
    return pushes.token(header, pushes.some_claims(header, body, now))


def _with_head(pushes: Pushes, body: bytes, now: int, header: str) -> str:
    return pushes.token(header, _json(claims_of(header, body, now)), pushes.some_head())


def _garbled(pushes: Pushes, body: bytes, now: int, header: str) -> str:
    return pushes.garble(_genuine(pushes, body, now, header))


SIGNING = {
    None: 25,
    _genuine: 25,
    _by_another: 8,
    _for_another_body: 4,
    _at_another_time: 8,
    _with_claims: 14,
    _with_head: 8,
    _garbled: 8,
}
"""How the token in one of the two headers is made, with weights; None for no header."""

EDGES = [sign * (LEEWAY_SECONDS + seconds) for sign in (1, -1) for seconds in (-1, 0, 1)] + [0, 1, -1, 10**6, -(10**6)]
"""Seconds from now to times in claims."""

TIMES_OF_CLAIMS = ("iat", "exp", "nbf")
CLAIMS = (*TIMES_OF_CLAIMS, "iss", "sub", "aud", "jti", "checksum", "checksum_sha256")
ALGORITHMS = ["HS256", "ES256", "none", "None", "HS384", "HS512", "RS256", "ES384", "EdDSA", "hs256", "", "PS256"]

ODD_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 0.5, 1e308, float("inf"), float("nan"), 10**30, "", "x", "1", "\ud800", "a\r\nb"),
    *([], {}, [[]], {"a": 1}, "HS256", "ES256", "none", ["b64"], "4102444800", "9" * 300, "\0", "NaN", MARK),
    *("projects/a/devices/b", "2026-01-31T12:00:00Z", "0001-01-01T00:00:00+23:59", "24:00", "PRESENT", *TYPES),
    "9999-12-31T23:59:59.999999999-23:59",
    [{"value": 1, "sampleTime": "2026-01-31"}, {"value": 2}, {"value": None}, 3],
]

ODD_TEXTS = [
    *(
        b"",
        b"[]",
        b"{}",
        b"null",
        b"5",
        b"NaN",
        b"\xff",
        b"{",
        b"[" * 1500,
        b"9" * 5000,
        b'{"exp":' + b"9" * 5000 + b"}",
    ),
    *(b'"exp"', b'{"alg":"HS256\xff"}', b'{"alg":"\\ud800"}', b'{"a":' * 1200, b"\xef\xbb\xbf{}", b'{"alg":"none"}'),
]

FURTHER_HEADERS = [
    *(("Content-Type", kind) for kind in ("application/x-www-form-urlencoded", "application/json; charset=utf-16")),
    *(
        ("Content-Type", kind)
        for kind in ("multipart/form-data; boundary=a", "multipart/form-data", "\xff", "text/a,b")
    ),
    *(("Content-Encoding", "gzip"), ("Cookie", f"a={MARK}"), ("Authorization", f"Bearer {MARK}"), ("Expect", MARK)),
    *(("X-Request-Id", name) for name in ("plain-1_A", "a b", "a\tb", "\xe6", "a" * 65, "", "<script>", "a%0d%0ab")),
    *(("X-Forwarded-For", value) for value in ("1.2.3.4", "::1, 1.2.3.4:5", "[::ffff:1.2.3.4]:5", ",", MARK)),
    *(("X-Http-Method-Override", "DELETE"), ("Range", "bytes=0-"), ("Accept-Encoding", "br"), ("Te", "trailers")),
    *((HEADER, MARK), (ASYMMETRIC_HEADER, "a.b.c"), ("Host", MARK), ("Forwarded", f"for={MARK}"), ("X-A", "\x80\xff")),
]

Framed = tuple[str | None, bytes, list[tuple[str, str]]]
CHUNKED = ("Transfer-Encoding", "chunked")


def _exact(body: bytes, rng: random.Random) -> Framed:
    return str(len(body)), body, []


def _short(body: bytes, rng: random.Random) -> Framed:
    return str(len(body) + rng.randrange(1, 100)), body, []


def _long(body: bytes, rng: random.Random) -> Framed:
    return str(rng.randrange(len(body) + 1)), body, []


def _without_length(body: bytes, rng: random.Random) -> Framed:
    return None, body, []


def _chunked(body: bytes, rng: random.Random) -> Framed:
    data, place = b"", 0
    while place < len(body):
        chunk = body[place : place + rng.randrange(1, 2000)]
        data += rng.choice([b"%x\r\n", b"%X\r\n", b"00%x\r\n", b"%x;a=b\r\n"]) % len(chunk) + chunk + b"\r\n"
        place += len(chunk)
    return None, data + b"0\r\n\r\n", [CHUNKED]


def _badly_chunked(body: bytes, rng: random.Random) -> Framed:
    data = _chunked(body, rng)[1]
    return None, rng.choice([_cut, _change_bytes, _insert])(data, rng), [CHUNKED]


COMPLETE = (_exact, _chunked)
FRAMINGS = {_exact: 80, _short: 3, _long: 3, _without_length: 1, _chunked: 9, _badly_chunked: 4}


def _cut(body: bytes, rng: random.Random) -> bytes:
    return body[: rng.randrange(len(body) + 1)]


def _change_bytes(body: bytes, rng: random.Random) -> bytes:
    changed = bytearray(body)
    for _ in range(rng.randrange(1, 4) if body else 0):
        changed[rng.randrange(len(changed))] = (
            rng.choice(b'"{}[]:,\\0e-. \x00\x80\xff') if rng.random() < 0.7 else rng.randrange(256)
        )
    return bytes(changed)


def _insert(body: bytes, rng: random.Random) -> bytes:
    place, end = sorted(rng.randrange(len(body) + 1) for _ in range(2))
    piece = rng.choice([rng.choice(WORDS), body[place:end]])
    return body[:place] + piece + body[rng.choice([place, end]) :]


def _change_value(body: bytes, rng: random.Random) -> bytes:
    try:
        return _json(_changed(json.loads(body), rng))
    except (ValueError, RecursionError):
        return body


def _changed(document: Any, rng: random.Random) -> Any:
    """A document with one value replaced, removed or added."""
    if not isinstance(document, dict | list) or not document or rng.random() < 0.1:
        return rng.choice(ODD_VALUES)
    copy = document.copy()
    key = rng.choice(list(document)) if isinstance(document, dict) else rng.randrange(len(document))
    if rng.random() < 0.1:
        del copy[key]
    elif rng.random() < 0.1 and isinstance(copy, dict):
        copy[rng.choice(["samples", "labels", "isBackfilled", "\ud800", ""])] = rng.choice(ODD_VALUES)
    else:
        copy[key] = _changed(copy[key], rng)
    return copy


def _nest(body: bytes, rng: random.Random) -> bytes:
    levels = rng.choice([rng.randrange(90, 110), rng.randrange(900, 1100), rng.randrange(1, 2000)])
    opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    inner = opening * levels + b"1" + closing * (levels if rng.random() < 0.9 else 0)
    place = rng.choice([b'"name":', b'"data":', b'"labels":'])
    return (
        body.replace(place, place + inner + b',"b":', 1) if place in body else body[:-1] + b"," + place + inner + b"}"
    )


def _repeat_key(body: bytes, rng: random.Random) -> bytes:
    again = rng.choice([b'"event":null', b'"event":{}', b'"labels":5', b'"event":{"eventId":"a","eventType":"touch"}'])
    return rng.choice([b"{" + again + b"," + body[1:], body[:-1] + b"," + again + b"}"])


def _encode(body: bytes, rng: random.Random) -> bytes:
    text = body.decode("utf-8", "replace")
    change: Callable[[], bytes] = rng.choice(
        [
            lambda: b"\xef\xbb\xbf" + body,
            lambda: text.encode("utf-16"),
            lambda: text.encode("utf-32-le"),
            lambda: gzip.compress(body, 1),
            lambda: b"event=" + body,
            lambda: b" \r\n\t" + body + b"\n",
            lambda: b"[" + body + b"]",
            lambda: body * 2,
            lambda: b"",
        ]
    )
    return change()


def _pad(body: bytes, rng: random.Random) -> bytes:
    return body + b" " * max(0, MAX_BODY_BYTES - len(body) + rng.choice([-1, 0, 1, 2, 5000]))


def _change_id(body: bytes, rng: random.Random) -> bytes:
    return body.replace(b'"eventId": "', b'"eventId":"').replace(b'"eventId":"', b'"eventId":"' + rng.choice(IDS), 1)


IDS = [
    b"a\\r\\n",
    b"\\ud800",
    b"\\u0000",
    b"a" * 44,
    b"a" * 45,
    b"-_",
    b" ",
    b"\xc3\xa6",
    b"../",
    b"\\u0061",
    b"'\\\"",
    b"%00",
]

WORDS = [
    *(
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1e999",
        b"-0",
        b"9" * 5000,
        b"1e-999",
        b"null",
        b"true",
        b"\\ud800",
        b"\\u0000",
    ),
    *(
        b"\\ud83d\\ude00",
        b"\xed\xa0\x80",
        b"\xc0\xaf",
        b"\xff",
        b"\0",
        b"\r\n",
        b"\xe2\x80\xa8",
        b'","',
        b"{",
        b"}",
        b"[",
        b"]",
    ),
    *(
        b'"eventId"',
        b'"eventType"',
        b'"event"',
        b'"labels"',
        b'"samples"',
        b"\\",
        b'"',
        b"//",
        b"/*",
        b"'",
        b"0\r\n\r\n",
    ),
]

TIMES = {0: 45, 1: 40, 2: 10, 3: 5}
BODY_CHANGES = {
    _change_value: 40,
    _change_bytes: 10,
    _insert: 12,
    _cut: 4,
    _nest: 5,
    _repeat_key: 5,
    _encode: 6,
    _pad: 3,
    _change_id: 6,
}
"""What is changed in a body, with weights."""
