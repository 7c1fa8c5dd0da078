"""Building sinks: the options of `[sinks.NAME]`, and the line for everything that is wrong with them."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path

import pytest
from conftest import THERE_ARE
from support.built_in_sinks import built_in_plugins
from support.plugins import DELIVER, IMPORTS, PLUGIN, REGISTER, PluginFolder, object_behind, touch_event

from receiver.delivery.plugins import load_plugins
from receiver.delivery.sinks import find_problems
from receiver.errors import PluginError
from receiver.redaction import Redactor
from receiver.settings import Secret

HIDDEN = "hidden-value-of-a-secret"

OPTIONS = (
    IMPORTS
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


def test_a_broken_plugin_breaks_the_sinks_of_its_type_and_no_other(
    plugin_folder: PluginFolder, caplog: pytest.LogCaptureFixture
) -> None:
    bad = plugin_folder.add("import not_installed_here\n")
    problem = plugin_folder.problem()
    assert problem == f"config.toml [sinks.a]: no sink type 'mine'; {THERE_ARE}; 1 plugin could not be loaded"
    missing = "mine.py:1: ModuleNotFoundError: No module named 'not_installed_here'"
    assert caplog.record_tuples == [("receiver.delivery.sinks", logging.ERROR, f"plugin skipped: {bad}: {missing}")]


@pytest.mark.parametrize(
    ("type", "line"),
    [
        ("cvs", f"no sink type 'cvs' (did you mean 'csv'?); {THERE_ARE}"),
        ("kafka", f"no sink type 'kafka'; {THERE_ARE}"),
        ("", f"no sink type ''; {THERE_ARE}"),
    ],
    ids=["misspelt", "unknown", "empty"],
)
def test_an_unknown_sink_type_is_reported_with_the_nearest_one(
    type: str, line: str, plugin_folder: PluginFolder
) -> None:
    _, broken = plugin_folder.build_sinks(f"[sinks.a]\ntype = '{type}'")
    assert broken == {"a": f"config.toml [sinks.a]: {line}"}


def test_options_that_are_set_reach_the_constructor_and_the_others_keep_their_defaults(
    plugin_folder: PluginFolder,
) -> None:
    plugin_folder.add(OPTIONS)
    sink = plugin_folder.build(f"url = 'u'\ntoken = '{HIDDEN}'")
    assert dataclasses.asdict(sink) == {
        "url": "u",
        "token": Secret(HIDDEN),
        "out": Path("unset"),
        "limit": 10,
        "tags": ["fresh"],
        "ratio": None,
    }


@pytest.mark.parametrize(
    ("given", "got"),
    [
        ("sqlite:///data/x.sqlite", "sqlite:///{folder}/data/x.sqlite"),
        (" sqlite+pysqlite:///x.sqlite?timeout=5\n", " sqlite+pysqlite:///{folder}/x.sqlite?timeout=5\n"),
        ("sqlite:////srv/x.sqlite", "sqlite:////srv/x.sqlite"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("sqlite:///file:x.sqlite", "sqlite:///file:x.sqlite"),
        ("sqlite:///", "sqlite:///"),
        ("postgres://u@h/data", "postgres://u@h/data"),
        ("see sqlite:///x", "see sqlite:///x"),
    ],
)
def test_a_relative_path_in_the_url_of_an_sqlite_file_counts_from_config_toml(
    given: str, got: str, plugin_folder: PluginFolder
) -> None:
    plugin_folder.add(OPTIONS)
    sink = plugin_folder.build("url = { env = 'URL' }\ntoken = { env = 'URL' }", URL=given)
    expected = got.format(folder=plugin_folder.folder)
    assert (sink.url, sink.token) == (expected, Secret(expected))


def test_a_default_factory_of_a_plugin_is_neither_called_nor_shown(plugin_folder: PluginFolder) -> None:
    factories = (
        "    token: str = field(default_factory=lambda: 1 / 0)\n    many: list[str] = field(default_factory=list)\n"
    )
    plugin_folder.add(IMPORTS + "@dataclass\nclass Mine:\n" + factories + DELIVER + REGISTER)
    options = plugin_folder.load().types["mine"].described()
    assert [(each.name, each.default) for each in options] == [("token", ""), ("many", "[]")]


def test_values_from_the_environment_are_converted_to_the_type_of_their_option(plugin_folder: PluginFolder) -> None:
    plugin_folder.add(OPTIONS)
    options = (
        "url = { env = 'U' }\ntoken = { env = 'T' }\nlimit = { env = 'L' }\nratio = { env = 'R' }\nout = 'a/b.csv'"
    )
    sink = plugin_folder.build(options, U="http://u", T=HIDDEN, L="12", R="0.5")
    assert (sink.url, sink.token.get_secret_value(), sink.limit, sink.ratio) == ("http://u", HIDDEN, 12, 0.5)
    assert sink.out == plugin_folder.folder / "a" / "b.csv"


def test_relative_paths_count_from_config_toml_also_inside_lists_and_tables(plugin_folder: PluginFolder) -> None:
    fields = "    one: Path\n    many: list[Path]\n    named: dict[str, Path]\n"
    plugin_folder.add(IMPORTS + "@dataclass\nclass Mine:\n" + fields + DELIVER + REGISTER)
    sink = plugin_folder.build("one = '/abs/x'\nmany = ['a', '/b']\nnamed = { c = 'c' }")
    here = plugin_folder.folder
    assert (sink.one, sink.many, sink.named) == (Path("/abs/x"), [here / "a", Path("/b")], {"c": here / "c"})


@pytest.mark.parametrize(
    ("annotation", "given", "expected"),
    [
        ("tuple[Path, ...]", "['a']", "({a!r},)"),
        ("frozenset[Path]", "['a']", "frozenset({{{a!r}}})"),
        ("Named", "[1, 'a']", "Named(number=1, path={a!r})"),
        ("Frozen", "{{ path = 'a' }}", "Frozen(path={a!r})"),
        ("Model", "{{ path = 'a' }}", "Model(path={a!r})"),
    ],
)
def test_relative_paths_count_from_config_toml_also_inside_other_types(
    annotation: str, given: str, expected: str, plugin_folder: PluginFolder
) -> None:
    types = (
        "from typing import NamedTuple\nfrom pydantic import BaseModel\n"
        "class Named(NamedTuple):\n    number: int\n    path: Path\n"
        "@dataclass(frozen=True)\nclass Frozen:\n    path: Path\n"
        "class Model(BaseModel):\n    path: Path\n"
    )
    plugin_folder.add(IMPORTS + types + f"@dataclass\nclass Mine:\n    option: {annotation}\n" + DELIVER + REGISTER)
    sink = plugin_folder.build(f"option = {given.format()}")
    assert repr(sink.option) == expected.format(a=plugin_folder.folder / "a")


def test_an_option_can_be_an_enumeration_of_text(plugin_folder: PluginFolder) -> None:
    mode = "from enum import StrEnum\nclass Mode(StrEnum):\n    FAST = 'fast'\n"
    plugin_folder.add(IMPORTS + mode + "@dataclass\nclass Mine:\n    mode: Mode\n" + DELIVER + REGISTER)
    assert repr(plugin_folder.build("mode = 'fast'").mode) == "<Mode.FAST: 'fast'>"


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ("", ["option 'url' is missing", "option 'token' is missing"]),
        ("url = 'u'\ntokn = 'x'", ["option 'token' is missing", "no option 'tokn' (did you mean 'token'?)"]),
        ("url = 'u'\ntoken = 'x'\nlimitt = 3", ["no option 'limitt' (did you mean 'limit'?)"]),
        ("url = 'u'\ntoken = 'x'\nenabld = false", ["no option 'enabld' (did you mean 'enabled'?)"]),
        ("url = 'u'\ntoken = 'x'\nself = 1", ["no option 'self'"]),
        ("url = 5\ntoken = 'x'", ['url = 5: give text in quotes, such as "text"']),
        ("url = 'u'\ntoken = 12345678", ['token: give text in quotes, such as "text"']),
        (
            "url = 'u'\ntoken = { evn = 'X' }",
            ['token: give text in quotes, such as "text" (did you mean { env = … }?)'],
        ),
        (
            "url = 'u'\ntoken = 'x'\nlimit = 'ten'",
            ["limit = 'ten': give a whole number, such as 5"],
        ),
        (
            "url = 'u'\ntoken = 'x'\nlimit = { env = 'HIDDEN' }",
            ["limit: give a whole number, such as 5"],
        ),
        ("url = 'u'\ntoken = 'x'\ntags = 'a'", ['tags: give a list, such as ["a", "b"]']),
        ("url = 'u'\ntoken = 'x'\ntags = ['a', 2]", ['tags.1: give text in quotes, such as "text"']),
        ("url = 'u'\ntoken = { env = 'NOT_SET' }", ["token: the environment variable NOT_SET is not set"]),
        (
            "url = 'u'\ntoken = { env = 'NOT_SET' }\nlimit = 'x'\nconcurrency = 0\nlimitt = 3",
            [
                "concurrency = 0: give at least 1",
                "token: the environment variable NOT_SET is not set",
                "limit = 'x': give a whole number, such as 5",
                "no option 'limitt' (did you mean 'limit'?)",
            ],
        ),
    ],
    ids=[
        *("none", "misspelt", "misspelt with a default", "misspelt common key", "self", "number for text"),
        *("number for a secret", "misspelt env", "text for a number", "environment for a number"),
        *("text for a list", "inside a list", "missing variable", "all kinds at once"),
    ],
)
def test_all_invalid_options_are_reported_at_once(options: str, lines: list[str], plugin_folder: PluginFolder) -> None:
    plugin_folder.add(OPTIONS)
    problem = plugin_folder.problem(options, HIDDEN=HIDDEN)
    assert re.split(r"; (?=config\.toml)|\n", problem) == [f"config.toml [sinks.a]: {line}" for line in lines]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("key = 5", "key: give text in quotes, such as \"text\", or: give a list, such as [\"a\", \"b\"]"),
        ("key = ['a', 5]", "key: give text in quotes, such as \"text\""),
        ("key = { evn = 'A' }", "key: give text in quotes, such as \"text\", or: give a list, such as [\"a\", \"b\"] "
         "(did you mean { env = … }?)"),
        ("pair = [1]", "pair: too few values, or: give a whole number, such as 5"),
        ("many = 'a'", "many: give a list, such as [\"a\", \"b\"], or: give a whole number, such as 5"),
    ],
    ids=["number", "inside a list", "misspelt env", "too short", "text"],
)  # fmt: skip
def test_an_invalid_option_of_several_types_is_reported_in_one_readable_line(
    options: str, line: str, plugin_folder: PluginFolder
) -> None:
    fields = (
        "    key: Secret | list[Secret] | None = None\n"
        "    many: list[int] | int = 1\n"
        "    pair: tuple[int, int] | int = 1\n"
    )
    plugin_folder.add(IMPORTS + "@dataclass\nclass Mine:\n" + fields + DELIVER + REGISTER)
    assert plugin_folder.problem(options) == f"config.toml [sinks.a]: {line}"


FLAGS_AND_NUMBERS = """
    on: bool = False
    maybe: bool | None = None
    flags: Mapping[str, bool] = field(default_factory=dict)
    count: int = 1
    ratio: float | None = None
    wait: Annotated[float, Field(gt=0)] = 1.0
    some: list[int] = field(default_factory=list)
    pair: tuple[int, ...] = ()
    either: int | str = 1
    any: Any = None
"""


def test_flags_and_numbers_in_quotes_are_problems_also_inside_lists_and_tables(plugin_folder: PluginFolder) -> None:
    imports = "from collections.abc import Mapping\nfrom typing import Annotated, Any\nfrom pydantic import Field\n"
    plugin_folder.add(IMPORTS + imports + "@dataclass\nclass Mine:\n" + FLAGS_AND_NUMBERS + DELIVER + REGISTER)
    options = (
        "on = 'no'\nmaybe = 1\nflags = { a = 'true' }\ncount = true\nratio = '0.5'\nwait = '2'\nsome = [1, '2']\n"
        "pair = ['3']\neither = '5'\nany = 'no'"
    )
    assert re.split(r"; (?=config\.toml)", plugin_folder.problem(options)) == [
        "config.toml [sinks.a]: on = 'no': give false without quotes",
        "config.toml [sinks.a]: maybe: give true or false",
        "config.toml [sinks.a]: flags.a: give true without quotes",
        "config.toml [sinks.a]: count = True: give a number",
        "config.toml [sinks.a]: ratio: give a number without quotes",
        "config.toml [sinks.a]: wait = '2': give a number without quotes",
        "config.toml [sinks.a]: some.1: give a number without quotes",
        "config.toml [sinks.a]: pair.0: give a number without quotes",
    ]
    from_environment = (
        "on = { env = 'N' }\nmaybe = { env = 'N' }\nflags = { a = { env = 'N' } }\ncount = { env = 'TWO' }\n"
        "ratio = { env = 'TWO' }\nwait = { env = 'TWO' }\nsome = [{ env = 'TWO' }, 3]\npair = [{ env = 'TWO' }]\n"
        "either = 5\nany = { env = 'N' }"
    )
    sink = plugin_folder.build(from_environment, N="no", TWO="2")
    assert dataclasses.astuple(sink) == (False, False, {"a": False}, 2, 2.0, 2.0, [2, 3], (2,), 5, "no")


def test_no_flag_of_a_built_in_sink_may_be_in_quotes(plugin_folder: PluginFolder) -> None:
    flags = {
        name: [option.name for option in found.described() if option.type == "true or false"]
        for name, found in built_in_plugins().types.items()
    }
    tables = [
        "\n".join([f"[sinks.{name}]", f"type = '{name}'", *(f"{key} = 'no'" for key in keys)])
        for name, keys in flags.items()
        if keys
    ]
    _, broken = plugin_folder.build_sinks("\n".join(tables))
    found = {name: re.findall(r"(\w+) = 'no': give false without quotes", broken.get(name, "")) for name in flags}
    assert found == flags
    assert len(tables) >= 3


def test_a_class_with_annotations_only_is_reported_as_a_missing_dataclass(plugin_folder: PluginFolder) -> None:
    body = "class Mine:\n    path: str\n    limit: int = 3\n"
    plugin_folder.add(IMPORTS + body + DELIVER + REGISTER)
    assert plugin_folder.problem("path = 'p'\nlimit = 4").split("; config.toml [sinks.a]: ") == [
        "config.toml [sinks.a]: no option 'path'",
        "no option 'limit'",
        "Mine has no options; is @dataclass missing?",
    ]
    with_constructor = PluginFolder(plugin_folder.folder / "with_constructor")
    with_constructor.add(IMPORTS + body + "    def __init__(self):\n        self.path = 'p'\n" + DELIVER + REGISTER)
    assert with_constructor.problem("path = 'p'") == "config.toml [sinks.a]: no option 'path'"


@pytest.mark.parametrize("name", ["type", "enabled", "filter", "retry", "concurrency", "batch_size"])
@pytest.mark.parametrize("options", ["", "retry = 3"], ids=["no options", "an invalid common key"])
def test_an_option_cannot_have_the_name_of_a_common_key(name: str, options: str, plugin_folder: PluginFolder) -> None:
    plugin_folder.add(f"{IMPORTS}@dataclass\nclass Mine:\n    {name}: int = 1\n{DELIVER}{REGISTER}")
    problem = f"mine.py:4: option '{name}' of Mine is a key of every sink; choose another name"
    assert plugin_folder.problem(options) == f"config.toml [sinks.a]: {problem}"


def test_a_constructor_with_keyword_arguments_gets_all_options_unchanged(plugin_folder: PluginFolder) -> None:
    init = "    def __init__(self, url: str, **options):\n        self.got = {'url': url, **options}\n"
    plugin_folder.add(IMPORTS + "class Mine:\n" + init + DELIVER + REGISTER)
    sink = plugin_folder.build(
        "url = 'u'\ncolour = 'red'\njson = true\ncopy = 3\nschema = 'public'\nnested = { a = [1] }"
    )
    assert sink.got == {
        "url": "u",
        "colour": "red",
        "json": True,
        "copy": 3,
        "schema": "public",
        "nested": {"a": [1]},
    }


def test_options_can_have_names_that_pydantic_uses_itself(plugin_folder: PluginFolder) -> None:
    fields = ["schema: str", "json: bool", "copy: int", "model_fields: str", "_x: int", "model_config: str = 'c'"]
    body = "".join(f"    {field}\n" for field in fields)
    plugin_folder.add(IMPORTS + "@dataclass\nclass Mine:\n" + body + DELIVER + REGISTER)
    sink = plugin_folder.build("schema = 's'\njson = true\ncopy = 2\nmodel_fields = 'f'\n_x = 1\nmodel_config = 'd'")
    assert dataclasses.asdict(sink) == {
        "schema": "s",
        "json": True,
        "copy": 2,
        "model_fields": "f",
        "_x": 1,
        "model_config": "d",
    }


def test_annotations_can_be_strings(plugin_folder: PluginFolder) -> None:
    plugin_folder.add("from __future__ import annotations\n" + OPTIONS)
    sink = plugin_folder.build(f"url = 'u'\ntoken = '{HIDDEN}'\nout = 'o'\nlimit = 3")
    assert (sink.token, sink.out, sink.limit) == (Secret(HIDDEN), plugin_folder.folder / "o", 3)


def test_a_constructor_without_annotations_accepts_any_value(plugin_folder: PluginFolder) -> None:
    plugin_folder.add(
        IMPORTS + "class Mine:\n    def __init__(self, a, b=2, *rest):\n        self.got = a, b\n" + DELIVER + REGISTER
    )
    assert plugin_folder.build("a = [1]").got == ([1], 2)


def test_a_sink_without_a_constructor_has_no_options(plugin_folder: PluginFolder) -> None:
    plugin_folder.add(PLUGIN)
    assert vars(plugin_folder.build()) == {}
    assert plugin_folder.problem("x = 1") == "config.toml [sinks.a]: no option 'x'"


def test_a_constructor_can_have_positional_only_arguments_with_defaults(plugin_folder: PluginFolder) -> None:
    plugin_folder.add(
        IMPORTS + "class Mine:\n    def __init__(self, a=1, /):\n        self.got = a\n" + DELIVER + REGISTER
    )
    assert plugin_folder.build().got == 1


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (
            "class Mine:\n    def __init__(self):\n        raise ValueError('no\\nway')\n",
            "no way",
        ),
        (
            "@dataclass\nclass Mine:\n    def __post_init__(self):\n        1 / 0\n",
            "mine.py:7: ZeroDivisionError: division by zero",
        ),
        (
            "import sys\nclass Mine:\n    def __init__(self):\n        sys.exit(3)\n",
            "mine.py:7: SystemExit: 3",
        ),
    ],
    ids=["__init__", "__post_init__", "sys.exit"],
)
def test_a_constructor_that_raises_is_reported_in_one_line_and_the_other_sinks_are_built(
    code: str, line: str, plugin_folder: PluginFolder
) -> None:
    plugin_folder.add(IMPORTS + code + DELIVER + REGISTER)
    assert plugin_folder.problem() == f"config.toml [sinks.a]: {line}"


def test_an_error_inside_a_library_is_reported_with_the_line_of_the_plugin(plugin_folder: PluginFolder) -> None:
    code = "import json\nclass Mine:\n    def __init__(self):\n        json.loads('{')\n"
    plugin_folder.add(IMPORTS + code + DELIVER + REGISTER)
    assert plugin_folder.problem().startswith("config.toml [sinks.a]: mine.py:7: JSONDecodeError: ")


@pytest.mark.parametrize(
    ("code", "options", "problem"),
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
        *("unknown annotation", "unknown part of an annotation", "unknown type of a field", "incomplete annotation"),
        *("validator that raises", "no signature"),
    ],
)
def test_a_constructor_with_an_unusable_signature_is_reported_in_one_line_and_the_other_sinks_are_built(
    code: str, options: str, problem: str, plugin_folder: PluginFolder
) -> None:
    imports = "from typing import Annotated\nfrom pydantic import BeforeValidator\n"
    plugin_folder.add(imports + IMPORTS + code + DELIVER + REGISTER)
    line = plugin_folder.problem(options)
    assert line.startswith(f"config.toml [sinks.a]: mine.py:6: {problem}")
    assert line.splitlines() == [line]


def test_two_sinks_with_equal_options_are_independent(plugin_folder: PluginFolder) -> None:
    body = "    got: list[str] = field(default_factory=list, init=False)\n"
    deliver = "    @hookimpl\n    def deliver(self, event):\n        self.got.append(event.id)\n"
    plugin_folder.add(IMPORTS + "@dataclass\nclass Mine:\n" + body + deliver + REGISTER)
    (first, second), broken = plugin_folder.build_sinks("[sinks.a]\ntype = 'mine'\n[sinks.b]\ntype = 'mine'\n")
    assert object_behind(first) == object_behind(second)
    event = touch_event()
    first.hook.deliver(event=event, attempt=1)
    assert (first.name, object_behind(first).got) == ("a", [event.id])
    assert (second.name, object_behind(second).got) == ("b", [])
    assert broken == {}


def test_only_enabled_sinks_are_built(plugin_folder: PluginFolder) -> None:
    init = "    def __init__(self):\n        raise ValueError\n"
    plugin_folder.add(IMPORTS + "class Mine:\n" + init + DELIVER + REGISTER)
    assert plugin_folder.build_sinks("[sinks.a]\ntype = 'mine'\nenabled = false\n") == ([], {})


def test_build_sink_raises_plugin_error_with_a_line_for_each_problem(plugin_folder: PluginFolder) -> None:
    plugin_folder.add(OPTIONS)
    with pytest.raises(PluginError) as raised:
        plugin_folder.build()
    assert str(raised.value).splitlines() == [
        "config.toml [sinks.a]: option 'url' is missing",
        "config.toml [sinks.a]: option 'token' is missing",
    ]


def test_find_problems_lists_those_of_plugins_and_of_all_sinks_without_building_disabled_ones(
    plugin_folder: PluginFolder,
) -> None:
    plugin_folder.add(OPTIONS)
    bad = plugin_folder.add("1 / 0\n", "bad.py")
    off = "[sinks.off]\ntype = 'mine'\nenabled = false\nconcurrency = 0\n"
    settings = plugin_folder.settings(f"[sinks.a]\ntype = 'mine'\n{off}[sinks.valid]\ntype = 'stdout'\n")
    redactor = Redactor(settings.secret_values)
    assert find_problems(load_plugins(settings, redactor), settings, redactor) == (
        [
            f"plugin {bad}: bad.py:1: ZeroDivisionError: division by zero",
            "config.toml [sinks.a]: option 'url' is missing",
            "config.toml [sinks.a]: option 'token' is missing",
            "config.toml [sinks.off]: concurrency = 0: give at least 1",
        ],
        {"valid": None},
    )


def test_a_sink_can_return_its_problems_as_an_iterator(plugin_folder: PluginFolder) -> None:
    hook = "    @hookimpl\n    def find_problems(self):\n        return filter(None, ['', 'it cannot work'])\n"
    plugin_folder.add(IMPORTS + "class Mine:\n" + hook + DELIVER + REGISTER)
    settings = plugin_folder.settings("[sinks.a]\ntype = 'mine'\n")
    redactor = Redactor(settings.secret_values)
    lines, _ = find_problems(load_plugins(settings, redactor), settings, redactor)
    assert lines == ["config.toml [sinks.a]: it cannot work"]
