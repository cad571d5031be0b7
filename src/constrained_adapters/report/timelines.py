"""Curves over the optimizer steps of the whole sequence: training, diversity, guards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from constrained_adapters.report.charts import Chart, Drawing, Line, timeline_chart
from constrained_adapters.report.numbers import MISSING, finite
from constrained_adapters.results import MethodResult

TRAINING = {
    "loss": ("Training loss", "nats per answer token"),
    "removed_ratio": ("Removed gradient", "% of its norm"),
    "conflict": ("Conflict with the memories", "cosine; below 0 the step would hurt"),
    "penalty_cosine": ("Conflict with the penalty", "cosine; below 0 the step would hurt"),
}
"""Curves that every reader wants, in this order: key → (title, unit)."""

DIVERSITY = {
    "unique_trigram_ratio": ("Unique 3-grams", "share; low: the model repeats itself"),
    "self_bleu": ("Self-BLEU", "0 … 1; high: answers are alike"),
    "output_entropy_nats": ("Output entropy", "nats; a sharp fall is a warning"),
    "repetition_ratio": ("Repetition", "share of words in loops; lower is better"),
    "identical_ratio": ("Identical answers", "share; lower is better"),
}
"""What a collapse guard reads from text that the model writes while it trains."""

GUARD = {
    "probe_old_nats": ("Old domains, probe", "nats per token; lower is better"),
    "probe_new_nats": ("New domain, probe", "nats per token; lower is better"),
    "probe_mixed_nats": ("Mixed, probe", "nats per token; lower is better"),
    "start_kl_nats": ("Distance from the start", "KL on the new data, nats per token"),
}
"""What a forgetting guard measures on small probe sets."""

TITLES: Mapping[str, tuple[str, str]] = {**TRAINING, **DIVERSITY, **GUARD}
IN_PERCENT = frozenset({"removed_ratio"})
ZERO_LINE = frozenset({"conflict", "penalty_cosine"})
SHARES = frozenset({"unique_trigram_ratio", "self_bleu", "repetition_ratio", "identical_ratio"})
"""Drawn from 0 to 1, so that what is healthy looks so."""


def timelines(anchor: str, method: MethodResult, keys: Iterable[str]) -> list[Drawing]:
    """Draw the curves of a method that are there, one figure per key, the domains laid end to end."""
    return present(_timeline(anchor, method, key) for key in keys)


def more(method: MethodResult) -> list[str]:
    """Return the keys of a method's curves that belong to no group."""
    return sorted({key for record in method.records for key in record.curves} - set(TITLES))


def line_of(label: str, index: int, points: Sequence[tuple[float, float | None]]) -> Line:
    """Return a series of the points that are there."""
    there = [(x, y) for x, y in points if y is not None]
    return Line(label, index, [x for x, _ in there], [y for _, y in there])


def present(drawings: Iterable[Drawing | None]) -> list[Drawing]:
    """Return those that are there."""
    return [drawing for drawing in drawings if drawing is not None]


def short(value: float | None) -> str:
    """Write three significant digits, for quantities of any size such as learning rates."""
    return MISSING if value is None else f"{value:.3g}".replace("-", "\u2212")


def _timeline(anchor: str, method: MethodResult, key: str) -> Drawing | None:
    lines, ends, start = [], [], 0.0
    factor = 100.0 if key in IN_PERCENT else 1.0
    for j, record in enumerate(method.records):
        curve = record.curves.get(key)
        if curve is not None:
            pairs = zip(curve.steps, curve.values, strict=False)
            lines.append(line_of(record.name, j, [(start + step, finite(factor * y)) for step, y in pairs]))
        start += max((max(c.steps, default=0) for c in record.curves.values()), default=0)
        ends.append(start)
    title, unit = TITLES.get(key, (key.replace("_", " ").capitalize(), ""))
    keys = sorted({name for each in method.records for name in each.curves})
    if key not in keys or start == 0:
        return None
    chart = Chart(
        f"{anchor}-curve-{keys.index(key)}",
        title,
        unit,
        short,
        zero_line=key in ZERO_LINE,
        limits=(-0.03, 1.03) if key in SHARES else None,
    )
    return timeline_chart(chart, lines, ends)
