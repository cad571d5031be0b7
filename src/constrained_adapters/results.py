"""The versioned records of a run and of an assessment: plain data, no torch.

A run's folder holds one ``results.json`` of the type :class:`RunResult`; the report, the
comparison table and the benchmark are made from it alone.

R matrices: ``matrices[metric][i][j]`` is the score on domain j after training domain i;
row 0 is the base before any training, so a run over T domains has T + 1 rows and T columns.
A cell that was not measured is None.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1
ASSESSMENT_VERSION = 1
Group = Literal["old", "new", "mixed", "domain", "general", "given"]
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
    measured_increase_intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Of each measured rise: its 95 % interval over the items that were scored."""
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


class Contradicted(_Record):
    """A question of a domain with two answers that do not agree."""

    question: str
    answer: str
    other_question: str
    other_answer: str
    where: str
    """The domain of the other answer; empty: the same."""


class Denied(_Record):
    """A question on which the base is sure of another answer than the data's."""

    question: str
    answer: str
    belief: str
    confidence: float
    """0 … 1."""


class PairFinding(_Record):
    """One reason for a level of risk; what does not decide is told only."""

    signal: str
    level: str
    decides: bool
    text: str


class PairDiagnosed(_Record):
    """A domain against one before it, or against text of the base (``base``)."""

    old: str
    level: str | None
    """``low``, ``medium``, ``high``; None where nothing that decides is known."""
    signals: dict[str, float]
    """``kl_nats``, ``jaccard``; where the base was asked ``gradient_cosine``, ``old_nats``, ``new_nats`` and
    ``trial_increase``: the rise of the old loss in a short trial, as a share."""
    findings: list[PairFinding]
    num_contradictions: int


class DomainDiagnosed(_Record):
    """What was known of one domain before it was learnt."""

    name: str
    level: str | None
    num_train: int
    num_examples: int
    notes: list[str] = Field(default_factory=list)
    """What was read, dropped and deduplicated, and what is odd about it."""
    pairs: list[PairDiagnosed] = Field(default_factory=list)
    contradictions: list[Contradicted] = Field(default_factory=list)
    """With earlier domains, then within; the first of them, and none in a private run."""
    num_contradictions: int = 0
    num_within: int = 0
    """Of ``num_contradictions`` those within the domain."""
    beliefs: list[Denied] = Field(default_factory=list)
    num_beliefs: int = 0
    num_asked: int = 0
    advice: str = ""
    """A recipe; empty where the base was not asked."""
    reasons: list[str] = Field(default_factory=list)
    seconds: float = 0.0


class DiagnosisRecord(_Record):
    """What was known before training."""

    mode: Literal["off", "data", "full"] = "off"
    """``data``: from the data alone; ``full``: the base was asked too."""
    domains: list[DomainDiagnosed] = Field(default_factory=list)


class RunResult(_Record):
    """All methods of one run, with the settings and the environment they ran in."""

    schema_version: int = SCHEMA_VERSION
    title: str
    created: str
    base: dict[str, Any]
    environment: dict[str, Any]
    settings: dict[str, Any]
    methods: list[MethodResult]
    diagnosis: DiagnosisRecord = Field(default_factory=DiagnosisRecord)
    """What was found before training. Empty in records older than this field."""
    ledger: list[dict[str, Any]] = Field(default_factory=list)


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
    schema_version: int = ASSESSMENT_VERSION
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
    """R, as in :class:`MethodResult`, and ``perplexity``."""
    general_nats: list[float | None] = Field(default_factory=list)
    summary: dict[str, float] = Field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    items: dict[str, dict[str, ItemScores]] = Field(default_factory=dict)
    """By model and set."""
    tasks: list[TaskScore] = Field(default_factory=list)
    seconds: float = 0.0
    notes: list[str] = Field(default_factory=list)


def load_results(path: Path) -> RunResult:
    """Read a ``results.json``.

    Raises:
        pydantic.ValidationError: The file is not of this schema.
    """
    return RunResult.model_validate_json(path.read_text(encoding="utf-8"))
