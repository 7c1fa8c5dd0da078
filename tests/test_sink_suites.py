"""Our own sinks stand what any sink should stand: the same suite that authors of others use."""

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
from conftest import new_database
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from receiver import Event
from receiver.testing import SinkSuite

Arrived = Callable[[], list[str]]
Broken = Callable[[], AbstractContextManager[object]]


class TestStdout(SinkSuite, plugin="plugins/stdout.py", concurrency=8, repeatable=False):
    @pytest.fixture
    def arrived(self, capfd: pytest.CaptureFixture[str]) -> Arrived:
        lines: list[str] = []

        def ids() -> list[str]:
            lines.extend(capfd.readouterr().out.splitlines())
            return [line.partition('{"event_id":"')[2].partition('"')[0] for line in lines]

        return ids


class TestCsv(SinkSuite, plugin="plugins/csv_file.py", options={"path": "events.csv"}, concurrency=8):
    @pytest.fixture
    def arrived(self, tmp_path: Path) -> Arrived:
        def ids() -> list[str]:
            with (tmp_path / "events.csv").open(newline="", encoding="utf-8") as file:
                return [row["event_id"] for row in csv.DictReader(file)]

        return ids

    @pytest.fixture
    def broken(self, tmp_path: Path) -> Broken:
        @contextlib.contextmanager
        def no_folder() -> Iterator[None]:
            """A file where the folder of the file should be."""
            away = tmp_path / "away"
            (tmp_path / "events.csv").replace(away) if (tmp_path / "events.csv").exists() else None
            (tmp_path / "events.csv").mkdir()
            yield
            (tmp_path / "events.csv").rmdir()
            away.replace(tmp_path / "events.csv") if away.exists() else None

        return no_folder


class InDatabase:
    """What the two kinds of database have in common: a table of all readings can be read back."""

    def traces(self, event: Event) -> list[str]:
        return [event.id] if event.readings() else []

    @pytest.fixture
    def arrived(self, url: str) -> Arrived:
        address = url.replace("postgresql:", "postgresql+psycopg:")
        engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool)

        def ids() -> list[str]:
            with engine.connect() as connection:
                return list(connection.scalars(sqlalchemy.text("SELECT event_id FROM readings")))

        return ids

    @pytest.fixture
    def options(self, url: str) -> Mapping[str, object]:
        return {"url": url}


class TestSqlOnSqlite(InDatabase, SinkSuite, plugin="plugins/sql.py", concurrency=8):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path / 'readings.sqlite'}"


class TestSqlOnPostgresql(InDatabase, SinkSuite, plugin="plugins/sql.py", concurrency=8):
    @pytest.fixture
    def url(self) -> str:
        return new_database()

    @pytest.fixture
    def broken(self, url: str) -> Broken:
        @contextlib.contextmanager
        def read_only() -> Iterator[None]:
            name = url.rpartition("/")[2].partition("?")[0]
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            yield
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("SET default_transaction_read_only = off")
                connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")

        return read_only


class Target:
    """An endpoint that remembers which events it took."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.status = 200
        self._lock = threading.Lock()

    def take(self, request: Request) -> Response:
        with self._lock:
            if self.status == 200:
                self.taken.append(request.headers["Idempotency-Key"])
        return Response(status=self.status)


class TestWebhook(SinkSuite, plugin="plugins/webhook.py", concurrency=8):
    @pytest.fixture
    def target(self, httpserver: HTTPServer) -> Target:
        target = Target()
        httpserver.expect_request("/hook").respond_with_handler(target.take)
        return target

    @pytest.fixture
    def options(self, httpserver: HTTPServer, target: Target) -> Mapping[str, Any]:
        headers = {"Authorization": "Bearer not-to-be-seen"}
        url = httpserver.url_for("/hook")
        return {"url": url, "allow_private": True, "secret": "bm90LXRvLWJlLXNlZW4=", "headers": headers}

    @pytest.fixture
    def arrived(self, target: Target) -> Arrived:
        """A key that comes again is no second event: that is what it is for."""
        return lambda: list(dict.fromkeys(target.taken))

    @pytest.fixture
    def broken(self, target: Target) -> Broken:
        @contextlib.contextmanager
        def failing() -> Iterator[None]:
            target.status = 500
            yield
            target.status = 200

        return failing
