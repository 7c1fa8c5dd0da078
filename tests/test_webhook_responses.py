"""What the webhook sink does with each response: delivered, retried, paused or given up, as its status says."""

from __future__ import annotations

import base64
import contextlib
from datetime import timedelta
from email.utils import format_datetime

import pytest
import time_machine
from support.built_in_sinks import Signal, class_of
from support.delivery import LoopTester
from support.endpoints import (
    Connection,
    OpenWebhook,
    Response,
    StartEndpoint,
    full_outcome,
    outcome,
    respond,
    send_and_close,
    webhook_event,
)
from support.events import NOW

from receiver import GiveUp, Pause, Retry
from receiver.redaction import Redactor, error_text
from receiver.testing.running import wait_until

REDIRECT = "redirects are not followed; set url to its target"


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        ("200 OK", [], None),
        ("201 Created", [], None),
        ("202 Accepted", [], None),
        ("204 No Content", [], None),
        ("299 Odd", [], None),
        ("301 Moved", ["Location: /elsewhere"], Signal(Pause, f"HTTP 301: {REDIRECT}")),
        ("302 Found", ["Location: /elsewhere"], Signal(Pause, f"HTTP 302: {REDIRECT}")),
        ("303 See Other", ["Location: /elsewhere"], Signal(Pause, f"HTTP 303: {REDIRECT}")),
        ("307 Temporary", ["Location: /elsewhere"], Signal(Pause, f"HTTP 307: {REDIRECT}")),
        ("308 Permanent", ["Location: /elsewhere"], Signal(Pause, f"HTTP 308: {REDIRECT}")),
        ("304 Not Modified", [], Signal(Pause, f"HTTP 304: {REDIRECT}")),
        ("400 Bad", [], Signal(Retry, "HTTP 400")),
        ("401 No", [], Signal(Pause, "HTTP 401: it rejects our credentials")),
        ("403 No", [], Signal(Pause, "HTTP 403: it denies access")),
        ("404 Not Found", [], Signal(Retry, "HTTP 404")),
        ("408 Timeout", [], Signal(Retry, "HTTP 408")),
        ("410 Gone", [], Signal(Pause, "HTTP 410: it is gone")),
        ("422 What", [], Signal(Retry, "HTTP 422")),
        ("425 Early", [], Signal(Retry, "HTTP 425")),
        ("429 Slow", [], Signal(Retry, "HTTP 429")),
        ("429 Slow", ["Retry-After: 7"], Signal(Pause, "HTTP 429: it asks us to wait", 7.0)),
        ("500 Oops", [], Signal(Retry, "HTTP 500")),
        ("500 Oops", ["Retry-After: 7"], Signal(Retry, "HTTP 500")),
        ("502 Oops", [], Signal(Retry, "HTTP 502")),
        ("503 Busy", [], Signal(Retry, "HTTP 503")),
        ("503 Busy", ["Retry-After: 120"], Signal(Pause, "HTTP 503: it asks us to wait", 120.0)),
        ("504 Oops", [], Signal(Retry, "HTTP 504")),
        ("999 Odd", [], Signal(Retry, "HTTP 999")),
    ],
)
def test_each_status_has_its_outcome(
    status: str, headers: list[str], expected: Signal | None, start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint(respond(status, *headers))
    assert outcome(open_webhook(endpoint.url)) == expected
    assert [request.line for request in endpoint.requests] == ["POST /hook HTTP/1.1"]


DAY = 24 * 3600.0


@pytest.mark.parametrize(
    ("value", "after"),
    [
        ("1", 1.0),
        (" 30 ", 30.0),
        ("86400", DAY),
        ("86401", DAY),
        ("9" * 400, DAY),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW + timedelta(seconds=90)), 90.0),
        ("Saturday, 14-Mar-26 12:01:30 GMT", 90.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", DAY),
        ("Fri, 31 Dec 9999 23:59:59 -1200", DAY),
    ],
)
@time_machine.travel(NOW, tick=False)
def test_retry_after_is_the_length_of_the_pause_up_to_a_day(
    value: str, after: float, start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint(respond("503 Busy", f"Retry-After: {value}"))
    assert outcome(open_webhook(endpoint.url)) == Signal(Pause, "HTTP 503: it asks us to wait", after)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "soon",
        "-5",
        "1.5",
        "1e9",
        "5, 7",
        "²",
        "0",
        "Sat, 14 Mar 2026 11:00:00 GMT",
        "Mon, 32 Jan 2026 00:00:00 GMT",
        "Mon, 99999999999999999999 Jan 2026 00:00:00 GMT",
        "Mon, 01 Jan 2026 00:00:00 +99999999999999999999",
    ],
)
@time_machine.travel(NOW, tick=False)
def test_a_retry_after_that_is_invalid_or_past_is_ignored(
    value: str, start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint(respond("429 Slow", f"Retry-After: {value}"))
    assert outcome(open_webhook(endpoint.url)) == Signal(Retry, "HTTP 429")


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"", ""),
        (b"invalid\n  token", " responds: invalid token"),
        (b"x" * 200, f" responds: {'x' * 100}"),
        (b"\xff\xfe", ""),
        ("\u00e6".encode(), " responds: \u00e6"),
        (b'no field "touch" in e1', ' responds: no field "touch" in e1'),
        (b'rejected: {"updateTime": "2026-03-14T11:59:00Z"}', ""),
    ],
    ids=["none", "lines", "long", "no text", "not ASCII", "short words of the event", "a part of the event"],
)
def test_the_reason_names_the_endpoint_and_the_beginning_of_its_response(
    body: bytes, shown: str, start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint(respond("500 Oops", body=body), respond("401 No", body=body))
    sink = open_webhook(endpoint.url)
    assert full_outcome(sink) == Signal(Retry, f"HTTP 500 (127.0.0.1{shown})")
    assert full_outcome(sink) == Signal(Pause, f"HTTP 401: it rejects our credentials (127.0.0.1{shown})")


@pytest.mark.parametrize(
    ("before", "secret"),
    [
        (0, "Bearer 0123456789-abcdefghij-0123456789"),
        (70, "Bearer 0123456789-abcdefghij-0123456789"),
        (85, "Bearer 0123456789-abcdefghij-0123456789"),
        (92, "Bearer 0123456789-abcdefghij-0123456789"),
        (92, "s3cr3t-key"),
    ],
)
def test_no_part_of_a_secret_is_quoted(
    before: int, secret: str, start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint(respond("500 Oops", body=b"x" * before + f" {secret} is not valid".encode()))
    sink = open_webhook(endpoint.url, headers={"authorization": secret})
    found = full_outcome(sink)
    assert found is not None
    assert error_text(Retry(found.reason), Redactor([secret]).redact) in (
        "HTTP 500 (127.0.0.1)",
        "HTTP 500 (127.0.0.1 responds: *** is not valid)",
    )


def test_no_part_of_the_login_of_a_proxy_is_quoted(start_endpoint: StartEndpoint, open_webhook: OpenWebhook) -> None:
    password = "a-password-of-a-proxy"
    sent = base64.b64encode(f"user:{password}".encode())
    proxy = start_endpoint(respond("502 Oops", body=b"Proxy-Authorization: Basic " + sent))
    sink = open_webhook("http://example.com/hook", proxy=f"http://user:{password}@127.0.0.1:{proxy.port}")
    assert full_outcome(sink) == Signal(Retry, "HTTP 502 (example.com)")


@pytest.mark.parametrize("status", ["400 Bad", "404 Not Found", "413 Large", "422 What"])
def test_an_event_that_is_rejected_three_times_while_another_is_accepted_is_given_up(
    status: str, start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    rejection = respond(status)
    endpoint = start_endpoint(rejection, respond("200 OK"), rejection, rejection)
    sink, other = open_webhook(endpoint.url), webhook_event("e2")
    code = status.partition(" ")[0]
    assert outcome(sink) == Signal(Retry, f"HTTP {code}")
    assert outcome(sink, other) is None
    assert [outcome(sink, attempt=attempt) for attempt in (2, 3)] == [
        Signal(Retry, f"HTTP {code}"),
        Signal(GiveUp, f"HTTP {code}: it rejects this event"),
    ]
    assert len(endpoint.requests) == 4


def test_no_event_is_given_up_while_the_endpoint_rejects_all_of_them(
    start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint(respond("200 OK"), *[respond("400 Bad")] * 200)
    sink = open_webhook(endpoint.url)
    assert outcome(sink, webhook_event("before")) is None
    events = [webhook_event(f"e{number}") for number in range(20)]
    for attempt in range(1, 11):
        assert {outcome(sink, event, attempt=attempt) for event in events} == {Signal(Retry, "HTTP 400")}


def test_a_webhook_that_rejects_one_event_is_not_paused_and_makes_a_dead_letter_of_it(
    start_endpoint: StartEndpoint, loop_tester: LoopTester
) -> None:
    def reject_the_bad_one(connection: Connection) -> bool | None:
        return respond("400 Bad" if b"bad" in endpoint.requests[-1].body else "200 OK")(connection)

    endpoint = start_endpoint(*[reject_the_bad_one] * 100)
    with contextlib.closing(class_of("webhook")(endpoint.url, allow_private=True)) as webhook:
        loop = loop_tester.loop(webhook)
        for number in range(10):
            loop_tester.add_deliveries(f"good{number}", *["bad"] * (number == 0))
            loop.step()
            assert not loop.breaker.probing
            loop_tester.clock.advance(60)
    assert loop_tester.counts() == (10, 0, 1)
    assert sum(b"bad" in request.body for request in endpoint.requests) == 3


def test_a_webhook_that_rejects_all_events_is_paused_and_delivers_all_when_it_works_again(
    start_endpoint: StartEndpoint, loop_tester: LoopTester
) -> None:
    endpoint = start_endpoint(*[respond("400 Bad")] * 100)
    with contextlib.closing(class_of("webhook")(endpoint.url, allow_private=True)) as webhook:
        loop = loop_tester.loop(webhook)
        loop_tester.add_deliveries(*(f"e{number}" for number in range(8)))
        while len(endpoint.requests) < 100:
            loop_tester.clock.advance(loop.step())
            assert loop_tester.counts() == (0, 8, 0)
        assert loop.breaker.state.pause_reason.startswith("it keeps failing: HTTP 400")
        while loop_tester.counts()[1]:
            loop_tester.clock.advance(loop.step())
    assert loop_tester.counts() == (8, 0, 0)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("401 No", Pause),
        ("403 No", Pause),
        ("410 Gone", Pause),
        ("302 Found", Pause),
        ("408 Timeout", Retry),
        ("425 Early", Retry),
        ("429 Slow", Retry),
        ("500 Oops", Retry),
        ("503 Busy", Retry),
    ],
)
def test_no_event_is_given_up_for_a_fault_of_the_endpoint(
    status: str, expected: type, start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint(respond(status))
    signal = outcome(open_webhook(endpoint.url), attempt=100)
    assert signal is not None
    assert signal.type is expected


def test_a_redirect_is_not_followed(start_endpoint: StartEndpoint, open_webhook: OpenWebhook) -> None:
    target = start_endpoint()
    endpoint = start_endpoint(respond("307 Temporary", f"Location: {target.url}"))
    assert outcome(open_webhook(endpoint.url)) == Signal(Pause, f"HTTP 307: {REDIRECT}")
    assert (len(endpoint.requests), target.connections) == (1, 0)


@pytest.mark.parametrize(("status", "expected"), [("200 OK", None), ("500 Oops", Signal(Retry, "HTTP 500"))])
def test_a_response_of_20_megabytes_is_not_read_to_its_end(
    status: str, expected: Signal | None, start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    sent: list[int] = []

    def send_20_megabytes(connection: Connection) -> None:
        connection.send(f"HTTP/1.1 {status}\r\nContent-Length: 20971520\r\n\r\n".encode())
        for _ in range(320):
            connection.send(b"x" * 65536)
            sent.append(65536)

    endpoint = start_endpoint(send_20_megabytes)
    sink = open_webhook(endpoint.url)
    assert outcome(sink) == expected
    wait_until(lambda: endpoint.closed == 1, what="the end of the connection")
    assert sum(sent) < 20971520
    assert outcome(sink) is None
    assert [request.connection for request in endpoint.requests] == [1, 2]


def test_a_chunk_of_negative_size_is_not_read_to_the_end_of_the_connection(
    start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    sent: list[int] = []

    def send_20_megabytes(connection: Connection) -> None:
        connection.send(b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n")
        for _ in range(320):
            connection.send(b"x" * 65536)
            sent.append(65536)

    endpoint = start_endpoint(send_20_megabytes)
    assert outcome(open_webhook(endpoint.url)) == Signal(Retry, "HTTP 500")
    wait_until(lambda: endpoint.closed == 1, what="the end of the connection")
    assert sum(sent) < 20971520


def stay_open(head: bytes) -> Response:
    """A response after which the endpoint waits for the end of the connection."""

    def response(connection: Connection) -> None:
        connection.send(head)
        with contextlib.suppress(OSError):
            connection.socket.recv(1)

    return response


ENDLESS_HEADERS = b"X-Header: value\r\n" * 60_000


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(b" OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", id="long header"),
        pytest.param(b" OK\r\n" + ENDLESS_HEADERS, id="endless headers"),
        pytest.param(b" " + b"x" * 70_000, id="long reason"),
        pytest.param(b" OK\r\n" + b"\0\xff garbage\r\n", id="a line of garbage"),
        pytest.param(b" OK\r\n" + b"garbage\n", id="a line that is no header"),
        pytest.param(b" OK\r\n" + b"X: y\r\n: no name\r\n", id="header without a name"),
        pytest.param(b" OK\r\n" + b"\0\xff" * 40_000, id="endless garbage"),
        pytest.param(b" OK\r\nContent-Length: many\r\n\r\n", id="length is not a number"),
        pytest.param(b" OK\r\nContent-Length: -1\r\n\r\n", id="negative length"),
        pytest.param(b" OK\r\nContent-Length: 1, 2\r\n\r\n", id="lengths"),
        pytest.param(b" OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", id="several lengths"),
        pytest.param(b" OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", id="encoding"),
    ],
)
@pytest.mark.parametrize(("status", "expected"), [("200", None), ("500", Signal(Retry, "HTTP 500"))])
def test_the_status_line_decides_and_a_connection_whose_rest_is_unusual_is_not_reused(
    status: str, expected: Signal | None, rest: bytes, start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint(stay_open(f"HTTP/1.1 {status}".encode() + rest), respond("503 Busy"))
    sink = open_webhook(endpoint.url)
    assert outcome(sink, webhook_event("e1")) == expected
    wait_until(lambda: endpoint.closed == 1, what="the end of the connection")
    assert outcome(sink, webhook_event("e2")) == Signal(Retry, "HTTP 503")
    assert [request.connection for request in endpoint.requests] == [1, 2]


@pytest.mark.parametrize(("status", "expected"), [("200 OK", None), ("500 Oops", Signal(Retry, "HTTP 500"))])
def test_garbage_and_the_end_of_the_connection_after_the_status_line_do_not_change_it(
    status: str, expected: Signal | None, start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint(send_and_close(f"HTTP/1.1 {status}\r\n\0\1 garbage".encode()))
    assert outcome(open_webhook(endpoint.url)) == expected


@pytest.mark.parametrize("count", [99, 120, 2000])
def test_many_headers_cost_neither_the_response_nor_the_connection(
    count: int, start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    headers = [f"X-Header-{number}: value" for number in range(count)]
    endpoint = start_endpoint(respond("200 OK", *headers, body=b"thanks"), respond("500 Oops", *headers))
    sink = open_webhook(endpoint.url)
    assert [outcome(sink) for _ in range(3)] == [None, Signal(Retry, "HTTP 500"), None]
    assert [request.connection for request in endpoint.requests] == [1, 1, 1]


@pytest.mark.parametrize(
    "rest", [b"\r\n", b"X: " + b"x" * 70_000 + b"\r\n\r\n", ENDLESS_HEADERS, b"garbage\r\n", b"retry-after: 9\r\n\r\n"]
)
def test_a_retry_after_before_what_is_unusual_is_honoured(
    rest: bytes, start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint(stay_open(b"HTTP/1.1 503 Busy\r\nX: y\r\n folded\r\nRETRY-AFTER: 7\r\n" + rest))
    assert outcome(open_webhook(endpoint.url)) == Signal(Pause, "HTTP 503: it asks us to wait", 7.0)


def test_many_headers_of_a_100_are_skipped(start_endpoint: StartEndpoint, open_webhook: OpenWebhook) -> None:
    head = b"HTTP/1.1 100 Continue\r\n" + b"X: y\r\n" * 120 + b"\r\nHTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"
    endpoint = start_endpoint(send_and_close(head))
    assert outcome(open_webhook(endpoint.url)) == Signal(Retry, "HTTP 500")


@pytest.mark.parametrize(
    "status", ["100 Continue", "102 Processing", "103 Early Hints\r\nLink: </style.css>", "199 Odd"]
)
@pytest.mark.parametrize(("final", "expected"), [("200 OK", None), ("503 Busy", Signal(Retry, "HTTP 503"))])
def test_interim_responses_are_skipped(
    status: str, final: str, expected: Signal | None, start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    interim = f"HTTP/1.1 {status}\r\n\r\n" * 2
    endpoint = start_endpoint(send_and_close(f"{interim}HTTP/1.1 {final}\r\nContent-Length: 0\r\n\r\n".encode()))
    assert outcome(open_webhook(endpoint.url)) == expected


def test_a_switch_of_protocols_is_not_delivered(start_endpoint: StartEndpoint, open_webhook: OpenWebhook) -> None:
    endpoint = start_endpoint(send_and_close(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"))
    assert outcome(open_webhook(endpoint.url)) == Signal(Retry, "HTTP 101")


@pytest.mark.parametrize("status", ["102 Processing", "103 Early Hints", "199 Odd"])
def test_a_late_response_is_never_read_as_the_response_to_the_next_event(
    status: str, start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    def respond_twice(connection: Connection) -> bool:
        connection.send(f"HTTP/1.1 {status}\r\n\r\n".encode())
        connection.test_is_over.wait(0.5)
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        return True

    endpoint = start_endpoint(respond_twice, respond("500 Oops"))
    sink = open_webhook(endpoint.url)
    outcome(sink, webhook_event("e1"))
    assert outcome(sink, webhook_event("e2")) == Signal(Retry, "HTTP 500")
