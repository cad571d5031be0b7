"""The record of one assessment: plain data, written as JSON, read by ``crma compare``. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from constrained_adapters.errors import WorkspaceError
from constrained_adapters.results import ItemScores, Matrix

SCHEMA_VERSION = 1
Group = Literal["old", "new", "mixed", "domain", "general", "given"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Estimate(_Record):
    """A mean over the items of a set, with its 95 % bootstrap interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


class SetScores(_Record):
    """What each model scores on one set.

    ``group`` is ``old`` (finished domains), ``new`` (the last), ``mixed`` (both together), ``domain``,
    ``general`` (text of no domain) or ``given`` (a file of the user's).
    """

    name: str
    group: Group
    parts: list[str]
    """The sets whose items it joins; itself where it is no more than one."""
    num_items: int
    scores: dict[str, dict[str, Estimate]]
    """By model and metric; ``superseded_`` metrics are of facts that are meant to be forgotten."""


class TaskScore(_Record):
    """One metric of one task of lm-evaluation-harness, by model."""

    task: str
    metric: str
    num_items: int
    scores: dict[str, Estimate]
    """``low`` and ``high``: 1.96 of the harness's standard errors on each side."""


class Assessment(_Record):
    """A base and what was made of it, scored on sets."""

    kind: Literal["assessment"] = "assessment"
    schema_version: int = SCHEMA_VERSION
    title: str
    created: str
    base: dict[str, Any]
    environment: dict[str, Any]
    settings: dict[str, Any]
    models: list[str]
    """``base``, then what was made of it."""
    sets: list[SetScores]
    domains: list[str] = Field(default_factory=list)
    """Of a run, in order; empty where there is no sequence."""
    matrices: dict[str, Matrix] = Field(default_factory=dict)
    """R, as in :class:`~constrained_adapters.results.MethodResult`, and ``perplexity``."""
    general_nats: list[float | None] = Field(default_factory=list)
    summary: dict[str, float] = Field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    items: dict[str, dict[str, ItemScores]] = Field(default_factory=dict)
    """By model and set."""
    tasks: list[TaskScore] = Field(default_factory=list)
    seconds: float = 0.0
    notes: list[str] = Field(default_factory=list)


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
