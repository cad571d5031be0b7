"""The kinds of answers that there are to the six questions, and the row that a named method is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from constrained_adapters.config.crma import ConstraintType

Trained = Literal[
    "nothing",
    "adapters",
    "weights",
    "biases",
    "freeze_first",
    "freeze_last",
    "last_layers",
    "singular_vectors",
    "houlsby",
    "pfeiffer",
    "parallel",
    "columns",
]
WEIGHTS: frozenset[Trained] = frozenset({"weights", "biases", "freeze_first", "freeze_last", "last_layers"})
"""The base's own weights, all or a part, which are trained on from domain to domain."""

BOTTLENECKS: frozenset[Trained] = frozenset({"houlsby", "pfeiffer", "parallel"})
"""Inserted modules: one set that is trained on, or a set a domain where each is scored alone."""

Bound = Literal[
    "agem",
    "ewc",
    "ewc_lora",
    "freeze_important",
    "gem",
    "ogd",
    "ogd_lora",
    "olora",
    "online_ewc",
    "online_ewc_lora",
]
Rehearsal = Literal["replay", "generated", "general_text", "golden_set", "all"]
ObjectiveName = Literal["distillation", "prompts", "stm"]
Scored = Literal["together", "alone"]
Start = Literal["random", "inputs"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One row: a method's own answers to the six questions of docs/methods.md.

    Args:
        name: As written in ``methods:``.
        summary: One line.
        source: Paper.
        trained: What is trained: nothing; a LoRA adapter a domain; the base's weights or some of them; the
            trailing singular vectors of the adapted layers (PEFT's OSF); bottleneck adapters; a column a
            domain. None: whatever other rows say.
        usual: What is trained where no row says it; None: LoRA adapters.
        scored: Each domain with its own adapter only, or with all that was learnt.
        shared: Whether an adapter that all domains share stands beside each domain's own.
        start: Where a new adapter starts: anywhere, or in the open directions that its domain uses most.
        constraint: What a step may not do, by CRMA's machinery.
        bounds: What a step may not do besides: penalties, and what takes parts of the gradient away.
        rehearsals: Which other data is mixed in: kept examples; those that the model writes itself; text of
            no domain; what the base knows; all of the old data (no sequence at all).
        objectives: What is minimised beside, or taken out of, the cross-entropy.
        strength: Default ``constraint_strength``.
        step: What a step costs beside a plain one of what is trained.
        domain: What the end of a domain costs beside its training.
        kept: What is kept for each finished domain beside what was trained.
    """

    name: str
    summary: str
    source: str
    trained: Trained | None = None
    usual: Trained | None = None
    scored: Scored | None = None
    shared: bool | None = None
    start: Start | None = None
    constraint: ConstraintType | None = None
    bounds: tuple[Bound, ...] = ()
    rehearsals: tuple[Rehearsal, ...] = ()
    objectives: tuple[ObjectiveName, ...] = ()
    strength: float | None = None
    step: str = "none"
    domain: str = "none"
    kept: str = "nothing"

    @property
    def keeps_old_data(self) -> bool:
        """Whether examples of finished domains are kept."""
        return keeps_old_data(self.bounds, self.rehearsals)


def keeps_old_data(bounds: Collection[Bound], rehearsals: Collection[Rehearsal]) -> bool:
    """Whether examples of finished domains are kept for these answers."""
    return bool({"replay", "all"} & {*rehearsals} or {"gem", "agem"} & {*bounds})
