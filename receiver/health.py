"""What operators should know: errors that keep the receiver from working, and warnings.

`check`, the log at the start and `/readyz` show them. Secrets are not hidden yet in these sentences, except by
Readiness.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from receiver.errors import JournalError, JournalUnavailable
from receiver.journal import Counts, Journal, SinkState, open_records
from receiver.listener import is_in_use
from receiver.logs import printable
from receiver.redaction import Redactor
from receiver.settings import SECRET, Settings

WEAK_SECRET_BYTES = 32
"""The output of SHA-256: a shorter HMAC key is the weakest part of the signature (RFC 2104, section 3)."""

QUOTES = ('""', "''", "``", "\u201c\u201d", "\u201e\u201c", "\u2018\u2019", "\u00ab\u00bb")

DISPATCHER_SILENT_SECONDS = 30
"""A dispatcher that reports nothing for so long is blocked by a plugin; its supervisor kills it."""

READINESS_SECONDS = 1.0
"""How long a result is reused: a check takes a commit, and anyone may ask for one."""


class Readiness:
    """Errors and warnings for `/readyz`, checked at most once a second."""

    def __init__(self, settings: Settings, journal: Journal, redactor: Redactor) -> None:
        self._settings = settings
        self._journal = journal
        self._redactor = redactor
        self._lock = threading.Lock()
        self._result: tuple[list[str], list[str]] = ([], [])
        self._checked_at = float("-inf")

    def get(self) -> tuple[list[str], list[str]]:
        """Errors, for which the receiver is not ready, and warnings; without secrets."""
        with self._lock:
            if time.monotonic() - self._checked_at > READINESS_SECONDS:
                self._result = self._check()
                self._checked_at = time.monotonic()
            return self._result

    def _check(self) -> tuple[list[str], list[str]]:
        errors, warnings = check_readiness(self._settings, self._journal)
        redact = self._redactor.redact
        return [redact(error) for error in errors], [redact(warning) for warning in warnings]


def check_readiness(settings: Settings, journal: Journal) -> tuple[list[str], list[str]]:
    """Why pushes cannot be stored or delivered now, and what else an operator should know."""
    errors, warnings = [], unused_variables(settings) + journal_on_dyno(settings)
    try:
        journal.check_writable()
        dispatcher = journal.liveness()
        if dispatcher is None or time.time() - dispatcher.at > DISPATCHER_SILENT_SECONDS:
            errors.append("no dispatcher is alive")
        else:
            warnings += dispatcher.warnings
        warnings += paused_sinks(settings, journal.sink_states())
        warnings += removed_sinks(settings, journal.counts())
    except JournalUnavailable as error:
        errors.append(f"the journal is unavailable: {error}")
    return errors, warnings


def configuration_warnings(settings: Settings) -> list[str]:
    """What works but is probably a mistake, as far as the settings and a replaced journal show it."""
    token = settings.receiver.metrics_token
    return [
        *unused_variables(settings),
        *weak_secrets(settings),
        *odd_secrets(settings.secrets),
        *odd_secrets({"[receiver] metrics_token": token.get_secret_value()} if token else {}),
        *no_sinks(settings),
        *journal_on_dyno(settings),
        *replaced_journal(settings),
    ]


def weak_secrets(settings: Settings) -> list[str]:
    return [
        f"{name} is shorter than {WEAK_SECRET_BYTES} bytes; a longer one is harder to guess"
        for name, secret in settings.secrets.items()
        if len(secret.encode()) < WEAK_SECRET_BYTES
    ]


def unused_variables(settings: Settings) -> list[str]:
    """A warning for each variable that begins like a signature secret and is none, with the name it could have."""
    warnings = []
    for name in settings.unused_variables:
        words = re.findall("[A-Z0-9]+", name.upper().removeprefix(SECRET))
        ending = "_FILE" if words[-1:] == ["FILE"] else ""
        while words[-1:] == ["FILE"]:
            words.pop()
        right = SECRET + ("__" + "_".join(words) if words else "") + ending
        warnings.append(f"{printable(name)} is not used; if it is meant as a secret, name it {right}")
    return warnings


def odd_secrets(secrets: Mapping[str, str]) -> list[str]:
    """A warning, which does not show it, for each secret that is probably not what the other side has."""
    return [
        f"{name} {oddity}; correct it unless that is part of the secret"
        for name, secret in secrets.items()
        if (oddity := _oddity(secret))
    ]


def _oddity(secret: str) -> str | None:
    if secret != secret.strip():
        return "begins or ends with whitespace"
    if len(secret) > 1 and secret[0] + secret[-1] in QUOTES:
        return "is in quotes"
    return None if secret.isprintable() else "contains a line end or an invisible character"


def no_sinks(settings: Settings) -> list[str]:
    if any(sink.common.enabled for sink in settings.sinks):
        return []
    return [f"no sink is enabled in {settings.path.name}: events are stored but delivered nowhere"]


def journal_on_dyno(settings: Settings) -> list[str]:
    """A Heroku dyno loses its disk at each restart."""
    if not settings.on_dyno or settings.database_url is not None:
        return []
    return [
        "the journal is on the dyno's disk, which is lost at each restart together with all pending events; "
        "run `heroku addons:create heroku-postgresql:essential-0`"
    ]


def local_files(settings: Settings, paths: Mapping[str, Path | None]) -> list[str]:
    """A warning for each sink that stores its events on a dyno's disk; `paths` are their files by sink name."""
    if not settings.on_dyno:
        return []
    return [
        f"sink {name} writes to the dyno's disk, and its file is lost at each restart; "
        f'replace [sinks.{name}] with one of type = "sql" and url = {{ env = "DATABASE_URL" }}'
        for name, path in paths.items()
        if path is not None
    ]


def port_in_use(settings: Settings) -> list[str]:
    """A warning if something listens there. Raises ReceiverError for an address where nothing can."""
    host, port = settings.receiver.host, settings.port
    if not is_in_use(host, port):
        return []
    return [
        f"{host} port {port} is in use, perhaps by this receiver itself; if it does not run, stop the program that "
        "uses it, or set PORT to another one"
    ]


def replaced_journal(settings: Settings) -> list[str]:
    """A warning for an SQLite journal that DATABASE_URL has replaced and that has undelivered events."""
    if settings.database_url is None or not settings.journal_path.exists():
        return []
    with suppress(JournalError), closing(open_records(replace(settings, database_url=None))) as records:
        if left := undelivered(records.counts()):
            return [
                f"the journal {settings.journal_path} is not used while DATABASE_URL is set, and has {left} pending "
                "deliveries; run `python -m receiver deliver` without DATABASE_URL until none is pending"
            ]
    return []


def undelivered(counts: Counts) -> int:
    return counts.unrouted + sum(count.pending for count in counts.sinks.values())


def paused_sinks(settings: Settings, states: Mapping[str, SinkState]) -> list[str]:
    enabled = {sink.name for sink in settings.enabled_sinks}
    return [
        f"sink {state.name} is paused: {state.pause_reason}"
        for state in states.values()
        if state.pauses and state.name in enabled
    ]


def removed_sinks(settings: Settings, counts: Counts) -> list[str]:
    enabled = {sink.name for sink in settings.enabled_sinks}
    return [
        f"sink {name} is no longer enabled and has {count.pending} pending deliveries; enable it, or delete them "
        f"with `python -m receiver sinks remove {name}`"
        for name, count in counts.sinks.items()
        if count.pending and name not in enabled
    ]
