"""Plugins as users write them, in a folder of the test."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from receiver.delivery.plugins import Plugins, load_plugins
from receiver.delivery.sinks import Sink, build_sink, build_sinks
from receiver.event import Event
from receiver.redaction import Redactor
from receiver.settings import Settings, load
from receiver.simulator import Simulator
from receiver.variables import SECRET

IMPORTS = "from dataclasses import dataclass, field\nfrom pathlib import Path\nfrom receiver import Secret, hookimpl\n"
"""The first three lines of a plugin."""

DELIVER = "    @hookimpl\n    def deliver(self, event):\n        pass\n"
REGISTER = "@hookimpl\ndef register_sinks(register):\n    register('mine', Mine)\n"

PLUGIN = f"{IMPORTS}class Mine:\n{DELIVER}{REGISTER}"
"""A valid plugin with the sink type `mine`."""

SIGNATURE_SECRET = "a-secret"


class PluginFolder:
    """A folder with plugin files and a config.toml that lists them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plugins: list[str] = []
        self.redactor = Redactor()
        """The redactor with which the settings were last used."""

    def add(self, code: str, name: str = "mine.py") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")
        self.plugins.append(name)
        return path

    def settings(self, sinks: str = "", **environ: str) -> Settings:
        config = f"[receiver]\nplugins = {json.dumps(self.plugins)}\n[sensors]\nenabled = false\n{sinks}"
        (self.folder / "config.toml").write_text(config, encoding="utf-8")
        return load({"RECEIVER_CONFIG": str(self.folder / "config.toml"), SECRET: SIGNATURE_SECRET, **environ})

    def load(self) -> Plugins:
        return self._load(self.settings())

    def build_sinks(self, sinks: str = "", **environ: str) -> tuple[list[Sink], dict[str, str]]:
        """What `build_sinks` returns for these tables: the sinks, and the problems of the broken ones by name."""
        settings = self.settings(sinks, **environ)
        return build_sinks(self._load(settings), settings, self.redactor)

    def build_sink(self, options: str = "", **environ: str) -> Sink:
        """A sink of type `mine` with these options. Raises PluginError."""
        settings = self.settings(f"[sinks.a]\ntype = 'mine'\n{options}\n", **environ)
        return build_sink(self._load(settings), settings, settings.sinks[0], self.redactor)

    def build(self, options: str = "", **environ: str) -> Any:
        """The object behind a sink of type `mine` with these options. Raises PluginError."""
        return object_behind(self.build_sink(options, **environ))

    def problem(self, options: str = "", **environ: str) -> str:
        """Why a sink of type `mine` with these options is not built, although a valid one is."""
        valid = "[sinks.valid]\ntype = 'stdout'\n"
        sinks, broken = self.build_sinks(f"[sinks.a]\ntype = 'mine'\n{options}\n{valid}", **environ)
        assert ([sink.name for sink in sinks], list(broken)) == (["valid"], ["a"])
        return broken["a"]

    def _load(self, settings: Settings) -> Plugins:
        self.redactor = Redactor(settings.secret_values)
        return load_plugins(settings, self.redactor)


def object_behind(sink: Sink) -> Any:
    hook = sink.hook.deliver_batch if sink.in_batches else sink.hook.deliver
    return hook.get_hookimpls()[0].plugin


def touch_event() -> Event:
    return Event.from_body(Simulator(1).body("touch"), datetime(2026, 1, 31, tzinfo=UTC))


@pytest.fixture
def plugin_folder(tmp_path: Path) -> PluginFolder:
    return PluginFolder(tmp_path)
