"""What `doctor` finds: many wrong setups, each with its remedy, and nothing in a correct one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from support.cloud import OTHER_PROJECT, PROJECT
from support.commands import STRONG_SECRET, Operator
from support.sensors import event

from receiver.dt import api, doctor
from receiver.sensors import open_registry
from receiver.testing.cloud import Cloud, CloudConnector, respond
from receiver.testing.running import RunningReceiver
from receiver.variables import SECRET

CONFIG = """
[sinks.archive]
type = "csv"
path = "events.csv"
filter = { event_types = ["temperature", "networkStatus"], labels = { site = "oslo" } }
"""


class Setup:
    """A receiver, a project in DT's cloud with a Data Connector that fits it, and the registry that has heard it."""

    def __init__(self, operator: Operator, cloud: Cloud, receiver: RunningReceiver) -> None:
        operator.configure(CONFIG)
        self.operator, self.cloud, self.receiver = operator, cloud, receiver
        self.environment: dict[str, str | None] = {**cloud.environment}
        self.connector = cloud.add_connector(
            PROJECT, receiver.url, secret=STRONG_SECRET, labels=("name", "site"), successes=100
        )
        with closing(open_registry(operator.settings)) as registry:
            registry.fold([event(0, project=PROJECT)])

    def configure(self, text: str) -> None:
        self.operator.configure(text)

    def hear(self, project: str) -> None:
        with closing(open_registry(self.operator.settings)) as registry:
            registry.fold([event(0, project=project, device=f"device-of-{project}")])

    def examine(self, *options: str) -> tuple[int, list[dict[str, Any]]]:
        """Exit code and findings."""
        done = self.operator.run("doctor", "--json", *options, **self.environment)
        assert done.errors == [], done.errors
        return done.exit_code, json.loads("\n".join(done.out))


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReceiver]:
    folder = tmp_path_factory.mktemp("receiver")
    receiver = RunningReceiver(folder, CONFIG, None, {SECRET: STRONG_SECRET}).start()
    yield receiver
    receiver.kill_all()


@pytest.fixture
def setup(operator: Operator, cloud: Cloud, receiver: RunningReceiver) -> Setup:
    return Setup(operator, cloud, receiver)


def test_a_correct_setup_has_no_findings(setup: Setup) -> None:
    assert setup.examine() == (0, [])
    assert setup.operator.run("doctor", **setup.environment) == (0, ["DT and this receiver fit together."], [])
    setup.operator.operate(setup.receiver)
    assert setup.examine("--push") == (0, [])
    assert setup.receiver.metric('receiver_pushes_total{code="200",result="accepted"}') == 1
    setup.connector.secret = ""
    setup.environment["DT_ORGANIZATION_ID"] = setup.cloud.organization
    assert setup.examine() == (0, [])


def test_other_projects_and_their_connectors_are_not_our_business(setup: Setup) -> None:
    setup.cloud.add_device("d", "a-project-without-a-connector")
    setup.cloud.add_connector(OTHER_PROJECT, "https://127.0.0.1:1/of/another/system", secret="another")
    setup.cloud.add_connector(
        PROJECT, "https://127.0.0.1:1/of/another/system", secret="another", status="USER_DISABLED"
    )
    setup.cloud.add_connector(PROJECT, "", secret="", type="PUBSUB")
    assert setup.examine() == (0, [])
    setup.environment |= {"DT_ORGANIZATION_ID": setup.cloud.organization, "DT_SIGNATURE_SECRET": None}
    del setup.cloud.connectors[1]  # which could be ours, now that no secret tells
    assert setup.examine() == (0, [])


def test_data_connectors_can_send_a_part_of_the_event_types_each(setup: Setup) -> None:
    with_types(("temperature", "touch"), ("networkStatus",))(setup)
    assert setup.examine() == (0, [])


def test_a_disabled_data_connector_sends_nothing(setup: Setup) -> None:
    with_types(("temperature", "touch"), ("networkStatus",))(setup)
    setup.cloud.connectors[1].status = "USER_DISABLED"
    problems = [each["problem"] for each in setup.examine()[1]]
    assert problems == ["a person has disabled it", "it does not send networkStatus, so silent sensors are not noticed"]


def two_of_them(setup: Setup) -> None:
    setup.cloud.connectors.append(CloudConnector(**{**vars(setup.connector), "id": "second"}))


def with_types(*event_types: Sequence[str]) -> Callable[[Setup], None]:
    """A Data Connector for each of these."""

    def change(setup: Setup) -> None:
        two_of_them(setup)
        for connector, sent in zip(setup.cloud.connectors, event_types, strict=True):
            connector.events = sent

    return change


def changed(**values: Any) -> Callable[[Setup], None]:
    return lambda setup: [setattr(setup.connector, name, value) for name, value in values.items()] and None


def in_cloud(**values: Any) -> Callable[[Setup], None]:
    return lambda setup: [setattr(setup.cloud, name, value) for name, value in values.items()] and None


def with_variable(name: str, value: str) -> Callable[[Setup], None]:
    return lambda setup: setup.environment.update({name: value})


def url_with(ending: str) -> Callable[[Setup], None]:
    return lambda setup: setattr(setup.connector, "url", setup.receiver.url + ending)


def with_and_without_slash(setup: Setup) -> None:
    two_of_them(setup)
    setup.cloud.connectors[1].url = setup.connector.url + "/"


PARTIAL = ("temperature", "networkStatus")

WRONG: dict[str, tuple[Callable[[Setup], None], str, str]] = {
    "wrong key": (with_variable("DT_SERVICE_ACCOUNT_SECRET", "no"), "error", "does not accept the service account"),
    "no role at all": (in_cloud(readable=set()), "error", "it has a role in no project"),
    "a project without a role": (lambda setup: setup.hear(OTHER_PROJECT), "error", "has no role in it"),
    "a wrong clock": (in_cloud(skew_seconds=630.0), "error", "its clock is 10 min behind DT's"),
    "no connector": (lambda setup: setup.cloud.connectors.clear(), "error", "none has a Data Connector"),
    "disabled by a person": (changed(status="USER_DISABLED"), "error", "a person has disabled it"),
    "disabled by DT": (changed(status="SYSTEM_DISABLED"), "error", "DT has disabled it"),
    "no https": (changed(url="http://receiver.example/"), "error", "its URL is not https"),
    "a wrong path": (url_with("/push"), "error", "its URL has the path /push"),
    "nobody there": (changed(url="http://127.0.0.1:1/", successes=0, errors=1), "error", "cannot be reached"),
    "reached by DT alone": (changed(url="http://127.0.0.1:1/"), "warning", "cannot be reached"),
    "another server": (changed(), "error", "no receiver responds at its URL (/healthz: HTTP 401)"),
    "no heartbeat": (changed(events=("temperature", "touch")), "error", "does not send networkStatus, so silent"),
    "an event type less": (changed(events=("networkStatus",)), "error", "does not send temperature, which the filter"),
    "no names": (changed(labels=("site",)), "warning", "does not include the label name"),
    "a label less": (changed(labels=("name",)), "error", "does not include site, which the filter of sink archive"),
    "another secret": (changed(secret="another"), "error", "its signature secret is none of those"),
    "no secret": (changed(secret=""), "error", "it has no signature secret"),
    "another organization": (with_variable("DT_ORGANIZATION_ID", "another"), "error", "for another organization"),
    "all pushes fail": (changed(successes=0, errors=7), "error", "none of its 7 pushes of the last 3 hours succeeded"),
    "some pushes fail": (changed(errors=7), "warning", "7 of its 107 pushes of the last 3 hours failed"),
    "no pushes": (changed(successes=0), "warning", "it has pushed nothing for 3 hours"),
    "too slow": (changed(latency="11.5s"), "error", "responses take 11.5 s; DT waits for 10 s"),
    "slow": (changed(latency="6s"), "warning", "responses take 6.0 s"),
    "twice, once with a slash": (with_and_without_slash, "warning", "2 Data Connectors push to the same URL"),
    "twice": (two_of_them, "warning", "2 Data Connectors push to the same URL, so every event comes 2 times"),
    "twice the same part": (with_types(PARTIAL, PARTIAL), "warning", "so every event comes 2 times"),
    "twice a part": (
        with_types(PARTIAL, ("temperature", "touch")),
        "warning",
        "more than one Data Connector pushes temperature to the same URL, so such events are repeated",
    ),
    "all and a part": (with_types((), PARTIAL), "warning", "pushes networkStatus, temperature to the same URL"),
    "two without heartbeat": (
        with_types(("touch",), ("temperature",)),
        "error",
        "none of its Data Connectors sends networkStatus, so silent",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_set_up_is_found_with_what_to_do(setup: Setup, name: str) -> None:
    change, severity, problem = WRONG[name]
    change(setup)
    if name == "another server":
        setup.connector.url = setup.cloud.url
        setup.connector.successes, setup.connector.errors = 0, 1
    code, found = setup.examine()
    matching = [each for each in found if problem in each["problem"]]
    assert [each["severity"] for each in matching] == [severity], found
    assert all(each["remedy"] and each["subject"] for each in found)
    assert code == (1 if any(each["severity"] == "error" for each in found) else 0)
    others = [each["problem"] for each in found if each not in matching]
    assert all("of the last 3 hours succeeded" in each for each in others), others
    text = json.dumps(found)
    assert [each for each in (STRONG_SECRET, "another secret", *setup.cloud.tokens) if each in text] == []


def test_nothing_is_sent_to_a_url_without_tls(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "HttpClient", None)
    setup.connector.url, setup.connector.secret = "http://receiver.example/", "another"
    assert "its URL is not https" in [each["problem"] for each in setup.examine()[1]]


def test_a_secret_that_dt_does_not_show_is_not_compared(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    read = api._connector
    monkeypatch.setattr(api, "_connector", lambda content: replace(read(content), secret=None))
    assert setup.examine() == (0, [])


def test_a_project_that_was_heard_needs_our_secret_although_another_one_has_it(setup: Setup) -> None:
    setup.hear(OTHER_PROJECT)
    setup.cloud.add_connector(OTHER_PROJECT, setup.receiver.url, secret="another", labels=("name", "site"), successes=9)
    code, (found,) = setup.examine()
    assert (code, found["problem"]) == (
        1,
        "its signature secret is none of those that are set here, so all its pushes are rejected",
    )


def test_a_test_push_is_signed_with_the_secret_of_its_connector(setup: Setup) -> None:
    setup.operator.operate(setup.receiver)
    setup.environment |= {SECRET: "which comes first", f"{SECRET}__NEXT": STRONG_SECRET}
    assert setup.examine("--push") == (0, [])


def test_dt_being_away_is_a_finding(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("receiver.commands.dt.DOCTOR_SECONDS", 0.1)
    setup.cloud.answer = lambda request: bool(respond(request, 503, b"")) or True
    code, (found,) = setup.examine()
    assert (code, found["problem"]) == (1, "DT's REST API does not work now: HTTP 503")


def test_a_role_that_cannot_read_connectors_is_a_finding(setup: Setup) -> None:
    def answer(request: Any) -> bool:
        if "dataconnectors" not in request.path:
            return False
        respond(request, 403, {})
        return True

    setup.cloud.answer = answer
    code, found = setup.examine()
    assert (code, len(found)) == (1, 1)
    assert "grant it the role Project User" in found[0]["problem"]


@pytest.mark.parametrize("status", [400, 403, 404])
@pytest.mark.parametrize("path", [":metrics", f"{OTHER_PROJECT}/dataconnectors"])
def test_what_cannot_be_read_hides_no_other_finding(setup: Setup, path: str, status: int) -> None:
    setup.hear(OTHER_PROJECT)
    setup.cloud.projects.append(OTHER_PROJECT)
    setup.connector.status = "SYSTEM_DISABLED"
    setup.cloud.answer = lambda request: path in request.path and (respond(request, status, {}) or True)
    problems = [each["problem"] for each in setup.examine()[1]]
    assert "DT has disabled it, after days without a successful push" in problems
    assert len([each for each in problems if path.partition("/")[0].lstrip(":") in each]) == 1


def test_when_dt_goes_away_what_was_found_before_stays(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("receiver.commands.dt.DOCTOR_SECONDS", 0.1)
    setup.hear(OTHER_PROJECT)
    setup.cloud.answer = lambda request: "/dataconn" in request.path and (respond(request, 503, b"") or True)
    problems = [each["problem"] for each in setup.examine()[1]]
    assert len(problems) == 2
    assert "has no role in it" in problems[0]
    assert problems[1].startswith("DT's REST API does not work now")


def test_a_filter_that_names_an_unknown_project_is_a_finding(setup: Setup) -> None:
    setup.configure(CONFIG.replace('labels = { site = "oslo" }', 'projects = ["typo"]'))
    assert setup.examine()[1][0]["problem"] == "filter.projects names typo, which the service account does not see"


def test_without_a_service_account_it_says_which_variables_to_set(operator: Operator) -> None:
    code, out, (line,) = operator.run("doctor")
    assert (code, out) == (1, [])
    assert line.startswith(
        "error: DT_SERVICE_ACCOUNT_KEY_ID, DT_SERVICE_ACCOUNT_SECRET, DT_SERVICE_ACCOUNT_EMAIL are not set; "
    )


def test_it_works_from_a_machine_with_no_journal_and_no_secret(
    operator: Operator, cloud: Cloud, setup: Setup, tmp_path_factory: pytest.TempPathFactory
) -> None:
    operator.folder = tmp_path_factory.mktemp("elsewhere")
    operator.configure("[sinks.console]\ntype = 'stdout'\n")
    setup.environment["DT_SIGNATURE_SECRET"] = None
    code, found = setup.examine()
    assert (code, [each["problem"] for each in found]) == (0, ["its secret is not compared: none is set here"])
    assert list(operator.folder.iterdir()) == [operator.folder / "config.toml"]


def test_a_test_push_that_is_rejected_or_goes_elsewhere_is_a_finding(
    setup: Setup, operator: Operator, tmp_path_factory: pytest.TempPathFactory
) -> None:
    setup.environment["DT_SIGNATURE_SECRET"] = "another"
    code, found = setup.examine("--push")
    assert code == 1
    assert "a test push was not accepted: 400 wrong secret" in [each["problem"] for each in found]
    setup.environment["DT_SIGNATURE_SECRET"] = STRONG_SECRET
    operator.folder = tmp_path_factory.mktemp("elsewhere")
    operator.configure("[journal]\nmin_free_mb = 0\n")
    operator.accept("an-event")
    code, found = setup.examine("--push")
    assert [each["problem"] for each in found] == ["a test push was accepted, but by a receiver with another journal"]
