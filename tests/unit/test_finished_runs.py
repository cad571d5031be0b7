"""Which workspace a folder means, and which of its domains are finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from constrained_adapters.cli.run_folder import chosen_workspace, default_run_folder
from constrained_adapters.errors import UnknownNameError, WorkspaceError
from constrained_adapters.workspace import Workspace, find_workspace, finished_domains


def begin(run: Path, name: str, recipe: str | None = None) -> Workspace:
    workspace = Workspace(run / name)
    workspace.root.mkdir(parents=True)
    workspace.remember_settings({"method": {"recipe": recipe or name, "name": name}})
    return workspace


def test_the_only_method_is_meant(tmp_path):
    begin(tmp_path, "lora")
    assert find_workspace(tmp_path).root == tmp_path / "lora"
    assert find_workspace(str(tmp_path), "lora").root == tmp_path / "lora"


def test_among_several_the_one_whose_recipe_has_crma_is_meant(tmp_path):
    begin(tmp_path, "lora")
    begin(tmp_path, "mine", "replay + crma")
    assert find_workspace(tmp_path).root.name == "mine"
    assert find_workspace(tmp_path, "lora").root.name == "lora"


@pytest.mark.parametrize("recipes", [("lora", "replay"), ("crma", "crma + replay")])
def test_nothing_is_guessed(tmp_path, recipes):
    for recipe in recipes:
        begin(tmp_path, recipe)
    with pytest.raises(WorkspaceError, match="several methods") as caught:
        find_workspace(tmp_path)
    assert all(recipe in caught.value.got for recipe in recipes)
    assert caught.value.hint == f"--method {min(recipes)}"


def test_the_folder_of_a_method_is_found_by_itself(tmp_path, monkeypatch):
    begin(tmp_path, "crma")
    assert find_workspace(tmp_path / "crma").root == tmp_path / "crma"
    monkeypatch.chdir(tmp_path / "crma")
    assert find_workspace(Path(), "crma").root == Path()
    with pytest.raises(UnknownNameError, match="no method named 'lora'"):
        find_workspace(tmp_path / "crma", "lora")


def test_a_wrong_name_gets_the_nearest(tmp_path):
    begin(tmp_path, "crma")
    with pytest.raises(UnknownNameError) as caught:
        find_workspace(tmp_path, "crmaa")
    assert caught.value.hint == "crma"


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_without_a_run_is_no_run(tmp_path, there):
    folder = tmp_path / "none"
    if there:
        folder.mkdir()
        (folder / "crma.yaml").touch()
    with pytest.raises(WorkspaceError, match="no run here") as caught:
        find_workspace(folder)
    assert str(folder) in caught.value.got
    assert (str(folder / "crma.yaml") in caught.value.hint) == there


def test_finished_are_the_domains_in_the_ledger_whose_folder_is_there(tmp_path):
    workspace = begin(tmp_path, "crma")
    for domain in ("Право", "数学", "law"):
        workspace.ledger.append({"domain": domain})
        workspace.adapter(domain).mkdir(parents=True)
    workspace.ledger.append({"event": "rolled back"})
    workspace.adapter("数学").rmdir()
    workspace.adapter("begun").mkdir()
    assert finished_domains(workspace) == ("Право", "law")


def test_a_damaged_settings_file_is_told(tmp_path):
    for name in ("crma", "lora"):
        begin(tmp_path, name)
    (tmp_path / "lora" / "settings.json").write_text("{")
    with pytest.raises(WorkspaceError, match="damaged"):
        find_workspace(tmp_path)


def test_commands_take_the_output_of_the_settings_file_where_no_folder_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_run_folder() == Path("crma-run")
    begin(tmp_path / "crma-run", "lora")
    assert chosen_workspace(None, None).root == Path("crma-run/lora")
    domain = json.dumps({"name": "law", "data": "law.jsonl"})
    Path("crma.yaml").write_text(f"output: out\nmethods: [crma]\ndomains: [{domain}]\n")
    begin(tmp_path / "out", "crma")
    assert chosen_workspace(None, None).root == tmp_path / "out" / "crma"
    assert chosen_workspace(tmp_path / "crma-run", None).root.name == "lora"
