"""What `check` says of filters, of the folder of the journal, and of the use of secrets and keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from receiver.admin.shown import ago, to_time
from receiver.errors import ReceiverError
from receiver.event import TYPES
from receiver.folders import why_not_writable
from receiver.journal import Records
from receiver.settings import Filter, Settings
from receiver.validation import counted, nearest
from receiver.variables import ORGANIZATION_ID

SAFE_TO_REMOVE_SECONDS = 24 * 3600
"""DT retries a push for 12 hours; a secret without which pushes were verified for twice as long is not needed."""


def unknown_event_types(settings: Settings) -> list[str]:
    """A warning for each event type in a filter that DT does not document."""
    return [
        f"{settings.path.name} [sinks.{sink.name}]: filter.event_types: {line}"
        for sink in settings.sinks
        for line in undocumented(sink.common.filter.event_types or ())
    ]


def unmatchable_filters(settings: Settings) -> list[str]:
    """A problem for each condition of an enabled sink that no event can meet."""
    return [
        f"{settings.path.name} [sinks.{sink.name}]: filter.{line}"
        for sink in settings.enabled_sinks
        for line in _unmatchable(sink.common.filter)
    ]


def _unmatchable(condition: Filter) -> list[str]:
    ids = {"devices": condition.devices or (), "projects": condition.projects or ()}
    empty = [key for key, names in dict(condition).items() if names == ()]
    return [
        *(f"{key} = [] matches no event; name some, or remove it" for key in empty),
        *(
            f"{key}: {name!r} matches no event; give the id alone, {name.rpartition('/')[2]!r}"
            for key, names in ids.items()
            for name in names
            if "/" in name
        ),
    ]


def undocumented(types: Sequence[str]) -> list[str]:
    """A line for each event type that DT does not document, with the nearest one that it does."""
    return [f"DT documents no event type {name!r}{nearest(name, TYPES)}" for name in types if name not in TYPES]


def require_creatable(what: str, path: Path, option: str) -> None:
    """Raise ReceiverError if a file that does not exist cannot be created."""
    if problem := why_not_writable(path):
        raise ReceiverError(f"{what} {problem}; correct that, or set another {option}")


def secrets_used(records: Records | None, settings: Settings) -> list[str]:
    """If pushes can be verified in several ways, a line for each: when it last verified one."""
    used = records.counts().secrets if records else {}
    names = [*settings.secrets, *([ORGANIZATION_ID] if settings.organizations else [])]
    former = {name: name.replace("__", "_", 1) for name in names}  # further secrets had one underscore
    last_use = {name: max(used.get(name, 0.0), used.get(former[name], 0.0)) for name in names}
    newest = max(last_use.values(), default=0.0)
    lines = []
    for name, last_at in last_use.items() if settings.organizations or len(names) > 1 else ():
        if not last_at:
            lines.append(f"{name} has not been used yet")
        elif name in settings.secrets and newest - last_at > SAFE_TO_REMOVE_SECONDS:
            lines.append(f"{name} was last used {to_time(last_at):%Y-%m-%d %H:%M} UTC; it is safe to remove")
        else:
            lines.append(f"{name} was last used {to_time(last_at):%Y-%m-%d %H:%M} UTC")
    return lines


def signing_keys(records: Records | None, settings: Settings) -> list[str]:
    """If pushes are verified by DT's own keys: for which organizations, and how old the keys are."""
    if not settings.organizations:
        return []
    from receiver.keys import StoredKeys  # DT's client library, which other commands need not load

    stored = StoredKeys.read(records, settings.issuer) if records else StoredKeys()
    fetched = "not fetched yet" if stored.fetched_at is None else f"fetched {ago(to_time(stored.fetched_at))}"
    organizations = counted(len(settings.organizations), "organization", "organizations")
    return [
        f"DT's signing keys: {len(stored.keys)}, {fetched}; for {organizations}: "
        f"{', '.join(sorted(settings.organizations))}"
    ]
