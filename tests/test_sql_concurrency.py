"""Several writers of the sql sink at once: threads, sinks and processes leave the same rows as one writer would."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from support.built_in_sinks import deliver_batch
from support.events import event
from support.processes import start_python
from support.sql_databases import SqlDatabase, assert_complete, overlapping_events, random_batches

from receiver.testing.running import wait_until


def test_concurrent_writers_of_the_same_events_leave_each_reading_once(sql_database: SqlDatabase) -> None:
    """Four threads on two sinks, each with most of the events in an order of its own."""
    sinks = [sql_database.open(), sql_database.open()]
    events = overlapping_events(1, 300)
    start_together = threading.Barrier(4)

    def write(seed: int) -> None:
        start_together.wait(30)
        for batch in random_batches(random.Random(seed).sample(events, 260), seed):
            deliver_batch(sinks[seed % 2], *batch)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    for sink in sinks:
        deliver_batch(sink, *random.Random(9).sample(events, 300))
    assert_complete(sql_database, events)


WRITE = """
import sys
from support.built_in_sinks import deliver_batch, open_sink
from support.sql_databases import build_sql, overlapping_events, random_batches

url, seed = sys.argv[1], int(sys.argv[2])
sink = build_sql(url)
print("ready", flush=True)
sys.stdin.readline()
open_sink(sink)
for batch in random_batches(overlapping_events(2, 120), seed):
    deliver_batch(sink, *batch)
sink.hook.close()
"""


def test_concurrent_processes_create_the_tables_and_leave_each_reading_once(sql_database: SqlDatabase) -> None:
    writers = [start_python(WRITE, sql_database.url, seed) for seed in range(3)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [writer.communicate(timeout=60) and writer.returncode for writer in writers] == [0, 0, 0]
    assert_complete(sql_database, overlapping_events(2, 120))


def test_concurrent_sinks_create_the_tables_and_their_label_columns(sql_database: SqlDatabase) -> None:
    start_together = threading.Barrier(8)

    def open_and_deliver(number: int, labels: list[str]) -> None:
        start_together.wait(30)
        deliver_batch(sql_database.open(label_columns=labels), event(f"e{number}"))

    for _ in range(3):
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(partial(open_and_deliver, labels=["site"]), range(8)))
            list(threads.map(partial(open_and_deliver, labels=["site", "floor"]), range(8, 16)))
        assert [(row["label_site"], row["label_floor"]) for row in sql_database.rows()] == [(None, None)] * 16
        sql_database.close()
        sql_database.query("DROP TABLE readings")
        sql_database.query("DROP TABLE latest")


def test_several_threads_can_deliver_at_once(sql_database: SqlDatabase) -> None:
    sink = sql_database.open()
    batches = [[event(f"e{batch:02}-{number:02}") for number in range(20)] for batch in range(30)]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda batch: deliver_batch(sink, *batch), batches))
    assert sql_database.event_ids() == [each.id for batch in batches for each in batch]


def connections(database: SqlDatabase) -> int:
    """How many other clients are connected to the database."""
    others = "datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    return int(database.query(f"SELECT count(*) AS n FROM pg_stat_activity WHERE {others}")[0]["n"])


def test_there_are_as_many_connections_as_concurrent_calls_and_none_after_close(
    postgresql_database: SqlDatabase,
) -> None:
    sink = postgresql_database.open()
    for number in range(5):
        deliver_batch(sink, event(f"e{number}"))
    assert connections(postgresql_database) == 1
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda number: deliver_batch(sink, event(f"f{number}")), range(30)))
    assert 1 <= connections(postgresql_database) <= 3
    sink.hook.close()
    wait_until(lambda: connections(postgresql_database) == 0)
