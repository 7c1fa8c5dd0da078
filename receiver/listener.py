"""The address to listen on: whether a text is one, and a socket bound to it."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket

from receiver.errors import ReceiverError

BACKLOG = 2048
"""Connections that wait until intake accepts them, also while it is restarted."""

_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+")
"""Whether there is such a host, or an IPv4 address that looks like this, is found out when it is bound."""

_REMEDIES = {
    errno.EADDRINUSE: "stop the program that uses it, or set PORT to another one",
    errno.EACCES: "set PORT to one above 1023",
    errno.EAFNOSUPPORT: 'this machine has no IPv6: set [receiver] host to "0.0.0.0"',
}


def valid_host(text: str) -> str:
    """`text`, if it can be an IP address or a host name. Raises ValueError that says what to write instead."""
    if not _HOST_NAME.fullmatch(text):
        try:
            ipaddress.ip_address(text)
        except ValueError:
            raise ValueError(
                'give an address without brackets and port, such as "127.0.0.1", "0.0.0.0" for all of IPv4 or "::" for '
                "all of IPv6 and IPv4; the port is set by the environment variable PORT"
            ) from None
    return text


def listen(host: str, port: int) -> socket.socket:
    """A listening socket that outlives restarts of intake. Raises ReceiverError."""
    try:
        listener = bind(host, port)
        listener.listen(BACKLOG)
    except OSError as error:
        raise _cannot_listen(host, port, error) from None
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # head and body of a response are sent apart
    return listener


def is_in_use(host: str, port: int) -> bool:
    """Whether another socket listens there. Raises ReceiverError if none could."""
    try:
        bind(host, port).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return True
        raise _cannot_listen(host, port, error) from None
    return False


def bind(host: str, port: int) -> socket.socket:
    """A bound socket: of "::" for IPv6 and IPv4, of a host name for one of its addresses, if possible of IPv4.

    Raises OSError.
    """
    found = socket.getaddrinfo(host.encode(), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier run may linger
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _cannot_listen(host: str, port: int, error: OSError) -> ReceiverError:
    remedy = _REMEDIES.get(error.errno or 0, "set [receiver] host to an address of this machine")
    return ReceiverError(f"cannot listen on {host} port {port}: {error.strerror}; {remedy}")
