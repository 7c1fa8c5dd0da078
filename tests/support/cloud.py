"""A fake DT cloud for tests, and its REST API used on its own clock."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from receiver.dt.api import Api
from receiver.dt.session import Session
from receiver.testing.cloud import EMAIL, KEY_ID, SECRET, Cloud
from receiver.variables import ApiAccess

PROJECT = "c8v2lh6000000000000p"
OTHER_PROJECT = "c8v2lh6000000000000q"
FREEZER = "c8v2lh6000000000000f"
DOOR = "c8v2lh6000000000000d"
NOW = 1_773_500_000.0
"""A time on a Saturday in March 2026."""


_opened: list[Api] = []


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with Cloud() as cloud:
        yield cloud
    while _opened:
        _opened.pop().close()


def open_api(session: Session) -> Api:
    """The API for one thread, closed at the end of the test."""
    _opened.append(Api(session))
    return _opened[-1]


def access(cloud: Cloud, **changes: str) -> ApiAccess:
    values = {"key_id": KEY_ID, "secret": SECRET, "email": EMAIL}
    values |= {"url": f"{cloud.url}/v2", "token_url": f"{cloud.url}/oauth2/token"}
    return ApiAccess(**{**values, **changes})


class Client:
    """The API on the clock of the cloud, on which waiting takes no time. `waits` are the reasons that were shown."""

    def __init__(self, cloud: Cloud, **changes: str) -> None:
        cloud.now = NOW if cloud.now is None else cloud.now
        self.waits: list[tuple[float, str]] = []
        self.session = Session(
            access(cloud, **changes),
            now=cloud.clock,
            wait=lambda seconds: setattr(cloud, "now", cloud.clock() + seconds),
            on_wait=lambda seconds, reason: self.waits.append((seconds, reason)),
        )
        self.api = open_api(self.session)
