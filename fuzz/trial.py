"""A run in rounds, each in a process of its own: the app of intake on a new journal, its pushes, and the figures."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import multiprocessing
import random
import re
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import gevent
import time_machine

from fuzz.oracle import EVENT_ID, Opinion, Oracle, Verdict, body_stream, joined
from fuzz.pushes import CHUNKED, ISSUER, MARK, MAX_BODY_BYTES, ORGANIZATIONS, SECRETS, Key, Push, Pushes, new_key
from receiver.intake.app import create_app
from receiver.journal import Journal, Records, StoredEvent, open_journal, open_records
from receiver.keys import KEYS
from receiver.settings import load
from receiver.signature import ASYMMETRIC_HEADER, HEADER
from receiver.variables import ISSUER_URL, ORGANIZATION_ID

ROUND = 50_000
"""Inputs of one process: seconds, so that neither its memory nor its journal grows."""

BATCH = 256
"""Pushes at once: as many as one commit takes."""

STARTED_AT = datetime(2026, 1, 31, 12, tzinfo=UTC)
"""What the clock shows at the start of each round; it stands still for each batch, so that limits are met exactly."""

NOTICE_SECONDS = 60.0
"""New keys are noticed within a second; a busy machine needs more."""

MAX_FINDINGS = 20
MEMORY = Path("/dev/shm")


@dataclass
class Figures:
    """How many inputs got which response, and one finding for each thing that went wrong."""

    results: Counter[str] = field(default_factory=Counter)
    findings: dict[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        return self.results.total()

    def add(self, other: Figures) -> None:
        self.results += other.results
        self.findings = {**other.findings, **self.findings}


@dataclass(frozen=True)
class Response:
    status: int
    line: str
    headers: dict[str, str]


def run(seed: int, processes: int, inputs: int | None, seconds: float) -> Figures:
    """So many inputs, or as many as there is time for."""
    figures = Figures()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, max_tasks_per_child=1) as pool:
        rounds = planned(seed, inputs, time.monotonic() + seconds)
        running: set[Future[Figures]] = set()
        while True:
            for each in rounds:
                running.add(pool.submit(run_round, *each))
                if len(running) == processes:
                    break
            if not running:
                return figures
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                figures.add(future.result())
            if len(figures.findings) >= MAX_FINDINGS:
                rounds = iter(())


def planned(seed: int, inputs: int | None, end: float) -> Iterator[tuple[str, int, float]]:
    """The seed, the inputs, and the end of each round."""
    number = 0
    while inputs is None or number * ROUND < inputs:
        if inputs is None and time.monotonic() > end:
            return
        size = ROUND if inputs is None else min(ROUND, inputs - number * ROUND)
        yield f"{seed} {number}", size, end if inputs is None else math.inf
        number += 1


def run_round(seed: str, inputs: int, end: float = math.inf) -> Figures:
    """One receiver, and its inputs until `end` on the monotonic clock."""
    folder = Path(tempfile.mkdtemp(prefix="receiver-fuzz-", dir=MEMORY if MEMORY.is_dir() else None))
    try:
        with time_machine.travel(STARTED_AT, tick=False) as clock:
            return Round(folder, random.Random(seed)).run(inputs, end, clock)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


ENVIRON: dict[str, Any] = {
    "REQUEST_METHOD": "POST",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/",
    "QUERY_STRING": "",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "SERVER_NAME": "127.0.0.1",
    "SERVER_PORT": "80",
    "REMOTE_ADDR": "127.0.0.1",
    "wsgi.url_scheme": "http",
}


class Round:
    """A receiver that a random choice of settings has made, and what was sent to it."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self._rng = rng
        self._lines = _Lines()
        logging.basicConfig(handlers=[self._lines], level=logging.INFO, force=True)
        both = {HEADER, ASYMMETRIC_HEADER}
        self._trusted = rng.choice([both, both, {HEADER}, {ASYMMETRIC_HEADER}])
        organizations = ORGANIZATIONS if ASYMMETRIC_HEADER in self._trusted else ()
        names = list(SECRETS)[rng.randrange(2) if organizations else 0 :]  # alone, the first is required
        secrets = {name: SECRETS[name] for name in names if HEADER in self._trusted}
        legacy_sha1 = rng.random() < 0.3
        (folder / "config.toml").write_text(
            f"[receiver]\nmax_body_bytes = {MAX_BODY_BYTES}\nlegacy_sha1 = {json.dumps(legacy_sha1)}\n"
            'trusted_proxies = ["127.0.0.0/8", "1.2.3.4"]\n[sensors]\nenabled = false\n',
            encoding="utf-8",
        )
        environ = {"RECEIVER_CONFIG": str(folder / "config.toml"), ISSUER_URL: ISSUER, **secrets}
        self._settings = load({**environ, ORGANIZATION_ID: ",".join(organizations)})
        retired, kept, new, never = (new_key(name) for name in ("retired", "kept", "new", "never"))
        self._pushes = Pushes(rng, [*secrets.values()], [retired, kept], [new, never])
        self._after = Pushes(rng, [*secrets.values()], [new, kept], [retired, never])
        self._oracle = Oracle(secrets, organizations, {}, legacy_sha1, MAX_BODY_BYTES)
        self._events: set[str] = set()
        self._quarantined: set[str] = set()
        self._figures = Figures()

    def run(self, inputs: int, end: float, clock: Any) -> Figures:
        with (
            closing(open_journal(self._settings)) as journal,
            closing(open_records(self._settings, create_tables=False)) as records,
        ):
            self._publish(journal, self._pushes.keys)
            self._app = create_app(self._settings, journal)
            left = inputs
            while left > 0 and time.monotonic() < end and len(self._figures.findings) < MAX_FINDINGS:
                if left <= inputs // 2 and self._pushes is not self._after:
                    with self._finding():
                        self._rotate(journal)
                size = min(left, BATCH)
                self._try(size, journal, records)
                clock.shift(1)
                left -= size
        return self._figures

    def _publish(self, journal: Journal, keys: Sequence[Key]) -> None:
        document = {"issuer": ISSUER, "fetched_at": time.time(), "keys": [key.jwk() for key in keys]}
        journal.save_document(KEYS, json.dumps(document).encode())
        self._oracle = replace(self._oracle, keys={key.id: key for key in keys})

    def _rotate(self, journal: Journal) -> None:
        """Replace the keys, and wait until the receiver has noticed: a new key is then no unknown one."""
        self._publish(journal, self._after.keys)
        self._pushes = self._after
        probe = self._after.probe(int(time.time()))
        end = time.monotonic() + NOTICE_SECONDS
        while self._settings.organizations and self._respond(probe).line == "signing key unknown":
            assert time.monotonic() < end, "the receiver does not notice new keys"
            time.sleep(0.05)

    def _try(self, size: int, journal: Journal, records: Records) -> None:
        """Send some pushes at once, and check each response, what was logged, and what was stored."""
        now = int(time.time())
        pushes = [self._pushes.make(now) for _ in range(size)]
        opinions = [self._oracle.opinion(push, now) for push in pushes]
        self._lines.seen.clear()
        tasks = [gevent.spawn(self._respond, push) for push in pushes]
        responses = [task.get() for task in tasks]
        events: dict[str, bytes] = {}
        quarantined: dict[str, bytes] = {}
        for push, opinion, response in zip(pushes, opinions, responses, strict=True):
            self._figures.results[f"{response.status} {response.line}"] += 1
            with self._finding(push, opinion, response):
                self._check(push, opinion, response)
                if opinion.event_id is not None and response.line == "accepted":
                    assert opinion.event_id not in events.keys() | self._events, "an event is accepted twice"
                    events[opinion.event_id] = opinion.body
                elif opinion.event_id is not None:
                    assert opinion.event_id in self._events or _among(opinion, opinions), "a new event is a duplicate"
                elif opinion.verdict is Verdict.VERIFIED:
                    quarantined[hashlib.sha256(opinion.body).hexdigest()] = opinion.body
        with self._finding(*zip(pushes, responses, strict=True)):
            self._check_shown(pushes, responses)
        with self._finding():
            self._check_stored(events, quarantined, journal, records)
        self._events |= events.keys()
        self._quarantined |= quarantined.keys()

    def _respond(self, push: Push) -> Response:
        environ = {**ENVIRON, "wsgi.input": body_stream(push)}
        for name, value in joined(push):
            name = name.replace("-", "_")
            environ[name if name == "CONTENT_TYPE" else f"HTTP_{name}"] = value
        if CHUNKED in push.headers:
            environ["wsgi.input_terminated"] = True
        elif push.length is not None:
            environ["CONTENT_LENGTH"] = push.length
        started: list[tuple[str, list[tuple[str, str]]]] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> Any:
            started.append((status, headers))

        try:
            body = b"".join(self._app(environ, start_response))
        except Exception:
            return Response(0, traceback.format_exc(), {})
        status, headers = started[0]
        return Response(int(status.split()[0]), body.decode(), dict(headers))

    def _check(self, push: Push, opinion: Opinion, response: Response) -> None:
        genuine = push.genuine & self._trusted
        assert opinion.verdict is Verdict.VERIFIED or not genuine, "the oracle does not verify a genuine push"
        assert opinion.allows(response.status, response.line), f"not the response to a push that is {opinion.verdict}"
        expected = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(response.line))}
        expected |= {"Retry-After": "10"} if response.status == 503 else {}
        name = response.headers["X-Request-Id"]
        given = dict(joined(push)).get("X-REQUEST-ID", "")
        assert re.fullmatch("[0-9a-f]{32}", name) or (name == given and EVENT_ID.fullmatch(name)), "not a request id"
        assert response.headers == {**expected, "X-Request-Id": name}, "other headers than documented"

    def _check_shown(self, pushes: Sequence[Push], responses: Sequence[Response]) -> None:
        """No error, and nothing of a secret, a token or a body, in any log line or response."""
        shown = "\n".join([*self._lines.seen, *(f"{each.line} {each.headers}" for each in responses)])
        assert " ERROR " not in shown, shown
        assert "Traceback" not in shown, shown
        for secret in (MARK, *SECRETS.values()):
            assert secret not in shown, f"a secret, or a part of a push, is shown: {shown}"
        for push in pushes:
            tokens = [value for name, value in push.headers if name in (HEADER, ASYMMETRIC_HEADER) and len(value) > 40]
            parts = [part for token in tokens for part in (token[:36], token[-20:])]
            middle = push.data[len(push.data) // 2 :][:24].decode("latin-1")
            parts += [middle] if len(set(middle)) > 8 else []
            assert not any(part in shown for part in parts), f"a token or a body is shown: {shown}"

    def _check_stored(
        self, events: Mapping[str, bytes], quarantined: Mapping[str, bytes], journal: Journal, records: Records
    ) -> None:
        """Exactly what was accepted is in the journal, byte for byte. Events are routed, so that none is seen again."""
        stored = journal.unrouted(BATCH + 1)
        journal.route([(event, ()) for event in stored])
        assert {event.id: event.body for event in stored} == events, "the journal has other events than were accepted"
        for event in stored:
            check_decoded(event)
        found = [each for each in records.quarantined(BATCH + 1) if each.received_at >= time.time()]
        new = {name: body for name, body in quarantined.items() if name not in self._quarantined}
        assert {each.id: each.body for each in found} == new, "the quarantine has other pushes than were quarantined"

    @contextmanager
    def _finding(self, *about: object) -> Iterator[None]:
        """Note an assertion that fails, or an error, with what it is about."""
        try:
            yield
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
            shown = "\n".join(map(repr, about))
            self._figures.findings.setdefault(place, f"{traceback.format_exc()}{shown}")


def _among(opinion: Opinion, opinions: Iterable[Opinion]) -> bool:
    return sum(each.event_id == opinion.event_id for each in opinions) > 1


def check_decoded(stored: StoredEvent) -> None:
    """Decode an event as the dispatcher and its sinks do."""
    event = stored.decode()
    assert (event.id, event.body) == (stored.id, stored.body)
    assert event.occurred_at.utcoffset() == timedelta(0)
    assert all(isinstance(text, str) for pair in event.labels.items() for text in pair)
    json.dumps([event.data, event.labels], allow_nan=False, ensure_ascii=False).encode()
    for reading in event.readings():
        assert isinstance(reading.value, int | float)
        assert math.isfinite(reading.value)
        assert (reading.event_id, reading.device_id) == (event.id, event.device_id)
        assert reading.time.utcoffset() == timedelta(0)
    assert event.typed is None or event.typed.event_id == event.id
    assert event == (again := stored.decode())
    assert hash(event) == hash(again)


class _Lines(logging.Handler):
    """All that is logged, without the redaction that would hide a mistake."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(self.format(record))
