"""Where the `webhook` sink may connect to: no private address unless allowed, and never a metadata service."""

from __future__ import annotations

import ipaddress
import socket
import time

from receiver import Pause

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
PRIVATE = "private; set allow_private = true if this is intended"
METADATA_SERVICES = frozenset(
    ipaddress.ip_address(address)
    for address in (
        "fd00:ec2::254",  # Amazon EC2
        "fd00:ec2::23",  # Amazon EKS
        "fd20:ce::254",  # Google Cloud
        "100.100.100.200",  # Alibaba Cloud
        "168.63.129.16",  # Azure
        "192.0.0.192",  # Oracle Cloud
    )
)
"""Those that are not link-local, as 169.254.169.254 is; they hand out credentials to whoever asks."""


def connect(host: str, port: int, allow_private: bool, seconds: float) -> socket.socket:
    """A connection to the first address of a host that responds, within `seconds` for all of them together.

    Raises Pause for an address that is not allowed.
    """
    error: OSError | None = None
    end = time.monotonic() + seconds
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for number, (family, kind, protocol, _, place) in enumerate(found):
        reason = why_forbidden(ipaddress.ip_address(str(place[0]).partition("%")[0]), allow_private)
        if reason:
            raise Pause(f"{host} has an address that is {reason}")
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(max(0.01, (end - time.monotonic()) / (len(found) - number)))
            connection.connect(place)
            connection.settimeout(seconds)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        except OSError as failure:
            connection.close()
            error = failure
    raise error or OSError(f"{host} has no address")


def check_literal(host: str, allow_private: bool) -> None:
    """Raise Pause if a host is an address that is not allowed, in any spelling; a name is not resolved."""
    try:
        address: Address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return
    if reason := why_forbidden(address, allow_private):
        raise Pause(f"{host} has an address that is {reason}")


def check_localhost(host: str, allow_private: bool) -> None:
    """Raise Pause for a name that is always a loopback address (RFC 6761, section 6.3), unless that is allowed."""
    if f".{host}".rstrip(".").endswith(".localhost") and not allow_private:
        raise Pause(f"{host} has an address that is {PRIVATE}")


def why_forbidden(address: Address, allow_private: bool) -> str | None:
    """Why an address is not allowed, or None. An IPv4 address inside an IPv6 address is judged as IPv4."""
    address = embedded_ipv4(address)
    if address.is_link_local or address in METADATA_SERVICES:
        return "link-local or a cloud's metadata service, which is never allowed"
    if address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255":
        return "not that of a host, which is never allowed"
    if is_private(address) and not allow_private:
        return PRIVATE
    return None


def is_private(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and (address.is_site_local or address in LOCAL_NAT64):
        return True
    return not address.is_global


def embedded_ipv4(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped or address.sixtofour:
            return address.ipv4_mapped or address.sixtofour or address
        if address in NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address
