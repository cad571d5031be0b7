"""What ``crma eval`` measured afterwards, ready to be written: sets, and tasks of lm-evaluation-harness."""

from __future__ import annotations

from dataclasses import dataclass

from constrained_adapters.report.numbers import MISSING, decimal, percent
from constrained_adapters.results import Assessment, Estimate

_SHARES = {"exact_match": "Exact match", "choice_accuracy": "Choice accuracy", "token_f1": "Token F1"}
_OTHERS = {"loss": "Loss, nats", "perplexity": "Perplexity"}
_SUPERSEDED = "superseded_"


@dataclass(frozen=True)
class Assessed:
    """One assessment as tables: ``sets`` of set, items, metric and a column a model; ``tasks`` likewise."""

    title: str
    created: str
    models: list[str]
    sets: list[list[str]]
    tasks: list[list[str]]
    notes: list[str]


def assessed(found: Assessment) -> Assessed:
    """Return an assessment, as ``crma eval --output`` wrote it, as the page shows it."""
    return Assessed(found.title, found.created, found.models, _sets(found), _tasks(found), found.notes)


def _sets(found: Assessment) -> list[list[str]]:
    rows = []
    for each in found.sets:
        metrics = list(dict.fromkeys(metric for scores in each.scores.values() for metric in scores))
        for metric in metrics:
            share = metric.removeprefix(_SUPERSEDED) in _SHARES
            cells = [_estimate(each.scores.get(model, {}).get(metric), share) for model in found.models]
            rows.append([each.name, f"{each.num_items:,}", _title(metric), *cells])
    return rows


def _tasks(found: Assessment) -> list[list[str]]:
    rows = []
    for each in found.tasks:
        # The harness has metrics of any kind: what lies in 0 … 1 for every model is written as a share.
        share = all(0.0 <= score.value <= 1.0 for score in each.scores.values())
        cells = [_estimate(each.scores.get(model), share) for model in found.models]
        rows.append([each.task, f"{each.num_items:,}" if each.num_items else MISSING, each.metric, *cells])
    return rows


def _estimate(found: Estimate | None, share: bool) -> str:
    if found is None:
        return MISSING
    value = percent(100 * found.value) if share else decimal(found.value, 3)
    if found.low is None or found.high is None:
        return value
    factor, digits = (100.0, 1) if share else (1.0, 3)
    return f"{value} [{decimal(factor * found.low, digits)}, {decimal(factor * found.high, digits)}]"


def _title(metric: str) -> str:
    name = metric.removeprefix(_SUPERSEDED)
    title = _SHARES.get(name) or _OTHERS.get(name) or name.replace("_", " ")
    return title if name == metric else f"Superseded: {title[0].lower()}{title[1:]}"
