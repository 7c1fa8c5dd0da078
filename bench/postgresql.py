"""What one push costs PostgreSQL: processor time, write-ahead log, transactions and round trips, by receivers.

The server is one of its own, with PostgreSQL's defaults, so that its processes do nothing else. A push is counted with
everything that it causes until its event is delivered.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from bench.intake import MAX_RATE, signed
from bench.latency import Traffic
from bench.load import Pushes, push
from bench.servers import CSV, INTAKE_ONLY, WITH_REGISTRY, Kind, Server, folder, started
from bench.tables import rate, show
from chaos.pair import Node, own
from receiver.journal import Arrival, Settlement
from receiver.journal import Result as Outcome
from receiver.journal.sql.journal import SqlJournal
from receiver.journal.sql.postgresql import PostgresqlDatabase
from receiver.testing.running import wait_until

Result = TypeVar("Result")

RECEIVERS = (1, 2, 4)
SECONDS = 10.0
RATE = 60.0
"""Pushes a second at all receivers together: about what 20,000 sensors make."""

CONNECTIONS = 64
KINDS = (
    Kind("intake alone", config=INTAKE_ONLY, postgres=True),
    Kind("csv and the registry", config=WITH_REGISTRY + CSV, postgres=True),
)
UNFINISHED = (
    "SELECT (SELECT count(*) FROM events WHERE NOT routed) + (SELECT count(*) FROM deliveries WHERE due IS NOT NULL)"
)
TRANSACTIONS = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'bench'"


@dataclass(frozen=True)
class Used:
    """What a PostgreSQL server has used so far."""

    cpu_seconds: float
    wal_bytes: int
    transactions: int


@dataclass(frozen=True)
class Cost:
    """What it used for some pushes, in some seconds."""

    pushes: int
    seconds: float
    cpu_seconds: float
    wal_bytes: int
    transactions: int


def measure(size: float) -> None:
    """Print the tables."""
    seconds = round(max(3.0, SECONDS * size))
    idle, steady, fast = [], [], []
    for kind in KINDS:
        for count in RECEIVERS:
            name = f"{kind.name}, {count} receiver{'s' * (count > 1)}"
            with pushes_for(seconds) as pushes:
                with receivers(kind, count) as (database, servers):
                    idle.append((name, *per_second(database.cost(lambda: rest(seconds)))))
                    cost = database.cost(lambda: push_steadily(database, servers, seconds))
                    most = database.cost(lambda: push_fast(database, servers, pushes, seconds))
                with receivers(kind, count, counting=True) as (database, servers):
                    trips = database.round_trips(lambda: push_steadily(database, servers, seconds))
                    most_trips = database.round_trips(lambda: push_fast(database, servers, pushes, seconds))
            steady.append((name, *per_push(cost), f"{trips:.2f}"))
            fast.append((name, rate(most.pushes / seconds), *per_push(most), f"{most_trips:.2f}"))
    each = ["CPU µs/push", "WAL bytes/push", "transactions/push", "round trips/push"]
    show("PostgreSQL while nothing happens", ["", "CPU ms/s", "transactions/s"], idle)
    show(f"PostgreSQL at {RATE:.0f} pushes/s in all", ["", *each], steady)
    show("Round trips of a call of the journal", ["", "round trips"], round_trips())
    show(f"PostgreSQL at the highest rate, {CONNECTIONS} connections in all", ["", "pushes/s", *each], fast)


def per_second(cost: Cost) -> tuple[str, str]:
    return f"{cost.cpu_seconds / cost.seconds * 1e3:.1f}", f"{cost.transactions / cost.seconds:.1f}"


def per_push(cost: Cost) -> tuple[str, str, str]:
    return (
        f"{cost.cpu_seconds / cost.pushes * 1e6:,.0f}",
        f"{cost.wal_bytes / cost.pushes:,.0f}",
        f"{cost.transactions / cost.pushes:.2f}",
    )


class Database:
    """A PostgreSQL server with one database."""

    def __init__(self, node: Node, counter: RoundTrips | None = None) -> None:
        self.node = node
        self._counter = counter

    def round_trips(self, work: Callable[[], int]) -> float:
        """How many round trips some work takes for each push; it returns how many were accepted."""
        assert self._counter is not None
        before = self._counter.count
        pushes = work()
        return (self._counter.count - before) / pushes

    def cost(self, work: Callable[[], int]) -> Cost:
        """What some work costs, which returns how many pushes were accepted."""
        before, began_at = self._used(), time.monotonic()
        pushes = work()
        after, seconds = self._used(), time.monotonic() - began_at
        return Cost(
            pushes,
            seconds,
            after.cpu_seconds - before.cpu_seconds,
            after.wal_bytes - before.wal_bytes,
            after.transactions - before.transactions,
        )

    def wait_until_delivered(self) -> None:
        def is_idle() -> bool:
            time.sleep(0.5)
            return self.node.sql(UNFINISHED, "bench") == [(0,)]

        wait_until(is_idle, 600, "all deliveries")

    def _used(self) -> Used:
        ((transactions,),) = self.node.sql(TRANSACTIONS)
        ((wal,),) = self.node.sql("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint")
        return Used(cpu_seconds_of(self.node), wal, transactions)


def cpu_seconds_of(node: Node) -> float:
    """Processor time that the processes of a server have used, and those that have ended."""
    processes, used = node.processes(), 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            used += times.user + times.system
            if process == processes[0]:  # connections that have ended
                used += times.children_user + times.children_system
    return used


def rest(seconds: float) -> int:
    time.sleep(seconds)
    return 0


def push_steadily(database: Database, servers: Sequence[Server], seconds: float) -> int:
    traffic = [Traffic(server, seconds, RATE / len(servers)) for server in servers]
    with ThreadPoolExecutor(len(traffic)) as threads:
        list(threads.map(Traffic.run, traffic))
    if servers[0].kind.config != INTAKE_ONLY:
        database.wait_until_delivered()
    return sum(len(each.accepted_at) for each in traffic)


@contextmanager
def pushes_for(seconds: float) -> Iterator[Pushes]:
    with signed(round(MAX_RATE * seconds) + 1) as pushes:
        yield pushes


def push_fast(database: Database, servers: Sequence[Server], pushes: Pushes, seconds: float) -> int:
    """Push to all servers at once, to each another part of the pushes."""
    share = round(MAX_RATE * seconds / len(servers))

    def push_to(number: int) -> int:
        connections = CONNECTIONS // len(servers)
        return push(servers[number].url, pushes, share * number, seconds, connections).pushes

    with ThreadPoolExecutor(len(servers)) as threads:
        count = sum(threads.map(push_to, range(len(servers))))
    if servers[0].kind.config != INTAKE_ONLY:
        database.wait_until_delivered()
    return count


@contextmanager
def receivers(kind: Kind, count: int, *, counting: bool = False) -> Iterator[tuple[Database, list[Server]]]:
    """So many receivers on one new PostgreSQL server; their round trips can be counted, which makes them slower."""
    with ExitStack() as stack:
        node = stack.enter_context(running_node())
        counter = stack.enter_context(closing(RoundTrips(node.folder))) if counting else None
        url = counter.url if counter else node.url_of("bench")
        servers = []
        for _ in range(count):
            server = Server(kind, stack.enter_context(folder()), url)
            servers.append(stack.enter_context(started(server)))
        database = Database(node, counter)
        if kind.config != INTAKE_ONLY:
            database.wait_until_delivered()
        yield database, servers


def round_trips() -> list[tuple[str, str]]:
    """How often each call waits for a response of the server."""
    with running_node() as node, closing(RoundTrips(node.folder)) as counter:
        database = PostgresqlDatabase(counter.url, None)
        with closing(SqlJournal(database)) as journal:
            counter.delay_seconds = ROUND_TRIP_SECONDS
            found: list[tuple[str, str]] = []

            def counted(name: str, call: Callable[[], Result]) -> Result:
                before = counter.count
                result = call()
                found.append((name, str(counter.count - before)))
                return result

            arrivals = [Arrival(f"e{number}", b"{}", time.time()) for number in range(100)]
            counted("accept, of intake", lambda: journal.accept(arrivals))
            events = counted("unrouted", lambda: journal.unrouted(100))
            counted("route", lambda: journal.route([(event, ["archive"]) for event in events]))
            claimed = counted("claim", lambda: journal.claim("archive", 100, 60.0))
            settled = [Settlement(delivery, Outcome.DELIVERED) for delivery in claimed]
            counted("settle", lambda: journal.settle(settled))
            counted("next_due", lambda: journal.next_due("archive"))
            counted("report_alive", journal.report_alive)
        return found


@contextmanager
def running_node() -> Iterator[Node]:
    path = Path(tempfile.mkdtemp(prefix="receiver-bench-"))
    own(path)
    node = Node(path)
    try:
        node.create()
        node.start("")
        node.sql("CREATE DATABASE bench")
        yield node
    finally:
        node.kill()
        shutil.rmtree(path, ignore_errors=True)


ROUND_TRIP_SECONDS = 0.1


class RoundTrips:
    """A socket in front of a server's: counts how often a client sends something after it has received something.

    With a delay of its responses, all that is sent without waiting comes before the response, so the count is exact.
    """

    def __init__(self, target: Path) -> None:
        self.count = 0
        self.delay_seconds = 0.0
        self._target = str(target / ".s.PGSQL.5432")
        self._folder = Path(tempfile.mkdtemp(prefix="receiver-bench-"))
        self.url = f"postgresql://postgres@/bench?host={self._folder}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._folder / ".s.PGSQL.5432"))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._target)
                received = threading.Event()
                for arguments in ((client, server, received, True), (server, client, received, False)):
                    threading.Thread(target=self._forward, args=arguments, daemon=True).start()

    def _forward(
        self, source: socket.socket, target: socket.socket, received: threading.Event, from_client: bool
    ) -> None:
        with source, contextlib.suppress(OSError):
            while data := source.recv(262144):
                if not from_client:
                    time.sleep(self.delay_seconds)
                    received.set()
                elif received.is_set():
                    received.clear()
                    self.count += 1
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
