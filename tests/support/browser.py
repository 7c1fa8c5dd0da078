"""Debian's Chromium, driven by playwright: pages that record everything that goes wrong in them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from receiver.demo import CONSOLE_CONFIG, prepare_console
from receiver.demo_fleet import live
from receiver.testing.running import RunningReceiver, wait_until
from support.console import ADMIN, PASSWORDS, Login, get

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP console.test 127.0.0.1",
)
"""What Chromium needs as root, what keeps it from looking for updates, and a host name that is not of this machine."""

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
LIVE_EVENTS = 150
REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) =>
  console.error(`violation of ${event.effectiveDirective}: ${event.blockedURI}`));
"""


def chromium() -> str:
    """The path of the browser; skips the test where it or its driver is not installed."""
    found = shutil.which("chromium")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("chromium is not installed")
        pytest.skip("chromium is not installed")
    return found


@contextlib.contextmanager
def launched() -> Iterator[Any]:
    """A running browser."""
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Visitor:
    """A person with a browser of their own; `wrong` is what the pages complained of."""

    def __init__(self, browser: Any, receiver: RunningReceiver, login: Login = ADMIN, **options: Any) -> None:
        credentials = {"http_credentials": {"username": login[0], "password": login[1]}} if login else {}
        self.context = browser.new_context(**{"viewport": DESKTOP, **credentials, **options})
        self.context.set_default_timeout(20_000)
        self.context.add_init_script(REPORT_VIOLATIONS)
        self.page = self.context.new_page()
        self.url = receiver.url
        self.wrong: list[str] = []
        self.page.on("console", self._record)
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", self._record_request)

    def open(self, path: str) -> Any:
        """Open a page of the receiver, and return its response."""
        return self.page.goto(f"{self.url}{path}")

    def close(self) -> None:
        self.context.close()

    def overflows(self) -> bool:
        """Whether the page is wider than the window."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))

    def serious_violations(self, *rules: str) -> list[tuple[str, list[str]]]:
        """What axe finds in the page by some of its rules, or by all: the name of each rule, and elements."""
        from axe_playwright_python.sync_playwright import Axe

        options = {"runOnly": list(rules)} if rules else None
        return [
            (each["id"], [node["html"][:200] for node in each["nodes"]][:3])
            for each in Axe().run(self.page, options=options).response["violations"]
            if each["impact"] in ("serious", "critical")
        ]

    def _record(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(f"{message.type}: {message.text}")

    def _record_request(self, request: Any) -> None:
        if not request.url.startswith((self.url, "blob:", "data:")):
            self.wrong.append(f"request to {request.url}")


@contextlib.contextmanager
def visiting(browser: Any, receiver: RunningReceiver, login: Login = ADMIN, **options: Any) -> Iterator[Visitor]:
    visitor = Visitor(browser, receiver, login, **options)
    try:
        yield visitor
    finally:
        visitor.close()


@contextlib.contextmanager
def running_demo(folder: Any) -> Iterator[RunningReceiver]:
    """A receiver full of life: a fleet with a history, a silent sensor, a paused sink, dead letters."""
    receiver = RunningReceiver(folder, CONSOLE_CONFIG, None, PASSWORDS)
    prepare_console(folder)
    try:
        receiver.start()
        bodies = live()
        for _ in range(LIVE_EVENTS):
            assert receiver.push(next(bodies)) == (200, "accepted")
        wait_until(lambda: is_full_of_life(receiver), 60, "the incident, the pause and the dead letters")
        yield receiver
    finally:
        receiver.kill_all()


def is_full_of_life(receiver: RunningReceiver) -> bool:
    shown = get(receiver, "/console/").data.decode()
    return all(re.search(part, shown) for part in ("Freezer 1 has not been heard", "is paused", r"has \d+ dead letter"))
