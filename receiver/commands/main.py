"""The commands that run, configure and try the receiver."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections import Counter
from contextlib import closing

import click

from receiver import __version__, admin, health, logs
from receiver.commands.context import (
    JSON,
    Amount,
    Commands,
    Label,
    load_settings,
    open_journal_records,
    redactor,
    show_group,
)
from receiver.commands.deliveries import dead_letters, quarantine, replay, sinks_remove, sinks_resume, status
from receiver.commands.dt import backfill, doctor
from receiver.commands.events import events, explain
from receiver.commands.output import cell, print_json, show_type
from receiver.commands.sensors import sensors
from receiver.errors import ConfigError, ReceiverError
from receiver.event import SIMULATED_PROJECT, TYPES
from receiver.lifeline import Lifeline
from receiver.sensors import open_registry, registry_path
from receiver.settings import Settings, load_with_problems
from receiver.validation import counted
from receiver.variables import SECRET, read_secret


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="receiver")
def main() -> None:
    """Accepts the signed events of DT Data Connectors, stores them durably, and delivers each to every enabled sink.

    Settings are read from config.toml in this folder, or from the file named in RECEIVER_CONFIG.
    """


@main.command()
@click.option("--lifeline", type=int, hidden=True, help="A socket whose other end is closed when it is time to stop.")
@click.option("--listener", type=int, hidden=True, help="A bound socket to listen on, in place of host and PORT.")
def serve(lifeline: int | None, listener: int | None) -> None:
    """Receive pushes and deliver them.

    \b
    Example:
      DT_SIGNATURE_SECRET=... PORT=8000 python -m receiver serve
    """
    from receiver import server

    settings = load_settings(secret_required=True)
    logs.set_up(settings.receiver.log_format, redactor())
    sys.exit(server.serve(settings, redactor(), Lifeline(_socket(lifeline)), _socket(listener)))


@main.command()
@click.option("--until-empty", is_flag=True, help="Exit when nothing is pending; with exit code 1 if stopped before.")
def deliver(until_empty: bool) -> None:
    """Deliver what is in the journal, without receiving.

    Use it with deliver = false in [receiver], or with --until-empty before a move to another journal.

    \b
    Examples:
      python -m receiver deliver
      python -m receiver deliver --until-empty
    """
    from receiver import server

    settings = load_settings()
    logs.set_up(settings.receiver.log_format, redactor())
    sys.exit(server.deliver(settings, redactor(), until_empty=until_empty))


@main.command()
def check() -> None:
    """Check config.toml, the environment, all plugins and all sinks, and list all problems. Changes nothing.

    \b
    Example:
      python -m receiver check
    """
    from receiver.delivery.plugins import load_plugins
    from receiver.delivery.sinks import find_problems, secrets_by_option
    from receiver.journal import tables_version

    settings, problems = load_with_problems()
    redactor().hide(settings.secret_values)
    plugins = load_plugins(settings, redactor())
    of_plugins_and_sinks, local_paths = find_problems(plugins, settings, redactor())
    problems += of_plugins_and_sinks + admin.unmatchable_filters(settings)
    warnings = health.configuration_warnings(settings)
    warnings += health.odd_secrets(secrets_by_option(plugins, settings))
    warnings += health.local_files(settings, local_paths)
    warnings += admin.unknown_event_types(settings)
    try:
        warnings += health.port_in_use(settings)
    except ReceiverError as error:
        problems.append(str(error))
    records = None
    try:
        if not settings.database_url and not os.path.exists(settings.journal_path):
            admin.require_creatable("journal", settings.journal_path, "[journal] path")
        elif old := health.old_tables(version := tables_version(settings)):
            warnings += old
        elif version.found is not None:
            records = open_journal_records(settings, create_tables=False)
            warnings += health.removed_sinks(settings, records.counts())
            warnings += [line for lines in health.signing_keys(settings, records) for line in lines]
        warnings += unwatchable_sensors(settings)
    except ReceiverError as error:
        problems.append(str(error))
    for warning in warnings:
        click.echo(f"warning: {redactor().redact(warning)}", err=True)
    if problems:
        raise ConfigError(problems)
    names = ", ".join(sink.name for sink in settings.sinks if sink.common.enabled) or "none"
    for line in admin.secrets_used(records, settings) + admin.signing_keys(records, settings):
        click.echo(line)
    click.echo(f"{settings.path.name} is valid. Enabled sinks: {names}. Signature secrets: {len(settings.secrets)}.")


@main.command()
def migrate() -> None:
    """Create the tables of the journal and the registry of sensors, or upgrade those of an older receiver.

    Other commands create or upgrade what they open, too; run this once before several processes start.

    \b
    Example:
      python -m receiver migrate
    """
    from receiver.journal import tables_version

    settings = load_settings()
    version = tables_version(settings)
    open_journal_records(settings)
    if settings.sensors.enabled:
        open_registry(settings).close()
    if version.found is None:
        click.echo(f"Created the journal's tables (version {version.latest}).")
    elif version.found < version.latest:
        click.echo(f"Upgraded the journal's tables from version {version.found} to {version.latest}.")
    else:
        click.echo(f"The journal's tables are up to date (version {version.latest}).")


@main.group(invoke_without_command=True)
@JSON
@click.pass_context
def sinks(context: click.Context, as_json: bool) -> None:
    """Show all sink types with their options; resume or remove a sink.

    \b
    Examples:
      python -m receiver sinks
      python -m receiver sinks resume erp
      python -m receiver sinks remove old_archive
    """
    if show_group(context, as_json):
        show_types(load_settings(file_required=False), as_json)


@main.command("new-sink")
@click.argument("name")
def new_sink(name: str) -> None:
    """Create a sink type of your own: writes plugins/NAME.py and tests/test_NAME.py, whose tests pass.

    \b
    Example:
      python -m receiver new-sink alarm
    """
    from receiver import scaffold
    from receiver.delivery.plugins import load_plugins

    settings = load_settings(file_required=False)
    types = load_plugins(settings, redactor()).types
    plugin, test = (path.relative_to(scaffold.ROOT) for path in scaffold.new_sink(name, types))
    sink_type = load_plugins(settings, redactor()).types[name]
    click.echo(f"Wrote {plugin} and {test}. Run the tests:\n\n  make test TESTS={test}\n")
    click.echo(f"To use the sink, add this to {settings.path.name}:\n\n{sink_type.example()}")


@main.command()
@click.argument("url")
@click.option("--type", "types", multiple=True, type=click.Choice(TYPES), help="Event type; every type if not given.")
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, help="How many events of each type.")
@click.option("--project", help="The project that they come from; an emulated one if not given.")
@click.option("--sensor", help="The device id that they come from; an emulated device for each type if not given.")
@click.option("--label", "labels", type=Label(), multiple=True, help="A label of the sensor, NAME=VALUE; repeatable.")
@click.option("--value", help="The value, such as 21.5 or OPEN; a random one if not given. Needs --type.")
@click.option("--quiet", is_flag=True, help="Print only the number of each response.")
def send(
    url: str,
    types: tuple[str, ...],
    count: int,
    project: str | None,
    sensor: str | None,
    labels: tuple[tuple[str, str], ...],
    value: str | None,
    quiet: bool,
) -> None:
    """Sign test events with DT_SIGNATURE_SECRET and push them to a receiver, from emulated devices.

    Stops at the first push without a response. Exit code 1 in that case, or if a push was not accepted. With --project,
    --sensor and --label the events pass your filters and fill your label columns.

    \b
    Examples:
      python -m receiver send https://my-app.herokuapp.com --type temperature --count 3
      python -m receiver send http://localhost:8000 --type contact --value OPEN --label site=oslo
    """
    from receiver.simulator import Pusher, Simulator

    secret = read_secret(os.environ, SECRET)
    if secret is None:
        raise ReceiverError(f"{SECRET} is not set; set it to the signature secret of the receiver")
    if not url.startswith(("http://", "https://")):
        raise ReceiverError("the URL must begin with http:// or https://")
    if value is not None and not types:
        raise ReceiverError("--value needs --type: not every type has such a value")
    chosen = types or TYPES
    pusher = Pusher(url, secret)
    simulator = Simulator(project=project or SIMULATED_PROJECT, sensor=sensor, labels=dict(labels), value=value)
    responses: Counter[str] = Counter()
    failed = 0
    for _, body in zip(range(count * len(chosen)), simulator.bodies(chosen), strict=False):
        response = pusher.push(body)
        if not response.status:
            raise ReceiverError(f"{response.text}: is a receiver running at {without_credentials(url)}?")
        failed += response.status != 200
        text = f"{response.status} {cell(response.text)}".rstrip()
        responses[text] += 1
        if not quiet:
            click.echo(f"{response.event_type:<20} {response.event_id}  {text}")
    for text, number in responses.items() if quiet else ():
        click.echo(f"{counted(number, 'event')}: {text}")
    if failed:
        raise ReceiverError(f"the receiver did not accept {failed} of {counted(responses.total(), 'event')}")


def without_credentials(url: str) -> str:
    return re.sub("//[^/]*@", "//", url)


@main.command()
@click.option("--seconds", type=Amount(), help="How long sensors push events: 20, with --console until Ctrl-C.")
@click.option("--rate", type=Amount(), help="Events per second: 20, with --console 1.")
@click.option("--console", is_flag=True, help="Serve the console as well, with sensors that have a month of history.")
def demo(seconds: float | None, rate: float | None, console: bool) -> None:
    """Run a receiver with simulated sensors, and watch events arrive at its sinks or in the console.

    \b
    Examples:
      python -m receiver demo --seconds 60
      python -m receiver demo --console
    """
    from receiver.demo import run, run_console

    if console:
        run_console(seconds, rate or 1.0, click.echo)
    else:
        run(seconds or 20.0, rate or 20.0, click.echo)


def unwatchable_sensors(settings: Settings) -> list[str]:
    """Warnings from the registry of sensors, if there is one. Raises JournalError if it cannot be used."""
    from receiver.sensors.shown import unwatchable

    path = registry_path(settings)
    if not settings.sensors.enabled:
        return []
    if path is not None and not os.path.exists(path):
        admin.require_creatable("registry of sensors", path, "[sensors] url")
        return []
    with closing(open_registry(settings, create=False)) as registry:
        return [] if registry.tables_version() is None else unwatchable(registry)


def show_types(settings: Settings, as_json: bool) -> None:
    from receiver.delivery.plugins import load_plugins

    plugins = load_plugins(settings, redactor())
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
    for problem in plugins.problems:
        click.echo(f"plugin skipped: {redactor().redact(problem)}", err=True)


def _socket(descriptor: int | None) -> socket.socket | None:
    return None if descriptor is None else socket.socket(fileno=descriptor)


for command in (backfill, dead_letters, doctor, events, explain, quarantine, replay, sensors, status):
    main.add_command(command)
for command in (sinks_remove, sinks_resume):
    sinks.add_command(command)
