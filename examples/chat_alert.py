"""The `chat_alert` sink: tells a chat where there is water, and when this receiver itself needs somebody.

It posts `{"text": …}` to an incoming webhook. Slack defined this format, and others take it as well:
https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks
https://developers.mattermost.com/integrate/webhooks/incoming/
https://docs.rocket.chat/docs/rocketchat-marketplace-integrations
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from urllib3 import BaseHTTPResponse, PoolManager, Timeout
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url

from receiver import Event, GiveUp, Pause, Reading, Retry, Secret, hookimpl

CONNECT_SECONDS = 5.0
READ_SECONDS = 5.0
REFUSED_TRIES = 3
"""How often a message that the chat refuses is tried before it is given up."""
RETRY_AFTER_AT_MOST = 3600.0
QUIET_SECONDS = 3600.0
"""For so long the chat hears nothing more about the same trouble of the same sink."""
NAME_LENGTH = 80
REASON_LENGTH = 300

REVOKED = {
    401: "it refuses us",
    403: "it forbids us",
    404: "there is no such webhook, or no such channel",
    410: "the channel is archived, or the webhook was revoked",
}
"""What no other message would change: https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks"""


@dataclass
class ChatAlert:
    """Posts a message to a chat when a sensor finds water; also when a sink is paused, or an event is given up on.

    The webhook is that of Slack, Mattermost, Rocket.Chat or another service that takes {"text": …}. Each message ends
    with the id of its event, for `python -m receiver explain`; when the same one comes twice, the chat had it but its
    answer was lost.

    webhook_url: the address that the chat service gave out; whoever knows it can post.
    dry: tell also when it is dry again.
    max_age_hours: what happened longer ago is told to nobody. Such events are normal: a sensor or gateway comes back
        after an outage, or somebody replays.
    """

    webhook_url: Secret
    dry: bool = True
    max_age_hours: float = 6.0

    def __post_init__(self) -> None:
        check_url(self.webhook_url)
        if not 0 < self.max_age_hours < math.inf:
            raise ValueError("max_age_hours must be more than 0")
        timeout = Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
        self._http = PoolManager(timeout=timeout, retries=False)
        self._logger = logging.getLogger(__name__)
        self._name = ""
        self._told: dict[tuple[str, str], tuple[float, int]] = {}

    @hookimpl
    def open(self, name: str, logger: logging.Logger) -> None:
        self._name, self._logger = name, logger

    @hookimpl
    def deliver(self, event: Event, attempt: int) -> None:
        """Come back when the chat has taken the message, or when there is none to send."""
        for reading in event.readings():
            if reading.quantity != "water_present" or not (reading.value or self.dry):
                continue
            age = datetime.now(UTC) - reading.time
            if age.total_seconds() > self.max_age_hours * 3600:
                self._logger.info("nobody is told of event %s: it is %s old", event.id, str(age).partition(".")[0])
                continue
            judge(self._post(message(event, reading)), attempt)

    @hookimpl
    def sink_paused(self, sink: str, reason: str) -> None:
        if sink != self._name:  # who cannot talk to the chat cannot tell it so
            self._alert("paused", sink, f"⏸️ Sink {plain(sink)} is paused: {plain(reason, REASON_LENGTH)}")

    @hookimpl
    def delivery_died(self, event: Event, sink: str, reason: str) -> None:
        text = f"✉️ Sink {plain(sink)} gave up event {event.id}: {plain(reason, REASON_LENGTH)}"
        self._alert("died", sink, f"{text}. `python -m receiver dead list` shows all")

    @hookimpl
    def close(self) -> None:
        self._http.clear()

    def _alert(self, what: str, sink: str, text: str) -> None:
        """Tell of trouble, unless the chat heard of the same just now: then count, and say so the next time.

        What fails is not tried again. The receiver logs it, and keeps what it is about.
        """
        now = time.monotonic()
        told_at, left_out = self._told.get((what, sink), (-math.inf, 0))
        if now - told_at < QUIET_SECONDS:
            self._told[what, sink] = (told_at, left_out + 1)
            return
        self._told[what, sink] = (now, left_out + 1)
        judge(self._post(f"{text} ({left_out} more since the last message)" if left_out else text), 1)
        self._told[what, sink] = (now, 0)

    def _post(self, text: str) -> BaseHTTPResponse:
        """The answer of the chat. Its body is not waited for, since it may never end."""
        try:
            response = self._http.request(
                "POST",
                self.webhook_url.get_secret_value(),
                json={"text": text},
                redirect=False,
                preload_content=False,
            )
            response.close()
        except (HTTPError, OSError) as error:
            raise Retry(f"no answer from the chat: {type(error).__name__}") from None  # its text holds the webhook
        return response


@hookimpl
def register_sinks(register: Callable[[str, type], None]) -> None:
    register("chat_alert", ChatAlert)


def check_url(url: Secret) -> None:
    """Refuse what is no address. The value is a secret, so no message may quote it."""
    try:
        parts = parse_url(url.get_secret_value())
    except HTTPError:
        parts = None
    if parts is None or parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError("webhook_url must begin with https:// and name a host")


def message(event: Event, reading: Reading) -> str:
    """What people read. The name of a device is the label `name`, if the Data Connector includes it."""
    where = plain(event.labels.get("name") or event.device_id or "an unknown device")
    what = "💧 Water at" if reading.value else "✅ Dry again at"
    return f"{what} {where}, {reading.time:%Y-%m-%d %H:%M} UTC (event {event.id})"


def plain(text: str, length: int = NAME_LENGTH) -> str:
    """Text from elsewhere as one bounded line in which a chat finds no markup and nobody to call.

    https://docs.slack.dev/messaging/formatting-message-text#escaping
    """
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    line = line if len(line) <= length else f"{line[: length - 1]}…"
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "@\u2060")


def judge(response: BaseHTTPResponse, attempt: int) -> None:
    """Come back for 2xx; else raise what the answer asks for."""
    status = response.status
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        raise Pause(f"HTTP {status}: the chat redirects, which is not followed; set webhook_url to where it leads")
    if status in REVOKED:
        raise Pause(f"HTTP {status}: {REVOKED[status]}")
    wait = response.headers.get("Retry-After", "")
    if status in (429, 503) and wait.isascii() and wait.isdigit():
        raise Pause(f"HTTP {status}: the chat asks to wait", min(float(wait), RETRY_AFTER_AT_MOST))
    if 400 <= status < 500 and status not in (408, 425, 429) and attempt >= REFUSED_TRIES:
        raise GiveUp(f"HTTP {status}: the chat refuses this message")
    raise Retry(f"HTTP {status}")
