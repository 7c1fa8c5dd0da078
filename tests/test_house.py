"""The rules of the house: imports point one way, and each third-party library is imported only where it is wrapped."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT
from support.commands import free_port
from support.layers import LAYERS, LIBRARIES, WALLS

import receiver
from receiver.delivery.plugins import FOLDER, is_built_in
from receiver.settings import load
from receiver.variables import SECRET

PLUGIN_CODE = {
    f"receiver.delivery.{name}" for name in ("dispatcher", "plugins", "sinks", "sink_loop", "sink_type", "hooks")
}
"""Modules that load plugins or call them."""


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


@functools.cache
def of_package() -> list[Import]:
    return [each for path in sorted((ROOT / "receiver").rglob("*.py")) for each in imports(path)]


def part_of(module: str) -> str:
    """`receiver.journal.sql` → `journal`; empty for the package itself and for other packages."""
    parts = module.split(".")
    return parts[1] if parts[0] == "receiver" and len(parts) > 1 else ""


def part_of_file(file: str) -> str:
    return part_of(file.removesuffix(".py").replace("/", "."))


@functools.cache
def modules() -> set[str]:
    """The parts of the package: files and folders."""
    return {part_of_file(path.relative_to(ROOT).as_posix()) for path in (ROOT / "receiver").rglob("*.py")}


def parts_imported(each: Import) -> set[str]:
    return {part for target in each.targets if (part := part_of(target)) in modules()} - {"__init__"}


def layer(part: str) -> int:
    return next(number for number, parts in enumerate(LAYERS.values()) if part in parts)


def module_of(file: str) -> str:
    """`receiver/journal/__init__.py` → `receiver.journal`."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def files_of_modules() -> dict[str, str]:
    """The modules of the package, with their files."""
    files = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "receiver").rglob("*.py"))]
    return {module_of(file): file for file in files}


def graph_of_parts() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for each in of_package():
        own = part_of_file(each.file)
        graph.setdefault(own, set()).update(parts_imported(each) - {own})
    return graph


def graph_of_modules() -> dict[str, set[str]]:
    known = files_of_modules()
    graph: dict[str, set[str]] = {module: set() for module in known}
    for each in of_package():
        most_exact = max((target for target in each.targets if target in known), key=len, default=None)
        if most_exact is not None:
            graph[module_of(each.file)].add(most_exact)
    return graph


def reachable(graph: Mapping[str, set[str]], start: Iterable[str]) -> set[str]:
    found: set[str] = set()
    to_visit = list(start)
    while to_visit:
        each = to_visit.pop()
        if each not in found:
            found.add(each)
            to_visit += graph.get(each, set())
    return found


def test_every_part_of_the_package_has_one_layer() -> None:
    in_layers = [part for parts in LAYERS.values() for part in parts]
    assert sorted([*in_layers, "__init__"]) == sorted(modules())


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
    graph = graph_of_parts()
    assert [part for part in graph if part in reachable(graph, graph[part])] == []


def test_no_two_modules_import_each_other_not_even_in_a_circle() -> None:
    graph = graph_of_modules()
    circles = [module for module in graph if module in reachable(graph, graph[module] - {"receiver"})]
    assert circles == []


@pytest.mark.parametrize(("part", "forbidden"), WALLS, ids=[f"{part}-{forbidden}" for part, forbidden in WALLS])
def test_no_wall_between_components_is_crossed_not_even_indirectly_or_lazily(part: str, forbidden: str) -> None:
    assert forbidden not in reachable(graph_of_parts(), [part, "__init__"])


@pytest.mark.parametrize(
    "part", ["intake", "admin", "simulator", "logs", "journal", "signature", "health", "supervisor"]
)
def test_what_receives_imports_no_plugin_code_not_even_indirectly_or_lazily(part: str) -> None:
    graph = graph_of_modules()
    start = [module for module in graph if module.startswith(f"receiver.{part}")]
    assert start
    assert reachable(graph, start) & PLUGIN_CODE == set()


def test_the_server_imports_plugin_code_only_in_the_process_that_delivers() -> None:
    where = {
        (each.file, each.within)
        for each in of_package()
        if each.targets & PLUGIN_CODE and not each.file.startswith(("receiver/delivery/", "receiver/testing/"))
    }
    assert {function for file, function in where if file == "receiver/server.py"} == {"dispatch"}
    assert {file for file, _ in where} == {
        "receiver/server.py",
        "receiver/commands/main.py",
        "receiver/commands/output.py",
        "receiver/scaffold.py",
    }
    assert {file for file, function in where if not function} == {"receiver/commands/output.py", "receiver/scaffold.py"}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_only_where_it_is_wrapped(library: str) -> None:
    files = {each.file for each in of_package() if each.module.split(".")[0] == library}
    assert files
    assert [file for file in sorted(files) if not file.startswith(LIBRARIES[library])] == []


def test_only_the_journal_imports_what_is_inside_of_it() -> None:
    wrong = [
        f"{each.file} imports {each.module}"
        for each in of_package()
        if each.module.startswith("receiver.journal.") and not each.file.startswith("receiver/journal/")
    ]
    assert wrong == []


def test_no_code_of_the_core_names_a_sink_type() -> None:
    """A sink type says by itself what is special about it."""
    types = {"stdout", "csv", "sql", "mqtt", "webhook"}
    core = [path for path in (ROOT / "receiver").rglob("*.py") if "testing" not in path.parts]
    named = [
        path.relative_to(ROOT).as_posix()
        for path in core
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in types
    ]
    assert named == []


def test_built_in_sinks_use_only_what_every_sink_can_use() -> None:
    files = [path for path in sorted(FOLDER.rglob("*.py")) if is_built_in(path)]
    imported = [
        each
        for path in files
        for each in imports(path)
        if each.module.split(".")[0] in ("receiver", "tests") or each.module.startswith("plugins")
    ]
    own = [each for each in imported if each.module.startswith(f"plugins.{Path(each.file).parts[1]}")]
    others = [each for each in imported if each not in own]
    assert others
    assert [each for each in others if each.module != "receiver" or each.name not in receiver.__all__] == []


def test_nothing_imports_the_tests_or_the_plugins() -> None:
    own = {"tests", "plugins", "conftest", "bench", "chaos", "power_cut", "fuzz"}
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
        "import receiver.delivery as d, jwt.api_jwt\nfrom receiver import delivery\nfrom . import delivery\n"
        "from .journal.sql import SqlJournal\nif True:\n    import gunicorn\n"
        "class A:\n    def f(self):\n        def g():\n            from receiver.delivery.sinks import build_sinks\n"
    )
    assert list(imports(file, tmp_path)) == [
        Import("receiver/x.py", "receiver.delivery"),
        Import("receiver/x.py", "jwt.api_jwt"),
        Import("receiver/x.py", "receiver", "delivery"),
        Import("receiver/x.py", "receiver", "delivery"),
        Import("receiver/x.py", "receiver.journal.sql", "SqlJournal"),
        Import("receiver/x.py", "gunicorn"),
        Import("receiver/x.py", "receiver.delivery.sinks", "build_sinks", "f"),
    ]
    assert [parts_imported(each) for each in imports(file, tmp_path)] == [
        {"delivery"},
        set(),
        {"delivery"},
        {"delivery"},
        {"journal"},
        set(),
        {"delivery"},
    ]


def test_every_public_name_is_documented_where_it_is_defined() -> None:
    homes = {each.name: each.module for each in imports(ROOT / "receiver" / "__init__.py") if each.module != "sys"}
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
        env={
            "PATH": os.environ.get("PATH", ""),
            "RECEIVER_CONFIG": str(config),
            "PORT": free_port(),
            SECRET: "s" * 32,
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_config_toml_as_shipped_passes_check() -> None:
    assert checked(ROOT / "config.toml") == (
        0,
        "config.toml is valid. Enabled sinks: console, archive. Signature secrets: 1.\n",
        "",
    )


def test_config_toml_passes_check_with_everything_in_it_switched_on(tmp_path: Path) -> None:
    text = (ROOT / "config.toml").read_text(encoding="utf-8")
    switched_on = re.sub(r"^# (?=\[|\w+ = )", "", text, flags=re.MULTILINE)
    (tmp_path / "config.toml").write_text(switched_on, encoding="utf-8")
    assert checked(
        tmp_path / "config.toml", ERP_SECRET="c2VjcmV0IG9mIHR3ZW50eS1mb3VyIGJ5dGVz", MQTT_PASSWORD="an example"
    ) == (
        0,
        "config.toml is valid. Enabled sinks: console, archive, data, home, erp. Signature secrets: 1.\n",
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
