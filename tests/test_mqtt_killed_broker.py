"""A broker that is killed again and again loses nothing that the `mqtt` sink counts as delivered."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from conftest import wait_until
from support.mosquitto import Broker, Listener, listening, retained, running

from receiver.delivery.sinks import Sink
from receiver.event import Event, event_id
from receiver.testing.harness import Harness
from receiver.testing.samples import events

EVENTS, LAST, KILLS = 10_000, 120, 20
MAX_SECONDS = 300.0
ARRIVAL_SECONDS = 60.0
TYPES = ("temperature", "humidity", "networkStatus", "touch", "co2", "contact")
LISTENER = {"user": "listener", "password": "password"}
CONFIG = "allow_anonymous true\npassword_file {folder}/passwords\nacl_file {folder}/acl"
FORBIDDEN = "user listener\ntopic readwrite #\n"
ALLOWED = f"topic readwrite #\n{FORBIDDEN}"


def test_every_event_arrives_and_retained_values_are_the_newest_although_the_broker_is_killed(tmp_path: Path) -> None:
    assert_delivers(tmp_path, EVENTS, KILLS)


def assert_delivers(folder: Path, count: int, kills: int) -> None:
    """Deliver that many events while the broker is killed that often, and then 120 more.

    The sink may publish only while the listener is subscribed, so an event that it counts as delivered by mistake is
    missing. What the broker still had in a queue for the listener would be lost with it. So it sends at once (QoS 0),
    and after each call the sink waits for the listener. What it had retained is lost, so values are compared with those
    of the last 120 events, which are of the same devices.
    """
    pushed = events(count + LAST, types=TYPES, seed=7)
    with (
        running(users={"listener": "password"}) as broker,
        listening(broker, "dt/+/+/event/+", qos=0, **LISTENER) as listener,
    ):
        (broker.folder / "acl").write_text(ALLOWED)
        broker.configure(CONFIG)
        harness = Harness(folder, "plugins/mqtt/__init__.py", None, {"url": broker.url, "homeassistant": True})
        with closing(harness):
            paced = Paced(harness.build(batch_size=100), listener)
            sink = replace(paced.sink, hook=paced)
            harness.push(pushed[:count])
            with killing(broker, listener, paced, count, kills):
                counts = harness.deliver(sink, max_seconds=MAX_SECONDS, may_fail=True)
            assert (counts.delivered, counts.pending, counts.dead) == (count, 0, 0), counts.last_failure_reason
            harness.push(pushed[count:])
            assert harness.deliver(sink, max_seconds=MAX_SECONDS, may_fail=True).delivered == count + LAST
        assert {event_id(each.payload) for each in listener.catch_up()} == {event.id for event in pushed}
        values = retained(broker, "dt/+/+/+", **LISTENER)
        assert {topic: json.loads(values[topic]) for topic in newest(pushed)} == newest(pushed)


class Paced:
    """The hooks of a sink; after each call of it, `waiting` is held until the listener has got its events.

    If the broker was killed after its last acknowledgement and before that, the call fails.
    """

    def __init__(self, sink: Sink, listener: Listener) -> None:
        self.sink = sink
        self.waiting = threading.Lock()
        self.kills = 0
        self._listener = listener

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sink.hook, name)

    def deliver_batch(self, events: Sequence[Event], attempts: Sequence[int]) -> None:
        before, kills = len(self._listener.messages), self.kills
        self.sink.hook.deliver_batch(events=events, attempts=attempts)
        with self.waiting:
            if self.kills > kills:
                raise ConnectionError("the broker was killed with all that it had acknowledged")
            bodies, end = {event.body for event in events}, time.monotonic() + ARRIVAL_SECONDS
            while self._listener.is_subscribed and bodies - {each.payload for each in self._listener.messages[before:]}:
                assert time.monotonic() < end, "what was acknowledged does not arrive"
                time.sleep(0.001)


@contextmanager
def killing(broker: Broker, listener: Listener, paced: Paced, count: int, kills: int) -> Iterator[None]:
    """A context in which the broker is killed and started again each time that another part of the events arrived,
    but not while the sink waits for the listener."""
    done = threading.Event()

    def kill() -> None:
        for number in range(1, kills + 1):
            while len(listener.messages) < number * count // (kills + 1) and not done.is_set():
                done.wait(0.001)
            (broker.folder / "acl").write_text(FORBIDDEN)
            with paced.waiting:
                broker.kill()
                paced.kills += 1
            wait_until(lambda: not listener.is_subscribed, what="a listener that has noticed it")
            broker.start()
            listener.wait_until_subscribed()
            (broker.folder / "acl").write_text(ALLOWED)
            broker.reload()

    killer = threading.Thread(target=kill)
    killer.start()
    yield
    done.set()
    killer.join()


def newest(pushed: Sequence[Event]) -> dict[str, dict[str, object]]:
    """Topic → the newest value of each device and quantity."""
    found: dict[str, dict[str, object]] = {}
    for event in pushed:
        for reading in event.readings():
            topic = f"dt/{event.project_id}/{event.device_id}/{reading.quantity}"
            time = reading.time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            value = {"value": reading.value, "unit": reading.unit, "time": time, "event_id": event.id}
            found[topic] = max(found.get(topic, value), value, key=lambda each: (each["time"], each["event_id"]))
    return found
