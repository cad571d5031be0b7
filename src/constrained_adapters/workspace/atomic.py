"""Files and folders that are replaced as a whole or not at all.

The new content is written beside its target, synced, and renamed over it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from constrained_adapters.errors import WorkspaceError

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<token>[0-9a-f]{8})\.(?P<kind>new|old)")
_FULL = {errno.ENOSPC, errno.EDQUOT}
_ONE_WRITE_BYTES = 1 << 28
"""A checkpoint that torch could not write took less than this much."""
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Replace a file by new content, all or nothing.

    Raises:
        WorkspaceError: No space left, or the folder cannot be written.
    """
    new = _beside(path, "new")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with new.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        sync(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """Replace a file by new UTF-8 text, all or nothing; raises as :func:`atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: Path, value: Any) -> None:
    """Replace a file by a value as JSON, all or nothing; raises as :func:`atomic_write_bytes`.

    Raises:
        ValueError: The value holds NaN or infinity, which JSON has no word for.
    """
    atomic_write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Give an empty folder to fill; at the end it replaces ``target``, all or nothing.

    Where the block raises, the target stays as it was. A killed process leaves hidden folders that
    :func:`recover` completes or removes.

    Raises:
        WorkspaceError: No space left, or the folder cannot be written.
    """
    new, old = _beside(target, "new"), None
    with disk_errors(target):
        new.mkdir(parents=True)
        try:
            yield new
            for folder, _, names in os.walk(new):
                for name in names:
                    sync(Path(folder, name))
                sync(Path(folder))
            if target.exists():
                # Only renames from here on: an 'old' beside a 'new' says that the new one is whole.
                old = new.with_suffix(".old")
                target.replace(old)
                sync(target.parent)
            new.replace(target)
            sync(target.parent)
        except BaseException:
            if old is not None and old.exists() and not target.exists():
                old.replace(target)
            shutil.rmtree(new, ignore_errors=True)
            raise
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Complete or remove what interrupted writes left directly in a folder.

    Only for the process that holds the workspace's lock: another's write in progress looks alike.
    """
    leftovers = [(entry, found) for entry in folder.glob(".*") if (found := _LEFTOVER.fullmatch(entry.name))]
    for entry, found in leftovers:
        target = folder / found["name"]
        if found["kind"] == "old" and not target.exists():
            new = entry.with_suffix(".new")
            (new if new.exists() else entry).replace(target)
            sync(folder)
    for entry, _ in leftovers:
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{kind}")


def sync(path: Path) -> None:
    """Force a file or a folder's entries to the disk."""
    if os.name == "nt":
        return  # Windows syncs only handles that may write, and journals renames itself
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into a :class:`WorkspaceError`; other errors pass.

    Raises:
        WorkspaceError: No space left, or ``path`` cannot be written.
    """
    try:
        yield
    except WorkspaceError:
        raise
    except Exception as error:
        if _is_full(error, path):
            full = no_space_error(path)
            raise full from error
        if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
            raise WorkspaceError(
                "the run's folder cannot be written",
                got=f"{path}: {error.strerror}",
                hint="choose another folder with --output",
            ) from error
        raise


def _is_full(error: Exception, path: Path) -> bool:
    """Whether the disk is full: safetensors has the system's words for it, torch only its own position."""
    if getattr(error, "errno", None) in _FULL or "No space left" in str(error):
        return True
    return "inline_container.cc" in str(error) and shutil.disk_usage(_existing(path)).free < _ONE_WRITE_BYTES


def _existing(path: Path) -> Path:
    return next((p for p in (path, *path.parents) if p.is_dir()), Path())


def no_space_error(path: Path) -> WorkspaceError:
    """The error for a full disk, with what is free where ``path`` lies."""
    return WorkspaceError(
        "no space left on the disk",
        got=f"{shutil.disk_usage(_existing(path)).free / 1e6:.1f} MB free at {path}",
        hint="free some space and run the same command again: it goes on where it stopped",
    )
