"""What holds for all commands: help, usage errors, errors in one line, secrets, and what a terminal gets."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import resource
import subprocess
import sys
import termios
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import click
import pytest
from click.testing import CliRunner
from conftest import ROOT, wait_until
from support.commands import CONSOLE, LONG_AGO, NOON, STRONG_SECRET, Operator, Shell, event_body

from receiver.__main__ import run
from receiver.commands.main import main
from receiver.journal import Arrival, Result, SinkState

HOSTILE = "\x1b]0;owned\x07\x1b[31mred\r\nforged line\x9b2J"
CONTROL_CHARACTERS = {chr(code) for code in [*range(0x20), *range(0x7F, 0xA0)]} - {"\n"}


def commands(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that name it, groups and the program itself included."""
    yield path, group
    if isinstance(group, click.Group):
        for name, command in sorted(group.commands.items()):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", [path for path, _ in commands(main)], ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    for option in ("--help", "-h"):
        done = CliRunner().invoke(main, [*path, option], prog_name="python -m receiver")
        assert done.exit_code == 0
        assert done.output.startswith(f"Usage: {' '.join(['python -m receiver', *path])} ")
        example = rf"^  Examples?.*:\n    .*python -m receiver {' '.join(path)}"
        assert not path or re.search(example, done.output, re.MULTILINE)


def test_the_help_of_a_group_lists_its_commands_each_with_a_description() -> None:
    groups = [(path, group) for path, group in commands(main) if isinstance(group, click.Group)]
    assert () in [path for path, _ in groups]
    for path, group in groups:
        shown = CliRunner().invoke(main, [*path, "--help"]).output
        assert [name for name in group.commands if not re.search(rf"^  {name}  +\w", shown, re.MULTILINE)] == []


def test_every_option_of_every_command_has_a_description() -> None:
    undescribed = [
        f"{' '.join(path)} {parameter.name}"
        for path, command in commands(main)
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.help
    ]
    assert undescribed == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("send", "http://127.0.0.1:1", "--count", "-1"),
        ("send", "http://127.0.0.1:1", "--count", "0"),
        ("send", "http://127.0.0.1:1", "--count", "many"),
        ("send", "http://127.0.0.1:1", "--type", "tmperature"),
        ("send",),
        ("demo", "--rate", "0"),
        ("demo", "--rate", "-1"),
        ("demo", "--seconds", "-1"),
        ("demo", "--seconds", "0"),
        ("serv",),
        ("check", "--all"),
        ("replay", "erp"),
        ("replay", "erp", "--since", ""),
        ("replay", "erp", "--since", "yesterday"),
        ("replay", "erp", "--since", "d"),
        ("replay", "erp", "--since", "-3h"),
        ("replay", "erp", "--since", "3w"),
        ("replay", "erp", "--since", "2026-02-30"),
        ("replay", "erp", "--since", "99999999999d"),
        ("replay", "erp", "--since", "9" * 400 + "d"),
        ("sensors", "--json", "gaps"),
        ("sinks", "--json", "resume", "erp"),
        ("demo", "--rate", "1e-12"),
        ("demo", "--rate", "nan"),
        ("demo", "--seconds", "nan"),
        ("replay",),
        ("explain",),
        ("dead-letters", "retry"),
        ("dead-letters", "delete"),
        ("quarantine", "show"),
        ("sinks", "remove"),
        ("sinks", "resume"),
    ],
    ids=lambda arguments: ascii(" ".join(arguments))[:40],
)
def test_wrong_arguments_are_a_usage_error_and_change_nothing(
    arguments: tuple[str, ...], operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiver.demo.run", lambda *given: pytest.fail(f"the demo ran with {given}"))
    operator.add_pending("erp", "a")
    operator.settle_due("erp", Result.DEAD, "no")
    code, out, errors = operator.run(*arguments)
    assert (code, out, errors[0].split()[0], errors[-1].split()[0]) == (2, [], "Usage:", "Error:")
    assert operator.counts("erp") == (0, 0, 1)


@pytest.mark.parametrize(
    ("arguments", "text", "facts"),
    [
        pytest.param(("dead-letters", "list"), "No dead letters.", [], id="dead-letters list"),
        pytest.param(
            ("dead-letters", "retry", "erp"),
            "Retrying 0 dead letters of sink erp.",
            {"sink": "erp", "retried": 0},
            id="dead-letters retry",
        ),
        pytest.param(
            ("dead-letters", "delete", "erp", "--yes"),
            "Deleted 0 dead letters of sink erp.",
            {"sink": "erp", "deleted": 0},
            id="dead-letters delete",
        ),
        pytest.param(("quarantine", "list"), "Nothing is in quarantine.", [], id="quarantine list"),
        pytest.param(
            ("quarantine", "retry"),
            "Released 0 pushes for delivery; 0 left in quarantine.",
            {"released": 0, "left": 0},
            id="quarantine retry",
        ),
        pytest.param(
            ("replay", "erp", "--since", LONG_AGO),
            "Found 0 matching events; requeued 0 for sink erp.",
            {"sink": "erp", "matched": 0, "requeued": 0, "dry_run": False},
            id="replay",
        ),
    ],
)
def test_without_a_journal_there_is_nothing_to_show_or_change(
    arguments: tuple[str, ...], text: str, facts: object, operator: Operator
) -> None:
    assert operator.lines(*arguments) == [text]
    assert operator.json(*arguments) == facts


NOT_A_DEAD_LETTER = "none of these is a dead letter of sink erp; `dead-letters list` shows them"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        pytest.param(
            ("explain", "unknown"),
            "event unknown is not in the journal: it was never received, or was delivered and then removed after "
            "[journal] retention_days",
            id="explain an unknown event",
        ),
        pytest.param(
            ("dead-letters", "retry", "epr"),
            "no sink 'epr' is enabled in config.toml (did you mean 'erp'?)",
            id="retry for an unknown sink",
        ),
        pytest.param(("dead-letters", "retry", "erp", "delivered"), NOT_A_DEAD_LETTER, id="retry a delivered event"),
        pytest.param(
            ("dead-letters", "delete", "erp", "delivered", "unknown"), NOT_A_DEAD_LETTER, id="delete a delivered event"
        ),
        pytest.param(
            ("quarantine", "show", "ffff"),
            "0 quarantined pushes have an id that begins with 'ffff'; `quarantine list` shows all",
            id="show an unknown push",
        ),
        pytest.param(
            ("quarantine", "retry", "%"),
            "0 quarantined pushes have an id that begins with '%'; `quarantine list` shows all",
            id="a wildcard is not a prefix",
        ),
        pytest.param(
            ("replay", "archiv", "--since", "3h"),
            "no sink 'archiv' is enabled in config.toml (did you mean 'archive'?)",
            id="replay to an unknown sink",
        ),
        pytest.param(
            ("replay", "ARCHIVE", "--since", "3h", "--dry-run"),
            "no sink 'ARCHIVE' is enabled in config.toml",
            id="names differ in case",
        ),
        pytest.param(
            ("sinks", "remove", "erp"),
            "sink erp is enabled in config.toml; remove it there and restart first",
            id="remove an enabled sink",
        ),
        pytest.param(
            ("sinks", "remove", "epr"),
            "there is no sink epr in the journal (did you mean 'erp'?)",
            id="remove an unknown sink",
        ),
        pytest.param(("sinks", "resume", "erp"), "sink erp is not paused", id="resume a sink that is not paused"),
        pytest.param(
            ("sinks", "resume", "epr"),
            "no sink 'epr' is enabled in config.toml (did you mean 'erp'?)",
            id="resume an unknown sink",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line_on_standard_error_and_exit_code_1(
    arguments: tuple[str, ...], error: str, operator: Operator
) -> None:
    operator.add_pending("erp", "delivered")
    operator.settle_due("erp", Result.DELIVERED)
    assert operator.run(*arguments) == (1, [], [f"error: {error}"])
    if arguments[0] != "sinks":
        assert operator.run(*arguments, "--json") == (1, [], [f"error: {error}"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("explain", "\udcff"),
        ("dead-letters", "list", "\udcff"),
        ("dead-letters", "retry", "erp", "\udcff"),
        ("dead-letters", "delete", "erp", "\udcff"),
        ("quarantine", "show", "\udcff"),
        ("quarantine", "retry", "\udcff"),
        ("sinks", "remove", "\udcff"),
        ("sinks", "resume", "\udcff"),
        ("replay", "erp", "--since", "3h", "--until", "\udcff"),
    ],
    ids=lambda arguments: " ".join(arguments[:-1]),
)
def test_an_argument_that_is_not_text_is_one_error_line_and_nothing_in_the_log(
    arguments: tuple[str, ...], operator: Operator, caplog: pytest.LogCaptureFixture
) -> None:
    assert operator.run(*arguments) == (1, [], ["error: an argument is not valid text"])
    assert caplog.records == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("dead-letters", "list"),
        ("dead-letters", "retry", "erp"),
        ("dead-letters", "delete", "erp", "--yes"),
        ("quarantine", "list"),
        ("quarantine", "show", "a"),
        ("quarantine", "retry"),
        ("replay", "erp", "--since", "3h"),
        ("explain", "a"),
        ("status",),
        ("sinks", "remove", "old"),
        ("sinks", "resume", "erp"),
        ("check",),
        ("migrate",),
    ],
    ids=" ".join,
)
def test_a_file_that_is_not_a_journal_is_one_error_line(arguments: tuple[str, ...], operator: Operator) -> None:
    path = operator.settings.journal_path
    path.parent.mkdir()
    path.write_bytes(b"This is a text file and not a journal. " * 100)
    code, out, errors = operator.run(*arguments)
    assert (code, out, len(errors)) == (1, [], 1)
    assert errors[0].startswith(f"error: journal {path}: ")


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("config.toml/journal.sqlite", "journal {path}: {reason}; make it writable or set another [journal] path"),
        ("/proc/receiver/journal.sqlite", "journal {path}: {reason}; make it writable or set another [journal] path"),
        ("/proc/journal.sqlite", "journal {path}: {reason}; make it writable or set another [journal] path"),
        ("folder", "journal {path}: {reason}"),
        ("a\\u0000b", "config.toml [journal]: path: a path cannot contain the character NUL"),
    ],
    ids=["under a file", "in a folder that cannot be created", "cannot be created", "a folder", "null character"],
)
def test_a_journal_that_cannot_be_opened_is_one_error_line(path: str, error: str, operator: Operator) -> None:
    (operator.folder / "folder").mkdir()
    operator.configure(f'[journal]\npath = "{path}"\n{CONSOLE}')
    code, out, errors = operator.run("migrate")
    assert (code, out, len(errors)) == (1, [], 1)
    pattern = re.escape(f"error: {error}").replace(r"\{reason\}", ".+")
    assert re.fullmatch(pattern.replace(r"\{path\}", re.escape(str(operator.folder / path))), errors[0]), errors[0]


def test_no_error_shows_a_value_from_the_environment(shell: Shell, operator: Operator) -> None:
    hidden = "value-from-the-environment"
    operator.configure(f"[receiver]\nhost = {{ env = 'HIDDEN' }}\n{CONSOLE}")
    results = [shell.run("serve", HIDDEN=f"{hidden}..invalid")]
    operator.configure(f"[journal]\npath = {{ env = 'HIDDEN' }}\n{CONSOLE}")
    results.append(operator.run("migrate", HIDDEN=f"/dev/null/{hidden}"))
    operator.configure("[receiver]\nplugins = ['mine.py']")
    (operator.folder / "mine.py").write_text(f"raise RuntimeError('{STRONG_SECRET}')\n")
    results += [operator.run("sinks"), operator.run("check")]
    assert [code for code, _, _ in results] == [1, 1, 0, 1]
    for _, out, errors in results:
        assert hidden not in "\n".join(out + errors)
        assert STRONG_SECRET not in "\n".join(out + errors)
        assert "***" in "\n".join(errors)


@pytest.mark.parametrize(
    "arguments", [("status",), ("dead-letters", "list"), ("quarantine", "list"), ("explain", "a")], ids=" ".join
)
def test_control_characters_of_events_and_errors_do_not_reach_the_terminal(
    arguments: tuple[str, ...], operator: Operator
) -> None:
    push = json.loads(event_body("a", HOSTILE))
    push["metadata"]["deviceId"] = HOSTILE
    operator.journal.accept([Arrival("a", json.dumps(push).encode(), NOON)])
    operator.journal.route([(event, ["erp", "archive"]) for event in operator.journal.unrouted(1)])
    operator.settle_due("archive", Result.FAILED, HOSTILE, due=NOON)
    operator.settle_due("erp", Result.DEAD, HOSTILE)
    operator.journal.save_sink_state(SinkState("erp", 1, operator.journal.now() + 60, HOSTILE))
    operator.quarantine(b"[]", HOSTILE)
    shown = "\n".join(operator.lines(*arguments))
    assert "owned" in shown
    assert CONTROL_CHARACTERS.isdisjoint(shown)
    assert not [line for line in shown.splitlines() if line.startswith("forged")]
    as_json = "\n".join(operator.lines(*arguments, "--json"))
    assert CONTROL_CHARACTERS.isdisjoint(as_json)
    assert HOSTILE in texts(json.loads(as_json))


def texts(value: Any) -> list[str]:
    """Every text inside a JSON value."""
    if isinstance(value, dict | list):
        return [text for part in (value.values() if isinstance(value, dict) else value) for text in texts(part)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_an_output_whose_reader_is_slow_is_complete_even_if_it_is_non_blocking(
    unbuffered: str, operator: Operator
) -> None:
    whole = command_with_output(operator, "sinks", "--json", stdout=subprocess.PIPE)
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(write_end, False)
    with open(read_end, "rb", buffering=0) as reader, ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            command_with_output, operator, "sinks", "--json", stdout=write_end, PYTHONUNBUFFERED=unbuffered
        )
        wait_until(lambda: unread_bytes(reader) == 4096 or running.done(), what="a full pipe")
        os.close(write_end)
        assert reader.readall() == whole.stdout
        assert (running.result().returncode, running.result().stderr) == (0, b"")


def unread_bytes(reader: IO[bytes]) -> int:
    return int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_disk_that_takes_a_part_of_the_output_is_one_error_line(
    unbuffered: str, operator: Operator, tmp_path: Path
) -> None:
    with (tmp_path / "out").open("wb") as out:
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, unlimited[1]))
        try:
            done = command_with_output(operator, "sinks", "--json", stdout=out, PYTHONUNBUFFERED=unbuffered)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert (done.returncode, done.stderr) == (1, b"error: cannot write: File too large\n")


@pytest.mark.parametrize("arguments", [("status",), ("status", "--json"), ("sinks",)], ids=" ".join)
def test_an_output_that_cannot_be_written_is_one_error_line(arguments: tuple[str, ...], operator: Operator) -> None:
    with Path("/dev/full").open("w") as full:
        done = command_with_output(operator, *arguments, stdout=full)
    assert (done.returncode, done.stderr) == (1, b"error: cannot write: No space left on device\n")


def test_characters_that_the_output_lacks_are_escaped(operator: Operator) -> None:
    operator.add_pending("erp", "a")
    operator.settle_due("erp", Result.DEAD, "冷 …")
    done = command_with_output(operator, "dead-letters", "list", stdout=subprocess.PIPE, PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines()[-1].endswith(rb"\u51b7 \u2026")


def command_with_output(
    operator: Operator, *arguments: str, stdout: Any, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "receiver", *arguments],
        cwd=ROOT,
        env={**os.environ, "RECEIVER_CONFIG": str(operator.folder / "config.toml"), **environment},
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=60,
    )


def test_ctrl_c_while_a_command_is_loaded_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "receiver.commands.main":
                raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdout", sys.stdout)  # which run replaces
    monkeypatch.delitem(sys.modules, "receiver.commands.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit, match=r"^\nAborted!$"):  # the exit code of a text is 1
        run()


def output_on_a_terminal(operator: Operator, *arguments: str) -> bytes:
    """What a terminal gets from a command."""
    our_end, command_end = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "receiver", *arguments],
        cwd=ROOT,
        env={**os.environ, "RECEIVER_CONFIG": str(operator.folder / "config.toml")},
        stdout=command_end,
        stderr=command_end,
    ) as process:
        os.close(command_end)
        output = b""
        while data := read_terminal(our_end):
            output += data
        os.close(our_end)
        assert process.wait(30) == 0
    return output


def read_terminal(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux reports the end like this
        return b""


def test_a_body_with_control_characters_is_printed_without_them_on_a_terminal(operator: Operator) -> None:
    push_id = operator.quarantine(b'{"event": "\x1b]0;owned\x07"}', "the body is not JSON")
    shown = output_on_a_terminal(operator, "quarantine", "show", push_id)
    assert b"owned" in shown
    assert b"\x1b" not in shown
    assert b"\x07" not in shown


def test_only_a_terminal_gets_colour(operator: Operator) -> None:
    operator.add_pending("erp", "a")
    assert b"\x1b[1m" in output_on_a_terminal(operator, "status")
    assert [line for line in operator.lines("status") if "\x1b" in line] == []
