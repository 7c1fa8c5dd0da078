"""What authors of sinks use for tests: the suite finds every kind of broken sink; samples and fixtures work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import psutil
import pytest
import time_machine
from conftest import ROOT, StartReceiver, wait_until

from receiver.errors import ReceiverError
from receiver.event import TYPES, Event
from receiver.testing import SinkSuite, event, events, odd_text_events, unknown_events
from receiver.testing.harness import Harness
from receiver.testing.postgresql import is_running

PLUGIN = '''
import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import urllib3

from receiver import GiveUp, Retry, Secret, hookimpl

logger = logging.getLogger(__name__)

@dataclass
class FileSink:
    """Appends the id of each event to a file, once.

    path: the file.
    """

    path: Path

    def __post_init__(self):
        self.lock = threading.Lock()

    @hookimpl
    def open(self):
        self.file = self.path.open("a+")
        self.file.seek(0)
        self.seen = set(self.file.read().split())

    @hookimpl
    def deliver(self, event, attempt):
        self.store(event, attempt)

    def store(self, event, attempt):
        with self.lock:
            self.write(event.id)

    def write(self, event_id):
        if event_id not in self.seen:
            self.file.write(event_id + "\\n")
            self.file.flush()
            self.seen.add(event_id)

    @hookimpl
    def close(self):
        if hasattr(self, "file"):
            self.file.close()

@dataclass
class HttpSink:
    """Sends the id of each event to a server.

    url: where to.
    """

    url: str

    @hookimpl
    def open(self):
        self.http = urllib3.PoolManager(timeout=self.timeout(), retries=False)

    def timeout(self):
        return 5

    @hookimpl
    def deliver(self, event):
        self.send(event)

    def send(self, event):
        self.check(self.http.request("POST", self.url, body=event.id))

    def check(self, response):
        if response.status != 200:
            raise Retry(f"HTTP {response.status}")

    @hookimpl
    def close(self):
        self.http.clear()

class HasNoTimeout(HttpSink):
    def timeout(self):
        return None

class DropsMostEvents(HasNoTimeout):
    """Sends the id of some events, in capitals.

    url: where to.
    """

    def send(self, event):
        if event.type == "co2":
            self.check(self.http.request("POST", self.url, body=event.id.upper()))

class GivesUpTouches(FileSink):
    def store(self, event, attempt):
        if event.type == "touch" or not event.data:
            raise GiveUp("not supported")
        super().store(event, attempt)

class GivesUpInBatches(FileSink):
    deliver = None

    @hookimpl
    def deliver_batch(self, events, attempts):
        for event in events:
            if event.type == "touch" or not event.data:
                raise GiveUp("not supported")
        for event in events:
            with self.lock:
                self.write(event.id)

class GivesUpSilently(FileSink):
    def store(self, event, attempt):
        if len(self.seen) >= 100:
            raise GiveUp("enough")
        super().store(event, attempt)

class IgnoresStatus(HttpSink):
    def check(self, response):
        pass

class IgnoresErrors(HttpSink):
    def send(self, event):
        try:
            super().send(event)
        except urllib3.exceptions.HTTPError:
            pass

class CreatesFileInConstructor(FileSink):
    def __post_init__(self):
        super().__post_init__()
        self.path.touch()

class StopsAfter500(FileSink):
    def store(self, event, attempt):
        if len(self.seen) < 500:
            super().store(event, attempt)

class RequiresData(FileSink):
    def store(self, event, attempt):
        assert event.data, "no data"
        super().store(event, attempt)

class RequiresAscii(FileSink):
    def store(self, event, attempt):
        event.labels.get("name", "").encode("ascii")
        super().store(event, attempt)

class IgnoresRetries(FileSink):
    def store(self, event, attempt):
        if attempt == 1:
            super().store(event, attempt)

class AppendsAgain(FileSink):
    def write(self, event_id):
        self.file.write(event_id + "\\n")
        self.file.flush()

class NeverCloses(FileSink):
    @hookimpl
    def close(self):
        pass

class AcceptsUnknownOptions(FileSink):
    def __init__(self, path: Path, **others):
        super().__init__(path)

class HasUntypedOption(FileSink):
    def __init__(self, path: Path, colour="red"):
        """Has an option without a type.

        path: the file.
        colour: of the file.
        """
        super().__init__(path)
    __doc__ = __init__.__doc__

class HasUndocumentedOption(FileSink):
    def __init__(self, path: Path, colour: str = "red"):
        super().__init__(path)

@dataclass
class ShowsSecret(FileSink):
    """Shows its secret.

    path: the file.
    token: the secret.
    """

    token: str = ""

@dataclass
class LogsSecret(FileSink):
    """Logs its secret.

    path: the file.
    key: the secret.
    """

    key: Secret = None

    def store(self, event, attempt):
        logger.debug("signing with %s", self.key.get_secret_value())
        super().store(event, attempt)

class SharesState(FileSink):
    def store(self, event, attempt):
        self.current = event.id
        time.sleep(0.0001)
        self.write(self.current)

@hookimpl
def register_sinks(register):
    for cls in (FileSink, *FileSink.__subclasses__(), HttpSink, *HttpSink.__subclasses__(), DropsMostEvents):
        register(cls.__name__, cls)
'''

SUITES = """
import contextlib
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from receiver.testing import SinkSuite

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        event_id = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if not self.server.is_down:
            self.server.ids.append(event_id)
        self.send_response(500 if self.server.is_down else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def finish(self):
        super().finish()
        self.left_open = self, open(os.devnull)  # until garbage is collected
        time.sleep(0.1)

    def log_message(self, *arguments):
        pass

class ToFile:
    @pytest.fixture
    def options(self, tmp_path):
        return {"path": str(tmp_path / "ids.txt"), **self.default_options}

    @pytest.fixture
    def delivered_ids(self, tmp_path):
        return lambda: (tmp_path / "ids.txt").read_text().split()

class WithoutTouches(ToFile):
    def gives_up(self, event):
        return event.type == "touch" or not event.data

class ToServer:
    @pytest.fixture
    def server(self):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.ids, server.is_down = [], False
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        yield server
        server.shutdown()
        server.server_close()

    @pytest.fixture
    def options(self, server):
        return {"url": f"http://127.0.0.1:{server.server_port}"}

    @pytest.fixture
    def delivered_ids(self, server):
        return lambda: sorted(set(server.ids))

class ToFailingServer(ToServer):
    @pytest.fixture
    def outage(self, server):
        @contextlib.contextmanager
        def internal_server_error():
            server.is_down = True
            yield
            server.is_down = False

        return internal_server_error

class Co2ToServer(ToServer):
    def expected_ids(self, event):
        return [event.id.upper()] if event.type == "co2" else []

"""


class Case(NamedTuple):
    """The suite of a sink: its base class in SUITES, its arguments, and which rule the sink breaks with which error."""

    base: str
    arguments: str = ""
    rule: str = ""
    error: str = ""


CASES = {
    "FileSink": Case("ToFile", "concurrency=8"),
    "HttpSink": Case("ToFailingServer", "max_call_seconds=20"),
    "DropsMostEvents": Case(
        "Co2ToServer",
        "max_call_seconds=0.5",
        "test_calls_end_in_time_when_the_destination_hangs",
        "AssertionError: a call takes more than 0.5 s; set a timeout in the sink",
    ),
    "GivesUpTouches": Case("WithoutTouches", "concurrency=8"),
    "GivesUpInBatches": Case("WithoutTouches"),
    "GivesUpSilently": Case(
        "ToFile",
        "",
        "test_delivers_a_thousand_events_of_every_type",
        "AssertionError: the sink gave up 900 events where gives_up returns True for 0; if it is meant to give up "
        "events, override gives_up. The last reason was: enough",
    ),
    "CreatesFileInConstructor": Case(
        "ToFile",
        "",
        "test_constructor_has_no_side_effects",
        "AssertionError: the constructor creates files; do that in open or deliver",
    ),
    "StopsAfter500": Case(
        "ToFile",
        "",
        "test_delivers_a_thousand_events_of_every_type",
        "AssertionError: these are missing; if the sink drops some events, override expected_ids",
    ),
    "RequiresData": Case(
        "ToFile",
        "",
        "test_delivers_events_of_unknown_types_and_shapes",
        "AssertionError: AssertionError: no data",
    ),
    "RequiresAscii": Case(
        "ToFile",
        "",
        "test_delivers_events_with_odd_text",
        "AssertionError: UnicodeEncodeError: 'ascii' codec can't encode",
    ),
    "IgnoresRetries": Case(
        "ToFile",
        "",
        "test_delivers_every_event_although_calls_fail_at_random",
        "AssertionError: these are missing; if the sink drops some events, override expected_ids",
    ),
    "AppendsAgain": Case(
        "ToFile",
        "",
        "test_is_idempotent",
        "AssertionError: delivering events again changes the destination (if it must, pass idempotent=False)",
    ),
    "IgnoresStatus": Case(
        "ToFailingServer",
        "",
        "test_raises_when_an_event_cannot_be_delivered",
        "AssertionError: it returned normally during an outage",
    ),
    "IgnoresErrors": Case(
        "ToServer",
        "",
        "test_raises_when_an_event_cannot_be_delivered",
        "AssertionError: it returned normally although it could not connect",
    ),
    "HasNoTimeout": Case(
        "ToServer",
        "max_call_seconds=0.5",
        "test_calls_end_in_time_when_the_destination_hangs",
        "AssertionError: a call takes more than 0.5 s; set a timeout in the sink",
    ),
    "NeverCloses": Case(
        "ToFile",
        "",
        "test_close_releases_what_open_acquired",
        "AssertionError: files or threads are left after each close; their numbers are [",
    ),
    "AcceptsUnknownOptions": Case("ToFile", "", "test_errors_name_the_wrong_option", "Failed: DID NOT RAISE"),
    "HasUntypedOption": Case(
        "ToFile",
        "",
        "test_errors_name_the_wrong_option",
        "AssertionError: option colour accepts any value; annotate it with a type",
    ),
    "HasUndocumentedOption": Case(
        "ToFile",
        "",
        "test_every_option_is_documented",
        "AssertionError: the docstring of HasUndocumentedOption has no line 'name: meaning' for these options; ",
    ),
    "ShowsSecret": Case(
        "ToFile",
        "options={'token': 'not-to-be-seen'}",
        "test_secrets_are_neither_shown_nor_logged",
        "AssertionError: these show a secret; give its option the type Secret, and do not log it",
    ),
    "LogsSecret": Case(
        "ToFile",
        "options={'key': 'not-to-be-seen'}",
        "test_secrets_are_neither_shown_nor_logged",
        "AssertionError: these show a secret; give its option the type Secret, and do not log it",
    ),
    "SharesState": Case(
        "ToFile",
        "concurrency=8",
        "test_concurrent_calls_do_not_interfere",
        "AssertionError: these are missing; if the sink drops some events, override expected_ids",
    ),
}
QUICK_RULES = (
    "test_constructor_has_no_side_effects",
    "test_is_idempotent",
    "test_raises_when_an_event_cannot_be_delivered",
    "test_errors_name_the_wrong_option",
)
"""These are tested with every broken sink, too: that a sink breaks one rule is no reason to fail another."""

SLOW = (
    "test_sinks.py::TestHttpSink::test_delivers_a_thousand_events_of_every_type",
    "test_sinks.py::TestHttpSink::test_delivers_every_event_although_calls_fail_at_random",
)
"""Hundreds of HTTP requests would show nothing that the correct sink with a file does not show."""

BROKEN_PLUGINS = {
    "broken.py": "nonsense\n",
    "two.py": (
        "from receiver import hookimpl\n"
        "@hookimpl\ndef register_sinks(register):\n    register('one', int)\n    register('two', int)\n"
    ),
}
CANNOT_LOAD = {
    "Broken": (
        "plugin='broken.py'",
        "the plugin cannot be loaded: {folder}/broken.py: broken.py:1: NameError: name 'nonsense' is not defined",
    ),
    "Missing": ("plugin='missing.py'", "the plugin cannot be loaded: {folder}/missing.py: no such file"),
    "Ambiguous": ("plugin='two.py'", "select one of the plugin's sink types with type=: one, two"),
    "Unknown": ("plugin='two.py', type='three'", "select one of the plugin's sink types with type=: one, two"),
}
"""Suites whose plugin cannot be tested: their arguments, and the error."""


class Results(NamedTuple):
    """The folder in which pytest ran, and by suite the errors by rule: what an assertion says, or the whole error."""

    folder: Path
    failed: dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What pytest says about all of these suites, in one run."""
    folder = tmp_path_factory.mktemp("suites")
    for file, text in {"sinks.py": PLUGIN, **BROKEN_PLUGINS}.items():
        (folder / file).write_text(text)
    arguments = {name: f"plugin='sinks.py', type='{name}', {case.arguments}" for name, case in CASES.items()}
    arguments |= {name: rest for name, (rest, _) in CANNOT_LOAD.items()}
    bases = {name: f"{case.base}, SinkSuite" for name, case in CASES.items()}
    suites = [f"class Test{name}({bases.get(name, 'SinkSuite')}, {arguments[name]}):\n    pass\n" for name in arguments]
    (folder / "test_sinks.py").write_text(SUITES + "\n".join(suites))
    tests = [f"test_sinks.py::Test{name}" for name, case in CASES.items() if not case.rule]
    for name, case in CASES.items():
        if case.rule:
            tests += [f"test_sinks.py::Test{name}::{rule}" for rule in dict.fromkeys([case.rule, *QUICK_RULES])]
    tests += [f"test_sinks.py::Test{name}::{QUICK_RULES[0]}" for name in CANNOT_LOAD]
    tests += [f"--deselect={test}" for test in SLOW]
    return Results(folder, run_suites(folder, tests))


def run_suites(folder: Path, tests: list[str]) -> dict[str, dict[str, str]]:
    """Run pytest as an author does, and read its report."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    plugins = ("-p", "receiver.testing.fixtures", "-p", "no:cacheprovider", "-p", "no:randomly")
    command = [sys.executable, "-m", "pytest", "-q", *plugins, "--junitxml=results.xml", *tests]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    failed: dict[str, dict[str, str]] = {}
    for case in ElementTree.parse(folder / "results.xml").iter("testcase"):
        suite = str(case.get("classname")).partition(".Test")[2]
        failed.setdefault(suite, {})
        for failure in [*case.iter("failure"), *case.iter("error")]:
            text = failure.get("message") if failure.tag == "failure" else failure.text
            failed[suite][str(case.get("name"))] = str(text)
    return failed


def test_a_correct_sink_passes_every_rule_and_a_broken_one_fails_the_rule_that_it_breaks(results: Results) -> None:
    failed = {name: results.failed[name] for name in CASES}
    assert {name: list(errors) for name, errors in failed.items()} == {
        name: [case.rule] if case.rule else [] for name, case in CASES.items()
    }
    errors = {name: error[: len(CASES[name].error)] for name, rules in failed.items() for error in rules.values()}
    assert errors == {name: case.error for name, case in CASES.items() if case.error}


def test_a_plugin_that_cannot_be_tested_is_reported_in_one_line(results: Results) -> None:
    assert {name: list(results.failed[name].values()) for name in CANNOT_LOAD} == {
        name: [error.format(folder=results.folder)] for name, (_, error) in CANNOT_LOAD.items()
    }


def test_every_rule_is_broken_by_a_sink() -> None:
    rules = {name for name in vars(SinkSuite) if name.startswith("test_")}
    assert {case.rule for case in CASES.values() if case.rule} == rules


def test_a_sample_event_has_the_type_fields_and_labels_that_were_asked_for() -> None:
    at = datetime(2026, 3, 14, 12, tzinfo=UTC)
    wet = event("waterPresent", state="PRESENT", labels={"name": "Cellar"}, at=at)
    assert [(each.quantity, each.value, each.text, each.time) for each in wet.readings()] == [
        ("water_present", 1, "PRESENT", at)
    ]
    assert (wet.labels, wet.received_at, wet.occurred_at) == ({"name": "Cellar"}, at, at)
    warm = event("temperature", value=21.5, samples=3)
    assert (warm.readings()[0].value, warm.data["value"], len(warm.readings())) == (21.5, 21.5, 3)
    humid = event("humidity", relativeHumidity=40)
    assert [each.value for each in humid.readings() if each.quantity == "relative_humidity"] == [40]
    assert [each.type for each in events(len(TYPES))] == list(TYPES)
    assert len(event("temperature", samples=30).readings()) == 30


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: event("temperatur"), f"no event type 'temperatur'; there are: {', '.join(TYPES)}"),
        (
            lambda: event("humidity", relativehumidity=80),
            "events of type humidity have no field 'relativehumidity' (did you mean 'relativeHumidity'?)",
        ),
        (lambda: event("temperature", samples=0), "an event has at least one sample"),
    ],
    ids=["unknown type", "unknown field", "no sample"],
)
def test_an_impossible_sample_event_is_a_clear_error(make: Callable[[], Event], message: str) -> None:
    with pytest.raises(ReceiverError) as raised:
        make()
    assert str(raised.value) == message


def test_sample_events_have_unique_ids_and_the_same_values_each_time() -> None:
    ids = [each.id for each in [*events(1000), *odd_text_events(), *unknown_events()]]
    assert len(set(ids)) == len(ids)
    first, again = ([reading.value for each in events(100) for reading in each.readings()] for _ in range(2))
    assert first == again


def test_a_closed_harness_leaves_no_file_of_its_folder_open(tmp_path: Path) -> None:
    harness = Harness(tmp_path, str(ROOT / "plugins" / "stdout.py"), None, {})
    harness.push(events(100))
    harness.close()
    links = [entry for entry in Path("/proc/self/fd").iterdir() if entry.exists()]
    assert [str(link.readlink()) for link in links if link.resolve().is_relative_to(tmp_path)] == []


@pytest.mark.parametrize("folder", ["o'brien", 'the "new" one', "back\\slash", "høne 🐔"])
def test_a_plugin_can_be_tested_in_a_folder_of_any_name(folder: str, tmp_path: Path) -> None:
    plugin = tmp_path / folder / "mine.py"
    plugin.parent.mkdir()
    plugin.write_text((ROOT / "plugins" / "stdout.py").read_text().replace('register("stdout"', 'register("mine"'))
    harness = Harness(tmp_path, str(plugin), None, {})
    assert harness.type.name == "mine"
    harness.close()


def test_the_fixtures_push_events_of_every_type_through_a_running_receiver(
    start_receiver: StartReceiver,
    events_of_every_type: list[Event],
    signed_push: Callable[[Event], tuple[dict[str, str], bytes]],
) -> None:
    receiver = start_receiver()
    for each in events_of_every_type:
        headers, body = signed_push(each)
        assert receiver.push(body, headers) == (200, "accepted")
    wait_until(lambda: {row["event_type"] for row in receiver.rows()} == set(TYPES))


def test_a_frozen_clock_moves_only_when_it_is_moved(frozen_clock: time_machine.Traveller) -> None:
    before = time.time()
    assert time.time() == before
    frozen_clock.shift(3600)
    assert time.time() == before + 3600


def test_a_metric_that_does_not_exist_is_an_error_and_one_without_a_value_yet_is_0(
    start_receiver: StartReceiver,
) -> None:
    receiver = start_receiver()
    assert receiver.metric("receiver_unrouted_events") == 0
    assert receiver.metric('receiver_pushes_total{code="400",result="wrong secret"}') == 0
    assert receiver.metric('receiver_deliveries_total{sink="not yet"}') == 0
    for name, problem in {
        "receiver_unrouted": "there is no metric 'receiver_unrouted' (did you mean 'receiver_unrouted_events'?)",
        'receiver_deliveries{sink="archive"}': "there is no metric 'receiver_deliveries' "
        "(did you mean 'receiver_deliveries_total'?)",
        "receiver_deliveries_total": "the metric 'receiver_deliveries_total' has labels; add them",
    }.items():
        with pytest.raises(LookupError, match=re.escape(problem)):
            receiver.metric(name)


STARTS_A_SERVER = """
from receiver.testing.postgresql import start_server
server = start_server({})
with server.frozen():
    print(server.folder, flush=True)
    input()
"""


def test_a_postgresql_server_ends_with_the_process_that_started_it_however_that_ends() -> None:
    command = [sys.executable, "-c", STARTS_A_SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as starter:
        assert starter.stdout
        folder = Path(starter.stdout.readline().strip())
        server = psutil.Process(int((folder / "postmaster.pid").read_text().split()[0]))
        starter.kill()
    wait_until(lambda: not is_running(server) and not folder.exists(), what="the end of the server")
