"""Pushes that were not accepted: rejected ones by reason, with what to do; quarantined ones, to look at and retry."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from receiver import admin
from receiver.console.events import shown_body
from receiver.console.paging import ROWS, page_of
from receiver.console.visit import Done, Page, Visit
from receiver.errors import ReceiverError
from receiver.journal import QuarantinedPush

RETRIED_AT_ONCE = 200
"""Up to so many quarantined pushes can be retried here: each takes a commit of its own."""

PLACE = re.compile(r"(\d{1,12}\.\d{1,9})-([0-9a-f]{64})")
"""Where a page of the quarantine begins: after the push of this time and id."""

PUSH_ID = re.compile(r"[0-9a-f]{64}")

ADVICE: Mapping[str, tuple[str, str]] = {
    "missing header X-Dt-Signature": (
        "the Data Connector has no signature secret, or the sender is not DT",
        "enter the secret in DT Studio",
    ),
    "missing header DT-Asymmetric-Signature": (
        "DT_ORGANIZATION_ID is set, and no header of the push verifies it; the sender is not DT",
        "nothing; if it is DT, set the signature secret as well",
    ),
    "malformed token": ("the header holds no valid token", "nothing: not from DT"),
    "token not signed with HS256": ("another algorithm", "nothing: not from DT"),
    "token not signed with ES256": ("another algorithm", "nothing: not from DT"),
    "wrong signature": ("the token names one of DT's keys, and is not signed with it", "nothing: not from DT"),
    "wrong organization": (
        "DT signed the push for another organization",
        "if it is yours, add its id to DT_ORGANIZATION_ID; else nothing",
    ),
    "wrong issuer": ("signed by DT, but not as a Data Connector", "nothing; with DT_ISSUER_URL, correct it"),
    "wrong secret": (
        "DT_SIGNATURE_SECRET differs from the connector's signature secret",
        "set the same secret in both places; the log line says if a secret is in quotes, has leading or trailing "
        "whitespace, or is not used",
    ),
    "token without expiry": ("the token has no exp", "nothing: not from DT"),
    "token without SHA-256 checksum": (
        "a token as DT signed before February 2022",
        "nothing, or legacy_sha1 = true for captured pushes of that time",
    ),
    "expired": ("the push is old, or the clock of this machine is fast", "set the clock"),
    "not yet valid": ("the clock of this machine is slow", "set the clock"),
    "checksum mismatch": ("the body was modified in transit", "look for a proxy that rewrites bodies"),
    "malformed body": ("invalid chunked encoding", "nothing: not from DT"),
    "malformed request": ("invalid HTTP, or a line or header that is too long", "nothing: not from DT"),
    "request incomplete": (
        "not complete within 2 s of its first byte, or shorter than announced; the connection is closed",
        "if it is DT, look at the network",
    ),
    "body too large": ("larger than max_body_bytes", "nothing: DT's bodies are far smaller"),
    "journal unavailable": (
        "disk full, journal over its size limit or locked, database unavailable; the log says which",
        "see disk full",
    ),
    "signing key unknown": (
        "signed with a key of DT that has not been fetched yet",
        "nothing: it is being fetched, and DT retries; if it lasts, see DT's keys cannot be fetched",
    ),
    "internal error": ("a defect of the receiver; the log has a traceback with the request id", "report it"),
}
"""By the text of a response, its cause and what to do about it, as in docs/operations.md."""


@dataclass(frozen=True)
class Rejections:
    """Responses of one kind since the start, with their cause and what to do."""

    code: int
    text: str
    count: int
    cause: str
    remedy: str


def show(visit: Visit) -> Page:
    found = PLACE.fullmatch(visit.query.get("after", ""))
    before = (float(found[1]), found[2]) if found else None
    pushes = page_of(visit.records.quarantined(ROWS + 1, before), lambda push: f"{push.received_at:.9f}-{push.id}")
    count = visit.sources.counts().quarantined
    values = {
        "rejections": rejections(visit.sources.responses()),
        "page": pushes,
        "rows": [admin.quarantine_row(push) for push in pushes.rows],
        "count": max(count, len(pushes.rows)),
        "most": RETRIED_AT_ONCE,
    }
    return Page("rejected.html", values)


def rejections(responses: Mapping[tuple[int, str], int]) -> Sequence[Rejections]:
    """All responses but 200, the most frequent first."""
    rows = [
        Rejections(code, text, count, *ADVICE.get(text, ("", "see the page about operations")))
        for (code, text), count in responses.items()
        if code != 200
    ]
    return sorted(rows, key=lambda row: row.count, reverse=True)


def show_quarantined(visit: Visit) -> Page:
    push = of_path(visit)
    values = {
        "push": push,
        "row": admin.quarantine_row(push),
        **shown_body(push.body),
    }
    return Page("quarantined.html", values)


def of_path(visit: Visit) -> QuarantinedPush:
    """The quarantined push that the path names. Raises ReceiverError if there is none."""
    name = visit.path["push"]
    if not PUSH_ID.fullmatch(name):
        raise ReceiverError("no push in quarantine has this id")
    return admin.one_quarantined(visit.records, name)


def retry_one(visit: Visit) -> Done:
    push = of_path(visit)
    released, left = admin.retry_quarantined(visit.records, push.id)
    if released:
        return Done("/rejected", "released", released)
    return Done(f"/rejected/{push.id}", "not-released", left)


def retry_all(visit: Visit) -> Done:
    count = visit.records.counts().quarantined
    if count > RETRIED_AT_ONCE:
        raise ReceiverError(f"{count:,} pushes are too many to retry here; `quarantine retry` does it")
    released, left = admin.retry_quarantined(visit.records, None)
    return Done("/rejected", *(("released", released) if released else ("not-released", left)))
