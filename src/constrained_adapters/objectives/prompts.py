"""Learning to write a domain's examples: the prompts are learnt too, with a small weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
from torch import Tensor

from constrained_adapters.errors import ConfigError
from constrained_adapters.objectives.base import WEIGHT, Teachers
from constrained_adapters.objectives.rows import LabelledRow


@final
class PromptLearning:
    """L = L_answer + λ · L_all: LAMOL's objective, so that the model can write the domain's examples itself.

    L_answer is the mean over a row's m answer labels, L_all the mean over all its n tokens but the first.
    Every token is scored, with weights that sum to (1 + λ) · m: λ m / n each, and 1 more for an answer's.
    So the losses beside it, which multiply by the weights and are divided by the number of answer labels,
    become this sum. It has no loss of its own.

    Source: Sun et al. 2020 (arXiv 1909.03329), λ = 0.25. Deviations: the answer and the whole row are
    read in one pass, without a token that tells them apart; a row whose answer has no label stays out.

    Args:
        weight: λ, over 0.

    Raises:
        ConfigError: λ is not a positive number.
    """

    def __init__(self, weight: float = 0.25) -> None:
        if not (math.isfinite(weight) and weight > 0.0):
            raise ConfigError(
                "the weight of the prompts is out of range",
                got=f"weight = {weight!r}",
                expected="over 0",
                hint="0.25",
            )
        self.weight = weight

    def prepare(self, rows: Sequence[LabelledRow], teachers: Teachers) -> list[LabelledRow]:
        """Score every token of a row, and weigh it."""
        return [self._widened(row) for row in rows]

    def loss(self, logits: Tensor, targets: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        """Nothing of its own."""
        return logits.new_zeros(())

    def _widened(self, row: LabelledRow) -> LabelledRow:
        assert not row.extras, "columns belong to the scored positions: prompts come before what adds them"
        everything = list(range(1, len(row.input_ids)))
        learnt, share = set(row.scored), self.weight * len(row.scored) / max(len(everything), 1)
        weights = np.asarray([share + (at in learnt) for at in everything], dtype=np.float32)
        widened = LabelledRow(row.input_ids, row.labels, everything if learnt else [])
        return widened.with_columns({WEIGHT: weights[: len(widened.scored)]})
