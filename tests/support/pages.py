"""The pages of the documentation, parsed as far as tests need it: sections, tables, code blocks, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)


class Page:
    """One Markdown file, by its path in the repository."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = ROOT / name
        self.text = self.path.read_text(encoding="utf-8")
        self.prose = CODE.sub("", self.text)

    def __repr__(self) -> str:
        return self.name

    def section(self, heading: str) -> str:
        """The text below a heading, up to the next one of the same or a higher level."""
        found = re.search(rf"^(#+) {re.escape(heading)}\n", self.prose, re.MULTILINE)
        assert found, f"{self.name} has no heading {heading!r}"
        rest = self.prose[found.end() :]
        end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
        return rest[: end.start()] if end else rest

    def table(self, heading: str, number: int = 0) -> list[list[str]]:
        """The rows of a table below a heading, without its head."""
        return tables(self.section(heading))[number]

    def blocks(self, language: str) -> list[str]:
        return re.findall(rf"^```{language}\n(.*?)^```$", self.text, re.DOTALL | re.MULTILINE)

    def anchors(self) -> set[str]:
        """The anchors that GitHub makes of the headings."""
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in HEADING.findall(self.prose)}

    def links(self) -> Iterator[tuple[Path, str]]:
        """The file and the anchor that each relative link leads to."""
        for target in re.findall(r"\]\(([^)\s]+)\)", self.prose):
            if "://" not in target:
                file, _, anchor = target.partition("#")
                yield (self.path.parent / file).resolve() if file else self.path, anchor


def tables(text: str) -> list[list[list[str]]]:
    """Every table in a text: rows of cells, without the head."""
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in lines.splitlines()[2:]]
        for lines in re.findall(r"(?:^\|.*\|\n)+", text + "\n", re.MULTILINE)
    ]


def in_backticks(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def all_pages() -> list[Page]:
    """Every Markdown file of the repository."""
    hidden = {".venv", ".git", "build", "node_modules"}
    files = [path.relative_to(ROOT) for path in ROOT.rglob("*.md")]
    kept = [file for file in files if not any(part in hidden or part.startswith(".") for part in file.parts)]
    return [Page(file.as_posix()) for file in sorted(kept)]
