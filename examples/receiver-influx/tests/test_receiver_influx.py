"""The `influx` sink against a server that keeps points as InfluxDB does: by measurement, tags and time."""

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
    """A database. `answers` are its next ones: status, headers and body. A point of a quantity in `refused` is none."""

    def __init__(self, server: HTTPServer) -> None:
        self.url = server.url_for("")
        self.points: dict[tuple[str, str, int], float] = {}
        self.bodies: list[str] = []
        self.refused = ""
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.down = False
        server.expect_request(
            "/api/v2/write",
            method="POST",
            query_string={"bucket": "sensors", "org": "acme", "precision": "ns"},
            headers={"Authorization": f"Token {TOKEN}"},
        ).respond_with_handler(self.write)

    def write(self, request: Request) -> Response:
        if self.down:
            return Response(status=500)
        self.bodies.append(request.get_data().decode())
        if self.answers:
            status, headers, body = self.answers.pop(0)
            return Response(body, status, headers)
        wrong = [line for line in self.bodies[-1].split("\n") if not self.keep(line)]
        if wrong:
            told = f"unable to parse '{wrong[0]}': partial write"
            return Response(json.dumps({"code": "invalid", "message": told}), 400)
        return Response(status=204)

    def keep(self, line: str) -> bool:
        point = POINT.fullmatch(line)
        if point is None or point[2] == self.refused or tags_of(point[1]) is None:
            return False
        self.points[point[1], point[2], int(point[4])] = float(point[3])
        return True

    @contextmanager
    def broken(self) -> Iterator[None]:
        self.down = True
        yield
        self.down = False


def tags_of(series: str) -> dict[str, str] | None:
    """The tags of a series, read as the line protocol says; None when they are not well made."""
    measurement, *_ = re.split(r"(?<!\\),", series, maxsplit=1)
    found = TAG.findall(series[len(measurement) + 1 :])
    made = "".join(f",{name}={text}" for name, text in found)
    if measurement + made != series:
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
        names = {"url": database.url, "bucket": "sensors", "org": "acme", "token": TOKEN}
        return {**names, "label_tags": ["name", "label two\nlines\r\nand\u2028more"]}

    @pytest.fixture
    def arrived(self, database: Database) -> Callable[[], list[str]]:
        return lambda: [trace(*point) for point in database.points]

    @pytest.fixture
    def broken(self, database: Database) -> Callable[[], object]:
        return database.broken

    def traces(self, event: Event) -> Collection[str]:
        """Its points, by device, quantity and time: the id of an event is kept nowhere."""
        return [f"{each.device_id} {each.quantity} {nanoseconds(each.time)}" for each in event.readings()]


def trace(series: str, quantity: str, time: int) -> str:
    return f"{(tags_of(series) or {}).get('device_id')} {quantity} {time}"


def made(database: Database, **options: object) -> Influx:
    names = {"url": database.url, "bucket": "sensors", "org": "acme", "token": Secret(TOKEN)}
    return Influx(**{**names, **options})  # type: ignore[arg-type]


def asked(call: Callable[[], object]) -> tuple[type | None, str, float | None]:
    """What the sink asks for by raising; nothing when it comes back."""
    try:
        call()
    except (Retry, Pause, GiveUp) as signal:
        return type(signal), str(signal), signal.after
    return None, "", None


def test_a_reading_is_a_point_in_nanoseconds_with_the_chosen_labels_as_tags(database: Database) -> None:
    warm = event("temperature", value=21.5, at=NOON, labels={"name": "Cold room, 2", "site": "Oslo", "x": "y"})
    wet = event("waterPresent", state="PRESENT", at=NOON)
    made(database, label_tags=["name", "site", "floor"]).deliver_batch([warm, event("labelsChanged"), wet], [1, 1, 1])
    assert database.bodies == [
        rf"readings,device_id={warm.device_id},label_name=Cold\ room\,\ 2,label_site=Oslo "
        "temperature=21.5 1773489600000000000\n"
        f"readings,device_id={wet.device_id},label_name=Simulated\\ waterPresent water_present=1.0 1773489600000000000"
    ]


def test_events_without_readings_ask_nothing_of_the_database(database: Database) -> None:
    made(database).deliver_batch([event("labelsChanged")], [1])
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
def test_a_tag_is_read_back_as_it_was_or_as_near_as_can_be_written(
    label: str, tag: str | None, database: Database
) -> None:
    made(database, label_tags=["where, it=is"]).deliver_batch([event("touch", labels={"where, it=is": label})], [1])
    [(series, quantity, _)] = database.points
    assert (quantity, (tags_of(series) or {}).get("label_where, it=is")) == ("touch", tag)


def test_what_is_wrong_with_one_event_holds_up_no_other(database: Database) -> None:
    database.refused = "touch"
    sink, touch, warm = made(database), event("touch"), event("temperature")
    assert asked(partial(sink.deliver_batch, [touch, warm], [3, 3]))[0] is Retry
    kind, why, _ = asked(partial(sink.deliver_batch, [touch], [3]))
    assert kind is GiveUp
    assert re.fullmatch(r"HTTP 400: unable to parse 'readings,device_id=emu\S+ touch=1.0 \d+': partial write", why)
    assert asked(partial(sink.deliver_batch, [warm], [3])) == (None, "", None)
    assert [quantity for _, quantity, _ in database.points] == ["temperature"]


@pytest.mark.parametrize(
    ("status", "headers", "body", "attempt", "expected"),
    [
        (200, {}, b"", 1, (None, "", None)),
        (201, {}, b'{"message": "partial write"}', 9, (Retry, "HTTP 201: partial write", None)),
        (307, {"Location": "/elsewhere"}, b"", 1, (Pause, "HTTP 307: it redirects, which is not followed; …", None)),
        (400, {}, b"\xff", 2, (Retry, "HTTP 400: it does not say why", None)),
        (401, {}, b"", 9, (Pause, "HTTP 401: it refuses the token", None)),
        (404, {}, b"", 9, (Pause, "HTTP 404: there is no such bucket, organisation or path", None)),
        (413, {}, b"[]", 3, (GiveUp, "HTTP 413: it does not say why", None)),
        (422, {}, b'{"error": "type conflict"}', 3, (GiveUp, "HTTP 422: type conflict", None)),
        (429, {"Retry-After": "30"}, b"", 1, (Pause, "HTTP 429: it asks to wait", 30.0)),
        (500, {}, b"", 9, (Retry, "HTTP 500: it does not say why", None)),
        (503, {"Retry-After": "soon"}, b"", 9, (Retry, "HTTP 503: it does not say why", None)),
    ],
)
def test_every_answer_has_its_outcome(
    status: int,
    headers: dict[str, str],
    body: bytes,
    attempt: int,
    expected: tuple[type | None, str, float | None],
    database: Database,
) -> None:
    database.answers = [(status, headers, body)]
    kind, text, after = asked(partial(made(database).deliver_batch, [event("touch")], [attempt]))
    assert (kind, text.replace("set url to where it leads", "…"), after) == expected
    assert len(database.bodies) == 1


def test_no_error_shows_the_token(database: Database) -> None:
    sink = made(database)
    with network.refused():
        kind, text, _ = asked(partial(sink.deliver_batch, [event("touch")], [1]))
    assert (kind, text) == (Retry, "no answer from the database: NewConnectionError")
    assert TOKEN not in repr(sink)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"url": "influx.example.com"}, "url must begin with http:// or https:// and name a host"),
        ({"url": "http://[::1"}, "url must begin with http:// or https:// and name a host"),
        ({"url": "http://me:secret@a/"}, "url must not hold a user name, a question mark or '#'; "),
        ({"url": "http://a/?db=x"}, "url must not hold a user name, a question mark or '#'; "),
        ({"measurement": "_system"}, "measurement must be letters, digits, '_', '.' or '-', a letter first"),
        ({"token": Secret("a\r\nb: c")}, "token must be ASCII without line ends"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, object], fault: str, database: Database) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(fault)}"):
        made(database, **options)


def test_it_logs_under_its_sinks_name_when_it_opens(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made(database).open("history", logging.getLogger("sink.history"))
    assert ("sink.history", logging.INFO, "sink history writes to bucket sensors") in caplog.record_tuples


def test_the_package_registers_one_type() -> None:
    types: dict[str, type] = {}
    receiver_influx.register_sinks(types.__setitem__)
    assert types == {"influx": Influx}
