"""Which URLs cannot be changed on the way: those with TLS, and those of this machine."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit


def is_secure_url(url: str) -> bool:
    """Whether a URL has no user, query or fragment, and is https, or http on the loopback interface."""
    if not re.fullmatch("[!-~]+", url):  # `urlsplit` would drop what it does not like
        return False
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        return False
    if not host or parts.username is not None or parts.query or parts.fragment:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
