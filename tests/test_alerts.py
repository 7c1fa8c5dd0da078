"""Alerts: who is told of pauses and dead letters, and that nothing waits for whoever is told."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import StartReceiver, wait_until

from receiver import Event, hookimpl
from receiver.alerts import WAITING_AT_MOST, Alerts
from receiver.hookspecs import PluginHooks, SinkHooks
from receiver.journal import Kept
from receiver.plugins import _hooks
from receiver.simulator import Simulator

KEPT = Kept(1, "an-event", Simulator(1).body("touch"), 1000.0)


class Told:
    """A plugin that remembers what it was told, after doing whatever it is given to do."""

    def __init__(self, react: Callable[[], object] = lambda: None) -> None:
        self.told: list[tuple[str, ...]] = []
        self.react = react

    @hookimpl
    def sink_paused(self, sink: str, reason: str) -> None:
        self.react()
        self.told.append(("paused", sink, reason))

    @hookimpl
    def delivery_died(self, event: Event, sink: str, reason: str) -> None:
        self.react()
        self.told.append(("died", event.type, sink, reason))


class OnlyReasons:
    """A plugin that wants one alert, and one fact of it."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    @hookimpl
    def sink_paused(self, reason: str) -> None:
        self.reasons.append(reason)


def alerts(*plugins: object) -> Alerts:
    return Alerts([_hooks(PluginHooks, plugin, f"plugin {n}") for n, plugin in enumerate(plugins)], [], str)


def has_heard(plugin: Told, many: int) -> bool:
    return len(plugin.told) == many


def tell(told: Alerts) -> None:
    told.sink_paused("erp", "it keeps failing")
    told.delivery_died(KEPT, "erp", "the record is locked")


def test_everyone_who_asks_is_told_of_everything_in_order() -> None:
    first, second, third = Told(), Told(), OnlyReasons()
    told = alerts(first, second, object(), third)
    tell(told)
    told.close(10)
    assert first.told == [("paused", "erp", "it keeps failing"), ("died", "touch", "erp", "the record is locked")]
    assert (second.told, third.reasons) == (first.told, ["it keeps failing"])


def test_one_who_raises_is_logged_and_told_again_and_the_others_are_told(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise SystemExit("no\nmail")

    good = Told()
    told = alerts(Told(fail), good)
    tell(told)
    told.close(10)
    assert len(good.told) == 2
    assert caplog.record_tuples == [
        ("receiver.alerts", logging.WARNING, "plugin 0 failed in sink_paused: SystemExit: no mail"),
        ("receiver.alerts", logging.WARNING, "plugin 0 failed in delivery_died: SystemExit: no mail"),
    ]


def test_one_who_hangs_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    never = threading.Event()
    good = Told()
    told = alerts(Told(never.wait), good)
    for number in range(1, WAITING_AT_MOST + 3):
        tell(told)
        wait_until(partial(has_heard, good, 2 * number))
    began = time.monotonic()
    told.close(0.2)
    assert time.monotonic() - began < 5
    assert len(good.told) == 2 * (WAITING_AT_MOST + 2)
    assert "alert sink_paused of sink erp is left out: its listener is too far behind" in caplog.text
    never.set()


def test_a_sink_is_told_once_it_is_ready_of_what_it_has_missed_too() -> None:
    sink, never = Told(), Told()
    hooks = [_hooks(SinkHooks, each, "sink") for each in (sink, never)]
    told = Alerts([], hooks, str)
    told.sink_paused("erp", "early")
    told.ready(hooks[0])
    told.sink_paused("erp", "late")
    told.close(10)
    assert (sink.told, never.told) == ([("paused", "erp", "early"), ("paused", "erp", "late")], [])


def test_nobody_is_told_of_what_cannot_be_decoded_any_more() -> None:
    listener = Told()
    told = alerts(listener)
    told.delivery_died(Kept(1, "x", b"no event", 1000.0), "erp", "it cannot be decoded any more")
    told.close(10)
    assert listener.told == []


PLUGIN = """
import os
from receiver import GiveUp, Pause, hookimpl

class Fussy:
    @hookimpl
    def deliver(self, event):
        if event.type == "touch":
            raise GiveUp("no touch please")
        raise Pause("closed for today", after=3600)

    @hookimpl
    def sink_paused(self, sink, reason):
        os.write(1, f'["told", "{sink}", "{reason}"]\\n'.encode())

@hookimpl
def register_sinks(register):
    register("fussy", Fussy)

@hookimpl
def sink_paused(sink, reason):
    os.write(1, f'["heard", "{sink}", "{reason}"]\\n'.encode())

@hookimpl
def delivery_died(event, sink, reason):
    os.write(1, f'["died", "{sink}", "{event.type}", "{reason}"]\\n'.encode())
"""


def test_plugins_and_sinks_are_told_by_the_running_receiver(start_receiver: StartReceiver, tmp_path: Path) -> None:
    (tmp_path / "fussy.py").write_text(PLUGIN)
    plugins = f'[receiver]\nplugins = ["{tmp_path / "fussy.py"}"]\n'
    receiver = start_receiver(f'{plugins}[sinks.a]\ntype = "fussy"\n[sinks.typo]\ntype = "fusy"\n')
    no_such: Any = "config.toml [sinks.typo]: no sink type 'fusy' (did you mean 'fussy'?); there are: "
    wait_until(lambda: len(receiver.stdout) == 2)
    assert [(line[0], line[1], line[2].startswith(no_such)) for line in sorted(receiver.stdout)] == [
        ("heard", "typo", True),
        ("told", "typo", True),
    ]

    simulator = Simulator(1)
    receiver.push(simulator.body("touch"))
    wait_until(lambda: ["died", "a", "touch", "no touch please"] in receiver.stdout)
    receiver.push(simulator.body("co2"))
    receiver.push(simulator.body("co2"))
    wait_until(lambda: len(receiver.stdout) == 5)

    assert sorted(receiver.stdout[3:]) == [["heard", "a", "closed for today"], ["told", "a", "closed for today"]]
    receiver.stop()
    receiver.start()
    assert len(receiver.stdout) == 5
