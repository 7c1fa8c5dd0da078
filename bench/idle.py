"""What a receiver takes when nothing happens: processor time, memory, and memory for each open connection."""

from __future__ import annotations

import resource
import socket
import time

from bench.servers import CSV, RECEIVER, SQLITE, Server, running
from bench.tables import show

SECONDS = 60.0
CONNECTIONS = 3900
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: receiver\r\n\r\n"


def measure(size: float) -> None:
    """Print the table."""
    with running(SQLITE.but("receiver on SQLite, delivering to csv", RECEIVER + CSV)) as server:
        time.sleep(3.0)
        before, began_at = server.cpu_seconds(), time.monotonic()
        time.sleep(max(10.0, SECONDS * size))
        percent = 100 * (server.cpu_seconds() - before) / (time.monotonic() - began_at)
        rows = [
            ("processor time of all processes, % of one", f"{percent:.2f}"),
            ("memory of all processes, MB", f"{server.megabytes():.0f}"),
            ("memory of an open connection, kB", f"{connection_bytes(server) / 1e3:.1f}"),
        ]
    show("An idle receiver on SQLite, delivering to csv", ["", "measured"], rows)


def connection_bytes(server: Server) -> float:
    """How much the memory of the workers grows by a connection that has had one request."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (CONNECTIONS + 500, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    before = workers_bytes(server)
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(CONNECTIONS)]
    for client in clients:
        client.sendall(REQUEST)
        client.recv(4096)
    grown = workers_bytes(server) - before
    for client in clients:
        client.close()
    return grown / CONNECTIONS


def workers_bytes(server: Server) -> float:
    return sum(size for name, size in server.memory().items() if name.startswith("worker")) * 1e6
