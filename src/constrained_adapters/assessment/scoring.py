"""Scores sets in several states of one model, each state once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from constrained_adapters.assessment.sets import EvaluationSet
from constrained_adapters.evaluation.checks import DERIVED
from constrained_adapters.evaluation.intervals import mean_interval
from constrained_adapters.evaluation.items import METRICS, SUPERSEDED, mean_scores
from constrained_adapters.evaluation.matrix import perplexity
from constrained_adapters.evaluation.scored_set import score_set
from constrained_adapters.results import Estimate, ItemScores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Scoring:
    """How sets are scored.

    Args:
        metrics: Asked for; None: all that fit a set and need no answers written.
        batch_size: Most items in one forward pass.
        max_length: Most tokens of an item.
        max_new_tokens: Where a written answer is cut.
    """

    metrics: tuple[str, ...] | None = None
    batch_size: int = 16
    max_length: int = 1024
    max_new_tokens: int = 64

    def wanted(self) -> list[str] | None:
        """The metrics of a set, those derived from others left out; None: all that fit it."""
        if self.metrics is None:
            return None
        asked = {DERIVED.get(metric, metric) for metric in self.metrics}
        return [metric for metric in METRICS if metric in asked]


@dataclass
class Scorer:
    """Scores of one model by state, where a state is what is active; none is taken twice.

    Args:
        model: A causal language model, adapters included.
        tokenizer: Its.
        activate: Takes a state.
        scoring: How.
        tell: Told what is done.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    activate: Callable[[Mapping[str, float]], None]
    scoring: Scoring
    tell: Callable[[str], None]
    _known: dict[tuple[frozenset[tuple[str, float]], str], ItemScores] = field(default_factory=dict)

    def items(self, state: Mapping[str, float], each: EvaluationSet) -> ItemScores:
        """Score one set in one state: adapters by name with their weights, none for the base.

        Raises:
            DataError: An example has no token to score.
            TrainingError: A loss is not finite.
        """
        key = frozenset(state.items()), each.name
        if key not in self._known:
            self.tell(f"{each.name} with {', '.join(state) or 'the base alone'}")
            self.activate(state)
            self._known[key] = score_set(
                self.model,
                self.tokenizer,
                each.examples,
                metrics=self.scoring.wanted(),
                batch_size=self.scoring.batch_size,
                max_length=self.scoring.max_length,
                max_new_tokens=self.scoring.max_new_tokens,
            )
        return self._known[key]


def estimates(items: ItemScores) -> dict[str, Estimate]:
    """Return the means of a set with their intervals, and the perplexity of its loss."""
    found = {}
    for metric, value in mean_scores(items).items():
        interval = None if metric.startswith(SUPERSEDED) else mean_interval(items, metric)
        low, high = interval or (None, None)
        found[metric] = Estimate(value=value, low=low, high=high)
    if "loss" in found:
        loss = found["loss"]
        ends = [None if end is None else perplexity(end) for end in (loss.low, loss.high)]
        found["perplexity"] = Estimate(value=perplexity(loss.value), low=ends[0], high=ends[1])
    return {metric: estimate for metric, estimate in found.items() if math.isfinite(estimate.value)}


def derived_matrices(matrices: Mapping[str, Sequence[Sequence[float | None]]]) -> dict[str, Any]:
    """Return the matrices with ``perplexity`` where there is a loss."""
    found: dict[str, Any] = dict(matrices)
    if "loss" in found:
        found["perplexity"] = [
            [None if cell is None else perplexity(cell) for cell in row] for row in found["loss"]
        ]
    return found
