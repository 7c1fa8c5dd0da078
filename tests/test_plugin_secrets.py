"""Secrets of plugins and sinks: none is shown in a problem, in a later message, or in the log."""

from __future__ import annotations

import pytest
from support.plugins import DELIVER, IMPORTS, REGISTER, SIGNATURE_SECRET, PluginFolder

from receiver.delivery.plugins import load_plugins
from receiver.delivery.sinks import build_sink
from receiver.redaction import Redactor

FROM_ENVIRONMENT = "hidden-value-of-a-secret"
IN_THE_FILE = "credential-in-the-file"

FIELDS = "    token: Secret\n    url: str\n    def __repr__(self):\n        return 'REPR ' + self.url\n"


@pytest.mark.parametrize(
    ("deliver", "problem"),
    [
        (
            "    @hookimpl\n    def delivr(self, event):\n        pass\n",
            "mine.py:10: there is no hook 'delivr' (did you mean 'deliver'?)",
        ),
        (
            "    @hookimpl\n    def deliver(self, evnt):\n        pass\n",
            "mine.py:10: deliver has no argument 'evnt' (did you mean 'event'?); it can have: event, attempt",
        ),
        (
            "    def deliver(self, event):\n        pass\n",
            "mine.py:10: mark deliver with @hookimpl, or give it another name",
        ),
        (
            "    def __post_init__(self):\n        raise ValueError(f'{self} {self.token} {self.url}')\n" + DELIVER,
            "REPR *** ********** ***",
        ),
    ],
    ids=["unknown hook", "unknown argument", "unmarked hook", "constructor raises"],
)
def test_a_problem_shows_neither_a_secret_nor_the_repr_of_a_sink(
    deliver: str, problem: str, plugin_folder: PluginFolder
) -> None:
    plugin_folder.add(f"{IMPORTS}@dataclass(repr=False)\nclass Mine:\n{FIELDS}{deliver}{REGISTER}")
    options = f"token = '{IN_THE_FILE}'\nurl = {{ env = 'URL' }}"
    assert plugin_folder.problem(options, URL=FROM_ENVIRONMENT) == f"config.toml [sinks.a]: {problem}"


def test_a_secret_of_several_lines_is_hidden_in_the_one_line_of_a_problem(plugin_folder: PluginFolder) -> None:
    init = "    def __init__(self, key: str):\n        raise ValueError(f'cannot use {key}')\n"
    plugin_folder.add(IMPORTS + "class Mine:\n" + init + DELIVER + REGISTER)
    key = "-----BEGIN KEY-----\nc2VjcmV0  a2V5\n-----END KEY-----\n"
    problem = plugin_folder.problem("key = { env = 'KEY' }", KEY=key)
    assert problem == "config.toml [sinks.a]: cannot use ***"


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        ("Secret", f"'{IN_THE_FILE}'"),
        ("Secret | None", f"'{IN_THE_FILE}'"),
        ("list[Secret]", f"['{IN_THE_FILE}']"),
        ("frozenset[Secret]", f"['{IN_THE_FILE}']"),
        ("dict[str, Secret]", f"{{ key = '{IN_THE_FILE}' }}"),
        ("Login", f"{{ key = '{IN_THE_FILE}' }}"),
        ("Secret", f"'postgresql://user:{IN_THE_FILE}@host/name'"),
        ("Secret", f"'https://chat.example/hooks/{IN_THE_FILE}'"),
    ],
    ids=["secret", "optional", "list", "set", "table", "dataclass", "password in a URL", "path of a URL"],
)
def test_a_secret_in_config_toml_is_hidden_from_the_moment_its_sink_is_built(
    annotation: str, value: str, plugin_folder: PluginFolder
) -> None:
    login = "@dataclass\nclass Login:\n    key: Secret\n"
    plugin_folder.add(f"{IMPORTS}{login}@dataclass\nclass Mine:\n    token: {annotation}\n{DELIVER}{REGISTER}")
    settings = plugin_folder.settings(f"[sinks.a]\ntype = 'mine'\ntoken = {value}\n")
    redactor = Redactor(settings.secret_values)
    plugins = load_plugins(settings, redactor)
    message = f"no response from url: /hooks/{IN_THE_FILE}"
    assert redactor.redact(message) == message
    build_sink(plugins, settings, settings.sinks[0], redactor)
    assert redactor.redact(message) in ("no response from url: /hooks/***", "no response from url: ***")


def test_a_secret_in_an_exception_of_a_plugin_does_not_reach_the_log(
    plugin_folder: PluginFolder, caplog: pytest.LogCaptureFixture
) -> None:
    path = plugin_folder.add(f"raise RuntimeError('{SIGNATURE_SECRET}')\n")
    plugin_folder.build_sinks()
    assert caplog.messages == [f"plugin skipped: {path}: mine.py:1: RuntimeError: ***"]
