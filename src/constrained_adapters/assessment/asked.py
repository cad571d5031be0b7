"""From what a user typed to what is scored."""

from __future__ import annotations

from collections.abc import Sequence

from constrained_adapters.assessment.scoring import Scoring
from constrained_adapters.assessment.sets import EvaluationSet, read_set
from constrained_adapters.errors import ConfigError, UnknownNameError
from constrained_adapters.evaluation.checks import DERIVED
from constrained_adapters.evaluation.items import METRICS


def read_sets(pairs: Sequence[str]) -> tuple[EvaluationSet, ...]:
    """Read sets given as ``NAME=DATA``.

    Raises:
        ConfigError: One is not of this form.
        DataError: Its data is missing, empty or broken.
    """
    sets = []
    for pair in pairs:
        name, sign, source = pair.partition("=")
        if not (name and sign and source):
            raise ConfigError(
                "a set is NAME=DATA", got=f"--data {pair}", expected="--data law=law_test.jsonl"
            )
        sets.append(read_set(name, source))
    return tuple(sets)


def scoring_of(metrics: Sequence[str] | None, *, batch_size: int, max_new_tokens: int) -> Scoring:
    """Return how sets are scored.

    Raises:
        UnknownNameError: There is no such metric.
    """
    for metric in metrics or ():
        if metric not in METRICS and metric not in DERIVED:
            raise UnknownNameError.of("metric", metric, [*METRICS, *DERIVED], where="--metric")
    wanted = tuple(metrics) if metrics else None
    return Scoring(wanted, batch_size=batch_size, max_new_tokens=max_new_tokens)
