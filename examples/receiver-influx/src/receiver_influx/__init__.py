"""The `influx` sink: writes readings to InfluxDB, or to another database that accepts its line protocol over HTTP."""

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
MAX_REJECTIONS = 3
"""The attempt at which an event that the database rejects is given up."""
MAX_RETRY_AFTER_SECONDS = 3600.0
MAX_ERROR_BYTES = 4096
MAX_ERROR_CHARACTERS = 300

NAME = re.compile("[A-Za-z][A-Za-z0-9_.-]*")
PAUSING = {
    401: "it rejects the token",
    403: "the token does not allow this",
    404: "there is no such bucket, organisation or path",
}


@dataclass
class Influx:
    """Writes each reading as a point to InfluxDB 2 or 3, VictoriaMetrics, Telegraf, or another /api/v2/write.

    The quantity is the field; the device id and the configured labels are tags. A point that is written again
    overwrites itself.

    url: the server; /api/v2/write is appended.
    bucket: the bucket, or the database, to write to.
    org: the organisation, if the server has several.
    token: the API token, if the server needs one.
    measurement: the measurement (the table) of all points.
    label_tags: labels that become tags, called label_NAME. With other tags a point is a different point, so do not
        change them later.
    """

    url: str = field(repr=False)
    bucket: str
    org: str = ""
    token: Secret | None = None
    measurement: str = "readings"
    label_tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        base = base_url(self.url)
        if not NAME.fullmatch(self.measurement):
            raise ValueError("measurement must be letters, digits, '_', '.' or '-', a letter first")
        parameters = {"bucket": self.bucket, "org": self.org, "precision": "ns"}
        query = urlencode({name: value for name, value in parameters.items() if value})
        self._url = f"{base}/api/v2/write?{query}"
        self._headers = {"content-type": "text/plain; charset=utf-8", "user-agent": "receiver-influx"}
        if self.token is not None:
            self._headers["authorization"] = f"Token {check_token(self.token)}"
        timeout = Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
        self._http = PoolManager(timeout=timeout, retries=False)

    @hookimpl
    def open(self, name: str, logger: logging.Logger) -> None:
        logger.info("sink %s writes to bucket %s", name, self.bucket)

    @hookimpl
    def deliver_batch(self, events: Sequence[Event], attempts: Sequence[int]) -> None:
        """Write the readings of all events in one request.

        When the database rejects a point it may still have written the others (a "partial write"). The receiver then
        delivers the events one by one: points that were written overwrite themselves, and only an event that is
        rejected alone, at its third attempt or later, is given up.
        """
        readings = [(event, reading) for event in events for reading in event.readings()]
        lines = [line(self.measurement, event, reading, self.label_tags) for event, reading in readings]
        if lines:
            judge(*self._post("\n".join(lines)), last_attempt=len(events) == 1 and attempts[0] >= MAX_REJECTIONS)

    @hookimpl
    def close(self) -> None:
        self._http.clear()

    def _post(self, body: str) -> tuple[BaseHTTPResponse, bytes]:
        """The response, and the beginning of its body."""
        try:
            response = self._http.request(
                "POST",
                self._url,
                body=body.encode(),
                headers=self._headers,
                redirect=False,
                preload_content=False,
            )
            beginning = response.read1(MAX_ERROR_BYTES)
            response.close()
        except (HTTPError, OSError) as error:
            raise Retry(f"no response from the database: {type(error).__name__}") from None
        return response, beginning


@hookimpl
def register_sinks(register: Callable[[str, type], None]) -> None:
    register("influx", Influx)


def base_url(url: str) -> str:
    """The URL of the server without a slash at its end. Raises ValueError if it cannot be used."""
    try:
        parts = parse_url(url)
    except HTTPError:
        parts = None
    if parts is None or parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError("url must begin with http:// or https:// and name a host")
    if parts.auth or parts.query or parts.fragment:
        raise ValueError("url must not contain a user name, '?' or '#'; use the other options")
    return url.rstrip("/")


def check_token(token: Secret) -> str:
    """The text of a token that can be sent in a header. Raises ValueError for others."""
    text = token.get_secret_value()
    if not (text.isascii() and text.isprintable()):
        raise ValueError("token must be ASCII without line ends")
    return text


def judge(response: BaseHTTPResponse, body: bytes, *, last_attempt: bool) -> None:
    """Return if all points are written; else raise Retry, Pause or GiveUp, as the status asks for.

    https://docs.influxdata.com/influxdb/v2/write-data/troubleshoot/
    """
    status = response.status
    if status in (200, 204):
        return
    if 300 <= status < 400:
        raise Pause(f"HTTP {status}: redirects are not followed; set url to the target")
    if status in PAUSING:
        raise Pause(f"HTTP {status}: {PAUSING[status]}")
    wait = response.headers.get("Retry-After", "")
    if status in (429, 503) and wait.isascii() and wait.isdigit():
        raise Pause(f"HTTP {status}: it asks us to wait", min(float(wait), MAX_RETRY_AFTER_SECONDS))
    reason = f"HTTP {status}: {error_in(body)}"
    if last_attempt and status in (400, 413, 422):
        raise GiveUp(reason)
    raise Retry(reason)


def error_in(body: bytes) -> str:
    """The error in a response; it quotes the point, never the token."""
    try:
        error = json.loads(body)
    except (ValueError, RecursionError):
        return "it does not say why"
    text = error.get("message") or error.get("error") if isinstance(error, dict) else None
    return text[:MAX_ERROR_CHARACTERS] if isinstance(text, str) else "it does not say why"
