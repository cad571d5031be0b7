"""Selective token masking: tokens that surprise the untouched model are not learnt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import final

from torch import Tensor

from constrained_adapters.data.tokens import IGNORED
from constrained_adapters.errors import ConfigError
from constrained_adapters.evaluation.likelihood import score_groups
from constrained_adapters.models.token_tree import TokenSequence
from constrained_adapters.objectives.base import Teachers
from constrained_adapters.objectives.rows import LabelledRow

ROWS_AT_ONCE = 16


@final
class SelectiveTokenMasking:
    """Drop the labels whose perplexity under the untouched base, exp(−log p(y)), exceeds a threshold.

    It has no loss of its own: it takes tokens out of what the objectives beside it see. Tokens that the
    base finds unlikely pull the weights furthest; without them less is forgotten and, in its paper, no
    accuracy is lost. A row that loses all its labels stays in its place and adds nothing.

    Source: Wu et al. 2025 (arXiv 2501.14315), threshold 2.5. Deviation: none in the rule; the
    loss is divided by the number of labels that are left.

    Cost: one forward pass over the rows, once for each domain; equal beginnings are read once.

    Args:
        threshold: Highest perplexity that is learnt; over 1, which is that of certainty.

    Raises:
        ConfigError: The threshold is 1 or less.
    """

    def __init__(self, threshold: float = 2.5) -> None:
        if not (math.isfinite(threshold) and threshold > 1.0):
            raise ConfigError(
                "no token can have a perplexity under 1",
                got=f"threshold = {threshold!r}",
                expected="over 1",
                hint="2.5, at which its paper drops about a fifth of the tokens",
            )
        self.threshold = threshold

    def prepare(self, rows: Sequence[LabelledRow], teachers: Teachers) -> list[LabelledRow]:
        """Take out the labels over the threshold."""
        groups = [[TokenSequence(row.input_ids, row.scored)] for row in rows]
        scores = score_groups(teachers.untouched(), groups, max_groups=ROWS_AT_ONCE)
        return [self._masked(row, own.nats) for row, (own,) in zip(rows, scores, strict=True)]

    def loss(self, logits: Tensor, targets: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        """Nothing of its own."""
        return logits.new_zeros(())

    def _masked(self, row: LabelledRow, nats: Sequence[float]) -> LabelledRow:
        keep = [each <= math.log(self.threshold) for each in nats]
        if not any(kept and row.labels[at] != IGNORED for at, kept in zip(row.scored, keep, strict=True)):
            keep = [False] * len(keep)  # of a prompt alone: losses are divided by the number of labels
        return row.keeping(keep)
