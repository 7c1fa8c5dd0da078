"""The `mqtt` sink: events and the newest values of each device on topics of an MQTT 5 broker, for Home Assistant too.

Retained messages are recorded only at the broker, and read from it when a connection first sees a device. So a newer
value is not replaced by an older one, even after a restart without a disk, and no record can differ from the broker.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import re
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from receiver import Event, Incident, Secret, collect_errors, hookimpl

from .broker import Broker, parse_url
from .homeassistant import AVAILABILITY, BIRTH_TOPIC, LAST_SEEN, announces, config, config_topic, is_plain
from .messages import LastMessages, is_plausible, level, text_of, value, values
from .session import OFFLINE, ONLINE, Message, Session, TimeLimits

MAX_PREFIX_CHARACTERS = 200
MAX_RECONNECT_SECONDS = 60.0
MEMORY = Path("/dev/shm")
"""Writable where nothing else is, such as in a container with a read-only root."""
PREFIX = re.compile(r"(?![$/])[^+#\x00-\x1f\x7f-\x9f]+(?<!/)")


@dataclass
class Mqtt:
    """Publishes events to an MQTT 5 broker, and the newest value of each device and quantity as a retained message.

    An event goes to PREFIX/PROJECT/DEVICE/event/TYPE as DT sent it, its values to PREFIX/PROJECT/DEVICE/QUANTITY, where
    an older value never replaces a newer one. With `homeassistant`, devices are announced to Home Assistant.

    url: the broker; mqtt://host or mqtts://host, with user and password in it or in the next two options.
    user: the name to log in with.
    password: the password to log in with.
    prefix: what all topics begin with; no other sink or receiver may use it.
    retain: whether the broker retains values, availability and discovery; false removes what was retained.
    homeassistant: whether devices are announced to Home Assistant.
    discovery_prefix: what the topics of these announcements begin with, as configured in Home Assistant.
    ca_file: certificates to trust instead of those of the system.
    """

    url: Secret
    user: str | None = None
    password: Secret | None = None
    prefix: str = "dt"
    retain: bool = True
    homeassistant: bool = False
    discovery_prefix: str = "homeassistant"
    ca_file: Path | None = None

    limits: ClassVar[TimeLimits] = TimeLimits()  # not an option

    def __post_init__(self) -> None:
        errors: list[Exception] = []
        with collect_errors(errors):
            self._broker = self._broker_of_options()
        with collect_errors(errors):
            check_prefix("prefix", self.prefix)
        with collect_errors(errors):
            check_prefix("discovery_prefix", self.discovery_prefix)
        with collect_errors(errors):
            if self.prefix in (self.discovery_prefix, BIRTH_TOPIC.partition("/")[0]):
                raise ValueError("prefix must not be that of Home Assistant")
        if errors:
            raise ExceptionGroup("invalid options", errors)
        self._status = f"{self.prefix}/status"
        self._session: Session | None = None
        self._lock = threading.Lock()
        self._silent: set[tuple[str, bool]] = set()
        """Devices of open incidents, and whether the cause is a project: a device can be in one of each kind."""
        self._changed: set[str] = set()
        """Devices whose availability is to be published."""

    @hookimpl
    def open(self, name: str) -> None:
        """Connect. Raises Pause if that fails."""
        self._client_id, self._claim = claim_client_id(f"{name} {self.prefix}")
        self._closed, self._wake = False, threading.Event()
        try:
            with self._connected():
                pass
        except BaseException:
            os.close(self._claim)
            raise
        self._keeper = threading.Thread(target=self._keep_connected, name="mqtt keeper", daemon=True)
        self._keeper.start()

    @hookimpl
    def deliver_batch(self, events: Sequence[Event]) -> None:
        """Publish events and the newer values of their devices, in the order in which the events occurred."""
        ordered = sorted(events, key=lambda event: (event.occurred_at, event.id))
        with self._connected() as session:
            self._look_up(session, ordered)
            announced: dict[str, bytes] = {}
            messages = [message for event in ordered for message in self._messages(event, announced)]
            session.publish([*(Message(*each, self.retain) for each in announced.items()), *messages])

    @hookimpl
    def incident_opened(self, incident: Incident) -> None:
        self._note(incident)

    @hookimpl
    def incident_closed(self, incident: Incident) -> None:
        self._note(incident)

    @hookimpl
    def close(self) -> None:
        """Disconnect; the broker publishes `offline` unless a connection with the same client id begins in time."""
        self._closed = True
        self._wake.set()
        self._keeper.join()
        with self._lock:
            self._disconnect()
        os.close(self._claim)

    def _broker_of_options(self) -> Broker:
        """Raises ValueError for an invalid url, and for options that contradict it."""
        broker = parse_url(self.url.get_secret_value())
        if (self.user is not None or self.password is not None) and (broker.user or broker.password):
            raise ValueError("url has a user name or password, and so has user or password; give them once")
        if self.ca_file is not None and not broker.tls:
            raise ValueError("ca_file has no effect with a url that begins with mqtt://; use mqtts://")
        password = broker.password if self.password is None else self.password.get_secret_value()
        return replace(broker, user=self.user or broker.user, password=password, ca_file=self.ca_file)

    @contextmanager
    def _connected(self) -> Iterator[Session]:
        """A context with the connection, for one thread at a time.

        After any failure the connection is closed, and everything known about topics is discarded: the broker may have
        accepted some of the messages, or may have been replaced.
        """
        with self._lock:
            try:
                if self._session is None or not self._session.is_alive:
                    self._disconnect()
                    self._connect()
                assert self._session is not None
                yield self._session
            except BaseException:
                self._disconnect()
                raise

    def _connect(self) -> None:
        self._last = LastMessages(self._wake.set)
        self._last.replace(self._status, ONLINE)
        self._looked_up: set[str] = set()
        self._session = Session(
            self._broker, self._client_id, self._status, self.limits, self._receive, retain_will=self.retain
        )
        self._session.subscribe([BIRTH_TOPIC] if self.homeassistant else [])
        if not self.retain:
            self._remove(self._session, f"{self.prefix}/+/+/+", f"{self.discovery_prefix}/device/+/config")
            self._session.publish([Message(self._status, b"", True), Message(self._status, ONLINE, False)])

    def _disconnect(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _keep_connected(self) -> None:
        """Reconnect while there is nothing to deliver, and publish changed availability and lost messages."""
        wait = self.limits.reconnect_seconds
        while not self._closed:
            self._wake.wait(wait)
            self._wake.clear()
            try:
                if not self._closed:
                    with self._connected() as session:
                        self._publish_availability(session)
                        session.publish([Message(*again, self.retain) for again in self._last.pop_again()])
                wait = self.limits.reconnect_seconds
            except Exception:  # also one of the machine, such as no free descriptor; the next delivery reports it
                wait = min(2 * wait, MAX_RECONNECT_SECONDS)

    def _note(self, incident: Incident) -> None:
        """Make the thread `_keep_connected` publish changes of availability, until the broker has accepted them."""
        devices = {level(device_id) for device_id in incident.sensors}
        members = {(device, incident.cause == "project") for device in devices}
        with self._lock:
            self._silent = self._silent | members if incident.closed is None else self._silent - members
            self._changed |= devices
        self._wake.set()

    def _publish_availability(self, session: Session) -> None:
        """Publish the availability of changed devices, on the topics of all projects in which they were seen."""
        if self._changed and self.retain:
            session.subscribe([f"{self.prefix}/+/{device}/{AVAILABILITY}" for device in sorted(self._changed)])
        messages = []
        for topic in self._last.topics():
            *_, device, name = topic.rsplit("/", 2)
            if name == AVAILABILITY and device in self._changed:
                payload = self._availability(device)
                if self._last.replace(topic, payload):
                    messages.append(Message(topic, payload, self.retain))
        session.publish(messages)
        self._changed.clear()

    def _availability(self, device: str) -> bytes:
        return OFFLINE if {(device, True), (device, False)} & self._silent else ONLINE

    def _receive(self, topic: str, payload: bytes, was_retained: bool) -> None:
        """Called with each message from the broker, in the thread of the connection."""
        if topic == self._status:
            if payload != ONLINE:
                self._last.publish_again([topic])
        elif topic == BIRTH_TOPIC:
            if payload == ONLINE and not was_retained:
                start = f"{self.discovery_prefix}/"
                self._last.publish_again(each for each in self._last.topics() if each.startswith(start))
        elif not payload or topic.startswith(f"{self.prefix}/") or announces(payload, self._status):
            self._last.receive(topic, payload)

    def _look_up(self, session: Session, events: Sequence[Event]) -> None:
        """Read the retained messages of devices that this connection has not seen yet."""
        found = {self._topic(event): event.device_id for event in events if event.device_id}
        new = {topic: device for topic, device in found.items() if topic not in self._looked_up}
        if new and self.retain:
            filters = [f"{topic}/+" for topic in new]
            if self.homeassistant:
                devices = filter(is_plain, dict.fromkeys(new.values()))
                filters += [config_topic(self.discovery_prefix, device) for device in devices]
            session.subscribe(filters)
            self._looked_up.update(new)

    def _remove(self, session: Session, *filters: str) -> None:
        """Remove all retained messages on these topics, in rounds, as a broker may limit how many it sends at once."""
        topics = list(filters)
        while topics:
            self._last.forget()
            self._looked_up.clear()
            session.subscribe(filters)
            topics = self._last.topics()
            session.publish([Message(topic, b"", True) for topic in topics])
        self._last.replace(self._status, ONLINE)

    def _messages(self, event: Event, announced: dict[str, bytes]) -> Iterator[Message]:
        """The event as DT sent it, and the newer values of its device. Adds discovery messages to `announced`."""
        topic = self._topic(event)
        yield Message(f"{topic}/event/{level(event.type)}", event.body, False)
        if not event.device_id:
            return
        newest = dict(values(event))
        if self.homeassistant and is_plausible(event, event.occurred_at):
            newest[LAST_SEEN] = value(text_of(event.occurred_at), "", event.occurred_at, event.id)
        newer = [quantity for quantity in newest if self._last.replace_older(f"{topic}/{quantity}", newest[quantity])]
        if self.homeassistant and is_plain(event.device_id):
            place = config_topic(self.discovery_prefix, event.device_id)
            shown = config(self._last.get(place), event, newest, topic, self._status, is_newest=LAST_SEEN in newer)
            if self._last.replace(place, shown):
                announced[place] = shown
        own, availability = f"{topic}/{AVAILABILITY}", self._availability(level(event.device_id))
        is_back = bool(newer) and not event.backfilled and availability == ONLINE
        if (is_back or self._last.get(own) is None) and self._last.replace(own, availability):
            yield Message(own, availability, self.retain)
        for quantity in newer:
            yield Message(f"{topic}/{quantity}", newest[quantity], self.retain)

    def _topic(self, event: Event) -> str:
        return f"{self.prefix}/{level(event.project_id)}/{level(event.device_id)}"


@hookimpl
def register_sinks(register: Callable[[str, type], None]) -> None:
    register("mqtt", Mqtt)


def check_prefix(option: str, prefix: str) -> None:
    """Raise ValueError for what cannot be the beginning of a topic."""
    if not PREFIX.fullmatch(prefix) or len(prefix) > MAX_PREFIX_CHARACTERS:
        raise ValueError(
            f"{option} must be the beginning of a topic: no $ or / at its start, no / at its end, no + or #"
        )


def claim_client_id(purpose: str) -> tuple[str, int]:
    """A client id that no other process on this machine uses, and the open file that reserves it.

    It is the same after a restart, so that the broker continues the session, and publishes no will.
    """
    owner = "\0".join([socket.gethostname(), str(os.getuid()), current_folder(), purpose])
    digest = hashlib.sha256(owner.encode()).hexdigest()[:12]
    for number in itertools.count():
        client_id = f"receiver{digest}{number}"
        path = folder_of_locks() / f"{client_id}.lock"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
        else:
            return client_id, file
    raise AssertionError("unreachable")


def current_folder() -> str:
    """The path of the current folder; empty if it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def folder_of_locks() -> Path:
    """Where temporary files are, or in memory where no folder for them is writable."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return MEMORY
