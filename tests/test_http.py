"""HTTP: requests that are malformed or unusual, other methods and paths, and what happens to the connection."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from contextlib import ExitStack, closing

import pytest
from conftest import TEST_SECRET, RunningReceiver
from support.intake import Snapshot
from support.pushes import FORBIDDEN, event, event_id, signed
from support.raw_http import BODY, CHUNKED, CLIENT_SECONDS, HEAD, Client, MakeRequest, Response, chunked_push, push

from receiver.signature import HEADER

HINT = f"POST / accepts the pushes of a DT Data Connector, signed in {HEADER}; see also /healthz, /readyz, /metrics"
NOT_ALLOWED = f"Method Not Allowed. {HINT}"
NOT_FOUND = f"Not Found. {HINT}"

MALFORMED = Response(400, "malformed request", closing=True)
TOO_LONG = Response(414, "malformed request", closing=True)
TOO_MANY = Response(431, "malformed request", closing=True)


def with_line(line: bytes) -> MakeRequest:
    """A genuine push with another line among its headers."""
    return lambda: push(BODY, line)


def with_length(length: bytes) -> MakeRequest:
    return lambda: push(BODY).replace(b"Content-Length: %d" % len(BODY), b"Content-Length: " + length)


def with_request_line(line: bytes) -> MakeRequest:
    return lambda: push(BODY).replace(b"POST / HTTP/1.1", line)


MALFORMED_REQUESTS: dict[str, tuple[MakeRequest, Response]] = {
    "HTTP/0.9": (lambda: b"GET /\r\n", MALFORMED),
    "HTTP/2": (with_request_line(b"POST / HTTP/2.0"), MALFORMED),
    "the preface of HTTP/2": (lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", MALFORMED),
    "HTTP/1.10": (with_request_line(b"POST / HTTP/1.10"), MALFORMED),
    "version in lower case": (with_request_line(b"POST / http/1.1"), MALFORMED),
    "no version": (with_request_line(b"POST /"), MALFORMED),
    "no path": (with_request_line(b"POST"), MALFORMED),
    "two blanks": (with_request_line(b"POST  / HTTP/1.1"), MALFORMED),
    "a blank in the path": (with_request_line(b"POST /a b HTTP/1.1"), MALFORMED),
    "a letter outside ASCII in the path": (with_request_line(b"POST /\xe9 HTTP/1.1"), MALFORMED),
    "a NUL in the path": (with_request_line(b"POST /\0 HTTP/1.1"), MALFORMED),
    "a path that does not begin with a slash": (with_request_line(b"POST push HTTP/1.1"), MALFORMED),
    "the path *": (with_request_line(b"POST * HTTP/1.1"), MALFORMED),
    "a URI with an incomplete address": (with_request_line(b"POST http://[::1 HTTP/1.1"), MALFORMED),
    "method in lower case": (with_request_line(b"post / HTTP/1.1"), MALFORMED),
    "no method": (with_request_line(b" / HTTP/1.1"), MALFORMED),
    "a method of 30 letters": (with_request_line(b"P" * 30 + b" / HTTP/1.1"), MALFORMED),
    "a TLS hello": (lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", MALFORMED),
    "NUL bytes": (lambda: b"\0" * 64 + b"\r\n\r\n", MALFORMED),
    "empty lines": (lambda: b"\r\n\r\n\r\n", MALFORMED),
    "lines that end in LF alone": (lambda: push(BODY).replace(b"\r\n", b"\n"), MALFORMED),
    "a PROXY line before the request": (lambda: b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + push(BODY), MALFORMED),
    "a request line of 5,000 bytes": (with_request_line(b"POST /" + b"a" * 5000 + b" HTTP/1.1"), TOO_LONG),
    "a request line that does not end": (lambda: b"A" * 9000, TOO_LONG),
    "a header of 10,000 bytes": (with_line(b"X-A: " + b"a" * 10_000), TOO_MANY),
    "a header name of 10,000 bytes": (with_line(b"X" * 10_000 + b": a"), TOO_MANY),
    "200 headers": (with_line(b"\r\n".join(b"X-%d: a" % number for number in range(200))), TOO_MANY),
    "a NUL in a header": (with_line(b"X-A: a\0b"), MALFORMED),
    "a CR in a header": (with_line(b"X-A: a\rb"), MALFORMED),
    "an LF in a header": (with_line(b"X-A: a\nX-B: b"), MALFORMED),
    "a header without a colon": (with_line(b"colon"), MALFORMED),
    "a header without a name": (with_line(b": a"), MALFORMED),
    "a blank before the colon": (with_line(b"X-A : a"), MALFORMED),
    "a folded header": (with_line(b"X-A: a\r\n b"), MALFORMED),
    "a blank before a header": (with_line(b" X-A: a"), MALFORMED),
    "a letter outside ASCII in the name of a header": (with_line(b"X-\xc3\xa9: a"), MALFORMED),
    "two hosts": (with_line(b"Host: other"), MALFORMED),
    "two content types": (with_line(b"Content-Type: a/b\r\nContent-Type: c/d"), MALFORMED),
    "an unknown expectation": (with_line(b"Expect: a"), Response(417, "malformed request", closing=True)),
    "two lengths": (with_line(b"Content-Length: %d" % len(BODY)), MALFORMED),
    "a length and chunks": (with_line(b"Transfer-Encoding: chunked"), MALFORMED),
    "chunks and a length": (
        lambda: chunked_push(BODY, b"").replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n"),
        MALFORMED,
    ),
    "chunks twice": (lambda: CHUNKED.replace(b"chunked", b"chunked, chunked") + b"0\r\n\r\n", MALFORMED),
    "chunks, then gzip": (lambda: CHUNKED.replace(b"chunked", b"chunked, gzip") + b"0\r\n\r\n", MALFORMED),
    "transfer coding gzip": (with_line(b"Transfer-Encoding: gzip"), MALFORMED),
    "transfer coding identity": (with_line(b"Transfer-Encoding: identity"), MALFORMED),
    "an unknown transfer coding": (with_line(b"Transfer-Encoding: xchunked"), MALFORMED),
    "chunks in HTTP/1.0": (lambda: CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n", MALFORMED),
    "length -1": (with_length(b"-1"), MALFORMED),
    "length +5": (with_length(b"+5"), MALFORMED),
    "length 5, 5": (with_length(b"5, 5"), MALFORMED),
    "length 5,5": (with_length(b"5,5"), MALFORMED),
    "length 0x5": (with_length(b"0x5"), MALFORMED),
    "length 5.0": (with_length(b"5.0"), MALFORMED),
    "length 1e3": (with_length(b"1e3"), MALFORMED),
    "length 1_0": (with_length(b"1_0"), MALFORMED),
    "a length that is a word": (with_length(b"all"), MALFORMED),
    "no length after the colon": (with_length(b""), MALFORMED),
    "a length in digits outside ASCII": (with_length(b"\xb2"), MALFORMED),
    "a length of 5,000 digits": (with_length(b"9" * 5000), MALFORMED),
}


@pytest.mark.parametrize("name", MALFORMED_REQUESTS)
def test_a_malformed_request_is_rejected_and_the_connection_is_closed(
    name: str, shared_receiver: RunningReceiver
) -> None:
    make_request, expected = MALFORMED_REQUESTS[name]
    before = Snapshot.of(shared_receiver)
    with Client(shared_receiver) as client:
        assert client.send(make_request()).response() == expected
        assert client.is_closed()
    assert Snapshot.of(shared_receiver) == before


def test_nothing_from_a_malformed_request_is_in_the_log(shared_receiver: RunningReceiver) -> None:
    with ExitStack() as stack:
        for make_request, _ in MALFORMED_REQUESTS.values():
            request = make_request().replace(b"X-A", b"X-" + FORBIDDEN.encode())
            stack.enter_context(Client(shared_receiver)).send(request).response()
    log = shared_receiver.log
    assert [text for text in (FORBIDDEN, TEST_SECRET, "Traceback", "eyJ") if text in log] == []


UNUSUAL_REQUESTS: dict[str, Callable[[bytes], bytes]] = {
    "an absolute URI": lambda body: push(body, path=b"http://receiver/"),
    "an absolute URI of another host": lambda body: push(body, path=b"https://other.example:8443/"),
    "a fragment": lambda body: push(body, path=b"/#a"),
    "an empty line before the request": lambda body: b"\r\n" + push(body),
    "no host": lambda body: push(body).replace(b"Host: receiver\r\n", b""),
    "an empty host": lambda body: push(body).replace(b"Host: receiver", b"Host:"),
    "a host outside ASCII": lambda body: push(body).replace(b"Host: receiver", b"Host: \xff\xfe"),
    "an invalid host": lambda body: push(body).replace(b"Host: receiver", b"Host: a b/[::"),
    "a length after zeros": lambda body: push(body).replace(b"Content-Length: ", b"Content-Length: 000"),
    "a length after blanks": lambda body: push(body).replace(b"Content-Length: ", b"Content-Length: \t "),
    "90 headers": lambda body: push(body, *(b"X-%d: a" % number for number in range(90))),
    "a header of 8,000 bytes": lambda body: push(body, b"X-A: " + b"a" * 8000),
    "a header outside ASCII": lambda body: push(body, b"X-A: \xff\xfe\x80"),
    "an empty header": lambda body: push(body, b"X-A:"),
    "a header named like a WSGI variable": lambda body: push(body, b"PATH_INFO: /healthz"),
    "a cookie of many parts": lambda body: push(body, b"Cookie: " + b"a=b;" * 1500),
    "a proxy header with a mount point": lambda body: push(body, b"SCRIPT_NAME: /hooks"),
    "proxy headers that contradict each other": lambda body: push(
        body, b"X-Forwarded-Proto: https", b"X-Forwarded-Ssl: off"
    ),
}


@pytest.mark.parametrize("name", UNUSUAL_REQUESTS)
def test_a_genuine_push_in_an_unusual_but_valid_request_is_accepted(
    name: str, shared_receiver: RunningReceiver
) -> None:
    with Client(shared_receiver) as client:
        request = UNUSUAL_REQUESTS[name](event(f"unusual request: {name}"))
        assert client.send(request).response() == Response(200, "accepted", closing=False)


def send(receiver: RunningReceiver, method: str, path: str) -> tuple[int, str, str | None]:
    """Send a genuine push with another method or to another path; status, text and Allow of the response."""
    body = event(f"{method} {path}")
    response = receiver.http.request(method, receiver.url + path, body=body, headers=signed(body), redirect=False)
    return response.status, response.data.decode(), response.headers.get("Allow")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD", "TRACE", "PROPFIND", "FOO"])
def test_another_method_on_the_root_gets_405_with_a_hint_and_nothing_is_stored(
    method: str, shared_receiver: RunningReceiver
) -> None:
    before = Snapshot.of(shared_receiver)
    text = "" if method == "HEAD" else NOT_ALLOWED
    assert send(shared_receiver, method, "/") == (405, text, "POST")
    assert Snapshot.of(shared_receiver) == before


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_the_other_pages_are_read_only(method: str, path: str, shared_receiver: RunningReceiver) -> None:
    before = Snapshot.of(shared_receiver)
    status, text, allow = send(shared_receiver, method, path)
    assert (status, text, set((allow or "").split(", "))) == (405, NOT_ALLOWED, {"GET", "HEAD", "OPTIONS"})
    assert Snapshot.of(shared_receiver) == before


UNKNOWN_PATHS = ["/push", "/index.html", "/healthz/", "/healthz/x", "/HEALTHZ", "/%00", "/%ff", "/;a", "/%20", "/a//b"]
UNKNOWN_PATHS += ["/%0d%0aX-A:%20b", "/" + "a" * 3000, "/static/app.py", "/%2e%2e/%2e%2e/etc/passwd", f"/{FORBIDDEN}"]


@pytest.mark.parametrize("path", UNKNOWN_PATHS, ids=lambda path: path[:30])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_gets_404_and_nothing_is_stored(
    method: str, path: str, shared_receiver: RunningReceiver
) -> None:
    before = Snapshot.of(shared_receiver)
    assert send(shared_receiver, method, path) == (404, NOT_FOUND, None)
    assert Snapshot.of(shared_receiver) == before


@pytest.mark.parametrize("path", [b"//", b"/%2f", b"///", b"/%2F/"])
def test_a_push_to_several_slashes_gets_404_without_an_error_in_the_log(
    path: bytes, shared_receiver: RunningReceiver
) -> None:
    before, errors = Snapshot.of(shared_receiver), shared_receiver.log.count("internal error")
    with Client(shared_receiver) as client:
        assert client.send(push(event("several slashes"), path=path)).response() == Response(404, NOT_FOUND, False)
    assert (Snapshot.of(shared_receiver), shared_receiver.log.count("internal error")) == (before, errors)


@pytest.mark.parametrize("path", [b"/..", b"/.", b"/../", b"/./", b"//push", b"http://receiver/push", b"/\\"])
def test_dots_and_slashes_in_a_path_lead_nowhere(path: bytes, shared_receiver: RunningReceiver) -> None:
    with Client(shared_receiver) as client:
        assert client.send(push(BODY, path=path)).response() == Response(404, NOT_FOUND, closing=False)


@pytest.mark.parametrize("path", ["/?x=1", "/?", "/?X-Dt-Signature=a", "/?%ff"])
def test_a_query_after_the_root_is_ignored(path: str, shared_receiver: RunningReceiver) -> None:
    assert send(shared_receiver, "POST", path) == (200, "accepted", None)


def test_an_absolute_uri_without_a_path_gets_one_plain_line_that_does_not_repeat_the_host(
    shared_receiver: RunningReceiver,
) -> None:
    before = Snapshot.of(shared_receiver)
    with Client(shared_receiver) as client:
        response = client.send(push(event("no path"), path=b"http://other.example")).response()
    after = Snapshot.of(shared_receiver)
    if response == Response(200, "accepted", closing=False):
        assert after == before.after(200, "accepted", event=event_id("no path"))
    else:
        assert response == Response(404, NOT_FOUND, closing=False)
        assert after == before


def test_every_response_to_a_push_is_one_plain_line(shared_receiver: RunningReceiver) -> None:
    body = event("plain line")
    responses = [
        shared_receiver.http.request("POST", shared_receiver.url, body=body, headers=headers)
        for headers in (signed(body), {})
    ]
    assert [(response.headers["Content-Type"], response.headers["Content-Length"]) for response in responses] == [
        ("text/plain; charset=utf-8", str(len("accepted"))),
        ("text/plain; charset=utf-8", str(len("missing header X-Dt-Signature"))),
    ]


def test_expect_100_continue_is_confirmed_before_the_body_is_sent(shared_receiver: RunningReceiver) -> None:
    body = event("expectation")
    request = push(body, b"Expect: 100-continue")
    with Client(shared_receiver) as client:
        assert client.send(request[: -len(body)]).response() == Response(100, "", closing=False)
        assert client.send(body).response() == Response(200, "accepted", closing=False)


def test_a_push_in_http_1_0_is_accepted_and_the_connection_is_closed(shared_receiver: RunningReceiver) -> None:
    with Client(shared_receiver) as client:
        request = push(event("HTTP/1.0")).replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"Host: receiver\r\n", b"")
        assert client.send(request).response() == Response(200, "accepted", closing=True)
        assert client.is_closed()


def test_pipelined_requests_get_their_responses_in_order(shared_receiver: RunningReceiver) -> None:
    requests = [
        push(event("pipelined 1")),
        HEAD + b"Content-Length: 2\r\n\r\n{}",
        push(b"pipelined"),
        push(event("pipelined 1")),
        push(BODY, path=b"/push"),
        push(event("pipelined 2")),
    ]
    with Client(shared_receiver) as client:
        client.send(b"".join(requests))
        responses = [client.response() for _ in requests]
    assert [(response.status, response.text) for response in responses if response] == [
        (200, "accepted"),
        (400, "missing header X-Dt-Signature"),
        (200, "quarantined"),
        (200, "duplicate"),
        (404, NOT_FOUND),
        (200, "accepted"),
    ]


def test_a_body_that_looks_like_a_request_is_not_taken_for_one(shared_receiver: RunningReceiver) -> None:
    inner = push(event("smuggled"))
    before = Snapshot.of(shared_receiver)
    with Client(shared_receiver) as client:
        client.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(inner) + inner)
        assert client.response() == Response(400, "missing header X-Dt-Signature", closing=False)
        assert client.send(push(b"[]", path=b"/push")).response() == Response(404, NOT_FOUND, closing=False)
    assert Snapshot.of(shared_receiver) == before.after(400, "missing header X-Dt-Signature")


ERRORS: dict[str, MakeRequest] = {
    "400": lambda: HEAD + b"Content-Length: 2\r\n\r\n{}",
    "404": lambda: push(BODY, path=b"/push"),
    "405": lambda: push(BODY).replace(b"POST", b"PUT", 1),
    "413": lambda: push(b"a" * 300_000),
    "413 in chunks": lambda: CHUNKED + b"%x\r\n" % 300_000 + b"a" * 300_000 + b"\r\n0\r\n\r\n",
    "400 for chunks": lambda: CHUNKED + b"zz\r\n",
    "400 for a header": lambda: push(BODY, b"colon"),
    "404 with a body that is not read": lambda: push(b"a" * 60_000, path=b"/push"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_after_an_error_the_connection_is_either_closed_or_serves_the_next_push(
    name: str, shared_receiver: RunningReceiver
) -> None:
    body = event(f"after {name}")
    with Client(shared_receiver) as client:
        response = client.send(ERRORS[name]()).response()
        assert response is not None
        assert response.status == int(name[:3])
        try:
            following = client.send(push(body)).response()
        except (BrokenPipeError, ConnectionResetError):
            following = None
    assert following in (None, Response(200, "accepted", closing=False))
    assert shared_receiver.push(body) == (200, "duplicate" if following else "accepted")


@pytest.mark.parametrize("line", ["POST /nowhere", "PUT /"])
def test_a_connection_can_be_reused_after_an_unwanted_body(line: str, shared_receiver: RunningReceiver) -> None:
    method, path = line.split()
    connection = http.client.HTTPConnection("127.0.0.1", shared_receiver.port, timeout=CLIENT_SECONDS)
    with closing(connection):
        connection.request(method, path, body=bytes(200_000))
        response = connection.getresponse()
        response.read()
        assert response.status in (404, 405)
        connection.auto_open = 0
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b"ok"
