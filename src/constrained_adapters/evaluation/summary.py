"""The evaluation part of a method's summary, made from its matrices alone (no torch)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from constrained_adapters.evaluation.matrix import (
    Rows,
    accuracy,
    backward_transfer,
    drift_percent,
    forgetting,
    forward_transfer,
    learned,
    perplexity,
)


def summarise(matrices: Mapping[str, Rows], general_nats: Sequence[float | None]) -> dict[str, float]:
    """Reduce a method's matrices to one number per metric.

    Args:
        matrices: ``loss`` (nats per answer token), ``exact_match`` and ``choice_accuracy`` (0 … 1),
            each (T + 1) × T; any of them may be absent.
        general_nats: Mean loss on general text after 0, 1 … T domains, nats per token.

    Returns:
        ``accuracy``, ``backward_transfer``, ``forward_transfer``, ``forgetting`` and ``learned`` of
        ``exact_match``; ``choice_accuracy``: the mean of its last row; ``drift_percent`` of ``loss``;
        ``general_perplexity_base`` and ``general_perplexity``: before the first domain and after the
        last. A key whose number does not exist (no domain has the metric, nothing was measured, or
        it is not finite) is left out, so the result is always valid JSON.

    Raises:
        UsageError: A matrix has a wrong shape or a hole in a measured column.

    >>> summarise({"loss": [[3.0], [1.0]]}, [0.0, 0.0])
    {'drift_percent': 0.0, 'general_perplexity_base': 1.0, 'general_perplexity': 1.0}
    """
    summary: dict[str, float] = {}
    if exact := matrices.get("exact_match"):
        summary["accuracy"] = accuracy(exact)
        summary["backward_transfer"] = backward_transfer(exact)
        summary["forward_transfer"] = forward_transfer(exact)
        summary["forgetting"] = forgetting(exact)
        summary["learned"] = learned(exact)
    if choice := matrices.get("choice_accuracy"):
        summary["choice_accuracy"] = accuracy(choice)
    if loss := matrices.get("loss"):
        summary["drift_percent"] = drift_percent(loss)
    if general_nats:
        for key, nats in (
            ("general_perplexity_base", general_nats[0]),
            ("general_perplexity", general_nats[-1]),
        ):
            if nats is not None:
                summary[key] = perplexity(nats)
    return {key: value for key, value in summary.items() if math.isfinite(value)}
