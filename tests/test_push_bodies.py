"""How the body of a push is transferred: its size limit, with Content-Length and in chunks."""

from __future__ import annotations

import pytest
from conftest import RunningReceiver
from support.intake import Snapshot
from support.pushes import Headers, event, event_id, event_of_size, signed
from support.raw_http import BODY, Client, Response, chunked_push, push

LIMIT = 256 * 1024


def push_with_length(receiver: RunningReceiver, body: bytes, headers: Headers) -> tuple[int, str]:
    return receiver.push(body, headers)


def push_in_chunks(receiver: RunningReceiver, body: bytes, headers: Headers) -> tuple[int, str]:
    chunks = (body[start : start + 10_000] for start in range(0, len(body), 10_000))
    response = receiver.http.request("POST", receiver.url, body=chunks, headers=headers, chunked=True)
    return response.status, response.data.decode()


PUSH = {"with Content-Length": push_with_length, "in chunks": push_in_chunks}


@pytest.mark.parametrize("transfer", PUSH)
def test_a_body_of_exactly_the_limit_is_accepted(transfer: str, shared_receiver: RunningReceiver) -> None:
    name = f"at the limit {transfer}"
    body = event_of_size(name, LIMIT)
    assert len(body) == LIMIT
    before = Snapshot.of(shared_receiver)
    assert PUSH[transfer](shared_receiver, body, signed(body)) == (200, "accepted")
    assert Snapshot.of(shared_receiver) == before.after(200, "accepted", event=event_id(name))


@pytest.mark.parametrize("genuine", [True, False], ids=["genuine", "unsigned"])
@pytest.mark.parametrize("size", [LIMIT + 1, LIMIT + 2, 1024 * 1024], ids=["one over", "two over", "1 MiB"])
@pytest.mark.parametrize("transfer", PUSH)
def test_a_body_over_the_limit_gets_413_and_is_not_stored(
    transfer: str, size: int, genuine: bool, shared_receiver: RunningReceiver
) -> None:
    body = event_of_size(f"over the limit {transfer} {size}", size)
    before = Snapshot.of(shared_receiver)
    assert PUSH[transfer](shared_receiver, body, signed(body) if genuine else {}) == (413, "body too large")
    assert Snapshot.of(shared_receiver) == before.after(413, "body too large")


def test_a_small_body_in_chunks_is_accepted(shared_receiver: RunningReceiver) -> None:
    body = event("in chunks")
    assert push_in_chunks(shared_receiver, body, signed(body)) == (200, "accepted")


MALFORMED_CHUNKS = {
    "a size in letters": b"zz\r\n%b\r\n0\r\n\r\n",
    "a negative size": b"-1\r\n%b\r\n0\r\n\r\n",
    "a size with a plus": b"+1a\r\n%b\r\n0\r\n\r\n",
    "a size with 0x": b"0x1a\r\n%b\r\n0\r\n\r\n",
    "a size with an underscore": b"1_a\r\n%b\r\n0\r\n\r\n",
    "a size after blanks": b" 1a\r\n%b\r\n0\r\n\r\n",
    "no size": b"\r\n%b\r\n0\r\n\r\n",
    "a size that is too small": b"19\r\n%b\r\n0\r\n\r\n",
    "a size that does not end": b"1" * 20_000,
    "no line end after a chunk": b"1a\r\n%b0\r\n\r\n",
    "LF after a chunk": b"1a\r\n%b\n0\r\n\r\n",
    "an extension outside ASCII": b"1a;\xff\r\n%b\r\n0\r\n\r\n",
    "a CR in an extension": b"1a;a\r=b\r\n%b\r\n0\r\n\r\n",
    "a trailer that sets the length": b"1a\r\n%b\r\n0\r\nContent-Length: 5\r\n\r\n",
    "a trailer that sets the transfer coding": b"1a\r\n%b\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a trailer without a colon": b"1a\r\n%b\r\n0\r\ncolon\r\n\r\n",
    "a trailer with a NUL": b"1a\r\n%b\r\n0\r\nX-A: \0\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED_CHUNKS)
def test_malformed_chunks_of_a_genuine_push_get_400_and_the_connection_is_closed(
    name: str, shared_receiver: RunningReceiver
) -> None:
    before = Snapshot.of(shared_receiver)
    with Client(shared_receiver) as client:
        response = client.send(chunked_push(BODY, MALFORMED_CHUNKS[name].replace(b"%b", BODY))).response()
        assert response is not None
        assert (response.status, response.text) == (400, "malformed body")
        assert client.is_closed()
    assert Snapshot.of(shared_receiver) == before.after(400, "malformed body")


UNUSUAL_CHUNKS = {
    "one chunk": b"%x\r\n%b\r\n0\r\n\r\n",
    "a size in upper case after zeros": b"00%X\r\n%b\r\n0\r\n\r\n",
    "an extension": b"%x;a=b\r\n%b\r\n0\r\n\r\n",
    "a trailer": b"%x\r\n%b\r\n0\r\nX-A: b\r\n\r\n",
    "a trailer with another token": b"%x\r\n%b\r\n0\r\nX-Dt-Signature: a\r\n\r\n",
    "a last chunk of many zeros": b"%x\r\n%b\r\n00000\r\n\r\n",
}


@pytest.mark.parametrize("name", UNUSUAL_CHUNKS)
def test_unusual_but_valid_chunks_of_a_genuine_push_are_accepted(name: str, shared_receiver: RunningReceiver) -> None:
    body = event(f"chunks: {name}")
    sizes = {b"%x": b"%x" % len(body), b"%X": b"%X" % len(body), b"%b": body}
    chunks = UNUSUAL_CHUNKS[name]
    for placeholder, value in sizes.items():
        chunks = chunks.replace(placeholder, value)
    with Client(shared_receiver) as client:
        assert client.send(chunked_push(body, chunks)).response() == Response(200, "accepted", closing=False)
        assert client.send(push(body)).response() == Response(200, "duplicate", closing=False)


def test_a_body_in_chunks_of_one_byte_is_accepted(shared_receiver: RunningReceiver) -> None:
    body = event("one byte a chunk")
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with Client(shared_receiver) as client:
        assert client.send(chunked_push(body, chunks)).response() == Response(200, "accepted", closing=False)
