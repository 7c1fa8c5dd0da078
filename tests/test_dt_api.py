"""DT's REST API: tokens, pages, rate limits, and every way in which a response can be wrong."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from support.cloud import DOOR, FREEZER, NOW, OTHER_PROJECT, PROJECT, Client, access, open_api

from receiver.dt import api as api_module
from receiver.dt import session as session_module
from receiver.dt.api import DataConnector, Device, Metrics, Project
from receiver.dt.session import ApiError, Missing, Refused, Session, Stopped, Unavailable
from receiver.http_client import HttpClient
from receiver.testing.cloud import Cloud, Happening, respond

DAY = 86400.0


def beats(count: int, step: float = 900.0, end: float = NOW - 60) -> list[Happening]:
    """Heartbeats, oldest first."""
    return [
        Happening(end - (count - 1 - n) * step, f"beat{n:016d}", "networkStatus", {"signalStrength": 50})
        for n in range(count)
    ]


def ids(client: Client, device: str = FREEZER, days: float = 31) -> list[str]:
    pages = client.api.events(PROJECT, device, NOW - days * DAY, NOW)
    return [event["eventId"] for page in pages for event in page]


def answer_with(status: int, content: object, headers: Mapping[str, str] | None = None) -> Callable[..., bool]:
    """Respond like this to every request."""

    def answer(request: BaseHTTPRequestHandler) -> bool:
        respond(request, status, content, headers)
        return True

    return answer


def first(count: int, answer: Callable[[BaseHTTPRequestHandler], bool]) -> Callable[[BaseHTTPRequestHandler], bool]:
    """Respond like this to the first requests, and to the others as usual."""
    left = iter(range(count))
    return lambda request: next(left, None) is not None and answer(request)


# What it returns


def test_projects_devices_and_connectors_are_read_page_by_page(cloud: Cloud) -> None:
    cloud.page_size = 2
    for number in range(5):
        cloud.add_device(f"device{number}", PROJECT, type="contact", labels={"name": f"Door {number}"})
    cloud.add_device(DOOR, OTHER_PROJECT, labels=None)
    cloud.add_connector(PROJECT, "https://receiver.example/", secret="s" * 32, events=["touch"])
    client = Client(cloud)
    assert list(client.api.projects()) == [
        Project(PROJECT, PROJECT, "testorganization0000"),
        Project(OTHER_PROJECT, OTHER_PROJECT, "testorganization0000"),
    ]
    assert list(client.api.devices(PROJECT)) == [
        Device(f"device{number}", PROJECT, "contact", "", {"name": f"Door {number}"}) for number in range(5)
    ]
    assert client.api.device(DOOR) == Device(DOOR, OTHER_PROJECT, "temperature", "", {})
    (connector,) = client.api.data_connectors(PROJECT)
    assert connector == DataConnector(
        f"projects/{PROJECT}/dataconnectors/connector0",
        "connector0",
        "HTTP_PUSH",
        "ACTIVE",
        ("touch",),
        ("name",),
        "https://receiver.example/",
        "s" * 32,
    )
    assert client.api.metrics(connector) == Metrics(0, 0, 0.12)
    assert "s" * 32 not in repr(connector)


def test_history_comes_newest_first_in_pages_and_within_the_window(cloud: Cloud) -> None:
    cloud.add_device(FREEZER, PROJECT, history=beats(2500))
    client = Client(cloud)
    assert ids(client, days=30) == [f"beat{n:016d}" for n in range(2499, -1, -1)]
    assert len([path for path in cloud.requests if "/events?" in path]) == 3
    assert ids(client, days=900 * 10 / DAY) == [f"beat{n:016d}" for n in range(2499, 2489, -1)]


def test_an_empty_history_is_one_empty_page(cloud: Cloud) -> None:
    cloud.add_device(FREEZER, PROJECT)
    client = Client(cloud)
    assert list(client.api.events(PROJECT, FREEZER, NOW - DAY, NOW)) == [[]]


# Tokens


def test_a_token_is_used_until_it_ends_and_renewed_before(cloud: Cloud) -> None:
    cloud.add_device(FREEZER, PROJECT)
    client = Client(cloud)
    for _ in range(3):
        list(client.api.devices(PROJECT))
    assert cloud.requests.count("/oauth2/token") == 1
    cloud.now = NOW + 3590
    list(client.api.devices(PROJECT))
    assert cloud.requests.count("/oauth2/token") == 2


def test_a_token_that_is_rejected_is_renewed_once(cloud: Cloud) -> None:
    cloud.add_device(FREEZER, PROJECT)
    client = Client(cloud)
    list(client.api.devices(PROJECT))
    cloud.tokens.clear()
    assert [each.id for each in client.api.devices(PROJECT)] == [FREEZER]
    cloud.answer = answer_with(401, {})
    with pytest.raises(Refused, match=r"does not accept the access token"):
        list(client.api.devices(PROJECT))
    assert cloud.requests.count("/oauth2/token") == 3


@pytest.mark.parametrize("change", ["key_id", "secret", "email"])
def test_a_wrong_or_deleted_key_is_an_error_that_names_the_variables_and_no_value(cloud: Cloud, change: str) -> None:
    client = Client(cloud, **{change: "this is not the right one"})
    with pytest.raises(Refused) as failed:
        list(client.api.projects())
    assert "DT_SERVICE_ACCOUNT_SECRET" in str(failed.value)
    assert "not the right one" not in str(failed.value)


@pytest.mark.parametrize("skew", [-7 * DAY, -3600.0, 3600.0, 7 * DAY])
def test_a_wrong_clock_of_this_machine_does_not_matter(cloud: Cloud, skew: float) -> None:
    cloud.add_device(FREEZER, PROJECT)
    client = Client(cloud)
    cloud.skew_seconds = skew
    assert [each.id for each in client.api.devices(PROJECT)] == [FREEZER]
    assert client.session.skew_seconds == pytest.approx(skew, abs=1)
    assert cloud.requests.count("/oauth2/token") == 2


@pytest.mark.parametrize("secret", ["-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----", "\udcff"], ids=ascii)
def test_a_secret_of_another_kind_is_an_error_that_does_not_show_it(cloud: Cloud, secret: str) -> None:
    with pytest.raises(Refused, match=r"\ADT_SERVICE_ACCOUNT_SECRET is not the secret of a key of a service account\Z"):
        list(Client(cloud, secret=secret).api.projects())


def test_a_token_server_that_returns_no_token_is_an_error(cloud: Cloud) -> None:
    cloud.issue_token = lambda form: (200, {"access_token": ["no", "text"]})  # type: ignore[method-assign]
    with pytest.raises(ApiError, match="no access token; check DT_TOKEN_URL"):
        list(Client(cloud).api.projects())


# Roles and names


def test_a_missing_role_says_which_to_grant(cloud: Cloud) -> None:
    cloud.add_device(FREEZER, PROJECT)
    cloud.readable = set()
    with pytest.raises(Refused, match=f"grant it the role Project User in project {PROJECT} "):
        list(Client(cloud).api.devices(PROJECT))


def test_an_unknown_project_and_an_unknown_device_are_missing(cloud: Cloud) -> None:
    cloud.add_device(FREEZER, PROJECT)
    client = Client(cloud)
    for request in (
        lambda: list(client.api.devices(OTHER_PROJECT)),
        lambda: list(client.api.events(PROJECT, DOOR, NOW - DAY, NOW)),
        lambda: client.api.device(DOOR),
        lambda: client.api.device("../projects"),
    ):
        with pytest.raises(Missing, match="DT knows no "):
            request()


# Wrong responses

WRONG: dict[str, tuple[int, object, str]] = {
    "not JSON": (200, b"<html>", "is not a JSON object; check DT_API_URL"),
    "not UTF-8": (200, b"\xff\xfe", "is not a JSON object"),
    "a list": (200, [1, 2], "is not a JSON object"),
    "nested deeply": (200, b"[" * 100_000, "is not a JSON object"),
    "no list": (200, {"events": {"a": 1}}, "is not a list"),
    "a redirect": (302, b"", "which is not followed; check DT_API_URL"),
    "another error": (400, {"error": "a text that DT has chosen"}, r"rejects the request for .*: HTTP 400\Z"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_response_is_an_error_with_the_reason(cloud: Cloud, name: str) -> None:
    status, content, reason = WRONG[name]
    cloud.add_device(FREEZER, PROJECT)
    cloud.answer = answer_with(status, content, {"Location": "https://elsewhere.example/"})
    with pytest.raises(ApiError, match=reason) as failed:
        ids(Client(cloud))
    assert not isinstance(failed.value, Unavailable)


def test_a_page_that_is_no_json_once_is_asked_for_again(cloud: Cloud) -> None:
    cloud.add_device(FREEZER, PROJECT, history=beats(3))
    cloud.answer = first(2, answer_with(200, b'{"events": [{"eve'))
    assert len(ids(Client(cloud))) == 3


def test_a_repeated_page_token_ends_the_list(cloud: Cloud) -> None:
    cloud.add_device(FREEZER, PROJECT)
    cloud.answer = answer_with(200, {"events": [{"eventId": "a"}], "nextPageToken": "again"})
    with pytest.raises(ApiError, match="DT repeats a page"):
        ids(Client(cloud))
    assert len([path for path in cloud.requests if "/events?" in path]) == 2


def test_names_and_page_tokens_that_are_no_text_are_tolerated(cloud: Cloud) -> None:
    cloud.projects.append(PROJECT)
    pages = iter(
        [
            b'{"devices": [{"name": "projects/p/devices/\\ud83e"}, {"name": 5}, 7, null], "nextPageToken": "\\udcff"}',
            b'{"devices": []}',
        ]
    )

    def answer(request: BaseHTTPRequestHandler) -> bool:
        if "devices/" in request.path:
            return False
        respond(request, 200, next(pages))
        return True

    cloud.answer = answer
    client = Client(cloud)
    found = list(client.api.devices(PROJECT))
    assert [device.id for device in found] == ["\ud83e", "", "", ""]
    with pytest.raises(Missing):
        client.api.device(found[0].id)


def test_page_tokens_that_never_end_end_the_list(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "MAX_PAGES", 50)
    cloud.add_device(FREEZER, PROJECT)

    def answer(request: BaseHTTPRequestHandler) -> bool:
        respond(request, 200, {"events": [], "nextPageToken": str(len(cloud.requests))})
        return True

    cloud.answer = answer
    with pytest.raises(ApiError, match="has no end"):
        ids(Client(cloud))


def test_a_response_of_two_gigabytes_is_not_read(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (api_module, session_module):
        monkeypatch.setattr(module, "MAX_RESPONSE_BYTES", 1_000_000)
    cloud.add_device(FREEZER, PROJECT)
    sent = []

    def answer(request: BaseHTTPRequestHandler) -> bool:
        request.send_response(200)
        request.send_header("Content-Length", str(2 * 10**9))
        request.end_headers()
        try:
            while True:
                request.wfile.write(b" " * 65536)
                sent.append(65536)
        except OSError:
            request.close_connection = True
            return True

    cloud.answer = answer
    with pytest.raises(ApiError, match="has more than 1000000 bytes"):
        ids(Client(cloud))
    assert sum(sent) < 20_000_000


# Away, overloaded, limited


def test_lost_connections_and_overload_are_retried(cloud: Cloud) -> None:
    cloud.add_device(FREEZER, PROJECT, history=beats(3))

    def cut(request: BaseHTTPRequestHandler) -> bool:
        if len(cloud.requests) % 3 == 0:
            respond(request, 502, b"bad gateway")
        elif len(cloud.requests) % 3 == 1:
            request.send_response(200)
            request.send_header("Content-Length", "100")
            request.end_headers()
            request.wfile.write(b'{"events"')
        request.close_connection = True
        return True

    cloud.answer = first(6, cut)
    client = Client(cloud)
    assert len(ids(client)) == 3
    assert {reason for _, reason in client.waits} >= {"HTTP 502", "its response was cut short"}


def test_the_rest_of_a_response_that_is_too_large_is_never_read_as_the_next_one(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.add_device(FREEZER, PROJECT)
    client = Client(cloud)
    list(client.api.projects())
    for module in (api_module, session_module):
        monkeypatch.setattr(module, "MAX_RESPONSE_BYTES", 1000)
    cloud.answer = first(1, answer_with(200, {"devices": ["x" * 100_000]}))
    with pytest.raises(ApiError, match="has more than 1000 bytes"):
        list(client.api.devices(PROJECT))
    assert [each.id for each in client.api.devices(PROJECT)] == [FREEZER]
    assert client.waits == []


def test_a_connection_that_dt_has_closed_meanwhile_is_replaced_without_a_failed_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def respond_and_close() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        with closing(HttpClient(url, 5.0)) as client:
            for _ in range(2):
                closed = pool.submit(respond_and_close)
                assert client.request("GET", url, {}, max_bytes=100).status == 200
                closed.result()


def test_a_hang_in_the_middle_of_a_body_is_cut_off(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (api_module, session_module):
        monkeypatch.setattr(module, "RESPONSE_SECONDS", 1.0)
    cloud.add_device(FREEZER, PROJECT, history=beats(3))
    done = threading.Event()

    def trickle(request: BaseHTTPRequestHandler) -> bool:
        request.send_response(200)
        request.send_header("Content-Length", "100")
        request.end_headers()
        while not done.wait(0.2):
            try:
                request.wfile.write(b" ")
            except OSError:
                break
        request.close_connection = True
        return True

    cloud.answer = first(1, trickle)
    client = Client(cloud)
    assert len(ids(client)) == 3
    assert {reason for _, reason in client.waits} == {"no complete response within 1 s"}
    done.set()


def test_dt_being_away_is_an_error_after_five_minutes(cloud: Cloud) -> None:
    cloud.add_device(FREEZER, PROJECT)
    cloud.answer = answer_with(503, b"")
    with pytest.raises(Unavailable, match="does not work now: HTTP 503"):
        ids(Client(cloud))
    assert 100 < cloud.clock() - NOW <= 300
    assert len(cloud.requests) < 20


def test_one_request_that_always_fails_is_an_error_of_its_own(cloud: Cloud) -> None:
    cloud.add_device(FREEZER, PROJECT)
    cloud.add_device(DOOR, PROJECT, history=beats(1))
    client, other = Client(cloud), Client(cloud)
    other.api = open_api(client.session)

    def answer(request: BaseHTTPRequestHandler) -> bool:
        if FREEZER not in request.path:
            return False
        assert ids(other, DOOR)
        respond(request, 500, b"")
        return True

    cloud.answer = answer
    with pytest.raises(ApiError, match="HTTP 500") as failed:
        ids(client)
    assert not isinstance(failed.value, Unavailable)


@pytest.mark.parametrize("as_date", [False, True])
def test_a_rate_limit_of_an_hour_is_waited_for(cloud: Cloud, as_date: bool) -> None:
    cloud.add_device(FREEZER, PROJECT, history=beats(3))
    cloud.skew_seconds = 7200.0 if as_date else 0.0  # a date is on DT's clock
    client = Client(cloud)
    list(client.api.devices(PROJECT))

    def limit(request: BaseHTTPRequestHandler) -> bool:
        if cloud.clock() >= NOW + 3600:
            return False
        until = formatdate(NOW + 3600 + cloud.skew_seconds, usegmt=True)
        respond(request, 429, {}, {"Retry-After": until if as_date else "600"})
        return True

    cloud.answer = limit
    assert len(ids(client)) == 3
    assert len(cloud.requests) < 15
    assert {reason for _, reason in client.waits} == {"DT limits the rate of requests"}
    assert NOW + 3600 <= cloud.clock() < NOW + 3700


def test_an_overload_after_an_hour_of_a_rate_limit_is_retried_as_any(cloud: Cloud) -> None:
    cloud.add_device(FREEZER, PROJECT, history=beats(3))
    client = Client(cloud)
    list(client.api.devices(PROJECT))
    answers = iter([(429, {"Retry-After": "3600"}), (503, {}), (503, {})])

    def answer(request: BaseHTTPRequestHandler) -> bool:
        status, headers = next(answers, (0, {}))
        if status:
            respond(request, status, {}, headers)
        return bool(status)

    cloud.answer = answer
    assert len(ids(client)) == 3


def test_a_rate_limit_for_longer_is_an_error_without_waiting_for_it(cloud: Cloud) -> None:
    cloud.add_device(FREEZER, PROJECT)
    cloud.answer = answer_with(429, {}, {"Retry-After": "86400"})
    with pytest.raises(Unavailable, match="DT limits the rate"):
        ids(Client(cloud))
    assert cloud.clock() == NOW


def test_a_rate_limit_without_end_is_an_error_after_two_hours(cloud: Cloud) -> None:
    cloud.add_device(FREEZER, PROJECT)
    cloud.answer = first(10, answer_with(429, {}, {"Retry-After": "3500"}))
    with pytest.raises(Unavailable, match="DT limits the rate"):
        ids(Client(cloud))
    assert cloud.clock() == NOW + 7000


def test_a_shorter_rate_limit_does_not_replace_the_longer_one_of_another_thread(cloud: Cloud) -> None:
    cloud.add_device(FREEZER, PROJECT, history=beats(1))
    client = Client(cloud)
    list(client.api.devices(PROJECT))

    def limit(request: BaseHTTPRequestHandler) -> bool:
        client.session._limited_until = NOW + 600  # as the response to another thread's request says
        return answer_with(429, {}, {"Retry-After": "5"})(request)

    cloud.answer = first(1, limit)
    assert len(ids(client)) == 1
    assert cloud.clock() == NOW + 600


def test_with_a_wrong_key_and_a_wrong_clock_one_more_attempt_uses_dts_clock(cloud: Cloud) -> None:
    client = Client(cloud, secret="not the right one")
    cloud.skew_seconds = 3600.0
    for requests in (2, 3):
        with pytest.raises(Refused):
            list(client.api.projects())
        assert cloud.requests.count("/oauth2/token") == requests


@pytest.mark.parametrize("text", ["", "soon", "-5", "1e9", "Fri, 99 Foo 2026", "9" * 400, "٣"])
def test_any_retry_after_is_tolerated(cloud: Cloud, text: str) -> None:
    cloud.add_device(FREEZER, PROJECT, history=beats(1))
    header = text.encode().decode("latin-1")
    cloud.answer = first(1, answer_with(429, {}, {"Retry-After": header}))
    try:
        assert len(ids(Client(cloud))) == 1
    except Unavailable:
        assert len(text) == 400


def test_a_rate_limit_holds_for_all_threads(cloud: Cloud) -> None:
    cloud.add_device(FREEZER, PROJECT, history=beats(1))
    client = Client(cloud)
    other = open_api(client.session)
    cloud.answer = first(1, answer_with(429, {}, {"Retry-After": "600"}))
    times: list[float] = []
    ids(client)
    client.session._limited_until = cloud.clock() + 100
    began = cloud.clock()
    list(other.devices(PROJECT))
    times.append(cloud.clock() - began)
    assert times == [100]


def test_a_stop_ends_a_wait(cloud: Cloud) -> None:
    cloud.add_device(FREEZER, PROJECT)
    cloud.answer = answer_with(429, {}, {"Retry-After": "3600"})
    session = Session(access(cloud))
    failed: list[BaseException] = []

    def run() -> None:
        try:
            list(open_api(session).devices(PROJECT))
        except ApiError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    end = time.monotonic() + 20
    while not [path for path in cloud.requests if "devices" in path] and time.monotonic() < end:
        time.sleep(0.01)
    session.stop()
    thread.join(20)
    assert [type(error) for error in failed] == [Stopped]


def test_no_secret_is_in_any_error(cloud: Cloud) -> None:
    cloud.add_device(FREEZER, PROJECT)
    errors: list[str] = []
    for status in (302, 400, 401, 403, 404, 409, 503):
        cloud.answer = answer_with(status, {"error": "text of DT"})
        with pytest.raises(ApiError) as failed:
            ids(Client(cloud))
        errors.append(str(failed.value))
    text = "\n".join(errors)
    hidden: list[Any] = [*cloud.tokens, "secret of a service account", "text of DT", "Bearer"]
    assert [each for each in hidden if each in text] == []
    assert not re.search(r"https?://", text)
