"""The README is complete, and what it shows works."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import click
import pytest
from conftest import ROOT, StartReceiver, wait_until

from receiver.cli import main
from receiver.errors import Refusal
from receiver.hookspecs import PluginHooks, SinkHooks
from receiver.journal import Acceptance
from receiver.options import fields
from receiver.plugins import SHIPPED, load_plugins
from receiver.settings import CommonOptions, Filter, JournalTable, ReceiverTable, RetryPolicy, load
from receiver.simulator import Simulator

README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLES = (ReceiverTable, JournalTable, CommonOptions, Filter, RetryPolicy)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("key", [key for table in TABLES for key in table.model_fields])
def test_every_setting_stands_in_the_readme(key: str) -> None:
    assert f"`{key}`" in README


def commands(group: click.Group, before: str = "") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found[before + name] = command
        if isinstance(command, click.Group):
            found |= commands(command, f"{before}{name} ")
    return found


@pytest.mark.parametrize("command", [name for name in commands(main) if name not in ("dead", "quarantine")])
def test_every_command_stands_in_the_readme_with_its_options(command: str) -> None:
    assert re.search(rf"^\|.*`{command}\b", README, re.MULTILINE)
    for option in commands(main)[command].params:
        if isinstance(option, click.Option) and not option.hidden:
            assert option.opts[0] in README


@pytest.mark.parametrize(("name", "command"), commands(main).items())
def test_every_command_has_help_with_an_example(name: str, command: click.Command) -> None:
    assert "Example" in (command.help or "")
    assert f"python -m receiver {name.split()[0]}" in (command.help or "")


@pytest.mark.parametrize("answer", [*Refusal, *Acceptance])
def test_every_answer_stands_in_the_readme(answer: str) -> None:
    assert f"`{answer}`" in README


@pytest.mark.parametrize("hook", sorted(name for name in {*dir(PluginHooks), *dir(SinkHooks)} if name[0] != "_"))
def test_every_hook_stands_in_the_readme(hook: str) -> None:
    assert re.search(rf"\b{hook}\(", README)


def test_every_option_of_every_built_in_sink_stands_in_the_readme_and_in_its_docstring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text("")
    monkeypatch.setenv("RECEIVER_CONFIG", str(tmp_path / "config.toml"))
    types = load_plugins(load(secret_required=False)).types.values()
    shipped = [sink_type for sink_type in types if Path(sink_type.source).name in SHIPPED]
    assert len(shipped) == len(SHIPPED)
    for sink_type in shipped:
        for option in fields(sink_type.options()):
            assert f"`{option}`" in README
            assert f"\n{option}: " in inspect.cleandoc(sink_type.cls.__doc__ or "")


def test_every_metric_stands_in_the_readme(start_receiver: StartReceiver) -> None:
    receiver = start_receiver()
    receiver.push(Simulator().body("touch"))
    wait_until(receiver.rows)
    page = receiver.http.request("GET", f"{receiver.url}/metrics").data.decode()
    shown = set(re.findall(r"^(receiver_\w+?)(?:_bucket|_sum|_count)?[{ ]", page, re.MULTILINE))
    assert shown >= {"receiver_pushes_total", "receiver_delivered_total"}
    for name in shown:
        assert f"`{name}" in README


def test_the_sink_in_the_readme_works_with_the_settings_in_the_readme(
    start_receiver: StartReceiver, tmp_path: Path
) -> None:
    source = next(block for block in blocks("python") if "class Alarm" in block and "@hookimpl" in block)
    settings = next(block for block in blocks("toml") if 'type = "alarm"' in block)
    (tmp_path / "alarm.py").write_text(source)
    receiver = start_receiver(f'[receiver]\nplugins = ["{tmp_path / "alarm.py"}"]\n{settings}')
    simulator = Simulator(seed=3)
    bodies = [simulator.body("waterPresent") for _ in range(10)]
    assert any(b'"PRESENT"' in body for body in bodies)

    for body in bodies:
        receiver.push(body)

    wait_until(lambda: "Get a mop to Simulated waterPresent\n" in (receiver.folder / "stdout.txt").read_text())


def test_the_settings_in_the_readme_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = next(block for block in blocks("toml") if "[sinks.erp]" in block)
    (tmp_path / "config.toml").write_text(example)
    settings = load({"RECEIVER_CONFIG": str(tmp_path / "config.toml"), "ERP_SECRET": "c2VjcmV0"}, secret_required=False)
    assert [sink.faults for sink in settings.sinks] == [(), ()]


def test_no_one_off_dyno_loses_its_options_to_the_heroku_command() -> None:
    assert "heroku run -- python -m receiver check" in README
    assert re.findall(r"heroku run (?!-- )\S+", README) == []
