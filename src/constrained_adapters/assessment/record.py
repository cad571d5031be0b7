"""Reads the record of one assessment, as ``crma eval --output`` wrote it. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from constrained_adapters.errors import WorkspaceError
from constrained_adapters.results import Assessment


def load_assessment(path: Path) -> Assessment:
    """Read the JSON of an assessment.

    Raises:
        WorkspaceError: The file is missing, damaged or of another kind or version.
    """
    try:
        return Assessment.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WorkspaceError(
            "there is no assessment here", got=str(path), hint="crma eval --output FILE"
        ) from None
    except (ValidationError, UnicodeDecodeError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise WorkspaceError(
            "the assessment is damaged or of another version", got=f"{path}: {first}", hint="crma eval again"
        ) from None
