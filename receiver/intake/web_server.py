"""gunicorn, configured and limited so that slow and greedy clients cannot block it.

Its threaded worker waits forever for a client that sends half a request, and its main loop waits for clients that do
not close. Both are limited here.
"""

from __future__ import annotations

import logging
import resource
import select
import signal
import socket
import time
from typing import Any

from gunicorn import util
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.workers import gthread

from receiver.intake.app import create_app
from receiver.journal import open_journal
from receiver.lifeline import Lifeline
from receiver.logs import RateLimitedLog
from receiver.settings import Settings

log = logging.getLogger(__name__)

REQUEST_SECONDS = 2.0
"""How long a client may take to send a complete request, from its first byte on."""

CONNECTIONS = 4000
"""Connections that a worker holds open; most of them are idle."""

SPARE_FILES = 500
"""Open files of a worker besides its connections, most of them the journal's."""


def run(settings: Settings, listener: socket.socket, lifeline: Lifeline) -> None:
    """Serve a bound socket until SIGTERM, or until the supervisor is gone. Ends the process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, CONNECTIONS + SPARE_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    WebServer(settings, listener, lifeline).run()


class WebServer(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn with the receiver's settings, and one app in each worker."""

    def __init__(self, settings: Settings, listener: socket.socket, lifeline: Lifeline) -> None:
        self._settings = settings
        self._listener = listener
        self._lifeline = lifeline
        super().__init__()

    def load_config(self) -> None:
        options = {
            "bind": f"fd://{self._listener.detach()}",
            "workers": self._settings.workers,
            "threads": self._settings.receiver.threads,
            "worker_class": DeadlineWorker,
            "worker_connections": CONNECTIONS,
            "keepalive": 95,
            "graceful_timeout": 8,
            "timeout": 30,
            "http_parser": "python",
            "forwarded_allow_ips": "",
            "control_socket_disable": True,
            "logger_class": ReceiverLogger,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """The server has created the tables; a worker must be able to start while the journal is unavailable."""
        return create_app(self._settings, open_journal(self._settings, create_tables=False))

    def run(self) -> None:
        gthread.DEFAULT_WORKER_DATA_TIMEOUT = 0.02
        gthread.TConn = Connection
        SupervisedArbiter(self, self._lifeline).run()


class SupervisedArbiter(Arbiter):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's master process, which stops when its supervisor is gone."""

    def __init__(self, app: BaseApplication, lifeline: Lifeline) -> None:
        self._lifeline = lifeline
        super().__init__(app)

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        if not self._lifeline.supervisor_connected():
            return [signal.SIGTERM]
        signals: list[int] = super().wait_for_signals(timeout)
        return signals


class DeadlineWorker(gthread.ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's threaded worker with a deadline for each request, and without lingering close."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadlines: dict[Connection, float] = {}
        self._log = RateLimitedLog(log)
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.worker_connections = min(CONNECTIONS, max(files - SPARE_FILES, files // 2))

    def handle(self, conn: Connection) -> Any:
        """Serve one request; one that is not complete in time gets 408, and its connection is closed."""
        conn.request = None
        self._deadlines[conn] = time.monotonic() + REQUEST_SECONDS
        try:
            keep = super().handle(conn)
        finally:
            del self._deadlines[conn]
        if conn.cut_off and conn.request is None:
            respond(conn.sock, 408, "Request Timeout", "request incomplete")
        return False if conn.cut_off else keep

    def _keepalive_after(self, conn: Connection, keepalive: bool) -> bool:
        """Whether the connection can be reused. gunicorn's own check mistakes a busy moment for a slow client."""
        return keepalive and conn.complete()

    def handle_request(self, req: Any, conn: Connection) -> Any:
        conn.request = req
        return super().handle_request(req, conn)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        super().wait_for_and_dispatch_events(min(timeout, 0.25))
        now = time.monotonic()
        for conn, deadline in self._deadlines.copy().items():
            if deadline < now:
                if not conn.cut_off and not conn.complete():
                    conn.cut_off = True
                    shut_down(conn.sock, socket.SHUT_RD)
                if not writable(conn.sock):
                    shut_down(conn.sock, socket.SHUT_WR)
        self._make_room()

    def _make_room(self) -> None:
        """Close the connections that have been idle for the longest time, those without any request first."""
        while self.nr_conns >= self.worker_connections and (idle := self.pending_conns or self.keepalived_conns):
            conn = idle.popleft()
            self.poller.unregister(conn.sock)
            self.nr_conns -= 1
            conn.close()

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Respond to a request that gunicorn cannot parse; its own response and log line repeat parts of it."""
        kind = type(exc).__name__
        self._log.warning(kind, "request rejected: %s (from %s)", kind, addr[0] if addr else "unknown")
        status, reason = ERRORS.get(kind, (400, "Bad Request"))
        respond(client, status, reason, "malformed request")


ERRORS = {
    "LimitRequestLine": (414, "URI Too Long"),
    "LimitRequestHeaders": (431, "Request Header Fields Too Large"),
    "ExpectationFailed": (417, "Expectation Failed"),
}


class Connection(gthread.TConn):  # type: ignore[misc]  # gunicorn has no types
    """A connection that knows whether its current request is complete, or was cut off."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.request: Any = None
        self.cut_off = False

    def complete(self) -> bool:
        """Whether the current request has been read to its end, so that the client cannot delay it any more."""
        if self.request is None or self.request.body.failed:
            return False
        reader = self.request.body.reader
        if isinstance(reader, LengthReader):
            return bool(reader.length == 0)
        return isinstance(reader, ChunkedReader) and reader.parser is None

    def close(self, graceful: bool = False) -> None:
        """Close at once, after reading what is there: unread bytes would cause a reset that loses the response."""
        shut_down(self.sock, socket.SHUT_WR)
        try:
            self.sock.setblocking(False)
            self.sock.recv(65536)
        except OSError:
            log.debug("nothing more to read")
        util.close(self.sock)


class ReceiverLogger(Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's warnings and errors, through the logging of this process."""

    def setup(self, cfg: Any) -> None:
        self.error_log = logging.getLogger("gunicorn")
        self.access_log = logging.getLogger("gunicorn.access")
        self.error_log.setLevel(logging.WARNING)


def respond(client: socket.socket, status: int, reason: str, line: str) -> None:
    """Send a response where there is no parsed request."""
    head = f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8"
    try:
        util.write_nonblock(client, f"{head}\r\nContent-Length: {len(line)}\r\n\r\n{line}".encode("ascii"))
    except OSError:
        log.debug("the client was gone before the response")


def writable(sock: socket.socket) -> bool:
    """Whether the client reads what is sent to it; a thread that sends to one that does not is blocked."""
    poll = select.poll()
    try:
        poll.register(sock, select.POLLOUT)
    except ValueError:  # it has been closed meanwhile
        return True
    return bool(poll.poll(0))


def shut_down(sock: socket.socket, how: int) -> None:
    try:
        sock.shutdown(how)
    except OSError:
        log.debug("the connection was closed already")
