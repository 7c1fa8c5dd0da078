"""The commands that show deliveries, and retry, replay or delete them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from receiver import admin
from receiver.commands.context import JSON, YES, Time, confirm, load_settings, open_journal_records, redactor, report
from receiver.commands.output import cell, plain, print_json, show
from receiver.errors import ReceiverError
from receiver.settings import Settings
from receiver.validation import counted

if TYPE_CHECKING:
    from receiver.journal import Records


@click.command()
@JSON
def status(as_json: bool) -> None:
    """Show whether the receiver runs, and each sink: pending, delivered and dead deliveries, last failure and pause.

    \b
    Example:
      python -m receiver status
    """
    settings = load_settings()
    found = admin.status(open_journal_records(settings), settings)
    if as_json:
        print_json(found)
        return
    for line in admin.life_signs(found):
        click.echo(line)
    click.echo()
    details = ("last_failure_at", "last_failure_reason", "pause_reason")
    show(found.sinks, as_json=False, none="No sink is configured, and none was before.", hide=details)
    for line in (*admin.reasons(found.sinks), *found.warnings):
        click.echo(cell(line))


@click.command("resume")
@click.argument("name")
def sinks_resume(name: str) -> None:
    """Probe a paused sink now, with one event, instead of at the end of its pause.

    \b
    Example, after its destination was repaired:
      python -m receiver sinks resume erp
    """
    settings = load_settings()
    reason = admin.resume(open_journal_records(settings), settings, name)
    click.echo(f"Sink {name} is probed now. It was paused: {cell(redactor().redact(reason))}")


@click.command("remove")
@click.argument("name")
@YES
def sinks_remove(name: str, yes: bool) -> None:
    """Delete a sink that is no longer enabled, and its pending and dead deliveries, from the journal.

    \b
    Example:
      python -m receiver sinks remove old_archive
    """
    settings = load_settings()
    records = open_journal_records(settings)
    count = admin.count_undelivered(records, settings, name)
    confirm(f"Remove sink {name} and delete its {undelivered(count)}?", count, yes)
    click.echo(f"Removed sink {name} and its {undelivered(admin.remove_sink(records, settings, name))}.")


REASON = click.option("--reason", help="Only those given up for this reason, as `dead-letters reasons` shows it.")


def undelivered(count: int) -> str:
    return counted(count, "pending or dead delivery", "pending or dead deliveries")


@click.group("dead-letters")
def dead_letters() -> None:
    """List, retry and delete dead letters: deliveries that were given up.

    \b
    Example:
      python -m receiver dead-letters list
    """


@dead_letters.command("list")
@click.argument("sink", required=False)
@REASON
@JSON
def dead_letters_list(sink: str | None, reason: str | None, as_json: bool) -> None:
    """List the newest 1000 dead letters, by when their events were received, of one sink or of all.

    \b
    Example:
      python -m receiver dead-letters list erp
    """
    settings = load_settings()
    rows = admin.list_dead_letters(open_journal_records(settings), settings, sink, reason)
    show(rows, as_json=as_json, none="No dead letters.")


@dead_letters.command("reasons")
@click.argument("sink", required=False)
@JSON
def dead_letters_reasons(sink: str | None, as_json: bool) -> None:
    """Count the dead letters of each sink and reason, of one sink or of all: the 1000 largest numbers.

    \b
    Example:
      python -m receiver dead-letters reasons
    """
    settings = load_settings()
    rows = admin.dead_letter_reasons(open_journal_records(settings), settings, sink)
    show(rows, as_json=as_json, none="No dead letters.")


@dead_letters.command("retry")
@click.argument("sink")
@click.argument("event_ids", nargs=-1)
@REASON
@JSON
@YES
def dead_letters_retry(sink: str, event_ids: tuple[str, ...], reason: str | None, as_json: bool, yes: bool) -> None:
    """Make dead letters of a sink pending again, with no attempts counted: those named, or all.

    \b
    Examples:
      python -m receiver dead-letters retry erp
      python -m receiver dead-letters retry erp c82gg9catj3vmh4248og
      python -m receiver dead-letters retry erp --reason "HTTP 422"
    """
    settings = load_settings()
    records = open_journal_records(settings)
    admin.enabled_sink(settings, sink)
    count = admin.count_dead_letters(records, settings, sink, event_ids, reason)
    confirm(f"Deliver {counted(count, 'dead letter')} to sink {sink} again?", count, yes)
    count = admin.retry_dead_letters(records, settings, sink, event_ids, reason, None if yes else count)
    report({"sink": sink, "retried": count}, f"Retrying {counted(count, 'dead letter')} of sink {sink}.", as_json)


@dead_letters.command("delete")
@click.argument("sink")
@click.argument("event_ids", nargs=-1)
@REASON
@JSON
@YES
def dead_letters_delete(sink: str, event_ids: tuple[str, ...], reason: str | None, as_json: bool, yes: bool) -> None:
    """Delete dead letters of a sink: those named, or all.

    \b
    Example:
      python -m receiver dead-letters delete erp c82gg9catj3vmh4248og
    """
    settings = load_settings()
    records = open_journal_records(settings)
    count = admin.count_dead_letters(records, settings, sink, event_ids, reason)
    confirm(f"Delete {counted(count, 'dead letter')} of sink {sink}?", count, yes)
    count = admin.delete_dead_letters(records, settings, sink, event_ids, reason, None if yes else count)
    report({"sink": sink, "deleted": count}, f"Deleted {counted(count, 'dead letter')} of sink {sink}.", as_json)


@click.group()
def quarantine() -> None:
    """List, show and retry quarantined pushes: verified, but not valid events.

    \b
    Example:
      python -m receiver quarantine list
    """


@quarantine.command("list")
@JSON
def quarantine_list(as_json: bool) -> None:
    """List the newest 1000 quarantined pushes.

    \b
    Example:
      python -m receiver quarantine list
    """
    rows = admin.quarantined(open_journal_records(load_settings()))
    show(rows, as_json=as_json, none="Nothing is in quarantine.")


@quarantine.command("show")
@click.argument("id")
@JSON
def quarantine_show(id: str, as_json: bool) -> None:
    """Print the raw body of a quarantined push; the beginning of its id is enough.

    \b
    Example:
      python -m receiver quarantine show 5b5fc2e7
    """
    push = admin.one_quarantined(open_journal_records(load_settings()), id)
    if as_json:
        print_json(
            {"id": push.id, "received_at": admin.to_time(push.received_at), "reason": push.reason, "body": push.body}
        )
    else:
        click.echo(cell(plain(push.body)) if sys.stdout.isatty() else push.body)


@quarantine.command("retry")
@click.argument("id", required=False)
@JSON
def quarantine_retry(id: str | None, as_json: bool) -> None:
    """Decode quarantined pushes again, for instance after an upgrade: one, or all.

    \b
    Example:
      python -m receiver quarantine retry
    """
    released, left = admin.retry_quarantined(open_journal_records(load_settings()), id)
    text = f"Released {counted(released, 'push', 'pushes')} for delivery; {left} left in quarantine."
    report({"released": released, "left": left}, text, as_json)


@click.command()
@click.argument("sink")
@click.option("--since", type=Time(), help="Received at this time or later.")
@click.option("--until", type=Time(), help="Received before this time; now if not given.")
@click.option("--types", help="Only these event types, separated by commas.")
@click.option("--event", "event_id", help="This event alone, whenever it was received.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@JSON
@YES
def replay(
    sink: str,
    since: datetime | None,
    until: datetime | None,
    types: str | None,
    event_id: str | None,
    dry_run: bool,
    as_json: bool,
    yes: bool,
) -> None:
    """Requeue past events for a sink: those that pass its filter and are still in the journal.

    Times are like 2026-01-31, 2026-01-31T12:00 (UTC) or 3h, 2d (ago).

    \b
    Examples:
      python -m receiver replay erp --since 2d --types temperature,humidity --dry-run
      python -m receiver replay erp --event c82gg9catj3vmh4248og
    """
    settings = load_settings()
    records = open_journal_records(settings)
    if event_id and not (since or until or types):
        matched, requeued = replay_one(records, settings, sink, event_id, dry_run, yes)
    elif since and not event_id:
        end, names = until or datetime.now(UTC), [name.strip() for name in (types or "").split(",") if name.strip()]
        if until and until <= since:
            raise ReceiverError("--until must be later than --since")
        matched, requeued = replay_period(records, settings, sink, since, end, names, dry_run, yes)
    else:
        raise click.UsageError("give either --since, or --event alone")
    done = "requeued none (dry run)" if dry_run else f"requeued {requeued} for sink {sink}"
    result = {"sink": sink, "matched": matched, "requeued": requeued, "dry_run": dry_run}
    report(result, f"Found {counted(matched, 'matching event')}; {done}.", as_json)


def replay_one(
    records: Records, settings: Settings, sink: str, event_id: str, dry_run: bool, yes: bool
) -> tuple[int, int]:
    admin.replayable(records, settings, sink, event_id)
    if dry_run:
        return 1, 0
    confirm(f"Deliver event {event_id} to sink {sink} again?", 1, yes)
    return 1, admin.replay_event(records, settings, sink, event_id)


def replay_period(
    records: Records,
    settings: Settings,
    sink: str,
    since: datetime,
    until: datetime,
    types: Sequence[str],
    dry_run: bool,
    yes: bool,
) -> tuple[int, int]:
    for line in admin.undocumented(types):
        click.echo(f"warning: --types: {line}", err=True)
    length = records.count_received(since.timestamp(), until.timestamp())

    def run(*, only_count: bool) -> tuple[int, int]:
        with click.progressbar(length=length, file=sys.stderr) as bar:
            return admin.replay(records, settings, sink, since, until, types, only_count, bar.update)

    matched, requeued = run(only_count=True) if dry_run or not yes else (0, 0)
    if not dry_run:
        confirm(f"Deliver {counted(matched, 'event')} to sink {sink} again?", matched, yes)
        matched, requeued = run(only_count=False) if matched or yes else (0, 0)
    return matched, requeued
