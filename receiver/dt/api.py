"""DT's REST API: the only place that calls it. Raw JSON, one page at a time; no exception of a library leaves it.

A request is repeated when the connection is lost, when DT is overloaded, and when it limits the rate; how long is
bounded. https://developer.disruptive-technologies.com/api
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlencode

import jwt

from receiver.errors import ReceiverError
from receiver.event import DECODER, rfc3339
from receiver.http_client import HttpClient, NoResponse, Response
from receiver.settings import ApiAccess

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:jwt-bearer"
ASSERTION_SECONDS = 1800
"""DT accepts an hour at most, counted on its own clock."""

RENEW_SECONDS = 60.0
"""A token is renewed so long before it ends."""

SKEW_SECONDS = 60.0
"""A clock that differs by less is not the reason for a rejection."""

RESPONSE_SECONDS = 30.0
MAX_RESPONSE_BYTES = 16 * 1024 * 1024
"""A page of 1000 events with 30 samples each has 3 MB; four of this size fit into 64 MB."""

PAGE_SIZE = 1000
MAX_PAGES = 3000
"""Of one list: a sensor that sent an event every second of 31 days has fewer."""

INITIAL_BACKOFF_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 60.0
PATIENCE_SECONDS = 300.0
"""How long a request is repeated that gets no response, or 5xx."""

RATE_LIMIT_SECONDS = 7200.0
"""How long a request is repeated that gets 429: DT works, and says when to come again."""

MAX_FAULTS = 4
"""How often a response may be no JSON."""


class ApiError(ReceiverError):
    """DT's REST API did not return what was asked for; the message says what to do."""


class Refused(ApiError):
    """The service account is not known, or may not read this."""


class Missing(ApiError):
    """DT knows no such project, device or connector."""


class Unavailable(ApiError):
    """DT's REST API cannot be used at all for now."""


class Stopped(ApiError):
    """The request was abandoned, because the program stops."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device as it is now: what a push has in `labels` and `metadata`."""

    id: str
    project_id: str
    type: str = ""
    product_number: str = ""
    labels: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Project:
    """A project; `organization` is the id of the one that owns it."""

    id: str
    name: str
    organization: str


@dataclass(frozen=True)
class DataConnector:
    """A Data Connector; without `event_types` it sends all of them. `path` is its resource name."""

    path: str
    name: str
    type: str
    status: str
    event_types: tuple[str, ...]
    labels: tuple[str, ...]
    url: str = field(repr=False)
    secret: str | None = field(repr=False)


@dataclass(frozen=True)
class Metrics:
    """What a Data Connector did in the last 3 hours; `latency_seconds` is the 99th percentile."""

    successes: int
    errors: int
    latency_seconds: float


class Session:
    """What requests of several threads share: the access token, DT's rate limit, and the wish to stop.

    `now` is the wall clock, and `wait` returns after so many seconds, or earlier when `stop` was called. `on_wait` is
    called before each wait that is worth a line, with the seconds and the reason. `skew_seconds` is how far DT's clock
    is ahead of ours, as far as that is known.
    """

    def __init__(
        self,
        access: ApiAccess,
        *,
        now: Callable[[], float] = time.time,
        wait: Callable[[float], object] | None = None,
        on_wait: Callable[[float, str], object] = lambda seconds, reason: None,
    ) -> None:
        self.access = access
        self.now = now
        self.skew_seconds: float | None = None
        self._stopped = threading.Event()
        self._wait = wait or self._stopped.wait
        self._on_wait = on_wait
        self._lock = threading.Lock()
        self._token = ""
        self._renew_at = 0.0
        self._assertion_skew = 0.0
        self._limited_until = 0.0
        self._succeeded_at = float("-inf")

    def stop(self) -> None:
        """Let every request end with Stopped."""
        self._stopped.set()

    def token(self, rejected: str = "") -> str:
        """An access token that is not the `rejected` one. Raises ApiError."""
        with self._lock:
            if not self._token or self._token == rejected or self.now() >= self._renew_at:
                self._token, lifetime = self._fetch_token()
                self._renew_at = self.now() + lifetime - RENEW_SECONDS
            return self._token

    def exchange(
        self, client: HttpClient, method: str, address: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Response:
        """A response that is neither 429 nor 5xx. Raises Unavailable, Stopped, and ApiError if only this one fails."""
        began = working_at = self.now()
        failures = 0
        while True:
            if self._wait_for_turn():
                working_at = self.now()
            failures += 1
            backoff = random.uniform(0.5, 1) * min(INITIAL_BACKOFF_SECONDS * 2**failures, MAX_BACKOFF_SECONDS)
            end = working_at + PATIENCE_SECONDS
            try:
                response = client.request(method, address, headers, body=body, max_bytes=MAX_RESPONSE_BYTES)
            except NoResponse as error:
                status, reason = 0, str(error)
            else:
                self._read_clock(response)
                status, reason = response.status, f"HTTP {response.status}"
                if status != 429 and status < 500:
                    self._succeeded_at = self.now()
                    return response
                backoff = max(backoff, self._retry_after(response))
            if status == 429:
                end, reason = began + RATE_LIMIT_SECONDS, "DT limits the rate of requests"
            if self.now() + backoff > end:
                failed_alone = self._succeeded_at > began
                raise (ApiError if failed_alone else Unavailable)(f"DT's REST API does not work now: {reason}")
            if backoff > INITIAL_BACKOFF_SECONDS:
                self._on_wait(backoff, reason)
            if status == 429:
                self._limited_until = max(self._limited_until, self.now() + backoff)
            else:
                self._sleep(backoff)

    def _wait_for_turn(self) -> bool:
        """Wait while DT limits the rate; whether it did."""
        waited = False
        while (left := self._limited_until - self.now()) > 0:
            waited = True
            self._sleep(left)
        if self._stopped.is_set():
            raise Stopped("stopped")
        return waited

    def _sleep(self, seconds: float) -> None:
        self._wait(seconds)
        if self._stopped.is_set():
            raise Stopped("stopped")

    def _retry_after(self, response: Response) -> float:
        """Seconds that DT asks to wait: a number, or a date on DT's clock (RFC 9110, section 10.2.3)."""
        text = response.headers.get("Retry-After", "").strip()
        if text.isascii() and text.isdigit():
            return float(text[:9])
        at = _date(text)
        return 0.0 if at is None else max(0.0, at - self.now() - (self.skew_seconds or 0.0))

    def _read_clock(self, response: Response) -> None:
        at = _date(response.headers.get("Date", ""))
        if at is not None:
            self.skew_seconds = at - self.now()

    def _fetch_token(self) -> tuple[str, float]:
        """A new token and its lifetime in seconds. If our clock is wrong, the assertion is signed by DT's."""
        response = self._post_assertion()
        skew = self.skew_seconds or 0.0
        if response.status != 200 and abs(skew - self._assertion_skew) > SKEW_SECONDS:
            self._assertion_skew = skew
            response = self._post_assertion()
        if response.status != 200:
            raise Refused(
                f"DT does not accept the service account (HTTP {response.status}); check DT_SERVICE_ACCOUNT_KEY_ID, "
                "DT_SERVICE_ACCOUNT_SECRET and DT_SERVICE_ACCOUNT_EMAIL, and in DT Studio whether the key was deleted"
            )
        content = _decode(response.body)
        token, lifetime = (content or {}).get("access_token"), (content or {}).get("expires_in", 3600)
        if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
            raise ApiError("DT's token server returned no access token; check DT_TOKEN_URL")
        return token, float(lifetime) if isinstance(lifetime, int | float) else 3600.0

    def _post_assertion(self) -> Response:
        access = self.access
        now = int(self.now() + self._assertion_skew)
        claims = {"iss": access.email, "aud": access.token_url, "iat": now, "exp": now + ASSERTION_SECONDS}
        try:
            assertion = jwt.encode(claims, access.secret, algorithm="HS256", headers={"kid": access.key_id})
        except Exception:  # a secret that is a key of another kind, or no text
            raise Refused("DT_SERVICE_ACCOUNT_SECRET is not the secret of a key of a service account") from None
        form = urlencode({"grant_type": GRANT_TYPE, "assertion": assertion}).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        client = HttpClient(access.token_url, RESPONSE_SECONDS)
        try:
            return self.exchange(client, "POST", access.token_url, headers, form)
        finally:
            client.close()


class Api:
    """DT's REST API for one thread. Raises nothing but ApiError."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._client = HttpClient(session.access.url, RESPONSE_SECONDS)

    def close(self) -> None:
        self._client.close()

    def projects(self) -> Iterator[Project]:
        """The projects that the service account has a role in."""
        for page in self._pages("/projects", "projects", "its projects"):
            for each in page:
                yield Project(_last(each, "name"), _text(each, "displayName"), _last(each, "organization"))

    def devices(self, project: str) -> Iterator[Device]:
        """The devices of a project. Raises Missing."""
        for page in self._pages(f"/projects/{_id(project)}/devices", "devices", f"project {project}", project):
            for each in page:
                yield _device(each, project)

    def device(self, device: str) -> Device:
        """A device, in whatever project it is. Raises Missing."""
        return _device(self._get(f"/projects/-/devices/{_id(device)}", f"device {device}"), "")

    def events(self, project: str, device: str, start: float, end: float) -> Iterator[list[Any]]:
        """Pages of the events of a device between two times in seconds since 1970, newest first. Raises Missing."""
        path = f"/projects/{_id(project)}/devices/{_id(device)}/events"
        window = {"startTime": _rfc3339(start), "endTime": _rfc3339(end), "pageSize": str(PAGE_SIZE)}
        return self._pages(path, "events", f"device {device} in project {project}", project, **window)

    def data_connectors(self, project: str) -> Iterator[DataConnector]:
        """The Data Connectors of a project. Raises Missing."""
        path = f"/projects/{_id(project)}/dataconnectors"
        for page in self._pages(path, "dataConnectors", f"Data Connectors of project {project}", project):
            for each in page:
                yield _connector(each)

    def metrics(self, connector: DataConnector) -> Metrics:
        """What a Data Connector did in the last 3 hours."""
        content = self._get(f"/{quote(connector.path, errors='replace')}:metrics", f"metrics of {connector.path}")
        found = content.get("metrics")
        values = found if isinstance(found, dict) else {}
        latency = _text(values, "latency99p").removesuffix("s")
        return Metrics(_whole(values, "successCount"), _whole(values, "errorCount"), _seconds(latency))

    def _pages(self, path: str, key: str, what: str, project: str = "", **given: str) -> Iterator[list[Any]]:
        seen: set[str] = set()
        parameters = dict(given)
        for _ in range(MAX_PAGES):
            content = self._get(path, what, project, **parameters)
            items = content.get(key, [])
            if not isinstance(items, list):
                raise ApiError(f"DT's list of {key} for {what} is no list")
            yield items
            token = content.get("nextPageToken")
            if not isinstance(token, str) or not token:
                return
            if token in seen:
                raise ApiError(f"DT repeats a page of {key} for {what}; try again later")
            seen.add(token)
            parameters["pageToken"] = token
        raise ApiError(f"DT's list of {key} for {what} has no end; try again with a shorter time")

    def _get(self, path: str, what: str, project: str = "", **parameters: str) -> dict[str, Any]:
        query = f"?{urlencode(parameters, errors='replace')}" if parameters else ""
        address = f"{self._session.access.url.rstrip('/')}{path}{query}"
        rejected = ""
        for _ in range(MAX_FAULTS):
            token = self._session.token(rejected)
            headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
            response = self._session.exchange(self._client, "GET", address, headers)
            if response.status == 401 and not rejected:
                rejected = token
            elif response.status != 200:
                raise _error(response.status, what, project)
            elif len(response.body) > MAX_RESPONSE_BYTES:
                raise ApiError(f"DT's response for {what} has more than {MAX_RESPONSE_BYTES} bytes")
            elif (content := _decode(response.body)) is not None:
                return content
        raise ApiError(f"DT's response for {what} is no JSON object; check DT_API_URL")


def _error(status: int, what: str, project: str) -> ApiError:
    if status == 404:
        return Missing(f"DT knows no {what}, or the service account has no role there")
    if status == 403:
        where = f"in project {project}" if project else "in the project, or in the organization"
        return Refused(
            f"the service account may not read {what}: in DT Studio, grant it the role Project User {where} "
            "(Project Developer to read Data Connectors)"
        )
    if status == 401:
        return Refused("DT does not accept the access token that it has issued; check DT_API_URL and DT_TOKEN_URL")
    if 300 <= status < 400:
        return ApiError(f"DT redirects requests for {what} (HTTP {status}), which is not followed; check DT_API_URL")
    return ApiError(f"DT rejects the request for {what}: HTTP {status}")


def _decode(body: bytes) -> dict[str, Any] | None:
    """A JSON object; None if it is anything else. Numbers that JSON does not have become null."""
    with suppress(ValueError, RecursionError):
        content = DECODER.decode(body.decode("utf-8"))
        if isinstance(content, dict):
            return content
    return None


def _device(content: object, project: str) -> Device:
    """`name` is projects/P/devices/D."""
    parts = _text(content, "name").split("/")
    values = content if isinstance(content, dict) else {}
    labels = values.get("labels")
    return Device(
        parts[-1],
        parts[1] if len(parts) == 4 else project,
        _text(content, "type"),
        _text(content, "productNumber"),
        labels if isinstance(labels, dict) else {},
    )


def _connector(content: object) -> DataConnector:
    values = content if isinstance(content, dict) else {}
    http = values.get("httpConfig")
    secret = http.get("signatureSecret") if isinstance(http, dict) else None
    return DataConnector(
        _text(values, "name"),
        _text(values, "displayName"),
        _text(values, "type"),
        _text(values, "status"),
        _texts(values, "events"),
        _texts(values, "labels"),
        _text(http, "url"),
        secret if isinstance(secret, str) else None,
    )


def _text(content: object, name: str) -> str:
    value = content.get(name) if isinstance(content, dict) else None
    return value if isinstance(value, str) else ""


def _texts(content: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = content.get(name)
    return tuple(each for each in value if isinstance(each, str)) if isinstance(value, list) else ()


def _last(content: object, name: str) -> str:
    """The id at the end of a resource name."""
    return _text(content, name).rpartition("/")[2]


def _whole(content: Mapping[str, Any], name: str) -> int:
    """A count, which JSON of protocol buffers may have as text."""
    try:
        return int(content.get(name) or 0)
    except (TypeError, ValueError):
        return 0


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _date(text: str) -> float | None:
    """An HTTP date in seconds since 1970; None if it is none."""
    with suppress(ValueError, TypeError, OverflowError):
        return parsedate_to_datetime(text).timestamp()
    return None


def _id(text: str) -> str:
    return quote(text, safe="", errors="replace")


def _rfc3339(seconds: float) -> str:
    return rfc3339(datetime.fromtimestamp(seconds, UTC), "milliseconds")
