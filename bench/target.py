"""A webhook target: it responds 200 to every POST, and records when each event arrived.

    python -m bench.target PORT FILE

writes a line with the event id and the monotonic time for each request to FILE.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from typing import TextIO

RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
EVENT = re.compile(rb"webhook-id: (\S+)", re.IGNORECASE)


class Target(asyncio.Protocol):
    """One connection. Requests come one after another, each with a Content-Length."""

    def __init__(self, notes: TextIO) -> None:
        self._notes = notes
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if end and len(body) >= (int(length[1]) if length else 0):
            self._read = b""
            event = EVENT.search(head)
            self._notes.write(f"{event[1].decode() if event else '-'} {time.monotonic()}\n")
            self._transport.write(RESPONSE)


async def serve(port: int, notes: TextIO) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Target(notes), "127.0.0.1", port, backlog=256)
    await server.serve_forever()


if __name__ == "__main__":
    with open(sys.argv[2], "w", buffering=1) as notes:
        asyncio.run(serve(int(sys.argv[1]), notes))
