"""Finds and reads the results of a run, with errors that say what is missing."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from constrained_adapters.errors import WorkspaceError
from constrained_adapters.results import RunResult, load_results


def load_run(path: Path) -> tuple[RunResult, Path]:
    """Read the results in a run's folder (or a ``results.json`` itself); return them and the folder.

    Raises:
        WorkspaceError: No results there yet, or they are damaged or of another version.
    """
    file = path if path.suffix == ".json" else path / "results.json"
    try:
        return load_results(file), file.parent
    except FileNotFoundError:
        begun = (file.parent / "crma.yaml").exists()
        raise WorkspaceError(
            "this run has no results yet" if begun else "there is no run here",
            got=f"no {file}",
            expected="the folder that 'crma run' wrote",
            hint=f"crma run {file.parent / 'crma.yaml'}" if begun else None,
        ) from None
    except (ValidationError, UnicodeDecodeError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise WorkspaceError(
            "the results are damaged or of another version",
            got=f"{file}: {first}",
            hint="run the same crma.yaml again: what is finished is kept",
        ) from None
