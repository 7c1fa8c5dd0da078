"""The front door over raw sockets: requests that are not HTTP, not complete, or never come to an end."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass

import pytest
from conftest import CSV_ONLY, TEST_SECRET, Running, StartReceiver, wait_until
from gunicorn.config import Config
from gunicorn.workers import gthread

from receiver.demo import value
from receiver.intake import Connection, PatientWorker
from receiver.signature import HEADER, sign
from receiver.simulator import Simulator

PATIENCE_SECONDS = 15.0
DEADLINE_SECONDS = 2.0
HEAD = b"POST / HTTP/1.1\r\nHost: receiver\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = b'{"marked": "Zm9yYmlkZGVu"}'
MARK = b"Zm9yYmlkZGVu"
HINT = f"POST / takes the pushes of a DT Data Connector, signed in {HEADER}; there are also /healthz, /readyz, /metrics"


def few_threads(threads: int) -> str:
    return f"{CSV_ONLY}\n[receiver]\nthreads = {threads}\n"


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("receiver"), CSV_ONLY, None, {})
    try:
        yield running.start()
    finally:
        running.kill_all()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A receiver of one process with 8 threads."""
    running = Running(tmp_path_factory.mktemp("small"), few_threads(8), None, {"WEB_CONCURRENCY": "1"})
    try:
        yield running.start()
    finally:
        running.kill_all()


@dataclass(frozen=True)
class Answer:
    status: int
    text: str
    closing: bool


class Client:
    """A connection on which anything can be sent."""

    def __init__(self, receiver: Running, receive_buffer: int | None = None, segment: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if segment is not None:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
        self.socket.settimeout(PATIENCE_SECONDS)
        self.socket.connect(("127.0.0.1", receiver.port))
        self._answers = self.socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self._answers.close()
        self.socket.close()

    def send(self, data: bytes) -> Client:
        self.socket.sendall(data)
        return self

    def half_close(self) -> Client:
        self.socket.shutdown(socket.SHUT_WR)
        return self

    def drip(self, data: bytes, pause: float) -> Client:
        """Send a byte each `pause` seconds, until the receiver says something."""
        said = select.poll()
        said.register(self.socket, select.POLLIN)
        for byte in data:
            if said.poll(pause * 1000):
                break
            self.socket.sendall(bytes([byte]))
        return self

    def answer(self) -> Answer | None:
        """The next answer, or None when the receiver has closed the connection."""
        line = self._answers.readline()
        if not line:
            return None
        headers: dict[str, str] = {}
        while field := self._answers.readline().strip().decode():
            name, _, value = field.partition(":")
            headers[name.lower()] = value.strip()
        status = int(line.split()[1])
        text = self._answers.read(int(headers.get("content-length", "0"))).decode()
        return Answer(status, text, headers.get("connection") == "close")

    def closed(self) -> bool:
        """Wait for the receiver to close, and say whether it did so without another word."""
        try:
            return self._answers.read() == b""
        except ConnectionResetError:  # by what was sent in the moment of its closing
            return True


def token(body: bytes) -> bytes:
    return sign(body, TEST_SECRET, time.time())[HEADER].encode()


def push(body: bytes, *headers: bytes, path: bytes = b"/") -> bytes:
    """A genuine push as it goes over the wire."""
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: receiver", HEADER.encode() + b": " + token(body), *headers]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body])


def in_chunks(body: bytes, framed: bytes) -> bytes:
    """A genuine push of `body`, with that framing of it."""
    return HEAD + HEADER.encode() + b": " + token(body) + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + framed


def event(name: str) -> bytes:
    """The body of an event of its own for each test."""
    payload = json.loads(Simulator(0).body("touch"))
    payload["event"]["eventId"] = hashlib.sha256(name.encode()).hexdigest()[:20]
    return json.dumps(payload).encode()


def left_in_journal(receiver: Running) -> tuple[int, int, int]:
    """How many pushes were accepted, duplicates and quarantined so far."""
    page = receiver.http.request("GET", f"{receiver.url}/metrics").data.decode()
    accepted, duplicate, quarantined = (
        value(page, f'receiver_pushes_total{{answer="{answer}",status="200"}}')
        for answer in ("accepted", "duplicate", "quarantined")
    )
    return accepted, duplicate, quarantined


MALFORMED = Answer(400, "malformed request", closing=True)
TOO_LONG = Answer(414, "malformed request", closing=True)
TOO_MANY = Answer(431, "malformed request", closing=True)


def with_header(line: bytes) -> Callable[[], bytes]:
    return lambda: push(BODY, line)


def with_length(length: bytes) -> Callable[[], bytes]:
    return lambda: push(BODY).replace(b"Content-Length: %d" % len(BODY), b"Content-Length: " + length)


def request_line(line: bytes) -> Callable[[], bytes]:
    return lambda: push(BODY).replace(b"POST / HTTP/1.1", line)


NOT_HTTP: dict[str, tuple[Callable[[], bytes], Answer]] = {
    "HTTP/0.9": (lambda: b"GET /\r\n", MALFORMED),
    "HTTP/2": (request_line(b"POST / HTTP/2.0"), MALFORMED),
    "the preface of HTTP/2": (lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", MALFORMED),
    "HTTP/1.10": (request_line(b"POST / HTTP/1.10"), MALFORMED),
    "version in small letters": (request_line(b"POST / http/1.1"), MALFORMED),
    "no version": (request_line(b"POST /"), MALFORMED),
    "no path": (request_line(b"POST"), MALFORMED),
    "two blanks": (request_line(b"POST  / HTTP/1.1"), MALFORMED),
    "a blank in the path": (request_line(b"POST /a b HTTP/1.1"), MALFORMED),
    "a letter outside ASCII in the path": (request_line(b"POST /\xe9 HTTP/1.1"), MALFORMED),
    "a NUL in the path": (request_line(b"POST /\0 HTTP/1.1"), MALFORMED),
    "a path that begins with no slash": (request_line(b"POST push HTTP/1.1"), MALFORMED),
    "the path *": (request_line(b"POST * HTTP/1.1"), MALFORMED),
    "a URI with half an address": (request_line(b"POST http://[::1 HTTP/1.1"), MALFORMED),
    "method in small letters": (request_line(b"post / HTTP/1.1"), MALFORMED),
    "no method": (request_line(b" / HTTP/1.1"), MALFORMED),
    "a method of 30 letters": (request_line(b"P" * 30 + b" / HTTP/1.1"), MALFORMED),
    "a TLS hello": (lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", MALFORMED),
    "zeros": (lambda: b"\0" * 64 + b"\r\n\r\n", MALFORMED),
    "empty lines": (lambda: b"\r\n\r\n\r\n", MALFORMED),
    "lines that end in LF alone": (lambda: push(BODY).replace(b"\r\n", b"\n"), MALFORMED),
    "a line of a proxy before the request": (lambda: b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + push(BODY), MALFORMED),
    "a request line of 5,000 bytes": (request_line(b"POST /" + b"a" * 5000 + b" HTTP/1.1"), TOO_LONG),
    "a request line that does not end": (lambda: b"A" * 9000, TOO_LONG),
    "a header of 10,000 bytes": (with_header(b"X-A: " + b"a" * 10_000), TOO_MANY),
    "a header name of 10,000 bytes": (with_header(b"X" * 10_000 + b": a"), TOO_MANY),
    "200 headers": (with_header(b"\r\n".join(b"X-%d: a" % number for number in range(200))), TOO_MANY),
    "a NUL in a header": (with_header(b"X-A: a\0b"), MALFORMED),
    "a CR in a header": (with_header(b"X-A: a\rb"), MALFORMED),
    "an LF in a header": (with_header(b"X-A: a\nX-B: b"), MALFORMED),
    "a header without a colon": (with_header(b"colon"), MALFORMED),
    "a header without a name": (with_header(b": a"), MALFORMED),
    "a blank before the colon": (with_header(b"X-A : a"), MALFORMED),
    "a folded header": (with_header(b"X-A: a\r\n b"), MALFORMED),
    "a blank before a header": (with_header(b" X-A: a"), MALFORMED),
    "a letter outside ASCII in a header's name": (with_header(b"X-\xc3\xa9: a"), MALFORMED),
    "two hosts": (with_header(b"Host: other"), MALFORMED),
    "two content types": (with_header(b"Content-Type: a/b\r\nContent-Type: c/d"), MALFORMED),
    "an unknown expectation": (with_header(b"Expect: a"), Answer(417, "malformed request", closing=True)),
    "two lengths": (with_header(b"Content-Length: %d" % len(BODY)), MALFORMED),
    "a length and chunks": (with_header(b"Transfer-Encoding: chunked"), MALFORMED),
    "chunks and a length": (
        lambda: in_chunks(BODY, b"").replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n"),
        MALFORMED,
    ),
    "chunks twice": (lambda: CHUNKED.replace(b"chunked", b"chunked, chunked") + b"0\r\n\r\n", MALFORMED),
    "chunks, then gzip": (lambda: CHUNKED.replace(b"chunked", b"chunked, gzip") + b"0\r\n\r\n", MALFORMED),
    "gzip alone": (with_header(b"Transfer-Encoding: gzip"), MALFORMED),
    "identity": (with_header(b"Transfer-Encoding: identity"), MALFORMED),
    "an unknown transfer coding": (with_header(b"Transfer-Encoding: xchunked"), MALFORMED),
    "chunks in HTTP/1.0": (lambda: CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n", MALFORMED),
    "length -1": (with_length(b"-1"), MALFORMED),
    "length +5": (with_length(b"+5"), MALFORMED),
    "length 5, 5": (with_length(b"5, 5"), MALFORMED),
    "length 5,5": (with_length(b"5,5"), MALFORMED),
    "length 0x5": (with_length(b"0x5"), MALFORMED),
    "length 5.0": (with_length(b"5.0"), MALFORMED),
    "length 1e3": (with_length(b"1e3"), MALFORMED),
    "length 1_0": (with_length(b"1_0"), MALFORMED),
    "length of a word": (with_length(b"all"), MALFORMED),
    "no length after the colon": (with_length(b""), MALFORMED),
    "a length in digits outside ASCII": (with_length(b"\xb2"), MALFORMED),
    "a length of 5,000 digits": (with_length(b"9" * 5000), MALFORMED),
}


@pytest.mark.parametrize("name", NOT_HTTP)
def test_what_is_not_a_request_is_refused_and_the_connection_closed(name: str, receiver: Running) -> None:
    make, expected = NOT_HTTP[name]
    before = left_in_journal(receiver)
    with Client(receiver) as client:
        assert client.send(make()).answer() == expected
        assert client.closed()
    assert left_in_journal(receiver) == before


MALFORMED_BODY = (400, "malformed body")
BAD_CHUNKS = {
    "a size in letters": b"zz\r\n%b\r\n0\r\n\r\n",
    "a negative size": b"-1\r\n%b\r\n0\r\n\r\n",
    "a size with a plus": b"+1a\r\n%b\r\n0\r\n\r\n",
    "a size with 0x": b"0x1a\r\n%b\r\n0\r\n\r\n",
    "a size with an underscore": b"1_a\r\n%b\r\n0\r\n\r\n",
    "a size with blanks before it": b" 1a\r\n%b\r\n0\r\n\r\n",
    "no size": b"\r\n%b\r\n0\r\n\r\n",
    "a size that is too small": b"19\r\n%b\r\n0\r\n\r\n",
    "a size that does not end": b"1" * 20_000,
    "no line end after a chunk": b"1a\r\n%b0\r\n\r\n",
    "LF after a chunk": b"1a\r\n%b\n0\r\n\r\n",
    "an extension outside ASCII": b"1a;\xff\r\n%b\r\n0\r\n\r\n",
    "a CR in an extension": b"1a;a\r=b\r\n%b\r\n0\r\n\r\n",
    "a trailer that sets the length": b"1a\r\n%b\r\n0\r\nContent-Length: 5\r\n\r\n",
    "a trailer that sets the framing": b"1a\r\n%b\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a trailer without a colon": b"1a\r\n%b\r\n0\r\ncolon\r\n\r\n",
    "a trailer with a NUL": b"1a\r\n%b\r\n0\r\nX-A: \0\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_malformed_chunks_of_a_genuine_push_are_refused_and_the_connection_closed(name: str, receiver: Running) -> None:
    before = left_in_journal(receiver)
    with Client(receiver) as client:
        answer = client.send(in_chunks(BODY, BAD_CHUNKS[name].replace(b"%b", BODY))).answer()
        assert answer is not None
        assert (answer.status, answer.text) == MALFORMED_BODY
        assert client.closed()
    assert left_in_journal(receiver) == before


GOOD_CHUNKS = {
    "one chunk": b"%x\r\n%b\r\n0\r\n\r\n",
    "a size in capitals with zeros before it": b"00%X\r\n%b\r\n0\r\n\r\n",
    "an extension": b"%x;a=b\r\n%b\r\n0\r\n\r\n",
    "a trailer": b"%x\r\n%b\r\n0\r\nX-A: b\r\n\r\n",
    "a trailer with another token": b"%x\r\n%b\r\n0\r\nX-Dt-Signature: a\r\n\r\n",
    "a last chunk of many zeros": b"%x\r\n%b\r\n00000\r\n\r\n",
}


@pytest.mark.parametrize("name", GOOD_CHUNKS)
def test_unusual_chunks_of_a_genuine_push_are_accepted(name: str, receiver: Running) -> None:
    body = event(name)
    framed = GOOD_CHUNKS[name].replace(b"%x", b"%x" % len(body)).replace(b"%X", b"%X" % len(body)).replace(b"%b", body)
    with Client(receiver) as client:
        assert client.send(in_chunks(body, framed)).answer() == Answer(200, "accepted", closing=False)
        assert client.send(push(body)).answer() == Answer(200, "duplicate", closing=False)


def test_a_body_in_chunks_of_one_byte_is_accepted(receiver: Running) -> None:
    body = event("one byte")
    framed = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with Client(receiver) as client:
        assert client.send(in_chunks(body, framed)).answer() == Answer(200, "accepted", closing=False)


UNUSUAL: dict[str, Callable[[bytes], bytes]] = {
    "an absolute URI": lambda body: push(body, path=b"http://receiver/"),
    "an absolute URI of another host": lambda body: push(body, path=b"https://other.example:8443/"),
    "a fragment": lambda body: push(body, path=b"/#a"),
    "an empty line before the request": lambda body: b"\r\n" + push(body),
    "no host": lambda body: push(body).replace(b"Host: receiver\r\n", b""),
    "an empty host": lambda body: push(body).replace(b"Host: receiver", b"Host:"),
    "a host outside ASCII": lambda body: push(body).replace(b"Host: receiver", b"Host: \xff\xfe"),
    "a host that is none": lambda body: push(body).replace(b"Host: receiver", b"Host: a b/[::"),
    "a length with zeros before it": lambda body: push(body).replace(b"Content-Length: ", b"Content-Length: 000"),
    "a length with blanks around it": lambda body: push(body).replace(b"Content-Length: ", b"Content-Length: \t "),
    "90 headers": lambda body: push(body, *(b"X-%d: a" % number for number in range(90))),
    "a header of 8,000 bytes": lambda body: push(body, b"X-A: " + b"a" * 8000),
    "a header outside ASCII": lambda body: push(body, b"X-A: \xff\xfe\x80"),
    "an empty header": lambda body: push(body, b"X-A:"),
    "a header that names an internal of the server": lambda body: push(body, b"PATH_INFO: /healthz"),
    "a cookie of many parts": lambda body: push(body, b"Cookie: " + b"a=b;" * 1500),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_a_genuine_push_in_an_unusual_but_valid_request_is_accepted(name: str, receiver: Running) -> None:
    with Client(receiver) as client:
        assert client.send(UNUSUAL[name](event(name))).answer() == Answer(200, "accepted", closing=False)


HEADERS_OF_A_PROXY = {
    "that names the mount point": b"SCRIPT_NAME: /hooks",
    "that says HTTPS and HTTP at once": b"X-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off",
}


@pytest.mark.parametrize("name", HEADERS_OF_A_PROXY)
def test_a_genuine_push_is_accepted_with_a_header(name: str, receiver: Running) -> None:
    with Client(receiver) as client:
        sent = client.send(push(event(name), HEADERS_OF_A_PROXY[name]))
        assert sent.answer() == Answer(200, "accepted", closing=False)


NOT_FOUND = Answer(404, f"Not Found. {HINT}", closing=False)


@pytest.mark.parametrize("path", [b"/..", b"/.", b"/../", b"/./", b"//push", b"http://receiver/push", b"/\\"])
def test_no_trick_with_dots_and_slashes_leads_anywhere(path: bytes, receiver: Running) -> None:
    with Client(receiver) as client:
        assert client.send(push(BODY, path=path)).answer() == NOT_FOUND


def test_an_absolute_uri_without_a_path_is_answered_in_one_plain_line_that_repeats_no_host(receiver: Running) -> None:
    before = left_in_journal(receiver)
    with Client(receiver) as client:
        answer = client.send(push(event("no path"), path=b"http://other.example")).answer()
    assert answer in (Answer(200, "accepted", closing=False), NOT_FOUND)
    assert left_in_journal(receiver)[1:] == before[1:]


def test_an_expectation_is_met_before_the_body_is_sent(receiver: Running) -> None:
    body = event("expectation")
    request = push(body, b"Expect: 100-continue")
    with Client(receiver) as client:
        assert client.send(request[: -len(body)]).answer() == Answer(100, "", closing=False)
        assert client.send(body).answer() == Answer(200, "accepted", closing=False)


def test_http_1_0_is_understood_and_closed(receiver: Running) -> None:
    with Client(receiver) as client:
        request = push(event("HTTP/1.0")).replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"Host: receiver\r\n", b"")
        assert client.send(request).answer() == Answer(200, "accepted", closing=True)
        assert client.closed()


def test_pipelined_requests_are_answered_in_their_order(receiver: Running) -> None:
    requests = [
        push(event("pipelined 1")),
        HEAD + b"Content-Length: 2\r\n\r\n{}",
        push(b"pipelined"),
        push(event("pipelined 1")),
        push(BODY, path=b"/push"),
        push(event("pipelined 2")),
    ]
    with Client(receiver) as client:
        client.send(b"".join(requests))
        answers = [client.answer() for _ in requests]
    assert [(answer.status, answer.text) for answer in answers if answer] == [
        (200, "accepted"),
        (400, "missing header X-Dt-Signature"),
        (200, "quarantined"),
        (200, "duplicate"),
        (404, f"Not Found. {HINT}"),
        (200, "accepted"),
    ]


def test_a_body_that_looks_like_a_request_is_a_body(receiver: Running) -> None:
    inner = push(event("smuggled"))
    before = left_in_journal(receiver)
    with Client(receiver) as client:
        client.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(inner) + inner)
        assert client.answer() == Answer(400, "missing header X-Dt-Signature", closing=False)
        assert client.send(push(b"[]", path=b"/push")).answer() == NOT_FOUND
    assert left_in_journal(receiver) == before


ERRORS: dict[str, Callable[[], bytes]] = {
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
def test_after_an_error_the_connection_is_either_closed_or_good_for_the_next_push(name: str, receiver: Running) -> None:
    with Client(receiver) as client:
        answer = client.send(ERRORS[name]()).answer()
        assert answer is not None
        assert answer.status == int(name[:3])
        try:
            following = client.send(push(event(f"after {name}"))).answer()
        except (BrokenPipeError, ConnectionResetError):
            following = None
    assert following in (None, Answer(200, "accepted", closing=False))
    assert receiver.push(event(f"after {name}")) == (200, "duplicate" if following else "accepted")


CUT_SHORT: dict[str, Callable[[], bytes]] = {
    "a body with one byte missing": lambda: push(event("cut short"))[:-1],
    "a body of which nothing came": lambda: push(event("cut short")).partition(b"\r\n\r\n")[0] + b"\r\n\r\n",
    "an unsigned body": lambda: HEAD + b"Content-Length: 10\r\n\r\n12345",
    "no chunk": lambda: in_chunks(BODY, b""),
    "half a chunk's size": lambda: in_chunks(BODY, b"1"),
    "half a chunk": lambda: in_chunks(BODY, b"1a\r\n" + BODY[:-1]),
    "a chunk without its line end": lambda: in_chunks(BODY, b"1a\r\n" + BODY),
    "no last chunk": lambda: in_chunks(BODY, b"1a\r\n" + BODY + b"\r\n"),
    "half the last chunk": lambda: in_chunks(BODY, b"1a\r\n" + BODY + b"\r\n0\r\n"),
    "half a trailer": lambda: in_chunks(BODY, b"1a\r\n" + BODY + b"\r\n0\r\nX-A: "),
    "a length beyond any limit": lambda: HEAD + b"Content-Length: 99999999999999999999\r\n\r\n12345",
}
INCOMPLETE = (408, "request incomplete")
EXPECTED = dict.fromkeys(CUT_SHORT, INCOMPLETE) | {"a length beyond any limit": (413, "body too large")}


@pytest.mark.parametrize("name", CUT_SHORT)
def test_a_body_shorter_than_announced_is_answered_408_and_the_connection_closed(name: str, receiver: Running) -> None:
    before = left_in_journal(receiver)
    with Client(receiver) as client:
        answer = client.send(CUT_SHORT[name]()).half_close().answer()
        assert answer is not None
        assert (answer.status, answer.text) == EXPECTED[name]
        assert client.closed()
    assert left_in_journal(receiver) == before


@pytest.mark.parametrize("sent", [b"", b"\r", b"P", HEAD, HEAD[:-2]], ids=repr)
def test_a_client_that_leaves_before_its_request_is_let_go(sent: bytes, receiver: Running) -> None:
    with Client(receiver) as client:
        assert client.send(sent).half_close().closed()


def after_a_stall(receiver: Running, name: str) -> tuple[int, str] | None:
    with Client(receiver) as client:
        answer = client.send(CUT_SHORT[name]()).answer()
        return (answer.status, answer.text) if answer and client.closed() else None


def test_a_client_that_stalls_in_its_body_is_answered_in_time_and_closed(receiver: Running) -> None:
    before = left_in_journal(receiver)
    started = time.monotonic()
    with ThreadPoolExecutor(len(CUT_SHORT)) as threads:
        answers = dict(zip(CUT_SHORT, threads.map(lambda name: after_a_stall(receiver, name), CUT_SHORT), strict=True))
    assert time.monotonic() - started < 4 * DEADLINE_SECONDS
    assert answers == EXPECTED
    assert left_in_journal(receiver) == before


def dripped(receiver: Running, head: bytes, drops: bytes) -> Answer | None:
    with Client(receiver) as client:
        answer = client.send(head).drip(drops, 0.3).answer()
        return answer if client.closed() else None


def test_a_client_that_drips_is_answered_in_time_and_closed(receiver: Running) -> None:
    before = left_in_journal(receiver)
    whole = push(event("dripped"))
    head, _, body = whole.partition(b"\r\n\r\n")
    started = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        drips = [
            threads.submit(dripped, receiver, whole[:1], whole[1:]),
            threads.submit(dripped, receiver, head, b"\r\n\r\n" + body),
            threads.submit(dripped, receiver, head + b"\r\n\r\n", body),
            threads.submit(dripped, receiver, in_chunks(body, b""), b"1\r\na\r\n" * 100),
        ]
    assert time.monotonic() - started < 4 * DEADLINE_SECONDS
    answers = [drip.result() for drip in drips]
    assert [(answer.status, answer.text) for answer in answers if answer] == [INCOMPLETE] * 4
    assert left_in_journal(receiver) == before


def seconds_for_a_push(receiver: Running, name: str) -> float:
    """How long a genuine push on a connection of its own takes."""
    started = time.monotonic()
    with Client(receiver) as client:
        assert client.send(push(event(name))).answer() == Answer(200, "accepted", closing=False)
    return time.monotonic() - started


STALLS = {
    "in the request line": b"POST",
    "in the headers": HEAD,
    "in the body": HEAD + b"Content-Length: 100\r\n\r\n{",
    "in a chunk": CHUNKED + b"5\r\na",
}


@pytest.mark.parametrize("where", STALLS)
def test_a_push_is_not_delayed_while_fewer_clients_stall_than_there_are_threads(where: str, small: Running) -> None:
    with ExitStack() as stack:
        for _ in range(7):
            stack.enter_context(Client(small)).send(STALLS[where])
        assert seconds_for_a_push(small, f"7 stall {where}") < 5


def test_a_push_waits_a_deadline_for_each_round_of_stalling_clients_and_no_longer(small: Running) -> None:
    with ExitStack() as stack:
        for number in range(24):
            stack.enter_context(Client(small)).send(list(STALLS.values())[number % len(STALLS)])
        assert seconds_for_a_push(small, "24 stall") < 3 * DEADLINE_SECONDS + 5


def test_idle_connections_do_not_delay_a_push(receiver: Running) -> None:
    with ExitStack() as stack:
        for _ in range(350):
            stack.enter_context(Client(receiver))
        assert seconds_for_a_push(receiver, "350 idle") < 5


def test_idle_connections_that_were_used_before_do_not_delay_a_push(small: Running) -> None:
    with ExitStack() as stack:
        for _ in range(50):
            used = stack.enter_context(Client(small)).send(b"GET /healthz HTTP/1.1\r\nHost: receiver\r\n\r\n")
            assert used.answer() == Answer(200, "ok", closing=False)
        assert seconds_for_a_push(small, "50 kept") < 5


def test_clients_that_do_not_close_after_their_answer_do_not_delay_the_next(small: Running) -> None:
    started = time.monotonic()
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(small)) for _ in range(10)]
        for client in clients:
            client.send(HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}")
        answers = [client.answer() for client in clients]
        assert answers == [Answer(400, "missing header X-Dt-Signature", closing=True)] * 10
        assert seconds_for_a_push(small, "10 do not close") < 5
    assert time.monotonic() - started < 8


def test_clients_that_leave_without_reading_their_answer_do_no_harm(small: Running) -> None:
    for number in range(30):
        with Client(small) as client:
            client.send(push(event(f"left {number}")))
    assert seconds_for_a_push(small, "30 left") < 5


def test_clients_that_never_read_their_answers_do_not_keep_the_threads(start_receiver: StartReceiver) -> None:
    receiver = start_receiver(few_threads(1), WEB_CONCURRENCY="1")
    with Client(receiver, receive_buffer=2048, segment=536) as greedy:
        wait_until(no_more_is_read(greedy), what="a receiver that stops reading from a client that does not read")
        assert seconds_for_a_push(receiver, "never read") < 10


def no_more_is_read(client: Client) -> Callable[[], bool]:
    """Sends request after request; true when none could be sent for a second, or the receiver has hung up."""
    request = b"GET /metrics HTTP/1.1\r\nHost: receiver\r\nX-Filling: " + b"a" * 8000 + b"\r\n\r\n"
    client.socket.setblocking(False)
    sent = 0
    last_sent_at = time.monotonic()

    def blocked() -> bool:
        nonlocal sent, last_sent_at
        try:
            while True:
                sent += client.socket.send(request[sent % len(request) :])
                last_sent_at = time.monotonic()
        except BlockingIOError:
            return time.monotonic() - last_sent_at > 1
        except OSError:
            return True

    return blocked


def test_a_small_limit_of_open_files_does_not_stop_intake(tmp_path_factory: pytest.TempPathFactory) -> None:
    receiver = Running(tmp_path_factory.mktemp("few"), few_threads(4), None, {"WEB_CONCURRENCY": "1"})
    receiver.command = ["sh", "-c", 'ulimit -n 200; exec "$@"', "sh", *receiver.command]
    try:
        receiver.start()
        with ExitStack() as stack:
            for _ in range(250):
                stack.enter_context(Client(receiver))
            assert seconds_for_a_push(receiver, "few files") < 5
        assert [word for word in ("Traceback", "exited", "Too many") if word in receiver.log] == []
    finally:
        receiver.kill_all()


def page(receiver: Running, path: str) -> tuple[int, str, str | None]:
    answer = receiver.http.request("GET", receiver.url + path)
    return answer.status, answer.data.decode(), answer.headers.get("Retry-After")


def readiness(receiver: Running) -> tuple[int, object]:
    answer = receiver.http.request("GET", f"{receiver.url}/readyz")
    return answer.status, json.loads(answer.data)


READY = {"ready": True, "faults": [], "warnings": []}


def test_a_receiver_that_works_is_live_and_ready(receiver: Running) -> None:
    assert page(receiver, "/healthz") == (200, "ok", None)
    assert readiness(receiver) == (200, READY)
    answer = receiver.http.request("GET", f"{receiver.url}/metrics")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")


def test_without_a_dispatcher_pushes_are_taken_and_the_receiver_is_live_but_not_ready(
    start_receiver: StartReceiver,
) -> None:
    receiver = start_receiver(f"{CSV_ONLY}\n[receiver]\ndeliver = false\n", ready=False)
    assert readiness(receiver) == (503, {"ready": False, "faults": ["no dispatcher is alive"], "warnings": []})
    assert page(receiver, "/healthz") == (200, "ok", None)
    assert receiver.push(event("no dispatcher")) == (200, "accepted")
    assert receiver.metric("receiver_unmatched") == 1


def test_a_journal_that_cannot_take_events_answers_503_in_time_and_keeps_nothing(start_receiver: StartReceiver) -> None:
    receiver = start_receiver(f"{CSV_ONLY}\n[journal]\nmin_free_mb = 1000000000\n", ready=False)
    started = time.monotonic()
    answer = receiver.http.request("POST", receiver.url, body=BODY, headers={HEADER: token(BODY).decode()})
    assert (answer.status, answer.data, answer.headers.get("Retry-After")) == (503, b"journal unavailable", "10")
    assert receiver.push(event("no room")) == (503, "journal unavailable")
    assert time.monotonic() - started < 5
    assert receiver.push(event("no room"), {}) == (400, "missing header X-Dt-Signature")
    status, state = readiness(receiver)
    assert isinstance(state, dict)
    assert (status, state["ready"], len(state["faults"])) == (503, False, 1)
    assert "[journal] min_free_mb is 1000000000" in state["faults"][0]
    assert page(receiver, "/healthz") == (200, "ok", None)
    assert receiver.metric('receiver_pushes_total{answer="journal unavailable",status="503"}') == 2
    assert (receiver.metric("receiver_unmatched"), receiver.metric("receiver_quarantined")) == (0, 0)
    assert receiver.rows() == []


def test_nothing_that_a_client_sent_and_no_traceback_stands_in_the_log(receiver: Running, small: Running) -> None:
    with ExitStack() as stack:
        for make, _ in NOT_HTTP.values():
            stack.enter_context(Client(receiver)).send(make().replace(b"X-A", b"X-" + MARK)).answer()
    logs = receiver.log + small.log
    assert [word for word in (MARK.decode(), TEST_SECRET, "Traceback", "eyJ") if word in logs] == []


@pytest.mark.parametrize("line", ["POST /nowhere", "PUT /"])
def test_a_connection_can_be_used_again_after_a_body_that_nobody_wanted(line: str, receiver: Running) -> None:
    unwanted = bytes(200_000)
    connection = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=PATIENCE_SECONDS)
    with closing(connection):
        method, path = line.split()
        connection.request(method, path, body=unwanted)
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (404, 405)
        connection.auto_open = 0
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b"ok"


WHOLE = {
    "length": b"Content-Length: 5\r\n\r\nhello",
    "chunks": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
}
NOT_WHOLE = {
    "no last chunk": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "malformed chunk": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
    "malformed trailer": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA B: c\r\n\r\n",
}


def kept_by(way: type[gthread.ThreadWorker], body: bytes, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a worker keeps the connection of a request that it has read, in a moment in which time flies."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Connection(Config(), ours, ("127.0.0.1", 1), ("127.0.0.1", 2))
        connection.init()
        theirs.sendall(HEAD + body)
        theirs.shutdown(socket.SHUT_WR)
        connection.request = next(connection.parser)
        for _ in range(2):
            with suppress(Exception):
                connection.request.body.read()
        seconds = itertools.count()
        with monkeypatch.context() as busy:
            busy.setattr(gthread, "DEFAULT_WORKER_DATA_TIMEOUT", 0.02)
            busy.setattr(time, "monotonic", lambda: next(seconds))
            return bool(way._keepalive_after(None, connection, True))


@pytest.mark.parametrize("body", WHOLE.values(), ids=WHOLE)
def test_a_busy_moment_closes_no_connection_whose_request_was_whole(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kept_by(PatientWorker, body, monkeypatch)
    assert not kept_by(gthread.ThreadWorker, body, monkeypatch), "gunicorn's own way would do"


@pytest.mark.parametrize("body", NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_a_connection_whose_next_request_begins_nobody_knows_where_is_closed(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not kept_by(PatientWorker, body, monkeypatch)
