"""How commands print rows: as an aligned table, in bold on a terminal only, or as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

import click

from receiver.delivery.sink_type import SinkType
from receiver.event import rfc3339
from receiver.validation import in_one_unit

SECONDS = "_seconds"
"""The end of the name of a field that is a duration: it is shown in its largest unit."""


def show(rows: Sequence[Any], *, as_json: bool, none: str, hide: Sequence[str] = ()) -> None:
    """Print dataclasses as a table, or as a JSON list. Without rows, the table is replaced by the text `none`."""
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo(none)
    else:
        names = [field.name for field in dataclasses.fields(rows[0]) if field.name not in hide]
        cells = [[_cell_of(name, getattr(row, name)) for name in names] for row in rows]
        names = [name.removesuffix(SECONDS) for name in names]
        used = [n for n in range(len(names)) if any(line[n] != "-" for line in cells)]
        widths = [max(len(line[n]) for line in [names, *cells]) for n in used]
        heading = "  ".join(names[n].rstrip("_").ljust(width) for n, width in zip(used, widths, strict=True)).rstrip()
        click.secho(heading.replace("_", " "), bold=True)
        for line in cells:
            click.echo("  ".join(line[n].ljust(width) for n, width in zip(used, widths, strict=True)).rstrip())


def _cell_of(name: str, value: Any) -> str:
    return in_one_unit(value) if name.endswith(SECONDS) and value is not None else cell(value)


def show_type(sink_type: SinkType) -> None:
    """Print what a user needs to know about a sink type: what it does, its options, and a table to paste."""
    click.secho(sink_type.name, bold=True, nl=False)
    click.echo(f"  ({sink_type.source})")
    click.echo(f"{sink_type.summary() or 'No description.'}\n")
    for option in sink_type.described():
        default = "required" if option.required else f"default {option.default}" if option.default else "optional"
        click.echo(f"  {option.name}  ({option.type}, {default})")
        if option.meaning:
            click.echo(click.wrap_text(option.meaning, 100, "      ", "      "))
    click.echo(f"\n{sink_type.example()}\n")


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(plain(value), indent=2))


def plain(value: Any) -> Any:
    """A value that can be written as JSON: dataclasses as objects, times as RFC 3339, bytes as text.

    A field that would be a keyword of Python has a `_` at its end, which is left out.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name.rstrip("_"): plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return rfc3339(value, "milliseconds")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def cell(value: Any) -> str:
    """A value as shown in a table."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return rfc3339(value, "seconds")
    if isinstance(value, tuple):
        return ", ".join(map(cell, value)) or "-"
    if isinstance(value, float):
        return f"{value:.0f}"
    return "".join(character if character.isprintable() else " " for character in str(value))
