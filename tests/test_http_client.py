"""Requests to DT's services: what a response may do to the program that waits for it."""

from __future__ import annotations

import pytest
from support.endpoints import Connection, StartEndpoint

from receiver.http_client import HttpClient, NoResponse
from receiver.testing.running import wait_until

SENT_BYTES = 20_971_520


def test_a_chunk_of_negative_size_is_not_read_to_the_end_of_the_connection(start_endpoint: StartEndpoint) -> None:
    sent: list[int] = []

    def send(connection: Connection) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n")
        for _ in range(SENT_BYTES // 65536):
            connection.send(b"x" * 65536)
            sent.append(65536)

    endpoint = start_endpoint(send)
    with pytest.raises(NoResponse):
        HttpClient(endpoint.url, 5.0).request("POST", endpoint.url, {}, max_bytes=65536, body=b"{}")
    wait_until(lambda: endpoint.closed == 1, what="the end of the connection")
    assert sum(sent) < SENT_BYTES
