"""`send` signs test events, pushes them, and prints each response."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from conftest import StartReceiver, wait_until
from pytest_httpserver import HTTPServer
from support.commands import Operator, Shell

from receiver.event import TYPES, Event
from receiver.testing.ports import reserve_port
from receiver.testing.samples import TEST_SECRET
from receiver.variables import SECRET


def last_column(out: list[str]) -> list[str]:
    """Status and text of each response."""
    return [line.split("  ")[-1] for line in out]


def test_send_pushes_signed_events_and_prints_each_response(
    shell: Shell, operator: Operator, start_receiver: StartReceiver
) -> None:
    receiver = start_receiver(WEB_CONCURRENCY="1")

    code, out, errors = shell.run(
        "send", receiver.url, "--type", "touch", "--type", "co2", "--count", "2", **{SECRET: TEST_SECRET}
    )
    assert (code, errors) == (0, [])
    sent = [re.fullmatch(r"(\w+) +([0-9a-v]{20})  200 accepted", line) for line in out]
    assert [match and match[1] for match in sent] == ["touch", "co2", "touch", "co2"]

    code, out, errors = operator.run("send", f"{receiver.url}/", **{SECRET: TEST_SECRET})
    assert (code, [line.split()[0] for line in out], errors) == (0, list(TYPES), [])
    assert set(last_column(out)) == {"200 accepted"}

    code, out, errors = operator.run("send", receiver.url, "--type", "touch", **{SECRET: "another-secret"})
    assert (code, last_column(out)) == (1, ["400 wrong secret"])
    assert errors == ["error: the receiver did not accept 1 of 1 event"]

    code, out, errors = operator.run("send", f"{receiver.url}/hook", "--type", "touch", **{SECRET: TEST_SECRET})
    assert (code, last_column(out)[0][:14]) == (1, "404 Not Found.")

    rows = wait_until(lambda: len({row["event_id"] for row in receiver.rows()}) == 4 + len(TYPES) and receiver.rows())
    assert {row["device_id"][:3] for row in rows} == {"emu"}
    assert {len(row["device_id"]) for row in rows} == {23}


@pytest.mark.parametrize(
    ("arguments", "environment", "error"),
    [
        (["example.com"], {}, "the URL must begin with http:// or https://"),
        (["ftp://example.com"], {}, "the URL must begin with http:// or https://"),
        (
            ["http://127.0.0.1:1"],
            {SECRET: ""},
            "DT_SIGNATURE_SECRET is not set; set it to the signature secret of the receiver",
        ),
        (["http://127.0.0.1:1", "--value", "1"], {}, "--value needs --type: not every type has such a value"),
        (
            ["http://127.0.0.1:1", "--type", "contact", "--value", "1"],
            {},
            "the value of contact is one of OPEN, CLOSED",
        ),
        (["http://127.0.0.1:1", "--type", "co2", "--value", "x"], {}, "the value of co2 is a number"),
        (["http://127.0.0.1:1", "--type", "touch", "--value", "1"], {}, "events of type touch have no value"),
    ],
    ids=["no scheme", "another scheme", "no secret", "no type", "no state", "no number", "no value"],
)
def test_send_reports_what_cannot_work_before_it_pushes(
    arguments: list[str], environment: dict[str, str], error: str, operator: Operator
) -> None:
    assert operator.run("send", *arguments, **environment) == (1, [], [f"error: {error}"])


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:{port}", "connection refused"),
        ("http://user:pass-word@127.0.0.1:{port}/x", "connection refused"),
        ("http://", "no response (LocationValueError)"),
        ("http://[::1", "no response (LocationParseError)"),
        ("http://127.0.0.1:99999", "no response (LocationParseError)"),
        ("http://a..b", "no response (LocationParseError)"),
    ],
)
@pytest.mark.parametrize("count", ["1", "9" * 30])
def test_send_stops_at_the_first_push_without_a_response(url: str, reason: str, count: str, operator: Operator) -> None:
    url = url.format(port=reserve_port())
    shown = url.replace("user:pass-word@", "")
    result = operator.run("send", url, "--count", count)
    assert result == (1, [], [f"error: {reason}: is a receiver running at {shown}?"])


@pytest.mark.parametrize(
    ("status", "body", "response", "code"),
    [
        (200, b"", "200", 0),
        (204, b"", "204", 1),
        (503, b"<html>\r\nbusy", "503 <html>", 1),
        (301, b"\n", "301", 1),
        (500, b"\xff\xfe\x00", "500", 1),
    ],
    ids=["200 without a body", "204", "503 with HTML", "301", "500 that is not text"],
)
def test_send_prints_any_response_of_another_server(
    status: int, body: bytes, response: str, code: int, operator: Operator, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/", method="POST").respond_with_data(body, status=status)
    done = operator.run("send", httpserver.url_for("/"), "--type", "touch")
    assert (done.exit_code, len(done.out)) == (code, 1)
    assert last_column(done.out)[0].startswith(response)
    assert done.errors == ([] if code == 0 else ["error: the receiver did not accept 1 of 1 event"])


def test_the_events_come_from_the_sensor_that_is_given(operator: Operator, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/", method="POST").respond_with_data(b"accepted")
    options = ("--project", "p1", "--sensor", "dev1", "--label", "site=oslo", "--label", "name=a=b", "--label", "x=")
    operator.lines("send", httpserver.url_for("/"), "--type", "temperature", "--value", "21.5", *options)
    ((request, _),) = httpserver.log
    event = Event.from_body(request.data, datetime.now(UTC))
    assert (event.project_id, event.device_id) == ("p1", "dev1")
    assert event.labels == {"name": "a=b", "site": "oslo", "x": ""}
    assert [reading.value for reading in event.readings()] == [21.5]


def test_a_label_without_a_value_is_a_mistake_in_the_usage(operator: Operator) -> None:
    code, _, errors = operator.run("send", "http://127.0.0.1:1", "--label", "site")
    assert (code, errors[-1]) == (2, "Error: Invalid value for '--label': give a label such as site=oslo")


def test_quiet_prints_only_how_many_got_which_response(operator: Operator, httpserver: HTTPServer) -> None:
    httpserver.expect_ordered_request("/").respond_with_data(b"accepted")
    httpserver.expect_ordered_request("/").respond_with_data(b"accepted")
    httpserver.expect_ordered_request("/").respond_with_data(b"busy", status=503)
    assert operator.run("send", httpserver.url_for("/"), "--type", "touch", "--count", "3", "--quiet") == (
        1,
        ["2 events: 200 accepted", "1 event: 503 busy"],
        ["error: the receiver did not accept 1 of 3 events"],
    )
