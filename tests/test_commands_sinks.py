"""`sinks` shows every sink type with its options; `sinks resume` and `sinks remove` change a sink."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from conftest import ROOT, THERE_ARE, StartReceiver, sink_types, wait_until
from support.commands import ARCHIVE, BROKEN_PLUGIN, CONSOLE, JOURNAL, LONG_AGO, PLUGIN, SCRIPTED, TWO_SINKS, Operator

from receiver.delivery.sink_type import in_words
from receiver.journal import Result, Settlement, SinkState
from receiver.simulator import Simulator
from receiver.variables import SECRET

DOCUMENTED_PLUGIN = '''
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from receiver import Secret, hookimpl


@dataclass
class Pager:
    """Pages the engineer on duty.

    An event that is delivered again
    is paged again.

    token: the token of the pager, as its own page shows it; a token with a long explanation like this one is
        wrapped.
    rooms: only these rooms. Default: all.
    """

    token: Secret
    path: Path
    rooms: list[str] | None = None
    priority: Literal["low", "high"] = "low"
    tries: int = 3

    @hookimpl
    def deliver(self, event):
        pass


@hookimpl
def register_sinks(register):
    register("pager", Pager)
'''


def test_sinks_and_new_sink_need_no_configuration_unless_one_is_named(
    operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").unlink()
    monkeypatch.chdir(tmp_path)
    done = operator.run("sinks", "--json", RECEIVER_CONFIG=None)
    assert (done.exit_code, done.errors) == (0, [])
    assert set(json.loads("\n".join(done.out))) == {"csv", "mqtt", "sql", "stdout", "webhook"}
    done = operator.run("new-sink", "webhook", RECEIVER_CONFIG=None)
    assert done.errors == ["error: sink type 'webhook' already exists; choose another name"]
    assert operator.run("sinks").errors == [
        f"error: {tmp_path}/config.toml: no such file; start in the folder of your config.toml, or name the file in "
        "RECEIVER_CONFIG"
    ]


def test_sinks_shows_the_sink_types_of_plugins_with_their_options(operator: Operator) -> None:
    (operator.folder / "pager.py").write_text(DOCUMENTED_PLUGIN)
    operator.configure("[receiver]\nplugins = ['pager.py']\n")
    done = operator.invoke("sinks", **{SECRET: None})
    assert (done.exit_code, done.stderr) == (0, "")
    out = done.stdout.splitlines()
    titles = dict(re.findall(r"^(\w+)  \((.+)\)$", "\n".join(out), re.MULTILINE))
    assert list(titles) == sink_types("pager")
    assert [
        name for name in ("csv", "mqtt", "sql", "stdout", "webhook") if f"{ROOT}/plugins/" not in titles[name]
    ] == []
    begin = out.index(f"pager  ({operator.folder}/pager.py)")
    end = next(n for n in range(begin + 1, len(out)) if re.match(r"\w+  \(", out[n]))
    assert out[begin + 1 : end] == [
        "Pages the engineer on duty.",
        "",
        "An event that is delivered again",
        "is paged again.",
        "",
        "  token  (secret, required)",
        "      the token of the pager, as its own page shows it; a token with a long explanation like this",
        "      one is wrapped.",
        "  path  (path, required)",
        "  rooms  (list of text, optional)",
        "      only these rooms. Default: all.",
        '  priority  ("low" or "high", default "low")',
        "  tries  (whole number, default 3)",
        "",
        "[sinks.pager]",
        'type = "pager"',
        'token = { env = "PAGER_TOKEN" }',
        'path = "data/pager"',
        "# rooms = []",
        '# priority = "low"',
        "# tries = 3",
        "",
    ]


def test_sinks_reports_plugins_that_are_broken_and_shows_the_others(operator: Operator) -> None:
    (operator.folder / "mine.py").write_text(PLUGIN)
    (operator.folder / "broken.py").write_text(BROKEN_PLUGIN)
    operator.configure("[receiver]\nplugins = ['mine.py', 'broken.py']\n")
    code, out, errors = operator.run("sinks")
    assert (code, f"mine  ({operator.folder}/mine.py)" in out) == (0, True)
    assert errors == [
        f"plugin skipped: {operator.folder}/broken.py: broken.py:1: "
        "ModuleNotFoundError: No module named 'not_installed_here'"
    ]


def test_sinks_as_json_has_no_options_for_a_constructor_with_invalid_annotations(operator: Operator) -> None:
    (operator.folder / "mine.py").write_text(PLUGIN.replace("path: Path)", "path: 'Unknown')"))
    operator.configure("[receiver]\nplugins = ['mine.py']\n")
    types = operator.json("sinks")
    assert (sorted(types), types["mine"]["options"]) == (sink_types("mine"), [])
    format_option = types["stdout"]["options"][0]
    assert format_option.pop("meaning")
    assert types["stdout"].pop("description").startswith("Prints each event as one line on standard output.\n\n")
    assert types["stdout"] == {
        "source": f"{ROOT}/plugins/stdout.py",
        "options": [{"name": "format", "type": '"json" or "text"', "required": False, "default": '"json"'}],
        "example": '[sinks.stdout]\ntype = "stdout"\n# format = "json"',
    }


def test_the_example_of_every_sink_type_is_valid_when_it_is_pasted_into_config_toml(operator: Operator) -> None:
    environment = {
        "WEBHOOK_SECRET": "c2VjcmV0IG9mIHR3ZW50eS1mb3VyIGJ5dGVz",
        "WEBHOOK_PROXY": "http://proxy.example:3128",
        "SQL_URL": "sqlite:///data/readings.sqlite",
        "MQTT_URL": "mqtts://localhost",
        "MQTT_PASSWORD": "an example",
    }
    examples = "\n".join(shown["example"] for shown in operator.json("sinks").values())
    operator.configure(examples)
    assert operator.run("check", **environment)[::2] == (0, [])
    operator.configure(examples.replace("# ", "").replace('ca_file = "data/webhook"\n', ""))
    assert operator.run("check", **environment).exit_code == 0


ODD_PLUGIN = """
from dataclasses import dataclass
from typing import Literal

from receiver import Secret, hookimpl


@dataclass
class Odd:
    größe: int
    level: Literal[1, 2]
    schlüssel: Secret
    limit: float = float("inf")
    text: str = 'a "quoted" \\x7f\\n line'

    @hookimpl
    def deliver(self, event):
        pass


@hookimpl
def register_sinks(register):
    register("odd type.v2", Odd)
"""


def test_the_example_of_a_sink_type_with_an_odd_name_and_odd_options_is_valid(operator: Operator) -> None:
    (operator.folder / "odd.py").write_text(ODD_PLUGIN)
    plugin = "[receiver]\nplugins = ['odd.py']\n"
    operator.configure(plugin)
    lines = operator.invoke("sinks").stdout.splitlines()
    begin = lines.index("[sinks.odd_type_v2]")
    example = "\n".join(lines[begin : lines.index("", begin)])
    for pasted in (example, example.replace("# ", "")):
        operator.configure(plugin + pasted)
        assert operator.run("check", ODD_TYPE_V2_SCHL_SSEL="a secret") == (
            0,
            ["config.toml is valid. Enabled sinks: odd_type_v2. Signature secrets: 1."],
            [],
        )


def test_a_resumed_sink_is_due_for_a_probe_and_still_in_the_same_pause(operator: Operator) -> None:
    paused = SinkState("erp", pauses=3, paused_until=time.time() + 3600, pause_reason="401 Unauthorized")
    operator.journal.save_sink_state(paused)
    operator.journal.save_sink_state(replace(paused, name="archive"))
    assert operator.lines("sinks", "resume", "erp") == ["Sink erp is probed now. It was paused: 401 Unauthorized"]
    states = operator.journal.sink_states()
    assert abs(states["erp"].paused_until - time.time()) < 60
    assert states == {
        "erp": replace(paused, paused_until=states["erp"].paused_until),
        "archive": replace(paused, name="archive"),
    }


def test_a_sink_that_could_not_be_built_is_not_resumed(start_receiver: StartReceiver, operator: Operator) -> None:
    receiver = start_receiver("[sinks.typo]\ntype = 'csf'\n", ready=False, WEB_CONCURRENCY="1")
    operator.operate(receiver)
    wait_until(lambda: operator.sink_status("typo")["pause_reason"])
    receiver.configure(f"{JOURNAL}[sinks.typo]\ntype = 'stdout'\n")  # which takes effect at the next start
    code, out, errors = operator.run("sinks", "resume", "typo")
    assert (code, out) == (1, [])
    assert errors == [
        "error: sink typo could not be built when the receiver started: config.toml [sinks.typo]: "
        f"no sink type 'csf' (did you mean 'csv'?); {THERE_ARE}; correct it and restart"
    ]
    receiver.stop()
    receiver.start()
    wait_until(lambda: receiver.push(Simulator().body("touch")) == (200, "accepted"))
    wait_until(lambda: operator.sink_status("typo")["delivered"] == 1)


def test_a_running_receiver_probes_a_sink_as_soon_as_it_is_resumed(
    start_receiver: StartReceiver, operator: Operator
) -> None:
    folder = operator.folder / "not a folder yet"
    folder.touch()
    config = f"""
        [sinks.blocked]
        type = "csv"
        path = "{folder}/events.csv"
        retry = {{ initial_backoff = "1h" }}
        """
    receiver = start_receiver(config, ready=False, WEB_CONCURRENCY="1")
    receiver.push(Simulator().body("touch"))
    operator.operate(receiver)
    wait_until(lambda: operator.sink_status("blocked")["pause_reason"])
    folder.unlink()
    (line,) = operator.lines("sinks", "resume", "blocked")
    assert line.startswith("Sink blocked is probed now. It was paused: ")
    wait_until(lambda: len(receiver.rows(f"{folder}/events.csv")) == 1)


def test_a_removed_sink_is_deleted_with_its_deliveries_and_no_other_sink_changes(operator: Operator) -> None:
    operator.add_events({"a": ["old", "erp"], "b": ["old"], "c": ["old"]})
    results = (Result.DEAD, Result.DELIVERED)
    operator.journal.settle(
        [
            Settlement(delivery, result, reason="no")
            for delivery, result in zip(operator.journal.claim("old", 2, 60), results, strict=True)
        ]
    )
    assert operator.lines("sinks", "remove", "old", "--yes") == [
        "Removed sink old and its 2 pending or dead deliveries."
    ]
    assert [row["sink"] for row in operator.json("status")["sinks"]] == ["erp", "archive"]
    assert (operator.counts("old"), operator.counts("erp")) == ((0, 0, 0), (1, 0, 0))
    assert operator.json("dead-letters", "list") == []
    assert operator.run("sinks", "remove", "old", "--yes") == (1, [], ["error: there is no sink old in the journal"])


def test_a_disabled_sink_can_be_removed(operator: Operator) -> None:
    operator.add_pending("erp", "a")
    operator.configure(TWO_SINKS.replace('type = "webhook"', 'type = "webhook"\nenabled = false'))
    assert operator.lines("sinks", "remove", "erp", "--yes") == ["Removed sink erp and its 1 pending or dead delivery."]


def test_a_new_sink_gets_nothing_that_an_old_dispatcher_routes_to_a_removed_one(operator: Operator) -> None:
    operator.add_pending("old", "a")
    operator.lines("sinks", "remove", "old", "--yes")
    operator.add_pending("old", "b")
    newer = operator.open_journal()
    newer.save_sink_state(SinkState("new"))
    assert [delivery.event.id for delivery in newer.claim("new", 10, 60)] == []
    assert [row["sink"] for row in operator.json("status")["sinks"] if row["pending"]] in ([], ["old"])


def test_a_result_for_a_removed_sink_does_not_settle_a_delivery_of_a_new_one(operator: Operator) -> None:
    operator.add_pending("old", "a")
    claimed = operator.journal.claim("old", 10, 60)
    operator.lines("sinks", "remove", "old", "--yes")
    operator.configure(JOURNAL + CONSOLE)
    operator.lines("replay", "console", "--since", LONG_AGO, "--yes")
    operator.journal.settle([Settlement(claimed[0], Result.DELIVERED)])
    assert operator.explain("a")["console"]["state"] == "pending"


def test_what_an_old_dispatcher_routes_to_a_removed_sink_reaches_no_new_one(operator: Operator) -> None:
    operator.configure(SCRIPTED)
    operator.script("pause closed")
    with operator.dispatcher():
        operator.accept("a")
        wait_until(lambda: operator.sink_status("scripted")["pause_reason"] == "closed")
        operator.configure(JOURNAL + ARCHIVE)
        assert operator.lines("sinks", "remove", "scripted", "--yes") == [
            "Removed sink scripted and its 1 pending or dead delivery."
        ]
        operator.accept("b")
        wait_until(lambda: operator.journal.counts().unrouted == 0)
    with operator.dispatcher():
        operator.accept("c")
        wait_until(lambda: "c" in operator.archived)
    assert operator.archived == ["c"]


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Path, "path"),
        (Literal["a", 1], '"a" or 1'),
        (int | str | None, "whole number or text"),
        (tuple[int, ...], "list of whole number"),
        (list, "list"),
        (Mapping[str, float], "table of number"),
        (dict[str, list[str]], "table of list of text"),
        (dict, "dict"),
        (Annotated[bool, "more"], "true or false"),
        (Any, "anything"),
    ],
    ids=str,
)
def test_the_type_of_an_option_is_shown_in_words(annotation: object, words: str) -> None:
    assert in_words(annotation) == words
