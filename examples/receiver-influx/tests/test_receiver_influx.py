"""The `influx` sink with a server that stores points as InfluxDB does: by measurement, tags, field and time."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial

import pytest
import receiver_influx
from pytest_httpserver import HTTPServer
from receiver_influx import Influx
from receiver_influx.lines import nanoseconds
from werkzeug import Request, Response

from receiver import Event, GiveUp, Pause, Retry, Secret
from receiver.testing import SinkSuite, event, network

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
TOKEN = "not-to-be-seen"
POINT = re.compile(r"((?:\\.|[^\\ ])+) ((?:\\.|[^\\ =])+)=(\S+) (-?\d+)")
TAG = re.compile(r"((?:\\[,= ]|[^\\,= ])+)=((?:\\[,= ]|[^\\,= ])+)")


class Database:
    """A database. It gives the next of `responses` (status, headers, body), then stores points, but none of
    `rejected_quantity`."""

    def __init__(self, server: HTTPServer) -> None:
        self.url = server.url_for("")
        self.points: dict[tuple[str, str, int], float] = {}
        self.bodies: list[str] = []
        self.rejected_quantity = ""
        self.responses: list[tuple[int, dict[str, str], bytes]] = []
        self.fails = False
        server.expect_request(
            "/api/v2/write",
            method="POST",
            query_string={"bucket": "sensors", "org": "acme", "precision": "ns"},
            headers={"Authorization": f"Token {TOKEN}"},
        ).respond_with_handler(self.respond)

    def respond(self, request: Request) -> Response:
        if self.fails:
            return Response(status=500)
        self.bodies.append(request.get_data().decode())
        if self.responses:
            status, headers, body = self.responses.pop(0)
            return Response(body, status, headers)
        rejected = [line for line in self.bodies[-1].split("\n") if not self.store(line)]
        if rejected:
            error = f"unable to parse '{rejected[0]}': partial write"
            return Response(json.dumps({"code": "invalid", "message": error}), 400)
        return Response(status=204)

    def store(self, line: str) -> bool:
        point = POINT.fullmatch(line)
        if point is None or point[2] == self.rejected_quantity or tags_of(point[1]) is None:
            return False
        self.points[point[1], point[2], int(point[4])] = float(point[3])
        return True

    @contextmanager
    def outage(self) -> Iterator[None]:
        self.fails = True
        yield
        self.fails = False


def tags_of(series: str) -> dict[str, str] | None:
    """The tags of a series, parsed as the line protocol specifies; None if they are malformed."""
    measurement, *_ = re.split(r"(?<!\\),", series, maxsplit=1)
    found = TAG.findall(series[len(measurement) + 1 :])
    parsed = "".join(f",{name}={text}" for name, text in found)
    if measurement + parsed != series:
        return None
    return {unescaped(name): unescaped(text) for name, text in found}


def unescaped(text: str) -> str:
    return re.sub(r"\\([,= ])", r"\1", text)


@pytest.fixture
def database(httpserver: HTTPServer) -> Database:
    return Database(httpserver)


class TestInflux(SinkSuite, plugin="receiver_influx", concurrency=4):
    @pytest.fixture
    def options(self, database: Database) -> dict[str, object]:
        labels = ["name", "label two\nlines\r\nand\u2028more"]
        return {"url": database.url, "bucket": "sensors", "org": "acme", "token": TOKEN, "label_tags": labels}

    @pytest.fixture
    def delivered_ids(self, database: Database) -> Callable[[], list[str]]:
        return lambda: [
            f"{(tags_of(series) or {}).get('device_id')} {quantity} {time}"
            for series, quantity, time in database.points
        ]

    @pytest.fixture
    def outage(self, database: Database) -> Callable[[], object]:
        return database.outage

    def expected_ids(self, event: Event) -> Collection[str]:
        """Its points, by device, quantity and time: the database does not store event ids."""
        return [f"{each.device_id} {each.quantity} {nanoseconds(each.time)}" for each in event.readings()]


def build(database: Database, **options: object) -> Influx:
    given = {"url": database.url, "bucket": "sensors", "org": "acme", "token": Secret(TOKEN), **options}
    return Influx(**given)  # type: ignore[arg-type]


def outcome(call: Callable[[], object]) -> tuple[type | None, str, float | None]:
    """What a call raises: type, reason and wait; (None, "", None) if it returns normally."""
    try:
        call()
    except (Retry, Pause, GiveUp) as signal:
        return type(signal), str(signal), signal.after
    return None, "", None


def test_a_reading_is_a_point_in_nanoseconds_with_the_chosen_labels_as_tags(database: Database) -> None:
    warm = event("temperature", value=21.5, at=NOON, labels={"name": "Cold room, 2", "site": "Oslo", "x": "y"})
    wet = event("waterPresent", state="PRESENT", at=NOON)
    build(database, label_tags=["name", "site", "floor"]).deliver_batch([warm, event("labelsChanged"), wet], [1, 1, 1])
    assert database.bodies == [
        rf"readings,device_id={warm.device_id},label_name=Cold\ room\,\ 2,label_site=Oslo "
        "temperature=21.5 1773489600000000000\n"
        f"readings,device_id={wet.device_id},label_name=Simulated\\ waterPresent water_present=1.0 1773489600000000000"
    ]


def test_events_without_readings_cause_no_request(database: Database) -> None:
    build(database).deliver_batch([event("labelsChanged")], [1])
    assert database.bodies == []


@pytest.mark.parametrize(
    ("label", "tag"),
    [
        ("a=b, c", "a=b, c"),
        ("two\r\nlines\u2028more", "two  lines more"),
        ('"quoted" #1', '"quoted" #1'),
        ("C:\\rooms\\", "C:/rooms/"),
        ("Kjøleskap 冷蔵庫 🧊", "Kjøleskap 冷蔵庫 🧊"),
        ("long" * 1000, "long" * 125),
        (" \n", None),
        ("", None),
    ],
)
def test_a_tag_is_stored_as_close_to_the_label_as_the_protocol_allows(
    label: str, tag: str | None, database: Database
) -> None:
    build(database, label_tags=["where, it=is"]).deliver_batch([event("touch", labels={"where, it=is": label})], [1])
    [(series, quantity, _)] = database.points
    assert (quantity, (tags_of(series) or {}).get("label_where, it=is")) == ("touch", tag)


def test_a_rejected_event_delays_no_other(database: Database) -> None:
    database.rejected_quantity = "touch"
    sink, touch, warm = build(database), event("touch"), event("temperature")
    assert outcome(partial(sink.deliver_batch, [touch, warm], [3, 3]))[0] is Retry
    kind, reason, _ = outcome(partial(sink.deliver_batch, [touch], [3]))
    assert kind is GiveUp
    assert re.fullmatch(r"HTTP 400: unable to parse 'readings,device_id=emu\S+ touch=1.0 \d+': partial write", reason)
    assert outcome(partial(sink.deliver_batch, [warm], [3])) == (None, "", None)
    assert [quantity for _, quantity, _ in database.points] == ["temperature"]


@pytest.mark.parametrize(
    ("status", "headers", "body", "attempt", "expected"),
    [
        (200, {}, b"", 1, (None, "", None)),
        (201, {}, b'{"message": "partial write"}', 9, (Retry, "HTTP 201: partial write", None)),
        (307, {"Location": "/"}, b"", 1, (Pause, "HTTP 307: redirects are not followed; set url to the target", None)),
        (400, {}, b"\xff", 2, (Retry, "HTTP 400: it does not say why", None)),
        (401, {}, b"", 9, (Pause, "HTTP 401: it rejects the token", None)),
        (404, {}, b"", 9, (Pause, "HTTP 404: there is no such bucket, organisation or path", None)),
        (413, {}, b"[]", 3, (GiveUp, "HTTP 413: it does not say why", None)),
        (400, {}, b"[" * 4096, 3, (GiveUp, "HTTP 400: it does not say why", None)),
        (422, {}, b'{"error": "type conflict"}', 3, (GiveUp, "HTTP 422: type conflict", None)),
        (429, {"Retry-After": "30"}, b"", 1, (Pause, "HTTP 429: it asks us to wait", 30.0)),
        (500, {}, b"", 9, (Retry, "HTTP 500: it does not say why", None)),
        (503, {"Retry-After": "soon"}, b"", 9, (Retry, "HTTP 503: it does not say why", None)),
    ],
)
def test_each_response_has_its_outcome(
    status: int,
    headers: dict[str, str],
    body: bytes,
    attempt: int,
    expected: tuple[type | None, str, float | None],
    database: Database,
) -> None:
    database.responses = [(status, headers, body)]
    assert outcome(partial(build(database).deliver_batch, [event("touch")], [attempt])) == expected
    assert len(database.bodies) == 1


def test_no_error_shows_the_token(database: Database) -> None:
    sink = build(database)
    with network.refused():
        result = outcome(partial(sink.deliver_batch, [event("touch")], [1]))
    assert result == (Retry, "no response from the database: NewConnectionError", None)
    assert TOKEN not in repr(sink)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"url": "influx.example.com"}, "url must begin with http:// or https:// and name a host"),
        ({"url": "http://[::1"}, "url must begin with http:// or https:// and name a host"),
        ({"url": "http://me:secret@a/"}, "url must not contain a user name, '?' or '#'; use the other options"),
        ({"url": "http://a/?db=x"}, "url must not contain a user name, '?' or '#'; use the other options"),
        ({"measurement": "_system"}, "measurement must be letters, digits, '_', '.' or '-', a letter first"),
        ({"token": Secret("a\r\nb: c")}, "token must be ASCII without line ends"),
    ],
)
def test_an_invalid_option_is_an_error(options: dict[str, object], problem: str, database: Database) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        build(database, **options)


def test_open_logs_the_name_of_the_sink(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    build(database).open("history", logging.getLogger("sink.history"))
    assert ("sink.history", logging.INFO, "sink history writes to bucket sensors") in caplog.record_tuples


def test_the_package_registers_one_type() -> None:
    types: dict[str, type] = {}
    receiver_influx.register_sinks(types.__setitem__)
    assert types == {"influx": Influx}
