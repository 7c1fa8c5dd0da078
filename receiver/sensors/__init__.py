"""The registry of sensors: what each one last reported, which ones are silent, what was missed.

It is fed by the dispatcher as the sink `sensors`, and read by commands, metrics and pages. `open_registry` opens it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from receiver.journal import open_database
from receiver.settings import Settings

if TYPE_CHECKING:
    from receiver.sensors.registry import Registry

__all__ = ["open_registry", "registry_path"]


def open_registry(settings: Settings, *, create: bool = True) -> Registry:
    """The registry that the settings name; its tables are created or upgraded. Raises JournalError.

    Open it after a fork, never before. Without `create` the tables must exist.
    """
    from receiver.sensors.registry import Registry
    from receiver.sensors.watch import Rules

    table = settings.sensors
    path = registry_path(settings)
    url = None if path else table.url.get_secret_value() if table.url else settings.database_url
    rules = Rules(table.silent_after, max(1, round(table.settle / 60)))
    setting = "[sensors] url" if table.url else "DATABASE_URL"
    return Registry(open_database(url, path or Path(), setting=setting), rules, table.history_days, create=create)


def registry_path(settings: Settings) -> Path | None:
    """The SQLite file of the registry; None if it is in a PostgreSQL database."""
    url = settings.sensors.url.get_secret_value() if settings.sensors.url else None
    if url is not None:
        return settings.folder / url.removeprefix("sqlite:///") if url.startswith("sqlite:///") else None
    return None if settings.database_url else settings.journal_path.with_name("sensors.sqlite")
