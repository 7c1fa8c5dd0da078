"""Pages of rows by keyset: a page begins after the last row of the one before, however many there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Row = TypeVar("Row")

ROWS = 50
"""How many rows a page has. Ask for one more, so that `page_of` knows whether there is another page."""


@dataclass(frozen=True)
class Rows(Generic[Row]):
    """The rows of a page; `next` is the query's `after` of the next one, None on the last."""

    rows: Sequence[Row]
    next: str | None


def page_of(found: Sequence[Row], key: Callable[[Row], object], size: int = ROWS) -> Rows[Row]:
    """A page of what was found after the page before; `key` names a row in the address of the next page."""
    rows = found[:size]
    return Rows(rows, str(key(rows[-1])) if len(found) > size else None)
