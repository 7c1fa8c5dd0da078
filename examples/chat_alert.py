"""The `chat_alert` sink: posts to a chat when a sensor detects water or falls silent, and when a sink has a problem.

It posts `{"text": …}` to an incoming webhook. Slack defined this format, and others accept it as well:
https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks
https://developers.mattermost.com/integrate/webhooks/incoming/
https://docs.rocket.chat/docs/rocketchat-marketplace-integrations
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from urllib3 import BaseHTTPResponse, PoolManager, Timeout
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url

from receiver import Event, GiveUp, Incident, Pause, Reading, Retry, Secret, hookimpl

CONNECT_SECONDS = 5.0
READ_SECONDS = 5.0
MAX_REJECTIONS = 3
"""The attempt at which a message that the chat rejects is given up."""
MAX_RETRY_AFTER_SECONDS = 3600.0
ALERT_INTERVAL_SECONDS = 3600.0
"""The shortest time between two messages about the same problem of the same sink."""
COLLECT_SECONDS = 20.0
"""How long incidents are collected for one message: a storm is one message."""
REPEAT_SECONDS = 60.0
"""After a message about incidents that failed."""
MAX_INCIDENTS = 10
"""How many incidents one message describes; of further ones it gives the number."""
MAX_NAME_CHARACTERS = 80
MAX_REASON_CHARACTERS = 300

PAUSING = {
    401: "it rejects our credentials",
    403: "it denies access",
    404: "there is no such webhook, or no such channel",
    410: "the channel is archived, or the webhook was revoked",
}
"""Statuses that are about the webhook, not the message: no other message would be accepted either."""


@dataclass
class ChatAlert:
    """Posts a message to a chat when a sensor detects water, when sensors fall silent and are heard again, when a sink
    is paused, and when a delivery is given up.

    The webhook is that of Slack, Mattermost, Rocket.Chat or another service that accepts {"text": …}. Each message
    about water ends with the id of its event, for `python -m receiver explain`. A message can come twice if the
    response to the first was lost.

    webhook_url: the URL of the incoming webhook. It is a secret: whoever knows it can post.
    dry: also post when the sensor is dry again.
    max_age_hours: do not post about readings that are older. Old readings are normal: a sensor or gateway sends them
        after an outage, and a replay repeats them.
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
        self._alerts: dict[tuple[str, str], tuple[float, int]] = {}
        """For each problem of a sink: when the last message was sent, and how many alerts were omitted since."""
        self._lock = threading.Lock()
        self._incidents: list[Incident] = []
        self._timer: threading.Timer | None = None

    @hookimpl
    def open(self, name: str, logger: logging.Logger) -> None:
        self._name, self._logger = name, logger

    @hookimpl
    def deliver(self, event: Event, attempt: int) -> None:
        """Return when the chat has accepted the message, or when there is nothing to post."""
        for reading in event.readings():
            if reading.quantity != "water_present" or not (reading.value or self.dry):
                continue
            age = datetime.now(UTC) - reading.time
            if age.total_seconds() > self.max_age_hours * 3600:
                self._logger.info("event %s is not posted: it is %s old", event.id, str(age).partition(".")[0])
                continue
            judge(self._post(message(event, reading)), attempt)

    @hookimpl
    def sink_paused(self, sink: str, reason: str) -> None:
        if sink != self._name:  # while it is paused itself, it cannot post that
            self._alert("paused", sink, f"⏸️ Sink {plain(sink)} is paused: {plain(reason, MAX_REASON_CHARACTERS)}")

    @hookimpl
    def delivery_died(self, event: Event, sink: str, reason: str) -> None:
        text = f"✉️ Sink {plain(sink)} gave up event {event.id}: {plain(reason, MAX_REASON_CHARACTERS)}"
        self._alert("died", sink, f"{text}. `python -m receiver dead-letters list` shows all")

    @hookimpl
    def incident_opened(self, incident: Incident) -> None:
        self._collect(incident)

    @hookimpl
    def incident_closed(self, incident: Incident) -> None:
        self._collect(incident)

    @hookimpl
    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._post_incidents()
        self._http.clear()

    def _collect(self, incident: Incident) -> None:
        """Post about this incident soon, together with those that come until then."""
        with self._lock:
            self._incidents.append(incident)
            if self._timer is None:
                self._start_timer(COLLECT_SECONDS)

    def _start_timer(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._post_incidents)
        self._timer.daemon = True
        self._timer.start()

    def _post_incidents(self) -> None:
        with self._lock:
            incidents, self._incidents, self._timer = self._incidents, [], None
        if not incidents:
            return
        try:
            judge(self._post(summary(incidents)), 1)
        except (Retry, Pause, GiveUp) as problem:
            self._logger.warning("a message about %d incidents is repeated: %s", len(incidents), problem)
            with self._lock:
                self._incidents = incidents + self._incidents
                if self._timer is None:
                    self._start_timer(REPEAT_SECONDS)

    def _alert(self, problem: str, sink: str, text: str) -> None:
        """Post about a problem, unless there was a message about it just now: then count it for the next message.

        A failed post is not retried; the receiver logs it, and the next message counts it.
        """
        now = time.monotonic()
        posted_at, omitted = self._alerts.get((problem, sink), (-math.inf, 0))
        if now - posted_at < ALERT_INTERVAL_SECONDS:
            self._alerts[problem, sink] = (posted_at, omitted + 1)
            return
        self._alerts[problem, sink] = (now, omitted + 1)
        judge(self._post(f"{text} ({omitted} more since the last message)" if omitted else text), 1)
        self._alerts[problem, sink] = (now, 0)

    def _post(self, text: str) -> BaseHTTPResponse:
        """The response of the chat. Its body is not read, since it may never end."""
        try:
            response = self._http.request(
                "POST",
                self.webhook_url.get_secret_value(),
                json={"text": text},
                redirect=False,
                preload_content=False,
            )
            response.close()
        except (HTTPError, OSError) as error:  # its text contains the URL
            raise Retry(f"no response from the chat: {type(error).__name__}") from None
        return response


@hookimpl
def register_sinks(register: Callable[[str, type], None]) -> None:
    register("chat_alert", ChatAlert)


def check_url(url: Secret) -> None:
    """Raise ValueError for an invalid URL, without the URL in it."""
    try:
        parts = parse_url(url.get_secret_value())
    except HTTPError:
        parts = None
    if parts is None or parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError("webhook_url must begin with https:// and name a host")


def message(event: Event, reading: Reading) -> str:
    """The text to post. The name of a device is the label `name`, if the Data Connector includes it."""
    where = plain(event.labels.get("name") or event.device_id or "an unknown device")
    what = "💧 Water at" if reading.value else "✅ Dry again at"
    return f"{what} {where}, {reading.time:%Y-%m-%d %H:%M} UTC (event {event.id})"


def summary(incidents: Sequence[Incident]) -> str:
    """One message about incidents that were opened or closed."""
    lines = []
    for incident in incidents[:MAX_INCIDENTS]:
        names = ", ".join(plain(name) for name in list(incident.sensors.values())[:5])
        more = f" and {len(incident.sensors) - 5} more" if len(incident.sensors) > 5 else ""
        if incident.closed:
            lines.append(f"✅ Closed: {names}{more} (incident {incident.id})")
        else:
            of = f": {names}{more}" if len(incident.sensors) > 1 else ""
            lines.append(f"🔇 {plain(incident.reason, MAX_REASON_CHARACTERS)}{of} (incident {incident.id})")
    if len(incidents) > MAX_INCIDENTS:
        lines.append(f"… and {len(incidents) - MAX_INCIDENTS} more; `python -m receiver sensors incidents` shows all")
    return "\n".join(lines)


def plain(text: str, length: int = MAX_NAME_CHARACTERS) -> str:
    """Text of others in one line of limited length, without markup and mentions.

    https://docs.slack.dev/messaging/formatting-message-text#escaping
    """
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    line = line if len(line) <= length else f"{line[: length - 1]}…"
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "@\u2060")


def judge(response: BaseHTTPResponse, attempt: int) -> None:
    """Return for 2xx; else raise Retry, Pause or GiveUp, as the status asks for."""
    status = response.status
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        raise Pause(f"HTTP {status}: redirects are not followed; set webhook_url to the target")
    if status in PAUSING:
        raise Pause(f"HTTP {status}: {PAUSING[status]}")
    wait = response.headers.get("Retry-After", "")
    if status in (429, 503) and wait.isascii() and wait.isdigit():
        raise Pause(f"HTTP {status}: the chat asks us to wait", min(float(wait), MAX_RETRY_AFTER_SECONDS))
    if 400 <= status < 500 and status not in (408, 425, 429) and attempt >= MAX_REJECTIONS:
        raise GiveUp(f"HTTP {status}: the chat rejects this message")
    raise Retry(f"HTTP {status}")
