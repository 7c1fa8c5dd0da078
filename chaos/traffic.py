"""What is pushed and when, as a function of a seed; the ledger of it; and the pushing."""

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

from receiver.event import TYPES
from receiver.simulator import Simulator
from receiver.testing.cloud import Cloud

DUPLICATES = 0.02
LATE = 0.05
LATEST_SECONDS = 10.0
BURSTS = 0.004
BURST = 50
STRANGE = 0.12
NO_EVENTS = 0.004
FIRST_MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
CONNECTIONS = 48


@dataclass(frozen=True)
class Item:
    """A body to push. `id` is the event's, or the SHA-256 of a body that is no event; then `type` is None."""

    id: str
    type: str | None
    body: bytes


@dataclass
class Entry:
    """What the ledger holds of an item; times are monotonic. It is safe from when it was answered 200."""

    item: Item
    first_pushed_at: float
    taken_at: float | None = None


class Ledger:
    """The only record of what was pushed and of what was promised to be safe."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._lock = threading.Lock()

    @property
    def entries(self) -> list[Entry]:
        with self._lock:
            return list(self._entries.values())

    def pushing(self, item: Item) -> None:
        with self._lock:
            self._entries.setdefault(item.id, Entry(item, time.monotonic()))

    def taken(self, item: Item) -> None:
        with self._lock:
            entry = self._entries[item.id]
            entry.taken_at = entry.taken_at or time.monotonic()


class Driver:
    """Pushes traffic at its times, each item until it is answered 200, and keeps the ledger."""

    def __init__(self, cloud: Cloud, traffic: Iterator[tuple[float, Item]]) -> None:
        self.ledger = Ledger()
        self._cloud = cloud
        self._traffic = traffic
        self._pool = ThreadPoolExecutor(CONNECTIONS)
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self, seconds: float) -> None:
        """Begin no new push; those begun are tried on for so long."""
        self._enough.set()
        self._thread.join()
        given_up = threading.Timer(seconds, self._cloud.stop)
        given_up.start()
        self._pool.shutdown()
        given_up.cancel()

    def push(self, item: Item) -> None:
        self.ledger.pushing(item)
        if self._cloud.push(item.body):
            self.ledger.taken(item)

    def _run(self) -> None:
        start = time.monotonic()
        for at, item in self._traffic:
            if self._enough.wait(max(0.0, start + at - time.monotonic())):
                return
            self._pool.submit(self.push, item)


def traffic(seed: int, rate: float) -> Iterator[tuple[float, Item]]:
    """Items and the seconds from the start at which they are due: in bursts, out of order, some twice."""
    dice = random.Random(f"order {seed}")
    later: list[tuple[float, int, Item]] = []
    number = itertools.count()
    for at, item in arrivals(seed, rate):
        heapq.heappush(later, (at + (dice.random() < LATE) * dice.uniform(0, LATEST_SECONDS), next(number), item))
        if dice.random() < DUPLICATES:
            heapq.heappush(later, (at + dice.choice([0.0, dice.uniform(0, LATEST_SECONDS)]), next(number), item))
        while later and later[0][0] <= at:
            due, _, ripe = heapq.heappop(later)
            yield due, ripe


def arrivals(seed: int, rate: float) -> Iterator[tuple[float, Item]]:
    """Items in the order in which they come about, `rate` a second on average."""
    dice = random.Random(f"arrivals {seed}")
    makers = items(seed)
    at = 0.0
    while True:
        at += dice.expovariate(rate / (1 + BURSTS * (BURST - 1)))
        for _ in range(BURST if dice.random() < BURSTS else 1):
            yield at, next(makers)(FIRST_MOMENT + timedelta(seconds=at))


def items(seed: int) -> Iterator[Callable[[datetime], Item]]:
    """Makers of items: ordinary events of all types, strange ones, and pushes that are no events."""
    dice = random.Random(f"items {seed}")
    simulator = Simulator(seed)

    def ordinary(at: datetime) -> Item:
        event_type = dice.choice(TYPES)
        return event(simulator.body(event_type, at, samples=dice.choice([1, 1, 1, 5, 30])))

    def strange(at: datetime) -> Item:
        payload = json.loads(simulator.body(dice.choice(TYPES), at))
        return event(dice.choice(STRANGENESS)(payload))

    def no_event(at: datetime) -> Item:
        body = dice.choice(NONSENSE).replace(b"NONCE", dice.randbytes(8).hex().encode())
        return Item(hashlib.sha256(body).hexdigest(), None, body)

    while True:
        throw = dice.random()
        yield no_event if throw < NO_EVENTS else strange if throw < NO_EVENTS + STRANGE else ordinary


def event(body: bytes) -> Item:
    told = json.loads(body)["event"]
    return Item(told["eventId"], told["eventType"], body)


def unknown_type(payload: dict[str, Any]) -> bytes:
    payload["event"] |= {"eventType": "soilMoisture", "data": {"soilMoisture": {"percent": 1e400, "deep": [[[None]]]}}}
    return json.dumps(payload).encode()


def unicode_labels(payload: dict[str, Any]) -> bytes:
    payload["labels"] = {"name": '=cmd|"A1"\r\nÆrlig 🌡️\u2028\x00', "": "", "\ud800": "\udfff", "x,y": "'"}
    return json.dumps(payload).encode()


def not_escaped(payload: dict[str, Any]) -> bytes:
    payload["labels"] = {"name": "Kjøkken 冷蔵庫 🧊", "emoji": "👩‍🔬"}
    return json.dumps(payload, ensure_ascii=False, indent=3).encode()


def labels_null(payload: dict[str, Any]) -> bytes:
    return json.dumps({**payload, "labels": None, "metadata": None}).encode()


def bare(payload: dict[str, Any]) -> bytes:
    told = payload["event"]
    return json.dumps({"event": {"eventId": told["eventId"], "eventType": told["eventType"]}}).encode()


def other_shapes(payload: dict[str, Any]) -> bytes:
    payload["event"] |= {"data": [1, "two"], "timestamp": "yesterday", "targetName": 7}
    return b" \n" + json.dumps({**payload, "labels": ["no", "mapping"], "metadata": "none"}).encode() + b"\t\r\n"


def large(payload: dict[str, Any]) -> bytes:
    payload["labels"] = {f"label{number}": "x" * 100 for number in range(200)}
    return json.dumps(payload).encode()


STRANGENESS = [unknown_type, unicode_labels, not_escaped, labels_null, bare, other_shapes, large]

NONSENSE = [
    b"NONCE",
    b'["NONCE"]',
    b'{"NONCE": {}}',
    b"\xff\xfe\x00NONCE",
    b'{"event": {"eventId": "not an id, NONCE", "eventType": "touch"}}',
    b'{"event": {"eventId": "NONCE"}}',
    b'{"event": {"eventId": "NONCE", "eventType": "touch"}',
]
