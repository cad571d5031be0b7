"""The protocol of what a training step minimises, and the weighted sum of several.

Axis letters: n scored positions, s tokens of a row, v vocabulary, b rows of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

from torch import Tensor

from constrained_adapters.errors import ConfigError
from constrained_adapters.objectives.rows import LabelledRow

WEIGHT = "weight"
"""The column that every objective multiplies its per-token losses by, where rows carry one."""


@dataclass(frozen=True)
class Teachers:
    """The models that rows are prepared with, each brought into its state by the call that returns it.

    Args:
        before: The model as it stands before the domain is trained.
        untouched: The base as it was before any domain.
    """

    before: Callable[[], Any]
    untouched: Callable[[], Any]


class Objective(Protocol):
    """What one training step minimises, at the positions that are scored.

    An objective keeps no state of a domain: what it needs at a step travels with the rows as columns, so a
    run that was stopped finds the same numbers.
    """

    def prepare(self, rows: Sequence[LabelledRow], teachers: Teachers) -> list[LabelledRow]:
        """Relabel rows or give them columns, once for each domain, before training; they keep their order."""

    def loss(self, logits: Tensor, targets: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        """The SUM over n scored positions, in nats; the trainer divides by the number of labels.

        Args:
            logits: Of the model in training, (n, v), float32.
            targets: The tokens that stand there, (n).
            extras: The rows' columns, each (n, …).
        """


@final
class WeightedSum:
    """Σ_k w_k · L_k over named objectives; rows are prepared by each in the order given.

    Args:
        terms: For each name its weight, 0 or more, and its objective.

    Raises:
        ConfigError: There is no term, or a weight is negative or not finite.
    """

    def __init__(self, terms: Mapping[str, tuple[float, Objective]]) -> None:
        if not terms:
            raise ConfigError("nothing is to be minimised", expected="at least one objective")
        for name, (weight, _) in terms.items():
            if not (math.isfinite(weight) and weight >= 0.0):
                raise ConfigError(
                    f"the weight of the objective {name!r} is out of range",
                    got=repr(weight),
                    expected="0 or more",
                )
        self._terms = dict(terms)

    def prepare(self, rows: Sequence[LabelledRow], teachers: Teachers) -> list[LabelledRow]:
        """By each objective in turn."""
        prepared = list(rows)
        for _, objective in self._terms.values():
            prepared = objective.prepare(prepared, teachers)
        return prepared

    def weighted_terms(
        self, logits: Tensor, targets: Tensor, extras: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """w_k · L_k by name; a term of weight 0 is not computed."""
        return {
            name: weight * objective.loss(logits, targets, extras)
            for name, (weight, objective) in self._terms.items()
            if weight > 0.0
        }

    def loss(self, logits: Tensor, targets: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        """The sum of :meth:`weighted_terms`."""
        parts = self.weighted_terms(logits, targets, extras).values()
        return sum(parts, start=logits.new_zeros(()))
