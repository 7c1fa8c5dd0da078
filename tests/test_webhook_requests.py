"""The requests of the webhook sink: DT's body byte for byte, its headers, and the options they come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from support.endpoints import OpenWebhook, StartEndpoint, build_webhook, outcome, respond, webhook_event

from receiver import Secret
from receiver.errors import PluginError

SECRET_TEXT = "s3cr3t-mark"
KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3"


def test_the_body_is_sent_byte_for_byte_in_every_attempt(
    start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint(respond("500 Oops"), lambda _: None, respond("429 Slow", "Retry-After: 1"))
    sink = open_webhook(endpoint.url)
    for attempt in (1, 2, 3, 4):
        outcome(sink, attempt=attempt)
    assert [(request.body, request["idempotency-key"]) for request in endpoint.requests] == [
        (webhook_event().body, "e1")
    ] * 4


def test_a_request_has_exactly_these_headers(start_endpoint: StartEndpoint, open_webhook: OpenWebhook) -> None:
    endpoint = start_endpoint()
    headers = {"Authorization": f"Bearer {SECRET_TEXT}", "X-Site": "oslo"}
    assert outcome(open_webhook(endpoint.url, headers=headers)) is None
    (request,) = endpoint.requests
    assert sorted(request.headers) == [
        ("accept-encoding", "identity"),
        ("authorization", f"Bearer {SECRET_TEXT}"),
        ("content-length", str(len(webhook_event().body))),
        ("content-type", "application/json"),
        ("host", f"127.0.0.1:{endpoint.port}"),
        ("idempotency-key", "e1"),
        ("user-agent", "dt-receiver"),
        ("webhook-id", "e1"),
        ("x-site", "oslo"),
    ]


@pytest.mark.parametrize("name", ["Content-Type", "content-type", "USER-AGENT"])
def test_a_configured_header_replaces_the_default_one(
    name: str, start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint()
    assert outcome(open_webhook(endpoint.url, headers={name: "mine/1"})) is None
    assert endpoint.requests[0].values(name) == ["mine/1"]


@pytest.mark.parametrize("name", ["Idempotency-Key", "idempotency-key", "WEBHOOK-ID"])
def test_a_configured_header_does_not_replace_the_event_id(
    name: str, start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint()
    assert outcome(open_webhook(endpoint.url, headers={name: "mine"})) is None
    assert endpoint.requests[0].values(name) == ["e1"]


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://127.0.0.1:{port}", "POST / HTTP/1.1"),
        ("http://127.0.0.1:{port}/", "POST / HTTP/1.1"),
        ("http://127.0.0.1:{port}/a/b?c=d&e=%20", "POST /a/b?c=d&e=%20 HTTP/1.1"),
        ("http://127.0.0.1:{port}?token=1", "POST /?token=1 HTTP/1.1"),
        ("http://127.0.0.1:{port}//a", "POST //a HTTP/1.1"),
        ("http://127.0.0.1:{port}/a#fragment", "POST /a HTTP/1.1"),
        ("http://127.0.0.1:{port}/æ b", "POST /%C3%A6%20b HTTP/1.1"),
        ("HTTP://127.0.0.1:{port}/Case", "POST /Case HTTP/1.1"),
    ],
)
def test_the_request_line_has_the_path_and_query_of_the_url(
    url: str, line: str, start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint()
    assert outcome(open_webhook(url.format(port=endpoint.port))) is None
    assert [request.line for request in endpoint.requests] == [line]


def problem(**options: Any) -> str:
    """Why no sink is built from these options: one line, without the place in front of it."""
    with pytest.raises(PluginError) as error:
        build_webhook(**options)
    place = r"config\.toml \[sinks\.tested\]: "
    found = re.fullmatch(rf"{place}(.*)", str(error.value))
    assert found is not None, error.value
    return found[1]


NO_URL = "url must begin with http:// or https:// and name a host"
USER_IN_URL = "url must not contain a user name or password; use headers"
PORT = "url must have a port from 0 to 65535, or none"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ftp://example.com/", NO_URL),
        ("file:///etc/passwd", NO_URL),
        ("example.com/hook", NO_URL),
        ("http:///hook", NO_URL),
        ("https://", NO_URL),
        ("", NO_URL),
        (f"https://user:{SECRET_TEXT}@example.com/", USER_IN_URL),
        (f"https://{SECRET_TEXT}@example.com/", USER_IN_URL),
        (f"https://:{SECRET_TEXT}@example.com/", USER_IN_URL),
        (f"https://[::1/{SECRET_TEXT}", NO_URL),
        ("https://a..b/", NO_URL),
        (f"https://{'a' * 64}.example/", NO_URL),
        ("https://exa mple.com/", NO_URL),
        ("https://\N{SNOWMAN}.example/", NO_URL),
        ("https://example.com:99999/", PORT),
        (f"https://user:{SECRET_TEXT}/x@example.com/", PORT),
    ],
)
def test_an_invalid_url_is_reported_and_not_shown(url: str, expected: str) -> None:
    assert problem(url=url) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "option 'url' is missing"),
        ({"url": "https://example.com/", "urls": "x"}, "no option 'urls' (did you mean 'url'?)"),
        (
            {"url": "https://example.com/", "secret": 5},
            'secret: give text in quotes, such as "text", or: give a list, such as ["a", "b"]',
        ),
        ({"url": "https://example.com/", "headers": {"X": 5}}, 'headers.X: give text in quotes, such as "text"'),
    ],
)
def test_a_wrong_option_is_reported(options: dict[str, Any], expected: str) -> None:
    assert problem(**options) == expected


HEADER_NAME = "headers: a name is not a token of letters, digits and -"
HEADER_VALUE = "headers: the value of header Authorization must be ASCII without line ends"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"content-length": "5"}, "headers: the sink sets content-length itself; remove it"),
        ({"Transfer-Encoding": "gzip"}, "headers: the sink sets Transfer-Encoding itself; remove it"),
        ({"Authorization": f"Bearer {SECRET_TEXT}\n"}, HEADER_VALUE),
        ({"Authorization": f"Bearer {SECRET_TEXT}\r\nX-Evil: 1"}, HEADER_VALUE),
        ({"Authorization": f"Bearer {SECRET_TEXT} \u2013 \U0001f321"}, HEADER_VALUE),
        ({f"X-{SECRET_TEXT}\r\nX-Evil": "1"}, HEADER_NAME),
        ({"": SECRET_TEXT}, HEADER_NAME),
    ],
    ids=["length", "encoding", "line end", "second header", "not latin-1", "in the name", "no name"],
)
def test_a_header_that_cannot_be_sent_is_reported_and_not_shown(headers: Mapping[str, str], expected: str) -> None:
    assert problem(url="https://example.com/", headers=headers) == expected


def test_the_representation_of_a_sink_shows_nothing_secret() -> None:
    url = f"https://example.com/{SECRET_TEXT}?key={SECRET_TEXT}"
    sink = build_webhook(url=url, secret=[KEY, KEY[::-1]], headers={"Authorization": f"Bearer {SECRET_TEXT}"})
    (hook,) = sink.hook.deliver.get_hookimpls()
    for text in (repr(sink), str(sink), repr(hook), repr(hook.plugin), repr(vars(hook.plugin)["headers"])):
        assert SECRET_TEXT not in text
        assert KEY not in text
    assert isinstance(hook.plugin.headers["Authorization"], Secret)
