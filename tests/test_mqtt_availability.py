"""Incidents drive the availability of devices on the topics of the `mqtt` sink."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import StartReceiver
from support.built_in_sinks import class_of, deliver_batch, module_of
from support.events import event, temperature
from support.mosquitto import Broker, listening, opened, retained, running

from receiver import Incident, Retry
from receiver.delivery.alerts import Alerts
from receiver.delivery.sinks import Sink
from receiver.event import Event
from receiver.incident import Cause
from receiver.simulator import Simulator
from receiver.testing import wait_until

NOW = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)
D1 = "dt/oslo/d1/availability"
ONLINE, OFFLINE = b"online", b"offline"


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    cls = class_of("mqtt")
    monkeypatch.setattr(cls, "limits", dataclasses.replace(cls.limits, reconnect_seconds=0.05))


@pytest.fixture(scope="module")
def shared() -> Iterator[Broker]:
    with running() as broker:
        yield broker


@pytest.fixture
def broker(shared: Broker) -> Broker:
    shared.restart()
    return shared


class Incidents:
    """Announces incidents to a sink, as the dispatcher does."""

    def __init__(self, sink: Sink) -> None:
        self._alerts = Alerts([], [sink.hook], str)
        self._alerts.start(sink.hook)

    def open(self, *devices: str, cause: Cause = Cause.DEVICE) -> Incident:
        sensors = dict.fromkeys(devices, "a name")
        incident = Incident(1, cause, "oslo", sensors, NOW, NOW, None, "it was not heard")
        self._alerts.announce("incident_opened", incident)
        return incident

    def close(self, incident: Incident) -> None:
        self._alerts.announce("incident_closed", dataclasses.replace(incident, closed=NOW))


def availability(broker: Broker) -> dict[str, bytes]:
    return retained(broker, "+/+/+/availability")


def wait_for(broker: Broker, **devices: bytes) -> None:
    """Wait until the availability of these devices of project oslo, and of no others, is this."""
    expected = {f"dt/oslo/{device}/availability": payload for device, payload in devices.items()}
    wait_until(lambda: availability(broker) == expected, what=f"{devices}")


def test_a_device_is_offline_while_an_incident_of_it_is_open(broker: Broker) -> None:
    with opened(broker) as sink:
        deliver_batch(sink, temperature("e1", 1.0), temperature("e2", 2.0, device="d2"))
        incidents = Incidents(sink)
        incident = incidents.open("d1", "never-published")
        wait_for(broker, d1=OFFLINE, d2=ONLINE)
        incidents.close(incident)
        wait_for(broker, d1=ONLINE, d2=ONLINE)


def test_a_change_does_not_wait_for_the_next_look_at_the_connection(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = class_of("mqtt")
    monkeypatch.setattr(cls, "limits", dataclasses.replace(cls.limits, reconnect_seconds=3600.0))
    with opened(broker) as sink:
        deliver_batch(sink, temperature("e1", 1.0))
        Incidents(sink).open("d1")
        wait_for(broker, d1=OFFLINE)


@pytest.mark.parametrize(
    "errors",
    [[Retry("as if the connection was lost")], [OSError(24, "Too many open files"), MemoryError()]],
    ids=["lost connection", "errors of the machine"],
)
def test_a_change_that_could_not_be_published_is_published_later(
    errors: Sequence[Exception], broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = module_of("mqtt").Session
    publish, failures = session.publish, iter(errors)

    def publish_later(self: Any, messages: Sequence[Any]) -> None:
        if any(message.topic.endswith("/availability") for message in messages) and (failure := next(failures, None)):
            raise failure
        publish(self, messages)

    with opened(broker) as sink:
        deliver_batch(sink, temperature("e1", 1.0))
        monkeypatch.setattr(session, "publish", publish_later)
        Incidents(sink).open("d1")
        wait_for(broker, d1=OFFLINE)
    assert next(failures, None) is None


def test_a_device_is_offline_in_all_projects_in_which_it_was_seen(broker: Broker) -> None:
    with opened(broker) as sink:
        deliver_batch(sink, temperature("e1", 1.0, project="bergen"), temperature("e2", 2.0, minute=5))
    with opened(broker) as sink:
        Incidents(sink).open("d1")
        expected = {D1: OFFLINE, "dt/bergen/d1/availability": OFFLINE}
        wait_until(lambda: availability(broker) == expected, what="offline in both")


def test_more_devices_than_are_looked_up_at_once_are_offline_together(broker: Broker) -> None:
    devices = [f"d{number}" for number in range(60)]
    with opened(broker) as sink:
        deliver_batch(sink, *(temperature(f"e-{device}", 1.0, device=device) for device in devices))
    with opened(broker) as sink:
        Incidents(sink).open(*devices, cause=Cause.PROJECT)
        wait_for(broker, **dict.fromkeys(devices, OFFLINE))


def test_a_device_that_was_silent_before_its_project_is_offline_after_it_too(broker: Broker) -> None:
    with opened(broker) as sink:
        deliver_batch(sink, temperature("e1", 1.0), temperature("e2", 2.0, device="d2"))
        incidents = Incidents(sink)
        of_device = incidents.open("d1")
        of_project = incidents.open("d1", "d2", cause=Cause.PROJECT)
        wait_for(broker, d1=OFFLINE, d2=OFFLINE)
        incidents.close(of_project)
        wait_for(broker, d1=OFFLINE, d2=ONLINE)
        incidents.close(of_device)
        wait_for(broker, d1=ONLINE, d2=ONLINE)


def test_an_incident_of_a_cloud_connector_ends_those_of_its_devices_that_became_part_of_it(broker: Broker) -> None:
    with opened(broker) as sink:
        deliver_batch(sink, temperature("e1", 1.0), temperature("e2", 2.0, device="d2"))
        incidents = Incidents(sink)
        incidents.open("d1")
        of_connector = incidents.open("d1", "d2", cause=Cause.GATEWAY)
        wait_for(broker, d1=OFFLINE, d2=OFFLINE)
        incidents.close(of_connector)
        wait_for(broker, d1=ONLINE, d2=ONLINE)


def test_what_changes_while_the_broker_is_away_is_published_when_it_is_back(broker: Broker) -> None:
    broker.configure("allow_anonymous true\npersistence true\npersistence_location {folder}/")
    broker.restart()
    try:
        with opened(broker) as sink:
            deliver_batch(sink, temperature("e1", 1.0), temperature("e2", 2.0, device="d2"))
            incidents = Incidents(sink)
            incident = incidents.open("d2")
            wait_for(broker, d1=ONLINE, d2=OFFLINE)
            broker.stop()
            incidents.open("d1")
            incidents.close(incident)
            broker.start()
            wait_for(broker, d1=OFFLINE, d2=ONLINE)
    finally:
        broker.configure("allow_anonymous true")
        (broker.folder / "mosquitto.db").unlink(missing_ok=True)


def test_an_event_during_an_incident_changes_nothing_even_if_the_broker_has_forgotten(broker: Broker) -> None:
    with opened(broker) as sink:
        deliver_batch(sink, temperature("e1", 1.0))
        Incidents(sink).open("d1")
        wait_for(broker, d1=OFFLINE)
        deliver_batch(sink, temperature("e2", 2.0, minute=5))
        wait_for(broker, d1=OFFLINE)
        broker.restart()
        wait_until(lambda: "dt/status" in retained(broker), what="the sink to reconnect by itself")
        deliver_batch(sink, temperature("e3", 3.0, minute=10))
        wait_for(broker, d1=OFFLINE)


def test_the_end_of_an_incident_that_began_before_a_restart_is_published(broker: Broker) -> None:
    with opened(broker) as sink:
        deliver_batch(sink, temperature("e1", 1.0))
        incident = Incidents(sink).open("d1")
        wait_for(broker, d1=OFFLINE)
    with opened(broker) as sink:
        Incidents(sink).close(incident)
        wait_for(broker, d1=ONLINE)


def backfilled(event_id: str, minute: int) -> Event:
    body = json.loads(temperature(event_id, 3.0, minute=minute).body)
    body["event"]["data"]["temperature"]["isBackfilled"] = True
    return Event.from_body(json.dumps(body).encode(), datetime.now(UTC))


def test_a_device_whose_incident_ended_unnoticed_is_online_with_its_next_newer_event(broker: Broker) -> None:
    """Alerts are lost in a crash. An older event, or one from the memory of a sensor, is no sign of life."""
    with opened(broker) as sink:
        deliver_batch(sink, temperature("e2", 2.0, minute=5))
        Incidents(sink).open("d1")
        wait_for(broker, d1=OFFLINE)
    with opened(broker) as sink:
        deliver_batch(sink, temperature("e1", 1.0), backfilled("e3", 10))
        assert availability(broker) == {D1: OFFLINE}
        deliver_batch(sink, temperature("e4", 4.0, minute=15))
        assert availability(broker) == {D1: ONLINE}


def test_without_retain_availability_is_published_but_not_retained(broker: Broker) -> None:
    with listening(broker, "dt/+/+/availability") as listener, opened(broker, retain=False) as sink:
        deliver_batch(sink, event("e1"))
        incidents = Incidents(sink)
        incidents.close(incidents.open("d1"))
        incidents.open("d1")
        listener.wait_for(lambda messages: messages[-1:] and messages[-1].payload == OFFLINE, "offline")
        assert availability(broker) == {}


def test_home_assistant_shows_the_time_of_the_last_event_of_a_device_that_is_offline(broker: Broker) -> None:
    """All other entities of the device depend on its availability."""
    with opened(broker, homeassistant=True) as sink:
        deliver_batch(sink, temperature("e1", 1.0))
    found = json.loads(retained(broker, "homeassistant/#")["homeassistant/device/dt_d1/config"])
    depending = {
        quantity: D1 in [each["topic"] for each in component.get("availability", found["availability"])]
        for quantity, component in found["components"].items()
    }
    assert depending == {"last_seen": False, "temperature": True}


def test_the_running_receiver_publishes_when_a_sensor_falls_silent_and_when_it_is_heard_again(
    broker: Broker, start_receiver: StartReceiver
) -> None:
    receiver = start_receiver(f'[sinks.home]\ntype = "mqtt"\nurl = "{broker.url}"\n')
    freezer, other = Simulator(1), Simulator(2)
    now = datetime.now(UTC)
    for minutes in range(480, 120, -15):
        receiver.push(freezer.body("temperature", now - timedelta(minutes=minutes)))
    receiver.push(other.body("temperature", now))
    wait_until(lambda: sorted(availability(broker).values()) == [OFFLINE, ONLINE], 60, "offline")
    receiver.stop()
    receiver.start()
    for minutes in (15, 0):
        receiver.push(freezer.body("temperature", now - timedelta(minutes=minutes)))
    wait_until(lambda: list(availability(broker).values()) == [ONLINE, ONLINE], 60, "online")
