"""The console in Chromium: every part with JavaScript and without, accessible, by keyboard, and live."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from conftest import RunningReceiver, wait_until
from support.browser import DESKTOP, PHONE, launched, running_demo, visiting
from support.console import ADMIN, VIEWER
from support.pushes import event

from receiver.console.sharing import SHARED_SECONDS
from receiver.demo_fleet import SILENT, fleet

FREEZER, DOOR = (next(sensor.id for sensor in fleet() if sensor.name == name) for name in (SILENT, "Main entrance"))
PARTS = {
    "overview": "/console/",
    "sensors": "/console/sensors",
    "sensors by state": "/console/sensors?state=silent",
    "no sensors": "/console/sensors?q=nothing",
    "sensor": f"/console/sensors/{FREEZER}",
    "sensor with states": f"/console/sensors/{DOOR}?range=7d",
    "sensor for a month": f"/console/sensors/{FREEZER}?range=30d",
    "values": f"/console/sensors/{FREEZER}/values",
    "silence": "/console/silence",
}
WIDTHS = pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def demo(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReceiver]:
    with running_demo(tmp_path_factory.mktemp("demo")) as receiver:
        yield receiver


@pytest.mark.parametrize("java_script", [True, False], ids=["script", "no script"])
@WIDTHS
def test_every_part_opens_without_a_complaint_and_fits_into_the_window(
    java_script: bool, viewport: dict[str, int], browser: Any, demo: RunningReceiver
) -> None:
    with visiting(browser, demo, viewport=viewport, java_script_enabled=java_script) as visitor:
        for name, path in PARTS.items():
            assert visitor.open(path).status == 200, name
            assert visitor.page.locator("h1").count() == 1, name
            if java_script:
                visitor.page.wait_for_load_state("networkidle")
                assert not visitor.overflows(), name
        assert visitor.wrong == []


def test_axe_finds_nothing_serious(browser: Any, demo: RunningReceiver) -> None:
    with visiting(browser, demo) as visitor:
        for name, path in PARTS.items():
            visitor.open(path)
            visitor.page.wait_for_load_state("networkidle")
            assert visitor.serious_violations() == [], name
            visitor.page.emulate_media(color_scheme="dark")
            assert visitor.serious_violations("color-contrast") == [], f"{name}, dark"
            visitor.page.emulate_media(color_scheme="light")


def test_without_javascript_plots_are_pictures_and_actions_work(browser: Any, demo: RunningReceiver) -> None:
    with visiting(browser, demo, java_script_enabled=False) as visitor:
        visitor.open(f"/console/sensors/{DOOR}")
        page = visitor.page
        assert page.locator("svg.chart").count() >= 2
        page.get_by_label("Raise no incident for").select_option("8 hours")
        page.get_by_role("button", name="Snooze").click()
        assert "raises no incident for 8 hours" in page.get_by_role("status").first.inner_text()
        page.get_by_role("button", name="End the snooze").click()
        page.get_by_role("button", name="Retire…").click()
        page.get_by_role("link", name="Cancel").click()
        page.get_by_role("button", name="Retire…").click()
        page.get_by_role("button", name="Retire the sensor").click()
        assert "is retired" in page.get_by_role("status").first.inner_text()
        page.get_by_role("button", name="Expect it again").click()
        assert "expected again" in page.get_by_role("status").first.inner_text()


def test_over_plain_http_in_a_network_forms_work_too(browser: Any, demo: RunningReceiver) -> None:
    """Browsers send no Sec-Fetch-Site then."""
    with visiting(browser, demo) as visitor:
        visitor.url = f"http://console.test:{demo.port}"
        sent = []
        visitor.page.on("request", lambda request: sent.append(request) if request.method == "POST" else None)
        visitor.open(f"/console/sensors/{DOOR}")
        visitor.page.get_by_role("button", name="Snooze").click()
        visitor.page.get_by_text("raises no incident for 1 hour").wait_for()
        headers = sent[0].all_headers()
        assert (headers["origin"], headers.get("sec-fetch-site")) == (visitor.url, None)
        visitor.page.get_by_role("button", name="End the snooze").click()
        assert visitor.wrong == []


def test_the_history_is_drawn_with_one_axis_of_time_and_can_be_zoomed(browser: Any, demo: RunningReceiver) -> None:
    with visiting(browser, demo) as visitor:
        visitor.open(f"/console/sensors/{FREEZER}?range=7d")
        page = visitor.page
        page.locator(".uplot canvas").first.wait_for()
        assert page.locator(".uplot").count() == page.locator("#plots figure").count() >= 3
        assert page.locator("svg.chart").count() == 0
        zoom_in(page)
        assert "°C" in page.locator("figcaption small").first.inner_text()
        assert visitor.wrong == []


def test_a_value_without_neighbours_is_drawn(browser: Any, demo: RunningReceiver) -> None:
    path = f"/console/sensors/{FREEZER}"
    history = json.loads(get_text(demo, f"{path}/history.json"))
    (plot,) = [each for each in history["plots"] if each["title"] == "Temperature"]
    plot["mean"] = plot["low"] = plot["high"] = [number if n % 2 else None for n, number in enumerate(plot["mean"])]
    history["plots"] = [plot]
    with visiting(browser, demo) as visitor:
        visitor.page.route("**/history.json*", lambda route: route.fulfill(json=history))
        visitor.open(path)
        visitor.page.locator(".uplot canvas").wait_for()
        wait_until(lambda: visitor.page.evaluate(PIXELS_OF_THE_LINE) >= len(plot["times"]))


PIXELS_OF_THE_LINE = """
(() => {
  const { width, height } = drawn[0].ctx.canvas;
  const pixels = drawn[0].ctx.getImageData(0, 0, width, height).data;
  const [red, green, blue] = color("accent").slice(1).match(/../g).map((each) => parseInt(each, 16));
  let found = 0;
  for (let n = 0; n < pixels.length; n += 4)
    found += pixels[n] === red && pixels[n + 1] === green && pixels[n + 2] === blue;
  return found;
})()
"""


def test_on_a_phone_the_text_of_wide_tables_can_be_read_without_scrolling(browser: Any, demo: RunningReceiver) -> None:
    with visiting(browser, demo, viewport=PHONE) as visitor:
        visitor.open("/console/silence")
        page = visitor.page
        for text in (page.locator("caption").first, page.locator("#open ~ .scroll td.text").first):
            box = text.bounding_box()
            assert box
            assert box["x"] + box["width"] <= PHONE["width"] - 16


def test_the_viewer_sees_no_button_that_changes_something(browser: Any, demo: RunningReceiver) -> None:
    with visiting(browser, demo, VIEWER) as visitor:
        for path in PARTS.values():
            visitor.open(path)
            assert visitor.page.locator("form[method=post]").count() == 0, path


def test_the_keyboard_alone_suffices(browser: Any, demo: RunningReceiver) -> None:
    with visiting(browser, demo) as visitor:
        visitor.open("/console/")
        page = visitor.page
        page.keyboard.press("Tab")
        assert focused(page) == "Skip to the content"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        visitor.open("/console/")
        tab_to(page, "Sensors")
        page.keyboard.press("Enter")
        page.wait_for_url("**/console/sensors")
        page.get_by_role("searchbox").focus()
        page.keyboard.type("entrance")
        page.keyboard.press("Enter")
        page.wait_for_url("**q=entrance*")
        tab_to(page, "Main entrance")
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/sensors/{DOOR}")
        tab_to(page, "Snooze")
        page.keyboard.press("Enter")
        page.wait_for_url("**done=snoozed*")
        tab_to(page, "End the snooze")
        page.keyboard.press("Enter")
        page.wait_for_url("**done=woken*")


def focused(page: Any) -> str:
    return str(page.evaluate("document.activeElement.textContent.trim()"))


def tab_to(page: Any, text: str) -> None:
    for _ in range(80):
        page.keyboard.press("Tab")
        if focused(page) == text:
            return
    raise AssertionError(f"no way to {text!r} with the Tab key")


# Live


def test_a_page_follows_what_happens_and_keeps_what_a_person_does(browser: Any, demo: RunningReceiver) -> None:
    with visiting(browser, demo) as visitor:
        page = visitor.page
        page.clock.install()
        visitor.open("/console/sensors")
        link = page.get_by_role("link", name="Main entrance")
        link.focus()
        page.evaluate("getSelection().selectAllChildren(document.querySelector('h1'))")
        page.evaluate("document.querySelector('#live tbody tr th').dataset.same = 'yes'")
        page.evaluate("document.querySelector('input[type=search]').value = 'half typed'")
        rows = page.locator("#live tbody tr")
        before = rows.count()
        with page.expect_response("**/console/sensors"):
            assert demo.push(event("a new sensor")) == (200, "accepted")
            wait_until(lambda: "Simulated touch" in get_text(demo, "/console/sensors"))
            page.clock.fast_forward(11_000)
        wait_until(lambda: rows.count() == before + 1)
        assert focused(page) == "Main entrance"
        assert page.evaluate("getSelection().toString()") == "Sensors"
        assert page.evaluate("document.querySelector('#live tbody tr th').dataset.same") is None
        assert page.evaluate("document.querySelector('input[type=search]').value") == "half typed"
        assert visitor.wrong == []


def get_text(receiver: RunningReceiver, path: str) -> str:
    from support.console import get

    return get(receiver, path).data.decode()


def test_a_plot_stays_zoomed_when_its_sensor_is_heard_again(browser: Any, demo: RunningReceiver) -> None:
    room = next(sensor for sensor in fleet() if sensor.name == "Server room")
    path = f"/console/sensors/{room.id}"
    with visiting(browser, demo) as visitor:
        page = visitor.page
        page.clock.install()
        visitor.open(path)
        page.locator(".uplot canvas").first.wait_for()
        whole = shown_times(page)
        zoom_in(page)
        wait_until(lambda: shown_times(page) != whole)
        zoomed = shown_times(page)
        assert len(zoomed) > 1
        assert len({tuple(times) for times in zoomed}) == 1
        page.evaluate("drawn.before = true")
        before = get_text(demo, f"{path}/history.json")
        for body in room.bodies(datetime.now(UTC), random.Random()):
            assert demo.push(body) == (200, "accepted")
        wait_until(lambda: get_text(demo, f"{path}/history.json") != before)
        page.wait_for_timeout(1000 * SHARED_SECONDS)  # or it may get what was shown before
        page.clock.fast_forward(16_000)
        wait_until(lambda: page.evaluate("drawn.before === undefined"))
        page.evaluate("new Promise((done) => queueMicrotask(done))")
        assert shown_times(page) == zoomed
        page.locator(".u-over").first.dblclick()
        wait_until(lambda: shown_times(page) != zoomed)
        assert shown_times(page)[0][1] > whole[0][1]
        assert visitor.wrong == []


def zoom_in(page: Any) -> None:
    """Drag over the second quarter of the first plot."""
    box = page.locator(".u-over").first.bounding_box()
    assert box
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 4, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, middle, steps=4)
    page.mouse.up()


def shown_times(page: Any) -> list[list[float]]:
    """The begin and the end of the axis of each plot."""
    shown: list[list[float]] = page.evaluate("drawn.map((plot) => [plot.scales.x.min, plot.scales.x.max])")
    return shown


def test_details_stay_open(browser: Any, demo: RunningReceiver) -> None:
    with visiting(browser, demo) as visitor:
        page = visitor.page
        page.clock.install()
        visitor.open("/console/")
        fresh = "<div id=live data-refresh=5><details><summary>y</summary></details></div><p id=stale></p>"
        page.route("**/console/", lambda route: route.fulfill(body=fresh, content_type="text/html"))
        details = "<details open><summary>x</summary></details>"
        page.evaluate(f"live.innerHTML = '{details}'; live.dataset.refresh = '5'")
        page.clock.fast_forward(6_000)
        wait_until(lambda: page.locator("summary").inner_text() == "y")
        assert page.locator("details").get_attribute("open") is not None


def test_a_page_that_cannot_be_refreshed_says_so_and_goes_on(browser: Any, demo: RunningReceiver) -> None:
    with visiting(browser, demo) as visitor:
        page = visitor.page
        page.clock.install()
        visitor.open("/console/")
        page.route("**/console/", lambda route: route.abort())
        page.clock.fast_forward(6_000)
        page.get_by_text("this page is not up to date").wait_for()
        page.unroute("**/console/")
        page.clock.fast_forward(6_000)
        page.get_by_text("this page is not up to date").wait_for(state="hidden")


def test_a_page_that_gets_no_response_says_so_and_goes_on(browser: Any, demo: RunningReceiver) -> None:
    """As when the network drops everything: the browser itself would wait for minutes."""
    with visiting(browser, demo) as visitor:
        page, asked = visitor.page, []
        page.clock.install()
        visitor.open("/console/")
        page.route("**/console/", lambda route: asked.append(route))
        with page.expect_request("**/console/"):
            page.clock.fast_forward(6_000)
        page.clock.fast_forward(16_000)
        page.get_by_text("this page is not up to date").wait_for(timeout=10_000)
        page.unroute("**/console/")
        page.clock.fast_forward(6_000)
        page.get_by_text("this page is not up to date").wait_for(state="hidden")


def test_a_changed_password_stops_polling(browser: Any, demo: RunningReceiver) -> None:
    with visiting(browser, demo) as visitor:
        page, asked = visitor.page, []
        page.clock.install()
        visitor.open("/console/")
        page.route("**/console/", lambda route: (asked.append(1), route.fulfill(status=401, body="")))
        page.clock.fast_forward(6_000)
        page.get_by_text("this page is not up to date").wait_for()
        for _ in range(5):
            page.clock.fast_forward(6_000)
        page.evaluate("0")
        assert len(asked) == 1


def test_a_hidden_tab_asks_for_nothing_until_it_is_seen_again(browser: Any, demo: RunningReceiver) -> None:
    with visiting(browser, demo) as visitor:
        page, asked = visitor.page, []
        page.clock.install()
        visitor.open("/console/")
        page.evaluate("Object.defineProperty(document, 'hidden', {get: () => true, configurable: true})")
        page.on("request", lambda request: asked.append(request.url) if request.resource_type == "fetch" else None)
        for _ in range(5):
            page.clock.fast_forward(6_000)
        page.evaluate("0")
        assert asked == []
        page.evaluate("Object.defineProperty(document, 'hidden', {get: () => false, configurable: true})")
        with page.expect_response("**/console/"):
            page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def test_a_page_prints_without_its_navigation(browser: Any, demo: RunningReceiver) -> None:
    with visiting(browser, demo, ADMIN) as visitor:
        visitor.open("/console/")
        visitor.page.emulate_media(media="print")
        assert not visitor.page.locator("header.top").is_visible()
        assert visitor.page.locator("h1").is_visible()
