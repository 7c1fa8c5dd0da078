"""The lock that threads get in the order in which they ask for it."""

from __future__ import annotations

import threading

from conftest import wait_until

from receiver.journal.sql.fair_lock import FairLock

LONG_SECONDS = 60.0


def waiting_thread(lock: FairLock, name: str, order: list[str]) -> threading.Thread:
    """A thread that waits for the lock, notes its name when it has it, and releases it."""

    def work() -> None:
        assert lock.acquire(LONG_SECONDS)
        order.append(name)
        lock.release()

    waiting = len(lock._waiting)
    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: len(lock._waiting) > waiting)
    return thread


def test_a_thread_that_releases_it_and_asks_again_at_once_gets_it_after_those_that_wait() -> None:
    lock, order = FairLock(), list[str]()
    assert lock.acquire(0.0)
    threads = [waiting_thread(lock, name, order) for name in ("first", "second")]
    lock.release()
    assert lock.acquire(LONG_SECONDS)
    assert order == ["first", "second"]
    lock.release()
    for thread in threads:
        thread.join()
    assert lock.acquire(0.0)


def test_a_thread_that_stops_waiting_is_passed_over() -> None:
    lock, order = FairLock(), list[str]()
    assert lock.acquire(0.0)
    impatient = threading.Thread(target=lock.acquire, args=(0.01,))
    impatient.start()
    impatient.join()
    thread = waiting_thread(lock, "patient", order)
    lock.release()
    thread.join()
    assert order == ["patient"]
    assert lock.acquire(0.0)
