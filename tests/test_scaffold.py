"""`new-sink`: the sink that it writes works as written, and a name that cannot be used is a clear error."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import run
from support.commands import Operator

from receiver import scaffold
from receiver.errors import ReceiverError
from receiver.scaffold import new_sink

TYPES = ("csv", "webhook")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The folders of a checkout that `new_sink` looks at."""
    for folder in ("plugins/packed", "tests"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("plugins/archive.py", "tests/test_proven.py"):
        (tmp_path / file).write_text("mine")
    return tmp_path


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_sink_passes_its_tests_the_linter_and_the_type_checker_and_check(clone: Path, operator: Operator) -> None:
    created = run(clone, "receiver", "new-sink", "drop_box")
    assert (created.returncode, created.stderr) == (0, "")
    assert created.stdout == (
        "Wrote plugins/drop_box.py and tests/test_drop_box.py. Run the tests:\n\n"
        "  make test TESTS=tests/test_drop_box.py\n\n"
        "To use the sink, add this to config.toml:\n\n"
        '[sinks.drop_box]\ntype = "drop_box"\nfolder = "data/drop_box"\n'
    )
    tested = run(clone, "pytest", "-q", "tests/test_drop_box.py")
    assert (tested.returncode, "passed" in tested.stdout, "skipped" in tested.stdout) == (0, True, False)
    for tool in (
        ["ruff", "check", "plugins", "tests"],
        ["ruff", "format", "--check", "plugins", "tests"],
        ["mypy", "--follow-imports=silent", "plugins/drop_box.py"],  # in what it imports, nothing is new
    ):
        checked = run(clone, *tool)
        assert checked.returncode == 0, checked.stdout
    plugins = f"[receiver]\nplugins = ['{clone / 'plugins' / 'drop_box.py'}']\n"
    operator.configure(plugins + created.stdout.partition("config.toml:\n\n")[2])
    assert operator.lines("check")[0].startswith("config.toml is valid. Enabled sinks: drop_box.")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (
            "Drop-Box",
            "'Drop-Box' is not a valid module name: use a-z, 0-9 and _, beginning with a letter "
            "(did you mean 'drop_box'?)",
        ),
        (
            "../x",
            "'../x' is not a valid module name: use a-z, 0-9 and _, beginning with a letter (did you mean 'x'?)",
        ),
        (
            "_hidden",
            "'_hidden' is not a valid module name: use a-z, 0-9 and _, beginning with a letter "
            "(did you mean 'hidden'?)",
        ),
        ("", "'' is not a valid module name: use a-z, 0-9 and _, beginning with a letter"),
        ("a" * 42, f"'{'a' * 42}' is not a valid module name: use a-z, 0-9 and _, beginning with a letter"),
        ("class", "'class' is a keyword of Python; choose another name"),
        ("None", "'None' is a keyword of Python; choose another name"),
        ("none", "the class of 'none' would be called None, which is in use; try 'none_sink'"),
        ("path", "the class of 'path' would be called Path, which is in use; try 'path_sink'"),
        ("event", "the class of 'event' would be called Event, which is in use; try 'event_sink'"),
        ("sink_suite", "the class of 'sink_suite' would be called SinkSuite, which is in use; try 'sink_suite_sink'"),
        ("test_rig", "pytest would take the class of 'test_rig', TestRig, for tests; choose another name"),
        ("tests", "pytest would take the class of 'tests', Tests, for tests; choose another name"),
        ("csv", "'csv' is a module of Python's standard library; try 'csv_sink'"),
        ("webhook", "sink type 'webhook' already exists; choose another name"),
        ("archive", "plugins/archive.py already exists; choose another name"),
        ("packed", "plugins/packed already exists; choose another name"),
        ("proven", "tests/test_proven.py already exists; choose another name"),
    ],
    ids=lambda value: value[:12],
)
def test_a_name_that_cannot_be_used_is_a_clear_error_and_nothing_is_written(
    name: str, error: str, checkout: Path
) -> None:
    before = files_in(checkout)
    with pytest.raises(ReceiverError) as raised:
        new_sink(name, TYPES, checkout)
    assert str(raised.value) == error
    assert files_in(checkout) == before


def test_the_longest_name_can_be_used(checkout: Path) -> None:
    name = "a" * 41
    assert new_sink(name, TYPES, checkout) == (
        checkout / "plugins" / f"{name}.py",
        checkout / "tests" / f"test_{name}.py",
    )


def test_a_sink_that_exists_is_not_overwritten(checkout: Path) -> None:
    new_sink("drop_box", TYPES, checkout)
    before = files_in(checkout)
    with pytest.raises(ReceiverError) as raised:
        new_sink("drop_box", TYPES, checkout)
    assert str(raised.value) == "plugins/drop_box.py already exists; choose another name"
    assert files_in(checkout) == before


def test_a_file_that_cannot_be_written_is_a_clear_error_and_leaves_no_other_behind(checkout: Path) -> None:
    (checkout / "tests" / "test_proven.py").unlink()
    (checkout / "tests").rmdir()
    (checkout / "tests").touch()
    with pytest.raises(ReceiverError) as raised:
        new_sink("drop_box", TYPES, checkout)
    assert str(raised.value) == "tests/test_drop_box.py cannot be written: File exists"
    assert not (checkout / "plugins" / "drop_box.py").exists()


def test_an_installed_package_is_not_written_to(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaffold, "INSTALLED", True)
    before = files_in(checkout)
    with pytest.raises(ReceiverError) as raised:
        new_sink("drop_box", TYPES, checkout)
    assert str(raised.value) == "new-sink needs a checkout of the receiver, and this is an installed package"
    assert files_in(checkout) == before


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("class", "error: 'class' is a keyword of Python; choose another name"),
        ("webhook", "error: sink type 'webhook' already exists; choose another name"),
    ],
)
def test_the_command_reports_an_error_in_one_line(name: str, error: str, operator: Operator) -> None:
    assert operator.run("new-sink", name) == (1, [], [error])
