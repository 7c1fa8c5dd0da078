"""The console of a running receiver, as a client without a browser sees it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import urlencode

import pytest
import urllib3

from receiver.console.blueprint import ROUTES, Route
from receiver.testing.running import RunningReceiver
from support.sensors import FREEZER

ADMIN, VIEWER = ("admin", "correct horse battery"), ("viewer", "only looking around")
PASSWORDS = {"CONSOLE_PASSWORD": ADMIN[1], "CONSOLE_VIEWER_PASSWORD": VIEWER[1]}
CONFIG = """
[receiver]
host = "127.0.0.1"
[sinks.archive]
type = "csv"
path = "events.csv"
"""
VARIABLES = {"device": FREEZER, "event": "e" * 20, "sink": "archive", "group": "all", "push": "a" * 64}
"""Values for the variable parts of paths."""

Login = tuple[str, str] | None


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReceiver]:
    """A receiver with a console, which the tests of a module share."""
    receiver = RunningReceiver(tmp_path_factory.mktemp("console"), CONFIG, None, PASSWORDS)
    try:
        yield receiver.start()
    finally:
        receiver.kill_all()


def basic(login: Login) -> dict[str, str]:
    """The header of HTTP Basic with a user and a password."""
    return {} if login is None else urllib3.make_headers(basic_auth=":".join(login))


def get(
    receiver: RunningReceiver, path: str, login: Login = ADMIN, headers: Mapping[str, str] | None = None
) -> urllib3.BaseHTTPResponse:
    return receiver.http.request(
        "GET", f"{receiver.url}{path}", headers={**basic(login), **(headers or {})}, redirect=False
    )


def post(
    receiver: RunningReceiver,
    path: str,
    fields: Mapping[str, str] | None = None,
    login: Login = ADMIN,
    headers: Mapping[str, str] | None = None,
) -> urllib3.BaseHTTPResponse:
    """Send a form, as a page of the console does unless other headers are given."""
    sent = {"Sec-Fetch-Site": "same-origin"} if headers is None else headers
    return receiver.http.request(
        "POST",
        f"{receiver.url}{path}",
        body=urlencode(fields or {}),
        headers={"Content-Type": "application/x-www-form-urlencoded", **basic(login), **sent},
        redirect=False,
    )


def path_of(route: Route) -> str:
    """The path of a route with values for its variable parts."""
    return "/console" + re.sub(r"<(?:\w+:)?(\w+)>", lambda found: VARIABLES[found[1]], route.path)


def paths(method: str) -> list[str]:
    """The paths of all routes with this method."""
    return [path_of(route) for route in ROUTES if route.method == method]
