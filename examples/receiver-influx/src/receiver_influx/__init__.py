"""The `influx` sink: writes readings to InfluxDB, or to another database that takes its line protocol over HTTP."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlencode

from urllib3 import BaseHTTPResponse, PoolManager, Timeout
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url

from receiver import Event, GiveUp, Pause, Retry, Secret, hookimpl
from receiver_influx.lines import line

CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
REFUSED_TRIES = 3
"""How often an event that the database refuses is tried before it is given up."""
RETRY_AFTER_AT_MOST = 3600.0
ANSWER_BYTES = 4096

NAME = re.compile("[A-Za-z][A-Za-z0-9_.-]*")
PAUSING = {
    401: "it refuses the token",
    403: "the token does not allow this",
    404: "there is no such bucket, organisation or path",
}


@dataclass
class Influx:
    """Writes each reading as a point to InfluxDB 2 or 3, VictoriaMetrics, Telegraf, or what else has /api/v2/write.

    The quantity is the field; the id of the device and the labels of your choice are tags. A point that comes again
    overwrites itself.

    url: the server; /api/v2/write is appended.
    bucket: the bucket, or the database, to write to.
    org: the organisation, where the server has more than one.
    token: the API token, where the server asks for one.
    measurement: the measurement (the table) that all points belong to.
    label_tags: labels that become a tag, label_NAME. With other tags a point is another point, so choose them once.
    """

    url: str = field(repr=False)
    bucket: str
    org: str = ""
    token: Secret | None = None
    measurement: str = "readings"
    label_tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        base = address(self.url)
        if not NAME.fullmatch(self.measurement):
            raise ValueError("measurement must be letters, digits, '_', '.' or '-', a letter first")
        names = {"bucket": self.bucket, "org": self.org, "precision": "ns"}
        self._url = f"{base}/api/v2/write?{urlencode({name: text for name, text in names.items() if text})}"
        self._headers = {"content-type": "text/plain; charset=utf-8", "user-agent": "receiver-influx"}
        if self.token is not None:
            self._headers["authorization"] = f"Token {checked(self.token)}"
        timeout = Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
        self._http = PoolManager(timeout=timeout, retries=False)

    @hookimpl
    def open(self, name: str, logger: logging.Logger) -> None:
        logger.info("sink %s writes to bucket %s", name, self.bucket)

    @hookimpl
    def deliver_batch(self, events: Sequence[Event], attempts: Sequence[int]) -> None:
        """Write the readings of all these events in one request.

        When the database refuses one point, it may have written the others (a "partial write"). What is raised then
        makes the receiver bring the events one by one: those that were written overwrite themselves, and only the one
        that is refused alone, and again, is given up.
        """
        readings = [(event, reading) for event in events for reading in event.readings()]
        lines = [line(self.measurement, event, reading, self.label_tags) for event, reading in readings]
        if lines:
            judge(*self._post("\n".join(lines)), last_try=len(events) == 1 and attempts[0] >= REFUSED_TRIES)

    @hookimpl
    def close(self) -> None:
        self._http.clear()

    def _post(self, body: str) -> tuple[BaseHTTPResponse, bytes]:
        """The answer, and the beginning of its body."""
        try:
            response = self._http.request(
                "POST",
                self._url,
                body=body.encode(),
                headers=self._headers,
                redirect=False,
                preload_content=False,
            )
            beginning = response.read1(ANSWER_BYTES)
            response.close()
        except (HTTPError, OSError) as error:
            raise Retry(f"no answer from the database: {type(error).__name__}") from None
        return response, beginning


@hookimpl
def register_sinks(register: Callable[[str, type], None]) -> None:
    register("influx", Influx)


def address(url: str) -> str:
    """The server's address without a slash at its end. Raises ValueError."""
    try:
        parts = parse_url(url)
    except HTTPError:
        parts = None
    if parts is None or parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError("url must begin with http:// or https:// and name a host")
    if parts.auth or parts.query or parts.fragment:
        raise ValueError("url must not hold a user name, a question mark or '#'; there are options for the rest")
    return url.rstrip("/")


def checked(token: Secret) -> str:
    """The text of a token that can stand in a header. Raises ValueError."""
    text = token.get_secret_value()
    if not (text.isascii() and text.isprintable()):
        raise ValueError("token must be ASCII without line ends")
    return text


def judge(response: BaseHTTPResponse, body: bytes, *, last_try: bool) -> None:
    """Come back when all points are written; else raise what the answer asks for.

    https://docs.influxdata.com/influxdb/v2/write-data/troubleshoot/
    """
    status = response.status
    if status in (200, 204):
        return
    if 300 <= status < 400:
        raise Pause(f"HTTP {status}: it redirects, which is not followed; set url to where it leads")
    if status in PAUSING:
        raise Pause(f"HTTP {status}: {PAUSING[status]}")
    wait = response.headers.get("Retry-After", "")
    if status in (429, 503) and wait.isascii() and wait.isdigit():
        raise Pause(f"HTTP {status}: it asks to wait", min(float(wait), RETRY_AFTER_AT_MOST))
    why = f"HTTP {status}: {reason(body)}"
    if last_try and status in (400, 413, 422):
        raise GiveUp(why)
    raise Retry(why)


def reason(body: bytes) -> str:
    """What the server says is wrong; it quotes the point, never the token."""
    try:
        answer = json.loads(body)
    except ValueError:
        return "it does not say why"
    told = answer.get("message") or answer.get("error") if isinstance(answer, dict) else None
    return told[:300] if isinstance(told, str) else "it does not say why"
