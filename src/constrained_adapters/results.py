"""The versioned record of a run: plain data, no torch.

A run's folder holds one ``results.json`` of the type :class:`RunResult`; the report, the
comparison table and the benchmark are made from it alone.

R matrices: ``matrices[metric][i][j]`` is the score on domain j after training domain i;
row 0 is the base before any training, so a run over T domains has T + 1 rows and T columns.
A cell that was not measured is None.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1
Matrix = list[list[float | None]]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Curve(_Record):
    """One quantity over optimizer steps: ``steps[k]`` belongs to ``values[k]``."""

    steps: list[int] = Field(default_factory=list)
    values: list[float] = Field(default_factory=list)


class Sample(_Record):
    """One test prompt, its reference, and what the model wrote at three moments."""

    domain: str
    prompt: str
    reference: str
    base: str
    learned: str
    final: str


class ItemScores(_Record):
    """Scores of one set's items, a value per item in each list; what an item does not have is None.

    Two models can be compared on them pair by pair wherever the ``keys`` are the same.
    """

    keys: list[str] = Field(default_factory=list)
    """What tells the items apart: the beginning of a SHA-256 of each item's content."""
    loss: list[float | None] = Field(default_factory=list)
    """Nats per answer token."""
    num_tokens: list[int] = Field(default_factory=list)
    """How many tokens that is."""
    exact_match: list[float | None] = Field(default_factory=list)
    choice_accuracy: list[float | None] = Field(default_factory=list)
    token_f1: list[float | None] = Field(default_factory=list)
    """0 … 1, where answers were written."""
    superseded: list[bool] = Field(default_factory=list)
    """Whether a later domain replaces the fact: scored apart, as intended forgetting."""


class DomainRecord(_Record):
    """What happened while one domain was trained."""

    name: str
    num_train: int
    num_validation: int
    num_test: int
    """How many items were scored; the chance margins of the report rest on it."""
    data_fingerprint: str
    train_seconds: float
    memory_seconds: float
    eval_seconds: float
    adapter_bytes: int
    memory_bytes: int
    curves: dict[str, Curve] = Field(default_factory=dict)
    """``loss``, ``learning_rate``, ``grad_norm``; constrained methods add ``removed_ratio``
    (share of the gradient's norm removed, 0 … 1) and ``conflict`` (cosine, −1 … 1)."""
    constraint: dict[str, float] = Field(default_factory=dict)
    """Totals of the constraint over the domain, such as ``closed_ratio`` and ``removed_ratio``."""
    predicted_increase_nats: dict[str, float] = Field(default_factory=dict)
    """Per finished domain: the loss increase that the memories predict for this domain's update."""
    measured_increase_nats: dict[str, float] = Field(default_factory=dict)
    """Per finished domain, and ``base`` for general text: the rise of its mean loss over this domain's
    training, from the test items (nats per token). Empty in records older than this field."""
    importance: dict[str, float] = Field(default_factory=dict)
    """Per adapted module: how much the domain's loss depends on its weights, as its memory measured it
    (trace of the Fisher's K-FAC estimate per weight). Empty where there is no memory."""
    weight_change: dict[str, float] = Field(default_factory=dict)
    """Per adapted module: Frobenius norm of what the domain's adapter adds to its weights."""
    events: list[dict[str, Any]] = Field(default_factory=list)
    """What guards did in training: each with ``step``, ``guard``, ``action``, ``reason`` and figures."""
    guard: dict[str, float] = Field(default_factory=dict)
    """Of the forgetting guard: ``learnt_nats``, the loss on the rows that later guards watch, and
    ``time_ratio``, the share of the training's time that its checks took; empty without one."""


class MethodResult(_Record):
    """One method taught the whole sequence of domains."""

    name: str
    recipe: str
    settings: dict[str, Any]
    domains: list[str]
    matrices: dict[str, Matrix]
    """Keys: ``loss`` (nats per answer token), ``exact_match``, ``choice_accuracy`` and ``token_f1`` (0 … 1);
    and, where data marks superseded facts, ``superseded_loss`` … of these, which the others leave out."""
    general_nats: list[float | None]
    """Mean loss on general text after 0, 1 … T domains (nats per token)."""
    summary: dict[str, float]
    """``accuracy``, ``backward_transfer``, ``forward_transfer``, ``forgetting`` (of
    ``exact_match``), ``choice_accuracy``, ``drift_percent``, ``learned`` (mean of R[j, j]),
    ``general_perplexity_base``, ``general_perplexity``, ``train_seconds``, ``memory_seconds``,
    ``eval_seconds``, ``step_seconds`` (median), ``bytes_per_domain``, ``peak_memory_bytes``,
    ``keeps_old_data`` (0 or 1); and where the run has what they compare with, ``plasticity_percent``
    (of plain LoRA's) and ``intransigence`` (against joint training)."""
    records: list[DomainRecord]
    samples: list[Sample] = Field(default_factory=list)
    items: dict[str, ItemScores] = Field(default_factory=dict)
    """Per domain the items' scores after the last domain. Empty in records older than this field."""
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Bootstrap intervals (95 %) of entries of ``summary``, over the test items."""


class RunResult(_Record):
    """All methods of one run, with the settings and the environment they ran in."""

    schema_version: int = SCHEMA_VERSION
    title: str
    created: str
    base: dict[str, Any]
    environment: dict[str, Any]
    settings: dict[str, Any]
    methods: list[MethodResult]
    diagnosis: dict[str, Any] = Field(default_factory=dict)
    """What was found before training, where it was asked for."""
    ledger: list[dict[str, Any]] = Field(default_factory=list)


def load_results(path: Path) -> RunResult:
    """Read a ``results.json``.

    Raises:
        pydantic.ValidationError: The file is not of this schema.
    """
    return RunResult.model_validate_json(path.read_text(encoding="utf-8"))
