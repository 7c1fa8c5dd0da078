"""Targets of the webhook sink that write down what they get."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Recorder:
    """What the target of the webhook gets: each body by its idempotency key, and which were in hand twice at once."""

    def __init__(self) -> None:
        self.bodies: dict[str, set[bytes]] = {}
        self.times: Counter[str] = Counter()
        self.twice_at_once: list[str] = []
        self._in_hand: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, key: str, handler: BaseHTTPRequestHandler) -> None:
        """Answer a request that was written down."""
        handler.send_response(200)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def _take(self, key: str, body: bytes) -> None:
        with self._lock:
            self._in_hand[key] += 1
            if self._in_hand[key] > 1:
                self.twice_at_once.append(key)
            self.times[key] += 1
            self.bodies.setdefault(key, set()).add(body)

    def _answered(self, key: str) -> None:
        with self._lock:
            self._in_hand[key] -= 1

    def _handler(recorder) -> type[BaseHTTPRequestHandler]:  # noqa: N805  # self is the handler's below
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # whoever was connected may be killed at any time
                    super().handle()

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = self.rfile.read(length)
                if len(body) < length:  # whoever sent it was killed meanwhile
                    self.close_connection = True
                    return
                key = self.headers["Idempotency-Key"]
                recorder._take(key, body)
                with contextlib.suppress(OSError):
                    recorder.answer(key, self)
                recorder._answered(key)

            def log_message(self, *args: object) -> None:
                """Nothing is printed."""

        return Handler
