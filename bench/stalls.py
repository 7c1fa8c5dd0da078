"""A good push at a steady rate beside many clients that stall: whether anyone with one machine can stop intake."""

from __future__ import annotations

import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench.latency import Traffic, at
from bench.servers import CSV, RECEIVER, ROOT, SQLITE, Server, running
from bench.tables import ms, show

CLIENTS = 1000
RATE = 20.0
SECONDS = 30.0

HEAD = b"POST / HTTP/1.1\r\nHost: receiver\r\n"
GREEDY = b"GET /metrics HTTP/1.1\r\nHost: receiver\r\n\r\n" * 5
STALLS = {
    "in the head": HEAD,
    "in the body": HEAD + b"Content-Length: 100\r\n\r\n{",
    "dripping": b"",
    "not reading": GREEDY,
    "not closing": HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}",
}
"""What each kind of client sends; one that drips sends a byte now and then."""


def measure(size: float) -> None:
    """Print the table. Raises RuntimeError when a push does not get 200."""
    rows = []
    kind = SQLITE.but("receiver on SQLite", RECEIVER + CSV)
    for name, stalls in {"no client": [], **{name: [name] for name in STALLS}, "a fifth each": list(STALLS)}.items():
        with running(kind) as server, stalling(server, stalls):
            times = pushes(server, max(5.0, SECONDS * size))
        rows.append((f"{CLIENTS} clients, {name}" if stalls else name, ms(at(times, 50)), ms(at(times, 99))))
    show(f"{kind.name}, a push at {RATE:.0f}/s", ["beside", "p50 ms", "p99 ms"], rows)


def pushes(server: Server, seconds: float) -> list[float]:
    traffic = Traffic(server, seconds, RATE)
    traffic.run()
    return [traffic.accepted_at[event] - sent for event, sent in traffic.sent_at.items()]


@contextmanager
def stalling(server: Server, names: Sequence[str]) -> Iterator[None]:
    """Clients that stall, in a process of their own, which opens a new connection for each that is closed."""
    if not names:
        yield
        return
    command = [sys.executable, "-m", "bench.stalls", str(server.port), *names]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE) as process:
        try:
            time.sleep(3.0)  # until all are connected
            yield
        finally:
            process.kill()


def stall(port: int, names: Sequence[str]) -> None:
    """Keep CLIENTS connections stalling until the parent kills this process, or ends itself."""
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ, "")
    left_open: list[socket.socket] = []
    for name in names:
        for _ in range(CLIENTS // len(names)):
            opened = connect(selector, port, name)
            if name == "not reading":
                selector.unregister(opened)
                left_open.append(opened)
    dripped_at = time.monotonic()
    while True:
        for key, _ in selector.select(timeout=0.2):
            if key.data == "":
                return  # the parent has ended
            client = key.fileobj
            assert isinstance(client, socket.socket)
            if not received(client):
                selector.unregister(client)
                if key.data == "not closing":
                    left_open.append(client)
                else:
                    client.close()
                    connect(selector, port, key.data)
        if time.monotonic() - dripped_at > 0.5:
            dripped_at = time.monotonic()
            for key in list(selector.get_map().values()):
                if key.data == "dripping" and isinstance(key.fileobj, socket.socket):
                    send(key.fileobj, b"P")


def connect(selector: selectors.BaseSelector, port: int, name: str) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.connect(("127.0.0.1", port))
    client.setblocking(False)
    send(client, STALLS[name])
    selector.register(client, selectors.EVENT_READ, name)
    return client


def received(client: socket.socket) -> bool:
    try:
        return client.recv(65536) != b""
    except OSError:
        return False


def send(client: socket.socket, data: bytes) -> None:
    try:
        client.send(data)
    except OSError:
        return  # the receiver has closed it, which the next read shows


if __name__ == "__main__":
    stall(int(sys.argv[1]), sys.argv[2:])
