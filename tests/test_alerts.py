"""Alerts: who is notified of pauses, dead letters and incidents, and that nothing waits for a listener."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import StartReceiver, wait_until
from support.delivery import RunningDispatcher

from receiver import Event, Incident, hookimpl
from receiver.delivery import alerts as alerts_module
from receiver.delivery.alerts import Alerts
from receiver.delivery.hooks import hooks_of
from receiver.hookspecs import PluginHooks, SinkHooks
from receiver.incident import Cause
from receiver.journal import SinkState, StoredEvent
from receiver.simulator import Simulator

STORED_EVENT = StoredEvent(1, "an-event", Simulator(1).body("touch"), 1000.0)
UNDECODABLE_EVENT = StoredEvent(2, "no-event", b"no event", 1000.0)


class Recorder:
    """A listener that records its alerts, after it has done what the test gives it to do."""

    def __init__(self, behave: Callable[[], object] = lambda: None) -> None:
        self.alerts: list[tuple[str, ...]] = []
        self.behave = behave

    @hookimpl
    def sink_paused(self, sink: str, reason: str) -> None:
        self.behave()
        self.alerts.append(("paused", sink, reason))

    @hookimpl
    def delivery_died(self, event: Event, sink: str, reason: str) -> None:
        self.behave()
        self.alerts.append(("died", event.type, sink, reason))


class OnlyReasons:
    """A listener for one alert that declares one of its arguments."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    @hookimpl
    def sink_paused(self, reason: str) -> None:
        self.reasons.append(reason)


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Blocks the listeners that wait for it until the test sets it, or ends."""
    event = threading.Event()
    yield event
    event.set()


def alerts_for(*plugins: object) -> Alerts:
    return Alerts([hooks_of(plugin, PluginHooks, f"plugin {n}") for n, plugin in enumerate(plugins)], [], str)


def notify(alerts: Alerts) -> None:
    alerts.sink_paused("erp", "it keeps failing")
    alerts.delivery_died(STORED_EVENT, "erp", "the record is locked")


def test_every_listener_gets_the_alerts_it_implements_in_order() -> None:
    first, second, third = Recorder(), Recorder(), OnlyReasons()
    alerts = alerts_for(first, second, object(), third)
    notify(alerts)
    alerts.close(20)
    assert first.alerts == [("paused", "erp", "it keeps failing"), ("died", "touch", "erp", "the record is locked")]
    assert (second.alerts, third.reasons) == (first.alerts, ["it keeps failing"])


def test_a_listener_that_raises_is_logged_and_gets_the_next_alert_and_the_others_get_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> None:
        raise SystemExit("no\nmail")

    good = Recorder()
    alerts = alerts_for(Recorder(fail), good)
    notify(alerts)
    alerts.close(20)
    assert len(good.alerts) == 2
    assert caplog.record_tuples == [
        ("receiver.delivery.alerts", logging.WARNING, "plugin 0 failed in sink_paused: SystemExit: no mail"),
        ("receiver.delivery.alerts", logging.WARNING, "plugin 0 failed in delivery_died: SystemExit: no mail"),
    ]


def test_a_listener_that_blocks_delays_no_other_and_alerts_beyond_its_queue_are_dropped(
    released: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(alerts_module, "MAX_QUEUED", 3)
    called = threading.Event()

    def block() -> None:
        called.set()
        released.wait(60)

    blocked, good = Recorder(block), Recorder()
    alerts = alerts_for(blocked, good)
    reasons = [f"reason {number}" for number in range(6)]
    for number, reason in enumerate(reasons):
        alerts.sink_paused("erp", reason)
        assert called.wait(20)
        wait_until(lambda number=number: len(good.alerts) == number + 1)  # type: ignore[misc]
    assert caplog.messages == ["alert sink_paused of sink erp dropped: its listener is too far behind"] * 2
    assert good.alerts == [("paused", "erp", reason) for reason in reasons]

    released.set()
    wait_until(lambda: len(blocked.alerts) == 4)
    alerts.sink_paused("erp", "the last")
    alerts.close(20)
    assert [alert[2] for alert in blocked.alerts] == [*reasons[:4], "the last"]


@pytest.mark.parametrize("queued", [0, 3], ids=["empty queue", "full queue"])
def test_close_waits_for_a_limited_time(
    queued: int, released: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts_module, "MAX_QUEUED", 3)
    called = threading.Event()

    def block() -> None:
        called.set()
        released.wait(60)

    blocked, good = Recorder(block), Recorder()
    alerts = alerts_for(blocked, good)
    alerts.sink_paused("erp", "reason")
    assert called.wait(20)
    wait_until(lambda: len(good.alerts) == 1)
    for _ in range(queued):
        alerts.sink_paused("erp", "reason")
    closing = threading.Thread(target=alerts.close, args=(0.2,), daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()
    assert blocked.alerts == []
    wait_until(lambda: len(good.alerts) == 1 + queued)


def test_a_sink_gets_the_alerts_from_before_its_start_when_it_is_started() -> None:
    started, not_started = Recorder(), Recorder()
    hooks = [hooks_of(sink, SinkHooks, "sink") for sink in (started, not_started)]
    alerts = Alerts([], hooks, str)
    alerts.sink_paused("erp", "early")
    alerts.start(hooks[0])
    alerts.start(hooks[0])
    alerts.sink_paused("erp", "late")
    alerts.close(20)
    assert started.alerts == [("paused", "erp", "early"), ("paused", "erp", "late")]
    assert not_started.alerts == []


def test_there_is_no_alert_for_an_event_that_cannot_be_decoded_any_more() -> None:
    listener = Recorder()
    alerts = alerts_for(listener)
    alerts.delivery_died(UNDECODABLE_EVENT, "erp", "it cannot be decoded any more")
    alerts.close(20)
    assert listener.alerts == []


@pytest.mark.parametrize("paused_before", [False, True])
def test_a_broken_sink_is_an_alert_at_the_first_start_only(paused_before: bool, dispatcher: RunningDispatcher) -> None:
    reason = "no sink type 'kafka'"
    if paused_before:
        dispatcher.journal.save_sink_state(SinkState("broken", 1, 0.0, reason))
    listener = Recorder()
    dispatcher.lifeline.stop_requested = True
    dispatcher.start(broken={"broken": reason}, plugins=[hooks_of(listener, PluginHooks, "listener")])
    dispatcher.join()
    expected = [] if paused_before else [("paused", "broken", reason)]
    wait_until(lambda: listener.alerts == expected)


PLUGIN = """
import os
from receiver import GiveUp, Pause, hookimpl

class Selective:
    @hookimpl
    def deliver(self, event):
        if event.type == "touch":
            raise GiveUp("no touch please")
        raise Pause("closed for today", after=3600)

    @hookimpl
    def sink_paused(self, sink, reason):
        os.write(1, f'["sink", "{sink}", "{reason}"]\\n'.encode())

@hookimpl
def register_sinks(register):
    register("selective", Selective)

@hookimpl
def sink_paused(sink, reason):
    os.write(1, f'["plugin", "{sink}", "{reason}"]\\n'.encode())

@hookimpl
def delivery_died(event, sink, reason):
    os.write(1, f'["plugin", "{sink}", "{event.type}", "{reason}"]\\n'.encode())
"""


def test_the_running_receiver_notifies_plugins_and_sinks_once_of_each_pause_and_dead_letter(
    start_receiver: StartReceiver, tmp_path: Path
) -> None:
    (tmp_path / "selective.py").write_text(PLUGIN)
    plugins = f'[receiver]\nplugins = ["{tmp_path / "selective.py"}"]\n'
    receiver = start_receiver(f'{plugins}[sinks.a]\ntype = "selective"\n[sinks.typo]\ntype = "selectiv"\n')
    unknown = "config.toml [sinks.typo]: no sink type 'selectiv' (did you mean 'selective'?); there are: "
    wait_until(lambda: len(receiver.stdout) == 2)
    assert [(line[0], line[1], line[2].startswith(unknown)) for line in sorted(receiver.stdout)] == [
        ("plugin", "typo", True),
        ("sink", "typo", True),
    ]

    simulator = Simulator(1)
    receiver.push(simulator.body("touch"))
    wait_until(lambda: ["plugin", "a", "touch", "no touch please"] in receiver.stdout)
    receiver.push(simulator.body("co2"))
    receiver.push(simulator.body("co2"))
    wait_until(lambda: len(receiver.stdout) == 5)

    assert sorted(receiver.stdout[3:]) == [["plugin", "a", "closed for today"], ["sink", "a", "closed for today"]]


class OnlyIncidents:
    """A listener for incidents alone."""

    def __init__(self) -> None:
        self.incidents: list[tuple[str, Incident]] = []

    @hookimpl
    def incident_opened(self, incident: Incident) -> None:
        self.incidents.append(("opened", incident))

    @hookimpl
    def incident_closed(self, incident: Incident) -> None:
        self.incidents.append(("closed", incident))


def test_incidents_are_announced_to_who_listens_for_them() -> None:
    now = datetime(2026, 3, 14, tzinfo=UTC)
    incident = Incident(7, Cause.DEVICE, "p", {"d": "freezer"}, now, now, None, "freezer was not heard")
    listener, deaf = OnlyIncidents(), Recorder()
    alerts = alerts_for(listener, deaf)
    alerts.announce("incident_opened", incident)
    alerts.announce("incident_closed", incident)
    alerts.close(20)
    assert (listener.incidents, deaf.alerts) == ([("opened", incident), ("closed", incident)], [])


def test_an_incident_that_a_listener_is_too_far_behind_for_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(alerts_module, "MAX_QUEUED", 1)
    not_started = Alerts([], [hooks_of(OnlyIncidents(), SinkHooks, "sink")], str)
    now = datetime(2026, 3, 14, tzinfo=UTC)
    for _ in range(2):
        not_started.announce("incident_opened", Incident(7, Cause.DEVICE, "p", {}, now, now, None, "r"))
    assert caplog.messages == ["alert incident_opened of sensors dropped: its listener is too far behind"]


def test_the_running_receiver_announces_an_incident_once_to_a_plugin(
    start_receiver: StartReceiver, tmp_path: Path
) -> None:
    (tmp_path / "listener.py").write_text(
        "from receiver import hookimpl\n"
        "@hookimpl\n"
        "def incident_opened(incident):\n"
        "    print('opened', incident.id, incident.cause, list(incident.sensors.values()), flush=True)\n"
        "@hookimpl\n"
        "def incident_closed(incident):\n"
        "    print('closed', incident.id, incident.closed is not None, flush=True)\n"
    )
    receiver = start_receiver(f'[receiver]\nplugins = ["{tmp_path / "listener.py"}"]\n')
    freezer, other = Simulator(1, labels={"name": "freezer"}), Simulator(2)
    now = datetime.now(UTC)
    for minutes in range(480, 120, -15):
        receiver.push(freezer.body("temperature", now - timedelta(minutes=minutes)))
    receiver.push(other.body("temperature", now))

    printed = receiver.folder / "stdout.txt"
    wait_until(lambda: "opened" in printed.read_text(), 60)
    receiver.stop()
    receiver.start()
    for minutes in (15, 0):
        receiver.push(freezer.body("temperature", now - timedelta(minutes=minutes)))
    wait_until(lambda: "closed" in printed.read_text(), 60)

    assert printed.read_text().splitlines() == ["opened 1 device ['freezer']", "closed 1 True"]
