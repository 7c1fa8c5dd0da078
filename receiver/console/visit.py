"""What a view gets, and what it can answer. Views run in a native thread, and know nothing of Flask."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from werkzeug.datastructures import MultiDict

from receiver.console.access import Role
from receiver.console.sources import Sources
from receiver.journal import Records
from receiver.sensors.registry import Registry
from receiver.settings import Settings
from receiver.validation import counted

ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""The ids of events and sensors."""


@dataclass(frozen=True)
class Visit:
    """One request: who asks for what. `path` has the variable parts of its path; `now` is in seconds since 1970."""

    role: Role
    path: Mapping[str, str]
    query: MultiDict[str, str]
    form: MultiDict[str, str]
    sources: Sources
    now: float
    is_form: bool = False
    """Whether it was sent to change something, and not to look."""

    @property
    def settings(self) -> Settings:
        return self.sources.settings

    @property
    def records(self) -> Records:
        """The journal's records. Raises JournalError."""
        return self.sources.records()

    @property
    def registry(self) -> Registry:
        """The registry of sensors. Raises JournalError, and NoRegistry if there is none."""
        return self.sources.registry()

    @property
    def may_change(self) -> bool:
        return self.role is Role.ADMIN

    @property
    def after(self) -> str | None:
        """The id after which the page begins; None for the first page."""
        given = self.query.get("after", "")
        return given if ID.fullmatch(given) else None

    @property
    def confirmed(self) -> bool:
        """Whether the form says yes to the question of an `Ask`."""
        return self.form.get("confirmed") == "yes"

    @property
    def time(self) -> datetime:
        return datetime.fromtimestamp(self.now, UTC)


@dataclass(frozen=True)
class Page:
    """A page of HTML: a template with its values."""

    template: str
    values: Mapping[str, Any] = field(default_factory=dict)
    status: int = 200


@dataclass(frozen=True)
class Ask:
    """A question before something is changed: the form is shown again, and sent with a yes.

    `question` says with a number what will happen; `back` is where a no leads. A `danger` cannot be undone.
    """

    question: str
    button: str
    back: str
    command: str = ""
    danger: bool = False


@dataclass(frozen=True)
class Done:
    """Something was changed: on the page at `location`, below /console, the notice of that name says so."""

    location: str
    notice: str
    number: int = 0


@dataclass(frozen=True)
class Download:
    """A CSV file: its name, and its rows with the header first."""

    name: str
    rows: Iterable[Sequence[object]]


@dataclass(frozen=True)
class Data:
    """JSON for a script of the console."""

    content: object


Answer = Page | Ask | Done | Download | Data
View = Callable[[Visit], Answer]


NOTICES: Mapping[str, str] = {
    "resumed": "The sink is probed now, with one event.",
    "retried": "{n:dead letter} will be delivered again.",
    "deleted": "Deleted {n:dead letter}.",
    "replayed": "{n:event} will be delivered again.",
    "released": "{n:quarantined push} became an event and will be delivered.",
    "not-released": "{n:quarantined push} could not be decoded: still no valid event.",
    "backfill": "The dispatcher asks DT now; this page will say what came of it.",
    "snoozed": "The sensor raises no incident for {n:hour}.",
    "woken": "The sensor is not snoozed any more.",
    "retired": "The sensor is retired: it is not expected any more, and its history stays.",
    "unretired": "The sensor is expected again.",
}
"""What was done, by the name of the notice: the address of a page can make it show nothing else."""


class Number(int):
    """A number that is formatted with its noun: `{n:dead letter}` is `2 dead letters`."""

    def __format__(self, noun: str) -> str:
        plural = f"{noun}es" if noun.endswith("push") else ""
        return counted(int(self), noun, plural)


def notice(query: MultiDict[str, str]) -> str | None:
    """The notice that the address of a page asks for."""
    text = NOTICES.get(query.get("done", ""))
    number = query.get("n", "")
    return text.format(n=Number(number if number.isdecimal() and len(number) < 12 else 0)) if text else None
