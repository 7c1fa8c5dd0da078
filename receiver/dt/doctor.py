"""Compares DT's Data Connectors with what this receiver needs, and says what to do. Changes nothing."""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from receiver.dt.api import Api, DataConnector, Metrics, Project
from receiver.dt.session import SKEW_SECONDS, ApiError, Missing, Refused, Session, Unavailable
from receiver.http_client import HttpClient, NoResponse
from receiver.journal import Records
from receiver.settings import Settings
from receiver.simulator import Pusher, Simulator
from receiver.urls import is_secure_url
from receiver.validation import counted, in_one_unit

HTTP_PUSH, ACTIVE, SYSTEM_DISABLED = "HTTP_PUSH", "ACTIVE", "SYSTEM_DISABLED"
"""A type and two states of Data Connectors."""

DT_SECONDS = 10.0
"""How long DT waits for the response to a push."""

SLOW_SECONDS = 5.0
FEW_ERRORS = 0.01
REACH_SECONDS = 10.0
PUSHED_TYPE = "touch"
"""The event type of a test push: it changes only a count of touches."""


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
    """All findings that can be made from this machine; none means that nothing is wrong.

    `projects` are those whose sensors were heard, and `records` the journal, where they are available. With `push` a
    signed test event is pushed to each Data Connector's URL, and is delivered to all sinks.
    """
    found: list[Finding] = []
    with closing(Api(session)) as api:
        try:
            found.extend(_Examination(settings, session, api, projects, records, push).findings())
        except ApiError as error:
            clock = [] if found else _clock(session)
            found = [*found, *clock, Finding(Severity.ERROR, "DT's REST API", str(error), _remedy(error))]
    return found


def _remedy(error: ApiError) -> str:
    return "follow this advice, then examine again" if isinstance(error, Refused) else "try again later"


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
        self.seen: dict[str, str] = {}

    def findings(self) -> Iterator[Finding]:
        projects = {project.id: project for project in self.api.projects()}
        yield from _clock(self.session)
        yield from self.of_projects(projects)
        connectors: dict[str, list[DataConnector]] = {}
        for project in projects.values():
            try:
                found = self.api.data_connectors(project.id)
                connectors[project.id] = [each for each in found if each.type == HTTP_PUSH]
            except (Refused, Missing) as error:
                role = "grant the service account the role Project Developer there"
                yield Finding(Severity.ERROR, f"project {project.name}", str(error), role)
            except Unavailable:
                raise
            except ApiError as error:
                yield Finding(Severity.ERROR, f"project {project.name}", str(error), _remedy(error))
        ours = {name: chosen for name, chosen in self.ours(connectors).items() if chosen}
        yield from self.of_missing([projects[name] for name in connectors], ours.keys())
        for name, chosen in ours.items():
            for connector in chosen:
                yield from self.of_connector(projects[name], connector)
            active = [each for each in chosen if each.status == ACTIVE]
            yield from self.of_event_types(projects[name], active or chosen)
            for url in sorted({each.url.rstrip("/") for each in active}):
                for problem, remedy in _repeated([each for each in active if each.url.rstrip("/") == url]):
                    yield Finding(Severity.WARNING, f"project {projects[name].name}", problem, remedy)

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

    def ours(self, connectors: Mapping[str, Sequence[DataConnector]]) -> dict[str, Sequence[DataConnector]]:
        """By project, the connectors meant for this receiver; projects can also have connectors for other programs.

        Those are the connectors with our secret. In a project without one: those at whose URL a receiver responds, or
        else all, if the project was heard, or if no project has a connector with our secret.
        """
        chosen: dict[str, Sequence[DataConnector]] = {
            project: [each for each in found if self.has_our_secret(each)] for project, found in connectors.items()
        }
        has_matching = any(chosen.values())
        for project, found in connectors.items():
            if not chosen[project] and (project in self.heard or not has_matching):
                chosen[project] = [each for each in found if not self.unreachable(each)] or found
        return chosen

    def has_our_secret(self, connector: DataConnector) -> bool:
        given = (connector.secret or "").encode("utf-8", "replace")
        return any(
            hmac.compare_digest(given, secret.encode("utf-8", "replace")) for secret in self.settings.secrets.values()
        )

    def of_missing(self, projects: Sequence[Project], covered: Collection[str]) -> Iterator[Finding]:
        """`projects` are those whose connectors could be read, and `covered` those with one for this receiver."""
        create = "create a Data Connector of the type HTTP Push in it, with this receiver's URL"
        if projects and not covered:
            yield Finding(Severity.ERROR, "all projects", "none has a Data Connector that pushes over HTTP", create)
            return
        for project in projects:
            if project.id in self.heard and project.id not in covered:
                problem = "its sensors were heard once, but it has no Data Connector any more"
                yield Finding(Severity.ERROR, f"project {project.name}", problem, create)

    def of_connector(self, project: Project, connector: DataConnector) -> Iterator[Finding]:
        name = _subject(project, connector)
        metrics = None
        try:
            metrics = self.api.metrics(connector)
        except Unavailable:
            raise
        except ApiError as error:
            yield Finding(Severity.WARNING, name, str(error), _remedy(error))
        for severity, problem, remedy in (
            *_status(connector),
            *self.address(connector, metrics),
            *self.signature(project, connector),
            *self.labels(connector),
            *(_traffic(connector, metrics) if metrics else ()),
            *(self.test_push(connector) if self.push else ()),
        ):
            yield Finding(severity, name, problem, remedy)

    def address(self, connector: DataConnector, metrics: Metrics | None) -> Iterator[Problem]:
        path = urlsplit(connector.url).path
        if not is_secure_url(connector.url):
            yield Severity.ERROR, "its URL is not https", "give it an https URL without user, query and fragment"
            return
        if path not in ("", "/"):
            yield Severity.ERROR, f"its URL has the path {path[:100]}, where no push is accepted", "end its URL with /"
        if problem := self.unreachable(connector):
            remedy = "start the receiver, or correct the URL, DNS, firewall, proxy and certificate"
            yield Severity.WARNING if metrics and metrics.successes else Severity.ERROR, problem, remedy

    def unreachable(self, connector: DataConnector) -> str:
        """Why no receiver responds at the URL of a connector, as seen from here; empty if one does."""
        if connector.url not in self.seen:
            self.seen[connector.url] = _unreachable(connector.url)
        return self.seen[connector.url]

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

    def of_event_types(self, project: Project, connectors: Sequence[DataConnector]) -> Iterator[Finding]:
        """What none of these connectors sends; each of them may send a part of all event types."""
        if not all(each.event_types for each in connectors):
            return
        sent = {event_type for each in connectors for event_type in each.event_types}
        subject, lacks = _subject(project, connectors[0]), "it does not send"
        if len(connectors) > 1:
            subject, lacks = f"project {project.name}", "none of its Data Connectors sends"
        known = set(sent)
        if self.settings.sensors.enabled and "networkStatus" not in sent:
            known.add("networkStatus")
            problem = f"{lacks} networkStatus, so silent sensors are not noticed"
            yield Finding(
                Severity.ERROR, subject, problem, "enable networkStatus in DT Studio, or better all event types"
            )
        for sink in self.sinks:
            if missing := sorted({*(sink.common.filter.event_types or ())} - known):
                problem = f"{lacks} {', '.join(missing)}, which the filter of sink {sink.name} asks for"
                yield Finding(Severity.ERROR, subject, problem, "enable these event types in DT Studio")

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


def _subject(project: Project, connector: DataConnector) -> str:
    return f"Data Connector {connector.name or connector.path} of project {project.name}"


def _repeated(connectors: Sequence[DataConnector]) -> Iterator[tuple[str, str]]:
    """Problem and remedy of connectors with the same URL, if there are events that more than one of them sends."""
    number = len(connectors)
    of_all_types = sum(not each.event_types for each in connectors)
    of_type = Counter(event_type for each in connectors for event_type in {*each.event_types})
    repeated = sorted(event_type for event_type, count in of_type.items() if count + of_all_types > 1)
    if of_all_types > 1 or (repeated and not of_all_types and {*of_type.values()} == {number}):
        problem = f"{number} Data Connectors push to the same URL, so every event comes {of_all_types or number} times"
        yield problem, "delete all but one of them in DT Studio"
    elif repeated:
        types = ", ".join(repeated)
        problem = f"more than one Data Connector pushes {types} to the same URL, so such events are repeated"
        yield problem, "let only one of them send these event types, in DT Studio"


def _status(connector: DataConnector) -> Iterator[Problem]:
    if connector.status == SYSTEM_DISABLED:
        yield (
            Severity.ERROR,
            "DT has disabled it, after days without a successful push",
            "remove the cause that is named below, enable it in DT Studio, then run backfill",
        )
    elif connector.status != ACTIVE:
        yield Severity.ERROR, "a person has disabled it", "enable it in DT Studio, then run backfill"


def _unreachable(address: str) -> str:
    if not is_secure_url(address):
        return "its URL is not https"
    url = urlsplit(address)
    health = f"{url.scheme}://{url.netloc}/healthz"
    client = HttpClient(health, REACH_SECONDS)
    try:
        response = client.request("GET", health, {"Connection": "close"}, max_bytes=1000)
    except NoResponse as error:
        return f"its URL cannot be reached from here: {error}"
    finally:
        client.close()
    is_receiver = response.status == 200 and response.body.strip() == b"ok"
    return "" if is_receiver else f"no receiver responds at its URL (/healthz: HTTP {response.status})"


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
