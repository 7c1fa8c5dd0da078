"""Puts the program together: which processes run, and what is in each of them.

Plugins, and what calls them, are imported only in the process that delivers.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from receiver.errors import JournalError, JournalUnavailable
from receiver.health import DISPATCHER_SILENT_SECONDS, configuration_warnings, local_files, odd_secrets
from receiver.intake.counters import FOLDER, counters_folder
from receiver.journal import Journal, open_journal
from receiver.lifeline import Lifeline
from receiver.listener import listen
from receiver.redaction import Redactor
from receiver.settings import Settings
from receiver.supervisor import Child, Supervisor
from receiver.validation import counted

if TYPE_CHECKING:
    from receiver.delivery.backfill_thread import BackfillThread
    from receiver.delivery.crash_guard import CrashGuard

log = logging.getLogger(__name__)

DATABASE_AWAY_SECONDS = 45.0
"""How long to wait at the start for an unavailable database: less than Heroku's 60 s to bind the port."""

CONNECT_AGAIN_SECONDS = 1.0

LOOK_SECONDS = 1.0
"""How often to look whether there is anything left to deliver."""

DISPATCHER_NICENESS = 5
"""With more pushes than the processors can take, responses come before deliveries."""


FOR_ANOTHER_GUNICORN = ("FORWARDED_ALLOW_IPS", "SCRIPT_NAME", "GUNICORN_PID", "GUNICORN_FD")
"""Variables in which gunicorn finds proxies, another path than / for all requests, or sockets of a previous master."""


def serve(
    settings: Settings,
    redactor: Redactor,
    lifeline: Lifeline | None = None,
    listener: socket.socket | None = None,
) -> int:
    """Receive and deliver until SIGTERM, SIGINT or SIGHUP, or until `lifeline` is closed at its other end.

    Returns the exit code. Listens on the configured address, or on a bound `listener`. Raises ReceiverError when it
    cannot start.
    """
    with counters_folder(settings.journal_path.parent) as counters:
        os.environ[FOLDER] = str(counters)
        prepare_intake(settings)
        listener = listener or listen(settings.receiver.host, settings.port)
        address = listener.getsockname()
        log.info("receiving on %s port %d", address[0], address[1])
        children = [Child("intake", lambda lifeline: receive(settings, listener, lifeline), silent_seconds=None)]
        if settings.receiver.deliver:
            children.append(dispatcher(settings, redactor, listener))
        Supervisor(children, lifeline or Lifeline(), listener).run()
        return 0


def deliver(settings: Settings, redactor: Redactor, *, until_empty: bool = False) -> int:
    """Deliver until SIGTERM, SIGINT or SIGHUP, without receiving; with `until_empty` also until nothing is left.

    Returns the exit code, which is 1 if it should have delivered everything and has not. Raises ReceiverError when it
    cannot start.
    """
    lifeline = UntilEmpty(settings) if until_empty else Lifeline()
    lifeline.catch_signals()
    wait_for_journal(settings, lifeline)
    with closing(open_journal(settings, create_tables=False)) as journal:
        if not journal.may_dispatch():
            raise JournalError(
                "another process delivers from this journal, and SQLite allows one: stop it first, or set "
                "[receiver] deliver = false for `serve` and restart that"
            )
    log.info("delivering")
    Supervisor([dispatcher(settings, redactor)], lifeline).run()
    if not until_empty:
        return 0
    left = undelivered(settings)
    for line in left:
        log.error("stopped with %s", line)
    if not left:
        log.info("nothing is pending at the enabled sinks")
    return 1 if left else 0


class UntilEmpty(Lifeline):
    """The lifeline of a supervisor that stops when nothing is left to deliver."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._looked_at = float("-inf")

    def stopping(self) -> bool:
        return super().stopping() or self._nothing_left()

    def _nothing_left(self) -> bool:
        if time.monotonic() - self._looked_at < LOOK_SECONDS:
            return False
        try:
            return not undelivered(self._settings)
        except JournalUnavailable:
            return False
        finally:
            self._looked_at = time.monotonic()


def undelivered(settings: Settings) -> list[str]:
    """A line for each reason why enabled sinks do not have all events yet. Raises JournalError."""
    with closing(open_journal(settings, create_tables=False)) as journal:  # before each fork it is closed again
        counts, behind = journal.counts(), journal.sinks_behind()
    lines = [f"{counted(counts.unrouted, 'event')} that no sink has yet"] if counts.unrouted else []
    for sink in settings.enabled_sinks:
        if sink.name in counts.sinks and (pending := counts.sinks[sink.name].pending):
            lines.append(f"{counted(pending, 'pending delivery', 'pending deliveries')} at sink {sink.name}")
        if sink.name in behind:
            lines.append(f"events that sink {sink.name} does not get while its filter is invalid")
    return lines


def prepare_intake(settings: Settings) -> None:
    """Find out now what would keep intake from working; what is imported here is shared by all processes."""
    leave_removed_folder()
    os.environ["WEB_CONCURRENCY"] = str(settings.workers)  # gunicorn reads it at import, and fails if it is empty
    for name in FOR_ANOTHER_GUNICORN:
        os.environ.pop(name, None)
    import receiver.intake.web_server  # noqa: F401  # forked processes share its memory and start at once

    for warning in configuration_warnings(settings):
        log.warning("%s", warning)
    wait_for_journal(settings)
    gc.freeze()  # or each process would copy what is shared as soon as its garbage collector looks at it


def leave_removed_folder() -> None:
    """Go elsewhere if the current folder was removed: gunicorn needs one. Relative paths count from config.toml."""
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir("/")


def receive(settings: Settings, listener: socket.socket, lifeline: Lifeline) -> None:
    """The process of intake: receive until the lifeline asks to stop."""
    from receiver.intake import web_server

    leave_removed_folder()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])  # gunicorn would restart its workers while it stops
    web_server.run(settings, listener, lifeline)


def dispatcher(settings: Settings, redactor: Redactor, listener: socket.socket | None = None) -> Child:
    """The dispatcher as a child process. After a crash its successor has the same holder of claims."""
    from receiver.delivery.crash_guard import CrashGuard

    holder = uuid.uuid4().hex
    crash_guard = CrashGuard()

    def work(lifeline: Lifeline) -> None:
        if listener is not None:
            listener.close()  # or it would keep the port after the end of intake
            os.nice(DISPATCHER_NICENESS)
        dispatch(settings, redactor, lifeline, holder, crash_guard)

    return Child("dispatcher", work, DISPATCHER_SILENT_SECONDS)


def backfills_of(settings: Settings, journal: Journal) -> Sequence[BackfillThread]:
    """What asks DT for missed events, if there is a registry that knows what was missed."""
    from receiver.delivery.automatic_backfill import AutomaticBackfill
    from receiver.delivery.requested_backfill import BackfillOnRequest

    if not settings.sensors.enabled:
        return ()
    asked = () if settings.api.missing else (BackfillOnRequest(settings, journal),)
    return (*asked, *((AutomaticBackfill(settings, journal),) if settings.sensors.backfill else ()))


def dispatch(settings: Settings, redactor: Redactor, lifeline: Lifeline, holder: str, crash_guard: CrashGuard) -> None:
    """The process of the dispatcher: deliver until the lifeline asks to stop."""
    from receiver.delivery.dispatcher import Dispatcher
    from receiver.delivery.plugins import load_plugins
    from receiver.delivery.registry import Judge
    from receiver.delivery.sinks import build_sinks, secrets_by_option

    lifeline.catch_signals()
    wait_for_journal(settings, lifeline)
    plugins = load_plugins(settings, redactor, crash_guard.guard)
    sinks, broken = build_sinks(plugins, settings, redactor, crash_guard.guard)
    warnings = local_files(settings, {sink.name: sink.local_path for sink in sinks})
    for warning in warnings + odd_secrets(secrets_by_option(plugins, settings)):
        log.warning("%s", warning)
    journal = open_journal(settings, holder)
    backfills = backfills_of(settings, journal)
    for backfill in backfills:
        backfill.start()
    Dispatcher(
        journal,
        settings.enabled_sinks,
        sinks,
        broken,
        disabled=[sink for sink in settings.sinks if not sink.common.enabled],
        plugins=plugins.hooks,
        warnings=warnings,
        judge=Judge(settings, journal, holder) if settings.sensors.enabled else None,
        retention_seconds=settings.journal.retention_days * 86400,
        redact=redactor.redact,
    ).run(lifeline)
    for backfill in backfills:
        backfill.stop()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)  # threads whose call does not return would keep the process alive


def wait_for_journal(settings: Settings, lifeline: Lifeline | None = None) -> None:
    """Create or upgrade the tables, and record the enabled sinks, which get every push that is accepted from now on.

    Waits for an unavailable database: a restart by the platform would take longer.
    """
    end = time.monotonic() + DATABASE_AWAY_SECONDS
    while True:
        try:
            with closing(open_journal(settings)) as journal:
                return journal.add_enabled_sinks([sink.name for sink in settings.enabled_sinks])
        except JournalUnavailable as error:
            if settings.database_url is None or time.monotonic() > end or (lifeline and lifeline.stopping()):
                raise
            if lifeline:
                lifeline.report_alive()
            log.error("waiting for the journal before starting: %s", error)
            time.sleep(CONNECT_AGAIN_SECONDS)
