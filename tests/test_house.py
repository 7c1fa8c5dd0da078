"""The rules of the house, walked: imports point one way, and foreign libraries stay in the room that wraps them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT

import receiver
from receiver.plugins import SHIPPED
from receiver.settings import SECRET, load

LAYERS = {
    "doors": ("__main__", "cli", "output", "server", "intake", "app", "demo", "scaffold", "simulator", "testing"),
    "work": (
        *("dispatcher", "sink_loop", "alerts", "health", "plugins", "sink_type"),
        *("desk", "signature", "metrics", "logs", "lifeline"),
    ),
    "state": ("journal", "settings", "options"),
    "words": ("event", "errors", "hookspecs"),
}
"""What may be imported from where: from the same layer or from one below it."""

ROOMS = {
    "sqlalchemy": ("receiver/journal/", "receiver/testing/postgresql.py"),
    "sqlite3": "receiver/journal/",
    "jwt": "receiver/signature.py",
    "dtintegrations": "receiver/signature.py",
    "gunicorn": "receiver/intake.py",
    "prometheus_client": "receiver/metrics.py",
    "click": ("receiver/cli.py", "receiver/output.py"),
}
"""Where each foreign library may be imported."""


@dataclass(frozen=True)
class Import:
    """`name` (or a module of that name) is taken from `module`; `lazily` means inside the function `within`."""

    file: str
    module: str
    name: str = ""
    within: str = ""

    @property
    def targets(self) -> set[str]:
        return {self.module, f"{self.module}.{self.name}"} if self.name else {self.module}


def imports(path: Path, root: Path = ROOT) -> Iterator[Import]:
    """Every import of a file, those inside functions and conditions included."""
    file = path.relative_to(root).as_posix()
    package = file.removesuffix(".py").removesuffix("/__init__").split("/")
    if path.name != "__init__.py":
        package = package[:-1]

    def walk(node: ast.AST, within: str) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(file, alias.name, within=within) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else []
                module = ".".join([*base, *([child.module] if child.module else [])])
                yield from (Import(file, module, alias.name, within) for alias in child.names)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from walk(child, within or child.name)
            else:
                yield from walk(child, within)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), "")


def of_package() -> list[Import]:
    return [each for path in sorted((ROOT / "receiver").rglob("*.py")) for each in imports(path)]


def part_of(module: str) -> str:
    """`receiver.journal.sql` → `journal`; empty for the package itself and for other packages."""
    parts = module.split(".")
    return parts[1] if parts[0] == "receiver" and len(parts) > 1 else ""


def part_of_file(file: str) -> str:
    return part_of(file.removesuffix(".py").replace("/", "."))


def modules() -> set[str]:
    """The parts of the package: files and folders."""
    return {part_of_file(path.relative_to(ROOT).as_posix()) for path in (ROOT / "receiver").rglob("*.py")}


def parts_imported(each: Import) -> set[str]:
    return {part for target in each.targets if (part := part_of(target)) in modules()} - {"__init__"}


def layer(part: str) -> int:
    return next(number for number, parts in enumerate(LAYERS.values()) if part in parts)


def test_every_file_of_the_package_has_its_layer() -> None:
    in_layers = {part for parts in LAYERS.values() for part in parts}
    assert in_layers | {"__init__"} == modules()


def test_imports_point_one_way() -> None:
    wrong = [
        f"{each.file} imports {part}"
        for each in of_package()
        if (own := part_of_file(each.file)) != "__init__"
        for part in parts_imported(each)
        if layer(part) < layer(own)
    ]
    assert wrong == []


def test_no_two_parts_import_each_other_not_even_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for each in of_package():
        own = part_of_file(each.file)
        graph.setdefault(own, set()).update(parts_imported(each) - {own})
    circles = [part for part in graph if part in reachable(graph, graph[part])]
    assert circles == []


def reachable(graph: dict[str, set[str]], parts: Iterable[str]) -> set[str]:
    found: set[str] = set()
    to_visit = list(parts)
    while to_visit:
        part = to_visit.pop()
        if part not in found:
            found.add(part)
            to_visit += graph.get(part, set())
    return found


@pytest.mark.parametrize("start", ["app", "intake", "desk", "simulator", "logs", "journal", "metrics", "signature"])
def test_what_receives_imports_no_plugin_code_not_even_indirectly_or_lazily(start: str) -> None:
    graph: dict[str, set[str]] = {}
    for each in of_package():
        graph.setdefault(part_of_file(each.file), set()).update(parts_imported(each))
    assert not {"plugins", "dispatcher", "sink_loop"} & reachable(graph, [start, "__init__"])


def test_the_server_imports_plugin_code_only_in_the_process_that_delivers() -> None:
    where = {
        (each.file, each.within)
        for each in of_package()
        if parts_imported(each) & {"plugins", "dispatcher", "sink_loop"}
        and each.file not in ("receiver/dispatcher.py", "receiver/sink_loop.py")
        and not each.file.startswith("receiver/testing/")
    }
    assert {function for file, function in where if file == "receiver/server.py"} == {"dispatch"}
    assert {file for file, _ in where} == {"receiver/server.py", "receiver/cli.py"}
    assert "" not in {function for _, function in where}


@pytest.mark.parametrize("library", ROOMS)
def test_a_foreign_library_is_imported_only_in_the_room_that_wraps_it(library: str) -> None:
    files = {each.file for each in of_package() if each.module.split(".")[0] == library}
    assert files
    assert [file for file in sorted(files) if not file.startswith(ROOMS[library])] == []


def test_nothing_outside_the_journal_imports_what_is_inside_of_it() -> None:
    wrong = [
        f"{each.file} imports {each.module}"
        for each in of_package()
        if each.module.startswith("receiver.journal.") and not each.file.startswith("receiver/journal/")
    ]
    assert wrong == []


def test_built_in_sinks_use_only_what_every_sink_can_use() -> None:
    taken = [
        each
        for name in SHIPPED
        for each in imports(ROOT / "plugins" / name)
        if each.module.split(".")[0] in ("receiver", "plugins", "tests")
    ]
    assert {each.file for each in taken} == {f"plugins/{name}" for name in SHIPPED}
    assert [each for each in taken if each.module != "receiver" or each.name not in receiver.__all__] == []


def test_nothing_imports_the_tests_or_the_plugins() -> None:
    own = {"tests", "plugins", "conftest", "bench", "chaos"}
    assert [each for each in of_package() if each.module.split(".")[0] in own] == []


def test_no_import_takes_everything() -> None:
    assert [each for each in of_package() if each.name == "*"] == []


def test_a_folder_without_init_or_a_forbidden_name_does_not_hide_from_these_rules() -> None:
    folders = {path.parent for path in (ROOT / "receiver").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []
    assert modules() & {"utils", "common", "base", "services", "helpers"} == set()


def test_these_rules_see_every_kind_of_import(tmp_path: Path) -> None:
    (tmp_path / "receiver").mkdir()
    file = tmp_path / "receiver" / "x.py"
    file.write_text(
        "import receiver.plugins as p, jwt.api_jwt\nfrom receiver import plugins\nfrom . import plugins\n"
        "from .journal.sql import SqlJournal\nif True:\n    import gunicorn\n"
        "class A:\n    def f(self):\n        def g():\n            from receiver.plugins import build_all\n"
    )
    assert list(imports(file, tmp_path)) == [
        Import("receiver/x.py", "receiver.plugins"),
        Import("receiver/x.py", "jwt.api_jwt"),
        Import("receiver/x.py", "receiver", "plugins"),
        Import("receiver/x.py", "receiver", "plugins"),
        Import("receiver/x.py", "receiver.journal.sql", "SqlJournal"),
        Import("receiver/x.py", "gunicorn"),
        Import("receiver/x.py", "receiver.plugins", "build_all", "f"),
    ]
    assert [parts_imported(each) for each in imports(file, tmp_path)] == [
        {"plugins"},
        set(),
        {"plugins"},
        {"plugins"},
        {"journal"},
        set(),
        {"plugins"},
    ]


def test_every_public_name_is_documented_where_it_is_defined() -> None:
    homes = {each.name: each.module for each in imports(ROOT / "receiver" / "__init__.py")}
    assert sorted(homes) == sorted(receiver.__all__)
    undocumented = [name for name, module in homes.items() if not documentation(module, name)]
    assert undocumented == []


def documentation(module: str, name: str) -> str:
    """The docstring of a class or function, or the string that follows an assignment."""
    body = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")).body
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return ast.get_docstring(node) or ""
        assigned = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if any(isinstance(target, ast.Name) and target.id == name for target in assigned):
            told = after.value if isinstance(after, ast.Expr) else None
            return told.value if isinstance(told, ast.Constant) and isinstance(told.value, str) else ""
    return ""


def test_every_file_of_the_package_opens_with_a_docstring() -> None:
    files = [*(ROOT / "receiver").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    trees = {file.name: ast.parse(file.read_text(encoding="utf-8")) for file in files}
    assert [name for name, tree in trees.items() if not ast.get_docstring(tree)] == []


def test_importing_the_package_builds_nothing_and_starts_nothing() -> None:
    code = "import threading, receiver; print(threading.active_count(), sorted(receiver.__all__) == receiver.__all__)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={"PATH": os.environ.get("PATH", "")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("1 True\n", "")


def checked(config: Path, **environment: str) -> tuple[int, str, str]:
    """Exit code and output of `check` on a config.toml."""
    done = subprocess.run(
        [sys.executable, "-m", "receiver", "check"],
        cwd=ROOT,
        env={"PATH": os.environ.get("PATH", ""), "RECEIVER_CONFIG": str(config), SECRET: "s" * 32, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_config_toml_as_shipped_passes_check() -> None:
    assert checked(ROOT / "config.toml") == (
        0,
        "config.toml is right. Enabled sinks: console, archive. Signature secrets: 1.\n",
        "",
    )


def test_config_toml_passes_check_with_everything_in_it_switched_on(tmp_path: Path) -> None:
    text = (ROOT / "config.toml").read_text(encoding="utf-8")
    switched_on = re.sub(r"^# (?=\[|\w+ = )", "", text, flags=re.MULTILINE)
    (tmp_path / "config.toml").write_text(switched_on, encoding="utf-8")
    assert checked(tmp_path / "config.toml", ERP_SECRET="c2VjcmV0") == (
        0,
        "config.toml is right. Enabled sinks: console, archive, data, erp. Signature secrets: 1.\n",
        "",
    )


def test_the_commented_values_of_config_toml_are_the_defaults_they_claim_to_be(tmp_path: Path) -> None:
    text = (ROOT / "config.toml").read_text(encoding="utf-8")
    tables = text.partition("[sinks.console]")[0].replace("max_size_mb", "# max_size_mb")
    (tmp_path / "config.toml").write_text(re.sub(r"^# (?=\w+ = )", "", tables, flags=re.MULTILINE), encoding="utf-8")
    (tmp_path / "empty.toml").touch()
    written, default = (
        load({"RECEIVER_CONFIG": str(tmp_path / name), SECRET: "s"}) for name in ("config.toml", "empty.toml")
    )
    assert (written.receiver, written.journal) == (default.receiver, default.journal)
