"""The static files and templates of the console: what is vendored, how large it is, and that all of it is its own."""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path

import pytest
from support.pages import ROOT, tables

from receiver.console.rendering import STATIC

TEMPLATES = sorted((STATIC.parent / "templates").glob("*.html"))
VENDOR = STATIC / "vendor"
FIRST_PAGE = ("console.css", "console.js", "icon.svg")


def test_what_is_vendored_is_what_its_table_says() -> None:
    (rows,) = tables((VENDOR / "README.md").read_text())
    listed = {name.strip("`"): checksum.strip("`") for name, _, _, checksum in rows}
    files = [path for path in VENDOR.iterdir() if path.name != "README.md"]
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files} == listed


def test_there_is_one_short_stylesheet_and_a_short_script() -> None:
    assert [path.name for path in STATIC.glob("*.css")] == ["console.css"]
    assert (STATIC / "console.css").stat().st_size <= 10_000
    assert len((STATIC / "console.js").read_text().splitlines()) <= 40


def test_the_files_of_the_first_page_are_small() -> None:
    assert sum(len(gzip.compress((STATIC / name).read_bytes())) for name in FIRST_PAGE) < 10_000


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_template_has_an_inline_script_a_style_or_a_foreign_address(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=|javascript:|https?://|\|\s*safe\b", text) == []


def test_templates_and_static_files_are_in_the_package() -> None:
    assert (
        '"receiver.console" = ["templates/*", "static/*", "static/vendor/*"]' in (ROOT / "pyproject.toml").read_text()
    )
