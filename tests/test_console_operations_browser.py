"""The parts of the console about deliveries and pushes in Chromium: with JavaScript and without, by keyboard, live."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import RunningReceiver, wait_until
from support.browser import DESKTOP, PHONE, launched, running_demo, visiting
from support.console import VIEWER, get


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def demo(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReceiver]:
    with running_demo(tmp_path_factory.mktemp("demo")) as receiver:
        for body in (b"not JSON", b'{"event": {"eventId": "x", "eventType": 5}}', b"\xff\xfe"):
            assert receiver.push(body) == (200, "quarantined")
        assert receiver.http.request("POST", receiver.url, body=b"{}").status == 400
        yield receiver


@pytest.fixture(scope="module")
def parts(demo: RunningReceiver) -> dict[str, str]:
    """The path of each part by its name."""
    group = link(demo, "/console/dead-letters", r"/console/dead-letters/billing/\w+")
    return {
        "sinks": "/console/sinks",
        "dead letters": "/console/dead-letters",
        "dead letters of a sink": "/console/dead-letters?sink=billing",
        "none of a sink": "/console/dead-letters?sink=archive",
        "a group": group,
        "all of a sink": "/console/dead-letters/billing/all",
        "events": "/console/events",
        "nothing found": "/console/events?q=nothing",
        "an event": link(demo, group, r"/console/events/[\w-]+"),
        "rejected": "/console/rejected",
        "quarantined": link(demo, "/console/rejected", r"/console/rejected/\w{64}"),
    }


def link(receiver: RunningReceiver, path: str, pattern: str) -> str:
    """The first address of this pattern to which a page leads."""
    found = re.search(f'href="({pattern})"', get(receiver, path).data.decode())
    assert found, path
    return found[1]


@pytest.mark.parametrize("java_script", [True, False], ids=["script", "no script"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_part_opens_without_a_complaint_and_fits_into_the_window(
    java_script: bool, viewport: dict[str, int], browser: Any, demo: RunningReceiver, parts: dict[str, str]
) -> None:
    with visiting(browser, demo, viewport=viewport, java_script_enabled=java_script) as visitor:
        for name, path in parts.items():
            assert visitor.open(path).status == 200, name
            assert visitor.page.locator("h1").count() == 1, name
            assert "python -m receiver" in visitor.page.locator("footer").inner_text(), name
            if java_script:
                visitor.page.wait_for_load_state("networkidle")
                assert not visitor.overflows(), name
        assert visitor.wrong == []


def test_axe_finds_nothing_serious(browser: Any, demo: RunningReceiver, parts: dict[str, str]) -> None:
    with visiting(browser, demo) as visitor:
        for name, path in parts.items():
            visitor.open(path)
            visitor.page.wait_for_load_state("networkidle")
            assert visitor.serious_violations() == [], name
            visitor.page.emulate_media(color_scheme="dark")
            assert visitor.serious_violations("color-contrast") == [], f"{name}, dark"
            visitor.page.emulate_media(color_scheme="light")


def test_the_viewer_sees_no_button_that_changes_something(
    browser: Any, demo: RunningReceiver, parts: dict[str, str]
) -> None:
    with visiting(browser, demo, VIEWER) as visitor:
        for path in parts.values():
            visitor.open(path)
            assert visitor.page.locator("form[method=post] button, input[type=checkbox]").count() == 0, path


def push_dead(receiver: RunningReceiver, count: int, name: str) -> None:
    """More dead letters of the sink billing."""
    before = dead(receiver)
    for number in range(count):
        labels = {"name": "Loading dock"}  # of which the sink wants nothing
        payload = {"event": {"eventId": f"{name}{number}", "eventType": "contact"}, "labels": labels}
        assert receiver.push(json.dumps(payload).encode()) == (200, "accepted")
    wait_until(lambda: dead(receiver) == before + count)


def dead(receiver: RunningReceiver) -> int:
    return int(receiver.metric('receiver_dead_letters{sink="billing"}'))


def notice(page: Any) -> str:
    return str(page.locator("p.notice").first.inner_text())


@pytest.mark.parametrize("java_script", [True, False], ids=["script", "no script"])
def test_dead_letters_are_retried_and_deleted(java_script: bool, browser: Any, demo: RunningReceiver) -> None:
    name = "with" if java_script else "without"
    push_dead(demo, 3, name)
    with visiting(browser, demo, java_script_enabled=java_script) as visitor:
        page = visitor.page
        visitor.open("/console/dead-letters")
        page.get_by_role("link", name="HTTP 422").click()
        page.get_by_label(f"Select event {name}0").check()
        page.get_by_label(f"Select event {name}1").check()
        page.get_by_role("button", name="Delete selected").click()
        assert "Delete 2 dead letters of sink billing" in page.locator("main").inner_text()
        page.get_by_role("link", name="Cancel").click()
        page.get_by_label(f"Select event {name}0").check()
        page.get_by_role("button", name="Delete selected").click()
        page.get_by_role("button", name="Delete 1 dead letter").click()
        assert notice(page) == "Deleted 1 dead letter."
        assert page.get_by_label(f"Select event {name}0").count() == 0
        page.get_by_role("button", name="Retry all").click()
        page.get_by_role("button", name=re.compile(r"Retry \d+ dead letters")).click()
        assert "dead letters will be delivered again." in notice(page)
        assert visitor.wrong == []
    pending = 'receiver_pending_deliveries{sink="billing"}'
    wait_until(lambda: demo.metric(pending) == 0, what="deliveries that are all given up again")


def test_the_keyboard_alone_suffices(browser: Any, demo: RunningReceiver) -> None:
    push_dead(demo, 1, "keyboard")
    with visiting(browser, demo) as visitor:
        page = visitor.page
        visitor.open("/console/dead-letters/billing/all")
        page.get_by_label("Select event keyboard0").focus()
        page.keyboard.press("Space")
        tab_to(page, "Delete selected…", back=True)
        page.keyboard.press("Enter")
        page.wait_for_url("**/delete")
        tab_to(page, "Delete 1 dead letter")
        page.keyboard.press("Enter")
        page.wait_for_url("**done=deleted&n=1")


def tab_to(page: Any, text: str, *, back: bool = False) -> None:
    for _ in range(80):
        page.keyboard.press("Shift+Tab" if back else "Tab")
        if page.evaluate("document.activeElement.textContent.trim()") == text:
            return
    raise AssertionError(f"no way to {text!r} with the Tab key")


@pytest.mark.parametrize("java_script", [True, False], ids=["script", "no script"])
def test_the_other_actions_work(java_script: bool, browser: Any, demo: RunningReceiver, parts: dict[str, str]) -> None:
    with visiting(browser, demo, java_script_enabled=java_script) as visitor:
        page = visitor.page
        visitor.open("/console/sinks")
        page.get_by_role("button", name="Probe now with 1 event").click()
        assert notice(page) == "The sink is probed now, with one event."
        visitor.open(parts["an event"])
        page.get_by_label("Deliver it again to").select_option("archive")
        page.get_by_role("button", name="Replay…").click()
        page.get_by_role("button", name="Replay 1 event").click()
        assert notice(page) == "1 event will be delivered again."
        visitor.open(parts["quarantined"])
        page.get_by_role("button", name="Retry: decode 1 push again").click()
        assert "could not be decoded" in notice(page)
        visitor.open("/console/rejected")
        page.get_by_role("button", name="Retry all 3").click()
        assert notice(page).startswith("3 quarantined pushes could not be decoded")
        assert visitor.wrong == []


def test_an_event_is_found_by_the_name_of_its_sensor_and_by_its_id(browser: Any, demo: RunningReceiver) -> None:
    with visiting(browser, demo) as visitor:
        page = visitor.page
        visitor.open("/console/events")
        page.get_by_role("searchbox").fill("main entr")
        page.keyboard.press("Enter")
        page.wait_for_url("**q=main*")
        rows = page.locator("tbody tr")
        assert rows.count() > 0
        assert all("Main entrance" in text for text in rows.all_inner_texts())
        found = page.locator("tbody a").first.inner_text()
        page.get_by_role("searchbox").fill(found)
        page.keyboard.press("Enter")
        page.wait_for_url(f"**q={found}")
        page.get_by_role("link", name=found).click()
        page.wait_for_url(f"**/events/{found}")
        assert found in page.locator("h1").inner_text()
        page.get_by_text("As it was received").click()
        assert page.locator("details pre").is_visible()


def test_what_happens_to_a_sink_is_shown_without_a_reload(browser: Any, demo: RunningReceiver) -> None:
    with visiting(browser, demo) as visitor:
        page = visitor.page
        page.clock.install()
        visitor.open("/console/sinks")
        card = page.locator("#k-archive")
        before = card.inner_text()
        push_dead(demo, 1, "live")
        page.clock.fast_forward(6_000)
        wait_until(lambda: card.inner_text() != before)
        assert visitor.wrong == []
