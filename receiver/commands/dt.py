"""The commands that use DT's REST API: fetch what was missed, and examine the Data Connectors."""

from __future__ import annotations

import os
import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import click

from receiver.commands.context import JSON, YES, Time, confirm, load_settings, open_journal_records, report
from receiver.commands.output import cell, plain, show
from receiver.commands.sensors import registry
from receiver.errors import JournalError, ReceiverError
from receiver.event import SIMULATED_PROJECT
from receiver.sensors import open_registry, registry_path
from receiver.settings import Settings
from receiver.validation import counted, in_one_unit

DOCTOR_SECONDS = 20.0
"""How long `doctor` repeats a request without a response: who looks for a fault wants to know soon."""

if TYPE_CHECKING:
    from receiver.dt.session import Session
    from receiver.journal import Records
    from receiver.sensors.shown import OpenGap


@click.command()
@click.option("--since", metavar="TIME", help="Fetch all events from this time on, instead of those in gaps.")
@click.option("--until", metavar="TIME", help="Fetch events until this time; until now if not given.")
@click.option("--project", help="Only of this project.")
@click.option("--device", help="Only of this device id.")
@click.option("--dry-run", is_flag=True, help="Fetch and count events, but store nothing.")
@click.option(
    "--concurrency", type=click.IntRange(1, 16), default=4, show_default=True, help="Concurrent requests to DT."
)
@JSON
@YES
def backfill(
    since: str | None,
    until: str | None,
    project: str | None,
    device: str | None,
    dry_run: bool,
    concurrency: int,
    as_json: bool,
    yes: bool,
) -> None:
    """Fetch missed events from DT's history and deliver them: those in gaps of kind receiver, or all of a period.

    DT stores 31 days. Events that the journal has are skipped. If it is interrupted, the same command continues it.
    Times are like 2026-01-31, 2026-01-31T12:00 (UTC) or 3h, 2d (ago). Exit code 1 if something cannot be fetched.

    \b
    Examples:
      python -m receiver backfill --dry-run
      python -m receiver backfill --since 3d --project c8v2lh6000000000000p
    """
    from receiver.dt.api import Api
    from receiver.dt.backfill import Backfill
    from receiver.dt.plan import Request, plan, require_same_ids
    from receiver.journal import open_journal

    settings = load_settings()
    session = open_session(settings)
    records = open_journal_records(settings)
    now = session.now()
    gaps = [] if since or until else gaps_of_receiver(settings, now)
    texts = (since or "", until or "", project or "", device or "")
    start, end = times(since, until, now)
    request = Request(texts, start, end, project, device)
    retained_from = now - settings.journal.retention_days * 86400
    with closing(open_journal(settings)) as journal, closing(Api(session)) as api:
        planned = plan(api, journal, request, gaps, retained_from, now, dry_run=dry_run)
        require_same_ids(api, records, planned.devices, now)
        if planned.resumed:
            click.echo("Resuming the same backfill, which was interrupted.", err=True)
        if not dry_run:
            confirm(planned.question, len(planned.windows), yes)
        with click.progressbar(length=planned.seconds, file=sys.stderr) as bar:
            work = Backfill(session, journal, records, planned, request, bar.update, dry_run=dry_run)
            done = work.run(concurrency)
    if dry_run and not as_json:
        show(work.missed_rows(), as_json=False, none="No event is missing.")
    text = (
        f"Fetched {counted(done.fetched, 'event')}: {done.new} {'would be ' if dry_run else ''}new, "
        f"{done.known} known, {done.quarantined} quarantined. Gaps closed: {done.gaps_closed}, left: {done.gaps_left}."
    )
    report({**plain(done), "dry_run": dry_run}, text, as_json)
    for line in done.failures:
        click.echo(f"error: {cell(line)}", err=True)
    if done.failures:
        click.get_current_context().exit(1)


@click.command()
@click.option("--push", is_flag=True, help="Push a test event to each Data Connector's URL; it goes to all sinks.")
@JSON
def doctor(push: bool, as_json: bool) -> None:
    """Compare DT's Data Connectors with what this receiver needs, and say what to change.

    Exit code 1 if there is an error. Needs a service account with the role Project Developer.

    \b
    Example:
      python -m receiver doctor
    """
    from receiver.dt.doctor import Severity, examine

    settings = load_settings()
    session = open_session(settings, patience_seconds=DOCTOR_SECONDS)
    projects, records = what_is_here(settings)
    findings = examine(settings, session, projects, records, push=push)
    show(findings, as_json=as_json, none="DT and this receiver fit together.")
    if any(finding.severity is Severity.ERROR for finding in findings):
        click.get_current_context().exit(1)


def open_session(settings: Settings, patience_seconds: float | None = None) -> Session:
    """Access to DT's REST API. Raises ReceiverError if the service account is not set."""
    from receiver.dt.session import PATIENCE_SECONDS, Session

    if missing := settings.api.missing:
        raise ReceiverError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set; in DT Studio create a service "
            "account with a key and the role Project User in the project (Project Developer for `doctor`), and set the "
            "three variables"
        )
    return Session(
        settings.api,
        on_wait=lambda seconds, reason: click.echo(
            f"trying DT's REST API again in {in_one_unit(seconds)}: {reason}", err=True
        ),
        patience_seconds=patience_seconds or PATIENCE_SECONDS,
    )


def gaps_of_receiver(settings: Settings, now: float) -> list[OpenGap]:
    from receiver.sensors.gaps import HISTORY_MINUTES
    from receiver.sensors.shown import open_gaps

    if not settings.sensors.enabled:
        raise ReceiverError("without the registry of sensors it is not known what was missed; give --since")
    found = open_gaps(registry(), now, HISTORY_MINUTES)
    return [gap for gap in found if gap.project_id != SIMULATED_PROJECT]


def times(since: str | None, until: str | None, now: float) -> tuple[float, float] | tuple[None, None]:
    """The begin and the end of what is fetched, in seconds since 1970; None for what gaps have missed."""
    from receiver.sensors.gaps import HISTORY_MINUTES

    if not (since or until):
        return None, None
    context = click.get_current_context()
    start = Time().convert(since, None, context).timestamp() if since else 0.0
    end = Time().convert(until, None, context).timestamp() if until else now
    start, end = max(start, now - HISTORY_MINUTES * 60), min(end, now)
    if end <= start:
        raise ReceiverError("--until must be later than --since, and DT has the last 31 days only")
    return start, end


def what_is_here(settings: Settings) -> tuple[list[str], Records | None]:
    """The projects in the registry, and the journal, if they are on this machine."""
    projects: list[str] = []
    records = None
    path = registry_path(settings)
    if settings.sensors.enabled and (path is None or os.path.exists(path)):
        with suppress(JournalError), closing(open_registry(settings, create=False)) as opened:
            found = {row.project_id for row in opened.rows() if row.project_id and not row.retired_at}
            projects = sorted(found - {SIMULATED_PROJECT})
    if settings.database_url or os.path.exists(settings.journal_path):
        with suppress(JournalError):
            records = open_journal_records(settings)
    return projects, records
