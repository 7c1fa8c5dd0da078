"""Where a push comes from: the address of its connection, or the one that a trusted proxy names.

It is for people who read the log; nothing is decided by it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from werkzeug import Request

from receiver.settings import Network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def remote_address(push: Request, trusted: Sequence[Network]) -> str:
    """The last address before the trusted proxies.

    Each proxy appends the address from which it was called to X-Forwarded-For, so only what trusted proxies have
    appended is believed, from the end on.
    """
    address = push.remote_addr or "unknown"
    forwarded = push.headers.get("X-Forwarded-For", "").split(",")
    while forwarded and _is_trusted(address, trusted) and (before := _parse(forwarded.pop())):
        address = str(before)
    return address


def _is_trusted(text: str, trusted: Sequence[Network]) -> bool:
    address = _parse(text)
    return address is not None and any(address in network for network in trusted)


def _parse(text: str) -> Address | None:
    """An address, also with brackets or a port, as some proxies write it; one of IPv4 in IPv6 as IPv4."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, ipaddress.IPv6Address) else address
