"""The `chat_alert` sink. To run these tests: make test TESTS=examples/test_chat_alert.py"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import time_machine
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from examples import chat_alert
from examples.chat_alert import ChatAlert
from receiver import Event, GiveUp, Pause, Retry, Secret
from receiver.testing import SinkSuite, event, network
from receiver.testing.fixtures import StartReceiver
from receiver.testing.running import wait_until

PATH = "/services/T000/B000/not-to-be-seen"
NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)


class Chat:
    """A chat service. `answers` are its next ones, status and headers; then it says 200 and keeps the messages."""

    def __init__(self, server: HTTPServer) -> None:
        self.url = server.url_for(PATH)
        self.messages: list[str] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.down = False
        server.expect_request(PATH, method="POST").respond_with_handler(self.take)

    def take(self, request: Request) -> Response:
        if self.down:
            return Response("rollup_error", 500)
        status, headers = self.answers.pop(0) if self.answers else (200, {})
        if status == 200:
            given = json.loads(request.get_data())
            assert list(given) == ["text"]
            self.messages.append(given["text"])
        return Response("ok" if status == 200 else "not ok", status, headers)

    @contextmanager
    def broken(self) -> Iterator[None]:
        self.down = True
        yield
        self.down = False


@pytest.fixture
def chat(httpserver: HTTPServer) -> Chat:
    return Chat(httpserver)


class TestChatAlert(SinkSuite, plugin="examples/chat_alert.py", repeatable=False, concurrency=4):
    """A repeat is told again: a chat cannot be asked what it knows, and told twice is better than never."""

    @pytest.fixture
    def options(self, chat: Chat) -> dict[str, object]:
        return {"webhook_url": chat.url}

    @pytest.fixture
    def arrived(self, chat: Chat) -> Callable[[], list[str]]:
        return lambda: [event_id for text in chat.messages for event_id in re.findall(r"\(event (\S+)\)$", text)]

    @pytest.fixture
    def broken(self, chat: Chat) -> Callable[[], object]:
        return chat.broken

    def traces(self, event: Event) -> Collection[str]:
        return [event.id] if event.type == "waterPresent" else []


def opened(chat: Chat, **options: object) -> ChatAlert:
    sink = ChatAlert(webhook_url=Secret(chat.url), **options)  # type: ignore[arg-type]
    sink.open("chat", logging.getLogger("sink.chat"))
    return sink


def asked(call: Callable[[], object]) -> tuple[type | None, str, float | None]:
    """What the sink asks for by raising; nothing when it comes back."""
    try:
        call()
    except (Retry, Pause, GiveUp) as signal:
        return type(signal), str(signal), signal.after
    return None, "", None


@time_machine.travel(NOON, tick=False)
def test_water_and_dry_again_are_told_with_name_and_time(chat: Chat) -> None:
    sink = opened(chat)
    wet, dry = (event("waterPresent", state=state, labels={"name": "Cellar"}) for state in ("PRESENT", "NOT_PRESENT"))
    for each in (wet, dry, event("temperature"), event("waterPresent", state="DAMP")):
        sink.deliver(each, attempt=1)
    assert chat.messages == [
        f"💧 Water at Cellar, 2026-03-14 12:00 UTC (event {wet.id})",
        f"✅ Dry again at Cellar, 2026-03-14 12:00 UTC (event {dry.id})",
    ]


def test_dry_again_is_not_told_where_nobody_wants_it(chat: Chat) -> None:
    opened(chat, dry=False).deliver(event("waterPresent", state="NOT_PRESENT"), attempt=1)
    assert chat.messages == []


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        ({"name": "Kjøleskap 冷蔵庫 🧊"}, "Kjøleskap 冷蔵庫 🧊"),
        ({"name": "<!channel> R&D"}, "&lt;!channel&gt; R&amp;D"),
        ({"name": "@here\r\nand\u2028@all"}, "@\u2060here and @\u2060all"),
        ({"name": "long " * 100}, "long " * 15 + "long…"),
        ({"name": ""}, "{device}"),
        ({}, "{device}"),
    ],
)
def test_a_name_is_one_short_line_that_calls_nobody(labels: dict[str, str], name: str, chat: Chat) -> None:
    wet = event("waterPresent", state="PRESENT", labels=labels)
    opened(chat).deliver(wet, attempt=1)
    [text] = chat.messages
    assert text.startswith(f"💧 Water at {name.format(device=wet.device_id)}, 20")


@pytest.mark.parametrize(("hours", "told"), [(5.9, True), (6.1, False), (24 * 31, False), (-1, True)])
def test_what_happened_long_ago_wakes_nobody(
    hours: float, told: bool, chat: Chat, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sink.chat")
    old = event("waterPresent", state="PRESENT", at=datetime.now(UTC) - timedelta(hours=hours))
    opened(chat).deliver(old, attempt=1)
    left_out = [record.getMessage() for record in caplog.records if old.id in record.getMessage()]
    assert (len(chat.messages), len(left_out)) == ((1, 0) if told else (0, 1))


@pytest.mark.parametrize(
    ("status", "headers", "attempt", "expected"),
    [
        (200, {}, 1, (None, "", None)),
        (302, {"Location": "/elsewhere"}, 1, (Pause, "HTTP 302: the chat redirects, which is not followed; …", None)),
        (400, {}, 1, (Retry, "HTTP 400", None)),
        (400, {}, 3, (GiveUp, "HTTP 400: the chat refuses this message", None)),
        (403, {}, 9, (Pause, "HTTP 403: it forbids us", None)),
        (404, {}, 1, (Pause, "HTTP 404: there is no such webhook, or no such channel", None)),
        (410, {}, 1, (Pause, "HTTP 410: the channel is archived, or the webhook was revoked", None)),
        (429, {"Retry-After": "30"}, 1, (Pause, "HTTP 429: the chat asks to wait", 30.0)),
        (429, {"Retry-After": "9" * 30}, 1, (Pause, "HTTP 429: the chat asks to wait", 3600.0)),
        (429, {}, 9, (Retry, "HTTP 429", None)),
        (500, {}, 9, (Retry, "HTTP 500", None)),
        (503, {"Retry-After": "soon"}, 1, (Retry, "HTTP 503", None)),
    ],
)
def test_every_answer_has_its_outcome(
    status: int,
    headers: dict[str, str],
    attempt: int,
    expected: tuple[type | None, str, float | None],
    chat: Chat,
    httpserver: HTTPServer,
) -> None:
    chat.answers = [(status, headers)]
    kind, text, after = asked(partial(opened(chat).deliver, event("waterPresent", state="PRESENT"), attempt))
    assert (kind, text.replace("set webhook_url to where it leads", "…"), after) == expected
    assert len(httpserver.log) == 1


def test_no_error_shows_the_webhook(chat: Chat) -> None:
    sink = opened(chat)
    with network.refused():
        kind, text, _ = asked(partial(sink.deliver, event("waterPresent", state="PRESENT"), 1))
    assert (kind, text) == (Retry, "no answer from the chat: NewConnectionError")
    assert "not-to-be-seen" not in repr(sink)


@pytest.mark.parametrize(
    "url", ["", "hooks.example.com/not-to-be-seen", "ftp://a/not-to-be-seen", "https://[not-to-be"]
)
def test_what_is_no_address_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ValueError, match=r"^webhook_url must begin with https:// and name a host$"):
        ChatAlert(webhook_url=Secret(url))


def test_ten_thousand_dead_letters_are_one_message_an_hour(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    sink, dead = opened(chat), event("touch")
    for _ in range(10_000):
        sink.delivery_died(dead, "erp", "HTTP 422: it refuses <this> event")
    sink.delivery_died(dead, "archive", "the disk is full")
    monkeypatch.setattr(chat_alert, "QUIET_SECONDS", 0)  # an hour later
    sink.delivery_died(dead, "erp", "HTTP 400")
    told = f"gave up event {dead.id}:"
    hint = ". `python -m receiver dead list` shows all"
    assert chat.messages == [
        f"✉️ Sink erp {told} HTTP 422: it refuses &lt;this&gt; event{hint}",
        f"✉️ Sink archive {told} the disk is full{hint}",
        f"✉️ Sink erp {told} HTTP 400{hint} (9999 more since the last message)",
    ]


def test_an_alert_that_the_chat_does_not_take_is_counted_and_not_repeated(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = opened(chat)
    chat.answers = [(500, {})]
    assert asked(partial(sink.sink_paused, "erp", "HTTP 401")) == (Retry, "HTTP 500", None)
    sink.sink_paused("erp", "HTTP 401")
    monkeypatch.setattr(chat_alert, "QUIET_SECONDS", 0)  # an hour later
    sink.sink_paused("erp", "HTTP 403")
    assert chat.messages == ["⏸️ Sink erp is paused: HTTP 403 (2 more since the last message)"]


def test_its_own_pause_is_not_told(chat: Chat) -> None:
    opened(chat).sink_paused("chat", "HTTP 429: the chat asks to wait")
    assert chat.messages == []


CONFIG = """
[receiver]
plugins = ["examples/chat_alert.py"]
[sinks.chat]
type = "chat_alert"
webhook_url = { env = "CHAT_WEBHOOK" }
filter = { event_types = ["waterPresent"] }
[sinks.erp]
type = "webhook"
url = "http://127.0.0.1:9/"
"""


def test_a_running_receiver_tells_of_water_and_of_a_paused_sink(chat: Chat, start_receiver: StartReceiver) -> None:
    plugin = str(Path("examples/chat_alert.py").absolute())
    receiver = start_receiver(CONFIG.replace("examples/chat_alert.py", plugin), CHAT_WEBHOOK=chat.url)
    wet = event("waterPresent", state="PRESENT", labels={"name": "Cellar"})
    assert receiver.push(wet.body) == (200, "accepted")
    wait_until(lambda: len(chat.messages) == 2, what="two messages")
    paused, water = sorted(chat.messages)
    assert paused.startswith("⏸️ Sink erp is paused: 127.0.0.1 is at an address that is private")
    assert water.startswith("💧 Water at Cellar, ")
    assert water.endswith(f" UTC (event {wet.id})")
    assert "not-to-be-seen" not in receiver.log
