"""gunicorn with its gevent worker, configured and limited so that slow and greedy clients cannot block it.

A connection costs a greenlet, not a thread. Only the sockets of the server are gevent's: nothing is monkey-patched,
and whatever can block runs in native threads.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import time
from functools import partial
from typing import Any

import gevent
import gevent.socket
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from gunicorn.http import get_parser, wsgi
from gunicorn.http.errors import NoMoreData
from gunicorn.workers.ggevent import GeventWorker

from receiver.intake.app import create_app
from receiver.intake.connection import IDLE_SECONDS, Connection, is_complete
from receiver.intake.counters import FOLDER, reserve_files, restore_folder
from receiver.journal import open_journal
from receiver.lifeline import Lifeline
from receiver.logs import RateLimitedLog
from receiver.settings import Settings

log = logging.getLogger(__name__)

CONNECTIONS = 4000
"""Connections that a worker holds open; most of them are idle."""

SPARE_FILES = 500
"""Open files of a worker besides its connections, most of them the journal's."""

STOP_SECONDS = 8.0
"""How long requests in progress may take when the worker stops."""

TICK_SECONDS = 1.0


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
            "worker_class": PushWorker,
            "worker_connections": CONNECTIONS,
            "keepalive": int(IDLE_SECONDS),
            "graceful_timeout": int(STOP_SECONDS),
            "timeout": 30,
            "worker_tmp_dir": os.environ[FOLDER],
            "http_parser": "python",
            "forwarded_allow_ips": "",
            "control_socket_disable": True,
            "logger_class": ReceiverLogger,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """The server has created the tables; a worker must be able to start while the journal is unavailable."""
        reserve_files()
        return create_app(self._settings, open_journal(self._settings, create_tables=False))

    def run(self) -> None:
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


class PushWorker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's gevent worker without monkey patching, with a deadline for each request and for each response."""

    alive: bool
    """False once it has to stop; gunicorn sets it when SIGTERM comes before `run`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        restore_folder()
        super().__init__(*args, **kwargs)
        self._log = RateLimitedLog(log)
        self._new: dict[Connection, None] = {}
        """Connections that have sent nothing yet, in the order in which they were opened."""
        self._reusable: dict[Connection, None] = {}
        """Connections that are idle after a request, in the order of its end."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._pool = Pool(min(CONNECTIONS, max(files - SPARE_FILES, files // 2)))

    def patch(self) -> None:
        """Wrap the listening sockets; gunicorn's own method would replace the standard library's as well."""
        self.sockets: list[Any] = [
            gevent.socket.socket(each.FAMILY, socket.SOCK_STREAM, fileno=each.sock.detach()) for each in self.sockets
        ]

    def notify(self) -> None:
        """Report to the master that this worker is alive; gunicorn's own method would exit at once without a master."""
        self.tmp.notify()

    def run(self) -> None:
        servers = [StreamServer(each, handle=partial(self.handle, each), spawn=self._pool) for each in self.sockets]
        for server in servers:
            server.max_accept = 16  # of many that connect at once each worker takes some
            server.start()
        stopping = Event()
        gevent.signal_handler(signal.SIGTERM, stopping.set)
        while self.alive and not stopping.wait(TICK_SECONDS) and self.ppid == os.getppid():
            self.notify()
        self.alive = False
        for server in servers:
            server.close()
        for connection in (*self._new, *self._reusable):
            connection.shut_down()
        end = time.monotonic() + STOP_SECONDS
        while not self._pool.join(timeout=TICK_SECONDS) and time.monotonic() < end:
            self.notify()

    def handle(self, listener: socket.socket, client: socket.socket, address: Any) -> None:
        """Serve the requests of one connection."""
        connection = Connection(client)
        try:
            self._make_room()
            parser = get_parser(self.cfg, connection, address)
            server = listener.getsockname()
            idle = self._new
            while self.alive and self._wait_for_request(connection, parser, idle):
                if not self._serve(connection, parser, server, address):
                    break
                idle = self._reusable
                gevent.sleep(0)  # or a client whose next request is there already would keep all others waiting
        except (OSError, NoMoreData, StopIteration) as error:
            log.debug("a connection ended: %s", type(error).__name__)
        except Exception as error:
            self.handle_error(None, connection, address, error)
        finally:
            connection.close()

    def _wait_for_request(self, connection: Connection, parser: Any, idle: dict[Connection, None]) -> bool:
        """Wait for the first bytes of a request; its deadline begins with them. False if the client is gone."""
        data = parser.unreader.take_buffered()
        if not data:
            idle[connection] = None
            try:
                data = connection.wait()
            finally:
                idle.pop(connection, None)
        connection.begin_request()
        parser.unreader.unread(data)
        return bool(data)

    def _serve(self, connection: Connection, parser: Any, server: Any, address: Any) -> bool:
        """Serve one request. Returns whether the connection can be reused."""
        try:
            request = next(parser)
            response, environ = wsgi.create(request, connection, address, server, self.cfg)
        except (TimeoutError, BlockingIOError):
            connection.respond(408, "Request Timeout", "request incomplete")
            return False
        if not self.alive:
            response.force_close()
        body = self.wsgi(environ, response.start_response)
        for part in body:
            response.write(part)
            connection.send_if_long()
        response.close()
        if hasattr(body, "close"):
            body.close()
        connection.send_response()
        return not response.should_close() and is_complete(request.body)

    def _make_room(self) -> None:
        """Close the connection that has been idle for the longest time, preferably one without any request."""
        idle = self._new or self._reusable
        if idle and self._pool.full():
            oldest = next(iter(idle))
            del idle[oldest]
            oldest.shut_down()

    def handle_error(self, req: Any, client: Connection, addr: Any, exc: Exception) -> None:
        """Respond to a request that gunicorn cannot parse; its own response and log line repeat parts of it."""
        kind = type(exc).__name__
        status, reason = ERRORS.get(kind, (400, "Bad Request"))
        values = {"reason": kind, "remote": addr[0] if addr else "unknown", "code": status}
        self._log.warning(kind, "request rejected: %(reason)s (from %(remote)s)", values)
        client.respond(status, reason, "malformed request")


ERRORS = {
    "LimitRequestLine": (414, "URI Too Long"),
    "LimitRequestHeaders": (431, "Request Header Fields Too Large"),
    "ExpectationFailed": (417, "Expectation Failed"),
}


class ReceiverLogger(Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's warnings and errors, through the logging of this process."""

    def setup(self, cfg: Any) -> None:
        self.error_log = logging.getLogger("gunicorn")
        self.access_log = logging.getLogger("gunicorn.access")
        self.error_log.setLevel(logging.WARNING)
