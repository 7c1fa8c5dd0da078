"""A small DT cloud: service accounts, the REST API with its history, and Data Connectors that push and retry.

Everything is served over real sockets on this machine. Time is the real one until a test sets `now`.
"""

from __future__ import annotations

import heapq
import itertools
import json
import secrets
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import jwt

from receiver.event import rfc3339
from receiver.simulator import Pusher
from receiver.testing.samples import TEST_SECRET

KEY_ID, SECRET, EMAIL = "test-key", "the secret of a service account in tests", "account@test.example"
HISTORY_SECONDS = 31 * 86400.0
RETRY_SECONDS = 12 * 3600.0
DISABLE_SECONDS = 5 * 86400.0
INDEX_SECONDS = 10.0
"""So late an event may be in the history."""

TOKEN_SECONDS = 3600.0
MAX_SKEW_SECONDS = 300.0


class Happening(NamedTuple):
    """An event of a device; `raw` replaces it in the history by something else."""

    time: float
    id: str
    type: str
    data: Mapping[str, Any]
    raw: object = None


@dataclass
class CloudDevice:
    """A device; `history` is sorted by time, and may make its items as they are asked for."""

    id: str
    project: str
    type: str = "temperature"
    labels: Mapping[str, Any] | None = field(default_factory=dict)
    history: Sequence[Happening] = field(default_factory=list)

    def event(self, happening: Happening) -> object:
        if happening.raw is not None:
            return happening.raw
        stamp = rfc3339(datetime.fromtimestamp(happening.time, UTC))
        return {
            "eventId": happening.id,
            "targetName": f"projects/{self.project}/devices/{self.id}",
            "eventType": happening.type,
            "data": {happening.type: {**happening.data, "updateTime": stamp}},
            "timestamp": stamp,
        }

    def push(self, happening: Happening, labels: Sequence[str]) -> bytes:
        """The body with which a Data Connector pushes it."""
        chosen = {name: value for name, value in (self.labels or {}).items() if name in labels}
        metadata = {"deviceId": self.id, "projectId": self.project, "deviceType": self.type, "productNumber": ""}
        payload = {"event": self.event(happening), "labels": chosen, "metadata": metadata}
        return json.dumps(payload, separators=(",", ":")).encode()


@dataclass
class CloudConnector:
    """A Data Connector. `send` pushes a body and returns the status of the response, 0 for none."""

    id: str
    project: str
    url: str
    secret: str | None = TEST_SECRET
    status: str = "ACTIVE"
    type: str = "HTTP_PUSH"
    events: Sequence[str] = ()
    labels: Sequence[str] = ("name",)
    successes: int = 0
    errors: int = 0
    latency: str = "0.120s"
    send: Callable[[bytes], int] | None = None
    failing_since: float | None = None

    def __post_init__(self) -> None:
        if self.send is None:
            pusher = Pusher(self.url, self.secret or "")
            self.send = lambda body: pusher.post(body)[0]


class Cloud:
    """DT's cloud at `url`, from entering it as a context until its end.

    `answer`, if set, sees each request to the REST API first, and returns whether it has responded. `requests` are the
    paths that were asked for. The service account may read the projects in `readable`, or all if that is None. Projects
    are of `organization`. Tokens that are not in `tokens` get 401.
    """

    def __init__(self) -> None:
        self.now: float | None = None
        self.devices: dict[str, CloudDevice] = {}
        self.connectors: list[CloudConnector] = []
        self.projects: list[str] = []
        self.organization = "testorganization0000"
        self.readable: set[str] | None = None
        self.skew_seconds = 0.0
        self.page_size = 1000
        self.tokens: dict[str, float] = {}
        self.answer: Callable[[BaseHTTPRequestHandler], bool] | None = None
        self.requests: list[str] = []
        self._numbers = itertools.count()
        self._pushes: list[tuple[float, int, float, int, CloudConnector, bytes]] = []

    def __enter__(self) -> Cloud:
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                cloud.requests.append(self.path)
                if cloud.answer is None or not cloud.answer(self):
                    respond(self, *cloud.respond(self.path, self.headers.get("Authorization", "")))

            def do_POST(self) -> None:
                cloud.requests.append(self.path)
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                respond(self, *cloud.issue_token(form))

            def date_time_string(self, timestamp: float | None = None) -> str:
                return formatdate(cloud.clock() + cloud.skew_seconds, usegmt=True)

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a receiver uses this cloud."""
        return {
            "DT_SERVICE_ACCOUNT_KEY_ID": KEY_ID,
            "DT_SERVICE_ACCOUNT_SECRET": SECRET,
            "DT_SERVICE_ACCOUNT_EMAIL": EMAIL,
            "DT_API_URL": f"{self.url}/v2",
            "DT_TOKEN_URL": f"{self.url}/oauth2/token",
        }

    def clock(self) -> float:
        return time.time() if self.now is None else self.now

    def add_device(self, device: str, project: str, **more: Any) -> CloudDevice:
        """A new device, in a project that is created if it is new."""
        if project not in self.projects:
            self.projects.append(project)
        self.devices[device] = CloudDevice(device, project, **more)
        return self.devices[device]

    def add_connector(self, project: str, url: str, **more: Any) -> CloudConnector:
        if project not in self.projects:
            self.projects.append(project)
        self.connectors.append(CloudConnector(f"connector{len(self.connectors)}", project, url, **more))
        return self.connectors[-1]

    def emit(self, device: str, type: str, data: Mapping[str, Any], at: float | None = None) -> Happening:
        """An event of a device, later than all before; the Data Connectors of its project push it by `run`."""
        sender = self.devices[device]
        happened = Happening(self.clock() if at is None else at, f"dt{next(self._numbers):018d}", type, data)
        assert isinstance(sender.history, list)
        sender.history.append(happened)
        for connector in self.connectors:
            wanted = not connector.events or type in connector.events
            if wanted and connector.project == sender.project and connector.status == "ACTIVE":
                self._schedule(connector, happened.time, happened.time, 0, sender.push(happened, connector.labels))
        return happened

    def run(self, until: float) -> None:
        """Push and retry all that is due until then, which is the time afterwards.

        A push is retried with growing pauses for 12 hours. A connector without a success for 5 days is disabled.
        """
        while self._pushes and self._pushes[0][0] <= until:
            self.now, _, first, attempt, connector, body = heapq.heappop(self._pushes)
            if connector.status != "ACTIVE":
                continue
            assert connector.send is not None
            if 200 <= connector.send(body) < 300:
                connector.successes += 1
                connector.failing_since = None
                continue
            connector.errors += 1
            connector.failing_since = connector.failing_since or self.now
            if self.now - connector.failing_since > DISABLE_SECONDS:
                connector.status = "SYSTEM_DISABLED"
            due = self.now + min(10.0 * 2**attempt, 3600.0)
            if due <= first + RETRY_SECONDS:
                self._schedule(connector, due, first, attempt + 1, body)
        self.now = until

    def _schedule(self, connector: CloudConnector, due: float, first: float, attempt: int, body: bytes) -> None:
        heapq.heappush(self._pushes, (due, next(self._numbers), first, attempt, connector, body))

    def issue_token(self, form: Mapping[str, Sequence[str]]) -> tuple[int, object]:
        assertion = "".join(form.get("assertion", ()))
        try:
            header = jwt.get_unverified_header(assertion)
            claims = jwt.decode(
                assertion,
                SECRET,
                algorithms=["HS256"],
                audience=f"{self.url}/oauth2/token",
                issuer=EMAIL,
                options={"verify_exp": False, "verify_iat": False},
            )
        except jwt.InvalidTokenError:
            return 400, {"error": "invalid_grant"}
        now = self.clock() + self.skew_seconds
        on_time = claims["iat"] <= now + MAX_SKEW_SECONDS and now < claims["exp"] <= now + 3600 + MAX_SKEW_SECONDS
        if header.get("kid") != KEY_ID or not on_time:
            return 400, {"error": "invalid_grant"}
        token = secrets.token_hex(16)
        self.tokens[token] = self.clock() + TOKEN_SECONDS
        return 200, {"access_token": token, "token_type": "bearer", "expires_in": TOKEN_SECONDS}

    def respond(self, target: str, authorization: str) -> tuple[int, object]:
        """Respond as DT's REST API."""
        if self.tokens.get(authorization.removeprefix("Bearer "), 0.0) < self.clock():
            return 401, {"error": "the access token is invalid", "code": 401}
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        match parts.path.split("/")[1:]:
            case ["v2", "projects"]:
                return self._page("projects", [self._project(each) for each in self.projects if self._may(each)], query)
            case ["v2", "projects", "-", "devices", device] if device in self.devices:
                return 200, self._device(self.devices[device])
            case ["v2", "projects", project, *rest] if project in self.projects:
                if not self._may(project):
                    return 403, {"error": "forbidden", "code": 403}
                return self._of_project(project, rest, query)
        return 404, {"error": "not found", "code": 404}

    def _of_project(self, project: str, rest: Sequence[str], query: Mapping[str, str]) -> tuple[int, object]:
        match rest:
            case ["devices"]:
                found = [self._device(each) for each in self.devices.values() if each.project == project]
                return self._page("devices", found, query)
            case ["devices", device, "events"] if device in self.devices and self.devices[device].project == project:
                return self._events(self.devices[device], query)
            case ["dataconnectors"]:
                found = [self._connector(each) for each in self.connectors if each.project == project]
                return self._page("dataConnectors", found, query)
            case ["dataconnectors", name]:
                connector = next(each for each in self.connectors if f"{each.id}:metrics" == name)
                counts = {"successCount": connector.successes, "errorCount": connector.errors}
                return 200, {"metrics": {**counts, "latency99p": connector.latency}}
        return 404, {"error": "not found", "code": 404}

    def _may(self, project: str) -> bool:
        return self.readable is None or project in self.readable

    def _page(self, key: str, items: Sequence[object], query: Mapping[str, str]) -> tuple[int, object]:
        start = int(query.get("pageToken", "0"))
        end = start + min(int(query.get("pageSize", "100")), self.page_size)
        return 200, {key: items[start:end], "nextPageToken": str(end) if end < len(items) else ""}

    def _events(self, device: CloudDevice, query: Mapping[str, str]) -> tuple[int, object]:
        now = self.clock()
        start = max(_seconds(query.get("startTime"), now - 86400), now - HISTORY_SECONDS)
        end = min(_seconds(query.get("endTime"), now), now - INDEX_SECONDS)
        first = bisect_left(device.history, start, key=lambda each: each.time)
        last = bisect_right(device.history, end, key=lambda each: each.time)
        above = int(query.get("pageToken", last))
        below = max(first, above - min(int(query.get("pageSize", "100")), self.page_size))
        items = [device.event(device.history[number]) for number in range(above - 1, below - 1, -1)]
        return 200, {"events": items, "nextPageToken": str(below) if below > first else ""}

    def _project(self, project: str) -> object:
        name = f"organizations/{self.organization}"
        return {"name": f"projects/{project}", "displayName": project, "organization": name}

    def _device(self, device: CloudDevice) -> object:
        return {
            "name": f"projects/{device.project}/devices/{device.id}",
            "type": device.type,
            "productNumber": "",
            "labels": device.labels,
            "reported": {},
        }

    def _connector(self, connector: CloudConnector) -> object:
        return {
            "name": f"projects/{connector.project}/dataconnectors/{connector.id}",
            "displayName": connector.id,
            "type": connector.type,
            "status": connector.status,
            "events": list(connector.events),
            "labels": list(connector.labels),
            "httpConfig": {"url": connector.url, "signatureSecret": connector.secret or "", "headers": {}},
        }


def _seconds(text: str | None, default: float) -> float:
    return default if text is None else datetime.fromisoformat(text).timestamp()


def respond(
    request: BaseHTTPRequestHandler, status: int, content: object, headers: Mapping[str, str] | None = None
) -> None:
    """Respond with JSON, or with bytes as they are."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    request.send_response(status)
    for name, value in {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **(headers or {}),
    }.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)
