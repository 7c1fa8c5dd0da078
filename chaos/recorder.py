"""A target of the webhook sink that records what it receives."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Recorder:
    """An HTTP server at `url` that accepts everything.

    By idempotency key, `digests` are the SHA-256 of the bodies and `calls` the number of requests; `concurrent_calls`
    are the keys of requests that arrived while another with the same key was being processed.
    """

    def __init__(self) -> None:
        self.digests: dict[str, set[str]] = {}
        self.calls: Counter[str] = Counter()
        self.concurrent_calls: list[str] = []
        self._in_progress: Counter[str] = Counter()
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

    def respond(self, key: str, handler: BaseHTTPRequestHandler) -> None:
        """Respond to a request that was recorded."""
        handler.send_response(200)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def _begin(self, key: str, body: bytes) -> None:
        with self._lock:
            self._in_progress[key] += 1
            if self._in_progress[key] > 1:
                self.concurrent_calls.append(key)
            self.calls[key] += 1
            self.digests.setdefault(key, set()).add(hashlib.sha256(body).hexdigest())

    def _end(self, key: str) -> None:
        with self._lock:
            self._in_progress[key] -= 1

    def _handler(recorder) -> type[BaseHTTPRequestHandler]:  # noqa: N805  # self is the handler's below
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # the client can be killed at any time
                    super().handle()

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = self.rfile.read(length)
                if len(body) < length:  # the client was killed while it sent the body
                    self.close_connection = True
                    return
                key = self.headers["Idempotency-Key"]
                recorder._begin(key, body)
                with contextlib.suppress(OSError):
                    recorder.respond(key, self)
                recorder._end(key)

            def log_message(self, *args: object) -> None:
                """Print nothing."""

        return Handler
