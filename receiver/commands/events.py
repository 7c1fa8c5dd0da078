"""The commands that show events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from receiver import admin
from receiver.commands.context import JSON, Time, load_settings, open_journal_records
from receiver.commands.output import cell, plain, print_json, show
from receiver.errors import ReceiverError
from receiver.event import rfc3339
from receiver.validation import counted

STATES = ("pending", "delivered", "dead")


@click.command()
@click.option("--sensor", help="Only of this sensor: its device id, or its name.")
@click.option("--since", type=Time(), default="1970-01-01", help="Received at this time or later.")
@click.option("--until", type=Time(), help="Received before this time; now if not given.")
@click.option("--type", "types", multiple=True, help="Only of this type; can be given several times.")
@click.option("--state", type=click.Choice(STATES), help="Only with a delivery in this state.")
@click.option(
    "--limit", type=click.IntRange(1, admin.MAX_LISTED), default=20, show_default=True, help="Maximum number of events."
)
@JSON
def events(
    sensor: str | None,
    since: datetime,
    until: datetime | None,
    types: tuple[str, ...],
    state: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List the newest stored events, with the state of their deliveries.

    \b
    Examples:
      python -m receiver events --since 2h --sensor "Cold store"
      python -m receiver events --state dead --type temperature --limit 100
    """
    end = until or datetime.now(UTC)
    if end <= since:
        raise ReceiverError("--until must be later than --since")
    for line in admin.undocumented(types):
        click.echo(f"warning: --type: {line}", err=True)
    records = open_journal_records(load_settings())
    rows, read_up_to = admin.find_events(records, since, end, sensor=sensor, types=types, state=state, limit=limit)
    show(rows, as_json=as_json, none="No such events.")
    if read_up_to:
        time = rfc3339(read_up_to + timedelta(seconds=1), "seconds")  # what was received in the same second comes again
        read = counted(admin.events.MAX_READ, "event")
        click.echo(f"warning: stopped after reading {read}; add --until {time} to go on", err=True)


@click.command()
@click.argument("event_id")
@click.option("--body", is_flag=True, help="Print the body as it was received, too.")
@JSON
def explain(event_id: str, body: bool, as_json: bool) -> None:
    """Show what happened to an event, sink by sink.

    \b
    Example:
      python -m receiver explain c82gg9catj3vmh4248og
    """
    settings = load_settings()
    found = admin.explain(open_journal_records(settings), settings, event_id)
    event = found.event
    facts = {
        "event_id": event.id,
        "event_type": event.type,
        "device_id": event.device_id,
        "device_name": event.labels.get("name"),
        "occurred_at": plain(event.occurred_at),
        "received_at": plain(event.received_at),
        "origin": event.origin.value,
    }
    if as_json:
        print_json({**facts, "sinks": found.deliveries, **({"body": event.body} if body else {})})
        return
    for name, fact in facts.items():
        click.echo(f"{name.replace('_', ' '):<11}  {cell(fact)}")
    click.echo()
    show(found.deliveries, as_json=False, none="No sink is enabled.")
    if body:
        click.echo(f"\n{cell(plain(event.body))}")
