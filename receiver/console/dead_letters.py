"""Dead letters: how many of each sink and reason, those of one group page by page, and their retry or deletion."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from receiver import admin
from receiver.console.paging import ROWS, page_of
from receiver.console.visit import ID, Ask, Done, Page, Visit
from receiver.console.words import up_to
from receiver.errors import ReceiverError
from receiver.validation import counted

GROUPS = 200
"""How many groups of a sink are shown: the first ones in the order of their reasons."""

COUNTED_IN_LIST = 1000
"""Up to this number the dead letters of each group of the list are counted."""

CHANGED_AT_ONCE = 10_000
"""How many dead letters of a group one form changes: about as many as a database changes while a person waits."""

EVERY_REASON = "all"
"""In an address, all dead letters of a sink instead of one group."""


@dataclass(frozen=True)
class Group:
    """Dead letters of a sink: those of one reason, or all of them. `id` names it in addresses."""

    sink: str
    reason: str | None
    count: int
    """Counted up to CHANGED_AT_ONCE, and one more if there are more."""
    id: str

    @property
    def path(self) -> str:
        return f"/dead-letters/{self.sink}/{self.id}"

    @property
    def size(self) -> int:
        """How many of them one form changes."""
        return min(self.count, CHANGED_AT_ONCE)

    @property
    def number(self) -> str:
        return up_to(self.count, CHANGED_AT_ONCE)


def show(visit: Visit) -> Page:
    sink = visit.query.get("sink") or None
    rows = admin.some_dead_letter_reasons(visit.records, visit.settings, sink, GROUPS, COUNTED_IN_LIST + 1)
    names = [name for name, count in visit.sources.counts().sinks.items() if count.dead]
    values = {
        "rows": [(row, Group(row.sink, row.reason, row.count, group_id(row.reason))) for row in rows],
        "sink": sink,
        "sinks": [("all", ""), *((name, name) for name in names)],
        "is_cut": GROUPS in Counter(row.sink for row in rows).values(),
        "groups": GROUPS,
        "most": COUNTED_IN_LIST,
    }
    return Page("dead_letters.html", values)


def group_id(reason: str) -> str:
    """A reason in an address, where the longest ones have no room."""
    return hashlib.sha256(reason.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def show_group(visit: Visit) -> Page:
    group = of_path(visit)
    given = visit.query.get("after", "")
    before = int(given) if given.isdecimal() and len(given) < 19 else None
    found = visit.records.dead_letters(group.sink, ROWS + 1, group.reason, before)
    page = page_of(found, lambda letter: letter.event.key)
    return Page("dead_letter_group.html", {"group": group, "page": page, "rows": map(admin.dead_letter_row, page.rows)})


def of_path(visit: Visit) -> Group:
    """The group that the path names. Raises ReceiverError if it has no dead letter."""
    sink, name = visit.path["sink"], visit.path["group"]
    rows = admin.some_dead_letter_reasons(visit.records, visit.settings, sink, GROUPS, 1)
    reasons = {EVERY_REASON: None, **{group_id(row.reason): row.reason for row in rows}}
    if name not in reasons:
        raise ReceiverError(f"no dead letters of this reason are left at sink {sink}")
    count = visit.records.count_dead_letters(sink, reasons[name], CHANGED_AT_ONCE + 1)
    return Group(sink, reasons[name], count, name)


def retry(visit: Visit) -> Ask | Done:
    return change(visit, Change("Deliver {} to sink {} again", "Retry", "retry", "retried", admin.retry_dead_letters))


def delete(visit: Visit) -> Ask | Done:
    question = "Delete {} of sink {}: the sink never gets these events, unless you replay them while they are stored"
    return change(visit, Change(question, "Delete", "delete", "deleted", admin.delete_dead_letters, danger=True))


@dataclass(frozen=True)
class Change:
    """What is done to dead letters: how it is asked for, how the command is called, and the notice afterwards."""

    question: str
    verb: str
    command: str
    notice: str
    call: Callable[..., int]
    danger: bool = False


def change(visit: Visit, how: Change) -> Ask | Done:
    """Change the dead letters of a group that the form selects; with `whole`, or if it selects none, all of them."""
    group = of_path(visit)
    selected = [] if visit.form.get("whole") else [each for each in visit.form.getlist("event") if ID.fullmatch(each)]
    if not selected and not visit.form.get("whole"):
        raise ReceiverError("no dead letter is selected: check the boxes of those that you mean")
    if visit.confirmed:
        limit = None if selected else CHANGED_AT_ONCE
        number = how.call(visit.records, visit.settings, group.sink, selected, group.reason, limit)
        return Done(group.path if number < group.count else "/dead-letters", how.notice, number)
    if how.command == "retry":
        admin.enabled_sink(visit.settings, group.sink)
    number = group.size
    if selected:
        number = admin.count_dead_letters(visit.records, visit.settings, group.sink, selected, group.reason)
    letters = counted(number, "dead letter")
    rest = " The others stay: do this again for them." if number < group.count and not selected else ""
    ids = " ID …" if selected else " --reason …" if group.reason is not None else ""
    return Ask(
        f"{how.question.format(letters, group.sink)}.{rest}",
        f"{how.verb} {letters}",
        group.path,
        f"dead-letters {how.command} {group.sink}{ids}",
        how.danger,
    )
