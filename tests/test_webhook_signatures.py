"""Signed requests of the webhook sink, verified by the library of Standard Webhooks."""

from __future__ import annotations

import base64
import json
import re
from datetime import timedelta

import pytest
import time_machine
from standardwebhooks import Webhook, WebhookVerificationError
from support.endpoints import OpenWebhook, StartEndpoint, build_webhook, outcome, respond, webhook_event
from support.events import NOW

from receiver.errors import PluginError

KEY = base64.b64encode(b"0123456789abcdef01234567").decode()
OTHER_KEY = base64.b64encode(b"another key of 24 bytes!").decode()
UNKNOWN_KEY = base64.b64encode(b"neither of the two").decode()
SECRET_TEXT = "s3cr3t-mark"


@pytest.mark.parametrize(
    ("secret", "verifying"),
    [
        (KEY, [KEY]),
        (f"whsec_{KEY}", [f"whsec_{KEY}"]),
        ([f"whsec_{OTHER_KEY}", KEY], [KEY, OTHER_KEY]),
    ],
    ids=["plain", "with prefix", "two in rotation"],
)
def test_the_standard_library_verifies_the_signature_with_each_configured_secret_and_no_other(
    secret: str | list[str], verifying: list[str], start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint()
    assert outcome(open_webhook(endpoint.url, secret=secret)) is None
    (request,) = endpoint.requests
    headers = dict(request.headers)
    for key in verifying:
        assert Webhook(key).verify(request.body, headers) == json.loads(webhook_event().body)
    with pytest.raises(WebhookVerificationError):
        Webhook(UNKNOWN_KEY).verify(request.body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(verifying[0]).verify(request.body + b" ", headers)


def test_each_attempt_is_signed_with_its_own_time(start_endpoint: StartEndpoint, open_webhook: OpenWebhook) -> None:
    endpoint = start_endpoint(respond("500 Oops"))
    sink = open_webhook(endpoint.url, secret=KEY)
    for attempt, moment in enumerate((NOW, NOW + timedelta(hours=3)), start=1):
        with time_machine.travel(moment, tick=False):
            outcome(sink, attempt=attempt)
            Webhook(KEY).verify(endpoint.requests[-1].body, dict(endpoint.requests[-1].headers))
    assert [int(request["webhook-timestamp"]) for request in endpoint.requests] == [
        int(NOW.timestamp()),
        int(NOW.timestamp()) + 3 * 3600,
    ]


@pytest.mark.parametrize(
    "secret",
    [
        f"not base64 {SECRET_TEXT}",
        SECRET_TEXT,
        f"{KEY}\n{SECRET_TEXT}",
        f"æ{SECRET_TEXT}",
        [KEY, f"{SECRET_TEXT}!"],
        "",
        "whsec_",
        [""],
        [KEY, ""],
    ],
    ids=[
        "words",
        "length",
        "line end",
        "not ASCII",
        "in a list",
        "empty",
        "empty after prefix",
        "empty in a list",
        "one empty",
    ],
)
def test_an_invalid_secret_is_reported_and_not_shown(secret: str | list[str]) -> None:
    with pytest.raises(PluginError) as error:
        build_webhook(url="https://example.com/", secret=secret)
    assert re.fullmatch(
        r"config\.toml \[sinks\.tested\]: "
        r"secret must be base64, with or without the prefix (whsec_|\*\*\*)",
        str(error.value),
    )
