"""Losses of rows of tokens, by the labels that they carry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from constrained_adapters.data.tokens import IGNORED, Tokens
from constrained_adapters.errors import TrainingError
from constrained_adapters.evaluation.likelihood import score_groups
from constrained_adapters.models.token_tree import TokenSequence


def row_losses(model: Any, rows: Sequence[Tokens], *, max_groups: int = 16) -> list[float]:
    """Mean nats per label of each row, 0 without labels; one pass over the rows, with dropout off."""
    groups = [
        [TokenSequence(row.input_ids, [i for i, label in enumerate(row.labels) if i > 0 and label >= 0])]
        for row in rows
    ]
    scores = score_groups(model, groups, max_groups=max_groups)
    return [sum(own.nats) / max(len(own.nats), 1) for (own,) in scores]


def num_labels(row: Tokens) -> int:
    """How many of a row's tokens carry loss; the first has nothing before it and does not."""
    return sum(label != IGNORED for label in row.labels[1:])


def mean_row_nats(model: Any, rows: Sequence[Tokens]) -> float:
    """Mean loss over all labels of the rows, nats per label; one pass, with dropout off.

    Raises:
        TrainingError: It is not finite; the message names the first such row.
    """
    losses = row_losses(model, rows)
    broken = next((number for number, loss in enumerate(losses, 1) if not math.isfinite(loss)), None)
    if broken is not None:
        raise TrainingError(
            "the loss of the model is not finite",
            got=f"{losses[broken - 1]} nats on row {broken} of {len(rows)}",
            hint="lower the learning rate, load the base in float32 or bfloat16, or look for broken examples",
        )
    counts = list(map(num_labels, rows))
    return math.fsum(loss * count for loss, count in zip(losses, counts, strict=True)) / max(sum(counts), 1)
