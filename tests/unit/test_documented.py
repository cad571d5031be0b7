"""What a user can call stands in the documentation: each command, variable, public name and extra."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import constrained_adapters

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "constrained_adapters"


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_each_command_stands_on_the_page_of_commands():
    from constrained_adapters.cli.main import app

    named = page("guide/commands.md")
    commands = [each.name or each.callback.__name__ for each in app.registered_commands]
    groups = [each.name for each in app.registered_groups]
    assert [name for name in commands + groups if not re.search(rf"`crma {name}\b", named)] == []


def test_each_variable_of_the_environment_stands_there_too():
    read = set()
    for path in PACKAGE.rglob("*.py"):
        read.update(re.findall(r"""["'](CRMA_[A-Z_]+)["']""", path.read_text(encoding="utf-8")))
    assert read and read == set(re.findall(r"^\| `(CRMA_[A-Z_]+)`", page("guide/commands.md"), re.MULTILINE))


def test_each_name_of_the_package_stands_on_the_first_page_of_the_api():
    named = page("api/index.md")
    assert [name for name in constrained_adapters.__all__ if f"`{name}`" not in named] == []


def test_each_extra_of_a_user_stands_on_the_page_of_the_start():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"]) - {"dev", "docs"}
    assert [extra for extra in sorted(extras) if f"`{extra}`" not in page("start.md")] == []


def test_the_page_of_the_benchmark_has_the_rows_and_the_figure_of_its_last_table():
    spec = importlib.util.spec_from_file_location("benchmark_page", ROOT / "scripts" / "benchmark_page.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.table(script.read_rows()) in page("benchmark.md")
    assert script.FIGURE.read_bytes() == (script.TABLES / "pareto.svg").read_bytes()
