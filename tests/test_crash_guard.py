"""The crash guard: what crashes or blocks the dispatcher several times in a row is skipped."""

from __future__ import annotations

import multiprocessing
import os
from contextlib import AbstractContextManager

import pytest
from support.plugins import DELIVER, IMPORTS, REGISTER, PluginFolder

from receiver.delivery.crash_guard import MAX_CRASHES, CrashGuard
from receiver.delivery.plugins import load_plugins
from receiver.delivery.sinks import build_sinks
from receiver.errors import PluginError
from receiver.redaction import Redactor

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

PROBLEM = "crashed or blocked the dispatcher 3 times in a row; fix the plugin and restart"


@pytest.mark.parametrize("when", ["loaded", "built"])
def test_a_plugin_that_crashes_three_processes_is_left_out_by_the_next_one(
    when: str, plugin_folder: PluginFolder
) -> None:
    crash = f"__import__('os').getpid() == {os.getpid()} or __import__('os')._exit(5)\n"  # not in the test's process
    constructor = f"class Mine:\n    def __init__(self):\n        {crash}"
    path = plugin_folder.add(crash if when == "loaded" else f"{IMPORTS}{constructor}{DELIVER}{REGISTER}")
    settings = plugin_folder.settings("[sinks.a]\ntype = 'mine'\n[sinks.valid]\ntype = 'stdout'\n")
    redactor, crash_guard = Redactor(settings.secret_values), CrashGuard()

    def load_and_build() -> None:
        plugins = load_plugins(settings, redactor, crash_guard.guard)
        build_sinks(plugins, settings, redactor, crash_guard.guard)

    for _ in range(MAX_CRASHES):
        process = multiprocessing.get_context("fork").Process(target=load_and_build)
        process.start()
        process.join(20)
        assert process.exitcode == 5
    plugins = load_plugins(settings, redactor, crash_guard.guard)
    sinks, broken = build_sinks(plugins, settings, redactor, crash_guard.guard)
    assert [sink.name for sink in sinks] == ["valid"]
    if when == "loaded":
        assert plugins.problems == (f"{path}: {PROBLEM}",)
        assert list(broken) == ["a"]
    else:
        assert (plugins.problems, broken) == ((), {"a": PROBLEM})


@pytest.mark.parametrize("when", ["loaded", "registered", "built"])
def test_a_keyboard_interrupt_of_a_plugin_does_not_end_the_dispatcher(when: str, plugin_folder: PluginFolder) -> None:
    code = {
        "loaded": "raise KeyboardInterrupt\n",
        "registered": f"{IMPORTS}@hookimpl\ndef register_sinks(register):\n    raise KeyboardInterrupt\n",
        "built": f"{IMPORTS}class Mine:\n    def __init__(self):\n        raise KeyboardInterrupt\n{DELIVER}{REGISTER}",
    }
    path = plugin_folder.add(code[when])
    settings = plugin_folder.settings("[sinks.a]\ntype = 'mine'\n[sinks.valid]\ntype = 'stdout'\n")
    redactor, crash_guard = Redactor(settings.secret_values), CrashGuard()
    plugins = load_plugins(settings, redactor, crash_guard.guard)
    sinks, broken = build_sinks(plugins, settings, redactor, crash_guard.guard)
    assert ([sink.name for sink in sinks], list(broken)) == (["valid"], ["a"])
    line = code[when].count("\n", 0, code[when].index("raise")) + 1
    problem = f"mine.py:{line}: KeyboardInterrupt"
    assert plugins.problems == (() if when == "built" else (f"{path}: {problem}",))
    assert when != "built" or broken == {"a": problem}


def begin_without_end(crash_guard: CrashGuard, name: str) -> AbstractContextManager[None]:
    """Enter a context that is never left, as in a process that crashes; it must not be garbage collected."""
    context = crash_guard.guard(name)
    context.__enter__()
    return context


def test_only_what_never_ended_is_left_out() -> None:
    crash_guard = CrashGuard()
    unfinished = [begin_without_end(crash_guard, "mine") for _ in range(MAX_CRASHES)]
    with pytest.raises(PluginError, match=PROBLEM), crash_guard.guard("mine"):
        pass
    with crash_guard.guard("other"):
        pass
    assert len(unfinished) == 3


def test_one_success_in_between_starts_the_count_again() -> None:
    crash_guard, unfinished = CrashGuard(), []
    for _ in range(2 * MAX_CRASHES):
        unfinished.append(begin_without_end(crash_guard, "mine"))
        with crash_guard.guard("mine"):
            pass


def test_an_exception_is_an_end() -> None:
    crash_guard = CrashGuard()
    for _ in range(2 * MAX_CRASHES):
        with pytest.raises(ZeroDivisionError), crash_guard.guard("mine"):
            print(1 / 0)
