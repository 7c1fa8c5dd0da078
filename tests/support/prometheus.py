"""Prometheus (Debian's package prometheus): its check of rules, and a server that scrapes a receiver."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from receiver.testing.ports import reserve_port
from receiver.testing.running import RunningReceiver, wait_until

CONFIG = """
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [RULES]
scrape_configs: [{job_name: receiver, static_configs: [{targets: ["TARGET"]}]}]
"""


def program(name: str) -> str:
    """The path of a program of the package; skips the test where it is not installed."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    return found


class Prometheus:
    """A running server."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = urllib3.PoolManager(retries=False, timeout=10)

    def query(self, expression: str) -> list[Any]:
        """The series that an expression has now: `metric` with the labels, and `value`."""
        result: list[Any] = self.get("query", {"query": expression})["result"]
        return result

    def get(self, path: str, fields: dict[str, str] | None = None) -> Any:
        """The data of a response. Raises AssertionError with its text if it is not 200."""
        response = self._http.request("GET", f"{self._url}/api/v1/{path}", fields=fields)
        assert response.status == 200, response.data.decode()
        return json.loads(response.data)["data"]

    def is_ready(self) -> bool:
        try:
            return self._http.request("GET", f"{self._url}/-/ready").status == 200
        except urllib3.exceptions.HTTPError:
            return False


@contextlib.contextmanager
def scraping(receiver: RunningReceiver, rules: Path, folder: Path) -> Iterator[Prometheus]:
    """A server that scrapes this receiver every second."""
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.replace("RULES", str(rules)).replace("TARGET", f"127.0.0.1:{receiver.port}"))
    port = reserve_port()
    command = [program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        wait_until(prometheus.is_ready, 60, what="Prometheus")
        yield prometheus
    finally:
        process.kill()
        process.wait(20)
