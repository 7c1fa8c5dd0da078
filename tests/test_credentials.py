"""Secrets from the environment: in a variable or in a file, under which names, and what cannot be right of one."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import pytest
import time_machine
from conftest import StartReceiver
from pytest_httpserver import HTTPServer
from support.commands import CONSOLE, JOURNAL, STRONG_SECRET, Operator, event_body, is_recent
from support.plugins import DELIVER, IMPORTS, REGISTER

from receiver import health
from receiver.demo import clean_environment
from receiver.errors import ConfigError
from receiver.journal import Arrival
from receiver.settings import Settings, load, load_with_problems
from receiver.signature import sign, verify
from receiver.simulator import Simulator
from receiver.variables import SECRET

BOTH = "are both set; unset one of them"
CANNOT_BE_READ = "the file that it names cannot be read: "
REMEDY = "; correct the path, or let this user read the file"
IN_FILE = "value-in-a-file"
WEBHOOK = f"{JOURNAL}[sinks.erp]\ntype = 'webhook'\nurl = {{ env = 'ERP_URL' }}\nsecret = [{{ env = 'ERP_SECRET' }}]\n"


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], str]:
    """Writes a file; its path."""

    def file(content: bytes) -> str:
        path = tmp_path / f"file-{len(list(tmp_path.iterdir()))}"
        path.write_bytes(content)
        return str(path)

    return file


def load_config(folder: Path, config: str, **environ: str) -> Settings:
    (folder / "config.toml").write_text(config, encoding="utf-8")
    return load({"RECEIVER_CONFIG": str(folder / "config.toml"), **environ})


def load_problems(folder: Path, config: str, **environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(folder, config, **environ)
    return caught.value.problems


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"a secret", "a secret"),
        (b"a secret\n", "a secret"),
        (b"a secret\r\n", "a secret"),
        (b"a secret\n\n", "a secret\n"),
        (b" a secret ", " a secret "),
        (b"\xef\xbb\xbfgeheimni\xc3\x9f\n", "geheimniß"),
    ],
    ids=["no line end", "LF", "CRLF", "two line ends", "blanks", "byte order mark"],
)
def test_the_text_of_the_file_without_one_line_end_is_the_secret(
    content: bytes, value: str, file: Callable[[bytes], str], tmp_path: Path
) -> None:
    settings = load_config(tmp_path, "", **{f"{SECRET}_FILE": file(content)})
    assert settings.secrets == {SECRET: value}
    assert settings.secret_values >= {value}


def test_every_secret_of_the_environment_can_be_in_a_file(file: Callable[[bytes], str], tmp_path: Path) -> None:
    config = f"[receiver]\nmetrics_token = {{ env = 'METRICS_TOKEN' }}\n{WEBHOOK}"
    settings = load_config(
        tmp_path,
        config,
        DT_SIGNATURE_SECRET_FILE=file(b"first"),
        DT_SIGNATURE_SECRET__OLD_FILE=file(b"second\n"),
        DATABASE_URL_FILE=file(b"postgres://u:p@h/d\n"),
        METRICS_TOKEN_FILE=file(b"token-of-metrics\n"),
        ERP_URL="https://erp.example",
        ERP_SECRET_FILE=file(b"c2VjcmV0\n"),
    )
    assert settings.secrets == {SECRET: "first", f"{SECRET}__OLD": "second"}
    assert settings.database_url == "postgres://u:p@h/d"
    assert settings.receiver.metrics_token
    assert settings.receiver.metrics_token.get_secret_value() == "token-of-metrics"
    (sink,) = settings.sinks
    assert (dict(sink.options), sink.problems) == ({"url": "https://erp.example", "secret": ["c2VjcmV0"]}, ())
    expected = {"first", "second", "postgres://u:p@h/d", "token-of-metrics", "https://erp.example", "c2VjcmV0"}
    assert settings.secret_values == expected


PLACES = {
    "the secret": (SECRET, "environment: "),
    "a further secret": (f"{SECRET}__OLD", "environment: "),
    "the database": ("DATABASE_URL", "environment: "),
    "a table": ("METRICS_TOKEN", "config.toml [receiver]: metrics_token: "),
    "a sink": ("ERP_SECRET", "config.toml [sinks.erp]: secret: "),
}


def problems_at(name: str, tmp_path: Path, **environ: str) -> list[str]:
    """All problems of a configuration that reads the variable `name`, in whatever place."""
    (tmp_path / "config.toml").write_text(f"[receiver]\nmetrics_token = {{ env = 'METRICS_TOKEN' }}\n{WEBHOOK}")
    given = {SECRET: STRONG_SECRET, "METRICS_TOKEN": "t" * 8, "ERP_URL": "https://x", "ERP_SECRET": "x"}
    others = {key: value for key, value in given.items() if key != name}
    settings, problems = load_with_problems({"RECEIVER_CONFIG": str(tmp_path / "config.toml"), **others, **environ})
    return [*problems, *(problem for sink in settings.sinks for problem in sink.problems)]


def test_a_metrics_token_that_is_too_short_is_a_problem_that_says_how_long_it_must_be(tmp_path: Path) -> None:
    problems = problems_at("METRICS_TOKEN", tmp_path, METRICS_TOKEN="short")
    assert problems == ["config.toml [receiver]: metrics_token: give at least 8 characters"]


@pytest.mark.parametrize(("name", "where"), PLACES.values(), ids=PLACES)
def test_a_variable_and_its_file_exclude_each_other(
    name: str, where: str, file: Callable[[bytes], str], tmp_path: Path
) -> None:
    path = file(IN_FILE.encode())
    both = {name: "value-of-the-variable", f"{name}_FILE": path}
    assert problems_at(name, tmp_path, **both) == [f"{where}{name} and {name}_FILE {BOTH}"]
    assert problems_at(name, tmp_path, **{name: "long-enough", f"{name}_FILE": ""}) == []
    assert problems_at(name, tmp_path, **{name: "", f"{name}_FILE": path}) == []


@pytest.mark.parametrize(("name", "where"), PLACES.values(), ids=PLACES)
def test_a_file_that_cannot_be_used_is_a_problem_that_shows_neither_path_nor_content(
    name: str, where: str, file: Callable[[bytes], str], tmp_path: Path
) -> None:
    start = f"{where}{name}_FILE: the file that it names "
    empty = f"{start}is empty; write the value into it"
    reasons = {
        str(tmp_path / "nowhere"): f"{start}cannot be read: No such file or directory{REMEDY}",
        str(tmp_path): f"{start}cannot be read: Is a directory{REMEDY}",
        file(b""): empty,
        file(b"\r\n"): empty,
        file(b" \t \n\n"): empty,
        file(IN_FILE.encode("utf-16")): f"{start}is not UTF-8; write the value as text in UTF-8",
        "/dev/zero": f"{start}has more than 65536 bytes; it must hold nothing but the value",
    }
    assert {path: problems_at(name, tmp_path, **{f"{name}_FILE": path}) for path in reasons} == {
        path: [reason] for path, reason in reasons.items()
    }


def test_a_pipe_is_read_to_its_end_and_one_that_nobody_writes_into_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell's `<(…)` is a pipe whose writer may take a while."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("wb", buffering=0) as file:
            file.write(b"a secret ")
            time.sleep(0.1)
            file.write(b"in two parts\n")

    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(write)
        assert load_config(tmp_path, "", **{f"{SECRET}_FILE": str(pipe)}).secrets == {SECRET: "a secret in two parts"}
        written.result()
    monkeypatch.setattr("receiver.environment.PIPE_SECONDS", 0.2)
    for name, where in PLACES.values():
        assert problems_at(name, tmp_path, **{f"{name}_FILE": str(pipe)}) == [
            f"{where}{name}_FILE: {CANNOT_BE_READ}nothing is written into this pipe for 0 s{REMEDY}"
        ]


def test_a_current_folder_that_was_removed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a deployment replaces the folder in which a shell or a service still is."""
    (tmp_path / "removed").mkdir()
    monkeypatch.chdir(tmp_path / "removed")
    (tmp_path / "removed").rmdir()
    with pytest.raises(ConfigError, match=r"^the current folder does not exist any more; "):
        load({})


def test_a_configuration_that_is_no_file_of_a_sensible_size_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiver.environment.PIPE_SECONDS", 0.2)
    os.mkfifo(tmp_path / "pipe")
    reasons = {
        str(tmp_path / "pipe"): "cannot be read: nothing is written into this pipe for 0 s",
        "/dev/zero": "has more than 1048576 bytes; name a configuration file",
        str(tmp_path): "cannot be read: Is a directory",
    }
    for path, reason in reasons.items():
        with pytest.raises(ConfigError) as caught:
            load({"RECEIVER_CONFIG": path})
        assert caught.value.problems == (f"{path}: {reason}",)


def test_a_file_that_may_not_be_read_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: str | Path, *arguments: Any, **more: Any) -> IO[Any]:
        if path != "/run/secrets/db":
            return open(path, *arguments, **more)
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("receiver.environment.open", forbidden, raising=False)
    assert problems_at("DATABASE_URL", tmp_path, DATABASE_URL_FILE="/run/secrets/db") == [
        f"environment: DATABASE_URL_FILE: the file that it names cannot be read: Permission denied{REMEDY}"
    ]


def test_commands_that_need_no_signature_secret_do_not_read_its_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    environ = {"RECEIVER_CONFIG": str(tmp_path / "config.toml"), f"{SECRET}_FILE": "/nowhere"}
    assert load(environ, secret_required=False).secrets == {}


NOT_SECRETS = {
    "DT_SIGNATURE_SECRET_OLD": "DT_SIGNATURE_SECRET__OLD",
    "DT_SIGNATURE_SECRET_PATH": "DT_SIGNATURE_SECRET__PATH",
    "DT_SIGNATURE_SECRET_ARN": "DT_SIGNATURE_SECRET__ARN",
    "DT_SIGNATURE_SECRET_OLD_FILE": "DT_SIGNATURE_SECRET__OLD_FILE",
    "DT_SIGNATURE_SECRET__FILE": "DT_SIGNATURE_SECRET_FILE",
    "DT_SIGNATURE_SECRET__A_FILE_FILE": "DT_SIGNATURE_SECRET__A_FILE",
    "DT_SIGNATURE_SECRET__": "DT_SIGNATURE_SECRET",
    "DT_SIGNATURE_SECRET_": "DT_SIGNATURE_SECRET",
    "DT_SIGNATURE_SECRETS": "DT_SIGNATURE_SECRET__S",
    "DT_SIGNATURE_SECRET__new": "DT_SIGNATURE_SECRET__NEW",
    "DT_SIGNATURE_SECRET__A-B": "DT_SIGNATURE_SECRET__A_B",
    "DT_SIGNATURE_SECRET2": "DT_SIGNATURE_SECRET__2",
    "DT_SIGNATURE_SECRET_PROFILE": "DT_SIGNATURE_SECRET__PROFILE",
    "dt_signature_secret": "DT_SIGNATURE_SECRET",
    "Dt_Signature_Secret_File": "DT_SIGNATURE_SECRET_FILE",
    "dt_signature_secret__old": "DT_SIGNATURE_SECRET__OLD",
}


def test_further_secrets_have_two_underscores_and_an_empty_one_is_not_set(tmp_path: Path) -> None:
    further = {
        f"{SECRET}__OLD": "third",
        f"{SECRET}__OTHER_PROJECT_2": "second",
        f"{SECRET}__FILE_OF_OSLO": "fourth",
        f"{SECRET}___": "fifth",
    }
    empty = {f"{SECRET}__EMPTY": "", f"{SECRET}__BLANK": " \t", f"{SECRET}_EMPTY": "", f"{SECRET}__EMPTY_FILE": ""}
    settings = load_config(tmp_path, "", **{SECRET: "first"}, **further, **empty, **{f"X_{SECRET}": "no"})
    assert settings.secrets == {SECRET: "first", **further}
    assert settings.unused_variables == ()


def test_no_other_variable_that_begins_like_them_is_a_secret(tmp_path: Path) -> None:
    settings = load_config(tmp_path, "", **{SECRET: "first"}, **dict.fromkeys(NOT_SECRETS, "/run/secrets/dt"))
    assert settings.secrets == {SECRET: "first"}
    assert settings.unused_variables == tuple(sorted(NOT_SECRETS))


@pytest.mark.parametrize("blank", ["", " ", " \t\r\n", "\u3000"])
def test_a_blank_secret_is_not_set(blank: str, tmp_path: Path) -> None:
    assert load_problems(tmp_path, "", **{SECRET: blank}) == (
        "environment: DT_SIGNATURE_SECRET is not set; "
        "set it to the signature secret of your Data Connector, or set DT_ORGANIZATION_ID",
    )


def test_the_demo_has_no_secret_and_no_database_of_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (SECRET, f"{SECRET}_FILE", f"{SECRET}__OLD", "DATABASE_URL", "DATABASE_URL_FILE"):
        monkeypatch.setenv(name, "set")
    assert [name for name in clean_environment() if name.startswith(("DT_", "DATABASE_"))] == []
    assert clean_environment()["PATH"] == os.environ["PATH"]


ODD = {
    " secret": "begins or ends with whitespace",
    "secret ": "begins or ends with whitespace",
    "secret\n": "begins or ends with whitespace",
    "secret\r\n": "begins or ends with whitespace",
    "secret\u00a0": "begins or ends with whitespace",
    '"secret"\n': "begins or ends with whitespace",
    '"secret"': "is in quotes",
    "'secret'": "is in quotes",
    "`secret`": "is in quotes",
    "\u201csecret\u201d": "is in quotes",
    "sec\nret": "contains a line end or an invisible character",
    "\ufeffsecret": "contains a line end or an invisible character",
    "sec\u200bret": "contains a line end or an invisible character",
    "sec\u00a0ret": "contains a line end or an invisible character",
    "THE_NAME=secret": "begins with the name of a variable",
    "export THE_NAME=secret": "begins with the name of a variable",
    "$THE_NAME": "is a reference to a variable, and not its value",
    "${THE_NAME}": "is a reference to a variable, and not its value",
    "${THE_NAME:-secret}": "is a reference to a variable, and not its value",
    "%THE_NAME%": "is a reference to a variable, and not its value",
    "{{ secrets.THE_NAME }}": "is a reference to a variable, and not its value",
    "${{ secrets.THE_NAME }}": "is a reference to a variable, and not its value",
}
REGULAR = [
    *["secret", "a secret with blanks", "geheimniß", "a\"b'c", '"', "it's", "x'", "$ecret\\n", "'a\""],
    *["NAME=secret", "SGVsbG8_V29ybGQ=", "SGVS_BG8=", "$ECRET", "{secret}", "100%", "%41%42", "$"],
]
UNLESS = "correct it unless that is part of the secret"


@pytest.mark.parametrize(("secret", "oddity"), ODD.items(), ids=map(ascii, ODD))
def test_a_secret_that_is_probably_wrong_is_a_warning_that_does_not_show_it(secret: str, oddity: str) -> None:
    assert health.odd_secrets({"THE_NAME": secret}) == [f"THE_NAME {oddity}; {UNLESS}"]


def test_other_secrets_are_no_warnings() -> None:
    assert health.odd_secrets({secret: secret for secret in REGULAR}) == []


OWN_TYPE = f"""{IMPORTS}
@dataclass
class Mine:
    url: str
    token: Secret
    keys: list[Secret] = field(default_factory=list)
    headers: dict[str, Secret] = field(default_factory=dict)
{DELIVER}{REGISTER}"""
OWN_SINK = """
[receiver]
metrics_token = { env = "METRICS_TOKEN" }
plugins = ["mine.py"]
[sinks.own]
type = "mine"
url = "https://example.com/ "
token = { env = "TOKEN" }
keys = ["'odd'", "regular"]
headers = { Authorization = { env = "AUTHORIZATION" }, Certificate = "-----BEGIN\\n-----END\\n" }
"""


def test_check_warns_of_every_odd_secret_and_of_every_variable_that_is_not_used(operator: Operator) -> None:
    (operator.folder / "mine.py").write_text(OWN_TYPE)
    operator.configure(JOURNAL + OWN_SINK)
    environ = {
        SECRET: f"{STRONG_SECRET}\n",
        f"{SECRET}__NEW": f"'{STRONG_SECRET}'",
        f"{SECRET}_OLD": "other-secret ",
        "METRICS_TOKEN": " token-of-metrics",
        "TOKEN": "token-of-own\r\n",
        "AUTHORIZATION": '"Bearer authorization"',
    }
    done = operator.run("check", **environ)
    assert (done.exit_code, done.errors) == (
        0,
        [
            f"warning: {line}"
            for line in (
                "DT_SIGNATURE_SECRET_OLD is not used; if it is meant as a secret, name it DT_SIGNATURE_SECRET__OLD",
                f"DT_SIGNATURE_SECRET begins or ends with whitespace; {UNLESS}",
                f"DT_SIGNATURE_SECRET__NEW is in quotes; {UNLESS}",
                f"[receiver] metrics_token begins or ends with whitespace; {UNLESS}",
                f"[sinks.own] token begins or ends with whitespace; {UNLESS}",
                f"[sinks.own] keys.0 is in quotes; {UNLESS}",
                f"[sinks.own] headers.Authorization is in quotes; {UNLESS}",
            )
        ],
    )


def test_every_variable_that_is_not_used_is_a_warning_with_the_right_name(tmp_path: Path) -> None:
    settings = load_config(tmp_path, "", **{SECRET: STRONG_SECRET}, **dict.fromkeys(NOT_SECRETS, "x"))
    assert health.unused_variables(settings) == [
        f"{name} is not used; if it is meant as a secret, name it {right}"
        for name, right in sorted(NOT_SECRETS.items())
    ]
    odd = load_config(tmp_path, "", **{SECRET: STRONG_SECRET, f"{SECRET}\n\udcff": "x"})
    assert health.unused_variables(odd) == [
        f"{SECRET}\\n\\udcff is not used; if it is meant as a secret, name it {SECRET}"
    ]


@pytest.mark.parametrize(
    ("key_id", "secret", "email", "warnings"),
    [
        ("", "", "", []),
        ("key", "of-the-account", "a@b.example", []),
        (
            "key",
            "",
            "",
            [
                "the service account has no effect without DT_SERVICE_ACCOUNT_SECRET and DT_SERVICE_ACCOUNT_EMAIL; set "
                "them, or remove the others"
            ],
        ),
        ("key", '"of-the-account"', "a@b.example", [f"DT_SERVICE_ACCOUNT_SECRET is in quotes; {UNLESS}"]),
        ("'key'", "of-the-account", "a@b.example", [f"DT_SERVICE_ACCOUNT_KEY_ID is in quotes; {UNLESS}"]),
    ],
    ids=["none", "whole", "a part", "quoted secret", "quoted key"],
)
def test_a_service_account_that_cannot_be_used_is_a_warning(
    key_id: str, secret: str, email: str, warnings: list[str], operator: Operator
) -> None:
    operator.configure(CONSOLE)
    environ = {"KEY_ID": key_id, "SECRET": secret, "EMAIL": email}
    done = operator.run("check", **{f"DT_SERVICE_ACCOUNT_{name}": value for name, value in environ.items()})
    assert (done.exit_code, done.errors) == (0, [f"warning: {line}" for line in warnings])


@pytest.mark.parametrize("blank", ["", "  ", "\t\r\n"])
def test_a_blank_secret_is_an_error_wherever_it_is_required(blank: str, operator: Operator) -> None:
    (operator.folder / "mine.py").write_text(OWN_TYPE)
    operator.configure(JOURNAL + OWN_SINK)
    environ = {"METRICS_TOKEN": f"{blank}          ", "TOKEN": blank, "AUTHORIZATION": blank}
    assert operator.run("check", **environ) == (
        1,
        [],
        [
            f"warning: [sinks.own] keys.0 is in quotes; {UNLESS}",
            "error: config.toml [receiver]: metrics_token: it is blank",
            "error: config.toml [sinks.own]: token is blank; set it, or remove the option",
            "error: config.toml [sinks.own]: headers.Authorization is blank; set it, or remove the option",
        ],
    )
    assert operator.run("send", "http://127.0.0.1:1", **{SECRET: blank}).errors == [
        "error: DT_SIGNATURE_SECRET is not set; set it to the signature secret of the receiver"
    ]


def test_send_signs_with_a_secret_from_a_file(
    operator: Operator, file: Callable[[bytes], str], httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/", method="POST").respond_with_data(b"accepted")
    send = ("send", httpserver.url_for("/"), "--type", "touch")
    assert operator.run(*send, **{SECRET: None, f"{SECRET}_FILE": file(b"in-a-file\n")}).exit_code == 0
    (pushed, _) = httpserver.log[0]
    assert verify(pushed, {"the file": "in-a-file"}) == "the file"
    assert operator.run(*send, **{f"{SECRET}_FILE": "/run/secrets/dt"}) == (
        1,
        [],
        [f"error: {SECRET} and {SECRET}_FILE {BOTH}"],
    )


def test_the_log_and_readyz_warn_and_a_push_with_another_secret_is_logged_with_what_is_odd(
    start_receiver: StartReceiver, file: Callable[[bytes], str]
) -> None:
    odd = f"{STRONG_SECRET}\n"
    receiver = start_receiver(
        "[sinks.erp]\ntype = 'webhook'\nurl = 'https://erp.example'\nheaders = { Authorization = \"'Bearer x'\" }\n",
        WEB_CONCURRENCY="1",
        DT_SIGNATURE_SECRET="",
        DT_SIGNATURE_SECRET_FILE=file(odd.encode() + b"\n"),
        DT_SIGNATURE_SECRET_OLD="another-secret",
    )
    unused = "DT_SIGNATURE_SECRET_OLD is not used; if it is meant as a secret, name it DT_SIGNATURE_SECRET__OLD"
    hint = f"DT_SIGNATURE_SECRET begins or ends with whitespace; {UNLESS}"
    for line in (unused, hint, f"[sinks.erp] headers.Authorization is in quotes; {UNLESS}"):
        assert receiver.log.count(line) == 1
    assert receiver.http.request("GET", f"{receiver.url}/readyz").json()["warnings"] == [unused]

    body = Simulator().body("touch")
    before = len(receiver.log)
    assert receiver.push(body, sign(body, STRONG_SECRET, time.time())) == (400, "wrong secret")
    assert receiver.push(body, {}) == (400, "missing header X-Dt-Signature")
    assert receiver.push(body, sign(body, odd, time.time())) == (200, "accepted")
    wrong, missing = [line for line in receiver.log[before:].splitlines() if "push rejected" in line]
    assert (
        re.search(r"wrong secret \(from 127\.0\.0\.1, \d+ bytes, request \w+\); (.*)", wrong)[1] == f"{unused}; {hint}"
    )
    assert missing.endswith(")")
    assert [line for line in receiver.log.splitlines() if STRONG_SECRET in line or "another-secret" in line] == []


def test_the_last_use_of_a_secret_before_its_variable_was_renamed_is_shown(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator.configure(JOURNAL + CONSOLE)
    for name in ("OLD", "NEW_ONE"):
        monkeypatch.setenv(f"{SECRET}__{name}", f"{STRONG_SECRET} {name}")
    two_days_ago = (datetime.now(UTC) - timedelta(days=2)).replace(second=0)
    with time_machine.travel(two_days_ago):
        operator.open_journal().accept([Arrival("a", event_body("a"), time.time(), secret=f"{SECRET}_OLD")])
        operator.open_journal().accept([Arrival("b", event_body("b"), time.time(), secret=f"{SECRET}__NEW_ONE")])
    operator.open_journal().accept([Arrival("c", event_body("c"), time.time(), secret=f"{SECRET}_NEW_ONE")])
    first, new, old, _ = operator.lines("check")
    assert first == f"{SECRET} has not been used yet"
    assert is_recent(new.removeprefix(f"{SECRET}__NEW_ONE was last used ").replace(" UTC", "+00:00"))
    assert old == f"{SECRET}__OLD was last used {two_days_ago:%Y-%m-%d %H:%M} UTC; it is safe to remove"
