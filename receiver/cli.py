"""The commands; each only calls what does the work, and turns an error of ours into one line and exit code 1."""

from __future__ import annotations

import itertools
import os
import socket
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from textwrap import indent
from typing import TYPE_CHECKING, Any

import click

from receiver import __version__, desk, logs
from receiver.errors import ConfigError, ReceiverError
from receiver.event import TYPES
from receiver.lifeline import Lifeline
from receiver.options import duration
from receiver.output import cell, plain, print_json, show, show_type
from receiver.settings import SECRET, Settings, load, survey

if TYPE_CHECKING:
    from receiver.journal import Records


POSITIVE = click.FloatRange(min=0, min_open=True)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class When(click.ParamType[datetime]):
    """A time: 2026-01-31, 2026-01-31T12:00 (UTC unless it says otherwise), or 3h, 2d (ago)."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            if value[-1:] in "smhd":
                return datetime.now(UTC) - timedelta(seconds=duration(value))
            time = datetime.fromisoformat(value)
            return time if time.tzinfo else time.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            self.fail("give a time such as 2026-01-31, 2026-01-31T12:00, 3h or 2d", param, ctx)


class OneLineErrors(click.Group):
    """A group whose commands end with a line and exit code 1 where they raise an error of ours."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ReceiverError as error:
            for line in _redacted(context, str(error)).splitlines():
                click.echo(f"error: {line}", err=True)
            context.exit(1)
        except UnicodeEncodeError:
            click.echo("error: an argument holds bytes that are no text", err=True)
            context.exit(1)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="receiver")
def main() -> None:
    """Takes the signed events of DT Data Connectors, keeps them safe, and hands each to every enabled sink.

    Settings are read from config.toml in this folder, or from the file named in RECEIVER_CONFIG.
    """


@main.command()
@click.option("--lifeline", type=int, hidden=True, help="A socket whose other end is closed when it is time to stop.")
def serve(lifeline: int | None) -> None:
    """Receive pushes and deliver them.

    \b
    Example:
      DT_SIGNATURE_SECRET=... PORT=8000 python -m receiver serve
    """
    from receiver import server

    settings = _load(secret_required=True)
    logs.set_up(settings)
    sys.exit(server.serve(settings, Lifeline(None if lifeline is None else socket.socket(fileno=lifeline))))


@main.command()
def deliver() -> None:
    """Deliver what is in the journal, without receiving.

    \b
    Example, where [receiver] has deliver = false for the processes that receive:
      python -m receiver deliver
    """
    from receiver import server

    settings = _load()
    logs.set_up(settings)
    sys.exit(server.deliver(settings))


@main.command()
def check() -> None:
    """Check config.toml, the environment, every plugin and every sink, and name all problems.

    \b
    Example:
      python -m receiver check
    """
    from receiver.plugins import problems

    settings, found = survey()
    _remember(settings)
    found += problems(settings)
    records = None
    try:
        if settings.database_url or settings.journal_path.exists():
            records = _records(settings)
        else:
            desk.may_be_made(settings.journal_path)
    except ReceiverError as error:
        found.append(str(error))
    for warning in desk.warnings(records, settings):
        click.echo(f"warning: {warning}", err=True)
    if found:
        raise ConfigError(found)
    names = ", ".join(sink.name for sink in settings.enabled_sinks) or "none"
    for line in desk.secrets_used(records, settings):
        click.echo(line)
    click.echo(f"{settings.path.name} is right. Enabled sinks: {names}. Signature secrets: {len(settings.secrets)}.")


@main.command()
def migrate() -> None:
    """Make the journal's tables, or bring those of an older receiver up to date.

    `serve` and `deliver` do this too; run it once before several of them start.

    \b
    Example:
      python -m receiver migrate
    """
    _records(_load())
    click.echo("The journal's tables are as this receiver needs them.")


@main.group(invoke_without_command=True)
@click.option("--status", is_flag=True, help="Show how each sink stands instead.")
@JSON
@click.pass_context
def sinks(context: click.Context, status: bool, as_json: bool) -> None:
    """Show the sink types on offer with their options; how each sink stands; resume or forget one.

    \b
    Examples:
      python -m receiver sinks
      python -m receiver sinks --status
      python -m receiver sinks resume erp
      python -m receiver sinks forget old_archive
    """
    if context.invoked_subcommand:
        return
    settings = _load()
    if status:
        rows = desk.status(_records(settings), settings)
        details = ("last_failure", "last_error", "paused_because")
        show(rows, as_json=as_json, none="No sink is configured, and none was before.", hide=details)
        for line in [] if as_json else desk.troubles(rows):
            click.echo(cell(line))
    else:
        _show_types(settings, as_json)


@sinks.command("resume")
@click.argument("name")
def sinks_resume(name: str) -> None:
    """Try a paused sink again now, with one event, instead of at the end of its pause.

    \b
    Example, after the address that it is sent to was mended:
      python -m receiver sinks resume erp
    """
    settings = _load()
    why = desk.resume(_records(settings), settings, name)
    click.echo(f"Sink {name} is tried again now. It was paused: {cell(settings.redact(why))}")


@sinks.command("forget")
@click.argument("name")
def sinks_forget(name: str) -> None:
    """Let go of a sink that is not enabled any more, and of all it is still owed.

    \b
    Example:
      python -m receiver sinks forget old_archive
    """
    settings = _load()
    gone = desk.forget(_records(settings), settings, name)
    click.echo(f"Forgot sink {name}, and {gone} deliveries that were pending or dead.")


@main.command("new-sink")
@click.argument("name")
def new_sink(name: str) -> None:
    """Begin a sink type of your own: writes plugins/NAME.py and tests/test_NAME.py, which pass as they stand.

    \b
    Example:
      python -m receiver new-sink alarm
    """
    from receiver import scaffold
    from receiver.plugins import load_plugins

    settings = _load()
    plugin, test = (path.relative_to(scaffold.ROOT) for path in scaffold.new_sink(name, load_plugins(settings).types))
    sink_type = load_plugins(settings).types[name]
    click.echo(f"Wrote {plugin} and {test}. Run the tests:\n\n  make test TESTS={test}\n")
    click.echo(f"To use the sink, put this into {settings.path.name}:\n\n{indent(sink_type.example(), '  ')}")


@main.group()
def dead() -> None:
    """List, retry and drop dead letters: deliveries that were given up on.

    \b
    Example:
      python -m receiver dead list
    """


@dead.command("list")
@click.argument("sink", required=False)
@JSON
def dead_list(sink: str | None, as_json: bool) -> None:
    """List the latest 1000 dead letters, of one sink or of all.

    \b
    Example:
      python -m receiver dead list erp
    """
    settings = _load()
    show(desk.dead_letters(_records(settings), settings, sink), as_json=as_json, none="No dead letters.")


@dead.command("retry")
@click.argument("sink")
@click.argument("event_ids", nargs=-1)
@JSON
def dead_retry(sink: str, event_ids: tuple[str, ...], as_json: bool) -> None:
    """Owe dead letters of a sink again, as if never tried: those named, or all.

    \b
    Examples:
      python -m receiver dead retry erp
      python -m receiver dead retry erp c82gg9catj3vmh4248og
    """
    settings = _load()
    count = desk.retry_dead(_records(settings), settings, sink, event_ids)
    tell({"sink": sink, "retried": count}, f"{count} dead letters of sink {sink} are pending again.", as_json)


@dead.command("drop")
@click.argument("sink")
@click.argument("event_ids", nargs=-1)
@JSON
@click.option("--yes", is_flag=True, help="Do not ask.")
def dead_drop(sink: str, event_ids: tuple[str, ...], as_json: bool, yes: bool) -> None:
    """Forget dead letters of a sink: those named, or all.

    \b
    Example:
      python -m receiver dead drop erp c82gg9catj3vmh4248og
    """
    if not event_ids and not yes:
        click.confirm(f"Forget all dead letters of sink {sink}?", abort=True, err=True)
    settings = _load()
    count = desk.drop_dead(_records(settings), settings, sink, event_ids)
    tell({"sink": sink, "dropped": count}, f"{count} dead letters of sink {sink} are forgotten.", as_json)


@main.group()
def quarantine() -> None:
    """List, show and retry pushes in quarantine: genuine, but no event that can be named.

    \b
    Example:
      python -m receiver quarantine list
    """


@quarantine.command("list")
@JSON
def quarantine_list(as_json: bool) -> None:
    """List the latest 1000 pushes in quarantine.

    \b
    Example:
      python -m receiver quarantine list
    """
    show(desk.quarantined(_records(_load())), as_json=as_json, none="Nothing is in quarantine.")


@quarantine.command("show")
@click.argument("id")
@JSON
def quarantine_show(id: str, as_json: bool) -> None:
    """Print the raw body of a push in quarantine; the beginning of its id is enough.

    \b
    Example:
      python -m receiver quarantine show 5b5fc2e7
    """
    push = desk.one_quarantined(_records(_load()), id)
    if as_json:
        print_json(push)
    else:
        click.echo(cell(plain(push.body)) if sys.stdout.isatty() else push.body)


@quarantine.command("retry")
@click.argument("id", required=False)
@JSON
def quarantine_retry(id: str | None, as_json: bool) -> None:
    """Decode pushes in quarantine again, after an upgrade: one, or all.

    \b
    Example:
      python -m receiver quarantine retry
    """
    released, left = desk.retry_quarantine(_records(_load()), id)
    text = f"{released} pushes are events now and on their way; {left} stay in quarantine."
    tell({"released": released, "left": left}, text, as_json)


@main.command()
@click.argument("sink")
@click.option("--since", type=When(), required=True, help="From when on, by time of receipt.")
@click.option("--until", type=When(), help="Up to when; now if not given.")
@click.option("--types", help="Only these event types, with commas between.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@JSON
def replay(sink: str, since: datetime, until: datetime | None, types: str | None, dry_run: bool, as_json: bool) -> None:
    """Owe past events to a sink again: those that pass its filter and are still in the journal.

    Times are like 2026-01-31, 2026-01-31T12:00 (UTC) or 3h, 2d (ago).

    \b
    Example:
      python -m receiver replay erp --since 2d --types temperature,humidity --dry-run
    """
    settings = _load()
    records = _records(settings)
    names = [name.strip() for name in (types or "").split(",") if name.strip()]
    for line in desk.undocumented(names):
        click.echo(f"warning: --types: {line}", err=True)
    end = until or datetime.now(UTC)
    with click.progressbar(length=records.received_count(since.timestamp(), end.timestamp()), file=sys.stderr) as bar:
        matched, owed = desk.replay(records, settings, sink, since, end, names, dry_run, bar.update)
    done = "nothing was done" if dry_run else f"sink {sink} is owed {owed} of them again"
    text = f"{matched} events match; {done}."
    tell({"sink": sink, "matched": matched, "owed": owed, "dry_run": dry_run}, text, as_json)


@main.command()
@click.argument("event_id")
@JSON
def explain(event_id: str, as_json: bool) -> None:
    """Say what happened to an event, sink by sink.

    \b
    Example:
      python -m receiver explain c82gg9catj3vmh4248og
    """
    settings = _load()
    found = desk.explain(_records(settings), settings, event_id)
    event = found.event
    facts = {
        "event_id": event.id,
        "event_type": event.type,
        "device_id": event.device_id,
        "occurred": plain(event.occurred_at),
        "received": plain(event.received_at),
    }
    if as_json:
        print_json({**facts, "sinks": found.routes})
        return
    for name, fact in facts.items():
        click.echo(f"{name.replace('_', ' '):<11} {cell(fact)}")
    click.echo()
    show(found.routes, as_json=False, none="No sink is enabled.")


@main.command()
@click.argument("url")
@click.option("--type", "types", multiple=True, type=click.Choice(TYPES), help="Event type; every type if not given.")
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, help="How many events of each type.")
def send(url: str, types: tuple[str, ...], count: int) -> None:
    """Sign test events with DT_SIGNATURE_SECRET and push them to a receiver, from emulated devices.

    \b
    Example:
      python -m receiver send https://my-app.herokuapp.com --type temperature --count 3
    """
    from receiver.simulator import Pusher, Simulator

    secret = os.environ.get(SECRET)
    if not secret:
        raise ReceiverError(f"{SECRET} is not set; set it to the signature secret that the receiver has")
    if not url.startswith(("http://", "https://")):
        raise ReceiverError("the URL must begin with http:// or https://")
    chosen = types or TYPES
    pusher = Pusher(url, secret)
    failed = 0
    for body in itertools.islice(Simulator().bodies(chosen), count * len(chosen)):
        answer = pusher.push(body)
        failed += answer.status != 200
        click.echo(f"{answer.event_type:<20} {answer.event_id}  {answer.status or '---'} {cell(answer.text)}")
    if failed:
        raise ReceiverError(f"{failed} of {count * len(chosen)} events were not taken")


@main.command()
@click.option("--seconds", type=POSITIVE, default=20.0, show_default=True, help="How long sensors push events.")
@click.option("--rate", type=POSITIVE, default=20.0, show_default=True, help="Events a second.")
def demo(seconds: float, rate: float) -> None:
    """Run a receiver with simulated sensors, and watch events arrive and sinks fill.

    \b
    Example:
      python -m receiver demo --seconds 60
    """
    from receiver.demo import run

    run(seconds, rate, click.echo)


def tell(result: Mapping[str, object], text: str, as_json: bool) -> None:
    """What a command did: a line for people, or an object."""
    if as_json:
        print_json(result)
    else:
        click.echo(text)


def _show_types(settings: Settings, as_json: bool) -> None:
    from receiver.plugins import load_plugins

    plugins = load_plugins(settings)
    types = sorted(plugins.types.items())
    if as_json:
        print_json(
            {
                name: {
                    "source": sink_type.source,
                    "description": sink_type.summary(),
                    "options": sink_type.described(),
                    "example": sink_type.example(),
                }
                for name, sink_type in types
            }
        )
    else:
        for _, sink_type in types:
            show_type(sink_type)
    for fault in plugins.faults:
        click.echo(f"left out: {settings.redact(fault)}", err=True)


def _load(*, secret_required: bool = False) -> Settings:
    """The settings; from here on, no error line shows what they hide."""
    settings = load(secret_required=secret_required)
    _remember(settings)
    return settings


def _records(settings: Settings) -> Records:
    from receiver.journal import open_records

    records = open_records(settings)
    click.get_current_context().call_on_close(records.close)
    return records


def _remember(settings: Settings) -> None:
    """From here on, no error line shows what these settings hide."""
    click.get_current_context().find_root().obj = settings


def _redacted(context: click.Context, text: str) -> str:
    settings = context.find_root().obj
    return settings.redact(text) if isinstance(settings, Settings) else text
