"""new-sink: what it writes passes as it stands, and what it cannot write is said in a line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import run


def files(clone: Path) -> dict[Path, bytes]:
    """What a person put there."""
    return {path: path.read_bytes() for path in clone.rglob("*") if path.is_file() and "cache" not in str(path)}


def test_a_new_sink_passes_its_tests_the_linter_and_the_type_checker_and_delivers(clone: Path) -> None:
    begun = run(clone, "receiver", "new-sink", "drop_box")
    assert (begun.returncode, begun.stderr) == (0, "")
    assert begun.stdout == (
        "Wrote plugins/drop_box.py and tests/test_drop_box.py. Run the tests:\n\n"
        "  make test TESTS=tests/test_drop_box.py\n\n"
        "To use the sink, put this into config.toml:\n\n"
        '  [sinks.drop_box]\n  type = "drop_box"\n  folder = "data/drop_box"\n'
    )
    tested = run(clone, "pytest", "-q", "tests/test_drop_box.py")
    assert (tested.returncode, "passed" in tested.stdout, "skipped" in tested.stdout) == (0, True, False)
    for tool in (
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "plugins", "tests"],
        ["mypy", "receiver", "plugins"],
    ):
        linted = run(clone, *tool)
        assert linted.returncode == 0, linted.stdout
    (clone / "config.toml").write_text(begun.stdout.partition("config.toml:\n\n")[2])
    assert run(clone, "receiver", "check").stdout.startswith("config.toml is right. Enabled sinks: drop_box.")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Drop-Box", "cannot be the name of a module: use a-z, 0-9 and _, a letter first (did you mean 'drop_box'?)"),
        ("../x", "cannot be the name of a module: use a-z, 0-9 and _, a letter first (did you mean 'x'?)"),
        ("class", "error: 'class' is a word of Python's own; choose another name"),
        ("None", "error: 'None' is a word of Python's own; choose another name"),
        ("none", "error: 'none' would make a class None, which is taken; try 'none_sink'"),
        ("path", "error: 'path' would make a class Path, which is taken; try 'path_sink'"),
        ("event", "error: 'event' would make a class Event, which is taken; try 'event_sink'"),
        ("_hidden", "cannot be the name of a module: use a-z, 0-9 and _, a letter first (did you mean 'hidden'?)"),
        ("", "cannot be the name of a module: use a-z, 0-9 and _, a letter first"),
        ("a" * 80, "cannot be the name of a module: use a-z, 0-9 and _, a letter first"),
        ("csv", "is a module of Python's standard library; try 'csv_sink'"),
        ("webhook", "there is a sink type 'webhook' already; choose another name"),
        ("csv_file", "plugins/csv_file.py is there already; choose another name"),
        ("taken", "tests/test_taken.py is there already; choose another name"),
        ("packed", "plugins/packed is there already; choose another name"),
    ],
)
def test_a_name_that_cannot_be_used_is_said_in_a_line_and_nothing_is_written(name: str, why: str, clone: Path) -> None:
    (clone / "tests" / "test_taken.py").touch()
    (clone / "plugins" / "packed").mkdir()
    before = files(clone)
    refused = run(clone, "receiver", "new-sink", "--", name)
    assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (1, "", 1)
    assert why in refused.stderr
    assert files(clone) == before


def test_the_same_sink_is_not_begun_twice(clone: Path) -> None:
    run(clone, "receiver", "new-sink", "drop_box")
    before = files(clone)
    again = run(clone, "receiver", "new-sink", "drop_box")
    assert (again.returncode, again.stderr) == (
        1,
        "error: there is a sink type 'drop_box' already; choose another name\n",
    )
    assert files(clone) == before


def test_a_folder_that_cannot_be_written_is_said_in_a_line(clone: Path) -> None:
    shutil.rmtree(clone / "tests")
    (clone / "tests").touch()
    refused = run(clone, "receiver", "new-sink", "drop_box")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "error: tests/test_drop_box.py cannot be written: File exists\n"
    assert not (clone / "plugins" / "drop_box.py").exists()
