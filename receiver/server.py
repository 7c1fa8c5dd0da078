"""Puts the program together: which processes run, and what is in each of them.

Plugins, and what calls them, are imported only in the process that delivers.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
import uuid
from typing import TYPE_CHECKING

from receiver.errors import JournalUnavailable
from receiver.health import DISPATCHER_SILENT_SECONDS, configuration_warnings, local_files, odd_secrets
from receiver.journal import open_journal
from receiver.lifeline import Lifeline
from receiver.listener import listen
from receiver.redaction import Redactor
from receiver.settings import Settings
from receiver.supervisor import Child, Supervisor

if TYPE_CHECKING:
    from receiver.delivery.crash_guard import CrashGuard

log = logging.getLogger(__name__)

DATABASE_AWAY_SECONDS = 45.0
"""How long to wait at the start for an unavailable database: less than Heroku's 60 s to bind the port."""

CONNECT_AGAIN_SECONDS = 1.0

MEMORY = "/dev/shm"
"""Where counters are stored: in memory-mapped files, which on a full disk would cause a fatal signal."""

COUNTERS_BYTES = 16 * 1024 * 1024
"""Enough for the counters of all intake processes."""

DISPATCHER_NICENESS = 5
"""With more pushes than the processors can take, responses come before deliveries."""


def serve(
    settings: Settings,
    redactor: Redactor,
    lifeline: Lifeline | None = None,
    listener: socket.socket | None = None,
) -> int:
    """Receive and deliver until SIGTERM or SIGINT, or until `lifeline` is closed at its other end; the exit code.

    Listens on the configured address, or on a bound `listener`. Raises ReceiverError when it cannot start.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = counters = tempfile.mkdtemp(prefix="receiver-", dir=memory_folder())
    try:
        prepare_intake(settings)
        listener = listener or listen(settings.receiver.host, settings.port)
        address = listener.getsockname()
        log.info("receiving on %s port %d", address[0], address[1])
        children = [Child("intake", lambda lifeline: receive(settings, listener, lifeline), silent_seconds=None)]
        if settings.receiver.deliver:
            children.append(dispatcher(settings, redactor, listener))
        Supervisor(children, lifeline or Lifeline(), listener).run()
        return 0
    finally:
        shutil.rmtree(counters, ignore_errors=True)


def deliver(settings: Settings, redactor: Redactor) -> int:
    """Deliver until SIGTERM or SIGINT, without receiving; the exit code. Raises ReceiverError when it cannot start."""
    lifeline = Lifeline()
    lifeline.catch_signals()
    wait_for_journal(settings, lifeline)
    log.info("delivering")
    Supervisor([dispatcher(settings, redactor)], lifeline).run()
    return 0


def prepare_intake(settings: Settings) -> None:
    """Find out now what would keep intake from working; what is imported here is shared by all processes."""
    os.environ["WEB_CONCURRENCY"] = str(settings.workers)  # gunicorn reads it at import, and fails if it is empty
    import receiver.intake.web_server  # noqa: F401  # forked processes share its memory and start at once

    for warning in configuration_warnings(settings):
        log.warning("%s", warning)
    wait_for_journal(settings)
    gc.freeze()  # or each process would copy what is shared as soon as its garbage collector looks at it


def receive(settings: Settings, listener: socket.socket, lifeline: Lifeline) -> None:
    """Receive until told to stop: the process of intake."""
    from receiver.intake import web_server

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


def dispatch(settings: Settings, redactor: Redactor, lifeline: Lifeline, holder: str, crash_guard: CrashGuard) -> None:
    """Deliver until told to stop: the process of the dispatcher."""
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
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)  # threads whose call does not return would keep the process alive


def wait_for_journal(settings: Settings, lifeline: Lifeline | None = None) -> None:
    """Create or upgrade the tables. Waits for an unavailable database: a restart by the platform would take longer."""
    end = time.monotonic() + DATABASE_AWAY_SECONDS
    while True:
        try:
            return open_journal(settings).close()
        except JournalUnavailable as error:
            if settings.database_url is None or time.monotonic() > end or (lifeline and lifeline.stopping()):
                raise
            if lifeline:
                lifeline.report_alive()
            log.error("waiting for the journal before starting: %s", error)
            time.sleep(CONNECT_AGAIN_SECONDS)


def memory_folder() -> str | None:
    """A folder in memory; None if there is none, or it is full."""
    try:
        found = os.statvfs(MEMORY)
    except OSError:
        return None
    has_room = found.f_bavail * found.f_frsize >= COUNTERS_BYTES
    return MEMORY if has_room and os.access(MEMORY, os.W_OK) else None
