"""Where the webhook sink may connect to: no private address unless allowed, and never a metadata service."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from support.built_in_sinks import Signal
from support.endpoints import Connection, OpenWebhook, StartEndpoint, outcome, resolve_to, respond

from plugins.webhook.addresses import why_forbidden
from receiver import Pause

PRIVATE = "private; set allow_private = true if this is intended"
METADATA = "link-local or a cloud's metadata service, which is never allowed"
NOT_A_HOST = "not that of a host, which is never allowed"
ADDRESSES = [
    ("93.184.216.34", None),
    ("8.8.8.8", None),
    ("2606:4700::1111", None),
    ("::ffff:8.8.8.8", None),
    ("64:ff9b::808:808", None),
    ("2002:808:808::1", None),
    ("127.0.0.1", PRIVATE),
    ("127.255.255.254", PRIVATE),
    ("10.0.0.1", PRIVATE),
    ("172.16.0.1", PRIVATE),
    ("172.31.255.255", PRIVATE),
    ("192.168.1.1", PRIVATE),
    ("100.64.0.1", PRIVATE),
    ("100.127.255.255", PRIVATE),
    ("192.0.2.1", PRIVATE),
    ("198.18.0.1", PRIVATE),
    ("240.0.0.1", PRIVATE),
    ("::1", PRIVATE),
    ("fc00::1", PRIVATE),
    ("fd12:3456::1", PRIVATE),
    ("fec0::1", PRIVATE),
    ("2001:db8::1", PRIVATE),
    ("::ffff:127.0.0.1", PRIVATE),
    ("::ffff:10.0.0.1", PRIVATE),
    ("64:ff9b::7f00:1", PRIVATE),
    ("64:ff9b::a00:1", PRIVATE),
    ("64:ff9b:1::7f00:1", PRIVATE),
    ("64:ff9b:1:a9fe:a9:fe00:808:808", PRIVATE),
    ("2002:7f00:1::", PRIVATE),
    ("2002:c0a8:101::1", PRIVATE),
    ("169.254.0.1", METADATA),
    ("169.254.169.254", METADATA),
    ("169.254.170.2", METADATA),
    ("100.100.100.200", METADATA),
    ("192.0.0.192", METADATA),
    ("168.63.129.16", METADATA),
    ("fe80::1", METADATA),
    ("fd00:ec2::254", METADATA),
    ("fd00:ec2::23", METADATA),
    ("fd20:ce::254", METADATA),
    ("::ffff:169.254.169.254", METADATA),
    ("64:ff9b::a9fe:a9fe", METADATA),
    ("2002:a9fe:a9fe::", METADATA),
    ("0.0.0.0", NOT_A_HOST),
    ("::", NOT_A_HOST),
    ("255.255.255.255", NOT_A_HOST),
    ("224.0.0.1", NOT_A_HOST),
    ("239.255.255.250", NOT_A_HOST),
    ("ff02::1", NOT_A_HOST),
    ("::ffff:0.0.0.0", NOT_A_HOST),
    ("::ffff:224.0.0.1", NOT_A_HOST),
]


@pytest.mark.parametrize(("address", "reason"), ADDRESSES)
def test_only_public_addresses_are_allowed_and_private_ones_if_configured(address: str, reason: str | None) -> None:
    parsed = ipaddress.ip_address(address)
    assert why_forbidden(parsed, allow_private=False) == reason
    assert why_forbidden(parsed, allow_private=True) == (None if reason == PRIVATE else reason)


@pytest.mark.parametrize(
    ("address", "reason"), [("127.0.0.1", PRIVATE), ("169.254.169.254", METADATA), ("::1", PRIVATE)]
)
def test_a_name_is_checked_by_the_address_it_resolves_to(
    address: str,
    reason: str,
    start_endpoint: StartEndpoint,
    open_webhook: OpenWebhook,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endpoint = start_endpoint()
    sink = open_webhook(f"http://hook.example:{endpoint.port}/", allow_private=False)
    monkeypatch.setattr(socket, "getaddrinfo", resolve_to(address))
    assert outcome(sink) == Signal(Pause, f"hook.example has an address that is {reason}")
    assert endpoint.connections == 0


def test_a_name_is_checked_again_at_every_connect(
    start_endpoint: StartEndpoint, open_webhook: OpenWebhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    def respond_and_close(connection: Connection) -> None:
        respond("200 OK", "Connection: close")(connection)

    endpoint = start_endpoint(respond_and_close)
    sink = open_webhook(f"http://hook.example:{endpoint.port}/")
    monkeypatch.setattr(socket, "getaddrinfo", resolve_to("127.0.0.1"))
    assert outcome(sink) is None
    monkeypatch.setattr(socket, "getaddrinfo", resolve_to("169.254.169.254"))
    assert outcome(sink) == Signal(Pause, f"hook.example has an address that is {METADATA}")
    assert endpoint.connections == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "127.1", "0x7f000001", "[::ffff:127.0.0.1]"])
def test_no_spelling_of_an_address_bypasses_the_check(
    host: str, start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint()
    signal = outcome(open_webhook(f"http://{host}:{endpoint.port}/", allow_private=False))
    assert signal == Signal(Pause, f"{host.strip('[]')} has an address that is {PRIVATE}")
    assert endpoint.connections == 0


def test_the_next_address_is_tried_if_the_first_does_not_respond(
    start_endpoint: StartEndpoint, open_webhook: OpenWebhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = start_endpoint()
    sink = open_webhook(f"http://hook.example:{endpoint.port}/")
    monkeypatch.setattr(socket, "getaddrinfo", resolve_to("127.0.0.2", "127.0.0.1"))
    assert outcome(sink) is None
    assert endpoint.requests[0]["host"] == f"hook.example:{endpoint.port}"


def test_the_next_address_is_checked_too(
    start_endpoint: StartEndpoint, open_webhook: OpenWebhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = start_endpoint()
    sink = open_webhook(f"http://hook.example:{endpoint.port}/")
    monkeypatch.setattr(socket, "getaddrinfo", resolve_to("127.0.0.2", "169.254.169.254"))
    assert outcome(sink) == Signal(Pause, f"hook.example has an address that is {METADATA}")
