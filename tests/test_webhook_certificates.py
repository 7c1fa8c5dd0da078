"""TLS of the webhook sink: only endpoints with a trusted certificate for their name get an event."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from support.endpoints import CERTIFICATE, OpenWebhook, StartEndpoint, outcome, resolve_to, webhook_event

from receiver import Pause, Retry


def test_an_untrusted_certificate_is_rejected(start_endpoint: StartEndpoint, open_webhook: OpenWebhook) -> None:
    endpoint = start_endpoint(tls=True)
    signal = outcome(open_webhook(endpoint.url))
    assert signal is not None
    assert (signal.type, signal.after) == (Retry, None)
    reason = r"no response from 127\.0\.0\.1: .*certificate verify failed: self.signed certificate.*"
    assert re.fullmatch(reason, signal.reason)
    assert endpoint.requests == []


def test_a_certificate_in_ca_file_is_trusted(start_endpoint: StartEndpoint, open_webhook: OpenWebhook) -> None:
    endpoint = start_endpoint(tls=True)
    assert outcome(open_webhook(endpoint.url, ca_file=str(CERTIFICATE))) is None
    assert endpoint.requests[0].body == webhook_event().body


def test_a_certificate_for_another_host_is_rejected(
    start_endpoint: StartEndpoint, open_webhook: OpenWebhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = start_endpoint(tls=True)
    sink = open_webhook(f"https://hook.example:{endpoint.port}/", ca_file=str(CERTIFICATE))
    monkeypatch.setattr(socket, "getaddrinfo", resolve_to("127.0.0.1"))
    signal = outcome(sink)
    assert signal is not None
    assert signal.type is Retry
    assert "certificate verify failed: Hostname mismatch" in signal.reason
    assert endpoint.requests == []


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file or directory"), ("no certificate", "no certificate")]
)
def test_a_ca_file_without_certificates_pauses_the_sink(
    content: str | None, reason: str, open_webhook: OpenWebhook, tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(Pause, match=f"^ca_file {re.escape(str(file))} cannot be read: .*{reason}"):
        open_webhook("https://hook.example/", ca_file=str(file))
