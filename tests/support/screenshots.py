"""`make screenshots`: the pictures of docs/console.md, of a receiver full of life.

With a folder as argument, every part on a desktop and on a phone, in light and dark, for a person to look at.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from receiver.demo_fleet import fleet
from support.browser import DESKTOP, PHONE, launched, running_demo, visiting
from support.pages import ROOT

IMAGES = ROOT / "docs" / "images"
SENSOR = next(sensor.id for sensor in fleet() if sensor.name == "Server room")
DOOR = next(sensor.id for sensor in fleet() if sensor.name == "Main entrance")
COLD_ROOM = next(sensor.id for sensor in fleet() if sensor.name == "Cold room 2")
OF_DOCS = {
    "overview": "/console/",
    "sensors": "/console/sensors",
    "sensor": f"/console/sensors/{SENSOR}?range=7d",
}
ALL = {
    **OF_DOCS,
    "sensor-gap": f"/console/sensors/{COLD_ROOM}?range=7d",
    "sensor-day": f"/console/sensors/{SENSOR}",
    "sensor-month": f"/console/sensors/{SENSOR}?range=30d",
    "door": f"/console/sensors/{DOOR}",
    "values": f"/console/sensors/{SENSOR}/values?range=7d",
    "silence": "/console/silence",
    "sinks": "/console/sinks",
    "dead-letters": "/console/dead-letters?sink=billing",
    "dead-letters-of-a-sink": "/console/dead-letters/billing/all",
    "events": "/console/events",
    "rejected": "/console/rejected",
    "missing": "/console/nothing",
}


def take(browser: Any, receiver: Any, pages: Mapping[str, str], folder: Path, name: str, **options: Any) -> None:
    with visiting(browser, receiver, **options) as visitor:
        for page, path in pages.items():
            visitor.open(path)
            visitor.page.wait_for_load_state("networkidle")
            visitor.page.screenshot(path=folder / name.format(page), full_page=len(pages) > len(OF_DOCS))


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the pictures of docs/console.md, or those of all parts.")
    parser.add_argument("folder", type=Path, nargs="?")
    folder = parser.parse_args().folder
    with launched() as browser, tempfile.TemporaryDirectory() as data, running_demo(Path(data)) as receiver:
        if folder is None:
            IMAGES.mkdir(exist_ok=True)
            take(browser, receiver, OF_DOCS, IMAGES, "console-{}.png", viewport={"width": 1160, "height": 820})
            return
        folder.mkdir(parents=True, exist_ok=True)
        for scheme in ("light", "dark"):
            take(browser, receiver, ALL, folder, f"{{}}-desktop-{scheme}.png", viewport=DESKTOP, color_scheme=scheme)
            take(browser, receiver, ALL, folder, f"{{}}-phone-{scheme}.png", viewport=PHONE, color_scheme=scheme)


if __name__ == "__main__":
    main()
