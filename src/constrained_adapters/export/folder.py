"""A folder that is written as a whole or not at all, and never over something else."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from constrained_adapters.errors import DataError, WorkspaceError
from constrained_adapters.workspace import atomic_directory, atomic_write_json, no_space_error
from constrained_adapters.workspace.atomic import disk_errors, sync

RECORD_FILE = "crma_export.json"
"""What an export was made from, and the figures of its check."""
SCHEMA_VERSION = 1


@contextmanager
def new_export(target: Path, *, force: bool) -> Iterator[Path]:
    """Give an empty folder to fill; it takes the place of ``target`` once it is whole and on the disk.

    Raises:
        WorkspaceError: Something lies there already, or the disk is full or cannot be written.
    """
    refuse_existing(target, force=force)
    with atomic_directory(target) as folder:
        yield folder
        mask = os.umask(0)
        os.umask(mask)
        for path in folder.rglob("*"):  # safetensors leaves files that only their owner may read
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


@contextmanager
def new_file(target: Path, *, force: bool) -> Iterator[Path]:
    """Give a path to write a file to; it takes the place of ``target`` once it is whole and on the disk.

    Raises:
        WorkspaceError: Something lies there already, or the disk is full or cannot be written.
    """
    refuse_existing_file(target, force=force)
    new = target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield new
            sync(new)
            new.replace(target)
            sync(target.parent)
        except BaseException:
            new.unlink(missing_ok=True)
            raise


def refuse_existing_file(target: Path, *, force: bool) -> None:
    """Refuse to replace a file unasked, and a folder ever.

    Raises:
        WorkspaceError: Something lies at ``target``.
    """
    if target.exists() and not (force and target.is_file()):
        raise WorkspaceError(
            "there is something at the place of the export already",
            got=str(target),
            expected="a new place",
            hint="another --output, or --force to replace it",
        )


def refuse_existing(target: Path, *, force: bool) -> None:
    """Refuse to replace anything unasked, and whatever is no export even when asked.

    Raises:
        WorkspaceError: Something lies at ``target``.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not force:
        raise WorkspaceError(
            "there is something at the place of the export already",
            got=str(target),
            expected="a new place",
            hint="another --output, or --force to replace it",
        )
    if not (target / RECORD_FILE).is_file():
        raise WorkspaceError(
            "what lies at the place of the export was not written by 'crma export'",
            got=f"{target} has no {RECORD_FILE}",
            expected="an earlier export, which --force replaces",
            hint="another --output, or remove it yourself",
        )


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write down what the export is."""
    atomic_write_json(folder / RECORD_FILE, {"schema_version": SCHEMA_VERSION, **record})


def read_record(folder: Path) -> dict[str, Any]:
    """What :func:`write_record` wrote; empty for a folder of another origin.

    Raises:
        DataError: It is damaged.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError("a file of the export is damaged", got=f"{path}: {error}", expected="JSON") from None
    return value if isinstance(value, dict) else {}


def require_room(folder: Path, num_bytes: int) -> None:
    """Look for space before a long write: numpy does not say of a short one that the disk is full.

    Raises:
        WorkspaceError: There is less.
    """
    if shutil.disk_usage(folder).free < num_bytes:
        raise no_space_error(folder)


def size_bytes(folder: Path) -> int:
    """Size on disk of what the folder holds."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
