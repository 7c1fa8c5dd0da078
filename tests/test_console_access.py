"""Who gets into the console, and who may change something: passwords, origins, and the headers of all responses."""

from __future__ import annotations

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import RunningReceiver, StartReceiver
from flask import Flask
from support.console import ADMIN, CONFIG, PASSWORDS, VIEWER, Login, basic, get, path_of, paths, post
from support.pushes import event

from receiver.console import blueprint
from receiver.console.access import WRONG_SECONDS
from receiver.console.blueprint import ROUTES, SECURITY_HEADERS, Value, mount
from receiver.health import console_warnings
from receiver.settings import load, load_with_problems

EVERY_PATH = [*map(path_of, ROUTES), "/console", "/console/static/console.css", "/console/nothing", "/console/a/b/c"]


@pytest.mark.parametrize(
    "environment",
    [{}, {"CONSOLE_PASSWORD": "  "}, {"CONSOLE_VIEWER_PASSWORD": VIEWER[1]}],
    ids=["none", "blank", "viewer alone"],
)
def test_without_a_password_there_is_no_console(environment: dict[str, str], start_receiver: StartReceiver) -> None:
    receiver = start_receiver(CONFIG, **environment)
    for path in EVERY_PATH:
        for login in (None, ADMIN, VIEWER, ("admin", ""), ("admin", "  ")):
            assert get(receiver, path, login).status == post(receiver, path, login=login).status == 404, path


WRONG: list[Login] = [
    ("admin", ""),
    ("admin", "wrong"),
    ("admin", ADMIN[1] + "x"),
    ("admin", ADMIN[1][:-1]),
    ("admin", VIEWER[1]),
    ("viewer", ADMIN[1]),
    ("Admin", ADMIN[1]),
    ("", ADMIN[1]),
    ("root", ADMIN[1]),
]


def test_no_page_is_shown_without_a_user_and_a_password_that_belong_together(console: RunningReceiver) -> None:
    for path in EVERY_PATH:
        response = get(console, path, None)
        assert (response.status, response.headers["WWW-Authenticate"]) == (
            401,
            'Basic realm="receiver", charset="UTF-8"',
        )
        assert post(console, path, login=None).status in (401, 405)
    with ThreadPoolExecutor(len(WRONG)) as threads:
        assert {*threads.map(lambda login: get(console, "/console/", login).status, WRONG)} == {401}


@pytest.mark.parametrize(
    "authorization",
    [
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"admin").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode(),
        f"Bearer {ADMIN[1]}",
        "Digest username=admin",
        "",
    ],
)
def test_what_is_not_http_basic_is_not_accepted(authorization: str, console: RunningReceiver) -> None:
    assert get(console, "/console/", None, {"Authorization": authorization}).status == 401


@pytest.mark.parametrize("login", [ADMIN, VIEWER])
def test_admin_and_viewer_see_every_page(login: Login, console: RunningReceiver) -> None:
    assert get(console, "/console/", login).status == 200
    for path in paths("GET"):
        assert get(console, path, login).status in (200, 404), path


def test_a_password_may_have_any_characters(start_receiver: StartReceiver) -> None:
    password = "påss: wörd 🔑 :"
    receiver = start_receiver(CONFIG, CONSOLE_PASSWORD=password)
    given = base64.b64encode(f"admin:{password}".encode()).decode()
    assert get(receiver, "/console/", None, {"Authorization": f"Basic {given}"}).status == 200


def test_a_script_that_polls_does_not_make_the_browser_ask_for_a_password(console: RunningReceiver) -> None:
    response = get(console, "/console/", None, {"X-Refresh": "1"})
    assert (response.status, response.headers.get("WWW-Authenticate")) == (401, None)


def test_the_viewer_can_change_nothing(console: RunningReceiver) -> None:
    for path in paths("POST"):
        assert post(console, path, login=VIEWER).status == 403, path
        assert b"viewer can change nothing" in post(console, path, login=VIEWER).data


def test_what_changes_something_takes_nothing_but_post(console: RunningReceiver) -> None:
    for path in paths("POST"):
        assert get(console, path).status in (404, 405), path


HOST = "console.example.com:8443"
ORIGINS = [
    ({"Sec-Fetch-Site": "same-origin"}, True),
    ({"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"}, True),  # the browser itself says so
    ({"Sec-Fetch-Site": "same-site"}, False),
    ({"Sec-Fetch-Site": "cross-site"}, False),
    ({"Sec-Fetch-Site": "none"}, False),
    ({"Sec-Fetch-Site": ""}, False),
    ({"Sec-Fetch-Site": "cross-site", "Origin": f"https://{HOST}"}, False),
    ({}, False),
    ({"Origin": f"https://{HOST}"}, True),
    ({"Origin": f"http://{HOST}"}, True),
    ({"Origin": f"http://{HOST.upper()}"}, True),
    ({"Origin": "null"}, False),
    ({"Origin": ""}, False),
    ({"Origin": HOST}, False),
    ({"Origin": f"ftp://{HOST}"}, False),
    ({"Origin": "https://console.example.com"}, False),
    ({"Origin": "https://evil.example"}, False),
    ({"Origin": f"https://{HOST}.evil.example"}, False),
    ({"Origin": f"https://evil.example/{HOST}"}, False),
    ({"Referer": f"https://{HOST}/console/"}, False),
]


@pytest.mark.parametrize(("headers", "accepted"), ORIGINS, ids=[str(headers) for headers, _ in ORIGINS])
def test_only_a_page_of_the_console_itself_can_change_something(
    headers: dict[str, str], accepted: bool, console: RunningReceiver
) -> None:
    for path in paths("POST"):
        response = post(console, path, headers={"Host": HOST, **headers})
        refused = response.status == 403 and b"not sent by a page of the console" in response.data
        assert refused is not accepted, (path, response.status)


def test_every_response_forbids_scripts_of_others_frames_and_caches(console: RunningReceiver) -> None:
    responses = [
        get(console, "/console/"),
        get(console, "/console"),
        get(console, "/console/nothing"),
        get(console, "/console/", None),
        post(console, paths("POST")[0], login=VIEWER),
        post(console, "/console/nothing"),
        get(console, "/console/sensors.csv"),
    ]
    assert [response.status for response in responses[:5]] == [200, 308, 404, 401, 403]
    for response in responses:
        assert {name: response.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS
    style = get(console, "/console/static/console.css")
    kept = {**SECURITY_HEADERS, "Cache-Control": "private, max-age=31536000, immutable"}
    assert {name: style.headers.get(name) for name in kept} == kept


def test_the_redirect_to_the_first_page_names_no_host(console: RunningReceiver) -> None:
    response = get(console, "/console", headers={"Host": "evil.example"})
    assert (response.status, response.headers["Location"]) == (308, "/console/")


def test_no_path_leads_out_of_the_static_files(console: RunningReceiver) -> None:
    for path in ("../blueprint.py", "..%2fblueprint.py", "%2e%2e/access.py", "/etc/passwd", "vendor/../../access.py"):
        assert get(console, f"/console/static/{path}").status == 404, path


def test_a_form_that_is_too_large_is_rejected_and_the_next_request_works(console: RunningReceiver) -> None:
    assert post(console, paths("POST")[0], {"hours": "8" * 300_000}).status == 413
    assert get(console, "/console/").status == 200


@pytest.mark.serial
def test_wrong_passwords_are_slow_and_hold_up_neither_the_right_one_nor_pushes(console: RunningReceiver) -> None:
    with ThreadPoolExecutor(32) as threads:
        guesses = [threads.submit(get, console, "/console/", ("admin", f"guess {n}")) for n in range(32)]
        assert get(console, "/console/").status == 200
        assert console.push(event("while passwords are guessed")) == (200, "accepted")
        assert sum(guess.done() for guess in guesses) < len(guesses) / 2
        assert {guess.result(15 * WRONG_SECONDS).status for guess in guesses} == {401}


def test_only_so_many_wrong_passwords_wait_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sleep lasts until another wrong password has come."""
    (tmp_path / "config.toml").touch()
    environment = {"RECEIVER_CONFIG": str(tmp_path / "config.toml"), **PASSWORDS}
    app, slept = Flask("receiver"), list[float]()
    monkeypatch.setattr(blueprint, "MAX_SLOWED", 3)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert guess() == 401

    def guess() -> int:
        return app.test_client().get("/console/", auth=("admin", "wrong")).status_code

    mount(app, load(environment, secret_required=False), Direct(), sleep, dict)
    for times in (1, 2):
        assert guess() == 401
        assert slept == [WRONG_SECONDS] * 3 * times


class Direct:
    """No thread at all."""

    def call(self, function: Callable[[], Value], seconds: float) -> Value:
        return function()


def test_neither_passwords_nor_guesses_are_logged_or_shown(console: RunningReceiver) -> None:
    get(console, "/console/", ("admin", "a guess that nobody else makes"))
    pages = [get(console, path).data.decode("utf-8", "replace") for path in ("/console/", "/console/nothing")]
    for secret in (*PASSWORDS.values(), "a guess that nobody else makes", basic(ADMIN)["authorization"]):
        assert all(secret not in text for text in (console.log, *pages))


def warnings_of(tmp_path: Path, config: str, **environment: str) -> list[str]:
    (tmp_path / "config.toml").write_text(config)
    settings, problems = load_with_problems(
        {"RECEIVER_CONFIG": str(tmp_path / "config.toml"), **environment}, secret_required=False
    )
    assert problems == []
    return [warning.partition(";")[0] for warning in console_warnings(settings)]


LOCAL = '[receiver]\nhost = "127.0.0.1"\n'
PROXY = '[receiver]\ntrusted_proxies = ["10.0.0.0/8"]\n'
PLAIN = "the console is offered over plain HTTP on 0.0.0.0, where its password can be read on the way"


@pytest.mark.parametrize(
    ("config", "environment", "expected"),
    [
        ("", {}, []),
        (LOCAL, PASSWORDS, []),
        (PROXY, PASSWORDS, []),
        ("", PASSWORDS, [PLAIN]),
        ("", {**PASSWORDS, "DYNO": "web.1"}, []),
        (LOCAL, {"CONSOLE_PASSWORD": "short"}, ["CONSOLE_PASSWORD is shorter than 12 characters"]),
        (LOCAL, {"CONSOLE_PASSWORD": '"in quotes, long"'}, ["CONSOLE_PASSWORD is in quotes"]),
        (
            LOCAL,
            {"CONSOLE_VIEWER_PASSWORD": VIEWER[1]},
            ["CONSOLE_VIEWER_PASSWORD has no effect: without CONSOLE_PASSWORD there is no console"],
        ),
        (
            LOCAL,
            {**PASSWORDS, "CONSOLE_VIEWER_PASSWORD": ADMIN[1]},
            ["CONSOLE_VIEWER_PASSWORD is the same as CONSOLE_PASSWORD, so whoever may look may change, too"],
        ),
    ],
)
def test_check_warns_of_what_makes_the_console_easy_to_get_into(
    config: str, environment: dict[str, str], expected: list[str], tmp_path: Path
) -> None:
    assert warnings_of(tmp_path, config, **environment) == expected


def test_passwords_come_from_files_too_and_are_never_shown(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    (tmp_path / "password").write_text("from a file, and long\n")
    settings, problems = load_with_problems(
        {"RECEIVER_CONFIG": str(tmp_path / "config.toml"), "CONSOLE_PASSWORD_FILE": str(tmp_path / "password")},
        secret_required=False,
    )
    assert (settings.console_passwords, problems) == ({"admin": "from a file, and long"}, [])
    assert "from a file, and long" in settings.secret_values
    assert "from a file" not in repr(settings)


@pytest.mark.parametrize("name", ["CONSOLE_PASSWORD", "CONSOLE_VIEWER_PASSWORD"])
def test_a_password_that_cannot_be_read_is_a_problem(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    environment = {"RECEIVER_CONFIG": str(tmp_path / "config.toml")}
    for given, problem in (
        ({f"{name}_FILE": "/nowhere"}, "cannot be read"),
        ({name: "\udcff password"}, "is not UTF-8"),
        ({name: "a password", f"{name}_FILE": "/nowhere"}, "are both set"),
    ):
        settings, problems = load_with_problems({**environment, **given}, secret_required=False)
        assert settings.console_passwords == {}
        assert len(problems) == 1
        assert problem in problems[0]
