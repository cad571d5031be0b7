"""The evaluation part of a method's summary, made from its matrices alone (no torch)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from constrained_adapters.errors import UsageError
from constrained_adapters.evaluation.matrix import (
    Rows,
    accuracy,
    backward_transfer,
    drift_percent,
    forgetting,
    forward_transfer,
    intransigence,
    learned,
    perplexity,
    plasticity_percent,
)
from constrained_adapters.results import MethodResult

_FINALS = {
    "choice_accuracy": "choice_accuracy",
    "token_f1": "token_f1",
    "superseded_kept": "superseded_exact_match",
}
"""Entries of the summary that are the mean of a matrix's last row."""


def summarise(matrices: Mapping[str, Rows], general_nats: Sequence[float | None]) -> dict[str, float]:
    """Reduce a method's matrices to one number per metric.

    Args:
        matrices: ``loss`` (nats per answer token), ``exact_match`` and ``choice_accuracy`` (0 … 1),
            each (T + 1) × T; any of them may be absent.
        general_nats: Mean loss on general text after 0, 1 … T domains, nats per token.

    Returns:
        ``accuracy``, ``backward_transfer``, ``forward_transfer``, ``forgetting`` and ``learned`` of
        ``exact_match``; ``choice_accuracy`` and ``token_f1``: the means of their last rows;
        ``superseded_kept``: that of ``superseded_exact_match``, which is meant to fall; ``drift_percent``
        of ``loss``; ``general_perplexity_base`` and ``general_perplexity``: before the first domain and
        after the last, and ``general_change_percent`` between them. A key whose number does not exist (no
        domain has the metric, nothing was measured, or it is not finite) is left out, so the result is
        always valid JSON.

    Raises:
        UsageError: A matrix has a wrong shape or a hole in a measured column.

    >>> summarise({"loss": [[3.0], [1.0]]}, [0.0, 0.0])
    {'drift_percent': 0.0, 'general_perplexity_base': 1.0, 'general_perplexity': 1.0,
     'general_change_percent': 0.0}
    """
    summary: dict[str, float] = {}
    if exact := matrices.get("exact_match"):
        summary["accuracy"] = accuracy(exact)
        summary["backward_transfer"] = backward_transfer(exact)
        summary["forward_transfer"] = forward_transfer(exact)
        summary["forgetting"] = forgetting(exact)
        summary["learned"] = learned(exact)
    for key, metric in _FINALS.items():
        if final := matrices.get(metric):
            summary[key] = accuracy(final)
    if loss := matrices.get("loss"):
        summary["drift_percent"] = drift_percent(loss)
    if general_nats:
        for key, nats in (
            ("general_perplexity_base", general_nats[0]),
            ("general_perplexity", general_nats[-1]),
        ):
            if nats is not None:
                summary[key] = perplexity(nats)
        before, after = (summary.get(f"general_perplexity{end}") for end in ("_base", ""))
        if before is not None and after is not None and math.isfinite(before):
            summary["general_change_percent"] = 100.0 * (after / before - 1.0)
    return {key: value for key, value in summary.items() if math.isfinite(value)}


def with_references(methods: Sequence[MethodResult]) -> list[MethodResult]:
    """Add to each method's summary what compares it with references of the same run.

    ``plasticity_percent``: exact match right after learning, in percent of plain LoRA's (each domain alone,
    ``separate``, where the run has it, else sequential ``lora``). ``intransigence``: how far it stays below
    joint training's (``joint``), 0 … 1. A reference is not compared with itself.

    Args:
        methods: Of one run, on the same domains.
    """
    by_recipe = {method.recipe: method for method in reversed(methods)}
    alone = by_recipe.get("separate") or by_recipe.get("lora")
    found = []
    for method in methods:
        summary = dict(method.summary)
        for key, reference, measure in (
            ("plasticity_percent", alone, plasticity_percent),
            ("intransigence", by_recipe.get("joint"), intransigence),
        ):
            value = _against(measure, method, reference)
            if value is not None:
                summary[key] = value
        found.append(method.model_copy(update={"summary": summary}))
    return found


def _against(
    measure: Callable[[Rows, Rows], float], method: MethodResult, reference: MethodResult | None
) -> float | None:
    own, other = (each.matrices.get("exact_match") if each else None for each in (method, reference))
    if reference is None or reference is method or own is None or other is None:
        return None
    try:
        value = measure(own, other)
    except UsageError:  # a cell that one of them was not scored on
        return None
    return value if math.isfinite(value) else None
