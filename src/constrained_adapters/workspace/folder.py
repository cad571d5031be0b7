"""The folder of one method: its paths, its lock, and the checks that a run goes on as it began."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from constrained_adapters.config.names import check_domain_name
from constrained_adapters.errors import WorkspaceError
from constrained_adapters.workspace.atomic import atomic_write_json, disk_errors, recover
from constrained_adapters.workspace.ledger import Ledger
from constrained_adapters.workspace.undo import UNDO_FILE, complete

SCHEMA_VERSION = 1


class Workspace:
    """Paths and checks of one method's folder. Nothing is written before :meth:`lock`.

    Args:
        root: The folder; made when it is first locked.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.memory = self.root / "memory"
        self.evaluations = self.root / "evaluations"
        self.base_file = self.root / "base.json"
        self.settings_file = self.root / "settings.json"
        self.ledger = Ledger(self.root / "ledger.jsonl")
        self._holder_file = self.root / ".holder.json"

    def adapter(self, domain: str) -> Path:
        """Folder of a domain's adapter."""
        return self.root / "adapters" / check_domain_name(domain)

    def checkpoints(self, domain: str) -> Path:
        """Folder of the checkpoints of a domain in training."""
        return self.root / "checkpoints" / check_domain_name(domain)

    def trackers(self, domain: str) -> Path:
        """Folder of the files that TensorBoard reads of a domain's training."""
        return self.root / "trackers" / check_domain_name(domain)

    def evaluation(self, row: int) -> Path:
        """File of the scores after ``row`` domains (0: the base)."""
        return self.evaluations / f"{row}.json"

    def rows(self) -> list[int]:
        """Rows of R that are measured, ascending."""
        return sorted(int(p.stem) for p in self.evaluations.glob("*.json") if p.stem.isdecimal())

    def write_evaluation(self, row: int, scores: Mapping[str, Mapping[str, float]], **more: Any) -> None:
        """Keep the scores after ``row`` domains (domain → metric → value) and what else belongs to them."""
        atomic_write_json(self.evaluation(row), {"scores": {d: dict(s) for d, s in scores.items()}, **more})

    def read_evaluation(self, row: int) -> dict[str, Any]:
        """Return what :meth:`write_evaluation` kept.

        Raises:
            WorkspaceError: There is no such row, or its file is damaged.
        """
        value = self._read(self.evaluation(row))
        if value is None:
            raise WorkspaceError(f"row {row} is not measured yet", got=str(self.evaluation(row)))
        return value

    @contextmanager
    def lock(self) -> Iterator[Workspace]:
        """Keep other processes from writing here, and clear up or complete what an interrupted one left.

        The operating system frees the lock of a process that dies, however it dies.

        Raises:
            WorkspaceError: Another process, which is named, holds the lock; or the folder cannot be written.
        """
        with disk_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / ".lock", timeout=0.5)
            try:
                lock.acquire()
            except Timeout:
                raise WorkspaceError(
                    "another process is writing this run",
                    got=f"process {self._holder() or 'unknown'} holds {self.root}",
                    hint="wait for it, or stop it and run again; or choose another folder with --output",
                ) from None
        try:
            atomic_write_json(self._holder_file, {"pid": os.getpid()})
            for folder in (self.root, *self._folders(), *(self.root / "checkpoints").glob("*/")):
                recover(folder)
            complete(self)
            yield self
        finally:
            self._holder_file.unlink(missing_ok=True)
            lock.release()

    def running_pid(self) -> int | None:
        """Process that holds the lock now, or None; writes nothing."""
        pid = self._holder()
        if pid is None:
            return None
        try:
            with FileLock(self.root / ".lock", blocking=False):
                return None  # its process died without removing the file
        except Timeout:
            return pid
        except OSError:  # a folder that may only be read
            return None

    def _holder(self) -> int | None:
        try:
            return int(json.loads(self._holder_file.read_text(encoding="utf-8"))["pid"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remember_base(self, fingerprint: str, description: Mapping[str, Any]) -> None:
        """Write down which base this workspace belongs to, or check that it is still the same.

        Raises:
            WorkspaceError: The workspace was begun on a base with another fingerprint.
        """
        known = self._read(self.base_file)
        if known is None:
            atomic_write_json(self.base_file, {"fingerprint": fingerprint, "description": dict(description)})
        elif known["fingerprint"] != fingerprint:
            raise WorkspaceError(
                "the base model is not the one that this run began with",
                got=f"fingerprint {fingerprint} ({_model_name(description)})",
                expected=f"fingerprint {known['fingerprint']} ({_model_name(known['description'])})",
                hint=f"give back the first base, or begin anew with --fresh ({self.root})",
            )

    def remember_settings(self, settings: Mapping[str, Any], *, growing: tuple[str, ...] = ()) -> None:
        """Write down the settings of this run, or check that they are still the same.

        Args:
            settings: What the result depends on, as JSON can hold it.
            growing: Keys of lists that may have got longer, such as domains that were added at the end.

        Raises:
            WorkspaceError: A setting changed since the run began; the message names old and new value.
        """
        now = json.loads(json.dumps(settings))
        if self.check_settings(now, growing=growing) != now:
            self.replace_settings(now)

    def replace_settings(self, settings: Mapping[str, Any]) -> None:
        """Write settings over those that are known, unchecked."""
        atomic_write_json(self.settings_file, {"schema_version": SCHEMA_VERSION, "settings": dict(settings)})

    def check_settings(
        self, settings: Mapping[str, Any], *, growing: tuple[str, ...] = ()
    ) -> dict[str, Any] | None:
        """Return the settings that this run began with, None where it has not; writes nothing.

        Args:
            settings: As for :meth:`remember_settings`.
            growing: As there.

        Raises:
            WorkspaceError: As there.
        """
        now = json.loads(json.dumps(settings))
        known = self._read(self.settings_file)
        if known is not None:
            if known.get("schema_version", 0) > SCHEMA_VERSION:
                raise WorkspaceError(
                    "the run was begun by a newer version of constrained-adapters",
                    got=f"schema {known['schema_version']} ({self.settings_file})",
                    expected=f"schema {SCHEMA_VERSION} or older",
                    hint="upgrade constrained-adapters",
                )
            before = known.get("settings", {})
            shortened = {key: now[key][: len(before[key])] for key in growing if key in before and key in now}
            changes = changed_settings(before, {**now, **shortened})
            if changes:
                more = f" and {len(changes) - 4} more" if len(changes) > 4 else ""
                raise WorkspaceError(
                    "settings changed since this run began",
                    got=f"{'; '.join(changes[:4])}{more} ({self.root})",
                    expected="the settings that the run began with",
                    hint="set them back to go on; or --fresh (loses the old run); or --output (keeps both)",
                )
        return None if known is None else dict(known.get("settings", {}))

    def read_settings(self) -> dict[str, Any]:
        """Return what :meth:`remember_settings` kept; empty where nothing was.

        Raises:
            WorkspaceError: The file is damaged.
        """
        return dict((self._read(self.settings_file) or {}).get("settings", {}))

    def read_base(self) -> tuple[str, dict[str, Any]]:
        """Return what :meth:`remember_base` kept: the base's fingerprint and its description.

        Raises:
            WorkspaceError: There is nothing, or the file is damaged.
        """
        known = self._read(self.base_file)
        if known is None:
            raise WorkspaceError("it is not known which base this run is on", got=f"no {self.base_file}")
        return str(known["fingerprint"]), dict(known["description"])

    def clear(self) -> None:
        """Remove what a run wrote here, and nothing else; for ``--fresh``, under the lock."""
        for folder in (*self._folders(), self.root / "trackers"):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.ledger.path, self.base_file, self.settings_file, self.root / UNDO_FILE):
            file.unlink(missing_ok=True)

    def _folders(self) -> tuple[Path, ...]:
        return self.root / "adapters", self.root / "checkpoints", self.memory, self.evaluations

    def _read(self, file: Path) -> dict[str, Any] | None:
        try:
            value = json.loads(file.read_bytes())
        except (FileNotFoundError, NotADirectoryError):  # the latter: whoever writes there says so
            return None
        except ValueError as error:
            raise WorkspaceError(
                "a file of the run is damaged", got=f"{file}: {error}", hint="begin anew with --fresh"
            ) from None
        return value if isinstance(value, dict) else {}


def _model_name(description: Mapping[str, Any]) -> str:
    return str(description.get("model") or description.get("name") or "no name")


def changed_settings(before: Any, now: Any, path: str = "") -> list[str]:
    """Each difference of two JSON values, such as ``training.steps: 30 → 40``."""
    if before == now:
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*before, *now]))
        pairs = [(f"{path}.{key}" if path else str(key), before.get(key), now.get(key)) for key in keys]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(f"{path}[{i}]", *pair) for i, pair in enumerate(zip(before, now, strict=True))]
    else:
        return [f"{path}: {_short(before)} → {_short(now)}"]
    return [change for name, old, new in pairs for change in changed_settings(old, new, name)]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
