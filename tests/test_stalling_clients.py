"""Clients that stop sending, drip, do not read or do not close: they are limited in time and delay no other push."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import gevent.socket
import pytest
from conftest import CSV_ONLY, TEST_SECRET, RunningReceiver, StartReceiver, wait_until
from gunicorn.config import Config
from gunicorn.http import get_parser
from support.intake import Snapshot
from support.pushes import FORBIDDEN, event
from support.raw_http import BODY, CHUNKED, HEAD, Client, MakeRequest, Response, chunked_push, push

from receiver.intake.connection import REQUEST_SECONDS, Connection, is_complete


@contextmanager
def started(folder: Path, config: str, **environment: str) -> Iterator[RunningReceiver]:
    """A receiver that must not log a traceback, its secret, or anything that a client sent."""
    receiver = RunningReceiver(folder, config, None, environment)
    try:
        yield receiver.start()
        assert [text for text in (FORBIDDEN, TEST_SECRET, "Traceback", "eyJ") if text in receiver.log] == []
    finally:
        receiver.kill_all()


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReceiver]:
    with started(tmp_path_factory.mktemp("receiver"), CSV_ONLY) as receiver:
        yield receiver


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReceiver]:
    """A receiver with a single worker."""
    with started(tmp_path_factory.mktemp("small"), CSV_ONLY, WEB_CONCURRENCY="1") as receiver:
        yield receiver


INCOMPLETE_BODIES: dict[str, MakeRequest] = {
    "a body with one byte missing": lambda: push(event("incomplete"))[:-1],
    "a body that is missing": lambda: push(event("incomplete")).partition(b"\r\n\r\n")[0] + b"\r\n\r\n",
    "an unsigned body": lambda: HEAD + b"Content-Length: 10\r\n\r\n12345",
    "no chunk": lambda: chunked_push(BODY, b""),
    "half the size of a chunk": lambda: chunked_push(BODY, b"1"),
    "half a chunk": lambda: chunked_push(BODY, b"1a\r\n" + BODY[:-1]),
    "a chunk without its line end": lambda: chunked_push(BODY, b"1a\r\n" + BODY),
    "no last chunk": lambda: chunked_push(BODY, b"1a\r\n" + BODY + b"\r\n"),
    "half the last chunk": lambda: chunked_push(BODY, b"1a\r\n" + BODY + b"\r\n0\r\n"),
    "half a trailer": lambda: chunked_push(BODY, b"1a\r\n" + BODY + b"\r\n0\r\nX-A: "),
    "a length beyond any limit": lambda: HEAD + b"Content-Length: 99999999999999999999\r\n\r\n12345",
}
INCOMPLETE = (408, "request incomplete")
EXPECTED = dict.fromkeys(INCOMPLETE_BODIES, INCOMPLETE) | {"a length beyond any limit": (413, "body too large")}


@pytest.mark.parametrize("name", INCOMPLETE_BODIES)
def test_a_body_shorter_than_announced_gets_408_and_the_connection_is_closed(
    name: str, receiver: RunningReceiver
) -> None:
    before = Snapshot.of(receiver)
    with Client(receiver) as client:
        response = client.send(INCOMPLETE_BODIES[name]()).half_close().response()
        assert response is not None
        assert (response.status, response.text) == EXPECTED[name]
        assert client.is_closed()
    assert Snapshot.of(receiver) == before.after(*EXPECTED[name])


@pytest.mark.parametrize("sent", [b"", b"\r", b"P", HEAD, HEAD[:-2]], ids=repr)
def test_the_connection_of_a_client_that_leaves_before_its_request_is_closed(
    sent: bytes, receiver: RunningReceiver
) -> None:
    with Client(receiver) as client:
        assert client.send(sent).half_close().is_closed()


def response_to_stall(receiver: RunningReceiver, name: str) -> tuple[int, str] | None:
    with Client(receiver) as client:
        response = client.send(INCOMPLETE_BODIES[name]()).response()
        return (response.status, response.text) if response and client.is_closed() else None


@pytest.mark.serial
def test_clients_that_stall_in_the_body_get_a_response_in_time_and_are_disconnected(
    receiver: RunningReceiver,
) -> None:
    before = Snapshot.of(receiver)
    started_at = time.monotonic()
    with ThreadPoolExecutor(len(INCOMPLETE_BODIES)) as threads:
        responses = threads.map(lambda name: response_to_stall(receiver, name), INCOMPLETE_BODIES)
        assert dict(zip(INCOMPLETE_BODIES, responses, strict=True)) == EXPECTED
    assert time.monotonic() - started_at < 4 * REQUEST_SECONDS
    expected = before
    for response in EXPECTED.values():
        expected = expected.after(*response)
    assert Snapshot.of(receiver) == expected


def response_to_drip(receiver: RunningReceiver, sent: bytes, dripped: bytes) -> Response | None:
    with Client(receiver) as client:
        response = client.send(sent).drip(dripped, 0.3).response()
        return response if client.is_closed() else None


@pytest.mark.serial
def test_clients_that_drip_get_a_response_in_time_and_are_disconnected(receiver: RunningReceiver) -> None:
    before = Snapshot.of(receiver)
    request = push(event("dripped"))
    head, _, body = request.partition(b"\r\n\r\n")
    started_at = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        drips = [
            threads.submit(response_to_drip, receiver, request[:1], request[1:]),
            threads.submit(response_to_drip, receiver, head, b"\r\n\r\n" + body),
            threads.submit(response_to_drip, receiver, head + b"\r\n\r\n", body),
            threads.submit(response_to_drip, receiver, chunked_push(body, b""), b"1\r\na\r\n" * 100),
        ]
    assert time.monotonic() - started_at < 4 * REQUEST_SECONDS
    responses = [drip.result() for drip in drips]
    assert [(response.status, response.text) for response in responses if response] == [INCOMPLETE] * 4
    after = Snapshot.of(receiver)
    assert (after.events, after.quarantined) == (before.events, before.quarantined)


def seconds_for_a_push(receiver: RunningReceiver, name: str) -> float:
    """How long a genuine push on a connection of its own takes."""
    started_at = time.monotonic()
    with Client(receiver) as client:
        assert client.send(push(event(name))).response() == Response(200, "accepted", closing=False)
    return time.monotonic() - started_at


def is_met(limit: float, attempt: Callable[[int], float]) -> bool:
    """Whether one of three attempts takes less than `limit` seconds, since other programs may run meanwhile."""
    return any(attempt(number) < limit for number in range(3))


STALLS = {
    "in the request line": b"POST",
    "in the headers": HEAD,
    "in the body": HEAD + b"Content-Length: 100\r\n\r\n{",
    "in a chunk": CHUNKED + b"5\r\na",
}


STALLING = 1000


@pytest.mark.serial
@pytest.mark.parametrize("place", STALLS)
def test_a_push_is_not_delayed_by_many_stalling_clients(place: str, small: RunningReceiver) -> None:
    def attempt(number: int) -> float:
        with ExitStack() as stack:
            for _ in range(STALLING):
                stack.enter_context(Client(small)).send(STALLS[place])
            return seconds_for_a_push(small, f"stalls {place} {number}")

    assert is_met(REQUEST_SECONDS / 2, attempt)


@pytest.mark.serial
def test_idle_connections_do_not_delay_a_push(receiver: RunningReceiver) -> None:
    with ExitStack() as stack:
        for _ in range(350):
            stack.enter_context(Client(receiver))
        assert seconds_for_a_push(receiver, "350 idle connections") < 5


@pytest.mark.serial
def test_idle_connections_that_were_used_before_do_not_delay_a_push(small: RunningReceiver) -> None:
    with ExitStack() as stack:
        for _ in range(50):
            used = stack.enter_context(Client(small)).send(b"GET /healthz HTTP/1.1\r\nHost: receiver\r\n\r\n")
            assert used.response() == Response(200, "ok", closing=False)
        assert seconds_for_a_push(small, "50 used connections") < 5


@pytest.mark.serial
def test_clients_that_do_not_close_after_their_response_do_not_delay_the_next(small: RunningReceiver) -> None:
    started_at = time.monotonic()
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(small)) for _ in range(10)]
        for client in clients:
            client.send(HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}")
        responses = [client.response() for client in clients]
        assert responses == [Response(400, "missing header X-Dt-Signature", closing=True)] * 10
        assert seconds_for_a_push(small, "10 clients do not close") < 5
    assert time.monotonic() - started_at < 8


@pytest.mark.serial
def test_clients_that_leave_without_reading_their_response_do_not_delay_a_push(small: RunningReceiver) -> None:
    for number in range(30):
        with Client(small) as client:
            client.send(push(event(f"client {number} leaves")))
    assert seconds_for_a_push(small, "30 clients left") < 5


@pytest.mark.serial
def test_a_client_that_never_reads_its_responses_does_not_block_the_only_worker(start_receiver: StartReceiver) -> None:
    receiver = start_receiver(CSV_ONLY, WEB_CONCURRENCY="1")
    with Client(receiver, receive_buffer=2048, segment=536) as greedy:
        wait_until(until_blocked(greedy), what="a receiver that stops reading from a client that does not read")
        assert seconds_for_a_push(receiver, "never reads") < 10


@contextmanager
def flooding(receiver: RunningReceiver) -> Iterator[None]:
    """A client that sends request after request without waiting for the responses, which it reads."""
    requests = b"GET /healthz HTTP/1.1\r\nHost: receiver\r\n\r\n" * 1000
    with Client(receiver) as client, ThreadPoolExecutor(2) as pool:

        def send() -> None:
            with suppress(OSError):
                while True:
                    client.send(requests)

        def read() -> None:
            with suppress(OSError):
                while client.socket.recv(65536):
                    pass

        pool.submit(send)
        pool.submit(read)
        yield
        client.socket.shutdown(socket.SHUT_RDWR)


@pytest.mark.serial
def test_a_client_that_floods_does_not_delay_a_push(small: RunningReceiver) -> None:
    def attempt(number: int) -> float:
        with flooding(small):
            return max(seconds_for_a_push(small, f"flood {number} {each}") for each in range(20))

    assert is_met(REQUEST_SECONDS / 2, attempt)


def until_blocked(client: Client) -> Callable[[], bool]:
    """Sends request after request; true when none could be sent for a second, or the receiver has disconnected."""
    request = b"GET /metrics HTTP/1.1\r\nHost: receiver\r\nX-Filling: " + b"a" * 8000 + b"\r\n\r\n"
    client.socket.setblocking(False)
    sent = 0
    last_sent_at = time.monotonic()

    def is_blocked() -> bool:
        nonlocal sent, last_sent_at
        try:
            while True:
                sent += client.socket.send(request[sent % len(request) :])
                last_sent_at = time.monotonic()
        except BlockingIOError:
            return time.monotonic() - last_sent_at > 1
        except OSError:
            return True

    return is_blocked


@pytest.mark.serial
def test_a_low_limit_of_open_files_does_not_stop_intake(tmp_path: Path) -> None:
    receiver = RunningReceiver(tmp_path, CSV_ONLY, None, {"WEB_CONCURRENCY": "1"})
    receiver.command = ["sh", "-c", 'ulimit -n 200; exec "$@"', "sh", *receiver.command]
    try:
        receiver.start()
        with ExitStack() as stack:
            for _ in range(250):
                stack.enter_context(Client(receiver))
            assert seconds_for_a_push(receiver, "few files") < 5
        assert [text for text in ("Traceback", "exited", "Too many") if text in receiver.log] == []
    finally:
        receiver.kill_all()


COMPLETE = {
    "length": b"Content-Length: 5\r\n\r\nhello",
    "chunks": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
}
NOT_COMPLETE = {
    "no last chunk": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "malformed chunk": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
    "malformed trailer": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA B: c\r\n\r\n",
}


def can_be_reused(request: bytes) -> bool:
    """Whether another request can follow this one on its connection, after its body has been read."""
    server, client = socket.socketpair()
    with server, client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        parsed = next(get_parser(Config(), server, ("127.0.0.1", 1)))
        for _ in range(2):
            with suppress(Exception):
                parsed.body.read()
        return is_complete(parsed.body)


@pytest.mark.parametrize("body", COMPLETE.values(), ids=COMPLETE)
def test_the_connection_of_a_complete_request_is_kept(body: bytes) -> None:
    assert can_be_reused(HEAD + body)


@pytest.mark.parametrize("body", NOT_COMPLETE.values(), ids=NOT_COMPLETE)
def test_the_connection_of_a_request_without_a_clear_end_is_closed(body: bytes) -> None:
    assert not can_be_reused(HEAD + body)


def test_after_the_deadline_what_has_arrived_is_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a request may wait longer for the receiver than its client took."""
    ours, theirs = gevent.socket.socketpair()
    with ours, theirs:
        connection = Connection(ours)
        connection.begin_request()
        theirs.sendall(b"in time")
        begun = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: begun + REQUEST_SECONDS + 1)
        assert connection.recv(100) == b"in time"
        with pytest.raises(BlockingIOError):
            connection.recv(100)
