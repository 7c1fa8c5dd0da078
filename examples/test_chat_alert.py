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
from receiver import Event, GiveUp, Incident, Pause, Retry, Secret
from receiver.incident import Cause
from receiver.testing import SinkSuite, event, network, wait_until
from receiver.testing.fixtures import StartReceiver

PATH = "/services/T000/B000/not-to-be-seen"
NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)


class Chat:
    """A chat service. It gives the next of `responses`, a status and headers, and then accepts every message."""

    def __init__(self, server: HTTPServer) -> None:
        self.url = server.url_for(PATH)
        self.messages: list[str] = []
        self.responses: list[tuple[int, dict[str, str]]] = []
        self.fails = False
        server.expect_request(PATH, method="POST").respond_with_handler(self.respond)

    def respond(self, request: Request) -> Response:
        if self.fails:
            return Response("rollup_error", 500)
        status, headers = self.responses.pop(0) if self.responses else (200, {})
        if status == 200:
            payload = json.loads(request.get_data())
            assert list(payload) == ["text"]
            self.messages.append(payload["text"])
        return Response("ok" if status == 200 else "not ok", status, headers)

    @contextmanager
    def outage(self) -> Iterator[None]:
        self.fails = True
        yield
        self.fails = False


@pytest.fixture
def chat(httpserver: HTTPServer) -> Chat:
    return Chat(httpserver)


class TestChatAlert(SinkSuite, plugin="examples/chat_alert.py", idempotent=False, concurrency=4):
    """A repeated event is posted again: a chat cannot be asked for its messages, and twice is better than never."""

    @pytest.fixture
    def options(self, chat: Chat) -> dict[str, object]:
        return {"webhook_url": chat.url}

    @pytest.fixture
    def delivered_ids(self, chat: Chat) -> Callable[[], list[str]]:
        return lambda: [event_id for text in chat.messages for event_id in re.findall(r"\(event (\S+)\)$", text)]

    @pytest.fixture
    def outage(self, chat: Chat) -> Callable[[], object]:
        return chat.outage

    def expected_ids(self, event: Event) -> Collection[str]:
        return [event.id] if event.type == "waterPresent" else []


def opened(chat: Chat, **options: object) -> ChatAlert:
    sink = ChatAlert(webhook_url=Secret(chat.url), **options)  # type: ignore[arg-type]
    sink.open("chat", logging.getLogger("sink.chat"))
    return sink


def outcome(call: Callable[[], object]) -> tuple[type | None, str, float | None]:
    """What a call raises: type, reason and wait; (None, "", None) if it returns normally."""
    try:
        call()
    except (Retry, Pause, GiveUp) as signal:
        return type(signal), str(signal), signal.after
    return None, "", None


@time_machine.travel(NOON, tick=False)
def test_water_and_dry_again_are_posted_with_name_and_time(chat: Chat) -> None:
    sink = opened(chat)
    wet, dry = (event("waterPresent", state=state, labels={"name": "Cellar"}) for state in ("PRESENT", "NOT_PRESENT"))
    for each in (wet, dry, event("temperature"), event("waterPresent", state="DAMP")):
        sink.deliver(each, attempt=1)
    assert chat.messages == [
        f"💧 Water at Cellar, 2026-03-14 12:00 UTC (event {wet.id})",
        f"✅ Dry again at Cellar, 2026-03-14 12:00 UTC (event {dry.id})",
    ]


def test_dry_again_is_not_posted_if_dry_is_false(chat: Chat) -> None:
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
    ids=["unicode", "markup", "mentions", "long", "empty", "none"],
)
def test_a_name_is_one_short_line_without_markup_and_mentions(labels: dict[str, str], name: str, chat: Chat) -> None:
    wet = event("waterPresent", state="PRESENT", labels=labels)
    opened(chat).deliver(wet, attempt=1)
    [text] = chat.messages
    assert text.startswith(f"💧 Water at {name.format(device=wet.device_id)}, 20")


@pytest.mark.parametrize(("hours", "posted"), [(5.9, True), (6.1, False), (24 * 31, False), (-1, True)])
def test_old_readings_are_logged_and_not_posted(
    hours: float, posted: bool, chat: Chat, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sink.chat")
    old = event("waterPresent", state="PRESENT", at=datetime.now(UTC) - timedelta(hours=hours))
    opened(chat).deliver(old, attempt=1)
    logged = [text for text in caplog.messages if text.startswith(f"event {old.id} is not posted: it is ")]
    assert (len(chat.messages), len(logged)) == ((1, 0) if posted else (0, 1))


@pytest.mark.parametrize(
    ("status", "headers", "attempt", "expected"),
    [
        (200, {}, 1, (None, "", None)),
        (
            302,
            {"Location": "/elsewhere"},
            1,
            (Pause, "HTTP 302: redirects are not followed; set webhook_url to the target", None),
        ),
        (400, {}, 1, (Retry, "HTTP 400", None)),
        (400, {}, 3, (GiveUp, "HTTP 400: the chat rejects this message", None)),
        (403, {}, 9, (Pause, "HTTP 403: it denies access", None)),
        (404, {}, 1, (Pause, "HTTP 404: there is no such webhook, or no such channel", None)),
        (410, {}, 1, (Pause, "HTTP 410: the channel is archived, or the webhook was revoked", None)),
        (429, {"Retry-After": "30"}, 1, (Pause, "HTTP 429: the chat asks us to wait", 30.0)),
        (429, {"Retry-After": "9" * 30}, 1, (Pause, "HTTP 429: the chat asks us to wait", 3600.0)),
        (429, {}, 9, (Retry, "HTTP 429", None)),
        (500, {}, 9, (Retry, "HTTP 500", None)),
        (503, {"Retry-After": "soon"}, 1, (Retry, "HTTP 503", None)),
    ],
)
def test_each_response_has_its_outcome(
    status: int,
    headers: dict[str, str],
    attempt: int,
    expected: tuple[type | None, str, float | None],
    chat: Chat,
    httpserver: HTTPServer,
) -> None:
    chat.responses = [(status, headers)]
    assert outcome(partial(opened(chat).deliver, event("waterPresent", state="PRESENT"), attempt)) == expected
    assert len(httpserver.log) == 1


def test_no_error_shows_the_webhook(chat: Chat) -> None:
    sink = opened(chat)
    with network.refused():
        result = outcome(partial(sink.deliver, event("waterPresent", state="PRESENT"), 1))
    assert result == (Retry, "no response from the chat: NewConnectionError", None)
    assert "not-to-be-seen" not in repr(sink)


@pytest.mark.parametrize(
    "url", ["", "hooks.example.com/not-to-be-seen", "ftp://a/not-to-be-seen", "https://[not-to-be"]
)
def test_an_invalid_url_is_an_error_that_does_not_show_it(url: str) -> None:
    with pytest.raises(ValueError, match=r"^webhook_url must begin with https:// and name a host$"):
        ChatAlert(webhook_url=Secret(url))


def test_ten_thousand_dead_letters_are_one_message_per_hour(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    sink, dead = opened(chat), event("touch")
    for _ in range(10_000):
        sink.delivery_died(dead, "erp", "HTTP 422: it rejects <this> event")
    sink.delivery_died(dead, "archive", "the disk is full")
    monkeypatch.setattr(chat_alert, "ALERT_INTERVAL_SECONDS", 0)  # an hour later
    sink.delivery_died(dead, "erp", "HTTP 400")
    gave_up = f"gave up event {dead.id}:"
    hint = ". `python -m receiver dead-letters list` shows all"
    assert chat.messages == [
        f"✉️ Sink erp {gave_up} HTTP 422: it rejects &lt;this&gt; event{hint}",
        f"✉️ Sink archive {gave_up} the disk is full{hint}",
        f"✉️ Sink erp {gave_up} HTTP 400{hint} (9999 more since the last message)",
    ]


def test_an_alert_that_the_chat_does_not_accept_is_counted_and_not_retried(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = opened(chat)
    chat.responses = [(500, {})]
    assert outcome(partial(sink.sink_paused, "erp", "HTTP 401")) == (Retry, "HTTP 500", None)
    sink.sink_paused("erp", "HTTP 401")
    monkeypatch.setattr(chat_alert, "ALERT_INTERVAL_SECONDS", 0)  # an hour later
    sink.sink_paused("erp", "HTTP 403")
    assert chat.messages == ["⏸️ Sink erp is paused: HTTP 403 (2 more since the last message)"]


def test_its_own_pause_is_not_posted(chat: Chat) -> None:
    opened(chat).sink_paused("chat", "HTTP 429: the chat asks us to wait")
    assert chat.messages == []


CONFIG = """
[receiver]
plugins = ["{plugin}"]
[sinks.chat]
type = "chat_alert"
webhook_url = {{ env = "CHAT_WEBHOOK" }}
filter = {{ event_types = ["waterPresent"] }}
[sinks.erp]
type = "webhook"
url = "http://127.0.0.1:9/"
"""


def test_a_running_receiver_posts_about_water_and_a_paused_sink(chat: Chat, start_receiver: StartReceiver) -> None:
    plugin = Path("examples/chat_alert.py").absolute()
    receiver = start_receiver(CONFIG.format(plugin=plugin), CHAT_WEBHOOK=chat.url)
    wet = event("waterPresent", state="PRESENT", labels={"name": "Cellar"})
    assert receiver.push(wet.body) == (200, "accepted")
    wait_until(lambda: len(chat.messages) == 2, what="two messages")
    paused, water = sorted(chat.messages)
    assert paused.startswith("⏸️ Sink erp is paused: 127.0.0.1 has an address that is private")
    assert water.startswith("💧 Water at Cellar, ")
    assert water.endswith(f" UTC (event {wet.id})")
    assert "not-to-be-seen" not in receiver.log


def incident(number: int, *names: str, closed: bool = False) -> Incident:
    sensors = {f"device{n}": name for n, name in enumerate(names)}
    reason = f"{names[0]} has not been heard since 2026-03-14 11:00 UTC"
    return Incident(number, Cause.DEVICE, "p", sensors, NOON, NOON, NOON if closed else None, reason)


def test_incidents_that_come_together_are_one_message(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_alert, "COLLECT_SECONDS", 0.2)
    sink = ChatAlert(Secret(chat.url))
    for number in range(30):
        sink.incident_opened(incident(number, f"<freezer> {number}"))
    wait_until(lambda: chat.messages)
    (message,) = chat.messages
    assert message.startswith("🔇 &lt;freezer&gt; 0 has not been heard since 2026-03-14 11:00 UTC (incident 0)")
    assert message.endswith("… and 20 more; `python -m receiver sensors incidents` shows all")
    sink.incident_closed(incident(3, *"abcdefg", closed=True))
    wait_until(lambda: len(chat.messages) == 2)
    assert chat.messages[1] == "✅ Closed: a, b, c, d, e and 2 more (incident 3)"
    sink.close()


def test_a_message_about_incidents_that_fails_is_repeated(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_alert, "COLLECT_SECONDS", 0.1)
    monkeypatch.setattr(chat_alert, "REPEAT_SECONDS", 0.1)
    sink = ChatAlert(Secret(chat.url))
    chat.responses = [(500, {}), (429, {}), (403, {})]
    sink.incident_opened(incident(1, "freezer"))
    wait_until(lambda: chat.messages)
    assert "(incident 1)" in chat.messages[0]


def test_incidents_that_wait_are_posted_when_the_sink_closes(chat: Chat) -> None:
    sink = ChatAlert(Secret(chat.url))
    sink.incident_opened(incident(1, "freezer"))
    sink.close()
    assert len(chat.messages) == 1
