"""What the `mqtt` sink publishes of events, and that a newer value is never replaced by an older one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta

import pytest
from support.built_in_sinks import deliver_batch
from support.events import event, humidity, temperature
from support.mosquitto import Broker, Listener, Published, listening, opened, retained, running

from receiver.event import Event, rfc3339
from receiver.testing import event as sample
from receiver.testing import wait_until

TEMPERATURE, STATUS = "dt/oslo/d1/temperature", "dt/status"


@pytest.fixture(scope="module")
def shared() -> Iterator[Broker]:
    with running() as broker:
        yield broker


@pytest.fixture
def broker(shared: Broker) -> Broker:
    """The broker of this file, with nothing retained; it stores nothing on the disk."""
    shared.restart()
    return shared


@pytest.fixture
def listener(broker: Broker) -> Iterator[Listener]:
    with listening(broker) as listener:
        yield listener


def value(content: float, unit: str, time: str, event_id: str) -> bytes:
    return json.dumps({"value": content, "unit": unit, "time": time, "event_id": event_id}, ensure_ascii=False).encode()


def temperature_at(minute: int, event_id: str, celsius: float) -> bytes:
    return value(celsius, "°C", f"2026-03-14T11:{minute:02}:00.000000Z", event_id)


def celsius(broker: Broker) -> float:
    return float(json.loads(retained(broker, TEMPERATURE)[TEMPERATURE])["value"])


def test_an_event_is_published_as_received_and_its_newest_values_are_retained(
    broker: Broker, listener: Listener
) -> None:
    pushed = temperature("e1", 20.5, 21.5)
    with opened(broker) as sink:
        deliver_batch(sink, pushed)
        seen = listener.catch_up()
    assert sorted(seen) == sorted(
        [
            Published(STATUS, b"online"),
            Published("dt/oslo/d1/event/temperature", pushed.body),
            Published("dt/oslo/d1/availability", b"online"),
            Published(TEMPERATURE, temperature_at(1, "e1", 21.5)),
        ]
    )
    assert retained(broker) == {
        STATUS: b"online",
        "dt/oslo/d1/availability": b"online",
        TEMPERATURE: temperature_at(1, "e1", 21.5),
    }


def test_each_quantity_of_an_event_has_a_topic(broker: Broker) -> None:
    with opened(broker, prefix="acme/dt") as sink:
        deliver_batch(sink, humidity("e1", (21.0, 40.5)), event("e2", "contact", {"state": "OPEN"}, device="d2"))
        occurred = "2026-03-14T11:59:00.500000Z"
        assert retained(broker, "acme/dt/+/+/+") == {
            "acme/dt/oslo/d1/availability": b"online",
            "acme/dt/oslo/d1/temperature": value(21.0, "°C", occurred, "e1"),
            "acme/dt/oslo/d1/relative_humidity": value(40.5, "%", occurred, "e1"),
            "acme/dt/oslo/d2/availability": b"online",
            "acme/dt/oslo/d2/open": value(1, "", occurred, "e2"),
        }


def test_values_of_one_batch_are_published_in_the_order_in_which_they_occurred(
    broker: Broker, listener: Listener
) -> None:
    readings = [("e3", 3.0, 3), ("e1", 1.0, 1), ("e2", 2.0, 2)]
    with opened(broker) as sink:
        deliver_batch(sink, *(sample("contact", state=state) for state in ("OPEN", "CLOSED")))
        deliver_batch(sink, *(timed(event_id, number, minute) for event_id, number, minute in readings))
        values = [json.loads(each.payload)["value"] for each in listener.catch_up() if each.topic == TEMPERATURE]
        states = [json.loads(each.payload)["value"] for each in listener.messages if each.topic.endswith("/open")]
    assert (values, states) == ([1.0, 2.0, 3.0], [1, 0])


def timed(event_id: str, celsius: float, minute: int) -> Event:
    data = {"value": celsius, "updateTime": f"2026-03-14T11:{minute:02}:00Z"}
    body = temperature(event_id, celsius).body.decode()
    parsed = json.loads(body)
    parsed["event"] |= {"timestamp": data["updateTime"], "data": {"temperature": data}}
    return Event.from_body(json.dumps(parsed).encode(), temperature("x", 1.0).received_at)


def test_an_older_event_goes_to_the_event_topic_alone(broker: Broker, listener: Listener) -> None:
    with opened(broker) as sink:
        deliver_batch(sink, temperature("e2", 22.0, minute=30))
        listener.catch_up()
        before = len(listener.messages)
        deliver_batch(sink, temperature("e1", 11.0, minute=10))
        deliver_batch(sink, temperature("e2", 22.0, minute=30), attempt=2)
        assert [each.topic for each in listener.catch_up()[before:]] == ["dt/oslo/d1/event/temperature"] * 2
    assert celsius(broker) == 22.0


def test_of_two_values_with_the_same_time_the_last_event_id_counts(broker: Broker) -> None:
    with opened(broker) as sink:
        for event_id, degrees in [("e2", 2.0), ("e1", 1.0), ("e3", 3.0)]:
            deliver_batch(sink, temperature(event_id, degrees, minute=30))
            assert celsius(broker) == max(2.0, degrees)


def test_a_value_of_more_than_a_day_ahead_of_its_receipt_is_not_retained(broker: Broker) -> None:
    """It would never be replaced."""
    received = temperature("x", 1.0).received_at
    samples = [{"value": hours, "sampleTime": rfc3339(received + timedelta(hours=hours))} for hours in (0, 25)]
    sooner, ahead = event("e1", "temperature", {"samples": samples}), json.loads(event("e2").body)
    ahead["event"]["timestamp"] = rfc3339(received + timedelta(hours=25))
    with opened(broker, homeassistant=True) as sink:
        deliver_batch(sink, sooner, Event.from_body(json.dumps(ahead).encode(), received))
        assert celsius(broker) == 0
        assert json.loads(retained(broker)["dt/oslo/d1/last_seen"])["event_id"] == "e1"
        assert "dt/oslo/d1/touch" not in retained(broker)


def test_a_newer_value_survives_a_restart_of_the_receiver_and_a_replay(broker: Broker) -> None:
    with opened(broker) as sink:
        deliver_batch(sink, temperature("e2", 22.0, minute=30))
    with opened(broker) as sink:
        deliver_batch(sink, temperature("e1", 11.0, minute=10), temperature("e0", 10.0, minute=5))
        assert celsius(broker) == 22.0
        deliver_batch(sink, temperature("e3", 33.0, minute=40))
        assert celsius(broker) == 33.0


def test_more_devices_than_are_looked_up_at_once_keep_their_newer_values(broker: Broker) -> None:
    devices = [f"d{number}" for number in range(35)]
    with opened(broker) as sink:
        deliver_batch(sink, *(temperature(f"b-{device}", 2.0, minute=30, device=device) for device in devices))
    with opened(broker) as sink:
        deliver_batch(sink, *(temperature(f"a-{device}", 1.0, minute=10, device=device) for device in devices))
    values = [json.loads(payload)["value"] for payload in retained(broker, "dt/oslo/+/temperature").values()]
    assert values == [2.0] * len(devices)


def test_two_dispatchers_agree_on_the_newest_value(broker: Broker) -> None:
    """Each knows what the other has published, and publishes its own value again where that was older."""
    with opened(broker) as first, opened(broker) as second:
        deliver_batch(second, temperature("e1", 1.0, minute=1))
        deliver_batch(first, temperature("e2", 2.0, minute=2))
        deliver_batch(second, temperature("e0", 0.5, minute=1))
        assert celsius(broker) == 2.0
        with listening(broker) as other:
            other.publish(TEMPERATURE, temperature_at(0, "e-", -1.0), retain=True)
            wait_until(lambda: celsius(broker) == 2.0, what="the newest value")


@pytest.mark.parametrize("junk", [b"21.5", b"\xff", b"[]", b'{"time": 5, "event_id": null}', b"{" * 100_000])
def test_what_another_program_has_retained_on_a_topic_is_replaced(broker: Broker, junk: bytes) -> None:
    with listening(broker) as other:
        other.publish(TEMPERATURE, junk, retain=True)
    with opened(broker) as sink:
        deliver_batch(sink, temperature("e1", 11.0))
    assert celsius(broker) == 11.0


def test_a_value_that_was_removed_is_published_again(broker: Broker) -> None:
    with opened(broker) as sink, listening(broker) as other:
        deliver_batch(sink, temperature("e1", 11.0))
        other.publish(TEMPERATURE, b"", retain=True)
        other.catch_up()
        wait_until(lambda: TEMPERATURE not in retained(broker), what="the removal")

        def is_published_again() -> bool:
            deliver_batch(sink, temperature("e1", 11.0), attempt=2)
            return TEMPERATURE in retained(broker)

        wait_until(is_published_again, what="the value")


def test_ids_cannot_leave_their_level_of_a_topic(broker: Broker, listener: Listener) -> None:
    odd = "a/b+c#d\0e\nf $ æ"
    with opened(broker) as sink:
        deliver_batch(
            sink,
            event("e1", odd, device=odd, project=odd),
            temperature("e2", 1.0, device=None, project=None),
            event("e3", "x" * 70_000, device="", project=""),
        )
        topics = {each.topic for each in listener.catch_up()}
    level = "a%2Fb%2Bc%23d%00e%0Af%20%24%20%C3%A6"
    assert topics == {
        STATUS,
        f"dt/{level}/{level}/event/{level}",
        f"dt/{level}/{level}/availability",
        "dt/unknown/unknown/event/temperature",
        f"dt/unknown/unknown/event/{'x' * 255}",
    }


def test_without_retain_nothing_is_retained_and_what_was_is_removed(broker: Broker, listener: Listener) -> None:
    """More than mosquitto sends for one subscription, which is 20 and 1,000 in its queue; what others retain stays."""
    devices = [f"d{number}" for number in range(600)]
    listener.publish("other/topic", b"x", retain=True)
    listener.publish("homeassistant/device/other/config", b'{"origin": {"name": "other"}}', retain=True)
    with opened(broker, homeassistant=True) as sink:
        deliver_batch(sink, *(temperature(f"e-{device}", 2.0, device=device) for device in devices))
    with opened(broker, retain=False, homeassistant=True) as sink:
        deliver_batch(sink, temperature("e2", 22.0, minute=30))
        deliver_batch(sink, temperature("e1", 11.0, minute=10))
        kept = {"other/topic": b"x", "homeassistant/device/other/config": b'{"origin": {"name": "other"}}'}
        assert retained(broker) == kept
        published = [each for each in listener.catch_up() if each.topic == TEMPERATURE]
        assert published[-1] == Published(TEMPERATURE, temperature_at(30, "e2", 22.0))
    assert retained(broker) == kept
