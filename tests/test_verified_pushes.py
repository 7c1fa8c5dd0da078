"""Pushes that are verified: events are stored as received, and whatever is not an event is quarantined."""

from __future__ import annotations

import gzip
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from conftest import TEST_SECRET, RunningReceiver
from support.intake import Snapshot, quarantined_push, stored_event
from support.pushes import (
    MakeHeaders,
    changed_event,
    event,
    event_id,
    event_of_size,
    from_now,
    signed,
    with_claims,
    with_header,
    with_token,
)

from receiver.event import TYPES
from receiver.signature import HEADER, sign
from receiver.simulator import Simulator

MakeBody = Callable[[str], bytes]
"""The body of a case, by the name of the case."""


def typed(event_type: str, data: object, **envelope: object) -> MakeBody:
    """An event of a type with this data; "absent" removes a key of its envelope."""

    def make_body(name: str) -> bytes:
        event = {
            "eventId": event_id(name),
            "targetName": "projects/c14u9p094l47cdv1o3pg/devices/emuc17m6d7lq0bgk44smcqg",
            "eventType": event_type,
            "data": {event_type: data},
            "timestamp": "2026-01-31T12:00:00.000000Z",
        }
        full = {"event": event, "labels": {}, "metadata": {"deviceId": "emuc17m6d7lq0bgk44smcqg"}, **envelope}
        return json.dumps({key: value for key, value in full.items() if value != "absent"}).encode()

    return make_body


def with_field(key: str, value: object) -> MakeBody:
    """An event with this value in its object `event`."""
    return lambda name: changed_event(name, lambda payload: payload["event"].update({key: value}))


def without_field(key: str) -> MakeBody:
    """An event without this key in its object `event`."""
    return lambda name: changed_event(name, lambda payload: payload["event"].pop(key))


AT = "2026-01-31T12:00:00Z"
SAMPLES = [{"value": number / 10, "sampleTime": f"2026-01-31T11:{number:02}:00Z"} for number in range(30)]
EVENTS: dict[str, MakeBody] = {
    "temperature without samples": typed("temperature", {"value": 21.5, "updateTime": AT, "isBackfilled": False}),
    "temperature without isBackfilled": typed("temperature", {"value": 21.5, "updateTime": AT, "samples": SAMPLES[:1]}),
    "temperature without samples and isBackfilled": typed("temperature", {"value": 21.5, "updateTime": AT}),
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
    "a label that is not a string": typed(
        "touch", {"updateTime": AT}, labels={"floor": 3, "room": None, "x": {"y": []}}
    ),
    "a label with a lone surrogate": typed("touch", {"updateTime": AT}, labels={"name": "\ud800"}),
    "a label with CR LF": typed("touch", {"updateTime": AT}, labels={"name": "a\r\nb"}),
    "neither metadata nor labels": typed("touch", {"updateTime": AT}, metadata="absent", labels="absent"),
    "an unknown type": typed("soundLevel", {"decibel": 40, "updateTime": AT}),
    "an empty type": typed("", {}),
    "a type with CR LF": typed("touch\r\nX-A: b", {}),
    "a type with a lone surrogate": typed("\ud800", {}),
    "a type of 5,000 letters": typed("a" * 5000, {}),
    "data is null": typed("touch", None),
    "data is a word": typed("temperature", "warm"),
    "an unknown field": typed("touch", {"updateTime": AT, "force": 3}, sender="new"),
    "a value too large for a float": lambda name: typed("co2", {"ppm": 0})(name).replace(b'"ppm": 0', b'"ppm": 1e999'),
    "a value of 4,000 digits": lambda name: typed("co2", {"ppm": 0})(name).replace(b": 0}", b": " + b"9" * 4000 + b"}"),
    "a number of 5,000 digits": lambda name: event(name)[:-1] + b', "n": ' + b"9" * 5000 + b"}",
    "NaN as a value": lambda name: typed("co2", {"ppm": float("nan")})(name),
    "an id of 64 characters": with_field("eventId", "-_" * 32),
    "an id of one character": with_field("eventId", "0"),
    "an id that looks like SQL": with_field("eventId", "--drop_table"),
    "spaces around the object": lambda name: b" \r\n\t" + event(name) + b"\n",
    "the id given twice": lambda name: event(name).replace(b'{"eventId"', b'{"eventId": "overwritten", "eventId"'),
    "an emoji": typed("touch", {"updateTime": AT}, labels={"name": "\U0001f321"}),
    **{
        f"an ordinary {event_type}": lambda name, event_type=event_type: Simulator(TYPES.index(event_type) + 1000).body(
            event_type, samples=30
        )
        for event_type in TYPES
    },
}


NO_JSON = "the body is not JSON"
NO_OBJECT = "the body is not a JSON object"
NO_EVENT = "the body has no object 'event'"
NO_ID = "event.eventId is not 1 to 64 letters, digits, '_' or '-'"
NO_TYPE = "event.eventType is not a string"
NO_UTF8 = "the body is not UTF-8"
TOO_DEEP = "the body is nested too deeply"

QUARANTINED: dict[str, tuple[MakeBody, str]] = {
    "an empty body": (lambda name: b"", NO_JSON),
    "a word": (lambda name: b"touch", NO_JSON),
    "half an event": (lambda name: event(name)[:-1], NO_JSON),
    "two events": (lambda name: event(name) * 2, NO_JSON),
    "an event in gzip": (lambda name: gzip.compress(event(name)), NO_UTF8),
    "an event after a byte order mark": (lambda name: b"\xef\xbb\xbf" + event(name), NO_JSON),
    "an event in UTF-16": (lambda name: event(name).decode().encode("utf-16"), NO_UTF8),
    "a byte that is not UTF-8": (lambda name: event(name).replace(b"Simulated", b"\xff"), NO_UTF8),
    "an overlong slash": (lambda name: event(name).replace(b"Simulated", b"\xc0\xaf"), NO_UTF8),
    "a NUL after the event": (lambda name: event(name) + b"\0", NO_JSON),
    "an event as a form": (lambda name: b"event=" + event(name), NO_JSON),
    "100,000 nested brackets": (lambda name: b"[" * 100_000, TOO_DEEP),
    "50,000 closed nested brackets": (lambda name: b"[" * 50_000 + b"]" * 50_000, TOO_DEEP),
    "100,000 nested brackets in an event": (
        lambda name: event(name)[:-1] + b', "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        TOO_DEEP,
    ),
    "an empty list": (lambda name: b"[]", NO_OBJECT),
    "an event in a list": (lambda name: b"[" + event(name) + b"]", NO_OBJECT),
    "a number": (lambda name: b"42", NO_OBJECT),
    "null": (lambda name: b"null", NO_OBJECT),
    "NaN": (lambda name: b"NaN", NO_OBJECT),
    "true": (lambda name: b"true", NO_OBJECT),
    "a string": (lambda name: b'"event"', NO_OBJECT),
    "an empty object": (lambda name: b"{}", NO_EVENT),
    "event is null": (lambda name: b'{"event": null}', NO_EVENT),
    "event is a list": (lambda name: b'{"event": []}', NO_EVENT),
    "event is a string": (lambda name: b'{"event": "touch"}', NO_EVENT),
    "event in upper case": (lambda name: event(name).replace(b'"event"', b'"EVENT"', 1), NO_EVENT),
    "event is empty": (lambda name: b'{"event": {}}', NO_ID),
    "no id": (without_field("eventId"), NO_ID),
    "id is null": (with_field("eventId", None), NO_ID),
    "id is a number": (with_field("eventId", 7), NO_ID),
    "id is a list": (with_field("eventId", ["c82gg9catj3vmh4248og"]), NO_ID),
    "id is true": (with_field("eventId", True), NO_ID),
    "id is empty": (with_field("eventId", ""), NO_ID),
    "id of 65 characters": (with_field("eventId", "a" * 65), NO_ID),
    "id with a lone surrogate": (with_field("eventId", "a\ud800"), NO_ID),
    "id with CR LF": (with_field("eventId", "a\r\nX-A: b"), NO_ID),
    "id with a newline": (with_field("eventId", "c82gg9catj3vmh4248og\n"), NO_ID),
    "id with a NUL": (with_field("eventId", "a\0b"), NO_ID),
    "id with a space": (with_field("eventId", "a b"), NO_ID),
    "id with a slash": (with_field("eventId", "../a"), NO_ID),
    "id with letters outside ASCII": (with_field("eventId", "\u00e9v\u00e9nement"), NO_ID),
    "id with digits outside ASCII": (with_field("eventId", "\u0661\u0662"), NO_ID),
    "id like a formula": (with_field("eventId", "=1+1"), NO_ID),
    "no type": (without_field("eventType"), NO_TYPE),
    "type is null": (with_field("eventType", None), NO_TYPE),
    "type is a number": (with_field("eventType", 1), NO_TYPE),
    "type is a list": (with_field("eventType", ["touch"]), NO_TYPE),
}


HEADERS: dict[str, MakeHeaders] = {
    "as DT sends it": lambda body: sign(body, TEST_SECRET, time.time()),
    "issued ten seconds from now": with_claims(iat=from_now(10)),
    "issued 50 seconds from now": with_claims(iat=from_now(50)),
    "not before 50 seconds from now": with_claims(nbf=from_now(50)),
    "expired 30 seconds ago": with_claims(exp=from_now(-30)),
    "no time of issue": with_claims(iat=None),
    "no token id": with_claims(jti=None),
    "no SHA-1": with_claims(checksum=None),
    "a wrong SHA-1 and a right SHA-256": with_claims(checksum="0" * 40),
    "an audience": with_claims(aud="receiver"),
    "a subject that is a number": with_claims(sub=7),
    "a token id that is a number": with_claims(jti=7),
    "claims unknown today": with_claims(checksum_sha512="0", iss="disruptive-technologies.com"),
    "no token type": with_header(alg="HS256"),
    "a key id": with_header(alg="HS256", kid="1"),
    "blanks around the token": with_token(lambda genuine: f"  {genuine}\t"),
    "header in lower case": lambda body: {HEADER.lower(): signed(body)[HEADER]},
    "header in upper case": lambda body: {HEADER.upper(): signed(body)[HEADER]},
    "a form": lambda body: {**signed(body), "Content-Type": "application/x-www-form-urlencoded"},
    "a multipart form": lambda body: {**signed(body), "Content-Type": "multipart/form-data; boundary=x"},
    "a multipart form without a boundary": lambda body: {**signed(body), "Content-Type": "multipart/form-data"},
    "plain text": lambda body: {**signed(body), "Content-Type": "text/plain; charset=utf-16"},
    "an unknown charset": lambda body: {**signed(body), "Content-Type": "application/json; charset=klingon"},
    "an invalid content type": lambda body: {**signed(body), "Content-Type": ";;;"},
    "a content encoding that does not apply": lambda body: {**signed(body), "Content-Encoding": "gzip"},
    "a header of the user": lambda body: {**signed(body), "X-Tenant": "Oslo", "Authorization": "Basic eDp5"},
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
    """All pushes of the tables, made concurrently so that they share commits; those that are not events made twice."""

    bodies: dict[str, bytes]
    responses: dict[str, list[tuple[int, str]]]
    before: Snapshot
    after: Snapshot


@pytest.fixture(scope="module")
def batch(shared_receiver: RunningReceiver) -> Batch:
    bodies = {f"event: {name}": make_body(name) for name, make_body in EVENTS.items()}
    bodies |= {f"not an event: {name}": make_body(name) for name, (make_body, _) in QUARANTINED.items()}
    bodies |= {f"with: {name}": event(f"with: {name}") for name in HEADERS}
    assert len(set(bodies.values())) == len(bodies)

    def push(name: str) -> list[tuple[int, str]]:
        kind, _, case = name.partition(": ")
        headers = HEADERS[case](bodies[name]) if kind == "with" else signed(bodies[name])
        return [shared_receiver.push(bodies[name], headers) for _ in range(2 if kind == "not an event" else 1)]

    before = Snapshot.of(shared_receiver)
    with ThreadPoolExecutor(24) as threads:
        responses = dict(zip(bodies, threads.map(push, bodies), strict=True))
    return Batch(bodies, responses, before, Snapshot.of(shared_receiver))


def id_in(body: bytes) -> str:
    event_id: str = json.loads(body, parse_int=float)["event"]["eventId"]
    return event_id


@pytest.mark.parametrize("name", EVENTS)
def test_a_verified_push_with_an_id_and_a_type_is_an_event_whatever_else_it_contains(
    name: str, shared_receiver: RunningReceiver, batch: Batch
) -> None:
    body = batch.bodies[f"event: {name}"]
    assert batch.responses[f"event: {name}"] == [(200, "accepted")]
    assert stored_event(shared_receiver, id_in(body)) == [(body,)]


@pytest.mark.parametrize("name", QUARANTINED)
def test_a_verified_push_that_is_not_an_event_is_quarantined_once_with_its_body_and_the_reason(
    name: str, shared_receiver: RunningReceiver, batch: Batch
) -> None:
    body = batch.bodies[f"not an event: {name}"]
    assert batch.responses[f"not an event: {name}"] == [(200, "quarantined")] * 2
    assert quarantined_push(shared_receiver, hashlib.sha256(body).hexdigest()) == [(QUARANTINED[name][1], body)]


@pytest.mark.parametrize("name", HEADERS)
def test_a_genuine_push_is_accepted_whatever_other_headers_and_claims_it_has(
    name: str, shared_receiver: RunningReceiver, batch: Batch
) -> None:
    body = batch.bodies[f"with: {name}"]
    assert batch.responses[f"with: {name}"] == [(200, "accepted")]
    assert stored_event(shared_receiver, id_in(body)) == [(body,)]


def test_verified_pushes_store_themselves_and_nothing_else(batch: Batch) -> None:
    events = {id_in(body) for name, body in batch.bodies.items() if "not an event" not in name}
    others = {hashlib.sha256(body).hexdigest() for name, body in batch.bodies.items() if "not an event" in name}
    assert batch.after.events == batch.before.events | events
    assert batch.after.quarantined == batch.before.quarantined | others
    expected = Counter(batch.before.responses)
    expected.update({(200, "accepted"): len(events), (200, "quarantined"): 2 * len(others)})
    assert batch.after.responses == expected


def test_a_repeated_push_is_a_duplicate_and_changes_nothing(shared_receiver: RunningReceiver) -> None:
    body = event("repeated")
    before = Snapshot.of(shared_receiver)
    assert [shared_receiver.push(body) for _ in range(3)] == [(200, "accepted"), (200, "duplicate"), (200, "duplicate")]
    accepted = before.after(200, "accepted", event=event_id("repeated"))
    assert Snapshot.of(shared_receiver) == accepted.after(200, "duplicate").after(200, "duplicate")


def test_a_different_body_with_a_known_id_is_a_duplicate_and_the_first_body_stays(
    shared_receiver: RunningReceiver,
) -> None:
    first, second = event("same id"), event_of_size("same id", 5000)
    assert shared_receiver.push(first) == (200, "accepted")
    assert shared_receiver.push(second) == (200, "duplicate")
    assert stored_event(shared_receiver, event_id("same id")) == [(first,)]


def push_concurrently(receiver: RunningReceiver, body: bytes, times: int) -> list[tuple[int, str]]:
    with ThreadPoolExecutor(times) as threads:
        return sorted(threads.map(lambda _: receiver.push(body), range(times)))


def test_of_20_concurrent_equal_pushes_exactly_one_is_accepted(shared_receiver: RunningReceiver) -> None:
    before = Snapshot.of(shared_receiver)
    assert push_concurrently(shared_receiver, event("concurrent"), 20) == [
        (200, "accepted"),
        *[(200, "duplicate")] * 19,
    ]
    expected = before.after(200, "accepted", event=event_id("concurrent"))
    for _ in range(19):
        expected = expected.after(200, "duplicate")
    assert Snapshot.of(shared_receiver) == expected


def test_of_20_concurrent_equal_pushes_that_are_not_events_one_is_stored(shared_receiver: RunningReceiver) -> None:
    before = Snapshot.of(shared_receiver)
    body = b'["concurrent"]'
    assert push_concurrently(shared_receiver, body, 20) == [(200, "quarantined")] * 20
    after = Snapshot.of(shared_receiver)
    assert after.events == before.events
    assert after.quarantined == before.quarantined | {hashlib.sha256(body).hexdigest()}
