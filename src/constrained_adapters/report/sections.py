"""One method's part of the page: what the template shows, ready to be written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from constrained_adapters.evaluation.calibration import Pair
from constrained_adapters.report.changes import Piece, changed_words, language_tag, same_answer
from constrained_adapters.report.charts import Chart, Drawing, Line, sequence_chart
from constrained_adapters.report.forecast import forecast_chart, forecast_sentence, forecasts
from constrained_adapters.report.heatmap import HeatMap, heat_maps
from constrained_adapters.report.layers import ByLayer, by_layer
from constrained_adapters.report.measures import cell, drift_percent, is_reference, perplexities
from constrained_adapters.report.numbers import MISSING, decimal, finite, percent, ratio, seconds, size
from constrained_adapters.report.timelines import (
    DIVERSITY,
    GUARD,
    TRAINING,
    line_of,
    more,
    present,
    timelines,
)
from constrained_adapters.report.watch import Events, guard_events
from constrained_adapters.results import MethodResult, Sample

_ACCURACIES = {
    "exact_match": "Exact match",
    "choice_accuracy": "Choice accuracy",
    "token_f1": "Token F1",
}
"""Metrics that are drawn over the sequence, in percent."""


@dataclass(frozen=True)
class SampleView:
    """One test prompt with its three answers."""

    domain: str
    prompt: str
    reference: str
    base: str
    learned: str
    final: list[Piece]
    unchanged: bool
    right: tuple[bool, bool, bool]
    language: str | None


@dataclass(frozen=True)
class Prediction:
    """A predicted and a measured loss increase of one finished domain, in nats."""

    trained: str
    finished: str
    predicted: str
    measured: str
    factor: str


@dataclass(frozen=True)
class Section:
    """Everything about one method."""

    anchor: str
    name: str
    recipe: str
    reference: bool
    index: int
    domains: list[str]
    heat: list[HeatMap]
    over_sequence: list[Drawing]
    while_training: list[Drawing]
    more_curves: list[Drawing]
    diversity: list[Drawing]
    guard: list[Drawing]
    guard_note: str
    events: Events
    importance: ByLayer
    predictions: list[Prediction]
    forecast: Drawing | None
    forecast_note: str
    samples: list[SampleView]
    more_samples: list[SampleView]
    data_rows: list[list[str]]


def section(index: int, method: MethodResult, methods: Sequence[MethodResult]) -> Section:
    """Build the part of the method at ``index`` of the run."""
    anchor = f"method-{index + 1}"
    first, rest = _samples(method)
    found = forecasts(method)
    return Section(
        anchor=anchor,
        name=method.name,
        recipe=method.recipe,
        reference=is_reference(method),
        index=index,
        domains=method.domains,
        heat=heat_maps(method, methods),
        over_sequence=_over_sequence(anchor, method, methods),
        while_training=timelines(anchor, method, TRAINING),
        more_curves=timelines(anchor, method, more(method)),
        diversity=timelines(anchor, method, DIVERSITY),
        guard=timelines(anchor, method, GUARD),
        guard_note=_guard_note(method),
        events=guard_events(method),
        importance=by_layer(anchor, method),
        predictions=_predictions(found),
        forecast=forecast_chart(
            Chart(
                f"{anchor}-forecast",
                "Measured against predicted",
                "nats per token; a forecast that held lies in the band",
                height=300,
            ),
            found,
            method.domains,
        ),
        forecast_note=forecast_sentence(found),
        samples=first,
        more_samples=rest,
        data_rows=_data_rows(method),
    )


def _guard_note(method: MethodResult) -> str:
    """What the forgetting guard's checks took, by domain."""
    shares = {record.name: finite(record.guard.get("time_ratio")) for record in method.records}
    told = [f"{ratio(share, 0)} ({name})" for name, share in shares.items() if share is not None]
    return f"The forgetting guard's checks took {', '.join(told)} of the training's time." if told else ""


def _over_sequence(anchor: str, method: MethodResult, methods: Sequence[MethodResult]) -> list[Drawing]:
    num = len(method.domains)
    same = "; same scale for all methods" if len(methods) > 1 else ""
    charts: list[Drawing | None] = []
    if num > 1:  # with one domain the only point is a zero by definition
        charts.append(
            sequence_chart(
                Chart(
                    f"{anchor}-drift",
                    "Drift",
                    f"% loss since learned; lower is better{same}",
                    _signed_percent,
                    zero_line=True,
                    limits=_shared_limits(
                        [y for each in methods for line in _drifts(each) for y in line.ys], 2.0
                    ),
                ),
                _drifts(method),
                method.domains,
                base=False,
            )
        )
    for metric, title in _ACCURACIES.items():
        matrix = method.matrices.get(metric, [])
        lines = [
            line_of(name, j, [(float(i), _times_100(cell(matrix, i, j))) for i in range(num + 1)])
            for j, name in enumerate(method.domains)
        ]
        chart = Chart(
            f"{anchor}-{metric.replace('_', '-')}", title, "%; higher is better", percent, limits=(-3, 103)
        )
        charts.append(sequence_chart(chart, lines, method.domains, base=True))
    general = [(float(i), value) for i, value in enumerate(perplexities(method))]
    levels = [value for each in methods for value in perplexities(each) if value is not None]
    limits = _shared_limits(levels, 0.1 * min(levels, default=1.0))
    chart = Chart(f"{anchor}-general", "General text", f"perplexity; lower is better{same}", limits=limits)
    charts.append(
        sequence_chart(
            chart, [replace(line_of("general text", 7, general), marker="o")], method.domains, base=True
        )
    )
    return present(charts)


def _drifts(method: MethodResult) -> list[Line]:
    """Each domain's drift from when it was learned (0 by definition) to the end."""
    losses, num = method.matrices.get("loss", []), len(method.domains)
    return [
        line_of(name, j, [(float(i), drift_percent(losses, i, j)) for i in range(j + 1, num + 1)])
        for j, name in enumerate(method.domains)
    ]


def _shared_limits(values: Sequence[float], least_span: float) -> tuple[float, float] | None:
    """One vertical scale for the same chart of every method, too wide for noise to look like a trend."""
    if not values:
        return None
    low, high = min(values), max(values)
    pad = max(0.06 * (high - low), (least_span - (high - low)) / 2)
    return low - pad, high + pad


def _predictions(found: Sequence[Pair]) -> list[Prediction]:
    return [
        Prediction(
            pair.trained,
            pair.finished,
            decimal(finite(pair.predicted), 4, sign=True),
            decimal(finite(pair.measured), 4, sign=True),
            MISSING if pair.ratio is None else f"× {decimal(pair.ratio)}",
        )
        for pair in found
    ]


def _samples(method: MethodResult) -> tuple[list[SampleView], list[SampleView]]:
    """The first sample of each domain, and all others."""
    first: list[SampleView] = []
    rest: list[SampleView] = []
    seen: set[str] = set()
    for sample in method.samples:
        (rest if sample.domain in seen else first).append(_sample(sample))
        seen.add(sample.domain)
    return first, rest


def _sample(sample: Sample) -> SampleView:

    def right(answer: str) -> bool:
        return bool(answer.strip()) and same_answer(answer, sample.reference)

    return SampleView(
        domain=sample.domain,
        prompt=sample.prompt,
        reference=sample.reference,
        base=sample.base,
        learned=sample.learned,
        final=changed_words(sample.learned, sample.final),
        unchanged=sample.learned == sample.final,
        right=(right(sample.base), right(sample.learned), right(sample.final)),
        language=language_tag(sample.prompt + sample.reference),
    )


def _data_rows(method: MethodResult) -> list[list[str]]:
    return [
        [
            record.name,
            f"{record.num_train:,}",
            f"{record.num_validation:,}",
            f"{record.num_test:,}",
            seconds(record.train_seconds),
            seconds(record.memory_seconds),
            seconds(record.eval_seconds),
            size(record.adapter_bytes),
            size(record.memory_bytes),
            record.data_fingerprint[:12],
        ]
        for record in method.records
    ]


def _times_100(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _signed_percent(value: float | None) -> str:
    return percent(value, sign=True)
