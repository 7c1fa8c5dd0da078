"""The small DT cloud keeps DT's rules: retries for 12 hours, disabled after 5 days, a history of 31 days."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.cloud import FREEZER, NOW, PROJECT, Client

from receiver.testing import TEST_SECRET
from receiver.testing.cloud import Cloud, CloudConnector
from receiver.testing.fixtures import StartReceiver
from receiver.testing.running import wait_until

HOUR = 3600.0


@pytest.fixture
def pushed(cloud: Cloud) -> Callable[[Callable[[float], int]], list[float]]:
    """Add a device, and a connector whose pushes get the status of a function of time; the times of those with 200."""
    cloud.now = NOW
    cloud.add_device(FREEZER, PROJECT)

    def add(status_at: Callable[[float], int]) -> list[float]:
        accepted: list[float] = []

        def send(body: bytes) -> int:
            status = status_at(cloud.clock())
            if status == 200:
                accepted.append(cloud.clock())
            return status

        cloud.add_connector(PROJECT, "http://127.0.0.1:1/", send=send)
        return accepted

    return add


def only(cloud: Cloud) -> CloudConnector:
    (connector,) = cloud.connectors
    return connector


def test_a_push_is_retried_until_it_is_accepted(cloud: Cloud, pushed: Callable[..., list[float]]) -> None:
    accepted = pushed(lambda now: 200 if now > NOW + 10 * HOUR else 503)
    cloud.emit(FREEZER, "touch", {})
    cloud.run(NOW + 24 * HOUR)
    assert len(accepted) == 1
    assert NOW + 10 * HOUR < accepted[0] <= NOW + 11 * HOUR
    assert (only(cloud).successes, only(cloud).status) == (1, "ACTIVE")
    assert 10 < only(cloud).errors < 30


def test_after_twelve_hours_a_push_is_gone_and_the_history_has_it(
    cloud: Cloud, pushed: Callable[..., list[float]]
) -> None:
    accepted = pushed(lambda now: 200 if now > NOW + 13 * HOUR else 0)
    missed = cloud.emit(FREEZER, "touch", {})
    cloud.run(NOW + 14 * HOUR)
    cloud.emit(FREEZER, "touch", {})
    cloud.run(NOW + 15 * HOUR)
    assert accepted == [NOW + 14 * HOUR]
    client = Client(cloud)
    (page,) = client.api.events(PROJECT, FREEZER, NOW - HOUR, NOW + HOUR)
    assert [event["eventId"] for event in page] == [missed.id]


def test_after_five_days_without_a_success_the_connector_is_disabled(
    cloud: Cloud, pushed: Callable[..., list[float]]
) -> None:
    accepted = pushed(lambda now: 200 if now > NOW + 124 * HOUR else 0)
    for hour in range(130):
        cloud.emit(FREEZER, "touch", {})
        cloud.run(NOW + (hour + 1) * HOUR)
        assert only(cloud).status == ("ACTIVE" if hour < 120 else "SYSTEM_DISABLED"), hour
    assert accepted == []
    only(cloud).status = "ACTIVE"
    cloud.emit(FREEZER, "touch", {})
    cloud.run(NOW + 140 * HOUR)
    assert accepted == [NOW + 130 * HOUR]


def test_a_receiver_accepts_what_it_pushes(cloud: Cloud, start_receiver: StartReceiver) -> None:
    receiver = start_receiver()
    cloud.add_device(FREEZER, PROJECT, labels={"name": "Freezer", "site": "oslo"})
    cloud.add_connector(PROJECT, receiver.url, secret=TEST_SECRET, events=["temperature"])
    sent = cloud.emit(FREEZER, "temperature", {"value": 4.5})
    cloud.emit(FREEZER, "touch", {})
    cloud.run(cloud.clock())
    wait_until(receiver.rows)
    (row,) = receiver.rows()
    assert (row["event_id"], row["device_name"], row["value"]) == (sent.id, "Freezer", "4.5")
