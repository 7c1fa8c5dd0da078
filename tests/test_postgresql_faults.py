"""The whole receiver on a PostgreSQL that is read-only, has no free connection, or a full disk: 503, nothing lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import psycopg
import pytest
from conftest import CSV_ONLY, StartReceiver, wait_until

from chaos.cloud import Cloud
from chaos.pair import Node, own
from receiver.event import Event
from receiver.simulator import Simulator

DISK_MB = 100
SETTINGS = "-c shared_buffers=16MB -c max_connections=20 -c min_wal_size=32MB -c max_wal_size=48MB"
CONNECTIONS_OF_RECEIVER = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'receiver'"
NOW = datetime.now(UTC)
ROWS = 'rows = "events"\n'


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder, on a small disk of its own if this user may mount one."""
    folder = Path(tempfile.mkdtemp(prefix="receiver-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=755", "receiver-disk", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    own(folder)
    yield folder
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def node(disk: Path) -> Iterator[Node]:
    node = Node(disk)
    node.create()
    node.start(SETTINGS)
    yield node
    node.kill()


@contextmanager
def read_only(node: Node) -> Iterator[None]:
    node.sql("ALTER SYSTEM SET default_transaction_read_only = on")
    node.sql("SELECT pg_reload_conf()")
    yield
    node.sql("ALTER SYSTEM RESET default_transaction_read_only")
    node.sql("SELECT pg_reload_conf()")


@contextmanager
def no_connections_left(node: Node) -> Iterator[None]:
    """Other programs have all of them."""
    with contextlib.ExitStack() as stack:
        terminate = stack.enter_context(psycopg.connect(node.url, autocommit=True))

        def take_all() -> int:
            """How many were left."""
            taken = 0
            with contextlib.suppress(psycopg.OperationalError):
                while True:
                    stack.enter_context(psycopg.connect(node.url))
                    taken += 1
            return taken

        def have_all() -> bool:
            take_all()
            return terminate.execute(CONNECTIONS_OF_RECEIVER).fetchall() == [] and take_all() == 0

        wait_until(have_all, what="all connections")
        yield


@contextmanager
def full_disk(node: Node) -> Iterator[None]:
    """Not one byte is left. PostgreSQL may not survive that, and is started again when there is room."""
    if not os.path.ismount(node.folder):
        pytest.skip("this user may not mount a small disk")
    filler = node.folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    yield
    filler.unlink()
    if not node.processes():
        node.start(SETTINGS)


FAULTS: dict[str, tuple[Callable[[Node], AbstractContextManager[None]], str]] = {
    "read-only": (read_only, "it is read-only"),
    "no connections left": (no_connections_left, "too many connections"),
    "full disk": (full_disk, "its disk is full"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_while_the_database_can_store_nothing_pushes_get_503_and_then_everything_is_delivered(
    fault: str, node: Node, start_receiver: StartReceiver
) -> None:
    inject, reason = FAULTS[fault]
    receiver = start_receiver(CSV_ONLY + ROWS, DATABASE_URL=node.url)
    cloud = Cloud([receiver])
    simulator = Simulator(seed=3)
    before, during = (list(islice(simulator.bodies(), count)) for count in (100, 400))
    with cloud.pushing(before):
        pass
    injected = contextlib.ExitStack()
    injected.enter_context(inject(node))
    with cloud.pushing(during), injected:
        wait_until(lambda: cloud.responses[503, "journal unavailable"], seconds=60, what="a push that gets 503")
        wait_until(lambda: reason in receiver.log, what="the reason in the log")
        if inject is not full_disk:  # where rows that fit into existing pages can still be written
            wait_until(lambda: not receiver.is_ok("/readyz"), what="a receiver that is not ready")
        assert receiver.is_ok("/healthz")
    ids = [Event.from_body(body, NOW).id for body in [*before, *during]]
    wait_until(lambda: len(receiver.rows()) >= len(ids), seconds=60, what="all deliveries")
    assert Counter(row["event_id"] for row in receiver.rows()) == Counter(ids)
    wait_until(lambda: receiver.is_ok("/readyz"), seconds=60, what="a receiver that is ready")
    assert {status for status, _ in cloud.responses} <= {0, 200, 503}
    assert "Traceback" not in receiver.log
    assert receiver.stop() == 0
