"""All that is asked of one set: what is scored by reading, and what answers must be written for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from constrained_adapters.data.examples import Example
from constrained_adapters.evaluation.checks import fitting_metrics
from constrained_adapters.evaluation.items import METRICS, with_answers
from constrained_adapters.evaluation.samples import generate_answers
from constrained_adapters.evaluation.scores import score_items
from constrained_adapters.results import ItemScores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WRITTEN = ("token_f1",)
"""Metrics for which answers must be written, many times slower than reading them."""


def score_set(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    metrics: Sequence[str] | None,
    batch_size: int,
    max_length: int,
    max_new_tokens: int,
) -> ItemScores:
    """Score one set, item by item.

    Args:
        model: A causal language model, adapters included.
        tokenizer: Its.
        examples: Of any form.
        metrics: Of :data:`~constrained_adapters.evaluation.items.METRICS`; None: all that fit the set and
            need no answers written.
        batch_size: Most items in one forward pass.
        max_length: Most tokens of an item.
        max_new_tokens: Where a written answer is cut.

    Raises:
        DataError: An example has no token to score.
        TrainingError: A loss is not finite.
    """
    wanted = fitting_metrics(examples, written=False) if metrics is None else metrics
    lengths = {"batch_size": batch_size, "max_length": max_length}
    items = score_items(model, tokenizer, examples, **lengths)
    items = items.model_copy(update={metric: [] for metric in METRICS if metric not in wanted})
    if not set(WRITTEN) & set(wanted):
        return items
    answers = generate_answers(model, tokenizer, examples, max_new_tokens=max_new_tokens, **lengths)
    return with_answers(items, examples, answers)
