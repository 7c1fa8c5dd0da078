"""DT's REST API, which nothing else calls: its resources as values, decoded tolerantly, one page at a time.

https://developer.disruptive-technologies.com/api
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from receiver.dt.session import MAX_RESPONSE_BYTES, RESPONSE_SECONDS, ApiError, Missing, Refused, Session, decode_object
from receiver.event import rfc3339
from receiver.http_client import HttpClient

PAGE_SIZE = 1000
MAX_PAGES = 3000
"""The limit for one list; a sensor with an event in every second of 31 days has fewer."""

MAX_FAULTS = 4
"""How many responses in a row may be invalid JSON."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device as it is now, with what a push has in `labels` and `metadata`."""

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
    """A Data Connector. `path` is its resource name; if `event_types` is empty, it sends all types."""

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
    """The pushes of a Data Connector in the last 3 hours; `latency_seconds` is the 99th percentile."""

    successes: int
    errors: int
    latency_seconds: float


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
        """The pushes of a Data Connector in the last 3 hours. Raises Missing."""
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
                raise ApiError(f"DT's list of {key} for {what} is not a list")
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
            elif (content := decode_object(response.body)) is not None:
                return content
        raise ApiError(f"DT's response for {what} is not a JSON object; check DT_API_URL")


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
    """A count; protocol buffers encode 64-bit numbers as text in JSON."""
    try:
        return int(content.get(name) or 0)
    except (TypeError, ValueError):
        return 0


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _id(text: str) -> str:
    return quote(text, safe="", errors="replace")


def _rfc3339(seconds: float) -> str:
    return rfc3339(datetime.fromtimestamp(seconds, UTC), "milliseconds")
