"""One rendering for all browsers that poll a page, and long responses that are made part by part."""

from __future__ import annotations

import gzip
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from support.console import ADMIN, CONFIG, PASSWORDS, VIEWER, basic

from receiver.console import blueprint
from receiver.console.blueprint import Route, Value, mount
from receiver.console.rendering import PART_ROWS, Rendered
from receiver.console.sharing import SHARED_SECONDS, Polls
from receiver.console.visit import Answer, Data, Download, Visit
from receiver.errors import JournalUnavailable
from receiver.intake.native_thread import Crew, ShortTurns
from receiver.settings import load

POLL = {"X-Refresh": "1"}


class Direct:
    """Threads that make a call at once."""

    def call(self, function: Callable[[], Value], seconds: float) -> Value:
        return function()


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    """Of a console with two views: one counts how often it is called, one has many rows and fails after some."""
    (tmp_path / "config.toml").write_text(CONFIG)
    app, calls, slept = Flask("test"), [0], list[float]()

    def count(visit: Visit) -> Answer:
        calls[0] += 1
        return Data([calls[0], str(visit.role), visit.query.get("q")])

    def rows(visit: Visit) -> Answer:
        return Download("rows.csv", many_rows(visit.query.get("fails") == "yes"))

    monkeypatch.setattr(blueprint, "ROUTES", (Route("GET", "/count", count), Route("GET", "/rows.csv", rows)))
    environment = {"RECEIVER_CONFIG": str(tmp_path / "config.toml"), **PASSWORDS}
    mount(app, load(environment, secret_required=False), Direct(), slept.append, dict)
    app.extensions["slept"] = slept
    return app.test_client()


def many_rows(fails: bool) -> Iterator[tuple[int, str]]:
    for number in range(3 * PART_ROWS):
        if fails and number == 2 * PART_ROWS + 1:
            raise JournalUnavailable("the registry is away")
        yield number, "text"


def shown(client: FlaskClient, login: tuple[str, str] = ADMIN, query: str = "", poll: bool = True) -> object:
    return client.get(f"/console/count{query}", headers={**basic(login), **(POLL if poll else {})}).json


def test_polls_of_a_page_share_a_rendering_and_a_person_gets_a_new_one(client: FlaskClient) -> None:
    assert [shown(client), shown(client)] == [[1, "admin", None]] * 2
    assert shown(client, poll=False) == [2, "admin", None]
    assert shown(client) == [1, "admin", None]


def test_a_rendering_is_never_shared_with_another_user_or_address(client: FlaskClient) -> None:
    assert shown(client) == [1, "admin", None]
    assert shown(client, VIEWER) == [2, "viewer", None]
    assert shown(client, query="?q=x") == [3, "admin", "x"]
    assert [shown(client, VIEWER), shown(client)] == [[2, "viewer", None], [1, "admin", None]]
    assert client.get("/console/count", headers={**basic(("admin", "wrong")), **POLL}).status_code == 401


def test_a_rendering_is_made_again_after_a_while(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("receiver.console.sharing.time.monotonic", lambda: now[0])
    assert shown(client) == [1, "admin", None]
    now[0] += SHARED_SECONDS
    assert shown(client) == [2, "admin", None]


def test_who_polls_while_a_page_is_made_waits_for_it_and_a_failure_is_not_shared() -> None:
    polls, made = Polls(), list[int]()

    def make() -> Rendered:
        made.append(len(made))
        return Rendered(503 if len(made) == 1 else 200, b"%d" % len(made))

    with ThreadPoolExecutor(8) as threads:
        bodies = {rendered.body for rendered in threads.map(lambda _: polls.render("page", make), range(8))}
    assert bodies == {b"1", b"2"}
    assert polls.find("page") == Rendered(200, b"2")
    assert polls.find("other page") is None


def test_renderings_that_are_over_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("receiver.console.sharing.SHARED_SECONDS", 0.0)
    polls = Polls()
    for number in range(1000):
        polls.render(number, lambda: Rendered(200, b""))
    assert len(polls._polls) <= 101


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_a_long_download_is_made_part_by_part_with_pauses(encoding: str, client: FlaskClient) -> None:
    response = client.get("/console/rows.csv", headers={**basic(ADMIN), "Accept-Encoding": encoding})
    assert response.is_streamed
    data = gzip.decompress(response.data) if encoding == "gzip" else response.data
    assert data.decode().split() == [f"{number},text" for number in range(3 * PART_ROWS)]
    assert len(client.application.extensions["slept"]) >= 2


def test_a_download_that_fails_in_between_ends_the_connection(client: FlaskClient) -> None:
    """And not with what looks like the end of the file."""
    response = client.get("/console/rows.csv?fails=yes", headers=basic(ADMIN))
    with pytest.raises(ConnectionAbortedError):
        response.get_data()


def test_the_interpreter_changes_hands_quickly_while_pages_are_made_and_as_before_afterwards() -> None:
    before, turns = sys.getswitchinterval(), ShortTurns()
    with turns, turns:
        assert sys.getswitchinterval() == pytest.approx(turns.SECONDS)
    assert sys.getswitchinterval() == before
    crew, inside = Crew(2), threading.Event()
    assert crew.call(sys.getswitchinterval, 20) == pytest.approx(turns.SECONDS)
    with pytest.raises(LookupError):
        crew.call(lambda: {}["missing"] if inside.set() is None else None, 20)
    assert (inside.is_set(), sys.getswitchinterval()) == (True, before)
