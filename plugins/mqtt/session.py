"""One connection of the `mqtt` sink to a broker, by paho-mqtt, whose exceptions do not leave this file.

It is never reused: after any failure it is closed and a new one is made. If paho reconnected, it would resend its
unacknowledged messages, and replace newer retained values by old ones.
"""

from __future__ import annotations

import math
import queue
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from receiver import GiveUp, Pause, Retry

from .broker import Broker, cause, tls_context

QOS = 1
ONLINE, OFFLINE = b"online", b"offline"
KEEPALIVE_SECONDS = 30
UNACKNOWLEDGED = 100
"""How many messages may be unacknowledged at once, if the broker allows as many (its Receive Maximum)."""

FILTERS_IN_A_PACKET = 8
"""AWS IoT Core disconnects a client with more topic filters in one SUBSCRIBE."""

NOT_MQTT = "the broker sent data that is not valid MQTT"
CLOSE_SECONDS = 1.0
POLL_SECONDS = 0.5
BAD_LOGIN, NOT_AUTHORIZED, TOO_LARGE = 0x86, 0x87, 0x95
ABOUT_THE_MESSAGE = (0x90, TOO_LARGE, 0x99)
"""Reason codes by which the broker rejects the message for good: its topic, its size, its format."""

ReasonCode.names = {
    **ReasonCode.names,
    TOO_LARGE: {"Packet too large": [PacketTypes.CONNACK, PacketTypes.DISCONNECT, PacketTypes.PUBACK]},
}
"""mosquitto sends this code in a PUBACK, where MQTT does not allow it; paho would then end the connection."""


class Message(NamedTuple):
    """What is published."""

    topic: str
    payload: bytes
    retain: bool


@dataclass(frozen=True)
class TimeLimits:
    """How long to wait: for a connection, for each next acknowledgement, and before an attempt to reconnect.

    `will_delay_seconds` is the delay of the will, by which the broker reports the receiver as offline.
    """

    connect_seconds: float = 5.0
    response_seconds: float = 10.0
    reconnect_seconds: float = 5.0
    will_delay_seconds: int = 60


class Received(NamedTuple):
    """A response of the broker: the kind of its packet, the number of the request, and its reason code."""

    kind: str
    number: int
    code: int
    text: str


class Session:
    """A connection to a broker. One thread at a time uses it; `on_message` is called by a thread of its own.

    `will_delay_seconds` after the end of the connection, the broker publishes `offline` on the topic `status` (MQTT 5,
    section 3.1.3.2.2), unless a session with the same client id begins before.
    """

    def __init__(
        self,
        broker: Broker,
        client_id: str,
        status: str,
        limits: TimeLimits,
        on_message: Callable[[str, bytes, bool], None],
        *,
        retain_will: bool,
    ) -> None:
        """Connect, and publish `online`, retained, on the topic `status`.

        `on_message` gets the topic, the payload, and whether the message was retained before we subscribed. Raises
        Pause if the connection fails or is refused.
        """
        self._limits = limits
        self._status = status
        self._on_message = on_message
        self._inbox: queue.SimpleQueue[Received] = queue.SimpleQueue()
        self._closing_at: float | None = None
        self._end = ""
        self._window = UNACKNOWLEDGED
        self._max_bytes: int | None = None
        self._client = self._make_client(broker, client_id, retain_will)
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._connect(broker)
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._set_tcp("TCP_NODELAY")
        self._set_callbacks()
        self._thread.start()
        self._announce(broker)

    @property
    def is_alive(self) -> bool:
        return not self._end and self._closing_at is None

    def publish(self, messages: Sequence[Message]) -> None:
        """Publish all messages, and return when the broker has acknowledged each of them.

        Raises Pause if publishing to a topic is not authorized, GiveUp if the broker rejects a message for good, Retry
        for any other failure; some of the messages may have been published.
        """
        waiting: dict[tuple[str, int], str] = {}
        for message in messages:
            if self._max_bytes and size(message) > self._max_bytes:
                raise GiveUp(f"the broker accepts {self._max_bytes} bytes at most, and {message.topic} has more")
            while len(waiting) >= self._window:
                self._wait_for_one(waiting)
            sent = self._client.publish(message.topic, message.payload, QOS, message.retain)
            waiting["puback", sent.mid] = message.topic  # if it was not sent, the connection ends
        self._wait(waiting)

    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe, and return when `on_message` has been called for all retained messages on these topics.

        The broker sends them in the order of the subscriptions, so the retained message on `status` is the last one.
        With QoS 1 it would queue them, and drop those above a limit (mosquitto: 1,000 messages). Our own messages are
        not sent back. Raises Pause if the subscription is refused, or if the retained messages are not sent.
        """
        options = SubscribeOptions(qos=0, noLocal=True)
        every = [*filters, self._status]
        waiting = {("last", 0): "retained messages"}
        for start in range(0, len(every), FILTERS_IN_A_PACKET):
            topics = every[start : start + FILTERS_IN_A_PACKET]
            _, number = self._client.subscribe([(topic, options) for topic in topics])
            waiting["suback", number or 0] = " or ".join(topics)
        while len(waiting) > 1:
            self._wait_for_one(waiting)
        try:
            self._wait(waiting)
        except Retry as error:
            if not self.is_alive:
                raise
            raise Pause(
                f"the broker does not send retained messages ({error}); allow reading them in its ACL"
            ) from None

    def close(self) -> None:
        """End the connection, so that the broker publishes the will after its delay."""
        self._closing_at = time.monotonic()
        self._client.disconnect(ReasonCode(PacketTypes.DISCONNECT, "Disconnect with will message"))
        self._wake_up()
        self._thread.join(2 * CLOSE_SECONDS)

    def _connect(self, broker: Broker) -> None:
        connect = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's own
        connect.SessionExpiryInterval = 2 * self._limits.will_delay_seconds  # the will is sent when the session ends
        try:
            self._client.connect(broker.host, broker.port, KEEPALIVE_SECONDS, clean_start=False, properties=connect)
        except (OSError, ValueError) as error:
            raise Pause(f"no connection to {broker.host}: {cause(error)}") from None

    def _announce(self, broker: Broker) -> None:
        """Publish `online` once the broker has accepted the connection."""
        try:
            self._wait({("connack", 0): "the connection"}, self._limits.connect_seconds)
            self.publish([Message(self._status, ONLINE, True)])
        except (Retry, GiveUp) as error:
            self.close()
            raise Pause(f"no connection to {broker.host}: {error}") from None
        except BaseException:
            self.close()
            raise

    def _make_client(self, broker: Broker, client_id: str, retain_will: bool) -> Client:
        client = Client(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5)
        client.connect_timeout = self._limits.connect_seconds
        client.max_inflight_messages = 0  # `publish` limits them itself
        client.username_pw_set(broker.user, broker.password)
        if broker.tls:
            client.tls_set_context(tls_context(broker.ca_file))
        will = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]  # paho's own
        will.WillDelayInterval = self._limits.will_delay_seconds
        client.will_set(self._status, OFFLINE, QOS, retain_will, will)
        return client

    def _set_callbacks(self) -> None:
        client = self._client
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_publish = self._published
        client.on_subscribe = self._subscribed
        client.on_message = self._received
        client.on_socket_register_write = self._wake_up

    def _set_tcp(self, option: str) -> None:
        """Set an option of the connection, if the system supports it and the connection is open."""
        connection: Any = self._client.socket()
        if connection is not None and hasattr(socket, option):
            with suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), 1)

    def _wake_up(self, *_: object) -> None:
        """Make the thread write pending data."""
        with suppress(OSError):  # the thread has ended, or is awake
            self._waker.send(b"\0")

    def _release(self) -> None:
        """Close all sockets, and break the reference cycle, so that memory is freed without the garbage collector."""
        client = self._client
        for each in (client.socket(), self._waker, self._woken):
            if each is not None:
                each.close()
        client.on_connect = client.on_disconnect = client.on_publish = client.on_subscribe = client.on_message = None
        client.on_socket_register_write = None

    def _run(self) -> None:
        """The thread that reads and writes. An exception means that the broker sent data that is not valid MQTT."""
        client, code = self._client, MQTTErrorCode.MQTT_ERR_SUCCESS
        try:
            while (connection := client.socket()) is not None and not self._is_overdue():
                wait = select.POLLIN | (select.POLLOUT if client.want_write() else 0)
                events = poll({connection: wait, self._woken: select.POLLIN}, unread(connection))
                if self._woken in events:
                    self._woken.recv(4096)
                if connection in events or unread(connection):
                    code = client.loop_read()
                    self._set_tcp("TCP_QUICKACK")  # else the broker's system delays its next response by 40 ms
                if client.want_write():
                    client.loop_write()
                client.loop_misc()
            self._finish(NOT_MQTT if code == MQTTErrorCode.MQTT_ERR_PROTOCOL else "it was closed")
        except Exception as error:
            self._finish(f"{NOT_MQTT}: {type(error).__name__}")
        finally:
            self._release()

    def _is_overdue(self) -> bool:
        """Whether the last data could not be sent within CLOSE_SECONDS after `close`."""
        return self._closing_at is not None and time.monotonic() > self._closing_at + CLOSE_SECONDS

    def _finish(self, reason: str, code: int = 0) -> None:
        self._end = self._end or reason
        self._inbox.put(Received("end", 0, code, self._end))

    def _wait(self, waiting: dict[tuple[str, int], str], seconds: float | None = None) -> None:
        while waiting:
            self._wait_for_one(waiting, seconds)

    def _wait_for_one(self, waiting: dict[tuple[str, int], str], seconds: float | None = None) -> None:
        """Wait for the next response; if it rejects a request in `waiting`, raise what its reason code means."""
        seconds = self._limits.response_seconds if seconds is None else seconds
        try:
            received = self._inbox.get(timeout=seconds)
        except queue.Empty:
            raise Retry(f"the broker does not respond within {seconds:g} s") from None
        if received.kind == "end":
            if received.code == TOO_LARGE:
                raise GiveUp(f"the broker ended the connection: {received.text}")
            raise Retry(f"the connection was lost: {received.text}")
        subject = waiting.pop((received.kind, received.number), None)
        if subject is not None and received.code >= 0x80:
            raise refusal(received, subject)

    def _connected(
        self, client: object, data: object, flags: object, reason: ReasonCode, given: Properties | None
    ) -> None:
        self._window = min(UNACKNOWLEDGED, getattr(given, "ReceiveMaximum", UNACKNOWLEDGED))
        self._max_bytes = getattr(given, "MaximumPacketSize", None)
        self._put("connack", 0, reason)

    def _disconnected(self, client: object, data: object, flags: Any, reason: ReasonCode, given: object) -> None:
        if flags.is_disconnect_packet_from_server:
            self._finish(described(reason), reason.value)

    def _published(self, client: object, data: object, number: int, reason: ReasonCode, given: object) -> None:
        self._put("puback", number, reason)

    def _subscribed(self, client: object, data: object, number: int, reasons: list[ReasonCode], given: object) -> None:
        self._put("suback", number, max(reasons, key=lambda reason: reason.value))

    def _received(self, client: object, data: object, message: MQTTMessage) -> None:
        self._on_message(message.topic, bytes(message.payload), message.retain)
        if message.retain and message.topic == self._status:
            self._inbox.put(Received("last", 0, 0, ""))

    def _put(self, kind: str, number: int, reason: ReasonCode) -> None:
        self._inbox.put(Received(kind, number, reason.value, described(reason)))


def poll(sockets: Mapping[Any, int], at_once: int) -> set[Any]:
    """The sockets for which one of their events occurs within POLL_SECONDS, or has occurred if `at_once`."""
    polled = select.poll()
    for each, events in sockets.items():
        polled.register(each, events)
    found = {number for number, _ in polled.poll(0 if at_once else POLL_SECONDS * 1000)}
    return {each for each in sockets if each.fileno() in found}


def unread(connection: Any) -> int:
    """How many bytes TLS has decrypted and not returned yet, which polling the socket does not show."""
    return connection.pending() if isinstance(connection, ssl.SSLSocket) else 0


def size(message: Message) -> int:
    """The size of its PUBLISH packet in bytes (MQTT 5, section 3.3): type, length, topic, packet id, no properties."""
    rest = 2 + len(message.topic.encode()) + 2 + 1 + len(message.payload)
    return 1 + math.ceil(rest.bit_length() / 7) + rest


def refusal(received: Received, subject: str) -> Pause | Retry | GiveUp:
    """The signal for a response with a reason code of 0x80 or above (MQTT 5, section 2.4)."""
    if received.kind == "connack":
        login = "; check user and password" if received.code in (BAD_LOGIN, NOT_AUTHORIZED) else ""
        return Pause(f"the broker refuses the connection: {received.text}{login}")
    if received.kind == "suback":
        return Pause(f"not allowed to subscribe to {subject}: {received.text}")
    if received.code == NOT_AUTHORIZED:
        return Pause(f"not allowed to publish to {subject}: {received.text}; allow it in the broker's ACL")
    if received.code in ABOUT_THE_MESSAGE:
        return GiveUp(f"the broker does not accept a message to {subject}: {received.text}")
    return Retry(f"the broker has not accepted a message to {subject}: {received.text}")


def described(reason: ReasonCode) -> str:
    return f"{reason.getName()} (0x{reason.value:02x})"
