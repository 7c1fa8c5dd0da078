"""Plugins as users write them, right and wrong: what each may ask for, and the one line that says what is amiss."""

from __future__ import annotations

import dataclasses
import json
import logging
import multiprocessing
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, THERE_ARE, StartReceiver, sink_types, wait_until

from receiver.errors import PluginError
from receiver.event import Event
from receiver.lifeline import LIVES, Risks
from receiver.plugins import BUILT_IN, SHIPPED, Plugins, Sink, build_all, build_sink, load_plugins
from receiver.settings import SECRET, Secret, Settings, load
from receiver.simulator import Simulator

HEAD = "from dataclasses import dataclass, field\nfrom pathlib import Path\nfrom receiver import Secret, hookimpl\n"
REGISTER = "@hookimpl\ndef register_sinks(register):\n    register('mine', Mine)\n"
DELIVER = "    @hookimpl\n    def deliver(self, event):\n        pass\n"
HIDDEN = "hidden-value-of-a-secret"
WRITTEN = "credential-in-the-file"


class Workshop:
    """A folder with plugin files and a config.toml that names them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plugins: list[str] = []

    def plugin(self, code: str, name: str = "mine.py") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")
        self.plugins.append(name)
        return path

    def settings(self, sinks: str = "", **environ: str) -> Settings:
        config = f"[receiver]\nplugins = {json.dumps(self.plugins)}\n{sinks}"
        (self.folder / "config.toml").write_text(config, encoding="utf-8")
        return load({"RECEIVER_CONFIG": str(self.folder / "config.toml"), SECRET: "a-secret", **environ})

    def ready(self, sinks: str = "", **environ: str) -> tuple[Plugins, Settings]:
        settings = self.settings(sinks, **environ)
        return load_plugins(settings), settings

    def build(self, options: str = "", **environ: str) -> Any:
        """The object that a sink of type `mine` with these options became. Raises PluginError."""
        settings = self.settings(f"[sinks.a]\ntype = 'mine'\n{options}\n", **environ)
        return made(build_sink(load_plugins(settings), settings, settings.sinks[0]))

    def refusal(self, options: str = "", **environ: str) -> str:
        """Why a sink of type `mine` with these options is not built, while a good one beside it is."""
        sinks = f"[sinks.a]\ntype = 'mine'\n{options}\n[sinks.good]\ntype = 'stdout'\n"
        built, faulty = build_all(*self.ready(sinks, **environ))
        assert ([sink.name for sink in built], list(faulty)) == (["good"], ["a"])
        return faulty["a"]


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def made(sink: Sink) -> Any:
    """The object behind a sink."""
    hook = sink.hook.deliver_batch if sink.in_batches else sink.hook.deliver
    return hook.get_hookimpls()[0].plugin


def an_event() -> Event:
    return Event.from_body(Simulator(1).body("touch"), datetime(2026, 1, 31, tzinfo=UTC))


def test_the_built_in_sinks_are_plugins_like_any_other(workshop: Workshop) -> None:
    plugins = load_plugins(workshop.settings())
    sources = {name: sink_type.source for name, sink_type in plugins.types.items()}
    assert {name: source for name, source in sources.items() if Path(source).name in SHIPPED} == {
        "csv": str(BUILT_IN / "csv_file.py"),
        "sql": str(BUILT_IN / "sql.py"),
        "stdout": str(BUILT_IN / "stdout.py"),
        "webhook": str(BUILT_IN / "webhook.py"),
    }
    assert [fault for fault in plugins.faults if Path(fault.partition(":")[0]).name in SHIPPED] == []


@pytest.mark.parametrize(
    ("code", "fault"),
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
            "bad.py:4: Odd: ",
        ),
        ("x = 1\n", "implements no hook: mark its function register_sinks(register) with @hookimpl"),
        ("", "implements no hook: mark its function register_sinks(register) with @hookimpl"),
        (
            "def register_sinks(register):\n    register('x', int)\n",
            "bad.py:1: mark register_sinks with @hookimpl, or call it something else",
        ),
        (
            HEAD + "@hookimpl\ndef register_sink(register):\n    pass\n",
            "bad.py:4: there is no hook 'register_sink' (did you mean 'register_sinks'?)",
        ),
        (
            HEAD + "class X:\n" + DELIVER + "@hookimpl\ndef register_sinks(offer):\n    offer('x', X)\n",
            "bad.py:8: register_sinks has no argument 'offer'; it may name: register",
        ),
        (
            HEAD + "@hookimpl\ndef register_sinks(register):\n    register('x', object())\n",
            "register(type, cls) takes the name of a sink type and its class",
        ),
        (
            HEAD + "@hookimpl\ndef register_sinks(register):\n    register(int, 'x')\n",
            "register(type, cls) takes the name of a sink type and its class",
        ),
        (
            HEAD + "@hookimpl\ndef register_sinks(register):\n    register('x')\n",
            "bad.py:6: TypeError: _offered.<locals>.register() missing 1 required positional argument: 'cls'",
        ),
        (
            HEAD + "@hookimpl\ndef register_sinks(register):\n    register('x', int)\n    register('x', str)\n",
            "sink type 'x' is registered twice",
        ),
        (
            HEAD + "@hookimpl\ndef register_sinks(register):\n    register('x', int)\n    register('csv', int)\n",
            f"sink type 'csv' is already offered by {BUILT_IN / 'csv_file.py'}",
        ),
        (
            HEAD + "@hookimpl\ndef register_sinks(register):\n    raise OSError(5, 'gone')\n",
            "bad.py:6: OSError: [Errno 5] gone",
        ),
    ],
    ids=[
        *("syntax", "indentation", "missing import", "name that is not offered", "exception", "two lines", "sys.exit"),
        *("exit", "cancelled", "unprintable exception", "no hook", "empty file", "unmarked hook", "misspelt hook"),
        *("wrong argument", "no class", "no name", "too few arguments", "twice", "built-in name", "hook raises"),
    ],
)
def test_a_broken_plugin_is_one_line_and_stops_no_other(code: str, fault: str, workshop: Workshop) -> None:
    workshop.plugin(HEAD + "class Mine:\n" + DELIVER + REGISTER, "before.py")
    bad = workshop.plugin(code, "bad.py")
    workshop.plugin((HEAD + "class Mine:\n" + DELIVER + REGISTER).replace("'mine'", "'other'"), "later.py")

    plugins = load_plugins(workshop.settings())

    (line,) = plugins.faults
    assert line.startswith(f"{bad}: ")
    assert fault in line
    assert line.splitlines() == [line]
    assert sorted(plugins.types) == sink_types("mine", "other")


def test_a_plugin_that_is_not_there_is_one_line(workshop: Workshop) -> None:
    workshop.plugins = ["nowhere.py", "no_such_module", "", "..up", "/dev/null/x.py"]
    plugins = load_plugins(workshop.settings())
    assert plugins.faults == (
        f"{workshop.folder / 'nowhere.py'}: no such file",
        "no_such_module: ModuleNotFoundError: No module named 'no_such_module'",
        ": ValueError: Empty module name",
        "..up: TypeError: the 'package' argument is required to perform a relative import for '..up'",
        "/dev/null/x.py: no such file",
    )
    assert sorted(plugins.types) == sink_types()


def test_the_first_of_two_plugins_keeps_a_type_that_both_offer(workshop: Workshop) -> None:
    first = workshop.plugin(HEAD + "class Mine:\n" + DELIVER + REGISTER, "first.py")
    second = workshop.plugin(HEAD + "class Mine:\n" + DELIVER + REGISTER, "second.py")
    plugins = load_plugins(workshop.settings())
    assert plugins.types["mine"].source == str(first)
    assert plugins.faults == (f"{second}: sink type 'mine' is already offered by {first}",)


def test_a_type_that_a_broken_plugin_should_offer_is_a_fault_of_the_sink_alone(
    workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    bad = workshop.plugin("import not_installed_here\n")
    why = workshop.refusal()
    assert why == (f"config.toml [sinks.a]: no sink type 'mine'; {THERE_ARE}; 1 plugin(s) could not be loaded")
    missing = "mine.py:1: ModuleNotFoundError: No module named 'not_installed_here'"
    assert caplog.record_tuples == [("receiver.plugins", logging.ERROR, f"plugin left out: {bad}: {missing}")]


@pytest.mark.parametrize(
    ("type", "line"),
    [
        ("cvs", f"no sink type 'cvs' (did you mean 'csv'?); {THERE_ARE}"),
        ("kafka", f"no sink type 'kafka'; {THERE_ARE}"),
        ("", f"no sink type ''; {THERE_ARE}"),
    ],
)
def test_an_unknown_sink_type_is_named_with_the_nearest_right_one(type: str, line: str, workshop: Workshop) -> None:
    _, faulty = build_all(*workshop.ready(f"[sinks.a]\ntype = '{type}'"))
    assert faulty == {"a": f"config.toml [sinks.a]: {line}"}


OPTIONS = (
    HEAD
    + """
@dataclass
class Mine:
    url: str
    token: Secret
    out: Path = Path("unset")
    limit: int = 10
    tags: list[str] = field(default_factory=lambda: ["fresh"])
    ratio: float | None = None
"""
    + DELIVER
    + REGISTER
)


def test_options_are_given_with_their_types_and_the_others_keep_their_defaults(workshop: Workshop) -> None:
    workshop.plugin(OPTIONS)
    sink = workshop.build(f"url = 'u'\ntoken = '{HIDDEN}'")
    assert dataclasses.asdict(sink) == {
        "url": "u",
        "token": Secret(HIDDEN),
        "out": Path("unset"),
        "limit": 10,
        "tags": ["fresh"],
        "ratio": None,
    }


def test_a_default_that_a_function_of_the_plugins_makes_is_neither_made_nor_shown(workshop: Workshop) -> None:
    makes = "    token: str = field(default_factory=lambda: 1 / 0)\n    many: list[str] = field(default_factory=list)\n"
    workshop.plugin(HEAD + "@dataclass\nclass Mine:\n" + makes + DELIVER + REGISTER)
    plugins, _ = workshop.ready()
    assert [(each.name, each.default) for each in plugins.types["mine"].described()] == [("token", ""), ("many", "[]")]


def test_values_from_the_environment_become_the_type_that_is_asked_for(workshop: Workshop) -> None:
    workshop.plugin(OPTIONS)
    options = (
        "url = { env = 'U' }\ntoken = { env = 'T' }\nlimit = { env = 'L' }\nratio = { env = 'R' }\nout = 'a/b.csv'"
    )
    sink = workshop.build(options, U="http://u", T=HIDDEN, L="12", R="0.5")
    assert (sink.url, sink.token.get_secret_value(), sink.limit, sink.ratio) == ("http://u", HIDDEN, 12, 0.5)
    assert sink.out == workshop.folder / "a" / "b.csv"


def test_an_absolute_path_stays_and_paths_inside_a_list_count_from_config_toml_too(workshop: Workshop) -> None:
    fields = "    one: Path\n    many: list[Path]\n    named: dict[str, Path]\n"
    workshop.plugin(HEAD + "@dataclass\nclass Mine:\n" + fields + DELIVER + REGISTER)
    sink = workshop.build("one = '/abs/x'\nmany = ['a', '/b']\nnamed = { c = 'c' }")
    here = workshop.folder
    assert (sink.one, sink.many, sink.named) == (Path("/abs/x"), [here / "a", Path("/b")], {"c": here / "c"})


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ("", ["option 'url' is missing", "option 'token' is missing"]),
        ("url = 'u'\ntokn = 'x'", ["option 'token' is missing", "no option 'tokn' (did you mean 'token'?)"]),
        ("url = 'u'\ntoken = 'x'\nlimitt = 3", ["no option 'limitt' (did you mean 'limit'?)"]),
        ("url = 'u'\ntoken = 'x'\nenabld = false", ["no option 'enabld' (did you mean 'enabled'?)"]),
        ("url = 'u'\ntoken = 'x'\nself = 1", ["no option 'self'"]),
        ("url = 5\ntoken = 'x'", ["url = 5: Input should be a valid string"]),
        ("url = 'u'\ntoken = 12345678", ["token: Input should be a valid string"]),
        ("url = 'u'\ntoken = { evn = 'X' }", ["token: Input should be a valid string (did you mean { env = … }?)"]),
        (
            "url = 'u'\ntoken = 'x'\nlimit = 'ten'",
            ["limit = 'ten': Input should be a valid integer, unable to parse string as an integer"],
        ),
        (
            "url = 'u'\ntoken = 'x'\nlimit = { env = 'HIDDEN' }",
            ["limit: Input should be a valid integer, unable to parse string as an integer"],
        ),
        ("url = 'u'\ntoken = 'x'\ntags = 'a'", ["tags: Input should be a valid list"]),
        ("url = 'u'\ntoken = 'x'\ntags = ['a', 2]", ["tags.1: Input should be a valid string"]),
        ("url = 'u'\ntoken = { env = 'NOT_SET' }", ["token: the environment variable NOT_SET is not set"]),
        (
            "url = 'u'\ntoken = { env = 'NOT_SET' }\nlimit = 'x'\nconcurrency = 0\nlimitt = 3",
            [
                "concurrency = 0: Input should be greater than or equal to 1",
                "token: the environment variable NOT_SET is not set",
                "limit = 'x': Input should be a valid integer, unable to parse string as an integer",
                "no option 'limitt' (did you mean 'limit'?)",
            ],
        ),
    ],
    ids=[
        *("none given", "misspelt", "misspelt with a default", "misspelt common key", "self", "number for text"),
        *("number for a secret", "misspelt env", "text for a number", "environment for a number"),
        *("text for a list", "inside a list", "missing variable", "all kinds at once"),
    ],
)
def test_wrong_options_are_named_all_at_once(options: str, lines: list[str], workshop: Workshop) -> None:
    workshop.plugin(OPTIONS)
    why = workshop.refusal(options, HIDDEN=HIDDEN)
    assert re.split(r"; (?=config\.toml)|\n", why) == [f"config.toml [sinks.a]: {line}" for line in lines]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("key = 5", "key: Input should be a valid string, or: Input should be a valid list"),
        ("key = ['a', 5]", "key: Input should be a valid string"),
        ("key = { evn = 'A' }", "key: Input should be a valid string, or: Input should be a valid list "
         "(did you mean { env = … }?)"),
        ("pair = [1]", "pair: Field required, or: Input should be a valid integer"),
        ("many = 'a'", "many: Input should be a valid list, or: Input should be a valid integer, "
         "unable to parse string as an integer"),
    ],
)  # fmt: skip
def test_an_option_of_several_types_is_told_in_one_line_that_a_person_can_read(
    options: str, line: str, workshop: Workshop
) -> None:
    fields = (
        "    key: Secret | list[Secret] | None = None\n"
        "    many: list[int] | int = 1\n"
        "    pair: tuple[int, int] | int = 1\n"
    )
    workshop.plugin(HEAD + "@dataclass\nclass Mine:\n" + fields + DELIVER + REGISTER)
    assert workshop.refusal(options) == f"config.toml [sinks.a]: {line}"


def test_options_of_a_class_that_is_no_dataclass_though_it_looks_like_one(workshop: Workshop) -> None:
    body = "class Mine:\n    path: str\n    limit: int = 3\n"
    workshop.plugin(HEAD + body + DELIVER + REGISTER)
    assert workshop.refusal("path = 'p'\nlimit = 4").split("; config.toml [sinks.a]: ") == [
        "config.toml [sinks.a]: no option 'path'",
        "no option 'limit'",
        "Mine takes no options; is @dataclass missing?",
    ]
    decided = Workshop(workshop.folder / "decided")
    decided.plugin(HEAD + body + "    def __init__(self):\n        self.path = 'p'\n" + DELIVER + REGISTER)
    assert decided.refusal("path = 'p'") == "config.toml [sinks.a]: no option 'path'"


@pytest.mark.parametrize("name", ["type", "enabled", "filter", "retry", "concurrency", "batch_size"])
@pytest.mark.parametrize("options", ["", "retry = 3"])
def test_an_option_cannot_be_called_like_a_key_of_every_sink(name: str, options: str, workshop: Workshop) -> None:
    workshop.plugin(f"{HEAD}@dataclass\nclass Mine:\n    {name}: int = 1\n{DELIVER}{REGISTER}")
    complaint = f"mine.py:4: option '{name}' of Mine is a key of every sink; choose another name"
    assert workshop.refusal(options) == f"config.toml [sinks.a]: {complaint}"


def test_a_constructor_with_any_options_gets_all_of_them_as_they_are_written(workshop: Workshop) -> None:
    init = "    def __init__(self, url: str, **options):\n        self.got = {'url': url, **options}\n"
    workshop.plugin(HEAD + "class Mine:\n" + init + DELIVER + REGISTER)
    sink = workshop.build("url = 'u'\ncolour = 'red'\njson = true\ncopy = 3\nschema = 'public'\nnested = { a = [1] }")
    assert sink.got == {
        "url": "u",
        "colour": "red",
        "json": True,
        "copy": 3,
        "schema": "public",
        "nested": {"a": [1]},
    }


def test_options_may_be_called_what_they_like(workshop: Workshop) -> None:
    fields = ["schema: str", "json: bool", "copy: int", "model_fields: str", "_x: int", "model_config: str = 'c'"]
    body = "".join(f"    {field}\n" for field in fields)
    workshop.plugin(HEAD + "@dataclass\nclass Mine:\n" + body + DELIVER + REGISTER)
    sink = workshop.build("schema = 's'\njson = true\ncopy = 2\nmodel_fields = 'f'\n_x = 1\nmodel_config = 'd'")
    assert dataclasses.asdict(sink) == {
        "schema": "s",
        "json": True,
        "copy": 2,
        "model_fields": "f",
        "_x": 1,
        "model_config": "d",
    }


def test_annotations_may_be_strings(workshop: Workshop) -> None:
    workshop.plugin("from __future__ import annotations\n" + OPTIONS)
    sink = workshop.build(f"url = 'u'\ntoken = '{HIDDEN}'\nout = 'o'\nlimit = 3")
    assert (sink.token, sink.out, sink.limit) == (Secret(HIDDEN), workshop.folder / "o", 3)


def test_a_constructor_without_options_and_one_without_annotations_work(workshop: Workshop) -> None:
    workshop.plugin(
        HEAD + "class Mine:\n    def __init__(self, a, b=2, *rest):\n        self.got = a, b\n" + DELIVER + REGISTER
    )
    assert workshop.build("a = [1]").got == ([1], 2)
    bare = Workshop(workshop.folder / "bare")
    bare.plugin(HEAD + "class Mine:\n" + DELIVER + REGISTER)
    assert vars(bare.build()) == {}
    assert bare.refusal("x = 1") == "config.toml [sinks.a]: no option 'x'"


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (
            "class Mine:\n    def __init__(self):\n        raise ValueError('no\\nway')\n" + DELIVER,
            "mine.py:6: ValueError: no way",
        ),
        (
            "@dataclass\nclass Mine:\n    def __post_init__(self):\n        1 / 0\n" + DELIVER,
            "mine.py:7: ZeroDivisionError: division by zero",
        ),
        (
            "import sys\nclass Mine:\n    def __init__(self):\n        sys.exit(3)\n" + DELIVER,
            "mine.py:7: SystemExit: 3",
        ),
        ("class Mine:\n    def __init__(self, a=1, /):\n        pass\n" + DELIVER, None),
        (
            "class Mine:\n    pass\n",
            "Mine must implement exactly one of deliver and deliver_batch, marked with @hookimpl",
        ),
        (
            "class Mine:\n    def deliver(self, event):\n        pass\n",
            "mine.py:5: mark deliver with @hookimpl, or call it something else",
        ),
        (
            "class Mine:\n" + DELIVER + "    def open(self, name):\n        pass\n",
            "mine.py:8: mark open with @hookimpl, or call it something else",
        ),
        (
            "class Mine:\n" + DELIVER + "    @hookimpl\n    def deliver_batch(self, events):\n        pass\n",
            "Mine must implement exactly one of deliver and deliver_batch, marked with @hookimpl",
        ),
        (
            "class Mine:\n    @hookimpl\n    def delivr(self, event):\n        pass\n",
            "mine.py:5: there is no hook 'delivr' (did you mean 'deliver'?)",
        ),
        (
            "class Mine:\n    @hookimpl\n    def shutdown(self):\n        pass\n" + DELIVER,
            "mine.py:5: there is no hook 'shutdown'",
        ),
        (
            "class Mine:\n    @hookimpl\n    def deliver(self, evnt):\n        pass\n",
            "mine.py:5: deliver has no argument 'evnt' (did you mean 'event'?); it may name: event, attempt",
        ),
        (
            "class Mine:\n" + DELIVER + "    @hookimpl\n    def close(self, why):\n        pass\n",
            "mine.py:8: close has no argument 'why'; it has none",
        ),
        (
            "class Mine:\n    @hookimpl\n    def deliver(event):\n        pass\n",
            "mine.py:5: deliver lacks self as its first argument",
        ),
        (
            "class Mine:\n" + DELIVER + "    @hookimpl\n    def close():\n        pass\n",
            "mine.py:8: close lacks self as its first argument",
        ),
        (
            "class Base:\n    @hookimpl\n    def deliver(event, attempt):\n        pass\nclass Mine(Base):\n    pass\n",
            "mine.py:5: deliver lacks self as its first argument",
        ),
        ("class Mine:\n    @hookimpl\n    def deliver(this, event):\n        pass\n", None),
        ("class Mine:\n    @staticmethod\n    @hookimpl\n    def deliver(event):\n        pass\n", None),
        ("class Mine:\n    @classmethod\n    @hookimpl\n    def deliver(cls, event):\n        pass\n", None),
    ],
    ids=[
        *("constructor raises", "__post_init__ raises", "constructor exits", "positional only", "neither"),
        *("unmarked", "unmarked open", "both", "misspelt", "unknown", "wrong argument", "no argument"),
        *("no self", "no self and no argument", "no self in a base class", "self by another name"),
        *("static method", "class method"),
    ],
)
def test_a_sink_that_cannot_be_built_is_one_line_and_stops_no_other(
    code: str, line: str | None, workshop: Workshop
) -> None:
    workshop.plugin(HEAD + code + REGISTER)
    if line is None:
        workshop.build()
    else:
        assert workshop.refusal() == f"config.toml [sinks.a]: {line}"


@pytest.mark.parametrize(
    ("made", "options", "what"),
    [
        (
            "class Mine:\n    def __init__(self, x: 'Unknown' = 1):\n        pass\n",
            "",
            "NameError: name 'Unknown' is not defined",
        ),
        (
            "class Mine:\n    def __init__(self, x: 'list[Unknown]' = ()):\n        pass\n",
            "x = [1]",
            "NameError: name 'Unknown' is not defined",
        ),
        (
            "@dataclass\nclass Mine:\n    limit: 'floot'\n",
            "limit = 1",
            "NameError: name 'floot' is not defined",
        ),
        (
            "@dataclass\nclass Mine:\n    limit: 'list[int'\n",
            "limit = [1]",
            "SyntaxError: '[' was never closed (<string>, line 1)",
        ),
        (
            "class Mine:\n    def __init__(self, x: Annotated[int, BeforeValidator(len)]):\n        pass\n",
            "x = 1",
            "TypeError: object of type 'int' has no len()",
        ),
        ("class Mine(dict):\n    pass\n", "", "ValueError: no signature found for builtin type <class '"),
    ],
    ids=[
        *("unknown annotation", "unknown part of one", "unknown type of a field", "half an annotation"),
        *("validator that fails", "no signature"),
    ],
)
def test_a_constructor_whose_options_cannot_be_told_is_a_fault_of_its_sink_alone(
    made: str, options: str, what: str, workshop: Workshop
) -> None:
    imports = "from typing import Annotated\nfrom pydantic import BeforeValidator\n"
    workshop.plugin(imports + HEAD + made + DELIVER + REGISTER)
    why = workshop.refusal(options)
    assert why.startswith(f"config.toml [sinks.a]: mine.py:6: {what}")
    assert why.splitlines() == [why]


@pytest.mark.parametrize(
    "deliver",
    [
        "async def deliver(self, event):\n        pass",
        "def deliver(self, event):\n        yield",
        "async def deliver(self, event):\n        yield",
        "async def deliver_batch(self, events):\n        pass",
    ],
    ids=["coroutine", "generator", "asynchronous generator", "coroutine of a batch"],
)
def test_a_sink_whose_delivery_would_never_run_is_refused(deliver: str, workshop: Workshop) -> None:
    workshop.plugin(f"{HEAD}class Mine:\n    @hookimpl\n    {deliver}\n{REGISTER}")
    assert workshop.refusal().startswith("config.toml [sinks.a]: ")


def test_no_line_shows_a_secret_or_the_repr_of_a_sink(workshop: Workshop) -> None:
    fields = "    token: Secret\n    url: str\n    def __repr__(self):\n        return 'REPR ' + self.url\n"
    said = []
    for deliver in (
        "    @hookimpl\n    def delivr(self, event):\n        pass\n",
        "    @hookimpl\n    def deliver(self, evnt):\n        pass\n",
        "    def deliver(self, event):\n        pass\n",
        "    def __post_init__(self):\n        raise ValueError(f'{self} {self.token} {self.url}')\n" + DELIVER,
    ):
        shop = Workshop(workshop.folder / str(len(said)))
        shop.plugin(HEAD + "@dataclass(repr=False)\nclass Mine:\n" + fields + deliver + REGISTER)
        said.append(shop.refusal("token = 'secret-in-the-file'\nurl = { env = 'URL' }", URL=HIDDEN))
    assert said[-1] == "config.toml [sinks.a]: mine.py:11: ValueError: REPR *** ********** ***"
    assert not [line for line in said if HIDDEN in line or "secret-in-the-file" in line]
    assert not [line for line in said[:-1] if "REPR" in line]


def test_a_secret_of_several_lines_is_hidden_from_the_one_line_of_an_error(workshop: Workshop) -> None:
    init = "    def __init__(self, key: str):\n        raise ValueError(f'cannot use {key}')\n"
    workshop.plugin(HEAD + "class Mine:\n" + init + DELIVER + REGISTER)
    key = "-----BEGIN KEY-----\nc2VjcmV0  a2V5\n-----END KEY-----\n"
    why = workshop.refusal("key = { env = 'KEY' }", KEY=key)
    assert why == "config.toml [sinks.a]: mine.py:6: ValueError: cannot use ***"


@pytest.mark.parametrize(
    ("annotation", "given"),
    [
        ("Secret", f"'{WRITTEN}'"),
        ("Secret | None", f"'{WRITTEN}'"),
        ("list[Secret]", f"['{WRITTEN}']"),
        ("dict[str, Secret]", f"{{ key = '{WRITTEN}' }}"),
        ("Secret", f"'postgresql://user:{WRITTEN}@host/name'"),
        ("Secret", f"'https://chat.example/hooks/{WRITTEN}'"),
    ],
)
def test_a_secret_that_is_written_into_the_file_is_hidden_from_all_that_is_said_later(
    annotation: str, given: str, workshop: Workshop
) -> None:
    workshop.plugin(HEAD + f"@dataclass\nclass Mine:\n    token: {annotation}\n" + DELIVER + REGISTER)
    plugins, settings = workshop.ready(f"[sinks.a]\ntype = 'mine'\ntoken = {given}\n")
    assert WRITTEN in settings.redact(f"/hooks/{WRITTEN}")
    build_sink(plugins, settings, settings.sinks[0])
    assert settings.redact(f"no answer from url: /hooks/{WRITTEN}") in (
        "no answer from url: /hooks/***",
        "no answer from url: ***",
    )


def test_a_plugin_that_fails_with_a_secret_does_not_get_it_into_the_log(
    workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    workshop.plugin("raise RuntimeError('a-secret')\n")
    build_all(*workshop.ready())
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["***"]


CRASHES = "import os\nos._exit(5)\n"
EXITS_WHEN_MADE = "class Mine:\n    def __init__(self):\n        import os\n        os._exit(5)\n"


@pytest.mark.parametrize("where", ["loaded", "made"])
def test_a_plugin_that_takes_processes_down_before_it_is_ready_is_left_out_by_a_later_one(
    where: str, workshop: Workshop
) -> None:
    path = workshop.plugin(CRASHES if where == "loaded" else HEAD + EXITS_WHEN_MADE + DELIVER + REGISTER)
    settings = workshop.settings("[sinks.a]\ntype = 'mine'\n[sinks.good]\ntype = 'stdout'\n")
    risks, fork = Risks(), multiprocessing.get_context("fork")

    def life() -> None:
        build_all(load_plugins(settings, risks.taking), settings, risks.taking)

    for _ in range(LIVES):
        process = fork.Process(target=life)
        process.start()
        process.join(20)
        assert process.exitcode == 5
    plugins = load_plugins(settings, risks.taking)
    sinks, faulty = build_all(plugins, settings, risks.taking)
    why = "3 processes in a row died or hung while it was loaded; mend it and restart"
    assert [sink.name for sink in sinks] == ["good"]
    if where == "loaded":
        assert plugins.faults == (f"{path}: {why}",)
        assert list(faulty) == ["a"]
    else:
        assert (plugins.faults, faulty) == ((), {"a": why})


def test_only_what_never_came_to_its_end_is_left_alone() -> None:
    risks, cut_short = Risks(), []
    for _ in range(2 * LIVES):
        cut_short.append(risks.taking("mine"))
        cut_short[-1].__enter__()
        with risks.taking("mine"):
            pass
    with pytest.raises(ZeroDivisionError), risks.taking("mine"):
        print(1 / 0)
    with risks.taking("mine"):
        pass


def test_two_sinks_with_equal_options_are_two(workshop: Workshop) -> None:
    body = "    got: list[str] = field(default_factory=list, init=False)\n"
    deliver = "    @hookimpl\n    def deliver(self, event):\n        self.got.append(event.id)\n"
    workshop.plugin(HEAD + "@dataclass\nclass Mine:\n" + body + deliver + REGISTER)
    sinks, faulty = build_all(*workshop.ready("[sinks.a]\ntype = 'mine'\n[sinks.b]\ntype = 'mine'\n"))
    first, second = sinks
    assert made(first) == made(second)
    event = an_event()
    first.hook.deliver(event=event, attempt=1)
    assert ((first.name, made(first).got), (second.name, made(second).got)) == (("a", [event.id]), ("b", []))
    assert faulty == {}


def test_a_hook_gets_the_arguments_it_names(workshop: Workshop) -> None:
    hooks = """
class Mine:
    def __init__(self):
        self.got = []
    @hookimpl
    def open(self, logger):
        self.got.append(logger.name)
    @hookimpl
    def deliver_batch(self, attempts, events):
        self.got.append((attempts, [event.type for event in events]))
    @hookimpl
    def close(self):
        self.got.append("closed")
"""
    workshop.plugin(HEAD + hooks + REGISTER)
    ((sink,), _) = build_all(*workshop.ready("[sinks.a]\ntype = 'mine'\n"))
    assert (sink.name, sink.in_batches, made(sink).got) == ("a", True, [])
    sink.hook.open(name="a", logger=logging.getLogger("sink.a"))
    sink.hook.deliver_batch(events=[an_event()], attempts=[4])
    sink.hook.close()
    assert made(sink).got == ["sink.a", ([4], ["touch"]), "closed"]


def test_only_enabled_sinks_are_built(workshop: Workshop) -> None:
    workshop.plugin(HEAD + "class Mine:\n    def __init__(self):\n        raise ValueError\n" + DELIVER + REGISTER)
    assert build_all(*workshop.ready("[sinks.a]\ntype = 'mine'\nenabled = false\n")) == ([], {})


def test_a_plugin_named_like_a_standard_module_shadows_nothing(workshop: Workshop) -> None:
    code = "import json\nMINE = json.dumps([1])\nclass Mine:\n    made_with = MINE\n"
    for name in ("json.py", "logging.py", "email.py"):
        workshop.plugin((HEAD + code + DELIVER + REGISTER).replace("'mine'", f"'{name}'"), name)
    before = {name: sys.modules[name] for name in ("json", "logging")}
    plugins = load_plugins(workshop.settings())
    assert plugins.faults == ()
    assert {name: sys.modules[name] for name in before} == before
    assert [vars(plugins.types[name].cls)["made_with"] for name in ("json.py", "email.py")] == ["[1]", "[1]"]
    assert str(workshop.folder) not in sys.path


def test_two_plugins_of_the_same_name_in_two_folders_are_two(workshop: Workshop) -> None:
    for folder in ("one", "two"):
        workshop.plugin(
            (HEAD + "class Mine:\n" + DELIVER + REGISTER).replace("'mine'", f"'{folder}'"), f"{folder}/x.py"
        )
    plugins = load_plugins(workshop.settings())
    assert plugins.faults == ()
    assert plugins.types["one"].cls is not plugins.types["two"].cls


def test_a_package_is_a_plugin_that_may_import_its_own_modules(workshop: Workshop) -> None:
    (workshop.folder / "pack").mkdir()
    (workshop.folder / "pack" / "inner.py").write_text("WORD = 'from inside'\n")
    code = "from .inner import WORD\nclass Mine:\n    word = WORD\n"
    workshop.plugin(HEAD + code + DELIVER + REGISTER, "pack/__init__.py")
    assert workshop.build().word == "from inside"


def test_an_installed_module_is_a_plugin(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(workshop.folder)
    (workshop.folder / "an_installed_plugin.py").write_text(HEAD + "class Mine:\n" + DELIVER + REGISTER)
    workshop.plugins = ["an_installed_plugin"]
    assert type(workshop.build()).__module__ == "an_installed_plugin"


def test_an_installed_module_that_is_broken_is_named_with_file_and_line(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(workshop.folder)
    (workshop.folder / "a_broken_plugin.py").write_text("\nraise ValueError('broken')\n")
    (workshop.folder / "a_broken_package").mkdir()
    (workshop.folder / "a_broken_package" / "__init__.py").write_text("import not_installed_here\n")
    workshop.plugins = ["a_broken_plugin", "a_broken_package"]
    assert load_plugins(workshop.settings()).faults == (
        "a_broken_plugin: a_broken_plugin.py:2: ValueError: broken",
        "a_broken_package: __init__.py:1: ModuleNotFoundError: No module named 'not_installed_here'",
    )


def test_an_error_deep_inside_a_library_names_the_line_of_the_plugin(workshop: Workshop) -> None:
    code = "import json\nclass Mine:\n    def __init__(self):\n        json.loads('{')\n"
    workshop.plugin(HEAD + code + DELIVER + REGISTER)
    assert workshop.refusal().startswith("config.toml [sinks.a]: mine.py:7: JSONDecodeError: ")


def test_a_broken_plugin_leaves_nothing_behind(workshop: Workshop) -> None:
    before = set(sys.modules)
    workshop.plugin("raise ValueError\n")
    load_plugins(workshop.settings())
    assert not [name for name in set(sys.modules) - before if "mine" in name]


def test_build_sink_raises_nothing_but_plugin_errors(workshop: Workshop) -> None:
    workshop.plugin(OPTIONS)
    with pytest.raises(PluginError, match=r"^config.toml \[sinks.a\]: option 'url' is missing\n"):
        workshop.build()


RECEIVING = """
import sys
from pathlib import Path
import receiver.app, receiver.intake, receiver.server
from receiver.settings import load
receiver.server.prepare(load())
files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
print([name for name in sys.modules if name.startswith("receiver") and "plugin" in name])
print([file for file in files if Path(file).parent.name == "plugins" and Path(file).parent.parent == Path(sys.argv[1])])
"""


def test_what_receives_imports_no_plugin_and_nothing_that_would(workshop: Workshop) -> None:
    workshop.plugin("raise SystemExit('imported')\n")
    settings = workshop.settings("[sinks.console]\ntype = 'stdout'\n")
    done = subprocess.run(
        [sys.executable, "-c", RECEIVING, str(ROOT)],
        env={"PYTHONPATH": str(ROOT), "RECEIVER_CONFIG": str(settings.path), SECRET: "s" * 32},
        cwd=workshop.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n[]\n", "", 0)


def test_only_the_dispatcher_of_a_running_receiver_imports_plugins(
    tmp_path: Path, start_receiver: StartReceiver
) -> None:
    plugin, seen = tmp_path / "recorder.py", tmp_path / "seen"
    code = f"import os\nwith open({str(seen)!r}, 'a') as file:\n    print(os.getpid(), file=file)\n"
    plugin.write_text(HEAD + code + "class Mine:\n" + DELIVER + REGISTER)
    receiver = start_receiver(f"[receiver]\nplugins = ['{plugin}']\n[sinks.a]\ntype = 'mine'\n")
    assert receiver.push(Simulator().body("touch")) == (200, "accepted")
    wait_until(lambda: receiver.metric('receiver_delivered_total{sink="a"}'))
    assert seen.read_text().split() == [str(receiver.dispatcher)]


def test_registering_is_done_once_and_not_kept(workshop: Workshop) -> None:
    workshop.plugin(HEAD + "class Mine:\n" + DELIVER + "KEPT = []\n" + REGISTER + "    KEPT.append(register)\n")
    plugins = load_plugins(workshop.settings())
    register: Callable[[str, type], None] = sys.modules[plugins.types["mine"].cls.__module__].KEPT[0]
    register("later", int)
    assert sorted(plugins.types) == sink_types("mine")
