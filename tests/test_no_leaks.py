"""No secret, token or body appears where it must not.

A receiver gets every kind of request, and its sinks leak in every way; then everything that it wrote is searched.
"""

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
from conftest import RunningReceiver, wait_until
from flask import Request
from werkzeug.test import EnvironBuilder

from receiver.commands.main import main
from receiver.delivery.plugins import load_plugins
from receiver.delivery.sinks import build_sinks
from receiver.demo import metric_value
from receiver.errors import Rejected
from receiver.event import Event, event_id
from receiver.intake.app import create_app
from receiver.journal import (
    Arrival,
    Delivery,
    EventHistory,
    QuarantinedPush,
    Result,
    Settlement,
    StoredEvent,
    open_journal,
)
from receiver.logs import FIELDS, TextLines
from receiver.redaction import Redactor
from receiver.settings import load
from receiver.signature import HEADER, sign, verify
from receiver.simulator import Simulator
from receiver.testing.ports import reserve_port
from receiver.variables import SECRET


def word(kind: str, number: int = 0) -> str:
    """A word that appears nowhere else, the same in every run."""
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
    "a line end at the end": "{}{}{}\n",
    "blanks": "{} {}\t{}",
    "letters beyond ASCII": "{}æ{}漢{}🌡",
    "characters that URLs escape": "{}%41{}+/{}",
    "characters that markup escapes": "{}<{}&{}>",
    "control characters": "{}\x1b[1m{}\x7f{}",
}
ODD = {f"ODD_{number}": shape.format(*words_of(shape)) for number, shape in enumerate(SHAPES.values())}
"""Secrets for sinks, with characters that people and programs write in another way."""

SIGNATURE = "{}'\"\\æ{} {}".format(*words_of("signature"))
OLD_SIGNATURE = "".join(words_of("old signature"))
HOOK_SECRET = base64.b64encode(word("hook secret").encode()).decode()
ENVIRONMENT = {
    SECRET: SIGNATURE,
    f"{SECRET}__OLD": OLD_SIGNATURE,
    "METRICS_TOKEN": word("metrics token"),
    "HOOK_URL": f"http://127.0.0.1:{reserve_port()}/{word('hook url')}?key={word('hook url', 1)}",
    "HOOK_SECRET": f"whsec_{HOOK_SECRET}",
    "HOOK_HEADER": f"Bearer {word('hook header')}",
    **ODD,
}
SECRET_WORDS = [
    *(part for shape in SHAPES.values() for part in words_of(shape)),
    *(part for kind in ("signature", "old signature", "hook url") for part in words_of(kind)),
    *(word("metrics token"), word("hook secret"), word("hook header"), HOOK_SECRET),
]
SENSOR_NAME = "Cold store"
"""Commands show it; no log does."""

TOKEN_WORD, BODY_WORD, PATH_WORD = word("token"), word("body"), word("path")

LEAKY = '''
"""Sinks that put their secrets into every kind of exception, log line and warning."""

import asyncio
import gc
import json
import sys
import threading
import warnings
from dataclasses import dataclass
from urllib.parse import quote, quote_plus

from receiver import GiveUp, Pause, Retry, Secret, hookimpl


class NoText(Exception):
    def __str__(self):
        raise ValueError(self.args[0])


class Finalized:
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


def in_a_finalizer(text):
    Finalized(text)
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
    "no_text": lambda text, secrets, logger: throw(NoText(text)),
    "retry": lambda text, secrets, logger: throw(Retry(text)),
    "pause": lambda text, secrets, logger: throw(Pause(text)),
    "give_up": lambda text, secrets, logger: throw(GiveUp(text)),
    "log": lambda text, secrets, logger: logger.error("leaked: %s %r %s", text, secrets, json.dumps(secrets)),
    "log_misused": lambda text, secrets, logger: logger.error("%d secrets", text),
    "warning": lambda text, secrets, logger: warnings.warn(text),
    "thread": lambda text, secrets, logger: in_a_thread(text),
    "finalizer": lambda text, secrets, logger: in_a_finalizer(text),
}


@dataclass
class Leaky:
    """Leaks its secrets."""

    way: str
    secrets: list[Secret]

    def __post_init__(self):
        self.values = [secret.get_secret_value() for secret in self.secrets]
        self.leak_in("init")

    @hookimpl
    def open(self, logger):
        self.logger = logger
        self.leak_in("open")

    @hookimpl
    def deliver(self, event):
        if self.way in WAYS:
            WAYS[self.way](" and ".join(self.values), self.values, self.logger)

    @hookimpl
    def local_path(self):
        self.leak_in("local_path")

    @hookimpl
    def close(self):
        self.leak_in("close")

    def leak_in(self, way):
        if self.way == way:
            raise ValueError(" and ".join(self.values), self.values)


@hookimpl
def register_sinks(register):
    register("leaky", Leaky)
'''
WAYS = [*re.findall(r'^    "(\w+)": lambda text', LEAKY, re.MULTILINE), "init", "local_path", "open", "close"]
CALLED = [way for way in WAYS if way not in ("init", "local_path", "open")]
ALL_ODD = ", ".join(f'{{ env = "{name}" }}' for name in ODD)
CONFIG = """
[receiver]
log_format = "json"
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
retry = {{ initial_backoff = 0.05, max_backoff = 0.05 }}
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
retry = {{ initial_backoff = 0.05, max_backoff = 0.05, max_attempts = 8 }}
"""


def event_body(number: int) -> bytes:
    """A body with BODY_WORD in every place where its sender can put a word, except the name of the sensor."""
    payload = json.loads(Simulator(number).body("temperature", datetime(2026, 1, 31, 12, tzinfo=UTC)))
    payload["labels"] = {"name": SENSOR_NAME, BODY_WORD: BODY_WORD}
    payload["metadata"][BODY_WORD] = BODY_WORD
    payload["event"]["data"][BODY_WORD] = payload["event"]["data"]["temperature"]["remark"] = BODY_WORD
    payload[BODY_WORD] = BODY_WORD
    return json.dumps(payload).encode()


NOT_EVENTS = [
    BODY_WORD.encode(),
    json.dumps([BODY_WORD]).encode(),
    json.dumps({"event": {"eventId": f"{BODY_WORD}\n", "eventType": BODY_WORD}}).encode(),
    json.dumps({"event": {"eventId": "a", "eventType": [BODY_WORD]}}).encode(),
    f'{{"event": {{"{BODY_WORD}'.encode(),
    BODY_WORD.encode() + b"\xff",
]


@dataclass(frozen=True)
class Traces:
    """Everything that a receiver and its commands wrote, by name."""

    responses: Mapping[str, bytes]
    log: bytes
    outputs: Mapping[str, bytes]
    reasons: bytes
    files: Mapping[str, bytes]
    tokens: frozenset[str]

    def outside(self) -> dict[str, bytes]:
        """What others than the sinks and the journal can see."""
        return {**self.responses, **self.outputs, "the log": self.log, "the reasons in the journal": self.reasons}

    def everywhere(self) -> dict[str, bytes]:
        return {**self.outside(), **self.files}


def found(words: list[str], places: Mapping[str, bytes]) -> list[str]:
    """Where any of the words is, with a little of the text around it."""
    return [
        f"{place}: {content[max(0, at - 60) : at + 60]!r}"
        for place, content in places.items()
        for at in sorted({content.find(text.encode()) for text in words} - {-1})
    ]


class Tour:
    """A receiver, every kind of request to it, and its responses."""

    def __init__(self, folder: Path) -> None:
        (folder / "leaky.py").write_text(LEAKY)
        config = CONFIG.format(all_odd=ALL_ODD)
        config += "".join(LEAKY_SINK.format(way=way, all_odd=ALL_ODD) for way in WAYS)
        self.receiver = RunningReceiver(folder, config, None, {**ENVIRONMENT, "WEB_CONCURRENCY": "1"})
        self.responses: dict[str, bytes] = {}
        self.outputs: dict[str, bytes] = {}
        self.tokens: set[str] = set()

    def run(self) -> Traces:
        self.receiver.start(ready=False)
        with ThreadPoolExecutor(8) as threads:
            stalls = [threads.submit(self.stall, name) for name in STALLED]
            self.genuine_pushes()
            self.rejected_pushes()
            self.malformed_requests()
            self.pages()
            for stall in stalls:
                stall.result()
        wait_until(self.every_sink_was_called, what="a call of every sink")
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
        log = files.pop("log.txt")
        return Traces(self.responses, log, self.outputs, self.reasons(), files, frozenset(self.tokens))

    def every_sink_was_called(self) -> bool:
        """Whether each sink that can be called was, and those that ask for a pause are paused."""
        page = self.metrics_page()
        attempts = [metric_value(page, f'receiver_delivery_attempts_total{{sink="{way}"}}') for way in CALLED]
        paused = [metric_value(page, f'receiver_sink_paused{{sink="{way}"}}') for way in ("plain", "open")]
        return all(attempts) and all(paused)

    def genuine_pushes(self) -> None:
        for number in range(2):
            for secret in (SIGNATURE, OLD_SIGNATURE):
                assert self.push("genuine", event_body(number), self.signed(event_body(number), secret)) == 200
        for body in NOT_EVENTS:
            assert self.push("no event", body, self.signed(body)) == 200

    def rejected_pushes(self) -> None:
        body = event_body(3)
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
            assert self.push(f"rejected: {name}", body, marked | given) == 400
        large = BODY_WORD.encode() * 20_000
        assert self.push("too large", large, self.signed(large)) == 413

    def malformed_requests(self) -> None:
        token = self.signed(event_body(4))[HEADER].encode()
        for name, request in MALFORMED.items():
            request = request.replace(b"TOKEN", token).replace(b"WORD", TOKEN_WORD.encode())
            request = request.replace(b"BODY", BODY_WORD.encode())
            self.responses[f"malformed: {name}"] = response = self.exchange(request)
            assert re.match(rb"HTTP/1\.1 4\d\d ", response), (name, response)

    def stall(self, name: str) -> None:
        request = STALLED[name].replace(b"TOKEN", self.signed(event_body(5))[HEADER].encode())
        self.responses[f"stalled: {name}"] = response = self.exchange(request.replace(b"BODY", event_body(5)[:100]))
        assert response.startswith(b"HTTP/1.1 4")

    def pages(self, metrics: int = 200) -> None:
        valid = {"Authorization": f"Bearer {ENVIRONMENT['METRICS_TOKEN']}"}
        for headers in ({}, valid, {"Authorization": f"Bearer {TOKEN_WORD}"}):
            for path in ("/", "/healthz", "/readyz", "/metrics", f"/{PATH_WORD}?{PATH_WORD}=1"):
                for method in ("GET", "DELETE", PATH_WORD.upper()):
                    self.get(method, path, headers)
        assert self.get("GET", "/metrics", {}) == 401
        assert self.get("GET", "/metrics", valid) == metrics

    def without_a_journal(self) -> None:
        """Rename a table of the journal for a moment, so that every push and page of it fails."""
        data = self.receiver.folder / "data"
        with (data / "journal.sqlite.lock").open() as lock:
            rename(lock.fileno(), data / "journal.sqlite", "events", "renamed")
            assert self.push("without a journal", event_body(6), self.signed(event_body(6))) == 503
            assert self.push("without a journal", NOT_EVENTS[0] * 2, self.signed(NOT_EVENTS[0] * 2)) in (200, 503)
            self.pages(metrics=503)
            wait_until(lambda: "waits for the journal: " in self.receiver.log, what="the dispatcher to notice")
            rename(lock.fileno(), data / "journal.sqlite", "renamed", "events")
        body = event_body(7)
        wait_until(lambda: self.push("again", body, self.signed(body)) == 200, what="the journal to be available")

    def commands(self) -> None:
        """What operators run afterwards, as text and as JSON."""
        shown = (
            "sinks",
            "status",
            "dead-letters list",
            "events",
            "quarantine list",
            f"explain {event_id(event_body(0))}",
        )
        for arguments in shown:
            assert self.command(*arguments.split()) == 0
            assert self.command(*arguments.split(), "--json") == 0
        assert self.command("replay", "plain", "--since", "1h", "--dry-run") == 0
        assert self.command("check") == 1
        failing = ("explain unknown", "dead-letters retry unknown", "quarantine show 0", f"send {self.receiver.url}")
        for arguments in failing:
            assert self.command(*arguments.split()) == 1

    def command(self, *arguments: str) -> int:
        environment = {**self.receiver.environment, "DATABASE_URL": None}
        result = CliRunner().invoke(main, arguments, env=environment)
        self.outputs[f"receiver {' '.join(arguments)}"] = f"{result.output}{result.exception!r}".encode()
        return result.exit_code

    def reasons(self) -> bytes:
        """Every text in the journal except bodies."""
        queries = (
            "SELECT id, reason FROM quarantine",
            "SELECT reason FROM deliveries",
            "SELECT name, last_failure_reason, pause_reason FROM sinks",
            "SELECT name FROM secrets",
            "SELECT warnings FROM dispatchers",
        )
        with closing(sqlite3.connect(self.receiver.folder / "data" / "journal.sqlite")) as file:
            return repr([file.execute(query).fetchall() for query in queries]).encode()

    def signed(self, body: bytes, secret: str = SIGNATURE, now: float | None = None) -> dict[str, str]:
        headers = sign(body, secret, time.time() if now is None else now)
        self.tokens.update(headers[HEADER].split(".")[1:])
        return headers

    def push(self, name: str, body: bytes, headers: dict[str, str]) -> int:
        response = self.receiver.http.request("POST", self.receiver.url, body=body, headers=headers, redirect=False)
        self.responses[f"{name} {len(self.responses)}"] = repr(response.headers).encode() + response.data
        return response.status

    def get(self, method: str, path: str, headers: dict[str, str]) -> int:
        response = self.receiver.http.request(method, self.receiver.url + path, headers=headers, redirect=False)
        self.responses[f"{method} {path} {len(self.responses)}"] = repr(response.headers).encode() + response.data
        return response.status

    def metrics_page(self) -> str:
        headers = {"Authorization": f"Bearer {ENVIRONMENT['METRICS_TOKEN']}"}
        return self.receiver.http.request("GET", f"{self.receiver.url}/metrics", headers=headers).data.decode()

    def exchange(self, request: bytes) -> bytes:
        """The response to these bytes, until the connection ends."""
        with socket.create_connection(("127.0.0.1", self.receiver.port), timeout=15) as connection:
            connection.sendall(request)
            response = b""
            while data := connection.recv(65536):
                response += data
            return response


MALFORMED = {
    "no version": b"POST /WORD\r\nX-Dt-Signature: TOKEN\r\n\r\n",
    "an unknown version": b"POST / HTTP/WORD\r\nX-Dt-Signature: TOKEN\r\n\r\n",
    "a method with invalid characters": b"WORD@WORD / HTTP/1.1\r\nX-Dt-Signature: TOKEN\r\n\r\n",
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


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traces]:
    tour = Tour(tmp_path_factory.mktemp("receiver"))
    try:
        yield tour.run()
    finally:
        tour.receiver.kill_all()


def test_no_secret_is_in_a_response(traces: Traces) -> None:
    assert found(SECRET_WORDS, traces.responses) == []


def test_no_secret_is_in_the_log(traces: Traces) -> None:
    assert found(SECRET_WORDS, {"the log": traces.log}) == []


def test_no_secret_is_in_the_output_of_a_command(traces: Traces) -> None:
    assert found(SECRET_WORDS, traces.outputs) == []


def test_no_secret_is_in_a_reason_in_the_journal(traces: Traces) -> None:
    assert found(SECRET_WORDS, {"the reasons": traces.reasons}) == []


def test_no_secret_is_in_a_file(traces: Traces) -> None:
    assert found(SECRET_WORDS, traces.files) == []


def test_no_token_and_no_part_of_one_is_anywhere(traces: Traces) -> None:
    assert len(traces.tokens) > 40
    assert found([TOKEN_WORD, *traces.tokens], traces.everywhere()) == []


def test_bodies_are_in_the_journal_and_in_sinks_and_nowhere_else(traces: Traces) -> None:
    assert found([BODY_WORD], traces.outside()) == []
    seen = {name.split()[1] for name, content in traces.outputs.items() if SENSOR_NAME.encode() in content}
    assert seen == {"dead-letters", "events", "explain"}
    assert found([SENSOR_NAME], {**traces.responses, "the log": traces.log, "the reasons": traces.reasons}) == []
    holders = {name for name, content in traces.files.items() if BODY_WORD.encode() in content}
    assert {"stdout.txt", "events.csv"} < holders
    databases = ("data/journal.sqlite", "data/sensors.sqlite")
    assert all(name.startswith(databases) for name in holders - {"stdout.txt", "events.csv"})


def test_no_path_or_query_of_a_request_is_anywhere(traces: Traces) -> None:
    assert found([PATH_WORD, PATH_WORD.upper()], traces.everywhere()) == []


def test_every_sink_was_called_and_what_it_leaked_was_logged_without_secrets(traces: Traces) -> None:
    messages = [record["message"] for record in records(traces.log)]
    no_failures = {"retry", "pause", "give_up", "log", "log_misused", "warning", "thread", "finalizer"}
    failing = [way for way in CALLED if way not in {*no_failures, "close"}]
    for begin in (
        *(f"sink {way} failed with event " for way in failing),
        *(f"sink {name} is paused: " for name in ("init", "local_path", "bad_option")),
        *(f"sink {name} is paused for " for name in ("open", "pause")),
        "sink give_up gave up event ",
        "sink close failed to close: ",
        "leaked: ",
        "push not stored: ",
        "push rejected: ",
        "request rejected: ",
    ):
        assert any(message.startswith(begin) for message in messages), begin
    assert traces.log.count(b"***") > 100
    assert traces.reasons.count(b"***") > 20


def test_every_line_of_the_log_is_a_record(traces: Traces) -> None:
    common = {"time", "level", "logger", "message"}
    fields = [record.keys() - common for record in records(traces.log) if common <= record.keys()]
    assert len(fields) == len(records(traces.log))
    assert set().union(*fields) == {*FIELDS}


def records(log: bytes) -> list[dict[str, str]]:
    assert b"\n".join(line for line in log.splitlines() if not line.startswith(b"{")).decode() == ""
    return [json.loads(line) for line in log.splitlines()]


ENV = {name: f'{{ env = "{name}" }}' for name in ODD}
ANY = ENV["ODD_4"]
INVALID = {
    **{
        f"[receiver] {key}": f"[receiver]\n{key} = {given}"
        for key in ("max_body_bytes", "max_body", "log_format", "deliver", "legacy_sha1", "plugins", "other")
        for given in [ANY]
    },
    "missing plugins": f"[receiver]\nplugins = [{ALL_ODD}]",
    **{
        f"[journal] {key}": f"[journal]\n{key} = {ANY}"
        for key in ("retention_days", "min_free_mb", "max_size_mb", "unknown")
    },
    **{
        f"a sink's {key}": f'[sinks.a]\ntype = "csv"\npath = "a.csv"\n{key} = {ANY}'
        for key in ("enabled", "concurrency", "batch_size", "retry", "retry.max_age", "filter")
        + ("retry.initial_backoff", "retry.max_backoff", "retry.first_pause", "rows", "unknown")
    },
    "a sink's type": f"[sinks.a]\ntype = {ANY}",
    "csv: columns": f'[sinks.a]\ntype = "csv"\npath = "a.csv"\ncolumns = [{ALL_ODD}]',
    "stdout: format": f'[sinks.a]\ntype = "stdout"\nformat = {ANY}',
    "mqtt: url": f'[sinks.a]\ntype = "mqtt"\nurl = {ANY}',
    "mqtt: ca_file": f'[sinks.a]\ntype = "mqtt"\nurl = "mqtt://a"\nca_file = {ANY}',
    "mqtt: user": f'[sinks.a]\ntype = "mqtt"\nurl = "mqtt://{word("plain")}:b@a"\nuser = {ANY}',
    "mqtt: prefix": f'[sinks.a]\ntype = "mqtt"\nurl = "mqtt://a"\nprefix = {ANY}\npassword = ["{word("plain")}"]',
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


@pytest.mark.parametrize("config", INVALID.values(), ids=INVALID)
@pytest.mark.parametrize("command", ["check", "sinks"])
def test_no_command_shows_the_value_of_an_invalid_setting(command: str, config: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(config, encoding="utf-8")
    environment = {**ENVIRONMENT, "RECEIVER_CONFIG": str(tmp_path / "config.toml"), "DATABASE_URL": None}
    result = CliRunner().invoke(main, [command], env=environment)
    shown = f"{result.output}{result.exception!r}"
    assert result.exit_code == 1 or command == "sinks"
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert found([*SECRET_WORDS, word("plain")], {command: shown.encode()}) == []


def test_no_response_and_no_log_line_shows_a_path_of_the_journal_that_comes_from_the_environment(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.toml").write_text('[journal]\npath = { env = "JOURNAL" }\nmin_free_mb = 1000000000')
    settings = load({SECRET: SIGNATURE, "JOURNAL": f"{PATH_WORD}/a", "RECEIVER_CONFIG": str(tmp_path / "config.toml")})
    with closing(open_journal(settings)) as journal:
        client = create_app(settings, journal).test_client()
        responses = [
            client.get("/readyz"),
            client.post("/", data=event_body(0), headers=sign(event_body(0), SIGNATURE, time.time())),
        ]
    assert [response.status_code for response in responses] == [503, 503]
    assert "MB of disk are free" in responses[0].text
    formatter = TextLines(Redactor(settings.secret_values))
    lines = "\n".join(formatter.format(record) for record in caplog.records)
    assert "push not stored: only" in lines
    shown = {"responses": b" ".join(response.data for response in responses), "log": lines.encode()}
    assert found([PATH_WORD], shown) == []


def test_no_repr_shows_a_secret_a_token_or_a_body(tmp_path: Path) -> None:
    (tmp_path / "leaky.py").write_text(LEAKY)
    config = CONFIG.format(all_odd=ALL_ODD) + LEAKY_SINK.format(way="plain", all_odd=ALL_ODD)
    (tmp_path / "config.toml").write_text(config)
    settings = load({**ENVIRONMENT, "RECEIVER_CONFIG": str(tmp_path / "config.toml")})
    redactor = Redactor(settings.secret_values)
    plugins = load_plugins(settings, redactor)
    sinks, broken = build_sinks(plugins, settings, redactor)
    assert [sink.name for sink in sinks] == ["console", "archive", "hook", "plain", "sensors"]
    instances = [hook.plugin for sink in sinks for hook in sink.hook.open.get_hookimpls()]
    body, now = event_body(0), time.time()
    stored = StoredEvent(1, event_id(body), body, now)
    delivery = Delivery(stored, "hook", 1, 0, 0.0)
    headers = sign(body, word("neither"), now)
    push = Request(EnvironBuilder(method="POST", data=body, headers=list(headers.items())).get_environ())
    with pytest.raises(Rejected) as rejected:
        verify(push, settings.secrets)
    shown = [
        *(settings, *settings.sinks, plugins, *sinks, *instances, broken, redactor, rejected.value, push),
        *(Event.from_body(body, datetime.now(UTC)), stored, delivery, Settlement(delivery, Result.DELIVERED)),
        *(Arrival("a", body, now), QuarantinedPush("a", now, "a reason", body), EventHistory(stored, True, ())),
    ]
    places = {type(thing).__name__: f"{thing!r} {thing}".encode() for thing in shown}
    assert found([*SECRET_WORDS, BODY_WORD, *headers[HEADER].split(".")[1:]], places) == []
