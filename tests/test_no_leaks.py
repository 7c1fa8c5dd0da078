"""No secret, token or body shows where it must not: a receiver is led down every path, then all it said is searched."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import re
import socket
import sqlite3
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import Running, wait_until
from flask import Request
from werkzeug.test import EnvironBuilder

from receiver.app import create_app
from receiver.cli import main
from receiver.demo import free_port, value
from receiver.errors import Refused
from receiver.event import Event
from receiver.journal import Arrival, Delivery, History, Kept, Quarantined, Result, Settlement, open_journal
from receiver.logs import TextLines
from receiver.plugins import build_all, load_plugins
from receiver.settings import SECRET, load
from receiver.signature import HEADER, sign, verify
from receiver.simulator import Simulator


def word(kind: str, number: int = 0) -> str:
    """A word that stands nowhere else, the same in every run."""
    return "zq" + hashlib.sha256(f"{kind} {number}".encode()).hexdigest()[:14]


def words_of(kind: str) -> list[str]:
    return [word(kind, number) for number in range(3)]


SHAPES = {
    "plain": "{}{}{}",
    "single quotes": "{}'{}'{}",
    "double quotes": '{}"{}"{}',
    "both quotes": "{}'{}\"{}",
    "backslashes": "{}\\{}\\\\{}",
    "line ends": "{}\n{}\r\n{}",
    "a line end behind": "{}{}{}\n",
    "blanks": "{} {}\t{}",
    "letters beyond ASCII": "{}æ{}漢{}🌡",
    "what URLs escape": "{}%41{}+/{}",
    "what markup escapes": "{}<{}&{}>",
    "control characters": "{}\x1b[1m{}\x7f{}",
}
ODD = {f"ODD_{number}": shape.format(*words_of(shape)) for number, shape in enumerate(SHAPES.values())}
"""Secrets for sinks, with what people and programs write in another way."""

SIGNATURE = "{}'\"\\æ{} {}".format(*words_of("signature"))
OLD_SIGNATURE = "".join(words_of("old signature"))
HOOK_SECRET = base64.b64encode(word("hook secret").encode()).decode()
ENVIRONMENT = {
    SECRET: SIGNATURE,
    f"{SECRET}_OLD": OLD_SIGNATURE,
    "METRICS_TOKEN": word("metrics token"),
    "HOOK_URL": f"http://127.0.0.1:{free_port()}/{word('hook url')}?key={word('hook url', 1)}",
    "HOOK_SECRET": f"whsec_{HOOK_SECRET}",
    "HOOK_HEADER": f"Bearer {word('hook header')}",
    **ODD,
}
SECRET_WORDS = [
    *(part for shape in SHAPES.values() for part in words_of(shape)),
    *(part for kind in ("signature", "old signature", "hook url") for part in words_of(kind)),
    *(word("metrics token"), word("hook secret"), word("hook header"), HOOK_SECRET),
]
TOKEN_WORD, BODY_WORD, PATH_WORD = word("token"), word("body"), word("path")

LEAKY = '''
"""Sinks that tell their secrets in every way that an exception, a log line or a warning has."""

import asyncio
import gc
import json
import sys
import threading
import warnings
from dataclasses import dataclass
from urllib.parse import quote, quote_plus

from receiver import GiveUp, Pause, Retry, Secret, hookimpl


class Unspeakable(Exception):
    def __str__(self):
        raise ValueError(self.args[0])


class Held:
    def __init__(self, text):
        self.text = text

    def __del__(self):
        raise ValueError(self.text)


def throw(error):
    raise error


def chained(text):
    try:
        raise ValueError(text)
    except ValueError as cause:
        raise RuntimeError("see above") from cause


def noted(text):
    error = ValueError("see below")
    error.add_note(text)
    raise error


def in_a_thread(text):
    thread = threading.Thread(target=throw, args=[ValueError(text)])
    thread.start()
    thread.join()


def let_go(text):
    Held(text)
    gc.collect()


WAYS = {
    "plain": lambda text, secrets, logger: throw(ValueError(text)),
    "repr": lambda text, secrets, logger: throw(ValueError(secrets)),
    "repr_of_repr": lambda text, secrets, logger: throw(ValueError(repr(repr(secrets)))),
    "key": lambda text, secrets, logger: throw(KeyError(text)),
    "bytes": lambda text, secrets, logger: throw(OSError(text.encode())),
    "file": lambda text, secrets, logger: open("/dev/null/" + text),
    "json": lambda text, secrets, logger: throw(ValueError(json.dumps(secrets))),
    "utf8_json": lambda text, secrets, logger: throw(ValueError(json.dumps(secrets, ensure_ascii=False))),
    "url": lambda text, secrets, logger: throw(ValueError(quote(text, safe=""))),
    "form": lambda text, secrets, logger: throw(ValueError(quote_plus(text))),
    "one_line": lambda text, secrets, logger: throw(ValueError(" ".join(text.split()))),
    "stripped": lambda text, secrets, logger: throw(ValueError(" ".join(secret.strip() for secret in secrets))),
    "chained": lambda text, secrets, logger: chained(text),
    "noted": lambda text, secrets, logger: noted(text),
    "group": lambda text, secrets, logger: throw(ExceptionGroup(text, [ValueError(text)])),
    "exit": lambda text, secrets, logger: sys.exit(text),
    "cancelled": lambda text, secrets, logger: throw(asyncio.CancelledError(text)),
    "unspeakable": lambda text, secrets, logger: throw(Unspeakable(text)),
    "retry": lambda text, secrets, logger: throw(Retry(text)),
    "pause": lambda text, secrets, logger: throw(Pause(text)),
    "give_up": lambda text, secrets, logger: throw(GiveUp(text)),
    "log": lambda text, secrets, logger: logger.error("told: %s %r %s", text, secrets, json.dumps(secrets)),
    "log_misused": lambda text, secrets, logger: logger.error("%d secrets", text),
    "warning": lambda text, secrets, logger: warnings.warn(text),
    "thread": lambda text, secrets, logger: in_a_thread(text),
    "let_go": lambda text, secrets, logger: let_go(text),
}


@dataclass
class Leaky:
    """Tells its secrets."""

    way: str
    secrets: list[Secret]

    def __post_init__(self):
        self.told = [secret.get_secret_value() for secret in self.secrets]
        if self.way == "init":
            raise ValueError(" and ".join(self.told), self.told)

    @hookimpl
    def open(self, logger):
        self.logger = logger
        if self.way == "open":
            raise ValueError(" and ".join(self.told), self.told)

    @hookimpl
    def deliver(self, event):
        if self.way in WAYS:
            WAYS[self.way](" and ".join(self.told), self.told, self.logger)

    @hookimpl
    def close(self):
        if self.way == "close":
            raise ValueError(" and ".join(self.told), self.told)


@hookimpl
def register_sinks(register):
    register("leaky", Leaky)
'''
WAYS = [*re.findall(r'^    "(\w+)": lambda text', LEAKY, re.MULTILINE), "init", "open", "close"]
CALLED = [way for way in WAYS if way not in ("init", "open")]
ALL_ODD = ", ".join(f'{{ env = "{name}" }}' for name in ODD)
CONFIG = """
[receiver]
log_format = "{log_format}"
plugins = ["leaky.py"]
metrics_token = {{ env = "METRICS_TOKEN" }}
[sinks.console]
type = "stdout"
[sinks.archive]
type = "csv"
path = "events.csv"
rows = "events"
[sinks.hook]
type = "webhook"
url = {{ env = "HOOK_URL" }}
secret = {{ env = "HOOK_SECRET" }}
headers = {{ Authorization = {{ env = "HOOK_HEADER" }} }}
allow_private = true
retry = {{ first_pause = 0.05, longest_pause = 0.05 }}
[sinks.bad_option]
type = "csv"
path = "other.csv"
rows = {{ env = "ODD_0" }}
columns = [{all_odd}]
"""
LEAKY_SINK = """
[sinks.{way}]
type = "leaky"
way = "{way}"
secrets = [{all_odd}]
retry = {{ first_pause = 0.05, longest_pause = 0.05, max_attempts = 8 }}
"""


def event(number: int) -> bytes:
    """An event with marks wherever its sender may write what they like."""
    payload = json.loads(Simulator(number).body("temperature", datetime(2026, 1, 31, 12, tzinfo=UTC)))
    payload["labels"] = {"name": BODY_WORD, BODY_WORD: "x"}
    payload["metadata"][BODY_WORD] = BODY_WORD
    payload["event"]["data"][BODY_WORD] = payload["event"]["data"]["temperature"]["remark"] = BODY_WORD
    payload[BODY_WORD] = BODY_WORD
    return json.dumps(payload).encode()


def event_id(body: bytes) -> str:
    name: str = json.loads(body)["event"]["eventId"]
    return name


NO_EVENTS = [
    BODY_WORD.encode(),
    json.dumps([BODY_WORD]).encode(),
    json.dumps({"event": {"eventId": f"{BODY_WORD}\n", "eventType": BODY_WORD}}).encode(),
    json.dumps({"event": {"eventId": "a", "eventType": [BODY_WORD]}}).encode(),
    f'{{"event": {{"{BODY_WORD}'.encode(),
    BODY_WORD.encode() + b"\xff",
]


@dataclass(frozen=True)
class Said:
    """Everything one receiver said and left: by name, as bytes."""

    answers: Mapping[str, bytes]
    log: bytes
    outputs: Mapping[str, bytes]
    reasons: bytes
    files: Mapping[str, bytes]
    tokens: frozenset[str]

    def outside(self) -> dict[str, bytes]:
        """What is seen by others than the sinks and the journal."""
        return {**self.answers, **self.outputs, "the log": self.log, "the reasons in the journal": self.reasons}

    def everywhere(self) -> dict[str, bytes]:
        return {**self.outside(), **self.files}


def found(words: list[str], places: Mapping[str, bytes]) -> list[str]:
    """Where any of the words stands, with a little of what is around it."""
    return [
        f"{place}: {content[max(0, at - 60) : at + 60]!r}"
        for place, content in places.items()
        for at in sorted({content.find(text.encode()) for text in words} - {-1})
    ]


class Tour:
    """A receiver led down every path, and what it answered on the way."""

    def __init__(self, folder: Path, log_format: str) -> None:
        (folder / "leaky.py").write_text(LEAKY)
        config = CONFIG.format(log_format=log_format, all_odd=ALL_ODD)
        config += "".join(LEAKY_SINK.format(way=way, all_odd=ALL_ODD) for way in WAYS)
        self.receiver = Running(folder, config, None, ENVIRONMENT)
        self.answers: dict[str, bytes] = {}
        self.outputs: dict[str, bytes] = {}
        self.tokens: set[str] = set()

    def run(self) -> Said:
        self.receiver.start()
        with ThreadPoolExecutor(8) as threads:
            stalls = [threads.submit(self.stall, name) for name in STALLED]
            self.genuine_pushes()
            self.refused_pushes()
            self.malformed_requests()
            self.pages()
            for stall in stalls:
                stall.result()
        wait_until(lambda: all(self.metric("attempts_total", way) for way in CALLED), what="a call of every sink")
        wait_until(lambda: self.metric("paused", "plain") and self.metric("paused", "open"), what="the pauses")
        self.pages()
        self.without_a_journal()
        self.command("send", self.receiver.url, "--type", "touch", "--type", "co2")
        assert self.receiver.stop() == 0
        self.commands()
        folder = self.receiver.folder
        files = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.name not in ("config.toml", "leaky.py")
        }
        return Said(self.answers, files.pop("log.txt"), self.outputs, self.reasons(), files, frozenset(self.tokens))

    def genuine_pushes(self) -> None:
        for number in range(2):
            for secret in (SIGNATURE, OLD_SIGNATURE):
                assert self.push("genuine", event(number), self.signed(event(number), secret)) == 200
        for body in NO_EVENTS:
            assert self.push("no event", body, self.signed(body)) == 200

    def refused_pushes(self) -> None:
        body = event(3)
        now = time.time()
        headers = {
            "unsigned": {},
            "a word": {HEADER: TOKEN_WORD},
            "three words": {HEADER: f"{TOKEN_WORD}.{TOKEN_WORD}.{TOKEN_WORD}"},
            "not ASCII": {HEADER: f"{TOKEN_WORD}\xe9\xff"},
            "wrong secret": self.signed(body, TOKEN_WORD),
            "expired": self.signed(body, now=now - 9000),
            "not yet valid": self.signed(body, now=now + 9000),
            "of another body": self.signed(b"{}"),
            "twice": {HEADER: ", ".join([self.signed(body)[HEADER]] * 2)},
            "elsewhere": {"Authorization": f"Bearer {self.signed(body)[HEADER]}", "Cookie": f"a={TOKEN_WORD}"},
        }
        for name, given in headers.items():
            marked = {"User-Agent": TOKEN_WORD, "Content-Type": TOKEN_WORD, "Referer": f"http://{TOKEN_WORD}"}
            assert self.push(f"refused: {name}", body, marked | given) == 400
        large = BODY_WORD.encode() * 20_000
        assert self.push("too large", large, self.signed(large)) == 413

    def malformed_requests(self) -> None:
        token = self.signed(event(4))[HEADER].encode()
        for name, request in MALFORMED.items():
            request = request.replace(b"TOKEN", token).replace(b"WORD", TOKEN_WORD.encode())
            self.answers[f"malformed: {name}"] = answer = self.exchange(request.replace(b"BODY", BODY_WORD.encode()))
            assert re.match(rb"HTTP/1\.1 4\d\d ", answer), (name, answer)

    def stall(self, name: str) -> None:
        request = STALLED[name].replace(b"TOKEN", self.signed(event(5))[HEADER].encode())
        self.answers[f"stalled: {name}"] = answer = self.exchange(request.replace(b"BODY", event(5)[:100]))
        assert answer.startswith(b"HTTP/1.1 4")

    def pages(self, metrics: int = 200) -> None:
        right = {"Authorization": f"Bearer {ENVIRONMENT['METRICS_TOKEN']}"}
        for headers in ({}, right, {"Authorization": f"Bearer {TOKEN_WORD}"}):
            for path in ("/", "/healthz", "/readyz", "/metrics", f"/{PATH_WORD}?{PATH_WORD}=1"):
                for method in ("GET", "DELETE", PATH_WORD.upper()):
                    self.get(method, path, headers)
        assert self.get("GET", "/metrics", {}) == 401
        assert self.get("GET", "/metrics", right) == metrics

    def without_a_journal(self) -> None:
        """Take the events away for a moment, as far as the journal's database is concerned."""
        data = self.receiver.folder / "data"
        with (data / "journal.sqlite.lock").open() as lock:
            rename(lock.fileno(), data / "journal.sqlite", "events", "events_away")
            assert self.push("without a journal", event(6), self.signed(event(6))) == 503
            assert self.push("without a journal", NO_EVENTS[0] * 2, self.signed(NO_EVENTS[0] * 2)) in (200, 503)
            self.pages(metrics=503)
            rename(lock.fileno(), data / "journal.sqlite", "events_away", "events")
        wait_until(lambda: self.push("again", event(7), self.signed(event(7))) == 200, what="the journal's return")

    def commands(self) -> None:
        """What people ask of it afterwards, as text and as JSON."""
        asked = ("sinks", "sinks --status", "dead list", "quarantine list", f"explain {event_id(event(0))}")
        for arguments in asked:
            assert self.command(*arguments.split()) == 0
            assert self.command(*arguments.split(), "--json") == 0
        assert self.command("replay", "plain", "--since", "1h", "--dry-run") == 0
        assert self.command("check") == 1
        for arguments in ("explain unknown", "dead retry unknown", "quarantine show 0", f"send {self.receiver.url}"):
            assert self.command(*arguments.split()) == 1

    def command(self, *arguments: str) -> int:
        environment = {**self.receiver.environment, "DATABASE_URL": None}
        result = CliRunner().invoke(main, arguments, env=environment)
        self.outputs[f"receiver {' '.join(arguments)}"] = f"{result.output}{result.exception!r}".encode()
        return result.exit_code

    def reasons(self) -> bytes:
        """Every text that the journal holds besides bodies."""
        queries = (
            "SELECT id, why FROM quarantine",
            "SELECT why FROM deliveries",
            "SELECT name, last_failure, pause_reason FROM sinks",
            "SELECT name FROM secrets",
        )
        with closing(sqlite3.connect(self.receiver.folder / "data" / "journal.sqlite")) as file:
            return repr([file.execute(query).fetchall() for query in queries]).encode()

    def signed(self, body: bytes, secret: str = SIGNATURE, now: float | None = None) -> dict[str, str]:
        headers = sign(body, secret, time.time() if now is None else now)
        self.tokens.update(headers[HEADER].split(".")[1:])
        return headers

    def push(self, name: str, body: bytes, headers: dict[str, str]) -> int:
        answer = self.receiver.http.request("POST", self.receiver.url, body=body, headers=headers, redirect=False)
        self.answers[f"{name} {len(self.answers)}"] = repr(answer.headers).encode() + answer.data
        return answer.status

    def get(self, method: str, path: str, headers: dict[str, str]) -> int:
        answer = self.receiver.http.request(method, self.receiver.url + path, headers=headers, redirect=False)
        self.answers[f"{method} {path} {len(self.answers)}"] = repr(answer.headers).encode() + answer.data
        return answer.status

    def metric(self, name: str, sink: str) -> int:
        headers = {"Authorization": f"Bearer {ENVIRONMENT['METRICS_TOKEN']}"}
        page = self.receiver.http.request("GET", f"{self.receiver.url}/metrics", headers=headers).data.decode()
        return value(page, f'receiver_{name}{{sink="{sink}"}}')

    def exchange(self, request: bytes) -> bytes:
        """What is answered to these bytes until the connection ends."""
        with socket.create_connection(("127.0.0.1", self.receiver.port), timeout=15) as connection:
            connection.sendall(request)
            answer = b""
            while data := connection.recv(65536):
                answer += data
            return answer


MALFORMED = {
    "no version": b"POST /WORD\r\nX-Dt-Signature: TOKEN\r\n\r\n",
    "an unknown version": b"POST / HTTP/WORD\r\nX-Dt-Signature: TOKEN\r\n\r\n",
    "a method with signs": b"WORD@WORD / HTTP/1.1\r\nX-Dt-Signature: TOKEN\r\n\r\n",
    "a path that is too long": b"POST /" + b"WORD" * 2000 + b" HTTP/1.1\r\n\r\n",
    "a header without a colon": b"POST / HTTP/1.1\r\nX-Dt-Signature TOKEN\r\n\r\n",
    "a header name with a blank": b"POST / HTTP/1.1\r\nX-Dt-Signature : TOKEN\r\n\r\n",
    "a header name that is the token": b"POST / HTTP/1.1\r\nTOKEN@: WORD\r\n\r\n",
    "a header with a zero byte": b"POST / HTTP/1.1\r\nX-Dt-Signature: TOKEN\0\r\n\r\n",
    "a header with a bare CR": b"POST / HTTP/1.1\r\nX-Dt-Signature: TOKEN\rWORD\r\n\r\n",
    "a header that is too long": b"POST / HTTP/1.1\r\nX-Dt-Signature: " + b"WORD" * 5000 + b"\r\n\r\n",
    "too many headers": b"POST / HTTP/1.1\r\n" + b"X-Dt-Signature: TOKEN\r\n" * 200 + b"\r\n",
    "a folded header": b"POST / HTTP/1.1\r\nX-Dt-Signature: TOKEN\r\n WORD\r\n\r\n",
    "a length that is a word": b"POST / HTTP/1.1\r\nX-Dt-Signature: TOKEN\r\nContent-Length: WORD\r\n\r\nBODY",
    "two lengths": b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\nX-Dt-Signature: TOKEN\r\n\r\nBODY",
    "an unknown encoding": b"POST / HTTP/1.1\r\nTransfer-Encoding: WORD\r\nX-Dt-Signature: TOKEN\r\n\r\nBODY",
    "length and chunks": (
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\nX-Dt-Signature: TOKEN\r\n\r\nBODY"
    ),
    "an expectation": b"POST / HTTP/1.1\r\nHost: a\r\nExpect: WORD\r\nX-Dt-Signature: TOKEN\r\n\r\n",
    "a chunk size that is a word": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n"
        b"X-Dt-Signature: TOKEN\r\n\r\nBODY\r\nBODY\r\n0\r\n\r\n"
    ),
    "an odd host": b"POST / HTTP/1.1\r\nHost: WORD<>\r\nX-Dt-Signature: TOKEN\r\nConnection: close\r\n\r\n",
    "another server's URL": (b"GET http://WORD:TOKEN@WORD/WORD HTTP/1.1\r\nHost: WORD\r\nConnection: close\r\n\r\n"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00TOKEN WORD\r\n\r\n",
}
STALLED = {
    "a request line": b"POST /TOKEN",
    "a header": b"POST / HTTP/1.1\r\nHost: a\r\nX-Dt-Signature: TOKEN",
    "a body": b"POST / HTTP/1.1\r\nHost: a\r\nX-Dt-Signature: TOKEN\r\nContent-Length: 5000\r\n\r\nBODY",
    "a chunk": (
        b"POST / HTTP/1.1\r\nHost: a\r\nX-Dt-Signature: TOKEN\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\nBODY"
    ),
}


def rename(lock: int, path: Path, before: str, after: str) -> None:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with closing(sqlite3.connect(path, timeout=10)) as file:
        file.execute(f"ALTER TABLE {before} RENAME TO {after}")
    fcntl.flock(lock, fcntl.LOCK_UN)


@pytest.fixture(scope="module", params=["text", "json"])
def said(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Said]:
    tour = Tour(tmp_path_factory.mktemp("receiver"), request.param)
    try:
        yield tour.run()
    finally:
        tour.receiver.kill_all()


def test_no_secret_is_in_an_answer_or_a_page(said: Said) -> None:
    assert found(SECRET_WORDS, said.answers) == []


def test_no_secret_is_in_the_log(said: Said) -> None:
    assert found(SECRET_WORDS, {"the log": said.log}) == []


def test_no_secret_is_in_what_a_command_prints(said: Said) -> None:
    assert found(SECRET_WORDS, said.outputs) == []


def test_no_secret_is_in_a_reason_that_the_journal_keeps(said: Said) -> None:
    assert found(SECRET_WORDS, {"the reasons": said.reasons}) == []


def test_no_secret_is_in_a_file(said: Said) -> None:
    assert found(SECRET_WORDS, said.files) == []


def test_no_token_and_no_part_of_one_is_anywhere(said: Said) -> None:
    assert len(said.tokens) > 40
    assert found([TOKEN_WORD, *said.tokens], said.everywhere()) == []


def test_bodies_are_in_the_journal_and_in_sinks_and_nowhere_else(said: Said) -> None:
    assert found([BODY_WORD], said.outside()) == []
    holders = {name for name, content in said.files.items() if BODY_WORD.encode() in content}
    assert {"stdout.txt", "events.csv"} < holders
    assert all(name.startswith("data/journal.sqlite") for name in holders - {"stdout.txt", "events.csv"})


def test_no_path_or_query_of_a_request_is_anywhere(said: Said) -> None:
    assert found([PATH_WORD, PATH_WORD.upper()], said.everywhere()) == []


def test_every_sink_was_called_and_what_it_told_was_written_down(said: Said) -> None:
    log = said.log.decode()
    silent = {"retry", "pause", "give_up", "log", "log_misused", "warning", "thread", "let_go", "close", "init", "open"}
    assert [way for way in WAYS if way not in silent and f"sink {way} failed with event" not in log] == []
    for line in (
        "sink init is paused: ",
        "sink bad_option is paused: ",
        "sink open is paused for ",
        "sink pause is paused for ",
        "sink give_up gave up event ",
        "sink close does not close: ",
        "sink.log told: ",
        "journal: ",
        "push refused: ",
        "request refused: ",
    ):
        parts = line.split(" ", 1) if line.startswith("sink.") and log.startswith("{") else [line]
        assert all(part in log for part in parts), line
    assert log.count("***") > 100
    assert said.reasons.count(b"***") > 20


def test_every_line_of_the_log_is_a_record_or_belongs_to_one(said: Said) -> None:
    lines = said.log.decode().splitlines()
    if lines[0].startswith("{"):
        assert [line for line in lines if set(parsed(line)) != {"time", "level", "logger", "message"}] == []
    else:
        record = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING|ERROR|CRITICAL) [\w.]+ .+|  .*")
        assert [line for line in lines if not record.fullmatch(line)] == []


def parsed(line: str) -> dict[str, str]:
    try:
        given: dict[str, str] = json.loads(line)
    except ValueError:
        return {"no record": line}
    return given


ENV = {name: f'{{ env = "{name}" }}' for name in ODD}
ANY = ENV["ODD_4"]
FAULTY = {
    **{
        f"[receiver] {key}": f"[receiver]\n{key} = {given}"
        for key in ("threads", "max_body", "log_format", "deliver", "legacy_sha1", "plugins", "unknown")
        for given in [ANY]
    },
    "plugins that are not there": f"[receiver]\nplugins = [{ALL_ODD}]",
    **{
        f"[journal] {key}": f"[journal]\n{key} = {ANY}"
        for key in ("retention_days", "min_free_mb", "max_size_mb", "unknown")
    },
    **{
        f"a sink's {key}": f'[sinks.a]\ntype = "csv"\npath = "a.csv"\n{key} = {ANY}'
        for key in ("enabled", "concurrency", "batch_size", "retry", "retry.max_age", "filter", "rows", "unknown")
    },
    "a sink's type": f"[sinks.a]\ntype = {ANY}",
    "csv: columns": f'[sinks.a]\ntype = "csv"\npath = "a.csv"\ncolumns = [{ALL_ODD}]',
    "stdout: format": f'[sinks.a]\ntype = "stdout"\nformat = {ANY}',
    "webhook: url": f'[sinks.a]\ntype = "webhook"\nurl = {ANY}',
    "webhook: secret": f'[sinks.a]\ntype = "webhook"\nurl = "http://a"\nsecret = {ANY}',
    "webhook: secrets": f'[sinks.a]\ntype = "webhook"\nurl = "http://a"\nsecret = [{ALL_ODD}]',
    "webhook: headers": f"""[sinks.a]\ntype = "webhook"\nurl = "http://a"\n
        headers = {{ A = {ENV["ODD_5"]}, B = {ENV["ODD_8"]}, C = {ENV["ODD_11"]} }}""",
    "webhook: ca_file": f'[sinks.a]\ntype = "webhook"\nurl = "https://a"\nca_file = {ANY}\nallow_private = 5',
    "values of unknown keys": f'[receiver]\na = "{word("plain")}"\n[sinks.a]\ntype = "stdout"\nb = "{word("plain")}"',
    "an unknown table": f'[{{table}}]\na = "{word("plain")}"'.replace("{table}", "recieve"),
    "secrets of a wrong type": f'[receiver]\nmetrics_token = ["{word("plain")}"]\n'
    f'[sinks.a]\ntype = "webhook"\nurl = "http://a"\nsecret = {{ a = "{word("plain")}" }}\nheaders = "{word("plain")}"',
    "not TOML": f'[receiver]\nmetrics_token = "{word("plain")}',
}


@pytest.mark.parametrize("config", FAULTY.values(), ids=FAULTY)
@pytest.mark.parametrize("command", ["check", "sinks"])
def test_no_command_shows_what_a_faulty_setting_holds(command: str, config: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(config, encoding="utf-8")
    environment = {**ENVIRONMENT, "RECEIVER_CONFIG": str(tmp_path / "config.toml"), "DATABASE_URL": None}
    result = CliRunner().invoke(main, [command], env=environment)
    shown = f"{result.output}{result.exception!r}"
    assert result.exit_code == 1 or command == "sinks"
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert found([*SECRET_WORDS, word("plain")], {command: shown.encode()}) == []


def test_no_page_and_no_log_shows_the_place_of_a_journal_that_the_environment_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.toml").write_text('[journal]\npath = { env = "PLACE" }\nmin_free_mb = 1000000000')
    settings = load({SECRET: SIGNATURE, "PLACE": f"{PATH_WORD}/a", "RECEIVER_CONFIG": str(tmp_path / "config.toml")})
    with closing(open_journal(settings)) as journal:
        client = create_app(settings, journal).test_client()
        answers = [
            client.get("/readyz"),
            client.post("/", data=event(0), headers=sign(event(0), SIGNATURE, time.time())),
        ]
    assert [answer.status_code for answer in answers] == [503, 503]
    assert "MB free" in answers[0].text
    formatter = TextLines(settings)
    lines = "\n".join(formatter.format(record) for record in caplog.records)
    assert "push not taken: only" in lines
    assert found([PATH_WORD], {"answers": b" ".join(answer.data for answer in answers), "log": lines.encode()}) == []


def test_no_repr_shows_a_secret_a_token_or_a_body(tmp_path: Path) -> None:
    (tmp_path / "leaky.py").write_text(LEAKY)
    config = CONFIG.format(log_format="text", all_odd=ALL_ODD) + LEAKY_SINK.format(way="plain", all_odd=ALL_ODD)
    (tmp_path / "config.toml").write_text(config)
    settings = load({**ENVIRONMENT, "RECEIVER_CONFIG": str(tmp_path / "config.toml")})
    sinks, faulty = build_all(load_plugins(settings), settings)
    assert [sink.name for sink in sinks] == ["console", "archive", "hook", "plain"]
    plugins = [hook.plugin for sink in sinks for hook in sink.hook.open.get_hookimpls()]
    body, now = event(0), time.time()
    kept = Kept(1, event_id(body), body, now)
    delivery = Delivery(kept, "hook", 1, 0, 0.0)
    headers = sign(body, word("neither"), now)
    push = Request(EnvironBuilder(method="POST", data=body, headers=headers).get_environ())
    with pytest.raises(Refused) as refused:
        verify(push, settings.secrets)
    shown = [
        *(settings, *settings.sinks, *sinks, *plugins, faulty, refused.value, push),
        *(Event.from_body(body, datetime.now(UTC)), kept, delivery, Settlement(delivery, Result.DELIVERED)),
        *(Arrival("a", body, now), Quarantined("a", now, "why", body), History(kept, True, ())),
    ]
    places = {type(thing).__name__: f"{thing!r} {thing}".encode() for thing in shown}
    assert found([*SECRET_WORDS, BODY_WORD, *headers[HEADER].split(".")[1:]], places) == []
