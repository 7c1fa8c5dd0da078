"""A backfill that a person asks for on the console, and that the dispatcher's process carries out."""

from __future__ import annotations

import html
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from support.commands import Operator
from support.console import ADMIN, PASSWORDS, VIEWER, get, post
from support.missed import CONFIG, Fleet

from receiver import admin
from receiver.delivery import backfill_thread
from receiver.delivery.requested_backfill import BackfillOnRequest
from receiver.errors import ReceiverError
from receiver.journal import open_journal, open_records
from receiver.sensors import open_registry
from receiver.sensors.requested_backfill import (
    DOCUMENT,
    Progress,
    RequestedBackfill,
    missed,
    read_request,
    save_request,
)
from receiver.settings import Settings, load
from receiver.testing.cloud import Cloud
from receiver.testing.running import RunningReceiver, wait_until

FORM = "/console/silence/backfill"


@pytest.fixture
def fleet(operator: Operator, cloud: Cloud) -> Fleet:
    return Fleet(operator, cloud)


@pytest.fixture
def receiver(fleet: Fleet, cloud: Cloud) -> Iterator[RunningReceiver]:
    """A receiver that has missed 20 hours of a fleet, with DT's service account."""
    config = CONFIG + '[receiver]\nhost = "127.0.0.1"\n'
    receiver = RunningReceiver(fleet.operator.folder, config, None, {**cloud.environment, **PASSWORDS})
    try:
        yield receiver.start()
    finally:
        receiver.kill_all()


def silence(receiver: RunningReceiver, login: tuple[str, str] = ADMIN) -> str:
    shown = get(receiver, "/console/silence", login).data.decode()
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", shown).split()))


def test_an_operator_starts_a_backfill_after_a_question_with_its_size(receiver: RunningReceiver, fleet: Fleet) -> None:
    question = post(receiver, FORM)
    assert question.status == 200
    asked = html.unescape(question.data.decode())
    assert re.search(r"not heard in these times of the last 31 days: (19|20) h of all projects", asked)
    assert "python -m receiver backfill" in asked
    assert "backfill asked" not in silence(receiver)
    response = post(receiver, FORM, {"confirmed": "yes"})
    assert (response.status, "done=backfill" in response.headers["Location"]) == (303, True)
    wait_until(lambda: f"new {fleet.missed}" in silence(receiver), 90)
    assert re.search(r"backfill done .* ago : fetched \d+", silence(receiver, VIEWER))


def test_neither_the_viewer_nor_another_site_starts_one(receiver: RunningReceiver) -> None:
    yes = {"confirmed": "yes"}
    assert post(receiver, FORM, yes, VIEWER).status == 403
    assert post(receiver, FORM, yes, headers={"Sec-Fetch-Site": "cross-site"}).status == 403
    assert ("Start a backfill" in silence(receiver), "Start a backfill" in silence(receiver, VIEWER)) == (True, False)
    with closing(open_records(receiver_settings(receiver), create_tables=False)) as records:
        assert read_request(records) is None


def receiver_settings(receiver: RunningReceiver) -> Settings:
    return load({"RECEIVER_CONFIG": str(receiver.folder / "config.toml")}, secret_required=False)


def test_a_downtime_of_the_receiver_is_not_counted_again_for_each_project(fleet: Fleet) -> None:
    with closing(open_registry(fleet.operator.settings)) as registry:
        (found,) = missed(registry, fleet.now)
        assert (found.project_id, 19 * 3600 < found.seconds < 21 * 3600) == (None, True)


@pytest.mark.parametrize(
    ("code", "body", "expected"),
    [
        pytest.param(0, 'print(\'{"new": 7, "failures": [], "dry_run": false}\')', "done: new 7", id="done"),
        pytest.param(1, "print('a\\nerror: no role', file=sys.stderr)", "failed: error: no role", id="failed"),
    ],
)
def test_the_result_is_stored_for_all_who_look(code: int, body: str, expected: str, fleet: Fleet) -> None:
    journal = fleet.operator.journal
    command = (sys.executable, "-c", f"import sys; {body}; sys.exit({code})")
    work = BackfillOnRequest(fleet.operator.settings, journal, lambda: 7.0, command)
    work.look()
    assert read_request(journal) is None
    save_request(journal, RequestedBackfill(Progress.ASKED, 5.0))
    work.look()
    progress, _, text = expected.partition(": ")
    assert read_request(journal) == RequestedBackfill(Progress(progress), 7.0, text)


def test_one_dispatcher_at_a_time_carries_it_out(fleet: Fleet) -> None:
    journal = fleet.operator.journal
    asked = RequestedBackfill(Progress.ASKED, 5.0)
    save_request(journal, asked)
    assert journal.lease_document(DOCUMENT, 60)
    BackfillOnRequest(fleet.operator.settings, journal, command=(sys.executable, "-c", "")).look()
    assert read_request(journal) == asked


def test_a_backfill_that_takes_longer_than_its_lease_is_not_begun_by_another_dispatcher(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill_thread, "RUN_SECONDS", 0.05)
    monkeypatch.setattr(BackfillOnRequest, "lease_seconds", 3.0)
    begun = fleet.operator.folder / "begun"
    script = f"import time; open({str(begun)!r}, 'a').write('x'); time.sleep(7)"
    save_request(fleet.operator.journal, RequestedBackfill(Progress.ASKED, 5.0))

    def dispatch() -> None:
        with closing(open_journal(fleet.operator.settings)) as journal:
            work = BackfillOnRequest(fleet.operator.settings, journal, command=(sys.executable, "-c", script))
            while (request := read_request(journal)) and request.is_open:
                work.look()
                time.sleep(0.02)  # a real one looks every 3 s

    with ThreadPoolExecutor(2) as dispatchers:
        for each in [dispatchers.submit(dispatch) for _ in range(2)]:
            each.result()
    assert begun.read_text() == "x"


def test_a_request_of_another_version_is_none(fleet: Fleet) -> None:
    for content in (b"", b"{", b"[]", b'{"progress": "new", "since": 1, "text": ""}'):
        fleet.operator.journal.save_document(DOCUMENT, content)
        assert read_request(fleet.operator.journal) is None


def test_it_cannot_be_asked_for_without_a_service_account_or_while_one_runs(fleet: Fleet, cloud: Cloud) -> None:
    settings = fleet.operator.settings
    with closing(open_records(settings, create_tables=False)) as records:
        reason = admin.backfill_possible(records, settings)
        assert reason is not None
        assert reason.startswith("DT_SERVICE_ACCOUNT_KEY_ID, ")
        with closing(open_registry(settings)) as registry, pytest.raises(ReceiverError, match="are not set"):
            admin.ask_for_backfill(records, registry, settings, fleet.now)
