"""Text from events, sinks and quarantined bodies that tries to run in a page or to break it: nothing comes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from conftest import RunningReceiver, wait_until
from support.browser import DESKTOP, PHONE, launched, visiting
from support.console import PASSWORDS, get, path_of

from receiver.console.blueprint import ROUTES
from receiver.console.events import MAX_BODY, formatted, shown_body
from receiver.console.rendering import MAX_TEXT, csv_parts, plain
from receiver.event import rfc3339

HOSTILE = [
    "<script>hacked=1</script>",
    '"><img src=x onerror=hacked=1>',
    "' onmouseover='hacked=1' autofocus onfocus='hacked=1",
    "</title></textarea></style><script>hacked=1</script>",
    "javascript:hacked=1",
    "<svg/onload=hacked=1>",
    "&lt;script&gt;hacked=1&lt;/script&gt;",
    "{{ 7*7 }}{% raw %}",
    "<!-- ]]> --><b>",
    "\0<b>\0",
    "\u202e\u2067desrever\u202d",
    "\r\n\t<hr>\x1b[31m",
    "\u200b\u00ad\u3164\U000e0041",
    "W" * 200_000,
    "\N{KEY}" * 300,
    "\N{ARABIC LETTER ALEF}" * 300,
]
PLUGIN = f"""
from receiver import GiveUp, Pause, hookimpl

HOSTILE = {HOSTILE!r}


class Dead:
    @hookimpl
    def deliver(self, event):
        raise GiveUp(HOSTILE[int(event.device_id[-2:]) % len(HOSTILE)])


class Paused:
    @hookimpl
    def deliver(self, event):
        raise Pause("".join(HOSTILE[:6]), after=900)


@hookimpl
def register_sinks(register):
    register("dead", Dead)
    register("paused", Paused)
"""
CONFIG = """
[receiver]
host = "127.0.0.1"
plugins = ["hostile.py"]
[sinks.dead]
type = "dead"
[sinks.paused]
type = "paused"
"""


TOUCH_EVERYTHING = """
for (const each of document.querySelectorAll("*"))
  for (const kind of ["mouseover", "mouseenter", "focus", "error", "load"]) each.dispatchEvent(new Event(kind));
"""


def body(number: int, text: str) -> bytes:
    """A push of a sensor whose name, type and labels are hostile."""
    stamp = rfc3339(datetime.now(UTC))
    payload = {
        "event": {
            "eventId": f"hostile{number:013d}",
            "eventType": "temperature",
            "targetName": text[:100],
            "timestamp": stamp,
            "data": {"temperature": {"value": 3.5, "updateTime": stamp}},
        },
        "labels": {"name": text, text[:50]: text[:50]},
        "metadata": {
            "deviceId": device(number),
            "projectId": "p",
            "deviceType": text[:1000],
            "productNumber": text[:9],
        },
    }
    return json.dumps(payload).encode()


def device(number: int) -> str:
    return f"hostile{number:013d}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReceiver]:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "hostile.py").write_text(PLUGIN, encoding="utf-8")
    receiver = RunningReceiver(folder, CONFIG, None, PASSWORDS)
    try:
        receiver.start()
        for number, text in enumerate(HOSTILE):
            assert receiver.push(body(number, text)) == (200, "accepted")
            quarantined = text[:100_000].encode("utf-8", "surrogatepass")
            assert receiver.push(quarantined) == (200, "quarantined")
        wait_until(lambda: receiver.metric('receiver_dead_letters{sink="dead"}') == len(HOSTILE), 60)
        wait_until(lambda: "is paused" in get(receiver, "/console/").data.decode(), 60)
        yield receiver
    finally:
        receiver.kill_all()


def every_path() -> list[str]:
    """All pages, those of a sensor and of an event for each of them."""
    found = []
    for route in ROUTES:
        if route.method == "GET" and not route.path.endswith((".csv", ".json")):
            variable = "<device>" in route.path or "<event>" in route.path
            for number in range(len(HOSTILE) if variable else 1):
                path = route.path.replace("<device>", device(number)).replace("<event>", device(number))
                found.append(path_of(route._replace(path=path)))
    queries = [f"/console/sensors?q={text}" for text in ("<script>hacked=1</script>", '"><img src=x onerror=hacked=1>')]
    return [*found, *queries, "/console/<script>hacked=1</script>", "/console/?done=<script>hacked=1</script>"]


def test_nothing_hostile_runs_or_breaks_a_page(browser: Any, hostile: RunningReceiver) -> None:
    with visiting(browser, hostile) as visitor:
        for path in every_path():
            visitor.page.set_viewport_size(PHONE)
            response = visitor.open(path)
            assert response.status in (200, 404), path
            visitor.page.evaluate(TOUCH_EVERYTHING)
            assert visitor.page.evaluate("typeof hacked") == "undefined", path
            assert not visitor.overflows(), path
            visitor.page.set_viewport_size(DESKTOP)
            assert not visitor.overflows(), path
        not_found = "error: Failed to load resource: the server responded with a status of 404 (NOT FOUND)"
        assert [each for each in visitor.wrong if each != not_found] == []


def test_pages_hold_a_short_part_of_a_long_text(hostile: RunningReceiver) -> None:
    for path in ("/console/", "/console/sensors", f"/console/sensors/{device(12)}", "/console/silence"):
        page = get(hostile, path).data
        assert len(page) < 200_000
        assert b"W" * (MAX_TEXT + 300) not in page


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_text_is_shown_without_what_hides_or_reorders_it(text: str) -> None:
    shown = plain(text)
    assert len(shown) <= MAX_TEXT
    assert not any(each in shown for each in "\0\r\n\t\x1b\u202e\u2067\u202d\u200b\u00ad\u3164\U000e0041")


@pytest.mark.parametrize("levels", [50, 900])
def test_of_a_deeply_nested_body_only_the_beginning_is_indented(levels: int) -> None:
    """Indented in full, these 256 KiB have 25 or 230 megabytes."""
    shown = shown_body(b"[" * levels + b"1," * 127_000 + b"1" + b"]" * levels)
    assert shown["is_cut"]
    assert sum(map(len, shown["formatted"])) <= MAX_BODY
    assert len(formatted(b"[" * levels + b"1," * 127_000 + b"1" + b"]" * levels)) < 2 * MAX_BODY


def test_an_indented_body_that_is_cut_says_so() -> None:
    short = b'{"a":[' + b"1," * 8000 + b"1]}"
    assert (shown_body(short)["is_cut"], shown_body(b"{}")["is_cut"]) == (True, False)
    assert (shown_body(b"no JSON")["formatted"], shown_body("é".encode() * 30_000)["is_cut"]) == ([], False)


@pytest.mark.parametrize("separator", [";", ",", "\t", "\n", "\r"], ids=repr)
def test_a_download_has_no_formula_for_a_spreadsheet_that_splits_rows_at_another_separator(separator: str) -> None:
    """To which a quote that is not at the beginning of its cell means nothing."""
    texts = [f"x{separator}{start}1+1{separator}y" for start in ("=", "+", "-", "@", '"=', '""=')]
    written = b"".join(csv_parts([["id", text] for text in texts])).decode()
    cells = [cell.strip('"') for cell in re.split(rf"{separator}|\r\n", written)]
    assert [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))] == []
    assert b"".join(csv_parts([["Oslo, -20 freezer; A-1, a=b"]])) == b'"Oslo, -20 freezer; A-1, a=b"\r\n'


def test_a_download_has_no_formula_and_no_zero() -> None:
    rows = [
        [text, datetime(2026, 1, 2, tzinfo=UTC), None, 3.5] for text in ("=1+1", "+1", "-1", "@x", "\tx", "\rx", "a\0")
    ]
    written = b"".join(csv_parts(rows)).decode()
    assert written.count("'") == 6
    assert "\0" not in written
    assert "2026-01-02T00:00:00.000Z,,3.5" in written
