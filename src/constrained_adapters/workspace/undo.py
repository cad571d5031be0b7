"""Domains taken out of a method's folder again, all or nothing.

What is to go is written down first; whoever locks the folder next completes what was interrupted. So an
undo that was begun is done, and a run after it finds either nothing of it or all of it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from constrained_adapters.errors import WorkspaceError
from constrained_adapters.workspace.atomic import atomic_write_json, disk_errors, sync

if TYPE_CHECKING:
    from constrained_adapters.workspace.folder import Workspace

UNDO_FILE = "undo.json"


@dataclass(frozen=True)
class Undo:
    """What one undo does to a method's folder.

    Args:
        method: The method's name.
        event: As the ledger says it.
        removed: Domains that are no longer learnt.
        paths: Files and folders that go, relative to the method's folder, in this order.
        again: Those of ``removed`` that were not meant: nothing keeps them without the others, so the next
            run learns them again.
        num_bytes: What the paths take.
    """

    method: str
    event: Literal["rollback", "remove"]
    removed: tuple[str, ...]
    paths: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    num_bytes: int = 0


def undo_of(
    workspace: Workspace,
    event: Literal["rollback", "remove"],
    removed: Sequence[str],
    paths: Sequence[Path],
    again: Sequence[str] = (),
) -> Undo:
    """An undo of those of ``paths`` that are there; nothing is changed yet."""
    there = [path for path in paths if path.exists()]
    names = tuple(path.relative_to(workspace.root).as_posix() for path in there)
    method = str(workspace.read_settings().get("method", {}).get("name") or workspace.root.resolve().name)
    return Undo(method, event, tuple(removed), names, tuple(again), sum(map(_num_bytes, there)))


def carry_out(workspace: Workspace, undo: Undo) -> None:
    """Do it; under the lock.

    Raises:
        WorkspaceError: The folder cannot be written.
    """
    entry = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "event": undo.event,
        "removed": list(undo.removed),
        "method": undo.method,
    }
    atomic_write_json(workspace.root / UNDO_FILE, {"entry": entry, "paths": list(undo.paths)})
    complete(workspace)


def interrupted(workspace: Workspace) -> Undo | None:
    """What was begun and not completed, None where nothing was; writes nothing.

    Raises:
        WorkspaceError: Its file is damaged.
    """
    found = _read(workspace)
    if found is None:
        return None
    entry = found["entry"]
    return Undo(entry["method"], entry["event"], tuple(entry["removed"]), tuple(found["paths"]))


def complete(workspace: Workspace) -> None:
    """Bring what was begun to its end, where anything was; under the lock.

    The ledger and the settings come first: from then on no reader knows the domains, whatever is left.

    Raises:
        WorkspaceError: A file of the run is damaged, or the folder cannot be written.
    """
    found = _read(workspace)
    if found is None:
        return
    removed = set(found["entry"]["removed"])
    if found["entry"] not in workspace.ledger.entries():
        workspace.ledger.append(found["entry"])
    stays = _forget_settings(workspace, removed)
    with disk_errors(workspace.root):
        for name in found["paths"]:
            _delete(workspace.root / name)
        for row in workspace.rows():
            _forget_row(workspace, row, removed)
        if not stays:  # last: a folder without settings is no method of a run
            workspace.settings_file.unlink(missing_ok=True)
        (workspace.root / UNDO_FILE).unlink()
        sync(workspace.root)


def _forget_settings(workspace: Workspace, removed: Collection[str]) -> bool:
    """Take domains out of the settings; False, and nothing written, where none would be left."""
    settings = workspace.read_settings()
    if "domains" not in settings:  # no run's: subjects that were learnt one by one
        return bool(settings)
    left = [each for each in settings["domains"] if each["name"] not in removed]
    if left and left != settings["domains"]:
        method = {
            key: {name: each for name, each in value.items() if name not in removed} or None
            if isinstance(value, dict) and key.startswith("domain_")
            else value
            for key, value in settings["method"].items()
        }
        workspace.replace_settings({**settings, "method": method, "domains": left})
    return bool(left)


def _forget_row(workspace: Workspace, row: int, removed: Collection[str]) -> None:
    """Take what was scored of removed domains out of a row: under one name there may be other data later."""
    known = workspace.read_evaluation(row)
    if not any(name in known["scores"] for name in removed):
        return
    tables = {
        key: {name: each for name, each in known[key].items() if name not in removed}
        for key in ("scores", "samples", "items")
        if key in known
    }
    atomic_write_json(workspace.evaluation(row), {**known, **tables})


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if path.parent.is_dir():
        sync(path.parent)


def _num_bytes(path: Path) -> int:
    return sum(each.stat().st_size for each in (path, *path.rglob("*")) if each.is_file())


def _read(workspace: Workspace) -> dict[str, Any] | None:
    file = workspace.root / UNDO_FILE
    try:
        found: dict[str, Any] = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise WorkspaceError(
            "what was to be undone is damaged", got=f"{file}: {error}", hint="remove the file, and undo again"
        ) from None
    return found
