"""The parts of the console about deliveries and pushes, over sockets: each action, and who may not do it."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
from conftest import RunningReceiver, wait_until
from support.console import ADMIN, PASSWORDS, VIEWER, Login, get, post
from support.pages import Page

from receiver.console import dead_letters, rejected
from receiver.console.paging import ROWS
from receiver.console.words import MOODS
from receiver.errors import Rejection
from receiver.journal import Arrival, Records, open_journal, open_records
from receiver.settings import load
from receiver.simulator import Simulator

PLUGIN = """
import pathlib
from receiver import GiveUp, Pause, hookimpl

OPEN = pathlib.Path(__file__).with_name("open")


class Dead:
    @hookimpl
    def deliver(self, event):
        if not OPEN.exists():
            raise GiveUp("HTTP 410: gone" if event.type == "touch" else "HTTP 422: no such meter")


class Paused:
    @hookimpl
    def deliver(self, event):
        if not OPEN.exists():
            raise Pause("HTTP 401: it rejects our credentials", after=900)


@hookimpl
def register_sinks(register):
    register("dead", Dead)
    register("paused", Paused)
"""
CONFIG = """
[receiver]
host = "127.0.0.1"
plugins = ["sinks.py"]
[sinks.dead]
type = "dead"
[sinks.paused]
type = "paused"
[sinks.narrow]
type = "paused"
[sinks.narrow.filter]
event_types = ["co2"]
"""
TOUCH, CO2 = 4, 3


@contextmanager
def running(folder: Path) -> Iterator[RunningReceiver]:
    (folder / "sinks.py").write_text(PLUGIN)
    receiver = RunningReceiver(folder, CONFIG, None, PASSWORDS)
    try:
        yield receiver.start()
    finally:
        receiver.kill_all()


def fill(receiver: RunningReceiver) -> RunningReceiver:
    """Four dead letters of one reason and three of another, and a paused sink."""
    for number in range(TOUCH):
        assert receiver.push(named(f"touch{number}")) == (200, "accepted")
    for number in range(CO2):
        assert receiver.push(named(f"co2-{number}", "co2")) == (200, "accepted")
    wait_until(lambda: dead(receiver) == TOUCH + CO2)
    wait_until(lambda: "HTTP 401" in text(receiver, "/console/sinks"))
    return receiver


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[RunningReceiver]:
    with running(tmp_path) as receiver:
        yield receiver


@pytest.fixture
def letters(receiver: RunningReceiver) -> RunningReceiver:
    """With dead letters, for a test that changes them."""
    return fill(receiver)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReceiver]:
    """With dead letters, for all tests that change nothing."""
    with running(tmp_path_factory.mktemp("operations")) as receiver:
        yield fill(receiver)


def named(event_id: str, event_type: str = "touch") -> bytes:
    """An event of this id, all of one sensor."""
    payload = json.loads(Simulator(0).body(event_type))
    payload["event"]["eventId"] = event_id
    return json.dumps(payload).encode()


def dead(receiver: RunningReceiver) -> int:
    return int(receiver.metric('receiver_dead_letters{sink="dead"}'))


def page(receiver: RunningReceiver, path: str, login: Login = ADMIN) -> str:
    response = get(receiver, path, login)
    assert response.status == 200, (path, response.data)
    return response.data.decode()


def text(receiver: RunningReceiver, path: str, login: Login = ADMIN) -> str:
    """The text of a page without its markup."""
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", page(receiver, path, login)).split()))


def records(receiver: RunningReceiver) -> Records:
    return open_records(
        load({"RECEIVER_CONFIG": str(receiver.folder / "config.toml")}, secret_required=False), create_tables=False
    )


def state(receiver: RunningReceiver, event_id: str, sink: str) -> str | None:
    with closing(records(receiver)) as opened:
        found = opened.history(event_id)
        return next((each.state for each in found.deliveries if each.sink == sink), None) if found else None


def group(receiver: RunningReceiver, reason: str) -> str:
    """The path of a group of dead letters."""
    shown = page(receiver, "/console/dead-letters")
    found = re.search(rf'href="(/console/dead-letters/dead/\w+)"><bdi>{re.escape(reason)}', shown)
    assert found
    return found[1]


def do(receiver: RunningReceiver, path: str, fields: dict[str, str] | None = None) -> str:
    """Send a form, follow the redirect, and return the notice of the page it leads to."""
    response = post(receiver, path, fields)
    assert response.status == 303, response.data
    found = re.search(r'<p class="notice[^"]*" role="status">(.*?)</p>', page(receiver, response.headers["Location"]))
    assert found
    return found[1]


def ask(receiver: RunningReceiver, path: str, fields: dict[str, str]) -> str:
    """Send a form that asks first; the question."""
    response = post(receiver, path, fields)
    assert response.status == 200, response.data
    found = re.search(r'<div class="card">\s*<p>(.*?)</p>', response.data.decode())
    assert found
    return html.unescape(found[1])


# Sinks


def test_the_sinks_say_what_waits_and_why(shared: RunningReceiver) -> None:
    shown = text(shared, "/console/sinks")
    assert "paused paused" in shown
    assert "HTTP 401: it rejects our credentials" in shown
    assert "Probed with one event in 1" in shown
    assert f"pending {TOUCH + CO2} , the oldest for" in shown
    assert f"dead letters {TOUCH + CO2} " in shown
    assert "filtered by event_types" in shown
    assert "python -m receiver status" in shown


def test_a_paused_sink_is_probed_at_once(letters: RunningReceiver) -> None:
    (letters.folder / "open").touch()
    assert do(letters, "/console/sinks/paused/resume") == "The sink is probed now, with one event."
    wait_until(lambda: state(letters, "touch0", "paused") == "delivered")
    response = post(letters, "/console/sinks/dead/resume")
    assert (response.status, b"sink dead is not paused" in response.data.lower()) == (409, True)
    assert post(letters, "/console/sinks/unknown/resume").status == 409


# Dead letters


def test_dead_letters_are_grouped_by_sink_and_reason(shared: RunningReceiver) -> None:
    shown = text(shared, "/console/dead-letters")
    assert shown.index("HTTP 410: gone dead 4") < shown.index(f"HTTP 422: no such meter dead {CO2}")
    assert "python -m receiver dead-letters reasons" in shown
    assert "HTTP 410" in text(shared, "/console/dead-letters?sink=dead")
    assert "None of this sink" in text(shared, "/console/dead-letters?sink=paused")
    assert get(shared, "/console/dead-letters?sink=unknown").status == 404
    of_group = text(shared, group(shared, "HTTP 422"))
    assert f"{CO2} dead letters of sink dead" in of_group
    assert ("co2-0" in of_group, "touch0" in of_group) == (True, False)
    everything = text(shared, "/console/dead-letters/dead/all")
    assert ("co2-0" in everything, "touch0" in everything) == (True, True)


def test_a_group_is_retried_after_a_question_with_its_number(letters: RunningReceiver) -> None:
    path = group(letters, "HTTP 410")
    assert ask(letters, f"{path}/retry", {"whole": "yes"}) == "Deliver 4 dead letters to sink dead again."
    assert dead(letters) == TOUCH + CO2
    (letters.folder / "open").touch()
    assert do(letters, f"{path}/retry", {"whole": "yes", "confirmed": "yes"}) == (
        "4 dead letters will be delivered again."
    )
    wait_until(lambda: state(letters, "touch0", "dead") == "delivered")
    assert state(letters, "co2-0", "dead") == "dead"
    response = get(letters, path)
    assert (response.status, b"no dead letters of this reason are left" in response.data.lower()) == (404, True)


def test_selected_dead_letters_are_deleted_and_no_others(letters: RunningReceiver) -> None:
    path = group(letters, "HTTP 410")
    chosen = {"event": "touch1"}
    assert ask(letters, f"{path}/delete", chosen).startswith("Delete 1 dead letter of sink dead: ")
    assert dead(letters) == TOUCH + CO2
    assert do(letters, f"{path}/delete", {**chosen, "confirmed": "yes"}) == "Deleted 1 dead letter."
    assert [state(letters, f"touch{n}", "dead") for n in range(4)] == ["dead", None, "dead", "dead"]
    again = post(letters, f"{path}/delete", {**chosen, "confirmed": "yes"})
    assert (again.status, b"none of these is a dead letter" in again.data.lower()) == (409, True)


@pytest.mark.parametrize("fields", [{}, {"confirmed": "yes"}, {"event": "<b>"}, {"event": "", "confirmed": "yes"}])
def test_a_form_that_selects_nothing_changes_nothing(fields: dict[str, str], shared: RunningReceiver) -> None:
    for action in ("retry", "delete"):
        response = post(shared, f"{group(shared, 'HTTP 410')}/{action}", fields)
        assert (response.status, b"no dead letter is selected" in response.data.lower()) == (409, True)
    assert dead(shared) == TOUCH + CO2


def test_an_event_of_another_group_is_not_changed_with_this_one(shared: RunningReceiver) -> None:
    path = group(shared, "HTTP 410")
    response = post(shared, f"{path}/delete", {"event": "co2-0", "confirmed": "yes"})
    assert response.status == 409
    assert dead(shared) == TOUCH + CO2


def test_a_form_changes_no_more_of_a_large_group_than_a_person_waits_for() -> None:
    large = dead_letters.Group("erp", "HTTP 500", 50_000, "0" * 16)
    assert (large.size, large.path) == (dead_letters.CHANGED_AT_ONCE, f"/dead-letters/erp/{'0' * 16}")


def test_each_dead_letter_is_on_one_page_of_its_group(receiver: RunningReceiver) -> None:
    for number in range(ROWS + 5):
        assert receiver.push(named(f"many{number}")) == (200, "accepted")
    wait_until(lambda: dead(receiver) == ROWS + 5)
    path, found = group(receiver, "HTTP 410"), []
    following: str | None = path
    while following:
        shown = page(receiver, following)
        found += re.findall(r'name="event" value="([\w-]+)"', shown)
        next_page = re.search(r'href="([^"]+)" rel="next"', shown)
        following = next_page[1] if next_page else None
    assert sorted(found) == sorted(f"many{number}" for number in range(ROWS + 5))
    for given in ("x", "-1", "9" * 30, "<b>", "\0"):
        assert get(receiver, f"{path}?{urlencode({'after': given})}").status == 200


# Events


def test_events_are_found_by_id_and_by_sensor(shared: RunningReceiver) -> None:
    assert "touch3" in text(shared, "/console/events")
    by_id = text(shared, "/console/events?q=co2-1")
    assert ("co2-1" in by_id, "touch3" in by_id) == (True, False)
    with closing(records(shared)) as opened:
        found = opened.history("touch0")
        assert found
        sensor = found.event.decode().device_id
    assert sensor
    assert "touch0" in text(shared, f"/console/events?q={sensor}")
    assert "No event with this id" in text(shared, "/console/events?q=nothing")


def test_an_event_shows_what_happened_and_its_body(shared: RunningReceiver) -> None:
    shown = text(shared, "/console/events/touch0")
    assert "dead dead HTTP 410: gone 1" in shown
    assert "paused pending" in shown
    assert "narrow not routed: filter event_types" in shown
    assert '"eventId": "touch0"' in shown
    assert "explain touch0 --body" in shown
    assert get(shared, "/console/events/unknown").status == 404
    assert get(shared, "/console/events/%3Cb%3E").status == 404


def test_an_event_is_replayed_to_a_sink(letters: RunningReceiver) -> None:
    replay = "/console/events/touch0/replay"
    (letters.folder / "open").touch()
    assert ask(letters, replay, {"sink": "dead"}).startswith("Deliver 1 event to sink dead again")
    assert state(letters, "touch0", "dead") == "dead"
    assert do(letters, replay, {"sink": "dead", "confirmed": "yes"}) == "1 event will be delivered again."
    wait_until(lambda: state(letters, "touch0", "dead") == "delivered")


@pytest.mark.parametrize(
    ("sink", "reason"),
    [("paused", b"is pending at sink paused already"), ("narrow", b"filter of sink narrow"), ("", b""), ("<b>", b"")],
)
def test_a_replay_that_is_not_possible_says_why(sink: str, reason: bytes, shared: RunningReceiver) -> None:
    for fields in ({"sink": sink}, {"sink": sink, "confirmed": "yes"}):
        response = post(shared, "/console/events/touch0/replay", fields)
        assert (response.status, reason in response.data) == (409, True)


# Rejected and quarantined


def test_rejections_are_counted_with_their_cause_and_what_to_do(receiver: RunningReceiver) -> None:
    assert "None: every push was accepted." in text(receiver, "/console/rejected")
    for _ in range(3):
        assert receiver.http.request("POST", receiver.url, body=b"{}").status == 400
    shown = text(receiver, "/console/rejected")
    cause = "the Data Connector has no signature secret, or the sender is not DT"
    assert f"400 missing header X-Dt-Signature {cause} 3 enter the secret in DT Studio" in shown


def test_a_quarantined_push_is_shown_and_retried(receiver: RunningReceiver) -> None:
    assert "Nothing is in quarantine." in text(receiver, "/console/rejected")
    for body in (b"<script>not JSON</script>", b"[]"):
        assert receiver.push(body) == (200, "quarantined")
    with closing(records(receiver)) as opened:
        push_ids = {push.body: push.id for push in opened.quarantined(10)}
    shown = text(receiver, "/console/rejected")
    assert all(push_id[:12] in shown for push_id in push_ids.values())
    path = f"/console/rejected/{push_ids[b'<script>not JSON</script>']}"
    assert "&lt;script&gt;not JSON&lt;/script&gt;" in page(receiver, path)
    assert do(receiver, f"{path}/retry") == "1 quarantined push could not be decoded: still no valid event."
    assert do(receiver, "/console/rejected/retry").startswith("2 quarantined pushes could not be decoded")
    for name in ("0" * 64, "0" * 10, "%"):
        assert get(receiver, f"/console/rejected/{name}").status == 404


def test_a_push_that_is_a_valid_event_now_is_released(receiver: RunningReceiver) -> None:
    settings = load({"RECEIVER_CONFIG": str(receiver.folder / "config.toml")}, secret_required=False)
    with closing(open_journal(settings)) as journal:
        for number, push_id in enumerate(("a" * 64, "b" * 64)):
            body = named(f"released{number}")
            journal.accept([Arrival(push_id, body, 1.5 + number, "an older version did not know it")])
    assert do(receiver, f"/console/rejected/{'a' * 64}/retry") == (
        "1 quarantined push became an event and will be delivered."
    )
    assert do(receiver, "/console/rejected/retry").startswith("1 quarantined push became an event")
    wait_until(lambda: state(receiver, "released1", "dead") == "dead")


def test_each_quarantined_push_is_on_one_page(receiver: RunningReceiver) -> None:
    for number in range(ROWS + 3):
        assert receiver.push(f"no event {number}".encode()) == (200, "quarantined")
    found: list[str] = []
    following: str | None = "/console/rejected"
    while following:
        shown = page(receiver, following)
        found += re.findall(r'href="/console/rejected/(\w+)"', shown)
        next_page = re.search(r'href="([^"]+)" rel="next"', shown)
        following = next_page[1] if next_page else None
    assert len(found) == len({*found}) == ROWS + 3
    for given in ("x", "1.5-x", "9" * 40, "1.5-" + "z" * 64):
        assert get(receiver, f"/console/rejected?{urlencode({'after': given})}").status == 200


def test_what_to_do_is_what_the_documentation_says() -> None:
    documented = {}
    for responses, cause, remedy in Page("docs/operations.md").table("Responses to pushes"):
        if not responses.startswith("200"):
            for name in re.findall(r"`([^`]+)`", responses):
                documented[name] = (as_text(cause), as_text(remedy))
    assert documented == rejected.ADVICE
    assert {each.value for each in Rejection} <= documented.keys()


def as_text(markdown: str) -> str:
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", markdown).replace("`", "")


# Who may


FORMS: list[tuple[str, dict[str, str]]] = [
    ("/console/sinks/paused/resume", {}),
    ("/console/dead-letters/dead/all/retry", {"whole": "yes", "confirmed": "yes"}),
    ("/console/dead-letters/dead/all/delete", {"whole": "yes", "confirmed": "yes"}),
    ("/console/dead-letters/dead/all/delete", {"event": "touch0", "confirmed": "yes"}),
    ("/console/events/touch0/replay", {"sink": "dead", "confirmed": "yes"}),
    ("/console/rejected/retry", {}),
    (f"/console/rejected/{'a' * 64}/retry", {}),
]


def test_neither_the_viewer_nor_another_site_changes_anything(shared: RunningReceiver) -> None:
    with closing(records(shared)) as opened:
        before = (opened.counts().sinks["dead"], opened.sink_states(), opened.history("touch0"))
        for path, fields in FORMS:
            assert post(shared, path, fields, VIEWER).status == 403, path
            assert post(shared, path, fields, headers={"Sec-Fetch-Site": "cross-site"}).status == 403, path
            assert post(shared, path, fields, headers={"Origin": "https://evil.example"}).status == 403, path
            assert post(shared, path, fields, None).status == 401, path
        assert (opened.counts().sinks["dead"], opened.sink_states(), opened.history("touch0")) == before


def test_the_viewer_sees_every_part_without_a_form_that_changes_something(letters: RunningReceiver) -> None:
    letters.push(b"no event")
    of_push = re.search(r"/console/rejected/\w{64}", page(letters, "/console/rejected"))
    assert of_push
    for path in (
        *("/console/sinks", "/console/dead-letters", "/console/dead-letters?sink=dead", group(letters, "HTTP 410")),
        *("/console/events", "/console/events/touch0", "/console/rejected", of_push[0]),
    ):
        shown = page(letters, path, VIEWER)
        assert not re.search(r"<button(?! ?>Search)", shown), path
        assert 'type="checkbox"' not in shown
        assert "python -m receiver" in shown, path


def test_every_state_of_a_delivery_has_a_colour() -> None:
    assert {"delivered", "pending", "dead", "paused", "enabled", "disabled", "removed"} <= MOODS.keys()
