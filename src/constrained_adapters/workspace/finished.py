"""Finds the workspace of a run that is to be used: asked, served, exported."""

from __future__ import annotations

from pathlib import Path

from constrained_adapters.errors import UnknownNameError, WorkspaceError
from constrained_adapters.workspace.folder import Workspace

PREFERRED = "crma"
"""The recipe that is meant where a run holds several methods and none is named."""


def find_workspace(path: str | Path, method: str | None = None) -> Workspace:
    """Return the workspace that a folder is, or that a run's folder holds; nothing is loaded.

    Args:
        path: The folder of a run, or of one of its methods.
        method: Which of a run's methods; left out: the only one, else the one whose recipe has ``crma``
            among its names.

    Raises:
        WorkspaceError: There is no run here, or nothing says which of its methods is meant.
        UnknownNameError: The run has no such method.
    """
    found = find_workspaces(path, method)
    if len(found) == 1:
        return found[0]
    preferred = [each for each in found if PREFERRED in _recipe_names(each)]
    if len(preferred) != 1:
        names = [each.root.name for each in found]
        raise WorkspaceError(
            "the run holds several methods, and nothing says which one is meant",
            got=f"{', '.join(names)} ({path})",
            expected=f"one method, or one whose recipe is {PREFERRED!r}",
            hint=f"--method {names[0]}",
        )
    return preferred[0]


def find_workspaces(path: str | Path, method: str | None = None) -> list[Workspace]:
    """Return the workspaces of all methods of a run, or of the one that is named; nothing is loaded.

    Args:
        path: As for :func:`find_workspace`.
        method: As there; left out: all of them.

    Raises:
        WorkspaceError: There is no run here.
        UnknownNameError: The run has no such method.
    """
    folder = Path(path)
    own = Workspace(folder)
    if own.settings_file.is_file():
        if method is not None and method not in {folder.name, folder.resolve().name}:
            raise UnknownNameError.of("method", method, [folder.resolve().name], where=f"folder {folder}")
        return [own]
    found = {file.parent.name: Workspace(file.parent) for file in sorted(folder.glob("*/settings.json"))}
    if not found:
        begun = (folder / "crma.yaml").is_file()
        raise WorkspaceError(
            "there is no run here",
            got=f"{folder} {'holds no method of a run' if folder.is_dir() else 'does not exist'}",
            expected="the folder that 'crma run' wrote, or the folder of one of its methods",
            hint=f"crma run {folder / 'crma.yaml'}" if begun else "crma run crma.yaml, or --run DIR",
        )
    if method is None:
        return list(found.values())
    if method not in found:
        raise UnknownNameError.of("method", method, found, where=f"run {folder}")
    return [found[method]]


def finished_domains(workspace: Workspace) -> tuple[str, ...]:
    """The domains that are learnt, measured and still there, in the order in which they were learnt.

    Raises:
        WorkspaceError: The ledger is damaged.
    """
    return tuple(name for name in workspace.ledger.standing() if workspace.adapter(name).is_dir())


def _recipe_names(workspace: Workspace) -> list[str]:
    recipe = str(workspace.read_settings().get("method", {}).get("recipe", ""))
    return [part.strip() for part in recipe.split("+")]
