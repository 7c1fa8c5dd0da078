"""The kit for those who write sinks: a good sink passes all of its rules, one that breaks a rule fails just that."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest
import time_machine
from conftest import ROOT, StartReceiver, wait_until

from receiver.errors import ReceiverError
from receiver.event import TYPES, Event
from receiver.testing import SinkSuite, event, events, odd_texts, unknown_events
from receiver.testing.stage import Stage

PLUGIN = '''
import logging
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from receiver import Secret, hookimpl

logger = logging.getLogger(__name__)

@dataclass
class Good:
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
        self.take(event, attempt)

    def take(self, event, attempt):
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
class Posting:
    """Sends the id of each event to a server.

    url: where to.
    """

    url: str

    @hookimpl
    def deliver(self, event):
        self.post(event.id)

    def post(self, event_id):
        urllib.request.urlopen(self.url, data=event_id.encode(), timeout=5).close()

class Choosy(Posting):
    @hookimpl
    def deliver(self, event):
        if event.type == "co2":
            urllib.request.urlopen(self.url, data=event.id.upper().encode()).close()

class Eager(Good):
    def __post_init__(self):
        super().__post_init__()
        self.path.touch()

class Tiring(Good):
    def take(self, event, attempt):
        if len(self.seen) < 500:
            super().take(event, attempt)

class Narrow(Good):
    def take(self, event, attempt):
        assert event.data, "what is this?"
        super().take(event, attempt)

class Ascii(Good):
    def take(self, event, attempt):
        event.labels.get("name", "").encode("ascii")
        super().take(event, attempt)

class Forgetful(Good):
    def take(self, event, attempt):
        if attempt == 1:
            super().take(event, attempt)

class Repeating(Good):
    def write(self, event_id):
        self.file.write(event_id + "\\n")
        self.file.flush()

class Silent(Posting):
    def post(self, event_id):
        try:
            super().post(event_id)
        except OSError:
            pass

class Patient(Posting):
    def post(self, event_id):
        urllib.request.urlopen(self.url, data=event_id.encode()).close()

class Leaking(Good):
    @hookimpl
    def close(self):
        pass

class Anything(Good):
    def __init__(self, path: Path, **others):
        super().__init__(path)

class Untyped(Good):
    def __init__(self, path: Path, colour="red"):
        """Has an option without a type.

        path: the file.
        colour: of the file.
        """
        super().__init__(path)
    __doc__ = __init__.__doc__

class Mute(Good):
    def __init__(self, path: Path, colour: str = "red"):
        super().__init__(path)

@dataclass
class Showing(Good):
    """Shows its secret.

    path: the file.
    token: the secret.
    """

    token: str = ""

@dataclass
class Chatty(Good):
    """Logs its secret.

    path: the file.
    key: the secret.
    """

    key: Secret = None

    def take(self, event, attempt):
        logger.debug("signing with %s", self.key.get_secret_value())
        super().take(event, attempt)

class Racing(Good):
    def take(self, event, attempt):
        self.current = event.id
        time.sleep(0.0001)
        self.write(self.current)

@hookimpl
def register_sinks(register):
    for cls in (Good, Posting, Choosy, Eager, Tiring, Narrow, Ascii, Forgetful, Repeating,
                Silent, Patient, Leaking, Anything, Untyped, Mute, Showing, Chatty, Racing):
        register(cls.__name__, cls)
'''

SUITES = """
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from receiver.testing import SinkSuite

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.ids.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass

class OnDisk:
    @pytest.fixture
    def options(self, tmp_path):
        return {"path": str(tmp_path / "ids.txt"), **self.given}

    @pytest.fixture
    def arrived(self, tmp_path):
        return lambda: (tmp_path / "ids.txt").read_text().split()

class Online:
    @pytest.fixture
    def server(self):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.ids = []
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        yield server
        server.shutdown()
        server.server_close()

    @pytest.fixture
    def options(self, server):
        return {"url": f"http://127.0.0.1:{server.server_port}"}

    @pytest.fixture
    def arrived(self, server):
        return lambda: sorted(set(server.ids))

class Co2Online(Online):
    def traces(self, event):
        return [event.id.upper()] if event.type == "co2" else []

"""

SINKS: dict[str, tuple[str, str, str | None]] = {
    "Good": ("OnDisk", "concurrency=8", None),
    "Posting": ("Online", "call_seconds=10", None),
    "Choosy": ("Co2Online", "call_seconds=2", "test_it_comes_back_in_time_when_its_destination_hangs"),
    "Eager": ("OnDisk", "", "test_its_constructor_touches_neither_disk_nor_network_and_starts_nothing"),
    "Tiring": ("OnDisk", "", "test_it_takes_a_thousand_events_of_every_type"),
    "Narrow": ("OnDisk", "", "test_it_takes_events_of_types_and_shapes_that_nobody_knows_yet"),
    "Ascii": ("OnDisk", "", "test_it_takes_whatever_text_an_event_holds"),
    "Forgetful": ("OnDisk", "", "test_it_gets_every_event_to_its_destination_although_calls_fail_at_random"),
    "Repeating": ("OnDisk", "", "test_a_repeated_event_changes_nothing"),
    "Silent": ("Online", "call_seconds=10", "test_it_says_so_when_an_event_does_not_get_through"),
    "Patient": ("Online", "call_seconds=2", "test_it_comes_back_in_time_when_its_destination_hangs"),
    "Leaking": ("OnDisk", "", "test_it_can_be_closed_and_opened_again_and_leaves_nothing_behind"),
    "Anything": ("OnDisk", "", "test_a_wrong_option_is_named"),
    "Untyped": ("OnDisk", "", "test_a_wrong_option_is_named"),
    "Mute": ("OnDisk", "", "test_every_option_is_explained"),
    "Showing": ("OnDisk", "options={'token': 'not-to-be-seen'}", "test_no_secret_option_is_shown_or_logged"),
    "Chatty": ("OnDisk", "options={'key': 'not-to-be-seen'}", "test_no_secret_option_is_shown_or_logged"),
    "Racing": ("OnDisk", "concurrency=8", "test_calls_at_once_do_not_get_in_each_others_way"),
}
"""Sink → where it delivers to, what is said of it, and the rule that it breaks."""


def pytest_run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    plugins = ("-p", "receiver.testing.fixtures", "-p", "no:cacheprovider")
    command = [sys.executable, "-m", "pytest", "-q", *plugins, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """By sink, the rules that it fails with what the suite says about it. All suites run in one go."""
    folder = tmp_path_factory.mktemp("sinks")
    (folder / "sinks.py").write_text(PLUGIN)
    suites = [
        f"class Test{name}({base}, SinkSuite, plugin='sinks.py', type='{name}', {said}):\n    pass\n"
        for name, (base, said, _) in SINKS.items()
    ]
    (folder / "test_sinks.py").write_text(SUITES + "\n".join(suites))
    done = pytest_run(folder, "--junitxml=results.xml", "test_sinks.py")
    assert done.returncode == 1, done.stdout
    found: dict[str, dict[str, str]] = {name: {} for name in SINKS}
    for case in ElementTree.parse(folder / "results.xml").iter("testcase"):
        for fault in [*case.iter("failure"), *case.iter("error")]:
            name = str(case.get("classname")).partition(".Test")[2]
            found[name][str(case.get("name"))] = str(fault.get("message"))
    return found


@pytest.mark.parametrize("sink", SINKS)
def test_a_sink_fails_exactly_the_rule_that_it_breaks(sink: str, failed: dict[str, dict[str, str]]) -> None:
    rule = SINKS[sink][2]
    assert list(failed[sink]) == ([rule] if rule else []), failed[sink]


def test_the_suite_says_what_to_do(failed: dict[str, dict[str, str]]) -> None:
    said = {sink: next(iter(rules.values())).splitlines()[0] for sink, rules in failed.items() if rules}
    assert said["Eager"] == "AssertionError: the constructor makes files; do that in open or deliver"
    assert said["Repeating"].endswith("the destination holds events more than once (or say repeatable=False)")
    assert said["Patient"] == "AssertionError: a call takes over 2 s; give it a time-out"
    assert said["Silent"] == "AssertionError: it came back as if it had delivered, but could not connect"
    assert said["Untyped"] == "AssertionError: option colour takes anything; give it a type"
    assert "Failed: DID NOT RAISE" in said["Anything"]


def test_every_rule_is_broken_by_a_sink() -> None:
    rules = {name for name in vars(SinkSuite) if name.startswith("test_")}
    assert {rule for _, _, rule in SINKS.values() if rule} == rules


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("plugin='broken.py'", "the plugin cannot be loaded: {folder}/broken.py: broken.py:1: NameError: "),
        ("plugin='missing.py'", "the plugin cannot be loaded: {folder}/missing.py: no such file"),
        ("plugin='two.py'", "name one of the plugin's types with type=: one, two"),
        ("plugin='two.py', type='three'", "name one of the plugin's types with type=: one, two"),
    ],
)
def test_a_plugin_that_cannot_be_tried_is_one_line(said: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("nonsense\n")
    register = "@hookimpl\ndef register_sinks(register):\n    register('one', int)\n    register('two', int)\n"
    (tmp_path / "two.py").write_text(f"from receiver import hookimpl\n{register}")
    (tmp_path / "test_it.py").write_text(
        f"from receiver.testing import SinkSuite\nclass TestIt(SinkSuite, {said}):\n    pass\n"
    )
    done = pytest_run(tmp_path, "test_it.py", "-k", "explained")
    assert fault.format(folder=tmp_path) in done.stdout
    assert "Traceback" not in done.stdout


def test_an_event_of_any_type_is_made_with_the_fields_and_labels_that_are_asked_for() -> None:
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
    ("make", "why"),
    [
        (lambda: event("temperatur"), "no event type 'temperatur'; there are: "),
        (
            lambda: event("humidity", relativehumidity=80),
            "'relativehumidity' (did you mean 'relativeHumidity'?)",
        ),
        (lambda: event("temperature", samples=0), "an event has at least one sample"),
    ],
)
def test_an_event_that_there_cannot_be_is_said_in_a_line(make: Callable[[], Event], why: str) -> None:
    with pytest.raises(ReceiverError) as raised:
        make()
    assert why in str(raised.value)


def test_sample_events_have_ids_of_their_own_and_the_same_values_each_time() -> None:
    ids = [each.id for each in [*events(1000), *odd_texts(), *unknown_events()]]
    assert len(set(ids)) == len(ids)
    first, again = ([reading.value for each in events(100) for reading in each.readings()] for _ in range(2))
    assert first == again


def test_a_stage_that_was_closed_holds_no_file_of_its_folder_open(tmp_path: Path) -> None:
    stage = Stage(tmp_path, str(ROOT / "plugins" / "stdout.py"), None, {})
    stage.push(events(100))
    stage.close()
    links = [entry for entry in Path("/proc/self/fd").iterdir() if entry.exists()]
    assert [str(link.readlink()) for link in links if link.resolve().is_relative_to(tmp_path)] == []


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


def test_the_clock_stands_until_it_is_moved(clock: time_machine.Traveller) -> None:
    before = time.time()
    assert time.time() == before
    clock.shift(3600)
    assert time.time() == before + 3600
