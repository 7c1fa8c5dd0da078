"""One rendering for all browsers that poll the same page: who looks at it costs the pushes nothing more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from receiver.console.rendering import Rendered

SHARED_SECONDS = 3.0
"""How long a rendering is shared: less than the shortest interval in which a page polls."""

MOST_PAGES = 100


@dataclass
class Poll:
    """A page that is polled, with its last rendering. The lock is held while it is rendered."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    rendered: Rendered | None = None
    good_until: float = float("-inf")

    def current(self) -> Rendered | None:
        return self.rendered if time.monotonic() < self.good_until else None


class Polls:
    """The last renderings of one process, by what tells them apart: the user and the whole address."""

    def __init__(self) -> None:
        self._polls: dict[Hashable, Poll] = {}

    def find(self, key: Hashable) -> Rendered | None:
        """A rendering that can still be shared. Never blocks."""
        poll = self._polls.get(key)
        return poll.current() if poll else None

    def render(self, key: Hashable, render: Callable[[], Rendered]) -> Rendered:
        """One that can still be shared, or a new one, for which others of the same key wait. Only a 200 is shared."""
        if len(self._polls) >= MOST_PAGES:
            self._polls = {key: poll for key, poll in self._polls.copy().items() if poll.current()}
        poll = self._polls.setdefault(key, Poll())
        with poll.lock:
            shared = poll.current()
            if shared is not None:
                return shared
            rendered = render()
            if rendered.status == 200:
                poll.rendered, poll.good_until = rendered, time.monotonic() + SHARED_SECONDS
            return rendered
