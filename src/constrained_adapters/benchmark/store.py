"""A benchmark's folder: one JSON for each finished cell, the list of failures, the choice of settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from constrained_adapters.benchmark.cells import Cell
from constrained_adapters.benchmark.plan import Setting
from constrained_adapters.config.run import RunConfig
from constrained_adapters.errors import WorkspaceError
from constrained_adapters.results import MethodResult, RunResult
from constrained_adapters.workspace import (
    Workspace,
    atomic_write_json,
    atomic_write_text,
    changed_settings,
    recover,
)

SCHEMA_VERSION = 1


class CellResult(BaseModel):
    """What is kept of a finished cell: enough for every table and figure, without curves and texts."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    phase: str
    method: str
    order: int
    seed: int
    setting: Setting
    created: str
    base: dict[str, Any]
    environment: dict[str, Any]
    config: RunConfig
    """The run, with paths as the plan has them; written without ``output`` and ``title``."""
    result: MethodResult
    """Matrices, summary and the records of the domains."""

    @classmethod
    def of(cls, cell: Cell, run: RunResult) -> CellResult:
        """Keep what matters of the run of a cell."""
        method = run.methods[0]
        # A base in a folder is named as the plan names it, not by where the plan lies on this machine.
        name = cell.config.base.model if Path(str(run.base.get("model"))).is_absolute() else None
        records = [record.model_copy(update={"curves": {}}) for record in method.records]
        return cls(
            phase=cell.phase,
            method=cell.method,
            order=cell.order,
            seed=cell.seed,
            setting=cell.setting,
            created=run.created,
            base={**run.base, "model": name} if name else run.base,
            environment=run.environment,
            config=cell.config,
            result=method.model_copy(update={"records": records, "samples": []}),
        )


class Store:
    """Paths, reading and writing. Nothing is written before :meth:`lock`.

    Args:
        home: The benchmark's folder.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.cells = home / "cells"
        self.work = home / "work"
        self.tables = home / "tables"
        self.chosen_file = home / "chosen.json"
        self.failures_file = home / "failures.json"

    def file(self, cell: Cell) -> Path:
        """Where the result of a cell stands, or will stand."""
        return self.cells / f"{cell.key}.json"

    def is_done(self, cell: Cell) -> bool:
        """Whether a cell's result stands."""
        return self.file(cell).is_file()

    def read(self, cell: Cell) -> CellResult:
        """The result of a finished cell.

        Raises:
            WorkspaceError: The file is damaged, of another version, or gone.
        """
        file = self.file(cell)
        try:
            return CellResult.model_validate(json.loads(file.read_bytes()))
        except (OSError, ValueError) as error:  # pydantic's is one, too
            first = error.errors()[0] if isinstance(error, ValidationError) else None
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
            raise WorkspaceError(
                "the result of a cell is damaged or of another version",
                got=f"{file}: {reason}",
                hint="remove the file, and the cell is run again",
            ) from None

    def write(self, cell: Cell, run: RunResult) -> CellResult:
        """Keep the result of a cell; its failure, if it had failed before, is forgotten."""
        result = CellResult.of(cell, run)
        without = {"config": {"output", "title"}}
        atomic_write_text(self.file(cell), result.model_dump_json(indent=1, exclude=without) + "\n")
        self.write_failures({key: why for key, why in self.failures().items() if key != cell.key})
        return result

    def refuse_changed(self, cells: Iterable[Cell]) -> None:
        """Refuse to go on where finished cells were made with other settings than the plan has now.

        Raises:
            WorkspaceError: Settings differ; the message names them.
        """
        changed: dict[str, list[Path]] = {}
        for cell in cells:
            if self.is_done(cell):
                before, now = (c.model_dump(mode="json") for c in (self.read(cell).config, cell.config))
                for change in changed_settings(before, now):
                    changed.setdefault(change, []).append(self.file(cell))
        if changed:
            shown = [f"{change} ({_some(files)})" for change, files in list(changed.items())[:4]]
            raise WorkspaceError(
                "the plan changed since these cells were finished",
                got="; ".join(shown) + (f" and {len(changed) - 4} more" if len(changed) > 4 else ""),
                expected="the settings that the cells were made with",
                hint="set them back; or another 'output' (keeps both); or remove these files",
            )

    def failures(self) -> dict[str, dict[str, str]]:
        """What failed and why, by the cell's key."""
        return read_json(self.failures_file) or {}

    def write_failures(self, failures: dict[str, dict[str, str]]) -> None:
        """Replace the list of failures; there is no file where nothing failed."""
        if failures:
            atomic_write_json(self.failures_file, failures)
        else:
            self.failures_file.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out, and clear up what an interrupted one left half written.

        Raises:
            WorkspaceError: Another process, which is named, runs this benchmark.
        """
        with Workspace(self.work).lock():
            atomic_write_text(self.work / ".gitignore", "*\n")  # adapters and checkpoints, never committed
            for folder in (self.home, self.tables, *self.cells.glob("*/*/")):
                recover(folder)
            yield


def read_json(file: Path) -> dict[str, Any] | None:
    """An object from a JSON file; None where there is no file.

    Raises:
        WorkspaceError: The file is damaged.
    """
    try:
        value: dict[str, Any] = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise WorkspaceError(
            "a file of the benchmark is damaged", got=f"{file}: {error}", hint="remove it"
        ) from None
    return value


def _some(files: list[Path]) -> str:
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"{'/'.join(files[0].parts[-3:])}{more}"
