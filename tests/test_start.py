"""The first command on a machine: which Python it takes, and what it says where there is none that is new enough."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from conftest import ROOT

OLD = [
    found
    for version in ("2.7", "3.6", "3.7", "3.8", "3.9", "3.10")
    for found in [
        shutil.which(f"python{version}"),
        *map(
            str,
            sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python")),
        ),
    ]
    if found and subprocess.run([found, "-c", ""], check=False, capture_output=True).returncode == 0
]
SHOW = ["make", "--no-print-directory", "--eval=show: ; @echo $(PYTHON)", "show"]


def run(*command: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS")}
    return subprocess.run(
        command, cwd=ROOT, env={**environment, "PATH": path}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("python", OLD)
def test_a_python_that_is_too_old_is_told_in_one_line(python: str) -> None:
    done = run(python, "-B", "-m", "receiver", "check")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"the receiver needs Python 3\.11 or newer; \S+ is [23]\.\d+\.\d+\n", done.stderr)


def test_the_file_that_tells_it_has_no_newer_syntax() -> None:
    source = (ROOT / "receiver" / "__init__.py").read_text(encoding="ascii")
    assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.JoinedStr | ast.AnnAssign)]
    ast.parse(source, feature_version=(3, 4))


IMPORT_EVERYTHING = """
import importlib, re, sys
from importlib.metadata import packages_distributions
from pathlib import Path

required = set(re.findall(r"^([a-z0-9-]+)==", Path("requirements.txt").read_text(), re.MULTILINE))

class OnlyRequired:
    homes = packages_distributions()

    def find_spec(self, name, path=None, target=None):
        names = {re.sub("[-_.]+", "-", home).lower() for home in self.homes.get(name, ())}
        if names and not names & {*required, "receiver"}:
            raise ModuleNotFoundError(f"{name} is not in requirements.txt", name=name)

sys.meta_path.insert(0, OnlyRequired())
for path in [*Path("receiver").rglob("*.py"), *Path("plugins").rglob("*.py")]:
    if "testing" not in path.parts and path.name != "__main__.py":
        importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
"""


def test_everything_that_is_imported_is_installed_by_the_requirements() -> None:
    done = run(sys.executable, "-c", IMPORT_EVERYTHING)
    assert (done.returncode, done.stderr) == (0, "")


SHOW_GARBAGE_COLLECTION = """
import gc
import receiver.commands.main
from receiver.__main__ import run
receiver.commands.main.main = lambda prog_name: print(gc.isenabled())
run()
"""


def test_garbage_is_collected_once_everything_is_imported() -> None:
    done = run(sys.executable, "-c", SHOW_GARBAGE_COLLECTION)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_an_environment_without_the_packages_is_told_in_one_line(tmp_path: Path) -> None:
    venv.create(tmp_path, symlinks=True)
    done = run(str(tmp_path / "bin" / "python"), "-B", "-m", "receiver", "check")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"\w+ is not installed for \S+; run `make venv`, and use \.venv/bin/python\n", done.stderr)


def pythons(folder: Path, **targets: str | None) -> str:
    """A PATH on which only these are called python: links to interpreters, and without a target one that fails."""
    for name in ("sh", "make", "env", "touch", "test", "echo"):
        (folder / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    for name, target in targets.items():
        script = f'#!/bin/sh\nexec {target} "$@"\n' if target else "#!/bin/sh\nexit 1\n"
        (folder / name.replace("_", ".")).write_text(script)
        (folder / name.replace("_", ".")).chmod(0o755)
    return str(folder)


def test_make_takes_the_first_python_that_is_new_enough(tmp_path: Path) -> None:
    path = pythons(tmp_path, python3=None, python3_13=None, python3_12=sys.executable)
    assert run(*SHOW, path=path).stdout == f"{sys.executable}\n"


@pytest.mark.parametrize(
    "given", [[], ["PYTHON=/does/not/exist"], ["PYTHON=false"]], ids=["none", "missing", "failing"]
)
def test_make_says_in_one_line_that_no_python_is_new_enough(given: list[str], tmp_path: Path) -> None:
    done = run("make", "venv", *given, f"VENV={tmp_path}/venv", path=pythons(tmp_path, python3=None))
    assert done.returncode == 2
    assert "the receiver needs Python 3.11 or newer; name one with PYTHON=/path/to/python3\n" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_make_creates_an_environment_without_pip_anew(tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, symlinks=True, with_pip=False)
    made = tmp_path / "made"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$1" in -m) echo "$@" >> {made};; *) exec {sys.executable} "$@";; esac\n')
    python.chmod(0o755)
    run("make", "venv", f"PYTHON={python}", f"VENV={environment}")
    assert made.read_text() == f"-m venv --clear {environment}\n"
