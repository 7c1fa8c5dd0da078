"""What is pushed and when, as a function of a seed; the ledger; and the driver that pushes."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from chaos.cloud import Cloud
from receiver.event import TYPES, Event
from receiver.simulator import Simulator

DUPLICATE_SHARE = 0.02
DELAYED_SHARE = 0.05
MAX_DELAY_SECONDS = 10.0
BURST_SHARE = 0.004
BURST_SIZE = 50
UNUSUAL_SHARE = 0.12
NOT_EVENT_SHARE = 0.004
FIRST_EVENT_AT = datetime(2026, 1, 1, tzinfo=UTC)
CONNECTIONS = 48
MAX_WAITING = 5000
"""So many items may wait for a connection; then no more are made until one has got 200."""


@dataclass(frozen=True)
class Item:
    """A body to push. `id` is the event's, or the SHA-256 of a body that is not an event; then `type` is None."""

    id: str
    type: str | None
    body: bytes


@dataclass(slots=True)
class Entry:
    """An item in the ledger, without its body, so that a million fit into memory.

    `digest` is the SHA-256 of the body, `rows` how many an event has in a file of readings. Times are monotonic: the
    first push, and the first 200 to it, by which it is safe.
    """

    id: str
    type: str | None
    digest: str
    rows: int
    first_pushed_at: float
    confirmed_at: float | None = None

    @classmethod
    def of(cls, item: Item, first_pushed_at: float, confirmed_at: float | None = None) -> Entry:
        rows = count_rows(item) if item.type is not None else 0
        return cls(item.id, item.type, digest(item.body), rows, first_pushed_at, confirmed_at)


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def count_rows(item: Item) -> int:
    """How many rows an event has in a file of readings."""
    return max(1, len(Event.from_body(item.body, datetime.now(UTC)).readings()))


class Ledger:
    """The only record of what was pushed, and of what the receiver has confirmed to be safe."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._lock = threading.Lock()

    @property
    def entries(self) -> list[Entry]:
        with self._lock:
            return list(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def record_push(self, item: Item) -> None:
        if item.id not in self._entries:
            entry = Entry.of(item, time.monotonic())
            with self._lock:
                self._entries.setdefault(item.id, entry)

    def confirm(self, item: Item) -> None:
        with self._lock:
            entry = self._entries[item.id]
            entry.confirmed_at = entry.confirmed_at or time.monotonic()


class Driver:
    """Pushes traffic at its times, each item until it gets 200, and records it in the ledger."""

    def __init__(self, cloud: Cloud, traffic: Iterator[tuple[float, Item]]) -> None:
        self.ledger = Ledger()
        self._cloud = cloud
        self._traffic = traffic
        self._pool = ThreadPoolExecutor(CONNECTIONS)
        self._waiting = threading.Semaphore(MAX_WAITING)
        self._finishing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self, seconds: float) -> None:
        """Begin no new push; those under way are retried for so long."""
        self._finishing.set()
        deadline = threading.Timer(seconds, self._cloud.stop)
        deadline.start()
        self._thread.join()
        self._pool.shutdown()
        deadline.cancel()

    def push(self, item: Item) -> None:
        self.ledger.record_push(item)
        if self._cloud.push(item.body):
            self.ledger.confirm(item)

    def attempt(self, item: Item) -> int:
        """Push an item once; the status of the response, 0 for none."""
        self.ledger.record_push(item)
        status = self._cloud.attempt(item.body)
        if status == 200:
            self.ledger.confirm(item)
        return status

    def _run(self) -> None:
        start = time.monotonic()
        for at, item in self._traffic:
            if self._finishing.wait(max(0.0, start + at - time.monotonic())):
                return
            self._waiting.acquire()
            self._pool.submit(self.push, item).add_done_callback(lambda _: self._waiting.release())


def traffic(seed: int, rate: float) -> Iterator[tuple[float, Item]]:
    """Items and the seconds from the start at which they are due: in bursts, out of order, some twice."""
    rng = random.Random(f"order {seed}")
    later: list[tuple[float, int, Item]] = []
    number = itertools.count()
    for at, item in arrivals(seed, rate):
        delay = (rng.random() < DELAYED_SHARE) * rng.uniform(0, MAX_DELAY_SECONDS)
        heapq.heappush(later, (at + delay, next(number), item))
        if rng.random() < DUPLICATE_SHARE:
            heapq.heappush(later, (at + rng.choice([0.0, rng.uniform(0, MAX_DELAY_SECONDS)]), next(number), item))
        while later and later[0][0] <= at:
            due, _, next_item = heapq.heappop(later)
            yield due, next_item


def arrivals(seed: int, rate: float) -> Iterator[tuple[float, Item]]:
    """Items in the order in which they are created, `rate` per second on average."""
    rng = random.Random(f"arrivals {seed}")
    makers = items(seed)
    at = 0.0
    while True:
        at += rng.expovariate(rate / (1 + BURST_SHARE * (BURST_SIZE - 1)))
        for _ in range(BURST_SIZE if rng.random() < BURST_SHARE else 1):
            yield at, next(makers)(FIRST_EVENT_AT + timedelta(seconds=at))


def items(seed: int) -> Iterator[Callable[[datetime], Item]]:
    """Makers of items: ordinary events of all types, unusual ones, and pushes that are not events."""
    rng = random.Random(f"items {seed}")
    simulator = Simulator(seed)

    def ordinary(at: datetime) -> Item:
        event_type = rng.choice(TYPES)
        return event(simulator.body(event_type, at, samples=rng.choice([1, 1, 1, 5, 30])))

    def unusual(at: datetime) -> Item:
        payload = json.loads(simulator.body(rng.choice(TYPES), at))
        return event(rng.choice(UNUSUAL)(payload))

    def not_an_event(at: datetime) -> Item:
        body = rng.choice(NOT_EVENTS).replace(b"NONCE", rng.randbytes(8).hex().encode())
        return Item(digest(body), None, body)

    while True:
        chance = rng.random()
        if chance < NOT_EVENT_SHARE:
            yield not_an_event
        else:
            yield unusual if chance < NOT_EVENT_SHARE + UNUSUAL_SHARE else ordinary


def event(body: bytes) -> Item:
    decoded = json.loads(body)["event"]
    return Item(decoded["eventId"], decoded["eventType"], body)


def unknown_type(payload: dict[str, Any]) -> bytes:
    payload["event"] |= {"eventType": "soilMoisture", "data": {"soilMoisture": {"percent": 1e400, "deep": [[[None]]]}}}
    return json.dumps(payload).encode()


def unicode_labels(payload: dict[str, Any]) -> bytes:
    payload["labels"] = {"name": '=cmd|"A1"\r\nÆrlig 🌡️\u2028\x00', "": "", "\ud800": "\udfff", "x,y": "'"}
    return json.dumps(payload).encode()


def unescaped_labels(payload: dict[str, Any]) -> bytes:
    payload["labels"] = {"name": "Kjøkken 冷蔵庫 🧊", "emoji": "👩‍🔬"}
    return json.dumps(payload, ensure_ascii=False, indent=3).encode()


def labels_null(payload: dict[str, Any]) -> bytes:
    return json.dumps({**payload, "labels": None, "metadata": None}).encode()


def id_and_type_only(payload: dict[str, Any]) -> bytes:
    decoded = payload["event"]
    return json.dumps({"event": {"eventId": decoded["eventId"], "eventType": decoded["eventType"]}}).encode()


def other_shapes(payload: dict[str, Any]) -> bytes:
    payload["event"] |= {"data": [1, "two"], "timestamp": "yesterday", "targetName": 7}
    return b" \n" + json.dumps({**payload, "labels": ["no", "mapping"], "metadata": "none"}).encode() + b"\t\r\n"


def large(payload: dict[str, Any]) -> bytes:
    payload["labels"] = {f"label{number}": "x" * 100 for number in range(200)}
    return json.dumps(payload).encode()


UNUSUAL = [
    unknown_type,
    unicode_labels,
    unescaped_labels,
    labels_null,
    id_and_type_only,
    other_shapes,
    large,
]

NOT_EVENTS = [
    b"NONCE",
    b'["NONCE"]',
    b'{"NONCE": {}}',
    b"\xff\xfe\x00NONCE",
    b'{"event": {"eventId": "not an id, NONCE", "eventType": "touch"}}',
    b'{"event": {"eventId": "NONCE"}}',
    b'{"event": {"eventId": "NONCE", "eventType": "touch"}',
]
