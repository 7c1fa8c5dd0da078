"""Loading plugins: where they are found, and the one line that reports a broken one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, StartReceiver, sink_types, wait_until
from support.plugins import DELIVER, IMPORTS, PLUGIN, REGISTER, PluginFolder

from receiver.delivery.plugins import BUILT_IN, FOLDER, is_built_in
from receiver.simulator import Simulator
from receiver.variables import SECRET


def test_the_built_in_sinks_are_plugins_like_any_other(plugin_folder: PluginFolder) -> None:
    plugins = plugin_folder.load()
    sources = {name: sink_type.source for name, sink_type in plugins.types.items()}
    built_in = {name: source for name, source in sources.items() if is_built_in(Path(source))}
    assert sorted(built_in) == ["csv", "mqtt", "sql", "stdout", "webhook"]
    assert sorted(Path(source).relative_to(FOLDER).as_posix() for source in built_in.values()) == sorted(BUILT_IN)
    assert [problem for problem in plugins.problems if is_built_in(Path(problem.partition(":")[0]))] == []


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("def x(:\n", "bad.py:1: SyntaxError: invalid syntax"),
        ("if True:\nx = 1\n", "bad.py:2: IndentationError: expected an indented block after 'if' statement on line 1"),
        ("\nimport not_installed_here\n", "bad.py:2: ModuleNotFoundError: No module named 'not_installed_here'"),
        ("from receiver import Nothing\n", "bad.py:1: ImportError: cannot import name 'Nothing' from 'receiver'"),
        ("\n\ndef f():\n    return 1 / 0\n\nf()\n", "bad.py:4: ZeroDivisionError: division by zero"),
        ("raise ValueError('one\\ntwo')\n", "bad.py:1: ValueError: one two"),
        ("import sys\nsys.exit('no licence')\n", "bad.py:2: SystemExit: no licence"),
        ("exit(0)\n", "bad.py:1: SystemExit: 0"),
        ("import asyncio\nraise asyncio.CancelledError\n", "bad.py:2: CancelledError: "),
        (
            "class Odd(Exception):\n    def __str__(self):\n        raise KeyError('x')\nraise Odd\n",
            "bad.py:4: Odd: its text cannot be shown",
        ),
        ("x = 1\n", "implements no hook: mark its function register_sinks(register) with @hookimpl"),
        ("", "implements no hook: mark its function register_sinks(register) with @hookimpl"),
        (
            "def register_sinks(register):\n    register('x', int)\n",
            "bad.py:1: mark register_sinks with @hookimpl, or give it another name",
        ),
        (
            IMPORTS + "@hookimpl\ndef register_sink(register):\n    pass\n",
            "bad.py:4: there is no hook 'register_sink' (did you mean 'register_sinks'?)",
        ),
        (
            IMPORTS + "class X:\n" + DELIVER + "@hookimpl\ndef register_sinks(add):\n    add('x', X)\n",
            "bad.py:8: register_sinks has no argument 'add'; it can have: register",
        ),
        (
            IMPORTS + "@hookimpl\nasync def register_sinks(register):\n    pass\n",
            "bad.py:4: register_sinks must be a plain function: no async, no yield",
        ),
        (
            IMPORTS + "@hookimpl\nasync def delivery_died(event):\n    pass\n",
            "bad.py:4: delivery_died must be a plain function: no async, no yield",
        ),
        (
            IMPORTS + "@hookimpl\ndef register_sinks(register):\n    register('x', object())\n",
            "register(type, cls) needs the name of a sink type and its class",
        ),
        (
            IMPORTS + "@hookimpl\ndef register_sinks(register):\n    register(int, 'x')\n",
            "register(type, cls) needs the name of a sink type and its class",
        ),
        (
            IMPORTS + "@hookimpl\ndef register_sinks(register):\n    register('x')\n",
            "bad.py:6: TypeError: _registered.<locals>.register() missing 1 required positional argument: 'cls'",
        ),
        (
            IMPORTS + "@hookimpl\ndef register_sinks(register):\n    register('x', int)\n    register('x', str)\n",
            "sink type 'x' is registered twice",
        ),
        (
            IMPORTS + "@hookimpl\ndef register_sinks(register):\n    register('x', int)\n    register('stdout', int)\n",
            f"sink type 'stdout' is already registered by {FOLDER / 'stdout.py'}",
        ),
        (
            IMPORTS + "@hookimpl\ndef register_sinks(register):\n    raise OSError(5, 'gone')\n",
            "bad.py:6: OSError: [Errno 5] gone",
        ),
    ],
    ids=[
        *("syntax", "indentation", "missing module", "missing name", "exception", "text of two lines", "sys.exit"),
        *("exit", "cancelled", "exception without text", "no hook", "empty file", "unmarked hook", "misspelt hook"),
        *("unknown argument", "coroutine", "coroutine for an alert", "no class", "no name", "too few arguments"),
        *("type registered twice", "built-in type", "hook raises"),
    ],
)
def test_a_broken_plugin_is_reported_in_one_line_and_the_others_are_loaded(
    code: str, problem: str, plugin_folder: PluginFolder
) -> None:
    plugin_folder.add(PLUGIN, "before.py")
    bad = plugin_folder.add(code, "bad.py")
    plugin_folder.add(PLUGIN.replace("'mine'", "'other'"), "later.py")

    plugins = plugin_folder.load()

    (line,) = plugins.problems
    assert line.startswith(f"{bad}: ")
    assert problem in line
    assert line.splitlines() == [line]
    assert sorted(plugins.types) == sink_types("mine", "other")


def test_a_missing_plugin_is_reported_in_one_line(plugin_folder: PluginFolder) -> None:
    plugin_folder.plugins = ["nowhere.py", "no_such_module", "", "..up", "/dev/null/x.py"]
    plugins = plugin_folder.load()
    assert plugins.problems == (
        f"{plugin_folder.folder / 'nowhere.py'}: no such file",
        "no_such_module: ModuleNotFoundError: No module named 'no_such_module'",
        ": ValueError: Empty module name",
        "..up: TypeError: the 'package' argument is required to perform a relative import for '..up'",
        "/dev/null/x.py: no such file",
    )
    assert sorted(plugins.types) == sink_types()


def test_the_second_plugin_with_the_same_sink_type_is_left_out(plugin_folder: PluginFolder) -> None:
    first = plugin_folder.add(PLUGIN, "first.py")
    second = plugin_folder.add(PLUGIN, "second.py")
    plugins = plugin_folder.load()
    assert plugins.types["mine"].source == str(first)
    assert plugins.problems == (f"{second}: sink type 'mine' is already registered by {first}",)


def test_a_broken_plugin_leaves_no_module_behind(plugin_folder: PluginFolder) -> None:
    before = set(sys.modules)
    plugin_folder.add("raise ValueError\n")
    plugin_folder.load()
    assert not [name for name in set(sys.modules) - before if "mine" in name]


def test_a_plugin_named_like_a_standard_module_shadows_nothing(plugin_folder: PluginFolder) -> None:
    code = "import json\nMINE = json.dumps([1])\nclass Mine:\n    built_with = MINE\n"
    for name in ("json.py", "logging.py", "email.py"):
        plugin_folder.add((IMPORTS + code + DELIVER + REGISTER).replace("'mine'", f"'{name}'"), name)
    before = {name: sys.modules[name] for name in ("json", "logging")}
    plugins = plugin_folder.load()
    assert plugins.problems == ()
    assert {name: sys.modules[name] for name in before} == before
    assert [vars(plugins.types[name].cls)["built_with"] for name in ("json.py", "email.py")] == ["[1]", "[1]"]
    assert str(plugin_folder.folder) not in sys.path


def test_plugins_of_the_same_name_in_two_folders_are_two_modules(plugin_folder: PluginFolder) -> None:
    for folder in ("one", "two"):
        plugin_folder.add(PLUGIN.replace("'mine'", f"'{folder}'"), f"{folder}/x.py")
    plugins = plugin_folder.load()
    assert plugins.problems == ()
    assert plugins.types["one"].cls is not plugins.types["two"].cls


def test_a_package_can_be_a_plugin_and_import_its_own_modules(plugin_folder: PluginFolder) -> None:
    (plugin_folder.folder / "pack").mkdir()
    (plugin_folder.folder / "pack" / "inner.py").write_text("WORD = 'from inside'\n")
    code = "from .inner import WORD\nclass Mine:\n    word = WORD\n"
    plugin_folder.add(IMPORTS + code + DELIVER + REGISTER, "pack/__init__.py")
    assert plugin_folder.build().word == "from inside"


def test_an_installed_module_can_be_a_plugin(plugin_folder: PluginFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(plugin_folder.folder)
    (plugin_folder.folder / "an_installed_plugin.py").write_text(PLUGIN)
    plugin_folder.plugins = ["an_installed_plugin"]
    assert type(plugin_folder.build()).__module__ == "an_installed_plugin"


def test_a_broken_installed_module_is_reported_with_file_and_line(
    plugin_folder: PluginFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(plugin_folder.folder)
    (plugin_folder.folder / "a_broken_plugin.py").write_text("\nraise ValueError('broken')\n")
    (plugin_folder.folder / "a_broken_package").mkdir()
    (plugin_folder.folder / "a_broken_package" / "__init__.py").write_text("import not_installed_here\n")
    plugin_folder.plugins = ["a_broken_plugin", "a_broken_package"]
    assert plugin_folder.load().problems == (
        "a_broken_plugin: a_broken_plugin.py:2: ValueError: broken",
        "a_broken_package: a_broken_package/__init__.py:1: ModuleNotFoundError: No module named 'not_installed_here'",
    )


def test_a_sink_type_cannot_be_registered_after_loading(plugin_folder: PluginFolder) -> None:
    plugin_folder.add(f"{IMPORTS}class Mine:\n{DELIVER}SAVED = []\n{REGISTER}    SAVED.append(register)\n")
    plugins = plugin_folder.load()
    register: Callable[[str, type], None] = sys.modules[plugins.types["mine"].cls.__module__].SAVED[0]
    register("later", int)
    assert sorted(plugins.types) == sink_types("mine")


INTAKE = """
import sys
from pathlib import Path
import receiver.intake.app, receiver.intake.web_server, receiver.server
from receiver.settings import load
receiver.server.prepare_intake(load())
files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
print([name for name in sys.modules if name.startswith("receiver.delivery") or "receiver_plugins" in name])
print([file for file in files if Path(file).is_relative_to(Path(sys.argv[1]) / "plugins")])
"""


def test_intake_imports_no_plugin_and_nothing_of_delivery(plugin_folder: PluginFolder) -> None:
    plugin_folder.add("raise SystemExit('imported')\n")
    settings = plugin_folder.settings("[sinks.console]\ntype = 'stdout'\n")
    done = subprocess.run(
        [sys.executable, "-c", INTAKE, str(ROOT)],
        env={"PYTHONPATH": str(ROOT), "RECEIVER_CONFIG": str(settings.path), SECRET: "s" * 32},
        cwd=plugin_folder.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n[]\n", "", 0)


def test_only_the_dispatcher_of_a_running_receiver_imports_plugins(
    tmp_path: Path, start_receiver: StartReceiver
) -> None:
    plugin, importers = tmp_path / "recorder.py", tmp_path / "importers"
    code = f"import os\nwith open({str(importers)!r}, 'a') as file:\n    print(os.getpid(), file=file)\n"
    plugin.write_text(IMPORTS + code + "class Mine:\n" + DELIVER + REGISTER)
    receiver = start_receiver(f"[receiver]\nplugins = ['{plugin}']\n[sinks.a]\ntype = 'mine'\n")
    assert receiver.push(Simulator().body("touch")) == (200, "accepted")
    wait_until(lambda: receiver.metric('receiver_deliveries_total{sink="a"}'))
    assert importers.read_text().split() == [str(receiver.dispatcher)]
