"""Hostile text in reasons, events and quarantined bodies, on the pages about deliveries and pushes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import RunningReceiver, wait_until
from support.browser import DESKTOP, PHONE, launched, visiting
from support.console import PASSWORDS, get, post
from test_console_hostile import CONFIG, HOSTILE, PLUGIN, body, device

from receiver.console.rendering import MISLEADING

ADDRESS = re.compile(r'href="(/console/(?:dead-letters|rejected|events)/[^"?]+)"')


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReceiver]:
    """Dead letters of hostile reasons, a paused sink, events of hostile sensors, quarantined pushes."""
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
        yield receiver
    finally:
        receiver.kill_all()


@pytest.fixture(scope="module")
def pages(hostile: RunningReceiver) -> list[str]:
    """Each list, and each page that one of them leads to."""
    lists = ["/console/sinks", "/console/dead-letters", "/console/dead-letters/dead/all", "/console/events"]
    lists += ["/console/dead-letters?sink=dead", "/console/rejected"]
    searched = [f"/console/events?q={text}" for text in ("<script>hacked=1</script>", '"><img src=x onerror=hacked=1>')]
    led_to = {path for each in lists for path in ADDRESS.findall(get(hostile, each).data.decode())}
    assert len([path for path in led_to if path.startswith("/console/events/")]) == len(HOSTILE)
    assert len([path for path in led_to if path.startswith("/console/rejected/")]) == len(HOSTILE)
    assert len([path for path in led_to if path.startswith("/console/dead-letters/dead/")]) > len(HOSTILE) / 2
    return [*lists, *searched, *sorted(led_to)]


def test_nothing_hostile_runs_or_breaks_a_page(browser: Any, hostile: RunningReceiver, pages: list[str]) -> None:
    with visiting(browser, hostile) as visitor:
        for path in pages:
            visitor.page.set_viewport_size(PHONE)
            assert visitor.open(path).status == 200, path
            visitor.page.wait_for_load_state("networkidle")
            assert visitor.page.evaluate("typeof hacked") == "undefined", path
            assert not visitor.overflows(), path
            visitor.page.set_viewport_size(DESKTOP)
            assert not visitor.overflows(), path
        assert visitor.wrong == []


def test_pages_are_short_and_have_no_character_that_hides_or_reorders_text(
    hostile: RunningReceiver, pages: list[str]
) -> None:
    for path in pages:
        shown = get(hostile, path).data
        assert len(shown) < 300_000, path
        assert not MISLEADING.search(shown.decode().replace("\n", "")), path
        assert b"<script>hacked" not in shown, path


QUESTIONS = [
    ("/console/events/{}/replay", {"sink": '"><script>hacked=1</script>'}),
    ("/console/dead-letters/dead/all/delete", {"whole": "yes", '"><script>hacked=1</script>': "<b>"}),
    ("/console/dead-letters/dead/all/retry", {"event": '"><script>hacked=1</script>', "whole": "yes"}),
    ("/console/sinks/%3Cscript%3Ehacked=1/resume", {}),
    ("/console/dead-letters/%3Cscript%3Ehacked=1/all/delete", {"whole": "yes"}),
]


@pytest.mark.parametrize(("path", "fields"), QUESTIONS)
def test_a_form_that_is_shown_again_runs_nothing(path: str, fields: dict[str, str], hostile: RunningReceiver) -> None:
    response = post(hostile, path.format(device(0)), fields)
    assert response.status in (200, 404, 409)
    assert b"<script>hacked" not in response.data
    assert b"<b>" not in response.data
