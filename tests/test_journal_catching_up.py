"""The journal's contract, on every database: sinks that miss events for a while, and get them later."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from support.journals import Store, accept, claim, event_ids

from receiver.journal import Journal, StoredEvent


def route_all(journal: Journal, *sinks: str, missed_by: tuple[str, ...] = ()) -> None:
    journal.route([(event, sinks) for event in journal.unrouted(1000)], missed_by)


def every(event: StoredEvent) -> bool:
    return True


def test_a_sink_that_has_missed_nothing_is_not_behind(journal: Journal) -> None:
    accept(journal, "a")
    route_all(journal, "s")
    assert journal.sinks_behind() == set()
    assert not journal.catch_up("s", every, 10)
    assert not journal.catch_up("unknown", every, 10)


def test_a_sink_gets_what_it_has_missed_and_what_came_later_if_it_passes(store: Store) -> None:
    journal = store.open()
    accept(journal, "before")
    route_all(journal, "other")
    accept(journal, "a", "b")
    route_all(journal, "other", missed_by=("behind", "also behind"))
    accept(journal, "c", "d")
    route_all(journal, "other", missed_by=("behind",))
    accept(journal, "unrouted")
    store.close(journal)
    journal = store.open()
    assert journal.sinks_behind() == {"behind", "also behind"}
    assert claim(journal, "behind") == []

    asked: list[str] = []

    def passes(event: StoredEvent) -> bool:
        asked.append(event.id)
        return event.id != "b"

    assert [journal.catch_up("behind", passes, 2) for _ in range(3)] == [True, True, False]
    assert asked == ["a", "b", "c", "d"]
    assert event_ids(claim(journal, "behind")) == ["a", "c", "d"]
    assert journal.sinks_behind() == {"also behind"}
    assert not journal.catch_up("behind", passes, 2)
    assert event_ids(claim(journal, "other")) == ["before", "a", "b", "c", "d"]


def test_a_sink_that_misses_events_while_it_catches_up_gets_them_too(store: Store) -> None:
    """A dispatcher with another configuration may still run."""
    journal, other = store.open(), store.open()
    accept(journal, "a", "b", "c")
    route_all(journal, missed_by=("s",))
    assert journal.catch_up("s", every, 2)
    accept(other, "d")
    route_all(other, missed_by=("s",))
    assert [journal.catch_up("s", every, 2) for _ in range(2)] == [True, False]
    accept(other, "e")
    route_all(other, missed_by=("s",))
    assert journal.sinks_behind() == {"s"}
    assert not journal.catch_up("s", every, 2)
    assert event_ids(claim(journal, "s")) == ["a", "b", "c", "d", "e"]


def test_what_was_routed_to_the_sink_meanwhile_is_not_changed(journal: Journal) -> None:
    accept(journal, "a")
    route_all(journal, missed_by=("s",))
    accept(journal, "b")
    route_all(journal, "s")
    (delivery,) = claim(journal, "s")
    assert not journal.catch_up("s", every, 10)
    assert event_ids(claim(journal, "s")) == ["a"]
    assert delivery.event.id == "b"


def test_what_a_sink_has_missed_does_not_expire_before_it_has_caught_up(journal: Journal) -> None:
    accept(journal, "before")
    route_all(journal)
    accept(journal, "a", "b")
    route_all(journal, missed_by=("s",))
    journal.remove_expired(1e12, 10)
    assert not journal.catch_up("s", every, 10)
    assert event_ids(claim(journal, "s")) == ["a", "b"]
    accept(journal, "before")
    assert event_ids(journal.unrouted(10)) == ["before"]


def test_a_sink_that_is_disabled_has_missed_nothing(journal: Journal) -> None:
    accept(journal, "a")
    route_all(journal, missed_by=("kept", "disabled", "unknown"))
    journal.set_enabled_sinks(["kept"], disabled=["disabled", "new"])
    assert journal.sinks_behind() == {"kept", "unknown"}


def test_a_sink_that_catches_up_while_another_dispatcher_routes_without_it_misses_nothing(store: Store) -> None:
    routing, catching_up = store.open(), store.open()
    names = [f"n{number}" for number in range(120)]
    done = threading.Event()

    def catch_up() -> None:
        while not done.is_set():
            catching_up.catch_up("s", every, 7)

    with ThreadPoolExecutor(1) as pool:
        catching = pool.submit(catch_up)
        try:
            for name in names:
                accept(routing, name)
                route_all(routing, "other", missed_by=("s",))
        finally:
            done.set()
        catching.result()
    while catching_up.catch_up("s", every, 7):
        pass
    assert catching_up.sinks_behind() == set()
    assert event_ids(claim(catching_up, "s")) == event_ids(claim(routing, "other")) == names
