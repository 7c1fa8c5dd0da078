"""The registry is judged by one dispatcher at a time, and each incident is opened and announced once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import StartReceiver, wait_until
from support.journals import SqlStore
from support.sensors import DOOR, FREEZER, PROJECT, at, event, network, row_of, sql, temperature

from receiver.delivery.alerts import Alerts
from receiver.delivery.hooks import hooks_of
from receiver.delivery.registry import Judge, RegistrySink
from receiver.errors import JournalError, JournalUnavailable, Pause
from receiver.event import Event
from receiver.hookspecs import PluginHooks, hookimpl
from receiver.incident import Cause, Incident
from receiver.journal import Arrival, open_journal
from receiver.sensors import judgement, open_registry
from receiver.sensors import registry as registry_module
from receiver.sensors.judgement import Verdict
from receiver.sensors.registry import Announcement, Registry
from receiver.sensors.watch import Rules
from receiver.settings import Settings, load
from receiver.simulator import Simulator
from receiver.variables import SECRET

HOUR = 60


def fold_heartbeats(registry: Registry, device: str, start: int, end: int, **more: Any) -> None:
    registry.fold([network(minutes, device=device, **more) for minutes in range(start, end, 15)])


def judge(registry: Registry, minutes: float, holder: str = "a") -> list[tuple[str, Incident]]:
    """What is announced then."""
    found = registry.judge(at(minutes).timestamp(), holder)
    for announcement in found:
        registry.announced(announcement)
    return [(each.hook, each.incident) for each in found]


def judge_until(registry: Registry, start: int, end: int) -> list[tuple[int, str, Incident]]:
    """Judge every three minutes: a longer silence of the judge is a downtime of the receiver."""
    return [(minute, *each) for minute in range(start, end, 3) for each in judge(registry, minute)]


def on_the_door(registry: Registry, start: int = 4 * HOUR, end: int = 6 * HOUR) -> None:
    """Nothing but the door is heard; the receiver is up."""
    fold_heartbeats(registry, DOOR, start, end)


@pytest.fixture
def fleet(registry: Registry) -> Registry:
    """A freezer and a door that were heard for four hours, and judged meanwhile."""
    fold_heartbeats(registry, FREEZER, 0, 4 * HOUR, name="freezer")
    fold_heartbeats(registry, DOOR, 0, 4 * HOUR, device_type="contact")
    assert judge_until(registry, 4 * HOUR - 6, 4 * HOUR) == []
    return registry


def test_a_sensor_is_learned_falls_silent_and_returns(fleet: Registry) -> None:
    assert row_of(fleet).interval_minutes == 15
    assert row_of(fleet).state == "ok"
    for start in range(4 * HOUR, 12 * HOUR, 15):
        fold_heartbeats(fleet, DOOR, start, start + 1)
        if start >= 8 * HOUR:
            fold_heartbeats(fleet, FREEZER, start, start + 1)
        for minute, hook, incident in judge_until(fleet, start, start + 15):
            assert (incident.cause, incident.project_id, incident.sensors) == (
                Cause.DEVICE,
                PROJECT,
                {FREEZER: "freezer"},
            )
            assert (incident.id, incident.since) == (1, at(225))
            if hook == "incident_opened":
                assert (minute, incident.opened, incident.closed) == (300, at(300), None)
                assert row_of(fleet).state == "silent"
                assert fleet.states()["silent"] == fleet.causes()["device"] == 1
            else:
                assert (minute, incident.closed) == (495, at(495))
    assert row_of(fleet).state == "ok"
    (incident,) = fleet.incidents(10)
    assert (incident.opened, incident.closed) == (at(300), at(495))
    assert fleet.states() | {"ok": 0} == dict.fromkeys(fleet.states(), 0)


def test_a_restart_neither_raises_nor_clears_anything(fleet: Registry, store: SqlStore) -> None:
    on_the_door(fleet)
    assert [hook for hook, _ in judge(fleet, 6 * HOUR)] == ["incident_opened"]
    with closing(Registry(store.database(), Rules())) as restarted:
        for minute in (6 * HOUR + 1, 6 * HOUR + 2, 9 * HOUR, 9 * HOUR + 1):
            assert judge(restarted, minute) == []
        assert restarted.causes()["device"] == 1


def test_a_replay_raises_and_clears_nothing(fleet: Registry) -> None:
    on_the_door(fleet)
    assert len(judge(fleet, 6 * HOUR)) == 1
    fold_heartbeats(fleet, FREEZER, 0, 4 * HOUR)
    late = [temperature(minutes, 1.0, received=6 * HOUR, backfilled=True) for minutes in range(240, 360, 15)]
    fleet.fold(late)
    assert judge(fleet, 6 * HOUR + 1) == []
    assert fleet.causes()["device"] == 1


def test_what_a_person_decides_while_sensors_are_judged_stays(fleet: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    on_the_door(fleet)

    def judged_while_the_freezer_is_retired(*arguments: Any) -> Verdict:
        verdict = judgement.judge(*arguments)
        fleet.retire(FREEZER, at(6 * HOUR).timestamp(), at(6 * HOUR).timestamp())
        return verdict

    monkeypatch.setattr(registry_module, "judge", judged_while_the_freezer_is_retired)
    judge(fleet, 6 * HOUR)
    assert row_of(fleet).state == "retired"


def test_of_several_dispatchers_one_judges_until_it_has_been_gone_for_a_minute(
    fleet: Registry, store: SqlStore
) -> None:
    on_the_door(fleet)
    assert judge(fleet, 6 * HOUR, holder="b") == []
    store.clock.advance(59)
    assert judge(fleet, 6 * HOUR, holder="b") == []
    store.clock.advance(2)
    assert [hook for hook, _ in judge(fleet, 6 * HOUR, holder="b")] == ["incident_opened"]
    assert judge(fleet, 6 * HOUR, holder="a") == []


def test_a_copy_in_which_sequences_begin_anew_opens_incidents_after_a_restart(fleet: Registry, store: SqlStore) -> None:
    """As logical replication leaves them; SQLite has none."""
    columns = "id, cause, subject, project_id, sensors, since, opened, closed, reason, unstable, announced"
    values = "7, 'device', 'copied', 'p', '[]', 0, 0, 0, '', false, 2"
    sql(store, f"INSERT INTO registry_incidents ({columns}) VALUES ({values})")
    with closing(Registry(store.database(), Rules())) as restarted:
        on_the_door(restarted)
        ((_, incident),) = judge(restarted, 6 * HOUR)
    assert incident.id == 8


def test_an_incident_that_became_part_of_another_is_not_announced_as_closed(fleet: Registry) -> None:
    on_the_door(fleet)
    assert [hook for hook, _ in judge(fleet, 6 * HOUR)] == ["incident_opened"]
    with fleet._database.read() as connection:
        (case,) = fleet._cases(connection, at(6 * HOUR).timestamp())
    absorbed = replace(case, closed=at(6 * HOUR).timestamp(), absorbed=True)
    assert fleet._store("a", Verdict(changed={case.id: absorbed}), [], [])
    assert fleet._to_announce() == []
    assert fleet.causes()["device"] == 0


def test_a_dispatcher_that_stops_ends_no_lease_but_its_own(fleet: Registry) -> None:
    on_the_door(fleet)
    fleet.stop_judging("b")
    assert judge(fleet, 6 * HOUR, holder="b") == []
    fleet.stop_judging("a")
    assert [hook for hook, _ in judge(fleet, 6 * HOUR, holder="b")] == ["incident_opened"]


def test_what_a_dispatcher_did_not_announce_before_its_crash_its_successor_announces(
    fleet: Registry, store: SqlStore
) -> None:
    on_the_door(fleet)
    (before,) = fleet.judge(at(6 * HOUR).timestamp(), "a")
    store.clock.advance(61)
    ((hook, incident),) = judge(fleet, 6 * HOUR + 1, holder="b")
    assert (hook, incident.id) == ("incident_opened", before.incident.id)
    assert judge(fleet, 6 * HOUR + 2, holder="b") == []


def test_two_judges_at_once_open_an_incident_once(fleet: Registry, store: SqlStore) -> None:
    on_the_door(fleet)
    store.clock.advance(61)
    found: list[Announcement] = []

    def run(holder: str) -> None:
        with closing(Registry(store.database(), Rules())) as registry:
            found.extend(registry.judge(at(6 * HOUR).timestamp(), holder))

    threads = [threading.Thread(target=run, args=(holder,)) for holder in "bcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(fleet.incidents(10)) == 1


@pytest.mark.parametrize("minutes", [pytest.param(6 * HOUR, id="a verdict"), pytest.param(4 * HOUR, id="no change")])
def test_a_judge_that_was_suspended_until_another_took_over_opens_and_announces_nothing(
    minutes: int, fleet: Registry, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_door(fleet)
    found: list[Announcement] = []

    def suspended(*facts: Any) -> Verdict:
        verdict = judgement.judge(*facts)
        monkeypatch.undo()
        store.clock.advance(61)
        with closing(Registry(store.database(), Rules())) as other:
            found.extend(other.judge(at(6 * HOUR).timestamp(), "b"))
        return verdict

    monkeypatch.setattr(registry_module, "judge", suspended)
    assert judge(fleet, minutes) == []
    assert len(found) == len(fleet.incidents(10)) == 1


def test_a_lease_from_a_clock_that_was_ahead_prevents_no_other_from_judging(fleet: Registry, store: SqlStore) -> None:
    """As after a power cut of a machine without a clock of its own."""
    on_the_door(fleet)
    sql(store, "UPDATE registry_schema SET judge = 'killed', judge_until = judge_until + 86400")
    assert [hook for hook, _ in judge(fleet, 6 * HOUR)] == ["incident_opened"]


def test_folding_and_judging_at_once_do_not_lock_each_other(registry: Registry, store: SqlStore) -> None:
    """PostgreSQL would end one of two transactions that change the same rows in another order."""
    devices = [f"device{n:03d}" for n in range(200)]
    registry.fold([event(0, device=each) for each in devices])
    judge(registry, 1)
    learned = [{"device": each, "learned": 0.0, "interval": 15} for each in reversed(devices)]
    errors: list[JournalError] = []

    def store_often() -> None:
        try:
            with closing(Registry(store.database(), Rules())) as other:
                for _ in range(6):
                    other._store("a", Verdict(), [], learned)
        except JournalError as error:
            errors.append(error)

    thread = threading.Thread(target=store_often)
    thread.start()
    for minutes in range(2, 8):
        registry.fold([event(minutes, device=each) for each in devices])
    thread.join()
    assert errors == []


def test_snooze_and_retire_are_stored_and_can_be_undone(fleet: Registry) -> None:
    now = at(4 * HOUR).timestamp()
    fleet.snooze(FREEZER, now + 3 * 3600, now)
    fleet.retire(DOOR, now, now)
    fold_heartbeats(fleet, "other", 4 * HOUR, 7 * HOUR)
    assert judge(fleet, 7 * HOUR - 1) == []
    assert (row_of(fleet).state, row_of(fleet, DOOR).state) == ("snoozed", "retired")
    assert [incident.sensors for _, incident in judge(fleet, 7 * HOUR + 1)] == [{FREEZER: "freezer"}]
    fleet.retire(DOOR, None, at(7 * HOUR).timestamp())
    assert judge(fleet, 7 * HOUR + 2) == []
    fold_heartbeats(fleet, "other", 7 * HOUR, 9 * HOUR)
    assert [incident.sensors for _, incident in judge(fleet, 9 * HOUR)] == [{DOOR: DOOR}]


def test_a_sensor_renamed_while_silent_is_shown_with_its_new_name(fleet: Registry) -> None:
    on_the_door(fleet)
    assert len(judge(fleet, 6 * HOUR)) == 1
    fleet.fold([event(6 * HOUR, "labelsChanged", {}, name="cold room")])
    assert [incident.sensors for incident in fleet.incidents(10)] == [{FREEZER: "cold room"}]
    assert judge(fleet, 6 * HOUR + 1) == []


# In the dispatcher


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "config.toml").write_text("[journal]\nmin_free_mb = 0\n")
    return load({"RECEIVER_CONFIG": str(tmp_path / "config.toml"), SECRET: "s" * 32})


class Listener:
    """A plugin that records incidents."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    @hookimpl
    def incident_opened(self, incident: Incident) -> None:
        self.calls.append(("opened", incident.reason))

    @hookimpl
    def incident_closed(self, incident: Incident) -> None:
        self.calls.append(("closed", incident.reason))


def test_the_judge_announces_to_plugins_and_does_not_judge_while_events_wait(settings: Settings) -> None:
    listener = Listener()
    alerts = Alerts([hooks_of(listener, PluginHooks, "listener")], [], str)
    sink, minutes = RegistrySink(settings), [0.0]
    sink.open()
    sink.deliver_batch([network(n, device=device) for n in range(0, 240, 15) for device in (FREEZER, DOOR)])
    with closing(open_journal(settings)) as journal, closing(Registry(sink._registry._database, Rules())) as registry:
        judge = Judge(settings, journal, "a", lambda: at(minutes[0]).timestamp())
        journal.accept([Arrival("e1", b"{}", at(200).timestamp())])
        journal.route([(stored, ["sensors"]) for stored in journal.unrouted(1)])
        sink.deliver_batch([network(n, device=DOOR) for n in range(240, 600, 15)])
        for minutes[0] in (590.0, 591.0, 592.0):
            judge.step(registry, alerts)
        assert registry.incidents(1) == []
        journal.settle([_delivered(each) for each in journal.claim("sensors", 1, 60)])
        judge.step(registry, alerts)
        judge.step(registry, alerts)
    alerts.close(10)
    assert [hook for hook, _ in listener.calls] == ["opened"]


def _delivered(delivery: Any) -> Any:
    from receiver.journal import Result, Settlement

    return Settlement(delivery, Result.DELIVERED)


def test_a_registry_that_cannot_be_written_pauses_its_sink_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(registry: Registry, events: Sequence[Event]) -> None:
        raise JournalUnavailable("disk full")

    monkeypatch.setattr(Registry, "fold", fail)
    sink = RegistrySink(settings)
    sink.open()
    with closing(sink._registry), pytest.raises(Pause, match="disk full") as raised:
        sink.deliver_batch([network(0)])
    assert raised.value.after == 5


def test_the_registry_can_be_in_a_database_of_its_own(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[sensors]\nurl = 'sqlite:///other/r.sqlite'\n")
    open_registry(load({"RECEIVER_CONFIG": str(config), SECRET: "s" * 32})).close()
    assert (tmp_path / "other" / "r.sqlite").exists()
    config.write_text("[sensors]\nurl = 'postgresql://user:secret@127.0.0.1:1/name'\n")
    with pytest.raises(JournalUnavailable) as raised:
        open_registry(load({"RECEIVER_CONFIG": str(config), SECRET: "s" * 32}))
    assert str(raised.value) == "the database of [sensors] url cannot be used now: connection refused"
    config.write_text("[sensors]\nurl = 'postgresql://user:secret@127.0.0.1:1/name?sslmode=odd'\n")
    with pytest.raises(JournalError, match=r"^\[sensors\] url: sslmode must be one of disable, "):
        open_registry(load({"RECEIVER_CONFIG": str(config), SECRET: "s" * 32}))


def test_a_receiver_knows_its_sensors_without_any_settings(start_receiver: StartReceiver) -> None:
    receiver = start_receiver("")
    receiver.push(Simulator(1).body("temperature"))
    wait_until(lambda: "Simulated temperature" in receiver.run("sensors"))
    assert (receiver.folder / "data" / "sensors.sqlite").exists()
    page = receiver.http.request("GET", f"{receiver.url}/metrics").data.decode()
    assert 'receiver_sensors{state="learning"} 1.0' in page
    assert 'receiver_incidents{cause="project"} 0.0' in page
    assert "sensors  enabled" in receiver.run("status")
    assert receiver.stop() == 0


def test_events_of_a_registry_that_was_deleted_can_be_replayed(start_receiver: StartReceiver) -> None:
    receiver = start_receiver("")
    receiver.push(Simulator(1).body("temperature"))
    wait_until(lambda: "Simulated temperature" in receiver.run("sensors"))
    receiver.stop()
    for path in (receiver.folder / "data").glob("sensors.sqlite*"):
        path.unlink()
    receiver.start()
    assert "requeued 1 for sink sensors" in receiver.run("replay", "sensors", "--since", "1d", "--yes")
    wait_until(lambda: "Simulated temperature" in receiver.run("sensors"))


def test_each_cause_without_an_open_incident_counts_as_none(fleet: Registry) -> None:
    assert fleet.causes() == dict.fromkeys(Cause, 0)
