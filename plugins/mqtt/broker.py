"""The broker of the `mqtt` sink: its URL, login and certificate."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from receiver import Pause


@dataclass(frozen=True)
class Broker:
    """The address of a broker, and how to log in."""

    host: str
    port: int
    tls: bool
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None


def parse_url(text: str) -> Broker:
    """The broker of a URL. Raises ValueError, whose message does not contain the URL."""
    try:
        parts = urlsplit(text.strip())
        port = parts.port
        (parts.hostname or "").encode("idna")  # as connecting does
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ValueError("url must be a URL such as mqtt://host or mqtts://user:password@host:8883")
    tls = parts.scheme == "mqtts"
    user, password = (None if part is None else unquote(part) for part in (parts.username, parts.password))
    return Broker(parts.hostname, port or (8883 if tls else 1883), tls, user, password)


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """TLS that trusts the system's certificates, or those of a file. Raises Pause if the file cannot be read."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        reason = error.strerror or "it has no certificates"
        raise Pause(f"ca_file {ca_file} cannot be read: {reason}") from None
    context.sslsocket_class = ClosedOnFailure
    return context


def cause(error: BaseException) -> str:
    """Why connecting failed, without the text of the exception, which may contain parts of the URL."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


class ClosedOnFailure(ssl.SSLSocket):
    """paho leaves a socket open when the TLS handshake fails."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise
