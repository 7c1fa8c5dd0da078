"""`[sensors] backfill = true`: after an outage that is longer than DT retries, once, in a process of its own."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.cloud import PROJECT
from support.commands import Operator
from support.missed import CONFIG, Fleet
from support.sensors import event

from receiver.delivery.automatic_backfill import DOCUMENT, AutomaticBackfill, missed_until
from receiver.delivery.backfill_thread import COMMAND
from receiver.event import SIMULATED_PROJECT
from receiver.journal import Journal
from receiver.sensors import open_registry
from receiver.sensors.registry import Registry
from receiver.sensors.requested_backfill import missed
from receiver.testing.cloud import Cloud
from receiver.testing.running import RunningReceiver, wait_until


@pytest.fixture
def registry(fleet: Fleet) -> Iterator[Registry]:
    with closing(open_registry(fleet.operator.settings)) as registry:
        yield registry


@pytest.fixture
def fleet(operator: Operator, cloud: Cloud) -> Fleet:
    return Fleet(operator, cloud)


class Command:
    """A command that notes that it ran, says so, and ends with an exit code."""

    def __init__(self, folder: Path, code: int = 0, body: str = "") -> None:
        self.file = folder / "ran"
        script = f"import sys, time; open({str(self.file)!r}, 'a').write('x'); {body or 'print(1)'}; sys.exit({code})"
        self.command = (sys.executable, "-c", script)

    @property
    def runs(self) -> int:
        return len(self.file.read_text()) if self.file.exists() else 0


def automatic(fleet: Fleet, journal: Journal, command: Command) -> AutomaticBackfill:
    return AutomaticBackfill(fleet.operator.settings, journal, lambda: fleet.now, command.command)


def test_an_outage_of_twenty_hours_is_noticed_half_an_hour_after_its_end(fleet: Fleet, registry: Registry) -> None:
    end = missed_until(registry, fleet.now)
    assert end is not None
    assert 0 <= end * 60 - fleet.back <= 300
    assert missed_until(registry, fleet.back + 1700) is None


def test_an_outage_for_which_dt_retries_is_none(operator: Operator, cloud: Cloud) -> None:
    fleet = Fleet(operator, cloud, hours=11)
    with closing(open_registry(operator.settings)) as registry:
        assert missed_until(registry, fleet.now) is None


def test_a_data_connector_that_was_disabled_is_an_outage_of_its_project(operator: Operator, cloud: Cloud) -> None:
    fleet = Fleet(operator, cloud, devices=1, hours=0)
    minutes = fleet.now / 60
    with closing(open_registry(operator.settings)) as registry:
        assert missed_until(registry, fleet.now) is None
        base = (fleet.begin - event(0).occurred_at.timestamp()) / 60
        disabled = range(600, 600 + 20 * 60)
        length = int(minutes - fleet.begin / 60)
        registry.fold([event(base + n, project=PROJECT + "x") for n in range(0, length, 15) if n not in disabled])
        end = missed_until(registry, fleet.now)
        assert end is not None
        assert 0 <= end - (fleet.begin / 60 + 600 + 20 * 60) <= 20


def test_what_simulated_sensors_did_not_send_was_not_missed(operator: Operator, cloud: Cloud) -> None:
    fleet = Fleet(operator, cloud, devices=1, hours=0)
    base = (fleet.begin - event(0).occurred_at.timestamp()) / 60
    with closing(open_registry(operator.settings)) as registry:
        registry.fold([event(base + n, project=SIMULATED_PROJECT) for n in (600, 1800)])
        assert SIMULATED_PROJECT in registry.newest(fleet.now)
        assert (missed_until(registry, fleet.now), missed(registry, fleet.now)) == (None, [])


def test_a_new_registry_has_missed_nothing(operator: Operator) -> None:
    operator.configure(CONFIG)
    with closing(open_registry(operator.settings)) as registry:
        registry.fold([event(0)])
        registry.judge(time.time(), "judge")
        assert missed_until(registry, time.time()) is None


def test_it_runs_once_for_each_outage(
    fleet: Fleet, registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = Command(tmp_path, body='print(\'{"new": 7, "failures": []}\')')
    journal = fleet.operator.journal
    with caplog.at_level(logging.INFO):
        automatic(fleet, journal, command).step(registry)
        automatic(fleet, journal, command).step(registry)
    assert command.runs == 1
    first, second = [record.getMessage() for record in caplog.records]
    assert first.startswith("fetching from DT what was missed until ")
    assert second == "fetched from DT what was missed: new 7"


def test_what_cannot_be_fetched_is_an_error_in_the_log_and_not_tried_again(
    fleet: Fleet, registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = Command(tmp_path, 1, "print('error: first\\nerror: no role', file=sys.stderr)")
    for _ in range(2):
        automatic(fleet, fleet.operator.journal, command).step(registry)
    assert command.runs == 1
    assert caplog.messages == ["not everything that was missed was fetched from DT; run `backfill`: error: no role"]


def test_one_dispatcher_at_a_time_fetches(fleet: Fleet, registry: Registry, tmp_path: Path) -> None:
    command = Command(tmp_path)
    journal = fleet.operator.journal
    assert journal.lease_document(DOCUMENT, 60)
    automatic(fleet, journal, command).step(registry)
    assert command.runs == 0


def test_a_stop_ends_it_and_the_next_start_goes_on(fleet: Fleet, registry: Registry, tmp_path: Path) -> None:
    command = Command(tmp_path, body="time.sleep(600)")
    journal = fleet.operator.journal
    work = automatic(fleet, journal, command)
    thread = threading.Thread(target=work.step, args=(registry,))
    thread.start()
    wait_until(lambda: command.runs == 1, 60)
    work._stopped.set()
    thread.join(60)
    assert not thread.is_alive()
    assert not journal.document(DOCUMENT)


def test_it_is_the_command_that_a_person_would_run(
    fleet: Fleet, registry: Registry, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.INFO):
        AutomaticBackfill(fleet.operator.settings, fleet.operator.journal, command=COMMAND).step(registry)
    assert f"new {fleet.missed}" in caplog.messages[-1]
    fleet.deliver()
    assert (sorted(fleet.delivered.elements()), fleet.gaps()) == (fleet.ids, [])


def test_a_running_receiver_does_it(fleet: Fleet, cloud: Cloud) -> None:
    folder = fleet.operator.folder
    config = CONFIG + "[sensors]\nbackfill = true\n"
    receiver = RunningReceiver(folder, config, None, cloud.environment)
    try:
        receiver.start()
        wait_until(lambda: "fetched from DT what was missed" in receiver.log, 90)
        wait_until(lambda: len({row["event_id"] for row in receiver.rows()}) >= fleet.missed, 60)
        assert receiver.stop() == 0
    finally:
        receiver.kill_all()


def test_check_warns_without_a_service_account(operator: Operator) -> None:
    operator.configure(CONFIG + "[sensors]\nbackfill = true\n")
    _, _, errors = operator.run("check")
    assert any(line.startswith("warning: [sensors] backfill needs DT_SERVICE_ACCOUNT_KEY_ID, ") for line in errors)
