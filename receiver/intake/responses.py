"""What all responses have in common: one plain line, a request id, and after a 503 when to retry."""

from __future__ import annotations

import random
import re

RETRY_AFTER_SECONDS = 10

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def request_id(given: str | None) -> str:
    """The id that the client gave to its request, if it is a plain one, or a new one."""
    return given if given and REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"


def plain_headers(status: int) -> list[tuple[str, str]]:
    """The headers of a response that is one line of text."""
    headers = [("Content-Type", "text/plain; charset=utf-8")]
    if status == 503:
        headers.append(("Retry-After", str(RETRY_AFTER_SECONDS)))
    return headers
