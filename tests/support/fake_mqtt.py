"""An MQTT 5 broker of a few lines that responds with any reason code, which a real one does only when it is ill."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STATUS = b"dt/status"
CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, DISCONNECT = 0x10, 0x20, 0x30, 0x40, 0x80, 0x90, 0xE0


class FakeBroker(socketserver.ThreadingTCPServer):
    """Records the topics of each connection. Responds with `code` to messages whose topic contains `refused`.

    `connack` is its response to CONNECT after the flags, `suback` its reason code for a subscription. As `reply` it
    sends something else than an acknowledgement of a refused message; None sends nothing.
    """

    allow_reuse_address = daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Conversation)
        self.url = f"mqtt://127.0.0.1:{self.server_address[1]}"
        self.refused, self.code, self.reply = b"/event/", 0, b"puback"
        self.connack, self.suback = b"\0\0", 0
        self.topics: list[list[bytes]] = []


class Conversation(socketserver.BaseRequestHandler):
    request: socket.socket
    server: FakeBroker

    def handle(self) -> None:
        self.topics: list[bytes] = []
        self.server.topics.append(self.topics)
        stream = self.request.makefile("rb")
        while head := stream.read(1):
            length, shift = 0, 0
            while (digit := stream.read(1)[0]) & 0x80:
                length, shift = length | (digit & 0x7F) << shift, shift + 7
            self.respond(head[0], stream.read(length | digit << shift))

    def respond(self, head: int, body: bytes) -> None:
        kind = head & 0xF0
        if kind == CONNECT:
            self.send(CONNACK, b"\0" + self.server.connack)
        elif kind == PUBLISH:
            size = int.from_bytes(body[:2])
            topic, number = body[2 : 2 + size], body[2 + size : 4 + size]
            self.topics.append(topic)
            if self.server.refused not in topic or self.server.reply == b"puback":
                code = self.server.code if self.server.refused in topic else 0
                self.send(PUBACK, number + bytes([code]))
            elif self.server.reply:
                self.request.sendall(self.server.reply)
        elif kind == SUBSCRIBE:
            self.send(SUBACK, body[:2] + b"\0" + bytes([self.server.suback]) * body.count(b"dt/"))
            self.send(PUBLISH | 1, len(STATUS).to_bytes(2) + STATUS + b"\0online")

    def send(self, kind: int, body: bytes) -> None:
        self.request.sendall(bytes([kind, len(body)]) + body)


@contextmanager
def fake_broker() -> Iterator[FakeBroker]:
    with FakeBroker() as broker:
        threading.Thread(target=broker.serve_forever, args=(0.05,), daemon=True).start()
        yield broker
        broker.shutdown()
