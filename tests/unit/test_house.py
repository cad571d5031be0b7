"""Rules of the house that no linter knows: sizes, names, declared dependencies, documented rooms."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "constrained_adapters"
SOURCES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted(
    path.stem
    for path in PACKAGE.iterdir()
    if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").exists()
)
# Reached through another library, by name, so that no import of ours shows them.
USED_BY_OTHERS = {
    "accelerate": "transformers.Trainer",
    "gguf": "transformers: gguf_file=",
    "tensorboard": "transformers: report_to",
    "trl": "the user's SFTTrainer",
}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> set[str]:
    """Names of the requirements of the core and of ``extras``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return {normal(re.match(r"[\w.-]+", requirement)[0]) for group in groups for requirement in group}


def user_extras() -> list[str]:
    """Extras that a user installs: not what only developing the project takes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [name for name in project["optional-dependencies"] if name not in {"dev", "docs"}]


def imported() -> set[str]:
    """Distributions that any file of the package imports, at the top or inside a function."""
    modules = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                modules.add(node.module.partition(".")[0])
    modules -= {*sys.stdlib_module_names, "constrained_adapters"}
    owners = packages_distributions()
    return {normal(owners[module][0]) if module in owners else module for module in modules}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_source_file_is_short_and_named_for_what_it_holds(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{lines} lines: split it"
    assert not {"utils", "helpers", "common", "misc"} & {path.stem, *path.relative_to(PACKAGE).parts}


def raised(function: ast.FunctionDef) -> set[str]:
    """Names of the exceptions that the body itself raises: ``raise E(…)`` and ``raise E.of(…)``."""
    names, todo = set(), list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            callee = node.exc.func.value if isinstance(node.exc.func, ast.Attribute) else node.exc.func
            names.add(ast.unparse(callee).rpartition(".")[2])
        todo.extend(ast.iter_child_nodes(node))
    return {name for name in names if name[:1].isupper()} - {"NotImplementedError", "AssertionError"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_a_public_function_raises_is_in_its_docstring(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        documented = (
            isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and ast.get_docstring(node)
        )
        if documented and "\n" in documented:
            section = documented.partition("Raises:")[2]
            assert not {name for name in raised(node) if name not in section}, node.name


def test_every_folder_of_sources_is_a_package():
    """Without ``__init__.py`` a room works by accident, and the check of the layers passes it over."""
    assert {path.parent for path in SOURCES} <= {path.parent for path in SOURCES if path.stem == "__init__"}


def test_every_import_is_declared():
    assert imported() <= declared(*user_extras())


def test_every_declared_dependency_is_used():
    assert declared(*user_extras()) - set(USED_BY_OTHERS) <= imported()


def test_pins_cover_the_core_and_keep_torch():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = {normal(line.partition("==")[0]) for line in pins.splitlines() if "==" in line}
    assert declared(*user_extras(), "docs") <= pinned
    assert "torch==2.13.0" in pins.splitlines()


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "cli"])
def test_a_room_has_its_page_in_the_api_documentation(room):
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    assert re.search(rf"^::: constrained_adapters\.{room}(\.|$)", pages, re.MULTILINE)
