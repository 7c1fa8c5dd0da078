"""Missed events are fetched from DT's history once, whatever DT responds, and wherever it is interrupted."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from support.cloud import DOOR, FREEZER, NOW, OTHER_PROJECT, PROJECT, Client
from support.commands import Operator, Shell
from support.journals import SqlStore
from support.missed import Fleet, deliver_all
from support.postgresql import Deployment

from receiver.dt.backfill import Backfill, Summary
from receiver.dt.plan import Request, Window, plan, windows_of_gaps
from receiver.errors import ReceiverError
from receiver.event import Event, Origin, event_id
from receiver.journal import Arrival, Outcome, open_journal
from receiver.sensors import open_registry
from receiver.sensors.minutes import Minutes
from receiver.sensors.shown import OpenGap
from receiver.simulator import Simulator
from receiver.testing.cloud import Cloud, CloudDevice, Happening, respond
from receiver.testing.fixtures import StartReceiver
from receiver.testing.postgresql import Server
from receiver.testing.running import ROOT, wait_until


@pytest.fixture
def fleet(operator: Operator, cloud: Cloud) -> Fleet:
    return Fleet(operator, cloud)


# The gaps of the receiver


def test_what_an_outage_missed_is_fetched_and_delivered_once(operator: Operator, fleet: Fleet) -> None:
    assert len(fleet.gaps()) == 3
    assert fleet.backfill() == (
        0,
        [f"Fetched {fleet.missed + 6} events: {fleet.missed} new, 6 known, 0 quarantined. Gaps closed: 3, left: 0."],
        [],
    )
    fleet.deliver()
    assert sorted(fleet.delivered.elements()) == fleet.ids
    assert fleet.gaps() == []
    assert operator.json("sensors", "incidents") == []
    assert fleet.origins() == {"push": len(fleet.ids) - fleet.missed, "history": fleet.missed}


def test_an_event_from_the_history_is_what_a_push_would_have_been(operator: Operator, fleet: Fleet) -> None:
    fleet.backfill()
    device = fleet.devices[1]
    missed = next(each for each in device.history if each.time > fleet.gone)
    found = fleet.event(missed.id)
    pushed = Event.from_body(device.push(missed, ("name",)), found.received_at)
    assert (found.body, found.origin) == (pushed.body, Origin.HISTORY)
    assert operator.json("explain", missed.id)["origin"] == "history"
    assert operator.json("explain", device.history[0].id)["origin"] == "push"
    assert time.time() - 60 < found.received_at.timestamp() <= time.time()


def test_a_second_backfill_finds_nothing_missing(fleet: Fleet) -> None:
    fleet.backfill()
    fleet.deliver()
    requests = len(fleet.cloud.requests)
    assert fleet.backfill()[1] == ["Fetched 0 events: 0 new, 0 known, 0 quarantined. Gaps closed: 0, left: 0."]
    assert len(fleet.cloud.requests) == requests


def test_what_dt_does_not_have_leaves_the_gap(fleet: Fleet) -> None:
    device = fleet.devices[0]
    device.history = [each for each in device.history if not fleet.gone < each.time < fleet.back]
    code, (line,), _ = fleet.backfill()
    assert (code, line.partition("quarantined. ")[2]) == (0, "Gaps closed: 2, left: 1.")
    fleet.deliver()
    assert [gap["device_id"] for gap in fleet.gaps()] == [device.id]


def test_only_the_gaps_of_a_project_or_a_device_are_fetched(fleet: Fleet) -> None:
    fleet.backfill("--project", OTHER_PROJECT)
    fleet.deliver()
    assert len(fleet.gaps()) == 2
    fleet.backfill("--device", fleet.devices[0].id)
    fleet.deliver()
    assert [gap["device_id"] for gap in fleet.gaps()] == [fleet.devices[2].id]


def test_a_dry_run_says_how_many_events_of_which_sensors_would_come(operator: Operator, fleet: Fleet) -> None:
    code, out, _ = fleet.backfill("--dry-run")
    assert (code, out[0].split(), len(out)) == (0, ["device", "id", "device", "name", "new"], 5)
    assert sorted(line.split() for line in out[1:4]) == [
        [device.id, "Room", str(number), "80"] for number, device in enumerate(fleet.devices)
    ]
    assert out[4] == "Fetched 246 events: 240 would be new, 6 known, 0 quarantined. Gaps closed: 3, left: 0."
    assert fleet.origins() == {"push": len(fleet.ids) - fleet.missed}
    assert fleet.backfill()[1] == ["Fetched 246 events: 240 new, 6 known, 0 quarantined. Gaps closed: 3, left: 0."]


def test_it_asks_before_it_delivers(operator: Operator, fleet: Fleet) -> None:
    code, out, errors = operator.run("backfill", stdin="n\n", **fleet.cloud.environment)
    assert (code, out) == (1, [])
    assert re.match(
        r"Fetch 6\d sensor hours of 3 sensors from DT, and deliver what the journal does not have\?", errors[0]
    )
    assert fleet.origins() == {"push": len(fleet.ids) - fleet.missed}


def test_of_gaps_before_the_retention_the_events_at_their_ends_are_not_fetched() -> None:
    gap = OpenGap(FREEZER, PROJECT, 100, 200, 27, Minutes())
    assert windows_of_gaps([gap], 0.0) == [Window(FREEZER, PROJECT, 6000.0, 12060.0)]
    assert windows_of_gaps([gap], 9000.0) == [Window(FREEZER, PROJECT, 6060.0, 12060.0)]
    assert windows_of_gaps([gap], 20000.0) == [Window(FREEZER, PROJECT, 6060.0, 12000.0)]


# A time that a person names


def test_a_whole_time_is_fetched_of_all_projects_or_some(operator: Operator, fleet: Fleet) -> None:
    fleet.cloud.add_device("another-device", "another-project", history=[Happening(fleet.back, "x1", "touch", {})])
    code, (line,), _ = fleet.backfill("--since", "4d")
    assert (code, line.split(",")[0]) == (0, f"Fetched {len(fleet.ids) + 1} events: {fleet.missed + 1} new")
    fleet.deliver()
    assert sorted(fleet.delivered.elements()) == sorted([*fleet.ids, "x1"])
    code, (line,), _ = fleet.backfill("--since", "4d", "--project", "another-project")
    assert line.startswith("Fetched 1 event: 0 new, 1 known")
    code, (line,), _ = fleet.backfill("--since", "3d", "--until", "2d", "--device", fleet.devices[0].id)
    assert line.startswith("Fetched 96 events: 0 new, 96 known")


@pytest.mark.parametrize("options", [("--since", "1d", "--until", "2d"), ("--until", "40d"), ("--since", "soon")])
def test_a_time_that_is_none_is_an_error(fleet: Fleet, options: tuple[str, ...]) -> None:
    assert fleet.backfill(*options)[0] in (1, 2)


def test_without_a_service_account_it_says_which_variables_to_set(operator: Operator, fleet: Fleet) -> None:
    environment = {**fleet.cloud.environment, "DT_SERVICE_ACCOUNT_SECRET": ""}
    code, out, errors = operator.run("backfill", **environment)
    assert (code, out) == (1, [])
    assert errors == [
        "error: DT_SERVICE_ACCOUNT_SECRET is not set; in DT Studio create a service account with a key and the role "
        "Project User in the project (Project Developer for `doctor`), and set the three variables"
    ]


def test_a_rejected_secret_that_is_short_is_one_error_and_no_warning_of_a_library(shell: Shell, fleet: Fleet) -> None:
    environment = {**fleet.cloud.environment, "DT_SERVICE_ACCOUNT_SECRET": "short"}
    code, out, (error,) = shell.run("backfill", "--since", "1d", "--yes", **environment)
    assert (code, out) == (1, [])
    assert error.startswith("error: DT does not accept the service account")


def test_the_service_account_can_come_from_files(operator: Operator, fleet: Fleet, tmp_path: Path) -> None:
    environment = dict(fleet.cloud.environment)
    for name in [name for name in environment if "ACCOUNT" in name]:
        (tmp_path / name).write_text(environment.pop(name) + "\n")
        environment[f"{name}_FILE"] = str(tmp_path / name)
    assert operator.run("backfill", "--yes", **environment).exit_code == 0


# Odd history


@pytest.mark.parametrize("time", ["9999-12-31T23:59:59Z", "1970-01-01T00:00:00Z", "0001-01-01T00:00:00Z"])
def test_an_event_of_a_time_that_is_no_history_takes_no_memory(fleet: Fleet, time: str) -> None:
    """What was fetched is a set with a bit for each minute."""
    device = fleet.devices[0]
    position = next(n for n, each in enumerate(device.history) if each.time > fleet.gone)
    target = f"projects/{device.project}/devices/{device.id}"
    odd = {"eventId": "odd", "targetName": target, "eventType": "touch", "data": {}, "timestamp": time}
    device.history = [*device.history]
    device.history.insert(position + 1, Happening(device.history[position].time, "odd", "touch", {}, odd))
    tracemalloc.start()
    assert fleet.backfill()[1][0].endswith("Gaps closed: 3, left: 0.")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def test_a_sensor_without_a_project_is_found_in_whatever_project_it_is(fleet: Fleet) -> None:
    device = fleet.devices[0].id
    with closing(open_registry(fleet.operator.settings)) as registry, registry._database.write() as connection:
        connection.exec_driver_sql(f"UPDATE registry_sensors SET project_id = NULL WHERE device_id = '{device}'")
    code, out, errors = fleet.backfill()
    assert (code, out[0].partition("quarantined. ")[2], errors) == (0, "Gaps closed: 3, left: 0.", [])


def test_simulated_sensors_are_not_asked_for(fleet: Fleet) -> None:
    """Whoever pushes test events by `send` on two days has sensors with a gap, in a project that DT does not know."""
    simulator = Simulator()
    bodies = [(at, simulator.body("networkStatus", datetime.fromtimestamp(at, UTC))) for at in (fleet.begin, fleet.now)]
    settings = fleet.operator.settings
    with closing(open_journal(settings)) as journal, closing(open_registry(settings)) as registry:
        journal.accept([Arrival(event_id(body), body, at + 1) for at, body in bodies])
        deliver_all(journal, registry, fleet.delivered)
    assert any(gap["device_id"].startswith("emu") for gap in fleet.gaps())
    code, out, errors = fleet.backfill()
    assert (code, out[0].partition("quarantined. ")[2], errors) == (0, "Gaps closed: 3, left: 0.", [])


@pytest.fixture
def device(operator: Operator, cloud: Cloud) -> CloudDevice:
    """A device without a registry that knows it, whose history is fetched by its time."""
    operator.configure("[journal]\nmin_free_mb = 0\n[sinks.archive]\ntype = 'csv'\npath = 'events.csv'\n")
    return cloud.add_device(FREEZER, PROJECT, labels={"name": "Freezer"})


def fetched(operator: Operator, cloud: Cloud, *options: str) -> dict[str, Any]:
    done = operator.run("backfill", "--since", "1d", "--yes", "--json", *options, **cloud.environment)
    found: dict[str, Any] = json.loads("\n".join(done.out))
    return {**found, "exit_code": done.exit_code}


ODD = [5, "text", [], {}, {"eventId": "no-type"}, {"eventType": "no-id"}, {"eventId": "ø", "eventType": "x"}]


def test_what_is_no_event_is_quarantined_and_the_others_come(
    operator: Operator, cloud: Cloud, device: CloudDevice
) -> None:
    now = time.time()
    device.history = [
        Happening(now - 3600 + n, f"e{n}", "touch", {}, ODD[n % 10] if n % 10 < len(ODD) else None) for n in range(30)
    ]
    cloud.page_size = 4
    done = fetched(operator, cloud)
    odd = 3 * len(ODD)
    assert (done["new"], done["quarantined"], done["exit_code"]) == (30 - odd, odd, 0)
    rows = operator.json("quarantine", "list")
    assert {row["reason"] for row in rows} == {
        "the body has no object 'event'",
        "event.eventId is not 1 to 64 letters, digits, '_' or '-'",
        "event.eventType is not a string",
    }
    assert fetched(operator, cloud)["new"] == 0
    assert len(operator.json("quarantine", "list")) == len(rows) == len(ODD)


def test_events_of_unknown_types_and_shapes_come_as_they_are(
    operator: Operator, cloud: Cloud, device: CloudDevice
) -> None:
    now = time.time() - 100
    odd = {
        "eventId": "odd",
        "eventType": "sunshine",
        "data": {"lux": 1e30, "deep": [[[{"a": None}]]], "text": "\ud83e"},
    }
    device.history = [Happening(now, "odd", "sunshine", {}, odd)]
    assert fetched(operator, cloud)["new"] == 1
    body = json.loads(operator.json("explain", "odd", "--body")["body"])
    assert body["event"] == odd


def test_duplicates_across_pages_are_stored_once(operator: Operator, cloud: Cloud, device: CloudDevice) -> None:
    now = time.time()
    device.history = [Happening(now - 3600 + n // 3, f"e{n // 3}", "touch", {}) for n in range(30)]
    for size, options in ((30, ("--dry-run",)), (4, ())):
        cloud.page_size = size
        done = fetched(operator, cloud, *options)
        assert (done["fetched"], done["new"], done["known"]) == (30, 10, 20)


def test_an_event_newer_than_the_index_comes_with_its_push_or_the_next_time(
    operator: Operator, cloud: Cloud, device: CloudDevice
) -> None:
    cloud.now = now = time.time()
    device.history = [Happening(now - 100, "old", "touch", {}), Happening(now - 1, "new", "touch", {})]
    assert fetched(operator, cloud)["new"] == 1
    operator.journal.accept([Arrival("new", device.push(device.history[1], ()), time.time())])
    cloud.now = time.time() + 60
    assert fetched(operator, cloud)["known"] == 2


@pytest.mark.parametrize("labels", [None, {}, {"name": None}, {"name": 5, "odd": ["x"]}], ids=str)
def test_any_labels_are_tolerated(operator: Operator, cloud: Cloud, device: CloudDevice, labels: Any) -> None:
    device.labels = labels
    device.history = [Happening(time.time() - 100, "e", "touch", {})]
    assert fetched(operator, cloud)["new"] == 1
    assert operator.json("explain", "e")["device_id"] == FREEZER


def test_a_device_that_was_deleted_is_an_error_and_the_others_come(operator: Operator, fleet: Fleet) -> None:
    gone = fleet.devices[0]
    del fleet.cloud.devices[gone.id]
    code, (line,), errors = fleet.backfill()
    assert (code, line.partition("quarantined. ")[2]) == (1, "Gaps closed: 2, left: 1.")
    assert errors == [f"error: DT knows no device {gone.id}, or the service account has no role there"]


def test_a_retired_device_that_was_deleted_is_no_error(operator: Operator, fleet: Fleet) -> None:
    gone, kept = fleet.devices[:2]
    for device in gone, kept:
        assert operator.run("sensors", "retire", device.id).exit_code == 0
    del fleet.cloud.devices[gone.id]
    code, (line,), errors = fleet.backfill()
    assert (code, line.partition("quarantined. ")[2], errors) == (0, "Gaps closed: 2, left: 1.", [])
    assert fleet.backfill("--device", gone.id)[0] == 0


def test_a_device_that_has_moved_is_found_in_its_new_project(operator: Operator, fleet: Fleet) -> None:
    moved = fleet.devices[0]
    moved.project = "another-project"
    fleet.cloud.projects.append("another-project")
    assert fleet.backfill()[0] == 0
    fleet.deliver()
    assert (fleet.gaps(), sorted(fleet.delivered.elements())) == ([], fleet.ids)


def test_a_device_that_moves_meanwhile_is_found_in_its_new_project(cloud: Cloud, store: SqlStore) -> None:
    device = cloud.add_device(FREEZER, PROJECT, history=beats(5))
    (work, _), (again, _) = prepared(cloud, store), prepared(cloud, store)
    device.project = "another-project"
    cloud.projects.append("another-project")
    assert work.run().new == 5
    del cloud.devices[FREEZER]
    assert again.run().failures == (f"DT knows no device {FREEZER}, or the service account has no role there",)


def test_an_event_from_before_a_move_belongs_to_the_project_of_that_time(
    operator: Operator, cloud: Cloud, device: CloudDevice
) -> None:
    happened = Happening(time.time() - 100, "e", "touch", {})
    device.history = [happened._replace(raw=device.event(happened))]
    device.project = OTHER_PROJECT
    cloud.projects.append(OTHER_PROJECT)
    assert fetched(operator, cloud)["new"] == 1
    body = json.loads(operator.json("explain", "e", "--body")["body"])
    assert body["metadata"]["projectId"] == PROJECT


def test_a_project_without_a_role_is_an_error_and_the_others_come(fleet: Fleet) -> None:
    fleet.cloud.readable = {PROJECT}
    code, (line,), errors = fleet.backfill()
    assert (code, line.partition("quarantined. ")[2]) == (1, "Gaps closed: 2, left: 1.")
    assert errors[0].startswith("error: the service account may not read project")


def test_other_ids_in_the_history_than_in_pushes_stop_it_before_anything_is_stored(fleet: Fleet) -> None:
    for device in fleet.devices:
        device.history = [each._replace(id=f"h{each.id}") for each in device.history]
    code, out, errors = fleet.backfill()
    assert (code, out, len(errors)) == (1, [], 1)
    assert "under another id, so everything would be delivered twice; nothing was fetched" in errors[0]
    assert fleet.origins() == {"push": len(fleet.ids) - fleet.missed}


# Interrupted


def beats(count: int, end: float = NOW - 60) -> list[Happening]:
    return [Happening(end - 60 * (count - 1 - n), f"beat{n:016d}", "touch", {}) for n in range(count)]


def prepared(cloud: Cloud, store: SqlStore | Deployment) -> tuple[Backfill, Client]:
    """A backfill of all devices of the cloud, on the cloud's clock."""
    client = Client(cloud)
    request = Request(("all",), NOW - 86400 * 30, NOW)
    journal = store.open()
    found = plan(client.api, journal, request, (), 0.0, cloud.clock(), dry_run=False)
    return Backfill(client.session, journal, store.records(), found, request), client


def stored_ids(store: SqlStore | Deployment) -> list[str]:
    with closing(store.records()) as records:
        opened: list[Any] = store._open
        opened.remove(records)
        return sorted(each.event.id for each in records.newest(float("inf"), None, None, 10**6))


def expected_ids(cloud: Cloud) -> list[str]:
    return sorted(each.id for device in cloud.devices.values() for each in device.history)


def interrupt_after(cloud: Cloud, pages: int) -> None:
    """Let DT be away after so many pages of events."""
    left = iter(range(pages))

    def answer(request: BaseHTTPRequestHandler) -> bool:
        if "/events?" not in request.path or next(left, None) is not None:
            return False
        respond(request, 503, b"")
        return True

    cloud.answer = answer


def add_devices(cloud: Cloud, count: int, events: int) -> None:
    for number in range(count):
        name = f"device{number}"
        history = [each._replace(id=f"d{number}{each.id}") for each in beats(events)]
        cloud.add_device(name, PROJECT, history=history)


def test_a_journal_that_cannot_store_stops_it_and_the_next_run_goes_on(cloud: Cloud, store: SqlStore) -> None:
    add_devices(cloud, 4, 50)
    cloud.page_size = 10
    work, _ = prepared(cloud, store)
    stored = 0

    def fail_later(request: BaseHTTPRequestHandler) -> bool:
        nonlocal stored
        stored += 1
        store.disk_full = stored > 8
        return False

    cloud.answer = fail_later
    with pytest.raises(ReceiverError):
        work.run()
    cloud.answer = None
    store.disk_full = False
    again, _ = prepared(cloud, store)
    summary = again.run()
    assert stored_ids(store) == expected_ids(cloud)
    assert summary.failures == ()


def test_a_database_that_dies_stops_it_and_the_next_run_goes_on(
    cloud: Cloud, server: Server, own_deployment: Deployment
) -> None:
    add_devices(cloud, 4, 50)
    cloud.page_size = 10
    work, _ = prepared(cloud, own_deployment)
    requests, kill = len(cloud.requests), iter([server.kill])

    def die_later(request: BaseHTTPRequestHandler) -> bool:
        if len(cloud.requests) >= requests + 8:
            next(kill, lambda: None)()
        return False

    cloud.answer = die_later
    with pytest.raises(ReceiverError):
        work.run()
    cloud.answer = None
    server.start()
    again, _ = prepared(cloud, own_deployment)
    assert again.run().failures == ()
    assert stored_ids(own_deployment) == expected_ids(cloud)


def test_a_journal_that_is_away_for_a_moment_does_not_stop_it(cloud: Cloud, store: SqlStore) -> None:
    add_devices(cloud, 4, 50)
    cloud.page_size = 10
    work, _ = prepared(cloud, store)
    gone_at = cloud.clock()
    store.disk_full = True
    waiting = work._session._wait

    def wait(seconds: float) -> None:
        waiting(seconds)
        store.disk_full = cloud.clock() < gone_at + 20

    work._session._wait = wait
    assert work.run().failures == ()
    assert stored_ids(store) == expected_ids(cloud)


def test_its_threads_do_not_wait_for_each_other_in_the_journal(
    cloud: Cloud, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow disk that takes longer than the journal waits for another writer."""
    add_devices(cloud, 4, 50)
    cloud.page_size = 10
    work, _ = prepared(cloud, store)
    usual, writing = work._journal.accept, threading.Lock()

    def accept(arrivals: Sequence[Arrival]) -> Sequence[Outcome]:
        assert writing.acquire(blocking=False)
        try:
            time.sleep(0.01)
            return usual(arrivals)
        finally:
            writing.release()

    monkeypatch.setattr(work._journal, "accept", accept)
    assert work.run().new == 200


def test_dt_being_away_stops_it_and_the_next_run_goes_on(cloud: Cloud, store: SqlStore) -> None:
    add_devices(cloud, 4, 100)
    cloud.page_size = 10
    work, _ = prepared(cloud, store)
    requests = len(cloud.requests)

    def away(request: BaseHTTPRequestHandler) -> bool:
        if len(cloud.requests) - requests <= 20:
            return False
        respond(request, 503, b"")
        return True

    cloud.answer = away
    with pytest.raises(ReceiverError, match="the same command resumes it"):
        work.run()
    cloud.answer = None
    so_far = len(stored_ids(store))
    assert so_far > 100
    again, _ = prepared(cloud, store)
    summary = again.run()
    assert stored_ids(store) == expected_ids(cloud)
    assert summary.new == 400 - so_far
    assert summary.known <= 4 * 10  # a page for each device
    third, _ = prepared(cloud, store)
    assert third.run() == Summary(400, 0, 400, 0, 0, 0, ())  # nothing was left


def test_pages_in_another_order_lose_nothing_when_it_is_interrupted(cloud: Cloud, store: SqlStore) -> None:
    cloud.add_device(FREEZER, PROJECT, history=beats(100))
    cloud.page_size = 10
    usual = cloud.respond

    def oldest_first(target: str, authorization: str) -> tuple[int, Any]:
        status, content = usual(target, authorization)
        if "events?" in target and status == 200:
            number = int(content["nextPageToken"] or 0)
            items = [cloud.devices[FREEZER].event(each) for each in beats(100)[90 - number : 100 - number]]
            content = {**content, "events": items}
        return status, content

    cloud.respond = oldest_first  # type: ignore[method-assign]
    work, _ = prepared(cloud, store)
    seen = 0

    def away(request: BaseHTTPRequestHandler) -> bool:
        nonlocal seen
        seen += 1
        if seen > 3:
            respond(request, 503, b"")
        return seen > 3

    cloud.answer = away
    with pytest.raises(ReceiverError, match="the same command resumes it"):
        work.run()
    cloud.answer = None
    again, _ = prepared(cloud, store)
    again.run()
    assert stored_ids(store) == expected_ids(cloud)


def test_two_at_once_store_everything_once(cloud: Cloud, store: SqlStore) -> None:
    add_devices(cloud, 5, 200)
    cloud.page_size = 10
    works = [prepared(cloud, store)[0] for _ in range(2)]
    summaries: list[Summary] = []
    threads = [threading.Thread(target=lambda work=work: summaries.append(work.run())) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert stored_ids(store) == expected_ids(cloud)
    assert [sum(each.new for each in summaries), sum(each.fetched for each in summaries)] == [1000, 2000]


def test_a_device_with_a_wrong_history_does_not_keep_the_others(cloud: Cloud, store: SqlStore) -> None:
    add_devices(cloud, 6, 20)
    cloud.page_size = 10

    def wrong(request: BaseHTTPRequestHandler) -> bool:
        if "device3/events" not in request.path:
            return False
        respond(request, 200, {"events": [], "nextPageToken": "again"})
        return True

    cloud.answer = wrong
    work, _ = prepared(cloud, store)
    summary = work.run()
    assert (summary.new, len(summary.failures)) == (100, 1)
    assert "device3" in summary.failures[0]
    cloud.answer = None
    again, _ = prepared(cloud, store)
    assert again.run() == Summary(120, 20, 100, 0, 0, 0, ())


def test_another_request_does_not_go_on_with_an_interrupted_one(cloud: Cloud, store: SqlStore) -> None:
    add_devices(cloud, 2, 30)
    cloud.page_size = 10
    work, _ = prepared(cloud, store)
    interrupt_after(cloud, 2)  # no device is complete, whichever thread is first
    with pytest.raises(ReceiverError):
        work.run()
    cloud.answer = None
    for texts, resumed in ((("all",), True), (("others",), False)):
        request = Request(texts, NOW - 86400 * 30, NOW)
        found = plan(Client(cloud).api, store.open(), request, (), 0.0, cloud.clock(), dry_run=False)
        assert (found.resumed, len(found.windows)) == (resumed, 2)
    cloud.now = NOW + 2 * 86400
    request = Request(("all",), NOW - 86400 * 30, NOW)
    assert not plan(Client(cloud).api, store.open(), request, (), 0.0, cloud.clock(), dry_run=False).resumed


@pytest.mark.parametrize("pages", range(1, 7))
def test_events_of_one_second_on_two_pages_are_not_lost_when_it_is_interrupted_between(
    cloud: Cloud, store: SqlStore, pages: int
) -> None:
    history = [Happening(NOW - 100 + n // 7 + 0.1 * (n % 2), f"e{n:03d}", "touch", {}) for n in range(63)]
    cloud.add_device(FREEZER, PROJECT, history=sorted(history))
    cloud.page_size = 10
    work, _ = prepared(cloud, store)
    interrupt_after(cloud, pages)
    with pytest.raises(ReceiverError):
        work.run()
    cloud.answer = None
    assert len(stored_ids(store)) == 10 * pages
    again, _ = prepared(cloud, store)
    again.run()
    assert stored_ids(store) == expected_ids(cloud)


class Slow:
    """A device with 399 pages of 10 events, of which each takes some time, fetched by a process one after another."""

    def __init__(self, operator: Operator, cloud: Cloud, device: CloudDevice) -> None:
        now = time.time()
        device.history = [Happening(now - 80_000 + 20 * n, f"e{n:05d}", "touch", {}) for n in range(3990)]
        cloud.page_size = 10
        cloud.answer = self.answer
        self.pages = 0
        self.fast = threading.Event()
        self._environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith("DT_")},
            **cloud.environment,
            "RECEIVER_CONFIG": str(operator.folder / "config.toml"),
        }

    def answer(self, request: BaseHTTPRequestHandler) -> bool:
        if "/events?" in request.path:
            self.pages += 1
            self.fast.wait(0.02)
        return False

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "receiver", "backfill", "--since", "1d", "--yes", "--concurrency", "1"]
        return subprocess.Popen(
            command, cwd=ROOT, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def start_and_signal(
        self,
        number: signal.Signals,
        pages: int,
        send: Callable[[subprocess.Popen[str], int], None] = subprocess.Popen.send_signal,
    ) -> tuple[int, str]:
        """Start it, and send it a signal after so many pages; its exit code, and its errors."""
        before = self.pages
        inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests of a background job ignore it
        try:
            process = self.start()
        finally:
            signal.signal(signal.SIGINT, inherited)
        wait_until(lambda: self.pages > before + pages or process.poll() is not None, 60)
        send(process, number)
        _, errors = process.communicate(timeout=120)
        return process.returncode, errors

    def finish(self) -> str:
        """Start it and wait for its end; what it printed."""
        self.fast.set()
        process = self.start()
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        return out + errors


@pytest.fixture
def slow(operator: Operator, cloud: Cloud, device: CloudDevice) -> Slow:
    return Slow(operator, cloud, device)


def test_killed_and_started_again_ten_times_it_stores_everything_once(
    operator: Operator, cloud: Cloud, slow: Slow
) -> None:
    for _ in range(10):
        assert slow.start_and_signal(signal.SIGKILL, pages=40)[0] == -signal.SIGKILL
    slow.finish()
    assert slow.pages < 700
    assert fetched(operator, cloud, "--dry-run")["known"] == 3990


def test_control_c_ends_it_and_the_same_command_goes_on(operator: Operator, cloud: Cloud, slow: Slow) -> None:
    code, errors = slow.start_and_signal(signal.SIGINT, pages=40)
    assert (code, errors.split()[-1]) == (1, "Aborted!")
    printed = slow.finish()
    assert "Resuming the same backfill, which was interrupted." in printed
    assert slow.pages <= 402
    assert fetched(operator, cloud, "--dry-run")["known"] == 3990


def send_to_another_thread(process: subprocess.Popen[str], number: int) -> None:
    """Send a signal to a thread that is not the main one; the system may do so with any signal for a process."""
    thread = max(int(each) for each in os.listdir(f"/proc/{process.pid}/task") if int(each) != process.pid)
    assert ctypes.CDLL(None).tgkill(process.pid, thread, number) == 0


def test_control_c_ends_it_whichever_thread_gets_the_signal(slow: Slow) -> None:
    code, errors = slow.start_and_signal(signal.SIGINT, pages=40, send=send_to_another_thread)
    assert (code, errors.split()[-1]) == (1, "Aborted!")
    assert slow.pages < 300


def test_an_error_of_any_kind_shows_no_secret(operator: Operator, fleet: Fleet) -> None:
    answers: list[Callable[[BaseHTTPRequestHandler], bool]] = [
        lambda request: bool(respond(request, 403, {})) or True,
        lambda request: bool(respond(request, 200, b"no JSON")) or True,
    ]
    for answer in answers:
        fleet.cloud.answer = answer
        code, out, errors = fleet.backfill()
        text = "\n".join([*out, *errors])
        assert code == 1
        assert [each for each in (*fleet.cloud.tokens, *fleet.cloud.environment.values()) if each in text] == []


# A running receiver


def test_a_running_receiver_delivers_what_a_backfill_fetches(cloud: Cloud, start_receiver: StartReceiver) -> None:
    receiver = start_receiver('[sinks.archive]\ntype = "csv"\npath = "events.csv"\nrows = "events"\n')
    device = cloud.add_device(DOOR, PROJECT, type="contact", labels={"name": "Door"})
    now = time.time()
    device.history = [Happening(now - 40_000 + 10 * n, f"e{n:04d}", "touch", {}) for n in range(2000)]
    for each in device.history[::4]:
        assert receiver.push(device.push(each, ("name",))) == (200, "accepted")
    receiver.environment |= cloud.environment
    printed = receiver.run("backfill", "--since", "1d", "--yes")
    assert "Fetched 2000 events: 1500 new, 500 known, 0 quarantined." in printed
    wait_until(lambda: len(receiver.rows()) >= 2000, 60)
    assert sorted(row["event_id"] for row in receiver.rows()) == [each.id for each in device.history]
    assert '"origin": "history"' in receiver.run("explain", "e0001", "--json")
