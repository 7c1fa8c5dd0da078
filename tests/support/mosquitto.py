"""A real MQTT broker for a test, and a client that listens to it."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from chaos.broker import Broker, find_mosquitto
from receiver.delivery.sinks import Sink
from receiver.testing.running import ROOT, wait_until
from support.built_in_sinks import build, open_sink

RECONNECT_SECONDS: Any = 0.05  # paho takes fractions as well, whatever its types say
MARK = "mark"
"""The topic on which a listener sends itself a message."""


class Published(NamedTuple):
    """A message that a listener got. `retained` says that it was there before the listener subscribed."""

    topic: str
    payload: bytes
    retained: bool = False


class Listener:
    """A client that records what is published, and reconnects by itself."""

    def __init__(
        self, broker: Broker, *filters: str, qos: int = 1, user: str | None = None, password: str | None = None
    ) -> None:
        self.messages: list[Published] = []
        self._filters = [*(filters or ("#",)), MARK]
        self._subscribed = threading.Event()
        self._marks = 0
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.username_pw_set(user, password)
        self._client.reconnect_delay_set(RECONNECT_SECONDS, RECONNECT_SECONDS)
        self._client.on_message = self._record
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_disconnect = lambda *_: self._subscribed.clear()
        self._client.on_connect = lambda client, *_: client.subscribe([(each, qos) for each in self._filters])
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        self.wait_until_subscribed()

    def _record(self, client: object, data: object, message: MQTTMessage) -> None:
        if message.topic == MARK:
            self._marks += 1
        else:
            self.messages.append(Published(message.topic, message.payload, message.retain))

    def wait_for(self, condition: Callable[[list[Published]], object], what: str = "messages") -> list[Published]:
        wait_until(lambda: condition(self.messages), what=what)
        return list(self.messages)

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        self._client.publish(topic, payload, 1, retain).wait_for_publish(10)

    @property
    def is_subscribed(self) -> bool:
        return self._subscribed.is_set()

    def wait_until_subscribed(self) -> None:
        wait_until(self._subscribed.is_set, what="the subscription of the listener")

    def catch_up(self) -> list[Published]:
        """All messages that the broker has got up to now: a message of our own comes after them."""
        awaited = self._marks + 1
        self.publish(MARK, b"")
        wait_until(lambda: self._marks >= awaited, what="a message of the listener itself")
        return list(self.messages)

    def close(self) -> None:
        self._client.on_message = None
        self._client.disconnect()
        self._client.loop_stop()
        self._client._reset_sockets()


@contextlib.contextmanager
def listening(
    broker: Broker, *filters: str, qos: int = 1, user: str | None = None, password: str | None = None
) -> Iterator[Listener]:
    listener = Listener(broker, *filters, qos=qos, user=user, password=password)
    try:
        yield listener
    finally:
        listener.close()


def retained(broker: Broker, below: str = "#", **login: str) -> dict[str, bytes]:
    """Everything that the broker retains, by topic. With QoS 1 it might not send all of it."""
    with listening(broker, below, qos=0, **login) as listener:
        return {each.topic: each.payload for each in listener.catch_up() if each.retained}


@contextlib.contextmanager
def running(
    config: str = "allow_anonymous true", listener: str = "", users: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Broker]:
    """A running broker with these users. Without the program, the test is skipped, or fails in CI."""
    program = find_mosquitto()
    if program is None:
        pytest.skip("mosquitto is not installed")
    broker = Broker(program, config, listener)
    passwords = broker.folder / "passwords"
    passwords.touch()
    for user, password in users.items():
        subprocess.run(["mosquitto_passwd", "-b", passwords, user, password], check=True, capture_output=True)
    try:
        broker.start()
        yield broker
    finally:
        broker.remove()


@contextlib.contextmanager
def opened(broker: Broker, name: str = "home", **options: object) -> Iterator[Sink]:
    """An open `mqtt` sink that publishes to a broker."""
    sink = open_sink(build("mqtt", ROOT, {"url": broker.url, **options}, name))
    try:
        yield sink
    finally:
        sink.hook.close()
