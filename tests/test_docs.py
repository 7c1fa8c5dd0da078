"""The documentation is complete and correct: every page is compared with the code, and what it shows works."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import annotated_types
import click
import psycopg
import pytest
from pydantic import BaseModel
from support.commands import STRONG_SECRET, TWO_SINKS, Operator
from support.layers import LAYERS
from support.pages import Page, all_pages, in_backticks, tables
from support.sensors import PROJECT, fold_a_silent_freezer

from receiver import Event, GiveUp, Incident, Pause, Reading, Retry
from receiver.admin import MAX_LISTED
from receiver.commands.main import main
from receiver.console.blueprint import PARTS
from receiver.delivery.circuit_breaker import pause_seconds
from receiver.delivery.dispatcher import SILENT_SECONDS
from receiver.delivery.plugins import is_built_in, load_plugins
from receiver.delivery.sink_type import Option, SinkType
from receiver.delivery.sinks import find_problems
from receiver.errors import Rejection
from receiver.event import TYPES
from receiver.health import DISPATCHER_SILENT_SECONDS
from receiver.hookspecs import AlertHooks, PluginHooks, SinkHooks
from receiver.incident import Cause
from receiver.intake.connection import REQUEST_SECONDS
from receiver.intake.responses import RETRY_AFTER_SECONDS
from receiver.intake.web_server import ERRORS
from receiver.journal import Arrival, Outcome, Result
from receiver.journal.sql.schema import metadata
from receiver.keys import COOL_DOWN_SECONDS, LOOK_SECONDS, MAX_AGE_SECONDS, RETRY_SECONDS
from receiver.redaction import Redactor
from receiver.sensors import open_registry
from receiver.sensors.gaps import Kind
from receiver.sensors.history import QUANTITIES
from receiver.sensors.watch import State
from receiver.settings import CommonOptions, Filter, JournalTable, ReceiverTable, RetryPolicy, SensorsTable, load
from receiver.simulator import Simulator
from receiver.supervisor import STOP_SECONDS
from receiver.testing import SinkSuite, wait_until
from receiver.testing.cloud import Cloud
from receiver.testing.fixtures import StartReceiver
from receiver.testing.postgresql import new_database
from receiver.validation import RENAMED
from receiver.variables import CONSOLE_PASSWORDS, ISSUER_URL, ORGANIZATION_ID, SECRET

ROOT = Path(__file__).parent.parent
NOW = datetime(2026, 3, 14, 12, tzinfo=UTC)
README, CHANGELOG = Page("README.md"), Page("CHANGELOG.md")
CONFIGURATION, SINKS, OPERATIONS, HEROKU, ARCHITECTURE, WRITING, TESTING, SENSORS = (
    Page(f"docs/{name}.md")
    for name in (
        "configuration",
        "sinks",
        "operations",
        "heroku",
        "architecture",
        "writing-a-sink",
        "testing-and-packaging",
        "sensors",
    )
)
PAGES = [page for page in all_pages() if page.name != CHANGELOG.name]

SETTINGS: dict[str, type[BaseModel]] = {
    "`[receiver]`": ReceiverTable,
    "`[journal]`": JournalTable,
    "`[sensors]`": SensorsTable,
    "`[sinks.NAME]`": CommonOptions,
    "`[sinks.NAME.filter]`": Filter,
    "`[sinks.NAME.retry]`": RetryPolicy,
}
ENVIRONMENT = {
    SECRET: "k" * 32,
    "ERP_SECRET": "c2VjcmV0IG9mIHR3ZW50eS1mb3VyIGJ5dGVz",
    "MQTT_PASSWORD": "an example",
    "CHAT_WEBHOOK_URL": "https://chat.example.com/hook",
    "DATABASE_URL": "postgres://user:password@host:5432/name",
}
"""Variables that the examples refer to."""


def by_page(pages: Sequence[Page]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=repr)


# Pages and links


def test_the_readme_is_short() -> None:
    assert len(README.text.splitlines()) <= 150


@by_page([*PAGES, CHANGELOG])
def test_every_link_leads_somewhere(page: Page) -> None:
    pages = {other.path: other for other in all_pages()}
    broken = [
        f"{file.name}#{anchor}"
        for file, anchor in page.links()
        if not file.exists() or (anchor and anchor not in pages[file].anchors())
    ]
    assert broken == []


def test_the_readme_links_to_every_page_of_the_documentation() -> None:
    pages = {path for path in (ROOT / "docs").iterdir() if path.suffix == ".md"}
    assert pages - {file for file, _ in README.links()} == set()


OLD_WORDS = (
    r"\bunmatched\b",
    r"\bmatched to\b",
    r"\bowe[sd]?\b",
    r"\bin vain\b",
    r"\bgenuine(ly)? proven|proven genuine\b",
    r"\bg(i|a)ven? up on\b",
    r"\brefused push|push refused\b",
    r"\binternal fault\b",
    r"\bbeat_at\b",
    r"\brepeatable=|(?<!max_)call_seconds\b",
    r"config\.toml is right",
    r"[Uu]ntick",
    r"receiver/(app|cli|desk|dispatcher|plugins|options|sink_loop|alerts|sink_type|output|metrics|intake)\.py",
)
"""Words and paths that have gone with the old names."""


def old_names() -> list[str]:
    """Patterns for the old names of keys, commands and metrics in the changelog, and for the words above."""
    found = []
    for title in ("Configuration keys", "Commands", "Metrics"):
        for old, new in renamed(title):
            name = old.partition("{")[0]
            found.append(rf"(?<![\w-]){re.escape(old if new.startswith(name) else name)}(?!\w)")
    return [*found, *OLD_WORDS]


@by_page(PAGES)
def test_no_page_uses_an_old_name(page: Page) -> None:
    assert [found[0] for name in old_names() for found in [re.search(name, page.text)] if found] == []


# Configuration


@pytest.mark.parametrize("heading", SETTINGS)
def test_every_setting_is_documented_with_its_default_and_its_limits(heading: str) -> None:
    model = SETTINGS[heading]
    rows = {in_backticks(key)[0]: (kind, default) for key, kind, default, _ in CONFIGURATION.table(heading)}
    assert list(rows) == list(model.model_fields)
    for name, field in model.model_fields.items():
        kind, default = rows[name]
        if field.is_required():
            assert default == "required"
        elif default == "not set":
            assert field.default is None
        else:
            given = tomllib.loads(f"{name} = {default.strip('`')}")
            others = {each: "x" for each, info in model.model_fields.items() if info.is_required()}
            parsed = model.model_validate({**others, **given})
            assert getattr(parsed, name) == field.get_default(call_default_factory=True), name
        for limit in limits(field.metadata):
            assert str(limit) in kind.split(), f"{name} has the limit {limit}"


def limits(constraints: Sequence[object]) -> Iterator[object]:
    for constraint in constraints:
        if isinstance(constraint, annotated_types.Ge):
            yield constraint.ge
        elif isinstance(constraint, annotated_types.Le):
            yield constraint.le
        elif isinstance(constraint, annotated_types.MinLen):
            yield constraint.min_length


def test_every_environment_variable_is_documented_with_its_default(tmp_path: Path) -> None:
    rows = {in_backticks(name)[0]: default for name, default, _ in CONFIGURATION.table("Environment variables")}
    internal = {"PROMETHEUS_MULTIPROC_DIR", "PATH_INFO", "REQUEST_METHOD"}  # the latter two of a WSGI environment
    assert rows.keys() - {f"{SECRET}__<NAME>"} == variables_read() - internal
    (tmp_path / "config.toml").touch()
    settings = load({"RECEIVER_CONFIG": str(tmp_path / "config.toml")}, secret_required=False)
    assert {name: default.strip("`") for name, default in rows.items() if default not in ("required", "not set")} == {
        "PORT": str(settings.port),
        "WEB_CONCURRENCY": str(settings.workers),
        "RECEIVER_CONFIG": settings.path.name,
        "DT_ISSUER_URL": settings.issuer,
        "DT_API_URL": settings.api.url,
        "DT_TOKEN_URL": settings.api.token_url,
    }


READING = re.compile(r"\b(environ|variables|self\.(value|secure_url)\()")


def variables_read() -> set[str]:
    """The variables that the receiver itself reads: constants in calls and subscriptions of an environment."""
    found = {SECRET, ORGANIZATION_ID, ISSUER_URL, *CONSOLE_PASSWORDS.values()}
    for path in (ROOT / "receiver").rglob("*.py"):
        if "testing" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call | ast.Subscript) and READING.search(ast.unparse(node)):
                constants = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
                found |= {text for text in constants if isinstance(text, str) and re.fullmatch("[A-Z][A-Z_]+", text)}
    return found


@pytest.mark.parametrize("name", ["csv", "mqtt", "sql", "stdout", "webhook"])
def test_every_option_of_a_built_in_sink_is_documented_with_its_type_and_default(name: str, tmp_path: Path) -> None:
    types = sink_types(tmp_path)
    rows = SINKS.table(name)
    described = types[name].described()
    assert [(in_backticks(option)[0], kind.replace("`", ""), default) for option, kind, default, _ in rows] == [
        (option.name, option.type, default_of(option)) for option in described
    ]
    assert all(option.meaning for option in described)


def default_of(option: Option) -> str:
    if option.required:
        return "required"
    return f"`{option.default}`" if option.default else "not set"


def sink_types(folder: Path) -> Mapping[str, SinkType]:
    (folder / "config.toml").touch()
    settings = load({"RECEIVER_CONFIG": str(folder / "config.toml")}, secret_required=False)
    return load_plugins(settings, Redactor()).types


def examples() -> list[tuple[str, str]]:
    """Every example of config.toml, by its page."""
    return [
        (page.name, block)
        for page in (README, CONFIGURATION, SINKS, WRITING, HEROKU)
        for block in page.blocks("toml")
        if not block.startswith("# pyproject.toml")
    ]


@pytest.mark.parametrize(
    "block", [block for _, block in examples()], ids=[f"{name}-{number}" for number, (name, _) in enumerate(examples())]
)
def test_an_example_of_config_toml_is_valid(block: str, tmp_path: Path) -> None:
    for number, source in enumerate(WRITING.blocks("python")):
        (tmp_path / f"plugin{number}.py").write_text(source, encoding="utf-8")
    plugins = [path.name for path in tmp_path.glob("*.py")]
    (tmp_path / "config.toml").write_text(f"[receiver]\nplugins = {json.dumps(plugins)}\n{block}", encoding="utf-8")
    settings = load({"RECEIVER_CONFIG": str(tmp_path / "config.toml"), **ENVIRONMENT})
    redactor = Redactor()
    assert find_problems(load_plugins(settings, redactor), settings, redactor)[0] == []


def test_every_part_of_the_console_is_documented() -> None:
    assert {part.title for part in PARTS} <= {row[0] for row in Page("docs/console.md").table("Parts")}


# Hooks, events and signals


@pytest.mark.parametrize(("number", "specs"), [(0, PluginHooks), (1, SinkHooks), (2, AlertHooks)])
def test_every_hook_is_documented_with_its_signature(number: int, specs: type) -> None:
    documented = [in_backticks(row[0])[0] for row in WRITING.table("Hooks", number)]
    hooks = {name: hook for name, hook in vars(specs).items() if not name.startswith("_")}
    assert documented == [
        f"{name}({', '.join(each for each in inspect.signature(hook).parameters if each != 'self')})"
        for name, hook in hooks.items()
    ]


def test_what_a_sink_can_raise_is_documented_with_its_arguments() -> None:
    shown = [text for text in in_backticks(WRITING.section("Retries")) if re.match(r"[A-Z]\w+\(", text)]
    parsed = [ast.parse(text, mode="eval").body for text in shown]
    calls = [each for each in parsed if isinstance(each, ast.Call)]
    signals: dict[str, type] = {"Retry": Retry, "Pause": Pause, "GiveUp": GiveUp}
    assert [ast.unparse(call.func) for call in calls] == list(signals)
    for call in calls:
        given = {each.arg or "": ast.literal_eval(each.value) for each in call.keywords}
        signals[ast.unparse(call.func)](*map(ast.literal_eval, call.args), **given)


def test_every_attribute_of_an_event_and_a_reading_is_documented() -> None:
    section = WRITING.section("Events")
    attributes = [name.partition("(")[0] for row in tables(section)[0] for name in in_backticks(row[0])]
    assert sorted(attributes) == sorted([*(field.name for field in dataclasses.fields(Event)), "typed", "readings"])
    of_readings = section.partition("A `Reading` has ")[2].partition(". ")[0]
    assert in_backticks(of_readings) == [field.name for field in dataclasses.fields(Reading)]


def test_every_event_type_is_documented_with_its_readings() -> None:
    documented = {}
    for types, text, _ in WRITING.table("Events", 1):
        readings = set(re.findall(r"`(\w+)`(?: ([^\s,]+)(?=,| and|$))?", text))
        documented |= dict.fromkeys(in_backticks(types), readings)
    simulated = [Event.from_body(Simulator().body(kind), received_at=NOW) for kind in TYPES]
    assert documented == {
        event.type: {(reading.quantity, reading.unit) for reading in event.readings()} for event in simulated
    }


def test_every_attribute_of_an_incident_is_documented() -> None:
    section = WRITING.section("Hooks").partition("An `Incident` has ")[2]
    attributes = {field.name for field in dataclasses.fields(Incident)}
    assert set(in_backticks(section)) & attributes == attributes


# Sensors


@pytest.mark.parametrize(
    ("heading", "words"), [("States", State), ("Incidents", Cause), ("Gaps and completeness", Kind)]
)
def test_every_state_cause_and_kind_of_gap_is_documented(heading: str, words: type[StrEnum]) -> None:
    assert [in_backticks(row[0])[0] for row in SENSORS.table(heading)] == [word.value for word in words]


# Commands


def commands(group: click.Group = main, before: str = "") -> dict[str, click.Command]:
    """Every command that does something, by its full name."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= commands(command, f"{before}{name} ")
        if not isinstance(command, click.Group) or command.invoke_without_command:
            found[before + name] = command
    return found


def options(command: click.Command) -> set[str]:
    return {each.opts[0] for each in command.params if isinstance(each, click.Option) and not each.hidden}


def test_every_command_is_documented_with_its_arguments_and_options() -> None:
    documented = {}
    for usage, _, with_options in OPERATIONS.table("Commands"):
        words = in_backticks(usage)[0].split()
        name = " ".join(word for word in words if word.islower())
        arguments = [(word.startswith("["), "…" in word) for word in words if not word.islower()]
        documented[name] = (arguments, {text for text in in_backticks(with_options) if text.startswith("--")})
    assert documented == {
        name: (
            [(not each.required, each.nargs == -1) for each in command.params if isinstance(each, click.Argument)],
            options(command),
        )
        for name, command in commands().items()
    }


@by_page([*PAGES, CHANGELOG])
def test_every_command_on_a_page_exists_with_the_options_shown(page: Page) -> None:
    known = commands()
    groups = ("sinks ", "dead-letters ", "quarantine ")
    short = [text for text in in_backticks(page.prose) if text.startswith(groups) and page is not CHANGELOG]
    for line in [*re.findall(r"python -m receiver ([a-z][^`\n#']*)", page.text), *short]:
        words = line.split()
        name = next((" ".join(words[:count]) for count in (2, 1) if " ".join(words[:count]) in known), None)
        assert name is not None, f"{page}: there is no command {line!r}"
        arguments = words[len(name.split()) :]
        assert not (isinstance(known[name], click.Group) and arguments), f"{page}: there is no command {line!r}"
        assert {word for word in arguments if word.startswith("--")} - options(known[name]) == set(), f"{page}: {line}"


@pytest.mark.parametrize(("name", "command"), list(commands().items()), ids=list(commands()))
def test_every_command_has_help_with_an_example(name: str, command: click.Command) -> None:
    assert "Example" in (command.help or "")
    assert f"python -m receiver {name}" in (command.help or "")


def test_the_json_of_every_command_has_the_documented_fields(
    operator: Operator, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    cloud.add_connector(PROJECT, "http://127.0.0.1:1/", secret=STRONG_SECRET, labels=(), successes=1)
    operator.configure(TWO_SINKS.replace("[sensors]\nenabled = false\n", ""))
    with closing(open_registry(operator.settings)) as registry:
        fold_a_silent_freezer(registry, datetime.now(UTC))
    operator.add_pending("erp", "e1", "e2")
    operator.settle_due("erp", Result.DEAD, "no")
    operator.journal.accept([Arrival("ab" * 32, b"{}", 0.0, quarantine_reason="the body has no object 'event'")])
    arguments = {
        "dead-letters retry": ("erp", "e2", "--yes"),
        "dead-letters delete": ("erp", "--yes"),
        "quarantine show": ("ab",),
        "replay": ("erp", "--since", "2000-01-01", "--dry-run"),
        "explain": ("e1", "--body"),
        "sensors show": ("freezer",),
        "sensors snooze": ("freezer", "--for", "8h"),
        "sensors retire": ("freezer",),
    }
    documented = {in_backticks(row[0])[0]: in_backticks(row[1]) for row in OPERATIONS.table("JSON")}
    assert documented.keys() == {name for name, command in commands().items() if "--json" in options(command)}
    for name, fields in documented.items():
        printed = operator.json(*name.split(), *arguments.get(name, ()))
        found = set(keys(printed, inner=name != "sinks")) - (set(QUANTITIES) - set(fields))
        assert sorted(found) == sorted(set(fields) - {"enabled", "disabled", "removed"}), name


def keys(value: Any, *, inner: bool) -> Iterator[str]:
    """The keys of an object, of the objects in a list, and of those inside of them; of `sinks`, without the types."""
    if isinstance(value, list):
        for item in value:
            yield from keys(item, inner=inner)
    elif isinstance(value, dict):
        if inner:
            yield from value
        for item in value.values():
            yield from keys(item, inner=True)


# Operations


RESPONSE_MAKERS = ("plain_response", "Result", "connection.respond", "client.respond")


def responses() -> set[tuple[int, str]]:
    """Status and text of every response to a push that intake can send."""
    found = {(400, rejection.value) for rejection in Rejection} | {(200, outcome.value) for outcome in Outcome}
    found |= {(status, "malformed request") for status in (400, *(status for status, _ in ERRORS.values()))}
    for path in (ROOT / "receiver" / "intake").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in RESPONSE_MAKERS:
                constants = [each.value for each in node.args if isinstance(each, ast.Constant)]
                status = next((each for each in constants if isinstance(each, int)), None)
                if status is not None and isinstance(constants[-1], str):
                    found.add((status, constants[-1]))
    return found - {(200, "ok"), (401, "send Authorization: Bearer with the [receiver] metrics_token")}


def documented_responses(text: str) -> set[tuple[int, str]]:
    """`400 \\`wrong secret\\`` and `400, 414 \\`malformed request\\``, wherever they stand in a text."""
    return {
        (int(status), line)
        for statuses, line in re.findall(r"((?:\b\d{3}, )*\b\d{3}) `([a-z][^`]+)`", text)
        for status in statuses.split(", ")
    }


def test_every_response_to_a_push_is_documented() -> None:
    of_pushes = OPERATIONS.section("Responses to pushes").partition("| other response")[0]
    assert documented_responses(of_pushes) == responses()


@by_page(PAGES)
def test_every_response_on_a_page_exists(page: Page) -> None:
    assert documented_responses(page.prose) - responses() == set()


def test_every_metric_is_documented_with_its_labels_and_type(start_receiver: StartReceiver) -> None:
    receiver = start_receiver('[sinks.archive]\ntype = "csv"\npath = "events.csv"\n')
    receiver.push(Simulator().body("touch"))
    wait_until(receiver.rows)
    wait_until(lambda: "receiver_sensors" in receiver.http.request("GET", f"{receiver.url}/metrics").data.decode())
    page = receiver.http.request("GET", f"{receiver.url}/metrics").data.decode()
    shown = {}
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", page, re.MULTILINE):
        sample = re.search(rf"^{name}(?:_sum)?(?:\{{(.*)\}})? ", page, re.MULTILINE)
        assert sample
        shown[name] = (re.findall(r"(\w+)=", sample[1] or ""), kind)
    documented = {}
    for metric, kind, _ in OPERATIONS.table("Metrics"):
        name, _, labels = metric.strip("`}").partition("{")
        documented[name] = (labels.split(",") if labels else [], kind)
    assert documented == shown


@by_page(PAGES)
def test_every_metric_on_a_page_exists(page: Page) -> None:
    metrics = {row[0].strip("`").partition("{")[0] for row in OPERATIONS.table("Metrics")}
    packages = {"receiver_alarm", "receiver_influx"}
    assert set(re.findall(r"\breceiver_[a-z_]+\b", page.text)) - metrics - packages == set()


RUNBOOKS = (
    *("A paused sink", "A growing backlog", "Dead letters", "Rejected pushes", "Quarantined pushes"),
    *("Disk full", "A rotated secret", "From the secret to DT's own keys", "DT's keys cannot be fetched"),
    *("DT disabled the connector", "After an outage"),
)


def test_every_runbook_says_how_you_notice_what_to_look_at_what_to_do_and_when_it_is_over() -> None:
    assert re.findall(r"^### (.+)$", OPERATIONS.section("Runbooks"), re.MULTILINE) == list(RUNBOOKS)
    for runbook in RUNBOOKS:
        parts = re.findall(r"^\*\*(.+?)\*\*", OPERATIONS.section(runbook), re.MULTILINE)
        assert parts == ["You notice:", "Look at:", "Do:", "It is over when"], runbook


@pytest.mark.parametrize(
    ("page", "claim"),
    [
        (OPERATIONS, f"not complete within {REQUEST_SECONDS:g} s of its first byte"),
        (OPERATIONS, f"`Retry-After: {RETRY_AFTER_SECONDS}`"),
        (OPERATIONS, f"was alive within the last {DISPATCHER_SILENT_SECONDS} s"),
        (OPERATIONS, f"ends within {STOP_SECONDS:g} s"),
        (OPERATIONS, f"the newest {MAX_LISTED} dead letters"),
        (OPERATIONS, f"the newest {MAX_LISTED} quarantined pushes"),
        (CONFIGURATION, f"but at most every {COOL_DOWN_SECONDS:g} s"),
        (CONFIGURATION, f"every {RETRY_SECONDS / 60:g} minutes"),
        (CONFIGURATION, f"until they are {MAX_AGE_SECONDS / 86400:g} days old"),
        (ARCHITECTURE, f"every {LOOK_SECONDS:g} s, in a thread of its own"),
        (ARCHITECTURE, f"that has not reported for {SILENT_SECONDS:g} s are taken over"),
        (SINKS, f"({pause_seconds(RetryPolicy(), 1):g} s by default)"),
    ],
    ids=str,
)
def test_a_number_on_a_page_is_the_one_in_the_code(page: Page, claim: str) -> None:
    assert claim in " ".join(page.prose.split())


def test_the_time_limits_of_the_webhook_sink_are_those_in_the_code(tmp_path: Path) -> None:
    limits = sink_types(tmp_path)["webhook"].cls.limits  # type: ignore[attr-defined]  # a plugin's own class
    claim = (
        f"Connecting takes at most {limits.connect_seconds:g} s, waiting for the response {limits.read_seconds:g} s, "
        f"everything together {limits.total_seconds:g} s"
    )
    assert claim in " ".join(SINKS.section("webhook").split())


@by_page(PAGES)
def test_no_one_off_dyno_loses_its_options_to_the_heroku_command(page: Page) -> None:
    assert re.findall(r"heroku run (?!-- )\S+", page.text) == []


def test_networkstatus_is_recommended_as_the_heartbeat() -> None:
    section = " ".join(HEROKU.section("Create the Data Connector").split())
    assert "leave all of them enabled. `networkStatus` is sent with every heartbeat" in section


# Architecture


def test_the_map_of_files_has_every_file_with_a_line_on_what_it_does() -> None:
    rows = [row for table in tables(ARCHITECTURE.section("Map of files")) for row in table]
    built_in = [path for path in (ROOT / "plugins").rglob("*.py") if is_built_in(path)]  # users add theirs there
    files = [path.relative_to(ROOT).as_posix() for path in [*(ROOT / "receiver").rglob("*.py"), *built_in]]
    assert sorted(in_backticks(file)[0] for file, _ in rows) == sorted(files)
    assert [file for file, line in rows if not line] == []


def test_the_layers_are_those_that_the_imports_are_checked_against() -> None:
    assert {layer: tuple(in_backticks(parts)) for layer, parts in ARCHITECTURE.table("Layers")} == LAYERS
    assert [layer for layer, _ in ARCHITECTURE.table("Layers")] == list(LAYERS)


# Testing and packaging


def test_everything_that_receiver_testing_offers_is_documented() -> None:
    import receiver.testing
    from receiver.testing import fixtures

    section = TESTING.section("Test a sink")
    offered = [name for name in receiver.testing.__all__ if f"`{name}" not in section]
    arguments = list(inspect.signature(SinkSuite.__init_subclass__).parameters)
    of_suite = [name for name, each in vars(SinkSuite).items() if is_fixture(each) and name != "harness"]
    of_plugin = [name for name, each in vars(fixtures).items() if is_fixture(each)]
    rules = [name for name in vars(SinkSuite) if name.startswith("test_")]
    missing = [name for name in [*arguments, *of_suite, *of_plugin, *rules] if f"`{name}" not in section]
    assert (offered, missing) == ([], [])


def is_fixture(value: object) -> bool:
    return type(value).__name__ == "FixtureFunctionDefinition"


def test_every_make_target_is_documented() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert phony
    documented = [in_backticks(row[0])[0].removeprefix("make ") for row in TESTING.table("Developing the receiver")]
    assert sorted(documented) == sorted(phony[1].split())


# Examples that run


@by_page([README, WRITING])
def test_the_alarm_works_with_the_settings_shown(page: Page, start_receiver: StartReceiver, tmp_path: Path) -> None:
    source = next(block for block in page.blocks("python") if block.startswith("# plugins/alarm.py\n"))
    settings = next(block for block in page.blocks("toml") if 'type = "alarm"' in block)
    (tmp_path / "alarm.py").write_text(source, encoding="utf-8")
    receiver = start_receiver(f'[receiver]\nplugins = ["{tmp_path / "alarm.py"}"]\n{settings}')
    greeting = "Get a mop to" if "Get a mop to" in settings else "Water at"
    simulator = Simulator(seed=3)
    bodies = [simulator.body("waterPresent") for _ in range(10)]
    assert any(b'"PRESENT"' in body for body in bodies)

    for body in bodies:
        receiver.push(body)

    wait_until(lambda: f"{greeting} Simulated waterPresent\n" in (receiver.folder / "stdout.txt").read_text())


def test_the_sink_in_the_readme_has_ten_lines() -> None:
    source = next(block for block in README.blocks("python") if block.startswith("# plugins/alarm.py\n"))
    assert len([line for line in source.splitlines()[1:] if line]) == 10


def test_the_sql_sink_and_the_journal_share_a_database_with_the_settings_shown(start_receiver: StartReceiver) -> None:
    url = new_database()
    (settings,) = {
        block for page in (README, SINKS, HEROKU) for block in page.blocks("toml") if 'type = "sql"' in block
    }
    receiver = start_receiver(settings, DATABASE_URL=url)
    body = Simulator().body("humidity")

    assert receiver.push(body) == (200, "accepted")

    (query,) = SINKS.blocks("sql")
    with psycopg.connect(url, autocommit=True) as connection:
        created = "SELECT 1 WHERE to_regclass('latest') IS NOT NULL"
        wait_until(lambda: connection.execute(created).fetchone(), what="the tables of the sink")
        rows = wait_until(lambda: connection.execute(query).fetchall())
    readings = {reading.quantity: reading for reading in Event.from_body(body, NOW).readings()}
    assert rows == [
        ("Simulated humidity", quantity, readings[quantity].value, readings[quantity].unit, readings[quantity].time)
        for quantity in ("relative_humidity", "temperature")
    ]


# The changelog


def renamed(title: str) -> list[list[str]]:
    """The rows below a bold line of the note on upgrading, each with the old name before the new one."""
    section = CHANGELOG.section("Upgrading").partition(f"**{title}**")[2]
    return [row[:-2] + [in_backticks(row[-2])[-1], in_backticks(row[-1])[-1]] for row in tables(section)[0]]


def test_the_changelog_has_the_form_of_keep_a_changelog() -> None:
    headings = re.findall(r"^#{1,3} .+$", CHANGELOG.prose, re.MULTILINE)
    assert headings[:3] == ["# Changelog", "## [Unreleased]", "### Upgrading"]
    changes = {"Upgrading", "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert {heading.removeprefix("### ") for heading in headings if heading.startswith("### ")} <= changes


def test_the_renamed_keys_are_those_whose_old_name_is_an_error() -> None:
    assert dict(renamed("Configuration keys")) == RENAMED


def test_the_renamed_commands_exist_under_their_new_names_only() -> None:
    rows = renamed("Commands")
    assert len(rows) == 5
    assert {new for _, new in rows} <= commands().keys()
    assert not {old for old, _ in rows} & commands().keys()


@pytest.mark.parametrize(("old", "new"), renamed("Commands"))
def test_an_old_name_of_a_command_ends_with_a_hint_at_the_new_one(old: str, new: str, operator: Operator) -> None:
    assert operator.run(*old.split(), "erp") == (2, [], [f"error: `{old}` is now called `{new}`"])


def test_the_renamed_metrics_are_documented_under_their_new_names_only() -> None:
    metrics = {row[0].strip("`") for row in OPERATIONS.table("Metrics")}
    rows = renamed("Metrics")
    assert {new for _, new in rows} <= metrics
    assert not {old for old, _ in rows} & metrics


def test_the_renamed_fields_are_documented_under_their_new_names_only() -> None:
    fields = {in_backticks(row[0])[0]: in_backticks(row[1]) for row in OPERATIONS.table("JSON")}
    for command, old, new in renamed("JSON fields"):
        assert new in fields[in_backticks(command)[0]]
        assert old not in fields[in_backticks(command)[0]]


def test_the_renamed_columns_exist_under_their_new_names_only() -> None:
    columns = {f"{table.name}.{column.name}" for table in metadata.sorted_tables for column in table.columns}
    rows = renamed("Columns of the journal's tables")
    assert {new for _, new in rows} <= columns
    assert not {old for old, _ in rows} & columns


def test_the_renamed_python_names_exist_under_their_new_names_only() -> None:
    rows = renamed("Python names for authors of plugins")
    assert [new for _, new in rows if not exists(new)] == []
    assert [old for old, _ in rows if exists(old)] == []


def exists(name: str) -> bool:
    """Whether `receiver.module.Class.attribute` can be imported."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False
