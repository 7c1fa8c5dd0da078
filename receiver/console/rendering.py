"""Turns what a view answers into a response: HTML from templates, CSV, JSON.

Everything that comes from events is escaped and shortened here, and characters that could hide or reorder text are
replaced.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import mimetypes
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from receiver import __version__
from receiver.console import charts, words
from receiver.console.sources import MOST_COUNTED
from receiver.console.visit import Answer, Ask, Data, Done, Download, Page, Visit, notice
from receiver.event import rfc3339
from receiver.redaction import Redactor
from receiver.validation import counted, in_one_unit

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"

MAX_TEXT = 120
"""How many characters of a text from an event or an error are shown in a line."""

GZIP_BYTES = 1000
"""A shorter response is not worth compressing."""

GZIP_FORMAT = 16
"""Added to zlib's `wbits`: https://docs.python.org/3/library/zlib.html#zlib.compressobj"""

PART_ROWS = 100
"""How many rows of a CSV file are made at once: a few milliseconds' work, for which pushes wait."""

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What the text of a formula begins with: https://owasp.org/www-community/attacks/CSV_Injection"""

FORMULA_AFTER_SEPARATOR = re.compile(r'([,;\t\r\n]"*)([=+\-@])')
"""What begins a formula in a spreadsheet that splits rows at another separator: quotes hold a cell together only at its
beginning."""

MISLEADING = re.compile(
    r"[\0-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff"
    r"\ufeff\uffa0\U000e0000-\U000e007f]"
)
"""Control characters, those that change the direction of the text after them, and those that are invisible."""


@dataclass(frozen=True)
class Rendered:
    """A response: its status, its body, and its headers besides those of every response of the console.

    `rest` makes what follows the body, part by part, if it is long.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    rest: Iterator[bytes] | None = None

    def compressed(self) -> Rendered:
        headers = {**self.headers, "Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        if self.rest is not None:
            parts = gzip_parts(chain([self.body], self.rest))
            return Rendered(self.status, next(parts), headers, parts)
        if len(self.body) < GZIP_BYTES:
            return self
        return Rendered(self.status, gzip.compress(self.body, 6, mtime=0), headers)


class Renderer:
    """Renders answers with the templates and the static files of the console. Callable from any thread."""

    def __init__(self, redactor: Redactor, parts: Sequence[tuple[str, str]]) -> None:
        """`parts` are the titles and the paths that the navigation shows."""
        self._static = dict(static_files())
        self._environment = Environment(
            loader=FileSystemLoader(FOLDER / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters |= {
            "ago": ago,
            "at": at,
            "counted": counted,
            "duration": in_one_unit,
            "plain": plain,
            "redacted": redactor.redact,
            "text": text,
            "up_to": lambda count, most=MOST_COUNTED: words.up_to(count, most),
            "thousands": lambda number: f"{number:,}",
        }
        self._environment.globals |= {
            "address": address,
            "charts": charts,
            "parts": parts,
            "static": lambda name: f"/console/static/{name}?v={self._static[name].version}",
            "version": __version__,
            "words": words,
        }

    def static(self, name: str, *, compress: bool) -> Rendered | None:
        """A static file; None if there is none of that name. Its address changes with its content."""
        found = self._static.get(name)
        return None if found is None else found.compressed if compress else found.rendered

    def render(self, visit: Visit | None, answer: Answer) -> Rendered:
        """The response with an answer; without a visit, to a request that has none."""
        if isinstance(answer, Done):
            separator = "&" if "?" in answer.location else "?"
            location = f"/console{answer.location}{separator}done={answer.notice}&n={answer.number}"
            return Rendered(303, b"", {"Location": location})
        if isinstance(answer, Download):
            headers = {"Content-Disposition": f'attachment; filename="{answer.name}"'}
            parts = csv_parts(answer.rows)
            first, second = next(parts, b""), next(parts, None)
            rest = None if second is None else chain([second], parts)
            return Rendered(200, first, {**headers, "Content-Type": "text/csv; charset=utf-8"}, rest)
        if isinstance(answer, Data):
            content = json.dumps(answer.content, separators=(",", ":"), allow_nan=False)
            return Rendered(200, content.encode(), {"Content-Type": "application/json"})
        if isinstance(answer, Ask):
            answer = Page("ask.html", {"ask": answer})
        html = self._environment.get_template(answer.template).render(
            {"notice": notice(visit.query) if visit else None, "visit": visit, **answer.values}
        )
        return Rendered(answer.status, html.encode("utf-8", "replace"), {"Content-Type": "text/html; charset=utf-8"})


@dataclass(frozen=True)
class StaticFile:
    """A file that browsers may keep: its address has its version."""

    version: str
    rendered: Rendered
    compressed: Rendered


def static_files() -> Iterable[tuple[str, StaticFile]]:
    """The static files by their path below `static`."""
    for path in sorted(STATIC.rglob("*")):
        if path.suffix in (".css", ".js", ".svg"):
            content = path.read_bytes()
            kind, _ = mimetypes.guess_type(path.name)
            headers = {
                "Content-Type": f"{kind}; charset=utf-8",
                "Cache-Control": "private, max-age=31536000, immutable",
            }
            rendered = Rendered(200, content, headers)
            version = hashlib.sha256(content).hexdigest()[:12]
            yield path.relative_to(STATIC).as_posix(), StaticFile(version, rendered, rendered.compressed())


def address(path: str, **query: object) -> str:
    """The address of a page below /console; what is empty is left out of its query."""
    given = {name: value for name, value in query.items() if value not in (None, "")}
    return f"/console{path}?{urlencode(given)}" if given else f"/console{path}"


def plain(value: object, limit: int = MAX_TEXT) -> str:
    """Text of unknown origin, without what could hide or reorder it, and not longer than `limit`."""
    given = str(value)
    shown = MISLEADING.sub("\N{REPLACEMENT CHARACTER}", given[: limit + 1])
    return f"{shown[: limit - 1]}…" if len(given) > limit else shown


def text(value: object, limit: int = MAX_TEXT) -> Markup:
    """The same as HTML, which no direction of its writing can get out of; a dash for None."""
    if value is None:
        return Markup('<span class="none">&ndash;</span>')
    return Markup("<bdi>{}</bdi>").format(plain(value, limit))


def at(time: datetime | None) -> Markup:
    """A time, to the minute and in UTC."""
    if time is None:
        return Markup('<span class="none">never</span>')
    return Markup('<time datetime="{}">{:%Y-%m-%d %H:%M}</time>').format(rfc3339(time, "seconds"), time.astimezone(UTC))


def ago(time: datetime | None) -> Markup:
    """How long ago a time was, with the time itself as a title."""
    if time is None:
        return Markup('<span class="none">never</span>')
    shown = in_one_unit((datetime.now(UTC) - time).total_seconds())
    title = f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return Markup('<time datetime="{}" title="{}">{} ago</time>').format(rfc3339(time, "seconds"), title, shown)


def csv_parts(rows: Iterable[Sequence[object]]) -> Iterator[bytes]:
    """Rows as CSV (RFC 4180) for spreadsheets, which read no cell as a formula; some rows at a time."""
    each = iter(rows)
    while some := list(islice(each, PART_ROWS)):
        file = io.StringIO()
        csv.writer(file).writerows([[csv_cell(value) for value in row] for row in some])
        yield file.getvalue().encode("utf-8", "replace")


def gzip_parts(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Parts of a long response, compressed as one: none of them is empty."""
    compressor = zlib.compressobj(6, wbits=zlib.MAX_WBITS | GZIP_FORMAT)
    for part in parts:
        yield compressor.compress(part) + compressor.flush(zlib.Z_SYNC_FLUSH)
    yield compressor.flush()


def csv_cell(value: object) -> object:
    if isinstance(value, datetime):
        return rfc3339(value, "milliseconds")
    if isinstance(value, str):
        value = FORMULA_AFTER_SEPARATOR.sub(r"\1'\2", value.replace("\0", "\N{REPLACEMENT CHARACTER}"))
        return f"'{value}" if value.startswith(FORMULA) else value
    return value
