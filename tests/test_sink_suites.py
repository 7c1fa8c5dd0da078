"""The built-in sinks pass the suite that authors of other sinks use."""

from __future__ import annotations

import contextlib
import csv
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from conftest import wait_until
from pytest_httpserver import HTTPServer
from support.mosquitto import Broker, Listener, listening, running
from werkzeug import Request, Response

from receiver.event import Event, event_id
from receiver.testing import SinkSuite
from receiver.testing.postgresql import new_database

DeliveredIds = Callable[[], list[str]]
Outage = Callable[[], AbstractContextManager[object]]


class TestStdout(SinkSuite, plugin="plugins/stdout.py", concurrency=8, idempotent=False):
    @pytest.fixture
    def delivered_ids(self, capfd: pytest.CaptureFixture[str]) -> DeliveredIds:
        lines: list[str] = []

        def ids() -> list[str]:
            lines.extend(capfd.readouterr().out.splitlines())
            return [line.partition('{"event_id":"')[2].partition('"')[0] for line in lines]

        return ids


class TestCsv(SinkSuite, plugin="plugins/csv_file/__init__.py", options={"path": "events.csv"}, concurrency=8):
    @pytest.fixture
    def delivered_ids(self, tmp_path: Path) -> DeliveredIds:
        def ids() -> list[str]:
            with (tmp_path / "events.csv").open(newline="", encoding="utf-8") as file:
                return [row["event_id"] for row in csv.DictReader(file)]

        return ids

    @pytest.fixture
    def outage(self, tmp_path: Path) -> Outage:
        @contextlib.contextmanager
        def folder_instead_of_file() -> Iterator[None]:
            path, moved = tmp_path / "events.csv", tmp_path / "moved.csv"
            if path.exists():
                path.replace(moved)
            path.mkdir()
            yield
            path.rmdir()
            if moved.exists():
                moved.replace(path)

        return folder_instead_of_file


class SqlSuite:
    """What the suites of both databases share: the table `readings` can be read back."""

    def expected_ids(self, event: Event) -> list[str]:
        return [event.id] if event.readings() else []

    @pytest.fixture
    def delivered_ids(self, url: str) -> DeliveredIds:
        engine = sqlalchemy.create_engine(
            url.replace("postgresql:", "postgresql+psycopg:"), poolclass=sqlalchemy.NullPool
        )

        def ids() -> list[str]:
            with engine.connect() as connection:
                return list(connection.scalars(sqlalchemy.text("SELECT event_id FROM readings")))

        return ids

    @pytest.fixture
    def options(self, url: str) -> Mapping[str, object]:
        return {"url": url}


class TestSqlOnSqlite(SqlSuite, SinkSuite, plugin="plugins/sql/__init__.py", concurrency=8):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path / 'readings.sqlite'}"


class TestSqlOnPostgresql(SqlSuite, SinkSuite, plugin="plugins/sql/__init__.py", concurrency=8):
    @pytest.fixture
    def url(self) -> str:
        return new_database()

    @pytest.fixture
    def outage(self, url: str) -> Outage:
        @contextlib.contextmanager
        def read_only_database() -> Iterator[None]:
            name = url.rpartition("/")[2].partition("?")[0]
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            yield
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("SET default_transaction_read_only = off")
                connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")

        return read_only_database


class TestMqtt(SinkSuite, plugin="plugins/mqtt/__init__.py", concurrency=8):
    @pytest.fixture
    def broker(self) -> Iterator[Broker]:
        with running("password_file {folder}/passwords", users={"receiver": "not-to-be-seen"}) as broker:
            yield broker

    @pytest.fixture
    def options(self, broker: Broker) -> Mapping[str, Any]:
        return {"url": broker.url, "user": "receiver", "password": "not-to-be-seen", "homeassistant": True}

    @pytest.fixture
    def listener(self, broker: Broker) -> Iterator[Listener]:
        with listening(broker, "dt/+/+/event/+", user="receiver", password="not-to-be-seen") as listener:
            yield listener

    @pytest.fixture
    def delivered_ids(self, listener: Listener) -> DeliveredIds:
        """Each id once: a repeated event is published again, as MQTT itself may do with QoS 1."""
        return lambda: list(dict.fromkeys(event_id(each.payload) for each in listener.catch_up()))

    @pytest.fixture
    def outage(self, broker: Broker, listener: Listener) -> Outage:
        @contextlib.contextmanager
        def killed() -> Iterator[None]:
            broker.kill()
            wait_until(lambda: not listener.is_subscribed)
            yield
            broker.start()
            listener.wait_until_subscribed()

        return killed


class RecordingEndpoint:
    """Records the idempotency keys of the requests that it accepts."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.status = 200
        self._lock = threading.Lock()

    def respond(self, request: Request) -> Response:
        with self._lock:
            if self.status == 200:
                self.keys.append(request.headers["Idempotency-Key"])
        return Response(status=self.status)


class TestWebhook(SinkSuite, plugin="plugins/webhook/__init__.py", concurrency=8):
    @pytest.fixture
    def endpoint(self, httpserver: HTTPServer) -> RecordingEndpoint:
        endpoint = RecordingEndpoint()
        httpserver.expect_request("/hook").respond_with_handler(endpoint.respond)
        return endpoint

    @pytest.fixture
    def options(self, httpserver: HTTPServer, endpoint: RecordingEndpoint) -> Mapping[str, Any]:
        headers = {"Authorization": "Bearer not-to-be-seen"}
        url = httpserver.url_for("/hook")
        return {"url": url, "allow_private": True, "secret": "bm90LXRvLWJlLXNlZW4=", "headers": headers}

    @pytest.fixture
    def delivered_ids(self, endpoint: RecordingEndpoint) -> DeliveredIds:
        """Each key once: that a repeated key is no second event is what keys are for."""
        return lambda: list(dict.fromkeys(endpoint.keys))

    @pytest.fixture
    def outage(self, endpoint: RecordingEndpoint) -> Outage:
        @contextlib.contextmanager
        def status_500() -> Iterator[None]:
            endpoint.status = 500
            yield
            endpoint.status = 200

        return status_500
