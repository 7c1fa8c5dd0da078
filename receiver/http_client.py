"""HTTP requests to DT's services: on one connection, limited in time and size, without redirects or proxies."""

from __future__ import annotations

import errno
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError
from urllib3.exceptions import TimeoutError as HTTPTimeoutError
from urllib3.util import Url, parse_url

from receiver.errors import ReceiverError


class NoResponse(ReceiverError):
    """No complete response was received; the message says why, without text that the server chose."""


@dataclass(frozen=True)
class Response:
    """A response; `body` has at most one byte more than `max_bytes`."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


def origin(address: str) -> tuple[str | None, str | None, int]:
    """Scheme, host and port of a URL."""
    url = parse_url(address)
    return url.scheme, url.host, url.port or {"https": 443}.get(url.scheme or "", 80)


class HttpClient:
    """Requests to the origin of a URL, one after another; each takes at most `seconds` after name resolution."""

    def __init__(self, address: str, seconds: float) -> None:
        self._scheme, host, self._port = origin(address)
        assert host is not None
        self._host = host.strip("[]")
        self._seconds = seconds
        self._connection: Connection | None = None

    def request(
        self, method: str, address: str, headers: Mapping[str, str], *, max_bytes: int, body: bytes | None = None
    ) -> Response:
        """The response to a request, with no more than `max_bytes` + 1 of its body. Raises NoResponse."""
        connection = self._connect()
        timer = threading.Timer(self._seconds, connection.cut_off)
        timer.daemon = True
        timer.start()
        try:
            response = connection.exchange(method, parse_url(address), headers, body, max_bytes)
        except (HTTPError, HTTPException, OSError) as error:
            self.close()
            raise NoResponse(_reason(error, connection.is_cut_off, self._seconds)) from None
        finally:
            timer.cancel()
        if len(response.body) > max_bytes:
            self.close()
        return response

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        if self._connection is not None:
            self._connection.close_all()
            self._connection = None

    def _connect(self) -> Connection:
        if self._connection is not None and not self._connection.is_connected:
            self.close()
        if self._connection is None:
            if self._scheme == "https":
                context = ssl.create_default_context()
                self._connection = SecureConnection(self._host, self._port, timeout=self._seconds, ssl_context=context)
            else:
                self._connection = Connection(self._host, self._port, timeout=self._seconds)
        return self._connection


def _reason(error: Exception, is_cut_off: bool, seconds: float) -> str:
    """Why there is no response, without text of the exception that the server may have chosen."""
    if isinstance(error, NameResolutionError):
        return "its host name cannot be resolved"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    refused = isinstance(error, NewConnectionError)  # which urllib3 makes a kind of timeout
    if is_cut_off or (isinstance(error, TimeoutError | HTTPTimeoutError) and not refused):
        return f"no complete response within {seconds:.0f} s"
    cause = error if isinstance(error, OSError) else error.__cause__
    return getattr(cause, "strerror", None) or type(error).__name__


class LimitedResponse(HTTPResponse):
    """A response whose body is read up to the limit. Python's own accepts a chunk of negative size, which has none."""

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]  # not in the types of the library
        if size < 0:
            raise HTTPException("negative size of a chunk")
        return size


class Connection(HTTPConnection):
    """A connection that another thread can end: a server that keeps sending single bytes causes no timeout."""

    response_class = LimitedResponse
    is_cut_off = False
    _socket: socket.socket | None = None

    def exchange(
        self, method: str, url: Url, headers: Mapping[str, str], body: bytes | None, max_bytes: int
    ) -> Response:
        self.request(method, url.request_uri, body, headers, preload_content=False, decode_content=False)
        response = self.getresponse()
        try:
            content = response.read(max_bytes + 1)
        finally:
            response.close()  # else unread data would keep the socket open
        if self.is_cut_off:
            raise TimeoutError
        if len(content) <= max_bytes and response.length_remaining:
            raise ConnectionResetError(errno.ECONNRESET, "its response was cut short")
        return Response(response.status, response.headers, content)

    def cut_off(self) -> None:
        self.is_cut_off = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close_all(self) -> None:
        self.close()
        if self._socket is not None:
            self._socket.close()

    def _new_conn(self) -> socket.socket:
        connected = super()._new_conn()
        self._socket = connected.dup()  # TLS detaches the socket itself
        if self.is_cut_off:
            raise TimeoutError
        return connected


class SecureConnection(Connection, HTTPSConnection):
    """A connection over TLS."""
