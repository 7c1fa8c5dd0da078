"""Compares what DT says of the Data Connectors with what this receiver needs, and says what to do. Changes nothing."""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from receiver.dt.api import SKEW_SECONDS, Api, ApiError, DataConnector, Metrics, Missing, Project, Refused, Session
from receiver.http_client import HttpClient, NoResponse
from receiver.journal import Records
from receiver.settings import Settings, is_secure_url
from receiver.simulator import Pusher, Simulator
from receiver.validation import counted, in_one_unit

HTTP_PUSH, ACTIVE, SYSTEM_DISABLED = "HTTP_PUSH", "ACTIVE", "SYSTEM_DISABLED"
"""A type and two states of Data Connectors."""

DT_SECONDS = 10.0
"""DT waits so long for the response to a push."""

SLOW_SECONDS = 5.0
FEW_ERRORS = 0.01
REACH_SECONDS = 10.0
PUSHED_TYPE = "touch"
"""The event type of a test push: a value that changes nothing but a count."""


class Severity(StrEnum):
    """How much a finding matters."""

    ERROR = "error"
    """Events are lost or rejected, or nothing can be examined."""
    WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    """What is wrong with a subject, such as a connector, and what to do."""

    severity: Severity
    subject: str
    problem: str
    remedy: str


def examine(
    settings: Settings, session: Session, projects: Sequence[str], records: Records | None, *, push: bool = False
) -> list[Finding]:
    """Everything that is wrong, as far as it can be seen from here.

    `projects` are those whose sensors were heard, `records` the journal, if this machine has them. With `push` a signed
    test event is pushed to each Data Connector's URL, and goes to all sinks.
    """
    with closing(Api(session)) as api:
        try:
            return list(_Examination(settings, session, api, projects, records, push).findings())
        except ApiError as error:
            remedy = "follow this advice, then examine again" if isinstance(error, Refused) else "try again later"
            return [*_clock(session), Finding(Severity.ERROR, "DT's REST API", str(error), remedy)]


def _clock(session: Session) -> Iterator[Finding]:
    skew = session.skew_seconds or 0.0
    if abs(skew) > SKEW_SECONDS:
        direction = "behind" if skew > 0 else "ahead of"
        yield Finding(
            Severity.ERROR,
            "this machine",
            f"its clock is {in_one_unit(abs(skew))} {direction} DT's, so pushes are rejected as not valid at this time",
            "set the clock, for instance by NTP",
        )


class _Examination:
    def __init__(
        self,
        settings: Settings,
        session: Session,
        api: Api,
        heard: Sequence[str],
        records: Records | None,
        push: bool,
    ) -> None:
        self.settings, self.session, self.api = settings, session, api
        self.heard, self.records, self.push = heard, records, push
        self.sinks = settings.enabled_sinks

    def findings(self) -> Iterator[Finding]:
        projects = {project.id: project for project in self.api.projects()}
        yield from _clock(self.session)
        yield from self.of_projects(projects)
        connectors: list[tuple[Project, DataConnector]] = []
        for project in projects.values():
            try:
                connectors += [
                    (project, each) for each in self.api.data_connectors(project.id) if each.type == HTTP_PUSH
                ]
            except (Refused, Missing) as error:
                yield Finding(
                    Severity.ERROR, f"project {project.name}", str(error), "grant the role Project Developer there"
                )
        ours = self.ours(connectors)
        yield from self.of_missing(projects, ours)
        for project, connector in ours:
            yield from self.of_connector(project, connector)
        urls = Counter((project.id, each.url) for project, each in ours if each.status == ACTIVE)
        for (project_id, _), count in urls.items():
            if count > 1:
                yield Finding(
                    Severity.WARNING,
                    f"project {projects[project_id].name}",
                    f"{count} Data Connectors push to the same URL, so every event comes {count} times",
                    "delete all but one of them in DT Studio",
                )

    def of_projects(self, projects: Mapping[str, Project]) -> Iterator[Finding]:
        role = "in DT Studio, grant the service account the role Project Developer in it"
        if not projects:
            yield Finding(Severity.ERROR, "the service account", "it has a role in no project", role)
            return
        for project in sorted({*self.heard} - projects.keys()):
            problem = "sensors of it were heard, but the service account has no role in it: its gaps stay open"
            yield Finding(Severity.ERROR, f"project {project}", problem, role)
        wanted = {(sink.name, each) for sink in self.sinks for each in sink.common.filter.projects or ()}
        for sink, project in sorted(each for each in wanted if each[1] not in projects):
            problem = f"filter.projects names {project}, which the service account does not see"
            yield Finding(Severity.WARNING, f"sink {sink}", problem, f"correct it in {self.settings.path.name}")

    def ours(self, connectors: Sequence[tuple[Project, DataConnector]]) -> list[tuple[Project, DataConnector]]:
        """The connectors that are meant for this receiver: those with our secret, and in projects that have none of
        them but were heard, all; if no connector has our secret, all of them."""
        matching = [(project, each) for project, each in connectors if self.has_our_secret(each)]
        covered = {project.id for project, _ in matching}
        others = [
            (project, each)
            for project, each in connectors
            if project.id not in covered and (project.id in self.heard or not matching)
        ]
        return matching + others

    def has_our_secret(self, connector: DataConnector) -> bool:
        given = (connector.secret or "").encode("utf-8", "replace")
        return any(
            hmac.compare_digest(given, secret.encode("utf-8", "replace")) for secret in self.settings.secrets.values()
        )

    def of_missing(
        self, projects: Mapping[str, Project], ours: Sequence[tuple[Project, DataConnector]]
    ) -> Iterator[Finding]:
        create = "create a Data Connector of the type HTTP Push in it, with this receiver's URL"
        if projects and not ours:
            yield Finding(Severity.ERROR, "all projects", "none has a Data Connector that pushes over HTTP", create)
            return
        covered = {project.id for project, _ in ours}
        for project in sorted(({*self.heard} & projects.keys()) - covered):
            problem = "its sensors were heard once, but it has no Data Connector any more"
            yield Finding(Severity.ERROR, f"project {projects[project].name}", problem, create)

    def of_connector(self, project: Project, connector: DataConnector) -> Iterator[Finding]:
        name = f"Data Connector {connector.name or connector.path} of project {project.name}"
        metrics = self.api.metrics(connector)
        for severity, problem, remedy in (
            *_status(connector),
            *_address(connector, metrics),
            *self.signature(project, connector),
            *self.event_types(connector),
            *self.labels(connector),
            *_traffic(connector, metrics),
            *(self.test_push(connector) if self.push else ()),
        ):
            yield Finding(severity, name, problem, remedy)

    def signature(self, project: Project, connector: DataConnector) -> Iterator[Problem]:
        organizations = self.settings.organizations
        if organizations:
            if project.organization and project.organization not in organizations:
                yield (
                    Severity.ERROR,
                    "DT signs its pushes for another organization than DT_ORGANIZATION_ID names",
                    "add the organization's id to DT_ORGANIZATION_ID",
                )
        elif not self.settings.secrets:
            yield Severity.WARNING, "its secret is not compared: none is set here", "examine where the receiver runs"
        elif connector.secret == "":
            yield (
                Severity.ERROR,
                "it has no signature secret, so all its pushes are rejected",
                "enter the value of DT_SIGNATURE_SECRET as its signature secret in DT Studio",
            )
        elif connector.secret is not None and not self.has_our_secret(connector):
            yield (
                Severity.ERROR,
                "its signature secret is none of those that are set here, so all its pushes are rejected",
                "set the same secret in both places: DT_SIGNATURE_SECRET here, the signature secret in DT Studio",
            )

    def event_types(self, connector: DataConnector) -> Iterator[Problem]:
        sent = connector.event_types
        if not sent:
            return
        known = {*sent}
        if self.settings.sensors.enabled and "networkStatus" not in sent:
            known.add("networkStatus")
            yield (
                Severity.ERROR,
                "it does not send networkStatus, so silent sensors are not noticed",
                "enable networkStatus in DT Studio, or better all event types",
            )
        for sink in self.sinks:
            if missing := sorted({*(sink.common.filter.event_types or ())} - known):
                problem = f"it does not send {', '.join(missing)}, which the filter of sink {sink.name} asks for"
                yield Severity.ERROR, problem, "enable these event types in DT Studio"

    def labels(self, connector: DataConnector) -> Iterator[Problem]:
        enable = "add the label to those that the Data Connector includes, in DT Studio"
        if "name" not in connector.labels:
            yield Severity.WARNING, "it does not include the label name, so sensors have no names", enable
        for sink in self.sinks:
            if missing := sorted(sink.common.filter.labels.keys() - {*connector.labels} - {"name"}):
                problem = f"it does not include {', '.join(missing)}, which the filter of sink {sink.name} asks for"
                yield Severity.ERROR, problem, enable

    def test_push(self, connector: DataConnector) -> Iterator[Problem]:
        secrets = [each for each in self.settings.secrets.values() if each == connector.secret]
        secrets += list(self.settings.secrets.values())
        if not secrets:
            yield Severity.WARNING, "no test push was sent: no secret is set here", "set DT_SIGNATURE_SECRET"
            return
        response = Pusher(connector.url, secrets[0]).push(Simulator().body(PUSHED_TYPE))
        if response.status != 200:
            said = f"{response.status} {response.text}" if response.status else response.text
            problem = f"a test push was not accepted: {said[:100]}"
            yield Severity.ERROR, problem, "see Responses to pushes in docs/operations.md"
        elif self.records is not None and self.records.history(response.event_id) is None:
            problem = "a test push was accepted, but by a receiver with another journal"
            yield Severity.ERROR, problem, "correct its URL, or examine where that receiver runs"


Problem = tuple[Severity, str, str]
"""Severity, problem and remedy of a finding."""


def _status(connector: DataConnector) -> Iterator[Problem]:
    if connector.status == SYSTEM_DISABLED:
        yield (
            Severity.ERROR,
            "DT has disabled it, after days without a successful push",
            "remove the cause that is named below, enable it in DT Studio, then run backfill",
        )
    elif connector.status != ACTIVE:
        yield Severity.ERROR, "a person has disabled it", "enable it in DT Studio, then run backfill"


def _address(connector: DataConnector, metrics: Metrics) -> Iterator[Problem]:
    url = urlsplit(connector.url)
    if not is_secure_url(connector.url):
        yield Severity.ERROR, "its URL is not https", "give it an https URL without user, query and fragment"
        return
    if url.path not in ("", "/"):
        yield Severity.ERROR, f"its URL has the path {url.path[:100]}, where no push is accepted", "end its URL with /"
    health = f"{url.scheme}://{url.netloc}/healthz"
    client = HttpClient(health, REACH_SECONDS)
    severity = Severity.WARNING if metrics.successes else Severity.ERROR
    try:
        response = client.request("GET", health, {"Connection": "close"}, max_bytes=1000)
    except NoResponse as error:
        remedy = "start the receiver, and look at DNS, firewall, proxy and certificate"
        yield severity, f"its URL cannot be reached from here: {error}", remedy
        return
    finally:
        client.close()
    if response.status != 200 or response.body.strip() != b"ok":
        remedy = "correct its URL, or the proxy before the receiver"
        yield severity, f"no receiver responds at its URL (/healthz: HTTP {response.status})", remedy


def _traffic(connector: DataConnector, metrics: Metrics) -> Iterator[Problem]:
    total = metrics.successes + metrics.errors
    if metrics.errors and not metrics.successes:
        problem = f"none of its {counted(total, 'push', 'pushes')} of the last 3 hours succeeded"
        yield Severity.ERROR, problem, "look at the receiver's log for rejected pushes; DT retries for 12 hours"
    elif metrics.errors > FEW_ERRORS * total:
        problem = f"{metrics.errors} of its {total} pushes of the last 3 hours failed"
        yield Severity.WARNING, problem, "look at the receiver's log at these times; DT retries for 12 hours"
    elif not total and connector.status == ACTIVE:
        yield Severity.WARNING, "it has pushed nothing for 3 hours", "touch a sensor of the project, and look again"
    if metrics.latency_seconds > SLOW_SECONDS:
        late = metrics.latency_seconds > DT_SECONDS
        problem = f"responses take {metrics.latency_seconds:.1f} s; DT waits for {DT_SECONDS:.0f} s"
        remedy = "look at the load of the machine, and at the latency of its disk or database"
        yield Severity.ERROR if late else Severity.WARNING, problem, remedy
