"""What operators should know: errors that keep the receiver from working, and warnings.

`check`, the log at the start and `/readyz` show them. Secrets are not hidden yet in these sentences, except by
Readiness.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from receiver.errors import JournalError, JournalUnavailable
from receiver.journal import Counts, Journal, Liveness, Records, SinkState, TablesVersion, open_records, tables_version
from receiver.listener import is_in_use
from receiver.logs import printable
from receiver.redaction import Redactor
from receiver.settings import Settings
from receiver.urls import is_loopback
from receiver.validation import counted
from receiver.variables import CONSOLE_PASSWORDS, SECRET

if TYPE_CHECKING:
    from receiver.keys import StoredKeys

WEAK_SECRET_BYTES = 32
"""The output of SHA-256: a shorter HMAC key is the weakest part of the signature (RFC 2104, section 3)."""

CONSOLE_PASSWORD_CHARACTERS = 12
"""A wrong password takes a second, but many can be tried at once."""

QUOTES = ('""', "''", "``", "\u201c\u201d", "\u201e\u201c", "\u2018\u2019", "\u00ab\u00bb")
VARIABLE = "[A-Z][A-Z0-9]*_[A-Z0-9_]*"
"""The name of a variable of the environment. Without an underscore it may be the beginning of a random secret."""

DISPATCHER_SILENT_SECONDS = 30
"""A dispatcher that reports nothing for so long is blocked by a plugin; its supervisor kills it."""

READINESS_SECONDS = 1.0
"""How long a result is reused: a check takes a commit, and anyone may ask for one."""


@dataclass(frozen=True)
class Findings:
    """Why the receiver is not ready, which sinks need an operator, and what else an operator should know."""

    errors: Sequence[str] = ()
    of_sinks: Sequence[str] = ()
    warnings: Sequence[str] = ()


class Readiness:
    """Findings for `/readyz`, checked at most once a second."""

    def __init__(self, settings: Settings, journal: Journal, redactor: Redactor) -> None:
        self._settings = settings
        self._journal = journal
        self._redactor = redactor
        self._lock = threading.Lock()
        self._result = Findings()
        self._checked_at = float("-inf")

    def get(self) -> Findings:
        """What was found, without secrets."""
        with self._lock:
            if time.monotonic() - self._checked_at > READINESS_SECONDS:
                self._result = self._check()
                self._checked_at = time.monotonic()
            return self._result

    def _check(self) -> Findings:
        found = check_readiness(self._settings, self._journal)
        lists = (found.errors, found.of_sinks, found.warnings)
        return Findings(*([self._redactor.redact(line) for line in lines] for lines in lists))


def check_readiness(settings: Settings, journal: Journal) -> Findings:
    """Why pushes cannot be stored or delivered now, and what else an operator should know."""
    warnings = unused_variables(settings) + journal_on_dyno(settings)
    try:
        journal.check_writable()
        liveness, counts = journal.liveness(), journal.counts()
        of_keys = signing_keys(settings, journal)
        errors = [*([] if is_alive(liveness) else ["no dispatcher is alive"]), *of_keys[0]]
        of_sinks = paused_sinks(settings, journal.sink_states()) + dead_letters(settings, counts)
        warnings += [*dispatcher_warnings(liveness), *removed_sinks(settings, counts), *of_keys[1]]
        return Findings(errors, of_sinks, warnings)
    except JournalUnavailable as error:
        return Findings([f"the journal is unavailable: {error}"], (), warnings)


def signing_keys(settings: Settings, journal: Journal | Records) -> tuple[list[str], list[str]]:
    """Errors and warnings about DT's own keys; without usable ones, pushes are verified by a secret or not at all."""
    if not settings.organizations:
        return [], []
    from receiver.keys import StoredKeys  # DT's client library, which the others need not load

    stored, now = StoredKeys.read(journal, settings.issuer), time.time()
    line = _age_of_keys(stored, now)
    if line is None:
        return [], []
    return ([], [line]) if stored.usable(now) or settings.secrets else ([line], [])


def _age_of_keys(stored: StoredKeys, now: float) -> str | None:
    """What to know about keys that have not been fetched for a day; None if they have."""
    from receiver.keys import MAX_AGE_SECONDS, OLD_SECONDS

    age = stored.age(now)
    if age <= OLD_SECONDS:
        return None
    reason = f": {stored.reason}" if stored.reason else ""
    if stored.fetched_at is None:
        return f"DT's signing keys have not been fetched yet{reason}"
    line = f"DT's signing keys were last fetched {age // 86400:.0f} d ago{reason}"
    limit = f"{MAX_AGE_SECONDS / 86400:.0f} d"
    return f"{line}; they are used for {limit}" if stored.usable(now) else f"{line}; after {limit} they are not used"


def is_alive(liveness: Liveness | None) -> bool:
    """Whether a dispatcher has reported recently."""
    return liveness is not None and time.time() - liveness.at <= DISPATCHER_SILENT_SECONDS


def dispatcher_warnings(liveness: Liveness | None) -> Sequence[str]:
    """What the dispatchers that are alive warn about, such as a sink whose call does not return."""
    return liveness.warnings if liveness is not None and is_alive(liveness) else ()


def configuration_warnings(settings: Settings) -> list[str]:
    """What works but is probably a mistake, as far as the settings and a replaced journal show it."""
    token = settings.receiver.metrics_token
    return [
        *unused_variables(settings),
        *weak_secrets(settings),
        *odd_secrets(settings.secrets),
        *odd_secrets({"[receiver] metrics_token": token.get_secret_value()} if token else {}),
        *console_warnings(settings),
        *no_sinks(settings),
        *journal_on_dyno(settings),
        *replaced_journal(settings),
        *service_account(settings),
    ]


def service_account(settings: Settings) -> list[str]:
    """What keeps DT's REST API from being used, if it is to be."""
    api, missing = settings.api, settings.api.missing
    if missing and settings.sensors.enabled and settings.sensors.backfill:
        return [f"[sensors] backfill needs {', '.join(missing)}; set them, or remove it"]
    if missing and (api.key_id or api.secret or api.email):
        return [f"the service account has no effect without {' and '.join(missing)}; set them, or remove the others"]
    return odd_secrets({"DT_SERVICE_ACCOUNT_KEY_ID": api.key_id, "DT_SERVICE_ACCOUNT_SECRET": api.secret})


def weak_secrets(settings: Settings) -> list[str]:
    return [
        f"{name} is shorter than {WEAK_SECRET_BYTES} bytes; a longer one is harder to guess"
        for name, secret in settings.secrets.items()
        if len(secret.encode()) < WEAK_SECRET_BYTES
    ]


def console_warnings(settings: Settings) -> list[str]:
    """What makes the console easy to get into, or keeps it off."""
    by_name = {CONSOLE_PASSWORDS[user]: password for user, password in settings.console_passwords.items()}
    if not by_name:
        return []
    if "admin" not in settings.console_passwords:
        return ["CONSOLE_VIEWER_PASSWORD has no effect: without CONSOLE_PASSWORD there is no console"]
    warnings = [
        f"{name} is shorter than {CONSOLE_PASSWORD_CHARACTERS} characters; a longer one is harder to guess"
        for name, password in by_name.items()
        if len(password) < CONSOLE_PASSWORD_CHARACTERS
    ]
    if len(set(by_name.values())) < len(by_name):
        warnings.append("CONSOLE_VIEWER_PASSWORD is the same as CONSOLE_PASSWORD, so whoever may look may change, too")
    if not settings.trusted_proxies and not is_loopback(settings.receiver.host):
        warnings.append(
            f"the console is offered over plain HTTP on {settings.receiver.host}, where its password can be read on "
            'the way; let a proxy with TLS connect, and set [receiver] host = "127.0.0.1", or trusted_proxies if the '
            "proxy is on another machine"
        )
    return [*warnings, *odd_secrets(by_name)]


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
    if re.match(rf"(export )?{VARIABLE}=[^=]", secret):
        return "begins with the name of a variable"
    if re.fullmatch(rf"\$?\{{\{{.+\}}\}}|\$\{{.+\}}|\${VARIABLE}|%{VARIABLE}%", secret):
        return "is a reference to a variable, and not its value"
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
    if settings.database_url is None or not os.path.exists(settings.journal_path):
        return []
    replaced = replace(settings, database_url=None)
    warning = f"the journal {settings.journal_path} is not used while DATABASE_URL is set, and "
    remedy = "run `python -m receiver deliver --until-empty` without DATABASE_URL"
    with suppress(JournalError):
        if old_tables(tables_version(replaced)):
            return [f"{warning}may have pending deliveries of an older receiver; {remedy}"]
        with closing(open_records(replaced, create_tables=False)) as records:
            if left := undelivered(settings, records.counts()):
                return [f"{warning}has {counted(left, 'pending delivery', 'pending deliveries')}; {remedy}"]
    return []


def undelivered(settings: Settings, counts: Counts) -> int:
    """How many deliveries are pending at enabled sinks, and how many events are not routed yet."""
    return counts.unrouted + sum(
        counts.sinks[sink.name].pending for sink in settings.enabled_sinks if sink.name in counts.sinks
    )


def old_tables(version: TablesVersion) -> list[str]:
    """A warning for a journal of an older receiver."""
    if version.found is None or version.found == version.latest:
        return []
    return [f"the journal's tables are of version {version.found}; `migrate` or the next start upgrades them"]


def paused_sinks(settings: Settings, states: Mapping[str, SinkState]) -> list[str]:
    enabled = {sink.name for sink in settings.enabled_sinks}
    return [
        f"sink {state.name} is paused: {state.pause_reason}"
        for state in states.values()
        if state.pauses and state.name in enabled
    ]


def dead_letters(settings: Settings, counts: Counts) -> list[str]:
    return [
        f"sink {sink.name} has {counted(counts.sinks[sink.name].dead, 'dead letter')}"
        for sink in settings.enabled_sinks
        if sink.name in counts.sinks and counts.sinks[sink.name].dead
    ]


def removed_sinks(settings: Settings, counts: Counts) -> list[str]:
    enabled = {sink.name for sink in settings.enabled_sinks}
    return [
        f"sink {name} is no longer enabled and has {counted(count.pending, 'pending delivery', 'pending deliveries')}; "
        f"enable it, or run `python -m receiver sinks remove {name}` to delete what is pending"
        for name, count in counts.sinks.items()
        if count.pending and name not in enabled
    ]
