"""Where a push comes from: what `X-Forwarded-For` says is believed only of trusted proxies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import CSV_ONLY, StartReceiver, wait_until
from werkzeug import Request
from werkzeug.test import EnvironBuilder

from receiver.errors import ConfigError
from receiver.intake.remote_address import remote_address
from receiver.settings import Settings, load


def settings(folder: Path, receiver: str = "", **environ: str) -> Settings:
    path = folder / "config.toml"
    path.write_text(f"[receiver]\n{receiver}\n", encoding="utf-8")
    return load({"RECEIVER_CONFIG": str(path), **environ}, secret_required=False)


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.1", None, "192.0.2.1"),
        ("192.0.2.1", "198.51.100.7", "192.0.2.1"),
        ("10.1.2.3", "198.51.100.7", "198.51.100.7"),
        ("10.1.2.3", "203.0.113.9, 198.51.100.7", "198.51.100.7"),
        ("10.1.2.3", "203.0.113.9, 198.51.100.7, 127.0.0.1, 10.9.9.9", "198.51.100.7"),
        ("10.1.2.3", "10.0.0.1,10.0.0.2", "10.0.0.1"),
        ("10.1.2.3", "198.51.100.7:4711", "198.51.100.7"),
        ("10.1.2.3", "[2001:db8::1]:443", "2001:db8::1"),
        ("10.1.2.3", "2001:db8::1", "2001:db8::1"),
        ("::ffff:10.1.2.3", "::ffff:198.51.100.7", "198.51.100.7"),
        ("10.1.2.3", "unknown", "10.1.2.3"),
        ("10.1.2.3", "198.51.100.7, \x22 forged", "10.1.2.3"),
        ("10.1.2.3", "", "10.1.2.3"),
        (None, "198.51.100.7", "unknown"),
    ],
)
def test_only_what_trusted_proxies_have_appended_is_believed(
    peer: str | None, forwarded: str | None, address: str, tmp_path: Path
) -> None:
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    environ = EnvironBuilder(method="POST", headers=headers).get_environ()
    if peer is not None:
        environ["REMOTE_ADDR"] = peer
    trusted = settings(tmp_path, 'trusted_proxies = ["10.0.0.0/8", "127.0.0.1"]').trusted_proxies
    assert remote_address(Request(environ), trusted) == address


def test_by_default_no_proxy_is_trusted_and_on_a_dyno_the_router_of_heroku(tmp_path: Path) -> None:
    assert settings(tmp_path).trusted_proxies == ()
    assert list(map(str, settings(tmp_path, DYNO="web.1").trusted_proxies)) == ["10.0.0.0/8"]
    assert settings(tmp_path, "trusted_proxies = []", DYNO="web.1").trusted_proxies == ()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ('["10.0.0.0/8", "proxy"]', "'proxy' is not an address or a network such as 10.0.0.0/8"),
        ('["10.0.0.1/8"]', "'10.0.0.1/8' is not an address or a network such as 10.0.0.0/8"),
        ('"10.0.0.0/8"', 'give a list of text, such as ["10.0.0.0/8"]'),
    ],
)
def test_what_is_no_network_is_an_error(value: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        settings(tmp_path, f"trusted_proxies = {value}")
    assert str(raised.value).endswith(problem)


def test_a_rejected_push_is_logged_with_its_fields(start_receiver: StartReceiver) -> None:
    config = '[receiver]\nlog_format = "json"\ntrusted_proxies = ["127.0.0.1"]\n'
    receiver = start_receiver(f"{config}{CSV_ONLY}")
    headers = {"X-Forwarded-For": "198.51.100.7", "X-Request-Id": "abc"}
    receiver.http.request("POST", receiver.url, body=b"{}", headers=headers)
    line = wait_until(lambda: next((line for line in receiver.log.splitlines() if "push rejected" in line), None))
    record = json.loads(line)
    reason = "missing header X-Dt-Signature"
    assert record["message"] == f"push rejected: {reason} (from 198.51.100.7, 2 bytes, request abc)"
    assert [record[name] for name in ("reason", "code", "request_id", "remote")] == [reason, 400, "abc", "198.51.100.7"]
