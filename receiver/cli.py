"""The commands; each only calls what does the work, and turns an error of ours into one line and exit code 1."""

from __future__ import annotations

import inspect
import itertools
import os
import sys
from typing import Any

import click

from receiver import __version__, logs
from receiver.errors import ConfigError, ReceiverError
from receiver.event import TYPES
from receiver.settings import SECRET, Settings, load


class OneLineErrors(click.Group):
    """A group whose commands end with a line and exit code 1 where they raise an error of ours."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ReceiverError as error:
            for line in str(error).splitlines():
                click.echo(f"error: {line}", err=True)
            context.exit(1)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="receiver")
def main() -> None:
    """Takes the signed events of DT Data Connectors, keeps them safe, and hands each to every enabled sink.

    Settings are read from config.toml in this folder, or from the file named in RECEIVER_CONFIG.
    """


@main.command()
def serve() -> None:
    """Receive pushes and deliver them.

    \b
    Example:
      DT_SIGNATURE_SECRET=... PORT=8000 python -m receiver serve
    """
    from receiver import server

    settings = _settings()
    sys.exit(server.serve(settings))


@main.command()
def deliver() -> None:
    """Deliver what is in the journal, without receiving.

    \b
    Example, where [receiver] has deliver = false for the processes that receive:
      python -m receiver deliver
    """
    from receiver import server

    server.deliver(_settings(secret_required=False))


@main.command()
def check() -> None:
    """Check config.toml, the environment, every plugin and every sink, and name all problems.

    \b
    Example:
      python -m receiver check
    """
    from receiver.plugins import build_sink, load_plugins

    problems: list[str] = []
    try:
        settings = load()
    except ConfigError as error:
        raise ConfigError(list(error.problems)) from None
    plugins = load_plugins(settings)
    problems += [f"plugin {fault}" for fault in plugins.faults]
    for sink in settings.sinks:
        try:
            if sink.common.enabled:
                build_sink(plugins, settings, sink)
            else:
                problems += sink.faults
        except ReceiverError as error:
            problems += str(error).splitlines()
    if problems:
        raise ConfigError([settings.redact(problem) for problem in problems])
    names = ", ".join(sink.name for sink in settings.enabled_sinks) or "none"
    click.echo(f"{settings.path.name} is right. Enabled sinks: {names}. Signature secrets: {len(settings.secrets)}.")


@main.command()
def sinks() -> None:
    """Show the sink types on offer, with their options.

    \b
    Example:
      python -m receiver sinks
    """
    from receiver.plugins import load_plugins

    plugins = load_plugins(load(secret_required=False))
    for name, sink_type in sorted(plugins.types.items()):
        click.secho(name, bold=True, nl=False)
        click.echo(f"  ({sink_type.source})")
        click.echo(inspect.getdoc(sink_type.cls) or "No description.")
        click.echo()
    for fault in plugins.faults:
        click.echo(f"left out: {fault}", err=True)


@main.command()
@click.argument("url")
@click.option("--type", "types", multiple=True, type=click.Choice(TYPES), help="Event type; every type if not given.")
@click.option("--count", default=1, show_default=True, help="How many events of each type.")
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
        click.echo(f"{answer.event_type:<20} {answer.event_id}  {answer.status or '---'} {answer.text}")
    if failed:
        raise ReceiverError(f"{failed} of {count * len(chosen)} events were not taken")


@main.command()
@click.option("--seconds", default=20.0, show_default=True, help="How long sensors push events.")
@click.option("--rate", default=20.0, show_default=True, help="Events a second.")
def demo(seconds: float, rate: float) -> None:
    """Run a receiver with simulated sensors, and watch events arrive and sinks fill.

    \b
    Example:
      python -m receiver demo --seconds 60
    """
    from receiver.demo import run

    run(seconds, rate, click.echo)


def _settings(*, secret_required: bool = True) -> Settings:
    settings = load(secret_required=secret_required)
    logs.set_up(settings)
    return settings
