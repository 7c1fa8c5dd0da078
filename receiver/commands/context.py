"""What all commands need: settings, the journal's records, common options, and errors in one line."""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from receiver.commands.output import print_json
from receiver.errors import ReceiverError
from receiver.redaction import Redactor
from receiver.settings import Settings, load
from receiver.validation import duration

if TYPE_CHECKING:
    from receiver.journal import Records

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors of standard output, or of a file, that cannot be written any more."""

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
YES = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")


class Amount(click.FloatRange):
    """A number that can be waited for: at least 0.001, and finite."""

    def __init__(self) -> None:
        super().__init__(min=0.001)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail("give a finite number", param, ctx)
        return number


class Time(click.ParamType[datetime]):
    """A time: 2026-01-31, 2026-01-31T12:00 (UTC unless it has an offset), or 3h, 2d (ago)."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            if value[-1:] in "smhd":
                return datetime.now(UTC) - timedelta(seconds=duration(value))
            time = datetime.fromisoformat(value)
            return time if time.tzinfo else time.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            self.fail("give a time such as 2026-01-31, 2026-01-31T12:00, 3h or 2d", param, ctx)


class Label(click.ParamType[tuple[str, str]]):
    """A label: NAME=VALUE."""

    name = "label"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        name, equals, text = value.partition("=")
        if not name or not equals:
            self.fail("give a label such as site=oslo", param, ctx)
        return name, text


RENAMED = {
    ("dead", "list"): "dead-letters list",
    ("dead", "retry"): "dead-letters retry",
    ("dead", "drop"): "dead-letters delete",
    ("dead",): "dead-letters",
    ("sinks", "--status"): "status",
    ("sinks", "forget"): "sinks remove",
}
"""The old names of commands, and the new ones."""


class Commands(click.Group):
    """All commands. They end with one line for each error of the receiver, and exit code 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ReceiverError as error:
            for line in redactor(context).redact(str(error)).splitlines():
                click.echo(f"error: {line}", err=True)
            context.exit(1)
        except UnicodeEncodeError:
            click.echo("error: an argument is not valid text", err=True)
            context.exit(1)
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            click.echo(f"error: cannot write: {error.strerror}", err=True)
            context.exit(1)

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """A command that was renamed ends with a line that names the new one, and exit code 2."""
        "".join(arguments).encode()  # raises UnicodeEncodeError before the journal does, which would log a traceback
        for old, new in RENAMED.items():
            if tuple(arguments[: len(old)]) == old:
                click.echo(f"error: `{' '.join(old)}` is now called `{new}`", err=True)
                context.exit(2)
        return super().resolve_command(context, arguments)


def load_settings(*, secret_required: bool = False, file_required: bool = True) -> Settings:
    """The settings; from then on, no error line shows their secrets. Raises ConfigError."""
    settings = load(secret_required=secret_required, file_required=file_required)
    redactor().hide(settings.secret_values)
    return settings


def redactor(context: click.Context | None = None) -> Redactor:
    """The redactor of the running command."""
    root = (context or click.get_current_context()).find_root()
    root.obj = root.obj or Redactor()
    found: Redactor = root.obj
    return found


def open_journal_records(settings: Settings, *, create_tables: bool = True) -> Records:
    """The journal's records, closed at the end of the command. Raises JournalError."""
    from receiver.journal import open_records

    records = open_records(settings, create_tables=create_tables)
    click.get_current_context().call_on_close(records.close)
    return records


def confirm(question: str, number: int, yes: bool) -> None:
    """Ask before `number` things are deleted or sent again, unless there are none. Aborts the command without a yes."""
    if number and not yes:
        click.confirm(question, abort=True, err=True)


def show_group(context: click.Context, as_json: bool) -> bool:
    """Whether a group shows what it has itself, as no command of it was given."""
    if context.invoked_subcommand and as_json:
        raise click.UsageError(f"--json belongs after `{context.invoked_subcommand}`, if that has it")
    return context.invoked_subcommand is None


def report(result: Mapping[str, object], text: str, as_json: bool) -> None:
    """Show what a command did: a line for people, or an object."""
    if as_json:
        print_json(result)
    else:
        click.echo(text)
